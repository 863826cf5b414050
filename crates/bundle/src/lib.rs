//! Proves: untrusted bytes become verified values.
//!
//! This crate owns the bundle container, its limits, the signature profile, the trust anchor, and the signers that make
//! such signatures. It never opens a path, a socket or a process and never reads a clock or the environment: sources
//! are [`ReadAt`] and [`std::io::Read`], time is an argument. One exception is documented in [`signer::Pkcs11Signer`]:
//! a PKCS#11 module is a shared library, which only its path can name.
//!
//! Read [`Bundle`] first, then [`VerifiedBundle`]: only [`Bundle::verify`] and [`verify_detached`] make verified values,
//! and nothing else can be staged.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod anchor;
mod container;
pub mod delta;
mod delta_bundle;
pub mod documents;
pub mod episode;
mod limits;
mod object;
pub mod pki;
mod read_at;
pub mod signer;
pub mod tlog;
mod trust;
mod write;
mod zstd_frame;

pub use anchor::TrustAnchor;
pub use container::{
    Bundle, BundleError, ContainerError, HEADER_BYTES, MAGIC, UntrustedView, VerifiedBundle,
    VerifiedManifest, verify_detached, verify_signature,
};
pub use delta_bundle::{
    DELTA_MAGIC, DeltaBundle, DeltaPayloadError, UntrustedDeltaView, VerifiedDelta, assemble_delta,
};
pub use limits::Limits;
pub use object::{ObjectError, ObjectWriter, WINDOW_BYTES_MAX, copy_object, decode_object};
pub use read_at::{RangeReader, ReadAt};
pub use trust::{
    ProfileError, RevocationLists, SignError, SignedBy, TrustError, cosign_manifest, sign_manifest,
};
pub use write::{AddedObject, Level, Payload, PayloadWriter, WriteError, assemble};
