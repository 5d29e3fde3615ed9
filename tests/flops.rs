//! The account of floating-point operations: against loops that count, against drawn commit plans, and what cannot be counted.

use assert_cmd::Command;
use lacuna::config::{Family, ModelConfig};
use lacuna::diffusion::reveal::CommitPlan;
use lacuna::model::SyntheticShape;
use lacuna::profile::flops::{
    Amount, Attention, ByOp, Decoding, DecodingOrder, Op, TrainingStep, expected_commit_steps, forward,
    generation, pass, training,
};
use lacuna::rng::Rng;
use predicates::str::contains;
use serde_json::Value;

/// Multiply-adds of a product, counted one by one, as two operations each.
fn product(rows: usize, inner: usize, columns: usize) -> f64 {
    let mut count = 0_u64;
    for _ in 0..rows {
        for _ in 0..columns {
            for _ in 0..inner {
                count += 2;
            }
        }
    }
    count as f64
}

/// A GPT-2 of width 8, 2 heads of 4, 3 layers, 11 tokens; its MLP is 32 wide.
fn gpt2() -> ModelConfig {
    let tiny = SyntheticShape::TinyGpt2.config();
    ModelConfig {
        vocab_size: 11,
        width: 8,
        layers: 3,
        heads: 2,
        kv_heads: 2,
        head_dim: 4,
        mlp_width: 32,
        ..tiny
    }
}

/// A LLaMA of width 12, 3 heads of 4 that share one of keys and values, 2 layers, an MLP of 20, 13 tokens.
fn llama() -> ModelConfig {
    let tiny = SyntheticShape::TinyLlama.config();
    ModelConfig {
        vocab_size: 13,
        width: 12,
        layers: 2,
        heads: 3,
        kv_heads: 1,
        head_dim: 4,
        mlp_width: 20,
        ..tiny
    }
}

/// Operations of a pass over sequences of 5 and 7 tokens, 4 and 2 of whose rows are wanted, written out for each network.
fn by_hand(config: &ModelConfig, op: Op) -> f64 {
    let tokens = 12;
    let wanted = 6;
    // Of one head: queries by keys, of each sequence.
    let pairs = |inner_first: bool| {
        let one = |q: usize, k: usize| if inner_first { product(q, 4, k) } else { product(q, k, 4) };
        (one(5, 5) + one(7, 7), one(4, 5) + one(2, 7))
    };
    match (config.family, op) {
        (Family::Gpt2, Op::Query | Op::Output) => 2.0 * product(tokens, 8, 8) + product(wanted, 8, 8),
        (Family::Gpt2, Op::Key | Op::Value) => 3.0 * product(tokens, 8, 8),
        (Family::Gpt2, Op::Scores) => 2.0 * (2.0 * pairs(true).0 + pairs(true).1),
        (Family::Gpt2, Op::Weighted) => 2.0 * (2.0 * pairs(false).0 + pairs(false).1),
        (Family::Gpt2, Op::Up) => 2.0 * product(tokens, 8, 32) + product(wanted, 8, 32),
        (Family::Gpt2, Op::Down) => 2.0 * product(tokens, 32, 8) + product(wanted, 32, 8),
        (Family::Gpt2, Op::Head) => product(wanted, 8, 11),
        (Family::Llama, Op::Query | Op::Output) => product(tokens, 12, 12) + product(wanted, 12, 12),
        (Family::Llama, Op::Key | Op::Value) => 2.0 * product(tokens, 12, 4),
        (Family::Llama, Op::Scores) => 3.0 * (pairs(true).0 + pairs(true).1),
        (Family::Llama, Op::Weighted) => 3.0 * (pairs(false).0 + pairs(false).1),
        (Family::Llama, Op::Gate | Op::Up) => product(tokens, 12, 20) + product(wanted, 12, 20),
        (Family::Llama, Op::Down) => product(tokens, 20, 12) + product(wanted, 20, 12),
        (Family::Llama, Op::Head) => product(wanted, 12, 13),
        (Family::Gpt2, Op::Gate) | (_, Op::Embedding | Op::Adapters) => 0.0,
    }
}

