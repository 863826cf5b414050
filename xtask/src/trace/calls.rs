//! The table of file-system calls the driver knows: which arguments name files, and which call changes the disk.
//!
//! It never reads a process; it only says where to look. A call that is not in the table is not counted. Read
//! [`Known`] first.

use std::ffi::c_long;

/// Where an argument of a call names a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names {
    /// Argument `.0` is an open descriptor.
    Descriptor(usize),
    /// Argument `.0` points to a path, relative to the working directory.
    Path(usize),
    /// Argument `.1` points to a path relative to the directory descriptor in argument `.0`.
    At(usize, usize),
}

/// What a call may do to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: killing before it equals killing before the next call that changes something.
    Reads,
    /// Changes content, names or attributes, or makes them durable.
    Changes,
    /// Changes something when its flags (argument `.0`) ask to create or truncate.
    Opens(usize),
    /// Nothing; only the commands (argument `.0`) that lock concern the file at all, the others the descriptor.
    Locks(usize),
    /// As `Opens`, the flags being the first word of the structure argument `.0` points to (`openat2`).
    OpensHow(usize),
}

/// One system call of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its number on this machine.
    pub(crate) number: c_long,
    /// Its name.
    pub(crate) name: &'static str,
    /// The files it names.
    pub(crate) names: &'static [Names],
    /// What it may change.
    pub(crate) effect: Effect,
    /// The argument that holds how many bytes it writes, where it is one that writes.
    pub(crate) length: Option<usize>,
}

/// The row of a call, if it is one that counts.
pub(crate) fn known(number: u64, arguments: &[u64; 6]) -> Option<&'static Known> {
    let row = TABLE.iter().find(|row| row.number as u64 == number)?;
    match row.effect {
        Effect::Locks(command) => LOCKING.contains(&(arguments[command] as i32)).then_some(row),
        Effect::Reads | Effect::Changes | Effect::Opens(_) | Effect::OpensHow(_) => Some(row),
    }
}

const LOCKING: &[i32] = &[libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];

const fn row(
    number: c_long,
    name: &'static str,
    names: &'static [Names],
    effect: Effect,
    length: Option<usize>,
) -> Known {
    Known { number, name, names, effect, length }
}

use Effect::{Changes, Locks, Opens, OpensHow, Reads};
use Names::{At, Descriptor, Path};

/// Calls that would let file-system work pass unseen; meeting one makes a count meaningless.
pub(crate) const BLINDING: &[c_long] = &[libc::SYS_io_uring_setup];

