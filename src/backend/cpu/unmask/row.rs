//! One row: checks, candidates, top-k, top-p, the draw and the confidence.

use super::cut::{Cut, Selection};
use super::mass::{BLOCK, ONE, Temper, UnmaskElement};
use crate::backend::{Confidence, NO_TOKEN, RowDraw, RowParams};
use crate::error::{Error, Result};

/// Temperatures may be at most this.
const HOTTEST: f32 = 1e30;

/// Reusable memory of one thread.
pub struct Scratch<E> {
    /// Maximum and mass of each block of the row.
    peaks: Vec<E>,
    sums: Vec<u64>,
    /// Block maxima, reordered to find the k-th largest.
    order: Vec<E>,
    /// Tokens that may be drawn, in id order, with their logits and masses.
    ids: Vec<u32>,
    z: Vec<E>,
    masses: Vec<u64>,
    selection: Selection,
    /// Vocabulary that there is room for.
    ready: usize,
}

impl<E> Default for Scratch<E> {
    fn default() -> Self {
        Self {
            peaks: Vec::new(),
            sums: Vec::new(),
            order: Vec::new(),
            ids: Vec::new(),
            z: Vec::new(),
            masses: Vec::new(),
            selection: Selection::default(),
            ready: 0,
        }
    }
}

/// What the two passes over a row find.
struct Measured<E> {
    temper: Temper<E>,
    /// Mass of the whole row.
    total: u64,
    /// The most probable token; the lowest id of several.
    best: usize,
    greedy: bool,
    suppress: usize,
}

impl<E: UnmaskElement> Measured<E> {
    /// log probability of a token with logit `z`.
    fn log_prob(&self, z: E) -> f64 {
        self.depth(z) - self.log_sum()
    }

    /// Distance below the best logit, in units of the temperature.
    fn depth(&self, z: E) -> f64 {
        (z.to_f64() - self.temper.max.to_f64()) * self.temper.inverse
    }

    /// log of the sum of `exp((z - max) / temperature)`.
    fn log_sum(&self) -> f64 {
        self.sum().ln()
    }

    fn sum(&self) -> f64 {
        self.total as f64 / ONE as f64
    }
}

impl<E: UnmaskElement> Scratch<E> {
    /// Whether [`prepare`](Self::prepare) was called for this vocabulary or a larger one.
    pub fn is_ready(&self, vocab: usize) -> bool {
        self.ready >= vocab
    }

    /// Sets memory aside, so that drawing from rows of `vocab` logits allocates nothing.
    pub fn prepare(&mut self, vocab: usize) {
        if self.is_ready(vocab) {
            return;
        }
        let blocks = vocab.div_ceil(BLOCK);
        grow(&mut self.peaks, blocks);
        grow(&mut self.sums, blocks);
        grow(&mut self.order, blocks);
        grow(&mut self.ids, vocab + BLOCK);
        grow(&mut self.z, vocab + BLOCK);
        grow(&mut self.masses, vocab + BLOCK);
        self.selection.prepare(vocab);
        self.ready = vocab;
    }

    /// Draws from `row`, which is row `r` of its batch (for messages).
    pub fn draw(&mut self, row: &[E], r: usize, params: &RowParams) -> Result<RowDraw> {
        check(row.len(), params)?;
        let m = self.measure(row, r, params)?;
        let token = if m.greedy {
            m.best
        } else if self.filter(row, params, &m) {
            self.draw_candidate(params.uniform).unwrap_or(m.best)
        } else {
            self.draw_any(row, params.uniform, &m).unwrap_or(m.best)
        };
        let log_prob = m.log_prob(row[token]);
        let confidence = match params.confidence {
            Confidence::MaxProb => log_prob,
            Confidence::Entropy => {
                E::weighted_depth(row, m.suppress, &m.temper) * m.temper.inverse / m.sum() - m.log_sum()
            }
            Confidence::Margin => (1.0 - m.depth(self.second(row, &m)).exp()) / m.sum(),
        };
        let given = params.given;
        let given_log_prob = if given == NO_TOKEN {
            0.0
        } else if given as usize == m.suppress {
            f64::NEG_INFINITY
        } else {
            m.log_prob(row[given as usize])
        };
        Ok(RowDraw {
            token: token as u32,
            log_prob: log_prob as f32,
            confidence: confidence as f32,
            given_log_prob: given_log_prob as f32,
        })
    }

