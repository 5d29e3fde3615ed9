//! `lacuna pack`, end to end.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use lacuna::io::{TokenFile, TokenizerFiles};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/bard-diffusion");

fn pack(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL").current_dir(dir).arg("pack").args(args);
    command
}

/// A folder with files of these names and contents.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    files.iter().for_each(|(name, content)| std::fs::write(dir.path().join(name), content).expect("written"));
    dir
}

fn open(path: PathBuf) -> TokenFile {
    TokenFile::open(&path).expect("a token file")
}

/// Runs a command that must fail with `code`, one line that has `words`, and no new file.
#[track_caller]
fn fails(dir: &Path, args: &[&str], code: i32, words: &[&str]) {
    let names = || std::fs::read_dir(dir).expect("readable").count();
    let before = names();
    let out = pack(dir, args).assert().code(code).stdout("").stderr(predicate::str::starts_with("error: "));
    let text = String::from_utf8(out.get_output().stderr.clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text}"));
    assert_eq!(names(), before, "{args:?} left something behind");
}

#[test]
fn texts_of_several_kinds_become_one_file() {
    let dir = folder(&[("a.txt", "To be\n"), ("b.jsonl", "{\"text\": \"or not\"}\n{\"text\": \"to be\"}\n")]);
    pack(dir.path(), &["a.txt", "b.jsonl", "--output", "all.tok"])
        .assert()
        .success()
        .stdout("")
        .stderr(contains("3 documents").and(contains("all.tok")).and(contains("tokens")));
    let files = TokenizerFiles::bundled().expect("bundled");
    let mut expected = Vec::new();
    for text in ["To be\n", "or not", "to be"] {
        expected.extend(files.tokenizer.encode(text).expect("encoded"));
        expected.push(1);
    }
    let file = open(dir.path().join("all.tok"));
    assert_eq!(file.slice(0..file.len()), expected);
    assert_eq!((file.vocab_size(), file.eos(), file.documents()), (1024, 1, 3));
    file.check_tokenizer(files.tokenizer.sha256(), "bundled").expect("the same");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 3);
}

#[test]
fn many_documents_keep_their_order() {
    let lines: String = (0..40_000).map(|i| format!("{{\"body\": \"line {i}\"}}\n")).collect();
    let dir = folder(&[("a.jsonl", &lines)]);
    pack(dir.path(), &["a.jsonl", "--field", "body", "-o", "a.tok", "-q"]).assert().success().stderr("");
    let file = open(dir.path().join("a.tok"));
    let ids = file.slice(0..file.len());
    let tokenizer = TokenizerFiles::bundled().expect("bundled").tokenizer;
    for (i, document) in ids.split_inclusive(|&id| id == 1).enumerate() {
        if i % 997 == 0 {
            assert_eq!(tokenizer.decode(document).expect("decoded"), format!("line {i}"));
        }
    }
    assert_eq!(file.documents(), 40_000);
}

#[test]
fn the_tokenizer_is_a_file_or_a_folder_and_the_record_says_all() {
    let dir = folder(&[("a.txt", "To be\n\nor not\n")]);
    let mut records = Vec::new();
    for tokenizer in [ASSETS.to_owned(), format!("{ASSETS}/tokenizer.json")] {
        let args = [
            "a.txt",
            "-o",
            "a.tok",
            "--tokenizer",
            &tokenizer,
            "--split",
            "blank-lines",
            "--eos",
            "7",
            "--json",
        ];
        let out = pack(dir.path(), &args).assert().success().stderr("");
        let mut record: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
        assert!(record["seconds"].as_f64().expect("seconds") > 0.0);
        assert_eq!(record["tokenizer"], *tokenizer);
        record["seconds"] = Value::Null;
        record["tokenizer"] = Value::Null;
        records.push(record);
    }
    assert_eq!(records[0], records[1]);
    let (record, file) = (&records[0], open(dir.path().join("a.tok")));
    assert_eq!(
        (&record["documents"], &record["eos"], &record["vocab_size"]),
        (&2.into(), &7.into(), &1024.into())
    );
    assert_eq!(record["tokens"], file.len());
    assert_eq!(record["bytes"], std::fs::metadata(file.path()).expect("it is there").len());
    assert_eq!((&record["text_bytes"], &record["held_out"]), (&11.into(), &Value::Null));
    let hash: String = file.tokenizer_hash().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(record["tokenizer_sha256"], hash);
}

#[test]
fn standard_input_is_text() {
    let dir = folder(&[]);
    let args = ["-", "-o", "a.tok", "--split", "lines", "--eos", "<eos>"];
    pack(dir.path(), &args).write_stdin("one\n\ntwo\n").assert().success().stderr(contains("2 documents"));
    assert_eq!(open(dir.path().join("a.tok")).documents(), 2);
}

