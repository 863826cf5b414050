//! What may go wrong, and when: calls, faults, and the plan that brings them together.

use std::{fmt, io, path::PathBuf, str::FromStr};

use crate::fs::{FileSystem, errno};

/// What a call on the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Opens a file for reading.
    Open,
    /// Reads from an open file.
    Read,
    /// Makes a new file.
    Create,
    /// Opens a file for appending, making it if needed.
    Append,
    /// Writes to an open file.
    Write,
    /// Sets the mode of an open file.
    SetFileMode,
    /// Syncs an open file.
    Sync,
    /// Cuts a file.
    Truncate,
    /// Renames.
    Rename,
    /// Swaps two names.
    Exchange,
    /// Links.
    HardLink,
    /// Copies.
    Copy,
    /// Copies by sharing extents.
    Reflink,
    /// Makes a symbolic link.
    Symlink,
    /// Reads a symbolic link.
    ReadLink,
    /// Removes a file.
    RemoveFile,
    /// Removes a directory.
    RemoveDir,
    /// Makes a directory.
    CreateDir,
    /// Lists a directory.
    List,
    /// Looks at a path.
    Metadata,
    /// Reads extended attributes.
    Xattrs,
    /// Sets owner and extended attributes.
    SetOwnership,
    /// Sets the mode of a path.
    SetMode,
    /// Syncs a directory.
    SyncDir,
    /// Syncs everything.
    SyncAll,
    /// Takes a lock.
    Lock,
    /// Asks for free space.
    Space,
    /// An effect beside the disk, such as a commit of the catalog or a word to the service.
    Other,
}

impl Op {
    /// Whether it changes anything, so that a crash before it differs from one after it.
    pub fn is_effect(self) -> bool {
        match self {
            Self::Create
            | Self::Append
            | Self::Write
            | Self::SetFileMode
            | Self::Sync
            | Self::Truncate
            | Self::Rename
            | Self::Exchange
            | Self::HardLink
            | Self::Copy
            | Self::Reflink
            | Self::Symlink
            | Self::RemoveFile
            | Self::RemoveDir
            | Self::CreateDir
            | Self::SetOwnership
            | Self::SetMode
            | Self::SyncDir
            | Self::SyncAll
            | Self::Lock
            | Self::Other => true,
            Self::Open
            | Self::Read
            | Self::ReadLink
            | Self::List
            | Self::Metadata
            | Self::Xattrs
            | Self::Space => false,
        }
    }

    /// Whether the real disk needs several system calls for it, or one that may be half done.
    pub fn has_halves(self) -> bool {
        matches!(
            self,
            Self::Create | Self::CreateDir | Self::Write | Self::Truncate | Self::Copy | Self::SetOwnership
        )
    }

    /// Whether it makes something durable.
    pub fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::SyncDir | Self::SyncAll | Self::Truncate)
    }
}

/// One call as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which call it is, from 0.
    pub index: u64,
    /// What it does.
    pub op: Op,
    /// On what.
    pub path: PathBuf,
    /// The second path of those that have two; the target of a symbolic link.
    pub to: Option<PathBuf>,
    /// How many bytes it writes.
    pub bytes: usize,
    /// The last note made before it; see [`crate::FaultDisk::note`].
    pub note: &'static str,
}

impl Call {
    /// Whether it names `path`, at either end.
    pub fn names(&self, path: &str) -> bool {
        self.path.as_os_str() == path || self.to.as_ref().is_some_and(|to| to.as_os_str() == path)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {:?} `{}`", self.index, self.op, self.path.display())?;
        if let Some(to) = &self.to {
            write!(f, " -> `{}`", to.display())?;
        }
        if self.op == Op::Write {
            write!(f, " {} bytes", self.bytes)?;
        }
        if self.note.is_empty() { Ok(()) } else { write!(f, " ({})", self.note) }
    }
}

