//! Which positions are committed at which step.

use crate::rng::{Purpose, Rng};

/// The steps at which positions are committed, drawn before the first forward pass.
#[derive(Clone, Debug, Default)]
pub struct CommitPlan {
    positions: Vec<u32>,
    /// (step, first index into `positions`), ascending.
    events: Vec<(u32, usize)>,
}

impl CommitPlan {
    /// A plan from (step, position) pairs in any order.
    pub fn from_steps(pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        pairs.sort_unstable();
        let mut plan = Self::default();
        for (step, position) in pairs {
            if plan.events.last().is_none_or(|&(last, _)| last != step) {
                plan.events.push((step, plan.positions.len()));
            }
            plan.positions.push(position);
        }
        plan
    }

    /// The step of one position, uniform over `0..steps`.
    pub fn draw_step(rng: &Rng, sequence: u32, position: u32, steps: u32) -> u32 {
        rng.below(steps, Purpose::Plan, sequence, 0, position)
    }

    /// The n-th step that commits anything, and its positions, ascending.
    pub fn event(&self, n: usize) -> Option<(u32, &[u32])> {
        let &(step, from) = self.events.get(n)?;
        let to = self.events.get(n + 1).map_or(self.positions.len(), |e| e.1);
        Some((step, &self.positions[from..to]))
    }
}

/// Standard Gumbel noise from a uniform in [0, 1).
pub fn gumbel(u: f32) -> f32 {
    let u = u.max(f32::MIN_POSITIVE);
    -(-u.ln()).ln()
}

/// The plain loop's reveal with `s` steps left, this one included: with probability 1 / s.
pub fn reveal_now(u: f32, s: usize) -> bool {
    u < 1.0 / s as f32
}

/// Which masked positions the original's confidence order reveals with `left` of `steps` steps to
/// go: those whose score is not below the k-th smallest (0-based), k = floor(free * left / steps),
/// given positions counting as 1000.
pub fn original_confidence_reveal(
    scores: &[f32],
    given: &[bool],
    masked: &[bool],
    left: usize,
    steps: usize,
) -> Vec<bool> {
    let free = given.iter().filter(|g| !**g).count();
    let k = (free as f64 * (left as f64 / steps as f64)).floor() as usize;
    let mut sorted: Vec<f32> = scores.iter().zip(given).map(|(&s, &g)| if g { 1000.0 } else { s }).collect();
    let effective = sorted.clone();
    sorted.sort_unstable_by(f32::total_cmp);
    let threshold = sorted.get(k).copied().unwrap_or(f32::INFINITY);
    effective.iter().zip(masked).map(|(&s, &m)| m && s >= threshold).collect()
}
