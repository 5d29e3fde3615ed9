//! Left-to-right decoding of the same weights, with causal attention and a KV cache: the baseline
//! of every comparison.

use super::checks::{check_drawing, prefix_of};
use super::request::{Commit, Finish, Generation, Request, Step};
use super::sampler::{Limits, Results, Sampler};
use crate::backend::{
    Backend, Confidence, Denoise, Forward, Mask, NO_TOKEN, RowDraw, RowParams, SegmentBounds, Unmask,
};
use crate::error::{Error, Result};
use crate::model::{Arena, ArenaSize, Batch, Drawing, KvCache, Model, Pass};
use crate::rng::{Purpose, Rng};

/// A sequence being decoded.
struct Line {
    request: usize,
    /// Row of position 0 in the KV cache.
    base: usize,
    ids: Vec<u32>,
    masked: Vec<bool>,
    /// Positions whose keys and values are in the cache.
    cached: usize,
    /// Positions known so far.
    known: usize,
    given: usize,
    committed_at: Vec<u32>,
    log_prob: Vec<f32>,
    nfe: usize,
    /// The last known token ends the sequence.
    ended: bool,
    done: bool,
    /// Token that must not be drawn, or [`NO_TOKEN`].
    suppress: u32,
}

/// Memory for decoding, made when it is first wanted.
pub(super) struct Decoder<B: Unmask> {
    batch: Batch,
    params: Vec<RowParams>,
    draws: Vec<RowDraw>,
    drawing: Drawing<B>,
}

impl<B: Unmask> Decoder<B> {
    fn new(backend: &B, limits: Limits) -> Result<Self> {
        let Limits { sequences, tokens } = limits;
        Ok(Self {
            batch: Batch::with_capacity(ArenaSize { tokens, rows: sequences }, sequences),
            params: Vec::with_capacity(sequences),
            draws: Vec::with_capacity(sequences),
            drawing: Drawing::new(backend, sequences)?,
        })
    }
}

impl<B: Forward + Denoise> Sampler<B> {
    /// Decodes the `waiting` requests, as many side by side as the limits allow.
    pub(super) fn decode(
        &mut self,
        requests: &[Request],
        waiting: &[usize],
        results: &mut Results<'_>,
    ) -> Result<()> {
        let mut rest = waiting;
        while !rest.is_empty() {
            let mut lines: Vec<Line> = Vec::new();
            let mut tokens = 0;
            while let Some((&index, tail)) = rest.split_first() {
                let length = requests[index].canvas.len();
                let full = lines.len() == self.limits.sequences || tokens + length > self.limits.tokens;
                if full && !lines.is_empty() {
                    break;
                }
                rest = tail;
                if results.cancelled {
                    results.put(index, Err(Error::Cancelled));
                    continue;
                }
                match self.line(index, &requests[index], tokens) {
                    Err(error) => results.put(index, Err(error)),
                    Ok(line) => {
                        tokens += length;
                        lines.push(line);
                    }
                }
            }
            self.decode_lines(requests, lines, results)?;
        }
        Ok(())
    }

    fn line(&self, request: usize, of: &Request, base: usize) -> Result<Line> {
        self.check_length(of.canvas.len())?;
        self.check_ids(of)?;
        check_drawing(of.temperature, of.top_p)?;
        let (given, gap) = prefix_of(&of.canvas)?;
        let length = given + gap;
        let masked = of.canvas.fixed().iter().map(|f| !f).collect();
        Ok(Line {
            request,
            base,
            ids: of.canvas.ids().to_vec(),
            masked,
            cached: 0,
            known: given,
            given,
            committed_at: vec![0; length],
            log_prob: vec![0.0; length],
            nfe: 0,
            ended: false,
            done: gap == 0,
            suppress: self.suppressed(of),
        })
    }

