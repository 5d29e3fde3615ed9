//! The numbers behind the figures.

use super::input::{Kind, Line, Run};
use super::numbers::{bytes, count, short, si, time};
use crate::profile::median;

/// Most rows of a table.
pub const MAX_ROWS: usize = 200;

/// A table of words. Columns without a word are left out.
pub struct Table {
    pub title: &'static str,
    /// Heading, and whether it holds numbers.
    pub heads: Vec<(&'static str, bool)>,
    pub rows: Vec<Vec<String>>,
    /// All that there are, also those that are not in `rows`.
    pub total: usize,
}

/// How a field is written.
#[derive(Clone, Copy)]
enum Form {
    Words,
    Network,
    Count,
    Number,
    Time,
    Micro,
    Bytes,
    Share,
    /// A number with the letter of its thousands, and this behind.
    Per(&'static str),
    /// Made from the line.
    Made(fn(&Line) -> Option<String>),
}

type Column = (&'static str, &'static str, Form);

fn cell(line: &Line, (_, path, form): &Column) -> String {
    let number = |write: fn(f64) -> String| line.number(path).map(write);
    let text = match form {
        Form::Words => line.words(path).map(|w| short(&w, 90)),
        Form::Network => line.network().map(|name| short(name, 60)),
        Form::Count => number(count),
        Form::Number => number(|x| if x.abs() < 1e4 { trimmed(x) } else { si(x) }),
        Form::Time => number(time),
        Form::Micro => number(|us| time(us * 1e-6)),
        Form::Bytes => number(bytes),
        Form::Share => number(|x| format!("{:.1}%", 100.0 * x)),
        Form::Per(unit) => line.number(path).map(|x| format!("{}{unit}", spaced(x))),
        Form::Made(make) => make(line),
    };
    text.unwrap_or_default()
}

/// Four digits behind the point at most.
fn trimmed(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number and the letter of its thousands, apart.
fn spaced(x: f64) -> String {
    let text = si(x);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len();
    format!("{} {}", &text[..digits], &text[digits..])
}

fn rate_of_work(line: &Line) -> Option<String> {
    line.flops_per_s().map(|x| format!("{}FLOP/s", spaced(x)))
}
fn rate_of_bytes(line: &Line) -> Option<String> {
    line.bytes_per_s().map(|x| format!("{}B/s", spaced(x)))
}
fn intensity(line: &Line) -> Option<String> {
    line.intensity().map(si)
}
fn speed(line: &Line) -> Option<String> {
    line.tokens_per_s().map(|x| if x < 100.0 { trimmed(x) } else { count(x.round()) })
}

const WORK: [Column; 5] = [
    ("work", "", Form::Made(rate_of_work)),
    ("traffic", "", Form::Made(rate_of_bytes)),
    ("FLOP/byte", "", Form::Made(intensity)),
    ("bound", "bound", Form::Words),
    ("of the roofline", "roofline_share", Form::Share),
];

const WHERE: [Column; 5] = [
    ("program", "who", Form::Words),
    ("model", "", Form::Network),
    ("device", "device", Form::Words),
    ("dtype", "dtype", Form::Words),
    ("commit", "commit", Form::Words),
];

fn columns(kind: Kind) -> Vec<Column> {
    use Form::{Bytes, Count, Made, Micro, Network, Number, Per, Share, Time, Words};
    let name = [("measurement", "name", Words)];
    let times = [
        ("median", "median_s", Time),
        ("least", "min_s", Time),
        ("spread", "spread", Share),
        ("runs", "runs", Count),
    ];
    match kind {
        Kind::Generate => [
            &name[..],
            &[
                ("batch", "batch", Count),
                ("length", "length", Count),
                ("T", "steps", Count),
                ("order", "order", Words),
            ],
            &times,
            &[
                ("tokens/s", "", Made(speed)),
                ("raw tokens/s", "tokens_raw_per_s", Number),
                ("NFE", "nfe", Number),
                ("tokens/forward", "tokens_per_forward", Number),
                ("step", "ms_per_step", Made(|l| l.number("ms_per_step").map(|ms| time(ms * 1e-3)))),
                ("memory", "peak_memory_bytes", Bytes),
                ("of the device", "device_bytes", Bytes),
            ],
            &WORK,
            &WHERE,
        ]
        .concat(),
        Kind::Step => [
            &name[..],
            &[("batch", "batch", Count), ("length", "length", Count)],
            &times,
            &[("memory", "peak_memory_bytes", Bytes)],
            &WORK,
            &WHERE,
        ]
        .concat(),
        Kind::Kernel => [
            &[
                ("file", "stem", Words),
                ("kernel", "kernel", Words),
                ("sizes", "shape", Words),
                ("dtype", "dtype", Words),
            ][..],
            &[
                ("device", "device", Words),
                ("median", "median_us", Micro),
                ("least", "min_us", Micro),
                ("runs", "runs", Count),
            ],
            &WORK,
            &[("workspace", "workspace_bytes", Bytes)],
        ]
        .concat(),
        Kind::Train => [
            &name[..],
            &[("batch", "batch", Count), ("length", "length", Count), ("masked", "masked", Count)],
            &times,
            &[
                ("tokens/s", "", Made(speed)),
                ("memory", "peak_memory_bytes", Bytes),
                ("of the device", "device_bytes", Bytes),
            ],
            &WORK,
            &WHERE,
        ]
        .concat(),
        Kind::Serve => [
            &name[..],
            &[("batch", "batch", Count), ("T", "steps", Count), ("requests", "requests", Count)],
            &[("asked a second", "rate_per_s", Number), ("done a second", "requests_per_s", Number)],
            &[("tokens/s", "", Made(speed))],
            &[("p50", "latency_s.p50", Time), ("p90", "latency_s.p90", Time), ("p95", "latency_s.p95", Time)],
            &[
                ("p99", "latency_s.p99", Time),
                ("max", "latency_s.max", Time),
                ("mean", "latency_s.mean", Time),
            ],
            &[("waiting p50", "queue_s.p50", Time), ("waiting p99", "queue_s.p99", Time)],
            &WHERE,
        ]
        .concat(),
        Kind::Ceiling => [
            &name[..],
            &[("device", "device", Words), ("dtype", "dtype", Words), ("threads", "threads", Count)],
            &[("bytes", "bytes_per_s", Per("B/s")), ("operations", "flops_per_s", Per("FLOP/s"))],
        ]
        .concat(),
        Kind::Profile => [
            &[
                ("of", "profile", Words),
                ("operation", "op", Words),
                ("kernel", "kernel", Words),
                ("sizes", "shape", Words),
            ][..],
            &[
                ("calls", "calls", Count),
                ("total", "total_s", Time),
                ("mean", "mean_s", Time),
                ("share", "share", Share),
            ],
            &WORK,
        ]
        .concat(),
        Kind::Eval => [
            &[
                ("evaluation", "eval", Words),
                ("model", "", Network),
                ("order", "order", Words),
                ("T", "steps", Count),
            ][..],
            &[
                ("NFE", "nfe", Number),
                ("value", "value", Number),
                ("low", "low", Number),
                ("high", "high", Number),
            ],
            &[("time", "seconds", Time), ("better", "better", Words)],
        ]
        .concat(),
        Kind::Flops => [
            &[
                ("of", "account", Words),
                ("model", "model", Words),
                ("operation", "op", Words),
                ("batch", "batch", Count),
            ][..],
            &[("length", "length", Count), ("T", "steps", Count), ("order", "order", Words)],
            &[("reference", "reference_flops", Per("FLOP")), ("lacuna", "flops", Per("FLOP"))],
            &[("share", "share", Share), ("saved", "saved", Share)],
        ]
        .concat(),
    }
}

/// What the tables of a kind are headed by.
const fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Generate => "Generations",
        Kind::Step => "Denoising steps",
        Kind::Kernel => "Kernels",
        Kind::Train => "Training steps",
        Kind::Serve => "Simulated serving",
        Kind::Ceiling => "Ceilings",
        Kind::Profile => "Profiles",
        Kind::Eval => "Evaluations",
        Kind::Flops => "Operations counted",
    }
}

/// All tables that have rows.
pub fn tables(runs: &[Run]) -> Vec<Table> {
    Kind::ALL.into_iter().filter_map(|kind| table(runs, kind)).chain(training(runs)).collect()
}

fn table(runs: &[Run], kind: Kind) -> Option<Table> {
    let columns = columns(kind);
    let lines =
        || runs.iter().flat_map(|r| r.lines.iter().map(move |l| (r, l))).filter(|(_, l)| l.kind == kind);
    let total = lines().count();
    let rows = lines().take(MAX_ROWS).map(|(run, line)| {
        let cells = columns.iter().map(|column| cell(line, column));
        std::iter::once(run.label.clone()).chain(cells).collect::<Vec<_>>()
    });
    let numbers = |form: &Form| !matches!(form, Form::Words | Form::Network);
    let heads = columns.iter().map(|(head, _, form)| (*head, numbers(form)));
    let heads = std::iter::once(("run", false)).chain(heads).collect();
    (total > 0).then(|| without_empty(Table { title: title(kind), heads, rows: rows.collect(), total }))
}

fn training(runs: &[Run]) -> Option<Table> {
    let heads =
        ["run", "steps", "last loss", "last validation", "best validation", "at step", "tokens/s, median"];
    let rows: Vec<Vec<String>> = runs
        .iter()
        .filter_map(|run| {
            let training = run.training.as_ref()?;
            let history = &training.history;
            let finite = |x: &f64| x.is_finite();
            let nelbo = |x: Option<f64>| x.filter(finite).map_or(String::new(), trimmed);
            let validations = history.validation.iter().filter(|(_, v)| v.nelbo.is_finite());
            let best = validations.clone().min_by(|a, b| a.1.nelbo.total_cmp(&b.1.nelbo));
            let speed: Vec<f64> =
                training.speed.iter().copied().filter(|x| x.is_finite() && *x > 0.0).collect();
            Some(vec![
                run.label.clone(),
                history.training.iter().map(|t| t.0).max().map_or(String::new(), |n| count(n as f64)),
                nelbo(history.training.iter().rev().map(|t| t.1).find(finite)),
                nelbo(validations.clone().next_back().map(|(_, v)| v.nelbo)),
                nelbo(best.map(|(_, v)| v.nelbo)),
                best.map_or(String::new(), |(step, _)| count(*step as f64)),
                if speed.is_empty() { String::new() } else { count(median(&speed).round()) },
            ])
        })
        .collect();
    let heads = heads.into_iter().enumerate().map(|(i, head)| (head, i > 0)).collect();
    let total = rows.len();
    (total > 0).then(|| without_empty(Table { title: "Training runs", heads, rows, total }))
}

fn without_empty(table: Table) -> Table {
    let Table { title, heads, rows, total } = table;
    let kept: Vec<bool> = (0..heads.len()).map(|i| rows.iter().any(|row| !row[i].is_empty())).collect();
    fn keep<T>(kept: &[bool], all: Vec<T>) -> Vec<T> {
        all.into_iter().zip(kept).filter(|(_, kept)| **kept).map(|(x, _)| x).collect()
    }
    let rows = rows.into_iter().map(|row| keep(&kept, row)).collect();
    Table { title, heads: keep(&kept, heads), rows, total }
}
