//! Which of several continuations a model finds likeliest: multiple choice.
//!
//! - [`Scoring::Paper`]: the mean over the levels t = T, .., 1 of the unweighted loss of what is masked with probability
//!   t / T, one mask a level and option (Gong et al., "Scaling Diffusion Language Models via Adaptation from
//!   Autoregressive Models", section 4.2; `eval_forward` of their code).
//! - [`Scoring::Elbo`]: the bound on the option's negative log-likelihood (weight 1 / t), one time from each of T equal
//!   parts, with the same times and masks for all options of a question, so that what they share cancels.
//! - [`Scoring::Autoregressive`]: the negative log-likelihood from left to right.

use super::score::{Likelihood, Probe};
use crate::diffusion::corrupt::{MaskRule, corrupt};
use crate::diffusion::loss::{Loss, score, score_times};
use crate::diffusion::schedule;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// How options are scored; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    Paper,
    Elbo,
    Autoregressive,
}

/// An option in tokens: everything behind the first `given` may be masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    pub given: usize,
}

/// How a question is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub scoring: Scoring,
    /// T: masks of each option.
    pub levels: u32,
    pub mask_id: u32,
    pub shift: bool,
    /// What is scored: by id, a given token that is the mask token's id counts too.
    pub masked: MaskRule,
}

/// Most levels: step numbers of the generator hold option and level.
pub const MOST_LEVELS: u32 = 1 << 16;

impl Rule {
    /// The probes of an option, one a level, with the time of each.
    ///
    /// # Errors
    /// [`Error::Request`] for levels out of range.
    pub fn probes(
        &self,
        rng: &Rng,
        question: u32,
        option: u32,
        tokens: &Tokens,
    ) -> Result<Vec<(f32, Probe)>> {
        let Tokens { ids, given } = tokens;
        if self.scoring == Scoring::Autoregressive {
            return Ok(vec![(1.0, Probe::causal(ids, *given))]);
        }
        if !(1..MOST_LEVELS).contains(&self.levels) {
            let most = MOST_LEVELS - 1;
            return Err(Error::request(format!("levels: expected 1 to {most}, got {}", self.levels)));
        }
        let fixed: Vec<bool> = (0..ids.len()).map(|at| at < *given).collect();
        let level = |n: u32, t: f32, key: u32| {
            // Counted from the first maskable token, so that options behind prefixes of other lengths agree.
            let uniform = |at: usize| match at.checked_sub(*given) {
                Some(at) => rng.uniform(Purpose::Corrupt, question, key << 16 | n, at as u32),
                None => 1.0,
            };
            let uniforms: Vec<f32> = (0..ids.len()).map(uniform).collect();
            let hidden = corrupt(ids, &fixed, t, &uniforms, self.mask_id)?;
            let masked = self.masked.masked(&hidden, self.mask_id);
            Ok((t, Probe::masked(ids, &masked, self.mask_id, self.shift)))
        };
        match self.scoring {
            Scoring::Paper => {
                let times = score_times(self.levels as usize);
                times.zip((1..=self.levels).rev()).map(|(t, n)| level(n, t, option)).collect()
            }
            _ => {
                let part = |n: u32| (f64::from(n) - 0.5) / f64::from(self.levels);
                (1..=self.levels).rev().map(|n| level(n, schedule::time(part(n) as f32), 0)).collect()
            }
        }
    }

    /// The score of an option from the likelihoods of its probes, and the same a token of it.
    fn score(&self, times: &[f32], nll: &[Vec<f64>], tokens: &Tokens) -> (f64, f64) {
        let count = tokens.ids.len().saturating_sub(tokens.given).max(1) as f64;
        match self.scoring {
            Scoring::Paper => {
                let levels: Vec<Loss> = times
                    .iter()
                    .zip(nll)
                    .map(|(&t, nll)| {
                        let mut loss = Loss::default();
                        loss.add(t, nll.iter().copied(), 0);
                        loss
                    })
                    .collect();
                let mean = score(&levels);
                // A mean over tokens already.
                (mean, mean)
            }
            Scoring::Elbo => {
                let sum = |(&t, nll): (&f32, &Vec<f64>)| schedule::loss_weight(t) * nll.iter().sum::<f64>();
                let bound = times.iter().zip(nll).map(sum).sum::<f64>() / times.len().max(1) as f64;
                (bound, bound / count)
            }
            Scoring::Autoregressive => {
                let sum: f64 = nll.iter().flatten().sum();
                (sum, sum / count)
            }
        }
    }

