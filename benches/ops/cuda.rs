//! The CUDA kernels on an NVIDIA card, by its own clock: bytes or FLOP a second, against a copy of rows (what memory
//! gives) for those that move bytes. Without a card they are not measured, and a line says why.
//! `cargo bench --bench ops -- cuda`.
//!
//! `LACUNA_BENCH_SIMT=1` runs tiny sizes on the host SIMT machine instead: whether the bench runs, not how fast anything is.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use lacuna::backend::cuda::driver::Card;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::backend::cuda::{
    Buffer, Cuda, Device, DeviceMask, Draws, Format, LinearEpilogue, Matrix, RowNoise, Segments,
    UNMASK_WORDS, unmask_words,
};
use lacuna::backend::{Confidence, HeadShape, Layout, NO_TOKEN, RowParams, Rows, Segment};
use lacuna::config::NormKind;
use lacuna::element::Dtype;

use crate::support::numbers;

const BF16: Dtype = Dtype::Bf16;

/// What is measured. Buffers of a card exceed its second-level cache.
struct Sizes {
    rows: usize,
    width: usize,
    /// Tokens of all sequences together, and the lengths they are cut into.
    tokens: usize,
    lengths: &'static [usize],
    heads: usize,
    /// rows, inputs, outputs.
    products: &'static [[usize; 3]],
    vocab: usize,
    draws: usize,
}

const CARD: Sizes = Sizes {
    rows: 32_768,
    width: 4096,
    tokens: 16_384,
    lengths: &[512, 1024, 2048],
    heads: 16,
    products: &[[8192, 768, 3072], [8192, 4096, 4096], [16, 768, 50_257], [16, 4096, 32_000]],
    vocab: 50_257,
    draws: 2048,
};

const SIMT: Sizes = Sizes {
    rows: 2,
    width: 64,
    tokens: 64,
    lengths: &[32],
    heads: 1,
    products: &[[8, 32, 64]],
    vocab: 300,
    draws: 2,
};

pub fn bench(c: &mut Criterion) {
    if std::env::var_os("LACUNA_BENCH_SIMT").is_some() {
        return kernels(c, &Cuda::new(Simt::new(Options { seed: 0, check: false })), &SIMT);
    }
    match Card::open(0) {
        Ok(card) => kernels(c, &Cuda::new(card), &CARD),
        Err(error) => eprintln!("CUDA kernels are not measured: {error}"),
    }
}

/// Measures `work` by events around as many calls as criterion asks for.
fn timed<D: Device>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    device: &D,
    id: BenchmarkId,
    mut work: impl FnMut(),
) {
    group.bench_function(id, |b| {
        b.iter_custom(|calls| {
            let from = device.record().expect("an event");
            (0..calls).for_each(|_| work());
            let to = device.record().expect("an event");
            let ms = device.elapsed_ms(&from, &to).expect("a time");
            Duration::from_secs_f64(f64::from(ms) / 1e3)
        });
    });
}

fn floats<D: Device>(cuda: &Cuda<D>, len: usize) -> Buffer<D> {
    Buffer::floats(cuda.device(), BF16, &numbers(len)).expect("memory")
}

fn kernels<D: Device>(c: &mut Criterion, cuda: &Cuda<D>, sizes: &Sizes) {
    let mut group = c.benchmark_group(format!("cuda/{}", cuda.device().facts().name));
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    rows(&mut group, cuda, sizes);
    attention(&mut group, cuda, sizes);
    products(&mut group, cuda, sizes);
    unmask(&mut group, cuda, sizes);
    group.finish();
}

fn rows<D: Device>(group: &mut BenchmarkGroup<'_, WallTime>, cuda: &Cuda<D>, sizes: &Sizes) {
    let (device, n, width) = (cuda.device(), sizes.rows, sizes.width);
    let (x, weight) = (floats(cuda, n * width), floats(cuda, width));
    let mut out = Buffer::new(device, BF16, n * width).expect("memory");
    let order: Vec<u32> = (0..n as u32).collect();
    let order = Buffer::of(device, Format::U32, &order).expect("memory");
    let id = |name| BenchmarkId::new(name, format!("{n}x{width} bf16"));
    group.throughput(Throughput::Bytes((4 * n * width) as u64));
    timed(group, device, id("copy (gather of all rows)"), || {
        cuda.gather(BF16, (&x, Rows::dense(width)), &order, n, width, &mut out).expect("a launch");
    });
    for (name, kind) in [("LayerNorm", NormKind::LayerNorm), ("RMSNorm", NormKind::RmsNorm)] {
        timed(group, device, id(name), || {
            cuda.norm(BF16, kind, &x, None, &weight, None, 1e-5, n, width, &mut out).expect("a launch");
        });
    }
    group.throughput(Throughput::Bytes((3 * n * width) as u64));
    timed(group, device, id("SwiGLU"), || {
        cuda.swiglu(BF16, &x, n, width / 2, &mut out).expect("a launch");
    });
}

