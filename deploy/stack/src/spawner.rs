//! The one thread that starts every child process.
//!
//! A child must not outlive us, not even when we are killed. The kernel sees to it: a child that asked for
//! PR_SET_PDEATHSIG is signalled when its parent dies. `setpriv` asks for it here, because the call itself would need
//! `unsafe`. But "parent" means the *thread* that started the child: a child started from a test's thread, or from one of
//! tokio's blocking threads, which end after ten idle seconds, would be killed with it in the middle of the run. Hence a
//! thread of its own, which lives as long as the process.

use std::{
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
};

struct Order {
    command: Command,
    reply: mpsc::SyncSender<io::Result<Child>>,
}

static ORDERS: LazyLock<Option<Mutex<mpsc::Sender<Order>>>> = LazyLock::new(|| {
    let (orders, taken) = mpsc::channel::<Order>();
    let run = move || {
        for Order { mut command, reply } in taken {
            if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                // Nobody waits for it any more; a kill that fails has found it dead.
                let _ = orphan.kill();
                let _ = orphan.wait();
            }
        }
    };
    thread::Builder::new().name("spawner".into()).spawn(run).ok().map(|_| Mutex::new(orders))
});

/// util-linux's `setpriv`, where it is installed. Busybox has one that cannot do this.
static SETPRIV: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let program = crate::servers::binary::on_path("setpriv")?;
    let help = Command::new(&program).arg("--help").stdin(Stdio::null()).output().ok()?;
    let able = String::from_utf8_lossy(&help.stdout).contains("--pdeathsig");
    if !able {
        tracing::warn!("setpriv has no --pdeathsig: servers may survive this process if it is killed");
    }
    able.then_some(program)
});

/// A command that runs the program and, where the system can do it, dies with this process. It must be started by
/// [`spawn`].
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
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (reply, answer) = mpsc::sync_channel(1);
    let orders = ORDERS.as_ref().ok_or_else(gone)?;
    let order = Order { command, reply };
    if orders.lock().unwrap_or_else(PoisonError::into_inner).send(order).is_err() {
        return Err(gone());
    }
    answer.recv().unwrap_or_else(|mpsc::RecvError| Err(gone()))
}
