//! Attention (FLOP/s of its two products), against products by the `gemm` crate with a plain softmax on
//! the whole matrix of scores.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Forward, HeadShape, Mask, Rows, Segment};

use crate::support::*;

const D: usize = 64;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "attention");
    let (width, stride) = (HEADS * D, (HEADS + 2 * KV_HEADS) * D);
    for (queries, keys) in [(1, 512), (128, 128), (512, 512), (1024, 1024)] {
        let flops = 4 * queries * keys * width;
        group.throughput(Throughput::Elements(flops as u64));
        let id = format!("{queries} by {keys}");
        let rows = numbers(keys * stride);
        let qkv = cpu.upload(&rows).expect("memory");
        let mut out = cpu.alloc(queries * width).expect("memory");
        let mut positions = cpu.alloc_index(queries).expect("memory");
        cpu.write_index(&mut positions, &(0..queries as u32).collect::<Vec<_>>()).expect("room");
        let shape = HeadShape { heads: HEADS, kv_heads: KV_HEADS, head_dim: D, scale: 0.125 };
        let segments = vec![Segment { q_start: 0, q_len: queries, k_start: 0, k_len: keys }];
        let at = |at| (&qkv, Rows { at, stride });
        for (name, mask) in [("full", Mask::Full), ("causal", Mask::Causal)] {
            if queries == 1 && name == "causal" {
                continue;
            }
            let mask = mask.into();
            group.bench_function(BenchmarkId::new(name, &id), |b| {
                cpu.run(|| {
                    b.iter(|| {
                        let (q, k, v) = (at(0), at(width), at(width + KV_HEADS * D));
                        cpu.attention(q, k, v, shape, &segments, &positions, &mask, &mut out).unwrap()
                    })
                });
            });
        }
        let mut scores = vec![0.0; queries * keys];
        let mut head = vec![0.0; queries * D];
        group.bench_function(BenchmarkId::new("gemm crate, full", &id), |b| {
            cpu.run(|| {
                b.iter(|| {
                    for h in 0..HEADS {
                        let kv = h / (HEADS / KV_HEADS) * D;
                        let (q, k) = (&rows[h * D..], &rows[width + kv..]);
                        let v = &rows[width + KV_HEADS * D + kv..];
                        let (p, dims) = (parallelism(), (queries, D, keys));
                        gemm_crate(dims, &mut scores, q, stride, k, (stride, 1), 0.125, p);
                        scores.chunks_exact_mut(keys).for_each(softmax);
                        gemm_crate((queries, keys, D), &mut head, &scores, keys, v, (1, stride), 1.0, p);
                        std::hint::black_box(&mut head);
                    }
                })
            });
        });
    }
    group.finish();
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let mut total = 0.0;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        total += *x;
    }
    row.iter_mut().for_each(|x| *x /= total);
}
