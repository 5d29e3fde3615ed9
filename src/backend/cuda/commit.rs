//! Launches of `cuda/commit.cu`.

use super::{Buffer, Cuda, Device, Draws, Format, Launch, product};
use crate::backend::{RANK_WORDS, THRESHOLD_WORDS};
use crate::element::Dtype;
use crate::error::{Error, Result};

const THREADS: u32 = 256;

/// Bytes of shared memory for ranking, beside 8 a need (`RANK_WORK_BYTES` in the kernel file), and for sums over a block.
const RANK_WORK_BYTES: usize = 4176;
const SUM_BYTES: usize = 8 * THREADS as usize / 32;

/// Canvases in device memory: packed sequences.
#[derive(Debug)]
pub struct Canvas<'a, D: Device> {
    /// Token ids, U32.
    pub ids: &'a mut Buffer<D>,
    /// U32, as long as `ids`: 1 where a mask stands.
    pub masked: &'a mut Buffer<D>,
    /// U32 `[sequences + 1]`: where each sequence begins, and the end of the last.
    pub starts: &'a Buffer<D>,
    pub sequences: usize,
    /// What to write down at each commit.
    pub record: Option<Record<'a, D>>,
}

/// When each position was committed, and how probable its token was.
#[derive(Debug)]
pub struct Record<'a, D: Device> {
    /// U32 `[sequences]`: the step that each sequence is doing, counted from 0.
    pub steps: &'a Buffer<D>,
    /// U32, as long as the canvas: gets the step, counted from 1.
    pub committed_at: &'a mut Buffer<D>,
    /// F32, as long as the canvas.
    pub log_prob: &'a mut Buffer<D>,
}

/// The positions that a step is about, for each sequence in order.
#[derive(Debug)]
pub struct Needs<'a, D: Device> {
    /// U32 `[sequences + 1]`: where each sequence's part of the lists begins, and the end of the last.
    pub starts: &'a Buffer<D>,
    /// U32: positions of the canvas (not of the sequence), ascending within a sequence.
    pub positions: &'a Buffer<D>,
    /// U32, as long as `positions`: the draw that belongs to each; [`NO_TOKEN`](crate::backend::NO_TOKEN) where no row
    /// predicts it.
    pub slots: &'a Buffer<D>,
    /// U32 `[sequences]`: the token for that case.
    pub first_tokens: &'a Buffer<D>,
    /// The most needs that a sequence has.
    pub longest: usize,
}

impl<D: Device> Cuda<D> {
    /// Commits draw r, for each r, to the position that row `targets[r]` (U32, one a draw, all different; a row of the whole
    /// canvas) predicts, if that lies in the row's sequence. Draws that failed are left out. `firsts` U32 lists
    /// sequences whose first position is committed now though no row predicts it (under `shift`): it becomes
    /// `first_tokens` U32 `[sequences]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when buffers do not fit together; those of the device.
    pub fn commit_plan(
        &self,
        draws: &Draws<D>,
        targets: &Buffer<D>,
        firsts: Option<(&Buffer<D>, &Buffer<D>)>,
        shift: bool,
        canvas: &mut Canvas<'_, D>,
    ) -> Result<()> {
        const KERNEL: &str = "commit_plan";
        let (rows, first_count) = (targets.len(), firsts.map_or(0, |(firsts, _)| firsts.len()));
        let all = rows.saturating_add(first_count);
        if all == 0 || canvas.sequences == 0 {
            return Ok(());
        }
        let sequences = canvas.sequences;
        let mut launch = Launch::new(KERNEL, [all.div_ceil(THREADS as usize), 1, 1], THREADS, 0)?;
        launch.read("drawn tokens", &draws.tokens, Format::U32, 0, rows)?;
        launch.read("drawn log_prob", &draws.log_prob, Dtype::F32, 0, rows)?;
        launch.read("flags", &draws.flags, Format::U32, 0, rows)?;
        launch.read("targets", targets, Format::U32, 0, rows)?.size("rows", rows)?;
        let (firsts, first_tokens) = firsts.unzip();
        launch.read_or_null("firsts", firsts, Format::U32, 0, first_count)?.size("firsts", first_count)?;
        launch.read_or_null("first_tokens", first_tokens, Format::U32, 0, sequences)?;
        launch.read("starts", canvas.starts, Format::U32, 0, sequences + 1)?;
        launch.size("sequences", sequences)?.u32(shift.into()).size("tokens", canvas.ids.len())?;
        canvas.arguments(&mut launch)?;
        // SAFETY: a thread a commit; rows, sequences and positions that lie outside are skipped by the kernel.
        unsafe { self.launch(&launch) }
    }

