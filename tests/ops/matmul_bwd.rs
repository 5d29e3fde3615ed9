//! The gradients of matrix products.

use std::ops::Range;

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backend, Backward, Epilogue, Forward, Layout, Rows};
use lacuna::element::{Dtype, StoredTensor};

use crate::naive;
use crate::support::*;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const LAYOUTS: [Layout; 2] = [Layout::OutIn, Layout::InOut];

/// Rows of inputs, and of gradients of the columns `outputs` of a product with `all` columns.
struct Case {
    rows: usize,
    inputs: usize,
    all: usize,
    outputs: Range<usize>,
    layout: Layout,
    /// Where `dy` lies.
    at: Rows,
    x: Vec<f64>,
    dy: Vec<f64>,
    /// What `dx` holds before, after [`BEFORE`] numbers that stay.
    old: Vec<f64>,
}

/// Numbers before those of `x` and of `dx`.
const BEFORE: usize = 3;

impl Case {
    fn new(
        random: &mut Random,
        [rows, inputs, all]: [usize; 3],
        outputs: Range<usize>,
        layout: Layout,
    ) -> Self {
        let at = Rows { at: 2, stride: outputs.len() + 5 };
        let (x, old) = (random.numbers(BEFORE + rows * inputs), random.numbers(BEFORE + rows * inputs));
        let dy = random.numbers(at.at + rows * at.stride);
        Case { rows, inputs, all, outputs, layout, at, x, dy, old }
    }

    fn weight(&self, random: &mut Random, dtype: Dtype) -> (StoredTensor, Vec<f64>) {
        let (k, n) = (self.inputs, self.all);
        let shape = if self.layout == Layout::OutIn { [n, k] } else { [k, n] };
        stored(dtype, &shape, &random.numbers(k * n))
    }

    /// The gradients of the columns, dense.
    fn dense(&self) -> Vec<f64> {
        (0..self.rows)
            .flat_map(|t| self.dy[self.at.at + t * self.at.stride..][..self.outputs.len()].to_vec())
            .collect()
    }

    /// The gradient of the input, over NaN or added to `old`.
    fn dx<E: CpuElement>(&self, cpu: &Cpu<E>, weight: &StoredTensor, accumulate: bool) -> Vec<E> {
        let mut old = self.old.clone();
        if !accumulate {
            old[BEFORE..].fill(f64::NAN);
        }
        let (dy, matrix) = (upload(cpu, &self.dy), cpu.matrix(weight, self.layout).unwrap());
        let mut dx = upload(cpu, &old);
        let outputs = self.outputs.clone();
        let to = (&mut dx, BEFORE);
        cpu.linear_backward_input((&dy, self.at), self.rows, &matrix, outputs, accumulate, to).unwrap();
        for (kept, old) in dx.as_slice()[..BEFORE].iter().zip(&old) {
            assert_eq!((*kept).to_f64(), *old, "numbers before the rows are kept");
        }
        dx.as_slice()[BEFORE..].to_vec()
    }

    /// The gradients of weight and bias, added `times` times.
    fn dw<E: CpuElement>(&self, cpu: &Cpu<E>, times: usize) -> [Vec<E>; 2] {
        let (x, dy, n) = (upload(cpu, &self.x), upload(cpu, &self.dy), self.outputs.len());
        let (mut dweight, mut dbias) = (cpu.alloc(self.inputs * n).unwrap(), cpu.alloc(n).unwrap());
        for _ in 0..times {
            let (x, dy) = ((&x, BEFORE), (&dy, self.at));
            let to = (Some(&mut dweight), Some(&mut dbias));
            cpu.linear_backward_weight(x, dy, self.rows, self.inputs, n, self.layout, to.0, to.1, &mut ())
                .unwrap();
        }
        [dweight.as_slice().to_vec(), dbias.as_slice().to_vec()]
    }

    fn all<E: CpuElement>(&self, cpu: &Cpu<E>, weight: &StoredTensor) -> Vec<Vec<E>> {
        let [dweight, dbias] = self.dw(cpu, 1);
        vec![self.dx(cpu, weight, false), self.dx(cpu, weight, true), dweight, dbias]
    }

    /// What [`all`](Self::all) must give, by plain loops.
    fn expected(&self, weight: &[f64]) -> [Vec<f64>; 4] {
        let (rows, k, n) = (self.rows, self.inputs, self.outputs.len());
        let (dy, x) = (self.dense(), &self.x[BEFORE..]);
        let w = |i: usize, j: usize| match self.layout {
            Layout::OutIn => weight[j * k + i],
            Layout::InOut => weight[i * self.all + j],
        };
        let dx = naive::matmul(&dy, rows, n, k, |j, i| w(i, self.outputs.start + j));
        let more = dx.iter().zip(&self.old[BEFORE..]).map(|(a, b)| a + b).collect();
        let across = |m: &[f64], width: usize| -> Vec<f64> {
            (0..width).flat_map(|i| (0..rows).map(move |t| (t, i))).map(|(t, i)| m[t * width + i]).collect()
        };
        let dweight = match self.layout {
            Layout::InOut => naive::matmul(&across(x, k), k, rows, n, |t, j| dy[t * n + j]),
            Layout::OutIn => naive::matmul(&across(&dy, n), n, rows, k, |t, i| x[t * k + i]),
        };
        let dbias = naive::matmul(&vec![1.0; rows], 1, rows, n, |t, j| dy[t * n + j]);
        [dx, more, dweight, dbias]
    }
}

