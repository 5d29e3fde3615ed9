//! What to generate ([`Request`], [`Canvas`]), how ([`Order`]), and what came out ([`Generation`],
//! [`Step`]).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::backend::Confidence;
use crate::error::{Error, Result};

/// A fixed-length sequence to be denoised: token ids, and which of them are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canvas {
    ids: Vec<u32>,
    fixed: Vec<bool>,
}

/// A piece of a [`Canvas`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Given tokens.
    Fixed(Vec<u32>),
    /// This many tokens to be filled in.
    Gap(usize),
}

impl Canvas {
    /// A canvas from pieces in reading order. What a free position holds is replaced by the mask
    /// token when sampling starts.
    pub fn new(parts: &[Part]) -> Self {
        let mut canvas = Canvas { ids: Vec::new(), fixed: Vec::new() };
        for part in parts {
            match part {
                Part::Fixed(ids) => {
                    canvas.ids.extend_from_slice(ids);
                    canvas.fixed.resize(canvas.ids.len(), true);
                }
                Part::Gap(n) => {
                    canvas.ids.resize(canvas.ids.len() + n, 0);
                    canvas.fixed.resize(canvas.ids.len(), false);
                }
            }
        }
        canvas
    }

    /// Given tokens, then `length` to be filled in.
    pub fn prefix(given: &[u32], length: usize) -> Self {
        Self::new(&[Part::Fixed(given.to_vec()), Part::Gap(length)])
    }

    /// A canvas from ids and flags of equal length.
    ///
    /// # Errors
    /// [`Error::Request`] when the lengths differ.
    pub fn from_flags(ids: Vec<u32>, fixed: Vec<bool>) -> Result<Self> {
        if ids.len() != fixed.len() {
            return Err(Error::Request(format!(
                "a canvas needs as many flags as ids: expected {}, got {}",
                ids.len(),
                fixed.len()
            )));
        }
        Ok(Self { ids, fixed })
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// `true` where the token is given.
    pub fn fixed(&self) -> &[bool] {
        &self.fixed
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Number of positions to be filled in.
    pub fn maskable(&self) -> usize {
        self.fixed.iter().filter(|f| !**f).count()
    }

    /// The runs of positions to be filled in, in reading order.
    pub fn gaps(&self) -> Vec<Range<usize>> {
        let mut gaps: Vec<Range<usize>> = Vec::new();
        for (i, fixed) in self.fixed.iter().enumerate() {
            if *fixed {
                continue;
            }
            match gaps.last_mut() {
                Some(g) if g.end == i => g.end = i + 1,
                _ => gaps.push(i..i + 1),
            }
        }
        gaps
    }
}

/// How many positions are committed by when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountSchedule {
    /// The same number each step.
    #[default]
    Linear,
    /// Few at first, many at last (MaskGIT): still masked after step n of T: `cos(pi n / 2T)` of all.
    Cosine,
}

/// In which order positions are committed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Order {
    /// The paper's: each position's step is uniform over the T steps.
    Random,
    /// The most confident positions first, as many a step as `schedule` says.
    Confidence {
        by: Confidence,
        schedule: CountSchedule,
        /// Gumbel noise on the confidence, times this and times the share of steps left; 0 is none.
        noise: f32,
        /// Committed tokens are scored again at each step and go back to the mask when they are
        /// among the least confident.
        remask: bool,
    },
    /// Every position whose confidence exceeds `tau`, always at least the most confident one;
    /// `tau` is on the scale of `by` with max-prob as a probability. The step count is not used.
    Threshold { by: Confidence, tau: f32 },
}

