//! Finds the commit in an archive while its bytes stream by.

use cutover_core::admission::CommitHash;
use zstd::{
    stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer},
    zstd_safe,
};

use super::{
    META_NAME, commit_in_meta,
    tar::{Finder, Found},
};

/// What an archive may cost whoever looks into it.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// The largest `meta.json`, in bytes.
    pub meta_bytes_max: u64,
    /// The largest window of a Zstandard frame, as a power of two: what the decoder may allocate.
    pub window_log_max: u32,
    /// How many bytes may come out for each byte that goes in, once [`Self::free_bytes`] have come out.
    pub expansion_max: u64,
    /// How many bytes may come out whatever went in.
    pub free_bytes: u64,
}

impl Default for ScanLimits {
    /// 1 MiB of `meta.json`, 128 MiB of window (the most that `zstd` writes and reads without being told), 1,000 bytes out for
    /// each byte in after the first 256 MiB.
    fn default() -> Self {
        Self { meta_bytes_max: 1 << 20, window_log_max: 27, expansion_max: 1000, free_bytes: 256 << 20 }
    }
}

/// Why an archive says no commit. It is stored all the same: archives are opaque to a receiver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCommit {
    /// Not Zstandard, or damaged.
    #[error("it is no Zstandard file: {0}")]
    NotZstd(String),
    /// Not tar inside.
    #[error("it is no tar archive: {0}")]
    NotTar(&'static str),
    /// It ends in the middle.
    #[error("it is cut off")]
    Cut,
    /// It grows out of all proportion.
    #[error("more than {0} bytes come out of it")]
    Bomb(u64),
    /// There is no `meta.json`.
    #[error("it holds no meta.json")]
    NoMeta,
    /// It is larger than anybody writes.
    #[error("its meta.json has {0} bytes")]
    MetaTooLarge(u64),
    /// It says no commit.
    #[error("its meta.json has no full commit in `code_version.commit`")]
    NoCommit,
}

/// What is known after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Nothing yet.
    More,
    /// The commit. Nothing after it is looked at.
    Commit(CommitHash),
    /// There is none, and further bytes change nothing.
    Nothing(NoCommit),
}

/// Looks for the commit in an archive that is pushed in: `tar` within Zstandard.
///
/// Takes as much memory as the limits say, writes nothing, and stops at the first `meta.json`.
pub struct CommitScan {
    decoder: Decoder<'static>,
    finder: Finder,
    limits: ScanLimits,
    out: Box<[u8]>,
    taken: u64,
    given: u64,
    /// Whether the last byte that was taken ended a frame.
    complete: bool,
    ended: Option<Scanned>,
}

impl CommitScan {
    /// Starts before the first byte.
    ///
    /// # Errors
    /// There is no memory for a decoder.
    pub fn new(limits: ScanLimits) -> std::io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(limits.window_log_max))?;
        Ok(Self {
            decoder,
            finder: Finder::new(META_NAME, limits.meta_bytes_max),
            limits,
            out: vec![0; zstd_safe::DCtx::out_size()].into_boxed_slice(),
            taken: 0,
            given: 0,
            complete: false,
            ended: None,
        })
    }

    /// Takes the next bytes of the archive. Once something else than [`Scanned::More`] came, further calls cost nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Scanned {
        if self.ended.is_none() {
            self.ended = self.advance(bytes);
        }
        self.ended.clone().unwrap_or(Scanned::More)
    }

    /// The archive ended.
    ///
    /// # Errors
    /// [`NoCommit`]: why it says none.
    pub fn finish(self) -> Result<CommitHash, NoCommit> {
        match self.ended {
            Some(Scanned::Commit(commit)) => Ok(commit),
            Some(Scanned::Nothing(reason)) => Err(reason),
            Some(Scanned::More) | None if self.taken == 0 => Err(NoCommit::NotZstd("it is empty".to_owned())),
            Some(Scanned::More) | None if self.complete => Err(NoCommit::NoMeta),
            Some(Scanned::More) | None => Err(NoCommit::Cut),
        }
    }

    fn advance(&mut self, bytes: &[u8]) -> Option<Scanned> {
        let mut input = InBuffer::around(bytes);
        loop {
            let before = input.pos();
            let mut output = OutBuffer::around(&mut self.out[..]);
            let hint = match self.decoder.run(&mut input, &mut output) {
                Ok(hint) => hint,
                Err(error) => return Some(Scanned::Nothing(NoCommit::NotZstd(error.to_string()))),
            };
            let came = output.pos();
            self.taken += (input.pos() - before) as u64;
            self.given += came as u64;
            if let Some(found) = self.finder.push(&self.out[..came]) {
                return Some(conclude(found));
            }
            let allowed = self.taken.saturating_mul(self.limits.expansion_max).max(self.limits.free_bytes);
            if self.given > allowed {
                return Some(Scanned::Nothing(NoCommit::Bomb(allowed)));
            }
            // After the end of a frame the decoder starts the next one by itself.
            self.complete = hint == 0;
            let full = came == self.out.len();
            if input.pos() == bytes.len() && !full {
                return None;
            }
        }
    }
}

fn conclude(found: Found) -> Scanned {
    match found {
        Found::Member(meta) => match commit_in_meta(&meta) {
            Some(commit) => Scanned::Commit(commit),
            None => Scanned::Nothing(NoCommit::NoCommit),
        },
        Found::Nothing => Scanned::Nothing(NoCommit::NoMeta),
        Found::TooLarge(size) => Scanned::Nothing(NoCommit::MetaTooLarge(size)),
        Found::Malformed(reason) => Scanned::Nothing(NoCommit::NotTar(reason)),
    }
}
