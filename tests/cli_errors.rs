//! What goes wrong on the command line: one line that says what was expected, the exit code that
//! the README promises, and nothing half written.

use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn lacuna() -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL").env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs `args`, expects `code` and one line on standard error that contains `words`.
fn fails(args: &[&str], code: i32, words: &str) {
    let out = lacuna().args(args).assert().code(code).stdout("").stderr(contains(words));
    let text = String::from_utf8(out.get_output().stderr.clone()).expect("UTF-8");
    assert!(text.starts_with("error: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn requests_that_cannot_be_honoured() {
    for (args, words) in [
        (&["generate", "-p", ""][..], "the prompt is empty"),
        (&["generate", "--length", "0"], "--length 0"),
        (&["generate", "--length", "1000"], "at most --length 127 fits"),
        (&["generate", "--steps", "0"], "--steps 0"),
        (&["generate", "--batch", "0"], "--batch 0"),
        (&["generate", "--temperature", "nan"], "--temperature"),
        (&["generate", "--top-p", "0"], "--top-p 0"),
        (&["generate", "--top-p", "1.5"], "--top-p 1.5"),
        (&["generate", "--mask-id", "1024"], "--mask-id 1024"),
        (&["generate", "--remask"], "--order confidence"),
        (&["generate", "--order", "random", "--threshold", "0.5"], "--threshold"),
        (&["generate", "--device", "gpu"], "expected cpu"),
        (&["generate", "--device", "abacus"], "expected cpu"),
        (&["generate", "--bos", "never"], "--bos never"),
        (&["generate", "--trace", "run.txt"], ".html"),
        (&["infill", "no gap"], "[[gap:12]]"),
        (&["infill", "a [[gap:0]] b"], "[[gap:0]]"),
        (&["infill", "a [[gap:3 b"], "not closed"),
        (&["infill", "a[[gap:1-40]]b[[gap:1-40]]"], "1600 combinations"),
        (&["infill", "a[[gap:400]]b"], "the context of bard-diffusion holds 128"),
        (&["infill", "a[[gap:4]]b", "--ar"], "--ar"),
        (&["batch", "--resume"], "-o"),
    ] {
        fails(args, 2, words);
    }
}

#[test]
fn a_prompt_longer_than_the_context() {
    let long = "word ".repeat(500);
    fails(&["generate", "-p", &long], 2, "shorten the prompt");
}

#[test]
fn wrong_usage_is_code_2() {
    for args in [
        &["generate", "--nonsense"][..],
        &["generate", "--greedy", "--temperature", "1"],
        &["generate", "--ar", "--order", "margin"],
        &["generate", "--threads", "0"],
        &["generate", "--order", "sideways"],
        &["infill"],
        &["infill", "--gap", "9-4"],
        &["infill", "a[[gap:1]]", "--gap", "4"],
    ] {
        lacuna().args(args).assert().code(2).stdout("").stderr(contains("error:"));
    }
}

#[test]
fn files_that_are_not_there() {
    fails(&["generate", "--prompt-file", "/nonexistent/prompt.txt"], 3, "/nonexistent/prompt.txt");
    fails(&["generate", "--model", "/nonexistent/model"], 3, "/nonexistent/model");
    fails(&["batch", "/nonexistent/in.jsonl"], 3, "/nonexistent/in.jsonl");
    fails(&["batch", "/dev/null", "-o", "/nonexistent/out.jsonl"], 3, "/nonexistent/out.jsonl");
}

#[test]
fn a_folder_that_is_no_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"model_type": "gpt2", "n_head": 0}"#).expect("written");
    let model = dir.path().to_str().expect("path");
    lacuna().args(["generate", "--model", model]).assert().code(4).stderr(contains("config.json"));
}

