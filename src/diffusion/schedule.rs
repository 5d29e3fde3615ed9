//! How many positions are still masked when.

/// The shape of a count schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    Linear,
    Cosine,
}

/// Positions of `total` that are still masked after step `n` of `steps`; 0 after the last.
pub fn masked_after(counts: Counts, total: usize, n: usize, steps: usize) -> usize {
    if n >= steps {
        return 0;
    }
    match counts {
        Counts::Linear => (total as u128 * (steps - n) as u128 / steps as u128) as usize,
        Counts::Cosine => {
            let angle = std::f64::consts::FRAC_PI_2 * n as f64 / steps as f64;
            ((total as f64 * angle.cos()) as usize).min(total)
        }
    }
}
