//! The only path type a manifest may hold: relative, inside the tree, and the same on every file system.
//!
//! These rules are lexical. They are the first of two fences; the second is that every open below a root goes through
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`, which holds even when somebody swaps a directory for a link.

use std::{
    borrow::{Borrow, Cow},
    collections::BTreeMap,
    fmt,
    path::Path,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::UnicodeNormalization as _;

use super::Parsed;

/// The longest path, in bytes; leaves room for the root within `PATH_MAX`.
const LENGTH_MAX: usize = 1024;
/// The longest component, in bytes (`NAME_MAX` of every Linux file system, less room for a temporary suffix).
const COMPONENT_MAX: usize = 240;
/// The deepest path.
const DEPTH_MAX: usize = 64;
/// Names starting so are ours at the top of a tree.
const RESERVED: &str = ".cutover";

/// A relative path with `/` between its components: no `.`, `..` or empty component, no backslash, control or
/// bidirectional-override character, no drive letter, and not below the reserved `.cutover*`.
///
/// Clones share their text: manifest, plan, observation and restore point name the same tens of thousands of paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SafePath(Arc<str>);

/// Why a path is refused. The offending text is escaped, so it may be logged as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing between the quotes.
    #[error("an empty path is not allowed")]
    Empty,
    /// Starts at the root or a drive.
    #[error("path `{0}` is absolute; paths are relative to the release")]
    Absolute(String),
    /// Has a `..` component.
    #[error("path `{0}` leaves the release through `..`")]
    Parent(String),
    /// Has an empty or `.` component, or a trailing slash.
    #[error("path `{0}` is not in its shortest form (no `.`, `//` or trailing `/`)")]
    NotNormal(String),
    /// Has a character that no release needs and some reader misreads.
    #[error("path `{0}` has a backslash, a control character or a text-direction override")]
    Character(String),
    /// Too long or too deep.
    #[error(
        "path `{0}` is over the limit of {LENGTH_MAX} bytes, {COMPONENT_MAX} bytes a component, {DEPTH_MAX} levels"
    )]
    TooLong(String),
    /// Starts with a name that belongs to Cutover.
    #[error(
        "path `{0}` is reserved: names starting with `{RESERVED}` at the top of a tree are Cutover's own"
    )]
    Reserved(String),
    /// Two entries that are one file on some file system.
    #[error(
        "path `{path}` collides with `{with}` (same name but for letter case or Unicode form, or a file where a directory is needed)"
    )]
    Collision {
        /// The later path.
        path: String,
        /// The one it collides with.
        with: String,
    },
}

/// Makes hostile text fit for a log line or a terminal.
fn escaped(text: &str) -> String {
    text.chars()
        .take(160)
        .flat_map(|c| if c.is_ascii_graphic() || c == ' ' { vec![c] } else { c.escape_unicode().collect() })
        .collect()
}

impl SafePath {
    /// The path as text, `/`-separated.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path, to be joined to a root.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// The components, first to last; never empty.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The directory that holds this path, or `None` at the top of the tree.
    pub fn parent(&self) -> Option<SafePath> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.into()))
    }

    /// Every directory above this path, outermost first.
    pub fn ancestors(&self) -> impl Iterator<Item = SafePath> {
        self.0.match_indices('/').map(|(at, _)| Self(self.0[..at].into()))
    }

    /// What this path is called once letter case and Unicode form are ignored. Most paths are called what they are, and then
    /// it is the same text.
    fn folded(&self) -> Arc<str> {
        match folded(&self.0) {
            Cow::Borrowed(_) => Arc::clone(&self.0),
            Cow::Owned(text) => text.into(),
        }
    }
}

/// What a path is called once letter case and Unicode form are ignored.
fn folded(text: &str) -> Cow<'_, str> {
    // Most paths are ASCII, where Unicode's rules come to this; a manifest of 900 files reads ten times faster.
    match text.is_ascii() {
        true if !text.bytes().any(|byte| byte.is_ascii_uppercase()) => Cow::Borrowed(text),
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Owned(folded_by_unicode(text)),
    }
}

fn folded_by_unicode(text: &str) -> String {
    let upper: String = text.nfkd().flat_map(char::to_uppercase).collect();
    upper.chars().flat_map(char::to_lowercase).nfkc().collect()
}

impl FromStr for SafePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let bad_character = |c: char| {
            c == '\\'
                || c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
        };
        let drive =
            |text: &str| matches!(text.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.starts_with('/') || drive(text) {
            return Err(PathError::Absolute(escaped(text)));
        }
        if text.split(['/', '\\']).any(|component| component == "..") {
            return Err(PathError::Parent(escaped(text)));
        }
        if text.chars().any(bad_character) {
            return Err(PathError::Character(escaped(text)));
        }
        if text.split('/').any(|component| component.is_empty() || component == ".") {
            return Err(PathError::NotNormal(escaped(text)));
        }
        if text.len() > LENGTH_MAX
            || text.split('/').count() > DEPTH_MAX
            || text.split('/').any(|component| component.len() > COMPONENT_MAX)
        {
            return Err(PathError::TooLong(escaped(text)));
        }
        if folded(text).starts_with(RESERVED) {
            return Err(PathError::Reserved(escaped(text)));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<Path> for SafePath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl Borrow<str> for SafePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for SafePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SafePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("a path"))
    }
}

