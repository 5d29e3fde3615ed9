//! Embedding and the gathering of rows (bytes read and written a second), against a copy of as many bytes.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Forward, Layout, Rows};
use lacuna::element::Dtype;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "embedding");
    let (rows, width, vocab, places) = (512, 768, 8192, 1024);
    group.throughput(Throughput::Bytes((8 * rows * width) as u64));
    let ids: Vec<u32> = (0..rows as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let mut index = cpu.alloc_index(rows).expect("memory");
    cpu.write_index(&mut index, &ids).expect("room");
    let mut positions = cpu.alloc_index(rows).expect("memory");
    cpu.write_index(&mut positions, &(0..rows as u32).collect::<Vec<_>>()).expect("room");
    let mut out = cpu.alloc(rows * width).expect("memory");
    let place_table = weight(&cpu, Dtype::F32, Layout::OutIn, width, places);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let table = weight(&cpu, dtype, Layout::OutIn, width, vocab as usize);
        group.bench_function(BenchmarkId::new("embed", dtype), |b| {
            cpu.run(|| b.iter(|| cpu.embed(&table, &index, None, rows, width, &mut out).unwrap()));
        });
        group.bench_function(BenchmarkId::new("embed with positions", dtype), |b| {
            let positions = Some((&place_table, &positions));
            cpu.run(|| b.iter(|| cpu.embed(&table, &index, positions, rows, width, &mut out).unwrap()));
        });
    }
    let source = cpu.upload(&numbers(vocab as usize * width)).expect("memory");
    group.bench_function("gather", |b| {
        let from = (&source, Rows::dense(width));
        cpu.run(|| b.iter(|| cpu.gather(from, &index, rows, width, &mut out).unwrap()));
    });
    group.bench_function("copy", |b| {
        b.iter(|| out.as_mut_slice().copy_from_slice(std::hint::black_box(&source.as_slice()[..rows * width])));
    });
    group.finish();
}
