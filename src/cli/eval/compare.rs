//! `lacuna eval compare`: whether two evaluations of the same items differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::harness::ITEMS;
use crate::cli::Context;
use crate::cli::terminal::{note, println};
use crate::error::{Error, Result};
use crate::eval::statistics::{Paired, paired_ratios};
use crate::io::Lines;

const EXAMPLES: &str = "\
Items are paired by their id, at the same T; with several trials an item has the means
of their numerators and denominators. A and B are ratios of sums over items, as in
results; of a perplexity the logarithm is compared. The interval and the first p are of
a paired bootstrap over items, the second p of a paired t-test, both two-sided.

Examples:
  lacuna eval countdown --data test.jsonl -o a
  lacuna eval countdown --data test.jsonl --order random --greedy -o b
  lacuna eval compare a b";

#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// An evaluation: its --output folder, or its items.jsonl
    #[arg(value_name = "A")]
    before: PathBuf,

    /// Another
    #[arg(value_name = "B")]
    after: PathBuf,

    /// Draws of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    resamples: u32,

    /// Of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// One JSON object a comparison on standard output, errors too
    #[arg(long)]
    pub json: bool,
}

/// Most draws of the bootstrap.
const MOST_RESAMPLES: u32 = 1_000_000;
/// Longest line of a file of items.
const LONGEST_LINE: usize = 64 << 20;

/// What is compared: metric, T, remasking.
type Key = (String, Option<u64>, Option<bool>);
/// Numerator and denominator.
type Pair = (f64, f64);

/// An item under a key: numerators and denominators, added up over trials.
struct Item {
    id: String,
    above: f64,
    below: f64,
    trials: f64,
}

impl Item {
    /// The means over trials.
    fn pair(&self) -> Pair {
        (self.above / self.trials, self.below / self.trials)
    }
}

/// Reads items: for each metric and T those that count, in the order of the file.
fn read(path: &Path) -> Result<Vec<(Key, Vec<Item>)>> {
    let file = if path.is_dir() { path.join(ITEMS) } else { path.to_owned() };
    let mut lines = Lines::open(&file, LONGEST_LINE)?;
    let mut all: Vec<(Key, Vec<Item>)> = Vec::new();
    let mut places: BTreeMap<(Key, String), (usize, usize)> = BTreeMap::new();
    while let Some(mut object) = lines.next_object()? {
        let origin = lines.origin();
        let id = lines.string(&mut object, &["id"])?;
        let steps = object.get("steps").and_then(Value::as_u64);
        let remask = object.get("remask").and_then(Value::as_bool);
        let wrong = |got: &Value| Error::Input {
            origin: origin.clone(),
            what: "`metrics`".into(),
            expected: "for each name two numbers, as lacuna eval writes them".into(),
            got: got.to_string().chars().take(80).collect(),
        };
        let null = Value::Null;
        let metrics = object.get("metrics").unwrap_or(&null);
        for (name, pair) in metrics.as_object().ok_or_else(|| wrong(metrics))? {
            let number = |at: usize| pair.get(at).and_then(Value::as_f64).ok_or_else(|| wrong(pair));
            let (above, below) = (number(0)?, number(1)?);
            // What is kept of a perplexity is of its logarithm.
            let name = if name == "perplexity" { "log perplexity" } else { name.as_str() };
            let key: Key = (name.to_owned(), steps, remask);
            let place = (key.clone(), id.clone());
            if let Some(&(at, item)) = places.get(&place) {
                let item = &mut all[at].1[item];
                item.above += above;
                item.below += below;
                item.trials += 1.0;
                continue;
            }
            let at = all.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
                all.push((key, Vec::new()));
                all.len() - 1
            });
            places.insert(place, (at, all[at].1.len()));
            all[at].1.push(Item { id: id.clone(), above, below, trials: 1.0 });
        }
    }
    for (_, items) in &mut all {
        items.retain(|item| item.below != 0.0);
    }
    all.retain(|(_, items)| !items.is_empty());
    if all.is_empty() {
        return Err(Error::request(format!(
            "{}: there are no items in it; expected what lacuna eval --output wrote",
            file.display()
        )));
    }
    Ok(all)
}

/// The pairs of the items that both have, and how many items only one has.
fn pairs(a: &[Item], b: &[Item]) -> (Vec<Pair>, Vec<Pair>, usize) {
    let of: BTreeMap<&str, Pair> = b.iter().map(|item| (item.id.as_str(), item.pair())).collect();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for item in a {
        if let Some(&other) = of.get(item.id.as_str()) {
            left.push(item.pair());
            right.push(other);
        }
    }
    let alone = a.len() + b.len() - 2 * left.len();
    (left, right, alone)
}

