//! What a run leaves on the disk: its folder, checkpoints, log, and the files within a checkpoint.

use std::fs;
use std::path::Path;

use lacuna::Error;
use lacuna::backend::MomentFormat;
use lacuna::element::Dtype;
use lacuna::io::Checkpoint;
use lacuna::io::write_safetensors::{SafetensorsWriter, TensorSpec};
use lacuna::train::files::{Best, RunFolder};
use lacuna::train::metrics::{Entry, Log, Metrics, StepRecord, Validation, read_log};
use lacuna::train::state::{OptimizerEntry, OptimizerFile, OptimizerNumbers, TrainerState, write_optimizer};
use serde_json::{Value, json};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn checkpoint(run: &RunFolder, step: u64, content: &str) {
    let pending = run.begin_checkpoint(step).unwrap();
    fs::write(pending.path().join("model"), content).unwrap();
    fs::create_dir(pending.path().join("inner")).unwrap();
    fs::write(pending.path().join("inner/file"), content).unwrap();
    assert_eq!(pending.commit().unwrap(), run.checkpoint(step));
}

mod folder {
    use super::*;

    #[test]
    fn of_a_new_run_must_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let run = RunFolder::create(&root).unwrap();
        run.write_config("steps = 3\n").unwrap();
        assert_eq!(names(&root), ["checkpoints", "config.toml"]);
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "steps = 3\n");
        drop(run);
        let error = RunFolder::create(&root).unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.contains("--resume")), "{error}");
        RunFolder::resume(&root).unwrap();
        // One that is there and empty will do, and missing parents are made; a file, or no run, will not do.
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let error = RunFolder::resume(&empty).unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.contains("no run to resume")), "{error}");
        RunFolder::create(&empty).unwrap();
        RunFolder::create(&dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(RunFolder::create(&dir.path().join("file")), Err(Error::Io { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn is_one_process_s() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let run = RunFolder::create(&root).unwrap();
        let error = RunFolder::resume(&root).unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.contains("another process")), "{error}");
        drop(run);
        RunFolder::resume(&root).unwrap();
    }

    #[test]
    fn checkpoints_are_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&dir.path().join("run")).unwrap();
        let folder = run.root().join("checkpoints");
        assert_eq!(run.latest_checkpoint().unwrap(), None);
        checkpoint(&run, 9, "nine");
        checkpoint(&run, 10, "ten");
        // By number, not by name.
        assert_eq!(run.latest_checkpoint().unwrap(), Some((10, folder.join("step-10"))));
        assert_eq!(fs::read_to_string(folder.join("step-9/inner/file")).unwrap(), "nine");
        // Not committed.
        let pending = run.begin_checkpoint(11).unwrap();
        fs::write(pending.path().join("model"), "eleven").unwrap();
        drop(pending);
        assert_eq!(names(&folder), ["step-10", "step-9"]);
        // What a killed process leaves, and names that only look like one of ours.
        fs::create_dir_all(folder.join(".tmp-step-12-999/inner")).unwrap();
        for name in ["step-013", "step-", "step-x", "step--1", "step-99999999999999999999999", "else"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        assert_eq!(run.checkpoints().unwrap(), [9, 10]);
        let pending = run.begin_checkpoint(12).unwrap();
        assert!(!folder.join(".tmp-step-12-999").exists());
        drop(pending);
        // Replaced by one after the same number of steps.
        checkpoint(&run, 10, "again");
        assert_eq!(fs::read_to_string(folder.join("step-10/model")).unwrap(), "again");
        assert!(names(&folder).iter().all(|name| !name.starts_with('.')));
    }

    #[test]
    fn old_checkpoints_go_and_the_best_stays() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&dir.path().join("run")).unwrap();
        for step in [100, 200, 300, 400, 500] {
            checkpoint(&run, step, "");
        }
        assert_eq!(run.best().unwrap(), None);
        run.write_best(Best { step: 200, nelbo: 3.25 }).unwrap();
        let best = run.best().unwrap().unwrap();
        assert_eq!(best, Best { step: 200, nelbo: 3.25 });
        run.prune(2, Some(best.step)).unwrap();
        assert_eq!(run.checkpoints().unwrap(), [200, 400, 500]);
        run.prune(2, Some(500)).unwrap();
        assert_eq!(run.checkpoints().unwrap(), [400, 500]);
        run.prune(0, None).unwrap();
        assert_eq!(run.checkpoints().unwrap(), [500]);
        assert_eq!(names(&run.root().join("checkpoints")), ["best.json", "step-500"]);
        for wrong in ["", "{}", "[]", r#"{"step":-1,"nelbo":1}"#, r#"{"step":1,"nelbo":1,"x":2}"#] {
            fs::write(run.root().join("checkpoints/best.json"), wrong).unwrap();
            let error = run.best().unwrap_err();
            assert!(matches!(&error, Error::Config { path, .. } if path.ends_with("best.json")), "{error}");
        }
    }

    /// Writes a checkpoint of a megabyte; for [`a_full_disk_leaves_the_last_checkpoint`].
    fn save(root: &Path) -> lacuna::Result<()> {
        let run = RunFolder::resume(root)?;
        let pending = run.begin_checkpoint(2)?;
        let entries = [OptimizerEntry {
            name: "w".into(),
            shape: vec![1 << 17],
            moments: MomentFormat::F32,
            master: false,
        }];
        write_optimizer(pending.path(), &entries, |_| {
            Ok(OptimizerNumbers { moments: [vec![0; 1 << 19], vec![0; 1 << 19]], master: None })
        })?;
        pending.commit().map(drop)
    }

    /// A process that may write no file larger than 256 KiB stands for a disk that is full.
    #[cfg(unix)]
    #[test]
    fn a_full_disk_leaves_the_last_checkpoint() {
        const ROOT: &str = "LACUNA_TEST_FULL_DISK";
        const NAME: &str = "folder::a_full_disk_leaves_the_last_checkpoint";
        if let Some(root) = std::env::var_os(ROOT) {
            let error = save(Path::new(&root)).unwrap_err();
            assert!(
                matches!(&error, Error::Io { path, .. } if path.ends_with("optimizer.safetensors")),
                "{error}"
            );
            println!("refused: {error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        checkpoint(&RunFolder::create(&root).unwrap(), 1, "one");
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg(NAME)
            .env(ROOT, &root)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("refused: cannot write"), "{output:?}");
        assert_eq!(names(&root.join("checkpoints")), ["step-1"]);
        assert_eq!(fs::read_to_string(root.join("checkpoints/step-1/model")).unwrap(), "one");
        // Without the limit it is saved.
        save(&root).unwrap();
        assert_eq!(names(&root.join("checkpoints")), ["step-1", "step-2"]);
    }
}

