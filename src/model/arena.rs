//! The activations of a forward pass: a fixed set of buffers, sized once ([`Arena`]), and the
//! description of what goes through them ([`Batch`]).

use crate::backend::{Backend, Inputs, Segment};
use crate::config::{Family, ModelConfig, Rope};
use crate::element::Element;
use crate::error::{Error, Result};

/// How much an [`Arena`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaSize {
    /// Most tokens in one forward pass, all sequences together.
    pub tokens: usize,
    /// Most rows that leave the last layer in one pass.
    pub rows: usize,
}

impl ArenaSize {
    /// Bytes of an [`Arena`] of this size for sequences of at most `max_len` positions, without making it: activations with
    /// their indices, and the head's logits. An activation and a logit have `number_bytes`.
    pub fn bytes(self, config: &ModelConfig, max_len: usize, number_bytes: [usize; 2]) -> [u128; 2] {
        let (t, r) = (self.tokens.max(1) as u128, self.rows.clamp(1, self.tokens.max(1)) as u128);
        let [number, logit] = number_bytes.map(|bytes| bytes as u128);
        let gated = if config.family == Family::Llama { 3 } else { 1 };
        let per_token =
            2 * config.width + config.qkv_width() + config.query_width() + gated * config.mlp_width;
        let per_row = 2 * config.width + config.query_width();
        let numbers = t * per_token as u128 + r * per_row as u128;
        // Angles are as exact as logits.
        let rope = if config.rope.is_some() { (max_len * config.head_dim) as u128 * logit } else { 0 };
        // ids, positions, cache rows; wanted rows and positions; two places of a sequence, which may be one token long.
        let indices = 4 * (3 * t + 2 * r + 8 * t);
        let head = head_rows(config.vocab_size, r as usize) as u128 * config.vocab_size as u128 * logit;
        [numbers * number + rope + indices, head]
    }
}

/// Tokens of several sequences, packed one behind the other, and the rows whose outputs are
/// wanted. Reused from step to step without allocating.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) ids: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    /// Row numbers (into `ids`) whose outputs are wanted, ascending.
    pub(super) wanted: Vec<u32>,
    pub(super) wanted_positions: Vec<u32>,
    pub(super) wanted_segments: Vec<Segment>,
    /// For each token its row in the KV cache, when there is one.
    pub(super) cache_rows: Vec<u32>,
}

