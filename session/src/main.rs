//! The `garage-session` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    garage_worker::main(garage_session::run)
}
