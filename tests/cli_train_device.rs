//! The training commands on a card, the SIMT machine in its place: what they learn, and how runs end that cannot go on.
#![cfg(all(unix, feature = "simt"))]

#[path = "support/training.rs"]
mod training;

use std::fs;

use serde_json::Value;
use training::{Lab, golden, tiny};

const STEPS: &str = "--mask-id 96 --steps 6 --lr 3e-3 --save-every 2 --validation a.tok --validation-sequences 2 \
                     --validation-draws 1 --validate-every 3";

fn numbers(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().map(|line| line[key].as_f64().unwrap()).collect()
}

fn near(a: &[f64], b: &[f64], bound: f64, what: &str) {
    assert!(!a.is_empty() && a.len() == b.len(), "{what}: {a:?} and {b:?}");
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= bound * y.abs(), "{what}: {a:?} and {b:?}");
    }
}

/// Same seed, same data in the same order, same times and masks: the losses are the CPU's up to roundings.
#[test]
fn every_recipe_follows_the_cpu() {
    let lab = Lab::new();
    let tiny = tiny();
    for (name, args) in [
        ("adapt", format!("adapt {tiny} {STEPS} --anneal-steps 4 --accumulate 2 --recompute")),
        ("pretrain", format!("pretrain {tiny} {STEPS} --document-attention --moments bf16")),
        ("ar", format!("train-ar {tiny} {} --moments 8bit", STEPS.replace("--mask-id 96 ", ""))),
        ("sft", "sft --data qa.jsonl --steps 4 --batch 2 --length 24 --lora-rank 2".to_owned()),
    ] {
        for device in ["cpu", "simt"] {
            lab.run(&format!("{args} --device {device} --output {name}-{device}"));
        }
        let [cpu, simt] = ["cpu", "simt"].map(|device| lab.log(&format!("{name}-{device}")));
        for key in ["loss", "nelbo", "unweighted", "examples", "tokens", "lr"] {
            near(&numbers(&simt.0, key), &numbers(&cpu.0, key), 1e-4, &format!("{name}: {key}"));
        }
        let held_out = |lines: &[Value]| -> Vec<f64> {
            lines.iter().map(|line| line["validation"]["nelbo"].as_f64().unwrap()).collect()
        };
        if name != "sft" {
            near(&held_out(&simt.1), &held_out(&cpu.1), 1e-4, name);
        }
    }
}

/// In 16 bits too; a checkpoint of one machine is gone on from on another.
#[test]
fn checkpoints_move_between_machines_and_formats() {
    let lab = Lab::new();
    let args = format!("pretrain {} --mask-id 96 --steps 4 --lr 3e-3 --save-every 2", tiny());
    lab.run(&format!("{args} --device simt --dtype bf16 --output narrow"));
    lab.run(&format!("{args} --device cpu --output exact"));
    near(&numbers(&lab.log("narrow").0, "loss"), &numbers(&lab.log("exact").0, "loss"), 3e-2, "bf16 and f32");
    // Behind step 2 of the narrow run, on the CPU.
    fs::remove_dir_all(lab.path("narrow/checkpoints/step-4")).unwrap();
    let said = lab.run("pretrain --output narrow --resume --device cpu");
    assert!(said.contains("going on behind step 2"), "{said}");
    // Nothing is rounded on the way: the CPU goes on with the masters, and the folder is a model.
    lab.run("inspect --model narrow/checkpoints/step-4");
    near(
        &numbers(&lab.log("narrow").0, "loss"),
        &numbers(&lab.log("exact").0, "loss"),
        3e-2,
        "bf16, then f32, and f32",
    );
}

/// Killed or not, in f32 or in 16 bits with masters: the same bits.
#[test]
fn a_run_that_was_broken_off_goes_on_bit_for_bit() {
    let lab = Lab::new();
    let args = format!("adapt {} --mask-id 96 --steps 6 --lr 3e-3 --anneal-steps 4", tiny());
    for dtype in ["f32", "bf16"] {
        let on = format!("--device simt --dtype {dtype} --moments 8bit");
        lab.run(&format!("{args} --save-every 6 {on} --output straight-{dtype}"));
        lab.run(&format!("{args} --save-every 3 {on} --output broken-{dtype}"));
        fs::remove_dir_all(lab.path(&format!("broken-{dtype}/checkpoints/step-6"))).unwrap();
        lab.run(&format!("adapt --output broken-{dtype} --resume --device simt --dtype {dtype}"));
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let [a, b] = ["straight", "broken"]
                .map(|run| fs::read(lab.path(&format!("{run}-{dtype}/checkpoints/step-6/{file}"))).unwrap());
            assert!(a == b, "{dtype}: {file} differs");
        }
    }
}

