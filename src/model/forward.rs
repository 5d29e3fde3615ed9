//! The layer loop, one for both families: packed rows in, normalised hidden rows out.

use super::{Arena, Batch, KvCache, Layer, Linear, Mlp, Model, Norm, Qkv};
use crate::backend::{Epilogue, Forward, HeadShape, Mask, Rows};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::meter;

/// What a forward pass is of: the first tokens and wanted rows of an arena's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    pub tokens: usize,
    pub rows: usize,
    /// The wanted rows are not all rows in order.
    pub some: bool,
}

impl<B: Forward> Model<B> {
    /// One forward pass over `batch`. The normalised hidden states of the wanted rows are left in
    /// the arena, for [`Model::head`]; the last block's queries, attention output and MLP are
    /// computed for those rows only, which changes no bit of them.
    ///
    /// # Errors
    /// [`Error::Request`] for a token id outside the vocabulary or a sequence beyond the model's
    /// positions, [`Error::Shape`] when the batch does not fit the arena.
    pub fn forward(&self, batch: &Batch, arena: &mut Arena<B>, mask: Mask<'_>) -> Result<()> {
        let mask = self.backend.mask(mask)?;
        let pass = self.load_batch(batch, arena)?;
        self.pass(pass, arena, &mask, None)
    }

    /// Like [`Model::forward`] with causal attention to what `cache` holds; the keys and values of
    /// the batch's tokens are added to it. Every sequence was pushed with [`Batch::push_cached`].
    pub fn forward_cached(&self, batch: &Batch, arena: &mut Arena<B>, cache: &mut KvCache<B>) -> Result<()> {
        let mask = self.backend.mask(Mask::Causal)?;
        let pass = self.load_cached(batch, arena)?;
        self.pass(pass, arena, &mask, Some(cache))
    }

    /// Puts a batch with places in a cache into the arena's inputs.
    ///
    /// # Errors
    /// Those of [`forward_cached`](Self::forward_cached).
    pub(crate) fn load_cached(&self, batch: &Batch, arena: &mut Arena<B>) -> Result<Pass> {
        if batch.cache_rows.len() != batch.tokens() {
            return Err(Error::Shape {
                op: "forward_cached",
                what: "tokens with a place in the cache",
                expected: batch.tokens(),
                got: batch.cache_rows.len(),
            });
        }
        self.load_batch(batch, arena)
    }

