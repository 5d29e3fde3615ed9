//! Cases of `cuda/attention_bwd.cu` and `cuda/attention_bwd_f32.cu`.

use super::attention::{
    Annealed, Causal, Full, HEAD_DIMS, KINDS, LONG, MIDDLE, SHORT, Setup, Shape, Shared, WANTED, WANTED_FEW,
    bits, dot,
};
use super::{Case, DTYPES, Grid, Rig, Verdict, fingerprint, judge_exact, relative_error, round};
use crate::backend::cuda::{Buffer, Device, Format, Segments};
use crate::backend::{Attended, Backend, Backward, HeadShape, Rows, Segment};
use crate::element::Dtype;
use crate::error::{Error, Result};

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let quick = [
        Shape { lens: &SHORT, heads: 2, kv_heads: 2, head_dim: 64, kind: Full },
        Shape { lens: &WANTED, heads: 3, kv_heads: 1, head_dim: 32, kind: Causal },
        Shape { lens: &WANTED_FEW, heads: 1, kv_heads: 1, head_dim: 128, kind: Annealed },
    ];
    let (mut more, mut long) = (Vec::new(), Vec::new());
    for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        let kind = |j| KINDS[(i + j) % KINDS.len()];
        more.push(Shape { lens: &WANTED, heads: 2, kv_heads: 1, head_dim, kind: kind(0) });
        more.push(Shape { lens: &SHORT, heads: 2, kv_heads: 1, head_dim, kind: kind(3) });
        long.push(Shape { lens: &MIDDLE, heads: 1, kv_heads: 1, head_dim, kind: kind(1) });
    }
    more.push(Shape { lens: &SHORT, heads: 6, kv_heads: 2, head_dim: 80, kind: Causal });
    more.push(Shape { lens: &LONG, heads: 1, kv_heads: 1, head_dim: 32, kind: Causal });
    long.push(Shape { lens: &LONG, heads: 1, kv_heads: 1, head_dim: 64, kind: Causal });
    long.push(Shape { lens: &LONG, heads: 1, kv_heads: 1, head_dim: 32, kind: Annealed });

    let mut cases = Vec::new();
    for dtype in DTYPES {
        let name = format!("attention_bwd_{dtype}");
        let more = if dtype == Dtype::F32 { more.clone() } else { [more.clone(), long.clone()].concat() };
        for shape in grid.choose(&quick, &more) {
            let Shape { lens, heads, kv_heads, head_dim, kind } = shape;
            let text = format!("{kind:?}, queries and keys {lens:?}, heads {heads}/{kv_heads} of {head_dim}");
            let run = move |rig: &Rig<'_, D>| gradients(rig, dtype, shape);
            cases.push(Case::new("attention_bwd", name.clone(), text, run));
        }
        let run = move |rig: &Rig<'_, D>| unknown_position(rig, dtype);
        cases.push(Case::new("attention_bwd", name, "a position without bits", run));
    }
    cases.push(Case::new("attention_bwd", "attention_bwd", "arguments that do not fit", refusals));
    cases
}

/// A case with the gradient of its output, and where gradients go: in another order than q, k and v, with room between.
struct Task<D: Device> {
    setup: Setup<D>,
    d_out: (Vec<f64>, Buffer<D>),
    places: [Rows; 3],
    k_rows: usize,
    /// Numbers that `out`, `lse`, `d_out`, `dots` and `d_qkv` lack.
    short: [usize; 5],
}

/// Gradients of q, k and v, dense.
type Gradients = [Vec<f64>; 3];

impl<D: Device> Task<D> {
    fn new(rig: &Rig<'_, D>, dtype: Dtype, shape: Shape) -> Result<Self> {
        let setup = Setup::new(rig, dtype, shape)?;
        let d_out = rig.input(4, dtype, setup.q_rows() * setup.width(), 1.0)?;
        let (width, kv_width) = (setup.width(), shape.kv_heads * shape.head_dim);
        let stride = width + 2 * kv_width + 40;
        let places = [2 * kv_width + 24, 8, kv_width + 16].map(|at| Rows { at, stride });
        let k_rows = setup.segments.iter().map(|s| s.k_start + s.k_len).max().unwrap_or(0);
        Ok(Self { setup, d_out, places, k_rows, short: [0; 5] })
    }

