//! `lacuna bench`: every line has the keys that docs/benchmarks.md documents, numbers agree with one another and with a clock
//! outside, comparisons and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::{Value, json};

fn lacuna(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_remove("LACUNA_MODEL").env_remove("LACUNA_DEVICE");
    command.output().expect("the program runs")
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The lines of a run with `--json`.
fn lines(line: &str) -> Vec<Value> {
    let output = lacuna(&[&["bench"], &words(line)[..], &["--json"]].concat());
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("an object")).collect()
}

/// Exits with `code` and says `words` in one line on standard error.
fn fails(args: &[&str], code: i32, words: &str) {
    let output = lacuna(&[&["bench"], args].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(words), "{args:?}: {message}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
}

/// The table of keys of the document: each key, and the lines that have it.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let document = include_str!("../docs/benchmarks.md");
    let (_, table) = document.split_once("| key | lines | |\n").expect("the table of keys");
    let rows = table.lines().skip(1).take_while(|l| l.starts_with('|'));
    let mut keys = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for key in cells[1].split(", ") {
            let of = match cells[2] {
                "all" => "kernel, step, generate, train, serve-sim, ceiling",
                "all but ceiling" => "kernel, step, generate, train, serve-sim",
                other => other,
            };
            let of = of.split(", ").map(str::to_owned).collect();
            assert!(keys.insert(key.trim_matches('`').to_owned(), of).is_none(), "{key} is there twice");
        }
    }
    keys
}

/// Every kind of line, on small work.
const ALL: [&str; 6] = [
    "kernels --quick",
    "step --shape tiny-llama --length 8,16 -T 4 --batch 2 --repeat 2",
    "generate --shape tiny-gpt2 --length 9 -T 3 --batch 1,2 --order random,confidence,ar --repeat 2",
    "generate -T 4 --length 24 --batch 3 --repeat 2",
    "train --shape tiny-llama --length 8 --batch 2 --repeat 3 --warmup 1",
    "serve-sim --shape tiny-gpt2 --requests 6 --rate 200 --length 8,16 -T 4 --max-batch 2",
];

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"))
}

/// What must hold between the numbers of a line.
fn check_numbers(line: &Value) {
    let close = |a: f64, b: f64, what: &str| assert!((a / b - 1.0).abs() < 1e-9, "{what}: {a} {b} in {line}");
    let of = |key: &str| number(line, key);
    if line["bench"] == "ceiling" {
        let rate = if line["name"] == "copy" { "bytes_per_s" } else { "flops_per_s" };
        assert!(of(rate) > 1e6, "{line}");
        return;
    }
    let seconds: Vec<f64> =
        line["seconds"].as_array().expect("runs").iter().map(|s| s.as_f64().unwrap()).collect();
    assert_eq!(seconds.len() as f64, of("runs"));
    close(seconds.iter().sum(), of("wall_s"), "wall_s");
    assert!(of("min_s") <= of("median_s") && of("median_s") <= of("max_s"), "{line}");
    for (rate, amount) in [
        ("tokens_per_s", "tokens"),
        ("tokens_raw_per_s", "tokens_raw"),
        ("flops_per_s", "flops"),
        ("bytes_per_s", "bytes"),
    ] {
        if line[amount].as_f64().is_some_and(|n| n > 0.0) {
            close(of(rate) * of("median_s"), of(amount), rate);
        }
    }
    if line["roofline_share"].is_number() {
        let flops = line["flops"].as_f64().unwrap_or(0.0) / of("ceiling_flops_per_s");
        let bytes = line["bytes"].as_f64().unwrap_or(0.0) / of("ceiling_bytes_per_s");
        close(of("roofline_share"), flops.max(bytes) / of("median_s"), "roofline_share");
        assert_eq!(line["bound"], if flops > bytes { "compute" } else { "memory" }, "{line}");
    }
    if line["bench"] == "kernel" {
        close(of("median_us"), 1e6 * of("median_s"), "median_us");
        return;
    }
    assert!(of("tokens") <= of("tokens_raw") && of("flops") > 0.0 && of("bytes") > 0.0, "{line}");
    if line["nfe"].is_number() {
        let samples = if line["bench"] == "serve-sim" { of("requests") } else { of("batch") };
        close(of("tokens_per_forward") * of("nfe") * samples, of("tokens"), "tokens_per_forward");
    }
    if line["bench"] == "serve-sim" {
        close(of("requests_per_s") * of("median_s"), of("requests"), "requests_per_s");
        for part in ["p50", "p90", "p95", "p99", "max", "mean"] {
            let [latency, queue] = ["latency_s", "queue_s"].map(|key| line[key][part].as_f64().expect(part));
            assert!(latency > queue && queue >= 0.0, "{part}: {line}");
        }
    }
}

