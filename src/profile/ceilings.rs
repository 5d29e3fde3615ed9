//! What a machine can do at most, measured on it by the operations of the engine: a large copy and a large matrix product.
//!
//! Rows of the roofline model (Williams et al., "Roofline", 2009): work of `flops` operations on `bytes` bytes takes at least
//! `max(flops / flops_per_s, bytes / bytes_per_s)`.

use std::time::Instant;

use crate::backend::{Backend, Epilogue, Forward, Layout, Rows};
use crate::error::{Error, Result};
use crate::meter;
use crate::synthetic::{Fill, SyntheticTensor};

/// Ceilings of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Floating-point operations a second of a large matrix product in the format that the engine computes in.
    pub flops_per_s: f64,
    /// Bytes a second of a copy between buffers that no cache holds, what is read and what is written both counted.
    pub bytes_per_s: f64,
}

/// What keeps work from being done faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Compute,
    Memory,
}

impl Bound {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
        }
    }
}

impl Ceilings {
    /// The least seconds that the roofline allows for this work.
    pub fn least(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops_per_s).max(bytes / self.bytes_per_s)
    }

    /// The share of the roofline that work done in `seconds` reaches: the time it allows over the time taken, 0 to 1. More than
    /// 1 where the data came out of a cache, or the ceilings were measured on a machine that had other things to do.
    pub fn share(&self, flops: f64, bytes: f64, seconds: f64) -> f64 {
        self.least(flops, bytes) / seconds
    }

    /// Which of the two ceilings is over the work; memory where both are the same.
    pub fn bound(&self, flops: f64, bytes: f64) -> Bound {
        if flops / self.flops_per_s > bytes / self.bytes_per_s { Bound::Compute } else { Bound::Memory }
    }
}

/// Seconds that a run takes at least, so that starting it does not count.
const LEAST_S: f64 = 0.02;
/// Runs of which the best counts.
const RUNS: usize = 5;
/// Launches of a run at most, however short one is.
const MOST_LAUNCHES: usize = 64;
/// Numbers of a row of the copy.
const WIDTH: usize = 1 << 12;
/// The same of long rows, for which a CPU writes around its caches.
const LONG: usize = 1 << 20;
/// Bytes of one side of the copy: four times the last-level cache of a common server.
const COPY: u64 = 1 << 27;
/// The same on a card, many times its second-level cache.
const COPY_ON_CARD: u64 = 1 << 30;
/// Sides of the smallest product, of the largest, and of that on a card.
const SIDE: [usize; 3] = [32, 4096, 8192];

/// Measures both ceilings of the machine, in about a second. Sizes grow until a launch takes long enough, so that a slow machine
/// is measured by small work.
///
/// # Errors
/// [`Error::Memory`] when there is no room for the buffers (256 MiB on the CPU, a quarter of what is free on a card at most);
/// [`Error::NonFinite`] for a product of numbers that are none; those of the machine.
pub fn ceilings<B: Forward + Backend<Elem = f32>>(backend: &B) -> Result<Ceilings> {
    let _unmetered = meter::pause();
    backend.run(|| Ok(Ceilings { bytes_per_s: copy(backend)?, flops_per_s: product(backend)? }))
}

/// Bytes a second of a copy.
fn copy<B: Forward + Backend<Elem = f32>>(backend: &B) -> Result<f64> {
    let size = backend.number_bytes()[0];
    let bytes = backend.free_memory().map_or(COPY, |free| COPY_ON_CARD.min(free / 8));
    let most = ((bytes / (WIDTH * size) as u64) as usize).max(1);
    let table = numbers(backend, 1, WIDTH)?;
    let mut rows = most.min(4);
    loop {
        let mut index = backend.alloc_index(rows)?;
        let mut src = backend.alloc(rows * WIDTH)?;
        let mut dst = backend.alloc(rows * WIDTH)?;
        // All of both is written once before: memory that never was may not be there yet.
        for buffer in [&mut src, &mut dst] {
            backend.embed(&table, &index, None, rows, WIDTH, buffer)?;
        }
        backend.write_index(&mut index, &(0..rows as u32).collect::<Vec<_>>())?;
        let mut with = |width: usize, launches| {
            let from = (&src, Rows::dense(width));
            time(backend, launches, || backend.gather(from, &index, rows * WIDTH / width, width, &mut dst))
        };
        let first = with(WIDTH, 1)?;
        if rows < most && first < LEAST_S {
            rows = (4 * rows).min(most);
            continue;
        }
        let mut least = best(first, |launches| with(WIDTH, launches))?;
        if rows >= LONG / WIDTH && rows.is_multiple_of(LONG / WIDTH) {
            least = least.min(best(first, |launches| with(LONG, launches))?);
        }
        return Ok((2 * rows * WIDTH * size) as f64 / least);
    }
}

