//! Windows of token files, for pretraining and adaptation.

use std::path::PathBuf;

use super::data::{Cursor, Example, Examples};
use super::order::{Permutation, start, turn};
use crate::error::{Error, Result};
use crate::io::TokenFile;
use crate::rng::Rng;

/// Most files.
const MAX_SOURCES: usize = 1 << 20;

/// Windows of `length` tokens of several token files, mixed by weight.
///
/// A file of n tokens has n / length windows (rounded down), and an epoch of it takes each once. The
/// file is read as a ring: every epoch the windows are laid out from another start, and come in
/// another order, both a function of (seed, source, epoch). So the borders of windows move, and
/// the tokens that do not fill a window are others each time. A window that runs over the end of
/// the file goes on at its beginning, where a document begins.
#[derive(Clone, Debug)]
pub struct Packed {
    sources: Vec<Source>,
    /// Weights over their sum.
    shares: Vec<f64>,
    length: usize,
    rng: Rng,
}

#[derive(Clone, Debug)]
struct Source {
    file: TokenFile,
    windows: u64,
}

impl Packed {
    /// Opens token files, each with a weight: the proportion of examples that come from it. `length`
    /// is the number of tokens of an example.
    ///
    /// # Errors
    /// Those of [`TokenFile::open`]; [`Error::Request`] for no file, a weight that is not a positive
    /// number, a length of 0, a file shorter than a window, or files of different tokenizers.
    pub fn open(sources: &[(PathBuf, f64)], length: usize, seed: u64) -> Result<Self> {
        if sources.is_empty() || sources.len() > MAX_SOURCES {
            return Err(Error::request(format_args!(
                "expected 1 to {MAX_SOURCES} token files to train on, got {}",
                sources.len()
            )));
        }
        if length == 0 {
            return Err(Error::request("the length of a training sequence is 0: expected 1 or more"));
        }
        let mut opened: Vec<Source> = Vec::with_capacity(sources.len());
        for (path, weight) in sources {
            if !(weight.is_finite() && *weight > 0.0) {
                return Err(Error::request(format_args!(
                    "{}: weight {weight}: expected a positive number",
                    path.display()
                )));
            }
            let file = TokenFile::open(path)?;
            if file.len() < length {
                return Err(Error::request(format_args!(
                    "{} has {} tokens, a training sequence {length}: lower --length to at most {}, or pack more \
                     text",
                    path.display(),
                    file.len(),
                    file.len()
                )));
            }
            if let Some(first) = opened.first() {
                file.check_tokenizer(first.file.tokenizer_hash(), &first.file.path().display().to_string())?;
            }
            let windows = (file.len() / length) as u64;
            opened.push(Source { file, windows });
        }
        let sum: f64 = sources.iter().map(|(_, weight)| weight).sum();
        if !sum.is_finite() {
            return Err(Error::request("the weights of the token files add up to infinity; scale them down"));
        }
        let shares = sources.iter().map(|(_, weight)| weight / sum).collect();
        Ok(Self { sources: opened, shares, length, rng: Rng::new(seed) })
    }

    /// Checks the files against a model: `vocab_size` rows of its embedding, and the SHA-256 of its
    /// tokenizer ([`Tokenizer::sha256`](crate::io::Tokenizer::sha256)) if it has one.
    ///
    /// # Errors
    /// [`Error::Request`] naming the file, for an id that the model has no row for and for another
    /// tokenizer.
    pub fn check(&self, vocab_size: usize, tokenizer: Option<&[u8; 32]>) -> Result<()> {
        for Source { file, .. } in &self.sources {
            if let Some(sha256) = tokenizer {
                file.check_tokenizer(sha256, "the model's tokenizer")?;
            }
            if file.max_id() as usize >= vocab_size {
                return Err(Error::request(format_args!(
                    "{} holds token id {}, the model's vocabulary has {vocab_size}: pack the text with the model's \
                     tokenizer",
                    file.path().display(),
                    file.max_id()
                )));
            }
        }
        Ok(())
    }

    /// Tokens of an example.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &TokenFile> {
        self.sources.iter().map(|s| &s.file)
    }

    /// A fixed choice for validation, whatever the seed and the weights: `count` windows (all, if
    /// there are fewer) at even distances, in the order of the files.
    pub fn validation(&self, count: usize) -> Vec<Example> {
        let all = self.epoch();
        let count = (count as u64).min(all);
        let mut chosen = Vec::with_capacity(count as usize);
        for i in 0..count {
            let mut window = (u128::from(i) * u128::from(all) / u128::from(count)) as u64;
            for source in &self.sources {
                if window < source.windows {
                    let at = window as usize * self.length;
                    let ids = source.file.slice(at..at + self.length);
                    chosen.push(Example::of_text(ids, source.file.eos()));
                    break;
                }
                window -= source.windows;
            }
        }
        chosen
    }
}

impl Examples for Packed {
    fn next(&self, cursor: &mut Cursor) -> Result<Example> {
        cursor.check(self.sources.len())?;
        let turn = turn(&self.shares, &cursor.per_source);
        let (Some(source), Some(taken)) = (self.sources.get(turn), cursor.per_source.get_mut(turn)) else {
            return Err(Error::request("there are no token files to train on"));
        };
        let (epoch, index) = (*taken / source.windows, *taken % source.windows);
        let window = Permutation::new(self.rng, turn as u32, epoch, source.windows).at(index) as usize;
        let file = &source.file;
        let tokens = file.len();
        let begin = start(self.rng, turn as u32, epoch, tokens as u64) as usize;
        // Both are below the number of tokens: the sum cannot overflow.
        let at = (begin + window * self.length) % tokens;
        let mut ids = file.slice(at..at + self.length);
        ids.extend(file.iter(0..self.length - ids.len()));
        if let Some(id) = ids.iter().find(|&&id| id as usize >= file.vocab_size()) {
            return Err(Error::Input {
                origin: file.path().display().to_string(),
                what: "a token".into(),
                expected: format!("an id below {}: the file changed while it was read", file.vocab_size()),
                got: id.to_string(),
            });
        }
        *taken += 1;
        cursor.examples += 1;
        Ok(Example::of_text(ids, file.eos()))
    }

    fn start(&self) -> Cursor {
        Cursor::zero(self.sources.len())
    }

    fn tokens(&self) -> u64 {
        self.sources.iter().map(|s| s.file.len() as u64).sum()
    }

    fn epoch(&self) -> u64 {
        self.sources.iter().map(|s| s.windows).sum()
    }

    fn describe(&self) -> String {
        let documents: u64 = self.files().map(TokenFile::documents).sum();
        let files = match self.sources.len() {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        format!(
            "{} tokens, {documents} documents in {files}: {} windows of {}",
            self.tokens(),
            self.epoch(),
            self.length
        )
    }
}
