//! Output files are there whole or not at all.

use std::io::Write as _;
use std::path::Path;

use lacuna::Error;
use lacuna::io::AtomicFile;

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn committed_file_replaces_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.txt");
    std::fs::write(&path, "old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old", "the name must not change before the commit");
    file.commit().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(entries(dir.path()), ["out.txt"]);
}

#[test]
fn dropped_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = AtomicFile::create(&dir.path().join("out.txt")).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(entries(dir.path()).len(), 1);
    drop(file);
    assert!(entries(dir.path()).is_empty());
}

#[track_caller]
fn refused(path: &Path, word: &str) {
    let error = AtomicFile::create(path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()) && message.contains(word), "{message}");
}

#[test]
fn folder_missing_folder_and_file_as_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), "folder");
    refused(&dir.path().join("gone").join("out.txt"), "");
    std::fs::write(dir.path().join("file"), "").unwrap();
    refused(&dir.path().join("file").join("out.txt"), "");
    assert_eq!(entries(dir.path()), ["file"]);
}

#[test]
fn read_only_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.txt");
    std::fs::write(&path, "kept").unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    refused(&path, "read-only");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
}

#[cfg(unix)]
#[test]
fn new_files_are_readable_as_others_are_and_links_stay_links() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    let (plain, path, link) = (dir.path().join("plain"), dir.path().join("out"), dir.path().join("link"));
    std::fs::write(&plain, "").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    AtomicFile::create(&path).unwrap().commit().unwrap();
    assert_eq!(mode(&path), mode(&plain));
    let mut file = AtomicFile::create(&link).unwrap();
    file.write_all(b"through").unwrap();
    file.commit().unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "through");
}

#[cfg(unix)]
#[test]
fn devices_are_written_to_directly() {
    let mut file = AtomicFile::create(Path::new("/dev/null")).unwrap();
    file.write_all(b"gone").unwrap();
    file.commit().unwrap();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}
