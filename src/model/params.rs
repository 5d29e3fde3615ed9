//! The parameter table: the weights of a network as a backend holds them.

use std::collections::HashMap;

use super::names::{Layout, layout, parameters_of, require};
use super::synthetic::fill;
use crate::backend::{self, Backend, Trainable};
use crate::config::{Family, ModelConfig};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::io::{Checkpoint, checkpoint::non_finite};
use crate::synthetic::SyntheticTensor;

/// A matrix with an optional bias.
pub struct Linear<B: Backend> {
    pub weight: B::Matrix,
    pub bias: Option<B::Buffer>,
}

/// A normalisation; RMSNorm has no bias.
pub struct Norm<B: Backend> {
    pub weight: B::Buffer,
    pub bias: Option<B::Buffer>,
}

/// The projections to queries, keys and values.
pub enum Qkv<B: Backend> {
    /// One matrix whose output columns are q | k | v (GPT-2).
    Fused(Linear<B>),
    /// One matrix each (LLaMA).
    Split { q: Linear<B>, k: Linear<B>, v: Linear<B> },
}

/// The two-layer perceptron of a block.
pub enum Mlp<B: Backend> {
    /// `down(activation(up(x)))`.
    Plain { up: Linear<B>, down: Linear<B> },
    /// `down(silu(gate(x)) * up(x))`.
    Gated { gate: Linear<B>, up: Linear<B>, down: Linear<B> },
}

/// One transformer block.
pub struct Layer<B: Backend> {
    pub attention_norm: Norm<B>,
    pub qkv: Qkv<B>,
    pub out: Linear<B>,
    pub mlp_norm: Norm<B>,
    pub mlp: Mlp<B>,
}

/// All weights of a network.
pub struct Parameters<B: Backend> {
    /// `[V, C]`.
    pub embedding: B::Matrix,
    /// `[P, C]`; GPT-2 only.
    pub positions: Option<B::Matrix>,
    pub layers: Vec<Layer<B>>,
    pub norm: Norm<B>,
    /// `[V, C]`; `None` when tied to the embedding.
    pub head: Option<B::Matrix>,
}

/// Where the weights of a loaded model live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryReport {
    /// Numbers in all parameters.
    pub parameters: u64,
    /// Bytes of weights used in place, in the file map.
    pub mapped_bytes: u64,
    /// Bytes of weights that were copied (widened norms and biases; all else only where a layout demands it).
    pub copied_bytes: u64,
}

impl<B: Backend> Parameters<B> {
    /// Takes the weights of `checkpoint` onto `backend`; matrices stay in the file map where the backend can.
    pub fn load(
        backend: &B,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        check_finite: bool,
    ) -> Result<(Self, MemoryReport)> {
        Self::load_with(backend, config, checkpoint, check_finite, None)
    }

    /// As [`load`](Self::load), each matrix taken by `take` where that gives one.
    pub(super) fn load_with(
        backend: &B,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        check_finite: bool,
        take: Option<&Take<'_, B>>,
    ) -> Result<(Self, MemoryReport)> {
        let layout = layout(config, checkpoint)?;
        let tied = layout.tied;
        let parameters = layout.parameters;
        let source = Source::Checkpoint { layout, checkpoint, check_finite };
        Self::from_source(backend, config, source, parameters, tied, take)
    }

    /// Every parameter with its name ([`Entry::parameter`](super::Entry)), to be changed.
    pub fn each_mut(&mut self) -> Vec<(String, Trainable<'_, B>)> {
        let mut all = vec![("embedding".to_owned(), Trainable::Matrix(&mut self.embedding))];
        if let Some(positions) = &mut self.positions {
            all.push(("positions".to_owned(), Trainable::Matrix(positions)));
        }
        for (n, layer) in self.layers.iter_mut().enumerate() {
            let at = |p: &str| format!("layers.{n}.{p}");
            let Layer { attention_norm, qkv, out, mlp_norm, mlp } = layer;
            norm_mut(at("attention.norm"), attention_norm, &mut all);
            match qkv {
                Qkv::Fused(qkv) => linear_mut(at("attention.qkv"), qkv, &mut all),
                Qkv::Split { q, k, v } => {
                    linear_mut(at("attention.q"), q, &mut all);
                    linear_mut(at("attention.k"), k, &mut all);
                    linear_mut(at("attention.v"), v, &mut all);
                }
            }
            linear_mut(at("attention.out"), out, &mut all);
            norm_mut(at("mlp.norm"), mlp_norm, &mut all);
            match mlp {
                Mlp::Plain { up, down } => {
                    linear_mut(at("mlp.up"), up, &mut all);
                    linear_mut(at("mlp.down"), down, &mut all);
                }
                Mlp::Gated { gate, up, down } => {
                    linear_mut(at("mlp.gate"), gate, &mut all);
                    linear_mut(at("mlp.up"), up, &mut all);
                    linear_mut(at("mlp.down"), down, &mut all);
                }
            }
        }
        norm_mut("norm".to_owned(), &mut self.norm, &mut all);
        if let Some(head) = &mut self.head {
            all.push(("head".to_owned(), Trainable::Matrix(head)));
        }
        all
    }

