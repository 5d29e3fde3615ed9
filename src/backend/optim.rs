//! The operations of an optimiser: parameters that can change, their moments, and a step of AdamW.

use super::{Backend, Layout};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

/// Numbers of a block of 8-bit moments, which share a scale.
pub const MOMENT_BLOCK: usize = 256;

/// How the two moments of a parameter are kept. Formats narrower than f32 are rounded stochastically, so that small changes
/// are not lost: the expected value is kept (a noise is added, whose size is the distance of two neighbouring numbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentFormat {
    /// Eight bytes a parameter.
    #[default]
    F32,
    /// Four bytes a parameter; neighbours are 1/128 of a number apart at most.
    Bf16,
    /// Two bytes a parameter, and 8 for every [`MOMENT_BLOCK`] of them: codes relative to a scale a block, after Dettmers et
    /// al., "8-bit optimizers via block-wise quantization", 2021 (whose codes are others). Neighbours are 1/8 of a number
    /// apart at most.
    ///
    /// The scale is the largest magnitude of the block over 1.875. The first moment's codes are small floats of a sign, 4
    /// bits of exponent and 3 of mantissa, the second's of 5 bits of exponent and 3 of mantissa, either up to 1.875:
    /// 2^-112 (2^-96) times a number over its scale has its code in the bits of f32 from bit 20 on. 16 random bits are
    /// added from bit 4 on before they are cut off there. Steps below 2^-14 (2^-30) are all as wide as those there, 2^-17
    /// (2^-33). A second moment above 0 never gets the code of 0, which would make its update explode, and a block of zeros
    /// has the scale 0. A block with a number that is not finite decodes to none that is.
    #[serde(rename = "8bit")]
    Q8,
}

impl std::fmt::Display for MomentFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = Self::NAMED.iter().find(|(_, format)| format == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl std::str::FromStr for MomentFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = Self::NAMED.into_iter().find(|(name, _)| *name == text);
        named.map(|(_, format)| format).ok_or_else(|| {
            let names = Self::NAMED.map(|(name, _)| name).join(", ");
            format!("{text}: expected one of {names}")
        })
    }
}

impl MomentFormat {
    /// All of them, with the names that flags and configurations have for them.
    pub const NAMED: [(&'static str, Self); 3] =
        [("f32", Self::F32), ("bf16", Self::Bf16), ("8bit", Self::Q8)];

    /// Bytes of one moment of `len` numbers.
    pub fn bytes(self, len: usize) -> usize {
        match self {
            MomentFormat::F32 => len.saturating_mul(4),
            MomentFormat::Bf16 => len.saturating_mul(2),
            MomentFormat::Q8 => len.saturating_add(len.div_ceil(MOMENT_BLOCK) * 4),
        }
    }
}

/// A step of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) on one parameter:
/// `p *= 1 - lr decay`, then with `g = scale grad`: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p -= lr / (1 - b1^step) m / (sqrt(v / (1 - b2^step)) + eps)`. The scale is that of loss scaling and clipping
/// ([`scale`](Self::scale)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    /// Of the parameters that decay.
    pub decay: f64,
    /// The longest that all gradients together may be; 0 for no clipping.
    pub clip: f64,
    /// Factor on every gradient: the inverse of the loss's scale.
    pub unscale: f64,
    /// Steps done, this one included.
    pub step: u64,
    /// For stochastic rounding ([`rounding`](Self::rounding)).
    pub rng: Rng,
}

/// The factors of a step of [`AdamW`], each rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWFactors {
    /// `1 - lr decay`
    pub keep: f32,
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
    /// decay, clip or unscale, betas outside `0 .. 1`, an `eps` that is not positive in f32, step 0.
    pub fn factors(&self) -> Result<AdamWFactors> {
        let fail = |what: &str, expected: &str, got: String| {
            Err(Error::Request(format!("optimiser: {what}: expected {expected}, got {got}")))
        };
        let settings =
            [("lr", self.lr), ("decay", self.decay), ("clip", self.clip), ("unscale", self.unscale)];
        for (what, x) in settings {
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
            betas: [b1 as f32, b2 as f32],
            rest: [(1.0 - b1) as f32, (1.0 - b2) as f32],
            rate: (self.lr / bias(b1)) as f32,
            unbias: (1.0 / bias(b2)) as f32,
            eps,
        })
    }

    /// The factor on every gradient where all of them together have this length, `unscale` included.
    pub fn scale(&self, length: f64) -> f64 {
        let clip = if self.clip > 0.0 { (self.clip / (length + 1e-6)).min(1.0) } else { 1.0 };
        self.unscale * clip
    }

    /// The random bits that element `element` of the two moments of parameter `parameter` is rounded with, 16 of each: the
    /// low and the high half of word `element / 16 % 4` of block `element / 64 * 16 + element % 16` (modulo 2^32, as is the
    /// step), so that 16 blocks side by side serve 64 elements in four runs.
    pub fn rounding(&self, parameter: u32, element: u64) -> [u16; 2] {
        let block = (element / 64 * 16 + element % 16) as u32;
        let words = self.rng.words(Purpose::Rounding, parameter, self.step as u32, block);
        let word = words[(element / 16 % 4) as usize];
        [word as u16, (word >> 16) as u16]
    }
}