    /// Of each sequence's needs, makes those with the greatest scores tokens: see [`RankWords`](crate::backend::RankWords), U32 `[sequences, 8]`. The score
    /// is the confidence drawn where a mask stands and the given token's log probability where a token does; of equal ones the
    /// lower position comes first. A sequence with more needs than `needs.longest` is left as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] when buffers do not fit together, or ranking `needs.longest` needs takes more shared memory than
    /// there is (about 19 000 on an A100); those of the device.
    pub fn commit_ranked(
        &self,
        draws: &Draws<D>,
        needs: &Needs<'_, D>,
        words: &Buffer<D>,
        mask_id: u32,
        canvas: &mut Canvas<'_, D>,
    ) -> Result<()> {
        const KERNEL: &str = "commit_ranked";
        if canvas.sequences == 0 || needs.positions.is_empty() {
            return Ok(());
        }
        let sequences = canvas.sequences;
        let shared =
            product(KERNEL, "needs", needs.longest, size_of::<u64>())?.saturating_add(RANK_WORK_BYTES);
        let limit = self.device.facts().shared_per_block as usize;
        if shared > limit {
            let expected = limit.saturating_sub(RANK_WORK_BYTES) / size_of::<u64>();
            return Err(Error::Shape {
                op: KERNEL,
                what: "needs of a sequence",
                expected,
                got: needs.longest,
            });
        }
        let mut launch = Launch::new(KERNEL, [sequences, 1, 1], THREADS, shared)?;
        let rows = draws.tokens.len();
        launch.read("drawn tokens", &draws.tokens, Format::U32, 0, rows)?;
        launch.read("drawn log_prob", &draws.log_prob, Dtype::F32, 0, rows)?;
        launch.read("confidence", &draws.confidence, Dtype::F32, 0, rows)?;
        launch.read("given_log_prob", &draws.given_log_prob, Dtype::F32, 0, rows)?;
        launch.read("flags", &draws.flags, Format::U32, 0, rows)?.size("rows", rows)?;
        needs.arguments(&mut launch, sequences)?;
        launch.size("longest", needs.longest)?;
        launch.read("first_tokens", needs.first_tokens, Format::U32, 0, sequences)?;
        launch.read("words", words, Format::U32, 0, product(KERNEL, "words", sequences, RANK_WORDS)?)?;
        launch.read("starts", canvas.starts, Format::U32, 0, sequences + 1)?;
        launch.size("tokens", canvas.ids.len())?.u32(mask_id);
        canvas.arguments(&mut launch)?;
        // SAFETY: a block a sequence; needs, draws and positions that lie outside are skipped by the kernel.
        unsafe { self.launch(&launch) }
    }

