//! `lacuna bench compare`: what became faster or slower between two files of measurements.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::super::Context;
use super::super::terminal::{Style, note, printable, println};
use super::line::{SCHEMA, quantile};
use super::output::duration;
use crate::error::{Error, Result};
use crate::io::read_limited;
use crate::profile::median;
use crate::rng::{Purpose, Rng};

#[derive(Debug, ClapArgs)]
pub struct CompareArgs {
    /// Measurements before: JSON lines
    #[arg(value_name = "A")]
    before: PathBuf,
    /// Measurements after
    #[arg(value_name = "B")]
    after: PathBuf,
    /// The ratio of times above which a measurement counts as slower, if its whole interval lies above 1
    #[arg(long, value_name = "RATIO", default_value_t = 1.05)]
    threshold: f64,
    /// One JSON object a measurement
    #[arg(long)]
    pub json: bool,
}

/// Bytes of a file at most.
const LIMIT: u64 = 1 << 28;
/// Times that the runs are drawn again for an interval.
const RESAMPLES: u32 = 2000;

/// A measurement of a file.
struct Measured {
    bench: String,
    name: String,
    median: f64,
    /// Every run, or the median alone where a program does not say.
    seconds: Vec<f64>,
    line: Value,
}

/// The ratio of two medians, and the interval in which it lies with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ratio {
    value: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    /// By a bootstrap (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13): medians of as many runs, drawn
    /// from those that there are.
    fn of(before: &Measured, after: &Measured) -> Self {
        let rng = Rng::new(0);
        let value = after.median / before.median;
        let ratios: Vec<f64> = (0..RESAMPLES)
            .map(|step| {
                let of = |side: u32, runs: &[f64]| {
                    let draw =
                        |i| runs[rng.below(runs.len() as u32, Purpose::Measure, side, step, i) as usize];
                    median(&(0..runs.len() as u32).map(draw).collect::<Vec<_>>())
                };
                of(11, &after.seconds) / of(10, &before.seconds)
            })
            .collect();
        Self { value, low: quantile(&ratios, 0.025).min(value), high: quantile(&ratios, 0.975).max(value) }
    }

    fn slower(self, threshold: f64) -> bool {
        self.value > threshold && self.low > 1.0
    }

    fn faster(self, threshold: f64) -> bool {
        self.value < 1.0 / threshold && self.high < 1.0
    }

    fn verdict(self, threshold: f64) -> &'static str {
        match self {
            r if r.slower(threshold) => "slower",
            r if r.faster(threshold) => "faster",
            _ => "same",
        }
    }
}

/// The measurements of a file that have a time.
fn read(path: &Path) -> Result<Vec<Measured>> {
    let text = String::from_utf8_lossy(&read_limited(path, LIMIT)?).into_owned();
    let mut found: Vec<Measured> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str, expected: &str, got: &str| Error::Input {
            origin: format!("{}:{}", path.display(), number + 1),
            what: what.into(),
            expected: expected.into(),
            got: got.into(),
        };
        let form = "a JSON object of lacuna bench --format json";
        let line: Value = serde_json::from_str(line).map_err(|e| wrong("line", form, &e.to_string()))?;
        if !line.is_object() {
            return Err(wrong("line", form, &line.to_string()));
        }
        let text = |key: &str| {
            let value = line[key].as_str().map(str::to_owned);
            value.ok_or_else(|| wrong(key, "a string", &line[key].to_string()))
        };
        let schema = &line["schema"];
        if schema != &json!(SCHEMA) {
            return Err(wrong("schema", &SCHEMA.to_string(), &schema.to_string()));
        }
        let (bench, name) = (text("bench")?, text("name")?);
        if bench == "ceiling" {
            continue;
        }
        let positive = |value: &Value| value.as_f64().filter(|s| *s > 0.0 && s.is_finite());
        let median = positive(&line["median_s"])
            .ok_or_else(|| wrong("median_s", "seconds above 0", &line["median_s"].to_string()))?;
        let seconds = match &line["seconds"] {
            Value::Array(runs) if !runs.is_empty() => runs.iter().map(positive).collect::<Option<Vec<_>>>(),
            Value::Null => Some(vec![median]),
            _ => None,
        };
        let seconds = seconds
            .ok_or_else(|| wrong("seconds", "the seconds of every run", &line["seconds"].to_string()))?;
        if found.iter().any(|m| (&m.bench, &m.name) == (&bench, &name)) {
            return Err(wrong("name", "one that is there once", &name));
        }
        found.push(Measured { bench, name, median, seconds, line });
    }
    if found.is_empty() {
        return Err(Error::Input {
            origin: path.display().to_string(),
            what: "measurements".into(),
            expected: "at least one line with a time".into(),
            got: "none".into(),
        });
    }
    Ok(found)
}

