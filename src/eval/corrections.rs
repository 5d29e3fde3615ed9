//! Self-correction: what became of tokens that were committed and later changed.

/// Positions of a sample, by what became of the token that was committed there first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// Right at first, and at last.
    pub kept_right: usize,
    /// Wrong at first, right at last.
    pub fixed: usize,
    /// Right at first, wrong at last.
    pub broken: usize,
    /// Wrong at first, and at last: the same token, or another one.
    pub left_wrong: usize,
    /// Positions whose last token is another one than the first; `fixed` and `broken` among them.
    pub changed: usize,
}

impl Corrections {
    /// Counts the positions that were filled. `first` is the token that was committed first (`None`: the position was
    /// given, or never filled), `last` the one that stayed, `right` the one that should have.
    pub fn count(first: &[Option<u32>], last: &[u32], right: &[u32]) -> Self {
        let mut all = Self::default();
        for ((first, last), right) in first.iter().zip(last).zip(right) {
            let Some(first) = first else { continue };
            let place = match (first == right, last == right) {
                (true, true) => &mut all.kept_right,
                (false, true) => &mut all.fixed,
                (true, false) => &mut all.broken,
                (false, false) => &mut all.left_wrong,
            };
            *place += 1;
            all.changed += usize::from(first != last);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_position_is_counted_once() {
        let first = [None, Some(1), Some(2), Some(3), Some(4), Some(5)];
        let (last, right) = ([9, 1, 7, 8, 4, 6], [0, 1, 7, 3, 9, 0]);
        let counted = Corrections::count(&first, &last, &right);
        let expected = Corrections { kept_right: 1, fixed: 1, broken: 1, left_wrong: 2, changed: 3 };
        assert_eq!(counted, expected);
    }
}