mod log {
    use super::*;

    fn record(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            examples: 8,
            tokens: 1024,
            loss,
            unweighted: 0.5 * loss,
            nelbo: loss,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 1e4,
            skipped: !loss.is_finite(),
        }
    }

    const FOUND: Validation = Validation { nelbo: 3.0, unweighted: 2.5, standard_error: 0.1 };

    fn entries(path: &Path) -> Vec<(u64, bool)> {
        let mut entries = Vec::new();
        read_log(path, u64::MAX, |_, e| {
            entries.push((e.step(), matches!(e, Entry::Validation(..))));
            Ok(())
        })
        .unwrap();
        entries
    }

    #[test]
    fn lines_are_json_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::create(&path).unwrap();
        let written = [Entry::Step(record(1, 4.5)), Entry::Validation(1, FOUND), Entry::Step(record(2, 4.0))];
        for (i, entry) in written.iter().enumerate() {
            log.append(entry).unwrap();
            // There at once.
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), i + 1);
        }
        log.append(&Entry::Step(record(3, f64::NAN))).unwrap();
        let lines: Vec<Value> =
            fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            lines[1],
            json!({"step": 1, "validation": {"nelbo": 3.0, "unweighted": 2.5, "standard_error": 0.1}})
        );
        assert_eq!(lines[0]["loss"], 4.5);
        assert_eq!((&lines[3]["loss"], &lines[3]["skipped"]), (&Value::Null, &json!(true)));
        let mut read = Vec::new();
        read_log(&path, u64::MAX, |_, e| {
            read.push(e);
            Ok(())
        })
        .unwrap();
        assert_eq!(read[..3], written);
        assert!(matches!(read[3], Entry::Step(r) if r.loss.is_nan() && r.grad_norm == 1.0));
    }

    #[test]
    fn a_resumed_log_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&dir.path().join("run")).unwrap();
        let mut metrics = Metrics::create(&run).unwrap();
        for step in 1..=7 {
            metrics.step(&record(step, 5.0 - step as f64 / 10.0)).unwrap();
            if step % 3 == 0 {
                metrics.validation(step, &FOUND).unwrap();
            }
        }
        drop(metrics);
        // A line that a kill cut short.
        let mut text = fs::read_to_string(run.log()).unwrap();
        text.push_str(r#"{"step":8,"exam"#);
        fs::write(run.log(), text).unwrap();
        let mut metrics = Metrics::resume(&run, 4).unwrap();
        let history = metrics.history().clone();
        assert_eq!(history.training.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(history.validation, [(3, FOUND)]);
        for step in 5..=6 {
            metrics.step(&record(step, 4.0)).unwrap();
        }
        let expected = [(1, false), (2, false), (3, false), (3, true), (4, false), (5, false), (6, false)];
        assert_eq!(entries(&run.log()), expected);
        assert_eq!(names(&run.tensorboard()).len(), 2);
        metrics.draw().unwrap();
        assert!(fs::read_to_string(run.plot()).unwrap().starts_with("<svg"));
        // Without a log there is an empty one.
        fs::remove_file(run.log()).unwrap();
        Metrics::resume(&run, 4).unwrap();
        assert!(entries(&run.log()).is_empty());
    }

    #[test]
    fn a_damaged_log_is_refused_by_line_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let good = serde_json::to_string(&record(1, 2.0)).unwrap();
        let long = format!("{good}\n{}\n", "x".repeat(1 << 17));
        for wrong in ["{}", "[]", "", r#"{"step":-1}"#, r#"{"step":1,"validation":3}"#, "\u{0}", &long] {
            let text = format!("{good}\n{wrong}\n{good}\n");
            fs::write(&path, &text).unwrap();
            let error = Log::resume(&path, 5).unwrap_err();
            assert!(matches!(&error, Error::Input { origin, .. } if origin.contains("line ")), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, [b'{', 0xFF, b'\n']).unwrap();
        assert!(matches!(Log::resume(&path, 5), Err(Error::Input { .. })));
    }
}

