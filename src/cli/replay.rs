//! `lacuna replay`: explicit inputs through the engine, to compare with another implementation.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::args::DeviceArgs;
use super::device;
use super::engine::Engine;
use super::{Context, replay_loss, terminal};
use crate::backend::Mask;
use crate::error::{Error, Result};
use crate::io::{AtomicFile, ModelFiles, is_same};
use crate::sample::{PlainInput, PlainOptions};

/// Run explicit inputs through the engine and write what came out.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Logits of given token ids.
    ///
    /// IN.safetensors holds x (i32 or i64, [B, L]); optionally lens (i32 or i64, [B]) and attn_mask
    /// (u8, [L, L] or [B, L, L]; 1 = the query row may see the key column; overrides --attention).
    /// OUT.safetensors gets logits (f32, [B, L, V]); rows beyond a length are zero.
    Forward(ForwardArgs),
    /// The paper's sampling loop with given uniforms.
    ///
    /// IN.safetensors holds x (i32 or i64, [B, L]), src_mask (u8, [B, L], 1 = given), u_cat (f32,
    /// [T, B, L], by the row that the logits come from; not with --greedy or --confidence) and
    /// u_unmask (f32, [T-1, B, L]; not with --confidence): before forward k > 0 a masked position is
    /// revealed, with the token of forward k-1, iff u_unmask[k-1] < 1 / (T-k+1).
    /// OUT.safetensors gets xt and x0 (i32, [T, B, L]), the input and the prediction of each forward, and
    /// final (i32, [B, L], or [B, L-1] with shift: position 0 is predicted by no row).
    Sample(SampleArgs),
    /// The training loss of given masked tokens, and its gradient by every weight.
    ///
    /// IN.safetensors holds x0 and x_t (i32 or i64, [B, L]), the clean and the masked ids, and t (f32, [B]); optionally
    /// masked (u8, [B, L], 1 = scored; by default every position whose x_t is the mask id), src_mask (u8, [B, L], 1 = given:
    /// not counted by the NELBO), lens (i32 or i64, [B]) and attn_mask (u8, [L, L]; 1 = the query row may see the key
    /// column; by default everything). The loss is sum over masked tokens of nll / t, divided by their number.
    /// OUT.safetensors gets weighted, unweighted and nelbo (f32, [1]) and token_loss (f32, [B, L-1], column i belongs to
    /// position i + 1; without shift [B, L]; 0 where nothing is scored); with --grads grad.NAME (f32), the gradient of weighted
    /// by the checkpoint's tensor NAME, in the tensor's own orientation.
    Loss(replay_loss::LossArgs),
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Attention {
    Bidirectional,
    Causal,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Files {
    /// Model folder or Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL")]
    pub(super) model: Option<String>,
    /// Inputs, a safetensors file
    #[arg(long, value_name = "IN.safetensors")]
    pub(super) input: PathBuf,
    /// Where the outputs go, a safetensors file
    #[arg(long, value_name = "OUT.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

#[derive(Debug, ClapArgs)]
struct ForwardArgs {
    #[command(flatten)]
    files: Files,
    #[arg(long, value_enum, default_value = "bidirectional")]
    attention: Attention,
    /// Compute it N times more, for the median time that --json reports
    #[arg(long, value_name = "N", default_value_t = 0)]
    repeat: u32,
    /// Print one JSON object with the shape and the times
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct SampleArgs {
    #[command(flatten)]
    files: Files,
    /// Denoising steps T
    #[arg(long, value_name = "T")]
    steps: usize,
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    temperature: f32,
    /// Keep the most probable tokens up to this mass [default: all]
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// The most probable token of the raw logits at every row
    #[arg(long)]
    greedy: bool,
    /// The original's confidence order: the least confident positions stay masked
    #[arg(long, conflicts_with = "plan")]
    confidence: bool,
    /// Logits of row i predict position i, not i + 1
    #[arg(long)]
    no_shift: bool,
    /// Mask token id [default: the model's]
    #[arg(long, value_name = "N")]
    mask_id: Option<u32>,
    /// Draw the reveal schedule beforehand and compute only what it needs; the same final. No xt and x0
    #[arg(long)]
    plan: bool,
}

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        matches!(&self.what, What::Forward(args) if args.json)
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`Error::Input`] for a malformed input file, otherwise as the engine.
pub fn run(args: Args, context: &Context) -> Result<()> {
    match &args.what {
        What::Forward(args) => forward(args, context),
        What::Sample(args) => sample(args, context),
        What::Loss(args) => replay_loss::run(args, context),
    }
}

/// A tensor of an input file, with its place for messages.
pub(super) struct Input<'a> {
    path: &'a Path,
    name: &'static str,
    view: TensorView<'a>,
}

impl<'a> Input<'a> {
    pub(super) fn find(
        path: &'a Path,
        file: &'a SafeTensors<'a>,
        name: &'static str,
    ) -> Result<Option<Self>> {
        match file.tensor(name) {
            Ok(view) => Ok(Some(Self { path, name, view })),
            Err(safetensors::SafeTensorError::TensorNotFound(_)) => Ok(None),
            Err(error) => Err(malformed(path, name, "a readable tensor", error)),
        }
    }

    pub(super) fn required(path: &'a Path, file: &'a SafeTensors<'a>, name: &'static str) -> Result<Self> {
        Self::find(path, file, name)?
            .ok_or_else(|| malformed(path, name, "to be in the file", "no tensor of that name"))
    }

    pub(super) fn wrong(&self, expected: impl std::fmt::Display) -> Error {
        malformed(self.path, self.name, expected, format!("{:?} {:?}", self.view.dtype(), self.view.shape()))
    }

    pub(super) fn matrix(&self) -> Result<[usize; 2]> {
        self.view.shape().try_into().map_err(|_| self.wrong("a tensor of shape [B, L]"))
    }

    pub(super) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.view.shape() == shape { Ok(()) } else { Err(self.wrong(format!("shape {shape:?}"))) }
    }

    pub(super) fn integers(&self) -> Result<Vec<i64>> {
        let data = self.view.data();
        match self.view.dtype() {
            Dtype::I32 => {
                Ok(data.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect())
            }
            Dtype::I64 => Ok(data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            _ => Err(self.wrong("i32 or i64")),
        }
    }

    pub(super) fn ids(&self) -> Result<Vec<u32>> {
        let id = |v: i64| u32::try_from(v).map_err(|_| malformed(self.path, self.name, "token ids", v));
        self.integers()?.into_iter().map(id).collect()
    }

    pub(super) fn flags(&self) -> Result<Vec<u8>> {
        match self.view.dtype() {
            Dtype::U8 | Dtype::BOOL => Ok(self.view.data().to_vec()),
            _ => Err(self.wrong("u8")),
        }
    }

    pub(super) fn floats(&self) -> Result<Vec<f32>> {
        match self.view.dtype() {
            Dtype::F32 => {
                Ok(self.view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            _ => Err(self.wrong("f32")),
        }
    }
}

pub(super) fn malformed(
    path: &Path,
    what: &str,
    expected: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> Error {
    Error::Input {
        origin: path.display().to_string(),
        what: what.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("read", path, e))
}

pub(super) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| malformed(path, "header", "a safetensors file", e))
}

/// The lengths of `b` rows of `l` positions: `lens`, or all whole.
pub(super) fn lengths(path: &Path, file: &SafeTensors<'_>, b: usize, l: usize) -> Result<Vec<usize>> {
    let Some(lens) = Input::find(path, file, "lens")? else { return Ok(vec![l; b]) };
    lens.expect_shape(&[b])?;
    let inside = |v: i64| {
        let len = usize::try_from(v).ok().filter(|&n| n <= l);
        len.ok_or_else(|| malformed(path, "lens", format!("lengths from 0 to {l}"), v))
    };
    lens.integers()?.into_iter().map(inside).collect()
}

/// Finds out before the work whether the output can be written.
pub(super) fn probe(files: &Files) -> Result<()> {
    if is_same(&files.input, &files.output) {
        return Err(Error::request(format!(
            "{} is the input: it would be lost; write to another file",
            files.output.display()
        )));
    }
    AtomicFile::probe(&files.output)
}

/// Writes little-endian tensors, whole or not at all.
pub(super) fn write(
    files: &Files,
    context: &Context,
    tensors: &[(&str, Dtype, Vec<usize>, &[u8])],
) -> Result<()> {
    let path = files.output.as_path();
    let mut views = HashMap::new();
    for (name, dtype, shape, bytes) in tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .map_err(|e| malformed(path, name, "a tensor that fits its shape", e))?;
        views.insert(*name, view);
    }
    let bytes = safetensors::serialize(views, None)
        .map_err(|e| malformed(path, "output", "tensors that can be written", e))?;
    context.interrupt.hold();
    let mut file = AtomicFile::create(path)?;
    file.write_all(&bytes).map_err(|e| Error::io("write", path, e))?;
    file.commit()
}

fn load(files: &Files, context: &Context) -> Result<(ModelFiles, Box<dyn Engine>)> {
    let found = ModelFiles::find(files.model.as_deref())?;
    let engine = device::load(&files.device, &found, context)?;
    Ok((found, engine))
}

/// Room for a tensor of f32, zero.
fn zeros(shape: &[usize]) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if len.is_none_or(|len| out.try_reserve_exact(len).is_err()) {
        return Err(Error::Memory {
            what: format!("the output of shape {shape:?}"),
            needed: shape.iter().map(|&d| d as u128).product::<u128>() * 4,
            limit: "more than there is".into(),
            hint: "give fewer or shorter rows at once".into(),
        });
    }
    out.resize(len.unwrap_or(0), 0.0);
    Ok(out)
}