    /// Makes up weights from a seed.
    pub(super) fn synthetic(
        backend: &B,
        config: &ModelConfig,
        seed: u64,
        take: Option<&Take<'_, B>>,
    ) -> Result<(Self, MemoryReport)> {
        let table = parameters_of(config);
        let parameters = table.iter().map(|e| e.shape.iter().map(|&d| d as u64).product::<u64>()).sum();
        let places = table.into_iter().enumerate().map(|(n, e)| (e.parameter, (n as u32, e.shape))).collect();
        Self::from_source(
            backend,
            config,
            Source::Synthetic { config, seed, places },
            parameters,
            config.tied,
            take,
        )
    }

    fn from_source(
        backend: &B,
        config: &ModelConfig,
        source: Source<'_>,
        parameters: u64,
        tied: bool,
        take: Option<&Take<'_, B>>,
    ) -> Result<(Self, MemoryReport)> {
        let report = MemoryReport { parameters, ..Default::default() };
        let mut loader = Loader { backend, source, report, take };
        let embedding = loader.matrix("embedding", backend::Layout::OutIn)?;
        let (positions, layers) = match config.family {
            Family::Gpt2 => (
                Some(loader.matrix("positions", backend::Layout::OutIn)?),
                (0..config.layers).map(|n| loader.gpt2_layer(n)).collect::<Result<_>>()?,
            ),
            Family::Llama => {
                (None, (0..config.layers).map(|n| loader.llama_layer(n)).collect::<Result<_>>()?)
            }
        };
        let norm = loader.norm("norm")?;
        let head = if tied { None } else { Some(loader.matrix("head", backend::Layout::OutIn)?) };
        let report = loader.report;
        Ok((Self { embedding, positions, layers, norm, head }, report))
    }
}

/// Refuses a tensor with a NaN or infinite number; all threads look. Just before its numbers are sent to the backend, so that they
/// are read from the disk once.
fn check<B: Backend>(backend: &B, checkpoint: &Checkpoint, name: &str, tensor: &StoredTensor) -> Result<()> {
    match backend.run(|| non_finite(tensor)) {
        None => Ok(()),
        Some(at) => Err(Error::NonFinite {
            place: format!("{}: tensor {name}, element {at}", checkpoint.path().display()),
            found: tensor.get(at).to_string(),
            hint: "the checkpoint is damaged: fetch or export it again".into(),
        }),
    }
}

/// Where weights come from.
enum Source<'a> {
    Checkpoint {
        layout: Layout,
        checkpoint: &'a Checkpoint,
        /// Whether to look at every number.
        check_finite: bool,
    },
    /// Number and shape of each parameter.
    Synthetic { config: &'a ModelConfig, seed: u64, places: HashMap<String, (u32, Vec<usize>)> },
}

/// A parameter, as it will be.
enum Found {
    Stored(StoredTensor),
    Synthetic(SyntheticTensor),
}

impl Source<'_> {
    fn find<B: Backend>(&self, backend: &B, parameter: &str) -> Result<Option<Found>> {
        match self {
            Source::Checkpoint { layout, checkpoint, check_finite } => {
                let Some(name) = layout.tensor(parameter) else { return Ok(None) };
                let tensor = require(checkpoint, name)?;
                if *check_finite {
                    check(backend, checkpoint, name, tensor)?;
                }
                Ok(Some(Found::Stored(tensor.clone())))
            }
            Source::Synthetic { config, seed, places } => Ok(places.get(parameter).map(|(number, shape)| {
                let (shape, fill) = (shape.clone(), fill(config, parameter));
                Found::Synthetic(SyntheticTensor { shape, seed: *seed, parameter: *number, fill })
            })),
        }
    }

    fn expected<B: Backend>(&self, backend: &B, parameter: &str) -> Result<Found> {
        let path = match self {
            Source::Checkpoint { checkpoint, .. } => checkpoint.path().to_path_buf(),
            Source::Synthetic { .. } => "synthetic weights".into(),
        };
        self.find(backend, parameter)?.ok_or_else(|| Error::Checkpoint {
            path,
            what: format!("parameter {parameter}"),
            expected: "a tensor in the layout".into(),
            got: "none".into(),
        })
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    source: Source<'a>,
    report: MemoryReport,
    take: Option<&'a Take<'a, B>>,
}

/// Takes a matrix in a way of its own; `None` for one that is taken as always.
pub(super) type Take<'a, B> =
    dyn Fn(&str, &StoredTensor, backend::Layout) -> Result<Option<<B as Backend>::Matrix>> + 'a;

fn norm_mut<'a, B: Backend>(name: String, norm: &'a mut Norm<B>, all: &mut Vec<(String, Trainable<'a, B>)>) {
    all.push((format!("{name}.weight"), Trainable::Vector(&mut norm.weight)));
    if let Some(bias) = &mut norm.bias {
        all.push((format!("{name}.bias"), Trainable::Vector(bias)));
    }
}

