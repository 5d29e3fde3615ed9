//! `tools/compare_torch.py`: what it works out, what it says and writes, how it ends. Stand-ins play lacuna and llama.cpp where
//! times are made up; the real binary runs the same sizes without PyTorch, and beside PyTorch where there is a Python that has it.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const BEGIN: &str = "<!-- compare_torch:begin -->";
const END: &str = "<!-- compare_torch:end -->";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> bool {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("skipped: no python3");
    }
    there
}

/// A Python with PyTorch and transformers: LACUNA_TEST_PYTHON, python3, or that of tools/.venv.
fn python_with_torch() -> Option<String> {
    let venv = root().join("tools/.venv/bin/python").display().to_string();
    let candidates = std::env::var("LACUNA_TEST_PYTHON").into_iter().chain(["python3".into(), venv]);
    let code = "import torch, transformers, numpy, safetensors";
    let has = |python: &String| {
        Command::new(python).args(["-c", code]).output().is_ok_and(|out| out.status.success())
    };
    let found = candidates.into_iter().find(has);
    if found.is_none() {
        eprintln!(
            "skipped: no Python with PyTorch; LACUNA_TEST_PYTHON names one, tools/compare_torch.py makes one"
        );
    }
    found
}

fn model() -> PathBuf {
    root().join("tests/fixtures/golden/llama-tiny")
}

fn script() -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tools/compare_torch.py")).stdin(Stdio::null());
    command
}

/// The script at its small sizes with a small model, one thread, and this binary.
fn quick(lacuna: &Path) -> Command {
    let mut command = script();
    command.args(["--quick", "--threads", "1", "--model"]).arg(model()).arg("--lacuna").arg(lacuna);
    command
}

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let out = command.output().expect("python3 runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// A folder with `lacuna`, which is also llama-diffusion-cli, and a document with a place for the table.
fn stand_in() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a folder");
    let program = root().join("tests/compare_torch/stand_in.py");
    let path = dir.path().join("lacuna");
    std::fs::write(&path, format!("#!/bin/sh\nexec python3 -B '{}' \"$@\"\n", program.display()))
        .expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    std::fs::write(dir.path().join("doc.md"), format!("head\n{BEGIN}\nold\n{END}\ntail\n")).expect("written");
    dir
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("lines");
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// What every line has, whoever it is of.
fn check(line: &Value) {
    assert_eq!(line["schema"], 1);
    let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
    let seconds = line["seconds"].as_array().expect("seconds");
    assert_eq!(number("runs") as usize, seconds.len());
    assert!(number("min_s") > 0.0 && number("min_s") <= number("median_s"), "{line}");
    assert!(number("median_s") <= number("max_s") && number("spread") >= 0.0, "{line}");
    assert!(number("peak_memory_bytes") > 1e6, "{line}");
    let raw = number("tokens_raw_per_s") * number("median_s");
    assert!((raw / number("tokens_raw") - 1.0).abs() < 1e-9, "{line}");
    assert!(["step", "generate", "train", "kernel"].contains(&line["bench"].as_str().expect("bench")));
    assert_eq!(line["dtype"], "f32");
    assert_eq!(line["threads"], 1);
    assert!(line["device"].as_str().is_some_and(|device| device.starts_with("cpu, ")), "{line}");
}

#[test]
fn what_it_works_out_by_itself() {
    if !python() {
        return;
    }
    let python = python_with_torch().unwrap_or_else(|| "python3".into());
    let out = Command::new(python).arg(root().join("tests/compare_torch/units.py")).output().expect("python");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("Ran ") && !text.contains("Ran 0 tests"), "{text}");
}

