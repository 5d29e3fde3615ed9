//! The CUDA half of the build: finds nvcc and compiles every `cuda/*.cu` to one fatbin each.
//!
//! **Which nvcc.** `$NVCC`, then `$CUDA_HOME/bin/nvcc` and `$CUDA_PATH/bin/nvcc`, then `PATH`, then
//! `target/cuda-toolkit/bin/nvcc` (made by `tools/setup-cuda`). `NVCC=none` means no nvcc. An `$NVCC` that
//! is missing, does not run or is too old stops the build; in the other places such an nvcc is passed over,
//! with a warning.
//!
//! **For what.** A cubin for sm_80, PTX for compute_80 (which later devices compile on loading) and a cubin
//! for sm_90a; `*_sm90.cu` use Hopper's own instructions and get sm_90a alone.
//! `LACUNA_CUDA_ARCHS=80,90a,120` is another list: a cubin for each, PTX for the lowest of those that later
//! devices can run (no letter behind the number). A `*_sm90.cu` is left out where the list has no 90a.
//!
//! **What fails.** Any warning, any spill or stack frame, and ptxas's advisories `(C75xx)`: with these it
//! says that it mended or serialised the wgmma instructions, or ignored setmaxnreg, in lines marked "info"
//! that `-Werror` lets pass. `LACUNA_CUDA_STRICT=0` turns all this into warnings of cargo, for an nvcc that
//! the kernels were not written with.
//!
//! **Again only when needed.** Beside each `STEM.fatbin` lie `STEM.ptxas.txt` (what the compiler said) and
//! `STEM.stamp`, a hash of all that went in: the file, every header in `cuda/` and `cuda/common/`, the flags
//! and the nvcc. While it is the same, nothing is compiled. Profiles and sets of features have folders of their
//! own; `cuda-kernels/` in the target folder is common to them, so that a kernel is compiled once for all.

use std::collections::hash_map::DefaultHasher;
use std::env::consts::EXE_SUFFIX;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// The oldest that knows sm_90a.
const OLDEST: (u32, u32) = (12, 0);
/// From this one on fatbins are packed as small as they can be. What it makes needs a driver of its own branch in any case, and
/// every such driver unpacks that; nvcc has the option since 12.8, but there it would shut out drivers before R550.
const PACKS_SMALL: (u32, u32) = (13, 0);

/// With `-Werror` a spill or a stack frame is an error only if it is first a warning.
const STRICT: [&str; 2] = ["-Xptxas", "-Werror,--warn-on-spills,--warn-on-local-memory-usage"];

/// An nvcc that runs.
#[derive(Debug)]
pub struct Nvcc {
    pub path: PathBuf,
    /// As in `13.0.88`.
    pub version: String,
    /// Major and minor number of the version.
    release: (u32, u32),
}

/// What became of one `.cu` file: `STEM.fatbin` and `STEM.ptxas.txt` in the output folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub stem: String,
    /// The architectures it has a cubin for, as in `90a`.
    pub archs: Vec<String>,
}

/// The nvcc to use; none where there is none. An error where `$NVCC` is not usable.
pub fn find() -> Result<Option<Nvcc>, String> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let found = look()?;
    match &found {
        Some(nvcc) if nvcc.path.is_file() => println!("cargo::rerun-if-changed={}", nvcc.path.display()),
        Some(_) => {}
        // Only here: elsewhere a PATH that differs between a shell and an editor would rebuild each time. A path
        // that does not exist yet cannot be watched, it would count as changed at each build: tools/setup-cuda
        // touches this file instead.
        None => println!("cargo::rerun-if-env-changed=PATH"),
    }
    Ok(found)
}

