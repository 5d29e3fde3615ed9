//! The parts about training.

use std::path::Path;
use std::process::Command;

use lacuna::model::SyntheticShape;
use lacuna::profile::{self, Case, Training, Work, flops};
use serde_json::{Value, json};

use super::{check_on, executable, kernel_line, python, report, results, root, run, stand_in};

/// The script's parts in Python, as one line of Python sees them.
fn python_says(code: &str) -> String {
    let folder = root().join("tools/gpu");
    let code = format!("import sys\nsys.path.insert(0, {:?})\n{code}", folder.display().to_string());
    let out = Command::new("python3").args(["-B", "-c", &code]).output().expect("python3");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

#[test]
fn both_programs_count_the_same_operations_of_a_step() {
    if !python() {
        return;
    }
    let text = python_says(
        "from models import SHAPES\nfrom train_models import training_flops\n\
         for s in SHAPES.values():\n  for w in (True, False):\n    print(s.name, training_flops(s, 3, 20, 17, w), w)",
    );
    assert_eq!(text.lines().count(), 10, "{text}");
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let shape: SyntheticShape = words[0].parse().expect("a shape of the engine");
        let own = flops::training(&shape.config(), &[20; 3], 17, words[2] == "True");
        let listed: f64 = words[1].parse().expect("a number");
        assert!((own - listed).abs() <= 1e-12 * own, "{line}: {own}");
    }
}

#[test]
fn groups_of_parts_and_what_is_missing_for_a_run() {
    if !python() {
        return;
    }
    let dir = stand_in("exit 0\n");
    let (code, text) = run(&mut check_on(dir.path(), &["--dry-run", "--parts", "training,retrain,smollm2"]));
    assert_eq!(code, Some(0), "{text}");
    let words = "backward: would run: lacuna bench kernels --device cuda --json --filter training (at most";
    assert!(text.contains(words), "{text}");
    assert!(text.contains("train: would run: train.py --without --lacuna"), "{text}");
    assert!(!text.contains("selftest:") && !text.contains("denoise:"), "{text}");
    for part in ["retrain", "smollm2"] {
        assert!(
            text.contains(&format!("{part}: skipped: no text: --{part} '... --text FILE' names one")),
            "{text}"
        );
    }
    let dry = |part: &str, flags: &str| {
        run(&mut check_on(dir.path(), &["--dry-run", "--parts", part, &format!("--{part}"), flags])).1
    };
    let text = dir.path().join("lacuna");
    let text = text.display();
    assert!(dry("retrain", "--text /nowhere").contains("no text: /nowhere is no file"));
    assert!(
        dry("retrain", &format!("--text {text}")).contains("retrain: would run: adapt.py --part retrain")
    );
    assert!(dry("smollm2", &format!("--text {text}")).contains("no model: --smollm2"));
    let named = dry("smollm2", &format!("--text {text} --model /nowhere"));
    assert!(named.contains("there is no config.json in /nowhere"), "{named}");
    let wrong = dry("retrain", "--bogus");
    assert!(wrong.contains("unrecognized arguments: --bogus"), "{wrong}");
}

#[test]
fn the_sanitizer_looks_at_a_training_step_too() {
    if !python() {
        return;
    }
    let dir = stand_in("echo \"ran $*\"\n");
    // Finds something in the training step only.
    executable(
        &dir.path().join("compute-sanitizer"),
        "#!/bin/sh\nshift 4\n\"$@\"\ncase \"$2\" in\nselftest) echo '========= ERROR SUMMARY: 0 errors' ;;\n\
         *) echo '========= ERROR SUMMARY: 1 error' && exit 99 ;;\nesac\n",
    );
    let (code, text) = run(&mut check_on(dir.path(), &["--parts", "sanitizer"]));
    assert_eq!(code, Some(1), "{text}");
    let out = dir.path().join("out");
    let rows = results(&out);
    let tools: Vec<&str> = rows.iter().filter_map(|r| r["tool"].as_str()).collect();
    assert_eq!(tools, ["memcheck", "memcheck-training", "racecheck", "initcheck"]);
    let said = std::fs::read_to_string(out.join("3-memcheck-training.txt")).expect("its output");
    assert!(said.contains("ran bench train --device cuda --dtype bf16 --batch 2 --length 64"), "{said}");
    assert!(report(&out).contains("| memcheck-training | exit code 99"), "{}", report(&out));
}

