//! The paper's loop as it is written: T forward passes over everything, all rows drawn at every
//! step. The oracle of the commit plan, and the path by which explicit inputs are compared with
//! other implementations (`lacuna replay sample`). For work use [`Sampler`](super::Sampler).

use std::sync::Arc;

use super::checks::check_drawing;
use super::request::{Canvas, Order, Request};
use super::running::GivenNoise;
use super::sampler::{Limits, Sampler};
use crate::backend::{Confidence, Denoise, Forward, Mask, NO_TOKEN, RowDraw, RowParams};
use crate::diffusion::reveal::{self, CommitPlan};
use crate::diffusion::shift;
use crate::error::{Error, Result};
use crate::model::{Arena, ArenaSize, Batch, Drawing, Model};

/// A batch of equally long canvases and the uniforms to denoise them with.
#[derive(Clone, Debug)]
pub struct PlainInput {
    pub batch: usize,
    pub length: usize,
    /// Token ids `[B, L]`; what free positions hold matters at position 0 only (with shift it is
    /// what that position becomes).
    pub x: Vec<u32>,
    /// `true` = given, `[B, L]`.
    pub src: Vec<bool>,
    /// Uniforms of the draws `[T, B, L]`, by the row the logits come from; empty when greedy.
    pub u_cat: Vec<f32>,
    /// Uniforms of the reveals `[T - 1, B, L]`: before forward k > 0 a masked position is revealed
    /// iff `u_unmask[k - 1] < 1 / (T - k + 1)`; empty for the confidence order and for T = 1.
    pub u_unmask: Vec<f32>,
}

/// How to run the loop.
#[derive(Clone, Copy, Debug)]
pub struct PlainOptions {
    pub steps: usize,
    /// 0 is greedy.
    pub temperature: f32,
    pub top_p: f32,
    pub shift: bool,
    pub mask_id: u32,
    /// The original's confidence order instead of the random one: the least confident positions
    /// stay masked, revealed ones compete with their rescored values.
    pub confidence: bool,
}

/// What the loop saw and made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainOutput {
    /// Input of forward k, `[T, B, L]`.
    pub xt: Vec<u32>,
    /// Prediction after forward k, `[T, B, L]`: after the shift, known positions kept.
    pub x0: Vec<u32>,
    /// `x0` of the last forward; with shift without column 0.
    pub result: Vec<u32>,
}

impl PlainInput {
    fn check(&self, options: &PlainOptions, vocab: usize) -> Result<()> {
        check_drawing(options.temperature, options.top_p)?;
        let n = self.batch.checked_mul(self.length).unwrap_or(0);
        let t = options.steps;
        if n == 0 || t == 0 {
            return Err(Error::Request(format!(
                "expected at least one row, one column and one step, got [{}, {}] and T = {t}",
                self.batch, self.length
            )));
        }
        let greedy = options.temperature == 0.0 || options.confidence;
        let draws = if greedy { 0 } else { t.saturating_mul(n) };
        let reveals = if options.confidence { 0 } else { (t - 1).saturating_mul(n) };
        let sizes = [
            ("x", self.x.len(), n),
            ("src_mask", self.src.len(), n),
            ("u_cat", self.u_cat.len().min(draws), draws),
            ("u_unmask", self.u_unmask.len().min(reveals), reveals),
        ];
        for (name, got, expected) in sizes {
            if got != expected {
                return Err(Error::Input {
                    origin: "replay".into(),
                    what: format!("numbers in {name}"),
                    expected: expected.to_string(),
                    got: got.to_string(),
                });
            }
        }
        if options.mask_id as usize >= vocab {
            return Err(Error::Request(format!(
                "mask id {} is not in the vocabulary: expected 0 to {}",
                options.mask_id,
                vocab.saturating_sub(1)
            )));
        }
        Ok(())
    }
}

