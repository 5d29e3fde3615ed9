//! The work that benches of denoising have in common: how long, in how many steps, how many at a time, in which order.

use clap::{Args as ClapArgs, ValueEnum};

use super::line::Line;
use super::work::Subject;
use crate::backend::Confidence;
use crate::error::{Error, Result};
use crate::sample::{Canvas, CountSchedule, Order, Request};

/// In which order positions are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderName {
    // The paper's: every position draws its step beforehand.
    Random,
    // The positions whose drawn token is most probable first (MaskGIT).
    Confidence,
    // The positions with the lowest entropy first.
    Entropy,
    // The positions whose best token leads the second best by most first.
    Margin,
    // From left to right with a KV cache, a token a pass.
    Ar,
}

impl OrderName {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Confidence => "confidence",
            Self::Entropy => "entropy",
            Self::Margin => "margin",
            Self::Ar => "ar",
        }
    }

    /// A request of this order, which fills the whole canvas.
    pub fn request(self, canvas: Canvas, steps: usize, top_p: f64, seed: u64, sequence: u32) -> Request {
        let mut request = Request::new(canvas);
        (request.steps, request.top_p, request.seed, request.sequence) =
            (steps, top_p as f32, seed, sequence);
        request.stop_at_eos = false;
        let by = match self {
            Self::Random | Self::Ar => None,
            Self::Confidence => Some(Confidence::MaxProb),
            Self::Entropy => Some(Confidence::Entropy),
            Self::Margin => Some(Confidence::Margin),
        };
        request.autoregressive = self == Self::Ar;
        if let Some(by) = by {
            request.order =
                Order::Confidence { by, schedule: CountSchedule::Linear, noise: 0.0, remask: false };
        }
        request
    }
}

/// Lists of sizes, every combination of which is measured.
#[derive(Debug, ClapArgs)]
pub struct CasesArgs {
    /// Tokens of a canvas, the first of which is given; or several, as in 128,512 [default: 512, or all that the model has]
    #[arg(long, short, value_name = "N,...", value_delimiter = ',', help_heading = "Work")]
    length: Vec<usize>,
    /// Denoising steps T
    #[arg(
        long,
        short = 'T',
        value_name = "T,...",
        value_delimiter = ',',
        default_value = "64",
        help_heading = "Work"
    )]
    steps: Vec<usize>,
    /// Canvases at a time
    #[arg(
        long,
        short,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1",
        help_heading = "Work"
    )]
    batch: Vec<usize>,
    /// Which masked positions are committed first: random, confidence, entropy, margin; ar: from left to right with a KV cache
    #[arg(
        long,
        value_name = "NAME,...",
        value_enum,
        hide_possible_values = true,
        value_delimiter = ',',
        default_value = "random",
        help_heading = "Work"
    )]
    pub order: Vec<OrderName>,
    /// Draw from the most probable tokens that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 0.9, help_heading = "Work")]
    pub top_p: f64,
    /// Of the weights that are made up, of given tokens and of the drawing
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Work")]
    pub seed: u64,
}

/// One combination.
#[derive(Clone, Copy)]
pub struct Case {
    pub batch: usize,
    pub length: usize,
    pub steps: usize,
    pub order: OrderName,
}

impl Case {
    /// Adds it to a line.
    pub fn tell(&self, line: &mut Line) {
        let steps = (self.order != OrderName::Ar).then_some(self.steps);
        line.set("batch", self.batch)
            .set("length", self.length)
            .set("steps", steps)
            .set("order", self.order.name());
    }
}

impl CasesArgs {
    /// Refuses sizes of 0, before anything is loaded.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self, repeat: usize) -> Result<()> {
        let each = |flag: &'static str, numbers: &[usize]| numbers.iter().map(|&n| (flag, n)).collect();
        let lists: [Vec<_>; 3] =
            [each("batch", &self.batch), each("length", &self.length), each("steps", &self.steps)];
        at_least_one(lists.concat().into_iter().chain([("repeat", repeat)]))
    }

    /// All combinations, in `orders`.
    ///
    /// # Errors
    /// [`Error::Request`] for a length that the model does not have; [`Error::Memory`] for a batch without room.
    pub fn cases(&self, subject: &Subject, orders: &[OrderName]) -> Result<Vec<Case>> {
        let whole = [512.min(subject.engine.config().max_positions)];
        let mut cases = Vec::new();
        for &length in if self.length.is_empty() { &whole[..] } else { &self.length } {
            subject.check_length(length)?;
            for &batch in &self.batch {
                for &order in orders {
                    let left_to_right = order == OrderName::Ar;
                    subject.limits(batch, length, left_to_right)?;
                    // From left to right there are no steps to choose from.
                    let steps = if left_to_right { &self.steps[..1] } else { &self.steps };
                    cases.extend(steps.iter().map(|&steps| Case { batch, length, steps, order }));
                }
            }
        }
        Ok(cases)
    }
}

/// Refuses numbers of 0.
///
/// # Errors
/// [`Error::Request`].
pub fn at_least_one<'a>(numbers: impl IntoIterator<Item = (&'a str, usize)>) -> Result<()> {
    match numbers.into_iter().find(|&(_, n)| n == 0) {
        Some((flag, _)) => Err(Error::request(format!("--{flag} 0: expected 1 or more"))),
        None => Ok(()),
    }
}
