//! Backward passes, each beside its forward in the same group: numbers or multiplications a second count the same for
//! both. Products also beside the `gemm` crate's on f32; masked cross-entropy beside that of rows that all count.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use lacuna::backend::cpu::{Buffer, Cpu};
use lacuna::backend::{
    Attended, Backend, Backward, Epilogue, Forward, HeadShape, Layout, Mask, Rows, Segment, TokenWeight,
};
use lacuna::config::{Activation, NormKind};
use lacuna::element::Dtype;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    linear(c);
    attention(c);
    norm(c);
    elementwise(c);
    rope(c);
    embed(c);
    cross_entropy(c);
    head(c);
}

fn buffer(cpu: &Cpu<f32>, len: usize) -> Buffer<f32> {
    cpu.upload(&numbers(len)).expect("memory")
}

fn index(cpu: &Cpu<f32>, numbers: impl Iterator<Item = usize>) -> Buffer<u32> {
    let numbers: Vec<u32> = numbers.map(|n| n as u32).collect();
    let mut index = cpu.alloc_index(numbers.len()).expect("memory");
    cpu.write_index(&mut index, &numbers).expect("room");
    index
}

/// Gradients of input and weight, `[rows, inputs] x [inputs, outputs]`.
fn linear(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "linear backward");
    for (m, k, n) in [(128, 576, 1536), (512, 576, 576), (512, 1536, 576), (512, 768, 3072)] {
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        let id = format!("{m}x{k}x{n}");
        let (x_numbers, dy_numbers, w_numbers) = (numbers(m * k), numbers(m * n), numbers(n * k));
        let (x, dy) = (cpu.upload(&x_numbers).expect("memory"), cpu.upload(&dy_numbers).expect("memory"));
        let (mut out, mut dx) = (buffer(&cpu, m * n), buffer(&cpu, m * k));
        let mut dw = cpu.alloc(n * k).expect("memory");
        for layout in [Layout::OutIn, Layout::InOut] {
            let w = weight(&cpu, Dtype::F32, layout, k, n);
            group.bench_function(BenchmarkId::new(format!("forward {layout:?}"), &id), |b| {
                cpu.run(|| {
                    b.iter(|| {
                        cpu.linear((&x, 0), m, &w, 0..n, Epilogue::NONE, &mut out, Rows::dense(n)).unwrap()
                    })
                });
            });
            group.bench_function(BenchmarkId::new(format!("input {layout:?}"), &id), |b| {
                let dy = (&dy, Rows::dense(n));
                cpu.run(|| {
                    b.iter(|| cpu.linear_backward_input(dy, m, &w, 0..n, false, (&mut dx, 0)).unwrap())
                });
            });
            group.bench_function(BenchmarkId::new(format!("weight {layout:?}"), &id), |b| {
                let (x, dy) = ((&x, 0), (&dy, Rows::dense(n)));
                cpu.run(|| {
                    b.iter(|| {
                        cpu.linear_backward_weight(x, dy, m, k, n, layout, Some(&mut dw), None, &mut ())
                            .unwrap()
                    })
                });
            });
        }
        let mut product = vec![0.0; m * k];
        group.bench_function(BenchmarkId::new("gemm crate f32, input OutIn", &id), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let p = parallelism();
                    gemm_crate((m, n, k), &mut product, &dy_numbers, n, &w_numbers, (1, k), 1.0, p);
                    std::hint::black_box(&mut product);
                })
            });
        });
        // The crate reads rows of the left factor that are dense: x is turned beforehand, at no cost to it.
        let turned: Vec<f32> = (0..k * m).map(|i| x_numbers[i % m * k + i / m]).collect();
        let mut product = vec![0.0; k * n];
        group.bench_function(BenchmarkId::new("gemm crate f32, weight InOut", &id), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let p = parallelism();
                    gemm_crate((k, m, n), &mut product, &turned, m, &dy_numbers, (1, n), 1.0, p);
                    std::hint::black_box(&mut product);
                })
            });
        });
    }
    group.finish();
}

