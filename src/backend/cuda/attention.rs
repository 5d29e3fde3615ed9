//! Launches of `cuda/attention_fwd.cu` and `cuda/attention_fwd_f32.cu`.

use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::backend::{HeadShape, Rows, Segment, SegmentBounds};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 128;
/// Queries of a tile.
const SMALL: usize = 64;
const LARGE: usize = 128;
/// Of `mode`, as in `cuda/common/attention.cuh`.
const CAUSAL: u32 = 1;
const WORDS: u32 = 2;
const OP: &str = "attention";
/// Most rows: kernels count to the end of the last block of keys in 32 bits.
const MAX_ROWS: usize = i32::MAX as usize - 255;

/// Where the sequences of packed rows lie, on a device: what [`Cuda::attention`] goes by.
#[derive(Debug)]
pub struct Segments<D: Device> {
    /// `[room, 4]`.
    pub(super) places: Buffer<D>,
    scratch: Vec<[u32; 4]>,
    pub(super) sequences: usize,
    /// One more than the number of the last sequence with queries.
    masked: usize,
    pub(super) queries: usize,
    keys: usize,
    /// Pairs of a query and a key; of places that a kernel writes a guess, as if all sequences were of one length.
    pairs: usize,
    pub(super) q_rows: usize,
    pub(super) k_rows: usize,
    /// `keys` and `k_rows` with the sequences that have no queries.
    pub(super) all_keys: usize,
    pub(super) all_k_rows: usize,
    /// The keys of each sequence begin after those of the one before.
    pub(super) apart: bool,
    /// Tiles of [`SMALL`] and of [`LARGE`] queries, of one head.
    tiles: [usize; 2],
    /// Every row below `q_rows` is some sequence's query.
    pub(super) whole: bool,
}

impl<D: Device> Segments<D> {
    /// Checks and uploads the places of sequences.
    ///
    /// # Errors
    /// [`Error::Shape`] when the queries of one sequence do not begin after those of the one before, or a row number is
    /// about 2^31 or more; those of the device.
    pub fn new(device: &D, segments: &[Segment]) -> Result<Self> {
        let mut this = Self::with_room(device, segments.len())?;
        this.upload(device, segments)?;
        Ok(this)
    }

