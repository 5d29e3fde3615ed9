//! 8-bit moments: their codes, their rounding, and what they do to a run.

use lacuna::backend::cpu::{Buffer, Cpu};
use lacuna::backend::{AdamW, MOMENT_BLOCK, MomentFormat, Optimise, Trainable};
use lacuna::rng::Rng;

use crate::support::*;

/// What is read of the two moments after a step of parameter 2 where they are g and g^2.
fn first_moments(gradient: &[f64], seed: u64, step: u64) -> [Vec<u8>; 2] {
    let cpu = fast::<f32>();
    let mut p = upload(&cpu, &vec![0.0; gradient.len()]);
    let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::Q8).unwrap();
    run(&cpu, &mut p, &mut state, gradient, AdamW { betas: [0.0; 2], ..settings(seed, step) });
    let (format, moments) = cpu.read_moments(&state).unwrap();
    assert_eq!(format, MomentFormat::Q8);
    moments
}

fn settings(seed: u64, step: u64) -> AdamW {
    let rng = Rng::new(seed);
    AdamW { lr: 1e-2, betas: [0.9, 0.95], eps: 1e-8, decay: 0.0, clip: 0.0, unscale: 1.0, step, rng }
}

fn run(
    cpu: &Cpu<f32>,
    p: &mut Buffer<f32>,
    state: &mut <Cpu<f32> as Optimise>::State,
    gradient: &[f64],
    a: AdamW,
) {
    let mut control = cpu.control(&[]).unwrap();
    cpu.prepare(&mut control, a).unwrap();
    cpu.settle(&mut control).unwrap();
    cpu.step(Trainable::Vector(p), &upload(cpu, gradient), state, &control, 2, true).unwrap();
}

