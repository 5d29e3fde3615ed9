//! Runs of the training commands in a folder of their own.
#![allow(dead_code)] // each test target uses its own part of this

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use lacuna::io::{TokenWriter, TokenizerFiles};
use safetensors::SafeTensors;
use serde_json::Value;

/// What the golden model's token files name as their tokenizer; the model itself has none.
const NO_TOKENIZER: [u8; 32] = [7; 32];

/// A folder for runs, in which commands are started.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// With a.tok and b.tok of ids below 90 for the golden GPT-2, and text.tok and qa.jsonl for the bundled model.
    pub fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        lab.tokens(
            "a.tok",
            97,
            &NO_TOKENIZER,
            (0..30).map(|d| (0..97).map(|i| 3 + (i * 7 + d * 5) % 80).collect()),
        );
        lab.tokens(
            "b.tok",
            97,
            &NO_TOKENIZER,
            (0..9).map(|d| (0..150).map(|i| 3 + (i * i + d) % 87).collect()),
        );
        let tokenizer = TokenizerFiles::bundled().unwrap().tokenizer;
        let sentence = tokenizer.encode("the cat sat on the mat and the dog sat on the log.\n").unwrap();
        lab.tokens("text.tok", 1024, tokenizer.sha256(), (0..6).map(|_| sentence.repeat(20)));
        let pairs = (0..20).map(|i| format!("{{\"prompt\": \"Say {i}!\", \"answer\": \"the cat {i}\"}}\n"));
        fs::write(lab.path("qa.jsonl"), pairs.collect::<String>()).unwrap();
        lab
    }

    pub fn tokens(
        &self,
        name: &str,
        vocab: usize,
        tokenizer: &[u8; 32],
        documents: impl IntoIterator<Item = Vec<u32>>,
    ) {
        let eos = if vocab == 1024 { 1 } else { 2 };
        let mut writer = TokenWriter::create(&self.path(name), vocab, eos, tokenizer).unwrap();
        documents.into_iter().for_each(|ids| writer.push(&ids).unwrap());
        writer.commit().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `lacuna` with arguments that are divided by blanks.
    pub fn lacuna(&self, args: &str) -> Command {
        let mut command = Command::cargo_bin("lacuna").unwrap();
        command.env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE").current_dir(self.dir.path());
        command.args(args.split_whitespace());
        command
    }

    /// A command that succeeds; its standard error.
    #[track_caller]
    pub fn run(&self, args: &str) -> String {
        let assert = self.lacuna(args).assert().success();
        String::from_utf8(assert.get_output().stderr.clone()).unwrap()
    }

    /// A command that fails with `code` and one line that has all the words.
    #[track_caller]
    pub fn fails(&self, args: &str, code: i32, words: &[&str]) -> String {
        let output = self.lacuna(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args}: {text}");
        assert!(output.stdout.is_empty(), "{args}");
        let line = text.lines().find(|line| line.starts_with("error: "));
        let line = line.unwrap_or_else(|| panic!("{args}: no error in {text}")).to_owned();
        words.iter().for_each(|word| assert!(text.contains(word), "{args}: {word:?} is not in {text}"));
        line
    }

    pub fn spawn(&self, args: &str) -> Child {
        std::process::Command::new(assert_cmd::cargo::cargo_bin("lacuna"))
            .env_remove("LACUNA_MODEL")
            .env_remove("LACUNA_DEVICE")
            .current_dir(self.dir.path())
            .args(args.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts `args --output RUN` and kills it as soon as `seen` says so of RUN's checkpoints; anew where it was done by
    /// then.
    #[track_caller]
    pub fn killed(&self, args: &str, run: &str, steps: u64, seen: impl Fn(&[String]) -> bool) {
        for _ in 0..10 {
            let mut child = self.spawn(&format!("{args} --output {run}"));
            let ended = until(|| seen(&self.names(&format!("{run}/checkpoints"))), &mut child);
            child.kill().unwrap();
            child.wait().unwrap();
            if !self.path(&format!("{run}/checkpoints/step-{steps}")).exists() {
                assert!(!ended, "{args}: it failed");
                return;
            }
            fs::remove_dir_all(self.path(run)).unwrap();
        }
        panic!("{args}: it was done before it could be killed, ten times");
    }

    /// Sorted names in a folder; none where there is no folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The lines of a run's log: steps, and measurements.
    pub fn log(&self, run: &str) -> (Vec<Value>, Vec<Value>) {
        let text = fs::read_to_string(self.path(&format!("{run}/log.jsonl"))).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.partition(|line| line.get("validation").is_none())
    }

    /// Every tensor of a file, as dtype, shape and bytes.
    pub fn tensors(&self, file: &str) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
        let bytes = fs::read(self.path(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()))
        };
        file.tensors().into_iter().map(entry).collect()
    }
}

/// Waits until something is so; `true` when the process ended first.
#[track_caller]
pub fn until(so: impl Fn() -> bool, child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !so() {
        assert!(Instant::now() < deadline, "it takes too long");
        if child.try_wait().unwrap().is_some() {
            return !so();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    false
}

/// The golden GPT-2, with 97 tokens, 64 positions and no mask token.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/gpt2-tiny")
}

/// Flags for it.
pub fn tiny() -> String {
    format!("--model {} --data a.tok=3 --data b.tok=1 --batch 3 --length 48", golden().display())
}
