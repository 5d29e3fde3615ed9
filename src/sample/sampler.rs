//! The step loop: many requests, each with its own parameters, through one forward pass a step.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::autoregressive::Decoder;
use super::plan;
use super::request::{Generation, Request, Step};
use super::running::{GivenNoise, Rules, Running};
use super::steps::Steps;
use crate::backend::{Denoise, Forward, NO_TOKEN};
use crate::error::{Error, Result};
use crate::meter;
use crate::model::{Arena, ArenaSize, Model};

/// How much a [`Sampler`] does at once; its buffers are sized by this, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences in flight.
    pub sequences: usize,
    /// Most tokens in flight, all sequences together; also the longest canvas.
    pub tokens: usize,
}

impl Limits {
    /// Room for all of `requests` at once, but for no more than `sequences` of them.
    pub fn for_requests(requests: &[Request], sequences: usize) -> Self {
        let mut lengths: Vec<usize> = requests.iter().map(|r| r.canvas.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let sequences = sequences.clamp(1, lengths.len().max(1));
        Self { sequences, tokens: lengths.iter().take(sequences).sum::<usize>().max(1) }
    }
}

/// How often an [`Observer`] wants to see the canvases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// After every step: the machine waits for the host each time.
    EveryStep,
    /// Now and then, as suits the machine: on a card every few steps, on the CPU after each.
    Often,
    /// Not at all. On a card everything is then asked for ahead of time where the number of steps is known.
    Never,
}

/// Is told of every step and every finished request. Called from inside the step loop: be quick.
pub trait Observer: Send {
    /// How often [`step`](Self::step) is called.
    fn pace(&self) -> Pace {
        Pace::EveryStep
    }

    /// After a step (or several, see [`pace`](Self::pace)) of one request. [`ControlFlow::Break`] stops the whole call; requests that are
    /// not finished then become [`Error::Cancelled`].
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let _ = step;
        ControlFlow::Continue(())
    }

    /// When a request (by its index in the batch) has its result.
    fn done(&mut self, request: usize, result: &Result<Generation>) {
        let _ = (request, result);
    }
}

/// Observes nothing.
impl Observer for () {
    fn pace(&self) -> Pace {
        Pace::Never
    }
}

/// Generates text with a [`Model`]. Holds every buffer; after its first step a call allocates
/// nothing until it hands out results.
///
/// A request's tokens do not depend on the batch it shares, on the thread count, or on the order
/// of the requests.
///
/// ```
/// # use std::sync::Arc;
/// # use lacuna::{backend::cpu::Cpu, io::ModelFiles, model::{LoadOptions, Model}};
/// use lacuna::sample::{Canvas, Limits, Part, Request, Sampler};
///
/// # fn main() -> lacuna::Result<()> {
/// # let files = ModelFiles::bundled()?;
/// # let model = Arc::new(Model::load(Cpu::<f32>::new(None)?, &files, LoadOptions::default())?);
/// let mut sampler = Sampler::new(model, Limits { sequences: 2, tokens: 64 })?;
/// // A text with a gap in its middle, in two samples.
/// let canvas = Canvas::new(&[Part::Fixed(vec![1, 50]), Part::Gap(10), Part::Fixed(vec![60, 70])]);
/// let requests = [0, 1].map(|sequence| Request { sequence, ..Request::new(canvas.clone()) });
/// for result in sampler.generate_with(&requests, &mut ())? {
///     let text = result?;
///     assert_eq!(text.ids[..2], [1, 50]);
///     assert_eq!(text.tokens, 10);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Sampler<B: Forward + Denoise> {
    pub(super) model: Arc<Model<B>>,
    pub(super) limits: Limits,
    pub(super) arena: Arena<B>,
    steps: Steps<B>,
    pub(super) decoder: Option<Decoder<B>>,
}