mod safetensors_writer {
    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn writer(specs: &[TensorSpec]) -> lacuna::Result<SafetensorsWriter<Vec<u8>>> {
        SafetensorsWriter::new(Vec::new(), Path::new("out.safetensors"), specs)
    }

    #[test]
    fn what_it_writes_both_readers_read() {
        let specs = [
            spec("first \"quoted\"", Dtype::F32, &[2, 3]),
            spec("none", Dtype::F32, &[0, 3]),
            spec("scalar", Dtype::Bf16, &[]),
            spec("half", Dtype::F16, &[3]),
        ];
        let bytes: Vec<Vec<u8>> =
            specs.iter().enumerate().map(|(i, s)| vec![i as u8 + 1; s.bytes().unwrap()]).collect();
        let mut w = writer(&specs).unwrap();
        for (spec, bytes) in specs.iter().zip(&bytes) {
            // In two parts.
            let (a, b) = bytes.split_at(bytes.len() / 3);
            w.write(&spec.name, a).unwrap();
            w.write(&spec.name, b).unwrap();
        }
        let file = w.finish().unwrap();
        assert_eq!(u64::from_le_bytes(file[..8].try_into().unwrap()) % 8, 0);

        let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, &file).unwrap();
        let ours = Checkpoint::open(&path).unwrap();
        assert_eq!((ours.len(), theirs.len()), (4, 4));
        assert_eq!(ours.metadata()["format"], "pt");
        for (spec, bytes) in specs.iter().zip(&bytes) {
            let (a, b) = (ours.require(&spec.name).unwrap(), theirs.tensor(&spec.name).unwrap());
            assert_eq!((a.dtype(), a.shape(), &a.bytes()[..]), (spec.dtype, &spec.shape[..], &bytes[..]));
            assert_eq!((b.shape(), b.data()), (&spec.shape[..], &bytes[..]));
        }
        // Nothing at all is a file too.
        let empty = writer(&[]).unwrap().finish().unwrap();
        assert!(safetensors::SafeTensors::deserialize(&empty).unwrap().is_empty());
    }

    #[test]
    fn misuse_is_an_error() {
        for specs in [
            vec![spec("a", Dtype::F32, &[1]), spec("a", Dtype::F32, &[1])],
            vec![spec("__metadata__", Dtype::F32, &[1])],
            vec![spec("a", Dtype::F32, &[usize::MAX, 2])],
            vec![spec("a", Dtype::F32, &[usize::MAX / 4]), spec("b", Dtype::F32, &[usize::MAX / 4])],
            vec![spec("a", Dtype::Bf16, &[1]), spec("b", Dtype::F32, &[1])],
        ] {
            assert!(matches!(writer(&specs), Err(Error::Checkpoint { .. })), "{specs:?}");
        }
        let specs = [spec("a", Dtype::F32, &[2]), spec("b", Dtype::F32, &[1])];
        let fails = |calls: &[(&str, usize)]| {
            let mut w = writer(&specs).unwrap();
            let done = calls.iter().try_for_each(|&(name, n)| w.write(name, &vec![0; n]));
            let result = done.and_then(|()| w.finish().map(drop));
            assert!(matches!(result, Err(Error::Checkpoint { .. })), "{calls:?}: {result:?}");
        };
        fails(&[("b", 4)]);
        fails(&[("a", 9)]);
        fails(&[("a", 4), ("b", 4)]);
        fails(&[("a", 8)]);
        fails(&[("a", 8), ("b", 3)]);
        fails(&[("a", 8), ("b", 4), ("c", 1)]);
        fails(&[("a", 8), ("a", 1)]);
    }
}

