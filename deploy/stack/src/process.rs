//! A child process that cannot be forgotten: it ends with its value, and with this process.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use crate::{Error, Result, secret, spawner};

/// How long a process has to answer after its start, or to do what it is waited for.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long a process has between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);
/// As much of a log as an error shows.
const TAIL_LINES: usize = 30;

/// What to run. The same launch runs again at a restart.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    log: PathBuf,
}

impl Launch {
    /// The program, by its full path, under a name for messages; what it prints is appended to the log.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), program: program.into(), args: Vec::new(), env: Vec::new(), log: log.into() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment, which is otherwise ours.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it in the background.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be run.
    pub fn spawn(self) -> Result<Process> {
        let mut process = Process { launch: self, child: None, log_start: 0 };
        process.spawn()?;
        Ok(process)
    }
}

/// A running child, or one that was ended on purpose and may be restarted. Dropping it ends it: SIGTERM, and SIGKILL
/// after [`GRACE`]; the drop blocks until it is gone.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Option<Child>,
    /// Where the present run begins in the log.
    log_start: u64,
}

impl Process {
    fn spawn(&mut self) -> Result<()> {
        let Launch { name, program, args, env, log } = &self.launch;
        let open = || {
            if let Some(folder) = log.parent() {
                secret::private_folder(folder)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(log)?;
            Ok((file.metadata()?.len(), file.try_clone()?, file))
        };
        let (log_start, out, err) = open().map_err(Error::io(format!("open {}", log.display())))?;
        let mut command = spawner::command(program);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Ctrl-C on a terminal goes to its whole process group: out of ours, the child keeps running until we have ended
        // what depends on it.
        command.process_group(0);
        let child = spawner::spawn(command).map_err(Error::io(format!("start {name} ({})", program.display())))?;
        tracing::debug!(process.name = %name, process.pid = child.id(), "started a process");
        self.log_start = log_start;
        self.child = Some(child);
        Ok(())
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its process id while it has not been ended by us.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The file that holds what it printed.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// How it ended, if it ended by itself.
    ///
    /// # Errors
    /// When the system does not tell, or when it was ended by us.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let name = &self.launch.name;
        let child = self.child.as_mut().ok_or_else(|| Error::NotRunning { name: name.clone() })?;
        child.try_wait().map_err(Error::io(format!("look after {name}")))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = self.running_pid()?;
        kill(pid, signal).map_err(|errno| Error::io(format!("send {signal} to {}", self.launch.name))(errno.into()))
    }

    /// Its id, if it runs: the id of a child that has ended and been waited for may be another's by now.
    fn running_pid(&mut self) -> Result<Pid> {
        let running = self.is_running();
        let pid = self.pid().filter(|_| running).and_then(|pid| i32::try_from(pid).ok());
        pid.map(Pid::from_raw).ok_or_else(|| Error::NotRunning { name: self.launch.name.clone() })
    }

    /// Asks it to end, without waiting. One that is paused is woken for it.
    ///
    /// # Errors
    /// When it is not running.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        // It may have ended in the meantime.
        let _ = self.signal(Signal::SIGCONT);
        Ok(())
    }

    /// Ends it in order and waits until it is gone, at most [`GRACE`]; then it is killed. Nothing happens if it is gone.
    pub async fn stop(&mut self) {
        if self.terminate().is_ok() {
            let deadline = Instant::now() + GRACE;
            while self.is_running() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
            self.complain();
        }
        self.kill();
    }

    /// A process that does not end when it is told to has a fault, which a kill would hide.
    fn complain(&mut self) {
        if self.is_running() {
            let (name, log, tail) = self.words();
            let seconds = GRACE.as_secs();
            tracing::warn!(process.name = %name, "not ended within {seconds} s of SIGTERM; killing it; its log {} ends:\n{tail}", log.display());
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone. Nothing happens if it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Either fails only when there is nothing left to kill or to wait for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again as it was started before, with the same arguments and log. One that runs is killed first.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.spawn()
    }

    /// Changes a variable of its environment for the next start; with `None` it is not set.
    pub fn set_env(&mut self, name: &str, value: Option<OsString>) {
        self.launch.env.retain(|(there, _)| there != name);
        self.launch.env.extend(value.map(|value| (name.into(), value)));
    }

    /// Stops its time (SIGSTOP): it keeps its connections and answers nothing. It has stopped when this returns, which
    /// takes some milliseconds and blocks.
    ///
    /// # Errors
    /// When it is not running, or does not stop within [`GRACE`].
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // The signal is only on its way when kill(2) returns. Measured on a busy machine: in half of the cases a
        // thread of nats-server still answered a request sent after it; after this wait, never. The system reports the
        // stop when the last thread has stopped, and, with WNOWAIT, as often as it is asked.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            let pid = self.running_pid()?;
            let status = waitid(Id::Pid(pid), flags);
            let failed = |errno: Errno| Error::io(format!("wait for {} to stop", self.launch.name))(errno.into());
            if matches!(status.map_err(failed)?, WaitStatus::Stopped(..)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (name, log, tail) = self.words();
        Err(Error::Late { name, what: "stop", seconds: GRACE.as_secs(), log, tail })
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits until `probe` says true, at most [`DEADLINE`].
    ///
    /// # Errors
    /// When the deadline passes or the process ends first. The error holds the end of its log.
    pub async fn wait_until(&mut self, what: &'static str, probe: impl AsyncFn() -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.try_wait()? {
                return Err(self.ended(status));
            }
            // A probe may hang on a server that accepts and does not answer.
            if tokio::time::timeout(Duration::from_secs(2), probe()).await == Ok(true) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (name, log, tail) = self.words();
                return Err(Error::Late { name, what, seconds: DEADLINE.as_secs(), log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it has ended by itself, at most [`DEADLINE`].
    ///
    /// # Errors
    /// When it ends with another status than success, or does not end.
    pub async fn wait_success(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match self.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended(status)),
                None => tokio::time::sleep(POLL).await,
            }
        }
        let (name, log, tail) = self.words();
        Err(Error::Late { name, what: "end", seconds: DEADLINE.as_secs(), log, tail })
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let (name, log, tail) = self.words();
        // nats-server, redis-server and mariadbd all quote strerror(EADDRINUSE).
        if tail.to_lowercase().contains("address already in use") {
            Error::PortTaken { name, log, tail }
        } else {
            Error::Ended { name, status, log, tail }
        }
    }

    fn words(&self) -> (String, PathBuf, String) {
        (self.launch.name.clone(), self.launch.log.clone(), self.log_tail())
    }

    /// The last lines that the present run has printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.launch.log)?;
            let recent = file.metadata()?.len().saturating_sub(64 * 1024);
            file.seek(SeekFrom::Start(self.log_start.max(recent)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"));
        let skip = text.lines().count().saturating_sub(TAIL_LINES);
        text.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.terminate().is_ok() {
            let deadline = Instant::now() + GRACE;
            while self.is_running() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
            self.complain();
        }
        self.kill();
    }
}
