//! Inputs and settings of the benches.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use half::{bf16, f16};
use lacuna::backend::cpu::{Cpu, Matrix};
use lacuna::backend::{Backend, Layout};
use lacuna::element::{Dtype, StoredTensor};

/// Threads of every measurement, baselines included.
pub fn threads() -> NonZeroUsize {
    let set = std::env::var("LACUNA_BENCH_THREADS").ok().and_then(|t| t.parse().ok());
    set.unwrap_or(NonZeroUsize::MIN)
}

pub fn cpu() -> Cpu<f32> {
    Cpu::new(Some(threads())).expect("threads")
}

pub fn parallelism() -> gemm::Parallelism {
    if threads().get() == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads().get()) }
}

pub fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("{name}/{} threads", threads()));
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

/// Numbers in -1 .. 1.
pub fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A random weight, two bytes off alignment as in a file.
pub fn weight(cpu: &Cpu<f32>, dtype: Dtype, layout: Layout, inputs: usize, outputs: usize) -> Matrix {
    let mut bytes = vec![0; 2];
    for x in numbers(inputs * outputs) {
        match dtype {
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        }
    }
    let shape = if layout == Layout::OutIn { vec![outputs, inputs] } else { vec![inputs, outputs] };
    let tensor = StoredTensor::new(dtype, shape, Bytes::from(bytes).slice(2..)).expect("a shape that fits");
    cpu.matrix(&tensor, layout).expect("two dimensions")
}

/// `c = a b` by the `gemm` crate: `a` `[m, k]`, `b` `[k, n]` with the given strides, `c` `[m, n]`.
#[allow(clippy::too_many_arguments)]
pub fn gemm_crate(
    (m, k, n): (usize, usize, usize),
    c: &mut [f32],
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    (b_column, b_row): (usize, usize),
    alpha: f32,
    parallelism: gemm::Parallelism,
) {
    assert!(c.len() >= m * n && a.len() > (m - 1) * a_stride + k - 1);
    assert!(b.len() > (k - 1) * b_row + (n - 1) * b_column);
    // SAFETY: the slices hold the three matrices (asserted above).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            a_stride as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            0.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