    /// Room for `sequences` sequences; none yet.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn with_room(device: &D, sequences: usize) -> Result<Self> {
        Ok(Self {
            places: Buffer::new(device, Format::U32, 4 * sequences.max(1))?,
            scratch: Vec::with_capacity(sequences),
            sequences: 0,
            masked: 0,
            queries: 0,
            keys: 0,
            pairs: 0,
            q_rows: 0,
            k_rows: 0,
            all_keys: 0,
            all_k_rows: 0,
            apart: true,
            tiles: [0; 2],
            whole: true,
        })
    }

    /// For places that a kernel writes: how far they may reach. Not all rows below `q_rows` need be a sequence's.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no room for so many sequences, or a row number is about 2^31 or more.
    pub fn bound(&mut self, bounds: SegmentBounds) -> Result<()> {
        let SegmentBounds { sequences, queries, q_rows, keys, k_rows } = bounds;
        if 4 * sequences > self.places.len() {
            let (expected, got) = (self.places.len() / 4, sequences);
            return Err(Error::Shape { op: OP, what: "sequences, at most", expected, got });
        }
        (self.q_rows, self.k_rows) = (end("query rows", q_rows, 0)?, end("key rows", k_rows, 0)?);
        (self.sequences, self.masked, self.queries, self.keys) = (sequences, sequences, queries, keys);
        (self.all_keys, self.all_k_rows, self.apart) = (keys, k_rows, false);
        // About as many as there may be.
        self.tiles = [SMALL, LARGE].map(|tile| q_rows.div_ceil(tile).max(sequences));
        self.whole = false;
        self.pairs = q_rows.saturating_mul(k_rows) / sequences.max(1);
        Ok(())
    }

    /// Where a kernel writes places: `[room, 4]` U32.
    pub(super) fn places_mut(&mut self) -> &mut Buffer<D> {
        &mut self.places
    }

    /// Other sequences in the same memory, which moves only when they are more than ever before. On an error it holds no
    /// sequences.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn upload(&mut self, device: &D, segments: &[Segment]) -> Result<()> {
        (self.sequences, self.masked, self.queries, self.keys) = (0, 0, 0, 0);
        (self.q_rows, self.k_rows, self.tiles, self.whole) = (0, 0, [0; 2], true);
        (self.all_keys, self.all_k_rows, self.apart) = (0, 0, true);
        self.scratch.clear();
        let (mut masked, mut queries, mut keys, mut q_rows, mut k_rows) = (0, 0, 0, 0, 0);
        let (mut tiles, mut whole) = ([0_usize; 2], true);
        let (mut all_keys, mut all_k_rows, mut apart, mut pairs) = (0, 0, true, 0_usize);
        for (i, s) in segments.iter().enumerate() {
            let k_start = if s.k_len == 0 { 0 } else { s.k_start };
            let k_end = end("key rows", k_start, s.k_len)?;
            if s.k_len > 0 {
                apart &= k_start >= all_k_rows;
                all_k_rows = all_k_rows.max(k_end);
                all_keys = all_keys.max(s.k_len);
            }
            if s.q_len == 0 {
                // No query reads these keys; they have a gradient all the same.
                self.scratch.push([0, 0, k_start as u32, s.k_len as u32]);
                continue;
            }
            if s.q_start < q_rows {
                let what = "start of a sequence's queries";
                return Err(Error::Shape { op: OP, what, expected: q_rows, got: s.q_start });
            }
            whole &= s.q_start == q_rows;
            q_rows = end("query rows", s.q_start, s.q_len)?;
            k_rows = k_rows.max(k_end);
            masked = i + 1;
            pairs = pairs.saturating_add(s.q_len.saturating_mul(s.k_len));
            queries = queries.max(s.q_len);
            keys = keys.max(s.k_len);
            tiles[0] += s.q_len.div_ceil(SMALL);
            tiles[1] += s.q_len.div_ceil(LARGE);
            // All are below 2^31: `end` says so.
            self.scratch.push([s.q_start as u32, s.q_len as u32, k_start as u32, s.k_len as u32]);
        }
        if 4 * segments.len() > self.places.len() {
            self.places = Buffer::new(device, Format::U32, 4 * segments.len())?;
        }
        self.places.send(device, 0, bytemuck::cast_slice::<[u32; 4], u32>(&self.scratch))?;
        (self.sequences, self.masked, self.queries, self.keys) = (segments.len(), masked, queries, keys);
        (self.q_rows, self.k_rows, self.tiles, self.whole) = (q_rows, k_rows, tiles, whole);
        self.pairs = pairs;
        (self.all_keys, self.all_k_rows, self.apart) = (all_keys, all_k_rows, apart);
        Ok(())
    }

    /// Sequences.
    pub fn len(&self) -> usize {
        self.sequences
    }

    pub fn is_empty(&self) -> bool {
        self.sequences == 0
    }

    /// Rows of queries, rows of keys, and pairs of the two.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.q_rows, self.k_rows, self.pairs]
    }

    /// Rows of queries, up to the last of any sequence.
    pub fn q_rows(&self) -> usize {
        self.q_rows
    }

    /// Rows of keys, up to the last of any sequence.
    pub fn k_rows(&self) -> usize {
        self.k_rows
    }
}

fn end(what: &'static str, start: usize, len: usize) -> Result<usize> {
    let got = start.saturating_add(len);
    if got > MAX_ROWS {
        return Err(Error::Shape { op: OP, what, expected: MAX_ROWS, got });
    }
    Ok(got)
}

