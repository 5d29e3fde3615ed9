//! Speeds, latencies, quality and training curves.

use std::collections::BTreeSet;

use super::Figure;
use super::chart::{Axis, Chart, MAX_LINES, Mark, Scale, Series, Stroke};
use super::input::{Kind, Line, Run};
use super::numbers::{count, short};
use crate::train::plot::{smoothed, thinned};

/// Most figures of evaluations.
const MOST_EVALS: usize = 8;
/// Most groups that are told apart: far more than are drawn.
const MOST_GROUPS: usize = 2000;
/// Longest words of a legend.
const LABEL: usize = 110;

/// Lines of some runs, in groups that differ in what they are about: `fields` and the run. A group is called by what is not the
/// same for all.
struct Groups<'a> {
    /// Name and lines, in the order in which they come.
    groups: Vec<(String, Vec<&'a Line>)>,
}

impl<'a> Groups<'a> {
    fn new(runs: &'a [Run], wanted: impl Fn(&Line) -> bool, fields: &[(&str, &str)]) -> Self {
        let mut keyed: Vec<(Vec<String>, Vec<&Line>)> = Vec::new();
        for run in runs {
            for line in run.lines.iter().filter(|line| wanted(line)) {
                let mut key = vec![run.label.clone()];
                key.extend(fields.iter().map(|(field, before)| match *field {
                    "network" => line.network().unwrap_or_default().to_owned(),
                    field => line.words(field).map_or_else(String::new, |w| format!("{before}{w}")),
                }));
                // Lines of one group come together, mostly.
                match keyed.iter().rposition(|(k, _)| *k == key) {
                    Some(at) => keyed[at].1.push(line),
                    None if keyed.len() < MOST_GROUPS => keyed.push((key, vec![line])),
                    None => {}
                }
            }
        }
        // A field is told when it sets lines apart that those before it do not; the run comes last of all.
        let order: Vec<usize> = (1..=fields.len()).chain([0]).collect();
        let parts = |told: &[bool], also: Option<usize>| {
            let key = |key: &[String]| -> Vec<String> {
                (0..key.len()).filter(|&i| told[i] || also == Some(i)).map(|i| key[i].clone()).collect()
            };
            keyed.iter().map(|(k, _)| key(k)).collect::<BTreeSet<_>>().len()
        };
        let mut differs = vec![false; order.len()];
        for i in order {
            differs[i] = parts(&differs, Some(i)) > parts(&differs, None);
        }
        let groups = keyed.into_iter().map(|(key, lines)| {
            let told = key.iter().zip(&differs).filter(|(word, differs)| **differs && !word.is_empty());
            let name = told.map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(", ");
            // All are about the same: then that is said.
            let all = || key.iter().filter(|w| !w.is_empty()).cloned().collect::<Vec<_>>().join(", ");
            (short(if name.is_empty() { all() } else { name }.as_str(), LABEL), lines)
        });
        Self { groups: groups.collect() }
    }

    /// A line through the points of each group, and a dashed level where a group has numbers without a place on the x axis.
    fn series(
        &self,
        x: impl Fn(&Line) -> Option<f64>,
        y: impl Fn(&Line) -> Option<f64>,
    ) -> (Vec<Series>, BTreeSet<u64>) {
        let mut at = BTreeSet::new();
        let mut all = Vec::new();
        for (name, lines) in &self.groups {
            let marks: Vec<Mark> = lines
                .iter()
                .filter_map(|line| {
                    let (x, y) = (x(line)?, y(line)?);
                    let between = line.number("low").zip(line.number("high"));
                    Some(Mark { x, y, between, label: String::new() })
                })
                .collect();
            if marks.is_empty() {
                continue;
            }
            at.extend(marks.iter().map(|m| m.x.to_bits()));
            all.push(Series::nth(all.len(), name).through(marks));
        }
        (all, at)
    }
}

/// The first of many, and what to say of the others.
fn first_lines(mut series: Vec<Series>) -> (Vec<Series>, String) {
    let rest = series.len().saturating_sub(MAX_LINES);
    series.truncate(MAX_LINES);
    let note = if rest > 0 { format!(" {rest} more lines are in the table only.") } else { String::new() };
    (series, note)
}

/// Series with points at several places, and these places; the colours are dealt out again.
fn of_several(series: Vec<Series>) -> (Vec<Series>, BTreeSet<u64>) {
    let several = series.into_iter().filter(|s| s.line.len() > 1).enumerate();
    let again = |(n, s): (usize, Series)| Series { line: s.line, marks: s.marks, ..Series::nth(n, &s.label) };
    let kept: Vec<Series> = several.map(again).collect();
    let at = kept.iter().flat_map(|s| &s.line).map(|p| p.0.to_bits()).collect();
    (kept, at)
}

/// Ticks at the values that occur, where they are few.
fn ticks(at: &BTreeSet<u64>) -> Vec<(f64, String)> {
    let mut values: Vec<f64> = at.iter().map(|&bits| f64::from_bits(bits)).collect();
    values.sort_by(f64::total_cmp);
    if values.len() > 14 { Vec::new() } else { values.into_iter().map(|x| (x, count(x))).collect() }
}

