//! A page of what was measured: rooflines, speeds, latencies, quality and training curves, with the numbers behind them. One file
//! that needs nothing but a browser. `docs/report.md` says what it is made of.

pub(crate) mod chart;
mod figures;
mod input;
mod numbers;
mod page;
mod roofline;
mod tables;

pub use input::{Kind, Line, Run, read};

use crate::error::Result;

/// A picture with its heading.
struct Figure {
    /// Of the element.
    id: String,
    title: String,
    /// What is to be known to read it; plain text.
    caption: String,
    chart: chart::Chart,
}

/// What the page could show and does not.
struct Missing {
    title: &'static str,
    /// What makes it; plain text, commands between backquotes.
    how: &'static str,
}

/// The page of some runs.
///
/// # Errors
/// [`Error::Request`](crate::Error::Request) when a figure cannot be drawn.
pub fn html(runs: &[Run]) -> Result<String> {
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for (figures, absent) in [
        (roofline::rooflines(runs), Missing { title: "Rooflines", how: HOW[0] }),
        (figures::speed(runs), Missing { title: "Tokens per second against T and batch", how: HOW[1] }),
        (figures::latency(runs), Missing { title: "Latencies", how: HOW[2] }),
        (figures::quality(runs), Missing { title: "Quality against T", how: HOW[3] }),
        (figures::training(runs), Missing { title: "Training curves", how: HOW[4] }),
    ] {
        if figures.is_empty() {
            missing.push(absent);
        }
        all.extend(figures);
    }
    page::page(runs, &all, &missing)
}

const HOW: [&str; 5] = [
    "A file of `lacuna profile ... --json`, or of `lacuna bench ... --json` whose lines have flops, bytes and ceilings.",
    "A file of `lacuna bench ... --json` with lines of \"bench\": \"generate\", of several T or batches.",
    "A file of `lacuna bench ... --json` with lines of \"bench\": \"serve-sim\".",
    "A file of lines {\"eval\": NAME, \"steps\": T, \"value\": x}, one a setting: see docs/report.md.",
    "The folder of a training run: what `lacuna adapt`, `pretrain`, `sft` or `train-ar` wrote to `--output`.",
];
