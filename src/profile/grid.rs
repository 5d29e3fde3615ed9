//! What is measured: launches and sizes. `tools/gpu/sizes.py` has the same list for PyTorch, and `tests/gpu_check.rs`
//! compares the two.

use super::training::{self, Training};
use crate::backend::Layout;
use crate::config::NormKind;
use crate::element::Dtype;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Greedy,
    Sampled,
    /// Top-p of 0.9.
    TopP,
    /// Top-k of 40.
    TopK,
}

impl Rule {
    /// Temperature, top-p and top-k.
    pub(super) const fn numbers(self) -> (f32, f32, u32) {
        match self {
            Rule::Greedy => (0.0, 1.0, 0),
            Rule::Sampled => (1.0, 1.0, 0),
            Rule::TopP => (1.0, 0.9, 0),
            Rule::TopK => (1.0, 1.0, 40),
        }
    }
}

/// A launch and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// None: what the clock costs.
    Events,
    /// Bidirectional, of `batch` sequences of one length, q | k | v in one buffer.
    Attention {
        batch: usize,
        heads: usize,
        length: usize,
        head_dim: usize,
    },
    Linear {
        rows: usize,
        inputs: usize,
        outputs: usize,
        layout: Layout,
    },
    Norm {
        kind: NormKind,
        rows: usize,
        width: usize,
        residual: bool,
    },
    /// Splits and rotates q | k | v.
    Rope {
        rows: usize,
        heads: usize,
        head_dim: usize,
    },
    Swiglu {
        rows: usize,
        width: usize,
    },
    Gelu {
        rows: usize,
        width: usize,
    },
    Embed {
        rows: usize,
        width: usize,
        vocab: usize,
        positions: bool,
    },
    Unmask {
        rule: Rule,
        rows: usize,
        vocab: usize,
    },
    CrossEntropy {
        rows: usize,
        vocab: usize,
    },
    /// From the case's format.
    Cast {
        to: Dtype,
        count: usize,
    },
    /// What only training asks for.
    Training(Training),
}

/// Rows of the tables of positions and angles.
pub(super) const POSITIONS: usize = 2048;

/// A launch in a format of activations (of logits, where it reads those).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub work: Work,
    pub dtype: Dtype,
}