#[test]
fn lines_have_the_documented_keys_and_numbers_that_agree() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    for command in ALL {
        let found = lines(command);
        let measured = found.iter().filter(|l| l["bench"] != "ceiling").count();
        assert_eq!(found.len() - measured, 2, "{command}");
        let names: BTreeSet<&str> = found.iter().map(|l| l["name"].as_str().expect("a name")).collect();
        assert_eq!(names.len(), found.len(), "{command}: a name is there twice");
        for line in &found {
            let bench = line["bench"].as_str().expect("a bench");
            let keys: Vec<&String> = line.as_object().expect("an object").keys().collect();
            let expected: BTreeSet<&String> =
                documented.iter().filter(|(_, of)| of.contains(bench)).map(|(key, _)| key).collect();
            assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), expected, "{command}: {bench}");
            assert_eq!(
                (&line["schema"], &line["who"], &line["dtype"]),
                (&1.into(), &"lacuna".into(), &"f32".into())
            );
            assert!(line["threads"].as_u64().is_some_and(|n| n > 0), "{line}");
            check_numbers(line);
            seen.insert(bench.to_owned());
        }
    }
    let kinds: BTreeSet<String> = documented.values().flatten().cloned().collect();
    assert_eq!(seen, kinds);
}

#[test]
fn work_is_what_was_asked_for() {
    let found = lines(
        "generate --shape tiny-llama --length 9 -T 3,20 --batch 2 --order random,ar --repeat 2 --no-ceilings",
    );
    let what: Vec<_> =
        found.iter().map(|l| (l["order"].as_str(), l["steps"].as_u64(), l["tokens_raw"].as_u64())).collect();
    let (random, ar) = (Some("random"), Some("ar"));
    assert_eq!(what, [(random, Some(3), Some(16)), (random, Some(20), Some(16)), (ar, None, Some(16))]);
    // A token a pass; no more passes than steps or tokens.
    assert!(found[0]["nfe"].as_f64() <= Some(3.0) && found[1]["nfe"].as_f64() <= Some(8.0));
    assert_eq!(found[2]["nfe"], 8.0);
    assert!(found.iter().all(|l| l["roofline_share"].is_null() && l["shape"] == "tiny-llama"));
    // The old name and the old flag.
    let old = lines("denoise --shape tiny-llama --length 9 --ar --repeat 1 --no-ceilings");
    assert_eq!(
        (&old[0]["bench"], &old[0]["order"], &old[0]["runs"]),
        (&"generate".into(), &"ar".into(), &1.into())
    );

    let step = lines(
        "step --shape tiny-llama --length 16 -T 1,16 --order random,confidence --repeat 2 --no-ceilings",
    );
    let of = |order: &str, steps: u64| {
        step.iter().find(|l| l["order"] == order && l["steps"] == steps).expect("a line")
    };
    assert!(step.iter().all(|l| l["masked"] == 8 && l["nfe"] == 1.0));
    assert_eq!((&of("random", 1)["tokens"], &of("confidence", 1)["tokens"]), (&8.into(), &8.into()));
    assert_eq!(of("confidence", 16)["tokens"], 1);
    // The head is needed on all masked rows, or on those that are committed.
    let flops = |order: &str| number(of(order, 16), "flops") / number(of(order, 1), "flops");
    assert!(flops("random") < 0.9 && flops("confidence") == 1.0, "{step:?}");

    let train = lines(
        "train --shape tiny-gpt2 --length 8 --batch 2 --masked 0.25 --repeat 2 --lora-rank 2 --no-ceilings",
    );
    assert_eq!(
        (&train[0]["masked"], &train[0]["lora_rank"], &train[0]["tokens"]),
        (&4.into(), &2.into(), &16.into())
    );
}

