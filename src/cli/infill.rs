//! `lacuna infill`: the gaps of a text, filled from both sides.

use std::ops::RangeInclusive;

use super::Context;
use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::common::{Speller, argument_or_stdin, check_mask, gap_canvases};
use super::device;
use super::marks::{self, Piece};
use super::record::{Candidate, Record, failure, unfinished};
use super::run::{Outcome, Session, rate};
use super::tally::Tally;
use super::terminal::{Style, note, printable, println, show_text};
use super::trace::Run;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::sample::{Generation, Request};
use clap::Args as ClapArgs;

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
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref())?;
    check_mask(&files, &choices)?;
    let speller = Speller::new(&files);
    let canvases = gap_canvases(&files, &choices, &pieces, args.max_candidates)?;
    let each: Vec<Request> =
        canvases.into_iter().map(|canvas| choices.request(canvas)).collect::<Result<_>>()?;
    if !args.output.quiet {
        advise(&pieces);
    }
    let engine = device::load(&args.model.device, &files, context)?;
    let tokens = each.iter().map(|r| r.canvas.maskable() as u64).sum::<u64>() * u64::from(args.batch);
    let mut session = Session::new(&*engine, speller, &args.output, context, tokens)?;
    let longest = each.iter().map(|r| r.canvas.len()).max().unwrap_or(1);
    let round = u32::try_from((session.round(longest) / each.len().max(1)).max(1)).unwrap_or(u32::MAX);
    let mut show =
        Show { args: &args, files: &files, speller, each: each.len(), context, tally: Tally::default() };
    let mut next = 0;
    while next < args.batch && show.tally.failed.is_none() {
        let upto = args.batch.min(next.saturating_add(round));
        let requests: Vec<Request> = (next..upto)
            .flat_map(|sequence| each.iter().map(move |request| Request { sequence, ..request.clone() }))
            .collect();
        let outcome = session.run(&requests)?;
        show.round(&requests, outcome)?;
        next = upto;
    }
    let seconds = session.seconds();
    drop(session);
    if !args.output.quiet && each.len() > 1 && show.tally.tokens > 0 {
        note(&format!("best of {} combinations of lengths", each.len()));
    }
    let seed = each.first().map_or(0, |r| r.seed);
    show.tally.end(&args.output, context, &files.name, speller, seconds, seed)
}

/// The pieces of `--prefix`, `--gap`, `--suffix`.
pub fn around(prefix: Option<&str>, gap: RangeInclusive<usize>, suffix: Option<&str>) -> Vec<Piece> {
    let text = |t: Option<&str>| t.filter(|t| !t.is_empty()).map(|t| Piece::Text(t.to_owned()));
    text(prefix).into_iter().chain([Piece::Gap(gap)]).chain(text(suffix)).collect()
}

/// The index of the generation with the best score. One that ended before its first token has no
/// score; it is kept only where there is nothing else.
pub fn best<'a>(candidates: impl IntoIterator<Item = &'a Generation>) -> Option<usize> {
    let rank = |g: &Generation| if g.tokens > 0 { g.score() } else { f64::NEG_INFINITY };
    let scored = candidates.into_iter().map(rank).enumerate();
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

/// Shows fillings, round by round.
struct Show<'a> {
    args: &'a Args,
    files: &'a ModelFiles,
    speller: Speller<'a>,
    /// Length combinations of each filling.
    each: usize,
    context: &'a Context,
    tally: Tally,
}

