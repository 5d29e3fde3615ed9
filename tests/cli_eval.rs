//! `lacuna eval`, `data` and `plan`: each task on the fixtures, answers by hand where the model's likelihoods are known, runs that are
//! stopped and go on, and what is refused.

#[path = "support/unigram.rs"]
mod unigram;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lacuna::eval::countdown::{Problem, check};
use lacuna::io::ModelFiles;
use serde_json::Value;

fn lacuna(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
    command.output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// The results of `lacuna eval ARGS --json`.
fn results(args: &[&str]) -> Vec<Value> {
    let output = lacuna(&[&["eval"], args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("an object")).collect()
}

/// The value of a metric.
fn value(results: &[Value], metric: &str) -> f64 {
    let found = results.iter().find(|r| r["metric"] == metric);
    found.unwrap_or_else(|| panic!("no {metric} in {results:?}"))["value"].as_f64().expect("a number")
}

/// Exits with `code` and says `words` in one line on standard error.
fn fails(args: &[&str], code: i32, words: &str) {
    let output = lacuna(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(words), "{args:?}: {message}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
}

/// A model of known likelihoods in the vocabulary of the bundled one, in which `likely` have the given logits.
fn known(dir: &Path, likely: &[(&str, f32)]) -> (String, Vec<f64>) {
    let tokenizer = ModelFiles::bundled().unwrap().tokenizer.unwrap();
    let mut logits = vec![0.0; 1024];
    for (piece, logit) in likely {
        let ids = tokenizer.encode(piece).unwrap();
        assert_eq!(ids.len(), 1, "{piece:?} is one token");
        logits[ids[0] as usize] = *logit;
    }
    unigram::write(dir, &logits);
    (dir.to_str().unwrap().to_owned(), unigram::nll(&logits))
}

fn encode(piece: &str) -> Vec<u32> {
    ModelFiles::bundled().unwrap().tokenizer.unwrap().encode(piece).unwrap()
}

#[test]
fn nelbo_of_a_network_that_looks_at_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, nll) = known(&dir.path().join("m"), &[(" the", 4.0), (",", 2.0)]);
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "the king, the queen, and the crown\n").unwrap();
    let data = file.to_str().unwrap();
    let ids = encode("the king, the queen, and the crown\n");
    let sum: f64 = ids.iter().map(|&id| nll[id as usize]).sum();
    // From left to right it is the sum itself.
    let found = results(&["nelbo", "--data", data, "--model", &model, "--ar"]);
    let want = sum / ids.len() as f64;
    assert!((value(&found, "nats/token") - want).abs() < 1e-4, "{found:?} for {want}");
    assert!((value(&found, "perplexity") - want.exp()).abs() < 1e-2 * want.exp());
    let bits = sum / std::f64::consts::LN_2 / "the king, the queen, and the crown\n".len() as f64;
    assert!((value(&found, "bits/byte") - bits).abs() < 1e-4);
    // Characters that are cut between two sequences count once.
    let emoji = "\u{1f600}\u{1f680}\u{1f33b}".repeat(7);
    std::fs::write(dir.path().join("e.txt"), &emoji).unwrap();
    let path = dir.path().join("e.txt");
    let found =
        results(&["nelbo", "--data", path.to_str().unwrap(), "--model", &model, "--ar", "--length", "6"]);
    let ids = encode(&emoji);
    assert!(ids.len() > 21, "a character has several tokens");
    let bits =
        ids.iter().map(|&id| nll[id as usize]).sum::<f64>() / std::f64::consts::LN_2 / emoji.len() as f64;
    assert!((value(&found, "bits/byte") - bits).abs() < 1e-4, "{found:?} for {bits}");
    // Masked, it is that on average, whichever way times are drawn.
    for times in ["stratified", "independent"] {
        let found =
            results(&["nelbo", "--data", data, "--model", &model, "--draws", "3000", "--times", times]);
        assert!((value(&found, "nats/token") - want).abs() < 0.06 * want, "{times}: {found:?} for {want}");
        let (seen, all): (f64, f64) = (value(&found, "unweighted"), want);
        assert!((seen - all).abs() < 0.06 * all, "{times}: {seen} for {all}");
    }
}

