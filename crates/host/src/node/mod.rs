//! One root: everything that is installed below one directory, and every way to change it.
//!
//! Owns the order of effects on disk and nothing else: what to do comes from `cutover-core` as a plan, and how far it got
//! is the fold over its journal. Never decides about versions or policy, and never deletes what a restore point needs.
//! Read [`Node`] first, then the `engine` module.

mod current;
mod engine;
mod error;
mod events;
mod execute;
mod files;
mod finish;
mod garbage;
mod history;
mod journal;
mod mend;
mod observe;
mod pack;
mod place;
mod prune;
mod recover;
mod report;
mod restore;
mod root;
mod run;
mod sets;
mod stage;
mod state_log;
mod status;
mod steps;
mod store;
mod switch;
mod tree;
mod under_way;
mod verify;

pub use self::{
    current::release_built_from,
    error::{NodeError, PointError, StageError},
    files::FsError,
    pack::{PackError, PackIndex},
    report::{
        Drift, Driven, Held, InFlight, Observed, PointListed, PruneReport, RepairReport, Report, Status,
        StepReport, StepResult, Way,
    },
    root::{CatalogPort, Node, NodeLock, NodeOptions, NodePorts},
    run::Ports,
    sets::{
        Member, Members, OpenSet, PartReport, PastSet, Perform, SetReport, coordinate, open_set, recover_set,
        sets, way_back,
    },
    state_log::{Idempotent, StateError, StateLog, StateObserver},
    store::StoreError,
    verify::Edited,
};
