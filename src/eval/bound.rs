//! The bound on the negative log-likelihood (NELBO) of given texts, by sampling times and masks:
//!
//! ```text
//! NELBO(x) = E over t ~ U(MIN_TIME, 1), masks of (1 / t) * sum over masked tokens of -log p(token | rest)
//! ```
//!
//! (Gong et al., "Scaling Diffusion Language Models via Adaptation from Autoregressive Models", equation 5, for the
//! linear schedule.) Two estimators draw the times: independently, or one from each of as many equal parts of the range
//! as there are draws (stratified), which removes the variance between the parts.

use super::score::{Likelihood, Probe};
use super::statistics::{Ratio, ratio};
use crate::diffusion::corrupt::corrupt_with;
use crate::diffusion::{schedule, shift};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// How times are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Each from the whole range.
    MonteCarlo,
    /// One from each of equal parts of the range.
    Stratified,
}

impl Times {
    /// The time of draw `draw` of `draws` of a text.
    pub fn at(self, rng: &Rng, text: u32, draw: u32, draws: u32) -> f32 {
        let u = rng.uniform(Purpose::Time, text, draw, 0);
        match self {
            Times::MonteCarlo => schedule::time(u),
            Times::Stratified => {
                let part = (f64::from(draw) + f64::from(u)) / f64::from(draws.max(1));
                // Below 1 as f32 too.
                schedule::time((part as f32).min(1.0 - f32::EPSILON))
            }
        }
    }
}

/// A text to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub ids: Vec<u32>,
    /// What is given and never masked.
    pub fixed: Vec<bool>,
}

/// What the draws of a text gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// `(1 / t) sum nll` of each draw, in nats.
    pub weighted: Vec<f64>,
    /// Sum of the negative log-likelihoods of masked tokens, unweighted, over all draws.
    pub unweighted: f64,
    /// Masked tokens that were scored, over all draws.
    pub masked: usize,
    /// Tokens that may be masked and that a row predicts.
    pub maskable: usize,
}

impl Scored {
    /// The estimate of the bound of this text, in nats.
    pub fn bound(&self) -> f64 {
        self.weighted.iter().sum::<f64>() / self.weighted.len().max(1) as f64
    }

    /// The variance of [`bound`](Self::bound) over draws, which one alone does not tell. Of stratified draws, by pairs of
    /// neighbouring parts (collapsed strata; Cochran, "Sampling Techniques", section 5A.12), which is on the safe side.
    pub fn variance(&self, times: Times) -> Option<f64> {
        let n = self.weighted.len() as f64;
        if self.weighted.len() < 2 {
            return None;
        }
        Some(match times {
            Times::MonteCarlo => {
                let mean = self.bound();
                self.weighted.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n
            }
            Times::Stratified => {
                // An odd number's last part is paired with the one before it once more, at half its weight.
                let pair = |p: &[f64]| (p[0] - p[1]).powi(2);
                let pairs: f64 = self.weighted.chunks_exact(2).map(pair).sum();
                let odd = if self.weighted.len() % 2 == 1 {
                    self.weighted.last_chunk::<2>().map_or(0.0, |p| pair(p) / 2.0)
                } else {
                    0.0
                };
                (pairs + odd) / (n * n)
            }
        })
    }
}

/// How a bound is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimator {
    pub times: Times,
    /// Times and masks for each text.
    pub draws: u32,
    pub mask_id: u32,
    /// Row i predicts position i + 1.
    pub shift: bool,
}

impl Estimator {
    /// The masked sequences of text number `number`: one a draw, with the time of each.
    ///
    /// # Errors
    /// [`Error::Shape`] for flags that do not fit the ids.
    pub fn probes(&self, rng: &Rng, number: u32, text: &Text) -> Result<Vec<(f32, Probe)>> {
        let one = |draw: u32| {
            let t = self.times.at(rng, number, draw, self.draws);
            let hidden = corrupt_with(rng, number, draw, &text.ids, &text.fixed, t, self.mask_id)?;
            Ok((t, Probe::masked(&text.ids, &hidden.masked, self.mask_id, self.shift)))
        };
        (0..self.draws).map(one).collect()
    }

    /// Tokens of a text that may be masked and that a row predicts.
    pub fn maskable(&self, text: &Text) -> usize {
        text.fixed.iter().skip(shift::first_predicted(self.shift)).filter(|fixed| !**fixed).count()
    }

