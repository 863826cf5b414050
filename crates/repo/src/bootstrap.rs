//! The first root of a client: vouched for by the same authorities that vouch for releases.
//!
//! TUF leaves open how a client gets its first root. Ours is signed with CMS by a signer that the anchor in the client's
//! executable trusts, so a new host needs nothing beside its program and the repository's address
//! (`docs/decisions/0022-the-anchor-vouches-for-the-first-root.md`).

use base64ct::{Base64, Encoding as _};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::{Fetch, FetchError},
    tuf::metadata_path,
};

/// Where the signature over a root lies.
pub const BOOTSTRAP_PATH: &str = "metadata/bootstrap.json";
const BOOTSTRAP_BYTES_MAX: u64 = 256 << 10;
const ROOT_BYTES_MAX: u64 = 512_000;

/// Which root a new client may start from, and the CMS signature over that file's exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Always 1.
    pub format: u32,
    /// The root's version.
    pub root_version: u64,
    /// The signature, in Base64.
    pub signature: String,
}

/// Why a client has no root to start from.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Something could not be fetched.
    #[error("failed to fetch `{path}`")]
    Fetch {
        /// What.
        path: String,
        /// The cause.
        #[source]
        source: FetchError,
    },
    /// The bootstrap file cannot be read.
    #[error("`{BOOTSTRAP_PATH}` cannot be read: {0}")]
    Malformed(String),
}

impl Bootstrap {
    /// Names a root and its signature.
    pub fn new(root_version: u64, signature: &[u8]) -> Self {
        Self { format: 1, root_version, signature: Base64::encode_string(signature) }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("it always serialises");
        bytes.push(b'\n');
        bytes
    }
}

/// Fetches the root that a new client may start from, and the CMS signature over it. The caller believes the root only
/// after it has verified the signature against the anchor.
///
/// # Errors
/// See [`BootstrapError`].
pub fn first_root(fetch: &dyn Fetch) -> Result<(Vec<u8>, Vec<u8>), BootstrapError> {
    let get = |path: &str, limit| {
        fetch.fetch(path, limit).map_err(|source| BootstrapError::Fetch { path: path.to_owned(), source })
    };
    let malformed = |reason: String| BootstrapError::Malformed(reason);
    let bytes = get(BOOTSTRAP_PATH, BOOTSTRAP_BYTES_MAX)?;
    let bootstrap: Bootstrap =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if bootstrap.format != 1 {
        return Err(malformed(format!("its format {} is unsupported", bootstrap.format)));
    }
    let signature = Base64::decode_vec(&bootstrap.signature)
        .map_err(|_| malformed("its signature is no Base64".to_owned()))?;
    let root = get(&metadata_path("root", Some(bootstrap.root_version)), ROOT_BYTES_MAX)?;
    Ok((root, signature))
}
