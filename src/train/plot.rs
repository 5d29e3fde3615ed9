//! `loss.svg`: losses over the steps of a run.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::files::write_whole;
use super::metrics::History;
use crate::error::{Error, Result};

const SIZE: (u32, u32) = (960, 540);
/// Most places along the step axis at which something is drawn.
const PLACES: usize = 800;
/// What the losses are smoothed over: this part of the run.
const WINDOW: f64 = 0.02;

const RAW: RGBColor = RGBColor(31, 119, 180);
const SMOOTH: RGBColor = RGBColor(11, 61, 110);
const VALIDATION: RGBColor = RGBColor(214, 84, 12);
const TEXT: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Draws a run to `path`.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub fn write(history: &History, path: &Path) -> Result<()> {
    let mut svg = String::new();
    draw(history, &mut svg).map_err(|e| Error::io("draw", path, std::io::Error::other(e.to_string())))?;
    write_whole(path, svg.as_bytes())
}

pub(crate) type Point = (f64, f64);

/// Losses that are finite, and a debiased exponential moving average of them. To the average a loss counts as no more
/// than six times as far above the median as the 99th percentile, so that a spike does not drown the run.
pub(crate) fn smoothed(training: &[(u64, f64)]) -> (Vec<Point>, Vec<Point>) {
    let finite: Vec<Point> =
        training.iter().filter(|(_, y)| y.is_finite()).map(|&(x, y)| (x as f64, y)).collect();
    let keep = 1.0 - 2.0 / (1.0 + (WINDOW * finite.len() as f64).max(5.0));
    let quantile = quantiles(&finite);
    let limit = quantile(0.5) + 6.0 * (quantile(0.99) - quantile(0.5));
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = finite.iter().map(|&(x, y)| {
        let y = y.min(limit);
        (sum, weight) = (keep * sum + (1.0 - keep) * y, keep * weight + (1.0 - keep));
        (x, sum / weight)
    });
    let average = average.collect();
    (finite, average)
}

/// What part `q` of the losses lies below; NaN without losses.
fn quantiles(points: &[Point]) -> impl Fn(f64) -> f64 + use<> {
    let mut sorted: Vec<f64> = points.iter().map(|p| p.1).collect();
    sorted.sort_by(f64::total_cmp);
    move |q| {
        let at = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// At most two points for each of [`PLACES`]: the lowest and the highest of those that fall together.
pub(crate) fn thinned(points: &[Point]) -> Vec<Point> {
    if points.len() <= 2 * PLACES {
        return points.to_vec();
    }
    let mut out = Vec::with_capacity(2 * PLACES);
    for part in points.chunks(points.len().div_ceil(PLACES)) {
        let by = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        if let (Some(&low), Some(&high)) = (part.iter().min_by(by), part.iter().max_by(by)) {
            out.extend(if low.0 <= high.0 { [low, high] } else { [high, low] });
        }
    }
    out
}

/// What the vertical axis shows: all of the average and of the validations, and the raw losses but for the outermost
/// hundredths.
fn range(raw: &[Point], average: &[Point], validation: &[(f64, f64, f64)]) -> (f64, f64) {
    let quantile = quantiles(raw);
    let all = [quantile(0.01), quantile(0.99)].into_iter().chain(average.iter().map(|p| p.1));
    let all = all.chain(validation.iter().flat_map(|&(_, y, e)| [y - e, y + e]));
    let (low, high) =
        all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = (0.06 * (high - low)).max(1e-3 * high.abs()).max(1e-9);
    // A loss is not negative, and neither is its axis.
    (if low >= 0.0 { (low - margin).max(0.0) } else { low - margin }, high + margin)
}

fn draw(history: &History, svg: &mut String) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let (raw, average) = smoothed(&history.training);
    let validation: Vec<(f64, f64, f64)> = history
        .validation
        .iter()
        .filter(|(_, v)| v.nelbo.is_finite())
        .map(|(step, v)| {
            (*step as f64, v.nelbo, if v.standard_error.is_finite() { v.standard_error } else { 0.0 })
        })
        .collect();
    let (low, high) = range(&raw, &average, &validation);
    let steps = raw.iter().map(|p| p.0).chain(validation.iter().map(|p| p.0));
    let last = steps.fold(1.0, f64::max);

    let font = |size: u32| ("sans-serif", size).into_font().color(&TEXT);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .margin_right(28)
        .x_label_area_size(48)
        .y_label_area_size(68)
        .build_cartesian_2d(0.0..last * 1.01, low..high)?;
    let digits = (2.0 - (high - low).log10().floor()).clamp(1.0, 6.0) as usize;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(TEXT.stroke_width(1))
        .x_labels(9)
        .y_labels(8)
        .x_label_formatter(&|x| thousands(*x))
        .y_label_formatter(&|y| format!("{y:.*}", digits - 1))
        .label_style(font(15))
        .axis_desc_style(font(16))
        .x_desc("step")
        .y_desc("NELBO (nats per token)")
        .draw()?;

    let line = |color: RGBAColor, width: u32| color.stroke_width(width);
    if !raw.is_empty() {
        let (faint, dark) = (line(RAW.mix(0.3), 1), line(SMOOTH.mix(1.0), 2));
        // What lies outside the axis is cut to its edge.
        let cut = |points: Vec<Point>| points.into_iter().map(move |(x, y)| (x, y.clamp(low, high)));
        chart
            .draw_series(LineSeries::new(cut(thinned(&raw)), faint))?
            .label("training, each step")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], RAW.mix(0.45).stroke_width(2)));
        chart
            .draw_series(LineSeries::new(cut(thinned(&average)), dark))?
            .label("training, smoothed")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], dark));
    }
    if !validation.is_empty() {
        let style = line(VALIDATION.mix(1.0), 2);
        let marker = |at| Circle::new(at, 4, VALIDATION.filled());
        let ends = |&(x, y, e): &(f64, f64, f64)| [(x, y - e), (x, y + e)];
        chart.draw_series(validation.iter().map(|v| PathElement::new(ends(v), style)))?;
        let caps = validation.iter().flat_map(ends);
        chart
            .draw_series(caps.map(|at| EmptyElement::at(at) + PathElement::new([(-4, 0), (4, 0)], style)))?;
        chart
            .draw_series(LineSeries::new(validation.iter().map(|&(x, y, _)| (x, y)), style))?
            .label("NELBO on validation ± standard error")
            .legend(move |(x, y)| {
                EmptyElement::at((x, y))
                    + PathElement::new([(0, 0), (24, 0)], style)
                    + Circle::new((12, 0), 4, VALIDATION.filled())
            });
        chart.draw_series(validation.iter().map(|&(x, y, _)| marker((x, y))))?;
    }
    if raw.is_empty() && validation.is_empty() {
        let centre = font(18).pos(Pos::new(HPos::Center, VPos::Center));
        root.draw_text("nothing recorded yet", &centre, (SIZE.0 as i32 / 2, SIZE.1 as i32 / 2))?;
    } else {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(12)
            .legend_area_size(32)
            .background_style(WHITE.mix(0.9))
            .border_style(GRID)
            .label_font(font(15))
            .draw()?;
    }
    root.present()
}

