//! How well a model predicts tokens that it is not shown: negative log-likelihoods, many sequences in a pass.

use std::sync::Arc;

use crate::backend::{Forward, Mask};
use crate::error::{Error, Result};
use crate::model::{Arena, ArenaSize, Batch, Model};
use crate::shift;

/// A sequence, and the tokens of it that are scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// What the network sees.
    pub ids: Vec<u32>,
    /// Rows whose predictions are scored, ascending.
    pub rows: Vec<u32>,
    /// For each of them the right token.
    pub targets: Vec<u32>,
}

impl Probe {
    /// Masks `masked` positions of a clean sequence and scores those that a row predicts, in order.
    pub fn masked(clean: &[u32], masked: &[bool], mask_id: u32, shifted: bool) -> Self {
        let ids = clean.iter().zip(masked).map(|(&id, &m)| if m { mask_id } else { id }).collect();
        let (rows, targets) = shift::predicted(masked, shifted)
            .filter_map(|(row, at)| Some((row as u32, *clean.get(at)?)))
            .unzip();
        Self { ids, rows, targets }
    }

    /// A clean sequence whose tokens from position `first` on are each predicted from those before it.
    pub fn causal(clean: &[u32], first: usize) -> Self {
        let positions = first.max(1)..clean.len();
        let rows = positions.clone().map(|at| (at - 1) as u32).collect();
        Self { ids: clean.to_vec(), rows, targets: clean.get(positions).unwrap_or_default().to_vec() }
    }
}

/// Scores probes.
pub trait Likelihood {
    /// For each probe the negative log-likelihoods of its targets, in nats; every token sees all others, or with `causal`
    /// those before it. A number does not depend on what else is asked for.
    ///
    /// # Errors
    /// [`Error::Request`] for ids outside of the vocabulary and sequences beyond the model's positions;
    /// [`Error::Memory`]; [`Error::NonFinite`] where a likelihood is no number.
    fn nll(&mut self, probes: &[Probe], causal: bool) -> Result<Vec<Vec<f64>>>;
}

/// [`Likelihood`] under a model, with buffers that are kept.
pub struct Scorer<B: Forward> {
    model: Arc<Model<B>>,
    arena: Option<(Arena<B>, usize)>,
    batch: Batch,
    targets: Vec<u32>,
}

impl<B: Forward> Scorer<B> {
    pub fn new(model: Arc<Model<B>>) -> Self {
        Self { model, arena: None, batch: Batch::default(), targets: Vec::new() }
    }

    /// Makes room for passes of `tokens` tokens.
    fn arena(&mut self, tokens: usize) -> Result<&mut Arena<B>> {
        if self.arena.as_ref().is_none_or(|(_, room)| *room < tokens) {
            // The one before gives its memory back first.
            self.arena = None;
            let size = ArenaSize { tokens, rows: tokens };
            let longest = self.model.config().max_positions.min(tokens);
            let arena = Arena::new(self.model.backend(), self.model.config(), size, longest)?;
            self.arena = Some((arena, tokens));
        }
        self.arena.as_mut().map(|(arena, _)| arena).ok_or_else(|| Error::request("no activations"))
    }

    fn pass(&mut self, probes: &[&Probe], room: usize, causal: bool) -> Result<Vec<f64>> {
        self.batch.clear();
        self.targets.clear();
        for probe in probes {
            self.batch.push(&probe.ids, probe.rows.iter().copied());
            self.targets.extend_from_slice(&probe.targets);
        }
        let (model, batch) = (Arc::clone(&self.model), std::mem::take(&mut self.batch));
        let targets = std::mem::take(&mut self.targets);
        let arena = self.arena(room)?;
        let mask = if causal { Mask::Causal } else { Mask::Full };
        let nll = model.backend().run(|| {
            model.forward(&batch, arena, mask)?;
            model.nll(&targets, arena)
        });
        (self.batch, self.targets) = (batch, targets);
        nll
    }
}

impl<B: Forward> Likelihood for Scorer<B> {
    fn nll(&mut self, probes: &[Probe], causal: bool) -> Result<Vec<Vec<f64>>> {
        let most = self.model.config().max_positions;
        for probe in probes {
            let fits = probe.rows.len() == probe.targets.len()
                && probe.rows.last().is_none_or(|&row| (row as usize) < probe.ids.len());
            if !fits || probe.ids.len() > most {
                return Err(Error::request(format!(
                    "a sequence of {} tokens with {} rows and {} targets cannot be scored: expected at most {most} \
                     tokens, and a target for each row",
                    probe.ids.len(),
                    probe.rows.len(),
                    probe.targets.len()
                )));
            }
            let vocab = self.model.config().vocab_size;
            if let Some(id) = probe.targets.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::request(format!(
                    "token id {id} is not in the vocabulary: expected 0 to {}",
                    vocab.saturating_sub(1)
                )));
            }
        }
        let longest = probes.iter().map(|p| p.ids.len()).max().unwrap_or(0);
        let all: usize = probes.iter().map(|p| p.ids.len()).sum();
        let room = self.model.backend().worthwhile_rows().min(all).max(longest).max(1);
        let mut out: Vec<Vec<f64>> = probes.iter().map(|_| Vec::new()).collect();
        let mut order: Vec<usize> = (0..probes.len()).filter(|&i| !probes[i].rows.is_empty()).collect();
        // Passes of like lengths; equal ones stay in order.
        order.sort_by_key(|&i| std::cmp::Reverse(probes[i].ids.len()));
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |&&i: &&usize| {
                tokens += probes[i].ids.len();
                tokens <= room
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let group: Vec<&Probe> = now.iter().map(|&i| &probes[i]).collect();
            let nll = self.pass(&group, room, causal)?;
            let mut from = 0;
            for (&i, probe) in now.iter().zip(&group) {
                let mine = nll.get(from..from + probe.rows.len()).unwrap_or_default();
                from += probe.rows.len();
                if let Some(bad) = mine.iter().find(|x| !x.is_finite()) {
                    return Err(Error::NonFinite {
                        place: "the likelihood of a token".into(),
                        found: bad.to_string(),
                        hint: "the weights are broken, or too large for the number format".into(),
                    });
                }
                if let Some(out) = out.get_mut(i) {
                    *out = mine.to_vec();
                }
            }
            rest = later;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_hide_what_they_score() {
        let probe = Probe::masked(&[7, 8, 9, 10], &[true, false, true, true], 0, true);
        assert_eq!(probe.ids, [0, 8, 0, 0]);
        // Nothing predicts position 0 under the shift.
        assert_eq!((probe.rows, probe.targets), (vec![1, 2], vec![9, 10]));
        let probe = Probe::masked(&[7, 8, 9], &[true, false, true], 0, false);
        assert_eq!((probe.rows, probe.targets), (vec![0, 2], vec![7, 9]));
    }

    #[test]
    fn causal_probes_begin_where_they_are_told() {
        let probe = Probe::causal(&[7, 8, 9, 10], 2);
        assert_eq!((probe.rows, probe.targets), (vec![1, 2], vec![9, 10]));
        assert_eq!(Probe::causal(&[7, 8], 0).targets, [8]);
        assert!(Probe::causal(&[7], 0).targets.is_empty());
    }
}
