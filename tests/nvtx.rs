//! NVTX ranges, through a stand-in for the tool that listens to them: `cargo test --features nvtx --test nvtx`.
#![cfg(feature = "nvtx")]

use std::process::Command;

#[test]
fn ranges_are_named_like_the_code_and_nest() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("nvtx.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/nvtx.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).output();
    match compiled {
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
        Err(error) => return eprintln!("skipped: no C compiler ({error})"),
    }
    let log = folder.path().join("ranges");
    let run = |steps: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["generate", "-q", "-l", "20", "-T", steps]).env_remove("LACUNA_MODEL");
        command.env("NVTX_INJECTION64_PATH", &library).env("NVTX_LOG", &log);
        assert!(command.output().expect("the program runs").status.success());
        std::fs::read_to_string(&log).expect("ranges")
    };
    let text = run("1");
    // Generation, step, layer, operation.
    let mut path: Vec<&str> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for line in text.lines().skip(1) {
        match line.trim_start().strip_prefix("push ") {
            Some(name) => {
                path.push(name);
                seen.push(path.join("/"));
            }
            None => assert!(path.pop().is_some(), "a pop too many"),
        }
    }
    assert!(path.is_empty(), "{path:?}");
    for expected in [
        "generate/denoising step/layer/linear",
        "generate/denoising step/layer/attention",
        "generate/denoising step/unmask",
        "generate/denoising step/commit",
    ] {
        assert!(seen.iter().any(|s| s == expected), "{expected} in {seen:?}");
    }
    let steps = |text: &str| text.matches("push denoising step").count();
    assert_eq!(steps(&text), 1);
    assert!(steps(&run("8")) > 1);
}
