//! What a generation takes: the paper's loop, and the engine's.

use super::{Amount, ByOp, forward, weights};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// In which order positions are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecodingOrder {
    /// Drawn beforehand: the logits of a step's own positions are all that it needs.
    #[default]
    Random,
    /// By confidence, as many a step as the linear schedule has: every masked position's logits are needed.
    Confidence,
}

impl DecodingOrder {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Confidence => "confidence",
        }
    }
}

impl std::str::FromStr for DecodingOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Random, Self::Confidence]
            .into_iter()
            .find(|order| order.name() == text)
            .ok_or_else(|| Error::request(format!("order {text}: expected random or confidence")))
    }
}

/// Canvases to be denoised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// Canvases at a time.
    pub batch: usize,
    /// Positions of a canvas.
    pub length: usize,
    /// Those of them that are given.
    pub fixed: usize,
    /// Denoising steps T.
    pub steps: usize,
    pub order: DecodingOrder,
}

/// What it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Forward passes a canvas goes through: in random order the expected number.
    pub nfe: f64,
    /// Forward passes of the batch, each of which reads the weights.
    pub passes: f64,
    pub flops: ByOp,
    /// Numbers of weights read.
    pub weights: ByOp,
}

/// How many of `steps` steps commit one of `positions` at least, each position's step being uniform: the expected number,
/// `T (1 - (1 - 1/T)^n)`.
pub fn expected_commit_steps(steps: f64, positions: f64) -> f64 {
    if positions <= 0.0 || steps <= 0.0 {
        0.0
    } else if steps <= 1.0 {
        1.0
    } else {
        -steps * (positions * (-1.0 / steps).ln_1p()).exp_m1()
    }
}

/// Steps that commit something, and the sum over them of how many positions are masked before, of `n` in `steps` steps, for the
/// linear schedule: floor(n (T - k) / T) are masked before step k = 0..T-1.
fn linear_schedule(n: u128, steps: u128) -> [f64; 2] {
    if n < steps {
        // One at a time.
        return [n as f64, n as f64 * (n as f64 + 1.0) / 2.0];
    }
    let (mut a, mut b) = (n, steps);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    // The sum of floor(n j / T) over 0 < j < T.
    let below = ((n - 1) as f64 * (steps - 1) as f64 + a as f64 - 1.0) / 2.0;
    [steps as f64, n as f64 + below]
}

/// What goes through the network when `filled` rows of each canvas are wanted in all, in `nfe` passes of it.
pub(super) fn planned(sequences: usize, length: usize, filled: f64, nfe: f64) -> Amount {
    let (sequences, length) = (sequences as f64, length as f64);
    let rows = sequences * filled;
    let tokens = nfe * sequences * length;
    Amount { tokens, pairs: tokens * length, last_rows: rows, last_pairs: rows * length, head_rows: rows }
}

impl Decoding {
    /// Whether `config` can do it.
    ///
    /// # Errors
    /// [`Error::Request`] naming the number that cannot be.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let Self { batch, length, fixed, steps, .. } = *self;
        for (flag, n) in [("batch", batch), ("steps", steps), ("length", length)] {
            if n == 0 {
                return Err(Error::request(format!("--{flag} 0: expected 1 or more")));
            }
        }
        check_length(config, length)?;
        if fixed >= length {
            return Err(Error::request(format!(
                "--prompt {fixed}: expected fewer than the {length} positions of --length, so that some are to be filled"
            )));
        }
        Ok(())
    }

    /// Positions to be filled, of each canvas.
    pub fn free(&self) -> usize {
        self.length.saturating_sub(self.fixed)
    }

    /// The paper's loop: T forward passes over all rows, with the logits of all rows.
    pub fn reference(&self, config: &ModelConfig) -> Work {
        let (steps, length) = (self.steps as f64, self.length as f64);
        let amount = planned(self.batch, self.length, steps * length, steps);
        let weights = weights(config, steps, amount.tokens);
        Work { nfe: steps, passes: steps, flops: forward(config, amount), weights }
    }

    /// The engine's: see `docs/flops.md`.
    pub fn planned(&self, config: &ModelConfig) -> Work {
        let (steps, free) = (self.steps as f64, self.free() as f64);
        let [nfe, passes, rows] = match self.order {
            DecodingOrder::Random => {
                let of_batch = expected_commit_steps(steps, self.batch as f64 * free);
                [expected_commit_steps(steps, free), of_batch, free]
            }
            DecodingOrder::Confidence => {
                let [nfe, rows] = linear_schedule(self.free() as u128, self.steps as u128);
                [nfe, nfe, rows]
            }
        };
        let amount = planned(self.batch, self.length, rows, nfe);
        let weights = weights(config, passes, amount.tokens);
        Work { nfe, passes, flops: forward(config, amount), weights }
    }
}

/// Whether a sequence of `length` has a place in the network.
///
/// # Errors
/// [`Error::Request`].
pub(super) fn check_length(config: &ModelConfig, length: usize) -> Result<()> {
    if length > config.max_positions {
        return Err(Error::request(format!(
            "--length {length}: expected 1 to {} (the positions of the model)",
            config.max_positions
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::schedule::Counts;

    #[test]
    fn sums_of_the_linear_schedule_are_those_of_its_steps() {
        for n in 1..40 {
            for steps in 1..60 {
                let masked = |k| Counts::Linear.masked_after(n, k, steps);
                let commits = (0..steps).filter(|&k| masked(k + 1) < masked(k));
                let (count, sum) = commits.fold((0, 0), |(count, sum), k| (count + 1, sum + masked(k)));
                assert_eq!(
                    linear_schedule(n as u128, steps as u128),
                    [count as f64, sum as f64],
                    "{n} {steps}"
                );
            }
        }
    }

    #[test]
    fn no_position_needs_no_step_and_one_needs_one() {
        assert_eq!(expected_commit_steps(7.0, 0.0), 0.0);
        for steps in [1.0, 2.0, 64.0, 1e18] {
            assert!((expected_commit_steps(steps, 1.0) - 1.0).abs() < 1e-12, "{steps}");
        }
        // Two positions share their step once in T.
        assert!((expected_commit_steps(10.0, 2.0) - 1.9).abs() < 1e-12);
        assert!((expected_commit_steps(8.0, 1e9) - 8.0).abs() < 1e-9);
    }
}