    /// Scores the options of questions, whose numbers decide what is masked: for each question and option the score and the
    /// score a token.
    ///
    /// # Errors
    /// Those of [`probes`](Self::probes) and [`Likelihood::nll`].
    pub fn scores(
        &self,
        model: &mut dyn Likelihood,
        rng: &Rng,
        questions: &[(u32, &[Tokens])],
    ) -> Result<Vec<Vec<(f64, f64)>>> {
        let (mut times, mut probes) = (Vec::new(), Vec::new());
        for &(question, options) in questions {
            for (option, tokens) in (0u32..).zip(options) {
                let (t, p): (Vec<f32>, Vec<Probe>) =
                    self.probes(rng, question, option, tokens)?.into_iter().unzip();
                times.push(t);
                probes.extend(p);
            }
        }
        let mut nll = model.nll(&probes, self.scoring == Scoring::Autoregressive)?.into_iter();
        let mut times = times.into_iter();
        let mut one = |tokens: &Tokens| {
            let times = times.next().unwrap_or_default();
            let nll: Vec<Vec<f64>> = nll.by_ref().take(times.len()).collect();
            self.score(&times, &nll, tokens)
        };
        Ok(questions.iter().map(|(_, options)| options.iter().map(&mut one).collect()).collect())
    }
}

/// The option with the least score, the first of equals; `None` without options.
pub fn best(scores: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut least: Option<(usize, f64)> = None;
    for (i, score) in scores.into_iter().enumerate() {
        if least.is_none_or(|(_, least)| score < least) {
            least = Some((i, score));
        }
    }
    least.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token has the likelihood that its id says.
    struct Table;

    impl Likelihood for Table {
        fn nll(&mut self, probes: &[Probe], _: bool) -> Result<Vec<Vec<f64>>> {
            Ok(probes.iter().map(|p| p.targets.iter().map(|&id| f64::from(id)).collect()).collect())
        }
    }

    fn rule(scoring: Scoring) -> Rule {
        Rule { scoring, levels: 4, mask_id: 0, shift: true, masked: MaskRule::Explicit }
    }

    #[test]
    fn paper_scores_are_means_over_levels_of_means_over_tokens() {
        let tokens = Tokens { ids: vec![9, 9, 2, 4], given: 2 };
        let rng = Rng::new(1);
        let probes = rule(Scoring::Paper).probes(&rng, 3, 1, &tokens).unwrap();
        assert_eq!(probes.len(), 4);
        // At the first level, t = 1, everything is masked.
        assert_eq!((probes[0].0, probes[0].1.targets.clone()), (1.0, vec![2, 4]));
        let by_hand: f64 = probes
            .iter()
            .map(|(_, p)| match p.targets[..] {
                [] => 0.0,
                [a] => f64::from(a),
                _ => 3.0,
            })
            .sum::<f64>()
            / 4.0;
        let scores =
            rule(Scoring::Paper).scores(&mut Table, &rng, &[(3, &[tokens.clone(), tokens])]).unwrap();
        assert!((scores[0][1].0 - by_hand).abs() < 1e-12);
    }

    #[test]
    fn options_share_their_masks_under_the_bound_and_not_under_the_papers_rule() {
        let rng = Rng::new(1);
        let tokens = Tokens { ids: vec![9; 40], given: 2 };
        let masks = |scoring, option| {
            rule(scoring)
                .probes(&rng, 3, option, &tokens)
                .unwrap()
                .into_iter()
                .map(|p| p.1)
                .collect::<Vec<_>>()
        };
        assert_eq!(masks(Scoring::Elbo, 0), masks(Scoring::Elbo, 1));
        assert_ne!(masks(Scoring::Paper, 0), masks(Scoring::Paper, 1));
    }

    #[test]
    fn left_to_right_is_a_sum() {
        let tokens = Tokens { ids: vec![9, 9, 2, 4], given: 2 };
        let scores =
            rule(Scoring::Autoregressive).scores(&mut Table, &Rng::new(1), &[(0, &[tokens])]).unwrap();
        assert_eq!(scores, [[(6.0, 3.0)]]);
    }

    #[test]
    fn the_first_of_equals_is_best() {
        assert_eq!(best([2.0, 1.0, 1.0]), Some(1));
        assert_eq!(best([]), None);
    }
}