/// A line of the engine's and one of PyTorch's, `ratio` times as long.
fn kernel_lines(case: &Case, way: &str, ratio: f64, extra: Option<f64>) -> [String; 2] {
    let mut torch = json!({"bench": "kernel", "who": "PyTorch", "stem": case.stem(), "shape": case.shape(), "dtype": "bf16",
        "variant": way, "median_us": 100.0 * ratio});
    if let Some(extra) = extra {
        torch["extra_bytes"] = (extra * case.workspace() as f64).into();
    }
    [kernel_line(case, 100.0), torch.to_string()]
}

/// The report of kernels whose ratios to PyTorch, and whose memory, are these, and of a step of DiffuGPT-S.
fn report_of(attention: f64, loss: [f64; 2], step: f64) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut own, mut torch) = (Vec::new(), Vec::new());
    for case in profile::cases(false) {
        let lines = match case.work {
            Work::Training(Training::Attention { .. }) => kernel_lines(&case, "flash", attention, None),
            Work::Training(Training::MaskedLoss { .. }) => {
                kernel_lines(&case, "compiled", loss[0], Some(loss[1]))
            }
            _ => continue,
        };
        let [a, b] = lines;
        own.push(a);
        torch.push(b);
    }
    let write = |name: &str, lines: &[String]| {
        std::fs::write(dir.path().join(name), lines.join("\n") + "\n").expect("written");
    };
    write("7-backward-lacuna.jsonl", &own);
    write("7-backward-torch.jsonl", &torch);
    let line = |who: &str, way: &str, seconds: f64, bytes: u64| {
        json!({"bench": "train", "who": who, "variant": way, "shape": "diffugpt-s", "batch": 32, "length": 512,
            "lora_rank": Value::Null, "seconds": seconds, "tokens_per_second": 16_384.0 / seconds, "flops": 98.9e12,
            "device_bytes": bytes, "peak_flops": if who == "PyTorch" { json!(989e12) } else { Value::Null }})
        .to_string()
    };
    let steps = [
        line("lacuna", "", 0.2, 1 << 34),
        line("lacuna, own products", "", 0.4, 1 << 34),
        line("PyTorch", "compiled", 0.2 * step, 1 << 35),
        line("PyTorch", "eager", 1.0, 1 << 35),
    ];
    write("8-train.jsonl", &steps);
    let run_lines = [
        json!({"part": "retrain", "what": "adapt", "steps": 90, "planned_steps": 100, "seconds": 60.0, "batch": 8, "length": 128,
            "last_nelbo": 4.5, "stopped": "after 90 of 100 steps: its time was over"}),
        json!({"part": "retrain", "what": "sample", "sample": "To be\nor not"}),
    ];
    write("9-retrain.jsonl", &run_lines.map(|l| l.to_string()));
    let (code, text) = run(Command::new("python3").arg(root().join("tools/gpu/report.py")).arg(dir.path()));
    assert_eq!(code, Some(0), "{text}");
    report(dir.path())
}

#[test]
fn the_report_has_training_and_says_which_goals_are_met() {
    if !python() {
        return;
    }
    let text = report_of(0.9, [1.6, 12.0], 1.5);
    assert_eq!(text.matches("| **met** |").count(), 4, "{text}");
    assert!(!text.contains("not met"), "{text}");
    assert!(
        text.contains("| 0.90x (batch 32, heads 12, length 512, width 64) to 0.90x, 6 sizes | **met** |"),
        "{text}"
    );
    let row = "| diffugpt-s, 32 x 512 | compiled | 0.3 | 0.2 | 1.50x | 54,613 | 81,920 | 33.3% | 50.0% | 32.0 | 16.0 |";
    assert!(text.contains(row), "{text}");
    assert!(text.contains("| diffugpt-s, 32 x 512 | eager | 1.00 | 0.2 | 5.00x |"), "{text}");
    assert!(
        text.contains("| diffugpt-s, 32 x 512 | lacuna, own products | 0.4 | 40,960 | 0.50x | 16.0 |"),
        "{text}"
    );
    let words = "| masked loss, 8192 of 16384 rows, width 768, vocab 50257 | compiled | 160 | 100 | 1.60x | ";
    let line = text.lines().find(|l| l.starts_with(words)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.ends_with("| 393 | 12.00x |"), "{line}");
    assert!(text.contains("### attention_bwd, TFLOP/s of every way"), "{text}");
    assert!(text.contains("| adapt | 60.0 | 90 of 100 | 8 x 128 |"), "{text}");
    assert!(text.contains("> To be\n> or not\n"), "{text}");
    assert!(text.contains("- retrain: stopped: after 90 of 100 steps"), "{text}");

    let text = report_of(0.7, [1.4, 9.0], 1.1);
    assert_eq!(text.matches("| **not met** |").count(), 4, "{text}");
}

