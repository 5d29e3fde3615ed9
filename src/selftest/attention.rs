//! Cases of `cuda/attention_fwd.cu` and `cuda/attention_fwd_f32.cu`.

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device, DeviceMask, Format, Segments};
use crate::backend::{Backend, Forward, HeadShape, Mask, Rows, Segment};
use crate::diffusion::anneal;
use crate::element::Dtype;
use crate::error::{Error, Result};

pub(super) const HEAD_DIMS: [usize; 6] = [32, 48, 64, 80, 96, 128];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Full,
    Causal,
    Annealed,
    /// One explicit mask for all sequences; query 1 sees nothing.
    Shared,
    /// One for each sequence.
    Own,
    /// Keys of each sequence that no query sees; all of the last one's.
    Padding,
}
pub(super) use Kind::{Annealed, Causal, Full, Own, Padding, Shared};

pub(super) const KINDS: [Kind; 6] = [Full, Causal, Annealed, Shared, Own, Padding];

/// Sequences (queries, keys), query heads, key/value heads, head width, mask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) lens: &'static [(usize, usize)],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) kind: Kind,
}

const fn same<const N: usize>(lens: [usize; N]) -> [(usize, usize); N] {
    let mut pairs = [(0, 0); N];
    let mut i = 0;
    while i < N {
        pairs[i] = (lens[i], lens[i]);
        i += 1;
    }
    pairs
}
pub(super) static SHORT: [(usize, usize); 4] = same([7, 0, 1, 33]);
pub(super) static MIDDLE: [(usize, usize); 3] = same([61, 64, 65]);
pub(super) static LONG: [(usize, usize); 2] = same([129, 200]);
/// Some rows of each sequence are wanted; one sequence has no keys.
pub(super) static WANTED: [(usize, usize); 5] = [(3, 70), (0, 5), (1, 1), (2, 0), (17, 66)];
static WANTED_LONG: [(usize, usize); 1] = [(65, 130)];
pub(super) static WANTED_FEW: [(usize, usize); 1] = [(9, 130)];

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let quick = [
        Shape { lens: &SHORT, heads: 2, kv_heads: 2, head_dim: 64, kind: Full },
        Shape { lens: &WANTED, heads: 3, kv_heads: 1, head_dim: 32, kind: Causal },
        Shape { lens: &WANTED_FEW, heads: 1, kv_heads: 1, head_dim: 128, kind: Annealed },
    ];
    let mut more = Vec::new();
    for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (j, kind) in KINDS.into_iter().enumerate() {
            let lens: &[_] = if (i + j) % 3 == 0 { &WANTED } else { &SHORT };
            more.push(Shape { lens, heads: 2, kv_heads: 1, head_dim, kind });
        }
        let kind = KINDS[(i + 2) % KINDS.len()];
        more.push(Shape { lens: &MIDDLE, heads: 1, kv_heads: 1, head_dim, kind });
    }
    more.extend([
        Shape { lens: &LONG, heads: 1, kv_heads: 1, head_dim: 64, kind: Causal },
        Shape { lens: &LONG, heads: 1, kv_heads: 1, head_dim: 32, kind: Annealed },
        Shape { lens: &WANTED_LONG, heads: 1, kv_heads: 1, head_dim: 128, kind: Causal },
        Shape { lens: &SHORT, heads: 4, kv_heads: 1, head_dim: 48, kind: Full },
        Shape { lens: &SHORT, heads: 6, kv_heads: 2, head_dim: 80, kind: Causal },
    ]);

    let mut cases = Vec::new();
    for dtype in DTYPES {
        let name = format!("attention_fwd_{dtype}");
        for shape in grid.choose(&quick, &more) {
            let Shape { lens, heads, kv_heads, head_dim, kind } = shape;
            let text = format!("{kind:?}, queries and keys {lens:?}, heads {heads}/{kv_heads} of {head_dim}");
            let run = move |rig: &Rig<'_, D>| attention(rig, dtype, shape);
            cases.push(Case::new("attention", name.clone(), text, run));
        }
        let run = move |rig: &Rig<'_, D>| unknown_position(rig, dtype);
        cases.push(Case::new("attention", name, "a position without bits", run));
    }
    cases.push(Case::new("attention", "attention_fwd", "arguments that do not fit", refusals));
    cases
}

