//! The optimiser on the host SIMT machine: recordings, master copies, checkpoints, refusals.

use half::{bf16, f16};

use super::*;
use crate::backend::Backend;
use crate::backend::cuda::simt::{Options, Simt};
use crate::rng::Rng;

fn settings(step: u64) -> AdamW {
    let rng = Rng::new(11);
    AdamW { lr: 3e-3, betas: [0.9, 0.98], eps: 1e-8, decay: 0.1, clip: 0.7, unscale: 0.5, step, rng }
}

fn cuda(dtype: Dtype) -> Cuda<Simt> {
    Cuda::with_dtype(Simt::new(Options::default()), dtype)
}

fn numbers(len: usize, salt: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + salt * 101) % 61) as f32 / 61.0 - 0.4).collect()
}

fn tensor(dtype: Dtype, shape: &[usize], numbers: &[f32]) -> StoredTensor {
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    };
    StoredTensor::new(dtype, shape.to_vec(), bytes.into()).unwrap()
}

/// A weight that is trained, of two gradients' room.
struct Run {
    cuda: Cuda<Simt>,
    weight: Matrix<Simt>,
    state: OptimState<Simt>,
    control: OptimControl<Simt>,
    gradient: Buffer<Simt>,
    nll: Buffer<Simt>,
}

impl Run {
    fn new(dtype: Dtype, moments: MomentFormat) -> Self {
        let cuda = cuda(dtype);
        let stored = tensor(Dtype::F32, &[20, 15], &numbers(300, 1));
        let mut weight = cuda.trainable_matrix(&stored, Layout::OutIn, Dtype::F32).unwrap();
        let state = cuda.state(Trainable::Matrix(&mut weight), moments).unwrap();
        let control = cuda.control(&[300]).unwrap();
        let gradient = Buffer::of(cuda.device(), Dtype::F32, &numbers(300, 2)).unwrap();
        let nll = Buffer::of(cuda.device(), Dtype::F32, &[1.0_f32; 8]).unwrap();
        Self { cuda, weight, state, control, gradient, nll }
    }

    /// What can be recorded.
    fn work(&mut self) -> Result<()> {
        let Self { cuda, weight, state, control, gradient, nll } = self;
        cuda.watch(control, nll, 8)?;
        cuda.measure(control, 0, gradient)?;
        cuda.settle(control)?;
        cuda.step(Trainable::Matrix(weight), gradient, state, control, 3, true)
    }

    fn prepare(&mut self, step: u64) {
        self.cuda.prepare(&mut self.control, settings(step)).unwrap();
        self.gradient.write(self.cuda.device(), 0, &numbers(300, 2 + step as usize)).unwrap();
    }

    fn read(&mut self) -> (Vec<f32>, [Vec<u8>; 2]) {
        let Self { cuda, weight, state, .. } = self;
        let master = cuda.read_parameter(Trainable::Matrix(weight), Some(state)).unwrap();
        (master, cuda.read_moments(state).unwrap().1)
    }
}

/// Recorded once, with other settings and gradients each time, a bad loss among them.
#[test]
fn a_recording_steps_as_its_operations_do() {
    for (dtype, moments) in [(Dtype::F32, MomentFormat::F32), (Dtype::Bf16, MomentFormat::Q8)] {
        let (mut direct, mut recorded) = (Run::new(dtype, moments), Run::new(dtype, moments));
        let cuda = recorded.cuda.clone();
        let recording = cuda.record(|| recorded.work()).unwrap().unwrap();
        for step in 1..=4 {
            let loss = if step == 2 { f32::NAN } else { 1.0 };
            for run in [&mut direct, &mut recorded] {
                run.prepare(step);
                run.nll.write(run.cuda.device(), 7, &[loss]).unwrap();
            }
            direct.work().unwrap();
            // SAFETY: all that was recorded is in `recorded`.
            unsafe { cuda.replay(&recording) }.unwrap();
            let outcomes = [&direct, &recorded].map(|run| run.cuda.outcome(&run.control).unwrap());
            assert_eq!(outcomes[0], outcomes[1]);
            assert_eq!(outcomes[0].skipped, step == 2);
            assert_eq!(direct.read(), recorded.read());
        }
    }
}

#[test]
fn a_run_goes_on_from_what_was_read() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for moments in [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Q8] {
            let (mut run, mut other) = (Run::new(dtype, moments), Run::new(dtype, moments));
            for step in 1..=2 {
                run.prepare(step);
                run.work().unwrap();
            }
            let (master, [m, v]) = run.read();
            let Run { cuda, weight, state, .. } = &mut other;
            cuda.write_parameter(Trainable::Matrix(weight), Some(state), &master).unwrap();
            cuda.write_moments(state, [&m, &v]).unwrap();
            for run in [&mut run, &mut other] {
                run.prepare(3);
                run.work().unwrap();
            }
            assert_eq!(run.read(), other.read());
            let weights = [&run, &other].map(|r| r.weight.buffer().to_f32(r.cuda.device()).unwrap());
            assert_eq!(weights[0], weights[1]);
            let wrong = other.cuda.write_moments(&mut other.state, [&m[1..], &v]);
            assert!(matches!(wrong, Err(Error::Shape { op: "write_moments", .. })), "{wrong:?}");
        }
    }
}

