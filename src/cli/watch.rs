//! The live canvas: every step redraws the text in place, with what was just committed and what
//! is still masked told apart by colour and by shape. Where there is no terminal it becomes a
//! line every few steps.

use std::io::Write;
use std::time::{Duration, Instant};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::interrupt::Interrupt;
use super::terminal::{Style, Terminal, printable, show_cursor};
use crate::sample::Step;

/// How a position stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Given,
    Committed,
    /// Committed in the last step.
    Fresh,
    Masked,
    /// Went back to the mask in the last step.
    Remasked,
}

/// A position of the canvas: how it stands, and the text of its token (unused where masked).
pub type Cell = (Look, String);

impl Look {
    const fn style(self) -> Style {
        match self {
            Look::Given => Style::Dim,
            Look::Committed => Style::Plain,
            Look::Fresh => Style::Fresh,
            Look::Masked => Style::Masked,
            Look::Remasked => Style::Remasked,
        }
    }
}

/// The text a cell is drawn as. Without colours, what was just committed stands in brackets. A tab
/// is as wide as two spaces, wherever it stands.
fn shape(look: Look, text: &str, color: bool) -> String {
    let text = || printable(text).replace('\t', "  ");
    match look {
        Look::Masked => " ░░".to_owned(),
        Look::Remasked => " ▒▒".to_owned(),
        Look::Given | Look::Committed => text(),
        Look::Fresh => {
            let text = text();
            let body = text.trim_start_matches([' ', '\n']);
            let lead = &text[..text.len() - body.len()];
            let shown = lead.replace('\n', "↵\n");
            match (color, body.is_empty()) {
                (true, _) => format!("{shown}{body}"),
                (false, true) if lead.contains('\n') => shown.replace('↵', "[↵]"),
                (false, true) => format!("{lead}[]"),
                (false, false) => format!("{shown}[{body}]"),
            }
        }
    }
}

/// Lines of at most `width` columns that show `cells`. Lines break at line ends of the text and
/// between words; a word longer than a line breaks where the line ends.
pub fn layout(cells: &[Cell], width: usize, color: bool) -> Vec<String> {
    let width = width.max(4);
    let mut page = Page { lines: vec![String::new()], used: 0, width, color };
    let mut word: Vec<(Look, String)> = Vec::new();
    for (look, text) in cells {
        let text = shape(*look, text, color);
        let opens = text.starts_with(|c: char| c.is_whitespace())
            || matches!(look, Look::Masked | Look::Remasked)
            || matches!(word.last(), Some((Look::Masked | Look::Remasked, _)));
        if opens {
            page.put(&std::mem::take(&mut word));
        }
        word.push((*look, text));
    }
    page.put(&word);
    page.lines
}

struct Page {
    lines: Vec<String>,
    used: usize,
    width: usize,
    color: bool,
}

impl Page {
    fn put(&mut self, word: &[(Look, String)]) {
        let columns: usize =
            word.iter().map(|(_, t)| t.split('\n').next_back().unwrap_or_default().width()).sum();
        let breaks = word.iter().any(|(_, t)| t.contains('\n'));
        let wraps = !breaks && columns <= self.width && self.used + columns > self.width;
        if wraps {
            self.feed();
        }
        for (i, (look, text)) in word.iter().enumerate() {
            // A word that opens a wrapped line leaves its space behind.
            let text = if wraps && i == 0 { text.strip_prefix(' ').unwrap_or(text) } else { text };
            let style = look.style();
            for (n, line) in text.split('\n').enumerate() {
                if n > 0 {
                    self.feed();
                }
                self.write(line, style);
            }
        }
    }

    /// Appends text without line ends, breaking where the line is full.
    fn write(&mut self, text: &str, style: Style) {
        let mut piece = String::new();
        for c in text.chars() {
            let columns = c.width().unwrap_or(0);
            if self.used + columns > self.width {
                self.push(&std::mem::take(&mut piece), style);
                self.feed();
            }
            piece.push(c);
            self.used += columns;
        }
        self.push(&piece, style);
    }

    fn push(&mut self, text: &str, style: Style) {
        if let Some(line) = self.lines.last_mut() {
            line.push_str(&style.paint(text, self.color));
        }
    }

    fn feed(&mut self) {
        self.lines.push(String::new());
        self.used = 0;
    }
}

/// The line above the canvas: step, forward passes, how much is left, and a bar that fills.
pub fn header(step: &Step<'_>, maskable: usize, width: usize) -> String {
    let left = step.masked.iter().filter(|m| **m).count();
    let words = format!("step {}/{}  nfe {}  masked {left}/{maskable}  ", step.step, step.steps, step.nfe);
    let room = width.saturating_sub(words.width()).min(40);
    if room < 4 {
        return words.trim_end().chars().take(width).collect();
    }
    let done = (room * (maskable - left.min(maskable))).checked_div(maskable).unwrap_or(room);
    format!("{words}{}{}", "█".repeat(done), "░".repeat(room - done))
}

