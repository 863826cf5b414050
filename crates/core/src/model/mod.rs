//! The nouns every other part speaks: versions, digests, safe paths, manifests, restore points.
//!
//! Parsing is strict and happens once; a value of these types is valid for as long as it lives.

mod constraint;
mod delta;
mod delta_manifest;
mod digest;
mod id;
mod manifest;
mod parsed;
mod path;
mod release;
mod restore_point;
mod time;
mod version;

use parsed::Parsed;

pub use constraint::{Constraint, ConstraintError, Operator};
pub use delta::{DeltaAlgorithm, UnknownDeltaAlgorithm};
pub use delta_manifest::{
    DELTA_FORMAT, DeltaCandidate, DeltaDescription, DeltaFile, DeltaManifest, DeltaManifestError, DeltaTotals,
};
pub use digest::{Digest, DigestError, Hasher};
pub use id::{IdError, Name, RestorePointId};
pub use manifest::{
    BuildInfo, Conflict, DOCUMENT_BYTES_MAX, Document, DocumentKind, Encoding, FileEntry, FileKind, FileMode,
    Listen, MANIFEST_FORMAT, Manifest, ManifestError, ManifestLimits, ObjectEntry, Priority, Ready,
    Requirement, Schema, ServiceHints, Symlink,
};
pub use path::{PathError, SafePath, SafePathSet};
pub use release::{ReleaseName, ReleaseRef};
pub use restore_point::{RestorePoint, RestorePointError, SeenFile, SeenKind, SeenTree};
pub use time::{Instant, TimeError};
pub use version::{Version, VersionError};
