//! Every operation as the definition reads, in f64 and plain loops. Obvious, not fast.

use lacuna::config::{Activation, NormKind};

/// `out[t][j] = sum_k x[t][k] w(k, j)`.
pub fn matmul(x: &[f64], rows: usize, k: usize, n: usize, w: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut out = vec![0.0; rows * n];
    for t in 0..rows {
        for j in 0..n {
            for i in 0..k {
                out[t * n + j] += x[t * k + i] * w(i, j);
            }
        }
    }
    out
}

pub fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2_f64.sqrt())),
    }
}

/// The error function by its series of positive terms, `2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!`.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut sum, mut term, mut n) = (0.0, x, 0.0);
    while term.abs() > 1e-20 * f64::abs(sum) {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

pub fn norm(kind: NormKind, x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let width = weight.len();
    let mut out = Vec::new();
    for row in x.chunks(width) {
        let mean = match kind {
            NormKind::LayerNorm => row.iter().sum::<f64>() / width as f64,
            NormKind::RmsNorm => 0.0,
        };
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        for j in 0..width {
            let y = (row[j] - mean) / (variance + eps).sqrt() * weight[j];
            out.push(y + bias.map_or(0.0, |b| b[j]));
        }
    }
    out
}

/// One head of width `d`, rotated.
pub fn rope(x: &[f64], angles: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for i in 0..half {
        let (cos, sin) = (angles[i], angles[half + i]);
        out[i] = x[i] * cos - x[half + i] * sin;
        out[half + i] = x[half + i] * cos + x[i] * sin;
    }
    out
}

/// Attention of one query `q` over keys and values (one row each); `seen(key)` says which count.
pub fn attention(
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    scale: f64,
    seen: impl Fn(usize) -> bool,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    let seen_keys: Vec<usize> = (0..keys.len()).filter(|&j| seen(j)).collect();
    let score = |j: usize| scale * q.iter().zip(&keys[j]).map(|(a, b)| a * b).sum::<f64>();
    let max = seen_keys.iter().map(|&j| score(j)).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = seen_keys.iter().map(|&j| (score(j) - max).exp()).sum();
    for j in seen_keys {
        for (o, v) in out.iter_mut().zip(&values[j]) {
            *o += (score(j) - max).exp() / total * v;
        }
    }
    out
}

pub fn cross_entropy(logits: &[f64], target: usize) -> f64 {
    let max = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max - logits[target]
}
