//! A training pass, forward: the layer loop that keeps what the way back needs, and the masked cross-entropy.
//!
//! Only rows that are scored go through the last norm and the head. Their logits exist for a bounded chunk of rows at
//! a time: a chunk is multiplied, turned into its own gradient in place, and spent on the gradients of hidden rows and
//! head at once, so that `batch x length x vocabulary` is never formed.

use super::forward::{QkvColumns, head_shape, norm};
use super::train_arena::{Kept, TrainArena, TrainBatch};
use super::{Adapters, Gradients, Linear, Mlp, Model, Qkv};
use crate::backend::{Backend, Backward, Epilogue, Mask, Rows, Segment, TokenWeight};
use crate::error::{Error, Result};
use crate::meter;

/// How a network learns.
pub struct Learning<'a, B: Backend> {
    pub adapters: Option<&'a Adapters<B>>,
    pub token: TokenWeight,
}

impl<B: Backend> Clone for Learning<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Learning<'_, B> {}

impl<B: Backend> Default for Learning<'_, B> {
    fn default() -> Self {
        Self { adapters: None, token: TokenWeight::NONE }
    }
}

/// What a pass looks like, whatever stands in its batch. Two passes of one shape ask a machine for the same operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PassShape {
    pub tokens: usize,
    /// Rows that go through the head: those that are scored, and rows that count nothing up to a round number.
    pub rows: usize,
    segments: Vec<Segment>,
}

/// Which keys a query sees in a pass.
#[derive(Clone, Copy, Debug)]
pub enum PassMask<'a> {
    Given(Mask<'a>),
    /// What [`TrainArena::draw_mask`] drew last.
    Drawn,
}

impl<B: Backward> Model<B> {
    /// The negative log-likelihoods, in nats, of the batch's targets at its wanted rows. With `gradients` the gradient
    /// of `sum_r weights[r] token(nll[r])` by every parameter named there is added to them.
    ///
    /// # Errors
    /// Those of [`stage_pass`](Self::stage_pass) and the backend.
    pub fn train_pass(
        &self,
        batch: &TrainBatch,
        arena: &mut TrainArena<B>,
        mask: Mask<'_>,
        learning: Learning<'_, B>,
        gradients: Option<&mut Gradients<B>>,
    ) -> Result<Vec<f32>> {
        let shape = self.stage_pass(batch, arena, 1.0)?;
        self.run_pass(&shape, arena, PassMask::Given(mask), learning, gradients)?;
        self.pass_losses(arena, batch.batch.rows())
    }

