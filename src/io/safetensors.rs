//! The safetensors header: an 8-byte little-endian length, that many bytes of JSON, then the data.
//!
//! The reader is strict. The format (huggingface/safetensors, "Format") promises that tensors fill
//! the data section without overlap and without holes and that names are unique; a file that
//! breaks a promise is refused, because reading it "as well as possible" means computing with
//! numbers nobody stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::element::Dtype;
use crate::error::{Error, Result};

/// The largest header that is read, in bytes; the reference implementation's limit.
pub const MAX_HEADER: usize = 100_000_000;

/// What the header says of one tensor, checked against the size of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// As written in the file: `F32`, `BF16`, `I64`, ...
    pub dtype: String,
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: usize,
    /// One past the last byte, counted from the start of the file.
    pub end: usize,
}

impl TensorInfo {
    /// The format of the numbers, when weights can be held in it.
    pub fn weight_dtype(&self) -> Option<Dtype> {
        match self.dtype.as_str() {
            "F32" => Some(Dtype::F32),
            "F16" => Some(Dtype::F16),
            "BF16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

/// A whole header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// In the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` object.
    pub metadata: BTreeMap<String, String>,
}

/// Bits of one element of a safetensors dtype; `None` for a name that is not known.
fn bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "F64" | "I64" | "U64" | "C64" => 64,
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = BTreeSet::new();
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("the name {name:?} appears twice")));
                    }
                    let within = |e: A::Error| A::Error::custom(format_args!("tensor {name:?}: {e}"));
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<UniqueMap>().map_err(within)?.0;
                    } else {
                        let tensor = map.next_value::<RawTensor>().map_err(within)?;
                        header.tensors.push((name, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object of strings in which no key appears twice.
pub(super) struct UniqueMap(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the name {key:?} appears twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// Reads and checks the header of a safetensors file of which `bytes` is the whole content;
/// `path` is named in errors.
///
/// # Errors
/// [`Error::Checkpoint`] naming the file, and the tensor where there is one: a file or a header
/// that is cut short, a header that is not the JSON the format asks for, a name that appears
/// twice, offsets that point outside the file, run backwards, overlap, leave a hole or do not fit
/// shape and dtype.
pub fn read_header(bytes: &[u8], path: &Path) -> Result<Header> {
    let fail = |what: &str, expected: String, got: String| Error::Checkpoint {
        path: path.to_path_buf(),
        what: what.to_owned(),
        expected,
        got,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let expected = "at least 8 bytes (the header's length)".to_owned();
        return Err(fail("file", expected, format!("{} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let length = match usize::try_from(length) {
        Ok(n) if n <= MAX_HEADER => n,
        _ => {
            let expected = format!("a header of at most {MAX_HEADER} bytes");
            return Err(fail("header", expected, format!("a stated length of {length}")));
        }
    };
    let Some((json, data)) = rest.split_at_checked(length) else {
        let expected = format!("{length} bytes of header, as the file states");
        return Err(fail("header", expected, format!("{} bytes (a truncated file?)", rest.len())));
    };
    let json = std::str::from_utf8(json).map_err(|e| {
        fail("header", "UTF-8 text".into(), format!("an invalid byte at {}", 8 + e.valid_up_to()))
    })?;
    if !json.starts_with('{') {
        let got = json.chars().next().map_or("nothing".to_owned(), |c| format!("{c:?}"));
        return Err(fail("header", "a JSON object at byte 8".into(), got));
    }
    let raw: RawHeader = serde_json::from_str(json)
        .map_err(|e| fail("header", "a JSON object of tensors, each name once".into(), e.to_string()))?;

    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        tensors.push(locate(name, tensor, data.len(), 8 + length, &fail)?);
    }
    tensors.sort_by_key(|t| (t.start, t.end));
    no_overlap_no_hole(&tensors, 8 + length, bytes.len(), &fail)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks one entry by itself: offsets against the data section of `available` bytes, which starts
/// at byte `base` of the file, and against shape and dtype.
fn locate(
    name: String,
    tensor: RawTensor,
    available: usize,
    base: usize,
    fail: &impl Fn(&str, String, String) -> Error,
) -> Result<TensorInfo> {
    let what = |part: &str| format!("{part} of tensor {name}");
    let (start, end) = tensor.data_offsets;
    let got = || format!("[{start}, {end}]");
    if start > end {
        return Err(fail(&what("data_offsets"), "a start that is not behind the end".into(), got()));
    }
    let (start, end) = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if end <= available => (start, end),
        _ => {
            let expected = format!("offsets within the {available} bytes of data in the file");
            return Err(fail(&what("data_offsets"), expected, got()));
        }
    };
    let mut shape = Vec::with_capacity(tensor.shape.len());
    for &d in &tensor.shape {
        let d = usize::try_from(d).map_err(|_| {
            fail(&what("shape"), "sizes that fit this machine".into(), format!("{:?}", tensor.shape))
        })?;
        shape.push(d);
    }
    if let Some(bits) = bits(&tensor.dtype) {
        let expected = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|n| n.checked_mul(bits))
            .filter(|total| total % 8 == 0)
            .map(|total| total / 8)
            .ok_or_else(|| {
                let got =
                    format!("{:?} of {}, which is no countable number of bytes", tensor.shape, tensor.dtype);
                fail(&what("shape"), "a shape whose bytes can be counted".into(), got)
            })?;
        if expected != end - start {
            let wanted = format!("{expected} bytes for {:?} of {}", tensor.shape, tensor.dtype);
            return Err(fail(&what("data_offsets"), wanted, format!("{} bytes, {}", end - start, got())));
        }
    }
    Ok(TensorInfo { name, dtype: tensor.dtype, shape, start: base + start, end: base + end })
}

/// `tensors`, sorted, must tile the bytes `base..len` of the file.
fn no_overlap_no_hole(
    tensors: &[TensorInfo],
    base: usize,
    len: usize,
    fail: &impl Fn(&str, String, String) -> Error,
) -> Result<()> {
    let mut at = base;
    let mut before = "the header";
    for t in tensors {
        if t.start != at {
            let kind = if t.start < at { "overlapping tensors" } else { "a hole" };
            let expected = format!("its data right behind {before}, at byte {}", at - base);
            return Err(fail(
                &format!("tensor {}", t.name),
                expected,
                format!("{kind}: byte {}", t.start - base),
            ));
        }
        (at, before) = (t.end, &t.name);
    }
    if at != len {
        let expected = format!("the end of the file right behind {before}");
        return Err(fail("data", expected, format!("{} bytes that belong to no tensor", len - at)));
    }
    Ok(())
}
