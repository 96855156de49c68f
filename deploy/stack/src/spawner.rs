//! Starts all child processes on one dedicated thread.
//!
//! A child must not outlive this process, even if this process is killed. The kernel can do this: a process that sets
//! PR_SET_PDEATHSIG receives a signal when its parent dies. The program `setpriv` sets it, because a direct call would
//! need `unsafe`. But here the "parent" is the *thread* that started the child. The thread of a test ends with the
//! test, and tokio's blocking threads end after ten idle seconds; their children would be killed too early. So one
//! dedicated thread starts all children, and lives as long as the process.

use std::{
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
};

use garage_events::deadline::exit_blocking;

use crate::process::GRACE;

struct Request {
    command: Command,
    reply: mpsc::SyncSender<io::Result<Child>>,
}

/// The channel to the thread. `None` if the thread could not be started.
static REQUESTS: LazyLock<Option<Mutex<mpsc::Sender<Request>>>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<Request>();
    let run = move || {
        for Request { mut command, reply } in requests {
            if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                // The caller no longer waits. The kill fails only if the process has already ended.
                let _ = orphan.kill();
                let _ = exit_blocking(&mut orphan, GRACE);
            }
        }
    };
    thread::Builder::new().name("spawner".into()).spawn(run).ok().map(|_| Mutex::new(sender))
});

/// The program `setpriv` of util-linux, if it is installed. The `setpriv` of Busybox does not have the option.
static SETPRIV: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let program = crate::servers::binary::on_path("setpriv")?;
    let help = Command::new(&program).arg("--help").stdin(Stdio::null()).output().ok()?;
    let supported = String::from_utf8_lossy(&help.stdout).contains("--pdeathsig");
    if !supported {
        tracing::warn!("setpriv has no option --pdeathsig: servers may survive if this process is killed");
    }
    supported.then_some(program)
});

/// A command for the program. If the system supports it, the process dies with this process. Start it with [`spawn`].
pub(crate) fn command(program: &std::path::Path) -> Command {
    match &*SETPRIV {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Starts the command on the spawner's thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let ended = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = mpsc::sync_channel(1);
    let requests = REQUESTS.as_ref().ok_or_else(ended)?;
    let request = Request { command, reply };
    if requests.lock().unwrap_or_else(PoisonError::into_inner).send(request).is_err() {
        return Err(ended());
    }
    answer.recv().unwrap_or_else(|mpsc::RecvError| Err(ended()))
}
