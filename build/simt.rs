//! Kernels for the host SIMT machine (docs/simt.md), and mutants of them: kernel files with a planted bug, which
//! tests/simt/plants.rs expects the machine to find.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lines and what was inlined where, which is what a report needs; nothing of variables, which would be most of every
/// program that the machine is linked into.
const DEBUG: &str = "-g1";

const MACHINE: [&str; 3] = ["scheduler.cpp", "units.cpp", "checker.cpp"];

/// Compiles the machine, every kernel file and every mutant, and writes `simt_kernels.rs`, which refers to
/// each kernel file so that the linker takes it in.
pub fn compile(cuda: &Path, out: &Path) -> Result<(), String> {
    println!("cargo:rerun-if-changed={}", cuda.display());
    let mut files = kernel_files(cuda)?;
    files.push(cuda.join("simt/faulty.cu"));
    let mut stems: Vec<String> = files.iter().map(|f| stem(f)).collect();

    let mut tasks = Vec::new();
    for file in &files {
        let mut one = kernel_compiler(cuda);
        one.opt_level(2);
        tasks.push(Task { compiler: one, file: file.clone(), flavour: "watched" });
    }
    // Copies that announce no access, for runs in which none is watched. With instructions of the machine that builds,
    // which the program asks the machine that runs for.
    let fused = has_avx2_and_fma();
    for file in files.iter().filter(|f| !f.ends_with("simt/faulty.cu")) {
        let (stem, source) =
            (stem(file), fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?);
        let name = format!("unwatched_{stem}");
        let mut one = compiler(cuda);
        one.flag("-x").flag("c++").flag("-fno-exceptions").opt_level(2);
        if fused {
            one.flag("-mavx2").flag("-mfma");
        }
        one.define("KERNEL_PREFIX", "unwatched_");
        let flavour = if fused { "unwatched, fused" } else { "unwatched" };
        tasks.push(Task { compiler: one, file: write_copy(out, &name, &stem, &source)?, flavour });
        stems.push(name);
    }
    for plant in plants(cuda)? {
        // Few cases run on a mutant: what counts is the time that it takes to compile. Without any optimisation the
        // compiler does not announce stores of what a call returns (`*p = make_float2(...)`).
        let mut one = kernel_compiler(cuda);
        one.opt_level(1).define("KERNEL_PREFIX", format!("{}_", plant.name).as_str());
        tasks.push(Task { compiler: one, file: plant.write(cuda, out)?, flavour: "plant" });
        stems.push(plant.name);
    }
    let mut archive = compiler(cuda);
    archive.objects(compile_each(&tasks, cuda, out)?);
    archive.try_compile("lacuna_simt_kernels").map_err(|e| failed(&e))?;

    let mut machine = compiler(cuda);
    machine.flag(DEBUG).opt_level(3).files(MACHINE.map(|f| cuda.join("simt").join(f)));
    machine.try_compile("lacuna_simt").map_err(|e| failed(&e))?;

    let mut source = format!(
        "/// What the unwatched copies of the kernels were compiled with.\nconst FUSED: bool = {fused};\n\n"
    );
    source.push_str("unsafe extern \"C\" {\n");
    for stem in &stems {
        let _ = writeln!(source, "    fn simt_file_{stem}();");
    }
    source.push_str("}\n\n/// Makes the linker keep every kernel file.\nfn link_kernel_files() {\n");
    for stem in &stems {
        let _ =
            writeln!(source, "    // SAFETY: the function is empty.\n    unsafe {{ simt_file_{stem}() }};");
    }
    source.push_str("}\n");
    write(&out.join("simt_kernels.rs"), &source)
}

/// A kernel file under another name, in a namespace without one: else the linker would take one copy's inline functions
/// for all of them.
fn write_copy(out: &Path, name: &str, stem: &str, source: &str) -> Result<PathBuf, String> {
    let source =
        source.replace(&format!("KERNEL_FILE({stem})"), &format!("KERNEL_FILE({name}) namespace {{"));
    let path = out.join(format!("{name}.cu"));
    write(&path, &format!("#line 1 \"cuda/{stem}.cu\"\n{source}}}\n"))?;
    Ok(path)
}