fn linear_mut<'a, B: Backend>(
    name: String,
    linear: &'a mut Linear<B>,
    all: &mut Vec<(String, Trainable<'a, B>)>,
) {
    all.push((format!("{name}.weight"), Trainable::Matrix(&mut linear.weight)));
    if let Some(bias) = &mut linear.bias {
        all.push((format!("{name}.bias"), Trainable::Vector(bias)));
    }
}

impl<B: Backend> Loader<'_, B> {
    fn taken(
        &self,
        parameter: &str,
        tensor: &StoredTensor,
        layout: backend::Layout,
    ) -> Result<Option<B::Matrix>> {
        self.take.map_or(Ok(None), |take| take(parameter, tensor, layout))
    }

    fn matrix(&mut self, parameter: &str, layout: backend::Layout) -> Result<B::Matrix> {
        match self.source.expected(self.backend, parameter)? {
            Found::Stored(tensor) => {
                let matrix = match self.taken(parameter, &tensor, layout)? {
                    Some(matrix) => matrix,
                    None => self.backend.matrix(&tensor, layout)?,
                };
                let copied = self.backend.copied_bytes(&matrix) as u64;
                self.report.copied_bytes += copied;
                if copied == 0 {
                    self.report.mapped_bytes += tensor.bytes().len() as u64;
                }
                Ok(matrix)
            }
            Found::Synthetic(tensor) => {
                let stored = self.take.map(|_| tensor.stored(Dtype::F32)).transpose()?;
                let taken = stored.map_or(Ok(None), |stored| self.taken(parameter, &stored, layout))?;
                let matrix = match taken {
                    Some(matrix) => matrix,
                    None => self.backend.synthetic_matrix(&tensor, layout)?,
                };
                // What the backend holds in place is in memory all the same: there is no file.
                let made = (tensor.count()? * Dtype::Bf16.size()) as u64;
                self.report.copied_bytes += (self.backend.copied_bytes(&matrix) as u64).max(made);
                Ok(matrix)
            }
        }
    }

    fn vector_of(&mut self, found: &Found) -> Result<B::Buffer> {
        let (vector, len) = match found {
            Found::Stored(tensor) => (self.backend.vector(tensor)?, tensor.len()),
            Found::Synthetic(tensor) => (self.backend.synthetic_vector(tensor)?, tensor.count()?),
        };
        self.report.copied_bytes += (len * self.backend.number_bytes()[0]) as u64;
        Ok(vector)
    }

    fn vector(&mut self, parameter: &str) -> Result<Option<B::Buffer>> {
        self.source.find(self.backend, parameter)?.map(|found| self.vector_of(&found)).transpose()
    }

    fn linear(&mut self, parameter: &str, layout: backend::Layout) -> Result<Linear<B>> {
        Ok(Linear {
            weight: self.matrix(&format!("{parameter}.weight"), layout)?,
            bias: self.vector(&format!("{parameter}.bias"))?,
        })
    }

    fn norm(&mut self, parameter: &str) -> Result<Norm<B>> {
        let weight = self.source.expected(self.backend, &format!("{parameter}.weight"))?;
        Ok(Norm { weight: self.vector_of(&weight)?, bias: self.vector(&format!("{parameter}.bias"))? })
    }

    /// GPT-2: fused projections, stored `[in, out]` (Conv1D).
    fn gpt2_layer(&mut self, n: usize) -> Result<Layer<B>> {
        let stored = backend::Layout::InOut;
        let at = |p: &str| format!("layers.{n}.{p}");
        Ok(Layer {
            attention_norm: self.norm(&at("attention.norm"))?,
            qkv: Qkv::Fused(self.linear(&at("attention.qkv"), stored)?),
            out: self.linear(&at("attention.out"), stored)?,
            mlp_norm: self.norm(&at("mlp.norm"))?,
            mlp: Mlp::Plain {
                up: self.linear(&at("mlp.up"), stored)?,
                down: self.linear(&at("mlp.down"), stored)?,
            },
        })
    }

    /// LLaMA: separate projections, stored `[out, in]`, a gated MLP.
    fn llama_layer(&mut self, n: usize) -> Result<Layer<B>> {
        let stored = backend::Layout::OutIn;
        let at = |p: &str| format!("layers.{n}.{p}");
        Ok(Layer {
            attention_norm: self.norm(&at("attention.norm"))?,
            qkv: Qkv::Split {
                q: self.linear(&at("attention.q"), stored)?,
                k: self.linear(&at("attention.k"), stored)?,
                v: self.linear(&at("attention.v"), stored)?,
            },
            out: self.linear(&at("attention.out"), stored)?,
            mlp_norm: self.norm(&at("mlp.norm"))?,
            mlp: Mlp::Gated {
                gate: self.linear(&at("mlp.gate"), stored)?,
                up: self.linear(&at("mlp.up"), stored)?,
                down: self.linear(&at("mlp.down"), stored)?,
            },
        })
    }
}
