//! Output files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file that appears under its name only when it is [committed](AtomicFile::commit). Until then
/// what is written lies in a temporary file beside it; dropped without a commit, nothing remains
/// and an older file of that name stays as it was.
///
/// A target that is neither a file nor a folder (`/dev/stdout`, a pipe) is written to directly.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    to: Target,
}

#[derive(Debug)]
enum Target {
    Temporary(NamedTempFile),
    Direct(File),
}

impl AtomicFile {
    /// Prepares to write `path`. Its folder must exist.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path` when it is a folder, or nothing can be created beside it.
    pub fn create(path: &Path) -> Result<Self> {
        let fail = |e| Error::io("write", path, e);
        // A link is followed, so that it stays a link.
        if is_device(path) {
            let file = fs::OpenOptions::new().write(true).open(path).map_err(fail)?;
            return Ok(Self { target: path.to_path_buf(), to: Target::Direct(file) });
        }
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let existing = fs::metadata(&target).ok();
        if let Some(meta) = &existing {
            if meta.is_dir() {
                return Err(fail(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file")));
            }
            if meta.permissions().readonly() {
                return Err(fail(io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only")));
            }
        }
        let Some(name) = target.file_name() else {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "it has no file name")));
        };
        let folder = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // The umask takes from these what it takes from every new file.
            let mode = existing.as_ref().map_or(0o666, |m| m.permissions().mode() & 0o777);
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        let file = builder.tempfile_in(folder).map_err(|e| fail(plain(e)))?;
        Ok(Self { target, to: Target::Temporary(file) })
    }

    /// Finds out whether `path` could be written, and leaves nothing behind. What is neither a
    /// file nor a folder is not opened: the reader of a pipe would take that for the end.
    ///
    /// # Errors
    /// As [`AtomicFile::create`].
    pub fn probe(path: &Path) -> Result<()> {
        if is_device(path) { Ok(()) } else { Self::create(path).map(drop) }
    }

    /// The file that will appear.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// The file itself, where it can be read back and changed at any place: `None` for a device.
    pub(super) fn file_mut(&mut self) -> Option<&mut File> {
        match &mut self.to {
            Target::Temporary(file) => Some(file.as_file_mut()),
            Target::Direct(_) => None,
        }
    }

    /// Makes the file appear under its name, after its content has reached the disk.
    ///
    /// # Errors
    /// [`Error::Io`] naming the target; it is then as it was before.
    pub fn commit(self) -> Result<()> {
        let fail = |e| Error::io("write", &self.target, e);
        match self.to {
            Target::Direct(mut file) => file.flush().map_err(fail),
            Target::Temporary(mut file) => {
                file.flush().map_err(fail)?;
                file.as_file().sync_all().map_err(fail)?;
                file.persist(&self.target).map_err(|e| fail(e.error))?;
                sync_folder(&self.target);
                Ok(())
            }
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            Target::Temporary(file) => file.write(bytes).map_err(plain),
            Target::Direct(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            Target::Temporary(file) => file.flush().map_err(plain),
            Target::Direct(file) => file.flush(),
        }
    }
}

/// Whether `path` is there and neither a file nor a folder: a pipe, a terminal, `/dev/stdout`.
/// Nothing can be kept beside such a thing, and it cannot be replaced.
pub fn is_device(path: &Path) -> bool {
    let stream =
        path.starts_with("/dev/fd") || ["/dev/stdout", "/dev/stderr"].iter().any(|p| path == Path::new(p));
    stream || fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Whether two paths that exist are the same file or folder.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// The error without the name of the temporary file, which nobody asked for.
fn plain(e: io::Error) -> io::Error {
    io::Error::from(e.kind())
}

/// Brings the new name to the disk too. The content is safe without it, and not every file system
/// can, so a failure is not one of the commit.
fn sync_folder(target: &Path) {
    if cfg!(unix)
        && let Some(folder) = target.parent()
        && let Ok(folder) = File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
    {
        let _ = folder.sync_all();
    }
}
