//! Golden cases of training, on any machine.
#![allow(dead_code)] // each test target uses its own part of this

use lacuna::backend::{AdamW, Backend, Backward, Mask, MomentFormat, Optimise, Trainable};
use lacuna::diffusion::anneal;
use lacuna::diffusion::corrupt::{Corrupted, MaskRule};
use lacuna::diffusion::loss::{Loss, LossNorm};
use lacuna::model::{Gradients, Learning, Model, TrainArena, TrainSize, parameters_of};
use lacuna::rng::Rng;
use lacuna::train::Example;
use lacuna::train::batch::{Objective, Prepared, TimeWeight};
use serde_json::Value;

use super::common::golden::{Golden, count, number};
use super::common::relative;

/// A loss case, as a batch.
fn prepare(cases: &Golden, case: &Value) -> (Prepared, Objective) {
    let at = case["case"].as_str().unwrap();
    let (b, l) = (count(case, "B"), count(case, "L"));
    let objective = Objective::Diffusion {
        mask_id: cases.mask_id,
        shift: case["shift"] == true,
        norm: LossNorm::MaskedTokens,
        time: TimeWeight::Elbo,
        rule: MaskRule::ById,
    };
    let (x0, x_t) = (cases.ids(&format!("{at}/x0")), cases.ids(&format!("{at}/x_t")));
    let (src, t) = (cases.flags(&format!("{at}/src_mask")), cases.f32s(&format!("{at}/t")));
    let lens = format!("{at}/lens");
    let lens = if cases.has(&lens) { cases.ids(&lens) } else { vec![l as u32; b] };
    let mut prepared = Prepared::default();
    for (row, &len) in lens.iter().enumerate() {
        let part = row * l..row * l + len as usize;
        let example = Example {
            ids: x0[part.clone()].to_vec(),
            fixed: src[part.clone()].to_vec(),
            documents: vec![len as usize],
        };
        let masked = vec![false; len as usize];
        prepared.add_corrupted(
            &example,
            &Corrupted { ids: x_t[part].to_vec(), masked },
            t[row],
            objective,
            false,
        );
    }
    prepared.weigh(objective, 1);
    (prepared, objective)
}

/// Everything a step of a case needs.
struct Case<B: Backward> {
    prepared: Prepared,
    words: Option<Vec<u32>>,
    l: usize,
    arena: TrainArena<B>,
    gradients: Gradients<B>,
}

impl<B: Backward> Case<B> {
    fn new(model: &Model<B>, cases: &Golden, case: &Value, checkpoint: bool) -> Self {
        let (b, l) = (count(case, "B"), count(case, "L"));
        let (prepared, _) = prepare(cases, case);
        let words = (case["attention"] == "anneal").then(|| {
            let at = case["case"].as_str().unwrap();
            anneal::pack(&cases.bytes(&format!("{at}/rand_mask")), l).unwrap()
        });
        let size = TrainSize { tokens: b * l, rows: b * l, length: l, checkpoint, rank: 0 };
        let arena = TrainArena::new(model.backend(), model.config(), size).unwrap();
        let entries = parameters_of(model.config());
        let named = entries.into_iter().map(|e| (e.parameter, e.shape.iter().product()));
        let gradients = Gradients::new(model.backend(), named).unwrap();
        Self { prepared, words, l, arena, gradients }
    }

    /// The losses, and new gradients.
    fn run(&mut self, model: &Model<B>) -> Loss {
        self.gradients.clear(model.backend()).unwrap();
        let mask = match &self.words {
            Some(words) => Mask::Annealed { words, stride: anneal::stride(self.l) },
            None => Mask::Full,
        };
        let gradients = Some(&mut self.gradients);
        let nll = model
            .train_pass(&self.prepared.batch, &mut self.arena, mask, Learning::default(), gradients)
            .unwrap();
        let mut loss = Loss::default();
        self.prepared.score(&nll, &mut loss);
        loss
    }
}

/// How near numbers are to PyTorch's.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Relative error of a loss.
    pub loss: f64,
    /// Relative error of a gradient by norm, and of its length.
    pub gradient: f64,
    /// The same of all gradients of a case together.
    pub together: f64,
    /// Error of a single number, of the largest one.
    pub element: f64,
}

pub const EXACT: Bounds = Bounds { loss: 1e-5, gradient: 1e-4, together: 1e-5, element: 1e-4 };