#[test]
fn a_pass_is_what_loops_count() {
    for config in [gpt2(), llama()] {
        let amount = Amount {
            tokens: 12.0,
            pairs: 74.0,
            last_rows: 6.0,
            last_pairs: 4.0 * 5.0 + 2.0 * 7.0,
            head_rows: 6.0,
        };
        let got = forward(&config, amount);
        for op in Op::ALL {
            assert_eq!(got.of(op), by_hand(&config, op), "{:?} {}", config.family, op.name());
        }
        let sum: f64 = Op::ALL.into_iter().map(|op| by_hand(&config, op)).sum();
        assert_eq!(got.total(), sum);
    }
}

#[test]
fn sums_by_operation_are_the_totals_that_benches_use() {
    for config in [gpt2(), llama(), SyntheticShape::SmolLm2.config()] {
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
        // Of sequences of one length it does not matter whose the rows are.
        let amount = Amount { tokens: 18.0, pairs: 108.0, last_rows: 5.0, last_pairs: 30.0, head_rows: 5.0 };
        close(pass(&config, &[6, 6, 6], 5), forward(&config, amount).total());

        let order = DecodingOrder::Random;
        let work = Decoding { batch: 3, length: 20, fixed: 4, steps: 9, order };
        let planned = work.planned(&config);
        close(generation(&config, 3, 20, 16, planned.nfe), planned.flops.total());
        close(9.0 * pass(&config, &[20; 3], 60), work.reference(&config).flops.total());

        for lora_rank in [None, Some(3)] {
            let attention = Attention::Full;
            let step = TrainingStep { batch: 2, length: 9, scored: 4, attention, lora_rank, recompute: true };
            let needed = step.work(&config).needed();
            let want = training(&config, &[9, 9], 8, lora_rank.is_none());
            close(needed.total() - needed.of(Op::Adapters), want);
            assert_eq!(needed.of(Op::Adapters) > 0.0, lora_rank.is_some());
        }
    }
}

#[test]
fn a_training_step_is_what_loops_count() {
    // Two sequences of 5 tokens, 3 of each scored; rank 2 on q, k, v, out, gate, up, down.
    let (config, tokens) = (llama(), 10);
    let attention = Attention::Full;
    let step = TrainingStep { batch: 2, length: 5, scored: 3, attention, lora_rank: None, recompute: false };
    let full = step.work(&config);
    // y = x W of [tokens, 12] and [12, 20]: dX = dY W^T, dW = X^T dY.
    assert_eq!(full.forward.of(Op::Up), 2.0 * product(tokens, 12, 20));
    assert_eq!(full.d_input.of(Op::Up), 2.0 * product(tokens, 20, 12));
    assert_eq!(full.d_weight.of(Op::Up), 2.0 * product(12, tokens, 20));
    assert_eq!(full.d_weight.of(Op::Head), product(12, 6, 13));
    // Per layer, sequence and head: dQ = dS K and dK = dS^T Q; dP = dO V^T and dV = P^T dO; S = Q K^T again.
    let heads = 2.0 * 2.0 * 3.0;
    assert_eq!(full.d_input.of(Op::Scores), heads * (product(5, 5, 4) + product(5, 5, 4)));
    assert_eq!(full.d_input.of(Op::Weighted), heads * (product(5, 4, 5) + product(5, 5, 4)));
    assert_eq!(full.recomputed.total(), heads * product(5, 4, 5));
    assert_eq!(full.d_weight.of(Op::Scores) + full.d_weight.of(Op::Weighted), 0.0);

    let linears = [(12, 12), (12, 4), (12, 4), (12, 12), (12, 20), (12, 20), (20, 12)];
    let adapted = TrainingStep { lora_rank: Some(2), ..step }.work(&config);
    let there: f64 =
        linears.iter().map(|&(i, o)| 2.0 * (product(tokens, i, 2) + product(tokens, 2, o))).sum();
    let again: f64 = linears.iter().map(|&(i, _)| 2.0 * product(tokens, i, 2)).sum();
    for part in [&adapted.forward, &adapted.d_input, &adapted.d_weight] {
        assert_eq!(part.of(Op::Adapters), there);
    }
    assert_eq!(adapted.recomputed.of(Op::Adapters), again);
    assert_eq!(adapted.d_weight.total(), there, "weights are not trained");

    // Everything but the down projections and the head a second time, the scores a third.
    let twice = TrainingStep { recompute: true, ..step }.work(&config).recomputed;
    let fixed = full.forward.of(Op::Head) + full.forward.of(Op::Down);
    assert_eq!(twice.total(), full.forward.total() - fixed + full.forward.of(Op::Scores));

    let causal = TrainingStep { attention: Attention::Causal, ..step }.work(&config);
    let seen: f64 = (1..=5).map(|keys| product(1, 4, keys)).sum();
    assert_eq!(causal.forward.of(Op::Scores), heads * seen);
}

