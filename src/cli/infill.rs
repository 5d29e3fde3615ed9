//! `lacuna infill`: the gaps of a text, filled from both sides.

use std::ops::RangeInclusive;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::Context;
use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::common::{Speller, argument_or_stdin, check_mask, gap_canvases};
use super::device;
use super::marks::{self, Piece};
use super::record::{Candidate, Record, unfinished};
use super::run::{self, Outcome, summary};
use super::terminal::{Style, note, println};
use super::trace::{Recording, Run};
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::sample::{Generation, Request};

/// The arguments of `infill`.
#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Text with [[gap:N]] or [[gap:A-B]] marks, lengths in tokens; - reads standard input
    #[arg(value_name = "TEXT", required_unless_present = "gap", conflicts_with_all = ["prefix", "suffix", "gap"])]
    pub text: Option<String>,

    /// Text before the gap, as an alternative to TEXT
    #[arg(long, value_name = "TEXT", requires = "gap", help_heading = "Text")]
    pub prefix: Option<String>,

    /// Text after the gap
    #[arg(long, value_name = "TEXT", requires = "gap", help_heading = "Text")]
    pub suffix: Option<String>,

    /// Length of the gap between --prefix and --suffix, in tokens, or a range of lengths
    #[arg(long, value_name = "N|A-B", value_parser = marks::length, help_heading = "Text")]
    pub gap: Option<RangeInclusive<usize>>,

    /// Most combinations of lengths to try when gaps are ranges
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Text")]
    pub max_candidates: usize,

    /// Number of fillings; each is the best over all combinations of lengths
    #[arg(long, short, value_name = "N", default_value_t = 1, help_heading = "Text")]
    pub batch: u32,

    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

