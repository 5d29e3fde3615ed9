//! Networks: the parameter table, checkpoint names, the activations arena, the layer loop, the head.

mod arena;
mod cache;
mod forward;
mod gradients;
mod grow;
mod head;
mod names;
mod params;
mod synthetic;
mod train_arena;
mod train_back;
mod train_pass;
mod trainable;

pub use arena::{Arena, ArenaSize, Batch};
pub use cache::KvCache;
pub(crate) use forward::Pass;
pub use gradients::{Adapter, Adapters, Gradients, adapter_parameter, linear_of};
pub use grow::add_mask_token;
pub use head::Drawing;
pub use names::{Entry, Layout, NameScheme, layout, parameters_of};
pub use params::{Layer, Linear, MemoryReport, Mlp, Norm, Parameters, Qkv};
pub use synthetic::{NetworkShape, SyntheticShape};
pub use train_arena::{TrainArena, TrainBatch, TrainSize};
pub use train_pass::{Learning, PassMask, PassShape};

use std::sync::Arc;

use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::io::{ModelFiles, SpecialIds};

/// How to load a [`Model`].
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Look at every weight and refuse NaN and infinity. Reads the whole checkpoint once, which
    /// the first forward pass would do anyway.
    pub check_finite: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { check_finite: true }
    }
}

/// A network with its weights on a backend, ready for forward passes. Weights stay in the file
/// map where dtype and layout allow; activations live in an [`Arena`] of the caller's.
///
/// ```
/// use lacuna::backend::{Mask, cpu::Cpu};
/// use lacuna::io::ModelFiles;
/// use lacuna::model::{Arena, ArenaSize, Batch, LoadOptions, Model};
///
/// # fn main() -> lacuna::Result<()> {
/// let model = Model::load(Cpu::<f32>::new(None)?, &ModelFiles::bundled()?, LoadOptions::default())?;
/// let ids = [1, 20, 30, 40];
/// let size = ArenaSize { tokens: 4, rows: 4 };
/// let mut arena = Arena::new(model.backend(), model.config(), size, 4)?;
/// let mut batch = Batch::with_capacity(size, 1);
/// batch.push(&ids, [3]); // only the last row's logits are wanted
/// let logits = model.logits(&batch, &mut arena, Mask::Full)?;
/// assert_eq!(logits.len(), model.config().vocab_size);
/// # Ok(())
/// # }
/// ```
pub struct Model<B: Backend> {
    backend: B,
    config: ModelConfig,
    special: SpecialIds,
    shift: bool,
    mask_is_dedicated: bool,
    parameters: Arc<Parameters<B>>,
    memory: MemoryReport,
}

impl<B: Backend> Model<B> {
    /// Takes the weights of `files` onto `backend`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) for a missing, misshapen or unknown tensor,
    /// [`Error::NonFinite`](crate::Error::NonFinite) for a NaN or infinite weight (unless switched off).
    pub fn load(backend: B, files: &ModelFiles, options: LoadOptions) -> Result<Self> {
        let (parameters, memory) =
            Parameters::load(&backend, &files.config, &files.checkpoint, options.check_finite)?;
        Ok(Self {
            backend,
            config: files.config.clone(),
            special: files.special.clone(),
            shift: files.shift,
            mask_is_dedicated: files.mask_is_dedicated,
            parameters: Arc::new(parameters),
            memory,
        })
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The ids of mask, bos, eos, sep and pad, and where each came from.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Whether the logits of row i predict position i + 1.
    pub fn shift(&self) -> bool {
        self.shift
    }

    /// Whether the mask id is a token of its own rather than an ordinary word that was reused.
    pub fn mask_is_dedicated(&self) -> bool {
        self.mask_is_dedicated
    }

    pub fn parameters(&self) -> &Parameters<B> {
        &self.parameters
    }

    /// Where the weights live.
    pub fn memory(&self) -> MemoryReport {
        self.memory
    }
}
