//! The code that talks to the NVIDIA driver, on a stand-in for the driver library (tests/support/libcuda.c): that it asks
//! for what it should, in the right order, gives everything back, and says what went wrong. No kernel runs.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

#[path = "support/stand_in.rs"]
mod support;

use lacuna::Error;
use lacuna::backend::cuda::driver::{self, Card};
use lacuna::backend::cuda::{Buffer, Device, Format, Launch};
use lacuna::element::Dtype;

/// Whether this build has kernels; without, no card can be opened.
fn has_kernels() -> bool {
    driver::built_in().next().is_some()
}

/// Runs `lacuna ARGS` on the stand-in: exit code, standard output, standard error.
fn lacuna(dir: &Path, wrong: &str, args: &[&str]) -> (i32, String, String) {
    support::lacuna(dir, &[("STANDIN", wrong)], args)
}

#[test]
fn what_is_said_of_a_machine_that_will_not_do() {
    let Some(dir) = support::stand_in() else { return };
    for (wrong, number, words) in [
        ("no-card", "cuda", "sees no card"),
        ("old-driver", "cuda", "the NVIDIA driver is for CUDA 11.8, expected 12.0 or later"),
        ("old-card", "cuda", "Stand-in has compute capability 7.5, expected 8.0"),
        ("mismatch", "cuda", "does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("", "cuda:1", "there is no card 1; cuda:0 is Stand-in"),
    ] {
        let (code, out, err) = lacuna(dir.path(), wrong, &["selftest", "--device", number, "--quick"]);
        assert_eq!((code, out.as_str(), err.lines().count()), (8, "", 1), "{wrong}: {err}");
        assert!(
            err.starts_with(&format!(
                "error: cuda:{}: ",
                &number[4..].trim_matches(':').parse().unwrap_or(0)
            ))
        );
        assert!(err.contains(words), "{wrong}: {err}");
        let (code, _, err) = lacuna(dir.path(), wrong, &["generate", "--device", number, "-l", "4"]);
        assert_eq!(code, 8, "{err}");
        assert!(err.contains("--device cpu"), "{err}");
    }
    let kernels = if has_kernels() { "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" } else { "built without nvcc" };
    let (code, _, err) = lacuna(dir.path(), "refuses", &["selftest", "--device", "cuda", "--quick"]);
    assert_eq!(code, 8);
    assert!(err.contains(kernels), "{err}");
    // What models are computed on does not change.
    let (code, _, err) = lacuna(dir.path(), "", &["generate", "--device", "cpu", "-l", "4", "-T", "2", "-q"]);
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn kernels_that_do_nothing_fail_the_self_test() {
    let Some(dir) = support::stand_in() else { return };
    if !has_kernels() {
        return;
    }
    let args = ["selftest", "--quick", "--filter", "norm_rms_f32"];
    let (code, out, err) = lacuna(dir.path(), "", &args);
    assert_eq!(code, 8, "{err}");
    assert!(err.starts_with("testing on cuda:0: there is a card, Stand-in"), "{err}");
    for words in
        ["Stand-in, compute capability 9.0, 132 multiprocessors", "CUDA 13.0", "0 of ", "FAILED norm_rms_f32"]
    {
        assert!(out.contains(words), "{out}");
    }
    assert!(!out.contains("did not run"), "{out}");
}

#[test]
fn a_kernel_that_crashes_ends_the_self_test() {
    let Some(dir) = support::stand_in() else { return };
    if !has_kernels() {
        return;
    }
    let (code, out, err) = lacuna(dir.path(), "fault", &["selftest", "--quick", "--filter", "norm_rms_f32"]);
    assert_eq!(code, 8, "{err}");
    for words in [
        "CUDA_ERROR_ILLEGAL_ADDRESS (in words); the kernel started last was norm_rms_f32",
        "Nothing more can run on the device",
        "0 of ",
        "1 failed, ",
        " did not run",
        "compute-sanitizer",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert!(err.contains("1 of 1 cases failed"), "{err}");
}

#[test]
fn memory_launches_graphs_and_events() {
    let Some(dir) = support::stand_in() else { return };
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "on_the_stand_in", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env("LD_LIBRARY_PATH", dir.path()).env("STANDIN_REPORT", "1");
    let out = command.output().expect("started");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}{}", String::from_utf8_lossy(&out.stdout));
    assert!(
        err.contains("stand-in: 0 allocations 0 contexts 0 streams 0 modules 0 graphs 0 events left"),
        "{err}"
    );
}

/// The words of an error of the device.
fn says<T>(result: lacuna::Result<T>, words: &str) {
    let Err(error) = result else { panic!("no error: {words}") };
    assert!(matches!(error, Error::Device { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

fn norm<'a>(out: &'a mut Buffer<Card>, threads: u32, shared: usize) -> Launch<'a> {
    let mut launch = Launch::new("norm_rms_f32", [1, 1, 1], threads, shared).expect("a launch");
    launch.write("out", out, Dtype::F32, 0, 4).expect("room");
    launch.null().null().null().null().u32(4).f32(1e-5);
    launch
}

#[test]
#[ignore = "run by memory_launches_graphs_and_events, on the stand-in"]
fn on_the_stand_in() {
    if !has_kernels() {
        says(Card::open(0), "built without nvcc");
        return;
    }
    let card = Card::open(0).expect("the stand-in");
    let facts = card.facts();
    assert_eq!((facts.capability, facts.multiprocessors, facts.driver), ((9, 0), 132, Some((13, 0))));
    assert_eq!((facts.memory, facts.shared_per_block), (1 << 30, 232_448));
    assert!(card.has_kernel("norm_rms_f32") && !card.has_kernel("norm_rms_f64"));

    // Copies, at places; what does not fit.
    let mut bytes = Buffer::<Card>::new(&card, Format::U8, 100).expect("memory");
    if cfg!(debug_assertions) {
        assert_eq!(bytes.to_vec::<u8>(&card).expect("read"), [0xff; 100]);
    }
    bytes.fill(&card, 7).expect("filled");
    bytes.write(&card, 98, &[1_u8, 2]).expect("written");
    assert_eq!(bytes.to_vec::<u8>(&card).expect("read")[96..], [7, 7, 1, 2]);
    assert!(matches!(bytes.write(&card, 99, &[1_u8, 2]), Err(Error::Shape { .. })));
    let raw = card.allocate(8).expect("memory");
    for result in
        [card.upload(&raw, 7, &[0; 2]), card.download(&raw, usize::MAX, &mut [0]), card.fill(&raw, 0, 9, 0)]
    {
        assert!(matches!(result, Err(Error::Shape { .. })));
    }
    drop(card.allocate(0).expect("nothing"));
    let Err(error) = card.allocate(1 << 40) else { panic!("there is not so much") };
    assert!(matches!(error, Error::Memory { needed, .. } if needed == 1 << 40));
    assert!(error.to_string().contains("of 1073741824 there 1000 are free"), "{error}");

    // Sent by way of pinned memory: more than it holds, then small pieces, all where they belong.
    let many: Vec<u8> = (0..37_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut sent = Buffer::<Card>::new(&card, Format::U8, many.len()).expect("memory");
    let before = card.counts();
    sent.send(&card, 1, &many[1..]).expect("sent");
    sent.send(&card, 0, &many[..1]).expect("sent");
    for at in [0, 5, 77_777] {
        sent.send(&card, at, &many[at..at + 9]).expect("sent");
    }
    let counts = card.counts() - before;
    assert_eq!((counts.sends, counts.uploads), (5, 0), "{counts:?}");
    assert!(sent.to_vec::<u8>(&card).expect("read") == many, "what was sent is not what arrived");
    assert!(matches!(sent.send(&card, many.len(), &[0_u8]), Err(Error::Shape { .. })));

    // Launches that are refused before the driver sees them.
    let mut out = Buffer::<Card>::new(&card, Dtype::F32, 4).expect("memory");
    let launch = |launch: &Launch<'_>| {
        // SAFETY: no kernel runs on the stand-in.
        unsafe { card.launch(launch) }
    };
    launch(&norm(&mut out, 256, 232_448)).expect("a launch");
    says(launch(&norm(&mut out, 512, 0)), "512 threads a block, it takes 1 to 256");
    says(launch(&norm(&mut out, 256, 232_449)), "232449 bytes of shared memory, of 232448");
    let mut more = norm(&mut out, 256, 0);
    more.u64(1);
    says(launch(&more), "parameters are of [8, 8, 8, 8, 8, 4, 4] bytes");
    let other = Launch::new("norm_rms_f64", [1, 1, 1], 32, 0).expect("a launch");
    says(launch(&other), "no kernel of this name");

    // A graph does later what was recorded; what cannot be recorded is refused and the recording goes on.
    let mut late = Some(card.allocate(16).expect("memory"));
    let graph = card.capture(|| {
        bytes.fill(&card, 9)?;
        late = None;
        says(card.upload(&raw, 0, &[1]), "upload: not possible while a graph is being recorded");
        says(card.download(&raw, 0, &mut [1]), "download: not possible");
        says(card.allocate(8), "allocate: not possible");
        says(card.synchronize(), "synchronize: not possible");
        says(card.record(), "record: not possible");
        says(card.capture(|| Ok(())), "capture: not possible");
        launch(&norm(&mut out, 256, 0))
    });
    let graph = graph.expect("a graph");
    assert_eq!(bytes.to_vec::<u8>(&card).expect("read")[99], 2, "nothing was done yet");
    // SAFETY: `bytes` and `out` are still there.
    unsafe { card.replay(&graph) }.expect("replayed");
    assert_eq!(bytes.to_vec::<u8>(&card).expect("read"), [9; 100]);
    says(
        card.capture(|| {
            says(unsafe { card.replay(&graph) }, "replay: not possible");
            card.synchronize()
        }),
        "synchronize",
    );
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = card.capture(|| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    card.synchronize().expect("no recording is left over");

    let (from, to) = (card.record().expect("an event"), card.record().expect("an event"));
    assert!((card.elapsed_ms(&from, &to).expect("a time") - 1.5).abs() < 1e-6);

    // Another thread has no context of its own; memory may outlive the card.
    let clone = card.clone();
    let memory = std::thread::spawn(move || clone.allocate(4)).join().expect("no panic").expect("memory");
    drop((card, bytes, out, raw, late, graph, from, to));
    drop(memory);
}
