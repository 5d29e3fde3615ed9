//! One figure: axes, lines, marks with labels, as SVG. Every data point that is drawn is a `<circle>`, and nothing else is.

use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::numbers::si;
use crate::error::{Error, Result};

/// Of the drawing, in its own units; on the page it is as wide as there is room.
const SIZE: (u32, u32) = (960, 484);
/// Of the part inside the axes.
const LEFT: i32 = 92;
const RIGHT: i32 = 936;
const TOP: i32 = 18;
const BOTTOM: i32 = 430;
const FONT: u32 = 15;

/// Most marks of a figure.
pub const MAX_MARKS: usize = 2000;
/// Most lines of a figure.
pub const MAX_LINES: usize = 24;

pub const TEXT: RGBColor = RGBColor(40, 40, 40);
pub const GRID: RGBColor = RGBColor(225, 225, 225);
/// What lines and marks are drawn in, in turn. The page (`page.css`) has another for each, on a dark ground.
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 84, 12),
    RGBColor(42, 140, 74),
    RGBColor(142, 68, 173),
    RGBColor(154, 116, 0),
    RGBColor(194, 37, 92),
    RGBColor(11, 122, 117),
    RGBColor(92, 102, 112),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// Only what is above 0 has a place.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    pub title: String,
    pub scale: Scale,
    /// Ticks in place of round numbers.
    pub ticks: Vec<(f64, String)>,
    /// What must be seen beside the data.
    pub include: Vec<f64>,
}

impl Axis {
    pub fn new(title: &str, scale: Scale) -> Self {
        Self { title: title.to_owned(), scale, ticks: Vec::new(), include: Vec::new() }
    }
}

/// A data point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    pub x: f64,
    pub y: f64,
    /// Ends of the error bar.
    pub between: Option<(f64, f64)>,
    /// Written beside it where there is room.
    pub label: String,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    None,
    Solid,
    Faint,
    Dashed,
    Dotted,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend; nothing there when empty.
    pub label: String,
    pub colour: usize,
    pub stroke: Stroke,
    /// Through which the line goes.
    pub line: Vec<(f64, f64)>,
    pub marks: Vec<Mark>,
}

impl Series {
    /// The `n`-th of a figure: its colour, and its stroke once all colours are used up.
    pub fn nth(n: usize, label: &str) -> Self {
        let stroke = match n / COLOURS.len() {
            0 => Stroke::Solid,
            1 => Stroke::Dashed,
            _ => Stroke::Dotted,
        };
        Self {
            label: label.to_owned(),
            colour: n % COLOURS.len(),
            stroke,
            line: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// With marks, and a line through them by rising x: through the mean of those at one x.
    pub fn through(mut self, marks: Vec<Mark>) -> Self {
        let mut sorted: Vec<(f64, f64)> = marks.iter().map(|m| (m.x, m.y)).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.line = sorted
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| (same[0].0, same.iter().map(|p| p.1).sum::<f64>() / same.len() as f64))
            .collect();
        self.marks = marks;
        self
    }
}

/// A line with words at one end, such as a roof.
#[derive(Clone, Debug)]
pub struct Guide {
    pub line: Vec<(f64, f64)>,
    pub label: String,
    /// The words stand at the last point, to its left; else at the first, to its right.
    pub at_end: bool,
}

/// A figure.
#[derive(Clone, Debug)]
pub struct Chart {
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub guides: Vec<Guide>,
}

/// A figure that was drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub svg: String,
    /// Data points that have a place on the axes, and how many of them are drawn.
    pub marks: usize,
    pub drawn: usize,
}

/// Where values stand.
struct Place {
    scale: Scale,
    low: f64,
    high: f64,
    pixels: [i32; 2],
}

impl Place {
    fn transform(scale: Scale, x: f64) -> f64 {
        if scale == Scale::Log { x.log10() } else { x }
    }

    fn new(axis: &Axis, data: impl Iterator<Item = f64>, pixels: [i32; 2], from_zero: bool) -> Self {
        let Axis { scale, include, ticks, .. } = axis;
        let all = data.chain(include.iter().copied()).chain(ticks.iter().map(|t| t.0));
        let all = all.map(|x| Self::transform(*scale, x)).filter(|x| x.is_finite());
        let (mut low, mut high) =
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if from_zero && *scale == Scale::Linear && low >= 0.0 && low < 0.6 * high {
            low = 0.0;
        }
        // One value, or all the same, stands in the middle.
        let least = if *scale == Scale::Log { 0.15 } else { (1e-3 * high.abs().max(low.abs())).max(1e-12) };
        let margin = (0.06 * (high - low)).max(least);
        let keep = low == 0.0 && *scale == Scale::Linear && from_zero;
        Self { scale: *scale, low: if keep { low } else { low - margin }, high: high + margin, pixels }
    }

