//! An engine against vectors of an independent PyTorch implementation: logits, losses, samplers. The same cases for every
//! backend; `load` puts a model's weights on one.
#![allow(dead_code)] // each test target uses its own part of this

use std::path::Path;
use std::sync::Arc;

use super::common::golden::{Golden, count, number};
use super::common::{GOLDEN, fixture, relative};
use lacuna::backend::{Backend, Denoise, Forward, Mask};
use lacuna::diffusion::corrupt::{MaskRule, corrupt};
use lacuna::diffusion::loss::{Loss, LossNorm, score, score_times};
use lacuna::diffusion::{anneal, schedule, shift};
use lacuna::model::{Arena, ArenaSize, Batch, Model};
use lacuna::sample::{PlainInput, PlainOptions, plain_loop, planned};

/// What the cases run on.
pub trait Engine: Forward + Denoise + Backend<Elem = f32> {}

impl<B: Forward + Denoise + Backend<Elem = f32>> Engine for B {}

/// Puts the weights in a folder on a backend.
pub type Load<'a, B> = &'a dyn Fn(&Path) -> Arc<Model<B>>;

/// Logits `[B, L, V]`, zero beyond a length, and the same rows one at a time.
fn logits<B: Engine>(model: &Model<B>, x: &[u32], l: usize, lens: &[usize], mask: Mask<'_>) -> Vec<f32> {
    let tokens: usize = lens.iter().sum();
    let size = ArenaSize { tokens, rows: tokens };
    let mut batch = Batch::with_capacity(size, lens.len());
    for (row, &len) in x.chunks(l).zip(lens) {
        batch.push(&row[..len], 0..len as u32);
    }
    let mut arena = Arena::new(model.backend(), model.config(), size, l).unwrap();
    let packed = model.logits(&batch, &mut arena, mask).unwrap();
    let v = model.config().vocab_size;
    let mut out = vec![0.0; x.len() * v];
    let mut at = 0;
    for (row, &len) in lens.iter().enumerate() {
        out[row * l * v..][..len * v].copy_from_slice(&packed[at..at + len * v]);
        at += len * v;
    }
    out
}

fn dims(case: &serde_json::Value) -> (usize, usize) {
    (count(case, "B"), count(case, "L"))
}

fn every_model<B: Engine>(load: Load<'_, B>, mut check: impl FnMut(&str, &Golden, &Model<B>)) {
    for (name, folders) in GOLDEN {
        let cases = Golden::open(name);
        for folder in folders {
            let model = load(&fixture("golden").join(name).join(folder));
            check(&format!("{name}/{folder}"), &cases, &model);
        }
    }
}

pub fn logits_under_every_mask<B: Engine>(load: Load<'_, B>) {
    let mut checked = 0;
    every_model(load, |name, cases, model| {
        for case in cases.of_kind("logits") {
            let (b, l) = dims(case);
            let at = case["case"].as_str().unwrap();
            let x = cases.ids(&format!("{at}/x"));
            for kind in case["masks"].as_array().unwrap() {
                let kind = kind.as_str().unwrap();
                let words;
                let mask = match kind {
                    "bidir" => Mask::Full,
                    "causal" => Mask::Causal,
                    _ => {
                        words = anneal::pack(&cases.bytes(&format!("{at}/rand_mask")), l).unwrap();
                        Mask::Annealed { words: &words, stride: l.div_ceil(32) }
                    }
                };
                let got = logits(model, &x, l, &vec![l; b], mask);
                let want = cases.f32s(&format!("{at}/{kind}"));
                let error = relative(&got, &want);
                assert!(error < 1e-4, "{name} {at}/{kind}: relative error {error:e}");
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-4, "{name} {at}/{kind}: absolute error {worst:e}");
                checked += 1;
            }
        }
        for case in cases.of_kind("logits_padded") {
            let (b, l) = dims(case);
            let at = case["case"].as_str().unwrap();
            let x = cases.ids(&format!("{at}/x"));
            let lens: Vec<usize> = cases.ids(&format!("{at}/lens")).iter().map(|n| *n as usize).collect();
            assert_eq!(lens.len(), b);
            let got = logits(model, &x, l, &lens, Mask::Full);
            let want = cases.f32s(&format!("{at}/bidir"));
            let v = model.config().vocab_size;
            for (row, &len) in lens.iter().enumerate() {
                let rows = row * l * v..(row * l + len) * v;
                let error = relative(&got[rows.clone()], &want[rows]);
                assert!(error < 1e-4, "{name} {at} row {row}: relative error {error:e}");
            }
            checked += 1;
        }
    });
    assert!(checked >= 30, "only {checked} cases");
}

