//! `lacuna eval`: each task on the fixtures, with answers by hand where the model's likelihoods are known.

#[path = "support/eval.rs"]
mod eval;
#[path = "support/unigram.rs"]
mod unigram;

use std::path::Path;

use eval::{fails, fixture, lacuna, results, text, value};
use lacuna::io::{ModelFiles, TokenWriter};
use serde_json::{Value, json};

/// A model of known likelihoods in the vocabulary of the bundled one, in which `likely` have the given logits.
fn known(dir: &Path, likely: &[(&str, f32)]) -> (String, Vec<f64>) {
    let tokenizer = ModelFiles::bundled().unwrap().tokenizer.unwrap();
    let mut logits = vec![0.0; 1024];
    for (piece, logit) in likely {
        let ids = tokenizer.encode(piece).unwrap();
        assert_eq!(ids.len(), 1, "{piece:?} is one token");
        logits[ids[0] as usize] = *logit;
    }
    unigram::write(dir, &logits);
    (dir.to_str().unwrap().to_owned(), unigram::nll(&logits))
}

fn encode(piece: &str) -> Vec<u32> {
    ModelFiles::bundled().unwrap().tokenizer.unwrap().encode(piece).unwrap()
}

#[test]
fn nelbo_of_a_network_that_looks_at_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, nll) = known(&dir.path().join("m"), &[(" the", 4.0), (",", 2.0)]);
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "the king, the queen, and the crown\n").unwrap();
    let data = file.to_str().unwrap();
    let ids = encode("the king, the queen, and the crown\n");
    let sum: f64 = ids.iter().map(|&id| nll[id as usize]).sum();
    // From left to right it is the sum itself.
    let found = results(&["nelbo", "--data", data, "--model", &model, "--ar"]);
    let want = sum / ids.len() as f64;
    assert!((value(&found, "nats/token") - want).abs() < 1e-4, "{found:?} for {want}");
    assert!((value(&found, "perplexity") - want.exp()).abs() < 1e-2 * want.exp());
    let bits = sum / std::f64::consts::LN_2 / "the king, the queen, and the crown\n".len() as f64;
    assert!((value(&found, "bits/byte") - bits).abs() < 1e-4);
    // Characters that are cut between two sequences count once.
    let emoji = "\u{1f600}\u{1f680}\u{1f33b}".repeat(7);
    std::fs::write(dir.path().join("e.txt"), &emoji).unwrap();
    let path = dir.path().join("e.txt");
    let found =
        results(&["nelbo", "--data", path.to_str().unwrap(), "--model", &model, "--ar", "--length", "6"]);
    let ids = encode(&emoji);
    assert!(ids.len() > 21, "a character has several tokens");
    let bits =
        ids.iter().map(|&id| nll[id as usize]).sum::<f64>() / std::f64::consts::LN_2 / emoji.len() as f64;
    assert!((value(&found, "bits/byte") - bits).abs() < 1e-4, "{found:?} for {bits}");
    // Masked, it is that on average, whichever way times are drawn.
    for times in ["stratified", "independent"] {
        let found =
            results(&["nelbo", "--data", data, "--model", &model, "--draws", "3000", "--times", times]);
        assert!((value(&found, "nats/token") - want).abs() < 0.06 * want, "{times}: {found:?} for {want}");
        let (seen, all): (f64, f64) = (value(&found, "unweighted"), want);
        assert!((seen - all).abs() < 0.06 * all, "{times}: {seen} for {all}");
    }
}