/// Floating-point operations a second of the product of a square matrix with its own transpose.
fn product<B: Forward + Backend<Elem = f32>>(backend: &B) -> Result<f64> {
    let [mut side, on_cpu, on_card] = SIDE;
    loop {
        let weight = numbers(backend, side, side)?;
        let mut index = backend.alloc_index(side)?;
        backend.write_index(&mut index, &(0..side as u32).collect::<Vec<_>>())?;
        let mut x = backend.alloc(side * side)?;
        let mut out = backend.alloc_logits(side * side)?;
        backend.embed(&weight, &index, None, side, side, &mut x)?;
        let mut times = |launches| {
            time(backend, launches, || {
                let none = Epilogue::NONE;
                backend.linear((&x, 0), side, &weight, 0..side, none, &mut out, Rows::dense(side))
            })
        };
        // The first one may have kernels and working memory to fetch.
        times(1)?;
        let first = times(1)?;
        let most = match backend.free_memory() {
            None => on_cpu,
            // What is free beside this size has room for the next, four times as large.
            Some(free) if (64 * side * side) as u64 > free => side,
            Some(_) => on_card,
        };
        if side < most && first < LEAST_S {
            side *= 2;
            continue;
        }
        let least = best(first, &mut times)?;
        let mut corner = [f32::NAN];
        backend.read(&out, 0, &mut corner)?;
        // A row times itself.
        if !(corner[0].is_finite() && corner[0] > 0.0) {
            return Err(Error::NonFinite {
                place: format!("a matrix product of {side} x {side}"),
                found: corner[0].to_string(),
                hint: "the time of a kernel that computes something else says nothing; run lacuna selftest"
                    .into(),
            });
        }
        return Ok(2.0 * (side as f64).powi(3) / least);
    }
}

/// Made-up numbers as a table of `rows` rows.
fn numbers<B: Backend>(backend: &B, rows: usize, width: usize) -> Result<B::Matrix> {
    let fill = Fill::Normal { std: 0.02 };
    let tensor = SyntheticTensor { shape: vec![rows, width], seed: 0, parameter: 0, fill };
    backend.synthetic_matrix(&tensor, Layout::OutIn)
}

/// Seconds of a launch of `work`: of `launches` one behind the other.
fn time<B: Backend>(backend: &B, launches: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    backend.synchronize()?;
    let start = Instant::now();
    for _ in 0..launches {
        work()?;
    }
    backend.synchronize()?;
    // A clock that stood still has seen less than its tick.
    Ok((start.elapsed().as_secs_f64() / launches as f64).max(1e-9))
}

/// The least seconds of a launch, in runs of as many launches as take long enough, where one takes `first`.
fn best(first: f64, mut time: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    let launches = ((LEAST_S / first).ceil() as usize).clamp(1, MOST_LAUNCHES);
    let mut least = first;
    for _ in 0..RUNS {
        least = least.min(time(launches)?);
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn a_roofline_is_a_slope_and_a_ceiling() {
        let machine = Ceilings { flops_per_s: 100.0, bytes_per_s: 10.0 };
        // The ridge is at 10 operations a byte.
        assert_eq!((machine.bound(99.0, 10.0), machine.bound(101.0, 10.0)), (Bound::Memory, Bound::Compute));
        assert_eq!((machine.least(50.0, 10.0), machine.least(400.0, 10.0)), (1.0, 4.0));
        assert_eq!((machine.share(50.0, 10.0, 2.0), machine.share(400.0, 10.0, 5.0)), (0.5, 0.8));
    }

    #[test]
    fn a_cpu_has_both() {
        let got = ceilings(&Cpu::<f32>::new(None).unwrap()).unwrap();
        // Any machine of this century: 10 MFLOP/s to 10 PFLOP/s, 10 MB/s to 100 TB/s.
        assert!((1e7..1e16).contains(&got.flops_per_s) && (1e7..1e14).contains(&got.bytes_per_s), "{got:?}");
    }

    #[cfg(feature = "simt")]
    #[test]
    fn a_card_is_measured_by_its_kernels() {
        use crate::backend::cuda::Cuda;
        use crate::backend::cuda::simt::{Options, Simt};

        let got = ceilings(&Cuda::new(Simt::new(Options { seed: 0, check: false }))).unwrap();
        assert!(got.flops_per_s > 0.0 && got.bytes_per_s > 0.0, "{got:?}");
        assert!(got.flops_per_s.is_finite() && got.bytes_per_s.is_finite(), "{got:?}");
    }
}
