//! `quality.svg`: quality against T, with NFE and time beside it.

use std::io::Write as _;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::results::{About, Summary};
use super::task::Unit;
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::profile::report::chart::{COLOURS, GRID, TEXT};

const SIZE: (u32, u32) = (960, 760);

/// Whether there are several T to be drawn.
pub fn is_sweep(summaries: &[Summary]) -> bool {
    let mut steps: Vec<usize> = summaries.iter().filter_map(|s| s.steps).collect();
    steps.sort_unstable();
    steps.dedup();
    steps.len() > 1
}

/// A line of a panel: x, y, ends of the bar.
struct Series {
    label: String,
    points: Vec<(f64, f64, f64, f64)>,
}

/// What is drawn over one another.
struct Panel {
    title: String,
    axis: String,
    /// The vertical axis is logarithmic: the points are logarithms to base 10.
    log: bool,
    series: Vec<Series>,
}

/// A vertical axis whose ends are further apart is logarithmic.
const FAR: f64 = 12.0;

/// Draws a sweep to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Io`] when it cannot be drawn or written.
pub fn write(path: &Path, about: &About, summaries: &[Summary]) -> Result<()> {
    let mut svg = String::new();
    draw(&panels(about, summaries), &mut svg)
        .map_err(|e| Error::io("draw", path, std::io::Error::other(e.to_string())))?;
    let mut file = AtomicFile::create(path)?;
    file.write_all(svg.as_bytes()).map_err(|e| Error::io("write", path, e))?;
    file.commit()
}

/// The first metric and others of its unit; forward passes; seconds.
fn panels(about: &About, summaries: &[Summary]) -> [Panel; 3] {
    let unit = summaries.first().map_or(Unit::Plain, |s| s.metric.unit);
    let name = |s: &Summary| match s.remask {
        Some(true) => format!("{}, remasking", s.metric.name),
        Some(false) => format!("{}, no remasking", s.metric.name),
        None => s.metric.name.to_owned(),
    };
    let scale = if unit == Unit::Share { 100.0 } else { 1.0 };
    let mut quality: Vec<Series> = Vec::new();
    for s in summaries.iter().filter(|s| s.metric.unit == unit && s.value.is_finite()) {
        let Some(t) = s.steps else { continue };
        let label = name(s);
        let point = (t as f64, s.value * scale, s.low * scale, s.high * scale);
        let room = quality.len() < COLOURS.len();
        match quality.iter_mut().find(|series| series.label == label) {
            Some(series) => series.points.push(point),
            None if room => quality.push(Series { label, points: vec![point] }),
            None => {}
        }
    }
    let ends = quality
        .iter()
        .flat_map(|s| &s.points)
        .fold((f64::MAX, f64::MIN), |e, p| (e.0.min(p.2), e.1.max(p.3)));
    let log = unit == Unit::Exp && ends.0 > 0.0 && ends.1 > FAR * ends.0;
    if log {
        for point in quality.iter_mut().flat_map(|s| &mut s.points) {
            *point = (point.0, point.1.log10(), point.2.log10(), point.3.log10());
        }
    }
    let first = summaries.first().map(|s| s.metric);
    let beside = |label: &str, of: fn(&Summary) -> f64| {
        let mut all: Vec<Series> = Vec::new();
        for s in summaries.iter().filter(|s| Some(s.metric) == first) {
            let Some(t) = s.steps else { continue };
            let label = match s.remask {
                Some(true) => format!("{label}, remasking"),
                Some(false) => format!("{label}, no remasking"),
                None => label.to_owned(),
            };
            let point = (t as f64, of(s), of(s), of(s));
            match all.iter_mut().find(|series| series.label == label) {
                Some(series) => series.points.push(point),
                None => all.push(Series { label, points: vec![point] }),
            }
        }
        all
    };
    let axis = match unit {
        Unit::Share => "per cent",
        Unit::Plain => "value",
        Unit::Exp => "perplexity",
    };
    [
        Panel {
            title: format!("{} of {} against T; bars are 95 %", about.task, about.model),
            axis: axis.into(),
            log,
            series: quality,
        },
        Panel {
            title: "Forward passes a sample (NFE)".into(),
            axis: "NFE".into(),
            log: false,
            series: beside("NFE", |s| s.nfe),
        },
        Panel {
            title: format!("Time for all items, {}", about.device),
            axis: "seconds".into(),
            log: false,
            series: beside("seconds", |s| s.seconds),
        },
    ]
}

