//! What an evaluation is to the loop that runs it: items, metrics, and rounds of answers.

use serde_json::{Map, Value};

use crate::error::Result;

/// Which way a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
    /// A count, neither good nor bad.
    Neither,
}

impl Better {
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Better::Higher => Some("higher"),
            Better::Lower => Some("lower"),
            Better::Neither => None,
        }
    }
}

/// How a metric is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A share, in per cent.
    Share,
    /// A number.
    Plain,
    /// Its exponential: of nats a token, a perplexity.
    Exp,
}

/// Something that is measured: the sum of the items' numerators over the sum of their denominators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub better: Better,
    pub unit: Unit,
}

impl Metric {
    /// A share of which more is better.
    pub const fn share(name: &'static str) -> Self {
        Self { name, better: Better::Higher, unit: Unit::Share }
    }

    /// A number.
    pub const fn plain(name: &'static str, better: Better) -> Self {
        Self { name, better, unit: Unit::Plain }
    }

    /// The value that is shown for a ratio.
    pub fn shown(self, ratio: f64) -> f64 {
        if self.unit == Unit::Exp { ratio.exp() } else { ratio }
    }
}

/// A setting under which all items are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Steps, levels or draws; `None`: as the task has it for each item.
    pub steps: Option<usize>,
    /// Whether committed tokens may return to the mask, where that is what is compared.
    pub remask: Option<bool>,
    pub trial: usize,
    pub seed: u64,
}

/// What came of an item.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Numerator and denominator of each metric.
    pub values: Vec<(f64, f64)>,
    /// Forward passes, and samples that they are of.
    pub nfe: usize,
    pub samples: usize,
    /// What else is to be kept: the output, the prediction.
    pub record: Map<String, Value>,
}

/// An evaluation.
pub trait Task {
    /// Its name, as in `lacuna eval NAME`.
    fn name(&self) -> &str;

    fn metrics(&self) -> &[Metric];

    /// The items, by names that stay.
    fn ids(&self) -> Vec<String>;

    /// What results depend on beside items, settings and model.
    fn choices(&self) -> Value;

    /// Items that are run together.
    fn round(&self) -> usize;

    /// Runs items under a setting.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) after Ctrl-C; what goes wrong.
    fn run(&mut self, setting: &Setting, items: &[usize]) -> Result<Vec<Answer>>;
}