#[test]
fn a_trace_of_requests_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.jsonl");
    let path = path.to_str().expect("UTF-8");
    std::fs::write(
        path,
        "{\"at\": 0.3, \"length\": 8}\n\n{\"at\": 0, \"length\": 16, \"steps\": 2, \"order\": \"ar\"}\n",
    )
    .expect("written");
    let found = lines(&format!("serve-sim --shape tiny-gpt2 --trace {path} -T 3 --no-ceilings"));
    let line = &found[0];
    assert_eq!(
        (&line["requests"], &line["tokens_raw"], &line["order"]),
        (&2.into(), &22.into(), &Value::Null)
    );
    // In real time.
    assert!(number(line, "median_s") >= 0.3, "{line}");
    for (content, words) in [
        ("{\"at\": 0}\n", "trace.jsonl:1: line: expected"),
        ("{\"at\": 0, \"length\": 8}\n{\"at\": -1, \"length\": 8}\n", "trace.jsonl:2: at: expected"),
        ("{\"at\": 0, \"length\": 8, \"steps\": 0}\n", "steps: expected 1 or more"),
        ("{\"at\": 0, \"length\": 8, \"order\": \"best\"}\n", "order: expected random"),
        ("\n", "expected at least one line"),
    ] {
        std::fs::write(path, content).expect("written");
        fails(&["serve-sim", "--shape", "tiny-gpt2", "--trace", path], 2, words);
    }
    // All at once, in rounds of two.
    let found = lines(
        "serve-sim --shape tiny-gpt2 --requests 5 --rate 0 --max-batch 2 --length 8 -T 2 --no-ceilings",
    );
    assert_eq!((&found[0]["requests"], &found[0]["rate_per_s"]), (&5.into(), &Value::Null));
    assert!(found[0]["queue_s"]["max"].as_f64() > Some(0.0), "{found:?}");
}