#[test]
fn a_single_document_is_held_out_from_by_tokens() {
    let text: String = (0..3000).map(|i| format!("Line {i} of the play,\nand so on.\n\n")).collect();
    let dir = folder(&[("play.txt", &text)]);
    pack(dir.path(), &["play.txt", "-o", "whole.tok"]).assert().success();
    let out =
        pack(dir.path(), &["play.txt", "-o", "play.tok", "--held-out", "5", "--json"]).assert().success();
    let record: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
    let (whole, train, held) = (
        open(dir.path().join("whole.tok")),
        open(dir.path().join("play.tok")),
        open(dir.path().join("play-held-out.tok")),
    );
    assert_eq!(record["held_out"]["tokens"], held.len());
    assert_eq!(held.len(), (whole.len() as f64 * 0.05).round() as usize);
    let joined = [train.slice(0..train.len() - 1), held.slice(0..held.len())].concat();
    assert_eq!(joined, whole.slice(0..whole.len()));
    assert_eq!((train.documents(), held.documents()), (1, 1));
    // With documents, whole ones are held out.
    let args = ["play.txt", "-o", "lines.tok", "--split", "lines", "--held-out", "5"];
    pack(dir.path(), &args).assert().success().stderr(contains("lines-held-out.tok"));
    let (train, held) = (open(dir.path().join("lines.tok")), open(dir.path().join("lines-held-out.tok")));
    assert_eq!(train.documents() + held.documents(), 6000);
    assert!((250..350).contains(&held.documents()), "{}", held.documents());
}

#[test]
fn wrong_requests_leave_nothing() {
    let dir = folder(&[
        ("a.txt", "To be"),
        ("empty.txt", ""),
        ("blank.jsonl", "\n\n"),
        ("bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": 1}\n"),
        ("a.csv", "x"),
    ]);
    for (args, code, words) in [
        (&["empty.txt", "-o", "o.tok"][..], 2, &["o.tok", "no tokens"][..]),
        (&["empty.txt", "-o", "o.tok", "--held-out", "5"], 2, &["no tokens"]),
        (&["blank.jsonl", "-o", "o.tok"], 2, &["no tokens"]),
        (&["bad.jsonl", "-o", "o.tok"], 2, &["bad.jsonl line 2", "`text`", "a string"]),
        (&["a.txt", "bad.jsonl", "-o", "o.tok", "--held-out", "5"], 2, &["line 2"]),
        (&["a.csv", "-o", "o.tok"], 2, &["a.csv", "kind of file"]),
        (&["gone.txt", "-o", "o.tok"], 3, &["gone.txt"]),
        (&["a.txt", "-o", "no/o.tok"], 3, &["no/o.tok"]),
        (&["a.txt", "-o", "/dev/null"], 3, &["/dev/null"]),
        (&["a.txt", "-o", "a.txt"], 2, &["read and written"]),
        (&["a.txt", "-o", "o.tok", "--held-out", "0"], 2, &["--held-out 0"]),
        (&["a.txt", "-o", "o.tok", "--held-out", "100"], 2, &["--held-out 100"]),
        (&["a.txt", "-o", "o.tok", "--held-out", "-3"], 2, &["--held-out -3"]),
        (&["a.txt", "-o", "o.tok", "--held-out", "1"], 2, &["at least 2 tokens"]),
        (&["a.txt", "-o", "o.tok", "--eos", "1024"], 2, &["--eos 1024", "0 to 1023"]),
        (&["a.txt", "-o", "o.tok", "--eos", "<end>"], 2, &["--eos", "<end>"]),
        (&["a.txt", "-o", "o.tok", "--tokenizer", "gone.json"], 3, &["gone.json"]),
        (&["a.txt", "-o", "o.tok", "--tokenizer", "a.txt"], 4, &["tokenizer", "a.txt"]),
        (&["a.txt", "-o", "o.tok", "--tokenizer", "."], 4, &["tokenizer.json"]),
    ] {
        fails(dir.path(), args, code, words);
    }
}

#[test]
fn an_older_file_survives_a_failure() {
    let dir = folder(&[("bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": 1}\n"), ("o.tok", "old")]);
    fails(dir.path(), &["bad.jsonl", "-o", "o.tok"], 2, &["line 2"]);
    assert_eq!(std::fs::read_to_string(dir.path().join("o.tok")).expect("readable"), "old");
}

#[test]
fn with_json_an_error_is_an_object() {
    let dir = folder(&[("empty.txt", "")]);
    let out = pack(dir.path(), &["empty.txt", "-o", "o.tok", "--json"]).assert().code(2);
    let value: Value = serde_json::from_slice(&out.get_output().stdout).expect("one object");
    assert_eq!(value["code"], 2);
}

/// A signal while standard input gives nothing: the program ends, and its files are gone.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::io::Write as _;
    use std::process::Stdio;
    let dir = folder(&[]);
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("lacuna"))
        .current_dir(dir.path())
        .args(["pack", "-", "-o", "o.tok", "--split", "lines", "--held-out", "5"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"one\ntwo\n").expect("written");
    let entries = || std::fs::read_dir(dir.path()).expect("readable").count();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while entries() < 2 {
        assert!(std::time::Instant::now() < deadline, "the files were not begun");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert_eq!(entries(), 0);
}

#[test]
fn help_teaches() {
    let dir = folder(&[]);
    pack(dir.path(), &["--help"]).assert().success().stdout(
        contains("Examples:")
            .and(contains("--held-out"))
            .and(contains("blank-lines"))
            .and(contains("[default:")),
    );
}
