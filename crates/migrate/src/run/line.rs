//! The line of migrations, decided from their records alone: where one stands, which versions it leads from and to.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{
    change::{Fate, Tactic},
    engine::{Before, Versions},
    error::Error,
    ir::{self, Ident, Migration},
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

/// What the views of the code that knows a migration are named after.
fn label(version: &Option<String>, position: u64) -> String {
    match version {
        Some(version) => of_code(version),
        None => format!("p{position}"),
    }
}

/// A version of the code as it is in the names of views.
pub(super) fn of_code(version: &str) -> String {
    version.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// Every version that code may have here, as it is in the names of views: before the first migration, and of each that was
/// begun.
pub(super) fn labels(records: &[Record]) -> Vec<String> {
    let begun = records.iter().filter(|record| record.phase != Phase::RolledBack);
    let begun = begun.map(|record| label(&record.migration.app_version, record.position));
    std::iter::once("0".to_owned()).chain(begun).collect()
}

/// The versions beside a migration: whoever does not know it, back to the contract that waited until nothing older ran. A
/// contract of what only adds waits for nothing (decision 0064).
pub(super) fn versions(migration: &Migration, position: u64, records: &[Record]) -> Versions {
    let mut line: Vec<&Record> = records
        .iter()
        .filter(|record| record.phase == Phase::Cleanup && record.position < position)
        .collect();
    line.sort_by_key(|record| Reverse(record.position));
    let (mut before, mut runs, mut unknown) = (Vec::<Before>::new(), true, BTreeSet::new());
    let mut add = |label: String, runs: bool, unknown: &BTreeSet<Ident>| {
        if before.iter().all(|other| other.label != label) {
            before.push(Before { label, runs, unknown: unknown.clone() });
        }
    };
    for record in line {
        add(label(&record.migration.app_version, record.position), runs, &unknown);
        runs &= !record.contracted || record.plan.additive;
        let created = record.plan.changes.iter().filter(|change| change.fate == Fate::Create);
        unknown.extend(created.map(|change| change.table.clone()));
    }
    add("0".to_owned(), runs, &unknown);
    Versions { before, new: label(&migration.app_version, position) }
}

pub(super) fn grace_ms(plan: &Plan) -> u64 {
    plan.changes.iter().map(|change| change.grace_s * 1000).max().unwrap_or(0)
}

/// Whether contract has anything to remove.
pub(super) fn leaves_something(plan: &Plan) -> bool {
    plan.changes.iter().any(|change| change.tactic != Tactic::Instant || change.fate == Fate::Drop)
}
