//! `lacuna eval`, `data` and `plan`: runs that are stopped and go on, sweeps, comparisons, traces, and what is refused.

#[path = "support/eval.rs"]
mod eval;

use std::path::{Path, PathBuf};
use std::process::Command;

use eval::{fails, fixture, lacuna, results, text};
use lacuna::eval::countdown::{Problem, check};
use serde_json::Value;

/// Lines without what a clock says.
fn timeless(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let line = |l: &str| {
        let mut value: Value = serde_json::from_str(l).unwrap();
        value["seconds"] = Value::Null;
        value
    };
    text.lines().map(line).collect()
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_goes_on_and_ends_as_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let command = |out: &Path, trials: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args([
            "eval",
            "unconditional",
            "--samples",
            "12",
            "--length",
            "40",
            "--steps",
            "40",
            "--seed",
            "5",
        ]);
        command.args(["--trials", trials, "-q", "-o"]).arg(out).args(more);
        command.env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command
    };
    const TRIALS: &str = "10";
    let mut child = command(&cut, TRIALS, &[]).spawn().unwrap();
    let part = cut.join("items.jsonl.part");
    let begun = || std::fs::read_to_string(&part).is_ok_and(|text| text.lines().count() > 12);
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(!cut.join("results.jsonl").exists() && part.exists());
    // Not by accident: other flags do not go on with it, and neither does the same command without --resume.
    for (trials, more, words) in
        [(TRIALS, &[][..], "--resume"), ("3", &["--resume"], "belongs to other input")]
    {
        let output = command(&cut, trials, more).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
    assert!(command(&cut, TRIALS, &["--resume"]).status().unwrap().success());
    assert!(command(&whole, TRIALS, &[]).status().unwrap().success());
    assert!(!part.exists());
    assert_eq!(timeless(&cut.join("items.jsonl")), timeless(&whole.join("items.jsonl")));
    assert_eq!(timeless(&cut.join("results.jsonl")), timeless(&whole.join("results.jsonl")));
    // What is there is not written over, and a finished run does not begin anew.
    let before = std::fs::read(whole.join("items.jsonl")).unwrap();
    for more in [&[][..], &["--resume"]] {
        let output = command(&whole, TRIALS, more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("finished evaluation"), "{}", text(&output.stderr));
    }
    assert_eq!(std::fs::read(whole.join("items.jsonl")).unwrap(), before);
}

#[test]
fn a_sweep_draws_a_plot_and_the_report_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("swept");
    let out = out.to_str().unwrap();
    let found = results(&[
        "unconditional",
        "--samples",
        "4",
        "--length",
        "24",
        "--t-sweep",
        "1,4,12",
        "--under",
        "bundled",
        "-o",
        out,
    ]);
    let steps: Vec<u64> =
        found.iter().filter(|r| r["metric"] == "perplexity").filter_map(|r| r["steps"].as_u64()).collect();
    assert_eq!(steps, [1, 4, 12]);
    let nfe = |t: u64| found.iter().find(|r| r["steps"] == t).unwrap()["nfe"].as_f64().unwrap();
    assert!(nfe(1) == 1.0 && nfe(4) <= 4.0 && nfe(12) > nfe(4), "{found:?}");
    let svg = std::fs::read_to_string(dir.path().join("swept/quality.svg")).unwrap();
    let parsed = roxmltree::Document::parse(&svg).expect("an SVG");
    assert!(
        parsed.descendants().filter(|n| n.has_tag_name("circle")).count() >= 9,
        "three panels of three points"
    );
    let page = dir.path().join("r.html");
    let output = lacuna(&["report", out, "--output", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(page).unwrap().contains("unconditional perplexity"));
}

#[test]
fn comparing_two_runs() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, right: fn(usize) -> bool| -> PathBuf {
        let path = dir.path().join(name);
        let line = |i: usize| {
            let value = u8::from(right(i));
            format!(
                "{{\"id\": \"{i}\", \"steps\": 4, \"trial\": 0, \"metrics\": {{\"accuracy\": [{value}, 1]}}}}"
            )
        };
        std::fs::write(&path, (0..100).map(line).collect::<Vec<_>>().join("\n")).unwrap();
        path
    };
    let (a, b) = (write("a.jsonl", |i| i % 2 == 0), write("b.jsonl", |i| i % 2 == 0 || i % 5 == 1));
    let run = |a: &Path, b: &Path| results(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]);
    let found = &run(&a, &b)[0];
    // 50 of 100, and 10 more: i % 10 == 1.
    assert_eq!((found["a"].as_f64(), found["b"].as_f64()), (Some(0.5), Some(0.6)));
    assert!((found["difference"].as_f64().unwrap() - 0.1).abs() < 1e-12);
    // t = 0.1 / (sd / 10) with sd^2 = (10 (0.9)^2 + 90 (0.1)^2) / 99.
    let sd = ((10.0 * 0.81 + 90.0 * 0.01) / 99.0f64).sqrt();
    assert!((found["t"].as_f64().unwrap() - 0.1 / (sd / 10.0)).abs() < 1e-9, "{found}");
    assert!(
        found["p_t"].as_f64().unwrap() < 0.01 && found["p_bootstrap"].as_f64().unwrap() < 0.01,
        "{found}"
    );
    let same = &run(&a, &a)[0];
    assert_eq!((same["p_t"].as_f64(), same["p_bootstrap"].as_f64()), (Some(1.0), Some(1.0)));
    fails(&["eval", "compare", a.to_str().unwrap(), &fixture("lambada.txt")], 2, "expected");
    fails(&["eval", "compare", "nowhere", a.to_str().unwrap()], 3, "nowhere");
}

