//! A system-call fault driver: runs a command and strikes at its n-th file-system call below a directory.
//!
//! One counter covers the whole process tree, threads and forks included, so `n` means the same call in every run of a
//! deterministic command. The driver sees system calls (also raw ones, which preloaded libraries miss) but nothing that
//! goes through `io_uring`: a command that sets one up is reported as an error, never counted. It decides nothing about
//! which calls to strike. Read [`Traced`] first.

mod calls;
mod registers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, IoSliceMut, Read, Seek},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use libc::pid_t;

use calls::{Effect, Known, Names};

/// A command to run under the driver.
pub(crate) struct Traced<'a> {
    /// What to run. Its standard streams are replaced.
    pub(crate) command: Command,
    /// Calls that name a file at or below this directory count; it has to be free of symlinks.
    pub(crate) below: &'a Path,
    /// The whole tree is killed after this long.
    pub(crate) limit: Duration,
}

/// What to do at call number `at`, counted from 1.
pub(crate) enum Fault<'a> {
    /// Nothing: count and list.
    Watch,
    /// SIGKILL the tree before the call has any effect.
    KillBefore {
        /// The call.
        at: u64,
    },
    /// SIGKILL the tree when the call has returned.
    KillAfter {
        /// The call.
        at: u64,
    },
    /// The call does nothing and returns the error.
    Fail {
        /// The call.
        at: u64,
        /// The error number.
        errno: i32,
        /// Whether later calls fail as well.
        lasting: Lasting,
    },
    /// The call writes half of what it was given, at least one byte.
    Shorten {
        /// The call.
        at: u64,
    },
    /// The closure runs before the call has any effect, no traced thread entering another call meanwhile; then the tree
    /// is killed.
    Hook {
        /// The call.
        at: u64,
        /// What runs.
        run: &'a mut dyn FnMut() -> Result<()>,
    },
}

/// How long an injected error stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// One call fails.
    Once,
    /// The call and every later one that changes something fail.
    Forever,
}

/// One counted call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Its number, from 1.
    pub(crate) index: u64,
    /// Its name.
    pub(crate) name: &'static str,
    /// The paths it named.
    pub(crate) paths: Vec<PathBuf>,
    /// Whether it may change the disk.
    pub(crate) changes: bool,
    /// How many bytes it was to write, where it is one that writes.
    pub(crate) length: Option<u64>,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{} {}", self.index, self.name)?;
        for path in &self.paths {
            write!(f, " {}", path.display())?;
        }
        if let Some(length) = self.length {
            write!(f, " ({length} bytes)")?;
        }
        Ok(())
    }
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It exited by itself.
    Exited(i32),
    /// A signal that is not ours ended it.
    Signalled(i32),
    /// The driver killed it, as asked.
    Killed,
    /// It ran out of time.
    TimedOut,
}

/// What one run showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Every counted call, in order.
    pub(crate) calls: Vec<Call>,
    /// The number of the call that was struck; `None` when the command made fewer calls.
    pub(crate) struck: Option<usize>,
    /// How the command ended.
    pub(crate) ending: Ending,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

impl Outcome {
    /// The call that was struck.
    pub(crate) fn struck_call(&self) -> Option<&Call> {
        self.struck.and_then(|index| self.calls.get(index))
    }
}

impl Traced<'_> {
    /// Runs the command to its end.
    pub(crate) fn run(self, fault: Fault<'_>) -> Result<Outcome> {
        let Traced { mut command, below, limit } = self;
        let mut stderr = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
        command.process_group(0);
        trace_me(&mut command);
        // The child stops at its exec; `spawn` returns because exec closes the pipe it waits on.
        let child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let leader = pid_t::try_from(child.id()).expect("a process id fits a pid_t");
        let watchdog = Watchdog::start(leader, limit);
        let mut tree = Tree {
            leader,
            below,
            fault,
            calls: Vec::new(),
            struck: None,
            tracees: BTreeSet::from([leader]),
            pending: BTreeMap::new(),
            killed: false,
            blinded: false,
            hook_error: None,
        };
        let followed = tree.follow();
        if followed.is_err() {
            tree.kill();
        }
        let timed_out = watchdog.stop();
        let ending = followed?;
        let Tree { calls, struck, blinded, hook_error, .. } = tree;
        if let Some(error) = hook_error {
            return Err(error.context("the hook failed"));
        }
        if blinded {
            bail!(
                "{command:?} set up an io_uring: its calls cannot be seen, so nothing can be said about them"
            );
        }
        Ok(Outcome {
            calls,
            struck,
            ending: if timed_out { Ending::TimedOut } else { ending },
            stderr: text_of(&mut stderr)?,
        })
    }
}

