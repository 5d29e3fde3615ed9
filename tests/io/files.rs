//! Model folders: special ids and where they come from, notes, names.

use std::path::Path;

use lacuna::Error;
use lacuna::backend::cpu::Cpu;
use lacuna::io::{ModelFiles, SpecialId};
use lacuna::model::{LoadOptions, Model, layout};
use serde_json::{Value, json};

use super::support::{TOKENIZER, f32s, folder, gpt2, llama, safetensors, with, write};

fn id(special: &Option<SpecialId>) -> Option<(u32, &str)> {
    special.as_ref().map(|s| (s.id, s.source.as_str()))
}

/// `config` without the ids that it names.
fn unnamed(mut config: Value) -> Value {
    for field in ["mask_token_id", "bos_token_id", "eos_token_id"] {
        config.as_object_mut().unwrap().remove(field);
    }
    config
}

#[test]
fn bundled_model_is_whole() {
    let files = ModelFiles::bundled().unwrap();
    assert_eq!((files.name.as_str(), files.path.as_deref()), ("bard-diffusion", None));
    assert_eq!((files.config.vocab_size, files.config.width, files.config.layers), (1024, 192, 4));
    assert_eq!(id(&files.special.mask), Some((0, "config.json mask_token_id")));
    assert_eq!(id(&files.special.eos), Some((1, "config.json eos_token_id")));
    assert!(files.mask_is_dedicated && files.shift && !files.add_bos);
    assert!(files.notes.is_empty(), "{:?}", files.notes);
    let embedding = files.checkpoint.require("embed_tokens.weight").unwrap();
    assert_eq!((embedding.shape(), embedding.dtype().name()), (&[1024, 192][..], "f16"));
    assert_eq!(embedding.bytes().as_ptr().align_offset(2), 0, "weights are read in place");
    for (name, tensor) in files.checkpoint.iter() {
        assert_eq!(lacuna::io::checkpoint::non_finite(tensor), None, "{name}");
    }
}

#[test]
fn find_knows_bundled_folders_and_paths() {
    assert_eq!(ModelFiles::find(None).unwrap().name, "bard-diffusion");
    assert_eq!(ModelFiles::find(Some("bundled")).unwrap().name, "bard-diffusion");
    let dir = folder(&gpt2());
    let files = ModelFiles::find(dir.path().to_str()).unwrap();
    assert_eq!(files.name, dir.path().file_name().unwrap().to_str().unwrap());
    let weights = dir.path().join("model.safetensors");
    assert_eq!(ModelFiles::open(&weights).unwrap().path.as_deref(), Some(dir.path()));
    for gone in ["./no-such-folder", "/no/such/folder", "no/such/folder", "no-such.safetensors"] {
        let error = ModelFiles::find(Some(gone)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(gone), "{error}");
    }
    for malformed in ["org/name@", "org/na me", "org/..x"] {
        let error = ModelFiles::find(Some(malformed)).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }) && error.to_string().contains(malformed), "{error}");
    }
}

#[test]
fn missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelFiles::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    write(dir.path(), "config.json", gpt2().to_string());
    let error = ModelFiles::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn ids_come_from_the_most_trusted_file_that_names_them() {
    let dir = folder(&unnamed(gpt2()));
    let source = |kind: fn(&ModelFiles) -> &Option<SpecialId>| {
        let files = ModelFiles::open(dir.path()).unwrap();
        id(kind(&files)).map(|(id, source)| (id, source.to_owned()))
    };
    let eos = |f: &ModelFiles| f.special.eos.clone();
    assert_eq!(source(|f| &f.special.mask), Some((0, "tokenizer special token <mask>".into())));
    write(dir.path(), "special_tokens_map.json", json!({"eos_token": {"content": "<eos>"}}).to_string());
    let files = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(id(&eos(&files)), Some((1, "special_tokens_map.json eos_token \"<eos>\"")));
    write(
        dir.path(),
        "tokenizer_config.json",
        json!({"eos_token": "!", "mask_token": {"content": "<mask>"}}).to_string(),
    );
    assert_eq!(source(|f| &f.special.eos), Some((2, "tokenizer_config.json eos_token \"!\"".into())));
    assert_eq!(source(|f| &f.special.mask), Some((0, "tokenizer_config.json mask_token \"<mask>\"".into())));
    write(dir.path(), "generation_config.json", json!({"eos_token_id": [7, 8]}).to_string());
    assert_eq!(source(|f| &f.special.eos), Some((7, "generation_config.json eos_token_id".into())));
    assert!(ModelFiles::open(dir.path()).unwrap().notes.iter().any(|n| n.contains("lists 2 ids")));
    write(dir.path(), "config.json", with(unnamed(gpt2()), "eos_token_id", json!(9)).to_string());
    assert_eq!(source(|f| &f.special.eos), Some((9, "config.json eos_token_id".into())));
}

