//! Programs that are there already: `lacuna eval infill --completions`, without a model; and what runs programs side by side.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::task::{Answer, Better, Metric, Setting, Task, Unit};
use crate::cli::interrupt::Interrupt;
use crate::cli::journal::fingerprint;
use crate::error::{Error, Result};
use crate::eval::human_eval::{self, Problem};
use crate::eval::sandbox::{Limits, Outcome, Sandbox, Verdict};

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
/// [`Error::Cancelled`] after Ctrl-C, once those that had begun are through; those of [`Sandbox::run`].
pub fn execute(
    sandbox: &Sandbox,
    programs: &[(&Problem, &str)],
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>> {
    let one = |(problem, completion): &(&Problem, &str)| {
        interrupt.check()?;
        sandbox.run(&human_eval::program(problem, completion))
    };
    programs.par_iter().map(one).collect()
}

/// The values of [`metrics`] for the outcomes of a problem, which weighs the same however many there are, and what is kept
/// of them.
pub fn values(outcomes: &[Outcome]) -> (Vec<(f64, f64)>, Map<String, Value>) {
    let n = outcomes.len().max(1) as f64;
    let share = |v: Verdict| (outcomes.iter().filter(|o| o.verdict == v).count() as f64 / n, 1.0);
    let values = std::iter::once(share(Verdict::Passed)).chain(STOPPED.map(|(v, _)| share(v))).collect();
    let names: Vec<&str> = outcomes.iter().map(|o| o.verdict.name()).collect();
    let messages: Vec<&str> = outcomes.iter().map(|o| o.message.as_str()).collect();
    let record =
        Map::from_iter([("verdicts".to_owned(), json!(names)), ("messages".to_owned(), json!(messages))]);
    (values, record)
}

/// Completions of a file, to be judged.
pub struct Completions {
    items: Vec<(Problem, Vec<String>)>,
    /// Problems that were left out, as they have none.
    pub missing: usize,
    sandbox: Sandbox,
    interrupt: Interrupt,
    metrics: Vec<Metric>,
    file: String,
}

impl Completions {
    /// The completions of `path` for the first `limit` of `problems`; problems without one are left out.
    ///
    /// # Errors
    /// Those of the file; [`Error::Input`] for a completion of no problem that there is.
    pub fn new(
        path: &Path,
        problems: Vec<Problem>,
        limit: Option<usize>,
        sandbox: Sandbox,
        interrupt: Interrupt,
    ) -> Result<Self> {
        let places: HashMap<String, usize> =
            problems.iter().enumerate().map(|(at, problem)| (problem.task_id.clone(), at)).collect();
        let mut items: Vec<(Problem, Vec<String>)> = problems.into_iter().map(|p| (p, Vec::new())).collect();
        for (id, completion) in human_eval::read_completions(path)? {
            let Some(&at) = places.get(&id) else {
                return Err(Error::Input {
                    origin: path.display().to_string(),
                    what: "`task_id`".into(),
                    expected: "that of a problem in --data".into(),
                    got: id.chars().take(80).collect(),
                });
            };
            items[at].1.push(completion);
        }
        items.truncate(limit.unwrap_or(usize::MAX));
        let all = items.len();
        items.retain(|(_, completions)| !completions.is_empty());
        let (missing, file) = (all - items.len(), path.display().to_string());
        Ok(Self { items, missing, sandbox, interrupt, metrics: metrics(), file })
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
        let item = |(problem, all): &(Problem, Vec<String>)| {
            let Problem { entry_point, prompt, suffix, test, .. } = problem;
            let texts = [entry_point, prompt, suffix, test].into_iter().chain(all);
            fingerprint(&texts.map(String::as_bytes).collect::<Vec<&[u8]>>()).to_le_bytes()
        };
        let items: Vec<u8> = self.items.iter().flat_map(item).collect();
        let Limits { seconds, memory, .. } = self.sandbox.limits();
        json!({
            "completions": self.file, "items": fingerprint(&[&items]), "timeout": seconds, "memory": memory >> 20,
            "python": self.sandbox.version(),
        })
    }

    /// As many as have about four programs for each thread.
    fn round(&self) -> usize {
        let most = self.items.iter().map(|(_, all)| all.len()).max().unwrap_or(1);
        (4 * rayon::current_num_threads() / most.max(1)).max(1)
    }

    fn run(&mut self, _: &Setting, items: &[usize]) -> Result<Vec<Answer>> {
        let mine = || items.iter().filter_map(|&i| self.items.get(i));
        let programs: Vec<(&Problem, &str)> =
            mine().flat_map(|(problem, all)| all.iter().map(move |c| (problem, c.as_str()))).collect();
        let mut outcomes = execute(&self.sandbox, &programs, &self.interrupt)?.into_iter();
        let answer = |(_, all): &(Problem, Vec<String>)| {
            let outcomes: Vec<Outcome> = outcomes.by_ref().take(all.len()).collect();
            let (values, mut record) = values(&outcomes);
            record.insert("outputs".into(), json!(all));
            Answer { values, nfe: 0, samples: all.len(), record }
        };
        Ok(mine().map(answer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The completions of a file for three problems; `None`, with a note, where no programs are run.
    fn task(
        path: &Path,
        test: &str,
        completions: &[(&str, &str)],
        seconds: f64,
        limit: Option<usize>,
    ) -> Option<Completions> {
        let sandbox = Sandbox::new(None, Limits { seconds, ..Limits::default() });
        let sandbox = sandbox.map_err(|e| println!("skipped: {e}")).ok()?;
        let lines: Vec<String> =
            completions.iter().map(|(id, text)| human_eval::completion_line(id, text)).collect();
        std::fs::write(path, lines.join("\n")).unwrap();
        let problem = |id: &str| Problem {
            task_id: id.into(),
            entry_point: "one".into(),
            prompt: "def one():\n".into(),
            suffix: String::new(),
            canonical_solution: String::new(),
            test: test.into(),
        };
        let problems = ["t/0", "t/1", "t/2"].map(problem).to_vec();
        Some(Completions::new(path, problems, limit, sandbox, Interrupt::default()).unwrap())
    }

    #[test]
    fn completions_find_their_problems_and_a_limit_cuts_problems() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let lines = [("t/2", "a"), ("t/0", "b"), ("t/2", "c"), ("t/2", "d")];
        let Some(all) = task(&path, "", &lines, 10.0, None) else { return };
        assert_eq!((all.ids(), all.missing), (vec!["t/0".to_owned(), "t/2".to_owned()], 1));
        assert_eq!(all.items[1].1, ["a", "c", "d"]);
        assert_eq!(all.round(), (4 * rayon::current_num_threads() / 3).max(1));
        let some = task(&path, "", &lines, 10.0, Some(2)).unwrap();
        assert_eq!((some.ids(), some.missing), (vec!["t/0".to_owned()], 1));
        let one = task(&path, "", &lines, 10.0, Some(1)).unwrap();
        assert_eq!((one.ids(), one.missing), (vec!["t/0".to_owned()], 0));
    }

    #[test]
    fn other_texts_and_limits_are_other_work() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let lines = [("t/0", "a"), ("t/1", "b")];
        let Some(first) = task(&path, "x", &lines, 10.0, None) else { return };
        let choices = |test: &str, lines: &[(&str, &str)], seconds: f64| {
            task(&path, test, lines, seconds, None).unwrap().choices()
        };
        assert_eq!(first.choices(), choices("x", &lines, 10.0));
        for other in [
            choices("y", &lines, 10.0),
            choices("x", &[("t/0", "a"), ("t/1", "c")], 10.0),
            choices("x", &[("t/0", "a"), ("t/1", "b"), ("t/1", "b")], 10.0),
            choices("x", &lines, 9.0),
        ] {
            assert_ne!(first.choices(), other);
        }
    }

    #[test]
    fn a_problem_weighs_the_same_however_many_completions_it_has() {
        let outcomes = |verdicts: &[Verdict]| -> Vec<Outcome> {
            let one = |&verdict: &Verdict| Outcome { verdict, seconds: 0.0, message: String::new() };
            verdicts.iter().map(one).collect()
        };
        let (values, record) =
            values(&outcomes(&[Verdict::Passed, Verdict::TimedOut, Verdict::Failed, Verdict::Passed]));
        assert_eq!(values, [(0.5, 1.0), (0.25, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0)]);
        assert_eq!(record["verdicts"], json!(["passed", "timed-out", "failed", "passed"]));
    }
}
