//! `lacuna eval infill --execute`: programs that nobody has read are run, counted and stopped. Linux only, as the sandbox is.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

#[path = "support/eval.rs"]
mod eval;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use eval::{lacuna, text, value};
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

/// The values of JSON lines.
fn parsed(lines: &str) -> Vec<Value> {
    lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn rows(path: &Path) -> Vec<Value> {
    parsed(&std::fs::read_to_string(path).unwrap())
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
    let found = parsed(&printed);
    let share = |metric: &str| value(&found, metric) * 12.0;
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
    let (lines, items) = (rows(&samples), rows(&out.join("items.jsonl")));
    let ids: Vec<&str> = lines.iter().map(|l| l["task_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["t/0", "t/0", "t/1", "t/1"]);
    let completions: Vec<&Value> = lines.iter().map(|l| &l["completion"]).collect();
    let outputs: Vec<&Value> = items.iter().flat_map(|i| i["outputs"].as_array().unwrap()).collect();
    assert_eq!(completions, outputs);
    assert!(completions.iter().all(|c| c.is_string()));
    // Judged again from the file they come to the same, and one that is right passes beside them.
    let judged = |samples: &Path, name: &str| {
        let out = dir.path().join(name);
        let (samples, to) = (samples.to_str().unwrap(), out.to_str().unwrap());
        let printed = infill(&tasks, &["--completions", samples, "-o", to, "--json", "-q"]);
        (rows(&out.join("items.jsonl")), value(&parsed(&printed), "pass@1"))
    };
    let verdicts = |items: &[Value]| -> Vec<Vec<Value>> {
        items.iter().map(|i| i["verdicts"].as_array().unwrap().clone()).collect()
    };
    let (again, _) = judged(&samples, "again");
    assert_eq!(verdicts(&again), verdicts(&items));
    let more = dir.path().join("more.jsonl");
    let right = json!({"task_id": "t/0", "completion": "    return 1"});
    std::fs::write(&more, format!("{}{right}\n", std::fs::read_to_string(&samples).unwrap())).unwrap();
    let (again, pass) = judged(&more, "more");
    let (mut expected, found) = (verdicts(&items), verdicts(&again));
    expected[0].push(json!("passed"));
    assert_eq!(found, expected);
    // The mean over problems, not over completions.
    let share = |all: &Vec<Value>| all.iter().filter(|v| **v == "passed").count() as f64 / all.len() as f64;
    let mean = found.iter().map(share).sum::<f64>() / 2.0;
    assert!((pass - mean).abs() < 1e-9, "{pass}: {found:?}");
}

#[test]
fn problems_without_a_completion_are_counted_and_a_limit_takes_the_first_problems() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tasks, samples) = write(dir.path(), &["    return 1", "    return 1", "    return 2"]);
    let all = std::fs::read_to_string(&samples).unwrap();
    let some: Vec<&str> = all.lines().filter(|line| !line.contains("t/1")).collect();
    std::fs::write(&samples, some.join("\n")).unwrap();
    let judged = |more: &[&str]| {
        let base = ["eval", "infill", "--format", "humaneval", "--data", tasks.as_str(), "--execute"];
        let output = lacuna(&[&base[..], &["--completions", samples.as_str(), "--json"], more].concat());
        let (found, notes) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{more:?}: {notes}");
        let found = parsed(&found);
        (value(&found, "pass@1"), found[0]["items"].clone(), notes)
    };
    let (pass, items, notes) = judged(&[]);
    assert_eq!((pass, items), (0.5, json!(2)));
    assert!(notes.contains("1 problems have no completion in "), "{notes}");
    let (pass, items, notes) = judged(&["--limit", "2"]);
    assert_eq!((pass, items), (1.0, json!(1)));
    assert!(notes.contains("1 problems have no completion in "), "{notes}");
    for quiet in [&["--limit", "1"][..], &["-q"]] {
        let (.., notes) = judged(quiet);
        assert!(!notes.contains("no completion"), "{notes}");
    }
}

#[test]
fn an_interrupt_is_heard_between_programs_and_other_work_does_not_go_on() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tasks, samples) = write(dir.path(), &[""]);
    // All of one problem, and so of one round.
    let complete = |last: &str| {
        let line = |c: &str| json!({"task_id": "t/0", "completion": c}).to_string() + "\n";
        let slow = line("    import time\n    time.sleep(0.05)\n    return 1");
        std::fs::write(&samples, slow.repeat(60) + &line(last)).unwrap();
    };
    let (out, temporary) = (dir.path().join("out"), dir.path().join("tmp"));
    std::fs::create_dir(&temporary).unwrap();
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["eval", "infill", "--format", "humaneval", "--data", tasks.as_str(), "--execute"]);
        command.args(["--completions", samples.as_str(), "-q", "-o"]).arg(&out).args(more);
        command.env("RAYON_NUM_THREADS", "2").env("TMPDIR", &temporary);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    complete("    return 1");
    let mut child = command(&[]).spawn().unwrap();
    let part = out.join("items.jsonl.part");
    while !part.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(part.exists() && !out.join("results.jsonl").exists());
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "folders are left");
    let is_refused = |more: &[&str]| {
        let output = command(more).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {message}");
        assert!(message.contains("belongs to other input"), "{more:?}: {message}");
    };
    is_refused(&["--resume", "--timeout", "9"]);
    is_refused(&["--resume", "--memory", "1023"]);
    complete("    return 2");
    is_refused(&["--resume"]);
    complete("    return 1");
    let output = command(&["--resume"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(value(&rows(&out.join("results.jsonl")), "pass@1"), 1.0);
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
