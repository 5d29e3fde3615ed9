//! The training commands, end to end: runs that are stopped and go on, what they leave, and what becomes of it.
#![cfg(unix)]

#[path = "support/training.rs"]
mod training;

use std::fs;

use serde_json::Value;
use training::{Lab, tiny, until};

/// Compares what two runs came to: the files of the last checkpoint, and the losses of every step.
#[track_caller]
fn same(lab: &Lab, a: &str, b: &str, steps: u64) {
    let folder = |run: &str| format!("{run}/checkpoints/step-{steps}");
    let names = lab.names(&folder(a));
    assert!(names.len() >= 4, "{a}: {names:?}");
    assert_eq!(names, lab.names(&folder(b)), "{b}");
    for name in names {
        let [one, other] = [a, b].map(|run| fs::read(lab.path(&format!("{}/{name}", folder(run)))).unwrap());
        assert!(one == other, "{name} of {a} and {b} differ");
    }
    let numbers = |run: &str| -> Vec<Vec<Value>> {
        let keys =
            ["step", "loss", "unweighted", "nelbo", "grad_norm", "lr", "examples", "tokens", "skipped"];
        lab.log(run).0.iter().map(|line| keys.iter().map(|key| line[key].clone()).collect()).collect()
    };
    let (one, other) = (numbers(a), numbers(b));
    assert_eq!(
        one.iter().map(|line| line[0].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=steps).collect::<Vec<_>>()
    );
    assert_eq!(one, other, "{a} and {b}");
}

/// A run in one go equals one that was killed behind step 4 of 8, and one that was killed while it saved.
#[track_caller]
fn resumes(args: &str, command: &str) {
    let lab = Lab::new();
    lab.run(&format!("{args} --steps 8 --save-every 8 --threads 1 --output straight"));
    let begun = |names: &[String]| names.iter().any(|name| name == "step-4" || name == "step-6");
    lab.killed(&format!("{args} --steps 8 --save-every 2 --threads 2"), "killed", 8, begun);
    let said = lab.run(&format!("{command} --output killed --resume --threads 1"));
    assert!(said.contains("going on behind step"), "{said}");
    same(&lab, "straight", "killed", 8);
    let saving = |names: &[String]| {
        names.iter().any(|n| n.starts_with(".tmp-step-")) && names.iter().any(|n| n.starts_with("step-"))
    };
    lab.killed(&format!("{args} --steps 8 --save-every 1 --keep-last 1"), "torn", 8, saving);
    lab.run(&format!("{command} --output torn --resume --save-every 8"));
    same(&lab, "straight", "torn", 8);
    assert!(lab.names("torn/checkpoints").iter().all(|name| !name.starts_with('.')));
}