fn look() -> Result<Option<Nvcc>, String> {
    if let Some(named) = filled("NVCC") {
        if named == "none" {
            return Ok(None);
        }
        let advice = "unset NVCC to have nvcc looked for, or set NVCC=none to build without CUDA";
        return probe(Path::new(&named)).map(Some).map_err(|e| format!("NVCC: {e}; {advice}"));
    }
    let nvcc = format!("nvcc{EXE_SUFFIX}");
    let mut places = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        places.extend(filled(name).map(|home| Path::new(&home).join("bin").join(&nvcc)));
    }
    if let Some(path) = env::var_os("PATH") {
        places.extend(env::split_paths(&path).filter(|p| p.is_absolute()).map(|p| p.join(&nvcc)));
    }
    if let Some(root) = filled("CARGO_MANIFEST_DIR") {
        places.push(Path::new(&root).join("target/cuda-toolkit/bin").join(&nvcc));
    }
    for place in places.iter().filter(|p| p.is_file()) {
        match probe(place) {
            Ok(found) => return Ok(Some(found)),
            Err(e) => println!("cargo::warning=passed over: {e}"),
        }
    }
    Ok(None)
}

fn filled(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Runs it and reads its version.
fn probe(path: &Path) -> Result<Nvcc, String> {
    let shown = path.display();
    let out =
        Command::new(path).arg("--version").output().map_err(|e| format!("{shown} does not run: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let version = text.lines().find_map(|l| l.split_once(", V")).map(|(_, v)| v.trim().to_string());
    let (true, Some(version)) = (out.status.success(), version) else {
        return Err(format!("{shown} --version does not answer as nvcc does ({})", out.status));
    };
    let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
    let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if release < OLDEST {
        let (major, minor) = OLDEST;
        return Err(format!("{shown} is nvcc {version}; {major}.{minor} is the oldest that will do"));
    }
    Ok(Nvcc { path: path.to_path_buf(), version, release })
}

/// Compiles each `cuda_dir/*.cu` to `out/STEM.fatbin`, several at a time, in the order of their names. The error has the
/// command and the compiler's words of every file that failed.
pub fn compile_all(nvcc: &Nvcc, cuda_dir: &Path, out: &Path) -> Result<Vec<Module>, String> {
    for name in
        ["LACUNA_CUDA_ARCHS", "LACUNA_CUDA_STRICT", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"]
    {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // The folder as well, so that a new file is noticed.
    println!("cargo::rerun-if-changed={}", cuda_dir.display());

    let strict = filled("LACUNA_CUDA_STRICT").is_none_or(|v| v != "0");
    let archs = arch_list(filled("LACUNA_CUDA_ARCHS").as_deref())?;
    let headers = headers(cuda_dir)?;
    let mut tasks = Vec::new();
    for source in files(cuda_dir, &["cu"])? {
        let stem = source.file_stem().and_then(OsStr::to_str).ok_or_else(|| odd_name(&source))?.to_string();
        let archs = archs_of(&stem, &archs);
        if !archs.is_empty() {
            tasks.push(Task { source, module: Module { stem, archs } });
        }
    }

    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let workers = filled("NUM_JOBS").and_then(|n| n.to_str()?.parse().ok()).unwrap_or(1usize);
    thread::scope(|scope| {
        for _ in 0..workers.clamp(1, tasks.len().max(1)) {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = task.bring_up_to_date(nvcc, cuda_dir, out, &headers, strict) {
                        failed.lock().unwrap().push((task.module.stem.clone(), message));
                    }
                }
            });
        }
    });

    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if failed.is_empty() {
        return Ok(tasks.into_iter().map(|task| task.module).collect());
    }
    Err(failed.into_iter().map(|(_, message)| message).collect::<Vec<_>>().join("\n\n"))
}

/// Writes `out/fatbins.rs`, `pub static FATBINS: &[Fatbin]`, for an includer that defines `Fatbin`, and `pub static
/// COMPILER`, the version of the nvcc. No modules, an empty list. What earlier builds left in `out` for files that are no
/// more is removed.
pub fn registry(modules: &[Module], nvcc: Option<&Nvcc>, out: &Path) -> Result<(), String> {
    let version = nvcc.map(|nvcc| nvcc.version.as_str());
    let mut text = format!("pub static COMPILER: Option<&str> = {version:?};\n\n");
    text.push_str("pub static FATBINS: &[Fatbin] = &[\n");
    for Module { stem, archs } in modules {
        let kernels = kernels(stem, out)?;
        // The driver reads the image in words; bare include_bytes! would promise it no alignment.
        let _ = write!(
            text,
            "    Fatbin {{\n        stem: {stem:?},\n        bytes: {{\n            \
             #[repr(C, align(64))]\n            struct Aligned<T: ?Sized>(T);\n            \
             const IMAGE: &Aligned<[u8]> =\n                \
             &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), {:?})));\n            \
             &IMAGE.0\n        }},\n        archs: &{archs:?},\n        kernels: &{kernels:?},\n    }},\n",
            format!("/{stem}.fatbin"),
        );
    }
    text.push_str("];\n");
    write_if_changed(&out.join("fatbins.rs"), text.as_bytes())?;

    let listing = fs::read_dir(out).map_err(|e| at(out, "read", e))?;
    for entry in listing {
        let path = entry.map_err(|e| at(out, "read", e))?.path();
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        let stem =
            [".fatbin", ".fatbin.part", ".ptxas.txt", ".stamp"].iter().find_map(|end| name.strip_suffix(end));
        if stem.is_some_and(|stem| modules.iter().all(|m| m.stem != stem)) {
            fs::remove_file(&path).map_err(|e| at(&path, "remove", e))?;
        }
    }
    Ok(())
}

/// The names of a module's kernels, sorted: drivers before CUDA 12.4 cannot list them.
fn kernels(stem: &str, out: &Path) -> Result<Vec<String>, String> {
    let report = out.join(format!("{stem}.ptxas.txt"));
    let said = fs::read_to_string(&report).map_err(|e| at(&report, "read", e))?;
    let mut names: Vec<String> = said
        .lines()
        .filter_map(|line| line.split_once("Compiling entry function '")?.1.split_once('\''))
        .map(|(name, _)| name.to_string())
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(format!(
            "cuda/{stem}.cu: expected the compiler to name its kernels in {}",
            report.display()
        ));
    }
    Ok(names)
}

struct Task {
    source: PathBuf,
    module: Module,
}

impl Task {
    fn bring_up_to_date(
        &self,
        nvcc: &Nvcc,
        cuda_dir: &Path,
        out: &Path,
        headers: &[(PathBuf, Vec<u8>)],
        strict: bool,
    ) -> Result<(), String> {
        let Module { stem, archs } = &self.module;
        let fatbin = out.join(format!("{stem}.fatbin"));
        let part = out.join(format!("{stem}.fatbin.part"));
        let report = out.join(format!("{stem}.ptxas.txt"));
        let stamp = out.join(format!("{stem}.stamp"));

        let mut flags =
            ["-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v", "--fatbin"].map(String::from).to_vec();
        if strict {
            flags.extend(STRICT.map(String::from));
        }
        if nvcc.release >= PACKS_SMALL {
            flags.push("-compress-mode=size".into());
        }
        flags.extend(gencode(archs));

        let source = fs::read(&self.source).map_err(|e| at(&self.source, "read", e))?;
        let mut hash = DefaultHasher::new();
        // This module too: it says what fails and what the report looks like.
        (include_str!("nvcc.rs"), &nvcc.path, &nvcc.version, &flags, &source, headers).hash(&mut hash);
        for name in ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
            env::var_os(name).hash(&mut hash);
        }
        let hash = format!("{:016x}\n", hash.finish());
        if fatbin.is_file()
            && fs::read_to_string(&stamp).is_ok_and(|old| old == hash)
            && let Ok(said) = fs::read_to_string(&report)
        {
            complain(stem, &objections(&said));
            return Ok(());
        }

        if let Some(store) = store(out)
            && store.take(stem, hash.trim(), &fatbin, &report)
        {
            let said = fs::read_to_string(&report).map_err(|e| at(&report, "read", e))?;
            complain(stem, &objections(&said));
            return fs::write(&stamp, hash).map_err(|e| at(&stamp, "write", e));
        }

        // Until the new one is whole there is none.
        for path in [&stamp, &fatbin] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(path, "remove", e)),
                _ => {}
            }
        }
        let mut command = Command::new(&nvcc.path);
        command.args(&flags).arg("-I").arg(cuda_dir).arg("-o").arg(&part).arg(&self.source);
        let run = command.output().map_err(|e| at(&nvcc.path, "run", e))?;
        let said: String = [&run.stdout, &run.stderr]
            .iter()
            .flat_map(|b| String::from_utf8_lossy(b).lines().map(String::from).collect::<Vec<_>>())
            .filter(|l| !l.contains("Compile time ="))
            .map(|l| l + "\n")
            .collect();
        let failure = |what: &str, said: &str| {
            let mut message = format!("cuda/{stem}.cu: {what}\n{}\n{}", shown(&command), said.trim_end());
            if ["host compiler", "Cannot find compiler", "unsupported GNU version"]
                .iter()
                .any(|s| said.contains(s))
            {
                message += "\nnvcc needs a host C++ compiler that it knows (g++); NVCC_CCBIN names one";
            }
            message
        };
        if !run.status.success() {
            return Err(failure(&format!("nvcc failed ({})", run.status), &said));
        }
        let objections = objections(&said);
        if strict && !objections.is_empty() {
            let what = "compiled, but not as meant (LACUNA_CUDA_STRICT=0 lets it pass)";
            return Err(failure(what, &objections.join("\n")));
        }
        complain(stem, &objections);
        let head = format!("# nvcc {}, cuda/{stem}.cu, {}\n", nvcc.version, archs.join(","));
        fs::write(&report, head + &said).map_err(|e| at(&report, "write", e))?;
        fs::rename(&part, &fatbin).map_err(|e| at(&fatbin, "rename to", e))?;
        if let Some(store) = store(out) {
            store.keep(stem, hash.trim(), &fatbin, &report);
        }
        fs::write(&stamp, hash).map_err(|e| at(&stamp, "write", e))
    }
}

