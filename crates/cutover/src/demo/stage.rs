//! The demo's stage: its directory, the stamped program as subprocesses, the supervisor, and looks at the tree.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cutover_core::model::{Digest, Hasher};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use serde_json::Value;

use crate::{
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
};

/// The longest time anything in the demo may take that is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A deviation from what the demo shows.
pub(super) fn deviation(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Failed, message).hint("run `cutover demo --keep DIR` to look at what it leaves behind")
}

/// Turns `false` into a deviation.
///
/// # Errors
/// The deviation.
pub(super) fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(deviation(otherwise())) }
}

/// What one run of the program did.
pub(super) struct Ran {
    pub(super) code: Option<i32>,
    pub(super) json: Value,
    pub(super) stderr: String,
}

impl Ran {
    /// Demands that it ended so.
    ///
    /// # Errors
    /// The deviation, with what it said.
    pub(super) fn must(self, exit: Exit, what: &str) -> Result<Self, Failure> {
        if self.code == Some(i32::from(exit.code())) {
            return Ok(self);
        }
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| code.to_string());
        Err(deviation(format!(
            "{what} ended with {code} instead of {}:\n{}",
            exit.code(),
            self.stderr.trim()
        )))
    }
}

/// Where the demo plays.
pub(super) struct Stage {
    pub(super) dir: PathBuf,
    pub(super) root: PathBuf,
    pub(super) address: SocketAddr,
}

impl Stage {
    /// Prepares the directory.
    ///
    /// # Errors
    /// It cannot be written to, or there is no free port.
    pub(super) fn new(dir: PathBuf) -> Result<Self, Failure> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| deviation("there is no free port").because(error))?;
        Ok(Self { root: dir.join("root"), dir, address })
    }

    /// A path in the demo's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The stamped program.
    pub(super) fn program(&self) -> PathBuf {
        self.path("cutover")
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            files::make_directory(parent, 0o755)?;
        }
        files::write(&path, mode, Existing::Replace, |out| {
            out.write_all(bytes).map_err(|source| Failure::io("write", &path, source))
        })?;
        Ok(path)
    }

    /// The program with these arguments; nothing of the user's settings reaches it.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        for (name, _) in crate::settings::environment().into_iter().flatten() {
            command.env_remove(name);
        }
        command.env_remove("SOURCE_DATE_EPOCH");
        command
    }

    /// Runs `program` to its end.
    ///
    /// # Errors
    /// It cannot be started, or prints no JSON.
    pub(super) fn run_program(&self, program: &Path, arguments: &[&str]) -> Result<Ran, Failure> {
        let config = self.path("root/cutover.toml").display().to_string();
        let mut all: Vec<&str> = arguments.to_vec();
        all.extend(["--json", "--progress", "none"]);
        if Path::new(&config).is_file() {
            all.extend(["--config", &config]);
        }
        let output =
            self.command(program, &all).output().map_err(|source| Failure::io("start", program, source))?;
        ran(arguments, &output)
    }

    /// Runs the stamped program to its end.
    ///
    /// # Errors
    /// As [`Stage::run_program`].
    pub(super) fn run(&self, arguments: &[&str]) -> Result<Ran, Failure> {
        self.run_program(&self.program(), arguments)
    }

    /// Runs a command on the demo's root to its end.
    ///
    /// # Errors
    /// As [`Stage::run_program`].
    pub(super) fn on_root(&self, arguments: &[&str]) -> Result<Ran, Failure> {
        let root = self.root.display().to_string();
        let mut all = arguments.to_vec();
        all.extend(["--root", &root]);
        self.run(&all)
    }

    /// Starts a command on the demo's root that stops itself at `step`, and returns once it has stopped.
    ///
    /// # Errors
    /// It ends instead.
    pub(super) fn stopped_at(&self, step: &str, arguments: &[&str]) -> Result<Stopped, Failure> {
        let root = self.root.display().to_string();
        let mut all = arguments.to_vec();
        all.extend(["--root", &root, "--stop-at", step, "--json", "--progress", "none"]);
        let program = self.program();
        let child = self
            .command(&program, &all)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Failure::io("start", &program, source))?;
        let stopped = Stopped { pid: Pid::from_child(&child), child };
        match wait(stopped.pid, WaitOptions::UNTRACED)? {
            status if status.stopped() => Ok(stopped),
            _ => Err(deviation(format!("`{}` did not stop at {step}", arguments.join(" ")))),
        }
    }

    /// Starts the supervisor and waits until it answers.
    ///
    /// # Errors
    /// It cannot be started or does not answer.
    pub(super) fn supervise(&self) -> Result<Supervisor, Failure> {
        let log = self.write("supervisor.log", 0o644, b"")?;
        let out = std::fs::OpenOptions::new()
            .append(true)
            .open(&log)
            .map_err(|source| Failure::io("open", &log, source))?;
        let program = self.program();
        let root = self.root.display().to_string();
        let child = self
            .command(&program, &["run", "--root", &root])
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .map_err(|source| Failure::io("start", &program, source))?;
        let mut supervisor = Supervisor { child: Some(child) };
        let is_there = self.wait_for(|| {
            let status = self.status()?;
            if let Some(ended) = supervisor.ended() {
                return Err(deviation(format!("the supervisor ended with {ended}; see `{}`", log.display())));
            }
            Ok(status["service"]["state"] != "no-supervisor")
        })?;
        check(is_there, || format!("the supervisor does not answer; see `{}`", log.display()))?;
        Ok(supervisor)
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn status(&self) -> Result<Value, Failure> {
        Ok(self.on_root(&["status"])?.must(Exit::Done, "status")?.json)
    }

    /// Looks until `holds` says so; says whether it ever did.
    ///
    /// # Errors
    /// Looking failed.
    pub(super) fn wait_for(&self, mut holds: impl FnMut() -> Result<bool, Failure>) -> Result<bool, Failure> {
        let started = Instant::now();
        while !holds()? {
            if started.elapsed() > WAIT_MAX {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(true)
    }

    /// The body of an answer of the service, on a new connection.
    ///
    /// # Errors
    /// It does not answer with 200.
    pub(super) fn ask_service(&self) -> Result<String, Failure> {
        let failed = |error: std::io::Error| deviation("the service does not answer").because(error);
        let mut stream = TcpStream::connect(self.address).map_err(failed)?;
        stream.set_read_timeout(Some(WAIT_MAX)).map_err(failed)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(deviation(format!(
                "the service answered `{}`",
                answer.lines().next().unwrap_or_default()
            ))),
        }
    }

    /// A digest over every path, kind, mode, time and content below the root, but for the logs and sockets of what runs.
    ///
    /// # Errors
    /// Something cannot be read.
    pub(super) fn tree_digest(&self) -> Result<Digest, Failure> {
        let mut hasher = Hasher::new();
        hash_directory(&self.root, Path::new(""), &mut hasher)?;
        Ok(hasher.finish())
    }

    /// The digest of one file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn file_digest(&self, path: &Path) -> Result<Digest, Failure> {
        files::read("the file", path).map(|bytes| Digest::of(&bytes))
    }
}