/// What the looks mean, on one line.
fn legend(color: bool, width: usize) -> String {
    let entries = [
        (Look::Given, "given"),
        (Look::Committed, "committed"),
        (Look::Fresh, "just committed"),
        (Look::Masked, "masked"),
        (Look::Remasked, "masked again"),
    ];
    let mut line = String::new();
    let mut used = 0;
    for (look, name) in entries {
        let text = match look {
            Look::Masked | Look::Remasked => format!("{} {name}", shape(look, "", color).trim()),
            _ => shape(look, name, color),
        };
        used += text.width() + 3;
        if used > width {
            break;
        }
        line.push_str(&look.style().paint(&text, color));
        line.push_str("   ");
    }
    line.trim_end().to_owned()
}

/// The cells of a canvas after a step.
pub fn cells(step: &Step<'_>, fixed: &[bool], piece: &dyn Fn(u32) -> String) -> Vec<Cell> {
    let fresh = |p: usize| step.committed.iter().any(|c| c.position as usize == p);
    let again = |p: usize| step.remasked.iter().any(|&r| r as usize == p);
    step.canvas
        .iter()
        .zip(step.masked)
        .enumerate()
        .map(|(p, (&id, &masked))| {
            let look = match (masked, fixed.get(p) == Some(&true)) {
                (true, _) if again(p) => Look::Remasked,
                (true, _) => Look::Masked,
                (false, true) => Look::Given,
                (false, false) if fresh(p) => Look::Fresh,
                (false, false) => Look::Committed,
            };
            (look, if masked { String::new() } else { piece(id) })
        })
        .collect()
}

/// Draws steps to standard error, at most `fps` a second.
pub struct Watch<'a> {
    piece: Box<dyn Fn(u32) -> String + Send + 'a>,
    terminal: Terminal,
    pause: Duration,
    next: Option<Instant>,
    drawn: usize,
    seen: usize,
    interrupt: Interrupt,
}

/// How long Ctrl-C may go unheard between two frames.
const HEARING: Duration = Duration::from_millis(50);

impl<'a> Watch<'a> {
    /// `piece` spells a token; `fps` 0 draws as fast as the model is. `interrupt` ends a pause.
    pub fn new(
        piece: impl Fn(u32) -> String + Send + 'a,
        terminal: Terminal,
        fps: f64,
        interrupt: Interrupt,
    ) -> Self {
        let pause = if fps > 0.0 && terminal.live {
            Duration::try_from_secs_f64(1.0 / fps).unwrap_or_default()
        } else {
            Duration::ZERO
        };
        Self { piece: Box::new(piece), terminal, pause, next: None, drawn: 0, seen: 0, interrupt }
    }

