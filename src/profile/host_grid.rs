//! What is measured of the CPU: operations at sizes of its own, those of DiffuGPT-S and SmolLM2-135M, a few rows or some hundred.
//! It computes in f32; weights stay as they are stored.

use super::grid::{Case, POSITIONS, Rule, Work};
use super::training::Training;
use crate::backend::{Layout, MomentFormat};
use crate::config::NormKind;
use crate::element::Dtype;

/// An operation and its sizes, and how its weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCase {
    pub(super) case: Case,
    /// The format of weights.
    pub(super) weights: Dtype,
    /// Logits that hardly differ, of which a nucleus takes most; otherwise those of a model that has an opinion.
    pub(super) flat: bool,
}

impl HostCase {
    /// The sizes in words.
    pub fn shape(&self) -> String {
        match self.case.work {
            Work::Linear { .. } => format!("{} in {}", self.case.shape(), self.weights),
            Work::Unmask { .. } => {
                format!("{}, {} logits", self.case.shape(), if self.flat { "near-flat" } else { "peaked" })
            }
            _ => self.case.shape(),
        }
    }

    /// As [`Case::matches`].
    pub fn matches(&self, text: &str) -> bool {
        self.case.matches(text) || self.shape().contains(text)
    }

    /// Bytes that must be read or written, each once.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = match self.case.work {
            Work::Linear { rows, inputs, outputs, .. } => {
                4 * rows * (inputs + outputs) + self.weights.size() * inputs * outputs
            }
            // Queries and keys in place.
            Work::Rope { rows, heads, head_dim } => {
                4 * (4 * rows * heads * head_dim + rows + POSITIONS.min(rows) * head_dim)
            }
            _ => return self.case.bytes(),
        };
        numbers as u64
    }
}

/// All cases, those of inference first; with `quick` small ones.
pub fn host_cases(quick: bool) -> Vec<HostCase> {
    let mut all = Vec::new();
    let of = |weights, work, flat| HostCase { case: Case { work, dtype: Dtype::F32 }, weights, flat };
    let mut add = |weights, work| all.push(of(weights, work, false));
    let (f32, bf16) = (Dtype::F32, Dtype::Bf16);
    if quick {
        add(bf16, Work::Linear { rows: 8, inputs: 64, outputs: 101, layout: Layout::OutIn });
        add(f32, Work::Linear { rows: 24, inputs: 64, outputs: 96, layout: Layout::InOut });
        add(f32, Work::Attention { batch: 2, heads: 2, length: 24, head_dim: 64 });
        for rule in [Rule::TopP, Rule::TopK, Rule::Sampled, Rule::Greedy] {
            add(f32, Work::Unmask { rule, rows: 3, vocab: 301 });
        }
        add(f32, Work::Norm { kind: NormKind::LayerNorm, rows: 3, width: 96, residual: false });
        add(f32, Work::Norm { kind: NormKind::RmsNorm, rows: 3, width: 96, residual: false });
        add(f32, Work::Rope { rows: 3, heads: 2, head_dim: 64 });
        add(f32, Work::Swiglu { rows: 3, width: 96 });
        add(f32, Work::Gelu { rows: 3, width: 96 });
        add(f32, Work::Embed { rows: 5, width: 96, vocab: 50, positions: true });
        add(f32, Work::CrossEntropy { rows: 3, vocab: 301 });
        let small = [
            Training::Attention { batch: 2, heads: 2, length: 24, head_dim: 64 },
            Training::MaskedLoss { rows: 24, masked: 12, width: 64, vocab: 101 },
            Training::Weight { rows: 24, inputs: 64, outputs: 96, layout: Layout::InOut },
            Training::Norm { kind: NormKind::LayerNorm, rows: 3, width: 96 },
            Training::AdamW { count: 1000, moments: MomentFormat::Q8 },
        ];
        for work in small {
            add(f32, Work::Training(work));
        }
        all.push(of(f32, Work::Unmask { rule: Rule::TopP, rows: 3, vocab: 301 }, true));
        return all;
    }
    for rows in [1, 8, 128, 512] {
        for (inputs, outputs) in [(576, 576), (576, 192), (576, 1536), (1536, 576)] {
            add(bf16, Work::Linear { rows, inputs, outputs, layout: Layout::OutIn });
        }
        for (inputs, outputs) in [(768, 2304), (768, 768), (768, 3072), (3072, 768)] {
            add(f32, Work::Linear { rows, inputs, outputs, layout: Layout::InOut });
        }
    }
    for rows in [1, 8, 128] {
        add(bf16, Work::Linear { rows, inputs: 576, outputs: 49_152, layout: Layout::OutIn });
        add(f32, Work::Linear { rows, inputs: 768, outputs: 50_257, layout: Layout::OutIn });
    }
    for length in [128, 512, 1024] {
        add(f32, Work::Attention { batch: 1, heads: 12, length, head_dim: 64 });
    }
    for rule in [Rule::TopP, Rule::TopK, Rule::Sampled, Rule::Greedy] {
        add(f32, Work::Unmask { rule, rows: 128, vocab: 50_257 });
    }
    for rows in [128, 512] {
        add(f32, Work::Norm { kind: NormKind::LayerNorm, rows, width: 768, residual: false });
        add(f32, Work::Norm { kind: NormKind::RmsNorm, rows, width: 576, residual: false });
        add(f32, Work::Rope { rows, heads: 9, head_dim: 64 });
        add(f32, Work::Swiglu { rows, width: 1536 });
        add(f32, Work::Gelu { rows, width: 3072 });
        add(f32, Work::Embed { rows, width: 768, vocab: 50_257, positions: true });
    }
    add(f32, Work::CrossEntropy { rows: 128, vocab: 50_257 });
    let (moments, layout) = ([MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Q8], Layout::InOut);
    let training = [
        Training::Attention { batch: 1, heads: 12, length: 128, head_dim: 64 },
        Training::Attention { batch: 1, heads: 12, length: 512, head_dim: 64 },
        Training::MaskedLoss { rows: 256, masked: 128, width: 768, vocab: 50_257 },
        Training::Weight { rows: 512, inputs: 768, outputs: 3072, layout },
        Training::Norm { kind: NormKind::LayerNorm, rows: 512, width: 768 },
        Training::Norm { kind: NormKind::RmsNorm, rows: 512, width: 576 },
    ];
    let steps = moments.map(|moments| Training::AdamW { count: 1 << 22, moments });
    for work in training.into_iter().chain(steps) {
        add(f32, Work::Training(work));
    }
    all.push(of(f32, Work::Unmask { rule: Rule::TopP, rows: 128, vocab: 50_257 }, true));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_can_be_told_apart() {
        for quick in [false, true] {
            let names: Vec<_> = host_cases(quick).iter().map(|c| (c.case.kernel(), c.shape())).collect();
            for (i, name) in names.iter().enumerate() {
                assert!(!names[..i].contains(name), "{name:?} is there twice");
            }
        }
    }

    #[test]
    fn a_weight_counts_as_it_is_stored() {
        let work = Work::Linear { rows: 2, inputs: 3, outputs: 5, layout: Layout::OutIn };
        let bytes =
            |weights| HostCase { case: Case { work, dtype: Dtype::F32 }, weights, flat: false }.bytes();
        assert_eq!((bytes(Dtype::F32), bytes(Dtype::Bf16)), (4 * 16 + 4 * 15, 4 * 16 + 2 * 15));
    }
}
