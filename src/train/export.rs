//! A trained network as files: in Hugging Face's names, so that it is loaded by this engine and by transformers; and
//! adapters in the form of PEFT.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::learner::{Learner, every};
use crate::backend::{Backward, Optimise};
use crate::config::{Family, ModelConfig};
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, SafetensorsWriter, SpecialIds, TensorSpec};
use crate::model::{Entry, linear_of, parameters_of};

/// What a model's folder holds beside its weights.
#[derive(Clone, Debug)]
pub struct Export {
    config: Map<String, Value>,
    companions: Vec<(&'static str, Vec<u8>)>,
    pub entries: Vec<Entry>,
    family: Family,
}

impl Export {
    /// For a network made of `files`: their `config.json` with what training decides.
    ///
    /// # Errors
    /// [`Error::Io`] when the files cannot be read.
    pub fn new(
        files: &ModelFiles,
        config: &ModelConfig,
        special: &SpecialIds,
        shift: bool,
        dtype: Dtype,
    ) -> Result<Self> {
        let mut json = files.raw_config()?;
        let (kind, architecture) = match config.family {
            Family::Gpt2 => ("gpt2", "GPT2LMHeadModel"),
            Family::Llama => ("llama", "LlamaForCausalLM"),
        };
        let declared = match dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        };
        json.insert("model_type".into(), kind.into());
        json.insert("architectures".into(), json!([architecture]));
        json.insert("vocab_size".into(), config.vocab_size.into());
        json.insert("tie_word_embeddings".into(), config.tied.into());
        json.insert("shift".into(), shift.into());
        json.remove("dtype");
        json.insert("torch_dtype".into(), declared.into());
        // Code of other programs does not come along.
        json.remove("auto_map");
        for (key, id) in [
            ("mask_token_id", &special.mask),
            ("bos_token_id", &special.bos),
            ("eos_token_id", &special.eos),
            ("sep_token_id", &special.sep),
            ("pad_token_id", &special.pad),
        ] {
            if let Some(id) = id {
                json.insert(key.into(), id.id.into());
            }
        }
        let companions = files.companions()?;
        Ok(Self { config: json, companions, entries: parameters_of(config), family: config.family })
    }

