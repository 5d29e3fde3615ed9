//! Questions with answers, any of which is right.

use std::path::Path;

use serde_json::Value;

use super::json::elements;
use super::record::{Record, shown};
use super::{Ids, ends, is_blank, none, objects};
use crate::error::Result;

/// What is expected of the name of a file.
const KINDS: &str = ".json or .jsonl (also .jsonl.gz or .jsonl.zst)";
/// What is expected of a `.json` file.
const DOCUMENT: &str = "an object with a list under `data` (SQuAD) or `Data` (TriviaQA)";

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub id: String,
    /// The passage that holds the answer, if the file has one.
    pub context: Option<String>,
    pub question: String,
    /// One or more, in the order of the file, each once.
    pub answers: Vec<String>,
}

/// The questions of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    pub items: Vec<Question>,
    /// Questions without an answer, which are left out.
    pub unanswerable: usize,
}

/// Reads questions:
/// - `.json` of SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016 and 2018): `data`, `paragraphs`, `qas`, with `question`,
///   `answers` and `id`;
/// - `.json` of TriviaQA (Joshi et al., 2017): `Data`, with `Question`, `Answer` and `QuestionId`; the answers are
///   `Value` and `Aliases`, and there is no context;
/// - JSON lines with `question`, `context` and `id` if wanted, and `answers` or `answer`: a string, a list of them, or
///   an object with the list under `text` or with `value` and `aliases`, as data sets of Hugging Face have them.
///
/// Questions that are said to have no answer (`is_impossible`, an empty list) are left out and counted; answers that
/// are blank or there already are left out.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io); [`Error::Input`](crate::error::Error::Input), naming the file and line
/// or entry, for JSON that is malformed, a field that is missing or of another kind, a blank question, nothing
/// but blank answers, two questions with one id, a `.json` file of more than 2 GiB;
/// [`Error::Request`](crate::error::Error::Request) for no questions.
pub fn read(path: &Path) -> Result<Questions> {
    let mut reader = Reader::default();
    let json = ends(path, "json");
    if json {
        elements(path, &["data", "Data"], DOCUMENT, |name, record| match name {
            "data" => reader.article(record),
            _ => reader.trivia(record),
        })?;
    } else {
        objects(path, KINDS, |record| reader.line(record))?;
    }
    let questions = reader.questions;
    if questions.items.is_empty() {
        let expected = match json {
            true => "questions under `data` (SQuAD) or `Data` (TriviaQA)",
            false => r#"lines such as {"question": "...", "answers": ["..."]}"#,
        };
        let others = match questions.unanswerable {
            0 => String::new(),
            n => format!("; {n} without an answer were left out"),
        };
        return Err(none(path, &format!("{expected}{others}")));
    }
    Ok(questions)
}

#[derive(Default)]
struct Reader {
    ids: Ids,
    questions: Questions,
}

impl Reader {
    /// An article of SQuAD.
    fn article(&mut self, mut article: Record) -> Result<()> {
        for mut paragraph in article.records("paragraphs")? {
            let context = paragraph.string(&["context"])?;
            for mut record in paragraph.records("qas")? {
                let id = self.ids.next(record.id(&["id"])?, record.origin())?;
                let question = record.text(&["question"])?;
                let answers = match record.take(&["is_impossible"]) {
                    Some((_, Value::Bool(true))) => Vec::new(),
                    _ => answers(&mut record, &["answers"])?,
                };
                self.add(id, Some(context.clone()), question, answers);
            }
        }
        Ok(())
    }

    /// An entry of TriviaQA.
    fn trivia(&mut self, mut record: Record) -> Result<()> {
        let id = self.ids.next(record.id(&["QuestionId"])?, record.origin())?;
        let question = record.text(&["Question"])?;
        let answers = answers(&mut record, &["Answer"])?;
        self.add(id, None, question, answers);
        Ok(())
    }

    fn line(&mut self, mut record: Record) -> Result<()> {
        let id = self.ids.next(record.id(&["id", "question_id"])?, record.origin())?;
        let context = record.string_if_present(&["context"])?.filter(|context| !is_blank(context));
        let question = record.text(&["question"])?;
        let answers = answers(&mut record, &["answers", "answer"])?;
        self.add(id, context, question, answers);
        Ok(())
    }

