//! Floating-point operations of matrix products and attention, by operation: two for a multiply-add. What is linear in the width
//! (norms, activations, rotations, softmax, sampling) is left out, and so are biases. There is one account, [`forward`]; everything
//! else is made of it.
//!
//! Numbers are f64: exact up to 2^53, and to 16 digits beyond.

mod decoding;
mod step;

pub use decoding::{Decoding, DecodingOrder, Work, expected_commit_steps};
pub use step::{Attention, TrainingStep, TrainingWork};

use crate::config::{Family, ModelConfig};

/// An operation of the network whose arithmetic is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Rows of the tables are looked up: no operation, but bytes.
    Embedding,
    Query,
    Key,
    Value,
    /// `Q K^T`.
    Scores,
    /// The values, weighted by the probabilities.
    Weighted,
    /// The projection behind the attention.
    Output,
    /// Of a gated MLP alone.
    Gate,
    Up,
    Down,
    Head,
    /// Low-rank adapters of all linear layers.
    Adapters,
}

impl Op {
    /// In the order of a pass.
    pub const ALL: [Op; 12] = [
        Self::Embedding,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Scores,
        Self::Weighted,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::Head,
        Self::Adapters,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Query => "query projection",
            Self::Key => "key projection",
            Self::Value => "value projection",
            Self::Scores => "scores QK^T",
            Self::Weighted => "weighted values",
            Self::Output => "output projection",
            Self::Gate => "MLP gate",
            Self::Up => "MLP up",
            Self::Down => "MLP down",
            Self::Head => "head",
            Self::Adapters => "adapters",
        }
    }
}

/// A number for each operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ByOp([f64; Op::ALL.len()]);

impl ByOp {
    /// Made from what each operation has.
    pub fn new(mut of: impl FnMut(Op) -> f64) -> Self {
        let mut all = Self::default();
        for op in Op::ALL {
            all.0[op as usize] = of(op);
        }
        all
    }

    pub fn of(&self, op: Op) -> f64 {
        self.0[op as usize]
    }

    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// Each number times `factor`.
    pub fn times(&self, factor: f64) -> Self {
        Self::new(|op| self.of(op) * factor)
    }

    /// The sums of two.
    pub fn plus(&self, other: &Self) -> Self {
        Self::new(|op| self.of(op) + other.of(op))
    }
}

/// How much goes through a network: of one pass, or summed over several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// Rows of every block but the last, and rows of the last one's keys and values.
    pub tokens: f64,
    /// Pairs of a query and a key that every block but the last one scores.
    pub pairs: f64,
    /// Rows of the last block's queries, output and MLP.
    pub last_rows: f64,
    /// Pairs that the last block scores.
    pub last_pairs: f64,
    /// Rows of the head.
    pub head_rows: f64,
}

impl Amount {
    /// One pass with every row in every block, `head_rows` of them scored.
    pub fn whole(lengths: &[usize], head_rows: f64) -> Self {
        let tokens = lengths.iter().map(|&l| l as f64).sum();
        let pairs = lengths.iter().map(|&l| (l as f64) * (l as f64)).sum();
        Self { tokens, pairs, last_rows: tokens, last_pairs: pairs, head_rows }
    }

    pub(super) fn times(self, factor: f64) -> Self {
        let Self { tokens, pairs, last_rows, last_pairs, head_rows } = self;
        let [tokens, pairs, last_rows, last_pairs, head_rows] =
            [tokens, pairs, last_rows, last_pairs, head_rows].map(|x| factor * x);
        Self { tokens, pairs, last_rows, last_pairs, head_rows }
    }
}

/// The inputs and outputs of an operation's matrix; `None` where it has none in a block.
fn matrix(config: &ModelConfig, op: Op) -> Option<[f64; 2]> {
    let gated = config.family == Family::Llama;
    let (c, f) = (config.width as f64, config.mlp_width as f64);
    let (q, kv) = (config.query_width() as f64, config.kv_width() as f64);
    match op {
        Op::Query => Some([c, q]),
        Op::Key | Op::Value => Some([c, kv]),
        Op::Output => Some([q, c]),
        Op::Gate => gated.then_some([c, f]),
        Op::Up => Some([c, f]),
        Op::Down => Some([f, c]),
        Op::Embedding | Op::Scores | Op::Weighted | Op::Head | Op::Adapters => None,
    }
}

/// Operations of a forward pass over `amount`.
pub fn forward(config: &ModelConfig, amount: Amount) -> ByOp {
    let (layers, q) = (config.layers as f64, config.query_width() as f64);
    let Amount { tokens, pairs, last_rows, last_pairs, head_rows } = amount;
    let before = (layers - 1.0).max(0.0);
    let last = layers - before;
    ByOp::new(|op| match op {
        Op::Embedding | Op::Adapters => 0.0,
        Op::Scores | Op::Weighted => 2.0 * q * (before * pairs + last * last_pairs),
        Op::Head => 2.0 * config.width as f64 * config.vocab_size as f64 * head_rows,
        op => {
            let rows = if matches!(op, Op::Key | Op::Value) { tokens } else { last_rows };
            matrix(config, op).map_or(0.0, |[i, o]| 2.0 * i * o * (before * tokens + last * rows))
        }
    })
}