#[test]
fn multiple_choice_by_known_likelihoods() {
    let dir = tempfile::tempdir().unwrap();
    let (model, nll) = known(&dir.path().join("m"), &[]);
    let mean = |piece: &str| {
        let ids = encode(piece);
        (ids.iter().map(|&id| nll[id as usize]).sum::<f64>(), ids.len())
    };
    let data = dir.path().join("q.jsonl");
    // All tokens are alike here: the option with the fewest tokens has the least sum, and all have the same mean.
    let (short, long) = (" I", " am not here at all");
    assert!(mean(short).1 < mean(long).1);
    let question = |options: [&str; 2], answer: usize| {
        serde_json::json!({"prefix": "Here", "choices": options, "answer": answer}).to_string()
    };
    let lines = [question([long, short], 1), question([short, long], 0), question([long, short], 0)];
    std::fs::write(&data, lines.join("\n")).unwrap();
    let data = data.to_str().unwrap();
    for scoring in [&["--ar"][..], &["--scoring", "elbo", "--levels", "64"]] {
        let found = results(&[&["mc", "--data", data, "--model", &model], scoring].concat());
        assert!((value(&found, "accuracy") - 2.0 / 3.0).abs() < 1e-9, "{scoring:?}: {found:?}");
    }
    // Under the paper's rule with T = 1 all options have one score.
    let found = results(&["mc", "--data", data, "--model", &model, "--levels", "1"]);
    let scores = value(&found, "margin").abs();
    assert!(scores < 1e-5, "{found:?}");
}

#[test]
fn every_form_of_multiple_choice_runs() {
    for (format, file, labels) in [
        ("hellaswag", "hellaswag.jsonl", None),
        ("winogrande", "winogrande.jsonl", None),
        ("siqa", "siqa.jsonl", Some("siqa-labels.lst")),
        ("piqa", "piqa.jsonl", Some("piqa-labels.lst")),
        ("plain", "choices.jsonl", None),
    ] {
        let data = fixture(file);
        let labels = labels.map(fixture);
        let mut args = vec!["mc", "--format", format, "--data", &data, "--levels", "2"];
        if let Some(labels) = &labels {
            args.extend(["--labels", labels]);
        }
        for more in [&[][..], &["--parity"], &["--scoring", "elbo"]] {
            if format == "plain" && more == ["--parity"] {
                continue;
            }
            let found = results(&[&args[..], more].concat());
            let accuracy = value(&found, "accuracy");
            assert!((0.0..=1.0).contains(&accuracy), "{format} {more:?}");
            assert_eq!(found[0]["better"], "higher");
        }
    }
}

#[test]
fn the_last_word_by_a_network_that_always_says_one_token() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) = known(&dir.path().join("m"), &[(" me", 9.0)]);
    let data = dir.path().join("l.txt");
    std::fs::write(
        &data,
        "he came and looked at me\nhe came and looked at him\nwhat do you want of me\nmore\tof me\n",
    )
    .unwrap();
    let data = data.to_str().unwrap();
    let found = results(&["lambada", "--data", data, "--model", &model]);
    assert!((value(&found, "accuracy") - 0.75).abs() < 1e-9, "{found:?}");
    assert_eq!((found[0]["items"].as_u64(), found[0]["nfe"].as_f64()), (Some(4), Some(1.0)));
    // Drawn as the released evaluator draws, it is as sure.
    let found = results(&["lambada", "--data", data, "--model", &model, "--parity", "--trials", "2"]);
    assert!((value(&found, "accuracy") - 0.75).abs() < 1e-9, "{found:?}");
}

