//! `--trace FILE`: the recording of a run as a page (`.html`) or as data (`.jsonl`).
//!
//! A `.jsonl` trace holds, for each sample, a line `{"type": "header", ...}` (model, seed, T, the
//! canvas with `null` where it is filled in, and the text of every token that occurs), a line
//! `{"type": "step", ...}` for each step that committed anything, and a line `{"type": "result",
//! ...}` with what `--json` prints, or `{"type": "error", ...}`. A `.html` trace is one page that
//! needs nothing but a browser.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::record::decimal;
use super::sampling::order_name;
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::sample::{Request, Trace};

/// The form of a trace, by the file's ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Html,
    Jsonl,
}

impl Form {
    /// The form that `path` asks for.
    ///
    /// # Errors
    /// [`Error::Request`] for an ending other than `.html`, `.htm`, `.jsonl`.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("html" | "htm") => Ok(Form::Html),
            Some("jsonl") => Ok(Form::Jsonl),
            _ => Err(Error::request(format!(
                "--trace {}: expected a name that ends in .html (a page) or .jsonl (data)",
                path.display()
            ))),
        }
    }
}

/// One recorded sample.
pub struct Run {
    pub label: String,
    pub request: Request,
    pub trace: Trace,
    /// What `--json` prints for the sample, or an object with `error`.
    pub result: Value,
}

/// A trace to be written.
pub struct Recording<'a> {
    pub model: &'a str,
    pub runs: &'a [Run],
    /// Spells a token.
    pub piece: &'a dyn Fn(u32) -> String,
    /// Whether a token is a special one, shown apart from text.
    pub special: &'a dyn Fn(u32) -> bool,
}

#[derive(Serialize)]
struct PageStep<'a> {
    step: usize,
    nfe: usize,
    committed: Vec<(u32, u32, f32)>,
    remasked: &'a [u32],
}

impl Recording<'_> {
    /// Writes the recording to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Form::of`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = match Form::of(path)? {
            Form::Html => self.html(),
            Form::Jsonl => self.jsonl(),
        };
        let mut file = AtomicFile::create(path)?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e))?;
        file.commit()
    }

    /// The text of every token that occurs in `trace`.
    fn pieces(&self, trace: &Trace) -> BTreeMap<u32, String> {
        let given = trace.given().iter().flatten().copied();
        let drawn = trace.steps().iter().flat_map(|s| &s.committed).map(|c| c.token);
        given.chain(drawn).map(|id| (id, (self.piece)(id))).collect()
    }

    /// The recording as JSON lines.
    pub fn jsonl(&self) -> String {
        let mut out = String::new();
        let mut line = |value: Value| {
            out.push_str(&value.to_string());
            out.push('\n');
        };
        for (sample, run) in self.runs.iter().enumerate() {
            let r = &run.request;
            line(json!({
                "type": "header", "sample": sample, "lacuna": env!("CARGO_PKG_VERSION"), "model": self.model,
                "seed": r.seed, "sequence": r.sequence, "steps": run.trace.total_steps(), "order": order_name(r),
                "temperature": decimal(r.temperature), "top_p": decimal(r.top_p), "top_k": r.top_k, "canvas": run.trace.given(),
                "fixed": r.canvas.fixed(), "pieces": self.pieces(&run.trace),
            }));
            for step in run.trace.steps() {
                let mut value = json!({"type": "step", "sample": sample});
                merge(&mut value, serde_json::to_value(step).unwrap_or(Value::Null));
                line(value);
            }
            let kind = if run.result.get("error").is_some() { "error" } else { "result" };
            let mut value = json!({"type": kind, "sample": sample});
            merge(&mut value, run.result.clone());
            line(value);
        }
        out
    }

    /// The recording as a page.
    pub fn html(&self) -> String {
        let runs: Vec<Value> = self.runs.iter().map(|run| self.page_run(run)).collect();
        let data = json!({"model": self.model, "lacuna": env!("CARGO_PKG_VERSION"), "runs": runs});
        // Inside a script element nothing but `<` could end the data early.
        let data = data.to_string().replace('<', "\\u003c");
        let title = self.model.replace('&', "&amp;").replace('<', "&lt;");
        let page = include_str!("trace_page.html");
        match page.split_once("{{DATA}}") {
            Some((head, tail)) => [&head.replace("{{TITLE}}", &title), data.as_str(), tail].concat(),
            None => page.to_owned(),
        }
    }

    fn page_run(&self, run: &Run) -> Value {
        let (r, trace) = (&run.request, &run.trace);
        let steps: Vec<PageStep<'_>> = trace
            .steps()
            .iter()
            .map(|s| PageStep {
                step: s.step,
                nfe: s.nfe,
                committed: s.committed.iter().map(|c| (c.position, c.token, c.log_prob)).collect(),
                remasked: &s.remasked,
            })
            .collect();
        let pieces = self.pieces(trace);
        let special: Vec<u32> = pieces.keys().copied().filter(|&id| (self.special)(id)).collect();
        json!({
            "label": run.label, "seed": r.seed, "order": order_name(r), "temperature": decimal(r.temperature), "top_p": decimal(r.top_p),
            "total": trace.total_steps(), "canvas": trace.given(), "pieces": pieces, "special": special,
            "steps": steps, "revised": trace.revised(), "result": run.result,
        })
    }
}

