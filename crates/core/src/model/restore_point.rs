//! What a tree looked like, with digests: the basis of plans, of drift reports and of the way back.

use std::{borrow::Borrow, collections::BTreeMap, fmt, io, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Digest, Instant, ReleaseRef, RestorePointId, SafePath};

/// What was found at one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "type")]
pub enum SeenKind {
    /// A regular file.
    File {
        /// SHA-256 of its content.
        sha256: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: String,
    },
}

/// One path of a tree as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenFile {
    /// What it is.
    pub kind: SeenKind,
    /// Permission bits, set-id and sticky included (`0o7777`); 0o777 for links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes (ACLs included) by name; values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// A tree, or the part of one that a release describes, as it was found: a map from paths, in their order. Paths that were
/// looked for and are absent are simply not in it.
///
/// It is one sorted list, which clones share: observation, plan and restore point hold the same tens of thousands of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTree(Arc<Vec<(SafePath, SeenFile)>>);

impl SeenTree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was found at `path`.
    pub fn get<P: Ord + ?Sized>(&self, path: &P) -> Option<&SeenFile>
    where
        SafePath: Borrow<P>,
    {
        self.place(path).ok().map(|at| &self.0[at].1)
    }

    /// Whether anything was found at `path`.
    pub fn contains_key<P: Ord + ?Sized>(&self, path: &P) -> bool
    where
        SafePath: Borrow<P>,
    {
        self.place(path).is_ok()
    }

    fn place<P: Ord + ?Sized>(&self, path: &P) -> Result<usize, usize>
    where
        SafePath: Borrow<P>,
    {
        self.0.binary_search_by(|(known, _)| <SafePath as Borrow<P>>::borrow(known).cmp(path))
    }

    /// Says what was found at `path`; returns what was said before.
    pub fn insert(&mut self, path: SafePath, seen: SeenFile) -> Option<SeenFile> {
        let place = self.place(&path);
        let entries = Arc::make_mut(&mut self.0);
        match place {
            Ok(at) => Some(std::mem::replace(&mut entries[at].1, seen)),
            Err(at) => {
                entries.insert(at, (path, seen));
                None
            }
        }
    }

    /// Takes a path out.
    pub fn remove<P: Ord + ?Sized>(&mut self, path: &P) -> Option<SeenFile>
    where
        SafePath: Borrow<P>,
    {
        let at = self.place(path).ok()?;
        Some(Arc::make_mut(&mut self.0).remove(at).1)
    }

    /// What was found at `path`, to be changed.
    pub fn get_mut<P: Ord + ?Sized>(&mut self, path: &P) -> Option<&mut SeenFile>
    where
        SafePath: Borrow<P>,
    {
        let at = self.place(path).ok()?;
        Some(&mut Arc::make_mut(&mut self.0)[at].1)
    }

    /// The paths and what was found there, in the order of the paths.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&SafePath, &SeenFile)> {
        self.into_iter()
    }

    /// The paths, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &SafePath> {
        self.0.iter().map(|(path, _)| path)
    }

    /// What was found, in the order of the paths.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &SeenFile> {
        self.0.iter().map(|(_, seen)| seen)
    }
}

/// Of entries with one path the last counts.
impl FromIterator<(SafePath, SeenFile)> for SeenTree {
    fn from_iter<I: IntoIterator<Item = (SafePath, SeenFile)>>(entries: I) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
            entries.reverse();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            entries.dedup_by(|(later, _), (first, _)| later == first);
        }
        entries.shrink_to_fit();
        Self(Arc::new(entries))
    }
}

type Pair<'a> = (&'a SafePath, &'a SeenFile);

impl<'a> IntoIterator for &'a SeenTree {
    type Item = Pair<'a>;
    type IntoIter =
        std::iter::Map<std::slice::Iter<'a, (SafePath, SeenFile)>, fn(&'a (SafePath, SeenFile)) -> Pair<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|entry| (&entry.0, &entry.1))
    }
}