/// Runs the plain loop.
///
/// # Errors
/// [`Error::Input`] when an input has the wrong size, otherwise as [`Model::forward`].
pub fn plain_loop<B: Forward + Denoise>(
    model: &Model<B>,
    input: &PlainInput,
    options: &PlainOptions,
) -> Result<PlainOutput> {
    input.check(options, model.config().vocab_size)?;
    let (b, l, steps) = (input.batch, input.length, options.steps);
    let n = b * l;
    let size = ArenaSize { tokens: n, rows: n };
    let mut arena = Arena::new(model.backend(), model.config(), size, l)?;
    let mut batch = Batch::with_capacity(size, b);
    let mut drawing = Drawing::new(model.backend(), n)?;
    let mut masked: Vec<bool> = input.src.iter().map(|s| !s).collect();
    let mut xt: Vec<u32> = (0..n).map(|i| if masked[i] { options.mask_id } else { input.x[i] }).collect();
    let mut x0 = xt.clone();
    let mut scores = vec![0.0f32; n];
    let mut out = PlainOutput { xt: room(steps, n)?, x0: room(steps, n)?, result: Vec::new() };
    for k in 0..steps {
        if k > 0 {
            let left = steps - k;
            for row in 0..b {
                let at = row * l..(row + 1) * l;
                let now = &masked[at.clone()];
                let stays = if options.confidence {
                    let free: Vec<bool> = input.src[at.clone()].iter().map(|s| !s).collect();
                    reveal::original_confidence_step(&scores[at.clone()], &free, now, left, steps)?
                } else {
                    let u = &input.u_unmask[(k - 1) * n..k * n][at.clone()];
                    u.iter().zip(now).map(|(&u, &m)| m && !reveal::reveal_now(u, left + 1)).collect()
                };
                for (i, stays) in at.zip(stays) {
                    if masked[i] && !stays {
                        xt[i] = x0[i];
                        masked[i] = false;
                    }
                }
            }
        }
        batch.clear();
        for row in 0..b {
            batch.push(&xt[row * l..(row + 1) * l], 0..l as u32);
        }
        let params: Vec<RowParams> = (0..n)
            .map(|i| RowParams {
                // The confidence order takes the best token, scored after temperature.
                temperature: options.temperature,
                top_p: if options.confidence { 1.0 } else { options.top_p },
                top_k: u32::from(options.confidence),
                suppress: NO_TOKEN,
                uniform: input.u_cat.get(k * n + i).copied().unwrap_or(0.0),
                confidence: Confidence::MaxProb,
                given: NO_TOKEN,
            })
            .collect();
        let mut draws = vec![RowDraw::default(); n];
        model.forward(&batch, &mut arena, Mask::Full)?;
        model.draw(&params, &mut arena, &mut drawing, &mut draws)?;
        for row in 0..b {
            for p in 0..l {
                let i = row * l + p;
                let drawn = shift::row_for(p, options.shift).map(|r| draws[row * l + r]);
                // Position 0 keeps its own row's score and takes its token from the input.
                scores[i] = drawn.unwrap_or(draws[i]).log_prob;
                x0[i] = match drawn {
                    _ if !masked[i] => xt[i],
                    Some(draw) => draw.token,
                    None => input.x[i],
                };
            }
        }
        out.xt.extend_from_slice(&xt);
        out.x0.extend_from_slice(&x0);
    }
    out.result = without_first(&x0, l, options.shift);
    Ok(out)
}

/// The commit plan from the same uniforms: the sampler's own step loop, the same `result`.
///
/// # Errors
/// As [`plain_loop`]; and [`Error::Request`] for the confidence order, which has no plan.
pub fn planned<B: Forward + Denoise>(
    model: &Arc<Model<B>>,
    input: &PlainInput,
    options: &PlainOptions,
) -> Result<Vec<u32>> {
    input.check(options, model.config().vocab_size)?;
    if options.confidence {
        return Err(Error::Request("a confidence order has no commit plan: leave out --plan".into()));
    }
    let (b, l, steps) = (input.batch, input.length, options.steps);
    let n = b * l;
    let mut sampler = Sampler::new(model.clone(), Limits { sequences: 1, tokens: l })?;
    let mut all = Vec::with_capacity(n);
    for row in 0..b {
        let at = row * l..(row + 1) * l;
        let canvas = Canvas::from_flags(input.x[at.clone()].to_vec(), input.src[at.clone()].to_vec())?;
        let mut request = Request::new(canvas);
        request.steps = steps;
        request.order = Order::Random;
        request.temperature = options.temperature;
        request.top_p = options.top_p;
        request.shift = Some(options.shift);
        request.mask_id = Some(options.mask_id);
        request.suppress_mask = Some(false);
        request.stop_at_eos = false;
        let reveals: Vec<f32> =
            (1..steps).flat_map(|k| input.u_unmask[(k - 1) * n..][at.clone()].iter().copied()).collect();
        let free = (0..l as u32).filter(|&p| !input.src[row * l + p as usize]);
        let plan = CommitPlan::from_uniforms(&reveals, l, free, steps)?;
        let draws = if options.temperature == 0.0 {
            Vec::new()
        } else {
            (0..steps).flat_map(|k| input.u_cat[k * n..][at.clone()].iter().copied()).collect()
        };
        all.extend(sampler.denoise_given(&request, GivenNoise { plan, draws })?.ids);
    }
    Ok(without_first(&all, l, options.shift))
}

/// Room for the ids of all steps.
fn room(steps: usize, n: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    let reserved = steps.checked_mul(n).is_some_and(|len| ids.try_reserve_exact(len).is_ok());
    reserved.then_some(ids).ok_or_else(|| Error::Memory {
        what: format!("the record of {steps} steps of {n} positions"),
        needed: steps as u128 * n as u128 * size_of::<u32>() as u128,
        limit: "more than there is".into(),
        hint: "take fewer steps or rows".into(),
    })
}

fn without_first(ids: &[u32], length: usize, shift: bool) -> Vec<u32> {
    ids.chunks(length).flat_map(|row| row[usize::from(shift)..].iter().copied()).collect()
}
