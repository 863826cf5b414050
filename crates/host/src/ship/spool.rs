//! The spool: what lies in it, whether somebody still writes it, and how an entry is taken away.
//!
//! An entry is `<episode>.tar.zst`, an archive, or `<episode>/`, a folder to be packed. Names that start with a dot or end in
//! `.tmp` or `.part`, links, and everything else are left alone. What an entry is made of is told by its [`Print`]: names, kinds,
//! sizes, inodes and times, without reading a content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cutover_core::{
    admission::{EpisodeKey, HostId},
    model::{Digest, Hasher},
};

use super::settings::SpoolLayout;
use crate::disk::{Disk as _, EntryKind, Metadata, RealDisk};

/// Everything of ours in a spool; a name that no episode has.
pub(super) const OWN: &str = ".cutover-ship";
/// What ends the name of an archive.
const ARCHIVE: &str = ".tar.zst";
/// The most directories in directories of one episode.
const DEPTH_MAX: usize = 64;

/// An episode in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the spool.
    pub(super) path: String,
    pub(super) stream: String,
    pub(super) key: EpisodeKey,
    pub(super) kind: Kind,
}

/// What an episode is in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Archive,
    Folder,
}

/// What lies in a spool.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    /// Names that look like episodes and are none, and streams that cannot be listed, with the reason.
    pub(super) odd: BTreeMap<String, String>,
}

/// What an entry is made of, as far as it can be told without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print {
    /// Of everything, times of attribute changes included.
    pub(super) strict: Digest,
    /// Without what moving the entry changes.
    pub(super) moved: Digest,
    /// Time of the last change of the entry itself, in nanoseconds since the epoch.
    pub(super) modified_ns: i128,
}

/// Why an entry cannot be an episode, however often it is looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// It is gone.
    #[error("its local copy is gone")]
    Gone,
    /// It holds something that no archive can.
    #[error("{0}")]
    Poison(String),
    /// It cannot be read now.
    #[error("failed to {attempt} `{path}`")]
    Io {
        attempt: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

impl EntryError {
    pub(super) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { attempt, path, source }
    }
}

/// A file or directory of a folder, below the spool.
pub(super) struct Member {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
}

/// A directory that episodes are put into.
pub(super) struct Spool {
    pub(super) disk: Arc<RealDisk>,
    layout: SpoolLayout,
    host: HostId,
}

impl Spool {
    pub(super) fn new(disk: Arc<RealDisk>, layout: SpoolLayout, host: HostId) -> Self {
        Self { disk, layout, host }
    }