#[test]
fn an_unwritable_trace_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("no/such/folder/run.html");
    lacuna()
        .args(["generate", "-q", "-l", "4", "-T", "2", "--trace", path.to_str().expect("path")])
        .assert()
        .code(3)
        .stderr(contains("run.html"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let out = lacuna()
        .args(["generate", "--json", "--length", "0"])
        .assert()
        .code(2)
        .stderr(predicate::str::starts_with("error: "));
    let text = String::from_utf8(out.get_output().stdout.clone()).expect("UTF-8");
    let value: Value = serde_json::from_str(text.trim_end()).expect("one object");
    assert_eq!(value["code"], 2);
    assert!(value["error"].as_str().expect("message").contains("--length 0"));
}

/// Nothing but whole files may be left in a folder.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("readable")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(unix)]
mod signals {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Starts `lacuna`, with a run long enough to be stopped in the middle.
    fn start(args: &[&str]) -> Child {
        let program = assert_cmd::cargo::cargo_bin("lacuna");
        let mut command = Command::new(program);
        command.args(args).env_remove("LACUNA_MODEL");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("started")
    }

    fn interrupt(child: &Child) {
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
        assert!(status.success());
    }

    fn rest(mut from: impl Read) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("UTF-8");
        text
    }

    #[test]
    fn ctrl_c_prints_what_there_is_and_leaves_nothing_half_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let trace = dir.path().join("run.jsonl");
        let trace = trace.to_str().expect("path");
        // Greedy left-to-right steps of hundreds of samples: long, and many lines of --watch.
        let args = ["generate", "--json", "--watch", "--batch", "400", "-T", "127", "--trace", trace];
        let mut child = start(&args);
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a first line");
        assert!(line.starts_with("step "), "{line}");
        interrupt(&child);
        let stdout = rest(child.stdout.take().expect("piped"));
        let stderr = rest(stderr);
        assert_eq!(child.wait().expect("ended").code(), Some(130), "{stderr}");
        assert!(stderr.trim_end().ends_with("interrupted"), "{stderr}");
        let lines: Vec<Value> = stdout.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert!((1..400).contains(&lines.len()), "{}", lines.len());
        let stopped = lines.iter().find(|l| l["error"] == "interrupted" && l["text"].is_string());
        let stopped = stopped.expect("a sample was in the middle");
        assert_eq!(stopped["code"], 130);
        assert!(stopped["text"].as_str().expect("text").contains("[[gap:"));
        // The recording is whole: each sample ends in a result or an error.
        assert_eq!(names(dir.path()), ["run.jsonl"]);
        let data = std::fs::read_to_string(trace).expect("the recording");
        let ends = data
            .lines()
            .filter(|l| l.starts_with(r#"{"type":"result""#) || l.starts_with(r#"{"type":"error""#));
        assert_eq!(ends.count(), lines.len());
    }

    #[test]
    fn a_stopped_batch_is_kept_and_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name).to_str().expect("path").to_owned();
        let (input, output) = (path("in.jsonl"), path("out.jsonl"));
        let lines: String = (0..12)
            .map(|i| format!("{{\"id\": {i}, \"seed\": {i}, \"length\": 100, \"steps\": 50}}\n"))
            .collect();
        std::fs::write(&input, lines).expect("written");
        let args = ["batch", input.as_str(), "-o", output.as_str(), "--batch", "1"];
        let mut child = start(&args);
        let part = path("out.jsonl.part");
        let has_results = || std::fs::read_to_string(&part).is_ok_and(|t| t.lines().count() > 2);
        while !has_results() {
            assert!(child.try_wait().expect("status").is_none(), "it ended before it could be stopped");
            std::thread::sleep(Duration::from_millis(5));
        }
        interrupt(&child);
        let stderr = rest(child.stderr.take().expect("piped"));
        assert_eq!(child.wait().expect("ended").code(), Some(130), "{stderr}");
        assert!(stderr.contains("--resume"), "{stderr}");
        assert_eq!(names(dir.path()), ["in.jsonl", "out.jsonl.part"]);

        // Without --resume nothing is thrown away.
        lacuna().args(args).assert().code(2).stderr(contains("--resume"));
        lacuna().args(args).arg("--resume").assert().success().stderr(contains("there already"));
        assert_eq!(names(dir.path()), ["in.jsonl", "out.jsonl"]);
        let resumed = std::fs::read_to_string(&output).expect("the output");
        let ids: Vec<i64> = resumed
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).expect("JSON")["id"].as_i64().expect("id"))
            .collect();
        assert_eq!(ids, (0..12).collect::<Vec<_>>());

        // An uninterrupted run gives the same tokens.
        let straight = path("straight.jsonl");
        lacuna().args(["batch", &input, "-o", &straight, "-q"]).assert().success();
        let tokens = |text: &str| -> Vec<Value> {
            text.lines()
                .map(|l| serde_json::from_str::<Value>(l).expect("JSON")["canvas_ids"].clone())
                .collect()
        };
        assert_eq!(tokens(&resumed), tokens(&std::fs::read_to_string(&straight).expect("the output")));
    }

    /// Nobody looked whether to stop while standard input was awaited.
    #[test]
    fn ctrl_c_while_input_is_awaited_ends_the_program() {
        for args in [&["generate", "-p", "-"][..], &["batch"], &["tokenize"], &["infill", "-"]] {
            let program = assert_cmd::cargo::cargo_bin("lacuna");
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("started");
            // Waiting for a child closes its input, unless somebody else holds it.
            let _input = child.stdin.take();
            // A signal that comes before the program listens ends it too, without a word.
            std::thread::sleep(Duration::from_millis(300));
            interrupt(&child);
            let stderr = child.stderr.take().expect("piped");
            match child.wait().expect("ended").code() {
                Some(code) => assert_eq!((code, rest(stderr).as_str()), (130, "interrupted\n"), "{args:?}"),
                None => eprintln!("{args:?}: the signal came before the program listened"),
            }
        }
    }

    /// `timeout` signals the program and its group: that was taken for a second Ctrl-C.
    #[test]
    fn one_wish_to_stop_in_two_signals_keeps_what_is_done() {
        let mut child = start(&["generate", "--watch", "--batch", "400", "-T", "127"]);
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a first line");
        interrupt(&child);
        interrupt(&child);
        let stdout = rest(child.stdout.take().expect("piped"));
        assert!(stdout.contains("[[gap:"), "{stdout}");
        assert!(rest(stderr).contains("stopped after step"));
        assert_eq!(child.wait().expect("ended").code(), Some(130));
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let mut child = start(&["generate", "-q", "--batch", "20", "-l", "60", "-T", "4", "--json"]);
        drop(child.stdout.take());
        let stderr = rest(child.stderr.take().expect("piped"));
        assert_eq!((child.wait().expect("ended").code(), stderr.as_str()), (Some(0), ""));
    }
}