impl<B: Forward + Denoise> Sampler<B> {
    /// A sampler with buffers for `limits`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the buffers do not fit, [`Error::Request`] for limits of 0.
    pub fn new(model: Arc<Model<B>>, limits: Limits) -> Result<Self> {
        if limits.sequences == 0 || limits.tokens == 0 {
            return Err(Error::Request(
                "a sampler needs room for at least one sequence and one token".into(),
            ));
        }
        plan::check(&model, limits)?;
        let size = ArenaSize { tokens: limits.tokens, rows: limits.tokens };
        let longest = limits.tokens.min(model.config().max_positions);
        Ok(Self {
            arena: Arena::new(model.backend(), model.config(), size, longest)?,
            steps: Steps::new(model.backend(), limits)?,
            decoder: None,
            model,
            limits,
        })
    }

    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Generates one text.
    ///
    /// # Errors
    /// [`Error::Request`] for a request that cannot be honoured, [`Error::NonFinite`] when the
    /// network's output is not a number.
    pub fn generate(&mut self, request: &Request) -> Result<Generation> {
        let mut results = self.generate_with(std::slice::from_ref(request), &mut ())?;
        results.pop().unwrap_or(Err(Error::Cancelled))
    }

    /// Generates several texts, as many at a time as the limits allow; a waiting request takes a
    /// finished one's place. A request that cannot be honoured is an error in its own place and
    /// disturbs no other.
    ///
    /// # Errors
    /// What concerns all: [`Error::NonFinite`], [`Error::Memory`].
    pub fn generate_with(
        &mut self,
        requests: &[Request],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Result<Generation>>> {
        let backend = self.model.backend().clone();
        backend.run(|| {
            let _work = meter::range("generate", 0);
            let mut results = Results::new(requests.len(), observer);
            let of_kind = |ar: bool| (0..requests.len()).filter(move |&i| requests[i].autoregressive == ar);
            let waiting: VecDeque<usize> = of_kind(false).collect();
            self.denoise(requests, waiting, None, &mut results)?;
            let waiting: Vec<usize> = of_kind(true).collect();
            self.decode(requests, &waiting, &mut results)?;
            if meter::is_on() {
                backend.settle_meter()?;
            }
            Ok(results.into_inner())
        })
    }

    /// One request with given uniforms instead of its seed's.
    pub(super) fn denoise_given(&mut self, request: &Request, noise: GivenNoise) -> Result<Generation> {
        let backend = self.model.backend().clone();
        backend.run(|| {
            let observer: &mut dyn Observer = &mut ();
            let mut results = Results::new(1, observer);
            self.denoise(std::slice::from_ref(request), VecDeque::from([0]), Some(noise), &mut results)?;
            results.into_inner().pop().unwrap_or(Err(Error::Cancelled))
        })
    }

    fn denoise(
        &mut self,
        requests: &[Request],
        mut waiting: VecDeque<usize>,
        mut noise: Option<GivenNoise>,
        results: &mut Results<'_>,
    ) -> Result<()> {
        let mut running: Vec<Running> = Vec::with_capacity(self.limits.sequences);
        let mut in_flight = 0;
        let mut composed = false;
        loop {
            while let Some(&next) = waiting.front() {
                let length = requests[next].canvas.len();
                let fits = running.len() < self.limits.sequences && in_flight + length <= self.limits.tokens;
                if !fits && !running.is_empty() {
                    break;
                }
                if results.cancelled {
                    waiting.pop_front();
                    results.put(next, Err(Error::Cancelled));
                    continue;
                }
                // Shift and mask id are one for all that are in flight together.
                let rules = self.rules(&requests[next]);
                let others = running.first().map(Running::rules);
                if others.is_some_and(|others| rules.as_ref().is_ok_and(|own| !own.go_together(others))) {
                    break;
                }
                waiting.pop_front();
                match rules.and_then(|rules| self.admit(next, &requests[next], rules, noise.take())) {
                    Err(error) => results.put(next, Err(error)),
                    Ok(state) if state.is_done() => results.put(next, Ok(state.finish())),
                    Ok(state) => {
                        in_flight += length;
                        composed = false;
                        running.push(state);
                    }
                }
            }
            if running.is_empty() {
                return Ok(());
            }
            if !composed {
                self.steps.compose(&self.model, &mut self.arena, &running)?;
                composed = true;
            }
            let pace = results.pace();
            self.steps.ask(&self.model, &mut self.arena, &mut running, pace)?;
            let watched = pace != Pace::Never;
            self.steps.look(&self.model, &mut self.arena, &mut running, watched)?;
            if watched {
                Steps::<B>::tell(&running, results);
            }
            let mut at = 0;
            while at < running.len() {
                if running[at].is_done() || results.cancelled {
                    composed = false;
                    let state = running.remove(at);
                    in_flight -= state.ids.len();
                    let request = state.request;
                    let result = if state.is_done() { Ok(state.finish()) } else { Err(Error::Cancelled) };
                    results.put(request, result);
                } else {
                    at += 1;
                }
            }
        }
    }

    fn admit(
        &self,
        index: usize,
        request: &Request,
        rules: Rules,
        noise: Option<GivenNoise>,
    ) -> Result<Running> {
        self.check_length(request.canvas.len())?;
        self.check_ids(request)?;
        Running::new(index, request, rules, noise)
    }

    pub(super) fn check_length(&self, length: usize) -> Result<()> {
        let positions = self.model.config().max_positions;
        if length > positions {
            return Err(Error::Request(format!(
                "a text of {length} tokens (given and to fill) is too long: the model has {positions} positions; \
                 shorten the prompt or lower the length"
            )));
        }
        if length > self.limits.tokens {
            return Err(Error::Request(format!(
                "a text of {length} tokens is longer than this sampler's limit of {} tokens",
                self.limits.tokens
            )));
        }
        Ok(())
    }

    pub(super) fn check_ids(&self, request: &Request) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let given = request.canvas.ids().iter().zip(request.canvas.fixed());
        for (position, (&id, &fixed)) in given.enumerate() {
            if fixed && id as usize >= vocab {
                return Err(Error::Request(format!(
                    "token id {id} at position {position} is not in the vocabulary: the model has ids 0 to {}; \
                     is the tokenizer the model's own?",
                    vocab.saturating_sub(1)
                )));
            }
        }
        Ok(())
    }

