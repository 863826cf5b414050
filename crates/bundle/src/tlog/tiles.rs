//! The log as static files: hashes in tiles of 256, entries in bundles of 256 (<https://c2sp.org/tlog-tiles>).

use std::{cell::RefCell, collections::BTreeMap};

use cutover_core::model::Digest;

use super::merkle::{self, Nodes, node_hash};

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u64 = 256;
const TILE_LEVELS: u32 = 8;
const HASH_BYTES: usize = 32;

/// `x001/x234/067`, and `.p/W` behind it when it is not full.
fn numbered(prefix: &str, index: u64, width: u64) -> String {
    let mut name = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        name = format!("x{:03}/{name}", rest % 1000);
        rest /= 1000;
    }
    match width {
        TILE_WIDTH => format!("{prefix}/{name}"),
        _ => format!("{prefix}/{name}.p/{width}"),
    }
}

/// Where a tile lies, relative to the log: `width` hashes of the complete subtrees of `level * 8` levels.
pub fn tile_path(level: u32, index: u64, width: u64) -> String {
    numbered(&format!("tile/{level}"), index, width)
}

/// Where a bundle of `width` entries lies, relative to the log.
pub fn entries_path(index: u64, width: u64) -> String {
    numbered("tile/entries", index, width)
}

/// How many hashes a level of tiles has in a tree of this size.
fn count(level: u32, size: u64) -> u64 {
    size.checked_shr(level * TILE_LEVELS).unwrap_or(0)
}

/// How many hashes tile `index` of a level has of them.
fn width(count: u64, index: u64) -> u64 {
    count.saturating_sub(index * TILE_WIDTH).min(TILE_WIDTH)
}

/// Every file of a log of this size: tiles, and bundles of entries.
pub fn files_of_tree(size: u64) -> impl Iterator<Item = String> {
    let each = |count: u64| (0..count.div_ceil(TILE_WIDTH)).map(move |index| (index, width(count, index)));
    let levels = (0..=u64::BITS / TILE_LEVELS).take_while(move |level| count(*level, size) > 0);
    let tiles = levels.flat_map(move |level| {
        each(count(level, size)).map(move |(index, width)| tile_path(level, index, width))
    });
    each(size).map(|(index, width)| entries_path(index, width)).chain(tiles)
}

/// The hashes of a tree of `size` entries, read from tiles. Nothing it says is verified: proofs made of it are.
pub struct TileNodes<R> {
    size: u64,
    read: R,
    kept: RefCell<BTreeMap<(u32, u64), Vec<Digest>>>,
}

impl<R, E> TileNodes<R>
where
    R: Fn(&str, usize) -> Result<Vec<u8>, E>,
    E: From<EntriesError>,
{
    /// `read` reads the file at a path, relative to the log, which has this many bytes.
    pub fn new(size: u64, read: R) -> Self {
        Self { size, read, kept: RefCell::default() }
    }

    /// A hash of a level of tiles.
    fn hash(&self, level: u32, index: u64) -> Result<Digest, E> {
        let tile = (level, index / TILE_WIDTH);
        let at = usize::try_from(index % TILE_WIDTH).expect("below the width");
        if let Some(hashes) = self.kept.borrow().get(&tile) {
            return hashes.get(at).copied().ok_or_else(|| EntriesError(tile_path(level, tile.1, 0)).into());
        }
        let width = width(count(level, self.size), tile.1);
        let path = tile_path(level, tile.1, width);
        let bytes = (self.read)(&path, usize::try_from(width).expect("a tile") * HASH_BYTES)?;
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        let hashes: Vec<Digest> = hashes.iter().copied().map(Digest::from_bytes).collect();
        let hash = hashes.get(at).copied().filter(|_| rest.is_empty() && hashes.len() as u64 == width);
        let hash = hash.ok_or(EntriesError(path))?;
        self.kept.borrow_mut().insert(tile, hashes);
        Ok(hash)
    }
}

impl<R, E> Nodes for TileNodes<R>
where
    R: Fn(&str, usize) -> Result<Vec<u8>, E>,
    E: From<EntriesError>,
{
    type Error = E;

    fn node(&self, level: u32, index: u64) -> Result<Digest, E> {
        match level % TILE_LEVELS {
            0 => self.hash(level / TILE_LEVELS, index),
            _ => Ok(node_hash(self.node(level - 1, 2 * index)?, self.node(level - 1, 2 * index + 1)?)),
        }
    }
}

