//! One sequence on its way from masks to text: which rows it needs next, and what it does with
//! the tokens drawn from them.

use std::ops::Range;

use super::checks::check;
use super::request::{Commit, CountSchedule, Finish, Generation, Order, Request};
use crate::backend::{Confidence, NO_TOKEN, RowDraw, RowParams};
use crate::diffusion::reveal::{CommitPlan, above_threshold, gumbel, most_confident};
use crate::diffusion::schedule::{Counts, share_steps};
use crate::diffusion::shift;
use crate::error::Result;
use crate::rng::{Purpose, Rng};

/// Uniforms that are given instead of drawn: for comparing with another implementation.
#[derive(Clone, Debug)]
pub(super) struct GivenNoise {
    /// When the free positions are committed.
    pub plan: CommitPlan,
    /// Uniforms of the categorical draws `[T, L]`, indexed by the row the logits come from.
    pub draws: Vec<f32>,
}

/// What a model says about sampling, with a request's own wishes applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub shift: bool,
    pub mask_id: u32,
    /// Token that must not be drawn, or [`NO_TOKEN`].
    pub suppress: u32,
    /// End of sequence, or [`NO_TOKEN`].
    pub eos: u32,
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

/// The state of a request in flight.
#[derive(Debug)]
pub(super) struct Running {
    /// Index of the request in its batch.
    pub request: usize,
    pub ids: Vec<u32>,
    pub masked: Vec<bool>,
    pub commits: Vec<Commit>,
    pub remasked: Vec<u32>,
    /// Positions whose rows are needed in this step, ascending.
    needs: Vec<u32>,
    /// Confidence of each of `needs`.
    scores: Vec<f32>,
    /// Indices into `needs` that are to be (or stay) committed, ascending.
    chosen: Vec<u32>,
    rules: Rules,
    rng: Rng,
    sequence: u32,
    temperature: f32,
    top_p: f32,
    top_k: u32,
    stop_at_eos: bool,
    noise: Option<GivenNoise>,
    /// Token of position 0 in the input: with shift no row predicts it.
    first_token: u32,
    /// Positions to fill, ascending.
    free: Vec<u32>,
    blocks: Vec<Block>,
    block: usize,
    strategy: Strategy,
    /// Step now being done, 0-based.
    step: usize,
    steps: usize,
    committed_at: Vec<u32>,
    log_prob: Vec<f32>,
    nfe: usize,
    left: usize,
    /// Start of the gap that reaches the end of the canvas, if there is one.
    answer: Option<usize>,
    done: bool,
}

