//! The sequence numbers of signed uploads that were taken: none is taken for a second upload, over restarts too.
//!
//! `attested.jsonl` has one line for each; lines are appended by the committing thread and flushed before the answer. Of each
//! host the highest numbers are kept; what lies below them counts as used. Read [`Sequences::judge`].

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use cutover_core::{
    admission::{EpisodeId, EpisodeKey, HostId},
    model::Digest,
};
use serde::{Deserialize, Serialize};

use super::files;

/// Numbers kept of each host: so far apart may uploads under way be.
const KEPT: usize = 4096;

/// One number that was taken.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    episode_id: EpisodeId,
    host_id: HostId,
    sequence: u64,
    sha256: Digest,
}

/// Whether a number may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It was never used.
    First,
    /// It was used for this very upload.
    Same,
    /// It was used for another one, or is too old to tell.
    Replayed,
}

/// The numbers of all hosts.
#[derive(Debug)]
pub(crate) struct Sequences {
    path: PathBuf,
    file: File,
    hosts: HashMap<HostId, Used>,
    /// Whether the last line has no end, or one may have been written in part.
    torn: bool,
    dirty: bool,
    /// A flush of this file failed: the kernel says so once, and the next one would be believed though nothing was written.
    flush_failed: bool,
}

/// The highest numbers of a host.
#[derive(Debug, Default)]
struct Used(BTreeMap<u64, (EpisodeId, Digest)>);

impl Used {
    fn take(&mut self, sequence: u64, episode: EpisodeId, sha256: Digest) {
        self.0.insert(sequence, (episode, sha256));
        while self.0.len() > KEPT {
            self.0.pop_first();
        }
    }

    /// Whether a number is too low to tell: as many as are kept lie above it. That follows from what is in the file, so it is the
    /// same after the file was written anew.
    fn is_forgotten(&self, sequence: u64) -> bool {
        self.0.len() >= KEPT && self.0.first_key_value().is_some_and(|(lowest, _)| sequence < *lowest)
    }
}

impl Sequences {
    /// Reads the file, making an empty one when there is none, and leaves out what is not needed any more.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut hosts: HashMap<HostId, Used> = HashMap::new();
        let (mut lines, mut torn) = (0, false);
        if let Some(file) = File::open(path).map(Some).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        })? {
            let mut reader = BufReader::new(file);
            let mut text = Vec::new();
            while reader.read_until(b'\n', &mut text)? > 0 {
                torn = text.last() != Some(&b'\n');
                lines += 1;
                match serde_json::from_slice::<Line>(&text) {
                    Ok(line) => hosts.entry(line.host_id).or_default().take(
                        line.sequence,
                        line.episode_id,
                        line.sha256,
                    ),
                    Err(error) => {
                        tracing::warn!(file = %path.display(), "a line is no sequence number: {error}")
                    }
                }
                text.clear();
            }
        }
        let open = || OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        let kept: usize = hosts.values().map(|used| used.0.len()).sum();
        if lines > 2 * kept + KEPT {
            rewrite(path, &hosts)?;
            torn = false;
        }
        let file = open()?;
        file.sync_all()?;
        files::sync_directory(files::parent(path))?;
        Ok(Self { path: path.to_owned(), file, hosts, torn, dirty: false, flush_failed: false })
    }

    /// Judges the number of an upload.
    pub(crate) fn judge(&self, key: &EpisodeKey, sha256: Digest, sequence: u64) -> Use {
        let Some(used) = self.hosts.get(&key.host) else { return Use::First };
        match used.0.get(&sequence) {
            Some((episode, digest)) if *episode == key.episode && *digest == sha256 => Use::Same,
            Some(_) => Use::Replayed,
            None if used.is_forgotten(sequence) => Use::Replayed,
            None => Use::First,
        }
    }

    /// Takes a number. Durable after [`Sequences::sync`].
    pub(crate) fn take(&mut self, key: &EpisodeKey, sha256: Digest, sequence: u64) -> io::Result<()> {
        let line = Line { episode_id: key.episode.clone(), host_id: key.host.clone(), sequence, sha256 };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        if self.torn {
            bytes.insert(0, b'\n');
        }
        self.torn = true;
        self.file.write_all(&bytes)?;
        (self.torn, self.dirty) = (false, true);
        self.hosts.entry(line.host_id).or_default().take(sequence, line.episode_id, sha256);
        Ok(())
    }

    /// Flushes what was taken. After a failure everything goes to a new file, and nothing is flushed until that is there.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        if !self.flush_failed
            && let Err(error) = self.file.sync_data()
        {
            let file = self.path.display();
            tracing::warn!(%file, "it is written anew, for it could not be flushed: {error}");
            self.flush_failed = true;
        }
        if self.flush_failed {
            rewrite(&self.path, &self.hosts)?;
            self.file = OpenOptions::new().append(true).open(&self.path)?;
            (self.flush_failed, self.torn) = (false, false);
        }
        self.dirty = false;
        Ok(())
    }
}

