//! `lacuna replay`: the public interface for comparing with another implementation.

mod common;

use std::collections::HashMap;
use std::path::Path;

use assert_cmd::Command;
use common::golden::{Golden, count};
use common::{GOLDEN, fixture, relative};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

fn lacuna() -> Command {
    Command::cargo_bin("lacuna").unwrap()
}

type Tensor<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor<'_>]) {
    let views: HashMap<_, _> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn i32s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|i| (*i as i32).to_le_bytes()).collect()
}

fn i64s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|i| i64::from(*i).to_le_bytes()).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_f32(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32);
    let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), data)
}

fn read_ids(path: &Path, name: &str) -> (Vec<usize>, Vec<u32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::I32);
    let data =
        view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    (view.shape().to_vec(), data)
}

#[test]
fn forward_takes_both_integer_types_masks_and_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let cases = Golden::open("llama-tiny");
    let model = fixture("golden/llama-tiny/diffu");
    let x = cases.ids("logits/L33/x");
    let run = |extra: &[&str]| {
        lacuna()
            .args(["replay", "forward", "--model"])
            .arg(&model)
            .arg("--input")
            .arg(&input)
            .arg("--output")
            .arg(&output)
            .args(extra)
            .assert()
            .success();
        read_f32(&output, "logits")
    };
    write(&input, &[("x", Dtype::I64, vec![3, 33], i64s(&x))]);
    let (shape, logits) = run(&[]);
    assert_eq!(shape, [3, 33, 259]);
    assert!(relative(&logits, &cases.f32s("logits/L33/bidir")) < 1e-4);
    write(&input, &[("x", Dtype::I32, vec![3, 33], i32s(&x))]);
    assert!(relative(&run(&["--attention", "causal"]).1, &cases.f32s("logits/L33/causal")) < 1e-4);

    // causal OR R, as an explicit mask, shared and one a row.
    let mut allow = cases.bytes("logits/L33/rand_mask");
    for (i, bit) in allow.iter_mut().enumerate() {
        *bit |= u8::from(i % 33 <= i / 33);
    }
    let x = ("x", Dtype::I32, vec![3, 33], i32s(&x));
    write(&input, &[x.clone(), ("attn_mask", Dtype::U8, vec![33, 33], allow.clone())]);
    assert!(relative(&run(&["--attention", "causal"]).1, &cases.f32s("logits/L33/anneal")) < 1e-4);
    write(&input, &[x, ("attn_mask", Dtype::U8, vec![3, 33, 33], allow.repeat(3))]);
    assert!(relative(&run(&[]).1, &cases.f32s("logits/L33/anneal")) < 1e-4);

    let lens = cases.ids("logits/pad33/lens");
    write(
        &input,
        &[
            ("x", Dtype::I32, vec![3, 33], i32s(&cases.ids("logits/pad33/x"))),
            ("lens", Dtype::I64, vec![3], i64s(&lens)),
        ],
    );
    let (_, logits) = run(&["--threads", "1"]);
    let want = cases.f32s("logits/pad33/bidir");
    for (row, &len) in lens.iter().enumerate() {
        let (at, end) = (row * 33 * 259, (row * 33 + len as usize) * 259);
        assert!(relative(&logits[at..end], &want[at..end]) < 1e-4);
        assert!(logits[end..(row + 1) * 33 * 259].iter().all(|v| *v == 0.0));
    }
}

