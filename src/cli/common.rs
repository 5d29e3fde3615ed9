//! From text and choices to requests: tokens, the beginning-of-sequence token, lengths.

use std::io::Read;
use std::path::Path;

use super::args::Bos;
use super::marks::{Piece, combinations};
use super::sampling::{DEFAULT_LENGTH, Sampling};
use crate::error::{Error, Result};
use crate::io::{ModelFiles, Tokenizer};
use crate::sample::{Canvas, Generation, Part};

/// Spells and reads tokens of one model; without a tokenizer a token is spelled `<id>`.
#[derive(Clone, Copy)]
pub struct Speller<'a>(Option<&'a Tokenizer>);

impl<'a> Speller<'a> {
    pub fn new(files: &'a ModelFiles) -> Self {
        Self(files.tokenizer.as_ref())
    }

    /// Token ids of `text`, no special token added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the model has no tokenizer, or its tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.0 {
            Some(tokenizer) => tokenizer.encode(text),
            None => Err(Error::Tokenizer(
                "the model's folder has no tokenizer.json, so text cannot be turned into tokens; \
                 put the file there, or generate without a prompt"
                    .into(),
            )),
        }
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self.0 {
            Some(tokenizer) => tokenizer.decode(ids),
            None => Ok(ids.iter().map(|id| format!("<{id}>")).collect()),
        }
    }

    /// One token as it looks in a text.
    pub fn piece(&self, id: u32) -> String {
        self.0.map_or_else(|| format!("<{id}>"), |t| t.piece(id))
    }

    /// Whether a token is a special one, left out of texts.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.is_some_and(|t| t.is_special(id))
    }

    /// The text of a finished canvas, in runs: given or filled in, and the text. Together they
    /// are the text of the whole, even where a character spans two runs.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn runs(&self, ids: &[u32], fixed: &[bool]) -> Result<Vec<(bool, String)>> {
        let mut runs: Vec<(bool, String)> = Vec::new();
        let mut before = String::new();
        let mut start = 0;
        for group in fixed[..ids.len().min(fixed.len())].chunk_by(|a, b| a == b) {
            let end = start + group.len();
            let upto = self.decode(&ids[..end])?;
            let text = match upto.strip_prefix(before.as_str()) {
                Some(new) => new.to_owned(),
                // The earlier text ended inside a character that is complete only now.
                None => {
                    let same = upto.char_indices().zip(before.chars()).find(|((_, a), b)| a != b);
                    let at = same.map_or(upto.len().min(before.len()), |((at, _), _)| at);
                    if let Some((_, last)) = runs.last_mut() {
                        while last.ends_with('\u{FFFD}') {
                            last.pop();
                        }
                    }
                    upto.get(at..).unwrap_or_default().to_owned()
                }
            };
            runs.push((group[0], text));
            before = upto;
            start = end;
        }
        Ok(runs)
    }

    /// A canvas that is not finished: what is still masked becomes `[[gap:N]]` marks, so that
    /// `lacuna infill` can go on with the text.
    pub fn unfinished(&self, canvas: &[u32], masked: &[bool]) -> String {
        let mut text = String::new();
        for group in canvas.iter().zip(masked).collect::<Vec<_>>().chunk_by(|a, b| a.1 == b.1) {
            if *group[0].1 {
                text.push_str(&format!("[[gap:{}]]", group.len()));
            } else {
                let words = group.iter().filter(|(id, _)| !self.is_special(**id));
                let words: String = words.map(|(id, _)| self.piece(**id)).collect();
                text.push_str(&words.replace("[[gap", "\\[[gap"));
            }
        }
        text
    }
}

/// The ids that were filled in and belong to the text, in reading order.
pub fn filled_ids(canvas: &Canvas, generation: &Generation) -> Vec<u32> {
    let free = generation.ids.iter().zip(canvas.fixed()).take(generation.end);
    free.filter(|(_, fixed)| !**fixed).map(|(id, _)| *id).collect()
}

/// Whether, and with which token, the canvas begins.
fn bos(files: &ModelFiles, choices: &Sampling, opens_with_gap: bool) -> Result<Option<u32>> {
    let token = files.special.bos.as_ref().or(files.special.eos.as_ref()).map(|s| s.id);
    let unpredicted = opens_with_gap && (choices.shift.unwrap_or(files.shift) || choices.autoregressive());
    match choices.bos.unwrap_or_default() {
        Bos::Never if unpredicted => Err(Error::request(
            "--bos never: the text opens with a gap, and this model predicts each position from the \
             one before it, so nothing predicts the first; give a prompt, or allow the \
             beginning-of-sequence token",
        )),
        Bos::Never => Ok(None),
        Bos::Auto if !(files.add_bos || unpredicted) => Ok(None),
        Bos::Auto if !unpredicted => Ok(token),
        Bos::Auto | Bos::Always => match token {
            Some(_) => Ok(token),
            None => Err(Error::request(
                "the text should open with a beginning-of-sequence token, but the model names neither \
                 bos_token_id nor eos_token_id; begin with text (and --bos never)",
            )),
        },
    }
}

