//! `lacuna tokenize`: text to token ids, and ids back to text.

use serde_json::json;

use super::Context;
use super::common::argument_or_stdin;
use super::terminal::{note, printable, println};
use crate::error::{Error, Result};
use crate::io::{ModelFiles, Tokenizer};

/// Arguments of `tokenize`.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// The text; standard input, less the line end it ends in, when it is absent or `-`
    #[arg(value_name = "TEXT", conflicts_with = "decode")]
    text: Option<String>,

    /// A folder, a safetensors file, or a Hugging Face id [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL")]
    model: Option<String>,

    /// Turn these ids into text instead: numbers with commas or spaces between, or `-` for
    /// standard input
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    decode: Option<String>,

    /// One JSON object: text, ids, pieces, count
    #[arg(long)]
    pub json: bool,
}

const AFTER: &str = "\
Prints a line a token: its id and the piece of text it stands for, quoted. No special token is added; one that the
text spells out, such as <mask>, becomes its id.

Examples:
  lacuna tokenize 'To be, or not to be'
  lacuna tokenize --json < play.txt
  lacuna tokenize --decode '52 80 1'";

/// Runs `tokenize`.
///
/// # Errors
/// [`Error::Tokenizer`] when the model has none, [`Error::Request`] for ids that are no numbers or
/// are outside the vocabulary, [`Error::Io`].
pub fn run(args: Args, _context: &Context) -> Result<()> {
    let files = ModelFiles::find(args.model.as_deref())?;
    let Some(tokenizer) = &files.tokenizer else {
        return Err(Error::Tokenizer(format!(
            "{} has no tokenizer.json; expected one beside config.json",
            files.name
        )));
    };
    match &args.decode {
        Some(ids) => {
            let known = tokenizer.vocab_size().max(files.config.vocab_size);
            let ids = parse_ids(&argument_or_stdin(ids)?, known)?;
            let text = tokenizer.decode(&ids)?;
            if args.json { println(&record(tokenizer, &text, &ids)) } else { println(&printable(&text)) }
        }
        None => {
            let text = argument_or_stdin(args.text.as_deref().unwrap_or("-"))?;
            let ids = tokenizer.encode(&text)?;
            if args.json {
                return println(&record(tokenizer, &text, &ids));
            }
            let lines: Vec<String> = ids.iter().map(|&id| line(tokenizer, id)).collect();
            if !lines.is_empty() {
                println(&lines.join("\n"))?;
            }
            note(&format!("{} tokens", ids.len()));
            Ok(())
        }
    }
}

fn record(tokenizer: &Tokenizer, text: &str, ids: &[u32]) -> String {
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.piece(id)).collect();
    json!({"text": text, "ids": ids, "pieces": pieces, "count": ids.len()}).to_string()
}

fn line(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.piece_bytes(id);
    // Part of a character is shown by its bytes: the replacement character would hide which.
    match std::str::from_utf8(&bytes) {
        Ok(piece) => format!("{id:>7}  {piece:?}"),
        Err(_) => format!("{id:>7}  bytes \"{}\"", bytes.escape_ascii()),
    }
}

/// Numbers with commas or white space between, with or without brackets around.
fn parse_ids(text: &str, known: usize) -> Result<Vec<u32>> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(inner);
    let words = inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    words
        .map(|word| match word.parse::<u32>() {
            Ok(id) if (id as usize) < known => Ok(id),
            Ok(id) => Err(Error::request(format_args!(
                "token id {id}: expected one of the vocabulary, 0 to {}",
                known.saturating_sub(1)
            ))),
            Err(_) => Err(Error::request(format_args!(
                "--decode: expected token ids such as 12,7,300, got {word:?}"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_any_common_spelling() {
        for text in ["1,2,30", " 1 2\n30 ", "[1, 2, 30]", "1, 2,,30,"] {
            assert_eq!(parse_ids(text, 31).unwrap(), [1, 2, 30], "{text:?}");
        }
        assert_eq!(parse_ids("", 31).unwrap(), Vec::<u32>::new());
    }

    #[test]
    fn ids_out_of_range_or_no_numbers_are_named() {
        for (text, word) in
            [("1 31", "31"), ("x", "\"x\""), ("-1", "\"-1\""), ("4294967296", "4294967296"), ("[1", "[1")]
        {
            let error = parse_ids(text, 31).unwrap_err();
            assert!(matches!(error, Error::Request(_)) && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn lines_show_pieces_and_bytes() {
        let files = ModelFiles::bundled().unwrap();
        let tokenizer = files.tokenizer.unwrap();
        assert_eq!(line(&tokenizer, 0), "      0  \"<mask>\"");
        let newline = tokenizer.encode("\n").unwrap();
        assert!(line(&tokenizer, newline[0]).ends_with("\"\\n\""));
        let parts = tokenizer.encode("é").unwrap();
        assert!(line(&tokenizer, parts[0]).contains("\\xc3"), "{}", line(&tokenizer, parts[0]));
    }
}