impl Batch {
    /// An empty batch with room for `size`.
    pub fn with_capacity(size: ArenaSize, sequences: usize) -> Self {
        Self {
            ids: Vec::with_capacity(size.tokens),
            positions: Vec::with_capacity(size.tokens),
            segments: Vec::with_capacity(sequences),
            wanted: Vec::with_capacity(size.rows),
            wanted_positions: Vec::with_capacity(size.rows),
            wanted_segments: Vec::with_capacity(sequences),
            cache_rows: Vec::with_capacity(size.tokens),
        }
    }

    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.segments.clear();
        self.wanted.clear();
        self.wanted_positions.clear();
        self.wanted_segments.clear();
        self.cache_rows.clear();
    }

    /// Adds a whole sequence. `wanted` are the rows (within the sequence, ascending) whose outputs
    /// are needed.
    pub fn push(&mut self, ids: &[u32], wanted: impl IntoIterator<Item = u32>) {
        self.push_at(ids, 0, wanted, None);
    }

    /// Adds the tokens at positions `start ..` of a sequence whose position 0 is row `base` of a KV
    /// cache; what comes before `start` is in the cache already.
    pub fn push_cached(
        &mut self,
        ids: &[u32],
        start: usize,
        base: usize,
        wanted: impl IntoIterator<Item = u32>,
    ) {
        self.push_at(ids, start, wanted, Some(base));
    }

    fn push_at(
        &mut self,
        ids: &[u32],
        start: usize,
        wanted: impl IntoIterator<Item = u32>,
        cache: Option<usize>,
    ) {
        let first = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend((start..start + ids.len()).map(|p| p as u32));
        let (k_start, k_len) = match cache {
            None => (first, ids.len()),
            Some(base) => {
                self.cache_rows.extend((base + start..base + start + ids.len()).map(|r| r as u32));
                (base, start + ids.len())
            }
        };
        self.segments.push(Segment { q_start: first, q_len: ids.len(), k_start, k_len });
        let wanted_from = self.wanted.len();
        for row in wanted {
            self.wanted.push(first as u32 + row);
            self.wanted_positions.push(start as u32 + row);
        }
        self.wanted_segments.push(Segment {
            q_start: wanted_from,
            q_len: self.wanted.len() - wanted_from,
            k_start,
            k_len,
        });
    }

    /// Tokens in the batch.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Rows whose outputs are wanted.
    pub fn rows(&self) -> usize {
        self.wanted.len()
    }

    pub fn sequences(&self) -> usize {
        self.segments.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Every buffer that a forward pass writes. Allocated once; a pass allocates nothing.
pub struct Arena<B: Backend> {
    pub(super) size: ArenaSize,
    pub(super) inputs: Inputs<B>,
    /// Residual stream `[T, C]`.
    pub(super) x: B::Buffer,
    /// Normalised rows `[T, C]`.
    pub(super) normed: B::Buffer,
    /// q | k | v `[T, (H + 2 KV) D]`.
    pub(super) qkv: B::Buffer,
    /// Attention output `[T, H D]`.
    pub(super) attended: B::Buffer,
    /// Inside of the MLP `[T, F]`, or gate | up `[T, 2 F]`.
    pub(super) inner: B::Buffer,
    /// `silu(gate) * up` `[T, F]`; gated MLPs only.
    pub(super) gated: Option<B::Buffer>,
    /// Residual stream of the wanted rows `[R, C]`.
    pub(super) picked: B::Buffer,
    /// Normalised wanted rows `[R, C]`, before the last block and after the last norm.
    pub(super) hidden: B::Buffer,
    /// Queries of the wanted rows `[R, H D]`.
    pub(super) queries: B::Buffer,
    /// Logits of a chunk of hidden rows `[head_rows, V]`.
    pub(super) logits: B::Buffer,
    pub(super) head_rows: usize,
    /// cos | sin of every position `[P, D]`; rotary models only.
    pub(super) rope: Option<B::Buffer>,
    pub(super) rope_positions: usize,
}

/// Numbers of logits formed at once; bounds the head's workspace whatever the vocabulary.
const LOGITS_AT_ONCE: usize = 4 << 20;

/// Rows of logits formed at once for a vocabulary of `vocab`.
pub(super) fn head_rows(vocab: usize, rows: usize) -> usize {
    (LOGITS_AT_ONCE / vocab.max(1)).clamp(8, 512).min(rows.max(1))
}

impl<B: Backend> Arena<B> {
    /// Buffers for passes of at most `size` on networks shaped like `config`, for sequences of at
    /// most `max_len` positions.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit, [`Error::Request`] when `max_len` exceeds the model's positions.
    pub fn new(backend: &B, config: &ModelConfig, size: ArenaSize, max_len: usize) -> Result<Self> {
        if max_len > config.max_positions {
            return Err(Error::Request(format!(
                "a sequence of {max_len} tokens is too long: the model has {} positions; \
                 shorten the text or lower --length",
                config.max_positions
            )));
        }
        let (t, r) = (size.tokens.max(1), size.rows.clamp(1, size.tokens.max(1)));
        let count = |rows: usize, width: usize| {
            rows.checked_mul(width).ok_or_else(|| Error::Memory {
                what: "the activations".into(),
                needed: rows as u128 * width as u128 * backend.number_bytes()[0] as u128,
                limit: "more than can be addressed".into(),
                hint: "use fewer or shorter sequences at once".into(),
            })
        };
        let alloc = |rows: usize, width: usize| backend.alloc(count(rows, width)?);
        let c = config.width;
        let gated = config.family == Family::Llama;
        let head_rows = head_rows(config.vocab_size, r);
        let rope = match &config.rope {
            Some(rope) => Some(backend.upload(&rope_table::<B::Elem>(rope, config.head_dim, max_len))?),
            None => None,
        };
        Ok(Self {
            size: ArenaSize { tokens: t, rows: r },
            inputs: Inputs {
                ids: backend.alloc_index(t)?,
                positions: backend.alloc_index(t)?,
                segments: backend.alloc_segments(t)?,
                wanted: backend.alloc_index(r)?,
                wanted_positions: backend.alloc_index(r)?,
                wanted_segments: backend.alloc_segments(t)?,
                cache_rows: backend.alloc_index(t)?,
            },
            x: alloc(t, c)?,
            normed: alloc(t, c)?,
            qkv: alloc(t, config.qkv_width())?,
            attended: alloc(t, config.query_width())?,
            inner: alloc(t, if gated { 2 * config.mlp_width } else { config.mlp_width })?,
            gated: if gated { Some(alloc(t, config.mlp_width)?) } else { None },
            picked: alloc(r, c)?,
            hidden: alloc(r, c)?,
            queries: alloc(r, config.query_width())?,
            logits: backend.alloc_logits(count(head_rows, config.vocab_size)?)?,
            head_rows,
            rope,
            rope_positions: max_len,
        })
    }

    /// What the arena was made for.
    pub fn size(&self) -> ArenaSize {
        self.size
    }

    /// What a forward pass reads.
    pub fn inputs(&mut self) -> &mut Inputs<B> {
        &mut self.inputs
    }

    pub(super) fn admit(&self, batch: &Batch) -> Result<()> {
        let check = |what, expected: usize, got: usize| {
            if got > expected { Err(Error::Shape { op: "forward", what, expected, got }) } else { Ok(()) }
        };
        check("tokens in the batch, at most", self.size.tokens, batch.tokens())?;
        check("wanted rows in the batch, at most", self.size.rows, batch.rows())?;
        if self.rope.is_some() {
            let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
            check("positions of a sequence, at most", self.rope_positions, longest)?;
        }
        Ok(())
    }
}

/// cos | sin of the angle of every rotary pair at every position, `[positions, head_dim]`.
pub(super) fn rope_table<E: Element>(rope: &Rope, head_dim: usize, positions: usize) -> Vec<E> {
    let frequencies = rope.frequencies(head_dim);
    let mut table = Vec::with_capacity(positions * head_dim);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| E::from_f64((p as f64 * f).cos())));
        table.extend(frequencies.iter().map(|f| E::from_f64((p as f64 * f).sin())));
    }
    table
}
