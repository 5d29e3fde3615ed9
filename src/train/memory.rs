//! How much memory a training takes, and what would fit.

use super::learner::{Recipe, Shape};
use crate::backend::{Backward, MomentFormat};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::TrainSize;

/// Bytes of a training beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainMemory {
    pub gradients: u128,
    /// With master copies.
    pub moments: u128,
    pub activations: u128,
    pub logits: u128,
}

impl TrainMemory {
    /// What a learner needs for parameters of `numbers` numbers in all, of which `masters` have a master copy.
    pub fn new<B: Backward>(
        backend: &B,
        config: &ModelConfig,
        size: TrainSize,
        [numbers, masters]: [usize; 2],
        moments: MomentFormat,
    ) -> Self {
        let [activations, logits] = size.bytes(backend, config);
        Self {
            gradients: numbers as u128 * backend.gradient_bytes() as u128,
            moments: 2 * moments.bytes(numbers) as u128 + 4 * masters as u128,
            activations,
            logits,
        }
    }

    /// All together, and a fiftieth for what an allocator loses.
    pub fn total(&self) -> u128 {
        let all = self.gradients + self.moments + self.activations + self.logits;
        all + all.div_ceil(50)
    }
}

impl std::fmt::Display for TrainMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u128| bytes.div_ceil(1 << 20);
        write!(
            f,
            "gradients {} MiB, moments and master copies {} MiB, activations {} MiB, logits {} MiB",
            mib(self.gradients),
            mib(self.moments),
            mib(self.activations),
            mib(self.logits)
        )
    }
}

/// A training that is to fit into memory.
pub(super) struct Fit<'a, B: Backward> {
    pub(super) backend: &'a B,
    pub(super) config: &'a ModelConfig,
    pub(super) recipe: &'a Recipe,
    pub(super) shape: &'a Shape,
    pub(super) rank: usize,
    /// Numbers of all parameters, and of those with a master copy.
    pub(super) numbers: [usize; 2],
}

impl<B: Backward> Fit<'_, B> {
    fn memory(&self, batch: usize, checkpoint: bool) -> TrainMemory {
        let length = self.shape.length;
        let tokens = batch.saturating_mul(length);
        let size = TrainSize { tokens, rows: tokens, length, checkpoint, rank: self.rank };
        TrainMemory::new(self.backend, self.config, size, self.numbers, self.recipe.moments)
    }

    /// The largest batch that `room` bytes have room for.
    fn largest(&self, room: u128, checkpoint: bool) -> usize {
        let (mut fits, mut too_large) = (0, self.recipe.batch + 1);
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            if self.memory(middle, checkpoint).total() <= room {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        fits
    }

    /// What it takes, having looked whether it fits into what the machine has left, where that is known.
    ///
    /// # Errors
    /// [`Error::Memory`] with the plan and what would fit.
    pub(super) fn check(&self) -> Result<TrainMemory> {
        let memory = self.memory(self.recipe.batch, self.shape.checkpoint);
        match self.backend.free_memory() {
            Some(free) if memory.total() > u128::from(free) => Err(self.refusal(Some(free))),
            _ => Ok(memory),
        }
    }

    /// An error of an allocation, with the plan and what would fit in its place.
    pub(super) fn explain(&self, error: Error) -> Error {
        match error {
            // Not by the plan's numbers: those would fit.
            Error::Memory { .. } => self.refusal(None),
            other => other,
        }
    }

    fn refusal(&self, free: Option<u64>) -> Error {
        let (batch, checkpoint) = (self.recipe.batch, self.shape.checkpoint);
        let plan = self.memory(batch, checkpoint);
        let what = format!("training on {batch} x {} tokens ({plan})", self.shape.length);
        let smaller = "lower --batch (with a larger --accumulate a step stays as large) or --length, give --recompute or \
                       --moments bf16, or train adapters (--lora-rank)";
        let (limit, hint) = match free {
            None => ("more than there is".to_owned(), smaller.to_owned()),
            Some(free) => {
                let room = u128::from(free);
                let (mut fits, mut most) = (Vec::new(), 0);
                for recompute in [false, true] {
                    let largest = self.largest(room, recompute || checkpoint);
                    if largest > 0 && (recompute || !checkpoint) {
                        let with = if recompute && !checkpoint { " with --recompute" } else { "" };
                        fits.push(format!("--batch {largest}{with}"));
                        most = largest;
                    }
                }
                let hint = if fits.is_empty() {
                    format!("no batch of this length fits; {smaller}")
                } else {
                    let parts = batch.div_ceil(most.max(1));
                    let large = if parts > 1 {
                        format!("; --accumulate {parts} then keeps a step as large")
                    } else {
                        String::new()
                    };
                    format!("{} would fit{large}", fits.join(", or "))
                };
                (format!("and {free} bytes are free beside the weights"), hint)
            }
        };
        Error::Memory { what, needed: plan.total(), limit, hint }
    }
}
