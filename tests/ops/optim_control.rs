//! What a step's control says of gradients and losses, and what it does to parameters.

use lacuna::backend::cpu::Buffer;
use lacuna::backend::{AdamW, Backend, MomentFormat, Optimise, Outcome, Trainable};

use crate::optim::{bits, largest, settings, settled};
use crate::support::*;

/// What a control says of gradients, and that parameters move by it.
#[test]
fn gradients_are_measured_watched_and_clipped() {
    let cpu = fast::<f32>();
    let mut random = Random::new(68);
    let (x, y) = (random.numbers(500), random.numbers(70));
    let (first, second) = (upload(&cpu, &x), upload(&cpu, &y));
    let length = x.iter().chain(&y).map(|x| x * x).sum::<f64>().sqrt();
    let mut control = cpu.control(&[500, 70]).unwrap();
    let mut run = |clip, gradients: [&Buffer<f32>; 2], losses: &[f32]| {
        let a = AdamW { clip, unscale: 0.25, ..settings(1) };
        cpu.prepare(&mut control, a).unwrap();
        let mut nll = cpu.alloc_floats(4).unwrap();
        for loss in losses {
            // The loss, and behind the rows that are looked at a number that is none.
            cpu.write_floats(&mut nll, &[0.5, *loss, 1.0, f32::NAN]).unwrap();
            cpu.watch(&mut control, &nll, 3).unwrap();
        }
        for (i, gradient) in gradients.into_iter().enumerate() {
            cpu.measure(&mut control, i, gradient).unwrap();
        }
        cpu.settle(&mut control).unwrap();
        let mut p = upload(&cpu, &[1.0; 500]);
        let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::F32).unwrap();
        cpu.step(Trainable::Vector(&mut p), &first, &mut state, &control, 0, false).unwrap();
        let (_, [m, _]) = cpu.read_moments(&state).unwrap();
        let m: Vec<f32> = m.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (cpu.outcome(&control).unwrap(), p.as_slice().to_vec(), m)
    };
    for clip in [0.0, 0.5, 1e6] {
        let (outcome, p, m) = run(clip, [&first, &second], &[1.0, 2.0]);
        let Outcome { gradient, skipped } = outcome;
        assert!((gradient - 0.25 * length).abs() < 1e-12 * length && !skipped, "{outcome:?}");
        let factor = if clip > 0.0 { (clip / (gradient + 1e-6)).min(1.0) } else { 1.0 };
        let expected: Vec<f64> = x.iter().map(|g| 0.1 * 0.25 * factor * g).collect();
        assert!(largest(&m, &expected) < 1e-7, "{clip}");
        // Without decay a first step moves by the rate, or less.
        assert!(p.iter().all(|p| (p - 1.0).abs() < 3.001e-3));
    }
    let mut bad = x.clone();
    bad[499] = f64::NAN;
    let nan = upload(&cpu, &bad);
    bad[499] = f64::INFINITY;
    let infinite = upload(&cpu, &bad);
    for (gradients, losses) in [
        ([&nan, &second], &[1.0][..]),
        ([&infinite, &second], &[]),
        ([&first, &second], &[f32::NAN, 1.0]),
        ([&first, &second], &[1.0, f32::INFINITY]),
    ] {
        let (outcome, p, m) = run(1.0, gradients, losses);
        assert!(outcome.skipped, "{outcome:?}");
        assert!(p.iter().all(|&p| p == 1.0) && m.iter().all(|&m| m == 0.0));
    }
    // What was measured before is forgotten.
    cpu.prepare(&mut control, settings(1)).unwrap();
    cpu.measure(&mut control, 1, &second).unwrap();
    cpu.settle(&mut control).unwrap();
    let expected = 0.5 * y.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((cpu.outcome(&control).unwrap().gradient - expected).abs() < 1e-12 * expected);
}

/// A parameter that does not decay steps as one whose decay is 0.
#[test]
fn decay_is_for_those_that_decay() {
    let cpu = fast::<f32>();
    let mut random = Random::new(69);
    let (p, g) = (random.numbers(100), upload(&cpu, &random.numbers(100)));
    let run = |decay, decays| {
        let mut p = upload(&cpu, &p);
        let mut state = cpu.state(Trainable::Vector(&mut p), MomentFormat::F32).unwrap();
        let control = settled(&cpu, AdamW { decay, ..settings(1) }).unwrap();
        cpu.step(Trainable::Vector(&mut p), &g, &mut state, &control, 0, decays).unwrap();
        bits(p.as_slice())
    };
    assert_eq!(run(0.1, false), run(0.0, true));
    assert_ne!(run(0.1, false), run(0.1, true));
}
