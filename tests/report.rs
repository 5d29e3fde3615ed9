//! `lacuna report`: what the page holds, that nothing in a measurement can get out of its place, and that a browser shows it.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::str::contains;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report").join(name)
}

/// Of every kind there is.
fn every_kind() -> Vec<PathBuf> {
    ["bench.jsonl", "pytorch.jsonl", "profile.jsonl", "eval.jsonl", "training"].map(fixture).to_vec()
}

fn lacuna(runs: &[PathBuf], output: &Path) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("lacuna").expect("the binary is built");
    command.arg("report").args(runs).arg("--output").arg(output).assert()
}

/// The page of some runs.
fn page(runs: &[PathBuf]) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("report.html");
    lacuna(runs, &output).success().stdout("");
    let page = std::fs::read_to_string(&output).expect("the page");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing is left beside it");
    page
}

/// The page of lines.
fn page_of(lines: &[Value]) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("run.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, text).expect("written");
    page(&[file])
}

/// A figure of a page.
struct Figure {
    id: String,
    /// Data points.
    circles: usize,
    /// Lines that are neither grid nor axis.
    lines: usize,
    texts: Vec<String>,
}

/// All figures, each of whose drawings is well-formed, has a size and no number that is none.
fn figures(page: &str) -> Vec<Figure> {
    page.split("<figure id=\"")
        .skip(1)
        .map(|part| {
            let id = part.split('"').next().expect("an id").to_owned();
            let start = part.find("<svg ").unwrap_or_else(|| panic!("{id} has no drawing"));
            let svg = &part[start..start + part[start..].find("</svg>").expect("an end") + "</svg>".len()];
            let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{id}: {e}\n{svg}"));
            let root = document.root_element();
            let size = |name| root.attribute(name).and_then(|w| w.parse::<f64>().ok()).expect("a size");
            let (width, height) = (size("width"), size("height"));
            assert!(width > 0.0 && height > 0.0);
            for bad in ["NaN", "inf"] {
                assert!(!svg.contains(bad), "{bad} in {id}");
            }
            let of = |name: &'static str| root.descendants().filter(move |n| n.has_tag_name(name));
            for circle in of("circle") {
                let at = |name| circle.attribute(name).and_then(|x| x.parse::<f64>().ok()).expect("a place");
                assert!((0.0..=width).contains(&at("cx")) && (0.0..=height).contains(&at("cy")), "{id}");
            }
            let plain = ["#E1E1E1", "#282828"];
            let lines =
                of("polyline").filter(|n| !plain.contains(&n.attribute("stroke").unwrap_or_default()));
            let texts = of("text").map(|n| n.text().unwrap_or_default().trim().to_owned());
            Figure { id, circles: of("circle").count(), lines: lines.count(), texts: texts.collect() }
        })
        .collect()
}

fn find<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
    let ids: Vec<&str> = figures.iter().map(|f| f.id.as_str()).collect();
    figures.iter().find(|f| f.id == id).unwrap_or_else(|| panic!("{id} is not among {ids:?}"))
}

fn generate(steps: Value, batch: u32, rate: Value) -> Value {
    json!({"schema": 1, "bench": "generate", "name": "g", "model": "m", "device": "d", "batch": batch, "length": 64,
           "steps": steps, "order": "random", "tokens_per_s": rate})
}