    /// The model's word on sampling, overridden by the request's.
    fn rules(&self, request: &Request) -> Result<Rules> {
        let (model, vocab) = (&self.model, self.model.config().vocab_size);
        let own = model.special().mask.as_ref().map(|m| m.id);
        let Some(mask_id) = request.mask_id.or(own) else {
            return Err(Error::Request(
                "this model names no mask token: it is not a diffusion model, or its config.json lacks \
                 mask_token_id; give --mask-id N, or decode from left to right with --ar"
                    .into(),
            ));
        };
        if mask_id as usize >= vocab {
            return Err(Error::Request(format!(
                "mask id {mask_id} is not in the vocabulary: expected 0 to {}",
                vocab.saturating_sub(1)
            )));
        }
        Ok(Rules {
            shift: request.shift.unwrap_or(model.shift()),
            mask_id,
            suppress: self.suppressed(request),
            eos: model.special().eos.as_ref().map_or(NO_TOKEN, |e| e.id),
        })
    }

    /// The mask token where it must not be drawn, else [`NO_TOKEN`].
    pub(super) fn suppressed(&self, request: &Request) -> u32 {
        let model = &self.model;
        let own = model.special().mask.as_ref().map(|m| m.id);
        let mask = request.mask_id.or(own);
        let dedicated = model.mask_is_dedicated() && own == mask;
        let known = mask.filter(|&id| (id as usize) < model.config().vocab_size);
        known.filter(|_| request.suppress_mask.unwrap_or(dedicated)).unwrap_or(NO_TOKEN)
    }
}

/// Results in the order of the requests, and the observer who hears of them.
pub(super) struct Results<'a> {
    slots: Vec<Option<Result<Generation>>>,
    observer: &'a mut dyn Observer,
    pub cancelled: bool,
}

impl<'a> Results<'a> {
    fn new(count: usize, observer: &'a mut dyn Observer) -> Self {
        Self { slots: (0..count).map(|_| None).collect(), observer, cancelled: false }
    }

    pub fn pace(&self) -> Pace {
        self.observer.pace()
    }

    pub fn put(&mut self, request: usize, result: Result<Generation>) {
        self.observer.done(request, &result);
        self.slots[request] = Some(result);
    }

    pub fn step(&mut self, step: Step<'_>) {
        if self.observer.step(step).is_break() {
            self.cancelled = true;
        }
    }

    fn into_inner(self) -> Vec<Result<Generation>> {
        self.slots.into_iter().map(|slot| slot.unwrap_or(Err(Error::Cancelled))).collect()
    }
}
