//! Gradients by parameter, and low-rank adapters.

use std::collections::BTreeMap;

use super::{Entry, Model};
use crate::backend::{Backend, Backward, Layout, Optimise, Trainable};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::synthetic::{Fill, SyntheticTensor};

/// One gradient a trained parameter, in the parameter's own stored orientation. A parameter without one is frozen.
pub struct Gradients<B: Backend> {
    slots: Vec<Slot<B>>,
    places: BTreeMap<String, usize>,
}

struct Slot<B: Backend> {
    name: String,
    len: usize,
    buffer: Option<B::Buffer>,
}

impl<B: Backward> Gradients<B> {
    /// Zero gradients for the parameters in `named`, each with how many numbers it has.
    ///
    /// # Errors
    /// [`Error::Memory`] when they do not fit.
    pub fn new(backend: &B, named: impl IntoIterator<Item = (String, usize)>) -> Result<Self> {
        let mut slots = Vec::new();
        let mut places = BTreeMap::new();
        for (name, len) in named {
            places.insert(name.clone(), slots.len());
            slots.push(Slot { name, len, buffer: Some(backend.alloc_gradient(len)?) });
        }
        Ok(Self { slots, places })
    }

    /// Sets all of them to 0.
    pub fn clear(&mut self, backend: &B) -> Result<()> {
        for slot in &mut self.slots {
            if let Some(buffer) = &mut slot.buffer {
                backend.zero(buffer, slot.len)?;
            }
        }
        Ok(())
    }

    /// Names, how many numbers, gradients: in the order in which they were named.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize, &B::Buffer)> {
        self.slots.iter().filter_map(|s| Some((s.name.as_str(), s.len, s.buffer.as_ref()?)))
    }

    /// The gradient of a parameter that is trained.
    pub fn get(&self, name: &str) -> Option<&B::Buffer> {
        self.slots.get(*self.places.get(name)?)?.buffer.as_ref()
    }

    /// The gradient of a parameter, to be added to; `None` for a frozen one.
    pub(super) fn of(&mut self, name: &str) -> Option<&mut B::Buffer> {
        self.slots.get_mut(*self.places.get(name)?)?.buffer.as_mut()
    }

    /// The gradients of two parameters at once.
    pub(super) fn pair(&mut self, a: &str, b: &str) -> (Option<&mut B::Buffer>, Option<&mut B::Buffer>) {
        let (a, b) = (self.places.get(a).copied(), self.places.get(b).copied());
        match (a, b) {
            (Some(a), Some(b)) if a != b => match self.slots.get_disjoint_mut([a, b]) {
                Ok([a, b]) => (a.buffer.as_mut(), b.buffer.as_mut()),
                Err(_) => (None, None),
            },
            (Some(a), _) => (self.slots.get_mut(a).and_then(|s| s.buffer.as_mut()), None),
            (None, Some(b)) => (None, self.slots.get_mut(b).and_then(|s| s.buffer.as_mut())),
            (None, None) => (None, None),
        }
    }
}

/// A low-rank adapter of a linear layer (Hu et al., "LoRA: low-rank adaptation of large language models", 2021):
/// `y += scale (x A^T) B^T`.
pub struct Adapter<B: Backend> {
    /// `[rank, in]`.
    pub a: B::Matrix,
    /// `[out, rank]`.
    pub b: B::Matrix,
    pub inputs: usize,
    pub outputs: usize,
}

/// The adapters of a network, by the linear layer they belong to (`layers.3.mlp.up`, ...).
pub struct Adapters<B: Backend> {
    pub rank: usize,
    /// `alpha / rank`.
    pub scale: f64,
    of: BTreeMap<String, Adapter<B>>,
}

/// The name of half an adapter, as a parameter.
pub fn adapter_parameter(linear: &str, half: char) -> String {
    format!("{linear}.lora_{half}")
}

