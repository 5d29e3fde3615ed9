//! The end of a ranking, found by histogram: which tokens come before a given weight is used up,
//! without sorting them.

use crate::element::Element;

const BINS: usize = 1024;

/// Where a ranking (larger first, equal ones by index) is cut: what comes before is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut<E> {
    /// The value of the last one kept.
    z: E,
    /// The highest index kept among those that equal it.
    last: u32,
}

impl<E: Element> Cut<E> {
    /// Whether the one at `index` with value `z` is kept.
    #[inline(always)]
    pub fn keeps(&self, index: usize, z: E) -> bool {
        z > self.z || (z == self.z && index as u64 <= u64::from(self.last))
    }
}

/// Reusable memory of [`Selection::cut`].
pub(super) struct Selection {
    active: Vec<u32>,
    bins: Box<[u64; BINS]>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { active: Vec::new(), bins: Box::new([0; BINS]) }
    }
}

impl Selection {
    /// Sets memory aside for `len` values.
    pub fn prepare(&mut self, len: usize) {
        self.active.clear();
        self.active.reserve_exact(len);
    }

    /// Keeps, in ranking order, each one before which the weights sum to at most `limit`; the first
    /// is always kept. `z` holds finite numbers with finite differences, at least one; `weight(i)`
    /// is the weight of `z[i]`, and the sum of all does not overflow.
    ///
    /// The weights go into a histogram over equal intervals between the least and the greatest
    /// value; the bin in which the limit is crossed is cut into intervals again, until all of its
    /// members are equal. Each round separates the least from the greatest and every round after
    /// the first sees one bin only, so the work is a small multiple of the number of values.
    pub fn cut<E: Element>(&mut self, z: &[E], weight: impl Fn(usize) -> u64, limit: u64) -> Cut<E> {
        let Self { active, bins } = self;
        active.clear();
        active.extend(0..z.len() as u32);
        let mut before = 0u64;
        loop {
            let (mut low, mut high) = (E::infinity(), E::neg_infinity());
            for &i in active.iter() {
                let z = z[i as usize];
                low = if z < low { z } else { low };
                high = if z > high { z } else { high };
            }
            if low >= high {
                let mut last = 0;
                for &i in active.iter() {
                    if before > limit {
                        break;
                    }
                    last = i;
                    before += weight(i as usize);
                }
                return Cut { z: high, last };
            }
            // Subtraction and multiplication round monotonically: a greater value never lands in a
            // later bin. The greatest lands in bin 0 and the least does not.
            let high = high.to_f64();
            let scale = (BINS - 1) as f64 / (high - low.to_f64());
            let bin = |z: E| (((high - z.to_f64()) * scale) as usize).min(BINS - 1);
            bins.fill(0);
            for &i in active.iter() {
                bins[bin(z[i as usize])] += weight(i as usize);
            }
            let mut crossing = None;
            for (b, &sum) in bins.iter().enumerate() {
                if before + sum > limit {
                    crossing = Some(b);
                    break;
                }
                before += sum;
            }
            let Some(crossing) = crossing else {
                return Cut { z: E::neg_infinity(), last: u32::MAX };
            };
            active.retain(|&i| bin(z[i as usize]) == crossing);
        }
    }
}
