//! Drawing tokens from logits, a row a position.

use std::ops::Range;

use super::Backend;
use crate::error::{Error, Result};

/// "No token": nothing suppressed, nothing scored.
pub const NO_TOKEN: u32 = u32::MAX;

/// What [`RowDraw::confidence`] measures, always on the distribution after temperature and before
/// top-k and top-p (temperature 0 counts as 1). Larger is more confident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// log probability of the drawn token (MaskGIT; with temperature 0 the maximum).
    MaxProb,
    /// minus the entropy, in nats.
    Entropy,
    /// probability of the best token minus that of the second best.
    Margin,
}

/// How to draw from one row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowParams {
    /// Divides the logits; 0 means argmax (ties to the lower id).
    pub temperature: f32,
    /// Keeps the smallest set of most probable tokens whose mass reaches `top_p`, the crossing
    /// token included; 1 keeps all.
    pub top_p: f32,
    /// Keeps the `top_k` most probable tokens (ties to the lower id), before top-p; 0 keeps all.
    pub top_k: u32,
    /// A token that must not be drawn (the mask token), removed before the softmax; or [`NO_TOKEN`].
    pub suppress: u32,
    /// Uniform in [0, 1): the first id, in id order, whose cumulative mass exceeds it is drawn.
    pub uniform: f32,
    pub confidence: Confidence,
    /// A token whose own log probability is wanted in [`RowDraw::given_log_prob`] (remasking); or [`NO_TOKEN`].
    pub given: u32,
}

/// Temperatures may be at most this.
const HOTTEST: f32 = 1e30;

/// Vocabularies must be smaller than this, so that a sum of masses fits in 64 bits.
const VOCAB_LIMIT: usize = 1 << 24;

impl RowParams {
    /// From the model's own distribution, at `uniform` 0: what other parameters are written as changes to.
    pub const PLAIN: Self = Self {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        suppress: NO_TOKEN,
        uniform: 0.0,
        confidence: Confidence::MaxProb,
        given: NO_TOKEN,
    };

    /// Checks what does not depend on the logits.
    ///
    /// # Errors
    /// [`Error::Request`] for a temperature outside `0..=1e30`, a `top_p` that is not a number or a `uniform` outside
    /// `0..1`; [`Error::Shape`] for a given token outside the vocabulary.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let Self { temperature, top_p, uniform, given, .. } = *self;
        if !(0.0..=HOTTEST).contains(&temperature) {
            return Err(Error::request(format!(
                "the temperature must be a number from 0 (greedy) to {HOTTEST:e}, got {temperature}"
            )));
        }
        if top_p.is_nan() {
            return Err(Error::request("top-p must be a number (1 keeps all tokens), got NaN"));
        }
        if !(0.0..1.0).contains(&uniform) {
            return Err(Error::request(format!(
                "a uniform number must be at least 0 and below 1, got {uniform}"
            )));
        }
        if given != NO_TOKEN && given as usize >= vocab {
            let (expected, got) = (vocab.saturating_sub(1), given as usize);
            return Err(Error::Shape { op: "unmask", what: "given token", expected, got });
        }
        Ok(())
    }
}

/// Refuses an empty vocabulary and one that is too large.
pub(crate) fn check_vocab(vocab: usize) -> Result<()> {
    if vocab == 0 || vocab >= VOCAB_LIMIT {
        return Err(Error::Shape { op: "unmask", what: "vocabulary", expected: VOCAB_LIMIT - 1, got: vocab });
    }
    Ok(())
}

/// What was drawn from one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowDraw {
    pub token: u32,
    /// log probability of `token` after temperature, before top-k and top-p, in nats.
    pub log_prob: f32,
    /// See [`Confidence`].
    pub confidence: f32,
    /// log probability of [`RowParams::given`] in the same distribution; 0 without one.
    pub given_log_prob: f32,
}

/// Words of one row's parameters in a buffer.
pub const UNMASK_WORDS: usize = 12;

/// Where a row's random numbers come from in the generator: see [`crate::rng`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoiseAddress {
    pub seed: u64,
    pub sequence: u32,
    pub step: u32,
    pub position: u32,
}

