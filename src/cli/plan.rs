//! `lacuna plan`: the countdown game, solved by the built-in planner and checked.

use clap::Args as ClapArgs;
use serde_json::json;

use super::Context;
use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::common::{Speller, check_mask, filled_ids};
use super::device;
use super::eval::countdown::{STEPS, surest_first};
use super::record::failure;
use super::run::Session;
use super::sampling::Sampling;
use super::terminal::{note, printable, println};
use super::trace::{Recording, Run};
use crate::error::{Error, Result};
use crate::eval::countdown::{Beginnings, Equation, FEWEST, MOST, Problem, check, solve, written};
use crate::io::ModelFiles;
use crate::sample::{Canvas, Order, Request};

const EXAMPLES: &str = "\
The numbers are combined by + - * /, each used once, every result but the last used
again, until the target is there. The built-in planner, a masked diffusion model that
lacuna trained on such problems (numbers from 1 to 99, targets from 10 to 100), fills
all equations in at once. What it writes is checked. The first try is the surest; if it
is wrong, freer ones follow (temperature 1.3, confidence noise 3), up to --tries. Right
equations that a wrong try begins with are kept: later tries fill in the rest, each
beginning in its turn. --watch shows the first three tries and the one that is right.

Unless the flags say otherwise: 20 steps, the surest positions first, committed tokens
may return to the mask, confidence noise 0.5, the most probable tokens.

Examples:
  lacuna plan 86 28 54 --target 60
  lacuna plan 86 28 13 31 --target 96 --watch
  lacuna plan 86 28 54 --target 60 --trace plan.html    a page that replays it
  lacuna plan 86 28 54 --target 60 --json";

/// Tries that are told of and that `--watch` shows.
const SHOWN: u32 = 3;

/// The arguments of `plan`.
#[derive(ClapArgs, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The numbers, each used once
    #[arg(value_name = "N", required = true, num_args = 1..)]
    numbers: Vec<u64>,

    /// The number to reach
    #[arg(long, value_name = "N")]
    target: u64,

    /// Samples until one is right, at most
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true)]
    tries: u32,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl Args {
    /// Whether errors are wanted as objects.
    pub fn json(&self) -> bool {
        self.output.json
    }
}

/// Runs `plan`.
///
/// # Errors
/// [`Error::Request`] for numbers that are no problem, or when no sample was right; any other [`Error`].
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let problem = Problem { numbers: args.numbers.clone(), target: args.target };
    if !(FEWEST..=MOST).contains(&problem.numbers.len()) {
        return Err(Error::request(format!(
            "{} numbers: expected {FEWEST} to {MOST}, then --target N",
            problem.numbers.len()
        )));
    }
    if args.tries == 0 {
        return Err(Error::request("--tries 0: expected 1 or more"));
    }
    let Some(longest) = solve(&problem).map(|solution| written(&solution).len()) else {
        return Err(Error::request(format!(
            "{problem}: the problem has no solution, a full search finds none"
        )));
    };
    let typed = args.sampling.sampling(&args.model);
    let mut sampling = typed.clone();
    surest_first(&mut sampling);
    sampling.steps = sampling.steps.or(Some(STEPS));
    device::check(&args.model.device)?;
    let files = ModelFiles::find(args.model.model.as_deref().or(Some("planner")))?;
    check_mask(&files, &sampling)?;
    let request = sampling.request(canvas(&files, &problem, &[], longest)?)?;
    let freer = freer(&request, &typed);
    let speller = Speller::new(&files);
    let engine = device::load(&args.model.device, &files, context)?;
    let tokens = u64::from(args.tries) * request.canvas.maskable() as u64;
    let mut session = Session::new(&*engine, speller, &args.output, context, tokens)?;
    let (mut runs, mut solved, mut last) = (Vec::new(), None, String::new());
    let (mut nfe, mut tried, mut interrupted) = (0, 0, false);
    let (mut beginnings, room) = (Beginnings::new(&problem), request.canvas.maskable());
    for sequence in 0..args.tries {
        let of_try = if sequence == 0 { &request } else { &freer };
        let mut request = Request { sequence, ..of_try.clone() };
        let kept = beginnings.next_to_try().to_vec();
        if !kept.is_empty() {
            request.canvas = canvas(&files, &problem, &kept, longest)?;
        }
        if args.output.watch && tried == SHOWN {
            session.show(false);
            said(args, "more tries, unseen; the one that is right is shown again");
        }
        let outcome = session.run(std::slice::from_ref(&request))?;
        interrupted = outcome.interrupted;
        let Some(result) = outcome.results.into_iter().next() else { return Err(Error::Cancelled) };
        let value =
            result.as_ref().map_or_else(failure, |g| json!({"tokens": g.tokens, "nfe": g.nfe, "end": g.end}));
        if let Some(trace) = outcome.traces.into_iter().next() {
            let label = format!("try {}", sequence + 1);
            runs.push(Run { label, request: request.clone(), trace, result: value });
        }
        let generation = match result {
            Err(Error::Cancelled) => break,
            other => other?,
        };
        nfe += generation.nfe;
        tried += 1;
        last = beginning(&kept) + &speller.decode(&filled_ids(&request.canvas, &generation))?;
        match check(&problem, &last) {
            Ok(equations) => {
                solved = Some((equations, request));
                break;
            }
            Err(fault) if tried <= SHOWN => {
                said(args, &format!("try {tried}: {}: {fault}", printable(&last)));
            }
            Err(_) => {}
        }
        // With one step a try ends where it is stopped, and is whole.
        if interrupted {
            break;
        }
        beginnings.learn(&problem, &last, |kept| beginning(kept).len() < room);
    }
    let seconds = session.seconds();
    if let (Some((_, request)), true) = (&solved, args.output.watch && tried > SHOWN) {
        // The same request gives the same answer, which is checked already.
        session.show(true);
        session.run(std::slice::from_ref(request))?;
    }
    drop(session);
    if let Some(path) = &args.output.trace {
        let (piece, special) = (|id| speller.piece(id), |id| speller.is_special(id));
        Recording { model: &files.name, runs: &runs, piece: &piece, special: &special }.write(path)?;
    }
    let Some((equations, _)) = solved else {
        if interrupted {
            return Err(Error::Cancelled);
        }
        return Err(Error::request(format!(
            "no solution in {tried} tries, the last one {last}; there is one: more --tries, another --seed or a larger model may find it"
        )));
    };
    if args.output.json {
        let equations: Vec<String> = equations.iter().map(ToString::to_string).collect();
        let value = json!({
            "numbers": problem.numbers, "target": problem.target, "equations": equations, "checked": true,
            "tries": tried, "nfe": nfe, "seconds": seconds, "seed": request.seed, "model": files.name,
        });
        return println(&value.to_string());
    }
    println(&equations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let times = if tried == 1 { "the first try".to_owned() } else { format!("try {tried}") };
    let (work, seed) = (format!("{nfe} forward passes (NFE), {seconds:.3} s"), request.seed);
    said(args, &format!("{problem} solved at {times}, checked; {work}, seed {seed}"));
    Ok(())
}

