//! A learner on disk and back: weights, moments, master copies, counters and the place in the data, so that a run that
//! is resumed goes on as if it had not stopped, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use super::adapter::AdapterFiles;
use super::data::Cursor;
use super::export::Export;
use super::learner::{Learner, every};
use super::state::{OptimizerEntry, OptimizerFile, OptimizerNumbers, TrainerState, write_optimizer};
use crate::backend::{Backward, Optimise};
use crate::element::Dtype;
use crate::error::{Error, Result};

/// Writes everything into `folder`: a model folder, or with `adapter` (the base model's name, and whether the embedding
/// is trained) one for PEFT; and beside it the state of the training.
///
/// # Errors
/// [`Error::Io`]; those of the backend.
pub fn write<B: Optimise + Backward>(
    folder: &Path,
    learner: &mut Learner<B>,
    export: &Export,
    dtype: Dtype,
    adapter: Option<(&str, bool)>,
) -> Result<()> {
    match adapter {
        None => {
            export.write_companions(folder)?;
            export.write_weights(folder, learner, dtype)?;
        }
        Some((base, embedding)) => export.write_adapter(folder, learner, base, embedding)?,
    }
    let entries = entries(learner)?;
    let backend = learner.model.backend().clone();
    let mut masters: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    {
        let Learner { model, adapters, states, .. } = &mut *learner;
        for (name, parameter) in every(model, adapters.as_mut())? {
            if entries.iter().any(|e| e.master && e.name == name) {
                masters.insert(name.clone(), backend.read_parameter(parameter, states.get(&name))?);
            }
        }
    }
    write_optimizer(folder, &entries, |i| {
        let name = &entries[i].name;
        let state = learner.states.get(name);
        let state = state.ok_or_else(|| Error::request(format!("parameter {name}: no moments")))?;
        let (_, moments) = backend.read_moments(state)?;
        Ok(OptimizerNumbers { moments, master: masters.remove(name) })
    })?;
    let cursor = serde_json::to_value(&learner.cursor).map_err(Error::request)?;
    let [factor, good] = learner.loss_scale.saved();
    let losses = [
        ("skipped_in_row", learner.skipped_in_row as f64),
        ("loss_scale", factor),
        ("loss_scale_steps", good),
    ];
    let losses = losses.map(|(name, x)| (name.to_owned(), x)).into();
    let Learner { step, updates, skipped, recipe, .. } = &*learner;
    let (step, updates, skipped, seed) = (*step, *updates, *skipped, recipe.seed);
    TrainerState { step, updates, skipped, seed, cursor, losses }.write(folder)
}

/// Goes on from what [`write()`] left in `folder`. The weights of a full run are the learner's already: it was made from
/// the folder's model.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] or [`Error::Checkpoint`] for files that are damaged or of another run.
pub fn restore<B: Optimise + Backward>(folder: &Path, learner: &mut Learner<B>) -> Result<()> {
    let state = TrainerState::read(folder)?;
    let cursor: Cursor = serde_json::from_value(state.cursor.clone()).map_err(|e| Error::Config {
        path: folder.join("trainer.json"),
        field: "cursor".into(),
        expected: "a place in the data".into(),
        got: e.to_string(),
    })?;
    if state.seed != learner.recipe.seed {
        return Err(Error::Config {
            path: folder.join("trainer.json"),
            field: "seed".into(),
            expected: learner.recipe.seed.to_string(),
            got: state.seed.to_string(),
        });
    }
    if learner.adapters.is_some() {
        let entries = crate::model::parameters_of(learner.model.config());
        AdapterFiles::open(folder, &entries)?.restore(learner)?;
    }
    let entries = entries(learner)?;
    let file = OptimizerFile::open(folder, &entries)?;
    let backend = learner.model.backend().clone();
    {
        let Learner { model, adapters, states, .. } = &mut *learner;
        let mut all: BTreeMap<_, _> = every(model, adapters.as_mut())?.into_iter().collect();
        for entry in &entries {
            let Some(state) = states.get_mut(&entry.name) else { continue };
            if let (Some(master), Some(parameter)) = (file.master(entry)?, all.remove(&entry.name)) {
                backend.write_parameter(parameter, Some(&mut *state), &master)?;
            }
            backend.write_moments(state, file.moments(entry)?)?;
        }
    }
    learner.step = state.step;
    learner.updates = state.updates;
    learner.skipped = state.skipped;
    let number = |name: &str| state.losses.get(name).copied().unwrap_or(0.0);
    learner.skipped_in_row = number("skipped_in_row") as u64;
    learner.loss_scale.restore([number("loss_scale"), number("loss_scale_steps")]);
    learner.cursor = cursor;
    Ok(())
}

/// What the optimiser keeps, in the order of the network.
fn entries<B: Optimise + Backward>(learner: &mut Learner<B>) -> Result<Vec<OptimizerEntry>> {
    let sizes: BTreeMap<String, usize> =
        learner.gradients().iter().map(|(name, len, _)| (name.to_owned(), len)).collect();
    let (moments, narrow) = (learner.recipe.moments, learner.narrow);
    let Learner { model, adapters, .. } = learner;
    let mut entries = Vec::new();
    for (name, _) in every(model, adapters.as_mut())? {
        let Some(&len) = sizes.get(&name) else { continue };
        // The file of weights is in bf16; norms and biases are in f32 all the same, and have their numbers here too.
        // Adapters are in f32 whatever the weights are in.
        let master = narrow && !name.contains(".lora_");
        entries.push(OptimizerEntry { name, shape: vec![len], moments, master });
    }
    Ok(entries)
}