    /// Everything that is an episode by its name and kind. A stream that cannot be listed keeps no other one back; the spool
    /// itself must be listed.
    pub(super) fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        match self.layout {
            SpoolLayout::Flat => self.list_stream("", "", &self.host, &mut listing)?,
            SpoolLayout::Streams | SpoolLayout::Hosts => {
                for (name, kind) in names(&self.disk.root())? {
                    if kind != EntryKind::Directory || name.starts_with('.') {
                        continue;
                    }
                    let host = match self.layout {
                        SpoolLayout::Hosts => name.parse(),
                        SpoolLayout::Flat | SpoolLayout::Streams => Ok(self.host.clone()),
                    };
                    let listed = match host {
                        Ok(host) => self
                            .list_stream(&name, &name, &host, &mut listing)
                            .map_err(|error| format!("it cannot be listed: {error}")),
                        Err(error) => Err(error.to_string()),
                    };
                    if let Err(reason) = listed {
                        listing.odd.insert(name, reason);
                    }
                }
            }
        }
        Ok(listing)
    }

    fn list_stream(&self, below: &str, stream: &str, host: &HostId, listing: &mut Listing) -> io::Result<()> {
        let found = match names(&self.disk.root().join(below)) {
            // The stream may be gone since its directory was seen.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !below.is_empty() => return Ok(()),
            found => found?,
        };
        for (name, kind) in found {
            if name.starts_with('.') || name.ends_with(".tmp") || name.ends_with(".part") {
                continue;
            }
            let (episode, kind) = match (kind, name.strip_suffix(ARCHIVE)) {
                (EntryKind::File, Some(episode)) => (episode, Kind::Archive),
                (EntryKind::Directory, None) => (name.as_str(), Kind::Folder),
                _ => continue,
            };
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            match EpisodeKey::new(host.as_str(), episode) {
                Ok(key) => listing.entries.push(Entry { path, stream: stream.to_owned(), key, kind }),
                Err(error) => drop(listing.odd.insert(path, error.to_string())),
            }
        }
        Ok(())
    }

    /// What an entry is made of now.
    pub(super) fn print(&self, path: &str, kind: Kind) -> Result<Print, EntryError> {
        let path = Path::new(path);
        let metadata = self.metadata(path)?;
        let (mut strict, mut moved) = (Hasher::new(), Hasher::new());
        match (kind, metadata.kind) {
            (Kind::Archive, EntryKind::File) => {
                moved.update(line(&metadata, b"").as_bytes());
                strict.update(line(&metadata, b"").as_bytes());
                strict.update(&metadata.changed_ns.to_le_bytes());
            }
            (Kind::Folder, EntryKind::Directory) => {
                for member in self.members(path)? {
                    let below = member.path.strip_prefix(path).expect("members lie below their folder");
                    let below = below.as_os_str().as_encoded_bytes();
                    for hasher in [&mut strict, &mut moved] {
                        hasher.update(line(&member.metadata, below).as_bytes());
                        hasher.update(&member.metadata.changed_ns.to_le_bytes());
                    }
                }
            }
            _ => return Err(EntryError::Gone),
        }
        Ok(Print { strict: strict.finish(), moved: moved.finish(), modified_ns: metadata.modified_ns })
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, EntryError> {
        self.disk.metadata(path).map_err(EntryError::io("look at", path))?.ok_or(EntryError::Gone)
    }

    /// Everything in a folder in the order of an archive: `meta.json` first, then by the bytes of the path.
    pub(super) fn members(&self, folder: &Path) -> Result<Vec<Member>, EntryError> {
        let mut members = Vec::new();
        self.collect(folder, 0, &mut members)?;
        let first = folder.join(cutover_bundle::episode::META_NAME);
        members.sort_by(|one, other| {
            let rank =
                |member: &Member| (member.path != first, member.path.as_os_str().as_encoded_bytes().to_vec());
            rank(one).cmp(&rank(other))
        });
        Ok(members)
    }

    fn collect(&self, directory: &Path, depth: usize, members: &mut Vec<Member>) -> Result<(), EntryError> {
        let poison = |path: &Path, what: &str| EntryError::Poison(format!("`{}` {what}", path.display()));
        if depth > DEPTH_MAX {
            return Err(poison(directory, "lies too deep"));
        }
        let listed = self.disk.list(directory).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => EntryError::Gone,
            io::ErrorKind::InvalidData => poison(directory, &format!("cannot be listed: {source}")),
            _ => EntryError::Io { attempt: "list", path: directory.display().to_string(), source },
        })?;
        for (name, _) in listed {
            let path = directory.join(name);
            let metadata = self.metadata(&path)?;
            match metadata.kind {
                EntryKind::File | EntryKind::Symlink => members.push(Member { path, metadata }),
                EntryKind::Directory => {
                    members.push(Member { path: path.clone(), metadata });
                    self.collect(&path, depth + 1, members)?;
                }
                EntryKind::Other => return Err(poison(&path, "is a device, a socket or a pipe")),
            }
        }
        Ok(())
    }

    /// Takes an entry away if it still is what `print` says; it is moved aside first, so that nothing that was put into its
    /// place meanwhile is touched. True when it, or what was left of it, is gone.
    pub(super) fn remove(
        &self,
        path: &str,
        kind: Kind,
        number: i64,
        print: &Print,
    ) -> Result<bool, EntryError> {
        let aside = format!("{OWN}/removing/{number}");
        match self.print(path, kind) {
            Ok(present) if present.strict == print.strict => {
                self.disk
                    .rename(Path::new(path), Path::new(&aside))
                    .map_err(EntryError::io("move", Path::new(path)))?;
            }
            Ok(_) => return Ok(false),
            Err(EntryError::Gone) => {}
            Err(other) => return Err(other),
        }
        self.remove_aside(path, kind, number, print)
    }

    /// The second half of [`Self::remove`], also after a crash in it.
    fn remove_aside(&self, path: &str, kind: Kind, number: i64, print: &Print) -> Result<bool, EntryError> {
        let aside = format!("{OWN}/removing/{number}");
        match self.print(&aside, kind) {
            Ok(moved) if moved.moved == print.moved => {}
            Ok(_) => return self.put_back(path, &aside),
            Err(EntryError::Gone) => return Ok(true),
            Err(other) => return Err(other),
        }
        // The name says from here on that it may be removed whatever is left of it.
        let trash = format!("{OWN}/trash/{number}");
        self.disk
            .rename(Path::new(&aside), Path::new(&trash))
            .map_err(EntryError::io("move", Path::new(&aside)))?;
        self.remove_tree(Path::new(&trash)).map_err(EntryError::io("remove", Path::new(&trash)))?;
        Ok(true)
    }

    /// Something was changed while it was moved: it goes back, unless its place is taken; then it stays where it is.
    fn put_back(&self, path: &str, aside: &str) -> Result<bool, EntryError> {
        self.disk
            .rename_to_free(Path::new(aside), Path::new(path))
            .map_err(EntryError::io("move back", Path::new(aside)))?;
        Ok(false)
    }

    /// Removes a tree, or what is left of it.
    pub(super) fn remove_tree(&self, path: &Path) -> io::Result<()> {
        match self.disk.metadata(path)? {
            None => Ok(()),
            Some(metadata) if metadata.kind == EntryKind::Directory => {
                for (name, _) in names(&self.disk.root().join(path))? {
                    self.remove_tree(&path.join(name))?;
                }
                self.disk.remove_dir(path)
            }
            Some(_) => self.disk.remove_file(path),
        }
    }

    /// Makes the directories of our own, and finishes removals that were cut off.
    pub(super) fn prepare(&self) -> io::Result<()> {
        for directory in ["", "packed", "removing", "trash"] {
            let path = Path::new(OWN).join(directory);
            match self.disk.create_dir(&path, 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        // Also when they were there: whoever made them may have been killed before this. What is moved into them must not get lost.
        self.disk.sync_dir(Path::new(""))?;
        self.disk.sync_dir(Path::new(OWN))?;
        let trash = Path::new(OWN).join("trash");
        for (name, _) in names(&self.disk.root().join(&trash))? {
            self.remove_tree(&trash.join(name))?;
        }
        Ok(())
    }
}

/// One member in a print.
fn line(metadata: &Metadata, path: &[u8]) -> String {
    let Metadata { kind, size, mode, inode, modified_ns, .. } = metadata;
    let size = if *kind == EntryKind::Directory { 0 } else { *size };
    format!("{path:?} {kind:?} {size} {mode:o} {inode} {modified_ns}\n")
}

/// The names in a directory of the spool, sorted; those that are no UTF-8 are no episodes.
fn names(directory: &Path) -> io::Result<Vec<(String, EntryKind)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_file() => EntryKind::File,
            Ok(kind) if kind.is_dir() => EntryKind::Directory,
            Ok(kind) if kind.is_symlink() => EntryKind::Symlink,
            Ok(_) => EntryKind::Other,
            // It is gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, kind));
        }
    }
    names.sort();
    Ok(names)
}

