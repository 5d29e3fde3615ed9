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
        let needed = Self::bytes(config, rows, backend.number_bytes()[0]);
        if let Some(free) = backend.free_memory().filter(|&free| needed > u128::from(free)) {
            let most = u128::from(free) * rows as u128 / needed.max(1);
            return Err(Error::Memory {
                what: format!("the KV cache for {rows} tokens"),
                needed,
                limit: format!("and {free} are free"),
                hint: format!("{most} tokens at a time fit: lower --batch or --length"),
            });
        }
        let layers = (0..config.layers).map(|_| backend.alloc(len)).collect::<Result<_>>()?;
        Ok(Self { layers, rows })
    }

    /// Bytes of a cache for `rows` positions, with numbers of `number_bytes`.
    pub fn bytes(config: &ModelConfig, rows: usize, number_bytes: usize) -> u128 {
        config.layers as u128 * rows as u128 * (2 * config.kv_width() * number_bytes) as u128
    }

    /// Positions that there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
