//! A network that learns: weights, gradients, moments, and one optimiser step.

use std::collections::BTreeMap;

use super::batch::{Objective, Prepared};
use super::data::{Cursor, Example, Examples};
use super::lr::Schedule;
use crate::backend::{AdamW, Backward, Mask, MomentFormat, Optimise, TokenWeight, Trainable};
use crate::diffusion::anneal;
use crate::diffusion::loss::Loss;
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

/// What a learner trains, and in how much room.
pub struct Shape {
    /// Parameters with how many numbers each has; adapters not among them.
    pub trained: Vec<(String, usize)>,
    /// They are stored in bf16, beside a master copy.
    pub narrow: bool,
    /// Tokens of the longest sequence.
    pub length: usize,
    /// Keep the input of each layer only ([`TrainSize::checkpoint`]).
    pub checkpoint: bool,
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
    /// Matrices are stored in bf16, beside a master copy.
    pub(super) narrow: bool,
    /// Steps tried, skipped ones included: what schedules and annealing count.
    pub step: u64,
    /// Steps that changed the weights: what AdamW's bias correction counts.
    pub updates: u64,
    pub skipped: u64,
    pub skipped_in_row: u64,
    pub cursor: Cursor,
    prepared: Prepared,
}

impl<B: Optimise + Backward> Learner<B> {
    /// Prepares to train `model`, and the adapters.
    ///
    /// # Errors
    /// [`Error::Memory`] when gradients, moments or activations do not fit; [`Error::Request`] for a length beyond the
    /// model's positions.
    pub fn new(
        mut model: Model<B>,
        mut adapters: Option<Adapters<B>>,
        shape: Shape,
        recipe: Recipe,
        cursor: Cursor,
    ) -> Result<Self> {
        let Shape { trained, narrow, length, checkpoint } = shape;
        let backend = model.backend().clone();
        let tokens =
            recipe.batch.checked_mul(length).filter(|&n| u32::try_from(n).is_ok()).ok_or_else(|| {
                Error::request(format!(
                    "--batch {} of --length {length}: more than 2^32 tokens",
                    recipe.batch
                ))
            })?;
        let rank = adapters.as_ref().map_or(0, |a| a.rank);
        let size = TrainSize { tokens, rows: tokens, length, checkpoint, rank };
        let arena = TrainArena::new(&backend, model.config(), size)?;
        let mut named = trained;
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
            narrow,
            step: 0,
            updates: 0,
            skipped: 0,
            skipped_in_row: 0,
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
        let rng = Rng::new(recipe.seed);
        let mut cursor = self.cursor.clone();
        let report = self.step_with(|_, prepared| {
            for _ in 0..recipe.batch {
                let number = cursor.examples;
                let example = data.next(&mut cursor)?;
                prepared.add(&example, number, recipe.objective, &rng, recipe.documents)?;
            }
            Ok(())
        })?;
        // Only now: a step that fails, or is broken off, has not happened.
        self.cursor = cursor;
        Ok(report)
    }

    /// One optimiser step on what `fill` puts into the batch of each pass.
    ///
    /// # Errors
    /// Those of `fill` and the backend.
    pub fn step_with(
        &mut self,
        mut fill: impl FnMut(usize, &mut Prepared) -> Result<()>,
    ) -> Result<StepReport> {
        let recipe = self.recipe;
        let backend = self.model.backend().clone();
        let rng = Rng::new(recipe.seed);
        self.gradients.clear(&backend)?;
        let mut report = StepReport { step: self.step + 1, ..StepReport::default() };
        for part in 0..recipe.accumulate.max(1) {
            self.prepared.clear();
            fill(part, &mut self.prepared)?;
            report.tokens += self.prepared.batch.batch.tokens();
            self.prepared.weigh(recipe.objective, recipe.accumulate);
            let pass = self.step * recipe.accumulate.max(1) as u64 + part as u64;
            let nll = self.pass(pass, true)?;
            self.prepared.score(&nll, &mut report.loss);
        }
        report.lr = recipe.schedule.at(self.step);
        let lens: Vec<usize> = self.gradients.iter().map(|(_, len, _)| len).collect();
        let mut control = backend.control(&lens)?;
        let settings = AdamW {
            lr: report.lr,
            betas: recipe.betas,
            eps: recipe.eps,
            decay: recipe.decay,
            clip: recipe.clip,
            unscale: 1.0,
            step: self.updates + 1,
            rng,
        };
        backend.prepare(&mut control, settings)?;
        for (number, (_, _, gradient)) in self.gradients.iter().enumerate() {
            backend.measure(&mut control, number, gradient)?;
        }
        backend.settle(&mut control)?;
        let outcome = backend.outcome(&control)?;
        report.gradient = outcome.gradient;
        report.skipped = outcome.skipped || !report.loss.unweighted().is_finite();
        self.step += 1;
        if report.skipped {
            self.skipped += 1;
            self.skipped_in_row += 1;
            return Ok(report);
        }
        self.skipped_in_row = 0;
        self.updates += 1;
        let Self { model, adapters, states, gradients, .. } = self;
        for (number, (name, parameter)) in every(model, adapters.as_mut())?.into_iter().enumerate() {
            let (Some(state), Some(gradient)) = (states.get_mut(&name), gradients.get(&name)) else {
                continue;
            };
            let decays = matches!(parameter, Trainable::Matrix(_));
            backend.step(parameter, gradient, state, &control, number as u32, decays)?;
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
        // Without times and masks every draw is the same.
        let draws = if objective == Objective::Autoregressive { 1 } else { draws };
        let jobs: Vec<(usize, &Example)> = (0..draws.max(1)).flat_map(|_| examples).enumerate().collect();
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
            None => {
                "all weights and gradients are finite; the loss is not, or the gradient's length overflows"
                    .into()
            }
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