#[test]
fn mask_id_outside_the_vocabulary() {
    for value in [json!(1024), json!(-1), json!(1u64 << 40)] {
        let dir = folder(&with(gpt2(), "mask_token_id", value.clone()));
        let error = ModelFiles::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        let message = error.to_string();
        for word in ["config.json", "mask_token_id", "0 to 1023", &value.to_string()] {
            assert!(message.contains(word), "{message:?} does not name {word:?}");
        }
    }
    let dir = folder(&with(unnamed(gpt2()), "vocab_size", json!(1000)));
    let added = json!({"mask_token": "[M]", "added_tokens_decoder": {"1024": {"content": "[M]"}}});
    write(dir.path(), "tokenizer_config.json", added.to_string());
    let message = ModelFiles::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json") && message.contains("mask_token"), "{message}");
}

#[test]
fn other_ids_outside_the_vocabulary_are_noted() {
    let dir = folder(&with(with(gpt2(), "eos_token_id", json!(5000)), "pad_token_id", json!(-1)));
    let files = ModelFiles::open(dir.path()).unwrap();
    assert_eq!((id(&files.special.eos).map(|e| e.0), &files.special.pad), (Some(1), &None));
    assert!(files.notes.iter().any(|n| n.contains("eos_token_id 5000")), "{:?}", files.notes);
    assert!(!files.notes.iter().any(|n| n.contains("pad")), "{:?}", files.notes);
}

#[test]
fn ids_of_other_types_are_refused() {
    for (field, value) in
        [("mask_token_id", json!("0")), ("eos_token_id", json!(1.5)), ("bos_token_id", json!({}))]
    {
        let dir = folder(&with(gpt2(), field, value));
        let error = ModelFiles::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(field), "{error}");
    }
}

#[test]
fn an_ordinary_word_as_mask_is_not_dedicated() {
    let dedicated = |config: &Value| ModelFiles::open(folder(config).path()).unwrap().mask_is_dedicated;
    assert!(dedicated(&gpt2()));
    assert!(!dedicated(&with(gpt2(), "mask_token_id", json!(100))));
    // An added row behind the words that the tokenizer was trained to.
    assert!(dedicated(&with(with(gpt2(), "mask_token_id", json!(1024)), "vocab_size", json!(1026))));
}

/// A folder with the sizes of a release; the weights are of no interest here, only their names.
fn release(config: &Value, rows: usize, wrapper: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", config.to_string());
    let width = config["n_embd"].as_u64().or(config["hidden_size"].as_u64()).unwrap() as usize;
    let zeros = vec![0; rows * width * 2];
    let names = if wrapper {
        ["embed_tokens.weight", "denoise_model.ln_f.weight"]
    } else {
        ["wte.weight", "ln_f.weight"]
    };
    let tensors = [(names[0], "F16", vec![rows, width], zeros), (names[1], "F32", vec![1], f32s(&[1.0]))];
    write(dir.path(), "model.safetensors", safetensors(&tensors));
    dir
}

fn gpt2_of(width: usize, layers: usize, heads: usize) -> Value {
    let config = with(with(unnamed(gpt2()), "n_embd", json!(width)), "n_layer", json!(layers));
    with(with(config, "n_head", json!(heads)), "vocab_size", json!(50257))
}

#[test]
fn released_diffugpt_s_is_recognised_by_shape_and_wrapper_names() {
    let files = ModelFiles::open(release(&gpt2_of(768, 12, 12), 50257, true).path()).unwrap();
    assert_eq!(id(&files.special.mask), Some((10541, "known release DiffuGPT-S")));
    assert_eq!(id(&files.special.sep), Some((50155, "known release DiffuGPT-S")));
    assert!(!files.mask_is_dedicated);
    let files = ModelFiles::open(release(&gpt2_of(768, 12, 12), 50257, false).path()).unwrap();
    assert_eq!(files.special.mask, None, "plain GPT-2 has no mask");
    let named = with(gpt2_of(768, 12, 12), "_name_or_path", json!("diffusionfamily/diffugpt-s"));
    let files = ModelFiles::open(release(&named, 50257, false).path()).unwrap();
    assert_eq!(id(&files.special.mask).unwrap().0, 10541);
    let own = with(gpt2_of(768, 12, 12), "mask_token_id", json!(5));
    let files = ModelFiles::open(release(&own, 50257, true).path()).unwrap();
    assert_eq!(id(&files.special.mask), Some((5, "config.json mask_token_id")));
}

#[test]
fn released_diffugpt_m_has_rows_that_its_configuration_does_not_state() {
    let files = ModelFiles::open(release(&gpt2_of(1024, 24, 16), 50258, true).path()).unwrap();
    assert_eq!(files.config.vocab_size, 50258);
    assert_eq!(id(&files.special.mask), Some((50257, "known release DiffuGPT-M")));
    assert!(files.mask_is_dedicated);
    assert!(files.notes.iter().any(|n| n.contains("50258 are used")), "{:?}", files.notes);
}

