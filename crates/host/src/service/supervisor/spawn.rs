//! Starts one service process: its own group, its sockets from descriptor 3 on, nothing else inherited.
//!
//! `LISTEN_PID` must name the process that reads it (sd_listen_fds(3)), and only the child knows its id. So we fork
//! ourselves, with everything prepared before, and the child fills in its own id; `std::process::Command` fixes the
//! environment too early. Between fork and exec only async-signal-safe calls are made (signal-safety(7)), and nothing
//! is allocated.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use rustix::process::Pid;

use super::{super::inherit::FIRST_FD, user::User};

/// What to start.
pub(super) struct Spawn<'a> {
    /// The program's absolute path.
    pub(super) program: &'a Path,
    /// What it sees as its arguments, its own name first.
    pub(super) arguments: &'a [String],
    /// Its whole environment but for `LISTEN_PID`.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub(super) directory: &'a Path,
    /// Its listening sockets, from descriptor 3 on.
    pub(super) sockets: Vec<BorrowedFd<'a>>,
    /// Its standard output and error.
    pub(super) output: BorrowedFd<'a>,
    /// Whom it runs as; `None`: as we do.
    pub(super) user: Option<&'a User>,
}

/// Steps of the child that can fail, in order; the number goes through a pipe.
const STEPS: [&str; 8] = [
    "make a process group",
    "pass its descriptors",
    "set its groups",
    "set its user",
    "tie it to the supervisor",
    "enter its directory",
    "reset its signals",
    "execute it",
];

/// Everything the child needs, in the form in which the system calls want it.
struct Prepared {
    program: CString,
    directory: CString,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// Where the child writes its id, inside one of `environment`'s strings.
    listen_pid: *mut u8,
    /// The first ones become 0, 1 and 2, the others 3 and so on.
    descriptors: Vec<RawFd>,
    error_pipe: RawFd,
    parent: libc::pid_t,
    ids: Option<(libc::uid_t, libc::gid_t, Vec<libc::gid_t>)>,
    /// Owns what the pointers point to.
    _strings: Vec<Vec<u8>>,
}

/// Starts it and returns when it has been executed.
///
/// # Errors
/// What failed, before or in the child; then there is no child.
pub(super) fn spawn(spawn: &Spawn<'_>) -> io::Result<Pid> {
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let (error_reader, error_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // All sources lie above the numbers that the child will give out, so no one overwrites another.
    let above = FIRST_FD + i32::try_from(spawn.sockets.len()).map_err(io::Error::other)?;
    let lift = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, above);
    let null = lift(std::os::fd::AsFd::as_fd(&null))?;
    let output = lift(spawn.output)?;
    let error_writer =
        lift(std::os::fd::AsFd::as_fd(&error_writer)).map(|lifted| (error_writer, lifted).1)?;
    let sockets = spawn.sockets.iter().map(|socket| lift(*socket)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let descriptors = [&null, &output, &output].into_iter().chain(&sockets).map(AsRawFd::as_raw_fd).collect();
    let mut prepared = prepare(spawn, descriptors, error_writer.as_raw_fd())?;
    let pid = fork(&mut prepared)?;
    drop(error_writer);
    match read_failure(&error_reader)? {
        None => Ok(pid),
        Some(failure) => {
            // It has exited already or is about to.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(failure)
        }
    }
}

fn prepare(spawn: &Spawn<'_>, descriptors: Vec<RawFd>, error_pipe: RawFd) -> io::Result<Prepared> {
    let mut strings = Vec::new();
    let mut keep = |bytes: Vec<u8>| -> io::Result<*mut u8> {
        let mut bytes = CString::new(bytes)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?
            .into_bytes_with_nul();
        let pointer = bytes.as_mut_ptr();
        strings.push(bytes);
        Ok(pointer)
    };
    let mut arguments = Vec::new();
    for argument in spawn.arguments {
        arguments.push(keep(argument.as_bytes().to_vec())?.cast_const().cast());
    }
    arguments.push(std::ptr::null());
    let mut environment = Vec::new();
    for (key, value) in &spawn.environment {
        let mut line = key.clone().into_vec();
        line.push(b'=');
        line.extend_from_slice(value.as_bytes());
        environment.push(keep(line)?.cast_const().cast());
    }
    const LISTEN_PID: &[u8] = b"LISTEN_PID=";
    let line = keep([LISTEN_PID, b"0000000000"].concat())?;
    environment.push(line.cast_const().cast());
    environment.push(std::ptr::null());
    let path = |path: &Path| {
        CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    Ok(Prepared {
        program: path(spawn.program)?,
        directory: path(spawn.directory)?,
        arguments,
        environment,
        listen_pid: line.wrapping_add(LISTEN_PID.len()),
        descriptors,
        error_pipe,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        ids: spawn.user.map(|user| (user.uid, user.gid, user.groups.clone())),
        _strings: strings,
    })
}

#[allow(unsafe_code)]
fn fork(prepared: &mut Prepared) -> io::Result<Pid> {
    // SAFETY: all signals are blocked around fork, so no handler of ours runs in the child, which shares our pipes. The
    // child calls only `run_child`, which keeps to async-signal-safe calls and never returns. The parent restores its
    // mask on both ways.
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let pid = libc::fork();
        if pid == 0 {
            run_child(prepared);
        }
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        pid
    };
    Ok(Pid::from_raw(pid).expect("fork gives the parent a positive id"))
}

/// The child, from fork to exec.
///
/// # Safety
/// Only in a freshly forked child, with all signals blocked. `prepared`'s pointers are valid, its lists of pointers end
/// with null, and its descriptors are all above those that are given out.
#[allow(unsafe_code)]
unsafe fn run_child(prepared: &mut Prepared) -> ! {
    // SAFETY: every call below is a system call or on the list of signal-safety(7); memory is only read, but for the
    // bytes of LISTEN_PID, which this process has its own copy of. `prepare` left ten digits of room there.
    unsafe {
        let check = |step: u8, result: i64| {
            if result < 0 {
                let errno = *libc::__errno_location();
                let message = [[step, 0, 0, 0], errno.to_ne_bytes()];
                libc::write(prepared.error_pipe, message.as_ptr().cast(), size_of_val(&message));
                libc::_exit(127);
            }
        };
        check(0, libc::setpgid(0, 0).into());
        let mut target = 0;
        for source in &prepared.descriptors {
            check(1, libc::dup2(*source, target).into());
            target += 1;
        }
        // Whatever else was open without close-on-exec is none of the service's business. Kernels before 5.11 cannot do
        // this; there our own flags have to be enough.
        libc::syscall(libc::SYS_close_range, target, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if let Some((uid, gid, groups)) = &prepared.ids {
            check(2, libc::setgroups(groups.len() as _, groups.as_ptr()).into());
            check(2, libc::setresgid(*gid, *gid, *gid).into());
            check(3, libc::setresuid(*uid, *uid, *uid).into());
        }
        // After the change of user, which clears it. Should the supervisor have died before, nobody would tell us.
        check(4, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM).into());
        if libc::getppid() != prepared.parent {
            libc::_exit(127);
        }
        check(5, libc::chdir(prepared.directory.as_ptr()).into());
        // Handlers of ours end with exec, but signals that are ignored stay so.
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(6, libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()).into());
        write_decimal(prepared.listen_pid, libc::getpid().unsigned_abs());
        libc::execve(prepared.program.as_ptr(), prepared.arguments.as_ptr(), prepared.environment.as_ptr());
        check(7, -1);
        libc::_exit(127)
    }
}

