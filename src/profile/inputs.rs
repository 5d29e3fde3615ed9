//! What the kernels are timed on, and a look at what they gave.

use super::grid::Case;
use super::kernels::{Bench, unusable};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::element::Dtype;
use crate::error::Result;
use crate::rng::{philox4x32_10, unit};

/// Input numbers repeat after this many, a prime, so that rows differ.
const TILE: usize = 1_048_573;
/// Output numbers that are looked at.
const LOOK: usize = 4096;

impl<D: Device> Bench<'_, D> {
    /// Room for an output, all NaN.
    pub(super) fn room(&self, dtype: Dtype, len: usize) -> Result<Buffer<D>> {
        let mut buffer = Buffer::new(self.cuda.device(), dtype, len)?;
        buffer.fill(self.cuda.device(), 0xff)?;
        Ok(buffer)
    }

    /// `len` numbers `shape(x)`, x uniform in -1 .. 1, other ones for each input of a case.
    pub(super) fn floats(&self, dtype: Dtype, len: usize, shape: impl Fn(f32) -> f32) -> Result<Buffer<D>> {
        let device = self.cuda.device();
        let mut buffer = Buffer::new(device, dtype, len)?;
        self.inputs.set(self.inputs.get() + 1);
        let tile = random(len.min(TILE), self.inputs.get(), |word| shape(2.0 * unit(word) - 1.0));
        match dtype {
            Dtype::F32 => repeat(device, &mut buffer, &tile)?,
            Dtype::F16 => {
                let narrow: Vec<half::f16> = tile.iter().map(|&x| half::f16::from_f32(x)).collect();
                repeat(device, &mut buffer, &narrow)?;
            }
            Dtype::Bf16 => {
                let narrow: Vec<half::bf16> = tile.iter().map(|&x| half::bf16::from_f32(x)).collect();
                repeat(device, &mut buffer, &narrow)?;
            }
        }
        Ok(buffer)
    }

    /// `rows` token ids below `vocab`.
    pub(super) fn below(&self, rows: usize, vocab: usize) -> Result<Buffer<D>> {
        let ids = random(rows, 0, |word| ((u64::from(word) * vocab as u64) >> 32) as u32);
        Buffer::of(self.cuda.device(), Format::U32, &ids)
    }

    /// 0, 1, ... from anew every `length` rows.
    pub(super) fn positions(&self, rows: usize, length: usize) -> Result<Buffer<D>> {
        let positions: Vec<u32> = (0..rows).map(|t| (t % length) as u32).collect();
        Buffer::of(self.cuda.device(), Format::U32, &positions)
    }

    /// Whether the first numbers of an output are numbers, and not all zero.
    pub(super) fn look(&self, case: &Case, out: &Buffer<D>) -> Result<()> {
        let device = self.cuda.device();
        let len = out.len().min(LOOK);
        let numbers: Vec<f32> = match out.format() {
            Format::Float(Dtype::F32) => {
                let mut numbers = vec![0.0_f32; len];
                out.read(device, 0, &mut numbers)?;
                numbers
            }
            Format::Float(Dtype::F16) => {
                let mut numbers = vec![half::f16::ZERO; len];
                out.read(device, 0, &mut numbers)?;
                numbers.into_iter().map(half::f16::to_f32).collect()
            }
            Format::Float(Dtype::Bf16) => {
                let mut numbers = vec![half::bf16::ZERO; len];
                out.read(device, 0, &mut numbers)?;
                numbers.into_iter().map(half::bf16::to_f32).collect()
            }
            _ => return Ok(()),
        };
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(unusable(case, "numbers that are not finite"));
        }
        if numbers.iter().all(|&x| x == 0.0) {
            return Err(unusable(case, "nothing but zeros"));
        }
        Ok(())
    }
}

/// Fills a buffer with copies of `tile`.
fn repeat<D: Device, T: bytemuck::Pod>(device: &D, buffer: &mut Buffer<D>, tile: &[T]) -> Result<()> {
    let len = buffer.len();
    for at in (0..len).step_by(tile.len().max(1)) {
        buffer.write(device, at, &tile[..tile.len().min(len - at)])?;
    }
    Ok(())
}

/// Logits of a model that has an opinion: most near 0, few far from it.
pub(super) fn opinion(x: f32) -> f32 {
    12.0 * x * x * x
}

/// `len` numbers made of the generator's words.
pub(super) fn random<T>(len: usize, stream: u32, make: impl Fn(u32) -> T) -> Vec<T> {
    let blocks = (0..len.div_ceil(4) as u32).flat_map(|i| philox4x32_10([i, stream, 0, 0], [0, 0]));
    blocks.take(len).map(make).collect()
}

#[cfg(all(test, feature = "simt"))]
mod tests {
    use super::*;
    use crate::backend::cuda::Cuda;
    use crate::backend::cuda::simt::{Options, Simt};
    use crate::error::Error;
    use crate::profile::cases;

    fn simt() -> Cuda<Simt> {
        Cuda::new(Simt::new(Options { seed: 0, check: true }))
    }

    #[test]
    fn an_output_that_is_no_number_is_found() {
        let cuda = simt();
        let bench = Bench::new(&cuda, 1).unwrap();
        let case = cases(true)[1];
        let found = |out: &Buffer<Simt>| match bench.look(&case, out) {
            Ok(()) => String::new(),
            Err(Error::NonFinite { found, .. }) => found,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found(&bench.room(Dtype::Bf16, 5).unwrap()), "numbers that are not finite");
        assert_eq!(
            found(&Buffer::floats(cuda.device(), Dtype::F16, &[0.0; 3]).unwrap()),
            "nothing but zeros"
        );
        assert_eq!(found(&Buffer::floats(cuda.device(), Dtype::F32, &[0.0, 1.0]).unwrap()), "");
    }

    #[test]
    fn long_inputs_are_tiles_of_fresh_numbers() {
        let cuda = simt();
        let bench = Bench::new(&cuda, 1).unwrap();
        let numbers = bench.floats(Dtype::Bf16, TILE + 7, |x| x).unwrap().to_f32(cuda.device()).unwrap();
        assert_eq!(numbers[TILE..], numbers[..7]);
        assert!(numbers.iter().all(|x| (-1.0..=1.0).contains(x)));
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64;
        assert!(mean.abs() < 0.01, "{mean}");
        assert_ne!(
            &numbers[..100],
            bench.floats(Dtype::F32, 100, |x| x).unwrap().to_f32(cuda.device()).unwrap()
        );
    }
}
