//! Requests that cannot be honoured, and why.

use super::request::{Canvas, Order, Request};
use super::running::Rules;
use crate::backend::Confidence;
use crate::error::{Error, Result};

/// Refuses a diffusion request whose numbers make no sense. With `given_noise` position 0 may be
/// free under shift: it keeps what the canvas holds there.
pub(super) fn check(request: &Request, rules: Rules, given_noise: bool) -> Result<()> {
    let fail = |message: String| Err(Error::Request(message));
    let Request { canvas, steps, .. } = request;
    if canvas.is_empty() {
        return fail("the canvas is empty: give a prompt, or a length of at least 1".into());
    }
    if *steps == 0 || *steps > u32::MAX as usize {
        return fail(format!("steps must be 1 to {}, got {steps}", u32::MAX));
    }
    check_drawing(request.temperature, request.top_p)?;
    if request.block_length == Some(0) {
        return fail("block length must be at least 1".into());
    }
    match request.order {
        Order::Confidence { noise, .. } if !(noise.is_finite() && noise >= 0.0) => {
            return fail(format!("confidence noise must be a number from 0 up, got {noise}"));
        }
        Order::Confidence { by, remask: true, .. } if by != Confidence::MaxProb => {
            return fail("remasking compares probabilities: use it with the order `confidence`".into());
        }
        Order::Threshold { tau, .. } if !tau.is_finite() => {
            return fail(format!("the threshold must be a finite number, got {tau}"));
        }
        _ => {}
    }
    if rules.shift && !canvas.fixed()[0] && !given_noise {
        return fail(
            "this model predicts each token from the row before it, so the first token must be given: \
             start the text with the bos token (--bos always)"
                .into(),
        );
    }
    Ok(())
}

/// A canvas of the request as a prefix and one gap, for autoregressive decoding.
pub(super) fn prefix_of(canvas: &Canvas) -> Result<(usize, usize)> {
    let gaps = canvas.gaps();
    match gaps.as_slice() {
        [] => Ok((canvas.len(), 0)),
        [gap] if gap.end == canvas.len() && gap.start > 0 => Ok((gap.start, gap.len())),
        [gap] if gap.start == 0 => Err(Error::Request(
            "autoregressive decoding needs at least one given token to start from: give a prompt or --bos always".into(),
        )),
        _ => Err(Error::Request(
            "autoregressive decoding only continues a text: expected one gap at the end".into(),
        )),
    }
}

/// Refuses a temperature or a top-p that is no such thing.
pub(super) fn check_drawing(temperature: f32, top_p: f32) -> Result<()> {
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(Error::Request(format!(
            "temperature must be a number from 0 (greedy) up, got {temperature}"
        )));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::Request(format!(
            "top-p must be above 0 and at most 1 (1 keeps every token), got {top_p}"
        )));
    }
    Ok(())
}