impl Case {
    /// The kernel file.
    pub fn stem(&self) -> &'static str {
        match self.work {
            Work::Events => "events",
            Work::Attention { .. } => "attention",
            Work::Linear { .. } => "matmul",
            Work::Norm { .. } => "norm",
            Work::Rope { .. } => "rope",
            Work::Swiglu { .. } | Work::Gelu { .. } => "activation",
            Work::Embed { .. } => "embedding",
            Work::Unmask { .. } => "unmask",
            Work::CrossEntropy { .. } => "head",
            Work::Cast { .. } => "cast",
            Work::Training(work) => work.stem(),
        }
    }

    /// The kernel, without the tile or variant that the launch chooses.
    pub fn kernel(&self) -> String {
        let name = match self.work {
            Work::Events => return "none".into(),
            Work::Cast { to, .. } => return format!("cast_{}_to_{to}", self.dtype),
            Work::Attention { .. } => "attention_fwd",
            Work::Linear { .. } => "matmul",
            Work::Norm { kind: NormKind::LayerNorm, .. } => "norm_layer",
            Work::Norm { kind: NormKind::RmsNorm, .. } => "norm_rms",
            Work::Rope { .. } => "rope_qkv",
            Work::Swiglu { .. } => "activation_swiglu",
            Work::Gelu { .. } => "activation_gelu_tanh",
            Work::Embed { .. } => "embedding_embed",
            Work::Unmask { .. } => "unmask",
            Work::CrossEntropy { .. } => "head_nll",
            Work::Training(work) => work.kernel(),
        };
        format!("{name}_{}", self.dtype)
    }

    /// The sizes in words: what PyTorch's times are matched by.
    pub fn shape(&self) -> String {
        match self.work {
            Work::Events => "two events, nothing between".into(),
            Work::Attention { batch, heads, length, head_dim } => {
                format!("batch {batch}, heads {heads}, length {length}, width {head_dim}")
            }
            Work::Linear { rows, inputs, outputs, layout } => {
                let layout = if layout == Layout::OutIn { "[out, in]" } else { "[in, out]" };
                format!("rows {rows}, {inputs} to {outputs}, weight {layout}")
            }
            Work::Norm { kind, rows, width, residual } => {
                let name = if kind == NormKind::LayerNorm { "LayerNorm" } else { "RMSNorm" };
                let residual = if residual { " with residual" } else { "" };
                format!("{name}{residual}, rows {rows}, width {width}")
            }
            Work::Rope { rows, heads, head_dim } => format!("rows {rows}, heads {heads}, width {head_dim}"),
            Work::Swiglu { rows, width } => format!("SwiGLU, rows {rows}, width {width}"),
            Work::Gelu { rows, width } => format!("GELU, rows {rows}, width {width}"),
            Work::Embed { rows, width, vocab, positions } => {
                let positions = if positions { ", with positions" } else { "" };
                format!("rows {rows}, width {width}, vocab {vocab}{positions}")
            }
            Work::Unmask { rule, rows, vocab } => {
                let rule = match rule {
                    Rule::Greedy => "greedy",
                    Rule::Sampled => "sampled",
                    Rule::TopP => "top-p 0.9",
                    Rule::TopK => "top-k 40",
                };
                format!("{rule}, rows {rows}, vocab {vocab}")
            }
            Work::CrossEntropy { rows, vocab } => format!("rows {rows}, vocab {vocab}"),
            Work::Cast { to, count } => format!("to {to}, {count} numbers"),
            Work::Training(work) => work.shape(),
        }
    }

    /// Bytes that must be read or written, each once.
    pub fn bytes(&self) -> u64 {
        let size = self.dtype.size();
        let bytes = match self.work {
            Work::Events => 0,
            Work::Attention { batch, heads, length, head_dim } => {
                4 * batch * length * heads * head_dim * size
            }
            Work::Linear { rows, inputs, outputs, .. } => {
                (rows * inputs + inputs * outputs + rows * outputs) * size
            }
            Work::Norm { kind, rows, width, residual } => {
                let vectors = if kind == NormKind::LayerNorm { 2 } else { 1 };
                (if residual { 4 } else { 2 } * rows + vectors) * width * size
            }
            Work::Rope { rows, heads, head_dim } => {
                6 * rows * heads * head_dim * size + 4 * rows + 4 * POSITIONS.min(rows) * head_dim
            }
            Work::Swiglu { rows, width } => 3 * rows * width * size,
            Work::Gelu { rows, width } => 2 * rows * width * size,
            Work::Embed { rows, width, positions, .. } => {
                let tables = if positions { 2 } else { 1 };
                (1 + tables) * rows * width * size + 4 * tables * rows
            }
            Work::Unmask { rows, vocab, .. } => rows * (vocab * size + 48 + 20),
            Work::CrossEntropy { rows, vocab } => rows * (vocab * size + 8),
            Work::Cast { to, count } => count * (size + to.size()),
            Work::Training(work) => work.bytes(size),
        };
        bytes as u64
    }

    /// Bytes of what is neither input nor output, where a launch of training needs a buffer for that.
    pub fn workspace(&self) -> u64 {
        match self.work {
            Work::Training(work) => work.workspace(self.dtype.size()) as u64,
            _ => 0,
        }
    }

    /// Floating-point operations of products and attention.
    pub fn flops(&self) -> u64 {
        match self.work {
            Work::Attention { batch, heads, length, head_dim } => {
                4 * (batch * heads * head_dim) as u64 * (length * length) as u64
            }
            Work::Linear { rows, inputs, outputs, .. } => 2 * rows as u64 * (inputs * outputs) as u64,
            Work::Training(work) => work.flops(),
            _ => 0,
        }
    }

    /// What the work is part of: `inference` (and of training too), or `training` alone.
    pub fn group(&self) -> &'static str {
        if matches!(self.work, Work::Training(_)) { "training" } else { "inference" }
    }

    /// Whether `text` is the case's group, or occurs in the kernel file, the kernel or the sizes.
    pub fn matches(&self, text: &str) -> bool {
        self.group() == text
            || self.stem().contains(text)
            || self.kernel().contains(text)
            || self.shape().contains(text)
    }
}

