//! `lacuna batch`: JSON lines to JSON lines.

use assert_cmd::Command;
use predicates::str::contains;
use serde_json::{Value, json};

fn lacuna() -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL");
    command
}

fn lines(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).expect("UTF-8");
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Seven requests with nothing in common.
const MIXED: [&str; 7] = [
    r#"{"id": "plain", "length": 20, "steps": 7}"#,
    r#"{"id": "prompt", "prompt": "ROMEO:", "length": 30, "steps": 12, "seed": 5, "temperature": 0.8, "top_k": 20}"#,
    r#"{"id": "gaps", "text": "First[[gap:3]] then[[gap:2-4]] end.", "steps": 4, "greedy": true}"#,
    r#"{"id": "around", "prefix": "KING:", "gap": "5", "suffix": " my lord.", "order": "margin", "steps": 3}"#,
    r#"{"id": "sure", "prompt": "JULIET:", "length": 16, "threshold": 0.2}"#,
    r#"{"id": "again", "length": 24, "steps": 10, "order": "confidence", "remask": true, "schedule": "cosine"}"#,
    r#"{"id": "left", "prompt": "O", "length": 10, "ar": true, "greedy": true}"#,
];

#[test]
fn mixed_requests_come_back_in_order_and_as_if_alone() {
    let together = lacuna().args(["batch", "-q"]).write_stdin(MIXED.join("\n")).assert().success();
    let together = lines(&together.get_output().stdout);
    assert_eq!(together.len(), 7);
    for (i, (request, result)) in MIXED.iter().zip(&together).enumerate() {
        let id = serde_json::from_str::<Value>(request).expect("JSON")["id"].clone();
        assert_eq!((&result["id"], &result["line"]), (&id, &json!(i + 1)));
        let alone = lacuna()
            .args(["batch", "-q", "--threads", "1", "--batch", "1"])
            .write_stdin(*request)
            .assert()
            .success();
        let alone = &lines(&alone.get_output().stdout)[0];
        assert_eq!(alone["canvas_ids"], result["canvas_ids"], "{request}");
        assert_eq!(alone["text"], result["text"]);
    }
    let orders: Vec<&str> = together.iter().map(|r| r["order"].as_str().expect("order")).collect();
    assert_eq!(
        orders,
        ["random", "random", "random", "margin", "confidence", "confidence", "autoregressive"]
    );
    assert_eq!(together[2]["candidates"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_line_gives_what_generate_gives() {
    let generated = lacuna()
        .args(["generate", "-q", "--json", "-p", "ROMEO:", "-l", "15", "-T", "6", "--seed", "3"])
        .assert()
        .success();
    let batch = lacuna()
        .args(["batch", "-q", "--seed", "3", "-T", "6"])
        .write_stdin(r#"{"prompt": "ROMEO:", "length": 15}"#)
        .assert()
        .success();
    let (a, b) = (&lines(&generated.get_output().stdout)[0], &lines(&batch.get_output().stdout)[0]);
    assert_eq!(a["canvas_ids"], b["canvas_ids"]);
    assert_eq!(a["score"], b["score"]);
}

const ONE_WRONG: &str = "{\"length\": 4}\n\n{\"lenght\": 4, \"id\": 8}\n{\"length\": 5}\n";

#[test]
fn a_wrong_line_is_a_result_with_an_error_and_the_others_are_done() {
    let out = lacuna().args(["batch", "-q", "-T", "3"]).write_stdin(ONE_WRONG).assert().code(2);
    let results = lines(&out.get_output().stdout);
    let numbers: Vec<_> = results.iter().map(|r| r["line"].as_u64().expect("line")).collect();
    assert_eq!(numbers, [1, 3, 4]);
    let message = results[1]["error"].as_str().expect("error");
    assert!(message.contains("line 3") && message.contains("lenght"), "{message}");
    assert_eq!((&results[1]["id"], &results[1]["code"]), (&json!(8), &json!(2)));
    assert_eq!(results[2]["tokens"], 5);
    assert!(String::from_utf8_lossy(&out.get_output().stderr).contains("1 of 3 lines failed"));
}

#[test]
fn strict_stops_at_a_wrong_line_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("out.jsonl");
    lacuna()
        .args(["batch", "--strict", "-o"])
        .arg(&output)
        .write_stdin(ONE_WRONG)
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("line 3"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}

#[test]
fn a_file_appears_whole_with_totals_for_programs() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("out.jsonl");
    let out = lacuna()
        .args(["batch", "-", "--json", "-T", "4", "-o"])
        .arg(&output)
        .write_stdin("{\"length\": 4}\n{\"length\": 6}\n")
        .assert()
        .success()
        .stderr(contains("2 of 2 lines"));
    let totals = &lines(&out.get_output().stdout)[0];
    assert_eq!((&totals["done"], &totals["failed"], &totals["tokens"]), (&json!(2), &json!(0), &json!(10)));
    let results = lines(&std::fs::read(&output).expect("the output"));
    assert_eq!(results.iter().map(|r| r["tokens"].clone()).collect::<Vec<_>>(), [json!(4), json!(6)]);
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
}

#[test]
fn empty_input_is_an_empty_output() {
    lacuna().args(["batch", "-q"]).write_stdin("\n\n").assert().success().stdout("");
}

#[test]
fn a_text_too_long_for_the_context_names_its_line() {
    let out = lacuna().args(["batch", "-q"]).write_stdin("{\"length\": 4000}").assert().code(2);
    let result = &lines(&out.get_output().stdout)[0];
    assert!(result["error"].as_str().expect("error").contains("--length 127"), "{result}");
}
