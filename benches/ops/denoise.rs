//! What a denoising step does beside the forward pass and the draws, on 8 canvases of 512 tokens (tokens a second): finding
//! the rows that it needs, and committing by confidence with remasking, against a loop that sorts all scores; and the random
//! bits of annealed attention against the standard library's bits of as many words.

use std::hash::{BuildHasher, Hasher, RandomState};

use criterion::{BenchmarkId, Criterion, Throughput};
use lacuna::anneal;
use lacuna::backend::cpu::Cpu;
use lacuna::backend::{
    AnnealedDraw, Backend, Backward, Canvases, CanvasesSize, Confidence, Denoise, DrawingWords, Inputs,
    NO_TOKEN, NoiseAddress, RankWords, RowDraw, Segment, StepShape, Want, WantKind,
};

use crate::support::*;

const SEQUENCES: usize = 8;
const LENGTH: usize = 512;
const TOKENS: usize = SEQUENCES * LENGTH;
/// Of a canvas, by a step that has come half the way.
const COMMITTED: u32 = LENGTH as u32 / 2;

pub fn bench(c: &mut Criterion) {
    step(c);
    annealed(c);
}

fn index(cpu: &Cpu<f32>, numbers: impl IntoIterator<Item = u32>) -> lacuna::backend::cpu::Buffer<u32> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let mut index = cpu.alloc_index(numbers.len()).expect("memory");
    cpu.write_index(&mut index, &numbers).expect("room");
    index
}

/// Canvases all of whose positions are to be filled and scored again at every step, and one step's words.
fn canvases(cpu: &Cpu<f32>) -> (Canvases<Cpu<f32>>, Inputs<Cpu<f32>>, StepShape) {
    let size = CanvasesSize { sequences: SEQUENCES, tokens: TOKENS, steps: 1 };
    let mut canvases = Canvases::new(cpu, size).expect("memory");
    (canvases.sequences, canvases.tokens) = (SEQUENCES, TOKENS);
    canvases.masked = index(cpu, (0..TOKENS as u32).map(|i| i % 2));
    canvases.free = index(cpu, (0..TOKENS).map(|_| 1));
    canvases.starts = index(cpu, (0..=SEQUENCES).map(|s| (s * LENGTH) as u32));
    let drawing = |sequence| DrawingWords {
        temperature: 1.0,
        top_p: 0.9,
        top_k: 0,
        suppress: NO_TOKEN,
        confidence: Confidence::MaxProb,
        seed: 1,
        sequence,
        uniforms_at: None,
    };
    canvases.drawing = index(cpu, (0..SEQUENCES as u32).flat_map(|s| drawing(s).words()));
    let stage = canvases.layout();
    let mut words = vec![0; stage.words()];
    let first = |s: usize| (s * LENGTH) as u32;
    for s in 0..SEQUENCES {
        let (low, high, count) = (0, LENGTH as u32, LENGTH as u32);
        let want = Want {
            kind: WantKind::Free,
            low,
            high,
            step: 3,
            first_need: first(s),
            needs: count,
            first_row: first(s),
            rows: count,
        };
        let at = NoiseAddress { seed: 1, sequence: s as u32, step: 3, position: 0 };
        let rank = RankWords { take: COMMITTED, noise: 0.0, remask: true, at };
        words[stage.wants()..][s * want.words().len()..][..want.words().len()].copy_from_slice(&want.words());
        words[stage.ranks()..][s * rank.words().len()..][..rank.words().len()].copy_from_slice(&rank.words());
        words[stage.steps() + s] = 3;
    }
    for s in 0..=SEQUENCES {
        words[stage.rank_starts() + s] = first(s);
    }
    // A cursor, then the step's words.
    canvases.tape = index(cpu, std::iter::once(0).chain(words));
    let scores = numbers(TOKENS);
    for (draw, score) in canvases.draws.as_mut_slice().iter_mut().zip(scores) {
        *draw = RowDraw { token: 7, log_prob: score, confidence: score, given_log_prob: score };
    }
    let segments: Vec<Segment> = (0..SEQUENCES)
        .map(|s| Segment { q_start: s * LENGTH, q_len: LENGTH, k_start: s * LENGTH, k_len: LENGTH })
        .collect();
    let inputs = Inputs {
        ids: index(cpu, (0..TOKENS as u32).map(|i| i % 97)),
        positions: index(cpu, (0..TOKENS).map(|i| (i % LENGTH) as u32)),
        wanted_segments: segments.clone(),
        segments,
        wanted: index(cpu, (0..TOKENS).map(|_| 0)),
        wanted_positions: index(cpu, (0..TOKENS).map(|_| 0)),
        cache_rows: index(cpu, []),
    };
    let shape = StepShape {
        rows: TOKENS,
        longest: LENGTH,
        ranked: LENGTH,
        ranks: true,
        answers: true,
        ..StepShape::default()
    };
    (canvases, inputs, shape)
}

fn step(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "denoise/8x512");
    group.throughput(Throughput::Elements(TOKENS as u64));
    let (mut canvases, mut inputs, shape) = canvases(&cpu);
    group.bench_function("select needs", |b| {
        cpu.run(|| {
            b.iter(|| {
                canvases.tape.as_mut_slice()[0] = 0;
                cpu.stage_step(&mut canvases, 1).unwrap();
                cpu.select_needs(&mut canvases, &mut inputs, shape).unwrap();
            })
        });
    });
    group.bench_function("commit, remask", |b| {
        cpu.run(|| b.iter(|| cpu.commit(&mut canvases, &mut inputs, shape).unwrap()));
    });
    let scores = numbers(TOKENS);
    let (mut ids, mut masked) = (vec![0_u32; TOKENS], vec![1_u32; TOKENS]);
    group.bench_function("commit, remask by a sort (baseline)", |b| {
        b.iter(|| {
            for s in 0..SEQUENCES {
                let at = s * LENGTH..(s + 1) * LENGTH;
                let scores = std::hint::black_box(&scores[at.clone()]);
                let mut order: Vec<usize> = (0..LENGTH).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let (ids, masked) = (&mut ids[at.clone()], &mut masked[at]);
                for (rank, &i) in order.iter().enumerate() {
                    masked[i] = u32::from(rank >= COMMITTED as usize);
                    ids[i] = if masked[i] == 0 { 7 } else { 0 };
                }
            }
            std::hint::black_box((&mut ids, &mut masked));
        });
    });
    group.finish();
}

fn annealed(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = group(c, "annealed mask");
    for length in [128, 1024] {
        let words = length * anneal::stride(length);
        group.throughput(Throughput::Elements((32 * words) as u64));
        let mut mask = cpu.annealed_mask(length).expect("memory");
        for ratio in [0.25, 1.0] {
            group.bench_function(BenchmarkId::new(format!("draw, ratio {ratio}"), length), |b| {
                let draw = AnnealedDraw { seed: 1, pass: 3, ratio, length };
                cpu.run(|| b.iter(|| cpu.draw_annealed(&mut mask, draw).unwrap()));
            });
        }
        // 64 bits a hash, each 1 with probability 1/2: the bits of any other ratio take several of them.
        let (state, mut plain) = (RandomState::new(), vec![0_u64; words.div_ceil(2)]);
        group.bench_function(BenchmarkId::new("bits of SipHash (baseline)", length), |b| {
            b.iter(|| {
                for (i, word) in std::hint::black_box(&mut plain).iter_mut().enumerate() {
                    let mut hasher = state.build_hasher();
                    hasher.write_u64(i as u64);
                    *word = hasher.finish();
                }
            });
        });
    }
    group.finish();
}
