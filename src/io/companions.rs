//! The small files beside a model's weights, for whoever writes a model made of another.

use std::path::PathBuf;

use super::files::ModelFiles;
use super::{bundled, read_limited};
use crate::error::{Error, Result};

/// Files that a model of the same vocabulary needs too.
const COPIED: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
];

/// The largest such file, in bytes.
const MOST: u64 = 512 << 20;

impl ModelFiles {
    /// The files in the program, where there is no folder.
    fn of_program(&self) -> &'static bundled::Bundled {
        bundled::named(&self.name).unwrap_or(&bundled::BARD)
    }

    /// `config.json`, as it is written.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for what is no JSON object.
    pub fn raw_config(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let (bytes, path) = match &self.path {
            Some(folder) => {
                let path = folder.join("config.json");
                (read_limited(&path, MOST)?, path)
            }
            None => (
                self.of_program().config.to_vec(),
                PathBuf::from(format!("(bundled) {}/config.json", self.name)),
            ),
        };
        serde_json::from_slice(&bytes).map_err(|e| Error::Config {
            path,
            field: "the file".into(),
            expected: "a JSON object".into(),
            got: e.to_string(),
        })
    }

    /// The files of tokenizer and generation that are there, by name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let Some(folder) = &self.path else {
            return Ok(vec![("tokenizer.json", self.of_program().tokenizer.to_vec())]);
        };
        let there = COPIED.into_iter().filter(|name| folder.join(name).exists());
        there.map(|name| Ok((name, read_limited(&folder.join(name), MOST)?))).collect()
    }
}
