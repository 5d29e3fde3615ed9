//! A network that says the same about every position, whatever it is shown: its likelihoods are known beforehand.

use std::collections::BTreeMap;
use std::path::Path;

use lacuna::io::ModelFiles;
use serde_json::json;

const WIDTH: usize = 4;
const POSITIONS: usize = 64;

/// Writes a GPT-2 whose logits are `logits`, one a token, to `dir`, with the bundled tokenizer. Mask token 0, end token 1.
pub fn write(dir: &Path, logits: &[f32]) {
    std::fs::create_dir_all(dir).unwrap();
    let vocab = logits.len();
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab, "n_positions": POSITIONS,
        "n_embd": WIDTH, "n_layer": 1, "n_head": 1, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1, "eos_token_id": 1, "mask_token_id": 0, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in ModelFiles::bundled().unwrap().companions().unwrap() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    // The last norm gives (1, 0, 0, 0) for every row: a logit is the first number of a token's embedding.
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let embedding = logits.iter().flat_map(|&x| [x, 0.5, -0.5, 0.25]).collect();
    tensors.insert("wte.weight".into(), (vec![vocab, WIDTH], embedding));
    let mut zeros = |name: &str, shape: &[usize]| {
        tensors.insert(name.into(), (shape.to_vec(), vec![0.0; shape.iter().product()]));
    };
    zeros("wpe.weight", &[POSITIONS, WIDTH]);
    zeros("ln_f.weight", &[WIDTH]);
    for (name, shape) in [
        ("ln_1.weight", &[WIDTH][..]),
        ("ln_1.bias", &[WIDTH]),
        ("ln_2.weight", &[WIDTH]),
        ("ln_2.bias", &[WIDTH]),
        ("attn.c_attn.weight", &[WIDTH, 3 * WIDTH]),
        ("attn.c_attn.bias", &[3 * WIDTH]),
        ("attn.c_proj.weight", &[WIDTH, WIDTH]),
        ("attn.c_proj.bias", &[WIDTH]),
        ("mlp.c_fc.weight", &[WIDTH, 4 * WIDTH]),
        ("mlp.c_fc.bias", &[4 * WIDTH]),
        ("mlp.c_proj.weight", &[4 * WIDTH, WIDTH]),
        ("mlp.c_proj.bias", &[WIDTH]),
    ] {
        zeros(&format!("h.0.{name}"), shape);
    }
    tensors.insert("ln_f.bias".into(), (vec![WIDTH], vec![1.0, 0.0, 0.0, 0.0]));
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, (_, x))| (n, x.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views: BTreeMap<&String, safetensors::tensor::TensorView<'_>> = tensors
        .iter()
        .map(|(n, (shape, _))| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &bytes[n]);
            (n, view.unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// The negative log-likelihood of each token, in nats.
pub fn nll(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| sum.ln() - f64::from(x)).collect()
}
