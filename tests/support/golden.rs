//! Reads the vectors in `tests/fixtures/golden`, made by an independent PyTorch implementation
//! copied whole. Each folder's `cases.json` says what a tensor means.
#![allow(dead_code)] // each test target uses its own part of this

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The models that have vectors.
pub const MODELS: [&str; 4] = ["gpt2-tiny", "gpt2-hd64", "llama-tiny", "llama-hd128"];

/// The vectors of one model.
pub struct Golden {
    pub folder: PathBuf,
    pub vocab: usize,
    pub mask_id: u32,
    /// Every case, with its kind and parameters.
    pub cases: Vec<Value>,
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open(model: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(model);
        let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        Self {
            bytes: std::fs::read(folder.join("cases.safetensors")).unwrap(),
            vocab: json["vocab"].as_u64().unwrap() as usize,
            mask_id: json["mask_token_id"].as_u64().unwrap() as u32,
            cases: json["cases"].as_array().unwrap().clone(),
            folder,
        }
    }

    /// The cases of one kind: "logits", "loss", "score", "sample", "sample_confident".
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.cases.iter().filter(move |case| case["kind"] == kind)
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    /// An f32 tensor.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// A tensor of token ids or counts.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::I32, "{name}");
        tensor.data().as_chunks().0.iter().map(|b| u32::try_from(i32::from_le_bytes(*b)).unwrap()).collect()
    }

    /// A tensor of truth values, 0 or 1.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::U8, "{name}");
        tensor.data().to_vec()
    }

    /// A tensor of truth values.
    pub fn flags(&self, name: &str) -> Vec<bool> {
        self.bytes(name).into_iter().map(|b| b != 0).collect()
    }
}

/// A number of a case.
pub fn number(case: &Value, field: &str) -> f64 {
    case[field].as_f64().unwrap_or_else(|| panic!("{}: no number {field}", case["case"]))
}

/// A count of a case.
pub fn count(case: &Value, field: &str) -> usize {
    case[field].as_u64().unwrap_or_else(|| panic!("{}: no count {field}", case["case"])) as usize
}
