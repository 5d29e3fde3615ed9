//! Networks with made-up weights, in the shapes of the paper's models and of any `config.json`: for measuring, without a download.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::{Model, Parameters};
use crate::backend::Backend;
use crate::config::{Activation, Family, ModelConfig, NormKind, Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::io::{SpecialId, SpecialIds, hf_config};
use crate::synthetic::Fill;

/// A network's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticShape {
    /// GPT-2 small: 12 layers, width 768.
    DiffuGptS,
    /// GPT-2 medium with an added row for the mask token: 24 layers, width 1024.
    DiffuGptM,
    /// LLaMA-2 7B: 32 layers, width 4096.
    DiffuLlama7b,
    /// SmolLM2-135M: 30 layers, width 576, grouped keys and values, a tied head over 49,152 tokens.
    SmolLm2,
    /// Small ones of either family, for tests.
    TinyGpt2,
    TinyLlama,
}

impl SyntheticShape {
    /// The paper's.
    pub const PAPER: [SyntheticShape; 3] = [Self::DiffuGptS, Self::DiffuGptM, Self::DiffuLlama7b];

    pub const fn name(self) -> &'static str {
        match self {
            Self::DiffuGptS => "diffugpt-s",
            Self::DiffuGptM => "diffugpt-m",
            Self::DiffuLlama7b => "diffullama-7b",
            Self::SmolLm2 => "smollm2-135m",
            Self::TinyGpt2 => "tiny-gpt2",
            Self::TinyLlama => "tiny-llama",
        }
    }

    /// The mask token and that which ends a text (those of the paper's code for the published ones).
    const fn ids(self) -> [u32; 2] {
        match self {
            Self::DiffuGptS => [10_541, 50_256],
            Self::DiffuGptM => [50_257, 50_256],
            Self::DiffuLlama7b => [811, 2],
            // No mask token was trained: the last row.
            Self::SmolLm2 => [49_151, 0],
            Self::TinyGpt2 | Self::TinyLlama => [3, 2],
        }
    }

    pub fn config(self) -> ModelConfig {
        match self {
            Self::DiffuGptS => gpt2(50_257, 1024, 768, 12, 12),
            Self::DiffuGptM => gpt2(50_258, 1024, 1024, 24, 16),
            Self::TinyGpt2 => gpt2(101, 64, 64, 2, 2),
            Self::DiffuLlama7b => llama(32_000, 4096, 4096, 32, 32, 11_008),
            // https://huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json
            Self::SmolLm2 => ModelConfig {
                kv_heads: 3,
                tied: true,
                rope: Some(Rope { theta: 100_000.0, scaling: RopeScaling::None }),
                ..llama(49_152, 8192, 576, 30, 9, 1536)
            },
            Self::TinyLlama => llama(101, 64, 64, 2, 2, 96),
        }
    }
}

fn gpt2(vocab_size: usize, max_positions: usize, width: usize, layers: usize, heads: usize) -> ModelConfig {
    let head_dim = width / heads;
    ModelConfig {
        family: Family::Gpt2,
        vocab_size,
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        mlp_width: 4 * width,
        max_positions,
        norm: NormKind::LayerNorm,
        norm_eps: 1e-5,
        activation: Activation::GeluTanh,
        rope: None,
        tied: true,
        attention_bias: true,
        mlp_bias: true,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
    }
}

fn llama(
    vocab_size: usize,
    max_positions: usize,
    width: usize,
    layers: usize,
    heads: usize,
    mlp_width: usize,
) -> ModelConfig {
    let head_dim = width / heads;
    ModelConfig {
        family: Family::Llama,
        vocab_size,
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        mlp_width,
        max_positions,
        norm: NormKind::RmsNorm,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        rope: Some(Rope { theta: 10_000.0, scaling: RopeScaling::None }),
        tied: false,
        attention_bias: false,
        mlp_bias: false,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
    }
}

impl std::fmt::Display for SyntheticShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SyntheticShape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [
            Self::DiffuGptS,
            Self::DiffuGptM,
            Self::DiffuLlama7b,
            Self::SmolLm2,
            Self::TinyGpt2,
            Self::TinyLlama,
        ];
        all.into_iter().find(|shape| shape.name() == text).ok_or_else(|| {
            Error::request(format!(
                "shape {text}: expected diffugpt-s, diffugpt-m, diffullama-7b, smollm2-135m, or a config.json or its folder"
            ))
        })
    }
}

