//! Token files: what is written is read, and hostile ones are refused by name.

use std::path::{Path, PathBuf};

use lacuna::Error;
use lacuna::io::{TokenFile, TokenWriter, Tokenizer, TokenizerFiles};
use proptest::prelude::*;

use super::support::{TOKENIZER, folder, gpt2, with, write};

const HASH: [u8; 32] = [0xab; 32];

fn file(dir: &Path, name: &str, vocab: usize, eos: u32, documents: &[&[u32]]) -> PathBuf {
    let path = dir.join(name);
    let mut writer = TokenWriter::create(&path, vocab, eos, &HASH).unwrap();
    documents.iter().for_each(|d| writer.push(d).unwrap());
    writer.commit().unwrap();
    path
}

#[test]
fn tokens_come_back_in_both_widths() {
    let dir = tempfile::tempdir().unwrap();
    for (vocab, big, width) in [(65_536, 65_535, 2), (65_537, 65_536, 4)] {
        let path = file(dir.path(), "a.tok", vocab, 7, &[&[big, 2], &[], &[3]]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 128 + 6 * width);
        let f = TokenFile::open(&path).unwrap();
        assert_eq!((f.len(), f.documents(), f.vocab_size(), f.eos(), f.max_id()), (6, 3, vocab, 7, big));
        assert_eq!(f.slice(0..6), [big, 2, 7, 7, 3, 7]);
        assert_eq!(f.slice(4..99), [3, 7]);
        assert_eq!(f.slice(98..99), Vec::<u32>::new());
        assert_eq!(f.iter(1..3).collect::<Vec<_>>(), [2, 7]);
        assert_eq!(f.boundaries(0..6).collect::<Vec<_>>(), [2, 3, 5]);
        assert_eq!(f.boundaries(3..5).collect::<Vec<_>>(), [3]);
        assert_eq!(f.tokenizer_hash(), &HASH);
    }
}

/// The table of docs/data.md, byte by byte.
#[test]
fn the_layout_is_the_documented_one() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(file(dir.path(), "a.tok", 1000, 9, &[&[0x102]])).unwrap();
    let mut expected = b"\x93LACTOK\n".to_vec();
    for n in [1u32, 128, 2, 1000] {
        expected.extend(n.to_le_bytes());
    }
    expected.extend(HASH);
    for n in [9u32, 0] {
        expected.extend(n.to_le_bytes());
    }
    for n in [2u64, 1] {
        expected.extend(n.to_le_bytes());
    }
    expected.resize(128, 0);
    expected.extend([2, 1, 9, 0]);
    assert_eq!(bytes, expected);
}

#[test]
fn a_long_file_goes_through_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..1_300_000).map(|i| i * 7 % 999).collect();
    let f = TokenFile::open(&file(dir.path(), "a.tok", 1000, 999, &[&ids, &ids[..5]])).unwrap();
    assert_eq!(f.slice(0..ids.len()), ids);
    assert_eq!(f.slice(ids.len()..f.len()), [&[999][..], &ids[..5], &[999]].concat());
}

#[test]
fn nothing_is_there_before_the_commit_or_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tok");
    let mut writer = TokenWriter::create(&path, 10, 1, &HASH).unwrap();
    writer.push(&[2]).unwrap();
    assert!(!path.exists());
    drop(writer);
    let empty = TokenWriter::create(&path, 10, 1, &HASH).unwrap().commit().unwrap_err();
    assert!(matches!(empty, Error::Request(_)) && empty.to_string().contains("no tokens"), "{empty}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn wrong_ids_and_targets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tok");
    let mut writer = TokenWriter::create(&path, 10, 1, &HASH).unwrap();
    assert!(writer.push(&[3, 10]).unwrap_err().to_string().contains("token id 10"));
    for (vocab, eos) in [(0, 0), (10, 10), (1 << 30, 0)] {
        assert!(matches!(TokenWriter::create(&path, vocab, eos, &HASH), Err(Error::Request(_))));
    }
    for target in [dir.path(), Path::new("/nonexistent/a.tok"), Path::new("/dev/null")] {
        let error = TokenWriter::create(target, 10, 1, &HASH).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}

/// A small file with some bytes replaced is refused with `words`.
#[track_caller]
fn hostile(at: usize, bytes: &[u8], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "a.tok", 10, 1, &[&[5, 6], &[7]]);
    let mut content = std::fs::read(&path).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    refused(&path, &content, words);
}

#[track_caller]
fn refused(path: &Path, content: &[u8], words: &[&str]) {
    std::fs::write(path, content).unwrap();
    let error = TokenFile::open(path).unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error:?}");
    let message = error.to_string();
    for word in words.iter().chain(&[path.to_str().unwrap()]) {
        assert!(message.contains(word), "{word:?} is not in {message}");
    }
}