/// How a token is come to at a temperature above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowNoise {
    /// By [`RowParams::uniform`].
    Given,
    /// By the uniform number at this address with [`Purpose::Token`](crate::rng::Purpose::Token).
    Philox(NoiseAddress),
    /// By Gumbel noise on the logits at this address with [`Purpose::Gumbel`](crate::rng::Purpose::Gumbel): the same
    /// distribution, other tokens. `cuda/unmask.cu` defines it to the bit; the CPU has no such draw.
    Gumbel(NoiseAddress),
}

/// One row's parameters as [`Unmask::unmask`] reads them. Of `params`, `uniform` is not looked at under
/// [`RowNoise::Philox`] and [`RowNoise::Gumbel`], but it must be in range.
///
/// # Errors
/// Those of [`RowParams::check`], and [`Error::Shape`] for a vocabulary of 0 or of 2^24 and more.
pub fn unmask_words(vocab: usize, params: &RowParams, noise: RowNoise) -> Result<[u32; UNMASK_WORDS]> {
    check_vocab(vocab)?;
    params.check(vocab)?;
    let (mode, at) = match noise {
        RowNoise::Given => (0, NoiseAddress::default()),
        RowNoise::Philox(at) => (1, at),
        RowNoise::Gumbel(at) => (2, at),
    };
    Ok([
        params.temperature.to_bits(),
        params.top_p.to_bits(),
        params.top_k,
        params.suppress,
        params.given,
        params.confidence.code() | mode << 8,
        // -0 counts as 0.
        params.uniform.abs().to_bits(),
        at.seed as u32,
        (at.seed >> 32) as u32,
        at.sequence,
        at.step,
        at.position,
    ])
}

/// What [`unmask_words`] wrote; `None` for words that it does not write.
pub(crate) fn row_of_words(words: &[u32; UNMASK_WORDS]) -> Option<(RowParams, RowNoise)> {
    let [temperature, top_p, top_k, suppress, given, how, uniform, low, high, sequence, step, position] =
        *words;
    let at = NoiseAddress { seed: u64::from(low) | u64::from(high) << 32, sequence, step, position };
    let noise = match how >> 8 {
        0 => RowNoise::Given,
        1 => RowNoise::Philox(at),
        2 => RowNoise::Gumbel(at),
        _ => return None,
    };
    let params = RowParams {
        temperature: f32::from_bits(temperature),
        top_p: f32::from_bits(top_p),
        top_k,
        suppress,
        uniform: f32::from_bits(uniform),
        confidence: Confidence::of_code(how & 255)?,
        given,
    };
    Some((params, noise))
}

impl Confidence {
    pub(crate) const fn code(self) -> u32 {
        match self {
            Confidence::MaxProb => 0,
            Confidence::Entropy => 1,
            Confidence::Margin => 2,
        }
    }

    const fn of_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Confidence::MaxProb),
            1 => Some(Confidence::Entropy),
            2 => Some(Confidence::Margin),
            _ => None,
        }
    }
}

/// Sampling on rows of logits.
pub trait Unmask: Backend {
    /// What was drawn from rows, where the machine keeps it.
    type Draws: Send + Sync;

    /// Room for `rows` draws.
    fn alloc_draws(&self, rows: usize) -> Result<Self::Draws>;

    /// Draws a token for each row number r of `rows`: from row `r - rows.start` of `logits` `[rows, vocab]`, by words r of `params`
    /// `[R, 12]` ([`unmask_words`]), into draw r of `out`. Exact top-k and top-p, no sort of the vocabulary. A row's
    /// result depends on that row alone.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) when a row holds NaN or +inf, or only -inf; on a card
    /// [`read_draws`](Self::read_draws) says so later. Never a token then.
    fn unmask(
        &self,
        logits: &Self::Buffer,
        vocab: usize,
        rows: Range<usize>,
        params: &Self::Index,
        out: &mut Self::Draws,
    ) -> Result<()>;

    /// Copies the first `out.len()` draws to the host.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) when one of them failed.
    fn read_draws(&self, draws: &Self::Draws, out: &mut [RowDraw]) -> Result<()>;
}