#[test]
fn csv_and_files_and_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let run = |command: &str, more: &[&str]| {
        let output = lacuna(&[&["bench"], &words(command)[..], more].concat());
        assert!(output.status.success(), "{command} {more:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let mut columns = Vec::new();
    for command in ALL {
        let out = run(command, &["--format", "csv"]);
        let mut reader = csv::Reader::from_reader(out.as_bytes());
        let head: Vec<String> = reader.headers().expect("a head").iter().map(str::to_owned).collect();
        assert!(columns.is_empty() || columns == head, "{command}: other columns");
        columns = head;
        let rows: Vec<csv::StringRecord> =
            reader.records().collect::<Result<_, _>>().expect("rows as long as the head");
        assert!(rows.len() > 2, "{command}");
    }
    // The columns are the documented keys; an object is a column a part.
    let keys: BTreeSet<String> =
        columns.iter().map(|c| c.split('.').next().unwrap_or(c).to_owned()).collect();
    assert_eq!(keys, documented().into_keys().collect());

    let small = "generate --shape tiny-gpt2 --length 9 -T 2 --repeat 1";
    for (name, begins) in [("a.csv", "schema,bench,"), ("a.jsonl", "{\"schema\":1,"), ("a.txt", "cpu, ")] {
        let path = at(name);
        assert_eq!(run(small, &["--output", &path]), "", "{name}");
        let written = std::fs::read_to_string(&path).expect("written");
        assert!(written.starts_with(begins), "{name}: {written}");
        assert_eq!(
            written.lines().count(),
            [("a.csv", 4), ("a.jsonl", 3), ("a.txt", 4)].iter().find(|(n, _)| *n == name).expect("known").1
        );
    }
    let table = run(small, &[]);
    for words in
        ["ceilings: matrix product", "tokens/s", "roofline", "generate tiny-gpt2, 1 x 9, T = 2, random"]
    {
        assert!(table.contains(words), "{words} in {table}");
    }
}

/// Made-up measurements.
fn write(path: &Path, measurements: &[(&str, &[f64], &str)]) -> String {
    let of = |(name, seconds, device): &(&str, &[f64], &str)| {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        json!({"schema": 1, "bench": "step", "name": name, "device": device, "median_s": sorted[sorted.len() / 2], "seconds": seconds})
            .to_string()
            + "\n"
    };
    std::fs::write(path, measurements.iter().map(of).collect::<String>()).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn comparisons() {
    let folder = tempfile::tempdir().expect("a folder");
    let steady: &[f64] = &[1.0, 1.01, 0.99, 1.0, 1.0];
    let slow: &[f64] = &[1.2, 1.21, 1.19, 1.2, 1.2];
    let wild: &[f64] = &[0.6, 1.9, 1.2, 0.7, 1.8];
    let before = write(
        &folder.path().join("before.jsonl"),
        &[("a", steady, "cpu"), ("b", slow, "cpu"), ("c", steady, "cpu"), ("gone", steady, "cpu")],
    );
    let after = write(
        &folder.path().join("after.jsonl"),
        &[("new", steady, "cpu"), ("a", slow, "card"), ("b", steady, "cpu"), ("c", wild, "cpu")],
    );
    let compare = |more: &[&str]| {
        let output = lacuna(&[&["bench", "compare", &before, &after], more].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = compare(&[]);
    assert_eq!(code, Some(9), "{err}");
    assert!(err.contains("1 of 3 measurements are slower by more than a factor of 1.05"), "{err}");
    assert!(err.contains("warning: not the same in both files: device \"cpu\" and \"card\""), "{err}");
    let line = |name: &str| {
        out.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{out}")).to_owned()
    };
    assert!(line("a").contains("1.200 (") && line("a").ends_with("slower"), "{out}");
    assert!(line("b").contains("0.833 (") && line("b").ends_with("faster"), "{out}");
    assert!(line("c").contains("1.200 (") && line("c").ends_with("same"), "{out}");
    assert!(out.contains("before.jsonl: gone") && out.contains("after.jsonl: new"), "{out}");
    assert!(!out.contains('\u{1b}'), "colours where there is no terminal: {out}");
    // A higher threshold, and the same again.
    let (code, again, _) = compare(&["--threshold", "1.25"]);
    assert_eq!(code, Some(0));
    assert!(again.lines().all(|l| !l.ends_with("slower")), "{again}");
    assert_eq!(compare(&[]).1, out, "not the same twice");
    let (code, out, _) = compare(&["--json"]);
    assert_eq!(code, Some(9));
    let objects: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).expect("an object")).collect();
    let of = |name: &str| objects.iter().find(|l| l["name"] == name).expect(name);
    let (ratio, low, high) = (number(of("a"), "ratio"), number(of("a"), "low"), number(of("a"), "high"));
    assert!((ratio - 1.2).abs() < 1e-9 && 1.15 < low && low <= ratio && ratio <= high && high < 1.25);
    assert!(number(of("c"), "low") < 1.0 && of("c")["verdict"] == "same");
    assert_eq!((&of("gone")["only"], &of("new")["only"]), (&"before".into(), &"after".into()));
    assert_eq!(objects.last().expect("the failure")["code"], 9);
    let same = lacuna(&["bench", "compare", &before, &before]);
    assert_eq!((same.status.code(), text(&same.stderr)), (Some(0), String::new()));
}

#[test]
fn comparisons_that_cannot_be_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let good = write(&path("good.jsonl"), &[("a", &[1.0], "cpu")]);
    let other = write(&path("other.jsonl"), &[("z", &[1.0], "cpu")]);
    fails(&["compare", &good, &other], 2, "expected at least one of the same bench and name");
    fails(&["compare", &good, "not-there.jsonl"], 3, "not-there.jsonl");
    fails(&["compare", &good, &good, "--threshold", "0.5"], 2, "--threshold 0.5");
    fails(&["compare", &good, &good, "--threshold", "nan"], 2, "--threshold NaN");
    for (content, words) in [
        ("", "expected at least one line with a time"),
        ("no JSON\n", "bad.jsonl:1: line: expected a JSON object"),
        ("[1]\n", "bad.jsonl:1: line: expected a JSON object"),
        ("{\"bench\": \"step\", \"name\": \"a\", \"median_s\": 1}\n", "schema: expected 1, got null"),
        ("{\"schema\": 1, \"bench\": \"step\", \"median_s\": 1}\n", "name: expected a string"),
        (
            "{\"schema\": 1, \"bench\": \"step\", \"name\": \"a\", \"median_s\": 0}\n",
            "median_s: expected seconds above 0",
        ),
        (
            "{\"schema\": 1, \"bench\": \"step\", \"name\": \"a\", \"median_s\": 1, \"seconds\": [1, -1]}\n",
            "seconds: expected",
        ),
        (
            "{\"schema\": 1, \"bench\": \"step\", \"name\": \"a\", \"median_s\": 1}\n{\"schema\": 1, \"bench\": \"step\", \"name\": \"a\", \"median_s\": 1}\n",
            "bad.jsonl:2: name: expected one that is there once",
        ),
        (
            "{\"schema\": 1, \"bench\": \"ceiling\", \"name\": \"copy\"}\n",
            "expected at least one line with a time",
        ),
    ] {
        std::fs::write(path("bad.jsonl"), content).expect("written");
        let bad = path("bad.jsonl");
        fails(&["compare", &good, bad.to_str().expect("UTF-8")], 2, words);
    }
}

#[test]
fn what_is_refused() {
    for (line, code, says) in [
        ("generate --shape gpt5", 2, "diffugpt-s"),
        ("generate --steps 0", 2, "--steps 0"),
        ("generate --length 0", 2, "--length 0"),
        ("generate --length 1", 2, "--length 1: expected 2 to 128"),
        ("generate --length 12,129", 2, "--length 129: expected 2 to 128"),
        ("generate --batch 0", 2, "--batch 0"),
        ("generate --repeat 0", 2, "--repeat 0"),
        ("generate --order best", 2, "best"),
        ("generate --length=", 2, "length"),
        ("generate --length 8,,9", 2, "length"),
        ("generate --batch -1", 2, "-1"),
        ("generate --batch 99999999999999999999", 2, "99999999999999999999"),
        ("generate --batch 1000000000000 --length 64", 2, "--batch 1000000000000"),
        ("generate --shape tiny-gpt2 --batch 60000000 --length 64", 7, "would fit"),
        ("generate --top-p 0 --shape tiny-gpt2 --length 8", 2, "top"),
        ("generate --device abacus", 2, "expected cpu"),
        ("generate --output /not/there.csv", 3, "/not/there.csv"),
        ("generate --format xml", 2, "xml"),
        ("step --order ar", 2, "bench generate"),
        ("step --steps 0", 2, "--steps 0"),
        ("step --length 1", 2, "--length 1"),
        ("train --masked 1.5", 2, "--masked 1.5"),
        ("train --length 0", 2, "--length 0"),
        ("serve-sim --rate -1", 2, "-1"),
        ("serve-sim --rate=nan", 2, "--rate NaN"),
        ("serve-sim --requests 0", 2, "--requests 0"),
        ("serve-sim --max-batch 0", 2, "--max-batch 0"),
        ("serve-sim --rate 0.001 --duration 0", 2, "--duration"),
        ("serve-sim --trace not-there.jsonl", 3, "not-there.jsonl"),
        ("kernels --output /not/there", 3, "/not/there"),
        ("kernels --device abacus", 2, "expected cpu"),
        ("kernels --filter abacus --no-ceilings", 2, "--filter abacus: no kernel file"),
    ] {
        fails(&words(line), code, says);
    }
}

/// Two runs that differ in how often they measure differ by the seconds that they report. Generous: the machine may have other
/// things to do; docs/benchmarks.md has the agreement on a quiet one.
#[test]
fn reported_seconds_are_those_of_a_clock_outside() {
    let timed = |repeat: usize| {
        let start = Instant::now();
        let found = lines(&format!("generate --length 64 -T 16 --batch 4 --repeat {repeat} --no-ceilings"));
        (start.elapsed().as_secs_f64(), number(&found[0], "wall_s"))
    };
    let (few, many) = (timed(1), timed(9));
    let (outside, inside) = (many.0 - few.0, many.1 - few.1);
    assert!(outside > 0.3 * inside && outside < 3.0 * inside, "{outside} s outside, {inside} s reported");
    // No run of the program is shorter than what it says it measured.
    assert!(few.0 > few.1 && many.0 > many.1);
}
