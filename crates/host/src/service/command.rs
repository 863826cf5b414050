//! One process, run to its end: with a deadline, without a terminal, its output bounded.
//!
//! Used for the operator's and systemd's commands and for command probes. The process leads a group of its own, and
//! the whole group is killed at the deadline, so nothing that hangs outlives it.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// The most output that is kept, in bytes; more is read and dropped.
const OUTPUT_MAX: usize = 64 << 10;

/// What to run.
pub struct Bounded<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Variables added to our own environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Where it runs; `None`: where we do.
    pub directory: Option<&'a Path>,
    /// When it is killed.
    pub timeout: Duration,
    /// What happens to processes it left in its group when it ended in time.
    pub leftovers: Leftovers,
}

/// What happens to processes that a command leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// They are what the command was for.
    Keep,
    /// They are killed.
    Kill,
}

/// How a process ended that ended in time.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output and error, at most 64 KiB.
    pub output: String,
    /// How long it ran.
    pub took: Duration,
}

/// Why a command is not a success.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no program.
    #[error("the command for `{0}` is empty; name a program and its arguments")]
    Empty(&'static str),
    /// It could not be started.
    #[error("failed to start `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ran too long and was killed.
    #[error("`{command}` did not finish within {} s and was killed{}", timeout.as_secs_f32(), said(.output))]
    Timeout {
        /// The command line.
        command: String,
        /// Its time.
        timeout: Duration,
        /// What it printed.
        output: String,
    },
    /// It ended, but not with 0.
    #[error("`{command}` {}{}", ended(.status), said(.output))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
}

fn ended(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The end of what a command printed, on one line.
fn said(output: &str) -> String {
    let tail: Vec<&str> = output.trim_end().lines().rev().take(3).collect();
    if tail.is_empty() {
        return String::new();
    }
    let line: Vec<&str> = tail.into_iter().rev().collect();
    format!(": {}", line.join(" | ").escape_debug())
}

impl Bounded<'_> {
    /// Runs it and demands exit status 0.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn succeed(self) -> Result<Finished, CommandError> {
        let command = self.argv.join(" ");
        let finished = self.run()?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(CommandError::Failed { command, status: finished.status, output: finished.output })
    }

    /// Runs it to its end, whatever its exit status.
    ///
    /// # Errors
    /// It cannot be started, or does not end in time.
    pub fn run(self) -> Result<Finished, CommandError> {
        let command = self.argv.join(" ");
        let failed = |source| CommandError::Start { command: command.clone(), source };
        let (program, arguments) = self.argv.split_first().ok_or(CommandError::Empty("program"))?;
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let mut process = std::process::Command::new(program);
        process
            .args(arguments)
            // Where nothing is installed, what the environment of ours says is about somebody else.
            .env_remove("CUTOVER_RELEASE")
            .env_remove("CUTOVER_TREE")
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .process_group(0);
        if let Some(directory) = self.directory {
            process.current_dir(directory);
        }
        die_with_us(&mut process);
        let started = Instant::now();
        let child = process.spawn().map_err(failed)?;
        // Our copies of the pipe's writing end live in `process`; the end of the output is seen only without them.
        drop(process);
        let mut running = Running::new(child, reader.into()).map_err(failed)?;
        let in_time = running.wait_until(started + self.timeout);
        match in_time {
            Ok(true) => {
                if self.leftovers == Leftovers::Kill {
                    running.kill_group();
                }
                let status = running.child.wait().map_err(failed)?;
                Ok(Finished { status, output: running.output(), took: started.elapsed() })
            }
            Ok(false) => {
                running.kill_group();
                let _ = running.child.wait();
                Err(CommandError::Timeout { command, timeout: self.timeout, output: running.output() })
            }
            Err(source) => {
                running.kill_group();
                let _ = running.child.wait();
                Err(failed(source))
            }
        }
    }
}

/// Has the process killed when the thread that starts it ends, which waits for it: nothing of an update that was killed works on
/// while the next one ends what it left. What the process started itself is not killed, which is as it must be for a service.
#[allow(unsafe_code)]
fn die_with_us(process: &mut std::process::Command) {
    let us = std::process::id();
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which are async-signal-safe, and nothing is allocated.
    unsafe {
        process.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(io::Error::last_os_error());
            }
            // Had we ended before, nobody would tell it.
            if libc::getppid().unsigned_abs() == us { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
    }
}

/// A started command.
struct Running {
    child: Child,
    pidfd: OwnedFd,
    pipe: Option<std::fs::File>,
    output: Vec<u8>,
}