    /// Commits each sequence's masked needs that score above its threshold, and the best one where none does: see
    /// [`threshold_words`](crate::backend::threshold_words), U32 `[sequences, 2]`. Of equal scores the lower position is the better one.
    ///
    /// # Errors
    /// [`Error::Shape`] when buffers do not fit together; those of the device.
    pub fn commit_threshold(
        &self,
        draws: &Draws<D>,
        needs: &Needs<'_, D>,
        words: &Buffer<D>,
        canvas: &mut Canvas<'_, D>,
    ) -> Result<()> {
        const KERNEL: &str = "commit_threshold";
        if canvas.sequences == 0 || needs.positions.is_empty() {
            return Ok(());
        }
        let sequences = canvas.sequences;
        let mut launch = Launch::new(KERNEL, [sequences, 1, 1], THREADS, SUM_BYTES)?;
        let rows = draws.tokens.len();
        launch.read("drawn tokens", &draws.tokens, Format::U32, 0, rows)?;
        launch.read("drawn log_prob", &draws.log_prob, Dtype::F32, 0, rows)?;
        launch.read("confidence", &draws.confidence, Dtype::F32, 0, rows)?;
        launch.read("flags", &draws.flags, Format::U32, 0, rows)?.size("rows", rows)?;
        needs.arguments(&mut launch, sequences)?;
        launch.read("first_tokens", needs.first_tokens, Format::U32, 0, sequences)?;
        launch.read("words", words, Format::U32, 0, product(KERNEL, "words", sequences, THRESHOLD_WORDS)?)?;
        launch.size("tokens", canvas.ids.len())?;
        canvas.arguments(&mut launch)?;
        // SAFETY: a block a sequence; needs, draws and positions that lie outside are skipped by the kernel.
        unsafe { self.launch(&launch) }
    }

    /// How far each sequence is, into `out` U32 `[3, sequences]`. `answers`: the position, counted in the sequence,
    /// from which on an end of sequence counts; `eos`: that token; [`NO_TOKEN`](crate::backend::NO_TOKEN) in either: it
    /// has none. First come the first such positions that are committed, or `NO_TOKEN`; then 1 where there is one and nothing
    /// before it is masked; then the numbers of masked positions.
    ///
    /// # Errors
    /// [`Error::Shape`] when a buffer is too short; those of the device.
    pub fn commit_answer(
        &self,
        canvas: &Canvas<'_, D>,
        answers: &Buffer<D>,
        eos: &Buffer<D>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (sequences, tokens) = (canvas.sequences, canvas.ids.len());
        if sequences == 0 {
            return Ok(());
        }
        let mut launch = Launch::new("commit_answer", [sequences, 1, 1], THREADS, SUM_BYTES)?;
        launch.read("ids", canvas.ids, Format::U32, 0, tokens)?;
        launch.read("masked", canvas.masked, Format::U32, 0, tokens)?;
        launch.read("starts", canvas.starts, Format::U32, 0, sequences + 1)?.size("tokens", tokens)?;
        launch.read("answers", answers, Format::U32, 0, sequences)?;
        launch.read("eos", eos, Format::U32, 0, sequences)?;
        launch.write("out", out, Format::U32, 0, product("commit_answer", "out", 3, sequences)?)?;
        // SAFETY: a block a sequence; the kernel reads the part of the canvas between two starts, nothing if those are not in
        // order or lie outside, and writes three numbers.
        unsafe { self.launch(&launch) }
    }
}

impl<D: Device> Canvas<'_, D> {
    /// ids, masked, steps, committed_at and the record's log_prob.
    fn arguments<'l>(&'l mut self, launch: &mut Launch<'l>) -> Result<()> {
        let (tokens, sequences) = (self.ids.len(), self.sequences);
        launch.update("ids", self.ids, Format::U32, 0, tokens)?;
        launch.update("masked", self.masked, Format::U32, 0, tokens)?;
        match &mut self.record {
            Some(record) => {
                launch.read("steps", record.steps, Format::U32, 0, sequences)?;
                launch.update("committed_at", record.committed_at, Format::U32, 0, tokens)?;
                launch.update("record log_prob", record.log_prob, Dtype::F32, 0, tokens)?;
            }
            None => {
                launch.null().null().null();
            }
        }
        Ok(())
    }
}

impl<D: Device> Needs<'_, D> {
    /// Starts, positions, slots and how many there are.
    fn arguments<'l>(&'l self, launch: &mut Launch<'l>, sequences: usize) -> Result<()> {
        let len = self.positions.len();
        launch.read("need starts", self.starts, Format::U32, 0, sequences + 1)?;
        launch.read("needs", self.positions, Format::U32, 0, len)?;
        launch.read("slots", self.slots, Format::U32, 0, len)?.size("needs", len)?;
        Ok(())
    }
}