#[cfg(target_arch = "x86_64")]
fn has_avx2_and_fma() -> bool {
    // A build for another machine is one for any machine.
    let same =
        std::env::var("HOST").is_ok_and(|host| std::env::var("TARGET").is_ok_and(|target| host == target));
    same && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2_and_fma() -> bool {
    false
}

/// A file and how it is compiled.
struct Task {
    compiler: cc::Build,
    file: PathBuf,
    /// What tells this way of compiling from the others.
    flavour: &'static str,
}

impl Task {
    /// The object, out of an earlier build where the file, what it includes and the compiler are the same.
    fn object(&self, cuda: &Path, kept: &Path) -> Result<PathBuf, String> {
        let compiler = self.compiler.try_get_compiler().map_err(|e| failed(&e))?;
        let mut hash = DefaultHasher::new();
        (compiler.path(), compiler.args(), self.flavour, self.file.file_name()).hash(&mut hash);
        include_str!("simt.rs").hash(&mut hash);
        hash_source(&self.file, cuda, &mut BTreeSet::new(), &mut hash)?;
        let object = kept.join(format!("{:016x}-{}.o", hash.finish(), stem(&self.file)));
        if !object.exists() {
            let objects = self.compiler.clone().file(&self.file).try_compile_intermediates();
            let made = objects.map_err(|e| failed(&e))?;
            let made = made.first().ok_or_else(|| format!("{}: no object", self.file.display()))?;
            let place = |e| format!("{}: {e}", object.display());
            // Under its name only when it is whole.
            let partial = object.with_extension("partial");
            fs::copy(made, &partial).map_err(place)?;
            fs::rename(&partial, &object).map_err(place)?;
        }
        Ok(object)
    }
}

/// The text of a file and of what it includes from `cuda/`.
fn hash_source(
    file: &Path,
    cuda: &Path,
    seen: &mut BTreeSet<PathBuf>,
    hash: &mut DefaultHasher,
) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    text.hash(hash);
    for line in text.lines() {
        let Some(name) = line.trim().strip_prefix("#include \"").and_then(|rest| rest.split('"').next())
        else {
            continue;
        };
        let beside = file.parent().unwrap_or(cuda).join(name);
        let path = if beside.exists() { beside } else { cuda.join(name) };
        let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
        if seen.insert(path.clone()) {
            hash_source(&path, cuda, seen, hash)?;
        }
    }
    Ok(())
}

/// The objects of compilers with a file each, which run side by side.
fn compile_each(tasks: &[Task], cuda: &Path, out: &Path) -> Result<Vec<PathBuf>, String> {
    let kept = out.join("simt-objects");
    fs::create_dir_all(&kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut objects = Vec::new();
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            objects.push(task.object(cuda, &kept)?);
        }
        Ok::<_, String>(objects)
    };
    let objects = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let mut objects = Vec::new();
        for worker in workers {
            objects.extend(worker.join().map_err(|_| "a thread of the build panicked")??);
        }
        // In one order, whichever was ready first.
        objects.sort();
        Ok::<_, String>(objects)
    })?;
    let used: BTreeSet<&PathBuf> = objects.iter().collect();
    for entry in fs::read_dir(&kept).into_iter().flatten().flatten() {
        if !used.contains(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(objects)
}

/// The calls that the thread sanitizer puts before each access go to the machine's own checker; its library is not
/// linked.
fn kernel_compiler(cuda: &Path) -> cc::Build {
    let mut build = compiler(cuda);
    build.flag("-x").flag("c++").flag("-fsanitize=thread").flag("-fno-exceptions").flag(DEBUG);
    build
}

fn compiler(cuda: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(cuda).warnings(true).extra_warnings(true).debug(false);
    // Products and sums are rounded one by one, as written; bits may be looked at in several types.
    build
        .flag("-Wno-unknown-pragmas")
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-fno-omit-frame-pointer");
    if let Some(root) = cuda.parent() {
        build.flag(format!("-ffile-prefix-map={}/=", root.display()));
    }
    build
}

fn failed(error: &cc::Error) -> String {
    format!("the SIMT machine needs a C++17 compiler (g++ or clang++): {error}")
}

fn kernel_files(cuda: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(cuda).map_err(|e| format!("{}: {e}", cuda.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
        // Kernels for one generation of cards use instructions that the machine does not have.
        .filter(|p| !stem(p).ends_with("_sm90"))
        .collect();
    files.sort();
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// A bug to be planted: in a copy of `file`, `old` becomes `new`. The copy's kernels are named with
/// `name_` in front.
struct Plant {
    name: String,
    file: String,
    old: String,
    new: String,
}

/// Reads the files of `cuda/simt/plants`: blocks of `plant NAME FILE`, then lines of old text each behind `- `, then lines of new
/// text behind `+ `. `#` starts a remark.
fn plants(cuda: &Path) -> Result<Vec<Plant>, String> {
    let folder = cuda.join("simt/plants");
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    let mut plants: Vec<Plant> = Vec::new();
    for path in files {
        read_plants(&path, &mut plants)?;
    }
    Ok(plants)
}

fn read_plants(path: &Path, plants: &mut Vec<Plant>) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("{}:{}: not understood: {line}", path.display(), number + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        } else if let Some(head) = line.strip_prefix("plant ") {
            let (name, file) = head.split_once(' ').ok_or_else(wrong)?;
            let (old, new) = (String::new(), String::new());
            plants.push(Plant { name: format!("plant_{name}"), file: file.into(), old, new });
        } else {
            let plant = plants.last_mut().ok_or_else(wrong)?;
            let (side, text) = if let Some(text) = line.strip_prefix('-') {
                (&mut plant.old, text)
            } else {
                (&mut plant.new, line.strip_prefix('+').ok_or_else(wrong)?)
            };
            if !side.is_empty() {
                side.push('\n');
            }
            side.push_str(text.strip_prefix(' ').unwrap_or(text));
        }
    }
    Ok(())
}

impl Plant {
    fn write(&self, cuda: &Path, out: &Path) -> Result<PathBuf, String> {
        let from = cuda.join(&self.file);
        let source = fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        let found = source.matches(&self.old).count();
        if self.old.is_empty() || found != 1 {
            return Err(format!(
                "cuda/simt/plants: {}: the text to replace stands {found} times in cuda/{}, expected once:\n{}",
                self.name, self.file, self.old
            ));
        }
        write_copy(out, &self.name, &stem(&from), &source.replace(&self.old, &self.new))
    }
}
