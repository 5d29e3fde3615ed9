//! What only training asks of a card: the second half of the list in `tools/gpu/sizes.py`.

use super::grid::Case;
use crate::backend::cuda::{LOGITS_AT_ONCE, logits_stride};
use crate::backend::{Layout, MomentFormat};
use crate::config::NormKind;
use crate::element::Dtype;

/// Rows of logits at a time, as in a training pass: the vocabularies here are too small for the other limit.
pub(super) const CHUNK: usize = LOGITS_AT_ONCE[1];

/// A launch, or several that belong together, and their sizes. Gradients of weights are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// Bidirectional, of `batch` sequences of one length, q | k | v in one buffer, as are their gradients.
    Attention { batch: usize, heads: usize, length: usize, head_dim: usize },
    /// The head, the loss and the gradients of hidden rows and of the head's weight, for the `masked` rows of a step's `rows`,
    /// gathered beforehand: at most 4096 rows of logits at a time.
    MaskedLoss { rows: usize, masked: usize, width: usize, vocab: usize },
    /// Of a linear layer's weight.
    Weight { rows: usize, inputs: usize, outputs: usize, layout: Layout },
    /// Of the input, the weight and the bias.
    Norm { kind: NormKind, rows: usize, width: usize },
    /// A step on parameters in the case's format with a master copy and gradients in f32.
    AdamW { count: usize, moments: MomentFormat },
}

impl Training {
    pub(super) fn stem(self) -> &'static str {
        match self {
            Training::Attention { .. } => "attention_bwd",
            Training::MaskedLoss { .. } => "head",
            Training::Weight { .. } => "matmul",
            Training::Norm { .. } => "norm",
            Training::AdamW { .. } => "optim",
        }
    }

    /// Without format, tile and variant.
    pub(super) fn kernel(self) -> &'static str {
        match self {
            Training::Attention { .. } => "attention_bwd",
            Training::MaskedLoss { .. } => "head_gradient",
            Training::Weight { .. } => "matmul_tn",
            Training::Norm { kind: NormKind::LayerNorm, .. } => "norm_layer_backward",
            Training::Norm { kind: NormKind::RmsNorm, .. } => "norm_rms_backward",
            Training::AdamW { .. } => "optim_adamw",
        }
    }

    pub(super) fn shape(self) -> String {
        match self {
            Training::Attention { batch, heads, length, head_dim } => {
                format!("batch {batch}, heads {heads}, length {length}, width {head_dim}")
            }
            Training::MaskedLoss { rows, masked, width, vocab } => {
                format!("masked loss, {masked} of {rows} rows, width {width}, vocab {vocab}")
            }
            Training::Weight { rows, inputs, outputs, layout } => {
                let layout = if layout == Layout::OutIn { "[out, in]" } else { "[in, out]" };
                format!("weight gradient, rows {rows}, {inputs} to {outputs}, weight {layout}")
            }
            Training::Norm { kind, rows, width } => {
                let name = if kind == NormKind::LayerNorm { "LayerNorm" } else { "RMSNorm" };
                format!("gradients of {name}, rows {rows}, width {width}")
            }
            Training::AdamW { count, moments } => {
                format!("AdamW, {count} numbers, moments {moments}")
            }
        }
    }

    /// Bytes that must be read or written, each once; what is added to is both. Of the loss without its logits.
    pub(super) fn bytes(self, size: usize) -> usize {
        match self {
            // q, k, v, out and the gradients of all four; the logarithms of the softmaxes' sums.
            Training::Attention { batch, heads, length, head_dim } => {
                batch * length * heads * (8 * head_dim * size + 4)
            }
            Training::MaskedLoss { masked, width, vocab, .. } => {
                masked * (2 * width * size + 12) + width * vocab * (size + 8)
            }
            Training::Weight { rows, inputs, outputs, .. } => {
                rows * (inputs + outputs) * size + 8 * inputs * outputs
            }
            Training::Norm { kind, rows, width } => {
                let vectors = if kind == NormKind::LayerNorm { 2 } else { 1 };
                width * (4 * rows * size + size + 8 * vectors)
            }
            Training::AdamW { count, moments } => count * (size + 8 + 4) + 4 * moments.bytes(count),
        }
    }

    /// Floating-point operations of products and attention.
    pub(super) fn flops(self) -> u64 {
        match self {
            // Five products where the forward has two.
            Training::Attention { batch, heads, length, head_dim } => {
                10 * (batch * heads * head_dim) as u64 * (length * length) as u64
            }
            Training::MaskedLoss { masked, width, vocab, .. } => 6 * masked as u64 * (width * vocab) as u64,
            Training::Weight { rows, inputs, outputs, .. } => 2 * rows as u64 * (inputs * outputs) as u64,
            Training::Norm { .. } | Training::AdamW { .. } => 0,
        }
    }

    /// Bytes of what is neither input nor output.
    pub(super) fn workspace(self, size: usize) -> usize {
        match self {
            Training::Attention { batch, heads, length, .. } => batch * length * heads * 4,
            Training::MaskedLoss { masked, vocab, .. } => {
                masked.min(CHUNK) * logits_stride(vocab) * size + 4 * masked
            }
            _ => 0,
        }
    }
}