/// Which keys a query may see, as [`Mask`](crate::backend::Mask), with the bits on a device. Positions are counted within the
/// sequence; that of each query row comes from `q_pos`.
#[derive(Debug)]
pub enum DeviceMask<'a, D: Device> {
    /// All keys of the sequence.
    Full,
    /// Keys at positions up to the query's.
    Causal,
    /// Causal, or the bit of (query, key) is set: bit `key % 32` of `words[query * stride + key / 32]`. One draw for all
    /// sequences and heads.
    Annealed { words: &'a Buffer<D>, stride: usize },
    /// The bit is set: bit `key % 32` of `words[sequence * segment_stride + query * query_stride + key / 32]`. A
    /// `query_stride` of 0 is a mask of keys, a `segment_stride` of 0 one mask for all sequences.
    Bits { words: &'a Buffer<D>, segment_stride: usize, query_stride: usize },
}

impl<D: Device> Copy for DeviceMask<'_, D> {}

impl<D: Device> Clone for DeviceMask<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Cuda<D> {
    /// Softmax attention of packed sequences, as [`Forward::attention`](crate::backend::Forward::attention).
    ///
    /// `q` `[q rows, heads * head_dim]`, `k` and `v` `[k rows, kv_heads * head_dim]` are (buffer, placement), of format `dtype`,
    /// and may be columns of one buffer; each row begins on 16 bytes. `q_pos` (u32) has the position within its sequence
    /// of each query row; with [`DeviceMask::Full`] it is not looked at. `out` is `[q rows, heads * head_dim]`. `lse`, f32
    /// `[heads, q rows]`, gets the logarithm of each query's sum of exponentials. A query that sees no key gets zeros and -inf; one
    /// whose position a mask of bits does not know gets NaN. Rows of `out` and `lse` that are no sequence's stay as they are.
    ///
    /// A query's bits depend on its own sequence alone.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short or of another format, a row is not aligned, there is no kernel for
    /// the head width, or a mask has too few words; [`Error::Request`] for a scale that is not above 0; those of the device.
    #[allow(clippy::too_many_arguments)]
    pub fn attention(
        &self,
        dtype: Dtype,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: DeviceMask<'_, D>,
        out: &mut Buffer<D>,
        lse: Option<&mut Buffer<D>>,
    ) -> Result<()> {
        // A large tile does more for each key that it reads, where it is not half empty and there are enough of them
        // for two on every multiprocessor.
        let [small, large] = segments.tiles;
        let filled = large.saturating_mul(shape.heads) >= 2 * self.device.facts().multiprocessors as usize;
        let tile = if filled && 2 * small >= 3 * large { LARGE } else { SMALL };
        self.attention_in_tiles(tile, dtype, q, k, v, shape, segments, q_pos, mask, out, lse)
    }

    /// [`attention`](Self::attention) in tiles of 64 or 128 queries (f32: 64). They give the same bits.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn attention_in_tiles(
        &self,
        tile: usize,
        dtype: Dtype,
        q: (&Buffer<D>, Rows),
        k: (&Buffer<D>, Rows),
        v: (&Buffer<D>, Rows),
        shape: HeadShape,
        segments: &Segments<D>,
        q_pos: &Buffer<D>,
        mask: DeviceMask<'_, D>,
        out: &mut Buffer<D>,
        lse: Option<&mut Buffer<D>>,
    ) -> Result<()> {
        let HeadShape { heads, kv_heads, head_dim, scale } = shape;
        let tile = if dtype == Dtype::F32 { SMALL } else { tile };
        let Some(kernel) = kernel(dtype, head_dim, tile) else {
            let what = "head width of a kernel (32, 48, 64, 80, 96 or 128)";
            return Err(Error::Shape { op: OP, what, expected: 128, got: head_dim });
        };
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            let what = "query heads, a multiple of the key/value heads,";
            return Err(Error::Shape { op: OP, what, expected: kv_heads, got: heads });
        }
        let scale_log2 = (scale * std::f64::consts::LOG2_E) as f32;
        if !(scale_log2.is_normal() && scale_log2 > 0.0) {
            return Err(Error::Request(format!("attention: expected a scale above 0, got {scale}")));
        }
        let width = product(OP, "heads", heads, head_dim)?;
        let q_rows = segments.q_rows;
        let total = product(OP, "out", q_rows, width)?;
        let lse_total = product(OP, "lse", q_rows, heads)?;
        if q_rows == 0 {
            return Ok(());
        }
        let group = heads / kv_heads;
        let tiles = product(OP, "tiles", segments.queries.div_ceil(tile), group)?;
        let grid = [tiles, kv_heads, segments.sequences];
        let mut launch = Launch::new(kernel, grid, THREADS, shared_bytes(dtype, head_dim, tile))?;
        let mut strides = [0; 3];
        let placed = [
            ("q", q, q_rows, width),
            ("k", k, segments.k_rows, width / group),
            ("v", v, segments.k_rows, width / group),
        ];
        for (stride, (name, (buffer, at), rows, width)) in strides.iter_mut().zip(placed) {
            *stride = read_rows(&mut launch, dtype, name, buffer, at, rows, width)?;
        }
        launch.read("segments", &segments.places, Format::U32, 0, 4 * segments.sequences)?;
        match mask {
            DeviceMask::Full => launch.null(),
            _ => launch.read("q_pos", q_pos, Format::U32, 0, q_rows)?,
        };
        let plan = MaskPlan::new(mask, segments)?;
        launch.read_or_null("words", plan.words, Format::U32, 0, plan.words.map_or(0, Buffer::len))?;
        let lse_format = Dtype::F32;
        if segments.whole {
            launch.write("out", out, dtype, 0, total)?;
            match lse {
                Some(lse) => launch.write("lse", lse, lse_format, 0, lse_total)?,
                None => launch.null(),
            };
        } else {
            launch.update("out", out, dtype, 0, total)?;
            match lse {
                Some(lse) => launch.update("lse", lse, lse_format, 0, lse_total)?,
                None => launch.null(),
            };
        }
        plan.push_sizes(&mut launch, strides, group, q_rows)?.f32(scale_log2);
        // SAFETY: the kernel reads the rows of the segments, which `Segments` keeps below `q_rows` and `k_rows`, at the
        // strides and widths checked by `read_rows`; words of queries below `plan.queries` (it looks) and keys of the
        // segments, which `MaskPlan::new` found there; it writes rows of `out` and `lse` below `q_rows`.
        unsafe { self.launch(&launch) }
    }
}