const EXAMPLES: &str = "\
A gap is counted in tokens, less than a word each. Write the mark right after
the word before it: most tokenizers keep a space with the word that follows. A
range such as [[gap:4-20]] tries every length and keeps the one whose tokens
are most probable on average. \\[[gap keeps a mark as text.

Examples:
  lacuna infill 'To be, or[[gap:6]] that is the question.'
  lacuna infill 'First[[gap:3]] then[[gap:2-5]] and the end.' --json
  lacuna infill --prefix 'KING:' --suffix ' my lord.' --gap 8-12 --order confidence
  lacuna infill - < draft.txt --watch";

/// Runs `infill`.
///
/// # Errors
/// Any [`Error`]; [`Error::Cancelled`] after Ctrl-C, when what there is has been printed.
pub fn run(args: Args, context: &Context) -> Result<()> {
    if args.batch == 0 {
        return Err(Error::request("--batch 0: expected 1 filling or more"));
    }
    if args.sampling.ar {
        return Err(Error::request(
            "--ar decodes from left to right and cannot see the text after a gap; use generate",
        ));
    }
    let pieces = match (&args.text, &args.gap) {
        (Some(text), _) => marks::parse(&argument_or_stdin(text)?)?,
        (None, Some(gap)) => around(args.prefix.as_deref(), gap.clone(), args.suffix.as_deref()),
        (None, None) => Vec::new(),
    };
    let choices = args.sampling.sampling(&args.model);
    device::machine(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    check_mask(&files, &choices)?;
    let speller = Speller::new(&files);
    let canvases = gap_canvases(&files, &choices, &pieces, args.max_candidates)?;
    let mut requests: Vec<Request> = Vec::with_capacity(canvases.len());
    for sequence in 0..args.batch {
        for canvas in &canvases {
            requests.push(Request { sequence, ..choices.request(canvas.clone())? });
        }
    }
    if !args.output.quiet {
        advise(&pieces);
    }
    let model = device::load(&args.model.device, &files, context)?;
    let outcome = run::run(&model, &requests, speller, &args.output, context)?;
    let show =
        Show { args: &args, files: &files, speller, requests: &requests, each: canvases.len(), context };
    show.all(outcome)
}

/// The pieces of `--prefix`, `--gap`, `--suffix`.
pub fn around(prefix: Option<&str>, gap: RangeInclusive<usize>, suffix: Option<&str>) -> Vec<Piece> {
    let text = |t: Option<&str>| t.filter(|t| !t.is_empty()).map(|t| Piece::Text(t.to_owned()));
    text(prefix).into_iter().chain([Piece::Gap(gap)]).chain(text(suffix)).collect()
}

/// The index of the generation with the best score.
pub fn best<'a>(candidates: impl IntoIterator<Item = &'a Generation>) -> Option<usize> {
    let scored = candidates.into_iter().map(Generation::score).enumerate();
    // Of equals the first is kept: the shorter gaps.
    scored.reduce(|a, b| if b.1.total_cmp(&a.1).is_gt() { b } else { a }).map(|(i, _)| i)
}

/// The tried lengths with their scores, in the order of the requests.
///
/// # Errors
/// [`Error::Tokenizer`].
pub fn candidates(
    speller: Speller<'_>,
    requests: &[Request],
    generations: &[Generation],
) -> Result<Vec<Candidate>> {
    let each = requests.iter().zip(generations);
    each.map(|(request, generation)| {
        Ok(Candidate {
            gaps: request.canvas.gaps().iter().map(ExactSizeIterator::len).collect(),
            score: generation.score(),
            text: speller.decode(generation.ids.get(..generation.end).unwrap_or(&generation.ids))?,
        })
    })
    .collect()
}

/// Says when a space before a gap is likely to hurt.
fn advise(pieces: &[Piece]) {
    let spaced = pieces
        .windows(2)
        .any(|pair| matches!(pair, [Piece::Text(text), Piece::Gap(_)] if text.ends_with(' ')));
    if spaced {
        note(
            "note: a space right before a gap is kept as given; most tokenizers keep the space with the \
             word after it, so `word[[gap:3]] word` usually reads better",
        );
    }
}

struct Show<'a> {
    args: &'a Args,
    files: &'a ModelFiles,
    speller: Speller<'a>,
    requests: &'a [Request],
    /// Length combinations, of each filling.
    each: usize,
    context: &'a Context,
}

impl Show<'_> {
    fn all(&self, outcome: Outcome) -> Result<()> {
        let json = self.args.output.json;
        let (mut tokens, mut nfe) = (0, 0);
        let mut chosen: Vec<(usize, Value)> = Vec::new();
        let mut failed: Option<Error> = None;
        let mut results = outcome.results.into_iter();
        for (n, group) in self.requests.chunks(self.each).enumerate() {
            let first = n * self.each;
            let results: Result<Vec<Generation>> = results.by_ref().take(group.len()).collect();
            let generations = match results {
                Ok(generations) => generations,
                Err(error) => {
                    let last = outcome.last.get(first).and_then(Option::as_ref);
                    let value = match (&error, group) {
                        (Error::Cancelled, [request, ..]) => unfinished(self.speller, request, last),
                        _ => super::record::failure(&error),
                    };
                    if json {
                        println(&value.to_string())?;
                    } else if let (Error::Cancelled, Some(text)) = (&error, value["text"].as_str()) {
                        println(text)?;
                    }
                    chosen.push((first, value));
                    failed = failed.or(Some(error));
                    continue;
                }
            };
            nfe += generations.iter().map(|g| g.nfe).sum::<usize>();
            let Some(at) = best(&generations) else { continue };
            let (request, generation) = (&group[at], &generations[at]);
            tokens += generation.tokens;
            let seconds = outcome.seconds.iter().skip(first).take(group.len()).copied().fold(0.0, f64::max);
            let name = &self.files.name;
            let mut record = Record::new(self.speller, name, request, generation, None, seconds)?;
            if self.each > 1 {
                record.nfe = generations.iter().map(|g| g.nfe).sum();
                record.tokens_per_forward = run::rate(record.tokens, record.nfe as f64);
                record.candidates = candidates(self.speller, group, &generations)?;
            }
            if json {
                println(&record.value().to_string())?;
            } else {
                self.text(n, request, generation)?;
            }
            chosen.push((first + at, record.value()));
        }
        if let Some(path) = &self.args.output.trace {
            let runs = chosen.into_iter().enumerate().filter_map(|(i, (at, result))| {
                let (request, trace) = (self.requests.get(at)?, outcome.traces.get(at)?);
                Some(Run { label: format!("filling {}", i + 1), request, trace, result })
            });
            Recording {
                model: &self.files.name,
                runs: runs.collect(),
                piece: &|id| self.speller.piece(id),
                special: &|id| self.speller.is_special(id),
            }
            .write(path)?;
        }
        if !self.args.output.quiet && tokens > 0 {
            if self.each > 1 {
                note(&format!("best of {} combinations of lengths", self.each));
            }
            let seed = self.requests.first().map_or(0, |r| r.seed);
            note(&summary(tokens, nfe, outcome.total, seed));
        }
        match failed {
            None => Ok(()),
            Some(error) => {
                self.context.set_reported(json);
                Err(error)
            }
        }
    }

    /// The whole text; on a terminal what was filled in stands out.
    fn text(&self, n: usize, request: &Request, generation: &Generation) -> Result<()> {
        if self.args.batch > 1 {
            println(&format!("{}--- filling {} ---", if n > 0 { "\n" } else { "" }, n + 1))?;
        }
        let ids = generation.ids.get(..generation.end).unwrap_or(&generation.ids);
        let color = self.context.terminal.stdout && self.context.terminal.color;
        if !color {
            return println(&self.speller.decode(ids)?);
        }
        let runs = self.speller.runs(ids, request.canvas.fixed())?;
        let painted = runs.iter().map(|(given, text)| {
            let style = if *given { Style::Plain } else { Style::Filled };
            style.paint(text, true)
        });
        println(&painted.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Finish;

    fn scored(log_prob: f32) -> Generation {
        Generation {
            ids: vec![1],
            committed_at: vec![1],
            log_prob: vec![log_prob],
            nfe: 1,
            tokens: 1,
            end: 1,
            finish: Finish::Length,
        }
    }

    #[test]
    fn best_is_the_highest_score_and_the_first_of_equals() {
        assert_eq!(best(&[scored(-3.0), scored(-1.0), scored(-1.0), scored(-2.0)]), Some(1));
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[scored(f32::NEG_INFINITY), scored(-9.0)]), Some(1));
    }

    #[test]
    fn prefix_gap_suffix() {
        assert_eq!(around(Some("a"), 2..=3, None), [Piece::Text("a".into()), Piece::Gap(2..=3)]);
        assert_eq!(around(Some(""), 1..=1, Some("b")), [Piece::Gap(1..=1), Piece::Text("b".into())]);
    }
}
