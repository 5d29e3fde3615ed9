//! What a machine can do at most.

use super::super::args::DeviceArgs;
use super::training::{Training, train};
use crate::backend::{Backend, Backward, Optimise};
use crate::error::Result;
use crate::profile::{self, Ceilings};

/// Measures a machine.
struct Measure<'a>(&'a mut Option<Ceilings>);

impl Training for Measure<'_> {
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, _: &str) -> Result<()> {
        *self.0 = Some(profile::ceilings(&backend)?);
        Ok(())
    }
}

/// Measures what the machine that `--device` names can do at most, in the format that `--dtype` names.
///
/// # Errors
/// Those of [`check`](super::check) and [`profile::ceilings`].
pub fn ceilings(args: &DeviceArgs) -> Result<Ceilings> {
    let mut found = None;
    train(args, Measure(&mut found))?;
    // It is always there when nothing went wrong.
    found.ok_or_else(|| crate::error::Error::request("no ceilings were measured"))
}