impl Serialize for SeenTree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for SeenTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> de::Visitor<'de> for Entries {
            type Value = SeenTree;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from paths")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<SeenTree, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose()).collect()
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// What is needed to go back to an earlier state, with digests. Written durably before anything changes; its own
/// SHA-256 is recorded in the journal, so an altered restore point is refused.
///
/// Made by `host` in the step of the same name, consumed by `plan_rollback` and by the undo of `switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePoint {
    /// Format of this file: 1.
    pub format: u32,
    /// Its id.
    pub id: RestorePointId,
    /// When it was made.
    pub created_at: Instant,
    /// The release that was current, or `None` before a first installation.
    pub from: Option<ReleaseRef>,
    /// The release the execution was about to switch to; `None` when it returned to an empty root.
    pub to: Option<ReleaseRef>,
    /// The present tree (layouts `versioned` and `exchange`), or every path the update replaces or removes
    /// (`in-place`), as found.
    pub files: SeenTree,
    /// Paths the update adds where nothing was; a restore removes them (`in-place` only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<SafePath>,
    /// Directories the update makes where nothing was; a restore removes those that are empty then (`in-place` only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<SafePath>,
}

/// Why a restore point cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestorePointError {
    /// Not the JSON of a restore point.
    #[error("restore point `{id}` cannot be read: {reason}")]
    Syntax {
        /// Which one.
        id: RestorePointId,
        /// What is wrong.
        reason: String,
    },
    /// Its bytes are not those that were recorded.
    #[error("restore point `{id}` was altered: its digest is {actual}, recorded was {expected}")]
    Altered {
        /// Which one.
        id: RestorePointId,
        /// The digest the journal holds.
        expected: Digest,
        /// The digest of the file now.
        actual: Digest,
    },
}

impl RestorePoint {
    /// Reads a restore point whose digest must be `expected`.
    ///
    /// # Errors
    /// [`RestorePointError::Altered`] before anything is parsed, [`RestorePointError::Syntax`] after.
    pub fn parse(id: &RestorePointId, bytes: &[u8], expected: Digest) -> Result<Self, RestorePointError> {
        let actual = Digest::of(bytes);
        if actual != expected {
            return Err(RestorePointError::Altered { id: id.clone(), expected, actual });
        }
        let syntax = |reason: String| RestorePointError::Syntax { id: id.clone(), reason };
        let point: Self = serde_json::from_slice(bytes).map_err(|error| syntax(error.to_string()))?;
        if point.format != 1 || point.id != *id {
            return Err(syntax("it names another format or id".to_owned()));
        }
        Ok(point)
    }

    /// Writes the bytes to be stored, in pieces of a few bytes.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write_to(&self, out: impl io::Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(mode: u32) -> SeenFile {
        let kind = SeenKind::File { sha256: Digest::of(b"x"), size: 1 };
        SeenFile { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    fn path(text: &str) -> SafePath {
        text.parse().expect("a path")
    }

    #[test]
    fn seen_tree_is_a_map_in_the_order_of_its_paths() {
        let entries = [("b", 1), ("a/x", 2), ("b", 3), ("a", 4)];
        let mut tree: SeenTree = entries.iter().map(|(name, mode)| (path(name), seen(*mode))).collect();
        assert!(tree.keys().map(SafePath::as_str).eq(["a", "a/x", "b"]));
        assert_eq!(tree.get(&path("b")), Some(&seen(3)), "the last of several");
        let before = tree.clone();
        assert_eq!(tree.insert(path("a/y"), seen(5)), None);
        assert_eq!(tree.insert(path("a"), seen(6)), Some(seen(4)));
        assert_eq!(tree.remove(&path("b")), Some(seen(3)));
        assert!(tree.iter().map(|(path, seen)| (path.as_str(), seen.mode)).eq([
            ("a", 6),
            ("a/x", 2),
            ("a/y", 5)
        ]));
        assert_eq!((before.len(), before.get(&path("a"))), (3, Some(&seen(4))), "a clone stays as it was");
    }

    #[test]
    fn seen_tree_is_written_as_an_object_and_read_in_any_order() {
        let tree: SeenTree = ["a", "b"].into_iter().map(|name| (path(name), seen(0o644))).collect();
        let json = serde_json::to_string(&tree).expect("written");
        let as_map: BTreeMap<SafePath, SeenFile> = serde_json::from_str(&json).expect("an object");
        assert!(tree.iter().eq(&as_map));
        let (a, b) = (&json[1..json.len() / 2], &json[json.len() / 2 + 1..json.len() - 1]);
        assert_eq!(serde_json::from_str::<SeenTree>(&format!("{{{b},{a}}}")).expect("read"), tree);
        assert!(serde_json::from_str::<SeenTree>(&json.replace("\"a\"", "\"../a\"")).is_err());
    }
}
