//! A measurement as a line of JSON or of a CSV file: the keys, which docs/benchmarks.md explains.

use serde_json::{Map, Value, json};

use crate::profile::{Ceilings, median};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kernel,
    Step,
    Generate,
    Train,
    Serve,
    Ceiling,
}

impl Kind {
    /// The value of `bench`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Step => "step",
            Self::Generate => "generate",
            Self::Train => "train",
            Self::Serve => "serve-sim",
            Self::Ceiling => "ceiling",
        }
    }

    /// Its letter in [`KEYS`].
    const fn letter(self) -> char {
        match self {
            Self::Kernel => 'k',
            Self::Step => 's',
            Self::Generate => 'g',
            Self::Train => 't',
            Self::Serve => 'v',
            Self::Ceiling => 'c',
        }
    }
}

/// The version of the form of lines.
pub const SCHEMA: u32 = 1;

/// Every key in order, and the letters of the lines that have it: `k`ernel, `s`tep, `g`enerate, `t`rain, ser`v`e-sim, `c`eiling.
pub const KEYS: &[(&str, &str)] = &[
    ("schema", "ksgtvc"),
    ("bench", "ksgtvc"),
    ("who", "ksgtvc"),
    ("name", "ksgtvc"),
    ("model", "sgtv"),
    ("shape", "ksgtv"),
    ("parameters", "sgtv"),
    ("device", "ksgtvc"),
    ("dtype", "ksgtvc"),
    ("threads", "ksgtvc"),
    ("gemm", "ksgtvc"),
    ("commit", "ksgtvc"),
    ("version", "ksgtvc"),
    ("stem", "k"),
    ("kernel", "k"),
    ("batch", "sgtv"),
    ("length", "sgtv"),
    ("steps", "sgv"),
    ("order", "sgv"),
    ("top_p", "sgv"),
    ("masked", "st"),
    ("recompute", "t"),
    ("moments", "t"),
    ("lora_rank", "t"),
    ("loss", "t"),
    ("requests", "v"),
    ("rate_per_s", "v"),
    ("runs", "ksgtv"),
    ("median_s", "ksgtv"),
    ("min_s", "ksgtv"),
    ("max_s", "ksgtv"),
    ("spread", "ksgtv"),
    ("seconds", "ksgtv"),
    ("wall_s", "ksgtv"),
    ("median_us", "k"),
    ("min_us", "k"),
    ("tokens", "sgtv"),
    ("tokens_raw", "sgtv"),
    ("tokens_per_s", "sgtv"),
    ("tokens_raw_per_s", "sgtv"),
    ("nfe", "sgv"),
    ("tokens_per_forward", "sgv"),
    ("ms_per_step", "sgt"),
    ("requests_per_s", "v"),
    ("latency_s", "v"),
    ("queue_s", "v"),
    ("flops", "ksgtv"),
    ("flops_per_s", "ksgtvc"),
    ("bytes", "ksgtv"),
    ("bytes_per_s", "ksgtvc"),
    ("intensity", "ksgtv"),
    ("bound", "ksgtv"),
    ("roofline_share", "ksgtv"),
    ("ceiling_flops_per_s", "ksgtv"),
    ("ceiling_bytes_per_s", "ksgtv"),
    ("workspace_bytes", "k"),
    ("peak_memory_bytes", "sgtv"),
    ("device_bytes", "sgtv"),
    ("load_s", "sgtv"),
];

/// Keys of the objects `latency_s` and `queue_s`.
pub const PERCENTILES: [&str; 6] = ["p50", "p90", "p95", "p99", "max", "mean"];

/// The machine that is measured, as every line names it.
#[derive(Clone, Debug)]
pub struct Machine {
    pub device: String,
    pub dtype: String,
    pub threads: Option<usize>,
    pub gemm: String,
    /// Its roofline, if that was wanted.
    pub ceilings: Option<Ceilings>,
}

/// A measurement.
#[derive(Clone, Debug)]
pub struct Line {
    kind: Kind,
    values: Map<String, Value>,
}

impl Line {
    /// A line of `kind`, `name`d so that the same work has the same name.
    pub fn new(kind: Kind, name: &str, machine: &Machine) -> Self {
        let mut line = Self { kind, values: Map::new() };
        for (key, value) in [
            ("schema", json!(SCHEMA)),
            ("bench", json!(kind.name())),
            ("who", json!("lacuna")),
            ("name", json!(name)),
            ("device", json!(machine.device)),
            ("dtype", json!(machine.dtype)),
            ("threads", json!(machine.threads)),
            ("gemm", json!(machine.gemm)),
            ("commit", json!(commit())),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
        ] {
            line.set(key, value);
        }
        line
    }

