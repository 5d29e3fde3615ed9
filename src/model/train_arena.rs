//! The activations of a training pass: what a backward pass needs of the forward one, sized once.

use super::Batch;
use super::arena::rope_table;
use crate::backend::{AnnealedDraw, Backend, Backward, Inputs, WorkSize};
use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};

/// How much a [`TrainArena`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainSize {
    /// Most tokens of a pass, all sequences together.
    pub tokens: usize,
    /// Most rows that are scored.
    pub rows: usize,
    /// Longest sequence.
    pub length: usize,
    /// Keep each layer's input only, and compute its inside again on the way back (Chen et al., "Training deep nets
    /// with sublinear memory cost", 2016).
    pub checkpoint: bool,
    /// Rank of adapters; 0 for none.
    pub rank: usize,
}

/// What goes through a training pass: sequences with the rows that are scored, what each should have said, and
/// how much it counts.
#[derive(Clone, Debug, Default)]
pub struct TrainBatch {
    pub batch: Batch,
    /// The token that each wanted row predicts `[R]`.
    pub targets: Vec<u32>,
    /// Factor on each row's loss `[R]`.
    pub weights: Vec<f32>,
}

impl TrainBatch {
    pub fn clear(&mut self) {
        self.batch.clear();
        self.targets.clear();
        self.weights.clear();
    }
}

/// What a layer keeps for its backward pass.
pub(super) struct Kept<B: Backend> {
    /// q | k | v after rotation `[T, (H + 2 KV) D]`.
    pub qkv: B::Buffer,
    /// `[T, H D]`.
    pub attended: B::Buffer,
    /// `[T, H]`.
    pub log_sum: B::Buffer,
    /// Residual stream between attention and MLP `[T, C]`.
    pub middle: B::Buffer,
    /// Inside of the MLP before the activation `[T, F]`, or gate | up `[T, 2 F]`.
    pub inner: B::Buffer,
}

/// Every buffer of a training pass. Allocated once; a pass allocates nothing that grows with it.
pub struct TrainArena<B: Backward> {
    pub(super) size: TrainSize,
    pub(super) inputs: Inputs<B>,
    /// Residual stream before each layer and after the last, `[T, C]` each.
    pub(super) streams: Vec<B::Buffer>,
    /// One a layer; one for all where layers are computed again.
    pub(super) kept: Vec<Kept<B>>,
    /// `[T, C]`.
    pub(super) normed: B::Buffer,
    /// `[T, F]`.
    pub(super) active: B::Buffer,
    /// Gradient of the residual stream `[T, C]`.
    pub(super) dx: B::Buffer,
    /// Gradient of normalised rows `[T, C]`.
    pub(super) d_normed: B::Buffer,
    /// `[T, H D]`.
    pub(super) d_attended: B::Buffer,
    pub(super) d_qkv: B::Buffer,
    /// `[T, F]`.
    pub(super) d_active: B::Buffer,
    /// Gated MLPs: `[T, 2 F]`.
    pub(super) d_gated: Option<B::Buffer>,
    /// `[T, rank]`, twice.
    pub(super) low: Option<[B::Buffer; 2]>,
    /// `[R, C]` each: rows that are scored, normalised, and the gradients of both.
    pub(super) picked: B::Buffer,
    pub(super) hidden: B::Buffer,
    pub(super) d_hidden: B::Buffer,
    pub(super) d_picked: B::Buffer,
    /// Logits, then their gradients, of a chunk of rows: `[head_rows, V]`, rows `logits_stride` apart.
    pub(super) logits: B::Buffer,
    pub(super) head_rows: usize,
    pub(super) logits_stride: usize,
    /// Where the gradient of each scored row goes `[R]`: its own row; nowhere for rows that only fill up.
    pub(super) scattered: B::Index,
    pub(super) targets: B::Index,
    pub(super) weights: B::Floats,
    pub(super) nll: B::Floats,
    pub(super) rope: Option<B::Buffer>,
    /// The bits of annealed attention, made by the machine; lent to a pass while it runs.
    pub(super) drawn: Option<B::Mask>,
    pub(super) work: B::Workspace,
    /// What is written to `wanted`, `scattered`, `targets` and `weights`.
    pub(super) staged: Staged,
}

