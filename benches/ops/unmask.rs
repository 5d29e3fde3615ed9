//! Drawing tokens from 128 rows of 50,257 logits. The baseline is the way it is usually written:
//! softmax, a sort of the vocabulary, a cumulative sum.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::cpu::unmask::unmask_rows;
use lacuna::backend::{Backend as _, Confidence, NO_TOKEN, RowDraw, RowParams};
use lacuna::rng::{Purpose, Rng};
use rayon::prelude::*;

use crate::support;

const ROWS: usize = 128;
const VOCAB: usize = 50_257;

/// The baseline: f32 softmax, full sort, cumulative sum, inverse CDF in rank order.
fn by_sorting(logits: &[f32], top_p: f32, uniform: f32) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut ranked: Vec<(f32, u32)> =
        logits.iter().enumerate().map(|(i, z)| ((z - max).exp(), i as u32)).collect();
    let total: f32 = ranked.iter().map(|r| r.0).sum();
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let mut before = 0.0;
    let kept = ranked.iter().take_while(|(p, _)| {
        let keep = before <= top_p * total;
        before += p;
        keep
    });
    let kept: Vec<_> = kept.copied().collect();
    let target = uniform * kept.iter().map(|k| k.0).sum::<f32>();
    let mut sum = 0.0;
    let drawn = kept.iter().find(|(p, _)| {
        sum += p;
        sum > target
    });
    drawn.or(kept.last()).map_or(0, |k| k.1)
}

pub fn bench(c: &mut Criterion) {
    let cpu = support::cpu();
    let rng = Rng::new(5);
    // Normal numbers with a spread of 3: as peaked as a language model's.
    let normal = |i: usize| {
        let a = 1.0 - rng.uniform(Purpose::Token, 0, 0, i as u32);
        let b = rng.uniform(Purpose::Token, 0, 1, i as u32);
        3.0 * (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    };
    let host: Vec<f32> = (0..ROWS * VOCAB).map(normal).collect();
    let logits = cpu.upload(&host).expect("memory");
    let uniform = |row: usize| rng.uniform(Purpose::Reveal, 0, 0, row as u32);
    let mut group = support::group(c, "unmask/128x50257");
    group.throughput(Throughput::Bytes((host.len() * size_of::<f32>()) as u64));
    for (name, top_k, top_p, temperature) in [
        ("top-p 0.9", 0, 0.9, 1.0),
        ("top-k 50, top-p 0.9", 50, 0.9, 1.0),
        ("no filter", 0, 1.0, 1.0),
        ("greedy", 0, 1.0, 0.0),
    ] {
        let params: Vec<RowParams> = (0..ROWS)
            .map(|row| RowParams {
                temperature,
                top_p,
                top_k,
                suppress: NO_TOKEN,
                uniform: uniform(row),
                confidence: Confidence::MaxProb,
                given: NO_TOKEN,
            })
            .collect();
        let mut out = vec![RowDraw::default(); ROWS];
        group.bench_function(BenchmarkId::new("select", name), |b| {
            b.iter(|| {
                cpu.run(|| unmask_rows(logits.as_slice(), VOCAB, &params, &mut out)).expect("finite logits")
            });
        });
    }
    group.bench_function("sort, top-p 0.9 (baseline)", |b| {
        b.iter(|| {
            cpu.run(|| {
                let rows = host.par_chunks(VOCAB).enumerate();
                rows.map(|(row, logits)| by_sorting(logits, 0.9, uniform(row))).sum::<u32>()
            })
        });
    });
    group.finish();
}