/// Numbers of weights that `passes` forward passes over `tokens` rows in all read: each matrix once a pass, of the tables the rows
/// that are looked up. Norms and biases are left out.
pub fn weights(config: &ModelConfig, passes: f64, tokens: f64) -> ByOp {
    let (c, layers) = (config.width as f64, config.layers as f64);
    let tables = if config.rope.is_none() { 2.0 } else { 1.0 };
    ByOp::new(|op| match op {
        Op::Embedding => tables * tokens * c,
        Op::Head => passes * c * config.vocab_size as f64,
        op => matrix(config, op).map_or(0.0, |[i, o]| passes * layers * i * o),
    })
}

/// Of a forward pass over sequences of `lengths`, `rows` of whose rows leave the last block, with the logits of those rows:
/// what the engine computes. The last block's queries, attention, output and MLP are of those rows alone.
pub fn pass(config: &ModelConfig, lengths: &[usize], rows: usize) -> f64 {
    let Amount { tokens, pairs, .. } = Amount::whole(lengths, 0.0);
    let last_rows = rows as f64;
    // Which sequences the rows are of is not known: as if they were spread over the tokens.
    let last_pairs = if tokens > 0.0 { last_rows * pairs / tokens } else { 0.0 };
    forward(config, Amount { tokens, pairs, last_rows, last_pairs, head_rows: last_rows }).total()
}

/// Of a training step over sequences of `lengths`, `rows` of whose rows are scored: every block on every row, and twice as much
/// on the way back; without the gradients of weights (adapters, whose own operations are left out) once as much.
pub fn training(config: &ModelConfig, lengths: &[usize], rows: usize, weights: bool) -> f64 {
    let work = step::products(config, Amount::whole(lengths, rows as f64), weights);
    work.forward.total() + work.d_input.total() + work.d_weight.total()
}

/// Of denoising `sequences` canvases of `length` of which `filled` positions each are filled, one row a position, in `nfe`
/// forward passes each.
pub fn generation(config: &ModelConfig, sequences: usize, length: usize, filled: usize, nfe: f64) -> f64 {
    forward(config, decoding::planned(sequences, length, filled as f64, nfe)).total()
}

/// Of decoding `sequences` times `length - 1` tokens after a given one from left to right with a KV cache, a token a pass: token i looks at
/// i keys.
pub fn autoregressive(config: &ModelConfig, sequences: usize, length: usize) -> f64 {
    let passes = length.saturating_sub(1);
    let others = passes as f64 * (passes as f64 - 1.0) / 2.0;
    let attention = config.layers as f64 * others * 4.0 * config.query_width() as f64;
    sequences as f64 * (pass(config, &vec![1; passes], passes) + attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SyntheticShape;

    /// Twice the parameters of the matrices a token, and attention.
    #[test]
    fn decoding_costs_the_pairs_below_the_diagonal() {
        let config = SyntheticShape::DiffuGptS.config();
        let (layers, q) = (config.layers as f64, config.query_width() as f64);
        // Against a full pass over the same tokens: all pairs, where decoding has half of them and the diagonal.
        let full = pass(&config, &[8], 8);
        let expected = full - layers * 4.0 * q * (64.0 - 36.0);
        let got = autoregressive(&config, 1, 9);
        assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
        assert_eq!(autoregressive(&config, 3, 9), 3.0 * got);
    }

    #[test]
    fn a_whole_pass_is_twice_the_parameters_a_token() {
        for shape in [SyntheticShape::DiffuGptS, SyntheticShape::DiffuLlama7b] {
            let config = shape.config();
            let l = 512.0;
            let matrices: usize = crate::model::parameters_of(&config)
                .iter()
                .filter(|e| e.shape.len() == 2 && e.parameter != "positions" && e.parameter != "embedding")
                .map(|e| e.shape.iter().product::<usize>())
                .sum();
            let head = if config.tied { config.width * config.vocab_size } else { 0 };
            let attention = config.layers as f64 * 4.0 * l * l * config.query_width() as f64;
            let expected = 2.0 * l * (matrices + head) as f64 + attention;
            let got = pass(&config, &[512], 512);
            assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn a_generation_is_its_passes() {
        let config = SyntheticShape::DiffuGptM.config();
        let each = [7, 0, 30, 63];
        let sum: f64 = each.iter().map(|&rows| pass(&config, &[101, 101], 2 * rows)).sum();
        let got = generation(&config, 2, 101, 100, 4.0);
        assert!((got / sum - 1.0).abs() < 1e-12, "{got} {sum}");
    }
}