fn plain_input(cases: &Golden, case: &serde_json::Value) -> (PlainInput, PlainOptions) {
    let (batch, length) = dims(case);
    let at = case["case"].as_str().unwrap();
    let optional = |name: &str| {
        let name = format!("{at}/{name}");
        if cases.has(&name) { cases.f32s(&name) } else { Vec::new() }
    };
    let confidence = case["kind"] == "sample_confident";
    let greedy = case["greedy"].as_bool().unwrap_or(false);
    let input = PlainInput {
        batch,
        length,
        x: cases.ids(&format!("{at}/x")),
        src: cases.flags(&format!("{at}/src_mask")),
        u_cat: optional("u_cat"),
        u_unmask: optional("u_unmask"),
    };
    let options = PlainOptions {
        steps: count(case, "T"),
        temperature: if greedy { 0.0 } else { number(case, "temperature") as f32 },
        top_p: case["top_p"].as_f64().unwrap_or(1.0) as f32,
        shift: case["shift"].as_bool().unwrap(),
        mask_id: cases.mask_id,
        confidence,
    };
    (input, options)
}

/// Of some models, from so many of the folders that hold each one's weights.
pub fn samplers_token_for_token<B: Engine>(load: Load<'_, B>, models: &[&str], folders_of_each: usize) {
    let mut checked = 0;
    let mut expected = 0;
    for (name, folders) in GOLDEN.into_iter().filter(|(name, _)| models.contains(name)) {
        let cases = Golden::open(name);
        for folder in folders.iter().take(folders_of_each) {
            expected += 12;
            let model = load(&fixture("golden").join(name).join(folder));
            for kind in ["sample", "sample_confident"] {
                for case in cases.of_kind(kind) {
                    let at = case["case"].as_str().unwrap();
                    let (input, options) = plain_input(&cases, case);
                    let out = plain_loop(&model, &input, &options).unwrap();
                    assert_eq!(out.xt, cases.ids(&format!("{at}/xt")), "{name}/{folder} {at} xt");
                    assert_eq!(out.x0, cases.ids(&format!("{at}/x0")), "{name}/{folder} {at} x0");
                    assert_eq!(out.result, cases.ids(&format!("{at}/final")), "{name}/{folder} {at} final");
                    if !options.confidence {
                        let result = planned(&model, &input, &options).unwrap();
                        assert_eq!(result, out.result, "{name}/{folder} {at}: plan against plain loop");
                    }
                    checked += 1;
                }
            }
        }
    }
    assert!(expected > 0 && checked >= expected, "only {checked} cases");
}

/// Negative log-likelihoods of the masked tokens that a row predicts, a list a sequence.
#[allow(clippy::too_many_arguments)]
fn nll<B: Engine>(
    model: &Model<B>,
    x_t: &[u32],
    x0: &[u32],
    l: usize,
    masked: &[Vec<bool>],
    shifted: bool,
    lens: &[usize],
    mask: Mask<'_>,
) -> Vec<Vec<f64>> {
    let tokens: usize = lens.iter().sum();
    let size = ArenaSize { tokens, rows: tokens };
    let mut batch = Batch::with_capacity(size, lens.len());
    let mut targets = Vec::new();
    for (row, &len) in lens.iter().enumerate() {
        let scored: Vec<_> = shift::predicted(&masked[row][..len], shifted).collect();
        batch.push(&x_t[row * l..row * l + len], scored.iter().map(|(r, _)| *r as u32));
        targets.extend(scored.iter().map(|(_, p)| x0[row * l + p]));
    }
    let mut arena = Arena::new(model.backend(), model.config(), size, l).unwrap();
    model.forward(&batch, &mut arena, mask).unwrap();
    let mut all = model.nll(&targets, &mut arena).unwrap().into_iter();
    let counts = masked.iter().zip(lens).map(|(m, &len)| shift::predicted(&m[..len], shifted).count());
    counts.map(|n| all.by_ref().take(n).collect()).collect()
}