/// What is to happen when a call returns.
#[derive(Clone, Copy)]
enum AtReturn {
    Result(i32),
    Kill,
}

struct Tree<'a, 'f> {
    leader: pid_t,
    below: &'a Path,
    fault: Fault<'f>,
    calls: Vec<Call>,
    struck: Option<usize>,
    tracees: BTreeSet<pid_t>,
    pending: BTreeMap<pid_t, AtReturn>,
    killed: bool,
    blinded: bool,
    hook_error: Option<anyhow::Error>,
}

impl Tree<'_, '_> {
    /// Follows the tree until its last process is gone; the ending is the leader's.
    fn follow(&mut self) -> Result<Ending> {
        let first = wait(self.leader)?.context("the command ended before its exec")?;
        if !libc::WIFSTOPPED(first.1) {
            bail!("the command ended before its exec");
        }
        let options = libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_EXITKILL;
        ptrace(libc::PTRACE_SETOPTIONS, self.leader, 0, options as usize).context("PTRACE_SETOPTIONS")?;
        resume(self.leader, 0);

        let mut ending = None;
        // Other workers of this process trace their own trees: wait for children of this thread only.
        while let Some((pid, status)) = wait(-1)? {
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.tracees.remove(&pid);
                self.pending.remove(&pid);
                if pid == self.leader {
                    ending = Some(if libc::WIFEXITED(status) {
                        Ending::Exited(libc::WEXITSTATUS(status))
                    } else if self.killed {
                        Ending::Killed
                    } else {
                        Ending::Signalled(libc::WTERMSIG(status))
                    });
                }
                continue;
            }
            let new = self.tracees.insert(pid);
            if self.killed {
                kill(pid);
            }
            let signal = libc::WSTOPSIG(status);
            let deliver = if signal == libc::SIGTRAP | 0x80 {
                self.at_call(pid)?;
                0
            } else if (status >> 16) != 0 || signal == libc::SIGTRAP || (new && signal == libc::SIGSTOP) {
                // A ptrace event, or the stop in which a new thread or process begins.
                0
            } else {
                signal
            };
            resume(pid, deliver);
        }
        ending.context("the command's ending was not seen")
    }

    fn at_call(&mut self, pid: pid_t) -> Result<()> {
        let Some(stop) = syscall_stop(pid) else { return Ok(()) };
        match stop {
            Stop::Entry { number, arguments } if !self.killed => self.at_entry(pid, number, &arguments),
            Stop::Exit => match self.pending.remove(&pid) {
                Some(AtReturn::Result(errno)) => tolerate_gone(registers::set_result(pid, -i64::from(errno))),
                Some(AtReturn::Kill) => {
                    self.kill();
                    Ok(())
                }
                None => Ok(()),
            },
            Stop::Entry { .. } | Stop::Other => Ok(()),
        }
    }

    fn at_entry(&mut self, pid: pid_t, number: u64, arguments: &[u64; 6]) -> Result<()> {
        if calls::BLINDING.iter().any(|blinding| *blinding as u64 == number) {
            self.blinded = true;
            self.kill();
            return Ok(());
        }
        let Some(known) = calls::known(number, arguments) else { return Ok(()) };
        let paths = named_paths(pid, known, arguments);
        if !paths.iter().any(|path| path.starts_with(self.below)) {
            return Ok(());
        }
        let call = Call {
            index: self.calls.len() as u64 + 1,
            name: known.name,
            paths,
            changes: changes(pid, known, arguments),
            length: known.length.map(|argument| arguments[argument]),
        };
        self.calls.push(call);
        self.strike(pid, known, arguments)
    }

    /// Performs the fault if the call just counted is the one.
    fn strike(&mut self, pid: pid_t, known: &Known, arguments: &[u64; 6]) -> Result<()> {
        let call = self.calls.last().expect("a call was just counted");
        let index = call.index;
        match &mut self.fault {
            Fault::KillBefore { at } if *at == index => {
                self.struck = Some(self.calls.len() - 1);
                self.kill();
                Ok(())
            }
            Fault::KillAfter { at } if *at == index => {
                self.struck = Some(self.calls.len() - 1);
                self.pending.insert(pid, AtReturn::Kill);
                Ok(())
            }
            Fault::Fail { at, errno, lasting } => {
                let first = *at == index;
                if first || (*lasting == Lasting::Forever && index > *at && call.changes) {
                    let errno = *errno;
                    if first {
                        self.struck = Some(self.calls.len() - 1);
                    }
                    self.pending.insert(pid, AtReturn::Result(errno));
                    tolerate_gone(registers::skip_call(pid))
                } else {
                    Ok(())
                }
            }
            Fault::Shorten { at } if *at == index => {
                self.struck = Some(self.calls.len() - 1);
                match known.length {
                    Some(argument) if arguments[argument] > 1 => {
                        tolerate_gone(registers::set_argument(pid, argument, arguments[argument] / 2))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Fault::Hook { at, run } if *at == index => {
                self.struck = Some(self.calls.len() - 1);
                if let Err(error) = run() {
                    self.hook_error = Some(error);
                }
                self.kill();
                Ok(())
            }
            Fault::Watch
            | Fault::KillBefore { .. }
            | Fault::KillAfter { .. }
            | Fault::Shorten { .. }
            | Fault::Hook { .. } => Ok(()),
        }
    }

    fn kill(&mut self) {
        self.killed = true;
        for pid in &self.tracees {
            kill(*pid);
        }
    }
}

/// Kills the tree when it takes too long, so that a hang is a finding and not a hang of ours.
struct Watchdog {
    done: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(leader: pid_t, limit: Duration) -> Self {
        let (done, waiting) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let late = waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                kill(-leader);
            }
            late
        });
        Watchdog { done, thread }
    }

    /// Says whether it had to kill.
    fn stop(self) -> bool {
        drop(self.done);
        self.thread.join().unwrap_or(true)
    }
}

