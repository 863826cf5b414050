//! One pass over a stored episode: its digest, its size and, where it is asked for, the commit in its `meta.json`.

use std::{
    fmt::Display,
    io::{self, Read},
};

use cutover_bundle::episode::{CommitScan, ScanLimits, Scanned};
use cutover_core::{
    admission::CommitHash,
    model::{Digest, Hasher},
};

/// This many bytes are read and hashed at a time.
pub(super) const BLOCK: usize = 512 << 10;

/// Whether the commit is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    Find,
    Ignore,
}

/// What an episode is.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The commit it says it was made by; `None` also for what is no archive.
    pub(super) commit: Option<CommitHash>,
}

/// Reads an episode to its end, in memory that does not depend on it. `name` is for messages, `block` is read into, and
/// `tell` hears how many bytes came, again and again.
pub(super) fn inspect(
    episode: &mut dyn Read,
    commit: Commit,
    name: &dyn Display,
    block: &mut [u8],
    tell: &mut dyn FnMut(u64),
) -> io::Result<Inspected> {
    let mut scan = (commit == Commit::Find).then(|| CommitScan::new(ScanLimits::default())).transpose()?;
    let (mut hasher, mut size, mut looking) = (Hasher::new(), 0, true);
    loop {
        let read = match episode.read(block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&block[..read]);
        if let Some(scan) = scan.as_mut().filter(|_| looking) {
            looking = scan.push(&block[..read]) == Scanned::More;
        }
        size += read as u64;
        tell(read as u64);
    }
    let commit = scan.and_then(|scan| {
        let found = scan.finish();
        found.inspect_err(|reason| tracing::debug!(episode = %name, %reason, "no commit")).ok()
    });
    Ok(Inspected { digest: hasher.finish(), size, commit })
}