/// What of the machines or the programs differs in two lines.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    ["device", "dtype", "threads", "gemm", "who"]
        .into_iter()
        .filter(|key| before[*key] != after[*key])
        .map(|key| format!("{key} {} and {}", before[key], after[key]))
        .collect()
}

/// Runs it.
///
/// # Errors
/// [`Error::Input`] for a file that is none of measurements, or two with none in common; [`Error::Slower`] when something is.
pub fn run(args: &CompareArgs, context: &Context) -> Result<()> {
    if !(args.threshold >= 1.0 && args.threshold.is_finite()) {
        return Err(Error::request(format!("--threshold {}: expected a ratio, 1 or more", args.threshold)));
    }
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let of = |all: &'_ [Measured], one: &Measured| {
        all.iter().position(|m| (&m.bench, &m.name) == (&one.bench, &one.name))
    };
    let pairs: Vec<(&Measured, &Measured)> =
        before.iter().filter_map(|a| of(&after, a).map(|i| (a, &after[i]))).collect();
    if pairs.is_empty() {
        return Err(Error::Input {
            origin: args.after.display().to_string(),
            what: format!("measurements that {} has too", args.before.display()),
            expected: "at least one of the same bench and name".into(),
            got: format!("none; it has \"{}\"", after.first().map_or("", |m| m.name.as_str())),
        });
    }
    let mut told: Vec<String> = Vec::new();
    for (a, b) in &pairs {
        for words in differences(&a.line, &b.line) {
            if !told.contains(&words) {
                note(&format!("warning: not the same in both files: {}", printable(&words)));
                told.push(words);
            }
        }
    }
    let color = context.terminal.stdout && context.terminal.color;
    let mut slower = 0;
    let width = pairs.iter().map(|(a, _)| a.name.chars().count()).max().unwrap_or(0);
    for (a, b) in &pairs {
        let ratio = Ratio::of(a, b);
        let verdict = ratio.verdict(args.threshold);
        slower += usize::from(ratio.slower(args.threshold));
        if args.json {
            let Ratio { value, low, high } = ratio;
            let line = json!({"bench": a.bench, "name": a.name, "before_s": a.median, "after_s": b.median, "ratio": value,
                "low": low, "high": high, "verdict": verdict, "differences": differences(&a.line, &b.line)});
            println(&line.to_string())?;
            continue;
        }
        let line = format!(
            "{:width$}  {:>11} {:>11}  {:>6.3} ({:.3} to {:.3})  {verdict}",
            printable(&a.name),
            duration(a.median),
            duration(b.median),
            ratio.value,
            ratio.low,
            ratio.high
        );
        let style = match verdict {
            "slower" => Style::Worse,
            "faster" => Style::Fresh,
            _ => Style::Plain,
        };
        println(&style.paint(&line, color))?;
    }
    for (all, others, path, side) in
        [(&before, &after, &args.before, "before"), (&after, &before, &args.after, "after")]
    {
        for one in all.iter().filter(|one| of(others, one).is_none()) {
            if args.json {
                let line = json!({"bench": one.bench, "name": one.name, "only": side});
                println(&line.to_string())?;
            } else {
                println(&format!("only in {}: {}", path.display(), printable(&one.name)))?;
            }
        }
    }
    if slower > 0 {
        return Err(Error::Slower(format!(
            "{slower} of {} measurements are slower by more than a factor of {}",
            pairs.len(),
            args.threshold
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds: &[f64]) -> Measured {
        let (bench, name) = ("step".to_owned(), "a".to_owned());
        Measured { bench, name, median: median(seconds), seconds: seconds.to_vec(), line: Value::Null }
    }

    #[test]
    fn an_interval_is_as_wide_as_the_runs_are_apart() {
        let steady = measured(&[1.0, 1.01, 0.99, 1.0, 1.0]);
        let slow = measured(&[1.2, 1.21, 1.19, 1.2, 1.2]);
        let wild = measured(&[0.6, 1.9, 1.2, 0.7, 1.8]);
        let ratio = Ratio::of(&steady, &slow);
        assert!((ratio.value - 1.2).abs() < 1e-12 && ratio.low > 1.15 && ratio.high < 1.25, "{ratio:?}");
        assert_eq!((ratio.verdict(1.05), ratio.verdict(1.3)), ("slower", "same"));
        assert_eq!(Ratio::of(&slow, &steady).verdict(1.05), "faster");
        let unclear = Ratio::of(&steady, &wild);
        assert!(unclear.value > 1.05 && unclear.low < 1.0 && unclear.high > 1.5, "{unclear:?}");
        assert_eq!(unclear.verdict(1.05), "same");
        assert_eq!(Ratio::of(&steady, &measured(&[1.0, 1.01, 0.99, 1.0, 1.0])).value, 1.0);
    }
}