type Drawn<T> = std::result::Result<T, DrawingAreaErrorKind<std::io::Error>>;

fn draw(panels: &[Panel; 3], svg: &mut String) -> Drawn<()> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(460);
    let (left, right) = below.split_horizontally(SIZE.0 / 2);
    let [quality, nfe, time] = panels;
    panel(&above, quality, true)?;
    panel(&left, nfe, false)?;
    panel(&right, time, false)?;
    root.present()
}

/// A number of the vertical axis.
fn tick(y: f64, log: bool) -> String {
    let y = if log { 10f64.powf(y) } else { y };
    match y.abs() {
        size if size >= 100.0 || y.fract() == 0.0 => format!("{y:.0}"),
        size if size >= 10.0 => format!("{y:.1}"),
        _ => {
            let text = format!("{y:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn panel<'a>(area: &DrawingArea<SVGBackend<'a>, Shift>, panel: &Panel, bars: bool) -> Drawn<()> {
    let points = || panel.series.iter().flat_map(|s| &s.points).filter(|p| p.1.is_finite());
    let ends = |of: fn(&(f64, f64, f64, f64)) -> f64| {
        points()
            .map(of)
            .filter(|x| x.is_finite())
            .fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)))
    };
    let (first, last) = ends(|p| p.0);
    let (low, _) = ends(|p| p.2);
    let (_, high) = ends(|p| p.3);
    if first > last || low > high {
        return Ok(());
    }
    // Zero belongs to what is counted; of losses only the range that was met is of interest.
    let from_zero = !panel.log && low >= 0.0 && low < 0.6 * high;
    let margin = (0.07 * (high - low)).max(1e-3 * high.abs()).max(1e-9);
    let range = (if from_zero { 0.0 } else { low - margin })..high + margin;
    let font = |size: u32| ("sans-serif", size).into_font().color(&TEXT);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(24)
        .caption(&panel.title, font(16))
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d((first * 0.9..last * 1.12).log_scale().base(2.0), range)?;
    chart
        .configure_mesh()
        .x_desc("T")
        .y_desc(panel.axis.as_str())
        .label_style(font(13))
        .axis_desc_style(font(14))
        .axis_style(TEXT)
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| tick(y, panel.log))
        .draw()?;
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let mut points = series.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line = points.iter().map(|p| (p.0, p.1));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(&series.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|p| Circle::new((p.0, p.1), 4, colour.filled())))?;
        if bars {
            let bar =
                |p: &(f64, f64, f64, f64)| PathElement::new([(p.0, p.2), (p.0, p.3)], colour.stroke_width(1));
            chart.draw_series(points.iter().map(bar))?;
        }
    }
    if panel.series.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(GRID)
            .label_font(font(13))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::task::{Better, Metric};
    use super::*;

    fn summary(steps: usize, value: f64, unit: Unit) -> Summary {
        Summary {
            metric: Metric { name: "m", better: Better::Lower, unit },
            steps: Some(steps),
            remask: None,
            items: 3,
            trials: vec![value],
            value,
            sd: 0.0,
            low: value * 0.9,
            high: value * 1.1,
            nfe: steps as f64,
            seconds: 1.0,
        }
    }

    #[test]
    fn perplexities_that_are_far_apart_are_drawn_as_logarithms() {
        let about = About::example();
        let of =
            |far: f64, unit| panels(&about, &[summary(1, 10.0 * far, unit), summary(2, 10.0, unit)])[0].log;
        assert!(of(20.0, Unit::Exp) && !of(5.0, Unit::Exp) && !of(20.0, Unit::Share));
        assert_eq!(
            (tick(2.0, true), tick(0.25, false), tick(12.5, false)),
            ("100".into(), "0.25".into(), "12.5".into())
        );
        assert!(is_sweep(&[summary(1, 1.0, Unit::Plain), summary(2, 1.0, Unit::Plain)]));
        assert!(!is_sweep(&[summary(1, 1.0, Unit::Plain), summary(1, 1.0, Unit::Plain)]));
    }
}