/// Writes `number` and a NUL.
///
/// # Safety
/// There is room for eleven bytes at `at`.
#[allow(unsafe_code)]
unsafe fn write_decimal(at: *mut u8, number: u32) {
    let mut digits = [0u8; 10];
    let mut count = 0;
    let mut rest = number;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    // SAFETY: at most ten digits and a NUL, for which the caller has made room.
    unsafe {
        for place in 0..count {
            *at.add(place) = digits[count - 1 - place];
        }
        *at.add(count) = 0;
    }
}

/// What the child reported; `None` when it was executed, which closed the pipe.
fn read_failure(pipe: &OwnedFd) -> io::Result<Option<io::Error>> {
    let mut message = [0; 8];
    let count = loop {
        match rustix::io::read(pipe, &mut message) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let ([step, _, _, _, errno @ ..], 8) = (message, count) else { return Ok(None) };
    let cause = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
    let step = STEPS.get(usize::from(step)).copied().unwrap_or("start it");
    Ok(Some(io::Error::new(cause.kind(), format!("failed to {step}: {cause}"))))
}

/// Finds `program` as execvp(3) does, but with the service's `PATH`; only for names without a slash.
pub(super) fn search_path(program: &str, path: Option<&OsStr>) -> Option<std::path::PathBuf> {
    std::env::split_paths(path?)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_absolute() && is_executable(candidate))
}

/// Whether `path` is a file that may be executed.
pub(super) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Replaces this program by the one at `program`, which must let the signals through that [`block_signals`] holds back. Returns only
/// when that fails.
#[allow(unsafe_code)]
pub(super) fn exec(
    program: &Path,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> io::Error {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(invalid);
    let prepared = (|| {
        let program = text(program.as_os_str().as_bytes().to_vec())?;
        let arguments =
            arguments.iter().map(|one| text(one.as_bytes().to_vec())).collect::<Result<Vec<_>, _>>()?;
        let environment = environment
            .iter()
            .map(|(key, value)| text([key.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((program, arguments, environment))
    })();
    let (program, arguments, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|one| CStr::as_ptr(one)).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: the pointers are valid until execve returns, and the lists end with null.
    unsafe {
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        io::Error::last_os_error()
    }
}

/// Holds signals back until [`unblock_signals`], also across [`exec`]: one that arrives in between is delivered to the new program
/// instead of killing it.
#[allow(unsafe_code)]
pub(super) fn block_signals() {
    // SAFETY: a full set is passed, by a pointer that is valid for the call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}

/// Lets signals through again, after [`block_signals`].
#[allow(unsafe_code)]
pub(super) fn unblock_signals() {
    // SAFETY: an empty set is passed, by a pointer that is valid for the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}
