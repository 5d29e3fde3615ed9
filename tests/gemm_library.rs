//! Matrix products by cuBLASLt, on a stand-in for the library that computes naively (tests/support/libcublaslt.c): that it is
//! asked for what the program's own kernels compute, directly and recorded, and what is said where it will not do.
#![cfg(all(feature = "simt", target_os = "linux"))]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lacuna::backend::cuda::driver;
use lacuna::backend::cuda::simt::{Options, Simt};
use lacuna::backend::cuda::{Buffer, Cuda, Device, LinearEpilogue, Matrix};
use lacuna::backend::{Backend, Layout, Mask, Rows};
use lacuna::element::Dtype;
use lacuna::io::ModelFiles;
use lacuna::model::{Arena, ArenaSize, Batch, LoadOptions, Model};
use lacuna::sample::{Canvas, Limits, Request, Sampler};

#[path = "support/stand_in.rs"]
mod support;
use support::stand_in;

/// The stand-in's file in the folder.
fn library(dir: &Path) -> String {
    dir.join("libcublaslt-stand-in.so").to_str().expect("UTF-8").to_owned()
}

/// Runs the ignored test `name` of this file with the stand-ins; its standard error.
fn run(dir: &Path, name: &str, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env("LD_LIBRARY_PATH", dir).env("LACUNA_CUBLASLT", library(dir)).env("STANDIN_REPORT", "1");
    let out = command.envs(environment.iter().copied()).output().expect("started");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name}: {err}{}", String::from_utf8_lossy(&out.stdout));
    err.into_owned()
}

const NOTHING_LEFT: &str = "stand-in: 0 handles 0 products 0 layouts 0 preferences left, ";

#[test]
fn the_library_passes_the_self_test() {
    let Some(dir) = stand_in() else { return };
    let library = library(dir.path());
    let environment = [("LACUNA_CUBLASLT", library.as_str()), ("STANDIN_REPORT", "1")];
    let mut places = vec!["simt"];
    // Without kernels no card can be opened, not even to multiply.
    if driver::built_in().next().is_some() {
        places.push("cuda");
    }
    for device in places {
        let args = ["selftest", "--device", device, "--quick", "--filter", "library_"];
        let (code, out, err) = support::lacuna(dir.path(), &environment, &args);
        assert_eq!(code, 0, "{device}: {out}{err}");
        for words in [
            "library  cuBLASLt 13.1.2",
            "library_nt_f16",
            "library_nn_bf16",
            "library_tn_f16",
            "library_input_bf16",
            "36 of 36 cases passed",
        ] {
            assert!(out.contains(words), "{device}: {words}: {out}");
        }
        // Every case runs twice, and the second time as the first one was chosen.
        assert!(err.contains(&format!("{NOTHING_LEFT}36 algorithms chosen, 72 products done")), "{err}");
    }
}

#[test]
fn a_library_that_has_no_algorithm_leaves_it_to_our_kernels() {
    let Some(dir) = stand_in() else { return };
    let library = library(dir.path());
    // "greedy" wants more memory than it is given, for everything; "silent" finds nothing for rows that are not aligned to 4 bytes.
    let generate = |gemm: &str| {
        let environment = [("LACUNA_CUBLASLT", library.as_str()), ("STANDIN", "greedy")];
        let args = ["generate", "--device", "simt", "--dtype", "bf16", "-l", "9", "-T", "3", "--gemm", gemm];
        let (code, text, err) = support::lacuna(dir.path(), &environment, &args);
        assert_eq!(code, 0, "{err}");
        text
    };
    assert_eq!(generate("cublaslt"), generate("own"));
    for wrong in ["silent", "greedy"] {
        run(dir.path(), "what_is_left_to_our_kernels", &[("STANDIN", wrong)]);
    }
    let args = ["selftest", "--device", "simt", "--quick", "--filter", "library_nt_f16"];
    let environment = [("LACUNA_CUBLASLT", library.as_str()), ("STANDIN", "greedy")];
    let (code, out, err) = support::lacuna(dir.path(), &environment, &args);
    assert_eq!(code, 8, "{out}{err}");
    assert!(out.contains("cuBLASLt 13.1.2 has no algorithm for this"), "{out}");
}

