//! Running `lacuna eval` and reading what it says.
#![allow(dead_code)] // each test target uses its own part of this

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub fn lacuna(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
    command.output().expect("the program runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// The results of `lacuna eval ARGS --json`.
pub fn results(args: &[&str]) -> Vec<Value> {
    let output = lacuna(&[&["eval"], args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("an object")).collect()
}

/// The value of a metric.
pub fn value(results: &[Value], metric: &str) -> f64 {
    let found = results.iter().find(|r| r["metric"] == metric);
    found.unwrap_or_else(|| panic!("no {metric} in {results:?}"))["value"].as_f64().expect("a number")
}

/// Exits with `code` and says `words` in one line on standard error.
pub fn fails(args: &[&str], code: i32, words: &str) {
    let output = lacuna(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(words), "{args:?}: {message}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
}
