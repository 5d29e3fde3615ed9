//! `lacuna selftest`: every kernel against the CPU backend, on this machine.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::device::{self, Place, Plan, SimtRun, Tests};
use super::terminal::{note, print, println};
use super::{Context, findings::Report};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Cuda, Device};
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::selftest::{self, Grid, Rig, Verdict};

/// Arguments of `selftest`.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Where: cuda or cuda:N (a card), simt (the kernels on the CPU, every access watched), cpu (the CPU's own
    /// code) [default: the first of them that is there]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// A few small shapes a kernel: seconds, also under compute-sanitizer
    #[arg(long)]
    quick: bool,

    /// Only cases whose kernel file, kernel or shape contains this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,

    /// Other inputs; the same seed gives the same
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// With simt: the quick shapes under N schedules, in each of which threads take turns otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    schedules: Option<u64>,

    /// With simt: do not watch accesses, which is two to three times faster and finds fewer faults
    #[arg(long)]
    no_check: bool,

    /// With simt: write threads and shared memory of every kernel launched, for tools/kernel-gates --plan
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// Show the cases and run none
    #[arg(long)]
    list: bool,

    /// One JSON object a case, then one with the sums
    #[arg(long)]
    pub json: bool,
}

const AFTER: &str = "\
What is proved: on fresh random inputs each kernel gives what the CPU backend
gives in f64, to 1e-5 in f32, and in f16 and bf16 to twice what rounding every
intermediate result costs; it writes every output, and two runs give the same
bits. On simt also that no thread reads or writes out of bounds, races with
another, or waits for ever. cuBLASLt, where a card has it, is judged the same way
(library_...). Speed is not looked at.

A failure means that results on this device cannot be trusted: a defect of the
kernel, or of the card or its driver. Every case runs, whatever fails before it.
To report one, send the lines that say FAILED, and the first lines of the report
(device, driver); `lacuna selftest --json` has all of it.

The exit code is 0 if every case ran and passed, 8 if one failed or could not
run, 130 after Ctrl-C, which ends with what there is.

Examples:
  lacuna selftest
  lacuna selftest --device cuda:1 --filter attention
  lacuna selftest --device simt --schedules 20
  compute-sanitizer lacuna selftest --device cuda --quick";

/// Runs `selftest`.
///
/// # Errors
/// [`Error::Device`] when a case failed or could not run; [`Error::Request`] for flags that do not go together;
/// [`Error::Cancelled`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (place, why) = match &args.device {
        Some(name) => (Place::named(name)?, None),
        None if args.list => (Place::Cuda(0), None),
        None => {
            let (place, why) = Place::best();
            (place, Some(why))
        }
    };
    let grid = if args.quick || args.schedules.is_some() { Grid::Quick } else { Grid::Full };
    let listed = listed(place, grid, &args.filter)?;
    if args.list {
        return list(&listed, args.json);
    }
    for (flag, given) in [
        ("--schedules", args.schedules.is_some()),
        ("--no-check", args.no_check),
        ("--plan", args.plan.is_some()),
    ] {
        if given && place != Place::Simt {
            return Err(Error::request(format!("{flag} is for --device simt, and this is {place}")));
        }
    }
    if let Some(path) = &args.plan {
        AtomicFile::probe(path)?;
    }
    if let (Some(why), false) = (&why, args.json) {
        note(&format!("testing on {place}: {why}"));
    }

    let simt = SimtRun { schedules: args.schedules.unwrap_or(1), check: !args.no_check };
    let total = listed.len() as u64 * if place == Place::Simt { simt.schedules } else { 1 };
    let mut session = Session {
        args,
        context,
        grid,
        bar: context.progress(total, args.json),
        report: Report::new(place, why, grid, args.seed, total),
    };
    context.interrupt.hold();
    let outcome = device::test(place, simt, &mut session);
    session.bar.finish_and_clear();
    let plan = outcome?;
    let report = session.report;
    if let (Some(path), false) = (&args.plan, report.interrupted) {
        write_plan(path, &plan)?;
    }
    let verdict = report.verdict();
    if args.json {
        println(&report.summary(verdict.as_ref().err()).to_string())?;
        context.set_reported(true);
    } else {
        print(&report.text())?;
    }
    verdict
}

/// Stem, kernel and shape of every case.
fn listed(place: Place, grid: Grid, filter: &str) -> Result<Vec<(&'static str, String, String)>> {
    let of = |grid, filter: &str| match place {
        Place::Cpu => {
            selftest::cpu::cases(grid, filter).into_iter().map(|c| (c.stem, c.kernel, c.shape)).collect()
        }
        _ => [device::kernel_cases(grid, filter), device::library_cases(place, grid, filter)].concat(),
    };
    let cases: Vec<_> = of(grid, filter);
    if cases.is_empty() {
        let mut stems: Vec<&str> = of(grid, "").into_iter().map(|(stem, ..)| stem).collect();
        stems.dedup();
        return Err(Error::request(format!(
            "--filter {filter}: no kernel file, kernel or shape contains this; the files are {}",
            stems.join(", ")
        )));
    }
    Ok(cases)
}

