//! `pki`: arguments.

use std::path::PathBuf;

use clap::Subcommand;

/// `pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Makes a root authority and one signer: `root.pem`, `root.key`, `signer.pem`, `signer.key` (ECDSA P-256).
    Init {
        /// The directory to write to; it must not hold a PKI yet.
        dir: PathBuf,
        /// Your organization, as it stands in the certificates.
        #[arg(long, value_name = "NAME")]
        org: String,
        /// Days the root is valid.
        #[arg(long, default_value_t = 3650)]
        root_days: u32,
        /// Days the signer's certificate is valid.
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
    /// Issues one more signer's certificate from the root in DIR: `NAME.pem`, `NAME.key`.
    Issue {
        /// The directory of `pki init`.
        dir: PathBuf,
        /// The signer's name; also the name of its files.
        #[arg(long)]
        name: String,
        /// Your organization, as it stands in the certificate.
        #[arg(long, value_name = "NAME")]
        org: String,
        /// Days the certificate is valid.
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
    /// Makes a revocation list from the root in DIR.
    Revoke {
        /// The directory of `pki init`.
        dir: PathBuf,
        /// Serial numbers of all revoked certificates, as `bundle verify` shows them; none makes an empty list.
        #[arg(value_name = "SERIAL")]
        serials: Vec<String>,
        /// The list's number, which must grow from list to list.
        #[arg(long)]
        number: u64,
        /// Days until the next list is due.
        #[arg(long, default_value_t = 30)]
        days: u32,
        /// The file to write.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}
