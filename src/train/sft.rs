//! Prompts with answers, for supervised fine-tuning: `[bos] prompt [sep] answer [eos]`, of which the
//! answer and what follows it are learnt (Gong et al., "Scaling Diffusion Language Models via
//! Adaptation from Autoregressive Models", section on fine-tuning).

use std::path::PathBuf;

use rayon::prelude::*;

use super::data::{Cursor, Example, Examples};
use super::order::Permutation;
use crate::error::{Error, Result};
use crate::io::{Lines, SpecialIds, Tokenizer};
use crate::rng::Rng;

/// Lines that are turned into tokens together.
const BATCH: usize = 1024;
/// Most bytes of a line.
const LONGEST_LINE: usize = 64 << 20;

/// The special tokens around prompt and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SftIds {
    /// Stands before the prompt, if the model has one.
    pub bos: Option<u32>,
    /// Stands between prompt and answer, if the model has one.
    pub sep: Option<u32>,
    /// Stands behind the answer.
    pub eos: u32,
    /// Fills up to the length ([`PadRule::Eos`]); `None`: the `eos` token does.
    pub pad: Option<u32>,
}

impl SftIds {
    /// Those of a model; padding is by its `eos` token.
    ///
    /// # Errors
    /// [`Error::Request`] when the model names no `eos`.
    pub fn of(special: &SpecialIds) -> Result<Self> {
        let id = |special: &Option<crate::io::SpecialId>| special.as_ref().map(|s| s.id);
        let eos = id(&special.eos).ok_or_else(|| {
            Error::request("the model names no end-of-sequence token, which ends an answer; set eos_token_id in its config.json")
        })?;
        Ok(Self { bos: id(&special.bos), sep: id(&special.sep), eos, pad: None })
    }
}

/// What follows the answer's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PadRule {
    /// Nothing: examples are as long as their text.
    #[default]
    None,
    /// The `eos` (or `pad`) token up to `to_length` tokens, which is learnt like the answer: a model
    /// that decodes a fixed length then learns to end early. Longer examples stay as they are.
    Eos { to_length: usize },
}

/// What becomes of an example longer than the length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongRule {
    /// An error that names its line.
    #[default]
    Error,
    /// It is left out and counted.
    Skip,
    /// The beginning of its prompt is cut off. An error if the answer alone is too long.
    TruncatePrompt,
}

/// How prompts with answers are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SftOptions {
    /// Names of the field with the prompt: the first that a line has counts.
    pub prompt: Vec<String>,
    /// Names of the field with the answer.
    pub answer: Vec<String>,
    /// Most tokens of an example.
    pub length: usize,
    /// Of the order.
    pub seed: u64,
    pub pad: PadRule,
    pub long: LongRule,
}

impl SftOptions {
    /// Fields `prompt` or `question`, and `answer`; no padding; an example that is too long is an
    /// error.
    pub fn new(length: usize, seed: u64) -> Self {
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let (prompt, answer) = (names(&["prompt", "question"]), names(&["answer"]));
        Self { prompt, answer, length, seed, pad: PadRule::None, long: LongRule::Error }
    }
}

/// Prompts with answers, held in memory as tokens. An epoch takes each example once, in an order of
/// its own.
#[derive(Clone, Debug)]
pub struct SftData {
    /// All examples one after the other, without padding.
    ids: Vec<u32>,
    examples: Vec<Place>,
    skipped: u64,
    special: SftIds,
    options: SftOptions,
    rng: Rng,
}

/// Where an example lies in the tokens, and how many of its first ones are given.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    given: usize,
    end: usize,
}

/// A line that was read.
struct Pair {
    origin: String,
    prompt: String,
    answer: String,
}

