//! Rows that do not fit the new shape: finding them one by one, and, for migrations with `on_reject = "quarantine"`, setting
//! them aside.
//!
//! A row that is set aside stands in the list that people read (`_cutover_reject`) and with its typed key in a table of ours, in
//! one transaction; the new table does not have it. Whatever touches it tries it again, and so do the comparison and the swap
//! ([`Sqlite::retry_aside`]). The old table keeps it until contract.

use std::collections::BTreeSet;

use rusqlite::types::Value as Cell;

use super::{
    Sqlite, catalog,
    copy::BATCH,
    keys::{placeholders, print_key, shown},
    shape::{Names, Shape, key_name, prefixed, quote},
};
use crate::{
    change::TableChange,
    engine::{ChunkDone, Pace, Task},
    error::{Error, Refusal, SqlErrorKind},
    state::{
        reject,
        sql::{Sql, Value},
    },
};

/// What is wrong with a value that the way back would make another.
pub(super) const WOULD_CHANGE: &str = "would not come back as it was";

/// Whether a row does not fit, rather than something else having failed.
pub(super) fn is_misfit(error: &Error) -> bool {
    matches!(error, Error::Sql(error) if matches!(error.kind, SqlErrorKind::Unique | SqlErrorKind::Data))
}

/// What became of rows that were copied one by one.
#[derive(Debug, Default)]
pub(super) struct OneByOne {
    /// How many were written.
    pub(super) copied: u64,
    /// The keys of those that do not fit, and why.
    pub(super) misfits: Vec<(Vec<Cell>, String)>,
}