/// All cases, those of inference first; with `quick` small ones that the SIMT machine runs in a second.
pub fn cases(quick: bool) -> Vec<Case> {
    let all = if quick { small() } else { large() };
    let training = if quick { training::small() } else { training::large() };
    all.into_iter().map(|(dtype, work)| Case { work, dtype }).chain(training).collect()
}

const BF16: Dtype = Dtype::Bf16;
const F32: Dtype = Dtype::F32;

/// DiffuGPT-S, DiffuGPT-M and DiffuLLaMA.
fn large() -> Vec<(Dtype, Work)> {
    let mut all = vec![(BF16, Work::Events)];
    let mut add = |dtype, work| all.push((dtype, work));
    // 2048 numbers a row, and 16,384 rows together or one sequence.
    for head_dim in [64, 128] {
        for length in [512, 1024, 2048] {
            for batch in [1, 16_384 / length] {
                add(BF16, Work::Attention { batch, heads: 2048 / head_dim, length, head_dim });
            }
        }
    }
    for rows in [1024, 8192] {
        for (width, hidden) in [(768, 3072), (1024, 4096)] {
            for (inputs, outputs) in [(width, 3 * width), (width, width), (width, hidden), (hidden, width)] {
                add(BF16, Work::Linear { rows, inputs, outputs, layout: Layout::InOut });
            }
        }
        for (inputs, outputs) in [(4096, 12_288), (4096, 4096), (4096, 22_016), (11_008, 4096)] {
            add(BF16, Work::Linear { rows, inputs, outputs, layout: Layout::OutIn });
        }
    }
    // The head, on the rows of a step and on all of them.
    for rows in [8, 512] {
        for (inputs, outputs) in [(768, 50_257), (1024, 50_258), (4096, 32_000)] {
            add(BF16, Work::Linear { rows, inputs, outputs, layout: Layout::OutIn });
        }
    }
    for (dtype, rows, vocab) in
        [(F32, 512, 50_257), (F32, 512, 32_000), (BF16, 512, 50_257), (F32, 8, 50_257)]
    {
        for rule in [Rule::TopP, Rule::TopK, Rule::Sampled, Rule::Greedy] {
            add(dtype, Work::Unmask { rule, rows, vocab });
        }
    }
    for rows in [1024, 8192] {
        for (kind, width) in
            [(NormKind::LayerNorm, 768), (NormKind::LayerNorm, 1024), (NormKind::RmsNorm, 4096)]
        {
            for residual in [false, true] {
                add(BF16, Work::Norm { kind, rows, width, residual });
            }
        }
        add(BF16, Work::Rope { rows, heads: 32, head_dim: 128 });
        add(BF16, Work::Swiglu { rows, width: 11_008 });
        add(BF16, Work::Gelu { rows, width: 3072 });
        add(BF16, Work::Embed { rows, width: 768, vocab: 50_257, positions: true });
        add(BF16, Work::Embed { rows, width: 4096, vocab: 32_000, positions: false });
    }
    add(F32, Work::CrossEntropy { rows: 1024, vocab: 50_257 });
    add(BF16, Work::CrossEntropy { rows: 1024, vocab: 32_000 });
    add(F32, Work::Cast { to: BF16, count: 1 << 25 });
    add(BF16, Work::Cast { to: F32, count: 1 << 25 });
    all
}