/// The compute copy is in the format of activations, the master copy begins with the file's numbers.
#[test]
fn a_master_copy_begins_exact() {
    let all = numbers(12, 5);
    for from in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let cuda = cuda(dtype);
            let stored = tensor(from, &[3, 4], &all);
            let mut weight = cuda.trainable_matrix(&stored, Layout::InOut, Dtype::Bf16).unwrap();
            assert_eq!((weight.dtype(), weight.inputs(), weight.outputs()), (dtype, 3, 4));
            let exact: Vec<f32> = stored.to_vec();
            assert_eq!(cuda.read_parameter(Trainable::Matrix(&mut weight), None).unwrap(), exact);
            let state = cuda.state(Trainable::Matrix(&mut weight), MomentFormat::F32).unwrap();
            assert_eq!(cuda.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).unwrap(), exact);
            let seen = cuda.read_parameter(Trainable::Matrix(&mut weight), None).unwrap();
            let rounded = Buffer::floats(cuda.device(), dtype, &exact).unwrap();
            assert_eq!(seen, rounded.to_f32(cuda.device()).unwrap());
        }
    }
    // Written before there is a state.
    let cuda = cuda(Dtype::Bf16);
    let mut weight =
        cuda.trainable_matrix(&tensor(Dtype::F32, &[3, 4], &all), Layout::OutIn, Dtype::F32).unwrap();
    let other = numbers(12, 6);
    cuda.write_parameter(Trainable::Matrix(&mut weight), None, &other).unwrap();
    let state = cuda.state(Trainable::Matrix(&mut weight), MomentFormat::F32).unwrap();
    assert_eq!(cuda.read_parameter(Trainable::Matrix(&mut weight), Some(&state)).unwrap(), other);
}

/// Before a control is settled, and before it is prepared at all, nothing moves.
#[test]
fn nothing_moves_before_it_is_settled() {
    let mut run = Run::new(Dtype::F32, MomentFormat::Bf16);
    let before = run.read();
    for prepared in [false, true] {
        if prepared {
            run.prepare(1);
        }
        let Run { cuda, weight, state, control, gradient, .. } = &mut run;
        cuda.step(Trainable::Matrix(weight), gradient, state, control, 3, true).unwrap();
        assert!(cuda.outcome(control).unwrap().skipped);
        assert_eq!(run.read(), before);
    }
    run.work().unwrap();
    assert_ne!(run.read(), before);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut run = Run::new(Dtype::Bf16, MomentFormat::Q8);
    let Run { cuda, weight, state, control, gradient, nll } = &mut run;
    let device = cuda.device().clone();
    let mut plain = Buffer::of(&device, Dtype::F32, &numbers(300, 1)).unwrap();
    let mut short = Buffer::of(&device, Dtype::F32, &numbers(299, 1)).unwrap();
    let narrow = Buffer::floats(&device, Dtype::Bf16, &numbers(300, 1)).unwrap();
    let mut words = Buffer::new(&device, Format::U32, 300).unwrap();
    cuda.prepare(control, settings(1)).unwrap();
    let results = [
        // No master copy, another length.
        cuda.step(Trainable::Vector(&mut plain), gradient, state, control, 0, true),
        cuda.step(Trainable::Vector(&mut short), gradient, state, control, 0, true),
        // A gradient of another length or format.
        cuda.step(Trainable::Matrix(weight), &short, state, control, 0, true),
        cuda.step(Trainable::Matrix(weight), &narrow, state, control, 0, true),
        cuda.measure(control, 1, gradient),
        cuda.measure(control, 0, &short),
        cuda.measure(control, 0, &narrow),
        cuda.watch(control, nll, 9),
        cuda.sum_of_squares(gradient, 301).map(drop),
        cuda.state(Trainable::Vector(&mut words), MomentFormat::F32).map(drop),
        cuda.read_parameter(Trainable::Vector(&mut plain), Some(state)).map(drop),
        cuda.write_parameter(Trainable::Matrix(weight), Some(state), &[0.0; 299]),
        cuda.write_parameter(Trainable::Vector(&mut plain), Some(state), &[0.0; 300]),
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Shape { .. })), "{i}: {result:?}");
    }
    for wrong in [AdamW { step: 0, ..settings(1) }, AdamW { clip: f64::NAN, ..settings(1) }] {
        assert!(matches!(cuda.prepare(control, wrong), Err(Error::Request(_))));
    }
    let flat = tensor(Dtype::F32, &[4], &[0.0; 4]);
    assert!(cuda.trainable_matrix(&flat, Layout::OutIn, Dtype::F32).is_err());
    // Parameters without numbers.
    let mut none = cuda.alloc(0).unwrap();
    let mut state = cuda.state(Trainable::Vector(&mut none), MomentFormat::Q8).unwrap();
    let mut control = cuda.control(&[0]).unwrap();
    let gradient = Buffer::new(&device, Dtype::F32, 0).unwrap();
    cuda.prepare(&mut control, settings(1)).unwrap();
    cuda.measure(&mut control, 0, &gradient).unwrap();
    cuda.settle(&mut control).unwrap();
    cuda.step(Trainable::Vector(&mut none), &gradient, &mut state, &control, 0, true).unwrap();
    assert_eq!(cuda.outcome(&control).unwrap(), Outcome { gradient: 0.0, skipped: false });
}
