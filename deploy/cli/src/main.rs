//! `garage`: sets up Garage, runs it locally, prints the log, and performs the tasks of an operator.

mod backup;
mod bench;
mod block;
mod catalogue;
mod completions;
mod config;
mod dead;
mod demo;
mod entry;
mod games;
mod init;
mod local;
mod progress;
mod queue;
mod rebuild;
mod replay;
mod report;
mod rules;
mod select;
mod tail;
mod timeline;
mod token;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use garage_worker::Shutdown;

/// Garage runs the matches of an online multiplayer game.
#[derive(Debug, Parser)]
#[command(name = "garage", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates or upgrades the NATS streams and consumers and the SQL schema. You can run it again at any time.
    Init(init::Init),
    /// Shows and changes what the store sells.
    #[command(subcommand)]
    Catalogue(catalogue::Command),
    /// Runs a local Garage until Ctrl-C, and prints its addresses.
    Up(local::Up),
    /// Starts a local Garage, lets bots play, and prints how long each step took.
    Demo(demo::Demo),
    /// Runs a benchmark.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Prints a player's token, as your identity provider would issue it.
    Token(token::Token),
    /// Shows what happened in a session, from the log.
    Session(timeline::OfSession),
    /// Shows what happened to a player, from the log.
    Player(timeline::OfPlayer),
    /// Reads the log again: prints it, writes it to a file, or publishes it.
    Replay(replay::Replay),
    /// Prints each new event of the log as one line, until Ctrl-C.
    Tail(tail::Tail),
    /// Lists, shows and retries dead letters: messages that a worker could not handle.
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Closes, opens and lists queues.
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Blocks a player: the gateways refuse the player's requests, close their socket, and cancel their waiting ticket.
    Block(block::Block),
    /// Ends the block of a player.
    Unblock(block::Unblock),
    /// Closes a player's socket and cancels their waiting ticket. The player can come back at once.
    Kick(block::Kick),
    /// Lists the blocked players.
    Blocks(block::Blocks),
    /// Checks rule sets, which say who can be matched with whom.
    #[command(subcommand)]
    Rules(rules::Rules),
    /// Computes the projections in Redis again from the log, and replaces the live ones in one step.
    Rebuild(rebuild::Rebuild),
    /// Reads the whole log and reports what must never happen, such as a player in two matches or paid twice.
    Verify(verify::Verify),
    /// Copies all NATS streams to a new folder, while Garage runs. It does not copy the database: do that afterwards.
    Backup(backup::Backup),
    /// Creates all streams of a backup, on NATS servers that have no streams.
    Restore(backup::Restore),
    /// Shows and checks the settings of a worker, lists all settings, or creates the NATS keys.
    #[command(subcommand)]
    Config(config::Config),
    /// Prints the completions of this command for your shell.
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    garage_worker::command(async |cli: Cli, shutdown: Shutdown| match cli.command {
        Command::Init(init) => init.run().await,
        Command::Catalogue(command) => command.run().await,
        Command::Up(up) => up.run(shutdown).await,
        Command::Demo(demo) => demo.run(shutdown).await,
        Command::Bench(bench) => bench.run(shutdown).await,
        Command::Token(token) => token.run(),
        Command::Session(session) => session.run().await,
        Command::Player(player) => player.run().await,
        Command::Replay(replay) => replay.run(shutdown).await,
        Command::Tail(tail) => tail.run(shutdown).await,
        Command::Dead(dead) => dead.run(shutdown).await,
        Command::Queue(queue) => queue.run().await,
        Command::Block(block) => block.run().await,
        Command::Unblock(unblock) => unblock.run().await,
        Command::Kick(kick) => kick.run().await,
        Command::Blocks(blocks) => blocks.run().await,
        Command::Rules(rules) => rules.run().await,
        Command::Rebuild(rebuild) => rebuild.run(shutdown).await,
        Command::Verify(verify) => verify.run(shutdown).await,
        Command::Backup(backup) => backup.run(shutdown).await,
        Command::Restore(restore) => restore.run(shutdown).await,
        Command::Config(config) => config.run(),
        Command::Completions(completions) => completions.run(<Cli as clap::CommandFactory>::command()),
    })
}
