//! The last commits of a clone, asked of git.
//!
//! Git is started with nothing of ours but a search path: no variables, no system or user configuration, no pager, no hook,
//! no signature program, no fetching. What the clone's own configuration says can therefore start nothing (gate-4). No
//! value that a client sent ever reaches its arguments (gate-2). It has a time limit, after which its whole process group is
//! killed. Read [`GitSource::read`].

use std::{
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cutover_core::admission::{CommitHash, Known, Order};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process_group},
};

use super::SourceError;

/// Where programs are looked for when the settings name none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most that is kept of what git says on stderr, in bytes.
const STDERR_MAX: usize = 4096;
/// The longest line of output: 64 digits and a newline.
const LINE_MAX: usize = 65;

/// Options that take the clone's configuration its teeth. Command-line values win over every file.
const HARMLESS: &[&str] = &[
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "core.sshCommand=false",
    "core.askPass=false",
    "core.alternateRefsCommand=false",
    "credential.helper=",
    "gpg.program=false",
    "log.showSignature=false",
    "log.mailmap=false",
    "protocol.allow=never",
    "maintenance.auto=false",
    "gc.auto=0",
];

/// How to ask a clone for its last commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// The clone: a work tree or a bare repository.
    pub repository: PathBuf,
    /// What to count from: `HEAD`, a branch, a tag.
    pub reference: String,
    /// How many commits count; at least 1.
    pub window: usize,
    /// In which order.
    pub order: Order,
    /// How long git may take.
    pub time_limit: Duration,
    /// Whether a clone that belongs to another user may be read.
    pub owner: Owner,
    /// The program.
    pub program: PathBuf,
}

/// Whose clone may be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// Anybody's: git runs nothing that the clone names.
    #[default]
    Any,
    /// As git decides: only this process's user, or who `sudo` says it is.
    Own,
}

impl GitSource {
    /// Asks git, waiting until it has answered or is over its limit.
    ///
    /// # Errors
    /// [`SourceError`]; never a part of an answer.
    pub fn read(&self) -> Result<Known, SourceError> {
        let mut child = self
            .command()
            .spawn()
            .map_err(|error| SourceError::Start { program: self.program.clone(), source: error })?;
        let answer = self.answer(&mut child);
        if answer.is_err() {
            kill(&mut child);
        }
        let (output, errors) = answer?;
        let status = wait(&mut child, self.time_limit)?;
        if !status.success() {
            let said = String::from_utf8_lossy(&errors).trim().to_owned();
            return Err(SourceError::Git { repository: self.repository.clone(), status, said });
        }
        self.parse(&output)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").env("HOME", "/nonexistent");
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_PAGER", "cat"),
            ("GIT_PROTOCOL_FROM_USER", "0"),
        ] {
            command.env(name, value);
        }
        // A directory that is no repository must not lead to one above it.
        if let Some(parent) = self.repository.parent() {
            command.env("GIT_CEILING_DIRECTORIES", parent);
        }
        command.arg("--no-pager").arg("--no-optional-locks");
        if self.owner == Owner::Any {
            command.args(["-c", "safe.directory=*"]);
        }
        for option in HARMLESS {
            command.args(["-c", option]);
        }
        command.arg("-C").arg(&self.repository);
        command.args([
            "log",
            "--no-show-signature",
            "--no-color",
            "--no-decorate",
            "--no-mailmap",
            "--no-ext-diff",
        ]);
        command.args(["--no-textconv", "--no-patch", "--no-notes", "--format=%H"]);
        match self.order {
            Order::Log => {}
            Order::Topological => drop(command.arg("--topo-order")),
            Order::FirstParent => drop(command.arg("--first-parent")),
        }
        command.arg(format!("--max-count={}", self.window));
        command.args(["--end-of-options", &self.reference, "--"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    /// What git writes, until it closes both ends.
    fn answer(&self, child: &mut Child) -> Result<(Vec<u8>, Vec<u8>), SourceError> {
        let deadline = Instant::now() + self.time_limit;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(SourceError::Output("git has no output".to_owned()));
        };
        let output_max = self.window.saturating_mul(LINE_MAX);
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let (mut output_open, mut errors_open) = (true, true);
        let mut buffer = [0; 16 << 10];
        while output_open || errors_open {
            let ends = [output_open.then(|| stdout.as_fd()), errors_open.then(|| stderr.as_fd())];
            let [output_ready, errors_ready] = self.ready(ends, deadline)?;
            if output_ready {
                let read = read_some(&mut stdout, &mut buffer)?;
                output_open = read > 0;
                output.extend_from_slice(&buffer[..read]);
                if output.len() > output_max {
                    return Err(SourceError::Output("git wrote more than was asked for".to_owned()));
                }
            }
            if errors_ready {
                let read = read_some(&mut stderr, &mut buffer)?;
                errors_open = read > 0;
                errors.extend_from_slice(&buffer[..read.min(STDERR_MAX - errors.len())]);
            }
        }
        Ok((output, errors))
    }

    /// Waits until one end can be read.
    fn ready(&self, ends: [Option<BorrowedFd<'_>>; 2], deadline: Instant) -> Result<[bool; 2], SourceError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SourceError::TimeLimit { limit: self.time_limit });
            }
            let mut polled: Vec<PollFd<'_>> =
                ends.iter().flatten().map(|end| PollFd::from_borrowed_fd(*end, PollFlags::IN)).collect();
            let timeout =
                Timespec::try_from(left).map_err(|_| SourceError::TimeLimit { limit: self.time_limit })?;
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => {
                    let mut events = polled.iter().map(|end| !end.revents().is_empty());
                    return Ok(ends.map(|end| end.is_some() && events.next().unwrap_or_default()));
                }
                Err(error) => return Err(SourceError::Io(error.into())),
            }
        }
    }

    fn parse(&self, output: &[u8]) -> Result<Known, SourceError> {
        let mut commits = Vec::with_capacity(self.window.min(output.len() / 41 + 1));
        for line in output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let commit = std::str::from_utf8(line).ok().and_then(|line| line.parse::<CommitHash>().ok());
            commits.push(
                commit.ok_or_else(|| {
                    SourceError::Output("git printed something else than commits".to_owned())
                })?,
            );
        }
        Known::new(commits).ok_or_else(|| SourceError::NoCommits { repository: self.repository.clone() })
    }
}

fn read_some(end: &mut impl io::Read, buffer: &mut [u8]) -> Result<usize, SourceError> {
    loop {
        match end.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read.map_err(SourceError::Io),
        }
    }
}

/// Both ends are closed, so git is about to end; one that does not is killed.
fn wait(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus, SourceError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(SourceError::Io)? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            kill(child);
            return Err(SourceError::TimeLimit { limit });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills git and all it started, and takes its status.
fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It has ended by itself otherwise.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}
