//! From training sequences to a batch: what is hidden, which rows are scored, and how much each counts.

use super::data::Example;
use crate::diffusion::corrupt::{Corrupted, MaskRule, corrupt_with};
use crate::diffusion::loss::{Loss, LossNorm};
use crate::diffusion::{schedule, shift};
use crate::error::{Error, Result};
use crate::model::TrainBatch;
use crate::rng::Rng;

/// How much a time counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeWeight {
    /// 1 / t: the weight of the evidence bound (the paper's).
    #[default]
    Elbo,
    /// 1 - t: the linear weight of Ye et al., "Beyond autoregression" (2024).
    Linear,
    /// 1: every masked token counts the same.
    Constant,
}

impl TimeWeight {
    /// The weight at time `t`.
    pub fn at(self, t: f32) -> f64 {
        match self {
            TimeWeight::Elbo => schedule::loss_weight(t),
            TimeWeight::Linear => 1.0 - f64::from(t),
            TimeWeight::Constant => 1.0,
        }
    }
}

/// What a network learns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// To fill in masked tokens.
    Diffusion {
        mask_id: u32,
        /// Row i predicts position i + 1.
        shift: bool,
        norm: LossNorm,
        time: TimeWeight,
        rule: MaskRule,
    },
    /// To predict the next token from those before it.
    Autoregressive,
}

impl Objective {
    pub fn shift(self) -> bool {
        match self {
            Objective::Diffusion { shift, .. } => shift,
            Objective::Autoregressive => true,
        }
    }
}

/// A sequence of a batch, as it is scored.
#[derive(Clone, Debug)]
struct Scored {
    t: f32,
    rows: std::ops::Range<usize>,
    /// Maskable tokens that a row predicts.
    maskable: usize,
    /// The example it is of.
    example: usize,
}

/// A batch with what is needed to say what its loss is.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    pub batch: TrainBatch,
    sequences: Vec<Scored>,
    /// Position in its example of what each row predicts.
    positions: Vec<usize>,
    examples: usize,
}

impl Prepared {
    /// Starts over.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.sequences.clear();
        self.positions.clear();
        self.examples = 0;
    }

    /// Adds a training sequence; with `documents` each of its documents is a sequence of its own, which sees no other.
    /// Example `number` has the same time and the same hidden tokens whatever batch it is in.
    ///
    /// # Errors
    /// [`Error::Shape`] for an example whose parts do not fit one another.
    pub fn add(
        &mut self,
        example: &Example,
        number: u64,
        objective: Objective,
        rng: &Rng,
        documents: bool,
    ) -> Result<()> {
        let len = example.ids.len();
        if example.fixed.len() != len || example.documents.iter().sum::<usize>() != len {
            let (expected, got) = (len, example.fixed.len().min(example.documents.iter().sum()));
            return Err(Error::Shape { op: "batch", what: "tokens of an example", expected, got });
        }
        let (t, corrupted) = match objective {
            Objective::Diffusion { mask_id, .. } => {
                let (sequence, step) = (number as u32, (number >> 32) as u32);
                let t = schedule::draw_time(rng, sequence, step);
                (t, corrupt_with(rng, sequence, step, &example.ids, &example.fixed, t, mask_id)?)
            }
            Objective::Autoregressive => {
                let masked = example.fixed.iter().map(|fixed| !fixed).collect();
                (1.0, Corrupted { ids: example.ids.clone(), masked })
            }
        };
        self.add_corrupted(example, &corrupted, t, objective, documents);
        Ok(())
    }

    /// As [`add`](Self::add), at a time and with hidden tokens of the caller's.
    pub fn add_corrupted(
        &mut self,
        example: &Example,
        corrupted: &Corrupted,
        t: f32,
        objective: Objective,
        documents: bool,
    ) {
        let shifted = objective.shift();
        let masked = match objective {
            Objective::Diffusion { rule, mask_id, .. } => rule.masked(corrupted, mask_id),
            Objective::Autoregressive => corrupted.masked.clone(),
        };
        let whole = [example.ids.len()];
        let mut first = 0;
        for &len in if documents { example.documents.as_slice() } else { &whole } {
            let part = first..first + len;
            first += len;
            let masked = &masked[part.clone()];
            let from = self.batch.targets.len();
            let pairs = || shift::predicted(masked, shifted);
            self.batch.batch.push(&corrupted.ids[part.clone()], pairs().map(|(row, _)| row as u32));
            self.batch.targets.extend(pairs().map(|(_, position)| example.ids[part.start + position]));
            self.positions.extend(pairs().map(|(_, position)| part.start + position));
            let fixed = &example.fixed[part];
            let maskable =
                fixed.iter().skip(shift::first_predicted(shifted)).filter(|fixed| !**fixed).count();
            self.sequences.push(Scored {
                t,
                rows: from..self.batch.targets.len(),
                maskable,
                example: self.examples,
            });
        }
        self.examples += 1;
    }

    /// Gives each row its weight; a batch is one of `parts` whose losses are averaged.
    pub fn weigh(&mut self, objective: Objective, parts: usize) {
        let rows = self.batch.targets.len();
        let (time, norm) = match objective {
            Objective::Diffusion { time, norm, .. } => (Some(time), norm),
            Objective::Autoregressive => (None, LossNorm::MaskedTokens),
        };
        let count = match norm {
            LossNorm::MaskedTokens => rows,
            LossNorm::MaskableTokens => self.sequences.iter().map(|s| s.maskable).sum(),
        };
        let share = 1.0 / (count.max(1) as f64 * parts.max(1) as f64);
        self.batch.weights.clear();
        for sequence in &self.sequences {
            let weight = time.map_or(1.0, |time| time.at(sequence.t)) * share;
            self.batch.weights.extend(sequence.rows.clone().map(|_| weight as f32));
        }
    }

    /// The example, and the position in it, that each row predicts.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let examples = self.sequences.iter().flat_map(|s| s.rows.clone().map(|_| s.example));
        examples.zip(self.positions.iter().copied())
    }

    /// Adds what came of the rows to `loss`.
    pub fn score(&self, nll: &[f32], loss: &mut Loss) {
        for Scored { t, rows, maskable, .. } in &self.sequences {
            let nll = nll.get(rows.clone()).unwrap_or_default();
            loss.add(*t, nll.iter().map(|&u| f64::from(u)), *maskable);
        }
    }

    /// The losses of the sequences, one by one.
    pub fn losses(&self, nll: &[f32]) -> Vec<Loss> {
        let one = |Scored { t, rows, maskable, .. }: &Scored| {
            let mut loss = Loss::default();
            let nll = nll.get(rows.clone()).unwrap_or_default();
            loss.add(*t, nll.iter().map(|&u| f64::from(u)), *maskable);
            loss
        };
        self.sequences.iter().map(one).collect()
    }
}