fn list(cases: &[(&'static str, String, String)], json: bool) -> Result<()> {
    if json {
        let lines = cases.iter().map(|(stem, kernel, shape)| {
            format!("{}\n", json!({"type": "case", "stem": stem, "kernel": kernel, "shape": shape}))
        });
        return print(&lines.collect::<String>());
    }
    let stems = cases.iter().map(|c| c.0.len()).max().unwrap_or(0);
    let kernels = cases.iter().map(|c| c.1.len()).max().unwrap_or(0);
    let lines =
        cases.iter().map(|(stem, kernel, shape)| format!("{stem:<stems$}  {kernel:<kernels$}  {shape}\n"));
    print(&lines.collect::<String>())
}

/// For tools/kernel-gates.
fn write_plan(path: &std::path::Path, plan: &Plan) -> Result<()> {
    let kernels: Vec<Value> = plan
        .iter()
        .map(
            |(kernel, (threads, shared))| json!({"kernel": kernel, "threads": threads, "dynamic_smem": shared}),
        )
        .collect();
    let mut file = AtomicFile::create(path)?;
    let fail = |e| Error::io("write", path, e);
    // One a line, to be read and compared.
    let lines: Vec<String> = kernels.iter().map(Value::to_string).collect();
    file.write_all(format!("{{\"kernels\": [\n{}\n]}}\n", lines.join(",\n")).as_bytes()).map_err(fail)?;
    file.commit()
}

/// A run.
struct Session<'a> {
    args: &'a Args,
    context: &'a Context,
    grid: Grid,
    bar: ProgressBar,
    report: Report,
}

/// A case, ready to run.
struct Job<'a> {
    stem: &'static str,
    kernel: &'a str,
    shape: &'a str,
    run: Box<dyn Fn() -> Result<Verdict> + 'a>,
}

impl Session<'_> {
    /// The kernels with the device's matrix library, if that is to be tested and there is one. What is not there is not a
    /// failure, unless it was asked for: by its name, or as the `only` thing to test.
    fn library<D: Device>(&mut self, cuda: &Cuda<D>, only: bool) -> Result<Option<Cuda<D>>> {
        let place = self.report.place();
        let cases = device::library_cases(place, self.grid, &self.args.filter);
        if cases.is_empty() {
            return Ok(None);
        }
        match cuda.clone().with_library() {
            Ok(cuda) => {
                self.report.library = cuda.library();
                Ok(Some(cuda))
            }
            Err(error) if only || device::library_is_named() => Err(error),
            Err(error) => {
                self.bar.set_length(self.bar.length().unwrap_or(0).saturating_sub(cases.len() as u64));
                self.report.leave_out(cases.len() as u64);
                self.report.library = Some(format!("not tested: {error}"));
                Ok(None)
            }
        }
    }

    /// Runs all of `jobs`, whatever fails, until Ctrl-C or until `works` says that the device is lost.
    fn run_all(
        &mut self,
        jobs: &[Job<'_>],
        schedule: Option<u64>,
        works: impl Fn() -> Result<()>,
    ) -> Result<()> {
        for job in jobs {
            if self.context.interrupt.raised() {
                self.report.interrupted = true;
                break;
            }
            self.bar.set_message(job.kernel.to_owned());
            let start = Instant::now();
            let outcome = (job.run)();
            let seconds = start.elapsed().as_secs_f64();
            self.bar.inc(1);
            let failed = outcome.is_err();
            let case = self.report.add(job.stem, job.kernel, job.shape, schedule, outcome, seconds);
            if self.args.json {
                println(&case.to_string())?;
            }
            if failed && let Err(error) = works() {
                self.report.lost = Some(error.to_string());
                break;
            }
        }
        Ok(())
    }
}

impl Tests for Session<'_> {
    fn cpu(&mut self) -> Result<()> {
        let lab = selftest::cpu::Lab::new()?;
        let levels: Vec<&str> = selftest::cpu::levels().map(|l| l.name()).collect();
        self.report.device = format!("cpu, {} threads, {}", lab.threads(), levels.join(", "));
        let (cases, seed) = (selftest::cpu::cases(self.grid, &self.args.filter), self.args.seed);
        let jobs: Vec<Job<'_>> = cases
            .iter()
            .map(|c| {
                let lab = &lab;
                Job {
                    stem: c.stem,
                    kernel: &c.kernel,
                    shape: &c.shape,
                    run: Box::new(move || c.run(lab, seed)),
                }
            })
            .collect();
        self.run_all(&jobs, None, || Ok(()))
    }

    fn kernels<D: Device>(&mut self, device: D, schedule: Option<u64>) -> Result<()> {
        self.report.device = device::describe(device.facts());
        let (cpu, cuda) = (Cpu::new(None)?, Cuda::new(device));
        let mut rig = Rig::new(&cuda, &cpu, self.args.seed);
        let mut cases = selftest::cases(self.grid, &self.args.filter);
        let with_library = self.library(&cuda, cases.is_empty())?;
        if let Some(cuda) = &with_library {
            rig = rig.with_library(cuda);
            cases.extend(selftest::library_cases(self.grid, &self.args.filter));
        }
        let jobs: Vec<Job<'_>> = cases
            .iter()
            .map(|c| {
                let rig = &rig;
                Job { stem: c.stem, kernel: &c.kernel, shape: &c.shape, run: Box::new(move || c.run(rig)) }
            })
            .collect();
        self.run_all(&jobs, schedule, || rig.device().synchronize())
    }

    fn stopped(&self) -> bool {
        self.report.interrupted || self.report.lost.is_some()
    }
}
