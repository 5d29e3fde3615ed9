//! Whole passes and whole generations. The baseline of a generation is the paper's plain loop on
//! this same engine: what separates the two is the commit plan alone.
//!
//! `cargo bench --bench engine`; a part of it: `cargo bench --bench engine -- forward`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lacuna::backend::cpu::Cpu;
use lacuna::backend::{Backend as _, Confidence, Mask};
use lacuna::io::{Checkpoint, ModelFiles, SpecialId, SpecialIds, hf_config};
use lacuna::model::{Arena, ArenaSize, Batch, LoadOptions, Model};
use lacuna::rng::{Purpose, Rng};
use lacuna::sample::{
    Canvas, CountSchedule, Limits, Order, PlainInput, PlainOptions, Request, Sampler, plain_loop,
};
use safetensors::tensor::{Dtype, TensorView};

type Engine = Model<Cpu<f32>>;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536,
    "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;

/// A network of SmolLM2-135M's shape with random bf16 weights.
fn synthetic() -> Arc<Engine> {
    let config =
        hf_config::parse(CONFIG.as_bytes(), Path::new("config.json")).expect("a valid configuration");
    let (c, f, kv, v) = (config.width, config.mlp_width, config.kv_width(), config.vocab_size);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![v, c])];
    for n in 0..config.layers {
        for (name, shape) in [
            ("input_layernorm", vec![c]),
            ("self_attn.q_proj", vec![c, c]),
            ("self_attn.k_proj", vec![kv, c]),
            ("self_attn.v_proj", vec![kv, c]),
            ("self_attn.o_proj", vec![c, c]),
            ("post_attention_layernorm", vec![c]),
            ("mlp.gate_proj", vec![f, c]),
            ("mlp.up_proj", vec![f, c]),
            ("mlp.down_proj", vec![c, f]),
        ] {
            shapes.push((format!("model.layers.{n}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![c]));
    let rng = Rng::new(1);
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .enumerate()
        .map(|(i, (_, shape))| {
            let (len, scale) = (shape.iter().product::<usize>(), 0.03);
            let number = |j: usize| {
                let noise = rng.uniform(Purpose::Token, i as u32, 0, j as u32) - 0.5;
                if shape.len() == 1 { 1.0 } else { 3.4 * scale * noise }
            };
            (0..len).flat_map(|j| half::bf16::from_f32(number(j)).to_le_bytes()).collect()
        })
        .collect();
    let views: HashMap<&str, TensorView> = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| {
            (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), data).expect("a matching shape"))
        })
        .collect();
    let bytes = safetensors::serialize(views, None).expect("a file");
    let checkpoint = Checkpoint::from_bytes(bytes.into(), Path::new("synthetic")).expect("a checkpoint");
    let id = |id| Some(SpecialId { id, source: "synthetic".into() });
    let files = ModelFiles {
        name: "synthetic-135m".into(),
        path: None,
        config,
        special: SpecialIds { mask: id(0), bos: id(1), eos: id(2), sep: None, pad: None },
        shift: true,
        mask_is_dedicated: true,
        add_bos: false,
        checkpoint,
        tokenizer: None,
        notes: Vec::new(),
    };
    load(&files)
}

fn load(files: &ModelFiles) -> Arc<Engine> {
    let backend = Cpu::new(None).expect("threads");
    Arc::new(Model::load(backend, files, LoadOptions { check_finite: false }).expect("a model"))
}

fn forward(c: &mut Criterion, name: &str, model: &Engine, shapes: &[(usize, usize)]) {
    let mut group = c.benchmark_group(format!("forward/{name}"));
    group.sample_size(10);
    for &(b, l) in shapes {
        let size = ArenaSize { tokens: b * l, rows: b * l };
        let mut arena = Arena::new(model.backend(), model.config(), size, l).expect("an arena");
        let mut batch = Batch::with_capacity(size, b);
        let vocab = model.config().vocab_size;
        for row in 0..b {
            let ids: Vec<u32> = (0..l).map(|i| ((i * 31 + row * 7) % vocab) as u32).collect();
            batch.push(&ids, 0..l as u32);
        }
        group.throughput(Throughput::Elements((b * l) as u64));
        group.bench_function(BenchmarkId::new("layers", format!("{b}x{l}")), |bench| {
            bench.iter(|| {
                model.backend().run(|| model.forward(&batch, &mut arena, Mask::Full).expect("a pass"))
            });
        });
        group.bench_function(BenchmarkId::new("head", format!("{b}x{l}")), |bench| {
            bench.iter(|| {
                model.backend().run(|| model.head(b * l, &mut arena, |_, _| Ok(())).expect("logits"));
            });
        });
    }
    group.finish();
}

fn generation(c: &mut Criterion, name: &str, model: &Arc<Engine>, length: usize, steps: usize) {
    let mut group = c.benchmark_group(format!("generate/{name}/{length}x{steps}"));
    group.sample_size(10);
    group.throughput(Throughput::Elements(length as u64 - 1));
    let mut sampler =
        Sampler::new(model.clone(), Limits { sequences: 1, tokens: length }).expect("a sampler");
    let mut request = Request::new(Canvas::prefix(&[1], length - 1));
    (request.steps, request.stop_at_eos) = (steps, false);
    group.bench_function("plan", |b| b.iter(|| sampler.generate(&request).expect("a text")));
    let schedule = CountSchedule::Linear;
    let order = Order::Confidence { by: Confidence::MaxProb, schedule, noise: 0.0, remask: false };
    let confident = Request { order, ..request.clone() };
    group.bench_function("confidence", |b| b.iter(|| sampler.generate(&confident).expect("a text")));
    let rng = Rng::new(0);
    let uniforms = |purpose, slices: usize| -> Vec<f32> {
        (0..slices * length).map(|i| rng.uniform(purpose, 0, 0, i as u32)).collect()
    };
    let mut src = vec![false; length];
    src[0] = true;
    let input = PlainInput {
        batch: 1,
        length,
        x: std::iter::once(1).chain(std::iter::repeat_n(0, length - 1)).collect(),
        src,
        u_cat: uniforms(Purpose::Token, steps),
        u_unmask: uniforms(Purpose::Reveal, steps - 1),
    };
    let mask_id = model.special().mask.as_ref().map_or(0, |m| m.id);
    let options =
        PlainOptions { steps, temperature: 1.0, top_p: 0.9, shift: true, mask_id, confidence: false };
    group.bench_function("plain loop (baseline)", |b| {
        b.iter(|| model.backend().run(|| plain_loop(model, &input, &options).expect("a text")));
    });
    group.finish();
}

fn engine(c: &mut Criterion) {
    let bundled = load(&ModelFiles::bundled().expect("the bundled model"));
    forward(c, "bundled", &bundled, &[(1, 128), (8, 128)]);
    generation(c, "bundled", &bundled, 128, 32);
    let large = synthetic();
    forward(c, "135m", &large, &[(1, 128), (4, 128), (1, 512)]);
    generation(c, "135m", &large, 128, 8);
}

criterion_group!(benches, engine);
criterion_main!(benches);