/// Codes and scales.
fn parts(bytes: &[u8], len: usize) -> (&[u8], Vec<f32>) {
    assert_eq!(bytes.len(), MomentFormat::Q8.bytes(len));
    let (codes, scales) = bytes.split_at(len);
    (codes, scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// What a code means over its scale, from exponent and mantissa.
fn meaning(code: u8, second: bool) -> f64 {
    let (exponent_bits, bias) = if second { (5, 31) } else { (4, 15) };
    let exponent = code >> 3 & ((1 << exponent_bits) - 1);
    let mantissa = f64::from(code & 7) / 8.0;
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(1 - bias),
        e => (1.0 + mantissa) * 2f64.powi(i32::from(e) - bias),
    };
    if !second && code >> 7 == 1 { -magnitude } else { magnitude }
}

#[test]
fn codes_are_small_floats() {
    for (second, largest) in [(false, 0x7F), (true, 0xFF)] {
        assert_eq!(meaning(0, second), 0.0);
        assert_eq!(meaning(largest, second), 1.875);
        for code in 0..largest {
            assert!(meaning(code, second) < meaning(code + 1, second));
        }
    }
    assert_eq!(meaning(1, false), 2f64.powi(-17));
    assert_eq!(meaning(1, true), 2f64.powi(-33));
    assert_eq!(meaning(0x80 | 9, false), -1.125 * 2f64.powi(-14));
}

/// Every number becomes one of its two neighbours, by the bits that are said to be its own.
#[test]
fn numbers_become_the_codes_beside_them() {
    let mut random = Random::new(71);
    for len in [1, 63, 255, 256, 257, 1000] {
        // Of many magnitudes: 2^-20 .. 1.
        let g: Vec<f64> = random
            .numbers(len)
            .iter()
            .enumerate()
            .map(|(i, x)| f64::from((x * 2f64.powi(-(i as i32 % 21))) as f32))
            .collect();
        let a = settings(9, 3);
        let moments = first_moments(&g, 9, 3);
        for (second, bytes) in [false, true].into_iter().zip(&moments) {
            let (codes, scales) = parts(bytes, len);
            let exact = |g: f64| if second { f64::from(g as f32 * g as f32) } else { g };
            for (block, numbers) in g.chunks(MOMENT_BLOCK).enumerate() {
                let largest = numbers.iter().map(|&g| exact(g).abs()).fold(0.0, f64::max);
                let scale = scales[block];
                assert_eq!(scale.to_bits(), (largest as f32 / 1.875).to_bits());
                for (i, &g) in numbers.iter().enumerate() {
                    let at = block * MOMENT_BLOCK + i;
                    let (x, code) = (exact(g), codes[at]);
                    let y = f64::from(x.abs() as f32 / scale);
                    let magnitude = if second { code } else { code & 0x7F };
                    let top = if second { 0xFF } else { 0x7F };
                    assert_eq!(!second && code >> 7 == 1, x < 0.0);
                    let below = (0..=top).rev().find(|&c| meaning(c, second) <= y).unwrap();
                    if below == top {
                        assert_eq!(magnitude, top);
                        continue;
                    }
                    let [low, high] = [meaning(below, second), meaning(below + 1, second)];
                    let part = (y - low) / (high - low);
                    let bits = a.rounding(2, at as u64)[usize::from(second)];
                    let up = part + f64::from(bits) / 65536.0 >= 1.0;
                    // Where it is near the edge, the rounding to 2^-20 of a step may decide.
                    if (part + f64::from(bits) / 65536.0 - 1.0).abs() < 1e-4 {
                        assert!([below, below + 1].contains(&magnitude));
                    } else {
                        let floor = u8::from(second && x > 0.0);
                        assert_eq!(magnitude, (below + u8::from(up)).max(floor), "{x:e} {y} {part} {bits}");
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_keeps_the_mean() {
    // One number in each block is the largest; the others lie between two codes.
    let blocks = 400;
    for (x, seed) in [(0.3, 1), (-0.0711, 2), (3.3e-5, 3), (-1.0e-6, 4)] {
        let mut block = vec![x; MOMENT_BLOCK];
        block[7] = 1.875;
        let g: Vec<f64> = block.repeat(blocks).iter().map(|&x| f64::from(x as f32)).collect();
        let moments = first_moments(&g, seed, 1);
        for (second, bytes) in [false, true].into_iter().zip(&moments) {
            let (codes, scales) = parts(bytes, g.len());
            let exact = if second { f64::from(x as f32 * x as f32) } else { f64::from(x as f32) };
            let read: Vec<f64> = (0..g.len())
                .filter(|i| i % MOMENT_BLOCK != 7)
                .map(|i| meaning(codes[i], second) * f64::from(scales[i / MOMENT_BLOCK]))
                .collect();
            if second && exact < 3.5 * 2f64.powi(-33) {
                // The code of 0 is never taken: the mean is too large then, and never 0.
                assert!(read.iter().all(|&v| v > 0.0));
                continue;
            }
            let n = read.len() as f64;
            let mean = read.iter().sum::<f64>() / n;
            let deviation = (read.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!(deviation > 0.0, "{x}");
            let off = (mean - exact).abs();
            assert!(off < 5.0 * deviation / n.sqrt() + 1e-4 * exact.abs(), "{x}: {mean} for {exact}");
            // A step apart: at most an eighth of the number, or 2^-17 (2^-33) of the scale.
            let least = 2f64.powi(if second { -33 } else { -17 }) * f64::from(scales[0]);
            assert!(read.iter().all(|y| (y - exact).abs() < (exact.abs() / 8.0).max(least) * 1.0001));
        }
    }
}

#[test]
fn zeros_and_what_is_not_finite() {
    // A block of zeros, one with a single number, one with NaN, one with an infinite number.
    let mut g = vec![0.0; 4 * MOMENT_BLOCK];
    (g[300], g[600], g[900]) = (-1e-3, f64::NAN, f64::INFINITY);
    let [m, v] = first_moments(&g, 1, 1);
    for bytes in [&m, &v] {
        let (codes, scales) = parts(bytes, g.len());
        assert!(codes[..256].iter().all(|&c| c == 0) && scales[0] == 0.0);
        // The largest, and in the first moment its sign.
        assert!((256..512).all(|i| codes[i] == if i == 300 { 0xFF } else { 0 }));
        assert!(!scales[2].is_finite() && !scales[3].is_finite());
    }
    // Zeros stay, and move nothing.
    let cpu = fast::<f32>();
    let mut p = upload(&cpu, &[1.5; 300]);
    let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::Q8).unwrap();
    assert_eq!(state.bytes(), 2 * (300 + 8));
    for t in 1..4 {
        run(&cpu, &mut p, &mut state, &[0.0; 300], settings(1, t));
    }
    assert_eq!(p.as_slice(), [1.5; 300]);
    let (_, [m, v]) = cpu.read_moments(&state).unwrap();
    assert!(m.iter().chain(&v).all(|&b| b == 0));
    // The smallest numbers of f32, and the largest.
    for x in [f64::from(f32::from_bits(1)), 1e-30, f64::from(f32::MAX)] {
        let [m, _] = first_moments(&[x, -x, x / 4.0], 1, 1);
        let (codes, scales) = parts(&m, 3);
        let read = meaning(codes[0], false) * f64::from(scales[0]);
        assert!(read.is_finite() && read > 0.0 && (read / x - 1.0).abs() <= 1.0, "{x}: {read}");
        assert_eq!(codes[1], codes[0] | 0x80);
    }
}

/// Two hundred steps on a quadratic with noisy gradients, many magnitudes of curvature: the loss that is reached is near that
/// of f32 moments, and the way there is not the same.
#[test]
fn a_run_is_near_one_with_f32_moments() {
    let cpu = fast::<f32>();
    let n = 1000;
    let mut random = Random::new(72);
    let target = random.numbers(n);
    let curvature: Vec<f64> = (0..n).map(|i| 10f64.powf(-3.0 * (i as f64 / n as f64))).collect();
    let loss = |p: &[f32]| -> f64 {
        p.iter().zip(&target).zip(&curvature).map(|((p, t), c)| c * (f64::from(*p) - t).powi(2)).sum()
    };
    let mut ends = Vec::new();
    for format in [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Q8] {
        let mut random = Random::new(73);
        let mut p = upload(&cpu, &vec![0.0; n]);
        let mut state = cpu.state(Trainable::Vector(&mut p), format).unwrap();
        let start = loss(p.as_slice());
        for t in 1..=200 {
            let noise = random.numbers(n);
            let gradient: Vec<f64> = (0..n)
                .map(|i| 2.0 * curvature[i] * (f64::from(p.as_slice()[i]) - target[i] + 0.1 * noise[i]))
                .collect();
            run(&cpu, &mut p, &mut state, &gradient, settings(5, t));
        }
        let end = loss(p.as_slice());
        assert!(end < 0.02 * start, "{format:?}: {start} to {end}");
        ends.push((end, p.as_slice().to_vec(), start));
    }
    let (exact, of_f32, start) = &ends[0];
    let norm = of_f32.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for (end, p, _) in &ends[1..] {
        let off = p.iter().zip(of_f32).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() / norm;
        assert!(off > 0.0 && off < 0.1, "off by {off}");
        assert!((end - exact).abs() < 0.005 * start, "{end} for {exact}");
    }
}
