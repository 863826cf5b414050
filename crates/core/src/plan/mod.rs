//! Plans: what an update or a rollback will do, with no choice left open.
//!
//! [`plan_update`] and [`plan_rollback`] decide from an [`Observation`]; [`check_plan`] re-derives the safety rules from
//! the same facts without sharing code with the planner. `host` executes exactly what a [`Plan`] says.

mod check;
mod planner;
mod step;

pub use check::{Violation, check_plan};
pub use planner::{
    Copies, Installed, KeptTree, LocalChanges, Observation, PointSeen, Policy, Refusal, RollbackTarget,
    SchemaSeen, need_after, plan_rollback, plan_update,
};
pub use step::{
    Change, CheckTree, Expand, Layout, MigrationFile, OnProbeFailure, Ownership, Plan, PlanBytes, PlanKind,
    Reuse, Source, Stage, StageFile, Step, Switch,
};
