//! The loop that runs an evaluation: settings, rounds, a journal to go on from, and what it adds up to.

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::args::{MOST_UNITS, RunArgs, at_most};
use super::results::Summary;
use super::task::{Answer, Metric, Setting, Task};
use crate::cli::Context;
use crate::cli::journal::{Journal, fingerprint};
use crate::cli::terminal::note;
use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// The file with a line an item.
pub const ITEMS: &str = "items.jsonl";
/// The file with a line a metric.
pub const RESULTS: &str = "results.jsonl";
/// The plot of a sweep.
pub const PLOT: &str = "quality.svg";

/// An item's answer under a setting, as it is kept.
#[derive(Clone, Debug)]
pub struct Row {
    pub values: Vec<(f64, f64)>,
    pub nfe: f64,
    pub samples: f64,
    pub seconds: f64,
}

/// The settings of a run: every T, with and without remasking where that is compared, in every trial.
///
/// # Errors
/// [`Error::Request`] for more trials than can be meant, and for a T that is there twice.
pub fn settings(
    args: &RunArgs,
    steps: Option<usize>,
    remask: &[Option<bool>],
    seed: u64,
) -> Result<Vec<Setting>> {
    at_most("trials", args.trials.get(), MOST_TRIALS)?;
    if let Some(twice) = args.t_sweep.iter().enumerate().find(|(i, t)| args.t_sweep[..*i].contains(t)) {
        return Err(Error::request(format!("--t-sweep: {} is there twice", twice.1)));
    }
    let sweep: Vec<Option<usize>> = match args.t_sweep.as_slice() {
        [] => vec![steps],
        sweep => sweep.iter().map(|t| Some(t.get())).collect(),
    };
    let mut all = Vec::new();
    for &steps in &sweep {
        for &remask in remask {
            for trial in 0..args.trials.get() {
                all.push(Setting { steps, remask, trial, seed: seed.wrapping_add(trial as u64) });
            }
        }
    }
    Ok(all)
}

/// Most trials.
const MOST_TRIALS: usize = 10_000;

