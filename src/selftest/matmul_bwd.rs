//! Cases of the gradients of matrix products, of their inputs (kernels nt and nn) and of their weights (tn), and the same by
//! the device's matrix library.

use std::ops::Range;

use super::matmul::{TILES, kinds, weight};
use super::{Case, DTYPES, Grid, Rig, Verdict, judge, judge_exact, round};
use crate::backend::cuda::{Buffer, Cuda, Device, Matrix, Tile};
use crate::backend::{Backend, Backward, Layout, Rows};
use crate::element::Dtype;
use crate::error::{Error, Result};

/// How rows lie in their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// Whole buffers.
    Dense,
    /// Parts that begin on 16 bytes, with other numbers between the rows.
    Aligned,
    /// Parts that begin anywhere.
    Odd,
    /// Whole rows of packs, of which the product has a part.
    Padded,
    /// The same, in a buffer that ends with the last number of the last row.
    Cut,
}

use Placement::{Aligned, Cut, Dense, Odd, Padded};

const PLACEMENTS: [Placement; 5] = [Dense, Aligned, Odd, Padded, Cut];

impl Placement {
    /// Rows of `width` numbers.
    fn rows(self, width: usize) -> Rows {
        match self {
            Dense => Rows::dense(width),
            Aligned => Rows { at: 8, stride: width + 16 },
            Odd => Rows { at: 3, stride: width + 5 },
            Padded | Cut => Rows { at: 0, stride: width.next_multiple_of(16) },
        }
    }

    /// Numbers of a buffer with `count` such rows.
    fn len(self, count: usize, width: usize) -> usize {
        let Rows { at, stride } = self.rows(width);
        if self == Cut && count > 0 { (count - 1) * stride + width } else { at + count * stride }
    }
}

/// The numbers of `count` rows out of a buffer.
fn dense<T: Copy>(buffer: &[T], rows: Rows, count: usize, width: usize) -> Vec<T> {
    (0..count).flat_map(|r| buffer[rows.at + r * rows.stride..][..width].to_vec()).collect()
}

/// A case of either kind. A gradient of an input is `[rows, inputs]` and sums over outputs; one of a weight is
/// `[inputs, outputs]` and sums over rows.
#[derive(Clone, Copy)]
struct Gradient {
    dtype: Dtype,
    layout: Layout,
    rows: usize,
    outputs: usize,
    inputs: usize,
    /// `None`: the one that the launch code takes.
    tile: Option<Tile>,
    placement: Placement,
    /// Of inputs alone, as is the next.
    accumulate: bool,
    widened: bool,
    /// By the device's matrix library.
    library: bool,
}

impl Gradient {
    const fn plain(
        dtype: Dtype,
        layout: Layout,
        (rows, outputs, inputs): (usize, usize, usize),
        placement: Placement,
    ) -> Self {
        let (tile, accumulate, widened, library) = (None, false, false, false);
        Self { dtype, layout, rows, outputs, inputs, tile, placement, accumulate, widened, library }
    }

    /// As in `7 x 64 x 130, OutIn, Odd, added`: rows, outputs and inputs, and what else matters.
    fn words(&self) -> String {
        let Self { rows, outputs, inputs, layout, placement, .. } = self;
        let tile = self.tile.map_or(String::new(), |t| format!(", tile {t:?}"));
        let added = if self.accumulate { ", added" } else { "" };
        let out = if self.widened { ", f32 out" } else { "" };
        format!("{rows} x {outputs} x {inputs}, {layout:?}{tile}, {placement:?}{added}{out}")
    }

