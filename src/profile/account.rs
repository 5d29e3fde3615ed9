//! What the [meter](crate::meter) measured, as rows: time, work, and how near that comes to what the machine can do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::meter::{Key, Measured, Total, Track};

/// What the rows are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Operations of the backend traits.
    #[default]
    Op,
    /// Operations at each of their sizes.
    Shape,
    /// Kernels of a card; on the CPU operations.
    Kernel,
}

/// Calls that are shown together.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub op: &'static str,
    pub kernel: Option<&'static str>,
    pub dims: Option<[usize; 3]>,
    pub total: Total,
}

impl Row {
    pub fn seconds(&self) -> f64 {
        self.total.time.as_secs_f64()
    }

    /// Mean seconds of a call.
    pub fn mean(&self) -> f64 {
        self.seconds() / self.total.calls.max(1) as f64
    }

    /// The sizes, as in `128 x 576 x 1536`; empty where they are not told apart.
    pub fn shape(&self) -> String {
        let dims = self.dims.unwrap_or_default();
        let used = dims.iter().rposition(|&d| d > 0).map_or(0, |last| last + 1);
        dims[..used].iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
    }

    /// `amount` a second; `None` where there is none or no time.
    fn rate(&self, amount: u64) -> Option<f64> {
        (amount > 0 && self.seconds() > 0.0).then(|| amount as f64 / self.seconds())
    }

    pub fn flops_per_s(&self) -> Option<f64> {
        self.rate(self.total.flops)
    }

    pub fn bytes_per_s(&self) -> Option<f64> {
        self.rate(self.total.bytes)
    }
}

/// Rows, and the whole that they are part of.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The one that took longest first.
    pub rows: Vec<Row>,
    /// Seconds of all rows.
    pub listed: f64,
    /// Seconds of the work that the operations belong to (generations, training steps); all of the run, where there was none.
    pub work: f64,
    /// Seconds of the run.
    pub wall: f64,
    /// Times are by the clock of a card.
    pub device: bool,
    /// Ranges with their calls and seconds.
    pub ranges: Vec<(&'static str, Total)>,
}

/// Ranges that are whole pieces of work.
const WORK: [&str; 2] = ["generate", "train step"];

/// Operations that are matrix products.
const PRODUCTS: [&str; 3] = ["linear", "linear_backward_input", "linear_backward_weight"];

impl Account {
    pub fn new(measured: &Measured, by: By) -> Self {
        let device = measured.ops.iter().any(|(key, _)| key.track == Track::Device);
        let track = if device { Track::Device } else { Track::Host };
        let mut rows: Vec<Row> = Vec::new();
        for (key, total) in measured.ops.iter().filter(|(key, _)| key.track == track) {
            let Key { op, kernel, dims, .. } = *key;
            let kernel = kernel.filter(|_| by == By::Kernel);
            let dims = Some(dims).filter(|_| by == By::Shape);
            match rows.iter_mut().find(|r| r.op == op && r.kernel == kernel && r.dims == dims) {
                Some(row) => add(&mut row.total, total),
                None => rows.push(Row { op, kernel, dims, total: *total }),
            }
        }
        if device && by != By::Kernel {
            // Calls of operations, which may have launched several kernels each.
            for row in &mut rows {
                let asked = measured.ops.iter().filter(|(key, _)| {
                    key.track == Track::Host
                        && key.op == row.op
                        && row.dims.is_none_or(|dims| dims == key.dims)
                });
                let calls: u64 = asked.map(|(_, total)| total.calls).sum();
                row.total.calls = if calls > 0 { calls } else { row.total.calls };
            }
        }
        rows.sort_by(|a, b| b.total.time.cmp(&a.total.time).then(a.op.cmp(b.op)).then(a.dims.cmp(&b.dims)));
        let listed = rows.iter().map(Row::seconds).sum();
        let work = measured.ranges.iter().filter(|(name, _)| WORK.contains(name));
        let work: Duration = work.map(|(_, total)| total.time).sum();
        let wall = measured.wall.as_secs_f64();
        let work = if work.is_zero() { wall } else { work.as_secs_f64() };
        Self { rows, listed, work, wall, device, ranges: measured.ranges.clone() }
    }

    /// A row's share of the work.
    pub fn share(&self, row: &Row) -> f64 {
        if self.work > 0.0 { row.seconds() / self.work } else { 0.0 }
    }

    /// The share of matrix products in the work.
    pub fn products(&self) -> f64 {
        self.rows.iter().filter(|row| PRODUCTS.contains(&row.op)).map(|row| self.share(row)).sum()
    }

    /// Floating-point operations of all rows.
    pub fn flops(&self) -> u64 {
        self.rows.iter().map(|row| row.total.flops).fold(0, u64::saturating_add)
    }

