//! Denoising steps on canvases that live in the backend's memory: which rows a step needs, and what becomes of the tokens
//! drawn from them. The host plans steps ahead ([`Want`]), writes the plan to the [`Canvases`]'s tape, and need not look at a
//! canvas until it is done.

use super::{Confidence, Inputs, NO_TOKEN, NoiseAddress, UNMASK_WORDS, Unmask};
use crate::error::Result;

/// Words of a sequence's [`Want`], of its [`DrawingWords`], of its [`RankWords`] and of its [`threshold_words`] in a buffer.
pub const WANT_WORDS: usize = 8;
pub const DRAWING_WORDS: usize = 12;
pub const RANK_WORDS: usize = 8;
pub const THRESHOLD_WORDS: usize = 2;

/// Which positions a sequence needs in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum WantKind {
    /// None.
    #[default]
    Nothing = 0,
    /// Those that the canvases' list names in `low .. high`.
    Listed = 1,
    /// The masked ones of the positions to be filled in `low .. high`.
    Masked = 2,
    /// All positions to be filled in `low .. high`.
    Free = 3,
}

/// What a sequence needs in a step. Needs are positions; a row is a row of logits, and under shift position 0 has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    pub kind: WantKind,
    /// Positions within the sequence, or places in the list.
    pub low: u32,
    pub high: u32,
    /// Counted from 0: enters the random numbers.
    pub step: u32,
    /// Where the sequence's needs begin among those of all sequences, and how many there are.
    pub first_need: u32,
    pub needs: u32,
    /// The same for rows.
    pub first_row: u32,
    pub rows: u32,
}

impl Want {
    /// Places of two of the words.
    pub const FIRST_NEED: usize = 4;
    pub const NEEDS: usize = 5;

    pub fn words(&self) -> [u32; WANT_WORDS] {
        let Self { kind, low, high, step, first_need, needs, first_row, rows } = *self;
        [kind as u32, low, high, step, first_need, needs, first_row, rows]
    }
}

/// How a sequence's rows are drawn from, at all its steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawingWords {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub suppress: u32,
    pub confidence: Confidence,
    pub seed: u64,
    pub sequence: u32,
    /// Uniform numbers are not drawn but given: that of a row is number `at + step * length + row` of the canvases'.
    pub uniforms_at: Option<u32>,
}

/// The words of a row that nobody needs: its best token is drawn.
pub(crate) const IDLE_ROW: [u32; UNMASK_WORDS] =
    [0, 1_f32.to_bits(), 0, NO_TOKEN, NO_TOKEN, 0, 0, 0, 0, 0, 0, 0];

impl DrawingWords {
    /// Where the given uniform numbers begin, of [`words`](Self::words).
    pub(crate) fn uniforms_at(words: &[u32; DRAWING_WORDS]) -> Option<u32> {
        (words[4] >> 8 == 0).then_some(words[8])
    }

    /// A row's words ([`unmask_words`](super::unmask_words)) out of its sequence's.
    pub(crate) fn row(
        words: &[u32; DRAWING_WORDS],
        given: u32,
        uniform: f32,
        step: u32,
        position: u32,
    ) -> [u32; UNMASK_WORDS] {
        let [temperature, top_p, top_k, suppress, how, seed_low, seed_high, sequence, ..] = *words;
        let uniform = uniform.to_bits();
        [
            temperature,
            top_p,
            top_k,
            suppress,
            given,
            how,
            uniform,
            seed_low,
            seed_high,
            sequence,
            step,
            position,
        ]
    }

    pub fn words(&self) -> [u32; DRAWING_WORDS] {
        let mode = if self.uniforms_at.is_some() { 0 } else { 1 };
        [
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            self.top_k,
            self.suppress,
            self.confidence.code() | mode << 8,
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.sequence,
            self.uniforms_at.unwrap_or(0),
            0,
            0,
            0,
        ]
    }
}

