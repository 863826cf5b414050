//! Copying rows, and the drain that works off what clients touched meanwhile.

use std::time::{Duration, Instant};

use rusqlite::types::Value as Cell;

use super::{
    Sqlite,
    keys::{parse_key, placeholders, print_key},
    shape::{Names, Shape, key_name, quote},
};
use crate::{
    change::{RowStep, TableChange},
    engine::{ChunkDone, Pace, RowChunk, Task, Work},
    error::Error,
    ir::Ident,
    state::{
        clock_ms, fence,
        sql::{Sql, Value},
        table as state_table,
    },
};

/// Rows per statement inside a chunk.
pub(super) const BATCH: u64 = 256;
/// How long a chunk holds the write lock: beats any configured number of rows.
const HOLD: Duration = Duration::from_millis(4);

/// How often the log is moved to the database: so often that it stays short of the 1,000 pages at which a client's commit would
/// have to do it, and not more, for it waits for the disk.
const CHECKPOINT: Duration = Duration::from_millis(20);

/// A new row: its key, then its written columns.
type Computed = (Vec<Cell>, Vec<Cell>);

impl Sqlite {
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

    pub(super) fn note_chunk(
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
             SET high = excluded.high, seen = excluded.seen, copied = excluded.copied, rejected = excluded.rejected, at_ms = excluded.at_ms",
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
        let mut flushed = Instant::now();
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
            if flushed.elapsed() >= CHECKPOINT {
                self.checkpoint();
                flushed = Instant::now();
            }
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
    pub(super) fn start_again(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
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
                let (copied, rejected) = engine.copy_range(task, shape, low.as_deref(), &high)?;
                done.copied += copied;
                done.rejected += rejected;
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
        let from = format!("FROM {table} WHERE {above} ORDER BY {keys}");
        let low = low.unwrap_or_default();
        let one = |sql: String| -> Result<Option<Vec<Cell>>, Error> {
            Ok(self.rows(&sql, low)?.into_iter().next())
        };
        if let Some(last) = one(format!("SELECT {keys} {from} LIMIT 1 OFFSET {}", BATCH - 1))? {
            return Ok(Some((last, BATCH)));
        }
        // The rows at the end.
        let rest = format!("SELECT {} {from}", named.join(", "));
        let last: Vec<String> = names.iter().map(|name| format!("{name} DESC")).collect();
        let Some(mut row) = one(format!(
            "SELECT {0}, (SELECT count(*) FROM ({rest})) FROM ({rest}) ORDER BY {1} LIMIT 1",
            names.join(", "),
            last.join(", ")
        ))?
        else {
            return Ok(None);
        };
        match row.pop() {
            Some(Cell::Integer(count)) => Ok(Some((row, u64::try_from(count).unwrap_or(0)))),
            _ => Err(Error::Damaged("a count is none".to_owned())),
        }
    }

    fn range(shape: &Shape<'_>, low: Option<&[Cell]>, high: &[Cell]) -> (String, Vec<Cell>) {
        Self::range_of(&shape.key_now, low, high)
    }

    /// The condition `low < key <= high`, and its parameters.
    fn range_of(key: &[String], low: Option<&[Cell]>, high: &[Cell]) -> (String, Vec<Cell>) {
        let width = key.len();
        let mut condition = Shape::compare(key, "<=", &placeholders(1, width));
        let mut values = high.to_vec();
        if let Some(low) = low {
            condition
                .push_str(&format!(" AND {}", Shape::compare(key, ">", &placeholders(width + 1, width))));
            values.extend_from_slice(low);
        }
        (condition, values)
    }

    /// Copies a range; how many rows were written, and how many set aside.
    fn copy_range(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        low: Option<&[Cell]>,
        high: &[Cell],
    ) -> Result<(u64, u64), Error> {
        let (condition, values) = Self::range(shape, low, high);
        self.run("SAVEPOINT _cutover_batch")?;
        let done = match self.insert_fitting(task, shape, &condition, &values)? {
            Some(copied) => (copied, 0),
            None => {
                self.run("ROLLBACK TO _cutover_batch")?;
                self.copy_range_again(task, shape, low, high)?
            }
        };
        self.run("RELEASE _cutover_batch")?;
        Ok(done)
    }

    /// Copies a range of which a row does not fit as things are.
    fn copy_range_again(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        low: Option<&[Cell]>,
        high: &[Cell],
    ) -> Result<(u64, u64), Error> {
        let (condition, values) = Self::range(shape, low, high);
        // A row copied earlier may have given up what this one has now; after a drain the copy is S as it is. Who sets rows
        // aside tries them again when all is drained, so the log may wait.
        if !shape.sets_aside() {
            self.drain(task, shape, None, low)?;
        }
        // Rows above the last chunk are there when a run that was cut off had drained already.
        let (copies, _) = Self::range_of(&shape.key_then, low, high);
        self.change_rows(&format!("DELETE FROM {} WHERE {copies}", quote(&shape.names.shadow)), &values)?;
        self.run("SAVEPOINT _cutover_again")?;
        let copied = self.insert_fitting(task, shape, &condition, &values)?;
        if copied.is_none() {
            self.run("ROLLBACK TO _cutover_again")?;
        }
        self.run("RELEASE _cutover_again")?;
        if let Some(copied) = copied {
            return Ok((copied, 0));
        }
        let done = self.insert_each(task, shape, &condition, &values)?;
        if !shape.sets_aside() {
            return Err(Self::rejected(task, shape, &done.misfits));
        }
        self.set_aside(task, shape, &done.misfits)?;
        Ok((done.copied, done.misfits.len() as u64))
    }

    /// Copies the rows of the old table that satisfy a condition: in the database, or through row functions.
    pub(super) fn insert_where(
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
            "INSERT OR ABORT INTO {} ({columns}) VALUES ({})",
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
    pub(super) fn computed(
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

    /// Works off touched keys: at most `limit` entries of the log, all without one. Rows above `upto` are left to the copy. In the
    /// caller's transaction. Returns how many keys were synced; rows that do not fit are an error, or set aside.
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
        let before = self.aside_of(shape, batch)?;
        let mut misfits = Vec::new();
        if self.insert_fitting(task, shape, &condition, &values)?.is_none() {
            self.run("ROLLBACK TO _cutover_drain")?;
            if limit.is_some() && !shape.sets_aside() {
                // Another touched key, not in this batch, still has what this row has now: all at once.
                self.run("RELEASE _cutover_drain")?;
                return self.drain(task, shape, None, upto);
            }
            self.run(&gone)?;
            misfits = self.insert_each(task, shape, &condition, &values)?.misfits;
            if !shape.sets_aside() {
                return Err(Self::rejected(task, shape, &misfits));
            }
            self.set_aside(task, shape, &misfits)?;
        }
        self.take_back(task, shape, &before, &misfits)?;
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

    /// How many keys wait to be synced.
    pub(super) fn log_length(&self, names: &Names) -> Result<u64, Error> {
        let count = self.number(&format!("SELECT count(*) FROM {}", quote(&names.log)))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
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
