//! Foreign keys around the swap: those of a table that is put away come off it, for they must keep no client from writing, and
//! come back with it; new ones come when the table is the clients' own (decision 0066).
//!
//! Both by writing the catalog, in the way of <https://www.sqlite.org/lang_altertable.html#otheralter>: constraints are no part
//! of the stored rows.

use serde::{Deserialize, Serialize};

use super::{
    Sqlite, catalog, ddl,
    keys::shown,
    shape::{Names, Shape, key_name, quote},
    sql_error,
};
use crate::{
    change::{ColumnFate, Fate, NewConstraint, TableChange, Tactic},
    engine::{Loss, Task},
    error::{Error, Refusal},
    ir::Ident,
    state::sql::Sql as _,
};

/// What is kept of a table that is put away, to bring its foreign keys back.
#[derive(Debug, Serialize, Deserialize)]
struct PutAway {
    /// The statement that made it.
    sql: String,
    keys: Vec<ForeignKey>,
}

/// A foreign key: the table it points to, and its columns with those they point to.
#[derive(Debug, Serialize, Deserialize)]
struct ForeignKey {
    table: String,
    columns: Vec<(String, String)>,
}

impl ForeignKey {
    /// What is true of a row of the table that `alias` stands for when it points to nothing in the table called `parent` at the
    /// moment. Without such a table every row does that points at all.
    fn dangles(&self, alias: &str, parent: Option<&str>) -> String {
        let mut parts: Vec<String> =
            self.columns.iter().map(|(from, _)| format!("{alias}.{} IS NOT NULL", quote(from))).collect();
        if let Some(parent) = parent {
            let same = self
                .columns
                .iter()
                .map(|(from, to)| format!("_cutover_p.{} = {alias}.{}", quote(to), quote(from)));
            let same = same.collect::<Vec<_>>().join(" AND ");
            parts.push(format!("NOT EXISTS (SELECT 1 FROM {} AS _cutover_p WHERE {same})", quote(parent)));
        }
        parts.join(" AND ")
    }

    fn of(added: &NewConstraint) -> Option<Self> {
        let NewConstraint::ForeignKey { columns, references, .. } = added else { return None };
        let pairs = columns.iter().zip(&references.columns);
        Some(Self {
            table: references.table.to_string(),
            columns: pairs.map(|(from, to)| (from.to_string(), to.to_string())).collect(),
        })
    }
}

impl Sqlite {
    /// Renames a table to that of the old shape, and takes its foreign keys off.
    pub(super) fn put_away(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (table, old) = (change.table.as_str(), Names::of(task, change).old);
        let keys = self.foreign_keys(table)?;
        if !keys.is_empty() {
            let sql = catalog::definition(&self.connection, table)?.unwrap_or_default();
            let kept = serde_json::to_string(&PutAway { sql, keys })
                .map_err(|error| Error::Damaged(error.to_string()))?;
            let keep = "INSERT INTO _cutover_undo (migration, table_name, row_key, columns) VALUES ($1, $2, 'references', $3) \
                 ON CONFLICT (migration, table_name, row_key) DO UPDATE SET columns = excluded.columns";
            self.execute(keep, &[task.migration.into(), table.into(), kept.into()])?;
        }
        self.run(&format!("ALTER TABLE {} RENAME TO {}", quote(table), quote(&old)))?;
        self.drop_references(&old)
    }

    /// The way back of [`put_away`](Self::put_away).
    pub(super) fn take_out_again(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (table, old) = (change.table.as_str(), Names::of(task, change).old);
        self.run(&format!("ALTER TABLE {} RENAME TO {}", quote(&old), quote(table)))?;
        match self.was_put_away(task, change)? {
            Some(kept) => self.define(table, &kept.sql),
            None => Ok(()),
        }
    }

    fn was_put_away(&mut self, task: &Task<'_>, change: &TableChange) -> Result<Option<PutAway>, Error> {
        let kept = "SELECT columns FROM _cutover_undo WHERE migration = $1 AND table_name = $2 AND row_key = 'references'";
        let rows = self.query(kept, &[task.migration.into(), change.table.as_str().into()])?;
        let Some(row) = rows.first() else { return Ok(None) };
        serde_json::from_str(row[0].text()?).map(Some).map_err(|error| Error::Damaged(error.to_string()))
    }

