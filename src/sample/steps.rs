//! Steps of everything in flight, asked for ahead of time: the canvases are the backend's ([`Canvases`]), the plan is the host's
//! ([`Running`]). A step is recorded once and replayed where the backend can do that.

use super::request::Step;
use super::running::Running;
use super::sampler::{Limits, Pace, Results};
use crate::backend::{
    Backend, Canvases, CanvasesSize, Denoise, Forward, Mask, NO_TOKEN, Segment, SegmentBounds, Stage,
    StepShape, WANT_WORDS, Want,
};
use crate::error::{Error, Result};
use crate::meter;
use crate::model::{Arena, Model, Pass};

/// Most steps that are asked for at once.
const TAPE_STEPS: usize = 64;
/// Most recordings that are kept, and most sets of lengths that they are of.
const RECORDINGS: usize = 64;
const COMPOSITIONS: usize = 16;

/// What launches depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    composition: usize,
    shape: StepShape,
}

/// A step that was seen before, and its recording once it was seen twice.
struct Known<B: Backend> {
    key: Key,
    recording: Option<B::Recording>,
}

/// The backend's side of what is in flight, and memory for talking to it.
pub(super) struct Steps<B: Denoise> {
    canvases: Canvases<B>,
    mask: B::Mask,
    known: Vec<Known<B>>,
    /// Lengths of the sequences that were in flight together.
    compositions: Vec<Vec<u32>>,
    composition: usize,
    /// Of the steps asked for at once.
    planned: Vec<StepShape>,
    /// Steps asked for so far, for the meter.
    asked: u32,
    /// Words that go to the backend: one behind the other, of one kind at a time.
    words: Vec<u32>,
    numbers: Vec<f32>,
    segments: Vec<Segment>,
    tape: Vec<u32>,
    /// Canvases as read back.
    ids: Vec<u32>,
    masked: Vec<u32>,
    committed_at: Vec<u32>,
    log_prob: Vec<f32>,
    progress: Vec<u32>,
}

impl<B: Forward + Denoise> Steps<B> {
    pub fn new(backend: &B, limits: Limits) -> Result<Self> {
        let size = Self::size(limits);
        let Limits { sequences, tokens } = limits;
        Ok(Self {
            canvases: Canvases::new(backend, size)?,
            mask: backend.mask(Mask::Full)?,
            known: Vec::with_capacity(RECORDINGS),
            compositions: Vec::with_capacity(COMPOSITIONS),
            composition: 0,
            planned: Vec::with_capacity(TAPE_STEPS),
            asked: 0,
            words: Vec::with_capacity(tokens.max(16 * sequences)),
            numbers: Vec::with_capacity(tokens),
            segments: Vec::with_capacity(sequences),
            tape: Vec::with_capacity(1 + TAPE_STEPS * Stage { sequences }.words()),
            ids: vec![0; tokens],
            masked: vec![0; tokens],
            committed_at: vec![0; tokens],
            log_prob: vec![0.0; tokens],
            progress: vec![0; 3 * sequences],
        })
    }

    /// Of the canvases for `limits`.
    pub fn size(limits: Limits) -> CanvasesSize {
        CanvasesSize { sequences: limits.sequences, tokens: limits.tokens, steps: TAPE_STEPS }
    }

