//! `lacuna eval infill --execute`: programs that nobody has read are run, counted and stopped. Linux only, as the sandbox is.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

#[path = "support/eval.rs"]
mod eval;

use std::path::Path;

use eval::{lacuna, text};
use lacuna::eval::sandbox::{Limits, Sandbox};
use serde_json::{Value, json};

/// Whether programs can be run here: with Python, under a kernel that filters system calls.
fn can_run() -> bool {
    let tried = Sandbox::new(None, Limits::default());
    if let Err(error) = &tried {
        eprintln!("programs are not run: {error}");
    }
    tried.is_ok()
}

/// Problems of one form, one for each completion.
fn write(dir: &Path, completions: &[&str]) -> (String, String) {
    let (tasks, samples) = (dir.join("tasks.jsonl"), dir.join("samples.jsonl"));
    let problem = |n: usize| {
        json!({"task_id": format!("t/{n}"), "entry_point": "one", "prompt": "def one():\n", "suffix": "\n",
            "canonical_solution": "    return 1", "test": "def check(f):\n    assert f() == 1\n"})
        .to_string()
    };
    let lines: Vec<String> = (0..completions.len()).map(problem).collect();
    std::fs::write(&tasks, lines.join("\n")).unwrap();
    let sample = |(n, c): (usize, &&str)| json!({"task_id": format!("t/{n}"), "completion": c}).to_string();
    std::fs::write(&samples, completions.iter().enumerate().map(sample).collect::<Vec<_>>().join("\n"))
        .unwrap();
    (tasks.to_str().unwrap().into(), samples.to_str().unwrap().into())
}

/// `lacuna eval infill` on programs, which must succeed; what it prints.
fn infill(tasks: &str, args: &[&str]) -> String {
    let base = ["eval", "infill", "--format", "humaneval", "--data", tasks, "--execute"];
    let output = lacuna(&[&base[..], args].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn rows(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn programs_that_loop_fork_or_fill_memory_are_stopped_and_counted() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join("written");
    let writes = format!("    open({:?}, 'w')", written.to_str().unwrap());
    let cases = [
        ("    return 1", "passed"),
        ("    return 2", "failed"),
        ("    return (", "failed"),
        ("    while True: pass", "timed-out"),
        ("    import os\n    while True: os.fork()", "forbidden"),
        ("    import subprocess\n    subprocess.run(['true'])", "forbidden"),
        ("    x = []\n    while True: x.append(bytearray(1 << 24))", "out-of-memory"),
        ("    import socket\n    socket.socket()", "forbidden"),
        ("    import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)", "forbidden"),
        ("    while True: print('x' * 65536)", "timed-out"),
        ("    import sys\n    sys.exit(0)", "failed"),
        (writes.as_str(), "forbidden"),
    ];
    let (tasks, samples) = write(dir.path(), &cases.map(|c| c.0));
    let out = dir.path().join("out");
    let printed = infill(
        &tasks,
        &[
            "--completions",
            &samples,
            "--timeout",
            "3",
            "--memory",
            "512",
            "-o",
            out.to_str().unwrap(),
            "--json",
        ],
    );
    let items = rows(&out.join("items.jsonl"));
    for ((program, verdict), item) in cases.iter().zip(&items) {
        assert_eq!(item["verdicts"], json!([verdict]), "{program}: {}", item["messages"]);
    }
    assert!(!written.exists());
    let lines: Vec<Value> = printed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let share = |metric: &str| {
        lines.iter().find(|l| l["metric"] == metric).unwrap()["value"].as_f64().unwrap() * 12.0
    };
    for (metric, count) in
        [("pass@1", 1.0), ("timed out", 2.0), ("out of memory", 1.0), ("forbidden", 5.0), ("killed", 0.0)]
    {
        assert!((share(metric) - count).abs() < 1e-9, "{metric}: {} of 12", share(metric));
    }
}

#[test]
fn what_a_model_writes_is_run_and_written_in_the_benchmarks_form() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tasks, _) = write(dir.path(), &["", ""]);
    let out = dir.path().join("out");
    infill(&tasks, &["--samples", "2", "--steps", "4", "-o", out.to_str().unwrap(), "--json"]);
    let samples = out.join("completions-T4-seed0.jsonl");
    let lines = rows(&samples);
    let ids: Vec<&str> = lines.iter().map(|l| l["task_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["t/0", "t/0", "t/1", "t/1"]);
    assert!(lines.iter().all(|l| l["completion"].is_string()));
    // Judged again from the file they come to the same.
    infill(
        &tasks,
        &["--completions", samples.to_str().unwrap(), "-o", dir.path().join("again").to_str().unwrap(), "-q"],
    );
    let verdicts =
        |dir: &Path| rows(&dir.join("items.jsonl")).iter().map(|r| r["verdicts"].clone()).collect::<Vec<_>>();
    assert_eq!(verdicts(&out), verdicts(&dir.path().join("again")));
}

#[test]
fn what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (tasks, samples) = write(dir.path(), &["    return 1"]);
    let base = ["eval", "infill", "--format", "humaneval", "--data", tasks.as_str()];
    let fails = |more: &[&str], words: &str| {
        let output = lacuna(&[&base[..], more].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {message}");
        assert!(message.contains(words), "{more:?}: {message}");
    };
    fails(&["--completions", &samples], "--execute");
    fails(&["--execute", "--timeout", "0"], "time limit");
    fails(&["--execute", "--timeout", "NaN"], "time limit");
    fails(&["--execute", "--memory", "0"], "memory limit");
    fails(&["--execute", "--python", "/nowhere/python3"], "/nowhere/python3");
    if !can_run() {
        return;
    }
    fails(&["--execute", "--memory", "1"], "memory");
    let other = dir.path().join("other.jsonl");
    std::fs::write(&other, "{\"task_id\": \"u/1\", \"completion\": \"\"}\n").unwrap();
    fails(&["--execute", "--completions", other.to_str().unwrap()], "that of a problem");
    std::fs::write(&other, "{\"task\": \"u/1\"}\n").unwrap();
    fails(&["--execute", "--completions", other.to_str().unwrap()], "task_id");
}