    /// Waits until the next frame is due, or Ctrl-C. Returns how long that was.
    fn pause(&self) -> Duration {
        let start = Instant::now();
        let Some(next) = self.next else { return Duration::ZERO };
        while !self.interrupt.raised() {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(HEARING));
        }
        start.elapsed()
    }

    /// Shows a step. Returns how long it slept, which is no part of the work's time.
    pub fn show(&mut self, step: &Step<'_>, fixed: &[bool]) -> Duration {
        let maskable = fixed.iter().filter(|f| !**f).count();
        if !self.terminal.live {
            self.line(step, maskable);
            return Duration::ZERO;
        }
        let (width, height) = Terminal::size();
        let width = width.saturating_sub(1);
        let mut lines = vec![header(step, maskable, width)];
        let mut canvas = layout(&cells(step, fixed, &self.piece), width, self.terminal.color);
        let room = height.saturating_sub(4).max(1);
        if canvas.len() > room {
            let hidden = canvas.len() - room + 1;
            canvas.truncate(room - 1);
            canvas.push(format!("... {hidden} more lines").chars().take(width).collect());
        }
        lines.append(&mut canvas);
        lines.push(legend(self.terminal.color, width));
        let slept = self.pause();
        self.draw(&lines);
        self.next = Instant::now().checked_add(self.pause);
        slept
    }

    fn draw(&mut self, lines: &[String]) {
        let mut frame = String::from("\x1b[?25l");
        self.rewind(&mut frame);
        for line in lines {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(frame.as_bytes()).and_then(|()| err.flush());
    }

    /// Moves the cursor back to the first line of the last frame.
    fn rewind(&self, frame: &mut String) {
        if self.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
    }

    /// A line about every tenth of the run, for logs.
    fn line(&mut self, step: &Step<'_>, maskable: usize) {
        let left = step.masked.iter().filter(|m| **m).count();
        let tenth = (10 * (maskable - left.min(maskable))).checked_div(maskable).unwrap_or(10);
        if tenth > self.seen || left == 0 {
            self.seen = tenth;
            super::terminal::note(&header(step, maskable, 79));
        }
    }

    /// Takes the canvas off the screen, so that the finished text can be printed in its place.
    pub fn clear(&mut self) {
        if self.drawn > 0 {
            let mut frame = String::new();
            self.rewind(&mut frame);
            frame.push_str("\x1b[J");
            self.drawn = 0;
            let _ = std::io::stderr().lock().write_all(frame.as_bytes());
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if self.terminal.live {
            show_cursor();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Commit;

    fn cell(look: Look, text: &str) -> Cell {
        (look, text.to_owned())
    }

    #[test]
    fn every_look_has_its_own_shape_without_colours() {
        let looks = [Look::Committed, Look::Fresh, Look::Masked, Look::Remasked];
        let mut shapes: Vec<_> = looks.iter().map(|l| shape(*l, "x", false)).collect();
        shapes.dedup();
        assert_eq!(shapes, ["x", "[x]", " ░░", " ▒▒"]);
        let mut starts: Vec<_> = looks.iter().map(|l| l.style().start()).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), looks.len());
    }

    #[test]
    fn lines_never_exceed_the_width() {
        let words = [
            "To",
            " be",
            ",",
            " or",
            " not",
            "\n",
            " 到処の漢字ばかり",
            " extraordinarilylongwordwithoutend",
        ];
        for width in [4, 7, 20, 79] {
            let all: Vec<Cell> = (0..60)
                .map(|i| match i % 5 {
                    0 => cell(Look::Masked, ""),
                    1 => cell(Look::Fresh, words[i % words.len()]),
                    _ => cell(Look::Committed, words[i % words.len()]),
                })
                .collect();
            for line in layout(&all, width, false) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn words_made_of_several_tokens_stay_whole() {
        let tokens = ["The", " uni", "ver", "se", " end", "s"].map(|t| cell(Look::Committed, t));
        assert_eq!(layout(&tokens, 12, false), ["The universe", "ends"]);
        assert_eq!(layout(&tokens, 11, false), ["The", "universe", "ends"]);
    }

    #[test]
    fn line_ends_of_the_text_break_the_line() {
        let all = [
            cell(Look::Given, "A:"),
            cell(Look::Committed, "\n"),
            cell(Look::Fresh, " b"),
            cell(Look::Fresh, "\n"),
            cell(Look::Masked, ""),
        ];
        assert_eq!(layout(&all, 40, false), ["A:", " [b][↵]", " ░░"]);
    }

    #[test]
    fn colours_do_not_change_the_wrapping() {
        let all: Vec<Cell> = (0..30).map(|_| cell(Look::Committed, " word")).collect();
        let masked: Vec<Cell> = (0..30).map(|_| cell(Look::Masked, "")).collect();
        assert_eq!(layout(&all, 33, false).len(), layout(&all, 33, true).len());
        assert_eq!(layout(&masked, 33, false).len(), layout(&masked, 33, true).len());
        assert!(layout(&masked, 33, true)[0].contains("\x1b[34m"));
    }

    #[test]
    fn header_counts_and_fits() {
        let step = Step {
            request: 0,
            step: 12,
            steps: 64,
            nfe: 11,
            canvas: &[5, 0, 0, 0],
            masked: &[false, true, false, false],
            committed: &[Commit { position: 2, token: 0, log_prob: 0.0 }],
            remasked: &[],
        };
        let line = header(&step, 3, 79);
        assert!(line.starts_with("step 12/64  nfe 11  masked 1/3  ██"), "{line}");
        assert!((10..80).all(|w| header(&step, 3, w).width() <= w));
        let looks: Vec<_> = cells(&step, &[true, false, false, false], &|_| String::new())
            .into_iter()
            .map(|(look, _)| look)
            .collect();
        assert_eq!(looks, [Look::Given, Look::Masked, Look::Fresh, Look::Committed]);
    }

    #[test]
    fn escape_sequences_in_tokens_are_disarmed() {
        let all = [cell(Look::Committed, "\x1b[2J"), cell(Look::Fresh, "\x07")];
        assert!(!layout(&all, 40, false).concat().contains(['\x1b', '\x07']));
    }

    #[test]
    fn a_tab_counts_as_the_columns_it_takes() {
        let all: Vec<Cell> = (0..9).map(|_| cell(Look::Committed, "\tab")).collect();
        let lines = layout(&all, 10, false);
        assert!(lines.iter().all(|l| l.width() <= 10 && !l.contains('\t')), "{lines:?}");
    }
}
