//! Multiple choice: one beginning, several options of which one is right, and for some tasks an end.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::Value;

use super::record::{Record, quoted, shown};
use super::{Ids, fault, is_blank, is_space, none, objects};
use crate::error::Result;
use crate::io::read_limited;

/// Most bytes of a file of labels.
const LARGEST_LABELS: u64 = 64 << 20;
/// Endings of a HellaSwag item.
const ENDINGS: usize = 4;
/// What is expected of the name of a file.
const KINDS: &str = ".jsonl (also .jsonl.gz or .jsonl.zst)";

/// An item: `prefix`, an option and `suffix` one after the other are a text, spaces included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub id: String,
    /// What stands before every option.
    pub prefix: String,
    /// Two or more texts, none of them blank.
    pub options: Vec<String>,
    /// What stands behind every option; often empty.
    pub suffix: String,
    /// The index of the right option.
    pub gold: usize,
}

/// How the lines of a file of multiple choice are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChoiceFormat {
    /// Zellers et al., "HellaSwag: Can a machine really finish your sentence?" (2019): `activity_label`, `ctx_a`,
    /// `ctx_b` (may be absent), `endings`, `label` from 0. Ids are `source_id` and `ind` with a slash between: `ind`
    /// alone counts within ActivityNet and within WikiHow, and occurs twice in a file.
    HellaSwag,
    /// Sakaguchi et al., "WinoGrande: An adversarial Winograd schema challenge at scale" (2019): `sentence` with a
    /// `_`, `option1`, `option2`, `answer` 1 or 2; id `qID`.
    Winogrande,
    /// Sap et al., "Social IQa: Commonsense reasoning about social interactions" (2019): `context`, `question`,
    /// `answerA`, `answerB`, `answerC`, and `label` from 1 or `correct` from A, or a file of labels.
    Siqa,
    /// Bisk et al., "PIQA: Reasoning about physical commonsense in natural language" (2020): `goal`, `sol1`, `sol2`,
    /// and `label` from 0 or a file of labels.
    Piqa,
    /// This engine's own: `prefix` or `prompt`, `choices`, `answer` from 0, and, if wanted, `suffix` and `id`.
    Plain,
}

impl ChoiceFormat {
    pub const ALL: [ChoiceFormat; 5] = [
        ChoiceFormat::HellaSwag,
        ChoiceFormat::Winogrande,
        ChoiceFormat::Siqa,
        ChoiceFormat::Piqa,
        ChoiceFormat::Plain,
    ];

    /// As it is written on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            ChoiceFormat::HellaSwag => "hellaswag",
            ChoiceFormat::Winogrande => "winogrande",
            ChoiceFormat::Siqa => "siqa",
            ChoiceFormat::Piqa => "piqa",
            ChoiceFormat::Plain => "plain",
        }
    }

    /// A line as error messages show it.
    const fn example(self) -> &'static str {
        match self {
            ChoiceFormat::HellaSwag => {
                r#"{"activity_label": "...", "ctx_a": "...", "ctx_b": "...", "endings": ["...", "...", "...", "..."], "label": 0}"#
            }
            ChoiceFormat::Winogrande => {
                r#"{"sentence": "... _ ...", "option1": "...", "option2": "...", "answer": "1"}"#
            }
            ChoiceFormat::Siqa => {
                r#"{"context": "...", "question": "...", "answerA": "...", "answerB": "...", "answerC": "...", "label": "1"}"#
            }
            ChoiceFormat::Piqa => r#"{"goal": "...", "sol1": "...", "sol2": "...", "label": 0}"#,
            ChoiceFormat::Plain => r#"{"prefix": "...", "choices": ["...", "..."], "answer": 0}"#,
        }
    }

    /// Names of the field with the label.
    const fn label(self) -> &'static [&'static str] {
        match self {
            ChoiceFormat::HellaSwag | ChoiceFormat::Piqa => &["label"],
            ChoiceFormat::Siqa => &["label", "correct"],
            ChoiceFormat::Winogrande | ChoiceFormat::Plain => &["answer"],
        }
    }

    /// The label of the first option.
    const fn first(self) -> u64 {
        match self {
            ChoiceFormat::HellaSwag | ChoiceFormat::Piqa | ChoiceFormat::Plain => 0,
            ChoiceFormat::Winogrande | ChoiceFormat::Siqa => 1,
        }
    }

    /// The index of the option that a label means, if it means one of `options`.
    fn gold(self, label: &Value, options: usize) -> Option<usize> {
        let number = match label {
            Value::String(text) => match (self, text.trim().as_bytes()) {
                (ChoiceFormat::Siqa, [letter @ b'A'..=b'C']) => u64::from(letter - b'A') + self.first(),
                _ => text.trim().parse().ok()?,
            },
            other => other.as_u64()?,
        };
        let index = usize::try_from(number.checked_sub(self.first())?).ok()?;
        (index < options).then_some(index)
    }

    /// The labels that there are, for errors.
    fn labels(self, options: usize) -> String {
        let last = self.first() + options.saturating_sub(1) as u64;
        let letters = if self == ChoiceFormat::Siqa { " (or A to C)" } else { "" };
        format!("a label from {} to {last}{letters}", self.first())
    }

    fn id(self, record: &mut Record) -> Result<Option<String>> {
        match self {
            ChoiceFormat::HellaSwag => Ok(match (record.id(&["source_id"])?, record.id(&["ind"])?) {
                (Some(source), Some(n)) => Some(format!("{source}/{n}")),
                // A source has several items.
                (_, n) => n,
            }),
            ChoiceFormat::Winogrande => record.id(&["qID", "id"]),
            ChoiceFormat::Siqa | ChoiceFormat::Piqa | ChoiceFormat::Plain => record.id(&["id"]),
        }
    }

    fn parts(self, record: &mut Record, parity: bool) -> Result<Parts> {
        match self {
            ChoiceFormat::HellaSwag => hellaswag(record, parity),
            ChoiceFormat::Winogrande => winogrande(record, parity),
            ChoiceFormat::Siqa => siqa(record, parity),
            ChoiceFormat::Piqa => piqa(record, parity),
            ChoiceFormat::Plain => plain(record),
        }
    }
}

