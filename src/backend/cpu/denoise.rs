//! Denoising steps on the CPU: what `cuda/needs.cu` and `cuda/commit.cu` do on a card. The canvases are a few thousand
//! numbers, so plain loops do.

use super::{Cpu, CpuElement, UnmaskElement};
use crate::backend::denoise::{DRAWING_WORDS, IDLE_ROW, WANT_WORDS};
use crate::backend::{
    Canvases, Denoise, DrawingWords, Inputs, NO_TOKEN, RANK_WORDS, RowDraw, Segment, StepShape,
    THRESHOLD_WORDS, UNMASK_WORDS, WantKind, work,
};
use crate::error::{Error, Result};
use crate::ranking::{above_threshold, most_confident};
use crate::rng::{Purpose, Rng, gumbel};
use crate::shift;

const OP: &str = "denoise";

/// Memory that ranking reuses.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranking {
    scores: Vec<f32>,
    /// Numbers of those needs that something was drawn for.
    drawn: Vec<u32>,
    chosen: Vec<u32>,
}

impl Ranking {
    fn reserve(&mut self, needs: usize) {
        self.scores.clear();
        self.scores.reserve(needs);
        self.drawn.clear();
        self.drawn.reserve(needs);
        self.chosen.clear();
        self.chosen.reserve(needs);
    }
}

impl<E: CpuElement + UnmaskElement> Denoise for Cpu<E> {
    fn stage_step(&self, canvases: &mut Canvases<Self>, steps: usize) -> Result<()> {
        let _op = work::stage_step(canvases);
        let words = canvases.layout().words();
        let (tape, stage) = (canvases.tape.as_mut_slice(), canvases.stage.as_mut_slice());
        let Some((cursor, tape)) = tape.split_first_mut() else { return Ok(()) };
        let at = *cursor as usize * words;
        let (Some(stage), true) = (stage.get_mut(..words), (*cursor as usize) < steps) else {
            return Err(Error::Shape {
                op: OP,
                what: "steps of the tape",
                expected: steps,
                got: *cursor as usize,
            });
        };
        stage.copy_from_slice(part(tape, at, words)?);
        *cursor += 1;
        Ok(())
    }

