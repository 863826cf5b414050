//! `delta`: arguments.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use cutover_core::model::DeltaAlgorithm;

/// `delta`.
#[derive(Debug, Subcommand)]
pub(crate) enum Delta {
    /// Makes a patch that turns OLD into NEW, and its description beside it.
    ///
    /// Tries the algorithms that can win, applies each patch, and keeps the best by the policy. One that is not smaller than NEW
    /// compressed is not written.
    Generate(DeltaGenerate),
    /// Makes the new file from OLD and PATCH.
    ///
    /// The base is hashed first, the patch before it is parsed, the result always. The output gets its name only when
    /// all of that held.
    Apply {
        /// The file the patch applies to.
        old: PathBuf,
        /// The patch.
        patch: PathBuf,
        /// The file to write.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
    /// Applies PATCH to OLD and throws the result away.
    Verify {
        /// The file the patch applies to.
        old: PathBuf,
        /// The patch.
        patch: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
    /// Shows what a patch is for, what its decoder needs, and what was tried when it was made.
    Inspect {
        /// The patch.
        patch: PathBuf,
        /// How the patch is described and what may be used.
        #[command(flatten)]
        with: DeltaWith,
    },
}

/// `delta generate`.
#[derive(Args, Debug)]
pub(crate) struct DeltaGenerate {
    /// The file that is there.
    pub(crate) old: PathBuf,
    /// The file that is wanted.
    pub(crate) new: PathBuf,
    /// The patch to write; its description gets the same name with `.json` behind it.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Only these: `bsdiff`, `xdelta3`, `vcdiff`, `zstd-dict`, `refdelta`. A single one is kept whatever its size.
    #[arg(long, value_name = "NAME")]
    pub(crate) algorithm: Vec<DeltaAlgorithm>,
    /// What counts when several patches will do.
    #[arg(long, value_enum, default_value_t = DeltaPolicy::Smallest)]
    pub(crate) policy: DeltaPolicy,
    /// The most memory a patch may need when it is applied, such as `64M`.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = byte_count)]
    pub(crate) memory: u64,
    /// How many patches are made at once. Default: as many as there are processors.
    #[arg(long, value_name = "COUNT")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// What counts when several patches will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeltaPolicy {
    /// The fewest bytes.
    Smallest,
    /// The least time to apply.
    FastestApply,
    /// The least time to download at 100 Mbit/s and apply.
    Balanced,
}

/// How a patch is described, and what may be used.
#[derive(Args, Debug)]
pub(crate) struct DeltaWith {
    /// The patch's description. Default: the patch's name with `.json` behind it.
    #[arg(long, value_name = "FILE")]
    pub(crate) description: Option<PathBuf>,
    /// The most memory that may be used, such as `64M`.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = byte_count)]
    pub(crate) memory: u64,
}

/// A number of bytes, with `K`, `M` or `G` for the powers of 1024.
fn byte_count(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "write a number of bytes, such as 65536, 64M or 2G".to_owned())
}