impl Running {
    /// Checks a request and prepares its state.
    pub fn new(index: usize, request: &Request, rules: Rules, noise: Option<GivenNoise>) -> Result<Self> {
        check(request, rules, noise.is_some())?;
        let canvas = &request.canvas;
        let free: Vec<u32> = (0..canvas.len() as u32).filter(|&p| !canvas.fixed()[p as usize]).collect();
        let rng = Rng::new(request.seed);
        let blocks = blocks(free.len(), request);
        let strategy = strategy(request, &free, &blocks, &rng, noise.as_ref())?;
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
            needs: Vec::with_capacity(free.len()),
            scores: Vec::with_capacity(free.len()),
            chosen: Vec::with_capacity(free.len()),
            rules,
            rng,
            sequence: request.sequence,
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            stop_at_eos: request.stop_at_eos,
            noise,
            first_token,
            block: 0,
            strategy,
            step: 0,
            steps,
            committed_at: vec![0; ids.len()],
            log_prob: vec![0.0; ids.len()],
            nfe: 0,
            left: free.len(),
            answer,
            done: free.is_empty(),
            ids,
            masked,
            free,
            blocks,
        })
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn nfe(&self) -> usize {
        self.nfe
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The step just done, 1-based.
    pub fn step_number(&self) -> usize {
        self.step + 1
    }

    /// Moves to the next step that commits something. Call before [`Running::rows`].
    pub fn advance(&mut self) {
        self.needs.clear();
        self.commits.clear();
        self.remasked.clear();
        match &mut self.strategy {
            Strategy::Plan { plan, next } => {
                if let Some((step, positions)) = plan.step(*next) {
                    self.step = step as usize;
                    self.needs.extend_from_slice(positions);
                    *next += 1;
                }
            }
            Strategy::Counted { schedule, remask, .. } => {
                if self.nfe > 0 {
                    self.step += 1;
                }
                // Skip steps whose share of commits is none.
                while let Some(b) = self.blocks.get(self.block) {
                    let over = b.first + b.steps;
                    let total = b.free.len();
                    let masked = count_masked(&self.free[b.free.clone()], &self.masked);
                    if self.step >= over || masked == 0 {
                        self.step = self.step.max(over);
                        self.block += 1;
                        continue;
                    }
                    if !*remask || masked == total {
                        let done = self.step - b.first;
                        self.step = b.first + schedule.next_commit(total, masked, done, b.steps);
                    }
                    break;
                }
                let remask = *remask;
                self.need_block(remask);
            }
            Strategy::Threshold { .. } => {
                self.step = self.nfe;
                while let Some(b) = self.blocks.get(self.block) {
                    if count_masked(&self.free[b.free.clone()], &self.masked) > 0 {
                        break;
                    }
                    self.block += 1;
                }
                self.need_block(false);
            }
        }
    }

    /// Needs every masked position of the current block, and with `all` the committed ones too.
    fn need_block(&mut self, all: bool) {
        if let Some(b) = self.blocks.get(self.block) {
            let masked = &self.masked;
            self.needs
                .extend(self.free[b.free.clone()].iter().copied().filter(|&p| all || masked[p as usize]));
        }
    }

    /// The rows whose logits this step needs, ascending.
    pub fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.needs.iter().filter_map(|&p| shift::row_for(p as usize, self.rules.shift)).map(|r| r as u32)
    }

    /// How to draw from each of those rows.
    pub fn params(&self) -> impl Iterator<Item = RowParams> + '_ {
        let by = match self.strategy {
            Strategy::Plan { .. } => Confidence::MaxProb,
            Strategy::Counted { by, .. } | Strategy::Threshold { by, .. } => by,
        };
        self.needs.iter().filter_map(move |&p| {
            let row = shift::row_for(p as usize, self.rules.shift)?;
            let step = self.step as u32;
            let uniform = match &self.noise {
                Some(given) => given.draws.get(self.step * self.ids.len() + row).copied().unwrap_or(0.0),
                None => self.rng.uniform(Purpose::Token, self.sequence, step, p),
            };
            let committed = !self.masked[p as usize];
            Some(RowParams {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                suppress: self.rules.suppress,
                uniform,
                confidence: by,
                given: if committed { self.ids[p as usize] } else { NO_TOKEN },
            })
        })
    }

    /// Commits (and remasks) by what was drawn from [`Running::rows`].
    pub fn apply(&mut self, draws: &[RowDraw]) {
        self.nfe += 1;
        match self.strategy {
            Strategy::Plan { .. } => {
                for at in 0..self.needs.len() {
                    self.commit(at, draws);
                }
            }
            Strategy::Counted { schedule, noise, remask, .. } => {
                self.apply_counted(draws, schedule, noise, remask)
            }
            Strategy::Threshold { by, tau } => self.apply_threshold(draws, by, tau),
        }
        let blocks_over = match &self.strategy {
            Strategy::Plan { plan, next } => plan.step(*next).is_none(),
            Strategy::Counted { .. } | Strategy::Threshold { .. } => self.left == 0,
        };
        self.done = blocks_over || self.answer_is_complete();
    }

    /// The draw that belongs to `needs[at]`; none for position 0 under shift.
    fn draw_at(&self, at: usize, draws: &[RowDraw]) -> Option<RowDraw> {
        let lost = usize::from(self.needs.first().is_some_and(|&p| self.is_rowless(p)));
        if self.is_rowless(self.needs[at]) { None } else { draws.get(at - lost).copied() }
    }

    fn is_rowless(&self, position: u32) -> bool {
        shift::row_for(position as usize, self.rules.shift).is_none()
    }

    fn commit(&mut self, at: usize, draws: &[RowDraw]) {
        let position = self.needs[at];
        let draw = self.draw_at(at, draws);
        let (token, log_prob) = draw.map_or((self.first_token, 0.0), |d| (d.token, d.log_prob));
        let p = position as usize;
        self.ids[p] = token;
        self.masked[p] = false;
        self.committed_at[p] = self.step as u32 + 1;
        self.log_prob[p] = log_prob;
        self.left -= 1;
        self.commits.push(Commit { position, token, log_prob });
    }

    fn apply_counted(&mut self, draws: &[RowDraw], schedule: Counts, noise: f32, remask: bool) {
        let Some(b) = self.blocks.get(self.block) else { return };
        let (n, steps, total) = (self.step - b.first + 1, b.steps, b.free.len());
        let already = total - count_masked(&self.free[b.free.clone()], &self.masked);
        let committed = total - schedule.masked_after(total, n, steps);
        let share_left = (steps - n.min(steps)) as f32 / steps as f32;
        self.scores.clear();
        for at in 0..self.needs.len() {
            let position = self.needs[at];
            let mut score = match self.draw_at(at, draws) {
                None => f32::INFINITY,
                Some(d) if !self.masked[position as usize] => d.given_log_prob,
                Some(d) => d.confidence,
            };
            if noise > 0.0 && share_left > 0.0 {
                let u = self.rng.uniform(Purpose::Confidence, self.sequence, self.step as u32, position);
                score += noise * share_left * gumbel(u);
            }
            self.scores.push(score);
        }
        let take = if remask { committed } else { committed.saturating_sub(already) };
        most_confident(&self.scores, take, &mut self.chosen);
        let mut next = 0;
        for at in 0..self.needs.len() {
            let p = self.needs[at] as usize;
            if self.chosen.get(next) == Some(&(at as u32)) {
                next += 1;
                if self.masked[p] {
                    self.commit(at, draws);
                }
            } else if !self.masked[p] {
                self.masked[p] = true;
                self.ids[p] = self.rules.mask_id;
                self.left += 1;
                self.remasked.push(p as u32);
            }
        }
    }

    fn apply_threshold(&mut self, draws: &[RowDraw], by: Confidence, tau: f32) {
        self.scores.clear();
        for at in 0..self.needs.len() {
            self.scores.push(match self.draw_at(at, draws) {
                None => f32::INFINITY,
                Some(d) if by == Confidence::MaxProb => d.confidence.exp(),
                Some(d) => d.confidence,
            });
        }
        above_threshold(&self.scores, tau, &mut self.chosen);
        for i in 0..self.chosen.len() {
            self.commit(self.chosen[i] as usize, draws);
        }
    }

    /// An end of sequence stands in the answer and nothing before it is masked, so that no later
    /// step can change the text. Not under remasking, where everything can still change.
    fn answer_is_complete(&self) -> bool {
        if !self.stop_at_eos || matches!(self.strategy, Strategy::Counted { remask: true, .. }) {
            return false;
        }
        self.eos_position().is_some_and(|eos| self.masked[..eos].iter().all(|m| !m))
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
            nfe: self.nfe,
        }
    }
}

fn count_masked(positions: &[u32], masked: &[bool]) -> usize {
    positions.iter().filter(|&&p| masked[p as usize]).count()
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
