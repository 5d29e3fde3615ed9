//! A network that learns: weights, gradients, moments, and one optimiser step.

use std::collections::BTreeMap;

use super::batch::{Objective, Prepared};
use super::data::{Cursor, Example, Examples};
use super::lr::Schedule;
use crate::backend::{AdamW, Backend, Backward, Mask, MomentFormat, Optimise, TokenWeight, Trainable};
use crate::diffusion::anneal;
use crate::diffusion::loss::{Loss, LossNorm};
use crate::error::{Error, Result};
use crate::model::{Adapters, Gradients, Learning, Model, TrainArena, TrainSize};
use crate::rng::Rng;

/// Which keys a query sees in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Full,
    Causal,
    /// From causal to full over so many steps ([`anneal`]; section 3.2 of the paper).
    Annealed {
        steps: u64,
    },
}

/// How a network is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    pub objective: Objective,
    pub attention: Attention,
    /// Sequences of one pass.
    pub batch: usize,
    /// Passes whose gradients make one step.
    pub accumulate: usize,
    /// Documents of a sequence do not see one another.
    pub documents: bool,
    pub schedule: Schedule,
    pub betas: [f64; 2],
    pub eps: f64,
    /// Decoupled weight decay of matrices; norms and biases have none.
    pub decay: f64,
    /// Longest gradient; 0 for no clipping.
    pub clip: f64,
    pub token: TokenWeight,
    pub moments: MomentFormat,
    pub seed: u64,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Sums over the step's sequences.
    pub loss: Loss,
    /// Length of the gradient before clipping.
    pub gradient: f64,
    pub lr: f64,
    /// Tokens that went through the network.
    pub tokens: usize,
    /// Loss or gradient was not finite, and the weights were left as they are.
    pub skipped: bool,
}

/// Weights, gradients and moments.
pub struct Learner<B: Optimise + Backward> {
    pub model: Model<B>,
    pub adapters: Option<Adapters<B>>,
    pub recipe: Recipe,
    pub(super) states: BTreeMap<String, B::State>,
    gradients: Gradients<B>,
    arena: TrainArena<B>,
    /// Steps tried, skipped ones included: what schedules and annealing count.
    pub step: u64,
    /// Steps that changed the weights: what AdamW's bias correction counts.
    pub updates: u64,
    pub skipped: u64,
    pub cursor: Cursor,
    prepared: Prepared,
}

/// A parameter that is trained, and how many numbers it has.
pub type Trained = Vec<(String, usize)>;

impl<B: Optimise + Backward> Learner<B> {
    /// Prepares to train the parameters of `trained` (and the adapters) of `model` on sequences of `length` tokens.
    ///
    /// # Errors
    /// [`Error::Memory`] when gradients, moments or activations do not fit; [`Error::Request`] for a length beyond the
    /// model's positions.
    pub fn new(
        mut model: Model<B>,
        mut adapters: Option<Adapters<B>>,
        trained: &Trained,
        recipe: Recipe,
        length: usize,
        checkpoint: bool,
        cursor: Cursor,
    ) -> Result<Self> {
        let backend = model.backend().clone();
        let tokens = recipe.batch.checked_mul(length).filter(|&n| u32::try_from(n).is_ok()).ok_or_else(|| {
            Error::request(format!("--batch {} of --length {length}: more than 2^32 tokens", recipe.batch))
        })?;
        let rank = adapters.as_ref().map_or(0, |a| a.rank);
        let size = TrainSize { tokens, rows: tokens, length, checkpoint, rank };
        let arena = TrainArena::new(&backend, model.config(), size)?;
        let mut named = trained.clone();
        named.extend(adapters.iter().flat_map(Adapters::named));
        let gradients = Gradients::new(&backend, named.iter().cloned())?;
        let mut states = BTreeMap::new();
        let wanted: std::collections::BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        for (name, parameter) in every(&mut model, adapters.as_mut())? {
            if wanted.contains(name.as_str()) {
                states.insert(name, backend.state(parameter, recipe.moments)?);
            }
        }
        if let Some((name, _)) = named.iter().find(|(name, _)| !states.contains_key(name)) {
            return Err(Error::request(format!("parameter {name}: the network has none of that name")));
        }
        Ok(Self {
            model,
            adapters,
            recipe,
            states,
            gradients,
            arena,
            step: 0,
            updates: 0,
            skipped: 0,
            cursor,
            prepared: Prepared::default(),
        })
    }

    /// Gradients of the last step, before clipping.
    pub fn gradients(&self) -> &Gradients<B> {
        &self.gradients
    }