/// Runs it.
///
/// # Errors
/// [`Error::Input`] for a file that is none of items; [`Error::Request`] for two with nothing in common.
pub fn run(args: &Args, _: &Context) -> Result<()> {
    if !(1..=MOST_RESAMPLES).contains(&args.resamples) {
        return Err(Error::request(format!(
            "--resamples {}: expected 1 to {MOST_RESAMPLES}",
            args.resamples
        )));
    }
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let mut rows: Vec<(Key, usize, Paired)> = Vec::new();
    for (key, a) in &before {
        let same = after.iter().find(|(k, _)| k == key);
        // Of two single settings T need not be the same: that may be what is compared.
        let single =
            |all: &[(Key, Vec<Item>)]| all.iter().filter(|((name, ..), _)| *name == key.0).count() == 1;
        let other = same.or_else(|| {
            let lone = single(&before) && single(&after);
            after.iter().find(|((name, ..), _)| lone && *name == key.0)
        });
        let Some((_, b)) = other else { continue };
        let (a, b, alone) = pairs(a, b);
        if a.len() < 2 {
            continue;
        }
        rows.push((key.clone(), alone, paired_ratios(&a, &b, args.resamples, args.seed)?));
    }
    if rows.is_empty() {
        return Err(Error::request(format!(
            "{} and {} have no metric in common with two items or more at the same T",
            args.before.display(),
            args.after.display()
        )));
    }
    if args.json {
        for ((metric, steps, remask), alone, p) in &rows {
            let line = json!({
                "metric": metric, "steps": steps, "remask": remask, "items": p.n, "only_in_one": alone,
                "a": p.mean_a, "b": p.mean_b, "difference": p.difference, "low": p.low, "high": p.high,
                "p_bootstrap": p.p_bootstrap, "t": p.t, "p_t": p.p_t,
            });
            println(&line.to_string())?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["metric", "T", "items", "A", "B", "B - A", "95 %", "p bootstrap", "p t-test"]);
    for ((metric, steps, remask), _, p) in &rows {
        let name = match remask {
            Some(true) => format!("{metric}, remasking"),
            Some(false) => format!("{metric}, no remasking"),
            None => metric.clone(),
        };
        table.add_row([
            name,
            steps.map_or("own".into(), |t| t.to_string()),
            p.n.to_string(),
            format!("{:.4}", p.mean_a),
            format!("{:.4}", p.mean_b),
            format!("{:+.4}", p.difference),
            format!("{:+.4} to {:+.4}", p.low, p.high),
            format!("{:.4}", p.p_bootstrap),
            format!("{:.4}", p.p_t),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println(&table.to_string())?;
    let alone: usize = rows.iter().map(|r| r.1).max().unwrap_or(0);
    if alone > 0 {
        note(&format!("{alone} items are in one of the two alone and were not compared"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_have_the_means_of_their_trials_and_what_counts_nothing_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ITEMS);
        let line = |id: u32, trial: u32, loss: [f64; 2], fixed: [f64; 2]| {
            let metrics = json!({"perplexity": loss, "fixed": fixed, "broken": [0, 0]});
            json!({"id": id.to_string(), "steps": 4, "trial": trial, "metrics": metrics}).to_string()
        };
        let lines = [
            line(1, 0, [2.0, 4.0], [0.0, 0.0]),
            line(2, 0, [9.0, 3.0], [1.0, 1.0]),
            line(1, 1, [4.0, 4.0], [0.0, 0.0]),
            line(2, 1, [3.0, 3.0], [0.0, 0.0]),
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let read = read(dir.path()).unwrap();
        let seen: Vec<_> = read
            .iter()
            .map(|((name, steps, _), items)| {
                let items: Vec<_> = items.iter().map(|item| (item.id.as_str(), item.pair())).collect();
                (name.as_str(), *steps, items)
            })
            .collect();
        let loss = vec![("1", (3.0, 4.0)), ("2", (6.0, 3.0))];
        // Keys of a JSON object are in the order of the file.
        assert_eq!(seen, [("log perplexity", Some(4), loss), ("fixed", Some(4), vec![("2", (0.5, 0.5))])]);
        let (a, b, alone) = pairs(&read[0].1, &read[1].1);
        assert_eq!((a, b, alone), (vec![(6.0, 3.0)], vec![(0.5, 0.5)], 1));
    }
}
