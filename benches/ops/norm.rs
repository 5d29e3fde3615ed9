//! Norms and rotary positions (bytes read and written a second), against a copy of the same rows.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Forward, Rows};
use lacuna::config::NormKind;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "norm");
    for (rows, width) in [(128, 576), (512, 1024)] {
        group.throughput(Throughput::Bytes((8 * rows * width) as u64));
        let id = format!("{rows}x{width}");
        let mut x = cpu.upload(&numbers(rows * width)).expect("memory");
        let (w, bias) = (cpu.upload(&numbers(width)).unwrap(), cpu.upload(&numbers(width)).unwrap());
        let mut out = cpu.alloc(rows * width).expect("memory");
        for (kind, bias) in [(NormKind::LayerNorm, Some(&bias)), (NormKind::RmsNorm, None)] {
            group.bench_function(BenchmarkId::new(format!("{kind:?}"), &id), |b| {
                cpu.run(|| b.iter(|| cpu.norm(kind, &x, &w, bias, 1e-5, rows, width, &mut out).unwrap()));
            });
        }
        let mut positions = cpu.alloc_index(rows).expect("memory");
        cpu.write_index(&mut positions, &(0..rows as u32).collect::<Vec<_>>()).expect("room");
        let table = cpu.upload(&numbers(rows * 64)).expect("memory");
        group.bench_function(BenchmarkId::new("rope", &id), |b| {
            let at = Rows::dense(width);
            cpu.run(|| b.iter(|| cpu.rope(&mut x, at, rows, width / 64, 64, &positions, &table).unwrap()));
        });
        group.bench_function(BenchmarkId::new("copy", &id), |b| {
            b.iter(|| out.as_mut_slice().copy_from_slice(std::hint::black_box(x.as_slice())));
        });
    }
    group.finish();
}
