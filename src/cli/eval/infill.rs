//! `lacuna eval infill`: the middle of a story, or of a program.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Map, Value, json};

use super::args::ExamArgs;
use super::completions::Completions;
use super::generated::{Exam, Manner, Sampled};
use super::prompts::{Form, Prompts, fingerprint_of, left_out};
use super::results::About;
use super::task::{Answer, Metric, Setting, Task};
use super::{Taking, completions, finish, harness, take};
use crate::cli::Context;
use crate::cli::interrupt::Interrupt;
use crate::cli::journal::{Journal, fingerprint};
use crate::cli::sampling::DEFAULT_STEPS;
use crate::cli::terminal::note;
use crate::error::{Error, Result};
use crate::eval::formats::{limit, stories};
use crate::eval::human_eval::{self, Problem};
use crate::eval::sandbox::{Limits, Outcome, Sandbox};
use crate::eval::text::RougeScorer;
use crate::io::{AtomicFile, ModelFiles};
use crate::sample::{Canvas, Part};

const EXAMPLES: &str = "\
--format stories: ROCStories (the cloze test's .csv, or JSON lines with five
\"sentences\"); the third is filled in and compared by ROUGE. --format humaneval: the
files of HumanEval infilling (single-line, multi-line, random-span); with --output the
completions are written as completions-*.jsonl in the benchmark's own form.

--execute runs the benchmark's tests on what the model wrote: programs that nobody has
read. Each runs in a process of its own, without network or further processes, under
limits of time and memory (Linux only). It is off by default.

The gap has as many tokens as the right middle, unless --length says otherwise.

Examples:
  lacuna eval infill --format stories --data cloze.csv --model DIR
  lacuna eval infill --format humaneval --data HumanEval-SingleLineInfilling.jsonl.gz \\
      --model DIR --limit 100 -o out --execute
  lacuna eval infill --format humaneval --data tasks.jsonl --completions mine.jsonl --execute";

/// What is infilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Stories,
    #[value(name = "humaneval")]
    HumanEval,
}

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Stories or programs
    #[arg(long, value_name = "FILE", help_heading = "What")]
    data: PathBuf,

    /// What they are: stories or humaneval
    #[arg(long, value_enum, value_name = "NAME", hide_possible_values = true, help_heading = "What")]
    format: FormatName,

    /// Tokens of the gap [default: those of the right middle]
    #[arg(long, short, value_name = "N", help_heading = "What")]
    length: Option<NonZeroUsize>,

    /// Samples of each item; pass@1 and ROUGE are means over them
    #[arg(long, value_name = "N", default_value = "1", help_heading = "What")]
    samples: NonZeroUsize,

    /// As the paper's released evaluator
    #[arg(long, help_heading = "What", conflicts_with_all = ["temperature", "greedy", "top_p", "length"])]
    parity: bool,

    /// Run the tests of --format humaneval on what was generated
    #[arg(long, help_heading = "Running programs")]
    execute: bool,

    /// Run the tests on completions of this file, in the benchmark's form, without a model
    #[arg(long, value_name = "FILE", help_heading = "Running programs", requires = "execute")]
    completions: Option<PathBuf>,

    /// The Python that runs them [default: python3 on PATH]
    #[arg(long, value_name = "FILE", help_heading = "Running programs", requires = "execute")]
    python: Option<PathBuf>,

    /// Seconds that a program may take
    #[arg(long, value_name = "S", default_value_t = 10.0, help_heading = "Running programs")]
    timeout: f64,

    /// MiB that it may hold
    #[arg(long, value_name = "MIB", default_value_t = 1024, help_heading = "Running programs")]
    memory: u64,

    #[command(flatten)]
    pub exam: ExamArgs,
}

/// A text with a gap.
struct Item {
    id: String,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    middle: String,
    free: usize,
    program: Option<Problem>,
}

struct Infill<'a> {
    prompts: Prompts<'a>,
    items: Vec<Item>,
    rouge: RougeScorer,
    sandbox: Option<Sandbox>,
    /// Limits and version, where programs are run.
    execute: Value,
    programs: bool,
    parity: bool,
    interrupt: Interrupt,
}

/// The sandbox that the flags describe.
fn sandbox(args: &Args) -> Result<Sandbox> {
    let memory = args.memory.saturating_mul(1 << 20);
    Sandbox::new(args.python.as_deref(), Limits { seconds: args.timeout, memory, ..Limits::default() })
}

/// Longest text of the released evaluator, in tokens.
const PARITY_LONGEST: usize = 1000;

