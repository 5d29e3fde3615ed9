//! Token files: texts as token ids, mapped into memory for training.
//!
//! A file is little-endian throughout: a header, then the tokens. Each document is followed by the
//! end-of-sequence token, so the last token of a file is that one, and a document ends wherever it
//! stands. `docs/data.md` has the table of bytes.

mod reader;
mod writer;

pub use reader::TokenFile;
pub use writer::TokenWriter;

use std::path::Path;

use crate::error::{Error, Result};

/// The first bytes of a token file.
const MAGIC: [u8; 8] = *b"\x93LACTOK\n";
/// The version of the format.
const VERSION: u32 = 1;
/// Bytes of the header that have a meaning.
const FIELDS: usize = 80;
/// Bytes of the header as it is written; the rest is zero.
const HEADER: usize = 128;
/// The longest header that is read: a later writer may append fields.
const MAX_HEADER: usize = 4096;
/// Most tokens of a vocabulary.
const MAX_VOCAB: usize = 1 << 24;

/// What stands in front of the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    /// Bytes in front of the tokens.
    length: usize,
    /// Bytes of a token: 2 or 4.
    width: usize,
    vocab_size: usize,
    tokenizer: [u8; 32],
    eos: u32,
    tokens: u64,
    documents: u64,
}

/// Bytes of a token of a vocabulary.
const fn width_for(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&(self.length as u32).to_le_bytes());
        put(&(self.width as u32).to_le_bytes());
        put(&(self.vocab_size as u32).to_le_bytes());
        put(&self.tokenizer);
        put(&self.eos.to_le_bytes());
        put(&[0; 4]);
        put(&self.tokens.to_le_bytes());
        put(&self.documents.to_le_bytes());
        bytes
    }

    /// Reads the start of a file of `size` bytes, and checks all that can be checked without the
    /// tokens.
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let size = bytes.len();
        let wrong = |what: &str, expected: String, got: String| Error::Input {
            origin: path.display().to_string(),
            what: what.to_owned(),
            expected,
            got,
        };
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            let start: Vec<u8> = bytes.iter().copied().take(MAGIC.len()).collect();
            return Err(wrong(
                "the first bytes",
                "those of a token file, as `lacuna pack` writes it".into(),
                format!("\"{}\"", start.escape_ascii()),
            ));
        }
        if size < FIELDS {
            return Err(wrong("size", format!("a header of {FIELDS} bytes"), format!("{size} bytes")));
        }
        let mut fields = Fields(&bytes[MAGIC.len()..FIELDS]);
        let version = fields.u32();
        if version != VERSION {
            let expected = format!("{VERSION}; pack the text again with this version of lacuna");
            return Err(wrong("format version", expected, version.to_string()));
        }
        let length = fields.u32() as usize;
        if !(FIELDS..=MAX_HEADER).contains(&length) || !length.is_multiple_of(4) || length > size {
            let expected = format!("a multiple of 4 from {FIELDS} to {MAX_HEADER}, within the file");
            return Err(wrong("header length", expected, length.to_string()));
        }
        let (width, vocab_size) = (fields.u32() as usize, fields.u32() as usize);
        if !(1..=MAX_VOCAB).contains(&vocab_size) {
            return Err(wrong("vocabulary size", format!("1 to {MAX_VOCAB}"), vocab_size.to_string()));
        }
        if width != width_for(vocab_size) {
            let expected = format!("{} for a vocabulary of {vocab_size}", width_for(vocab_size));
            return Err(wrong("bytes a token", expected, width.to_string()));
        }
        let tokenizer = fields.array();
        let eos = fields.u32();
        if eos as usize >= vocab_size {
            return Err(wrong("end-of-sequence id", format!("below {vocab_size}"), eos.to_string()));
        }
        let reserved = fields.u32();
        if reserved != 0 {
            return Err(wrong("reserved bytes", "zero".into(), format!("{reserved:#x}")));
        }
        let (tokens, documents) = (fields.u64(), fields.u64());
        let whole = u128::from(tokens) * width as u128 + length as u128;
        if whole != size as u128 {
            let expected = format!("{whole} bytes for {tokens} tokens");
            let hint = if whole > size as u128 { ": it is cut short; copy or pack it again" } else { "" };
            return Err(wrong("size", expected, format!("{size} bytes{hint}")));
        }
        if tokens == 0 || documents == 0 || documents > tokens {
            let expected = "at least one document, and no more documents than tokens".into();
            return Err(wrong("counts", expected, format!("{documents} documents, {tokens} tokens")));
        }
        Ok(Self { length, width, vocab_size, tokenizer, eos, tokens, documents })
    }
}

/// Numbers one after the other; zeros behind the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        if let Some((head, rest)) = self.0.split_at_checked(N) {
            field.copy_from_slice(head);
            self.0 = rest;
        }
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// The beginning of a hash, as people compare it.
fn short(hash: &[u8; 32]) -> String {
    hash.iter().take(6).map(|b| format!("{b:02x}")).collect()
}