/// Everything about a case, on the host and on the device.
pub(super) struct Setup<D: Device> {
    pub(super) dtype: Dtype,
    pub(super) heads: HeadShape,
    pub(super) kind: Kind,
    pub(super) segments: Vec<Segment>,
    pub(super) q_pos: Vec<u32>,
    /// Queries, and keys and values, each with placements: one buffer where queries and keys are the same rows.
    pub(super) q: (Vec<f64>, Buffer<D>),
    pub(super) kv: Option<(Vec<f64>, Buffer<D>)>,
    pub(super) places: [Rows; 3],
    /// Words of a draw, `[len, anneal::stride(len)]`, and explicit masks `[segments or 1, len, len]`, in the same bits.
    pub(super) words: Vec<u32>,
    pub(super) allow: Vec<u8>,
    /// One more than the last position of any query or key.
    pub(super) len: usize,
}

impl<D: Device> Setup<D> {
    pub(super) fn new(rig: &Rig<'_, D>, dtype: Dtype, shape: Shape) -> Result<Self> {
        let Shape { lens, heads, kv_heads, head_dim, kind } = shape;
        let (mut segments, mut q_pos, mut q_rows, mut k_rows) = (Vec::new(), Vec::new(), 0, 0);
        for &(q_len, k_len) in lens {
            segments.push(Segment { q_start: q_rows, q_len, k_start: k_rows, k_len });
            // Spread over the sequence; without keys, some position.
            q_pos.extend((0..q_len).map(|i| ((i + 1) * k_len.max(q_len) / q_len - 1) as u32));
            q_rows += q_len;
            k_rows += k_len;
        }
        let len = lens.iter().map(|&(q, k)| q.max(k)).max().unwrap_or(0);
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let (q, kv, places);
        if lens.iter().all(|(q, k)| q == k) {
            let stride = width + 2 * kv_width + 8;
            q = rig.input(1, dtype, q_rows * stride, 2.0)?;
            kv = None;
            places = [0, width, width + kv_width].map(|at| Rows { at, stride });
        } else {
            let stride = 2 * kv_width + 16;
            q = rig.input(1, dtype, q_rows * width + 16, 2.0)?;
            kv = Some(rig.input(2, dtype, k_rows * stride, 2.0)?);
            places =
                [Rows { at: 16, stride: width }, Rows { at: 8, stride }, Rows { at: kv_width + 8, stride }];
        }
        let mut random = rig.random(3);
        let masks = if matches!(kind, Own | Padding) { segments.len() } else { 1 };
        let mut allow = Vec::with_capacity(masks * len * len);
        for mask in 0..masks {
            let keys: Vec<u8> = (0..len).map(|_| u8::from(mask + 1 < masks && random.below(3) > 0)).collect();
            for query in 0..len {
                match kind {
                    Padding => allow.extend(&keys),
                    _ => allow.extend((0..len).map(|_| u8::from(query != 1 && random.below(4) > 0))),
                }
            }
        }
        let mut words = Vec::new();
        for mask in allow.chunks(len * len) {
            words.extend(anneal::pack(mask, len)?);
        }
        let scale = 1.3 / (head_dim as f64).sqrt();
        let heads = HeadShape { heads, kv_heads, head_dim, scale };
        Ok(Self { dtype, heads, kind, segments, q_pos, q, kv, places, words, allow, len })
    }

    pub(super) fn q_rows(&self) -> usize {
        self.q_pos.len()
    }

    pub(super) fn width(&self) -> usize {
        self.heads.heads * self.heads.head_dim
    }

    /// Whether the query at `position` of segment number `segment` sees `key`.
    pub(super) fn sees(&self, segment: usize, position: usize, key: usize) -> bool {
        let matrix = if self.kind == Own || self.kind == Padding { segment } else { 0 };
        let drawn = || self.allow[(matrix * self.len + position) * self.len + key] != 0;
        match self.kind {
            Full => true,
            Causal => key <= position,
            Annealed => key <= position || drawn(),
            Shared | Own | Padding => drawn(),
        }
    }

