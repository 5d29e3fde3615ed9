//! The command line on other machines than the CPU: the SIMT machine in place of a card, and cards that are not there.
#![cfg(feature = "simt")]

use std::path::Path;
use std::process::{Command, Output};

fn lacuna(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
    command.envs(variables.iter().copied()).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fails(args: &[&str], variables: &[(&str, &str)], code: i32, says: &str) {
    let output = lacuna(args, variables);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
}

#[test]
fn a_simulated_card_writes_the_text_of_the_cpu() {
    let args = ["generate", "-q", "-l", "7", "-T", "2", "--seed", "5", "--batch", "2", "--device"];
    let on = |device: &str| lacuna(&[&args[..], &[device]].concat(), &[]);
    let (cpu, simt) = (on("cpu"), on("simt"));
    assert!(cpu.status.success() && simt.status.success(), "{}", text(&simt.stderr));
    assert_eq!(text(&simt.stdout), text(&cpu.stdout));
    let verbose = lacuna(&["generate", "-l", "3", "-T", "1", "--device", "simt", "-v"], &[]);
    let said = text(&verbose.stderr);
    for part in ["computing on host SIMT machine, f32", "parameters", "activations", "canvases", "free"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn other_formats_and_orders_run() {
    let args = ["generate", "-q", "-l", "6", "-T", "2", "--device", "simt", "--json"];
    let more: [&[&str]; 3] = [&["--dtype", "bf16"], &["--threshold", "0.3", "--dtype", "f16"], &["--ar"]];
    for more in more {
        let output = lacuna(&[&args[..], more].concat(), &[]);
        assert!(output.status.success(), "{more:?}: {}", text(&output.stderr));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
        assert!(line["tokens"].as_u64().is_some_and(|n| n <= 6), "{more:?}: {line}");
    }
}

#[test]
fn a_lost_machine_leaves_no_file_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (trace, input, output) = (at("run.html"), at("in.jsonl"), at("out.jsonl"));
    std::fs::write(&input, "{\"prompt\": \"To\", \"length\": 6, \"steps\": 3}\n").expect("written");
    let lost = [("LACUNA_SIMT_LOSE_AFTER", "70")];
    let says = "CUDA_ERROR_LAUNCH_FAILED";
    let generate = ["generate", "-q", "-l", "6", "-T", "3", "--device", "simt", "--trace", &trace];
    fails(&generate, &lost, 8, says);
    fails(&["batch", "-q", &input, "-o", &output, "--device", "simt"], &lost, 8, says);
    assert!(!Path::new(&trace).exists() && !Path::new(&output).exists());
}

#[test]
fn what_is_not_there_or_too_small_is_said() {
    let short = ["generate", "-q", "-l", "4", "-T", "1", "--device"];
    let on = |device: &'static str| [&short[..], &[device]].concat();
    fails(&on("cuda:99"), &[], 8, "cuda:99");
    fails(&on("tpu"), &[], 2, "expected cpu, simt, cuda or cuda:N");
    fails(&[&on("cpu")[..], &["--dtype", "bf16"]].concat(), &[], 2, "--dtype bf16");
    fails(&on("simt"), &[("LACUNA_SIMT_MEMORY", "1000000")], 7, "of 1000000 there");
    fails(&on("simt"), &[("LACUNA_SIMT_MEMORY", "much")], 2, "expected a whole number");
    let many = "bench denoise --length 100 -T 1 --batch 64 --repeat 1 --device simt";
    let many: Vec<&str> = many.split(' ').collect();
    fails(&many, &[("LACUNA_SIMT_MEMORY", "20000000")], 7, "--batch 9 would fit");
}

/// Decoding from left to right has a cache beside all else.
#[test]
fn a_cache_is_reckoned_with() {
    let args = "generate -q --ar -l 30 --batch 4 --device simt";
    let args: Vec<&str> = args.split(' ').collect();
    let [ample, scarce] = ["8000000000", "9500000"].map(|bytes| {
        let output = lacuna(&args, &[("LACUNA_SIMT_MEMORY", bytes)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    });
    assert_eq!(ample, scarce);
    let says = "tokens at a time fit: lower --batch or --length";
    fails(&args, &[("LACUNA_SIMT_MEMORY", "8544000")], 7, says);
}

/// As many sequences are worked on at a time as there is room for, and the texts are the same.
#[test]
fn a_batch_is_cut_to_what_fits() {
    let args = ["generate", "-q", "-l", "60", "-T", "1", "--batch", "12", "--seed", "2", "--device", "simt"];
    let [ample, scarce] = ["8000000000", "11000000"].map(|bytes| {
        let output = lacuna(&[&args[..], &["-v"]].concat(), &[("LACUNA_SIMT_MEMORY", bytes)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stderr);
        let (_, rest) = said.split_once("memory for ").expect("the plan");
        let tokens = rest.split_once(" sequences at a time, ").and_then(|(_, rest)| rest.split(' ').next());
        (text(&output.stdout), tokens.and_then(|n| n.parse::<usize>().ok()).expect("a number"))
    });
    assert!(scarce.1 < ample.1, "{} and {} tokens at a time", scarce.1, ample.1);
    assert_eq!(scarce.0, ample.0);
}

#[test]
fn bench_measures_made_up_weights_and_kernels() {
    for device in ["cpu", "simt"] {
        let args = "bench denoise --shape tiny-llama --length 9 -T 3 --batch 2 --repeat 2 --json --device";
        let args: Vec<&str> = args.split(' ').chain([device]).collect();
        let output = lacuna(&args, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let out = text(&output.stdout);
        let lines: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        let [copy, product, line] = &lines[..] else { panic!("{out}") };
        assert!(
            copy["bytes_per_s"].as_f64() > Some(0.0) && product["flops_per_s"].as_f64() > Some(0.0),
            "{out}"
        );
        assert_eq!((&line["bench"], &line["shape"]), (&"generate".into(), &"tiny-llama".into()));
        assert_eq!(line["threads"].is_null(), device == "simt");
        assert_eq!((&line["tokens"], &line["runs"]), (&16.into(), &2.into()));
        assert!(line["median_s"].as_f64().is_some_and(|s| s > 0.0), "{line}");
        assert!(line["flops"].as_f64().is_some_and(|n| n > 1e5), "{line}");
    }
    let wrong = lacuna(&["bench", "denoise", "--shape", "gpt5"], &[]);
    assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("diffugpt-s"));
    for device in ["cpu", "simt"] {
        let args = ["bench", "kernels", "--quick", "--json", "--filter", "norm", "--device", device];
        let output = lacuna(&args, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines = text(&output.stdout);
        assert!(lines.lines().count() >= 3 && lines.contains("\"stem\":\"norm\""), "{lines}");
    }
}
