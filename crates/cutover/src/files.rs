//! Files outside installed roots: reading what the operator names, and writing results whole or not at all.
//!
//! Results go through the same disk port as updates do: written aside, flushed, renamed, directory flushed. What is no file,
//! such as a device or a pipe, is written to instead and keeps its name.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write},
    path::{Component, Path, PathBuf},
};

use cutover_host::disk::{Disk as _, NewFile, RealDisk};

use crate::{failure::Failure, output};

/// The largest key, certificate, list or plan that is read, in bytes.
const READ_MAX: u64 = 64 << 20;

/// What to do when there is a file already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Refuse.
    Keep,
    /// Replace it, in one step.
    Replace,
}

/// Reads a small file whole.
///
/// # Errors
/// It cannot be read, or is not small.
pub(crate) fn read(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |source| Failure::io(&format!("read {what}"), path, source);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(READ_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > READ_MAX {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(bytes)
}

/// Writes `path` whole or not at all: `fill` writes aside, and only what is durable gets the name. Of a link, that is the
/// name of the file it leads to; a device or a pipe is written to as it is.
///
/// # Errors
/// Whatever `fill` reports; or the file exists and must be kept, or cannot be written.
pub(crate) fn write(
    path: &Path,
    mode: u32,
    existing: Existing,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |what: &'static str| move |source| Failure::io(what, path, source);
    let target = match (existing, present(path)?) {
        (_, Present::Nothing | Present::File) | (Existing::Keep, _) => path.to_owned(),
        (Existing::Replace, Present::LinkTo(file)) => file,
        (Existing::Replace, Present::Stream) => return write_to(path, fill),
    };
    let path = target.as_path();
    let (directory, name) = split(path)?;
    let disk =
        RealDisk::open(&directory).map_err(|source| Failure::io("open directory", &directory, source))?;
    let is_there = disk.metadata(Path::new(&name)).map_err(failed("look at"))?.is_some();
    if is_there && existing == Existing::Keep {
        return Err(Failure::io("create", path, io::Error::from(io::ErrorKind::AlreadyExists))
            .hint("choose another name, or move the file away"));
    }
    let aside = PathBuf::from(format!(".{name}.{}.tmp", std::process::id()));
    let result = write_aside(&disk, &aside, mode, fill, path)
        .and_then(|()| disk.rename(&aside, Path::new(&name)).map_err(failed("put in place")))
        .and_then(|()| disk.sync_dir(Path::new("")).map_err(failed("flush the directory of")));
    if result.is_err() {
        // The first error is the one to report; a left-over file is named so that it can be recognised.
        let _ = disk.remove_file(&aside);
    }
    result
}

/// Makes the directory `path` whole or not at all: `fill` gets one beside it, which has the name only once it is filled.
///
/// # Errors
/// Whatever `fill` reports; or the directory cannot be made. Then nothing is left of it.
pub(crate) fn write_directory(
    path: &Path,
    fill: impl FnOnce(&RealDisk) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |source| Failure::io("write", path, source);
    let (directory, name) = split(path)?;
    make_directory(&directory, 0o755)?;
    let prefix = format!(".{name}.");
    // It is removed with whatever is in it when this function is left.
    let aside =
        tempfile::Builder::new().prefix(&prefix).suffix(".tmp").tempdir_in(&directory).map_err(failed)?;
    let Some(aside_name) = aside.path().file_name() else {
        return Err(failed(io::ErrorKind::NotFound.into()));
    };
    let disk = RealDisk::open(&directory).map_err(failed)?;
    let made = Path::new(aside_name).join(&name);
    disk.create_dir(&made, 0o755).map_err(failed)?;
    fill(&RealDisk::open(&directory.join(&made)).map_err(failed)?)?;
    disk.rename(&made, Path::new(&name)).map_err(failed)?;
    disk.sync_dir(Path::new("")).map_err(failed)
}

/// What has a name already.
enum Present {
    Nothing,
    File,
    /// A link to this file.
    LinkTo(PathBuf),
    /// A device, a pipe, or a link to one: replacing it would break whoever uses it.
    Stream,
}

/// # Errors
/// It cannot be looked at, or nothing could be written there.
fn present(path: &Path) -> Result<Present, Failure> {
    let failed = |source| Failure::io("look at", path, source);
    let refused = |what: &str| Err(Failure::usage(format!("`{}` is {what}", path.display())));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.is_file() => return Ok(Present::File),
        Ok(_) => {}
    }
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => refused("a link to nothing"),
        Err(error) => Err(failed(error)),
        Ok(metadata) if metadata.is_dir() => refused("a directory"),
        Ok(metadata) if metadata.is_file() => fs::canonicalize(path).map(Present::LinkTo).map_err(failed),
        Ok(_) => Ok(Present::Stream),
    }
}