    pub(super) fn mask<'a>(&self, words: &'a Buffer<D>) -> DeviceMask<'a, D> {
        let stride = anneal::stride(self.len);
        let bits = |segment_stride, query_stride| DeviceMask::Bits { words, segment_stride, query_stride };
        match self.kind {
            Full => DeviceMask::Full,
            Causal => DeviceMask::Causal,
            Annealed => DeviceMask::Annealed { words, stride },
            Shared => bits(0, stride),
            Own => bits(stride * self.len, stride),
            Padding => bits(stride * self.len, 0),
        }
    }

    pub(super) fn host_mask(&self) -> Mask<'_> {
        let explicit = |shared| Mask::Explicit { allow: &self.allow, len: self.len, shared };
        match self.kind {
            Full => Mask::Full,
            Causal => Mask::Causal,
            Annealed => Mask::Annealed { words: &self.words, stride: anneal::stride(self.len) },
            Shared => explicit(true),
            Own | Padding => explicit(false),
        }
    }

    /// Output and log-sum-exps of a launch in tiles of `tile` queries, or in those that it chooses.
    pub(super) fn launch(
        &self,
        rig: &Rig<'_, D>,
        tile: Option<usize>,
        segments: &[Segment],
    ) -> Result<(Buffer<D>, Buffer<D>)> {
        let device = rig.device();
        let mut out = rig.poisoned(self.dtype, self.q_rows() * self.width())?;
        let mut lse = rig.poisoned(Dtype::F32, self.q_rows() * self.heads.heads)?;
        let words = Buffer::of(device, Format::U32, &self.words)?;
        let q_pos = Buffer::of(device, Format::U32, &self.q_pos)?;
        let mask = self.mask(&words);
        let q = (&self.q.1, self.places[0]);
        let kv = self.kv.as_ref().map_or(&self.q.1, |kv| &kv.1);
        let (k, v) = ((kv, self.places[1]), (kv, self.places[2]));
        // One that held other sequences before.
        let mut places = Segments::new(device, &[Segment { q_start: 1, q_len: 2, k_start: 3, k_len: 4 }])?;
        places.upload(device, segments)?;
        let (dtype, heads, lse_out) = (self.dtype, self.heads, Some(&mut lse));
        match tile {
            Some(tile) => {
                rig.cuda.attention_in_tiles(
                    tile, dtype, q, k, v, heads, &places, &q_pos, mask, &mut out, lse_out,
                )?;
            }
            None => rig.cuda.attention(dtype, q, k, v, heads, &places, &q_pos, mask, &mut out, lse_out)?,
        }
        Ok((out, lse))
    }

    fn expected(&self, rig: &Rig<'_, D>) -> Result<Vec<f64>> {
        let cpu = rig.cpu;
        let q = cpu.upload(&self.q.0)?;
        let kv = cpu.upload(self.kv.as_ref().map_or(&self.q.0, |kv| &kv.0))?;
        let mut q_pos = cpu.alloc_index(self.q_rows())?;
        cpu.write_index(&mut q_pos, &self.q_pos)?;
        let mask = self.host_mask();
        let mut out = cpu.alloc(self.q_rows() * self.width())?;
        let (q, k, v) = ((&q, self.places[0]), (&kv, self.places[1]), (&kv, self.places[2]));
        cpu.attention(q, k, v, self.heads, &self.segments, &q_pos, &mask.into(), &mut out)?;
        Ok(out.as_slice().to_vec())
    }

    /// Attention with scores and probabilities rounded to the format, and the log-sum-exps in f64.
    fn naive(&self) -> (Vec<f64>, Vec<f64>) {
        let HeadShape { heads, kv_heads, head_dim: d, scale } = self.heads;
        let kv_numbers = self.kv.as_ref().map_or(&self.q.0, |kv| &kv.0);
        let row = |numbers: &'_ [f64], at: Rows, row: usize, head: usize| {
            let start = at.at + row * at.stride + head * d;
            numbers[start..start + d].to_vec()
        };
        let (rows, width) = (self.q_rows(), self.width());
        let mut out = vec![0.0; rows * width];
        let mut lse = vec![f64::NEG_INFINITY; rows * heads];
        for (index, s) in self.segments.iter().enumerate() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let part = |place| {
                    (0..s.k_len).map(move |i| row(kv_numbers, self.places[place], s.k_start + i, kv_head))
                };
                let (keys, values): (Vec<_>, Vec<_>) = (part(1).collect(), part(2).collect());
                for query in s.q_start..s.q_start + s.q_len {
                    let q = row(&self.q.0, self.places[0], query, head);
                    let position = self.q_pos[query] as usize;
                    let seen: Vec<usize> =
                        (0..s.k_len).filter(|&key| self.sees(index, position, key)).collect();
                    let scores: Vec<f64> = seen.iter().map(|&key| scale * dot(&q, &keys[key])).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    if seen.is_empty() {
                        continue;
                    }
                    lse[head * rows + query] = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
                    let rounded: Vec<f64> = scores.iter().map(|&s| round(self.dtype, s)).collect();
                    let top = rounded.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = rounded.iter().map(|s| (s - top).exp()).sum();
                    let to = &mut out[query * width + head * d..][..d];
                    for (&key, s) in seen.iter().zip(&rounded) {
                        let p = round(self.dtype, (s - top).exp() / total);
                        to.iter_mut().zip(&values[key]).for_each(|(o, v)| *o += p * v);
                    }
                    to.iter_mut().for_each(|o| *o = round(self.dtype, *o));
                }
            }
        }
        (out, lse)
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The bits of an output, as numbers that can be compared.
pub(super) fn bits<D: Device>(rig: &Rig<'_, D>, buffer: &Buffer<D>) -> Result<Vec<u32>> {
    Ok(buffer.to_f32(rig.device())?.into_iter().map(f32::to_bits).collect())
}

