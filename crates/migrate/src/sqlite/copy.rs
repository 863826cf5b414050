//! Copying and comparing rows, and the drain that works off what clients touched meanwhile.

use std::time::{Duration, Instant};

use rusqlite::types::Value as Cell;

use super::{
    Sqlite, catalog,
    shape::{Names, Shape, key_name, quote},
    sql_error,
};
use crate::{
    change::{ColumnFate, Fate, NewConstraint, RowStep, TableChange, Tactic, quoted},
    engine::{ChunkDone, Pace, RowChunk, Task, Work},
    error::{Error, SqlErrorKind},
    ir::Ident,
    state::{
        clock_ms, fence,
        sql::{Sql, Value},
        table as state_table,
    },
};

/// Rows per statement inside a chunk.
const BATCH: u64 = 256;
/// How long a chunk holds the write lock: beats any configured number of rows.
const HOLD: Duration = Duration::from_millis(4);
/// Rows that one read transaction of the comparison covers.
const COMPARED: u64 = 20_000;
/// How often differences are repaired before they are final.
const REPAIRS: usize = 3;

/// A new row: its key, then its written columns.
type Computed = (Vec<Cell>, Vec<Cell>);
/// What a chunk's comparison found: rows seen, the key it ended at (none at the end), the keys that differ.
type Compared = (u64, Option<Vec<Cell>>, Vec<Vec<Cell>>);

/// A key as the ledger keeps it.
fn print_key(key: &[Cell]) -> String {
    let parts = key.iter().map(|cell| match cell {
        Cell::Null => serde_json::Value::Null,
        Cell::Integer(value) => (*value).into(),
        Cell::Real(value) => serde_json::json!({ "real": value.to_bits() }),
        Cell::Text(text) => text.as_str().into(),
        Cell::Blob(bytes) => serde_json::json!({ "blob": bytes }),
    });
    serde_json::Value::Array(parts.collect()).to_string()
}

fn parse_key(text: &str) -> Result<Vec<Cell>, Error> {
    let damaged = || Error::Damaged(format!("the ledger has the key `{text}`"));
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| damaged())?;
    let one = |value: &serde_json::Value| {
        Some(match value {
            serde_json::Value::Null => Cell::Null,
            serde_json::Value::Number(number) => Cell::Integer(number.as_i64()?),
            serde_json::Value::String(text) => Cell::Text(text.clone()),
            other => match (other.get("real"), other.get("blob")) {
                (Some(bits), _) => Cell::Real(f64::from_bits(bits.as_u64()?)),
                (_, Some(bytes)) => Cell::Blob(
                    bytes
                        .as_array()?
                        .iter()
                        .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                        .collect::<Option<_>>()?,
                ),
                _ => return None,
            },
        })
    };
    value.as_array().ok_or_else(damaged)?.iter().map(|value| one(value).ok_or_else(damaged)).collect()
}

fn placeholders(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("?{at}")).collect()
}