impl SftData {
    /// Reads `.jsonl` files (also `.gz`, `.zst`) of objects with a prompt and an answer, both
    /// strings; other fields are not looked at. Prompt and answer become tokens separately.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`], naming file and line, for a line that is no JSON object, a
    /// field that is missing or no string, an answer without tokens, and an example that is too
    /// long (see [`LongRule`]); [`Error::Tokenizer`]; [`Error::Request`] for no examples, or a padded
    /// length beyond the length.
    pub fn open(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        special: SftIds,
        options: SftOptions,
    ) -> Result<Self> {
        if let PadRule::Eos { to_length } = options.pad
            && to_length > options.length
        {
            return Err(Error::request(format_args!(
                "examples are padded to {to_length} tokens, but have {} at most: pad to no more than that",
                options.length
            )));
        }
        let rng = Rng::new(options.seed);
        let mut data = Self { ids: Vec::new(), examples: Vec::new(), skipped: 0, special, options, rng };
        let mut pairs = Vec::with_capacity(BATCH);
        for path in paths {
            let mut lines = Lines::open(path, LONGEST_LINE)?;
            while let Some(pair) = data.read(&mut lines)? {
                pairs.push(pair);
                if pairs.len() == BATCH {
                    data.add(&pairs, tokenizer)?;
                    pairs.clear();
                }
            }
        }
        data.add(&pairs, tokenizer)?;
        if data.examples.is_empty() {
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::request(format_args!(
                "no prompts with answers in {}: expected lines such as {{\"prompt\": \"...\", \"answer\": \"...\"}} of \
                 at most {} tokens; {} were longer",
                if names.is_empty() { "no file".to_owned() } else { names.join(", ") },
                data.options.length,
                data.skipped
            )));
        }
        Ok(data)
    }

    fn read(&self, lines: &mut Lines) -> Result<Option<Pair>> {
        let Some(mut object) = lines.next_object()? else { return Ok(None) };
        let mut string = |names: &[String]| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            lines.string(&mut object, &names)
        };
        let (prompt, answer) = (string(&self.options.prompt)?, string(&self.options.answer)?);
        Ok(Some(Pair { origin: lines.origin(), prompt, answer }))
    }

    /// Adds examples, in order.
    fn add(&mut self, pairs: &[Pair], tokenizer: &Tokenizer) -> Result<()> {
        let encode = |pair: &Pair| Ok((tokenizer.encode(&pair.prompt)?, tokenizer.encode(&pair.answer)?));
        let encoded: Vec<Result<(Vec<u32>, Vec<u32>)>> = pairs.par_iter().map(encode).collect();
        for (pair, encoded) in pairs.iter().zip(encoded) {
            let (prompt, answer) = encoded?;
            self.push(&pair.origin, &prompt, &answer)?;
        }
        Ok(())
    }

    fn push(&mut self, origin: &str, mut prompt: &[u32], answer: &[u32]) -> Result<()> {
        let wrong = |what: &str, expected: String, got: String| Error::Input {
            origin: origin.to_owned(),
            what: what.to_owned(),
            expected,
            got,
        };
        if answer.is_empty() {
            return Err(wrong("the answer", "a text".into(), "an empty one".into()));
        }
        let SftIds { bos, sep, eos, .. } = self.special;
        let around = usize::from(bos.is_some()) + usize::from(sep.is_some()) + 1;
        let (most, tokens) = (self.options.length, around + prompt.len() + answer.len());
        if tokens > most {
            match self.options.long {
                LongRule::Skip => {
                    self.skipped += 1;
                    return Ok(());
                }
                LongRule::TruncatePrompt if tokens - prompt.len() <= most => {
                    prompt = prompt.get(tokens - most..).unwrap_or_default();
                }
                rule => {
                    let what = match rule {
                        LongRule::TruncatePrompt => "the example without its prompt",
                        _ => "the example",
                    };
                    let got = match rule {
                        LongRule::TruncatePrompt => tokens - prompt.len(),
                        _ => tokens,
                    };
                    let expected = format!("at most {most} tokens, special ones included");
                    let got =
                        format!("{got}; train at a greater length, or leave out or shorten what is longer");
                    return Err(wrong(what, expected, got));
                }
            }
        }
        let start = self.ids.len();
        self.ids.extend(bos);
        self.ids.extend(prompt);
        self.ids.extend(sep);
        let given = self.ids.len() - start;
        self.ids.extend(answer);
        self.ids.push(eos);
        self.examples.push(Place { start, given, end: self.ids.len() });
        Ok(())
    }

    /// Examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// `false`: data without examples are refused at opening.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Examples left out because they are too long ([`LongRule::Skip`]).
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Tokens of the longest example, padding included.
    pub fn longest(&self) -> usize {
        let longest = self.examples.iter().map(|p| p.end - p.start).max().unwrap_or_default();
        longest.max(self.padded())
    }

    fn padded(&self) -> usize {
        match self.options.pad {
            PadRule::None => 0,
            PadRule::Eos { to_length } => to_length,
        }
    }

    /// Example `index` in the order of the files; `None` behind the last one.
    pub fn get(&self, index: usize) -> Option<Example> {
        let place = self.examples.get(index)?;
        let mut ids = self.ids.get(place.start..place.end)?.to_vec();
        let length = ids.len().max(self.padded());
        ids.resize(length, self.special.pad.unwrap_or(self.special.eos));
        let fixed = (0..length).map(|at| at < place.given).collect();
        Some(Example { ids, fixed, documents: vec![length] })
    }

    /// A fixed choice for validation: `count` examples (all, if there are fewer) at even distances,
    /// in the order of the files.
    pub fn validation(&self, count: usize) -> Vec<Example> {
        let count = count.min(self.len());
        let place = |i: usize| (i as u128 * self.len() as u128 / count as u128) as usize;
        (0..count).filter_map(|i| self.get(place(i))).collect()
    }
}

impl Examples for SftData {
    fn next(&self, cursor: &mut Cursor) -> Result<Example> {
        cursor.check(1)?;
        let all = self.epoch();
        let index = Permutation::new(self.rng, 0, cursor.examples / all, all).at(cursor.examples % all);
        let example = self.get(index as usize).ok_or_else(|| Error::request("there are no examples"))?;
        cursor.examples += 1;
        cursor.per_source = vec![cursor.examples];
        Ok(example)
    }

    fn start(&self) -> Cursor {
        Cursor::zero(1)
    }

    fn tokens(&self) -> u64 {
        self.ids.len() as u64
    }

    fn epoch(&self) -> u64 {
        self.examples.len() as u64
    }

    fn describe(&self) -> String {
        let given: usize = self.examples.iter().map(|p| p.given).sum();
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(", {n} longer ones left out"),
        };
        format!(
            "{} prompts with answers, {} tokens of which {} are learnt, the longest {}{skipped}",
            self.len(),
            self.ids.len(),
            self.ids.len() - given,
            self.longest()
        )
    }
}