/// An error the kernel may answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errno {
    /// The device failed.
    Eio,
    /// No space, or no inode.
    Enospc,
    /// The file system was remounted read-only, as ext4 does after an error.
    Erofs,
    /// Over the quota.
    Edquot,
    /// Too many open files.
    Emfile,
    /// Not allowed.
    Eacces,
    /// A signal came.
    Eintr,
}

impl Errno {
    /// The error as the standard library presents it.
    pub fn error(self) -> io::Error {
        errno(match self {
            Self::Eio => libc::EIO,
            Self::Enospc => libc::ENOSPC,
            Self::Erofs => libc::EROFS,
            Self::Edquot => libc::EDQUOT,
            Self::Emfile => libc::EMFILE,
            Self::Eacces => libc::EACCES,
            Self::Eintr => libc::EINTR,
        })
    }

    /// Whether a call may fail so.
    pub fn can_hit(self, op: Op) -> bool {
        let grows = matches!(
            op,
            Op::Create
                | Op::Append
                | Op::Write
                | Op::Rename
                | Op::HardLink
                | Op::Copy
                | Op::Reflink
                | Op::Symlink
                | Op::CreateDir
                | Op::SetOwnership
                | Op::Lock
                | Op::Other
        );
        match self {
            Self::Eio => true,
            Self::Enospc | Self::Edquot => grows,
            Self::Erofs => op.is_effect() && !matches!(op, Op::Sync | Op::SyncDir | Op::SyncAll | Op::Other),
            Self::Emfile => matches!(
                op,
                Op::Open
                    | Op::Create
                    | Op::Append
                    | Op::Copy
                    | Op::Reflink
                    | Op::List
                    | Op::Truncate
                    | Op::SyncDir
                    | Op::Lock
            ),
            Self::Eacces => {
                !matches!(op, Op::Read | Op::Write | Op::Sync | Op::SyncAll | Op::Space | Op::Other)
            }
            Self::Eintr => matches!(op, Op::Read | Op::Write),
        }
    }
}

/// How the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Death {
    /// By a signal: the page cache survives.
    Kill,
    /// The machine goes down; the seed says what survives of what was not synced. See
    /// [`FileSystem::after_power_cut`].
    PowerCut {
        /// The seed.
        seed: u64,
    },
}

/// When, relative to a call, the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Nothing of the call happened.
    Before,
    /// Half of the bytes were written, or the first of the system calls that make up the call was made.
    During,
    /// The call happened; nobody heard of it.
    After,
}

/// How often an error comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lasting {
    /// Only this call fails.
    Once,
    /// From here on every call that may fail so does.
    Forever,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process dies.
    Crash(Moment, Death),
    /// The call fails and does nothing.
    Error(Errno, Lasting),
    /// The call does its work and reports an error all the same.
    DoneButError(Errno),
    /// A write takes half of the bytes.
    ShortWrite,
    /// A sync fails, and later ones succeed without writing what this one should have.
    FsyncLie,
}

impl Fault {
    /// Whether it makes sense at a call of this kind.
    pub fn can_hit(self, op: Op) -> bool {
        match self {
            Self::Crash(Moment::Before | Moment::After, _) => op.is_effect(),
            Self::Crash(Moment::During, _) => op.has_halves(),
            // A call that is interrupted for ever is tried again for ever.
            Self::Error(Errno::Eintr, Lasting::Forever) => false,
            Self::Error(errno, _) => errno.can_hit(op),
            Self::DoneButError(errno) => {
                errno.can_hit(op) && op.is_effect() && !matches!(op, Op::Create | Op::Append | Op::Lock)
            }
            Self::ShortWrite => op == Op::Write,
            Self::FsyncLie => matches!(op, Op::Sync | Op::SyncAll | Op::Truncate),
        }
    }
}

type Script = Box<dyn FnMut(&Call, &mut FileSystem) -> Option<Fault> + Send>;

