//! Cases of `cuda/probe.cu`: whether this device means by each instruction and helper what plain integer code
//! means. All but the approximate exponential must agree to the bit (a NaN with any NaN where none is prescribed).

use half::{bf16, f16};

use super::{Case, Grid, Random, Rig, Verdict, fingerprint, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format};
use crate::error::Result;
use crate::rng::{philox4x32_10, unit};

/// A probe's input, what `out` begins with (poison if nothing), and what it must hold afterwards.
#[derive(Default)]
struct Io {
    a: Vec<u32>,
    b: Vec<u32>,
    start: Vec<u32>,
    expected: Vec<u32>,
    /// Applied to what is and to what must be: makes all NaN the same.
    clean: Option<fn(&mut [u32])>,
}

type Make = fn(&mut Random, usize) -> Io;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let full = grid == Grid::Full;
    let probes: [(&'static str, usize, Make); 18] = [
        ("probe_ldmatrix", 4, |r, n| ldmatrix(r, n, false)),
        ("probe_ldmatrix_trans", 4, |r, n| ldmatrix(r, n, true)),
        ("probe_mma_f16", 4, |r, n| mma(r, n, f16_bits)),
        ("probe_mma_bf16", 4, |r, n| mma(r, n, bf16_bits)),
        ("probe_tile_bf16", 4, tile),
        ("probe_cp_async", 3, cp_async),
        ("probe_load_streaming", 2, load_streaming),
        ("probe_named_barrier", 3, named_barrier),
        ("probe_reduce", 3, reduce),
        ("probe_shuffle", 8, shuffle),
        ("probe_vote", 8, vote),
        ("probe_atomics_shared", 2, atomics_shared),
        ("probe_atomics_global", 3, atomics_global),
        ("probe_narrow", if full { 512 } else { 16 }, narrow),
        ("probe_widen", if full { 256 } else { 16 }, widen),
        ("probe_philox", 3, philox),
        ("probe_arithmetic", if full { 16 } else { 2 }, arithmetic),
        ("probe_wide_arithmetic", if full { 16 } else { 2 }, wide_arithmetic),
    ];
    let mut cases: Vec<Case<D>> = probes
        .into_iter()
        .map(|(name, blocks, make)| {
            let shape = format!("{blocks} blocks");
            Case::new("probe", name, shape, move |rig: &Rig<'_, D>| exact(rig, name, blocks, make))
        })
        .collect();
    let blocks = if full { 64 } else { 4 };
    cases.push(Case::new("probe", "probe_exp2", format!("{blocks} blocks"), move |rig: &Rig<'_, D>| {
        exp2(rig, blocks)
    }));
    cases
}

fn exact<D: Device>(rig: &Rig<'_, D>, name: &'static str, blocks: usize, make: Make) -> Result<Verdict> {
    let mut io = make(&mut rig.random(1), blocks);
    let mut got = run(rig, name, blocks, &io)?;
    if let Some(clean) = io.clean {
        clean(&mut got);
        clean(&mut io.expected);
    }
    Ok(judge_exact(&got, &io.expected))
}

fn run<D: Device>(rig: &Rig<'_, D>, name: &str, blocks: usize, io: &Io) -> Result<Vec<u32>> {
    let device = rig.device();
    let a = Buffer::of(device, Format::U32, &io.a)?;
    let b = if io.b.is_empty() { None } else { Some(Buffer::of(device, Format::U32, &io.b)?) };
    let mut out = rig.poisoned(Format::U32, io.expected.len())?;
    out.write(device, 0, &io.start)?;
    rig.cuda.probe(name, blocks, &a, b.as_ref(), &mut out)?;
    out.to_vec(device)
}

fn words(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.bits() as u32).collect()
}

/// 16-bit number `i` of packed words.
fn half_word(words: &[u32], i: usize) -> u32 {
    words[i / 2] >> (16 * (i % 2)) & 0xffff
}

fn ldmatrix(random: &mut Random, blocks: usize, trans: bool) -> Io {
    let (a, b) = (words(random, blocks * 128), words(random, blocks * 32));
    let mut expected = Vec::new();
    for (tile, rows) in a.chunks(128).zip(b.chunks(32)) {
        for (lane, matrix) in (0..32).flat_map(|lane| (0..4).map(move |matrix| (lane, matrix))) {
            let number = |row: usize, column: usize| {
                let (row, column) = if trans { (column, row) } else { (row, column) };
                half_word(tile, rows[matrix * 8 + row] as usize % 32 * 8 + column)
            };
            let (row, column) = (lane / 4, lane % 4 * 2);
            expected.push(number(row, column) | number(row, column + 1) << 16);
        }
    }
    Io { a, b, expected, ..Io::default() }
}

