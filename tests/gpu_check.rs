//! `tools/gpu_check.sh` where there is no card: what it says, what it writes, and that it ends as it promises. A stand-in for
//! `nvidia-smi` and one for the binary play a card where one is needed; no number of theirs is a measurement.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lacuna::config::Family;
use lacuna::model::SyntheticShape;
use lacuna::profile;
use serde_json::Value;

#[path = "gpu_check/training.rs"]
mod training;

const PARTS: [&str; 10] = [
    "facts",
    "selftest",
    "sanitizer",
    "ceilings",
    "kernels",
    "backward",
    "denoise",
    "train",
    "retrain",
    "smollm2",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The script, with no card and no binary to be seen.
fn check(args: &[&str]) -> Command {
    let mut command = Command::new(root().join("tools/gpu_check.sh"));
    command.args(args).env("CUDA_VISIBLE_DEVICES", "").env("LACUNA", "/nowhere/lacuna");
    command.env_remove("LACUNA_CUBLASLT").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("bash runs");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code(), text)
}

fn python() -> bool {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("skipped: no python3");
    }
    there
}

/// A Python that imports torch: LACUNA_TEST_PYTHON, or python3.
fn python_with_torch() -> Option<String> {
    let candidate = std::env::var("LACUNA_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there =
        Command::new(&candidate).args(["-c", "import torch"]).output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("skipped: {candidate} has no PyTorch; LACUNA_TEST_PYTHON names a Python that has it");
    }
    there.then_some(candidate)
}

fn executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
}

/// A folder with a `nvidia-smi` that lists a card, a Python that has no packages, and this binary.
fn stand_in(binary: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let smi = "#!/bin/sh\n[ \"$1\" = -L ] && echo 'GPU 0: Stand-in (UUID: none)' && exit 0\nexit 1\n";
    executable(&dir.path().join("nvidia-smi"), smi);
    executable(&dir.path().join("bare-python"), "#!/bin/sh\nexec python3 -S \"$@\"\n");
    executable(&dir.path().join("lacuna"), &format!("#!/bin/sh\n{binary}"));
    dir
}

/// The script with a stand-in for a card.
fn check_on(dir: &Path, args: &[&str]) -> Command {
    let mut command = check(args);
    let path = std::env::var("PATH").expect("PATH");
    command.env("PATH", format!("{}:{path}", dir.display()));
    command.env("CUDA_VISIBLE_DEVICES", "0").env("LACUNA", dir.join("lacuna"));
    command.arg("--python").arg(dir.join("bare-python")).arg(dir.join("out"));
    command
}

fn results(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("results.jsonl")).expect("results.jsonl");
    text.lines().map(|l| serde_json::from_str(l).expect("one object a line")).collect()
}

fn report(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("report.md")).expect("report.md")
}

#[test]
fn help_explains_and_wrong_usage_is_refused() {
    let (code, text) = run(&mut check(&["--help"]));
    assert_eq!(code, Some(0));
    assert!(PARTS.iter().all(|part| text.contains(part)) && text.contains("Exit codes"), "{text}");
    assert!(!text.contains("set -") && !text.contains("#!"), "{text}");
    for (args, words) in [
        (&["--bogus"][..], "unknown option --bogus"),
        (&["--parts", "kernel", "x"], "--parts kernel: expected some of facts"),
        (&["--minutes", "0", "x"], "--minutes 0: expected 1 to 60"),
        (&["--minutes"], "--minutes needs a value"),
        (&[], "a folder for the results is missing"),
        (&["a", "b"], "there are two: a and b"),
    ] {
        let (code, text) = run(&mut check(args));
        assert!(code == Some(2) && text.contains(words), "{args:?}: {code:?} {text}");
    }
}

#[test]
fn a_dry_run_says_of_every_part_why_it_is_skipped_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let (code, text) = run(check(&["--dry-run", "--parts", "all,retrain,smollm2"]).arg(&out));
    assert_eq!(code, Some(0), "{text}");
    assert!(!out.exists());
    let of = |part: &str| {
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with(&format!("{part}: "))).collect();
        assert_eq!(lines.len(), 1, "{part}: {text}");
        lines[0].to_owned()
    };
    for part in PARTS {
        let line = of(part);
        if part != "facts" {
            assert!(line.contains("skipped: ") && line.contains("CUDA_VISIBLE_DEVICES hides all"), "{line}");
        }
    }
    for part in ["selftest", "sanitizer", "kernels", "backward", "train", "retrain", "smollm2"] {
        assert!(of(part).contains("LACUNA names /nowhere/lacuna, which cannot be run"), "{text}");
    }
}

