//! The manifest: the signed description of a release.
//!
//! [`Manifest::parse`] turns bytes into a value for which every rule of [`Manifest::check`] holds. The signature covers the
//! bytes that were given, never a re-serialisation, so there is no canonical form to get wrong. Format:
//! `docs/formats/bundle.md`.

mod bytes;
mod contents;
mod description;
mod document;
mod error;
mod limits;
mod rules;
mod service;
#[cfg(test)]
mod tests;

pub use self::{
    contents::{Encoding, FileEntry, FileKind, FileMode, ObjectEntry, Symlink},
    description::{BuildInfo, Conflict, MANIFEST_FORMAT, Manifest, Priority, Requirement, Schema},
    document::{DOCUMENT_BYTES_MAX, Document, DocumentKind},
    error::ManifestError,
    limits::ManifestLimits,
    service::{Listen, Ready, ServiceHints},
};