/// Every loss and every gradient of the models in `golden`, which `load` loads; how many losses and gradients there were.
pub fn losses_and_every_gradient<B: Backward + Backend<Elem = f32>>(
    load: &dyn Fn(&str) -> Model<B>,
    golden: &[(&str, &[&str])],
    bounds: Bounds,
) -> (usize, usize) {
    let (mut losses, mut gradients) = (0, 0);
    let mut worst = [(0.0f64, String::new()), (0.0f64, String::new())];
    for (name, folders) in golden {
        let cases = Golden::open(name);
        for folder in *folders {
            let model = load(&format!("{name}/{folder}"));
            for (number_of, case) in cases.of_kind("loss").enumerate() {
                let at = case["case"].as_str().unwrap();
                let short = at.strip_prefix("loss/").unwrap();
                let mut run = Case::new(&model, &cases, case, number_of % 2 == 1);
                let loss = run.run(&model);
                for (what, got) in
                    [("weighted", loss.weighted(LossNorm::MaskedTokens)), ("unweighted", loss.unweighted())]
                {
                    let want = number(case, what);
                    assert!(
                        (got - want).abs() < bounds.loss * want,
                        "{name} {at}: {what} {got}, expected {want}"
                    );
                }
                losses += 1;
                let mut squares = [0.0f64; 2];
                for entry in parameters_of(model.config()) {
                    let mut got = vec![0.0; entry.shape.iter().product()];
                    let gradient = run.gradients.get(&entry.parameter).unwrap();
                    model.backend().read(gradient, 0, &mut got).unwrap();
                    let tensor = &entry.tensor;
                    let length = got.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    let want = number(&case["grad_norms"], tensor);
                    assert!(
                        (length - want).abs() < bounds.gradient * want,
                        "{name} {at} {tensor}: {length}, expected {want}"
                    );
                    let (full, probe) = (format!("grad/{short}/{tensor}"), format!("gradp/{short}/{tensor}"));
                    if cases.has(&full) {
                        let error = relative(&got, &cases.f32s(&full));
                        for (x, want) in got.iter().zip(cases.f32s(&full)) {
                            squares[0] += f64::from(x - want).powi(2);
                            squares[1] += f64::from(want).powi(2);
                        }
                        if error > worst[0].0 {
                            worst[0] = (error, format!("{name}/{folder} {at} {tensor}"));
                        }
                        assert!(
                            error < bounds.gradient,
                            "{name}/{folder} {at} {tensor}: relative error {error:e}"
                        );
                        gradients += 1;
                    } else if cases.has(&probe) {
                        let largest = got.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                        let want = cases.f32s(&probe);
                        for (i, want) in cases.ids(&format!("probe/{tensor}")).into_iter().zip(want) {
                            let error = (got[i as usize] - want).abs();
                            assert!(
                                f64::from(error) < bounds.element * f64::from(largest),
                                "{name} {at} {tensor}[{i}]: off by {error:e}"
                            );
                        }
                        gradients += 1;
                    }
                }
                if squares[1] > 0.0 {
                    let error = (squares[0] / squares[1]).sqrt();
                    assert!(error < bounds.together, "{name}/{folder} {at}: relative error {error:e}");
                    if error > worst[1].0 {
                        worst[1] = (error, format!("{name}/{folder} {at}"));
                    }
                }
            }
        }
    }
    for ((error, place), what) in worst.iter().zip(["gradient of a parameter", "gradient of all together"]) {
        println!("worst {what}: {error:.2e}, {place}");
    }
    (losses, gradients)
}

