//! The direction of imports. A module may import what stands below it and nothing else:
//!
//! error, element, rng, config, shift, ranking, synthetic, anneal, meter  <-  backend, io, diffusion  <-  model  <-  sample, train, eval
//! <-  serve, profile, selftest  <-  cli  <-  main. Modules of one level do not import one another, except
//! for the leaves.

use std::path::{Path, PathBuf};

/// Modules by level, lowest first. Those of the first level may import one another.
const LEVELS: [&[&str]; 6] = [
    &["error", "element", "rng", "config", "shift", "ranking", "synthetic", "anneal", "meter"],
    &["backend", "io", "diffusion"],
    &["model"],
    &["sample", "train", "eval"],
    &["serve", "profile", "selftest"],
    &["cli"],
];

/// Most lines of a file.
const LONGEST: usize = 500;

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|modules| modules.contains(&module))
}

/// The first module names of all `crate::` paths in `source`, with their line numbers; comments
/// are left out, nested braces (`use crate::{a, b::{c}};`) are followed.
fn imports(source: &str) -> Vec<(usize, String)> {
    let code: String = source
        .lines()
        .map(|line| line.find("//").map_or(line, |at| &line[..at]))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let name =
            |s: &str| -> String { s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
        match rest.strip_prefix('{') {
            None => found.push((line, name(rest))),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && !c.is_whitespace() => {
                            found.push((line, name(&group[i..])));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// What is wrong with a file that belongs to `module`.
fn faults(module: &str, source: &str) -> Vec<String> {
    let Some(own) = level(module) else {
        return vec![format!("module `{module}` has no level; name it in LEVELS")];
    };
    let mut faults: Vec<String> = imports(source)
        .into_iter()
        .filter_map(|(line, name)| {
            if name == module {
                return None;
            }
            match level(&name) {
                // Items of the crate root: re-exports of errors and macros.
                None => (!["Error", "Result"].contains(&name.as_str()))
                    .then(|| format!("line {line}: `crate::{name}` is no module with a level; import it from where it is defined")),
                Some(other) if other > own => Some(format!("line {line}: `{module}` imports `{name}`, which stands above it")),
                Some(other) if other == own && own > 0 => {
                    Some(format!("line {line}: `{module}` imports its sibling `{name}`"))
                }
                Some(_) => None,
            }
        })
        .collect();
    let lines = source.lines().count();
    if lines > LONGEST {
        faults.push(format!("{lines} lines, at most {LONGEST}: there are two ideas in it"));
    }
    faults
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("src is readable").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_point_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "only {} files were found", files.len());
    let mut all = Vec::new();
    for path in files {
        let place = path.strip_prefix(&src).expect("under src");
        let first = place.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("readable");
        all.extend(faults(module, &source).into_iter().map(|f| format!("src/{}: {f}", place.display())));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn an_upward_import_is_found() {
    let planted = "use crate::error::Result;\nuse crate::sample::Request;\n";
    assert_eq!(faults("model", planted), ["line 2: `model` imports `sample`, which stands above it"]);
}

#[test]
fn a_sibling_import_is_found() {
    assert_eq!(
        faults("io", "fn f() { crate::backend::g() }\n"),
        ["line 1: `io` imports its sibling `backend`"]
    );
    assert!(faults("element", "use crate::error::Error;").is_empty());
    assert!(faults("sample", "use crate::sample::request;\nuse crate::model::Model;").is_empty());
}

#[test]
fn grouped_and_nested_imports_are_followed() {
    let planted = "use crate::{\n    error::{Error, Result},\n    model::{self, Model},\n    cli::run,\n};\n";
    assert_eq!(imports(planted).into_iter().map(|(_, n)| n).collect::<Vec<_>>(), ["error", "model", "cli"]);
    assert_eq!(faults("diffusion", planted).len(), 2);
}

#[test]
fn comments_and_other_crates_are_no_imports() {
    assert!(imports("// crate::cli\n/// [`crate::cli`]\nmy_crate::cli();\n").is_empty());
}

#[test]
fn a_long_file_is_found() {
    let long = "\n".repeat(LONGEST + 1);
    assert_eq!(faults("rng", &long).len(), 1);
    assert!(faults("rng", &"\n".repeat(LONGEST)).is_empty());
}
