//! What only moves or sums numbers (bytes read and written a second), each against the plain loop over the same memory: zero,
//! copy, scale, rows into the KV cache, the bias of a product and its gradient, which is a sum of columns.

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::backend::{Backend, Backward, Epilogue, Forward, Layout, Rows};
use lacuna::element::Dtype;

use crate::support::*;

pub fn bench(c: &mut Criterion) {
    whole_buffers(c);
    rows_of_a_cache(c);
    bias(c);
}

fn whole_buffers(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "moves");
    // More than any cache holds.
    let len = 16 << 20;
    let source = cpu.upload(&numbers(len)).expect("memory");
    let mut out = cpu.alloc(len).expect("memory");
    group.throughput(Throughput::Bytes((4 * len) as u64));
    group.bench_function("zero", |b| cpu.run(|| b.iter(|| cpu.zero(&mut out, len).unwrap())));
    group.bench_function("zero, plain", |b| b.iter(|| std::hint::black_box(out.as_mut_slice()).fill(0.0)));
    group.throughput(Throughput::Bytes((8 * len) as u64));
    group.bench_function("copy", |b| cpu.run(|| b.iter(|| cpu.copy(&source, &mut out, len).unwrap())));
    group.bench_function("copy, plain", |b| {
        b.iter(|| out.as_mut_slice().copy_from_slice(std::hint::black_box(source.as_slice())));
    });
    // By -1, so that the numbers stay what they are however often it is done.
    group.bench_function("scale", |b| cpu.run(|| b.iter(|| cpu.scale(&mut out, len, -1.0).unwrap())));
    group.bench_function("scale, plain", |b| {
        b.iter(|| std::hint::black_box(out.as_mut_slice()).iter_mut().for_each(|x| *x = -*x));
    });
    group.finish();
}

fn rows_of_a_cache(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "scatter");
    let (rows, width, places) = (512, 768, 4096);
    group.throughput(Throughput::Bytes((8 * rows * width) as u64));
    let to: Vec<u32> = (0..rows as u32).map(|i| i.wrapping_mul(2_654_435_761) % places).collect();
    let mut index = cpu.alloc_index(rows).expect("memory");
    cpu.write_index(&mut index, &to).expect("room");
    let source = cpu.upload(&numbers(rows * width)).expect("memory");
    let mut cache = cpu.alloc(places as usize * width).expect("memory");
    let id = format!("{rows}x{width}");
    group.bench_function(BenchmarkId::new("scatter", &id), |b| {
        let dense = Rows::dense(width);
        cpu.run(|| {
            b.iter(|| cpu.scatter((&source, dense), &index, rows, width, (&mut cache, dense)).unwrap())
        });
    });
    group.bench_function(BenchmarkId::new("plain", &id), |b| {
        b.iter(|| {
            let cache = std::hint::black_box(cache.as_mut_slice());
            for (&row, from) in to.iter().zip(source.as_slice().chunks_exact(width)) {
                cache[row as usize * width..][..width].copy_from_slice(from);
            }
        });
    });
    group.finish();
}

fn bias(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "bias");
    let (rows, width) = (512, 3072);
    let id = format!("{rows}x{width}");
    let gradient = cpu.upload(&numbers(rows * width)).expect("memory");
    let mut d_bias = cpu.alloc(width).expect("memory");
    group.throughput(Throughput::Bytes((4 * rows * width) as u64));
    let x = cpu.upload(&numbers(rows)).expect("memory");
    group.bench_function(BenchmarkId::new("gradient", &id), |b| {
        let dy = (&gradient, Rows::dense(width));
        let layout = Layout::InOut;
        cpu.run(|| {
            b.iter(|| {
                cpu.linear_backward_weight(
                    (&x, 0),
                    dy,
                    rows,
                    1,
                    width,
                    layout,
                    None,
                    Some(&mut d_bias),
                    &mut (),
                )
                .unwrap()
            })
        });
    });
    let mut sums = vec![0.0_f32; width];
    group.bench_function(BenchmarkId::new("gradient, plain", &id), |b| {
        b.iter(|| {
            for row in std::hint::black_box(gradient.as_slice()).chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            std::hint::black_box(&mut sums);
        });
    });

    // One input: the product is next to nothing, what is added to it is everything.
    let w = weight(&cpu, Dtype::F32, Layout::InOut, 1, width);
    let added = cpu.upload(&numbers(width)).expect("memory");
    let mut out = cpu.alloc(rows * width).expect("memory");
    for (name, bias, accumulate) in
        [("product", None, false), ("product + bias", Some(&added), false), ("accumulated", None, true)]
    {
        group.bench_function(BenchmarkId::new(name, &id), |b| {
            cpu.run(|| {
                b.iter(|| {
                    let epilogue = Epilogue { bias, activation: None, accumulate };
                    cpu.linear((&x, 0), rows, &w, 0..width, epilogue, &mut out, Rows::dense(width)).unwrap()
                })
            });
        });
    }
    group.finish();
}