#[test]
#[ignore = "run by a_library_that_has_no_algorithm_leaves_it_to_our_kernels, on the stand-in"]
fn what_is_left_to_our_kernels() {
    let cuda = Cuda::with_dtype(Simt::new(Options::default()), Dtype::Bf16).with_library().expect("found");
    let device = cuda.device().clone();
    let greedy = std::env::var("STANDIN").is_ok_and(|wrong| wrong == "greedy");
    let product = |dtype: Dtype, at: usize, stride: usize| {
        let numbers: Vec<f32> = (0..at + 2 * stride + 8).map(|i| (i % 7) as f32).collect();
        let x = Buffer::floats(&device, dtype, &numbers).expect("memory");
        let ones = Buffer::floats(&device, dtype, &[1.0; 40]).expect("memory");
        let matrix = Matrix::of(ones, dtype, Layout::OutIn, [8, 5]).expect("a matrix");
        let mut out = Buffer::new(&device, Dtype::F32, 15).expect("memory");
        let before = device.counts();
        let place = (&mut out, Rows::dense(5));
        cuda.linear(
            dtype,
            (&x, Rows { at, stride }),
            3,
            &matrix,
            0..5,
            LinearEpilogue::NONE,
            place,
            Dtype::F32,
        )
        .expect("a product");
        let expected: Vec<f32> =
            (0..3).flat_map(|r| [numbers[at + r * stride..][..8].iter().sum::<f32>(); 5]).collect();
        assert_eq!(out.to_f32(&device).expect("read"), expected, "{dtype} {at} {stride}");
        let done = device.counts() - before;
        assert_eq!(done.launches, 1, "{done:?}");
        done.library
    };
    assert_eq!(product(Dtype::Bf16, 0, 8), u64::from(!greedy));
    assert_eq!(product(Dtype::F16, 2, 10), u64::from(!greedy));
    // Rows that begin on 2 bytes, rows that overlap, f32.
    assert_eq!(product(Dtype::Bf16, 1, 8), 0);
    assert_eq!(product(Dtype::Bf16, 0, 9), 0);
    assert_eq!(product(Dtype::Bf16, 0, 6), 0);
    assert_eq!(product(Dtype::F32, 0, 8), 0);
}

#[test]
fn a_model_by_the_library_is_the_model() {
    let Some(dir) = stand_in() else { return };
    let err = run(dir.path(), "a_model_by_the_library", &[]);
    assert!(err.contains(NOTHING_LEFT), "{err}");
}

fn bundled(library: bool) -> Arc<Model<Cuda<Simt>>> {
    let mut cuda = Cuda::with_dtype(Simt::new(Options { seed: 0, check: false }), Dtype::Bf16);
    if library {
        cuda = cuda.with_library().expect("found");
    }
    let files = ModelFiles::bundled().expect("the bundled model");
    Arc::new(Model::load(cuda, &files, LoadOptions::default()).expect("loaded"))
}

/// Logits of a sequence.
fn logits(model: &Model<Cuda<Simt>>) -> Vec<f32> {
    let ids: Vec<u32> = (1..34).map(|i| i * 31 % 900).collect();
    let size = ArenaSize { tokens: ids.len(), rows: ids.len() };
    let mut arena = Arena::new(model.backend(), model.config(), size, ids.len()).expect("memory");
    let mut batch = Batch::with_capacity(size, 1);
    batch.push(&ids, 0..ids.len() as u32);
    model.forward(&batch, &mut arena, Mask::Full).expect("a pass");
    let mut all = vec![0.0; ids.len() * model.config().vocab_size];
    let vocab = model.config().vocab_size;
    model
        .head(ids.len(), &mut arena, |range, logits| {
            model.backend().read(logits, 0, &mut all[range.start * vocab..range.end * vocab])
        })
        .expect("logits");
    all
}

#[test]
#[ignore = "run by a_model_by_the_library_is_the_model, on the stand-in"]
fn a_model_by_the_library() {
    let (own, library) = (bundled(false), bundled(true));
    let counts = |model: &Model<Cuda<Simt>>| model.backend().device().counts();
    // The two round at the same places, and sum in another order.
    let (a, b) = (logits(&own), logits(&library));
    assert!(counts(&library).library > 0 && counts(&own).library == 0);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(&b).map(|(a, b)| f64::from(a - b)));
    let relative = error / norm(&mut a.iter().map(|&a| a.into()));
    assert!(relative < 2e-3, "{relative}");

    // Recorded steps are those that were asked for one by one: the second run replays, the first does not.
    let requests: Vec<Request> = (0..3)
        .map(|seed| {
            let mut request = Request::new(Canvas::prefix(&[1, 20], 11 + 2 * seed));
            (request.seed, request.steps, request.stop_at_eos) = (seed as u64, 6, false);
            request
        })
        .collect();
    let mut sampler = Sampler::new(Arc::clone(&library), Limits::for_requests(&requests, 3)).expect("memory");
    let mut runs = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let before = counts(&library);
        let results = sampler.generate_with(&requests, &mut ()).expect("run");
        let tokens: Vec<Vec<u32>> = results.into_iter().map(|g| g.expect("text").ids).collect();
        runs.push(tokens);
        seen.push(counts(&library) - before);
    }
    assert!(runs[1] == runs[0] && runs[2] == runs[0]);
    assert!(seen[0].library > 0 && seen[1].recorded > 0 && seen[1].library > 0, "{seen:?}");
    assert_eq!((seen[2].launches, seen[2].recorded, seen[2].library), (0, 0, 0), "{seen:?}");
    assert!(seen[2].replays > 0, "{seen:?}");
}

