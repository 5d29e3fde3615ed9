//! Drawing tokens with the CUDA kernel on the host SIMT machine: many random rows, golden samplers, Gumbel noise in
//! distribution, and parameters in device memory that no host has checked.

use crate::common::golden::{Golden, count, number};
use crate::common::{GOLDEN, fixture, load};
use lacuna::backend::cpu::Cpu;
use lacuna::backend::cpu::unmask::keep_mask;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::backend::cuda::{
    Buffer, Cuda, Draws, Format, NoiseAddress, RowNoise, UNMASK_WORDS, UnmaskVariant, unmask_words,
};
use lacuna::backend::{Mask, NO_TOKEN, RowParams};
use lacuna::diffusion::{reveal, shift};
use lacuna::element::Dtype;
use lacuna::model::{Arena, ArenaSize, Batch};
use lacuna::selftest::{self, Grid, Rig};
use lacuna::{Error, Result};
use statrs::distribution::{ChiSquared, ContinuousCDF};

const PLAIN: RowParams = RowParams::PLAIN;

fn machine(check: bool) -> Cuda<Simt> {
    Cuda::new(Simt::new(Options { seed: 0, check }))
}

/// Draws from rows of f32 logits that lie `stride` apart: tokens and flags.
fn draw(
    cuda: &Cuda<Simt>,
    logits: &[f32],
    stride: usize,
    vocab: usize,
    words: &[[u32; UNMASK_WORDS]],
) -> Result<(Vec<u32>, Vec<u32>)> {
    let device = cuda.device();
    let logits = Buffer::floats(device, Dtype::F32, logits)?;
    let params = Buffer::of(device, Format::U32, words.as_flattened())?;
    let mut out = Draws::new(device, words.len())?;
    cuda.unmask(Dtype::F32, &logits, 0, stride, vocab, words.len(), &params, &mut out)?;
    Ok((out.tokens.to_vec(device)?, out.flags.to_vec(device)?))
}

/// The self-test's rows and parameters, drawn anew with each seed; unwatched, which is several times faster.
#[test]
fn many_rows_agree_with_the_cpu() {
    let cpu = Cpu::new(std::num::NonZeroUsize::new(1)).unwrap();
    let cuda = machine(false);
    for seed in 0..4 {
        let rig = Rig::new(&cuda, &cpu, 1000 + seed);
        for case in selftest::cases(Grid::Full, "unmask") {
            let verdict = case.run(&rig).unwrap_or_else(|e| panic!("{} ({}): {e}", case.kernel, case.shape));
            assert!(verdict.passed(), "seed {seed}: {} ({}): {verdict:?}", case.kernel, case.shape);
        }
    }
}

/// The samplers of an independent PyTorch implementation: the model's logits before each step, its uniforms, its tokens.
#[test]
fn golden_samplers_token_for_token() {
    let (cuda, mut checked) = (machine(false), 0);
    for (name, folders) in GOLDEN {
        let cases = Golden::open(name);
        let model = load(&fixture("golden").join(name).join(folders[0]), 2);
        let vocab = model.config().vocab_size;
        for case in cases.of_kind("sample") {
            let at = case["case"].as_str().unwrap();
            let (l, steps, shifted) = (count(case, "L"), count(case, "T"), case["shift"] == true);
            let src = cases.flags(&format!("{at}/src_mask"));
            let (xt, x0) = (cases.ids(&format!("{at}/xt")), cases.ids(&format!("{at}/x0")));
            let optional = |what: &str| {
                let name = format!("{at}/{what}");
                if cases.has(&name) { cases.f32s(&name) } else { Vec::new() }
            };
            let (u_cat, u_unmask) = (optional("u_cat"), optional("u_unmask"));
            let n = src.len();
            let greedy = case["greedy"].as_bool().unwrap_or(false);
            let size = ArenaSize { tokens: n, rows: n };
            let mut arena = Arena::new(model.backend(), model.config(), size, l).unwrap();
            let mut masked: Vec<bool> = src.iter().map(|s| !s).collect();
            for k in 0..steps {
                for (i, masked) in masked.iter_mut().enumerate().filter(|_| k > 0) {
                    *masked &= !reveal::reveal_now(u_unmask[(k - 1) * n + i], steps - k + 1);
                }
                let mut batch = Batch::with_capacity(size, n / l);
                for row in xt[k * n..(k + 1) * n].chunks(l) {
                    batch.push(row, 0..l as u32);
                }
                let logits = model.logits(&batch, &mut arena, Mask::Full).unwrap();
                // Of the masked positions that a row predicts: that row's logits, how to draw, and the golden token.
                let (mut rows, mut words, mut expected) = (Vec::new(), Vec::new(), Vec::new());
                for i in (0..n).filter(|&i| masked[i]) {
                    let Some(row) = shift::row_for(i % l, shifted) else { continue };
                    let row = i / l * l + row;
                    let params = RowParams {
                        temperature: if greedy { 0.0 } else { number(case, "temperature") as f32 },
                        top_p: case["top_p"].as_f64().unwrap_or(1.0) as f32,
                        uniform: u_cat.get(k * n + row).copied().unwrap_or(0.0),
                        ..PLAIN
                    };
                    rows.extend_from_slice(&logits[row * vocab..(row + 1) * vocab]);
                    words.push(unmask_words(vocab, &params, RowNoise::Given).unwrap());
                    expected.push(x0[k * n + i]);
                }
                let (tokens, flags) = draw(&cuda, &rows, vocab, vocab, &words).unwrap();
                assert_eq!(tokens, expected, "{name} {at}, step {k}");
                assert!(flags.iter().all(|flag| *flag == 0));
                checked += expected.len();
            }
        }
    }
    assert!(checked >= 1000, "only {checked} tokens");
}

