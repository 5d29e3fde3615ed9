//! What a finished generation looks like to a program: the objects of `--json` and of
//! `lacuna batch`.

use serde::Serialize;
use serde_json::{Value, json};

use super::common::{Speller, filled_ids};
use super::run::{LastSeen, rate};
use super::sampling::order_name;
use crate::error::{Error, Result};
use crate::sample::{Finish, Generation, Request};

/// A stretch of the canvas that was filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Filled {
    /// First position.
    pub start: usize,
    /// Tokens.
    pub length: usize,
    pub text: String,
}

/// A length combination that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Length of each gap, in tokens.
    pub gaps: Vec<usize>,
    /// Mean log probability of the filled tokens, in nats.
    pub score: f64,
    pub text: String,
}

/// A generation as an object. Times are seconds, probabilities natural logarithms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The whole text, given parts included, up to the end of the text; special tokens left out.
    pub text: String,
    /// The text that was filled in, gap by gap.
    pub filled: Vec<Filled>,
    /// The tokens that were filled in and belong to the text; their number is `tokens`.
    pub token_ids: Vec<u32>,
    /// The whole canvas, special tokens included.
    pub canvas_ids: Vec<u32>,
    pub tokens: usize,
    pub nfe: usize,
    pub tokens_per_forward: f64,
    pub seconds: f64,
    pub tokens_per_s: f64,
    pub seed: u64,
    pub sequence: u32,
    pub prompt: Option<String>,
    pub steps: usize,
    pub order: &'static str,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: u32,
    /// Mean log probability of the filled tokens, in nats.
    pub score: f64,
    pub finish: Finish,
    /// Positions of `canvas_ids` that belong to the text.
    pub end: usize,
    pub model: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

impl Record {
    /// The record of `generation`, which came of `request` after `seconds`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the ids cannot be spelled.
    pub fn new(
        speller: Speller<'_>,
        model: &str,
        request: &Request,
        generation: &Generation,
        prompt: Option<&str>,
        seconds: f64,
    ) -> Result<Self> {
        let end = generation.end.min(generation.ids.len());
        let fixed = request.canvas.fixed();
        let runs = speller.runs(&generation.ids[..end], fixed)?;
        let mut filled = Vec::new();
        let mut start = 0;
        for ((given, text), group) in runs.iter().zip(fixed[..end.min(fixed.len())].chunk_by(|a, b| a == b)) {
            if !given {
                filled.push(Filled { start, length: group.len(), text: text.clone() });
            }
            start += group.len();
        }
        let token_ids = filled_ids(&request.canvas, generation);
        Ok(Self {
            text: speller.decode(&generation.ids[..end])?,
            filled,
            token_ids,
            canvas_ids: generation.ids.clone(),
            tokens: generation.tokens,
            nfe: generation.nfe,
            tokens_per_forward: rate(generation.tokens, generation.nfe as f64),
            seconds,
            tokens_per_s: rate(generation.tokens, seconds),
            seed: request.seed,
            sequence: request.sequence,
            prompt: prompt.map(str::to_owned),
            steps: request.steps,
            order: order_name(request),
            temperature: decimal(request.temperature),
            top_p: decimal(request.top_p),
            top_k: request.top_k,
            score: generation.score(),
            finish: generation.finish,
            end,
            model: model.to_owned(),
            candidates: Vec::new(),
        })
    }

    /// The record as one object.
    pub fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// The number that was meant: 0.9, not the 0.8999999761581421 that an f32 of it widens to.
pub fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// An error as an object: `{"error": message, "code": exit code}`.
pub fn failure(error: &Error) -> Value {
    json!({"error": error.to_string(), "code": error.exit_code()})
}

/// What there is of a generation that was stopped: an error object with the text so far, in which
/// `[[gap:N]]` stands for what was still masked.
pub fn unfinished(speller: Speller<'_>, request: &Request, last: Option<&LastSeen>) -> Value {
    let mut value = failure(&Error::Cancelled);
    if let (Value::Object(fields), Some(last)) = (&mut value, last) {
        let masked = last.masked.iter().filter(|m| **m).count();
        fields.insert("text".into(), json!(speller.unfinished(&last.canvas, &last.masked)));
        fields.insert("step".into(), json!(last.step));
        fields.insert("steps".into(), json!(last.steps));
        fields.insert("masked".into(), json!(masked));
        fields.insert("seed".into(), json!(request.seed));
    }
    value
}