#[test]
fn a_dry_run_with_a_card_says_what_would_run() {
    if !python() {
        return;
    }
    let dir = stand_in("exit 0\n");
    let (code, text) = run(&mut check_on(dir.path(), &["--dry-run"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("selftest: would run: lacuna selftest --device cuda --json (at most"), "{text}");
    assert!(text.contains("kernels: would run: lacuna bench kernels --device cuda --json"), "{text}");
    assert!(text.contains("kernels: skipped: PyTorch: no PyTorch (ModuleNotFoundError"), "{text}");
    assert!(text.contains("denoise: would run: denoise.py --without --lacuna"), "{text}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn without_a_card_there_is_a_report_and_exit_code_8() {
    if !python() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (code, text) = run(check(&["--parts", "facts,selftest"]).arg(dir.path()));
    assert_eq!(code, Some(8), "{text}");
    let report = report(dir.path());
    assert!(report.contains("**Not complete: no card: CUDA_VISIBLE_DEVICES hides all.**"), "{report}");
    assert!(report.contains("- selftest: skipped: no card"), "{report}");
    let rows = results(dir.path());
    assert!(rows.iter().any(|r| r["part"] == "facts" && r["date"].is_string()), "{rows:?}");
    let (code, text) = run(check(&[]).arg(dir.path()));
    assert!(code == Some(2) && text.contains("holds results already"), "{code:?} {text}");
}

#[test]
fn an_old_binary_and_a_failed_case_are_in_the_report() {
    if !python() {
        return;
    }
    let dir = stand_in(
        r#"case "$1" in
--version) echo "lacuna 0.0.1" ;;
selftest)
  echo '{"type":"case","stem":"norm","kernel":"norm_rms_bf16","shape":"rows 2","passed":true}'
  echo '{"type":"case","stem":"rope","kernel":"rope_qkv_f16","shape":"rows 3","passed":false,"message":"error 1, at most 0"}'
  echo "error: 1 of 2 cases failed" >&2
  exit 8 ;;
*) echo "error: unrecognized subcommand '$1'" >&2; exit 2 ;;
esac
"#,
    );
    let (code, text) =
        run(&mut check_on(dir.path(), &["--minutes", "2", "--parts", "facts,selftest,kernels,denoise"]));
    assert_eq!(code, Some(1), "{text}");
    let out = dir.path().join("out");
    let report = report(&out);
    assert!(report.contains("| lacuna | lacuna 0.0.1 |"), "{report}");
    assert!(report.contains("2 cases ran, 1 failed."), "{report}");
    assert!(report.contains("**FAILED** `rope_qkv_f16` (rows 3): error 1, at most 0"), "{report}");
    assert!(
        report.contains("kernels: error: lacuna: exit code 2: error: unrecognized subcommand 'bench'"),
        "{report}"
    );
    assert!(report.contains("- denoise: error: lacuna: exit code 2: error: unrecognized"), "{report}");
    assert!(report.contains("- kernels: skipped: PyTorch: no PyTorch"), "{report}");
}

