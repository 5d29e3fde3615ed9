//! Checkpoints that lie, each test named by the attack.

use std::path::Path;

use bytes::Bytes;
use lacuna::Error;
use lacuna::io::Checkpoint;
use proptest::prelude::*;
use serde_json::json;

use super::support::{f32s, file, safetensors, write};

fn open(bytes: Vec<u8>) -> Result<Checkpoint, Error> {
    Checkpoint::from_bytes(Bytes::from(bytes), Path::new("hostile.safetensors"))
}

/// The file must be refused as a malformed checkpoint, in words that hold all of `words`.
#[track_caller]
fn refused(bytes: Vec<u8>, words: &[&str]) {
    let error = open(bytes).expect_err("a hostile file was accepted");
    assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    for word in ["hostile.safetensors"].iter().chain(words) {
        assert!(message.contains(word), "{message:?} does not name {word:?}");
    }
}

/// A header of one tensor `w`, over `data` bytes of data.
fn one(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
    file(&header, &vec![0; data])
}

#[test]
fn empty_file() {
    refused(vec![], &["8 bytes", "0 bytes"]);
}

#[test]
fn file_shorter_than_the_length_field() {
    refused(vec![1, 2, 3], &["8 bytes", "3 bytes"]);
}

#[test]
fn header_length_beyond_the_file() {
    refused([&1000u64.to_le_bytes()[..], b"{}"].concat(), &["header", "1000", "truncated"]);
}

#[test]
fn header_length_absurd() {
    for length in [u64::MAX, 1 << 63, 100_000_001] {
        refused([&length.to_le_bytes()[..], b"{}"].concat(), &["header", &length.to_string()]);
    }
}

#[test]
fn truncated_anywhere() {
    let whole = safetensors(&[("a", "F32", vec![2], f32s(&[1.0, 2.0])), ("b", "F16", vec![1], vec![0, 0])]);
    open(whole.clone()).unwrap();
    for n in 0..whole.len() {
        refused(whole[..n].to_vec(), &[]);
    }
}

#[test]
fn header_is_not_utf8() {
    refused([&4u64.to_le_bytes()[..], b"{\"\xff\""].concat(), &["UTF-8", "byte at 10"]);
}

#[test]
fn header_is_not_an_object() {
    for header in ["[]", "null", "7", "\"x\"", " {}", ""] {
        refused(file(header, b""), &["JSON object"]);
    }
}