    fn select_needs(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()> {
        let _op = work::select_needs(canvases, shape);
        let (needs, slots) = (canvases.needs.as_mut_slice(), canvases.slots.as_mut_slice());
        needs.fill(NO_TOKEN);
        slots.fill(NO_TOKEN);
        let Some(params) = canvases.params.as_mut_slice().get_mut(..shape.rows * UNMASK_WORDS) else {
            return Err(Error::Shape { op: OP, what: "rows", expected: shape.rows, got: 0 });
        };
        let (params, _) = params.as_chunks_mut::<UNMASK_WORDS>();
        params.fill(IDLE_ROW);
        let wanted = inputs.wanted.as_mut_slice();
        let wanted_positions = inputs.wanted_positions.as_mut_slice();
        if wanted.len().min(wanted_positions.len()) < shape.rows {
            return Err(Error::Shape { op: OP, what: "rows", expected: shape.rows, got: wanted.len() });
        }
        wanted[..shape.rows].fill(0);
        wanted_positions[..shape.rows].fill(0);
        inputs.wanted_segments.clear();
        let stage = canvases.stage.as_slice();
        let (ids, masked, free) =
            (inputs.ids.as_slice(), canvases.masked.as_slice(), canvases.free.as_slice());
        let starts = canvases.starts.as_slice();
        for s in 0..canvases.sequences {
            let &[kind, low, high, step, first_need, need_count, first_row, row_count] =
                words::<WANT_WORDS>(stage, s)?;
            let drawing = words::<DRAWING_WORDS>(canvases.drawing.as_slice(), s)?;
            let (start, end) = (starts[s] as usize, starts[s + 1] as usize);
            let length = end - start;
            let done = canvases
                .progress
                .as_slice()
                .get(canvases.sequences + s)
                .is_some_and(|&complete| complete != 0);
            let kind = if done { WantKind::Nothing as u32 } else { kind };
            let nothing = kind == WantKind::Nothing as u32;
            let place = Segment {
                q_start: first_row as usize,
                q_len: if nothing { 0 } else { row_count as usize },
                k_start: start,
                k_len: length,
            };
            inputs.wanted_segments.push(place);
            if nothing {
                continue;
            }
            canvases.passes.as_mut_slice()[s] += 1;
            let listed = kind == WantKind::Listed as u32;
            let all = kind == WantKind::Free as u32;
            let list = canvases.list.as_slice();
            let mut need = first_need as usize..(first_need + need_count) as usize;
            let mut row = first_row as usize..(first_row + row_count) as usize;
            for i in low..high {
                let p = match list.get(i as usize) {
                    _ if !listed => i as usize,
                    Some(&p) => p as usize,
                    None => continue,
                };
                let at = start + p;
                if p >= length || (!listed && (free[at] == 0 || !(all || masked[at] != 0))) {
                    continue;
                }
                let Some(need) = need.next().filter(|&n| n < needs.len()) else { break };
                needs[need] = at as u32;
                let Some(from) = shift::row_for(p, canvases.shift) else { continue };
                let Some(row) = row.next().filter(|&r| r < shape.rows) else { break };
                slots[need] = row as u32;
                wanted[row] = (start + from) as u32;
                wanted_positions[row] = from as u32;
                let given_uniform = || {
                    let uniforms = canvases.uniforms.as_ref()?.as_slice();
                    let at = DrawingWords::uniforms_at(drawing)? as usize;
                    uniforms.get(at + step as usize * length + from).copied()
                };
                let given = if masked[at] == 0 { ids[at] } else { NO_TOKEN };
                let uniform = given_uniform().unwrap_or(0.0);
                params[row] = DrawingWords::row(drawing, given, uniform, step, p as u32);
            }
        }
        Ok(())
    }

    fn commit(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()> {
        let _op = work::commit(canvases, shape);
        let layout = canvases.layout();
        let mut ranking = self.ranking();
        ranking.reserve(canvases.size.tokens);
        let mut canvas = Canvas {
            ids: inputs.ids.as_mut_slice(),
            masked: canvases.masked.as_mut_slice(),
            committed_at: canvases.committed_at.as_mut_slice(),
            log_prob: canvases.log_prob.as_mut_slice(),
        };
        let stage = canvases.stage.as_slice();
        let (needs, slots) = (canvases.needs.as_slice(), canvases.slots.as_slice());
        let draws = canvases.draws.as_slice();
        // Of sequence s, by the starts that lie at `starts` of the step's words.
        let needs_of = |starts: usize, s: usize| -> Result<Needs<'_>> {
            let starts = part(stage, starts, s + 2)?;
            let (first, end) = (starts[s] as usize, starts[s + 1].max(starts[s]) as usize);
            Ok(Needs { positions: part(needs, first, end - first)?, slots, draws, first })
        };
        for s in 0..canvases.sequences {
            let sequence = Sequence {
                start: canvases.starts.as_slice()[s],
                step: part(stage, layout.steps(), s + 1)?[s],
                first_token: canvases.first_tokens.as_slice()[s],
            };
            if shape.ranks {
                let list = needs_of(layout.rank_starts(), s)?;
                let words = words::<RANK_WORDS>(part(stage, layout.ranks(), (s + 1) * RANK_WORDS)?, s)?;
                commit_ranked(&mut canvas, sequence, &list, words, canvases.mask_id, &mut ranking);
            }
            if shape.thresholds {
                let list = needs_of(layout.threshold_starts(), s)?;
                let all = part(stage, layout.thresholds(), (s + 1) * THRESHOLD_WORDS)?;
                let words = words::<THRESHOLD_WORDS>(all, s)?;
                commit_threshold(&mut canvas, sequence, &list, words, &mut ranking);
            }
        }
        if shape.answers {
            let starts = canvases.starts.as_slice();
            let progress = canvases.progress.as_mut_slice();
            for s in 0..canvases.sequences {
                let range = starts[s] as usize..starts[s + 1] as usize;
                let (ids, masked) = (&canvas.ids[range.clone()], &canvas.masked[range]);
                let (answer, eos) = (canvases.answers.as_slice()[s], canvases.eos.as_slice()[s]);
                let found = if answer == NO_TOKEN || eos == NO_TOKEN {
                    None
                } else {
                    (answer as usize..ids.len()).find(|&p| masked[p] == 0 && ids[p] == eos)
                };
                let complete = found.is_some_and(|at| masked[..at].iter().all(|&m| m == 0));
                progress[s] = found.map_or(NO_TOKEN, |p| p as u32);
                progress[canvases.sequences + s] = complete.into();
                progress[2 * canvases.sequences + s] = masked.iter().sum();
            }
        }
        Ok(())
    }
}

struct Canvas<'a> {
    ids: &'a mut [u32],
    masked: &'a mut [u32],
    committed_at: &'a mut [u32],
    log_prob: &'a mut [f32],
}