#[test]
fn what_a_part_has_written_survives_its_time_and_sigterm() {
    if !python() {
        return;
    }
    let sleeper = "[ \"$1\" = selftest ] || exit 0\necho '{\"type\":\"case\",\"kernel\":\"k\",\"passed\":true}'\n\
                   printf '{\"type\":\"ca'\nexec sleep 300\n";
    let slow = stand_in(sleeper);
    let stopped = stand_in(sleeper);
    let started = Instant::now();
    let mut limited =
        check_on(slow.path(), &["--minutes", "1", "--parts", "selftest"]).spawn().expect("bash");
    let mut ended = check_on(stopped.path(), &["--parts", "selftest"]).spawn().expect("bash");
    let file = stopped.path().join("out/2-selftest.jsonl");
    while !std::fs::read_to_string(&file).is_ok_and(|t| t.contains("\"ca")) {
        assert!(started.elapsed() < Duration::from_secs(60), "the part did not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let kill = Command::new("kill").args(["-TERM", &ended.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    assert_eq!(ended.wait().expect("it ends").code(), Some(143));
    let text = report(&stopped.path().join("out"));
    assert!(text.contains("**Not complete: stopped by SIGTERM.**") && text.contains("1 case ran"), "{text}");
    assert!(text.contains("a line that is no JSON: {\"type\":\"ca"), "{text}");

    assert_eq!(limited.wait().expect("it ends").code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let text = report(&slow.path().join("out"));
    assert!(text.contains("selftest: error: stopped: its time was over"), "{text}");
    assert!(text.contains("1 case ran"), "{text}");
}

/// A line of `lacuna bench kernels`, as far as the tables read it.
fn kernel_line(case: &profile::Case, microseconds: f64) -> String {
    let rate = |n: u64| (n > 0).then(|| n as f64 / (1e-6 * microseconds));
    serde_json::json!({"schema": 1, "bench": "kernel", "who": "lacuna", "stem": case.stem(), "kernel": case.kernel(),
        "shape": case.shape(), "device": "Stand-in", "dtype": case.dtype.name(), "median_us": microseconds, "min_us": microseconds,
        "seconds": [1e-6 * microseconds], "flops": case.flops(), "bytes": case.bytes(), "flops_per_s": rate(case.flops()),
        "bytes_per_s": rate(case.bytes()), "workspace_bytes": case.workspace()})
    .to_string()
}

#[test]
fn the_tables_pair_the_two_programs() {
    if !python() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("1-facts.jsonl", "{\"part\":\"facts\",\"smi_name\":\"Stand-in\",\"date\":\"today\"}\n");
    write(
        "4-ceilings.jsonl",
        "{\"what\":\"copy\",\"gb_per_s\":3000.0,\"median_us\":5}\n{\"what\":\"product\",\"tflop_per_s\":700.0}\n",
    );
    let case = profile::cases(false).into_iter().find(|c| c.stem() == "attention").expect("attention");
    // 350 TFLOP/s, as the engine's line says it, and PyTorch twice as long by its best way.
    let time = case.flops() as f64 / 350e6;
    write("5-kernels-lacuna.jsonl", &format!("{}\n", kernel_line(&case, time)));
    let torch = |way: &str, time: f64| {
        let shape = case.shape();
        serde_json::json!({"bench": "kernel", "who": "PyTorch", "stem": "attention", "shape": shape, "dtype": "bf16",
            "variant": way, "median_us": time})
    };
    write(
        "5-kernels-torch.jsonl",
        &format!("{}\n{}\n", torch("math", 9.0 * time), torch("flash", 2.0 * time)),
    );
    let run_of = |who: &str, bench: &str, steps: usize, seconds: f64, more: &str| {
        format!(
            "{{\"who\":\"{who}\",\"bench\":\"{bench}\",\"shape\":\"diffugpt-s\",\"length\":512,\"steps\":{steps},\
             \"batch\":1,\"{}\":{seconds}{more}}}\n",
            if who == "PyTorch" { "seconds" } else { "median_s" }
        )
    };
    let engine = ",\"model\":\"diffugpt-s\",\"nfe\":60,\"tokens\":511,\"tokens_per_s\":2044.0,\"flops\":5e13,\"tflop_per_s\":200.0,\"gemm\":\"cuBLASLt 13.1.0\"";
    write(
        "6-denoise.jsonl",
        &[
            run_of("PyTorch", "denoise", 64, 1.0, ",\"scaled\":\"scaled from 8 steps\""),
            run_of("lacuna", "denoise", 64, 0.25, engine),
            run_of("lacuna, own products", "denoise", 64, 0.2, ",\"gemm\":\"own\""),
            run_of("PyTorch", "ar", 0, 4.0, ",\"model\":\"GPT2LMHeadModel\""),
            run_of("lacuna", "ar", 0, 0.5, ""),
        ]
        .concat(),
    );
    let script = root().join("tools/gpu/report.py");
    let (code, text) = run(Command::new("python3").arg(script).arg(dir.path()));
    assert_eq!(code, Some(0), "{text}");
    let report = report(dir.path());
    let row = |start: &str| {
        report
            .lines()
            .find(|l| l.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {report}"))
            .to_owned()
    };
    let attention = row(&format!("| {}, bf16 |", case.shape()));
    assert!(attention.contains("| 350 TFLOP/s | 50% |"), "{attention}");
    assert!(attention.contains("(flash) | 2.00x |"), "{attention}");
    assert!(row(&format!("| {} |", case.shape())).ends_with("| 350 | 38.9 | 175 |"), "{report}");
    let whole = row("| diffugpt-s | 512 | 64 | 1 |");
    assert_eq!(
        whole,
        "| diffugpt-s | 512 | 64 | 1 | 1.00 [1] | 0.25 | 4.00x | 511 | 2,044 | 60.0 | 50.0 | – | 200 | 25% | 4.00 | 0.5 |"
    );
    assert!(row("| diffugpt-s | 512 | 1 |").contains("| 8.00x |"), "{report}");
    assert!(row("| diffugpt-s | 512 | 64 | 1 | 0.25 | 0.2").ends_with("| 1.25x |"), "{report}");
    assert!(report.contains("lacuna's matrix products: cuBLASLt 13.1.0, own."), "{report}");
    assert!(report.contains("[1] PyTorch: scaled from 8 steps."), "{report}");
    assert!(report.contains("PyTorch's network: GPT2LMHeadModel."), "{report}");
    assert!(!report.contains("PyTorch's network: diffugpt-s"), "{report}");
    assert!(report.ends_with("## What was skipped or failed\n\nNothing.\n"), "{report}");
    assert_eq!(results(dir.path()).len(), 11);
}

#[test]
fn both_programs_measure_the_same_sizes() {
    if !python() {
        return;
    }
    for (tiny, flag) in [(false, ""), (true, "--tiny")] {
        let script = root().join("tools/gpu/sizes.py");
        let out = Command::new("python3").arg(script).arg(flag).output().expect("python3");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        let listed: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("an object")).collect();
        let own = profile::cases(tiny).into_iter().filter(|c| c.stem() != "events");
        let own: Vec<Value> = own
            .map(|c| serde_json::json!({"stem": c.stem(), "dtype": c.dtype.name(), "shape": c.shape()}))
            .collect();
        assert_eq!(listed, own);
    }
}

/// A name that the engine does not know costs every one of its rows.
#[test]
fn both_programs_mean_the_same_networks() {
    if !python() {
        return;
    }
    let out = Command::new("python3").arg(root().join("tools/gpu/models.py")).output().expect("python3");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let listed: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("an object")).collect();
    assert!(SyntheticShape::PAPER.iter().all(|s| listed.iter().any(|l| l["name"] == s.name())), "{text}");
    for shape in listed {
        let own: SyntheticShape =
            shape["name"].as_str().expect("a name").parse().expect("a shape of the engine");
        let c = own.config();
        let family = if c.family == Family::Gpt2 { "gpt2" } else { "llama" };
        let expected = serde_json::json!({"name": own.name(), "family": family, "layers": c.layers, "width": c.width,
            "heads": c.heads, "hidden": c.mlp_width, "vocab": c.vocab_size, "positions": c.max_positions});
        assert_eq!(shape, expected);
    }
}

#[test]
fn the_parts_in_python_run_on_the_cpu() {
    let Some(python) = python_with_torch() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (code, text) = run(check(&["--tiny", "--parts", "all", "--python", &python]).arg(dir.path()));
    assert_eq!(code, Some(0), "{text}");
    let rows = results(dir.path());
    let of = |part: &str| rows.iter().filter(|r| r["part"] == part).collect::<Vec<_>>();
    assert!(
        of("ceilings").iter().any(|r| r["what"] == "copy" && r["gb_per_s"].as_f64() > Some(0.0)),
        "{text}"
    );
    for case in profile::cases(true).into_iter().filter(|c| c.stem() != "events") {
        let part = if case.group() == "training" { "backward" } else { "kernels" };
        let timed = of(part).into_iter().any(|r| {
            r["stem"] == case.stem() && r["shape"] == case.shape() && r["median_us"].as_f64() > Some(0.0)
        });
        assert!(timed, "{}: {}", case.stem(), case.shape());
    }
    for shape in ["tiny-gpt2", "tiny-llama"] {
        let found = of("train").into_iter().find(|r| r["shape"] == shape);
        let found = found.unwrap_or_else(|| panic!("{shape}: {rows:?}"));
        assert!(found["seconds"].as_f64() > Some(0.0) && found["loss"].as_f64() > Some(1.0), "{found}");
    }
    for (bench, shape) in
        [("denoise", "tiny-gpt2"), ("denoise", "tiny-llama"), ("ar", "tiny-gpt2"), ("ar", "tiny-llama")]
    {
        let found = of("denoise").into_iter().find(|r| r["bench"] == bench && r["shape"] == shape);
        let found = found.unwrap_or_else(|| panic!("{bench} {shape}: {rows:?}"));
        assert!(found["seconds"].as_f64() > Some(0.0) && found["model"].is_string(), "{found}");
    }
    assert!(report(dir.path()).contains("**Tiny sizes on the CPU: nothing here is a measurement.**"));

    // Without transformers, the network of this script.
    let out = dir.path().join("own.jsonl");
    let script = root().join("tools/gpu/denoise.py");
    let (code, text) = run(Command::new(&python)
        .arg(script)
        .args(["--tiny", "--own", "--seconds", "60", "--output"])
        .arg(&out));
    assert_eq!(code, Some(0), "{text}");
    let lines = std::fs::read_to_string(out).expect("lines");
    assert_eq!(lines.lines().count(), 5, "{lines}");
    assert!(lines.lines().all(|l| l.contains("torch.nn modules") && !l.contains("\"error\"")), "{lines}");
}