fn forward(args: &ForwardArgs, context: &Context) -> Result<()> {
    let path = args.files.input.as_path();
    let bytes = read(path)?;
    let file = parse(path, &bytes)?;
    let x = Input::required(path, &file, "x")?;
    let [b, l] = x.matrix()?;
    let ids = x.ids()?;
    let lens = lengths(path, &file, b, l)?;
    let allow = match Input::find(path, &file, "attn_mask")? {
        None => None,
        Some(mask) => {
            let shared = mask.view.shape() == [l, l];
            if !shared {
                mask.expect_shape(&[b, l, l])?;
            }
            Some((mask.flags()?, shared))
        }
    };
    probe(&args.files)?;
    let (_, engine) = load(&args.files, context)?;
    let vocab = engine.config().vocab_size;
    let sequences: Vec<&[u32]> =
        lens.iter().enumerate().map(|(row, &len)| &ids[row * l..row * l + len]).collect();
    let mask = match (&allow, args.attention) {
        (Some((allow, shared)), _) => Mask::Explicit { allow, len: l, shared: *shared },
        (None, Attention::Causal) => Mask::Causal,
        (None, Attention::Bidirectional) => Mask::Full,
    };
    // The largest of all, so it is the first to be refused.
    let mut logits = zeros(&[b, l, vocab])?;
    let rows: Vec<usize> = lens.iter().enumerate().flat_map(|(row, &len)| row * l..row * l + len).collect();
    let mut seconds = engine.logits(&sequences, mask, args.repeat, &mut |number, row| {
        logits[rows[number] * vocab..][..vocab].copy_from_slice(row);
    })?;
    for value in &mut logits {
        *value = f32::from_bits(value.to_bits().to_le());
    }
    write(&args.files, context, &[("logits", Dtype::F32, vec![b, l, vocab], bytemuck::cast_slice(&logits))])?;
    if args.json {
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2);
        let line = serde_json::json!({
            "batch": b, "length": l, "vocab": vocab, "repeats": seconds.len(), "seconds": median,
        });
        terminal::println(&line.to_string())?;
    }
    Ok(())
}