#[test]
fn released_diffullama_is_recognised_by_name() {
    let config = with(with(llama(), "hidden_size", json!(4096)), "num_hidden_layers", json!(32));
    let config = with(with(config, "vocab_size", json!(32000)), "num_attention_heads", json!(32));
    let plain = ModelFiles::open(release(&config, 1, false).path()).unwrap();
    assert_eq!(plain.special.mask, None);
    let named = with(config, "_name_or_path", json!("diffusionfamily/DiffuLLaMA"));
    let files = ModelFiles::open(release(&named, 1, false).path()).unwrap();
    assert_eq!(id(&files.special.mask), Some((811, "known release DiffuLLaMA")));
    assert_eq!(id(&files.special.sep).unwrap().0, 4936);
    assert!(!files.mask_is_dedicated);
}

#[test]
fn shift_and_bos_follow_the_files() {
    let dir = folder(&with(gpt2(), "shift", json!(false)));
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(!files.shift && !files.add_bos);
    let add_bos = |config: Value| {
        write(dir.path(), "tokenizer_config.json", config.to_string());
        ModelFiles::open(dir.path()).unwrap().add_bos
    };
    assert!(add_bos(json!({"add_bos_token": true})));
    assert!(add_bos(json!({"tokenizer_class": "LlamaTokenizerFast"})));
    assert!(!add_bos(json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false})));
    assert!(!add_bos(json!({"tokenizer_class": "GPT2Tokenizer"})));
}

#[test]
fn oddities_are_noted() {
    let notes = |config: &Value| ModelFiles::open(folder(config).path()).unwrap().notes.join("\n");
    assert!(notes(&with(gpt2(), "vocab_size", json!(1030))).contains("1030 rows"));
    assert!(notes(&with(gpt2(), "vocab_size", json!(1000))).contains("1000 rows"));
    assert!(notes(&with(gpt2(), "torch_dtype", json!("bfloat16"))).contains("declares bf16"));
    assert!(notes(&with(gpt2(), "dtype", json!("float32"))).is_empty());
    let dir = folder(&unnamed(gpt2()));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(files.tokenizer.is_none());
    let notes = files.notes.join("\n");
    assert!(notes.contains("no tokenizer") && notes.contains("no file names a mask id"), "{notes}");
}

#[test]
fn added_tokens_join_the_original_gpt2_files() {
    let dir = folder(&unnamed(gpt2()));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    write(dir.path(), "vocab.json", json!({"a": 0, "b": 1, "<|endoftext|>": 2}).to_string());
    write(dir.path(), "merges.txt", "#version: 0.2\n");
    let added = json!({"mask_token": "[M]", "added_tokens_decoder": {
        "2": {"content": "<|endoftext|>", "special": true}, "3": {"content": "[M]", "special": true},
        "9": {"content": "far", "special": true}}});
    write(dir.path(), "tokenizer_config.json", added.to_string());
    let files = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(id(&files.special.mask), Some((3, "tokenizer_config.json mask_token \"[M]\"")));
    let tokenizer = files.tokenizer.unwrap();
    assert_eq!(tokenizer.encode("a[M]b").unwrap(), [0, 3, 1]);
    assert_eq!(tokenizer.token_id("far"), None, "an id that cannot be had is not given to another");
}

#[test]
fn malformed_companions_are_named() {
    for file in ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let dir = folder(&gpt2());
        write(dir.path(), file, "{");
        let error = ModelFiles::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(file), "{error}");
    }
    let dir = folder(&gpt2());
    write(dir.path(), "tokenizer.json", &TOKENIZER[..1000]);
    let error = ModelFiles::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Tokenizer(_)) && error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn cache_folders_carry_the_models_name() {
    let dir = folder(&gpt2());
    let snapshot = dir.path().join("models--org--tiny/snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.path().join(file), snapshot.join(file)).unwrap();
    }
    assert_eq!(ModelFiles::open(Path::new(&snapshot)).unwrap().name, "org/tiny");
}

/// Every number that a network uses is looked at when it is loaded, whatever parameter it is of.
#[test]
fn no_parameter_is_left_unchecked() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    for (name, least) in [("gpt2-tiny", 28), ("llama-tiny", 20)] {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        std::fs::copy(golden.join(name).join("config.json"), at("config.json")).unwrap();
        let whole = std::fs::read(golden.join(name).join("model.safetensors")).unwrap();
        std::fs::write(at("model.safetensors"), &whole).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        let entries = layout(&files.config, &files.checkpoint).unwrap().entries;
        assert!(entries.len() >= least, "{name}: {} parameters", entries.len());
        drop(files);
        let (header, tensors) = safetensors::SafeTensors::read_metadata(&whole).unwrap();
        for entry in entries {
            let (start, end) = tensors.info(&entry.tensor).unwrap().data_offsets;
            let last = header + 8 + end - entry.dtype.size();
            assert!(last >= header + 8 + start);
            let mut damaged = whole.clone();
            damaged[last..header + 8 + end].fill(0xff);
            std::fs::write(at("model.safetensors"), damaged).unwrap();
            let files = ModelFiles::open(folder.path()).unwrap();
            let cpu = Cpu::<f32>::new(None).unwrap();
            let load = Model::load(cpu, &files, LoadOptions::default());
            let Err(error) = load else { panic!("{name}: {} was not looked at", entry.tensor) };
            assert_eq!(error.exit_code(), 5, "{error}");
            assert!(error.to_string().contains(&entry.tensor), "{error}");
        }
    }
}