fn bf16_bits(x: i32) -> u32 {
    bf16::from_f32(x as f32).to_bits().into()
}

fn f16_bits(x: i32) -> u32 {
    f16::from_f32(x as f32).to_bits().into()
}

/// A matrix of small whole numbers, and its words in a 16-bit format.
fn matrix(random: &mut Random, numbers: usize, bits: fn(i32) -> u32) -> (Vec<i32>, Vec<u32>) {
    let matrix: Vec<i32> = (0..numbers).map(|_| random.below(33) as i32 - 16).collect();
    let words = matrix.chunks(2).map(|two| bits(two[0]) | bits(two[1]) << 16).collect();
    (matrix, words)
}

fn mma(random: &mut Random, blocks: usize, bits: fn(i32) -> u32) -> Io {
    let mut io = Io::default();
    for _ in 0..blocks {
        let ((a, a_words), (b, b_words)) = (matrix(random, 256, bits), matrix(random, 128, bits));
        let c: Vec<i32> = (0..128).map(|_| random.below(20_001) as i32 - 10_000).collect();
        io.a.extend(a_words);
        io.b.extend(b_words);
        io.b.extend(c.iter().map(|&c| (c as f32).to_bits()));
        for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
            let dot: i32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
            io.expected.push(((c[row * 8 + column] + dot) as f32).to_bits());
        }
    }
    io
}

fn tile(random: &mut Random, blocks: usize) -> Io {
    let mut io = Io::default();
    for _ in 0..blocks {
        let (a, a_words) = matrix(random, 256, bf16_bits);
        io.a.extend(a_words);
        for by_row in [true, false] {
            let (b, b_words) = matrix(random, 256, bf16_bits);
            io.b.extend(b_words);
            let b = |k: usize, n: usize| if by_row { b[k * 16 + n] } else { b[n * 16 + k] };
            for (m, n) in (0..16).flat_map(|m| (0..16).map(move |n| (m, n))) {
                let dot: i32 = (0..16).map(|k| a[m * 16 + k] * b(k, n)).sum();
                io.expected.push((dot as f32).to_bits());
            }
        }
    }
    io
}

fn cp_async(random: &mut Random, blocks: usize) -> Io {
    let (a, b) = (words(random, blocks * 2048), words(random, blocks * 128));
    let copied = |(i, &word): (usize, &u32)| {
        let (block, group, thread) = (i / 2048, i % 2048 / 512, i % 512 / 4);
        if b[block * 128 + thread] >> group & 1 == 1 { word } else { 0 }
    };
    let expected = a.iter().enumerate().map(copied).collect();
    Io { a, b, expected, ..Io::default() }
}

fn load_streaming(random: &mut Random, blocks: usize) -> Io {
    let a = words(random, blocks * 1024);
    Io { expected: a.clone(), a, ..Io::default() }
}

fn named_barrier(random: &mut Random, blocks: usize) -> Io {
    let a = words(random, blocks * 128);
    let mut expected = a.clone();
    for group in expected.chunks_mut(64) {
        for round in 0..7 {
            group.rotate_left(37);
            group.iter_mut().for_each(|v| *v = v.wrapping_add(round));
        }
    }
    Io { a, expected, ..Io::default() }
}

fn reduce(random: &mut Random, blocks: usize) -> Io {
    let a = words(random, blocks * 256);
    let all = |part: &[u32]| {
        let sum = part.iter().fold(0u32, |s, &v| s.wrapping_add(v));
        let (most, least) =
            (part.iter().fold(0, |m, &v| m.max(v)), part.iter().fold(u32::MAX, |m, &v| m.min(v)));
        let floats: u32 = part.iter().map(|v| v & 1023).sum();
        [sum, most, least, (floats as f32).to_bits()]
    };
    let mut expected = Vec::new();
    for (block, warp) in a.chunks(256).flat_map(|block| block.chunks(32).map(move |warp| (block, warp))) {
        let both = [all(block), all(warp)].concat();
        (0..32).for_each(|_| expected.extend(&both));
    }
    Io { a, expected, ..Io::default() }
}

