//! Training on the host SIMT machine: the golden cases, and steps that follow the CPU's.

use crate::common::{GOLDEN, fixture};
use crate::train_cases::{Bounds, EXACT};
use lacuna::backend::cpu::Cpu;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::backend::cuda::{Counts, Cuda, Device};
use lacuna::backend::{Backward, MomentFormat, Optimise, TokenWeight};
use lacuna::diffusion::corrupt::{Corrupted, MaskRule};
use lacuna::diffusion::loss::LossNorm;
use lacuna::element::Dtype;
use lacuna::io::ModelFiles;
use lacuna::model::{Model, parameters_of};
use lacuna::rng::{Purpose, Rng};
use lacuna::train::batch::{Objective, TimeWeight};
use lacuna::train::learner::{Attention, Learner, Recipe, Shape, StepReport};
use lacuna::train::lr::{Schedule, ScheduleKind};
use lacuna::train::{Cursor, Example};

/// A machine that does not watch every access: `lacuna selftest` and `kernels.rs` do that.
fn machine(dtype: Dtype) -> Cuda<Simt> {
    Cuda::with_dtype(Simt::new(Options { seed: 0, check: false }), dtype)
}

fn trainable<B: Optimise + Backward>(backend: B, folder: &str) -> Model<B> {
    let files = ModelFiles::open(&fixture("golden").join(folder)).unwrap();
    Model::load_trainable(backend, &files, |_| Some(Dtype::F32)).unwrap()
}

#[test]
fn golden_losses_and_every_gradient() {
    let load = |folder: &str| trainable(machine(Dtype::F32), folder);
    let (losses, gradients) = crate::train_cases::losses_and_every_gradient(&load, &GOLDEN, EXACT);
    assert!(losses >= 40 && gradients >= 400, "only {losses} losses, {gradients} gradients");
}

#[test]
fn golden_steps_of_adamw() {
    let load = |folder: &str| trainable(machine(Dtype::F32), folder);
    let checked = crate::train_cases::steps_of_adamw(&load, &GOLDEN);
    assert!(checked > 100_000, "only {checked} numbers");
}

/// In 16 bits every number on the way is rounded to 8 (bf16) or 11 (f16) digits. Where terms cancel, as in the bias of the first
/// norm, a parameter's gradient is off by more than all of them together. PyTorch 2.15 in bf16 is off by 2.2e-2 and 2.3e-2 on the two
/// cases of the GPT-2, its worst parameter by 3.2e-2; under autocast by 1.5e-2 and 2.2e-2, worst 3.1e-2.
#[test]
fn golden_gradients_in_16_bits() {
    let golden = [(GOLDEN[0].0, &GOLDEN[0].1[..1]), (GOLDEN[2].0, &GOLDEN[2].1[..1])];
    for (dtype, bounds) in [
        (Dtype::Bf16, Bounds { loss: 1e-2, gradient: 4e-2, together: 2.5e-2, element: 1e-1 }),
        (Dtype::F16, Bounds { loss: 2e-3, gradient: 1e-2, together: 4e-3, element: 2e-2 }),
    ] {
        let load = |folder: &str| trainable(machine(dtype), folder);
        let (losses, gradients) = crate::train_cases::losses_and_every_gradient(&load, &golden, bounds);
        assert!(losses >= 10 && gradients >= 100, "only {losses} losses, {gradients} gradients");
    }
}

const LENGTH: usize = 40;

fn recipe(vocab: usize, attention: Attention, moments: MomentFormat) -> Recipe {
    Recipe {
        objective: Objective::Diffusion {
            mask_id: vocab as u32 - 1,
            shift: true,
            norm: LossNorm::MaskedTokens,
            time: TimeWeight::Elbo,
            rule: MaskRule::Explicit,
        },
        attention,
        batch: 2,
        accumulate: 2,
        documents: false,
        schedule: Schedule { kind: ScheduleKind::Constant, warmup: 2, steps: 1000, peak: 3e-3, floor: 0.0 },
        betas: [0.9, 0.95],
        eps: 1e-8,
        decay: 0.1,
        clip: 1.0,
        token: TokenWeight { alpha: 1.0, gamma: 0.5 },
        moments,
        seed: 11,
    }
}

fn learner<B: Optimise + Backward>(backend: B, folder: &str, recipe: Recipe, checkpoint: bool) -> Learner<B> {
    let model = trainable(backend, folder);
    let entries = parameters_of(model.config());
    let trained = entries.into_iter().map(|e| (e.parameter, e.shape.iter().product())).collect();
    let shape = Shape { trained, narrow: false, length: LENGTH, checkpoint };
    Learner::new(model, None, shape, recipe, Cursor { examples: 0, per_source: Vec::new() }).unwrap()
}

