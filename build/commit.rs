//! The commit that is built, for lines of `lacuna bench`: `LACUNA_COMMIT`, as in `1a2b3c4` or `1a2b3c4-dirty`; not set where git
//! does not say, and in development builds.

use std::path::Path;
use std::process::Command;

/// Sets it, and has the build script run again when another commit is checked out. In release builds only: others are not
/// measured, and are made too often to be built anew for a commit.
pub fn tell(root: &Path) {
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // A source archive inside some other repository is not of its commit.
    if git(&["rev-parse", "--show-prefix"]).is_none_or(|prefix| !prefix.is_empty()) {
        return;
    }
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return };
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name]).map(|path| root.join(path));
        // One that is not there would have the script run each time.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    println!("cargo:rustc-env=LACUNA_COMMIT={commit}{}", if changed { "-dirty" } else { "" });
}
