//! Who signed, and whether we trust them: the strict CMS profile, certificates, paths and revocation
//! (`docs/formats/trust.md`).
//!
//! [`verify`] is the one way from a signature to a list of signers; it follows the numbered steps of the document.
//! Signing lives here too, so that what we write and what we accept cannot drift apart.

mod certificate;
mod chain;
mod error;
mod profile;
mod revocation;
mod scheme;
mod sign;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use certificate::Certificate;
pub use error::{ProfileError, TrustError};
pub use revocation::RevocationLists;
pub(crate) use scheme::Key;
pub use sign::{SignError, cosign_manifest, sign_manifest};
pub use verify::SignedBy;
pub(crate) use verify::{claimed_signers, verify};