#[test]
fn help_teaches_and_wrong_usage_is_refused() {
    if !python() {
        return;
    }
    let (code, text, _) = run(script().arg("--help"));
    assert_eq!(code, Some(0));
    for word in ["examples:", "Exit codes", "forward,generate,train,sample", "--goals", "--llama-diffusion"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for (args, words) in [
        (&["--only", "forwards"][..], "'forwards': expected some of forward,generate,train,sample"),
        (&["--bogus"], "unrecognized arguments: --bogus"),
        (&["--steps", "32,0"], "expected numbers with commas, each at least 1"),
        (&["--masked", "nan"], "expected numbers with commas"),
        (&["--masked", "0.001"], "one token of 128 or more"),
        (&["--masked", "1.5"], "a share up to 1"),
        (&["--canvas", "1"], "at least 2"),
        (&["--threads", "99999999999"], "expected a whole number"),
        (&["--top-p", "0"], "a probability above 0"),
        (&["--attention", "flash"], "expected sdpa, eager or both"),
        (&["--torch-only", "--lacuna-only"], "nothing to measure"),
        (&["--goals", "--quick"], "full sizes"),
        (&["--docs", "--only", "train"], "a part cannot stand for the whole"),
        (&["--llama-model", "x.gguf"], "go together"),
        (&["--model", "x", "--made-up"], "one of the two"),
    ] {
        let (code, _, text) = run(script().args(args));
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
}

#[test]
fn what_is_missing_is_said_before_anything_is_measured() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let lacuna = dir.path().join("lacuna");
    let kept = dir.path().join("kept.jsonl");
    std::fs::write(&kept, "{}\n").expect("written");
    std::fs::write(dir.path().join("no-place.md"), "x\n").expect("written");
    std::fs::write(dir.path().join("x.gguf"), "GGML").expect("written");
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (args, words) in [
        (vec!["--model".into(), path("none")], "no config.json there; python3 tools/fetch_smollm2.py"),
        (vec!["--lacuna".into(), path("none")], "no program there; leave it out to build one"),
        (vec!["--json".into(), path("none/x")], "cannot be written"),
        (vec!["--docs".into(), path("no-place.md")], "expected one <!-- compare_torch:begin -->"),
        (vec!["--python".into(), path("none")], "does not import torch"),
        (
            vec!["--llama-diffusion".into(), path("lacuna"), "--llama-model".into(), path("x.gguf")],
            "it does not begin with GGUF",
        ),
    ] {
        let alone = args[0] != "--python";
        let mut command = quick(&lacuna);
        command.arg("--json").arg(&kept).args(alone.then_some("--lacuna-only")).args(&args);
        let (code, out, text) = run(&mut command);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        assert!(text.contains(words) && !text.contains("Traceback") && out.is_empty(), "{args:?}: {text}");
        assert_eq!(std::fs::read_to_string(&kept).expect("kept"), "{}\n", "{args:?}");
    }
}

#[test]
fn a_program_that_does_other_work_or_fails_is_not_measured() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let mut command = quick(&dir.path().join("lacuna"));
    let (code, _, text) =
        run(command.args(["--lacuna-only", "--only", "generate"]).env("STAND_IN_MODE", "short"));
    assert_eq!(code, Some(1));
    assert!(text.contains("filled 14 tokens of a canvas of 16: expected 15 of 16"), "{text}");
    let (code, _, text) = run(quick(Path::new("/bin/false")).args(["--lacuna-only", "--only", "generate"]));
    assert_eq!(code, Some(1));
    assert!(text.contains("failed with 1") && !text.contains("Traceback"), "{text}");
}

/// Measures the stand-in alone, in one of its modes, with lines and a document to write.
fn writing(dir: &Path, [json, doc]: [&Path; 2], mode: &str) -> Command {
    let mut command = quick(&dir.join("lacuna"));
    command.arg("--lacuna-only").arg("--json").arg(json).arg("--docs").arg(doc).env("STAND_IN_MODE", mode);
    command
}

#[test]
fn lines_table_and_document_say_what_the_programs_said() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let (json, doc) = (dir.path().join("out.jsonl"), dir.path().join("doc.md"));
    let mut command = writing(dir.path(), [&json, &doc], "flat");
    let (code, table, text) = run(&mut command);
    assert_eq!(code, Some(0), "{text}");
    let lines = lines(&json);
    lines.iter().for_each(check);
    let told: Vec<_> = lines.iter().map(|l| (l["name"].as_str().expect("name"), &l["median_s"])).collect();
    assert_eq!(
        told,
        [
            ("forward llama-tiny, 1 x 16, all logits", &Value::from(0.25)),
            ("generate llama-tiny, 1 x 16, T = 4, random", &Value::from(0.5)),
            ("train llama-tiny, 2 x 16, 50 % masked", &Value::from(3.0)),
            ("sample, top-p 0.9, rows 3, vocab 301, peaked logits", &Value::from(70.0 / 1e6)),
            ("sample, top-p 0.9, rows 3, vocab 301, near-flat logits", &Value::from(90.0 / 1e6)),
        ]
    );
    assert!(lines.iter().all(|line| line["who"] == "lacuna" && line["version"] == "9.9.9"));
    assert_eq!(lines[1]["ms_per_step"], 125.0);
    assert_eq!(lines[2]["flops_per_s"], 2e9);
    assert_eq!(lines[3]["median_us"], 70.0);
    let document = std::fs::read_to_string(&doc).expect("document");
    assert_eq!(document, format!("head\n{BEGIN}\n{}\n{END}\ntail\n", table.trim_end()));
    for words in
        ["lacuna 9.9.9", "| – | 3.000 s ± 0 % |", "--quick --lacuna-only --threads 1 --model tests/fixtures"]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(!table.contains(&dir.path().display().to_string()), "{table}");
}

