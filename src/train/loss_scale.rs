//! A factor on the loss that keeps gradients in f16 within its range (Micikevicius et al., "Mixed precision training", 2018,
//! section 3.2). Its powers of two change no digit.

/// Where it starts, and the least and most that it becomes.
const FIRST: f64 = 65_536.0;
const LEAST: f64 = 1.0;
const MOST: f64 = 16_777_216.0;
/// Steps in a row without an overflow after which it doubles.
const PATIENCE: u64 = 2_000;

/// A factor on the loss, and on every gradient until the optimiser's step takes it back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    factor: f64,
    /// Steps since the last overflow or change.
    good: u64,
}

impl LossScale {
    /// 1 for good, where gradients have the range of f32.
    pub const NONE: Self = Self { factor: 0.0, good: 0 };

    /// What training begins with: a factor where it is needed.
    pub fn new(needed: bool) -> Self {
        if needed { Self { factor: FIRST, good: 0 } } else { Self::NONE }
    }

    /// The factor as it stands.
    pub fn factor(&self) -> f64 {
        if self.factor > 0.0 { self.factor } else { 1.0 }
    }

    /// After a step. True when it was skipped and a smaller factor, which the next one has, may be all it needs.
    pub fn after(&mut self, skipped: bool) -> bool {
        if self.factor == 0.0 {
            return false;
        }
        if skipped {
            self.good = 0;
            let least = self.factor <= LEAST;
            self.factor = (self.factor / 2.0).max(LEAST);
            return !least;
        }
        self.good += 1;
        if self.good >= PATIENCE {
            self.good = 0;
            self.factor = (self.factor * 2.0).min(MOST);
        }
        false
    }

    /// Numbers to be saved: factor and steps.
    pub fn saved(&self) -> [f64; 2] {
        [self.factor, self.good as f64]
    }

    /// Goes on from what was saved, where this machine needs a factor too.
    pub fn restore(&mut self, [factor, good]: [f64; 2]) {
        if self.factor > 0.0 && (LEAST..=MOST).contains(&factor) && good >= 0.0 {
            *self = Self { factor, good: good as u64 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_on_overflow_down_to_one_and_doubles_when_all_is_well() {
        let mut scale = LossScale::new(true);
        let halvings = std::iter::from_fn(|| scale.after(true).then_some(scale.factor())).count();
        assert_eq!((halvings, scale.factor()), (16, 1.0));
        for _ in 0..PATIENCE - 1 {
            assert!(!scale.after(false));
        }
        assert_eq!(scale.factor(), 1.0);
        scale.after(false);
        assert_eq!(scale.factor(), 2.0);
        let mut other = LossScale::new(true);
        other.restore(scale.saved());
        assert_eq!(other, scale);
    }

    #[test]
    fn without_need_it_stays_one() {
        let mut scale = LossScale::new(false);
        assert!(!scale.after(true));
        scale.restore([4.0, 7.0]);
        assert_eq!(scale.factor(), 1.0);
    }
}
