//! What broke once, and must not again; each test is named by what broke.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{fixture, load};
use assert_cmd::Command;
use lacuna::backend::Confidence;
use lacuna::diffusion::schedule::{Counts, share_steps};
use lacuna::sample::{Canvas, CountSchedule, Limits, Order, Request, Sampler};
use predicates::str::contains;
use serde_json::{Value, json};

fn lacuna() -> Command {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL").env("HF_HUB_OFFLINE", "1").timeout(Duration::from_secs(120));
    command
}

fn lines(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).expect("UTF-8");
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn batch(input: &str, flags: &[&str]) -> Vec<Value> {
    let out = lacuna().args(["batch", "-q"]).args(flags).write_stdin(input).assert();
    lines(&out.get_output().stdout)
}

/// Going from step to step took hours where there are thousands of millions and few positions.
#[test]
fn confidence_orders_with_a_huge_step_count_hung() {
    let args = "generate -q --json -l 8 --order confidence --steps 4294967295";
    let out = lacuna().args(args.split(' ')).assert().success();
    let line = &lines(&out.get_output().stdout)[0];
    assert_eq!((&line["nfe"], &line["tokens"]), (&json!(8), &json!(8)));
}

#[test]
fn the_next_step_that_commits_is_the_one_found_by_going_through_them() {
    for counts in [Counts::Linear, Counts::Cosine] {
        for (total, steps) in [(1, 1), (7, 3), (5, 64), (64, 64), (40, 333)] {
            for from in 0..steps {
                for masked in 1..=total {
                    let slow = (from..steps).find(|k| counts.masked_after(total, k + 1, steps) < masked);
                    let fast = counts.next_commit(total, masked, from, steps);
                    assert_eq!(Some(fast), slow, "{counts:?} {total} {steps} {from} {masked}");
                }
            }
        }
    }
}

/// Sharing steps out took the square of the number of blocks.
#[test]
fn blocks_of_one_in_a_very_long_text_hung() {
    let blocks = 1_000_000;
    let shares = share_steps(&vec![1; blocks], blocks + blocks / 2);
    assert_eq!(shares.iter().sum::<usize>(), blocks + blocks / 2);
    assert_eq!((shares[0], shares[blocks / 2 - 1], shares[blocks / 2]), (2, 2, 1));
    let uneven: Vec<usize> = (0..200_000).map(|i| if i == 7 { 9_000_000 } else { 1 }).collect();
    let shares = share_steps(&uneven, 300_000);
    assert_eq!(shares.iter().sum::<usize>(), 300_000);
    assert_eq!(shares[7], 300_000 - 199_999);
}

/// Nothing was printed before all samples were done, and all of them were held in memory.
#[test]
fn a_reader_of_the_first_sample_waited_for_the_last() {
    use std::io::{BufRead, BufReader};
    let program = assert_cmd::cargo::cargo_bin("lacuna");
    let mut command = std::process::Command::new(program);
    command.args(["generate", "--json", "-q", "-l", "60", "-T", "2", "--batch", "4294967295"]);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut child = command.env_remove("LACUNA_MODEL").spawn().expect("started");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    assert_eq!(lines(first.as_bytes())[0]["sequence"], 0);
    // The reader is gone: the program ends, and that is no failure.
    assert!(child.wait().expect("ended").success());
}

/// Samples of later rounds are those of a single round.
#[test]
fn samples_of_every_round_are_those_of_their_number() {
    let run = |batch: &str| {
        let args = ["generate", "--json", "-q", "-l", "100", "-T", "2", "--batch", batch];
        lines(&lacuna().args(args).assert().success().get_output().stdout)
    };
    let (many, two) = (run("170"), run("2"));
    assert_eq!(many.len(), 170);
    for (i, line) in many.iter().enumerate() {
        assert_eq!(line["sequence"], i);
    }
    assert_eq!(many[1]["canvas_ids"], two[1]["canvas_ids"]);
    let distinct: std::collections::BTreeSet<String> =
        many.iter().map(|l| l["canvas_ids"].to_string()).collect();
    assert_eq!(distinct.len(), 170);
}

#[test]
fn a_huge_batch_size_is_as_many_as_there_are() {
    let input: String =
        (0..40).map(|i| format!("{{\"length\": 20, \"steps\": 1, \"seed\": {i}}}\n")).collect();
    let results = batch(&input, &["--batch", "1000000000"]);
    assert_eq!(results.len(), 40);
    assert!(results.iter().enumerate().all(|(i, r)| r["line"] == i + 1 && r["tokens"].is_u64()));
}

/// Threads that no machine has were started one after the other, for minutes.
#[test]
fn ten_thousand_threads_hung() {
    for n in ["1025", "10000", "1000000000"] {
        lacuna().args(["generate", "--threads", n]).assert().code(2).stderr(contains("--threads"));
    }
}

