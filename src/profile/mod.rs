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
mod inputs;
mod kernels;
mod timeline;
mod training;

pub use account::{Account, By, Row};
pub use ceilings::{Bound, Ceilings, ceilings};
pub use flops::{generation, pass};
pub use grid::{Case, Rule, Work, cases};
pub use host::{HostCase, host_cases, host_kernels};
pub use kernels::kernels;
pub use timeline::write_timeline;
pub use training::Training;

use serde_json::{Value, json};

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

    /// By the median; `None` where no bytes are counted.
    pub fn gb_per_s(&self) -> Option<f64> {
        rate(self.bytes, self.median_us(), 1e3)
    }

    /// By the median; `None` where no operations are counted.
    pub fn tflop_per_s(&self) -> Option<f64> {
        rate(self.flops, self.median_us(), 1e6)
    }

    /// The line of `lacuna bench kernels --json`.
    pub fn json(&self, device: &str) -> Value {
        json!({
            "bench": "kernel", "stem": self.stem, "kernel": self.kernel, "shape": self.shape,
            "dtype": self.dtype.name(), "median_us": self.median_us(), "min_us": self.min_us(),
            "runs": self.microseconds.len(), "bytes": self.bytes, "flops": self.flops,
            "workspace_bytes": self.workspace, "gb_per_s": self.gb_per_s(), "tflop_per_s": self.tflop_per_s(), "device": device,
        })
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

/// `amount` a microsecond, in units of `unit`; `None` where there is none or no time.
fn rate(amount: u64, microseconds: f64, unit: f64) -> Option<f64> {
    (amount > 0 && microseconds > 0.0).then(|| amount as f64 / microseconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(microseconds: &[f64]) -> Timing {
        let (kernel, shape) = ("norm_layer_bf16".to_owned(), "rows 2".to_owned());
        let microseconds = microseconds.to_vec();
        Timing {
            stem: "norm",
            kernel,
            shape,
            dtype: Dtype::Bf16,
            bytes: 3_000_000,
            flops: 0,
            workspace: 0,
            microseconds,
        }
    }

    #[test]
    fn medians_and_rates() {
        let odd = timing(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median_us(), odd.min_us()), (2.0, 1.0));
        assert_eq!(odd.gb_per_s(), Some(1500.0));
        assert_eq!(odd.tflop_per_s(), None);
        assert_eq!(timing(&[4.0, 1.0, 2.0, 3.0]).median_us(), 2.5);
        assert!(timing(&[]).median_us().is_nan() && timing(&[]).min_us().is_nan());
        assert_eq!(timing(&[]).gb_per_s(), None);
        let fast = Timing { flops: 8_000_000_000, ..timing(&[10.0]) };
        assert_eq!(fast.tflop_per_s(), Some(800.0));
    }

    #[test]
    fn a_line_has_what_the_report_reads() {
        let line = timing(&[2.0, 4.0]).json("a card");
        assert_eq!((&line["bench"], &line["stem"]), (&"kernel".into(), &"norm".into()));
        assert_eq!((&line["dtype"], &line["runs"]), (&"bf16".into(), &2.into()));
        assert_eq!((&line["median_us"], &line["min_us"]), (&3.0.into(), &2.0.into()));
        assert_eq!((&line["gb_per_s"], &line["tflop_per_s"]), (&1000.0.into(), &Value::Null));
        assert_eq!(line["device"], "a card");
    }
}
