//! The special token ids of a model, each with the place it was read from.

use serde::Serialize;
use serde_json::Value;

use super::json::{Object, describe};
use super::tokenizer::Tokenizer;
use crate::config::{Family, ModelConfig};
use crate::error::Result;

/// A special token id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecialId {
    pub id: u32,
    /// Where it was read: `config.json mask_token_id`, `known release DiffuGPT-S`, ...
    pub source: String,
}

/// The special token ids of a model; what no file names is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpecialIds {
    /// The mask token of the diffusion.
    pub mask: Option<SpecialId>,
    /// Begins a text.
    pub bos: Option<SpecialId>,
    /// Ends a text.
    pub eos: Option<SpecialId>,
    /// Stands between prompt and answer in fine-tuned models.
    pub sep: Option<SpecialId>,
    /// Fills up a batch (never needed by this engine).
    pub pad: Option<SpecialId>,
}

/// A model published with the paper, whose files do not all name its ids. The ids are those of
/// the paper's own code (HKUNLP/DiffuLLaMA, `llamafactory/model/loader.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    DiffuGptS,
    DiffuGptM,
    DiffuLlama,
}

impl Release {
    /// Recognises a release by its exact sizes together with either the tensor names of the
    /// paper's wrapper or the model's own name.
    pub fn recognise(config: &ModelConfig, wrapper: bool, names: &[&str]) -> Option<Release> {
        let named = |part: &str| wrapper || names.iter().any(|n| n.to_ascii_lowercase().contains(part));
        match (config.family, config.width, config.layers, config.vocab_size) {
            (Family::Gpt2, 768, 12, 50257..=50264) if named("diffugpt") => Some(Release::DiffuGptS),
            (Family::Gpt2, 1024, 24, 50258..=50264) if named("diffugpt") => Some(Release::DiffuGptM),
            (Family::Llama, 4096, 32, 32000) if named("diffullama") => Some(Release::DiffuLlama),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Release::DiffuGptS => "DiffuGPT-S",
            Release::DiffuGptM => "DiffuGPT-M",
            Release::DiffuLlama => "DiffuLLaMA",
        }
    }

    fn id(self, kind: &str) -> Option<u32> {
        match (self, kind) {
            (Release::DiffuGptS, "mask") => Some(10541),
            (Release::DiffuGptM, "mask") => Some(50257),
            (Release::DiffuGptS | Release::DiffuGptM, "sep") => Some(50155),
            (Release::DiffuGptS | Release::DiffuGptM, "bos" | "eos") => Some(50256),
            (Release::DiffuLlama, "mask") => Some(811),
            (Release::DiffuLlama, "sep") => Some(4936),
            (Release::DiffuLlama, "pad") => Some(30399),
            (Release::DiffuLlama, "bos") => Some(1),
            (Release::DiffuLlama, "eos") => Some(2),
            _ => None,
        }
    }
}

/// Everything that may name a special id, most trusted first.
pub(super) struct Sources<'a> {
    pub config: &'a Object,
    pub generation: Option<&'a Object>,
    pub tokenizer_config: Option<&'a Object>,
    pub tokens_map: Option<&'a Object>,
    pub release: Option<Release>,
    pub tokenizer: Option<&'a Tokenizer>,
    pub vocab_size: usize,
}

/// Tokens that say by their name what they are.
const NAMED: [(&str, &[&str]); 5] = [
    ("mask", &["<mask>", "[MASK]", "<|mask|>", "<|mask_token|>", "<|mdm_mask|>", "<MASK>"]),
    ("bos", &["<s>", "<bos>", "<|begin_of_text|>"]),
    ("eos", &["</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"]),
    ("sep", &["[SEP]", "<sep>", "<|sep|>"]),
    ("pad", &["<pad>", "[PAD]", "<|pad|>"]),
];

