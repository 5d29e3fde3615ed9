//! A column of strings of a Parquet file, read row by row.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parquet::basic::Type as Physical;
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader as _, Length, SerializedFileReader};

use super::count;
use super::lines::too_long;
use crate::error::{Error, Result};

/// Rows that are decoded at once. Their values share the memory of their page.
const BATCH: usize = 256;
/// Most bytes that a page may unpack to, and that a page takes in the file. Writers aim at 1 MiB.
const MAX_PAGE: u64 = 256 << 20;
/// Most bytes of the index at the end of a file.
const MAX_FOOTER: u64 = 256 << 20;

/// One column of a file.
pub struct Column {
    path: PathBuf,
    file: SerializedFileReader<Pages>,
    field: String,
    column: usize,
    nullable: bool,
    group: usize,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    values: std::vec::IntoIter<ByteArray>,
    /// Rows handed out.
    row: u64,
    rows: u64,
    longest: usize,
    /// Bytes of the file, those counted already, and the count.
    size: u64,
    counted: u64,
    read: Arc<AtomicU64>,
}

impl std::fmt::Debug for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Column").field("path", &self.path).field("row", &self.row).finish_non_exhaustive()
    }
}

impl Column {
    /// Opens a file and finds the column `field`. A value has `longest` bytes at most; the bytes of
    /// the file are added to `read` as its rows are.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when the file is malformed, or the column is not there, is
    /// nested in a list, or does not hold strings.
    pub fn open(path: &Path, field: &str, longest: usize, read: Arc<AtomicU64>) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = file.metadata().map_err(|e| Error::io("open", path, e))?.len();
        let origin = path.display().to_string();
        let pages = Pages { file, size };
        let file = guard(&origin, || SerializedFileReader::new(pages))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let strings = |c: &parquet::schema::types::ColumnDescPtr| {
            c.physical_type() == Physical::BYTE_ARRAY && c.max_rep_level() == 0
        };
        let wrong = |got: String| Error::Input {
            origin: origin.clone(),
            what: format!("column `{field}`"),
            expected: "a column of strings".into(),
            got,
        };
        let Some(column) = schema.columns().iter().position(|c| c.path().string() == field) else {
            let all = schema.columns().iter().filter(|c| strings(c)).take(8);
            let names: Vec<String> = all.map(|c| c.path().string()).collect();
            return Err(wrong(if names.is_empty() {
                "a file without columns of strings".into()
            } else {
                format!("no such column; columns of strings are: {}", names.join(", "))
            }));
        };
        let description = schema.column(column);
        if !strings(&description) {
            let list = if description.max_rep_level() > 0 { " in a list" } else { "" };
            return Err(wrong(format!("{}{list}", description.physical_type())));
        }
        let rows = u64::try_from(file.metadata().file_metadata().num_rows()).unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            nullable: description.max_def_level() > 0,
            file,
            field: field.to_owned(),
            column,
            group: 0,
            reader: None,
            values: Vec::new().into_iter(),
            row: 0,
            rows,
            longest,
            size,
            counted: 0,
            read,
        })
    }

    /// The text of the next row; `None` behind the last one.
    ///
    /// # Errors
    /// [`Error::Input`], naming file and row, for a null, a text that is too long or not UTF-8, and
    /// pages that are malformed.
    pub fn next_document(&mut self) -> Result<Option<String>> {
        let value = loop {
            match self.values.next() {
                Some(value) => break value,
                None if self.fill()? => {}
                None => {
                    count(&self.read, self.size.saturating_sub(self.counted));
                    self.counted = self.size;
                    return Ok(None);
                }
            }
        };
        self.row += 1;
        let bytes = value.data();
        if bytes.len() > self.longest {
            return Err(too_long(self.origin(self.row), "the text", self.longest));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(e) => {
                let byte = bytes.get(e.valid_up_to()).copied().unwrap_or_default();
                let what = format!("`{}`, byte {}", self.field, e.valid_up_to() + 1);
                Err(self.wrong(self.row, &what, "UTF-8", format!("0x{byte:02x}")))
            }
        }
    }

    /// Decodes more rows; `false` behind the last one.
    fn fill(&mut self) -> Result<bool> {
        let origin = self.path.display().to_string();
        loop {
            let Some(reader) = &mut self.reader else {
                if self.group >= self.file.num_row_groups() {
                    return Ok(false);
                }
                let (file, group, column) = (&self.file, self.group, self.column);
                let reader = guard(&origin, || file.get_row_group(group)?.get_column_reader(column))?;
                self.reader = Some(guard(&origin, || Ok(get_typed_column_reader(reader)))?);
                self.group += 1;
                continue;
            };
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let nullable = self.nullable;
            let (records, ..) = guard(&origin, || {
                reader.read_records(BATCH, nullable.then_some(&mut levels), None, &mut values)
            })?;
            if records == 0 {
                self.reader = None;
                continue;
            }
            if values.len() != records {
                let full = levels.iter().copied().max().unwrap_or_default();
                let null = levels.iter().position(|&l| l < full).unwrap_or_default();
                let null = if values.is_empty() { 0 } else { null as u64 };
                let what = format!("`{}`", self.field);
                return Err(self.wrong(self.row + null + 1, &what, "a string", "null".into()));
            }
            let done = self.row.saturating_add(records as u64).min(self.rows);
            let upto = (u128::from(self.size) * u128::from(done) / u128::from(self.rows.max(1))) as u64;
            count(&self.read, upto.saturating_sub(self.counted));
            self.counted = self.counted.max(upto);
            self.values = values.into_iter();
            return Ok(true);
        }
    }

    fn origin(&self, row: u64) -> String {
        format!("{} row {row}", self.path.display())
    }

    fn wrong(&self, row: u64, what: &str, expected: &str, got: String) -> Error {
        Error::Input { origin: self.origin(row), what: what.into(), expected: expected.into(), got }
    }
}

/// Runs a piece of the `parquet` crate, which returns errors on most malformed files and panics on
/// some.
fn guard<T>(origin: &str, work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let got = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "one that its reader gives up on".into(),
    };
    let (what, expected) = ("contents".into(), "a well-formed Parquet file".into());
    Err(Error::Input { origin: origin.to_owned(), what, expected, got })
}

/// The bytes of a file. What a page claims to unpack to is looked at before memory is taken for it.
struct Pages {
    file: File,
    size: u64,
}

impl Length for Pages {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Pages {
    type T = BufReader<File>;

    /// Called where a page's header begins.
    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let mut file = self.file.try_clone()?;
        let mut head = Vec::with_capacity(16);
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(16).read_to_end(&mut head)?;
        if let Some(size) = unpacked_size(&head).filter(|&size| size > MAX_PAGE) {
            return Err(ParquetError::General(format!(
                "a page of {size} bytes, at most {MAX_PAGE} are read"
            )));
        }
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length as u64);
        if length as u64 > MAX_PAGE.max(MAX_FOOTER) || end.is_none_or(|end| end > self.size) {
            let what = format!("{length} bytes at {start} of a file of {}", self.size);
            return Err(ParquetError::General(what));
        }
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// The second field of a page header, the size of the page unpacked. The header is a Thrift struct
/// in the compact protocol: fields 1 and 2 are 32-bit integers, each a byte 0x15 (one field on,
/// type 5) and a zigzag number of 7 bits a byte.
fn unpacked_size(head: &[u8]) -> Option<u64> {
    let mut bytes = head.iter().copied();
    let mut value = 0;
    for _ in 0..2 {
        if bytes.next()? != 0x15 {
            return None;
        }
        value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = bytes.next()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    Some(value >> 1)
}
