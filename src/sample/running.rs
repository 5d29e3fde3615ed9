//! One sequence on its way from masks to text: which rows it needs at each step, and how many of them become tokens. That goes
//! by counts alone, so that steps can be planned ahead; which positions and which tokens they are is known to the
//! backend that has the canvas.

use std::ops::Range;

use super::checks::check;
use super::request::{Commit, CountSchedule, Finish, Generation, Order, Request};
use crate::backend::{
    Confidence, DrawingWords, NO_TOKEN, NoiseAddress, RankWords, THRESHOLD_WORDS, Want, WantKind,
    threshold_words,
};
use crate::diffusion::reveal::CommitPlan;
use crate::diffusion::schedule::{Counts, share_steps};
use crate::diffusion::shift;
use crate::error::Result;
use crate::rng::Rng;

/// Uniforms that are given instead of drawn: for comparing with another implementation.
#[derive(Clone, Debug)]
pub(super) struct GivenNoise {
    /// When the free positions are committed.
    pub plan: CommitPlan,
    /// Uniforms of the categorical draws `[T, L]`, indexed by the row the logits come from.
    pub draws: Vec<f32>,
}

/// What a model says about sampling, with a request's own wishes applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub shift: bool,
    pub mask_id: u32,
    /// Token that must not be drawn, or [`NO_TOKEN`].
    pub suppress: u32,
    /// End of sequence, or [`NO_TOKEN`].
    pub eos: u32,
}

impl Rules {
    /// Whether sequences with these rules can be in flight together.
    pub fn go_together(self, other: Rules) -> bool {
        (self.shift, self.mask_id) == (other.shift, other.mask_id)
    }
}

/// Positions that are filled together, and the steps in which that happens.
#[derive(Clone, Debug)]
struct Block {
    /// Range into `Running::free`.
    free: Range<usize>,
    /// First step (0-based) and number of steps.
    first: usize,
    steps: usize,
}

#[derive(Debug)]
enum Strategy {
    /// The steps of all positions are known beforehand.
    Plan { plan: CommitPlan, next: usize },
    /// Counts follow a schedule; who is committed follows the confidence.
    Counted { by: Confidence, schedule: Counts, noise: f32, remask: bool },
    /// As many as are confident enough.
    Threshold { by: Confidence, tau: f32 },
}

/// What a sequence does in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub want: Want,
    pub rank: Option<RankWords>,
    pub threshold: Option<[u32; THRESHOLD_WORDS]>,
}

/// The state of a request in flight: its schedule, which goes by counts alone, and its canvas as it was last looked at.
#[derive(Debug)]
pub(super) struct Running {
    /// Index of the request in its batch.
    pub request: usize,
    pub ids: Vec<u32>,
    pub masked: Vec<bool>,
    pub committed_at: Vec<u32>,
    pub log_prob: Vec<f32>,
    /// What was committed, and what remasked, between the last two looks.
    pub commits: Vec<Commit>,
    pub remasked: Vec<u32>,
    rules: Rules,
    seed: u64,
    sequence: u32,
    temperature: f32,
    top_p: f32,
    top_k: u32,
    stop_at_eos: bool,
    noise: Option<GivenNoise>,
    /// Token of position 0 in the input: with shift no row predicts it.
    pub first_token: u32,
    /// Positions to fill, ascending.
    pub free: Vec<u32>,
    blocks: Vec<Block>,
    block: usize,
    /// Masked positions of the current block, as of the last step planned.
    block_masked: usize,
    strategy: Strategy,
    /// Step planned last, 0-based.
    step: usize,
    steps: usize,
    /// Steps planned.
    planned: usize,
    /// Steps done, once that is known.
    nfe: Option<usize>,
    /// Start of the gap that reaches the end of the canvas, if there is one.
    answer: Option<usize>,
    /// Nothing is left to be planned.
    over: bool,
    /// An end of sequence stands in the answer and nothing before it is masked.
    complete: bool,
    /// A step committed nothing though it had to: nothing could be drawn.
    stuck: bool,
}

