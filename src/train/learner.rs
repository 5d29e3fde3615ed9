//! A network that learns: weights, gradients, moments, and one optimiser step.

use std::collections::BTreeMap;

use super::ahead::Batches;
use super::batch::{Objective, Prepared};
use super::data::{Cursor, Examples};
use super::loss_scale::LossScale;
use super::lr::Schedule;
use super::memory::{Fit, TrainMemory};
use super::recorded::{MaskKind, Part, Recorded};
use crate::anneal;
use crate::backend::{AdamW, Backward, Mask, MomentFormat, Optimise, TokenWeight, Trainable};
use crate::diffusion::loss::Loss;
use crate::error::{Error, Result};
use crate::meter;
use crate::model::{Adapters, Gradients, Learning, Model, PassMask, TrainArena, TrainSize};
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
    /// It was skipped, and the next one has a smaller loss scale, which may be all it needs.
    pub overflowed: bool,
    /// Factor on the losses of the next step ([`LossScale`]); 1 but for f16.
    pub loss_scale: f64,
}

/// Weights, gradients and moments. Machines record operations on these buffers, so none of them is ever exchanged for
/// another.
pub struct Learner<B: Optimise + Backward> {
    pub(super) model: Model<B>,
    pub(super) adapters: Option<Adapters<B>>,
    pub recipe: Recipe,
    pub(super) states: BTreeMap<String, B::State>,
    gradients: Gradients<B>,
    arena: TrainArena<B>,
    control: B::Control,
    recorded: Recorded<B>,
    /// The recipe of what was recorded.
    recorded_by: Recipe,
    /// Matrices are stored in bf16, beside a master copy.
    pub(super) narrow: bool,
    /// Steps tried, skipped ones included: what schedules and annealing count.
    pub step: u64,
    /// Steps that changed the weights: what AdamW's bias correction counts.
    pub updates: u64,
    pub skipped: u64,
    /// Steps skipped in a row, without those that a smaller loss scale may mend.
    pub skipped_in_row: u64,
    pub loss_scale: LossScale,
    pub cursor: Cursor,
    memory: TrainMemory,
    /// Made while the last step went on.
    next: Option<Batches>,
    /// Memory for other batches.
    spare: Vec<Prepared>,
}

impl<B: Optimise + Backward> Learner<B> {
    /// Prepares to train `model`, and the adapters.
    ///
    /// # Errors
    /// [`Error::Memory`] when gradients, moments or activations do not fit, with what would; [`Error::Request`] for a
    /// length beyond the model's positions.
    pub fn new(
        mut model: Model<B>,
        mut adapters: Option<Adapters<B>>,
        shape: Shape,
        recipe: Recipe,
        cursor: Cursor,
    ) -> Result<Self> {
        let backend = model.backend().clone();
        let (length, checkpoint) = (shape.length, shape.checkpoint);
        let tokens =
            recipe.batch.checked_mul(length).filter(|&n| u32::try_from(n).is_ok()).ok_or_else(|| {
                Error::request(format!(
                    "--batch {} of --length {length}: more than 2^32 tokens",
                    recipe.batch
                ))
            })?;
        let rank = adapters.as_ref().map_or(0, |a| a.rank);
        let size = TrainSize { tokens, rows: tokens, length, checkpoint, rank };
        let mut named = shape.trained.clone();
        named.extend(adapters.iter().flat_map(Adapters::named));
        let config = model.config().clone();
        let lens: Vec<usize> = named.iter().map(|(_, len)| *len).collect();
        let numbers = lens.iter().sum();
        let masters = if shape.narrow || backend.number_bytes()[0] < 4 { numbers } else { 0 };
        let fit = Fit {
            backend: &backend,
            config: &config,
            recipe: &recipe,
            shape: &shape,
            rank,
            numbers: [numbers, masters],
        };
        let memory = fit.check()?;
        let explain = |error| fit.explain(error);
        let arena = TrainArena::new(&backend, &config, size).map_err(explain)?;
        let gradients = Gradients::new(&backend, named.iter().cloned()).map_err(explain)?;
        let control = backend.control(&lens).map_err(explain)?;
        let mut states = BTreeMap::new();
        let wanted: std::collections::BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        for (name, parameter) in every(&mut model, adapters.as_mut())? {
            if wanted.contains(name.as_str()) {
                states.insert(name, backend.state(parameter, recipe.moments).map_err(explain)?);
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
            control,
            recorded: Recorded::default(),
            recorded_by: recipe,
            narrow: shape.narrow,
            step: 0,
            updates: 0,
            skipped: 0,
            skipped_in_row: 0,
            loss_scale: LossScale::new(backend.scales_losses()),
            cursor,
            memory,
            next: None,
            spare: Vec::new(),
        })
    }