    /// Scores texts, whose numbers decide what is drawn for them.
    ///
    /// # Errors
    /// [`Error::Request`] without draws; those of [`Likelihood::nll`].
    pub fn score(
        &self,
        model: &mut dyn Likelihood,
        rng: &Rng,
        texts: &[(u32, &Text)],
    ) -> Result<Vec<Scored>> {
        if self.draws == 0 {
            return Err(Error::request("a bound needs 1 draw or more for each text, got 0"));
        }
        let (mut times, mut probes) = (Vec::new(), Vec::new());
        for &(number, text) in texts {
            let (t, p): (Vec<f32>, Vec<Probe>) = self.probes(rng, number, text)?.into_iter().unzip();
            times.extend(t);
            probes.extend(p);
        }
        let nll = model.nll(&probes, false)?;
        let draws = self.draws as usize;
        let mut out = Vec::with_capacity(texts.len());
        for ((&(_, text), nll), times) in texts.iter().zip(nll.chunks(draws)).zip(times.chunks(draws)) {
            let mut scored = Scored { maskable: self.maskable(text), ..Scored::default() };
            for (nll, &t) in nll.iter().zip(times) {
                let sum: f64 = nll.iter().sum();
                scored.weighted.push(schedule::loss_weight(t) * sum);
                scored.unweighted += sum;
                scored.masked += nll.len();
            }
            out.push(scored);
        }
        Ok(out)
    }
}

/// The bound of several texts, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Per maskable token, with the interval that sampling the texts allows; `None` without such a token.
    pub per_token: Option<Ratio>,
    /// Half the width of the 95 % interval that is left when the texts are given: that of times and masks alone. `None`
    /// with a single draw of a text.
    pub of_draws: Option<f64>,
    /// Mean negative log-likelihood of masked tokens, unweighted; `None` where none was masked.
    pub unweighted: Option<f64>,
    /// Tokens, each text's counted once.
    pub tokens: usize,
}

/// Adds texts up.
pub fn total(scored: &[Scored], times: Times) -> Bound {
    let pairs: Vec<(f64, f64)> = scored.iter().map(|s| (s.bound(), s.maskable as f64)).collect();
    let tokens = scored.iter().map(|s| s.maskable).sum::<usize>();
    let variance: Option<f64> = scored.iter().map(|s| s.variance(times)).sum();
    let masked: usize = scored.iter().map(|s| s.masked).sum();
    let unweighted: f64 = scored.iter().map(|s| s.unweighted).sum();
    Bound {
        per_token: ratio(&pairs),
        of_draws: variance.filter(|_| tokens > 0).map(|v| 1.959_963_984_540_054 * v.sqrt() / tokens as f64),
        unweighted: (masked > 0).then(|| unweighted / masked as f64),
        tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stratified_times_are_one_of_each_part() {
        let rng = Rng::new(3);
        for draw in 0..8 {
            let t = Times::Stratified.at(&rng, 5, draw, 8);
            let (low, high) = (schedule::time(draw as f32 / 8.0), schedule::time((draw + 1) as f32 / 8.0));
            assert!((low..=high).contains(&t), "{draw}: {t} outside {low}..{high}");
        }
        assert!(Times::Stratified.at(&rng, 0, u32::MAX - 1, u32::MAX) <= 1.0);
    }

    #[test]
    fn variances_by_hand() {
        let scored = Scored { weighted: vec![1.0, 3.0, 2.0, 6.0], ..Scored::default() };
        let is = |got: Option<f64>, expected: f64| got.is_some_and(|got| (got - expected).abs() < 1e-12);
        // Mean 3; squares 4 + 0 + 1 + 9 = 14; 14 / 3 / 4.
        assert!(is(scored.variance(Times::MonteCarlo), 14.0 / 12.0));
        // Pairs (1, 3) and (2, 6): 4 + 16 = 20; 20 / 16.
        assert!(is(scored.variance(Times::Stratified), 20.0 / 16.0));
        let odd = Scored { weighted: vec![1.0, 3.0, 2.0], ..Scored::default() };
        // (1, 3), and (3, 2) at half: 4 + 0.5 = 4.5; 4.5 / 9.
        assert!(is(odd.variance(Times::Stratified), 0.5));
        let one = Scored { weighted: vec![2.0], ..Scored::default() };
        assert_eq!([Times::MonteCarlo, Times::Stratified].map(|times| one.variance(times)), [None; 2]);
    }

    #[test]
    fn what_is_not_known_is_no_number() {
        // Of two draws 2 and 6 of 4 tokens the bound is 4 / 4, its variance 8 / 2.
        let two = Scored { weighted: vec![2.0, 6.0], unweighted: 3.0, masked: 2, maskable: 4 };
        let one = Scored { weighted: vec![2.0], unweighted: 0.0, masked: 0, maskable: 4 };
        let got = total(std::slice::from_ref(&two), Times::MonteCarlo);
        assert_eq!((got.per_token.map(|r| r.value), got.unweighted), (Some(1.0), Some(1.5)));
        assert!((got.of_draws.unwrap() - 1.959_964 * 2.0 / 4.0).abs() < 1e-6);
        let got = total(std::slice::from_ref(&one), Times::MonteCarlo);
        assert_eq!((got.per_token.map(|r| r.value), got.of_draws, got.unweighted), (Some(0.5), None, None));
        assert_eq!(total(&[two, one], Times::MonteCarlo).of_draws, None);
        let got = total(&[], Times::Stratified);
        assert_eq!((got.per_token, got.of_draws, got.unweighted, got.tokens), (None, None, None, 0));
    }
}
