//! What an evaluation found: a table for people, lines for programs and for `lacuna report`.

use std::io::Write as _;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::harness::{RESULTS, Row};
use super::task::{Metric, Setting, Unit};
use crate::cli::terminal::println;
use crate::error::{Error, Result};
use crate::eval::statistics::{Ratio, estimate, ratio, wilson};
use crate::io::AtomicFile;

/// A metric under a setting, over all trials.
#[derive(Clone, Debug)]
pub struct Summary {
    pub metric: Metric,
    pub steps: Option<usize>,
    pub remask: Option<bool>,
    pub items: usize,
    /// The value of each trial, where something was counted in it.
    pub trials: Vec<f64>,
    /// Not a number where nothing was counted in any; neither are the next three.
    pub value: f64,
    /// Standard deviation over trials; 0 for one.
    pub sd: f64,
    /// 95 %: over trials where there are several, else over items.
    pub low: f64,
    pub high: f64,
    /// Mean forward passes a sample.
    pub nfe: f64,
    /// Seconds a trial.
    pub seconds: f64,
}

impl Summary {
    /// Of metric number `at` under settings that differ in their trial, whose rows are one behind the other.
    pub fn of(metric: Metric, at: usize, settings: &[Setting], rows: &[Row], items: usize) -> Self {
        let pairs = |rows: &[Row]| -> Vec<(f64, f64)> {
            rows.iter().filter_map(|r| r.values.get(at).copied()).collect()
        };
        let all = rows.chunks(items.max(1));
        let run = all.len();
        let ratios: Vec<Ratio> = all.filter_map(|trial| ratio(&pairs(trial))).collect();
        let trials: Vec<f64> = ratios.iter().map(|r| metric.shown(r.value)).collect();
        let over = estimate(&trials);
        let (value, sd) = if trials.is_empty() { (f64::NAN, f64::NAN) } else { (over.mean, over.sd) };
        let (low, high) = match ratios.as_slice() {
            [] => (f64::NAN, f64::NAN),
            [one] => match successes(metric, &pairs(rows)) {
                Some(successes) => wilson(successes, rows.len()),
                None => (metric.shown(one.low), metric.shown(one.high)),
            },
            _ => (over.low, over.high),
        };
        let clamp = |x: f64| if metric.unit == Unit::Share { x.clamp(0.0, 1.0) } else { x };
        let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
        let first = settings.first();
        Self {
            metric,
            steps: first.and_then(|s| s.steps),
            remask: first.and_then(|s| s.remask),
            items,
            value,
            sd,
            low: clamp(low),
            high: clamp(high),
            nfe: sum(|r| r.nfe) / sum(|r| r.samples).max(1.0),
            seconds: sum(|r| r.seconds) / run.max(1) as f64,
            trials,
        }
    }

    /// Whether anything was counted: what was not has no value, and is in no results.
    fn is_known(&self) -> bool {
        !self.trials.is_empty()
    }

    /// As it is shown, with its interval, where it has one: of a single item, or of equal ones, there is no telling.
    fn cell(&self) -> String {
        if !self.is_known() {
            return "-".into();
        }
        let (scale, digits, unit) = match self.metric.unit {
            Unit::Share => (100.0, 1, " %"),
            Unit::Plain | Unit::Exp => (1.0, if self.value.abs() < 100.0 { 3 } else { 1 }, ""),
        };
        let [value, low, high] = [self.value, self.low, self.high].map(|x| x * scale);
        let interval =
            if low < high { format!(" ({low:.digits$} to {high:.digits$})") } else { String::new() };
        format!("{value:.digits$}{unit}{interval}")
    }
}

/// How many items are right, where every item is right or wrong: their share has Wilson's interval, which is never empty.
fn successes(metric: Metric, pairs: &[(f64, f64)]) -> Option<f64> {
    let yes_or_no = |&(a, b): &(f64, f64)| b == 1.0 && (a == 0.0 || a == 1.0);
    (metric.unit == Unit::Share && pairs.iter().all(yes_or_no)).then(|| pairs.iter().map(|p| p.0).sum())
}

/// What results are of, beside the numbers.
#[derive(Clone, Debug)]
pub struct About {
    pub task: String,
    pub model: String,
    /// Where the model lies: names alone are the same for many checkpoints.
    pub source: String,
    pub device: String,
    pub dtype: String,
    pub order: Option<String>,
    pub choices: Value,
    pub seed: u64,
}

