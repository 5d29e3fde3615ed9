//! From options to a learner with its data, new or as a checkpoint left it, and the run itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use super::options::{Command, Options, options};
use super::recipe::{Lora, Plan, complete, plan};
use super::show::Show;
use super::{RunArgs, tell};
use crate::backend::{Backend, Backward, Optimise};
use crate::cli::device::{self, Training};
use crate::cli::{Context, terminal};
use crate::config::ModelConfig;
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::io::{Lines, ModelFiles, SpecialId};
use crate::model::{Adapters, Model, add_mask_token, layout, parameters_of};
use crate::train::export::Export;
use crate::train::files::RunFolder;
use crate::train::learner::{Learner, Shape};
use crate::train::trainer::{End, train};
use crate::train::{Example, Examples, LongRule, Packed, PadRule, SftData, SftIds, SftOptions, checkpoint};

/// Everything that a run needs.
struct Ready<B: Optimise + Backward> {
    learner: Learner<B>,
    data: Box<dyn Examples>,
    validation: Vec<Example>,
    plan: Plan,
    export: Export,
    base: String,
}

/// A run on its way to a machine.
struct Run<'a> {
    args: &'a RunArgs,
    options: Options,
    files: ModelFiles,
    from: From,
    context: &'a Context,
}

/// How a run begins.
enum From {
    /// With this configuration to be written.
    Start(String),
    /// Behind the checkpoint of a step.
    Checkpoint(RunFolder, u64, PathBuf),
}

/// Starts a run.
///
/// # Errors
/// Those of [`super::run`]; nothing is written before all options, files and data were looked at.
pub fn start(args: &RunArgs, mut table: Table, context: &Context) -> Result<()> {
    let origin = "options";
    RunFolder::check_new(&args.output)?;
    let first = options(&table, origin)?;
    device::check(&args.device)?;
    let mut files = source(&first)?;
    complete(&mut table, &first, &files)?;
    let settled = options(&table, origin)?;
    if settled.add_mask_token {
        add_mask_token(&mut files)?;
    }
    let text = toml::to_string(&table).map_err(|e| Error::request(format!("the options: {e}")))?;
    let config = format!("# lacuna {} {}\n{text}", env!("CARGO_PKG_VERSION"), first.command.name());
    device::train(&args.device, Run { args, options: settled, files, from: From::Start(config), context })
}

/// Goes on with a run.
///
/// # Errors
/// As [`start`]; [`Error::Request`] for a run without a checkpoint.
pub fn resume(args: &RunArgs, folder: RunFolder, table: Table, context: &Context) -> Result<()> {
    let settled = options(&table, &folder.config().display().to_string())?;
    let Some((step, path)) = folder.latest_checkpoint()? else {
        return Err(Error::request(format!(
            "{}: the run has no checkpoint to go on from; remove the folder and start again, with a smaller --save-every",
            folder.root().display()
        )));
    };
    let files = if settled.lora_rank > 0 {
        let mut files = source(&settled)?;
        if settled.add_mask_token {
            add_mask_token(&mut files)?;
        }
        files
    } else {
        ModelFiles::open(&path)?
    };
    let from = From::Checkpoint(folder, step, path);
    device::train(&args.device, Run { args, options: settled, files, from, context })
}

impl Training for Run<'_> {
    fn run<B: Optimise + Backward + Backend<Elem = f32>>(self, backend: B, device: &str) -> Result<()> {
        let Run { args, options, files, from, context } = self;
        if args.device.verbose {
            tell(args, &format!("computing on {device}"));
        }
        let resumed = matches!(from, From::Checkpoint(..));
        let mut ready = ready(args, &options, files, resumed, backend, context)?;
        if args.device.verbose {
            tell(args, &format!("beside the weights: {}", ready.learner.memory()));
        }
        match from {
            From::Start(config) => {
                let folder = RunFolder::create(&args.output)?;
                folder.write_config(&config)?;
                drive(args, ready, &folder, None, context)
            }
            From::Checkpoint(folder, step, path) => {
                checkpoint::restore(&path, &mut ready.learner)?;
                if ready.learner.step != step {
                    return Err(Error::Config {
                        path: path.join("trainer.json"),
                        field: "step".into(),
                        expected: format!("{step}, as the folder's name says"),
                        got: ready.learner.step.to_string(),
                    });
                }
                tell(args, &format!("going on behind step {step} of {}", ready.plan.pace.steps));
                drive(args, ready, &folder, Some(step), context)
            }
        }
    }
}

/// The model's files that a run starts from.
fn source(options: &Options) -> Result<ModelFiles> {
    let spec = options.model.as_deref();
    if scratch(options) { ModelFiles::find_shape(spec) } else { ModelFiles::find(spec) }
}

fn scratch(options: &Options) -> bool {
    options.command == Command::Pretrain || options.from_scratch
}