/// The names a tree already uses, to refuse two entries that would be one file somewhere.
///
/// Directories are implied by the entries below them; a directory spelled in two ways is a collision too.
#[derive(Clone, Debug, Default)]
pub struct SafePathSet {
    by_fold: BTreeMap<Arc<str>, Used>,
    /// The directory of the last path, which is in here with all above it: most paths follow one from the same directory.
    last: String,
}

#[derive(Clone, Debug)]
enum Used {
    Leaf(SafePath),
    Directory(SafePath),
}

impl SafePathSet {
    /// Adds a file or symlink.
    ///
    /// # Errors
    /// [`PathError::Collision`] when `path`, or a directory above it, is already taken by something else.
    pub fn insert(&mut self, path: &SafePath) -> Result<(), PathError> {
        let collision = |path: &SafePath, with: &SafePath| PathError::Collision {
            path: escaped(path.as_str()),
            with: escaped(with.as_str()),
        };
        let parent = path.as_str().rsplit_once('/').map_or("", |(parent, _)| parent);
        let ancestors = if parent == self.last { Vec::new() } else { path.ancestors().collect() };
        for directory in ancestors {
            match self.by_fold.get(&directory.folded()) {
                Some(Used::Directory(used)) if *used == directory => {}
                Some(Used::Directory(used) | Used::Leaf(used)) => return Err(collision(path, used)),
                None => {
                    self.by_fold.insert(directory.folded(), Used::Directory(directory));
                }
            }
        }
        if parent != self.last {
            parent.clone_into(&mut self.last);
        }
        match self.by_fold.insert(path.folded(), Used::Leaf(path.clone())) {
            None => Ok(()),
            Some(Used::Directory(used) | Used::Leaf(used)) => Err(collision(path, &used)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> PathError {
        text.parse::<SafePath>().expect_err(text)
    }

    #[test]
    fn ascii_folds_as_unicode_says() {
        let ascii: String = (0..128u8).map(char::from).collect();
        assert_eq!(ascii.to_ascii_lowercase(), folded_by_unicode(&ascii));
    }

    // P4
    #[test]
    fn nested_relative_path_is_accepted() {
        for text in ["bin/subdir/component", "a", "..a", "a..b", ".hidden", "x/.cutover", "naïve/文件", "a b"]
        {
            assert_eq!(text.parse::<SafePath>().expect(text).as_str(), text);
        }
    }

    // P1, P5
    #[test]
    fn path_with_parent_component_is_refused() {
        for text in ["../outside", "a/../../b", "a/..", "..", r"a\..\b"] {
            assert!(matches!(refused(text), PathError::Parent(_)), "{text}");
        }
    }

    // P2, P5
    #[test]
    fn absolute_path_is_refused() {
        for text in ["/etc/passwd", "/", r"C:\x", "c:/x", "//host/share"] {
            assert!(matches!(refused(text), PathError::Absolute(_)), "{text}");
        }
    }

    // P3, P5
    #[test]
    fn empty_unnormal_and_unprintable_paths_are_refused() {
        assert_eq!(refused(""), PathError::Empty);
        for text in ["a//b", "./b", "a/.", ".", "a/"] {
            assert!(matches!(refused(text), PathError::NotNormal(_)), "{text}");
        }
        for text in ["a\0b", "a\nb", "a\u{1b}[2J", "a\\b", "\u{202e}gpj.exe"] {
            assert!(matches!(refused(text), PathError::Character(_)), "{text:?}");
        }
    }

    #[test]
    fn reserved_names_are_refused_at_the_top_only_and_in_any_case() {
        for text in [".cutover", ".cutover/lock", ".CutOver/store", ".cutover-release"] {
            assert!(matches!(refused(text), PathError::Reserved(_)), "{text}");
        }
    }

    #[test]
    fn too_long_and_too_deep_paths_are_refused() {
        for text in [
            "a".repeat(COMPONENT_MAX + 1),
            "a/".repeat(DEPTH_MAX) + "a",
            format!("{}b", "abcdefghi/".repeat(103)),
        ] {
            assert!(matches!(refused(&text), PathError::TooLong(_)));
        }
    }

    #[test]
    fn refused_text_is_escaped_for_the_log() {
        assert!(!refused("a\u{1b}[2J").to_string().contains('\u{1b}'));
    }

    // M11
    #[test]
    fn paths_that_differ_only_in_case_or_unicode_form_collide() {
        for (first, second) in [
            ("a/b", "a/b"),
            ("a/B", "a/b"),
            ("A/x", "a/y"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("straße", "STRASSE"),
        ] {
            let mut set = SafePathSet::default();
            set.insert(&first.parse().expect(first)).expect("the first is new");
            assert!(set.insert(&second.parse().expect(second)).is_err(), "{first} {second}");
        }
    }

    #[test]
    fn file_where_a_directory_is_needed_collides_in_both_orders() {
        for (first, second) in [("a", "a/b"), ("a/b", "a"), ("A", "a/b")] {
            let mut set = SafePathSet::default();
            set.insert(&first.parse().expect(first)).expect("the first is new");
            assert!(set.insert(&second.parse().expect(second)).is_err(), "{first} {second}");
        }
    }
}