    fn has(&self, x: f64) -> bool {
        Self::transform(self.scale, x).is_finite()
    }

    /// The pixel, cut to the axis.
    fn at(&self, x: f64) -> i32 {
        let part = (Self::transform(self.scale, x) - self.low) / (self.high - self.low);
        let [first, last] = self.pixels.map(f64::from);
        (first + part.clamp(0.0, 1.0) * (last - first)).round() as i32
    }

    fn holds(&self, x: f64) -> bool {
        let x = Self::transform(self.scale, x);
        x >= self.low - 1e-9 && x <= self.high + 1e-9
    }

    /// Round numbers.
    fn ticks(&self) -> Vec<(f64, String)> {
        let named = |x: f64| (x, si(x));
        if self.scale == Scale::Linear {
            let raw = (self.high - self.low) / 6.0;
            let power = 10_f64.powf(raw.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(raw);
            let first = (self.low / step).ceil();
            let digits = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
            let name = |x: f64| if step < 1.0 { format!("{x:.digits$}") } else { si(x) };
            return (0..=12).map(|i| (first + f64::from(i)) * step).map(|x| (x, name(x))).collect();
        }
        let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
        let every = ((self.high - self.low) / 8.0).ceil().max(1.0) as usize;
        let within: &[f64] = if self.high - self.low < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        decades.step_by(every).flat_map(|d| within.iter().map(move |m| named(m * 10_f64.powi(d)))).collect()
    }
}

/// What words take, about: a letter is a little over half as wide as the font is high.
fn width(text: &str) -> i32 {
    (text.chars().count() as f64 * f64::from(FONT) * 0.56).ceil() as i32
}

#[derive(Clone, Copy)]
struct Rect([i32; 4]);

impl Rect {
    fn meets(&self, other: &Rect) -> bool {
        let (Rect([a, b, c, d]), Rect([e, f, g, h])) = (self, other);
        a < g && e < c && b < h && f < d
    }

    fn inside(&self) -> bool {
        let Rect([left, top, right, bottom]) = *self;
        left >= LEFT + 2 && right <= RIGHT - 2 && top >= TOP + 2 && bottom <= BOTTOM - 2
    }
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawing<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

fn colour(n: usize) -> RGBColor {
    COLOURS[n % COLOURS.len()]
}

impl Chart {
    /// Draws it; `alt` says what it shows to who cannot see it.
    ///
    /// # Errors
    /// [`Error::Request`] when the drawing library fails.
    pub fn draw(&self, alt: &str) -> Result<Drawn> {
        let x = Place::new(&self.x, self.values(|p| p.0, false), [LEFT, RIGHT], false);
        let y = Place::new(&self.y, self.values(|p| p.1, true), [BOTTOM, TOP], true);
        let has = |m: &Mark| x.has(m.x) && y.has(m.y);
        let marks = self.series.iter().flat_map(|s| &s.marks).filter(|m| has(m)).count();
        let mut svg = String::new();
        let drawn = self.paint(&x, &y, marks.div_ceil(MAX_MARKS).max(1), &mut svg);
        let drawn = drawn.map_err(|e| Error::request(format!("a figure cannot be drawn: {e}")))?;
        let head = format!("<svg role=\"img\" aria-label=\"{}\" ", super::numbers::escape(alt));
        Ok(Drawn { svg: svg.replacen("<svg ", &head, 1), marks, drawn })
    }

    /// All coordinates of one kind, those of error bars too.
    fn values(&self, of: fn(&(f64, f64)) -> f64, bars: bool) -> impl Iterator<Item = f64> {
        let lines = self.series.iter().flat_map(|s| &s.line).chain(self.guides.iter().flat_map(|g| &g.line));
        let marks = self.series.iter().flat_map(|s| &s.marks);
        let ends = marks.clone().filter_map(move |m| m.between.filter(|_| bars));
        let points = marks.map(move |m| of(&(m.x, m.y)));
        lines.map(of).chain(points).chain(ends.flat_map(|(low, high)| [low, high]))
    }

