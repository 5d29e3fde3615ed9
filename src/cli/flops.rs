//! `lacuna flops`: floating-point operations by operation, and what the engine does not do of those of the paper's loop.

use std::fmt::Write as _;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::terminal::print;
use crate::config::ModelConfig;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::NetworkShape;
use crate::profile::flops::{Attention, ByOp, Decoding, DecodingOrder, Op, TrainingStep, Work};

/// Count the arithmetic of a generation or a training step, by operation.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A folder (its config.json is enough), or a Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL", help_heading = "Model")]
    model: Option<String>,
    /// The shape of diffugpt-s, diffugpt-m, diffullama-7b, smollm2-135m, or of a config.json
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "model", help_heading = "Model")]
    shape: Option<NetworkShape>,
    /// Format of the weights, for the bytes read: f32, f16 or bf16
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = dtype, help_heading = "Model")]
    dtype: Dtype,
    /// Sequences at a time
    #[arg(long, short, value_name = "N", default_value_t = 1, help_heading = "Work")]
    batch: usize,
    /// Tokens of a sequence [default: 512, or all that the model has]
    #[arg(long, short, value_name = "N", help_heading = "Work")]
    length: Option<usize>,
    /// Denoising steps T
    #[arg(long, short = 'T', value_name = "T", default_value_t = 64, help_heading = "Work")]
    steps: usize,
    /// Tokens of a sequence that are given
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Work")]
    prompt: usize,
    /// random, or confidence (as many a step as the linear schedule has)
    #[arg(long, value_name = "NAME", default_value = "random", help_heading = "Work")]
    order: DecodingOrder,
    /// A training step instead
    #[arg(long, conflicts_with_all = ["steps", "prompt", "order"], help_heading = "Training")]
    train: bool,
    /// Share of the tokens that is masked
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, requires = "train", help_heading = "Training")]
    masked: f64,
    /// Rank of adapters that are trained instead of the weights
    #[arg(long, value_name = "N", requires = "train", help_heading = "Training")]
    lora_rank: Option<usize>,
    /// Keep the input of each layer only, and compute its inside again
    #[arg(long, requires = "train", help_heading = "Training")]
    recompute: bool,
    /// One JSON object an operation, and one of the totals
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

const EXAMPLES: &str = "\
Two for a multiply-add of matrix products and attention; norms, activations,
softmax and sampling are left out.

Examples:
  lacuna flops --shape diffugpt-s --length 512 --steps 512
  lacuna flops --shape diffullama-7b --batch 8 --length 256 --steps 64 --order confidence --dtype bf16
  lacuna flops --shape diffugpt-m --train --batch 8 --length 512 --lora-rank 8";

fn dtype(text: &str) -> Result<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| Error::request(format!("{text}: expected f32, f16 or bf16")))
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for work that the model cannot do; those of [`ModelFiles::find_shape`].
pub fn run(args: &Args) -> Result<()> {
    let (name, config) = match &args.shape {
        Some(shape) => (shape.to_string(), shape.config.clone()),
        None => {
            let files = ModelFiles::find_shape(args.model.as_deref())?;
            (files.name, files.config)
        }
    };
    let length = args.length.unwrap_or(512.min(config.max_positions));
    print(&if args.train {
        train(args, &name, &config, length)?
    } else {
        decode(args, &name, &config, length)?
    })
}

/// Operations of one order as columns of numbers, each as wide as the widest.
struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    fn new(heads: &[&str]) -> Self {
        Self { lines: vec![heads.iter().map(|&head| head.to_owned()).collect()] }
    }

    fn text(&self) -> String {
        let columns = self.lines.first().map_or(0, Vec::len);
        let width = |i: usize| self.lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
        let mut out = String::new();
        for line in &self.lines {
            for (i, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let _ = if i == 0 { write!(out, "{cell:<width$}") } else { write!(out, "  {cell:>width$}") };
            }
            out.push('\n');
        }
        out
    }
}

fn giga(x: f64) -> String {
    match x / 1e9 {
        0.0 => "0".to_owned(),
        x if x < 100.0 => format!("{x:.3}"),
        x => format!("{x:.1}"),
    }
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1}%", 100.0 * part / whole) } else { "-".to_owned() }
}

