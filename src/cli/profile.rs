//! `lacuna profile`: runs another subcommand and says where its time went.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use super::Context;
use super::terminal::{Style, Terminal, note};
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::meter::{self, Measured};
use crate::profile::{Account, By, Ceilings, Row, write_timeline};

/// Events that a timeline keeps: a gigabyte of JSON and more than Perfetto likes to show.
const MOST_EVENTS: usize = 4_000_000;

/// Run a command and show where its time goes: each operation, its share, how near it comes to what the machine can do.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What rows are of: operations, operations at each of their sizes, or kernels of a card
    #[arg(long, value_name = "op|shape|kernel", value_enum, default_value_t, hide_possible_values = true)]
    by: ByName,
    /// Rows to show at most; the file of --output has all
    #[arg(long, value_name = "N", default_value_t = 24)]
    rows: usize,
    /// A timeline of every operation, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// The rows as JSON lines, for lacuna report
    #[arg(long, short, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
    /// Do not measure what the machine can do at most (a copy and a matrix product, about a second)
    #[arg(long)]
    no_ceilings: bool,
    /// The command with its flags, as without `lacuna profile`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

const EXAMPLES: &str = "\
The command does what it always does; the table goes to standard error once it is done.
On a card steps are launched kernel by kernel instead of as graphs, so that each kernel can be
timed; the time between kernels is then longer than without profiling.
Bounds and shares of the ceiling: an operation can be no faster than its bytes through memory and
its floating-point operations through the arithmetic; the slower of the two bounds it.

Examples:
  lacuna profile generate --quiet
  lacuna profile --by shape generate -T 32 --length 120 --order confidence
  lacuna profile --trace run.json bench generate --shape diffugpt-s --length 128 --steps 32
  lacuna profile --by kernel bench train --device cuda --shape diffugpt-s --batch 32 --length 512
  lacuna profile adapt --model gpt2 --data tokens --output run --steps 5";

/// See [`By`].
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ByName {
    #[default]
    Op,
    Shape,
    Kernel,
}

/// Runs `command` with the meter on.
///
/// # Errors
/// Those of the command, after what was measured until then was shown; [`Error::Io`] for files that cannot be written, found
/// before anything runs; [`Error::Request`] for a command that cannot be profiled.
pub fn run(
    args: &Args,
    context: &Context,
    ceilings: Option<&dyn Fn() -> Result<Ceilings>>,
    command: impl FnOnce() -> Result<()>,
) -> Result<()> {
    for path in [&args.trace, &args.output].into_iter().flatten() {
        AtomicFile::probe(path)?;
    }
    let words: Vec<String> = args.command.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let line = words.join(" ");
    meter::start(if args.trace.is_some() { MOST_EVENTS } else { 0 });
    let done = command();
    let measured = meter::stop().unwrap_or_default();
    if measured.ops.is_empty() {
        // Nothing was computed: the command failed before, or is not one that computes.
        done?;
        note(&format!("lacuna {line} asked the machine for no operation: there is nothing to show"));
        return Ok(());
    }
    let ceilings = match ceilings {
        Some(measure) if !args.no_ceilings && done.is_ok() => Some(measure()?),
        _ => None,
    };
    let by = match args.by {
        ByName::Op => By::Op,
        ByName::Shape => By::Shape,
        ByName::Kernel => By::Kernel,
    };
    let account = Account::new(&measured, by);
    note(&table(args, &account, &measured, ceilings.as_ref(), context.terminal));
    if let Some(path) = &args.output {
        write_rows(&account, ceilings.as_ref(), path)?;
    }
    if let Some(path) = &args.trace {
        write_timeline(&measured, &line, path)?;
        let beyond = match measured.dropped {
            0 => String::new(),
            n => format!(", without the last {n} events"),
        };
        note(&format!("timeline: {}{beyond}; open it at https://ui.perfetto.dev", path.display()));
    }
    done
}

/// The file of `--output`.
fn write_rows(account: &Account, ceilings: Option<&Ceilings>, path: &std::path::Path) -> Result<()> {
    let fail = |e| Error::io("write", path, e);
    let mut lines = Vec::new();
    if let Some(c) = ceilings {
        lines.push(json!({ "schema": 1, "profile": "ceiling", "op": "copy", "bytes_per_s": c.bytes_per_s }));
        lines.push(json!({ "schema": 1, "profile": "ceiling", "op": "matrix product", "flops_per_s": c.flops_per_s }));
    }
    // Rows come first, in their order.
    let rows = account.rows.iter().map(Some).chain(std::iter::repeat(None));
    for (mut line, row) in account.json().into_iter().zip(rows) {
        if let (Some(row), Some(c), Some(line)) = (row, ceilings, line.as_object_mut()) {
            let (flops, bytes) = (row.total.flops as f64, row.total.bytes as f64);
            line.insert("bound".into(), c.bound(flops, bytes).name().into());
            line.insert("roofline_share".into(), c.share(flops, bytes, row.seconds()).into());
        }
        lines.push(line);
    }
    let mut file = AtomicFile::create(path)?;
    for line in lines {
        writeln!(file, "{line}").map_err(fail)?;
    }
    file.commit()
}

