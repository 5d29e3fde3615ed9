//! Text to token ids and back, over the `tokenizers` crate.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokenizers::{AddedToken, Model as _, decoders, models, pre_tokenizers};

use super::json::Object;
use super::read_limited;
use crate::error::{Error, Result};

/// The largest tokenizer file that is read, in bytes.
const MAX_FILE: u64 = 512 << 20;

/// How the strings of a vocabulary stand for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Every byte is one of 256 printable characters (GPT-2).
    Bytes,
    /// A mark stands for a space, and `<0x0A>` for a byte (SentencePiece).
    Marked(char),
    /// Something else: asked of the decoder.
    Other,
}

/// The tokenizer of a model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    sha256: [u8; 32],
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Tokenizer`] naming it when it is
    /// malformed.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_FILE)?;
        Self::from_bytes(&bytes).map_err(|e| match e {
            Error::Tokenizer(what) => Error::Tokenizer(format!("{}: {what}", path.display())),
            other => other,
        })
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let malformed = |e: &dyn std::fmt::Display| {
            Error::Tokenizer(format!("expected the JSON of a tokenizer, got: {e}"))
        };
        // The crate's reader takes some things for granted, and panics where they are not so: that
        // the text is JSON is looked at first, the rest (a number beyond f64) is caught.
        let text = std::str::from_utf8(bytes).map_err(|e| malformed(&e))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| malformed(&e))?;
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text))
            .map_err(|_| malformed(&"a value that its reader gives up on"))?
            .map_err(|e| malformed(&e))?;
        Self::new(inner, Sha256::digest(bytes).into())
    }

    /// Reads the two files of GPT-2's original tokenizer: `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be read, [`Error::Tokenizer`] naming both when one is malformed.
    pub fn from_gpt2_files(vocab: &Path, merges: &Path) -> Result<Self> {
        let text = |p: &Path| {
            p.to_str()
                .map(str::to_owned)
                .ok_or_else(|| Error::Tokenizer(format!("{}: not UTF-8", p.display())))
        };
        let mut hash = Sha256::new();
        for path in [vocab, merges] {
            hash.update(read_limited(path, MAX_FILE)?);
        }
        let model = models::bpe::BPE::from_file(&text(vocab)?, &text(merges)?)
            .build()
            .map_err(|e| Error::Tokenizer(format!("{} with {}: {e}", vocab.display(), merges.display())))?;
        let end = "<|endoftext|>";
        let has_end = model.token_to_id(end).is_some();
        let byte_level = || pre_tokenizers::byte_level::ByteLevel::new(false, true, true);
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(byte_level())).with_decoder(Some(byte_level()));
        if has_end {
            inner.add_special_tokens(&[AddedToken::from(end, true)]);
        }
        Self::new(inner, hash.finalize().into())
    }

    fn new(mut inner: tokenizers::Tokenizer, sha256: [u8; 32]) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let spelling = spelling(&inner);
        Ok(Self { inner, spelling, sha256 })
    }

    /// SHA-256 of the bytes of tokenizer.json, or of GPT-2's `vocab.json` and `merges.txt` one after
    /// the other: tells whether ids were made by this tokenizer.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Adds the tokens that `added_tokens_decoder` of a tokenizer_config.json lists and this
    /// tokenizer lacks, where the next free id is the one listed.
    pub(super) fn add_listed(&mut self, config: &Object) -> Result<()> {
        let Some(listed) = config.object("added_tokens_decoder")? else { return Ok(()) };
        let mut tokens: Vec<(u32, &str, bool)> = listed
            .iter()
            .filter_map(|(id, v)| {
                let special = v.get("special").and_then(Value::as_bool).unwrap_or(false);
                Some((id.parse().ok()?, v.get("content")?.as_str()?, special))
            })
            .collect();
        tokens.sort_unstable_by_key(|t| t.0);
        for (id, content, special) in tokens {
            let known = self.token_id(content).is_some_and(|known| known == id);
            if known || id as usize == self.vocab_size() {
                let token = AddedToken::from(content, special).normalized(false);
                if special {
                    self.inner.add_special_tokens(&[token])
                } else {
                    self.inner.add_tokens(&[token])
                };
            }
        }
        Ok(())
    }

    /// The ids of a text. No special tokens are added around it; a special token that the text
    /// spells out (`<mask>`) becomes its id.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the text cannot be expressed.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::Tokenizer(format!("cannot encode the text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `text` in parts of about `size` bytes whose ids, joined, are the ids of the whole: long texts
    /// are encoded in parallel so, and with bounded memory. Where this tokenizer may join what lies
    /// on both sides of any cut, one part.
    ///
    /// GPT-2's pattern never joins a line end with a word after it, nor with white space before it,
    /// so a text can be cut before a line end that a word follows.
    pub fn parts<'a>(&self, text: &'a str, size: usize) -> Vec<&'a str> {
        let mut parts = Vec::new();
        let mut rest = text;
        if self.cuts_at_lines() {
            while rest.len() > size.max(1) {
                let Some(at) = cut(rest, size.max(1)) else { break };
                let (part, behind) = rest.split_at(at);
                parts.push(part);
                rest = behind;
            }
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
        parts
    }

    /// Whether [`parts`](Self::parts) may cut: GPT-2's pattern, no normalizer, and no added token
    /// that looks at what surrounds it.
    fn cuts_at_lines(&self) -> bool {
        use pre_tokenizers::PreTokenizerWrapper as P;
        let pattern = matches!(self.inner.get_pre_tokenizer(), Some(P::ByteLevel(b)) if b.use_regex && !b.add_prefix_space);
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let plain =
            added.values().all(|t| !t.lstrip && !t.rstrip && !t.single_word && !t.content.contains('\n'));
        pattern && plain && self.inner.get_normalizer().is_none()
    }

    /// The text of ids. Special tokens and ids that the tokenizer does not know are skipped.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::Tokenizer(format!("cannot decode the ids: {e}")))
    }

    /// What one token adds to a text, for display: spaces and newlines as themselves, U+FFFD for
    /// bytes that are part of a character only, special tokens as they are written (`<mask>`).
    pub fn piece(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.piece_bytes(id)).into_owned()
    }

    /// The bytes that one token adds to a text. The pieces of neighbouring tokens joined are the
    /// text, also where a character is spread over several.
    pub fn piece_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return "\u{fffd}".as_bytes().to_vec() };
        if self.inner.get_added_vocabulary().simple_id_to_token(id).is_some() {
            return token.into_bytes();
        }
        match self.spelling {
            Spelling::Bytes => {
                token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.into_bytes())
            }
            Spelling::Marked(mark) => match raw_byte(&token) {
                Some(byte) => vec![byte],
                None => token.replace(mark, " ").into_bytes(),
            },
            Spelling::Other => self.inner.decode(&[id], false).unwrap_or(token).into_bytes(),
        }
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids in use: the subwords, and behind them the added tokens.
    pub fn vocab_size(&self) -> usize {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().keys().max();
        let base = self.inner.get_vocab_size(false);
        added.map_or(base, |&id| base.max(id as usize + 1))
    }

    /// Whether the id is a token marked as special.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Whether the id is one of the subwords that the tokenizer was trained to.
    pub(super) fn in_base_vocabulary(&self, id: u32) -> bool {
        self.inner.get_model().id_to_token(id).is_some()
    }
}

