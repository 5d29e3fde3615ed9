//! Where measurements go: a table for people, JSON lines, or a CSV file.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::super::Context;
use super::super::terminal::{Terminal, note, print, println};
use super::line::{Kind, Line, Machine, columns};
use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// How measurements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
}

#[derive(Debug, ClapArgs)]
pub struct OutputArgs {
    /// table, for people; json, an object a line; csv [default: by the name of the output file, else table]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true, help_heading = "Output")]
    format: Option<Format>,
    /// The same as --format json, and errors as objects
    #[arg(long, help_heading = "Output", conflicts_with = "format")]
    json: bool,
    /// Write the measurements to a file, whole or not at all
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Do not measure the machine's copy and matrix product first: no roofline, a second less
    #[arg(long, help_heading = "Output")]
    pub no_ceilings: bool,
}

impl OutputArgs {
    fn format(&self) -> Format {
        let extension = self.output.as_deref().and_then(Path::extension).and_then(|e| e.to_str());
        match (self.format, self.json, extension) {
            (Some(format), ..) => format,
            (None, true, _) | (None, false, Some("json" | "jsonl")) => Format::Json,
            (None, false, Some("csv")) => Format::Csv,
            (None, false, _) => Format::Table,
        }
    }

    /// Whether standard output is for objects.
    pub fn json(&self) -> bool {
        self.json || self.format == Some(Format::Json)
    }
}

/// The measurements of a run of the program.
pub struct Sheet<'a> {
    pub context: &'a Context,
    format: Format,
    file: Option<PathBuf>,
    lines: Vec<Line>,
}

impl<'a> Sheet<'a> {
    /// Looks whether the output can be written.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot.
    pub fn open(args: &OutputArgs, context: &'a Context) -> Result<Self> {
        if let Some(path) = &args.output {
            AtomicFile::probe(path)?;
        }
        Ok(Self { context, format: args.format(), file: args.output.clone(), lines: Vec::new() })
    }

    /// The two lines of the machine's ceilings, where they were measured.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn ceilings(&mut self, machine: &Machine) -> Result<()> {
        let Some(ceilings) = machine.ceilings else { return Ok(()) };
        let mut copy = Line::new(Kind::Ceiling, "copy", machine);
        copy.set("bytes_per_s", ceilings.bytes_per_s);
        let mut product = Line::new(Kind::Ceiling, "matrix product", machine);
        product.set("flops_per_s", ceilings.flops_per_s);
        self.add(copy)?;
        self.add(product)
    }

    /// Takes a measurement; JSON and CSV on standard output are written at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, line: Line) -> Result<()> {
        if self.file.is_none() {
            match self.format {
                Format::Json => println(&line.object().to_string())?,
                Format::Csv => {
                    let head = if self.lines.is_empty() { csv_rows([columns()])? } else { String::new() };
                    print(&(head + &csv_rows([line.cells()])?))?;
                }
                Format::Table => {}
            }
        }
        self.lines.push(line);
        Ok(())
    }

    /// Whether there is a line of a kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.lines.iter().any(|line| line.kind() == kind)
    }

    /// Shows the table, or writes the file, of what there is; then `result`, so that what was measured before a failure is kept.
    ///
    /// # Errors
    /// Those of `result`; [`Error::Io`].
    pub fn end(self, result: Result<()>) -> Result<()> {
        let written = self.write();
        result.and(written)
    }

    fn write(&self) -> Result<()> {
        // Ceilings alone are nothing that was asked for.
        if self.lines.iter().all(|line| line.kind() == Kind::Ceiling) {
            return Ok(());
        }
        let table = |width| table(&self.lines, width);
        let Some(path) = &self.file else {
            return match self.format {
                Format::Table => {
                    let terminal = self.context.terminal;
                    print(&table(terminal.stdout.then(|| Terminal::size().0)))
                }
                Format::Json | Format::Csv => Ok(()),
            };
        };
        let text = match self.format {
            Format::Table => table(None),
            Format::Json => self.lines.iter().map(|line| format!("{}\n", line.object())).collect(),
            Format::Csv => csv_rows(std::iter::once(columns()).chain(self.lines.iter().map(Line::cells)))?,
        };
        let mut file = AtomicFile::create(path)?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e))?;
        file.commit()?;
        note(&format!("{} measurements in {}", self.lines.len(), path.display()));
        Ok(())
    }
}

