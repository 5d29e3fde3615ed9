//! A training pass, backward: from the gradients of normalised rows to those of every parameter.

use super::forward::{QkvColumns, head_shape, norm};
use super::train_arena::{Kept, TrainArena};
use super::{Adapters, Gradients, Learning, Linear, Mlp, Model, Qkv, adapter_parameter};
use crate::backend::{Attended, Backward, Epilogue, Layout, Rows};
use crate::error::{Error, Result};
use crate::meter;

/// A linear layer on the way back.
struct Back<'a, B: Backward> {
    /// `layers.N.NAME`.
    name: String,
    linear: &'a Linear<B>,
    /// The layer's input `[T, inputs]`, and the gradient of its output.
    x: &'a B::Buffer,
    dy: (&'a B::Buffer, Rows),
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl<B: Backward> Model<B> {
    /// Everything below the head: `d_hidden` holds the gradient of the normalised rows.
    pub(super) fn train_backward(
        &self,
        tokens: usize,
        rows: usize,
        arena: &mut TrainArena<B>,
        mask: &B::Mask,
        learning: Learning<'_, B>,
        gradients: &mut Gradients<B>,
    ) -> Result<()> {
        let (config, be, params) = (&self.config, &self.backend, &*self.parameters);
        let c = config.width;
        be.zero(&mut arena.d_picked, rows * c)?;
        let (dweight, dbias) = gradients.pair("norm.weight", "norm.bias");
        let (kind, eps) = (config.norm, config.norm_eps);
        let weight = &params.norm.weight;
        let TrainArena { picked, d_hidden, d_picked, dx, scattered, work, .. } = arena;
        be.norm_backward(kind, picked, weight, d_hidden, eps, rows, c, d_picked, dweight, dbias, work)?;
        // Rows are scored once each, so that scattering them is the gradient of gathering.
        be.zero(dx, tokens * c)?;
        be.scatter((d_picked, Rows::dense(c)), scattered, rows, c, (dx, Rows::dense(c)))?;
        for n in (0..params.layers.len()).rev() {
            let _layer = meter::range("layer backward", n as u32);
            if arena.size.checkpoint {
                self.train_block(n, tokens, arena, mask, learning, false)?;
            }
            self.mlp_backward(n, tokens, arena, learning.adapters, gradients)?;
            self.attention_backward(n, tokens, arena, mask, learning.adapters, gradients)?;
        }
        let TrainArena { dx, inputs, .. } = arena;
        let (table, positions) = gradients.pair("embedding", "positions");
        let table = table.map(|d| (d, config.vocab_size, &inputs.ids));
        let positions = positions.map(|d| (d, config.max_positions, &inputs.positions));
        be.embed_backward(dx, tokens, c, table, positions)
    }

    /// The MLP of block n: adds to the gradient of the residual stream.
    fn mlp_backward(
        &self,
        n: usize,
        tokens: usize,
        arena: &mut TrainArena<B>,
        adapters: Option<&Adapters<B>>,
        gradients: &mut Gradients<B>,
    ) -> Result<()> {
        let (config, be) = (&self.config, &self.backend);
        let layer = &self.parameters.layers[n];
        let (c, f) = (config.width, config.mlp_width);
        let TrainArena { kept, normed, active, dx, d_normed, d_active, d_gated, low, size, work, .. } = arena;
        let Kept { middle, inner, .. } = &kept[if size.checkpoint { 0 } else { n }];
        let mut low = low.as_mut();
        let name = |part: &str| format!("layers.{n}.{part}");
        let back = |part, linear, x, dy, inputs, outputs| Back {
            name: name(part),
            linear,
            x,
            dy,
            rows: tokens,
            inputs,
            outputs,
        };
        match &layer.mlp {
            Mlp::Plain { up, down } => {
                be.activation(config.activation, inner, tokens * f, active)?;
                let of = back("mlp.down", down, active, (dx, Rows::dense(c)), f, c);
                self.linear_back(of, false, Some(d_active), adapters, low.as_deref_mut(), gradients, work)?;
                be.activation_backward(config.activation, inner, tokens * f, d_active)?;
                norm(be, config, &layer.mlp_norm, middle, tokens, normed)?;
                let of = back("mlp.up", up, normed, (d_active, Rows::dense(f)), c, f);
                self.linear_back(of, false, Some(d_normed), adapters, low, gradients, work)?;
            }
            Mlp::Gated { gate, up, down } => {
                let Some(d_gated) = d_gated else {
                    return Err(Error::Shape { op: "mlp", what: "gate buffers", expected: 1, got: 0 });
                };
                be.swiglu(inner, tokens, f, active)?;
                let of = back("mlp.down", down, active, (dx, Rows::dense(c)), f, c);
                self.linear_back(of, false, Some(d_active), adapters, low.as_deref_mut(), gradients, work)?;
                be.swiglu_backward(inner, d_active, tokens, f, d_gated)?;
                norm(be, config, &layer.mlp_norm, middle, tokens, normed)?;
                let of = back("mlp.gate", gate, normed, (d_gated, Rows { at: 0, stride: 2 * f }), c, f);
                self.linear_back(of, false, Some(d_normed), adapters, low.as_deref_mut(), gradients, work)?;
                let of = back("mlp.up", up, normed, (d_gated, Rows { at: f, stride: 2 * f }), c, f);
                self.linear_back(of, true, Some(d_normed), adapters, low, gradients, work)?;
            }
        }
        let (dweight, dbias) = gradients.pair(&name("mlp.norm.weight"), &name("mlp.norm.bias"));
        let (kind, eps, weight) = (config.norm, config.norm_eps, &layer.mlp_norm.weight);
        be.norm_backward(kind, middle, weight, d_normed, eps, tokens, c, dx, dweight, dbias, work)
    }

    /// The attention of block n: adds to the gradient of the residual stream.
    fn attention_backward(
        &self,
        n: usize,
        tokens: usize,
        arena: &mut TrainArena<B>,
        mask: &B::Mask,
        adapters: Option<&Adapters<B>>,
        gradients: &mut Gradients<B>,
    ) -> Result<()> {
        let (config, be) = (&self.config, &self.backend);
        let layer = &self.parameters.layers[n];
        let at = QkvColumns::of(config);
        let c = config.width;
        let (q_width, kv_width) = (config.query_width(), config.kv_width());
        let TrainArena { streams, kept, normed, dx, d_normed, d_attended, d_qkv, low, work, .. } = arena;
        let Kept { qkv, attended, log_sum, .. } = &kept[if arena.size.checkpoint { 0 } else { n }];
        let x = &streams[n];
        let mut low = low.as_mut();
        let name = |part: &str| format!("layers.{n}.{part}");
        let back = |part, linear, x, dy, inputs, outputs| Back {
            name: name(part),
            linear,
            x,
            dy,
            rows: tokens,
            inputs,
            outputs,
        };
        let of = back("attention.out", &layer.out, attended, (dx, Rows::dense(c)), q_width, c);
        self.linear_back(of, false, Some(d_attended), adapters, low.as_deref_mut(), gradients, work)?;
        let kept = Attended { q: (qkv, at.q), k: (qkv, at.k), v: (qkv, at.v), out: attended, log_sum };
        let (segments, positions) = (&arena.inputs.segments, &arena.inputs.positions);
        let shape = head_shape(config);
        let places = [at.q, at.k, at.v];
        be.attention_backward(kept, d_attended, shape, segments, positions, mask, d_qkv, places, work)?;
        if let Some(table) = &arena.rope {
            let heads = config.heads + config.kv_heads;
            be.rope_backward(d_qkv, at.q, tokens, heads, config.head_dim, positions, table)?;
        }
        norm(be, config, &layer.attention_norm, x, tokens, normed)?;
        match &layer.qkv {
            Qkv::Fused(all) => {
                let of = back("attention.qkv", all, normed, (d_qkv, at.q), c, config.qkv_width());
                self.linear_back(of, false, Some(d_normed), adapters, low, gradients, work)?;
            }
            Qkv::Split { q, k, v } => {
                let of = back("attention.q", q, normed, (d_qkv, at.q), c, q_width);
                self.linear_back(of, false, Some(d_normed), adapters, low.as_deref_mut(), gradients, work)?;
                let of = back("attention.k", k, normed, (d_qkv, at.k), c, kv_width);
                self.linear_back(of, true, Some(d_normed), adapters, low.as_deref_mut(), gradients, work)?;
                let of = back("attention.v", v, normed, (d_qkv, at.v), c, kv_width);
                self.linear_back(of, true, Some(d_normed), adapters, low, gradients, work)?;
            }
        }
        let (dweight, dbias) = gradients.pair(&name("attention.norm.weight"), &name("attention.norm.bias"));
        let (kind, eps, weight) = (config.norm, config.norm_eps, &layer.attention_norm.weight);
        be.norm_backward(kind, x, weight, d_normed, eps, tokens, c, dx, dweight, dbias, work)
    }

    /// The gradients of a linear layer's weight, bias and adapter, and of its input: `dx (+)= ...`.
    #[allow(clippy::too_many_arguments)]
    fn linear_back(
        &self,
        of: Back<'_, B>,
        accumulate: bool,
        dx: Option<&mut B::Buffer>,
        adapters: Option<&Adapters<B>>,
        low: Option<&mut [B::Buffer; 2]>,
        gradients: &mut Gradients<B>,
        work: &mut B::Workspace,
    ) -> Result<()> {
        let be = &self.backend;
        let Back { name, linear, x, dy, rows, inputs, outputs } = of;
        let (dweight, dbias) = gradients.pair(&format!("{name}.weight"), &format!("{name}.bias"));
        if dweight.is_some() || dbias.is_some() {
            let layout = self.layout_of(&name);
            be.linear_backward_weight((x, 0), dy, rows, inputs, outputs, layout, dweight, dbias, work)?;
        }
        let mut dx = dx;
        if let Some(dx) = dx.as_deref_mut() {
            be.linear_backward_input(dy, rows, &linear.weight, 0..outputs, accumulate, (dx, 0))?;
        }
        let Some(adapters) = adapters else { return Ok(()) };
        let (Some(adapter), Some([low, d_low])) = (adapters.get(&name), low) else { return Ok(()) };
        let (rank, scale) = (adapters.rank, adapters.scale);
        let dense = Rows::dense(rank);
        be.linear((x, 0), rows, &adapter.a, 0..rank, Epilogue::NONE, low, dense)?;
        be.scale(low, rows * rank, scale)?;
        let d_b = gradients.of(&adapter_parameter(&name, 'b'));
        let out_in = Layout::OutIn;
        be.linear_backward_weight((low, 0), dy, rows, rank, outputs, out_in, d_b, None, work)?;
        be.linear_backward_input(dy, rows, &adapter.b, 0..outputs, false, (d_low, 0))?;
        be.scale(d_low, rows * rank, scale)?;
        let d_a = gradients.of(&adapter_parameter(&name, 'a'));
        be.linear_backward_weight((x, 0), (d_low, dense), rows, inputs, rank, out_in, d_a, None, work)?;
        if let Some(dx) = dx {
            be.linear_backward_input((d_low, dense), rows, &adapter.a, 0..rank, true, (dx, 0))?;
        }
        Ok(())
    }
}
