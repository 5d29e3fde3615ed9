//! AdamW, its moments and master copies, and the norm of gradients.

use half::bf16;
use lacuna::Error;
use lacuna::backend::cpu::{Buffer, Cpu, Matrix, OptimControl, OptimState, SimdLevel};
use lacuna::backend::{AdamW, Backend, Layout, MomentFormat, Optimise, Trainable};
use lacuna::element::Dtype;
use lacuna::rng::Rng;

use crate::support::*;

/// More than two tasks, and a remainder of everything.
const LONG: usize = 2 * (1 << 15) + 64 + 17;

pub fn settings(step: u64) -> AdamW {
    AdamW {
        lr: 3e-3,
        betas: [0.9, 0.98],
        eps: 1e-8,
        decay: 0.1,
        clip: 0.0,
        unscale: 0.5,
        step,
        rng: Rng::new(11),
    }
}

/// A control that is prepared, and settled without any gradient.
pub fn settled(cpu: &Cpu<f32>, a: AdamW) -> Result<OptimControl, Error> {
    let mut control = cpu.control(&[])?;
    cpu.prepare(&mut control, a)?;
    cpu.settle(&mut control)?;
    Ok(control)
}

/// A step of parameter 4, which decays.
fn step(
    cpu: &Cpu<f32>,
    parameter: Trainable<'_, Cpu<f32>>,
    gradient: &Buffer<f32>,
    state: &mut OptimState,
    a: AdamW,
) -> Result<(), Error> {
    cpu.step(parameter, gradient, state, &settled(cpu, a)?, 4, true)
}

/// As [`AdamW`] says it, in f64.
#[derive(Clone)]
struct Naive {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Naive {
    fn new(p: &[f64]) -> Self {
        Naive { p: p.to_vec(), m: vec![0.0; p.len()], v: vec![0.0; p.len()] }
    }

    fn step(&mut self, gradient: &[f64], a: AdamW) {
        let [b1, b2] = a.betas;
        for (i, &g) in gradient.iter().enumerate() {
            let g = a.unscale * g;
            self.p[i] *= 1.0 - a.lr * a.decay;
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let (m, v) =
                (self.m[i] / (1.0 - b1.powi(a.step as i32)), self.v[i] / (1.0 - b2.powi(a.step as i32)));
            self.p[i] -= a.lr * m / (v.sqrt() + a.eps);
        }
    }
}

fn matrix(cpu: &Cpu<f32>, numbers: &[f64], dtype: Dtype) -> Matrix {
    let (tensor, _) = stored(Dtype::F32, &[1, numbers.len()], numbers);
    cpu.trainable_matrix(&tensor, Layout::OutIn, dtype).unwrap()
}

pub fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

pub fn largest(x: &[f32], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
}

#[test]
fn several_steps_against_naive() {
    let mut random = Random::new(60);
    for level in levels() {
        let cpu = backend::<f32>(2, level);
        for len in [1, 15, 64, 65, 1000] {
            let p = random.numbers(len);
            let mut naive = Naive::new(&p);
            let mut vector = upload(&cpu, &p);
            let mut weight = matrix(&cpu, &p, Dtype::F32);
            let mut of_vector = cpu.state(Trainable::Vector(&mut vector), MomentFormat::F32).unwrap();
            let mut of_weight = cpu.state(Trainable::Matrix(&mut weight), MomentFormat::F32).unwrap();
            for t in 1..=12 {
                let mut a = settings(t);
                if t % 3 == 0 {
                    a.decay = 0.0;
                }
                let gradient = random.numbers(len);
                naive.step(&gradient, a);
                let gradient = upload(&cpu, &gradient);
                step(&cpu, Trainable::Vector(&mut vector), &gradient, &mut of_vector, a).unwrap();
                step(&cpu, Trainable::Matrix(&mut weight), &gradient, &mut of_weight, a).unwrap();
            }
            let error = largest(vector.as_slice(), &naive.p);
            assert!(error < 3e-6, "{level}, {len}: {error:e}");
            let weight = cpu.read_parameter(Trainable::Matrix(&mut weight), Some(&of_weight)).unwrap();
            assert_eq!(bits(&weight), bits(vector.as_slice()));
            let (_, [m, v]) = cpu.read_moments(&of_weight).unwrap();
            let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let (m, v): (Vec<f32>, Vec<f32>) = (floats(&m), floats(&v));
            assert!(largest(&m, &naive.m) < 1e-6 && largest(&v, &naive.v) < 1e-6);
        }
    }
}

#[test]
fn a_first_step_is_the_rate_times_the_sign() {
    let cpu = fast::<f32>();
    let mut p = upload(&cpu, &[1.0, 1.0, 1.0, 1.0]);
    let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::F32).unwrap();
    let a = AdamW { decay: 0.0, lr: 0.125, eps: 1e-12, ..settings(1) };
    let gradient = upload(&cpu, &[3.0, -0.001, 0.0, 1e4]);
    step(&cpu, Trainable::Vector(&mut p), &gradient, &mut state, a).unwrap();
    for (x, expected) in p.as_slice().iter().zip([0.875, 1.125, 1.0, 0.875]) {
        assert!((x - expected).abs() < 1e-6, "{x} {expected}");
    }
    // Decay alone, where there is no gradient.
    let mut p = upload(&cpu, &[2.0; 70]);
    let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::Bf16).unwrap();
    let a = AdamW { decay: 0.25, lr: 0.5, ..settings(1) };
    step(&cpu, Trainable::Vector(&mut p), &upload(&cpu, &[0.0; 70]), &mut state, a).unwrap();
    assert_eq!(p.as_slice(), [1.75; 70]);
}