    /// Puts the canvases of `running` into the backend's memory, as they were last looked at.
    pub fn compose(&mut self, model: &Model<B>, arena: &mut Arena<B>, running: &[Running]) -> Result<()> {
        let be = model.backend();
        let inputs = arena.inputs();
        let Self { canvases, words, numbers, .. } = self;
        canvases.sequences = running.len();
        canvases.tokens = running.iter().map(|r| r.ids.len()).sum();
        if let Some(first) = running.first() {
            (canvases.shift, canvases.mask_id) = (first.rules().shift, first.rules().mask_id);
        }
        let mut put = |dst: &mut B::Index, each: &mut dyn FnMut(&Running, &mut Vec<u32>)| {
            words.clear();
            running.iter().for_each(|r| each(r, words));
            be.write_index(dst, words)
        };
        put(&mut inputs.ids, &mut |r, words| words.extend_from_slice(&r.ids))?;
        put(&mut inputs.positions, &mut |r, words| words.extend(0..r.ids.len() as u32))?;
        put(&mut canvases.masked, &mut |r, words| words.extend(r.masked.iter().map(|&m| u32::from(m))))?;
        put(&mut canvases.free, &mut |r, words| {
            let at = words.len();
            words.resize(at + r.ids.len(), 0);
            r.free.iter().for_each(|&p| words[at + p as usize] = 1);
        })?;
        put(&mut canvases.committed_at, &mut |r, words| words.extend_from_slice(&r.committed_at))?;
        put(&mut canvases.drawing, &mut |r, words| words.extend(r.drawing().words()))?;
        put(&mut canvases.first_tokens, &mut |r, words| words.push(r.first_token))?;
        put(&mut canvases.answers, &mut |r, words| words.push(r.early_end().unwrap_or(NO_TOKEN)))?;
        put(&mut canvases.eos, &mut |r, words| words.push(r.rules().eos))?;
        put(&mut canvases.passes, &mut |r, words| words.push(r.nfe() as u32))?;
        put(&mut canvases.progress, &mut |_, words| words.extend([0; 3]))?;
        put(&mut canvases.list, &mut |r, words| words.extend_from_slice(r.listed()))?;
        let mut end = 0;
        words.clear();
        words.push(0);
        self.segments.clear();
        for r in running {
            let (start, len) = (end, r.ids.len());
            end += len;
            words.push(end as u32);
            self.segments.push(Segment { q_start: start, q_len: len, k_start: start, k_len: len });
        }
        be.write_index(&mut canvases.starts, words)?;
        be.write_segments(&mut inputs.segments, &self.segments)?;
        numbers.clear();
        running.iter().for_each(|r| numbers.extend_from_slice(&r.log_prob));
        be.write_floats(&mut canvases.log_prob, numbers)?;
        canvases.uniforms = match running {
            [only] => match only.uniforms() {
                Some(given) => {
                    let mut uniforms = be.alloc_floats(given.len())?;
                    be.write_floats(&mut uniforms, given)?;
                    Some(uniforms)
                }
                None => None,
            },
            _ => None,
        };
        self.name_composition(running);
        Ok(())
    }

    /// Recordings are of sequences of certain lengths.
    fn name_composition(&mut self, running: &[Running]) {
        let same = |lengths: &Vec<u32>| {
            lengths.len() == running.len()
                && lengths.iter().zip(running).all(|(&length, r)| length as usize == r.ids.len())
        };
        // What is given is in memory of its own.
        let given = self.canvases.uniforms.is_some();
        match self.compositions.iter().position(same) {
            Some(at) if !given => self.composition = at,
            _ => {
                if self.compositions.len() >= COMPOSITIONS || given {
                    self.compositions.clear();
                    self.known.clear();
                }
                self.composition = self.compositions.len();
                // What is recorded with given numbers is of no use later: no sequences match a set without lengths.
                let lengths = running.iter().filter(|_| !given).map(|r| r.ids.len() as u32);
                self.compositions.push(lengths.collect());
            }
        }
    }

    /// Plans as many steps as can be asked for without looking, and asks for them.
    pub fn ask(
        &mut self,
        model: &Model<B>,
        arena: &mut Arena<B>,
        running: &mut [Running],
        pace: Pace,
    ) -> Result<()> {
        let be = model.backend();
        let ahead = match pace {
            Pace::EveryStep => 1,
            _ if running.iter().any(Running::must_look) => 1,
            Pace::Never if running.iter().all(|r| r.early_end().is_none()) => TAPE_STEPS,
            Pace::Never | Pace::Often => be.run_ahead().clamp(1, TAPE_STEPS),
        };
        self.planned.clear();
        self.tape.clear();
        self.tape.push(0);
        while self.planned.len() < ahead && running.iter().all(|r| !r.is_done()) {
            let shape = self.plan_step(be, running);
            self.planned.push(shape);
        }
        let steps = self.planned.len();
        be.write_index(&mut self.canvases.tape, &self.tape)?;
        for i in 0..steps {
            let _step = meter::range("denoising step", self.asked);
            self.asked = self.asked.wrapping_add(1);
            self.step(model, arena, self.planned[i], steps)?;
        }
        Ok(())
    }

