//! The version gate's decisions: which code may hand in data, and how what was handed in is named and recorded.
//!
//! Owns the ids of hosts and episodes, commit hashes, the claim in a request's headers, the decision over it, and the row
//! that records a stored episode. It never asks git, a clock or a file: the set of known commits and its age are arguments.
//! Read [`decide`] first, then [`IndexRow`].

mod attest;
mod claim;
mod commit;
mod decide;
mod ids;
mod row;

pub use attest::{ATTESTATION_HEADER, Attestation, AttestationError, Statement};
pub use claim::{Claim, ClaimError, claim};
pub use commit::{CommitError, CommitHash, HashFormat};
pub use decide::{
    Admitted, Freshness, Known, Order, Refusal, Switch, WindowError, decide, freshness, window_of,
};
pub use ids::{EpisodeId, EpisodeKey, HostId, IngestIdError};
pub use row::{IndexRow, SCHEMA_VERSION, SeenRow, received_at_wall};
