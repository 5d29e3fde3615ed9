//! From the names of a checkpoint to the parameters of a network: the name schemes in which
//! GPT-2, LLaMA, DiffuGPT and DiffuLLaMA weights exist, with every shape checked.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::config::{Family, ModelConfig};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::io::Checkpoint;

/// A way of naming tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameScheme {
    /// `transformer.wte.weight`, `transformer.h.N.*`: GPT-2 as transformers saves it.
    Gpt2,
    /// `wte.weight`, `h.N.*`: GPT-2 as on the original hub.
    Gpt2Bare,
    /// `embed_tokens.weight`, `denoise_model.h.N.*`: the DiffuGPT wrapper.
    DiffuGpt,
    /// `model.embed_tokens.weight`, `model.layers.N.*`: LLaMA as transformers saves it.
    Llama,
    /// `embed_tokens.weight`, `denoise_model.layers.N.*`: the DiffuLLaMA wrapper.
    DiffuLlama,
}

impl NameScheme {
    const fn of(family: Family) -> &'static [NameScheme] {
        match family {
            Family::Gpt2 => &[NameScheme::Gpt2, NameScheme::Gpt2Bare, NameScheme::DiffuGpt],
            Family::Llama => &[NameScheme::Llama, NameScheme::DiffuLlama],
        }
    }

    /// What stands before the names of layers and the last norm.
    pub const fn prefix(self) -> &'static str {
        match self {
            NameScheme::Gpt2 => "transformer.",
            NameScheme::Gpt2Bare => "",
            NameScheme::DiffuGpt | NameScheme::DiffuLlama => "denoise_model.",
            NameScheme::Llama => "model.",
        }
    }

    /// The name of the token embedding.
    pub const fn embedding(self) -> &'static str {
        match self {
            NameScheme::Gpt2 => "transformer.wte.weight",
            NameScheme::Gpt2Bare => "wte.weight",
            NameScheme::DiffuGpt | NameScheme::DiffuLlama => "embed_tokens.weight",
            NameScheme::Llama => "model.embed_tokens.weight",
        }
    }

    /// A tensor that every checkpoint in this scheme holds, and no other scheme has.
    const fn witness(self) -> &'static str {
        match self {
            NameScheme::Gpt2 => "transformer.h.0.ln_1.weight",
            NameScheme::Gpt2Bare => "h.0.ln_1.weight",
            NameScheme::DiffuGpt => "denoise_model.h.0.ln_1.weight",
            NameScheme::Llama => "model.layers.0.input_layernorm.weight",
            NameScheme::DiffuLlama => "denoise_model.layers.0.input_layernorm.weight",
        }
    }
}

impl std::fmt::Display for NameScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NameScheme::Gpt2 => "GPT-2 (transformer.h.N)",
            NameScheme::Gpt2Bare => "GPT-2, no prefix (h.N)",
            NameScheme::DiffuGpt => "DiffuGPT wrapper (denoise_model.h.N)",
            NameScheme::Llama => "LLaMA (model.layers.N)",
            NameScheme::DiffuLlama => "DiffuLLaMA wrapper (denoise_model.layers.N)",
        })
    }
}

/// A parameter and the tensor that holds it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The parameter's place in the network: `embedding`, `layers.3.attention.qkv.weight`, ...
    pub parameter: String,
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
}

