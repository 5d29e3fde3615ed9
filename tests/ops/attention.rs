//! Attention: masks, grouped heads, packed segments, caches.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement, SimdLevel};
use lacuna::backend::{Forward, HeadShape, Mask, Rows, Segment};

use crate::naive;
use crate::support::*;

/// Rows of q | k | v for some segments, in which keys and queries are the same rows.
pub struct Case {
    pub shape: HeadShape,
    pub segments: Vec<Segment>,
    pub q_pos: Vec<u32>,
    pub stride: usize,
    pub qkv: Vec<f64>,
    pub rows: usize,
}

pub fn head_shape(heads: usize, kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { heads, kv_heads, head_dim, scale: 1.3 / (head_dim as f64).sqrt() }
}

impl Case {
    pub fn new(random: &mut Random, shape: HeadShape, lengths: &[usize]) -> Self {
        let stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3;
        let rows = lengths.iter().sum();
        let mut case =
            Case { shape, segments: vec![], q_pos: vec![], stride, qkv: random.numbers(rows * stride), rows };
        for x in &mut case.qkv {
            *x *= 2.0;
        }
        for &len in lengths {
            let start = case.q_pos.len();
            case.segments.push(Segment { q_start: start, q_len: len, k_start: start, k_len: len });
            case.q_pos.extend(0..len as u32);
        }
        case
    }

    pub fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    pub fn k_at(&self) -> usize {
        self.width()
    }

    pub fn v_at(&self) -> usize {
        self.width() + self.shape.kv_heads * self.shape.head_dim
    }

    pub fn run<E: CpuElement>(&self, cpu: &Cpu<E>, mask: Mask<'_>) -> Vec<E> {
        let qkv = upload(cpu, &self.qkv);
        let mut out = poisoned(cpu, self.rows * self.width());
        let place = |at| (&qkv, Rows { at, stride: self.stride });
        let (q, k, v) = (place(0), place(self.k_at()), place(self.v_at()));
        let q_pos = index(cpu, &self.q_pos);
        cpu.attention(q, k, v, self.shape, &self.segments, &q_pos, &mask.into(), &mut out).unwrap();
        out.as_slice().to_vec()
    }

    fn expected(&self, seen: impl Fn(usize, usize, usize) -> bool) -> Vec<f64> {
        let HeadShape { heads, kv_heads, head_dim: d, scale } = self.shape;
        let mut out = vec![0.0; self.rows * self.width()];
        for (index, s) in self.segments.iter().enumerate() {
            for h in 0..heads {
                let part = |row: usize, at: usize| self.qkv[row * self.stride + at..][..d].to_vec();
                let kv = h / (heads / kv_heads) * d;
                let keys: Vec<_> =
                    (s.k_start..s.k_start + s.k_len).map(|r| part(r, self.k_at() + kv)).collect();
                let values: Vec<_> =
                    (s.k_start..s.k_start + s.k_len).map(|r| part(r, self.v_at() + kv)).collect();
                for row in s.q_start..s.q_start + s.q_len {
                    let position = self.q_pos[row] as usize;
                    let q = part(row, h * d);
                    let o = naive::attention(&q, &keys, &values, scale, |key| seen(index, position, key));
                    out[row * self.width() + h * d..][..d].copy_from_slice(&o);
                }
            }
        }
        out
    }
}

/// The masks over segments of at most `len` tokens: words and bytes drawn at random, some rows blind.
pub struct Masks {
    words: Vec<u32>,
    stride: usize,
    allow: Vec<u8>,
    len: usize,
}

impl Masks {
    pub fn new(random: &mut Random, len: usize, segments: usize) -> Self {
        let stride = len.div_ceil(32) + 1;
        let words = (0..len * stride).map(|_| (random.bits() & random.bits()) as u32).collect();
        let mut allow: Vec<u8> =
            (0..segments * len * len).map(|_| 3 * (random.below(3) == 0) as u8).collect();
        for row in allow.chunks_mut(len).step_by(4) {
            row.fill(0);
        }
        Masks { words, stride, allow, len }
    }

    pub fn all(&self) -> [Mask<'_>; 5] {
        [
            Mask::Full,
            Mask::Causal,
            Mask::Annealed { words: &self.words, stride: self.stride },
            Mask::Explicit { allow: &self.allow, len: self.len, shared: false },
            Mask::Explicit { allow: &self.allow, len: self.len, shared: true },
        ]
    }
}