#[test]
fn an_adaptation_that_was_killed_goes_on_bit_for_bit() {
    let lab = Lab::new();
    let args = format!(
        "adapt {} --mask-id 96 --steps 20 --accumulate 2 --lr 3e-3 --schedule cosine --anneal-steps 14 --batch 6 \
         --validation a.tok --validation-sequences 4 --validate-every 5",
        tiny().replace("--batch 3", "")
    );
    lab.run(&format!("{args} --save-every 20 --threads 1 --output straight"));
    lab.killed(&format!("{args} --save-every 5 --threads 2"), "killed", 20, |names| {
        names.iter().any(|name| name == "step-10")
    });
    lab.run("adapt --output killed --resume --threads 1");
    same(&lab, "straight", "killed", 20);
    assert_eq!(lab.log("straight").1, lab.log("killed").1);
    // Killed again and again.
    for (part, at) in [3, 9, 17].into_iter().enumerate() {
        let go = if part == 0 { format!("{args} --save-every 1") } else { "adapt --resume".into() };
        let mut child = lab.spawn(&format!("{go} --output torn --keep-last 1"));
        until(|| lab.names("torn/checkpoints").contains(&format!("step-{at}")), &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.run("adapt --output torn --resume");
    same(&lab, "straight", "torn", 20);
    // Computing layers again, on the way and all along, is the same to the bit.
    let begun = |names: &[String]| names.iter().any(|name| name == "step-5");
    lab.killed(&format!("{args} --save-every 5 --threads 1"), "again", 20, begun);
    lab.run("adapt --output again --resume --recompute");
    same(&lab, "straight", "again", 20);
    lab.run(&format!("{args} --save-every 20 --recompute --output recomputed"));
    same(&lab, "straight", "recomputed", 20);
}

#[test]
fn narrow_formats_go_on_bit_for_bit() {
    let args = format!("adapt {} --mask-id 96 --weights bf16 --moments bf16 --lr 3e-3 --recompute", tiny());
    resumes(&args, "adapt");
}

#[test]
fn training_from_scratch_goes_on_bit_for_bit() {
    resumes(&format!("pretrain {} --add-mask-token --lr 3e-3 --document-attention", tiny()), "pretrain");
}

#[test]
fn left_to_right_training_goes_on_bit_for_bit() {
    resumes(&format!("train-ar {} --from-scratch --lr 3e-3 --schedule linear", tiny()), "train-ar");
}

#[test]
fn fine_tuning_goes_on_bit_for_bit() {
    resumes("sft --data qa.jsonl --batch 2 --length 24 --weights bf16 --moments 8bit", "sft");
}

#[test]
fn fine_tuning_from_scratch_goes_on_bit_for_bit() {
    resumes("sft --from-scratch --data qa.jsonl --batch 2 --length 24 --lr 3e-3 --time-weight linear", "sft");
}

#[test]
fn left_to_right_training_on_answers_goes_on_bit_for_bit() {
    resumes("train-ar --from-scratch --data qa.jsonl --pad none --batch 2 --length 24 --lr 3e-3", "train-ar");
}

#[test]
fn adapters_go_on_bit_for_bit() {
    resumes("sft --data qa.jsonl --batch 2 --length 24 --lora-rank 3 --moments bf16", "sft");
}

#[test]
fn an_interrupt_saves_the_step_at_hand() {
    let lab = Lab::new();
    let args = format!("adapt {} --mask-id 96 --save-every 100000 --steps 60 --threads 1", tiny());
    lab.run(&format!("{args} --output straight"));
    let mut child = lab.spawn(&format!("{args} --output run --json"));
    let lines = || fs::read_to_string(lab.path("run/log.jsonl")).map_or(0, |text| text.lines().count());
    assert!(!until(|| lines() >= 3, &mut child), "it ended by itself");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (steps, _) = lab.log("run");
    let last = steps.last().unwrap()["step"].as_u64().unwrap();
    assert!(last < 60, "it was done before the signal");
    assert_eq!(lab.names("run/checkpoints"), [format!("step-{last}")]);
    lab.run("adapt --output run --resume");
    same(&lab, "straight", "run", 60);
}

/// The mean of a key over some lines.
fn mean(lines: &[Value], key: &str) -> f64 {
    lines.iter().map(|line| line[key].as_f64().unwrap()).sum::<f64>() / lines.len() as f64
}

#[test]
fn an_adapted_model_has_learnt_and_generates() {
    let lab = Lab::new();
    lab.run("adapt --data text.tok --steps 60 --batch 3 --length 24 --lr 1e-3 --output run --save-every 60");
    let (steps, _) = lab.log("run");
    let (first, last) = (mean(&steps[..8], "nelbo"), mean(&steps[52..], "nelbo"));
    assert!(last < 0.7 * first, "from {first} to {last}");
    let model = "run/checkpoints/step-60";
    let assert =
        lab.lacuna(&format!("generate --model {model} --length 40 --steps 20 --seed 1")).assert().success();
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(["cat", "sat", "the", "mat", "log"].iter().any(|word| text.contains(word)), "{text}");
    let assert = lab.lacuna(&format!("inspect {model} --check --json")).assert().success().stderr("");
    let value: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert!(value.is_object());
    assert!(lab.path("run/loss.svg").exists());
    assert_eq!(lab.names("run/tensorboard").len(), 1);
}

/// The numbers of a tensor in f32 or f16.
fn numbers((dtype, _, bytes): &(String, Vec<usize>, Vec<u8>)) -> Vec<f64> {
    match dtype.as_str() {
        "F32" => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        "F16" => bytes.as_chunks::<2>().0.iter().map(|b| f64::from(half::f16::from_le_bytes(*b))).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn merged_adapters_equal_the_base_with_them() {
    let lab = Lab::new();
    let args = "sft --data qa.jsonl --validation qa.jsonl --validation-draws 2 --batch 4 --length 24 --steps 6 --lr 2e-2";
    lab.run(&format!("{args} --warmup 0 --lora-rank 3 --lora-alpha 9 --output run"));
    let adapter = lab.tensors("run/checkpoints/step-6/adapter_model.safetensors");
    lab.run("merge --adapter run/checkpoints/step-6 --output merged --quiet");
    let base_folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/bard-diffusion");
    fs::copy(format!("{base_folder}/model.safetensors"), lab.path("base.safetensors")).unwrap();
    let (base, merged) = (lab.tensors("base.safetensors"), lab.tensors("merged/model.safetensors"));
    assert_eq!(base.len(), merged.len());
    let mut changed = 0;
    for (name, old) in &base {
        let short = name.trim_start_matches("denoise_model.").trim_end_matches(".weight");
        let short = if short == "embed_tokens" { "wte" } else { short };
        let (_, new) = merged
            .iter()
            .find(|(new, _)| new.trim_end_matches(".weight").ends_with(&format!(".{short}")))
            .unwrap();
        assert_eq!(old.1, new.1, "{name}");
        let half = |letter: &str| {
            let ending = format!("{short}.lora_{letter}.weight");
            adapter.iter().find(|(name, _)| name.ends_with(&ending)).map(|(_, tensor)| tensor)
        };
        let (Some(a), Some(b)) = (half("A"), half("B")) else {
            let embedding = short == "wte";
            assert_eq!(numbers(old) != numbers(new), embedding, "{name}");
            continue;
        };
        // Of a Conv1D [in, out]: W + alpha/r (B A)^T.
        let (inputs, outputs) = (old.1[0], old.1[1]);
        assert_eq!((&a.1[..], &b.1[..]), (&[3, inputs][..], &[outputs, 3][..]), "{name}");
        let (old, new, a, b) = (numbers(old), numbers(new), numbers(a), numbers(b));
        assert!(b.iter().any(|x| *x != 0.0), "{name}");
        for i in 0..inputs {
            for o in 0..outputs {
                let low: f64 = (0..3).map(|r| b[o * 3 + r] * a[r * inputs + i]).sum();
                let want = old[i * outputs + o] + 3.0 * low;
                let got = new[i * outputs + o];
                assert!(
                    (got - want).abs() < 1e-3 * want.abs().max(0.1),
                    "{name}[{i}, {o}]: {got}, expected {want}"
                );
            }
        }
        changed += 1;
    }
    assert_eq!(changed, 16);
    // The merged model measures what the adapted one did, and not what the base does.
    lab.run(&format!("{} --steps 1 --model merged --output next", args.replace("--steps 6", "")));
    let nelbo = |line: &Value| line["validation"]["nelbo"].as_f64().unwrap();
    let (run, next) = (lab.log("run").1, lab.log("next").1);
    let (before, adapted, merged) = (nelbo(&run[0]), nelbo(run.last().unwrap()), nelbo(&next[0]));
    assert!((adapted - merged).abs() < 2e-3 * adapted, "{adapted} with adapters, {merged} merged");
    assert!((before - merged).abs() > 0.02 * before, "{before} before, {merged} merged");
}

#[test]
fn what_adapters_train_is_chosen() {
    let lab = Lab::new();
    let args = "sft --data qa.jsonl --batch 2 --length 24 --steps 3 --lora-rank 2";
    lab.run(&format!("{args} --freeze-embedding --lora-targets c_attn --output run"));
    let adapter = lab.tensors("run/checkpoints/step-3/adapter_model.safetensors");
    assert_eq!(adapter.len(), 8);
    assert!(adapter.keys().all(|name| name.contains("c_attn.lora_")), "{:?}", adapter.keys());
    let words = ["--lora-targets c_atn", "c_attn", "c_proj", "c_fc"];
    lab.fails(&format!("{args} --lora-targets c_atn --output other"), 2, &words);
    lab.fails(&format!("{args} --lora-rank 193 --output other").replace("--lora-rank 2 ", ""), 2, &["192"]);
    lab.fails(&format!("{args} --lora-alpha 0 --output other"), 2, &["--lora-alpha 0"]);
    // Of another shape than the model; over what is there; no adapter.
    let folder = "--adapter run/checkpoints/step-3";
    let other = training::golden();
    lab.fails(
        &format!("merge --model {} {folder} --output m", other.display()),
        4,
        &["adapter_model.safetensors"],
    );
    lab.fails(&format!("merge {folder} --output run"), 2, &["run", "exists"]);
    lab.fails("merge --adapter run --output m", 3, &["adapter_config.json"]);
    lab.fails(&format!("merge {folder} --output gone/m"), 3, &["gone"]);
    assert!(lab.names("").iter().all(|name| !name.starts_with(".merge") && name != "m" && name != "other"));
}

#[test]
fn the_last_checkpoints_and_the_best_remain() {
    let lab = Lab::new();
    let args = format!(
        "adapt {} --mask-id 96 --steps 7 --save-every 1 --validate-every 1 --validation b.tok --no-anneal --warmup 0",
        tiny()
    );
    // Steps that are too large: the first is the best.
    lab.run(&format!("{args} --lr 0.5 --schedule constant --keep-last 2 --output up"));
    let (_, measured) = lab.log("up");
    assert_eq!(measured.len(), 8);
    let best: Value =
        serde_json::from_slice(&fs::read(lab.path("up/checkpoints/best.json")).unwrap()).unwrap();
    let nelbo = |line: &&Value| line["validation"]["nelbo"].as_f64().unwrap();
    let least = measured[1..].iter().min_by(|a, b| nelbo(a).total_cmp(&nelbo(b))).unwrap();
    assert_eq!((&best["step"], &best["nelbo"]), (&least["step"], &least["validation"]["nelbo"]));
    let mut kept =
        vec!["best.json".to_owned(), "step-6".into(), "step-7".into(), format!("step-{}", best["step"])];
    kept.sort();
    kept.dedup();
    assert_eq!(lab.names("up/checkpoints"), kept);
    assert!(best["step"].as_u64().unwrap() < 6, "{best}: nothing but the last is kept anyway");
    lab.run(&format!("{args} --lr 1e-2 --keep-last 1 --output down"));
    assert!(lab.names("down/checkpoints").contains(&"step-7".to_owned()));
    assert!(lab.names("down/checkpoints").len() <= 3);
}

#[test]
fn options_come_from_a_file_and_flags_win() {
    let lab = Lab::new();
    fs::write(
        lab.path("o.toml"),
        "batch = 2\nlr = 0.01\nsteps = 3\nlength = 16\nmask-id = 96\ndata = [\"a.tok\"]\n",
    )
    .unwrap();
    let model = training::golden();
    lab.run(&format!("adapt --model {} --config o.toml --lr 0.02 --output run", model.display()));
    let config: toml::Table = fs::read_to_string(lab.path("run/config.toml")).unwrap().parse().unwrap();
    let get = |key: &str| config[key].to_string();
    assert_eq!([get("batch"), get("lr"), get("steps"), get("length")], ["2", "0.02", "3", "16"]);
    assert_eq!(lab.log("run").0.len(), 3);
    // What a run saved is such a file.
    lab.run("adapt --config run/config.toml --output again");
    same(&lab, "run", "again", 3);
    lab.fails("train-ar --config run/config.toml --output x", 2, &["adapt", "train-ar"]);
    fs::write(lab.path("o.toml"), "bacth = 2\n").unwrap();
    lab.fails("adapt --config o.toml --output x", 2, &["bacth"]);
    fs::write(lab.path("o.toml"), "batch = \"two\"\n").unwrap();
    lab.fails("adapt --config o.toml --output x", 2, &["batch", "two"]);
    fs::write(lab.path("o.toml"), "batch = = 2\n").unwrap();
    lab.fails("adapt --config o.toml --output x", 2, &["o.toml"]);
    lab.fails("adapt --config gone.toml --output x", 3, &["gone.toml"]);
    assert!(!lab.path("x").exists());
}
