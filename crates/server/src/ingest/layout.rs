//! Where things lie below the directory of the gate.
//!
//! ```text
//! <root>/index.jsonl                               one row for each episode
//! <root>/episodes/<host>/<episode>.tar.zst         what was handed in, as it came
//! <root>/episodes/<host>/.<episode>.<n>.part       an upload under way, or what a killed receiver left of one
//! ```
//!
//! With a bucket, `episodes/<host>/<episode>.tar.zst` is there, and here are only the index and the uploads under way:
//!
//! ```text
//! <root>/incoming/.<episode>.<n>.part
//! ```

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use cutover_core::admission::{EpisodeId, EpisodeKey, HostId};

/// What the name of an episode's file ends in.
const SUFFIX: &str = ".tar.zst";
/// What the name of an unfinished file ends in.
const PART: &str = ".part";

/// The names of things below one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The name of the directory of all episodes.
    pub(crate) const EPISODES: &str = "episodes";

    /// The layout below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The index file, unless another one was named.
    pub fn index(&self) -> PathBuf {
        self.root.join("index.jsonl")
    }

    /// The directory of all episodes.
    pub fn episodes(&self) -> PathBuf {
        self.root.join(Self::EPISODES)
    }

    /// Where uploads to a bucket are spooled.
    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// The path of an episode in a bucket.
    pub fn object(key: &EpisodeKey) -> String {
        format!("{}/{}/{}", Self::EPISODES, key.host, Self::file_name(&key.episode))
    }

    /// The episode whose path in a bucket this is; `None` for everything else.
    pub fn key_of(path: &str) -> Option<EpisodeKey> {
        let (host, file) = path.strip_prefix(Self::EPISODES)?.strip_prefix('/')?.split_once('/')?;
        Some(EpisodeKey { host: host.parse().ok()?, episode: Self::episode_of(OsStr::new(file))? })
    }

    /// The directory of one host's episodes.
    pub fn host(&self, host: &HostId) -> PathBuf {
        self.episodes().join(host.as_str())
    }

    /// The file of an episode.
    pub fn episode(&self, key: &EpisodeKey) -> PathBuf {
        self.host(&key.host).join(Self::file_name(&key.episode))
    }

    /// The name of an episode's file in its host's directory.
    pub fn file_name(episode: &EpisodeId) -> String {
        format!("{episode}{SUFFIX}")
    }

    /// The name of an upload under way, in the same directory. `number` tells two uploads of one episode apart.
    pub fn part_name(episode: &EpisodeId, number: u64) -> String {
        format!(".{episode}.{number:x}{PART}")
    }

    /// Whether a name is one of [`Layout::part_name`].
    pub fn is_part(name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        name.starts_with('.') && name.ends_with(PART)
    }

    /// The episode whose file has this name. `None` for everything else: hidden and unfinished files, other endings, names
    /// that are no ids (I35).
    pub fn episode_of(name: &OsStr) -> Option<EpisodeId> {
        name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
    }

    /// The host whose directory has this name.
    pub fn host_of(name: &OsStr) -> Option<HostId> {
        name.to_str()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // I35
    #[test]
    fn only_finished_files_with_an_id_are_episodes() {
        let episode: EpisodeId = "e.1".parse().unwrap();
        assert_eq!(Layout::episode_of(OsStr::new("e.1.tar.zst")), Some(episode.clone()));
        let part = Layout::part_name(&episode, 0x2f);
        assert_eq!(part, ".e.1.2f.part");
        assert!(Layout::is_part(OsStr::new(&part)));
        for other in [".x.tar.zst", "x.tar.zst.tmp", "x.tar", ".tar.zst", "a b.tar.zst", &part] {
            assert_eq!(Layout::episode_of(OsStr::new(other)), None, "{other}");
        }
        assert!(!Layout::is_part(OsStr::new("e.1.tar.zst")));
        let key = EpisodeKey::new("h", "e.1").unwrap();
        assert_eq!(Layout::object(&key), "episodes/h/e.1.tar.zst");
        assert_eq!(Layout::key_of("episodes/h/e.1.tar.zst"), Some(key));
        let others = [
            "episodes/h/x/e.tar.zst",
            "episodes/e.tar.zst",
            "episodes/.h/e.tar.zst",
            "episodes",
            "h/e.tar.zst",
        ];
        for other in others {
            assert_eq!(Layout::key_of(other), None, "{other}");
        }
    }
}