    /// Puts a batch into the arena's inputs.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    fn load_batch(&self, batch: &Batch, arena: &mut Arena<B>) -> Result<Pass> {
        arena.admit(batch)?;
        self.check_ids(batch)?;
        let (be, inputs) = (&self.backend, &mut arena.inputs);
        let (tokens, rows) = (batch.tokens(), batch.rows());
        let pass = Pass { tokens, rows, some: rows < tokens };
        if pass.tokens == 0 || pass.rows == 0 {
            return Ok(pass);
        }
        be.write_index(&mut inputs.ids, &batch.ids)?;
        be.write_index(&mut inputs.positions, &batch.positions)?;
        be.write_segments(&mut inputs.segments, &batch.segments)?;
        if pass.some {
            be.write_index(&mut inputs.wanted, &batch.wanted)?;
            be.write_index(&mut inputs.wanted_positions, &batch.wanted_positions)?;
            be.write_segments(&mut inputs.wanted_segments, &batch.wanted_segments)?;
        }
        if !batch.cache_rows.is_empty() {
            be.write_index(&mut inputs.cache_rows, &batch.cache_rows)?;
        }
        Ok(pass)
    }

    /// The pass itself: nothing of it looks at the host's memory, so that it can be recorded. Ids and positions of the
    /// inputs are within the model's tables (what lies beyond gives NaN, or an error on the CPU).
    ///
    /// # Errors
    /// [`Error::Shape`] when the pass does not fit the arena.
    pub(crate) fn pass(
        &self,
        pass: Pass,
        arena: &mut Arena<B>,
        mask: &B::Mask,
        mut cache: Option<&mut KvCache<B>>,
    ) -> Result<()> {
        let (config, params, be) = (&self.config, &*self.parameters, &self.backend);
        let Pass { tokens, rows, some } = pass;
        if tokens == 0 || rows == 0 {
            return Ok(());
        }
        for (what, expected, got) in
            [("tokens, at most", arena.size.tokens, tokens), ("wanted rows, at most", arena.size.rows, rows)]
        {
            if got > expected {
                return Err(Error::Shape { op: "forward", what, expected, got });
            }
        }
        let inputs = &arena.inputs;
        let positions = params.positions.as_ref().map(|table| (table, &inputs.positions));
        be.embed(&params.embedding, &inputs.ids, positions, tokens, config.width, &mut arena.x)?;
        for (n, layer) in params.layers.iter().enumerate() {
            let _layer = meter::range("layer", n as u32);
            let kv = cache.as_deref_mut().map(|c| &mut c.layers[n]);
            let last = n + 1 == params.layers.len();
            if last && some {
                self.last_block(layer, pass, arena, mask, kv)?;
            } else {
                self.block(layer, tokens, arena, mask, kv)?;
            }
        }
        let partial = some && !params.layers.is_empty();
        let x = if partial { &arena.picked } else { &arena.x };
        norm(be, config, &params.norm, x, rows, &mut arena.hidden)
    }

    pub(super) fn check_ids(&self, batch: &Batch) -> Result<()> {
        let vocab = self.config.vocab_size;
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!(
                "token id {id} is not in the vocabulary: the model has ids 0 to {}",
                vocab - 1
            )));
        }
        let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        if longest > self.config.max_positions {
            return Err(Error::Request(format!(
                "a sequence of {longest} tokens is too long: the model has {} positions",
                self.config.max_positions
            )));
        }
        Ok(())
    }

    /// A block over all rows of the batch.
    fn block(
        &self,
        layer: &Layer<B>,
        tokens: usize,
        arena: &mut Arena<B>,
        mask: &B::Mask,
        kv: Option<&mut B::Buffer>,
    ) -> Result<()> {
        let (config, be) = (&self.config, &self.backend);
        let at = QkvColumns::of(config);
        norm(be, config, &layer.attention_norm, &arena.x, tokens, &mut arena.normed)?;
        match &layer.qkv {
            Qkv::Fused(all) => {
                project(be, all, 0..config.qkv_width(), &arena.normed, tokens, &mut arena.qkv, at.q)?;
            }
            Qkv::Split { q, k, v } => {
                project(be, q, 0..config.query_width(), &arena.normed, tokens, &mut arena.qkv, at.q)?;
                project(be, k, 0..config.kv_width(), &arena.normed, tokens, &mut arena.qkv, at.k)?;
                project(be, v, 0..config.kv_width(), &arena.normed, tokens, &mut arena.qkv, at.v)?;
            }
        }
        if let Some(table) = &arena.rope {
            let (h, kv_heads, d) = (config.heads, config.kv_heads, config.head_dim);
            // Keys follow queries, so one call turns both.
            be.rope(&mut arena.qkv, at.q, tokens, h + kv_heads, d, &arena.inputs.positions, table)?;
        }
        let shape = head_shape(config);
        let q = (&arena.qkv, at.q);
        attend(
            be,
            shape,
            q,
            &arena.qkv,
            at,
            kv,
            &arena.inputs.cache_rows,
            tokens,
            &arena.inputs.segments,
            &arena.inputs.positions,
            mask,
            &mut arena.attended,
        )?;
        let Arena { attended, normed, inner, gated, x, .. } = arena;
        finish_block(be, config, layer, attended, tokens, normed, inner, gated.as_mut(), x)
    }

    /// The last block: keys and values of all rows, everything else for the wanted rows only.
    fn last_block(
        &self,
        layer: &Layer<B>,
        Pass { tokens, rows, .. }: Pass,
        arena: &mut Arena<B>,
        mask: &B::Mask,
        kv: Option<&mut B::Buffer>,
    ) -> Result<()> {
        let (config, be) = (&self.config, &self.backend);
        let at = QkvColumns::of(config);
        let (q_width, kv_width) = (config.query_width(), config.kv_width());
        let dense = Rows::dense(config.width);
        norm(be, config, &layer.attention_norm, &arena.x, tokens, &mut arena.normed)?;
        be.gather((&arena.normed, dense), &arena.inputs.wanted, rows, config.width, &mut arena.hidden)?;
        let queries = Rows::dense(q_width);
        match &layer.qkv {
            Qkv::Fused(all) => {
                project(be, all, 0..q_width, &arena.hidden, rows, &mut arena.queries, queries)?;
                let kv_columns = q_width..config.qkv_width();
                project(be, all, kv_columns, &arena.normed, tokens, &mut arena.qkv, at.k)?;
            }
            Qkv::Split { q, k, v } => {
                project(be, q, 0..q_width, &arena.hidden, rows, &mut arena.queries, queries)?;
                project(be, k, 0..kv_width, &arena.normed, tokens, &mut arena.qkv, at.k)?;
                project(be, v, 0..kv_width, &arena.normed, tokens, &mut arena.qkv, at.v)?;
            }
        }
        if let Some(table) = &arena.rope {
            let d = config.head_dim;
            be.rope(
                &mut arena.queries,
                queries,
                rows,
                config.heads,
                d,
                &arena.inputs.wanted_positions,
                table,
            )?;
            be.rope(&mut arena.qkv, at.k, tokens, config.kv_heads, d, &arena.inputs.positions, table)?;
        }
        let shape = head_shape(config);
        let q = (&arena.queries, queries);
        attend(
            be,
            shape,
            q,
            &arena.qkv,
            at,
            kv,
            &arena.inputs.cache_rows,
            tokens,
            &arena.inputs.wanted_segments,
            &arena.inputs.wanted_positions,
            mask,
            &mut arena.attended,
        )?;
        be.gather((&arena.x, dense), &arena.inputs.wanted, rows, config.width, &mut arena.picked)?;
        let Arena { attended, normed, inner, gated, picked, .. } = arena;
        finish_block(be, config, layer, attended, rows, normed, inner, gated.as_mut(), picked)
    }
}