/// A network without weights: one of the [`SyntheticShape`]s, or what a `config.json` describes.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkShape {
    /// The shape's name, or the path that was given.
    pub name: String,
    pub config: ModelConfig,
    /// The mask token; of a file that names none, the last row.
    pub mask: u32,
    /// The token that ends a text.
    pub eos: u32,
    pub mask_is_dedicated: bool,
}

impl From<SyntheticShape> for NetworkShape {
    fn from(shape: SyntheticShape) -> Self {
        let [mask, eos] = shape.ids();
        let mask_is_dedicated = shape == SyntheticShape::DiffuGptM;
        Self { name: shape.name().to_owned(), config: shape.config(), mask, eos, mask_is_dedicated }
    }
}

impl FromStr for NetworkShape {
    type Err = Error;

    /// A name, or the path of a `config.json` or of a folder with one.
    fn from_str(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let unknown = match text.parse::<SyntheticShape>() {
            Ok(shape) => return Ok(shape.into()),
            Err(unknown) => unknown,
        };
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        if !path.is_file() {
            return Err(unknown);
        }
        let config = hf_config::read(&path)?;
        let last = u32::try_from(config.vocab_size).unwrap_or(u32::MAX).saturating_sub(1);
        Ok(Self { name: text.to_owned(), config, mask: last, eos: 0, mask_is_dedicated: false })
    }
}

impl std::fmt::Display for NetworkShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a parameter of a network is filled with: norms 1, biases 0, all else near-normal numbers of standard deviation 0.02
/// (GPT-2's), those before a residual sum of GPT-2 divided by the square root of twice the number of layers.
pub(super) fn fill(config: &ModelConfig, parameter: &str) -> Fill {
    const STD: f32 = 0.02;
    if parameter.ends_with(".bias") {
        return Fill::Constant(0.0);
    }
    if parameter.ends_with("norm.weight") {
        return Fill::Constant(1.0);
    }
    let residual = parameter.ends_with("attention.out.weight") || parameter.ends_with("mlp.down.weight");
    let std = if residual && config.family == Family::Gpt2 {
        STD / ((2 * config.layers) as f32).sqrt()
    } else {
        STD
    };
    Fill::Normal { std }
}

impl<B: Backend> Model<B> {
    /// A network of a shape with weights made up from `seed`: see [`crate::synthetic`].
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit; those of the backend.
    pub fn synthetic(backend: B, shape: impl Into<NetworkShape>, seed: u64) -> Result<Self> {
        let shape: NetworkShape = shape.into();
        let NetworkShape { name, config, mask, eos, mask_is_dedicated } = shape;
        let (parameters, memory) = Parameters::synthetic(&backend, &config, seed, None)?;
        let id = |id: u32| Some(SpecialId { id, source: format!("shape {name}") });
        let special = SpecialIds { mask: id(mask), bos: id(eos), eos: id(eos), sep: None, pad: None };
        Ok(Self {
            backend,
            config,
            special,
            shift: true,
            mask_is_dedicated,
            parameters: Arc::new(parameters),
            memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters_of;

    #[test]
    fn sizes_are_those_of_the_published_models() {
        let count = |shape: SyntheticShape| {
            let all = parameters_of(&shape.config());
            all.iter().map(|e| e.shape.iter().product::<usize>()).sum::<usize>()
        };
        assert_eq!(count(SyntheticShape::DiffuGptS), 124_439_808);
        assert_eq!(count(SyntheticShape::DiffuGptM), 354_824_192);
        assert_eq!(count(SyntheticShape::DiffuLlama7b), 6_738_415_616);
        assert_eq!(count(SyntheticShape::SmolLm2), 134_515_008);
    }

    #[test]
    fn names_are_read_back() {
        for shape in SyntheticShape::PAPER.into_iter().chain([SyntheticShape::SmolLm2]) {
            assert_eq!(shape.name().parse::<SyntheticShape>().unwrap(), shape);
            assert_eq!(shape.name().parse::<NetworkShape>().unwrap().config, shape.config());
        }
        assert!("no/such/file".parse::<NetworkShape>().unwrap_err().to_string().contains("smollm2-135m"));
        assert!("gpt5".parse::<SyntheticShape>().unwrap_err().to_string().contains("diffugpt-s"));
    }
}
