//! Results of long work on their way to a file. They are first kept, in the order in which they are done, beside it (`OUT.part`),
//! so that a run that was stopped or lost can go on (`--resume`); the file itself appears at the end, whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// The longest that finished results may be lost to a power failure.
const SYNC: Duration = Duration::from_secs(1);

/// Results on their way to a file.
pub struct Journal {
    target: PathBuf,
    path: PathBuf,
    file: File,
    unordered: bool,
    synced: Instant,
    done: Vec<usize>,
    failed: usize,
}

impl Journal {
    /// Opens the journal of `target`. `fingerprint` identifies the work, so that `resume` cannot
    /// mix the results of different runs.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Request`] when there is a journal already and `resume` is not set, it
    /// belongs to other work, or another process is writing it.
    pub fn open(target: &Path, fingerprint: u64, resume: bool, unordered: bool) -> Result<Self> {
        // Whether the file can be written is found out before the work, not after it.
        AtomicFile::probe(target)?;
        let path = path_of(target);
        let header = json!({"lacuna_batch": 1, "fingerprint": format!("{fingerprint:016x}")}).to_string();
        let fail = |e| Error::io("open", &path, e);
        let found = path.try_exists().map_err(fail)?;
        if found && !resume && !is_locked(&path) {
            return Err(Error::request(format!(
                "{} is there from a run that was stopped; go on with it by --resume, or delete it",
                path.display()
            )));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        // Not every file system has locks; without them two runs are not told apart.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(Error::request(format!("another run is writing {} now", path.display())));
        }
        let (done, failed) = if found { Self::read(&mut file, &path, &header)? } else { Default::default() };
        if file.stream_position().map_err(fail)? == 0 {
            file.write_all(format!("{header}\n").as_bytes()).map_err(fail)?;
        }
        Ok(Self { target: target.to_owned(), path, file, unordered, synced: Instant::now(), done, failed })
    }

    /// Whether there is a journal of `target`: a run that is not finished.
    pub fn is_begun(target: &Path) -> bool {
        path_of(target).exists()
    }

    /// The lines that a journal holds, and how many of them failed; leaves the file at the end of the last whole line, with
    /// nothing behind it.
    fn read(file: &mut File, path: &Path, header: &str) -> Result<(Vec<usize>, usize)> {
        let fail = |e| Error::io("read", path, e);
        let (mut done, mut failed) = (Vec::new(), 0);
        let mut end = 0u64;
        let mut reader = BufReader::new(&mut *file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = reader.read_until(b'\n', &mut line).map_err(fail)?;
            // A line that was cut off may end in the middle of a character.
            let Some(whole) = line.strip_suffix(b"\n") else { break };
            let Ok(text) = std::str::from_utf8(whole) else { break };
            if end == 0 {
                if text != header {
                    return Err(Error::request(format!(
                        "{} belongs to other input, another model or other choices; delete it to start anew",
                        path.display()
                    )));
                }
            } else {
                match entry(text) {
                    Some((index, value)) => {
                        done.push(index);
                        failed += usize::from(value.get("error").is_some());
                    }
                    None => break,
                }
            }
            end += n as u64;
        }
        drop(reader);
        file.set_len(end).map_err(fail)?;
        file.seek(SeekFrom::Start(end)).map_err(fail)?;
        Ok((done, failed))
    }

    /// Where results are kept until all are there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The units of work that are done.
    pub fn done(&self) -> &[usize] {
        &self.done
    }

