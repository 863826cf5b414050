//! Plans: what will be done to which table, by which tactic, under which locks, and what a rollback would lose.
//!
//! Pure: a plan is a function of the migration, the catalog and the policy. `apply` runs exactly the plan whose hash was
//! approved. Read [`Plan`] first.

mod compose;
mod print;
mod tactic;

use std::collections::{BTreeMap, BTreeSet};

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    catalog::Catalog,
    change::{ColumnFate, Fate, NewConstraint, RowStep, TableChange, Tactic, quoted},
    engine::{ExprCheck, Policy},
    error::{Error, Refusal},
    ir::{Dialect, Ident, Migration, OnReject, Op, canonical_json},
};

/// One line of the printed plan: one step of the migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The number of the step, from 1.
    pub number: usize,
    /// The operation's word.
    pub op: String,
    /// What it is about: `users.phone`.
    pub target: String,
    /// How.
    pub tactic: Tactic,
    /// The lock that clients may wait for: `AE`, `SUE`, `W`, or `-`.
    pub lock: String,
    /// How long it is held, for people: `<20 ms`.
    pub hold: String,
    /// Whether the table is rewritten.
    pub rewrite: bool,
    /// Estimated time, in milliseconds.
    pub estimate_ms: u64,
    /// Estimated disk, in bytes.
    pub disk_bytes: u64,
    /// Whether it can be undone before the swap.
    pub undo_before: bool,
    /// Whether it can be undone after the swap, and how: `yes`, `until contract`, `no`.
    pub undo_after: String,
    /// What a rollback after the swap loses.
    pub lost: Option<String>,
}

/// What is there before and after, exactly (case X15).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// What comes: `column users.phone`.
    pub added: Vec<String>,
    /// What goes.
    pub removed: Vec<String>,
    /// What changes: `column users.email -> email_address`.
    pub modified: Vec<String>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The migration's id.
    pub id: String,
    /// The migration's hash.
    pub hash: Digest,
    /// The position it leads to: the schema version.
    pub position: u64,
    /// The digest of the catalog it was made on.
    pub on_schema: Digest,
    /// The engine.
    pub dialect: Dialect,
    /// The engine's version.
    pub server_version: String,
    /// What is done, per table.
    pub changes: Vec<TableChange>,
    /// What is done, per step.
    pub steps: Vec<PlannedStep>,
    /// Whether every step only adds: then code of both versions runs on it without views.
    pub additive: bool,
    /// Indexes that are built without blocking writers.
    pub online_indexes: Vec<String>,
    /// What comes, goes and changes.
    pub preview: Preview,
    /// Disk needed at most, in bytes.
    pub disk_bytes: u64,
    /// Rows that are copied or filled in, by the engine's estimate.
    #[serde(default)]
    pub rows: u64,
    /// The programs of plugin steps, by `NAME@VERSION`, with their SHA-256.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<String, Digest>,
    /// Things to know before approving.
    pub warnings: Vec<String>,
}

impl Plan {
    /// What is approved: SHA-256 of everything that decides what is done; estimates, warnings and versions do not count.
    pub fn approval(&self) -> Digest {
        let value = serde_json::json!({
            "id": self.id,
            "hash": self.hash,
            "position": self.position,
            "on_schema": self.on_schema,
            "dialect": self.dialect,
            "changes": self.changes,
            "plugins": self.plugins,
        });
        Digest::of(canonical_json(&value).as_bytes())
    }
}

/// The tables a migration touches, by their names before it: what [`crate::engine::Engine::observe`] is asked for.
pub fn tables(migration: &Migration) -> Vec<Ident> {
    let mut names = BTreeSet::new();
    for step in &migration.steps {
        names.insert(step.table().clone());
        match step {
            Op::RenameTable { to, .. } => {
                names.insert(to.clone());
            }
            Op::AddForeignKey { references, .. } => {
                names.insert(references.table.clone());
            }
            _ => {}
        }
    }
    names.into_iter().collect()
}

