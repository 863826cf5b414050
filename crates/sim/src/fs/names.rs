//! Names: which inode a path leads to, and changes of names that are not durable yet.

use std::{
    collections::BTreeSet,
    io,
    path::{Component, Path},
    sync::Arc,
};

use super::{
    file_system::{FileSystem, Pending, errno, link_on_the_way},
    inode::{Body, Ino, Name, ROOT},
};

/// Longest name of one directory entry (`NAME_MAX`).
const NAME_MAX: usize = 255;

pub(super) enum Place {
    Root,
    In { directory: Ino, name: Name },
}

impl FileSystem {
    pub(super) fn place(&self, path: &Path) -> io::Result<Place> {
        let mut place = Place::Root;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name.to_str().ok_or_else(|| errno(libc::EILSEQ))?,
                Component::CurDir | Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            };
            let directory = self.at(&place)?;
            self.directory(directory)?;
            place = Place::In { directory, name: name.into() };
        }
        Ok(place)
    }

    pub(super) fn at(&self, place: &Place) -> io::Result<Ino> {
        self.look(place)?.ok_or_else(|| errno(libc::ENOENT))
    }

    pub(super) fn look(&self, place: &Place) -> io::Result<Option<Ino>> {
        match place {
            Place::Root => Ok(Some(ROOT)),
            Place::In { directory, name } => self.named(*directory, name),
        }
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        self.at(&self.place(path)?)
    }

    /// The directory and name of a path other than the root.
    pub(super) fn entry(&self, path: &Path) -> io::Result<(Ino, Name)> {
        match self.place(path)? {
            Place::Root => Err(io::ErrorKind::InvalidInput.into()),
            Place::In { directory, name } => {
                self.directory(directory)?;
                Ok((directory, name))
            }
        }
    }

    pub(super) fn named(&self, directory: Ino, name: &Name) -> io::Result<Option<Ino>> {
        let directory = self.directory(directory)?;
        if name.len() > NAME_MAX {
            return Err(errno(libc::ENAMETOOLONG));
        }
        Ok(directory.cached.get(name).copied())
    }

    pub(super) fn existing(&self, entry: &(Ino, Name)) -> io::Result<Ino> {
        self.named(entry.0, &entry.1)?.ok_or_else(|| errno(libc::ENOENT))
    }

    pub(super) fn vacant(&self, entry: (Ino, Name)) -> io::Result<(Ino, Name)> {
        if self.named(entry.0, &entry.1)?.is_some() { Err(errno(libc::EEXIST)) } else { Ok(entry) }
    }

    pub(super) fn regular(&self, path: &Path) -> io::Result<Ino> {
        let ino = self.find(path)?;
        match self.inode(ino).body {
            Body::File(_) => Ok(ino),
            Body::Directory(_) => Err(io::ErrorKind::InvalidInput.into()),
            Body::Symlink(_) => Err(link_on_the_way()),
        }
    }

    /// Changes names in the cache and remembers that the disk does not know yet.
    pub(super) fn set_names(&mut self, sets: Vec<(Ino, Name, Option<Ino>)>, also_after: &[u64]) -> u64 {
        let now = self.now_ns();
        let mut after: Vec<u64> = self
            .pending
            .iter()
            .filter(|pending| {
                pending.sets.iter().any(|(directory, name, _)| {
                    sets.iter().any(|(other, same, _)| directory == other && name == same)
                })
            })
            .map(|pending| pending.number)
            .collect();
        after.extend_from_slice(also_after);
        for (directory, name, ino) in &sets {
            let names = &mut self.directory_mut(*directory).cached;
            match ino {
                Some(ino) => names.insert(name.clone(), *ino),
                None => names.remove(name),
            };
            self.inode_mut(*directory).attributes.changed_ns = now;
        }
        let number = self.next_pending;
        self.next_pending += 1;
        self.pending.push(Arc::new(Pending { number, sets, after }));
        number
    }

    /// Pending changes that make `directory` and those above it visible at all.
    pub(super) fn changes_above(&self, directory: Ino) -> Vec<u64> {
        let mut wanted = BTreeSet::from([directory]);
        let mut found = Vec::new();
        for pending in self.pending.iter().rev() {
            if pending.sets.iter().any(|(_, _, ino)| ino.is_some_and(|ino| wanted.contains(&ino))) {
                found.push(pending.number);
                wanted.extend(pending.sets.iter().map(|(directory, _, _)| *directory));
            }
        }
        found
    }

    pub(super) fn changes_within(&self, directory: Ino) -> Vec<u64> {
        let within = |pending: &&Arc<Pending>| pending.sets.iter().any(|(ino, _, _)| *ino == directory);
        self.pending.iter().filter(within).map(|pending| pending.number).collect()
    }

    /// Whether `inner` is `outer` or lies below it.
    pub(super) fn is_within(&self, outer: Ino, inner: Ino) -> bool {
        inner == outer
            || match &self.inode(outer).body {
                Body::Directory(directory) => directory
                    .cached
                    .values()
                    .any(|child| self.is_directory(*child) && self.is_within(*child, inner)),
                Body::File(_) | Body::Symlink(_) => false,
            }
    }

    pub(super) fn drop_link(&mut self, ino: Ino) {
        self.touch(ino);
        self.inode_mut(ino).links -= 1;
    }
}
