//! Hugging Face's `config.json` of the GPT-2 and LLaMA families, to [`ModelConfig`].
//!
//! Field names and defaults are those of `transformers`' `GPT2Config` and `LlamaConfig`. A field
//! that changes the arithmetic in a way this engine does not compute is an error, never ignored.

use std::path::Path;

use serde_json::Value;

use super::json::{Object, describe};
use crate::config::{Activation, Family, ModelConfig, NormKind, Rope, RopeScaling};
use crate::error::Result;

/// Most rows of an embedding.
pub const MAX_VOCAB: usize = 1 << 24;
/// Most columns of any matrix (residual width, MLP width, all heads together).
pub const MAX_WIDTH: usize = 1 << 20;
/// Most layers.
pub const MAX_LAYERS: usize = 10_000;
/// Most positions.
pub const MAX_POSITIONS: usize = 1 << 24;

/// Most bytes of the file.
const MAX_BYTES: u64 = 1 << 24;

/// Reads the text of a `config.json`; `path` is named in errors.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) naming the field: a field that is missing, of another
/// JSON type, zero, negative or absurdly large; sizes that do not fit one another; a model type or
/// a variant of the arithmetic that this engine does not compute.
pub fn parse(text: &[u8], path: &Path) -> Result<ModelConfig> {
    from_object(&Object::parse(text, path)?)
}

/// Reads a `config.json` file.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); those of [`parse`].
pub fn read(path: &Path) -> Result<ModelConfig> {
    parse(&super::read_limited(path, MAX_BYTES)?, path)
}

pub(super) fn from_object(o: &Object) -> Result<ModelConfig> {
    let supported = "one of gpt2, llama";
    if let Some(v) = o.get("quantization_config") {
        return Err(o.error("quantization_config", "weights in f32, f16 or bf16", describe(v)));
    }
    match o.string("model_type")? {
        Some("gpt2") => gpt2(o),
        Some("llama") => llama(o),
        Some(other) => Err(o.error("model_type", supported, format!("{other:?}"))),
        None => Err(o.error("model_type", supported, "no such field")),
    }
}

fn gpt2(o: &Object) -> Result<ModelConfig> {
    let width = o.required_count(&["n_embd", "hidden_size"], MAX_WIDTH)?;
    let heads = o.required_count(&["n_head", "num_attention_heads"], MAX_WIDTH)?;
    if width % heads != 0 {
        return Err(o.error("n_head", format!("a divisor of n_embd, {width}"), heads.to_string()));
    }
    let head_dim = width / heads;
    refuse_true(o, "scale_attn_by_inverse_layer_idx")?;
    refuse_true(o, "add_cross_attention")?;
    let scaled = o.bool("scale_attn_weights")?.unwrap_or(true);
    let mlp_width = match o.count(&["n_inner"], MAX_WIDTH)? {
        Some(n) => n,
        None => {
            let n = 4 * width;
            if n > MAX_WIDTH {
                return Err(o.error("n_embd", format!("at most {}", MAX_WIDTH / 4), width.to_string()));
            }
            n
        }
    };
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab_size: o.required_count(&["vocab_size"], MAX_VOCAB)?,
        width,
        layers: o.required_count(&["n_layer", "num_hidden_layers"], MAX_LAYERS)?,
        heads,
        kv_heads: heads,
        head_dim,
        mlp_width,
        max_positions: o
            .required_count(&["n_positions", "n_ctx", "max_position_embeddings"], MAX_POSITIONS)?,
        norm: NormKind::LayerNorm,
        norm_eps: eps(o, "layer_norm_epsilon", 1e-5)?,
        activation: activation(o, "activation_function", "gelu_new")?,
        rope: None,
        tied: o.bool("tie_word_embeddings")?.unwrap_or(true),
        attention_bias: true,
        mlp_bias: true,
        attention_scale: if scaled { 1.0 / (head_dim as f64).sqrt() } else { 1.0 },
    })
}