fn write_to(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |source| Failure::io("write", path, source);
    let file = File::options().write(true).open(path).map_err(failed)?;
    output::takes(&file.metadata().map_err(failed)?);
    let mut buffered = BufWriter::with_capacity(1 << 17, file);
    fill(&mut buffered)?;
    buffered.flush().map_err(failed)
}

fn write_aside(
    disk: &RealDisk,
    aside: &Path,
    mode: u32,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
    path: &Path,
) -> Result<(), Failure> {
    let failed = |source| Failure::io("write", path, source);
    let _ = disk.remove_file(aside);
    let mut buffered = BufWriter::with_capacity(1 << 17, disk.create(aside, 0o600).map_err(failed)?);
    fill(&mut buffered)?;
    let mut file: Box<dyn NewFile + '_> =
        buffered.into_inner().map_err(|error| failed(error.into_error()))?;
    file.set_mode(mode).map_err(failed)?;
    file.sync().map_err(failed)
}

/// Makes a directory, with those above it. Each is flushed before the next is made, so of those that are there only the
/// innermost may be what a killed process left without a flush: its name is flushed, too.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    let failed = |source| Failure::io("make directory", path, source);
    if path.is_dir() {
        // A path such as `.` or `/` has no name to flush.
        let Ok((directory, _)) = split(path) else { return Ok(()) };
        return match RealDisk::open(&directory).and_then(|disk| disk.sync_dir(Path::new(""))) {
            // What this process may not even read, it did not make anything in.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            flushed => flushed.map_err(failed),
        };
    }
    let (directory, name) = split(path)?;
    make_directory(&directory, 0o755)?;
    let disk = RealDisk::open(&directory).map_err(failed)?;
    disk.create_dir(Path::new(&name), mode).map_err(failed)?;
    disk.sync_dir(Path::new("")).map_err(failed)
}

/// A path that is written where only text has room, such as in journals and messages; `what` lies there.
///
/// # Errors
/// It is not UTF-8.
pub(crate) fn text<'p>(what: &str, path: &'p Path) -> Result<&'p str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::usage(format!("the path of {what} `{}` is not UTF-8", path.display()))
            .hint("rename what is not, or choose another place")
    })
}

/// Where a path leads, also when its end is not there yet: links are followed as far as there are any.
///
/// # Errors
/// Some of it cannot be looked at.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |source| Failure::io("look at", path, source);
    let mut at = PathBuf::new();
    for component in std::path::absolute(path).map_err(failed)?.components() {
        match component {
            Component::ParentDir => drop(at.pop()),
            component => at.push(component),
        }
        match fs::canonicalize(&at) {
            Ok(real) => at = real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(at)
}

/// The directory of a path, and its last component.
fn split(path: &Path) -> Result<(PathBuf, String), Failure> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| Failure::usage(format!("`{}` is no name of a file", path.display())))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    Ok((directory, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use super::*;

    fn put(path: &Path, existing: Existing) -> Result<(), Failure> {
        write(path, 0o644, existing, |out| {
            out.write_all(b"new").map_err(|source| Failure::io("write", path, source))
        })
    }

    #[test]
    fn link_stays_and_its_file_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        fs::write(&file, "old").expect("written");
        symlink("file", &link).expect("linked");
        put(&link, Existing::Replace).expect("written");
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).expect("read"), b"new");
        put(&link, Existing::Keep).expect_err("there is something");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 2);
    }

    #[test]
    fn pipe_is_written_to_and_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("made");
        let link = directory.path().join("link");
        symlink("pipe", &link).expect("linked");
        for path in [&pipe, &link] {
            let reader = std::thread::spawn({
                let pipe = pipe.clone();
                move || fs::read(pipe).expect("read")
            });
            put(path, Existing::Replace).expect("written");
            assert_eq!(reader.join().expect("no panic"), b"new");
            assert!(fs::symlink_metadata(&pipe).expect("there").file_type().is_fifo());
        }
    }

    #[test]
    fn directory_and_link_to_nothing_are_wrong_usage() {
        let directory = tempfile::tempdir().expect("a directory");
        let link = directory.path().join("link");
        symlink("nowhere", &link).expect("linked");
        for path in [directory.path(), &link] {
            assert_eq!(put(path, Existing::Replace).expect_err("refused").exit(), crate::exit::Exit::Usage);
        }
        assert!(link.is_symlink());
    }

    #[test]
    fn path_is_followed_as_far_as_it_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = fs::canonicalize(directory.path()).expect("there");
        fs::create_dir(base.join("real")).expect("made");
        symlink("real", base.join("link")).expect("linked");
        let leads = |path: &str| resolved(&directory.path().join(path)).expect("looked at");
        assert_eq!(leads("link/new/deep"), base.join("real/new/deep"));
        assert_eq!(leads("link/../x/./y/../z"), base.join("x/z"));
    }
}
