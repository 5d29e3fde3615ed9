//! `lacuna merge`: a low-rank adapter and the weights it was trained on, as one model.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::Context;
use super::terminal::note;
use crate::error::{Error, Result};
use crate::io::ModelFiles;
use crate::model::parameters_of;
use crate::train::adapter;

const EXAMPLE: &str = "\
The adapter is a folder as PEFT writes it (adapter_config.json and
adapter_model.safetensors), such as a checkpoint of lacuna sft --lora-rank.

Example:
  lacuna merge --model DIR --adapter run/checkpoints/step-1000 --output merged
  lacuna generate --model merged";

/// Add a low-rank adapter to the weights it was trained on.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// The model that the adapter was trained on [default: the bundled model]
    #[arg(long, short, value_name = "DIR|ID", env = "LACUNA_MODEL")]
    model: Option<String>,
    /// The adapter's folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Where the model goes, a new folder
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Nothing on standard error but errors
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Error::Request`] for an output that exists; those of the files.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    if args.output.exists() {
        return Err(Error::request(format!("{}: it exists; name a new folder", args.output.display())));
    }
    let files = ModelFiles::find(args.model.as_deref())?;
    let parent = args.output.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(std::path::Path::new("."));
    let target = tempfile::Builder::new()
        .prefix(".merge-")
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a folder in", parent, e))?;
    let bar = context.progress(parameters_of(&files.config).len() as u64, args.quiet);
    context.interrupt.hold();
    adapter::merge(&files, &args.adapter, target.path(), |tensor| {
        bar.set_message(tensor.to_owned());
        bar.inc(1);
        context.interrupt.check()
    })?;
    bar.finish_and_clear();
    // From a private folder to one like any other that is made.
    let kept = target.keep();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&kept, mode).map_err(|e| Error::io("set permissions of", &kept, e))?;
    }
    if let Err(e) = std::fs::rename(&kept, &args.output) {
        let _ = std::fs::remove_dir_all(&kept);
        return Err(Error::io("write", &args.output, e));
    }
    if !args.quiet {
        note(&format!(
            "{}: a model; lacuna generate --model {}",
            args.output.display(),
            args.output.display()
        ));
    }
    Ok(())
}