#[test]
fn countdown_data_are_problems_and_the_planner_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jsonl");
    let path = file.to_str().unwrap();
    let output = lacuna(&[
        "data",
        "countdown",
        "--numbers",
        "3",
        "--split",
        "test",
        "--count",
        "40",
        "--seed",
        "3",
        "-o",
        path,
        "--json",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 40);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let problem: Problem = line["prompt"].as_str().unwrap().parse().unwrap();
        assert!(check(&problem, line["answer"].as_str().unwrap()).is_ok(), "{line}");
    }
    // Standard output has the same.
    let output =
        lacuna(&["data", "countdown", "--numbers", "3", "--split", "test", "--count", "40", "--seed", "3"]);
    assert_eq!(text(&output.stdout), lines);
    let found = results(&["countdown", "--data", path, "--limit", "20", "--self-correction"]);
    let remask: Vec<Option<bool>> =
        found.iter().filter(|r| r["metric"] == "accuracy").map(|r| r["remask"].as_bool()).collect();
    assert_eq!(remask, [Some(false), Some(true)]);
    let orders: Vec<&str> =
        found.iter().filter(|r| r["metric"] == "accuracy").filter_map(|r| r["order"].as_str()).collect();
    assert_eq!(orders, ["confidence", "confidence+remask"]);
    let flags = ["--limit", "2", "-T", "2", "--order", "confidence"];
    for (flag, order) in [(&[][..], "confidence"), (&["--remask"], "confidence+remask")] {
        let alone = results(&[&["countdown", "--data", path], &flags[..], flag].concat());
        assert!(!alone.is_empty() && alone.iter().all(|r| r["order"] == order), "{alone:?}");
    }
    let without = found.iter().filter(|r| r["remask"] == false && r["metric"] == "changed");
    assert!(
        without.clone().count() == 1 && without.clone().all(|r| r["value"] == 0.0),
        "nothing is taken back: {found:?}"
    );
    fails(
        &["data", "countdown", "--numbers", "3", "--largest", "2", "--count", "1000", "-q"],
        2,
        "different problems",
    );
    fails(&["data", "countdown", "--numbers", "9"], 2, "--numbers 9");
    fails(&["data", "countdown", "--least-target", "5", "--greatest-target", "4"], 2, "--least-target");
    fails(&["data", "countdown", "--count", "0"], 2, "--count 0");
}

/// The example of "Beyond autoregression": its first try is wrong, later ones go on from right equations.
#[test]
fn the_planner_solves_four_numbers_on_from_what_was_right() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.jsonl");
    let output = lacuna(&[
        "plan",
        "86",
        "28",
        "13",
        "31",
        "--target",
        "96",
        "--json",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let equations: Vec<&str> =
        said["equations"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    let problem: Problem = "86,28,13,31,96".parse().unwrap();
    assert!(check(&problem, &equations.join(",")).is_ok(), "{said}");
    let lines = std::fs::read_to_string(&trace).unwrap();
    let given: Vec<usize> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["type"] == "header")
        .map(|line| line["fixed"].as_array().unwrap().iter().filter(|fixed| **fixed == true).count())
        .collect();
    assert_eq!(Some(given.len() as u64), said["tries"].as_u64());
    assert!(given[1..].iter().any(|n| *n > given[0]), "no equation was kept: {given:?}");
}

/// With one step the signal finds every try whole.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_tries_and_keeps_their_trace() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["plan", "0", "0", "0", "--target", "0", "-T", "1", "--tries", "4000000000", "--trace"]);
    let mut child = command.arg(&trace).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.starts_with("try 3")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(said.last().as_deref(), Some("interrupted"));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(std::fs::read_to_string(&trace).unwrap().lines().count() >= 9);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_half_written_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["data", "countdown", "--numbers", "5", "--count", "100000000", "-q", "-o"]);
    let mut child =
        command.arg(dir.path().join("t.jsonl")).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    while files() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(files(), 0);
}

