//! Stories of five sentences.

use std::path::Path;

use csv::{ErrorKind, StringRecord};

use super::record::{Record, others, quoted};
use super::{Ids, ends, fault, is_blank, none, objects, whole};
use crate::error::{Error, Result};

/// Columns of the story cloze test: the id, four sentences, two endings, and which of them is right.
const COLUMNS: [&str; 8] = [
    "InputStoryid",
    "InputSentence1",
    "InputSentence2",
    "InputSentence3",
    "InputSentence4",
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
];
/// What is expected of the name of a file.
const KINDS: &str = ".csv or .jsonl (also .jsonl.gz or .jsonl.zst)";

/// A story; its right ending is the fifth sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    pub id: String,
    pub sentences: [String; 5],
}

/// Reads the story cloze test of ROCStories (Mostafazadeh et al., "A corpus and cloze evaluation for deeper
/// understanding of commonsense stories", 2016): a `.csv` file with a line of column names, or JSON lines with a list
/// of five `sentences` and, if wanted, `id`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`], naming file, line and column, for a column that is missing, a blank sentence,
/// a right ending other than 1 and 2, a line with more or fewer columns, text that is not UTF-8, more or fewer
/// than five sentences, two stories with one id; [`Error::Request`] for no stories.
pub fn read(path: &Path) -> Result<Vec<Story>> {
    if ends(path, "csv") {
        let stories = table(path)?;
        return match stories.is_empty() {
            true => Err(none(path, &format!("lines behind the first, with columns {}", COLUMNS.join(", ")))),
            false => Ok(stories),
        };
    }
    let mut ids = Ids::default();
    let mut stories = Vec::new();
    objects(path, KINDS, |mut record| {
        let id = ids.next(record.id(&["id"])?, record.origin())?;
        stories.push(Story { id, sentences: sentences(&mut record)? });
        Ok(())
    })?;
    match stories.is_empty() {
        true => Err(none(
            path,
            r#"lines such as {"id": "...", "sentences": ["...", "...", "...", "...", "..."]}"#,
        )),
        false => Ok(stories),
    }
}

/// The sentences of an object.
fn sentences(record: &mut Record) -> Result<[String; 5]> {
    let sentences = record.strings(&["sentences"])?;
    if let Some(at) = sentences.iter().position(|s| is_blank(s)) {
        return Err(record.fault(format!("`sentences[{at}]`"), "a text", "a blank one"));
    }
    sentences
        .try_into()
        .map_err(|all: Vec<String>| record.fault("`sentences`", "5 texts", all.len().to_string()))
}

/// The stories of a table.
fn table(path: &Path) -> Result<Vec<Story>> {
    let file = path.display().to_string();
    let mut reader = csv::Reader::from_reader(whole(path)?);
    let broken = |e: csv::Error| broken(path, &file, e);
    let names = reader.headers().map_err(broken)?.clone();
    let mut places = [0; COLUMNS.len()];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        *place = names.iter().position(|name| name.trim() == column).ok_or_else(|| {
            let what = format!("column `{column}`");
            fault(format!("{file} line 1"), what, "a table of stories", others(names.iter(), "column"))
        })?;
    }
    let mut ids = Ids::default();
    let mut stories = Vec::new();
    let mut row = StringRecord::new();
    while reader.read_record(&mut row).map_err(broken)? {
        let line = row.position().map_or(0, csv::Position::line);
        let origin = format!("{file} line {line}");
        let [id, first, second, third, fourth, a, b, right] =
            places.map(|place| row.get(place).unwrap_or_default());
        let ending = match right.trim() {
            "1" => a,
            "2" => b,
            other => return Err(fault(origin, "column `AnswerRightEnding`", "1 or 2", quoted(other))),
        };
        let sentences = [first, second, third, fourth, ending];
        if let Some(at) = sentences.iter().position(|s| is_blank(s)) {
            let what = match at {
                4 => format!("column `RandomFifthSentenceQuiz{}`", right.trim()),
                at => format!("column `InputSentence{}`", at + 1),
            };
            return Err(fault(origin, what, "a text", "a blank one"));
        }
        let own = Some(id.to_owned()).filter(|id| !is_blank(id));
        stories.push(Story { id: ids.next(own, &origin)?, sentences: sentences.map(str::to_owned) });
    }
    Ok(stories)
}