/// The name of an order in results, which tells runs with remasking from those without.
pub fn order_of(name: &str, remask: bool) -> String {
    if remask { format!("{name}+remask") } else { name.to_owned() }
}

/// A result as a line that `lacuna report` reads.
pub fn line(about: &About, s: &Summary) -> Value {
    let order = about.order.as_deref().map(|order| order_of(order, s.remask == Some(true)));
    json!({
        "schema": 1, "eval": format!("{} {}", about.task, s.metric.name), "task": about.task, "metric": s.metric.name,
        "model": about.model, "order": order, "steps": s.steps, "remask": s.remask, "items": s.items,
        "value": s.value, "low": s.low, "high": s.high, "sd": s.sd, "trials": s.trials,
        "better": s.metric.better.name(), "nfe": s.nfe, "seconds": s.seconds, "device": about.device,
        "dtype": about.dtype, "seed": about.seed, "choices": about.choices, "lacuna": env!("CARGO_PKG_VERSION"),
    })
}

/// Writes results.jsonl, whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write(dir: &Path, about: &About, summaries: &[Summary]) -> Result<()> {
    let path = dir.join(RESULTS);
    let mut file = AtomicFile::create(&path)?;
    for summary in summaries.iter().filter(|s| s.is_known()) {
        writeln!(file, "{}", line(about, summary)).map_err(|e| Error::io("write", &path, e))?;
    }
    file.commit()
}

/// Prints the lines, or a table with a row a setting.
///
/// # Errors
/// [`Error::Io`].
pub fn show(about: &About, summaries: &[Summary], json: bool) -> Result<()> {
    if json {
        let mut known = summaries.iter().filter(|s| s.is_known());
        return known.try_for_each(|s| println(&line(about, s).to_string()));
    }
    let first = summaries.first();
    let trials = summaries.iter().map(|s| s.trials.len()).max().unwrap_or(0);
    println(&format!(
        "{}: {}, {} items{}",
        about.task,
        about.model,
        first.map_or(0, |s| s.items),
        if trials > 1 {
            format!(", {trials} trials; in brackets 95 % over trials")
        } else {
            "; in brackets 95 % over items".into()
        }
    ))?;
    println(&table(summaries).to_string())?;
    if trials > 1 {
        for s in summaries.iter().filter(|s| s.is_known()) {
            let values: Vec<String> = s.trials.iter().map(|x| format!("{x:.4}")).collect();
            let t = s.steps.map_or(String::new(), |t| format!(" T {t}"));
            println(&format!("{}{t}: {} (sd {:.4})", s.metric.name, values.join(", "), s.sd))?;
        }
    }
    Ok(())
}

