//! Training data: every window once an epoch, sources in proportion, and a resumed run that reads
//! what an uninterrupted one would have read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lacuna::Error;
use lacuna::io::{TokenWriter, Tokenizer, TokenizerFiles};
use lacuna::train::{Cursor, Example, Examples, LongRule, Packed, PadRule, SftData, SftIds, SftOptions};

const HASH: [u8; 32] = [7; 32];
const EOS: u32 = 1;

/// A file of `count` tokens: one document of the ids `first`, `first + 1`, ...
fn counting(dir: &Path, name: &str, first: u32, count: usize) -> PathBuf {
    let path = dir.join(name);
    let mut writer = TokenWriter::create(&path, 100_000, EOS, &HASH).unwrap();
    writer.push(&(0..count as u32 - 1).map(|i| first + i).collect::<Vec<_>>()).unwrap();
    writer.commit().unwrap();
    path
}

fn take(data: &dyn Examples, cursor: &mut Cursor, count: u64) -> Vec<Example> {
    (0..count).map(|_| data.next(cursor).unwrap()).collect()
}

#[test]
fn an_epoch_has_every_window_once_from_a_new_start_in_a_new_order() {
    let dir = tempfile::tempdir().unwrap();
    let (tokens, length) = (1003, 10);
    let data = Packed::open(&[(counting(dir.path(), "a", 10, tokens), 1.0)], length, 3).unwrap();
    assert_eq!((data.tokens(), data.epoch(), data.length()), (1003, 100, 10));
    let mut cursor = data.start();
    let mut orders = Vec::new();
    for _ in 0..4 {
        let examples = take(&data, &mut cursor, 100);
        let mut seen = BTreeSet::new();
        let mut firsts = Vec::new();
        for e in &examples {
            assert_eq!((e.ids.len(), e.fixed.len()), (length, length));
            assert!(e.fixed.iter().all(|f| !f));
            for pair in e.ids.windows(2) {
                // The ring: behind the last id the end, behind it the first id.
                let next = match pair[0] {
                    EOS => 10,
                    id if id as usize == 10 + tokens - 2 => EOS,
                    id => id + 1,
                };
                assert_eq!(pair[1], next);
            }
            assert!(e.ids.iter().all(|&id| seen.insert(id)), "a token twice in an epoch");
            firsts.push(e.ids[0]);
        }
        assert_eq!(seen.len(), 1000);
        orders.push(firsts);
    }
    let distinct: BTreeSet<_> = orders.iter().collect();
    assert_eq!(distinct.len(), 4);
    let borders: BTreeSet<BTreeSet<u32>> = orders.iter().map(|o| o.iter().copied().collect()).collect();
    assert_eq!(borders.len(), 4, "the borders of windows move");
}

#[test]
fn a_file_of_one_window_turns_as_a_ring() {
    let dir = tempfile::tempdir().unwrap();
    let data = Packed::open(&[(counting(dir.path(), "a", 10, 8), 1.0)], 8, 0).unwrap();
    let examples = take(&data, &mut data.start(), 50);
    let starts: BTreeSet<u32> = examples.iter().map(|e| e.ids[0]).collect();
    assert!(starts.len() >= 6, "{starts:?}");
    for e in examples {
        let mut ids = e.ids.clone();
        ids.sort_unstable();
        assert_eq!(ids, [1, 10, 11, 12, 13, 14, 15, 16]);
    }
}

#[test]
fn documents_end_behind_their_end_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut writer = TokenWriter::create(&path, 100, EOS, &HASH).unwrap();
    [3, 1, 0, 4].iter().for_each(|&n| writer.push(&vec![5; n]).unwrap());
    writer.commit().unwrap();
    // 5 5 5 1 5 1 1 5 5 5 5 1
    let data = Packed::open(&[(path, 1.0)], 5, 0).unwrap();
    let validation = data.validation(10);
    assert_eq!(validation.len(), 2);
    assert_eq!((&validation[0].documents, &validation[1].documents), (&vec![4, 1], &vec![1, 1, 3]));
    for e in take(&data, &mut data.start(), 40) {
        assert_eq!(e.documents.iter().sum::<usize>(), 5);
        let mut at = 0;
        for (i, &n) in e.documents.iter().enumerate() {
            assert!(n > 0);
            at += n;
            let last = i + 1 == e.documents.len();
            assert!(e.ids[at - 1] == EOS || last, "{e:?}");
            assert!(e.ids[at - n..at - 1].iter().all(|&id| id != EOS), "{e:?}");
        }
    }
}