#[derive(Clone, Copy)]
struct Sequence {
    start: u32,
    step: u32,
    first_token: u32,
}

/// The needs of a sequence, and what was drawn.
struct Needs<'a> {
    positions: &'a [u32],
    /// Of all needs; the first of this sequence is number `first`.
    slots: &'a [u32],
    first: usize,
    draws: &'a [RowDraw],
}

impl Needs<'_> {
    /// The draw of need `i`; `None` where no row predicts it.
    fn draw(&self, i: usize) -> Option<RowDraw> {
        let slot = self.slots[self.first + i];
        if slot == NO_TOKEN { None } else { self.draws.get(slot as usize).copied() }
    }
}

impl Canvas<'_> {
    fn commit(&mut self, sequence: Sequence, position: u32, draw: Option<RowDraw>) {
        let p = position as usize;
        self.ids[p] = draw.map_or(sequence.first_token, |d| d.token);
        self.masked[p] = 0;
        self.committed_at[p] = sequence.step + 1;
        self.log_prob[p] = draw.map_or(0.0, |d| d.log_prob);
    }
}

fn commit_ranked(
    canvas: &mut Canvas<'_>,
    sequence: Sequence,
    needs: &Needs<'_>,
    words: &[u32; RANK_WORDS],
    mask_id: u32,
    ranking: &mut Ranking,
) {
    let &[take, noise, remask, seed_low, seed_high, number, step, _] = words;
    let noise = f32::from_bits(noise);
    let rng = Rng::new(u64::from(seed_low) | u64::from(seed_high) << 32);
    let Ranking { scores, drawn, chosen } = ranking;
    scores.clear();
    drawn.clear();
    for (i, &position) in needs.positions.iter().enumerate() {
        if position as usize >= canvas.ids.len() {
            continue;
        }
        let mut score = match needs.draw(i) {
            None => f32::INFINITY,
            Some(d) if canvas.masked[position as usize] == 0 => d.given_log_prob,
            Some(d) => d.confidence,
        };
        if noise > 0.0 {
            let within = position - sequence.start;
            score += noise * gumbel(rng.uniform(Purpose::Confidence, number, step, within));
        }
        scores.push(score);
        drawn.push(i as u32);
    }
    most_confident(scores, (take as usize).min(scores.len()), chosen);
    let mut next = 0;
    for (n, &i) in drawn.iter().enumerate() {
        let position = needs.positions[i as usize];
        let masked = canvas.masked[position as usize] != 0;
        if chosen.get(next) == Some(&(n as u32)) {
            next += 1;
            if masked {
                canvas.commit(sequence, position, needs.draw(i as usize));
            }
        } else if !masked && remask != 0 {
            canvas.masked[position as usize] = 1;
            canvas.ids[position as usize] = mask_id;
        }
    }
}

fn commit_threshold(
    canvas: &mut Canvas<'_>,
    sequence: Sequence,
    needs: &Needs<'_>,
    words: &[u32; THRESHOLD_WORDS],
    ranking: &mut Ranking,
) {
    let (tau, exponential) = (f32::from_bits(words[0]), words[1] != 0);
    let Ranking { scores, drawn, chosen } = ranking;
    scores.clear();
    drawn.clear();
    for (i, &position) in needs.positions.iter().enumerate() {
        if canvas.masked.get(position as usize).is_none_or(|&m| m == 0) {
            continue;
        }
        scores.push(match needs.draw(i) {
            None => f32::INFINITY,
            Some(d) if exponential => d.confidence.exp(),
            Some(d) => d.confidence,
        });
        drawn.push(i as u32);
    }
    above_threshold(scores, tau, chosen);
    for &n in chosen.iter() {
        let i = drawn[n as usize] as usize;
        canvas.commit(sequence, needs.positions[i], needs.draw(i));
    }
}

/// Words of sequence `s`.
fn words<const N: usize>(all: &[u32], s: usize) -> Result<&[u32; N]> {
    let (chunks, _) = all.as_chunks::<N>();
    chunks.get(s).ok_or(Error::Shape { op: OP, what: "sequences", expected: s + 1, got: chunks.len() })
}

fn part<T>(all: &[T], at: usize, len: usize) -> Result<&[T]> {
    let expected = at.saturating_add(len);
    all.get(at..expected).ok_or(Error::Shape { op: OP, what: "words", expected, got: all.len() })
}
