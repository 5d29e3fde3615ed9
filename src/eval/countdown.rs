//! The countdown game: combine all given numbers by + - * / to reach a target, each number used once, every
//! result used but the last one, which is the target.
//!
//! A problem is written `86,28,13,31,96` (the numbers, then the target), a solution as equations over two numbers
//! at a time: `86+28=114,31-13=18,114-18=96`. Form, range of numbers and the order in which solutions are looked for
//! are those of Gandhi et al., "Stream of search" (2024), on whose problems Ye et al., "Beyond autoregression" (2024),
//! compare diffusion with autoregression. Numbers are whole and never negative, and division leaves no remainder.

mod beginnings;

use std::fmt;
use std::str::FromStr;

use crate::rng::{Purpose, Rng, philox4x32_10};

pub use beginnings::Beginnings;

/// Numbers of a problem, at least.
pub const FEWEST: usize = 2;
/// Numbers of a problem, at most.
pub const MOST: usize = 6;
/// Largest number that a problem may be made of.
pub const LARGEST: u32 = 999;
/// One problem in so many is for tests.
const TEST_SHARE: u32 = 16;
/// Seed of the generator that tells training problems from test problems: part of the definition of the splits.
const SPLIT_SEED: u64 = 0xC0DE_D014;

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    pub numbers: Vec<u64>,
    pub target: u64,
}

/// How two numbers are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Operator {
    /// In the order in which solutions are looked for.
    pub const ALL: [Operator; 4] = [Operator::Add, Operator::Multiply, Operator::Subtract, Operator::Divide];

    pub const fn sign(self) -> char {
        match self {
            Operator::Add => '+',
            Operator::Subtract => '-',
            Operator::Multiply => '*',
            Operator::Divide => '/',
        }
    }

    /// The result; `None` where it is negative, not whole, or beyond 64 bits.
    pub fn apply(self, left: u64, right: u64) -> Option<u64> {
        match self {
            Operator::Add => left.checked_add(right),
            Operator::Subtract => left.checked_sub(right),
            Operator::Multiply => left.checked_mul(right),
            Operator::Divide => {
                let whole = left.checked_div(right)?;
                (whole.checked_mul(right)? == left).then_some(whole)
            }
        }
    }
}

/// One line of a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equation {
    pub left: u64,
    pub operator: Operator,
    pub right: u64,
    pub result: u64,
}

impl Equation {
    /// Whether it is true.
    pub fn holds(&self) -> bool {
        self.operator.apply(self.left, self.right) == Some(self.result)
    }
}

impl fmt::Display for Equation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}={}", self.left, self.operator.sign(), self.right, self.result)
    }
}

impl FromStr for Equation {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (terms, result) = text.split_once('=').ok_or(())?;
        let (at, sign) = terms.char_indices().find(|(_, c)| !c.is_ascii_digit()).ok_or(())?;
        let operator = Operator::ALL.into_iter().find(|o| o.sign() == sign).ok_or(())?;
        let (left, right) = (number(&terms[..at])?, number(&terms[at + sign.len_utf8()..])?);
        Ok(Self { left, operator, right, result: number(result)? })
    }
}

/// A whole number of digits alone.
fn number(text: &str) -> Result<u64, ()> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(());
    }
    text.parse().map_err(drop)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for number in &self.numbers {
            write!(f, "{number},")?;
        }
        write!(f, "{}", self.target)
    }
}

impl FromStr for Problem {
    type Err = String;

    /// Reads `86,28,13,31,96`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{FEWEST} to {MOST} numbers and a target, such as 86,28,13,31,96, got {:?}",
                text.chars().take(80).collect::<String>()
            )
        };
        let all: Result<Vec<u64>, ()> = text.split(',').map(|part| number(part.trim())).collect();
        let mut numbers = all.map_err(|()| expected())?;
        let target = numbers.pop().ok_or_else(expected)?;
        if !(FEWEST..=MOST).contains(&numbers.len()) {
            return Err(expected());
        }
        Ok(Self { numbers, target })
    }
}

/// Why an answer is no solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An equation that cannot be read, by its place from 1.
    Unreadable(usize),
    /// Not one equation less than there are numbers.
    Count { expected: usize, got: usize },
    /// An equation whose result is wrong.
    False(usize),
    /// An equation with a number that is not there, or not any more.
    NotThere { equation: usize, number: u64 },
    /// All is right but for the last result.
    Misses { expected: u64, got: u64 },
}

