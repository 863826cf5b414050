//! Rows that do not fit the new shape: an error, or set aside where the migration says so.
//!
//! Dual write remembers a misfit in `dirty`, with a reason; the copy finds others ([`super::copy`]). Set aside, a row stands in
//! `cutover.reject`, and T does not have it. S keeps it until contract.

use super::{
    PostgresEngine,
    copy::drain,
    polite::{fence, unfence},
    relation::Relation,
    session::{Row, literal},
    shape::Shape,
    sync::{Sync as Dual, Way},
};
use crate::{
    engine::Task,
    error::{Error, Refusal},
    ir::OnReject,
    state::reject,
};

/// Whether rows of a change that do not fit are set aside.
pub(crate) fn sets_aside(shape: &Shape<'_>) -> bool {
    shape.change.on_reject == OnReject::Quarantine
}

/// The condition on rows of the list, which is called `alias`, that they are of this change.
fn of_change(alias: &str, task: &Task<'_>, shape: &Shape<'_>) -> String {
    format!(
        "{alias}.migration = {} AND {alias}.table_name = {}",
        literal(task.migration),
        literal(shape.change.table.as_str())
    )
}

/// A statement that moves misfits from `dirty` to the list; a row that is on it keeps its approval.
pub(crate) fn set_misfits_aside(task: &Task<'_>, shape: &Shape<'_>, dual: &Dual<'_>) -> String {
    let parts: Vec<String> = (1..=dual.types.len()).map(|at| format!("d.k{at}::text")).collect();
    let same: Vec<String> =
        dual.source_key.iter().enumerate().map(|(at, name)| format!("s.{name} = d.k{}", at + 1)).collect();
    format!(
        "WITH d AS (DELETE FROM {dirty} WHERE reason IS NOT NULL RETURNING *) \
         INSERT INTO cutover.reject (migration, table_name, row_key, reason, row_text, approved) \
         SELECT {migration}, {table}, json_build_array({parts})::text, min(d.reason), min((SELECT s::text FROM {source} AS s WHERE {same})), 0 \
         FROM d GROUP BY 3 {KEEP_APPROVAL}",
        migration = literal(task.migration),
        table = literal(shape.change.table.as_str()),
        parts = parts.join(", "),
        source = dual.source,
        same = same.join(" AND "),
        dirty = dual.dirty(),
    )
}

/// What an INSERT into the list does with a row that is on it.
pub(crate) const KEEP_APPROVAL: &str = "ON CONFLICT (migration, table_name, row_key) DO UPDATE SET reason = excluded.reason, row_text = excluded.row_text";

/// A condition that is true while rows of the change wait for approval.
pub(crate) fn some_wait(task: &Task<'_>, shape: &Shape<'_>) -> String {
    format!(
        "EXISTS (SELECT 1 FROM cutover.reject AS r WHERE {} AND r.approved = 0)",
        of_change("r", task, shape)
    )
}

/// Rows that were set aside are not compared, for their new values cannot even be computed; nor are those about to be synced.
pub(crate) fn not_rejected(task: &Task<'_>, shape: &Shape<'_>, dual: &Dual<'_>) -> String {
    if !sets_aside(shape) {
        return String::new();
    }
    let dirty: Vec<String> =
        dual.source_key.iter().enumerate().map(|(at, name)| format!("d.k{} = s.{name}", at + 1)).collect();
    format!(
        " AND NOT EXISTS (SELECT 1 FROM cutover.reject AS r WHERE {} AND r.row_key = json_build_array({})::text) \
          AND NOT EXISTS (SELECT 1 FROM {} AS d WHERE {})",
        of_change("r", task, shape),
        dual.key_text("s"),
        dual.dirty(),
        dirty.join(" AND ")
    )
}

impl PostgresEngine {
    /// Misfits that dual write remembered: an error, or set aside.
    pub(super) fn settle_misfits(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        way: Way,
    ) -> Result<(), Error> {
        let dual = Dual::new(shape, way);
        if way == Way::Forward && sets_aside(shape) {
            let sql = format!("{}; {}", fence(task.epoch), set_misfits_aside(task, shape, &dual));
            return self.session.transaction(&sql).map(drop).map_err(unfence(task.epoch));
        }
        let columns: Vec<String> = (1..=dual.types.len()).map(|at| format!("k{at}::text")).collect();
        let rows = self.session.run(&format!(
            "SELECT json_build_array({})::text, min(reason) FROM {} WHERE reason IS NOT NULL GROUP BY 1 LIMIT {}",
            columns.join(", "),
            dual.dirty(),
            task.policy.sample
        ))?;
        if rows.is_empty() {
            return Ok(());
        }
        let part = |row: &Row, at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        Err(Error::Rejected {
            table: shape.change.table.clone(),
            count: rows.len() as u64,
            sample: rows
                .iter()
                .map(|row| format!("{} = {}: {}", shape.key.join(", "), part(row, 0), part(row, 1)))
                .collect(),
        })
    }