fn changes(pid: pid_t, known: &Known, arguments: &[u64; 6]) -> bool {
    let opens_for_change = |flags: u64| flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
    match known.effect {
        Effect::Reads | Effect::Locks(_) => false,
        Effect::Changes => true,
        Effect::Opens(flags) => opens_for_change(arguments[flags]),
        Effect::OpensHow(how) => {
            let mut flags = [0; 8];
            read_memory(pid, arguments[how], &mut flags) < flags.len()
                || opens_for_change(u64::from_ne_bytes(flags))
        }
    }
}

/// The paths a call names; one that cannot be read is left out.
fn named_paths(pid: pid_t, known: &Known, arguments: &[u64; 6]) -> Vec<PathBuf> {
    known
        .names
        .iter()
        .filter_map(|names| match *names {
            Names::Descriptor(argument) => descriptor_path(pid, arguments[argument]),
            Names::Path(argument) => {
                resolve(pid, libc::AT_FDCWD as u64, path_argument(pid, arguments[argument])?)
            }
            Names::At(directory, argument) => {
                resolve(pid, arguments[directory], path_argument(pid, arguments[argument])?)
            }
        })
        .collect()
}

fn resolve(pid: pid_t, directory: u64, path: PathBuf) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path);
    }
    let directory = descriptor_path(pid, directory)?;
    Some(if path.as_os_str().is_empty() { directory } else { directory.join(path) })
}

fn descriptor_path(pid: pid_t, descriptor: u64) -> Option<PathBuf> {
    let descriptor = descriptor as i32;
    let link = if descriptor == libc::AT_FDCWD {
        format!("/proc/{pid}/cwd")
    } else {
        format!("/proc/{pid}/fd/{descriptor}")
    };
    std::fs::read_link(link).ok()
}

fn path_argument(pid: pid_t, address: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    if address == 0 {
        return Some(PathBuf::new());
    }
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    let mut filled = 0;
    // One page at a time: the next page may not be mapped.
    while filled < bytes.len() {
        let at = address + filled as u64;
        let page_end = (4096 - (at % 4096)) as usize;
        let end = (filled + page_end).min(bytes.len());
        let read = read_memory(pid, at, &mut bytes[filled..end]);
        if let Some(nul) = bytes[filled..filled + read].iter().position(|byte| *byte == 0) {
            bytes.truncate(filled + nul);
            return Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)));
        }
        if read == 0 {
            return None;
        }
        filled += read;
    }
    None
}

