//! A real pretrained LLaMA-family model, SmolLM2-135M, against what PyTorch makes of it. The model
//! is too large to ship: `tools/fetch_smollm2.py target/smollm2` fetches it. Without it these tests
//! say so and pass.

use std::path::{Path, PathBuf};

use lacuna::backend::Mask;
use lacuna::io::ModelFiles;
use lacuna::model::{Arena, ArenaSize, Batch};
use lacuna::sample::{Canvas, Limits, Request, Sampler};

fn folder() -> Option<PathBuf> {
    let dir = std::env::var_os("LACUNA_SMOLLM2")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/smollm2"), PathBuf::from);
    if dir.join("model.safetensors").exists() {
        return Some(dir);
    }
    eprintln!("skipped: no model in {}; run tools/fetch_smollm2.py target/smollm2", dir.display());
    None
}

fn expected() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(crate::common::fixture("smollm2.json")).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_continuations_token_for_token() {
    let Some(dir) = folder() else { return };
    let tokenizer = ModelFiles::open(&dir).unwrap().tokenizer.unwrap();
    let model = crate::common::load(&dir, 2);
    let expected = expected();
    let mut requests = Vec::new();
    let mut wanted = Vec::new();
    for (prompt, case) in expected["greedy"].as_object().unwrap() {
        let given = tokenizer.encode(prompt).unwrap();
        assert_eq!(given, ids(&case["prompt_ids"]), "{prompt:?}");
        let greedy = ids(&case["greedy_ids"]);
        let mut request = Request::new(Canvas::prefix(&given, greedy.len()));
        (request.autoregressive, request.temperature, request.stop_at_eos) = (true, 0.0, false);
        requests.push(request);
        wanted.push(([given, greedy].concat(), case["greedy_text"].as_str().unwrap().to_owned()));
    }
    let mut sampler = Sampler::new(model, Limits::for_requests(&requests, 8)).unwrap();
    let out = sampler.generate_with(&requests, &mut ()).unwrap();
    for (got, (ids, text)) in out.into_iter().zip(wanted) {
        let got = got.unwrap();
        assert_eq!(got.ids, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&got.ids).unwrap(), text);
    }
}

#[test]
fn causal_loss_and_bidirectional_logits() {
    let Some(dir) = folder() else { return };
    let model = crate::common::load(&dir, 2);
    let expected = expected();
    let text = ids(&expected["paragraph_ids"]);
    let n = text.len();
    let size = ArenaSize { tokens: n, rows: n };
    let mut arena = Arena::new(model.backend(), model.config(), size, n).unwrap();
    let mut batch = Batch::with_capacity(size, 1);

    batch.push(&text, 0..n as u32 - 1);
    model.forward(&batch, &mut arena, Mask::Causal).unwrap();
    let nll = model.nll(&text[1..], &mut arena).unwrap();
    let loss = nll.iter().sum::<f64>() / nll.len() as f64;
    let want = expected["causal_loss"].as_f64().unwrap();
    assert!((loss - want).abs() < 1e-4, "causal loss {loss}, expected {want}");

    batch.clear();
    batch.push(&text, 0..n as u32);
    let logits = model.logits(&batch, &mut arena, Mask::Full).unwrap();
    let v = model.config().vocab_size;
    let best: Vec<u32> = logits
        .chunks(v)
        .map(|row| (0..v).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as u32)
        .collect();
    assert_eq!(best, ids(&expected["bidirectional_argmax"]));
    for (i, want) in expected["bidirectional_logits_row_10_first_16"].as_array().unwrap().iter().enumerate() {
        let (got, want) = (f64::from(logits[10 * v + i]), want.as_f64().unwrap());
        assert!((got - want).abs() < 1e-3, "logit {i}: {got}, expected {want}");
    }
}
