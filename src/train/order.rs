//! Orders that need no memory: a keyed permutation of the numbers below n, and fair turns.
//!
//! The permutation is a Feistel network (Luby and Rackoff, "How to construct pseudorandom
//! permutations from pseudorandom functions", 1988) whose round function is Philox, on the smallest
//! even number of bits that holds n; a result that is n or more goes through the network again until
//! it is below n ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

use crate::rng::{Purpose, Rng};

/// Rounds of the network. Four make a permutation that looks random; small domains take more.
const ROUNDS: u32 = 6;
/// Fewest bits of the domain: the fewer bits, the fewer permutations a network can express.
const FEWEST_BITS: u32 = 10;

/// A permutation of `0..n`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    rng: Rng,
    source: u32,
    epoch: u32,
    n: u64,
    /// Bits of each half.
    half: u32,
}

impl Permutation {
    /// The permutation of `0..n` (n at least 1 and at most 2^62) of an epoch of a source.
    pub fn new(rng: Rng, source: u32, epoch: u64, n: u64) -> Self {
        let n = n.clamp(1, 1 << 62);
        let bits = (u64::BITS - (n - 1).leading_zeros()).max(FEWEST_BITS);
        // Epochs 2^32 apart may share an order.
        Self { rng, source, epoch: epoch as u32, n, half: bits.div_ceil(2) }
    }

    /// Where `index` (below n) goes.
    pub fn at(&self, index: u64) -> u64 {
        let mut x = index % self.n;
        loop {
            x = self.network(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for round in 0..ROUNDS {
            let sequence = (self.source << 3) | round;
            let word = self.rng.words(Purpose::Order, sequence, self.epoch, right as u32)[0];
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        (left << self.half) | right
    }
}

/// A number below `n`, at which an epoch of a source begins.
pub fn start(rng: Rng, source: u32, epoch: u64, n: u64) -> u64 {
    let [low, high, ..] = rng.words(Purpose::Source, source, epoch as u32, 0);
    let word = u128::from(low) | u128::from(high) << 32;
    ((word * u128::from(n)) >> 64) as u64
}

/// Whose turn it is: the source furthest behind its share of one example more than were `taken`
/// (`shares` sum to 1; of equals the first). Of S sources none ever has 1 example more than its
/// share or S - 1 fewer.
pub fn turn(shares: &[f64], taken: &[u64]) -> usize {
    let next = (taken.iter().sum::<u64>() + 1) as f64;
    let behind = shares.iter().zip(taken).map(|(share, &taken)| share * next - taken as f64);
    let most =
        behind.enumerate().fold((0, f64::NEG_INFINITY), |most, one| if one.1 > most.1 { one } else { most });
    most.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_once() {
        for n in [1, 2, 3, 7, 64, 1000, 1024, 1025, 70_001] {
            let p = Permutation::new(Rng::new(5), 1, 2, n);
            let mut seen = vec![false; n as usize];
            (0..n).for_each(|i| {
                let at = p.at(i) as usize;
                assert!(!std::mem::replace(&mut seen[at], true), "{at} of {n} twice");
            });
        }
    }

    #[test]
    fn huge_domains_stay_inside_and_go_apart() {
        for n in [(1u64 << 33) + 7, 1 << 45, 1 << 62] {
            let p = Permutation::new(Rng::new(5), 0, 0, n);
            let mut places: Vec<u64> = (0..2000).map(|i| p.at(n - 1 - i)).collect();
            assert!(places.iter().all(|&x| x < n));
            assert!(places.iter().filter(|&&x| x < n / 2).count().abs_diff(1000) < 150);
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 2000);
        }
    }

    /// All 24 orders of 4 come equally often over seeds: chi-square with 23 degrees of freedom,
    /// whose upper 0.1 % point is 49.7.
    #[test]
    fn small_orders_are_equally_frequent() {
        let mut counts = std::collections::BTreeMap::new();
        let draws = 24_000u64;
        for seed in 0..draws {
            let p = Permutation::new(Rng::new(seed), 0, 0, 4);
            *counts.entry([p.at(0), p.at(1), p.at(2), p.at(3)]).or_insert(0u64) += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = draws as f64 / 24.0;
        let chi: f64 = counts.values().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        assert!(chi < 49.7, "chi-square {chi}");
    }

    #[test]
    fn seeds_sources_and_epochs_have_orders_of_their_own() {
        let order = |seed, source, epoch| {
            let p = Permutation::new(Rng::new(seed), source, epoch, 500);
            (0..500).map(|i| p.at(i)).collect::<Vec<_>>()
        };
        let first = order(1, 0, 0);
        assert_eq!(first, order(1, 0, 0));
        for other in [order(2, 0, 0), order(1, 1, 0), order(1, 0, 1)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 12, "{same} of 500 in the same place, 1 is expected");
        }
        let starts: Vec<u64> = (0..1000).map(|epoch| start(Rng::new(1), 0, epoch, 10)).collect();
        for n in 0..10 {
            let count = starts.iter().filter(|&&s| s == n).count();
            assert!((60..=140).contains(&count), "{count} of 1000 starts at {n}");
        }
    }

    #[test]
    fn turns_keep_to_the_shares() {
        for weights in [vec![0.5, 0.5], vec![0.7, 0.2, 0.1], vec![1.0], vec![0.001, 0.333, 0.333, 0.333]] {
            let mut taken = vec![0u64; weights.len()];
            for n in 1..=5000 {
                let next = turn(&weights, &taken);
                taken[next] += 1;
                for (w, &t) in weights.iter().zip(&taken) {
                    let ahead = t as f64 - w * n as f64;
                    let most_behind = (weights.len() - 1) as f64;
                    assert!(
                        ahead < 1.0 && ahead > -most_behind.max(1e-9),
                        "{weights:?} after {n}: {taken:?}"
                    );
                }
            }
        }
    }
}
