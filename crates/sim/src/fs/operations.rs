//! The operations that the disk port has, as Linux answers them.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use cutover_host::disk::{EntryKind, Metadata, Space};

use super::{
    file_system::{FileSystem, Reflinks, errno},
    inode::{BLOCK, Body, DirectoryBody, Ino, allocated, new_file},
};

impl FileSystem {
    pub(crate) fn open(&mut self, path: &Path) -> io::Result<Ino> {
        let ino = self.regular(path)?;
        self.inode_mut(ino).open += 1;
        Ok(ino)
    }

    pub(crate) fn close(&mut self, ino: Ino) {
        self.inode_mut(ino).open -= 1;
    }

    pub(crate) fn read(&self, ino: Ino, offset: usize, buffer: &mut [u8]) -> usize {
        let bytes = self.bytes(ino);
        let rest = bytes.get(offset..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        count
    }

    /// Opens for writing: unlike reading, that is refused for a directory.
    pub(super) fn open_to_write(&mut self, path: &Path) -> io::Result<Ino> {
        if self.is_directory(self.find(path)?) {
            return Err(errno(libc::EISDIR));
        }
        self.open(path)
    }

    pub(crate) fn create(&mut self, path: &Path, mode: u32) -> io::Result<Ino> {
        if path.as_os_str().is_empty() {
            return Err(errno(libc::EEXIST));
        }
        let (directory, name) = self.vacant(self.entry(path)?)?;
        let ino = self.add_inode(new_file(Arc::default()), mode)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        self.inode_mut(ino).open += 1;
        Ok(ino)
    }

    pub(crate) fn append(&mut self, path: &Path, mode: u32) -> io::Result<Ino> {
        match self.look(&self.place(path)?)? {
            Some(_) => self.open_to_write(path),
            None => self.create(path, mode),
        }
    }

    /// Opens a file to lock it.
    pub(crate) fn open_lock(&mut self, path: &Path) -> io::Result<Ino> {
        self.append(path, 0o600)
    }

    /// Replaces what a lock file says. Nothing depends on it, so it never fails and never is durable.
    pub(crate) fn write_note(&mut self, ino: Ino, note: &str) {
        let file = self.file_mut(ino);
        file.cached = Arc::new(note.as_bytes().to_vec());
        (file.clean, file.durable) = (0, None);
        file.lost.clear();
    }

    pub(crate) fn note(&self, ino: Ino) -> String {
        String::from_utf8_lossy(self.bytes(ino)).into_owned()
    }

    /// Appends as much of `bytes` as there is space for.
    pub(crate) fn write(&mut self, ino: Ino, bytes: &[u8]) -> io::Result<usize> {
        let size = self.bytes(ino).len();
        let slack = (BLOCK - size % BLOCK) % BLOCK;
        let room = (self.free_bytes() / BLOCK as u64 * BLOCK as u64).saturating_add(slack as u64);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(errno(libc::ENOSPC));
        }
        Arc::make_mut(&mut self.file_mut(ino).cached).extend_from_slice(&bytes[..count]);
        self.touch_content(ino);
        Ok(count)
    }

    pub(crate) fn set_mode_of(&mut self, ino: Ino, mode: u32) {
        self.touch(ino);
        self.inode_mut(ino).attributes.mode = mode & 0o7777;
    }

