//! Who signs, and with what: the arguments of every command that makes a signature.

use std::path::PathBuf;

use clap::Args;

/// Who signs, and with what.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Signing {
    /// A private key (PKCS#8 in PEM). With several signers, one for each `--sign-cert`, in the same order.
    #[arg(long, value_name = "FILE", requires = "sign_cert", conflicts_with_all = ["pkcs11", "sign_command"])]
    pub(crate) sign_key: Vec<PathBuf>,
    /// A signer's certificate in PEM, followed by the authorities between it and the root.
    #[arg(long, value_name = "FILE")]
    pub(crate) sign_cert: Vec<PathBuf>,
    /// A key in a token: `pkcs11:token=…;object=…?module-path=…&pin-source=file:…`; without `--sign-cert` its
    /// certificate is read from the token too.
    #[arg(long, value_name = "URI", conflicts_with = "sign_command")]
    pub(crate) pkcs11: Option<String>,
    /// A command that gets the bytes to be signed on stdin and writes the signature to stdout; it runs in `sh -c`
    /// with `CUTOVER_SCHEME` (such as `ecdsa-p256-sha256`) and `CUTOVER_CERTIFICATE`.
    #[arg(long, value_name = "COMMAND", requires = "sign_cert")]
    pub(crate) sign_command: Option<String>,
}

/// Who signs a repository's metadata. Each key counts for the roles that the root lists it for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RepoKeys {
    /// A directory whose `*.key` files (PKCS#8 in PEM) are used.
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
    /// A private key (PKCS#8 in PEM). May be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// A key in a token: `pkcs11:token=…;object=…?module-path=…&pin-source=file:…`, which holds its certificate too.
    /// May be repeated.
    #[arg(long, value_name = "URI")]
    pub(crate) key_pkcs11: Vec<String>,
    /// A command that gets the bytes to be signed on stdin and writes the signature to stdout, as for bundles.
    #[arg(long, value_name = "COMMAND", requires = "key_cert")]
    pub(crate) key_command: Option<String>,
    /// A certificate with the key of `--key-command`; only its key matters.
    #[arg(long, value_name = "FILE", requires = "key_command")]
    pub(crate) key_cert: Option<PathBuf>,
}
