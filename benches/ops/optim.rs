//! A step of AdamW (bytes read and written a second), against plain loops over the same memory, one for each of the
//! two moments and one for the parameter; and the norm of a gradient against a plain sum.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{AdamW, Backend, MomentFormat, Optimise, Trainable};
use lacuna::rng::Rng;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "optim");
    // More than any cache holds.
    let len = 16 << 20;
    let mut p = cpu.upload(&numbers(len)).expect("memory");
    let g = cpu.upload(&numbers(len)).expect("memory");
    let step = AdamW {
        lr: 1e-4,
        betas: [0.9, 0.999],
        eps: 1e-8,
        decay: 0.01,
        clip: 0.0,
        unscale: 1.0,
        step: 10,
        rng: Rng::new(1),
    };
    let mut control = cpu.control(&[]).expect("memory");
    cpu.prepare(&mut control, step).and_then(|()| cpu.settle(&mut control)).expect("settings");
    let formats =
        [(MomentFormat::F32, "f32", 28), (MomentFormat::Bf16, "bf16", 20), (MomentFormat::Q8, "8bit", 16)];
    for (format, name, bytes) in formats {
        group.throughput(Throughput::Bytes((bytes * len) as u64));
        let mut state = cpu.state(Trainable::Vector(&mut p), format).expect("memory");
        group.bench_function(BenchmarkId::new("step", name), |b| {
            cpu.run(|| {
                b.iter(|| cpu.step(Trainable::Vector(&mut p), &g, &mut state, &control, 0, true).unwrap())
            });
        });
    }
    group.throughput(Throughput::Bytes((28 * len) as u64));
    let (mut m, mut v) = (vec![0.0_f32; len], vec![0.0_f32; len]);
    group.bench_function(BenchmarkId::new("step", "three loops"), |b| {
        b.iter(|| plain(p.as_mut_slice(), g.as_slice(), &mut m, &mut v));
    });
    group.throughput(Throughput::Bytes((4 * len) as u64));
    group.bench_function(BenchmarkId::new("sum_of_squares", "f64"), |b| {
        cpu.run(|| b.iter(|| cpu.sum_of_squares(&g, len).unwrap()));
    });
    group.bench_function(BenchmarkId::new("sum_of_squares", "plain"), |b| {
        b.iter(|| {
            std::hint::black_box(&g).as_slice().iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
        });
    });
    // What a step asks of all gradients before the first update: settings, measuring, the factor of clipping.
    let mut control = cpu.control(&[len]).expect("memory");
    group.bench_function(BenchmarkId::new("sum_of_squares", "prepare, measure, settle"), |b| {
        cpu.run(|| {
            b.iter(|| {
                cpu.prepare(&mut control, AdamW { clip: 1.0, ..step }).unwrap();
                cpu.measure(&mut control, 0, &g).unwrap();
                cpu.settle(&mut control).unwrap();
            })
        });
    });
    group.finish();
}

#[inline(never)]
fn plain(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (m, g) in m.iter_mut().zip(g) {
        *m = 0.9 * *m + 0.1 * g;
    }
    for (v, g) in v.iter_mut().zip(g) {
        *v = 0.999 * *v + 0.001 * g * g;
    }
    for ((p, m), v) in p.iter_mut().zip(m).zip(v) {
        *p = *p * (1.0 - 1e-6) - 1e-3 * *m / ((*v * 100.0).sqrt() + 1e-8);
    }
}