    fn paint(&self, x: &Place, y: &Place, every: usize, svg: &mut String) -> Drawing<usize> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        self.axes(&root, x, y)?;
        let point = |&(a, b): &(f64, f64)| (x.at(a), y.at(b));
        let mut taken = Vec::new();
        for guide in &self.guides {
            let line: Vec<_> = guide.line.iter().filter(|p| x.has(p.0) && y.has(p.1)).map(point).collect();
            root.draw(&PathElement::new(line.clone(), TEXT.mix(0.55).stroke_width(2)))?;
            taken.extend(guide_label(&root, guide, &line)?);
            taken.extend(line.windows(2).flat_map(|ends| along(ends[0], ends[1])));
        }
        for series in &self.series {
            let line: Vec<_> = series.line.iter().filter(|p| x.has(p.0) && y.has(p.1)).map(point).collect();
            if line.len() > 1 {
                stroke(&root, line, series)?;
            }
        }
        let mut drawn = 0;
        let all = self.series.iter().flat_map(|s| s.marks.iter().map(move |m| (s, m)));
        let seen: Vec<_> = all.filter(|(_, m)| x.has(m.x) && y.has(m.y)).step_by(every).collect();
        for &(series, mark) in &seen {
            let at = point(&(mark.x, mark.y));
            let style = colour(series.colour).stroke_width(2);
            if let Some((low, high)) = mark.between.filter(|(low, high)| y.has(*low) && y.has(*high)) {
                let (low, high) = (y.at(low), y.at(high));
                // Caps of a bar that is hardly longer than the mark is high would make it a square.
                let cap = if low - high > 12 { 4 } else { 0 };
                for ends in [
                    [(at.0, low), (at.0, high)],
                    [(at.0 - cap, low), (at.0 + cap, low)],
                    [(at.0 - cap, high), (at.0 + cap, high)],
                ] {
                    root.draw(&PathElement::new(ends.to_vec(), style))?;
                }
            }
            root.draw(&Circle::new(at, 4, colour(series.colour).filled()))?;
            taken.push(Rect([at.0 - 5, at.1 - 5, at.0 + 5, at.1 + 5]));
            drawn += 1;
        }
        for &(_, mark) in seen.iter().filter(|(_, m)| !m.label.is_empty()).take(MAX_LINES) {
            mark_label(&root, point(&(mark.x, mark.y)), &mark.label, &mut taken)?;
        }
        if self.series.iter().all(|s| s.line.is_empty() && s.marks.is_empty()) {
            let style = font().pos(Pos::new(HPos::Center, VPos::Center));
            root.draw_text(
                "no number to be drawn",
                &style,
                (i32::midpoint(LEFT, RIGHT), i32::midpoint(TOP, BOTTOM)),
            )?;
        }
        root.present()?;
        Ok(drawn)
    }

    fn axes(&self, root: &Canvas<'_>, x: &Place, y: &Place) -> Drawing {
        let (grid, axis) = (GRID.stroke_width(1), TEXT.stroke_width(1));
        let line = |a, b, style| root.draw(&PathElement::new(vec![a, b], style));
        let ticks = |axis: &Axis, place: &Place| {
            let ticks = if axis.ticks.is_empty() { place.ticks() } else { axis.ticks.clone() };
            ticks.into_iter().filter(|(v, _)| place.holds(*v)).collect::<Vec<_>>()
        };
        let centred = font().pos(Pos::new(HPos::Center, VPos::Top));
        let mut free = i32::MIN;
        for (value, name) in ticks(&self.x, x) {
            let at = x.at(value);
            line((at, TOP), (at, BOTTOM), grid)?;
            line((at, BOTTOM), (at, BOTTOM + 5), axis)?;
            let half = width(&name) / 2;
            if at - half > free {
                root.draw_text(&name, &centred, (at, BOTTOM + 10))?;
                free = at + half + 6;
            }
        }
        let right = font().pos(Pos::new(HPos::Right, VPos::Center));
        for (value, name) in ticks(&self.y, y) {
            let at = y.at(value);
            line((LEFT, at), (RIGHT, at), grid)?;
            line((LEFT - 5, at), (LEFT, at), axis)?;
            root.draw_text(&name, &right, (LEFT - 10, at))?;
        }
        line((LEFT, BOTTOM), (RIGHT, BOTTOM), axis)?;
        line((LEFT, TOP), (LEFT, BOTTOM), axis)?;
        let bottom = font().pos(Pos::new(HPos::Center, VPos::Bottom));
        root.draw_text(&self.x.title, &bottom, (i32::midpoint(LEFT, RIGHT), SIZE.1 as i32 - 6))?;
        let turned = font().transform(FontTransform::Rotate270).pos(Pos::new(HPos::Center, VPos::Top));
        root.draw_text(&self.y.title, &turned, (10, i32::midpoint(TOP, BOTTOM)))
    }
}

fn font() -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&TEXT)
}