fn shuffle(random: &mut Random, blocks: usize) -> Io {
    let (a, b) = (words(random, blocks * 32), words(random, blocks * 32));
    let mut expected = Vec::new();
    for (v, w) in a.chunks(32).zip(b.chunks(32)) {
        for lane in 0..32 {
            let source = w[lane] as usize;
            expected.extend([
                v[source % 32],
                v[lane / 8 * 8 + source % 8],
                v[lane ^ 5],
                // Lanes of the groups before may be read, those of the groups behind not.
                v[if (lane ^ 6) / 4 > lane / 4 { lane } else { lane ^ 6 }],
                v[if lane < 3 { lane } else { lane - 3 }],
                v[if lane % 8 < 3 { lane } else { lane - 3 }],
                v[if lane + 9 > 31 { lane } else { lane + 9 }],
                v[if lane % 4 + 2 > 3 { lane } else { lane + 2 }],
                w[31 - lane],
                v[31 - lane],
            ]);
        }
    }
    Io { a, b, expected, ..Io::default() }
}

fn vote(random: &mut Random, blocks: usize) -> Io {
    let (a, b) = (words(random, blocks * 32), words(random, blocks * 32));
    let mut expected = Vec::new();
    for (v, w) in a.chunks(32).zip(b.chunks(32)) {
        let over = |lanes: Vec<usize>| {
            let v = || lanes.iter().map(|&l| v[l]);
            [
                lanes.iter().zip(v()).map(|(lane, v)| (v & 1) << lane).sum(),
                v().any(|v| v & 15 == 15).into(),
                v().all(|v| v & 15 != 15).into(),
                w[lanes[0]],
                v().fold(0u32, |s, v| s.wrapping_add(v)),
                v().fold(0, |m, v| m.max(v)),
                v().fold(u32::MAX, |m, v| m.min(v)),
                lanes.iter().zip(v()).fold(0, |m, (&l, v)| m | v & w[l]),
                lanes.iter().zip(v()).fold(u32::MAX, |m, (&l, v)| m & (v | w[l])),
            ]
        };
        let (thirds, others): (Vec<usize>, Vec<usize>) = (0..32).partition(|lane| lane % 3 == 0);
        let (all, thirds, others) = (over((0..32).collect()), over(thirds), over(others));
        for lane in 0..32 {
            expected.extend(all);
            expected.extend(if lane % 3 == 0 { thirds } else { others });
        }
    }
    Io { a, b, expected, ..Io::default() }
}

/// The outcomes in the 16 cells.
fn atomics(cells: &mut [u32], inputs: impl Iterator<Item = u32> + Clone) {
    let wide = inputs.clone().map(|v| u64::from(v) << 20 | u64::from(v & 0xfffff));
    let pair = |cells: &[u32], at: usize| u64::from(cells[at + 1]) << 32 | u64::from(cells[at]);
    let (mut sum, mut most, mut least) = (pair(cells, 8), pair(cells, 10), pair(cells, 12));
    for v in wide {
        (sum, most, least) = (sum.wrapping_add(v), most.max(v), least.min(v));
    }
    for v in inputs {
        cells[1] = cells[1].wrapping_add(cells[0]);
        cells[0] = cells[0].wrapping_add(1);
        cells[2] = cells[2].max(v);
        cells[3] = cells[3].min(v);
        cells[4] |= 1 << (v % 32);
        cells[5] = (f32::from_bits(cells[5]) + (v % 64) as f32).to_bits();
        cells[6] = cells[6].wrapping_add((v % 64).wrapping_sub(40));
        cells[7] += 1;
    }
    for (at, value) in [(8, sum), (10, most), (12, least)] {
        (cells[at], cells[at + 1]) = (value as u32, (value >> 32) as u32);
    }
}

/// What the 16 cells begin with: whole numbers, the float and the count by compare-and-swap small.
fn cells(random: &mut Random) -> Vec<u32> {
    let mut cells = words(random, 16);
    cells[2] >>= 8;
    cells[4] &= 0x0f0f;
    cells[5] = 7f32.to_bits();
    cells[7] = 5;
    cells[11] >>= 20;
    cells
}

fn atomics_shared(random: &mut Random, blocks: usize) -> Io {
    let mut io = Io { a: words(random, blocks * 256), ..Io::default() };
    for a in io.a.chunks(256) {
        let mut cells = cells(random);
        io.b.extend(&cells);
        atomics(&mut cells, a.iter().copied());
        io.expected.extend(cells);
        io.expected.extend((0..256).map(|t| 3 * ((t + 77) % 256)));
    }
    io
}

