//! When masked positions become tokens.
//!
//! Steps are forward passes k = 0..T; "position p is committed at step k" means that its token is
//! the one drawn from forward k. In the paper's random order each still-masked position is committed
//! at step k with probability `1 / (T - k)`, whatever the logits: its step is uniform over 0..T. The
//! whole schedule can therefore be drawn beforehand, as a [`CommitPlan`].

use std::ops::Range;

use crate::error::{Error, Result};
pub use crate::ranking::{above_threshold, least_confident, most_confident};
pub use crate::rng::gumbel;
use crate::rng::{Purpose, Rng};

/// At which step each position is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitPlan {
    /// Positions, by step and within a step ascending.
    positions: Vec<u32>,
    /// Steps that commit something, ascending, each with the end of its positions.
    ends: Vec<(u32, usize)>,
}

impl CommitPlan {
    /// A plan from (step, position) pairs in any order.
    pub fn new(mut commits: Vec<(u32, u32)>) -> Self {
        commits.sort_unstable();
        let mut plan = Self::default();
        for (step, position) in commits {
            plan.positions.push(position);
            let end = plan.positions.len();
            match plan.ends.last_mut() {
                Some(last) if last.0 == step => last.1 = end,
                _ => plan.ends.push((step, end)),
            }
        }
        plan
    }

    /// Draws the step of each of `positions` uniformly from `steps`. A position's step depends on
    /// nothing but the seed, `sequence`, the position and the range.
    ///
    /// # Errors
    /// [`Error::Request`] when there are positions but no steps.
    pub fn draw(
        rng: &Rng,
        sequence: u32,
        positions: impl IntoIterator<Item = u32>,
        steps: Range<u32>,
    ) -> Result<Self> {
        Self::draw_blocks(rng, sequence, [(positions, steps)])
    }

    /// As [`draw`](Self::draw) for several blocks, each with its own positions and steps.
    ///
    /// # Errors
    /// [`Error::Request`] when a block has positions but no steps.
    pub fn draw_blocks<P: IntoIterator<Item = u32>>(
        rng: &Rng,
        sequence: u32,
        blocks: impl IntoIterator<Item = (P, Range<u32>)>,
    ) -> Result<Self> {
        let mut commits = Vec::new();
        for (positions, steps) in blocks {
            let count = steps.end.saturating_sub(steps.start);
            for position in positions {
                if count == 0 {
                    return Err(Error::request("at least one step is needed to fill a position, got 0"));
                }
                let step = steps.start + rng.below(count, Purpose::Plan, sequence, 0, position);
                commits.push((step, position));
            }
        }
        Ok(Self::new(commits))
    }

    /// The plan that the plain loop follows with given uniform numbers: `uniforms[k * len + p]`
    /// decides by [`reveal_now`] whether position p, if still masked, is committed at step k, for
    /// k = 0..T-1; the last step T-1 commits the rest.
    ///
    /// # Errors
    /// [`Error::Request`] without steps; [`Error::Shape`] when `uniforms` is not `(steps - 1) * len`
    /// long or a position is not below `len`.
    pub fn from_uniforms(
        uniforms: &[f32],
        len: usize,
        positions: impl IntoIterator<Item = u32>,
        steps: usize,
    ) -> Result<Self> {
        let Some(last) = steps.checked_sub(1) else {
            return Err(Error::request("at least one step is needed, got 0"));
        };
        let expected = last.saturating_mul(len);
        if uniforms.len() != expected {
            let (op, what, got) = ("commit plan", "uniform numbers", uniforms.len());
            return Err(Error::Shape { op, what, expected, got });
        }
        let mut commits = Vec::new();
        for position in positions {
            let p = position as usize;
            if p >= len {
                return Err(Error::Shape { op: "commit plan", what: "position", expected: len, got: p });
            }
            let step = (0..last).find(|k| reveal_now(uniforms[k * len + p], steps - k)).unwrap_or(last);
            commits.push((step as u32, position));
        }
        Ok(Self::new(commits))
    }

    /// The steps that commit something, in order, each with its positions, ascending.
    pub fn steps(&self) -> impl Iterator<Item = (u32, &[u32])> {
        (0..self.len()).filter_map(|i| self.step(i))
    }

    /// The `i`-th step that commits something, with its positions; `None` after the last.
    pub fn step(&self, i: usize) -> Option<(u32, &[u32])> {
        let start = if i == 0 { 0 } else { self.ends.get(i - 1)?.1 };
        let (step, end) = *self.ends.get(i)?;
        Some((step, self.positions.get(start..end)?))
    }

    /// All positions, by step and within a step ascending.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// How many positions are committed before the `i`-th step that commits something.
    pub fn start_of(&self, i: usize) -> usize {
        i.checked_sub(1).map_or(0, |before| self.ends.get(before).map_or(self.positions.len(), |end| end.1))
    }

    /// How many steps commit something: the forward passes that the plan needs.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// Whether the plain loop commits a still-masked position now, when `left` steps are left, this one
/// included: `uniform < 1 / left`. With one left, always.
pub fn reveal_now(uniform: f32, left: usize) -> bool {
    left <= 1 || f64::from(uniform) < 1.0 / left as f64
}

/// The confidence order of the original implementation's fine-tuned sampler, before a forward with
/// `left` of `steps` steps to go: which positions stay masked.
///
/// `scores` are the last forward's, for every position; `free` marks the positions that were masked
/// at the start, `masked` those that still are. The threshold is the k-th smallest score, counted
/// from 0, with k = floor(n left / steps), n the number of free positions, and 1000 as the score of
/// given ones. A masked position stays so iff its score is below. Positions that are revealed
/// already compete with their new scores.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ.
pub fn original_confidence_step(
    scores: &[f32],
    free: &[bool],
    masked: &[bool],
    left: usize,
    steps: usize,
) -> Result<Vec<bool>> {
    for (what, got) in [("free positions", free.len()), ("masked positions", masked.len())] {
        if got != scores.len() {
            return Err(Error::Shape { op: "confidence order", what, expected: scores.len(), got });
        }
    }
    let n = free.iter().filter(|f| **f).count();
    // In floating point, as the original computes it.
    let k = (n as f64 * (left as f64 / steps.max(1) as f64)).floor() as usize;
    let mut sorted: Vec<f32> = free.iter().zip(scores).map(|(f, s)| if *f { *s } else { 1000.0 }).collect();
    if k >= sorted.len() {
        return Ok(masked.to_vec());
    }
    let (_, threshold, _) = sorted.select_nth_unstable_by(k, f32::total_cmp);
    Ok(masked.iter().zip(free).zip(scores).map(|((m, f), s)| *m && *f && *s < *threshold).collect())
}