/// Kernels of all profiles: `cuda-kernels/STEM-HASH.fatbin` and `.ptxas.txt` in the target folder.
struct Store(PathBuf);

/// `OUT_DIR` is `TARGET/PROFILE/build/PACKAGE-HASH/out`.
fn store(out: &Path) -> Option<Store> {
    Some(Store(out.ancestors().nth(4)?.join("cuda-kernels")))
}

impl Store {
    fn paths(&self, stem: &str, hash: &str) -> [PathBuf; 2] {
        ["fatbin", "ptxas.txt"].map(|end| self.0.join(format!("{stem}-{hash}.{end}")))
    }

    /// Copies what was kept; whether there was anything.
    fn take(&self, stem: &str, hash: &str, fatbin: &Path, report: &Path) -> bool {
        let [kept_fatbin, kept_report] = self.paths(stem, hash);
        fs::copy(kept_report, report).is_ok() && fs::copy(kept_fatbin, fatbin).is_ok()
    }

    /// Keeps copies and drops those of earlier sources. Nothing depends on it: failures are passed over.
    fn keep(&self, stem: &str, hash: &str, fatbin: &Path, report: &Path) {
        let _ = fs::create_dir_all(&self.0);
        for old in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = old.file_name().to_string_lossy().into_owned();
            if name.rsplit_once('-').is_some_and(|(s, _)| s == stem) {
                let _ = fs::remove_file(old.path());
            }
        }
        // The report last and the fatbin whole: `take` asks for both.
        for (from, to) in [fatbin, report].iter().zip(self.paths(stem, hash)) {
            let part = to.with_extension("part");
            if fs::copy(from, &part).is_ok() {
                let _ = fs::rename(&part, &to);
            }
        }
    }
}