/// One text to generate. Build with [`Request::new`] and set what differs from the defaults.
///
/// ```
/// use lacuna::backend::Confidence;
/// use lacuna::sample::{Canvas, Order, Request};
///
/// let mut request = Request::new(Canvas::prefix(&[1, 17, 42], 20));
/// request.order = Order::Threshold { by: Confidence::MaxProb, tau: 0.9 };
/// request.seed = 7;
/// assert_eq!(request.canvas.maskable(), 20);
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    pub canvas: Canvas,
    /// Denoising steps T (not used by [`Order::Threshold`] and autoregressive decoding).
    pub steps: usize,
    pub order: Order,
    /// Tokens a block for block-wise left-to-right (semi-autoregressive) decoding; `None` is one
    /// block. Steps are shared out over blocks in proportion to their lengths.
    pub block_length: Option<usize>,
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    pub seed: u64,
    /// Which of several samples of one seed this is; enters every random number.
    pub sequence: u32,
    /// Never draw the mask token; `None` follows the model (yes for a dedicated mask id).
    pub suppress_mask: Option<bool>,
    /// Replaces the model's mask id.
    pub mask_id: Option<u32>,
    /// Replaces the model's shift.
    pub shift: Option<bool>,
    /// The answer ends at the first end-of-sequence token, which stops the work where it can.
    pub stop_at_eos: bool,
    /// Causal attention and one token after the other with a KV cache, instead of diffusion. The
    /// canvas must be a prefix and one gap.
    pub autoregressive: bool,
}

impl Request {
    /// 64 steps of the paper's random order at temperature 1, top-p 0.9, seed 0.
    pub fn new(canvas: Canvas) -> Self {
        Self {
            canvas,
            steps: 64,
            order: Order::Random,
            block_length: None,
            temperature: 1.0,
            top_p: 0.9,
            top_k: 0,
            seed: 0,
            sequence: 0,
            suppress_mask: None,
            mask_id: None,
            shift: None,
            stop_at_eos: true,
            autoregressive: false,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// Every position is committed.
    Length,
    /// An end-of-sequence token ended the answer.
    Eos,
}

/// What came out of a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The whole canvas: given tokens and filled ones. After an early end of sequence, positions
    /// that were never computed hold the end-of-sequence token.
    pub ids: Vec<u32>,
    /// For each position the step (1-based) at which its token was last committed; 0 if given or
    /// never computed.
    pub committed_at: Vec<u32>,
    /// For each position the log probability, in nats, of its token when it was committed (after
    /// temperature, before top-k and top-p); 0 if given.
    pub log_prob: Vec<f32>,
    /// Forward passes that this sequence took part in.
    pub nfe: usize,
    /// Tokens that were filled in and belong to the answer: those before the first
    /// end-of-sequence token of the last gap where `stop_at_eos` is set.
    pub tokens: usize,
    /// Positions of the canvas that belong to the text: `0..end` cuts at the first end of sequence.
    pub end: usize,
    pub finish: Finish,
}

impl Generation {
    /// Mean log probability of the filled tokens of the text, in nats a token: the per-token score;
    /// 0 when there are none.
    pub fn score(&self) -> f64 {
        let (mut sum, mut n) = (0.0, 0usize);
        for (&step, &log_prob) in self.committed_at.iter().zip(&self.log_prob).take(self.end) {
            if step > 0 {
                sum += f64::from(log_prob);
                n += 1;
            }
        }
        if n == 0 { 0.0 } else { sum / n as f64 }
    }
}

/// A token written to the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Commit {
    pub position: u32,
    pub token: u32,
    /// log probability of the token, in nats.
    pub log_prob: f32,
}

/// The state of one request after a step, given to the callback of a sampler.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Index of the request in its batch.
    pub request: usize,
    /// The step just done, 1-based; steps that commit nothing are skipped and never seen here.
    pub step: usize,
    /// Steps in all, as requested (for orders without a step count: positions to fill).
    pub steps: usize,
    /// Forward passes of this request so far.
    pub nfe: usize,
    /// The canvas after the step; masked positions hold the mask id.
    pub canvas: &'a [u32],
    /// `true` where the canvas is still masked.
    pub masked: &'a [bool],
    /// What this step committed, in position order.
    pub committed: &'a [Commit],
    /// Positions that went back to the mask in this step.
    pub remasked: &'a [u32],
}
