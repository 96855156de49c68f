//! Starts the inventory worker.

fn main() -> std::process::ExitCode {
    garage_worker::main(garage_inventory::run)
}
