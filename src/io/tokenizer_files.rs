//! A tokenizer and the special ids that the files beside it name, without a model's weights.

use std::path::Path;

use super::bundled;
use super::files::{ModelFiles, open_tokenizer};
use super::hf_config::MAX_VOCAB;
use super::json::Object;
use super::special::{Sources, SpecialIds};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What is needed to turn texts into ids: a tokenizer and special ids.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// The file or folder, or the name of the bundled model.
    pub name: String,
    pub tokenizer: Tokenizer,
    /// From the configuration files beside the tokenizer if there are any, else by the usual names.
    pub special: SpecialIds,
}

impl TokenizerFiles {
    /// Opens a `tokenizer.json`, or a folder with one (or with GPT-2's `vocab.json` and
    /// `merges.txt`). The folder's `config.json`, `generation_config.json`, `tokenizer_config.json`
    /// and `special_tokens_map.json` are read where they are there.
    ///
    /// # Errors
    /// [`Error::Io`] for what is not there, [`Error::Tokenizer`] or [`Error::Config`] naming the
    /// file that is malformed or missing.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = if meta.is_dir() { path } else { parent };
        let optional = |name: &str| Object::read_if_present(&dir.join(name));
        let tokenizer_config = optional("tokenizer_config.json")?;
        let mut notes = Vec::new();
        let tokenizer = if meta.is_dir() {
            open_tokenizer(dir, tokenizer_config.as_ref(), &mut notes)?.ok_or_else(|| {
                Error::Tokenizer(format!(
                    "{}: expected a folder with a tokenizer.json, got none",
                    dir.display()
                ))
            })?
        } else {
            Tokenizer::from_file(path)?
        };
        let config = match optional("config.json")? {
            Some(config) => config,
            None => Object::parse(b"{}", &dir.join("config.json"))?,
        };
        let rows = config.count(&["vocab_size"], MAX_VOCAB)?.unwrap_or_default();
        let sources = Sources {
            config: &config,
            generation: optional("generation_config.json")?.as_ref(),
            tokenizer_config: tokenizer_config.as_ref(),
            tokens_map: optional("special_tokens_map.json")?.as_ref(),
            release: None,
            tokenizer: Some(&tokenizer),
            vocab_size: rows.max(tokenizer.vocab_size()),
        }
        .resolve(&mut notes)?;
        Ok(Self { name: path.display().to_string(), special: sources, tokenizer })
    }

    /// Those of the bundled model.
    ///
    /// # Errors
    /// None in a program as it was built; those of [`ModelFiles::bundled`] otherwise.
    pub fn bundled() -> Result<Self> {
        let files = ModelFiles::bundled()?;
        let tokenizer = Tokenizer::from_bytes(bundled::BARD.tokenizer)?;
        Ok(Self { name: files.name, special: files.special, tokenizer })
    }
}
