//! Writes a token file as its documents come.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{HEADER, Header, MAX_VOCAB, width_for};
use crate::error::{Error, Result};
use crate::io::output::{AtomicFile, is_device};

/// Bytes that are gathered before they are written, and read at once.
const BUFFER: usize = 1 << 20;

/// Writes a token file. Memory does not grow with the file, which appears under its name only when
/// it is [committed](TokenWriter::commit).
#[derive(Debug)]
pub struct TokenWriter {
    file: AtomicFile,
    path: PathBuf,
    header: Header,
    buffer: Vec<u8>,
}

impl TokenWriter {
    /// Begins a file at `path`, of ids below `vocab_size`, made by the tokenizer whose SHA-256 is
    /// given. `eos` is put behind each document.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be created, or `path` is a pipe or a device, which cannot
    /// be mapped; [`Error::Request`] for a vocabulary or an `eos` out of range.
    pub fn create(path: &Path, vocab_size: usize, eos: u32, tokenizer: &[u8; 32]) -> Result<Self> {
        if !(1..=MAX_VOCAB).contains(&vocab_size) || eos as usize >= vocab_size {
            return Err(Error::request(format_args!(
                "a token file holds a vocabulary of 1 to {MAX_VOCAB} with the end-of-sequence id inside, not \
                 {vocab_size} with {eos}"
            )));
        }
        if is_device(path) {
            let kind = std::io::Error::other("a token file is mapped, so it cannot be a pipe or a device");
            return Err(Error::io("write", path, kind));
        }
        let header = Header {
            length: HEADER,
            width: width_for(vocab_size),
            vocab_size,
            tokenizer: *tokenizer,
            eos,
            tokens: 0,
            documents: 0,
        };
        let mut writer =
            Self { file: AtomicFile::create(path)?, path: path.to_owned(), header, buffer: Vec::new() };
        // The counts are not known yet: commit writes the header again.
        writer.buffer.extend_from_slice(&writer.header.to_bytes());
        Ok(writer)
    }

    /// Appends a document, and behind it the end-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Request`] for an id outside the vocabulary; [`Error::Io`] when the disk is full or
    /// fails.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        self.put(ids)?;
        self.put(&[self.header.eos])
    }

    /// Tokens so far, the end-of-sequence tokens included.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents so far: end-of-sequence tokens. One that a text spells out ends a document too.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Bytes of the file so far.
    pub fn bytes(&self) -> u64 {
        self.place(self.header.tokens)
    }

    fn put(&mut self, ids: &[u32]) -> Result<()> {
        let Header { vocab_size, eos, width, .. } = self.header;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::request(format_args!(
                "token id {id} is outside the vocabulary of {vocab_size} that {} is written for",
                self.path.display()
            )));
        }
        self.header.tokens += ids.len() as u64;
        self.header.documents += ids.iter().filter(|&&id| id == eos).count() as u64;
        for ids in ids.chunks(BUFFER / 4) {
            for &id in ids {
                // Checked above: an id of two bytes is below 65,536.
                match width {
                    2 => self.buffer.extend_from_slice(&(id as u16).to_le_bytes()),
                    _ => self.buffer.extend_from_slice(&id.to_le_bytes()),
                }
            }
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).map_err(|e| Error::io("write", &self.path, e))?;
        self.buffer.clear();
        Ok(())
    }

    /// Where token `index` lies in the file.
    fn place(&self, index: u64) -> u64 {
        HEADER as u64 + index * self.header.width as u64
    }

    /// Moves the last part of the tokens, about `share` (above 0, below 1) of them, to `tail`: a
    /// file that is empty so far, of the same vocabulary. The cut is made at the document boundary
    /// nearest to that share if one leaves between half and twice as much, else inside a document,
    /// whose first part is then ended by an end-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Request`] when there are too few tokens to leave some on both sides, or `share` is
    /// out of range; [`Error::Io`].
    pub fn move_tail(&mut self, tail: &mut TokenWriter, share: f64) -> Result<()> {
        let total = self.header.tokens;
        let wanted = (total as f64 * share).round();
        if !(share > 0.0 && share < 1.0) || wanted < 2.0 || wanted + 2.0 > total as f64 {
            return Err(Error::request(format_args!(
                "{:.3} % of {total} tokens cannot be held out: expected at least 2 tokens on both sides",
                share * 100.0
            )));
        }
        let wanted = wanted as u64;
        self.flush()?;
        let target = total - wanted;
        let (low, high) = (total.saturating_sub(2 * wanted).max(2), (total - wanted / 2).min(total - 2));
        let mut nearest: Option<u64> = None;
        self.scan(low - 1, high, |at, id, eos| {
            let cut = at + 1;
            if id == eos && nearest.is_none_or(|n| cut.abs_diff(target) < n.abs_diff(target)) {
                nearest = Some(cut);
            }
            Ok(())
        })?;
        let cut = nearest.unwrap_or(target);
        let (mut documents, mut ids) = (0, Vec::with_capacity(BUFFER / 4));
        self.scan(cut, total, |_, id, eos| {
            documents += u64::from(id == eos);
            ids.push(id);
            if ids.len() == BUFFER / 4 {
                tail.put(&ids)?;
                ids.clear();
            }
            Ok(())
        })?;
        tail.put(&ids)?;
        let (end, fail) = (self.place(cut), |e| Error::io("write", &self.path, e));
        if let Some(file) = self.file.file_mut() {
            file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fail)?;
        }
        self.header.tokens = cut;
        self.header.documents -= documents;
        if nearest.is_none() {
            self.put(&[self.header.eos])?;
        }
        Ok(())
    }

    /// Calls `each` with the place and the id of tokens `from..to`, which are on the disk, and with
    /// the end-of-sequence id.
    fn scan(&mut self, from: u64, to: u64, mut each: impl FnMut(u64, u32, u32) -> Result<()>) -> Result<()> {
        let (start, width, eos) = (self.place(from), self.header.width, self.header.eos);
        let fail = |e| Error::io("read", &self.path, e);
        let Some(file) = self.file.file_mut() else { return Ok(()) };
        file.seek(SeekFrom::Start(start)).map_err(fail)?;
        let mut at = from;
        while at < to {
            let count = (to - at).min((BUFFER / width) as u64);
            let mut bytes = vec![0; count as usize * width];
            file.read_exact(&mut bytes).map_err(fail)?;
            for token in bytes.chunks_exact(width) {
                let id = match *token {
                    [a, b] => u32::from(u16::from_le_bytes([a, b])),
                    [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                    _ => 0,
                };
                each(at, id, eos)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// Writes the counts into the header and makes the file appear.
    ///
    /// # Errors
    /// [`Error::Request`] when there is no document; [`Error::Io`], and then a file that was there
    /// before is as it was.
    pub fn commit(mut self) -> Result<()> {
        if self.header.documents == 0 {
            return Err(Error::request(format_args!(
                "nothing to write to {}: the text has no tokens",
                self.path.display()
            )));
        }
        self.flush()?;
        let fail = |e| Error::io("write", &self.path, e);
        if let Some(file) = self.file.file_mut() {
            file.seek(SeekFrom::Start(0)).map_err(fail)?;
            file.write_all(&self.header.to_bytes()).map_err(fail)?;
        }
        self.file.commit()
    }
}