impl Fault {
    /// A word for tables.
    pub const fn kind(&self) -> &'static str {
        match self {
            Fault::Unreadable(_) => "unreadable",
            Fault::Count { .. } => "count",
            Fault::False(_) => "false",
            Fault::NotThere { .. } => "not-there",
            Fault::Misses { .. } => "misses",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unreadable(n) => write!(f, "equation {n} cannot be read"),
            Fault::Count { expected, got } => write!(f, "expected {expected} equations, got {got}"),
            Fault::False(n) => write!(f, "equation {n} is false"),
            Fault::NotThere { equation, number } => {
                write!(f, "equation {equation} uses {number}, which is not there to be used")
            }
            Fault::Misses { expected, got } => write!(f, "the last result is {got}, not {expected}"),
        }
    }
}

/// The equations of an answer as it is written.
///
/// # Errors
/// [`Fault::Unreadable`].
pub fn equations(answer: &str) -> Result<Vec<Equation>, Fault> {
    let parts = answer.trim().split(',').enumerate();
    parts.map(|(i, part)| part.trim().parse().map_err(|()| Fault::Unreadable(i + 1))).collect()
}

/// Whether `answer` solves `problem`: every equation is true, uses numbers that are given or results of earlier
/// equations, each once, and the last result is the target with nothing left over.
///
/// # Errors
/// The first [`Fault`].
pub fn check(problem: &Problem, answer: &str) -> Result<Vec<Equation>, Fault> {
    let equations = equations(answer)?;
    let expected = problem.numbers.len().saturating_sub(1);
    if equations.len() != expected {
        return Err(Fault::Count { expected, got: equations.len() });
    }
    let mut there = problem.numbers.clone();
    for (i, equation) in equations.iter().enumerate() {
        take(&mut there, equation, i + 1)?;
    }
    match there[..] {
        [last] if last == problem.target => Ok(equations),
        _ => Err(Fault::Misses { expected: problem.target, got: there.first().copied().unwrap_or_default() }),
    }
}

/// An equation's numbers are taken from those that are there, and its result put to them.
///
/// # Errors
/// A number that is not there, or an equation that is false; `nth` says which.
fn take(there: &mut Vec<u64>, equation: &Equation, nth: usize) -> Result<(), Fault> {
    for number in [equation.left, equation.right] {
        let place = there.iter().position(|&n| n == number);
        there.swap_remove(place.ok_or(Fault::NotThere { equation: nth, number })?);
    }
    if !equation.holds() {
        return Err(Fault::False(nth));
    }
    there.push(equation.result);
    Ok(())
}

/// The first solution by depth-first search: pairs in the order of the list, of a pair + * - /, the result going to
/// the end of the list.
pub fn solve(problem: &Problem) -> Option<Vec<Equation>> {
    let mut found = Vec::with_capacity(problem.numbers.len());
    search(&problem.numbers, problem.target, &mut found).then_some(found)
}

fn search(numbers: &[u64], target: u64, found: &mut Vec<Equation>) -> bool {
    if let [last] = numbers {
        return *last == target;
    }
    for i in 0..numbers.len() {
        for j in i + 1..numbers.len() {
            let (large, small) = (numbers[i].max(numbers[j]), numbers[i].min(numbers[j]));
            for operator in Operator::ALL {
                let ordered = matches!(operator, Operator::Subtract | Operator::Divide);
                let (left, right) = if ordered { (large, small) } else { (numbers[i], numbers[j]) };
                let Some(result) = operator.apply(left, right) else { continue };
                let mut rest = [0; MOST];
                let mut len = 0;
                for (at, &number) in numbers.iter().enumerate() {
                    if at != i && at != j {
                        rest[len] = number;
                        len += 1;
                    }
                }
                rest[len] = result;
                found.push(Equation { left, operator, right, result });
                if search(&rest[..=len], target, found) {
                    return true;
                }
                found.pop();
            }
        }
    }
    false
}

/// Which of two disjoint sets a problem is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    /// The split of a problem: it depends on the target and on the numbers, not on their order, nor on any seed.
    pub fn of(problem: &Problem) -> Self {
        let mut sorted = problem.numbers.clone();
        sorted.sort_unstable();
        let mut words = [0; 2];
        for number in sorted.into_iter().chain([problem.target, problem.numbers.len() as u64]) {
            let [a, b, ..] = philox4x32_10(
                [number as u32, (number >> 32) as u32, words[0], words[1]],
                [SPLIT_SEED as u32, (SPLIT_SEED >> 32) as u32],
            );
            words = [a, b];
        }
        if words[0].is_multiple_of(TEST_SHARE) { Split::Test } else { Split::Train }
    }
}

