//! `config.json`, in order and hostile.

use std::path::Path;

use lacuna::Error;
use lacuna::config::{Activation, Family, ModelConfig, NormKind, RopeScaling};
use lacuna::io::hf_config::parse;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::{gpt2, llama, with};

fn read(config: &Value) -> Result<ModelConfig, Error> {
    parse(config.to_string().as_bytes(), Path::new("dir/config.json"))
}

#[track_caller]
fn refused(config: &Value, words: &[&str]) {
    let error = read(config).expect_err("a hostile configuration was accepted");
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    for word in ["config.json"].iter().chain(words) {
        assert!(message.contains(word), "{message:?} does not name {word:?}");
    }
}

#[test]
fn gpt2_with_defaults() {
    let c = read(&gpt2()).unwrap();
    assert_eq!(
        c,
        ModelConfig {
            family: Family::Gpt2,
            vocab_size: 1024,
            width: 8,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            mlp_width: 32,
            max_positions: 32,
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            activation: Activation::GeluTanh,
            rope: None,
            tied: true,
            attention_bias: true,
            mlp_bias: true,
            attention_scale: 0.5,
        }
    );
}

#[test]
fn gpt2_variants() {
    assert_eq!(read(&with(gpt2(), "n_inner", json!(20))).unwrap().mlp_width, 20);
    assert_eq!(read(&with(gpt2(), "n_inner", Value::Null)).unwrap().mlp_width, 32);
    assert_eq!(read(&with(gpt2(), "scale_attn_weights", json!(false))).unwrap().attention_scale, 1.0);
    assert_eq!(read(&with(gpt2(), "reorder_and_upcast_attn", json!(true))).unwrap(), read(&gpt2()).unwrap());
    assert!(!read(&with(gpt2(), "tie_word_embeddings", json!(false))).unwrap().tied);
    let names = [
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu", Activation::GeluErf),
        ("silu", Activation::Silu),
    ];
    for (name, activation) in names {
        assert_eq!(read(&with(gpt2(), "activation_function", json!(name))).unwrap().activation, activation);
    }
    refused(
        &with(gpt2(), "activation_function", json!("relu")),
        &["activation_function", "relu", "gelu_new"],
    );
    refused(
        &with(gpt2(), "scale_attn_by_inverse_layer_idx", json!(true)),
        &["scale_attn_by_inverse_layer_idx"],
    );
    refused(&with(gpt2(), "add_cross_attention", json!(true)), &["add_cross_attention"]);
}

#[test]
fn llama_with_defaults() {
    let c = read(&llama()).unwrap();
    assert_eq!((c.family, c.norm, c.activation), (Family::Llama, NormKind::RmsNorm, Activation::Silu));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.mlp_width), (2, 2, 4, 12));
    assert_eq!((c.norm_eps, c.tied, c.attention_bias, c.mlp_bias), (1e-6, false, false, false));
    let rope = c.rope.unwrap();
    assert_eq!((rope.theta, rope.scaling), (10_000.0, RopeScaling::None));
}

#[test]
fn llama_variants() {
    let c = read(&with(with(llama(), "num_key_value_heads", json!(1)), "head_dim", json!(16))).unwrap();
    assert_eq!((c.kv_heads, c.head_dim, c.qkv_width(), c.attention_scale), (1, 16, 64, 0.25));
    let c = read(&with(with(llama(), "attention_bias", json!(true)), "mlp_bias", json!(true))).unwrap();
    assert!(c.attention_bias && c.mlp_bias);
    assert_eq!(read(&with(llama(), "rope_theta", json!(500000.0))).unwrap().rope.unwrap().theta, 500_000.0);
    refused(&with(llama(), "hidden_act", json!("gelu")), &["hidden_act", "silu"]);
    refused(&with(llama(), "partial_rotary_factor", json!(0.5)), &["partial_rotary_factor"]);
    refused(&with(llama(), "quantization_config", json!({"bits": 4})), &["quantization_config"]);
}

#[test]
fn rope_scaling_in_old_and_new_spelling() {
    let scaling = |field: &str, v: Value| read(&with(llama(), field, v)).unwrap().rope.unwrap();
    for v in [json!({"type": "linear", "factor": 2}), json!({"rope_type": "linear", "factor": 2.0})] {
        assert_eq!(scaling("rope_scaling", v).scaling, RopeScaling::Linear { factor: 2.0 });
    }
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    assert_eq!(scaling("rope_scaling", llama3.clone()).scaling, expected);
    let new = scaling("rope_parameters", with(llama3, "rope_theta", json!(5e5)));
    assert_eq!((new.theta, new.scaling), (5e5, expected));
    assert_eq!(scaling("rope_scaling", json!({"rope_type": "default"})).scaling, RopeScaling::None);
    assert_eq!(scaling("rope_scaling", Value::Null).scaling, RopeScaling::None);
}

#[test]
fn rope_scaling_that_is_not_computed_or_not_sound() {
    let refused = |v: Value, words: &[&str]| refused(&with(llama(), "rope_scaling", v), words);
    refused(json!({"type": "yarn", "factor": 2.0}), &["rope_scaling.rope_type", "yarn", "llama3"]);
    refused(json!({"type": "dynamic", "factor": 2.0}), &["dynamic"]);
    refused(json!({"type": "linear"}), &["rope_scaling.factor"]);
    refused(json!({"type": "linear", "factor": 0}), &["rope_scaling.factor", "greater than 0"]);
    refused(json!({"type": "linear", "factor": "2"}), &["rope_scaling.factor"]);
    refused(
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
        &["high_freq_factor"],
    );
    refused(json!("linear"), &["rope_scaling", "an object"]);
}