#[test]
fn usage_errors_were_no_objects_with_json() {
    let out = lacuna().args(["generate", "--json", "--length", "many"]).assert().code(2);
    let line = &lines(&out.get_output().stdout)[0];
    assert_eq!(line["code"], 2);
    assert!(line["error"].as_str().expect("message").contains("--length"), "{line}");
    lacuna().args(["generate", "--length", "many"]).assert().code(2).stdout("");
    lacuna().args(["generate", "--json", "--help"]).assert().success().stdout(contains("Usage"));
}

#[test]
fn negative_numbers_were_taken_for_flags() {
    for (flag, words) in
        [("--temperature", "expected 0 or more"), ("--seed", "invalid value '-1'"), ("--fps", "0 or more")]
    {
        lacuna().args(["generate", flag, "-1"]).assert().code(2).stderr(contains(words));
    }
}

#[test]
fn an_empty_model_name_was_looked_for_on_a_hub() {
    lacuna().args(["generate", "--model", ""]).assert().code(2).stderr(contains("empty"));
    lacuna().arg("inspect").env("LACUNA_MODEL", "").assert().code(2).stderr(contains("LACUNA_MODEL"));
}

/// The second of two values was used without a word.
#[test]
fn a_key_twice_in_a_line_went_unseen() {
    let results = batch("{\"length\": 4, \"length\": 6}\n{\"length\": 3}\n", &["-T", "2"]);
    assert!(results[0]["error"].as_str().expect("error").contains("`length` twice"), "{}", results[0]);
    assert_eq!(results[1]["tokens"], 3);
}

#[test]
fn a_byte_order_mark_spoilt_the_first_line() {
    let results = batch("\u{feff}{\"length\": 4}\r\n{\"length\": 3}\r\n", &["-T", "2"]);
    assert_eq!(results.iter().map(|r| r["tokens"].clone()).collect::<Vec<_>>(), [json!(4), json!(3)]);
}

/// Orders were ignored beside "ar", though the flags refuse them.
#[test]
fn a_line_that_contradicts_itself_was_done_anyway() {
    let results = batch("{\"ar\": true, \"threshold\": 0.5}\n{\"ar\": true, \"block_length\": 4}\n", &[]);
    for (result, flag) in results.iter().zip(["--threshold", "--block-length"]) {
        assert!(result["error"].as_str().expect("error").contains(flag), "{result}");
    }
}

#[test]
fn strict_did_not_say_which_line_has_the_wrong_value() {
    lacuna()
        .args(["batch", "--strict"])
        .write_stdin("{\"length\": 4}\n{\"temperature\": -1}\n")
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("standard input line 2: --temperature -1"));
}

#[test]
fn the_input_was_overwritten_by_the_output() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("in.jsonl");
    std::fs::write(&path, "{\"length\": 4}\n").expect("written");
    lacuna().arg("batch").arg(&path).arg("-o").arg(&path).assert().code(2).stderr(contains("is the input"));
    assert_eq!(std::fs::read_to_string(&path).expect("kept"), "{\"length\": 4}\n");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
}

#[cfg(unix)]
fn pipe(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    path
}

/// It was opened twice: the reader of the first took its end for the end of the results, and the
/// second waited for another reader for ever.
#[cfg(unix)]
#[test]
fn a_named_pipe_as_output_hung() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = pipe(dir.path(), "out.jsonl");
    for args in [&["batch", "-o"][..], &["generate", "-l", "6", "--trace"]] {
        let reader = path.clone();
        let reader = std::thread::spawn(move || std::fs::read(reader).expect("read"));
        lacuna()
            .args(args)
            .arg(&path)
            .args(["-q", "-T", "2"])
            .write_stdin("{\"length\": 4}\n")
            .assert()
            .success();
        assert!(!lines(&reader.join().expect("read")).is_empty());
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "something lies beside the pipe");
}

/// Every tensor of a file was searched for among all others.
#[test]
fn a_file_of_very_many_tensors_hung() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = r#"{"model_type": "gpt2", "vocab_size": 1, "n_positions": 1, "n_embd": 1, "n_head": 1,
        "n_layer": 10000, "n_inner": 1}"#;
    std::fs::write(dir.path().join("config.json"), config).expect("written");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: String, shape: &[usize]| {
        let start = data.len();
        data.resize(start + 4 * shape.iter().product::<usize>(), 0u8);
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    };
    add("wte.weight".into(), &[1, 1]);
    add("wpe.weight".into(), &[1, 1]);
    for n in 0..10_000 {
        for (name, shape) in [
            ("ln_1.weight", &[1][..]),
            ("ln_1.bias", &[1]),
            ("attn.c_attn.weight", &[1, 3]),
            ("attn.c_attn.bias", &[3]),
            ("attn.c_proj.weight", &[1, 1]),
            ("attn.c_proj.bias", &[1]),
            ("ln_2.weight", &[1]),
            ("ln_2.bias", &[1]),
            ("mlp.c_fc.weight", &[1, 1]),
            ("mlp.c_fc.bias", &[1]),
            ("mlp.c_proj.weight", &[1, 1]),
            ("mlp.c_proj.bias", &[1]),
        ] {
            add(format!("h.{n}.{name}"), shape);
        }
    }
    add("ln_f.weight".into(), &[1]);
    add("ln_f.bias".into(), &[1]);
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
    let out = lacuna().args(["inspect", "--json"]).arg(dir.path()).assert().success();
    assert_eq!(lines(&out.get_output().stdout)[0]["parameters"], 10_000 * 16 + 4);
}

