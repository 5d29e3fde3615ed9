//! The engine against vectors of an independent PyTorch implementation: logits, losses, samplers.

mod common;

use common::{Cases, GOLDEN, fixture, load, relative};
use lacuna::backend::Mask;
use lacuna::diffusion::anneal;
use lacuna::model::{Arena, ArenaSize, Batch, Model};
use lacuna::sample::{PlainInput, PlainOptions, plain_loop, planned};

type Cpu = lacuna::backend::cpu::Cpu<f32>;

/// Logits `[B, L, V]`, zero beyond a length, and the same rows one at a time.
fn logits(model: &Model<Cpu>, x: &[u32], l: usize, lens: &[usize], mask: Mask<'_>) -> Vec<f32> {
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
    (case["B"].as_u64().unwrap() as usize, case["L"].as_u64().unwrap() as usize)
}

fn every_model(mut check: impl FnMut(&str, &Cases, &Model<Cpu>)) {
    for (name, folders) in GOLDEN {
        let cases = Cases::open(name);
        for folder in folders {
            let model = load(&fixture("golden").join(name).join(folder), 2);
            check(&format!("{name}/{folder}"), &cases, &model);
        }
    }
}

#[test]
fn logits_under_every_mask() {
    let mut checked = 0;
    every_model(|name, cases, model| {
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
                        let allowed: Vec<bool> =
                            cases.u8(&format!("{at}/rand_mask")).iter().map(|b| *b != 0).collect();
                        words = anneal::pack(&allowed, l);
                        Mask::Annealed { words: &words, stride: l.div_ceil(32) }
                    }
                };
                let got = logits(model, &x, l, &vec![l; b], mask);
                let want = cases.f32(&format!("{at}/{kind}"));
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
            let want = cases.f32(&format!("{at}/bidir"));
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

fn plain_input(cases: &Cases, case: &serde_json::Value) -> (PlainInput, PlainOptions) {
    let (batch, length) = dims(case);
    let at = case["case"].as_str().unwrap();
    let optional = |name: &str| {
        let name = format!("{at}/{name}");
        if cases.has(&name) { cases.f32(&name) } else { Vec::new() }
    };
    let confidence = case["kind"] == "sample_confident";
    let greedy = case["greedy"].as_bool().unwrap_or(false);
    let input = PlainInput {
        batch,
        length,
        x: cases.ids(&format!("{at}/x")),
        src: cases.u8(&format!("{at}/src_mask")).iter().map(|f| *f != 0).collect(),
        u_cat: optional("u_cat"),
        u_unmask: optional("u_unmask"),
    };
    let options = PlainOptions {
        steps: case["T"].as_u64().unwrap() as usize,
        temperature: if greedy { 0.0 } else { case["temperature"].as_f64().unwrap() as f32 },
        top_p: case["top_p"].as_f64().unwrap_or(1.0) as f32,
        shift: case["shift"].as_bool().unwrap(),
        mask_id: cases.mask_id(),
        confidence,
    };
    (input, options)
}

#[test]
fn samplers_token_for_token() {
    let mut checked = 0;
    for (name, folders) in GOLDEN {
        let cases = Cases::open(name);
        for folder in folders {
            let model = load(&fixture("golden").join(name).join(folder), 2);
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
    assert!(checked >= 70, "only {checked} cases");
}