/// The mean over drawn plans is the expected number, within four standard errors.
#[test]
fn expected_passes_are_those_of_drawn_plans() {
    const SEEDS: u64 = 400;
    for (steps, positions) in [(8_u32, 8_u32), (64, 31), (32, 127), (5, 200), (1, 9)] {
        let lengths: Vec<f64> = (0..SEEDS)
            .map(|seed| CommitPlan::draw(&Rng::new(seed), 0, 0..positions, 0..steps).unwrap().len() as f64)
            .collect();
        let n = SEEDS as f64;
        let mean = lengths.iter().sum::<f64>() / n;
        let variance = lengths.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
        let expected = expected_commit_steps(f64::from(steps), f64::from(positions));
        let error = (variance / n).sqrt().max(0.5 / n);
        assert!(
            (mean - expected).abs() < 4.0 * error,
            "T = {steps}, n = {positions}: {mean} {expected} {error}"
        );
    }
}

/// A batch reads the weights whenever one of its sequences commits something, and each sequence passes when it does itself.
#[test]
fn passes_of_a_batch_are_the_union_of_its_plans() {
    let work = Decoding { batch: 4, length: 12, fixed: 2, steps: 40, order: DecodingOrder::Random };
    let planned = work.planned(&gpt2());
    let (mut union, mut own, seeds) = (0, 0, 300);
    for seed in 0..seeds {
        let plans: Vec<CommitPlan> =
            (0..4).map(|s| CommitPlan::draw(&Rng::new(seed), s, 2..12, 0..40).unwrap()).collect();
        let steps: std::collections::BTreeSet<u32> =
            plans.iter().flat_map(|p| p.steps().map(|(step, _)| step)).collect();
        union += steps.len();
        own += plans.iter().map(CommitPlan::len).sum::<usize>();
    }
    // A standard deviation of such counts is below 3; of the mean of 300 below 0.2.
    assert!((union as f64 / seeds as f64 - planned.passes).abs() < 0.7, "{union} {}", planned.passes);
    assert!((own as f64 / (4.0 * seeds as f64) - planned.nfe).abs() < 0.35, "{own} {}", planned.nfe);
}

#[test]
fn what_is_saved_is_the_head_and_the_last_block() {
    let config = SyntheticShape::DiffuGptS.config();
    let work = Decoding { batch: 1, length: 512, fixed: 0, steps: 512, order: DecodingOrder::Random };
    let (reference, planned) = (work.reference(&config), work.planned(&config));
    // One row a position in place of one a position and step.
    let ratio = |op| reference.flops.of(op) / planned.flops.of(op);
    assert!((ratio(Op::Head) - 512.0).abs() < 1e-9);
    // 1 - 1/e of the steps commit something.
    assert!((planned.nfe / 512.0 - (1.0 - (-1.0_f64).exp())).abs() < 1e-3);
    assert!((ratio(Op::Key) - 512.0 / planned.nfe).abs() < 1e-9);
    let each = |x: &ByOp, y: &ByOp| Op::ALL.into_iter().all(|op| x.of(op) <= y.of(op));
    assert!(each(&planned.flops, &reference.flops) && each(&planned.weights, &reference.weights));
    // As many steps as positions: half of the logits with a confidence order.
    let ordered = Decoding { order: DecodingOrder::Confidence, ..work }.planned(&config);
    assert_eq!(ordered.nfe, 512.0);
    assert_eq!(
        ordered.flops.of(Op::Head) / reference.flops.of(Op::Head),
        512.0 * 513.0 / 2.0 / (512.0 * 512.0)
    );
}

