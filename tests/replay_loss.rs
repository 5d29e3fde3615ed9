//! `lacuna replay loss` against vectors of an independent PyTorch implementation, through files.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use common::golden::{Golden, count, number};
use common::{GOLDEN, fixture, relative};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn i32s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|i| (*i as i32).to_le_bytes()).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views: HashMap<_, _> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A folder with an input and an output.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.safetensors")
    }

    fn command(&self, model: &Path, tensors: &[Tensor], flags: &[&str]) -> Command {
        let input = self.dir.path().join("in.safetensors");
        write(&input, tensors);
        let mut command = Command::cargo_bin("lacuna").unwrap();
        command.env_remove("LACUNA_MODEL").args(["replay", "loss", "--model"]).arg(model);
        command.arg("--input").arg(input).arg("--output").arg(self.output()).args(flags);
        command
    }

    /// What came out.
    #[track_caller]
    fn run(
        &self,
        model: &Path,
        tensors: &[Tensor],
        flags: &[&str],
    ) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
        self.command(model, tensors, flags).assert().success();
        let bytes = std::fs::read(self.output()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |view: &TensorView<'_>| {
            assert_eq!(view.dtype(), Dtype::F32);
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        file.tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), numbers(&view))))
            .collect()
    }

    #[track_caller]
    fn fails(&self, tensors: &[Tensor], flags: &[&str], code: i32, words: &[&str]) {
        let assert = self.command(&fixture("golden/gpt2-tiny"), tensors, flags).assert().code(code);
        let text = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text}"));
        assert!(!self.output().exists(), "{text}");
    }
}

/// A loss case as an input.
fn inputs(cases: &Golden, case: &Value) -> Vec<Tensor> {
    let at = case["case"].as_str().unwrap();
    let (b, l) = (count(case, "B"), count(case, "L"));
    let ids = |name: &str| i32s(&cases.ids(&format!("{at}/{name}")));
    let mut tensors = vec![
        ("x0", Dtype::I32, vec![b, l], ids("x0")),
        ("x_t", Dtype::I32, vec![b, l], ids("x_t")),
        ("t", Dtype::F32, vec![b], f32s(&cases.f32s(&format!("{at}/t")))),
        ("src_mask", Dtype::U8, vec![b, l], cases.bytes(&format!("{at}/src_mask"))),
    ];
    if cases.has(&format!("{at}/lens")) {
        tensors.push(("lens", Dtype::I32, vec![b], ids("lens")));
    }
    if case["attention"] == "anneal" {
        // Causal, or drawn.
        let mut allow = cases.bytes(&format!("{at}/rand_mask"));
        for (i, bit) in allow.iter_mut().enumerate() {
            *bit |= u8::from(i % l <= i / l);
        }
        tensors.push(("attn_mask", Dtype::U8, vec![l, l], allow));
    }
    tensors
}

/// What a tensor may be called in a model's own file: in full, as on the hub, or within a diffusion model.
fn names(tensor: &str) -> [String; 3] {
    let plain = tensor.trim_start_matches("transformer.").trim_start_matches("model.");
    let inside = match plain {
        "wte.weight" | "embed_tokens.weight" => "embed_tokens.weight".into(),
        "lm_head.weight" => plain.into(),
        _ => format!("denoise_model.{plain}"),
    };
    [tensor.to_owned(), plain.to_owned(), inside]
}

