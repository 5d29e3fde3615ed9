//! What benches have in common: the model that is measured, the machine's memory, and what a pass must move.

use std::time::Instant;

use clap::Args as ClapArgs;

use super::super::Context;
use super::super::args::DeviceArgs;
use super::super::device;
use super::super::engine::Engine;
use super::line::{Kind, Line, Machine};
use super::output::{OutputArgs, Sheet};
use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::{NetworkShape, parameters_of};
use crate::sample::Limits;

/// Whose weights are measured.
#[derive(Debug, ClapArgs)]
pub struct WeightsArgs {
    /// A folder, a safetensors file, or a Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL", help_heading = "Model")]
    pub model: Option<String>,
    /// Made-up weights in the shape of diffugpt-s, diffugpt-m, diffullama-7b, smollm2-135m, or of a config.json
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "model", help_heading = "Model")]
    pub shape: Option<NetworkShape>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A model on a machine, ready to be measured.
pub struct Subject {
    pub name: String,
    pub shape: Option<String>,
    pub engine: Box<dyn Engine>,
    /// The token that opens a canvas.
    pub first: u32,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// Seconds that loading took.
    pub load_s: f64,
    pub machine: Machine,
}

impl Subject {
    /// Loads it.
    ///
    /// # Errors
    /// Those of loading; [`Error::Memory`] for made-up weights that main memory has no room for.
    pub fn load(args: &WeightsArgs, seed: u64, context: &Context) -> Result<Self> {
        device::check(&args.device)?;
        let start = Instant::now();
        let (name, engine, first, eos) = match &args.shape {
            Some(shape) => {
                if device::threads(&args.device)?.is_some() {
                    // As the CPU holds them.
                    room_for_weights(&shape.to_string(), &shape.config, 2)?;
                }
                let engine = device::synthetic(&args.device, shape, seed, context)?;
                (shape.to_string(), engine, 0, Some(shape.eos))
            }
            None => {
                let files = ModelFiles::find(args.model.as_deref())?;
                let first = files.special.bos.as_ref().map_or(0, |id| id.id);
                let eos = files.special.eos.as_ref().map(|id| id.id);
                (files.name.clone(), device::load(&args.device, &files, context)?, first, eos)
            }
        };
        let load_s = start.elapsed().as_secs_f64();
        let machine = Machine {
            device: engine.device().to_owned(),
            dtype: engine.dtype().to_string(),
            threads: device::threads(&args.device)?,
            gemm: engine.gemm().to_owned(),
            ceilings: None,
        };
        let shape = args.shape.as_ref().map(|s| s.name.clone());
        Ok(Self { name, shape, engine, first, eos, load_s, machine })
    }

    /// Measures the machine's ceilings if they are wanted; from now on there is something to keep.
    ///
    /// # Errors
    /// Those of [`Engine::ceilings`] and [`Sheet::add`].
    pub fn begin(&mut self, output: &OutputArgs, sheet: &mut Sheet<'_>) -> Result<()> {
        if !output.no_ceilings {
            self.machine.ceilings = Some(self.engine.ceilings()?);
        }
        sheet.context.interrupt.hold();
        sheet.ceilings(&self.machine)
    }

    /// A line that says what is measured.
    pub fn line(&self, kind: Kind, name: &str) -> Line {
        let mut line = Line::new(kind, name, &self.machine);
        line.set("model", self.name.as_str())
            .set("shape", self.shape.clone())
            .set("parameters", self.engine.memory().parameters)
            .set("load_s", self.load_s);
        line
    }

    /// Whether a canvas can have `length` positions.
    ///
    /// # Errors
    /// [`Error::Request`] when it cannot.
    pub fn check_length(&self, length: usize) -> Result<()> {
        let most = self.engine.config().max_positions;
        if (2..=most).contains(&length) {
            return Ok(());
        }
        Err(Error::request(format!("--length {length}: expected 2 to {most} (the positions of the model)")))
    }

    /// Room for `batch` canvases of `length` at a time.
    ///
    /// # Errors
    /// [`Error::Memory`] with a batch that would fit; [`Error::Request`] for numbers that cannot be counted.
    pub fn limits(&self, batch: usize, length: usize, left_to_right: bool) -> Result<Limits> {
        let at = |sequences: usize| {
            let tokens = sequences.checked_mul(length).filter(|&n| u32::try_from(n).is_ok());
            tokens.map(|tokens| Limits { sequences, tokens })
        };
        let Some(limits) = at(batch) else {
            return Err(Error::request(format!(
                "--batch {batch} of --length {length}: expected fewer than 2^32 tokens together; lower --batch"
            )));
        };
        let Some(room) = self.engine.free_memory().or_else(available_memory) else { return Ok(limits) };
        let needs = |limits| self.engine.needs(limits, left_to_right);
        if needs(limits) <= u128::from(room) {
            return Ok(limits);
        }
        let (mut fits, mut too_large) = (0, batch);
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            if at(middle).is_some_and(|l| needs(l) <= u128::from(room)) {
                fits = middle
            } else {
                too_large = middle
            }
        }
        Err(Error::Memory {
            what: format!("{batch} canvases of {length} tokens at a time"),
            needed: needs(limits),
            limit: format!("and {room} are free beside the weights"),
            hint: match fits {
                0 => "not one of that length fits: lower --length, or use a smaller model".into(),
                _ => format!("--batch {fits} would fit"),
            },
        })
    }

    /// Bytes of a number of a weight, on average.
    pub fn weight_bytes(&self) -> f64 {
        let memory = self.engine.memory();
        (memory.mapped_bytes + memory.copied_bytes) as f64 / (memory.parameters as f64).max(1.0)
    }

    /// Bytes of the weights and of whatever else was taken of a card since `free` were free; `None` on the CPU.
    pub fn device_bytes(&self, free: Option<u64>) -> Option<u64> {
        let taken = free?.saturating_sub(self.engine.free_memory()?);
        Some(self.engine.memory().copied_bytes + taken)
    }
}