    /// Rows and columns of the three gradients.
    fn sizes(&self) -> [(usize, usize); 3] {
        let kv_width = self.setup.heads.kv_heads * self.setup.heads.head_dim;
        [(self.setup.q_rows(), self.setup.width()), (self.k_rows, kv_width), (self.k_rows, kv_width)]
    }

    fn len(&self) -> usize {
        self.setup.q_rows().max(self.k_rows) * self.places[0].stride
    }

    /// All that the kernels leave in the buffer of gradients, poisoned before.
    fn launch(&self, rig: &Rig<'_, D>, segments: &[Segment]) -> Result<Buffer<D>> {
        let (out, lse) = self.setup.launch(rig, None, segments)?;
        self.backward(rig, segments, &out, &lse)
    }

    fn backward(
        &self,
        rig: &Rig<'_, D>,
        segments: &[Segment],
        out: &Buffer<D>,
        lse: &Buffer<D>,
    ) -> Result<Buffer<D>> {
        let (device, setup) = (rig.device(), &self.setup);
        let short = |buffer: &Buffer<D>, i: usize| buffer.share(0, buffer.len() - self.short[i]);
        let mut dots = rig.poisoned(Dtype::F32, lse.len() - self.short[3])?;
        let mut d_qkv = rig.poisoned(setup.dtype, self.len() - self.short[4])?;
        let (out, lse, d_out) = (short(out, 0)?, short(lse, 1)?, short(&self.d_out.1, 2)?);
        let words = Buffer::of(device, Format::U32, &setup.words)?;
        let q_pos = Buffer::of(device, Format::U32, &setup.q_pos)?;
        let kv = setup.kv.as_ref().map_or(&setup.q.1, |kv| &kv.1);
        let [q, k, v] = [(&setup.q.1, 0), (kv, 1), (kv, 2)].map(|(x, i)| (x, setup.places[i]));
        let (segments, mask) = (Segments::new(device, segments)?, setup.mask(&words));
        rig.cuda.attention_backward(
            setup.dtype,
            q,
            k,
            v,
            &out,
            &lse,
            &d_out,
            setup.heads,
            &segments,
            &q_pos,
            mask,
            &mut dots,
            &mut d_qkv,
            self.places,
        )?;
        Ok(d_qkv)
    }

    /// The three gradients out of the buffer, and how many numbers beside them are no longer what they were.
    fn take<T: Copy>(&self, all: &[T], kept: impl Fn(T) -> bool) -> ([Vec<T>; 3], u32) {
        let mut beside = vec![true; all.len()];
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for ((part, place), (rows, width)) in parts.iter_mut().zip(self.places).zip(self.sizes()) {
            for row in 0..rows {
                let at = row * place.stride + place.at;
                part.extend_from_slice(&all[at..at + width]);
                beside[at..at + width].fill(false);
            }
        }
        let changed = all.iter().zip(beside).filter(|(x, beside)| *beside && !kept(**x)).count();
        (parts, changed as u32)
    }

    fn expected(&self, rig: &Rig<'_, D>) -> Result<Gradients> {
        let (cpu, setup) = (rig.cpu, &self.setup);
        let q = cpu.upload(&setup.q.0)?;
        let kv = cpu.upload(setup.kv.as_ref().map_or(&setup.q.0, |kv| &kv.0))?;
        let mut q_pos = cpu.alloc_index(setup.q_rows())?;
        cpu.write_index(&mut q_pos, &setup.q_pos)?;
        let mask = setup.host_mask().into();
        let mut out = cpu.alloc(setup.q_rows() * setup.width())?;
        let mut log_sum = cpu.alloc(setup.q_rows() * setup.heads.heads)?;
        let [q, k, v] = [(&q, 0), (&kv, 1), (&kv, 2)].map(|(x, i)| (x, setup.places[i]));
        let (shape, segments) = (setup.heads, &setup.segments);
        cpu.attention_saving(q, k, v, shape, segments, &q_pos, &mask, &mut out, &mut log_sum)?;
        let kept = Attended { q, k, v, out: &out, log_sum: &log_sum };
        let mut d_qkv = cpu.upload(&vec![f64::NAN; self.len()])?;
        let d_out = cpu.upload(&self.d_out.0)?;
        cpu.attention_backward(
            kept,
            &d_out,
            shape,
            segments,
            &q_pos,
            &mask,
            &mut d_qkv,
            self.places,
            &mut (),
        )?;
        Ok(self.take(d_qkv.as_slice(), f64::is_nan).0)
    }