/// Weights, masters and moments after three steps, as bits.
fn after_three(cpu: &Cpu<f32>, dtype: Dtype, format: MomentFormat) -> (Vec<u8>, Vec<u32>, [Vec<u8>; 2]) {
    let mut random = Random::new(61);
    let mut weight = matrix(cpu, &random.numbers(LONG), dtype);
    let mut state = cpu.state(Trainable::Matrix(&mut weight), format).unwrap();
    for t in 1..=3 {
        let gradient = upload(cpu, &random.numbers(LONG));
        step(cpu, Trainable::Matrix(&mut weight), &gradient, &mut state, settings(t)).unwrap();
    }
    let master = cpu.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).unwrap();
    (weight.bytes().to_vec(), bits(&master), cpu.read_moments(&state).unwrap().1)
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for format in [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Q8] {
            let expected = after_three(&backend(1, SimdLevel::Portable), dtype, format);
            for level in levels() {
                for threads in [1, 4] {
                    let got = after_three(&backend(threads, level), dtype, format);
                    assert!(got == expected, "{dtype} {format:?} {level} {threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_bf16_weight_is_its_master_rounded() {
    let cpu = fast::<f32>();
    let mut random = Random::new(62);
    let p = random.numbers(300);
    let (_, rounded) = stored(Dtype::Bf16, &[300], &p);
    let mut weight = matrix(&cpu, &p, Dtype::Bf16);
    assert_eq!(cpu.copied_bytes(&weight), 600);
    let mut state = cpu.state(Trainable::Matrix(&mut weight), MomentFormat::F32).unwrap();
    assert_eq!(state.bytes(), 300 * 12);
    // Steps too small for bf16 to see one by one, which the master keeps.
    let mut naive = Naive::new(&rounded);
    for t in 1..=200 {
        let a = AdamW { lr: 1e-5, ..settings(t) };
        let gradient: Vec<f64> = p.iter().map(|x| x.signum() * (1.0 + 0.1 * random.number())).collect();
        let gradient: Vec<f64> = gradient.iter().map(|&g| f64::from(g as f32)).collect();
        naive.step(&gradient, a);
        step(&cpu, Trainable::Matrix(&mut weight), &upload(&cpu, &gradient), &mut state, a).unwrap();
    }
    let master = cpu.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).unwrap();
    assert!(largest(&master, &naive.p) < 1e-5);
    let moved = master.iter().zip(&rounded).filter(|(a, b)| (f64::from(**a) - **b).abs() > 1e-3).count();
    assert!(moved > 290, "{moved}");
    let seen = cpu.read_parameter(Trainable::Matrix(&mut weight), None).unwrap();
    let expected: Vec<f32> = master.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(bits(&seen), bits(&expected));
    let written: Vec<u8> = expected.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    assert_eq!(weight.bytes(), written);
}

fn moments(cpu: &Cpu<f32>, state: &OptimState) -> [Vec<bf16>; 2] {
    let (format, moments) = cpu.read_moments(state).unwrap();
    assert_eq!(format, MomentFormat::Bf16);
    moments.map(|m| m.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
}

/// The moments after a first step, where m is g and v is g^2 (b1 and b2 are 0).
fn rounded(gradient: &[f64], seed: u64, parameter: u32, step: u64) -> [Vec<bf16>; 2] {
    let cpu = fast::<f32>();
    let mut p = upload(&cpu, &vec![0.0; gradient.len()]);
    let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::Bf16).unwrap();
    let rng = Rng::new(seed);
    let a = AdamW { betas: [0.0; 2], unscale: 1.0, rng, step, ..settings(1) };
    let control = settled(&cpu, a).unwrap();
    let vector = Trainable::Vector(&mut p);
    cpu.step(vector, &upload(&cpu, gradient), &mut state, &control, parameter, true).unwrap();
    moments(&cpu, &state)
}

#[test]
fn stochastic_rounding_keeps_the_mean() {
    let n = 100_000;
    for (x, seed) in [(1.001, 1), (-0.3333, 2), (2.9e-12, 3), (1.0 + 1.0 / 256.0, 4), (1.0, 5)] {
        let x = f64::from(x as f32);
        let [m, v] = rounded(&vec![x; n], seed, 0, 1);
        for (y, exact) in [(m, x), (v, f64::from(x as f32 * x as f32))] {
            let down = f64::from(f32::from_bits((exact as f32).to_bits() & 0xFFFF_0000));
            let step = f64::from(f32::from_bits(((down as f32).to_bits()) + 0x1_0000)) - down;
            let part = (exact - down) / step;
            let mean = y.iter().map(|y| (y.to_f64() - down) / step).sum::<f64>() / n as f64;
            assert!(y.iter().all(|y| [0.0, 1.0].contains(&((y.to_f64() - down) / step))), "{x}");
            // Five standard errors.
            let bound = 5.0 * (part * (1.0 - part) / n as f64).sqrt();
            assert!((mean - part).abs() <= bound, "{exact:e}: {mean} for {part}, bound {bound}");
        }
    }
}

#[test]
fn random_bits_are_addressed() {
    let mut random = Random::new(63);
    let gradient = random.numbers(LONG);
    let [m, v] = rounded(&gradient, 9, 2, 7);
    assert!([&m, &v] == [&rounded(&gradient, 9, 2, 7)[0], &rounded(&gradient, 9, 2, 7)[1]]);
    for other in [(8, 2, 7), (9, 3, 7), (9, 2, 8)] {
        let [n, _] = rounded(&gradient, other.0, other.1, other.2);
        let same = m.iter().zip(&n).filter(|(a, b)| a == b).count() as f64 / LONG as f64;
        // Two thirds on average: p^2 + (1 - p)^2 for a uniform p.
        assert!((same - 2.0 / 3.0).abs() < 0.02, "{other:?}: {same}");
    }
    // The two moments of an element have bits of their own, those that `rounding` says.
    let a = AdamW { rng: Rng::new(9), ..settings(7) };
    for i in (0..LONG).step_by(97).chain([0, 15, 16, 63, 64, LONG - 1]) {
        let g = gradient[i] as f32;
        let [low, high] = a.rounding(2, i as u64);
        for (x, bits, y) in [(g, low, m[i]), (g * g, high, v[i])] {
            let expected = (x.to_bits() + u32::from(bits)) >> 16;
            assert_eq!(u32::from(y.to_bits()), expected, "{i}: {x} {bits}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_and_the_rest_stays_finite() {
    let nan = f64::from(f32::from_bits(0x7FFF_FFFF));
    let [m, _] = rounded(&[nan, f64::INFINITY, f64::NEG_INFINITY, f64::from(f32::MAX)].repeat(64), 1, 0, 1);
    for m in m.chunks(4) {
        assert!(m[0].is_nan());
        assert_eq!(m[1..3], [bf16::INFINITY, bf16::NEG_INFINITY]);
        assert_eq!(m[3], bf16::MAX);
    }
}

#[test]
fn sums_of_squares() {
    let mut random = Random::new(64);
    let x = random.numbers(LONG);
    let sum = |cpu: &Cpu<f32>, x: &[f64], len| cpu.sum_of_squares(&upload(cpu, x), len).unwrap();
    let whole = sum(&fast(), &x, LONG);
    let exact: f64 = x.iter().map(|x| x * x).sum();
    assert!((whole - exact).abs() <= 1e-12 * exact, "{whole} {exact}");
    for level in levels() {
        for threads in [1, 4] {
            let cpu = backend(threads, level);
            assert_eq!(sum(&cpu, &x, LONG).to_bits(), whole.to_bits());
            assert_eq!(sum(&cpu, &x, 0), 0.0);
            let few = x[..37].iter().map(|x| x * x).sum::<f64>();
            assert!((sum(&cpu, &x, 37) - few).abs() < 1e-12 * few);
            for at in [0, 40_000, LONG - 1] {
                let mut y = x.clone();
                y[at] = f64::NAN;
                assert!(sum(&cpu, &y, LONG).is_nan());
                y[at] = f64::NEG_INFINITY;
                assert_eq!(sum(&cpu, &y, LONG), f64::INFINITY);
                // Too large for a square in f32.
                y[at] = 2.0_f64.powi(100);
                assert!((sum(&cpu, &y, LONG) / 2.0_f64.powi(200) - 1.0).abs() < 1e-12);
            }
        }
    }
    let refused = fast::<f32>().sum_of_squares(&upload(&fast(), &x), LONG + 1);
    assert!(matches!(refused, Err(Error::Shape { op: "sum_of_squares", .. })), "{refused:?}");
}

/// Reads everything, writes it to a parameter and state of its own, and goes on from both.
#[test]
fn moments_and_parameters_round_trip() {
    let cpu = fast::<f32>();
    use MomentFormat::{Bf16, F32, Q8};
    for (dtype, format) in
        [(Dtype::F32, F32), (Dtype::Bf16, F32), (Dtype::Bf16, Bf16), (Dtype::F32, Q8), (Dtype::Bf16, Q8)]
    {
        let mut random = Random::new(65);
        let len = 1000;
        let mut weight = matrix(&cpu, &random.numbers(len), dtype);
        let mut state = cpu.state(Trainable::Matrix(&mut weight), format).unwrap();
        let gradients: Vec<_> = (0..4).map(|_| upload(&cpu, &random.numbers(len))).collect();
        for (gradient, t) in gradients[..2].iter().zip(1..) {
            step(&cpu, Trainable::Matrix(&mut weight), gradient, &mut state, settings(t)).unwrap();
        }
        let numbers = cpu.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).unwrap();
        let (_, [m, v]) = cpu.read_moments(&state).unwrap();
        let mut other = matrix(&cpu, &vec![0.0; len], dtype);
        let mut other_state = cpu.state(Trainable::Matrix(&mut other), format).unwrap();
        cpu.write_parameter(Trainable::Matrix(&mut other), Some(&mut other_state), &numbers).unwrap();
        cpu.write_moments(&mut other_state, [&m, &v]).unwrap();
        for (gradient, t) in gradients[2..].iter().zip(3..) {
            step(&cpu, Trainable::Matrix(&mut weight), gradient, &mut state, settings(t)).unwrap();
            step(&cpu, Trainable::Matrix(&mut other), gradient, &mut other_state, settings(t)).unwrap();
        }
        assert_eq!(weight.bytes(), other.bytes());
        assert_eq!(cpu.read_moments(&state).unwrap(), cpu.read_moments(&other_state).unwrap());
        for wrong in [[&m[1..], &v[..]], [&m[..], &[]]] {
            let result = cpu.write_moments(&mut state, wrong);
            assert!(matches!(result, Err(Error::Shape { op: "write_moments", .. })), "{result:?}");
        }
    }
}

#[test]
fn weights_are_taken_in_every_format() {
    let cpu = fast::<f32>();
    let mut random = Random::new(66);
    let numbers = random.numbers(33 * 70);
    for from in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let (tensor, exact) = stored(from, &[33, 70], &numbers);
        for to in [Dtype::F32, Dtype::Bf16] {
            let mut weight = cpu.trainable_matrix(&tensor, Layout::InOut, to).unwrap();
            assert_eq!((weight.inputs(), weight.outputs(), weight.dtype()), (33, 70, to));
            assert_eq!(cpu.copied_bytes(&weight), 33 * 70 * to.size());
            let (_, expected) = stored(to, &[33, 70], &exact);
            let got = cpu.read_parameter(Trainable::Matrix(&mut weight), None).unwrap();
            assert!(largest(&got, &expected) == 0.0, "{from} to {to}");
        }
        let refused = cpu.trainable_matrix(&tensor, Layout::InOut, Dtype::F16);
        assert!(matches!(refused, Err(Error::Request(_))));
    }
    let (flat, _) = stored(Dtype::F32, &[4], &[0.0; 4]);
    let refused = cpu.trainable_matrix(&flat, Layout::OutIn, Dtype::F32);
    assert!(matches!(refused, Err(Error::Shape { op: "trainable_matrix", .. })));
    let (empty, _) = stored(Dtype::F32, &[0, 4], &[]);
    let mut empty = cpu.trainable_matrix(&empty, Layout::OutIn, Dtype::Bf16).unwrap();
    let mut state = cpu.state(Trainable::Matrix(&mut empty), MomentFormat::Bf16).unwrap();
    step(&cpu, Trainable::Matrix(&mut empty), &upload(&cpu, &[]), &mut state, settings(1)).unwrap();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let cpu = fast::<f32>();
    let numbers = [1.0; 20];
    let mut vector: Buffer<f32> = upload(&cpu, &numbers);
    let mut weight = matrix(&cpu, &numbers, Dtype::Bf16);
    let mut state = cpu.state(Trainable::Vector(&mut vector), MomentFormat::F32).unwrap();
    let mut shorter: Buffer<f32> = upload(&cpu, &numbers[1..]);
    let gradient = upload(&cpu, &numbers);
    let a = settings(1);
    // A state without a master copy, one of another length, a gradient of another length.
    let results = [
        step(&cpu, Trainable::Matrix(&mut weight), &gradient, &mut state, a),
        step(&cpu, Trainable::Vector(&mut shorter), &gradient, &mut state, a),
        step(&cpu, Trainable::Vector(&mut vector), &shorter, &mut state, a),
        cpu.write_parameter(Trainable::Vector(&mut vector), Some(&mut state), &[0.0; 19]),
        cpu.write_parameter(Trainable::Vector(&mut shorter), Some(&mut state), &[0.0; 19]),
        cpu.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    }
    // A weight that lies in its file.
    let (tensor, _) = stored(Dtype::F32, &[4, 5], &numbers);
    let mut mapped = cpu.matrix(&tensor, Layout::OutIn).unwrap();
    assert_eq!(cpu.copied_bytes(&mapped), 0);
    let refused = cpu.state(Trainable::Matrix(&mut mapped), MomentFormat::F32);
    assert!(matches!(refused, Err(Error::Request(_))));
    for wrong in [
        AdamW { step: 0, ..a },
        AdamW { lr: f64::NAN, ..a },
        AdamW { lr: -1.0, ..a },
        AdamW { betas: [1.0, 0.9], ..a },
        AdamW { betas: [0.9, f64::NAN], ..a },
        AdamW { eps: 0.0, ..a },
        AdamW { eps: 1e-60, ..a },
        AdamW { decay: f64::INFINITY, ..a },
        AdamW { clip: f64::NAN, ..a },
        AdamW { unscale: -1.0, ..a },
    ] {
        let result = step(&cpu, Trainable::Vector(&mut vector), &gradient, &mut state, wrong);
        assert!(matches!(result, Err(Error::Request(_))), "{wrong:?}");
    }
    // Out of order, or beyond what the control has room for.
    let mut control = cpu.control(&[20, 19]).unwrap();
    assert!(matches!(cpu.settle(&mut control), Err(Error::Request(_))));
    cpu.prepare(&mut control, a).unwrap();
    assert!(matches!(cpu.outcome(&control), Err(Error::Request(_))));
    let early = cpu.step(Trainable::Vector(&mut vector), &gradient, &mut state, &control, 0, true);
    assert!(matches!(early, Err(Error::Request(_))));
    for result in [
        cpu.measure(&mut control, 2, &gradient),
        cpu.measure(&mut control, 0, &shorter),
        cpu.watch(&mut control, &gradient, 21),
    ] {
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    }
    assert_eq!(vector.as_slice(), [1.0; 20]);
}

/// A weight in memory of its own multiplies as one in its file.
#[test]
fn an_owned_weight_is_used_as_a_mapped_one() {
    use lacuna::backend::{Epilogue, Forward, Rows};
    let cpu = fast::<f32>();
    let mut random = Random::new(67);
    let (inputs, outputs, rows) = (70, 33, 5);
    let (numbers, x) = (random.numbers(inputs * outputs), upload(&cpu, &random.numbers(rows * inputs)));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (layout, shape) in [(Layout::OutIn, [outputs, inputs]), (Layout::InOut, [inputs, outputs])] {
            let (tensor, _) = stored(dtype, &shape, &numbers);
            let both = [cpu.matrix(&tensor, layout), cpu.trainable_matrix(&tensor, layout, dtype)];
            let [mapped, owned] = both.map(|weight| {
                let mut out = poisoned(&cpu, rows * outputs);
                let weight = weight.unwrap();
                let epilogue = Epilogue { bias: None, activation: None, accumulate: false };
                cpu.linear((&x, 0), rows, &weight, 0..outputs, epilogue, &mut out, Rows::dense(outputs))
                    .unwrap();
                out.as_slice().to_vec()
            });
            assert_same(&owned, &mapped, "owned and mapped");
        }
    }
}