/// What is read depends on nothing but the seed and the cursor.
#[test]
fn a_stored_cursor_goes_on_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        (counting(dir.path(), "a", 10, 500), 0.7),
        (counting(dir.path(), "b", 1000, 333), 0.2),
        (counting(dir.path(), "c", 2000, 64), 0.1),
    ];
    let open = |seed| Packed::open(&sources, 16, seed).unwrap();
    let data = open(5);
    let all = take(&data, &mut data.start(), 400);
    assert_eq!(take(&open(5), &mut data.start(), 400), all);
    assert_ne!(take(&open(6), &mut data.start(), 400), all);
    for stop in [0, 1, 37, 250] {
        let mut cursor = data.start();
        take(&data, &mut cursor, stop);
        assert_eq!(cursor.examples, stop);
        let text = serde_json::to_string(&cursor).unwrap();
        let mut cursor: Cursor = serde_json::from_str(&text).unwrap();
        assert_eq!(take(&open(5), &mut cursor, 400 - stop), all[stop as usize..]);
    }
}

#[test]
fn sources_keep_to_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c"];
    let weights = [6.0, 3.0, 1.0];
    let sources: Vec<(PathBuf, f64)> = (0..3)
        .map(|i| (counting(dir.path(), names[i], 10_000 * (i as u32 + 1), 300 + 100 * i), weights[i]))
        .collect();
    let data = Packed::open(&sources, 10, 0).unwrap();
    let mut cursor = data.start();
    let mut counts = [0u64; 3];
    for n in 1..=1000u64 {
        let e = data.next(&mut cursor).unwrap();
        let source = e.ids.iter().find(|&&id| id != EOS).unwrap() / 10_000 - 1;
        counts[source as usize] += 1;
        assert_eq!(counts[..], cursor.per_source[..]);
        for (count, weight) in counts.iter().zip(weights) {
            assert!((*count as f64 - weight / 10.0 * n as f64).abs() < 2.0, "{counts:?} of {n}");
        }
    }
    assert_eq!(counts, [600, 300, 100]);
}

#[test]
fn validation_is_fixed_and_spread_over_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (counting(dir.path(), "a", 10, 1000), counting(dir.path(), "b", 5000, 200));
    let open = |weight, seed| Packed::open(&[(a.clone(), weight), (b.clone(), 1.0)], 10, seed).unwrap();
    let firsts = |v: Vec<Example>| v.iter().map(|e| e.ids[0]).collect::<Vec<_>>();
    assert_eq!(firsts(open(1.0, 0).validation(6)), [10, 210, 410, 610, 810, 5000]);
    assert_eq!(open(1.0, 0).validation(50), open(9.0, 7).validation(50));
    assert_eq!(open(1.0, 0).validation(1000).len(), 120);
    assert!(open(1.0, 0).validation(0).is_empty());
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, words: &[&str]) {
    let error = result.err().expect("it is refused");
    assert_eq!(error.exit_code(), 2, "{error:?}");
    let message = error.to_string();
    words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message}"));
}

#[test]
fn sources_that_cannot_be_trained_on_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let a = counting(dir.path(), "a.tok", 10, 50);
    let open = |weight, length| Packed::open(&[(a.clone(), weight)], length, 0);
    refused(open(1.0, 51), &["a.tok", "50 tokens", "lower --length to at most 50"]);
    refused(open(1.0, 0), &["length", "0"]);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(open(weight, 5), &["a.tok", "weight", "positive"]);
    }
    refused(Packed::open(&[], 5, 0), &["token files"]);
    refused(Packed::open(&[(a.clone(), f64::MAX), (a.clone(), f64::MAX)], 5, 0), &["infinity"]);
    let other = dir.path().join("other.tok");
    let mut writer = TokenWriter::create(&other, 100, EOS, &[8; 32]).unwrap();
    writer.push(&[5; 20]).unwrap();
    writer.commit().unwrap();
    refused(Packed::open(&[(a.clone(), 1.0), (other, 1.0)], 5, 0), &["other.tok", "a.tok", "0808", "0707"]);
    let data = open(1.0, 5).unwrap();
    data.check(59, Some(&HASH)).unwrap();
    data.check(59, None).unwrap();
    refused(data.check(58, None), &["a.tok", "token id 58", "58"]);
    refused(data.check(59, Some(&[9; 32])), &["a.tok", "0909", "0707"]);
    assert!(matches!(Packed::open(&[(dir.path().join("gone"), 1.0)], 5, 0), Err(Error::Io { .. })));
}

