//! The KV cache of autoregressive decoding.

use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Keys and values of the tokens decoded so far: for every layer a buffer of k | v rows, a slot of
/// `capacity` rows a sequence.
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<B::Buffer>,
    slots: usize,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// A cache for `slots` sequences of at most `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit.
    pub fn new(backend: &B, config: &ModelConfig, slots: usize, capacity: usize) -> Result<Self> {
        let width = 2 * config.kv_width();
        let len = slots.checked_mul(capacity).and_then(|n| n.checked_mul(width));
        let len = len.ok_or_else(|| Error::Memory {
            what: "the KV cache".into(),
            needed: slots as u128 * capacity as u128 * width as u128 * size_of::<B::Elem>() as u128,
            limit: "more than can be addressed".into(),
            hint: "decode fewer or shorter sequences at once".into(),
        })?;
        let layers = (0..config.layers).map(|_| backend.alloc(len)).collect::<Result<_>>()?;
        Ok(Self { layers, slots, capacity })
    }

    /// Sequences.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Positions a sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