/// A whole number with its thousands apart.
pub(crate) fn thousands(x: f64) -> String {
    let digits = format!("{:.0}", x.abs());
    let mut out = String::from(if x < 0.0 { "-" } else { "" });
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Validation;

    fn svg(history: &History) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loss.svg");
        write(history, &path).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    /// A run with noise, a skipped step and two outliers.
    fn history(steps: u64) -> History {
        let noise = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1 << 24) as f64 - 0.5;
        let loss = |i: u64| match i {
            17 => f64::NAN,
            40 => 1e9,
            _ => 3.0 + 4.0 * (-(i as f64) / (0.2 * steps as f64)).exp() + 1.6 * noise(i),
        };
        let check = |i: u64| {
            let step = i * steps / 10;
            let nelbo = 3.1 + 3.6 * (-(step as f64) / (0.2 * steps as f64)).exp();
            (step, Validation { nelbo, unweighted: nelbo, standard_error: 0.08 })
        };
        History {
            training: (1..=steps).map(|i| (i, loss(i))).collect(),
            validation: (0..=10).map(check).collect(),
        }
    }

    #[test]
    fn says_what_it_shows() {
        let text = svg(&history(300));
        for word in ["step", "NELBO (nats per token)", "training, smoothed", "NELBO on validation"] {
            assert!(text.contains(word), "{word}");
        }
        assert_eq!(text.matches("<circle").count(), 12, "eleven markers, one in the legend");
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn long_runs_make_no_long_files() {
        let text = svg(&history(200_000));
        assert!(text.len() < 200_000, "{}", text.len());
    }

    #[test]
    fn few_points_or_none_are_drawn() {
        assert!(svg(&History::default()).contains("nothing recorded yet"));
        let one = History { training: vec![(1, 0.0)], validation: Vec::new() };
        assert!(svg(&one).contains("smoothed"));
        let broken = History { training: vec![(1, f64::NAN), (2, f64::INFINITY)], validation: Vec::new() };
        assert!(svg(&broken).contains("nothing recorded yet"));
        let only = Validation { nelbo: 2.0, unweighted: 2.0, standard_error: f64::NAN };
        let only = History { training: Vec::new(), validation: vec![(0, only)] };
        assert!(svg(&only).contains("NELBO"));
    }

    #[test]
    fn the_average_of_a_constant_is_the_constant() {
        let (raw, average) = smoothed(&(0..100).map(|i| (i, 2.5)).collect::<Vec<_>>());
        assert_eq!((raw.len(), average.len()), (100, 100));
        assert!(average.iter().all(|p| (p.1 - 2.5).abs() < 1e-12));
    }

    #[test]
    fn a_spike_does_not_drown_the_run() {
        let (raw, average) = smoothed(&history(20_000).training);
        let (low, high) = range(&raw, &average, &[]);
        assert!(raw.iter().any(|p| p.1 == 1e9) && low < 2.5 && (7.0..12.0).contains(&high), "{low} {high}");
        // What is no spike counts as it is, though it be large.
        let (_, average) = smoothed(&[(1, 1.0), (2, 9.0), (3, 9.0)]);
        assert_eq!(average[0].1, 1.0);
        assert!(average[2].1 > 6.0, "{average:?}");
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            [0.0, 9000.0, 10_000.0, 1_234_567.0].map(thousands),
            ["0", "9000", "10\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }
}
