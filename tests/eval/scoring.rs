//! Likelihoods of a network whose likelihoods are known.

use lacuna::diffusion::corrupt::MaskRule;
use lacuna::eval::choice::{Rule, Scoring, Tokens, best};
use lacuna::eval::score::{Likelihood, Probe, Scorer};
use lacuna::rng::Rng;

use super::common::load;
use super::unigram;

/// Logits of a vocabulary of 1024: token 5 likelier than 6, 6 than 7, all others alike.
fn logits() -> Vec<f32> {
    let mut logits = vec![0.0; 1024];
    (logits[5], logits[6], logits[7]) = (3.0, 2.0, 1.0);
    logits
}

#[test]
fn likelihoods_are_those_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    unigram::write(dir.path(), &logits());
    let nll = unigram::nll(&logits());
    let mut model = Scorer::new(load(dir.path(), 1));
    let probes = [
        Probe::masked(&[1, 5, 6, 7], &[false, true, false, true], 0, true),
        Probe::causal(&[1, 6, 900], 1),
        Probe::masked(&[1, 5], &[false, false], 0, true),
    ];
    let got = model.nll(&probes, false).unwrap();
    for (got, want) in got.iter().zip([vec![nll[5], nll[7]], vec![nll[6], nll[900]], vec![]]) {
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-5, "{got:?} for {want:?}");
        }
    }
    for bad in [Probe { ids: vec![1, 2000], rows: vec![0], targets: vec![1] }, Probe::causal(&[1; 65], 1)] {
        assert_eq!(model.nll(&[bad], false).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn scores_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    unigram::write(dir.path(), &logits());
    let nll = unigram::nll(&logits());
    let mut model = Scorer::new(load(dir.path(), 1));
    let option = |ids: &[u32]| Tokens { ids: [&[1, 9], ids].concat(), given: 2 };
    let options = [option(&[7]), option(&[5]), option(&[5, 6])];
    let rng = Rng::new(2);
    let rule =
        |scoring, levels| Rule { scoring, levels, mask_id: 0, shift: true, masked: MaskRule::Explicit };

    // From left to right: sums, and means.
    let scores = rule(Scoring::Autoregressive, 1).scores(&mut model, &rng, &[(0, &options)]).unwrap();
    let close =
        |got: (f64, f64), want: (f64, f64)| (got.0 - want.0).abs() < 1e-4 && (got.1 - want.1).abs() < 1e-4;
    assert!(close(scores[0][0], (nll[7], nll[7])), "{scores:?}");
    assert!(close(scores[0][2], (nll[5] + nll[6], (nll[5] + nll[6]) / 2.0)), "{scores:?}");
    assert_eq!(best(scores[0].iter().map(|s| s.0)), Some(1));

    // The paper's rule with one level masks everything: means.
    let scores = rule(Scoring::Paper, 1).scores(&mut model, &rng, &[(0, &options)]).unwrap();
    assert!(close(scores[0][2], ((nll[5] + nll[6]) / 2.0, (nll[5] + nll[6]) / 2.0)), "{scores:?}");

    // The bound of a network that looks at nothing is, on average, the sum of its likelihoods.
    let scores = rule(Scoring::Elbo, 4000).scores(&mut model, &rng, &[(0, &options)]).unwrap();
    let (got, want) = (scores[0][2].0, nll[5] + nll[6]);
    assert!((got - want).abs() < 0.15 * want, "{got} for {want}");
    // Options share times and masks: the ratio of two of one length is exact.
    let ratio = scores[0][0].0 / scores[0][1].0;
    assert!((ratio - nll[7] / nll[5]).abs() < 1e-4, "{ratio}");
}

#[test]
fn by_id_a_given_mask_token_is_scored_too() {
    let tokens = Tokens { ids: vec![1, 0, 5], given: 2 };
    let rule = Rule { scoring: Scoring::Paper, levels: 1, mask_id: 0, shift: true, masked: MaskRule::ById };
    let probes = rule.probes(&Rng::new(1), 0, 0, &tokens).unwrap();
    assert_eq!((probes[0].1.rows.clone(), probes[0].1.targets.clone()), (vec![0, 1], vec![0, 5]));
}