impl<'a> Infill<'a> {
    fn new(args: &Args, prompts: Prompts<'a>, interrupt: Interrupt) -> Result<Self> {
        let most = args.exam.run.limit.map(NonZeroUsize::get);
        let sandbox = if args.execute { Some(sandbox(args)?) } else { None };
        let mut this = Self {
            prompts,
            items: Vec::new(),
            rouge: RougeScorer::new(false)?,
            execute: sandbox
                .as_ref()
                .map_or(Value::Null, |s| json!([args.timeout, args.memory, s.version()])),
            sandbox,
            programs: args.format == FormatName::HumanEval,
            parity: args.parity,
            interrupt,
        };
        let mut skipped = 0;
        match args.format {
            FormatName::Stories => {
                for story in limit(stories::read(&args.data)?, most) {
                    let [a, b, c, d, e] = &story.sentences;
                    let (middle, suffix) = match args.parity {
                        true => (c.clone(), format!("{d} {e}")),
                        false => (format!(" {c}"), format!(" {d} {e}")),
                    };
                    skipped += this.add(args, &story.id, &format!("{a} {b}"), &middle, &suffix, None)?;
                }
            }
            FormatName::HumanEval => {
                for problem in limit(human_eval::read(&args.data)?, most) {
                    let Problem { task_id, prompt, canonical_solution, suffix, .. } = problem.clone();
                    skipped +=
                        this.add(args, &task_id, &prompt, &canonical_solution, &suffix, Some(problem))?;
                }
            }
        }
        left_out(skipped, args.exam.run.quiet);
        Ok(this)
    }

    /// Adds an item; 1 if it was left out.
    fn add(
        &mut self,
        args: &Args,
        id: &str,
        prefix: &str,
        middle: &str,
        suffix: &str,
        program: Option<Problem>,
    ) -> Result<usize> {
        let given = self.prompts.given(prefix, Form::Plain)?;
        let suffix = self.prompts.encode(suffix)?;
        let free = args.length.map_or(self.prompts.encode(middle)?.len().max(1), NonZeroUsize::get);
        if args.parity && given.len() + free + suffix.len() > PARITY_LONGEST {
            return Ok(1);
        }
        let Some(prefix) = self.prompts.fit(id, given, free + suffix.len(), args.exam.fit.too_long)? else {
            return Ok(1);
        };
        self.items.push(Item { id: id.to_owned(), prefix, suffix, middle: middle.to_owned(), free, program });
        Ok(0)
    }
}

impl Infill<'_> {
    /// What stands in the gaps of an item's samples; under `--parity` decoded alone, as the released evaluator does.
    fn outputs(&self, item: &Item, samples: &[Sampled]) -> Result<Vec<String>> {
        let output = |sample: &Sampled| match self.parity {
            true => self.prompts.decode(&sample.ids()),
            false => self.prompts.decode_behind(&item.prefix, &sample.ids()),
        };
        samples.iter().map(output).collect()
    }

    /// What becomes of an item whose outputs are known, and of its programs, where they were run.
    fn answer(&self, item: &Item, outputs: Vec<String>, outcomes: Option<&[Outcome]>) -> Answer {
        let n = outputs.len() as f64;
        let mut record = Map::from_iter([("middle".to_owned(), json!(item.middle))]);
        let mut values = Vec::new();
        if item.program.is_some() {
            let exact = outputs.iter().filter(|o| o.trim() == item.middle.trim()).count();
            values.push((exact as f64, n));
        } else {
            let mut sums = [0.0; 4];
            for output in &outputs {
                let rouge = self.rouge.score(output, &item.middle);
                let mean = (rouge.one + rouge.two + rouge.l) / 3.0;
                for (sum, x) in sums.iter_mut().zip([rouge.one, rouge.two, rouge.l, mean]) {
                    *sum += x;
                }
            }
            values.extend(sums.map(|sum| (sum, n)));
        }
        if let Some(outcomes) = outcomes {
            let (more, kept) = completions::values(outcomes);
            values.extend(more);
            record.extend(kept);
        }
        record.insert("outputs".into(), json!(outputs));
        Answer { values, record, ..Answer::default() }
    }
}

impl Exam for Infill<'_> {
    fn name(&self) -> &str {
        "infill"
    }

    fn metrics(&self) -> Vec<Metric> {
        if !self.programs {
            let names = ["rouge1", "rouge2", "rougeL", "rouge"];
            return names.into_iter().map(Metric::share).collect();
        }
        let mut metrics = vec![Metric::share("exact")];
        if self.sandbox.is_some() {
            metrics.extend(completions::metrics());
        }
        metrics
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn choices(&self) -> Value {
        let item = |i: &Item| {
            let given = fingerprint_of(i.prefix.iter().chain([&(i.free as u32)]).chain(&i.suffix).copied());
            json!([i.middle, given, i.program.as_ref().map(|p| fingerprint(&[p.test.as_bytes()]))])
        };
        let items: Vec<Value> = self.items.iter().map(item).collect();
        json!({"items": items, "execute": self.execute})
    }

    fn canvas(&self, item: usize) -> (Canvas, Option<usize>) {
        let Item { prefix, suffix, free, .. } = &self.items[item];
        let parts = [Part::Fixed(prefix.clone()), Part::Gap(*free), Part::Fixed(suffix.clone())];
        (Canvas::new(&parts), None)
    }

    fn judge(&mut self, item: usize, samples: &[Sampled]) -> Result<Answer> {
        let mut answers = self.judge_round(&[item], samples)?;
        answers.pop().ok_or_else(|| Error::request("an item without an answer"))
    }

    /// Runs the programs of a round side by side.
    fn judge_round(&mut self, items: &[usize], samples: &[Sampled]) -> Result<Vec<Answer>> {
        let each = samples.len() / items.len().max(1);
        let items: Vec<&Item> = items.iter().filter_map(|&i| self.items.get(i)).collect();
        let mine = items.iter().zip(samples.chunks(each.max(1)));
        let outputs: Vec<Vec<String>> =
            mine.map(|(item, samples)| self.outputs(item, samples)).collect::<Result<_>>()?;
        let outcomes = match &self.sandbox {
            None => None,
            Some(sandbox) => {
                let programs: Vec<(&Problem, &str)> = items
                    .iter()
                    .zip(&outputs)
                    .filter_map(|(item, outputs)| Some((item.program.as_ref()?, outputs)))
                    .flat_map(|(problem, outputs)| outputs.iter().map(move |o| (problem, o.as_str())))
                    .collect();
                Some(completions::execute(sandbox, &programs, &self.interrupt)?)
            }
        };
        let mut of_item = outcomes.as_deref().map(|all| all.chunks(each.max(1)));
        let answer = |(item, outputs): (&&Item, Vec<String>)| {
            let outcomes = of_item.as_mut().and_then(Iterator::next);
            self.answer(item, outputs, outcomes)
        };
        Ok(items.iter().zip(outputs).map(answer).collect())
    }
}

