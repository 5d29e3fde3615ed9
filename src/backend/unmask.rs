//! Drawing tokens from logits, a row a position.

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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowDraw {
    pub token: u32,
    /// log probability of `token` after temperature, before top-k and top-p, in nats.
    pub log_prob: f32,
    /// See [`Confidence`].
    pub confidence: f32,
    /// log probability of [`RowParams::given`] in the same distribution; 0 without one.
    pub given_log_prob: f32,
}

/// Sampling on rows of logits.
pub trait Unmask: Backend {
    /// Draws one token from each of `params.len()` rows of `logits` `[rows, vocab]`. Exact top-k and top-p, no
    /// sort of the vocabulary. A row's result depends on that row alone.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) when a row holds NaN or +inf, or only -inf; never a token then.
    fn unmask(
        &self,
        logits: &Self::Buffer,
        vocab: usize,
        params: &[RowParams],
        out: &mut [RowDraw],
    ) -> Result<()>;
}