/// Which entries have been left alone long enough. In memory only: after a restart everything settles anew.
#[derive(Default)]
pub(super) struct Settling {
    seen: BTreeMap<String, (Print, Duration)>,
}

impl Settling {
    /// Whether an entry that is `print` at `now` (since any fixed time) has been so for `settle`.
    pub(super) fn is_settled(&mut self, path: &str, print: &Print, now: Duration, settle: Duration) -> bool {
        if settle.is_zero() {
            return true;
        }
        match self.seen.get(path) {
            Some((seen, since)) if seen == print => now.saturating_sub(*since) >= settle,
            _ => {
                self.seen.insert(path.to_owned(), (print.clone(), now));
                false
            }
        }
    }

    /// Forgets all but these.
    pub(super) fn keep(&mut self, paths: &BTreeSet<&str>) {
        self.seen.retain(|path, _| paths.contains(path.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn spool(layout: SpoolLayout) -> (tempfile::TempDir, Spool) {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
        let spool = Spool::new(disk, layout, "h".parse().unwrap());
        spool.prepare().unwrap();
        (directory, spool)
    }

    fn folder(spool: &Path, name: &str) {
        fs::create_dir_all(spool.join(name).join("sub")).unwrap();
        fs::write(spool.join(name).join("meta.json"), "{}").unwrap();
        fs::write(spool.join(name).join("sub/data"), "data").unwrap();
    }

    #[test]
    fn stream_that_cannot_be_listed_keeps_no_other_back() {
        let directory = tempfile::tempdir().unwrap();
        // The path of a stream with a long name is longer than any path may be; root may not list it either.
        let mut root = directory.path().to_owned();
        while root.as_os_str().len() < 3960 {
            let left = 3980 - root.as_os_str().len();
            root.push("d".repeat(left.min(200)));
        }
        fs::create_dir_all(&root).unwrap();
        let opened = fs::File::open(&root).unwrap();
        let long = "s".repeat(250);
        for name in [long.as_str(), "a", "t", "t/e"] {
            rustix::fs::mkdirat(&opened, name, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        }
        let disk = Arc::new(RealDisk::open(&root).unwrap());
        let listing = Spool::new(disk, SpoolLayout::Streams, "h".parse().unwrap()).list().unwrap();
        assert_eq!(listing.entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["t/e"]);
        assert!(listing.odd[&long].starts_with("it cannot be listed"), "{:?}", listing.odd);
    }

    // I35
    #[test]
    fn only_whole_episodes_are_listed() {
        let (directory, spool) = spool(SpoolLayout::Flat);
        let path = directory.path();
        folder(path, "e1");
        for name in
            ["e2.tar.zst", ".x.tar.zst", "x.tar.zst.tmp", "y.tar.zst.part", "notes.txt", "a b.tar.zst"]
        {
            fs::write(path.join(name), "x").unwrap();
        }
        fs::create_dir(path.join("e3.tar.zst")).unwrap();
        fs::create_dir(path.join("e4.tmp")).unwrap();
        symlink("e1", path.join("e5")).unwrap();
        symlink("e2.tar.zst", path.join("e6.tar.zst")).unwrap();
        let listing = spool.list().unwrap();
        let found: Vec<_> = listing.entries.iter().map(|entry| (entry.key.to_string(), entry.kind)).collect();
        assert_eq!(found, [("h/e1".to_owned(), Kind::Folder), ("h/e2".to_owned(), Kind::Archive)]);
        assert_eq!(listing.odd.keys().collect::<Vec<_>>(), ["a b.tar.zst"]);
    }

    // I26
    #[test]
    fn first_level_is_streams_or_hosts_when_the_settings_say_so() {
        for (layout, keys) in
            [(SpoolLayout::Streams, ["h/e1", "h/e2"]), (SpoolLayout::Hosts, ["a/e1", "b/e2"])]
        {
            let (directory, spool) = spool(layout);
            folder(directory.path(), "a/e1");
            folder(directory.path(), "b/e2");
            fs::write(directory.path().join("e3.tar.zst"), "no stream").unwrap();
            let found = spool.list().unwrap().entries;
            assert_eq!(found.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>(), keys);
            assert_eq!(found.iter().map(|entry| entry.stream.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        }
    }

    #[test]
    fn entry_settles_once_nothing_in_it_changes() {
        let (directory, spool) = spool(SpoolLayout::Flat);
        folder(directory.path(), "e1");
        let at = Duration::from_secs;
        let mut settling = Settling::default();
        let mut look =
            |now| settling.is_settled("e1", &spool.print("e1", Kind::Folder).unwrap(), at(now), at(5));
        assert!(!look(0));
        assert!(!look(4));
        fs::write(directory.path().join("e1/sub/data"), "data and more").unwrap();
        assert!(!look(6), "deep inside something changed");
        assert!(!look(10));
        assert!(look(11));
    }

    #[test]
    fn meta_json_comes_first_and_special_files_are_poison() {
        let (directory, spool) = spool(SpoolLayout::Flat);
        folder(directory.path(), "e1");
        fs::write(directory.path().join("e1/a"), "").unwrap();
        let members = spool.members(Path::new("e1")).unwrap();
        let paths: Vec<_> = members.iter().map(|member| member.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["e1/meta.json", "e1/a", "e1/sub", "e1/sub/data"]);
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("e1/socket")).unwrap();
        assert!(matches!(spool.members(Path::new("e1")), Err(EntryError::Poison(_))));
    }

    #[test]
    fn only_what_was_shipped_is_removed() {
        let (directory, spool) = spool(SpoolLayout::Flat);
        for (number, kind, name) in [(1, Kind::Folder, "e1"), (2, Kind::Archive, "e2.tar.zst")] {
            let make = || match kind {
                Kind::Folder => folder(directory.path(), name),
                Kind::Archive => fs::write(directory.path().join(name), "x").unwrap(),
            };
            make();
            let print = spool.print(name, kind).unwrap();
            assert!(spool.remove(name, kind, number, &print).unwrap());
            assert!(!directory.path().join(name).exists());
            assert!(spool.remove(name, kind, number, &print).unwrap(), "again, after a crash");

            make();
            let inner = if kind == Kind::Folder { "e1/new" } else { name };
            fs::write(directory.path().join(inner), "something else").unwrap();
            assert!(!spool.remove(name, kind, number, &print).unwrap());
            assert!(directory.path().join(name).exists());
        }
    }

    #[test]
    fn removal_that_was_cut_off_is_finished_and_a_changed_entry_put_back() {
        let (directory, spool) = spool(SpoolLayout::Flat);
        folder(directory.path(), "e1");
        let print = spool.print("e1", Kind::Folder).unwrap();
        let aside = directory.path().join(OWN).join("removing/1");
        fs::rename(directory.path().join("e1"), &aside).unwrap();
        assert!(spool.remove("e1", Kind::Folder, 1, &print).unwrap());
        assert!(!aside.exists());

        folder(directory.path(), "e1");
        fs::rename(directory.path().join("e1"), &aside).unwrap();
        assert!(!spool.remove("e1", Kind::Folder, 1, &print).unwrap());
        assert!(directory.path().join("e1/meta.json").exists() && !aside.exists());

        fs::create_dir(directory.path().join(OWN).join("trash/7")).unwrap();
        spool.prepare().unwrap();
        assert!(!directory.path().join(OWN).join("trash/7").exists());
    }
}
