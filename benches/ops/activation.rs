//! SwiGLU, and what an activation adds to a matrix product (numbers a second), against the standard
//! library's functions.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Epilogue, Forward, Layout, Rows};
use lacuna::config::Activation;
use lacuna::element::Dtype;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "activation");
    let (rows, width) = (128, 1536);
    group.throughput(Throughput::Elements((rows * width) as u64));
    let both = cpu.upload(&numbers(2 * rows * width)).expect("memory");
    let mut out = cpu.alloc(rows * width).expect("memory");
    group.bench_function("swiglu", |b| {
        cpu.run(|| b.iter(|| cpu.swiglu(&both, rows, width, &mut out).unwrap()));
    });
    let (numbers_in, mut plain) = (numbers(2 * rows * width), vec![0.0_f32; rows * width]);
    group.bench_function("swiglu, standard library", |b| {
        b.iter(|| {
            for (both, out) in numbers_in.chunks_exact(2 * width).zip(plain.chunks_exact_mut(width)) {
                for j in 0..width {
                    out[j] = both[j] / (1.0 + (-both[j]).exp()) * both[width + j];
                }
            }
        })
    });

    // One input: the product is next to nothing, the epilogue is everything.
    let w = weight(&cpu, Dtype::F32, Layout::InOut, 1, width);
    let x = cpu.upload(&numbers(rows)).expect("memory");
    for kind in [None, Some(Activation::Silu), Some(Activation::GeluTanh), Some(Activation::GeluErf)] {
        let name = kind.map_or("none".into(), |k| format!("{k:?}"));
        group.bench_function(BenchmarkId::new("epilogue", name), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let epilogue = Epilogue { bias: None, activation: kind, accumulate: false };
                    cpu.linear((&x, 0), rows, &w, 0..width, epilogue, &mut out, Rows::dense(width)).unwrap()
                })
            });
        });
    }
    group.finish();
}