/// Rows of a CSV file, RFC 4180.
fn csv_rows(rows: impl IntoIterator<Item = Vec<String>>) -> Result<String> {
    let fail = |e: String| Error::request(format!("cannot write CSV: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(&row).map_err(|e| fail(e.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
}

/// A column of the table: its head, and a line's cell.
type Column = (&'static str, fn(&Line) -> Option<String>);

fn key(line: &Line, key: &str, unit: f64, digits: usize) -> Option<String> {
    line.number(key).map(|n| format!("{:.digits$}", n / unit))
}

/// Seconds in the unit in which they are a handy number.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

const COLUMNS: [Column; 18] = [
    ("median", |l| l.number("median_s").map(duration)),
    ("spread", |l| l.number("spread").map(|s| format!("{:.1}%", 100.0 * s))),
    ("runs", |l| key(l, "runs", 1.0, 0)),
    ("tokens/s", |l| key(l, "tokens_per_s", 1.0, 1)),
    (
        "raw",
        |l| if l.get("tokens") == l.get("tokens_raw") { None } else { key(l, "tokens_raw_per_s", 1.0, 1) },
    ),
    ("NFE", |l| key(l, "nfe", 1.0, 1)),
    ("tokens/forward", |l| key(l, "tokens_per_forward", 1.0, 2)),
    ("ms/step", |l| key(l, "ms_per_step", 1.0, 3)),
    ("requests/s", |l| key(l, "requests_per_s", 1.0, 2)),
    ("latency p50", |l| l.get("latency_s")["p50"].as_f64().map(duration)),
    ("p99", |l| l.get("latency_s")["p99"].as_f64().map(duration)),
    ("queue p50", |l| l.get("queue_s")["p50"].as_f64().map(duration)),
    ("GFLOP/s", |l| key(l, "flops_per_s", 1e9, 1)),
    ("GB/s", |l| key(l, "bytes_per_s", 1e9, 2)),
    ("FLOP/B", |l| key(l, "intensity", 1.0, 1)),
    ("bound", |l| l.get("bound").as_str().map(str::to_owned)),
    ("roofline", |l| l.number("roofline_share").map(|s| format!("{:.0}%", 100.0 * s))),
    ("peak MiB", |l| key(l, "peak_memory_bytes", f64::from(1 << 20), 0)),
];

/// The machine in a line, then a row a measurement; columns that none has are left out. Within `width` columns, if there is one.
fn table(lines: &[Line], width: Option<usize>) -> String {
    let mut text = String::new();
    if let Some(first) = lines.first() {
        let words = ["device", "dtype", "commit"].into_iter().filter_map(|key| first.get(key).as_str());
        text += &words.collect::<Vec<_>>().join(", ");
        text.push('\n');
    }
    let ceiling = |key: &str| lines.iter().filter(|l| l.kind() == Kind::Ceiling).find_map(|l| l.number(key));
    if let (Some(flops), Some(bytes)) = (ceiling("flops_per_s"), ceiling("bytes_per_s")) {
        let (flops, bytes) = (flops / 1e9, bytes / 1e9);
        text += &format!("ceilings: matrix product {flops:.1} GFLOP/s, copy {bytes:.2} GB/s\n");
    }
    let body: Vec<&Line> = lines.iter().filter(|l| l.kind() != Kind::Ceiling).collect();
    if body.is_empty() {
        return text;
    }
    let used: Vec<Column> =
        COLUMNS.into_iter().filter(|(_, cell)| body.iter().any(|l| cell(l).is_some())).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(std::iter::once("measurement").chain(used.iter().map(|c| c.0)));
    for line in body {
        let name = line.get("name").as_str().unwrap_or_default().to_owned();
        let cells = used.iter().map(|(_, cell)| cell(line).unwrap_or_default());
        table.add_row(std::iter::once(name).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    text += &table.trim_fmt();
    text.push('\n');
    text
}