    /// Cuts or lengthens a file in the cache; the caller syncs it.
    pub(crate) fn truncate(&mut self, path: &Path, size: u64) -> io::Result<Ino> {
        let ino = self.open_to_write(path)?;
        self.close(ino);
        let size = usize::try_from(size).map_err(|_| errno(libc::EFBIG))?;
        let file = self.file_mut(ino);
        Arc::make_mut(&mut file.cached).resize(size, 0);
        file.clean = file.clean.min(size);
        for lost in &mut file.lost {
            lost.end = lost.end.min(size);
        }
        file.lost.retain(|lost| !lost.is_empty());
        self.touch_content(ino);
        Ok(ino)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        let ino = self.existing(&from)?;
        let replaced = self.named(to.0, &to.1)?;
        let ((from_directory, from_name), (to_directory, to_name)) = (from, to);
        let moves_directory = self.is_directory(ino);
        if moves_directory && self.is_within(ino, to_directory) {
            return Err(errno(libc::EINVAL));
        }
        if replaced == Some(ino) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            self.check_replaceable(moves_directory, replaced, from_directory)?;
            self.drop_link(replaced);
        }
        self.touch(ino);
        let insertion = (to_directory, to_name, Some(ino));
        let removal = (from_directory, from_name, None);
        let mut visible = self.changes_above(to_directory);
        if from_directory == to_directory {
            self.set_names(vec![removal, insertion], &[]);
        } else if moves_directory {
            self.set_names(vec![insertion, removal], &visible);
        } else {
            visible.push(self.set_names(vec![insertion], &[]));
            self.set_names(vec![removal], &visible);
        }
        Ok(())
    }

    pub(super) fn check_replaceable(
        &self,
        moves_directory: bool,
        replaced: Ino,
        from_directory: Ino,
    ) -> io::Result<()> {
        match (&self.inode(replaced).body, moves_directory) {
            (Body::Directory(_), _) if self.is_within(replaced, from_directory) => {
                Err(errno(libc::ENOTEMPTY))
            }
            (Body::Directory(_), false) => Err(errno(libc::EISDIR)),
            (Body::Directory(directory), true) if !directory.cached.is_empty() => Err(errno(libc::ENOTEMPTY)),
            (Body::File(_) | Body::Symlink(_), true) => Err(errno(libc::ENOTDIR)),
            (Body::Directory(_), true) | (Body::File(_) | Body::Symlink(_), false) => Ok(()),
        }
    }

    pub(crate) fn exchange(&mut self, a: &Path, b: &Path) -> io::Result<()> {
        let (a, b) = (self.entry(a)?, self.entry(b)?);
        let (a_ino, b_ino) = (self.existing(&a)?, self.existing(&b)?);
        let ((a_directory, a_name), (b_directory, b_name)) = (a, b);
        let inside =
            |outer: Ino, directory: Ino| self.is_directory(outer) && self.is_within(outer, directory);
        if inside(a_ino, b_directory) || inside(b_ino, a_directory) {
            return Err(errno(libc::EINVAL));
        }
        if a_ino == b_ino {
            return Ok(());
        }
        self.touch(a_ino);
        self.touch(b_ino);
        let mut visible = self.changes_above(a_directory);
        visible.extend(self.changes_above(b_directory));
        self.set_names(
            vec![(a_directory, a_name, Some(b_ino)), (b_directory, b_name, Some(a_ino))],
            &visible,
        );
        Ok(())
    }

    pub(crate) fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.entry(from)?, self.entry(to)?);
        let ino = self.existing(&from)?;
        let (directory, name) = self.vacant(to)?;
        if self.is_directory(ino) {
            return Err(errno(libc::EPERM));
        }
        self.touch(ino);
        self.inode_mut(ino).links += 1;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    /// Copies the first `limit` bytes; the target is removed again when the space ends.
    pub(crate) fn copy(&mut self, from: &Path, to: &Path, mode: u32, limit: usize) -> io::Result<()> {
        let source = self.open(from)?;
        self.close(source);
        let bytes = Arc::new(self.bytes(source)[..limit.min(self.bytes(source).len())].to_vec());
        let target = self.create(to, mode)?;
        self.close(target);
        match self.write(target, &bytes) {
            Ok(count) if count == bytes.len() => Ok(()),
            result => {
                self.remove_file(to)?;
                Err(result.err().unwrap_or_else(|| errno(libc::ENOSPC)))
            }
        }
    }

    pub(crate) fn reflink(&mut self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        let source = self.open(from)?;
        self.close(source);
        match self.options.reflinks {
            Reflinks::Unsupported => Err(io::ErrorKind::Unsupported.into()),
            Reflinks::Supported => {
                let target = self.create(to, mode)?;
                self.close(target);
                let shared = self.file_mut(source).cached.clone();
                self.file_mut(target).cached = shared;
                Ok(())
            }
        }
    }

    pub(crate) fn symlink(&mut self, target: &str, link: &Path) -> io::Result<()> {
        let entry = self.entry(link)?;
        if target.is_empty() {
            return Err(errno(libc::ENOENT));
        }
        let (directory, name) = self.vacant(entry)?;
        let ino = self.add_inode(Body::Symlink(target.into()), 0o777)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    pub(crate) fn read_link(&self, path: &Path) -> io::Result<String> {
        match &self.inode(self.existing(&self.entry(path)?)?).body {
            Body::Symlink(target) => Ok(target.to_string()),
            Body::File(_) | Body::Directory(_) => Err(errno(libc::EINVAL)),
        }
    }

    pub(crate) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let entry = self.entry(path)?;
        let ino = self.existing(&entry)?;
        if self.is_directory(ino) {
            return Err(errno(libc::EISDIR));
        }
        self.drop_link(ino);
        self.set_names(vec![(entry.0, entry.1, None)], &[]);
        Ok(())
    }

    pub(crate) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let entry = self.entry(path)?;
        let ino = self.existing(&entry)?;
        match &self.inode(ino).body {
            Body::Directory(body) if body.cached.is_empty() => {}
            Body::Directory(_) => return Err(errno(libc::ENOTEMPTY)),
            Body::File(_) | Body::Symlink(_) => return Err(errno(libc::ENOTDIR)),
        }
        let emptied = self.changes_within(ino);
        self.drop_link(ino);
        self.set_names(vec![(entry.0, entry.1, None)], &emptied);
        Ok(())
    }

    pub(crate) fn create_dir(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let (directory, name) = self.vacant(self.entry(path)?)?;
        if self.free_bytes() < BLOCK as u64 {
            return Err(errno(libc::ENOSPC));
        }
        let ino = self.add_inode(Body::Directory(DirectoryBody::default()), mode)?;
        self.set_names(vec![(directory, name, Some(ino))], &[]);
        Ok(())
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<(String, EntryKind)>> {
        let directory = self.directory(self.find(path)?)?;
        Ok(directory.cached.iter().map(|(name, ino)| (name.to_string(), self.kind(*ino))).collect())
    }

    pub(super) fn kind(&self, ino: Ino) -> EntryKind {
        match self.inode(ino).body {
            Body::File(_) => EntryKind::File,
            Body::Directory(_) => EntryKind::Directory,
            Body::Symlink(_) => EntryKind::Symlink,
        }
    }

    pub(crate) fn metadata(&self, path: &Path) -> io::Result<Option<Metadata>> {
        let place = match self.place(path) {
            Err(error) if is_absence(&error) => return Ok(None),
            place => place?,
        };
        match self.look(&place) {
            Err(error) if is_absence(&error) => Ok(None),
            found => Ok(found?.map(|ino| self.metadata_of(ino))),
        }
    }

    pub(crate) fn metadata_of(&self, ino: Ino) -> Metadata {
        let inode = self.inode(ino);
        let (size, used) = match &inode.body {
            Body::File(file) => (file.cached.len() as u64, allocated(file.cached.len())),
            Body::Directory(_) => (BLOCK as u64, BLOCK as u64),
            Body::Symlink(target) => (target.len() as u64, 0),
        };
        Metadata {
            kind: self.kind(ino),
            size,
            mode: inode.attributes.mode,
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            inode: ino,
            links: inode.links,
            changed_ns: inode.attributes.changed_ns,
            modified_ns: inode.attributes.modified_ns,
            allocated: used,
        }
    }

    pub(crate) fn xattrs(&self, path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        Ok(self.inode(self.regular(path)?).attributes.xattrs.clone())
    }

    pub(crate) fn set_ownership(
        &mut self,
        path: &Path,
        uid: u32,
        gid: u32,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        let ino = self.regular(path)?;
        self.touch(ino);
        let attributes = &mut self.inode_mut(ino).attributes;
        (attributes.uid, attributes.gid) = (uid, gid);
        attributes.xattrs.retain(|name, _| name.starts_with("security.") || name.starts_with("trusted."));
        attributes.xattrs.extend(xattrs.clone());
        Ok(())
    }

    pub(crate) fn set_mode(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let ino = self.find(path)?;
        if let Body::Symlink(_) = self.inode(ino).body {
            return Err(errno(libc::ELOOP));
        }
        self.set_mode_of(ino, mode);
        Ok(())
    }

    pub(crate) fn space(&self) -> Space {
        Space { free_bytes: self.free_bytes(), free_inodes: self.free_inodes() }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