    fn foreign_keys(&self, table: &str) -> Result<Vec<ForeignKey>, Error> {
        let rows = catalog::texts(
            &self.connection,
            "SELECT f.id, f.\"table\", f.\"from\", coalesce(f.\"to\", (SELECT p.name FROM pragma_table_info(f.\"table\") AS p WHERE \
             p.pk = f.seq + 1), f.\"from\") FROM pragma_foreign_key_list(?1) AS f ORDER BY f.id, f.seq",
            &[table],
        )?;
        let mut found: Vec<(Option<String>, ForeignKey)> = Vec::new();
        for row in rows {
            let [id, Some(parent), Some(from), Some(to)] = &row[..] else { continue };
            let column = (from.clone(), to.clone());
            match found.last_mut() {
                Some((last, key)) if last == id => key.columns.push(column),
                _ => found.push((id.clone(), ForeignKey { table: parent.clone(), columns: vec![column] })),
            }
        }
        Ok(found.into_iter().map(|(_, key)| key).collect())
    }

    /// Takes its foreign keys from a table that clients do not write: it must keep nobody from deleting what it points to.
    pub(super) fn drop_references(&self, table: &str) -> Result<(), Error> {
        if self.foreign_keys(table)?.is_empty() {
            return Ok(());
        }
        let definition = catalog::definition(&self.connection, table)?.unwrap_or_default();
        let without = ddl::without_references(&definition).ok_or_else(|| unreadable(table))?;
        self.define(table, &without)
    }

    /// Gives the table that the copy has become the foreign keys that are new.
    pub(super) fn add_references(&self, change: &TableChange) -> Result<(), Error> {
        let added = change.add_constraints.iter();
        let added: Vec<String> = added
            .filter(|added| matches!(added, NewConstraint::ForeignKey { .. }))
            .map(NewConstraint::print)
            .collect();
        if added.is_empty() {
            return Ok(());
        }
        let table = change.table.as_str();
        let definition = catalog::definition(&self.connection, table)?.unwrap_or_default();
        let with = ddl::with_constraints(&definition, &added).ok_or_else(|| unreadable(table))?;
        self.define(table, &with)
    }

    fn define(&self, table: &str, sql: &str) -> Result<(), Error> {
        let set = "UPDATE main.sqlite_schema SET sql = ?1 WHERE type = 'table' AND name = ?2";
        self.write_schema(set, &[sql, table])
    }

    /// Changes the catalog by a statement of its own. In a transaction that changes it by statements of the language too: they
    /// are what tells other connections.
    pub(super) fn write_schema(&self, set: &str, values: &[&str]) -> Result<(), Error> {
        self.run("PRAGMA writable_schema = ON")?;
        let written = self
            .connection
            .execute(set, rusqlite::params_from_iter(values))
            .map_err(|error| Error::Sql(sql_error(error, set)));
        self.run("PRAGMA writable_schema = RESET")?;
        written.map(drop)
    }

    /// Lets SQLite say whether new foreign keys can be what they are declared to be: what they point to has to be unique.
    pub(super) fn try_references(&self, shape: &Shape<'_>) -> Result<(), Error> {
        for added in &shape.change.add_constraints {
            let NewConstraint::ForeignKey { columns, references, .. } = added else { continue };
            if references.table == shape.change.table {
                continue;
            }
            let tried = format!("{}_tried", shape.names.shadow);
            self.run(&format!(
                "CREATE TABLE {0} ({1}, {2})",
                quote(&tried),
                crate::change::quoted(columns),
                added.print()
            ))?;
            catalog::texts(&self.connection, "SELECT rowid FROM pragma_foreign_key_check(?1)", &[&tried])?;
            self.run(&format!("DROP TABLE {}", quote(&tried)))?;
        }
        Ok(())
    }