#[test]
fn header_is_broken_json() {
    refused(file(r#"{"w":{"dtype":"F32""#, b""), &["header", "EOF"]);
    refused(file("{} {}", b""), &["header", "trailing"]);
    refused(file(&format!("{{\"w\":{}", "[".repeat(100_000)), b""), &["\"w\""]);
}

#[test]
fn entry_lacks_a_field_or_has_another_one() {
    refused(file(r#"{"w":{"dtype":"F32","shape":[1]}}"#, b"0000"), &["\"w\"", "data_offsets"]);
    refused(
        file(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, b"0000"),
        &["\"w\"", "x"],
    );
    refused(file(r#"{"w":3}"#, b""), &["\"w\""]);
}

#[test]
fn offsets_beyond_the_file() {
    refused(one("F32", "[2]", "[0,8]", 4), &["data_offsets of tensor w", "[0, 8]"]);
    refused(one("F32", "[2]", "[18446744073709551608,18446744073709551615]", 4), &["tensor w"]);
}

#[test]
fn offsets_reversed() {
    refused(one("F32", "[1]", "[4,0]", 4), &["data_offsets of tensor w", "[4, 0]"]);
}

#[test]
fn offsets_negative_fractional_or_too_many() {
    for offsets in ["[-4,0]", "[0.5,4]", "[0,4,8]", "[0]", "\"0,4\"", "[0,1e400]"] {
        refused(one("F32", "[1]", offsets, 4), &["\"w\""]);
    }
}

#[test]
fn offsets_do_not_fit_shape_and_dtype() {
    refused(one("F32", "[3]", "[0,8]", 8), &["data_offsets of tensor w", "12 bytes", "8 bytes"]);
    refused(one("F16", "[3]", "[0,12]", 12), &["tensor w", "6 bytes"]);
    refused(one("I64", "[1]", "[0,4]", 4), &["tensor w", "8 bytes"]);
    refused(one("F32", "[]", "[0,8]", 8), &["tensor w", "4 bytes"]);
}

#[test]
fn shape_overflows() {
    refused(one("F32", "[4294967296,4294967296]", "[0,4]", 4), &["shape of tensor w"]);
    refused(one("F32", "[9223372036854775807,2]", "[0,4]", 4), &["shape of tensor w"]);
    refused(one("F32", "[18446744073709551616]", "[0,4]", 4), &["\"w\""]);
    refused(one("F32", "[-1]", "[0,4]", 4), &["\"w\""]);
}

#[test]
fn overlapping_tensors() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    refused(file(header, &[0; 12]), &["tensor b", "overlapping", "byte 4"]);
}

#[test]
fn two_tensors_on_the_same_bytes() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    refused(file(header, &[0; 4]), &["tensor b", "overlapping"]);
}

#[test]
fn hole_between_tensors() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    refused(file(header, &[0; 12]), &["tensor b", "hole", "byte 8"]);
}

#[test]
fn hole_before_the_first_tensor() {
    refused(one("F32", "[1]", "[4,8]", 8), &["tensor w", "hole"]);
}

#[test]
fn bytes_behind_the_last_tensor() {
    refused(one("F32", "[1]", "[0,4]", 9), &["5 bytes that belong to no tensor", "right behind w"]);
    refused(file("{}", b"stowaway"), &["8 bytes"]);
}

#[test]
fn duplicate_tensor_names() {
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    refused(file(header, &[0; 8]), &["\"w\" appears twice"]);
}

#[test]
fn duplicate_names_by_escape() {
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "\u0077":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    refused(file(header, &[0; 8]), &["\"w\" appears twice"]);
}

#[test]
fn duplicate_fields_and_metadata() {
    refused(
        file(r#"{"w":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]),
        &["\"w\""],
    );
    refused(file(r#"{"__metadata__":{"a":"1","a":"2"}}"#, b""), &["\"a\" appears twice"]);
    refused(file(r#"{"__metadata__":{"a":1}}"#, b""), &["__metadata__"]);
}

#[test]
fn wrong_dtype_where_weights_are_wanted() {
    let bytes = safetensors(&[("w", "I64", vec![1], vec![0; 8]), ("odd", "Q4_K", vec![5], vec![0; 3])]);
    let checkpoint = open(bytes).unwrap();
    assert!(checkpoint.get("w").is_none());
    for (name, dtype) in [("w", "I64"), ("odd", "Q4_K"), ("gone", "no such tensor")] {
        let message = checkpoint.require(name).unwrap_err().to_string();
        assert!(message.contains(&format!("tensor {name}")) && message.contains(dtype), "{message}");
    }
}

/// A folder of two shards and an index that says what `weight_map` says.
fn sharded(weight_map: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "one.safetensors", safetensors(&[("a", "F32", vec![1], f32s(&[1.0]))]));
    write(dir.path(), "two.safetensors", safetensors(&[("b", "F32", vec![1], f32s(&[2.0]))]));
    write(dir.path(), "model.safetensors.index.json", format!(r#"{{"weight_map":{weight_map}}}"#));
    dir
}

#[track_caller]
fn index_refused(weight_map: &str, words: &[&str]) {
    let dir = sharded(weight_map);
    let error = Checkpoint::open(dir.path()).expect_err("a hostile index was accepted");
    assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
    let message = error.to_string();
    for word in ["model.safetensors.index.json"].iter().chain(words) {
        assert!(message.contains(word), "{message:?} does not name {word:?}");
    }
}

#[test]
fn index_names_a_missing_shard() {
    index_refused(r#"{"a":"one.safetensors","c":"three.safetensors"}"#, &["tensor c", "three.safetensors"]);
}

#[test]
fn index_names_a_missing_tensor() {
    index_refused(r#"{"a":"one.safetensors","b":"one.safetensors"}"#, &["tensor b", "one.safetensors"]);
}

#[test]
fn index_points_outside_the_folder() {
    let names =
        ["../one.safetensors", "/etc/one.safetensors", "x/../../one.safetensors", "..\\one.safetensors"];
    for file in
        names.iter().chain(&["C:one.safetensors", "", ".safetensors", "config.json", "a\0.safetensors"])
    {
        index_refused(&json!({ "a": file }).to_string(), &["file of tensor a", "plain name"]);
    }
}

#[test]
fn index_names_a_tensor_twice() {
    index_refused(r#"{"a":"one.safetensors","a":"two.safetensors"}"#, &["\"a\" appears twice"]);
}

#[test]
fn index_is_empty_or_of_other_types() {
    index_refused("{}", &["weight_map"]);
    index_refused("[]", &["index"]);
    index_refused(r#"{"a":7}"#, &["index"]);
}

#[test]
fn tensor_in_two_shards() {
    let dir = sharded(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let both = safetensors(&[("a", "F32", vec![1], f32s(&[1.0])), ("b", "F32", vec![1], f32s(&[2.0]))]);
    write(dir.path(), "two.safetensors", both);
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("two.safetensors") && message.contains("tensor a"), "{message}");
}

#[test]
fn shard_is_truncated() {
    let dir = sharded(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let whole = std::fs::read(dir.path().join("two.safetensors")).unwrap();
    write(dir.path(), "two.safetensors", &whole[..whole.len() - 1]);
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("two.safetensors") && message.contains("tensor b"), "{message}");
}

fn valid() -> Vec<u8> {
    safetensors(&[
        ("h.0.w", "F32", vec![2, 3], f32s(&[0.5; 6])),
        ("h.0.b", "BF16", vec![3], vec![1; 6]),
        ("mask", "BOOL", vec![4], vec![1; 4]),
        ("empty", "F16", vec![0, 7], vec![]),
    ])
}

/// Whatever was accepted can be read to the last number.
fn read_all(checkpoint: &Checkpoint) {
    for (_, tensor) in checkpoint.iter() {
        assert_eq!(tensor.to_vec::<f32>().len(), tensor.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = valid();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(checkpoint) = open(bytes) {
            read_all(&checkpoint);
        }
    }

    #[test]
    fn digits_replaced_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), "[0-9]{1,20}"), 1..4)) {
        // Numbers are the dangerous part of a header: replace whole runs of digits.
        let valid = valid();
        let length = u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
        let mut header = String::from_utf8(valid[8..8 + length].to_vec()).unwrap();
        for (at, number) in edits {
            let runs: Vec<usize> = header.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
            let start = runs[at.index(runs.len())];
            let end = header[start..].find(|c: char| !c.is_ascii_digit()).map_or(header.len(), |n| start + n);
            header.replace_range(start..end, &number);
        }
        if let Ok(checkpoint) = open(file(&header, &valid[8 + length..])) {
            read_all(&checkpoint);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), header in "\\PC{0,80}") {
        let _ = open(bytes.clone());
        let _ = open(file(&header, &bytes));
    }
}
