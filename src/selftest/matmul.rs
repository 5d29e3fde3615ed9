//! Cases of `cuda/matmul.cu` and `cuda/matmul_f32.cu`, and of the device's matrix library.

use std::ops::Range;

use bytes::Bytes;

use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Device, LinearEpilogue, Matrix, Tile};
use crate::backend::{Backend, Epilogue, Forward, Layout, Rows};
use crate::config::Activation;
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

pub(super) const TILES: [Tile; 5] = [Tile::Few, Tile::Small, Tile::Medium, Tile::Large, Tile::Any];

/// With bias, activation, accumulate.
const EPILOGUES: [(bool, Option<Activation>, bool); 7] = [
    (true, None, false),
    (true, Some(Activation::GeluTanh), false),
    (true, None, true),
    (false, None, false),
    (true, Some(Activation::GeluErf), false),
    (false, None, true),
    (false, Some(Activation::Silu), false),
];

/// How rows and columns lie in their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// Whole buffers.
    Dense,
    /// Parts that begin on 16 bytes.
    Aligned,
    /// Parts that begin anywhere.
    Odd,
}

#[derive(Clone, Copy)]
struct Product {
    dtype: Dtype,
    layout: Layout,
    rows: usize,
    columns: usize,
    inputs: usize,
    /// `None`: the one that the launch code takes.
    tile: Option<Tile>,
    placement: Placement,
    epilogue: (bool, Option<Activation>, bool),
    widened: bool,
    /// By the device's matrix library.
    library: bool,
}

impl Product {
    /// Whole buffers of the given sizes, and nothing but the product.
    const fn plain(dtype: Dtype, layout: Layout, (rows, columns, inputs): (usize, usize, usize)) -> Self {
        Self {
            dtype,
            layout,
            rows,
            columns,
            inputs,
            tile: None,
            placement: Placement::Dense,
            epilogue: (false, None, false),
            widened: false,
            library: false,
        }
    }

    /// As in `7 x 64 x 130, Dense, bias`: rows, inputs and columns, and what else matters.
    fn words(&self) -> String {
        let Product { rows, inputs, columns, placement, .. } = self;
        let (bias, activation, adds) = self.epilogue;
        let tile = self.tile.map_or(String::new(), |t| format!(", tile {t:?}"));
        let how = match (activation, adds) {
            (Some(activation), _) => format!(", {activation:?}"),
            (None, true) => ", added".into(),
            (None, false) => String::new(),
        };
        let (bias, out) = (if bias { ", bias" } else { "" }, if self.widened { ", f32 out" } else { "" });
        format!("{rows} x {inputs} x {columns}{tile}, {placement:?}{bias}{how}{out}")
    }
}