    /// See [`super::keep_mask`].
    pub fn keep_mask(&mut self, row: &[E], params: &RowParams) -> Result<Vec<bool>> {
        check(row.len(), params)?;
        let m = self.measure(row, 0, params)?;
        let mut keep = vec![false; row.len()];
        if m.greedy {
            keep[m.best] = true;
            return Ok(keep);
        }
        if !self.filter(row, params, &m) {
            self.gather(row, m.temper.floor(), &m);
        }
        for (&id, &mass) in self.ids.iter().zip(&self.masses) {
            keep[id as usize] = mass > 0;
        }
        Ok(keep)
    }

    /// The two passes over the whole row.
    fn measure(&mut self, row: &[E], r: usize, params: &RowParams) -> Result<Measured<E>> {
        let suppress = if params.suppress == NO_TOKEN { usize::MAX } else { params.suppress as usize };
        let greedy = params.temperature < f32::MIN_POSITIVE;
        let blocks = row.len().div_ceil(BLOCK);
        self.peaks.resize(blocks, E::zero());
        self.sums.resize(blocks, 0);
        let suppressed_fits = row.get(suppress).is_none_or(|z| *z < E::infinity());
        if !E::peaks(row, suppress, &mut self.peaks) || !suppressed_fits {
            return Err(not_finite(row, r));
        }
        let (mut max, mut block) = (E::neg_infinity(), 0);
        for (b, &peak) in self.peaks.iter().enumerate() {
            if peak > max {
                (max, block) = (peak, b);
            }
        }
        if max == E::neg_infinity() {
            return Err(Error::NonFinite {
                place: format!("logits of row {r}"),
                found: "no token that can be drawn (all are -inf or suppressed)".into(),
                hint: "check the weights of the head and the suppressed token".into(),
            });
        }
        let start = block * BLOCK;
        let best = (start..row.len()).find(|&i| i != suppress && row[i] == max).unwrap_or(start);
        let temper = Temper::new(max, if greedy { 1.0 } else { params.temperature });
        E::block_masses(row, suppress, &temper, &mut self.sums);
        let total = self.sums.iter().sum();
        Ok(Measured { temper, total, best, greedy, suppress })
    }

    /// Leaves in `ids`, `z`, `masses` the tokens that survive top-k and top-p; `false` when neither
    /// is asked for, and nothing was gathered.
    fn filter(&mut self, row: &[E], params: &RowParams, m: &Measured<E>) -> bool {
        let top_k = params.top_k as usize;
        let by_count = top_k > 0 && top_k < row.len();
        let by_mass = params.top_p < 1.0;
        if by_count {
            let least = self.kth_peak(top_k, m);
            self.gather(row, least, m);
            if self.ids.len() > top_k {
                let cut = self.selection.cut(&self.z, |_| 1, top_k as u64 - 1);
                self.keep(&cut);
            }
            if by_mass {
                let kept = self.masses.iter().sum();
                self.keep_nucleus(fraction(params.top_p, kept));
            }
        } else if by_mass {
            let limit = fraction(params.top_p, m.total);
            // Tokens below this logit are too few and too light to hold a share of 1 - top_p; if
            // rounding had it otherwise, all are gathered.
            let tail = (1.0 - f64::from(params.top_p.max(0.0))) * m.sum() / row.len() as f64;
            let depth = (tail.ln() - 1e-3) / m.temper.inverse;
            let least = E::from_f64(m.temper.max.to_f64() + depth);
            self.gather(row, least.max(m.temper.floor()), m);
            if self.masses.iter().sum::<u64>() <= limit {
                self.gather(row, m.temper.floor(), m);
            }
            self.keep_nucleus(limit);
        }
        by_count || by_mass
    }