/// Copies memory of a stopped process; says how many bytes could be read.
#[allow(unsafe_code)]
fn read_memory(pid: pid_t, address: u64, into: &mut [u8]) -> usize {
    let length = into.len();
    let mut local = [IoSliceMut::new(into)];
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    // SAFETY: the kernel writes at most `length` bytes into `into`; `IoSliceMut` has the layout of `iovec`; a remote
    // address that is not mapped is an error, not a fault of ours.
    let read = unsafe {
        libc::process_vm_readv(pid, local.as_mut_ptr().cast::<libc::iovec>(), 1, &raw const remote, 1, 0)
    };
    usize::try_from(read).unwrap_or(0)
}

enum Stop {
    Entry { number: u64, arguments: [u64; 6] },
    Exit,
    Other,
}

/// Which side of a call `pid` is stopped at; `None` when it is gone.
#[allow(unsafe_code)]
fn syscall_stop(pid: pid_t) -> Option<Stop> {
    // SAFETY: the structure is plain integers; the kernel fills at most its size, and `op` says which part is valid.
    unsafe {
        let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
        let size = size_of::<libc::ptrace_syscall_info>();
        if libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info) < 0 {
            return None;
        }
        Some(match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                Stop::Entry { number: info.u.entry.nr, arguments: info.u.entry.args }
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => Stop::Exit,
            _ => Stop::Other,
        })
    }
}

