//! `garage`: sets Garage up, runs it locally, and shows what the log knows.

mod backup;
mod bench;
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
mod select;
mod tail;
mod timeline;
mod token;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use garage_worker::Shutdown;

/// Garage: the game manager of an online multiplayer game.
#[derive(Debug, Parser)]
#[command(name = "garage", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates, or upgrades, the streams, consumers and the SQL schema. May be run again at any time.
    Init(init::Init),
    /// Shows and changes what the store sells.
    #[command(subcommand)]
    Catalogue(catalogue::Of),
    /// Runs a local Garage until Ctrl-C, and says where it is.
    Up(local::Up),
    /// Starts a local Garage, lets bots play on it, and reports.
    Demo(demo::Demo),
    /// Measures.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Makes a player's token, as the studio's identity provider would.
    Token(token::Token),
    /// Shows what happened to a session, from the log.
    Session(timeline::OfSession),
    /// Shows what happened to a player, from the log.
    Player(timeline::OfPlayer),
    /// Reads the log once more: prints it, writes it to a file, or publishes it.
    Replay(replay::Replay),
    /// Follows the log, a line an event, until Ctrl-C.
    Tail(tail::Tail),
    /// The messages that workers gave up: lists them, and has them handled again.
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Closes and opens queues.
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Builds the projections in Redis anew from the log, beside the live ones, and switches at once.
    Rebuild(rebuild::Rebuild),
    /// Reads the whole log and says what in it cannot be: a player in two matches, one paid twice, a message lost.
    Verify(verify::Verify),
    /// Copies all streams to a new folder, while all goes on. The database is not among them: copy it afterwards.
    Backup(backup::Backup),
    /// Makes all streams of a backup, on servers that have none.
    Restore(backup::Restore),
    /// Shows how a worker is configured, and checks it; or all that can be configured.
    #[command(subcommand)]
    Config(config::Config),
    /// Makes a shell's completions of this command, to be sourced.
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    garage_worker::command(async |cli: Cli, shutdown: Shutdown| match cli.command {
        Command::Init(init) => init.run().await,
        Command::Catalogue(of) => of.run().await,
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
        Command::Rebuild(rebuild) => rebuild.run(shutdown).await,
        Command::Verify(verify) => verify.run(shutdown).await,
        Command::Backup(backup) => backup.run(shutdown).await,
        Command::Restore(restore) => restore.run(shutdown).await,
        Command::Config(config) => config.run(),
        Command::Completions(completions) => completions.run(<Cli as clap::CommandFactory>::command()),
    })
}