    /// With scores, probabilities, outputs and their gradients rounded to the format.
    fn naive(&self) -> Gradients {
        let setup = &self.setup;
        let round = |x| round(setup.dtype, x);
        let HeadShape { heads, kv_heads, head_dim: d, scale } = setup.heads;
        let kv = setup.kv.as_ref().map_or(&setup.q.0, |kv| &kv.0);
        let from = |numbers: &[f64], place: usize, row: usize, head: usize| {
            let start = setup.places[place].at + row * setup.places[place].stride + head * d;
            numbers[start..start + d].to_vec()
        };
        let mut sums = self.sizes().map(|(rows, width)| vec![0.0; rows * width]);
        let [sum_q, sum_k, sum_v] = &mut sums;
        let add = |to: &mut [f64], factor: f64, x: &[f64]| {
            to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
        };
        for (index, s) in setup.segments.iter().enumerate() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                for query in s.q_start..s.q_start + s.q_len {
                    let position = setup.q_pos[query] as usize;
                    let seen: Vec<usize> =
                        (0..s.k_len).filter(|&key| setup.sees(index, position, key)).collect();
                    let (q, at) = (from(&setup.q.0, 0, query, head), query * setup.width() + head * d);
                    let d_out = &self.d_out.0[at..at + d];
                    let key = |key: usize| from(kv, 1, s.k_start + key, kv_head);
                    let value = |key: usize| from(kv, 2, s.k_start + key, kv_head);
                    let scores: Vec<f64> = seen.iter().map(|&j| round(scale * dot(&q, &key(j)))).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|s| round((s - top).exp() / total)).collect();
                    let mut out = vec![0.0; d];
                    seen.iter().zip(&p).for_each(|(&j, &p)| add(&mut out, p, &value(j)));
                    out.iter_mut().for_each(|x| *x = round(*x));
                    let whole = round(dot(d_out, &out));
                    for (&j, &p) in seen.iter().zip(&p) {
                        let ds = round(p * (round(dot(d_out, &value(j))) - whole));
                        let kv_at = (s.k_start + j) * kv_heads * d + kv_head * d;
                        add(&mut sum_q[at..at + d], scale * ds, &key(j));
                        add(&mut sum_k[kv_at..kv_at + d], scale * ds, &q);
                        add(&mut sum_v[kv_at..kv_at + d], p, d_out);
                    }
                }
            }
        }
        sums.map(|sum| sum.into_iter().map(round).collect())
    }
}

/// As [`judge`](super::judge), of numbers that are on the host.
fn judge(dtype: Dtype, got: &[f64], expected: &[f64], naive: &[f64]) -> Verdict {
    let naive = 2.0 * relative_error(naive, expected);
    let bound = match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => naive.min(2e-3),
        Dtype::Bf16 => naive.min(1e-2),
    };
    Verdict { error: relative_error(got, expected), bound, fingerprint: fingerprint(got) }
}

fn gradients<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, shape: Shape) -> Result<Verdict> {
    let task = Task::new(rig, dtype, shape)?;
    let (expected, naive) = (task.expected(rig)?, task.naive());
    let all = task.launch(rig, &task.setup.segments)?;
    let numbers: Vec<f64> = all.to_f32(rig.device())?.into_iter().map(f64::from).collect();
    let (got, changed) = task.take(&numbers, f64::is_nan);
    let mut verdict = judge_exact(&[changed], &[0]);
    for ((got, expected), naive) in got.iter().zip(&expected).zip(&naive) {
        verdict = verdict.and(judge(dtype, got, expected, naive));
    }
    // The last sequence alone. (Masks of its own are counted from the first sequence.)
    if let (Full | Causal | Annealed | Shared, Some(s)) = (shape.kind, task.setup.segments.last()) {
        let alone = task.launch(rig, &[*s])?;
        let [all, alone] = [&all, &alone].map(|x| bits(rig, x).map(|x| task.take(&x, |_| true).0));
        let rows = [(s.q_start, s.q_len), (s.k_start, s.k_len), (s.k_start, s.k_len)];
        for (((all, alone), (start, len)), (_, width)) in all?.iter().zip(&alone?).zip(rows).zip(task.sizes())
        {
            let range = start * width..(start + len) * width;
            verdict = verdict.and(judge_exact(&alone[range.clone()], &all[range]));
        }
    }
    Ok(verdict)
}

