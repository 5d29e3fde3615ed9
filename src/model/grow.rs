//! A vocabulary with one more token, for a mask of its own.

use super::names::layout;
use crate::element::{Dtype, StoredTensor};
use crate::error::Result;
use crate::io::{ModelFiles, SpecialId};

/// Adds a row to the embedding (and to an untied head), the mean of the others, and makes it the mask token: how
/// DiffuGPT-M got id 50257. Files without weights, of which only the shape is used, get a larger vocabulary.
///
/// # Errors
/// Those of [`layout`].
pub fn add_mask_token(files: &mut ModelFiles) -> Result<u32> {
    if !files.checkpoint.is_empty() {
        let places = layout(&files.config, &files.checkpoint)?;
        for parameter in ["embedding", "head"] {
            let Some(name) = places.tensor(parameter) else { continue };
            let grown = with_mean_row(files.checkpoint.require(name)?)?;
            let name = name.to_owned();
            files.checkpoint.replace(&name, grown);
        }
    }
    let id = files.config.vocab_size as u32;
    files.config.vocab_size += 1;
    files.special.mask = Some(SpecialId { id, source: "a new token".into() });
    files.mask_is_dedicated = true;
    Ok(id)
}

/// `[rows + 1, columns]`, the last row the mean of the others.
fn with_mean_row(tensor: &StoredTensor) -> Result<StoredTensor> {
    let (rows, columns) = match tensor.shape() {
        [rows, columns] => (*rows, *columns),
        _ => (0, 0),
    };
    let mut sums = vec![0.0f64; columns];
    for row in 0..rows {
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum += f64::from(tensor.get(row * columns + column));
        }
    }
    let mut bytes = tensor.bytes().to_vec();
    for sum in sums {
        let mean = (sum / rows.max(1) as f64) as f32;
        match tensor.dtype() {
            Dtype::F32 => bytes.extend(mean.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(mean).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(mean).to_le_bytes()),
        }
    }
    StoredTensor::new(tensor.dtype(), vec![rows + 1, columns], bytes.into())
}