    /// Writes `config.json` and the tokenizer's files into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_companions(&self, folder: &Path) -> Result<()> {
        let config = serde_json::to_string_pretty(&self.config).map_err(Error::request)?;
        write(&folder.join("config.json"), format!("{config}\n").as_bytes())?;
        self.companions.iter().try_for_each(|(name, bytes)| write(&folder.join(name), bytes))
    }

    /// Writes `model.safetensors` into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; those of the backend.
    pub fn write_weights<B: Optimise + Backward>(
        &self,
        folder: &Path,
        learner: &mut Learner<B>,
        dtype: Dtype,
    ) -> Result<()> {
        let path = folder.join("model.safetensors");
        let specs: Vec<TensorSpec> = self
            .entries
            .iter()
            .map(|e| TensorSpec { name: e.tensor.clone(), dtype, shape: e.shape.clone() })
            .collect();
        let file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
        let mut writer = SafetensorsWriter::new(BufWriter::new(file), &path, &specs)?;
        let backend = learner.model.backend().clone();
        let Learner { model, adapters, states, .. } = learner;
        let mut parameters = every(model, adapters.as_mut())?.into_iter();
        for entry in &self.entries {
            // Both lists are in the order of the network.
            let found = parameters.find(|(name, _)| *name == entry.parameter);
            let Some((name, parameter)) = found else {
                return Err(Error::request(format!("parameter {}: not in the network", entry.parameter)));
            };
            let numbers = backend.read_parameter(parameter, states.get(&name))?;
            write_numbers(&mut writer, &entry.tensor, &numbers, dtype)?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`, as PEFT reads them. With
    /// `embedding` the embedding belongs to the adapter (and the head, where it is the same matrix).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Request`] for a learner without adapters; those of the backend.
    pub fn write_adapter<B: Optimise + Backward>(
        &self,
        folder: &Path,
        learner: &mut Learner<B>,
        base: &str,
        embedding: bool,
    ) -> Result<()> {
        let tied = learner.model.config().tied;
        let backend = learner.model.backend().clone();
        let Learner { model, adapters, states, .. } = learner;
        let Some(adapters) = adapters else {
            return Err(Error::request("the run has no adapters to write"));
        };
        let (rank, alpha) = (adapters.rank, adapters.scale * adapters.rank as f64);
        let module = |parameter: &str| {
            let entry = self.entries.iter().find(|e| e.parameter == parameter);
            entry.map(|e| e.tensor.trim_end_matches(".weight").to_owned()).unwrap_or_default()
        };
        let mut specs = Vec::new();
        let mut targets = std::collections::BTreeSet::new();
        for (linear, adapter) in adapters.iter() {
            let module = module(&format!("{linear}.weight"));
            targets.insert(module.rsplit('.').next().unwrap_or_default().to_owned());
            for (half, shape) in [("A", vec![rank, adapter.inputs]), ("B", vec![adapter.outputs, rank])] {
                let name = format!("base_model.model.{module}.lora_{half}.weight");
                specs.push(TensorSpec { name, dtype: Dtype::F32, shape });
            }
        }
        let mut saved = Vec::new();
        if embedding && let Some(entry) = self.entries.iter().find(|e| e.parameter == "embedding") {
            let mut modules = vec![module("embedding")];
            if tied {
                modules.push("lm_head".into());
            }
            for module in modules {
                let name = format!("base_model.model.{module}.weight");
                specs.push(TensorSpec { name, dtype: Dtype::F32, shape: entry.shape.clone() });
                saved.push(module.rsplit('.').next().unwrap_or_default().to_owned());
            }
        }
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "target_modules": targets.into_iter().collect::<Vec<_>>(),
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "fan_in_fan_out": self.family == Family::Gpt2,
            "bias": "none",
            "inference_mode": true,
        });
        let text = serde_json::to_string_pretty(&config).map_err(Error::request)?;
        write(&folder.join("adapter_config.json"), format!("{text}\n").as_bytes())?;
        let path = folder.join("adapter_model.safetensors");
        let file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
        let mut writer = SafetensorsWriter::new(BufWriter::new(file), &path, &specs)?;
        let mut embedding_numbers = Vec::new();
        for (name, parameter) in model.parameters_mut()? {
            if name == "embedding" && !saved.is_empty() {
                embedding_numbers = backend.read_parameter(parameter, states.get(&name))?;
            }
        }
        let halves =
            adapters.each_mut().map(|(name, parameter)| backend.read_parameter(parameter, states.get(&name)));
        let embeddings = saved.iter().map(|_| Ok(embedding_numbers.clone()));
        for (spec, numbers) in specs.iter().zip(halves.chain(embeddings)) {
            write_numbers(&mut writer, &spec.name, &numbers?, Dtype::F32)?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Short names of linear layers, as `--lora-targets` takes them.
    pub fn linear_names(&self) -> Vec<String> {
        let names = self.entries.iter().filter(|e| linear_of(&e.parameter).is_some());
        let mut names: Vec<String> = names
            .filter_map(|e| e.tensor.trim_end_matches(".weight").rsplit('.').next().map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Writes the numbers of a tensor, rounded to nearest even where the file is narrower.
pub(super) fn write_numbers<W: std::io::Write>(
    writer: &mut SafetensorsWriter<W>,
    name: &str,
    numbers: &[f32],
    dtype: Dtype,
) -> Result<()> {
    let mut bytes = Vec::new();
    for part in numbers.chunks(1 << 16) {
        bytes.clear();
        for x in part {
            match dtype {
                Dtype::F32 => bytes.extend(x.to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(*x).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(half::bf16::from_f32(*x).to_le_bytes()),
            }
        }
        writer.write(name, &bytes)?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|e| Error::io("write", path, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))
}
