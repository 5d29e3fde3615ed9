//! What `lacuna selftest` says: a line a kernel, every failure in full, and the same as JSON.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use super::device::Place;
use super::terminal::printable;
use crate::error::{Error, Result};
use crate::selftest::{Grid, Verdict};

/// The cases of one kernel.
struct Tally {
    stem: &'static str,
    kernel: String,
    cases: usize,
    failed: usize,
    seconds: f64,
    /// The verdict nearest to its bound or furthest beyond it, and the shape it is of.
    worst: Option<(Verdict, String)>,
}

/// A case that did not pass, in a line for people.
struct Failure {
    kernel: String,
    text: String,
}

/// A run of the self-test.
pub struct Report {
    place: Place,
    /// Why it is this place, if nobody named one.
    why: Option<String>,
    /// The device in a line.
    pub device: String,
    /// The matrix library, or why it is not tested; nothing where none was looked for.
    pub library: Option<String>,
    grid: Grid,
    seed: u64,
    /// Cases that were to run.
    total: u64,
    tallies: Vec<Tally>,
    failures: Vec<Failure>,
    /// Ctrl-C was pressed.
    pub interrupted: bool,
    /// Why nothing more can run on the device.
    pub lost: Option<String>,
    start: Instant,
}

/// Error relative to its bound; infinite where there should be no error, or it is NaN.
fn share(verdict: &Verdict) -> f64 {
    match verdict.error {
        0.0 => 0.0,
        error if error.is_nan() || verdict.bound <= 0.0 => f64::INFINITY,
        error => error / verdict.bound,
    }
}