    fn decode_lines(
        &mut self,
        requests: &[Request],
        mut lines: Vec<Line>,
        results: &mut Results<'_>,
    ) -> Result<()> {
        let model = self.model.clone();
        let rows = lines.iter().map(|l| l.ids.len()).sum();
        let mut cache = KvCache::new(model.backend(), model.config(), rows)?;
        let eos = model.special().eos.as_ref().map_or(NO_TOKEN, |e| e.id);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            empty => empty.insert(Decoder::new(model.backend(), self.limits)?),
        };
        let Decoder { batch, params, draws, drawing } = decoder;
        let mask = model.backend().mask(Mask::Causal)?;
        let longest = lines.iter().map(|l| l.ids.len()).max().unwrap_or(0);
        let mut recorded = Recorded::<B> { sequences: 0, recording: None };
        loop {
            let mut at = 0;
            while at < lines.len() {
                if lines[at].done || results.cancelled {
                    let line = lines.remove(at);
                    let request = line.request;
                    let result = if line.done { Ok(finish(line, eos)) } else { Err(Error::Cancelled) };
                    results.put(request, result);
                } else {
                    at += 1;
                }
            }
            if lines.is_empty() {
                return Ok(());
            }
            batch.clear();
            params.clear();
            for line in &lines {
                let new = &line.ids[line.cached..line.known];
                batch.push_cached(new, line.cached, line.base, [new.len() as u32 - 1]);
                let request = &requests[line.request];
                let step = (line.known - line.given) as u32;
                let rng = Rng::new(request.seed);
                params.push(RowParams {
                    temperature: request.temperature,
                    top_p: request.top_p,
                    top_k: request.top_k,
                    suppress: line.suppress,
                    uniform: rng.uniform(Purpose::Token, request.sequence, step, line.known as u32),
                    confidence: Confidence::MaxProb,
                    given: NO_TOKEN,
                });
            }
            draws.clear();
            draws.resize(params.len(), RowDraw::default());
            let (be, arena) = (model.backend(), &mut self.arena);
            let pass = model.load_cached(batch, arena)?;
            model.load_params(params, drawing)?;
            // Lengths are read where the work is done, so that such a step is always the same.
            let bounds = SegmentBounds {
                sequences: pass.rows,
                queries: 1,
                q_rows: pass.rows,
                keys: longest,
                k_rows: rows,
            };
            let again = recorded.follows(pass);
            if again && recorded.recording.is_none() {
                be.bound_segments(&mut arena.inputs().segments, bounds)?;
                recorded.recording = be.record(|| step(&model, pass, arena, &mask, &mut cache, drawing))?;
            }
            match &recorded.recording {
                // SAFETY: what was recorded names buffers of the arena, the decoder and the model, which live as long as the
                // sampler, and the cache and the mask, which live as long as the recording; all are borrowed alone.
                Some(recording) if again => unsafe { be.replay(recording) }?,
                _ => step(&model, pass, arena, &mask, &mut cache, drawing)?,
            }
            be.read_draws(&drawing.draws, draws)?;
            for (line, draw) in lines.iter_mut().zip(draws.iter()) {
                line.take(draw, requests[line.request].stop_at_eos, eos);
                let at = line.known - 1;
                let commit = Commit { position: at as u32, token: draw.token, log_prob: draw.log_prob };
                results.step(Step {
                    request: line.request,
                    step: line.known - line.given,
                    steps: line.ids.len() - line.given,
                    nfe: line.nfe,
                    canvas: &line.ids,
                    masked: &line.masked,
                    committed: &[commit],
                    remasked: &[],
                });
            }
        }
    }
}

/// The step of one token a sequence, once it was recorded.
struct Recorded<B: Backend> {
    /// That were decoded in the step before, if it was such a step; else 0.
    sequences: usize,
    recording: Option<B::Recording>,
}

impl<B: Backend> Recorded<B> {
    /// Takes note of the next step. Whether it is as the one before; sequences only leave, so it is if as many are left.
    fn follows(&mut self, pass: Pass) -> bool {
        let sequences = if pass.tokens == pass.rows { pass.rows } else { 0 };
        let again = sequences > 0 && sequences == self.sequences;
        if !again {
            *self = Self { sequences, recording: None };
        }
        again
    }
}

/// A pass and its draws.
fn step<B: Forward + Unmask>(
    model: &Model<B>,
    pass: Pass,
    arena: &mut Arena<B>,
    mask: &B::Mask,
    cache: &mut KvCache<B>,
    drawing: &mut Drawing<B>,
) -> Result<()> {
    model.pass(pass, arena, mask, Some(cache))?;
    model.draw_loaded(pass.rows, arena, drawing)
}

impl Line {
    fn take(&mut self, draw: &RowDraw, stop_at_eos: bool, eos: u32) {
        let at = self.known;
        self.ids[at] = draw.token;
        self.masked[at] = false;
        self.log_prob[at] = draw.log_prob;
        self.committed_at[at] = (at - self.given) as u32 + 1;
        self.cached = at;
        self.known = at + 1;
        self.nfe += 1;
        self.ended = stop_at_eos && draw.token == eos;
        self.done = self.ended || self.known == self.ids.len();
    }
}

fn finish(mut line: Line, eos: u32) -> Generation {
    let end = if line.ended { line.known - 1 } else { line.known };
    line.ids[line.known..].fill(eos);
    Generation {
        tokens: end - line.given,
        end,
        finish: if line.ended { Finish::Eos } else { Finish::Length },
        ids: line.ids,
        committed_at: line.committed_at,
        log_prob: line.log_prob,
        nfe: line.nfe,
    }
}
