//! The annealed attention mask.

use lacuna::Error;
use lacuna::diffusion::anneal::{annealed_word, annealed_words, pack, ratio, stride};
use lacuna::rng::{Purpose, Rng};

use super::p_value;

#[test]
fn annealing_rises_to_full_attention() {
    assert_eq!(ratio(0, 10_000), 1e-4);
    assert_eq!(ratio(4_999, 10_000), 0.5);
    assert_eq!(ratio(9_999, 10_000), 1.0);
    assert_eq!(ratio(1_000_000, 10_000), 1.0);
    assert_eq!(ratio(0, 0), 1.0);
}

#[test]
fn annealed_words_are_bernoulli() {
    let rng = Rng::new(31);
    let len = 300;
    for ratio in [0.0f32, 1e-3, 0.3, 0.5, 0.987, 1.0] {
        let words = annealed_words(&rng, 5, len, ratio);
        assert_eq!(words.len(), len * stride(len));
        // Bits of keys beyond the length are not set.
        let beyond = words.iter().skip(stride(len) - 1).step_by(stride(len)).all(|w| w >> (len % 32) == 0);
        assert!(beyond);
        let rounded = (f64::from(ratio) * 65_536.0).round() / 65_536.0;
        let ones: u32 = words.iter().map(|w| w.count_ones()).sum();
        let n = (len * len) as f64;
        let spread = (n * rounded * (1.0 - rounded)).sqrt();
        assert!((f64::from(ones) - n * rounded).abs() <= 4.0 * spread, "{ratio}: {ones} of {n}");
        // Each bit of a word on its own.
        if rounded > 0.01 && rounded < 1.0 {
            let whole: Vec<u32> = (0..4000).map(|q| annealed_word(&rng, 1, q, 0, ratio)).collect();
            let statistic: f64 = (0..32)
                .map(|bit| {
                    let ones = whole.iter().filter(|w| *w >> bit & 1 == 1).count() as f64;
                    (ones - 4000.0 * rounded).powi(2) / (4000.0 * rounded * (1.0 - rounded))
                })
                .sum();
            assert!(p_value(statistic, 32) > 1e-3, "{ratio}: {statistic}");
        }
    }
}

/// The definition in the documentation, followed to the letter with 16 words in a row.
#[test]
fn annealed_words_follow_their_definition() {
    let rng = Rng::new(0xDEAD_BEEF_0123);
    for (query, word, step, numerator) in
        [(0u32, 0u32, 0u32, 1u32), (17, 3, 9, 21_845), (1023, 31, 4, 65_535)]
    {
        let random: Vec<u32> =
            (0..4).flat_map(|b| rng.words(Purpose::Attention, 4 * word + b, step, query)).collect();
        // Bit j is 1 iff the number whose binary digits are the complements of bit j of w(15)..w(0),
        // most significant first, is less than the numerator.
        let mut expected = 0;
        for bit in 0..32 {
            let number: u32 = (0..16).map(|i| (!random[i] >> bit & 1) << i).sum();
            expected |= u32::from(number < numerator) << bit;
        }
        let ratio = numerator as f32 / 65_536.0;
        assert_eq!(annealed_word(&rng, step, query, word, ratio), expected);
        assert_eq!(annealed_words(&rng, step, 1024, ratio)[(query * 32 + word) as usize], expected);
    }
}

#[test]
fn explicit_masks_are_packed() {
    for len in [1usize, 31, 32, 33, 70] {
        let allow: Vec<u8> = (0..len * len).map(|i| u8::from((i * 7919) % 5 < 2) * 3).collect();
        let words = pack(&allow, len).unwrap();
        assert_eq!(words.len(), len * stride(len));
        for q in 0..len {
            for k in 0..stride(len) * 32 {
                let bit = words[q * stride(len) + k / 32] >> (k % 32) & 1 == 1;
                assert_eq!(bit, k < len && allow[q * len + k] != 0, "len {len}, query {q}, key {k}");
            }
        }
    }
    assert!(pack(&[], 0).unwrap().is_empty());
    assert!(matches!(pack(&[1; 5], 2), Err(Error::Shape { .. })));
}
