//! Cases of `cuda/unmask.cu`: against the CPU sampler token for token, and the kernel's two variants against
//! each other bit for bit.

use super::{Case, DTYPES, Grid, Random, Rig, Verdict, judge_exact, round};
use crate::backend::cpu::unmask::{keep_mask, unmask_rows};
use crate::backend::cuda::{
    Buffer, Device, Draws, Format, NoiseAddress, RowNoise, UNMASK_WORDS, UnmaskVariant, unmask_words,
};
use crate::backend::{Confidence, NO_TOKEN, RowDraw, RowParams};
use crate::element::Dtype;
use crate::error::Result;
use crate::rng::{Purpose, Rng};

/// What the rows of a case are like; they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Normally distributed.
    Normal,
    /// A few tokens far above the rest.
    Peaked,
    /// Close to one another.
    Flat,
    /// All equal.
    Equal,
    /// One of two values each.
    Two,
    /// Few values, many of them the maximum.
    Ties,
    /// Between 0 and -0 there is no difference.
    Zeros,
    /// Mostly -inf.
    Forbidden,
    /// Over the format's whole range.
    Wide,
    /// Next to the limits of the format, where intervals of logits have no size.
    Tiny,
    /// With a NaN, an infinity, or nothing to draw.
    Bad,
}

const KINDS: [Kind; 11] = [
    Kind::Normal,
    Kind::Peaked,
    Kind::Flat,
    Kind::Equal,
    Kind::Two,
    Kind::Ties,
    Kind::Zeros,
    Kind::Forbidden,
    Kind::Wide,
    Kind::Tiny,
    Kind::Bad,
];

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let mut cases = Vec::new();
    let shapes = grid.choose(&[(31, 4), (1000, 3)], &[(7, 11), (31, 22), (1000, 11), (50257, 3)]);
    for dtype in DTYPES {
        for &(vocab, rows) in &shapes {
            let shape = format!("rows {rows}, vocab {vocab}");
            cases.push(Case::new("unmask", format!("unmask_{dtype}"), shape, move |rig: &Rig<'_, D>| {
                mixed(rig, dtype, vocab, rows)
            }));
        }
        for vocab in grid.choose(&[67], &[600]) {
            let shape = format!("at every offset, vocab {vocab}");
            cases.push(Case::new("unmask", format!("unmask_{dtype}"), shape, move |rig: &Rig<'_, D>| {
                offsets(rig, dtype, vocab)
            }));
        }
        for (vocab, rows) in grid.choose(&[(301, 2)], &[(30, 6)]) {
            let shape = format!("Gumbel noise, rows {rows}, vocab {vocab}");
            cases.push(Case::new("unmask", format!("unmask_{dtype}"), shape, move |rig: &Rig<'_, D>| {
                gumbel(rig, dtype, rows, vocab)
            }));
        }
    }
    if grid == Grid::Full {
        for (dtype, vocab, rows) in [
            (Dtype::Bf16, 49152, 6),
            (Dtype::F32, 128_256, 2),
            (Dtype::Bf16, 128_256, 2),
            (Dtype::F16, 20_000, 11),
        ] {
            let shape = format!("rows {rows}, vocab {vocab}");
            cases.push(Case::new("unmask", format!("unmask_{dtype}"), shape, move |rig: &Rig<'_, D>| {
                mixed(rig, dtype, vocab, rows)
            }));
        }
    }
    cases
}

fn normal(random: &mut Random) -> f64 {
    // A sum of uniform numbers is near enough.
    (0..6).map(|_| random.number()).sum::<f64>() * std::f64::consts::FRAC_1_SQRT_2
}