#[test]
fn losses_and_gradients_of_every_golden_case() {
    let desk = Desk::new();
    let (mut losses, mut gradients, mut padded) = (0, 0, 0);
    for (name, folders) in GOLDEN {
        let cases = Golden::open(name);
        let mask = cases.mask_id.to_string();
        for folder in folders {
            let model = fixture("golden").join(name).join(folder);
            for case in cases.of_kind("loss") {
                let at = case["case"].as_str().unwrap();
                let short = at.strip_prefix("loss/").unwrap();
                let mut flags = vec!["--mask-id", &mask, "--grads"];
                flags.extend((case["shift"] == false).then_some("--no-shift"));
                let tensors = inputs(&cases, case);
                padded += usize::from(tensors.iter().any(|t| t.0 == "lens"));
                let out = desk.run(&model, &tensors, &flags);
                for what in ["weighted", "unweighted"] {
                    let (shape, got) = &out[what];
                    let (got, want) = (f64::from(got[0]), number(case, what));
                    assert_eq!(shape, &[1]);
                    assert!((got - want).abs() < 1e-5 * want, "{name} {at}: {what} {got}, expected {want}");
                }
                let (shape, got) = &out["token_loss"];
                let token_loss = format!("{at}/token_loss");
                let want = cases.f32s(&token_loss);
                assert_eq!(shape, &cases.shape(&token_loss), "{name} {at}");
                let most = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(most < 1e-4, "{name} {at}: a token's loss is off by {most:e}");
                assert!(relative(got, &want) < 1e-5, "{name} {at}");
                losses += 1;
                for (tensor, want) in case["grad_norms"].as_object().unwrap() {
                    let found = names(tensor).iter().find_map(|name| out.get(&format!("grad.{name}")));
                    let (_, got) = found.unwrap_or_else(|| panic!("{name} {at}: no gradient of {tensor}"));
                    let length = got.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    let want = want.as_f64().unwrap();
                    assert!(
                        (length - want).abs() < 1e-4 * want,
                        "{name} {at} {tensor}: {length}, not {want}"
                    );
                    let (full, probe) = (format!("grad/{short}/{tensor}"), format!("gradp/{short}/{tensor}"));
                    if cases.has(&full) {
                        assert_eq!(found.unwrap().0, cases.shape(&full), "{name} {at} {tensor}");
                        assert!(relative(got, &cases.f32s(&full)) < 1e-4, "{name} {at} {tensor}");
                        gradients += 1;
                    } else if cases.has(&probe) {
                        let largest = got.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                        let places = cases.ids(&format!("probe/{tensor}"));
                        for (i, want) in places.into_iter().zip(cases.f32s(&probe)) {
                            assert!(
                                (got[i as usize] - want).abs() < 1e-4 * largest,
                                "{name} {at} {tensor}[{i}]"
                            );
                        }
                        gradients += 1;
                    }
                }
            }
        }
    }
    assert!(
        losses >= 40 && gradients >= 400 && padded >= 4,
        "{losses} losses, {gradients} gradients, {padded} padded"
    );
}

#[test]
fn explicit_flags_and_whole_lengths_change_nothing() {
    let desk = Desk::new();
    let cases = Golden::open("gpt2-tiny");
    let model = fixture("golden/gpt2-tiny");
    let case = cases.of_kind("loss").find(|case| case["case"] == "loss/shift_src").unwrap();
    let (b, l) = (count(case, "B"), count(case, "L"));
    let tensors = inputs(&cases, case);
    let plain = desk.run(&model, &tensors, &["--mask-id", "96"]);
    assert!(plain.keys().all(|name| !name.starts_with("grad.")));
    let mut more = tensors.clone();
    let masked = cases.ids("loss/shift_src/x_t").iter().map(|id| u8::from(*id == 96)).collect();
    more.push(("masked", Dtype::U8, vec![b, l], masked));
    more.push(("lens", Dtype::I32, vec![b], i32s(&[l as u32; 3])));
    more.push(("attn_mask", Dtype::U8, vec![l, l], vec![1; l * l]));
    let explicit = desk.run(&model, &more, &["--mask-id", "96", "--threads", "1"]);
    assert!(relative(&explicit["token_loss"].1, &plain["token_loss"].1) < 1e-6);
    // Another mask id: nothing is masked.
    let none = desk.run(&model, &tensors, &["--mask-id", "95"]);
    assert!(none["token_loss"].1.iter().filter(|x| **x != 0.0).count() < 9);
    // Only what is flagged counts, and an empty row says nothing.
    let mut one = tensors;
    let mut masked = vec![0; b * l];
    masked[5] = 1;
    masked[2 * l + 3] = 1;
    one.push(("masked", Dtype::U8, vec![b, l], masked));
    one.push(("lens", Dtype::I32, vec![b], i32s(&[l as u32, l as u32, 0])));
    let out = desk.run(&model, &one, &["--mask-id", "96", "--grads"]);
    let (shape, token_loss) = &out["token_loss"];
    assert_eq!(shape, &[b, l - 1]);
    let counted: Vec<usize> = (0..token_loss.len()).filter(|&i| token_loss[i] != 0.0).collect();
    assert_eq!(counted, [4]);
    assert!((out["unweighted"].1[0] - token_loss[4]).abs() < 1e-6);
    let t = cases.f32s("loss/shift_src/t")[0];
    assert!((out["weighted"].1[0] - token_loss[4] / t).abs() < 1e-4 * token_loss[4] / t);
}