#[test]
fn cursors_of_other_data_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = Packed::open(&[(counting(dir.path(), "a", 10, 50), 1.0)], 5, 0).unwrap();
    for (examples, per_source) in [(0, vec![]), (3, vec![1, 2]), (3, vec![2]), (u64::MAX, vec![u64::MAX])] {
        let mut cursor = Cursor { examples, per_source };
        let before = cursor.clone();
        refused(data.next(&mut cursor), &["position"]);
        assert_eq!(cursor, before);
    }
}

fn bundled() -> Tokenizer {
    TokenizerFiles::bundled().unwrap().tokenizer
}

const IDS: SftIds = SftIds { bos: Some(1), sep: Some(9), eos: 1, pad: None };

/// Opens one file of this content.
fn sft(content: &str, ids: SftIds, options: SftOptions) -> Result<SftData, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    std::fs::write(&path, content).unwrap();
    SftData::open(&[path], &bundled(), ids, options)
}

#[test]
fn a_prompt_is_given_and_its_answer_learnt() {
    let t = bundled();
    let (prompt, answer) = (t.encode("To be?").unwrap(), t.encode("Not to be.").unwrap());
    for (fields, ids, before, between) in [
        (("prompt", "answer"), IDS, &[1][..], &[9][..]),
        (("question", "answer"), SftIds { bos: None, sep: None, ..IDS }, &[], &[]),
    ] {
        let line = format!("{{\"{}\": \"To be?\", \"{}\": \"Not to be.\", \"x\": 1}}\n", fields.0, fields.1);
        let e = sft(&line, ids, SftOptions::new(64, 0)).unwrap().get(0).unwrap();
        assert_eq!(e.ids, [before, &prompt, between, &answer, &[1]].concat());
        let given = before.len() + prompt.len() + between.len();
        assert_eq!(e.fixed.iter().filter(|f| **f).count(), given);
        assert!(e.fixed[..given].iter().all(|f| *f));
        assert_eq!(e.documents, [e.ids.len()]);
    }
}

#[test]
fn padding_is_learnt_and_reaches_the_length() {
    let line = "{\"prompt\": \"a\", \"answer\": \"b\"}";
    for (pad, id) in [(None, 1), (Some(5), 5)] {
        let options = SftOptions { pad: PadRule::Eos { to_length: 12 }, ..SftOptions::new(20, 0) };
        let data = sft(line, SftIds { pad, ..IDS }, options).unwrap();
        let e = data.get(0).unwrap();
        assert_eq!((e.ids.len(), e.fixed.len(), &e.documents[..], data.longest()), (12, 12, &[12][..], 12));
        assert_eq!(e.ids[4], 1, "the end of the answer is the eos token");
        assert!(e.ids[5..].iter().all(|&i| i == id) && e.fixed[3..].iter().all(|f| !f), "{e:?}");
        assert_eq!(data.tokens(), 5);
    }
    let options = SftOptions { pad: PadRule::Eos { to_length: 21 }, ..SftOptions::new(20, 0) };
    refused(sft(line, IDS, options), &["21", "20"]);
}