/// FLOP/s of the forward's two products, for both.
fn attention(c: &mut Criterion) {
    const D: usize = 64;
    const HEADS: usize = 9;
    const KV_HEADS: usize = 3;
    let cpu = cpu();
    let mut group = group(c, "attention backward");
    let (width, stride) = (HEADS * D, (HEADS + 2 * KV_HEADS) * D);
    let places = [0, width, width + KV_HEADS * D].map(|at| Rows { at, stride });
    let shape = HeadShape { heads: HEADS, kv_heads: KV_HEADS, head_dim: D, scale: 0.125 };
    for len in [128, 1024] {
        group.throughput(Throughput::Elements((4 * len * len * width) as u64));
        let (qkv, d_out) = (buffer(&cpu, len * stride), buffer(&cpu, len * width));
        let (mut out, mut log_sum) = (buffer(&cpu, len * width), buffer(&cpu, len * HEADS));
        let mut d_qkv = buffer(&cpu, len * stride);
        let positions = index(&cpu, 0..len);
        let segments = vec![Segment { q_start: 0, q_len: len, k_start: 0, k_len: len }];
        let [q, k, v] = places.map(|at| (&qkv, at));
        for (name, mask) in [("full", Mask::Full), ("causal", Mask::Causal)] {
            let mask = mask.into();
            group.bench_function(BenchmarkId::new(format!("forward {name}"), len), |b| {
                cpu.run(|| {
                    b.iter(|| cpu.attention(q, k, v, shape, &segments, &positions, &mask, &mut out).unwrap())
                });
            });
            group.bench_function(BenchmarkId::new(format!("forward saving {name}"), len), |b| {
                let (out, log_sum) = (&mut out, &mut log_sum);
                cpu.run(|| {
                    b.iter(|| {
                        cpu.attention_saving(q, k, v, shape, &segments, &positions, &mask, out, log_sum)
                            .unwrap()
                    })
                });
            });
            cpu.attention_saving(q, k, v, shape, &segments, &positions, &mask, &mut out, &mut log_sum)
                .expect("shapes that fit");
            group.bench_function(BenchmarkId::new(format!("backward {name}"), len), |b| {
                cpu.run(|| {
                    b.iter(|| {
                        let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
                        let d = &mut d_qkv;
                        cpu.attention_backward(
                            kept,
                            &d_out,
                            shape,
                            &segments,
                            &positions,
                            &mask,
                            d,
                            places,
                            &mut (),
                        )
                        .unwrap()
                    })
                });
            });
        }
    }
    group.finish();
}

fn norm(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "norm backward");
    let (rows, width) = (512, 576);
    group.throughput(Throughput::Elements((rows * width) as u64));
    let (x, dy) = (buffer(&cpu, rows * width), buffer(&cpu, rows * width));
    let (mut out, weight, bias) = (buffer(&cpu, rows * width), buffer(&cpu, width), buffer(&cpu, width));
    let [mut dx, mut dw, mut db] = [rows * width, width, width].map(|n| cpu.alloc(n).expect("memory"));
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        let layer = kind == NormKind::LayerNorm;
        group.bench_function(BenchmarkId::new("forward", format!("{kind:?}")), |b| {
            let bias = layer.then_some(&bias);
            cpu.run(|| b.iter(|| cpu.norm(kind, &x, &weight, bias, 1e-5, rows, width, &mut out).unwrap()));
        });
        group.bench_function(BenchmarkId::new("backward", format!("{kind:?}")), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let (dw, db) = (Some(&mut dw), layer.then_some(&mut db));
                    cpu.norm_backward(kind, &x, &weight, &dy, 1e-5, rows, width, &mut dx, dw, db, &mut ())
                        .unwrap()
                })
            });
        });
    }
    group.finish();
}

fn elementwise(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "activation backward");
    let (rows, width) = (128, 1536);
    let len = rows * width;
    group.throughput(Throughput::Elements(len as u64));
    let (x, dy) = (buffer(&cpu, 2 * len), buffer(&cpu, len));
    let (mut out, mut d) = (buffer(&cpu, len), buffer(&cpu, 2 * len));
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        group.bench_function(BenchmarkId::new("forward", format!("{kind:?}")), |b| {
            cpu.run(|| b.iter(|| cpu.activation(kind, &x, len, &mut out).unwrap()));
        });
        group.bench_function(BenchmarkId::new("backward", format!("{kind:?}")), |b| {
            // It works in place: from the same numbers each time, or they would sink below the normal ones.
            let fresh = || cpu.upload(&dy.as_slice()[..len]).expect("memory");
            let backward = |d: &mut Buffer<f32>| cpu.activation_backward(kind, &x, len, d).unwrap();
            cpu.run(|| b.iter_batched_ref(fresh, backward, BatchSize::LargeInput));
        });
    }
    group.bench_function("forward/swiglu", |b| {
        cpu.run(|| b.iter(|| cpu.swiglu(&x, rows, width, &mut out).unwrap()));
    });
    group.bench_function("backward/swiglu", |b| {
        cpu.run(|| b.iter(|| cpu.swiglu_backward(&x, &dy, rows, width, &mut d).unwrap()));
    });
    group.finish();
}

fn rope(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "rope backward");
    let (rows, heads, d) = (512, 9, 64);
    group.throughput(Throughput::Elements((rows * heads * d) as u64));
    let mut x = buffer(&cpu, rows * heads * d);
    let (at, positions) = (Rows::dense(heads * d), index(&cpu, 0..rows));
    // Cosines and sines: turning keeps numbers in their range, however often it is done.
    let angles = |p: usize| (0..d / 2).map(move |i| (p * (i + 1)) as f32 * 0.01);
    let table: Vec<f32> =
        (0..rows).flat_map(|p| angles(p).map(f32::cos).chain(angles(p).map(f32::sin))).collect();
    let table = cpu.upload(&table).expect("memory");
    group.bench_function("forward", |b| {
        cpu.run(|| b.iter(|| cpu.rope(&mut x, at, rows, heads, d, &positions, &table).unwrap()));
    });
    group.bench_function("backward", |b| {
        cpu.run(|| b.iter(|| cpu.rope_backward(&mut x, at, rows, heads, d, &positions, &table).unwrap()));
    });
    group.finish();
}