fn ready<B: Optimise + Backward>(
    args: &RunArgs,
    options: &Options,
    mut files: ModelFiles,
    resumed: bool,
    backend: B,
    context: &Context,
) -> Result<Ready<B>> {
    if let Some(id) = options.mask_id {
        let vocab = files.config.vocab_size;
        if id as usize >= vocab {
            return Err(Error::request(format!(
                "--mask-id {id}: expected 0 to {}, the ids of {}",
                vocab - 1,
                files.name
            )));
        }
        files.special.mask = Some(SpecialId { id, source: "--mask-id".into() });
    }
    let plan = plan(options, &files, files.special.mask.as_ref().map(|m| m.id))?;
    let (data, validation) = data(options, &files, &plan)?;
    tell(args, &data.describe());
    context.interrupt.check()?;
    let base = options.model.clone().unwrap_or_else(|| files.name.clone());
    let mut model = model(options, &files, &plan, resumed, backend.clone())?;
    let shift = plan.recipe.objective.shift();
    model.set_shift(shift);
    let config = model.config().clone();
    let (adapters, trained) = trained(&model, &config, &plan, &backend)?;
    let export = Export::new(&files, &config, &files.special, shift, plan.weights)?;
    let shape = Shape {
        trained,
        narrow: plan.weights != Dtype::F32 && plan.lora.is_none(),
        length: plan.length,
        checkpoint: plan.recompute,
    };
    // Norms and biases as they stand in the file: a machine may have taken them in rounded. A run from scratch has none.
    let mut exact = if scratch(options) && !resumed { BTreeMap::new() } else { vectors(&files)? };
    // The file map goes before the gradients come.
    drop(files);
    let mut learner = Learner::new(model, adapters, shape, plan.recipe, data.start())?;
    learner.write_parameters(|name| exact.remove(name))?;
    Ok(Ready { learner, data, validation, plan, export, base })
}

/// The parameters of one dimension, in f32.
fn vectors(files: &ModelFiles) -> Result<BTreeMap<String, Vec<f32>>> {
    let entries = layout(&files.config, &files.checkpoint)?.entries;
    let vectors = entries.iter().filter(|e| e.shape.len() == 1);
    vectors.map(|e| Ok((e.parameter.clone(), files.checkpoint.require(&e.tensor)?.to_vec()))).collect()
}

fn model<B: Optimise>(
    options: &Options,
    files: &ModelFiles,
    plan: &Plan,
    resumed: bool,
    backend: B,
) -> Result<Model<B>> {
    // A resumed run from scratch has its weights in the checkpoint.
    if scratch(options) && !resumed {
        let (config, special) = (files.config.clone(), files.special.clone());
        let shift = plan.recipe.objective.shift();
        return Model::untrained(backend, config, special, shift, plan.recipe.seed, plan.weights);
    }
    let lora = plan.lora.as_ref();
    let dtype = |parameter: &str| match lora {
        None => Some(plan.weights),
        Some(lora) => (lora.embedding && parameter == "embedding").then_some(Dtype::F32),
    };
    Model::load_trainable(backend, files, dtype)
}

type Trained<B> = (Option<Adapters<B>>, Vec<(String, usize)>);

fn trained<B: Optimise>(
    model: &Model<B>,
    config: &ModelConfig,
    plan: &Plan,
    backend: &B,
) -> Result<Trained<B>> {
    let entries = parameters_of(config);
    let sized = |parameter: &str| {
        let entry = entries.iter().find(|e| e.parameter == parameter);
        entry.map(|e| (e.parameter.clone(), e.shape.iter().product()))
    };
    let Some(Lora { rank, alpha, targets, embedding }) = &plan.lora else {
        return Ok((None, entries.iter().filter_map(|e| sized(&e.parameter)).collect()));
    };
    let layouts = |linear: &str| model.layout_of(linear);
    let adapters = Adapters::new(backend, &entries, layouts, *rank, *alpha, targets, plan.recipe.seed)?;
    Ok((Some(adapters), if *embedding { sized("embedding").into_iter().collect() } else { Vec::new() }))
}

type Data = (Box<dyn Examples>, Vec<Example>);

fn data(options: &Options, files: &ModelFiles, plan: &Plan) -> Result<Data> {
    if options.data.is_empty() {
        let form =
            if options.command == Command::Sft { "JSON lines" } else { "a file that lacuna pack made" };
        return Err(Error::request(format!("--data FILE is needed: {form}")));
    }
    let seed = plan.recipe.seed;
    let weighted = options.data.iter().map(|text| weighted(text)).collect::<Result<Vec<_>>>()?;
    if options.command == Command::Sft || (options.command == Command::TrainAr && all_lines(&weighted)?) {
        return sft(options, files, plan, &weighted);
    }
    no_pairs(options)?;
    let hash = files.tokenizer.as_ref().map(|t| *t.sha256());
    let vocab = files.config.vocab_size;
    let packed = Packed::open(&weighted, plan.length, seed)?;
    packed.check(vocab, hash.as_ref())?;
    let mut validation = Vec::new();
    if let Some(path) = &options.validation {
        let held_out = Packed::open(&[(path.clone(), 1.0)], plan.length, seed)?;
        held_out.check(vocab, hash.as_ref())?;
        validation = held_out.validation(plan.validation_sequences);
    }
    Ok((Box::new(packed), validation))
}