/// Makes the plan.
///
/// # Errors
/// [`Error::Refused`] with every reason, each with a way out.
pub fn plan(migration: &Migration, position: u64, catalog: &Catalog, policy: &Policy) -> Result<Plan, Error> {
    crate::file::check(migration)?;
    let composed = compose::compose(migration, catalog).map_err(Error::Refused)?;
    let mut changes = composed.changes;
    let mut refusals: Vec<Refusal> = catalog.facts.obstacles.clone();
    let mut warnings = Vec::new();
    let of_steps: Vec<tactic::Judged> = migration
        .steps
        .iter()
        .zip(&composed.step_of)
        .map(|(step, at)| tactic::judge(step, &changes[*at], catalog, policy))
        .collect();
    for (judged, at) in of_steps.iter().zip(&composed.step_of) {
        changes[*at].tactic = changes[*at].tactic.max(judged.tactic);
    }
    for change in &changes {
        let Some(table) = catalog.tables.get(&change.table) else { continue };
        refusals.extend(tactic::obstacles(change, table, catalog));
        warnings.extend(tactic::warnings(change, table, catalog.dialect));
    }
    for change in changes.iter().filter(|change| change.on_reject == OnReject::Quarantine) {
        warnings.push(format!(
            "rows of `{}` that do not fit are set aside; the swap waits until they are approved",
            change.table
        ));
    }
    if !refusals.is_empty() {
        return Err(Error::Refused(refusals));
    }
    let steps: Vec<PlannedStep> = of_steps
        .into_iter()
        .zip(migration.steps.iter().zip(&composed.step_of))
        .enumerate()
        .map(|(at, (judged, (step, change)))| tactic::line(at + 1, step, judged, &changes[*change], catalog))
        .collect();
    let disk_bytes = tactic::disk(&changes, catalog);
    match catalog.facts.disk_free_bytes {
        Some(free) if free < disk_bytes => {
            return Err(Error::refused(
                format!("{disk_bytes} bytes of disk are needed and {free} are free"),
                "Make room, or split the migration.",
            ));
        }
        None if disk_bytes > 0 => {
            warnings
                .push(format!("nobody can say how much disk is free; up to {disk_bytes} bytes are needed"));
        }
        _ => {}
    }
    if let Some(old) = &catalog.facts.oldest_transaction
        && old.seconds > 60
    {
        warnings.push(format!(
            "a transaction runs for {} s ({}): locks and indexes wait for it",
            old.seconds, old.owner
        ));
    }
    let additive = is_additive(migration);
    if !additive && migration.app_version.is_none() && !migration.steps.is_empty() {
        warnings.push("no `app_version`: contract cannot wait for the fleet".to_owned());
    }
    let online_indexes = changes.iter().flat_map(|change| &change.add_indexes).filter(|index| index.online);
    Ok(Plan {
        id: migration.id.clone(),
        hash: migration.hash(),
        position,
        on_schema: catalog.digest(),
        dialect: catalog.dialect,
        server_version: catalog.server_version.clone(),
        online_indexes: online_indexes.map(|index| index.name.to_string()).collect(),
        preview: preview(&changes),
        steps,
        additive,
        disk_bytes,
        rows: tactic::rows_to_copy(&changes, catalog),
        plugins: BTreeMap::new(),
        warnings,
        changes,
    })
}

/// Whether a migration only adds: new tables, columns that old code need not know, indexes that forbid nothing. A migration
/// without steps adds nothing (case X14).
pub fn is_additive(migration: &Migration) -> bool {
    let adds = |step: &Op| match step {
        Op::CreateTable { .. } => true,
        Op::AddColumn { column, .. } => column.nullable || column.default.is_some(),
        Op::AddIndex { unique, .. } => !unique,
        _ => false,
    };
    !migration.steps.is_empty() && migration.steps.iter().all(adds)
}