    /// Takes a batch to the machine, with `factor` on its weights.
    ///
    /// # Errors
    /// [`Error::Request`] for an id outside the vocabulary, [`Error::Shape`] when the batch does not fit the arena.
    pub fn stage_pass(
        &self,
        batch: &TrainBatch,
        arena: &mut TrainArena<B>,
        factor: f64,
    ) -> Result<PassShape> {
        arena.admit(batch)?;
        self.check_ids(&batch.batch)?;
        let vocab = self.config.vocab_size;
        if let Some(target) = batch.targets.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Request(format!("target {target}: expected a token id below {vocab}")));
        }
        let (be, tokens, scored) = (&self.backend, batch.batch.tokens(), batch.batch.rows());
        let rows = if scored == 0 { 0 } else { be.round_rows(scored).clamp(scored, arena.size.rows) };
        let shape = PassShape { tokens, rows, segments: batch.batch.segments.clone() };
        if tokens == 0 || rows == 0 {
            return Ok(shape);
        }
        let TrainArena { inputs, staged, scattered, targets, weights, .. } = arena;
        be.write_index(&mut inputs.ids, &batch.batch.ids)?;
        be.write_index(&mut inputs.positions, &batch.batch.positions)?;
        be.write_segments(&mut inputs.segments, &batch.batch.segments)?;
        // A row that fills up reads row 0 and weighs nothing; its gradient, zeros, goes to no row.
        staged.rows.clone_from(&batch.batch.wanted);
        staged.rows.resize(rows, u32::MAX);
        be.write_index(scattered, &staged.rows)?;
        if let Some(fill) = staged.rows.get_mut(scored..) {
            fill.fill(0);
        }
        be.write_index(&mut inputs.wanted, &staged.rows)?;
        staged.targets.clone_from(&batch.targets);
        staged.targets.resize(rows, 0);
        be.write_index(targets, &staged.targets)?;
        staged.weights.clear();
        staged.weights.extend(batch.weights.iter().map(|&w| (f64::from(w) * factor) as f32));
        staged.weights.resize(rows, 0.0);
        be.write_floats(weights, &staged.weights)?;
        Ok(shape)
    }

    /// The operations of a pass over what was staged; with a mask that is full, causal or drawn nothing but operations, so
    /// that they can be recorded.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn run_pass(
        &self,
        shape: &PassShape,
        arena: &mut TrainArena<B>,
        mask: PassMask<'_>,
        learning: Learning<'_, B>,
        gradients: Option<&mut Gradients<B>>,
    ) -> Result<()> {
        if shape.tokens == 0 || shape.rows == 0 {
            return Ok(());
        }
        let given = match mask {
            PassMask::Given(mask) => self.backend.mask(mask)?,
            PassMask::Drawn => match arena.drawn.take() {
                Some(drawn) => drawn,
                None => return Err(Error::Shape { op: "train", what: "masks drawn", expected: 1, got: 0 }),
            },
        };
        let done = self.operations(shape, arena, &given, learning, gradients);
        if matches!(mask, PassMask::Drawn) {
            arena.drawn = Some(given);
        }
        done
    }

    fn operations(
        &self,
        &PassShape { tokens, rows, .. }: &PassShape,
        arena: &mut TrainArena<B>,
        mask: &B::Mask,
        learning: Learning<'_, B>,
        gradients: Option<&mut Gradients<B>>,
    ) -> Result<()> {
        {
            let _forward = meter::range("forward", 0);
            self.train_forward(tokens, arena, mask, learning)?;
        }
        let Some(gradients) = gradients else { return self.train_head(rows, arena, learning, None) };
        {
            let _head = meter::range("head and loss", 0);
            self.train_head(rows, arena, learning, Some(gradients))?;
        }
        let _backward = meter::range("backward", 0);
        self.train_backward(tokens, rows, arena, mask, learning, gradients)
    }

    /// The negative log-likelihoods of the last pass, of its first `rows` rows; waits for it.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn pass_losses(&self, arena: &TrainArena<B>, rows: usize) -> Result<Vec<f32>> {
        let mut nll = vec![0.0; rows];
        self.backend.read_floats(&arena.nll, 0, &mut nll)?;
        Ok(nll)
    }

    fn train_forward(
        &self,
        tokens: usize,
        arena: &mut TrainArena<B>,
        mask: &B::Mask,
        learning: Learning<'_, B>,
    ) -> Result<()> {
        let (be, params) = (&self.backend, &*self.parameters);
        let positions = params.positions.as_ref().map(|table| (table, &arena.inputs.positions));
        let width = self.config.width;
        be.embed(&params.embedding, &arena.inputs.ids, positions, tokens, width, &mut arena.streams[0])?;
        for n in 0..params.layers.len() {
            self.train_block(n, tokens, arena, mask, learning, true)?;
        }
        Ok(())
    }

    /// Block n, from its input stream: fills what it keeps; with `out` also the next stream.
    pub(super) fn train_block(
        &self,
        n: usize,
        tokens: usize,
        arena: &mut TrainArena<B>,
        mask: &B::Mask,
        learning: Learning<'_, B>,
        out: bool,
    ) -> Result<()> {
        let (config, be) = (&self.config, &self.backend);
        let _layer = meter::range("layer", n as u32);
        let layer = &self.parameters.layers[n];
        let at = QkvColumns::of(config);
        let c = config.width;
        let TrainArena { streams, kept, normed, active, low, inputs, rope, size, .. } = arena;
        let (before, after) = streams.split_at_mut(n + 1);
        let (x, next) = (&before[n], &mut after[0]);
        let Kept { qkv, attended, log_sum, middle, inner } = &mut kept[if size.checkpoint { 0 } else { n }];
        let mut low = low.as_mut();
        let mut apply = |name: &str, linear, x: &B::Buffer, width, accumulate, to: &mut B::Buffer, place| {
            self.train_linear(
                n,
                name,
                linear,
                (x, tokens),
                width,
                accumulate,
                (to, place),
                low.as_deref_mut(),
                learning,
            )
        };
        norm(be, config, &layer.attention_norm, x, tokens, normed)?;
        let (q_width, kv_width) = (config.query_width(), config.kv_width());
        match &layer.qkv {
            Qkv::Fused(all) => apply("attention.qkv", all, normed, config.qkv_width(), false, qkv, at.q)?,
            Qkv::Split { q, k, v } => {
                apply("attention.q", q, normed, q_width, false, qkv, at.q)?;
                apply("attention.k", k, normed, kv_width, false, qkv, at.k)?;
                apply("attention.v", v, normed, kv_width, false, qkv, at.v)?;
            }
        }
        if let Some(table) = rope.as_ref() {
            // Keys follow queries, so one call turns both.
            let heads = config.heads + config.kv_heads;
            be.rope(qkv, at.q, tokens, heads, config.head_dim, &inputs.positions, table)?;
        }
        be.attention_saving(
            (qkv, at.q),
            (qkv, at.k),
            (qkv, at.v),
            head_shape(config),
            &inputs.segments,
            &inputs.positions,
            mask,
            attended,
            log_sum,
        )?;
        be.copy(x, middle, tokens * c)?;
        apply("attention.out", &layer.out, attended, c, true, middle, Rows::dense(c))?;
        norm(be, config, &layer.mlp_norm, middle, tokens, normed)?;
        let f = config.mlp_width;
        let down = match &layer.mlp {
            Mlp::Plain { up, down } => {
                apply("mlp.up", up, normed, f, false, inner, Rows::dense(f))?;
                if out {
                    be.activation(config.activation, inner, tokens * f, active)?;
                }
                down
            }
            Mlp::Gated { gate, up, down } => {
                apply("mlp.gate", gate, normed, f, false, inner, Rows { at: 0, stride: 2 * f })?;
                apply("mlp.up", up, normed, f, false, inner, Rows { at: f, stride: 2 * f })?;
                if out {
                    be.swiglu(inner, tokens, f, active)?;
                }
                down
            }
        };
        if out {
            be.copy(middle, next, tokens * c)?;
            apply("mlp.down", down, active, c, true, next, Rows::dense(c))?;
        }
        Ok(())
    }

    /// `out (+)= x W + b`, and what an adapter adds.
    #[allow(clippy::too_many_arguments)]
    fn train_linear(
        &self,
        n: usize,
        name: &str,
        linear: &Linear<B>,
        (x, tokens): (&B::Buffer, usize),
        width: usize,
        accumulate: bool,
        (out, place): (&mut B::Buffer, Rows),
        low: Option<&mut [B::Buffer; 2]>,
        learning: Learning<'_, B>,
    ) -> Result<()> {
        let be = &self.backend;
        let epilogue = Epilogue { bias: linear.bias.as_ref(), activation: None, accumulate };
        be.linear((x, 0), tokens, &linear.weight, 0..width, epilogue, out, place)?;
        let Some(adapters) = learning.adapters else { return Ok(()) };
        let (Some(adapter), Some([low, _])) = (adapters.get(&format!("layers.{n}.{name}")), low) else {
            return Ok(());
        };
        let rank = adapters.rank;
        be.linear((x, 0), tokens, &adapter.a, 0..rank, Epilogue::NONE, low, Rows::dense(rank))?;
        be.scale(low, tokens * rank, adapters.scale)?;
        let onto = Epilogue { bias: None, activation: None, accumulate: true };
        be.linear((low, 0), tokens, &adapter.b, 0..width, onto, out, place)
    }

    /// Last norm, head and loss of the wanted rows; with `gradients` also the way back to the normalised rows.
    fn train_head(
        &self,
        rows: usize,
        arena: &mut TrainArena<B>,
        learning: Learning<'_, B>,
        mut gradients: Option<&mut Gradients<B>>,
    ) -> Result<()> {
        let (config, be, params) = (&self.config, &self.backend, &*self.parameters);
        let (c, vocab) = (config.width, config.vocab_size);
        let last = params.layers.len();
        let dense = Rows::dense(c);
        be.gather((&arena.streams[last], dense), &arena.inputs.wanted, rows, c, &mut arena.picked)?;
        norm(be, config, &params.norm, &arena.picked, rows, &mut arena.hidden)?;
        let (weight, name) = match &params.head {
            Some(head) => (head, "head"),
            None => (&params.embedding, "embedding"),
        };
        let mut first = 0;
        while first < rows {
            let count = arena.head_rows.min(rows - first);
            let hidden = (&arena.hidden, first * c);
            let logits = Rows { at: 0, stride: arena.logits_stride };
            be.linear(hidden, count, weight, 0..vocab, Epilogue::NONE, &mut arena.logits, logits)?;
            be.cross_entropy_backward(
                (&mut arena.logits, logits),
                vocab,
                first..first + count,
                &arena.targets,
                &arena.weights,
                learning.token,
                &mut arena.nll,
            )?;
            if let Some(gradients) = gradients.as_deref_mut() {
                let d_logits = (&arena.logits, logits);
                let d_hidden = (&mut arena.d_hidden, first * c);
                be.linear_backward_input(d_logits, count, weight, 0..vocab, false, d_hidden)?;
                let dweight = gradients.of(name);
                let layout = crate::backend::Layout::OutIn;
                let work = &mut arena.work;
                be.linear_backward_weight(hidden, d_logits, count, c, vocab, layout, dweight, None, work)?;
            }
            first += count;
        }
        Ok(())
    }
}
