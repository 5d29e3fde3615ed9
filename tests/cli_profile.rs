//! `lacuna profile`, through the binary.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn lacuna(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
    command.output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"))
}

#[test]
fn rows_add_up_to_the_work_and_the_text_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, trace) = (folder.path().join("rows.jsonl"), folder.path().join("trace.json"));
    let generate = ["generate", "--quiet", "--length", "60", "-T", "16", "--seed", "3"];
    let plain = lacuna(&generate);
    // What lies between operations is little, but the system may take the processor away just there.
    let mut share = 0.0;
    for _ in 0..5 {
        let profile = ["profile", "--output", rows.to_str().unwrap(), "--trace", trace.to_str().unwrap()];
        let output = lacuna(&[&profile[..], &generate].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), text(&plain.stdout));
        let table = text(&output.stderr);
        for part in ["linear", "attention", "of the ceiling", "matrix products", "FLOP/s", "ui.perfetto.dev"]
        {
            assert!(table.contains(part), "{part} in {table}");
        }
        let lines = lines(&rows);
        assert!(lines.iter().all(|line| line["schema"] == 1));
        let kind = |kind: &str| lines.iter().filter(|l| l["profile"] == kind).cloned().collect::<Vec<_>>();
        let (ops, total, ceilings) = (kind("op"), &kind("total")[0], kind("ceiling"));
        let listed: f64 = ops.iter().map(|op| number(op, "total_s")).sum();
        assert!((listed - number(total, "listed_s")).abs() < 1e-6);
        assert!(listed <= number(total, "work_s") && number(total, "work_s") <= number(total, "wall_s"));
        assert_eq!(ceilings.len(), 2);
        let linear = ops.iter().find(|op| op["op"] == "linear").expect("products");
        let sum = number(linear, "calls") * number(linear, "mean_s");
        assert!((sum - number(linear, "total_s")).abs() < 1e-6);
        let rate = number(&ceilings[1], "flops_per_s").min(number(linear, "flops_per_s"));
        assert!(rate > 0.0 && number(linear, "roofline_share") > 0.0);
        let timeline: Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).expect("JSON");
        let events = timeline["traceEvents"].as_array().expect("events");
        let of = |name: &str| events.iter().filter(|e| e["ph"] == "X" && e["name"] == name).count() as f64;
        assert_eq!(of("linear"), number(linear, "calls"));
        assert_eq!(of("generate"), 1.0);
        share = listed / number(total, "work_s");
        if share > 0.95 {
            return;
        }
    }
    panic!("operations are {share} of the work, five times");
}

#[test]
fn a_training_step_is_counted_as_its_formula_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.jsonl");
    let bench = "bench train --shape tiny-llama --batch 2 --length 16 --repeat 2 --warmup 1 --json";
    let bench: Vec<&str> = bench.split(' ').collect();
    let profile = ["profile", "--no-ceilings", "--by", "shape", "--output", rows.to_str().unwrap()];
    let output = lacuna(&[&profile[..], &bench].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let step: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).expect("JSON");
    let lines = lines(&rows);
    let total = lines.iter().find(|l| l["profile"] == "total").expect("a total");
    // Three steps.
    assert_eq!(number(total, "flops"), 3.0 * number(&step, "flops"));
    let ops: Vec<&str> = lines.iter().filter_map(|l| l["op"].as_str()).collect();
    for op in ["linear_backward_weight", "attention_backward", "cross_entropy_backward", "step", "train step"]
    {
        assert!(ops.contains(&op), "{op} in {ops:?}");
    }
    let shape = lines.iter().find(|l| l["op"] == "linear_backward_weight").and_then(|l| l["shape"].as_str());
    assert!(shape.is_some_and(|s| s.matches(" x ").count() == 2), "{shape:?}");
}

#[cfg(feature = "simt")]
#[test]
fn kernels_of_a_device_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, trace) = (folder.path().join("rows.jsonl"), folder.path().join("trace.json"));
    let profile = ["profile", "--no-ceilings", "--by", "kernel", "--output", rows.to_str().unwrap()];
    let more = ["--trace", trace.to_str().unwrap()];
    let work = ["generate", "-q", "-l", "7", "-T", "2", "--seed", "5", "--device", "simt"];
    let output = lacuna(&[&profile[..], &more, &work].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), text(&lacuna(&work).stdout));
    let lines = lines(&rows);
    let kernels: Vec<&Value> = lines.iter().filter(|l| l["profile"] == "kernel").collect();
    let named = |op: &str| kernels.iter().find(|l| l["op"] == op).and_then(|l| l["kernel"].as_str());
    assert!(named("attention").is_some_and(|k| k.starts_with("attention_fwd")), "{kernels:?}");
    assert!(named("linear").is_some_and(|k| k.starts_with("matmul")), "{kernels:?}");
    assert!(named("unmask").is_some_and(|k| k.starts_with("unmask")), "{kernels:?}");
    let total = lines.iter().find(|l| l["profile"] == "total").expect("a total");
    assert_eq!(total["clock"], "device");
    let timeline: Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).expect("JSON");
    let on_card = timeline["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "kernel").count();
    let calls: f64 = kernels.iter().map(|l| number(l, "calls")).sum();
    assert_eq!(on_card as f64, calls);
    // The same as operations: the calls are those of the host.
    let profile = ["profile", "--no-ceilings", "--output", rows.to_str().unwrap()];
    assert!(lacuna(&[&profile[..], &work].concat()).status.success());
    let ops = self::lines(&rows);
    let embed = ops.iter().find(|l| l["op"] == "embed").expect("embed");
    let steps = ops.iter().find(|l| l["op"] == "denoising step").expect("steps");
    assert_eq!(number(embed, "calls"), number(steps, "calls"));
}

#[test]
fn what_cannot_be_profiled_is_said() {
    let fails = |args: &[&str], code: i32, says: &str| {
        let output = lacuna(args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(says), "{args:?}: {message}");
    };
    fails(&["profile", "profile", "generate"], 2, "expected a command that computes");
    fails(&["profile", "selftest"], 2, "expected a command that computes");
    fails(&["profile", "dance"], 2, "unrecognized subcommand 'dance'");
    fails(&["profile"], 2, "COMMAND");
    fails(&["profile", "--by", "magic", "generate"], 2, "magic");
    fails(&["profile", "generate", "--steps", "0"], 2, "steps");
    // Before anything is computed.
    fails(&["profile", "--trace", "/nonexistent/run.json", "generate"], 3, "/nonexistent/run.json");
    fails(&["profile", "--output", "/nonexistent/rows", "generate"], 3, "/nonexistent/rows");
    let nothing = lacuna(&["profile", "tokenize", "To be"]);
    assert!(nothing.status.success() && text(&nothing.stderr).contains("nothing to show"));
    let object = lacuna(&["profile", "generate", "--json", "--steps", "0"]);
    assert!(text(&object.stdout).contains("\"code\":2"), "{}", text(&object.stdout));
}
