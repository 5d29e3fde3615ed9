//! Problems with worked answers.

use std::path::Path;

use super::json::elements;
use super::record::Record;
use super::{Ids, ends, is_blank, none, objects};
use crate::error::Result;

/// What is expected of the name of a file.
const KINDS: &str = ".json or .jsonl (also .jsonl.gz or .jsonl.zst)";

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub id: String,
    pub question: String,
    /// The whole answer, with its working.
    pub answer: String,
}

/// Reads problems: GSM8K (Cobbe et al., "Training verifiers to solve math word problems", 2021), whose JSON lines have
/// `question` and `answer`; its form in equations, a `.json` file with a list of objects with `instruction` and
/// `output`, on which DiffuGPT and DiffuLLaMA are fine-tuned; and lines with `prompt` and `answer`, as for supervised
/// fine-tuning. Any of the names may be in either kind of file. An `input` that is not blank follows the instruction
/// on a line of its own. The id is `id`.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io); [`Error::Input`](crate::error::Error::Input), naming the file and line
/// or element, for JSON that is malformed, a field that is missing, blank or no string, two problems with one id,
/// a `.json` file of more than 2 GiB; [`Error::Request`](crate::error::Error::Request) for no problems.
pub fn read(path: &Path) -> Result<Vec<Problem>> {
    let mut ids = Ids::default();
    let mut problems = Vec::new();
    let mut add = |mut record: Record| {
        let id = ids.next(record.id(&["id"])?, record.origin())?;
        let mut question = record.text(&["question", "prompt", "instruction"])?;
        if let Some(input) = record.string_if_present(&["input"])?.filter(|input| !is_blank(input)) {
            question = format!("{question}\n{input}");
        }
        problems.push(Problem { id, question, answer: record.text(&["answer", "output"])? });
        Ok(())
    };
    let json = ends(path, "json");
    match json {
        true => elements(path, &[], "a list of objects", |_, record| add(record))?,
        false => objects(path, KINDS, add)?,
    }
    match problems.is_empty() {
        true if json => Err(none(path, r#"a list such as [{"instruction": "...", "output": "..."}]"#)),
        true => Err(none(path, r#"lines such as {"question": "...", "answer": "..."}"#)),
        false => Ok(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, fixture, place};
    use super::*;

    fn problem(id: &str, question: &str, answer: &str) -> Problem {
        Problem { id: id.into(), question: question.into(), answer: answer.into() }
    }

    const APPLES: &str =
        "Lena has 4 baskets with 6 apples each. She eats 3 apples. How many apples are left?";
    const TICKETS: &str = "A ticket costs $12. How much do 5 tickets cost with a discount of $10?";
    const ROPE: &str = "A rope of 30 meters is cut into 6 equal parts. How long are 2 parts together?";

    #[test]
    fn gsm8k_as_published() {
        assert_eq!(
            read(&fixture("gsm8k.jsonl")).unwrap(),
            [
                problem(
                    "1",
                    APPLES,
                    "There are 4 * 6 = <<4*6=24>>24 apples.\nThen 24 - 3 = <<24-3=21>>21 are left.\n#### 21"
                ),
                problem(
                    "2",
                    TICKETS,
                    "5 tickets cost 5 * 12 = $<<5*12=60>>60.\nWith the discount they cost 60 - 10 = $<<60-10=50>>50.\n#### 50"
                ),
                problem(
                    "3",
                    ROPE,
                    "A part has 30 / 6 = <<30/6=5>>5 meters.\nTwo have 2 * 5 = <<2*5=10>>10 meters.\n#### 10"
                ),
            ]
        );
    }

    #[test]
    fn gsm8k_in_equations() {
        assert_eq!(
            read(&fixture("gsm8k-equations.json")).unwrap(),
            [
                problem("1", APPLES, "<<4*6=24>> <<24-3=21>> #### 21"),
                problem("2", TICKETS, "<<5*12=60>> <<60-10=50>> #### 50"),
                problem("3", ROPE, "<<30/6=5>> <<2*5=10>> #### 10"),
            ]
        );
    }

    #[test]
    fn lines_as_for_fine_tuning() {
        let (_folder, path) = file(
            "p.ndjson",
            "{\"prompt\": \"86,28,13,31,96\", \"answer\": \"86+28=114,31-13=18,114-18=96\"}\n\
             {\"id\": \"x\", \"instruction\": \"Add.\", \"input\": \"1 and 2\", \"output\": \"3\"}\n",
        );
        assert_eq!(
            read(&path).unwrap(),
            [
                problem("1", "86,28,13,31,96", "86+28=114,31-13=18,114-18=96"),
                problem("x", "Add.\n1 and 2", "3")
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |name: &str, text: &[u8]| {
            let (folder, path) = file(name, text);
            place(&folder, read(&path).unwrap_err())
        };
        assert_eq!(
            error(
                "p.jsonl",
                b"{\"question\": \"a\", \"answer\": \"b\"}\n\n{\"problem\": \"a\", \"answer\": \"b\"}\n"
            ),
            "p.jsonl line 3: `question` or `prompt` or `instruction`: expected a string, got no such field; others are: \
             problem, answer"
        );
        assert_eq!(
            error(
                "p.json",
                b"[{\"instruction\": \"a\", \"output\": \"b\"}, {\"instruction\": \"c\", \"output\": 4}]"
            ),
            "p.json element 2: `output`: expected a string, got 4"
        );
        assert_eq!(
            error("p.jsonl", b"{\"question\": \"a\", \"answer\": \"\"}"),
            "p.jsonl line 1: `answer` or `output`: expected a text, got \"\""
        );
        assert_eq!(
            error("p.jsonl", b"\n"),
            "no items in p.jsonl: expected lines such as {\"question\": \"...\", \"answer\": \"...\"}"
        );
        assert_eq!(
            error("p.json", b"[]"),
            "no items in p.json: expected a list such as [{\"instruction\": \"...\", \"output\": \"...\"}]"
        );
        assert!(
            error("p.json", b"[{\"instruction\": \"a\", ")
                .starts_with("p.json line 1: the file: expected a list")
        );
        assert!(error("p.json", b"{\"data\": []}").contains("invalid type: map, expected a list of objects"));
        assert!(error("p.jsonl", b"[1]").starts_with("p.jsonl line 1: the line: expected a JSON object"));
        assert_eq!(
            error("p.jsonl", b"{\"question\": \"\xff\"}"),
            "p.jsonl line 1: byte 15 of the line: expected UTF-8, got 0xff"
        );
        assert!(error("p.json", b"[{\"output\": \"\xff\"}]").contains("p.json line 1: "));
        assert_eq!(
            error("p.json", b"[{\"id\": 2, \"question\": \"a\", \"answer\": \"b\"}, {\"question\": \"a\", \"answer\": \"b\"}]"),
            "p.json element 2: the item's id: expected one that no other item has, got \"2\", as item 1 of the file"
        );
        assert_eq!(
            error("p.csv", b""),
            "p.csv: kind of file: expected .json or .jsonl (also .jsonl.gz or .jsonl.zst), got \"p.csv\""
        );
    }
}
