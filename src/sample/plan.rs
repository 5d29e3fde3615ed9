//! What generating takes, before it is begun.

use super::sampler::Limits;
use super::steps::Steps;
use crate::backend::{Canvases, Denoise, Forward};
use crate::config::ModelConfig;
use crate::element::Dtype;
use crate::model::{ArenaSize, MemoryReport, Model};

/// Bytes, by what they are for. Made from a network's shape alone, so that it can be had for a machine that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Weights in memory of the backend's.
    pub weights: u128,
    /// Weights in place in the file map.
    pub mapped: u128,
    /// Activations and indices of a forward pass.
    pub activations: u128,
    /// Logits of a chunk of rows.
    pub logits: u128,
    /// Canvases, draws and plans of steps.
    pub canvases: u128,
}

impl MemoryPlan {
    /// Of a loaded model.
    pub fn new<B: Forward + Denoise>(model: &Model<B>, limits: Limits) -> Self {
        let MemoryReport { mapped_bytes, copied_bytes, .. } = model.memory();
        let of_run = Self::of_run::<B>(model.config(), limits, model.backend().number_bytes());
        Self { weights: copied_bytes.into(), mapped: mapped_bytes.into(), ..of_run }
    }

    /// Of a network on a card, with `parameters` numbers in weights.
    pub fn on_card(config: &ModelConfig, parameters: u64, dtype: Dtype, limits: Limits) -> Self {
        type Card = crate::backend::cuda::Cuda<crate::backend::cuda::driver::Card>;
        let number_bytes = [dtype.size(), Dtype::F32.size()];
        let weights = u128::from(parameters) * dtype.size() as u128;
        Self { weights, ..Self::of_run::<Card>(config, limits, number_bytes) }
    }

    fn of_run<B: Forward + Denoise>(config: &ModelConfig, limits: Limits, number_bytes: [usize; 2]) -> Self {
        let size = ArenaSize { tokens: limits.tokens, rows: limits.tokens };
        let longest = limits.tokens.min(config.max_positions);
        let [activations, logits] = size.bytes(config, longest, number_bytes);
        let canvases = Canvases::<B>::bytes(Steps::<B>::size(limits));
        Self { activations, logits, canvases, ..Self::default() }
    }

    /// Everything but what stays in the file map.
    pub fn total(&self) -> u128 {
        self.weights + self.activations + self.logits + self.canvases
    }

    /// What generating adds to the weights.
    pub fn of_generating(&self) -> u128 {
        self.activations + self.logits + self.canvases
    }
}

/// The most sequences of `length` positions that `free` bytes hold beside the weights; 0 if not one.
pub fn most_sequences<B: Forward + Denoise>(model: &Model<B>, length: usize, free: u64) -> usize {
    let fits = |sequences: usize| {
        let limits = Limits { sequences, tokens: sequences.saturating_mul(length) };
        let size = MemoryPlan::of_run::<B>(model.config(), limits, model.backend().number_bytes());
        size.of_generating() <= u128::from(free)
    };
    let (mut low, mut high) = (0_usize, 1 << 20);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// Whether the machine is known to have too little memory free for a sampler within `limits`; what would fit.
pub(super) fn check<B: Forward + Denoise>(model: &Model<B>, limits: Limits) -> crate::Result<()> {
    let Some(free) = model.backend().free_memory() else { return Ok(()) };
    let plan = MemoryPlan::new(model, limits);
    let needed = plan.of_generating();
    if needed <= u128::from(free) {
        return Ok(());
    }
    let length = limits.tokens.div_ceil(limits.sequences.max(1));
    let most = most_sequences(model, length, free);
    let hint = if most > 0 {
        format!("of that length, {most} at a time fit: lower --batch")
    } else {
        let whole = most_sequences(model, 1, free);
        match whole {
            0 => "not even one token fits: use a smaller model or a card with more memory".to_owned(),
            _ => format!("a sequence of at most {whole} tokens fits: lower --length"),
        }
    };
    Err(crate::Error::Memory {
        what: format!(
            "generating {} at a time, {} tokens in all (activations {}, logits {}, canvases {}),",
            limits.sequences, limits.tokens, plan.activations, plan.logits, plan.canvases
        ),
        needed,
        limit: format!("and {free} are free beside the weights"),
        hint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SyntheticShape, parameters_of};

    /// Lines of the table in docs/engine.md.
    #[test]
    fn the_documented_table_is_what_is_planned() {
        let config = SyntheticShape::DiffuLlama7b.config();
        let parameters =
            parameters_of(&config).iter().map(|e| e.shape.iter().map(|&d| d as u64).product::<u64>()).sum();
        let mut lines = String::new();
        for length in [512, 2048] {
            for sequences in [1, 32] {
                let limits = Limits { sequences, tokens: sequences * length };
                let plan = MemoryPlan::on_card(&config, parameters, Dtype::Bf16, limits);
                let mib = |bytes: u128| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
                let MemoryPlan { weights, activations, logits, canvases, .. } = plan;
                lines += &format!(
                    "| {length} | {sequences} | {} | {} | {} | {} | {} |\n",
                    mib(weights),
                    mib(activations),
                    mib(logits),
                    mib(canvases),
                    mib(plan.total())
                );
            }
        }
        let document = include_str!("../../docs/engine.md");
        assert!(document.contains(&lines), "docs/engine.md should have\n{lines}");
    }
}