    /// One optimiser step on the next examples of `data`.
    ///
    /// # Errors
    /// Those of the data and the backend. A loss or gradient that is not finite is no error: the step is skipped.
    pub fn step(&mut self, data: &dyn Examples) -> Result<StepReport> {
        let recipe = self.recipe;
        let backend = self.model.backend().clone();
        let rng = Rng::new(recipe.seed);
        self.gradients.clear(&backend)?;
        let mut report = StepReport { step: self.step + 1, ..StepReport::default() };
        let mut cursor = self.cursor.clone();
        for part in 0..recipe.accumulate.max(1) {
            self.prepared.clear();
            for _ in 0..recipe.batch {
                let number = cursor.examples;
                let example = data.next(&mut cursor)?;
                report.tokens += example.ids.len();
                self.prepared.add(&example, number, recipe.objective, &rng, recipe.documents)?;
            }
            self.prepared.weigh(recipe.objective, recipe.accumulate);
            let pass = self.step * recipe.accumulate.max(1) as u64 + part as u64;
            let nll = self.pass(pass, true)?;
            self.prepared.score(&nll, &mut report.loss);
        }
        // Only now: a step that fails, or is broken off, has not happened.
        self.cursor = cursor;
        let mut sum = 0.0;
        for (_, len, gradient) in self.gradients.iter() {
            sum += backend.sum_of_squares(gradient, len)?;
        }
        report.gradient = sum.sqrt();
        report.lr = recipe.schedule.at(self.step);
        report.skipped = !(report.gradient.is_finite() && report.loss.unweighted().is_finite());
        self.step += 1;
        if report.skipped {
            self.skipped += 1;
            return Ok(report);
        }
        self.updates += 1;
        let clipped = recipe.clip > 0.0;
        let scale = if clipped { (recipe.clip / (report.gradient + 1e-6)).min(1.0) } else { 1.0 };
        let updates = self.updates;
        let Self { model, adapters, states, gradients, .. } = self;
        for (number, (name, parameter)) in every(model, adapters.as_mut())?.into_iter().enumerate() {
            let (Some(state), Some(gradient)) = (states.get_mut(&name), gradients.get(&name)) else { continue };
            let decay = if matches!(parameter, Trainable::Matrix(_)) { recipe.decay } else { 0.0 };
            let step = AdamW {
                lr: report.lr,
                betas: recipe.betas,
                eps: recipe.eps,
                decay,
                step: updates,
                scale,
                rng,
                parameter: number as u32,
            };
            backend.step(parameter, gradient, state, step)?;
        }
        Ok(report)
    }

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
        let jobs: Vec<(usize, &Example)> =
            (0..draws.max(1)).flat_map(|_| examples).enumerate().collect();
        let total = jobs.len();
        for group in jobs.chunks(self.recipe.batch.max(1)) {
            each()?;
            self.prepared.clear();
            for &(number, example) in group {
                match objective {
                    Objective::Autoregressive => {
                        self.prepared.add(example, number as u64, objective, &rng, self.recipe.documents)?;
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
                        self.prepared.add_corrupted(example, &corrupted, t, objective, self.recipe.documents);
                    }
                }
            }
            self.prepared.weigh(objective, 1);
            let nll = self.pass(u64::MAX, false)?;
            losses.extend(self.prepared.losses(&nll));
        }
        Ok(losses)
    }

    /// A pass over what is prepared; evaluation is done with full (or causal) attention.
    fn pass(&mut self, number: u64, learn: bool) -> Result<Vec<f32>> {
        let recipe = self.recipe;
        let length = self.arena.size().length;
        let words;
        let mask = match recipe.attention {
            Attention::Causal => Mask::Causal,
            Attention::Annealed { steps } if learn && anneal::ratio(self.step, steps) < 1.0 => {
                let ratio = anneal::ratio(self.step, steps);
                words = anneal::annealed_words(&Rng::new(recipe.seed), number as u32, length, ratio);
                Mask::Annealed { words: &words, stride: anneal::stride(length) }
            }
            Attention::Annealed { .. } | Attention::Full => Mask::Full,
        };
        let learning = Learning { adapters: self.adapters.as_ref(), token: recipe.token };
        let gradients = if learn { Some(&mut self.gradients) } else { None };
        let Self { model, arena, prepared, .. } = self;
        let backend = model.backend().clone();
        backend.run(|| model.train_pass(&prepared.batch, arena, mask, learning, gradients))
    }

    /// Where the first number that is not finite is, in the order of a forward pass: a weight, or a gradient.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn diagnose(&mut self) -> Result<String> {
        let backend = self.model.backend().clone();
        let Self { model, adapters, gradients, states, .. } = self;
        for (name, parameter) in every(model, adapters.as_mut())? {
            let numbers = backend.read_parameter(parameter, states.get(&name))?;
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                return Ok(format!("weight {name}, element {at}, is {}", numbers[at]));
            }
        }
        // The way back begins at the head, so the last parameter with a bad gradient is nearest to the cause.
        let mut worst = None;
        for (name, len, gradient) in gradients.iter() {
            if !backend.sum_of_squares(gradient, len)?.is_finite() {
                worst = Some(name);
            }
        }
        Ok(match worst {
            Some(name) => format!("all weights are finite; the gradient of {name} is not"),
            None => "all weights and gradients are finite; the loss is not, or the gradient's length overflows".into(),
        })
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

/// Every parameter and every half of an adapter, by name, to be changed.
///
/// # Errors
/// Those of [`Model::parameters_mut`].
pub(super) fn every<'a, B: Optimise>(
    model: &'a mut Model<B>,
    adapters: Option<&'a mut Adapters<B>>,
) -> Result<Vec<(String, Trainable<'a, B>)>> {
    let mut all = model.parameters_mut()?;
    if let Some(adapters) = adapters {
        all.extend(adapters.each_mut());
    }
    Ok(all)
}

/// Mean and standard error of the NELBO (of sequences of equal length), and the mean unweighted loss.
pub fn summary(losses: &[Loss]) -> (f64, f64, f64) {
    let n = losses.len().max(1) as f64;
    let mean = losses.iter().map(|l| l.weighted(LossNorm::MaskableTokens)).sum::<f64>() / n;
    let variance = losses.iter().map(|l| (l.nelbo() - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let mut all = Loss::default();
    for loss in losses {
        all.merge(loss);
    }
    (mean, (variance / n).sqrt(), all.unweighted())
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