fn shown(key: &[Cell]) -> String {
    let one = |cell: &Cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Integer(value) => value.to_string(),
        Cell::Real(value) => value.to_string(),
        Cell::Text(text) => text.clone(),
        Cell::Blob(bytes) => format!("{} bytes", bytes.len()),
    };
    key.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Sqlite {
    fn rows(&self, sql: &str, parameters: &[Cell]) -> Result<Vec<Vec<Cell>>, Error> {
        let run = || -> rusqlite::Result<Vec<Vec<Cell>>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let width = statement.column_count();
            let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| {
                (0..width).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<Cell>>>()
            })?;
            rows.collect()
        };
        run().map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    fn change_rows(&self, sql: &str, parameters: &[Cell]) -> Result<u64, Error> {
        let run = || self.connection.prepare_cached(sql)?.execute(rusqlite::params_from_iter(parameters));
        run().map(|count| count as u64).map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    /// Remembers the schema's cookie: VACUUM changes it, and with it row numbers that no column shows.
    pub(super) fn remember_cookie(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        // As it is inside the transaction; `counted` goes on from there.
        let cookie = self.number("PRAGMA schema_version")?;
        let now = clock_ms(self)?;
        let sql = format!(
            "INSERT INTO {} (migration, table_name, kind, part, number, high, seen, copied, present, rejected, at_ms) \
             VALUES ($1, $2, 'cookie', 0, 0, $3, 0, 0, 0, 0, $4) ON CONFLICT (migration, table_name, kind, part, number) \
             DO UPDATE SET high = excluded.high",
            state_table(self.dialect(), "chunk")
        );
        let values = [
            task.migration.into(),
            change.table.as_str().into(),
            cookie.to_string().into(),
            Value::Integer(now),
        ];
        self.execute(&sql, &values)?;
        Ok(())
    }

    pub(super) fn cookie_changed(&mut self, task: &Task<'_>, change: &TableChange) -> Result<bool, Error> {
        let sql = format!(
            "SELECT high FROM {} WHERE migration = $1 AND table_name = $2 AND kind = 'cookie'",
            state_table(self.dialect(), "chunk")
        );
        let rows = self.query(&sql, &[task.migration.into(), change.table.as_str().into()])?;
        let cookie = self.number("PRAGMA schema_version")?.to_string();
        Ok(rows.first().is_some_and(|row| row[0] != Value::Text(cookie)))
    }

    /// Where the copy is: the highest key in the ledger, and how many chunks there are.
    fn cursor(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(Option<Vec<Cell>>, u64), Error> {
        let sql = format!(
            "SELECT high, number FROM {} WHERE migration = $1 AND table_name = $2 AND kind = 'copy' ORDER BY number DESC LIMIT 1",
            state_table(self.dialect(), "chunk")
        );
        match self.query(&sql, &[task.migration.into(), change.table.as_str().into()])?.first() {
            None => Ok((None, 0)),
            Some(row) => {
                let number = u64::try_from(row[1].integer()?).unwrap_or(0);
                Ok((row[0].optional_text()?.map(parse_key).transpose()?, number))
            }
        }
    }

    fn note_chunk(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        kind: &str,
        number: u64,
        high: Option<&[Cell]>,
        done: &ChunkDone,
    ) -> Result<(), Error> {
        let now = clock_ms(self)?;
        let sql = format!(
            "INSERT INTO {} (migration, table_name, kind, part, number, high, seen, copied, present, rejected, at_ms) \
             VALUES ($1, $2, $3, 0, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (migration, table_name, kind, part, number) DO UPDATE \
             SET high = excluded.high, seen = excluded.seen, copied = excluded.copied, at_ms = excluded.at_ms",
            state_table(self.dialect(), "chunk")
        );
        let values = [
            task.migration.into(),
            change.table.as_str().into(),
            kind.into(),
            number.into(),
            high.map(print_key).into(),
            done.seen.into(),
            done.copied.into(),
            done.present.into(),
            done.rejected.into(),
            Value::Integer(now),
        ];
        self.execute(&sql, &values)?;
        Ok(())
    }

    pub(super) fn copy_all(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        pace: &dyn Pace,
    ) -> Result<Work, Error> {
        // A power cut may take the last chunks back, rows and ledger together; what clients commit is flushed by them.
        self.run("PRAGMA synchronous = NORMAL")?;
        let copied = self.copy_chunks(task, change, pace);
        self.run("PRAGMA synchronous = FULL")?;
        copied
    }

    fn copy_chunks(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error> {
        let mut work = Work::default();
        let mut rows = task.policy.chunk_rows;
        loop {
            let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
            if shape.unstable && self.cookie_changed(task, change)? {
                self.start_again(task, change)?;
                continue;
            }
            task.point("backfill.before");
            let (done, more) = self.copy_chunk(task, &shape, rows)?;
            task.point("backfill.after");
            work.seen += done.seen;
            work.done += done.copied;
            work.longest_hold_us = work.longest_hold_us.max(done.held_us);
            rows = pace.between(self, &change.table, &done)?.rows;
            self.checkpoint();
            if !more {
                break;
            }
        }
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        work.resynced += self.drain_all(task, &shape, pace)?;
        Ok(work)
    }

    /// Moves what is in the log to the database, as far as no reader needs it: without waiting for anybody.
    fn checkpoint(&self) {
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }

    /// Row numbers may have changed: the copy begins anew.
    fn start_again(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        use crate::engine::Engine as _;
        task.watch.says(&format!(
            "`{}` was vacuumed or altered: its row numbers may be others; copying it again",
            change.table
        ));
        self.undo_before_swap(task, change)?;
        self.expand(task, change)?;
        self.dual_write(task, change)
    }

    fn copy_chunk(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        rows_max: u64,
    ) -> Result<(ChunkDone, bool), Error> {
        let asked = Instant::now();
        self.execute("BEGIN IMMEDIATE", &[])?;
        let began = Instant::now();
        let body = |engine: &mut Self| -> Result<(ChunkDone, bool), Error> {
            fence(engine, task.epoch)?;
            let (mut low, number) = engine.cursor(task, shape.change)?;
            let mut done = ChunkDone::default();
            let mut more = true;
            while more && done.seen < rows_max && (done.seen == 0 || began.elapsed() < HOLD) {
                let Some((high, count)) = engine.batch_end(shape, low.as_deref())? else {
                    more = false;
                    break;
                };
                done.copied += engine.copy_range(task, shape, low.as_deref(), &high)?;
                done.seen += count;
                more = count == BATCH;
                low = Some(high);
            }
            if done.seen > 0 || number == 0 {
                engine.note_chunk(task, shape.change, "copy", number + 1, low.as_deref(), &done)?;
            }
            task.point("backfill.commit");
            Ok((done, more))
        };
        match body(self) {
            Ok((mut done, more)) => {
                self.execute("COMMIT", &[])?;
                done.held_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                let waited = began.duration_since(asked);
                done.waited_us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
                Ok((done, more))
            }
            Err(error) => {
                let _ = self.execute("ROLLBACK", &[]);
                Err(error)
            }
        }
    }

    /// The last key of the next batch above `low`, and how many rows it has.
    fn batch_end(&self, shape: &Shape<'_>, low: Option<&[Cell]>) -> Result<Option<(Vec<Cell>, u64)>, Error> {
        let table = shape.change.table.quoted();
        let keys = shape.key_now.join(", ");
        let names: Vec<String> = (0..shape.key_now.len()).map(key_name).collect();
        let named: Vec<String> =
            shape.key_now.iter().zip(&names).map(|(key, name)| format!("{key} AS {name}")).collect();
        let above = match low {
            Some(low) => Shape::compare(&shape.key_now, ">", &placeholders(1, low.len())),
            None => "1".to_owned(),
        };
        let inner =
            format!("SELECT {} FROM {table} WHERE {above} ORDER BY {keys} LIMIT {BATCH}", named.join(", "));
        let last: Vec<String> = names.iter().map(|name| format!("{name} DESC")).collect();
        let sql = format!(
            "SELECT {0}, (SELECT count(*) FROM ({inner})) FROM ({inner}) ORDER BY {1} LIMIT 1",
            names.join(", "),
            last.join(", ")
        );
        let Some(mut row) = self.rows(&sql, low.unwrap_or_default())?.into_iter().next() else {
            return Ok(None);
        };
        match row.pop() {
            Some(Cell::Integer(count)) => Ok(Some((row, u64::try_from(count).unwrap_or(0)))),
            _ => Err(Error::Damaged("a count is none".to_owned())),
        }
    }

    fn range(shape: &Shape<'_>, low: Option<&[Cell]>, high: &[Cell]) -> (String, Vec<Cell>) {
        let width = shape.key_now.len();
        let mut condition = Shape::compare(&shape.key_now, "<=", &placeholders(1, width));
        let mut values = high.to_vec();
        if let Some(low) = low {
            condition.push_str(&format!(
                " AND {}",
                Shape::compare(&shape.key_now, ">", &placeholders(width + 1, width))
            ));
            values.extend_from_slice(low);
        }
        (condition, values)
    }

    fn copy_range(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        low: Option<&[Cell]>,
        high: &[Cell],
    ) -> Result<u64, Error> {
        let (condition, values) = Self::range(shape, low, high);
        self.run("SAVEPOINT _cutover_batch")?;
        let first = self.insert_where(task, shape, &condition, &values);
        let count = match first {
            Ok(count) => count,
            Err(Error::Sql(error)) if matches!(error.kind, SqlErrorKind::Unique | SqlErrorKind::Data) => {
                // A row copied earlier may have given up what this one has now; after a drain the copy is S as it is.
                self.run("ROLLBACK TO _cutover_batch")?;
                self.drain(task, shape, None, low)?;
                match self.insert_where(task, shape, &condition, &values) {
                    Ok(count) => count,
                    Err(Error::Sql(error))
                        if matches!(error.kind, SqlErrorKind::Unique | SqlErrorKind::Data) =>
                    {
                        self.run("ROLLBACK TO _cutover_batch")?;
                        return Err(self.rejected(task, shape, &condition, &values)?);
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        self.run("RELEASE _cutover_batch")?;
        Ok(count)
    }

    /// Copies the rows of the old table that satisfy a condition: in the database, or through row functions.
    fn insert_where(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<u64, Error> {
        if shape.change.functions().is_empty() {
            return self.change_rows(&shape.copy(condition), values);
        }
        let rows = self.computed(task, shape, condition, values)?;
        let (columns, _) = shape.insert_columns();
        let count = rows.first().map_or(0, |row| row.0.len() * usize::from(shape.numbered) + row.1.len());
        let sql = format!(
            "INSERT INTO {} ({columns}) VALUES ({})",
            quote(&shape.names.shadow),
            placeholders(1, count).join(", ")
        );
        for (key, row) in &rows {
            let cells: Vec<Cell> = match shape.numbered {
                true => key.iter().chain(row).cloned().collect(),
                false => row.clone(),
            };
            self.change_rows(&sql, &cells)?;
        }
        Ok(rows.len() as u64)
    }

    /// New rows, with row functions applied: keys, then the written columns.
    fn computed(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<Vec<Computed>, Error> {
        let source = shape.source_now(&shape.change.table.quoted(), condition);
        let order: Vec<String> = (0..shape.key_now.len()).map(key_name).collect();
        let sql =
            format!("{} ORDER BY {}", shape.change.up_query(&source, &shape.passed()), order.join(", "));
        let width = shape.key_now.len();
        let mut rows: Vec<(Vec<Cell>, Vec<Cell>)> = self
            .rows(&sql, values)?
            .into_iter()
            .map(|mut row| {
                let rest = row.split_off(width);
                (row, rest)
            })
            .collect();
        apply_functions(task, shape.change, &mut rows)?;
        Ok(rows)
    }

    /// Finds the rows of a range that do not fit, one by one, up to the sample.
    fn rejected(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        condition: &str,
        values: &[Cell],
    ) -> Result<Error, Error> {
        let keys = shape.key_now.join(", ");
        let all = self
            .rows(&format!("SELECT {keys} FROM {} WHERE {condition}", shape.change.table.quoted()), values)?;
        let one = Shape::compare(&shape.key_now, "=", &placeholders(1, shape.key_now.len()));
        let (mut count, mut sample) = (0, Vec::new());
        for key in all {
            self.run("SAVEPOINT _cutover_row")?;
            match self.insert_where(task, shape, &one, &key) {
                Ok(_) => {}
                Err(Error::Sql(error)) => {
                    self.run("ROLLBACK TO _cutover_row")?;
                    count += 1;
                    if sample.len() < task.policy.sample {
                        sample.push(format!("{}: {}", shown(&key), error.message));
                    }
                }
                Err(error) => return Err(error),
            }
            self.run("RELEASE _cutover_row")?;
        }
        Ok(Error::Rejected { table: shape.change.table.clone(), count, sample })
    }

    /// Works off touched keys: at most `limit` entries of the log, all without one. Rows above `upto` are left to the copy. In the
    /// caller's transaction. Returns how many keys were synced.
    pub(super) fn drain(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        limit: Option<u64>,
        upto: Option<&[Cell]>,
    ) -> Result<u64, Error> {
        let log = quote(&shape.names.log);
        let last = match limit {
            Some(limit) => {
                self.rows(&format!("SELECT rowid FROM {log} ORDER BY rowid LIMIT 1 OFFSET {limit}"), &[])?
            }
            None => Vec::new(),
        };
        let last = match last.into_iter().next().and_then(|row| row.into_iter().next()) {
            Some(last) => last,
            None => match self
                .rows(&format!("SELECT max(rowid) FROM {log}"), &[])?
                .into_iter()
                .next()
                .and_then(|row| row.into_iter().next())
            {
                None | Some(Cell::Null) => return Ok(0),
                Some(last) => last,
            },
        };
        let names: Vec<String> = (0..shape.key_now.len()).map(key_name).collect();
        let names = names.join(", ");
        let batch = "temp._cutover_keys";
        self.run(&format!("DROP TABLE IF EXISTS {batch}; CREATE TABLE {batch} ({names})"))?;
        let count = self.change_rows(
            &format!("INSERT INTO {batch} SELECT DISTINCT {names} FROM {log} WHERE rowid <= ?1"),
            std::slice::from_ref(&last),
        )?;
        self.run("SAVEPOINT _cutover_drain")?;
        let shadow = quote(&shape.names.shadow);
        let gone = format!(
            "DELETE FROM {shadow} WHERE {} IN (SELECT {names} FROM {batch})",
            Shape::tuple(&shape.key_then)
        );
        self.run(&gone)?;
        let mut condition = format!("{} IN (SELECT {names} FROM {batch})", Shape::tuple(&shape.key_now));
        let values = upto.map(<[Cell]>::to_vec).unwrap_or_default();
        if let Some(upto) = upto {
            condition.push_str(&format!(
                " AND {}",
                Shape::compare(&shape.key_now, "<=", &placeholders(1, upto.len()))
            ));
        }
        match self.insert_where(task, shape, &condition, &values) {
            Ok(_) => {}
            Err(Error::Sql(error)) if matches!(error.kind, SqlErrorKind::Unique | SqlErrorKind::Data) => {
                self.run("ROLLBACK TO _cutover_drain")?;
                if limit.is_some() {
                    // Another touched key, not in this batch, still has what this row has now: all at once.
                    self.run("RELEASE _cutover_drain")?;
                    return self.drain(task, shape, None, upto);
                }
                self.run(&gone)?;
                return Err(self.rejected(task, shape, &condition, &values)?);
            }
            Err(error) => return Err(error),
        }
        self.run("RELEASE _cutover_drain")?;
        self.change_rows(&format!("DELETE FROM {log} WHERE rowid <= ?1"), &[last])?;
        Ok(count)
    }

    /// Drains in short transactions until little is left.
    pub(super) fn drain_all(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        pace: &dyn Pace,
    ) -> Result<u64, Error> {
        let mut total = 0;
        loop {
            let asked = Instant::now();
            let synced =
                self.fenced(task.epoch, |engine| engine.drain(task, shape, Some(BATCH * 4), None))?;
            task.point("drain.after");
            total += synced;
            if synced < BATCH {
                return Ok(total);
            }
            let held_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            pace.between(self, &shape.change.table, &ChunkDone { held_us, ..ChunkDone::default() })?;
        }
    }

    pub(super) fn compare_all(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        pace: &dyn Pace,
    ) -> Result<Work, Error> {
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        let mut work = Work::default();
        for attempt in 0.. {
            if shape.unstable && self.cookie_changed(task, change)? {
                self.start_again(task, change)?;
                let copied = self.copy_all(task, change, pace)?;
                work.add(&copied);
            }
            work.resynced += self.drain_all(task, &shape, pace)?;
            let (seen, differing) = self.compare_once(task, &shape, pace)?;
            work.seen = seen;
            work.done = seen;
            if differing.is_empty() {
                break;
            }
            if attempt + 1 >= REPAIRS {
                let sample = differing.iter().take(task.policy.sample).map(|key| shown(key)).collect();
                return Err(Error::Differs {
                    table: change.table.clone(),
                    count: differing.len() as u64,
                    sample,
                });
            }
            task.watch.says(&format!(
                "{} row(s) of `{}` differ; syncing them again",
                differing.len(),
                change.table
            ));
            let log = quote(&shape.names.log);
            let insert =
                format!("INSERT INTO {log} VALUES ({})", placeholders(1, shape.key_now.len()).join(", "));
            self.fenced(task.epoch, |engine| {
                differing.iter().try_for_each(|key| engine.change_rows(&insert, key).map(drop))
            })?;
        }
        let shadow = quote(&shape.names.shadow);
        for check in change.checks() {
            let keys = shape.key_then.join(", ");
            let wrong = self.rows(
                &format!(
                    "SELECT {keys} FROM {shadow} WHERE NOT coalesce(({check}), 0) LIMIT {}",
                    task.policy.sample
                ),
                &[],
            )?;
            if !wrong.is_empty() {
                let count =
                    self.number(&format!("SELECT count(*) FROM {shadow} WHERE NOT coalesce(({check}), 0)"))?;
                let sample =
                    wrong.iter().map(|key| format!("{}: `{check}` does not hold", shown(key))).collect();
                return Err(Error::Rejected {
                    table: change.table.clone(),
                    count: u64::try_from(count).unwrap_or(0),
                    sample,
                });
            }
        }
        if change.add_constraints.iter().any(|added| matches!(added, NewConstraint::ForeignKey { .. })) {
            let sql = format!(
                "SELECT rowid, parent FROM pragma_foreign_key_check('{}')",
                shape.names.shadow.replace('\'', "''")
            );
            let wrong = catalog::texts(&self.connection, &sql, &[])?;
            if !wrong.is_empty() {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
                let sample = wrong.iter().take(task.policy.sample);
                let sample = sample
                    .map(|row| format!("{}: no such row in {}", text(&row[0]), text(&row[1])))
                    .collect();
                return Err(Error::Rejected {
                    table: change.table.clone(),
                    count: wrong.len() as u64,
                    sample,
                });
            }
        }
        Ok(work)
    }

    /// Compares every row once, in short read transactions. Differences in keys that were touched meanwhile are not ones.
    fn compare_once(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        pace: &dyn Pace,
    ) -> Result<(u64, Vec<Vec<Cell>>), Error> {
        let change = shape.change;
        self.make_stored(shape)?;
        let (mut low, mut seen, mut number) = (None::<Vec<Cell>>, 0, 0);
        let mut differing: Vec<Vec<Cell>> = Vec::new();
        loop {
            self.execute("BEGIN", &[])?;
            let compared = self.compare_chunk(task, shape, low.as_deref());
            self.execute("COMMIT", &[])?;
            let (count, high, mut found) = compared?;
            seen += count;
            number += 1;
            differing.append(&mut found);
            differing.truncate(100_000);
            let done = ChunkDone { seen: count, copied: count, ..ChunkDone::default() };
            self.fenced(task.epoch, |engine| {
                engine.note_chunk(task, change, "verify", number, high.as_deref(), &done)
            })?;
            task.point("verify.after");
            pace.between(self, &change.table, &done)?;
            match high {
                Some(high) => low = Some(high),
                None => return Ok((seen, differing)),
            }
        }
    }

    fn compare_chunk(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        low: Option<&[Cell]>,
    ) -> Result<Compared, Error> {
        let change = shape.change;
        let width = shape.key_now.len();
        let above = |keys: &[String]| match low {
            Some(low) => Shape::compare(keys, ">", &placeholders(1, low.len())),
            None => "1".to_owned(),
        };
        let order: Vec<String> = (0..width).map(key_name).collect();
        let order = order.join(", ");
        let values = low.map(<[Cell]>::to_vec).unwrap_or_default();
        // The end of the chunk on the side of S; without one, both sides are read to their ends.
        let end = self.rows(
            &format!(
                "SELECT {0} FROM {1} WHERE {2} ORDER BY {0} LIMIT 1 OFFSET {COMPARED}",
                shape.key_now.join(", "),
                change.table.quoted(),
                above(&shape.key_now)
            ),
            &values,
        )?;
        let end = end.into_iter().next();
        let limited = |keys: &[String]| match &end {
            Some(end) => format!(
                "{} AND {}",
                above(keys),
                Shape::compare(keys, "<=", &placeholders(values.len() + 1, end.len()))
            ),
            None => above(keys),
        };
        let mut parameters = values.clone();
        parameters.extend(end.clone().unwrap_or_default());
        let touched: std::collections::BTreeSet<String> = self
            .rows(&format!("SELECT DISTINCT {order} FROM {}", quote(&shape.names.log)), &[])?
            .iter()
            .map(|key| print_key(key))
            .collect();
        let mut computed = None;
        if !change.functions().is_empty() {
            computed = Some(self.computed(task, shape, &limited(&shape.key_now), &parameters)?.into_iter());
        }
        let up = format!(
            "{} ORDER BY {order}",
            change.up_query(
                &shape.source_now(&change.table.quoted(), &limited(&shape.key_now)),
                &shape.passed()
            )
        );
        let then = quoted(change.written_then());
        let new = format!(
            "SELECT {order}, {then} FROM {} ORDER BY {order}",
            shape.source_then(&quote(&shape.names.shadow), &limited(&shape.key_then))
        );
        let failed = |error: rusqlite::Error| Error::Sql(sql_error(error, &up));
        let mut expected = self.connection.prepare_cached(&up).map_err(failed)?;
        let mut found = self.connection.prepare_cached(&new).map_err(failed)?;
        let total = width + change.written_then().len();
        let affinities = self.affinities(shape)?;
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Vec<Cell>> {
            (0..total).map(|at| row.get(at)).collect()
        };
        let mut expected = expected.query(rusqlite::params_from_iter(&parameters)).map_err(failed)?;
        let mut found = found.query(rusqlite::params_from_iter(&parameters)).map_err(failed)?;
        let mut next_expected = || -> Result<Option<Vec<Cell>>, Error> {
            let row = match &mut computed {
                Some(rows) => rows.next().map(|(mut key, mut row)| {
                    key.append(&mut row);
                    key
                }),
                None => expected.next().map_err(failed)?.map(read).transpose().map_err(failed)?,
            };
            Ok(row.map(|mut row| {
                for (at, affinity) in affinities.iter().enumerate() {
                    let cell = std::mem::replace(&mut row[width + at], Cell::Null);
                    row[width + at] = affinity.apply(cell);
                }
                row
            }))
        };
        let mut next_found = || -> Result<Option<Vec<Cell>>, Error> {
            found.next().map_err(failed)?.map(read).transpose().map_err(failed)
        };
        let (mut a, mut b) = (next_expected()?, next_found()?);
        let (mut seen, mut differing) = (0, Vec::new());
        loop {
            let order = match (&a, &b) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => key_order(&a[..width], &b[..width]),
            };
            let mut differs = |row: &Vec<Cell>| {
                if !touched.contains(&print_key(&row[..width])) {
                    differing.push(row[..width].to_vec());
                }
            };
            match order {
                std::cmp::Ordering::Equal => {
                    if let (Some(left), Some(right)) = (&a, &b)
                        && !same(&left[width..], &right[width..])
                        && !same(&self.stored(&left[width..])?, &right[width..])
                    {
                        differs(left);
                    }
                    seen += 1;
                    a = next_expected()?;
                    b = next_found()?;
                }
                std::cmp::Ordering::Less => {
                    if let Some(row) = &a {
                        differs(row);
                    }
                    seen += 1;
                    a = next_expected()?;
                }
                std::cmp::Ordering::Greater => {
                    if let Some(row) = &b {
                        differs(row);
                    }
                    b = next_found()?;
                }
            }
        }
        Ok((seen, end, differing))
    }

    /// What SQLite itself makes of values that are stored in columns of the new types: the judge where our own conversion and
    /// the table disagree.
    fn stored(&self, cells: &[Cell]) -> Result<Vec<Cell>, Error> {
        let table = "temp._cutover_stored";
        let insert = format!("INSERT INTO {table} VALUES ({})", placeholders(1, cells.len()).join(", "));
        let run = || -> rusqlite::Result<Vec<Cell>> {
            self.connection.execute(&format!("DELETE FROM {table}"), [])?;
            self.connection.execute(&insert, rusqlite::params_from_iter(cells))?;
            self.connection.query_row(&format!("SELECT * FROM {table}"), [], |row| {
                (0..cells.len()).map(|at| row.get(at)).collect()
            })
        };
        run().map_err(|error| Error::Sql(sql_error(error, &insert)))
    }

    /// Makes the table that [`stored`](Self::stored) uses, before any statement is open.
    fn make_stored(&self, shape: &Shape<'_>) -> Result<(), Error> {
        let kinds = shape.change.columns.iter().filter(|column| !column.generated && column.then.is_some());
        let columns: Vec<String> = kinds
            .enumerate()
            .map(|(at, column)| format!("c{at} {}", column.type_then.as_deref().unwrap_or("")))
            .collect();
        let table = "temp._cutover_stored";
        self.run(&format!("DROP TABLE IF EXISTS {table}; CREATE TABLE {table} ({})", columns.join(", ")))
    }

    /// The affinities of the written columns of T: how it converts what is stored (<https://www.sqlite.org/datatype3.html>, 3.1).
    fn affinities(&self, shape: &Shape<'_>) -> Result<Vec<Affinity>, Error> {
        let kinds = shape.change.columns.iter().filter(|column| !column.generated && column.then.is_some());
        Ok(kinds
            .map(|column| Affinity::of(column.type_then.as_deref().unwrap_or(""), shape.def.strict()))
            .collect())
    }

    pub(super) fn scan(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if change.fate != Fate::Alter {
            return Ok(());
        }
        let table = change.table.quoted();
        let reject = |engine: &Self, sql: &str, why: &str| -> Result<(), Error> {
            let rows = engine.rows(&format!("{sql} LIMIT {}", task.policy.sample + 1), &[])?;
            if rows.is_empty() {
                return Ok(());
            }
            let sample =
                rows.iter().take(task.policy.sample).map(|row| format!("{}: {why}", shown(row))).collect();
            Err(Error::Rejected { table: change.table.clone(), count: rows.len() as u64, sample })
        };
        // Duplicates for what becomes unique. Row functions may still change the columns; then the copy finds out.
        let computed: Vec<&Ident> = change
            .rows
            .iter()
            .flat_map(|step| match step {
                RowStep::Function { write, .. } => write.iter().collect::<Vec<_>>(),
                RowStep::Sql { .. } => Vec::new(),
            })
            .collect();
        let up = change.up_query(&table, &[]);
        let unique_indexes = change
            .add_indexes
            .iter()
            .filter(|index| index.unique)
            .map(|index| (&index.columns, index.filter.as_deref()));
        let uniques = change.add_constraints.iter().filter_map(|added| match added {
            NewConstraint::Unique { columns, .. } => Some((columns, None)),
            _ => None,
        });
        for (columns, filter) in unique_indexes.chain(uniques) {
            if columns.iter().any(|column| computed.contains(&column)) {
                continue;
            }
            let names = quoted(columns);
            let given: Vec<String> =
                columns.iter().map(|column| format!("{} IS NOT NULL", column.quoted())).collect();
            let filter = filter.map_or(String::new(), |filter| format!(" AND ({filter})"));
            let sql = format!(
                "SELECT {names} FROM ({up}) WHERE {}{filter} GROUP BY {names} HAVING count(*) > 1",
                given.join(" AND ")
            );
            reject(self, &sql, "more than one row has it")?;
        }
        if change.tactic != Tactic::Shadow {
            return Ok(());
        }
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        let keys = (0..shape.key_now.len()).map(key_name).collect::<Vec<_>>().join(", ");
        let up = change.up_query(&shape.source_now(&table, "1"), &shape.passed());
        for column in &change.columns {
            let Some(then) = &column.then else { continue };
            if !column.nullable_then
                && (column.nullable_now || column.up.is_some())
                && column.fate != ColumnFate::Keep
                && !computed.contains(&then)
            {
                let sql = format!("SELECT {keys} FROM ({up}) WHERE {} IS NULL", then.quoted());
                reject(self, &sql, &format!("`{then}` would be NULL"))?;
            }
        }
        for constraint in &change.add_constraints {
            if let NewConstraint::Check { name, expr } = constraint {
                reject(
                    self,
                    &format!("SELECT {keys} FROM ({up}) WHERE NOT coalesce(({expr}), 1)"),
                    &format!("`{name}` does not hold"),
                )?;
            }
        }
        // Values that would not come back: what the migration says about them must be true, or a cast loses something.
        let lossy: Vec<_> = change
            .columns
            .iter()
            .filter(|column| {
                column.fate == ColumnFate::Alter && column.down.is_some() && column.then.is_some()
            })
            .filter(|column| {
                column.reversible || column.up.as_deref().is_some_and(|up| up.starts_with("CAST("))
            })
            .filter_map(|column| column.now.as_ref())
            .collect();
        if lossy.is_empty() || !change.rows.is_empty() {
            return Ok(());
        }
        let down = change.down_query(&format!("({up}) AS _cutover_up"), &shape.passed());
        let here: Vec<String> = (0..shape.key_now.len())
            .map(|at| format!("_cutover_s.{} IS _cutover_d.{}", shape.key_now[at], key_name(at)))
            .collect();
        for column in lossy {
            let name = column.quoted();
            let shown =
                shape.key_now.iter().map(|key| format!("_cutover_s.{key}")).collect::<Vec<_>>().join(", ");
            let sql = format!(
                "SELECT {shown} FROM {table} AS _cutover_s JOIN ({down}) AS _cutover_d ON {} WHERE _cutover_s.{name} IS NOT NULL AND \
                 _cutover_d.{name} IS NOT _cutover_s.{name}",
                here.join(" AND ")
            );
            reject(self, &sql, &format!("`{column}` would not come back as it was"))?;
        }
        Ok(())
    }

    /// Our names for a change, for other modules of the engine.
    pub(super) fn log_length(&self, names: &Names) -> Result<u64, Error> {
        let count = self.number(&format!("SELECT count(*) FROM {}", quote(&names.log)))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// Column affinity.
enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    fn of(kind: &str, strict: bool) -> Self {
        let upper = kind.to_ascii_uppercase();
        if strict && upper == "ANY" {
            Self::Blob
        } else if upper.contains("INT") {
            Self::Integer
        } else if ["CHAR", "CLOB", "TEXT"].iter().any(|word| upper.contains(word)) {
            Self::Text
        } else if upper.is_empty() || upper.contains("BLOB") {
            Self::Blob
        } else if ["REAL", "FLOA", "DOUB"].iter().any(|word| upper.contains(word)) {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// What is read back after this value was stored, for the common cases; `stored` settles the others.
    fn apply(&self, cell: Cell) -> Cell {
        match (self, cell) {
            (Self::Real, Cell::Integer(value)) => Cell::Real(value as f64),
            (Self::Integer | Self::Numeric, Cell::Real(value))
                if value.fract() == 0.0 && value.abs() < 9.0e15 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
                Cell::Integer(value as i64)
            }
            (Self::Integer | Self::Numeric | Self::Real, Cell::Text(text)) => {
                match (text.trim().parse::<i64>(), text.trim().parse::<f64>()) {
                    (Ok(value), _) if !matches!(self, Self::Real) => Cell::Integer(value),
                    (_, Ok(value))
                        if text
                            .trim()
                            .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) =>
                    {
                        self.apply(Cell::Real(value))
                    }
                    _ => Cell::Text(text),
                }
            }
            (Self::Text, Cell::Integer(value)) => Cell::Text(value.to_string()),
            (_, cell) => cell,
        }
    }
}

fn same(a: &[Cell], b: &[Cell]) -> bool {
    a.iter().zip(b).all(|(a, b)| match (a, b) {
        (Cell::Real(a), Cell::Real(b)) => a == b || a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    })
}

/// The order of keys as SQLite has it under the BINARY collation: NULL, numbers, text, blobs. Other collations only make a
/// difference look like two, which is one still.
fn key_order(a: &[Cell], b: &[Cell]) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let class = |cell: &Cell| match cell {
        Cell::Null => 0,
        Cell::Integer(_) | Cell::Real(_) => 1,
        Cell::Text(_) => 2,
        Cell::Blob(_) => 3,
    };
    for (a, b) in a.iter().zip(b) {
        let order = match (a, b) {
            (Cell::Integer(a), Cell::Integer(b)) => a.cmp(b),
            (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            (Cell::Blob(a), Cell::Blob(b)) => a.cmp(b),
            (Cell::Real(a), Cell::Real(b)) => a.total_cmp(b),
            (Cell::Integer(a), Cell::Real(b)) => (*a as f64).total_cmp(b),
            (Cell::Real(a), Cell::Integer(b)) => a.total_cmp(&(*b as f64)),
            (a, b) => class(a).cmp(&class(b)),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Applies the row functions of a change to rows of its written columns.
fn apply_functions(
    task: &Task<'_>,
    change: &TableChange,
    rows: &mut [(Vec<Cell>, Vec<Cell>)],
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let written = change.written_then();
    let at = |name: &Ident| -> Result<usize, Error> {
        let found = written.iter().position(|column| *column == name);
        found.ok_or_else(|| Error::Damaged(format!("column `{name}` is gone")))
    };
    for step in &change.rows {
        let RowStep::Function { step, name, read, write, .. } = step else { continue };
        let failed = |says: String| Error::Custom { name: name.clone(), says };
        let reads = read.iter().map(at).collect::<Result<Vec<_>, _>>()?;
        let writes = write.iter().map(at).collect::<Result<Vec<_>, _>>()?;
        let to_value = |cell: &Cell| match cell {
            Cell::Null => Value::Null,
            Cell::Integer(value) => Value::Integer(*value),
            Cell::Real(value) => Value::Real(*value),
            Cell::Text(text) => Value::Text(text.clone()),
            Cell::Blob(bytes) => Value::Bytes(bytes.clone()),
        };
        let chunk = RowChunk {
            columns: read.iter().map(ToString::to_string).collect(),
            rows: rows.iter().map(|(_, row)| reads.iter().map(|at| to_value(&row[*at])).collect()).collect(),
        };
        let function = task.functions.get(step).ok_or_else(|| failed("it is not registered".to_owned()))?;
        let mut function = function.lock().map_err(|_| failed("it panicked".to_owned()))?;
        let result = function.apply(&chunk)?;
        let expected: Vec<String> = write.iter().map(ToString::to_string).collect();
        if result.columns != expected {
            return Err(failed(format!("it returned the columns {:?}, not {expected:?}", result.columns)));
        }
        if result.rows.len() != rows.len() {
            return Err(failed(format!("it returned {} rows for {}", result.rows.len(), rows.len())));
        }
        for ((_, row), new) in rows.iter_mut().zip(&result.rows) {
            if new.len() != writes.len() {
                return Err(failed("it returned a row of another length".to_owned()));
            }
            for (at, value) in writes.iter().zip(new) {
                row[*at] = super::bind(value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_ledger() {
        let key = vec![
            Cell::Integer(-5),
            Cell::Text("a\"b".into()),
            Cell::Real(0.1),
            Cell::Blob(vec![0, 255]),
            Cell::Null,
        ];
        assert_eq!(parse_key(&print_key(&key)).unwrap(), key);
    }
}
