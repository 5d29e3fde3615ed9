//! Numbers and words as people read them on the page.

use crate::train::plot::thousands;

/// `text` inside an element or an attribute of a page: nothing in it is markup, and nothing acts on what stands beside it.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(harmless(c)),
        }
    }
    out
}

/// What no page may hold, and what turns the direction of writing, becomes U+FFFD.
fn harmless(c: char) -> char {
    let control = c.is_control() && !matches!(c, '\n' | '\t');
    let direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if control || direction || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c }
}

/// `text` on one line of at most `most` characters, harmless, for a drawing that escapes it itself.
pub fn short(text: &str, most: usize) -> String {
    let line = |c: char| if c.is_whitespace() { ' ' } else { harmless(c) };
    let mut out: String = text.chars().take(most).map(line).collect();
    if text.chars().nth(most).is_some() {
        out.pop();
        out.push('…');
    }
    out
}

/// A number with three significant digits and the letter of its thousands.
pub fn si(x: f64) -> String {
    const LETTERS: [(f64, &str); 7] =
        [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    if !x.is_finite() {
        return "–".to_owned();
    }
    let size = x.abs();
    // 999.6 is 1.00k.
    let found = LETTERS.into_iter().find(|(unit, _)| size >= 0.9995 * unit);
    match found {
        Some((unit, letter)) if size < 1e21 => format!("{}{letter}", three(x / unit)),
        Some(_) => format!("{x:.2e}"),
        None if size == 0.0 => "0".to_owned(),
        None if size < 1e-4 => format!("{x:.2e}"),
        None => three(x),
    }
}

/// Three significant digits, zeros behind the point left out.
fn three(x: f64) -> String {
    let before = x.abs().log10().floor();
    let digits = (2.0 - before).clamp(0.0, 6.0) as usize;
    let text = format!("{x:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A time in the unit that suits it.
pub fn time(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".to_owned();
    }
    match seconds.abs() {
        s if s >= 120.0 => format!("{} min", three(seconds / 60.0)),
        s if s >= 0.9995 || s == 0.0 => {
            format!("{} s", if s == 0.0 { "0".to_owned() } else { three(seconds) })
        }
        s if s >= 0.9995e-3 => format!("{} ms", three(seconds * 1e3)),
        _ => format!("{} µs", three(seconds * 1e6)),
    }
}

/// Bytes in binary units.
pub fn bytes(x: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut x = x;
    let mut unit = 0;
    while x.abs() >= 1023.5 && unit + 1 < units.len() {
        x /= 1024.0;
        unit += 1;
    }
    if x.is_finite() && x != 0.0 { format!("{} {}", three(x), units[unit]) } else { "0 B".to_owned() }
}

/// A whole number with its thousands apart, or one that is not whole as it is.
pub fn count(x: f64) -> String {
    if x.fract() != 0.0 || x.abs() >= 1e15 {
        return si(x);
    }
    thousands(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        for (x, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (999.0, "999"),
            (999.7, "1k"),
            (1234.0, "1.23k"),
            (0.25, "0.25"),
            (1.5e10, "15G"),
            (-2e6, "-2M"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(si(x), text);
        }
        assert_eq!(si(1e300), "1.00e300");
        assert_eq!(si(1e-9), "1.00e-9");
        assert_eq!(
            [0.0, 0.0123, 4.5e-6, 3.0, 600.0].map(time),
            ["0 s", "12.3 ms", "4.5 µs", "3 s", "10 min"]
        );
        assert_eq!([0.0, 512.0, 1024.0, 1.5e9].map(bytes), ["0 B", "512 B", "1 KiB", "1.4 GiB"]);
        assert_eq!([1234.0, 12345.0, 2.5].map(count), ["1234", "12\u{202f}345", "2.5"]);
    }

    #[test]
    fn words_are_harmless() {
        assert_eq!(escape("</script><svg onload='x'>"), "&lt;/script&gt;&lt;svg onload=&#39;x&#39;&gt;");
        assert_eq!(escape("a\0\u{1b}[1m\u{202e}b"), "a\u{fffd}\u{fffd}[1m\u{fffd}b");
        assert_eq!(short("abcdef\n", 4), "abc…");
        assert_eq!(short("a\nb", 9), "a b");
    }
}
