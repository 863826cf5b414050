//! The output of a release's processes: one bounded file per release, kept after the release has failed.
//!
//! Processes write into a pipe and we write the file, so its size is bounded exactly, whatever they do. Output that cannot
//! be written (a full disk) is dropped: a service never waits for its log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cutover_core::model::ReleaseName;

/// One release's file.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    size_max: u64,
}

/// The file of `release` below `root`.
pub(super) fn path(root: &Path, release: &ReleaseName) -> PathBuf {
    directory(root).join(format!("{release}.log"))
}

fn directory(root: &Path) -> PathBuf {
    root.join(".cutover/logs")
}

impl Log {
    /// Opens the file of `release` to go on with it. Files of all but the `keep` releases that wrote last are removed.
    pub(super) fn open(root: &Path, release: &ReleaseName, size_max: u64, keep: usize) -> Self {
        let path = path(root, release);
        let opened = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory(root))
            .and_then(|()| append(&path))
            .and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = match opened {
            Ok((size, file)) => (size, Some(file)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the service's output is dropped");
                (0, None)
            }
        };
        if let Err(error) = prune(&directory(root), &path, keep) {
            tracing::warn!(%error, "old logs cannot be removed");
        }
        Self { path, file, size, size_max }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds `bytes`, or drops them when they cannot be written.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.size > 0 && self.size.saturating_add(bytes.len() as u64) > self.size_max {
            self.rotate();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.size = self.size.saturating_add(bytes.len() as u64);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a log is no part of a release: a power cut may cost some of it"
    )]
    fn rotate(&mut self) {
        let rotated =
            fs::rename(&self.path, self.path.with_extension("log.1")).and_then(|()| append(&self.path));
        match rotated {
            Ok(file) => {
                self.file = Some(file);
                self.size = 0;
            }
            Err(error) => {
                // Without a new file there is no bound, so nothing more is written.
                tracing::warn!(path = %self.path.display(), %error, "the log cannot be rotated; output is dropped");
                self.file = None;
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)
}

/// Removes the oldest logs, but never `current`.
#[expect(
    clippy::disallowed_methods,
    reason = "a log is no part of a release, and the paths were just listed"
)]
fn prune(directory: &Path, current: &Path, keep: usize) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "log") && entry.path() != current {
            logs.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    logs.sort();
    logs.reverse();
    for (_, path) in logs.into_iter().skip(keep.saturating_sub(1)) {
        fs::remove_file(&path)?;
        match fs::remove_file(path.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(minor: u32) -> ReleaseName {
        format!("1.{minor}.0-00000000").parse().expect("a release name")
    }

    #[test]
    fn log_is_bounded_by_two_files_of_its_size() {
        let root = tempfile::tempdir().expect("a directory");
        let mut log = Log::open(root.path(), &release(1), 100, 10);
        for number in 0..100 {
            log.write(format!("line {number:04}\n").as_bytes());
        }
        let read = |path: PathBuf| fs::read_to_string(path).expect("a log");
        let now = read(path(root.path(), &release(1)));
        let before = read(path(root.path(), &release(1)).with_extension("log.1"));
        assert!(now.len() <= 100 && before.len() <= 100 && now.ends_with("line 0099\n"));
        assert_eq!(fs::read_dir(root.path().join(".cutover/logs")).expect("logs").count(), 2);
    }

    #[test]
    fn log_goes_on_where_it_was_and_only_the_last_releases_are_kept() {
        let root = tempfile::tempdir().expect("a directory");
        for minor in 0..5 {
            Log::open(root.path(), &release(minor), 100, 3).write(b"once\n");
            let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(minor) + 1);
            let file = File::options().append(true).open(path(root.path(), &release(minor))).expect("a log");
            file.set_modified(at).expect("dated");
        }
        Log::open(root.path(), &release(4), 100, 3).write(b"twice\n");
        let kept: Vec<bool> = (0..5).map(|minor| path(root.path(), &release(minor)).exists()).collect();
        assert_eq!(kept, [false, false, true, true, true]);
        assert_eq!(fs::read_to_string(path(root.path(), &release(4))).expect("a log"), "once\ntwice\n");
    }

    #[test]
    fn log_that_cannot_be_written_drops_output() {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join(".cutover"), "in the way").expect("written");
        Log::open(root.path(), &release(1), 100, 3).write(b"lost\n");
    }
}