fn lacuna(args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.env_remove("LACUNA_MODEL").env("HF_HUB_OFFLINE", "1").arg("flops").args(args).assert()
}

fn lines(args: &[&str]) -> Vec<Value> {
    let out = lacuna(args).success().stderr("");
    let text = String::from_utf8(out.get_output().stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} of {line}"))
}

#[test]
fn json_lines_add_up() {
    for extra in [
        &["--steps", "32"][..],
        &["--steps", "32", "--order", "confidence"],
        &["--train", "--lora-rank", "4"],
    ] {
        let mut args = vec!["--shape", "smollm2-135m", "--batch", "2", "--length", "64", "--json"];
        args.extend(extra);
        let lines = lines(&args);
        let (total, ops) = lines.split_last().expect("lines");
        assert_eq!(total["op"], "total");
        assert!(ops.len() >= 11, "{}", ops.len());
        for key in ["flops", "reference_flops", "share"] {
            let sum: f64 = ops.iter().map(|line| number(line, key)).sum();
            assert!((sum / number(total, key) - 1.0).abs() < 1e-9, "{key} {extra:?}");
        }
        assert!(lines.iter().all(|line| line["schema"] == 1));
        assert!(number(total, "saved") > 0.0);
    }
}

#[test]
fn a_table_for_people_says_what_is_saved() {
    let out = lacuna(&["--shape", "diffugpt-s", "--length", "128", "--steps", "128"]).success();
    let text = String::from_utf8(out.get_output().stdout.clone()).expect("UTF-8");
    for word in ["head", "scores QK^T", "99.2%", "(expected)", "Weights read, f32"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    let out = lacuna(&["--shape", "diffugpt-s", "--train", "--length", "128"]).success();
    let text = String::from_utf8(out.get_output().stdout.clone()).expect("UTF-8");
    assert!(text.contains("all rows scored 1.0000"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}

#[test]
fn what_cannot_be_counted_is_said() {
    let largest = usize::MAX.to_string();
    for (args, words) in [
        (&["--steps", "0"][..], "--steps 0"),
        (&["--batch", "0"], "--batch 0"),
        (&["--length", "0"], "--length 0"),
        (&["--length", "129"], "expected 1 to 128"),
        (&["--length", &largest], "expected 1 to 128"),
        (&["--length", "10", "--prompt", "10"], "--prompt 10"),
        (&["--shape", "gpt9"], "smollm2-135m"),
        (&["--order", "sideways"], "random or confidence"),
        (&["--dtype", "f8"], "bf16"),
        (&["--train", "--masked", "1.5"], "--masked 1.5"),
        (&["--train", "--masked", "nan"], "--masked"),
        (&["--train", "--lora-rank", "0"], "--lora-rank 0"),
        (&["--train", "--batch", "0"], "--batch 0"),
        (&["--masked", "0.5"], "--train"),
        (&["--train", "--steps", "4"], "--steps"),
    ] {
        lacuna(args).code(2).stdout("").stderr(contains(words));
    }
}

#[test]
fn numbers_as_large_as_can_be_typed_are_counted() {
    let largest = usize::MAX.to_string();
    let args = ["--shape", "diffullama-7b", "--batch", &largest, "--steps", &largest, "--json"];
    for order in ["random", "confidence"] {
        let lines = lines(&[&args[..], &["--order", order]].concat());
        let total = lines.last().expect("a line");
        assert!(number(total, "reference_flops") > 1e40 && number(total, "flops").is_finite());
        assert!(number(total, "nfe") <= 512.0);
    }
    let rank = ["--train", "--lora-rank", &largest, "--batch", &largest, "--json"];
    assert!(number(lines(&rank).last().expect("a line"), "flops").is_finite());
}
