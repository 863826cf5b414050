//! `bundle`: arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cutover_core::model::{Instant, Version};

use super::signing::Signing;

/// `bundle`.
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Packs a directory into a bundle; signs it when a key is given.
    Create(Create),
    /// Signs a bundle.
    Sign {
        /// The bundle.
        bundle: PathBuf,
        /// The file to write. Default: the bundle is replaced.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Adds to the present signatures instead of replacing them.
        #[arg(long)]
        add: bool,
        /// Who signs.
        #[command(flatten)]
        signing: Signing,
    },
    /// Verifies signature, manifest and every payload byte against this program's trust anchor.
    Verify {
        /// The bundle.
        bundle: PathBuf,
    },
    /// Shows what a bundle claims about itself; verifies nothing.
    Inspect {
        /// The bundle.
        bundle: PathBuf,
        /// Prints the manifest's exact bytes, of a delta bundle those of the delta manifest; on a terminal without what could steer it.
        #[arg(long)]
        manifest: bool,
    },
    /// Unpacks the files of a verified bundle into a new directory.
    Extract {
        /// The bundle.
        bundle: PathBuf,
        /// The directory to make.
        #[arg(long, short, value_name = "DIR")]
        output: PathBuf,
        /// Also writes the documents about the release, `sbom.cdx.json` and `provenance.intoto.json`, into this directory.
        #[arg(long, value_name = "DIR")]
        documents: Option<PathBuf>,
    },
}

/// `bundle create`.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The directory that holds the release's files.
    pub(crate) dir: PathBuf,
    /// What is released: `release.toml`.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: PathBuf,
    /// The version, in place of the one in the specification.
    #[arg(long, value_name = "VERSION")]
    pub(crate) release_version: Option<Version>,
    /// The file to write.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// When it was released, such as `2026-01-02T03:04:05Z`. Default: `SOURCE_DATE_EPOCH`, else now.
    #[arg(long, value_name = "TIME")]
    pub(crate) released_at: Option<Instant>,
    /// An earlier bundle: also writes a delta bundle that leads from its release to this one.
    #[arg(long, value_name = "OLD")]
    pub(crate) delta_from: Option<PathBuf>,
    /// The delta bundle to write. Default: beside the bundle, `NAME.from-VERSION.cutover-delta`.
    #[arg(long, value_name = "FILE", requires = "delta_from")]
    pub(crate) delta_output: Option<PathBuf>,
    /// What the release is made of: a CycloneDX document in JSON. It is signed with the release, and not installed.
    #[arg(long, value_name = "FILE")]
    pub(crate) sbom: Option<PathBuf>,
    /// How the release was made: an in-toto statement with SLSA provenance, whose subjects are files of the release. It is
    /// signed with the release, and not installed.
    #[arg(long, value_name = "FILE")]
    pub(crate) provenance: Option<PathBuf>,
    /// Zstandard level, 1 (fast) to 22 (small).
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Who signs.
    #[command(flatten)]
    pub(crate) signing: Signing,
}
