//! **lacuna** runs masked diffusion language models (DiffuGPT, DiffuLLaMA and their kin): it fills
//! the gaps of a text by denoising, many tokens a step. It also trains them ([`train`]).
//!
//! ```
//! use std::sync::Arc;
//! use lacuna::backend::cpu::Cpu;
//! use lacuna::io::ModelFiles;
//! use lacuna::model::LoadOptions;
//! use lacuna::sample::Limits;
//! use lacuna::{Canvas, Model, Request, Sampler};
//!
//! # fn main() -> lacuna::Result<()> {
//! let files = ModelFiles::bundled()?; // or ModelFiles::find(Some("DIR or Hugging Face id"))
//! let model = Arc::new(Model::load(Cpu::<f32>::new(None)?, &files, LoadOptions::default())?);
//! let mut sampler = Sampler::new(model, Limits { sequences: 1, tokens: 64 })?;
//!
//! let bos = 1;
//! let mut request = Request::new(Canvas::prefix(&[bos], 24));
//! request.steps = 8;
//! let text = sampler.generate(&request)?;
//! assert_eq!(text.ids.len(), 25);
//! assert!(text.nfe <= 8);
//! # Ok(())
//! # }
//! ```
//!
//! Layers, each importing only what stands before it: number formats, errors and the generator
//! ([`element`], [`error`], [`rng`], [`config`]); the machine ([`backend`]), files ([`io`]) and the
//! mathematics of masked diffusion ([`diffusion`]); networks ([`model`]); sampling, training and evaluation
//! ([`sample`], [`train`], [`eval`]); the command line ([`cli`]).

pub mod anneal;
pub mod backend;
pub mod cli;
pub mod config;
pub mod diffusion;
pub mod element;
pub mod error;
pub mod eval;
pub mod io;
pub mod meter;
pub mod model;
pub mod profile;
pub mod ranking;
pub mod rng;
pub mod sample;
pub mod selftest;
pub mod shift;
pub mod synthetic;
pub mod train;

pub use error::{Error, Result};
pub use model::Model;
pub use sample::{Canvas, Generation, Request, Sampler};