pub fn losses<B: Engine>(load: Load<'_, B>) {
    let mut checked = 0;
    every_model(load, |name, cases, model| {
        for case in cases.of_kind("loss") {
            let (b, l) = dims(case);
            let at = case["case"].as_str().unwrap();
            let (x0, x_t) = (cases.ids(&format!("{at}/x0")), cases.ids(&format!("{at}/x_t")));
            let (src, u) = (cases.flags(&format!("{at}/src_mask")), cases.f32s(&format!("{at}/u")));
            let (t, u_t) = (cases.f32s(&format!("{at}/t")), cases.f32s(&format!("{at}/u_t")));
            let lens: Vec<usize> = if cases.has(&format!("{at}/lens")) {
                cases.ids(&format!("{at}/lens")).iter().map(|n| *n as usize).collect()
            } else {
                vec![l; b]
            };
            let mut masked = Vec::new();
            for row in 0..b {
                let r = row * l..(row + 1) * l;
                // Padding is never masked.
                let fixed: Vec<bool> = r.clone().enumerate().map(|(p, i)| src[i] || p >= lens[row]).collect();
                assert!((schedule::time(u_t[row]) - t[row]).abs() < 1e-6, "{at}");
                let corrupted =
                    corrupt(&x0[r.clone()], &fixed, t[row], &u[r.clone()], cases.mask_id).unwrap();
                assert_eq!(corrupted.ids, x_t[r], "{at} row {row}");
                masked.push(MaskRule::ById.masked(&corrupted, cases.mask_id));
            }
            let words;
            let mask = if case["attention"] == "anneal" {
                words = anneal::pack(&cases.bytes(&format!("{at}/rand_mask")), l).unwrap();
                Mask::Annealed { words: &words, stride: anneal::stride(l) }
            } else {
                Mask::Full
            };
            let shifted = case["shift"] == true;
            let all = nll(model, &x_t, &x0, l, &masked, shifted, &lens, mask);
            let mut loss = Loss::default();
            for (nll, &t) in all.into_iter().zip(&t) {
                loss.add(t, nll, l);
            }
            assert_eq!(loss.masked(), count(case, "n_masked"), "{name} {at}");
            for (what, got) in
                [("weighted", loss.weighted(LossNorm::MaskedTokens)), ("unweighted", loss.unweighted())]
            {
                let want = number(case, what);
                assert!((got - want).abs() < 1e-5 * want, "{name} {at}: {what} {got}, expected {want}");
            }
            checked += 1;
        }
    });
    assert!(checked >= 40, "only {checked} cases");
}

pub fn multiple_choice_scores<B: Engine>(load: Load<'_, B>) {
    every_model(load, |name, cases, model| {
        for case in cases.of_kind("score") {
            let ((b, l), levels) = (dims(case), count(case, "T"));
            let at = case["case"].as_str().unwrap();
            let (x0, u) = (cases.ids(&format!("{at}/x0")), cases.f32s(&format!("{at}/u")));
            let src = cases.flags(&format!("{at}/src_mask"));
            let mut losses = Vec::new();
            for (level, t) in score_times(levels).enumerate() {
                let mut x_t = Vec::new();
                let mut masked = Vec::new();
                for row in 0..b {
                    let r = row * l..(row + 1) * l;
                    let uniforms = &u[level * b * l..][r.clone()];
                    let corrupted = corrupt(&x0[r.clone()], &src[r], t, uniforms, cases.mask_id).unwrap();
                    masked.push(MaskRule::ById.masked(&corrupted, cases.mask_id));
                    x_t.extend(corrupted.ids);
                }
                let mut loss = Loss::default();
                for nll in nll(model, &x_t, &x0, l, &masked, case["shift"] == true, &vec![l; b], Mask::Full) {
                    loss.add(t, nll, l);
                }
                losses.push(loss);
            }
            let (got, want) = (score(&losses), number(case, "mean"));
            assert!((got - want).abs() < 1e-5 * want, "{name} {at}: {got}, expected {want}");
        }
    });
}