/// Log where the largest is far above the least.
fn scale(series: &[Series]) -> Scale {
    let all = series.iter().flat_map(|s| &s.marks).map(|m| m.y);
    let (low, high) = all.fold((f64::INFINITY, 0.0_f64), |(low, high), y| (low.min(y), high.max(y)));
    if low > 0.0 && high > 12.0 * low { Scale::Log } else { Scale::Linear }
}

/// Tokens a second against T, and against the batch.
pub fn speed(runs: &[Run]) -> Vec<Figure> {
    let generates = |line: &Line| line.kind == Kind::Generate && line.tokens_per_s().is_some();
    let about = |other: (&'static str, &'static str)| {
        [
            ("who", ""),
            ("network", ""),
            ("device", ""),
            ("dtype", ""),
            ("gemm", ""),
            ("length", "length "),
            ("order", "order "),
            ("top_p", "top-p "),
            ("threads", "threads "),
            other,
        ]
    };
    let mut figures = Vec::new();
    let groups = Groups::new(runs, generates, &about(("batch", "batch ")));
    let (mut series, at) = groups.series(|line| line.positive("steps"), Line::tokens_per_s);
    if !series.is_empty() {
        // Left to right there is no T: a level over all of them.
        let ends = at.iter().map(|&bits| f64::from_bits(bits));
        let (low, high) = ends.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
        for (name, lines) in groups.groups {
            let ar = lines.iter().filter(|l| l.text("order") == Some("ar") && l.positive("steps").is_none());
            let speeds: Vec<f64> = ar.filter_map(|l| l.tokens_per_s()).collect();
            if speeds.is_empty() {
                continue;
            }
            let y = speeds.iter().sum::<f64>() / speeds.len() as f64;
            let label = format!("left to right (no T): {name}");
            let line = vec![(low, y), (high, y)];
            series.push(Series { stroke: Stroke::Dotted, line, ..Series::nth(series.len(), &label) });
        }
        let (series, note) = first_lines(series);
        let x = Axis { ticks: ticks(&at), ..Axis::new("denoising steps T", Scale::Log) };
        figures.push(Figure {
            id: "speed-steps".into(),
            title: "Tokens per second against T".into(),
            caption: format!(
                "Useful tokens: padding and what follows an end of sequence are not counted. Fewer steps cost quality: \
                 see the evaluations of the same T.{note}"
            ),
            chart: Chart { x, y: Axis::new("tokens per second", scale(&series)), series, guides: Vec::new() },
        });
    }
    let with_batch = |line: &Line| generates(line) && line.positive("batch").is_some();
    let (series, at) = Groups::new(runs, with_batch, &about(("steps", "T = ")))
        .series(|line| line.positive("batch"), Line::tokens_per_s);
    // Of one batch there is nothing to be seen that is not in the other figure.
    let (series, at) = if figures.is_empty() { (series, at) } else { of_several(series) };
    if !series.is_empty() {
        let (series, note) = first_lines(series);
        let x = Axis { ticks: ticks(&at), ..Axis::new("sequences at a time", Scale::Log) };
        figures.push(Figure {
            id: "speed-batch".into(),
            title: "Tokens per second against the batch".into(),
            caption: format!("Useful tokens of all sequences together.{note}"),
            chart: Chart { x, y: Axis::new("tokens per second", scale(&series)), series, guides: Vec::new() },
        });
    }
    figures
}

/// Percentiles of the time from a request's arrival to its end, and of what of it was waiting.
pub fn latency(runs: &[Run]) -> Vec<Figure> {
    const AT: [&str; 5] = ["p50", "p90", "p95", "p99", "max"];
    let served = |line: &Line| line.kind == Kind::Serve && line.get("latency_s").is_some();
    let fields = [
        ("who", ""),
        ("network", ""),
        ("device", ""),
        ("rate_per_s", "requests per second: "),
        ("batch", "batch "),
        ("steps", "T = "),
        ("order", "order "),
        ("name", ""),
    ];
    let groups = Groups::new(runs, served, &fields).groups;
    let mut series = Vec::new();
    for (n, (name, lines)) in groups.iter().enumerate() {
        for (field, what) in [("latency_s", ""), ("queue_s", ", of it waiting")] {
            let marks: Vec<Mark> = lines
                .iter()
                .flat_map(|line| {
                    AT.iter().enumerate().map(move |(i, at)| (i, line.number(&format!("{field}.{at}"))))
                })
                .filter_map(|(i, y)| {
                    Some(Mark { x: i as f64, y: y.filter(|y| *y >= 0.0)?, ..Mark::default() })
                })
                .collect();
            if !marks.is_empty() {
                let stroke = if what.is_empty() { Stroke::Solid } else { Stroke::Dashed };
                let one = Series::nth(n, &format!("{name}{what}")).through(marks);
                series.push(Series { stroke, ..one });
            }
        }
    }
    if series.is_empty() {
        return Vec::new();
    }
    let (series, note) = first_lines(series);
    let ticks = AT.iter().enumerate().map(|(i, at)| (i as f64, (*at).to_owned())).collect();
    vec![Figure {
        id: "latency".into(),
        title: "Latencies under simulated load".into(),
        caption: format!(
            "From a request's arrival to its last token (solid), and how long of that it waited to be taken up (dashed).{note}"
        ),
        chart: Chart {
            x: Axis { ticks, ..Axis::new("percentile of the requests", Scale::Linear) },
            y: Axis::new("seconds", scale(&series)),
            series,
            guides: Vec::new(),
        },
    }]
}