#[test]
fn goals_that_nothing_was_measured_of_are_not_met() {
    if !python() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("8-train.jsonl"), "{\"part\":\"train\",\"error\":\"none\"}\n")
        .expect("written");
    let script = root().join("tools/gpu/report.py");
    let (code, text) = run(Command::new("python3").arg(script).arg(dir.path()));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(report(dir.path()).matches("| not measured |").count(), 4);
}

fn adapt(out: &Path, flags: &[&str]) -> Vec<Value> {
    std::fs::create_dir(out).expect("a folder");
    let (file, text) = (out.join("9-retrain.jsonl"), out.join("text.txt"));
    std::fs::copy(root().join("docs/training.md"), &text).expect("a text");
    let mut command = Command::new("python3");
    command.arg("-B").arg(root().join("tools/gpu/adapt.py")).args(["--part", "retrain", "--device", "cpu"]);
    command.args(["--lacuna", env!("CARGO_BIN_EXE_lacuna"), "--batch", "2", "--length", "16"]);
    command.arg("--text").arg(text).args(flags).arg("--output").arg(&file);
    let (code, said) = run(&mut command);
    assert_eq!(code, Some(0), "{said}");
    let lines = std::fs::read_to_string(file).expect("lines");
    lines.lines().map(|l| serde_json::from_str(l).expect("one object a line")).collect()
}

#[test]
fn a_model_is_trained_anew_and_its_logs_are_kept() {
    if !python() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("whole");
    let rows = adapt(&out, &["--steps", "3", "--seconds", "300"]);
    let what: Vec<&str> = rows.iter().filter_map(|r| r["what"].as_str()).collect();
    assert_eq!(what, ["left-to-right", "adapt", "sample"], "{rows:?}");
    for row in &rows[..2] {
        assert_eq!((&row["steps"], &row["exit_code"]), (&json!(3), &json!(0)), "{row}");
        assert!(
            row["last_nelbo"].as_f64() > Some(0.0) && row["last_unweighted"].as_f64() > Some(0.0),
            "{row}"
        );
    }
    assert!(rows[2]["sample"].is_string(), "{rows:?}");
    for name in ["left-to-right-log.jsonl", "left-to-right-loss.svg", "adapt-log.jsonl", "adapt-loss.svg"] {
        assert!(out.join(format!("retrain-{name}")).is_file(), "{name}");
    }
    let checkpoint = out.join(rows[1]["checkpoint"].as_str().expect("a checkpoint"));

    // Of a model that is given, as many steps as fit are planned, and a run is cut when its time is over.
    let model = checkpoint.to_str().expect("UTF-8");
    let rows = adapt(&dir.path().join("cut"), &["--model", model, "--seconds", "8", "--steps", "100000"]);
    assert!(rows[0]["what"] == "adapt" && rows[0]["exit_code"] != json!(0), "{rows:?}");
    assert!(rows[0]["stopped"].as_str().is_some_and(|w| w.ends_with("its time was over")), "{rows:?}");
    assert!(rows[0]["steps"].as_u64() > Some(0) && rows[0]["checkpoint"].is_string(), "{rows:?}");
    let rows = adapt(&dir.path().join("fitted"), &["--model", model, "--seconds", "20"]);
    assert!(rows[0]["planned_steps"].as_u64() >= Some(20), "{rows:?}");
}
