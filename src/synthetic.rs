//! Numbers in place of trained weights, so that a machine can be measured without a download. They depend on the seed, the
//! parameter and the place alone and are the same bits on every machine (`cuda/random.cu`).
//!
//! Element i of parameter n is made of half a Philox block: counter `[i / 2 low, i / 2 high, n, Purpose::Weights]`, words 0 and
//! 1 for an even i, 2 and 3 for an odd one. The four 16-bit halves of the two words are added up and their mean, 131070, is
//! subtracted: a whole number of 18 bits. Times `std / sqrt(4 (2^32 - 1) / 12)`, as an f32 and rounded once, it has mean 0
//! and standard deviation `std`; the distribution is that of a sum of four uniform numbers (Irwin-Hall): near normal, with an
//! excess kurtosis of -0.3, and no number beyond 3.47 `std`.

use bytes::Bytes;
use rayon::prelude::*;

use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// What a parameter is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Near-normal numbers of mean 0.
    Normal {
        std: f32,
    },
    Constant(f32),
}

/// A parameter that is made up.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticTensor {
    pub shape: Vec<usize>,
    pub seed: u64,
    /// The parameter's number in its network.
    pub parameter: u32,
    pub fill: Fill,
}

/// The factor on a sum of halves, for a standard deviation.
pub fn scale(std: f32) -> f32 {
    (f64::from(std) / (4.0 * (2f64.powi(32) - 1.0) / 12.0).sqrt()) as f32
}

/// Elements `2 pair` and `2 pair + 1` of a parameter.
fn pair(rng: &Rng, parameter: u32, pair: u64, scale: f32) -> [f32; 2] {
    let [a, b, c, d] = rng.words(Purpose::Weights, parameter, (pair >> 32) as u32, pair as u32);
    let of = |a: u32, b: u32| {
        let sum = (a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16);
        (sum as i32 - 131_070) as f32 * scale
    };
    [of(a, b), of(c, d)]
}

impl SyntheticTensor {
    /// Numbers in it.
    ///
    /// # Errors
    /// [`Error::Shape`] when they cannot be counted.
    pub fn count(&self) -> Result<usize> {
        let over =
            Error::Shape { op: "synthetic weights", what: "numbers", expected: usize::MAX, got: usize::MAX };
        self.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).ok_or(over)
    }

    /// The numbers as a checkpoint would hold them.
    ///
    /// # Errors
    /// [`Error::Memory`] when they do not fit.
    pub fn stored(&self, dtype: Dtype) -> Result<StoredTensor> {
        const CHUNK: usize = 1 << 16;
        let (len, width) = (self.count()?, dtype.size());
        let mut bytes: Vec<u8> = Vec::new();
        let total = len.checked_mul(width).filter(|&total| bytes.try_reserve_exact(total).is_ok());
        let Some(total) = total else {
            return Err(Error::Memory {
                what: format!("a synthetic parameter of shape {:?}", self.shape),
                needed: len as u128 * width as u128,
                limit: "more than there is".into(),
                hint: "use a smaller shape".into(),
            });
        };
        bytes.resize(total, 0);
        let (rng, fill) = (Rng::new(self.seed), self.fill);
        bytes.par_chunks_mut(CHUNK * width).enumerate().for_each(|(chunk, bytes)| {
            for (i, bytes) in bytes.chunks_mut(2 * width).enumerate() {
                let numbers = match fill {
                    Fill::Normal { std } => {
                        pair(&rng, self.parameter, (chunk * CHUNK / 2 + i) as u64, scale(std))
                    }
                    Fill::Constant(x) => [x; 2],
                };
                for (bytes, x) in bytes.chunks_mut(width).zip(numbers) {
                    match dtype {
                        Dtype::F32 => bytes.copy_from_slice(&x.to_le_bytes()),
                        Dtype::F16 => bytes.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
                        Dtype::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
                    }
                }
            }
        });
        StoredTensor::new(dtype, self.shape.clone(), Bytes::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u64, parameter: u32, shape: &[usize]) -> Vec<f32> {
        let fill = Fill::Normal { std: 0.02 };
        let tensor = SyntheticTensor { shape: shape.to_vec(), seed, parameter, fill };
        tensor.stored(Dtype::F32).unwrap().to_vec()
    }

    #[test]
    fn moments_are_those_of_four_uniform_numbers() {
        let x = numbers(3, 5, &[1000, 1001]);
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let moment = |k: i32| x.iter().map(|&x| (f64::from(x) - mean).powi(k)).sum::<f64>() / n;
        let std = moment(2).sqrt();
        // Four standard errors of each.
        assert!(mean.abs() < 4.0 * 0.02 / n.sqrt(), "{mean}");
        assert!((std / 0.02 - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{std}");
        assert!(
            (moment(4) / std.powi(4) - 2.7).abs() < 4.0 * (24.0 / n).sqrt(),
            "{}",
            moment(4) / std.powi(4)
        );
        let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        assert!(most < 0.02 * 3.47 && most > 0.02 * 3.0, "{most}");
    }

    #[test]
    fn numbers_depend_on_seed_parameter_and_place_alone() {
        let x = numbers(3, 5, &[70_000]);
        assert_eq!(x, numbers(3, 5, &[700, 100]));
        assert_eq!(x[..999], numbers(3, 5, &[999]));
        let other = |y: Vec<f32>| x.iter().zip(y).filter(|(a, b)| **a == *b).count() < 100;
        assert!(other(numbers(4, 5, &[70_000])) && other(numbers(3, 6, &[70_000])));
    }

    #[test]
    fn constants_and_formats() {
        let fill = Fill::Constant(1.0);
        let tensor = SyntheticTensor { shape: vec![5], seed: 0, parameter: 0, fill };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            assert_eq!(tensor.stored(dtype).unwrap().to_vec::<f32>(), [1.0; 5]);
        }
    }
}
