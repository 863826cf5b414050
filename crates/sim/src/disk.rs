//! [`FaultDisk`]: the disk port over a [`FileSystem`] in memory, with faults.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use cutover_core::plan::Copies;
use cutover_host::disk::{Copied, Disk, EntryKind, Locked, Metadata, NewFile, OpenFile, Space};

use crate::{
    fault::{Call, Death, Errno, Fault, Faults, Moment, Op},
    fs::{FileSystem, Ino, Reflinks},
};

/// What every call answers after the crash. The process is dead; only the harness still runs its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated process has died")]
pub struct Crashed;

impl Crashed {
    /// Whether an error says so.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Crashed>)
    }
}

struct State {
    fs: FileSystem,
    faults: Faults,
    trace: Vec<Call>,
    note: &'static str,
    death: Option<Death>,
    hit: Option<Call>,
    /// Files that somebody holds a lock on.
    locked: BTreeSet<Ino>,
}

/// A disk that fails on demand. Clones share one disk, as threads of one process do.
#[derive(Clone)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

/// How a call is carried out once its fault is known.
struct Verdict {
    portion: Portion,
    /// What it answers when its work is done.
    error: Option<io::Error>,
    /// How the process dies right after.
    death: Option<Death>,
}

impl FaultDisk {
    /// Boots from `fs`.
    pub fn new(fs: FileSystem, faults: Faults) -> Self {
        let state = State {
            fs,
            faults,
            trace: Vec::new(),
            note: "",
            death: None,
            hit: None,
            locked: BTreeSet::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Every call so far, in order.
    pub fn trace(&self) -> Vec<Call> {
        self.state().trace.clone()
    }

    /// The call that was hit last by a fault.
    pub fn hit(&self) -> Option<Call> {
        self.state().hit.clone()
    }

    /// Whether the process has died.
    pub fn has_crashed(&self) -> bool {
        self.state().death.is_some()
    }

    /// Whether it died because the machine went down.
    pub fn has_lost_power(&self) -> bool {
        matches!(self.state().death, Some(Death::PowerCut { .. }))
    }

    /// Marks the calls from here on, such as with the name of the step that makes them.
    pub fn note(&self, note: &'static str) {
        self.state().note = note;
    }

    /// The file system as it is now, cache included.
    pub fn image(&self) -> FileSystem {
        self.state().fs.clone()
    }

    /// Changes the file system behind the back of whoever uses the disk.
    pub fn tamper<T>(&self, change: impl FnOnce(&mut FileSystem) -> T) -> T {
        change(&mut self.state().fs)
    }

    /// What the next boot finds: everything after a kill or an orderly end, what survived after a power cut.
    pub fn reboot(&self) -> FileSystem {
        let state = self.state();
        match state.death {
            None | Some(Death::Kill) => state.fs.after_kill(),
            Some(Death::PowerCut { seed }) => state.fs.after_power_cut(seed),
        }
    }

    /// Performs an effect beside the disk as one more point where the process may die. `act` may use the disk.
    ///
    /// # Errors
    /// That of `act`, or [`Crashed`].
    pub fn effect<T>(&self, what: &str, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let verdict = Self::begin(&mut self.state(), Op::Other, Path::new(what), None, 0)?;
        let result = act();
        let mut state = self.state();
        state.death = state.death.or(verdict.death);
        verdict.error.map_or(result, Err)
    }

    /// Counts the call and asks for its fault. An error here means that nothing happens.
    fn begin(state: &mut State, op: Op, path: &Path, to: Option<&Path>, bytes: usize) -> io::Result<Verdict> {
        if state.death.is_some() {
            return Err(io::Error::other(Crashed));
        }
        let call = Call {
            index: state.trace.len() as u64,
            op,
            path: path.to_owned(),
            to: to.map(Path::to_owned),
            bytes,
            note: state.note,
        };
        let fault = state.faults.decide(&call, &mut state.fs);
        if fault.is_some() {
            state.hit = Some(call.clone());
        }
        state.trace.push(call);
        let verdict = |portion, error, death| Ok(Verdict { portion, error, death });
        let crashed = || Some(io::Error::other(Crashed));
        match fault {
            None => verdict(Portion::Whole, None, None),
            Some(Fault::Crash(Moment::Before, death)) => {
                state.death = Some(death);
                Err(io::Error::other(Crashed))
            }
            Some(Fault::Crash(Moment::During, death)) => verdict(Portion::Half, crashed(), Some(death)),
            Some(Fault::Crash(Moment::After, death)) => verdict(Portion::Whole, crashed(), Some(death)),
            Some(Fault::Error(errno, _)) => Err(errno.error()),
            Some(Fault::DoneButError(errno)) => verdict(Portion::Whole, Some(errno.error()), None),
            Some(Fault::ShortWrite) => verdict(Portion::Half, None, None),
            Some(Fault::FsyncLie) => verdict(Portion::Lost, Some(Errno::Eio.error()), None),
        }
    }

    /// Carries out one call with whatever goes wrong with it.
    fn call<T>(
        &self,
        op: Op,
        path: &Path,
        to: Option<&Path>,
        bytes: usize,
        act: impl FnOnce(&mut FileSystem, Portion) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut guard = self.state();
        let verdict = Self::begin(&mut guard, op, path, to, bytes)?;
        let result = act(&mut guard.fs, verdict.portion);
        guard.death = verdict.death;
        match (result, verdict.error) {
            (result, None) => result,
            (Ok(_), Some(error)) => Err(error),
            (Err(_), Some(error)) if Crashed::is(&error) => Err(error),
            (Err(first), Some(_)) => Err(first),
        }
    }
}

/// How much of a call happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Portion {
    Whole,
    Half,
    Lost,
}

impl Portion {
    fn of(self, bytes: usize) -> usize {
        match self {
            Self::Whole | Self::Lost => bytes,
            Self::Half => bytes.div_ceil(2),
        }
    }

