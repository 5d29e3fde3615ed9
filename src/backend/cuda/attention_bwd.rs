//! Launches of `cuda/attention_bwd.cu` and `cuda/attention_bwd_f32.cu`.

use super::attention::{MaskPlan, read_rows};
use super::{Buffer, Cuda, Device, DeviceMask, Format, Launch, Segments, product};
use crate::backend::{HeadShape, Rows};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 128;
/// Keys, and queries, of a tile.
const TILE: usize = 64;
const OP: &str = "attention backward";

/// What an attention read and gave, as its gradient needs it.
struct Kept<'a, D: Device> {
    dtype: Dtype,
    q: (&'a Buffer<D>, Rows),
    k: (&'a Buffer<D>, Rows),
    v: (&'a Buffer<D>, Rows),
    lse: &'a Buffer<D>,
    d_out: &'a Buffer<D>,
    shape: HeadShape,
    segments: &'a Segments<D>,
    q_pos: &'a Buffer<D>,
    plan: MaskPlan<'a, D>,
    width: usize,
}

impl<D: Device> Cuda<D> {
    /// The gradient of [`attention`](Self::attention), as
    /// [`Backward::attention_backward`](crate::backend::Backward::attention_backward).
    ///
    /// `out` and `lse` are what attention gave for the same arguments, `d_out` is laid out as `out`. The gradients of queries, keys
    /// and values are written (`=`) in `dtype` into `d_qkv` at three places, columns of the same rows that share none and begin on
    /// 16 bytes, for all rows of the segments; other numbers stay as they are. `dots` is scratch, f32 `[heads, q rows]`. A query that
    /// sees no key, and a key that no query sees, have zeros. A query whose position a mask of bits does not know gets NaN, and the
    /// keys that position 0 sees get NaN from it; the other keys of its sequence may.
    ///
    /// Every sum has one order; the gradients of a sequence depend on it alone.
    ///
    /// # Errors
    /// Those of [`attention`](Self::attention); [`Error::Shape`] when the keys of one sequence do not begin after those of the one
    /// before, or the three places overlap or differ in stride.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_backward(
        &self,
        dtype: Dtype,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        out: &Buffer<D>,
        lse: &Buffer<D>,
        d_out: &Buffer<D>,
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: DeviceMask<'_, D>,
        dots: &mut Buffer<D>,
        d_qkv: &mut Buffer<D>,
        places: [Rows; 3],
    ) -> Result<()> {
        let HeadShape { heads, kv_heads, head_dim, scale } = shape;
        let Some([dots_kernel, kv_kernel, q_kernel]) = kernels(dtype, head_dim) else {
            let what = "head width of a kernel (32, 48, 64, 80, 96 or 128)";
            return Err(Error::Shape { op: OP, what, expected: 128, got: head_dim });
        };
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            let what = "query heads, a multiple of the key/value heads,";
            return Err(Error::Shape { op: OP, what, expected: kv_heads, got: heads });
        }
        let (scale, scale_log2) = (scale as f32, (scale * std::f64::consts::LOG2_E) as f32);
        if !(scale.is_normal() && scale_log2.is_normal() && scale_log2 > 0.0) {
            return Err(Error::Request(format!("attention: expected a scale above 0, got {}", shape.scale)));
        }
        if !segments.apart {
            let what = "sequences whose keys may be those of another";
            return Err(Error::Shape { op: OP, what, expected: 0, got: segments.sequences });
        }
        let width = product(OP, "heads", heads, head_dim)?;
        let kv_width = width / (heads / kv_heads);
        check_places(dtype, places, [width, kv_width, kv_width])?;
        let (q_rows, k_rows) = (segments.q_rows, segments.all_k_rows);
        let total = product(OP, "out", q_rows, width)?;
        let numbers = product(OP, "dots", q_rows, heads)?;
        let plan = MaskPlan::new(mask, segments)?;
        let kept = Kept { dtype, q, k, v, lse, d_out, shape, segments, q_pos, plan, width };

        let rows = dot_rows(dtype, head_dim);
        let grid = [segments.queries.div_ceil(rows), heads, segments.sequences];
        let mut first = Launch::new(dots_kernel, grid, THREADS, 0)?;
        first.read("out", out, dtype, 0, total)?.read("d_out", d_out, dtype, 0, total)?;
        first.read("segments", &segments.places, Format::U32, 0, 4 * segments.sequences)?;
        if segments.whole {
            first.write("dots", dots, Dtype::F32, 0, numbers)?;
        } else {
            first.update("dots", dots, Dtype::F32, 0, numbers)?;
        }
        first.size("q rows", q_rows)?;
        if !first.is_empty() {
            // SAFETY: the kernel reads and writes rows of the segments, which are below `q_rows`, of `heads` heads.
            unsafe { self.launch(&first) }?;
        }

        let shared = shared_bytes(dtype, head_dim);
        let end = |place: Rows, rows: usize, width: usize| {
            let before = product(OP, "d_qkv", rows.saturating_sub(1), place.stride)?;
            Ok::<_, Error>(if rows == 0 { 0 } else { before.saturating_add(width) })
        };
        let [d_q, d_k, d_v] = places;
        let stride = product(OP, "d_qkv", d_q.stride, dtype.size())?;

        let grid = [segments.all_keys.div_ceil(TILE), kv_heads, segments.sequences];
        let mut keys = Launch::new(kv_kernel, grid, THREADS, shared[0])?;
        let base = d_k.at.min(d_v.at);
        let (k_at, v_at) = (d_k.at - base, d_v.at - base);
        let len = end(d_k, k_rows, k_at.max(v_at).saturating_add(kv_width))?;
        kept.arguments(&mut keys, dots, d_qkv, base, len)?;
        keys.size("d_qkv stride in bytes", stride)?.size("place of d_k", k_at)?.size("place of d_v", v_at)?;
        if !keys.is_empty() {
            // SAFETY: the kernel reads the rows of the segments (`Segments` keeps them below `q_rows` and `all_k_rows`) at the
            // strides and widths that `arguments` checked; words of queries below `plan.queries` (it looks) and keys of
            // segments with queries, which `MaskPlan::new` found there; it writes rows of `d_qkv` below `all_k_rows`.
            unsafe { self.launch(&keys) }?;
        }

        let tiles = product(OP, "tiles", segments.queries.div_ceil(TILE), heads / kv_heads)?;
        let mut queries = Launch::new(q_kernel, [tiles, kv_heads, segments.sequences], THREADS, shared[1])?;
        let len = end(d_q, q_rows, width)?;
        kept.arguments(&mut queries, dots, d_qkv, d_q.at, len)?;
        queries.size("d_qkv stride in bytes", stride)?;
        if !queries.is_empty() {
            // SAFETY: as before; it writes rows of `d_qkv` below `q_rows`.
            unsafe { self.launch(&queries) }?;
        }
        Ok(())
    }
}