#[test]
fn a_binary_without_kernels_of_the_processor_leaves_the_sampling_step_out_and_says_so() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let mut command = quick(&dir.path().join("lacuna"));
    command.args(["--lacuna-only", "--only", "sample,forward"]).env("STAND_IN_MODE", "old");
    let (code, table, text) = run(&mut command);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("left out: this binary does not time drawing tokens on the CPU"), "{text}");
    assert!(table.contains("forward llama-tiny") && !table.contains("sample,"), "{table}");
    // And where it has a line of one kind of logits alone.
    let mut command = quick(&dir.path().join("lacuna"));
    let (_, table, text) = run(command.args(["--lacuna-only", "--only", "sample"]));
    assert!(text.contains("no line with near-flat logits: that row is left out"), "{text}");
    assert!(table.contains("peaked logits") && !table.contains("near-flat"), "{table}");
}

#[test]
fn an_interruption_keeps_what_is_measured() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let (json, doc) = (dir.path().join("out.jsonl"), dir.path().join("doc.md"));
    let before = std::fs::read_to_string(&doc).expect("document");
    let mut command = writing(dir.path(), [&json, &doc], "slow");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3 runs");
    // After the second generation comes a training step that does not end.
    let mut words = BufReader::new(child.stderr.take().expect("standard error")).lines();
    let last = words
        .by_ref()
        .map(|line| line.expect("text"))
        .find(|line| line.contains("generate") && line.contains("turn 2"));
    assert!(last.is_some());
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill").success());
    let rest: Vec<_> = words.map(|line| line.expect("text")).collect();
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted; what was measured is above")), "{rest:?}");
    let table = String::from_utf8_lossy(&out.stdout);
    assert!(table.contains("generate llama-tiny") && !table.contains("train"), "{table}");
    let lines = lines(&json);
    lines.iter().for_each(check);
    assert_eq!(lines.len(), 2);
    assert_eq!(std::fs::read_to_string(&doc).expect("document"), before);
}

#[test]
fn llama_cpp_is_put_beside_where_there_is_a_binary() {
    if !python() {
        return;
    }
    let dir = stand_in();
    let (gguf, json) = (dir.path().join("small.gguf"), dir.path().join("out.jsonl"));
    let make = "import sys, units; data = units.gguf(dict(units.FACTS)); open(sys.argv[1], 'wb').write(data)";
    let made = Command::new("python3")
        .args(["-B", "-c", make])
        .arg(&gguf)
        .env("PYTHONPATH", root().join("tests/compare_torch"))
        .status();
    assert!(made.expect("python3").success());
    let mut command = quick(&dir.path().join("lacuna"));
    command.args(["--lacuna-only", "--only", "generate", "--llama-diffusion"]).arg(dir.path().join("lacuna"));
    let (code, table, text) = run(command.arg("--llama-model").arg(&gguf).arg("--json").arg(&json));
    assert_eq!(code, Some(0), "{text}");
    let lines = lines(&json);
    let [_, line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["who"], &line["dtype"]), (&Value::from("llama.cpp"), &Value::from("q8_0")));
    // 100 ms a step, 4 steps; no tokens are told.
    assert_eq!(line["median_s"], 0.4);
    assert!(line["ms_per_step"] == 100.0 && line["tokens_per_s"].is_null());
    // The stand-in's file has another vocabulary than the model, so that no ratio is made of the two.
    assert!(table.contains("small.gguf: llada, q8_0; another shape than lacuna's model"), "{table}");
    assert!(table.contains("| 0.400 s ± 0 % | – |"), "{table}");
}

#[test]
fn the_real_binary_at_small_sizes() {
    if !python() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let json = dir.path().join("out.jsonl");
    let mut command = quick(Path::new(env!("CARGO_BIN_EXE_lacuna")));
    command.arg("--lacuna-only").arg("--json").arg(&json);
    let python = python_with_torch();
    if let Some(python) = &python {
        let mut beside = quick(Path::new(env!("CARGO_BIN_EXE_lacuna")));
        beside.arg("--python").arg(python).arg("--json").arg(&json);
        command = beside;
    }
    let (code, table, text) = run(&mut command);
    assert_eq!(code, Some(0), "{text}");
    let lines = lines(&json);
    lines.iter().for_each(check);
    for bench in ["step", "generate", "train"] {
        for who in ["lacuna", "PyTorch"].into_iter().take(if python.is_some() { 2 } else { 1 }) {
            let of = lines.iter().find(|line| line["bench"] == bench && line["who"] == who);
            let line = of.unwrap_or_else(|| panic!("{who}, {bench}: {lines:?}"));
            assert_eq!(line["model"], "llama-tiny");
            assert!(line["parameters"].is_null() || line["parameters"] == 435_584, "{line}");
        }
    }
    let mut names: Vec<_> =
        lines.iter().map(|line| (line["bench"].to_string(), line["name"].to_string())).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), lines.len(), "a name is there once");
    assert_eq!(table.matches("llama-tiny, ").count(), 3, "{table}");
    assert_eq!(table.contains("x | "), python.is_some(), "{table}");
}
