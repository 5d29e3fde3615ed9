//! `lacuna pack`: texts to a token file, which training reads.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::Context;
use super::terminal::{note, println};
use crate::error::{Error, Result};
use crate::io::{Split, TextOptions, Texts, TokenWriter, Tokenizer, TokenizerFiles, is_same};

/// Bytes of text, and documents, that are turned into tokens together.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_DOCUMENTS: usize = 16 << 10;
/// Bytes of text that one thread turns into tokens at once.
const PART: usize = 64 << 10;
/// How often the wish to stop is looked for.
const TICK: Duration = Duration::from_millis(50);

/// Where a document of a plain text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    // With the file.
    Document,
    // With the line.
    Lines,
    // With one or more blank lines.
    BlankLines,
}

/// Arguments of `pack`.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Texts, in this order: .txt, .jsonl (both also .gz, .zst), .parquet; - for standard input as text
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<PathBuf>,

    /// The token file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// A tokenizer.json, or a model's folder with one [default: the bundled model's]
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,

    /// The field of JSON lines, or the column of Parquet files, that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,

    /// Where a document of a plain text ends: with the file, the line, or at blank lines
    #[arg(
        long,
        value_enum,
        value_name = "document|lines|blank-lines",
        default_value = "document",
        hide_possible_values = true
    )]
    split: SplitName,

    /// The token behind each document [default: the one that the files beside the tokenizer name]
    #[arg(long, value_name = "ID|TOKEN")]
    eos: Option<String>,

    /// Write the last PERCENT of the tokens to a second file, for validation: OUTPUT with -held-out
    /// before its ending
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    held_out: Option<f64>,

    /// One JSON object instead of the summary
    #[arg(long)]
    pub json: bool,

    /// Nothing on standard error but errors
    #[arg(long, short)]
    quiet: bool,
}

const AFTER: &str = "\
Training reads token files: the texts as token ids, each document followed by the end-of-sequence token. \
Pack with the tokenizer of the model that is to be trained; training refuses another.

--held-out cuts at the document boundary nearest to the wanted share; where none is near, as in a text that \
is one document, it cuts inside. It is the end that is held out: shuffle documents beforehand if their order \
has a meaning.

The file appears whole or not at all; Ctrl-C leaves nothing behind.

Examples:
  lacuna pack shakespeare.txt --output plays.tok --held-out 5
      writes plays.tok and plays-held-out.tok, with the bundled model's tokenizer
  lacuna pack --tokenizer models/diffugpt-s --output web.tok --field content web-*.jsonl.zst
  lacuna pack --tokenizer tokenizer.json --output wiki.tok --split blank-lines wiki.txt.gz
  zcat notes.gz | lacuna pack --split lines --output notes.tok -";

/// Runs `pack`.
///
/// # Errors
/// Those of [`Texts`], [`TokenizerFiles::open`] and [`TokenWriter`]; [`Error::Request`] for an
/// end-of-sequence token that is not found, a share that is not between 0 and 100, or texts without
/// tokens; [`Error::Cancelled`].
pub fn run(args: Args, context: &Context) -> Result<()> {
    let started = Instant::now();
    let share = match args.held_out {
        Some(percent) if !(percent > 0.0 && percent < 100.0) => {
            return Err(Error::request(format_args!(
                "--held-out {percent}: expected a percentage above 0 and below 100"
            )));
        }
        percent => percent.map(|p| p / 100.0),
    };
    let files = match &args.tokenizer {
        Some(path) => TokenizerFiles::open(path)?,
        None => TokenizerFiles::bundled()?,
    };
    let eos = eos(&files, args.eos.as_deref())?;
    let options =
        TextOptions { field: args.field.clone(), split: args.split.into(), ..TextOptions::default() };
    let texts = Texts::open(&args.texts, options)?;
    let held_out = held_out_path(&args.output)?;
    for text in &args.texts {
        for output in [Some(&args.output), share.is_some().then_some(&held_out)].into_iter().flatten() {
            if is_same(text, output) {
                return Err(Error::request(format_args!("{} would be read and written", output.display())));
            }
        }
    }
    // A signal must not end the program before the unfinished files are gone.
    context.interrupt.hold();
    let vocab = files.tokenizer.vocab_size().max(eos as usize + 1);
    let sha256 = *files.tokenizer.sha256();
    let create = |path: &Path| TokenWriter::create(path, vocab, eos, &sha256);
    let mut writer = create(&args.output)?;
    let mut tail = share.map(|_| create(&held_out)).transpose()?;
    let bar = progress(context, texts.size(), args.json || args.quiet);
    let text_bytes = fill(&mut writer, texts, files.tokenizer, &bar, started, context)?;
    bar.finish_and_clear();
    if writer.tokens() > 0
        && let (Some(tail), Some(share)) = (&mut tail, share)
    {
        writer.move_tail(tail, share)?;
    }
    context.interrupt.check()?;
    let mut record = json!({
        "output": args.output,
        "documents": writer.documents(),
        "tokens": writer.tokens(),
        "bytes": writer.bytes(),
        "held_out": tail.as_ref().map(|tail| json!({
            "output": held_out,
            "documents": tail.documents(),
            "tokens": tail.tokens(),
            "bytes": tail.bytes(),
        })),
        "text_bytes": text_bytes,
        "vocab_size": vocab,
        "eos": eos,
        "tokenizer": files.name,
        "tokenizer_sha256": sha256.iter().map(|b| format!("{b:02x}")).collect::<String>(),
    });
    // Where the output is, what was held out of it is too.
    if let Some(tail) = tail {
        tail.commit()?;
    }
    writer.commit()?;
    let seconds = started.elapsed().as_secs_f64();
    record["seconds"] = json!(seconds);
    if args.json {
        return println(&record.to_string());
    }
    if !args.quiet {
        summary(&record, text_bytes, seconds);
    }
    Ok(())
}

