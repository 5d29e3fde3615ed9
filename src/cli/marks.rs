//! Text with gap marks: `[[gap:12]]` is a gap of twelve tokens, `[[gap:4-20]]` one of four to
//! twenty. A backslash before the mark (`\[[gap:`) keeps it as ordinary text.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// A piece of a marked text, in reading order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Given text.
    Text(String),
    /// A gap, in tokens; a single length is a range of one.
    Gap(RangeInclusive<usize>),
}

const OPEN: &str = "[[gap";

/// Splits `text` at its gap marks. Neighbouring text is one piece; empty text is left out.
///
/// # Errors
/// [`Error::Request`] naming the mark, for a mark that is not closed, whose length is not a
/// number from 1 on, or whose range runs backwards.
pub fn parse(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut given = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(OPEN) {
        let (before, mark) = rest.split_at(at);
        if let Some(kept) = before.strip_suffix('\\') {
            given.push_str(kept);
            given.push_str(OPEN);
            rest = &mark[OPEN.len()..];
            continue;
        }
        given.push_str(before);
        let body = &mark[OPEN.len()..];
        let Some(end) = body.find("]]") else {
            let shown: String = mark.chars().take(24).collect();
            return Err(Error::Request(format!(
                "gap mark `{shown}` is not closed: expected [[gap:N]] or [[gap:A-B]]; \
                 write \\[[gap to keep it as text"
            )));
        };
        let gap = body[..end].strip_prefix(':').ok_or(()).and_then(|s| length(s).map_err(|_| ()));
        let gap = gap.map_err(|()| {
            Error::Request(format!(
                "gap mark `{}]]`: expected [[gap:N]] or [[gap:A-B]] with 1 <= A <= B tokens; \
                 write \\[[gap to keep it as text",
                &mark[..OPEN.len() + end]
            ))
        })?;
        if !given.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut given)));
        }
        pieces.push(Piece::Gap(gap));
        rest = &body[end + 2..];
    }
    given.push_str(rest);
    if !given.is_empty() {
        pieces.push(Piece::Text(given));
    }
    Ok(pieces)
}

/// A gap length: `12`, or a range `4-20`, in tokens.
///
/// # Errors
/// A sentence that says what was expected.
pub fn length(text: &str) -> std::result::Result<RangeInclusive<usize>, String> {
    let wrong = || format!("expected N or A-B with 1 <= A <= B tokens, got `{text}`");
    let number = |s: &str| {
        let digits = Some(s.trim()).filter(|s| s.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|s| s.parse::<usize>().ok()).filter(|&n| n >= 1).ok_or_else(wrong)
    };
    let (low, high) = match text.split_once('-') {
        Some((a, b)) => (number(a)?, number(b)?),
        None => (number(text)?, number(text)?),
    };
    if low > high { Err(wrong()) } else { Ok(low..=high) }
}

/// Combinations beyond which they are not even listed.
const CEILING: usize = 100_000;

/// All choices of one length from each range, the last range turning fastest.
///
/// # Errors
/// [`Error::Request`] when there are more than `most`, or more than anybody waits for.
pub fn combinations(gaps: &[RangeInclusive<usize>], most: usize) -> Result<Vec<Vec<usize>>> {
    let most = most.min(CEILING);
    let count = gaps.iter().try_fold(1usize, |n, g| n.checked_mul(g.end() - g.start() + 1));
    match count {
        Some(n) if n <= most => {}
        _ => {
            let n = count.map_or("more than 2^64".to_owned(), |n| n.to_string());
            return Err(Error::Request(format!(
                "the gap ranges give {n} combinations of lengths, at most {most} are tried; \
                 narrow the ranges or raise --max-candidates"
            )));
        }
    }
    let mut all = vec![Vec::with_capacity(gaps.len())];
    for gap in gaps {
        all = all
            .iter()
            .flat_map(|chosen: &Vec<usize>| {
                gap.clone().map(move |n| {
                    let mut longer = chosen.clone();
                    longer.push(n);
                    longer
                })
            })
            .collect();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Piece {
        Piece::Text(s.to_owned())
    }

    #[test]
    fn several_marks_and_ranges() {
        assert_eq!(
            parse("a [[gap:12]] b[[gap:4-20]][[gap:1]]\nc").unwrap(),
            [text("a "), Piece::Gap(12..=12), text(" b"), Piece::Gap(4..=20), Piece::Gap(1..=1), text("\nc")]
        );
        assert_eq!(parse("plain [[link]] text").unwrap(), [text("plain [[link]] text")]);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn backslash_keeps_the_mark() {
        assert_eq!(parse(r"x \[[gap:3]] y").unwrap(), [text("x [[gap:3]] y")]);
        assert_eq!(parse(r"\[[gap [[gap:2]]").unwrap(), [text("[[gap "), Piece::Gap(2..=2)]);
    }

    #[test]
    fn bad_marks_are_named() {
        for bad in [
            "[[gap]]",
            "[[gap:]]",
            "[[gap:+2]]",
            "[[gap:x]]",
            "[[gap:0]]",
            "[[gap:-3]]",
            "[[gap:9-4]]",
            "[[gap:1-2-3]]",
        ] {
            let message = parse(&format!("é {bad} é")).unwrap_err().to_string();
            assert!(message.contains(bad), "{message}");
        }
        let message = parse("text [[gap:12] more").unwrap_err().to_string();
        assert!(message.contains("not closed"), "{message}");
    }

    #[test]
    fn combinations_are_all_and_bounded() {
        assert_eq!(
            combinations(&[1..=2, 5..=5, 3..=4], 64).unwrap(),
            [[1, 5, 3], [1, 5, 4], [2, 5, 3], [2, 5, 4]]
        );
        assert_eq!(combinations(&[], 1).unwrap(), [Vec::<usize>::new()]);
        let message = combinations(&[1..=10, 1..=10], 64).unwrap_err().to_string();
        assert!(message.contains("100 combinations"), "{message}");
        assert!(combinations(&[1..=usize::MAX, 1..=usize::MAX], 64).is_err());
        assert!(combinations(&[1..=usize::MAX], 64).is_err());
        // Whatever is asked for, the list fits into memory.
        let message = combinations(&[1..=1000, 1..=1000, 1..=1000], usize::MAX).unwrap_err().to_string();
        assert!(message.contains("at most 100000"), "{message}");
    }
}