/// What came of the gradients of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Length of all gradients together, before clipping, times [`AdamW::unscale`].
    pub gradient: f64,
    /// That, or a loss that was watched, is not finite: parameters, master copies and moments were left as they are.
    pub skipped: bool,
}

/// A parameter that is trained.
pub enum Trainable<'a, B: Backend> {
    Matrix(&'a mut B::Matrix),
    /// Norm weights and biases, in the format of activations.
    Vector(&'a mut B::Buffer),
}

/// The operations of an optimiser.
///
/// A step is [`prepare`](Self::prepare), then [`watch`](Self::watch) and [`measure`](Self::measure) as losses and gradients
/// come, [`settle`](Self::settle), [`step`](Self::step) for each parameter, and [`outcome`](Self::outcome). From `watch` to
/// `step` nothing is decided on the host, so that on a card they can be recorded once: all that changes from step to step is
/// what `prepare` sends.
pub trait Optimise: Backend {
    /// Moments of one parameter, and its f32 master copy where the weight itself is narrower.
    type State: Send + Sync;
    /// The settings of a step, what is measured of its gradients, and what follows from that.
    type Control: Send;

    /// As [`Backend::matrix`], in memory of its own that [`step`](Self::step) can change, in `dtype` (f32 or bf16). A machine
    /// whose activations are in one format computes with weights in that one, and keeps the numbers in f32 beside them for
    /// [`state`](Self::state) where it is narrower.
    fn trainable_matrix(&self, tensor: &StoredTensor, layout: Layout, dtype: Dtype) -> Result<Self::Matrix>;

    /// Zero moments for a parameter. A weight in 16 bits gets a master copy of its numbers.
    fn state(&self, parameter: Trainable<'_, Self>, moments: MomentFormat) -> Result<Self::State>
    where
        Self: Sized;

    /// Sum of squares of the first `len` numbers, in a fixed order; NaN or infinite where one of them is.
    fn sum_of_squares(&self, x: &Self::Buffer, len: usize) -> Result<f64>;

    /// Room to measure gradients: number `i` has `lens[i]` numbers.
    fn control(&self, lens: &[usize]) -> Result<Self::Control>;

    /// The settings of the step to come, host to machine and so outside of recordings. Forgets what was measured and watched;
    /// a gradient that is not measured counts as 0.
    ///
    /// # Errors
    /// Those of [`AdamW::factors`].
    fn prepare(&self, control: &mut Self::Control, step: AdamW) -> Result<()>;

    /// A loss among the first `rows` of `nll` that is not finite makes [`settle`](Self::settle) skip the step.
    fn watch(&self, control: &mut Self::Control, nll: &Self::Floats, rows: usize) -> Result<()>;

    /// Measures gradient `number`.
    fn measure(&self, control: &mut Self::Control, number: usize, gradient: &Self::Buffer) -> Result<()>;

    /// The length of all gradients together, the factor of clipping, and whether the step is skipped.
    fn settle(&self, control: &mut Self::Control) -> Result<()>;

    /// One step of one parameter, unless it is skipped. `parameter` numbers it for stochastic rounding; `decays` says whether
    /// [`AdamW::decay`] applies. The gradient is read, not changed. Before [`settle`](Self::settle) it is an error where the
    /// host knows, else nothing.
    fn step(
        &self,
        trainable: Trainable<'_, Self>,
        gradient: &Self::Buffer,
        state: &mut Self::State,
        control: &Self::Control,
        parameter: u32,
        decays: bool,
    ) -> Result<()>
    where
        Self: Sized;

    /// What came of the gradients; waits for it.
    fn outcome(&self, control: &Self::Control) -> Result<Outcome>;

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

    /// The two moments as bytes, little-endian, with the format they are in; in 8 bits the codes, then the scales in f32.
    fn read_moments(&self, state: &Self::State) -> Result<(MomentFormat, [Vec<u8>; 2])>;

    /// Replaces the moments by what [`read_moments`](Self::read_moments) gave.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when sizes differ.
    fn write_moments(&self, state: &mut Self::State, moments: [&[u8]; 2]) -> Result<()>;
}