/// A step on text that repeats itself, so that there is something to learn.
fn step<B: Optimise + Backward>(learner: &mut Learner<B>) -> StepReport {
    let (number, recipe) = (learner.step, learner.recipe);
    let vocab = learner.model().config().vocab_size as u32;
    let rng = Rng::new(recipe.seed);
    let report = learner.step_with(|part, prepared| {
        for row in 0..recipe.batch {
            let sequence = (number * 4) as u32 + (2 * part + row) as u32;
            let first = rng.below(vocab - 2, Purpose::Weights, sequence, 0, 0);
            let ids: Vec<u32> = (0..LENGTH as u32).map(|i| 1 + (first + 3 * i) % (vocab - 2)).collect();
            let example = Example { fixed: vec![false; LENGTH], documents: vec![LENGTH], ids };
            prepared.add(&example, sequence.into(), recipe.objective, &rng, false)?;
        }
        Ok(())
    });
    report.unwrap()
}

/// The bits of all parameters.
fn bits<B: Optimise + Backward>(learner: &mut Learner<B>) -> Vec<u32> {
    learner.parameters().unwrap().into_iter().flat_map(|(_, x)| x).map(f32::to_bits).collect()
}

#[test]
fn ten_steps_follow_the_cpu_and_give_the_same_bits_twice() {
    for (folder, attention, moments, checkpoint) in [
        ("gpt2-tiny", Attention::Annealed { steps: 8 }, MomentFormat::F32, false),
        ("llama-tiny", Attention::Full, MomentFormat::Bf16, true),
        ("llama-hd128", Attention::Causal, MomentFormat::Q8, false),
    ] {
        let vocab = ModelFiles::open(&fixture("golden").join(folder)).unwrap().config.vocab_size;
        let recipe = recipe(vocab, attention, moments);
        let mut cpu = learner(Cpu::<f32>::new(None).unwrap(), folder, recipe, checkpoint);
        let mut cards = [0, 1].map(|_| learner(machine(Dtype::F32), folder, recipe, checkpoint));
        let mut losses = Vec::new();
        for number in 1..=10 {
            if number == 7 {
                // What was recorded is of another recipe.
                let token = TokenWeight { alpha: 0.5, gamma: 1.0 };
                (cpu.recipe.token, cpu.recipe.clip) = (token, 0.3);
                cards.iter_mut().for_each(|card| (card.recipe.token, card.recipe.clip) = (token, 0.3));
            }
            let expected = step(&mut cpu);
            let [one, other] = cards.each_mut().map(step);
            assert_eq!(one, other, "{folder}, step {number}");
            assert_eq!((one.step, one.tokens, one.skipped), (number, 4 * LENGTH, false));
            let (got, want) = (one.loss.unweighted(), expected.loss.unweighted());
            assert!((got - want).abs() < 1e-4 * want, "{folder}, step {number}: {got}, expected {want}");
            let (got, want) = (one.gradient, expected.gradient);
            assert!((got - want).abs() < 1e-3 * want, "{folder}, step {number}: {got}, expected {want}");
            losses.push(expected.loss.unweighted());
        }
        assert!(losses[9] < losses[0], "{folder}: {losses:?}");
        let [one, other] = cards.each_mut().map(bits);
        assert!(one == other, "{folder}: two runs gave different weights");
    }
}

/// From the third step of a shape on everything is replayed: gradients cleared, a pass, an update.
#[test]
fn a_step_is_three_replays() {
    let backend = machine(Dtype::F32);
    let mut recipe = recipe(97, Attention::Annealed { steps: 100 }, MomentFormat::F32);
    recipe.accumulate = 1;
    let mut learner = learner(backend.clone(), "gpt2-tiny", recipe, false);
    let mut before = backend.device().counts();
    for number in 1..=8 {
        // As many hidden tokens in every step, at other places.
        let report = learner.step_with(|_, prepared| {
            for row in 0..recipe.batch {
                let ids: Vec<u32> = (0..LENGTH as u32).map(|i| 1 + (row as u32 + number * i) % 90).collect();
                let masked: Vec<bool> =
                    (0..LENGTH).map(|i| i > 0 && (i + number as usize).is_multiple_of(3)).collect();
                let hide = |(&id, &masked): (&u32, &bool)| if masked { 96 } else { id };
                let corrupted = Corrupted { ids: ids.iter().zip(&masked).map(hide).collect(), masked };
                let example = Example { fixed: vec![false; LENGTH], documents: vec![LENGTH], ids };
                prepared.add_corrupted(&example, &corrupted, 0.4, recipe.objective, false);
            }
            Ok(())
        });
        assert!(!report.unwrap().skipped);
        let after = backend.device().counts();
        let Counts { launches, replays, recorded, allocations, .. } = after - before;
        before = after;
        assert_eq!(allocations, 0, "step {number}");
        match number {
            1 => assert!(replays == 0 && recorded == 0 && launches > 100, "{launches} launches"),
            2 => assert!(replays == 3 && recorded > 100, "{recorded} recorded"),
            // The bits of the mask, and a look at the losses.
            _ => assert_eq!((replays, recorded, launches), (3, 0, 2), "step {number}"),
        }
    }
}

