//! The operations of the CPU backend, each against a stated baseline in the same run:
//! `cargo bench --bench ops -- matmul`. `LACUNA_BENCH_THREADS` sets the number of threads (default: one).
//! The CUDA kernels are measured where there is a card.

mod activation;
mod attention;
mod backward;
mod cuda;
mod denoise;
mod embedding;
mod head;
mod matmul;
mod moves;
mod norm;
mod optim;
mod support;
mod unmask;

criterion::criterion_group!(
    ops,
    matmul::bench,
    embedding::bench,
    attention::bench,
    backward::bench,
    head::bench,
    norm::bench,
    optim::bench,
    activation::bench,
    unmask::bench,
    denoise::bench,
    moves::bench,
    cuda::bench
);
criterion::criterion_main!(ops);
