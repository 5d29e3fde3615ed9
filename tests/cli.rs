//! The command line, end to end, with the bundled model: what goes in, what comes out on which
//! stream, and with which exit code.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

/// The program without the environment's say.
fn lacuna() -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL").env_remove("NO_COLOR").env("HF_HUB_OFFLINE", "1");
    command
}

fn stdout(args: &[&str]) -> String {
    let out = lacuna().args(args).assert().success();
    String::from_utf8(out.get_output().stdout.clone()).expect("UTF-8")
}

fn json(args: &[&str]) -> Vec<Value> {
    let text = stdout(args);
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[test]
fn generate_without_arguments_prints_text_and_a_summary() {
    lacuna()
        .arg("generate")
        .assert()
        .success()
        .stdout(predicate::str::is_match(r"[A-Za-z]{2}").expect("pattern"))
        .stderr(predicate::str::is_match(
            r"^\d+ tokens, \d+ forward passes \(NFE\), [\d.]+ tokens/forward, [\d.]+ s, [\d.]+ tokens/s, seed 0\n$",
        ).expect("pattern"));
}

#[test]
fn quiet_says_nothing_but_the_text() {
    lacuna().args(["generate", "-q", "-l", "5"]).assert().success().stderr("");
}

#[test]
fn json_has_what_programs_rely_on() {
    let args = ["generate", "-p", "ROMEO:", "--length", "12", "--steps", "6", "--seed", "9", "--json", "-q"];
    let lines = json(&args);
    let [line] = &lines[..] else { panic!("{} lines", lines.len()) };
    let text = line["text"].as_str().expect("text");
    assert!(text.starts_with("ROMEO:"), "{text}");
    let filled = line["filled"][0]["text"].as_str().expect("filled");
    assert_eq!(format!("ROMEO:{filled}"), text);
    let tokens = line["tokens"].as_u64().expect("tokens");
    assert_eq!(line["token_ids"].as_array().expect("ids").len() as u64, tokens);
    assert!((1..=6).contains(&line["nfe"].as_u64().expect("nfe")));
    assert!(line["seconds"].as_f64().expect("seconds") > 0.0);
    assert!(line["tokens_per_s"].as_f64().expect("rate") > 0.0);
    assert!(line["score"].as_f64().expect("score") < 0.0);
    assert_eq!(line["seed"], 9);
    assert_eq!(line["steps"], 6);
    assert_eq!(line["top_p"], 0.9);
    assert_eq!(line["order"], "random");
    assert_eq!(line["prompt"], "ROMEO:");
    assert_eq!(line["model"], "bard-diffusion");
    assert_eq!(line["finish"], "length");
}

#[test]
fn same_seed_same_text_other_seed_other_text() {
    let text = |seed: &str, threads: &str| {
        stdout(&["generate", "-q", "-l", "30", "-T", "10", "--seed", seed, "--threads", threads])
    };
    assert_eq!(text("1", "1"), text("1", "2"));
    assert_ne!(text("1", "1"), text("2", "1"));
}

#[test]
fn samples_do_not_depend_on_their_number() {
    let samples = |n: &str| json(&["generate", "-q", "--json", "-l", "20", "-T", "8", "--batch", n]);
    let (two, three) = (samples("2"), samples("3"));
    assert_eq!((two.len(), three.len()), (2, 3));
    for (a, b) in two.iter().zip(&three) {
        assert_eq!(a["canvas_ids"], b["canvas_ids"]);
    }
    assert_ne!(two[0]["canvas_ids"], two[1]["canvas_ids"]);
}

#[test]
fn prompt_from_standard_input_and_from_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "KING:\n").expect("written");
    let args = ["generate", "-q", "-l", "8", "-T", "4"];
    let direct = stdout(&[&args[..], &["-p", "KING:"]].concat());
    let from_file = stdout(&[&args[..], &["--prompt-file", file.to_str().expect("path")]].concat());
    assert_eq!(direct, from_file);
    lacuna().args(args).args(["-p", "-"]).write_stdin("KING:\n").assert().success().stdout(direct);
}

