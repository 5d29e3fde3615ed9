//! The KV cache of autoregressive decoding.

use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Keys and values of the tokens decoded so far: for every layer a buffer of k | v rows, one a
/// position. Sequences lie one behind the other, each with as many rows as it is long.
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<B::Buffer>,
    rows: usize,
}

impl<B: Backend> KvCache<B> {
    /// A cache for `rows` positions, all sequences together.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit.
    pub fn new(backend: &B, config: &ModelConfig, rows: usize) -> Result<Self> {
        let width = 2 * config.kv_width();
        let len = rows.checked_mul(width).filter(|_| u32::try_from(rows).is_ok());
        let len = len.ok_or_else(|| Error::Memory {
            what: "the KV cache".into(),
            needed: rows as u128 * width as u128 * backend.number_bytes()[0] as u128,
            limit: "more than can be addressed".into(),
            hint: "decode fewer or shorter sequences at once".into(),
        })?;
        let layers = (0..config.layers).map(|_| backend.alloc(len)).collect::<Result<_>>()?;
        Ok(Self { layers, rows })
    }

    /// Positions that there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
