//! [`Unmask`] and [`Denoise`] by the kernels.

use std::ops::Range;

use super::needs::Parts;
use super::{Buffer, Canvas, Cuda, Device, Draws, Format, Found, Needs, Record, Wanted};
use crate::backend::denoise::{DRAWING_WORDS, WANT_WORDS};
use crate::backend::{
    Deck, Denoise, Inputs, RANK_WORDS, RowDraw, StepShape, THRESHOLD_WORDS, UNMASK_WORDS, Unmask,
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
        let rows = out.len();
        let mut words = vec![0_u32; rows];
        draws.flags.read(&self.device, 0, &mut words)?;
        if let Some((row, flag)) = words.iter().enumerate().find(|(_, flag)| **flag != 0) {
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
        draws.tokens.read(&self.device, 0, &mut words)?;
        out.iter_mut().zip(&words).for_each(|(out, &token)| out.token = token);
        let mut numbers = vec![0.0_f32; rows];
        draws.log_prob.read(&self.device, 0, &mut numbers)?;
        out.iter_mut().zip(&numbers).for_each(|(out, &x)| out.log_prob = x);
        draws.confidence.read(&self.device, 0, &mut numbers)?;
        out.iter_mut().zip(&numbers).for_each(|(out, &x)| out.confidence = x);
        draws.given_log_prob.read(&self.device, 0, &mut numbers)?;
        out.iter_mut().zip(&numbers).for_each(|(out, &x)| out.given_log_prob = x);
        Ok(())
    }
}

impl<D: Device> Denoise for Cuda<D> {
    fn stage_step(&self, deck: &mut Deck<Self>, steps: usize) -> Result<()> {
        let words = deck.layout().words();
        self.stage_step(&mut deck.tape, steps, words, &mut deck.stage)
    }

    fn select_needs(&self, deck: &mut Deck<Self>, inputs: &mut Inputs<Self>, shape: StepShape) -> Result<()> {
        let sequences = deck.sequences;
        let wants = deck.stage.share(deck.layout().wants(), sequences * WANT_WORDS)?;
        let drawing = deck.drawing.share(0, sequences * DRAWING_WORDS)?;
        let complete = deck.progress.share(sequences, sequences)?;
        let Parts { ids, rows, row_positions, places } = Parts::of(inputs);
        let wanted = Wanted {
            masked: &deck.masked,
            free: &deck.free,
            starts: &deck.starts,
            sequences,
            wants: &wants,
            drawing: &drawing,
            complete: Some(&complete),
            list: Some(&deck.list),
            uniforms: deck.uniforms.as_ref(),
            shift: deck.shift,
            rows: shape.rows,
        };
        let found = Found {
            needs: &mut deck.needs,
            slots: &mut deck.slots,
            rows,
            row_positions,
            params: &mut deck.params,
            places,
            passes: &mut deck.passes,
        };
        self.select_needs(ids, &wanted, found)
    }

    fn commit(&self, deck: &mut Deck<Self>, inputs: &mut Inputs<Self>, shape: StepShape) -> Result<()> {
        let (layout, sequences) = (deck.layout(), deck.sequences);
        let part = |at: usize, len: usize| deck.stage.share(at, len);
        let steps = part(layout.steps(), sequences)?;
        let rank_starts = part(layout.rank_starts(), sequences + 1)?;
        let threshold_starts = part(layout.threshold_starts(), sequences + 1)?;
        let ranks = part(layout.ranks(), sequences * RANK_WORDS)?;
        let thresholds = part(layout.thresholds(), sequences * THRESHOLD_WORDS)?;
        let mut canvas = Canvas {
            ids: &mut inputs.ids,
            masked: &mut deck.masked,
            starts: &deck.starts,
            sequences,
            record: Some(Record {
                steps: &steps,
                committed_at: &mut deck.committed_at,
                log_prob: &mut deck.log_prob,
            }),
        };
        let needs = |starts, longest| Needs {
            starts,
            positions: &deck.needs,
            slots: &deck.slots,
            first_tokens: &deck.first_tokens,
            longest,
        };
        if shape.ranks {
            let needs = needs(&rank_starts, shape.ranked);
            self.commit_ranked(&deck.draws, &needs, &ranks, deck.mask_id, &mut canvas)?;
        }
        if shape.thresholds {
            self.commit_threshold(&deck.draws, &needs(&threshold_starts, 0), &thresholds, &mut canvas)?;
        }
        if shape.answers {
            self.commit_answer(&canvas, &deck.answers, &deck.eos, &mut deck.progress)?;
        }
        Ok(())
    }
}