    /// What it takes beside the weights.
    pub fn memory(&self) -> TrainMemory {
        self.memory
    }

    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    pub fn adapters(&self) -> Option<&Adapters<B>> {
        self.adapters.as_ref()
    }

    /// Gradients of the last step, before clipping, and with the loss scale still on them.
    pub fn gradients(&self) -> &Gradients<B> {
        &self.gradients
    }

    /// The numbers of all parameters that are trained, of their master copies where they have one.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn parameters(&mut self) -> Result<Vec<(String, Vec<f32>)>> {
        let backend = self.model.backend().clone();
        let Self { model, adapters, states, .. } = self;
        let mut all = Vec::new();
        for (name, parameter) in every(model, adapters.as_mut())? {
            let Some(state) = states.get(&name) else { continue };
            let numbers = backend.read_parameter(parameter, Some(state))?;
            all.push((name, numbers));
        }
        Ok(all)
    }

    /// Replaces the numbers of parameters, those of their master copies included: what a machine rounded when it took the
    /// weights in is then exact where it is changed.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn write_parameters(&mut self, mut numbers: impl FnMut(&str) -> Option<Vec<f32>>) -> Result<()> {
        let backend = self.model.backend().clone();
        let Self { model, adapters, states, .. } = self;
        for (name, parameter) in every(model, adapters.as_mut())? {
            let Some(state) = states.get_mut(&name) else { continue };
            if let Some(numbers) = numbers(&name) {
                backend.write_parameter(parameter, Some(state), &numbers)?;
            }
        }
        Ok(())
    }

    /// One optimiser step on the next examples of `data`. The batches of the step after it are made meanwhile.
    ///
    /// # Errors
    /// Those of the data and the backend. A loss or gradient that is not finite is no error: the step is skipped.
    pub fn step(&mut self, data: &dyn Examples) -> Result<StepReport> {
        let recipe = self.recipe;
        let batches = match self.next.take() {
            Some(batches) if batches.from == self.cursor && batches.recipe == recipe => batches,
            _ => Batches::new(data, &self.cursor, &recipe, std::mem::take(&mut self.spare))?,
        };
        let spare = std::mem::take(&mut self.spare);
        let (report, next) = std::thread::scope(|scope| {
            let to = &batches.to;
            let next = scope.spawn(move || Batches::new(data, to, &recipe, spare));
            let report = self.step_on(&batches.parts);
            (report, next.join())
        });
        // What is wrong with the examples to come is said when it is their turn.
        self.next = next.ok().and_then(Result::ok);
        let report = report?;
        // Only now: a step that fails, or is broken off, has not happened.
        self.cursor = batches.to;
        self.spare = batches.parts;
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
        let mut parts = std::mem::take(&mut self.spare);
        parts.resize_with(recipe.accumulate.max(1), Prepared::default);
        for (part, prepared) in parts.iter_mut().enumerate() {
            prepared.clear();
            fill(part, prepared)?;
            prepared.weigh(recipe.objective, recipe.accumulate);
        }
        let report = self.step_on(&parts);
        self.spare = parts;
        report
    }

    /// The recipe; what was recorded by another one is forgotten.
    fn current_recipe(&mut self) -> Recipe {
        if self.recorded_by != self.recipe {
            (self.recorded, self.recorded_by) = (Recorded::default(), self.recipe);
        }
        self.recipe
    }

    fn step_on(&mut self, parts: &[Prepared]) -> Result<StepReport> {
        let _work = meter::range("train step", self.step as u32);
        let recipe = self.current_recipe();
        let backend = self.model.backend().clone();
        let lr = recipe.schedule.at(self.step);
        let Recipe { betas, eps, decay, clip, .. } = recipe;
        let (unscale, rng) = (1.0 / self.loss_scale.factor(), Rng::new(recipe.seed));
        let step = AdamW { lr, betas, eps, decay, clip, unscale, step: self.updates + 1, rng };
        backend.prepare(&mut self.control, step)?;
        let mut report = StepReport { step: self.step + 1, lr, ..StepReport::default() };
        let Self { gradients, recorded, .. } = self;
        // SAFETY: the gradients are this learner's, and are never exchanged for others.
        unsafe { recorded.run(&backend, Part::Clear, || gradients.clear(&backend)) }?;
        for (part, prepared) in parts.iter().enumerate() {
            report.tokens += prepared.batch.batch.tokens();
            let pass = self.step * parts.len() as u64 + part as u64;
            let nll = self.pass(prepared, pass, true)?;
            prepared.score(&nll, &mut report.loss);
        }
        let update = meter::range("update", self.step as u32);
        self.update()?;
        let outcome = backend.outcome(&self.control)?;
        drop(update);
        if meter::is_on() {
            backend.settle_meter()?;
        }
        report.gradient = outcome.gradient;
        report.skipped = outcome.skipped;
        self.step += 1;
        report.overflowed = self.loss_scale.after(report.skipped);
        report.loss_scale = self.loss_scale.factor();
        if report.skipped {
            self.skipped += 1;
            self.skipped_in_row += u64::from(!report.overflowed);
        } else {
            self.skipped_in_row = 0;
            self.updates += 1;
        }
        Ok(report)
    }

    /// Length of the gradients, clipping, and a step of every parameter, unless a number is not finite.
    fn update(&mut self) -> Result<()> {
        let backend = self.model.backend().clone();
        let Self { model, adapters, states, gradients, control, recorded, .. } = self;
        // A replay changes the weights without asking for them: nobody else may hold them.
        model.owns_parameters()?;
        let work = || {
            for (number, (_, _, gradient)) in gradients.iter().enumerate() {
                backend.measure(control, number, gradient)?;
            }
            backend.settle(control)?;
            for (number, (name, parameter)) in every(model, adapters.as_mut())?.into_iter().enumerate() {
                let (Some(state), Some(gradient)) = (states.get_mut(&name), gradients.get(&name)) else {
                    continue;
                };
                // Norms and biases do not decay.
                let decays = matches!(parameter, Trainable::Matrix(_));
                backend.step(parameter, gradient, state, control, number as u32, decays)?;
            }
            Ok(())
        };
        // SAFETY: gradients, parameters, their states and the control words are this learner's, and are never exchanged
        // for others.
        unsafe { recorded.run(&backend, Part::Update, work) }
    }

    /// A pass over what is prepared; evaluation is done with full (or causal) attention.
    pub(super) fn pass(&mut self, prepared: &Prepared, number: u64, learn: bool) -> Result<Vec<f32>> {
        let recipe = self.current_recipe();
        let ratio = match recipe.attention {
            Attention::Annealed { steps } if learn => anneal::ratio(self.step, steps),
            _ => 1.0,
        };
        let (kind, mask) = match recipe.attention {
            Attention::Causal => (MaskKind::Causal, PassMask::Given(Mask::Causal)),
            Attention::Annealed { .. } if ratio < 1.0 => (MaskKind::Drawn, PassMask::Drawn),
            Attention::Annealed { .. } | Attention::Full => (MaskKind::Full, PassMask::Given(Mask::Full)),
        };
        let factor = if learn { self.loss_scale.factor() } else { 1.0 };
        let Self { model, adapters, arena, gradients, control, recorded, .. } = self;
        let learning = Learning { adapters: adapters.as_ref(), token: recipe.token };
        let backend = model.backend().clone();
        backend.run(|| {
            let shape = model.stage_pass(&prepared.batch, arena, factor)?;
            if kind == MaskKind::Drawn {
                arena.draw_mask(&backend, recipe.seed, number as u32, ratio)?;
            }
            let part = Part::Pass { shape: shape.clone(), mask: kind, learn };
            let work = || {
                let gradients = if learn { Some(&mut *gradients) } else { None };
                model.run_pass(&shape, arena, mask, learning, gradients)
            };
            // SAFETY: weights, adapters, gradients and the arena are this learner's, and are never exchanged for others; a
            // mask that was drawn lies in the arena, and the other kinds have no memory.
            unsafe { recorded.run(&backend, part, work) }?;
            let rows = prepared.batch.batch.rows();
            if learn {
                backend.watch(control, arena.losses(), rows)?;
            }
            model.pass_losses(arena, rows)
        })
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
