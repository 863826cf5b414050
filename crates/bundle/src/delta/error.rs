//! Why a delta is refused, by what a caller might treat differently.

use std::{fmt, io};

use cutover_core::model::Digest;

use super::Algorithm;

/// One of the three things a patch has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The old file.
    Base,
    /// The patch.
    Patch,
    /// The new file.
    Result,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Patch => "patch",
            Self::Result => "result",
        })
    }
}

/// Why a patch was not applied, or not made. Bytes that were written before must be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The base or the patch could not be read.
    #[error("failed to read the {part}")]
    Read {
        /// Which.
        part: Part,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output could not be written.
    #[error("failed to write the result")]
    Write(#[source] io::Error),
    /// The base, the patch or the result has another size than declared. For a result, `actual` is where it went wrong.
    #[error("the {part} has {actual} bytes instead of {expected}")]
    WrongSize {
        /// Which.
        part: Part,
        /// The declared size.
        expected: u64,
        /// The size found.
        actual: u64,
    },
    /// The base, the patch or the result is not the declared one.
    #[error("the {part} has the digest {actual} instead of {expected}")]
    WrongDigest {
        /// Which.
        part: Part,
        /// The declared digest.
        expected: Digest,
        /// The digest found.
        actual: Digest,
    },
    /// The patch breaks its format: damaged or hostile.
    #[error("the {algorithm} patch is damaged at byte {at} ({field}): {reason}")]
    Patch {
        /// Its format.
        algorithm: Algorithm,
        /// Where in the patch, in bytes; in a compressed stream, where in its decoded bytes.
        at: u64,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The patch uses a part of its format which this program does not read.
    #[error("the {algorithm} patch uses {feature}, which is not supported")]
    Unsupported {
        /// Its format.
        algorithm: Algorithm,
        /// The feature, by its name in the format.
        feature: String,
    },
    /// The decoder would need more memory than it may have. Nothing was allocated.
    #[error("the {algorithm} patch needs {needed} bytes of memory; the limit is {limit}")]
    Memory {
        /// Its format.
        algorithm: Algorithm,
        /// What it needs.
        needed: u64,
        /// What it may have.
        limit: u64,
    },
    /// A declared size is over its limit.
    #[error("the {what} is {actual}; the limit is {limit}")]
    Limit {
        /// What.
        what: &'static str,
        /// Its size.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// This build has no such codec.
    #[error("delta algorithm `{0}` is not part of this build")]
    Unavailable(Algorithm),
    /// No patch could be made.
    #[error("failed to make a {algorithm} patch: {reason}")]
    Generate {
        /// The format.
        algorithm: Algorithm,
        /// Why.
        reason: String,
    },
}

impl DeltaError {
    /// A stable word for logs and machines, one per kind of refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Write(_) => "delta.io",
            Self::WrongSize { part: Part::Base, .. } | Self::WrongDigest { part: Part::Base, .. } => {
                "delta.base"
            }
            Self::WrongSize { part: Part::Patch, .. } | Self::WrongDigest { part: Part::Patch, .. } => {
                "delta.patch"
            }
            Self::WrongSize { part: Part::Result, .. } | Self::WrongDigest { part: Part::Result, .. } => {
                "delta.result"
            }
            Self::Patch { .. } => "delta.damaged",
            Self::Unsupported { .. } => "delta.unsupported",
            Self::Memory { .. } => "delta.memory",
            Self::Limit { .. } => "delta.limit",
            Self::Unavailable(_) => "delta.unavailable",
            Self::Generate { .. } => "delta.generate",
        }
    }
}
