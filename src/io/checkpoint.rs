//! Tensors by name, from one safetensors file, from several with an index, or from memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;

use super::read_limited;
use super::safetensors::{UniqueMap, read_header};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

/// The name of a checkpoint that is one file.
pub const SINGLE: &str = "model.safetensors";
/// The name of the index of a checkpoint that is several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// The largest index that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;

/// A tensor in a format that weights are not read from (`I64`, `BOOL`, ...): a buffer of the
/// program that wrote the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTensor {
    /// As written in the file.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
    data: Bytes,
}

impl OtherTensor {
    /// As written in the file.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// The tensors of a checkpoint. Files are memory-mapped: opening reads the headers only, and the
/// tensors share the maps.
///
/// A mapped file must not be cut short while a tensor of it is alive: no check done at opening can
/// guard against that, and the operating system ends a process that reads behind the end (on Unix
/// with SIGBUS). Replacing a file by renaming another over it, as every well-behaved writer does,
/// is safe.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
    others: BTreeMap<String, OtherTensor>,
    metadata: BTreeMap<String, String>,
    mapped_bytes: u64,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors`, or with `model.safetensors.index.json` and the
    /// files it names, or with a single file of another name; or opens such a file itself.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; [`Error::Checkpoint`], naming file and tensor,
    /// when one is malformed (see [`read_header`]), when a tensor is in two files, or when the
    /// index names a file or a tensor that is not there or a file outside the folder.
    pub fn open(dir_or_file: &Path) -> Result<Self> {
        let meta = std::fs::metadata(dir_or_file).map_err(|e| Error::io("open", dir_or_file, e))?;
        if !meta.is_dir() {
            return if dir_or_file.extension().is_some_and(|e| e == "json") {
                Self::open_sharded(dir_or_file)
            } else {
                Self::open_single(dir_or_file)
            };
        }
        let (single, index) = (dir_or_file.join(SINGLE), dir_or_file.join(INDEX));
        if single.exists() {
            return Self::open_single(&single);
        }
        if index.exists() {
            return Self::open_sharded(&index);
        }
        let names = file_names(dir_or_file)?;
        let files: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
        if let [only] = files[..]
            && !only.starts_with("adapter_")
        {
            return Self::open_single(&dir_or_file.join(only));
        }
        let got = if !files.is_empty() {
            let files: Vec<&str> = files.iter().map(|s| s.as_str()).collect();
            format!("{}, and no index that says how they belong together", files.join(", "))
        } else if names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pt")) {
            "PyTorch pickles (.bin), which can run code when read; save the model as safetensors".to_owned()
        } else {
            "neither".to_owned()
        };
        Err(Error::Checkpoint {
            path: dir_or_file.to_path_buf(),
            what: "weights".into(),
            expected: format!("{SINGLE} or {INDEX}"),
            got,
        })
    }

    /// A checkpoint embedded in the program; `name` is named in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::from_bytes`].
    pub fn from_static(bytes: &'static [u8], name: &str) -> Result<Self> {
        Self::from_bytes(Bytes::from_static(bytes), Path::new(name))
    }

    /// A checkpoint from the whole content of a safetensors file; `path` is named in errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the content is malformed, see [`read_header`].
    pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        checkpoint.add_file(path, bytes)?;
        Ok(checkpoint)
    }

    /// No tensors; `path` is named in errors.
    pub fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            tensors: BTreeMap::new(),
            others: BTreeMap::new(),
            metadata: BTreeMap::new(),
            mapped_bytes: 0,
            notes: Vec::new(),
        }
    }

    fn open_single(path: &Path) -> Result<Self> {
        Self::from_bytes(map_file(path)?, path)
    }

    fn open_sharded(index: &Path) -> Result<Self> {
        let shards = read_index(index)?;
        let mut checkpoint = Self::empty(index);
        let dir = index.parent().unwrap_or(Path::new("."));
        for (file, names) in &shards {
            let path = dir.join(file);
            if !path.exists() {
                return Err(Error::Checkpoint {
                    path: index.to_path_buf(),
                    what: format!("file of tensor {}", names.first().map_or("?", |n| n.as_str())),
                    expected: format!("{file} beside the index"),
                    got: "no such file (an unfinished download?)".into(),
                });
            }
            let before = checkpoint.tensors.len() + checkpoint.others.len();
            let added = checkpoint.add_file(&path, map_file(&path)?)?;
            if let Some(missing) = names.iter().find(|n| !added.contains(*n)) {
                return Err(Error::Checkpoint {
                    path: index.to_path_buf(),
                    what: format!("tensor {missing}"),
                    expected: format!("in {file}, as the index says"),
                    got: "no such tensor in that file".into(),
                });
            }
            let extra = checkpoint.tensors.len() + checkpoint.others.len() - before - names.len();
            if extra > 0 {
                checkpoint.notes.push(format!("{file} holds {extra} tensors that the index does not name"));
            }
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of one file and returns their names.
    fn add_file(&mut self, path: &Path, bytes: Bytes) -> Result<BTreeSet<String>> {
        let header = read_header(&bytes, path)?;
        let mut names = BTreeSet::new();
        for t in header.tensors {
            if self.tensors.contains_key(&t.name) || self.others.contains_key(&t.name) {
                return Err(Error::Checkpoint {
                    path: path.to_path_buf(),
                    what: format!("tensor {}", t.name),
                    expected: "in one file only".into(),
                    got: "a tensor of that name in another file of the checkpoint too".into(),
                });
            }
            names.insert(t.name.clone());
            match t.weight_dtype() {
                Some(dtype) => {
                    let data = bytes.slice(t.start..t.end);
                    self.tensors.insert(t.name, StoredTensor::new(dtype, t.shape, data)?);
                }
                None => {
                    let data = bytes.slice(t.start..t.end);
                    let bytes = data.len() as u64;
                    let other = OtherTensor { dtype: t.dtype, shape: t.shape, bytes, data };
                    self.others.insert(t.name, other);
                }
            }
        }
        self.metadata.extend(header.metadata);
        self.mapped_bytes += bytes.len() as u64;
        Ok(names)
    }

    /// The tensor of that name, when it is there in a format that weights are read from.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Puts another tensor in place of one, in memory.
    pub fn replace(&mut self, name: &str, tensor: StoredTensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming it when it is not there, or is not of f32, f16 or bf16.
    pub fn require(&self, name: &str) -> Result<&StoredTensor> {
        self.get(name).ok_or_else(|| Error::Checkpoint {
            path: self.path.clone(),
            what: format!("tensor {name}"),
            expected: "F32, F16 or BF16 numbers".into(),
            got: self.others.get(name).map_or("no such tensor".to_owned(), |o| o.dtype.clone()),
        })
    }

    /// All tensors that weights can be read from, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor of that name, when it is there in a format that weights are not read from.
    pub fn other(&self, name: &str) -> Option<&OtherTensor> {
        self.others.get(name)
    }

    /// Tensors in formats that weights are not read from, by name.
    pub fn others(&self) -> impl Iterator<Item = (&str, &OtherTensor)> {
        self.others.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The `__metadata__` of the file, or of all files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The file, or the index of several files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the mapped files (of one embedded in the program: its bytes there).
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Number of tensors that weights can be read from.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// What is odd about the files, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The names of the files in a folder, sorted.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Maps a file into memory, read-only.
pub(super) fn map_file(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let meta = file.metadata().map_err(|e| Error::io("open", path, e))?;
    if !meta.is_file() {
        return Err(Error::io("map", path, std::io::Error::other("not a regular file")));
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process's address space. That the file does
    // not shrink while the map is alive cannot be checked; it is the caller's part, stated in the
    // documentation of `Checkpoint`.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    Ok(Bytes::from_owner(map))
}

/// Reads an index: for each file, the tensors it must hold.
///
/// # Errors
/// [`Error::Checkpoint`] when it is not the JSON the format asks for, names a tensor twice, or
/// names a file that is not a plain file name.
pub fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: UniqueMap,
    }
    let fail = |what: String, expected: &str, got: String| Error::Checkpoint {
        path: path.to_path_buf(),
        what,
        expected: expected.to_owned(),
        got,
    };
    let bytes = read_limited(path, MAX_INDEX)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| {
        fail("index".into(), "a JSON object with a weight_map from tensor to file, each once", e.to_string())
    })?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in index.weight_map.0 {
        let plain = !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0']);
        if !plain || !file.ends_with(".safetensors") {
            let what = format!("file of tensor {tensor}");
            return Err(fail(
                what,
                "the plain name of a .safetensors file beside the index",
                format!("{file:?}"),
            ));
        }
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(fail("weight_map".into(), "at least one tensor", "none".into()));
    }
    Ok(shards)
}

/// Elements looked at between two decisions of [`non_finite`].
const CHUNK: usize = 4096;

/// The index of the first element that is NaN or infinite, if there is one. Looks at the exponent
/// bits of the stored numbers in parallel, at about the speed of memory.
pub fn non_finite(tensor: &StoredTensor) -> Option<usize> {
    let size = tensor.dtype().size();
    let chunk = tensor
        .bytes()
        .par_chunks(CHUNK * size)
        .position_first(|chunk| any_non_finite(tensor.dtype(), chunk))?;
    let first = chunk * CHUNK;
    (first..tensor.len().min(first + CHUNK)).find(|&i| !tensor.get(i).is_finite())
}

/// Whether the exponent of any number is all ones. Branch-free, so that it compiles to vector code.
fn any_non_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    fn any16(bytes: &[u8], exponent: u16) -> bool {
        let (numbers, _) = bytes.as_chunks::<2>();
        numbers.iter().fold(false, |any, b| any | (u16::from_le_bytes(*b) & exponent == exponent))
    }
    match dtype {
        Dtype::F32 => {
            const EXPONENT: u32 = 0x7f80_0000;
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().fold(false, |any, b| any | (u32::from_le_bytes(*b) & EXPONENT == EXPONENT))
        }
        Dtype::F16 => any16(bytes, 0x7c00),
        Dtype::Bf16 => any16(bytes, 0x7f80),
    }
}
