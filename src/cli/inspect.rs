//! `lacuna inspect`: what a model's files say, what of them is used, and what is odd.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::Context;
use super::args::DeviceArgs;
use super::device::{cpu, dtype_of_card};
use super::terminal::{print, printable, println};
use crate::backend::cpu::Cpu;
use crate::config::{Activation, Family, ModelConfig, NormKind, RopeScaling};
use crate::error::{Error, Result};
use crate::io::{Checkpoint, ModelFiles, SpecialId, SpecialIds};
use crate::model::{Layout, LoadOptions, Model, layout};
use crate::sample::{Limits, MemoryPlan};

/// Arguments of `inspect`.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// A folder, a safetensors file, or a Hugging Face id [default: the bundled model]
    #[arg(value_name = "DIR|ID")]
    target: Option<String>,

    /// The same as a flag, as other commands take it
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL")]
    model: Option<String>,

    /// List every tensor: name, dtype, shape, size, and the parameter it is
    #[arg(long)]
    tensors: bool,

    /// Read every weight and refuse NaN and infinity
    #[arg(long)]
    check: bool,

    /// Sequences at once, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,

    /// Tokens a sequence, for the memory estimate [default: the context, at most 1024]
    #[arg(long, value_name = "N")]
    length: Option<usize>,

    #[command(flatten)]
    device: DeviceArgs,

    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

const AFTER: &str = "\
A model whose tensors do not fit its configuration is described as far as it can be, and the exit code is 4.

Examples:
  lacuna inspect
  lacuna inspect diffusionfamily/diffugpt-s --tensors
  lacuna inspect ./my-model --check --json";

/// Everything that `inspect` says.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    path: Option<PathBuf>,
    checkpoint: PathBuf,
    config: ModelConfig,
    /// Numbers in all parameters; a tied head counts once.
    parameters: Option<u64>,
    scheme: Option<String>,
    /// The head is the embedding matrix.
    tied: Option<bool>,
    dtypes: BTreeMap<&'static str, DtypeReport>,
    tokenizer_tokens: Option<usize>,
    special: SpecialIds,
    mask_is_dedicated: bool,
    shift: bool,
    add_bos: bool,
    memory: Option<Memory>,
    /// `true` after `--check`.
    checked_finite: bool,
    notes: Vec<String>,
    /// Why the model cannot be run.
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorReport>>,
}

#[derive(Debug, Default, Serialize)]
struct DtypeReport {
    tensors: usize,
    numbers: u64,
    bytes: u64,
}

/// Bytes to run the model.
#[derive(Debug, Serialize)]
struct Memory {
    /// Weights used in place, in the file map; the system can drop and read them again.
    mapped_bytes: u64,
    /// Weights copied at loading.
    copied_bytes: u64,
    /// Activations, logits and canvases for `batch` sequences of `length` tokens, every row of which is wanted.
    activation_bytes: u64,
    total_bytes: u64,
    batch: usize,
    length: usize,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    /// The parameter it is.
    parameter: Option<String>,
    /// Why it is not used.
    unused: Option<String>,
}

/// Runs `inspect`.
///
/// # Errors
/// Those of [`ModelFiles::find`] and [`layout`]; [`Error::NonFinite`] with `--check`;
/// [`Error::Request`] for a batch or a length that cannot be.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let files = ModelFiles::find(args.target.as_deref().or(args.model.as_deref()))?;
    let machine = cpu(&args.device)?;
    let (report, outcome) = report(&files, machine, &args)?;
    if args.json {
        println(&serde_json::to_string(&report).map_err(Error::request)?)?;
        context.set_reported(true);
    } else {
        print(&printable(&text(&report, &files)))?;
    }
    outcome
}

/// What is known of `files`, and whether the model can be run.
fn report(files: &ModelFiles, machine: Cpu<f32>, args: &Args) -> Result<(Report, Result<()>)> {
    let config = &files.config;
    let length = args.length.unwrap_or(config.max_positions.min(1024));
    if args.batch == 0 || length == 0 || length > config.max_positions {
        return Err(Error::request(format_args!(
            "--batch {} --length {length}: expected at least 1 each, and at most {} tokens (the context)",
            args.batch, config.max_positions
        )));
    }
    let mapping = layout(config, &files.checkpoint);
    let (found, outcome, memory) = match mapping {
        Ok(found) => match memory(files, found.parameters, machine, args, length) {
            Ok(memory) => (Some(found), Ok(()), Some(memory)),
            Err(e) => (Some(found), Err(e), None),
        },
        Err(e) => (None, Err(e), None),
    };
    let mut notes = files.notes.clone();
    notes.extend(unused_note(&files.checkpoint, found.as_ref()));
    let report = Report {
        name: files.name.clone(),
        path: files.path.clone(),
        checkpoint: files.checkpoint.path().to_path_buf(),
        config: config.clone(),
        parameters: found.as_ref().map(|l| l.parameters),
        scheme: found.as_ref().map(|l| l.scheme.to_string()),
        tied: found.as_ref().map(|l| l.tied),
        dtypes: dtypes(&files.checkpoint),
        tokenizer_tokens: files.tokenizer.as_ref().map(|t| t.vocab_size()),
        special: files.special.clone(),
        mask_is_dedicated: files.mask_is_dedicated,
        shift: files.shift,
        add_bos: files.add_bos,
        memory,
        checked_finite: args.check && outcome.is_ok(),
        notes,
        problem: outcome.as_ref().err().map(Error::to_string),
        tensors: args.tensors.then(|| tensors(&files.checkpoint, found.as_ref())),
    };
    Ok((report, outcome))
}