/// Rows on their way to the machine.
#[derive(Default)]
pub(super) struct Staged {
    pub(super) rows: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

/// Rows of logits that are formed at a time.
fn head_rows(vocab: usize, rows: usize, [logits, most]: [usize; 2]) -> usize {
    (logits / vocab.max(1)).clamp(8, most.max(8)).min(rows.max(1))
}

impl TrainSize {
    /// Bytes of a [`TrainArena`] of this size: `[activations, logits]`. The logits are bounded whatever batch, length
    /// and vocabulary are (for vocabularies below half a million).
    pub fn bytes<B: Backward>(self, backend: &B, config: &ModelConfig) -> [u128; 2] {
        let (t, r) = (self.tokens.max(1) as u128, self.rows.max(1) as u128);
        let [number, exact] = backend.number_bytes().map(|bytes| bytes as u128);
        let layers = if self.checkpoint { 1 } else { config.layers as u128 };
        let (c, f) = (config.width as u128, config.mlp_width as u128);
        let (q, qkv) = (config.query_width() as u128, config.qkv_width() as u128);
        let gated = config.family == Family::Llama;
        let inner = if gated { 2 * f } else { f };
        let kept = qkv + q + c + inner;
        let work = 3 * c + 2 * f + q + qkv + if gated { 2 * f } else { 0 } + 2 * self.rank as u128;
        let rope = if config.rope.is_some() { (self.length * config.head_dim) as u128 } else { 0 };
        let body = t * ((config.layers as u128 + 1) * c + layers * kept + work) + 4 * r * c;
        let sums = layers * t * config.heads as u128 + rope;
        // Ids, positions and places of tokens; numbers, places, targets, weights and losses of rows.
        let indices = 4 * (6 * t + 5 * r);
        let mask = (self.length * self.length.div_ceil(32) * 4) as u128;
        let workspace = backend.workspace_bytes(self.workspace(config));
        let vocab = config.vocab_size;
        let logits = head_rows(vocab, self.rows, backend.logits_at_once()) as u128;
        let stride = backend.logits_stride(vocab) as u128;
        [body * number + sums * exact + indices + mask + workspace, logits * stride * number]
    }

