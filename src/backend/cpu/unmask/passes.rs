//! The vector passes over a row of logits, each compiled for several instruction sets.

use std::cell::RefCell;

use super::mass::{Exp, Temper, whole};
use super::row::Scratch;
use crate::element::Element;

/// Logits a block. A row is cut into blocks, the last one padded with minus infinity.
pub(super) const BLOCK: usize = 64;
/// Lanes that a block is added up in, a vector or two.
const LANES: usize = BLOCK / 4;

/// A number format that tokens can be drawn from: the vector passes over a row, and this thread's
/// memory. A token `suppress` counts as minus infinity. Implemented for f32 and f64.
pub trait UnmaskElement: Element {
    /// Runs `f` with this thread's scratch memory; `f` must not call this again.
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
    /// The maximum of each block; `false` when a logit other than `suppress` is NaN or +inf (the
    /// maxima are then meaningless).
    fn peaks(row: &[Self], suppress: usize, peaks: &mut [Self]) -> bool;
    /// The sum of the masses in each block of the logits of at least `least`. `peaks` are the block maxima, here and below.
    fn block_masses(
        row: &[Self],
        suppress: usize,
        peaks: &[Self],
        least: Self,
        temper: &Temper<Self>,
        sums: &mut [u64],
    );
    /// The ids, ascending, and the logits of what is at least `range[0]` and below `range[1]`, of every `step`th block.
    fn gather(
        row: &[Self],
        suppress: usize,
        peaks: &[Self],
        step: usize,
        range: [Self; 2],
        ids: &mut Vec<u32>,
        z: &mut Vec<Self>,
    );
    /// The mass of each logit.
    fn masses(z: &[Self], temper: &Temper<Self>, out: &mut [u64]);
    /// The sum over tokens of `exp(d / temperature) * d`, where `d = z - max`; always added up in
    /// the same order.
    fn weighted_depth(row: &[Self], suppress: usize, temper: &Temper<Self>) -> f64;
}

/// A row cut into blocks. No closures here and below: a closure that is not inlined would lose the
/// instruction set of its caller.
struct Blocks<'a, E> {
    whole: &'a [[E; BLOCK]],
    rest: &'a [E],
    suppress: usize,
}

impl<'a, E: Element> Blocks<'a, E> {
    #[inline(always)]
    fn new(row: &'a [E], suppress: usize) -> Self {
        let (whole, rest) = row.as_chunks();
        Self { whole, rest, suppress }
    }

    /// Block `b`, whole: the last one and the one that holds `suppress` are completed with minus
    /// infinity in `copy`.
    #[inline(always)]
    fn get<'b>(&'b self, b: usize, copy: &'b mut [E; BLOCK]) -> &'b [E; BLOCK] {
        let at = self.suppress.wrapping_sub(b * BLOCK);
        let block: &[E] = match self.whole.get(b) {
            Some(block) if at >= BLOCK => return block,
            Some(block) => block,
            None => self.rest,
        };
        *copy = [E::neg_infinity(); BLOCK];
        for (i, (to, from)) in copy.iter_mut().zip(block).enumerate() {
            *to = if i == at { E::neg_infinity() } else { *from };
        }
        copy
    }
}

#[inline(always)]
fn greater<E: Element>(a: E, b: E) -> E {
    if a > b { a } else { b }
}

/// The sum of the masses of a block's logits of at least `least`.
#[inline(always)]
fn mass_block<E: Exp>(block: &[E; BLOCK], least: E, temper: &Temper<E>) -> u64 {
    // No sum of 64 halves exceeds 2^26.
    let mut sums = [[0u32; LANES]; 2];
    for lanes in block.as_chunks::<LANES>().0 {
        for (i, &z) in lanes.iter().enumerate() {
            let [high, low] = E::halves(E::weight(temper.below_max(z), temper));
            sums[0][i] += if z >= least { high } else { 0 };
            sums[1][i] += if z >= least { low } else { 0 };
        }
    }
    let [high, low] = sums.map(|lanes| u64::from(lanes.iter().sum::<u32>()));
    whole(high, low)
}

