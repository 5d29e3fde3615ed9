//! Shared by the integration tests: fixtures, tensors by name, loaded models.
#![allow(dead_code)]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lacuna::backend::cpu::Cpu;
use lacuna::io::ModelFiles;
use lacuna::model::{LoadOptions, Model};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// The four golden models, each with the folders that hold the same weights.
pub const GOLDEN: [(&str, &[&str]); 4] = [
    ("gpt2-tiny", &[".", "diffu"]),
    ("gpt2-hd64", &["."]),
    ("llama-tiny", &[".", "diffu"]),
    ("llama-hd128", &["."]),
];

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

pub fn backend(threads: usize) -> Cpu<f32> {
    Cpu::new(NonZeroUsize::new(threads)).unwrap()
}

pub fn load(dir: &Path, threads: usize) -> Arc<Model<Cpu<f32>>> {
    let files = ModelFiles::open(dir).unwrap();
    Arc::new(Model::load(backend(threads), &files, LoadOptions::default()).unwrap())
}

pub fn bundled(threads: usize) -> Arc<Model<Cpu<f32>>> {
    let files = ModelFiles::bundled().unwrap();
    Arc::new(Model::load(backend(threads), &files, LoadOptions::default()).unwrap())
}

/// The cases of one golden model.
pub struct Cases {
    pub json: serde_json::Value,
    bytes: Vec<u8>,
}

impl Cases {
    pub fn open(model: &str) -> Self {
        let dir = fixture("golden").join(model);
        Self {
            json: serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap(),
            bytes: std::fs::read(dir.join("cases.safetensors")).unwrap(),
        }
    }

    pub fn of_kind(&self, kind: &str) -> Vec<&serde_json::Value> {
        self.json["cases"].as_array().unwrap().iter().filter(|c| c["kind"] == kind).collect()
    }

    pub fn mask_id(&self) -> u32 {
        self.json["mask_token_id"].as_u64().unwrap() as u32
    }

    fn view(&self, name: &str) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).ok()?;
        Some((view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    }

    pub fn has(&self, name: &str) -> bool {
        self.view(name).is_some()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let (dtype, _, data) = self.view(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(dtype, Dtype::F32, "{name}");
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (dtype, _, data) = self.view(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(dtype, Dtype::I32, "{name}");
        data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        let (dtype, _, data) = self.view(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(dtype, Dtype::U8, "{name}");
        data
    }
}

/// `||got - want|| / ||want||`.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sq = |x: f64| x * x;
    let diff: f64 = got.iter().zip(want).map(|(g, w)| sq(f64::from(*g) - f64::from(*w))).sum();
    let norm: f64 = want.iter().map(|w| sq(f64::from(*w))).sum();
    (diff / norm).sqrt()
}