impl<B: Optimise> Adapters<B> {
    /// Adapters for the linear layers among `entries` whose name's last part is in `targets` (all of them for none):
    /// A near-normal of the variance that PEFT's has, `1 / (3 in)`, made from `seed`; B zero.
    ///
    /// # Errors
    /// [`Error::Request`] when a target names no linear layer; [`Error::Memory`].
    pub fn new(
        backend: &B,
        entries: &[Entry],
        layouts: impl Fn(&str) -> Layout,
        rank: usize,
        alpha: f64,
        targets: &[String],
        seed: u64,
    ) -> Result<Self> {
        let mut of = BTreeMap::new();
        let mut known = std::collections::BTreeSet::new();
        let mut used = std::collections::BTreeSet::new();
        for (number, entry) in entries.iter().enumerate() {
            let Some(linear) = linear_of(&entry.parameter) else { continue };
            let short = entry.tensor.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
            known.insert(short.to_owned());
            if !targets.is_empty() && !targets.iter().any(|t| t == short) {
                continue;
            }
            used.insert(short.to_owned());
            let &[rows, columns] = entry.shape.as_slice() else { continue };
            let (outputs, inputs) = match layouts(linear) {
                Layout::OutIn => (rows, columns),
                Layout::InOut => (columns, rows),
            };
            let a = SyntheticTensor {
                shape: vec![rank, inputs],
                seed,
                parameter: number as u32,
                fill: Fill::Normal { std: 1.0 / (3.0 * inputs as f32).sqrt() },
            };
            let zeros = vec![0u8; outputs * rank * Dtype::F32.size()];
            let b = StoredTensor::new(Dtype::F32, vec![outputs, rank], zeros.into())?;
            let a = backend.trainable_matrix(&a.stored(Dtype::F32)?, Layout::OutIn, Dtype::F32)?;
            let b = backend.trainable_matrix(&b, Layout::OutIn, Dtype::F32)?;
            of.insert(linear.to_owned(), Adapter { a, b, inputs, outputs });
        }
        if let Some(unknown) = targets.iter().find(|t| !used.contains(*t)) {
            let known: Vec<_> = known.into_iter().collect();
            return Err(Error::Request(format!(
                "--lora-targets {unknown}: expected linear layers of this network, among {}",
                known.join(", ")
            )));
        }
        Ok(Self { rank, scale: alpha / rank as f64, of })
    }

    /// Parameters with how many numbers each has.
    pub fn named(&self) -> Vec<(String, usize)> {
        let sizes = self.of.iter().flat_map(|(linear, adapter)| {
            [('a', adapter.inputs), ('b', adapter.outputs)]
                .map(|(half, width)| (adapter_parameter(linear, half), width * self.rank))
        });
        sizes.collect()
    }

    /// All halves, to be changed, by parameter name.
    pub fn each_mut(&mut self) -> impl Iterator<Item = (String, Trainable<'_, B>)> {
        self.of.iter_mut().flat_map(|(linear, adapter)| {
            [
                (adapter_parameter(linear, 'a'), Trainable::Matrix(&mut adapter.a)),
                (adapter_parameter(linear, 'b'), Trainable::Matrix(&mut adapter.b)),
            ]
        })
    }
}

impl<B: Backend> Adapters<B> {
    pub(super) fn get(&self, linear: &str) -> Option<&Adapter<B>> {
        self.of.get(linear)
    }

    /// Linear layers with their adapters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Adapter<B>)> {
        self.of.iter().map(|(linear, adapter)| (linear.as_str(), adapter))
    }
}

/// The linear layer that a parameter is the weight of: everything in a block that is no norm and no bias.
pub fn linear_of(parameter: &str) -> Option<&str> {
    let linear = parameter.strip_suffix(".weight")?;
    (linear.starts_with("layers.") && !linear.ends_with("norm")).then_some(linear)
}

impl<B: Backend> Model<B> {
    /// How a linear layer's weight is stored: GPT-2's are `[in, out]`.
    pub fn layout_of(&self, _linear: &str) -> Layout {
        match self.config.family {
            crate::config::Family::Gpt2 => Layout::InOut,
            crate::config::Family::Llama => Layout::OutIn,
        }
    }
}