/// Which tensor of a checkpoint is which parameter.
#[derive(Clone, Debug, Serialize)]
pub struct Layout {
    pub scheme: NameScheme,
    pub entries: Vec<Entry>,
    /// Tensors that are known and not needed, each with the reason.
    pub ignored: Vec<(String, &'static str)>,
    /// Numbers in all parameters; a tied head counts once.
    pub parameters: u64,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Places in `entries`, by parameter: a file may hold very many tensors.
    #[serde(skip)]
    places: HashMap<String, usize>,
}

impl Layout {
    /// The tensor name of a parameter.
    pub fn tensor(&self, parameter: &str) -> Option<&str> {
        let place = *self.places.get(parameter)?;
        self.entries.get(place).map(|e| e.tensor.as_str())
    }
}

/// Finds every parameter of `config` in `checkpoint`.
///
/// # Errors
/// [`Error::Checkpoint`] naming the tensor that is missing, has another shape than the
/// configuration asks for, or is not known to the scheme.
pub fn layout(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Layout> {
    let schemes = NameScheme::of(config.family);
    let Some(&scheme) = schemes.iter().find(|s| checkpoint.get(s.witness()).is_some()) else {
        let wanted: Vec<_> = schemes.iter().map(|s| s.witness()).collect();
        let first: Vec<_> = checkpoint.iter().take(3).map(|(n, _)| n).collect();
        return Err(Error::Checkpoint {
            path: checkpoint.path().to_path_buf(),
            what: "name scheme".into(),
            expected: format!("a tensor named {}", wanted.join(" or ")),
            got: if first.is_empty() { "no tensors".into() } else { format!("{} ...", first.join(", ")) },
        });
    };
    let mut b = Builder { config, checkpoint: Some(checkpoint), scheme, entries: Vec::new(), parameters: 0 };
    b.body()?;
    let (v, c) = (config.vocab_size, config.width);
    let head = HEAD;
    let noted = checkpoint.metadata().get(head).is_some_and(|t| t == scheme.embedding());
    let tied = config.tied || (checkpoint.get(head).is_none() && noted);
    if !tied {
        b.take("head", head.to_owned(), &[v, c])?;
    }
    let Builder { entries, parameters, .. } = b;
    let mut ignored = Vec::new();
    let used: HashSet<&str> = entries.iter().map(|e| e.tensor.as_str()).collect();
    for (name, _) in checkpoint.iter() {
        if used.contains(name) {
            continue;
        }
        match reason_to_ignore(name, scheme, tied) {
            Some(why) => ignored.push((name.to_owned(), why)),
            None => {
                return Err(Error::Checkpoint {
                    path: checkpoint.path().to_path_buf(),
                    what: format!("tensor {name}"),
                    expected: format!("only names of the scheme {scheme} with {} layers", config.layers),
                    got: "a name that is no parameter of this network".into(),
                });
            }
        }
    }
    let places = entries.iter().enumerate().map(|(at, e)| (e.parameter.clone(), at)).collect();
    Ok(Layout { scheme, entries, ignored, parameters, tied, places })
}

/// Where an untied head is.
const HEAD: &str = "lm_head.weight";

/// The parameters of a network, without a checkpoint: tensor names and formats are those of a usual one.
pub fn parameters_of(config: &ModelConfig) -> Vec<Entry> {
    let scheme = NameScheme::of(config.family)[0];
    let mut b = Builder { config, checkpoint: None, scheme, entries: Vec::new(), parameters: 0 };
    let whole = b.body().and_then(|()| match config.tied {
        true => Ok(()),
        false => b.take("head", HEAD.to_owned(), &[config.vocab_size, config.width]),
    });
    // Without a checkpoint nothing can be missing.
    debug_assert!(whole.is_ok());
    b.entries
}

fn reason_to_ignore(name: &str, scheme: NameScheme, tied: bool) -> Option<&'static str> {
    if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") {
        return Some("causal mask buffer");
    }
    if name.ends_with(".rotary_emb.inv_freq") {
        return Some("rotary frequencies, computed from the configuration");
    }
    if name == "lm_head.weight" && tied {
        return Some("head tied to the embedding");
    }
    let inner = name.strip_prefix(scheme.prefix())?;
    if matches!(scheme, NameScheme::DiffuGpt | NameScheme::DiffuLlama)
        && (inner == "wte.weight" || inner == "embed_tokens.weight")
    {
        return Some("inner embedding, replaced by embed_tokens.weight");
    }
    None
}

struct Builder<'a> {
    config: &'a ModelConfig,
    /// None: all is taken for granted.
    checkpoint: Option<&'a Checkpoint>,
    scheme: NameScheme,
    entries: Vec<Entry>,
    parameters: u64,
}

