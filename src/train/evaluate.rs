//! Measuring a learner on examples that it does not learn from.

use super::batch::{Objective, Prepared};
use super::data::Example;
use super::learner::Learner;
use crate::backend::{Backward, Optimise};
use crate::diffusion::loss::Loss;
use crate::error::Result;
use crate::rng::Rng;

impl<B: Optimise + Backward> Learner<B> {
    /// The losses of given examples under the weights as they are, at fixed times and with fixed hidden tokens: example i
    /// of `n` at the time `(i + 1/2) / n` of the range, so that the times are spread evenly.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn evaluate(
        &mut self,
        examples: &[Example],
        draws: usize,
        mut each: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Loss>> {
        let objective = self.recipe.objective;
        // Not the run's seed: runs are compared on the same masks.
        let rng = Rng::new(0x1ac0_4a11);
        let mut losses = Vec::new();
        // Without times and masks every draw is the same.
        let draws = if objective == Objective::Autoregressive { 1 } else { draws };
        let jobs: Vec<(usize, &Example)> = (0..draws.max(1)).flat_map(|_| examples).enumerate().collect();
        let total = jobs.len();
        let mut prepared = Prepared::default();
        for group in jobs.chunks(self.recipe.batch.max(1)) {
            each()?;
            prepared.clear();
            for &(number, example) in group {
                match objective {
                    Objective::Autoregressive => {
                        prepared.add(example, number as u64, objective, &rng, self.recipe.documents)?;
                    }
                    Objective::Diffusion { mask_id, .. } => {
                        // A stride that shares no factor with the number visits every stratum once.
                        let stratum = stratum(number, total);
                        let t = crate::diffusion::schedule::time((stratum as f32 + 0.5) / total as f32);
                        let corrupted = crate::diffusion::corrupt::corrupt_with(
                            &rng,
                            number as u32,
                            0,
                            &example.ids,
                            &example.fixed,
                            t,
                            mask_id,
                        )?;
                        prepared.add_corrupted(example, &corrupted, t, objective, self.recipe.documents);
                    }
                }
            }
            prepared.weigh(objective, 1);
            let nll = self.pass(&prepared, u64::MAX, false)?;
            losses.extend(prepared.losses(&nll));
        }
        Ok(losses)
    }
}

/// The stratum of job `number` of `total`: a permutation that spreads neighbours.
fn stratum(number: usize, total: usize) -> usize {
    let mut stride = (total as f64 * 0.618).round().max(1.0) as usize;
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    while gcd(stride, total) != 1 {
        stride += 1;
    }
    (number as u128 * stride as u128 % total as u128) as usize
}

/// NELBO a token with its standard error over sequences, and the mean unweighted loss.
pub fn summary(losses: &[Loss]) -> (f64, f64, f64) {
    let mut all = Loss::default();
    for loss in losses {
        all.merge(loss);
    }
    (all.nelbo(), all.standard_error(losses), all.unweighted())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strata_are_visited_once_each() {
        for total in 1..200 {
            let mut seen: Vec<usize> = (0..total).map(|i| stratum(i, total)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..total).collect::<Vec<_>>());
        }
    }
}
