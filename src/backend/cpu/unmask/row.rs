//! One row: checks, candidates, top-k, top-p, the draw and the confidence.

use super::cut::{Bins, Cut, Selection};
use super::mass::{ONE, Temper};
use super::passes::{BLOCK, UnmaskElement};
use crate::backend::{Confidence, NO_TOKEN, RowDraw, RowParams};
use crate::error::{Error, Result};

/// One block in so many is looked at to guess where a ranking is cut.
const STRIDE: usize = 16;

/// Reusable memory of one thread.
pub struct Scratch<E> {
    /// Maximum and mass of each block of the row; once filtered, the mass of what is kept in each.
    peaks: Vec<E>,
    sums: Vec<u64>,
    /// Block maxima, reordered to find the k-th largest.
    order: Vec<E>,
    /// Some tokens, in id order, with their logits and masses.
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
        params.check(row.len())?;
        let m = self.measure(row, r, params)?;
        let token = if m.greedy {
            m.best
        } else {
            let cut = self.filter(row, params, &m);
            self.pick(row, params.uniform, &cut, &m).unwrap_or(m.best)
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
        params.check(row.len())?;
        let m = self.measure(row, 0, params)?;
        let mut keep = vec![false; row.len()];
        if m.greedy {
            keep[m.best] = true;
            return Ok(keep);
        }
        let cut = self.filter(row, params, &m);
        self.masses.resize(row.len(), 0);
        E::masses(row, &m.temper, &mut self.masses);
        for (i, keep) in keep.iter_mut().enumerate() {
            *keep = self.masses[i] > 0 && i != m.suppress && cut.keeps(i as u32, row[i]);
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
        E::block_masses(row, suppress, &self.peaks, E::neg_infinity(), &temper, &mut self.sums);
        let total = self.sums.iter().sum();
        Ok(Measured { temper, total, best, greedy, suppress })
    }

    /// Where top-k and top-p cut the ranking off. The blocks' masses become those of what is kept.
    fn filter(&mut self, row: &[E], params: &RowParams, m: &Measured<E>) -> Cut<E> {
        let top_k = params.top_k as usize;
        let by_mass = params.top_p < 1.0;
        if top_k == 0 || top_k >= row.len() {
            return if by_mass { self.nucleus(row, params.top_p, m) } else { Cut::none() };
        }
        let least = self.kth_peak(top_k, m);
        self.gather(row, 1, [least, E::infinity()], m);
        let mut cut = Cut { z: least, last: u32::MAX };
        if self.ids.len() > top_k {
            cut = self.selection.cut(&self.ids, &self.z, |_| 1, top_k as u64 - 1);
            self.keep(&cut);
        }
        if by_mass {
            let limit = fraction(params.top_p, self.masses.iter().sum());
            cut = self.cut_gathered(limit);
        }
        self.sums.fill(0);
        self.add_kept(&cut);
        cut
    }

    /// Where top-p cuts the ranking of the whole row. Of what is certainly kept only the sum of masses is taken; the cut is
    /// looked for among the tokens between that and what is certainly dropped. What is certain is a guess first, then checked.
    fn nucleus(&mut self, row: &[E], top_p: f32, m: &Measured<E>) -> Cut<E> {
        let max = m.temper.max;
        let limit = fraction(top_p, m.total);
        // Tokens below this logit are too few and too light to hold a share of 1 - top_p.
        let tail = (1.0 - f64::from(top_p.max(0.0))) * m.sum() / row.len() as f64;
        let light = E::from_f64(max.to_f64() + (tail.ln() - 1e-3) / m.temper.inverse);
        let [floor, light] = [m.temper.floor(), light.max(m.temper.floor())].map(|z| z.min(max));
        let guess = self.guess(row, limit, light, m);
        let certain = [[light, E::infinity()], [floor, E::infinity()]];
        for range in guess.into_iter().chain(certain) {
            let [_, end] = range;
            let sure = if end <= max {
                E::block_masses(row, m.suppress, &self.peaks, end, &m.temper, &mut self.sums);
                self.sums.iter().sum()
            } else {
                self.sums.fill(0);
                0
            };
            if sure > limit {
                continue;
            }
            self.gather(row, 1, range, m);
            if sure + self.masses.iter().sum::<u64>() > limit {
                let cut = self.cut_gathered(limit - sure);
                self.add_kept(&cut);
                return cut;
            }
        }
        // Not reached: all masses together exceed a share of themselves.
        Cut::none()
    }

    /// Logits between which the ranking is most likely cut when masses from the top exceed `limit`, by a look at one block in
    /// [`STRIDE`]: below the first nothing is kept, from the second on all is. Nothing below `light` is kept. `None` where
    /// few blocks reach `light`, so that a look at all of these costs little.
    fn guess(&mut self, row: &[E], limit: u64, light: E, m: &Measured<E>) -> Option<[E; 2]> {
        let near = self.peaks.iter().filter(|peak| **peak >= light).count();
        if near < 8 * STRIDE || near * 8 < self.peaks.len() || light >= m.temper.max {
            return None;
        }
        let total: u64 = self.sums.iter().step_by(STRIDE).sum();
        self.gather(row, STRIDE, [light, E::infinity()], m);
        let range = Bins::new(m.temper.max, light);
        let bins = self.selection.histogram(&self.z, &self.masses, &range);
        let (scale, wanted) = (STRIDE as f64, (m.total - limit) as f64);
        let width = range.width();
        let lighter = (-width * m.temper.inverse).exp();
        let (mut before, mut end) = (0, E::infinity());
        let mut heaviest = ONE as f64 * lighter.sqrt();
        for (b, bin) in bins.iter().enumerate() {
            // The mass of the row below this bin, and its standard deviation: no token there is heavier than `heaviest`.
            before += bin;
            let below = scale * (total - before) as f64;
            let three = 3.0 * (scale * heaviest * below).sqrt();
            let edge = || E::from_f64(m.temper.max.to_f64() - (b as f64 + 0.5) * width);
            if below - three >= wanted {
                end = edge();
            } else if below + three <= wanted {
                return Some([edge().max(light), end]);
            }
            heaviest *= lighter;
        }
        Some([light, end])
    }

    /// Where the ranking of the gathered tokens is cut.
    fn cut_gathered(&mut self, limit: u64) -> Cut<E> {
        let masses = &self.masses;
        self.selection.cut(&self.ids, &self.z, |i| masses[i], limit)
    }

    /// Adds the gathered tokens that the cut keeps to the masses of their blocks.
    fn add_kept(&mut self, cut: &Cut<E>) {
        for ((&id, &z), &mass) in self.ids.iter().zip(&self.z).zip(&self.masses) {
            self.sums[id as usize / BLOCK] += if cut.keeps(id, z) { mass } else { 0 };
        }
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

    /// Collects the tokens of every `step`th block whose logit is at least `range[0]` and below `range[1]`, in id order, and
    /// their masses.
    fn gather(&mut self, row: &[E], step: usize, range: [E; 2], m: &Measured<E>) {
        E::gather(row, m.suppress, &self.peaks, step, range, &mut self.ids, &mut self.z);
        self.masses.resize(self.z.len(), 0);
        E::masses(&self.z, &m.temper, &mut self.masses);
    }

    /// Drops the gathered tokens that the cut does not keep.
    fn keep(&mut self, cut: &Cut<E>) {
        let mut n = 0;
        for i in 0..self.ids.len() {
            let (id, z) = (self.ids[i], self.z[i]);
            (self.ids[n], self.z[n], self.masses[n]) = (id, z, self.masses[i]);
            n += usize::from(cut.keeps(id, z));
        }
        self.ids.truncate(n);
        self.z.truncate(n);
        self.masses.truncate(n);
    }

    /// The first token of the row at which the running mass of kept tokens exceeds `uniform` of
    /// their total, given the blocks' kept masses in `sums`. As `uniform` is below 1, there is one.
    fn pick(&mut self, row: &[E], uniform: f32, cut: &Cut<E>, m: &Measured<E>) -> Option<usize> {
        let target = fraction(uniform, self.sums.iter().sum());
        let (mut sum, mut b) = (0, 0);
        while b + 1 < self.sums.len() && sum + self.sums[b] <= target {
            sum += self.sums[b];
            b += 1;
        }
        let start = b * BLOCK;
        let block = &row[start..row.len().min(start + BLOCK)];
        self.masses.resize(block.len(), 0);
        E::masses(block, &m.temper, &mut self.masses);
        for (i, (&mass, &z)) in self.masses.iter().zip(block).enumerate() {
            let id = start + i;
            if id != m.suppress && cut.keeps(id as u32, z) {
                sum += mass;
            }
            if sum > target {
                return Some(id);
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