/// The definition of each mask.
pub fn seen(mask: Mask<'_>, segment: usize, query: usize, key: usize) -> bool {
    match mask {
        Mask::Full => true,
        Mask::Causal => key <= query,
        Mask::Annealed { words, stride } => {
            key <= query || words[query * stride + key / 32] >> (key % 32) & 1 == 1
        }
        Mask::Explicit { allow, len, shared } => {
            allow[(if shared { 0 } else { segment } * len + query) * len + key] != 0
        }
    }
}

fn every_mask<E: CpuElement>(level: SimdLevel) {
    let mut random = Random::new(10);
    let cpu = backend::<E>(2, level);
    for (heads, kv_heads, d) in
        [(2, 2, 1), (3, 1, 7), (4, 2, 16), (2, 1, 33), (3, 3, 64), (2, 2, 80), (1, 1, 129), (2, 1, 256)]
    {
        let lengths = [33, 0, 1, 129 + random.below(40), 7];
        let case = Case::new(&mut random, head_shape(heads, kv_heads, d), &lengths);
        let masks = Masks::new(&mut random, 170, lengths.len());
        for mask in masks.all() {
            let name = format!("{mask:?}");
            let what = format!("{heads}/{kv_heads} heads of {d}, {}, {level}", &name[..name.len().min(30)]);
            let out: Vec<f64> = case.run(&cpu, mask).iter().map(|&x| x.to_f64()).collect();
            assert_close::<E>(&out, &case.expected(|s, q, k| seen(mask, s, q, k)), &what);
        }
    }
}

#[test]
fn every_mask_and_head_shape() {
    for level in levels() {
        every_mask::<f32>(level);
    }
    every_mask::<f64>(SimdLevel::detect());
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let mut random = Random::new(11);
    let case = Case::new(&mut random, head_shape(3, 1, 20), &[140]);
    let mut allow = vec![1; 140 * 140];
    for blind in [0, 77, 139] {
        allow[blind * 140..(blind + 1) * 140].fill(0);
    }
    // Row 50 sees only the last key, in the second block.
    allow[50 * 140..51 * 140 - 1].fill(0);
    let mask = Mask::Explicit { allow: &allow, len: 140, shared: true };
    let out = case.run(&fast::<f32>(), mask);
    for blind in [0, 77, 139] {
        assert!(out[blind * 60..(blind + 1) * 60].iter().all(|&x| x == 0.0), "row {blind}");
    }
    let last = &case.qkv[139 * case.stride + case.v_at()..][..20];
    for (x, v) in out[50 * 60..50 * 60 + 20].iter().zip(last) {
        assert!((f64::from(*x) - v).abs() < 1e-6, "{x} {v}");
    }

    // A segment without keys.
    let mut empty = Case::new(&mut random, head_shape(2, 2, 8), &[3]);
    empty.segments[0].k_len = 0;
    empty.segments[0].k_start = 1000;
    assert!(empty.run(&fast::<f64>(), Mask::Full).iter().all(|&x| x == 0.0));
}

#[test]
fn same_bits_for_any_batch_rows_threads_and_instructions() {
    let mut random = Random::new(12);
    let shape = head_shape(6, 2, 40);
    let case = Case::new(&mut random, shape, &[150, 300, 9]);
    let masks = Masks::new(&mut random, 300, 3);
    for mask in masks.all() {
        let whole = case.run(&backend::<f32>(1, levels().last().unwrap()), mask);
        for level in levels() {
            for threads in [1, 2, 4] {
                let cpu = backend::<f32>(threads, level);
                assert_same(&case.run(&cpu, mask), &whole, &format!("{level}, {threads} threads"));
            }
        }
        if matches!(mask, Mask::Explicit { shared: false, .. }) {
            continue;
        }
        // Some queries of the second sequence alone, packed, against all its keys.
        let cpu = fast::<f32>();
        for chosen in [vec![0], vec![299], vec![17, 130, 131, 250], (0..300).step_by(3).collect::<Vec<_>>()] {
            let width = case.width();
            let q: Vec<f64> =
                chosen.iter().flat_map(|r| case.qkv[(150 + r) * case.stride..][..width].to_vec()).collect();
            let (q, qkv) = (upload(&cpu, &q), upload(&cpu, &case.qkv));
            let positions: Vec<u32> = chosen.iter().map(|&r| r as u32).collect();
            let segment = Segment { q_start: 0, q_len: chosen.len(), k_start: 150, k_len: 300 };
            let mut out = poisoned(&cpu, chosen.len() * width);
            let place = |at| (&qkv, Rows { at, stride: case.stride });
            let q_pos = index(&cpu, &positions);
            let (k, v) = (place(case.k_at()), place(case.v_at()));
            cpu.attention(
                (&q, Rows::dense(width)),
                k,
                v,
                shape,
                &vec![segment],
                &q_pos,
                &mask.into(),
                &mut out,
            )
            .unwrap();
            for (i, &r) in chosen.iter().enumerate() {
                let expected = &whole[(150 + r) * width..][..width];
                assert_same(&out.as_slice()[i * width..][..width], expected, &format!("row {r}"));
            }
        }
    }
}

