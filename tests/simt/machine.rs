//! The SIMT machine itself: kernels with one fault each (`cuda/simt/faulty.cu`) are told from those without, by kind,
//! kernel, line and other party, under every schedule.

use lacuna::backend::cuda::simt::{Fault, Options, Simt};
use lacuna::backend::cuda::{Buffer, Device, Format, Launch};
use lacuna::element::Dtype;

const SOURCE: &str = include_str!("../../cuda/simt/faulty.cu");
const FILE: &str = "cuda/simt/faulty.cu";

/// Lines on which `mark NAME` stands.
fn marked(mark: &str, name: &str) -> Vec<u32> {
    let has = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(2).any(|w| w == [mark, name])
    };
    SOURCE.lines().enumerate().filter(|(_, line)| has(line)).map(|(i, _)| i as u32 + 1).collect()
}

#[derive(Clone, Copy)]
enum Inputs {
    /// `(float* out)` of 64 numbers at most.
    Out,
    /// `(const float* x, float* out)`.
    InOut,
    /// `(unsigned* out)`.
    Words,
    /// `(bf16* out)`.
    Half,
}

struct Setup {
    kernel: &'static str,
    inputs: Inputs,
    blocks: usize,
    threads: u32,
    shared: usize,
}

/// Runs a kernel on one output number a thread; the faults found.
fn run(setup: &Setup, options: Options) -> Vec<Fault> {
    let simt = Simt::new(options);
    let n = setup.threads as usize;
    let x = Buffer::floats(&simt, Dtype::F32, &vec![1.0; 4 * n]).unwrap();
    let format = match setup.inputs {
        Inputs::Words => Format::U32,
        Inputs::Half => Format::Float(Dtype::Bf16),
        _ => Format::Float(Dtype::F32),
    };
    let mut out = Buffer::new(&simt, format, n).unwrap();
    let mut launch = Launch::new(setup.kernel, [setup.blocks, 1, 1], setup.threads, setup.shared).unwrap();
    if matches!(setup.inputs, Inputs::InOut) {
        let wide = setup.kernel.contains("copy");
        launch.read("x", &x, Dtype::F32, 0, if wide { 4 * n } else { n }).unwrap();
    }
    launch.write("out", &mut out, format, 0, n).unwrap();
    // SAFETY: the kernels touch what the machine lets them; a fault is what this test is about.
    let result = unsafe { simt.launch(&launch) };
    let faults = simt.take_faults();
    assert_eq!(result.is_err(), !faults.is_empty(), "{}: {result:?}", setup.kernel);
    faults
}

fn schedules() -> impl Iterator<Item = Options> {
    (0..6).map(|seed| Options { seed, check: true })
}

#[track_caller]
fn expect(kernel: &'static str, inputs: Inputs, blocks: usize, threads: u32, shared: usize, kind: &str) {
    for options in schedules() {
        let faults = run(&Setup { kernel, inputs, blocks, threads, shared }, options);
        let fault = faults.iter().find(|f| f.kind == kind);
        let fault =
            fault.unwrap_or_else(|| panic!("{kernel}, seed {}: no {kind} in {faults:?}", options.seed));
        assert_eq!(fault.kernel, kernel);
        let mut lines = marked("HERE", kernel);
        lines.extend(marked("EITHER", kernel));
        if !lines.is_empty() {
            let (file, line) = fault.place.clone().unwrap_or_else(|| panic!("{fault}: no place"));
            assert!(file.ends_with(FILE), "{fault}");
            assert!(lines.contains(&line), "{fault}: expected line {lines:?}");
        }
        let mut others = marked("OTHER", kernel);
        if fault.other.is_some() {
            others.extend(marked("EITHER", kernel));
        }
        if !others.is_empty() {
            let (_, place) = fault.other.clone().unwrap_or_else(|| panic!("{fault}: no other party"));
            let (file, line) = place.unwrap_or_else(|| panic!("{fault}: no place of the other party"));
            assert!(
                file.ends_with(FILE) && others.contains(&line),
                "{fault}: expected other line {others:?}"
            );
        }
    }
}

#[test]
fn races_in_shared_memory() {
    expect("faulty_read_before_write", Inputs::Out, 1, 64, 256, "race: read after write");
    expect("faulty_write_after_read", Inputs::Out, 1, 64, 256, "race: write after read");
    expect("faulty_write_write", Inputs::Out, 1, 64, 256, "race: write after write");
    expect("faulty_shuffle_is_no_fence", Inputs::Out, 1, 32, 128, "race: read after write");
    expect("faulty_syncwarp_across_warps", Inputs::Out, 1, 64, 256, "race: read after write");
}

#[test]
fn bounds_of_shared_memory() {
    expect("faulty_never_written", Inputs::Out, 1, 32, 128, "read of shared memory never written");
    expect("faulty_shared_overrun", Inputs::Out, 1, 32, 128, "shared memory out of bounds");
    expect("faulty_misaligned", Inputs::Out, 1, 32, 128, "misaligned access");
}

#[test]
fn asynchronous_copies() {
    let kind = "read of shared memory with a copy in flight";
    expect("faulty_copy_not_waited_for", Inputs::InOut, 1, 32, 512, kind);
    expect("faulty_copy_without_barrier", Inputs::InOut, 1, 64, 1024, "race: read after write");
    expect("faulty_copy_never_waited_for", Inputs::InOut, 1, 32, 512, "cp.async never waited for");
}

