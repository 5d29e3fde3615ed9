//! What the training commands refuse, and how runs end that cannot go on.
#![cfg(unix)]

#[path = "support/training.rs"]
mod training;

use std::fs;
use std::path::Path;

use lacuna::io::ModelFiles;
use serde_json::Value;
use training::{Lab, golden, tiny};

/// The golden GPT-2 with tensors changed.
fn changed(lab: &Lab, name: &str, change: impl Fn(&str, &mut [f32])) {
    let folder = lab.path(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(golden().join("config.json"), folder.join("config.json")).unwrap();
    fs::copy(golden().join("model.safetensors"), folder.join("old")).unwrap();
    let mut tensors = lab.tensors(&format!("{name}/old"));
    for (tensor, (dtype, _, bytes)) in &mut tensors {
        assert_eq!(dtype, "F32");
        let mut numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        change(tensor, &mut numbers);
        *bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    }
    let views = tensors.iter().map(|(name, (_, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::remove_file(folder.join("old")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

#[test]
fn wrong_requests_are_named_and_leave_nothing() {
    let lab = Lab::new();
    fs::write(lab.path("empty.tok"), "").unwrap();
    lab.tokens("short.tok", 97, &[7; 32], [vec![3; 20]]);
    lab.tokens("large.tok", 200, &[7; 32], [vec![150; 200]]);
    lab.tokens("hash.tok", 97, &[8; 32], [vec![3; 200]]);
    lab.tokens("foreign.tok", 1024, &[8; 32], [vec![3; 200]]);
    for (name, text) in [
        ("bad.jsonl", "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n"),
        ("bad.ndjson", "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n"),
        ("blank.jsonl", "{\"prompt\": \"a\", \"answer\": \"\"}\n"),
        ("number.jsonl", "{\"prompt\": \"a\", \"answer\": 4}\n"),
        ("long.jsonl", &format!("{{\"prompt\": \"{}\", \"answer\": \"b\"}}\n", "word ".repeat(200))),
        ("empty.jsonl", ""),
    ] {
        fs::write(lab.path(name), text).unwrap();
    }
    fs::create_dir(lab.path("full")).unwrap();
    fs::write(lab.path("full/file"), "").unwrap();
    let model = format!("--model {} --mask-id 96 --length 48", golden().display());
    let good = format!("adapt {} --mask-id 96 --steps 2 --output x", tiny());
    let bundled = "adapt --data text.tok --length 24 --output x --steps 2";
    let sft = "sft --length 24 --steps 2 --output x --data";
    let ar = "train-ar --length 24 --steps 2 --output x --data";
    let before = lab.names("");
    let cases: Vec<(String, i32, &[&str])> = vec![
        (format!("{sft} bad.jsonl --from-scratch --lora-rank 2"), 2, &["--from-scratch", "--lora-rank"]),
        (
            "train-ar --data bad.jsonl --data text.tok --length 24 --steps 2 --output x".into(),
            2,
            &["got both", "bad.jsonl", "text.tok"],
        ),
        (
            "train-ar --data bad.jsonl --length 24 --steps 2 --output x".into(),
            2,
            &["bad.jsonl line 2", "answer"],
        ),
        (format!("{ar} bad.ndjson"), 2, &["bad.ndjson line 2", "answer"]),
        (format!("{ar} gone.ndjson.gz --data text.tok"), 2, &["got both", "gone.ndjson.gz", "text.tok"]),
        (format!("{ar} gone.NDJSON.zst --data text.tok"), 2, &["got both", "gone.NDJSON.zst", "text.tok"]),
        (format!("{ar} text.tok --prompt-field q"), 2, &["--prompt-field q", ".jsonl", "token files"]),
        (format!("{ar} text.tok --answer-field a"), 2, &["--answer-field a", ".jsonl"]),
        (format!("{ar} text.tok --pad none"), 2, &["--pad none", ".jsonl"]),
        (format!("{ar} text.tok --pad left"), 2, &["--pad left", ".jsonl"]),
        (format!("{ar} text.tok --too-long skip"), 2, &["--too-long skip", ".jsonl"]),
        (format!("adapt {model} --data a.tok --from-scratch --steps 2 --output x"), 2, &["--from-scratch"]),
        (format!("adapt {model} --steps 2 --output x"), 2, &["--data FILE is needed", "lacuna pack"]),
        (format!("adapt {model} --data a.tok --output x"), 2, &["--steps N is needed"]),
        (format!("adapt {model} --data a.tok --steps 0 --output x"), 2, &["--steps 0"]),
        (format!("adapt {model} --data a.tok --steps 2"), 2, &["--output"]),
        (format!("adapt {model} --data gone.tok --steps 2 --output x"), 3, &["gone.tok"]),
        (format!("adapt {model} --data empty.tok --steps 2 --output x"), 2, &["empty.tok"]),
        (
            format!("adapt {model} --data short.tok --steps 2 --output x"),
            2,
            &["short.tok", "21 tokens", "--length"],
        ),
        (format!("adapt {model} --data large.tok --steps 2 --output x"), 2, &["large.tok", "150", "97"]),
        (format!("{good} --data hash.tok"), 2, &["hash.tok", "a.tok"]),
        (format!("{good} --validation short.tok"), 2, &["short.tok"]),
        (format!("{good} --data a.tok=0"), 2, &["a.tok=0", "above 0"]),
        (format!("{good} --data a.tok=nan"), 2, &["a.tok=nan"]),
        (
            "adapt --data foreign.tok --length 24 --steps 2 --output x".into(),
            2,
            &["foreign.tok", "tokenizer"],
        ),
        (format!("{bundled} --lr 0"), 2, &["rate", "0"]),
        (format!("{bundled} --lr nan"), 2, &["rate", "NaN"]),
        (format!("{bundled} --lr -1"), 2, &["rate", "-1"]),
        (format!("{bundled} --lr inf"), 2, &["rate", "inf"]),
        (format!("{bundled} --final-lr 2"), 2, &["--final-lr 2"]),
        (format!("{bundled} --warmup 3"), 2, &["warm-up", "2 steps"]),
        (format!("{bundled} --schedule sine"), 2, &["--schedule sine", "cosine"]),
        (format!("{bundled} --weight-decay -1"), 2, &["--weight-decay -1"]),
        (format!("{bundled} --beta1 1"), 2, &["--beta1 1"]),
        (format!("{bundled} --beta2 -0.5"), 2, &["--beta2 -0.5"]),
        (format!("{bundled} --eps 0"), 2, &["--eps 0"]),
        (format!("{bundled} --clip nan"), 2, &["--clip NaN"]),
        (format!("{bundled} --moments f16"), 2, &["--moments f16", "bf16"]),
        (format!("{bundled} --weights f8"), 2, &["--weights f8", "bf16"]),
        (format!("{bundled} --focal-alpha 0"), 2, &["--focal-alpha 0"]),
        (format!("{bundled} --time-weight x"), 2, &["--time-weight x", "elbo"]),
        (format!("{bundled} --batch 0"), 2, &["--batch 0"]),
        (format!("{bundled} --accumulate 0"), 2, &["--accumulate 0"]),
        (format!("{bundled} --save-every 0"), 2, &["--save-every 0"]),
        (format!("{bundled} --keep-last 0"), 2, &["--keep-last 0"]),
        (format!("{bundled} --mask-id 1024"), 2, &["--mask-id 1024", "1023"]),
        (format!("{bundled} --batch 9999999999"), 2, &["--batch 9999999999"]),
        (format!("{bundled} --seed 18446744073709551615"), 2, &["--seed", "9223372036854775808"]),
        (format!("{bundled} --device cuda:99"), 8, &["cuda:99", "--device cpu"]),
        (format!("{bundled} --dtype bf16"), 2, &["--dtype bf16", "CPU"]),
        ("adapt --data text.tok --length 0 --steps 2 --output x".into(), 2, &["--length 0"]),
        ("adapt --data text.tok --length 129 --steps 2 --output x".into(), 2, &["--length 129", "128"]),
        (
            format!("adapt {} --steps 2 --output x", tiny()),
            2,
            &["mask token", "--mask-id N", "--add-mask-token"],
        ),
        (bundled.replace("--output x", "--output full"), 2, &["full", "not empty", "--resume"]),
        (bundled.replace("--output x", "--output full/file"), 3, &["full/file"]),
        ("adapt --data text.tok --length 1 --steps 2 --output x".into(), 2, &["--length 1", "2 or more"]),
        (format!("{sft} qa.jsonl --lora-targets c_attn"), 2, &["--lora-targets", "--lora-rank N"]),
        (format!("{sft} qa.jsonl --lora-rank 2 --add-mask-token"), 2, &["--add-mask-token", "--mask-id"]),
        ("adapt --output gone --resume".into(), 2, &["gone", "no run to resume"]),
        ("adapt --output full --resume".into(), 2, &["full", "no run to resume"]),
        (format!("{sft} bad.jsonl"), 2, &["bad.jsonl line 2", "answer"]),
        (format!("{sft} blank.jsonl"), 2, &["blank.jsonl line 1", "answer"]),
        (format!("{sft} number.jsonl"), 2, &["number.jsonl line 1", "a string"]),
        (format!("{sft} long.jsonl"), 2, &["long.jsonl line 1", "at most 24"]),
        (format!("{sft} long.jsonl --too-long skip"), 2, &["no prompts with answers", "1 were longer"]),
        (format!("{sft} empty.jsonl"), 2, &["empty.jsonl"]),
        (format!("{sft} qa.jsonl=2"), 2, &["qa.jsonl", "no weights"]),
        (format!("{sft} qa.jsonl --answer-field reply"), 2, &["qa.jsonl line 1", "reply"]),
        (format!("{sft} qa.jsonl --pad left"), 2, &["--pad left"]),
        (format!("{sft} text.tok"), 2, &["text.tok"]),
        (format!("sft {model} --data qa.jsonl --steps 2 --output x"), 4, &["tokenizer.json"]),
    ];
    for (args, code, words) in &cases {
        lab.fails(args, *code, words);
    }
    assert_eq!(lab.names(""), before);
    // Errors are objects where a program asks.
    let output = lab.lacuna(&format!("{bundled} --lr 0 --json")).output().unwrap();
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &value["code"]), (Some(2), &2.into()));
}

#[test]
fn a_mask_token_is_given_or_added() {
    let lab = Lab::new();
    lab.run(&format!("adapt {} --steps 2 --mask-id 96 --output given", tiny()));
    let files = ModelFiles::open(&lab.path("given/checkpoints/step-2")).unwrap();
    assert_eq!((files.config.vocab_size, files.special.mask.unwrap().id), (97, 96));
    for (run, flags) in [("adapt", ""), ("pretrain", ""), ("adapt", "--weights bf16")] {
        let output = format!("{run}{}", flags.len());
        lab.run(&format!("{run} {} --steps 2 --add-mask-token {flags} --output {output}", tiny()));
        let model = format!("{output}/checkpoints/step-2");
        let files = ModelFiles::open(&lab.path(&model)).unwrap();
        assert_eq!((files.config.vocab_size, files.special.mask.unwrap().id), (98, 97), "{run}");
        lab.run(&format!("inspect {model} --check"));
        // It has a mask token now, and its shape starts a run from scratch.
        lab.run(&format!(
            "adapt --model {model} --data a.tok --length 48 --batch 2 --steps 1 --output {output}-next"
        ));
        let tensors = |step: &str| lab.tensors(&format!("{step}/model.safetensors"));
        lab.run(&format!("pretrain --model {model} --data a.tok --length 48 --batch 2 --steps 1 --lr 1e-9 --output {output}-new"));
        let (old, new) = (tensors(&model), tensors(&format!("{output}-new/checkpoints/step-1")));
        assert!(old.iter().any(|(name, tensor)| name.contains("wte") && tensor.2 != new[name].2));
        let largest = |name: &str| {
            new[name].2.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).abs()).fold(0.0, f32::max)
        };
        let wte = new.keys().find(|name| name.contains("wte")).unwrap();
        assert!(largest(wte) < 0.2, "{run}: {} is no new weight", largest(wte));
    }
}

#[test]
fn a_resumed_run_has_its_own_options() {
    let lab = Lab::new();
    lab.run(&format!("adapt {} --mask-id 96 --steps 2 --lr 0.001 --output run", tiny()));
    let differ = |args: &str, words: &[&str]| lab.fails(&format!("{args} --output run --resume"), 2, words);
    differ("adapt --lr 0.002", &["lr: the run has 0.001, now 0.002"]);
    differ("adapt --lr 0.002 --seed 4", &["lr: the run has 0.001, now 0.002", "seed: the run has 0, now 4"]);
    differ("adapt --steps 4", &["steps: the run has 2, now 4"]);
    differ("adapt --data b.tok", &["data: the run has"]);
    differ("adapt --document-attention", &["document-attention: the run has false, now true"]);
    differ("adapt --no-shift", &["no-shift: the run has not set, now true"]);
    differ("pretrain", &["command: the run has \"adapt\", now \"pretrain\""]);
    differ("sft", &["command"]);
    // The same again, and what changes nothing, is fine; nothing is left to do.
    let said = lab.run(&format!(
        "adapt {} --lr 1e-3 --save-every 7 --keep-last 9 --recompute --output run --resume",
        tiny()
    ));
    assert!(said.contains("2 of 2 steps done"), "{said}");
    // A process that is training has the folder for itself.
    let mut child =
        lab.spawn(&format!("adapt {} --mask-id 96 --steps 100000 --save-every 2 --output busy", tiny()));
    training::until(|| lab.names("busy/checkpoints").contains(&"step-2".into()), &mut child);
    lab.fails("adapt --output busy --resume", 2, &["another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn damaged_checkpoints_are_refused() {
    let lab = Lab::new();
    lab.run(&format!("adapt {} --mask-id 96 --steps 2 --save-every 2 --output run", tiny()));
    let step = |run: &str| lab.path(&format!("{run}/checkpoints/step-2"));
    let cut = |file: &'static str| {
        move |folder: &Path| {
            let bytes = fs::read(folder.join(file)).unwrap();
            fs::write(folder.join(file), &bytes[..bytes.len() / 2]).unwrap();
        }
    };
    let edit = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let text = fs::read_to_string(folder.join("trainer.json")).unwrap();
            assert!(text.contains(from), "{from} is not in {text}");
            fs::write(folder.join("trainer.json"), text.replacen(from, to, 1)).unwrap();
        }
    };
    let gone = |file: &'static str| move |folder: &Path| fs::remove_file(folder.join(file)).unwrap();
    type Damage = Box<dyn Fn(&Path)>;
    let cases: Vec<(Damage, i32, &[&str])> = vec![
        (Box::new(cut("optimizer.safetensors")), 4, &["optimizer.safetensors"]),
        (Box::new(cut("model.safetensors")), 4, &["model.safetensors"]),
        (Box::new(cut("trainer.json")), 4, &["trainer.json"]),
        (Box::new(cut("config.json")), 4, &["config.json"]),
        (Box::new(gone("optimizer.safetensors")), 3, &["optimizer.safetensors"]),
        (Box::new(gone("trainer.json")), 3, &["trainer.json"]),
        (Box::new(edit("\"step\": 2", "\"step\": \"two\"")), 4, &["trainer.json", "step", "two"]),
        (Box::new(edit("\"step\": 2", "\"step\": 3")), 4, &["trainer.json", "updates"]),
        (Box::new(edit("\"seed\": 0", "\"seed\": 1")), 4, &["trainer.json", "seed"]),
        (Box::new(edit("\"format\": 1", "\"format\": 9")), 4, &["trainer.json", "format"]),
        (Box::new(edit("\"examples\": 6", "\"examples\": -6")), 4, &["trainer.json", "cursor"]),
        (Box::new(|folder| fs::write(folder.join("../best.json"), "{}").unwrap()), 4, &["best.json"]),
        (Box::new(|folder| fs::remove_dir_all(folder).unwrap()), 2, &["no checkpoint"]),
        (
            Box::new(|folder| fs::write(folder.join("../../config.toml"), "x = 1").unwrap()),
            2,
            &["config.toml"],
        ),
        (Box::new(|folder| fs::remove_file(folder.join("../../config.toml")).unwrap()), 3, &["config.toml"]),
    ];
    for (i, (damage, code, words)) in cases.iter().enumerate() {
        let run = format!("run-{i}");
        copy(&lab.path("run"), &lab.path(&run));
        damage(&step(&run));
        lab.fails(&format!("adapt --output {run} --resume"), *code, words);
    }
    // A cursor of other data.
    copy(&lab.path("run"), &lab.path("moved"));
    let config = fs::read_to_string(lab.path("moved/config.toml")).unwrap();
    fs::write(
        lab.path("moved/config.toml"),
        config.replace("steps = 2", "steps = 4").replace(", \"b.tok=1\"", ""),
    )
    .unwrap();
    lab.fails("adapt --output moved --resume", 2, &["position in the training data"]);
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let lab = Lab::new();
    let args = format!("adapt {} --mask-id 96 --steps 6", tiny());
    lab.run(&format!("{args} --save-every 6 --output straight"));
    lab.killed(&format!("{args} --save-every 2"), "run", 6, |names| names.contains(&"step-2".into()));
    let before: Vec<_> =
        lab.names("run/checkpoints").into_iter().filter(|name| !name.starts_with('.')).collect();
    let weights =
        fs::read(lab.path(&format!("run/checkpoints/{}/model.safetensors", before.last().unwrap()))).unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" adapt --output run --resume"])
        .arg(assert_cmd::cargo::cargo_bin("lacuna"))
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("error: cannot write") && text.contains(".safetensors"), "{text}");
    assert_eq!(lab.names("run/checkpoints"), before);
    let kept = format!("run/checkpoints/{}/model.safetensors", before.last().unwrap());
    assert!(fs::read(lab.path(&kept)).unwrap() == weights);
    lab.run("adapt --output run --resume");
    for file in ["model.safetensors", "optimizer.safetensors", "trainer.json"] {
        let [a, b] = ["straight", "run"]
            .map(|run| fs::read(lab.path(&format!("{run}/checkpoints/step-6/{file}"))).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
fn numbers_that_are_not_finite_end_a_run() {
    let lab = Lab::new();
    let flags = "--mask-id 96 --data a.tok --length 48 --batch 2 --steps 30 --warmup 0";
    changed(&lab, "nan", |name, x| {
        if name.contains("h.1.mlp.c_fc.weight") {
            x[5] = f32::NAN;
        }
    });
    let line =
        lab.fails(&format!("adapt --model nan {flags} --output a"), 5, &["h.1.mlp.c_fc.weight", "NaN"]);
    assert!(!lab.path("a/checkpoints/step-3").exists(), "{line}");
    // Finite, but products overflow.
    changed(&lab, "huge", |name, x| {
        if name.contains("mlp.c_proj.weight") || name.contains("mlp.c_fc.weight") {
            x.iter_mut().for_each(|x| *x *= 1e30);
        }
    });
    let words = ["3 steps in a row were skipped", "weights are finite", "gradient"];
    lab.fails(&format!("adapt --model huge {flags} --max-skipped 3 --output b"), 5, &words);
    let (steps, _) = lab.log("b");
    assert_eq!(steps.iter().map(|line| line["skipped"].as_bool().unwrap()).collect::<Vec<_>>(), [true; 3]);
    assert!(lab.names("b/checkpoints").is_empty());
    // A rate that ruins the weights: what was saved before stands.
    let model = golden();
    let words = ["4 steps in a row were skipped", "--lr", "checkpoint is intact"];
    let args = format!("adapt --model {} {flags} --lr 1e30 --max-skipped 4 --output c", model.display());
    lab.fails(&args, 5, &words);
    let (steps, _) = lab.log("c");
    let skipped = steps.iter().filter(|line| line["skipped"] == true).count();
    assert_eq!(skipped, 4);
    assert!(steps.len() < 30 && steps[0]["skipped"] == false);
}
