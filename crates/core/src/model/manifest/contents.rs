//! The files and links of a release, and the objects that hold their contents.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Digest, SafePath, parsed::Parsed};

/// One file of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it lies below the tree's root.
    pub path: SafePath,
    /// What it is for.
    pub kind: FileKind,
    /// Its permission bits.
    pub mode: FileMode,
    /// Its content: the object of this name.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What a file is for; decides how it is laid down and when it may be shared between release trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A program.
    Executable,
    /// Code that programs load.
    Library,
    /// Settings that an operator may edit.
    Config,
    /// Anything else.
    Data,
}

/// Permission bits, `0o000` to `0o777`, written as four octal digits (`"0755"`). Set-id and sticky bits are refused:
/// a release never hands out privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileMode(u16);

impl FileMode {
    /// Wraps `bits`; `None` when any bit outside `0o777` is set.
    pub fn new(bits: u32) -> Option<Self> {
        u16::try_from(bits).ok().filter(|bits| *bits <= 0o777).map(Self)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// Whether nobody may write to the file.
    pub fn is_read_only(self) -> bool {
        self.0 & 0o222 == 0
    }
}

impl FromStr for FileMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octal = text.len() == 4 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        octal
            .then(|| u32::from_str_radix(text, 8).ok().and_then(Self::new))
            .flatten()
            .ok_or("a mode is four octal digits from 0000 to 0777")
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("a mode"))
    }
}

/// One symbolic link of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Where the link lies.
    pub path: SafePath,
    /// What it points to: relative, `..` only at its start, never above the tree's root.
    pub target: String,
}

/// One distinct file content and where the payload holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectEntry {
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Bytes it takes in the payload.
    pub stored_size: u64,
    /// How it is stored.
    pub encoding: Encoding,
    /// Where it starts, in bytes from the start of the payload.
    pub offset: u64,
}

/// How an object's bytes are stored in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// One Zstandard frame (RFC 8878), window at most 8 MiB.
    Zstd,
    /// As they are.
    Raw,
}