/// What part of `before` is not done; null where there was nothing to do.
fn saved(before: f64, after: f64) -> Option<f64> {
    (before > 0.0).then(|| 1.0 - after / before)
}

fn ratio(before: f64, after: f64) -> Option<f64> {
    (after > 0.0).then(|| before / after)
}

/// Operations that occur in what `all` counts.
fn occurring(all: &[&ByOp]) -> Vec<Op> {
    Op::ALL.into_iter().filter(|&op| op == Op::Embedding || all.iter().any(|x| x.of(op) > 0.0)).collect()
}

fn decode(args: &Args, name: &str, config: &ModelConfig, length: usize) -> Result<String> {
    let order = args.order;
    let work = Decoding { batch: args.batch, length, fixed: args.prompt, steps: args.steps, order };
    work.check(config)?;
    let (reference, planned) = (work.reference(config), work.planned(config));
    let bytes = |weights: &ByOp| weights.times(args.dtype.size() as f64);
    let (reference_bytes, planned_bytes) = (bytes(&reference.weights), bytes(&planned.weights));
    let ops = occurring(&[&reference.flops]);
    let total = planned.flops.total();
    if args.json {
        let common = json!({
            "schema": 1, "account": "generate", "model": name, "batch": args.batch, "length": length, "steps": args.steps,
            "prompt": args.prompt, "order": order.name(), "dtype": args.dtype.name(),
        });
        let numbers = |reference: f64, planned: f64, before: f64, after: f64| {
            json!({
                "reference_flops": reference, "flops": planned, "share": planned / total,
                "saved": saved(reference, planned), "reference_bytes": before, "bytes": after,
            })
        };
        let mut lines = Vec::new();
        for op in ops {
            let of = |x: &ByOp| x.of(op);
            let (before, after) = (of(&reference_bytes), of(&planned_bytes));
            let line = numbers(of(&reference.flops), of(&planned.flops), before, after);
            lines.push(joined([&common, &json!({"op": op.name()}), &line]));
        }
        let (before, after) = (reference.flops.total(), total);
        let totals = json!({
            "op": "total", "reference_nfe": reference.nfe, "nfe": planned.nfe, "reference_passes": reference.passes,
            "passes": planned.passes, "ratio": ratio(before, after),
            "bytes_ratio": ratio(reference_bytes.total(), planned_bytes.total()),
        });
        let line = numbers(before, after, reference_bytes.total(), planned_bytes.total());
        lines.push(joined([&common, &totals, &line]));
        return Ok(lines.concat());
    }
    let mut out = format!(
        "{name}, {} x {length} tokens, {} of each to be filled, T = {}, {} order\n\n",
        args.batch,
        work.free(),
        args.steps,
        order.name()
    );
    let mut table = Table::new(&["", "paper's loop", "lacuna", "share", "saved"]);
    let units = ["operation", "GFLOP", "GFLOP", "", ""].map(str::to_owned);
    table.lines.push(units.to_vec());
    let mut line = |name: &str, before: f64, after: f64| {
        let saved = percent(before - after, before);
        table.lines.push(vec![name.to_owned(), giga(before), giga(after), percent(after, total), saved]);
    };
    for op in ops {
        line(op.name(), reference.flops.of(op), planned.flops.of(op));
    }
    line("total", reference.flops.total(), total);
    out += &table.text();
    let [flops, bytes] = [(reference.flops.total(), total), (reference_bytes.total(), planned_bytes.total())]
        .map(|(before, after)| ratio(before, after).map_or("-".to_owned(), |r| format!("{r:.2}")));
    let Work { nfe, passes, .. } = planned;
    let expected = if order == DecodingOrder::Random { " (expected)" } else { "" };
    let _ = writeln!(
        out,
        "\nForward passes a sequence: {nfe:.2}{expected} in place of {}. Operations: 1/{flops} of the paper's loop.",
        args.steps
    );
    let _ = writeln!(
        out,
        "Weights read, {}: {} GB in {passes:.2} passes, in place of {} GB: 1/{bytes}.",
        args.dtype.name(),
        giga(planned_bytes.total()),
        giga(reference_bytes.total())
    );
    Ok(out)
}