/// Products that a matrix library is asked for, in the two ways in which weights lie; a device without one cannot run them.
pub fn library_cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes = grid.choose(
        &[(17, 40, 32), (1, 64, 96)],
        &[
            (1, 256, 768),
            (2, 130, 256),
            (8, 64, 64),
            (16, 2304, 768),
            (31, 96, 200),
            (64, 768, 768),
            (129, 136, 72),
            (200, 264, 1024),
            (512, 512, 512),
        ],
    );
    let kinds = kinds().filter(|&(dtype, _)| dtype != Dtype::F32);
    let mut cases = Vec::new();
    for (turn, ((dtype, layout), &sizes)) in
        kinds.flat_map(|kind| shapes.iter().map(move |shape| (kind, shape))).enumerate()
    {
        for i in 0..3 {
            // What the library is asked for is what a model has: GELU by tanh, and f32 without a bias.
            let epilogue = [
                (true, Some(Activation::GeluTanh), false),
                (true, None, true),
                (false, None, false),
                (true, None, false),
                (false, None, true),
                (false, Some(Activation::GeluTanh), false),
            ][(turn + 2 * i) % 6];
            let placement = [Placement::Dense, Placement::Aligned][(turn + i) % 2];
            let widened = !epilogue.0 && (turn + i) % 3 == 0;
            let plain = Product::plain(dtype, layout, sizes);
            let p = Product { placement, epilogue, widened, library: true, ..plain };
            let name = format!("library_{}_{dtype}", if layout == Layout::OutIn { "nt" } else { "nn" });
            cases.push(Case::new("library", name, p.words(), move |rig: &Rig<'_, D>| product(rig, p)));
        }
    }
    cases
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes = grid.choose(
        &[(17, 33, 40), (3, 64, 33), (2, 40, 72)],
        &[
            (1, 257, 100),
            (2, 130, 257),
            (7, 64, 64),
            (16, 130, 64),
            (16, 33, 31),
            (17, 257, 16),
            (33, 64, 104),
            (129, 136, 72),
            (129, 257, 33),
            (1, 1, 16),
            (65, 264, 40),
            (16, 72, 264),
            (3, 1031, 64),
            (33, 130, 200),
            (5, 24, 0),
        ],
    );
    let mut cases = Vec::new();
    let mut add = |p: Product| {
        cases.push(Case::new("matmul", name(p.dtype, p.layout), p.words(), move |rig: &Rig<'_, D>| {
            product(rig, p)
        }));
    };
    let mut turn = 0;
    for (dtype, layout) in kinds() {
        let plain = |sizes| Product::plain(dtype, layout, sizes);
        for &sizes in &shapes {
            turn += 1;
            let tile = (turn % 6 != 0).then(|| TILES[turn % 5]);
            let placement = [Placement::Dense, Placement::Aligned, Placement::Odd][turn % 3];
            let (epilogue, widened) = (EPILOGUES[turn % 7], turn % 4 == 0);
            add(Product { tile, placement, epilogue, widened, ..plain(sizes) });
        }
        // More slices of k than buffers in the ring.
        for (i, tile) in TILES.into_iter().enumerate().filter(|&(i, _)| i == 0 || dtype != Dtype::F32) {
            let sizes = if tile == Tile::Few { (2, 40, 648) } else { (5, 72, 200) };
            add(Product { tile: Some(tile), epilogue: EPILOGUES[i], ..plain(sizes) });
        }
        // Every end of a tile, on small ones.
        for (i, epilogue) in EPILOGUES.into_iter().enumerate().filter(|_| grid == Grid::Full) {
            for (placement, widened) in [
                (Placement::Dense, false),
                (Placement::Aligned, true),
                (Placement::Odd, false),
                (Placement::Odd, true),
            ] {
                let tile = Some(TILES[i % 2]);
                add(Product { tile, placement, epilogue, widened, ..plain((18, 40, 24)) });
            }
        }
    }
    let equal = grid.choose(&[(18, 40, 40)], &[(130, 136, 104), (35, 72, 264)]);
    for (dtype, layout) in kinds() {
        for &(rows, columns, inputs) in &equal {
            let shape = format!("{rows} x {inputs} x {columns}, all tiles and numbers of rows agree");
            cases.push(Case::new("matmul", name(dtype, layout), shape, move |rig: &Rig<'_, D>| {
                agreement(rig, dtype, layout, rows, columns, inputs)
            }));
        }
    }
    cases
}

pub(super) fn kinds() -> impl Iterator<Item = (Dtype, Layout)> {
    DTYPES.into_iter().flat_map(|dtype| [(dtype, Layout::OutIn), (dtype, Layout::InOut)])
}

fn name(dtype: Dtype, layout: Layout) -> String {
    format!("matmul_{}_{dtype}", if layout == Layout::OutIn { "nt" } else { "nn" })
}

/// A weight of random numbers, on the host as a file would hold it.
pub(super) fn weight<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    layout: Layout,
    inputs: usize,
    outputs: usize,
) -> Result<StoredTensor> {
    let mut random = rig.random(2);
    let mut bytes = Vec::new();
    for _ in 0..inputs * outputs {
        let x = random.number() as f32;
        match dtype {
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
        }
    }
    let shape = if layout == Layout::OutIn { vec![outputs, inputs] } else { vec![inputs, outputs] };
    StoredTensor::new(dtype, shape, Bytes::from(bytes))
}