    /// A logit that at least `k` tokens reach, or all that have a mass.
    fn kth_peak(&mut self, k: usize, m: &Measured<E>) -> E {
        let floor = m.temper.floor();
        if k > self.peaks.len() {
            return floor;
        }
        self.order.clear();
        self.order.extend_from_slice(&self.peaks);
        let (_, kth, _) =
            self.order.select_nth_unstable_by(k - 1, |&a, &b| b.to_f64().total_cmp(&a.to_f64()));
        kth.max(floor)
    }

    /// Collects the tokens whose logit is at least `least`, in id order, with their masses.
    fn gather(&mut self, row: &[E], least: E, m: &Measured<E>) {
        let mut n = 0;
        for (b, &peak) in self.peaks.iter().enumerate() {
            if peak < least {
                continue;
            }
            let start = b * BLOCK;
            let block = &row[start..row.len().min(start + BLOCK)];
            // Room for the whole block: each token is written before it is known whether it stays.
            if self.ids.len() < n + BLOCK {
                self.ids.resize(n + BLOCK, 0);
                self.z.resize(n + BLOCK, E::zero());
            }
            for (i, &z) in block.iter().enumerate() {
                self.ids[n] = (start + i) as u32;
                self.z[n] = z;
                n += usize::from(z >= least && start + i != m.suppress);
            }
        }
        self.ids.truncate(n);
        self.z.truncate(n);
        self.masses.resize(n, 0);
        E::masses(&self.z, &m.temper, &mut self.masses);
    }

    /// Drops the candidates after the one that crosses `limit`.
    fn keep_nucleus(&mut self, limit: u64) {
        let masses = &self.masses;
        let cut = self.selection.cut(&self.z, |i| masses[i], limit);
        self.keep(&cut);
    }

    /// Drops the candidates after the cut, keeping id order.
    fn keep(&mut self, cut: &Cut<E>) {
        let mut n = 0;
        for i in 0..self.ids.len() {
            let (id, z, mass) = (self.ids[i], self.z[i], self.masses[i]);
            (self.ids[n], self.z[n], self.masses[n]) = (id, z, mass);
            n += usize::from(cut.keeps(i, z));
        }
        self.ids.truncate(n);
        self.z.truncate(n);
        self.masses.truncate(n);
    }

    /// The first candidate at which the running mass exceeds `uniform` of the candidates' total;
    /// as `uniform` is below 1, there is one whenever the total is not 0.
    fn draw_candidate(&self, uniform: f32) -> Option<usize> {
        let target = fraction(uniform, self.masses.iter().sum());
        let mut sum = 0;
        for (&id, &mass) in self.ids.iter().zip(&self.masses) {
            sum += mass;
            if sum > target {
                return Some(id as usize);
            }
        }
        None
    }

    /// The first token of the row at which the running mass exceeds `uniform` of the total.
    fn draw_any(&mut self, row: &[E], uniform: f32, m: &Measured<E>) -> Option<usize> {
        let target = fraction(uniform, m.total);
        let (mut sum, mut b) = (0, 0);
        while b + 1 < self.sums.len() && sum + self.sums[b] <= target {
            sum += self.sums[b];
            b += 1;
        }
        let start = b * BLOCK;
        let block = &row[start..row.len().min(start + BLOCK)];
        self.masses.resize(block.len(), 0);
        E::masses(block, &m.temper, &mut self.masses);
        for (i, &mass) in self.masses.iter().enumerate() {
            sum += if start + i == m.suppress { 0 } else { mass };
            if sum > target {
                return Some(start + i);
            }
        }
        None
    }