#[test]
fn every_kind_of_run_has_its_figure_and_its_table() {
    let page = page(&every_kind());
    let figures = figures(&page);
    let marks = |id| find(&figures, id).circles;
    // 12 generations with T, one step, three kernels with operations, one training step.
    assert_eq!(marks("roofline-1"), 13 + 1 + 3 + 1);
    assert_eq!(marks("roofline-2"), 4, "PyTorch's");
    assert_eq!(marks("roofline-3"), 6 + 1, "operations that compute, and the total");
    assert_eq!(marks("speed-steps"), 12 + 4);
    assert_eq!(marks("speed-batch"), 4, "of one setting in four batches");
    assert_eq!(marks("latency"), 3 * 2 * 5);
    assert_eq!(marks("quality-1"), 5);
    assert_eq!(marks("quality-2"), 4);
    assert_eq!(marks("training"), 6, "validations");
    let texts = |id| find(&figures, id).texts.join("\n");
    for (id, words) in [
        ("roofline-1", vec!["operations per byte", "13.5 GB/s", "91 GFLOP/s", "attention_full"]),
        ("roofline-3", vec!["MLP down", "attention", "head"]),
        ("speed-steps", vec!["denoising steps T", "tokens per second", "8", "128"]),
        ("latency", vec!["p50", "p99", "max", "seconds"]),
        ("quality-1", vec!["NELBO, tinyshakespeare"]),
        ("training", vec!["step", "NELBO (nats per token)", "200"]),
    ] {
        for word in words {
            assert!(texts(id).lines().any(|text| text == word), "{word} in {id}: {}", texts(id));
        }
    }
    assert!(find(&figures, "training").lines >= 2, "each step, and smoothed");
    for table in [
        "Generations",
        "Kernels",
        "Profiles",
        "Evaluations",
        "Simulated serving",
        "Ceilings",
        "Training runs",
    ] {
        assert!(page.contains(&format!("<h3>{table}</h3>")), "{table}");
    }
    assert!(!page.contains("id=\"missing\""), "nothing is missing");
    for words in
        ["Lower is better", "Higher is better", "left to right (no T)", "61.2", "rows 128, 576 to 1536"]
    {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn the_page_needs_nothing_and_runs_nothing() {
    let page = page(&every_kind());
    for outside in ["<script", "src=", "href=\"http", "@import", "url(", "<link", "onload"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(page.contains("default-src 'none'"));
    // The name space of the drawings is the only address.
    let addresses = page.matches("http").count();
    assert_eq!(
        addresses,
        page.matches("http://www.w3.org/2000/svg").count() + page.matches("http-equiv").count()
    );
}

#[test]
fn what_is_missing_is_said_with_what_makes_it() {
    let page = page(&[fixture("eval.jsonl")]);
    assert_eq!(figures(&page).len(), 2);
    for words in ["id=\"missing\"", "Rooflines", "Latencies", "Training curves", "<code>lacuna adapt</code>"]
    {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn hostile_names_stay_words() {
    const HOSTILE: &str = "</script><svg onload=alert(1)>\"'&\u{0}\u{1b}[2J\u{202e}";
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("<img src=x onerror=alert(1)>.jsonl");
    let lines = [
        json!({"schema": 1, "bench": "generate", "name": HOSTILE, "model": HOSTILE, "device": HOSTILE, "order": HOSTILE,
               "who": HOSTILE, "commit": HOSTILE, "steps": 4, "batch": 1, "tokens_per_s": 3.0, "flops": 1e9, "bytes": 1e8,
               "median_s": 0.1}),
        json!({"schema": 1, "bench": "kernel", "kernel": HOSTILE, "stem": HOSTILE, "shape": HOSTILE, "device": HOSTILE,
               "flops": 1e9, "bytes": 1e8, "median_us": 5.0}),
        json!({"schema": 1, "bench": "serve-sim", "name": HOSTILE, "latency_s": {"p50": 1.0}, "model": {"a": HOSTILE}}),
        json!({"eval": HOSTILE, "steps": 4, "value": 1.0, "better": HOSTILE}),
        json!({"schema": 1, "profile": "op", "op": HOSTILE, "flops_per_s": 1e9, "intensity": 3.0, "bound": HOSTILE}),
        json!({"schema": 1, "bench": HOSTILE}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, text).expect("written");
    let page = page(&[file]);
    assert!(figures(&page).len() >= 4);
    let body = &page[page.find("<body>").expect("a body")..];
    for bad in ["<script", "</script", "<svg onload", "<img", "\u{0}", "\u{1b}", "\u{202e}"] {
        assert!(!body.contains(bad), "{bad:?} got through");
    }
    assert_eq!(body.matches("<svg ").count(), body.matches("<svg role=\"img\"").count());
    assert!(body.contains("&lt;svg onload=alert(1)&gt;"));
}

#[test]
fn a_file_without_a_measurement_is_an_error_that_names_the_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("report.html");
    for (text, words) in [
        ("", "line 1: measurement"),
        ("\n\nnot json\n", "line 3: measurement"),
        ("[1, 2]\n", "no object"),
        ("{\"a\": 1}\n", "no known kind"),
        ("{\"schema\": 2, \"bench\": \"generate\"}\n", "schema 2"),
        ("{\"bench\": \"juggling\"}\n", "juggling"),
        ("{\"step\": 1, \"loss\": \"x\"}\n", "line 1"),
        ("\u{0}\u{1}\u{2}", "line 1"),
    ] {
        let file = dir.path().join("run.jsonl");
        std::fs::write(&file, text).expect("written");
        lacuna(&[fixture("eval.jsonl"), file], &output).code(2).stdout("").stderr(contains(words));
        assert!(!output.exists());
    }
    std::fs::write(dir.path().join("bytes"), b"\xff\xfe\xff\n").expect("written");
    lacuna(&[dir.path().join("bytes")], &output).code(2).stderr(contains("utf-8"));
    lacuna(&[dir.path().to_path_buf()], &output).code(2).stderr(contains("log.jsonl"));
    lacuna(&[dir.path().join("absent")], &output).code(3).stderr(contains("absent"));
    lacuna(&[], &output).code(2);
}

#[test]
fn lines_that_cannot_be_used_are_told_beside_those_that_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, output) = (dir.path().join("run.jsonl"), dir.path().join("report.html"));
    let good = generate(json!(8), 1, json!(5.0));
    std::fs::write(&file, format!("{good}\n{{\"bench\": NaN}}\n{good}\n")).expect("written");
    lacuna(&[file], &output).success().stderr(contains("1 lines could not be used; the first: line 2"));
    let page = std::fs::read_to_string(output).expect("the page");
    assert!(page.contains("1 line could not be used; line 2"));
    assert_eq!(find(&figures(&page), "speed-steps").circles, 2);
}

#[test]
fn an_output_that_cannot_be_written_is_found_first() {
    let dir = tempfile::tempdir().expect("a folder");
    // The run is not there either: the output is looked at before.
    lacuna(&[dir.path().join("absent")], &dir.path().join("no/report.html"))
        .code(3)
        .stderr(contains("report.html"));
    lacuna(&[fixture("eval.jsonl")], dir.path()).code(3).stderr(contains("folder"));
    let own = dir.path().join("own.jsonl");
    std::fs::copy(fixture("eval.jsonl"), &own).expect("copied");
    lacuna(std::slice::from_ref(&own), &own).code(2).stderr(contains("one of the runs"));
    assert_eq!(std::fs::read(&own).expect("there"), std::fs::read(fixture("eval.jsonl")).expect("there"));
}

#[test]
fn numbers_that_are_none_are_left_out_of_the_figures() {
    let page = page_of(&[
        generate(json!(8), 1, json!(10.0)),
        generate(json!(null), 1, json!(10.0)),
        generate(json!(16), 1, json!(null)),
        generate(json!(0), 1, json!(3.0)),
        generate(json!(-4), 1, json!(3.0)),
        generate(json!(32), 1, json!(-3.0)),
        generate(json!("many"), 1, json!("NaN")),
        generate(json!(64), 1, json!(1e300)),
        json!({"schema": 1, "bench": "kernel", "kernel": "k", "flops": 0, "bytes": 10, "median_us": 0.0}),
        json!({"schema": 1, "bench": "kernel", "kernel": "k", "flops": 1e308, "bytes": 1e-300, "median_us": 1e-300}),
        json!({"schema": 1, "bench": "serve-sim", "latency_s": {"p50": null, "p90": -1.0}, "queue_s": 3}),
        json!({"eval": "e", "steps": 8, "value": null}),
        json!({"eval": "e", "steps": 8, "value": 1.0, "low": null, "high": 2.0}),
    ]);
    let figures = figures(&page);
    assert_eq!(find(&figures, "speed-steps").circles, 2);
    assert_eq!(find(&figures, "quality-1").circles, 1);
    assert!(figures.iter().all(|f| f.id != "latency"));
}

#[test]
fn one_point_or_equal_points_stand_in_the_figure() {
    for lines in [
        vec![generate(json!(8), 1, json!(10.0))],
        vec![generate(json!(8), 1, json!(10.0)); 3],
        vec![generate(json!(8), 1, json!(10.0)), generate(json!(9), 1, json!(10.0))],
    ] {
        let figures = figures(&page_of(&lines));
        let figure = find(&figures, "speed-steps");
        assert_eq!(figure.circles, lines.len());
        assert!(figure.texts.iter().any(|t| t == "8") && figure.texts.len() >= 4, "{:?}", figure.texts);
    }
    let step = |step: u64, nelbo: Value| {
        json!({"step": step, "examples": 1, "tokens": 1, "loss": nelbo, "unweighted": nelbo, "nelbo": nelbo, "lr": 0.1,
               "grad_norm": 1.0, "tokens_per_second": 2.0, "skipped": false})
    };
    assert!(find(&figures(&page_of(&[step(1, json!(2.5))])), "training").texts.len() > 3);
    // A run without one finite loss has no curve.
    assert!(figures(&page_of(&[step(1, json!(null)), step(2, json!(null))])).is_empty());
}

#[test]
fn ten_thousand_lines_are_a_page_of_sensible_size() {
    let line = |i: u32| generate(json!(1 + i % 500), 1, json!(1.0 + f64::from(i % 977)));
    let page = page_of(&(0..10_000).map(line).collect::<Vec<_>>());
    let figures = figures(&page);
    let marks = find(&figures, "speed-steps").circles;
    assert!((1000..=2000).contains(&marks), "{marks}");
    assert!(page.contains("of 10\u{202f}000 points are drawn"));
    assert!(page.len() < 1_000_000, "{}", page.len());
    // As many lines as measurements: the figure has the first few.
    let each = |i: u32| {
        let mut line = generate(json!(4), 1, json!(f64::from(i + 1)));
        line["model"] = json!(format!("model {i}"));
        line
    };
    let page = page_of(&(0..2000).map(each).collect::<Vec<_>>());
    assert_eq!(find(&self::figures(&page), "speed-steps").circles, 24);
    assert!(page.contains("more lines are in the table only"));
}

#[test]
fn runs_are_side_by_side_by_the_names_of_their_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let runs: Vec<PathBuf> = ["a", "b"]
        .into_iter()
        .map(|folder| {
            std::fs::create_dir(dir.path().join(folder)).expect("made");
            let file = dir.path().join(folder).join("run.jsonl");
            std::fs::write(&file, format!("{}\n", generate(json!(8), 1, json!(5.0)))).expect("written");
            file
        })
        .collect();
    let page = page(&runs);
    assert!(page.contains("run.jsonl (2)") && !page.contains(dir.path().to_str().expect("UTF-8")));
    assert_eq!(find(&figures(&page), "speed-steps").circles, 2);
}

/// `tools/look_at_report`, where a browser is set up.
fn look(page: &Path, flags: &[&str]) -> Option<Value> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/look_at_report");
    let out = std::process::Command::new("node").arg(&tool).arg(page).args(flags).output();
    let out = match out {
        Ok(out) if out.status.code() != Some(3) => out,
        _ => {
            println!("skipped: no browser; tools/look_at_report setup fetches one");
            return None;
        }
    };
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}\n{errors}")))
}

#[test]
fn a_browser_shows_all_of_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("report.html");
    lacuna(&every_kind(), &output).success();
    let written = figures(&std::fs::read_to_string(&output).expect("the page"));
    for flags in [&[][..], &["--dark"], &["--width", "420"], &["--print"]] {
        let Some(seen) = look(&output, flags) else { return };
        assert_eq!(seen["problems"], json!([]), "{flags:?}");
        let shown = seen["figures"].as_array().expect("figures");
        assert_eq!(shown.len(), written.len());
        for (shown, written) in shown.iter().zip(&written) {
            assert_eq!(shown["id"], *written.id);
            assert_eq!(shown["marks"], written.circles);
            let size = |key: &str| shown["svg"][key].as_f64().expect("a size");
            assert!(size("width") > 100.0 && size("height") > 50.0, "{shown}");
        }
        assert_eq!(seen["overflow"], 0);
        assert!(seen["screenshot"]["colours"].as_u64().expect("a count") > 20);
    }
}