/// Adds rows of `width` numbers to the arguments; their stride in bytes.
pub(super) fn read_rows<'a, D: Device>(
    launch: &mut Launch<'a>,
    dtype: Dtype,
    name: &'static str,
    buffer: &'a Buffer<D>,
    at: Rows,
    rows: usize,
    width: usize,
) -> Result<usize> {
    let pack = 16 / dtype.size();
    for (what, numbers) in [
        ("numbers before row 0, a multiple of 16 bytes,", at.at),
        ("stride, a multiple of 16 bytes,", at.stride),
    ] {
        if numbers % pack != 0 {
            return Err(Error::Shape {
                op: OP,
                what,
                expected: numbers.next_multiple_of(pack),
                got: numbers,
            });
        }
    }
    if rows == 0 {
        launch.read(name, buffer, dtype, 0, 0)?;
        return Ok(0);
    }
    let len = product(OP, name, rows - 1, at.stride)?.saturating_add(width);
    launch.read(name, buffer, dtype, at.at, len)?;
    product(OP, name, at.stride, dtype.size())
}

/// A mask as the kernels take it.
pub(super) struct MaskPlan<'a, D: Device> {
    pub(super) mode: u32,
    pub(super) words: Option<&'a Buffer<D>>,
    /// Positions that there are bits for.
    pub(super) queries: usize,
    pub(super) query_stride: usize,
    pub(super) segment_stride: usize,
}