fn llama(o: &Object) -> Result<ModelConfig> {
    let width = o.required_count(&["hidden_size"], MAX_WIDTH)?;
    let heads = o.required_count(&["num_attention_heads"], MAX_WIDTH)?;
    let head_dim = match o.count(&["head_dim"], MAX_WIDTH)? {
        Some(d) => d,
        None if width % heads == 0 => width / heads,
        None => {
            let expected = format!("a divisor of hidden_size, {width}, where head_dim is not given");
            return Err(o.error("num_attention_heads", expected, heads.to_string()));
        }
    };
    if head_dim % 2 != 0 {
        return Err(o.error(
            "head_dim",
            "an even number (rotary positions turn pairs)",
            head_dim.to_string(),
        ));
    }
    if heads.checked_mul(head_dim).is_none_or(|n| n > MAX_WIDTH) {
        let expected = format!("at most {MAX_WIDTH} columns in all heads");
        return Err(o.error("head_dim", expected, format!("{heads} heads of {head_dim}")));
    }
    let kv_heads = o.count(&["num_key_value_heads"], MAX_WIDTH)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(o.error("num_key_value_heads", expected, kv_heads.to_string()));
    }
    let max_positions = o.count(&["max_position_embeddings"], MAX_POSITIONS)?.unwrap_or(2048);
    let activation = activation(o, "hidden_act", "silu")?;
    if activation != Activation::Silu {
        let got = o.get("hidden_act").map(describe).unwrap_or_default();
        return Err(o.error("hidden_act", "\"silu\"", got));
    }
    if let Some(f) = o.number("partial_rotary_factor")?
        && f != 1.0
    {
        return Err(o.error("partial_rotary_factor", "1 (every dimension turns)", f.to_string()));
    }
    Ok(ModelConfig {
        family: Family::Llama,
        vocab_size: o.required_count(&["vocab_size"], MAX_VOCAB)?,
        width,
        layers: o.required_count(&["num_hidden_layers"], MAX_LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        mlp_width: o.required_count(&["intermediate_size"], MAX_WIDTH)?,
        max_positions,
        norm: NormKind::RmsNorm,
        norm_eps: eps(o, "rms_norm_eps", 1e-6)?,
        activation,
        rope: Some(rope(o, max_positions)?),
        tied: o.bool("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: o.bool("attention_bias")?.unwrap_or(false),
        mlp_bias: o.bool("mlp_bias")?.unwrap_or(false),
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
    })
}

/// `rope_theta` and `rope_scaling`, or the one `rope_parameters` object of newer files.
fn rope(o: &Object, max_positions: usize) -> Result<Rope> {
    let parameters = match o.object("rope_parameters")? {
        Some(p) => Some(p),
        None => o.object("rope_scaling")?,
    };
    let theta = match &parameters {
        Some(p) if p.get("rope_theta").is_some() => positive(p, "rope_theta")?,
        _ => positive(o, "rope_theta")?,
    };
    let theta = theta.unwrap_or(10_000.0);
    let Some(p) = parameters else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
    if let Some(f) = p.number("partial_rotary_factor")?
        && f != 1.0
    {
        return Err(p.error("partial_rotary_factor", "1 (every dimension turns)", f.to_string()));
    }
    let kind = match p.string("rope_type")? {
        Some(kind) => Some(kind),
        None => p.string("type")?,
    };
    let needed = |field: &str| {
        positive(&p, field)?.ok_or_else(|| p.error(field, "a number greater than 0", "no such field"))
    };
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: needed("factor")? },
        Some("llama3") => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                let expected = format!("more than low_freq_factor, {low}");
                return Err(p.error("high_freq_factor", expected, high.to_string()));
            }
            RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: p
                    .count(&["original_max_position_embeddings"], MAX_POSITIONS)?
                    .unwrap_or(max_positions),
            }
        }
        Some(other) => {
            return Err(p.error("rope_type", "one of default, linear, llama3", format!("{other:?}")));
        }
    };
    Ok(Rope { theta, scaling })
}

fn positive(o: &Object, field: &str) -> Result<Option<f64>> {
    match o.number(field)? {
        Some(x) if x <= 0.0 => Err(o.error(field, "a number greater than 0", x.to_string())),
        x => Ok(x),
    }
}

fn eps(o: &Object, field: &str, default: f64) -> Result<f64> {
    match positive(o, field)?.unwrap_or(default) {
        x if x < 1.0 => Ok(x),
        x => Err(o.error(field, "a small number greater than 0", x.to_string())),
    }
}

fn activation(o: &Object, field: &str, default: &'static str) -> Result<Activation> {
    match o.string(field)?.unwrap_or(default) {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(o.error(field, "one of gelu_new, gelu_pytorch_tanh, gelu, silu", format!("{other:?}"))),
    }
}

fn refuse_true(o: &Object, field: &str) -> Result<()> {
    match o.bool(field)? {
        Some(true) => Err(o.error(field, "false (this engine does not compute it)", "true")),
        _ => Ok(()),
    }
}

/// The dtype that a configuration declares for its weights, as written (`float32`, `bfloat16`).
pub(super) fn declared_dtype(o: &Object) -> Option<&str> {
    o.first(&["dtype", "torch_dtype"]).and_then(|(_, v)| match v {
        Value::String(s) => Some(s.strip_prefix("torch.").unwrap_or(s)),
        _ => None,
    })
}
