//! Time: how much is masked at time t, how a loss at time t counts, and how many positions are
//! still masked after a step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::rng::{Purpose, Rng};

/// The least time that training and evaluation draw, so that 1/t stays bounded.
pub const MIN_TIME: f32 = 1e-3;

/// The time t of a uniform number u in [0, 1): `(1 - MIN_TIME) u + MIN_TIME`.
pub fn time(u: f32) -> f32 {
    (1.0 - MIN_TIME) * u + MIN_TIME
}

/// The time of a sequence at a (training or evaluation) step.
pub fn draw_time(rng: &Rng, sequence: u32, step: u32) -> f32 {
    time(rng.uniform(Purpose::Time, sequence, step, 0))
}

/// The probability that a maskable token is masked at time t: t itself.
pub fn mask_prob(t: f32) -> f32 {
    t
}

/// The probability that a token is still clean at time t: `1 - t`.
pub fn alpha_t(t: f32) -> f32 {
    1.0 - t
}

/// The factor of the cross-entropy at time t in the evidence bound, `-alpha' / (1 - alpha) = 1 / t`.
pub fn loss_weight(t: f32) -> f64 {
    1.0 / f64::from(t)
}

/// How the number of masked positions falls over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counts {
    /// By the same number each step.
    #[default]
    Linear,
    /// Slowly at first, fast at last: `cos(pi n / 2T)` of all are masked after step n of T (MaskGIT,
    /// Chang et al., CVPR 2022).
    Cosine,
}

impl Counts {
    /// How many of `total` positions are still masked after `done` of `steps` steps, rounded down:
    /// `total` before the first, 0 after the last, never more than before.
    pub fn masked_after(self, total: usize, done: usize, steps: usize) -> usize {
        if done >= steps {
            return 0;
        }
        match self {
            Counts::Linear => ((total as u128) * ((steps - done) as u128) / (steps as u128)) as usize,
            Counts::Cosine => {
                let share = (std::f64::consts::FRAC_PI_2 * done as f64 / steps as f64).cos();
                (total as f64 * share) as usize
            }
        }
    }

    /// The first step k, 0-based and not before `from`, after which fewer than `masked` of `total`
    /// positions are masked; the last step when there is none. By bisection: step counts may be
    /// far larger than the number of positions.
    pub fn next_commit(self, total: usize, masked: usize, from: usize, steps: usize) -> usize {
        let (mut low, mut high) = (from, steps.saturating_sub(1).max(from));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.masked_after(total, middle + 1, steps) < masked {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// Shares `steps` out over blocks in proportion to their lengths, at least one for a block that is
/// not empty: the sum is `max(steps, number of such blocks)`. Remainders go to the blocks that they
/// are largest for, the earlier one of equals.
pub fn share_steps(lengths: &[usize], steps: usize) -> Vec<usize> {
    let total: u128 = lengths.iter().map(|&n| n as u128).sum();
    let blocks = lengths.iter().filter(|n| **n > 0).count();
    let mut shares = vec![0; lengths.len()];
    if total == 0 {
        return shares;
    }
    // One for each block first; then the rest goes where the exact share exceeds what is there most.
    let steps = steps.max(blocks);
    for (share, &n) in shares.iter_mut().zip(lengths) {
        *share = ((n as u128 * steps as u128 / total) as usize).max(usize::from(n > 0));
    }
    let given: usize = shares.iter().sum();
    // The signed difference between the exact share and the given one, times `total`.
    let gap = |share: usize, b: usize| lengths[b] as i128 * steps as i128 - share as i128 * total as i128;
    if given > steps {
        let surplus = (0..lengths.len()).filter(|&b| shares[b] > 1);
        let mut order: BinaryHeap<_> = surplus.map(|b| (Reverse(gap(shares[b], b)), Reverse(b))).collect();
        for _ in steps..given {
            let Some((_, Reverse(b))) = order.pop() else { break };
            shares[b] -= 1;
            if shares[b] > 1 {
                order.push((Reverse(gap(shares[b], b)), Reverse(b)));
            }
        }
    } else {
        let filled = (0..lengths.len()).filter(|&b| lengths[b] > 0);
        let mut order: BinaryHeap<_> = filled.map(|b| (gap(shares[b], b), Reverse(b))).collect();
        for _ in given..steps {
            let Some((_, Reverse(b))) = order.pop() else { break };
            shares[b] += 1;
            order.push((gap(shares[b], b), Reverse(b)));
        }
    }
    shares
}
