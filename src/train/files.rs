//! The folder of a run:
//!
//! ```text
//! OUTPUT/config.toml            the configuration as it was resolved
//! OUTPUT/log.jsonl              one line a step, and one a validation
//! OUTPUT/loss.svg
//! OUTPUT/tensorboard/           the same numbers as TensorBoard events
//! OUTPUT/checkpoints/step-N/    what N steps gave
//! OUTPUT/checkpoints/best.json  which of them validated best
//! ```
//!
//! A checkpoint is written to a folder beside its place and moved there whole, so that a `step-N` that is there is
//! complete, whatever ended the process.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// What the names of unfinished checkpoints begin with.
const PENDING: &str = ".tmp-step-";

/// The folder of a run, which one process at a time can have open.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// Locked as long as it is open.
    _lock: Option<File>,
}

/// The checkpoint that validated best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    /// Nats per token.
    pub nelbo: f64,
}

impl RunFolder {
    /// Makes the folder of a new run, and what is missing above it.
    ///
    /// # Errors
    /// [`Error::Request`] when it exists and is not empty; [`Error::Io`] when it cannot be made.
    pub fn create(root: &Path) -> Result<Self> {
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty());
        parent.map_or(Ok(()), fs::create_dir_all).map_err(|e| Error::io("create the folder of", root, e))?;
        match fs::create_dir(root) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(root).map_err(|e| Error::io("open", root, e))?;
                if entries.next().is_some() {
                    return Err(Self::not_empty(root));
                }
            }
            Err(e) => return Err(Error::io("create", root, e)),
        }
        let run = Self::lock(root)?;
        let folder = run.checkpoints_folder();
        fs::create_dir(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(run)
    }

    /// Says beforehand whether [`create`](Self::create) would refuse the folder.
    ///
    /// # Errors
    /// [`Error::Request`] when it exists and is not empty; [`Error::Io`] when it is a file.
    pub fn check_new(root: &Path) -> Result<()> {
        match fs::read_dir(root) {
            Ok(mut entries) => match entries.next() {
                Some(_) => Err(Self::not_empty(root)),
                None => Ok(()),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("create", root, e)),
        }
    }

    fn not_empty(root: &Path) -> Error {
        Error::Request(format!(
            "{}: the folder is not empty; name a new one, or resume the run in it with --resume",
            root.display()
        ))
    }

    /// Opens the folder of a run that is to go on.
    ///
    /// # Errors
    /// [`Error::Request`] when it holds no run, or another process has it open; [`Error::Io`] when it cannot be read.
    pub fn resume(root: &Path) -> Result<Self> {
        if !root.join("checkpoints").is_dir() {
            return Err(Error::Request(format!(
                "{}: there is no run to resume (no folder checkpoints); leave --resume out to start one",
                root.display()
            )));
        }
        let run = Self::lock(root)?;
        run.clear_pending()?;
        Ok(run)
    }

    fn lock(root: &Path) -> Result<Self> {
        let mut lock = None;
        // A folder can be opened, and locked, on Unix only; where its file system has no locks, do without.
        if cfg!(unix) {
            let folder = File::open(root).map_err(|e| Error::io("open", root, e))?;
            if let Err(fs::TryLockError::WouldBlock) = folder.try_lock() {
                return Err(Error::Request(format!(
                    "{}: another process is training in this folder; name another, or wait for its end",
                    root.display()
                )));
            }
            lock = Some(folder);
        }
        Ok(Self { root: root.to_path_buf(), _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    pub fn plot(&self) -> PathBuf {
        self.root.join("loss.svg")
    }

    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    fn checkpoints_folder(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Where the checkpoint after `step` steps is, or would be.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints_folder().join(format!("step-{step}"))
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`]; an older file is then as it was.
    pub fn write_config(&self, text: &str) -> Result<()> {
        write_whole(&self.config(), text.as_bytes())
    }

    /// Steps of the checkpoints that are there, in rising order.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<u64>> {
        let step = |name: &str| {
            let step = name.strip_prefix("step-")?.parse().ok()?;
            (name == format!("step-{step}")).then_some(step)
        };
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The checkpoint after most steps.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read.
    pub fn latest_checkpoint(&self) -> Result<Option<(u64, PathBuf)>> {
        Ok(self.checkpoints()?.last().map(|&step| (step, self.checkpoint(step))))
    }

    /// Makes the folder that the checkpoint after `step` steps is written to. What earlier processes left unfinished
    /// is removed.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn begin_checkpoint(&self, step: u64) -> Result<Pending> {
        self.clear_pending()?;
        let target = self.checkpoint(step);
        let path = target.with_file_name(format!("{PENDING}{step}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Pending { path, target })
    }

    /// Removes all checkpoints but the last `keep_last` and that after `keep` steps. The last one stays in any case.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be removed.
    pub fn prune(&self, keep_last: usize, keep: Option<u64>) -> Result<()> {
        let steps = self.checkpoints()?;
        let old = steps.len().saturating_sub(keep_last.max(1));
        for &step in steps.iter().take(old).filter(|step| keep != Some(**step)) {
            // Renamed first: half a checkpoint must not look like one.
            let path = self.checkpoint(step);
            let gone = path.with_file_name(format!("{PENDING}{step}-{}-old", std::process::id()));
            fs::rename(&path, &gone).map_err(|e| Error::io("remove", &path, e))?;
            fs::remove_dir_all(&gone).map_err(|e| Error::io("remove", &gone, e))?;
        }
        Ok(())
    }

    /// The checkpoint that validated best, where one was recorded.
    ///
    /// # Errors
    /// [`Error::Config`] when the file holds something else; [`Error::Io`] when it cannot be read.
    pub fn best(&self) -> Result<Option<Best>> {
        let path = self.best_file();
        let text = match crate::io::read_limited(&path, 1 << 16) {
            Ok(text) => text,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::Config {
            path,
            field: "file".into(),
            expected: "an object with step and nelbo".into(),
            got: e.to_string(),
        })
    }

    /// Records the checkpoint that validated best.
    ///
    /// # Errors
    /// [`Error::Io`]; the older record is then as it was.
    pub fn write_best(&self, best: Best) -> Result<()> {
        let text = serde_json::to_string(&best).map_err(Error::request)?;
        write_whole(&self.best_file(), format!("{text}\n").as_bytes())
    }

    fn best_file(&self) -> PathBuf {
        self.checkpoints_folder().join("best.json")
    }

    /// Removes what earlier processes left unfinished.
    fn clear_pending(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(PENDING)) {
            let path = self.checkpoints_folder().join(name);
            fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// Names in the folder of checkpoints.
    fn names(&self) -> Result<Vec<String>> {
        let folder = self.checkpoints_folder();
        let fail = |e| Error::io("read", &folder, e);
        let entries = fs::read_dir(&folder).map_err(fail)?;
        let names = entries.map(|e| e.map(|e| e.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect::<Result<_, _>>().map_err(fail)
    }
}

/// A checkpoint that is being written. Dropped, it is gone.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    target: PathBuf,
}

impl Pending {
    /// The folder to write to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings everything to the disk, and moves the folder to its place, where a checkpoint after the same number of
    /// steps is replaced. Gives its path.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing has been replaced then.
    pub fn commit(self) -> Result<PathBuf> {
        sync(&self.path)?;
        let fail = |e| Error::io("write", &self.target, e);
        let mut old = None;
        if self.target.exists() {
            let mut name = self.path.file_name().unwrap_or_default().to_owned();
            name.push("-old");
            let aside = self.path.with_file_name(name);
            fs::rename(&self.target, &aside).map_err(fail)?;
            old = Some(aside);
        }
        if let Err(e) = fs::rename(&self.path, &self.target) {
            if let Some(old) = &old {
                let _ = fs::rename(old, &self.target);
            }
            return Err(fail(e));
        }
        if let Some(parent) = self.target.parent() {
            sync_folder(parent)?;
        }
        if let Some(old) = old {
            fs::remove_dir_all(&old).map_err(|e| Error::io("remove", &old, e))?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After a commit there is nothing of that name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Brings a folder and all in it to the disk.
fn sync(folder: &Path) -> Result<()> {
    let fail = |e| Error::io("read", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if entry.file_type().map_err(|e| Error::io("read", &path, e))?.is_dir() {
            sync(&path)?;
        } else {
            // Opened for writing, as some systems ask of what is to be synchronised.
            let file = fs::OpenOptions::new().append(true).open(&path);
            file.and_then(|f| f.sync_all()).map_err(|e| Error::io("write", &path, e))?;
        }
    }
    sync_folder(folder)
}

/// Brings the names in a folder to the disk, where the system can.
fn sync_folder(folder: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", folder, e))
}

/// Writes a file that is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    file.commit()
}
