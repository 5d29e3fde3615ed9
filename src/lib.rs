//! **lacuna** runs masked diffusion language models (DiffuGPT, DiffuLLaMA and their kin): it fills
//! the gaps of a text by denoising, many tokens a step.

pub mod backend;
pub mod cli;
pub mod config;
pub mod diffusion;
pub mod element;
pub mod error;
pub mod io;
pub mod model;
pub mod rng;
pub mod sample;

pub use error::{Error, Result};