#[test]
fn hostile_headers_are_refused_by_field() {
    hostile(0, b"PK", &["first bytes", "lacuna pack"]);
    hostile(8, &[2], &["format version", "expected 1", "got 2"]);
    hostile(12, &79u32.to_le_bytes(), &["header length", "79"]);
    hostile(12, &82u32.to_le_bytes(), &["header length", "82"]);
    hostile(12, &u32::MAX.to_le_bytes(), &["header length"]);
    hostile(12, &124u32.to_le_bytes(), &["size", "134"]);
    hostile(16, &[4], &["bytes a token", "expected 2"]);
    hostile(16, &[0], &["bytes a token", "got 0"]);
    hostile(20, &0u32.to_le_bytes(), &["vocabulary size"]);
    hostile(20, &u32::MAX.to_le_bytes(), &["vocabulary size"]);
    hostile(20, &100_000u32.to_le_bytes(), &["bytes a token", "expected 4"]);
    hostile(20, &7u32.to_le_bytes(), &["token 3", "below 7", "got 7"]);
    hostile(56, &10u32.to_le_bytes(), &["end-of-sequence id", "got 10"]);
    hostile(56, &6u32.to_le_bytes(), &["end-of-sequence tokens", "got 1"]);
    hostile(60, &[1], &["reserved"]);
    hostile(64, &6u64.to_le_bytes(), &["size", "cut short"]);
    hostile(64, &u64::MAX.to_le_bytes(), &["size"]);
    hostile(64, &4u64.to_le_bytes(), &["size", "136 bytes for 4"]);
    hostile(72, &3u64.to_le_bytes(), &["end-of-sequence tokens", "expected 3", "got 2"]);
    hostile(72, &0u64.to_le_bytes(), &["counts"]);
    hostile(72, &u64::MAX.to_le_bytes(), &["counts"]);
    hostile(128, &10u16.to_le_bytes(), &["token 0", "below 10", "got 10"]);
    hostile(136, &u16::MAX.to_le_bytes(), &["token 4", "got 65535"]);
    // The same number of ends, but not at the end.
    hostile(134, &[1, 0, 7, 0], &["the last token", "got 7"]);
}

#[test]
fn files_cut_short_are_refused_wherever_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "a.tok", 10, 1, &[&[5, 6], &[7]]);
    let whole = std::fs::read(&path).unwrap();
    for size in 0..whole.len() {
        refused(&path, &whole[..size], &[]);
    }
    refused(&path, &[&whole[..], &[0]].concat(), &["size"]);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("gone"), "/dev/null".into()] {
        assert!(matches!(TokenFile::open(&path), Err(Error::Io { .. })));
    }
}

#[test]
fn a_longer_header_of_a_later_writer_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "a.tok", 10, 1, &[&[5, 6]]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[12..16].copy_from_slice(&140u32.to_le_bytes());
    bytes.splice(128..128, [9; 12]);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(TokenFile::open(&path).unwrap().slice(0..3), [5, 6, 1]);
}

#[test]
fn another_tokenizer_is_told_by_both_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let f = TokenFile::open(&file(dir.path(), "a.tok", 10, 1, &[&[5]])).unwrap();
    f.check_tokenizer(&HASH, "x").unwrap();
    let other = Tokenizer::from_bytes(TOKENIZER).unwrap();
    let error = f.check_tokenizer(other.sha256(), "bard").unwrap_err().to_string();
    for word in ["abababababab...", "bard", "a.tok", "lacuna pack"] {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
    let start: String = other.sha256()[..6].iter().map(|b| format!("{b:02x}")).collect();
    assert!(error.contains(&start), "{error}");
}