impl Show<'_> {
    fn round(&mut self, requests: &[Request], outcome: Outcome) -> Result<()> {
        let mut results = outcome.results.into_iter();
        for (n, group) in requests.chunks(self.each).enumerate() {
            let first = n * self.each;
            // All of them leave the iterator, also when one has failed.
            let results: Vec<Result<Generation>> = results.by_ref().take(group.len()).collect();
            let seconds = outcome.seconds.iter().skip(first).take(group.len()).copied().fold(0.0, f64::max);
            let (at, value) = match results.into_iter().collect::<Result<Vec<Generation>>>() {
                Ok(generations) => {
                    let Some((at, record)) = self.filling(group, &generations, seconds)? else { continue };
                    (at, record.value())
                }
                Err(Error::Cancelled) => {
                    let seen = outcome.last.iter().skip(first).take(group.len());
                    let seen = seen.enumerate().filter_map(|(i, last)| Some((i, last.as_ref()?)));
                    // One of those that are not done.
                    let begun = { seen }.find(|(_, last)| last.masked.contains(&true));
                    // Of a filling that was not begun there is nothing to say.
                    let Some((at, last)) = begun else { continue };
                    if !self.args.output.json {
                        self.title()?;
                        show_text(
                            &self.speller.unfinished(&last.canvas, &last.masked),
                            self.context.terminal,
                        )?;
                        println("")?;
                    }
                    (at, unfinished(self.speller, &group[at], Some(last)))
                }
                Err(error) => {
                    let value = failure(&error);
                    self.tally.fail(error);
                    (0, value)
                }
            };
            self.tally.shown += 1;
            if self.args.output.json {
                println(&value.to_string())?;
            }
            if let Some(trace) = outcome.traces.get(first + at) {
                let label = format!("filling {}", group[at].sequence + 1);
                let (request, trace) = (group[at].clone(), trace.clone());
                self.tally.runs.push(Run { label, request, trace, result: value });
            }
        }
        if outcome.interrupted {
            self.tally.fail(Error::Cancelled);
        }
        Ok(())
    }

    /// Keeps the best of the candidates of one filling, and prints it.
    fn filling(
        &mut self,
        group: &[Request],
        generations: &[Generation],
        seconds: f64,
    ) -> Result<Option<(usize, Record)>> {
        let nfe: usize = generations.iter().map(|g| g.nfe).sum();
        let Some(at) = best(generations) else { return Ok(None) };
        let (request, generation) = (&group[at], &generations[at]);
        self.tally.nfe += nfe;
        self.tally.tokens += generation.tokens;
        let mut record = Record::new(self.speller, &self.files.name, request, generation, None, seconds)?;
        if self.each > 1 {
            record.nfe = nfe;
            record.tokens_per_forward = rate(record.tokens, nfe as f64);
            record.candidates = candidates(self.speller, group, generations)?;
        }
        if !self.args.output.json {
            self.title()?;
            self.text(request, generation)?;
        }
        Ok(Some((at, record)))
    }

    /// A line between fillings, where there are several.
    fn title(&self) -> Result<()> {
        if self.args.batch == 1 {
            return Ok(());
        }
        println(&format!(
            "{}--- filling {} ---",
            if self.tally.shown > 0 { "\n" } else { "" },
            self.tally.shown + 1
        ))
    }

    /// The whole text; on a terminal what was filled in stands out.
    fn text(&self, request: &Request, generation: &Generation) -> Result<()> {
        let ids = generation.ids.get(..generation.end).unwrap_or(&generation.ids);
        let color = self.context.terminal.stdout && self.context.terminal.color;
        if !color {
            show_text(&self.speller.decode(ids)?, self.context.terminal)?;
            return println("");
        }
        let runs = self.speller.runs(ids, request.canvas.fixed())?;
        let painted = runs.iter().map(|(given, text)| {
            let style = if *given { Style::Plain } else { Style::Filled };
            style.paint(&printable(text), true)
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
    fn a_filling_that_ended_at_once_does_not_win() {
        let nothing = Generation { committed_at: vec![0], tokens: 0, end: 0, ..scored(0.0) };
        assert_eq!(nothing.score(), 0.0);
        assert_eq!(best(&[nothing.clone(), scored(-9.0)]), Some(1));
        assert_eq!(best(&[nothing.clone(), nothing]), Some(0));
    }

    #[test]
    fn prefix_gap_suffix() {
        assert_eq!(around(Some("a"), 2..=3, None), [Piece::Text("a".into()), Piece::Gap(2..=3)]);
        assert_eq!(around(Some(""), 1..=1, Some("b")), [Piece::Gap(1..=1), Piece::Text("b".into())]);
    }
}