#[test]
fn traces_of_evaluations_mark_what_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jsonl");
    std::fs::write(&file, "{\"prompt\": \"90,1,5,96\", \"answer\": \"90+1=91,91+5=96\"}\n").unwrap();
    let trace = dir.path().join("t.html");
    let (data, path) = (file.to_str().unwrap(), trace.to_str().unwrap());
    let none_is_marked = |steps: &str| {
        results(&["countdown", "--data", data, "--trace", path, "-T", steps]);
        std::fs::read_to_string(&trace).unwrap().contains("\"revised\":[]")
    };
    assert_eq!([none_is_marked("1"), none_is_marked("20")], [true, false]);
    fails(&["eval", "countdown", "--data", data, "--trace", "t.txt"], 2, ".jsonl");
}

#[test]
fn what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty = file("empty.jsonl", "\n");
    for task in ["mc", "qa", "gsm8k", "countdown"] {
        fails(&["eval", task, "--data", &empty], 2, "no items");
    }
    fails(&["eval", "lambada", "--data", &file("e.txt", "\n\n")], 2, "no items");
    fails(&["eval", "nelbo", "--data", &file("n.txt", "")], 2, "no text");
    let wrong = file("w.jsonl", "{\"sentence\": \"x _ y\", \"option1\": \"a\"}\n");
    fails(&["eval", "mc", "--format", "winogrande", "--data", &wrong], 2, "option2");
    fails(&["eval", "mc", "--format", "hellaswag", "--data", &wrong], 2, "line 1");
    fails(&["eval", "gsm8k", "--data", &file("g.jsonl", "{\"question\": \"x\"}\n")], 2, "answer");
    fails(
        &["eval", "countdown", "--data", &file("c.jsonl", "{\"prompt\": \"1,x\", \"answer\": \"1\"}\n")],
        2,
        "numbers and a target",
    );
    // An answer longer than the context.
    let long = file("long.txt", &format!("{} end\n", "word ".repeat(400)));
    fails(&["eval", "lambada", "--data", &long], 2, "the context of bard-diffusion holds 128");
    fails(&["eval", "lambada", "--data", &long, "--too-long", "skip"], 2, "0 items");
    let found = results(&["lambada", "--data", &long, "--too-long", "truncate"]);
    assert_eq!(found[0]["items"], 1);
    fails(&["eval", "gsm8k", "--data", &fixture("gsm8k.jsonl"), "--length", "500"], 2, "holds 128");
    fails(&["eval", "nelbo", "--data", &fixture("lambada.txt"), "--length", "129"], 2, "--length 129");
    fails(&["eval", "unconditional", "--length", "128"], 2, "--length 128");
    fails(
        &[
            "eval",
            "gsm8k",
            "--data",
            &fixture("gsm8k.jsonl"),
            "--shots",
            "9",
            "--shots-from",
            &fixture("gsm8k.jsonl"),
        ],
        2,
        "has only 3",
    );
    fails(
        &["eval", "gsm8k", "--data", &fixture("gsm8k.jsonl"), "--self-correction"],
        2,
        "--order confidence",
    );
    fails(
        &["eval", "infill", "--format", "stories", "--data", &fixture("stories.csv"), "--execute"],
        2,
        "humaneval",
    );
    fails(&["eval", "mc", "--data", &fixture("choices.jsonl"), "--levels", "0"], 2, "--levels");
    fails(&["eval", "mc", "--data", &fixture("choices.jsonl"), "--mask-id", "5000"], 2, "--mask-id 5000");
    fails(&["eval", "lambada", "--data", "nowhere.txt"], 3, "nowhere.txt");
    // Sizes that cannot be meant.
    let most = usize::MAX.to_string();
    for (task, flag) in [("unconditional", "--trials"), ("unconditional", "--samples")] {
        fails(&["eval", task, flag, &most], 2, "expected at most");
    }
    fails(&["eval", "gsm8k", "--data", &fixture("gsm8k.jsonl"), "--samples", "99999999"], 2, "--samples");
    fails(&["eval", "nelbo", "--data", &fixture("lambada.txt"), "--draws", "999999"], 2, "--draws");
    fails(&["eval", "mc", "--data", &fixture("choices.jsonl"), "--t-sweep", "1,999999"], 2, "--levels");
    fails(&["eval", "unconditional", "--steps", &most], 2, "steps");
    fails(&["plan", "5", "--target", "5"], 2, "expected 2 to 6");
    fails(&["plan", "1", "1", "--target", "90"], 2, "1,1,90: the problem has no solution");
    let hard = ["plan", "97", "89", "83", "79", "--target", "12", "--tries", "2", "-T", "1", "-q"];
    fails(&hard, 2, "no solution in 2 tries");
    fails(&["plan", "99", "98", "97", "96", "95", "94", "--target", "50", "--length", "9"], 2, "--length");
}