fn product<D: Device>(rig: &Rig<'_, D>, p: Product) -> Result<Verdict> {
    let Product { dtype, layout, rows, columns, inputs, .. } = p;
    let (with_bias, activation, accumulate) = p.epilogue;
    // First number of x, gap behind its rows; the same of out; columns of the weight before and behind.
    let [x_at, x_gap, out_at, out_gap, before, behind] = match p.placement {
        Placement::Dense => [0; 6],
        Placement::Aligned => [8, 16, 16, 24, 8, 16],
        Placement::Odd => [3, 5, 5, 3, 7, 2],
    };
    let x_rows = Rows { at: x_at, stride: inputs + x_gap };
    let out_rows = Rows { at: out_at, stride: columns + out_gap };
    let outputs: Range<usize> = before..before + columns;
    let total = before + columns + behind;
    let out_dtype = if p.widened { Dtype::F32 } else { dtype };

    let (x, x_device) = rig.input(1, dtype, x_at + rows * x_rows.stride, 2.0)?;
    let tensor = weight(rig, dtype, layout, inputs, total)?;
    let (bias, bias_device) = rig.input(3, dtype, total, 1.0)?;
    let out_len = out_at + rows * out_rows.stride;
    let (old, mut out) = if accumulate {
        rig.input(4, out_dtype, out_len, 3.0)?
    } else {
        (vec![f64::NAN; out_len], rig.poisoned(out_dtype, out_len)?)
    };
    let matrix = Matrix::upload(rig.device(), &tensor, layout)?;
    let epilogue = LinearEpilogue { bias: with_bias.then_some(&bias_device), activation, accumulate };
    let (x_part, out_part) = ((&x_device, x_rows), (&mut out, out_rows));
    let cuda = if p.library { rig.library()? } else { rig.cuda };
    let before = cuda.device().counts();
    cuda.linear_by(p.tile, dtype, x_part, rows, &matrix, outputs.clone(), epilogue, out_part, out_dtype)?;
    if p.library && (cuda.device().counts() - before).library == 0 {
        return Err(Error::Device {
            device: rig.device().facts().name.clone(),
            what: format!("{} has no algorithm for this", cuda.library().unwrap_or_default()),
            hint: "the program's own kernels are used instead, which may be slower".into(),
        });
    }

    // Only the numbers of the product may have changed.
    let got: Vec<f64> = out.to_f32(rig.device())?.into_iter().map(f64::from).collect();
    let inside = |i: usize| i >= out_at && (i - out_at) % out_rows.stride < columns;
    let touched =
        (0..out_len).filter(|&i| !inside(i) && got[i].to_bits() != (old[i] as f32 as f64).to_bits());
    let touched = touched.filter(|&i| accumulate || !got[i].is_nan()).count();
    if touched > 0 {
        return Ok(Verdict { error: touched as f64, bound: 0.0, fingerprint: 0 });
    }

    let cpu = rig.cpu;
    let place = |buffer: &[f64], rows_at: Rows, width: usize| -> Vec<f64> {
        (0..rows).flat_map(|r| buffer[rows_at.at + r * rows_at.stride..][..width].to_vec()).collect()
    };
    let (x, old) = (place(&x, x_rows, inputs), place(&old, out_rows, columns));
    let mut expected = cpu.upload(&old)?;
    let (x_cpu, bias_cpu) = (cpu.upload(&x)?, cpu.upload(&bias)?);
    let epilogue = Epilogue { bias: with_bias.then_some(&bias_cpu), activation, accumulate };
    let stored = cpu.matrix(&tensor, layout)?;
    cpu.linear((&x_cpu, 0), rows, &stored, outputs.clone(), epilogue, &mut expected, Rows::dense(columns))?;

    let bias = with_bias.then_some(&bias[outputs.clone()]);
    let naive = naive(p, &x, &tensor, outputs, bias, &old);
    let mut dense: Vec<f32> = got.iter().map(|&x| x as f32).collect();
    dense = (0..rows).flat_map(|r| dense[out_at + r * out_rows.stride..][..columns].to_vec()).collect();
    let dense = Buffer::floats(rig.device(), out_dtype, &dense)?;
    judge(rig, out_dtype, &dense, expected.as_slice(), &naive)
}