/// Adds the fields of one object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Canvas, Commit, Step};

    fn recorded() -> (Request, Trace) {
        let canvas = Canvas::prefix(&[7], 2);
        let mut trace = Trace::new(&canvas);
        for (n, position, token) in [(1, 1, 4), (3, 2, 5)] {
            trace.record(&Step {
                request: 0,
                step: n,
                steps: 3,
                nfe: n,
                canvas: &[],
                masked: &[],
                committed: &[Commit { position, token, log_prob: -0.25 }],
                remasked: &[],
            });
        }
        (Request::new(canvas), trace)
    }

    fn with(result: Value, check: impl FnOnce(&Recording<'_>)) {
        let (request, trace) = recorded();
        let run = Run { label: "sample 1".into(), request, trace, result };
        check(&Recording {
            model: "a & <b>",
            runs: &[run],
            piece: &|id| if id == 4 { "</script><!--".into() } else { format!("<{id}>") },
            special: &|id| id == 7,
        });
    }

    #[test]
    fn jsonl_has_header_steps_and_result() {
        with(json!({"text": "x", "tokens": 2}), |recording| {
            let text = recording.jsonl();
            let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let kinds: Vec<_> = lines.iter().map(|l| l["type"].as_str().unwrap()).collect();
            assert_eq!(kinds, ["header", "step", "step", "result"]);
            assert_eq!(lines[0]["canvas"], json!([7, null, null]));
            assert_eq!(lines[0]["fixed"], json!([true, false, false]));
            assert_eq!(lines[0]["pieces"]["5"], "<5>");
            assert_eq!(lines[0]["steps"], 3);
            assert_eq!(lines[2]["committed"], json!([{"position": 2, "token": 5, "log_prob": -0.25}]));
            assert_eq!(lines[3]["tokens"], 2);
        });
        with(json!({"error": "interrupted"}), |recording| {
            assert!(recording.jsonl().lines().last().unwrap().contains(r#""type":"error""#));
        });
    }

    #[test]
    fn page_is_self_contained_and_tokens_cannot_end_the_script() {
        with(json!({"text": "x", "end": 3}), |recording| {
            let page = recording.html();
            assert!(!page.contains("{{"), "a placeholder is left");
            assert!(page.contains("<title>lacuna: a &amp; &lt;b></title>"));
            assert_eq!(page.matches("</script>").count(), 2);
            for outside in ["http://", "https://", "src=", "@import", "url("] {
                assert!(!page.contains(outside), "the page reaches for {outside}");
            }
            let start =
                page.find(r#"type="application/json">"#).unwrap() + r#"type="application/json">"#.len();
            let end = start + page[start..].find("</script>").unwrap();
            let data: Value = serde_json::from_str(&page[start..end]).unwrap();
            let run = &data["runs"][0];
            assert_eq!(run["steps"][0]["committed"], json!([[1, 4, -0.25]]));
            assert_eq!(run["pieces"]["4"], "</script><!--");
            assert_eq!(run["special"], json!([7]));
        });
    }

    #[test]
    fn endings() {
        assert_eq!(Form::of(Path::new("a/b.HTML")).unwrap(), Form::Html);
        assert_eq!(Form::of(Path::new("b.jsonl")).unwrap(), Form::Jsonl);
        for bad in ["b.json", "html", "b"] {
            assert!(Form::of(Path::new(bad)).unwrap_err().to_string().contains(".jsonl"));
        }
    }
}
