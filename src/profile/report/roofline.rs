//! How near to what the machine can do: operations a second over operations a byte, under the measured ceilings.

use super::Figure;
use super::chart::{Axis, Chart, Guide, Mark, Scale, Series, Stroke};
use super::input::{Kind, Line, Run};
use super::numbers::{short, si};

/// Most rooflines of a page.
const MOST: usize = 6;

/// Ceilings of a machine: operations and bytes a second.
#[derive(Clone, Copy, Debug, Default)]
struct Ceilings {
    flops: Option<f64>,
    bytes: Option<f64>,
}

impl Ceilings {
    /// The highest that some lines tell: lines that measure one, else what is noted on the others.
    fn of<'a>(lines: impl Iterator<Item = &'a Line> + Clone) -> Self {
        let most = |of: &dyn Fn(&Line) -> Option<f64>| lines.clone().filter_map(of).reduce(f64::max);
        let measured = |key: &'static str| {
            let own = most(&|l: &Line| l.positive(key).filter(|_| l.is_ceiling()));
            own.or_else(|| most(&|l: &Line| l.positive(&format!("ceiling_{key}"))))
        };
        Self { flops: measured("flops_per_s"), bytes: measured("bytes_per_s") }
    }
}

/// What stands beside a point. Generations and steps are called by all that was asked for, too long for that; the legend has them.
fn name(line: &Line) -> String {
    let words = match line.kind {
        Kind::Kernel => line.text("kernel").or_else(|| line.text("stem")),
        Kind::Profile => line.text("op").or_else(|| line.text("kernel")).or_else(|| line.text("profile")),
        _ => None,
    };
    short(words.unwrap_or_default(), 28)
}

/// Points of one legend entry.
fn group(line: &Line) -> &'static str {
    match (line.kind, line.text("profile")) {
        (Kind::Profile, Some("op")) => "operations of a profile",
        (Kind::Profile, Some("total")) => "a whole profile",
        (Kind::Profile, _) => "kernels of a profile",
        (kind, _) => kind.name(),
    }
}

/// One for each run and device with points.
pub fn rooflines(runs: &[Run]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for run in runs {
        // Profile lines do not name their device: a file of them has one.
        let mut devices: Vec<Option<&str>> = Vec::new();
        for line in run.lines.iter().filter(|l| point(l).is_some()) {
            if !devices.contains(&line.text("device")) {
                devices.push(line.text("device"));
            }
        }
        for device in devices {
            let of_device = run
                .lines
                .iter()
                .filter(|l| l.text("device") == device || l.is_ceiling() && l.text("device").is_none());
            let ceilings = Ceilings::of(of_device.clone());
            let points: Vec<(&Line, [f64; 2])> = of_device
                .filter(|l| l.text("device") == device)
                .filter_map(|l| Some((l, point(l)?)))
                .collect();
            if figures.len() < MOST && !points.is_empty() {
                figures.push(figure(figures.len() + 1, &run.label, device, ceilings, &points));
            }
        }
    }
    figures
}

/// Operations a byte, and operations a second.
fn point(line: &Line) -> Option<[f64; 2]> {
    let drawn = !line.is_ceiling() && !matches!(line.kind, Kind::Flops | Kind::Eval);
    drawn.then(|| Some([line.intensity()?, line.flops_per_s()?])).flatten()
}

fn figure(
    n: usize,
    run: &str,
    device: Option<&str>,
    ceilings: Ceilings,
    points: &[(&Line, [f64; 2])],
) -> Figure {
    let mut groups: Vec<&'static str> = Vec::new();
    for (line, _) in points {
        if !groups.contains(&group(line)) {
            groups.push(group(line));
        }
    }
    let series = groups.iter().enumerate().map(|(i, &name_of)| {
        let of = points.iter().filter(|(line, _)| group(line) == name_of);
        let marks = of.map(|(line, [x, y])| Mark { x: *x, y: *y, between: None, label: name(line) });
        Series { stroke: Stroke::None, marks: marks.collect(), ..Series::nth(i, name_of) }
    });
    let (low, high) =
        points.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), (_, [x, _])| (low.min(*x), high.max(*x)));
    let ridge = ceilings.flops.zip(ceilings.bytes).map(|(flops, bytes)| flops / bytes);
    let (left, right) = (low.min(ridge.unwrap_or(low)) / 3.0, high.max(ridge.unwrap_or(high)) * 3.0);
    let mut guides = Vec::new();
    if let Some(bytes) = ceilings.bytes {
        let end = ridge.unwrap_or(right);
        let label = format!("{}B/s", si_unit(bytes));
        guides.push(Guide { line: vec![(left, left * bytes), (end, end * bytes)], label, at_end: false });
    }
    if let Some(flops) = ceilings.flops {
        let label = format!("{}FLOP/s", si_unit(flops));
        guides.push(Guide {
            line: vec![(ridge.unwrap_or(left), flops), (right, flops)],
            label,
            at_end: true,
        });
    }
    let caption = match (ceilings.flops, ceilings.bytes) {
        (Some(_), Some(_)) => {
            "Grey: the ceilings measured on this machine, by a copy and by a matrix product. A point on the line is as fast as they allow."
        }
        (None, None) => "No ceiling was measured in this run, so that none is drawn.",
        _ => "Grey: the one ceiling that this run has; the other was not measured.",
    };
    Figure {
        id: format!("roofline-{n}"),
        title: match device {
            Some(device) => format!("Roofline: {run}, {}", short(device, 80)),
            None => format!("Roofline: {run}"),
        },
        caption: caption.to_owned(),
        chart: Chart {
            x: Axis::new("operations per byte", Scale::Log),
            y: Axis::new("operations per second", Scale::Log),
            series: series.collect(),
            guides,
        },
    }
}

/// A number, a narrow space, and the letter of its unit.
fn si_unit(x: f64) -> String {
    let text = si(x);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_uppercase() || c == 'k');
    format!("{digits} {}", &text[digits.len()..])
}
