//! A child process that does not outlive its value or this process.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use garage_events::deadline::exit_blocking;
use garage_nats::private;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use crate::{Error, Result, spawner};

/// Time-out for the start of a process, and for everything else that is awaited.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Time between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// Interval of checks while waiting.
const POLL: Duration = Duration::from_millis(20);
/// Number of log lines in an error.
const TAIL_LINES: usize = 30;

/// The description of a process. A restart uses it again.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    log: PathBuf,
}

impl Launch {
    /// `name` is for messages, `program` is the full path. The output of the process is appended to the file `log`.
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

    /// Adds an environment variable. The process also inherits the environment of this process.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the process in the background.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(self) -> Result<Process> {
        let mut process = Process { launch: self, child: None, log_start: 0 };
        process.spawn()?;
        Ok(process)
    }
}

/// A child process that runs, or that was stopped and can be restarted. Dropping it sends SIGTERM, and SIGKILL after
/// [`GRACE`]. The drop blocks until the process has ended.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Option<Child>,
    /// Offset in the log at which the current run starts.
    log_start: u64,
}

impl Process {
    fn spawn(&mut self) -> Result<()> {
        let Launch { name, program, args, env, log } = &self.launch;
        let open = || {
            if let Some(folder) = log.parent() {
                private::folder(folder)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(log)?;
            Ok((file.metadata()?.len(), file.try_clone()?, file))
        };
        let (log_start, out, err) = open().map_err(Error::io(format!("open {}", log.display())))?;
        let mut command = spawner::command(program);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Ctrl-C on a terminal stops a whole process group. In a group of its own, the child keeps running until this
        // process has stopped everything that depends on it.
        command.process_group(0);
        let child = spawner::spawn(command).map_err(Error::io(format!("start {name} ({})", program.display())))?;
        tracing::debug!(process.name = %name, process.pid = child.id(), "started a process");
        self.log_start = log_start;
        self.child = Some(child);
        Ok(())
    }

    /// The name for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// The process id. `None` after the process was stopped or killed. A process that ended by itself keeps its id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The file with the output of the process.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// The exit status, or `None` while the process runs.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if the process was stopped or killed by this library.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let name = &self.launch.name;
        let child = self.child.as_mut().ok_or_else(|| Error::NotRunning { name: name.clone() })?;
        child.try_wait().map_err(Error::io(format!("read the status of {name}")))
    }

    /// Whether the process is running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is not running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = self.running_pid()?;
        kill(pid, signal).map_err(|errno| Error::io(format!("send {signal} to {}", self.launch.name))(errno.into()))
    }

    /// The id of the process, if it is running. The kernel may reuse the id of a process that has ended.
    fn running_pid(&mut self) -> Result<Pid> {
        let running = self.is_running();
        let pid = self.pid().filter(|_| running).and_then(|pid| i32::try_from(pid).ok());
        pid.map(Pid::from_raw).ok_or_else(|| Error::NotRunning { name: self.launch.name.clone() })
    }

    /// Sends SIGTERM and does not wait. A paused process is resumed so that it can handle the signal.
    ///
    /// # Errors
    /// When the process is not running.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        // This fails if the process has already ended.
        let _ = self.signal(Signal::SIGCONT);
        Ok(())
    }

    /// Sends SIGTERM, and SIGKILL after [`GRACE`]. Waits until the process has ended. Does nothing if it has ended
    /// before.
    pub async fn stop(&mut self) {
        if self.terminate().is_ok() {
            let deadline = Instant::now() + GRACE;
            while self.is_running() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
            self.warn_if_running();
        }
        self.kill();
    }

    /// Logs a warning if the process still runs. A process that ignores SIGTERM has a bug, which SIGKILL would hide.
    fn warn_if_running(&mut self) {
        if self.is_running() {
            let (name, log, tail) = self.description();
            let (seconds, log) = (GRACE.as_secs(), log.display());
            tracing::warn!(
                process.name = %name,
                "process did not end within {seconds} s of SIGTERM; killing it; its log {log} ends:\n{tail}"
            );
        }
    }

    /// Kills the process (SIGKILL) and waits until it has ended. Does nothing if it has ended before.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = exit_blocking(&mut child, GRACE);
        }
    }

    /// Starts the process again with the same arguments and log. Kills it first if it is running.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.spawn()
    }

    /// Sets an environment variable for the next start. `None` removes it from the launch.
    pub fn set_env(&mut self, name: &str, value: Option<OsString>) {
        self.launch.env.retain(|(existing, _)| existing != name);
        self.launch.env.extend(value.map(|value| (name.into(), value)));
    }

    /// Pauses the process (SIGSTOP). It keeps its connections but answers nothing. This call blocks for some
    /// milliseconds until all threads of the process have stopped.
    ///
    /// # Errors
    /// When the process is not running, or does not stop within [`GRACE`].
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // kill(2) returns before the signal takes effect. On a busy machine, a thread of nats-server answered a later
        // request in half of the cases. With this wait, it never did. The kernel reports the stop when the last thread
        // has stopped. WNOWAIT keeps the report, so that it can be read again.
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
        let (name, log, tail) = self.description();
        Err(Error::TimedOut { name, what: "stop", seconds: GRACE.as_secs(), log, tail })
    }

    /// Resumes the process after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When the process is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits until `probe` returns true, at most [`DEADLINE`]. `what` completes the sentence "… did not …".
    ///
    /// # Errors
    /// When the deadline passes or the process ends first. The error contains the end of the log.
    pub async fn wait_until(&mut self, what: &'static str, probe: impl AsyncFn() -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.try_wait()? {
                return Err(self.ended(status));
            }
            // A probe may hang if the server accepts the connection and does not answer.
            if tokio::time::timeout(Duration::from_secs(2), probe()).await == Ok(true) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (name, log, tail) = self.description();
                return Err(Error::TimedOut { name, what, seconds: DEADLINE.as_secs(), log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the process has ended successfully, at most [`DEADLINE`].
    ///
    /// # Errors
    /// When the process fails, or does not end in time.
    pub async fn wait_success(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match self.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended(status)),
                None => tokio::time::sleep(POLL).await,
            }
        }
        let (name, log, tail) = self.description();
        Err(Error::TimedOut { name, what: "end", seconds: DEADLINE.as_secs(), log, tail })
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let (name, log, tail) = self.description();
        // nats-server, redis-server and mariadbd all print the text of EADDRINUSE.
        if tail.to_lowercase().contains("address already in use") {
            Error::PortTaken { name, log, tail }
        } else {
            Error::Ended { name, status, log, tail }
        }
    }

    /// Name, path of the log, and last lines of the log, for messages.
    fn description(&self) -> (String, PathBuf, String) {
        (self.launch.name.clone(), self.launch.log.clone(), self.log_tail())
    }

    /// The last lines that the current run has printed.
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
            self.warn_if_running();
        }
        self.kill();
    }
}