    /// The kernels that it is for: the library's where it has to do.
    fn cuda<'a, D: Device>(&self, rig: &Rig<'a, D>) -> Result<&'a Cuda<D>> {
        if self.library { rig.library() } else { Ok(rig.cuda) }
    }

    fn by_library<D: Device>(&self, cuda: &Cuda<D>, before: u64) -> Result<()> {
        if self.library && cuda.device().counts().library == before {
            return Err(Error::Device {
                device: cuda.device().facts().name.clone(),
                what: format!("{} has no algorithm for this", cuda.library().unwrap_or_default()),
                hint: "the program's own kernels are used instead, which may be slower".into(),
            });
        }
        Ok(())
    }
}

type Of<D> = fn(&Rig<'_, D>, Gradient) -> Result<Verdict>;

/// Both kinds of gradients, and what their cases are called.
fn both<D: Device>() -> [(&'static str, Of<D>); 2] {
    [("input", of_input), ("tn", of_weight)]
}

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes = grid.choose(
        &[(18, 33, 24), (3, 40, 17)],
        &[
            (1, 257, 64),
            (2, 64, 130),
            (17, 72, 257),
            (33, 31, 16),
            (65, 136, 129),
            (129, 200, 72),
            (1, 1, 16),
            (16, 1031, 40),
            (200, 17, 33),
            (70, 8, 264),
        ],
    );
    let mut cases = Vec::new();
    let mut turn = 0;
    for (name, run) in both() {
        let mut add = |p: Gradient| {
            let kernel = format!("matmul_{name}_{}", p.dtype);
            cases.push(Case::new("matmul", kernel, p.words(), move |rig: &Rig<'_, D>| run(rig, p)));
        };
        for (dtype, layout) in kinds() {
            for &sizes in &shapes {
                turn += 1;
                let placement = PLACEMENTS[turn % 5];
                let tile = (turn % 6 != 0).then(|| TILES[turn % 4]);
                let (accumulate, widened) = (turn % 3 == 0, turn % 4 == 0);
                add(Gradient {
                    tile,
                    accumulate,
                    widened,
                    ..Gradient::plain(dtype, layout, sizes, placement)
                });
            }
            // As logits lie, and their gradient: an odd number of them in rows that are a whole number of packs.
            for tile in [None, Some(TILES[1 + turn % 3])] {
                let plain = Gradient::plain(dtype, layout, (19, 41, 40), Padded);
                add(Gradient { tile, ..plain });
                add(Gradient { tile, accumulate: true, placement: Cut, ..plain });
            }
            // More slices of what is summed over than buffers in the ring.
            for (i, tile) in TILES.into_iter().enumerate().filter(|&(i, _)| i == 0 || dtype != Dtype::F32) {
                let sizes = if name == "tn" { (200, 40, 24) } else { (5, 200, 72) };
                let placement = [Dense, Aligned][i % 2];
                add(Gradient { tile: Some(tile), ..Gradient::plain(dtype, layout, sizes, placement) });
            }
            add(Gradient::plain(dtype, layout, if name == "tn" { (0, 8, 8) } else { (5, 0, 24) }, Dense));
        }
    }
    let equal = grid.choose(&[(40, 41, 24)], &[(130, 137, 104), (200, 33, 257)]);
    for dtype in DTYPES.into_iter().filter(|&dtype| dtype != Dtype::F32) {
        for &(rows, outputs, inputs) in &equal {
            let shape = format!("{rows} x {outputs} x {inputs}, all tiles agree");
            cases.push(Case::new(
                "matmul",
                format!("matmul_tn_{dtype}"),
                shape.clone(),
                move |rig: &Rig<'_, D>| weights_agree(rig, dtype, rows, outputs, inputs),
            ));
            cases.push(Case::new(
                "matmul",
                format!("matmul_input_{dtype}"),
                shape,
                move |rig: &Rig<'_, D>| inputs_agree(rig, dtype, rows, outputs, inputs),
            ));
        }
    }
    cases
}

/// Gradients that a matrix library is asked for.
pub fn library_cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let shapes = grid.choose(
        &[(18, 40, 32)],
        &[(1, 64, 96), (200, 264, 136), (64, 768, 256), (512, 256, 512), (8, 2304, 64)],
    );
    let mut cases = Vec::new();
    for (name, run) in both() {
        let kinds = kinds().filter(|&(dtype, _)| dtype != Dtype::F32);
        let all = kinds.flat_map(|kind| shapes.iter().map(move |&shape| (kind, shape)));
        for (turn, ((dtype, layout), sizes)) in all.enumerate() {
            let placement = [Aligned, Dense, Padded][turn % 3];
            let (accumulate, widened) = (turn % 2 == 0, turn % 3 == 0);
            let plain = Gradient::plain(dtype, layout, sizes, placement);
            let p = Gradient { accumulate, widened, library: true, ..plain };
            let kernel = format!("library_{name}_{dtype}");
            cases.push(Case::new("library", kernel, p.words(), move |rig: &Rig<'_, D>| run(rig, p)));
        }
        // As logits lie.
        for dtype in DTYPES.into_iter().filter(|&dtype| dtype != Dtype::F32) {
            let p = Gradient { library: true, ..Gradient::plain(dtype, Layout::OutIn, (6, 41, 24), Padded) };
            let kernel = format!("library_{name}_{dtype}");
            cases.push(Case::new("library", kernel, p.words(), move |rig: &Rig<'_, D>| run(rig, p)));
        }
    }
    cases
}

fn of_input<D: Device>(rig: &Rig<'_, D>, p: Gradient) -> Result<Verdict> {
    let Gradient { dtype, layout, rows, outputs, inputs, placement, accumulate, .. } = p;
    let (dy_rows, dx_rows) = (placement.rows(outputs), placement.rows(inputs));
    // Some columns of the weight before and behind those that are asked for, or all.
    let (before, behind) = match placement {
        Aligned => (8, 16),
        Odd => (7, 2),
        _ => (0, 0),
    };
    let columns: Range<usize> = before..before + outputs;
    let out_dtype = if p.widened { Dtype::F32 } else { dtype };
    // What pads a row is finite, as it has to be, and not zero.
    let (dy, dy_device) = rig.input(1, dtype, placement.len(rows, outputs), 2.0)?;
    let tensor = weight(rig, dtype, layout, inputs, before + outputs + behind)?;
    let matrix = Matrix::upload(rig.device(), &tensor, layout)?;
    let len = placement.len(rows, inputs);
    let (old, mut dx) = if accumulate {
        rig.input(4, out_dtype, len, 3.0)?
    } else {
        (vec![f64::NAN; len], rig.poisoned(out_dtype, len)?)
    };
    let cuda = p.cuda(rig)?;
    let count = cuda.device().counts().library;
    let (from, to) = ((&dy_device, dy_rows), (&mut dx, dx_rows));
    let padded = matches!(placement, Padded | Cut);
    cuda.linear_backward_input_by(
        p.tile,
        dtype,
        from,
        padded,
        rows,
        &matrix,
        columns.clone(),
        accumulate,
        to,
    )?;
    p.by_library(cuda, count)?;

    // Only the numbers of the gradient may have changed.
    let got: Vec<f64> = dx.to_f32(rig.device())?.into_iter().map(f64::from).collect();
    let inside = |i: usize| i >= dx_rows.at && (i - dx_rows.at) % dx_rows.stride < inputs;
    let same = |i: usize| got[i].to_bits() == old[i].to_bits() || got[i].is_nan() && old[i].is_nan();
    let touched = (0..len).filter(|&i| !inside(i) && !same(i)).count();
    if touched > 0 {
        return Ok(Verdict { error: touched as f64, bound: 0.0, fingerprint: 0 });
    }

    let cpu = rig.cpu;
    let (dy, old) = (dense(&dy, dy_rows, rows, outputs), dense(&old, dx_rows, rows, inputs));
    let mut expected = cpu.upload(&old)?;
    let stored = cpu.matrix(&tensor, layout)?;
    let from = cpu.upload(&dy)?;
    let from = (&from, Rows::dense(outputs));
    cpu.linear_backward_input(from, rows, &stored, columns.clone(), accumulate, (&mut expected, 0))?;

    // Summed in f32, rounded, added, rounded.
    let weights: Vec<f32> = tensor.to_vec();
    let total = before + outputs + behind;
    let of = |i: usize, j: usize| match layout {
        Layout::OutIn => weights[(before + j) * inputs + i],
        Layout::InOut => weights[i * total + before + j],
    };
    let mut naive = Vec::with_capacity(rows * inputs);
    for (t, old) in old.chunks(inputs).enumerate() {
        for (i, old) in old.iter().enumerate() {
            let dy = &dy[t * outputs..][..outputs];
            let sum = dy.iter().enumerate().fold(0.0f32, |s, (j, &d)| s + d as f32 * of(i, j));
            let sum = round(dtype, f64::from(sum));
            naive.push(round(dtype, if accumulate { old + sum } else { sum }));
        }
    }
    let narrow: Vec<f32> = got.iter().map(|&x| x as f32).collect();
    let out = Buffer::floats(rig.device(), out_dtype, &dense(&narrow, dx_rows, rows, inputs))?;
    judge(rig, out_dtype, &out, expected.as_slice(), &naive)
}

/// Random numbers, and NaN between the rows: what lies there must have no say.
fn factor<D: Device>(
    rig: &Rig<'_, D>,
    stream: u64,
    dtype: Dtype,
    (placement, rows, width): (Placement, usize, usize),
) -> Result<(Vec<f64>, Buffer<D>)> {
    let mut random = rig.random(stream);
    let Rows { at, stride } = placement.rows(width);
    let numbers: Vec<f64> = (0..placement.len(rows, width))
        .map(|i| {
            let x = round(dtype, random.number() * 2.0);
            if i >= at && (i - at) % stride < width { x } else { f64::NAN }
        })
        .collect();
    let narrow: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    let buffer = Buffer::floats(rig.device(), dtype, &narrow)?;
    Ok((dense(&numbers, placement.rows(width), rows, width), buffer))
}

fn of_weight<D: Device>(rig: &Rig<'_, D>, p: Gradient) -> Result<Verdict> {
    let Gradient { dtype, layout, rows, outputs, inputs, placement, .. } = p;
    let (x, x_device) = factor(rig, 1, dtype, (placement, rows, inputs))?;
    let (dy, dy_device) = factor(rig, 2, dtype, (placement, rows, outputs))?;
    let (old, mut dweight) = rig.input(3, Dtype::F32, inputs * outputs, 3.0)?;
    let cuda = p.cuda(rig)?;
    let count = cuda.device().counts().library;
    let factors = ((&x_device, placement.rows(inputs)), (&dy_device, placement.rows(outputs)));
    cuda.linear_backward_weight_by(
        p.tile,
        dtype,
        factors.0,
        factors.1,
        rows,
        inputs,
        outputs,
        layout,
        &mut dweight,
    )?;
    p.by_library(cuda, count)?;

    let cpu = rig.cpu;
    let mut expected = cpu.upload(&old)?;
    let (x, dy) = (cpu.upload(&x)?, cpu.upload(&dy)?);
    let (x, dy) = ((&x, 0), (&dy, Rows::dense(outputs)));
    cpu.linear_backward_weight(x, dy, rows, inputs, outputs, layout, Some(&mut expected), None, &mut ())?;
    judge(rig, Dtype::F32, &dweight, expected.as_slice(), &[])
}

/// The bits of a weight's gradient do not depend on the tile, nor on how its rows lie.
fn weights_agree<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    outputs: usize,
    inputs: usize,
) -> Result<Verdict> {
    let run = |tile: Tile, placement: Placement, layout: Layout| -> Result<Vec<u32>> {
        let place = |width| (placement, rows, width);
        let numbers = |stream, width| -> Result<Buffer<D>> {
            let (numbers, _) = factor(rig, stream, dtype, (Dense, rows, width))?;
            let mut all = vec![f32::NAN; place(width).0.len(rows, width)];
            let at = placement.rows(width);
            for (r, row) in numbers.chunks(width).enumerate() {
                let to = &mut all[at.at + r * at.stride..][..width];
                to.iter_mut().zip(row).for_each(|(to, &x)| *to = x as f32);
            }
            Buffer::floats(rig.device(), dtype, &all)
        };
        let (x, dy) = (numbers(1, inputs)?, numbers(2, outputs)?);
        let mut out = Buffer::floats(rig.device(), Dtype::F32, &vec![0.0; inputs * outputs])?;
        let (x, dy) = ((&x, placement.rows(inputs)), (&dy, placement.rows(outputs)));
        let cuda = rig.cuda;
        cuda.linear_backward_weight_by(Some(tile), dtype, x, dy, rows, inputs, outputs, layout, &mut out)?;
        let bits: Vec<u32> = out.to_f32(rig.device())?.into_iter().map(f32::to_bits).collect();
        Ok(match layout {
            Layout::InOut => bits,
            Layout::OutIn => {
                (0..inputs * outputs).map(|n| bits[n % outputs * inputs + n / outputs]).collect()
            }
        })
    };
    let expected = run(Tile::Any, Odd, Layout::InOut)?;
    let mut verdict = judge_exact(&expected, &expected);
    for (tile, placement) in
        [(Tile::Small, Padded), (Tile::Medium, Padded), (Tile::Large, Padded), (Tile::Any, Padded)]
    {
        for layout in [Layout::InOut, Layout::OutIn] {
            verdict = verdict.and(judge_exact(&run(tile, placement, layout)?, &expected));
        }
    }
    Ok(verdict)
}

/// Nor do those of an input's gradient, and what pads the rows of `dy` has no say.
fn inputs_agree<D: Device>(
    rig: &Rig<'_, D>,
    dtype: Dtype,
    rows: usize,
    outputs: usize,
    inputs: usize,
) -> Result<Verdict> {
    let inputs = inputs.next_multiple_of(8);
    let tensor = weight(rig, dtype, Layout::OutIn, inputs, outputs)?;
    let matrix = Matrix::upload(rig.device(), &tensor, Layout::OutIn)?;
    let run = |tile: Tile, pad: Option<f32>| -> Result<Vec<u32>> {
        let (dy, _) = factor(rig, 1, dtype, (Padded, rows, outputs))?;
        let at = Padded.rows(outputs);
        let mut all = vec![pad.unwrap_or(f32::NAN); Padded.len(rows, outputs)];
        for (r, row) in dy.chunks(outputs).enumerate() {
            let to = &mut all[r * at.stride..][..outputs];
            to.iter_mut().zip(row).for_each(|(to, &x)| *to = x as f32);
        }
        let dy = Buffer::floats(rig.device(), dtype, &all)?;
        let mut dx = rig.poisoned(Dtype::F32, rows * inputs)?;
        let to = (&mut dx, Rows::dense(inputs));
        let padded = pad.is_some();
        let (cuda, columns) = (rig.cuda, 0..outputs);
        cuda.linear_backward_input_by(
            Some(tile),
            dtype,
            (&dy, at),
            padded,
            rows,
            &matrix,
            columns,
            false,
            to,
        )?;
        Ok(dx.to_f32(rig.device())?.into_iter().map(f32::to_bits).collect())
    };
    let expected = run(Tile::Any, None)?;
    let mut verdict = judge_exact(&expected, &expected);
    for tile in TILES {
        for pad in [0.0, -3.5] {
            verdict = verdict.and(judge_exact(&run(tile, Some(pad))?, &expected));
        }
    }
    Ok(verdict)
}