fn stroke(root: &Canvas<'_>, line: Vec<(i32, i32)>, series: &Series) -> Drawing {
    let whole = colour(series.colour).mix(1.0);
    match series.stroke {
        Stroke::None => Ok(()),
        Stroke::Solid => root.draw(&PathElement::new(line, whole.stroke_width(2))),
        Stroke::Faint => root.draw(&PathElement::new(line, whole.mix(0.3).stroke_width(1))),
        Stroke::Dashed => root.draw(&DashedPathElement::new(line, 8, 5, whole.stroke_width(2))),
        Stroke::Dotted => root.draw(&DashedPathElement::new(line, 2, 4, whole.stroke_width(2))),
    }
}

/// The words of a guide, above its line, and the room that they take.
fn guide_label(root: &Canvas<'_>, guide: &Guide, line: &[(i32, i32)]) -> Drawing<Option<Rect>> {
    let end = if guide.at_end { line.last() } else { line.first() };
    let Some(&(x, y)) = end.filter(|_| !guide.label.is_empty()) else { return Ok(None) };
    let words = width(&guide.label);
    let (left, anchor, h) =
        if guide.at_end { (x - words - 4, x - 4, HPos::Right) } else { (x + 8, x + 8, HPos::Left) };
    // A line that rises from its first point would go through words above it: they stand below.
    let above = guide.at_end && y - 22 > TOP;
    let (top, baseline, v) = if above { (y - 22, y - 5, VPos::Bottom) } else { (y + 6, y + 6, VPos::Top) };
    root.draw_text(&guide.label, &font().pos(Pos::new(h, v)), (anchor, baseline))?;
    Ok(Some(Rect([left, top, left + words, top + 20])))
}

/// The room that a straight line takes, in small squares.
fn along((a, b): (i32, i32), (c, d): (i32, i32)) -> impl Iterator<Item = Rect> {
    let parts = ((c - a).abs().max((d - b).abs()) / 4).max(1);
    (0..=parts).map(move |i| {
        let (x, y) = (a + (c - a) * i / parts, b + (d - b) * i / parts);
        Rect([x - 2, y - 2, x + 2, y + 2])
    })
}

/// The words of a mark where they meet nothing else, or nowhere.
fn mark_label(root: &Canvas<'_>, (x, y): (i32, i32), label: &str, taken: &mut Vec<Rect>) -> Drawing {
    let (w, h) = (width(label), 18);
    let beside = [
        (x + 8, y - 9),
        (x - 8 - w, y - 9),
        (x - w / 2, y - 26),
        (x - w / 2, y + 8),
        (x + 6, y - 25),
        (x + 6, y + 7),
        (x - 6 - w, y - 25),
        (x - 6 - w, y + 7),
    ];
    // Further away, with a thin line to the mark.
    let away = [34, 58, 82, 106].into_iter().flat_map(|far| {
        [
            (x + 14, y + far),
            (x - 14 - w, y + far),
            (x + 14, y - far - h),
            (x - 14 - w, y - far - h),
            (x - w / 2, y + far),
        ]
    });
    let free = beside.into_iter().map(|place| (place, false)).chain(away.map(|place| (place, true)));
    let free = free.into_iter().find(|&((left, top), _)| {
        let room = Rect([left, top, left + w, top + h]);
        room.inside() && !taken.iter().any(|other| room.meets(other))
    });
    let Some(((left, top), far)) = free else { return Ok(()) };
    if far {
        let near = (x.clamp(left, left + w), if top > y { top } else { top + h });
        root.draw(&PathElement::new(vec![(x, y), near], TEXT.mix(0.4).stroke_width(1)))?;
    }
    taken.push(Rect([left, top, left + w, top + h]));
    root.draw_text(label, &font().pos(Pos::new(HPos::Left, VPos::Center)), (left, top + h / 2))
}
