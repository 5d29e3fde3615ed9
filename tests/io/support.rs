//! Builders of small files.

use std::path::Path;

use serde_json::{Value, json};

/// A safetensors file from the text of its header, with the right length in front.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// A tensor to be stored: name, dtype as the format spells it, shape, bytes.
pub type Stored<'a> = (&'a str, &'a str, Vec<usize>, Vec<u8>);

/// A well-formed safetensors file.
pub fn safetensors(tensors: &[Stored<'_>]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    file(&Value::Object(header).to_string(), &data)
}

pub fn f32s(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// `config.json` of a small GPT-2.
pub fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 1024, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2,
        "bos_token_id": 1, "eos_token_id": 1, "mask_token_id": 0
    })
}

/// `config.json` of a small LLaMA.
pub fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 32
    })
}

/// `object` with a field set.
pub fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}

pub fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), content).unwrap();
}

pub const TOKENIZER: &[u8] = include_bytes!("../../assets/bard-diffusion/tokenizer.json");

/// A model folder with the given configuration, one weight and the bundled tokenizer.
pub fn folder(config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", config.to_string());
    write(dir.path(), "model.safetensors", safetensors(&[("w", "F32", vec![2], f32s(&[1.0, 2.0]))]));
    write(dir.path(), "tokenizer.json", TOKENIZER);
    dir
}
