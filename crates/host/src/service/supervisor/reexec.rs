//! A newer program in our place: same process, same sockets, same children.
//!
//! First the new program is asked, as a child with our own arguments, whether it could take over; one that crashes, does
//! not know our state or refuses our settings is never started in our place. Then the state is written into a memory
//! file, everything that must live is marked to be inherited, and execve(2) replaces us. Children notice nothing: their
//! parent is the same process.

use std::{
    ffi::OsString,
    io::{self, Read as _, Seek as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use cutover_core::{
    model::{Listen, ReleaseRef},
    supervise::{Generation, Supervisor},
};
use rustix::{
    fs::{MemfdFlags, OFlags},
    io::FdFlags,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::{Deserialize, Serialize};

use super::{super::Activation, spawn};

/// The variable that tells a program what it is started for.
pub(super) const VARIABLE: &str = "_CUTOVER_SUPERVISOR";
/// Its value for a check.
pub(super) const CHECK: &str = "check";
/// Its value to take over: this and the number of the descriptor with the state.
const RESUME: &str = "resume:";
/// The version of [`State`]. A program takes over only from one that writes the same.
const STATE_VERSION: u32 = 1;
/// What a program that can take over says.
pub(super) const ANSWER: &str = "cutover supervisor state 1";
/// How long it may take to say so, in milliseconds.
const CHECK_MS: u64 = 10_000;
/// The most that is read of what it says.
const ANSWER_MAX: u64 = 64 << 10;
/// The most characters of it that an error repeats.
const SAID_MAX: usize = 200;

/// Everything a supervisor knows.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) version: u32,
    pub(super) program: PathBuf,
    pub(super) reexecs: u32,
    pub(super) machine: Supervisor,
    pub(super) activations: Vec<Activation>,
    pub(super) sockets: Vec<(Listen, RawFd)>,
    pub(super) processes: Vec<ProcessState>,
    pub(super) lock: RawFd,
    pub(super) control: RawFd,
    /// Who asked for this, and waits to hear that it is done.
    pub(super) asked_by: Option<RawFd>,
}

/// What is known about one process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessState {
    pub(super) generation: Generation,
    pub(super) release: ReleaseRef,
    pub(super) pid: i32,
    pub(super) notify: RawFd,
    pub(super) notify_name: String,
    pub(super) output: Option<RawFd>,
}

/// A program that is asked whether it could take over.
pub(super) struct Check {
    pub(super) program: PathBuf,
    /// The client that wants it, if not a signal.
    pub(super) asked_by: Option<u64>,
    child: Child,
    /// Readable once it has answered.
    handle: OwnedFd,
    answer: std::fs::File,
    pub(super) deadline_ms: u64,
}

impl Check {
    /// Asks `program`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        asked_by: Option<u64>,
        now_ms: u64,
    ) -> Result<Self, String> {
        if !program.is_absolute() || !spawn::is_executable(program) {
            return Err(format!("`{}` is no absolute path of an executable program", program.display()));
        }
        let started = (|| {
            // Appended to, so that its output and errors do not overwrite each other.
            let answer = std::fs::File::from(rustix::fs::memfd_create("cutover-check", MemfdFlags::CLOEXEC)?);
            rustix::fs::fcntl_setfl(&answer, OFlags::APPEND)?;
            let mut child = std::process::Command::new(program)
                .args(arguments)
                .env(VARIABLE, CHECK)
                .stdin(Stdio::null())
                .stdout(answer.try_clone()?)
                .stderr(answer.try_clone()?)
                .process_group(0)
                .spawn()?;
            match pidfd_open(pid_of(&child)?, PidfdFlags::empty()) {
                Ok(handle) => Ok((child, handle, answer)),
                Err(error) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    Err(error.into())
                }
            }
        })();
        let (child, handle, answer) = started
            .map_err(|error: io::Error| format!("`{}` cannot be started: {error}", program.display()))?;
        let deadline_ms = now_ms.saturating_add(CHECK_MS);
        Ok(Self { program: program.to_owned(), asked_by, child, handle, answer, deadline_ms })
    }

    /// Whether `pid` is the program that is asked.
    pub(super) fn is(&self, pid: Pid) -> bool {
        pid_of(&self.child).is_ok_and(|child| child == pid)
    }

    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// What it answered, after it has ended or its time is over: nothing when it could take over.
    ///
    /// # Errors
    /// Why it could not.
    pub(super) fn finish(mut self) -> Result<(PathBuf, Option<u64>), (String, Option<u64>)> {
        let refuse = |reason: String| {
            (format!("`{}` cannot take over: {reason}", self.program.display()), self.asked_by)
        };
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => {
                if let Ok(pid) = pid_of(&self.child) {
                    let _ = kill_process_group(pid, Signal::KILL);
                }
                let _ = self.child.wait();
                return Err(refuse("it did not answer in time".to_owned()));
            }
            Err(error) => return Err(refuse(error.to_string())),
        };
        let mut text = String::new();
        let read =
            self.answer.rewind().and_then(|()| (&self.answer).take(ANSWER_MAX).read_to_string(&mut text));
        if let Err(error) = read {
            return Err(refuse(error.to_string()));
        }
        if status.success() && text.lines().any(|line| line == ANSWER) {
            Ok((self.program, self.asked_by))
        } else {
            let said: String = text.lines().last().unwrap_or("nothing").chars().take(SAID_MAX).collect();
            Err(refuse(format!("it does not know how ({status}; it said: {})", said.escape_debug())))
        }
    }
}