fn row(random: &mut Random, dtype: Dtype, kind: Kind, vocab: usize) -> Vec<f32> {
    let largest = if dtype == Dtype::F16 { 65504.0 } else { 3e38 };
    let least = if dtype == Dtype::F16 { 6e-8 } else { 1e-38 };
    let peak = random.below(vocab);
    let mut row: Vec<f32> = (0..vocab)
        .map(|i| {
            let z = match kind {
                Kind::Normal | Kind::Bad => 2.5 * normal(random),
                Kind::Peaked => normal(random) + if i % vocab.div_ceil(5) == peak % 5 { 19.0 } else { 0.0 },
                Kind::Flat => 3.0 + 0.01 * normal(random),
                Kind::Equal => -2.0,
                Kind::Two => [0.5, -3.0][random.below(2)],
                Kind::Ties => [4.0, 4.0, 3.5, 1.0, -2.0][random.below(5)],
                Kind::Zeros => [0.0, -0.0][random.below(2)],
                Kind::Forbidden if i != peak && random.below(4) != 0 => f64::NEG_INFINITY,
                Kind::Forbidden => normal(random),
                Kind::Wide => random.number() * largest,
                Kind::Tiny => f64::from(random.below(5) as u32) * least - least,
            };
            round(dtype, z) as f32
        })
        .collect();
    if kind == Kind::Bad {
        match random.below(4) {
            0 => row[peak] = f32::NAN,
            1 => row[peak] = f32::INFINITY,
            2 => row[vocab - 1] = f32::NAN,
            _ => row.fill(f32::NEG_INFINITY),
        }
    }
    row
}

