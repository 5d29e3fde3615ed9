//! From texts to what is given and what is filled in.

use clap::ValueEnum;

use super::args::TooLong;
use crate::cli::journal::fingerprint;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, Tokenizer};

/// How a prompt stands in the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    // [bos] prompt [sep] answer [eos], as lacuna sft trains.
    Sft,
    // The text as it is, behind what the tokenizer puts first.
    Plain,
}

/// Turns the texts of one model's items into tokens.
pub struct Prompts<'a> {
    pub files: &'a ModelFiles,
    tokenizer: &'a Tokenizer,
}

impl<'a> Prompts<'a> {
    /// # Errors
    /// [`Error::Tokenizer`] for a model without a tokenizer.
    pub fn new(files: &'a ModelFiles) -> Result<Self> {
        let tokenizer = files.tokenizer.as_ref().ok_or_else(|| {
            Error::Tokenizer(format!(
                "{} has no tokenizer.json, and items are text; put the file there",
                files.name
            ))
        })?;
        Ok(Self { files, tokenizer })
    }

    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids)
    }

    /// Bytes of the text that tokens are of, also where a character is spread over several sequences.
    pub fn bytes(&self, ids: &[u32]) -> usize {
        ids.iter().map(|&id| self.tokenizer.piece_bytes(id).len()).sum()
    }

    /// The form that suits the model: that of fine-tuning where it has a token between prompt and answer.
    pub fn form(&self, asked: Option<Form>) -> Form {
        asked.unwrap_or(if self.files.special.sep.is_some() { Form::Sft } else { Form::Plain })
    }

    /// What stands before a text that may not be empty: the tokenizer's beginning, or a token for a row to predict the first
    /// one from.
    pub fn opening(&self, first_is_free: bool) -> Option<u32> {
        let special = &self.files.special;
        let token = special.bos.as_ref().or(special.eos.as_ref()).map(|s| s.id);
        token.filter(|_| self.files.add_bos || first_is_free)
    }

    /// The given tokens of a prompt.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn given(&self, text: &str, form: Form) -> Result<Vec<u32>> {
        let special = &self.files.special;
        let mut ids: Vec<u32> = match form {
            Form::Sft => special.bos.as_ref().map(|s| s.id).into_iter().collect(),
            Form::Plain => self.opening(text.is_empty()).into_iter().collect(),
        };
        ids.extend(self.encode(text)?);
        if form == Form::Sft {
            ids.extend(special.sep.as_ref().map(|s| s.id));
        }
        Ok(ids)
    }

    /// Tokens of the context.
    pub fn context(&self) -> usize {
        self.files.config.max_positions
    }

    /// `given` where `more` tokens beside it fit in the context, or what `rule` makes of it; `None` where the item is left out.
    ///
    /// # Errors
    /// [`Error::Request`] naming the item.
    pub fn fit(&self, id: &str, given: Vec<u32>, more: usize, rule: TooLong) -> Result<Option<Vec<u32>>> {
        let (context, needed) = (self.context(), given.len() + more);
        if needed <= context {
            return Ok(Some(given));
        }
        let over = needed - context;
        match rule {
            TooLong::Skip => Ok(None),
            // One token stays, to predict from.
            TooLong::Truncate if over < given.len() => Ok(given.get(over..).map(<[u32]>::to_vec)),
            _ => Err(Error::request(format!(
                "item {id}: {} given tokens and {more} to be filled in or scored make {needed}, the context of {} holds \
                 {context}; leave it out with --too-long skip{}",
                given.len(),
                self.files.name,
                if over < given.len() { ", or cut what is given with --too-long truncate" } else { "" }
            ))),
        }
    }
}

/// Tells items apart by their tokens, for journals.
pub fn fingerprint_of(ids: impl Iterator<Item = u32>) -> u64 {
    let bytes: Vec<u8> = ids.flat_map(u32::to_le_bytes).collect();
    fingerprint(&[&bytes])
}

/// Says how many items were left out.
pub fn left_out(skipped: usize, quiet: bool) {
    if skipped > 0 && !quiet {
        crate::cli::terminal::note(&format!("{skipped} items are longer than the context and were left out"));
    }
}
