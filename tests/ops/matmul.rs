//! Matrix products on stored weights.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backend, Epilogue, Forward, Layout, Rows};
use lacuna::config::Activation;
use lacuna::element::{Dtype, StoredTensor};

use crate::naive;
use crate::support::*;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const LAYOUTS: [Layout; 2] = [Layout::OutIn, Layout::InOut];

/// A random weight of `k` inputs and `n` outputs, and its numbers as `[k, n]`.
fn weight(
    random: &mut Random,
    dtype: Dtype,
    layout: Layout,
    k: usize,
    n: usize,
) -> (StoredTensor, impl Fn(usize, usize) -> f64 + use<>) {
    let shape = if layout == Layout::OutIn { [n, k] } else { [k, n] };
    let (tensor, numbers) = stored(dtype, &shape, &random.numbers(k * n));
    let at = move |i: usize, j: usize| numbers[if layout == Layout::OutIn { j * k + i } else { i * n + j }];
    (tensor, at)
}

fn product<E: CpuElement>(cpu: &Cpu<E>, x: &[f64], rows: usize, w: &StoredTensor, layout: Layout) -> Vec<E> {
    let matrix = cpu.matrix(w, layout).unwrap();
    let n = matrix.outputs();
    let mut out = poisoned(cpu, rows * n);
    let x = upload(cpu, x);
    cpu.linear((&x, 0), rows, &matrix, 0..n, Epilogue::NONE, &mut out, Rows::dense(n)).unwrap();
    out.as_slice().to_vec()
}

fn odd_shapes<E: CpuElement>() {
    let mut random = Random::new(1);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for rows in [1, 7, 13, 33, 61] {
            for k in [1, 7, 61, 129, 300] {
                for n in [1, 7, 33, 129] {
                    let dtype = DTYPES[random.below(3)];
                    let layout = LAYOUTS[random.below(2)];
                    let x = random.numbers(rows * k);
                    let (w, at) = weight(&mut random, dtype, layout, k, n);
                    let out: Vec<f64> =
                        product(&cpu, &x, rows, &w, layout).iter().map(|&v| v.to_f64()).collect();
                    let what = format!("{rows} x {k} x {n}, {dtype} {layout:?}, {level}");
                    assert_close::<E>(&out, &naive::matmul(&x, rows, k, n, at), &what);
                }
            }
        }
    }
}

#[test]
fn odd_shapes_f32() {
    odd_shapes::<f32>();
}

#[test]
fn odd_shapes_f64() {
    odd_shapes::<f64>();
}

#[test]
fn every_dtype_and_layout_over_several_blocks() {
    let mut random = Random::new(2);
    for dtype in DTYPES {
        for layout in LAYOUTS {
            let (rows, k, n) = (61, 777, 129);
            let x = random.numbers(rows * k);
            let (w, at) = weight(&mut random, dtype, layout, k, n);
            let expected = naive::matmul(&x, rows, k, n, at);
            let out: Vec<f64> =
                product(&fast::<f32>(), &x, rows, &w, layout).iter().map(|&v| v.into()).collect();
            assert_close::<f32>(&out, &expected, &format!("{dtype} {layout:?}"));
            let out = product(&fast::<f64>(), &x, rows, &w, layout);
            assert_close::<f64>(&out, &expected, &format!("{dtype} {layout:?}"));
        }
    }
}

