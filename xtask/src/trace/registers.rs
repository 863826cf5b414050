//! How a stopped process is made to skip a call, see another result, or pass another argument, per architecture.
//!
//! Only the registers: whether and when is decided in [`super`].

use std::io;

use libc::pid_t;

/// Makes the call that `pid` is about to enter a call that does nothing.
pub(super) fn skip_call(pid: pid_t) -> io::Result<()> {
    arch::skip_call(pid)
}

/// Replaces the result of the call `pid` has just left.
pub(super) fn set_result(pid: pid_t, result: i64) -> io::Result<()> {
    arch::set_result(pid, result)
}

/// Replaces argument `index` of the call `pid` is about to enter.
pub(super) fn set_argument(pid: pid_t, index: usize, value: u64) -> io::Result<()> {
    arch::set_argument(pid, index, value)
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{io, pid_t};
    use libc::user_regs_struct;

    pub(super) fn skip_call(pid: pid_t) -> io::Result<()> {
        change(pid, |registers| registers.orig_rax = u64::MAX)
    }

    pub(super) fn set_result(pid: pid_t, result: i64) -> io::Result<()> {
        change(pid, |registers| registers.rax = result as u64)
    }

    pub(super) fn set_argument(pid: pid_t, index: usize, value: u64) -> io::Result<()> {
        change(pid, |registers| {
            let registers = [
                &mut registers.rdi,
                &mut registers.rsi,
                &mut registers.rdx,
                &mut registers.r10,
                &mut registers.r8,
                &mut registers.r9,
            ];
            *registers.into_iter().nth(index).expect("a system call has six arguments") = value;
        })
    }

    #[allow(unsafe_code)]
    fn change(pid: pid_t, edit: impl FnOnce(&mut user_regs_struct)) -> io::Result<()> {
        // SAFETY: `user_regs_struct` is plain integers, and ptrace fills or reads exactly one of them.
        unsafe {
            let mut registers: user_regs_struct = std::mem::zeroed();
            if libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers) < 0 {
                return Err(io::Error::last_os_error());
            }
            edit(&mut registers);
            if libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw const registers) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::{io, pid_t};
    use libc::{iovec, user_regs_struct};

    const NT_PRSTATUS: usize = 1;
    const NT_ARM_SYSTEM_CALL: usize = 0x404;

    #[allow(unsafe_code)]
    pub(super) fn skip_call(pid: pid_t) -> io::Result<()> {
        let mut number: i32 = -1;
        let part = iovec { iov_base: (&raw mut number).cast(), iov_len: size_of::<i32>() };
        // SAFETY: the kernel reads four bytes from `number`, which lives on this frame.
        let done = unsafe { libc::ptrace(libc::PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &raw const part) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn set_result(pid: pid_t, result: i64) -> io::Result<()> {
        change(pid, |registers| registers.regs[0] = result as u64)
    }

    pub(super) fn set_argument(pid: pid_t, index: usize, value: u64) -> io::Result<()> {
        change(pid, |registers| registers.regs[index] = value)
    }

    #[allow(unsafe_code)]
    fn change(pid: pid_t, edit: impl FnOnce(&mut user_regs_struct)) -> io::Result<()> {
        // SAFETY: `user_regs_struct` is plain integers, and ptrace fills or reads at most one of them.
        unsafe {
            let mut registers: user_regs_struct = std::mem::zeroed();
            let mut part =
                iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of::<user_regs_struct>() };
            if libc::ptrace(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, &raw mut part) < 0 {
                return Err(io::Error::last_os_error());
            }
            edit(&mut registers);
            if libc::ptrace(libc::PTRACE_SETREGSET, pid, NT_PRSTATUS, &raw const part) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