fn atomics_global(random: &mut Random, blocks: usize) -> Io {
    let mut io = Io { a: words(random, blocks * 256), ..Io::default() };
    for a in io.a.chunks(256) {
        let (cells, own) = (cells(random), words(random, 256));
        io.start.extend(&cells);
        io.start.extend(&own);
        io.expected.extend(cells);
        io.expected.extend(a.iter().zip(own).map(|(a, own)| a.wrapping_add(own)));
    }
    atomics(&mut io.expected[..16], io.a.iter().copied());
    io
}

/// Numbers where roundings go wrong.
const SPECIAL: [u32; 24] = [
    0,
    0x8000_0000,
    1,           // the smallest subnormal
    0x807f_ffff, // the largest, negative
    0x0080_0000, // the smallest normal
    0x7f7f_ffff, // the largest
    0x7f80_0000, // infinity
    0xff80_0000,
    0x7fc0_0000, // NaN
    0xff80_0001,
    0x7fff_ffff,
    0x477f_e000, // 65504, the largest f16
    0x477f_efff, // just below 65520, where f16 becomes infinite
    0x477f_f000,
    0x3300_0000, // 2^-25: half of the smallest f16
    0x3300_0001,
    0x3380_0000, // 2^-24
    0x33c0_0000, // 1.5 of it
    0x387f_c000, // the largest subnormal f16
    0x387f_e000, // half-way to the smallest normal
    0x7f7f_7fff, // around where bf16 becomes infinite
    0x7f7f_8000,
    0x3f80_0000,
    0xbf80_8000,
];

fn narrow(random: &mut Random, blocks: usize) -> Io {
    let mut a = SPECIAL.to_vec();
    // Half-way between neighbours in either format and next to it, and any bits at all.
    while a.len() < blocks * 256 {
        let pattern = random.bits() as u32;
        let near = [0, 1, u32::MAX][random.below(3)];
        let between = f64::midpoint(
            f16::from_bits(pattern as u16).to_f64(),
            f16::from_bits((pattern as u16).wrapping_add(1)).to_f64(),
        );
        a.push((pattern << 16 | 0x8000).wrapping_add(near));
        a.push((between as f32).to_bits().wrapping_add(near));
        a.push(random.bits() as u32);
    }
    a.truncate(blocks * 256);
    let to_bf16 = |x: f32| u32::from(if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits() });
    let to_f16 = |x: f32| u32::from(if x.is_nan() { 0x7fff } else { f16::from_f32(x).to_bits() });
    let expected = a.iter().map(|&bits| f32::from_bits(bits)).flat_map(|x| {
        [to_bf16(x) | to_f16(x) << 16, to_bf16(x) | to_bf16(-x) << 16, to_f16(x) | to_f16(-x) << 16]
    });
    Io { expected: expected.collect(), a, ..Io::default() }
}

/// All patterns, or evenly spread ones.
fn widen(_: &mut Random, blocks: usize) -> Io {
    let count = blocks as u32 * 256;
    let apart = 65_536 / count;
    let a: Vec<u32> = (0..count).map(|i| i * apart + i * 7 % apart).collect();
    let expected = a.iter().flat_map(|&a| {
        [bf16::from_bits(a as u16).to_f32().to_bits(), f16::from_bits(a as u16).to_f32().to_bits()]
    });
    Io { expected: expected.collect(), a, clean: Some(clean_f32), ..Io::default() }
}

fn clean_f32(words: &mut [u32]) {
    for word in words {
        if f32::from_bits(*word).is_nan() {
            *word = f32::NAN.to_bits();
        }
    }
}