    fn add(&mut self, id: String, context: Option<String>, question: String, answers: Vec<String>) {
        match answers.is_empty() {
            true => self.questions.unanswerable += 1,
            false => self.questions.items.push(Question { id, context, question, answers }),
        }
    }
}

/// The answers in the first field of `names` that is there, each once; none where its list is empty.
fn answers(record: &mut Record, names: &[&str]) -> Result<Vec<String>> {
    const EXPECTED: &str = "a string, a list of strings, or an object with `text` or `value`";
    let (name, value) = record.require(names, EXPECTED)?;
    let mut all = Vec::new();
    if let Err(other) = collect(value, &mut all) {
        return Err(record.fault(format!("`{name}`"), EXPECTED, shown(&other)));
    }
    let mut answers: Vec<String> = Vec::with_capacity(all.len());
    for text in &all {
        if !is_blank(text) && !answers.contains(text) {
            answers.push(text.clone());
        }
    }
    match answers.is_empty() && !all.is_empty() {
        true => Err(record.fault(format!("`{name}`"), "an answer", "blank ones alone")),
        false => Ok(answers),
    }
}

/// The texts of a value; the part of it that has none.
fn collect(value: Value, texts: &mut Vec<String>) -> Result<(), Value> {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => {
            for value in values {
                match value {
                    Value::String(text) => texts.push(text),
                    Value::Object(mut fields) => match fields.get_mut("text").map(Value::take) {
                        Some(Value::String(text)) => texts.push(text),
                        Some(other) => return Err(other),
                        None => return Err(Value::Object(fields)),
                    },
                    other => return Err(other),
                }
            }
        }
        Value::Object(mut fields) => {
            let mut found = false;
            for name in ["text", "value", "Value", "aliases", "Aliases"] {
                match fields.get_mut(name).map(Value::take) {
                    None | Some(Value::Null) => {}
                    Some(part @ (Value::String(_) | Value::Array(_))) => {
                        found |= !name.eq_ignore_ascii_case("aliases");
                        collect(part, texts)?;
                    }
                    Some(other) => return Err(other),
                }
            }
            if !found {
                return Err(Value::Object(fields));
            }
        }
        other => return Err(other),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, fixture, place};
    use super::*;

    fn question(id: &str, context: Option<&str>, question: &str, answers: &[&str]) -> Question {
        let answers = answers.iter().map(|&a| a.to_owned()).collect();
        Question { id: id.into(), context: context.map(str::to_owned), question: question.into(), answers }
    }

    #[test]
    fn squad_without_its_unanswerable_questions() {
        let mill = "The mill at Orsa was built in 1871 by two brothers. It stood still after the flood.";
        let Questions { items, unanswerable } = read(&fixture("squad.json")).unwrap();
        assert_eq!(unanswerable, 1);
        assert_eq!(
            items,
            [
                question("orsa-1", Some(mill), "When was the mill built?", &["1871", "in 1871"]),
                question("orsa-2", Some(mill), "Who built it?", &["two brothers"]),
                question(
                    "teal-1",
                    Some("The teal is the smallest dabbling duck."),
                    "What is the smallest dabbling duck?",
                    &["teal", "The teal"]
                ),
            ]
        );
    }

    #[test]
    fn triviaqa_with_its_aliases() {
        let Questions { items, unanswerable } = read(&fixture("triviaqa.json")).unwrap();
        assert_eq!(unanswerable, 0);
        assert_eq!(
            items,
            [
                question(
                    "tq_1",
                    None,
                    "Which metal is liquid at room temperature?",
                    &["Mercury", "Quicksilver", "Hg"]
                ),
                question("tq_2", None, "How many legs has a spider?", &["8", "Eight"]),
                question("tq_3", None, "Which sea has no coast?", &["Sargasso Sea"]),
            ]
        );
    }

    #[test]
    fn lines_of_every_form() {
        let Questions { items, unanswerable } = read(&fixture("questions.jsonl")).unwrap();
        assert_eq!(unanswerable, 1);
        assert_eq!(
            items,
            [
                question("1", None, "What is frozen water called?", &["ice"]),
                question("q-b", Some("Ada keeps bees."), "Who keeps bees?", &["Ada", "ada"]),
                question("3", None, "What do bees make?", &["honey"]),
                question("tc_9", None, "What is the chemical symbol of gold?", &["Au", "AU"]),
                question("6", Some("Snow fell on Monday."), "When did snow fall?", &["Monday", "on Monday"]),
            ]
        );
    }

    #[test]
    fn what_is_wrong_with_lines_is_named() {
        let error = |text: &str| {
            let (folder, path) = file("q.jsonl", text);
            place(&folder, read(&path).unwrap_err())
        };
        assert_eq!(
            error(
                "{\"question\": \"a?\", \"answers\": [\"b\"]}\n{\"query\": \"a?\", \"answers\": [\"b\"]}\n"
            ),
            "q.jsonl line 2: `question`: expected a string, got no such field; others are: query, answers"
        );
        assert_eq!(
            error("{\"question\": \"a?\", \"label\": \"b\"}"),
            "q.jsonl line 1: `answers` or `answer`: expected a string, a list of strings, or an object with `text` or \
             `value`, got no such field; others are: question, label"
        );
        for (wrong, got) in [
            ("4", "4"),
            ("[\"b\", 5]", "5"),
            ("{\"texts\": [\"b\"]}", "{\"texts\":[\"b\"]}"),
            ("[{\"text\": [\"b\"]}]", "[\"b\"]"),
            ("{\"aliases\": [\"b\"]}", "{\"aliases\":null}"),
            ("{\"text\": {}}", "{}"),
        ] {
            let error = error(&format!("{{\"question\": \"a?\", \"answers\": {wrong}}}"));
            assert!(error.starts_with("q.jsonl line 1: `answers`: expected a string, a list"), "{error}");
            assert!(error.ends_with(&format!(", got {got}")), "{error}");
        }
        assert_eq!(
            error("{\"question\": \"a?\", \"answers\": [\" \"]}"),
            "q.jsonl line 1: `answers`: expected an answer, got blank ones alone"
        );
        assert_eq!(
            error("{\"question\": \"a?\", \"answers\": []}"),
            "no items in q.jsonl: expected lines such as {\"question\": \"...\", \"answers\": [\"...\"]}; 1 without an \
             answer were left out"
        );
        assert_eq!(
            error(
                "{\"id\": 7, \"question\": \"a?\", \"answer\": \"b\"}\n{\"id\": \"7\", \"question\": \"c?\", \"answer\": \"d\"}"
            ),
            "q.jsonl line 2: the item's id: expected one that no other item has, got \"7\", as item 1 of the file"
        );
    }

    #[test]
    fn what_is_wrong_with_a_document_is_named() {
        let error = |text: &str| {
            let (folder, path) = file("q.json", text);
            place(&folder, read(&path).unwrap_err())
        };
        assert_eq!(
            error(
                "{\"data\": [{\"paragraphs\": [{\"context\": \"c\", \"qas\": [{\"id\": 1, \"question\": \"a?\"}]}]}]}"
            ),
            "q.json data[0].paragraphs[0].qas[0]: `answers`: expected a string, a list of strings, or an object with \
             `text` or `value`, got no such field; others are: id, question"
        );
        assert_eq!(
            error("{\"data\": [{\"title\": \"t\"}]}"),
            "q.json data[0]: `paragraphs`: expected a list of objects, got no such field; others are: title"
        );
        assert_eq!(
            error(
                "{\"Data\": [{\"Question\": \"a?\", \"Answer\": {\"Value\": \"b\"}}, {\"Question\": \" \"}]}"
            ),
            "q.json Data[1]: `Question`: expected a text, got \" \""
        );
        assert_eq!(
            error("{\"questions\": []}"),
            "q.json: `data` or `Data`: expected an object with a list under `data` (SQuAD) or `Data` (TriviaQA), got no \
             such field; others are: questions"
        );
        assert_eq!(
            error("{\"data\": []}"),
            "no items in q.json: expected questions under `data` (SQuAD) or `Data` (TriviaQA)"
        );
        assert!(
            error("{\"data\": [{\"paragraphs\"")
                .starts_with("q.json line 1: the file: expected an object with")
        );
        let (folder, path) = file("q.json.gz", "");
        assert_eq!(
            place(&folder, read(&path).unwrap_err()),
            "q.json.gz: kind of file: expected .json or .jsonl (also .jsonl.gz or .jsonl.zst), got \"q.json.gz\""
        );
    }
}