/// Refuses options of prompts with answers, which token files have none of. The defaults of --pad and --too-long are in every
/// run's table and say nothing.
fn no_pairs(options: &Options) -> Result<()> {
    let told = [
        ("prompt-field", options.prompt_field.as_deref()),
        ("answer-field", options.answer_field.as_deref()),
        ("pad", Some(options.pad.as_str()).filter(|rule| *rule != "eos")),
        ("too-long", Some(options.too_long.as_str()).filter(|rule| *rule != "error")),
    ];
    match told.into_iter().find_map(|(flag, value)| Some((flag, value?))) {
        Some((flag, value)) => Err(Error::request(format!(
            "--{flag} {value}: it is for prompts with answers (.jsonl), and --data has token files; leave it out"
        ))),
        None => Ok(()),
    }
}

/// Whether all of the data are JSON lines, by their names.
fn all_lines(data: &[(PathBuf, f64)]) -> Result<bool> {
    let paths = data.iter().map(|(path, _)| path.as_path());
    let (yes, no): (Vec<&Path>, Vec<&Path>) = paths.partition(|path| Lines::are_objects(path));
    match (yes.first(), no.first()) {
        (Some(a), Some(b)) => Err(Error::request(format!(
            "--data: expected token files or JSON lines, got both: {} and {}",
            b.display(),
            a.display()
        ))),
        (yes, _) => Ok(yes.is_some()),
    }
}

fn sft(options: &Options, files: &ModelFiles, plan: &Plan, weighted: &[(PathBuf, f64)]) -> Result<Data> {
    if let Some((path, weight)) = weighted.iter().find(|(_, weight)| *weight != 1.0) {
        return Err(Error::request(format!(
            "--data {}={weight}: lines of prompts and answers have no weights; leave it out",
            path.display()
        )));
    }
    let tokenizer = files.tokenizer.as_ref().ok_or_else(|| {
        Error::Tokenizer(format!(
            "{} has no tokenizer.json, and prompts are text; put the file there",
            files.name
        ))
    })?;
    let ids = SftIds::of(&files.special)?;
    let mut how = SftOptions::new(plan.length, plan.recipe.seed);
    if let Some(field) = &options.prompt_field {
        how.prompt = vec![field.clone()];
    }
    if let Some(field) = &options.answer_field {
        how.answer = vec![field.clone()];
    }
    how.pad = match options.pad.as_str() {
        "eos" => PadRule::Eos { to_length: plan.length },
        "none" => PadRule::None,
        other => return Err(Error::request(format!("--pad {other}: expected eos or none"))),
    };
    how.long = match options.too_long.as_str() {
        "error" => LongRule::Error,
        "skip" => LongRule::Skip,
        "truncate" => LongRule::TruncatePrompt,
        other => return Err(Error::request(format!("--too-long {other}: expected error, skip or truncate"))),
    };
    let paths: Vec<PathBuf> = weighted.iter().map(|(path, _)| path.clone()).collect();
    let data = SftData::open(&paths, tokenizer, ids, how.clone())?;
    let mut validation = Vec::new();
    if let Some(path) = &options.validation {
        let held_out = SftData::open(std::slice::from_ref(path), tokenizer, ids, how)?;
        validation = held_out.validation(plan.validation_sequences);
    }
    Ok((Box::new(data), validation))
}

/// `FILE`, or `FILE=WEIGHT` where FILE=WEIGHT is no file itself.
fn weighted(text: &str) -> Result<(PathBuf, f64)> {
    let whole = (PathBuf::from(text), 1.0);
    let Some((path, weight)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok(whole);
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight > 0.0 && weight.is_finite() => Ok((PathBuf::from(path), weight)),
        _ => Err(Error::request(format!(
            "--data {text}: expected FILE=WEIGHT with a weight above 0, got {weight}"
        ))),
    }
}

/// Trains, and says what came of it.
fn drive<B: Optimise + Backward>(
    args: &RunArgs,
    ready: Ready<B>,
    folder: &RunFolder,
    resumed: Option<u64>,
    context: &Context,
) -> Result<()> {
    let Ready { mut learner, data, validation, plan, export, base } = ready;
    // From here on there is something to keep.
    context.interrupt.hold();
    let adapter = plan.lora.as_ref().map(|lora| (base, lora.embedding));
    let mut show = Show::new(args, folder, &export, &plan, adapter, resumed, context)?;
    let end = train(&mut learner, &*data, &validation, plan.validation_draws, plan.pace, &mut show);
    let summary = show.finish(&learner);
    let end = end?;
    if args.json {
        terminal::println(&summary.json().to_string())?;
    }
    tell(args, &summary.text(end == End::Stopped));
    if end == End::Stopped {
        return Err(Error::Cancelled);
    }
    Ok(())
}