#[test]
fn its_products_are_timed_in_place_of_ours() {
    let Some(dir) = stand_in() else { return };
    let library = library(dir.path());
    let bench = |gemm: &str| {
        let args = [
            "bench",
            "kernels",
            "--device",
            "simt",
            "--dtype",
            "bf16",
            "--quick",
            "--json",
            "--no-ceilings",
            "--filter",
            "matmul",
        ];
        let args = [&args[..], &["--gemm", gemm]].concat();
        let (code, out, err) = support::lacuna(dir.path(), &[("LACUNA_CUBLASLT", &library)], &args);
        assert_eq!(code, 0, "{err}");
        out
    };
    let (with, own) = (bench("cublaslt"), bench("auto"));
    assert_eq!(with.matches("\"kernel\":\"cuBLASLt 13.1.2\"").count(), own.lines().count(), "{with}");
    assert!(own.contains("\"kernel\":\"matmul_bf16\""), "{own}");
}

/// One line on standard error, and no text.
fn refused(dir: &Path, environment: &[(&str, &str)], args: &[&str], code: i32, words: &str) {
    let (got, out, err) = support::lacuna(dir, environment, args);
    assert_eq!((got, out.as_str(), err.lines().count()), (code, "", 1), "{args:?}: {err}");
    assert!(err.contains(words), "{words}: {err}");
}

#[test]
fn what_is_said_of_a_library_that_will_not_do() {
    let Some(dir) = stand_in() else { return };
    let (library, driver) = (library(dir.path()), dir.path().join("libcuda.so"));
    let not_there = dir.path().join("not-there.so");
    let [driver, not_there] = [&driver, &not_there].map(|path| path.to_str().expect("UTF-8"));
    let generate = ["generate", "--device", "simt", "--dtype", "bf16", "--gemm", "cublaslt", "-l", "4"];
    for (named, wrong, words) in [
        ("none", "", "no cuBLASLt: switched off by LACUNA_CUBLASLT=none"),
        (not_there, "", "not-there.so: cannot open shared object file"),
        (driver, "", "libcuda.so: it has no cublasLtCreate"),
        (&library, "no-cublaslt", "it does not start: CUBLAS_STATUS_NOT_INITIALIZED"),
        (&library, "failing", "in bf16): CUBLAS_STATUS_EXECUTION_FAILED; --gemm own"),
    ] {
        refused(dir.path(), &[("LACUNA_CUBLASLT", named), ("STANDIN", wrong)], &generate, 8, words);
    }
    // Of those that the loader finds, the newest that will do.
    for (version, source) in [("13", driver), ("12", &library)] {
        std::fs::copy(source, dir.path().join(format!("libcublasLt.so.{version}"))).expect("copied");
    }
    let (code, _, err) = support::lacuna(dir.path(), &[], &[&generate[..], &["-v"]].concat());
    assert!(code == 0 && err.contains("products by cuBLASLt 13.1.2"), "{err}");
    std::fs::remove_file(dir.path().join("libcublasLt.so.12")).expect("removed");
    refused(
        dir.path(),
        &[],
        &generate,
        8,
        "libcublasLt.so.13: it has no cublasLtCreate; libcublasLt.so.12: ",
    );
    // On a card it is looked for by itself; where it was named it has to do, and otherwise our kernels do.
    if driver::built_in().next().is_some() {
        let card = ["generate", "--device", "cuda", "-l", "4"];
        refused(dir.path(), &[("LACUNA_CUBLASLT", not_there)], &card, 8, "no cuBLASLt: ");
        let test = ["selftest", "--device", "cuda", "--quick", "--filter", "library_"];
        refused(dir.path(), &[("LACUNA_CUBLASLT", "none")], &test, 8, "no cuBLASLt: ");
        let test = ["selftest", "--device", "cuda", "--quick", "--filter", "t_f16"];
        let (_, out, _) = support::lacuna(dir.path(), &[("LACUNA_CUBLASLT", "none")], &test);
        assert!(out.contains("library  not tested: ") && !out.contains("did not run"), "{out}");
    }
    for (args, words) in [
        (["--device", "cpu", "--dtype", "f32"], "it multiplies on a card"),
        (["--device", "simt", "--dtype", "f32"], "it is used in bf16 and f16"),
    ] {
        let args = [&["generate", "--gemm", "cublaslt", "-l", "4"], args.as_slice()].concat();
        refused(dir.path(), &[], &args, 2, words);
    }
}