    fn workspace(self, config: &ModelConfig) -> WorkSize {
        let columns = config.qkv_width().max(config.mlp_width).max(2 * config.width);
        WorkSize { rows: self.tokens.max(1), columns, heads: config.heads }
    }
}

impl<B: Backward> TrainArena<B> {
    /// Buffers for passes of at most `size` on networks shaped like `config`.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit, [`Error::Request`] when a sequence exceeds the model's positions.
    pub fn new(backend: &B, config: &ModelConfig, size: TrainSize) -> Result<Self> {
        if size.length > config.max_positions {
            return Err(Error::Request(format!(
                "--length {}: expected at most {}, the positions of the model",
                size.length, config.max_positions
            )));
        }
        let size = TrainSize {
            tokens: size.tokens.max(1),
            rows: size.rows.clamp(1, size.tokens.max(1)),
            length: size.length.max(1),
            ..size
        };
        let (t, r, c, f) = (size.tokens, size.rows, config.width, config.mlp_width);
        let alloc = |rows: usize, width: usize| {
            let len = rows.checked_mul(width).ok_or_else(|| Error::Memory {
                what: "the activations of training".into(),
                needed: size.bytes(backend, config)[0],
                limit: "more than can be addressed".into(),
                hint: "lower --batch or --length".into(),
            })?;
            backend.alloc(len)
        };
        let gated = config.family == Family::Llama;
        let layers = if size.checkpoint { config.layers.min(1) } else { config.layers };
        let kept = || {
            Ok(Kept {
                qkv: alloc(t, config.qkv_width())?,
                attended: alloc(t, config.query_width())?,
                log_sum: backend.alloc_logits(t.saturating_mul(config.heads))?,
                middle: alloc(t, c)?,
                inner: alloc(t, if gated { 2 * f } else { f })?,
            })
        };
        let head_rows = head_rows(config.vocab_size, r, backend.logits_at_once());
        let logits_stride = backend.logits_stride(config.vocab_size);
        Ok(Self {
            size,
            inputs: Inputs {
                ids: backend.alloc_index(t)?,
                positions: backend.alloc_index(t)?,
                segments: backend.alloc_segments(t)?,
                wanted: backend.alloc_index(r)?,
                wanted_positions: backend.alloc_index(1)?,
                wanted_segments: backend.alloc_segments(1)?,
                cache_rows: backend.alloc_index(1)?,
            },
            streams: (0..=config.layers).map(|_| alloc(t, c)).collect::<Result<_>>()?,
            kept: (0..layers).map(|_| kept()).collect::<Result<_>>()?,
            normed: alloc(t, c)?,
            active: alloc(t, f)?,
            dx: alloc(t, c)?,
            d_normed: alloc(t, c)?,
            d_attended: alloc(t, config.query_width())?,
            d_qkv: alloc(t, config.qkv_width())?,
            d_active: alloc(t, f)?,
            d_gated: if gated { Some(alloc(t, 2 * f)?) } else { None },
            low: if size.rank > 0 { Some([alloc(t, size.rank)?, alloc(t, size.rank)?]) } else { None },
            picked: alloc(r, c)?,
            hidden: alloc(r, c)?,
            d_hidden: alloc(r, c)?,
            d_picked: alloc(r, c)?,
            logits: alloc(head_rows, logits_stride)?,
            head_rows,
            logits_stride,
            scattered: backend.alloc_index(r)?,
            targets: backend.alloc_index(r)?,
            weights: backend.alloc_floats(r)?,
            nll: backend.alloc_floats(r)?,
            rope: match &config.rope {
                Some(rope) => {
                    Some(backend.upload(&rope_table::<B::Elem>(rope, config.head_dim, size.length))?)
                }
                None => None,
            },
            drawn: Some(backend.annealed_mask(size.length)?),
            work: backend.workspace(size.workspace(config))?,
            staged: Staged::default(),
        })
    }

    /// Draws the bits that [`PassMask::Drawn`](super::PassMask) stands for from here on.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn draw_mask(&mut self, backend: &B, seed: u64, pass: u32, ratio: f32) -> Result<()> {
        let length = self.size.length;
        match &mut self.drawn {
            Some(mask) => backend.draw_annealed(mask, AnnealedDraw { seed, pass, ratio, length }),
            None => Ok(()),
        }
    }

    /// The negative log-likelihoods of the last pass `[R]`.
    pub fn losses(&self) -> &B::Floats {
        &self.nll
    }

    /// What the arena was made for.
    pub fn size(&self) -> TrainSize {
        self.size
    }

    /// The batch fits, and says something about every row.
    pub(super) fn admit(&self, batch: &TrainBatch) -> Result<()> {
        let check = |what, expected: usize, got: usize| {
            if got > expected { Err(Error::Shape { op: "train", what, expected, got }) } else { Ok(()) }
        };
        let rows = batch.batch.rows();
        check("tokens in the batch, at most", self.size.tokens, batch.batch.tokens())?;
        check("scored rows in the batch, at most", self.size.rows, rows)?;
        let longest = batch.batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        check("positions of a sequence, at most", self.size.length, longest)?;
        for (what, got) in [("targets", batch.targets.len()), ("weights", batch.weights.len())] {
            if got != rows {
                return Err(Error::Shape { op: "train", what, expected: rows, got });
            }
        }
        Ok(())
    }
}
