//! The line of migrations, decided from their records alone: where one stands, which versions it leads from and to.

use crate::{
    change::{Fate, Tactic},
    engine::Versions,
    error::Error,
    ir::{self, Migration},
    plan::Plan,
    state::{Phase, record::Record},
};

/// The schema version of a database.
pub(super) fn version(records: &[Record]) -> u64 {
    records
        .iter()
        .filter(|record| record.phase == Phase::Cleanup)
        .map(|record| record.position)
        .max()
        .unwrap_or(0)
}

/// Where a migration stands in the line.
pub(super) fn place(migration: &Migration, records: &[Record]) -> Result<u64, Error> {
    if let Some(record) = records.iter().find(|record| record.id() == migration.id)
        && record.phase != Phase::RolledBack
    {
        if record.hash != migration.hash() {
            let differences = ir::differences(&record.migration, migration);
            return Err(Error::Edited { id: migration.id.clone(), differences });
        }
        return Ok(record.position);
    }
    if let Some(unfinished) = records.iter().find(|record| record.is_unfinished()) {
        return Err(Error::Unfinished(unfinished.id().to_owned()));
    }
    let applied = records.iter().filter(|record| record.phase == Phase::Cleanup);
    let last = applied.max_by_key(|record| record.position);
    if last.map(Record::id) != migration.after.as_deref() {
        return Err(Error::OutOfOrder {
            id: migration.id.clone(),
            after: migration.after.clone(),
            last: last.map(|last| last.id().to_owned()),
        });
    }
    Ok(last.map_or(0, |last| last.position) + 1)
}

pub(super) fn versions(migration: &Migration, position: u64, records: &[Record]) -> Versions {
    let label = |version: &str| version.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let before = records
        .iter()
        .filter(|record| record.phase == Phase::Cleanup && record.position < position)
        .max_by_key(|record| record.position);
    let old = before.map(|record| match &record.migration.app_version {
        Some(version) => label(version),
        None => format!("p{}", record.position),
    });
    Versions {
        old: old.unwrap_or_else(|| "0".to_owned()),
        new: migration.app_version.as_deref().map_or_else(|| format!("p{position}"), label),
    }
}

pub(super) fn grace_ms(plan: &Plan) -> u64 {
    plan.changes.iter().map(|change| change.grace_s * 1000).max().unwrap_or(0)
}

/// Whether contract has anything to remove.
pub(super) fn leaves_something(plan: &Plan) -> bool {
    plan.changes.iter().any(|change| change.tactic != Tactic::Instant || change.fate == Fate::Drop)
}