fn ran(arguments: &[&str], output: &std::process::Output) -> Result<Ran, Failure> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout).map_err(|error| {
        deviation(format!("`cutover {}` printed no JSON:\n{stderr}", arguments.join(" "))).because(error)
    })?;
    Ok(Ran { code: output.status.code(), json, stderr })
}

fn wait(pid: Pid, options: WaitOptions) -> Result<WaitStatus, Failure> {
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(pid), options));
    match waited {
        Ok(Some((_, status))) => Ok(status),
        Ok(None) => Err(deviation("a process that was waited for is not there")),
        Err(error) => {
            Err(deviation("a process could not be waited for").because(std::io::Error::from(error)))
        }
    }
}

fn hash_directory(base: &Path, within: &Path, hasher: &mut Hasher) -> Result<(), Failure> {
    let directory = base.join(within);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::io("read", &path, source)
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed(&directory))? {
        names.push(entry.map_err(failed(&directory))?.file_name());
    }
    names.sort();
    for name in names {
        let relative = within.join(&name);
        let path = base.join(&relative);
        if relative == Path::new(".cutover/logs") {
            continue;
        }
        let metadata = std::fs::symlink_metadata(&path).map_err(failed(&path))?;
        let kind = metadata.file_type();
        let line = format!(
            "{} {:o} {} {} {}\n",
            relative.display(),
            metadata.mode(),
            metadata.uid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        if kind.is_dir() {
            hasher.update(line.as_bytes());
            hash_directory(base, &relative, hasher)?;
        } else if kind.is_file() {
            hasher.update(line.as_bytes());
            hasher.update(Digest::of(&std::fs::read(&path).map_err(failed(&path))?).as_bytes());
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(failed(&path))?;
            hasher.update(format!("{line}{}\n", target.display()).as_bytes());
        }
    }
    Ok(())
}

/// A run of the program that has stopped itself.
pub(super) struct Stopped {
    child: Child,
    pid: Pid,
}

impl Stopped {
    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn kill(mut self) -> Result<(), Failure> {
        let failed = |error| deviation("the stopped run could not be killed").because(error);
        self.child.kill().map_err(failed)?;
        self.child.wait().map_err(failed).map(drop)
    }

    /// Lets it go on to its end.
    ///
    /// # Errors
    /// It is not there, or prints no JSON.
    pub(super) fn go_on(self) -> Result<Ran, Failure> {
        let failed = |error| deviation("the stopped run could not go on").because(error);
        kill_process(self.pid, Signal::CONT).map_err(|error| failed(std::io::Error::from(error)))?;
        let output = self.child.wait_with_output().map_err(failed)?;
        ran(&["apply"], &output)
    }
}

/// The running supervisor; ended when dropped.
pub(super) struct Supervisor {
    child: Option<Child>,
}

impl Supervisor {
    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Stops it as an operator would, and demands that it ends well.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let failed = |error| deviation("the supervisor could not be stopped").because(error);
        kill_process(Pid::from_child(&child), Signal::TERM)
            .map_err(|error| failed(std::io::Error::from(error)))?;
        let started = Instant::now();
        loop {
            match child.try_wait().map_err(failed)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(deviation(format!("the supervisor ended with {status}"))),
                None if started.elapsed() > WAIT_MAX => {
                    self.child = Some(child);
                    return Err(deviation("the supervisor does not end"));
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // Services get SIGTERM from the kernel when their supervisor dies.
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
        let started = Instant::now();
        while matches!(child.try_wait(), Ok(None)) && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