#[test]
fn malformed_inputs_are_named() {
    let desk = Desk::new();
    let mask = ["--mask-id", "96"];
    let cases = Golden::open("gpt2-tiny");
    let case = cases.of_kind("loss").find(|case| case["case"] == "loss/shift_short").unwrap();
    let good = inputs(&cases, case);
    let with = |tensor: Tensor| {
        let mut all: Vec<Tensor> = good.iter().filter(|t| t.0 != tensor.0).cloned().collect();
        all.push(tensor);
        all
    };
    let without = |name: &str| good.iter().filter(|t| t.0 != name).cloned().collect::<Vec<_>>();
    for name in ["x0", "x_t", "t"] {
        desk.fails(&without(name), &mask, 2, &[name, "no tensor of that name"]);
    }
    desk.fails(&good, &[], 2, &["--mask-id"]);
    desk.fails(&with(("x0", Dtype::I32, vec![21], vec![0; 84])), &mask, 2, &["x0", "[B, L]"]);
    desk.fails(&with(("x0", Dtype::F32, vec![3, 7], vec![0; 84])), &mask, 2, &["x0", "i32 or i64"]);
    desk.fails(&with(("x_t", Dtype::I32, vec![3, 6], vec![0; 72])), &mask, 2, &["x_t", "[3, 7]"]);
    desk.fails(&with(("t", Dtype::F32, vec![2], vec![0; 8])), &mask, 2, &["t", "[3]"]);
    desk.fails(&with(("t", Dtype::I32, vec![3], vec![1; 12])), &mask, 2, &["t", "f32"]);
    for bad in [0.0, -0.5, 1.5, f32::NAN] {
        desk.fails(
            &with(("t", Dtype::F32, vec![3], f32s(&[0.5, bad, 0.5]))),
            &mask,
            2,
            &["t", "times above 0"],
        );
    }
    desk.fails(&with(("masked", Dtype::U8, vec![7, 3], vec![0; 21])), &mask, 2, &["masked", "[3, 7]"]);
    desk.fails(&with(("masked", Dtype::I32, vec![3, 7], vec![0; 84])), &mask, 2, &["masked", "u8"]);
    desk.fails(&with(("src_mask", Dtype::U8, vec![3, 6], vec![0; 18])), &mask, 2, &["src_mask", "[3, 7]"]);
    desk.fails(&with(("lens", Dtype::I32, vec![3], i32s(&[7, 8, 7]))), &mask, 2, &["lens", "0 to 7"]);
    desk.fails(
        &with(("attn_mask", Dtype::U8, vec![3, 7, 7], vec![1; 147])),
        &mask,
        2,
        &["attn_mask", "[7, 7]"],
    );
    // Ids that the model has no row for, as input and as target; a sequence beyond its positions.
    desk.fails(&with(("x_t", Dtype::I32, vec![3, 7], i32s(&[97; 21]))), &["--mask-id", "97"], 2, &["97"]);
    desk.fails(&with(("x0", Dtype::I32, vec![3, 7], i32s(&[97; 21]))), &mask, 2, &["97"]);
    let long = |name| (name, Dtype::I32, vec![1, 65], i32s(&[96; 65]));
    let long = [long("x0"), long("x_t"), ("t", Dtype::F32, vec![1], f32s(&[0.5]))];
    desk.fails(&long, &mask, 2, &["64"]);
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.safetensors");
    std::fs::write(&input, "no tensors").unwrap();
    let mut command = Command::cargo_bin("lacuna").unwrap();
    command.args(["replay", "loss", "--mask-id", "96", "--model"]).arg(fixture("golden/gpt2-tiny"));
    command.arg("--input").arg(&input).arg("--output").arg(&input).assert().code(2);
    assert_eq!(std::fs::read(&input).unwrap(), b"no tensors");
}

/// Nothing to attend to, nothing to predict, nothing at all.
#[test]
fn empty_inputs_are_no_accident() {
    let desk = Desk::new();
    let model = fixture("golden/gpt2-tiny");
    let shaped = |b: usize, l: usize| {
        [
            ("x0", Dtype::I32, vec![b, l], i32s(&vec![5; b * l])),
            ("x_t", Dtype::I32, vec![b, l], i32s(&vec![96; b * l])),
            ("t", Dtype::F32, vec![b], f32s(&vec![0.5; b])),
        ]
    };
    for (b, l) in [(1, 1), (0, 3), (2, 0)] {
        let output = desk.command(&model, &shaped(b, l), &["--mask-id", "96", "--grads"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(0 | 2)), "[{b}, {l}]: {:?} {text}", output.status);
    }
    let out = desk.run(&model, &shaped(1, 1), &["--mask-id", "96", "--no-shift"]);
    assert!(out["unweighted"].1[0] > 0.0);
    assert_eq!(out["token_loss"].0, [1, 1]);
}
