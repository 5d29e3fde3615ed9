//! The commands that look at files: `inspect` and `tokenize`, as a person or a program runs them.

use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};

use super::hub::{Fake, tiny};
use super::support::{gpt2, with, write};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/bard-diffusion");

fn lacuna(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lacuna").unwrap();
    for name in ["LACUNA_MODEL", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Runs a command that must exit with `code`; its standard output and standard error.
#[track_caller]
fn run(args: &[&str], code: i32) -> (String, String) {
    let output = lacuna(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

/// A copy of the bundled model's folder with one number of `tensor` replaced.
fn with_number(tensor: &str, bits: u16) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        write(dir.path(), file, std::fs::read(Path::new(ASSETS).join(file)).unwrap());
    }
    let mut bytes = std::fs::read(Path::new(ASSETS).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let at = 8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 20;
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    write(dir.path(), "model.safetensors", bytes);
    dir
}

#[test]
fn inspect_tells_a_person_what_the_bundled_model_is() {
    let (out, err) = run(&["inspect", "--check"], 0);
    for line in [
        "architecture  GPT-2: 4 layers, width 192, 3 heads of 64",
        "parameters    2,001,024, head tied to the embedding",
        "weights       f16: 52 tensors",
        "names         DiffuGPT wrapper",
        "mask          0 \"<mask>\"  from config.json mask_token_id, a token of its own",
        "eos           1 \"<eos>\"  from config.json eos_token_id",
        "sep           none",
        "context       128 positions",
        "checked       every weight is finite",
    ] {
        assert!(out.contains(line), "{line:?} is not in\n{out}");
    }
    assert!(out.contains("mapped") && out.contains("copied") && out.contains("activations"), "{out}");
    assert_eq!(err, "");
}

#[test]
fn inspect_tells_a_program_the_same() {
    let (out, _) = run(&["inspect", ASSETS, "--json", "--tensors", "--batch", "2", "--length", "64"], 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["parameters"], 2_001_024);
    assert_eq!(report["config"]["heads"], 3);
    assert_eq!(report["special"]["mask"], json!({"id": 0, "source": "config.json mask_token_id"}));
    assert_eq!(report["dtypes"]["f16"]["tensors"], 52);
    assert_eq!((&report["problem"], &report["checked_finite"]), (&Value::Null, &json!(false)));
    let memory = &report["memory"];
    let bytes = |field: &str| memory[field].as_u64().unwrap();
    assert_eq!(
        bytes("mapped_bytes") + bytes("copied_bytes") + bytes("activation_bytes"),
        bytes("total_bytes")
    );
    assert_eq!((&memory["batch"], &memory["length"]), (&json!(2), &json!(64)));
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 52);
    let embedding = tensors.iter().find(|t| t["name"] == "embed_tokens.weight").unwrap();
    let expected = json!({"name": "embed_tokens.weight", "dtype": "f16", "shape": [1024, 192],
        "bytes": 393216, "parameter": "embedding", "unused": null});
    assert_eq!(embedding, &expected);
}

#[test]
fn inspect_describes_a_model_that_cannot_be_run() {
    let dir = with_number("embed_tokens.weight", 0);
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    write(dir.path(), "config.json", config.replace("\"n_layer\": 4", "\"n_layer\": 5"));
    let path = dir.path().to_str().unwrap();
    let (out, err) = run(&["inspect", path], 4);
    assert!(out.contains("GPT-2: 5 layers") && out.contains("f16: 52 tensors"), "{out}");
    assert!(err.contains("model.safetensors") && err.contains("h.4.ln_1.weight"), "{err}");
    let (out, _) = run(&["inspect", path, "--json"], 4);
    let report: Value = serde_json::from_str(&out).expect("one object, not two");
    assert!(report["problem"].as_str().unwrap().contains("h.4.ln_1.weight"));
    assert_eq!(report["memory"], Value::Null);
}

#[test]
fn inspect_check_finds_a_weight_that_is_not_a_number() {
    for (bits, name) in [(0x7e00, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf")] {
        let dir = with_number("denoise_model.h.2.mlp.c_fc.weight", bits);
        let path = dir.path().to_str().unwrap();
        run(&["inspect", path], 0);
        let (out, err) = run(&["inspect", path, "--check"], 5);
        assert!(err.contains("denoise_model.h.2.mlp.c_fc.weight, element 10") && err.contains(name), "{err}");
        assert!(!out.contains("every weight is finite"), "{out}");
    }
}

#[test]
fn inspect_refuses_hostile_files_and_requests() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    run(&["inspect", &format!("{path}/gone")], 3);
    run(&["inspect", path], 3);
    write(dir.path(), "config.json", with(gpt2(), "n_head", json!(0)).to_string());
    assert!(run(&["inspect", path], 4).1.contains("n_head"));
    write(dir.path(), "config.json", gpt2().to_string());
    write(dir.path(), "model.safetensors", [255; 8]);
    assert!(run(&["inspect", path], 4).1.contains("model.safetensors: header"));
    for args in [["--batch", "0"], ["--length", "0"], ["--length", "129"]] {
        let (out, err) = run(&[&["inspect"][..], &args].concat(), 2);
        assert!(out.is_empty() && err.contains("at most 128 tokens"), "{err}");
    }
}

#[test]
fn hostile_names_do_not_reach_the_terminal_as_escapes() {
    let dir = with_number("embed_tokens.weight", 0);
    let mut bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let at = bytes.windows(4).position(|w| w == b"wpe.").unwrap();
    // The same number of bytes, so that the header's length stays right: \u001b is an escape character.
    let name = bytes[at..].iter().position(|b| *b == b'"').unwrap();
    assert_eq!(name, 10);
    bytes[at..at + 10].copy_from_slice(b"\\u001b[2Jx");
    write(dir.path(), "model.safetensors", bytes);
    let (out, err) = run(&["inspect", dir.path().to_str().unwrap(), "--tensors"], 4);
    assert!(out.contains("[2Jx") && !out.contains('\u{1b}') && !err.contains('\u{1b}'), "{out}{err}");
}

#[test]
fn tokenize_there_and_back() {
    let (out, err) = run(&["tokenize", "To be"], 0);
    assert_eq!((out.lines().count(), err.as_str()), (2, "2 tokens\n"));
    assert!(out.contains("\"To\"") && out.contains("\" be\""), "{out}");
    let piped = lacuna(&["tokenize", "--json"]).write_stdin("To be\n<mask>\n").output().unwrap();
    let record: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(record["text"], "To be\n<mask>");
    assert_eq!(record["count"], record["ids"].as_array().unwrap().len());
    let pieces: String = record["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(pieces, "To be\n<mask>");
    let ids = record["ids"].to_string();
    assert_eq!(run(&["tokenize", "--decode", &ids], 0).0, "To be\n\n");
}

#[test]
fn tokenize_refuses_what_is_no_token() {
    for ids in ["1024", "-1", "1 two"] {
        let (out, err) = run(&["tokenize", "--decode", ids], 2);
        assert!(out.is_empty() && err.starts_with("error: "), "{out}{err}");
    }
    run(&["tokenize", "--decode", "1", "text"], 2);
}

#[test]
fn models_come_from_the_hub_that_the_environment_names() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    let tokenize = |offline: &str| {
        let mut command = lacuna(&["tokenize", "--model", "org/tiny", "--json", "To be"]);
        command.env("HF_ENDPOINT", &fake.address).env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", offline);
        command.output().unwrap()
    };
    let missing = tokenize("1");
    assert_eq!(missing.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("HF_HUB_OFFLINE"));
    let fetched = tokenize("0");
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert!(fetched.stderr.is_empty(), "no progress bar where there is no terminal");
    assert_eq!(tokenize("1").stdout, fetched.stdout);
}