/// Decides for each call whether and how it goes wrong.
pub struct Faults {
    script: Script,
    lasting: Option<Errno>,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::script(|_, _| None)
    }

    /// One fault at call `index`.
    pub fn at(index: u64, fault: Fault) -> Self {
        Self::script(move |call, _| (call.index == index).then_some(fault))
    }

    /// Whatever `script` says; it sees the call before it happens, and the file system as it is then, which it may change as
    /// another program or a failing disk would.
    pub fn script(script: impl FnMut(&Call, &mut FileSystem) -> Option<Fault> + Send + 'static) -> Self {
        Self { script: Box::new(script), lasting: None }
    }

    /// The fault for one call. An error that lasts hits every call it can, whatever else is planned.
    pub(crate) fn decide(&mut self, call: &Call, fs: &mut FileSystem) -> Option<Fault> {
        let fault = (self.script)(call, fs).filter(|fault| fault.can_hit(call.op));
        if let Some(Fault::Error(errno, Lasting::Forever)) = fault {
            self.lasting = Some(errno);
        }
        let lasting = self.lasting.filter(|errno| errno.can_hit(call.op));
        fault.or(lasting.map(|errno| Fault::Error(errno, Lasting::Forever)))
    }
}

/// Names of faults, for replaying.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(moment, Death::Kill) => write!(f, "kill-{}", moment.name()),
            Self::Crash(moment, Death::PowerCut { seed }) => write!(f, "cut-{}:{seed}", moment.name()),
            Self::Error(errno, Lasting::Once) => write!(f, "{}-once", errno.name()),
            Self::Error(errno, Lasting::Forever) => write!(f, "{}-forever", errno.name()),
            Self::DoneButError(errno) => write!(f, "{}-done", errno.name()),
            Self::ShortWrite => f.write_str("short-write"),
            Self::FsyncLie => f.write_str("fsync-lie"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, seed) = match text.split_once(':') {
            Some((name, seed)) => (name, seed.parse().map_err(|_| format!("`{seed}` is no seed"))?),
            None => (text, 0),
        };
        let candidates = Moment::ALL
            .iter()
            .flat_map(|moment| {
                [Self::Crash(*moment, Death::Kill), Self::Crash(*moment, Death::PowerCut { seed })]
            })
            .chain(Errno::ALL.iter().flat_map(|errno| {
                let lasting = |lasting| Self::Error(*errno, lasting);
                [lasting(Lasting::Once), lasting(Lasting::Forever), Self::DoneButError(*errno)]
            }))
            .chain([Self::ShortWrite, Self::FsyncLie]);
        candidates
            .into_iter()
            .find(|fault| fault.to_string().split(':').next() == Some(name))
            .ok_or_else(|| format!("`{text}` is no fault"))
    }
}

impl Moment {
    /// All moments.
    pub const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];

    fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }
}

impl Errno {
    /// All errors.
    pub const ALL: [Self; 7] =
        [Self::Eio, Self::Enospc, Self::Erofs, Self::Edquot, Self::Emfile, Self::Eacces, Self::Eintr];

    fn name(self) -> &'static str {
        match self {
            Self::Eio => "eio",
            Self::Enospc => "enospc",
            Self::Erofs => "erofs",
            Self::Edquot => "edquot",
            Self::Emfile => "emfile",
            Self::Eacces => "eacces",
            Self::Eintr => "eintr",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_that_leads_back_to_it() {
        let death = Death::PowerCut { seed: 7 };
        let mut faults = vec![Fault::ShortWrite, Fault::FsyncLie];
        faults.extend(Moment::ALL.map(|moment| Fault::Crash(moment, death)));
        faults.extend(Moment::ALL.map(|moment| Fault::Crash(moment, Death::Kill)));
        faults.extend(Errno::ALL.map(Fault::DoneButError));
        faults.extend(Errno::ALL.map(|errno| Fault::Error(errno, Lasting::Once)));
        faults.extend(Errno::ALL.map(|errno| Fault::Error(errno, Lasting::Forever)));
        for fault in faults {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
    }
}
