//! Programs that are there already: `lacuna eval infill --completions`, without a model; and what runs programs side by side.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::task::{Answer, Better, Metric, Setting, Task, Unit};
use crate::error::{Error, Result};
use crate::eval::human_eval::{self, Problem};
use crate::eval::sandbox::{Outcome, Sandbox, Verdict};

/// The columns of executed programs that did not fail like any wrong program.
const STOPPED: [(Verdict, &str); 4] = [
    (Verdict::TimedOut, "timed out"),
    (Verdict::OutOfMemory, "out of memory"),
    (Verdict::Forbidden, "forbidden"),
    (Verdict::Killed, "killed"),
];

/// What is said of executed programs.
pub fn metrics() -> Vec<Metric> {
    let stopped = |(_, name)| Metric { name, better: Better::Lower, unit: Unit::Share };
    std::iter::once(Metric::share("pass@1")).chain(STOPPED.map(stopped)).collect()
}

/// Runs the tests of problems on completions, several at a time, in the order in which they are given.
///
/// # Errors
/// Those of [`Sandbox::run`].
pub fn execute(sandbox: &Sandbox, programs: &[(&Problem, &str)]) -> Result<Vec<Outcome>> {
    let one =
        |(problem, completion): &(&Problem, &str)| sandbox.run(&human_eval::program(problem, completion));
    programs.par_iter().map(one).collect()
}

/// The values of [`metrics`] for the outcomes of a problem, and what is kept of them.
pub fn values(outcomes: &[Outcome]) -> (Vec<(f64, f64)>, Map<String, Value>) {
    let n = outcomes.len() as f64;
    let count = |v: Verdict| (outcomes.iter().filter(|o| o.verdict == v).count() as f64, n);
    let values = std::iter::once(count(Verdict::Passed)).chain(STOPPED.map(|(v, _)| count(v))).collect();
    let names: Vec<&str> = outcomes.iter().map(|o| o.verdict.name()).collect();
    let messages: Vec<&str> = outcomes.iter().map(|o| o.message.as_str()).collect();
    let record =
        Map::from_iter([("verdicts".to_owned(), json!(names)), ("messages".to_owned(), json!(messages))]);
    (values, record)
}

/// Completions of a file, to be judged.
pub struct Completions {
    items: Vec<(Problem, Vec<String>)>,
    sandbox: Sandbox,
    metrics: Vec<Metric>,
    file: String,
}

impl Completions {
    /// The completions of `path` for `problems`; problems without one are left out.
    ///
    /// # Errors
    /// Those of the file; [`Error::Input`] for a completion of no problem that there is.
    pub fn new(path: &Path, problems: Vec<Problem>, sandbox: Sandbox) -> Result<Self> {
        let mut items: Vec<(Problem, Vec<String>)> = problems.into_iter().map(|p| (p, Vec::new())).collect();
        for (id, completion) in human_eval::read_completions(path)? {
            let Some((_, completions)) = items.iter_mut().find(|(p, _)| p.task_id == id) else {
                return Err(Error::Input {
                    origin: path.display().to_string(),
                    what: "`task_id`".into(),
                    expected: "that of a problem in --data".into(),
                    got: id.chars().take(80).collect(),
                });
            };
            completions.push(completion);
        }
        items.retain(|(_, completions)| !completions.is_empty());
        Ok(Self { items, sandbox, metrics: metrics(), file: path.display().to_string() })
    }
}

impl Task for Completions {
    fn name(&self) -> &str {
        "infill"
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    fn ids(&self) -> Vec<String> {
        self.items.iter().map(|(problem, _)| problem.task_id.clone()).collect()
    }

    fn choices(&self) -> Value {
        json!({"completions": self.file})
    }

    fn round(&self) -> usize {
        4 * rayon::current_num_threads()
    }

    fn run(&mut self, _: &Setting, items: &[usize]) -> Result<Vec<Answer>> {
        let mine = || items.iter().filter_map(|&i| self.items.get(i));
        let programs: Vec<(&Problem, &str)> =
            mine().flat_map(|(problem, all)| all.iter().map(move |c| (problem, c.as_str()))).collect();
        let mut outcomes = execute(&self.sandbox, &programs)?.into_iter();
        let answer = |(_, all): &(Problem, Vec<String>)| {
            let outcomes: Vec<Outcome> = outcomes.by_ref().take(all.len()).collect();
            let (values, mut record) = values(&outcomes);
            record.insert("outputs".into(), json!(all));
            Answer { values, nfe: 0, samples: all.len(), record }
        };
        Ok(mine().map(answer).collect())
    }
}