#[test]
fn infilling_and_questions_by_a_network_that_always_says_one_token() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) = known(&dir.path().join("m"), &[(" you", 12.0)]);
    let data = dir.path().join("s.jsonl");
    let story =
        |third: &str| serde_json::json!({"sentences": ["A b.", "C d.", third, "E f.", "G h."]}).to_string();
    std::fs::write(&data, [story("you you you"), story("king")].join("\n")).unwrap();
    let found = results(&[
        "infill",
        "--format",
        "stories",
        "--data",
        data.to_str().unwrap(),
        "--model",
        &model,
        "--steps",
        "2",
    ]);
    // The first is filled by " you" times its tokens, of which three would be right; the second has no word in common.
    let tokens = encode(" you you you").len() as f64;
    let f1 = 2.0 * 3.0 / (tokens.max(3.0) + 3.0);
    assert!((value(&found, "rouge1") - f1 / 2.0).abs() < 1e-9, "{found:?} for {f1}");

    let data = dir.path().join("q.jsonl");
    let question = |answer: &str| serde_json::json!({"question": "Who", "answers": [answer]}).to_string();
    std::fs::write(&data, [question("you"), question("king")].join("\n")).unwrap();
    let found = results(&["qa", "--data", data.to_str().unwrap(), "--model", &model, "--length", "1"]);
    for metric in ["contains", "f1", "exact"] {
        assert!((value(&found, metric) - 0.5).abs() < 1e-9, "{metric}: {found:?}");
    }
}

#[test]
fn published_forms_run() {
    for args in [
        &["infill", "--format", "stories", "--data", &fixture("stories.csv"), "--steps", "4"][..],
        &["infill", "--format", "stories", "--data", &fixture("stories.csv"), "--parity"],
        &["qa", "--data", &fixture("squad.json")],
        &["qa", "--data", &fixture("triviaqa.json"), "--parity"],
        &["lambada", "--data", &fixture("lambada.txt")],
        &["gsm8k", "--data", &fixture("gsm8k.jsonl"), "--length", "12", "--steps", "3"],
        &[
            "gsm8k",
            "--data",
            &fixture("gsm8k-equations.json"),
            "--length",
            "12",
            "--samples",
            "3",
            "--parity",
        ],
        &["unconditional", "--samples", "3", "--length", "20", "--steps", "4", "--under", "bundled"],
    ] {
        let found = results(args);
        assert!(found.iter().all(|r| r["value"].as_f64().is_some_and(f64::is_finite)), "{args:?}: {found:?}");
        assert!(found.iter().all(|r| r["low"].as_f64() <= r["value"].as_f64()), "{args:?}: {found:?}");
    }
}

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
    // What is there is not written over.
    let output = command(&whole, TRIALS, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn a_card_gives_the_likelihoods_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "the king").unwrap();
    let args = ["nelbo", "--data", file.to_str().unwrap(), "--draws", "2", "--length", "8"];
    let [cpu, card] = ["cpu", "simt"].map(|device| results(&[&args[..], &["--device", device]].concat()));
    for metric in ["nats/token", "unweighted"] {
        let (a, b) = (value(&cpu, metric), value(&card, metric));
        assert!((a - b).abs() < 1e-3 * a, "{metric}: {a} and {b}");
    }
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

#[test]
fn traces_of_evaluations_mark_what_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jsonl");
    std::fs::write(&file, "{\"prompt\": \"90,1,5,96\", \"answer\": \"90+1=91,91+5=96\"}\n").unwrap();
    let trace = dir.path().join("t.html");
    let (data, path) = (file.to_str().unwrap(), trace.to_str().unwrap());
    results(&["countdown", "--data", data, "--trace", path]);
    assert!(std::fs::read_to_string(&trace).unwrap().contains("\"revised\""));
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
    fails(&["plan", "1", "1", "--target", "90", "--tries", "2", "-q"], 2, "no solution");
    fails(&["plan", "99", "98", "97", "96", "95", "94", "--target", "50", "--length", "9"], 2, "--length");
}
