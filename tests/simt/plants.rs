//! Bugs planted into the real kernels (`cuda/simt/plants/`) and into launches: the SIMT machine must name each.

use lacuna::backend::cpu::Cpu;
use lacuna::backend::cuda::simt::{Fault, Options, Simt};
use lacuna::backend::cuda::{Cuda, Launch};
use lacuna::selftest::{self, Grid, Rig};

/// The faults that the cases of a kernel (names that begin with `kernel`) meet on `simt`; stops at the first case that does.
fn first_faults(simt: Simt, kernel: &str) -> Vec<Fault> {
    let cuda = Cuda::new(simt);
    let cpu = Cpu::new(std::num::NonZeroUsize::new(1)).unwrap();
    let rig = Rig::new(&cuda, &cpu, 3);
    let cases = selftest::cases(Grid::Quick, "");
    let mut ran = false;
    for case in cases.iter().filter(|c| c.kernel.starts_with(kernel)) {
        ran = true;
        let result = case.run(&rig);
        let faults = cuda.device().take_faults();
        if !faults.is_empty() {
            assert!(result.is_err(), "{}: {faults:?}, but {result:?}", case.kernel);
            return faults;
        }
    }
    assert!(ran, "no cases of {kernel}");
    Vec::new()
}

/// The plant is found under every schedule, in its own kernel and file, as a fault whose kind begins with `kind`
/// (which of two parties of a race comes later is the schedule's choice).
#[track_caller]
fn planted(plant: &str, kernel: &str, file: &str, kind: &str) {
    for seed in [0, 1, 2] {
        let prefix = format!("plant_{plant}_");
        let simt = Simt::with_bugs(Options { seed, check: true }, &prefix, None);
        // Kernels of other files than the mutant's are the real ones.
        let faults = first_faults(simt, kernel);
        let found = faults.iter().find(|f| f.kind.starts_with(kind));
        let fault =
            found.unwrap_or_else(|| panic!("{plant}, seed {seed}: expected {kind}, found {faults:?}"));
        assert!(fault.kernel.starts_with(&prefix), "{fault}");
        if let Some((path, _)) = &fault.place {
            assert!(path.contains(file) || path.contains("cuda/common/"), "{fault}");
        }
    }
}