impl Running {
    fn new(mut child: Child, pipe: OwnedFd) -> std::io::Result<Self> {
        let prepared = pidfd_open(pid_of(&child), PidfdFlags::empty())
            .and_then(|pidfd| rustix::io::ioctl_fionbio(&pipe, true).map(|()| pidfd));
        match prepared {
            Ok(pidfd) => Ok(Self { child, pidfd, pipe: Some(pipe.into()), output: Vec::new() }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Collects output until the process has ended (true) or `deadline` has come (false). The process is not reaped,
    /// so its group's id cannot be given to another one yet.
    fn wait_until(&mut self, deadline: Instant) -> std::io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            if let Some(pipe) = &self.pipe {
                fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = !fds[0].revents().is_empty();
            let output_waits = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            if output_waits {
                self.collect();
            }
            if ended {
                self.collect();
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Reads what waits in the pipe, a bounded amount of it.
    fn collect(&mut self) {
        let mut chunk = [0; 8192];
        for _ in 0..(OUTPUT_MAX / 8192) {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let room = OUTPUT_MAX - self.output.len();
                    self.output.extend_from_slice(&chunk[..count.min(room)]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn kill_group(&self) {
        // Its group may be gone already, which is as good.
        let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

fn pid_of(child: &Child) -> Pid {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("the kernel gives out positive process ids that fit 22 bits")
}

/// The variables every command of ours is told.
pub(crate) fn release_env(
    release: Option<&str>,
    root: &Path,
    tree: Option<PathBuf>,
) -> Vec<(&'static str, OsString)> {
    let mut env = vec![("CUTOVER_ROOT", root.as_os_str().to_owned())];
    env.extend(release.map(|release| ("CUTOVER_RELEASE", OsString::from(release))));
    env.extend(tree.map(|tree| ("CUTOVER_TREE", tree.into_os_string())));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn bounded(argv: &[String], timeout: Duration) -> Bounded<'_> {
        Bounded { argv, env: Vec::new(), directory: None, timeout, leftovers: Leftovers::Kill }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_and_status_are_reported() {
        let argv = shell("echo out; echo err >&2; exit 3");
        let error = bounded(&argv, LONG).succeed().expect_err("exit 3");
        let text = error.to_string();
        assert!(text.contains("exited with 3") && text.contains("out") && text.contains("err"), "{text}");
    }

    #[test]
    fn command_that_hangs_is_killed_with_its_children_at_the_deadline() {
        let directory = tempfile::tempdir().expect("a directory");
        let pids = directory.path().join("pids");
        let argv = shell(&format!("sleep 600 & echo $! > '{0}'; echo $$ >> '{0}'; wait", pids.display()));
        let started = Instant::now();
        let error = bounded(&argv, Duration::from_millis(500)).run().expect_err("a timeout");
        assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
        assert!(started.elapsed() < LONG);
        for pid in std::fs::read_to_string(pids).expect("pids").lines() {
            let gone = || {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            };
            while !gone() {
                assert!(started.elapsed() < LONG, "process {pid} still runs");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn command_ends_with_the_thread_that_waits_for_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pid");
        let argv = shell(&format!("echo $$ > '{0}.new'; mv '{0}.new' '{0}'; exec sleep 600", path.display()));
        // A thread that ends without waiting stands for a process that is killed.
        let mut process = std::process::Command::new(&argv[0]);
        process.args(&argv[1..]);
        die_with_us(&mut process);
        let written = path.clone();
        let mut child = std::thread::spawn(move || {
            let child = process.spawn().expect("started");
            while !written.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            child
        })
        .join()
        .expect("no panic");
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(9));
    }

    #[test]
    fn endless_output_is_bounded() {
        let argv = shell("yes | head -c 10000000");
        let finished = bounded(&argv, LONG).succeed().expect("success");
        assert_eq!(finished.output.len(), OUTPUT_MAX);
    }

    #[test]
    fn daemon_that_holds_the_output_open_does_not_delay_the_result() {
        let argv = shell("sleep 600 & exit 0");
        let finished = bounded(&argv, LONG).succeed().expect("success");
        assert!(finished.took < LONG);
    }

    #[test]
    fn missing_program_is_named() {
        let argv = vec!["/nonexistent/program".to_owned()];
        let error = bounded(&argv, LONG).run().expect_err("no program");
        assert!(error.to_string().contains("/nonexistent/program"));
    }
}