/// What a run takes. On the CPU the weights are loaded, which counts the bytes that had to be copied; for a card, which need not
/// be there, it is the plan.
fn memory(
    files: &ModelFiles,
    parameters: u64,
    machine: Cpu<f32>,
    args: &Args,
    length: usize,
) -> Result<Memory> {
    let model = Model::load(machine, files, LoadOptions { check_finite: args.check })?;
    let tokens = args.batch.checked_mul(length).ok_or_else(|| {
        Error::request(format_args!("--batch {} --length {length}: too many tokens", args.batch))
    })?;
    let limits = Limits { sequences: args.batch, tokens };
    let plan = match dtype_of_card(&args.device)? {
        Some(dtype) => MemoryPlan::on_card(&files.config, parameters, dtype, limits),
        None => MemoryPlan::new(&model, limits),
    };
    let bytes = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Ok(Memory {
        mapped_bytes: bytes(plan.mapped),
        copied_bytes: bytes(plan.weights),
        activation_bytes: bytes(plan.of_generating()),
        total_bytes: bytes(plan.mapped + plan.total()),
        batch: args.batch,
        length,
    })
}

fn dtypes(checkpoint: &Checkpoint) -> BTreeMap<&'static str, DtypeReport> {
    let mut all: BTreeMap<_, DtypeReport> = BTreeMap::new();
    for (_, tensor) in checkpoint.iter() {
        let entry = all.entry(tensor.dtype().name()).or_default();
        entry.tensors += 1;
        entry.numbers += tensor.len() as u64;
        entry.bytes += tensor.bytes().len() as u64;
    }
    all
}

fn tensors(checkpoint: &Checkpoint, layout: Option<&Layout>) -> Vec<TensorReport> {
    let used: BTreeMap<&str, &str> = layout
        .map(|l| l.entries.iter().map(|e| (e.tensor.as_str(), e.parameter.as_str())).collect())
        .unwrap_or_default();
    let ignored: BTreeMap<&str, &str> =
        layout.map(|l| l.ignored.iter().map(|(n, why)| (n.as_str(), *why)).collect()).unwrap_or_default();
    let weights = checkpoint.iter().map(|(name, tensor)| TensorReport {
        name: name.to_owned(),
        dtype: tensor.dtype().name().to_owned(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().len() as u64,
        parameter: used.get(name).map(|p| (*p).to_owned()),
        unused: ignored.get(name).map(|why| (*why).to_owned()),
    });
    let others = checkpoint.others().map(|(name, tensor)| TensorReport {
        name: name.to_owned(),
        dtype: tensor.dtype.to_ascii_lowercase(),
        shape: tensor.shape.clone(),
        bytes: tensor.bytes,
        parameter: None,
        unused: Some("not a format of weights".into()),
    });
    weights.chain(others).collect()
}

/// Tensors that lie in the file and are not needed.
fn unused_note(checkpoint: &Checkpoint, layout: Option<&Layout>) -> Option<String> {
    let layout = layout?;
    let weights = layout.ignored.iter().filter_map(|(name, _)| checkpoint.get(name));
    let bytes = weights.map(|t| t.bytes().len() as u64).sum::<u64>()
        + checkpoint.others().map(|(_, t)| t.bytes).sum::<u64>();
    let count = layout.ignored.len() + checkpoint.others().count();
    (count > 0)
        .then(|| format!("{count} tensors ({}) are not needed (--tensors says why)", HumanBytes(bytes)))
}

/// The report for people: a fact a line.
fn text(report: &Report, files: &ModelFiles) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut fact = |what: &str, value: String| {
        let _ = writeln!(out, "{what:<13} {value}");
    };
    let place = report.path.as_ref().map_or("(bundled)".to_owned(), |p| p.display().to_string());
    fact("model", format!("{}  {place}", report.name));
    fact("architecture", architecture(&report.config));
    fact("context", format!("{} positions", report.config.max_positions));
    let tokens = match report.tokenizer_tokens {
        Some(n) => format!("tokenizer of {n} tokens"),
        None => "no tokenizer".into(),
    };
    fact("vocabulary", format!("{}, {tokens}", report.config.vocab_size));
    if let Some(parameters) = report.parameters {
        let head = match report.tied {
            Some(true) => "head tied to the embedding",
            _ => "head of its own",
        };
        fact("parameters", format!("{}, {head}", HumanCount(parameters)));
    }
    let dtypes: Vec<String> = report
        .dtypes
        .iter()
        .map(|(name, d)| format!("{name}: {} tensors, {}", d.tensors, HumanBytes(d.bytes)))
        .collect();
    fact("weights", if dtypes.is_empty() { "none".into() } else { dtypes.join("; ") });
    if let Some(scheme) = &report.scheme {
        fact("names", scheme.clone());
    }
    let special = &report.special;
    let kinds = [
        ("mask", &special.mask),
        ("bos", &special.bos),
        ("eos", &special.eos),
        ("sep", &special.sep),
        ("pad", &special.pad),
    ];
    for (kind, id) in kinds {
        fact(kind, special_id(id.as_ref(), files, kind == "mask"));
    }
    let shift = if report.shift { "row i predicts position i + 1" } else { "row i predicts position i" };
    fact("logits", shift.into());
    if let Some(m) = &report.memory {
        fact(
            "memory",
            format!(
                "{} for {} x {} tokens: {} mapped, {} copied, {} activations",
                HumanBytes(m.total_bytes),
                m.batch,
                m.length,
                HumanBytes(m.mapped_bytes),
                HumanBytes(m.copied_bytes),
                HumanBytes(m.activation_bytes)
            ),
        );
    }
    if report.checked_finite {
        fact("checked", "every weight is finite".into());
    }
    for note in &report.notes {
        fact("note", note.clone());
    }
    if let Some(tensors) = &report.tensors {
        out.push('\n');
        table(&mut out, tensors);
    }
    out
}