impl Sources<'_> {
    /// Finds every special id. Oddities go to `notes`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the mask id lies outside the vocabulary, or a
    /// field holds something other than ids or tokens.
    pub fn resolve(&self, notes: &mut Vec<String>) -> Result<SpecialIds> {
        Ok(SpecialIds {
            mask: self.find("mask", notes)?,
            bos: self.find("bos", notes)?,
            eos: self.find("eos", notes)?,
            sep: self.find("sep", notes)?,
            pad: self.find("pad", notes)?,
        })
    }

    fn find(&self, kind: &str, notes: &mut Vec<String>) -> Result<Option<SpecialId>> {
        let field = format!("{kind}_token_id");
        for (file, object) in
            [("config.json", Some(self.config)), ("generation_config.json", self.generation)]
        {
            if let Some(object) = object
                && let Some(id) = self.id_field(object, file, &field, kind, notes)?
            {
                return Ok(Some(id));
            }
        }
        let field = format!("{kind}_token");
        let files =
            [("tokenizer_config.json", self.tokenizer_config), ("special_tokens_map.json", self.tokens_map)];
        for (file, object) in files {
            if let Some(object) = object
                && let Some(id) = self.token_field(object, file, &field, kind, notes)?
            {
                return Ok(Some(id));
            }
        }
        if let Some(release) = self.release
            && let Some(id) = release.id(kind)
        {
            return Ok(Some(SpecialId { id, source: format!("known release {}", release.name()) }));
        }
        Ok(self.by_name(kind))
    }

    /// An id, or a list of ids of which the first counts.
    fn id_field(
        &self,
        object: &Object,
        file: &str,
        field: &str,
        kind: &str,
        notes: &mut Vec<String>,
    ) -> Result<Option<SpecialId>> {
        let Some(value) = object.get(field) else { return Ok(None) };
        let first = match value {
            Value::Array(list) => match list.first() {
                None => return Ok(None),
                Some(first) => {
                    if list.len() > 1 {
                        notes.push(format!("{file} lists {} ids as {field}; the first is used", list.len()));
                    }
                    first
                }
            },
            one => one,
        };
        let Some(id) = first.as_i64() else {
            return Err(object.error(field, "a token id", describe(value)));
        };
        match u32::try_from(id) {
            Ok(id) if (id as usize) < self.vocab_size => {
                Ok(Some(SpecialId { id, source: format!("{file} {field}") }))
            }
            _ if kind == "mask" => Err(self.outside(object, field, id)),
            _ => {
                // -1 is a common way to write "none".
                if id >= 0 {
                    let rows = self.vocab_size;
                    notes.push(format!("{file} {field} {id} is outside the vocabulary of {rows}: not used"));
                }
                Ok(None)
            }
        }
    }

    /// A token as a string or as an object with its `content`.
    fn token_field(
        &self,
        object: &Object,
        file: &str,
        field: &str,
        kind: &str,
        notes: &mut Vec<String>,
    ) -> Result<Option<SpecialId>> {
        let token = match object.get(field) {
            None => return Ok(None),
            Some(Value::String(token)) => token.clone(),
            Some(Value::Object(_)) => match object.object(field)?.as_ref().map(|o| o.string("content")) {
                Some(Ok(Some(token))) => token.to_owned(),
                Some(Err(e)) => return Err(e),
                _ => return Err(object.error(field, "a token with its content", "no content")),
            },
            Some(other) => return Err(object.error(field, "a token", describe(other))),
        };
        let id = match self.tokenizer.and_then(|t| t.token_id(&token)) {
            Some(id) => Some(id),
            None => self.added_token(&token)?,
        };
        match id {
            Some(id) if (id as usize) < self.vocab_size => {
                Ok(Some(SpecialId { id, source: format!("{file} {field} {token:?}") }))
            }
            Some(id) if kind == "mask" => Err(self.outside(object, field, i64::from(id))),
            Some(id) => {
                let rows = self.vocab_size;
                notes.push(format!(
                    "{file} {field} {token:?} is id {id}, outside the vocabulary of {rows}: not used"
                ));
                Ok(None)
            }
            None => {
                notes.push(format!("{file} {field} {token:?} is not a token of the tokenizer: not used"));
                Ok(None)
            }
        }
    }

    /// The id that `added_tokens_decoder` of tokenizer_config.json gives a token.
    fn added_token(&self, token: &str) -> Result<Option<u32>> {
        let Some(config) = self.tokenizer_config else { return Ok(None) };
        let Some(added) = config.object("added_tokens_decoder")? else { return Ok(None) };
        let has = |v: &Value| v.get("content").and_then(Value::as_str) == Some(token);
        Ok(added.iter().find(|(_, v)| has(v)).and_then(|(id, _)| id.parse().ok()))
    }

    /// A special token of the tokenizer whose name says what it is.
    fn by_name(&self, kind: &str) -> Option<SpecialId> {
        let tokenizer = self.tokenizer?;
        let (_, names) = NAMED.iter().find(|(k, _)| *k == kind)?;
        names.iter().find_map(|name| {
            let id = tokenizer.token_id(name).filter(|&id| tokenizer.is_special(id))?;
            let inside = (id as usize) < self.vocab_size;
            inside.then(|| SpecialId { id, source: format!("tokenizer special token {name}") })
        })
    }

    fn outside(&self, object: &Object, field: &str, id: i64) -> crate::Error {
        let expected = format!("a mask id inside the vocabulary, 0 to {}", self.vocab_size.saturating_sub(1));
        object.error(field, expected, id.to_string())
    }

    /// Whether the mask id is a token of its own rather than an ordinary word that the model was
    /// taught to read as a mask (10541 of DiffuGPT-S, 811 of DiffuLLaMA).
    pub fn mask_is_dedicated(&self, mask: Option<&SpecialId>) -> bool {
        let Some(mask) = mask else { return false };
        match self.tokenizer {
            Some(tokenizer) => {
                !tokenizer.in_base_vocabulary(mask.id)
                    || tokenizer.token(mask.id).is_some_and(|t| {
                        (t.starts_with('<') && t.ends_with('>') || t.starts_with('[') && t.ends_with(']'))
                            && t.chars().count() > 2
                    })
            }
            None => match self.release {
                Some(Release::DiffuGptS) => mask.id != 10541,
                Some(Release::DiffuLlama) => mask.id != 811,
                _ => true,
            },
        }
    }
}