impl fmt::Display for ChoiceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ChoiceFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ChoiceFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = ChoiceFormat::ALL.map(ChoiceFormat::name).join(", ");
            format!("expected one of {names}, got {}", quoted(text))
        })
    }
}

/// Reads a file of JSON lines.
///
/// `labels` is a file with a label a line, in the order of the items, which the lines then need not have. By
/// default spaces stand before words, where tokenizers expect them. With `parity` texts are those of the program that
/// DiffuGPT and DiffuLLaMA (Gong et al., 2024) were evaluated with, which tokenizes the parts one by one:
/// - HellaSwag: an ending has no space before it, and all but the first letter of `ctx_b` become small ones;
/// - Winogrande: the space before the gap stays in the prefix, the suffix has none, and of several gaps the first
///   counts;
/// - SIQA: the space before the answer is in the prefix;
/// - PIQA: there is one in the prefix and one in the answer.
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io); [`Error::Input`](crate::error::Error::Input), naming file, line and
/// field, for a field that is missing or of another kind, fewer than two options, a blank option, a label that
/// means none of them, two items with one id, a sentence without exactly one `_`, more or fewer labels than
/// items, a label other than the one in the line; [`Error::Request`](crate::error::Error::Request) for no items.
pub fn read(path: &Path, format: ChoiceFormat, labels: Option<&Path>, parity: bool) -> Result<Vec<Choice>> {
    let labels = labels.map(Labels::read).transpose()?;
    let mut ids = Ids::default();
    let mut choices = Vec::new();
    objects(path, KINDS, |mut record| {
        let id = ids.next(format.id(&mut record)?, record.origin())?;
        let Parts { prefix, options, suffix } = format.parts(&mut record, parity)?;
        let gold = match &labels {
            None => own_label(format, &mut record, options.len())?,
            Some(labels) => labels.gold(choices.len(), format, &mut record, options.len())?,
        };
        choices.push(Choice { id, prefix, options, suffix, gold });
        Ok(())
    })?;
    if choices.is_empty() {
        return Err(none(path, &format!("lines such as {}", format.example())));
    }
    match labels {
        Some(labels) if labels.lines.len() != choices.len() => {
            let expected = format!("{}, one for each item of {}", choices.len(), path.display());
            Err(fault(labels.file, "labels", expected, labels.lines.len().to_string()))
        }
        _ => Ok(choices),
    }
}

/// The label in the line.
fn own_label(format: ChoiceFormat, record: &mut Record, options: usize) -> Result<usize> {
    let expected = format.labels(options);
    let (name, label) = record.require(format.label(), &format!("{expected}, or a file of labels"))?;
    format.gold(&label, options).ok_or_else(|| record.fault(format!("`{name}`"), expected, shown(&label)))
}

/// The lines of a file of labels.
struct Labels {
    file: String,
    lines: Vec<Value>,
}

impl Labels {
    fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let text = String::from_utf8(read_limited(path, LARGEST_LABELS)?).map_err(|e| {
            let before = e.as_bytes().get(..e.utf8_error().valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
            fault(format!("{file} line {line}"), "the line", "UTF-8", "other bytes")
        })?;
        let text = text.trim_start_matches('\u{feff}').trim_end();
        Ok(Self { file, lines: text.lines().map(|line| Value::String(line.trim().into())).collect() })
    }

    /// The right option of item `index`; any, where there are too few labels, which is an error in the end.
    fn gold(&self, index: usize, format: ChoiceFormat, record: &mut Record, options: usize) -> Result<usize> {
        let Some(label) = self.lines.get(index) else { return Ok(0) };
        let wrong =
            |expected, got| fault(format!("{} line {}", self.file, index + 1), "label", expected, got);
        let gold = format.gold(label, options).ok_or_else(|| wrong(format.labels(options), shown(label)))?;
        match record.take(format.label()) {
            // In test sets it is blank or -1.
            Some((_, own)) if format.gold(&own, options).is_some_and(|own| own != gold) => {
                Err(wrong(format!("{}, as in {}", shown(&own), record.origin()), shown(label)))
            }
            _ => Ok(gold),
        }
    }
}