impl Running {
    /// Checks a request and prepares its state.
    pub fn new(index: usize, request: &Request, rules: Rules, noise: Option<GivenNoise>) -> Result<Self> {
        check(request, rules, noise.is_some())?;
        let canvas = &request.canvas;
        let free: Vec<u32> = (0..canvas.len() as u32).filter(|&p| !canvas.fixed()[p as usize]).collect();
        let blocks = blocks(free.len(), request);
        let strategy = strategy(request, &free, &blocks, &Rng::new(request.seed), noise.as_ref())?;
        let steps = match request.order {
            Order::Threshold { .. } => free.len(),
            _ => blocks.last().map_or(0, |b| b.first + b.steps),
        };
        let mut ids = canvas.ids().to_vec();
        let first_token = ids.first().copied().unwrap_or(0);
        let mut masked = vec![false; ids.len()];
        for &p in &free {
            ids[p as usize] = rules.mask_id;
            masked[p as usize] = true;
        }
        let answer = canvas.gaps().last().filter(|g| g.end == canvas.len()).map(|g| g.start);
        Ok(Self {
            request: index,
            commits: Vec::with_capacity(free.len()),
            remasked: Vec::with_capacity(free.len()),
            rules,
            seed: request.seed,
            sequence: request.sequence,
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            stop_at_eos: request.stop_at_eos,
            noise,
            first_token,
            block: 0,
            block_masked: blocks.first().map_or(0, |b| b.free.len()),
            strategy,
            step: 0,
            steps,
            planned: 0,
            nfe: None,
            committed_at: vec![0; ids.len()],
            log_prob: vec![0.0; ids.len()],
            answer,
            over: free.is_empty(),
            complete: false,
            stuck: false,
            ids,
            masked,
            free,
            blocks,
        })
    }

