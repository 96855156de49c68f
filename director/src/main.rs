//! The entry point of the garage-director process.

use std::process::ExitCode;

fn main() -> ExitCode {
    garage_worker::main(garage_director::run)
}
