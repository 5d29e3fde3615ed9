//! Writes safetensors files as a stream: the header from names, formats and shapes, then one tensor after the other.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::safetensors::MAX_HEADER;
use crate::element::Dtype;
use crate::error::{Error, Result};

/// What the numbers of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorFormat {
    Float(Dtype),
    /// Bytes that only who wrote them understands.
    Bytes,
}

impl From<Dtype> for TensorFormat {
    fn from(dtype: Dtype) -> Self {
        TensorFormat::Float(dtype)
    }
}

impl TensorFormat {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            TensorFormat::Float(dtype) => dtype.size(),
            TensorFormat::Bytes => 1,
        }
    }

    /// As files name it.
    pub const fn name(self) -> &'static str {
        match self {
            TensorFormat::Float(Dtype::F32) => "F32",
            TensorFormat::Float(Dtype::F16) => "F16",
            TensorFormat::Float(Dtype::Bf16) => "BF16",
            TensorFormat::Bytes => "U8",
        }
    }
}

/// What a file says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec<F = Dtype> {
    pub name: String,
    pub dtype: F,
    pub shape: Vec<usize>,
}

impl<F: Copy + Into<TensorFormat>> TensorSpec<F> {
    /// Bytes of its numbers; `None` when they cannot be counted.
    pub fn bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.into().size(), |n, &d| n.checked_mul(d))
    }
}

/// A safetensors file being written to `W`. Of the numbers nothing is kept.
#[derive(Debug)]
pub struct SafetensorsWriter<W: Write> {
    out: W,
    path: PathBuf,
    /// Name and bytes of each tensor, in the order of their data.
    tensors: Vec<(String, usize)>,
    /// The tensor that is being written, and how much of it there is.
    at: usize,
    done: usize,
}

impl<W: Write> SafetensorsWriter<W> {
    /// Writes the header of a file with `tensors` in this order. `path` is named in errors. The metadata say
    /// `"format": "pt"`, which Python loaders ask for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a name that appears twice or is the format's own, a shape whose bytes cannot be
    /// counted, a header larger than readers accept, or numbers that would not be aligned to their size (put wider
    /// formats first); [`Error::Io`] when writing fails.
    pub fn new<F: Copy + Into<TensorFormat>>(
        mut out: W,
        path: &Path,
        tensors: &[TensorSpec<F>],
    ) -> Result<Self> {
        let fail = |what: String, expected: &str, got: String| Error::Checkpoint {
            path: path.to_path_buf(),
            what,
            expected: expected.into(),
            got,
        };
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let (mut seen, mut sizes, mut at) = (BTreeSet::new(), Vec::with_capacity(tensors.len()), 0_usize);
        for tensor in tensors {
            let TensorSpec { name, dtype, shape } = tensor;
            let format: TensorFormat = (*dtype).into();
            if name == "__metadata__" || !seen.insert(name.as_str()) {
                return Err(fail(format!("tensor {name}"), "a name of its own", "one that is taken".into()));
            }
            let end = tensor.bytes().and_then(|n| at.checked_add(n)).ok_or_else(|| {
                fail(format!("shape of tensor {name}"), "bytes that can be counted", format!("{shape:?}"))
            })?;
            if at % format.size() != 0 {
                let got = format!("{} at byte {at}", format.name());
                return Err(fail(format!("tensor {name}"), "wider formats first", got));
            }
            let entry = json!({"dtype": format.name(), "shape": shape, "data_offsets": [at, end]});
            header.insert(name.clone(), entry);
            sizes.push((name.clone(), end - at));
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() > MAX_HEADER {
            let got = format!("{} bytes", header.len());
            return Err(fail("header".into(), &format!("at most {MAX_HEADER} bytes"), got));
        }
        let start = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        out.write_all(&start).map_err(|e| Error::io("write", path, e))?;
        Ok(Self { out, path: path.to_path_buf(), tensors: sizes, at: 0, done: 0 })
    }

    /// Writes the next little-endian, row-major bytes of tensor `name`: all of them, or a part, the others to follow.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when another tensor is next, or these are more bytes than it has left; [`Error::Io`]
    /// when writing fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.skip_full();
        let (next, left) = match self.tensors.get(self.at) {
            Some((next, size)) => (next.as_str(), size - self.done),
            None => ("the end of the file", 0),
        };
        if next != name {
            // Nothing of a tensor that has no numbers.
            if bytes.is_empty() && self.tensors[..self.at].iter().any(|(n, size)| n == name && *size == 0) {
                return Ok(());
            }
            return Err(self.misuse(format!("tensor {next} next"), format!("tensor {name}")));
        }
        if bytes.len() > left {
            let expected = format!("at most {left} more bytes of tensor {name}");
            return Err(self.misuse(expected, format!("{} bytes", bytes.len())));
        }
        self.out.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.done += bytes.len();
        Ok(())
    }

    /// Flushes, and gives back what was written to.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when numbers are missing; [`Error::Io`] when writing fails.
    pub fn finish(mut self) -> Result<W> {
        self.skip_full();
        if let Some((name, size)) = self.tensors.get(self.at) {
            let expected = format!("all {size} bytes of tensor {name}");
            return Err(self.misuse(expected, format!("{} bytes", self.done)));
        }
        self.out.flush().map_err(|e| Error::io("write", &self.path, e))?;
        Ok(self.out)
    }

    fn skip_full(&mut self) {
        while self.tensors.get(self.at).is_some_and(|(_, size)| *size == self.done) {
            (self.at, self.done) = (self.at + 1, 0);
        }
    }

    fn misuse(&self, expected: String, got: String) -> Error {
        Error::Checkpoint { path: self.path.clone(), what: "tensors written".into(), expected, got }
    }
}