/// Formats in which only the masters are in f32 learn the same thing; f16 by way of a loss scale.
#[test]
fn sixteen_bits_learn_too() {
    let recipe = recipe(97, Attention::Full, MomentFormat::Q8);
    let mut exact = learner(machine(Dtype::F32), "gpt2-tiny", recipe, false);
    let exact: Vec<f64> = (0..20).map(|_| step(&mut exact).loss.unweighted()).collect();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let mut narrow = learner(machine(dtype), "gpt2-tiny", recipe, false);
        let reports: Vec<StepReport> = (0..20).map(|_| step(&mut narrow)).collect();
        for (report, exact) in reports.iter().zip(&exact) {
            let loss = report.loss.unweighted();
            assert!((loss - exact).abs() < 5e-2 * exact, "{dtype}, step {}: {loss}, {exact}", report.step);
        }
        let scale = reports[19].loss_scale;
        assert!(if dtype == Dtype::F16 { scale > 1.0 } else { scale == 1.0 }, "{dtype}: {scale}");
    }
}

/// Without a finite gradient nothing changes, and the diagnosis says where it began.
#[test]
fn a_gradient_that_is_not_finite_is_named_and_changes_nothing() {
    let recipe = recipe(97, Attention::Full, MomentFormat::F32);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let mut learner = learner(machine(dtype), "gpt2-tiny", recipe, false);
        assert!(!step(&mut learner).skipped || dtype == Dtype::F16);
        // Finite, and so is what it makes of a row; its product with the next number is not.
        let largest = if dtype == Dtype::F16 { 6e4 } else { 3e38 };
        learner
            .write_parameters(|name| (name == "layers.1.mlp.norm.weight").then(|| vec![largest; 64]))
            .unwrap();
        let before = bits(&mut learner);
        let report = step(&mut learner);
        assert!(report.skipped, "{dtype}");
        assert!(bits(&mut learner) == before, "{dtype}: a skipped step changed something");
        let said = learner.diagnose().unwrap();
        assert!(said.starts_with("all weights are finite; the gradient of "), "{dtype}: {said}");
        if dtype == Dtype::F16 {
            assert!(report.loss_scale < 65_536.0 && learner.skipped_in_row == 0, "{report:?}");
        } else {
            assert_eq!((report.loss_scale, learner.skipped_in_row), (1.0, 1));
        }
    }
}

/// The read-back of logits that f16 cannot hold ends in a loss scale of 1, after which steps count as skipped.
#[test]
fn a_loss_scale_that_does_not_help_is_given_up() {
    let recipe = recipe(97, Attention::Full, MomentFormat::F32);
    let mut learner = learner(machine(Dtype::F16), "gpt2-tiny", recipe, false);
    learner.write_parameters(|name| (name == "norm.weight").then(|| vec![6e4; 64])).unwrap();
    let mut counted = 0;
    for _ in 0..20 {
        let report = step(&mut learner);
        assert!(report.skipped);
        counted += u64::from(report.loss_scale == 1.0 && learner.skipped_in_row > 0);
    }
    assert_eq!((counted, learner.skipped_in_row, learner.skipped, learner.updates), (4, 4, 20, 0));
}

/// What a step reads back does not depend on whether rows were filled up to a round number.
#[test]
fn evaluation_is_the_cpus() {
    let recipe = recipe(97, Attention::Full, MomentFormat::F32);
    let examples: Vec<Example> = (0..3)
        .map(|n| {
            let ids = (0..LENGTH as u32).map(|i| 1 + (n + 5 * i) % 90).collect();
            Example { fixed: vec![false; LENGTH], documents: vec![LENGTH], ids }
        })
        .collect();
    let mut cpu = learner(Cpu::<f32>::new(None).unwrap(), "gpt2-tiny", recipe, false);
    let mut card = learner(machine(Dtype::F32), "gpt2-tiny", recipe, false);
    let expected = cpu.evaluate(&examples, 3, || Ok(())).unwrap();
    let got = card.evaluate(&examples, 3, || Ok(())).unwrap();
    assert_eq!(got.len(), 9);
    for (got, want) in got.iter().zip(&expected) {
        assert!((got.nelbo() - want.nelbo()).abs() < 1e-4 * want.nelbo(), "{got:?}, expected {want:?}");
    }
}