fn attention<D: Device>(group: &mut BenchmarkGroup<'_, WallTime>, cuda: &Cuda<D>, sizes: &Sizes) {
    let device = cuda.device();
    for head_dim in [64, 128] {
        for &len in sizes.lengths {
            let (tokens, heads) = (sizes.tokens, sizes.heads * 128 / head_dim);
            let width = heads * head_dim;
            let qkv = floats(cuda, tokens * 3 * width);
            let mut out = Buffer::new(device, BF16, tokens * width).expect("memory");
            let list: Vec<Segment> = (0..tokens / len)
                .map(|s| Segment { q_start: s * len, q_len: len, k_start: s * len, k_len: len })
                .collect();
            let segments = Segments::new(device, &list).expect("memory");
            let positions: Vec<u32> = (0..tokens).map(|t| (t % len) as u32).collect();
            let positions = Buffer::of(device, Format::U32, &positions).expect("memory");
            let scale = 1.0 / (head_dim as f64).sqrt();
            let shape = HeadShape { heads, kv_heads: heads, head_dim, scale };
            let at = |at| (&qkv, Rows { at, stride: 3 * width });
            group.throughput(Throughput::Elements((4 * tokens * len * width) as u64));
            let id = BenchmarkId::new("attention (FLOP)", format!("L {len}, D {head_dim}, H {heads}, bf16"));
            timed(group, device, id, || {
                let mask = DeviceMask::Full;
                cuda.attention(
                    BF16,
                    at(0),
                    at(width),
                    at(2 * width),
                    shape,
                    &segments,
                    &positions,
                    mask,
                    &mut out,
                    None,
                )
                .expect("a launch");
            });
        }
    }
}

fn products<D: Device>(group: &mut BenchmarkGroup<'_, WallTime>, cuda: &Cuda<D>, sizes: &Sizes) {
    let device = cuda.device();
    for &[n, inputs, outputs] in sizes.products {
        let x = floats(cuda, n * inputs);
        let weight = floats(cuda, inputs * outputs);
        let weight = Matrix::of(weight, BF16, Layout::OutIn, [inputs, outputs]).expect("a matrix");
        let mut out = Buffer::new(device, BF16, n * outputs).expect("memory");
        group.throughput(Throughput::Elements((2 * n * inputs * outputs) as u64));
        let id = BenchmarkId::new("matmul (FLOP)", format!("{n}x{inputs}x{outputs} bf16"));
        timed(group, device, id, || {
            let (x, out) = ((&x, Rows::dense(inputs)), (&mut out, Rows::dense(outputs)));
            let epilogue = LinearEpilogue { bias: None, activation: None, accumulate: false };
            cuda.linear(BF16, x, n, &weight, 0..outputs, epilogue, out, BF16).expect("a launch");
        });
    }
}

fn unmask<D: Device>(group: &mut BenchmarkGroup<'_, WallTime>, cuda: &Cuda<D>, sizes: &Sizes) {
    let (device, n, vocab) = (cuda.device(), sizes.draws, sizes.vocab);
    // Spread like the logits of a model that has an opinion.
    let logits: Vec<f32> = numbers(n * vocab).iter().map(|x| 12.0 * x * x * x).collect();
    for dtype in [Dtype::F32, BF16] {
        let logits = Buffer::floats(device, dtype, &logits).expect("memory");
        let mut draws = Draws::new(device, n).expect("memory");
        group.throughput(Throughput::Bytes((n * vocab * dtype.size()) as u64));
        for (name, temperature, top_p, top_k) in [
            ("greedy", 0.0, 1.0, 0),
            ("sampled", 1.0, 1.0, 0),
            ("top-p 0.9", 1.0, 0.9, 0),
            ("top-k 40", 1.0, 1.0, 40),
        ] {
            let confidence = Confidence::MaxProb;
            let row = |r: usize| {
                let uniform = (r as f32 + 0.5) / n as f32;
                let params = RowParams {
                    temperature,
                    top_p,
                    top_k,
                    suppress: NO_TOKEN,
                    uniform,
                    confidence,
                    given: NO_TOKEN,
                };
                unmask_words(vocab, &params, RowNoise::Given).expect("parameters")
            };
            let words: Vec<u32> = (0..n).flat_map(row).collect();
            assert_eq!(words.len(), n * UNMASK_WORDS);
            let words = Buffer::of(device, Format::U32, &words).expect("memory");
            let id = BenchmarkId::new("unmask", format!("{name}, {n}x{vocab} {dtype}"));
            timed(group, device, id, || {
                cuda.unmask(dtype, &logits, 0, vocab, vocab, n, &words, &mut draws).expect("a launch");
            });
        }
    }
}