/// The lines of the compiler's output that a strict build does not accept.
fn objections(said: &str) -> Vec<String> {
    const ADVICE: [&str; 5] = ["warning", "(c75", "potential performance loss", "serialized", "is injected"];
    let mut function = "";
    let mut found = Vec::new();
    for line in said.lines() {
        let small = line.to_ascii_lowercase();
        if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name;
        } else if line.contains("bytes stack frame") {
            if line.split(',').any(|part| part.split_whitespace().next() != Some("0")) {
                found.push(format!("{function}: {}", line.trim()));
            }
        } else if !small.starts_with("remark:") && ADVICE.iter().any(|word| small.contains(word)) {
            found.push(line.trim().to_string());
        }
    }
    found
}

fn complain(stem: &str, objections: &[String]) {
    for line in objections {
        println!("cargo::warning=cuda/{stem}.cu: {line}");
    }
}

/// `80,90a` taken apart, in rising order. Unset is the default.
fn arch_list(value: Option<&OsStr>) -> Result<Vec<String>, String> {
    let Some(value) = value else { return Ok(vec!["80".into(), "90a".into()]) };
    let value = value.to_string_lossy();
    let mut archs: Vec<(u32, String)> = Vec::new();
    for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let digits = entry.strip_suffix(['a', 'f']).unwrap_or(entry);
        let number = digits.parse().ok().filter(|n| (80..1000).contains(n)).ok_or_else(|| {
            format!("LACUNA_CUDA_ARCHS: expected a list like 80,90a,120 of architectures from 80 on, got {entry:?}")
        })?;
        archs.push((number, entry.to_string()));
    }
    archs.sort();
    archs.dedup();
    if archs.is_empty() {
        return Err(format!("LACUNA_CUDA_ARCHS: expected a list like 80,90a,120, got {value:?}"));
    }
    Ok(archs.into_iter().map(|(_, name)| name).collect())
}

