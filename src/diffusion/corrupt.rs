//! The forward process: from clean tokens to masked ones.

use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// A corrupted sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupted {
    /// The tokens, with the mask token where something is hidden.
    pub ids: Vec<u32>,
    /// `true` where the corruption hid a token. Not the same as `ids[i] == mask_id`: a clean text
    /// may hold the mask token when an ordinary id was made the mask.
    pub masked: Vec<bool>,
}

/// What counts as masked when a prediction is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskRule {
    /// What the corruption hid.
    #[default]
    Explicit,
    /// Every position that holds the mask id, as reference trainers decide it: a clean token that
    /// happens to be the mask id counts too, even a given one.
    ById,
}

impl MaskRule {
    /// The positions that count as masked.
    pub fn masked(self, corrupted: &Corrupted, mask_id: u32) -> Vec<bool> {
        match self {
            MaskRule::Explicit => corrupted.masked.clone(),
            MaskRule::ById => corrupted.ids.iter().map(|&id| id == mask_id).collect(),
        }
    }
}

/// Hides each token that is not `fixed` where its uniform number is below the time `t`.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ.
pub fn corrupt(x0: &[u32], fixed: &[bool], t: f32, uniforms: &[f32], mask_id: u32) -> Result<Corrupted> {
    for (what, got) in [("fixed flags", fixed.len()), ("uniform numbers", uniforms.len())] {
        if got != x0.len() {
            return Err(Error::Shape { op: "corrupt", what, expected: x0.len(), got });
        }
    }
    let masked: Vec<bool> = fixed.iter().zip(uniforms).map(|(fixed, u)| !fixed && *u < t).collect();
    let ids = x0.iter().zip(&masked).map(|(&id, &masked)| if masked { mask_id } else { id }).collect();
    Ok(Corrupted { ids, masked })
}

/// As [`corrupt`], with the uniform numbers of `rng` for this sequence and (training or evaluation)
/// step.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ.
pub fn corrupt_with(
    rng: &Rng,
    sequence: u32,
    step: u32,
    x0: &[u32],
    fixed: &[bool],
    t: f32,
    mask_id: u32,
) -> Result<Corrupted> {
    let uniforms: Vec<f32> =
        (0..x0.len()).map(|i| rng.uniform(Purpose::Corrupt, sequence, step, i as u32)).collect();
    corrupt(x0, fixed, t, &uniforms, mask_id)
}
