//! Which positions are the most confident ones: selection without a sort.

use std::cmp::Ordering;

/// More confident first, then the lower index.
fn ranking(scores: &[f32], a: u32, b: u32) -> Ordering {
    scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
}

/// Puts the indices of the `n` most confident scores into `out`, ascending. Of equal scores the
/// lower index counts as more confident. `out` is reused memory.
pub fn most_confident(scores: &[f32], n: usize, out: &mut Vec<u32>) {
    select(scores, n, out, |a, b| ranking(scores, a, b));
}

/// Puts the indices of the `n` least confident scores into `out`, ascending: those that are not
/// among the [`most_confident`].
pub fn least_confident(scores: &[f32], n: usize, out: &mut Vec<u32>) {
    select(scores, n, out, |a, b| ranking(scores, b, a));
}

fn select(scores: &[f32], n: usize, out: &mut Vec<u32>, order: impl Fn(u32, u32) -> Ordering) {
    out.clear();
    if n == 0 {
        return;
    }
    out.extend(0..scores.len() as u32);
    if n < out.len() {
        out.select_nth_unstable_by(n - 1, |&a, &b| order(a, b));
        out.truncate(n);
    }
    out.sort_unstable();
}

/// Puts the indices of all scores above `tau` into `out`, ascending; if there are none, that of the
/// most confident score (the first of equals), so that every step commits something.
pub fn above_threshold(scores: &[f32], tau: f32, out: &mut Vec<u32>) {
    out.clear();
    out.extend((0..scores.len() as u32).filter(|&i| scores[i as usize] > tau));
    if out.is_empty() {
        out.extend((0..scores.len() as u32).min_by(|&a, &b| ranking(scores, a, b)));
    }
}