/// `x` with three significant digits and a unit's prefix; a dash where there is none.
fn short(x: Option<f64>) -> String {
    let Some(x) = x.filter(|x| x.is_finite()) else { return "-".to_owned() };
    let (scaled, prefix) = match x.abs() {
        a if a >= 1e12 => (x / 1e12, "T"),
        a if a >= 1e9 => (x / 1e9, "G"),
        a if a >= 1e6 => (x / 1e6, "M"),
        a if a >= 1e3 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let digits = match scaled.abs() {
        a if a >= 100.0 => 0,
        a if a >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{prefix}")
}

/// Seconds in a unit that suits them.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

fn table(
    args: &Args,
    account: &Account,
    measured: &Measured,
    ceilings: Option<&Ceilings>,
    terminal: Terminal,
) -> String {
    let color = terminal.color && terminal.live;
    let some = |n: u64| Some(n as f64).filter(|_| n > 0);
    let mut cells: Vec<[String; 10]> = vec![
        [
            "operation",
            "calls",
            "total",
            "mean",
            "share",
            "FLOP",
            "bytes",
            "FLOP/s",
            "byte/s",
            "of the ceiling",
        ]
        .map(str::to_owned),
    ];
    for row in account.rows.iter().take(args.rows) {
        let name = match (row.kernel, row.shape()) {
            (Some(kernel), _) => kernel.to_owned(),
            (None, shape) if shape.is_empty() => row.op.to_owned(),
            (None, shape) => format!("{} {shape}", row.op),
        };
        let (flops, bytes) = (row.total.flops as f64, row.total.bytes as f64);
        let near = match ceilings {
            Some(c) if flops + bytes > 0.0 => {
                format!(
                    "{:.0} % of {}",
                    100.0 * c.share(flops, bytes, row.seconds()),
                    c.bound(flops, bytes).name()
                )
            }
            _ => "-".to_owned(),
        };
        cells.push([
            name,
            row.total.calls.to_string(),
            time(row.seconds()),
            time(row.mean()),
            format!("{:.1} %", 100.0 * account.share(row)),
            short(some(row.total.flops)),
            short(some(row.total.bytes)),
            short(row.flops_per_s()),
            short(row.bytes_per_s()),
            near,
        ]);
    }
    let mut out = String::new();
    for (i, line) in align(&cells).into_iter().enumerate() {
        out.push_str(&if i == 0 { Style::Dim.paint(&line, color) } else { line });
        out.push('\n');
    }
    let hidden = account.rows.len().saturating_sub(args.rows);
    if hidden > 0 {
        let rest: f64 = account.rows.iter().skip(args.rows).map(Row::seconds).sum();
        out.push_str(&format!("and {hidden} more rows, {} (--rows {})\n", time(rest), account.rows.len()));
    }
    let share = |s: f64| 100.0 * s / account.work.max(f64::MIN_POSITIVE);
    let what = if account.device { "kernels" } else { "operations" };
    out.push_str(&format!(
        "{what}: {} of {} of work ({:.1} %); matrix products {:.1} %; {} FLOP, {} FLOP/s\n",
        time(account.listed),
        time(account.work),
        share(account.listed),
        100.0 * account.products(),
        short(Some(account.flops() as f64)),
        short(Some(account.flops() as f64 / account.work)),
    ));
    let ranges = account.ranges.iter().filter(|(name, _)| *name != "generate" && *name != "train step");
    let ranges: Vec<String> = ranges
        .map(|(name, total)| {
            let seconds = total.time.as_secs_f64();
            format!("{} x {name} {}", total.calls, time(seconds / total.calls.max(1) as f64))
        })
        .collect();
    if !ranges.is_empty() {
        let clock = if account.device { " (asked for by the host)" } else { "" };
        out.push_str(&format!("means{clock}: {}\n", ranges.join(", ")));
    }
    out.push_str(&format!(
        "the run took {}, {} of it outside of that work (loading, files, printing)",
        time(account.wall),
        time((account.wall - account.work).max(0.0))
    ));
    if let Some(c) = ceilings {
        out.push_str(&format!(
            "\nceilings: matrix product {} FLOP/s, copy {} byte/s",
            short(Some(c.flops_per_s)),
            short(Some(c.bytes_per_s))
        ));
    }
    if measured.dropped > 0 && args.trace.is_some() {
        out.push_str(&format!("\nthe timeline lacks the last {} events", measured.dropped));
    }
    out
}

/// Lines of columns: the first and the last to the left, the others to the right.
fn align<const N: usize>(cells: &[[String; N]]) -> Vec<String> {
    let widths: Vec<usize> =
        (0..N).map(|c| cells.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let mut out = String::new();
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            if c == 0 {
                out.push_str(&format!("{cell}{pad}"));
            } else if c + 1 == N {
                out.push_str(&format!("  {cell}"));
            } else {
                out.push_str(&format!("  {pad}{cell}"));
            }
        }
        out.trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let of = |x: f64| short(Some(x));
        assert_eq!(
            [of(0.0), of(999.4), of(1234.0), of(2.5e10), of(1e14)],
            ["0.00", "999", "1.23k", "25.0G", "100T"]
        );
        assert_eq!([short(None), of(f64::NAN)], ["-", "-"]);
        assert_eq!([time(2.0), time(0.0125), time(3e-6)], ["2.000 s", "12.500 ms", "3.00 us"]);
    }

    #[test]
    fn columns_line_up() {
        let cells = [["a", "10", "x"], ["bcd", "7", "y z"]].map(|row| row.map(str::to_owned));
        assert_eq!(align(&cells), ["a    10  x", "bcd   7  y z"]);
    }
}