/// A note, unless nothing but errors is wanted.
fn said(args: &Args, text: &str) {
    if !args.output.quiet {
        note(text);
    }
}

/// The request of tries behind the first: what was not typed is left to chance.
fn freer(request: &Request, typed: &Sampling) -> Request {
    let mut freer = request.clone();
    if typed.temperature.is_none() && typed.greedy.is_none() {
        freer.temperature = 1.3;
    }
    if let (Order::Confidence { noise, .. }, None) = (&mut freer.order, typed.confidence_noise) {
        *noise = 3.0;
    }
    freer
}

/// Equations that stand, as they are written before others.
fn beginning(kept: &[Equation]) -> String {
    kept.iter().map(|equation| format!("{equation},")).collect()
}

/// `[bos] problem [sep]`, equations that stand, and a gap to the end of the context, as the planner was trained. `longest`
/// characters of solution must fit.
fn canvas(files: &ModelFiles, problem: &Problem, kept: &[Equation], longest: usize) -> Result<Canvas> {
    let special = &files.special;
    let mut ids: Vec<u32> = special.bos.as_ref().map(|s| s.id).into_iter().collect();
    ids.extend(Speller::new(files).encode(&problem.to_string())?);
    ids.extend(special.sep.as_ref().map(|s| s.id));
    let context = files.config.max_positions;
    if ids.len() + longest > context {
        return Err(Error::request(format!(
            "{problem}: the problem and its solution need {} tokens, the context of {} holds {context}; give fewer or \
             smaller numbers, or another --model",
            ids.len() + longest,
            files.name
        )));
    }
    if !kept.is_empty() {
        ids.extend(Speller::new(files).encode(&beginning(kept))?);
    }
    let room = context.saturating_sub(ids.len());
    Ok(Canvas::prefix(&ids, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_that_stand_are_given_behind_the_problem() {
        let files = ModelFiles::find(Some("planner")).unwrap();
        let problem: Problem = "86,28,54,60".parse().unwrap();
        let kept: Vec<Equation> = vec!["86-54=32".parse().unwrap()];
        let given = |kept: &[Equation]| {
            let canvas = canvas(&files, &problem, kept, 20).unwrap();
            let ids: Vec<u32> = canvas
                .ids()
                .iter()
                .zip(canvas.fixed())
                .filter(|(_, fixed)| **fixed)
                .map(|(id, _)| *id)
                .collect();
            assert_eq!(ids.len() + canvas.maskable(), files.config.max_positions);
            Speller::new(&files).decode(&ids).unwrap()
        };
        let (alone, with) = (given(&[]), given(&kept));
        assert_eq!(with, alone.clone() + "86-54=32,");
        assert!(alone.contains("86,28,54,60"), "{alone}");
        assert_eq!(beginning(&kept), "86-54=32,");
    }
}
