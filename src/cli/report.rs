//! `lacuna report`: a page of what was measured.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::Context;
use super::terminal::note;
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::profile::report;

/// Put measurements on one page that needs nothing but a browser.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Files of JSON lines (bench, profile, evaluations, flops), folders of training runs and evaluations
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page; `-` is standard output
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Say nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

const EXAMPLES: &str = "\
What a file holds is found out by its content. Figures for which there is nothing
are left out, and the page says what would make them.

Examples:
  lacuna bench kernels --device cuda --json > kernels.jsonl
  lacuna report kernels.jsonl ./adapted --output report.html
  lacuna report before.jsonl after.jsonl -o compared.html";

/// Runs it.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read or written, before any work; [`Error::Input`] for one without a measurement;
/// [`Error::Request`] where the page would replace one of the runs.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (output, stdout) = (&args.output, args.output.as_os_str() == "-");
    if !stdout {
        if let Some(run) = args.runs.iter().find(|run| crate::io::is_same(run, output)) {
            return Err(Error::request(format!(
                "--output {}: it is one of the runs; name another file",
                run.display()
            )));
        }
        AtomicFile::probe(output)?;
    }
    let runs = report::read(&args.runs)?;
    for run in runs.iter().filter(|run| run.unusable > 0 && !args.quiet) {
        let first = run.faults.first().map_or("", String::as_str);
        note(&format!("{}: {} lines could not be used; the first: {first}", run.label, run.unusable));
    }
    context.interrupt.check()?;
    let page = report::html(&runs)?;
    if stdout {
        return super::terminal::print(&page);
    }
    let mut file = AtomicFile::create(output)?;
    file.write_all(page.as_bytes()).map_err(|e| Error::io("write", output, e))?;
    file.commit()?;
    if !args.quiet {
        note(&format!("{} runs on a page: {}", runs.len(), output.display()));
    }
    Ok(())
}
