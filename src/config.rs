//! The shape of a network, independent of the file format it came from.

use serde::Serialize;

/// Which of the two transformer families a model belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// GPT-2: learned positions, LayerNorm, GELU, biases everywhere but the head.
    Gpt2,
    /// LLaMA: rotary positions, RMSNorm, SwiGLU, grouped key/value heads.
    Llama,
}

/// How residual rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NormKind {
    LayerNorm,
    RmsNorm,
}

/// The non-linearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// GELU by the tanh formula (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function (`gelu`).
    GeluErf,
    /// x * sigmoid(x); in LLaMA it gates (SwiGLU).
    Silu,
}

/// Frequency scaling of rotary positions (`rope_scaling` in `config.json`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: usize,
    },
}

/// Rotary position embedding (RoFormer; the half-split layout of Hugging Face).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

impl Rope {
    /// Angle per position of each of the `head_dim / 2` rotary pairs, in radians, in f64.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let f = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                match self.scaling {
                    RopeScaling::None => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_positions,
                    } => {
                        let wavelength = 2.0 * std::f64::consts::PI / f;
                        let original = original_max_positions as f64;
                        if wavelength < original / high_freq_factor {
                            f
                        } else if wavelength > original / low_freq_factor {
                            f / factor
                        } else {
                            let smooth = (original / wavelength - low_freq_factor)
                                / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    }
                }
            })
            .collect()
    }
}

/// The shape of a network. All sizes are counts of numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    pub family: Family,
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// Residual width, C.
    pub width: usize,
    pub layers: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, D; even where `rope` is set.
    pub head_dim: usize,
    /// Width of the MLP's inside.
    pub mlp_width: usize,
    /// Longest sequence: rows of the position table (GPT-2) or the trained context (LLaMA).
    pub max_positions: usize,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub activation: Activation,
    /// Rotary positions; `None` means a learned position table.
    pub rope: Option<Rope>,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Biases on the attention projections.
    pub attention_bias: bool,
    /// Biases on the MLP projections.
    pub mlp_bias: bool,
    /// Factor on q·k before the softmax; usually `1 / sqrt(head_dim)`.
    pub attention_scale: f64,
}

impl ModelConfig {
    /// Columns of a row of q | k | v.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the queries, `heads * head_dim`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys (and of the values), `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
