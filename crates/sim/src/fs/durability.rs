//! What becomes durable, and when: syncs, syncs that fail, and what a killed process leaves.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use super::{
    file_system::FileSystem,
    inode::{Body, Ino, ROOT},
};

impl FileSystem {
    /// Writes back bytes and attributes.
    pub(crate) fn sync(&mut self, ino: Ino) {
        if self.inode(ino).is_written_back() {
            return;
        }
        let inode = self.inode_mut(ino);
        inode.durable_attributes = inode.attributes.clone();
        if let Body::File(file) = &mut inode.body {
            file.durable = Some(file.written_back());
            file.clean = file.cached.len();
        }
    }

    /// A sync that failed: the pages are clean now, and lost.
    pub(crate) fn lose(&mut self, ino: Ino) {
        if let Body::File(file) = &mut self.inode_mut(ino).body {
            if file.clean < file.cached.len() {
                file.lost.push(file.clean..file.cached.len());
            }
            file.clean = file.cached.len();
        }
    }

    pub(crate) fn lose_all(&mut self) {
        let all: Vec<Ino> = self.inodes.keys().copied().collect();
        all.into_iter().for_each(|ino| self.lose(ino));
    }

    pub(crate) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let ino = self.find(path)?;
        self.directory(ino)?;
        let within = self.changes_within(ino);
        self.persist(&within);
        self.sync(ino);
        Ok(())
    }

    pub(crate) fn sync_all(&mut self) {
        let all: Vec<u64> = self.pending.iter().map(|pending| pending.number).collect();
        self.persist(&all);
        let inodes: Vec<Ino> = self.inodes.keys().copied().collect();
        inodes.into_iter().for_each(|ino| self.sync(ino));
    }

    /// Makes pending changes durable, and those they depend on.
    pub(super) fn persist(&mut self, numbers: &[u64]) {
        let mut chosen: BTreeSet<u64> = numbers.iter().copied().collect();
        for pending in self.pending.iter().rev() {
            if chosen.contains(&pending.number) {
                chosen.extend(&pending.after);
            }
        }
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| chosen.contains(&pending.number));
        self.pending = later;
        for (directory, name, ino) in now.iter().flat_map(|pending| &pending.sets) {
            let names = &mut self.directory_mut(*directory).durable;
            match ino {
                Some(ino) => names.insert(name.clone(), *ino),
                None => names.remove(name),
            };
        }
    }

    /// Forgets inodes that neither the cache nor the disk can reach.
    pub(super) fn forget_unreachable(&mut self) {
        let mut reachable = BTreeSet::new();
        let mut waiting = vec![ROOT];
        waiting.extend(
            self.pending
                .iter()
                .flat_map(|pending| &pending.sets)
                .flat_map(|(directory, _, ino)| std::iter::once(*directory).chain(*ino)),
        );
        while let Some(ino) = waiting.pop() {
            if reachable.insert(ino)
                && let Body::Directory(directory) = &self.inode(ino).body
            {
                waiting.extend(directory.cached.values().chain(directory.durable.values()));
            }
        }
        self.inodes.retain(|ino, _| reachable.contains(ino));
    }

    /// What a killed process leaves behind: everything, the page cache included.
    pub fn after_kill(&self) -> Self {
        let mut survivor = self.clone();
        for inode in survivor.inodes.values_mut().filter(|inode| inode.open > 0) {
            Arc::make_mut(inode).open = 0;
        }
        survivor.forget_unreachable();
        survivor
    }
}