/// Sums in f32; rounded after the sum, the bias, the activation or the addition.
fn naive(
    p: Product,
    x: &[f64],
    weight: &StoredTensor,
    outputs: Range<usize>,
    bias: Option<&[f64]>,
    old: &[f64],
) -> Vec<f64> {
    let r = |x| round(p.dtype, x);
    let weights: Vec<f32> = weight.to_vec();
    let (line, step) = match p.layout {
        Layout::OutIn => (p.inputs, 1),
        Layout::InOut => (1, weight.shape()[1]),
    };
    let mut out = Vec::with_capacity(p.rows * p.columns);
    for row in 0..p.rows {
        for (j, column) in outputs.clone().enumerate() {
            let x = &x[row * p.inputs..][..p.inputs];
            let sum = x
                .iter()
                .enumerate()
                .fold(0.0f32, |s, (k, &x)| s + x as f32 * weights[column * line + k * step]);
            let mut v = r(f64::from(sum));
            if let Some(bias) = bias {
                v = r(v + bias[j]);
            }
            v = match p.epilogue.1 {
                None => v,
                Some(Activation::GeluTanh) => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
                    0.5 * v * (1.0 + u.tanh())
                }
                Some(Activation::GeluErf) => 0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2)),
                Some(Activation::Silu) => v / (1.0 + (-v).exp()),
            };
            out.push(r(if p.epilogue.2 { old[row * p.columns + j] + v } else { v }));
        }
    }
    out
}

/// The bits of a row depend neither on the tile nor on how many rows share the launch.
fn agreement<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    layout: Layout,
    rows: usize,
    columns: usize,
    inputs: usize,
) -> Result<Verdict> {
    let (_, x) = rig.input(1, dtype, rows * inputs, 2.0)?;
    let (_, bias) = rig.input(3, dtype, columns, 1.0)?;
    let matrix = Matrix::upload(rig.device(), &weight(rig, dtype, layout, inputs, columns)?, layout)?;
    // Rows `from .. from + count`, in f32 so that every bit of the sum shows.
    let run = |tile: Tile, from: usize, count: usize| -> Result<Vec<u32>> {
        let mut out = rig.poisoned(Dtype::F32, count * columns)?;
        let epilogue =
            LinearEpilogue { bias: Some(&bias), activation: Some(Activation::GeluTanh), accumulate: false };
        let part = (&x, Rows { at: from * inputs, stride: inputs });
        let whole = (&mut out, Rows::dense(columns));
        rig.cuda.linear_by(
            Some(tile),
            dtype,
            part,
            count,
            &matrix,
            0..columns,
            epilogue,
            whole,
            Dtype::F32,
        )?;
        Ok(out.to_f32(rig.device())?.into_iter().map(f32::to_bits).collect())
    };
    let expected = run(Tile::Any, 0, rows)?;
    let mut verdict = judge_exact(&expected, &expected);
    for tile in TILES {
        for (from, count) in [(0, rows), (0, 1), (rows - 1, 1), (1, 17)] {
            // One kernel in f32.
            if (dtype != Dtype::F32 || tile == Tile::Any) && (count < rows || tile != Tile::Any) {
                let got = run(tile, from, count)?;
                verdict = verdict.and(judge_exact(&got, &expected[from * columns..][..count * columns]));
            }
        }
    }
    Ok(verdict)
}
