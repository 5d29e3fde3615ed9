//! The page: one file, no script, nothing fetched.

use std::fmt::Write as _;

use super::chart::{Series, Stroke};
use super::input::Run;
use super::numbers::{count, escape};
use super::tables::{MAX_ROWS, Table, tables};
use super::{Figure, Missing};
use crate::error::Result;

/// Puts it together.
///
/// # Errors
/// Those of [`Chart::draw`](super::chart::Chart::draw).
pub fn page(runs: &[Run], figures: &[Figure], missing: &[Missing]) -> Result<String> {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.label)).collect();
    let title = match names.as_slice() {
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        many => format!("{} runs", many.len()),
    };
    let mut out = String::new();
    // Nothing may be fetched or run, whatever a measurement is called.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>lacuna report: {title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         <h1>Measurements: {title}</h1>\n<p class=\"soft\">Made by lacuna {}. The numbers behind each figure are in the \
         tables below.</p>\n",
        include_str!("page.css"),
        env!("CARGO_PKG_VERSION"),
    );
    out += "<h2 id=\"runs\">Runs</h2>\n";
    out += &html(&overview(runs));
    for run in runs.iter().filter(|run| run.unusable > 0) {
        let _ = writeln!(
            out,
            "<p class=\"soft\">{}: {} could not be used; {}{}.</p>",
            escape(&run.label),
            if run.unusable == 1 {
                "1 line".to_owned()
            } else {
                format!("{} lines", count(run.unusable as f64))
            },
            run.faults.iter().map(|fault| escape(fault)).collect::<Vec<_>>().join("; "),
            if run.unusable > run.faults.len() { "; and others" } else { "" },
        );
    }
    if !figures.is_empty() {
        out += "<h2 id=\"figures\">Figures</h2>\n";
    }
    for Figure { id, title, caption, chart } in figures {
        let drawn = chart.draw(title)?;
        let _ = write!(
            out,
            "<figure id=\"{id}\">\n<figcaption><h3>{}</h3><p>{}{}</p></figcaption>\n{}",
            escape(title),
            escape(caption),
            if drawn.drawn < drawn.marks {
                format!(" {} of {} points are drawn.", count(drawn.drawn as f64), count(drawn.marks as f64))
            } else {
                String::new()
            },
            drawn.svg,
        );
        out += &legend(&chart.series);
        out += "</figure>\n";
    }
    if !missing.is_empty() {
        out += "<h2 id=\"missing\">Not on this page</h2>\n<ul class=\"missing soft\">\n";
        for Missing { title, how } in missing {
            let _ = writeln!(out, "<li>{}: {}</li>", escape(title), code(how));
        }
        out += "</ul>\n";
    }
    out += "<h2 id=\"numbers\">Numbers</h2>\n";
    for table in tables(runs) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(table.title));
        out += &html(&table);
    }
    out += "</main>\n</body>\n</html>\n";
    Ok(out)
}

/// Words with commands between backquotes.
fn code(text: &str) -> String {
    let part = |(i, part): (usize, &str)| {
        if i % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) }
    };
    text.split('`').enumerate().map(part).collect()
}

fn overview(runs: &[Run]) -> Table {
    let heads = ["run", "holds", "program", "model", "device", "version", "commit"];
    let rows = runs.iter().map(|run| {
        let counts = run.counts();
        let mut holds: Vec<String> =
            counts.iter().map(|(kind, n)| format!("{}: {}", kind.name(), count(*n as f64))).collect();
        if let Some(training) = &run.training {
            holds.push(format!("steps of training: {}", count(training.history.training.len() as f64)));
        }
        let mut row = vec![run.label.clone(), holds.join(", ")];
        row.extend(["who", "model", "device", "version", "commit"].map(|field| {
            let words: Vec<String> = run.values(field).iter().map(|w| super::numbers::short(w, 80)).collect();
            words.join("; ")
        }));
        row
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let total = rows.len();
    Table { title: "Runs", heads: heads.into_iter().map(|head| (head, false)).collect(), rows, total }
}

fn html(table: &Table) -> String {
    let mut out = String::from("<div class=\"table\"><table>\n<thead><tr>");
    for (head, numbers) in &table.heads {
        let _ = write!(out, "<th{}>{}</th>", if *numbers { " class=\"n\"" } else { "" }, escape(head));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in table.rows.iter().take(MAX_ROWS) {
        out += "<tr>";
        for (cell, (_, numbers)) in row.iter().zip(&table.heads) {
            // Words that are long may be broken; short ones stay on a line.
            let class = match (numbers, cell.chars().count()) {
                (true, _) => " class=\"n\"",
                (false, 25..) => " class=\"w\"",
                (false, _) => "",
            };
            let _ = write!(out, "<td{class}>{}</td>", escape(cell));
        }
        out += "</tr>\n";
    }
    out += "</tbody>\n</table></div>\n";
    let rest = table.total.saturating_sub(table.rows.len().min(MAX_ROWS));
    if rest > 0 {
        let _ = writeln!(out, "<p class=\"soft\">{} more are in the files.</p>", count(rest as f64));
    }
    out
}

fn legend(series: &[Series]) -> String {
    let named: Vec<&Series> = series.iter().filter(|s| !s.label.is_empty()).collect();
    if named.is_empty() {
        return String::new();
    }
    let mut out = String::from("<ul class=\"legend\">");
    for Series { label, colour, stroke, .. } in named {
        let stroke = match stroke {
            Stroke::None => "mark",
            Stroke::Solid => "solid",
            Stroke::Faint => "faint",
            Stroke::Dashed => "dashed",
            Stroke::Dotted => "dotted",
        };
        let _ = write!(out, "<li><span class=\"key {stroke} k{colour}\"></span>{}</li>", escape(label));
    }
    out + "</ul>\n"
}
