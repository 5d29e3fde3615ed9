//! Right equations that wrong answers begin with, and which of them to go on from.

use std::cmp::Reverse;

use super::{Equation, Problem, take};

/// The right equations that the tries at a problem began with, and the empty beginning. Two that leave the same numbers
/// are one.
#[derive(Clone, Debug)]
pub struct Beginnings {
    known: Vec<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    equations: Vec<Equation>,
    /// Sorted.
    left: Vec<u64>,
    tries: u32,
}

impl Beginnings {
    /// Nothing is known but the problem.
    pub fn new(problem: &Problem) -> Self {
        let mut left = problem.numbers.clone();
        left.sort_unstable();
        Self { known: vec![Known { equations: Vec::new(), left, tries: 0 }] }
    }

    /// What the next try goes on from: the beginning that was tried least, of several the longest, of those the first
    /// found. So all that was found has its turn, however often the model writes one of them.
    pub fn next_to_try(&mut self) -> &[Equation] {
        let least = self.known.iter_mut().min_by_key(|k| (k.tries, Reverse(k.equations.len())));
        least.map_or(&[], |known| {
            known.tries += 1;
            &known.equations
        })
    }

    /// Every beginning of a wrong answer whose equations are true and of numbers that are there, if it is new and `fits`
    /// holds of it. A last equation is never kept.
    pub fn learn(&mut self, problem: &Problem, answer: &str, fits: impl Fn(&[Equation]) -> bool) {
        let (mut there, mut equations) = (problem.numbers.clone(), Vec::new());
        for part in answer.split(',').take(problem.numbers.len().saturating_sub(2)) {
            let Ok(equation) = part.trim().parse::<Equation>() else { return };
            if take(&mut there, &equation, equations.len() + 1).is_err() {
                return;
            }
            equations.push(equation);
            let mut left = there.clone();
            left.sort_unstable();
            if self.known.iter().all(|known| known.left != left) && fits(&equations) {
                self.known.push(Known { equations: equations.clone(), left, tries: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::written;
    use super::*;

    #[test]
    fn what_may_stand_when_an_answer_is_wrong() {
        let problem: Problem = "86,28,13,31,96".parse().unwrap();
        for (answer, kept) in [
            ("86+28=114,31-13=17,114-17=97", "86+28=114"),
            ("86+28=114,31-13=18,114-18=95", "86+28=114,31-13=18"),
            ("86+28=114, 31-13=18,114-18=96", "86+28=114,31-13=18"),
            ("86+28=114,86-13=73,114-73=41", "86+28=114"),
            ("86+28=114,31-13=18=", "86+28=114"),
            ("86+28=115,31-13=18,114-18=96", ""),
            (",86+28=114", ""),
            ("", ""),
        ] {
            let mut beginnings = Beginnings::new(&problem);
            beginnings.learn(&problem, answer, |_| true);
            assert_eq!(written(beginnings.next_to_try()), kept, "{answer}");
        }
        let two: Problem = "1,2,3".parse().unwrap();
        let mut beginnings = Beginnings::new(&two);
        beginnings.learn(&two, "1+2=3", |_| true);
        assert!(beginnings.next_to_try().is_empty());
    }

    #[test]
    fn every_beginning_has_its_next_to_try() {
        let problem: Problem = "86,28,13,31,96".parse().unwrap();
        let mut beginnings = Beginnings::new(&problem);
        let always = |_: &[Equation]| true;
        assert_eq!(written(beginnings.next_to_try()), "");
        beginnings.learn(&problem, "86-28=58,31+13=44,58+44=96", always);
        assert_eq!(written(beginnings.next_to_try()), "86-28=58,31+13=44", "the longest of what is new");
        beginnings.learn(&problem, "86-28=58,31+13=44,58+44=102", always);
        assert_eq!(written(beginnings.next_to_try()), "86-28=58");
        beginnings.learn(&problem, "86-28=58,31+13=44,58-44=96", always);
        // All had one try: the longest again, then the next, then the empty one. The same numbers left are nothing new.
        beginnings.learn(&problem, "13+31=44,86-28=58,58+44=96", always);
        let turns: Vec<String> = (0..4).map(|_| written(beginnings.next_to_try())).collect();
        assert_eq!(turns, ["13+31=44", "86-28=58,31+13=44", "86-28=58", "13+31=44"]);
        assert_eq!(written(beginnings.next_to_try()), "");
        beginnings.learn(&problem, "28+86=114,1+1=2", |equations| equations.is_empty());
        assert_eq!(written(beginnings.next_to_try()), "86-28=58,31+13=44", "what does not fit is not kept");
    }
}