/// A prompt (empty for none) and a gap after it: of `length` tokens, or by default as many as the
/// context allows up to [`DEFAULT_LENGTH`].
///
/// # Errors
/// [`Error::Request`] when the context is too short, [`Error::Tokenizer`].
pub fn prompt_canvas(files: &ModelFiles, choices: &Sampling, prompt: Option<&str>) -> Result<Canvas> {
    let speller = Speller::new(files);
    let text = match prompt {
        Some("") => {
            return Err(Error::request("the prompt is empty; leave it out for a text from nothing"));
        }
        Some(text) => speller.encode(text)?,
        None => Vec::new(),
    };
    let mut ids: Vec<u32> = bos(files, choices, text.is_empty())?.into_iter().collect();
    ids.extend(text);
    let context = files.config.max_positions;
    let room = context.saturating_sub(ids.len());
    let length = match choices.length {
        Some(0) => return Err(Error::request("--length 0: expected 1 or more")),
        Some(n) => n,
        None => room.min(DEFAULT_LENGTH),
    };
    if room == 0 || length > room {
        let wanted = choices.length.map_or(String::new(), |n| format!(" and --length {n}"));
        return Err(Error::request(format!(
            "the prompt has {} tokens{wanted}, the context of {} holds {context}: {}",
            ids.len(),
            files.name,
            if room == 0 { "shorten the prompt".to_owned() } else { format!("at most --length {room} fits") }
        )));
    }
    Ok(Canvas::prefix(&ids, length))
}

/// One canvas for every combination of lengths that the gaps of `pieces` allow.
///
/// # Errors
/// [`Error::Request`] for no gap, more than `most` combinations, or a text longer than the
/// context; [`Error::Tokenizer`].
pub fn gap_canvases(
    files: &ModelFiles,
    choices: &Sampling,
    pieces: &[Piece],
    most: usize,
) -> Result<Vec<Canvas>> {
    let gaps: Vec<_> = pieces
        .iter()
        .filter_map(|p| if let Piece::Gap(range) = p { Some(range.clone()) } else { None })
        .collect();
    if gaps.is_empty() {
        return Err(Error::request(
            "the text has no gap; mark one with [[gap:12]] (tokens) or [[gap:4-20]] (a range)",
        ));
    }
    let speller = Speller::new(files);
    let opens_with_gap = matches!(pieces.first(), Some(Piece::Gap(_)));
    let mut parts: Vec<Part> = Vec::new();
    if let Some(id) = bos(files, choices, opens_with_gap)? {
        parts.push(Part::Fixed(vec![id]));
    }
    for piece in pieces {
        parts.push(match piece {
            Piece::Text(text) => Part::Fixed(speller.encode(text)?),
            Piece::Gap(range) => Part::Gap(*range.end()),
        });
    }
    let given: usize = parts.iter().map(|p| if let Part::Fixed(ids) = p { ids.len() } else { 0 }).sum();
    let longest = gaps.iter().fold(given, |n, g| n.saturating_add(*g.end()));
    let context = files.config.max_positions;
    if longest > context {
        return Err(Error::request(format!(
            "the text has {given} given tokens and gaps of up to {}, together {longest}, but the context of {} \
             holds {context}; shorten the text or the gaps",
            longest - given,
            files.name
        )));
    }
    let fill = |lengths: &[usize]| {
        let mut lengths = lengths.iter();
        let parts: Vec<Part> = parts
            .iter()
            .map(|part| match part {
                Part::Gap(longest) => Part::Gap(lengths.next().copied().unwrap_or(*longest)),
                given => given.clone(),
            })
            .collect();
        Canvas::new(&parts)
    };
    Ok(combinations(&gaps, most)?.iter().map(|lengths| fill(lengths)).collect())
}

/// Checks what a request needs of the model's files, before weights are touched.
///
/// # Errors
/// [`Error::Request`] when there is no mask token to denoise from.
pub fn check_mask(files: &ModelFiles, choices: &Sampling) -> Result<()> {
    let vocab = files.config.vocab_size;
    match choices.mask_id {
        Some(id) if id as usize >= vocab => Err(Error::request(format!(
            "--mask-id {id} is outside of the vocabulary of {}: expected 0 to {}",
            files.name,
            vocab.saturating_sub(1)
        ))),
        None if files.special.mask.is_none() && !choices.autoregressive() => Err(Error::request(format!(
            "{} names no mask token; give one with --mask-id, or decode from left to right with --ar",
            files.name
        ))),
        _ => Ok(()),
    }
}

/// Text from an argument: itself, or for `-` all of standard input without the line end it ends in.
///
/// # Errors
/// [`Error::Io`] when standard input cannot be read or is not UTF-8.
pub fn argument_or_stdin(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(|e| Error::io("read", "standard input", e))?;
    Ok(without_line_end(text))
}

/// The text of a file without the line end it ends in.
///
/// # Errors
/// [`Error::Io`] when it cannot be read or is not UTF-8.
pub fn text_file(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map(without_line_end).map_err(|e| Error::io("read", path, e))
}

fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_dropped() {
        assert_eq!(without_line_end("a\r\n".into()), "a");
        assert_eq!(without_line_end("a\n\n".into()), "a\n");
        assert_eq!(without_line_end("a".into()), "a");
    }

    #[test]
    fn without_a_tokenizer_tokens_are_numbers() {
        let speller = Speller(None);
        assert_eq!(
            speller.runs(&[5, 6, 7], &[true, false, false]).unwrap(),
            [(true, "<5>".to_owned()), (false, "<6><7>".to_owned())]
        );
        assert_eq!(speller.unfinished(&[5, 0, 0, 7], &[false, true, true, false]), "<5>[[gap:2]]<7>");
        assert!(speller.encode("x").unwrap_err().to_string().contains("tokenizer.json"));
    }

    #[test]
    fn filled_ids_stop_at_the_end() {
        let canvas = Canvas::prefix(&[9], 4);
        let generation = Generation {
            ids: vec![9, 3, 4, 1, 1],
            committed_at: vec![0, 1, 1, 2, 0],
            log_prob: vec![0.0; 5],
            nfe: 2,
            tokens: 2,
            end: 3,
            finish: crate::sample::Finish::Eos,
        };
        assert_eq!(filled_ids(&canvas, &generation), [3, 4]);
    }
}
