//! Cases of `cuda/needs.cu`: against a plain search of random canvases, exactly.

use super::{Case, Grid, Random, Rig, Verdict, judge_exact};
use crate::backend::cuda::{Buffer, Device, Format, Found, Wanted};
use crate::backend::{Confidence, DrawingWords, NO_TOKEN, UNMASK_WORDS, Want, WantKind};
use crate::diffusion::shift;
use crate::element::Dtype;
use crate::error::Result;

pub fn cases<D: Device>(grid: Grid) -> Vec<Case<D>> {
    let mut cases = Vec::new();
    for (steps, stride) in grid.choose(&[(1, 7), (5, 300)], &[(64, 42), (3, 1001)]) {
        let shape = format!("steps {steps}, words {stride}");
        cases.push(Case::new("needs", "needs_stage", shape, move |rig: &Rig<'_, D>| {
            stage(rig, steps, stride)
        }));
    }
    let shapes: Vec<&'static [usize]> = grid
        .choose(&[&[5, 1, 40], &[1200, 0, 3]], &[&[300, 1, 2, 700, 33], &[64; 9], &[1030, 257], &[17, 0, 3]]);
    for lengths in shapes {
        let shape = format!("lengths {lengths:?}");
        cases.push(Case::new("needs", "needs_select", shape, move |rig: &Rig<'_, D>| select(rig, lengths)));
    }
    cases
}

fn stage<D: Device>(rig: &Rig<'_, D>, steps: usize, stride: usize) -> Result<Verdict> {
    let (device, mut random) = (rig.device(), rig.random(1));
    let mut tape: Vec<u32> = (0..=steps * stride).map(|_| random.bits() as u32).collect();
    tape[0] = 0;
    let mut on_device = Buffer::of(device, Format::U32, &tape)?;
    let mut verdict = judge_exact::<u32>(&[], &[]);
    // One step more than there are.
    for step in 0..=steps {
        let mut staged = rig.poisoned(Format::U32, stride)?;
        rig.cuda.stage_step(&mut on_device, steps, stride, &mut staged)?;
        let expected = match tape[1..].chunks_exact(stride).nth(step) {
            Some(words) => words.to_vec(),
            None => vec![0; stride],
        };
        verdict = verdict.and(judge_exact(&staged.to_vec::<u32>(device)?, &expected));
    }
    tape[0] = steps as u32;
    Ok(verdict.and(judge_exact(&on_device.to_vec::<u32>(device)?, &tape)))
}

/// Everything that the kernel reads, on the host.
#[derive(Default)]
struct Host {
    starts: Vec<u32>,
    ids: Vec<u32>,
    masked: Vec<u32>,
    free: Vec<u32>,
    wants: Vec<Want>,
    drawing: Vec<DrawingWords>,
    complete: Vec<u32>,
    list: Vec<u32>,
    uniforms: Vec<f32>,
    shift: bool,
    rows: usize,
    needs: usize,
}

/// Everything that it writes, in the order of [`Found`].
type Expected = [Vec<u32>; 7];

impl Host {
    fn new(random: &mut Random, lengths: &[usize], shift: bool) -> Self {
        let mut host = Self { starts: vec![0], shift, ..Self::default() };
        let kinds = [WantKind::Nothing, WantKind::Listed, WantKind::Masked, WantKind::Free];
        let longest = lengths.iter().max().copied().unwrap_or(0);
        host.uniforms = (0..3 * longest).map(|_| random.number().abs() as f32).collect();
        for (s, &len) in lengths.iter().enumerate() {
            for _ in 0..len {
                let free = random.below(3) > 0;
                host.free.push(free.into());
                host.masked.push((free && random.below(2) == 0).into());
                host.ids.push(random.below(900) as u32);
            }
            host.starts.push(host.ids.len() as u32);
            host.complete.push((random.below(5) == 0).into());
            let kind = kinds[random.below(4)];
            let step = random.below(3) as u32;
            let (low, high) = if kind == WantKind::Listed {
                let low = host.list.len() as u32;
                host.list.extend((0..len as u32).filter(|_| random.below(3) == 0));
                (low, host.list.len() as u32)
            } else {
                // Beyond the end now and then.
                (random.below(len / 2 + 1) as u32, (len / 2 + random.below(len + 9)) as u32)
            };
            let mut want = Want { kind, low, high, step, ..Want::default() };
            let (positions, first) = (host.positions(s, want), shift && random.below(4) > 0);
            // Room that is right, too small or too large.
            let room = |n: usize, random: &mut Random| match random.below(4) {
                0 => n.saturating_sub(random.below(3)),
                1 => n + random.below(40),
                _ => n,
            };
            want.needs = room(positions.len(), random) as u32;
            want.rows =
                room(positions.len() - usize::from(first && positions.first() == Some(&0)), random) as u32;
            (want.first_need, want.first_row) = (host.needs as u32, host.rows as u32);
            host.needs += want.needs as usize;
            host.rows += want.rows as usize;
            host.wants.push(want);
            host.drawing.push(DrawingWords {
                temperature: random.number().abs() as f32,
                top_p: 0.9,
                top_k: random.below(9) as u32,
                suppress: if random.below(2) == 0 { NO_TOKEN } else { 3 },
                confidence: [Confidence::MaxProb, Confidence::Entropy, Confidence::Margin][random.below(3)],
                seed: random.bits(),
                sequence: random.below(99) as u32,
                uniforms_at: (random.below(2) == 0).then_some(0),
            });
        }
        host
    }

    /// The positions that sequence `s` needs.
    fn positions(&self, s: usize, want: Want) -> Vec<usize> {
        let (start, end) = (self.starts[s] as usize, self.starts[s + 1] as usize);
        let inside = (want.low as usize)..(want.high as usize).min(end - start);
        match want.kind {
            WantKind::Nothing => Vec::new(),
            WantKind::Listed => {
                self.list[want.low as usize..want.high as usize].iter().map(|&p| p as usize).collect()
            }
            WantKind::Masked => {
                inside.filter(|&p| self.free[start + p] * self.masked[start + p] == 1).collect()
            }
            WantKind::Free => inside.filter(|&p| self.free[start + p] == 1).collect(),
        }
    }

    fn expected(&self, rows: usize) -> Expected {
        let idle = [0, 1_f32.to_bits(), 0, NO_TOKEN, NO_TOKEN, 0, 0, 0, 0, 0, 0, 0];
        let mut params = vec![idle; rows];
        let (mut needs, mut slots) = (vec![NO_TOKEN; self.needs], vec![NO_TOKEN; self.needs]);
        let (mut wanted, mut wanted_positions) = (vec![0; rows], vec![0; rows]);
        let (mut places, mut passes) = (Vec::new(), Vec::new());
        for (s, want) in self.wants.iter().enumerate() {
            let active = want.kind != WantKind::Nothing && self.complete[s] == 0;
            let (start, length) = (self.starts[s], self.starts[s + 1] - self.starts[s]);
            passes.push(active.into());
            places.extend(if active { [want.first_row, want.rows, start, length] } else { [0; 4] });
            if !active {
                continue;
            }
            let mut row = want.first_row..want.first_row + want.rows;
            for (n, &p) in self.positions(s, *want).iter().take(want.needs as usize).enumerate() {
                let n = want.first_need as usize + n;
                let at = start as usize + p;
                needs[n] = at as u32;
                let Some(from) = shift::row_for(p, self.shift) else { continue };
                let Some(r) = row.next() else { continue };
                slots[n] = r;
                wanted[r as usize] = start + from as u32;
                wanted_positions[r as usize] = from as u32;
                let own = self.drawing[s].words();
                let uniform = self.uniforms[want.step as usize * length as usize + from];
                let uniform = if self.drawing[s].uniforms_at.is_some() { uniform.to_bits() } else { 0 };
                let given = if self.masked[at] == 1 { NO_TOKEN } else { self.ids[at] };
                params[r as usize] = [
                    own[0], own[1], own[2], own[3], given, own[4], uniform, own[5], own[6], own[7],
                    want.step, p as u32,
                ];
            }
        }
        [needs, slots, wanted, wanted_positions, params.concat(), places, passes]
    }
}

fn select<D: Device>(rig: &Rig<'_, D>, lengths: &[usize]) -> Result<Verdict> {
    let device = rig.device();
    let mut verdict = judge_exact::<u32>(&[], &[]);
    for turn in 0..4 {
        let mut random = rig.random(2 + turn);
        let host = Host::new(&mut random, lengths, turn % 2 == 1);
        let rows = host.rows + random.below(70);
        let expected = host.expected(rows);
        let u32s = |numbers: &[u32]| Buffer::of(device, Format::U32, numbers);
        let wants: Vec<u32> = host.wants.iter().flat_map(Want::words).collect();
        let drawing: Vec<u32> = host.drawing.iter().flat_map(DrawingWords::words).collect();
        let (ids, masked, free) = (u32s(&host.ids)?, u32s(&host.masked)?, u32s(&host.free)?);
        let (starts, wants, drawing) = (u32s(&host.starts)?, u32s(&wants)?, u32s(&drawing)?);
        let (complete, list) = (u32s(&host.complete)?, u32s(&host.list)?);
        let uniforms = Buffer::of(device, Dtype::F32, &host.uniforms)?;
        let wanted = Wanted {
            masked: &masked,
            free: &free,
            starts: &starts,
            sequences: lengths.len(),
            wants: &wants,
            drawing: &drawing,
            complete: Some(&complete),
            list: Some(&list),
            uniforms: Some(&uniforms),
            shift: host.shift,
            rows,
        };
        let word = |len: usize| rig.poisoned(Format::U32, len);
        let (mut needs, mut slots) = (word(host.needs)?, word(host.needs)?);
        let (mut got_rows, mut row_positions) = (word(rows)?, word(rows)?);
        let (mut params, mut places) = (word(rows * UNMASK_WORDS)?, word(4 * lengths.len())?);
        let mut passes = u32s(&vec![0; lengths.len()])?;
        let found = Found {
            needs: &mut needs,
            slots: &mut slots,
            rows: &mut got_rows,
            row_positions: &mut row_positions,
            params: &mut params,
            places: &mut places,
            passes: &mut passes,
        };
        rig.cuda.select_needs(&ids, &wanted, found)?;
        let got = [&needs, &slots, &got_rows, &row_positions, &params, &places, &passes];
        for (got, expected) in got.into_iter().zip(&expected) {
            verdict = verdict.and(judge_exact(&got.to_vec::<u32>(device)?, expected));
        }
    }
    Ok(verdict)
}
