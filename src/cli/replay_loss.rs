//! `lacuna replay loss`: the training loss and its gradients on explicit inputs.

use std::path::Path;

use clap::Args as ClapArgs;
use safetensors::tensor::Dtype;

use super::Context;
use super::device::{self, Training};
use super::replay::{Files, Input, lengths, malformed, parse, probe, read, write};
use crate::backend::{Backend, Backward, Mask, Optimise};
use crate::diffusion::corrupt::{Corrupted, MaskRule};
use crate::diffusion::loss::{Loss, LossNorm};
use crate::diffusion::shift;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::{Gradients, Learning, LoadOptions, Model, TrainArena, TrainSize, layout};
use crate::train::Example;
use crate::train::batch::{Objective, Prepared, TimeWeight};

#[derive(Debug, ClapArgs)]
pub struct LossArgs {
    #[command(flatten)]
    files: Files,
    /// Logits of row i predict position i, not i + 1
    #[arg(long)]
    no_shift: bool,
    /// Mask token id [default: the model's]
    #[arg(long, value_name = "N")]
    mask_id: Option<u32>,
    /// Write the gradient by every weight too
    #[arg(long)]
    grads: bool,
}

/// The inputs, checked against one another.
struct Inputs {
    b: usize,
    l: usize,
    x0: Vec<u32>,
    x_t: Vec<u32>,
    t: Vec<f32>,
    masked: Option<Vec<u8>>,
    src: Vec<u8>,
    lens: Vec<usize>,
    allow: Option<Vec<u8>>,
}

fn inputs(path: &Path) -> Result<Inputs> {
    let bytes = read(path)?;
    let file = parse(path, &bytes)?;
    let x0 = Input::required(path, &file, "x0")?;
    let [b, l] = x0.matrix()?;
    let x_t = Input::required(path, &file, "x_t")?;
    x_t.expect_shape(&[b, l])?;
    let t = Input::required(path, &file, "t")?;
    t.expect_shape(&[b])?;
    let t = t.floats()?;
    if let Some(&t) = t.iter().find(|t| !(**t > 0.0 && **t <= 1.0)) {
        return Err(malformed(path, "t", "times above 0 and up to 1", t));
    }
    let flags = |name, shape: &[usize]| -> Result<Option<Vec<u8>>> {
        let Some(tensor) = Input::find(path, &file, name)? else { return Ok(None) };
        tensor.expect_shape(shape)?;
        Ok(Some(tensor.flags()?))
    };
    Ok(Inputs {
        b,
        l,
        x0: x0.ids()?,
        x_t: x_t.ids()?,
        t,
        masked: flags("masked", &[b, l])?,
        src: flags("src_mask", &[b, l])?.unwrap_or_else(|| vec![0; b * l]),
        lens: lengths(path, &file, b, l)?,
        allow: flags("attn_mask", &[l, l])?,
    })
}

/// Runs it.
///
/// # Errors
/// [`Error::Input`] for a malformed input file; otherwise as training.
pub fn run(args: &LossArgs, context: &Context) -> Result<()> {
    let inputs = inputs(&args.files.input)?;
    probe(&args.files)?;
    device::train(&args.files.device, Replay { args, inputs, context })
}

/// Inputs on their way to a machine.
struct Replay<'a> {
    args: &'a LossArgs,
    inputs: Inputs,
    context: &'a Context,
}

impl Training for Replay<'_> {
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, _: &str) -> Result<()> {
        replay(self.args, self.inputs, backend, self.context)
    }
}

fn replay<B: Backward + Backend<Elem = f32>>(
    args: &LossArgs,
    inputs: Inputs,
    backend: B,
    context: &Context,
) -> Result<()> {
    let Inputs { b, l, x0, x_t, t, masked, src, lens, allow } = inputs;
    let files = ModelFiles::find(args.files.model.as_deref())?;
    let mask_id = args
        .mask_id
        .or(files.special.mask.as_ref().map(|m| m.id))
        .ok_or_else(|| Error::request("the model names no mask token: give --mask-id N"))?;
    let model = Model::load(backend.clone(), &files, LoadOptions::default())?;
    let shifted = !args.no_shift && files.shift;
    // Which rows count is said by the flags, so that the rule has nothing to add.
    let (norm, time, rule) = (LossNorm::MaskedTokens, TimeWeight::Elbo, MaskRule::Explicit);
    let objective = Objective::Diffusion { mask_id, shift: shifted, norm, time, rule };
    let mut prepared = Prepared::default();
    for row in 0..b {
        let part = row * l..row * l + lens[row];
        let example = Example {
            ids: x0[part.clone()].to_vec(),
            fixed: src[part.clone()].iter().map(|&f| f != 0).collect(),
            documents: vec![lens[row]],
        };
        let masked = match &masked {
            Some(masked) => masked[part.clone()].iter().map(|&m| m != 0).collect(),
            None => x_t[part.clone()].iter().map(|&id| id == mask_id).collect(),
        };
        let corrupted = Corrupted { ids: x_t[part].to_vec(), masked };
        prepared.add_corrupted(&example, &corrupted, t[row], objective, false);
    }
    prepared.weigh(objective, 1);
    let tokens = lens.iter().sum();
    let size =
        TrainSize { tokens, rows: prepared.batch.targets.len(), length: l, checkpoint: false, rank: 0 };
    let mut arena = TrainArena::new(&backend, model.config(), size)?;
    let entries = layout(&files.config, &files.checkpoint)?.entries;
    let named = entries.iter().map(|e| (e.parameter.clone(), e.shape.iter().product()));
    let mut gradients = if args.grads { Some(Gradients::new(&backend, named)?) } else { None };
    let mask = match &allow {
        Some(allow) => Mask::Explicit { allow, len: l, shared: true },
        None => Mask::Full,
    };
    context.interrupt.check()?;
    let learning = Learning::default();
    let nll =
        backend.run(|| model.train_pass(&prepared.batch, &mut arena, mask, learning, gradients.as_mut()))?;

    let mut loss = Loss::default();
    prepared.score(&nll, &mut loss);
    let width = l.saturating_sub(usize::from(shifted));
    let mut token_loss = vec![0.0f32; b * width];
    for ((row, position), u) in prepared.places().zip(&nll) {
        if let Some(predictor) = shift::row_for(position, shifted)
            && let Some(cell) = token_loss.get_mut(row * width + predictor)
        {
            *cell = *u;
        }
    }
    let one = |x: f64| (x as f32).to_le_bytes().to_vec();
    let little = |xs: &[f32]| xs.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut out: Vec<(String, Vec<usize>, Vec<u8>)> = vec![
        ("weighted".into(), vec![1], one(loss.weighted(norm))),
        ("unweighted".into(), vec![1], one(loss.unweighted())),
        ("nelbo".into(), vec![1], one(loss.nelbo())),
        ("token_loss".into(), vec![b, width], little(&token_loss)),
    ];
    if let Some(gradients) = &gradients {
        for entry in &entries {
            let Some(gradient) = gradients.get(&entry.parameter) else { continue };
            let mut numbers = vec![0.0f32; entry.shape.iter().product()];
            backend.read(gradient, 0, &mut numbers)?;
            out.push((format!("grad.{}", entry.tensor), entry.shape.clone(), little(&numbers)));
        }
    }
    let views: Vec<_> = out
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), Dtype::F32, shape.clone(), bytes.as_slice()))
        .collect();
    write(&args.files, context, &views)
}
