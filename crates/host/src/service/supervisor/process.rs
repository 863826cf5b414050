//! One running process: its id, what it says, and what it prints.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use cutover_core::model::{Listen, ReleaseRef};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, waitid,
};

use super::{log::Log, notify::Notify};

/// The most output that is moved at once, so that one talker does not keep us from the others.
const OUTPUT_AT_ONCE: usize = 64 << 10;

pub(super) struct Process {
    pub(super) release: ReleaseRef,
    pub(super) pid: Pid,
    /// The sockets it was given.
    pub(super) listen: Vec<Listen>,
    /// Readable once the process has ended.
    pub(super) handle: OwnedFd,
    pub(super) notify: Notify,
    /// The reading end of its output; `None` once nobody can write any more.
    pub(super) output: Option<OwnedFd>,
    pub(super) log: Log,
}

impl Process {
    /// Puts together what is known about the child `pid`.
    pub(super) fn new(
        release: ReleaseRef,
        pid: Pid,
        listen: Vec<Listen>,
        notify: Notify,
        output: Option<OwnedFd>,
        log: Log,
    ) -> io::Result<Self> {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { release, pid, listen, handle, notify, output, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Asks it to end. It hands that on to processes of its own as it likes.
    pub(super) fn terminate(&self) {
        // It may have ended by itself; we have not waited for it yet, so its id is still its own.
        let _ = kill_process(self.pid, Signal::TERM);
    }

    /// Ends it and all it started.
    pub(super) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Moves what it has printed into the log.
    pub(super) fn move_output(&mut self) {
        let mut buffer = [0; 16 << 10];
        let mut moved = 0;
        while moved < OUTPUT_AT_ONCE {
            let Some(output) = &self.output else { return };
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => self.output = None,
                Ok(count) => {
                    self.log.write(&buffer[..count]);
                    moved += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "output cannot be read");
                    self.output = None;
                }
            }
        }
    }

    /// After it has ended: ends what it left behind in its group, and says how it ended.
    pub(super) fn reap(mut self) -> (String, PathBuf) {
        // Before we wait for it: until then nobody else can get its id as a group's.
        self.kill();
        self.move_output();
        let ended = waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED);
        let how = match ended {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            Ok(None) | Err(_) => "ended".to_owned(),
        };
        (how, self.log.path().to_owned())
    }
}

/// Waits for children that are not `ours`, which nobody else does: orphans of services, where we are process 1 of a
/// container, and what this program started before it became a supervisor.
pub(super) fn reap_others(ours: impl Fn(Pid) -> bool) {
    while let Some(pid) = ended_child().filter(|pid| !ours(*pid)) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}

/// A child that has ended and that nobody has waited for yet.
#[allow(unsafe_code)]
fn ended_child() -> Option<Pid> {
    // SAFETY: `information` is valid for the call, and `si_pid` may be read after success, where it is 0 for no child.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let result = libc::waitid(libc::P_ALL, 0, &mut information, how);
        if result == 0 { Pid::from_raw(information.si_pid()) } else { None }
    }
}