    /// Adds the next step's words to the tape.
    fn plan_step(&mut self, be: &B, running: &mut [Running]) -> StepShape {
        let layout = Stage { sequences: running.len() };
        let base = self.tape.len();
        self.tape.resize(base + layout.words(), 0);
        let words = &mut self.tape[base..];
        let mut shape = StepShape::default();
        let mut list_at = 0;
        // Needs of sequences with a threshold come first, so that those of either kind lie together.
        let mut ranked_from = 0;
        let mut put = |at: usize, numbers: &[u32]| words[at..at + numbers.len()].copy_from_slice(numbers);
        for (s, r) in running.iter_mut().enumerate() {
            let planned = r.plan(list_at);
            list_at += r.listed().len() as u32;
            let Want { needs, rows, step, .. } = planned.want;
            let want = Want { first_row: shape.rows as u32, ..planned.want };
            shape.rows += rows as usize;
            shape.longest = shape.longest.max(rows as usize);
            put(layout.wants() + s * WANT_WORDS, &want.words());
            put(layout.steps() + s, &[step]);
            if let Some(rank) = planned.rank {
                shape.ranks = true;
                shape.ranked = shape.ranked.max(needs as usize);
                put(layout.ranks() + s * rank.words().len(), &rank.words());
            }
            if let Some(threshold) = planned.threshold {
                shape.thresholds = true;
                ranked_from += needs;
                put(layout.thresholds() + s * threshold.len(), &threshold);
            }
            shape.answers |= r.must_look() || r.early_end().is_some();
        }
        let (mut ranked, mut thresholds) = (ranked_from, 0);
        for (s, r) in running.iter().enumerate() {
            let want = layout.wants() + s * WANT_WORDS;
            words[layout.rank_starts() + s] = ranked;
            words[layout.threshold_starts() + s] = thresholds;
            let first = if r.must_look() { &mut thresholds } else { &mut ranked };
            words[want + Want::FIRST_NEED] = *first;
            *first += words[want + Want::NEEDS];
        }
        words[layout.rank_starts() + running.len()] = ranked;
        words[layout.threshold_starts() + running.len()] = thresholds;
        shape.some = shape.rows < self.canvases.tokens;
        shape.rows = be.round_rows(shape.rows).min(self.canvases.tokens).max(shape.rows);
        // Tiles of queries are of 64 rows at least.
        shape.longest = shape.longest.next_multiple_of(64);
        shape.ranked = shape.ranked.next_multiple_of(64);
        shape
    }

    /// Asks for a step: by a recording where there is one.
    fn step(&mut self, model: &Model<B>, arena: &mut Arena<B>, shape: StepShape, steps: usize) -> Result<()> {
        let be = model.backend();
        let key = Key { composition: self.composition, shape };
        let place = self.known.iter().position(|known| known.key == key);
        let bounds = SegmentBounds {
            sequences: self.canvases.sequences,
            queries: shape.longest,
            q_rows: shape.rows,
            keys: self.segments.iter().map(|s| s.k_len).max().unwrap_or(0),
            k_rows: self.canvases.tokens,
        };
        be.bound_segments(&mut arena.inputs().wanted_segments, bounds)?;
        match place {
            None => {
                if self.known.len() >= RECORDINGS {
                    self.known.clear();
                }
                self.known.push(Known { key, recording: None });
                step(model, arena, &mut self.canvases, &self.mask, shape, steps)
            }
            Some(place) => {
                if self.known[place].recording.is_none() {
                    let (canvases, mask) = (&mut self.canvases, &self.mask);
                    self.known[place].recording =
                        be.record(|| step(model, arena, canvases, mask, shape, TAPE_STEPS))?;
                }
                match &self.known[place].recording {
                    // SAFETY: the recorded operations name buffers of the arena, the canvases and the model, which live as long
                    // as the sampler that holds this; recordings that name given uniforms, which do not, are of a composition
                    // that none but these sequences had.
                    Some(recording) => unsafe { be.replay(recording) },
                    None => step(model, arena, &mut self.canvases, &self.mask, shape, steps),
                }
            }
        }
    }