#[test]
fn decoding_from_a_cache_gives_the_bits_of_the_whole() {
    let mut random = Random::new(13);
    let case = Case::new(&mut random, head_shape(9, 3, 64), &[137]);
    let cpu = fast::<f32>();
    let whole = case.run(&cpu, Mask::Causal);
    let (qkv, width) = (upload(&cpu, &case.qkv), case.width());
    for position in [0, 1, 63, 127, 128, 136] {
        let segment = Segment { q_start: 0, q_len: 1, k_start: 0, k_len: position + 1 };
        let place = |at| (&qkv, Rows { at, stride: case.stride });
        let q = (&qkv, Rows { at: position * case.stride, stride: case.stride });
        let (k, v) = (place(case.k_at()), place(case.v_at()));
        let q_pos = index(&cpu, &[position as u32]);
        let mut out = poisoned(&cpu, width);
        cpu.attention(q, k, v, case.shape, &vec![segment], &q_pos, &Mask::Causal.into(), &mut out).unwrap();
        assert_same(out.as_slice(), &whole[position * width..][..width], &format!("position {position}"));
    }
}

#[test]
fn large_scores_do_not_overflow_and_nan_stays_in_its_row() {
    let mut random = Random::new(14);
    let mut case = Case::new(&mut random, head_shape(1, 1, 8), &[200]);
    for x in &mut case.qkv {
        *x *= 30.0;
    }
    let expected = case.expected(|_, q, k| k <= q);
    let out: Vec<f64> = case.run(&fast::<f32>(), Mask::Causal).iter().map(|&x| x.into()).collect();
    assert_close::<f32>(&out, &expected, "large scores");
    case.qkv[5 * case.stride] = f64::NAN;
    let out = case.run(&fast::<f32>(), Mask::Full);
    for (row, numbers) in out.chunks(8).enumerate() {
        assert_eq!(numbers.iter().all(|x| x.is_nan()), row == 5, "row {row}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut random = Random::new(15);
    let cpu = fast::<f32>();
    let good = Case::new(&mut random, head_shape(4, 2, 8), &[5, 6]);
    let words = [0_u32; 11];
    let refused = |change: &dyn Fn(&mut Case), mask: Mask<'_>| {
        let mut case = Case::new(&mut Random::new(16), good.shape, &[5, 6]);
        change(&mut case);
        let qkv = upload(&cpu, &case.qkv);
        let mut out = poisoned(&cpu, 11 * 32);
        let place = |at| (&qkv, Rows { at, stride: case.stride });
        let q_pos = index(&cpu, &case.q_pos);
        let (q, k, v) = (place(0), place(case.k_at()), place(case.v_at()));
        let result = cpu.attention(q, k, v, case.shape, &case.segments, &q_pos, &mask.into(), &mut out);
        assert!(matches!(result, Err(Error::Shape { op: "attention", .. })), "{result:?}");
        assert!(out.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
    };
    refused(&|c| c.shape.kv_heads = 3, Mask::Full);
    refused(&|c| c.shape.kv_heads = 0, Mask::Full);
    refused(&|c| c.shape.head_dim = 0, Mask::Full);
    refused(&|c| c.shape.head_dim = 257, Mask::Full);
    refused(&|c| c.segments[1].q_start = 4, Mask::Full);
    refused(&|c| c.segments[1].q_len = 7, Mask::Full);
    refused(&|c| c.segments[1].k_len = 7, Mask::Full);
    refused(&|c| c.segments[1].k_len = usize::MAX, Mask::Full);
    refused(&|c| c.q_pos.truncate(10), Mask::Full);
    refused(&|c| c.shape.heads = 1 << 60, Mask::Full);
    refused(&|_| (), Mask::Annealed { words: &words[..5], stride: 1 });
    refused(&|_| (), Mask::Annealed { words: &words, stride: 0 });
    refused(&|_| (), Mask::Explicit { allow: &[1; 25], len: 5, shared: true });
    refused(&|_| (), Mask::Explicit { allow: &[1; 36], len: 6, shared: false });
    refused(&|c| c.q_pos[10] = 6, Mask::Explicit { allow: &[1; 36], len: 6, shared: true });
}
