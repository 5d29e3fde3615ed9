//! The `lacuna` command.

fn main() -> std::process::ExitCode {
    lacuna::cli::run()
}