/// What is asked for does not fit: the plan, and what would.
#[test]
fn a_card_that_is_too_small_says_what_would_fit() {
    let lab = Lab::new();
    let args = format!("pretrain {} --mask-id 96 --steps 2 --device simt --output small", tiny());
    let args = args.replace("--batch 3 ", "");
    let with = |memory: u64, more: &str| {
        let mut command = lab.lacuna(&format!("{args} {more}"));
        let output = command.env("LACUNA_SIMT_MEMORY", memory.to_string()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // The weights fit, and some of the rest.
    let (code, said) = with(8_000_000, "--batch 64");
    assert_eq!(code, Some(7), "{said}");
    for part in [
        "training on 64 x 48 tokens",
        "gradients",
        "moments",
        "activations",
        "logits",
        "free beside the weights",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!lab.path("small").exists(), "a run that cannot begin leaves nothing");
    let batch: u64 = said
        .split("--batch ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap()
        .trim_end_matches(',')
        .parse()
        .unwrap();
    assert!((1..64).contains(&batch), "{said}");
    let (code, said) = with(8_000_000, &format!("--batch {batch}"));
    assert_eq!(code, Some(0), "--batch {batch}: {said}");
}

/// A card that is lost ends the run with its own error; the last checkpoint is whole and is gone on from.
#[test]
fn a_card_that_is_lost_leaves_the_last_checkpoint() {
    let lab = Lab::new();
    let args = format!("pretrain {} --mask-id 96 --steps 8 --lr 3e-3 --device simt", tiny());
    lab.run(&format!("{args} --save-every 8 --output straight"));
    let mut seen = 0;
    for kernels in [3_u64, 300, 500, 700, 900] {
        let run = format!("lost-{kernels}");
        let mut command = lab.lacuna(&format!("{args} --save-every 1 --output {run}"));
        let output = command.env("LACUNA_SIMT_LOSE_AFTER", kernels.to_string()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{kernels}: {said}");
        assert!(said.contains("CUDA_ERROR_LAUNCH_FAILED"), "{kernels}: {said}");
        let names = lab.names(&format!("{run}/checkpoints"));
        assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
        if names.iter().any(|name| name.starts_with("step-")) {
            lab.run(&format!("pretrain --output {run} --resume --device simt --save-every 8"));
            let [a, b] = ["straight", run.as_str()].map(|run| {
                fs::read(lab.path(&format!("{run}/checkpoints/step-8/model.safetensors"))).unwrap()
            });
            assert!(a == b, "{kernels}: the weights differ");
            seen += 1;
        }
    }
    assert!(seen >= 2, "only {seen} runs had a checkpoint");
}

/// Weights with which a step overflows: skipped steps, and an end that names the gradient.
#[test]
fn a_run_that_overflows_names_the_gradient() {
    let lab = Lab::new();
    let folder = lab.path("huge");
    fs::create_dir(&folder).unwrap();
    fs::copy(golden().join("config.json"), folder.join("config.json")).unwrap();
    let bytes = fs::read(golden().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let huge = name.ends_with("h.1.ln_2.weight");
            let data = if huge {
                3e38_f32.to_le_bytes().repeat(view.data().len() / 4)
            } else {
                view.data().to_vec()
            };
            (name, view.shape().to_vec(), data)
        })
        .collect();
    assert!(tensors.iter().any(|(name, ..)| name.ends_with("h.1.ln_2.weight")));
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let args = "adapt --model huge --data a.tok --length 48 --batch 2 --mask-id 96 --steps 9 --max-skipped 3 --output run";
    for dtype in ["f32", "bf16"] {
        let _ = fs::remove_dir_all(lab.path("run"));
        lab.fails(
            &format!("{args} --device simt --dtype {dtype}"),
            5,
            &["3 steps in a row were skipped", "the gradient of", "is not"],
        );
    }
}