    /// The mode of what is created, before the call that overrides the umask.
    fn masked(self, mode: u32) -> u32 {
        match self {
            Self::Whole | Self::Lost => mode,
            Self::Half => mode & !0o077,
        }
    }
}

impl fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "FaultDisk after {} calls", state.trace.len())
    }
}

/// An open file; closed when dropped.
struct Handle {
    disk: FaultDisk,
    path: PathBuf,
    ino: Ino,
    offset: usize,
}

impl Handle {
    fn new(disk: &FaultDisk, path: &Path, ino: Ino) -> Box<Self> {
        Box::new(Self { disk: disk.clone(), path: path.to_owned(), ino, offset: 0 })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.state().fs.close(self.ino);
    }
}

/// A lock that is held; given back when dropped.
struct Lock {
    disk: FaultDisk,
    ino: Ino,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        state.locked.remove(&self.ino);
        state.fs.close(self.ino);
    }
}

impl Read for Handle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (ino, offset) = (self.ino, self.offset);
        let count =
            self.disk.call(Op::Read, &self.path, None, 0, |fs, _| Ok(fs.read(ino, offset, buffer)))?;
        self.offset += count;
        Ok(count)
    }
}

impl OpenFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (ino, offset) = (self.ino, usize::try_from(offset).unwrap_or(usize::MAX));
        self.disk.call(Op::Read, &self.path, None, 0, |fs, _| Ok(fs.read(ino, offset, buffer)))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.disk.call(Op::Metadata, &self.path, None, 0, |fs, _| Ok(fs.metadata_of(self.ino)))
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ino = self.ino;
        self.disk.call(Op::Write, &self.path, None, bytes.len(), |fs, portion| {
            fs.write(ino, &bytes[..portion.of(bytes.len())])
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NewFile for Handle {
    fn set_mode(&mut self, mode: u32) -> io::Result<()> {
        let ino = self.ino;
        self.disk.call(Op::SetFileMode, &self.path, None, 0, |fs, _| {
            fs.set_mode_of(ino, mode);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let ino = self.ino;
        self.disk.call(Op::Sync, &self.path, None, 0, |fs, portion| {
            match portion {
                Portion::Whole | Portion::Half => fs.sync(ino),
                Portion::Lost => fs.lose(ino),
            }
            Ok(())
        })
    }
}

impl Disk for FaultDisk {
    fn root(&self) -> PathBuf {
        PathBuf::from("/simulated")
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile + '_>> {
        let ino = self.call(Op::Open, path, None, 0, |fs, _| fs.open(path))?;
        Ok(Handle::new(self, path, ino))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        let ino =
            self.call(Op::Create, path, None, 0, |fs, portion| fs.create(path, portion.masked(mode)))?;
        Ok(Handle::new(self, path, ino))
    }

    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn NewFile + '_>> {
        let ino = self.call(Op::Append, path, None, 0, |fs, _| fs.append(path, mode))?;
        Ok(Handle::new(self, path, ino))
    }

    fn truncate(&self, path: &Path, size: u64) -> io::Result<()> {
        self.call(Op::Truncate, path, None, 0, |fs, portion| {
            let ino = fs.truncate(path, size)?;
            match portion {
                Portion::Whole => fs.sync(ino),
                Portion::Half => {}
                Portion::Lost => fs.lose(ino),
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Op::Rename, from, Some(to), 0, |fs, _| fs.rename(from, to))
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.call(Op::Exchange, a, Some(b), 0, |fs, _| fs.exchange(a, b))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Op::HardLink, from, Some(to), 0, |fs, _| fs.hard_link(from, to))
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> io::Result<Copied> {
        self.call(Op::Copy, from, Some(to), 0, |fs, portion| match (fs.options().reflinks, portion) {
            (Reflinks::Supported, _) => fs.reflink(from, to, mode).map(|()| Copied::Reflink),
            (Reflinks::Unsupported, Portion::Half) => {
                let size = fs.metadata(from)?.map_or(0, |metadata| metadata.size);
                let half = Portion::Half.of(usize::try_from(size).unwrap_or(usize::MAX));
                fs.copy(from, to, mode, half).map(|()| Copied::Bytes)
            }
            (Reflinks::Unsupported, Portion::Whole | Portion::Lost) => {
                fs.copy(from, to, mode, usize::MAX).map(|()| Copied::Bytes)
            }
        })
    }

    fn reflink(&self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        self.call(Op::Reflink, from, Some(to), 0, |fs, _| fs.reflink(from, to, mode))
    }

    fn symlink(&self, target: &str, link: &Path) -> io::Result<()> {
        self.call(Op::Symlink, link, Some(Path::new(target)), 0, |fs, _| fs.symlink(target, link))
    }

    fn read_link(&self, path: &Path) -> io::Result<String> {
        self.call(Op::ReadLink, path, None, 0, |fs, _| fs.read_link(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(Op::RemoveFile, path, None, 0, |fs, _| fs.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Op::RemoveDir, path, None, 0, |fs, _| fs.remove_dir(path))
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.call(Op::CreateDir, path, None, 0, |fs, portion| fs.create_dir(path, portion.masked(mode)))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, EntryKind)>> {
        self.call(Op::List, path, None, 0, |fs, _| fs.list(path))
    }

    fn metadata(&self, path: &Path) -> io::Result<Option<Metadata>> {
        self.call(Op::Metadata, path, None, 0, |fs, _| fs.metadata(path))
    }

    fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        self.call(Op::Xattrs, path, None, 0, |fs, _| fs.xattrs(path))
    }

    fn set_ownership(
        &self,
        path: &Path,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        self.call(Op::SetOwnership, path, None, 0, |fs, portion| match portion {
            Portion::Whole | Portion::Lost => fs.set_ownership(path, uid, gid, xattrs),
            Portion::Half => {
                let present = fs.xattrs(path)?;
                fs.set_ownership(path, uid, gid, &present)
            }
        })
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.call(Op::SetMode, path, None, 0, |fs, _| fs.set_mode(path, mode))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Op::SyncDir, path, None, 0, |fs, _| fs.sync_dir(path))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.call(Op::SyncAll, Path::new(""), None, 0, |fs, portion| {
            match portion {
                Portion::Whole | Portion::Half => fs.sync_all(),
                Portion::Lost => fs.lose_all(),
            }
            Ok(())
        })
    }

    fn time_ns(&self) -> i128 {
        self.state().fs.time_ns()
    }

    fn lock(&self, path: &Path, note: &str) -> io::Result<Locked> {
        let ino = self.call(Op::Lock, path, None, 0, |fs, _| fs.open_lock(path))?;
        let mut state = self.state();
        if !state.locked.insert(ino) {
            let note = state.fs.note(ino);
            state.fs.close(ino);
            return Ok(Locked::Held { note });
        }
        state.fs.write_note(ino, note);
        let guard: Box<dyn Any + Send + Sync> = Box::new(Lock { disk: self.clone(), ino });
        Ok(Locked::Taken(guard))
    }

    fn copies(&self) -> Copies {
        match self.state().fs.options().reflinks {
            Reflinks::Unsupported => Copies::TakeRoom,
            Reflinks::Supported => Copies::MayShare,
        }
    }

    fn space(&self) -> io::Result<Space> {
        self.call(Op::Space, Path::new(""), None, 0, |fs, _| Ok(fs.space()))
    }
}
