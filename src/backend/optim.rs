//! The operations of an optimiser: parameters that can change, their moments, and a step of AdamW.

use super::{Backend, Layout};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// How the two moments of a parameter are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentFormat {
    /// Eight bytes a parameter.
    #[default]
    F32,
    /// Four bytes a parameter, rounded stochastically so that small changes are not lost (expected value kept).
    Bf16,
}

/// A step of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) on one parameter:
/// `p *= 1 - lr decay`, then with `g = scale grad`: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p -= lr / (1 - b1^step) m / (sqrt(v / (1 - b2^step)) + eps)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    /// 0 for parameters that do not decay.
    pub decay: f64,
    /// Steps done, this one included.
    pub step: u64,
    /// Factor on the gradient: clipping.
    pub scale: f64,
    /// For stochastic rounding ([`rounding`](Self::rounding)).
    pub rng: Rng,
    pub parameter: u32,
}

/// The factors of a step of [`AdamW`], each rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWFactors {
    /// `1 - lr decay`
    pub keep: f32,
    pub scale: f32,
    pub betas: [f32; 2],
    /// `1 - b1`, `1 - b2`
    pub rest: [f32; 2],
    /// `lr / (1 - b1^step)`
    pub rate: f32,
    /// `1 / (1 - b2^step)`
    pub unbias: f32,
    pub eps: f32,
}

impl AdamW {
    /// The factors of this step.
    ///
    /// # Errors
    /// [`Error::Request`] for a setting with which a step has no meaning: one that is not finite, a negative rate,
    /// decay or scale, betas outside `0 .. 1`, an `eps` that is not positive in f32, step 0.
    pub fn factors(&self) -> Result<AdamWFactors> {
        let fail = |what: &str, expected: &str, got: String| {
            Err(Error::Request(format!("optimiser: {what}: expected {expected}, got {got}")))
        };
        for (what, x) in [("lr", self.lr), ("decay", self.decay), ("scale", self.scale)] {
            if !(x >= 0.0 && x.is_finite()) {
                return fail(what, "a finite number that is not negative", x.to_string());
            }
        }
        if let Some(b) = self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return fail("betas", "numbers from 0 to below 1", b.to_string());
        }
        let eps = self.eps as f32;
        if !(eps > 0.0 && eps.is_finite()) {
            return fail("eps", "a positive number", self.eps.to_string());
        }
        if self.step == 0 {
            return fail("step", "1 or more", "0".into());
        }
        let [b1, b2] = self.betas;
        let bias = |b: f64| 1.0 - libm::pow(b, self.step as f64);
        Ok(AdamWFactors {
            keep: (1.0 - self.lr * self.decay) as f32,
            scale: self.scale as f32,
            betas: [b1 as f32, b2 as f32],
            rest: [(1.0 - b1) as f32, (1.0 - b2) as f32],
            rate: (self.lr / bias(b1)) as f32,
            unbias: (1.0 / bias(b2)) as f32,
            eps,
        })
    }

    /// The random bits that element `element` of the two moments is rounded with, 16 of each: the low and the high
    /// half of word `element / 16 % 4` of block `element / 64 * 16 + element % 16` (modulo 2^32, as is the step), so
    /// that 16 blocks side by side serve 64 elements in four runs.
    pub fn rounding(&self, element: u64) -> [u16; 2] {
        let block = (element / 64 * 16 + element % 16) as u32;
        let words = self.rng.words(Purpose::Rounding, self.parameter, self.step as u32, block);
        let word = words[(element / 16 % 4) as usize];
        [word as u16, (word >> 16) as u16]
    }
}

/// A parameter that is trained.
pub enum Trainable<'a, B: Backend> {
    Matrix(&'a mut B::Matrix),
    /// Norm weights and biases, in the format of activations.
    Vector(&'a mut B::Buffer),
}

/// The operations of an optimiser.
pub trait Optimise: Backend {
    /// Moments of one parameter, and its f32 master copy where the weight itself is narrower.
    type State: Send + Sync;

    /// As [`Backend::matrix`], in memory of its own that [`step`](Self::step) can change, in `dtype` (f32 or bf16).
    fn trainable_matrix(&self, tensor: &StoredTensor, layout: Layout, dtype: Dtype) -> Result<Self::Matrix>;

    /// Zero moments for a parameter. A weight in bf16 gets a master copy of its numbers.
    fn state(&self, parameter: Trainable<'_, Self>, moments: MomentFormat) -> Result<Self::State>
    where
        Self: Sized;

    /// Sum of squares of the first `len` numbers, in a fixed order; NaN or infinite where one of them is.
    fn sum_of_squares(&self, x: &Self::Buffer, len: usize) -> Result<f64>;

    /// One step of one parameter. The gradient is read, not changed.
    fn step(
        &self,
        parameter: Trainable<'_, Self>,
        gradient: &Self::Buffer,
        state: &mut Self::State,
        step: AdamW,
    ) -> Result<()>
    where
        Self: Sized;

    /// Copies a parameter to the host: its master copy where it has one. Little-endian f32, in stored orientation.
    fn read_parameter(&self, parameter: Trainable<'_, Self>, state: Option<&Self::State>) -> Result<Vec<f32>>
    where
        Self: Sized;

    /// Replaces a parameter's numbers (and the master copy).
    fn write_parameter(
        &self,
        parameter: Trainable<'_, Self>,
        state: Option<&mut Self::State>,
        numbers: &[f32],
    ) -> Result<()>
    where
        Self: Sized;

    /// The two moments as bytes, little-endian, with the format they are in.
    fn read_moments(&self, state: &Self::State) -> Result<(MomentFormat, [Vec<u8>; 2])>;

    /// Replaces the moments by what [`read_moments`](Self::read_moments) gave.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when sizes differ.
    fn write_moments(&self, state: &mut Self::State, moments: [&[u8]; 2]) -> Result<()>;
}