fn summary(record: &Value, text_bytes: u64, seconds: f64) {
    for file in [Some(record), record["held_out"].is_object().then_some(&record["held_out"])] {
        let Some(file) = file else { continue };
        note(&format!(
            "{} documents, {} tokens, {} bytes: {}",
            file["documents"],
            file["tokens"],
            file["bytes"],
            file["output"].as_str().unwrap_or_default()
        ));
    }
    note(&format!(
        "{text_bytes} bytes of text in {seconds:.1} s, each document ended by token {}",
        record["eos"]
    ));
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Document => Split::Document,
            SplitName::Lines => Split::Lines,
            SplitName::BlankLines => Split::BlankLines,
        }
    }
}

/// The token behind each document.
fn eos(files: &TokenizerFiles, asked: Option<&str>) -> Result<u32> {
    let known = files.tokenizer.vocab_size();
    let Some(asked) = asked else {
        return files.special.eos.as_ref().map(|s| s.id).ok_or_else(|| {
            Error::request(format_args!(
                "nothing beside {} names an end-of-sequence token; give it with --eos, as an id or as the \
                 vocabulary spells it",
                files.name
            ))
        });
    };
    match (asked.parse::<u32>(), files.tokenizer.token_id(asked)) {
        (Ok(id), _) if (id as usize) < known => Ok(id),
        (Ok(id), None) => {
            let last = known.saturating_sub(1);
            Err(Error::request(format_args!("--eos {id}: expected an id of the vocabulary, 0 to {last}")))
        }
        (_, Some(id)) => Ok(id),
        (Err(_), None) => Err(Error::request(format_args!(
            "--eos {asked:?}: expected an id, or a token of {}; it has no such token",
            files.name
        ))),
    }
}

/// `plays.tok` to `plays-held-out.tok`.
fn held_out_path(output: &Path) -> Result<PathBuf> {
    let Some(stem) = output.file_stem() else {
        return Err(Error::request(format_args!(
            "--output {}: expected the name of a file",
            output.display()
        )));
    };
    let mut name = stem.to_owned();
    name.push("-held-out");
    if let Some(ending) = output.extension() {
        name.push(".");
        name.push(ending);
    }
    Ok(output.with_file_name(name))
}

fn progress(context: &Context, size: Option<u64>, quiet: bool) -> ProgressBar {
    let bar = context.progress(size.unwrap_or_default(), quiet);
    let template = match size {
        Some(_) => "{bar:30} {bytes}/{total_bytes}  {msg}  {eta} left",
        None => "{spinner} {bytes}  {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█░░"));
    }
    bar
}

/// Some documents as tokens.
struct Batch {
    documents: Vec<Vec<u32>>,
    /// Of text.
    bytes: u64,
}