#[allow(unsafe_code)]
fn trace_me(command: &mut Command) {
    // SAFETY: between fork and exec only the async-signal-safe ptrace(2) is called.
    unsafe {
        command.pre_exec(|| {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[allow(unsafe_code)]
fn ptrace(request: libc::c_uint, pid: pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: only requests that take plain numbers are made through here.
    if unsafe { libc::ptrace(request, pid, address, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets a stopped thread run to its next stop. One that was killed meanwhile is gone, which the next wait reports.
fn resume(pid: pid_t, signal: i32) {
    let _gone = ptrace(libc::PTRACE_SYSCALL, pid, 0, signal as usize);
}

fn tolerate_gone(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.context("failed to change a register"),
    }
}

#[allow(unsafe_code)]
fn kill(pid: pid_t) {
    // SAFETY: kill(2) takes plain numbers; a process that is gone is ESRCH.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// The next change of a traced child of this thread; `None` when there is none left.
#[allow(unsafe_code)]
fn wait(pid: pid_t) -> io::Result<Option<(pid_t, i32)>> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one integer.
        let changed = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if changed > 0 {
            return Ok(Some((changed, status)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            Some(_) | None => return Err(error),
        }
    }
}

fn text_of(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The error number of a name, for the few that are injected.
pub(crate) fn errno_of(name: &str) -> Option<i32> {
    Some(match name {
        "EIO" => libc::EIO,
        "ENOSPC" => libc::ENOSPC,
        "EROFS" => libc::EROFS,
        "EACCES" => libc::EACCES,
        "EINTR" => libc::EINTR,
        "EMFILE" => libc::EMFILE,
        "EDQUOT" => libc::EDQUOT,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(below: &Path, script: &str, fault: Fault<'_>) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(below);
        Traced { command, below, limit: LIMIT }.run(fault).unwrap()
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let held = tempfile::tempdir().unwrap();
        let path = held.path().canonicalize().unwrap();
        (held, path)
    }

    /// The number of the first call of one of these names.
    fn number_of(below: &Path, script: &str, names: &[&str]) -> u64 {
        let outcome = shell(below, script, Fault::Watch);
        let call = outcome.calls.iter().find(|call| names.contains(&call.name) && call.changes);
        call.unwrap_or_else(|| panic!("no {names:?} in {:?}", outcome.calls)).index
    }

    const MOVE: &str = "echo hello > f; mv f g";
    const RENAMES: &[&str] = &["rename", "renameat", "renameat2"];

    #[test]
    fn calls_below_the_directory_are_counted_across_forks_and_others_are_not() {
        let (_held, below) = directory();
        let outcome = shell(&below, MOVE, Fault::Watch);
        assert_eq!(outcome.ending, Ending::Exited(0));
        let names: Vec<&str> =
            outcome.calls.iter().filter(|call| call.changes).map(|call| call.name).collect();
        assert!(names.contains(&"write") && names.iter().any(|name| RENAMES.contains(name)), "{names:?}");
        assert!(outcome.calls.iter().all(|call| call.paths.iter().any(|path| path.starts_with(&below))));
        assert!(outcome.calls.iter().enumerate().all(|(i, call)| call.index == i as u64 + 1));
    }

    #[test]
    fn kill_before_a_rename_leaves_the_old_name_and_kill_after_the_new_one() {
        let (_held, below) = directory();
        let at = number_of(&below, MOVE, RENAMES);
        std::fs::remove_file(below.join("g")).unwrap();

        let outcome = shell(&below, MOVE, Fault::KillBefore { at });
        assert!(RENAMES.contains(&outcome.struck_call().unwrap().name));
        assert!(below.join("f").exists() && !below.join("g").exists());

        std::fs::remove_file(below.join("f")).unwrap();
        shell(&below, MOVE, Fault::KillAfter { at });
        assert!(!below.join("f").exists() && below.join("g").exists());
    }

    #[test]
    fn the_leader_killed_in_its_own_call_is_reported_as_killed() {
        let (_held, below) = directory();
        let at = number_of(&below, "echo x > f", &["write"]);
        let outcome = shell(&below, "echo x > f; echo y > g", Fault::KillBefore { at });
        assert_eq!(outcome.ending, Ending::Killed);
        assert_eq!(std::fs::read(below.join("f")).unwrap(), b"");
        assert!(!below.join("g").exists());
    }

    #[test]
    fn an_error_injected_once_fails_that_call_only() {
        let (_held, below) = directory();
        let script = "head -c 3 /dev/zero > f; echo two > g";
        let at = number_of(&below, script, &["write"]);
        let outcome = shell(&below, script, Fault::Fail { at, errno: libc::ENOSPC, lasting: Lasting::Once });
        assert!(outcome.stderr.contains("No space left"), "{}", outcome.stderr);
        assert_eq!(std::fs::read(below.join("f")).unwrap(), b"");
        assert_eq!(std::fs::read(below.join("g")).unwrap(), b"two\n");
    }

    #[test]
    fn an_error_injected_for_ever_fails_every_later_change() {
        let (_held, below) = directory();
        let script = "echo one > f; echo two > g; true";
        let at = number_of(&below, script, &["write"]);
        std::fs::remove_file(below.join("g")).unwrap();
        shell(&below, script, Fault::Fail { at, errno: libc::EROFS, lasting: Lasting::Forever });
        assert!(!below.join("g").exists(), "the open that creates g has to fail too");
    }

    #[test]
    fn a_shortened_write_writes_half() {
        let (_held, below) = directory();
        let script = "head -c 1000 /dev/zero > f";
        let at = number_of(&below, script, &["write"]);
        let outcome = shell(&below, script, Fault::Shorten { at });
        let struck = outcome.struck_call().unwrap();
        assert_eq!((struck.name, struck.length), ("write", Some(1000)));
        let after: Vec<_> =
            outcome.calls.iter().skip(struck.index as usize).filter(|call| call.name == "write").collect();
        assert!(
            after.iter().all(|call| call.length == Some(500)),
            "a caller that goes on writes the rest: {after:?}"
        );
    }

    #[test]
    fn a_hook_sees_the_state_before_the_call_and_nothing_happens_after_it() {
        let (_held, below) = directory();
        let at = number_of(&below, MOVE, RENAMES);
        std::fs::remove_file(below.join("g")).unwrap();
        let mut seen = None;
        let mut look = || {
            seen = Some((below.join("f").exists(), below.join("g").exists()));
            Ok(())
        };
        shell(&below, MOVE, Fault::Hook { at, run: &mut look });
        assert_eq!(seen, Some((true, false)));
        assert!(below.join("f").exists() && !below.join("g").exists());
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_said_so() {
        let (_held, below) = directory();
        let mut command = Command::new("sleep");
        command.arg("100");
        let traced = Traced { command, below: &below, limit: Duration::from_millis(200) };
        assert_eq!(traced.run(Fault::Watch).unwrap().ending, Ending::TimedOut);
    }

    #[test]
    fn two_drivers_in_one_process_do_not_take_each_others_children() {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    let (_held, below) = directory();
                    (0..10).map(|_| shell(&below, MOVE, Fault::Watch).calls.len()).collect::<BTreeSet<_>>()
                })
            })
            .collect();
        let counts: BTreeSet<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        assert!(counts.len() <= 2, "the first run creates what later ones replace; else equal: {counts:?}");
    }
}