impl<'a, D: Device> MaskPlan<'a, D> {
    /// Adds the strides in bytes of rows of q, k and v, and what the kernels know of heads, rows and mask.
    pub(super) fn push_sizes<'l, 'b>(
        &self,
        launch: &'l mut Launch<'b>,
        strides: [usize; 3],
        group: usize,
        q_rows: usize,
    ) -> Result<&'l mut Launch<'b>> {
        for (name, stride) in
            ["q stride in bytes", "k stride in bytes", "v stride in bytes"].into_iter().zip(strides)
        {
            launch.size(name, stride)?;
        }
        launch
            .size("group", group)?
            .size("q rows", q_rows)?
            .u32(self.mode)
            .size("mask rows", self.queries)?
            .size("query stride", self.query_stride)?
            .size("segment stride", self.segment_stride)
    }

    pub(super) fn new(mask: DeviceMask<'a, D>, segments: &Segments<D>) -> Result<Self> {
        let none = |mode| Self { mode, words: None, queries: 0, query_stride: 0, segment_stride: 0 };
        match mask {
            DeviceMask::Full => Ok(none(0)),
            DeviceMask::Causal => Ok(none(CAUSAL)),
            DeviceMask::Annealed { words, stride } => {
                Self::of_words(CAUSAL | WORDS, words, 0, stride, segments)
            }
            DeviceMask::Bits { words, segment_stride, query_stride } => {
                Self::of_words(WORDS, words, segment_stride, query_stride, segments)
            }
        }
    }

    fn of_words(
        mode: u32,
        words: &'a Buffer<D>,
        segment_stride: usize,
        query_stride: usize,
        segments: &Segments<D>,
    ) -> Result<Self> {
        let row = segments.keys.div_ceil(32);
        if (query_stride != 0 || mode & CAUSAL != 0) && query_stride < row {
            let what = "words of a query's mask";
            return Err(Error::Shape { op: OP, what, expected: row, got: query_stride });
        }
        // What is left for the rows of the last sequence, after the first one's first.
        let before = product(OP, "words", segments.masked.saturating_sub(1), segment_stride)?;
        let least = before.saturating_add(row);
        let Some(mut left) = words.len().checked_sub(least) else {
            return Err(Error::Shape { op: OP, what: "words", expected: least, got: words.len() });
        };
        if segments.masked > 1 && segment_stride > 0 {
            left = left.min(segment_stride.saturating_sub(row));
        }
        let queries = left.checked_div(query_stride).map_or(i32::MAX as usize, |n| n.saturating_add(1));
        let queries = queries.min(i32::MAX as usize);
        Ok(Self { mode, words: Some(words), queries, query_stride, segment_stride })
    }
}

/// Bytes of dynamic shared memory: tiles of q, k and v, in f32 of weights, as the kernels lay them out.
fn shared_bytes(dtype: Dtype, head_dim: usize, tile: usize) -> usize {
    if dtype == Dtype::F32 {
        let keys = if head_dim <= 64 { 64 } else { 32 };
        return ((tile + 2 * keys) * (head_dim + 4) + tile * (keys + 4)) * 4;
    }
    let stride = if head_dim.is_multiple_of(64) { head_dim } else { head_dim + 8 };
    let blocks = if head_dim <= 64 { 4 } else { 2 };
    (tile + 64 * blocks) * stride * 2
}

fn kernel(dtype: Dtype, head_dim: usize, tile: usize) -> Option<&'static str> {
    macro_rules! named {
        ($($d:literal)*) => {
            match (dtype, head_dim, tile) {
                $(
                    (Dtype::F32, $d, SMALL) => Some(concat!("attention_fwd_d", $d, "_f32")),
                    (Dtype::F16, $d, SMALL) => Some(concat!("attention_fwd_d", $d, "_m64_f16")),
                    (Dtype::F16, $d, LARGE) => Some(concat!("attention_fwd_d", $d, "_m128_f16")),
                    (Dtype::Bf16, $d, SMALL) => Some(concat!("attention_fwd_d", $d, "_m64_bf16")),
                    (Dtype::Bf16, $d, LARGE) => Some(concat!("attention_fwd_d", $d, "_m128_bf16")),
                )*
                _ => None,
            }
        };
    }
    named!(32 48 64 80 96 128)
}
