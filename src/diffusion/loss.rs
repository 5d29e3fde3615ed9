//! How predictions are scored, from the negative log-likelihoods (nats) of masked tokens.

use super::schedule;

/// What a loss is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossNorm {
    /// The masked tokens that were scored: the paper's training loss.
    #[default]
    MaskedTokens,
    /// All maskable tokens that a row predicts: the negative evidence bound (NELBO) per token, a
    /// bound on the negative log-likelihood per token when averaged over times.
    MaskableTokens,
}

/// Sums over a batch of corrupted sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    weighted: f64,
    unweighted: f64,
    masked: usize,
    maskable: usize,
}

impl Loss {
    /// Adds a sequence that was corrupted at time `t`: the negative log-likelihoods of its masked
    /// tokens that a row predicts (see [`shift::predicted`](super::shift::predicted)), and how many
    /// of its maskable tokens a row predicts, masked or not.
    pub fn add(&mut self, t: f32, nll: impl IntoIterator<Item = f64>, maskable: usize) {
        let (mut sum, mut count) = (0.0, 0);
        for nll in nll {
            sum += nll;
            count += 1;
        }
        self.weighted += schedule::loss_weight(t) * sum;
        self.unweighted += sum;
        self.masked += count;
        self.maskable += maskable;
    }

    /// Adds the sums of another batch.
    pub fn merge(&mut self, other: &Loss) {
        self.weighted += other.weighted;
        self.unweighted += other.unweighted;
        self.masked += other.masked;
        self.maskable += other.maskable;
    }

    /// `sum over sequences of (1 / t) sum nll`, divided by `norm` over the whole batch; 0 when
    /// there is nothing to divide by.
    pub fn weighted(&self, norm: LossNorm) -> f64 {
        let n = match norm {
            LossNorm::MaskedTokens => self.masked,
            LossNorm::MaskableTokens => self.maskable,
        };
        ratio(self.weighted, n)
    }

    /// Mean negative log-likelihood of the scored tokens; 0 when there are none.
    pub fn unweighted(&self) -> f64 {
        ratio(self.unweighted, self.masked)
    }

    /// The estimate of the negative evidence bound per token, in nats.
    pub fn nelbo(&self) -> f64 {
        self.weighted(LossNorm::MaskableTokens)
    }

    /// The standard error of [`nelbo`](Self::nelbo) over the sequences `parts` that it is the sum of, by the residuals
    /// of a ratio of sums (Cochran, "Sampling techniques", section 6.4); 0 for fewer than two.
    pub fn standard_error(&self, parts: &[Loss]) -> f64 {
        let n = parts.len() as f64;
        if parts.len() < 2 || self.maskable == 0 {
            return 0.0;
        }
        let mean = self.nelbo();
        let squares: f64 = parts.iter().map(|p| (p.weighted - mean * p.maskable as f64).powi(2)).sum();
        (squares / (n - 1.0) * n).sqrt() / self.maskable as f64
    }

    /// Tokens that were scored.
    pub fn masked(&self) -> usize {
        self.masked
    }
}

fn ratio(sum: f64, n: usize) -> f64 {
    if n == 0 { 0.0 } else { sum / n as f64 }
}

/// The times at which a multiple-choice answer is scored: `T/T, (T-1)/T, .., 1/T`.
pub fn score_times(levels: usize) -> impl Iterator<Item = f32> {
    (1..=levels).rev().map(move |t| (t as f64 / levels as f64) as f32)
}

/// The score of an answer: the mean over [`score_times`] of the unweighted losses, a level at which
/// nothing was masked counting 0. Lower is better.
pub fn score(levels: &[Loss]) -> f64 {
    ratio(levels.iter().map(Loss::unweighted).sum(), levels.len())
}