/// How many of a sequence's needs are to be tokens after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankWords {
    /// Those with the greatest scores.
    pub take: u32,
    /// Each score with this times standard Gumbel noise on it ([`Purpose::Confidence`](crate::rng::Purpose::Confidence) at `at`,
    /// whose position is not looked at: it is the need's own).
    pub noise: f32,
    /// Tokens that are not among them become masks again.
    pub remask: bool,
    pub at: NoiseAddress,
}

impl RankWords {
    pub fn words(&self) -> [u32; RANK_WORDS] {
        let NoiseAddress { seed, sequence, step, .. } = self.at;
        [
            self.take,
            self.noise.to_bits(),
            self.remask.into(),
            seed as u32,
            (seed >> 32) as u32,
            sequence,
            step,
            0,
        ]
    }
}

/// Commit what scores above `tau`; with `exponential`, the score is the confidence's exponential (a probability, where the
/// confidence is its logarithm).
pub fn threshold_words(tau: f32, exponential: bool) -> [u32; THRESHOLD_WORDS] {
    [tau.to_bits(), u32::from(exponential)]
}

/// Where a step's words lie, for a number of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    pub sequences: usize,
}

impl Stage {
    /// Where the [`Want`]s begin.
    pub const fn wants(self) -> usize {
        0
    }

    /// Where `[S + 1]` numbers begin: the first need of each sequence that ranks, and the end.
    pub const fn rank_starts(self) -> usize {
        self.sequences * WANT_WORDS
    }

    /// The same of the sequences with a threshold.
    pub const fn threshold_starts(self) -> usize {
        self.rank_starts() + self.sequences + 1
    }

    /// Where the [`RankWords`] begin.
    pub const fn ranks(self) -> usize {
        self.threshold_starts() + self.sequences + 1
    }

    /// Where the [`threshold_words`] begin.
    pub const fn thresholds(self) -> usize {
        self.ranks() + self.sequences * RANK_WORDS
    }

    /// Where `[S]` numbers begin: each sequence's step, counted from 0.
    pub const fn steps(self) -> usize {
        self.thresholds() + self.sequences * THRESHOLD_WORDS
    }

    /// Words in all.
    pub const fn words(self) -> usize {
        self.steps() + self.sequences
    }
}

/// What a step is about, beyond what stands in its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows to write: those wanted, and idle ones after them.
    pub rows: usize,
    /// The wanted rows are not all rows of the canvases in order.
    pub some: bool,
    /// Most rows of a sequence, rounded.
    pub longest: usize,
    /// Most needs of a sequence that ranks, rounded.
    pub ranked: usize,
    /// Whether some sequence ranks, and whether some has a threshold.
    pub ranks: bool,
    pub thresholds: bool,
    /// Whether somebody asks how far sequences are.
    pub answers: bool,
}

/// How much a [`Canvases`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanvasesSize {
    pub sequences: usize,
    /// All sequences together.
    pub tokens: usize,
    /// Steps of a tape.
    pub steps: usize,
}