/// Where q, k and v stand in a row of the packed q | k | v buffer.
#[derive(Clone, Copy)]
pub(super) struct QkvColumns {
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
}

impl QkvColumns {
    pub fn of(config: &ModelConfig) -> Self {
        let stride = config.qkv_width();
        let k = config.query_width();
        Self {
            q: Rows { at: 0, stride },
            k: Rows { at: k, stride },
            v: Rows { at: k + config.kv_width(), stride },
        }
    }
}

pub(super) fn head_shape(config: &ModelConfig) -> HeadShape {
    HeadShape {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale,
    }
}

pub(super) fn norm<B: Forward>(
    be: &B,
    config: &ModelConfig,
    norm: &Norm<B>,
    x: &B::Buffer,
    rows: usize,
    out: &mut B::Buffer,
) -> Result<()> {
    be.norm(config.norm, x, &norm.weight, norm.bias.as_ref(), config.norm_eps, rows, config.width, out)
}

/// `out = x W + b` for the output columns `outputs`.
fn project<B: Forward>(
    be: &B,
    linear: &Linear<B>,
    outputs: std::ops::Range<usize>,
    x: &B::Buffer,
    rows: usize,
    out: &mut B::Buffer,
    out_rows: Rows,
) -> Result<()> {
    let epilogue = Epilogue { bias: linear.bias.as_ref(), activation: None, accumulate: false };
    be.linear((x, 0), rows, &linear.weight, outputs, epilogue, out, out_rows)
}

/// `residual += x W + b`.
fn residual<B: Forward>(
    be: &B,
    linear: &Linear<B>,
    width: usize,
    x: &B::Buffer,
    rows: usize,
    residual: &mut B::Buffer,
) -> Result<()> {
    let epilogue = Epilogue { bias: linear.bias.as_ref(), activation: None, accumulate: true };
    be.linear((x, 0), rows, &linear.weight, 0..width, epilogue, residual, Rows::dense(width))
}

/// Attention to the keys and values in the batch, or to those in the cache after adding the batch's.
#[allow(clippy::too_many_arguments)]
fn attend<B: Forward>(
    be: &B,
    shape: HeadShape,
    q: (&B::Buffer, Rows),
    qkv: &B::Buffer,
    at: QkvColumns,
    kv: Option<&mut B::Buffer>,
    cache_rows: &B::Index,
    tokens: usize,
    segments: &B::Segments,
    q_pos: &B::Index,
    mask: &B::Mask,
    out: &mut B::Buffer,
) -> Result<()> {
    match kv {
        None => be.attention(q, (qkv, at.k), (qkv, at.v), shape, segments, q_pos, mask, out),
        Some(cache) => {
            let kv_width = shape.kv_heads * shape.head_dim;
            let pair = Rows::dense(2 * kv_width);
            be.scatter((qkv, at.k), cache_rows, tokens, 2 * kv_width, (cache, pair))?;
            let v = Rows { at: kv_width, stride: 2 * kv_width };
            be.attention(q, (cache, pair), (cache, v), shape, segments, q_pos, mask, out)
        }
    }
}

/// What follows the attention, on the residual stream of some rows: the output projection, the norm,
/// the MLP.
#[allow(clippy::too_many_arguments)]
fn finish_block<B: Forward>(
    be: &B,
    config: &ModelConfig,
    layer: &Layer<B>,
    attended: &B::Buffer,
    rows: usize,
    normed: &mut B::Buffer,
    inner: &mut B::Buffer,
    gated: Option<&mut B::Buffer>,
    stream: &mut B::Buffer,
) -> Result<()> {
    residual(be, &layer.out, config.width, attended, rows, stream)?;
    norm(be, config, &layer.mlp_norm, stream, rows, normed)?;
    let (f, x) = (config.mlp_width, &*normed);
    match (&layer.mlp, gated) {
        (Mlp::Gated { gate, up, down }, Some(gated)) => {
            project(be, gate, 0..f, x, rows, inner, Rows { at: 0, stride: 2 * f })?;
            project(be, up, 0..f, x, rows, inner, Rows { at: f, stride: 2 * f })?;
            be.swiglu(inner, rows, f, gated)?;
            residual(be, down, config.width, gated, rows, stream)
        }
        (Mlp::Plain { up, down }, _) => {
            let epilogue =
                Epilogue { bias: up.bias.as_ref(), activation: Some(config.activation), accumulate: false };
            be.linear((x, 0), rows, &up.weight, 0..f, epilogue, inner, Rows::dense(f))?;
            residual(be, down, config.width, inner, rows, stream)
        }
        (Mlp::Gated { .. }, None) => {
            Err(Error::Shape { op: "mlp", what: "gate buffers of the arena", expected: 1, got: 0 })
        }
    }
}