    /// The second largest logit; -inf when there is but one.
    fn second(&self, row: &[E], m: &Measured<E>) -> E {
        let block = m.best / BLOCK;
        let start = block * BLOCK;
        let beside = row[start..row.len().min(start + BLOCK)].iter().enumerate();
        let beside = beside.filter(|(i, _)| start + i != m.best && start + i != m.suppress).map(|(_, &z)| z);
        let others = self.peaks.iter().enumerate().filter(|(b, _)| *b != block).map(|(_, &z)| z);
        beside.chain(others).fold(E::neg_infinity(), E::max)
    }
}

/// Makes room for `len` numbers in all.
pub(super) fn grow<T>(memory: &mut Vec<T>, len: usize) {
    memory.reserve_exact(len.saturating_sub(memory.len()));
}

/// Checks what does not depend on the logits.
fn check(vocab: usize, params: &RowParams) -> Result<()> {
    let RowParams { temperature, top_p, uniform, given, .. } = *params;
    if !(0.0..=HOTTEST).contains(&temperature) {
        return Err(Error::request(format!(
            "the temperature must be a number from 0 (greedy) to {HOTTEST:e}, got {temperature}"
        )));
    }
    if top_p.is_nan() {
        return Err(Error::request("top-p must be a number (1 keeps all tokens), got NaN"));
    }
    if !(0.0..1.0).contains(&uniform) {
        return Err(Error::request(format!(
            "a uniform number must be at least 0 and below 1, got {uniform}"
        )));
    }
    if given != NO_TOKEN && given as usize >= vocab {
        return Err(Error::Shape {
            op: "unmask",
            what: "given token",
            expected: vocab - 1,
            got: given as usize,
        });
    }
    Ok(())
}

/// Names the first logit of a row that is NaN or +inf.
fn not_finite<E: UnmaskElement>(row: &[E], r: usize) -> Error {
    let at = row.iter().position(|z| z.is_nan() || *z == E::infinity()).unwrap_or(0);
    Error::NonFinite {
        place: format!("logits of row {r}, token {at}"),
        found: row[at].to_string(),
        hint: "the weights or an input row are damaged, or the numbers overflowed; check the checkpoint"
            .into(),
    }
}

/// `floor(share * of)`, exactly; a share outside `0..=1` counts as the nearer end.
fn fraction(share: f32, of: u64) -> u64 {
    if share >= 1.0 {
        return of;
    }
    let bits = share.max(0.0).to_bits();
    let exponent = bits >> 23;
    // share = mantissa * 2^-shift, for subnormal numbers too.
    let (mantissa, shift) = if exponent == 0 {
        (bits & 0x007f_ffff, 149)
    } else {
        ((bits & 0x007f_ffff) | 0x0080_0000, 150 - exponent)
    };
    (u128::from(mantissa) * u128::from(of)).checked_shr(shift).unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::fraction;

    #[test]
    fn fractions_are_exact() {
        for of in [0, 1, 3, 1 << 40, (1 << 60) + 12_345] {
            assert_eq!(fraction(0.0, of), 0);
            assert_eq!(fraction(-0.0, of), 0);
            assert_eq!(fraction(-3.0, of), 0);
            assert_eq!(fraction(0.5, of), of / 2);
            assert_eq!(fraction(0.75, of), (u128::from(of) * 3 / 4) as u64);
            assert_eq!(fraction(1.0, of), of);
            assert_eq!(fraction(f32::INFINITY, of), of);
            assert_eq!(fraction(f32::from_bits(1), of), 0);
            assert_eq!(fraction(f32::MIN_POSITIVE, of), 0);
        }
        // 0.9 in f32 is 15099494 / 2^24.
        assert_eq!(fraction(0.9, 1 << 24), 15_099_494);
        let largest = 1.0 - f32::EPSILON / 2.0;
        assert!(fraction(largest, 1 << 40) < 1 << 40);
    }
}