/// A file of the log does not have the form of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` of the log is no tile and no bundle of entries")]
pub struct EntriesError(pub String);

/// The entries of a bundle.
///
/// # Errors
/// [`EntriesError`]: `bytes` is not exactly `width` entries, each behind its length in two bytes.
pub fn entries_of<'b>(path: &str, bytes: &'b [u8], width: u64) -> Result<Vec<&'b [u8]>, EntriesError> {
    let failed = || EntriesError(path.to_owned());
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, after) = after.split_at_checked(length).ok_or_else(failed)?;
        entries.push(entry);
        rest = after;
    }
    if rest.is_empty() && entries.len() as u64 == width { Ok(entries) } else { Err(failed()) }
}

/// A log that grew: its files that are new, and its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// By path relative to the log.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Paths that the new files supersede: tiles that were not full.
    pub superseded: Vec<String>,
    /// How many entries there are now.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
}

/// Adds `entries`, each of at most 65,535 bytes, to a log of `size`; `read` reads its files.
///
/// # Errors
/// Whatever `read` reports; [`EntriesError`] when a file has not the form of one.
pub fn grow<E: From<EntriesError>>(
    size: u64,
    entries: &[Vec<u8>],
    read: impl Fn(&str) -> Result<Vec<u8>, E>,
) -> Result<Growth, E> {
    let new_size = size + entries.len() as u64;
    let (mut files, mut superseded) = (BTreeMap::new(), Vec::new());
    // What the last tile of a level holds already; it is read unless it is full or empty.
    let open = |path: &dyn Fn(u64, u64) -> String, count: u64, superseded: &mut Vec<String>| match count
        % TILE_WIDTH
    {
        0 => Ok(Vec::new()),
        width => {
            let path = path(count / TILE_WIDTH, width);
            let bytes = read(&path)?;
            superseded.push(path);
            Ok::<_, E>(bytes)
        }
    };
    if !entries.is_empty() {
        let mut bundle = open(&entries_path, size, &mut superseded)?;
        for (number, entry) in (size..).zip(entries) {
            let length = u16::try_from(entry.len()).map_err(|_| EntriesError(entries_path(number, 0)))?;
            bundle.extend_from_slice(&length.to_be_bytes());
            bundle.extend_from_slice(entry);
            let width = number % TILE_WIDTH + 1;
            if width == TILE_WIDTH || number + 1 == new_size {
                files.insert(entries_path(number / TILE_WIDTH, width), std::mem::take(&mut bundle));
            }
        }
    }
    let mut hashes: Vec<Digest> = entries.iter().map(|entry| merkle::leaf_hash(entry)).collect();
    let mut level = 0;
    while !hashes.is_empty() {
        let before = count(level, size);
        let path = |index, width| tile_path(level, index, width);
        let mut tile = open(&path, before, &mut superseded)?;
        let mut above = Vec::new();
        let last = before + hashes.len() as u64;
        for (number, hash) in (before..).zip(hashes) {
            tile.extend_from_slice(hash.as_bytes());
            let width = number % TILE_WIDTH + 1;
            if width == TILE_WIDTH || number + 1 == last {
                let (chunks, rest) = tile.as_chunks::<HASH_BYTES>();
                if !rest.is_empty() || chunks.len() as u64 != width {
                    return Err(EntriesError(path(number / TILE_WIDTH, width)).into());
                }
                if width == TILE_WIDTH {
                    let full: Vec<Digest> = chunks.iter().copied().map(Digest::from_bytes).collect();
                    let Ok(root) = merkle::root(full.as_slice(), TILE_WIDTH);
                    above.push(root);
                }
                files.insert(path(number / TILE_WIDTH, width), std::mem::take(&mut tile));
            }
        }
        (hashes, level) = (above, level + 1);
    }
    let nodes = TileNodes::new(new_size, |path: &str, _| match files.get(path) {
        Some(bytes) => Ok(bytes.clone()),
        None => read(path),
    });
    let root = merkle::root(&nodes, new_size)?;
    Ok(Growth { files, superseded, size: new_size, root })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Vec<u8> {
        format!("entry {number}").into_bytes()
    }

    /// A log in memory.
    #[derive(Default)]
    struct Log {
        files: BTreeMap<String, Vec<u8>>,
        size: u64,
    }

    impl Log {
        fn read(&self, path: &str) -> Result<Vec<u8>, EntriesError> {
            self.files.get(path).cloned().ok_or_else(|| EntriesError(path.to_owned()))
        }

        fn add(&mut self, count: u64) -> Growth {
            let entries: Vec<Vec<u8>> = (self.size..self.size + count).map(entry).collect();
            let growth = grow(self.size, &entries, |path| self.read(path)).unwrap();
            for path in &growth.superseded {
                assert!(self.files.remove(path).is_some(), "{path}");
            }
            self.files.extend(growth.files.clone());
            self.size = growth.size;
            growth
        }
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile_path(0, 1_234_067, TILE_WIDTH), "tile/0/x001/x234/067");
        assert_eq!(tile_path(3, 0, 7), "tile/3/000.p/7");
        assert_eq!(entries_path(255, 1), "tile/entries/255.p/1");
    }

    #[test]
    fn log_that_grows_in_any_steps_has_the_root_and_the_files_of_one_that_is_made_at_once() {
        let mut log = Log::default();
        let mut leaves: Vec<Digest> = Vec::new();
        for step in [0, 1, 2, 253, 1, 255, 256, 257, 1024, 3] {
            let growth = log.add(step);
            let missing = leaves.len() as u64..growth.size;
            leaves.extend(missing.map(|number| merkle::leaf_hash(&entry(number))));
            let Ok(root) = merkle::root(leaves.as_slice(), growth.size);
            assert_eq!(growth.root, root, "after {step}");
            let files: Vec<String> = files_of_tree(growth.size).collect();
            let mut sorted = files.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().eq(log.files.keys()), "after {step}: {sorted:?}");
        }
        let mut number = 0;
        for (path, bytes) in log.files.iter().filter(|(path, _)| path.starts_with("tile/entries/")) {
            let width = path.split_once(".p/").map_or(TILE_WIDTH, |(_, width)| width.parse().unwrap());
            for found in entries_of(path, bytes, width).unwrap() {
                assert_eq!(found, entry(number));
                number += 1;
            }
        }
        assert_eq!(number, log.size);
    }

    #[test]
    fn proofs_from_tiles_hold_across_tiles() {
        let mut log = Log::default();
        let sizes = [1u64, 255, 256, 257, 511, 700, 66_000];
        let heads: Vec<(u64, Digest)> = sizes
            .iter()
            .map(|size| {
                let growth = log.add(size - log.size);
                (growth.size, growth.root)
            })
            .collect();
        let (size, root) = heads[heads.len() - 1];
        let nodes = TileNodes::new(size, |path: &str, bytes| {
            let found = log.read(path)?;
            assert_eq!(found.len(), bytes, "{path}");
            Ok::<_, EntriesError>(found)
        });
        for index in [0, 1, 255, 256, 65_535, 65_536, 65_999] {
            let proof = merkle::inclusion(&nodes, index, size).unwrap();
            let leaf = merkle::leaf_hash(&entry(index));
            assert_eq!(merkle::verify_inclusion(leaf, index, size, &proof, root), Ok(()), "{index}");
        }
        for old in heads {
            let proof = merkle::consistency(&nodes, old.0, size).unwrap();
            assert_eq!(merkle::verify_consistency(old, (size, root), &proof), Ok(()), "{}", old.0);
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let mut log = Log::default();
        log.add(300);
        for bytes in [vec![0; 31], vec![0; 32 * 43], Vec::new()] {
            log.files.insert("tile/0/001.p/44".to_owned(), bytes);
            assert!(grow(300, &[entry(300)], |path| log.read(path)).is_err());
            let nodes = TileNodes::new(300, |path: &str, _| log.read(path));
            assert!(merkle::root(&nodes, 300).is_err());
        }
        for bytes in [b"\0\x02x".as_slice(), b"\0", b"\0\x01x\0\x01y", b""] {
            assert!(entries_of("x", bytes, 1).is_err(), "{bytes:?}");
        }
    }
}
