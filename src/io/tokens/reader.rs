//! A token file, mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;

use super::{Header, short};
use crate::error::{Error, Result};
use crate::io::checkpoint::map_file;

/// Tokens that one thread looks at in one go.
const CHUNK: usize = 1 << 18;

/// A token file, memory-mapped. Cheap to clone: clones share the map.
///
/// As with a [`Checkpoint`](crate::io::Checkpoint), the file must not be cut short while it is
/// mapped; renaming another over it is safe.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    header: Header,
    bytes: Bytes,
    max_id: u32,
}

impl TokenFile {
    /// Maps a file and reads it once, in parallel: every id is inside the vocabulary, the documents
    /// are as many as the header says, and the last one is ended.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Input`], naming the file and the place, when
    /// it is not a token file, was written by another version, is cut short, or holds something
    /// other than its header says.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if !meta.is_file() {
            let kind = std::io::Error::other("it is no file; name one that `lacuna pack` wrote");
            return Err(Error::io("open", path, kind));
        }
        let bytes = map_file(path)?;
        let header = Header::parse(&bytes, path)?;
        let mut file = Self { path: path.to_owned(), header, bytes, max_id: 0 };
        file.max_id = file.verify()?;
        Ok(file)
    }

    /// Checks the tokens; the largest id.
    fn verify(&self) -> Result<u32> {
        let wrong = |what: String, expected: String, got: String| Error::Input {
            origin: self.path.display().to_string(),
            what,
            expected,
            got,
        };
        let eos = self.eos();
        let chunks = self.tokens().par_chunks(CHUNK * self.header.width);
        let (max, documents) = chunks
            .map(|chunk| {
                self.ids(chunk).fold((0, 0u64), |(max, n), id| (id.max(max), n + u64::from(id == eos)))
            })
            .reduce(|| (0, 0), |a, b| (a.0.max(b.0), a.1 + b.1));
        let vocab = self.vocab_size();
        if max as usize >= vocab {
            let at = self.ids(self.tokens()).position(|id| id as usize >= vocab).unwrap_or_default();
            let got = self.ids(self.tokens()).nth(at).unwrap_or(max);
            return Err(wrong(format!("token {at}"), format!("an id below {vocab}"), got.to_string()));
        }
        if documents != self.header.documents {
            let expected = format!("{} as the header says", self.header.documents);
            return Err(wrong("end-of-sequence tokens".into(), expected, documents.to_string()));
        }
        match self.slice(self.len().saturating_sub(1)..self.len()).first() {
            Some(&last) if last == eos => Ok(max),
            last => {
                let got = last.map_or_else(|| "none".into(), u32::to_string);
                Err(wrong("the last token".into(), format!("end-of-sequence, {eos}"), got))
            }
        }
    }

    /// The bytes of the tokens.
    fn tokens(&self) -> &[u8] {
        self.bytes.get(self.header.length..).unwrap_or_default()
    }

    /// The ids that whole tokens' bytes spell.
    fn ids<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = u32> + use<'a> {
        bytes.chunks_exact(self.header.width).map(|token| match *token {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens, end-of-sequence tokens included; at least 1.
    pub fn len(&self) -> usize {
        self.tokens().len() / self.header.width
    }

    /// `false`: a file without tokens is refused at opening.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Documents: end-of-sequence tokens.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// The size of the vocabulary the file was written for: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.header.vocab_size
    }

    /// The largest id in the file.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// SHA-256 of the tokenizer's file.
    pub fn tokenizer_hash(&self) -> &[u8; 32] {
        &self.header.tokenizer
    }

    /// The token that ends each document.
    pub fn eos(&self) -> u32 {
        self.header.eos
    }

    /// The ids of tokens `range`; what lies behind the end is left out.
    pub fn iter(&self, range: Range<usize>) -> impl Iterator<Item = u32> + use<'_> {
        let (width, all) = (self.header.width, self.tokens());
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        self.ids(all.get(start * width..end * width).unwrap_or_default())
    }

    /// The ids of tokens `range`; what lies behind the end is left out.
    pub fn slice(&self, range: Range<usize>) -> Vec<u32> {
        self.iter(range).collect()
    }

    /// The positions of the end-of-sequence tokens in `range`, from the start of the file:
    /// document boundaries.
    pub fn boundaries(&self, range: Range<usize>) -> impl Iterator<Item = usize> + use<'_> {
        let (start, eos) = (range.start, self.eos());
        self.iter(range).enumerate().filter(move |(_, id)| *id == eos).map(move |(at, _)| start + at)
    }

    /// Checks that the ids were made by the tokenizer with this SHA-256
    /// ([`Tokenizer::sha256`](crate::io::Tokenizer::sha256)); `origin` names it in the error.
    ///
    /// # Errors
    /// [`Error::Request`] with the beginnings of both hashes.
    pub fn check_tokenizer(&self, sha256: &[u8; 32], origin: &str) -> Result<()> {
        if self.tokenizer_hash() == sha256 {
            return Ok(());
        }
        Err(Error::request(format_args!(
            "{} was packed with another tokenizer: SHA-256 {}..., that of {origin} is {}...; pack the text again \
             with `lacuna pack --tokenizer`, or use the model that belongs to the file",
            self.path.display(),
            short(self.tokenizer_hash()),
            short(sha256)
        )))
    }
}