const BF16: Dtype = Dtype::Bf16;

fn case(work: Training) -> Case {
    Case { work: super::Work::Training(work), dtype: BF16 }
}

const MOMENTS: [MomentFormat; 3] = [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Q8];

/// Steps of 16,384 tokens of DiffuGPT-S, DiffuGPT-M and DiffuLLaMA.
pub(super) fn large() -> Vec<Case> {
    const ROWS: usize = 16_384;
    let mut all = Vec::new();
    let mut add = |work| all.push(case(work));
    for (heads, head_dim) in [(12, 64), (32, 128)] {
        for length in [512, 1024, 2048] {
            add(Training::Attention { batch: ROWS / length, heads, length, head_dim });
        }
    }
    for (width, vocab) in [(768, 50_257), (4096, 32_000)] {
        for percent in [15, 50, 100] {
            add(Training::MaskedLoss { rows: ROWS, masked: (ROWS * percent + 50) / 100, width, vocab });
        }
    }
    for width in [768, 1024] {
        for (inputs, outputs) in [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        {
            add(Training::Weight { rows: ROWS, inputs, outputs, layout: Layout::InOut });
        }
    }
    for (kind, width) in [(NormKind::LayerNorm, 768), (NormKind::LayerNorm, 1024), (NormKind::RmsNorm, 4096)]
    {
        add(Training::Norm { kind, rows: ROWS, width });
    }
    for moments in MOMENTS {
        add(Training::AdamW { count: 124_000_000, moments });
    }
    all
}

pub(super) fn small() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |work| all.push(case(work));
    add(Training::Attention { batch: 2, heads: 2, length: 24, head_dim: 64 });
    add(Training::Attention { batch: 1, heads: 1, length: 24, head_dim: 128 });
    add(Training::MaskedLoss { rows: 9, masked: 5, width: 64, vocab: 101 });
    add(Training::Weight { rows: 24, inputs: 64, outputs: 96, layout: Layout::InOut });
    add(Training::Weight { rows: 8, inputs: 64, outputs: 101, layout: Layout::OutIn });
    add(Training::Norm { kind: NormKind::LayerNorm, rows: 5, width: 96 });
    add(Training::Norm { kind: NormKind::RmsNorm, rows: 5, width: 96 });
    for moments in MOMENTS {
        add(Training::AdamW { count: 1000, moments });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::MOMENT_BLOCK;

    #[test]
    fn bytes_operations_and_workspace_are_counted() {
        let attention = Training::Attention { batch: 2, heads: 3, length: 5, head_dim: 7 };
        // Five products of 5 x 7 x 5 a head; eight arrays of 210 numbers, 30 logarithms.
        assert_eq!((attention.bytes(2), attention.flops()), (8 * 210 * 2 + 120, 5 * 2 * (2 * 3 * 5 * 7 * 5)));
        assert_eq!(attention.workspace(2), 120);
        let loss = Training::MaskedLoss { rows: 9, masked: 5, width: 7, vocab: 101 };
        // Hidden rows and their gradients, targets, weights and losses; the weight, and its gradient twice.
        assert_eq!((loss.bytes(2), loss.flops()), (140 + 60 + 707 * 10, 3 * 2 * 5 * 7 * 101));
        assert_eq!(loss.workspace(2), 5 * 128 * 2 + 20);
        let full = Training::MaskedLoss { rows: 16_384, masked: 16_384, width: 768, vocab: 50_257 };
        assert_eq!(full.workspace(2), 4096 * 50_304 * 2 + 4 * 16_384);
        let weight = Training::Weight { rows: 2, inputs: 3, outputs: 5, layout: Layout::InOut };
        assert_eq!((weight.bytes(2), weight.flops()), (2 * 8 * 2 + 8 * 15, 2 * 2 * 15));
        let norm = Training::Norm { kind: NormKind::LayerNorm, rows: 2, width: 8 };
        assert_eq!((norm.bytes(2), norm.flops(), norm.workspace(2)), (4 * 16 * 2 + 16 + 2 * 64, 0, 0));
        // Parameter written; master copy, moments and their scales read and written; gradient read.
        let step = |moments| Training::AdamW { count: 2 * MOMENT_BLOCK, moments }.bytes(2);
        assert_eq!(step(MomentFormat::F32), 512 * (2 + 8 + 4 + 16));
        assert_eq!(step(MomentFormat::Q8), 512 * (2 + 8 + 4 + 4) + 4 * 8);
    }
}