fn small() -> Vec<(Dtype, Work)> {
    let mut all = vec![(BF16, Work::Events)];
    let mut add = |dtype, work| all.push((dtype, work));
    add(BF16, Work::Attention { batch: 2, heads: 2, length: 24, head_dim: 64 });
    add(BF16, Work::Attention { batch: 1, heads: 1, length: 24, head_dim: 128 });
    add(BF16, Work::Linear { rows: 24, inputs: 64, outputs: 96, layout: Layout::InOut });
    add(BF16, Work::Linear { rows: 8, inputs: 64, outputs: 101, layout: Layout::OutIn });
    for (dtype, rule) in [(F32, Rule::TopP), (F32, Rule::TopK), (BF16, Rule::Sampled), (F32, Rule::Greedy)] {
        add(dtype, Work::Unmask { rule, rows: 3, vocab: 301 });
    }
    add(BF16, Work::Norm { kind: NormKind::LayerNorm, rows: 3, width: 96, residual: false });
    add(BF16, Work::Norm { kind: NormKind::RmsNorm, rows: 3, width: 96, residual: true });
    add(BF16, Work::Rope { rows: 3, heads: 2, head_dim: 64 });
    add(BF16, Work::Swiglu { rows: 3, width: 96 });
    add(BF16, Work::Gelu { rows: 3, width: 96 });
    add(BF16, Work::Embed { rows: 5, width: 96, vocab: 50, positions: true });
    add(BF16, Work::Embed { rows: 5, width: 96, vocab: 50, positions: false });
    add(F32, Work::CrossEntropy { rows: 3, vocab: 301 });
    add(F32, Work::Cast { to: BF16, count: 1000 });
    add(BF16, Work::Cast { to: F32, count: 1000 });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_can_be_told_apart() {
        for quick in [false, true] {
            let names: Vec<_> =
                cases(quick).iter().map(|c| (c.stem(), c.kernel(), c.shape(), c.dtype)).collect();
            for (i, name) in names.iter().enumerate() {
                assert!(!names[..i].contains(name), "{name:?} is there twice");
            }
        }
    }

    #[test]
    fn bytes_and_operations_are_counted() {
        let case = |dtype, work| Case { work, dtype };
        let attention = case(BF16, Work::Attention { batch: 2, heads: 3, length: 5, head_dim: 7 });
        // q, k, v and out: 210 numbers each. Two products of 5 x 7 x 5 a head.
        assert_eq!((attention.bytes(), attention.flops()), (4 * 210 * 2, 2 * 3 * 2 * 2 * 5 * 7 * 5));
        let linear = case(F32, Work::Linear { rows: 2, inputs: 3, outputs: 5, layout: Layout::OutIn });
        assert_eq!((linear.bytes(), linear.flops()), (4 * (6 + 15 + 10), 2 * 30));
        let norm = case(BF16, Work::Norm { kind: NormKind::RmsNorm, rows: 2, width: 8, residual: true });
        // x and the residual in, the residual and the result out, the weight.
        assert_eq!((norm.bytes(), norm.flops()), (2 * (4 * 16 + 8), 0));
        assert_eq!(case(F32, Work::Cast { to: BF16, count: 10 }).bytes(), 60);
        assert_eq!(case(BF16, Work::Unmask { rule: Rule::TopP, rows: 2, vocab: 10 }).bytes(), 2 * (20 + 68));
    }

    #[test]
    fn a_filter_looks_at_file_kernel_and_sizes() {
        let of = |text: &str| cases(true).into_iter().filter(|c| c.matches(text)).count();
        assert_eq!(of(""), cases(true).len());
        assert_eq!(
            (of("attention"), of("norm_rms"), of("vocab 301"), of("nothing of the kind")),
            (4, 2, 5, 0)
        );
        assert_eq!((of("inference"), of("training")), (small().len(), training::small().len()));
    }
}
