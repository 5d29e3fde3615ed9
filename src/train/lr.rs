//! Learning rates over a run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    Linear,
    /// Half a cosine (Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017), without
    /// restarts.
    #[default]
    Cosine,
}

/// The learning rate at every step: a linear warm-up to `peak`, then down to `floor`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps until the peak.
    #[serde(default)]
    pub warmup: u64,
    /// Steps of the run; the floor is reached behind the last.
    pub steps: u64,
    pub peak: f64,
    /// The rate that the run ends at; of no effect where it is constant.
    #[serde(default)]
    pub floor: f64,
}

impl Schedule {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// [`Error::Request`] for a peak that is not a positive finite number, a floor that is negative or above the
    /// peak, no steps, or a warm-up longer than the run.
    pub fn check(&self) -> Result<()> {
        let fail = |what: &str, expected: String, got: String| {
            Err(Error::Request(format!("learning rate: {what}: expected {expected}, got {got}")))
        };
        if !(self.peak > 0.0 && self.peak.is_finite()) {
            return fail("peak", "a positive finite number".into(), self.peak.to_string());
        }
        if !(0.0..=self.peak).contains(&self.floor) {
            return fail(
                "floor",
                format!("a number from 0 to the peak, {}", self.peak),
                self.floor.to_string(),
            );
        }
        if self.steps == 0 {
            return fail("steps", "1 or more".into(), "0".into());
        }
        if self.warmup > self.steps {
            let expected = format!("at most the {} steps of the run", self.steps);
            return fail("warm-up", expected, format!("{} steps", self.warmup));
        }
        Ok(())
    }

    /// The rate of step `step`, counted from 0: `peak (step + 1) / warmup` during the warm-up.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * ((step as f64 + 1.0) / self.warmup as f64);
        }
        if self.kind == ScheduleKind::Constant {
            return self.peak;
        }
        if step >= self.steps {
            return self.floor;
        }
        let done = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        let left = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - done,
            ScheduleKind::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
        };
        self.floor + (self.peak - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Schedule =
        Schedule { kind: ScheduleKind::Cosine, warmup: 10, steps: 110, peak: 1e-3, floor: 1e-4 };

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-15, "{a} {b}");
    }

    #[test]
    fn values_by_hand() {
        close(BASE.at(0), 1e-4);
        close(BASE.at(4), 5e-4);
        close(BASE.at(9), 1e-3);
        close(BASE.at(10), 1e-3);
        close(BASE.at(60), 5.5e-4);
        close(BASE.at(35), 1e-4 + 9e-4 * (0.5 + 0.5_f64.sqrt() / 2.0));
        close(BASE.at(110), 1e-4);
        close(BASE.at(u64::MAX), 1e-4);
        let linear = Schedule { kind: ScheduleKind::Linear, floor: 0.0, ..BASE };
        close(linear.at(35), 0.75e-3);
        close(linear.at(109), 1e-5);
        close(linear.at(110), 0.0);
        let constant = Schedule { kind: ScheduleKind::Constant, ..BASE };
        close(constant.at(3), 4e-4);
        close(constant.at(1000), 1e-3);
        close(Schedule { warmup: 0, ..BASE }.at(0), 1e-3);
    }

    #[test]
    fn falls_steadily_after_the_warm_up() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let s = Schedule { kind, ..BASE };
            assert!((10..109).all(|i| s.at(i + 1) < s.at(i)), "{kind:?}");
            assert!((0..9).all(|i| s.at(i + 1) > s.at(i)));
            // A warm-up that is all of the run.
            let s = Schedule { warmup: 110, ..s };
            assert!((0..200).all(|i| s.at(i).is_finite()));
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        assert!(BASE.check().is_ok());
        assert!(Schedule { warmup: 110, ..BASE }.check().is_ok());
        for (wrong, word) in [
            (Schedule { peak: 0.0, ..BASE }, "peak"),
            (Schedule { peak: -1.0, ..BASE }, "peak"),
            (Schedule { peak: f64::NAN, ..BASE }, "peak"),
            (Schedule { peak: f64::INFINITY, ..BASE }, "peak"),
            (Schedule { floor: 2e-3, ..BASE }, "floor"),
            (Schedule { floor: -1e-9, ..BASE }, "floor"),
            (Schedule { floor: f64::NAN, ..BASE }, "floor"),
            (Schedule { steps: 0, warmup: 0, ..BASE }, "steps"),
            (Schedule { warmup: 111, ..BASE }, "warm-up"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(matches!(&error, Error::Request(text) if text.contains(word)), "{error}");
        }
    }

    #[test]
    fn is_read_from_a_table() {
        let s: Schedule = toml::from_str("steps = 50\npeak = 0.001\nkind = \"linear\"").unwrap();
        assert_eq!(s, Schedule { kind: ScheduleKind::Linear, warmup: 0, steps: 50, peak: 1e-3, floor: 0.0 });
        assert_eq!(toml::from_str::<Schedule>(&toml::to_string(&BASE).unwrap()).unwrap(), BASE);
        assert!(toml::from_str::<Schedule>("steps = 50\npeak = 0.001\nwarmpu = 3").is_err());
    }
}