/// One figure for each evaluation.
pub fn quality(runs: &[Run]) -> Vec<Figure> {
    let mut names: Vec<&str> = Vec::new();
    for line in runs.iter().flat_map(|run| &run.lines) {
        let drawn =
            line.kind == Kind::Eval && line.number("value").is_some() && line.positive("steps").is_some();
        if let Some(name) = line.text("eval").filter(|name| drawn && !names.contains(name)) {
            names.push(name);
        }
    }
    let figure = |(i, name): (usize, &&str)| {
        let wanted = |line: &Line| line.kind == Kind::Eval && line.text("eval") == Some(*name);
        let fields =
            [("who", ""), ("network", ""), ("dtype", ""), ("order", "order "), ("length", "length ")];
        let (series, at) = Groups::new(runs, wanted, &fields)
            .series(|line| line.positive("steps"), |line| line.number("value"));
        let (series, note) = first_lines(series);
        let better =
            runs.iter().flat_map(|run| &run.lines).find(|line| wanted(line) && line.text("better").is_some());
        let better = match better.and_then(|line| line.text("better")) {
            Some("higher") => "Higher is better. ",
            Some("lower") => "Lower is better. ",
            _ => "",
        };
        let name = short(name, 60);
        Figure {
            id: format!("quality-{}", i + 1),
            title: format!("{name} against T"),
            caption: format!("{better}Bars: from low to high, where the evaluation gives them.{note}"),
            chart: Chart {
                x: Axis { ticks: ticks(&at), ..Axis::new("denoising steps T", Scale::Log) },
                y: Axis::new(&short(&name, 40), Scale::Linear),
                series,
                guides: Vec::new(),
            },
        }
    };
    names.iter().take(MOST_EVALS).enumerate().map(figure).collect()
}

/// Training runs in one figure: the smoothed loss of each, and its validations.
pub fn training(runs: &[Run]) -> Vec<Figure> {
    let trained: Vec<_> = runs.iter().filter_map(|run| Some((run, run.training.as_ref()?))).collect();
    let mut series = Vec::new();
    let mut seen = 0;
    for (n, (run, training)) in trained.iter().take(MAX_LINES / 2).enumerate() {
        let (raw, average) = smoothed(&training.history.training);
        let marks: Vec<Mark> = training
            .history
            .validation
            .iter()
            .filter(|(_, v)| v.nelbo.is_finite())
            .map(|(step, v)| Mark {
                x: *step as f64,
                y: v.nelbo,
                between: Some((v.nelbo - v.standard_error, v.nelbo + v.standard_error))
                    .filter(|(low, _)| low.is_finite()),
                label: String::new(),
            })
            .collect();
        seen += raw.len() + marks.len();
        if trained.len() == 1 && !raw.is_empty() {
            // What lies far outside would flatten the rest.
            let highest =
                average.iter().map(|p| p.1).chain(marks.iter().map(|m| m.y)).fold(f64::MIN, f64::max);
            let lowest = average.iter().map(|p| p.1).fold(f64::MAX, f64::min);
            let cut = |(x, y): (f64, f64)| {
                (x, y.clamp(lowest - (highest - lowest).max(0.1), highest * 1.15 + 0.05))
            };
            let line = thinned(&raw).into_iter().map(cut).collect();
            series.push(Series { stroke: Stroke::Faint, line, ..Series::nth(n, "training, each step") });
        }
        if !average.is_empty() {
            let label = format!("{}: training, smoothed", run.label);
            series.push(Series { line: thinned(&average), ..Series::nth(n, &label) });
        }
        if !marks.is_empty() {
            let colour = if trained.len() == 1 { 1 } else { n };
            let label = format!("{}: validation ± standard error", run.label);
            let one = Series::nth(colour, &label).through(marks);
            series.push(Series { stroke: Stroke::Dashed, ..one });
        }
    }
    if seen == 0 {
        return Vec::new();
    }
    let more = trained.len().saturating_sub(MAX_LINES / 2);
    let note = if more > 0 { format!(" {more} more runs are in the table only.") } else { String::new() };
    vec![Figure {
        id: "training".into(),
        title: "Training curves".into(),
        caption: format!(
            "The bound on the negative log-likelihood. Steps whose loss was not finite are left out.{note}"
        ),
        chart: Chart {
            x: Axis::new("step", Scale::Linear),
            y: Axis::new("NELBO (nats per token)", Scale::Linear),
            series,
            guides: Vec::new(),
        },
    }]
}