const TABLE: &[Known] = &[
    row(libc::SYS_openat, "openat", &[At(0, 1)], Opens(2), None),
    row(libc::SYS_openat2, "openat2", &[At(0, 1)], OpensHow(2), None),
    row(libc::SYS_read, "read", &[Descriptor(0)], Reads, None),
    row(libc::SYS_readv, "readv", &[Descriptor(0)], Reads, None),
    row(libc::SYS_pread64, "pread64", &[Descriptor(0)], Reads, None),
    row(libc::SYS_getdents64, "getdents64", &[Descriptor(0)], Reads, None),
    row(libc::SYS_readlinkat, "readlinkat", &[At(0, 1)], Reads, None),
    row(libc::SYS_statx, "statx", &[At(0, 1)], Reads, None),
    row(libc::SYS_fstat, "fstat", &[Descriptor(0)], Reads, None),
    row(libc::SYS_newfstatat, "newfstatat", &[At(0, 1)], Reads, None),
    row(libc::SYS_statfs, "statfs", &[Path(0)], Reads, None),
    row(libc::SYS_fstatfs, "fstatfs", &[Descriptor(0)], Reads, None),
    row(libc::SYS_faccessat, "faccessat", &[At(0, 1)], Reads, None),
    row(libc::SYS_faccessat2, "faccessat2", &[At(0, 1)], Reads, None),
    row(libc::SYS_fgetxattr, "fgetxattr", &[Descriptor(0)], Reads, None),
    row(libc::SYS_flistxattr, "flistxattr", &[Descriptor(0)], Reads, None),
    row(libc::SYS_write, "write", &[Descriptor(0)], Changes, Some(2)),
    row(libc::SYS_pwrite64, "pwrite64", &[Descriptor(0)], Changes, Some(2)),
    row(libc::SYS_writev, "writev", &[Descriptor(0)], Changes, None),
    row(libc::SYS_pwritev, "pwritev", &[Descriptor(0)], Changes, None),
    row(libc::SYS_pwritev2, "pwritev2", &[Descriptor(0)], Changes, None),
    row(libc::SYS_copy_file_range, "copy_file_range", &[Descriptor(0), Descriptor(2)], Changes, Some(4)),
    row(libc::SYS_sendfile, "sendfile", &[Descriptor(0), Descriptor(1)], Changes, Some(3)),
    row(libc::SYS_splice, "splice", &[Descriptor(0), Descriptor(2)], Changes, Some(4)),
    row(libc::SYS_ftruncate, "ftruncate", &[Descriptor(0)], Changes, None),
    row(libc::SYS_truncate, "truncate", &[Path(0)], Changes, None),
    row(libc::SYS_fallocate, "fallocate", &[Descriptor(0)], Changes, None),
    row(libc::SYS_fsync, "fsync", &[Descriptor(0)], Changes, None),
    row(libc::SYS_fdatasync, "fdatasync", &[Descriptor(0)], Changes, None),
    row(libc::SYS_syncfs, "syncfs", &[Descriptor(0)], Changes, None),
    row(libc::SYS_sync_file_range, "sync_file_range", &[Descriptor(0)], Changes, None),
    row(libc::SYS_renameat, "renameat", &[At(0, 1), At(2, 3)], Changes, None),
    row(libc::SYS_renameat2, "renameat2", &[At(0, 1), At(2, 3)], Changes, None),
    row(libc::SYS_linkat, "linkat", &[At(0, 1), At(2, 3)], Changes, None),
    row(libc::SYS_symlinkat, "symlinkat", &[At(1, 2)], Changes, None),
    row(libc::SYS_unlinkat, "unlinkat", &[At(0, 1)], Changes, None),
    row(libc::SYS_mkdirat, "mkdirat", &[At(0, 1)], Changes, None),
    row(libc::SYS_mknodat, "mknodat", &[At(0, 1)], Changes, None),
    row(libc::SYS_fchmod, "fchmod", &[Descriptor(0)], Changes, None),
    row(libc::SYS_fchmodat, "fchmodat", &[At(0, 1)], Changes, None),
    row(SYS_FCHMODAT2, "fchmodat2", &[At(0, 1)], Changes, None),
    row(libc::SYS_fchown, "fchown", &[Descriptor(0)], Changes, None),
    row(libc::SYS_fchownat, "fchownat", &[At(0, 1)], Changes, None),
    row(libc::SYS_utimensat, "utimensat", &[At(0, 1)], Changes, None),
    row(libc::SYS_setxattr, "setxattr", &[Path(0)], Changes, None),
    row(libc::SYS_lsetxattr, "lsetxattr", &[Path(0)], Changes, None),
    row(libc::SYS_fsetxattr, "fsetxattr", &[Descriptor(0)], Changes, None),
    row(libc::SYS_removexattr, "removexattr", &[Path(0)], Changes, None),
    row(libc::SYS_fremovexattr, "fremovexattr", &[Descriptor(0)], Changes, None),
    row(libc::SYS_flock, "flock", &[Descriptor(0)], Reads, None),
    row(libc::SYS_fcntl, "fcntl", &[Descriptor(0)], Locks(1), None),
    row(libc::SYS_ioctl, "ioctl", &[Descriptor(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_open, "open", &[Path(0)], Opens(1), None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_creat, "creat", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_stat, "stat", &[Path(0)], Reads, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_lstat, "lstat", &[Path(0)], Reads, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_access, "access", &[Path(0)], Reads, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_readlink, "readlink", &[Path(0)], Reads, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_rename, "rename", &[Path(0), Path(1)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_link, "link", &[Path(0), Path(1)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_symlink, "symlink", &[Path(1)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_unlink, "unlink", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_rmdir, "rmdir", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_mkdir, "mkdir", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_chmod, "chmod", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_chown, "chown", &[Path(0)], Changes, None),
    #[cfg(target_arch = "x86_64")]
    row(libc::SYS_lchown, "lchown", &[Path(0)], Changes, None),
];

/// `fchmodat2` (Linux 6.6); the same number on every architecture.
const SYS_FCHMODAT2: c_long = 452;