#[test]
fn examples_that_are_too_long_follow_the_rule() {
    let (short, long) = (
        "{\"prompt\": \"a\", \"answer\": \"b\"}",
        "{\"prompt\": \"xyxyxyxyxyxyxyxyxyxy z\", \"answer\": \"b\"}",
    );
    let text = format!("{short}\n\n{long}\n");
    let with = |long| SftOptions { long, ..SftOptions::new(8, 0) };
    let tokens = 3 + bundled().encode("xyxyxyxyxyxyxyxyxyxy z").unwrap().len() + 1;
    let words = ["pairs.jsonl line 3", "at most 8 tokens", &format!("got {tokens}")];
    refused(sft(&text, IDS, with(LongRule::Error)), &words);
    let data = sft(&text, IDS, with(LongRule::Skip)).unwrap();
    assert_eq!((data.len(), data.skipped()), (1, 1));
    assert!(data.describe().contains("1 longer ones left out"), "{}", data.describe());
    let data = sft(&text, IDS, with(LongRule::TruncatePrompt)).unwrap();
    let e = data.get(1).unwrap();
    let prompt = bundled().encode("xyxyxyxyxyxyxyxyxyxy z").unwrap();
    assert_eq!(e.ids[..6], [&[1], &prompt[prompt.len() - 4..], &[9]].concat());
    assert_eq!((e.ids.len(), e.ids[7]), (8, 1));
    refused(sft(long, IDS, with(LongRule::Skip)), &["no prompts with answers", "1 were longer"]);
    let answer = "{\"prompt\": \"a\", \"answer\": \"xyxyxyxyxyxyxyxyxyxy z\"}";
    refused(sft(answer, IDS, with(LongRule::TruncatePrompt)), &["line 1", "without its prompt"]);
}

#[test]
fn bad_lines_are_named() {
    let good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
    for (line, words) in [
        ("{\"prompt\": \"a\"}", &["line 2", "`answer`", "no such field"][..]),
        ("{\"answer\": \"a\"}", &["line 2", "`prompt` or `question`", "no such field"]),
        ("{\"prompt\": \"a\", \"answer\": \"\"}", &["line 2", "the answer", "an empty one"]),
        ("{\"prompt\": 7, \"answer\": \"a\"}", &["line 2", "`prompt`", "a string, got 7"]),
        ("{\"prompt\": \"a\", \"answer\": [\"b\"]}", &["line 2", "`answer`", "a string"]),
        ("[]", &["line 2", "a JSON object"]),
        ("{", &["line 2", "a JSON object"]),
    ] {
        refused(sft(&format!("{good}{line}\n"), IDS, SftOptions::new(64, 0)), words);
    }
    refused(sft("\n", IDS, SftOptions::new(64, 0)), &["no prompts with answers"]);
    refused(SftData::open(&[], &bundled(), IDS, SftOptions::new(64, 0)), &["no file"]);
    let special = TokenizerFiles::bundled().unwrap().special;
    assert_eq!(SftIds::of(&special).unwrap().eos, 1);
    refused(SftIds::of(&Default::default()), &["end-of-sequence"]);
}

#[test]
fn fields_can_be_named_and_files_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl.zst"));
    let line = "{\"instruction\": \"a\", \"output\": \"b\"}\n";
    std::fs::write(&plain, line).unwrap();
    std::fs::write(&packed, zstd::encode_all(line.as_bytes(), 1).unwrap()).unwrap();
    let names = |name: &str| vec![name.to_owned()];
    let options =
        SftOptions { prompt: names("instruction"), answer: names("output"), ..SftOptions::new(64, 0) };
    let data = SftData::open(&[plain, packed], &bundled(), IDS, options).unwrap();
    assert_eq!((data.len(), data.get(0)), (2, data.get(1)));
}

#[test]
fn pairs_come_once_an_epoch_and_resume_exactly() {
    let text: String =
        (0..1500).map(|i| format!("{{\"prompt\": \"{i}\", \"answer\": \"{i} it is\"}}\n")).collect();
    let open = |seed| sft(&text, IDS, SftOptions::new(64, seed)).unwrap();
    let data = open(4);
    assert_eq!((data.epoch(), data.validation(3).len()), (1500, 3));
    assert_eq!(data.validation(3)[1], data.get(500).unwrap());
    let mut cursor = data.start();
    let (first, second) = (take(&data, &mut cursor, 1500), take(&data, &mut cursor, 1500));
    assert_ne!(first, second);
    let set = |e: &[Example]| e.iter().map(|e| e.ids.clone()).collect::<BTreeSet<_>>();
    assert_eq!(set(&first).len(), 1500);
    assert_eq!(set(&first), set(&second));
    let mut cursor: Cursor = serde_json::from_str("{\"examples\": 1400, \"per_source\": [1400]}").unwrap();
    let again = take(&open(4), &mut cursor, 200);
    assert_eq!((&again[..100], &again[100..]), (&first[1400..], &second[..100]));
    assert_ne!(take(&open(5), &mut data.start(), 100), first[..100]);
    refused(data.next(&mut Cursor { examples: 2, per_source: vec![1, 1] }), &["position"]);
}
