//! What a training step takes, by operation and direction.

use super::decoding::check_length;
use super::{Amount, ByOp, Op, forward, matrix};
use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};

/// Which pairs of a query and a key count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// All of them, whatever the mask: what is usual for causal attention too, and what a kernel without block skipping does.
    #[default]
    Full,
    /// Those that causal attention sees: L (L + 1) / 2 of a sequence.
    Causal,
}

/// A training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingStep {
    pub batch: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Tokens of a sequence that go through the head.
    pub scored: usize,
    pub attention: Attention,
    /// Rank of adapters that are trained instead of the weights.
    pub lora_rank: Option<usize>,
    /// Blocks are computed again on the way back.
    pub recompute: bool,
}

/// What it takes, in floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrainingWork {
    pub forward: ByOp,
    /// Gradients of activations; of attention, which has no weights, all four products of the way back.
    pub d_input: ByOp,
    pub d_weight: ByOp,
    /// Not needed by the mathematics, but done: the scores that flash attention makes again, blocks with `recompute`, and the inner
    /// products of adapters.
    pub recomputed: ByOp,
}

impl TrainingWork {
    /// What the gradients need: without what is computed again.
    pub fn needed(&self) -> ByOp {
        self.forward.plus(&self.d_input).plus(&self.d_weight)
    }

    /// What is done.
    pub fn done(&self) -> ByOp {
        self.needed().plus(&self.recomputed)
    }
}

/// Products of the network itself, there and back.
pub(super) fn products(config: &ModelConfig, amount: Amount, weights: bool) -> TrainingWork {
    let forward = forward(config, amount);
    let attention = |op| matches!(op, Op::Scores | Op::Weighted);
    TrainingWork {
        forward,
        // Of scores with respect to queries and keys; of weighted values to probabilities and values.
        d_input: ByOp::new(|op| forward.of(op) * if attention(op) { 2.0 } else { 1.0 }),
        d_weight: ByOp::new(|op| if attention(op) || !weights { 0.0 } else { forward.of(op) }),
        recomputed: ByOp::default(),
    }
}

impl TrainingStep {
    /// Whether `config` can do it.
    ///
    /// # Errors
    /// [`Error::Request`] naming the number that cannot be.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (flag, n) in [("batch", self.batch), ("length", self.length)] {
            if n == 0 {
                return Err(Error::request(format!("--{flag} 0: expected 1 or more")));
            }
        }
        if self.lora_rank == Some(0) {
            return Err(Error::request("--lora-rank 0: expected 1 or more"));
        }
        check_length(config, self.length)?;
        if self.scored > self.length {
            return Err(Error::request(format!(
                "{} tokens masked: expected at most the {} of --length",
                self.scored, self.length
            )));
        }
        Ok(())
    }

    /// Its operations.
    pub fn work(&self, config: &ModelConfig) -> TrainingWork {
        let (batch, length) = (self.batch as f64, self.length as f64);
        let pairs = match self.attention {
            Attention::Full => length * length,
            Attention::Causal => length * (length + 1.0) / 2.0,
        };
        let one = Amount {
            tokens: length,
            pairs,
            last_rows: length,
            last_pairs: pairs,
            head_rows: self.scored as f64,
        };
        let mut work = products(config, one.times(batch), self.lora_rank.is_none());
        let rank = self.lora_rank.map_or(0.0, |rank| rank as f64);
        let tokens = batch * length * config.layers as f64;
        let [inputs, outputs] = adapted(config);
        let both = 2.0 * tokens * rank * (inputs + outputs);
        for part in [&mut work.forward, &mut work.d_input, &mut work.d_weight] {
            *part = part.plus(&ByOp::new(|op| if op == Op::Adapters { both } else { 0.0 }));
        }
        // The way back of a linear layer wants the product of its input and A, which is not kept.
        let mut adapters = 2.0 * tokens * rank * inputs;
        if self.recompute {
            let down = matrix(config, Op::Down).map_or(0.0, |[i, o]| i + o);
            adapters += both - 2.0 * tokens * rank * down;
        }
        let forward = work.forward;
        work.recomputed = ByOp::new(|op| match op {
            Op::Adapters => adapters,
            // A block ends with the down projection, whose output nothing on the way back wants.
            Op::Embedding | Op::Head | Op::Down => 0.0,
            Op::Scores => forward.of(op) * if self.recompute { 2.0 } else { 1.0 },
            op => forward.of(op) * f64::from(u8::from(self.recompute)),
        });
        work
    }
}

/// Inputs and outputs of the linear layers of a block, summed: GPT-2's queries, keys and values are one layer.
fn adapted(config: &ModelConfig) -> [f64; 2] {
    let fused = config.family == Family::Gpt2;
    Op::ALL.into_iter().fold([0.0, 0.0], |[inputs, outputs], op| match matrix(config, op) {
        Some([_, o]) if fused && matches!(op, Op::Key | Op::Value) => [inputs, outputs + o],
        Some([i, o]) => [inputs + i, outputs + o],
        None => [inputs, outputs],
    })
}