/// Writes all documents; returns how many bytes of text they have.
fn fill(
    writer: &mut TokenWriter,
    texts: Texts,
    tokenizer: Tokenizer,
    bar: &ProgressBar,
    started: Instant,
    context: &Context,
) -> Result<u64> {
    let read = texts.read();
    let (worker, batches) = spawn(texts, tokenizer)?;
    let mut text_bytes = 0;
    loop {
        // Reading may wait for its source and a long text keeps the tokenizer busy: both are done by
        // another thread, so that the wish to stop is heard here.
        context.interrupt.check()?;
        match batches.recv_timeout(TICK) {
            Ok(batch) => {
                let batch = batch?;
                text_bytes += batch.bytes;
                batch.documents.iter().filter(|ids| !ids.is_empty()).try_for_each(|ids| writer.push(ids))?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        bar.set_position(read.load(Ordering::Relaxed));
        let rate = writer.tokens() as f64 / started.elapsed().as_secs_f64().max(1e-3);
        bar.set_message(format!("{:.1} M tokens, {:.0} tokens/s", writer.tokens() as f64 / 1e6, rate));
    }
    worker.join().map_err(|_| {
        Error::Tokenizer(
            "it gave up on a text; nothing was written. Pack the files one by one to find it".into(),
        )
    })?;
    Ok(text_bytes)
}

/// Starts the thread that reads texts and turns them into tokens. It ends with the texts, at the
/// first error, or when nobody wants more.
fn spawn(mut texts: Texts, tokenizer: Tokenizer) -> Result<(JoinHandle<()>, Receiver<Result<Batch>>)> {
    let (sender, receiver) = sync_channel(2);
    let work = move || while send_batch(&mut texts, &tokenizer, &sender) {};
    let worker = std::thread::Builder::new().name("pack".into()).spawn(work);
    let worker = worker.map_err(|e| Error::request(format_args!("cannot start a thread: {e}")))?;
    Ok((worker, receiver))
}

/// Sends a batch; `false` if it was the last one.
fn send_batch(texts: &mut Texts, tokenizer: &Tokenizer, sender: &SyncSender<Result<Batch>>) -> bool {
    let (mut documents, mut bytes, mut failed) = (Vec::new(), 0, None);
    while bytes < BATCH_BYTES && documents.len() < BATCH_DOCUMENTS {
        match texts.next_document() {
            Ok(Some(document)) => {
                bytes += document.len();
                documents.push(document);
            }
            Ok(None) => break,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if let Some(error) = failed {
        // Nobody listens: the work was stopped.
        let _ = sender.send(Err(error));
        return false;
    }
    if documents.is_empty() {
        return false;
    }
    let batch = tokens(&documents, tokenizer).map(|documents| Batch { documents, bytes: bytes as u64 });
    let go_on = batch.is_ok();
    sender.send(batch).is_ok() && go_on
}

/// The documents' tokens, found in parallel, in the order of the documents.
fn tokens(documents: &[String], tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let parts: Vec<(usize, &str)> = documents
        .iter()
        .enumerate()
        .flat_map(|(n, text)| tokenizer.parts(text, PART).into_iter().map(move |part| (n, part)))
        .collect();
    let encoded: Vec<Result<Vec<u32>>> = parts.par_iter().map(|(_, part)| tokenizer.encode(part)).collect();
    let mut ids = vec![Vec::new(); documents.len()];
    for ((n, _), part) in parts.iter().zip(encoded) {
        let part = part?;
        if let Some(document) = ids.get_mut(*n) {
            document.extend(part);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_held_out_file_stands_beside_the_output() {
        for (output, held_out) in [
            ("plays.tok", "plays-held-out.tok"),
            ("a/b.c/plays", "a/b.c/plays-held-out"),
            ("x.y.tok", "x.y-held-out.tok"),
        ] {
            assert_eq!(held_out_path(Path::new(output)).unwrap(), Path::new(held_out));
        }
        assert!(held_out_path(Path::new("..")).is_err());
    }

    #[test]
    fn the_end_by_id_by_name_and_by_default() {
        let files = TokenizerFiles::bundled().unwrap();
        assert_eq!(eos(&files, None).unwrap(), 1);
        assert_eq!(eos(&files, Some("7")).unwrap(), 7);
        assert_eq!(eos(&files, Some("<mask>")).unwrap(), 0);
        for wrong in ["1024", "<nothing>"] {
            assert!(eos(&files, Some(wrong)).unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn parts_do_not_change_tokens() {
        let files = TokenizerFiles::bundled().unwrap();
        let text = "To be, or\n\n  not to be:\nthat <eos>\nis\n \nthe question.\n".repeat(3000);
        let documents = [text.clone(), String::new(), "a".into()];
        let ids = tokens(&documents, &files.tokenizer).unwrap();
        assert!(files.tokenizer.parts(&text, PART).len() > 1);
        assert_eq!(ids[0], files.tokenizer.encode(&text).unwrap());
        assert_eq!((ids[1].len(), ids.len()), (0, 3));
    }
}