impl<D: Device> Kept<'_, D> {
    /// The arguments that the kernels of keys and of queries share. `d_qkv` is given from number `at` on.
    fn arguments<'a>(
        &'a self,
        launch: &mut Launch<'a>,
        dots: &'a Buffer<D>,
        d_qkv: &'a mut Buffer<D>,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let (segments, heads) = (self.segments, self.shape.heads);
        let group = heads / self.shape.kv_heads;
        let (q_rows, width) = (segments.q_rows, self.width);
        let placed = [
            ("q", self.q, q_rows, width),
            ("k", self.k, segments.all_k_rows, width / group),
            ("v", self.v, segments.all_k_rows, width / group),
        ];
        let mut strides = [0; 3];
        for (stride, (name, (buffer, rows_at), rows, width)) in strides.iter_mut().zip(placed) {
            *stride = read_rows(launch, self.dtype, name, buffer, rows_at, rows, width)?;
        }
        launch.read("segments", &segments.places, Format::U32, 0, 4 * segments.sequences)?;
        match self.plan.mode {
            0 => launch.null(),
            _ => launch.read("q_pos", self.q_pos, Format::U32, 0, q_rows)?,
        };
        let words = self.plan.words;
        launch.read_or_null("words", words, Format::U32, 0, words.map_or(0, Buffer::len))?;
        launch.read("d_out", self.d_out, self.dtype, 0, q_rows * width)?;
        launch.read("lse", self.lse, Dtype::F32, 0, q_rows * heads)?;
        launch.read("dots", dots, Dtype::F32, 0, q_rows * heads)?;
        launch.update("d_qkv", d_qkv, self.dtype, at, len)?;
        // The kernels count bytes of a row of `d_out` in 32 bits.
        if product(OP, "d_out", width, self.dtype.size())? > i32::MAX as usize {
            let what = "numbers in a row of d_out, at most";
            return Err(Error::Shape {
                op: OP,
                what,
                expected: i32::MAX as usize / self.dtype.size(),
                got: width,
            });
        }
        self.plan
            .push_sizes(launch, strides, group, q_rows)?
            .f32(self.shape.scale as f32)
            .f32((self.shape.scale * std::f64::consts::LOG2_E) as f32);
        Ok(())
    }
}