#[test]
fn global_memory() {
    expect("faulty_read_past_the_end", Inputs::InOut, 1, 32, 0, "global memory out of bounds");
    expect("faulty_write_to_input", Inputs::InOut, 1, 32, 0, "write to a read-only argument");
    expect("faulty_output_not_written", Inputs::Out, 1, 32, 0, "output not written");
    expect("faulty_blocks_race", Inputs::Out, 2, 32, 0, "race between blocks: write after write");
}

#[test]
fn barriers_and_warps() {
    expect("faulty_divergent_barrier", Inputs::Out, 1, 64, 0, "divergent __syncthreads");
    expect("faulty_barrier_after_exit", Inputs::Out, 1, 64, 0, "deadlock");
    expect("faulty_divergent_shuffle", Inputs::Out, 1, 32, 0, "divergent warp collective");
    expect("faulty_wrong_mask", Inputs::Out, 1, 32, 0, "lane not in its own mask");
    expect("faulty_mask_of_exited_lanes", Inputs::Out, 1, 32, 0, "mask names exited lanes");
}

#[test]
fn what_is_right_passes() {
    for options in schedules() {
        for (kernel, inputs, shared) in [
            ("faultless_subset_first", Inputs::Out, 0),
            ("faultless_atomics", Inputs::Words, 4),
            ("faultless_named_barrier", Inputs::Out, 256),
            ("faultless_own_bytes", Inputs::Half, 128),
        ] {
            let faults = run(&Setup { kernel, inputs, blocks: 1, threads: 64, shared }, options);
            assert!(faults.is_empty(), "{kernel}: {faults:?}");
        }
    }
}

/// Without checks, an access far outside is still reported instead of ending the process.
#[test]
fn a_missing_page_is_reported_without_checks() {
    let simt = Simt::new(Options { seed: 0, check: false });
    // The buffer ends at a page that is not there; the kernel reads one number more.
    let x = Buffer::floats(&simt, Dtype::F32, &[1.0; 32]).unwrap();
    let mut out = Buffer::new(&simt, Dtype::F32, 32).unwrap();
    let mut launch = Launch::new("faulty_read_past_the_end", [1, 1, 1], 32, 0).unwrap();
    launch.read("x", &x, Dtype::F32, 0, 32).unwrap();
    launch.write("out", &mut out, Dtype::F32, 0, 32).unwrap();
    // SAFETY: as above.
    let error = unsafe { simt.launch(&launch) }.unwrap_err().to_string();
    assert!(error.contains("access to memory that is not there"), "{error}");
    let [fault] = simt.take_faults().try_into().unwrap();
    assert_eq!(fault.thread, [31, 0, 0]);
    assert_eq!(fault.place.unwrap().1, marked("HERE", "faulty_read_past_the_end")[0]);
}

#[test]
fn refused_launches() {
    let simt = Simt::new(Options::default());
    let message = |launch: &Launch<'_>| {
        // SAFETY: none of these starts a kernel.
        unsafe { simt.launch(launch) }.unwrap_err().to_string()
    };
    let unknown = Launch::new("no_such_kernel", [1, 1, 1], 32, 0).unwrap();
    assert!(message(&unknown).contains("no_such_kernel: there is no kernel"));
    let short = Launch::new("faulty_wrong_mask", [1, 1, 1], 32, 0).unwrap();
    assert!(message(&short).contains("parameters"));
    let greedy = Launch::new("faulty_wrong_mask", [1, 1, 1], 32, 1 << 20).unwrap();
    assert!(message(&greedy).contains("shared memory"));
    let mut out = Buffer::new(&simt, Dtype::F32, 64).unwrap();
    let mut wide = Launch::new("faulty_wrong_mask", [1, 1, 1], 64, 0).unwrap();
    wide.write("out", &mut out, Dtype::F32, 0, 64).unwrap();
    assert!(message(&wide).contains("too many threads"));
    assert!(Launch::new("faulty_wrong_mask", [1, 70_000, 1], 32, 0).is_err());
    let mut launch = Launch::new("faulty_wrong_mask", [1, 1, 1], 32, 0).unwrap();
    assert!(launch.read("out", &out, Dtype::F32, 60, 5).is_err());
    assert!(launch.read("out", &out, Dtype::Bf16, 0, 4).is_err());
}

/// Launches and fills that are recorded happen at the replay, and each time again.
#[test]
fn graphs_are_recorded_and_replayed() {
    let simt = Simt::new(Options::default());
    let mut out = Buffer::of(&simt, Format::U32, &[5u32; 64]).unwrap();
    let graph = simt
        .capture(|| {
            let mut launch = Launch::new("faultless_atomics", [1, 1, 1], 64, 4)?;
            launch.write("out", &mut out, Format::U32, 0, 64)?;
            // SAFETY: one number a thread.
            unsafe { simt.launch(&launch) }
        })
        .unwrap();
    assert_eq!(out.to_vec::<u32>(&simt).unwrap(), [5; 64]);
    for _ in 0..2 {
        out.fill(&simt, 0).unwrap();
        // SAFETY: `out` is still there.
        unsafe { simt.replay(&graph) }.unwrap();
        assert_eq!(out.to_vec::<u32>(&simt).unwrap(), [64; 64]);
    }
    let refused = simt.capture(|| out.write(&simt, 0, &[1u32]));
    assert!(refused.err().unwrap().to_string().contains("recorded"));
}