#[test]
fn sample_replays_every_golden_case_plain_and_planned() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    for (name, _) in GOLDEN {
        let cases = Golden::open(name);
        for case in cases.of_kind("sample").chain(cases.of_kind("sample_confident")) {
            let at = case["case"].as_str().unwrap();
            let (b, l, t) = (count(case, "B"), count(case, "L"), count(case, "T"));
            let mut tensors = vec![
                ("x", Dtype::I32, vec![b, l], i32s(&cases.ids(&format!("{at}/x")))),
                ("src_mask", Dtype::U8, vec![b, l], cases.bytes(&format!("{at}/src_mask"))),
            ];
            for (key, slices) in [("u_cat", t), ("u_unmask", t - 1)] {
                let tensor = format!("{at}/{key}");
                if cases.has(&tensor) {
                    tensors.push((key, Dtype::F32, vec![slices, b, l], f32s(&cases.f32s(&tensor))));
                }
            }
            write(&input, &tensors);
            let mut command = lacuna();
            command.args(["replay", "sample", "--model"]).arg(fixture("golden").join(name));
            command.arg("--input").arg(&input).arg("--output").arg(&output);
            command.args(["--steps", &t.to_string(), "--mask-id", &cases.mask_id.to_string()]);
            command.args(["--temperature", &case["temperature"].to_string()]);
            if let Some(p) = case["top_p"].as_f64() {
                command.args(["--top-p", &p.to_string()]);
            }
            let flags = [
                ("--greedy", case["greedy"] == true),
                ("--no-shift", case["shift"] == false),
                ("--confidence", case["kind"] == "sample_confident"),
            ];
            command.args(flags.iter().filter(|f| f.1).map(|f| f.0));
            command.assert().success();
            for key in ["xt", "x0", "final"] {
                let (_, got) = read_ids(&output, key);
                assert_eq!(got, cases.ids(&format!("{at}/{key}")), "{name} {at} {key}");
            }
            if case["kind"] == "sample" {
                command.arg("--plan").assert().success();
                let (shape, got) = read_ids(&output, "final");
                assert_eq!(got, cases.ids(&format!("{at}/final")), "{name} {at} plan");
                assert_eq!(shape, [b, l - usize::from(case["shift"] == true)]);
            }
        }
    }
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let fails = |what: &str, extra: &[&str], code: i32, message: &str| {
        let assert = lacuna()
            .args(["replay", what, "--model"])
            .arg(fixture("golden/gpt2-tiny"))
            .arg("--input")
            .arg(&input)
            .arg("--output")
            .arg(&output)
            .args(extra)
            .assert()
            .code(code);
        let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains(message), "expected `{message}` in: {stderr}");
        assert!(!output.exists());
    };
    fails("forward", &[], 3, "in.safetensors");
    std::fs::write(&input, b"no safetensors").unwrap();
    fails("forward", &[], 2, "a safetensors file");
    write(&input, &[("y", Dtype::I32, vec![1, 2], i32s(&[1, 2]))]);
    fails("forward", &[], 2, "x");
    write(&input, &[("x", Dtype::F32, vec![1, 2], f32s(&[1.0, 2.0]))]);
    fails("forward", &[], 2, "i32 or i64");
    write(&input, &[("x", Dtype::I32, vec![1, 2], i32s(&[1, 97]))]);
    fails("forward", &[], 2, "token id 97");
    write(&input, &[("x", Dtype::I32, vec![1, 2], i32s(&[1, u32::MAX]))]);
    fails("forward", &[], 2, "token ids");
    write(&input, &[("x", Dtype::I32, vec![1, 65], i32s(&[1; 65]))]);
    fails("forward", &[], 2, "64 positions");
    let x = ("x", Dtype::I32, vec![1, 2], i32s(&[1, 2]));
    write(&input, &[x.clone(), ("lens", Dtype::I32, vec![1], i32s(&[3]))]);
    fails("forward", &[], 2, "lengths from 0 to 2");
    write(&input, &[x.clone(), ("attn_mask", Dtype::U8, vec![3, 3], vec![1; 9])]);
    fails("forward", &[], 2, "shape [1, 2, 2]");
    let src = ("src_mask", Dtype::U8, vec![1, 2], vec![1, 0]);
    write(&input, &[x.clone(), src.clone()]);
    fails("sample", &["--steps", "2", "--mask-id", "96"], 2, "u_cat");
    fails("sample", &["--steps", "0", "--mask-id", "96", "--greedy"], 2, "one step");
    fails("sample", &["--steps", "1", "--mask-id", "97", "--greedy"], 2, "mask id 97");
    fails("sample", &["--steps", "1", "--greedy"], 2, "--mask-id");
}

#[test]
fn the_input_is_never_overwritten_and_drawing_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let x = ("x", Dtype::I32, vec![1, 2], i32s(&[1, 2]));
    let src = ("src_mask", Dtype::U8, vec![1, 2], vec![1, 0]);
    let u_cat = ("u_cat", Dtype::F32, vec![1, 1, 2], f32s(&[0.5, 0.5]));
    write(&input, &[x, src, u_cat]);
    let before = std::fs::read(&input).unwrap();
    let run = |what: &str, output: &Path, extra: &[&str]| {
        let mut command = lacuna();
        command.args(["replay", what, "--model"]).arg(fixture("golden/gpt2-tiny"));
        command.arg("--input").arg(&input).arg("--output").arg(output).args(extra).assert()
    };
    let sample = ["--steps", "1", "--mask-id", "96"];
    run("forward", &input, &[]).code(2);
    run("sample", &input, &sample).code(2);
    assert_eq!(std::fs::read(&input).unwrap(), before);
    run("sample", &output, &[&sample[..], &["--top-p", "7"]].concat()).code(2);
    run("sample", &output, &[&sample[..], &["--temperature", "-1"]].concat()).code(2);
    assert!(!output.exists());
    run("sample", &output, &sample).success();
    assert!(output.exists());
}
