//! The HumanEval infilling benchmark (Bavarian et al., "Efficient training of language models to fill in the middle",
//! 2022): functions with a gap, of one line, of several or of a random span, and tests that a filled-in function must
//! pass. The three kinds come in files of one form (`openai/human-eval-infilling`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::Lines;

/// Most bytes of a line.
const LONGEST_LINE: usize = 16 << 20;
/// Words that look like identifiers and are none.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def",
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// A function with a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the problem: no other has it.
    pub task_id: String,
    /// Name of the function that is tested.
    pub entry_point: String,
    /// What stands before the gap.
    pub prompt: String,
    /// What stands behind it.
    pub suffix: String,
    /// What stood in it.
    pub canonical_solution: String,
    /// A definition of `check`, which takes the function.
    pub test: String,
}

/// Reads problems, in the order of the file: `.jsonl`, also with `.gz` or `.zst` behind.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`], naming file and line, for a line that is no JSON object, a column that is missing
/// or no string, a `task_id` that an earlier line has, and an `entry_point` that is no identifier;
/// [`Error::Request`] for a file without problems.
pub fn read(path: &Path) -> Result<Vec<Problem>> {
    let mut lines = Lines::open(path, LONGEST_LINE)?;
    let mut problems = Vec::new();
    let mut seen = HashMap::new();
    while let Some(mut object) = lines.next_object()? {
        let problem = problem(&lines, &mut object)?;
        let wrong = |what: &str, expected: &str, got: String| Error::Input {
            origin: lines.origin(),
            what: format!("`{what}`"),
            expected: expected.into(),
            got,
        };
        if !is_identifier(&problem.entry_point) {
            return Err(wrong("entry_point", "the name of a Python function", short(&problem.entry_point)));
        }
        if let Some(earlier) = seen.insert(problem.task_id.clone(), lines.origin()) {
            let got = format!("{}, as in {earlier}", short(&problem.task_id));
            return Err(wrong("task_id", "a name that no other line has", got));
        }
        problems.push(problem);
    }
    if problems.is_empty() {
        return Err(empty(
            path,
            "problems",
            &["task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test"],
        ));
    }
    Ok(problems)
}

fn problem(lines: &Lines, object: &mut Map<String, Value>) -> Result<Problem> {
    let mut string = |name: &str| lines.string(object, &[name]);
    Ok(Problem {
        task_id: string("task_id")?,
        entry_point: string("entry_point")?,
        prompt: string("prompt")?,
        suffix: string("suffix")?,
        canonical_solution: string("canonical_solution")?,
        test: string("test")?,
    })
}

/// An identifier of ASCII characters, as all of the benchmark are.
fn is_identifier(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !KEYWORDS.contains(&name)
}

/// A text as an error message shows it.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push_str("...");
    }
    format!("{start:?}")
}

fn empty(path: &Path, what: &str, columns: &[&str]) -> Error {
    Error::request(format_args!(
        "no {what} in {}: expected lines of JSON objects with {}",
        path.display(),
        columns.join(", ")
    ))
}

/// The program that tells whether a completion is right, as the benchmark's own harness puts it together: it comes
/// to its end without an exception if so. It is to be run with empty globals (so that `__name__` is `builtins`).
pub fn program(problem: &Problem, completion: &str) -> String {
    let Problem { entry_point, prompt, suffix, test, .. } = problem;
    format!("{prompt}{completion}{suffix}\n{test}\ncheck({entry_point})")
}

/// A line of a file of samples for the benchmark's own harness, without its end: ASCII alone, since that harness
/// reads in whatever encoding the system has.
pub fn completion_line(task_id: &str, completion: &str) -> String {
    format!("{{\"task_id\": {}, \"completion\": {}}}", quoted(task_id), quoted(completion))
}

/// A JSON string of ASCII characters.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    for c in Value::from(text).to_string().chars() {
        if c.is_ascii() {
            quoted.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                quoted.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    quoted
}

/// Reads samples: each a `task_id` and a completion, in the order of the file. A problem may have several; other
/// columns are not looked at.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`], naming file and line, for a line that is no JSON object and a column that is
/// missing or no string; [`Error::Request`] for a file without samples.
pub fn read_completions(path: &Path) -> Result<Vec<(String, String)>> {
    let mut lines = Lines::open(path, LONGEST_LINE)?;
    let mut completions = Vec::new();
    while let Some(mut object) = lines.next_object()? {
        let task_id = lines.string(&mut object, &["task_id"])?;
        completions.push((task_id, lines.string(&mut object, &["completion"])?));
    }
    if completions.is_empty() {
        return Err(empty(path, "completions", &["task_id", "completion"]));
    }
    Ok(completions)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;

    use super::*;

    const LINE: &str = r#"{"task_id": "t/0", "entry_point": "one", "prompt": "def one():\n", "suffix": "", "canonical_solution": "    return 1", "test": "def check(f):\n    assert f() == 1\n", "more": 1}"#;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn failure(text: &str) -> String {
        let (_folder, path) = file("p.jsonl", text);
        read(&path).unwrap_err().to_string()
    }

    #[test]
    fn problems_are_read_and_put_together() {
        let (folder, path) = file("p.jsonl", &format!("{LINE}\n\n{}\n", LINE.replace("t/0", "t/1")));
        let problems = read(&path).unwrap();
        assert_eq!(problems.iter().map(|p| p.task_id.as_str()).collect::<Vec<_>>(), ["t/0", "t/1"]);
        let whole = program(&problems[0], &problems[0].canonical_solution);
        assert_eq!(whole, "def one():\n    return 1\ndef check(f):\n    assert f() == 1\n\ncheck(one)");

        let packed = folder.path().join("p.jsonl.gz");
        let mut writer = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        writer.write_all(&std::fs::read(&path).unwrap()).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&packed).unwrap(), problems);
    }

    #[test]
    fn malformed_problems_are_named() {
        let message = failure(&format!("{LINE}\n{LINE}"));
        assert!(
            message.contains("line 2: `task_id`: expected a name that no other line has, got \"t/0\", as in"),
            "{message}"
        );
        assert!(message.ends_with("line 1"), "{message}");
        let message = failure(&LINE.replace("suffix", "sufix"));
        assert!(message.contains("line 1: `suffix`: expected a string, got no such field"), "{message}");
        for name in ["", "1a", "a b", "a)\\nimport os#", "None", "\u{e9}t\u{e9}"] {
            let message = failure(&LINE.replace("\"one\"", &format!("\"{name}\"")));
            assert!(
                message.contains("line 1: `entry_point`: expected the name of a Python function"),
                "{message}"
            );
        }
        assert!(failure("\n").contains("no problems in "));
        assert!(failure("[]").contains("line 1: the line: expected a JSON object"));
    }

    #[test]
    fn completions_come_back() {
        let samples = [("t/0", "    return '\u{e9}\u{1f600}\\n'\n"), ("t/0", "\t\"\u{0}\"\r"), ("t/1", "")];
        let text: String = samples.iter().map(|(id, text)| completion_line(id, text) + "\n").collect();
        assert!(text.is_ascii());
        assert!(
            text.starts_with(r#"{"task_id": "t/0", "completion": "    return '\u00e9\ud83d\ude00\\n'\n"}"#),
            "{text}"
        );
        let (_folder, path) = file("s.jsonl", &text);
        let read: Vec<(String, String)> = read_completions(&path).unwrap();
        assert_eq!(read, samples.map(|(id, text)| (id.to_owned(), text.to_owned())));
        let (_folder, path) = file("s.jsonl", "");
        assert!(read_completions(&path).unwrap_err().to_string().contains("no completions in "));
    }
}