impl Sqlite {
    /// Copies the rows of the old table that satisfy a condition; `None` when one does not fit: what was written so far is for
    /// the caller to take back.
    pub(super) fn insert_fitting(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<Option<u64>, Error> {
        let inserted = || -> Result<Option<u64>, Error> {
            if shape.sets_aside() && self.lossy_column(shape, condition, values)?.is_some() {
                return Ok(None);
            }
            self.insert_where(task, shape, condition, values).map(Some)
        };
        match inserted() {
            Err(error) if is_misfit(&error) => Ok(None),
            other => other,
        }
    }

    /// The column of which a value would not come back, in the first of the rows that satisfy a condition and have one.
    fn lossy_column(
        &self,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<Option<String>, Error> {
        let Some(lossy) = shape.lossy(condition) else { return Ok(None) };
        let found = self.rows(&format!("{lossy} LIMIT 1"), values)?;
        Ok(found.first().and_then(|row| row.last()).map(|column| shown(std::slice::from_ref(column))))
    }

    /// Copies the rows that satisfy a condition one by one, in the order of their keys; those that do not fit are not written.
    pub(super) fn insert_each(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<OneByOne, Error> {
        let (keys, table) = (shape.key_now.join(", "), shape.change.table.quoted());
        let all =
            self.rows(&format!("SELECT {keys} FROM {table} WHERE {condition} ORDER BY {keys}"), values)?;
        let mut done = OneByOne::default();
        for key in all {
            match self.misfit_of(task, shape, &key)? {
                None => done.copied += 1,
                Some(reason) => done.misfits.push((key, reason)),
            }
        }
        Ok(done)
    }

    /// Copies one row; why it does not fit, if it does not.
    fn misfit_of(&self, task: &Task<'_>, shape: &Shape<'_>, key: &[Cell]) -> Result<Option<String>, Error> {
        let this = Shape::compare(&shape.key_now, "=", &placeholders(1, key.len()));
        let inserted = || -> Result<Option<String>, Error> {
            if shape.sets_aside()
                && let Some(column) = self.lossy_column(shape, &this, key)?
            {
                return Ok(Some(format!("`{column}` {WOULD_CHANGE}")));
            }
            self.insert_where(task, shape, &this, key).map(|_| None)
        };
        self.run("SAVEPOINT _cutover_row")?;
        let reason = match inserted() {
            Err(error) if is_misfit(&error) => {
                self.run("ROLLBACK TO _cutover_row")?;
                Some(match error {
                    Error::Sql(error) => error.message,
                    other => other.to_string(),
                })
            }
            other => other?,
        };
        self.run("RELEASE _cutover_row")?;
        Ok(reason)
    }

    /// The error that names rows which do not fit.
    pub(super) fn rejected(task: &Task<'_>, shape: &Shape<'_>, misfits: &[(Vec<Cell>, String)]) -> Error {
        let sample = misfits.iter().take(task.policy.sample);
        Error::Rejected {
            table: shape.change.table.clone(),
            count: misfits.len() as u64,
            sample: sample.map(|(key, reason)| format!("{}: {reason}", shown(key))).collect(),
        }
    }

    /// Makes the table of keys that are set aside, for a migration that does so.
    pub(super) fn make_aside(&self, shape: &Shape<'_>) -> Result<(), Error> {
        if !shape.sets_aside() {
            return Ok(());
        }
        let keys = key_names(shape);
        let aside = quote(&shape.names.aside);
        self.run(&format!("CREATE TABLE {aside} ({keys}, PRIMARY KEY ({keys})) WITHOUT ROWID"))
    }

    /// Drops it. What people were shown stays, until the migration begins anew.
    pub(super) fn drop_aside(&self, names: &Names) -> Result<(), Error> {
        self.run(&format!("DROP TABLE IF EXISTS {}", quote(&names.aside)))
    }

    /// Forgets which rows were set aside: they are going to be copied again, perhaps by other keys.
    pub(super) fn forget_aside(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let forget = "DELETE FROM _cutover_reject WHERE migration = $1 AND table_name = $2";
        self.execute(forget, &[task.migration.into(), change.table.as_str().into()])?;
        self.drop_aside(&Names::of(task, change))
    }

    /// Sets rows aside. Those that are already keep their approval; what is said of them is what is so now.
    pub(super) fn set_aside(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        misfits: &[(Vec<Cell>, String)],
    ) -> Result<(), Error> {
        let width = shape.key_now.len();
        let aside = quote(&shape.names.aside);
        let keep = format!("INSERT OR IGNORE INTO {aside} VALUES ({})", placeholders(1, width).join(", "));
        let printed: Vec<String> =
            shape.def.stored_columns().map(|name| format!("quote({})", quote(name))).collect();
        let text = format!(
            "SELECT '(' || {} || ')' FROM {} WHERE {}",
            printed.join(" || ', ' || "),
            shape.change.table.quoted(),
            Shape::compare(&shape.key_now, "=", &placeholders(1, width))
        );
        let list = "INSERT INTO _cutover_reject (migration, table_name, row_key, reason, row_text, approved) VALUES ($1, $2, $3, $4, $5, 0) \
             ON CONFLICT (migration, table_name, row_key) DO UPDATE SET reason = excluded.reason, row_text = excluded.row_text";
        for (key, reason) in misfits {
            self.change_rows(&keep, key)?;
            let row = self.rows(&text, key)?.into_iter().next().and_then(|row| row.into_iter().next());
            let row = match row {
                Some(Cell::Text(text)) => Value::Text(text),
                _ => Value::Null,
            };
            let about = [
                task.migration.into(),
                shape.change.table.as_str().into(),
                print_key(key).into(),
                reason.as_str().into(),
                row,
            ];
            self.execute(list, &about)?;
        }
        Ok(())
    }

    /// The keys that are set aside and in the batch that a drain has at hand.
    pub(super) fn aside_of(&self, shape: &Shape<'_>, batch: &str) -> Result<Vec<Vec<Cell>>, Error> {
        if !shape.sets_aside() {
            return Ok(Vec::new());
        }
        let (names, aside) = (key_names(shape), quote(&shape.names.aside));
        let tuple = Shape::tuple(&names_of(shape));
        self.rows(&format!("SELECT {names} FROM {aside} WHERE {tuple} IN (SELECT {names} FROM {batch})"), &[])
    }

    /// Takes rows off the list that were set aside: all of `keys` but those that still do not fit.
    pub(super) fn take_back(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        keys: &[Vec<Cell>],
        misfits: &[(Vec<Cell>, String)],
    ) -> Result<(), Error> {
        let still: BTreeSet<String> = misfits.iter().map(|(key, _)| print_key(key)).collect();
        let forget = format!(
            "DELETE FROM {} WHERE {}",
            quote(&shape.names.aside),
            Shape::compare(&names_of(shape), "=", &placeholders(1, shape.key_now.len()))
        );
        for key in keys {
            let printed = print_key(key);
            if still.contains(&printed) {
                continue;
            }
            self.change_rows(&forget, key)?;
            let unlist =
                "DELETE FROM _cutover_reject WHERE migration = $1 AND table_name = $2 AND row_key = $3";
            let about = [task.migration.into(), shape.change.table.as_str().into(), printed.into()];
            self.execute(unlist, &about)?;
        }
        Ok(())
    }

    /// Tries every row that was set aside once more: what was in its way may be gone. Returns how many keys were synced.
    pub(super) fn retry_aside(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        pace: &dyn Pace,
    ) -> Result<u64, Error> {
        if !shape.sets_aside() {
            return Ok(0);
        }
        let (names, aside, log) = (key_names(shape), quote(&shape.names.aside), quote(&shape.names.log));
        let last = self.fenced(task.epoch, |engine| {
            engine.run(&format!("INSERT INTO {log} SELECT {names} FROM {aside}"))?;
            engine.number(&format!("SELECT coalesce(max(rowid), 0) FROM {log}"))
        })?;
        let mut total = 0;
        loop {
            let asked = std::time::Instant::now();
            let (synced, more) = self.fenced(task.epoch, |engine| {
                let synced = engine.drain(task, shape, Some(BATCH * 4), None)?;
                let left = format!("SELECT EXISTS (SELECT 1 FROM {log} WHERE rowid <= {last})");
                Ok((synced, engine.number(&left)? != 0))
            })?;
            task.point("drain.after");
            total += synced;
            if !more {
                return Ok(total);
            }
            let held_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            pace.between(self, &shape.change.table, &ChunkDone { held_us, ..ChunkDone::default() })?;
        }
    }

    /// What is true of the rows of the old table that have to be in the new one: not set aside, and not about to be synced.
    pub(super) fn is_settled(shape: &Shape<'_>) -> String {
        if !shape.sets_aside() {
            return String::new();
        }
        let (key, names) = (Shape::tuple(&shape.key_now), key_names(shape));
        let absent = |table: &str| format!(" AND {key} NOT IN (SELECT {names} FROM {})", quote(table));
        absent(&shape.names.aside) + &absent(&shape.names.log)
    }

    /// Whether any row is set aside.
    fn has_aside(&self, shape: &Shape<'_>) -> Result<bool, Error> {
        let some = format!("SELECT EXISTS (SELECT 1 FROM {})", quote(&shape.names.aside));
        Ok(shape.sets_aside() && self.number(&some)? != 0)
    }

    /// Lets the swap go on when no row that was set aside waits for approval, and none is referred to by rows that stay.
    pub(super) fn check_aside(&mut self, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
        if !self.has_aside(shape)? {
            return Ok(());
        }
        self.check_references(task, shape)?;
        reject::demand_approval(self, task.migration, &shape.change.table, task.policy.sample)
    }

    /// Rows of other tables, or of this one, that refer to a row which is set aside would refer to nothing after the swap.
    fn check_references(&self, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
        let table = shape.change.table.as_str();
        let aside = quote(&shape.names.aside);
        let is = |alias: &str| {
            let keys = prefixed(alias, &shape.key_now);
            format!("{} IN (SELECT {} FROM {aside})", Shape::tuple(&keys), key_names(shape))
        };
        for reference in catalog::references_to(&self.connection, table)? {
            let child = quote(&reference.table);
            let joined: Vec<String> = reference
                .columns
                .iter()
                .map(|(from, to)| format!("_cutover_c.{} = _cutover_p.{}", quote(from), quote(to)))
                .collect();
            // A row of this table that is set aside itself does not stay.
            let stays = match reference.table.eq_ignore_ascii_case(table) {
                true => format!(" AND NOT ({})", is("_cutover_c")),
                false => String::new(),
            };
            let found = self.rows(
                &format!(
                    "SELECT DISTINCT {} FROM {} AS _cutover_p JOIN {child} AS _cutover_c ON {} WHERE {}{stays} LIMIT {}",
                    prefixed("_cutover_p", &shape.key_now).join(", "),
                    shape.change.table.quoted(),
                    joined.join(" AND "),
                    is("_cutover_p"),
                    task.policy.sample
                ),
                &[],
            )?;
            if !found.is_empty() {
                let keys: Vec<String> = found.iter().map(|key| shown(key)).collect();
                return Err(Error::Locked(vec![Refusal::new(
                    format!(
                        "rows of `{}` refer to rows of `{table}` that do not fit: {}",
                        reference.table,
                        keys.join("; ")
                    ),
                    "Mend these rows, or remove what refers to them; then run `cutover schema apply` again.",
                )]));
            }
        }
        Ok(())
    }
}

fn names_of(shape: &Shape<'_>) -> Vec<String> {
    (0..shape.key_now.len()).map(key_name).collect()
}

/// The columns of the key in tables of ours.
fn key_names(shape: &Shape<'_>) -> String {
    names_of(shape).join(", ")
}