/// What problems are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many numbers.
    pub numbers: usize,
    /// Numbers are 1 to this.
    pub largest: u32,
    /// Least and greatest target.
    pub targets: (u32, u32),
}

impl Rules {
    /// Numbers from 1 to 99 and targets from 10 to 100, as in "Stream of search".
    pub const fn new(numbers: usize) -> Self {
        Self { numbers, largest: 99, targets: (10, 100) }
    }
}

/// Problems with solutions, one after the other: candidate `n` is a function of the seed and n.
#[derive(Clone, Debug)]
pub struct Problems {
    rules: Rules,
    split: Split,
    rng: Rng,
    next: u32,
}

impl Problems {
    /// `rules` must be within [`FEWEST`], [`MOST`] and [`LARGEST`].
    pub fn new(rules: Rules, split: Split, seed: u64) -> Self {
        debug_assert!((FEWEST..=MOST).contains(&rules.numbers) && (1..=LARGEST).contains(&rules.largest));
        Self { rules, split, rng: Rng::new(seed), next: 0 }
    }

    /// Candidates looked at.
    pub fn looked_at(&self) -> u32 {
        self.next
    }

    /// The next candidate, if it is in the split and has a solution; the outer `None` when there are no more.
    pub fn candidate(&mut self) -> Option<Option<(Problem, Vec<Equation>)>> {
        let n = self.next;
        self.next = n.checked_add(1)?;
        let draw = |below: u32, position: u32| self.rng.below(below, Purpose::Problem, n, 0, position);
        let Rules { numbers, largest, targets: (least, greatest) } = self.rules;
        let numbers = (0..numbers as u32).map(|i| u64::from(1 + draw(largest, i))).collect();
        let target = u64::from(least + draw(greatest.saturating_sub(least) + 1, MOST as u32));
        let problem = Problem { numbers, target };
        let mine = Split::of(&problem) == self.split;
        Some(mine.then(|| solve(&problem)).flatten().map(|solution| (problem, solution)))
    }
}

/// A solution as it is written.
pub fn written(solution: &[Equation]) -> String {
    solution.iter().map(Equation::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_example_is_what_the_search_finds() {
        let problem: Problem = "86,28,13,31,96".parse().unwrap();
        assert_eq!(problem.to_string(), "86,28,13,31,96");
        assert_eq!(written(&solve(&problem).unwrap()), "86+28=114,31-13=18,114-18=96");
    }

    #[test]
    fn faults_by_kind() {
        let problem: Problem = "86,28,13,31,96".parse().unwrap();
        let fault = |answer: &str| check(&problem, answer).unwrap_err();
        assert!(check(&problem, "86+28=114,31-13=18,114-18=96").is_ok());
        assert!(check(&problem, "31-13=18,86+28=114,114-18=96").is_ok(), "another order");
        assert_eq!(fault("86+28=115,31-13=18,115-18=97"), Fault::False(1));
        assert_eq!(fault("86+28=114,86-13=73,114-73=41"), Fault::NotThere { equation: 2, number: 86 });
        assert_eq!(fault("86+28=114,31+13=44,114-44=70"), Fault::Misses { expected: 96, got: 70 });
        assert_eq!(fault("86+28=114"), Fault::Count { expected: 3, got: 1 });
        for text in [
            "",
            "86+28",
            "86+28=",
            "=1",
            "86 plus 28=114",
            "+=,",
            "86+-28=58",
            "1e9+1=2",
            "99999999999999999999+1=2",
        ] {
            assert!(matches!(fault(text), Fault::Unreadable(1)), "{text}");
        }
    }

    #[test]
    fn arithmetic_stays_whole() {
        assert_eq!(Operator::Divide.apply(7, 2), None);
        assert_eq!(Operator::Divide.apply(7, 0), None);
        assert_eq!(Operator::Divide.apply(0, 7), Some(0));
        assert_eq!(Operator::Subtract.apply(3, 4), None);
        assert_eq!(Operator::Multiply.apply(u64::MAX, 2), None);
    }

    #[test]
    fn the_order_of_numbers_does_not_change_the_split() {
        let (a, b): (Problem, Problem) = ("3,50,7,40".parse().unwrap(), "50,7,3,40".parse().unwrap());
        assert_eq!(Split::of(&a), Split::of(&b));
    }
}