/// Runs a task under settings: a summary for each T and metric, and the journal of a run with an output, which is to be finished
/// once all else is written: until then `--resume` goes on with it.
///
/// # Errors
/// [`Error::Request`] without items; [`Error::Cancelled`] after Ctrl-C, when what is done has been kept; those of the task
/// and of the files.
pub fn run(
    task: &mut dyn Task,
    settings: &[Setting],
    model: &str,
    args: &RunArgs,
    context: &Context,
) -> Result<(Vec<Summary>, Option<Journal>)> {
    let (ids, metrics) = (task.ids(), task.metrics().to_vec());
    if ids.is_empty() {
        return Err(Error::request(format!("{}: there is nothing to evaluate: 0 items", task.name())));
    }
    let units = settings.len().saturating_mul(ids.len());
    if units > MOST_UNITS {
        return Err(Error::request(format!(
            "{} items under {} settings are {units} runs: expected at most {MOST_UNITS}; lower --trials or --limit",
            ids.len(),
            settings.len()
        )));
    }
    let mut rows: Vec<Option<Row>> = vec![None; units];
    let mut journal = args.output.as_deref().map(|dir| open(dir, task, settings, model, args)).transpose()?;
    if let Some(journal) = &mut journal {
        for (unit, value) in journal.entries()? {
            if let (Some(row), Some(parsed)) = (rows.get_mut(unit), parse(&value, &metrics)) {
                *row = Some(parsed);
            }
        }
    }
    let done = rows.iter().flatten().count();
    if done > 0 && !args.quiet {
        note(&format!("{done} of {units} items are there already"));
    }
    context.interrupt.hold();
    let bar = context.progress(units as u64, args.quiet);
    bar.inc(done as u64);
    for (number, setting) in settings.iter().enumerate() {
        let first = number * ids.len();
        let missing: Vec<usize> = (0..ids.len()).filter(|i| rows[first + i].is_none()).collect();
        bar.set_message(describe(setting));
        for round in missing.chunks(task.round().max(1)) {
            let start = Instant::now();
            let answers =
                if context.interrupt.raised() { Err(Error::Cancelled) } else { task.run(setting, round) };
            let answers = match answers {
                Ok(answers) if answers.len() == round.len() => answers,
                Ok(answers) => {
                    let (expected, got) = (round.len(), answers.len());
                    return Err(Error::Shape { op: "evaluation", what: "answers", expected, got });
                }
                Err(error) => {
                    bar.finish_and_clear();
                    return Err(stopped(error, journal, args, &rows));
                }
            };
            let seconds = start.elapsed().as_secs_f64() / round.len() as f64;
            for (&item, answer) in round.iter().zip(answers) {
                let put = journal.as_mut().map_or(Ok(()), |journal| {
                    journal.put(first + item, &line(&ids[item], setting, &answer, &metrics, seconds))
                });
                if let Err(error) = put {
                    bar.finish_and_clear();
                    return Err(stopped(error, journal, args, &rows));
                }
                let Answer { values, nfe, samples, .. } = answer;
                rows[first + item] = Some(Row { values, nfe: nfe as f64, samples: samples as f64, seconds });
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    Ok((summaries(&metrics, settings, &rows, ids.len()), journal))
}

/// What a stop leaves behind.
fn stopped(error: Error, journal: Option<Journal>, args: &RunArgs, rows: &[Option<Row>]) -> Error {
    let done = rows.iter().flatten().count();
    if let Some(journal) = journal {
        if let Err(failed) = journal.sync() {
            return failed;
        }
        if !args.quiet {
            note(&format!("{done} of {} items are done and kept; go on with --resume", rows.len()));
        }
    } else if matches!(error, Error::Cancelled) && !args.quiet {
        note(&format!("{done} of {} items were done; with --output DIR they would be kept", rows.len()));
    }
    error
}

fn open(dir: &Path, task: &dyn Task, settings: &[Setting], model: &str, args: &RunArgs) -> Result<Journal> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    if dir.join(RESULTS).exists() && !Journal::is_begun(&dir.join(ITEMS)) {
        return Err(Error::request(format!(
            "{} holds the results of a finished evaluation; name another --output, or delete it",
            dir.display()
        )));
    }
    for name in [RESULTS, PLOT] {
        AtomicFile::probe(&dir.join(name))?;
    }
    let choices = json!({
        "task": task.name(), "ids": task.ids(), "choices": task.choices(), "model": model,
        "settings": settings.iter().map(|s| json!([s.steps, s.remask, s.seed])).collect::<Vec<_>>(),
    });
    let work = fingerprint(&[choices.to_string().as_bytes()]);
    Journal::open(&dir.join(ITEMS), work, args.resume, false)
}

/// A setting, for people.
fn describe(setting: &Setting) -> String {
    let steps = setting.steps.map_or(String::new(), |t| format!("T {t} "));
    let remask = match setting.remask {
        Some(true) => "remasking ",
        Some(false) => "no remasking ",
        None => "",
    };
    format!("{steps}{remask}seed {}", setting.seed)
}

fn line(id: &str, setting: &Setting, answer: &Answer, metrics: &[Metric], seconds: f64) -> Value {
    let values: Map<String, Value> =
        metrics.iter().zip(&answer.values).map(|(m, (a, b))| (m.name.to_owned(), json!([a, b]))).collect();
    let mut value = json!({
        "id": id, "steps": setting.steps, "trial": setting.trial, "seed": setting.seed, "metrics": values,
        "nfe": answer.nfe, "samples": answer.samples, "seconds": seconds,
    });
    if let Value::Object(fields) = &mut value {
        if let Some(remask) = setting.remask {
            fields.insert("remask".into(), json!(remask));
        }
        fields.extend(answer.record.clone());
    }
    value
}

/// The row of a line; `None` if it is none.
fn parse(value: &Value, metrics: &[Metric]) -> Option<Row> {
    let pair = |m: &Metric| {
        let pair = value.get("metrics")?.get(m.name)?;
        Some((pair.get(0)?.as_f64()?, pair.get(1)?.as_f64()?))
    };
    let number = |key: &str| value.get(key)?.as_f64();
    Some(Row {
        values: metrics.iter().map(pair).collect::<Option<_>>()?,
        nfe: number("nfe")?,
        samples: number("samples")?,
        seconds: number("seconds")?,
    })
}

/// Adds up: settings that differ in their trial alone are one.
fn summaries(metrics: &[Metric], settings: &[Setting], rows: &[Row], items: usize) -> Vec<Summary> {
    let mut all = Vec::new();
    let mut from = 0;
    for same in settings.chunk_by(|a, b| (a.steps, a.remask) == (b.steps, b.remask)) {
        let rows = rows.get(from..from + same.len() * items).unwrap_or_default();
        from += same.len() * items;
        for (at, &metric) in metrics.iter().enumerate() {
            all.push(Summary::of(metric, at, same, rows, items));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_all_combinations_with_trials_innermost() {
        let t = |n| std::num::NonZeroUsize::new(n).unwrap();
        let args = |trials, t_sweep| RunArgs {
            limit: None,
            trials: t(trials),
            t_sweep,
            output: None,
            resume: false,
            json: false,
            quiet: true,
        };
        let all = settings(&args(2, vec![t(1), t(4)]), Some(9), &[None], 5).unwrap();
        let seen: Vec<_> = all.iter().map(|s| (s.steps, s.trial, s.seed)).collect();
        assert_eq!(seen, [(Some(1), 0, 5), (Some(1), 1, 6), (Some(4), 0, 5), (Some(4), 1, 6)]);
        let both = settings(&args(1, Vec::new()), None, &[Some(false), Some(true)], 0);
        assert_eq!(both.unwrap().len(), 2);
        assert!(settings(&args(usize::MAX, Vec::new()), None, &[None], 0).is_err());
        assert!(settings(&args(1, vec![t(4), t(8), t(4)]), None, &[None], 0).is_err());
    }

    #[test]
    fn lines_are_read_back() {
        let metrics = [Metric::share("accuracy")];
        let setting = Setting { steps: Some(3), remask: Some(true), trial: 0, seed: 1 };
        let answer = Answer {
            values: vec![(1.0, 2.0)],
            nfe: 3,
            samples: 1,
            record: Map::from_iter([("output".into(), json!("x"))]),
        };
        let value = line("a", &setting, &answer, &metrics, 0.5);
        assert_eq!(value["output"], "x");
        let row = parse(&value, &metrics).unwrap();
        assert_eq!((row.values, row.nfe, row.seconds), (vec![(1.0, 2.0)], 3.0, 0.5));
        assert!(parse(&json!({"metrics": {}}), &metrics).is_none());
    }
}
