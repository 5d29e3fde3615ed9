//! What is said about machines that this one is not.

use super::*;

static PLAIN: [Fatbin; 2] = [
    Fatbin { stem: "norm", bytes: &[], archs: &["80", "90a"], kernels: &["norm_layer_f32"] },
    Fatbin { stem: "attention_sm90", bytes: &[], archs: &["90a"], kernels: &["attention_fwd_bf16_sm90"] },
];
static HOPPER_ONLY: [Fatbin; 1] =
    [Fatbin { stem: "norm", bytes: &[], archs: &["90a"], kernels: &["norm_layer_f32"] }];

fn found(version: (u32, u32), cards: &[(&str, (u32, u32))]) -> Driver {
    Driver::Found { version, cards: cards.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect() }
}

/// The error is of the device, with exit code 8, and holds all of `words`.
fn says(result: Result<Named>, words: &[&str]) {
    let error = result.expect_err("a lack");
    assert_eq!(error.exit_code(), 8);
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in {error}");
    }
}

#[test]
fn cards_that_will_do() {
    let driver = found((13, 0), &[("NVIDIA A100", (8, 0)), ("NVIDIA H100", (9, 0)), ("RTX 5090", (12, 0))]);
    for (ordinal, name) in [(0, "NVIDIA A100"), (1, "NVIDIA H100"), (2, "RTX 5090")] {
        assert_eq!(choose(&driver, &PLAIN, ordinal).expect("it will do").0, name);
    }
}

#[test]
fn no_driver() {
    says(
        choose(&Driver::Missing, &PLAIN, 0),
        &["cuda:0", "no NVIDIA driver found", LIBRARY, "--device cpu", "simt"],
    );
}

#[test]
fn an_old_driver() {
    says(choose(&Driver::Lacks("cuGraphInstantiateWithFlags"), &PLAIN, 0), &["too old", "cuGraph", "12.0"]);
    says(choose(&found((11, 8), &[("NVIDIA A100", (8, 0))]), &PLAIN, 0), &["CUDA 11.8", "12.0 or later"]);
}

#[test]
fn a_driver_that_does_not_start() {
    for (code, word) in [
        (Code::STUB_LIBRARY, "LD_LIBRARY_PATH"),
        (Code::SYSTEM_DRIVER_MISMATCH, "restart"),
        (Code::SYSTEM_NOT_READY, "fabricmanager"),
        (Code(999), "nvidia-smi"),
    ] {
        says(choose(&Driver::Failed(code, "CUDA_ERROR_X".into()), &PLAIN, 0), &["CUDA_ERROR_X", word]);
    }
}

#[test]
fn no_card() {
    says(choose(&found((13, 0), &[]), &PLAIN, 0), &["sees no card", "CUDA_VISIBLE_DEVICES"]);
}

#[test]
fn a_number_that_no_card_has() {
    let driver = found((13, 0), &[("NVIDIA A100", (8, 0)), ("NVIDIA H100", (9, 0))]);
    says(
        choose(&driver, &PLAIN, 2),
        &["cuda:2", "no card 2", "cuda:0 is NVIDIA A100, cuda:1 is NVIDIA H100"],
    );
}

#[test]
fn an_old_card() {
    let driver = found((12, 4), &[("Tesla T4", (7, 5))]);
    says(choose(&driver, &PLAIN, 0), &["Tesla T4", "compute capability 7.5", "8.0"]);
}

#[test]
fn a_build_without_kernels() {
    let driver = found((13, 0), &[("NVIDIA A100", (8, 0))]);
    says(choose(&driver, &[], 0), &["built without nvcc", "tools/setup-cuda", "build again"]);
}

#[test]
fn a_build_for_other_cards() {
    let driver = found((13, 0), &[("NVIDIA A100", (8, 0)), ("NVIDIA H100", (9, 0))]);
    says(choose(&driver, &HOPPER_ONLY, 0), &["NVIDIA A100 is sm_80", "built for 90a", "LACUNA_CUDA_ARCHS"]);
    assert!(choose(&driver, &HOPPER_ONLY, 1).is_ok());
}

#[test]
fn images_and_the_cards_that_run_them() {
    for (archs, capability, runs) in [
        (&["80", "90a"][..], (8, 0), true),
        (&["80", "90a"], (8, 9), true),
        (&["80", "90a"], (9, 0), true),
        (&["80", "90a"], (10, 0), true),
        (&["80", "90a"], (12, 0), true),
        (&["90a"], (8, 0), false),
        (&["90a"], (10, 0), false),
        (&["90"], (10, 0), true),
        (&["90"], (8, 9), false),
        (&["100f"], (10, 3), true),
        (&["100f"], (12, 0), false),
        (&["103a"], (10, 0), false),
        (&["odd"], (10, 0), false),
    ] {
        assert_eq!(has_image(archs, capability), runs, "{archs:?} on {capability:?}");
    }
}

#[test]
fn hopper_kernels_are_for_hopper() {
    assert!(is_wanted("attention_sm90", (9, 0)));
    for capability in [(8, 0), (8, 9), (10, 0), (12, 0)] {
        assert!(!is_wanted("attention_sm90", capability));
        assert!(is_wanted("attention", capability));
    }
}

#[test]
fn a_driver_too_old_for_the_kernels() {
    let refused =
        |code, driver| refused(0, "norm", (code, "CUDA_ERROR_X"), driver, Some("13.0.88")).to_string();
    let old = refused(Code::UNSUPPORTED_PTX_VERSION, (12, 4));
    for word in
        ["CUDA 12.4", "norm", "nvcc 13.0.88", "CUDA_ERROR_X", "13.0 or later (R580)", "nvcc of CUDA 12"]
    {
        assert!(old.contains(word), "{old}");
    }
    for code in [Code::INVALID_IMAGE, Code::NO_BINARY_FOR_GPU] {
        assert!(refused(code, (12, 4)).contains("13.0 or later (R580)"));
        // The driver is new enough, so something else is wrong.
        assert!(refused(code, (13, 0)).contains("LACUNA_CUDA_ARCHS"));
    }
    assert!(refused(Code::JIT_COMPILER_NOT_FOUND, (13, 0)).contains("libnvidia-ptxjitcompiler"));
    let newer = super::refused(0, "norm", (Code::UNSUPPORTED_PTX_VERSION, "X"), (12, 2), Some("12.8.93"));
    assert!(newer.to_string().contains("12.8 or later (R570)"), "{newer}");
}

#[test]
fn this_machine_gives_an_answer() {
    for ordinal in [0, 7, usize::MAX] {
        if let Err(error) = available(ordinal) {
            assert!(matches!(error, Error::Device { .. }), "{error}");
        }
    }
    assert!(built_in().all(|(stem, kernel)| !stem.is_empty() && !kernel.is_empty()));
}