mod state {
    use super::*;

    fn entry(name: &str, shape: &[usize], moments: MomentFormat, master: bool) -> OptimizerEntry {
        OptimizerEntry { name: name.into(), shape: shape.to_vec(), moments, master }
    }

    fn numbers(entry: &OptimizerEntry, salt: u8) -> OptimizerNumbers {
        let n: usize = entry.shape.iter().product();
        let bytes = entry.moments.bytes(n);
        OptimizerNumbers {
            moments: [vec![salt; bytes], vec![salt + 1; bytes]],
            master: entry.master.then(|| (0..n).map(|i| i as f32 + f32::from(salt)).collect()),
        }
    }

    #[test]
    fn the_optimiser_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            entry("layer.weight", &[3, 5], MomentFormat::Bf16, true),
            entry("layer.bias", &[5], MomentFormat::Bf16, false),
            entry("large", &[300, 301], MomentFormat::F32, true),
            entry("none", &[0], MomentFormat::F32, true),
            entry("bytes", &[3, 87], MomentFormat::Q8, true),
            entry("more bytes", &[1], MomentFormat::Q8, false),
            entry("no padding", &[16, 16], MomentFormat::Q8, true),
        ];
        write_optimizer(dir.path(), &entries, |i| Ok(numbers(&entries[i], i as u8))).unwrap();
        let file = OptimizerFile::open(dir.path(), &entries).unwrap();
        for (i, e) in entries.iter().enumerate() {
            let expected = numbers(e, i as u8);
            assert_eq!(file.moments(e).unwrap(), [&expected.moments[0][..], &expected.moments[1][..]]);
            assert_eq!(file.master(e).unwrap(), expected.master);
        }
        // Opened for other parameters, formats or shapes.
        let refused = |change: fn(&mut Vec<OptimizerEntry>), word: &str| {
            let mut entries = entries.to_vec();
            change(&mut entries);
            let error = OptimizerFile::open(dir.path(), &entries).unwrap_err();
            assert!(
                matches!(&error, Error::Checkpoint { .. }) && error.to_string().contains(word),
                "{error}"
            );
        };
        refused(|e| drop(e.remove(1)), "m.layer.bias");
        refused(|e| e[0].master = false, "master.layer.weight");
        refused(|e| e[1].master = true, "master.layer.bias");
        refused(|e| e[0].shape = vec![5, 3], "m.layer.weight");
        refused(|e| e[0].moments = MomentFormat::F32, "m.layer.weight");
        refused(|e| e[0].name = "other".into(), "m.other");
        refused(|e| e[0].moments = MomentFormat::Q8, "m.layer.weight");
        refused(|e| e[4].moments = MomentFormat::F32, "m.bytes");
        refused(|e| e[4].shape = vec![3, 90], "m.bytes");
        // Numbers that do not fit what was announced.
        let wrong = write_optimizer(dir.path(), &entries, |_| Ok(numbers(&entries[1], 0)));
        assert!(matches!(wrong, Err(Error::Checkpoint { .. })), "{wrong:?}");
        fs::write(dir.path().join("optimizer.safetensors"), [0xFF; 64]).unwrap();
        assert!(matches!(OptimizerFile::open(dir.path(), &entries), Err(Error::Checkpoint { .. })));
        fs::remove_file(dir.path().join("optimizer.safetensors")).unwrap();
        assert!(matches!(OptimizerFile::open(dir.path(), &entries), Err(Error::Io { .. })));
    }

    fn trainer() -> TrainerState {
        TrainerState {
            step: 120,
            updates: 118,
            skipped: 2,
            seed: u64::MAX,
            cursor: json!({"epoch": 1, "order": [3, 1, 2]}),
            losses: [("average".to_owned(), 0.1 + 0.2), ("best".to_owned(), 3e-300)].into(),
        }
    }

    #[test]
    fn the_trainer_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        trainer().write(dir.path()).unwrap();
        assert_eq!(TrainerState::read(dir.path()).unwrap(), trainer());
        let mut broken = trainer();
        broken.losses.insert("average".into(), f64::NAN);
        assert!(matches!(broken.write(dir.path()), Err(Error::NonFinite { .. })));
        assert_eq!(TrainerState::read(dir.path()).unwrap(), trainer());
    }

    #[test]
    fn a_wrong_trainer_file_is_refused_by_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trainer.json");
        trainer().write(dir.path()).unwrap();
        let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let refused = |text: &str, wanted: &str| {
            fs::write(&path, text).unwrap();
            let error = TrainerState::read(dir.path()).unwrap_err();
            let Error::Config { path, field, .. } = &error else { panic!("{error}") };
            assert!(path.ends_with("trainer.json") && field == wanted, "{error}");
        };
        for field in good.as_object().unwrap().keys() {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(field);
            refused(&without.to_string(), field);
        }
        for (field, value) in [
            ("format", json!(2)),
            ("format", json!("1")),
            ("lacuna", json!(1)),
            ("step", json!(-1)),
            ("step", json!(1.5)),
            ("step", json!(1e300)),
            ("seed", json!("7")),
            ("skipped", json!([])),
            ("updates", json!(119)),
            ("updates", json!(u64::MAX)),
            ("losses", json!([1.0])),
            ("extra", json!({})),
        ] {
            let mut other = good.clone();
            other[field] = value;
            refused(&other.to_string(), field);
        }
        for value in [json!(null), json!(1.0), json!("NaN"), json!("1e400"), json!("one")] {
            let mut other = good.clone();
            other["losses"]["best"] = value;
            refused(&other.to_string(), "losses.best");
        }
        for text in ["", "[]", "{", "\u{0}", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))] {
            refused(text, "file");
        }
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(TrainerState::read(dir.path()), Err(Error::Io { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(TrainerState::read(dir.path()), Err(Error::Io { .. })));
    }
}
