//! Stand-ins for NVIDIA's libraries, compiled by the C compiler that there is.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A folder with a stand-in for the driver (`libcuda.so`) and one for cuBLASLt; none where there is no C compiler.
pub fn stand_in() -> Option<TempDir> {
    let dir = tempfile::tempdir().expect("a folder");
    for (source, library) in [("libcuda.c", "libcuda.so"), ("libcublaslt.c", "libcublaslt-stand-in.so")] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source);
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(dir.path().join(library)).arg(source).arg("-lm");
        match compiler.output() {
            Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
            Err(error) => {
                eprintln!("skipped: no C compiler ({error})");
                return None;
            }
        }
    }
    Some(dir)
}

/// Runs `lacuna ARGS` where the loader finds the stand-in for the driver: exit code, standard output, standard error.
pub fn lacuna(dir: &Path, environment: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("lacuna"));
    command.args(args).env("LD_LIBRARY_PATH", dir).env_remove("LACUNA_MODEL").env_remove("LACUNA_CUBLASLT");
    command.envs(environment.iter().copied());
    let out = command.output().expect("started");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (out.status.code().expect("a code"), text(out.stdout), text(out.stderr))
}