#[test]
fn central_differences() {
    let mut random = Random::new(100);
    let cpu = fast::<f64>();
    for layout in LAYOUTS {
        for ([rows, k, n], outputs) in [([5, 9, 7], 0..7), ([3, 270, 19], 4..17), ([7, 21, 300], 0..300)] {
            let case = Case::new(&mut random, [rows, k, n], outputs.clone(), layout);
            let (tensor, w) = case.weight(&mut random, Dtype::F32);
            let bias = random.numbers(n);
            let dy = case.dense();
            let loss = |x: &[f64], w: &[f64], bias: &[f64]| {
                let (tensor, same) = stored(Dtype::F32, tensor.shape(), w);
                assert_eq!(w, same, "a step exact in f32");
                let matrix = cpu.matrix(&tensor, layout).unwrap();
                let mut out = poisoned(&cpu, dy.len());
                let bias = upload(&cpu, bias);
                let epilogue = Epilogue { bias: Some(&bias), activation: None, accumulate: false };
                let (x, at) = (upload(&cpu, x), Rows::dense(outputs.len()));
                cpu.linear((&x, 0), rows, &matrix, outputs.clone(), epilogue, &mut out, at).unwrap();
                dot(&dy, out.as_slice())
            };
            let x = &case.x[BEFORE..];
            let what = |of: &str| format!("{of} of {rows} x {k} x {n}, {layout:?}");
            assert_gradient(x, &case.dx(&cpu, &tensor, false), &what("x"), |x| loss(x, &w, &bias));
            let [dweight, dbias] = case.dw(&cpu, 1);
            let used = &bias[outputs.clone()];
            assert_gradient(used, &dbias, &what("bias"), |used| {
                let mut bias = bias.clone();
                bias[outputs.clone()].copy_from_slice(used);
                loss(x, &w, &bias)
            });
            // The weight's own columns, in its own orientation.
            let places: Vec<usize> = match layout {
                Layout::OutIn => (outputs.start * k..outputs.end * k).collect(),
                Layout::InOut => (0..k).flat_map(|i| outputs.clone().map(move |j| i * n + j)).collect(),
            };
            let used: Vec<f64> = places.iter().map(|&p| w[p]).collect();
            assert_gradient(&used, &dweight, &what("weight"), |used| {
                let mut w = w.clone();
                places.iter().zip(used).for_each(|(&p, &x)| w[p] = x);
                loss(x, &w, &bias)
            });
        }
    }
}