    /// The lines of a profile in a file, without those that need a ceiling.
    pub fn json(&self) -> Vec<Value> {
        let mut lines: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "schema": 1, "profile": if row.kernel.is_some() { "kernel" } else { "op" }, "op": row.op,
                    "kernel": row.kernel, "shape": row.dims.map(|_| row.shape()), "calls": row.total.calls,
                    "total_s": row.seconds(), "mean_s": row.mean(), "share": self.share(row),
                    "flops": row.total.flops, "bytes": row.total.bytes, "flops_per_s": row.flops_per_s(),
                    "bytes_per_s": row.bytes_per_s(),
                    "intensity": (row.total.bytes > 0).then(|| row.total.flops as f64 / row.total.bytes as f64),
                })
            })
            .collect();
        lines.extend(self.ranges.iter().map(|(name, total)| {
            json!({
                "schema": 1, "profile": "range", "op": name, "calls": total.calls,
                "total_s": total.time.as_secs_f64(),
                "mean_s": total.time.as_secs_f64() / total.calls.max(1) as f64,
            })
        }));
        lines.push(json!({
            "schema": 1, "profile": "total", "wall_s": self.wall, "work_s": self.work, "listed_s": self.listed,
            "products_share": self.products(), "flops": self.flops(), "clock": if self.device { "device" } else { "host" },
        }));
        lines
    }
}

fn add(to: &mut Total, more: &Total) {
    to.calls += more.calls;
    to.time += more.time;
    to.flops = to.flops.saturating_add(more.flops);
    to.bytes = to.bytes.saturating_add(more.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(track: Track) -> Measured {
        let key = |op, kernel, dims| Key { op, kernel, dims, track };
        let total = |calls, ms, flops, bytes| Total { calls, time: Duration::from_millis(ms), flops, bytes };
        let kernel = |name| (track == Track::Device).then_some(name);
        Measured {
            ops: vec![
                (key("norm", kernel("norm_rms_f32"), [4, 8, 0]), total(2, 10, 0, 100)),
                (key("linear", kernel("matmul_f32"), [4, 8, 16]), total(2, 60, 1000, 50)),
                (key("linear", kernel("matmul_tall_f32"), [4, 16, 8]), total(1, 25, 500, 50)),
            ],
            ranges: vec![("layer", total(2, 96, 0, 0)), ("generate", total(1, 100, 0, 0))],
            wall: Duration::from_millis(130),
            ..Measured::default()
        }
    }

    #[test]
    fn rows_are_sums_and_shares_are_of_the_work() {
        let account = Account::new(&measured(Track::Host), By::Op);
        let names: Vec<&str> = account.rows.iter().map(|r| r.op).collect();
        assert_eq!(names, ["linear", "norm"]);
        let linear = &account.rows[0];
        assert_eq!((linear.total.calls, linear.total.flops, linear.shape().as_str()), (3, 1500, ""));
        assert!((account.share(linear) - 0.85).abs() < 1e-12 && (account.products() - 0.85).abs() < 1e-12);
        assert!((account.listed - 0.095).abs() < 1e-12 && (account.work - 0.1).abs() < 1e-12);
        assert!((linear.flops_per_s().unwrap() - 1500.0 / 0.085).abs() < 1e-6);
        assert_eq!(account.rows[1].flops_per_s(), None);
        assert!(!account.device);
    }

    #[test]
    fn rows_by_size_and_by_kernel() {
        let sizes = Account::new(&measured(Track::Host), By::Shape);
        let shapes: Vec<String> = sizes.rows.iter().map(Row::shape).collect();
        assert_eq!(shapes, ["4 x 8 x 16", "4 x 16 x 8", "4 x 8"]);
        // Operations of a card are counted where they are asked for.
        let mut both = measured(Track::Device);
        both.ops.extend(measured(Track::Host).ops);
        both.ops[3].1.calls = 7;
        let ops = Account::new(&both, By::Op);
        assert_eq!((ops.rows[1].op, ops.rows[1].total.calls, ops.rows[1].kernel), ("norm", 7, None));
        let kernels = Account::new(&measured(Track::Device), By::Kernel);
        let names: Vec<_> = kernels.rows.iter().map(|r| r.kernel.unwrap()).collect();
        assert_eq!(names, ["matmul_f32", "matmul_tall_f32", "norm_rms_f32"]);
        assert!(kernels.device);
        // Without work that is known as such, shares are of the run.
        let run = Measured { ranges: Vec::new(), ..measured(Track::Host) };
        assert!((Account::new(&run, By::Op).work - 0.13).abs() < 1e-12);
        let nothing = Account::new(&Measured::default(), By::Op);
        assert!(nothing.rows.is_empty() && nothing.products() == 0.0);
    }

    #[test]
    fn lines_have_what_a_report_reads() {
        let lines = Account::new(&measured(Track::Host), By::Shape).json();
        assert_eq!(lines.len(), 3 + 2 + 1);
        assert_eq!((&lines[0]["profile"], &lines[0]["shape"]), (&"op".into(), &"4 x 8 x 16".into()));
        let total = lines.last().unwrap();
        assert_eq!(
            (&total["profile"], &total["clock"], &total["flops"]),
            (&"total".into(), &"host".into(), &1500.into())
        );
    }
}
