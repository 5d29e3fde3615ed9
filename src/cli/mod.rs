//! The command line: one file a subcommand.
mod args; mod interrupt; mod marks; mod sampling; mod terminal; mod watch;

/// Runs the command given by the process arguments.
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
