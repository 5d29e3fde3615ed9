//! Cases of `cuda/commit.cu`: against `diffusion::reveal` on random canvases and draws, exactly.

use super::{Case, Grid, Random, Rig, Verdict, judge_exact};
use crate::backend::cuda::{Buffer, Canvas, Device, Draws, Format, Needs, Record};
use crate::backend::{NO_TOKEN, NoiseAddress, RankWords, threshold_words};
use crate::diffusion::reveal::{above_threshold, gumbel, most_confident};
use crate::diffusion::shift;
use crate::element::Dtype;
use crate::error::Result;
use crate::rng::{Purpose, Rng};

const MASK: u32 = 900;
const EOS: u32 = 3;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let mut cases = Vec::new();
    // Lengths of the sequences of a canvas.
    let shapes: Vec<&'static [usize]> = grid
        .choose(&[&[5, 1, 40], &[17, 0, 3]], &[&[300, 1, 2, 700, 33], &[64; 9], &[1030, 257], &[0, 2500, 0]]);
    for lengths in shapes {
        let shape = format!("lengths {lengths:?}");
        let mut add = |kernel: &str, run: fn(&Rig<'_, D>, &[usize]) -> Result<Verdict>| {
            cases.push(Case::new("commit", kernel, shape.clone(), move |rig: &Rig<'_, D>| run(rig, lengths)));
        };
        add("commit_plan", plan);
        add("commit_ranked", ranked);
        add("commit_threshold", threshold);
        add("commit_answer", answer);
    }
    cases
}

/// Canvases, and what was drawn for them, on the host.
#[derive(Clone, Debug, Default)]
struct Host {
    starts: Vec<u32>,
    ids: Vec<u32>,
    masked: Vec<u32>,
    committed_at: Vec<u32>,
    record: Vec<u32>,
    steps: Vec<u32>,
    first_tokens: Vec<u32>,
    shifted: bool,
    /// By draw. Scores are a few values, so that many are equal.
    tokens: Vec<u32>,
    log_prob: Vec<f32>,
    confidence: Vec<f32>,
    given: Vec<f32>,
    flags: Vec<u32>,
    /// The needs of all sequences.
    need_starts: Vec<u32>,
    needs: Vec<u32>,
    slots: Vec<u32>,
}

impl Host {
    fn new(random: &mut Random, lengths: &[usize], all: bool) -> Self {
        let mut host = Self { starts: vec![0], need_starts: vec![0], ..Self::default() };
        host.shifted = random.below(2) == 0;
        let coarse = random.below(2) == 0;
        let score = |random: &mut Random| {
            let x = random.number() as f32;
            if coarse { (x * 4.0).round() * 0.5 - 2.0 } else { 4.0 * x - 4.0 }
        };
        for &len in lengths {
            let start = host.ids.len();
            let share = random.below(5);
            for p in 0..len {
                let masked = random.below(4) < share;
                host.masked.push(masked.into());
                host.ids.push(if masked { MASK } else { random.below(6) as u32 });
                if !(masked || all && random.below(2) == 0) {
                    continue;
                }
                host.needs.push((start + p) as u32);
                if shift::row_for(p, host.shifted).is_none() {
                    host.slots.push(NO_TOKEN);
                    continue;
                }
                host.slots.push(host.tokens.len() as u32);
                host.tokens.push(random.below(6) as u32);
                host.log_prob.push(score(random));
                host.confidence.push(if random.below(30) == 0 { -0.0 } else { score(random) });
                host.given.push(if random.below(30) == 0 { f32::NEG_INFINITY } else { score(random) });
                host.flags.push(if random.below(40) == 0 { 1 } else { 0 });
            }
            host.starts.push(host.ids.len() as u32);
            host.need_starts.push(host.needs.len() as u32);
            host.steps.push(random.below(9) as u32);
            host.first_tokens.push(random.below(6) as u32);
        }
        host.committed_at = vec![7; host.ids.len()];
        host.record = vec![5; host.ids.len()];
        host
    }

    fn commit(&mut self, sequence: usize, position: usize, slot: Option<usize>) {
        self.ids[position] = slot.map_or(self.first_tokens[sequence], |slot| self.tokens[slot]);
        self.masked[position] = 0;
        self.committed_at[position] = self.steps[sequence] + 1;
        self.record[position] = slot.map_or(0.0, |slot| self.log_prob[slot]).to_bits();
    }

    /// Of one sequence those needs for which something was drawn: position, draw.
    fn drawn(&self, sequence: usize) -> Vec<(usize, Option<usize>)> {
        (self.need_starts[sequence] as usize..self.need_starts[sequence + 1] as usize)
            .map(|i| (self.needs[i] as usize, (self.slots[i] != NO_TOKEN).then_some(self.slots[i] as usize)))
            .filter(|(_, slot)| slot.is_none_or(|slot| self.flags[slot] == 0))
            .collect()
    }
}

/// The same on the device.
struct OnDevice<D: Device> {
    ids: Buffer<D>,
    masked: Buffer<D>,
    starts: Buffer<D>,
    sequences: usize,
    steps: Buffer<D>,
    committed_at: Buffer<D>,
    record: Buffer<D>,
    draws: Draws<D>,
    need_starts: Buffer<D>,
    needs: Buffer<D>,
    slots: Buffer<D>,
    first_tokens: Buffer<D>,
    longest: usize,
}

impl<D: Device> OnDevice<D> {
    fn new(device: &D, host: &Host) -> Result<Self> {
        let u32s = |numbers: &[u32]| Buffer::of(device, Format::U32, numbers);
        let mut draws = Draws::new(device, host.tokens.len())?;
        draws.tokens.write(device, 0, &host.tokens)?;
        draws.log_prob.write(device, 0, &host.log_prob)?;
        draws.confidence.write(device, 0, &host.confidence)?;
        draws.given_log_prob.write(device, 0, &host.given)?;
        draws.flags.write(device, 0, &host.flags)?;
        let longest = host.need_starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        Ok(Self {
            ids: u32s(&host.ids)?,
            masked: u32s(&host.masked)?,
            starts: u32s(&host.starts)?,
            sequences: host.starts.len() - 1,
            steps: u32s(&host.steps)?,
            committed_at: u32s(&host.committed_at)?,
            record: Buffer::of(device, Dtype::F32, &host.record)?,
            draws,
            need_starts: u32s(&host.need_starts)?,
            needs: u32s(&host.needs)?,
            slots: u32s(&host.slots)?,
            first_tokens: u32s(&host.first_tokens)?,
            longest,
        })
    }

    /// Runs `work` and compares the canvas with `expected`.
    fn judge(
        &mut self,
        device: &D,
        expected: &Host,
        work: impl FnOnce(&Draws<D>, &Needs<'_, D>, &mut Canvas<'_, D>) -> Result<()>,
    ) -> Result<Verdict> {
        let needs = Needs {
            starts: &self.need_starts,
            positions: &self.needs,
            slots: &self.slots,
            first_tokens: &self.first_tokens,
            longest: self.longest,
        };
        let record =
            Record { steps: &self.steps, committed_at: &mut self.committed_at, log_prob: &mut self.record };
        let mut canvas = Canvas {
            ids: &mut self.ids,
            masked: &mut self.masked,
            starts: &self.starts,
            sequences: self.sequences,
            record: Some(record),
        };
        work(&self.draws, &needs, &mut canvas)?;
        let got = [&self.ids, &self.masked, &self.committed_at, &self.record];
        let expected = [&expected.ids, &expected.masked, &expected.committed_at, &expected.record];
        let mut verdict = judge_exact::<u32>(&[], &[]);
        for (got, expected) in got.into_iter().zip(expected) {
            verdict = verdict.and(judge_exact(&got.to_vec::<u32>(device)?, expected));
        }
        Ok(verdict)
    }
}

fn plan<D: Device>(rig: &Rig<'_, D>, lengths: &[usize]) -> Result<Verdict> {
    let host = Host::new(&mut rig.random(1), lengths, false);
    let mut expected = host.clone();
    let mut targets = vec![u32::MAX; host.tokens.len()];
    let mut firsts = Vec::new();
    for s in 0..lengths.len() {
        for i in host.need_starts[s] as usize..host.need_starts[s + 1] as usize {
            let (start, position) = (host.starts[s] as usize, host.needs[i] as usize);
            match shift::row_for(position - start, host.shifted) {
                Some(row) => targets[host.slots[i] as usize] = (start + row) as u32,
                None => firsts.push(s as u32),
            }
        }
        for (position, slot) in host.drawn(s) {
            expected.commit(s, position, slot);
        }
    }
    // Rows that predict nothing: the last one of a sequence under shift, and those outside of the canvas.
    if let Some(last) = targets.last_mut() {
        let (slot, s) = (host.tokens.len() - 1, lengths.len() - 1);
        *last = if host.shifted && lengths[s] > 0 { host.starts[s + 1] - 1 } else { u32::MAX - 1 };
        let position =
            host.slots.iter().position(|&other| other as usize == slot).map(|i| host.needs[i] as usize);
        if let Some(position) = position {
            expected.ids[position] = host.ids[position];
            expected.masked[position] = host.masked[position];
            expected.committed_at[position] = host.committed_at[position];
            expected.record[position] = host.record[position];
        }
    }
    let device = rig.device();
    let targets = Buffer::of(device, Format::U32, &targets)?;
    firsts.push(lengths.len() as u32);
    let firsts = Buffer::of(device, Format::U32, &firsts)?;
    let first_tokens = Buffer::of(device, Format::U32, &host.first_tokens)?;
    OnDevice::new(device, &host)?.judge(device, &expected, |draws, _, canvas| {
        rig.cuda.commit_plan(draws, &targets, Some((&firsts, &first_tokens)), host.shifted, canvas)
    })
}

fn ranked<D: Device>(rig: &Rig<'_, D>, lengths: &[usize]) -> Result<Verdict> {
    let mut verdict = judge_exact::<u32>(&[], &[]);
    for turn in 0..3 {
        let mut random = rig.random(2 + turn);
        let host = Host::new(&mut random, lengths, turn > 0);
        let mut expected = host.clone();
        let mut words = Vec::new();
        let mut chosen = Vec::new();
        for s in 0..lengths.len() {
            let drawn = host.drawn(s);
            let take = [0, 1, random.below(drawn.len() + 1), drawn.len(), drawn.len() + 3][random.below(5)];
            let noise = if random.below(2) == 0 { 0.0 } else { random.number().abs() as f32 };
            let at = NoiseAddress { seed: random.bits(), sequence: 11 + s as u32, step: 4, position: 0 };
            words.push(RankWords { take: take as u32, noise, remask: turn > 0, at }.words());
            let rng = Rng::new(at.seed);
            let scores: Vec<f32> = drawn
                .iter()
                .map(|&(position, slot)| {
                    let score = match slot {
                        None => f32::INFINITY,
                        Some(slot) if host.masked[position] == 0 => host.given[slot],
                        Some(slot) => host.confidence[slot],
                    };
                    let within = position as u32 - host.starts[s];
                    let uniform = rng.uniform(Purpose::Confidence, at.sequence, at.step, within);
                    if noise > 0.0 { score + noise * gumbel(uniform) } else { score }
                })
                .collect();
            most_confident(&scores, take, &mut chosen);
            for (i, &(position, slot)) in drawn.iter().enumerate() {
                let chosen = chosen.contains(&(i as u32));
                if chosen && host.masked[position] == 1 {
                    expected.commit(s, position, slot);
                } else if !chosen && host.masked[position] == 0 && turn > 0 {
                    (expected.ids[position], expected.masked[position]) = (MASK, 1);
                }
            }
        }
        let device = rig.device();
        let words = Buffer::of(device, Format::U32, words.as_flattened())?;
        verdict =
            verdict.and(OnDevice::new(device, &host)?.judge(device, &expected, |draws, needs, canvas| {
                rig.cuda.commit_ranked(draws, needs, &words, MASK, canvas)
            })?);
    }
    Ok(verdict)
}

fn threshold<D: Device>(rig: &Rig<'_, D>, lengths: &[usize]) -> Result<Verdict> {
    let mut verdict = judge_exact::<u32>(&[], &[]);
    for turn in 0..3 {
        let mut random = rig.random(12 + turn);
        let host = Host::new(&mut random, lengths, false);
        let mut expected = host.clone();
        let mut words = Vec::new();
        let mut chosen = Vec::new();
        for s in 0..lengths.len() {
            let exponential = turn == 1;
            let tau = match turn {
                0 => -1.0 - random.below(4) as f32,
                1 => 0.25 * random.number().abs() as f32,
                _ => 9.0,
            };
            words.push(threshold_words(tau, exponential));
            let drawn = host.drawn(s);
            let scores: Vec<f32> = drawn
                .iter()
                .map(|(_, slot)| match slot {
                    None => f32::INFINITY,
                    Some(slot) if exponential => host.confidence[*slot].exp(),
                    Some(slot) => host.confidence[*slot],
                })
                .collect();
            above_threshold(&scores, tau, &mut chosen);
            for &i in &chosen {
                let (position, slot) = drawn[i as usize];
                expected.commit(s, position, slot);
            }
        }
        let device = rig.device();
        let words = Buffer::of(device, Format::U32, words.as_flattened())?;
        verdict =
            verdict.and(OnDevice::new(device, &host)?.judge(device, &expected, |draws, needs, canvas| {
                rig.cuda.commit_threshold(draws, needs, &words, canvas)
            })?);
    }
    Ok(verdict)
}

fn answer<D: Device>(rig: &Rig<'_, D>, lengths: &[usize]) -> Result<Verdict> {
    let mut random = rig.random(22);
    let host = Host::new(&mut random, lengths, false);
    let (mut answers, mut eos, mut expected) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for (s, &len) in lengths.iter().enumerate() {
        let start = if random.below(4) == 0 { NO_TOKEN } else { random.below(len) as u32 };
        let token = if random.below(6) == 0 { NO_TOKEN } else { EOS };
        let range = host.starts[s] as usize..host.starts[s + 1] as usize;
        let (ids, masked) = (&host.ids[range.clone()], &host.masked[range]);
        let found = if start == NO_TOKEN || token == NO_TOKEN {
            None
        } else {
            (start as usize..len).find(|&p| masked[p] == 0 && ids[p] == token)
        };
        let complete = found.is_some_and(|at| masked[..at].iter().all(|m| *m == 0));
        expected[0].push(found.map_or(NO_TOKEN, |p| p as u32));
        expected[1].push(complete.into());
        expected[2].push(masked.iter().sum());
        answers.push(start);
        eos.push(token);
    }
    let device = rig.device();
    let (answers, eos) = (Buffer::of(device, Format::U32, &answers)?, Buffer::of(device, Format::U32, &eos)?);
    let mut got = rig.poisoned(Format::U32, 3 * lengths.len())?;
    let verdict = OnDevice::new(device, &host)?
        .judge(device, &host, |_, _, canvas| rig.cuda.commit_answer(canvas, &answers, &eos, &mut got))?;
    Ok(verdict.and(judge_exact(&got.to_vec::<u32>(device)?, &expected.concat())))
}