#[test]
fn the_hash_is_that_of_the_bytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/bard-diffusion/tokenizer.json");
    let a = Tokenizer::from_file(Path::new(path)).unwrap();
    let b = Tokenizer::from_bytes(TOKENIZER).unwrap();
    assert_eq!(a.sha256(), b.sha256());
    let text = std::str::from_utf8(TOKENIZER).unwrap();
    let spaced = Tokenizer::from_bytes(format!("{text} ").as_bytes()).unwrap();
    assert_ne!(a.sha256(), spaced.sha256());
    // The empty text's hash is known; the crate is asked for SHA-256 and not another.
    use sha2::Digest as _;
    assert_eq!(sha2::Sha256::digest(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    assert_eq!(sha2::Sha256::digest(TOKENIZER)[..], a.sha256()[..]);
    let dir = tempfile::tempdir().unwrap();
    let (vocab, merges) = ("{\"a\": 0, \"b\": 1, \"ab\": 2}", "#version: 0.2\na b\n");
    write(dir.path(), "vocab.json", vocab);
    write(dir.path(), "merges.txt", merges);
    let (v, m) = (dir.path().join("vocab.json"), dir.path().join("merges.txt"));
    let old = Tokenizer::from_gpt2_files(&v, &m).unwrap();
    assert_eq!(sha2::Sha256::digest(format!("{vocab}{merges}"))[..], old.sha256()[..]);
    assert!(matches!(Tokenizer::from_gpt2_files(&v, &dir.path().join("gone")), Err(Error::Io { .. })));
}

#[track_caller]
fn held_out(documents: &[&[u32]], share: f64) -> (Vec<u32>, Vec<u32>) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let mut writer = TokenWriter::create(&a, 10, 1, &HASH).unwrap();
    let mut tail = TokenWriter::create(&b, 10, 1, &HASH).unwrap();
    documents.iter().for_each(|d| writer.push(d).unwrap());
    writer.move_tail(&mut tail, share).unwrap();
    writer.commit().unwrap();
    tail.commit().unwrap();
    // Opening checks the counts.
    let (a, b) = (TokenFile::open(&a).unwrap(), TokenFile::open(&b).unwrap());
    (a.slice(0..a.len()), b.slice(0..b.len()))
}

#[test]
fn the_tail_is_cut_at_a_document_if_one_ends_near() {
    let documents: Vec<Vec<u32>> = (0..10).map(|i| vec![2 + i % 8; 9]).collect();
    let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let (a, b) = held_out(&documents, 0.2);
    assert_eq!((a.len(), b.len()), (80, 20));
    // 17 tokens are asked for, the boundary before the last 20 is nearest.
    assert_eq!(held_out(&documents, 0.17).1.len(), 20);
    assert_eq!(held_out(&documents, 0.12).1.len(), 10);
}

#[test]
fn the_tail_of_one_long_document_is_cut_inside() {
    let ids: Vec<u32> = (0..99).map(|i| 2 + i % 8).collect();
    let (a, b) = held_out(&[&ids], 0.1);
    assert_eq!(a, [&ids[..90], &[1]].concat());
    assert_eq!(b, [&ids[90..], &[1]].concat());
}

#[test]
fn a_tail_that_is_nothing_or_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for share in [0.0, 1.0, f64::NAN, -0.5, 0.001, 0.999] {
        let mut writer = TokenWriter::create(&dir.path().join("a"), 10, 1, &HASH).unwrap();
        let mut tail = TokenWriter::create(&dir.path().join("b"), 10, 1, &HASH).unwrap();
        writer.push(&[5; 99]).unwrap();
        assert!(matches!(writer.move_tail(&mut tail, share), Err(Error::Request(_))), "{share}");
    }
}

#[test]
fn special_ids_come_from_the_files_beside_a_tokenizer() {
    let dir = folder(&with(gpt2(), "eos_token_id", 5.into()));
    for path in [dir.path().to_owned(), dir.path().join("tokenizer.json")] {
        assert_eq!(TokenizerFiles::open(&path).unwrap().special.eos.unwrap().id, 5);
    }
    let alone = tempfile::tempdir().unwrap();
    write(alone.path(), "tokenizer.json", TOKENIZER);
    let files = TokenizerFiles::open(alone.path()).unwrap();
    assert_eq!((files.special.eos.unwrap().id, files.special.mask.unwrap().id), (1, 0));
    assert_eq!(files.tokenizer.sha256(), TokenizerFiles::bundled().unwrap().tokenizer.sha256());
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(TokenizerFiles::open(empty.path()), Err(Error::Tokenizer(_))));
    assert!(matches!(TokenizerFiles::open(&empty.path().join("gone")), Err(Error::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((0usize..140, any::<u8>()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "a.tok", 10, 1, &[&[5, 6], &[7, 2]]);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in edits {
            bytes[at] = value;
        }
        std::fs::write(&path, bytes).unwrap();
        if let Ok(f) = TokenFile::open(&path) {
            prop_assert!(f.slice(0..f.len()).iter().all(|&id| (id as usize) < f.vocab_size()));
        }
    }

    #[test]
    fn joined_parts_have_the_tokens_of_the_whole(
        words in prop::collection::vec("[a-z]{0,3}|[ \n\t\r]{1,4}|\n\n|\n |'s|[0-9!?.]|é|\u{a0}|\u{85}|<eos>", 1..60),
        size in 1usize..20,
    ) {
        let t = Tokenizer::from_bytes(TOKENIZER).unwrap();
        let text = words.concat();
        let parts = t.parts(&text, size);
        prop_assert_eq!(parts.concat(), text.clone());
        let joined: Vec<u32> = parts.iter().flat_map(|p| t.encode(p).unwrap()).collect();
        prop_assert_eq!(joined, t.encode(&text).unwrap());
    }
}