fn params(random: &mut Random, row: &[f32], turn: usize) -> RowParams {
    let vocab = row.len();
    let pick = |random: &mut Random, of: &[f32]| of[random.below(of.len())];
    let largest = (0..vocab).filter(|&i| row[i].is_finite()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let top_k = [0, 0, 1, 5, 40, 300, vocab - 1, vocab, vocab + 3][random.below(9)] as u32;
    let uniform = random.number().abs() as f32;
    RowParams {
        temperature: pick(random, &[0.0, 0.7, 1.0, 1.0, 1.5, 1.2e-38, 1e-20, 1e20]),
        top_p: pick(random, &[1.0, 1.0, 0.9, 0.9, 0.5, 0.999, 1e-6, 1e-30, 0.0, -1.0, 7.0]),
        top_k,
        suppress: [NO_TOKEN, largest.unwrap_or(0) as u32, random.below(vocab) as u32][random.below(3)],
        uniform: pick(random, &[0.0, 1.0 - f32::EPSILON / 2.0, uniform, uniform, uniform.min(0.99)]),
        confidence: [Confidence::MaxProb, Confidence::Entropy, Confidence::Margin][turn % 3],
        given: if random.below(2) == 0 { NO_TOKEN } else { random.below(vocab) as u32 },
    }
}

/// What the CPU draws from a row, and the flag.
fn judge(row: &[f32], params: &RowParams) -> (RowDraw, u32) {
    let mut draw = [RowDraw::default()];
    if unmask_rows(row, row.len(), std::slice::from_ref(params), &mut draw).is_ok() {
        return (draw[0], 0);
    }
    let finite = row.iter().all(|z| *z < f32::INFINITY);
    let nan = f32::NAN;
    let nothing = RowDraw { token: NO_TOKEN, log_prob: nan, confidence: nan, given_log_prob: nan };
    (nothing, if finite { 2 } else { 1 })
}

/// Draws, on the host.
#[derive(Debug)]
struct Host {
    tokens: Vec<u32>,
    flags: Vec<u32>,
    /// log_prob, confidence, given_log_prob, one after another.
    scores: Vec<f32>,
}

#[allow(clippy::too_many_arguments)]
fn draw<D: Device>(
    rig: &Rig<'_, D>,
    variant: UnmaskVariant,
    dtype: Dtype,
    logits: &Buffer<D>,
    at: usize,
    stride: usize,
    vocab: usize,
    words: &[[u32; UNMASK_WORDS]],
) -> Result<Host> {
    let device = rig.device();
    let words = words.as_flattened();
    let rows = words.len() / UNMASK_WORDS;
    let params = Buffer::of(device, Format::U32, words)?;
    let mut out = Draws::new(device, rows)?;
    for buffer in
        [&mut out.tokens, &mut out.log_prob, &mut out.confidence, &mut out.given_log_prob, &mut out.flags]
    {
        buffer.fill(device, 0xff)?;
    }
    rig.cuda.unmask_as(variant, dtype, logits, at, stride, vocab, rows, &params, &mut out)?;
    let mut scores = out.log_prob.to_f32(device)?;
    scores.extend(out.confidence.to_f32(device)?);
    scores.extend(out.given_log_prob.to_f32(device)?);
    Ok(Host { tokens: out.tokens.to_vec(device)?, flags: out.flags.to_vec(device)?, scores })
}

/// The number of draws that are not as expected; logarithms may differ by 1e-5.
fn compare(got: &Host, expected: &[(RowDraw, u32)]) -> Verdict {
    let tokens: Vec<u32> = expected.iter().map(|(draw, _)| draw.token).collect();
    let flags: Vec<u32> = expected.iter().map(|(_, flag)| *flag).collect();
    let scores = expected.iter().map(|(draw, _)| draw.log_prob);
    let scores = scores.chain(expected.iter().map(|(draw, _)| draw.confidence));
    let scores = scores.chain(expected.iter().map(|(draw, _)| draw.given_log_prob));
    let far = got.scores.iter().zip(scores).filter(|&(&got, expected)| {
        let near = (got - expected).abs() <= 1e-5 * (1.0 + expected.abs());
        !(near || got == expected || (got.is_nan() && expected.is_nan()))
    });
    let far = Verdict { error: far.count() as f64, bound: 0.0, fingerprint: bits(&got.scores) };
    judge_exact(&got.tokens, &tokens).and(judge_exact(&got.flags, &flags)).and(far)
}

fn bits(scores: &[f32]) -> u64 {
    super::fingerprint(&scores.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>())
}

/// The number of differing bit patterns.
fn same(a: &Host, b: &Host) -> Verdict {
    let bits = |scores: &[f32]| scores.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let all = |host: &Host| [&host.tokens[..], &host.flags[..], &bits(&host.scores)[..]].concat();
    judge_exact(&all(a), &all(b))
}

/// Rows of all kinds, with parameters of all kinds, half of them with uniform numbers from the kernel's own generator.
fn mixed<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, vocab: usize, rows: usize) -> Result<Verdict> {
    let mut random = rig.random(vocab as u64 + ((dtype as u64) << 32));
    let first = random.below(KINDS.len());
    let (mut logits, mut words, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for r in 0..rows {
        let row = row(&mut random, dtype, KINDS[(first + r) % KINDS.len()], vocab);
        let mut params = params(&mut random, &row, r);
        let noise = if random.below(2) == 0 {
            RowNoise::Given
        } else {
            let at = NoiseAddress { seed: random.bits(), sequence: 3, step: r as u32, position: 77 };
            params.uniform = Rng::new(at.seed).uniform(Purpose::Token, at.sequence, at.step, at.position);
            RowNoise::Philox(at)
        };
        expected.push(judge(&row, &params));
        if noise != RowNoise::Given {
            params.uniform = 0.5;
        }
        words.push(unmask_words(vocab, &params, noise)?);
        logits.extend(row);
    }
    let logits = Buffer::floats(rig.device(), dtype, &logits)?;
    let streaming = draw(rig, UnmaskVariant::Streaming, dtype, &logits, 0, vocab, vocab, &words)?;
    let verdict = compare(&streaming, &expected);
    if rig.cuda.unmask_variant(dtype, vocab) == UnmaskVariant::Streaming {
        return Ok(verdict);
    }
    let resident = draw(rig, UnmaskVariant::Resident, dtype, &logits, 0, vocab, vocab, &words)?;
    Ok(verdict.and(compare(&resident, &expected)).and(same(&resident, &streaming)))
}

/// One row at every offset from 16 bytes, with other numbers (and NaN) around it: always the same bits.
fn offsets<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, vocab: usize) -> Result<Verdict> {
    let mut random = rig.random(5);
    let row = row(&mut random, dtype, Kind::Normal, vocab);
    let mut params = params(&mut random, &row, 1);
    params.temperature = 0.9;
    (params.top_k, params.top_p, params.suppress) = (0, 0.95, vocab as u32 - 1);
    let around = 16 / dtype.size();
    // Rows a pack and a number apart, so that each begins at another offset.
    let stride = vocab.next_multiple_of(around) + around + 1;
    let rows = around;
    let mut logits = vec![f32::NAN; 3 + rows * stride];
    for r in 0..rows {
        logits[3 + r * stride..][..vocab].copy_from_slice(&row);
    }
    let logits = Buffer::floats(rig.device(), dtype, &logits)?;
    let words = vec![unmask_words(vocab, &params, RowNoise::Given)?; rows];
    let one = judge(&row, &params);
    let mut verdict: Option<Verdict> = None;
    for variant in [UnmaskVariant::Resident, UnmaskVariant::Streaming] {
        let got = draw(rig, variant, dtype, &logits, 3, stride, vocab, &words)?;
        let bits: Vec<u32> = got.scores.iter().map(|x| x.to_bits()).collect();
        let first: Vec<u32> = bits.chunks(rows).flat_map(|same| vec![same[0]; same.len()]).collect();
        let each = compare(&got, &vec![one; rows]).and(judge_exact(&bits, &first));
        verdict = Some(verdict.map_or(each, |v| v.and(each)));
    }
    Ok(verdict.unwrap_or(judge_exact::<u32>(&[], &[0])))
}

