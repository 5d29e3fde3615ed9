//! Files: checkpoints, configurations, tokenizers, hubs, texts and the token files made of them.
//!
//! Everything read here is treated as hostile: sizes are checked before they are used, and a file
//! that lies is an error that names the file and what is wrong in it.

mod bundled;
pub mod checkpoint;
mod companions;
mod files;
pub mod hf_config;
pub mod hub;
mod json;
mod output;
pub mod safetensors;
mod special;
mod texts;
mod tokenizer;
mod tokenizer_files;
mod tokens;
pub mod write_safetensors;

pub use checkpoint::Checkpoint;
pub use files::ModelFiles;
pub use output::{AtomicFile, is_device, is_same};
pub use special::{SpecialId, SpecialIds};
pub use texts::{Lines, Split, TextOptions, Texts};
pub use tokenizer::Tokenizer;
pub use tokenizer_files::TokenizerFiles;
pub use tokens::{TokenFile, TokenWriter};
pub use write_safetensors::{SafetensorsWriter, TensorFormat, TensorSpec};

use std::path::Path;

use crate::error::{Error, Result};

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > limit {
        let size =
            std::io::Error::other(format!("it is larger than {limit} bytes, the most read of such a file"));
        return Err(Error::io("read", path, size));
    }
    Ok(bytes)
}