    /// Demands that rows of the copy point to what is there, by the new foreign keys.
    pub(super) fn check_new_references(&self, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
        let (change, shadow) = (shape.change, quote(&shape.names.shadow));
        // Rows that clients touched meanwhile are about to be synced.
        let names: Vec<String> = (0..shape.key_then.len()).map(key_name).collect();
        let settled = format!(
            "{} NOT IN (SELECT {} FROM {})",
            Shape::tuple(&shape.key_then),
            names.join(", "),
            quote(&shape.names.log)
        );
        for key in change.add_constraints.iter().filter_map(ForeignKey::of) {
            let parent = match key.table == change.table.as_str() {
                true => Some(shape.names.shadow.as_str()),
                false => self.has(&key.table)?.then_some(key.table.as_str()),
            };
            let dangling = key.dangles("_cutover_c", parent);
            let wrong = format!("FROM {shadow} AS _cutover_c WHERE {settled} AND {dangling}");
            let keys = shape.key_then.join(", ");
            let sample = self.rows(&format!("SELECT {keys} {wrong} LIMIT {}", task.policy.sample), &[])?;
            if !sample.is_empty() {
                let count = self.number(&format!("SELECT count(*) {wrong}"))?;
                let says = |row: &Vec<_>| format!("{}: no such row in {}", shown(row), key.table);
                return Err(Error::Rejected {
                    table: change.table.clone(),
                    count: u64::try_from(count).unwrap_or(0),
                    sample: sample.iter().map(says).collect(),
                });
            }
        }
        Ok(())
    }

    /// What a rollback would say of rows of the old table that point to nothing any more. Without a lock; a table that is not
    /// there under its name is left to [`settle_orphans`](Self::settle_orphans).
    pub(super) fn would_be_orphans(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        changes: &[TableChange],
    ) -> Result<Vec<Refusal>, Error> {
        let Some(kept) = self.was_put_away(task, change)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for key in kept.keys.iter().filter(|key| !is_vouched(change, key)) {
            // What goes back together is looked at together.
            let put_away = changes.iter().find(|other| {
                other.table.as_str().eq_ignore_ascii_case(&key.table)
                    && (other.fate == Fate::Drop || other.tactic == Tactic::Shadow)
            });
            let parent = put_away.map_or_else(|| key.table.clone(), |other| Names::of(task, other).old);
            if self.has(&parent)? {
                let old = Names::of(task, change).old;
                found.extend(self.orphans(&old, change, key, &parent)?);
            }
        }
        Ok(found)
    }

    /// Looks at the tables that are back for rows that point to nothing any more: loses them, or refuses to.
    pub(super) fn settle_orphans(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        loss: Loss,
    ) -> Result<(), Error> {
        if self.was_put_away(task, change)?.is_none() {
            return Ok(());
        }
        let table = change.table.as_str();
        let keys = self.foreign_keys(table)?;
        loop {
            let mut lost = 0;
            for key in keys.iter().filter(|key| !is_vouched(change, key)) {
                if !self.has(&key.table)? {
                    continue;
                }
                if loss == Loss::Refuse
                    && let Some(refusal) = self.orphans(table, change, key, &key.table)?
                {
                    return Err(Error::Locked(vec![refusal]));
                }
                let dangling = key.dangles(&quote(table), Some(&key.table));
                lost += self.change_rows(&format!("DELETE FROM {} WHERE {dangling}", quote(table)), &[])?;
            }
            // Others of the table may have pointed to those.
            if lost == 0 {
                return Ok(());
            }
        }
    }

    fn orphans(
        &self,
        table: &str,
        change: &TableChange,
        key: &ForeignKey,
        parent: &str,
    ) -> Result<Option<Refusal>, Error> {
        let dangling = key.dangles("_cutover_c", Some(parent));
        let count =
            self.number(&format!("SELECT count(*) FROM {} AS _cutover_c WHERE {dangling}", quote(table)))?;
        let what = format!(
            "{count} row(s) of `{}` as it was point to rows of `{}` that are gone",
            change.table, key.table
        );
        Ok((count > 0).then(|| Refusal::new(what, super::swap::ACCEPT)))
    }
}

/// Whether the new table has this foreign key just as the old one, so that it has said of each row what the old one would have.
fn is_vouched(change: &TableChange, key: &ForeignKey) -> bool {
    let is_plain = |name: &str| {
        let column = change.columns.iter().find(|column| {
            column.now.as_ref().map(Ident::as_str).is_some_and(|now| now.eq_ignore_ascii_case(name))
        });
        column.is_some_and(|column| column.fate == ColumnFate::Keep)
    };
    change.fate == Fate::Alter
        && change.on_reject == crate::ir::OnReject::Abort
        && change.is_reversible()
        && change.drop_constraints.is_empty()
        && change.rows.is_empty()
        && key.columns.iter().all(|(from, _)| is_plain(from))
}

fn unreadable(table: &str) -> Error {
    Error::Damaged(format!("the definition of `{table}` cannot be read"))
}
