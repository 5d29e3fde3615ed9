//! The head on a few rows (bytes of weight a second, against a copy of the weight), and cross-entropy
//! (bytes of logits a second).

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Epilogue, Forward, Layout, Rows};
use lacuna::element::Dtype;

use crate::support::*;

const VOCAB: usize = 49152;
const WIDTH: usize = 576;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "head");
    let w = weight(&cpu, Dtype::Bf16, Layout::OutIn, WIDTH, VOCAB);
    let bytes = (2 * WIDTH * VOCAB) as u64;
    for rows in [1, 4, 16, 64] {
        group.throughput(Throughput::Bytes(bytes));
        let x = cpu.upload(&numbers(rows * WIDTH)).expect("memory");
        let mut out = cpu.alloc(rows * VOCAB).expect("memory");
        group.bench_function(BenchmarkId::new("logits", format!("{rows} rows")), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let dense = Rows::dense(VOCAB);
                    cpu.linear((&x, 0), rows, &w, 0..VOCAB, Epilogue::NONE, &mut out, dense).unwrap()
                })
            });
        });
    }
    let source = vec![1_u8; bytes as usize];
    let mut target = vec![0_u8; bytes as usize];
    group.bench_function("copy of the weight, one thread", |b| b.iter(|| target.copy_from_slice(&source)));

    let rows = 16;
    group.throughput(Throughput::Bytes((4 * rows * VOCAB) as u64));
    let logits = cpu.upload(&numbers(rows * VOCAB)).expect("memory");
    let (targets, mut nll) = (vec![7_u32; rows], vec![0.0; rows]);
    group.bench_function(BenchmarkId::new("cross-entropy", format!("{rows} rows")), |b| {
        cpu.run(|| b.iter(|| cpu.cross_entropy(&logits, VOCAB, &targets, &mut nll).unwrap()));
    });
    group.finish();
}