/// The first place from byte `from` (at least 1) on where a line end stands before a word.
fn cut(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (from..bytes.len()).find(|&at| {
        bytes.get(at) == Some(&b'\n') && bytes.get(at + 1).is_some_and(|next| next.is_ascii_graphic())
    })
}

fn spelling(inner: &tokenizers::Tokenizer) -> Spelling {
    use decoders::DecoderWrapper as D;
    use pre_tokenizers::PreTokenizerWrapper as P;
    fn of_decoder(decoder: &D) -> Option<Spelling> {
        match decoder {
            D::ByteLevel(_) => Some(Spelling::Bytes),
            D::Metaspace(m) => Some(Spelling::Marked(m.get_replacement())),
            D::ByteFallback(_) => Some(Spelling::Marked('\u{2581}')),
            D::Sequence(s) => s.get_decoders().iter().find_map(of_decoder),
            _ => None,
        }
    }
    match (inner.get_decoder(), inner.get_pre_tokenizer()) {
        (Some(decoder), _) => of_decoder(decoder).unwrap_or(Spelling::Other),
        (None, Some(P::ByteLevel(_))) => Spelling::Bytes,
        (None, Some(P::Metaspace(m))) => Spelling::Marked(m.get_replacement()),
        (None, _) => Spelling::Other,
    }
}

/// The byte behind a character of GPT-2's byte-level alphabet: printable Latin-1 characters are
/// themselves, all other bytes follow from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    const fn printable(b: u8) -> bool {
        matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
    }
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(b) => printable(b).then_some(b),
        Err(_) => (0..=255u8).filter(|b| !printable(*b)).nth(usize::try_from(code.checked_sub(0x100)?).ok()?),
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn raw_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}