fn train(args: &Args, name: &str, config: &ModelConfig, length: usize) -> Result<String> {
    if !(0.0..=1.0).contains(&args.masked) {
        return Err(Error::request(format!("--masked {}: expected a share, 0 to 1", args.masked)));
    }
    let scored = (args.masked * length as f64).round() as usize;
    let step = TrainingStep {
        batch: args.batch,
        length,
        scored,
        attention: Attention::Full,
        lora_rank: args.lora_rank,
        recompute: args.recompute,
    };
    step.check(config)?;
    let work = step.work(config);
    // The reference trainer, and an autoregressive one, score every row.
    let everything = TrainingStep { scored: length, ..step };
    let reference = everything.work(config);
    let causal = TrainingStep { attention: Attention::Causal, ..everything }.work(config);
    let (needed, all) = (work.needed().total(), reference.needed().total());
    let half = causal.needed().total();
    let ops = occurring(&[&reference.forward, &work.forward]);
    if args.json {
        let common = json!({
            "schema": 1, "account": "train", "model": name, "batch": args.batch, "length": length, "masked": args.batch as f64 * scored as f64,
            "lora_rank": args.lora_rank, "recompute": args.recompute,
        });
        let numbers = |of: &dyn Fn(&ByOp) -> f64| {
            let (flops, before) = (of(&work.needed()), of(&reference.needed()));
            json!({
                "forward": of(&work.forward), "d_input": of(&work.d_input), "d_weight": of(&work.d_weight), "flops": flops,
                "recomputed": of(&work.recomputed), "share": flops / needed, "reference_flops": before, "saved": saved(before, flops),
            })
        };
        let mut lines: Vec<String> = ops
            .into_iter()
            .map(|op| joined([&common, &json!({"op": op.name()}), &numbers(&|x| x.of(op))]))
            .collect();
        let totals = json!({
            "op": "total", "reference_over_ar": ratio(all, all), "reference_over_ar_causal": ratio(all, half),
            "over_ar": ratio(needed, all), "over_ar_causal": ratio(needed, half),
        });
        lines.push(joined([&common, &totals, &numbers(&ByOp::total)]));
        return Ok(lines.concat());
    }
    let mut out = format!(
        "{name}, a training step of {} x {length} tokens, {scored} of each masked{}\n\n",
        args.batch,
        args.lora_rank.map_or(String::new(), |rank| format!(", adapters of rank {rank}"))
    );
    let heads = ["", "forward", "dX", "dW", "sum", "share", "all rows scored", "saved", "again"];
    let mut table = Table::new(&heads);
    let units = ["operation", "GFLOP", "GFLOP", "GFLOP", "GFLOP", "", "GFLOP", "", "GFLOP"];
    table.lines.push(units.map(str::to_owned).to_vec());
    let mut line = |name: &str, of: &dyn Fn(&ByOp) -> f64| {
        let (sum, before) = (of(&work.needed()), of(&reference.needed()));
        table.lines.push(vec![
            name.to_owned(),
            giga(of(&work.forward)),
            giga(of(&work.d_input)),
            giga(of(&work.d_weight)),
            giga(sum),
            percent(sum, needed),
            giga(before),
            percent(before - sum, before),
            giga(of(&work.recomputed)),
        ]);
    };
    for op in ops {
        line(op.name(), &|x| x.of(op));
    }
    line("total", &ByOp::total);
    out += &table.text();
    let _ = writeln!(
        out,
        "\n\"again\" is computed a second time on the way back (the scores, by flash attention{}) and is in no sum.",
        if args.recompute { "; blocks, by --recompute" } else { "" }
    );
    let over = |x: f64, y: f64| ratio(x, y).map_or("-".to_owned(), |r| format!("{r:.4}"));
    let _ = writeln!(
        out,
        "Over an autoregressive step on as many tokens: all rows scored {}, as here {} (causal attention counted in full);\n\
         {} and {} where only the pairs that causal attention sees count.",
        over(all, all),
        over(needed, all),
        over(all, half),
        over(needed, half)
    );
    Ok(out)
}

/// One line of JSON with the fields of several objects.
fn joined<const N: usize>(parts: [&Value; N]) -> String {
    let fields = parts.into_iter().filter_map(Value::as_object).flatten();
    let line: serde_json::Map<String, Value> = fields.map(|(k, v)| (k.clone(), v.clone())).collect();
    format!("{}\n", Value::Object(line))
}
