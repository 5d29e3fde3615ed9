//! Matrix products (FLOP/s) on bf16 and f32 weights, against the `gemm` crate on f32.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Epilogue, Forward, Layout, Rows};
use lacuna::element::Dtype;

use crate::support::*;

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 576, 1536),
    (8, 576, 1536),
    (128, 576, 576),
    (128, 576, 1536),
    (128, 1536, 576),
    (512, 768, 3072),
    (512, 3072, 768),
    (2048, 1024, 1024),
];

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "matmul");
    for (m, k, n) in SHAPES {
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        let shape = format!("{m}x{k}x{n}");
        let numbers_x = numbers(m * k);
        let x = cpu.upload(&numbers_x).expect("memory");
        let mut out = cpu.alloc(m * n).expect("memory");
        for (dtype, layout) in
            [(Dtype::Bf16, Layout::OutIn), (Dtype::F32, Layout::OutIn), (Dtype::F32, Layout::InOut)]
        {
            let w = weight(&cpu, dtype, layout, k, n);
            group.bench_function(BenchmarkId::new(format!("{dtype} {layout:?}"), &shape), |b| {
                cpu.run(|| {
                    b.iter(|| {
                        cpu.linear((&x, 0), m, &w, 0..n, Epilogue::NONE, &mut out, Rows::dense(n)).unwrap()
                    })
                });
            });
        }
        let b_matrix = numbers(k * n);
        let mut c_matrix = vec![0.0; m * n];
        group.bench_function(BenchmarkId::new("gemm crate f32 OutIn", &shape), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let parallelism = parallelism();
                    gemm_crate((m, k, n), &mut c_matrix, &numbers_x, k, &b_matrix, (k, 1), 1.0, parallelism)
                })
            });
        });
    }
    group.finish();
}