fn special_id(id: Option<&SpecialId>, files: &ModelFiles, mask: bool) -> String {
    let Some(id) = id else { return "none".into() };
    let piece = files.tokenizer.as_ref().map(|t| format!(" {:?}", t.piece(id.id))).unwrap_or_default();
    let kind = match (mask, files.mask_is_dedicated) {
        (false, _) => "",
        (true, true) => ", a token of its own",
        (true, false) => ", an ordinary word that doubles as the mask",
    };
    format!("{}{piece}  from {}{kind}", id.id, id.source)
}

fn architecture(c: &ModelConfig) -> String {
    let family = match c.family {
        Family::Gpt2 => "GPT-2",
        Family::Llama => "LLaMA",
    };
    let heads = if c.kv_heads == c.heads {
        format!("{} heads of {}", c.heads, c.head_dim)
    } else {
        format!("{} heads of {} over {} key/value heads", c.heads, c.head_dim, c.kv_heads)
    };
    let activation = match c.activation {
        Activation::GeluTanh => "GELU (tanh)",
        Activation::GeluErf => "GELU (erf)",
        Activation::Silu if c.family == Family::Llama => "SwiGLU",
        Activation::Silu => "SiLU",
    };
    let norm = match c.norm {
        NormKind::LayerNorm => "LayerNorm",
        NormKind::RmsNorm => "RMSNorm",
    };
    let positions = match &c.rope {
        None => "learned positions".to_owned(),
        Some(rope) => {
            let scaling = match rope.scaling {
                RopeScaling::None => String::new(),
                RopeScaling::Linear { factor } => format!(", linear scaling {factor}"),
                RopeScaling::Llama3 { factor, .. } => format!(", llama3 scaling {factor}"),
            };
            format!("rotary positions (theta {}{scaling})", rope.theta)
        }
    };
    format!(
        "{family}: {} layers, width {}, {heads}, MLP {} {activation}, {norm} {:e}, {positions}",
        c.layers, c.width, c.mlp_width, c.norm_eps
    )
}

fn table(out: &mut String, tensors: &[TensorReport]) {
    let shape = |t: &TensorReport| format!("{:?}", t.shape);
    let width = |f: &dyn Fn(&TensorReport) -> usize| tensors.iter().map(f).max().unwrap_or(0);
    let (names, dtypes, shapes) =
        (width(&|t| t.name.len()), width(&|t| t.dtype.len()), width(&|t| shape(t).len()));
    for t in tensors {
        let role = match (&t.parameter, &t.unused) {
            (Some(parameter), _) => parameter.clone(),
            (None, Some(why)) => format!("not used: {why}"),
            (None, None) => "?".into(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<names$}  {:<dtypes$}  {:<shapes$}  {:>12}  {role}",
            t.name,
            t.dtype,
            shape(t),
            HumanCount(t.bytes).to_string()
        );
    }
}