    /// Whether the canvas is final: all steps are done, or an early end makes the others pointless.
    pub fn is_done(&self) -> bool {
        self.over || self.complete
    }

    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Forward passes so far.
    pub fn nfe(&self) -> usize {
        self.nfe.unwrap_or(self.planned)
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The step planned last, 1-based.
    pub fn step_number(&self) -> usize {
        self.step + 1
    }

    /// Whether the next step can be planned only when it is known what this one committed.
    pub fn must_look(&self) -> bool {
        matches!(self.strategy, Strategy::Threshold { .. })
    }

    /// Where the answer begins, if an end of sequence in it can end the work early: nothing before it is masked, so that
    /// no later step can change the text. Not under remasking, where everything can still change.
    pub fn early_end(&self) -> Option<u32> {
        if !self.stop_at_eos || matches!(self.strategy, Strategy::Counted { remask: true, .. }) {
            return None;
        }
        self.answer.filter(|_| self.rules.eos != NO_TOKEN).map(|start| start as u32)
    }

    /// Positions by step, for the list of [`Canvases`](crate::backend::Canvases); nothing where steps are not known beforehand.
    pub fn listed(&self) -> &[u32] {
        match &self.strategy {
            Strategy::Plan { plan, .. } => plan.positions(),
            _ => &[],
        }
    }

    /// Uniforms that are given instead of drawn.
    pub fn uniforms(&self) -> Option<&[f32]> {
        self.noise.as_ref().map(|noise| noise.draws.as_slice())
    }

    /// How rows are drawn from.
    pub fn drawing(&self) -> DrawingWords {
        DrawingWords {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            suppress: self.rules.suppress,
            confidence: match self.strategy {
                Strategy::Plan { .. } => Confidence::MaxProb,
                Strategy::Counted { by, .. } | Strategy::Threshold { by, .. } => by,
            },
            seed: self.seed,
            sequence: self.sequence,
            uniforms_at: self.noise.as_ref().map(|_| 0),
        }
    }

    /// Plans the next step that commits something. `list_at`: where this sequence's positions begin in the list. Where needs and
    /// rows begin is left to the caller.
    pub fn plan(&mut self, list_at: u32) -> Planned {
        let mut planned = Planned { want: Want::default(), rank: None, threshold: None };
        let want = &mut planned.want;
        let at = NoiseAddress { seed: self.seed, sequence: self.sequence, ..NoiseAddress::default() };
        match &mut self.strategy {
            Strategy::Plan { plan, next } => {
                if let Some((step, positions)) = plan.step(*next) {
                    self.step = step as usize;
                    let low = list_at + plan.start_of(*next) as u32;
                    let needs = positions.len() as u32;
                    let rowless = positions.iter().filter(|&&p| is_rowless(p, self.rules)).count() as u32;
                    let kind = WantKind::Listed;
                    *want = Want { kind, low, high: low + needs, needs, rows: needs - rowless, ..*want };
                    planned.rank = Some(RankWords { take: needs, ..RankWords::default() });
                    *next += 1;
                }
                self.over = *next >= plan.len();
            }
            Strategy::Counted { schedule, noise, remask, .. } => {
                let (schedule, noise, remask) = (*schedule, *noise, *remask);
                if self.planned > 0 {
                    self.step += 1;
                }
                // Skip steps whose share of commits is none.
                while let Some(b) = self.blocks.get(self.block) {
                    let over = b.first + b.steps;
                    if self.step >= over || self.block_masked == 0 {
                        self.step = self.step.max(over);
                        self.block += 1;
                        self.block_masked = self.blocks.get(self.block).map_or(0, |b| b.free.len());
                        continue;
                    }
                    if !remask || self.block_masked == b.free.len() {
                        let done = self.step - b.first;
                        self.step =
                            b.first + schedule.next_commit(b.free.len(), self.block_masked, done, b.steps);
                    }
                    break;
                }
                if let Some(b) = self.blocks.get(self.block) {
                    let (n, steps, total) = (self.step - b.first + 1, b.steps, b.free.len());
                    let already = total - self.block_masked;
                    let committed = total - schedule.masked_after(total, n, steps);
                    let share_left = (steps - n.min(steps)) as f32 / steps as f32;
                    let needs = if remask { total } else { self.block_masked };
                    let take = if remask { committed } else { committed.saturating_sub(already) }.min(needs);
                    self.block_masked = if remask { total } else { self.block_masked } - take;
                    let kind = if remask { WantKind::Free } else { WantKind::Masked };
                    *want = self.block_want(kind, needs);
                    let at = NoiseAddress { step: self.step as u32, ..at };
                    planned.rank =
                        Some(RankWords { take: take as u32, noise: noise * share_left, remask, at });
                }
                self.over = self.masked_by_plan() == 0;
            }
            Strategy::Threshold { by, tau } => {
                planned.threshold = Some(threshold_words(*tau, *by == Confidence::MaxProb));
                self.step = self.planned;
                *want = self.block_want(WantKind::Masked, self.block_masked);
            }
        }
        planned.want.step = self.step as u32;
        self.planned += 1;
        planned
    }

    /// Needs `needs` of the current block's positions.
    fn block_want(&self, kind: WantKind, needs: usize) -> Want {
        let Some(b) = self.blocks.get(self.block) else { return Want::default() };
        let low = self.free.get(b.free.start).copied().unwrap_or(0);
        let high = b.free.end.checked_sub(1).and_then(|last| self.free.get(last)).map_or(0, |&p| p + 1);
        let needs = needs as u32;
        Want { kind, low, high, needs, rows: needs, ..Want::default() }
    }

    /// Masked positions after the steps planned: of the current block and of those after it.
    fn masked_by_plan(&self) -> usize {
        self.block_masked + self.later()
    }

    fn later(&self) -> usize {
        self.blocks.get(self.block + 1..).unwrap_or(&[]).iter().map(|b| b.free.len()).sum()
    }

    /// Takes note of how far the sequence is: whether its answer is complete, how many positions are masked.
    pub fn look(&mut self, complete: bool, left: usize) {
        self.complete |= complete;
        if matches!(self.strategy, Strategy::Threshold { .. }) {
            self.stuck = !self.complete && left >= self.masked_by_plan();
            self.block_masked = left.saturating_sub(self.later());
            while self.block_masked == 0 && self.block + 1 < self.blocks.len() {
                self.block += 1;
                self.block_masked = self.blocks[self.block].free.len();
            }
            self.over = left == 0;
        }
    }

    /// Takes note of the canvas, and of what was committed and remasked since the last time.
    pub fn observe(&mut self, ids: &[u32], masked: &[u32], committed_at: &[u32], log_prob: &[f32]) {
        self.commits.clear();
        self.remasked.clear();
        for i in 0..self.free.len() {
            let position = self.free[i];
            let p = position as usize;
            let (was, is) = (self.masked[p], masked[p] != 0);
            if !is && (was || self.committed_at[p] != committed_at[p]) {
                self.commits.push(Commit { position, token: ids[p], log_prob: log_prob[p] });
            } else if is && !was {
                self.remasked.push(position);
            }
            (self.ids[p], self.masked[p]) = (ids[p], is);
            (self.committed_at[p], self.log_prob[p]) = (committed_at[p], log_prob[p]);
        }
    }

    /// Takes note of the number of forward passes that the sequence took part in.
    pub fn took_part(&mut self, passes: usize) {
        self.nfe = Some(passes);
    }

    /// Whether the next step would be the same again.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Whether a position is masked that should be a token by now: nothing could be drawn for it.
    pub fn has_failed(&self) -> bool {
        let expected = match &self.strategy {
            Strategy::Plan { plan, next } => plan.positions().len() - plan.start_of(*next),
            Strategy::Counted { .. } => self.masked_by_plan(),
            // It always commits something.
            Strategy::Threshold { .. } => return self.stuck,
        };
        !self.complete && self.masked.iter().filter(|m| **m).count() > expected
    }

    fn eos_position(&self) -> Option<usize> {
        let start = self.answer?;
        if self.rules.eos == NO_TOKEN {
            return None;
        }
        (start..self.ids.len()).find(|&p| !self.masked[p] && self.ids[p] == self.rules.eos)
    }

    /// The result; what was never computed (after an early end of sequence) becomes end of sequence.
    pub fn finish(mut self) -> Generation {
        let nfe = self.nfe();
        let eos = if self.stop_at_eos { self.eos_position() } else { None };
        if let Some(at) = eos {
            for p in at..self.ids.len() {
                if self.masked[p] {
                    self.ids[p] = self.rules.eos;
                }
            }
        }
        let end = eos.unwrap_or(self.ids.len());
        Generation {
            tokens: self.free.iter().filter(|&&p| (p as usize) < end).count(),
            end,
            finish: if eos.is_some() { Finish::Eos } else { Finish::Length },
            ids: self.ids,
            committed_at: self.committed_at,
            log_prob: self.log_prob,
            nfe,
        }
    }
}

fn is_rowless(position: u32, rules: Rules) -> bool {
    shift::row_for(position as usize, rules.shift).is_none()
}

/// Cuts the free positions into blocks and shares the steps out, at least one a block.
fn blocks(free: usize, request: &Request) -> Vec<Block> {
    let length = request.block_length.unwrap_or(free).max(1);
    let ranges: Vec<Range<usize>> =
        (0..free).step_by(length).map(|at| at..at.saturating_add(length).min(free)).collect();
    let lengths: Vec<usize> = ranges.iter().map(|r| r.len()).collect();
    let mut first = 0;
    let mut blocks = Vec::with_capacity(ranges.len());
    for (free, steps) in ranges.into_iter().zip(share_steps(&lengths, request.steps)) {
        blocks.push(Block { free, first, steps });
        first += steps;
    }
    blocks
}

fn strategy(
    request: &Request,
    free: &[u32],
    blocks: &[Block],
    rng: &Rng,
    noise: Option<&GivenNoise>,
) -> Result<Strategy> {
    Ok(match request.order {
        Order::Random => {
            let plan = match noise {
                Some(given) => given.plan.clone(),
                None => {
                    let parts = blocks.iter().map(|b| {
                        let steps = b.first as u32..(b.first + b.steps) as u32;
                        (free[b.free.clone()].iter().copied(), steps)
                    });
                    CommitPlan::draw_blocks(rng, request.sequence, parts)?
                }
            };
            Strategy::Plan { plan, next: 0 }
        }
        Order::Confidence { by, schedule, noise, remask } => {
            let schedule = match schedule {
                CountSchedule::Linear => Counts::Linear,
                CountSchedule::Cosine => Counts::Cosine,
            };
            Strategy::Counted { by, schedule, noise, remask }
        }
        Order::Threshold { by, tau } => Strategy::Threshold { by, tau },
    })
}
