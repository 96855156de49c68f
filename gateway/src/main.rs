//! The `garage-gateway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    garage_worker::main(garage_gateway::run)
}