fn sample(args: &SampleArgs, context: &Context) -> Result<()> {
    let path = args.files.input.as_path();
    let bytes = read(path)?;
    let file = parse(path, &bytes)?;
    let x = Input::required(path, &file, "x")?;
    let [b, l] = x.matrix()?;
    let src = Input::required(path, &file, "src_mask")?;
    src.expect_shape(&[b, l])?;
    let steps = args.steps;
    let uniforms = |name: &'static str, needed: bool, slices: usize| -> Result<Vec<f32>> {
        if !needed || slices == 0 {
            return Ok(Vec::new());
        }
        let tensor = Input::required(path, &file, name)?;
        tensor.expect_shape(&[slices, b, l])?;
        tensor.floats()
    };
    let temperature = if args.greedy && !args.confidence { 0.0 } else { args.temperature };
    let input = PlainInput {
        batch: b,
        length: l,
        x: x.ids()?,
        src: src.flags()?.into_iter().map(|f| f != 0).collect(),
        u_cat: uniforms("u_cat", !args.greedy && !args.confidence, steps)?,
        u_unmask: uniforms("u_unmask", !args.confidence, steps.saturating_sub(1))?,
    };
    probe(&args.files)?;
    let (files, engine) = load(&args.files, context)?;
    let mask_id = args
        .mask_id
        .or(files.special.mask.as_ref().map(|m| m.id))
        .ok_or_else(|| Error::Request("the model names no mask token: give --mask-id N".into()))?;
    let options = PlainOptions {
        steps,
        temperature,
        top_p: args.top_p,
        shift: !args.no_shift && files.shift,
        mask_id,
        confidence: args.confidence,
    };
    let bytes_of = |ids: &[u32]| ids.iter().flat_map(|id| (*id as i32).to_le_bytes()).collect::<Vec<u8>>();
    let width = l.saturating_sub(usize::from(options.shift));
    if args.plan {
        let result = engine.planned(&input, &options)?;
        return write(&args.files, context, &[("final", Dtype::I32, vec![b, width], &bytes_of(&result))]);
    }
    let out = engine.plain_loop(&input, &options)?;
    write(
        &args.files,
        context,
        &[
            ("xt", Dtype::I32, vec![steps, b, l], &bytes_of(&out.xt)),
            ("x0", Dtype::I32, vec![steps, b, l], &bytes_of(&out.x0)),
            ("final", Dtype::I32, vec![b, width], &bytes_of(&out.result)),
        ],
    )
}
