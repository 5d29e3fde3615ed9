//! What a file holds by its name, and its bytes, unpacked as they are read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use flate2::bufread::MultiGzDecoder;

use super::count;
use crate::error::{Error, Result};
use crate::io::is_device;

/// The name of standard input.
pub const STDIN: &str = "-";
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text(Packing),
    Json(Packing),
    Parquet,
}

/// The name of a file, in small letters.
fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

impl Kind {
    /// By the ending of the name alone.
    pub fn by_name(path: &Path) -> Option<Self> {
        let name = name_of(path);
        let (stem, packing) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
            (Some(stem), _) => (stem, Packing::Gzip),
            (_, Some(stem)) => (stem, Packing::Zstd),
            _ => (name.as_str(), Packing::Plain),
        };
        match stem.rsplit_once('.').map(|(_, ending)| ending) {
            Some("txt") => Some(Kind::Text(packing)),
            Some("jsonl" | "ndjson") => Some(Kind::Json(packing)),
            Some("parquet") if packing == Packing::Plain => Some(Kind::Parquet),
            _ => None,
        }
    }

    /// By the ending of the name. Standard input and pipes are plain text.
    ///
    /// # Errors
    /// [`Error::Input`] for any other ending.
    pub fn of(path: &Path) -> Result<Self> {
        match Self::by_name(path) {
            Some(kind) => Ok(kind),
            _ if path.as_os_str() == STDIN || is_device(path) => Ok(Kind::Text(Packing::Plain)),
            _ => {
                // What is not there has no kind either: that is said first.
                std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
                Err(Error::Input {
                    origin: path.display().to_string(),
                    what: "kind of file".into(),
                    expected: ".txt, .jsonl (both also with .gz or .zst behind) or .parquet; or - for standard input"
                        .into(),
                    got: if path.is_dir() { "a folder; name its files".into() } else { format!("{:?}", name_of(path)) },
                })
            }
        }
    }

    /// Bytes of the file; `None` for a stream.
    ///
    /// # Errors
    /// [`Error::Io`] when it is not there or a folder.
    pub fn size(self, path: &Path) -> Result<Option<u64>> {
        if path.as_os_str() == STDIN {
            return Ok(None);
        }
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if meta.is_dir() {
            let kind =
                std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a folder; name its files");
            return Err(Error::io("open", path, kind));
        }
        Ok(meta.is_file().then_some(meta.len()))
    }

    fn packing(self) -> Packing {
        match self {
            Kind::Text(packing) | Kind::Json(packing) => packing,
            Kind::Parquet => Packing::Plain,
        }
    }

    /// The bytes of the file, unpacked; those of the disk are added to `read`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes(self, path: &Path, read: Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>> {
        if path.as_os_str() == STDIN {
            return Ok(Box::new(buffered(Counted { inner: std::io::stdin(), read })));
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let file = buffered(Counted { inner: file, read });
        Ok(match self.packing() {
            Packing::Plain => Box::new(file),
            Packing::Gzip => Box::new(buffered(MultiGzDecoder::new(file))),
            Packing::Zstd => {
                let decoder = zstd::Decoder::with_buffer(file).map_err(|e| Error::io("unpack", path, e))?;
                Box::new(buffered(decoder))
            }
        })
    }
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER, reader)
}

/// Counts what it reads.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        count(&self.read, n as u64);
        Ok(n)
    }
}