/// Every step of AdamW; how many numbers were compared.
pub fn steps_of_adamw<B: Optimise + Backward + Backend<Elem = f32>>(
    load: &dyn Fn(&str) -> Model<B>,
    golden: &[(&str, &[&str])],
) -> usize {
    let mut checked = 0;
    for (name, folders) in golden {
        let cases = Golden::open(name);
        for case in cases.of_kind("adamw") {
            let at = case["case"].as_str().unwrap();
            let mut model = load(&format!("{name}/{}", folders[0]));
            let backend = model.backend().clone();
            let batch = cases.cases.iter().find(|c| c["case"] == case["batch"]).unwrap();
            let mut run = Case::new(&model, &cases, batch, false);
            let mut states = std::collections::BTreeMap::new();
            for (parameter, of) in model.parameters_mut().unwrap() {
                states.insert(parameter, backend.state(of, MomentFormat::F32).unwrap());
            }
            let clip = number(case, "clip");
            for step in 1..=count(case, "steps") as u64 {
                let loss = run.run(&model);
                let history = &case["history"][step as usize - 1];
                let want = number(history, "loss");
                let got = loss.weighted(LossNorm::MaskedTokens);
                assert!((got - want).abs() < 2e-5 * want, "{name} {at} step {step}: {got}, expected {want}");
                let lens: Vec<usize> = run.gradients.iter().map(|(_, len, _)| len).collect();
                let mut control = backend.control(&lens).unwrap();
                let adamw = AdamW {
                    lr: number(case, "lr"),
                    betas: [case["betas"][0].as_f64().unwrap(), case["betas"][1].as_f64().unwrap()],
                    eps: number(case, "eps"),
                    decay: number(case, "wd"),
                    clip,
                    unscale: 1.0,
                    step,
                    rng: Rng::new(0),
                };
                backend.prepare(&mut control, adamw).unwrap();
                for (i, (_, _, gradient)) in run.gradients.iter().enumerate() {
                    backend.measure(&mut control, i, gradient).unwrap();
                }
                backend.settle(&mut control).unwrap();
                let length = backend.outcome(&control).unwrap().gradient;
                let want = number(history, "grad_norm_before_clip");
                assert!(
                    (length - want).abs() < 1e-4 * want,
                    "{name} {at} step {step}: {length}, expected {want}"
                );
                for (parameter, of) in model.parameters_mut().unwrap() {
                    let all = case["decay"] == "all" || matches!(of, Trainable::Matrix(_));
                    let gradient = run.gradients.get(&parameter).unwrap();
                    let state = states.get_mut(&parameter).unwrap();
                    backend.step(of, gradient, state, &control, 0, all).unwrap();
                }
            }
            let scale = (clip
                / run
                    .gradients
                    .iter()
                    .map(|(_, n, g)| backend.sum_of_squares(g, n).unwrap())
                    .sum::<f64>()
                    .sqrt())
            .min(1.0);
            let entries = parameters_of(model.config());
            for (parameter, of) in model.parameters_mut().unwrap() {
                let tensor = &entries.iter().find(|e| e.parameter == parameter).unwrap().tensor;
                let got = backend.read_parameter(of, states.get(&parameter)).unwrap();
                let mut gradient = vec![0.0f32; got.len()];
                backend.read(run.gradients.get(&parameter).unwrap(), 0, &mut gradient).unwrap();
                let short = at.strip_prefix("adamw/").unwrap();
                let (full, probe) = (format!("adamw/{short}/{tensor}"), format!("adamwp/{short}/{tensor}"));
                let (indices, want): (Vec<u32>, _) = if cases.has(&full) {
                    ((0..got.len() as u32).collect(), cases.f32s(&full))
                } else {
                    (cases.ids(&format!("probe/{tensor}")), cases.f32s(&probe))
                };
                assert_eq!(indices.len(), want.len());
                let mut squares = [0.0f64; 2];
                for (i, want) in indices.into_iter().zip(want) {
                    let i = i as usize;
                    // Where the true gradient is 0 the update has the sign of a rounding error.
                    if number(case, "eps") < 1e-6 && f64::from(gradient[i].abs()) * scale < 1e-5 {
                        continue;
                    }
                    let error = (got[i] - want).abs();
                    // The second step's gradients are of weights that differ by roundings already, and a small gradient
                    // moves a weight by the rate all the same: a hundredth of that at a single place, little by norm.
                    let bound =
                        if count(case, "steps") == 1 { 1e-6 } else { 1e-2 * number(case, "lr") as f32 };
                    squares[0] += f64::from(error).powi(2);
                    squares[1] += f64::from(want).powi(2);
                    assert!(
                        error < bound * want.abs().max(1.0),
                        "{name} {at} {tensor}[{i}]: {}, expected {want}",
                        got[i]
                    );
                    checked += 1;
                }
                let error = (squares[0] / squares[1]).sqrt();
                assert!(error < 1e-5, "{name} {at} {tensor}: relative error {error:e}");
            }
            let want = number(case, "loss_after");
            let got = run.run(&model).weighted(LossNorm::MaskedTokens);
            assert!((got - want).abs() < 1e-4 * want, "{name} {at}: loss after {got}, expected {want}");
        }
    }
    checked
}
