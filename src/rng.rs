//! The one random generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011), a counter-based generator. A number depends only on the seed and on *what
//! it is for*, never on how many were drawn before it, so the same request gives the same tokens
//! whatever batch it shares, whatever the thread count, and on every device.
//!
//! Counter words: `[position, step, sequence, purpose]`; key: the 64-bit seed, low word first.

/// What a random number is used for: the fourth counter word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The step at which a position is committed (commit plan).
    Plan = 0,
    /// The categorical draw of a token.
    Token = 1,
    /// The reveal decision of the plain loop.
    Reveal = 2,
    /// Gumbel noise on confidences (stochastic confidence orders).
    Confidence = 3,
    /// The corruption of a clean sequence (loss, training).
    Corrupt = 4,
    /// The mask probability t of a sequence (loss, training).
    Time = 5,
    /// The annealed attention mask.
    Attention = 6,
    /// Gumbel noise on logits (Gumbel-max draws on the GPU).
    Gumbel = 7,
    /// Synthetic weights.
    Weights = 8,
    /// The order of the examples of an epoch (training).
    Order = 9,
    /// Where an epoch of a source begins (training).
    Source = 10,
    /// Stochastic rounding of an optimiser's moments.
    Rounding = 11,
    /// What a measurement draws: arrivals of requests, runs drawn again for an interval.
    Measure = 12,
    /// Problems that are made up (evaluation).
    Problem = 13,
}

/// One 10-round Philox4x32 block.
#[inline(always)]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let p0 = M0 * u64::from(counter[0]);
        let p1 = M1 * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// A seeded source of numbers addressed by (purpose, sequence, step, position).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    pub fn seed(&self) -> u64 {
        u64::from(self.key[1]) << 32 | u64::from(self.key[0])
    }

    /// Four independent 32-bit words.
    pub fn words(&self, purpose: Purpose, sequence: u32, step: u32, position: u32) -> [u32; 4] {
        philox4x32_10([position, step, sequence, purpose as u32], self.key)
    }

    /// [`words`](Self::words) of 16 positions: word w of position i at `[w][i]`.
    #[inline(always)]
    pub fn words_wide(
        &self,
        purpose: Purpose,
        sequence: u32,
        step: u32,
        positions: [u32; 16],
    ) -> [[u32; 16]; 4] {
        let mut wide = [[0; 16]; 4];
        // One block after the other: compilers make vectors of this loop.
        for (lane, position) in positions.into_iter().enumerate() {
            let words = philox4x32_10([position, step, sequence, purpose as u32], self.key);
            for (wide, word) in wide.iter_mut().zip(words) {
                wide[lane] = word;
            }
        }
        wide
    }

    /// A uniform number in [0, 1) with 24 bits.
    pub fn uniform(&self, purpose: Purpose, sequence: u32, step: u32, position: u32) -> f32 {
        unit(self.words(purpose, sequence, step, position)[0])
    }

    /// A uniform integer in `0..n` (n >= 1), by the high half of a 64-bit product.
    pub fn below(&self, n: u32, purpose: Purpose, sequence: u32, step: u32, position: u32) -> u32 {
        let w = self.words(purpose, sequence, step, position)[0];
        ((u64::from(w) * u64::from(n)) >> 32) as u32
    }
}

/// The top 24 bits of a word as a number in [0, 1).
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Standard Gumbel noise from a uniform number in [0, 1) of 24 bits: `-ln(-ln u)` at the middle of
/// the number's interval, so that it is finite.
pub fn gumbel(uniform: f32) -> f32 {
    let u = f64::from(uniform) + 0.5 / 16_777_216.0;
    (-(-u.ln()).ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with the Random123 library (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn sixteen_at_once_are_the_same() {
        let rng = Rng::new(0x0123_4567_89AB_CDEF);
        let wide = rng.words_wide(Purpose::Rounding, 3, 9, std::array::from_fn(|i| u32::MAX - 7 * i as u32));
        for i in 0..16 {
            let one = rng.words(Purpose::Rounding, 3, 9, u32::MAX - 7 * i as u32);
            assert_eq!(one, wide.map(|word| word[i]));
        }
    }

    #[test]
    fn uniform_stays_below_one() {
        assert!(unit(u32::MAX) < 1.0);
        assert_eq!(unit(0), 0.0);
        let rng = Rng::new(7);
        assert!((0..1000).all(|p| rng.below(3, Purpose::Plan, 0, 0, p) < 3));
    }
}