#[test]
fn nelbo_takes_no_more_than_its_limit_and_leaves_out_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let (model, nll) = known(&folder, &[(" the", 4.0), (",", 2.0)]);
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-4, "{got} for {want}");
    // Behind the line that two sequences are from stands one that cannot be read.
    let file = dir.path().join("a.jsonl");
    std::fs::write(&file, "{\"text\": \"the king, the queen\"}\nno object\n").unwrap();
    let ids = encode("the king, the queen");
    assert!(ids.len() > 4, "{ids:?}");
    let args = |data: &Path| {
        ["eval", "nelbo", "--data", data.to_str().unwrap(), "--model", model.as_str(), "--length", "3"]
            .map(str::to_owned)
    };
    let of = |data: &Path, more: &[&str]| {
        let args = args(data);
        let mut all: Vec<&str> = args[1..].iter().map(String::as_str).collect();
        all.extend(more);
        results(&all)
    };
    let found = of(&file, &["--ar", "--limit", "2"]);
    assert_eq!(found[0]["items"], 2);
    close(value(&found, "nats/token"), ids[..4].iter().map(|&id| nll[id as usize]).sum::<f64>() / 4.0);
    fails(&args(&file).each_ref().map(String::as_str), 2, "line 2");

    // Sequences of a token file: the and a comma, the and the end of the text.
    let (the, comma) = (encode(" the")[0], encode(",")[0]);
    let tokens = dir.path().join("a.tok");
    let hash = *ModelFiles::bundled().unwrap().tokenizer.unwrap().sha256();
    let mut writer = TokenWriter::create(&tokens, 1024, 1, &hash).unwrap();
    writer.push(&[the, comma, the]).unwrap();
    writer.commit().unwrap();
    let nll = |id: u32| nll[id as usize];
    let found = of(&tokens, &["--ar", "--limit", "1"]);
    close(value(&found, "nats/token"), (nll(the) + nll(comma)) / 2.0);
    close(value(&found, "bits/byte"), (nll(the) + nll(comma)) / std::f64::consts::LN_2 / 5.0);
    // More than there is, without what says how many bytes a token has.
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let most = usize::MAX.to_string();
    let found = of(&tokens, &["--ar", "--limit", &most]);
    assert_eq!(found[0]["items"], 2);
    close(value(&found, "nats/token"), (2.0 * nll(the) + nll(comma) + nll(1)) / 4.0);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|r| r["metric"] != "bits/byte"), "{found:?}");
    // One draw does not tell what draws leave open.
    for (draws, told) in [("1", false), ("2", true)] {
        let args = args(&tokens);
        let mut all: Vec<&str> = args.iter().map(String::as_str).collect();
        all.extend(["--draws", draws]);
        let output = lacuna(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr).contains("the draws alone leave"), told, "{draws} draws");
        let table = text(&output.stdout);
        assert!(table.contains("nats/token") && !table.contains("bits/byte"), "{table}");
    }
}

#[test]
fn a_prompt_that_leaves_no_room_for_an_answer_is_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("q.jsonl");
    let question = format!("the{}", " the".repeat(99));
    let given = encode(&format!("Question: {question}\nAnswer:")).len();
    assert!((100..126).contains(&given), "{given} tokens of a context of 128");
    std::fs::write(&file, json!({"question": question, "answer": "#### 1"}).to_string()).unwrap();
    let args = ["eval", "gsm8k", "--data", file.to_str().unwrap(), "--form", "plain", "--steps", "2"];
    fails(&args, 2, "and 64 to be filled in");
    fails(&[&args[..], &["--too-long", "skip"]].concat(), 2, "0 items");
    for more in [&["--too-long", "truncate"], &["--length", "1"]] {
        let found = results(&[&args[1..], more.as_slice()].concat());
        assert_eq!(found[0]["items"], 1, "{more:?}");
    }
}