    /// Gives a key its value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    /// The seconds of each run.
    pub fn times(&mut self, seconds: &[f64]) -> &mut Self {
        let middle = median(seconds);
        let spread = (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / middle;
        self.set("runs", seconds.len())
            .set("median_s", middle)
            .set("min_s", quantile(seconds, 0.0))
            .set("max_s", quantile(seconds, 1.0))
            .set("spread", spread)
            .set("seconds", seconds)
            .set("wall_s", seconds.iter().sum::<f64>())
    }

    /// Tokens of a run, useful and all; after [`times`](Self::times).
    pub fn tokens(&mut self, useful: usize, raw: usize) -> &mut Self {
        let middle = self.number("median_s").unwrap_or(f64::NAN);
        self.set("tokens", useful)
            .set("tokens_raw", raw)
            .set("tokens_per_s", useful as f64 / middle)
            .set("tokens_raw_per_s", raw as f64 / middle)
    }

    /// Operations and bytes of a run, where they are counted, and what the roofline says of them; after [`times`](Self::times).
    pub fn work(&mut self, flops: f64, bytes: f64, ceilings: Option<Ceilings>) -> &mut Self {
        let middle = self.number("median_s").unwrap_or(f64::NAN);
        let counted = |n: f64| (n > 0.0).then_some(n);
        self.set("flops", counted(flops))
            .set("flops_per_s", counted(flops).map(|n| n / middle))
            .set("bytes", counted(bytes))
            .set("bytes_per_s", counted(bytes).map(|n| n / middle))
            .set("intensity", counted(flops).and(counted(bytes)).map(|bytes| flops / bytes));
        if let Some(ceilings) = ceilings {
            self.set("ceiling_flops_per_s", ceilings.flops_per_s)
                .set("ceiling_bytes_per_s", ceilings.bytes_per_s);
            if flops > 0.0 || bytes > 0.0 {
                self.set("bound", ceilings.bound(flops, bytes).name())
                    .set("roofline_share", ceilings.share(flops, bytes, middle));
            }
        }
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn get(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key).as_f64()
    }

    /// The object: every key that such a line has, in order, null where it is not known.
    pub fn object(&self) -> Value {
        let own = KEYS.iter().filter(|(_, kinds)| kinds.contains(self.kind.letter()));
        Value::Object(own.map(|&(key, _)| (key.to_owned(), self.get(key).clone())).collect())
    }

    /// The cells of a CSV file: those of [`columns`].
    pub fn cells(&self) -> Vec<String> {
        let plain = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(all) => all.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
            other => other.to_string(),
        };
        let mut cells = Vec::new();
        for &(key, kinds) in KEYS {
            let value = if kinds.contains(self.kind.letter()) { self.get(key) } else { &Value::Null };
            if is_object(key) {
                cells.extend(PERCENTILES.map(|part| plain(&value[part])));
            } else {
                cells.push(plain(value));
            }
        }
        cells
    }
}

fn is_object(key: &str) -> bool {
    matches!(key, "latency_s" | "queue_s")
}

/// The columns of a CSV file: all keys in order, of objects `key.part`.
pub fn columns() -> Vec<String> {
    let of = |key: &str| {
        if is_object(key) {
            PERCENTILES.map(|part| format!("{key}.{part}")).to_vec()
        } else {
            vec![key.to_owned()]
        }
    };
    KEYS.iter().flat_map(|(key, _)| of(key)).collect()
}

/// The commit that the program was built from, where that is known.
fn commit() -> Option<&'static str> {
    option_env!("LACUNA_COMMIT").filter(|commit| !commit.is_empty())
}

/// The number below which a share `q` of `numbers` lies, between two neighbours in proportion; NaN of none.
pub fn quantile(numbers: &[f64], q: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[(place.ceil() as usize).min(last)]);
    low + (high - low) * place.fract()
}

/// Percentiles, most and mean of some seconds.
pub fn percentiles(seconds: &[f64]) -> Value {
    let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let values = [0.5, 0.9, 0.95, 0.99, 1.0].map(|q| quantile(seconds, q)).into_iter().chain([mean]);
    Value::Object(PERCENTILES.iter().map(|key| (*key).to_owned()).zip(values.map(Value::from)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let x = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|q| quantile(&x, q)), [1.0, 1.75, 2.5, 4.0]);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(percentiles(&[1.0, 3.0])["mean"], 2.0);
    }

    #[test]
    fn a_line_has_its_keys_and_no_others() {
        let ceilings = Some(Ceilings { flops_per_s: 100.0, bytes_per_s: 10.0 });
        let machine = Machine {
            device: "a machine".into(),
            dtype: "f32".into(),
            threads: None,
            gemm: "own".into(),
            ceilings,
        };
        let mut line = Line::new(Kind::Kernel, "n", &machine);
        line.times(&[2.0, 1.0, 3.0]).work(80.0, 10.0, ceilings).set("loss", 1.0);
        let object = line.object();
        assert_eq!(
            (&object["median_s"], &object["spread"], &object["wall_s"]),
            (&2.0.into(), &0.5.into(), &6.0.into())
        );
        assert_eq!((&object["roofline_share"], &object["bound"]), (&0.5.into(), &"memory".into()));
        assert!(object.get("loss").is_none() && object["threads"].is_null());
        assert_eq!(line.cells().len(), columns().len());
    }
}
