//! The Update Framework (specification 1.0.33): metadata by which a client knows which releases are the ones to install
//! now. What it adds to a release's own signature: freshness, no step back, no mix of two states, keys that can be
//! replaced.
//!
//! Read [`TrustedMetadata`] first: it decides. [`Client`] fetches and keeps. Why this is not `tough` is told in
//! `docs/decisions/0020-metadata-client-of-our-own.md`.

mod canonical;
mod client;
mod delegation;
pub(crate) mod hex;
mod key;
mod role;
mod trusted;

pub use canonical::{NotCanonical, canonical};
pub use client::{Client, ClientError, ClientLimits};
pub(crate) use client::{consistent_target_path, metadata_path};
pub use key::{KeyValue, PublicKey};
pub use role::{
    DelegatedRole, Delegations, Envelope, Listing, Malformed, MetaFile, RoleKeys, RoleKind, Root, Signature,
    SuccinctRoles, TargetFile, Targets,
};
pub use trusted::{Change, Origin, Refused, TrustedMetadata};