/// A row a setting, a column a metric that is known under one of them.
fn table(summaries: &[Summary]) -> Table {
    let mut metrics: Vec<&str> = Vec::new();
    for s in summaries {
        if !metrics.contains(&s.metric.name) {
            metrics.push(s.metric.name);
        }
    }
    let known: Vec<bool> =
        metrics.iter().map(|m| summaries.iter().any(|s| s.metric.name == *m && s.is_known())).collect();
    let remask = summaries.iter().any(|s| s.remask.is_some());
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    let head = ["T"].into_iter().chain(remask.then_some("remasking")).chain(["NFE"]);
    let columns = metrics.iter().copied().zip(&known).filter(|(_, known)| **known).map(|(name, _)| name);
    table.set_header(head.chain(columns).chain(["time"]));
    for rows in summaries.chunks(metrics.len().max(1)) {
        let Some(first) = rows.first() else { continue };
        let steps = first.steps.map_or("own".to_owned(), |t| t.to_string());
        let mut cells = vec![steps];
        if remask {
            cells.push(if first.remask == Some(true) { "yes".into() } else { "no".into() });
        }
        cells.push(format!("{:.1}", first.nfe));
        cells.extend(rows.iter().zip(&known).filter(|(_, known)| **known).map(|(s, _)| s.cell()));
        cells.push(format!("{:.1} s", first.seconds));
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
impl About {
    /// For tests.
    pub fn example() -> Self {
        Self {
            task: "t".into(),
            model: "m".into(),
            source: "m".into(),
            device: "d".into(),
            dtype: "f32".into(),
            order: None,
            choices: Value::Null,
            seed: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::task::Better;
    use super::*;

    fn row(a: f64, b: f64) -> Row {
        Row { values: vec![(a, b)], nfe: 4.0, samples: 2.0, seconds: 0.5 }
    }

    #[test]
    fn one_trial_has_the_interval_of_its_items_and_more_that_of_trials() {
        let setting = |trial| Setting { steps: Some(2), remask: None, trial, seed: trial as u64 };
        let metric = Metric::share("accuracy");
        let rows = [row(1.0, 1.0), row(0.0, 1.0), row(1.0, 1.0), row(1.0, 1.0)];
        let one = Summary::of(metric, 0, &[setting(0)], &rows, 4);
        assert_eq!((one.value, one.nfe, one.seconds, one.sd), (0.75, 2.0, 2.0, 0.0));
        // Wilson: (0.75 + 1.9207 / 4 ± 1.96 sqrt(0.75 0.25 / 4 + 0.9604 / 16)) / (1 + 3.8415 / 4).
        assert!((one.low - 0.3006).abs() < 1e-3 && (one.high - 0.9544).abs() < 1e-3, "{one:?}");
        let two = Summary::of(metric, 0, &[setting(0), setting(1)], &rows, 2);
        assert_eq!((two.trials.clone(), two.value, two.seconds), (vec![0.5, 1.0], 0.75, 1.0));
        assert!((two.sd - 0.125f64.sqrt()).abs() < 1e-12);
        // Wilson's interval of 1 of 1 reaches from 1 / (1 + 3.8415) = 20.65 %; a share of one item has none.
        let cell = |row: Row| Summary::of(metric, 0, &[setting(0)], &[row], 1).cell();
        assert_eq!(
            (cell(row(1.0, 1.0)), cell(row(1.0, 4.0))),
            ("100.0 % (20.7 to 100.0)".into(), "25.0 %".into())
        );
    }

    #[test]
    fn perplexities_are_exponentials_of_ratios() {
        let metric = Metric { name: "perplexity", better: Better::Lower, unit: Unit::Exp };
        let setting = Setting { steps: None, remask: None, trial: 0, seed: 0 };
        let s = Summary::of(metric, 0, &[setting], &[row(2.0, 1.0), row(4.0, 2.0)], 2);
        assert!((s.value - 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn what_was_not_counted_has_no_value_and_is_left_out() {
        let at = |steps, trial| Setting { steps: Some(steps), remask: None, trial, seed: trial as u64 };
        let both = |a: (f64, f64), b: (f64, f64)| Row { values: vec![a, b], ..row(0.0, 0.0) };
        let metrics = ["loss", "bits/byte"].map(|name| Metric::plain(name, Better::Lower));
        let none = (0.0, 0.0);
        // Two trials of one item, of which the first alone counts bytes: 3 / 4.
        let some = [both((1.0, 2.0), (3.0, 4.0)), both((2.0, 2.0), none)];
        let nothing = [both((1.0, 2.0), none), both((2.0, 2.0), none)];
        let of = |steps, rows: &[Row]| {
            let settings = [at(steps, 0), at(steps, 1)];
            [0, 1].map(|n| Summary::of(metrics[n], n, &settings, rows, 1))
        };
        let [loss, bits] = of(1, &some);
        assert_eq!((loss.trials, loss.value), (vec![0.5, 1.0], 0.75));
        assert_eq!((bits.trials.clone(), bits.value, bits.seconds), (vec![0.75], 0.75, 0.5));
        let unknown = &of(2, &nothing)[1];
        assert!(unknown.value.is_nan() && unknown.low.is_nan() && unknown.trials.is_empty());
        assert_eq!(unknown.seconds, 0.5);

        let shown = |of: &[Summary]| table(of).to_string();
        let text = shown(&[of(1, &some), of(2, &nothing)].concat());
        assert!(text.contains("bits/byte") && text.contains("0.750") && text.contains(" - "), "{text}");
        let text = shown(&of(2, &nothing));
        assert!(text.contains("loss") && !text.contains("bits/byte") && !text.contains(" - "), "{text}");

        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &About::example(), &of(2, &nothing)).unwrap();
        let lines = std::fs::read_to_string(dir.path().join(RESULTS)).unwrap();
        assert_eq!(lines.lines().count(), 1);
        assert!(lines.contains("\"metric\":\"loss\",") && lines.contains("\"value\":0.75,"), "{lines}");
    }
}
