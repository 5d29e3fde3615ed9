//! Checkpoints that are in order.

use std::path::Path;

use bytes::Bytes;
use half::{bf16, f16};
use lacuna::Error;
use lacuna::element::{Dtype, StoredTensor};
use lacuna::io::Checkpoint;
use lacuna::io::checkpoint::non_finite;
use proptest::prelude::*;

use super::support::{f32s, file, safetensors, write};

#[test]
fn numbers_come_out_as_stored_in_every_dtype() {
    let numbers = [1.5f32, -0.25, 3.0];
    let bytes = safetensors(&[
        ("a", "F32", vec![3, 1], f32s(&numbers)),
        ("b", "F16", vec![1, 3], numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        ("c", "BF16", vec![3], numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
    ]);
    let checkpoint = Checkpoint::from_bytes(Bytes::from(bytes.clone()), Path::new("x")).unwrap();
    for (name, dtype, shape) in
        [("a", Dtype::F32, &[3, 1][..]), ("b", Dtype::F16, &[1, 3]), ("c", Dtype::Bf16, &[3])]
    {
        let tensor = checkpoint.get(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape));
        assert_eq!(tensor.to_vec::<f32>(), numbers);
    }
    assert_eq!(checkpoint.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((checkpoint.len(), checkpoint.mapped_bytes()), (3, bytes.len() as u64));
}

#[test]
fn rank_zero_and_empty_tensors() {
    let bytes = safetensors(&[
        ("empty", "F32", vec![0, 5], vec![]),
        ("scalar", "F32", vec![], f32s(&[7.0])),
        ("void", "F16", vec![3, 0], vec![]),
    ]);
    let checkpoint = Checkpoint::from_bytes(Bytes::from(bytes), Path::new("x")).unwrap();
    assert_eq!(checkpoint.get("scalar").unwrap().to_vec::<f32>(), [7.0]);
    assert!(checkpoint.get("empty").unwrap().is_empty());
    assert_eq!(checkpoint.get("void").unwrap().shape(), [3, 0]);
}

#[test]
fn tensors_may_lie_in_another_order_than_the_header() {
    let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},
        "__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   "#;
    let bytes = Bytes::from(file(header, &f32s(&[1.0, 2.0])));
    let checkpoint = Checkpoint::from_bytes(bytes, Path::new("x")).unwrap();
    assert_eq!(checkpoint.get("a").unwrap().get(0), 1.0);
    assert_eq!(checkpoint.get("b").unwrap().get(0), 2.0);
    assert_eq!(checkpoint.metadata()["format"], "pt");
}

#[test]
fn buffers_of_other_dtypes_are_listed_apart() {
    let bytes = safetensors(&[("bias", "BOOL", vec![2, 2], vec![1; 4]), ("w", "F32", vec![1], f32s(&[1.0]))]);
    let checkpoint = Checkpoint::from_bytes(Bytes::from(bytes), Path::new("x")).unwrap();
    assert_eq!(checkpoint.len(), 1);
    let (name, other) = checkpoint.others().next().unwrap();
    assert_eq!((name, other.dtype.as_str(), &other.shape[..], other.bytes), ("bias", "BOOL", &[2, 2][..], 4));
}

#[test]
fn folder_file_and_odd_file_name_open_alike() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = safetensors(&[("w", "F32", vec![1], f32s(&[4.0]))]);
    write(dir.path(), "weights-final.safetensors", &bytes);
    for path in [dir.path().to_path_buf(), dir.path().join("weights-final.safetensors")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.get("w").unwrap().get(0), 4.0);
        assert_eq!(checkpoint.path(), dir.path().join("weights-final.safetensors"));
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (safetensors(&[("a", "F32", vec![1], f32s(&[1.0]))]), ["b", "extra"]);
    let two = safetensors(&two.map(|n| (n, "F32", vec![1], f32s(&[2.0]))));
    let size = (one.len() + two.len()) as u64;
    write(dir.path(), "model-00001-of-00002.safetensors", one);
    write(dir.path(), "model-00002-of-00002.safetensors", two);
    let index = r#"{"metadata":{"total_size":8},"weight_map":{
        "b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors"}}"#;
    write(dir.path(), "model.safetensors.index.json", index);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.require("a").unwrap().get(0), 1.0);
    assert_eq!(checkpoint.require("b").unwrap().get(0), 2.0);
    assert_eq!(checkpoint.mapped_bytes(), size);
    assert!(checkpoint.notes()[0].contains("00002-of-00002"), "{:?}", checkpoint.notes());
}

#[test]
fn folders_without_weights_say_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| match Checkpoint::open(dir).unwrap_err() {
        e @ Error::Checkpoint { .. } => e.to_string(),
        e => panic!("{e:?}"),
    };
    assert!(message(dir.path()).contains("neither"));
    write(dir.path(), "pytorch_model.bin", "x");
    assert!(message(dir.path()).contains("pickles"));
    write(dir.path(), "a.safetensors", "x");
    write(dir.path(), "b.safetensors", "x");
    assert!(message(dir.path()).contains("a.safetensors, b.safetensors"));
    let gone = Checkpoint::open(&dir.path().join("gone")).unwrap_err();
    assert!(matches!(gone, Error::Io { .. }) && gone.to_string().contains("gone"), "{gone}");
}

#[test]
fn tensors_outlive_checkpoint_and_file_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(dir.path(), "model.safetensors", safetensors(&[("w", "F32", vec![1], f32s(&[9.0]))]));
    let tensor = Checkpoint::open(&path).unwrap().get("w").unwrap().clone();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(tensor.get(0), 9.0);
}

/// Stores `numbers` as `dtype`, one byte behind an aligned address.
fn unaligned(dtype: Dtype, numbers: &[f32]) -> StoredTensor {
    let mut bytes = vec![0u8];
    for &x in numbers {
        match dtype {
            Dtype::F32 => bytes.extend(x.to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        }
    }
    StoredTensor::new(dtype, vec![numbers.len()], Bytes::from(bytes).slice(1..)).unwrap()
}

#[test]
fn large_finite_numbers_are_finite() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        assert_eq!(non_finite(&unaligned(dtype, &[0.0, -0.0, 65504.0, -65504.0, 6e-8])), None, "{dtype}");
        assert_eq!(non_finite(&unaligned(dtype, &[])), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn first_non_finite_number_is_found(
        len in 1usize..20_000,
        bad in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3), 0..4),
    ) {
        let mut numbers: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
        for (at, kind) in bad {
            numbers[at.index(len)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
        }
        let expected = numbers.iter().position(|x| !x.is_finite());
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            prop_assert_eq!(non_finite(&unaligned(dtype, &numbers)), expected);
        }
    }
}