/// An error of a table.
fn broken(path: &Path, file: &str, error: csv::Error) -> Error {
    let at = |place: Option<&csv::Position>| match place {
        Some(place) => format!("{file} line {}", place.line()),
        None => file.to_owned(),
    };
    let text = error.to_string();
    match error.into_kind() {
        ErrorKind::Io(e) => Error::io("read", path, e),
        ErrorKind::Utf8 { pos, err } => {
            fault(at(pos.as_ref()), format!("column {}", err.field() + 1), "UTF-8", err.to_string())
        }
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            fault(at(pos.as_ref()), "the line", format!("{expected_len} columns"), len.to_string())
        }
        _ => fault(file, "the file", "a table with commas between columns", text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, fixture, place};
    use super::*;

    const HEAD: &str = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,\
                        RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding";

    fn story(id: &str, sentences: [&str; 5]) -> Story {
        Story { id: id.into(), sentences: sentences.map(str::to_owned) }
    }

    #[test]
    fn the_right_ending_is_the_fifth_sentence() {
        assert_eq!(
            read(&fixture("stories.csv")).unwrap(),
            [
                story(
                    "story-kite",
                    [
                        "Pia built a kite from paper.",
                        "She carried it up the hill, and waited for wind.",
                        "The wind came at noon.",
                        "The kite rose above the trees.",
                        "Pia laughed and let out more string.",
                    ]
                ),
                story(
                    "story-bread",
                    [
                        "Jon put bread in the oven.",
                        "His sister called about a broken tap.",
                        "They talked for an hour.",
                        "Jon smelled smoke.",
                        "He ran to the kitchen.",
                    ]
                ),
                story(
                    "story-bus",
                    [
                        "Mara missed the bus.",
                        "The driver had said \"seven\", not \"eight\".",
                        "She walked to the station.",
                        "A train was about to leave.",
                        "She got on it.",
                    ]
                ),
            ]
        );
    }

    #[test]
    fn columns_in_another_order_and_windows_line_ends() {
        let text = "\u{feff}AnswerRightEnding,Title,InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,\
                    RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2\r\n2,T,x,a,b,c,d,e,f\r\n1,T,,a,b,c,d,e,f\r\n";
        let (_folder, path) = file("s.CSV", text);
        assert_eq!(
            read(&path).unwrap(),
            [story("x", ["a", "b", "c", "d", "f"]), story("2", ["a", "b", "c", "d", "e"])]
        );
    }

    #[test]
    fn json_lines() {
        let (_folder, path) = file(
            "s.jsonl",
            "{\"sentences\": [\"a\", \"b\", \"c\", \"d\", \"e\"]}\n{\"id\": 9, \"sentences\": [\"f\", \"g\", \"h\", \"i\", \"j\"]}\n",
        );
        assert_eq!(
            read(&path).unwrap(),
            [story("1", ["a", "b", "c", "d", "e"]), story("9", ["f", "g", "h", "i", "j"])]
        );
    }

    #[test]
    fn what_is_wrong_with_a_table_is_named() {
        let error = |rows: &[u8]| {
            let (folder, path) = file("s.csv", [HEAD.as_bytes(), b"\n", rows].concat());
            place(&folder, read(&path).unwrap_err())
        };
        let all = COLUMNS.join(", ");
        assert_eq!(
            error(b""),
            format!("no items in s.csv: expected lines behind the first, with columns {all}")
        );
        assert_eq!(
            error(b"x,a,b,c,d,e,f,1\ny,a,b,c,d,e,f,3\n"),
            "s.csv line 3: column `AnswerRightEnding`: expected 1 or 2, got \"3\""
        );
        assert_eq!(
            error(b"x,a, ,c,d,e,f,1\n"),
            "s.csv line 2: column `InputSentence2`: expected a text, got a blank one"
        );
        assert_eq!(
            error(b"x,a,b,c,d,e,,2\n"),
            "s.csv line 2: column `RandomFifthSentenceQuiz2`: expected a text, got a blank one"
        );
        assert_eq!(error(b"x,a,b,c,d,e,f,1\ny,a,b\n"), "s.csv line 3: the line: expected 8 columns, got 3");
        assert_eq!(error(b"x,\"a,b,c,d,e,f,1\n"), "s.csv line 2: the line: expected 8 columns, got 2");
        assert_eq!(
            error(b"x,a,b,c,d,e,f,1\nx,a,b,c,d,e,f,1\n"),
            "s.csv line 3: the item's id: expected one that no other item has, got \"x\", as item 1 of the file"
        );
        let bytes = error(b"x,a,b,c,d,e,f,1\ny,a,\xff,c,d,e,f,1\n");
        assert!(bytes.starts_with("s.csv line 3: column 3: expected UTF-8, got "), "{bytes}");
    }

    #[test]
    fn what_is_wrong_with_the_columns_and_kinds_is_named() {
        let error = |name: &str, text: &str| {
            let (folder, path) = file(name, text);
            place(&folder, read(&path).unwrap_err())
        };
        assert_eq!(
            error("s.csv", "storyid,sentence1\nx,a\n"),
            "s.csv line 1: column `InputStoryid`: expected a table of stories, got no such column; others are: storyid, \
             sentence1"
        );
        assert!(error("s.csv", "").contains("got no such column"));
        assert_eq!(
            error("s.jsonl", "{\"sentences\": [\"a\", \"b\", \"c\", \"d\"]}"),
            "s.jsonl line 1: `sentences`: expected 5 texts, got 4"
        );
        assert_eq!(
            error("s.jsonl", "{\"sentences\": [\"a\", \"\", \"c\", \"d\", \"e\"]}"),
            "s.jsonl line 1: `sentences[1]`: expected a text, got a blank one"
        );
        assert!(error("s.jsonl", "\n").starts_with("no items in s.jsonl: expected lines such as {\"id\""));
        assert_eq!(
            error("s.tsv", "x"),
            "s.tsv: kind of file: expected .csv or .jsonl (also .jsonl.gz or .jsonl.zst), got \"s.tsv\""
        );
    }
}