    /// How many of [`done`](Self::done) failed before this run.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// All lines of it, in the order in which they were done.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn entries(&mut self) -> Result<Vec<(usize, Value)>> {
        let fail = |e| Error::io("read", &self.path, e);
        self.file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let mut entries = Vec::with_capacity(self.done.len());
        for line in BufReader::new(&self.file).lines() {
            entries.extend(entry(&line.map_err(fail)?));
        }
        self.file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(entries)
    }

    /// Takes the result of unit of work `index`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&mut self, index: usize, value: &Value) -> Result<()> {
        let fail = |e| Error::io("write", &self.path, e);
        let line = format!("{}\n", json!([index, value]));
        self.file.write_all(line.as_bytes()).map_err(fail)?;
        if self.synced.elapsed() >= SYNC {
            self.file.sync_data().map_err(fail)?;
            self.synced = Instant::now();
        }
        self.done.push(index);
        Ok(())
    }

    /// Brings what there is to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, e))
    }

    /// Writes the file and removes the journal.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        let fail = |e| Error::io("read", &self.path, e);
        let mut places: Vec<(usize, u64, usize)> = Vec::with_capacity(self.done.len());
        self.file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let mut reader = BufReader::new(&self.file);
        let (mut line, mut at) = (String::new(), 0u64);
        loop {
            line.clear();
            let n = reader.read_line(&mut line).map_err(fail)?;
            if n == 0 {
                break;
            }
            if let Some((index, _)) = entry(line.trim_end()) {
                places.push((index, at, n));
            }
            at += n as u64;
        }
        if !self.unordered {
            places.sort_unstable();
        }
        let mut out = AtomicFile::create(&self.target)?;
        for (_, at, n) in places {
            let mut bytes = vec![0; n];
            reader.seek(SeekFrom::Start(at)).map_err(fail)?;
            std::io::Read::read_exact(&mut reader, &mut bytes).map_err(fail)?;
            // What was written is kept as it is: read as numbers and written again it might differ.
            let line = std::str::from_utf8(&bytes).ok().map(str::trim_end);
            let value = line.and_then(|l| l.split_once(',')).and_then(|(_, value)| value.strip_suffix(']'));
            if let Some(value) = value {
                writeln!(out, "{value}").map_err(|e| Error::io("write", &self.target, e))?;
            }
        }
        out.commit()?;
        drop(reader);
        std::fs::remove_file(&self.path).map_err(|e| Error::io("remove", &self.path, e))
    }
}

/// Where the journal of `target` is.
fn path_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Whether a process has the file open as its journal.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// A line of a journal: `[index, result]`.
fn entry(text: &str) -> Option<(usize, Value)> {
    serde_json::from_str(text).ok()
}

/// A 64-bit FNV-1a hash: tells different work apart in journals.
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for &byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(mut journal: Journal, results: &[(usize, &str)]) -> Journal {
        results.iter().for_each(|(i, s)| journal.put(*i, &json!({"text": s})).unwrap());
        journal
    }

    #[test]
    fn a_stopped_run_goes_on_and_ends_in_input_order() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        let part = dir.path().join("out.jsonl.part");
        let kept = put(Journal::open(&target, 1, false, false).unwrap(), &[(2, "c"), (0, "a")]);
        kept.sync().unwrap();
        assert_eq!(kept.path(), part);
        drop(kept);
        assert!(!target.exists());
        // A line that was cut off in the middle, be it of a character, is done again.
        let append = |bytes: &[u8]| OpenOptions::new().append(true).open(&part).unwrap().write_all(bytes);
        append(b"[1,{\"text\":\"caf\xc3").unwrap();
        drop(Journal::open(&target, 1, true, false).unwrap());
        append(b"[1,{\"te").unwrap();
        assert!(Journal::open(&target, 1, false, false).is_err(), "an old journal was overwritten");
        assert!(Journal::open(&target, 2, true, false).is_err(), "other work was mixed in");
        let mut journal = Journal::open(&target, 1, true, false).unwrap();
        assert_eq!(journal.done(), [2, 0]);
        assert_eq!(journal.entries().unwrap(), [(2, json!({"text": "c"})), (0, json!({"text": "a"}))]);
        put(journal, &[(1, "b")]).finish().unwrap();
        let text = std::fs::read_to_string(&target).unwrap();
        assert_eq!(text, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n");
        assert!(!part.exists());
    }

    #[test]
    fn unordered_keeps_the_order_of_finishing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        put(Journal::open(&target, 1, false, true).unwrap(), &[(1, "b"), (0, "a")]).finish().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "{\"text\":\"b\"}\n{\"text\":\"a\"}\n");
    }

    #[test]
    fn two_runs_do_not_write_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        let first = Journal::open(&target, 1, false, false).unwrap();
        for resume in [false, true] {
            let message = Journal::open(&target, 1, resume, false).err().unwrap().to_string();
            assert!(message.contains("another run"), "{message}");
        }
        put(first, &[(0, "a")]).finish().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "{\"text\":\"a\"}\n");
    }

    #[test]
    fn a_folder_is_refused_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Journal::open(dir.path(), 1, false, false), Err(Error::Io { .. })));
    }

    #[test]
    fn fingerprints_tell_apart() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