/// A launch changed by `change` is found as `kind`.
#[track_caller]
fn tampered(kernel: &str, kind: &str, change: fn(&mut Launch<'_>)) {
    for seed in [0, 1] {
        let simt = Simt::with_bugs(Options { seed, check: true }, "", Some(Box::new(change)));
        let faults = first_faults(simt, kernel);
        let found = faults.iter().any(|f| f.kind == kind && f.kernel.starts_with(kernel));
        assert!(found, "{kernel}, seed {seed}: expected {kind}, found {faults:?}");
    }
}

#[test]
fn norm() {
    planted("norm_unwritten", "norm_layer", "norm.cu", "output not written");
    planted("norm_past_the_end", "norm_rms", "norm.cu", "shared memory out of bounds");
}

#[test]
fn kernels_of_rows() {
    let overrun = "global memory out of bounds";
    for (plant, kernel, file, kind) in [
        ("probe_mask", "probe", "probe.cu", "lane not in its own mask"),
        ("probe_syncwarp", "probe", "probe.cu", "race: read after write"),
        ("probe_wait", "probe", "probe.cu", "read of shared memory with a copy in flight"),
        ("embedding_tail", "embedding", "embedding.cu", overrun),
        ("mask_unwritten", "mask", "mask.cu", "output not written"),
        ("compact_barrier", "compact", "compact.cu", "race: "),
        ("compact_offsets", "compact", "compact.cu", "race: "),
        ("head_edge", "head", "head.cu", overrun),
    ] {
        planted(plant, kernel, file, kind);
    }
}

#[test]
fn gradients_of_rows() {
    let (race, overrun, unwritten) = ("race: ", "global memory out of bounds", "output not written");
    for (plant, kernel, stem, kind) in [
        ("elementwise_unwritten", "elementwise_copy", "elementwise", unwritten),
        ("elementwise_past", "elementwise_scale", "elementwise", overrun),
        ("columns_barrier", "columns", "columns", race),
        ("columns_add_barrier", "columns", "columns", race),
        ("columns_row_past", "columns", "columns", overrun),
        ("columns_unwritten", "columns", "columns", unwritten),
        ("norm_backward_barrier", "norm_rms_backward", "norm", race),
        ("norm_backward_scratch", "norm_layer_backward", "norm", race),
        ("norm_backward_past", "norm_layer_backward", "norm", overrun),
        ("norm_backward_unwritten", "norm_rms_backward", "norm", unwritten),
        ("head_gradient_wait", "head_gradient", "head", "read of shared memory with a copy in flight"),
        ("head_gradient_room", "head_gradient", "head", "shared memory out of bounds"),
        ("head_gradient_barrier", "head_gradient", "head", race),
        ("head_gradient_unwritten", "head_gradient", "head", unwritten),
        ("activation_backward_past", "activation_gelu_erf_backward", "activation", overrun),
        ("activation_backward_unwritten", "activation_swiglu_backward", "activation", unwritten),
        ("rope_back_past", "rope_back", "rope", overrun),
        ("embedding_backward_sums", "embedding_backward", "embedding", race),
        ("embedding_backward_counts", "embedding_backward", "embedding", race),
        ("embedding_backward_past", "embedding_backward", "embedding", overrun),
    ] {
        planted(plant, kernel, &format!("{stem}.cu"), kind);
    }
}

#[test]
fn attention() {
    for (plant, kind) in [
        ("attention_wait", "read of shared memory with a copy in flight"),
        ("attention_barrier", "race: "),
        ("attention_overwrite", "race: "),
        ("attention_row", "global memory out of bounds"),
        ("attention_last_row", "global memory out of bounds"),
        ("attention_warp", "race: "),
        ("attention_unwritten", "output not written"),
    ] {
        planted(plant, "attention_fwd_bf16", "attention", kind);
    }
}

#[test]
fn attention_backward() {
    let (race, overrun) = ("race: ", "global memory out of bounds");
    for (plant, kind) in [
        ("attention_bwd_dots_unwritten", "output not written"),
        ("attention_bwd_dots_past", overrun),
        ("attention_bwd_kv_wait", "read of shared memory with a copy in flight"),
        ("attention_bwd_kv_known", race),
        ("attention_bwd_kv_last_row", overrun),
        ("attention_bwd_warp", race),
        ("attention_bwd_q_overwrite", race),
        ("attention_bwd_q_last_row", overrun),
    ] {
        planted(plant, "attention_bwd_bf16", "attention_bwd.cu", kind);
    }
    for plant in ["attention_bwd_f32_kv_barrier", "attention_bwd_f32_weights"] {
        planted(plant, "attention_bwd_f32", "attention_bwd_f32.cu", race);
    }
}

#[test]
fn unmask_and_commit() {
    let (race, overrun) = ("race: ", "global memory out of bounds");
    for (plant, kernel, kind) in [
        ("unmask_barrier", "unmask", race),
        ("unmask_tail", "unmask", overrun),
        ("unmask_mask", "unmask", "lane not in its own mask"),
        ("unmask_flag", "unmask", "output not written"),
        ("unmask_wait", "unmask", "read of shared memory with a copy in flight"),
        ("commit_barrier", "commit", race),
        ("commit_left", "commit", "output not written"),
        ("commit_slot", "commit", overrun),
        ("needs_barrier", "needs", race),
        ("needs_place", "needs", "output not written"),
        ("needs_past", "needs", overrun),
        ("random_past", "random", overrun),
    ] {
        let file = format!("{kernel}.cu");
        planted(plant, kernel, &file, kind);
    }
}

#[test]
fn matmul() {
    let file = "matmul.cu";
    for (plant, kind) in [
        ("matmul_wait_short", "read of shared memory with a copy in flight"),
        ("matmul_no_barrier", "race: "),
        ("matmul_staged_early", "race: "),
        ("matmul_past_column", "global memory out of bounds"),
        ("matmul_missing_row", "output not written"),
        ("matmul_row_past", "global memory out of bounds"),
    ] {
        planted(plant, "matmul_nt_bf16", file, kind);
    }
}

#[test]
fn optim() {
    let (race, overrun) = ("race: ", "global memory out of bounds");
    for (plant, kernel, kind) in [
        ("optim_words", "optim_adamw_f32_bf16", race),
        ("optim_past", "optim_adamw_bf16_f32", overrun),
        ("optim_code", "optim_adamw_f32_q8", overrun),
        ("optim_scale", "optim_adamw_f16_q8", overrun),
        ("optim_lanes", "optim_adamw_bf16_q8", race),
        ("optim_partial", "optim_squares", "output not written"),
        ("optim_squares", "optim_squares", overrun),
        ("optim_watch", "optim_watch", overrun),
        ("optim_settle", "optim_settle", race),
    ] {
        planted(plant, kernel, "optim.cu", kind);
    }
}

#[test]
fn matmul_backward() {
    let overrun = "global memory out of bounds";
    for (plant, kernel, file, kind) in [
        ("tn_staged_early", "matmul_tn_bf16", "matmul.cu", "race: "),
        ("tn_row_past", "matmul_tn_bf16", "matmul.cu", overrun),
        ("tn_past_row", "matmul_tn_f16", "matmul.cu", overrun),
        ("tn_syncwarp", "matmul_tn_f16", "matmul.cu", "race: "),
        ("tn_f32_barrier", "matmul_tn_f32", "matmul_f32.cu", "race: "),
        ("tn_f32_past", "matmul_tn_f32", "matmul_f32.cu", overrun),
        ("tn_f32_column", "matmul_tn_f32", "matmul_f32.cu", overrun),
    ] {
        planted(plant, kernel, file, kind);
    }
}

#[test]
fn too_little_shared_memory() {
    tampered("norm_layer", "shared memory out of bounds", |launch| launch.shared -= 4);
}

#[test]
fn a_grid_too_small() {
    tampered("norm_layer", "output not written", |launch| launch.grid[0] -= 1);
}

#[test]
fn a_grid_too_large() {
    tampered("norm_rms", "global memory out of bounds", |launch| launch.grid[0] += 1);
}

#[test]
fn too_many_threads() {
    tampered("norm_rms", "too many threads", |launch| launch.block[0] *= 2);
}

/// Without any bug there is nothing to find.
#[test]
fn no_bug_no_fault() {
    assert!(first_faults(Simt::with_bugs(Options::default(), "", None), "norm").is_empty());
}
