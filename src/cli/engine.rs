//! A loaded model, whatever machine it is on: what subcommands ask of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::HumanBytes;

use super::terminal::note;
use crate::backend::{Backend, Denoise, Forward, Mask};
use crate::config::ModelConfig;
use crate::element::Dtype;
use crate::error::Result;
use crate::model::{Arena, ArenaSize, Batch, Model};
use crate::sample::{
    Generation, Limits, MemoryPlan, Observer, PlainInput, PlainOptions, PlainOutput, Request, Sampler,
    plain_loop, planned,
};

/// A model on a machine. Which one it is was decided in `device.rs`; calls are whole requests, so that going through a table
/// costs nothing.
pub trait Engine: Send + Sync {
    fn config(&self) -> &ModelConfig;

    /// The machine, for people, and what activations are computed in.
    fn device(&self) -> &str;
    fn dtype(&self) -> Dtype;

    /// A sampler with buffers for `limits`.
    ///
    /// # Errors
    /// Those of [`Sampler::new`].
    fn sampler(&self, limits: Limits) -> Result<Box<dyn Generate>>;

    /// Calls `each` with every row's number and logits, counted through all sequences; the seconds that each of `repeat`
    /// more passes took.
    ///
    /// # Errors
    /// Those of [`Model::forward`].
    fn logits(
        &self,
        sequences: &[&[u32]],
        mask: Mask<'_>,
        repeat: u32,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<f64>>;

    /// The paper's loop with given uniform numbers.
    ///
    /// # Errors
    /// Those of [`plain_loop`].
    fn plain_loop(&self, input: &PlainInput, options: &PlainOptions) -> Result<PlainOutput>;

    /// The same by a commit plan.
    ///
    /// # Errors
    /// Those of [`planned`].
    fn planned(&self, input: &PlainInput, options: &PlainOptions) -> Result<Vec<u32>>;
}

/// A [`Sampler`].
pub trait Generate {
    /// # Errors
    /// Those of [`Sampler::generate_with`].
    fn generate_with(
        &mut self,
        requests: &[Request],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<Generation>>>;
}

impl<B: Forward + Denoise> Generate for Sampler<B> {
    fn generate_with(
        &mut self,
        requests: &[Request],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<Generation>>> {
        Sampler::generate_with(self, requests, observer)
    }
}

/// A model on one kind of machine.
pub struct Loaded<B: Backend> {
    pub model: Arc<Model<B>>,
    pub device: String,
    pub dtype: Dtype,
    /// Whether to say what samplers take; set back once it was said.
    pub verbose: AtomicBool,
}

impl<B: Forward + Denoise> Loaded<B> {
    /// Says what generating within `limits` takes, once.
    fn tell(&self, limits: Limits) {
        if !self.verbose.swap(false, Ordering::Relaxed) {
            return;
        }
        let plan = MemoryPlan::new(&self.model, limits);
        let bytes = |n: u128| HumanBytes(u64::try_from(n).unwrap_or(u64::MAX));
        let MemoryPlan { weights, mapped, activations, logits, canvases } = plan;
        note(&format!(
            "memory for {} sequences at a time, {} tokens in all: weights {} (and {} in the file map), activations {}, \
             logits {}, canvases {}; together {}",
            limits.sequences,
            limits.tokens,
            bytes(weights),
            bytes(mapped),
            bytes(activations),
            bytes(logits),
            bytes(canvases),
            bytes(plan.total())
        ));
        if let Some(free) = self.model.backend().free_memory() {
            note(&format!("{} are free beside the weights", HumanBytes(free)));
        }
    }
}

impl<B: Forward + Denoise + Backend<Elem = f32>> Engine for Loaded<B> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> &str {
        &self.device
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn sampler(&self, limits: Limits) -> Result<Box<dyn Generate>> {
        self.tell(limits);
        Ok(Box::new(Sampler::new(Arc::clone(&self.model), limits)?))
    }

    fn logits(
        &self,
        sequences: &[&[u32]],
        mask: Mask<'_>,
        repeat: u32,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<f64>> {
        let (model, vocab) = (&self.model, self.model.config().vocab_size);
        let tokens = sequences.iter().map(|s| s.len()).sum();
        let longest = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let size = ArenaSize { tokens, rows: tokens };
        let mut arena = Arena::new(model.backend(), model.config(), size, longest)?;
        let mut batch = Batch::with_capacity(size, sequences.len());
        for ids in sequences {
            batch.push(ids, 0..ids.len() as u32);
        }
        let mut row = vec![0.0; vocab];
        model.forward(&batch, &mut arena, mask)?;
        model.head(tokens, &mut arena, |range, logits| {
            for (i, number) in range.enumerate() {
                model.backend().read(logits, i * vocab, &mut row)?;
                each(number, &row);
            }
            Ok(())
        })?;
        let mut seconds = Vec::new();
        for _ in 0..repeat {
            let start = Instant::now();
            model.forward(&batch, &mut arena, mask)?;
            model.head(tokens, &mut arena, |_, _| Ok(()))?;
            // What was asked for last is done once a number of it can be read.
            if tokens > 0 {
                model.head(1, &mut arena, |_, logits| model.backend().read(logits, 0, &mut row[..1]))?;
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }

    fn plain_loop(&self, input: &PlainInput, options: &PlainOptions) -> Result<PlainOutput> {
        self.model.backend().run(|| plain_loop(&self.model, input, options))
    }

    fn planned(&self, input: &PlainInput, options: &PlainOptions) -> Result<Vec<u32>> {
        planned(&self.model, input, options)
    }
}
