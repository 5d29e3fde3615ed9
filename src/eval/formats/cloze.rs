//! Passages of which the last word is asked for.

use std::path::Path;

use super::record::{Record, quoted};
use super::{Ids, fault, is_space, lines, none};
use crate::error::Result;
use crate::io::Lines;

/// What is expected of the name of a file.
const KINDS: &str = ".txt or .jsonl (both also with .gz or .zst behind)";

/// A passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloze {
    pub id: String,
    /// What stands before the last word, without the white space at its end.
    pub context: String,
    /// The last word, as far as white space reaches.
    pub word: String,
}

/// Reads LAMBADA (Paperno et al., "The LAMBADA dataset: Word prediction requiring a broad discourse context", 2016): a
/// `.txt` file with a passage a line, of which blank ones are passed over, or JSON lines with `text` and, if wanted,
/// `id`.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io); [`Error::Input`](crate::error::Error::Input), naming file and line,
/// for a passage of fewer than two words, a line that is not UTF-8, a field that is missing or no string, two
/// items with one id; [`Error::Request`](crate::error::Error::Request) for no passages.
pub fn read(path: &Path) -> Result<Vec<Cloze>> {
    let json = Lines::are_objects(path);
    let mut lines = lines(path, KINDS)?;
    let mut ids = Ids::default();
    let mut passages = Vec::new();
    while let Some((own, text)) = if json { object(&mut lines)? } else { line(&mut lines)? } {
        let origin = lines.origin();
        let id = ids.next(own, &origin)?;
        let (context, word) =
            split(&text).ok_or_else(|| fault(&origin, "the passage", "two words or more", quoted(&text)))?;
        passages.push(Cloze { id, context: context.into(), word: word.into() });
    }
    match passages.is_empty() {
        true if json => Err(none(path, r#"lines such as {"text": "..."}"#)),
        true => Err(none(path, "a passage a line")),
        false => Ok(passages),
    }
}

/// The next line that is not blank.
fn line(lines: &mut Lines) -> Result<Option<(Option<String>, String)>> {
    loop {
        match lines.next_line()? {
            None => return Ok(None),
            Some(line) if line.chars().all(is_space) => {}
            Some(line) => return Ok(Some((None, line.to_owned()))),
        }
    }
}

/// Id and text of the next object.
fn object(lines: &mut Lines) -> Result<Option<(Option<String>, String)>> {
    let Some(fields) = lines.next_object()? else { return Ok(None) };
    let mut record = Record::new(lines.origin(), fields);
    Ok(Some((record.id(&["id"])?, record.string(&["text"])?)))
}

/// What stands before the last word, and the word.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_end_matches(is_space);
    let (before, _) = text.rsplit_once(is_space)?;
    let word = text.get(before.len()..)?.trim_start_matches(is_space);
    let context = before.trim_end_matches(is_space);
    (!context.is_empty()).then_some((context, word))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, fixture, place};
    use super::*;
    use crate::error::Error;

    fn passage(id: &str, context: &str, word: &str) -> Cloze {
        Cloze { id: id.into(), context: context.into(), word: word.into() }
    }

    #[test]
    fn the_last_word_is_asked_for() {
        assert_eq!(
            read(&fixture("lambada.txt")).unwrap(),
            [
                passage(
                    "1",
                    "the kettle had a crack , so ines poured the water into a pan and mended the",
                    "kettle"
                ),
                passage(
                    "2",
                    "`` bring the ladder , '' said omar . when she came back he could not lift the",
                    "ladder"
                ),
                passage(
                    "3",
                    "nobody had wound the clock since spring . tove opened its door and wound the",
                    "clock"
                ),
            ]
        );
    }

    #[test]
    fn json_lines_with_and_without_ids() {
        let (_folder, path) = file(
            "l.jsonl",
            "{\"text\": \"One two  \\nthree\\n\"}\n\n{\"id\": \"b\", \"text\": \" a\\tb\"}\n",
        );
        assert_eq!(read(&path).unwrap(), [passage("1", "One two", "three"), passage("b", " a", "b")]);
    }

    #[test]
    fn packed_lines() {
        use std::io::Write as _;
        let (_folder, path) = file("l.txt.gz", "");
        let mut packed =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
        packed.write_all("\u{feff}one two\r\n".as_bytes()).unwrap();
        packed.finish().unwrap();
        assert_eq!(read(&path).unwrap(), [passage("1", "one", "two")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |name: &str, text: &[u8]| {
            let (folder, path) = file(name, text);
            place(&folder, read(&path).unwrap_err())
        };
        assert_eq!(
            error("l.txt", b"a b\n\nword \n"),
            "l.txt line 3: the passage: expected two words or more, got \"word \""
        );
        assert_eq!(error("l.txt", b"\n \n"), "no items in l.txt: expected a passage a line");
        assert_eq!(error("l.jsonl", b""), "no items in l.jsonl: expected lines such as {\"text\": \"...\"}");
        assert_eq!(
            error("l.jsonl", b"{\"txt\": \"a b\"}"),
            "l.jsonl line 1: `text`: expected a string, got no such field; others are: txt"
        );
        assert_eq!(
            error("l.jsonl", b"{\"text\": \"\"}"),
            "l.jsonl line 1: the passage: expected two words or more, got \"\""
        );
        assert!(
            error("l.jsonl", b"{\"text\": \"a b\"}\n{\"text\":").starts_with("l.jsonl line 2: the line: ")
        );
        assert_eq!(
            error("l.txt", b"a b\nc \xff\n"),
            "l.txt line 2: byte 3 of the line: expected UTF-8, got 0xff"
        );
        assert_eq!(
            error("l.jsonl", b"{\"id\": 2, \"text\": \"a b\"}\n{\"text\": \"c d\"}\n"),
            "l.jsonl line 2: the item's id: expected one that no other item has, got \"2\", as item 1 of the file"
        );
        assert_eq!(
            error("l.csv", b""),
            "l.csv: kind of file: expected .txt or .jsonl (both also with .gz or .zst behind), got \"l.csv\""
        );
        assert!(matches!(read(Path::new("not/there.txt")), Err(Error::Io { .. })));
    }
}