/// Canvases in flight, packed one behind the other, in a backend's memory. Token ids are in the [`Inputs`] of the forward pass.
/// `S` sequences, `T` tokens, `R` rows, `N` needs; the buffers may have room for more.
pub struct Canvases<B: Unmask> {
    pub size: CanvasesSize,
    /// What is in use.
    pub sequences: usize,
    pub tokens: usize,
    pub shift: bool,
    pub mask_id: u32,
    /// 1 where a mask stands `[T]`; 1 at positions to be filled `[T]`.
    pub masked: B::Index,
    pub free: B::Index,
    /// Where each sequence begins, and the end of the last `[S + 1]`.
    pub starts: B::Index,
    /// Step of the commit, counted from 1, and the token's log probability `[T]`.
    pub committed_at: B::Index,
    pub log_prob: B::Floats,
    /// [`DrawingWords`] `[S, 12]`.
    pub drawing: B::Index,
    /// Token of position 0 in the input, which under shift no row predicts `[S]`.
    pub first_tokens: B::Index,
    /// Position from which on an end of sequence ends the answer, and that token; [`NO_TOKEN`](super::NO_TOKEN): none `[S]`.
    pub answers: B::Index,
    pub eos: B::Index,
    /// Steps that each sequence took part in `[S]`.
    pub passes: B::Index,
    /// `[3, S]`: first end of sequence in the answer; whether there is one and nothing before it is masked; masked positions.
    pub progress: B::Index,
    /// Positions by sequence and step.
    pub list: B::Index,
    /// Given uniform numbers.
    pub uniforms: Option<B::Floats>,
    /// A cursor, then the words of steps to come.
    pub tape: B::Index,
    /// The words of the step at hand, by [`Stage`].
    pub stage: B::Index,
    /// Canvas position and row of each need `[N]`.
    pub needs: B::Index,
    pub slots: B::Index,
    /// [`unmask_words`](super::unmask_words) `[R, 12]`.
    pub params: B::Index,
    pub draws: B::Draws,
}

impl<B: Unmask> Canvases<B> {
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) when it does not fit.
    pub fn new(backend: &B, size: CanvasesSize) -> Result<Self> {
        let CanvasesSize { sequences: s, tokens: t, steps } = size;
        let stage = Stage { sequences: s }.words();
        let index = |len: usize| backend.alloc_index(len);
        Ok(Self {
            size,
            sequences: 0,
            tokens: 0,
            shift: false,
            mask_id: 0,
            masked: index(t)?,
            free: index(t)?,
            starts: index(s + 1)?,
            committed_at: index(t)?,
            log_prob: backend.alloc_floats(t)?,
            drawing: index(s * DRAWING_WORDS)?,
            first_tokens: index(s)?,
            answers: index(s)?,
            eos: index(s)?,
            passes: index(s)?,
            progress: index(3 * s)?,
            list: index(t)?,
            uniforms: None,
            tape: index(1 + steps * stage)?,
            stage: index(stage)?,
            needs: index(t)?,
            slots: index(t)?,
            params: index(t * UNMASK_WORDS)?,
            draws: backend.alloc_draws(t)?,
        })
    }

    /// Bytes of canvases of `size`.
    pub fn bytes(size: CanvasesSize) -> u128 {
        let (s, t) = (size.sequences as u128, size.tokens as u128);
        let stage = Stage { sequences: size.sequences }.words() as u128;
        // Draws are five numbers a row.
        let tokens = t * (7 + UNMASK_WORDS as u128 + 5);
        let sequences = s * (DRAWING_WORDS as u128 + 8) + 1;
        4 * (tokens + sequences + 1 + (size.steps as u128 + 1) * stage)
    }

    /// Where the words of the step at hand lie.
    pub fn layout(&self) -> Stage {
        Stage { sequences: self.sequences }
    }
}

/// The parts of a step beside the forward pass and the draws. The order is: [`stage_step`](Self::stage_step),
/// [`select_needs`](Self::select_needs), forward pass, head, draws, [`commit`](Self::commit).
pub trait Denoise: Unmask {
    /// Takes the next of `steps` steps' words from the tape.
    fn stage_step(&self, canvases: &mut Canvases<Self>, steps: usize) -> Result<()>;

    /// Finds the needs of each sequence, the rows that predict them and how to draw from each: `canvases.needs`, `canvases.slots`,
    /// `canvases.params`, `inputs.wanted`, `inputs.wanted_positions`, `inputs.wanted_segments`. A sequence whose answer is complete needs nothing.
    /// Rows that are no need's are idle: they draw the best token, which goes nowhere.
    fn select_needs(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()>;

    /// Commits, and remasks, by what was drawn; then looks how far sequences are, where `shape` says so.
    fn commit(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()>;
}
