//! What work takes: the arithmetic that it needs ([`flops`]), what the machine can do at most ([`ceilings()`]), and how fast the
//! kernels are: each launch of `backend/cuda` at the sizes of the models, by the device's own clock ([`kernels()`]), and the CPU's
//! operations at sizes for a CPU ([`host_kernels`]). `tools/gpu_check.sh` puts the times beside PyTorch's on the same card, for
//! the same list of sizes.
//!
//! Before every run a buffer larger than the second-level cache is overwritten, so that inputs come from memory; that
//! also hides the cost of starting the launch. What it leaves in the cache to be written back weighs on short kernels,
//! in both programs alike. The time of a run is between two events around the launch; the first case, `events`, says what
//! these cost by themselves.

mod account;
mod backward;
mod ceilings;
pub mod flops;
mod grid;
mod host;
mod host_grid;
mod inputs;
mod kernels;
pub mod report;
mod timeline;
mod training;

pub use account::{Account, By, Row};
pub use ceilings::{Bound, Ceilings, ceilings};
pub use flops::{generation, pass};
pub use grid::{Case, Rule, Work, cases};
pub use host::host_kernels;
pub use host_grid::{HostCase, host_cases};
pub use kernels::kernels;
pub use timeline::write_timeline;
pub use training::Training;

use crate::element::Dtype;

/// The times of one launch at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The kernel file in `cuda/`; `events` for the clock itself.
    pub stem: &'static str,
    /// The kernel, without the tile or variant that the launch chooses.
    pub kernel: String,
    pub shape: String,
    /// Of the activations.
    pub dtype: Dtype,
    /// Bytes that must be read or written, each once.
    pub bytes: u64,
    /// Floating-point operations of products and attention; 0 for kernels that only move bytes.
    pub flops: u64,
    /// Bytes of a buffer that is neither input nor output; 0 where there is none, or it is not told.
    pub workspace: u64,
    /// One a run, in the order of the runs.
    pub microseconds: Vec<f64>,
}

impl Timing {
    /// The middle one of the runs, or the mean of the middle two; NaN without runs.
    pub fn median_us(&self) -> f64 {
        median(&self.microseconds)
    }

    /// The shortest run; NaN without runs.
    pub fn min_us(&self) -> f64 {
        self.microseconds.iter().copied().fold(f64::NAN, f64::min)
    }
}

/// The middle one of some numbers, or the mean of the middle two; NaN without any.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(&upper) if sorted.len() % 2 == 1 => upper,
        Some(&upper) => f64::midpoint(sorted[middle - 1], upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
        let (kernel, shape) = ("norm_layer_bf16".to_owned(), "rows 2".to_owned());
        let (stem, dtype, microseconds) = ("norm", Dtype::Bf16, vec![3.0, 1.0, 2.0]);
        let timing = Timing { stem, kernel, shape, dtype, bytes: 0, flops: 0, workspace: 0, microseconds };
        assert_eq!((timing.median_us(), timing.min_us()), (2.0, 1.0));
    }
}