#[test]
fn every_dtype_layout_and_number_of_rows() {
    let mut random = Random::new(101);
    for rows in [0, 1, 7, 13, 300] {
        for (k, n, outputs) in
            [(1, 1, 0..1), (33, 50, 0..50), (129, 41, 3..40), (270, 300, 7..290), (17, 20, 6..6)]
        {
            for layout in LAYOUTS {
                for dtype in DTYPES {
                    let case = Case::new(&mut random, [rows, k, n], outputs.clone(), layout);
                    let (tensor, numbers) = case.weight(&mut random, dtype);
                    let what = format!("{rows} x {k} x {outputs:?}, {dtype} {layout:?}");
                    let expected = case.expected(&numbers);
                    for (out, expected) in case.all(&fast::<f64>(), &tensor).iter().zip(&expected) {
                        assert_close::<f64>(out, expected, &what);
                    }
                    for (out, expected) in case.all(&fast::<f32>(), &tensor).iter().zip(&expected) {
                        let out: Vec<f64> = out.iter().map(|&x| x.into()).collect();
                        assert_close::<f32>(&out, expected, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(102);
    for ([rows, k, n], outputs) in [([300, 259, 77], 5..70), ([13, 300, 270], 0..270), ([1, 61, 33], 0..33)] {
        for layout in LAYOUTS {
            let case = Case::new(&mut random, [rows, k, n], outputs.clone(), layout);
            let (tensor, _) = case.weight(&mut random, Dtype::Bf16);
            let what = format!("{rows} x {k} x {outputs:?}, {layout:?}");
            assert_agrees(&what, |cpu| case.all(cpu, &tensor), |cpu| case.all(cpu, &tensor));
        }
    }
}

#[test]
fn a_row_alone_has_the_same_input_gradient() {
    let mut random = Random::new(103);
    for layout in LAYOUTS {
        let case = Case::new(&mut random, [61, 99, 300], 0..300, layout);
        let (tensor, _) = case.weight(&mut random, Dtype::F16);
        let whole = case.dx(&fast::<f32>(), &tensor, false);
        for row in [0, 17, 60] {
            let mut one = Case::new(&mut random, [1, 99, 300], 0..300, layout);
            one.dy = case.dy[row * case.at.stride..(row + 1) * case.at.stride + one.at.at].to_vec();
            let out = one.dx(&fast::<f32>(), &tensor, false);
            assert_same(&out, &whole[row * 99..(row + 1) * 99], &format!("row {row}"));
        }
    }
}

#[test]
fn weights_are_added_to() {
    let mut random = Random::new(104);
    for layout in LAYOUTS {
        let case = Case::new(&mut random, [300, 37, 45], 0..45, layout);
        let (once, twice) = (case.dw(&fast::<f64>(), 1), case.dw(&fast::<f64>(), 2));
        for (once, twice) in once.iter().zip(&twice) {
            let double: Vec<f64> = once.iter().map(|x| 2.0 * x).collect();
            assert_close::<f64>(twice, &double, "added twice");
        }
        // Either alone.
        let cpu = fast::<f64>();
        let (x, dy) = (upload(&cpu, &case.x), upload(&cpu, &case.dy));
        let (mut dweight, mut dbias) = (cpu.alloc(37 * 45).unwrap(), cpu.alloc(45).unwrap());
        let (x, dy) = ((&x, BEFORE), (&dy, case.at));
        cpu.linear_backward_weight(x, dy, 300, 37, 45, layout, Some(&mut dweight), None, &mut ()).unwrap();
        cpu.linear_backward_weight(x, dy, 300, 37, 45, layout, None, Some(&mut dbias), &mut ()).unwrap();
        assert_same(dweight.as_slice(), &once[0], "weight alone");
        assert_same(dbias.as_slice(), &once[1], "bias alone");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = fast::<f32>();
    let (tensor, _) = stored(Dtype::F32, &[4, 8], &[1.0; 32]);
    let matrix = cpu.matrix(&tensor, Layout::OutIn).unwrap();
    let numbers = upload(&cpu, &[1.0; 16]);
    let dense = Rows::dense;
    #[allow(clippy::reversed_empty_ranges)]
    for (at, rows, outputs, to, len) in [
        (dense(4), 5, 0..4, 0, 40),
        (dense(4), 2, 0..5, 0, 16),
        (dense(4), 2, 3..2, 0, 16),
        (dense(4), 2, 0..4, 0, 15),
        (dense(4), 2, 0..4, 1, 16),
        (dense(4), 2, 0..4, usize::MAX, 16),
        (Rows { at: 9, stride: 4 }, 2, 0..4, 0, 16),
        (Rows { at: usize::MAX, stride: 4 }, 2, 0..4, 0, 16),
        (dense(4), usize::MAX, 0..4, 0, 16),
    ] {
        for accumulate in [false, true] {
            let mut dx = poisoned(&cpu, len);
            let outputs = outputs.clone();
            let result =
                cpu.linear_backward_input((&numbers, at), rows, &matrix, outputs, accumulate, (&mut dx, to));
            assert!(matches!(result, Err(Error::Shape { op: "linear_backward_input", .. })), "{result:?}");
            assert!(dx.as_slice().iter().all(|v| v.is_nan()), "nothing is written");
        }
    }
    for (x_at, at, rows, inputs, outputs, weights, biases) in [
        (0, dense(4), 3, 8, 4, 32, 4),
        (1, dense(4), 2, 8, 4, 32, 4),
        (usize::MAX, dense(4), 2, 8, 4, 32, 4),
        (0, dense(4), 5, 3, 4, 12, 4),
        (0, Rows { at: 9, stride: 4 }, 2, 8, 4, 32, 4),
        (0, dense(4), 2, 8, 4, 31, 4),
        (0, dense(4), 2, 8, 4, 33, 4),
        (0, dense(4), 2, 8, 4, 32, 3),
        (0, dense(4), 0, usize::MAX, 4, 32, 4),
    ] {
        for layout in LAYOUTS {
            let (mut dweight, mut dbias) = (poisoned(&cpu, weights), poisoned(&cpu, biases));
            let (x, dy) = ((&numbers, x_at), (&numbers, at));
            let to = (Some(&mut dweight), Some(&mut dbias));
            let result =
                cpu.linear_backward_weight(x, dy, rows, inputs, outputs, layout, to.0, to.1, &mut ());
            assert!(matches!(result, Err(Error::Shape { op: "linear_backward_weight", .. })), "{result:?}");
            assert!(dweight.as_slice().iter().chain(dbias.as_slice()).all(|v| v.is_nan()));
        }
    }
}