    /// Looks at what came of the steps asked for: how far sequences are, where that is not known; at the canvases, where one is
    /// done or somebody is watching.
    pub fn look(
        &mut self,
        model: &Model<B>,
        arena: &mut Arena<B>,
        running: &mut [Running],
        watched: bool,
    ) -> Result<()> {
        let (be, sequences) = (model.backend(), running.len());
        if self.planned.last().is_some_and(|shape| shape.answers) {
            let progress = &mut self.progress[..3 * sequences];
            be.read_index(&self.canvases.progress, 0, progress)?;
            for (s, r) in running.iter_mut().enumerate() {
                r.look(progress[sequences + s] != 0, progress[2 * sequences + s] as usize);
            }
        }
        if !watched && running.iter().all(|r| !r.is_done() && !r.is_stuck()) {
            return Ok(());
        }
        let tokens = self.canvases.tokens;
        be.read_index(&arena.inputs().ids, 0, &mut self.ids[..tokens])?;
        be.read_index(&self.canvases.masked, 0, &mut self.masked[..tokens])?;
        be.read_index(&self.canvases.committed_at, 0, &mut self.committed_at[..tokens])?;
        be.read_floats(&self.canvases.log_prob, 0, &mut self.log_prob[..tokens])?;
        be.read_index(&self.canvases.passes, 0, &mut self.progress[..sequences])?;
        let mut start = 0;
        for (s, r) in running.iter_mut().enumerate() {
            let at = start..start + r.ids.len();
            start = at.end;
            r.observe(
                &self.ids[at.clone()],
                &self.masked[at.clone()],
                &self.committed_at[at.clone()],
                &self.log_prob[at],
            );
            r.took_part(self.progress[s] as usize);
            if r.has_failed() {
                return Err(Error::NonFinite {
                    place: format!("logits of sequence {}", r.request),
                    found: "NaN, +inf or nothing that can be drawn".into(),
                    hint: "the weights or an input row are damaged, or the numbers overflowed; check the checkpoint"
                        .into(),
                });
            }
        }
        Ok(())
    }

    /// Tells the observer of the canvases as they were just looked at.
    pub fn tell(running: &[Running], results: &mut Results<'_>) {
        for r in running {
            results.step(Step {
                request: r.request,
                step: r.step_number(),
                steps: r.steps(),
                nfe: r.nfe(),
                canvas: &r.ids,
                masked: &r.masked,
                committed: &r.commits,
                remasked: &r.remasked,
            });
        }
    }
}

/// A step, from its words on the tape to the commits. Nothing of it looks at the host's memory.
fn step<B: Forward + Denoise>(
    model: &Model<B>,
    arena: &mut Arena<B>,
    canvases: &mut Canvases<B>,
    mask: &B::Mask,
    shape: StepShape,
    steps: usize,
) -> Result<()> {
    let be = model.backend();
    be.stage_step(canvases, steps)?;
    be.select_needs(canvases, arena.inputs(), shape)?;
    model.pass(Pass { tokens: canvases.tokens, rows: shape.rows, some: shape.some }, arena, mask, None)?;
    model.draw_rows(shape.rows, arena, &canvases.params, &mut canvases.draws)?;
    be.commit(canvases, arena.inputs(), shape)
}
