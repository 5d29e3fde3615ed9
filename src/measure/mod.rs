//! What work takes: the arithmetic that a generation needs, and the time of each kernel on a device.

mod flops;
mod kernels;

pub use flops::{generation, pass};
pub use kernels::{Timing, kernels};

/// The middle one of some numbers; the mean of the two middle ones of an even count. 0 without any.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median(&[]), 0.0);
        assert_eq!(super::median(&[3.0]), 3.0);
        assert_eq!(super::median(&[3.0, 1.0]), 2.0);
        assert_eq!(super::median(&[9.0, 1.0, 2.0]), 2.0);
    }
}