/// The maximum of a block; `bad` counts, by lane, logits that are NaN or +inf.
#[inline(always)]
fn peak_block<E: Element>(block: &[E; BLOCK], bad: &mut [u32; LANES]) -> E {
    let mut lanes = [E::neg_infinity(); LANES];
    for chunk in block.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let finite = chunk[i] < E::infinity();
            bad[i] += u32::from(!finite);
            lanes[i] = greater(lanes[i], chunk[i]);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = greater(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn peaks_body<E: Exp>(row: &[E], suppress: usize, peaks: &mut [E]) -> bool {
    let (blocks, mut copy) = (Blocks::new(row, suppress), [E::zero(); BLOCK]);
    let mut bad = [0; LANES];
    for (b, peak) in peaks.iter_mut().enumerate() {
        *peak = peak_block(blocks.get(b, &mut copy), &mut bad);
    }
    bad == [0; LANES]
}

#[inline(always)]
fn block_masses_body<E: Exp>(
    row: &[E],
    suppress: usize,
    peaks: &[E],
    least: E,
    temper: &Temper<E>,
    sums: &mut [u64],
) {
    let (blocks, mut copy) = (Blocks::new(row, suppress), [E::zero(); BLOCK]);
    for (b, (sum, peak)) in sums.iter_mut().zip(peaks).enumerate() {
        *sum = if *peak >= least { mass_block(blocks.get(b, &mut copy), least, temper) } else { 0 };
    }
}

#[inline(always)]
fn masses_body<E: Exp>(z: &[E], temper: &Temper<E>, out: &mut [u64]) {
    for (mass, &z) in out.iter_mut().zip(z) {
        *mass = E::fixed(E::weight(temper.below_max(z), temper));
    }
}

#[inline(always)]
fn gather_body<E: Exp>(
    row: &[E],
    suppress: usize,
    peaks: &[E],
    step: usize,
    [least, end]: [E; 2],
    ids: &mut Vec<u32>,
    z: &mut Vec<E>,
) {
    ids.clear();
    z.clear();
    let (blocks, mut copy) = (Blocks::new(row, suppress), [E::zero(); BLOCK]);
    for (b, peak) in peaks.iter().enumerate().step_by(step) {
        if *peak < least {
            continue;
        }
        let block = blocks.get(b, &mut copy);
        let mut inside = [0u8; BLOCK];
        for (inside, &z) in inside.iter_mut().zip(block) {
            *inside = u8::from((z >= least) & (z < end));
        }
        // A bit of each byte: the product moves bit 0 of byte i to bit 56 + i.
        let mut bits = 0;
        for (w, word) in inside.as_chunks().0.iter().enumerate() {
            bits |= (u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * w);
        }
        while bits != 0 {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            ids.push((b * BLOCK + i) as u32);
            z.push(block[i]);
        }
    }
}

#[inline(always)]
fn weighted_depth_body<E: Exp>(row: &[E], suppress: usize, temper: &Temper<E>) -> f64 {
    let (blocks, mut copy) = (Blocks::new(row, suppress), [E::zero(); BLOCK]);
    let mut lanes = [0.0f64; LANES];
    for b in 0..row.len().div_ceil(BLOCK) {
        let block = blocks.get(b, &mut copy);
        let mut terms = [0.0f64; BLOCK];
        for (term, &z) in terms.iter_mut().zip(block) {
            let d = temper.below_max(z);
            *term = E::weight(d, temper).to_f64() * d.to_f64();
        }
        for (i, lane) in lanes.iter_mut().enumerate() {
            let near = terms[i] + terms[i + LANES];
            *lane += near + (terms[i + 2 * LANES] + terms[i + 3 * LANES]);
        }
    }
    lanes.iter().sum()
}

/// Compiles a body for AVX-512, for AVX2 with FMA and for the build's own target, and picks the
/// best that the processor has.
macro_rules! vectorised {
    ($name:ident, $body:ident, $t:ty, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<$t>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<$t>($($arg),*)
                }
                match isa() {
                    // SAFETY: `isa` found all features that this function is compiled for.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `isa` found all features that this function is compiled for.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            $body::<$t>($($arg),*)
        }
    };
}

#[cfg(target_arch = "x86_64")]
enum Isa {
    Avx512,
    Avx2,
    Portable,
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Isa {
    if is_x86_feature_detected!("fma") {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

macro_rules! lane {
    ($t:ty) => {
        impl UnmaskElement for $t {
            fn with_scratch<R>(f: impl FnOnce(&mut Scratch<$t>) -> R) -> R {
                thread_local! {
                    static SCRATCH: RefCell<Scratch<$t>> = RefCell::default();
                }
                SCRATCH.with_borrow_mut(f)
            }

            vectorised!(peaks, peaks_body, $t, (row: &[$t], suppress: usize, peaks: &mut [$t]) -> bool);
            vectorised!(block_masses, block_masses_body, $t,
                (row: &[$t], suppress: usize, peaks: &[$t], least: $t, temper: &Temper<$t>, sums: &mut [u64]));
            vectorised!(gather, gather_body, $t,
                (row: &[$t], suppress: usize, peaks: &[$t], step: usize, range: [$t; 2], ids: &mut Vec<u32>, z: &mut Vec<$t>));
            vectorised!(masses, masses_body, $t, (z: &[$t], temper: &Temper<$t>, out: &mut [u64]));
            vectorised!(weighted_depth, weighted_depth_body, $t,
                (row: &[$t], suppress: usize, temper: &Temper<$t>) -> f64);
        }
    };
}
lane!(f32);
lane!(f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng, unit};

    fn row(n: usize, spread: f32) -> Vec<f32> {
        let rng = Rng::new(11);
        (0..n).map(|i| (unit(rng.words(Purpose::Token, 0, 0, i as u32)[0]) - 0.5) * spread).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in [1, 15, 63, 64, 65, 1000] {
            for suppress in [0, n / 2, n - 1, usize::MAX] {
                let row = row(n, 40.0);
                let blocks = n.div_ceil(BLOCK);
                let (mut peaks, mut sums, mut each) = (vec![0.0; blocks], vec![1; blocks], vec![1; n]);
                let (mut peaks2, mut sums2, mut each2) = (vec![1.0; blocks], vec![2; blocks], vec![2; n]);
                assert!(f32::peaks(&row, suppress, &mut peaks));
                assert!(peaks_body::<f32>(&row, suppress, &mut peaks2));
                assert_eq!(peaks, peaks2);
                let temper = Temper::new(19.0f32, 0.9);
                for least in [3.0, f32::NEG_INFINITY] {
                    f32::block_masses(&row, suppress, &peaks, least, &temper, &mut sums);
                    block_masses_body::<f32>(&row, suppress, &peaks, least, &temper, &mut sums2);
                    assert_eq!(sums, sums2);
                }
                let (mut ids, mut z, mut ids2, mut z2) = (vec![], vec![], vec![], vec![]);
                f32::gather(&row, suppress, &peaks, 2, [-4.0, 9.0], &mut ids, &mut z);
                gather_body::<f32>(&row, suppress, &peaks, 2, [-4.0, 9.0], &mut ids2, &mut z2);
                let inside = |i: &u32| {
                    let i = *i as usize;
                    (i / BLOCK).is_multiple_of(2) && i != suppress && (-4.0..9.0).contains(&row[i])
                };
                assert_eq!(ids, (0..n as u32).filter(inside).collect::<Vec<_>>());
                assert_eq!((&ids, &z), (&ids2, &z2));
                f32::masses(&row, &temper, &mut each);
                masses_body::<f32>(&row, &temper, &mut each2);
                assert_eq!(each, each2);
                if let Some(mass) = each.get_mut(suppress) {
                    *mass = 0;
                }
                assert_eq!(each.iter().sum::<u64>(), sums.iter().sum::<u64>());
                let depth = f32::weighted_depth(&row, suppress, &temper);
                assert_eq!(depth, weighted_depth_body::<f32>(&row, suppress, &temper));
                let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
                let exact = f64::weighted_depth(&wide, suppress, &Temper::new(19.0, 0.9));
                assert!((depth - exact).abs() <= 1e-6 * exact.abs() + 1e-9, "{depth} for {exact}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_seen_wherever_they_are() {
        for n in [1, 64, 100] {
            for i in 0..n {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                    let mut row = row(n, 1.0);
                    row[i] = bad;
                    let mut peaks = vec![0.0; n.div_ceil(BLOCK)];
                    assert!(!f32::peaks(&row, usize::MAX, &mut peaks));
                    assert!(f32::peaks(&row, i, &mut peaks));
                }
            }
        }
    }
}