#[test]
fn every_order_and_way_of_drawing_works() {
    for flags in [
        "--order confidence --schedule cosine --confidence-noise 0.5",
        "--order confidence --remask",
        "--order entropy",
        "--order margin --block-length 5",
        "--threshold 0.3",
        "--order entropy --threshold -2",
        "--greedy",
        "--top-k 5 --top-p 1 --temperature 0.7",
        "--allow-mask-token --ignore-eos --bos always",
        "--ar -p KING --greedy",
        "--no-shift",
    ] {
        let args = ["generate", "-q", "--json", "-l", "12", "-T", "6"];
        let lines = json(&args.into_iter().chain(flags.split(' ')).collect::<Vec<_>>());
        assert!(lines[0]["nfe"].as_u64().expect("nfe") >= 1, "{flags}: {}", lines[0]);
        assert!(!lines[0]["text"].as_str().expect("text").is_empty(), "{flags}");
    }
}

#[test]
fn infill_keeps_the_given_text_around_every_gap() {
    let text = stdout(&["infill", "-q", "-T", "4", "First[[gap:3]] then[[gap:2]] end."]);
    let inner = text.trim_end().strip_prefix("First").expect("prefix").strip_suffix(" end.").expect("suffix");
    assert!(inner.contains(" then"), "{text}");
    assert!(!text.contains("[["));
}

#[test]
fn infill_range_keeps_the_best_and_shows_all() {
    let lines = json(&["infill", "-q", "--json", "-T", "4", "To be,[[gap:2-4]] that[[gap:1-2]] is"]);
    let candidates = lines[0]["candidates"].as_array().expect("candidates");
    assert_eq!(candidates.len(), 6);
    let scores: Vec<f64> = candidates.iter().map(|c| c["score"].as_f64().expect("score")).collect();
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(lines[0]["score"].as_f64(), Some(best));
    let chosen = &candidates[scores.iter().position(|s| *s == best).expect("it is there")];
    assert_eq!(lines[0]["text"], chosen["text"]);
    let filled = |i: usize| lines[0]["filled"][i]["length"].clone();
    assert_eq!(chosen["gaps"], serde_json::json!([filled(0), filled(1)]));
}

#[test]
fn infill_by_prefix_and_suffix_is_the_same_as_marks() {
    let marks = stdout(&["infill", "-q", "-T", "4", "KING:[[gap:5]] my lord."]);
    let flags =
        stdout(&["infill", "-q", "-T", "4", "--prefix", "KING:", "--gap", "5", "--suffix", " my lord."]);
    assert_eq!(marks, flags);
}

#[test]
fn trace_page_and_data_hold_the_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let (page, data) = (dir.path().join("run.html"), dir.path().join("run.jsonl"));
    let mut texts = Vec::new();
    for path in [&page, &data] {
        let path = path.to_str().expect("path");
        texts.push(stdout(&["generate", "-q", "-l", "10", "-T", "5", "--trace", path]));
    }
    assert_eq!(texts[0], texts[1], "recording changed the text");
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    let data = std::fs::read_to_string(data).expect("the data");
    let lines: Vec<Value> = data.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["type"], &last["type"]), (&"header".into(), &"result".into()));
    // The steps, replayed, end in the result.
    let mut canvas: Vec<Value> = first["canvas"].as_array().expect("canvas").clone();
    for step in lines.iter().filter(|l| l["type"] == "step") {
        for commit in step["committed"].as_array().expect("commits") {
            canvas[commit["position"].as_u64().expect("position") as usize] = commit["token"].clone();
            let piece = &first["pieces"][commit["token"].to_string()];
            assert!(piece.is_string(), "no text for token {}", commit["token"]);
        }
    }
    assert_eq!(Value::Array(canvas), last["canvas_ids"]);
}

#[test]
fn watch_without_a_terminal_is_a_line_every_few_steps() {
    let out = lacuna().args(["generate", "--watch", "-l", "40", "-T", "40"]).assert().success();
    let text = String::from_utf8(out.get_output().stderr.clone()).expect("UTF-8");
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("step ")).collect();
    assert!((2..=12).contains(&lines.len()), "{text}");
    assert!(lines[lines.len() - 1].contains("masked 0/40"), "{text}");
    assert!(!text.contains('\x1b'), "escape sequences in a log");
}

#[test]
fn help_names_defaults_examples_and_exit_codes() {
    lacuna().args(["generate", "--help"]).assert().success().stdout(
        contains("[default: 64]")
            .and(contains("Examples:"))
            .and(contains("Which order"))
            .and(contains("0.9")),
    );
    lacuna().arg("--help").assert().success().stdout(contains("Exit codes").and(contains("130")));
    lacuna().assert().code(2).stderr(contains("generate"));
}
