//! Publishes: a repository of releases in a directory that any static web server serves, or wherever else [`Storage`] leads,
//! and the metadata by which clients trust it.
//!
//! Owns the layout of a repository (`docs/formats/repository.md`), its TUF metadata with keys and rotation, publishing that
//! is atomic for readers, removal, and the client that follows such a repository. It never installs anything, opens no
//! socket and reads no clock: files come through [`Fetch`], time is an argument.
//!
//! Read [`Publisher`] for the writing half; [`tuf::Client`] and [`Catalogue`] for the reading half.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod bases;
mod bootstrap;
mod catalogue;
mod channels;
mod commit;
mod directory;
mod error;
mod fetch;
mod grow_log;
mod hash;
mod index;
mod lock;
mod log;
mod manifest_patch;
mod open;
mod own_log;
mod present;
mod publish;
mod publisher;
mod refresh;
mod remove;
mod rotate;
mod settings;
mod sign;
mod state;
mod storage;
mod tombstone;
pub mod tuf;
mod verify;

pub use bases::Base;
pub use bootstrap::{BOOTSTRAP_PATH, Bootstrap, BootstrapError, first_root};
pub use catalogue::{Catalogue, CatalogueError, Chosen, ReleaseFiles, Wanted};
pub use directory::{Files, NewFile};
pub use error::PublishError;
pub use fetch::{Fetch, FetchError, read_bounded};
pub use index::{
    DeltaRef, FileRef, INDEX_BYTES_MAX, INDEX_FORMAT, Index, IndexEntry, IndexError, ManifestPatch,
    ObjectList, Yanked, delta_path, index_path, manifest_path, object_path, objects_path, parse_index_path,
    patch_path, signature_path,
};
pub use log::{Audit, CHECKPOINT_PATH, FollowedLog, LOG_KEY_PATH, LogError, audit, claimed_log_key};
pub use own_log::add_cosignatures;
pub use present::{Listed, list};
pub use publish::{NewDelta, NewRelease, Published};
pub use publisher::Publisher;
pub use remove::Removed;
pub use rotate::Rotation;
pub use settings::RepositorySettings;
pub use sign::{MetadataKey, SigningError, public_key_of};
pub use state::{State, StateDirectory};
pub use storage::{Batch, DirectoryStorage, Fill, Lock, Locked, Storage};
pub use verify::{CheckRelease, Report, verify};