#[test]
fn gumbel_draws_follow_the_kept_distribution() {
    let row = [0.3f32, -1.0, 2.0, 0.3, 1.1, -0.2, 1.9];
    let cuda = machine(false);
    for (turn, params) in [
        PLAIN,
        RowParams { top_k: 5, temperature: 1.7, ..PLAIN },
        RowParams { top_p: 0.8, suppress: 2, ..PLAIN },
    ]
    .into_iter()
    .enumerate()
    {
        let draws = 900u32;
        let words: Vec<[u32; UNMASK_WORDS]> = (0..draws)
            .map(|position| {
                let at =
                    NoiseAddress { seed: 0x1234_5678_9abc_def0, sequence: turn as u32, step: 1, position };
                unmask_words(row.len(), &params, RowNoise::Gumbel(at)).unwrap()
            })
            .collect();
        // All rows are the same one.
        let (tokens, _) = draw(&cuda, &row, 0, row.len(), &words).unwrap();
        let kept = keep_mask(&row, &params).unwrap();
        let weight = |id: usize| {
            if kept[id] { (f64::from(row[id]) / f64::from(params.temperature)).exp() } else { 0.0 }
        };
        let total: f64 = (0..row.len()).map(weight).sum();
        let mut statistic = 0.0;
        for (id, &keeps) in kept.iter().enumerate() {
            let drawn = tokens.iter().filter(|t| **t == id as u32).count() as f64;
            let expected = weight(id) / total * f64::from(draws);
            if keeps {
                statistic += (drawn - expected).powi(2) / expected;
            } else {
                assert_eq!(drawn, 0.0, "token {id} is not kept");
            }
        }
        let freedom = kept.iter().filter(|k| **k).count() as f64 - 1.0;
        let p = 1.0 - ChiSquared::new(freedom).unwrap().cdf(statistic);
        assert!(p > 1e-3, "{params:?}: chi-square {statistic}, p = {p}");
    }
}

#[test]
fn words_out_of_range_are_flagged_and_touch_nothing_else() {
    let cuda = machine(true);
    let row = [0.0f32, 1.0, -2.0, 0.5, 0.25];
    let good = unmask_words(5, &RowParams { given: 1, ..PLAIN }, RowNoise::Given).unwrap();
    let with = |word: usize, value: u32| {
        let mut words = good;
        words[word] = value;
        words
    };
    let nan = f32::NAN.to_bits();
    let words = [
        good,
        with(0, nan),
        with(0, (-1.0f32).to_bits()),
        with(0, f32::INFINITY.to_bits()),
        with(1, nan),
        with(4, 5),
        with(5, 3),
        with(5, 3 << 8),
        with(6, 1.0f32.to_bits()),
        with(6, nan),
        // No such token, so nothing is suppressed.
        with(3, 5),
        with(2, u32::MAX),
    ];
    let (tokens, flags) = draw(&cuda, &row, 0, 5, &words).unwrap();
    assert_eq!(flags, [0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0]);
    for (token, flag) in tokens.iter().zip(&flags) {
        assert_eq!(*token, if *flag == 0 { 0 } else { NO_TOKEN });
    }
}

#[test]
fn the_launch_checks_what_the_host_knows() {
    let cuda = machine(true);
    let device = cuda.device();
    let logits = Buffer::floats(device, Dtype::F32, &[0.0; 10]).unwrap();
    let words = Buffer::of(device, Format::U32, &[0u32; 2 * UNMASK_WORDS]).unwrap();
    let mut out = Draws::new(device, 2).unwrap();
    let mut run = |dtype, at, stride, vocab, rows, variant| {
        cuda.unmask_as(variant, dtype, &logits, at, stride, vocab, rows, &words, &mut out)
    };
    let streaming = UnmaskVariant::Streaming;
    run(Dtype::F32, 0, 5, 5, 2, streaming).unwrap();
    run(Dtype::F32, 10, 5, 5, 0, streaming).unwrap();
    let refused = |result: Result<()>| assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    refused(run(Dtype::F32, 1, 5, 5, 2, streaming));
    refused(run(Dtype::F16, 0, 5, 5, 2, streaming));
    refused(run(Dtype::F32, 0, 5, 5, 3, streaming));
    refused(run(Dtype::F32, 0, 5, 0, 2, streaming));
    refused(run(Dtype::F32, 0, 0, 1 << 24, 1, streaming));
    refused(run(Dtype::F32, 0, usize::MAX, 5, 2, streaming));
    refused(run(Dtype::F32, 0, 0, 100_000, 1, UnmaskVariant::Resident));
    assert_eq!(cuda.unmask_variant(Dtype::Bf16, 50_257), UnmaskVariant::Resident);
    assert_eq!(cuda.unmask_variant(Dtype::F32, 50_257), UnmaskVariant::Streaming);
}
