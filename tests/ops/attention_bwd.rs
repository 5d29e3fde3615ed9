//! The gradient of attention, and what attention keeps for it.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Attended, Backend, Backward, HeadShape, Mask, Rows, Segment};

use crate::attention::{Case, Masks, head_shape, seen};
use crate::support::*;

/// Where the gradients lie: in another order than q, k and v, with room between them.
fn places(shape: HeadShape) -> [Rows; 3] {
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let stride = width + 2 * kv_width + 7;
    [2 * kv_width + 5, 2, kv_width + 3].map(|at| Rows { at, stride })
}

/// What attention gives and keeps; zeros where there is no query.
fn saved<E: CpuElement>(case: &Case, cpu: &Cpu<E>, qkv: &[f64], mask: Mask<'_>) -> [Vec<E>; 2] {
    let qkv = upload(cpu, qkv);
    let place = |at| (&qkv, Rows { at, stride: case.stride });
    let (q, k, v) = (place(0), place(case.k_at()), place(case.v_at()));
    let q_pos = index(cpu, &case.q_pos);
    let [mut out, mut log_sum] = [case.width(), case.shape.heads].map(|n| poisoned(cpu, case.rows * n));
    let (segments, mask) = (&case.segments, mask.into());
    cpu.attention_saving(q, k, v, case.shape, segments, &q_pos, &mask, &mut out, &mut log_sum).unwrap();
    for row in (0..case.rows).filter(|&row| !case.asked(row)) {
        out.as_mut_slice()[row * case.width()..][..case.width()].fill(E::zero());
        log_sum.as_mut_slice()[row * case.shape.heads..][..case.shape.heads].fill(E::zero());
    }
    [out.as_slice().to_vec(), log_sum.as_slice().to_vec()]
}

impl Case {
    /// Whether a segment has this row as a query.
    fn asked(&self, row: usize) -> bool {
        self.segments.iter().any(|s| (s.q_start..s.q_start + s.q_len).contains(&row))
    }

    /// Gradients of q, k and v, dense, over NaN.
    fn gradients<E: CpuElement>(&self, cpu: &Cpu<E>, mask: Mask<'_>, d_out: &[f64]) -> Vec<Vec<E>> {
        let [out, log_sum] = saved(self, cpu, &self.qkv, mask).map(|x| cpu.upload(&x).unwrap());
        let (qkv, d_out) = (upload(cpu, &self.qkv), upload(cpu, d_out));
        let place = |at| (&qkv, Rows { at, stride: self.stride });
        let (q, k, v) = (place(0), place(self.k_at()), place(self.v_at()));
        let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
        let (places, q_pos, mask) = (places(self.shape), index(cpu, &self.q_pos), mask.into());
        let mut d = poisoned(cpu, self.rows * places[0].stride);
        cpu.attention_backward(
            kept,
            &d_out,
            self.shape,
            &self.segments,
            &q_pos,
            &mask,
            &mut d,
            places,
            &mut (),
        )
        .unwrap();
        let widths = [self.width(), self.v_at() - self.k_at(), self.v_at() - self.k_at()];
        let mut untouched = d.as_slice().to_vec();
        let mut taken = Vec::new();
        for (of, (place, width)) in places.iter().zip(widths).enumerate() {
            let mut dense = Vec::new();
            for row in 0..self.rows {
                let numbers = &mut untouched[row * place.stride + place.at..][..width];
                // Queries that nobody asked have no gradient.
                if of == 0 && !self.asked(row) {
                    assert!(numbers.iter().all(|x| x.is_nan()), "row {row} is no query");
                    numbers.fill(E::zero());
                }
                dense.extend_from_slice(numbers);
                numbers.fill(E::nan());
            }
            taken.push(dense);
        }
        assert!(untouched.iter().all(|x| x.is_nan()), "numbers between the places are kept");
        taken
    }

    /// A case of these lengths, the third of which has keys only.
    fn mixed(random: &mut Random, shape: HeadShape, lengths: &[usize]) -> Self {
        let mut case = Case::new(random, shape, lengths);
        if let Some(s) = case.segments.get_mut(2) {
            s.q_len = 0;
        }
        case
    }
}