fn archs_of(stem: &str, archs: &[String]) -> Vec<String> {
    archs.iter().filter(|arch| !stem.ends_with("_sm90") || *arch == "90a").cloned().collect()
}

/// A cubin for each, PTX for the lowest that others can run.
fn gencode(archs: &[String]) -> Vec<String> {
    let ptx = archs.iter().find(|arch| arch.ends_with(|c: char| c.is_ascii_digit()));
    let mut flags = Vec::new();
    for arch in archs {
        let ptx = if Some(arch) == ptx { format!("compute_{arch},") } else { String::new() };
        flags.extend(["-gencode".to_string(), format!("arch=compute_{arch},code=[{ptx}sm_{arch}]")]);
    }
    flags
}

/// Every header that a kernel file may include, with its text, in a fixed order.
fn headers(cuda_dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
    let mut found = Vec::new();
    for dir in [cuda_dir.to_path_buf(), cuda_dir.join("common")] {
        if !dir.is_dir() {
            continue;
        }
        for path in files(&dir, &["cuh", "h", "hpp", "inl"])? {
            let text = fs::read(&path).map_err(|e| at(&path, "read", e))?;
            let name = path.strip_prefix(cuda_dir).unwrap_or(&path).to_path_buf();
            found.push((name, text));
        }
    }
    Ok(found)
}

/// The files of a folder (not of its folders) with one of these extensions, sorted.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| at(dir, "read", e))? {
        let path = entry.map_err(|e| at(dir, "read", e))?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if path.is_file() && extension.is_some_and(|x| extensions.contains(&x)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Keeps the time of a file that stays the same, so that what depends on it is not built again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).map_err(|e| at(path, "write", e))
}

/// The command as it could be typed.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    let quoted = words.iter().map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,".contains(c);
        if word.chars().all(plain) { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn at(path: &Path, what: &str, error: io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

fn odd_name(path: &Path) -> String {
    format!("{}: the name of a kernel file must be UTF-8", path.display())
}