/// A request that the sampler refuses had its result only when all others were done.
#[test]
fn a_refused_request_was_reported_last() {
    // Without its special token there is nothing before the gap that it could be predicted from.
    let dir = tempfile::tempdir().expect("a folder");
    let model = fixture("golden/gpt2-tiny");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(file), dir.path().join(file)).expect("copied");
    }
    let input = "{\"length\": 4, \"mask_id\": 5, \"steps\": 4294967296}\n{\"length\": 6, \"mask_id\": 5, \"bos\": \"always\"}\n";
    let out = lacuna()
        .args(["batch", "-q", "--unordered", "--bos", "always", "--model"])
        .arg(dir.path())
        .write_stdin(input)
        .assert()
        .code(2);
    let results = lines(&out.get_output().stdout);
    let order: Vec<_> = results.iter().map(|r| r["line"].clone()).collect();
    assert_eq!(order, [json!(1), json!(2)], "{results:?}");
    assert!(results[0]["error"].as_str().expect("error").contains("steps"), "{}", results[0]);
}

/// The KV cache had as many rows for each sequence as for the longest, and sequences of different
/// lengths must not meet in it.
#[test]
fn left_to_right_texts_of_different_lengths_share_a_cache() {
    let model = load(&fixture("golden/llama-tiny"), 2);
    let requests: Vec<Request> = [(2, 40), (9, 3), (1, 17), (5, 1), (30, 20)]
        .into_iter()
        .enumerate()
        .map(|(i, (given, length))| {
            let given: Vec<u32> = (0..given).map(|p| 7 * p + i as u32).collect();
            let mut request = Request::new(Canvas::prefix(&given, length));
            (request.autoregressive, request.seed, request.stop_at_eos) = (true, i as u64, false);
            request
        })
        .collect();
    let limits = Limits::for_requests(&requests, requests.len());
    let mut sampler = Sampler::new(Arc::clone(&model), limits).expect("sampler");
    let together = sampler.generate_with(&requests, &mut ()).expect("results");
    for (request, result) in requests.iter().zip(together) {
        let alone = sampler.generate(request).expect("alone");
        assert_eq!(result.expect("together").ids, alone.ids);
    }
}

/// Left-to-right decoding drew the mask token where it must not be drawn.
#[test]
fn left_to_right_decoding_did_not_suppress_the_mask_token() {
    let model = load(&fixture("golden/gpt2-tiny"), 2);
    let vocab = model.config().vocab_size as u32;
    let mut sampler = Sampler::new(model, Limits { sequences: 1, tokens: 64 }).expect("sampler");
    let mut request = Request::new(Canvas::prefix(&[3, 4], 12));
    (request.autoregressive, request.stop_at_eos, request.temperature) = (true, false, 0.0);
    let free = sampler.generate(&request).expect("text");
    let drawn = free.ids[2];
    assert!(drawn < vocab);
    (request.mask_id, request.suppress_mask) = (Some(drawn), Some(true));
    let held = sampler.generate(&request).expect("text");
    assert!(!held.ids[2..].contains(&drawn), "{:?}", held.ids);
}

/// Positions that are committed for good are not scored again, and a block ends early when all of
/// it is committed, also where the steps are many.
#[test]
fn blocks_with_more_steps_than_positions_end_early() {
    let model = load(&fixture("golden/gpt2-tiny"), 2);
    let mut sampler = Sampler::new(model, Limits { sequences: 1, tokens: 64 }).expect("sampler");
    let mut request = Request::new(Canvas::prefix(&[3], 12));
    request.order = Order::Confidence {
        by: Confidence::MaxProb,
        schedule: CountSchedule::Linear,
        noise: 0.0,
        remask: false,
    };
    (request.steps, request.block_length, request.stop_at_eos) = (1_000_000_000, Some(5), false);
    request.mask_id = Some(96);
    let text = sampler.generate(&request).expect("text");
    assert_eq!(text.nfe, 12);
    assert!(text.committed_at[1..6].iter().max() < text.committed_at[6..].iter().min());
}

#[test]
fn top_k_one_is_greedy_through_the_command_line() {
    let run = |flags: &[&str]| {
        let args = ["generate", "-q", "--json", "-l", "20", "-T", "20"];
        let out = lacuna().args(args).args(flags).assert().success();
        lines(&out.get_output().stdout)[0]["canvas_ids"].clone()
    };
    assert_eq!(run(&["--top-k", "1", "--top-p", "1"]), run(&["--greedy"]));
    assert_eq!(run(&["--top-k", "4294967295"]), run(&["--top-k", "0"]));
    assert_ne!(run(&["--top-k", "5"]), run(&["--greedy"]));
}