/// Writes the completions of each setting in the benchmark's form, out of the lines that are kept of its items.
fn write_completions(
    dir: &Path,
    settings: &[Setting],
    mut lines: Vec<(usize, Value)>,
    quiet: bool,
) -> Result<()> {
    use std::io::Write as _;

    lines.sort_by_key(|(unit, _)| *unit);
    let items = (lines.len() / settings.len().max(1)).max(1);
    for (setting, lines) in settings.iter().zip(lines.chunks(items)) {
        let t = setting.steps.map_or(String::new(), |t| format!("T{t}-"));
        let path = dir.join(format!("completions-{t}seed{}.jsonl", setting.seed));
        let mut file = AtomicFile::create(&path)?;
        for (_, line) in lines {
            let id = line.get("id").and_then(Value::as_str).unwrap_or_default();
            for output in line.get("outputs").and_then(Value::as_array).into_iter().flatten() {
                let line = human_eval::completion_line(id, output.as_str().unwrap_or_default());
                writeln!(file, "{line}").map_err(|e| Error::io("write", &path, e))?;
            }
        }
        file.commit()?;
        if !quiet {
            note(&format!("completions in {}", path.display()));
        }
    }
    Ok(())
}

/// Judges completions that are there already.
fn judge_file(args: &Args, path: &Path, context: &Context) -> Result<()> {
    let run = &args.exam.run;
    let (problems, most) = (human_eval::read(&args.data)?, run.limit.map(NonZeroUsize::get));
    let mut task = Completions::new(path, problems, most, sandbox(args)?, context.interrupt.clone())?;
    if task.missing > 0 && !run.quiet {
        let (missing, path) = (task.missing, path.display());
        note(&format!("{missing} problems have no completion in {path}; pass@1 is of the others"));
    }
    let settings = harness::settings(run, None, &[None], 0)?;
    let about = About {
        task: task.name().to_owned(),
        model: path.display().to_string(),
        source: path.display().to_string(),
        device: "none".into(),
        dtype: "none".into(),
        order: None,
        choices: task.choices(),
        seed: 0,
    };
    finish(&mut task, &settings, run, context, &about)
}

/// Runs it.
///
/// # Errors
/// [`Error::Request`] for programs that cannot be run here; any other [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    if args.execute && args.format != FormatName::HumanEval {
        return Err(Error::request("--execute runs programs; it goes with --format humaneval"));
    }
    if let Some(path) = &args.completions {
        return judge_file(args, path, context);
    }
    let mut sampling = args.exam.sampling.sampling(&args.exam.model);
    if args.parity {
        (sampling.temperature, sampling.top_p) = (Some(0.95), Some(0.9));
        sampling.suppress_mask = Some(false);
    }
    let own = if args.parity { 32 } else { DEFAULT_STEPS };
    let taking = Taking {
        run: &args.exam.run,
        model: &args.exam.model,
        manner: Manner {
            samples: u32::try_from(args.samples.get()).unwrap_or(u32::MAX),
            ..Manner::default()
        },
        both: false,
        steps: Some(sampling.steps.unwrap_or(own)),
        sampling,
        trace: None,
        choices: json!({
            "format": format!("{:?}", args.format), "parity": args.parity, "samples": args.samples,
            "length": args.length, "execute": args.execute,
        }),
    };
    let files = ModelFiles::find(args.exam.model.model.as_deref())?;
    let also = |journal: &mut Journal, settings: &[Setting]| match (&args.exam.run.output, args.format) {
        (Some(dir), FormatName::HumanEval) => {
            write_completions(dir, settings, journal.entries()?, args.exam.run.quiet)
        }
        _ => Ok(()),
    };
    take(&files, &taking, context, |prompts| Infill::new(args, prompts, context.interrupt.clone()), also)
}