fn rewrite(path: &Path, hosts: &HashMap<HostId, Used>) -> io::Result<()> {
    let new = path.with_extension("jsonl.new");
    files::remove(&new)?;
    let mut file =
        io::BufWriter::new(OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?);
    for (host, used) in hosts {
        for (sequence, (episode, sha256)) in &used.0 {
            let line = Line {
                episode_id: episode.clone(),
                host_id: host.clone(),
                sequence: *sequence,
                sha256: *sha256,
            };
            serde_json::to_writer(&mut file, &line)?;
            file.write_all(b"\n")?;
        }
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    files::replace(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(episode: &str) -> EpisodeKey {
        EpisodeKey::new("h", episode).unwrap()
    }

    #[test]
    fn number_is_used_once_over_restarts_and_torn_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attested.jsonl");
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let mut sequences = Sequences::open(&path).unwrap();
        assert_eq!(sequences.judge(&key("a"), one, 7), Use::First);
        sequences.take(&key("a"), one, 7).unwrap();
        sequences.sync().unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"episode_id\":\"x")
            .unwrap();
        let mut sequences = Sequences::open(&path).unwrap();
        assert_eq!(sequences.judge(&key("a"), one, 7), Use::Same);
        assert_eq!(sequences.judge(&key("a"), two, 7), Use::Replayed);
        assert_eq!(sequences.judge(&key("b"), one, 7), Use::Replayed);
        assert_eq!(sequences.judge(&EpisodeKey::new("i", "b").unwrap(), one, 7), Use::First);
        sequences.take(&key("b"), two, 6).unwrap();
        let sequences = Sequences::open(&path).unwrap();
        assert_eq!(
            (sequences.judge(&key("b"), two, 6), sequences.judge(&key("c"), two, 5)),
            (Use::Same, Use::First)
        );
    }

    #[test]
    fn flush_that_failed_is_not_tried_again_on_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attested.jsonl");
        let mut sequences = Sequences::open(&path).unwrap();
        // A device that takes everything and cannot be flushed; and no new file can be made.
        sequences.file = OpenOptions::new().append(true).open("/dev/null").unwrap();
        let in_the_way = path.with_extension("jsonl.new");
        std::fs::create_dir(&in_the_way).unwrap();
        sequences.take(&key("a"), Digest::of(b"1"), 7).unwrap();
        sequences.sync().unwrap_err();
        // From now on a flush would say that all is well.
        sequences.file = OpenOptions::new().append(true).open(&path).unwrap();
        sequences.sync().unwrap_err();
        std::fs::remove_dir(&in_the_way).unwrap();
        sequences.sync().unwrap();
        assert_eq!(Sequences::open(&path).unwrap().judge(&key("a"), Digest::of(b"1"), 7), Use::Same);
        sequences.take(&key("b"), Digest::of(b"2"), 8).unwrap();
        sequences.sync().unwrap();
        assert_eq!(Sequences::open(&path).unwrap().judge(&key("b"), Digest::of(b"2"), 8), Use::Same);
    }

    #[test]
    fn old_numbers_are_forgotten_as_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attested.jsonl");
        let mut sequences = Sequences::open(&path).unwrap();
        let digest = Digest::of(b"");
        for sequence in 10..10 + KEPT as u64 + 5 {
            sequences.take(&key("e"), digest, sequence).unwrap();
        }
        assert_eq!(sequences.judge(&key("e"), digest, 3), Use::Replayed);
        assert_eq!(sequences.judge(&key("e"), digest, 14), Use::Replayed);
        assert_eq!(sequences.judge(&key("e"), digest, 15), Use::Same);
        assert_eq!(Sequences::open(&path).unwrap().judge(&key("e"), digest, 14), Use::Replayed);
        // So many lines that the next start leaves out what is not needed, and the one after it reads the rest only.
        for sequence in 20_000..20_000 + 3 * KEPT as u64 {
            sequences.take(&key("e"), digest, sequence).unwrap();
        }
        drop(Sequences::open(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), KEPT);
        let sequences = Sequences::open(&path).unwrap();
        assert_eq!(sequences.judge(&key("e"), digest, 20_000), Use::Replayed);
        assert_eq!(sequences.judge(&key("e"), digest, 20_000 + 2 * KEPT as u64), Use::Same);
    }
}