/// Whether main memory has room for weights of `size` bytes a number.
///
/// # Errors
/// [`Error::Memory`] when it has not.
pub fn room_for_weights(name: &str, config: &ModelConfig, size: usize) -> Result<()> {
    let entries = parameters_of(config);
    let numbers = entries.iter().map(|e| e.shape.iter().map(|&d| d as u128).product::<u128>());
    let needed = numbers.sum::<u128>() * size as u128;
    match available_memory() {
        Some(room) if needed > u128::from(room) => Err(Error::Memory {
            what: format!("{name}: made-up weights"),
            needed,
            limit: format!("and {room} are available"),
            hint: "use a smaller --shape, or a machine with more memory".into(),
        }),
        _ => Ok(()),
    }
}

/// Bytes of main memory that programs can have without others being swapped out, where the system says so.
pub fn available_memory() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// The most memory that the process had resident since [`forget_peak`], in bytes, where the system says so.
pub fn peak_memory() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// Makes what is resident now the most there was, where the system allows that.
pub fn forget_peak() {
    // Where it does not, the peak is that of the process so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| 1024 * kib)
}

/// A pass over packed tokens, as far as bytes go.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Bytes of a number of a weight.
    pub weight: f64,
    /// Bytes of an activation.
    pub number: f64,
}

impl Traffic {
    /// Bytes of the weights that a pass reads, each once; of the embedding table only what is gathered. With the head if there
    /// are rows for it.
    pub fn weights(self, config: &ModelConfig, head: bool) -> f64 {
        let (c, q, kv, m) = sizes(config);
        let layer = c * (2.0 * q + 2.0 * kv) + mlp_matrices(config) * c * m;
        let head = if head { c * config.vocab_size as f64 } else { 0.0 };
        self.weight * (config.layers as f64 * layer + head)
    }

    /// Bytes of activations that the operations of a pass over `tokens` tokens read and write, `rows` of whose rows leave the last
    /// block and become logits. Estimated: each operation's inputs and outputs once, as if no cache kept them for the next.
    pub fn activations(self, config: &ModelConfig, tokens: f64, rows: f64) -> f64 {
        let (c, q, kv, m) = sizes(config);
        let gated = config.family == Family::Llama;
        // Norm, keys and values; then queries, attention, output onto the stream, norm, MLP onto the stream.
        let shared = 2.0 * c + c + 2.0 * kv + if config.rope.is_some() { 2.0 * kv } else { 0.0 } + 2.0 * kv;
        let mlp = if gated { c + 2.0 * m + 3.0 * m + m } else { c + m + m };
        let own = 2.0 * q
            + if config.rope.is_some() { 2.0 * q } else { 0.0 }
            + 2.0 * q
            + 2.0 * c
            + 2.0 * c
            + mlp
            + 2.0 * c;
        let before = (config.layers as f64 - 1.0).max(0.0) * tokens * (shared + own);
        let last = tokens * shared + rows * own;
        self.number * (2.0 * tokens * c + before + last) + 8.0 * rows * config.vocab_size as f64
    }

    /// Bytes of decoding from left to right ([`flops::autoregressive`](crate::profile::flops::autoregressive)): the weights once a
    /// pass, the keys and values of what stands before.
    pub fn autoregressive(self, config: &ModelConfig, batch: usize, length: usize) -> f64 {
        let passes = (length - 1) as f64;
        let cached = config.layers as f64 * passes * (passes - 1.0) / 2.0 * 2.0 * config.kv_width() as f64;
        let one = self.activations(config, 1.0, 1.0);
        passes * self.weights(config, true) + batch as f64 * (passes * one + cached * self.number)
    }
}

/// Width, width of the queries, of keys, of the MLP.
fn sizes(config: &ModelConfig) -> (f64, f64, f64, f64) {
    (config.width as f64, config.query_width() as f64, config.kv_width() as f64, config.mlp_width as f64)
}

fn mlp_matrices(config: &ModelConfig) -> f64 {
    if config.family == Family::Llama { 3.0 } else { 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SyntheticShape;

    #[test]
    fn weights_of_a_pass_are_the_matrices_without_the_embedding() {
        let traffic = Traffic { weight: 2.0, number: 4.0 };
        for shape in [SyntheticShape::DiffuGptS, SyntheticShape::DiffuLlama7b, SyntheticShape::SmolLm2] {
            let config = shape.config();
            let matrices: usize = parameters_of(&config)
                .iter()
                .filter(|e| e.shape.len() == 2 && e.parameter != "positions" && e.parameter != "embedding")
                .map(|e| e.shape.iter().product::<usize>())
                .sum();
            let tied = if config.tied { config.width * config.vocab_size } else { 0 };
            assert_eq!(traffic.weights(&config, true), 2.0 * (matrices + tied) as f64, "{}", shape.name());
        }
    }

    #[test]
    fn this_system_says_what_memory_it_has() {
        if cfg!(target_os = "linux") {
            forget_peak();
            assert!(available_memory().is_some_and(|n| n > 0) && peak_memory().is_some_and(|n| n > 1 << 20));
        }
    }
}