/// The three places are columns of the same rows, share none, and begin on 16 bytes.
fn check_places(dtype: Dtype, places: [Rows; 3], widths: [usize; 3]) -> Result<()> {
    let pack = 16 / dtype.size();
    for numbers in places.iter().flat_map(|p| [p.at, p.stride]) {
        if numbers % pack != 0 {
            let (what, expected) =
                ("place of a gradient, a multiple of 16 bytes,", numbers.next_multiple_of(pack));
            return Err(Error::Shape { op: OP, what, expected, got: numbers });
        }
    }
    let mut spans = [0, 1, 2].map(|i| (places[i].at, places[i].at.saturating_add(widths[i])));
    spans.sort_unstable();
    let stride = places[0].stride;
    let ordered = spans[0].1 <= spans[1].0 && spans[1].1 <= spans[2].0;
    if ordered && spans[2].1 <= spans[0].0.saturating_add(stride) && places.iter().all(|p| p.stride == stride)
    {
        return Ok(());
    }
    Err(Error::Shape { op: OP, what: "numbers shared by the three gradients", expected: 0, got: 1 })
}

/// Rows that a block of the kernel of dots has.
fn dot_rows(dtype: Dtype, head_dim: usize) -> usize {
    let chunks = head_dim * dtype.size() / 16;
    // Lanes of a row: the largest power of two that divides its pieces of 16 bytes.
    4 * THREADS as usize / (1 << chunks.trailing_zeros())
}

/// Bytes of dynamic shared memory of the kernels of keys and of queries, as they lay it out.
fn shared_bytes(dtype: Dtype, head_dim: usize) -> [usize; 2] {
    // Of a `QueryBlock` of so many queries.
    let known = |queries: usize| 4 * (4 * queries + 4 * queries / 32);
    if dtype == Dtype::F32 {
        let tiles = (192 * (head_dim + 4) + TILE * (32 + 4)) * 4;
        return [tiles + known(32), tiles];
    }
    let stride = if head_dim.is_multiple_of(64) { head_dim } else { head_dim + 8 };
    // As the kernels are made.
    let (queries, keys) = (if head_dim == 128 { 32 } else { 64 }, if head_dim > 80 { 32 } else { 64 });
    [(2 * TILE + 4 * queries) * stride * 2 + 2 * known(queries), (2 * TILE + 4 * keys) * stride * 2]
}

/// The kernels of dots, of keys and of queries.
fn kernels(dtype: Dtype, head_dim: usize) -> Option<[&'static str; 3]> {
    macro_rules! named {
        ($($d:literal)*) => {
            match (dtype, head_dim) {
                $(
                    (Dtype::F32, $d) => Some(named!($d, "_f32")),
                    (Dtype::F16, $d) => Some(named!($d, "_f16")),
                    (Dtype::Bf16, $d) => Some(named!($d, "_bf16")),
                )*
                _ => None,
            }
        };
        ($d:literal, $format:literal) => {
            [
                concat!("attention_bwd_dots_d", $d, $format),
                concat!("attention_bwd_kv_d", $d, $format),
                concat!("attention_bwd_q_d", $d, $format),
            ]
        };
    }
    named!(32 48 64 80 96 128)
}
