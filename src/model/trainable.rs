//! Networks whose weights can change.

use std::sync::Arc;

use super::{Model, Parameters};
use crate::backend::{Optimise, Trainable};
use crate::config::ModelConfig;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{ModelFiles, SpecialIds};

impl<B: Optimise> Model<B> {
    /// As [`Model::load`], every number checked; the parameters for which `dtype` names a format lie in memory of their
    /// own in it, others stay as they are stored. Norm weights and biases can always change.
    ///
    /// # Errors
    /// Those of [`Model::load`]; [`Error::Memory`].
    pub fn load_trainable(
        backend: B,
        files: &ModelFiles,
        dtype: impl Fn(&str) -> Option<Dtype>,
    ) -> Result<Self> {
        let take = |parameter: &str, tensor: &_, layout| {
            dtype(parameter).map(|dtype| backend.trainable_matrix(tensor, layout, dtype)).transpose()
        };
        let (parameters, memory) =
            Parameters::load_with(&backend, &files.config, &files.checkpoint, true, Some(&take))?;
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

    /// A network of a shape with weights made up from `seed` ([`crate::synthetic`]: standard deviation 0.02, GPT-2's
    /// before a residual sum smaller), to be trained.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn untrained(
        backend: B,
        config: ModelConfig,
        special: SpecialIds,
        shift: bool,
        seed: u64,
        dtype: Dtype,
    ) -> Result<Self> {
        let take = |_: &str, tensor: &_, layout| backend.trainable_matrix(tensor, layout, dtype).map(Some);
        let (parameters, memory) = Parameters::synthetic(&backend, &config, seed, Some(&take))?;
        let parameters = Arc::new(parameters);
        Ok(Self { backend, config, special, shift, mask_is_dedicated: true, parameters, memory })
    }

    /// Every parameter with its name, to be changed.
    ///
    /// # Errors
    /// [`Error::Request`] while the parameters are shared with somebody else.
    pub fn parameters_mut(&mut self) -> Result<Vec<(String, Trainable<'_, B>)>> {
        self.own_parameters().map(Parameters::each_mut)
    }

    /// That nobody else holds the parameters, which is what [`parameters_mut`](Self::parameters_mut) asks for too.
    ///
    /// # Errors
    /// [`Error::Request`] while they are shared with somebody else.
    pub fn owns_parameters(&mut self) -> Result<()> {
        self.own_parameters().map(drop)
    }

    fn own_parameters(&mut self) -> Result<&mut Parameters<B>> {
        Arc::get_mut(&mut self.parameters)
            .ok_or_else(|| Error::request("the weights are in use elsewhere and cannot be changed"))
    }

    /// The logits of row i predict position i + 1, or not: what a network is trained to do.
    pub fn set_shift(&mut self, shift: bool) {
        self.shift = shift;
    }
}