    /// Tries every row that was set aside once more, for what was in its way may be gone, and takes those off the list that T has
    /// now or S has not. Returns how many keys were synced.
    pub(super) fn retry_rejects(&mut self, task: &Task<'_>, shape: &Shape<'_>) -> Result<u64, Error> {
        if !sets_aside(shape) {
            return Ok(0);
        }
        let dual = Dual::new(shape, Way::Forward);
        let types = shape.key_types();
        let key = |at: usize| format!("(r.row_key::json->>{at})::{}", types[at].0);
        let keys: Vec<String> = (0..types.len()).map(key).collect();
        let change = of_change("r", task, shape);
        self.session
            .transaction(&format!(
                "{}; INSERT INTO {} ({}) SELECT {} FROM cutover.reject AS r WHERE {change}",
                fence(task.epoch),
                dual.dirty(),
                dual.dirty_columns(),
                keys.join(", ")
            ))
            .map_err(unfence(task.epoch))?;
        let synced = drain(self, task, &dual, true)?;
        self.settle_misfits(task, shape, Way::Forward)?;
        // In the old type: a key may be what does not fit.
        let equal = |alias: &str, names: &[String], then: bool| {
            let parts = names.iter().zip(&keys).zip(&types).map(|((name, key), (old, new))| {
                match then && old != new {
                    true => format!("{alias}.{name}::{old} = {key}"),
                    false => format!("{alias}.{name} = {key}"),
                }
            });
            parts.collect::<Vec<_>>().join(" AND ")
        };
        self.session
            .transaction(&format!(
                "{}; DELETE FROM cutover.reject AS r WHERE {change} AND (NOT EXISTS (SELECT 1 FROM {} AS s WHERE {}) OR EXISTS (SELECT 1 FROM {} AS t WHERE {}))",
                fence(task.epoch),
                dual.source,
                equal("s", &dual.source_key, false),
                dual.target,
                equal("t", &dual.target_key, true)
            ))
            .map_err(unfence(task.epoch))?;
        Ok(synced)
    }

    /// Lets the swap go on when no row that was set aside waits for approval, and none is referred to by rows that stay.
    pub(super) fn check_rejects(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        source: &Relation,
    ) -> Result<(), Error> {
        if !sets_aside(shape) {
            return Ok(());
        }
        self.check_references(task, shape, source)?;
        reject::demand_approval(self, task.migration, &shape.change.table, task.policy.sample)
    }

    fn check_references(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        source: &Relation,
    ) -> Result<(), Error> {
        let dual = Dual::new(shape, Way::Forward);
        let references = self.session.run(&format!(
            "SELECT c.conrelid::regclass::text, c.conrelid = c.confrelid, string_agg(format('c.%I = s.%I', a.attname, b.attname), ' AND ') \
             FROM pg_constraint c, unnest(c.conkey, c.confkey) AS k (here, there), pg_attribute a, pg_attribute b \
             WHERE c.contype = 'f' AND c.confrelid = {} AND a.attrelid = c.conrelid AND a.attnum = k.here \
               AND b.attrelid = c.confrelid AND b.attnum = k.there GROUP BY c.oid",
            source.oid
        ))?;
        let keys: Vec<String> = dual
            .source_key
            .iter()
            .zip(&dual.types)
            .enumerate()
            .map(|(at, (name, kind))| format!("s.{name} = (r.row_key::json->>{at})::{kind}"))
            .collect();
        let change = of_change("r", task, shape);
        for row in &references {
            let [Some(child), itself, Some(joined)] = &row[..] else { continue };
            // A row of this table that is set aside itself does not stay.
            let stays = match itself.as_deref() {
                Some("t") => format!(
                    " AND NOT EXISTS (SELECT 1 FROM cutover.reject AS o WHERE {} AND o.row_key = json_build_array({})::text)",
                    of_change("o", task, shape),
                    dual.key_text("c")
                ),
                _ => String::new(),
            };
            let found = self.session.run(&format!(
                "SELECT DISTINCT r.row_key FROM cutover.reject AS r JOIN {} AS s ON {} JOIN {child} AS c ON {joined} \
                 WHERE {change}{stays} LIMIT {}",
                dual.source,
                keys.join(" AND "),
                task.policy.sample
            ))?;
            if !found.is_empty() {
                let keys: Vec<String> =
                    found.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
                return Err(Error::Locked(vec![Refusal::new(
                    format!(
                        "rows of {child} refer to rows of `{}` that do not fit: {}",
                        shape.change.table,
                        keys.join("; ")
                    ),
                    "Mend these rows, or remove what refers to them; then run `cutover schema apply` again.",
                )]));
            }
        }
        Ok(())
    }
}