#[test]
fn zero_heads_layers_width_or_vocabulary() {
    for field in ["n_head", "n_layer", "n_embd", "vocab_size", "n_positions", "n_inner"] {
        refused(&with(gpt2(), field, json!(0)), &[field, "got 0"]);
    }
    let fields =
        ["num_attention_heads", "num_hidden_layers", "hidden_size", "num_key_value_heads", "head_dim"];
    for field in fields.iter().chain(&["intermediate_size", "max_position_embeddings"]) {
        refused(&with(llama(), field, json!(0)), &[field, "got 0"]);
    }
}

#[test]
fn absurd_sizes() {
    for (field, value) in
        [("vocab_size", (1u64 << 24) + 1), ("n_embd", 1 << 21), ("n_layer", 10_001), ("n_head", 1 << 40)]
    {
        refused(&with(gpt2(), field, json!(value)), &[field, &value.to_string()]);
    }
    refused(&with(gpt2(), "n_positions", json!(u64::MAX)), &["n_positions"]);
    refused(&with(gpt2(), "n_embd", json!(1 << 20)), &["n_embd"]);
    refused(
        &with(with(llama(), "num_attention_heads", json!(1 << 19)), "head_dim", json!(1 << 19)),
        &["head_dim"],
    );
}

#[test]
fn sizes_that_do_not_fit_one_another() {
    refused(&with(gpt2(), "n_head", json!(3)), &["n_head", "divisor of n_embd, 8", "got 3"]);
    refused(&with(llama(), "num_attention_heads", json!(3)), &["num_attention_heads", "divisor"]);
    refused(
        &with(with(llama(), "num_attention_heads", json!(4)), "num_key_value_heads", json!(3)),
        &["num_key_value_heads"],
    );
    refused(&with(llama(), "num_key_value_heads", json!(4)), &["num_key_value_heads", "got 4"]);
    refused(&with(llama(), "head_dim", json!(5)), &["head_dim", "even"]);
    refused(&with(llama(), "num_attention_heads", json!(8)), &["head_dim", "even"]);
}

#[test]
fn negative_fractional_and_mistyped_numbers() {
    for value in [json!(-1), json!(2.5), json!("2"), json!([2]), json!(true), json!({})] {
        refused(&with(gpt2(), "n_head", value.clone()), &["n_head", &value.to_string()]);
        refused(&with(llama(), "hidden_size", value), &["hidden_size"]);
    }
    refused(&with(gpt2(), "tie_word_embeddings", json!("yes")), &["tie_word_embeddings", "true or false"]);
    refused(&with(gpt2(), "activation_function", json!(3)), &["activation_function", "a string"]);
    refused(&with(gpt2(), "model_type", json!(3)), &["model_type"]);
}

#[test]
fn epsilon_must_be_small_and_positive() {
    for value in [json!(0), json!(-1e-5), json!(1), json!("1e-5")] {
        refused(&with(gpt2(), "layer_norm_epsilon", value.clone()), &["layer_norm_epsilon"]);
        refused(&with(llama(), "rms_norm_eps", value), &["rms_norm_eps"]);
    }
    let text = gpt2().to_string().replace('}', ",\"layer_norm_epsilon\":1e999}");
    let error = parse(text.as_bytes(), Path::new("config.json")).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
}

#[test]
fn missing_sizes_are_named() {
    for field in ["n_head", "n_layer", "n_embd", "vocab_size", "n_positions"] {
        let mut config = gpt2();
        config.as_object_mut().unwrap().remove(field);
        refused(&config, &[field, "no such field"]);
    }
}

#[test]
fn other_model_types_are_told_what_works() {
    refused(&with(gpt2(), "model_type", json!("bert")), &["model_type", "bert", "gpt2, llama"]);
    refused(&json!({}), &["model_type", "gpt2, llama"]);
}

#[test]
fn not_a_json_object() {
    for text in ["", "[]", "{", "null", "\u{feff}{}", "{} x"] {
        let error = parse(text.as_bytes(), Path::new("config.json")).unwrap_err();
        assert!(error.to_string().contains("a JSON object"), "{text:?}: {error}");
    }
    let error = parse("[".repeat(100_000).as_bytes(), Path::new("config.json")).unwrap_err();
    assert!(matches!(error, Error::Config { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn accepted_configurations_are_sound(
        llama_family in any::<bool>(),
        field in any::<prop::sample::Index>(),
        value in prop_oneof![
            any::<i64>().prop_map(|n| json!(n)),
            (-4i64..70_000).prop_map(|n| json!(n)),
            any::<f64>().prop_map(|x| json!(x)),
            Just(json!("x")), Just(json!([])), Just(Value::Null),
        ],
    ) {
        let mut config = if llama_family {
            with(with(llama(), "num_key_value_heads", json!(1)), "rope_theta", json!(1e4))
        } else {
            gpt2()
        };
        let names: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        config[field.get(&names).as_str()] = value;
        if let Ok(c) = read(&config) {
            prop_assert!(c.heads > 0 && c.layers > 0 && c.width > 0 && c.head_dim > 0 && c.max_positions > 0);
            prop_assert_eq!(c.heads % c.kv_heads, 0);
            prop_assert!(c.attention_scale.is_finite() && c.norm_eps > 0.0);
            if let Some(rope) = c.rope {
                prop_assert!(rope.frequencies(c.head_dim).iter().all(|f| f.is_finite()));
            }
        }
    }
}
