//! The swap and its way back, contract, undo, and what would be lost.

use std::time::Instant;

use rusqlite::types::Value as Cell;

use super::{
    Sqlite, catalog, ddl,
    shape::{self, Names, Shape, Unique, key_name, quote},
    sql_error,
};
use crate::{
    change::{ColumnChange, ColumnFate, Fate, TableChange, Tactic},
    engine::{ChunkDone, Go, Loss, Pace, Task, Work},
    error::{Error, Refusal},
    ir::Ident,
    state::sql::Sql,
};

/// What to do about what a rollback would lose.
pub(super) const ACCEPT: &str = "Give `--accept-loss` to lose them.";

/// How often new foreign keys are looked at without the lock before they are under it.
const CHECKED_BEFORE: usize = 3;

/// Nobody sets a pace under the lock of the swap.
struct NoPace;

impl Pace for NoPace {
    fn between(&self, _: &mut dyn Sql, _: &Ident, _: &ChunkDone) -> Result<Go, Error> {
        Ok(Go { rows: 1000, workers: 1, budget: std::time::Duration::ZERO })
    }
}

/// How an attempt at the swap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The new shape is in use.
    Swapped,
    /// Clients had written more than can be settled under the lock: they go first.
    ComeAgain,
}

impl Sqlite {
    pub(super) fn swap_all(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<Work, Error> {
        let mut work = Work::default();
        for attempt in 0.. {
            let seen = self.number("PRAGMA data_version")?;
            for change in changes.iter().filter(|change| change.tactic == Tactic::Shadow) {
                let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
                work.resynced += self.drain_all(task, &shape, &NoPace)?;
                work.resynced += self.retry_aside(task, &shape, &NoPace)?;
                self.check_aside(task, &shape)?;
                self.check_new_references(task, &shape)?;
            }
            task.point("swap.before");
            let mut held = Instant::now();
            let swapped = self.fenced(task.epoch, |engine| {
                held = Instant::now();
                for change in changes.iter().filter(|change| change.tactic == Tactic::Shadow) {
                    // More than can be drained under the lock came in between: let the clients go first.
                    if engine.log_length(&Names::of(task, change))? > task.policy.drain_under_lock {
                        return Ok((0, Ended::ComeAgain));
                    }
                }
                let mut synced = 0;
                for change in changes.iter().filter(|change| change.tactic == Tactic::Shadow) {
                    let shape = Shape::read(&engine.connection, task, change, change.table.as_str())?;
                    if shape.unstable && engine.cookie_changed(task, change)? {
                        return Err(Error::refused(
                            format!("`{}` was vacuumed or altered after it was compared", change.table),
                            "Run `cutover schema apply` again.",
                        ));
                    }
                    synced += engine.drain(task, &shape, None, None)?;
                    match engine.check_aside(task, &shape) {
                        Ok(()) => {}
                        // A row was set aside just now: it goes on the list before anybody is told.
                        Err(Error::Locked(_)) => return Ok((synced, Ended::ComeAgain)),
                        Err(error) => return Err(error),
                    }
                }
                // New foreign keys were looked at before the lock. Where clients never stop writing it has to be done under it.
                if changes.iter().any(TableChange::adds_references)
                    && (synced > 0 || engine.number("PRAGMA data_version")? != seen)
                {
                    if attempt < CHECKED_BEFORE {
                        return Ok((synced, Ended::ComeAgain));
                    }
                    for change in changes.iter().filter(|change| change.adds_references()) {
                        let shape = Shape::read(&engine.connection, task, change, change.table.as_str())?;
                        engine.check_new_references(task, &shape)?;
                    }
                }
                for change in changes {
                    engine.swap_one(task, change)?;
                }
                record(engine)?;
                task.point("swap.commit");
                Ok((synced, Ended::Swapped))
            })?;
            work.resynced += swapped.0;
            if swapped.1 == Ended::Swapped {
                work.longest_hold_us = u64::try_from(held.elapsed().as_micros()).unwrap_or(u64::MAX);
                task.point("swap.after");
                break;
            }
        }
        Ok(work)
    }

    fn swap_one(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let names = Names::of(task, change);
        match (change.fate, change.tactic) {
            (Fate::Create, _) => self.create_table(change),
            (Fate::Drop, _) => {
                self.drop_views(task, change)?;
                self.put_away(task, change)?;
                shape::views_shown(task, change)
                    .iter()
                    .try_for_each(|view| self.old_view(change, view, &quote(&names.old), None))
            }
            (Fate::Alter, Tactic::Shadow) => self.swap_shadow(task, change),
            (Fate::Alter, _) => {
                self.drop_views(task, change)?;
                self.alter_in_place(task, change)?;
                if change.tactic != Tactic::Instant {
                    let then = change.name_then().quoted();
                    for view in shape::views_shown(task, change) {
                        self.old_view(change, &view, &then, None)?;
                    }
                    if change.rename_to.is_some() {
                        // The old name itself: code that knows nothing of views goes on.
                        self.old_view(change, change.table.as_str(), &then, None)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Drops the views of a table that versions before the migration have.
    fn drop_views(&self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        // Another migration's, if there are any.
        if change.tactic == Tactic::Instant || change.fate == Fate::Create {
            return Ok(());
        }
        task.versions.seen(&change.table).try_for_each(|version| {
            self.run(&format!("DROP VIEW IF EXISTS {}", quote(&shape::view_name(&change.table, version))))
        })
    }

    /// Exchanges the tables; the log is empty.
    fn swap_shadow(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let names = Names::of(task, change);
        let table = change.table.quoted();
        let (old, shadow, back) = (quote(&names.old), quote(&names.shadow), quote(&names.back));
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        self.drop_views(task, change)?;
        let triggers = self.user_triggers(change.table.as_str())?;
        for (name, _) in &triggers {
            self.run(&format!("DROP TRIGGER {}", quote(name)))?;
        }
        for what in Shape::FORWARD {
            self.run(&format!("DROP TRIGGER IF EXISTS {}", quote(&names.trigger(what))))?;
        }
        if shape.def.counts() {
            self.take_counter(change.table.as_str(), &names.shadow)?;
        }
        self.put_away(task, change)?;
        self.run(&format!("ALTER TABLE {shadow} RENAME TO {table}; DROP TABLE {}", quote(&names.log)))?;
        self.add_references(change)?;
        if shape.unstable {
            self.pin(change.table.as_str(), &names.pins[0])?;
            self.pin(&names.old, &names.pins[1])?;
        }
        let keys: Vec<String> = (0..shape.key_now.len()).map(key_name).collect();
        let keys = keys.join(", ");
        let index = quote(&format!("{}_k", names.back));
        self.run(&format!(
            "CREATE TABLE {back} ({keys}, _cutover_why); CREATE INDEX {index} ON {back} ({keys})"
        ))?;
        if change.is_reversible() {
            let uniques = Unique::among(&catalog::indexes(&self.connection, change.table.as_str())?);
            for statement in shape.reverse(&table, &uniques) {
                self.run(&statement)?;
            }
        }
        for (_, sql) in &triggers {
            self.run(sql)?;
        }
        if let Some(to) = &change.rename_to {
            self.rename_table(change.table.as_str(), to.as_str())?;
        }
        let then = change.name_then().quoted();
        if change.is_reversible() {
            for view in shape::views_shown(task, change) {
                let statements = shape.old_view(&view, &then, Some(&old));
                statements.iter().try_for_each(|statement| self.run(statement))?;
            }
            if change.rename_to.is_some() {
                let statements = shape.old_view(change.table.as_str(), &then, Some(&old));
                statements.iter().try_for_each(|statement| self.run(statement))?;
            }
        }
        Ok(())
    }

    /// Keeps VACUUM from giving rows of a table other numbers, by which they are found in the other table: it does so only where
    /// no index would have to follow (decision 0067). An index over no row does, and it need not read the table to be made: it is
    /// made over an empty one and handed on.
    fn pin(&self, table: &str, name: &str) -> Result<(), Error> {
        let (index, empty) = (quote(name), quote(&format!("{name}_empty")));
        self.run(&format!("CREATE TABLE {empty} (x); CREATE INDEX {index} ON {empty} (0) WHERE 0"))?;
        self.write_schema(
            "UPDATE main.sqlite_schema SET tbl_name = ?1, sql = ?2 WHERE type = 'index' AND name = ?3",
            &[table, &format!("CREATE INDEX {index} ON {} (0) WHERE 0", quote(table)), name],
        )?;
        self.run(&format!("DROP TABLE {empty}"))
    }

    /// The counter of AUTOINCREMENT goes on where the old table's is.
    fn take_counter(&self, from: &str, to: &str) -> Result<(), Error> {
        let sql = "SELECT coalesce(max(seq), 0) FROM main.sqlite_sequence WHERE name IN (?1, ?2)";
        let run = || -> rusqlite::Result<()> {
            let seq: i64 = self.connection.query_row(sql, [from, to], |row| row.get(0))?;
            if self
                .connection
                .execute("UPDATE main.sqlite_sequence SET seq = ?1 WHERE name = ?2", (seq, to))?
                == 0
            {
                self.connection
                    .execute("INSERT INTO main.sqlite_sequence (name, seq) VALUES (?1, ?2)", (to, seq))?;
            }
            Ok(())
        };
        run().map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    /// Triggers that are not ours, oldest first: that is the order in which they fire.
    fn user_triggers(&self, table: &str) -> Result<Vec<(String, String)>, Error> {
        let rows = catalog::texts(
            &self.connection,
            "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) AND \
             name NOT LIKE '\\_cutover\\_%' ESCAPE '\\' ORDER BY rowid",
            &[table],
        )?;
        Ok(rows.into_iter().filter_map(|row| Some((row[0].clone()?, row[1].clone()?))).collect())
    }

    /// Renames with references of other tables, views and triggers following.
    fn rename_table(&self, from: &str, to: &str) -> Result<(), Error> {
        self.run(&format!(
            "PRAGMA legacy_alter_table = OFF; ALTER TABLE {} RENAME TO {}; PRAGMA legacy_alter_table = ON;",
            quote(from),
            quote(to)
        ))
    }

    fn rename_column(&self, table: &str, from: &Ident, to: &Ident) -> Result<(), Error> {
        self.run(&format!(
            "PRAGMA legacy_alter_table = OFF; ALTER TABLE {} RENAME COLUMN {} TO {}; PRAGMA legacy_alter_table = ON;",
            quote(table),
            from.quoted(),
            to.quoted()
        ))
    }

    fn create_table(&self, change: &TableChange) -> Result<(), Error> {
        if self.has(change.table.as_str())? {
            return Err(Error::refused(
                format!("table `{}` exists already", change.table),
                "Choose another name.",
            ));
        }
        let mut items = Vec::new();
        // The one column of an integer key is the row number: its type has to be spelt so.
        let numbered = |column: &crate::change::ColumnChange| {
            change.primary_key.len() == 1
                && column.then.as_ref() == change.primary_key.first()
                && matches!(column.type_then.as_deref(), Some("integer" | "bigint" | "smallint"))
        };
        for column in &change.columns {
            let kind = if numbered(column) { "integer" } else { column.type_then.as_deref().unwrap_or("") };
            let name = column.then.as_ref().map(Ident::quoted).unwrap_or_default();
            items.push(format!("{name} {kind}{}", added_rules(column)));
        }
        if !change.primary_key.is_empty() {
            items.push(format!("PRIMARY KEY ({})", crate::change::quoted(&change.primary_key)));
        }
        let plain = change.add_constraints.iter();
        items.extend(
            plain
                .filter(|added| !matches!(added, crate::change::NewConstraint::Unique { .. }))
                .map(crate::change::NewConstraint::print),
        );
        self.run(&format!("CREATE TABLE {} ({})", change.table.quoted(), items.join(", ")))?;
        shape::new_indexes(change, &change.table.quoted())
            .iter()
            .try_for_each(|statement| self.run(statement))
    }

    /// What needs no copy: new columns, renames, indexes.
    fn alter_in_place(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let table = change.table.as_str();
        for index in &change.drop_indexes {
            let physical = self.physical(table, index)?;
            let found =
                catalog::indexes(&self.connection, table)?.into_iter().find(|found| found.name == physical);
            let definition = found.and_then(|found| found.sql).unwrap_or_default();
            let keep = "INSERT OR IGNORE INTO _cutover_undo (migration, table_name, row_key, columns) VALUES ($1, $2, $3, $4)";
            let values =
                [task.migration.into(), table.into(), format!("index {index}").into(), definition.into()];
            self.execute(keep, &values)?;
            self.run(&format!("DROP INDEX {}", quote(&physical)))?;
        }
        for column in &change.columns {
            match (column.fate, &column.now, &column.then) {
                (ColumnFate::Add, _, Some(then)) => {
                    let kind = column.type_then.as_deref().unwrap_or("");
                    let rules = added_rules(column);
                    self.run(&format!(
                        "ALTER TABLE {} ADD COLUMN {} {kind}{rules}",
                        quote(table),
                        then.quoted()
                    ))?;
                }
                (_, Some(now), Some(then)) if now != then => self.rename_column(table, now, then)?,
                _ => {}
            }
        }
        shape::new_indexes(change, &quote(table)).iter().try_for_each(|statement| self.run(statement))?;
        match &change.rename_to {
            Some(to) => self.rename_table(table, to.as_str()),
            None => Ok(()),
        }
    }

    /// The name in the catalog of an index that people know by its logical name.
    fn physical(&self, table: &str, name: &Ident) -> Result<String, Error> {
        let found = catalog::indexes(&self.connection, table)?;
        let found = found.into_iter().find(|index| catalog::logical(&index.name) == name.as_str());
        found.map(|index| index.name).ok_or_else(|| Error::Damaged(format!("index `{name}` is gone")))
    }

    /// The view of the old version before the swap: the table as it is.
    pub(super) fn old_view_before(&self, change: &TableChange, view: &str) -> Result<(), Error> {
        let mut same = change.clone();
        same.rows.clear();
        for column in &mut same.columns {
            column.then.clone_from(&column.now);
            column.type_then.clone_from(&column.type_now);
            column.nullable_then = column.nullable_now;
            column.default_then.clone_from(&column.default_now);
            (column.up, column.down, column.fate) = (None, None, ColumnFate::Keep);
        }
        same.columns.retain(|column| column.now.is_some());
        same.primary_key = change
            .primary_key
            .iter()
            .filter_map(|then| {
                change.columns.iter().find(|column| column.then.as_ref() == Some(then))?.now.clone()
            })
            .collect();
        self.old_view(&same, view, &change.table.quoted(), None)
    }

    /// A view in the old shape over `table`, where there is no second table.
    fn old_view(
        &self,
        change: &TableChange,
        view: &str,
        table: &str,
        old: Option<&str>,
    ) -> Result<(), Error> {
        let (now, then): (Vec<String>, Vec<String>) = match change.primary_key.is_empty() {
            true => (vec!["rowid".to_owned()], vec!["rowid".to_owned()]),
            false => change
                .primary_key
                .iter()
                .filter_map(|then| {
                    let column = change.columns.iter().find(|column| column.then.as_ref() == Some(then))?;
                    Some((column.now.as_ref()?.quoted(), then.quoted()))
                })
                .unzip(),
        };
        shape::version_view(change, &now, &then, view, table, old)
            .iter()
            .try_for_each(|statement| self.run(statement))
    }

    /// Removes everything a migration made before its swap.
    pub(super) fn remove_new(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let names = Names::of(task, change);
        task.point("undo.before");
        self.fenced(task.epoch, |engine| {
            // After a swap nothing of this may be touched: the old table's existence tells.
            if engine.has(&names.old)? {
                return Ok(());
            }
            for what in Shape::FORWARD {
                engine.run(&format!("DROP TRIGGER IF EXISTS {}", quote(&names.trigger(what))))?;
            }
            // A run that goes on instead of undoing has to copy it all again.
            let forget = "DELETE FROM _cutover_chunk WHERE migration = $1 AND table_name = $2";
            engine.execute(forget, &[task.migration.into(), change.table.as_str().into()])?;
            engine.forget_aside(task, change)?;
            engine.drop_views(task, change)?;
            engine.run(&format!("DROP TABLE IF EXISTS {}", quote(&names.log)))?;
            if engine.has(&names.shadow)? {
                engine.discard(&names.shadow, &names.trash)?;
            }
            Ok(())
        })?;
        task.point("undo.after");
        Ok(())
    }

    /// Renames a table to trash, under a name that is free.
    fn discard(&self, table: &str, trash: &str) -> Result<(), Error> {
        let mut name = trash.to_owned();
        let mut number = 0;
        while self.has(&name)? {
            number += 1;
            name = format!("{trash}_{number}");
        }
        for index in catalog::indexes(&self.connection, table)? {
            if index.sql.is_some() {
                // Emptying is faster, and the names are free again.
                self.run(&format!("DROP INDEX {}", quote(&index.name)))?;
            }
        }
        self.run(&format!("ALTER TABLE {} RENAME TO {}", quote(table), quote(&name)))?;
        self.drop_references(&name)
    }

    /// Contract: the old table, the triggers that kept it, and the views of the old version go.
    pub(super) fn remove_old(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let names = Names::of(task, change);
        task.point("contract.before");
        self.fenced(task.epoch, |engine| {
            for what in Shape::REVERSE {
                engine.run(&format!("DROP TRIGGER IF EXISTS {}", quote(&names.trigger(what))))?;
            }
            engine.drop_views(task, change)?;
            engine.run(&format!("DROP TABLE IF EXISTS {}", quote(&names.back)))?;
            engine.drop_aside(&names)?;
            engine.run(&format!("DROP INDEX IF EXISTS {}", quote(&names.pins[0])))?;
            if change.rename_to.is_some() && engine.exists("view", change.table.as_str())? {
                engine.run(&format!("DROP VIEW {}", change.table.quoted()))?;
            }
            if engine.has(&names.old)? {
                engine.discard(&names.old, &names.trash)?;
            }
            Ok(())
        })?;
        task.point("contract.after");
        Ok(())
    }

    /// Views and triggers of others that still name what goes.
    pub(super) fn seen_uses(&mut self, task: &Task<'_>, change: &TableChange) -> Result<Vec<String>, Error> {
        let names = Names::of(task, change);
        let own: Vec<String> = task
            .versions
            .seen(&change.table)
            .map(|version| shape::view_name(&change.table, version))
            .collect();
        let rows = catalog::texts(
            &self.connection,
            "SELECT type, name, sql FROM main.sqlite_schema WHERE type IN ('view', 'trigger') AND name NOT LIKE '\\_cutover\\_%' ESCAPE '\\'",
            &[],
        )?;
        let mut uses = Vec::new();
        for row in rows {
            let [Some(kind), Some(name), Some(sql)] = &row[..] else { continue };
            if own.contains(name) || (change.rename_to.is_some() && name == change.table.as_str()) {
                continue;
            }
            let gone = change.fate == Fate::Drop || change.rename_to.is_some();
            if ddl::mentions(sql, &names.old)
                || own.iter().any(|view| ddl::mentions(sql, view))
                || (gone && ddl::mentions(sql, change.table.as_str()))
            {
                uses.push(format!("{kind} `{name}` still names what goes with `{}`", change.table));
            }
        }
        Ok(uses)
    }

    /// Brings the old table up to date with the keys that were noted; returns those that do not fit. In the caller's transaction.
    fn drain_back(&mut self, shape: &Shape<'_>, then_table: &str) -> Result<Vec<Vec<Cell>>, Error> {
        let (old, back) = (quote(&shape.names.old), quote(&shape.names.back));
        let keys: Vec<String> = (0..shape.key_now.len()).map(key_name).collect();
        let keys = keys.join(", ");
        let noted = format!("SELECT DISTINCT {keys} FROM {back}");
        let all = self.key_rows(&noted)?;
        if all.is_empty() {
            return Ok(all);
        }
        // All rows in question leave at once, so that values they exchange among each other do not collide.
        let kept = "temp._cutover_kept";
        let here = format!("{} IN ({noted})", Shape::tuple(&shape.key_now));
        let select = match shape.numbered {
            true => {
                format!("SELECT {} AS {}, * FROM {old} WHERE {here}", shape.key_now[0], quote("_cutover_n"))
            }
            false => format!("SELECT * FROM {old} WHERE {here}"),
        };
        self.run(&format!(
            "DROP TABLE IF EXISTS {kept}; CREATE TABLE {kept} AS {select}; DELETE FROM {old} WHERE {here}"
        ))?;
        if shape.numbered {
            // The copy has row numbers of its own: give it those of the old rows.
            self.run(&format!("UPDATE {kept} SET {} = {}", shape.key_now[0], quote("_cutover_n")))?;
        }
        let values: Vec<String> = (1..=shape.key_now.len()).map(|at| format!("?{at}")).collect();
        for key in &all {
            for statement in shape.back_one(then_table, &values, kept) {
                self.with_key(&statement, key)?;
            }
        }
        self.key_rows(&noted)
    }

    fn key_rows(&self, sql: &str) -> Result<Vec<Vec<Cell>>, Error> {
        let run = || -> rusqlite::Result<Vec<Vec<Cell>>> {
            let mut statement = self.connection.prepare(sql)?;
            let width = statement.column_count();
            let rows = statement.query_map([], |row| {
                (0..width).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<Cell>>>()
            })?;
            rows.collect()
        };
        run().map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    fn with_key(&self, sql: &str, key: &[Cell]) -> Result<(), Error> {
        let run = || self.connection.prepare_cached(sql)?.execute(rusqlite::params_from_iter(key));
        run().map(drop).map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    pub(super) fn would_lose(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
    ) -> Result<Vec<Refusal>, Error> {
        let mut lost = Vec::new();
        for change in changes {
            let names = Names::of(task, change);
            let then = change.name_then();
            match (change.fate, change.tactic) {
                (Fate::Create, _) => {
                    let count = self.number(&format!(
                        "SELECT count(*) FROM (SELECT 1 FROM {} LIMIT 1000)",
                        then.quoted()
                    ))?;
                    if count > 0 {
                        lost.push(Refusal::new(format!("rows of the new table `{then}`"), ACCEPT));
                    }
                }
                (Fate::Drop, _) => lost.extend(self.would_be_orphans(task, change, changes)?),
                (_, Tactic::Shadow) if !change.is_reversible() => {
                    lost.push(Refusal::new(
                        format!("every write to `{then}` since the swap: there is no `down`"),
                        ACCEPT,
                    ));
                }
                (_, Tactic::Shadow) => {
                    let shape = Shape::read(&self.connection, task, change, &names.old)?;
                    let table = then.quoted();
                    let keys = self.fenced(task.epoch, |engine| engine.drain_back(&shape, &table))?;
                    if !keys.is_empty() {
                        let sample: Vec<String> =
                            keys.iter().take(task.policy.sample).map(|key| format!("{key:?}")).collect();
                        let what = format!(
                            "{} row(s) of `{then}` do not fit the old shape: {}",
                            keys.len(),
                            sample.join(", ")
                        );
                        lost.push(Refusal::new(what, ACCEPT));
                    }
                    lost.extend(self.would_be_orphans(task, change, changes)?);
                }
                (Fate::Alter, _) => {}
            }
            if change.fate == Fate::Alter {
                lost.extend(self.values_of_new_columns(change)?);
            }
        }
        Ok(lost)
    }

    /// New columns that hold more than the migration itself gave them. One whose values come from old columns is not asked: they
    /// are there again.
    fn values_of_new_columns(&self, change: &TableChange) -> Result<Vec<Refusal>, Error> {
        let mut lost = Vec::new();
        let then = change.name_then();
        let is_new = |column: &&ColumnChange| {
            column.fate == ColumnFate::Add && !column.generated && column.up.is_none()
        };
        for column in change.columns.iter().filter(is_new) {
            let Some(name) = &column.then else { continue };
            let default = column.default_then.clone().unwrap_or_else(|| "NULL".to_owned());
            let sql = format!(
                "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {} IS NOT ({default}) LIMIT 1)",
                then.quoted(),
                name.quoted()
            );
            if self.number(&sql)? > 0 {
                lost.push(Refusal::new(format!("values of the new column `{then}.{name}`"), ACCEPT));
            }
        }
        Ok(lost)
    }

    pub(super) fn swap_back(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        loss: Loss,
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<(), Error> {
        task.point("rollback.before");
        self.fenced(task.epoch, |engine| {
            for change in changes.iter().rev() {
                engine.swap_one_back(task, change, loss)?;
            }
            for change in changes {
                engine.settle_orphans(task, change, loss)?;
            }
            record(engine)?;
            task.point("rollback.commit");
            Ok(())
        })?;
        task.point("rollback.after");
        Ok(())
    }

    fn swap_one_back(&mut self, task: &Task<'_>, change: &TableChange, loss: Loss) -> Result<(), Error> {
        let names = Names::of(task, change);
        self.drop_views(task, change)?;
        if change.rename_to.is_some() && self.exists("view", change.table.as_str())? {
            self.run(&format!("DROP VIEW {}", change.table.quoted()))?;
        }
        let (table, then) = (change.table.quoted(), change.name_then().quoted());
        match (change.fate, change.tactic) {
            (Fate::Create, _) => self.discard(change.table.as_str(), &names.trash),
            (Fate::Drop, _) => self.take_out_again(task, change),
            (Fate::Alter, Tactic::Shadow) => {
                let shape = Shape::read(&self.connection, task, change, &names.old)?;
                let lost = self.drain_back(&shape, &then)?;
                if !lost.is_empty() && loss == Loss::Refuse {
                    let what = format!("{} row(s) of `{then}` do not fit the old shape", lost.len());
                    return Err(Error::Locked(vec![Refusal::new(
                        what,
                        "Give `--accept-loss` to lose them.",
                    )]));
                }
                if let Some(to) = &change.rename_to {
                    self.rename_table(to.as_str(), change.table.as_str())?;
                }
                let triggers = self.user_triggers(change.table.as_str())?;
                for (name, _) in &triggers {
                    self.run(&format!("DROP TRIGGER {}", quote(name)))?;
                }
                for what in Shape::REVERSE {
                    self.run(&format!("DROP TRIGGER IF EXISTS {}", quote(&names.trigger(what))))?;
                }
                if shape.def.counts() {
                    self.take_counter(change.table.as_str(), &names.old)?;
                }
                self.run(&format!("DROP TABLE IF EXISTS {}", quote(&names.back)))?;
                self.drop_aside(&names)?;
                self.discard(change.table.as_str(), &names.trash)?;
                self.run(&format!("DROP INDEX IF EXISTS {}", quote(&names.pins[1])))?;
                self.take_out_again(task, change)?;
                triggers.iter().try_for_each(|(_, sql)| self.run(sql))
            }
            (Fate::Alter, _) => {
                if let Some(to) = &change.rename_to {
                    self.rename_table(to.as_str(), change.table.as_str())?;
                }
                for index in &change.add_indexes {
                    self.run(&format!("DROP INDEX IF EXISTS {}", index.name.quoted()))?;
                }
                for constraint in &change.add_constraints {
                    self.run(&format!("DROP INDEX IF EXISTS {}", constraint.name().quoted()))?;
                }
                for column in change.columns.iter().rev() {
                    match (column.fate, &column.now, &column.then) {
                        (ColumnFate::Add, _, Some(then)) => {
                            self.run(&format!("ALTER TABLE {table} DROP COLUMN {}", then.quoted()))?;
                        }
                        (_, Some(now), Some(then)) if now != then => {
                            self.rename_column(change.table.as_str(), then, now)?
                        }
                        _ => {}
                    }
                }
                let kept = "SELECT columns FROM _cutover_undo WHERE migration = $1 AND table_name = $2 AND row_key LIKE 'index %'";
                for row in self.query(kept, &[task.migration.into(), change.table.as_str().into()])? {
                    self.run(row[0].text()?)?;
                }
                Ok(())
            }
        }
    }
}

fn added_rules(column: &crate::change::ColumnChange) -> String {
    let mut text = String::new();
    if !column.nullable_then {
        text.push_str(" NOT NULL");
    }
    if let Some(default) = &column.default_then {
        text.push_str(&format!(" DEFAULT {}", shape::literal_or_expression(default)));
    }
    text
}
