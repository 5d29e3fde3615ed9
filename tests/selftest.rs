//! `lacuna selftest`: what it says, on which stream, and with which exit code.
#![cfg(feature = "simt")]

use assert_cmd::Command;
use lacuna::backend::cuda::driver;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn selftest(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.arg("selftest").args(args);
    command
}

fn objects(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).expect("UTF-8");
    text.lines().map(|l| serde_json::from_str(l).expect("one object a line")).collect()
}

#[test]
fn the_kernels_of_a_file_pass_on_the_simt_machine() {
    selftest(&["--device", "simt", "--quick", "--filter", "norm"])
        .assert()
        .success()
        .stderr("")
        .stdout(contains("host SIMT machine").and(contains("norm_layer_bf16")).and(contains("worst at")))
        .stdout(contains("cases passed").and(contains("FAILED").not()));
}

#[test]
fn the_cpu_passes() {
    selftest(&["--device", "cpu", "--quick"])
        .assert()
        .success()
        .stdout(contains("attention_portable").and(contains("unmask ")).and(contains("FAILED").not()));
}

#[test]
fn as_json_a_case_a_line_and_the_sums() {
    let args = ["--device", "simt", "--json", "--filter", "norm_rms_f16", "--schedules", "2", "--seed", "5"];
    let out = selftest(&args).assert().success().stderr("").get_output().stdout.clone();
    let lines = objects(&out);
    let (summary, cases) = lines.split_last().expect("lines");
    assert!(cases.len() >= 2 && cases.len() % 2 == 0, "{}", cases.len());
    for case in cases {
        assert_eq!(case["type"], "case");
        assert_eq!((&case["kernel"], &case["stem"]), (&"norm_rms_f16".into(), &"norm".into()));
        assert_eq!((&case["passed"], &case["seed"]), (&true.into(), &5.into()));
        assert!(case["error"].as_f64().expect("a number") <= case["bound"].as_f64().expect("a number"));
    }
    assert_eq!(cases[0]["schedule"], 0);
    assert_eq!(cases[cases.len() - 1]["schedule"], 1);
    assert_eq!(summary["type"], "summary");
    assert_eq!((&summary["device"], &summary["grid"]), (&"simt".into(), &"quick".into()));
    assert_eq!((&summary["failed"], &summary["ran"]), (&0.into(), &cases.len().into()));
    assert!(summary.get("error").is_none());
}

#[test]
fn a_list_runs_nothing() {
    selftest(&["--list", "--filter", "norm"])
        .assert()
        .success()
        .stdout(contains("norm_rms_f32").and(contains("rows ")).and(contains("passed").not()));
    let out =
        selftest(&["--list", "--json", "--device", "cpu"]).assert().success().get_output().stdout.clone();
    let lines = objects(&out);
    assert!(lines.iter().any(|l| l["kernel"] == "linear_portable" && l["stem"] == "matmul"));
}

#[test]
fn a_plan_is_what_the_gates_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("plan.json");
    let name = path.to_str().expect("path");
    let args = ["--device", "simt", "--quick", "--no-check", "--filter", "norm_layer", "--plan", name];
    selftest(&args).assert().success();
    let plan: Value = serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
    let kernels = plan["kernels"].as_array().expect("a list");
    let kernel = kernels.iter().find(|k| k["kernel"] == "norm_layer_f32").expect("it was launched");
    assert_eq!(kernel["threads"], 256);
    assert!(kernel["dynamic_smem"].as_u64().expect("bytes") > 0);
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);

    selftest(&["--device", "simt", "--quick", "--plan", "/nonexistent/plan.json"]).assert().code(3);
}

#[test]
fn requests_that_cannot_be_honoured() {
    for (args, words) in [
        (&["--filter", "no such kernel"][..], "norm"),
        (&["--device", "cpu", "--filter", "no such kernel"], "embedding"),
        (&["--device", "tpu"], "expected cpu, simt, cuda or cuda:N"),
        (&["--device", "cpu", "--plan", "x.json"], "--plan is for --device simt"),
        (&["--device", "cpu", "--schedules", "3"], "--schedules is for --device simt"),
        (&["--device", "cpu", "--no-check"], "--no-check is for --device simt"),
        (&["--device", "simt", "--schedules", "0"], "--schedules"),
    ] {
        selftest(args).assert().code(2).stdout("").stderr(contains(words));
    }
}

#[test]
fn without_a_name_it_says_what_it_took_and_why() {
    let args = ["--quick", "--filter", "norm_rms_f32"];
    let place = if driver::available(0).is_ok() { "testing on cuda:0: " } else { "testing on simt: " };
    selftest(&args).assert().success().stderr(predicate::str::starts_with(place));
    let out = selftest(&args).arg("--json").assert().success().stderr("").get_output().stdout.clone();
    assert!(objects(&out).last().expect("a summary")["why"].is_string());
}

/// Where there is no card, or none that will do: which of the two, and what to do.
#[test]
fn a_card_that_is_not_there() {
    let Err(error) = driver::available(0) else { return };
    let message = error.to_string();
    selftest(&["--device", "cuda", "--quick"])
        .assert()
        .code(8)
        .stdout("")
        .stderr(format!("error: {message}\n"));
    let out = selftest(&["--device", "cuda", "--json"]).assert().code(8).get_output().stdout.clone();
    let lines = objects(&out);
    assert_eq!((lines.len(), &lines[0]["code"]), (1, &8.into()));

    let generate = ["generate", "--device", "cuda", "-l", "4", "-T", "2"];
    Command::cargo_bin("lacuna")
        .expect("the binary is built")
        .args(generate)
        .assert()
        .code(8)
        .stdout("")
        .stderr(contains("cuda:0: ").and(contains("use --device cpu")));
}

#[test]
fn a_number_that_no_card_has() {
    selftest(&["--device", "cuda:4096", "--quick"]).assert().code(8).stdout("").stderr(contains("cuda:4096"));
}

#[test]
fn help_says_what_is_proved() {
    selftest(&["--help"]).assert().success().stdout(
        contains("What is proved").and(contains("A failure means")).and(contains("compute-sanitizer")),
    );
}

/// A run that would take hours ends with what there is.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_what_there_is() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let mut command = Command::new(assert_cmd::cargo::cargo_bin("lacuna"));
    command.args(["selftest", "--device", "simt", "--schedules", "1000000", "--filter", "norm", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut first = String::new();
    out.read_line(&mut first).expect("a first case");
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(signal.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("UTF-8");
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    let summary: Value = serde_json::from_str(rest.lines().last().expect("a summary")).expect("JSON");
    assert_eq!((&summary["type"], &summary["error"]), (&"summary".into(), &"interrupted".into()));
    assert!(summary["ran"].as_u64().expect("a number") < summary["cases"].as_u64().expect("a number"));
}