/// Queries that can be prepared only if the expressions of a plan are valid over the tables as they are. Expressions that
/// need the new shape are checked over a sub-select that has it.
pub fn expression_checks(plan: &Plan) -> Vec<ExprCheck> {
    let mut checks = Vec::new();
    for change in plan.changes.iter().filter(|change| change.fate == Fate::Alter) {
        let table = change.table.quoted();
        for column in &change.columns {
            let name = column.now.as_ref().or(column.then.as_ref()).map(Ident::as_str).unwrap_or_default();
            if let Some(up) = &column.up {
                let query = format!("SELECT ({up}) FROM {table}");
                checks.push(ExprCheck { query, what: format!("`up` of `{}.{name}`", change.table) });
            }
        }
        if checks.is_empty() && change.rows.is_empty() && change.add_constraints.is_empty() {
            continue;
        }
        let shaped = format!("({}) AS _cutover_shape", change.up_query(&table, &[]));
        checks.push(ExprCheck {
            query: format!("SELECT 1 FROM {shaped}"),
            what: format!("steps on `{}`", change.table),
        });
        let down = change.columns.iter().any(|column| column.down.is_some() && column.then.is_some());
        if down
            || change.rows.iter().any(|step| matches!(step, RowStep::Sql { down, .. } if !down.is_empty()))
        {
            let query = change.down_query(&shaped, &[]);
            checks.push(ExprCheck { query, what: format!("`down` on `{}`", change.table) });
        }
        for check in change.checks() {
            let query = format!("SELECT 1 FROM {shaped} WHERE ({check})");
            checks.push(ExprCheck { query, what: format!("`check` on `{}`", change.table) });
        }
        for constraint in &change.add_constraints {
            if let NewConstraint::Check { name, expr } = constraint {
                let query = format!("SELECT 1 FROM {shaped} WHERE ({expr})");
                checks.push(ExprCheck { query, what: format!("check constraint `{name}`") });
            }
        }
        for index in &change.add_indexes {
            if let Some(filter) = &index.filter {
                let query = format!("SELECT 1 FROM {shaped} WHERE ({filter})");
                checks.push(ExprCheck { query, what: format!("`where` of index `{}`", index.name) });
            }
        }
    }
    checks
}

fn preview(changes: &[TableChange]) -> Preview {
    let mut preview = Preview::default();
    for change in changes {
        let table = change.name_then();
        match change.fate {
            Fate::Create => preview.added.push(format!("table {table}")),
            Fate::Drop => {
                preview.removed.push(format!("table {table}"));
                continue;
            }
            Fate::Alter => {}
        }
        if let Some(to) = &change.rename_to {
            preview.modified.push(format!("table {} -> {to}", change.table));
        }
        for column in &change.columns {
            let (now, then) = (column.now.as_ref(), column.then.as_ref());
            match (column.fate, now, then) {
                (ColumnFate::Add, _, Some(then)) => {
                    let kind = column.type_then.as_deref().unwrap_or_default();
                    preview.added.push(format!("column {table}.{then} {kind}"));
                }
                (ColumnFate::Drop, Some(now), _) => preview.removed.push(format!("column {table}.{now}")),
                (fate, Some(now), Some(then)) => {
                    if now != then {
                        preview.modified.push(format!("column {table}.{now} -> {then}"));
                    }
                    if fate == ColumnFate::Alter {
                        let shape = |kind: &Option<String>, nullable: bool, default: &Option<String>| {
                            let mut text = kind.clone().unwrap_or_default();
                            if !nullable {
                                text.push_str(" not null");
                            }
                            if let Some(default) = default {
                                text.push_str(&format!(" default {default}"));
                            }
                            text
                        };
                        let was = shape(&column.type_now, column.nullable_now, &column.default_now);
                        let is = shape(&column.type_then, column.nullable_then, &column.default_then);
                        preview.modified.push(format!("column {table}.{then}: {was} -> {is}"));
                    }
                }
                _ => {}
            }
        }
        for index in &change.add_indexes {
            let unique = if index.unique { "unique index" } else { "index" };
            preview.added.push(format!("{unique} {} on {table} ({})", index.name, quoted(&index.columns)));
        }
        preview.removed.extend(change.drop_indexes.iter().map(|name| format!("index {name}")));
        preview.added.extend(
            change
                .add_constraints
                .iter()
                .map(|constraint| format!("constraint {} on {table}", constraint.name())),
        );
        preview
            .removed
            .extend(change.drop_constraints.iter().map(|name| format!("constraint {name} on {table}")));
        for step in &change.rows {
            match step {
                RowStep::Sql { set, .. } => {
                    preview
                        .modified
                        .push(format!("rows {table}: {}", quoted(set.iter().map(|(name, _)| name))));
                }
                RowStep::Function { name, write, .. } => {
                    preview.modified.push(format!("rows {table}: {} by {name}", quoted(write)));
                }
            }
        }
    }
    preview
}