fn philox(random: &mut Random, blocks: usize) -> Io {
    // The published vectors of Random123 first: counters, keys.
    let mut a = vec![0; 6];
    a.extend([u32::MAX; 6]);
    a.extend([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0]);
    a.extend(words(random, blocks * 256 * 6 - 18));
    let mut expected = Vec::new();
    for six in a.chunks(6) {
        let block = philox4x32_10([six[0], six[1], six[2], six[3]], [six[4], six[5]]);
        expected.extend([block, block].concat());
        expected.push(unit(block[0]).to_bits());
    }
    expected[..4].copy_from_slice(&[0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    expected[9..13].copy_from_slice(&[0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    expected[18..22].copy_from_slice(&[0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    Io { a, expected, ..Io::default() }
}

fn arithmetic(random: &mut Random, blocks: usize) -> Io {
    let number = |random: &mut Random| match random.below(8) {
        0 => SPECIAL[random.below(SPECIAL.len())],
        1 => random.bits() as u32,
        _ => ((random.number() * 4.0) as f32).to_bits(),
    };
    let a: Vec<u32> = (0..blocks * 256 * 3).map(|_| number(random)).collect();
    let mut expected = Vec::new();
    for three in a.chunks(3) {
        let [x, y, z] = [0, 1, 2].map(|i| f32::from_bits(three[i]));
        let floats = [x.mul_add(y, z), x * y + z, x - y, x / y, x.abs().sqrt(), 1.0 / z];
        let wide = u64::from(three[0]) << 32 | u64::from(three[1]);
        let high = (u128::from(wide) * u128::from(wide ^ u64::from(three[2]))) >> 64;
        let shifted = three[0] << (three[1] % 32);
        expected.extend(floats.map(f32::to_bits));
        expected.extend([
            ((u64::from(three[0]) * u64::from(three[1])) >> 32) as u32,
            (high >> 32) as u32,
            (three[0] >> (three[1] % 32)).leading_zeros(),
            (wide >> (three[2] % 64)).leading_zeros(),
            if shifted == 0 { 0 } else { shifted.trailing_zeros() + 1 },
            three[2].count_ones(),
        ]);
    }
    let clean = |words: &mut [u32]| words.chunks_mut(12).for_each(|c| clean_f32(&mut c[..6]));
    Io { a, expected, clean: Some(clean), ..Io::default() }
}

fn wide_arithmetic(random: &mut Random, blocks: usize) -> Io {
    let mut a = Vec::new();
    let mut expected = Vec::new();
    let halves = |x: f64| [x.to_bits() as u32, (x.to_bits() >> 32) as u32];
    for _ in 0..blocks * 256 {
        let [x, y, z] = [0; 3].map(|_| match random.below(8) {
            0 => f64::from(f32::from_bits(SPECIAL[random.below(SPECIAL.len())])),
            1 => f64::from_bits(random.bits()),
            _ => random.number() * random.number() * 3.0,
        });
        a.extend([x, y, z].map(halves).concat());
        expected.extend([x.mul_add(y, z), x * y + z, x / y, x + z, y * z].map(halves).concat());
        expected.push((x as f32).to_bits());
    }
    let clean = |words: &mut [u32]| {
        for c in words.chunks_mut(11) {
            for pair in c[..10].chunks_mut(2) {
                if f64::from_bits(u64::from(pair[1]) << 32 | u64::from(pair[0])).is_nan() {
                    pair.fill(u32::MAX);
                }
            }
            clean_f32(&mut c[10..]);
        }
    };
    Io { a, expected, clean: Some(clean), ..Io::default() }
}

/// The worst relative error of the approximate 2^x; a subnormal result may be zero.
fn exp2<D: Device>(rig: &Rig<'_, D>, blocks: usize) -> Result<Verdict> {
    const BOUND: f64 = 1.0 / (1 << 21) as f64;
    let mut random = rig.random(1);
    let special =
        [0.0, -0.0, 1.0, -1.0, 127.0, 128.0, 127.999_99, -126.0, -149.0, -200.0, 1e30, -1e30, 1e-40, -1e-40];
    let infinite = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let mut x = [&special[..], &infinite].concat();
    while x.len() < blocks * 256 {
        x.push((random.number() * [1.0, 16.0, 135.0][random.below(3)]) as f32);
    }
    let io = Io { a: x.iter().map(|x| x.to_bits()).collect(), expected: vec![0; x.len()], ..Io::default() };
    let got: Vec<f64> =
        run(rig, "probe_exp2", blocks, &io)?.into_iter().map(|y| f32::from_bits(y).into()).collect();
    let error = |(&x, &y): (&f32, &f64)| {
        let exact = f64::from(x).exp2();
        let tiny = exact < f64::from(f32::MIN_POSITIVE) * (1.0 + BOUND) && y == 0.0;
        let huge = exact > f64::from(f32::MAX) * (1.0 - BOUND) && y == f64::INFINITY;
        if tiny || huge || (exact.is_nan() && y.is_nan()) { 0.0 } else { ((y - exact) / exact).abs() }
    };
    // A NaN among the errors is the worst.
    let worst = x.iter().zip(&got).map(error).fold(0.0, |m, e| if e <= m { m } else { e });
    Ok(Verdict { error: worst, bound: BOUND, fingerprint: fingerprint(&got) })
}
