//! [`Unmask`] and [`Denoise`] by the kernels.

use std::ops::Range;

use super::needs::Parts;
use super::{Buffer, Canvas, Cuda, Device, Draws, Format, Found, Needs, Record, Wanted};
use crate::backend::denoise::{DRAWING_WORDS, WANT_WORDS};
use crate::backend::{
    Canvases, Denoise, Inputs, RANK_WORDS, RowDraw, StepShape, THRESHOLD_WORDS, UNMASK_WORDS, Unmask, work,
};
use crate::element::Dtype;
use crate::error::{Error, Result};

impl<D: Device> Unmask for Cuda<D> {
    type Draws = Draws<D>;

    fn alloc_draws(&self, rows: usize) -> Result<Draws<D>> {
        Draws::new(&self.device, rows)
    }

    fn unmask(
        &self,
        logits: &Buffer<D>,
        vocab: usize,
        rows: Range<usize>,
        params: &Buffer<D>,
        out: &mut Draws<D>,
    ) -> Result<()> {
        let _op = work::unmask(rows.len(), vocab, 4);
        let dtype = match logits.format() {
            Format::Float(dtype) => dtype,
            other => {
                let (expected, got) = (Dtype::F32.size(), other.size());
                return Err(Error::Shape { op: "unmask", what: "bytes of a logit", expected, got });
            }
        };
        let params = params.share(rows.start * UNMASK_WORDS, rows.len() * UNMASK_WORDS)?;
        let mut out = out.share(rows.start, rows.len())?;
        self.unmask(dtype, logits, 0, vocab, vocab, rows.len(), &params, &mut out)
    }

    fn read_draws(&self, draws: &Draws<D>, out: &mut [RowDraw]) -> Result<()> {
        let _op = work::read_draws(out.len());
        let (rows, room, words) = (out.len(), draws.tokens.len(), draws.read(&self.device)?);
        if rows > room {
            return Err(Error::Shape { op: "read_draws", what: "rows, at most", expected: room, got: rows });
        }
        let flags = &words[4 * room..][..rows];
        if let Some((row, flag)) = flags.iter().enumerate().find(|(_, flag)| **flag != 0) {
            let found = match flag {
                1 => "NaN or +inf",
                2 => "no token that can be drawn (all are -inf or suppressed)",
                _ => "parameters that are out of range",
            };
            return Err(Error::NonFinite {
                place: format!("logits of row {row}"),
                found: found.into(),
                hint:
                    "the weights or an input row are damaged, or the numbers overflowed; check the checkpoint"
                        .into(),
            });
        }
        for (row, out) in out.iter_mut().enumerate() {
            let number = |part: usize| f32::from_bits(words[part * room + row]);
            *out = RowDraw {
                token: words[row],
                log_prob: number(1),
                confidence: number(2),
                given_log_prob: number(3),
            };
        }
        Ok(())
    }
}

impl<D: Device> Denoise for Cuda<D> {
    fn stage_step(&self, canvases: &mut Canvases<Self>, steps: usize) -> Result<()> {
        let _op = work::stage_step(canvases);
        let words = canvases.layout().words();
        self.stage_step(&mut canvases.tape, steps, words, &mut canvases.stage)
    }

    fn select_needs(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()> {
        let _op = work::select_needs(canvases, shape);
        let sequences = canvases.sequences;
        let wants = canvases.stage.share(canvases.layout().wants(), sequences * WANT_WORDS)?;
        let drawing = canvases.drawing.share(0, sequences * DRAWING_WORDS)?;
        let complete = canvases.progress.share(sequences, sequences)?;
        let Parts { ids, rows, row_positions, places } = Parts::of(inputs);
        let wanted = Wanted {
            masked: &canvases.masked,
            free: &canvases.free,
            starts: &canvases.starts,
            sequences,
            wants: &wants,
            drawing: &drawing,
            complete: Some(&complete),
            list: Some(&canvases.list),
            uniforms: canvases.uniforms.as_ref(),
            shift: canvases.shift,
            rows: shape.rows,
        };
        let found = Found {
            needs: &mut canvases.needs,
            slots: &mut canvases.slots,
            rows,
            row_positions,
            params: &mut canvases.params,
            places,
            passes: &mut canvases.passes,
        };
        self.select_needs(ids, &wanted, found)
    }

    fn commit(
        &self,
        canvases: &mut Canvases<Self>,
        inputs: &mut Inputs<Self>,
        shape: StepShape,
    ) -> Result<()> {
        let _op = work::commit(canvases, shape);
        let (layout, sequences) = (canvases.layout(), canvases.sequences);
        let part = |at: usize, len: usize| canvases.stage.share(at, len);
        let steps = part(layout.steps(), sequences)?;
        let rank_starts = part(layout.rank_starts(), sequences + 1)?;
        let threshold_starts = part(layout.threshold_starts(), sequences + 1)?;
        let ranks = part(layout.ranks(), sequences * RANK_WORDS)?;
        let thresholds = part(layout.thresholds(), sequences * THRESHOLD_WORDS)?;
        let mut canvas = Canvas {
            ids: &mut inputs.ids,
            masked: &mut canvases.masked,
            starts: &canvases.starts,
            sequences,
            record: Some(Record {
                steps: &steps,
                committed_at: &mut canvases.committed_at,
                log_prob: &mut canvases.log_prob,
            }),
        };
        let needs = |starts, longest| Needs {
            starts,
            positions: &canvases.needs,
            slots: &canvases.slots,
            first_tokens: &canvases.first_tokens,
            longest,
        };
        if shape.ranks {
            let needs = needs(&rank_starts, shape.ranked);
            self.commit_ranked(&canvases.draws, &needs, &ranks, canvases.mask_id, &mut canvas)?;
        }
        if shape.thresholds {
            self.commit_threshold(&canvases.draws, &needs(&threshold_starts, 0), &thresholds, &mut canvas)?;
        }
        if shape.answers {
            self.commit_answer(&canvas, &canvases.answers, &canvases.eos, &mut canvases.progress)?;
        }
        Ok(())
    }
}