#[test]
fn epilogue_bias_activation_accumulate_columns_and_stride() {
    fn check<E: CpuElement>() {
        let mut random = Random::new(3);
        let cpu = fast::<E>();
        for (layout, kind) in [
            (Layout::OutIn, Some(Activation::Silu)),
            (Layout::InOut, Some(Activation::GeluTanh)),
            (Layout::InOut, Some(Activation::GeluErf)),
            (Layout::OutIn, None),
        ] {
            let (rows, k, n) = (17, 261, 97);
            let columns = 5..88;
            let width = columns.len();
            let at_rows = Rows { at: 3, stride: 101 };
            let x = random.numbers(rows * k);
            let bias = random.numbers(n);
            let (w, at) = weight(&mut random, Dtype::Bf16, layout, k, n);
            let matrix = cpu.matrix(&w, layout).unwrap();
            let old = random.numbers(at_rows.at + (rows - 1) * at_rows.stride + width);
            let mut out = upload(&cpu, &old);
            let bias_buffer = upload(&cpu, &bias);
            let accumulate = kind.is_none();
            let epilogue = Epilogue { bias: Some(&bias_buffer), activation: kind, accumulate };
            let x_buffer = upload(&cpu, &x);
            cpu.linear((&x_buffer, 0), rows, &matrix, columns.clone(), epilogue, &mut out, at_rows).unwrap();

            let full = naive::matmul(&x, rows, k, n, at);
            let mut expected = old.clone();
            for t in 0..rows {
                for (i, j) in columns.clone().enumerate() {
                    let v = full[t * n + j] + bias[j];
                    let to = &mut expected[at_rows.at + t * at_rows.stride + i];
                    *to = match kind {
                        Some(kind) => naive::activation(kind, v),
                        None => *to + v,
                    };
                }
            }
            assert_close::<E>(&to_f64(&out), &expected, &format!("{layout:?} {kind:?}"));
            for (kept, old) in out.as_slice()[..at_rows.at].iter().zip(&old) {
                assert_eq!((*kept).to_f64(), *old, "numbers before the rows are kept");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// The promise everything else rests on: one row, one result.
fn same_bits_everywhere<E: CpuElement>() {
    let mut random = Random::new(4);
    for (rows, k, n) in [(128, 300, 97), (250, 576, 64), (37, 1030, 33)] {
        for dtype in DTYPES {
            for layout in LAYOUTS {
                let x = random.numbers(rows * k);
                let (w, _) = weight(&mut random, dtype, layout, k, n);
                let whole = product(&backend::<E>(1, levels().last().unwrap()), &x, rows, &w, layout);
                for level in levels() {
                    for threads in [1, 2, 4] {
                        let cpu = backend::<E>(threads, level);
                        let what = format!("{rows} x {k} x {n} {dtype} {layout:?} {level} {threads} threads");
                        assert_same(&product(&cpu, &x, rows, &w, layout), &whole, &what);
                        for (first, count) in [(0, 1), (rows - 1, 1), (5, 2), (3, 11), (9, 25)] {
                            let part = &x[first * k..(first + count) * k];
                            let out = product(&cpu, part, count, &w, layout);
                            assert_same(&out, &whole[first * n..(first + count) * n], &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn same_bits_for_any_rows_threads_and_instructions_f32() {
    same_bits_everywhere::<f32>();
}

#[test]
fn same_bits_for_any_rows_threads_and_instructions_f64() {
    same_bits_everywhere::<f64>();
}

#[test]
fn column_ranges_give_the_same_bits() {
    let mut random = Random::new(5);
    let cpu = fast::<f32>();
    let (rows, k, n) = (19, 400, 150);
    let x = random.numbers(rows * k);
    for layout in LAYOUTS {
        let (w, _) = weight(&mut random, Dtype::F16, layout, k, n);
        let whole = product(&cpu, &x, rows, &w, layout);
        let matrix = cpu.matrix(&w, layout).unwrap();
        let x = upload(&cpu, &x);
        for columns in [0..1, 1..34, 33..150, 149..150, 40..40] {
            let width = columns.len();
            let mut out = poisoned(&cpu, rows * width);
            cpu.linear((&x, 0), rows, &matrix, columns.clone(), Epilogue::NONE, &mut out, Rows::dense(width))
                .unwrap();
            for t in 0..rows {
                let expected = &whole[t * n..][columns.clone()];
                assert_same(&out.as_slice()[t * width..(t + 1) * width], expected, "a range of columns");
            }
        }
    }
}

#[test]
fn works_outside_and_inside_run() {
    let mut random = Random::new(6);
    let cpu = backend::<f32>(2, levels().last().unwrap());
    let x = random.numbers(64 * 512);
    let (w, _) = weight(&mut random, Dtype::F32, Layout::OutIn, 512, 512);
    let outside = product(&cpu, &x, 64, &w, Layout::OutIn);
    let inside = cpu.run(|| product(&cpu, &x, 64, &w, Layout::OutIn));
    assert_same(&outside, &inside, "inside the pool");
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let tensor = |shape: &[usize]| stored(Dtype::F32, shape, &vec![1.0; shape.iter().product()]).0;
    for shape in [&[8][..], &[2, 2, 2], &[]] {
        assert!(matches!(cpu.matrix(&tensor(shape), Layout::OutIn), Err(Error::Shape { op: "matrix", .. })));
    }
    let matrix = cpu.matrix(&tensor(&[4, 8]), Layout::OutIn).unwrap();
    assert_eq!((matrix.inputs(), matrix.outputs(), cpu.copied_bytes(&matrix)), (8, 4, 0));
    let x = upload(&cpu, &[1.0; 16]);
    let bias = upload(&cpu, &[1.0; 3]);
    let silu = Some(Activation::Silu);
    let refused = |rows: usize, columns: std::ops::Range<usize>, epilogue, out: usize, at: Rows| {
        let mut out = poisoned(&cpu, out);
        let result = cpu.linear((&x, 0), rows, &matrix, columns, epilogue, &mut out, at);
        assert!(matches!(result, Err(Error::Shape { op: "linear", .. })), "{result:?}");
        assert!(out.as_slice().iter().all(|v| v.is_nan()), "nothing is written");
    };
    refused(3, 0..4, Epilogue::NONE, 12, Rows::dense(4));
    refused(2, 0..5, Epilogue::NONE, 12, Rows::dense(4));
    #[allow(clippy::reversed_empty_ranges)]
    refused(2, 3..2, Epilogue::NONE, 12, Rows::dense(4));
    refused(2, 0..4, Epilogue::NONE, 7, Rows::dense(4));
    refused(2, 0..4, Epilogue::NONE, 12, Rows::dense(3));
    refused(2, 0..4, Epilogue::NONE, 12, Rows { at: 5, stride: 4 });
    refused(2, 0..4, Epilogue::NONE, 12, Rows { at: usize::MAX, stride: 4 });
    refused(2, 0..4, Epilogue { bias: Some(&bias), activation: None, accumulate: false }, 8, Rows::dense(4));
    refused(2, 0..4, Epilogue { bias: None, activation: silu, accumulate: true }, 8, Rows::dense(4));
}