fn pid_of(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl State {
    /// Everything that must stay open.
    fn descriptors(&self) -> Vec<RawFd> {
        let processes =
            self.processes.iter().flat_map(|process| [Some(process.notify), process.output]).flatten();
        let sockets = self.sockets.iter().map(|(_, socket)| *socket);
        let others = [Some(self.lock), Some(self.control), self.asked_by].into_iter().flatten();
        processes.chain(sockets).chain(others).collect()
    }

    /// Becomes `program`. Returns only when that fails, and then everything is as before.
    pub(super) fn exec(
        &self,
        program: &Path,
        arguments: &[OsString],
        environment: &[(OsString, OsString)],
    ) -> io::Error {
        let memory = match self.to_memory() {
            Ok(memory) => memory,
            Err(error) => return error,
        };
        let mut environment: Vec<_> =
            environment.iter().filter(|(key, _)| key != VARIABLE).cloned().collect();
        environment.push((VARIABLE.into(), format!("{RESUME}{}", memory.as_raw_fd()).into()));
        let name = program.as_os_str().to_owned();
        let arguments: Vec<_> = std::iter::once(name).chain(arguments.iter().cloned()).collect();
        let mut descriptors = self.descriptors();
        descriptors.push(memory.as_raw_fd());
        let marked = descriptors.iter().try_for_each(|fd| mark(*fd, FdFlags::empty()));
        let error = match marked {
            Ok(()) => spawn::exec(program, &arguments, &environment),
            Err(error) => error,
        };
        for fd in descriptors {
            // That it can be marked was shown a moment ago.
            let _ = mark(fd, FdFlags::CLOEXEC);
        }
        error
    }

    fn to_memory(&self) -> io::Result<OwnedFd> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let memory = rustix::fs::memfd_create("cutover-state", MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(memory);
        io::Write::write_all(&mut file, &text)?;
        file.rewind()?;
        Ok(file.into())
    }

    /// The state that the program before us left, as the environment says.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn inherit(environment: &[(OsString, OsString)]) -> io::Result<Self> {
        let value = environment.iter().find(|(key, _)| key == VARIABLE).and_then(|(_, value)| value.to_str());
        let number = value
            .and_then(|value| value.strip_prefix(RESUME))
            .and_then(|number| number.parse::<RawFd>().ok())
            .ok_or_else(|| io::Error::other(format!("{VARIABLE} is for `cutover run` itself: unset it")))?;
        let state: Self =
            serde_json::from_reader(std::fs::File::from(adopt(number)?)).map_err(io::Error::other)?;
        if state.version == STATE_VERSION {
            Ok(state)
        } else {
            Err(io::Error::other(format!("the state of version {} cannot be taken over", state.version)))
        }
    }

    /// The version that this program writes.
    pub(super) const fn version() -> u32 {
        STATE_VERSION
    }
}

#[allow(unsafe_code)]
fn mark(fd: RawFd, flags: FdFlags) -> io::Result<()> {
    // SAFETY: the descriptor is owned by the supervisor, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(fd, flags).map_err(Into::into)
}

/// Takes ownership of a descriptor that the program before us left open for us.
///
/// # Errors
/// It is not open.
#[allow(unsafe_code)]
pub(super) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number comes from the state that the program before us wrote for exactly this, in this process; each
    // number in it is adopted once, and nothing else in this process has opened descriptors by number. One that is not
    // open is refused before it is owned.
    unsafe {
        rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(fd), FdFlags::CLOEXEC)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