/// A query whose position the mask has no bits for: NaN for it, and for the keys that position 0 sees; other queries have the
/// bits that they had.
fn unknown_position<D: Device>(rig: &Rig<'_, D>, dtype: Dtype) -> Result<Verdict> {
    let shape = Shape { lens: &[(20, 20)], heads: 1, kv_heads: 1, head_dim: 32, kind: Shared };
    let mut task = Task::new(rig, dtype, shape)?;
    let run = |task: &Task<D>| -> Result<[Vec<u32>; 3]> {
        let all = task.launch(rig, &task.setup.segments)?;
        Ok(task.take(&bits(rig, &all)?, |_| true).0)
    };
    let whole = run(&task)?;
    let mut verdict = judge_exact::<u32>(&[], &[]);
    for bad in [20, u32::MAX] {
        task.setup.q_pos[5] = bad;
        let got = run(&task)?;
        let nan = |bits: &[u32]| bits.iter().filter(|b| f32::from_bits(**b).is_nan()).count();
        for row in 0..20 {
            let row_of = |part: &[Vec<u32>; 3], i: usize| part[i][row * 32..(row + 1) * 32].to_vec();
            if row == 5 {
                verdict = verdict.and(judge_exact(&[nan(&row_of(&got, 0))], &[32]));
            } else {
                verdict = verdict.and(judge_exact(&row_of(&got, 0), &row_of(&whole, 0)));
            }
            if task.setup.sees(0, 0, row) {
                let count = [1, 2].map(|i| nan(&row_of(&got, i)));
                verdict = verdict.and(judge_exact(&count, &[32, 32]));
            }
        }
    }
    Ok(verdict)
}

/// What the launch refuses: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let shape = Shape { lens: &[(4, 40), (3, 10)], heads: 2, kv_heads: 1, head_dim: 32, kind: Shared };
    let mut refused: Vec<u32> = Vec::new();
    let mut try_one = |change: &dyn Fn(&mut Task<D>)| -> Result<()> {
        let mut task = Task::new(rig, Dtype::F32, shape)?;
        let (out, lse) = task.setup.launch(rig, None, &task.setup.segments)?;
        change(&mut task);
        let result = task.backward(rig, &task.setup.segments, &out, &lse);
        refused.push(matches!(result, Err(Error::Shape { .. } | Error::Request(_))).into());
        Ok(())
    };
    try_one(&|_| ())?;
    try_one(&|t| t.places[0].at += 2)?;
    try_one(&|t| t.places.iter_mut().for_each(|p| p.stride += 2))?;
    try_one(&|t| t.places[1].stride += 4)?;
    try_one(&|t| t.places[1].at += 16)?;
    try_one(&|t| t.places.iter_mut().for_each(|p| p.stride -= 48))?;
    try_one(&|t| t.short[0] = 1)?;
    try_one(&|t| t.short[1] = 1)?;
    try_one(&|t| t.short[2] = 1)?;
    try_one(&|t| t.short[3] = 1)?;
    try_one(&|t| t.short[4] = 100)?;
    try_one(&|t| t.setup.places[0].at += 1)?;
    try_one(&|t| t.setup.places[2].at += 8 * 1024)?;
    try_one(&|t| t.setup.segments[1].k_start = 39)?;
    try_one(&|t| t.setup.segments[1].k_len += 1)?;
    try_one(&|t| t.setup.words.truncate(1))?;
    try_one(&|t| t.setup.dtype = Dtype::F16)?;
    try_one(&|t| t.setup.heads.head_dim = 40)?;
    try_one(&|t| t.setup.heads.kv_heads = 3)?;
    try_one(&|t| t.setup.heads.scale = 0.0)?;
    let mut expected = vec![1; refused.len()];
    expected[0] = 0;
    Ok(judge_exact(&refused, &expected))
}