fn attention<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, shape: Shape) -> Result<Verdict> {
    let setup = Setup::new(rig, dtype, shape)?;
    let expected = setup.expected(rig)?;
    let (naive, lse_expected) = setup.naive();
    let (out, lse) = setup.launch(rig, Some(64), &setup.segments)?;
    let mut verdict = judge(rig, dtype, &out, &expected, &naive)?;
    verdict = verdict.and(judge(rig, Dtype::F32, &lse, &lse_expected, &lse_expected)?);

    let (out, lse) = (bits(rig, &out)?, bits(rig, &lse)?);
    if dtype != Dtype::F32 {
        let (other, other_lse) = setup.launch(rig, Some(128), &setup.segments)?;
        verdict = verdict.and(judge_exact(&bits(rig, &other)?, &out));
        verdict = verdict.and(judge_exact(&bits(rig, &other_lse)?, &lse));
    }
    // The last sequence alone, in tiles as the launch chooses. (Masks of its own are counted from the first sequence.)
    if let (Full | Causal | Annealed | Shared, Some(s)) = (setup.kind, setup.segments.last()) {
        let rows = s.q_start * setup.width()..(s.q_start + s.q_len) * setup.width();
        let (alone, _) = setup.launch(rig, None, &[*s])?;
        let alone = bits(rig, &alone)?;
        verdict = verdict.and(judge_exact(&alone[rows.clone()], &out[rows]));
    }
    Ok(verdict)
}

/// A query whose position the mask has no bits for gets NaN; nothing beyond the mask is read.
fn unknown_position<D: Device>(rig: &Rig<'_, D>, dtype: Dtype) -> Result<Verdict> {
    let shape = Shape { lens: &[(20, 20)], heads: 1, kv_heads: 1, head_dim: 32, kind: Shared };
    let mut setup = Setup::new(rig, dtype, shape)?;
    let (whole, whole_lse) = setup.launch(rig, None, &setup.segments)?;
    let mut verdict: Option<Verdict> = None;
    for bad in [20, u32::MAX] {
        setup.q_pos[5] = bad;
        let (out, lse) = setup.launch(rig, None, &setup.segments)?;
        for (got, whole, width) in [(&out, &whole, setup.width()), (&lse, &whole_lse, 1)] {
            let is_nan = |b: u32| f32::from_bits(b).is_nan();
            let (got, whole) = (bits(rig, got)?, bits(rig, whole)?);
            let unknown = 5 * width..6 * width;
            let known = |at: usize| !unknown.contains(&at);
            let got: Vec<u32> =
                (got.iter().enumerate()).map(|(i, &b)| if known(i) { b } else { is_nan(b).into() }).collect();
            let expected: Vec<u32> =
                (whole.iter().enumerate()).map(|(i, &b)| if known(i) { b } else { 1 }).collect();
            let one = judge_exact(&got, &expected);
            verdict = Some(verdict.map_or(one, |v| v.and(one)));
        }
    }
    Ok(verdict.unwrap_or(Verdict { error: 1.0, bound: 0.0, fingerprint: 0 }))
}

/// What the launch refuses: one output for each, 1 where it does.
fn refusals<D: Device>(rig: &Rig<'_, D>) -> Result<Verdict> {
    let dtype = Dtype::Bf16;
    let shape = Shape { lens: &[(4, 40)], heads: 2, kv_heads: 1, head_dim: 32, kind: Shared };
    let good = || Setup::new(rig, dtype, shape);
    let mut refused: Vec<u32> = Vec::new();
    let mut try_one = |change: &dyn Fn(&mut Setup<D>)| -> Result<()> {
        let mut setup = good()?;
        change(&mut setup);
        let segments = setup.segments.clone();
        let result = setup.launch(rig, None, &segments);
        refused.push(matches!(result, Err(Error::Shape { .. } | Error::Request(_))).into());
        Ok(())
    };
    try_one(&|s| s.places[0].at += 4)?;
    try_one(&|s| s.places[1].stride += 4)?;
    try_one(&|s| s.places[2].at += 8 * 1024)?;
    try_one(&|s| s.heads.head_dim = 40)?;
    try_one(&|s| s.heads.kv_heads = 3)?;
    try_one(&|s| s.heads.scale = 0.0)?;
    try_one(&|s| s.words.truncate(1))?;
    try_one(&|s| s.segments[0].k_len += 1)?;
    try_one(&|s| s.segments[0].k_len = 1 << 31)?;
    try_one(&|s| s.segments.push(Segment { q_start: 3, q_len: 1, k_start: 0, k_len: 1 }))?;
    let expected = vec![1; refused.len()];
    Ok(judge_exact(&refused, &expected))
}