#[test]
fn central_differences() {
    let mut random = Random::new(150);
    let cpu = fast::<f64>();
    for (heads, kv_heads, d, lengths) in [
        (4, 2, 8, &[63, 0, 3, 65, 1, 64][..]),
        (6, 1, 20, &[9, 1, 5, 66]),
        (2, 1, 64, &[130, 1]),
        (2, 2, 128, &[1, 17, 4]),
        (1, 1, 256, &[65]),
    ] {
        let case = Case::mixed(&mut random, head_shape(heads, kv_heads, d), lengths);
        let masks = Masks::new(&mut random, *lengths.iter().max().unwrap(), lengths.len());
        let d_out = random.numbers(case.rows * case.width());
        for mask in masks.all() {
            let name = format!("{mask:?}");
            let name = &name[..name.len().min(30)];
            let g = case.gradients(&cpu, mask, &d_out);
            for (of, (at, gradient)) in [0, case.k_at(), case.v_at()].into_iter().zip(&g).enumerate() {
                let width = gradient.len() / case.rows;
                let number = |i: usize| i / width * case.stride + at + i % width;
                let part: Vec<f64> = (0..gradient.len()).map(|i| case.qkv[number(i)]).collect();
                let what = format!("{} of {heads}/{kv_heads} heads of {d}, {name}", ["q", "k", "v"][of]);
                assert_gradient(&part, gradient, &what, |part| {
                    let mut qkv = case.qkv.clone();
                    part.iter().enumerate().for_each(|(i, &x)| qkv[number(i)] = x);
                    dot(&d_out, &saved(&case, &cpu, &qkv, mask)[0])
                });
            }
        }
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(151);
    let lengths = [1, 63, 7, 64, 65, 130, 0];
    for (heads, kv_heads, d) in [(4, 2, 8), (6, 1, 20), (3, 3, 64), (2, 1, 128), (2, 2, 256)] {
        let case = Case::mixed(&mut random, head_shape(heads, kv_heads, d), &lengths);
        let masks = Masks::new(&mut random, 130, lengths.len());
        let d_out = random.numbers(case.rows * case.width());
        for mask in masks.all() {
            let name = format!("{mask:?}");
            assert_agrees(
                &format!("{heads}/{kv_heads} heads of {d}, {}", &name[..name.len().min(30)]),
                |cpu| case.gradients(cpu, mask, &d_out),
                |cpu| case.gradients(cpu, mask, &d_out),
            );
        }
    }
}

fn saving<E: CpuElement>() {
    let mut random = Random::new(152);
    for (heads, kv_heads, d, lengths) in [(4, 2, 8, &[1, 63, 130][..]), (6, 1, 20, &[65, 0, 64])] {
        let case = Case::new(&mut random, head_shape(heads, kv_heads, d), lengths);
        let masks = Masks::new(&mut random, 130, lengths.len());
        for mask in masks.all() {
            for level in levels() {
                let cpu = backend::<E>(2, level);
                let [out, log_sum] = saved(&case, &cpu, &case.qkv, mask);
                assert_same(&out, &case.run(&cpu, mask), "the same bits as without saving");
                for (i, s) in case.segments.iter().enumerate() {
                    for (row, h) in
                        (s.q_start..s.q_start + s.q_len).flat_map(|r| (0..heads).map(move |h| (r, h)))
                    {
                        let part = |row: usize, at: usize| &case.qkv[row * case.stride + at..][..d];
                        let kv = case.k_at() + h / (heads / kv_heads) * d;
                        let position = case.q_pos[row] as usize;
                        let sum: f64 = (0..s.k_len)
                            .filter(|&key| seen(mask, i, position, key))
                            .map(|key| dot(part(row, h * d), part(s.k_start + key, kv)))
                            .map(|score| (case.shape.scale * score).exp())
                            .sum();
                        let (got, expected) = (log_sum[row * heads + h].to_f64(), sum.ln());
                        let bound = if E::NAME == "f32" { 1e-5 } else { 1e-12 };
                        let near = (got - expected).abs() <= bound * expected.abs().max(1.0);
                        assert!(got == expected || near, "row {row}, head {h}: {got} for {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn saving_gives_the_bits_of_attention_and_the_logarithms_of_sums() {
    saving::<f32>();
    saving::<f64>();
}

#[test]
fn a_query_that_sees_nothing_has_no_gradient() {
    let mut random = Random::new(153);
    let case = Case::new(&mut random, head_shape(4, 2, 20), &[70, 70]);
    let d_out = random.numbers(case.rows * case.width());
    for shared in [true, false] {
        let mut allow = vec![1; 2 * 70 * 70];
        // Queries 0, 48 and 69, and key 5, of the first or both segments.
        for q in 0..70 {
            allow[q * 70 + 5] = 0;
        }
        for blind in [0, 48, 69] {
            allow[blind * 70..(blind + 1) * 70].fill(0);
        }
        let mask = Mask::Explicit { allow: &allow, len: 70, shared };
        let g = case.gradients(&fast::<f32>(), mask, &d_out);
        assert!(g.iter().flatten().all(|x| x.is_finite()));
        let zero = |numbers: &[f32], row: usize, width: usize| {
            numbers[row * width..(row + 1) * width].iter().all(|&x| x == 0.0)
        };
        for row in 0..140 {
            let blind = [0, 48, 69].contains(&(row % 70)) && (shared || row < 70);
            assert_eq!(zero(&g[0], row, 80), blind, "query {row}");
            let hidden = row % 70 == 5 && (shared || row < 70);
            assert_eq!([zero(&g[1], row, 40), zero(&g[2], row, 40)], [hidden; 2], "key {row}");
        }
    }
    // Queries without keys, keys without queries.
    let mut case = Case::new(&mut random, head_shape(2, 2, 8), &[3, 5]);
    case.segments[0] = Segment { k_len: 0, k_start: usize::MAX, ..case.segments[0] };
    case.segments[1] = Segment { q_len: 0, q_start: usize::MAX, ..case.segments[1] };
    let cpu = fast::<f64>();
    let qkv = upload(&cpu, &case.qkv);
    let place = |at| (&qkv, Rows { at, stride: case.stride });
    let (q, k, v) = (place(0), place(case.k_at()), place(case.v_at()));
    let q_pos = index(&cpu, &case.q_pos);
    let [out, log_sum] = [upload(&cpu, &[0.0; 48]), upload(&cpu, &[f64::NEG_INFINITY; 6])];
    let d_out = upload(&cpu, &[1.0; 48]);
    let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
    let (places, segments, mask) = (places(case.shape), &case.segments, Mask::Full.into());
    let mut d = poisoned(&cpu, 8 * places[0].stride);
    cpu.attention_backward(kept, &d_out, case.shape, segments, &q_pos, &mask, &mut d, places, &mut ())
        .unwrap();
    for row in 0..8 {
        let at = |place: Rows| &d.as_slice()[row * place.stride + place.at..][..16];
        for (place, written) in [(places[0], row < 3), (places[1], row >= 3), (places[2], row >= 3)] {
            assert!(at(place).iter().all(|&x| if written { x == 0.0 } else { x.is_nan() }), "row {row}");
        }
    }
}

#[test]
fn shapes_and_places_that_do_not_fit_are_errors() {
    struct Call {
        case: Case,
        places: [Rows; 3],
        /// Numbers of out, log_sum, d_out and the gradients.
        lens: [usize; 4],
    }
    let cpu = fast::<f32>();
    // Widths 32, 16, 16: rows of 71 numbers.
    let run = |change: &dyn Fn(&mut Call), mask: Mask<'_>| {
        let case = Case::new(&mut Random::new(154), head_shape(4, 2, 8), &[5, 6]);
        let places = places(case.shape);
        let mut call = Call { case, places, lens: [11 * 32, 44, 11 * 32, 10 * 71 + 69] };
        change(&mut call);
        let Call { case, places, lens } = call;
        let qkv = upload(&cpu, &case.qkv);
        let place = |at| (&qkv, Rows { at, stride: case.stride });
        let (q, k, v) = (place(0), place(32), place(48));
        let [out, log_sum, d_out] = [lens[0], lens[1], lens[2]].map(|n| upload(&cpu, &vec![0.5; n]));
        let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
        let q_pos = index(&cpu, &case.q_pos);
        let (segments, mask, mut d) = (&case.segments, mask.into(), poisoned(&cpu, lens[3]));
        let result = cpu.attention_backward(
            kept,
            &d_out,
            case.shape,
            segments,
            &q_pos,
            &mask,
            &mut d,
            places,
            &mut (),
        );
        assert!(result.is_ok() || d.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
        result
    };
    run(&|_| (), Mask::Full).unwrap();
    let refused = |change: &dyn Fn(&mut Call)| {
        let result = run(change, Mask::Full);
        assert!(matches!(result, Err(Error::Shape { op: "attention_backward", .. })), "{result:?}");
    };
    for i in 0..4 {
        refused(&|c| c.lens[i] -= 1);
    }
    refused(&|c| c.case.shape.kv_heads = 3);
    refused(&|c| c.case.shape.kv_heads = 0);
    refused(&|c| c.case.shape.head_dim = 0);
    refused(&|c| c.case.shape.head_dim = 257);
    refused(&|c| c.case.shape.heads = 1 << 60);
    refused(&|c| (c.case.shape.heads, c.case.shape.kv_heads) = (0, usize::MAX));
    refused(&|c| c.case.q_pos.truncate(10));
    refused(&|c| c.case.qkv.truncate(10 * 67 + 63));
    // Segments that share rows, or go back.
    refused(&|c| c.case.segments[1].q_start = 4);
    refused(&|c| c.case.segments[1].k_start = 4);
    refused(&|c| c.case.segments.swap(0, 1));
    refused(&|c| c.case.segments[1].q_len = 7);
    refused(&|c| c.case.segments[1].k_len = 7);
    refused(&|c| c.case.segments[1].q_len = usize::MAX);
    refused(&|c| c.case.segments[1].k_len = usize::MAX);
    // Places that share numbers, or do not lie in the same rows.
    refused(&|c| c.places[1].at = c.places[2].at);
    refused(&|c| c.places[2].at -= 2);
    refused(&|c| c.places[0].at -= 3);
    refused(&|c| c.places[0].at = c.places[1].at);
    refused(&|c| c.places[1].stride += 1);
    refused(&|c| c.places.iter_mut().for_each(|p| p.stride = 65));
    refused(&|c| c.places[0].at = usize::MAX);
    refused(&|c| {
        c.case.segments.clear();
        c.places[0].at = usize::MAX;
    });
    for mask in [
        Mask::Annealed { words: &[0; 5], stride: 1 },
        Mask::Annealed { words: &[0; 11], stride: 0 },
        Mask::Explicit { allow: &[1; 25], len: 5, shared: true },
        Mask::Explicit { allow: &[1; 36], len: 6, shared: false },
    ] {
        let result = run(&|_| (), mask);
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    }
}