impl Builder<'_> {
    fn take(&mut self, parameter: &str, tensor: String, shape: &[usize]) -> Result<()> {
        let mut dtype = Dtype::Bf16;
        if let Some(checkpoint) = self.checkpoint {
            let stored = require(checkpoint, &tensor)?;
            if stored.shape() != shape {
                return Err(Error::Checkpoint {
                    path: checkpoint.path().to_path_buf(),
                    what: format!("shape of tensor {tensor}"),
                    expected: format!("{shape:?} by config.json"),
                    got: format!("{:?}", stored.shape()),
                });
            }
            dtype = stored.dtype();
        }
        self.parameters += shape.iter().map(|&d| d as u64).product::<u64>();
        self.entries.push(Entry { parameter: parameter.to_owned(), tensor, shape: shape.to_vec(), dtype });
        Ok(())
    }

    /// Everything but the head.
    fn body(&mut self) -> Result<()> {
        let (v, c) = (self.config.vocab_size, self.config.width);
        self.take("embedding", self.scheme.embedding().to_owned(), &[v, c])?;
        match self.config.family {
            Family::Gpt2 => self.gpt2(),
            Family::Llama => self.llama(),
        }
    }

    fn gpt2(&mut self) -> Result<()> {
        let (c, f) = (self.config.width, self.config.mlp_width);
        let p = self.scheme.prefix();
        self.take("positions", format!("{p}wpe.weight"), &[self.config.max_positions, c])?;
        for n in 0..self.config.layers {
            let parts: [(&str, &str, &[usize]); 12] = [
                ("attention.norm.weight", "ln_1.weight", &[c]),
                ("attention.norm.bias", "ln_1.bias", &[c]),
                ("attention.qkv.weight", "attn.c_attn.weight", &[c, 3 * c]),
                ("attention.qkv.bias", "attn.c_attn.bias", &[3 * c]),
                ("attention.out.weight", "attn.c_proj.weight", &[c, c]),
                ("attention.out.bias", "attn.c_proj.bias", &[c]),
                ("mlp.norm.weight", "ln_2.weight", &[c]),
                ("mlp.norm.bias", "ln_2.bias", &[c]),
                ("mlp.up.weight", "mlp.c_fc.weight", &[c, f]),
                ("mlp.up.bias", "mlp.c_fc.bias", &[f]),
                ("mlp.down.weight", "mlp.c_proj.weight", &[f, c]),
                ("mlp.down.bias", "mlp.c_proj.bias", &[c]),
            ];
            for (parameter, tensor, shape) in parts {
                self.take(&format!("layers.{n}.{parameter}"), format!("{p}h.{n}.{tensor}"), shape)?;
            }
        }
        self.take("norm.weight", format!("{p}ln_f.weight"), &[c])?;
        self.take("norm.bias", format!("{p}ln_f.bias"), &[c])
    }

    fn llama(&mut self) -> Result<()> {
        let config = self.config;
        let (c, f) = (config.width, config.mlp_width);
        let (q, kv) = (config.query_width(), config.kv_width());
        let p = self.scheme.prefix();
        for n in 0..config.layers {
            let at = |parameter: &str| format!("layers.{n}.{parameter}");
            let name = |tensor: &str| format!("{p}layers.{n}.{tensor}");
            self.take(&at("attention.norm.weight"), name("input_layernorm.weight"), &[c])?;
            let projections: [(&str, &str, [usize; 2], bool); 7] = [
                ("attention.q", "self_attn.q_proj", [q, c], config.attention_bias),
                ("attention.k", "self_attn.k_proj", [kv, c], config.attention_bias),
                ("attention.v", "self_attn.v_proj", [kv, c], config.attention_bias),
                ("attention.out", "self_attn.o_proj", [c, q], config.attention_bias),
                ("mlp.gate", "mlp.gate_proj", [f, c], config.mlp_bias),
                ("mlp.up", "mlp.up_proj", [f, c], config.mlp_bias),
                ("mlp.down", "mlp.down_proj", [c, f], config.mlp_bias),
            ];
            for (parameter, tensor, shape, bias) in projections {
                self.take(&at(&format!("{parameter}.weight")), name(&format!("{tensor}.weight")), &shape)?;
                if bias {
                    self.take(
                        &at(&format!("{parameter}.bias")),
                        name(&format!("{tensor}.bias")),
                        &shape[..1],
                    )?;
                }
            }
            self.take(&at("mlp.norm.weight"), name("post_attention_layernorm.weight"), &[c])?;
        }
        self.take("norm.weight", format!("{p}norm.weight"), &[c])
    }
}

/// A tensor that must be there.
pub(super) fn require<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a StoredTensor> {
    checkpoint.get(name).ok_or_else(|| Error::Checkpoint {
        path: checkpoint.path().to_path_buf(),
        what: format!("tensor {name}"),
        expected: "to be there, as f32, f16 or bf16".into(),
        got: "no such tensor".into(),
    })
}