#[test]
fn comparisons_are_of_ratios_of_sums() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, first: f64| {
        let path = dir.path().join(name);
        let line = |id: &str, pair: [f64; 2]| {
            json!({"id": id, "steps": 4, "trial": 0, "metrics": {"perplexity": pair}}).to_string()
        };
        std::fs::write(&path, [line("1", [first, 1.0]), line("2", [6.0, 3.0])].join("\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let found = results(&["compare", &write("a.jsonl", 2.0), &write("b.jsonl", 4.0)]);
    assert_eq!((found.len(), &found[0]["metric"]), (1, &json!("log perplexity")));
    // 8 / 4 and 10 / 4; the items' own ratios have the means 2 and 3.
    assert_eq!((found[0]["a"].as_f64(), found[0]["b"].as_f64()), (Some(2.0), Some(2.5)));
    // Residuals of B over the mean denominator, (4 - 2.5) / 2 and (6 - 7.5) / 2, have sd sqrt(1.125); those of A are 0.
    assert!((found[0]["t"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{found:?}");
}

#[test]
fn numbers_in_lines_are_read_back_as_they_were_written() {
    // The results of a run that goes on are made of numbers that were read.
    for i in 1..20_000 {
        let number = f64::from(i).sqrt() / 7.0;
        let read: Value = serde_json::from_str(&json!([number, i]).to_string()).unwrap();
        assert_eq!(read[0].as_f64(), Some(number));
    }
}

#[test]
fn multiple_choice_by_known_likelihoods() {
    let dir = tempfile::tempdir().unwrap();
    let (model, nll) = known(&dir.path().join("m"), &[]);
    let mean = |piece: &str| {
        let ids = encode(piece);
        (ids.iter().map(|&id| nll[id as usize]).sum::<f64>(), ids.len())
    };
    let data = dir.path().join("q.jsonl");
    // All tokens are alike here: the option with the fewest tokens has the least sum, and all have the same mean.
    let (short, long) = (" I", " am not here at all");
    assert!(mean(short).1 < mean(long).1);
    let question = |options: [&str; 2], answer: usize| {
        serde_json::json!({"prefix": "Here", "choices": options, "answer": answer}).to_string()
    };
    let lines = [question([long, short], 1), question([short, long], 0), question([long, short], 0)];
    std::fs::write(&data, lines.join("\n")).unwrap();
    let data = data.to_str().unwrap();
    for scoring in [&["--ar"][..], &["--scoring", "elbo", "--levels", "64"]] {
        let found = results(&[&["mc", "--data", data, "--model", &model], scoring].concat());
        assert!((value(&found, "accuracy") - 2.0 / 3.0).abs() < 1e-9, "{scoring:?}: {found:?}");
    }
    // Under the paper's rule with T = 1 all options have one score.
    let found = results(&["mc", "--data", data, "--model", &model, "--levels", "1"]);
    let scores = value(&found, "margin").abs();
    assert!(scores < 1e-5, "{found:?}");
}

#[test]
fn every_form_of_multiple_choice_runs() {
    for (format, file, labels) in [
        ("hellaswag", "hellaswag.jsonl", None),
        ("winogrande", "winogrande.jsonl", None),
        ("siqa", "siqa.jsonl", Some("siqa-labels.lst")),
        ("piqa", "piqa.jsonl", Some("piqa-labels.lst")),
        ("plain", "choices.jsonl", None),
    ] {
        let data = fixture(file);
        let labels = labels.map(fixture);
        let mut args = vec!["mc", "--format", format, "--data", &data, "--levels", "2"];
        if let Some(labels) = &labels {
            args.extend(["--labels", labels]);
        }
        for more in [&[][..], &["--parity"], &["--scoring", "elbo"]] {
            if format == "plain" && more == ["--parity"] {
                continue;
            }
            let found = results(&[&args[..], more].concat());
            let accuracy = value(&found, "accuracy");
            assert!((0.0..=1.0).contains(&accuracy), "{format} {more:?}");
            assert_eq!(found[0]["better"], "higher");
        }
    }
}

#[test]
fn the_last_word_by_a_network_that_always_says_one_token() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) = known(&dir.path().join("m"), &[(" me", 9.0)]);
    let data = dir.path().join("l.txt");
    std::fs::write(
        &data,
        "he came and looked at me\nhe came and looked at him\nwhat do you want of me\nmore\tof me\n",
    )
    .unwrap();
    let data = data.to_str().unwrap();
    let found = results(&["lambada", "--data", data, "--model", &model]);
    assert!((value(&found, "accuracy") - 0.75).abs() < 1e-9, "{found:?}");
    assert_eq!((found[0]["items"].as_u64(), found[0]["nfe"].as_f64()), (Some(4), Some(1.0)));
    // Drawn as the released evaluator draws, it is as sure.
    let found = results(&["lambada", "--data", data, "--model", &model, "--parity", "--trials", "2"]);
    assert!((value(&found, "accuracy") - 0.75).abs() < 1e-9, "{found:?}");
}

#[test]
fn infilling_and_questions_by_a_network_that_always_says_one_token() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) = known(&dir.path().join("m"), &[(" you", 12.0)]);
    let data = dir.path().join("s.jsonl");
    let story =
        |third: &str| serde_json::json!({"sentences": ["A b.", "C d.", third, "E f.", "G h."]}).to_string();
    std::fs::write(&data, [story("you you you"), story("king")].join("\n")).unwrap();
    let found = results(&[
        "infill",
        "--format",
        "stories",
        "--data",
        data.to_str().unwrap(),
        "--model",
        &model,
        "--steps",
        "2",
    ]);
    // The first is filled by " you" times its tokens, of which three would be right; the second has no word in common.
    let tokens = encode(" you you you").len() as f64;
    let f1 = 2.0 * 3.0 / (tokens.max(3.0) + 3.0);
    assert!((value(&found, "rouge1") - f1 / 2.0).abs() < 1e-9, "{found:?} for {f1}");

    let data = dir.path().join("q.jsonl");
    let question = |answer: &str| serde_json::json!({"question": "Who", "answers": [answer]}).to_string();
    std::fs::write(&data, [question("you"), question("king")].join("\n")).unwrap();
    let found = results(&["qa", "--data", data.to_str().unwrap(), "--model", &model, "--length", "1"]);
    for metric in ["contains", "f1", "exact"] {
        assert!((value(&found, metric) - 0.5).abs() < 1e-9, "{metric}: {found:?}");
    }
}

#[test]
fn published_forms_run() {
    for args in [
        &["infill", "--format", "stories", "--data", &fixture("stories.csv"), "--steps", "4"][..],
        &["infill", "--format", "stories", "--data", &fixture("stories.csv"), "--parity"],
        &["qa", "--data", &fixture("squad.json")],
        &["qa", "--data", &fixture("triviaqa.json"), "--parity"],
        &["lambada", "--data", &fixture("lambada.txt")],
        &["gsm8k", "--data", &fixture("gsm8k.jsonl"), "--length", "12", "--steps", "3"],
        &[
            "gsm8k",
            "--data",
            &fixture("gsm8k-equations.json"),
            "--length",
            "12",
            "--samples",
            "3",
            "--parity",
        ],
        &["unconditional", "--samples", "3", "--length", "20", "--steps", "4", "--under", "bundled"],
    ] {
        let found = results(args);
        assert!(found.iter().all(|r| r["value"].as_f64().is_some_and(f64::is_finite)), "{args:?}: {found:?}");
        assert!(found.iter().all(|r| r["low"].as_f64() <= r["value"].as_f64()), "{args:?}: {found:?}");
    }
}

#[test]
fn a_card_gives_the_likelihoods_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "the king").unwrap();
    let args = ["nelbo", "--data", file.to_str().unwrap(), "--draws", "2", "--length", "8"];
    let [cpu, card] = ["cpu", "simt"].map(|device| results(&[&args[..], &["--device", device]].concat()));
    for metric in ["nats/token", "unweighted"] {
        let (a, b) = (value(&cpu, metric), value(&card, metric));
        assert!((a - b).abs() < 1e-3 * a, "{metric}: {a} and {b}");
    }
}
