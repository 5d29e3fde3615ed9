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
use crate::eval::score::{Likelihood, Scorer};
use crate::model::{Arena, ArenaSize, Batch, KvCache, MemoryReport, Model};
use crate::profile::{self, Ceilings};
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

    /// What multiplies matrices: `own`, or a library as in `cuBLASLt 13.1.0`.
    fn gemm(&self) -> &str;

    /// Rows of a forward pass up to which more sequences are taken in, as long as there are any.
    fn worthwhile_rows(&self) -> usize;

    /// Bytes of one activation.
    fn number_bytes(&self) -> usize;

    /// Where the weights live.
    fn memory(&self) -> MemoryReport;

    /// What is left of the machine's memory, where it is known: of a card.
    fn free_memory(&self) -> Option<u64>;

    /// What the machine can do at most.
    ///
    /// # Errors
    /// Those of [`profile::ceilings`].
    fn ceilings(&self) -> Result<Ceilings>;

    /// Bytes beside the weights of a sampler within `limits`, and of its cache where it decodes from left to right.
    fn needs(&self, limits: Limits, left_to_right: bool) -> u128;

    /// Whether there is room for a sampler within `limits`, and for its cache where it decodes from left to right.
    fn fits(&self, limits: Limits, left_to_right: bool) -> bool;

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

    /// Scores how well the model predicts tokens.
    fn likelihood(&self) -> Box<dyn Likelihood + '_>;

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

/// Bytes of a sampler in main memory, which others use too, unless a single sequence needs more.
const ON_THE_CPU: u128 = 1 << 30;

/// A [`Sampler`].
pub trait Generate: Send {
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

/// A sampler that is used again as long as it will do: its buffers, and what it recorded, are made once.
#[derive(Default)]
pub struct Held(Option<Kept>);

struct Kept {
    /// What was asked for when it was made.
    asked: Limits,
    /// What there was room for.
    limits: Limits,
    sampler: Box<dyn Generate>,
}

impl Held {
    /// A sampler for `requests`: for `most` of them at a time, or as many as fill the rows that are worth it; in any case no
    /// more than there is room for.
    ///
    /// # Errors
    /// Those of [`Engine::sampler`].
    pub fn for_requests(
        &mut self,
        engine: &dyn Engine,
        requests: &[Request],
        most: Option<usize>,
    ) -> Result<&mut dyn Generate> {
        let lengths = || requests.iter().map(|r| r.canvas.len().max(1));
        let (shortest, longest) = (lengths().min().unwrap_or(1), lengths().max().unwrap_or(1));
        let left_to_right = requests.iter().any(|r| r.autoregressive);
        let rows = engine.worthwhile_rows();
        let asked = Limits::for_requests(requests, most.unwrap_or((rows / longest).max(1)));
        let will_do = |held: &Kept| {
            held.asked.sequences >= asked.sequences
                && held.asked.tokens >= asked.tokens
                && held.limits.tokens >= longest
        };
        let held = match self.0.take().filter(will_do) {
            Some(held) => held,
            // The one before has given its memory back by now.
            None => {
                let limits = cut(asked, shortest, longest, |limits| engine.fits(limits, left_to_right));
                Kept { asked, limits, sampler: engine.sampler(limits)? }
            }
        };
        Ok(&mut *self.0.insert(held).sampler)
    }
}

/// As many tokens at a time as fit, at most those of `asked`, and a sequence of `longest` in any case; no more sequences than
/// there can be of `shortest`.
fn cut(asked: Limits, shortest: usize, longest: usize, fits: impl Fn(Limits) -> bool) -> Limits {
    let with = |tokens: usize| Limits { tokens, sequences: asked.sequences.min((tokens / shortest).max(1)) };
    if fits(asked) || asked.tokens <= longest {
        return asked;
    }
    let (mut low, mut high) = (longest, asked.tokens);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if fits(with(middle)) { low = middle } else { high = middle }
    }
    with(low)
}

/// A model on one kind of machine.
pub struct Loaded<B: Backend> {
    pub model: Arc<Model<B>>,
    pub device: String,
    pub dtype: Dtype,
    /// The matrix library, if it is used.
    pub gemm: Option<String>,
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

    fn gemm(&self) -> &str {
        self.gemm.as_deref().unwrap_or("own")
    }

    fn worthwhile_rows(&self) -> usize {
        self.model.backend().worthwhile_rows()
    }

    fn number_bytes(&self) -> usize {
        self.model.backend().number_bytes()[0]
    }

    fn memory(&self) -> MemoryReport {
        self.model.memory()
    }

    fn free_memory(&self) -> Option<u64> {
        self.model.backend().free_memory()
    }

    fn ceilings(&self) -> Result<Ceilings> {
        profile::ceilings(self.model.backend())
    }

    fn needs(&self, limits: Limits, left_to_right: bool) -> u128 {
        let cached = if left_to_right { limits.tokens } else { 0 };
        let cache = KvCache::<B>::bytes(self.model.config(), cached, self.number_bytes());
        MemoryPlan::new(&self.model, limits).of_generating() + cache
    }

    fn fits(&self, limits: Limits, left_to_right: bool) -> bool {
        // A tenth of a card is left for what is not counted: recordings, alignment.
        let room = self.free_memory().map_or(ON_THE_CPU, |free| u128::from(free) / 10 * 9);
        self.needs(limits, left_to_right) <= room
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

    fn likelihood(&self) -> Box<dyn Likelihood + '_> {
        Box::new(Scorer::new(Arc::clone(&self.model)))
    }

    fn plain_loop(&self, input: &PlainInput, options: &PlainOptions) -> Result<PlainOutput> {
        self.model.backend().run(|| plain_loop(&self.model, input, options))
    }

    fn planned(&self, input: &PlainInput, options: &PlainOptions) -> Result<Vec<u32>> {
        planned(&self.model, input, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ModelFiles;
    use crate::sample::Canvas;

    #[test]
    fn memory_does_not_grow_with_the_batch_that_is_asked_for() {
        let config = ModelFiles::bundled().unwrap().config;
        let requests = |n: usize| vec![Request::new(Canvas::prefix(&[1], 120)); n];
        let bytes = |limits: Limits| MemoryPlan::on_card(&config, 0, Dtype::F32, limits).of_generating();
        let within = |room: u128, n: usize, most: usize| {
            cut(Limits::for_requests(&requests(n), most), 121, 121, |limits| bytes(limits) <= room)
        };
        const ROOM: u128 = 1 << 30;
        let few = within(ROOM, 100, 3);
        assert_eq!((few.sequences, few.tokens), (3, 3 * 121));
        let many = within(ROOM, 20_000, usize::MAX);
        assert!(many.tokens > 2048 && bytes(many) <= ROOM, "{many:?}");
        let more = Limits { tokens: many.tokens + 1, ..many };
        assert!(bytes(more) > ROOM, "{many:?}");
        // One sequence is tried in any case.
        assert_eq!(within(1000, 9, 9).tokens, 121);
        assert_eq!(within(1000, 1, 9), Limits { sequences: 1, tokens: 121 });
    }
}
