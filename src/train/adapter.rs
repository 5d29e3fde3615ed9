//! Low-rank adapters on disk, in the form of PEFT, and their sum with the weights they adapt.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::export::{Export, write_numbers};
use super::learner::{Learner, every};
use crate::backend::{Backward, Optimise};
use crate::config::Family;
use crate::element::StoredTensor;
use crate::error::{Error, Result};
use crate::io::{Checkpoint, ModelFiles, SafetensorsWriter, TensorSpec};
use crate::model::{Entry, adapter_parameter, layout, linear_of, parameters_of};

/// A low-rank adapter that was read.
#[derive(Debug)]
pub struct AdapterFiles {
    path: PathBuf,
    pub rank: usize,
    pub alpha: f64,
    /// By linear layer: A `[rank, in]` and B `[out, rank]`.
    pairs: BTreeMap<String, [StoredTensor; 2]>,
    /// The embedding `[V, C]`, where it was trained too.
    embedding: Option<StoredTensor>,
    head: Option<StoredTensor>,
}

impl AdapterFiles {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` in `folder`, for a network whose parameters are
    /// `entries`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for a kind of adapter other than plain LoRA; [`Error::Checkpoint`] for a tensor
    /// that belongs to no linear layer or has the wrong shape, or half an adapter.
    pub fn open(folder: &Path, entries: &[Entry]) -> Result<Self> {
        let path = folder.join("adapter_config.json");
        let text = crate::io::read_limited(&path, 1 << 24)?;
        let wrong = |field: &str, expected: &str, got: String| Error::Config {
            path: path.clone(),
            field: field.into(),
            expected: expected.into(),
            got,
        };
        let config: Value =
            serde_json::from_slice(&text).map_err(|e| wrong("the file", "a JSON object", e.to_string()))?;
        if config["peft_type"] != "LORA" {
            return Err(wrong("peft_type", "\"LORA\"", config["peft_type"].to_string()));
        }
        for field in ["use_dora", "use_rslora", "lora_bias"] {
            if config[field] == true {
                return Err(wrong(field, "false (this engine does not compute it)", "true".into()));
            }
        }
        for field in ["rank_pattern", "alpha_pattern"] {
            if config[field].as_object().is_some_and(|patterns| !patterns.is_empty()) {
                return Err(wrong(field, "no patterns: one rank for all layers", config[field].to_string()));
            }
        }
        let rank = config["r"].as_u64().filter(|r| (1..=1 << 20).contains(r));
        let rank = rank.ok_or_else(|| wrong("r", "a rank of 1 or more", config["r"].to_string()))? as usize;
        let alpha = config["lora_alpha"].as_f64().filter(|a| a.is_finite());
        let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a number", config["lora_alpha"].to_string()))?;

        let path = folder.join("adapter_model.safetensors");
        let checkpoint = Checkpoint::open(&path)?;
        let fail = |what: String, expected: String, got: String| Error::Checkpoint {
            path: path.clone(),
            what,
            expected,
            got,
        };
        let mut halves: BTreeMap<String, [Option<StoredTensor>; 2]> = BTreeMap::new();
        let (mut embedding, mut head) = (None, None);
        for (name, tensor) in checkpoint.iter() {
            let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
            let module = inner.trim_end_matches(".weight");
            let (module, half) = match (module.strip_suffix(".lora_A"), module.strip_suffix(".lora_B")) {
                (Some(module), _) => (module, Some(0)),
                (_, Some(module)) => (module, Some(1)),
                _ => (module, None),
            };
            let entry = entries.iter().find(|e| e.tensor.trim_end_matches(".weight") == module);
            let of = entry.map(|e| e.parameter.as_str());
            let shape = match (half, of) {
                (Some(half), Some(parameter)) => {
                    let Some((linear, [rows, columns])) = linear_of(parameter).zip(entry.map(sizes)) else {
                        return Err(fail(
                            format!("tensor {name}"),
                            "an adapter of a linear layer".into(),
                            parameter.into(),
                        ));
                    };
                    halves.entry(linear.to_owned()).or_default()[half] = Some(tensor.clone());
                    if half == 0 { [rank, columns] } else { [rows, rank] }
                }
                (None, Some("embedding")) => {
                    embedding = Some(tensor.clone());
                    entry.map(sizes).unwrap_or_default()
                }
                (None, _) if module == "lm_head" => {
                    head = Some(tensor.clone());
                    let embedding = entries.iter().find(|e| e.parameter == "embedding");
                    embedding.map(sizes).unwrap_or_default()
                }
                _ => {
                    let got = "a name that is no module of this network".into();
                    return Err(fail(
                        format!("tensor {name}"),
                        "an adapter of a linear layer, or an embedding".into(),
                        got,
                    ));
                }
            };
            if tensor.shape() != shape {
                let got = format!("{:?}", tensor.shape());
                return Err(fail(format!("shape of tensor {name}"), format!("{shape:?}"), got));
            }
            if let Some(at) = crate::io::checkpoint::non_finite(tensor) {
                return Err(Error::NonFinite {
                    place: format!("{}: tensor {name}, element {at}", path.display()),
                    found: tensor.get(at).to_string(),
                    hint: "the adapter is damaged: save it again".into(),
                });
            }
        }
        let mut pairs = BTreeMap::new();
        for (linear, pair) in halves {
            match pair {
                [Some(a), Some(b)] => pairs.insert(linear, [a, b]),
                _ => {
                    let what = format!("adapter of {linear}");
                    return Err(fail(what, "both lora_A and lora_B".into(), "one of them".into()));
                }
            };
        }
        if pairs.is_empty() && embedding.is_none() {
            return Err(fail("adapters".into(), "at least one".into(), "none".into()));
        }
        Ok(Self { path, rank, alpha, pairs, embedding, head })
    }

    /// Puts the numbers into a learner with adapters of the same layers.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the layers or the rank differ; those of the backend.
    pub fn restore<B: Optimise + Backward>(&self, learner: &mut Learner<B>) -> Result<()> {
        let backend = learner.model.backend().clone();
        let mut numbers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (linear, [a, b]) in &self.pairs {
            numbers.insert(adapter_parameter(linear, 'a'), a.to_vec());
            numbers.insert(adapter_parameter(linear, 'b'), b.to_vec());
        }
        if let Some(embedding) = &self.embedding {
            numbers.insert("embedding".into(), embedding.to_vec());
        }
        let Learner { model, adapters, states, .. } = learner;
        let missing = |what: String, expected: &str| Error::Checkpoint {
            path: self.path.clone(),
            what,
            expected: expected.into(),
            got: "something else: the adapter is of another run".into(),
        };
        for (name, parameter) in every(model, adapters.as_mut())? {
            let Some(state) = states.get_mut(&name) else { continue };
            if !name.contains(".lora_") && name != "embedding" {
                continue;
            }
            let found = numbers.remove(&name);
            let found = found.ok_or_else(|| missing(format!("parameter {name}"), "in the adapter's file"))?;
            backend.write_parameter(parameter, Some(state), &found)?;
        }
        match numbers.keys().next() {
            Some(name) => Err(missing(format!("parameter {name}"), "an adapter that the run trains")),
            None => Ok(()),
        }
    }
}

/// `[rows, columns]` of a parameter as `[out, in]`, whichever way it is stored.
fn sizes(entry: &Entry) -> [usize; 2] {
    match *entry.shape.as_slice() {
        // GPT-2's names: Conv1D is `[in, out]`.
        [inputs, outputs] if entry.tensor.contains(".c_") => [outputs, inputs],
        [rows, columns] => [rows, columns],
        _ => [0, 0],
    }
}

/// Writes the network of `files` with the adapter's products added to its weights, as a model folder at `target`,
/// in the formats its weights have. Calls `each` with the name of each tensor.
///
/// # Errors
/// Those of [`AdapterFiles::open`] and of reading and writing.
pub fn merge(
    files: &ModelFiles,
    adapter: &Path,
    target: &Path,
    mut each: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let entries = parameters_of(&files.config);
    let adapter = AdapterFiles::open(adapter, &entries)?;
    let places = layout(&files.config, &files.checkpoint)?;
    let scale = (adapter.alpha / adapter.rank as f64) as f32;
    let mut config = files.config.clone();
    // A head of its own, where the adapter's embedding is not its head too.
    let untied = config.tied
        && adapter.head.as_ref().is_some_and(|head| {
            adapter.embedding.as_ref().is_none_or(|embedding| embedding.bytes() != head.bytes())
        });
    config.tied &= !untied;
    let mut specs = Vec::new();
    for entry in parameters_of(&config) {
        let stored = places.tensor(&entry.parameter).or(places.tensor("embedding"));
        let stored = files.checkpoint.require(stored.unwrap_or_default())?;
        specs.push((
            entry.parameter,
            TensorSpec { name: entry.tensor, dtype: stored.dtype(), shape: entry.shape },
        ));
    }
    // Wider formats first, so that all numbers are aligned.
    specs.sort_by_key(|(_, spec)| std::cmp::Reverse(spec.dtype.size()));
    let widest = specs.first().map_or(crate::element::Dtype::F32, |(_, spec)| spec.dtype);
    let export = Export::new(files, &config, &files.special, files.shift, widest)?;
    export.write_companions(target)?;
    let path = target.join("model.safetensors");
    let file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
    let list: Vec<TensorSpec> = specs.iter().map(|(_, spec)| spec.clone()).collect();
    let mut writer = SafetensorsWriter::new(BufWriter::new(file), &path, &list)?;
    for (parameter, spec) in &specs {
        each(&spec.name)?;
        let stored = match parameter.as_str() {
            "embedding" if adapter.embedding.is_some() => adapter.embedding.as_ref(),
            "head" if adapter.head.is_some() => adapter.head.as_ref(),
            "head" if files.config.tied => {
                files.checkpoint.get(places.tensor("embedding").unwrap_or_default())
            }
            parameter => files.checkpoint.get(places.tensor(parameter).unwrap_or_default()),
        };
        let Some(stored) = stored else {
            return Err(Error::request(format!("parameter {parameter}: not in the model's files")));
        };
        let mut numbers: Vec<f32> = stored.to_vec();
        if let Some([a, b]) = linear_of(parameter).and_then(|linear| adapter.pairs.get(linear)) {
            let transposed = files.config.family == Family::Gpt2;
            add_product(&mut numbers, &a.to_vec(), &b.to_vec(), adapter.rank, scale, transposed);
        }
        write_numbers(&mut writer, &spec.name, &numbers, spec.dtype)?;
    }
    let out = writer.finish()?;
    out.into_inner()
        .map_err(|e| e.into_error())
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io("write", &path, e))
}

/// `w[o, i] += scale sum_r b[o, r] a[r, i]`; with `transposed`, `w` is `[in, out]`.
fn add_product(w: &mut [f32], a: &[f32], b: &[f32], rank: usize, scale: f32, transposed: bool) {
    let (inputs, outputs) = (a.len() / rank.max(1), b.len() / rank.max(1));
    if inputs == 0 || outputs == 0 {
        return;
    }
    // Row by row of what is stored: one factor by row, the other by column.
    let width = if transposed { outputs } else { inputs };
    w.par_chunks_mut(width).enumerate().for_each(|(row, line)| {
        for (column, w) in line.iter_mut().enumerate() {
            let (o, i) = if transposed { (column, row) } else { (row, column) };
            let sum: f32 = (0..rank).map(|r| b[o * rank + r] * a[r * inputs + i]).sum();
            *w += scale * sum;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_in_either_orientation() {
        // B A with B = [[1, 2], [3, 4], [5, 6]] and A = [[1, 0], [0, 1]].
        let (a, b) = ([1.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut w = [10.0; 6];
        add_product(&mut w, &a, &b, 2, 0.5, false);
        assert_eq!(w, [10.5, 11.0, 11.5, 12.0, 12.5, 13.0]);
        let mut w = [10.0; 6];
        add_product(&mut w, &a, &b, 2, 0.5, true);
        assert_eq!(w, [10.5, 11.5, 12.5, 11.0, 12.0, 13.0]);
    }
}
