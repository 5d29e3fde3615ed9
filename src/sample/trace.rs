//! The recording of a denoising run: what each step committed and what it took back, enough to
//! show the canvas as it was after any step.

use serde::Serialize;

use super::request::{Canvas, Commit, Step};

/// What one denoising step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceStep {
    /// The step's number, 1-based; steps that committed nothing are not recorded.
    pub step: usize,
    /// Forward passes so far.
    pub nfe: usize,
    /// Tokens written, in position order.
    pub committed: Vec<Commit>,
    /// Positions that went back to the mask.
    pub remasked: Vec<u32>,
}

/// The recording of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    given: Vec<Option<u32>>,
    steps: Vec<TraceStep>,
    total: usize,
}

impl Trace {
    /// An empty recording of a run that starts from `canvas`.
    pub fn new(canvas: &Canvas) -> Self {
        let given = canvas.ids().iter().zip(canvas.fixed()).map(|(&id, &f)| f.then_some(id)).collect();
        Self { given, steps: Vec::new(), total: 0 }
    }

    /// Adds a step, as the sampler reports it.
    pub fn record(&mut self, step: &Step<'_>) {
        self.total = self.total.max(step.steps);
        self.steps.push(TraceStep {
            step: step.step,
            nfe: step.nfe,
            committed: step.committed.to_vec(),
            remasked: step.remasked.to_vec(),
        });
    }

    /// For each position the given token, or `None` where the run fills in.
    pub fn given(&self) -> &[Option<u32>] {
        &self.given
    }

    /// The steps in the order in which they were done.
    pub fn steps(&self) -> &[TraceStep] {
        &self.steps
    }

    /// Denoising steps in all, as the sampler announced them.
    pub fn total_steps(&self) -> usize {
        self.total
    }

    /// The canvas after the first `n` recorded steps; `None` where it is masked. Positions outside
    /// of the canvas are ignored, so any recording can be shown.
    pub fn canvas_after(&self, n: usize) -> Vec<Option<u32>> {
        let mut canvas = self.given.clone();
        for step in self.steps.iter().take(n) {
            for &position in &step.remasked {
                if let Some(cell) = canvas.get_mut(position as usize) {
                    *cell = None;
                }
            }
            for commit in &step.committed {
                if let Some(cell) = canvas.get_mut(commit.position as usize) {
                    *cell = Some(commit.token);
                }
            }
        }
        canvas
    }

    /// For each position the token that was committed there first; `None` where none was.
    pub fn first_commits(&self) -> Vec<Option<u32>> {
        let mut first = vec![None; self.given.len()];
        for commit in self.steps.iter().flat_map(|s| &s.committed) {
            if let Some(place) = first.get_mut(commit.position as usize) {
                place.get_or_insert(commit.token);
            }
        }
        first
    }

    /// Positions whose committed token was later replaced by a different one, in order.
    pub fn revised(&self) -> Vec<u32> {
        let first = self.first_commits();
        let mut revised = vec![false; self.given.len()];
        for commit in self.steps.iter().flat_map(|s| &s.committed) {
            let at = commit.position as usize;
            let (Some(Some(first)), Some(changed)) = (first.get(at), revised.get_mut(at)) else { continue };
            *changed |= *first != commit.token;
        }
        (0u32..).zip(revised).filter_map(|(p, r)| r.then_some(p)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Part;

    fn commit(position: u32, token: u32) -> Commit {
        Commit { position, token, log_prob: -0.5 }
    }

    fn step<'a>(n: usize, committed: &'a [Commit], remasked: &'a [u32]) -> Step<'a> {
        Step { request: 0, step: n, steps: 8, nfe: n, canvas: &[], masked: &[], committed, remasked }
    }

    #[test]
    fn replays_commits_and_remasks() {
        let canvas = Canvas::new(&[Part::Fixed(vec![7]), Part::Gap(2), Part::Fixed(vec![9])]);
        let mut trace = Trace::new(&canvas);
        trace.record(&step(1, &[commit(1, 4)], &[]));
        trace.record(&step(3, &[commit(2, 5)], &[1]));
        trace.record(&step(8, &[commit(1, 6)], &[]));
        assert_eq!(trace.canvas_after(0), [Some(7), None, None, Some(9)]);
        assert_eq!(trace.canvas_after(1), [Some(7), Some(4), None, Some(9)]);
        assert_eq!(trace.canvas_after(2), [Some(7), None, Some(5), Some(9)]);
        assert_eq!(trace.canvas_after(3), [Some(7), Some(6), Some(5), Some(9)]);
        assert_eq!(trace.canvas_after(99), trace.canvas_after(3));
        assert_eq!((trace.total_steps(), trace.steps()[1].step), (8, 3));
        assert_eq!(trace.revised(), [1]);
        assert_eq!(trace.first_commits(), [None, Some(4), Some(5), None]);
    }

    #[test]
    fn the_same_token_again_is_no_revision() {
        let mut trace = Trace::new(&Canvas::prefix(&[], 1));
        trace.record(&step(1, &[commit(0, 4)], &[]));
        trace.record(&step(2, &[commit(0, 4)], &[0]));
        assert!(trace.revised().is_empty());
        assert_eq!(trace.canvas_after(2), [Some(4)]);
    }

    #[test]
    fn positions_outside_of_the_canvas_are_ignored() {
        let mut trace = Trace::new(&Canvas::prefix(&[], 1));
        trace.record(&step(1, &[commit(5, 4)], &[6]));
        assert_eq!(trace.canvas_after(1), [None]);
        assert!(trace.revised().is_empty());
    }
}