impl Report {
    pub fn new(place: Place, why: Option<String>, grid: Grid, seed: u64, total: u64) -> Self {
        Self {
            place,
            why,
            device: String::new(),
            library: None,
            grid,
            seed,
            total,
            tallies: Vec::new(),
            failures: Vec::new(),
            interrupted: false,
            lost: None,
            start: Instant::now(),
        }
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// This many cases are not to run after all.
    pub fn leave_out(&mut self, cases: u64) {
        self.total = self.total.saturating_sub(cases);
    }

    /// Takes in how a case ended; the case as an object.
    pub fn add(
        &mut self,
        stem: &'static str,
        kernel: &str,
        shape: &str,
        schedule: Option<u64>,
        outcome: Result<Verdict>,
        seconds: f64,
    ) -> Value {
        let index = self.tallies.iter().position(|t| t.kernel == kernel).unwrap_or_else(|| {
            let kernel = kernel.to_owned();
            self.tallies.push(Tally { stem, kernel, cases: 0, failed: 0, seconds: 0.0, worst: None });
            self.tallies.len() - 1
        });
        let tally = &mut self.tallies[index];
        tally.cases += 1;
        tally.seconds += seconds;
        let mut case = json!({
            "type": "case", "stem": stem, "kernel": kernel, "shape": shape, "seed": self.seed,
            "passed": matches!(&outcome, Ok(v) if v.passed()), "seconds": seconds,
        });
        if let Some(schedule) = schedule {
            case["schedule"] = schedule.into();
        }
        let complaint = match outcome {
            Ok(verdict) => {
                case["error"] = verdict.error.into();
                case["bound"] = verdict.bound.into();
                if tally.worst.as_ref().is_none_or(|(worst, _)| share(&verdict) > share(worst)) {
                    tally.worst = Some((verdict, shape.to_owned()));
                }
                (!verdict.passed())
                    .then(|| format!("error {:.3e}, at most {:.3e}", verdict.error, verdict.bound))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(complaint) = complaint {
            tally.failed += 1;
            case["message"] = complaint.as_str().into();
            let schedule = schedule.map(|s| format!(", schedule {s}")).unwrap_or_default();
            let text = format!("{kernel} ({shape}), seed {}{schedule}: {complaint}", self.seed);
            self.failures.push(Failure { kernel: kernel.to_owned(), text });
        }
        case
    }

    fn ran(&self) -> u64 {
        self.tallies.iter().map(|t| t.cases as u64).sum()
    }

    /// Whether every case ran and passed.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after Ctrl-C, else [`Error::Device`] that counts.
    pub fn verdict(&self) -> Result<()> {
        if self.interrupted {
            return Err(Error::Cancelled);
        }
        let mut what = Vec::new();
        if !self.failures.is_empty() {
            what.push(format!("{} of {} cases failed", self.failures.len(), self.ran()));
        }
        if self.ran() < self.total {
            what.push(format!("{} of {} could not run", self.total - self.ran(), self.total));
        }
        if what.is_empty() {
            return Ok(());
        }
        Err(Error::Device {
            device: self.place.to_string(),
            what: what.join(", "),
            hint: "lacuna selftest --help says what that means and what to report".into(),
        })
    }

    /// The last object: sums, and what the exit code is for.
    pub fn summary(&self, error: Option<&Error>) -> Value {
        let kernels: Vec<Value> = self
            .tallies
            .iter()
            .map(|t| {
                let mut value = json!({
                    "stem": t.stem, "kernel": t.kernel, "cases": t.cases, "failed": t.failed,
                    "seconds": t.seconds,
                });
                if let Some((worst, shape)) = &t.worst {
                    value["error"] = worst.error.into();
                    value["bound"] = worst.bound.into();
                    value["shape"] = shape.as_str().into();
                }
                value
            })
            .collect();
        let mut summary = json!({
            "type": "summary", "device": self.place.to_string(), "name": self.device, "why": self.why,
            "library": self.library,
            "grid": self.grid_name(), "seed": self.seed, "cases": self.total, "ran": self.ran(),
            "failed": self.failures.len(), "seconds": self.start.elapsed().as_secs_f64(),
            "kernels": kernels,
        });
        if let Some(lost) = &self.lost {
            summary["lost"] = lost.as_str().into();
        }
        if let Some(error) = error {
            summary["error"] = error.to_string().into();
            summary["code"] = error.exit_code().into();
        }
        summary
    }

    fn grid_name(&self) -> &'static str {
        match self.grid {
            Grid::Quick => "quick",
            Grid::Full => "full",
        }
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(out, "device   {}", printable(&self.device));
        if let Some(library) = &self.library {
            let _ = writeln!(out, "library  {}", printable(library));
        }
        let _ = writeln!(out, "shapes   {}, seed {}\n", self.grid_name(), self.seed);
        self.table(&mut out);
        for failure in &self.failures {
            let _ = writeln!(out, "\nFAILED {}", printable(&failure.text));
            let quick = if self.grid == Grid::Quick { " --quick" } else { "" };
            let Self { place, seed, .. } = self;
            let _ = writeln!(
                out,
                "  again: lacuna selftest --device {place}{quick} --seed {seed} --filter {}",
                failure.kernel
            );
        }
        if let Some(lost) = &self.lost {
            let _ = writeln!(out, "\nNothing more can run on the device: {}", printable(lost));
        }
        let (ran, failed) = (self.ran(), self.failures.len() as u64);
        let _ = write!(out, "\n{} of {} cases passed", ran - failed, self.total);
        for (count, what) in [(failed, "failed"), (self.total.saturating_sub(ran), "did not run")] {
            if count > 0 {
                let _ = write!(out, ", {count} {what}");
            }
        }
        let _ = writeln!(out, ", {:.1} s", self.start.elapsed().as_secs_f64());
        out
    }

    fn table(&self, out: &mut String) {
        let rows = self.tallies.iter().map(|t| {
            let (error, of_bound, shape) = match &t.worst {
                Some((v, _)) if v.error == 0.0 => ("none".into(), String::new(), String::new()),
                Some((v, shape)) if v.bound > 0.0 => {
                    (format!("{:.1e}", v.error), format!("{:.2}", share(v)), shape.clone())
                }
                Some((v, shape)) => (format!("{} differ", v.error), String::new(), shape.clone()),
                None => (String::new(), String::new(), String::new()),
            };
            let result = if t.failed == 0 { "ok".into() } else { format!("{} FAILED", t.failed) };
            let time = format!("{:.2} s", t.seconds);
            [t.kernel.clone(), t.cases.to_string(), result, error, of_bound, time, shape]
        });
        let head = ["kernel", "cases", "result", "error", "of bound", "time", "worst at"].map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let w = widths[column];
                let _ = match column {
                    // Numbers to the right.
                    1 | 4 | 5 => write!(line, "{cell:>w$}  "),
                    _ => write!(line, "{cell:<w$}  "),
                };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(error: f64, bound: f64) -> Verdict {
        Verdict { error, bound, fingerprint: 0 }
    }

    fn fault() -> Error {
        Error::Device { device: "simt".into(), what: "a race at line 7".into(), hint: "mend it".into() }
    }

    #[test]
    fn a_report_counts_and_keeps_the_worst() {
        let mut report = Report::new(Place::Simt, None, Grid::Quick, 4, 3);
        report.add("norm", "norm_f32", "rows 1", Some(0), Ok(verdict(1e-7, 1e-5)), 0.1);
        report.add("norm", "norm_f32", "rows 2", Some(0), Ok(verdict(5e-7, 1e-5)), 0.1);
        let case = report.add("mask", "mask", "rows 3", Some(0), Ok(verdict(0.0, 0.0)), 0.1);
        assert_eq!((&case["passed"], &case["schedule"], &case["seed"]), (&true.into(), &0.into(), &4.into()));
        assert!(report.verdict().is_ok());
        let text = report.text();
        for words in ["rows 2", "5.0e-7", "0.05", "none", "3 of 3 cases passed"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("FAILED"));
        let summary = report.summary(None);
        assert_eq!(summary["kernels"][0]["shape"], "rows 2");
        assert!(summary.get("code").is_none());
    }

    #[test]
    fn failures_are_shown_in_full() {
        let mut report = Report::new(Place::Cuda(1), None, Grid::Full, 9, 5);
        report.add("norm", "norm_f32", "rows 1", None, Ok(verdict(f64::NAN, 1e-5)), 0.1);
        report.add("norm", "norm_f32", "rows 2", None, Err(fault()), 0.1);
        let case = report.add("mask", "mask", "rows 3", None, Ok(verdict(2.0, 0.0)), 0.1);
        assert_eq!(case["passed"], false);
        report.lost = Some("CUDA_ERROR_ILLEGAL_ADDRESS".into());
        let error = report.verdict().expect_err("failures");
        assert_eq!(error.exit_code(), 8);
        assert!(error.to_string().contains("3 of 3 cases failed, 2 of 5 could not run"), "{error}");
        let text = report.text();
        for words in [
            "2 FAILED",
            "FAILED norm_f32 (rows 1), seed 9: error NaN, at most 1.000e-5",
            "a race at line 7",
            "lacuna selftest --device cuda:1 --seed 9 --filter mask",
            "2 differ",
            "ILLEGAL_ADDRESS",
            "0 of 5 cases passed, 3 failed, 2 did not run",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let summary = report.summary(Some(&error));
        assert_eq!(
            (&summary["code"], &summary["failed"], &summary["ran"]),
            (&8.into(), &3.into(), &3.into())
        );
    }

    #[test]
    fn ctrl_c_is_no_verdict() {
        let mut report = Report::new(Place::Cpu, None, Grid::Full, 0, 5);
        report.add("norm", "norm_f32", "rows 2", None, Err(fault()), 0.1);
        report.interrupted = true;
        assert_eq!(report.verdict().expect_err("stopped").exit_code(), 130);
    }
}