/// Gumbel noise against the definition in f64; where the two best scores are closer than the kernel computes, either will do.
fn gumbel<D: Device>(rig: &Rig<'_, D>, dtype: Dtype, rows: usize, vocab: usize) -> Result<Verdict> {
    let mut random = rig.random(9);
    let (mut logits, mut words, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for r in 0..rows {
        let row = row(&mut random, dtype, [Kind::Normal, Kind::Flat, Kind::Ties][r % 3], vocab);
        let mut params = params(&mut random, &row, r);
        params.temperature = [1.0, 0.7, 2.5][r % 3];
        params.top_p = [1.0, 0.9][r / 3 % 2];
        let at = NoiseAddress { seed: random.bits(), sequence: r as u32, step: 2, position: 1 << 20 };
        words.push(unmask_words(vocab, &params, RowNoise::Gumbel(at))?);
        let keep = keep_mask(&row, &params)?;
        let mut scores: Vec<(f64, u32)> = (0..vocab as u32)
            .filter(|&id| keep[id as usize])
            .map(|id| (score(&row, &params, &at, id), id))
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        expected.push(scores);
        logits.extend(row);
    }
    let logits = Buffer::floats(rig.device(), dtype, &logits)?;
    let streaming = draw(rig, UnmaskVariant::Streaming, dtype, &logits, 0, vocab, vocab, &words)?;
    let resident = draw(rig, UnmaskVariant::Resident, dtype, &logits, 0, vocab, vocab, &words)?;
    let wrong = streaming.tokens.iter().zip(&expected).filter(|(token, scores)| {
        let near = scores.iter().take_while(|s| scores[0].0 - s.0 < 1e-4);
        !near.clone().any(|(_, id)| id == *token)
    });
    let verdict = Verdict { error: wrong.count() as f64, bound: 0.0, fingerprint: bits(&streaming.scores) };
    Ok(verdict.and(judge_exact(&streaming.flags, &vec![0; rows])).and(same(&resident, &streaming)))
}

/// (z - max) / temperature + noise, up to a constant.
fn score(row: &[f32], params: &RowParams, at: &NoiseAddress, id: u32) -> f64 {
    let key = [at.seed as u32, (at.seed >> 32) as u32];
    let purpose = Purpose::Gumbel as u32 + 256 * (id / 4);
    let words = crate::rng::philox4x32_10([at.position, at.step, at.sequence, purpose], key);
    let u = f64::from(2 * (words[id as usize % 4] >> 9) + 1) / 16_777_216.0;
    f64::from(row[id as usize]) / f64::from(params.temperature) - (-u.ln()).ln()
}
