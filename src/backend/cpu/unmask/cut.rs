//! The end of a ranking, found by histogram: which tokens come before a given weight is used up,
//! without sorting them.

use crate::element::Element;

/// Bins of a histogram.
const BINS: usize = 1024;

/// Where a ranking (larger logits first, equal ones by id) is cut: what comes before is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut<E> {
    /// The logit of the last token kept.
    pub z: E,
    /// The highest id kept among the tokens of that logit.
    pub last: u32,
}

impl<E: Element> Cut<E> {
    /// Keeps everything.
    pub fn none() -> Self {
        Self { z: E::neg_infinity(), last: u32::MAX }
    }

    /// Whether the token `id` with logit `z` is kept.
    #[inline(always)]
    pub fn keeps(&self, id: u32, z: E) -> bool {
        (z > self.z) | ((z == self.z) & (id <= self.last))
    }
}

/// Equal intervals of logits, from the greatest (bin 0) down to the least (the last bin).
#[derive(Clone, Copy, Debug)]
pub struct Bins<E> {
    greatest: E,
    scale: E,
}

impl<E: Element> Bins<E> {
    /// `greatest > least`, both finite, and so is their difference.
    pub fn new(greatest: E, least: E) -> Self {
        let scale = E::from_f64((BINS - 1) as f64) / (greatest - least);
        Self { greatest, scale }
    }

    /// Logits from one bin to the next.
    pub fn width(&self) -> f64 {
        1.0 / self.scale.to_f64()
    }

    /// The bin of a logit of at most `greatest`. Subtraction and multiplication round
    /// monotonically, so a greater logit is never in a later bin; `greatest` is in bin 0 and
    /// `least` is not.
    #[inline(always)]
    pub fn bin(&self, z: E) -> u32 {
        /// Adding 2^23 rounds to an integer and leaves it in the low bits.
        const MAGIC: f32 = 8_388_608.0;
        let place = ((self.greatest - z) * self.scale).to_f32();
        let last = (BINS - 1) as f32;
        // Not a number only where a difference of 0 meets an infinite scale; its low bits are 0.
        let place = if place > last { last } else { place };
        (place + MAGIC).to_bits() % BINS as u32
    }
}

/// The bin in which the running sum first exceeds `limit`, and the sum before it.
fn crossing(bins: &[u64; BINS], limit: u64) -> Option<(u32, u64)> {
    let mut before = 0;
    for (b, &sum) in bins.iter().enumerate() {
        if before + sum > limit {
            return Some((b as u32, before));
        }
        before += sum;
    }
    None
}

/// Reusable memory: of [`Selection::cut`], and a histogram.
pub struct Selection {
    active: Vec<u32>,
    bins: Box<[u64; BINS]>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { active: Vec::new(), bins: Box::new([0; BINS]) }
    }
}

impl Selection {
    /// Sets memory aside for `len` tokens.
    pub fn prepare(&mut self, len: usize) {
        self.active.clear();
        self.active.reserve_exact(len);
    }

    /// The weights by the bin of their logits.
    pub fn histogram<E: Element>(&mut self, z: &[E], weights: &[u64], range: &Bins<E>) -> &[u64; BINS] {
        self.bins.fill(0);
        for (&z, weight) in z.iter().zip(weights) {
            self.bins[range.bin(z) as usize] += weight;
        }
        &self.bins
    }

    /// Keeps, in ranking order, each token before which the weights sum to at most `limit`; the
    /// first is always kept. Token `ids[i]` has the finite logit `z[i]` and the weight `weight(i)`;
    /// ids ascend, differences of logits are finite, the sum of all weights does not overflow.
    ///
    /// The weights go into a histogram between the least and the greatest logit; the bin in which
    /// the limit is crossed is cut into intervals again, until all of its members are equal. Each
    /// round separates the least from the greatest, and each after the first sees one bin only.
    pub fn cut<E: Element>(
        &mut self,
        ids: &[u32],
        z: &[E],
        weight: impl Fn(usize) -> u64,
        mut limit: u64,
    ) -> Cut<E> {
        let Self { active, bins } = self;
        active.clear();
        active.extend(0..z.len() as u32);
        loop {
            let (mut least, mut greatest) = (E::infinity(), E::neg_infinity());
            for &i in active.iter() {
                let z = z[i as usize];
                least = if z < least { z } else { least };
                greatest = if z > greatest { z } else { greatest };
            }
            if least >= greatest {
                let (mut last, mut before) = (0, 0);
                for &i in active.iter() {
                    if before > limit {
                        break;
                    }
                    last = ids[i as usize];
                    before += weight(i as usize);
                }
                return Cut { z: greatest, last };
            }
            let range = Bins::new(greatest, least);
            bins.fill(0);
            for &i in active.iter() {
                bins[range.bin(z[i as usize]) as usize] += weight(i as usize);
            }
            let Some((bin, before)) = crossing(bins, limit) else {
                return Cut::none();
            };
            limit -= before;
            active.retain(|&i| range.bin(z[i as usize]) == bin);
        }
    }
}