fn embed(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "embedding backward");
    let (rows, width, vocab) = (512, 576, 49152);
    group.throughput(Throughput::Elements((rows * width) as u64));
    let ids = index(&cpu, (0..rows).map(|t| t * 7919 % vocab));
    let table = weight(&cpu, Dtype::F32, Layout::OutIn, width, vocab);
    let (mut out, dx) = (buffer(&cpu, rows * width), buffer(&cpu, rows * width));
    let mut d_table = cpu.alloc(vocab * width).expect("memory");
    group.bench_function("forward", |b| {
        cpu.run(|| b.iter(|| cpu.embed(&table, &ids, None, rows, width, &mut out).unwrap()));
    });
    group.bench_function("backward", |b| {
        cpu.run(|| {
            b.iter(|| {
                cpu.embed_backward(&dx, rows, width, Some((&mut d_table, vocab, &ids)), None).unwrap();
            })
        });
    });
    group.finish();
}

const VOCAB: usize = 49152;
const WIDTH: usize = 576;
/// Rows of logits at a time.
const CHUNK: usize = 85;

fn cross_entropy(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "cross-entropy backward");
    group.throughput(Throughput::Elements((CHUNK * VOCAB) as u64));
    let mut logits = buffer(&cpu, CHUNK * VOCAB);
    let (targets, mut losses) = (vec![7; CHUNK], vec![0.0; CHUNK]);
    group.bench_function("forward", |b| {
        cpu.run(|| b.iter(|| cpu.cross_entropy(&logits, VOCAB, &targets, &mut losses).unwrap()));
    });
    let (targets, [weights, mut nll]) = (index(&cpu, (0..CHUNK).map(|_| 7)), floats(&cpu, CHUNK));
    for (name, token) in
        [("backward", TokenWeight::NONE), ("backward, focal", TokenWeight { alpha: 0.25, gamma: 2.0 })]
    {
        group.bench_function(name, |b| {
            cpu.run(|| {
                b.iter(|| {
                    let logits = &mut logits;
                    cpu.cross_entropy_backward(
                        (logits, Rows::dense(VOCAB)),
                        VOCAB,
                        0..CHUNK,
                        &targets,
                        &weights,
                        token,
                        &mut nll,
                    )
                    .unwrap()
                })
            });
        });
    }
    group.finish();
}

/// Weights of 1, and room for losses.
fn floats(cpu: &Cpu<f32>, len: usize) -> [Buffer<f32>; 2] {
    let [mut ones, nll] = [0, 1].map(|_| cpu.alloc_floats(len).expect("memory"));
    cpu.write_floats(&mut ones, &vec![1.0; len]).expect("room");
    [ones, nll]
}

/// The head of a training step (sequence rows a second): product, loss and both gradients of the masked rows of 512, in
/// chunks. The baseline is every row masked.
fn head(c: &mut Criterion) {
    const ROWS: usize = 512;
    let cpu = cpu();
    let mut group = group(c, "masked head");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ROWS as u64));
    let w = weight(&cpu, Dtype::F32, Layout::OutIn, WIDTH, VOCAB);
    let (x, mut dx) = (buffer(&cpu, ROWS * WIDTH), buffer(&cpu, ROWS * WIDTH));
    let (mut logits, mut dw) = (buffer(&cpu, CHUNK * VOCAB), cpu.alloc(VOCAB * WIDTH).expect("memory"));
    let targets = index(&cpu, (0..ROWS).map(|t| t * 7919 % VOCAB));
    let [weights, mut nll] = floats(&cpu, ROWS);
    let (token, dense) = (TokenWeight::NONE, Rows::dense(VOCAB));
    for percent in [100, 50, 15] {
        let masked = ROWS * percent / 100;
        let name =
            if percent == 100 { "100 % masked, baseline".into() } else { format!("{percent} % masked") };
        group.bench_function(name, |b| {
            cpu.run(|| {
                b.iter(|| {
                    for first in (0..masked).step_by(CHUNK) {
                        let rows = first..(first + CHUNK).min(masked);
                        let (n, at) = (rows.len(), first * WIDTH);
                        let none = Epilogue::NONE;
                        cpu.linear((&x, at), n, &w, 0..VOCAB, none, &mut logits, dense).unwrap();
                        let (y, nll) = (&mut logits, &mut nll);
                        cpu.cross_entropy_backward(
                            (y, Rows::dense(VOCAB)),
                            VOCAB,
                            rows,
                            &targets,
                            &weights,
                            token,
                            nll,
                        )
                        .unwrap();
                        let dy = (&logits, dense);
                        cpu.linear_backward_input(dy, n, &w, 0..VOCAB, false, (&mut dx, at)).unwrap();
                        let (dw, layout) = (Some(&mut dw), Layout::OutIn);
                        cpu.linear_backward_weight((&x, at), dy, n, WIDTH, VOCAB, layout, dw, None, &mut ())
                            .unwrap();
                    }
                })
            });
        });
    }
    group.finish();
}
