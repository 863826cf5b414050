//! What is left after a power cut: everything durable, and by seed more or less of the rest.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    file_system::FileSystem,
    inode::{BLOCK, Body, DirectoryBody, FileBody, Inode, ROOT},
};
use crate::random::Random;

/// Which unsynced name changes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    None,
    All,
    /// The first few in the order they were made: a journaling file system.
    Prefix,
    /// Any subset that keeps the order of one name's changes: all that POSIX promises.
    Subset,
}

/// Which unsynced bytes and attributes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    None,
    All,
    /// Block by block, torn, zeroed or stale.
    Blocks,
}

impl FileSystem {
    /// What a power cut leaves behind. Seed 0 keeps only what was synced; 1 keeps all names but no unsynced bytes (the
    /// classic empty file after a rename); 2 keeps everything, as if the cut came late; other seeds keep a part.
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (names, content) = match seed {
            0 => (Names::None, Content::None),
            1 => (Names::All, Content::None),
            2 => (Names::All, Content::All),
            _ => (
                *random.pick(&[
                    Names::Prefix,
                    Names::Prefix,
                    Names::Subset,
                    Names::Subset,
                    Names::All,
                    Names::None,
                ]),
                *random.pick(&[
                    Content::Blocks,
                    Content::Blocks,
                    Content::Blocks,
                    Content::None,
                    Content::All,
                ]),
            ),
        };
        let mut survivor = self.clone();
        survivor.persist(&self.surviving_changes(names, &mut random));
        survivor.pending.clear();
        for inode in survivor.inodes.values_mut() {
            let keeps_attributes = match content {
                Content::None => false,
                Content::All => true,
                Content::Blocks => random.coin(),
            };
            let attributes = if keeps_attributes { &inode.attributes } else { &inode.durable_attributes };
            let body = match &inode.body {
                Body::File(file) => {
                    let bytes = file.surviving(content, &mut random);
                    let clean = bytes.len();
                    Body::File(FileBody {
                        cached: bytes.clone(),
                        durable: Some(bytes),
                        clean,
                        lost: Vec::new(),
                    })
                }
                Body::Directory(DirectoryBody { durable, .. }) => {
                    Body::Directory(DirectoryBody { cached: durable.clone(), durable: durable.clone() })
                }
                Body::Symlink(target) => Body::Symlink(target.clone()),
            };
            let survived = Inode {
                body,
                attributes: attributes.clone(),
                durable_attributes: attributes.clone(),
                links: inode.links,
                open: 0,
            };
            // What did not change stays shared with the image it came from.
            if **inode != survived {
                *inode = Arc::new(survived);
            }
        }
        survivor.forget_unreachable();
        survivor.count_links();
        survivor
    }

    fn surviving_changes(&self, names: Names, random: &mut Random) -> Vec<u64> {
        let all = self.pending.iter().map(|pending| pending.number);
        match names {
            Names::None => Vec::new(),
            Names::All => all.collect(),
            Names::Prefix => all.take(random.index(self.pending.len() + 1)).collect(),
            Names::Subset => all.filter(|_| random.coin()).collect(),
        }
    }

    fn count_links(&mut self) {
        let mut links = BTreeMap::from([(ROOT, 1)]);
        for inode in self.inodes.values() {
            if let Body::Directory(DirectoryBody { cached, .. }) = &inode.body {
                cached.values().for_each(|ino| *links.entry(*ino).or_insert(0) += 1);
            }
        }
        for (ino, inode) in &mut self.inodes {
            let links = links.get(ino).copied().unwrap_or(0);
            if inode.links != links {
                Arc::make_mut(inode).links = links;
            }
        }
    }
}

impl FileBody {
    /// Content is only ever appended or cut. What is durable and what is cached have a beginning in common, which survives; behind
    /// it lies what is not written back yet, or not yet cut off.
    fn surviving(&self, content: Content, random: &mut Random) -> Arc<Vec<u8>> {
        let durable = self.durable.clone().unwrap_or_default();
        match content {
            Content::None => durable,
            Content::All => self.written_back(),
            Content::Blocks => {
                let written = self.written_back();
                if durable == written {
                    return durable;
                }
                let common = durable.iter().zip(&*written).take_while(|(old, new)| old == new).count();
                let mut bytes = written.to_vec();
                match random.below(5) {
                    // Stale, or never written.
                    0 => return durable,
                    // Torn inside the last write.
                    1 => bytes.truncate(common + random.index(bytes.len() - common + 1)),
                    // The size made it, some blocks did not.
                    2 => drop_blocks(&mut bytes, common, 0, random),
                    // The same, and the blocks hold what another file left there.
                    3 => drop_blocks(&mut bytes, common, 0xa5, random),
                    // All of it.
                    _ => {}
                }
                Arc::new(bytes)
            }
        }
    }
}

/// Overwrites a random choice of the blocks from byte `from` on.
fn drop_blocks(bytes: &mut [u8], from: usize, filler: u8, random: &mut Random) {
    let size = bytes.len();
    for start in (from / BLOCK * BLOCK..size).step_by(BLOCK) {
        if random.coin() {
            bytes[start.max(from)..(start + BLOCK).min(size)].fill(filler);
        }
    }
}
