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

    /// The text of tokens behind others: alone it may lack a space, as decoders leave out the one that a text begins with.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode_behind(&self, before: &[u32], ids: &[u32]) -> Result<String> {
        let (start, whole) = (self.decode(before)?, self.decode(&[before, ids].concat())?);
        if let Some(text) = whole.strip_prefix(start.as_str()) {
            return Ok(text.to_owned());
        }
        // With bytes of no character a decoder may give up whole ones beside them.
        let known = |id: &u32| !self.tokenizer.is_special(*id) && self.tokenizer.token(*id).is_some();
        let bytes: Vec<u8> =
            ids.iter().copied().filter(known).flat_map(|id| self.tokenizer.piece_bytes(id)).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
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
        let (context, needed) = (self.context(), given.len().saturating_add(more));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As LLaMA's is saved.
    fn marked() -> Tokenizer {
        let words = ["<unk>", "<s>", "<0x0A>", "<0xE2>", "\u{2581}", "a", "\u{2581}a"];
        let vocab: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect();
        let bos = json!({"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [bos], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": []}
        });
        Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_gap_keeps_the_spaces_that_it_begins_with() {
        let files = ModelFiles::bundled().unwrap();
        let tokenizer = marked();
        let prompts = Prompts { files: &files, tokenizer: &tokenizer };
        let before = [1, 6, 2];
        assert_eq!(prompts.decode(&before).unwrap(), "a\n");
        for (ids, text, alone) in [
            (&[4, 4, 6][..], "   a", "  a"),
            (&[1, 6, 1], " a", "a"),
            (&[5, 2], "a\n", "a\n"),
            (&[], "", ""),
            // Part of a character: the line end before it is none.
            (&[3, 5, 1], "\u{fffd}a", "\u{fffd}a"),
        ] {
            assert_eq!(prompts.decode_behind(&before, ids).unwrap(), text);
            assert_eq!(prompts.decode(ids).unwrap(), alone);
        }
        assert_eq!(prompts.decode_behind(&[], &[4, 6]).unwrap(), " a");
    }

    #[test]
    fn bytes_are_the_same_behind_others() {
        let files = ModelFiles::bundled().unwrap();
        let prompts = Prompts::new(&files).unwrap();
        let encode = |text: &str| prompts.encode(text).unwrap();
        let before = encode("To be,\n");
        let masks = encode("\u{1f3ad}");
        for ids in [&encode("    or not\n")[..], &masks[1..], &masks[..1], &[0, 1]] {
            assert_eq!(prompts.decode_behind(&before, ids).unwrap(), prompts.decode(ids).unwrap());
        }
    }
}