/// The texts of an item.
struct Parts {
    prefix: String,
    options: Vec<String>,
    suffix: String,
}

fn hellaswag(record: &mut Record, parity: bool) -> Result<Parts> {
    let activity = record.string(&["activity_label"])?;
    let before = record.string(&["ctx_a"])?;
    let begun = record.string_if_present(&["ctx_b"])?.unwrap_or_default();
    let endings = record.strings(&["endings"])?;
    if endings.len() != ENDINGS {
        return Err(record.fault("`endings`", format!("{ENDINGS} texts"), endings.len().to_string()));
    }
    let query = tidy(&format!("{activity}: {before} {}", capitalised(&begun, parity)));
    let endings: Vec<String> = endings.iter().map(|ending| tidy(ending)).collect();
    let names = (0..ENDINGS).map(|i| format!("`endings[{i}]`"));
    not_blank(record, names.zip(&endings))?;
    Ok(match parity {
        true => Parts { prefix: query, options: endings, suffix: String::new() },
        // Where brackets were, there may be a space now.
        false => Parts {
            prefix: query.trim().into(),
            options: endings.iter().map(|ending| spaced(ending.trim())).collect(),
            suffix: String::new(),
        },
    })
}

/// A HellaSwag text without the marks of WikiHow.
fn tidy(text: &str) -> String {
    without_brackets(&text.trim_matches(is_space).replace(" [title]", ". ")).replace("  ", " ")
}

/// Leaves out what is in brackets, up to the first closing one; not across lines.
fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            kept.push('\n');
        }
        let mut rest = line;
        while let Some((before, (_, after))) =
            rest.split_once('[').and_then(|(before, inside)| Some((before, inside.split_once(']')?)))
        {
            kept.push_str(before);
            rest = after;
        }
        kept.push_str(rest);
    }
    kept
}

/// With a capital first; with `parity` the others become small, as by Python's `str.capitalize`.
fn capitalised(text: &str, parity: bool) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let rest = chars.as_str();
    first + &if parity { rest.to_lowercase() } else { rest.to_owned() }
}

fn winogrande(record: &mut Record, parity: bool) -> Result<Parts> {
    let sentence = record.string(&["sentence"])?;
    let options = vec![record.text(&["option1"])?, record.text(&["option2"])?];
    let Some((prefix, suffix)) = sentence.split_once('_').filter(|(_, s)| parity || !s.contains('_')) else {
        return Err(record.fault("`sentence`", "exactly one `_`", quoted(&sentence)));
    };
    if parity {
        return Ok(Parts { prefix: prefix.into(), options, suffix: suffix.trim_matches(is_space).into() });
    }
    let trimmed = prefix.trim_end();
    let options = match trimmed.len() < prefix.len() {
        true => options.iter().map(|option| spaced(option)).collect(),
        false => options,
    };
    Ok(Parts { prefix: trimmed.into(), options, suffix: suffix.into() })
}

fn siqa(record: &mut Record, parity: bool) -> Result<Parts> {
    let (context, question) = (record.string(&["context"])?, record.string(&["question"])?);
    let names = ["answerA", "answerB", "answerC"];
    let answers: Vec<String> = names.iter().map(|name| record.text(&[name])).collect::<Result<_>>()?;
    let space = if parity { " " } else { "" };
    Ok(Parts {
        prefix: format!("Question: {context} {question}\nAnswer:{space}"),
        options: if parity { answers } else { answers.iter().map(|answer| spaced(answer)).collect() },
        suffix: String::new(),
    })
}

fn piqa(record: &mut Record, parity: bool) -> Result<Parts> {
    let goal = record.string(&["goal"])?;
    let options = vec![spaced(&record.text(&["sol1"])?), spaced(&record.text(&["sol2"])?)];
    let space = if parity { " " } else { "" };
    Ok(Parts { prefix: format!("Question: {goal}\nAnswer:{space}"), options, suffix: String::new() })
}

fn plain(record: &mut Record) -> Result<Parts> {
    let prefix = record.string(&["prefix", "prompt"])?;
    let options = record.strings(&["choices"])?;
    if options.len() < 2 {
        return Err(record.fault("`choices`", "two texts or more", options.len().to_string()));
    }
    let names = (0..options.len()).map(|i| format!("`choices[{i}]`"));
    not_blank(record, names.zip(&options))?;
    Ok(Parts { prefix, options, suffix: record.string_if_present(&["suffix"])?.unwrap_or_default() })
}

/// Options, with the names of their fields, of which none may be blank.
fn not_blank<'a>(record: &Record, mut options: impl Iterator<Item = (String, &'a String)>) -> Result<()> {
    match options.find(|(_, text)| is_blank(text)) {
        Some((name, text)) => Err(record.fault(name, "a text", quoted(text))),
        None => Ok(()),
    }
}

fn spaced(text: &str) -> String {
    format!(" {text}")
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
