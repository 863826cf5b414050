//! The SQLite engine: a shadow table filled in short transactions, a log of touched keys that a drain works off, and a swap in
//! one transaction of the write lock.
//!
//! The database must be in WAL mode. Our connection has `foreign_keys` off and `legacy_alter_table` on, so that renames leave
//! references of other tables alone. Read [`Sqlite`] first, then `shape.rs` for the SQL.

mod aside;
mod catalog;
mod compare;
mod copy;
mod ddl;
mod keys;
mod references;
mod scan;
mod shape;
mod staging;
mod swap;
mod trash;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    CachedStatement, Connection, ErrorCode, OpenFlags,
    types::{Value as Cell, ValueRef},
};

use crate::{
    catalog::Catalog,
    change::{Fate, TableChange, Tactic},
    engine::{Engine, ExprCheck, Loss, Pace, Task, Work},
    error::{Error, Refusal, SqlError, SqlErrorKind},
    ir::{Dialect, Ident},
    state::{
        self, Phase,
        sql::{Sql, Value, in_transaction},
    },
};
use shape::{Names, Shape, quote};

/// How long a statement of ours waits for the write lock.
const BUSY: Duration = Duration::from_secs(10);

/// A SQLite database file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
}

impl Sqlite {
    /// Opens a database that exists.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |error| Error::Sql(sql_error(error, &format!("open {}", path.display())));
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection
            .execute_batch(
                "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; PRAGMA recursive_triggers = OFF; \
                 PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 4000;",
            )
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    fn run(&self, sql: &str) -> Result<(), Error> {
        self.connection.execute_batch(sql).map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    fn prepare_cached(&self, sql: &str) -> Result<CachedStatement<'_>, Error> {
        self.connection.prepare_cached(sql).map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    fn rows(&self, sql: &str, parameters: &[Cell]) -> Result<Vec<Vec<Cell>>, Error> {
        let mut statement = self.prepare_cached(sql)?;
        let width = statement.column_count();
        let mut run = || -> rusqlite::Result<Vec<Vec<Cell>>> {
            let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| {
                (0..width).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<Cell>>>()
            })?;
            rows.collect()
        };
        run().map_err(|error| Error::Sql(evaluation_error(error, sql)))
    }

    fn change_rows(&self, sql: &str, parameters: &[Cell]) -> Result<u64, Error> {
        let done = self.prepare_cached(sql)?.execute(rusqlite::params_from_iter(parameters));
        done.map(|count| count as u64).map_err(|error| Error::Sql(evaluation_error(error, sql)))
    }

    fn exists(&self, kind: &str, name: &str) -> Result<bool, Error> {
        let sql = "SELECT count(*) FROM main.sqlite_schema WHERE type = ?1 AND name = ?2";
        let count = self.connection.query_row(sql, [kind, name], |row| row.get::<_, i64>(0));
        count.map(|count| count > 0).map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    fn has(&self, table: &str) -> Result<bool, Error> {
        self.exists("table", table)
    }

    fn number(&self, sql: &str) -> Result<i64, Error> {
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .map_err(|error| Error::Sql(sql_error(error, sql)))
    }

    /// Runs `body` in one transaction with the write lock, after the fence.
    fn fenced<T>(
        &mut self,
        epoch: u64,
        body: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        in_transaction(self, |engine| {
            state::fence(engine, epoch)?;
            engine.counted(body)
        })
    }

    /// Runs `body`; where it changed the schema, remembered cookies follow: our own changes are no surprise.
    fn counted<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let before = self.number("PRAGMA schema_version")?;
        let value = body(self)?;
        let after = self.number("PRAGMA schema_version")?;
        if before != after && state::is_installed(self)? {
            let follow = "UPDATE _cutover_chunk SET high = $1 WHERE kind = 'cookie' AND high = $2";
            self.execute(follow, &[after.to_string().into(), before.to_string().into()])?;
        }
        Ok(value)
    }
}

/// What SQLite said.
fn sql_error(error: rusqlite::Error, statement: &str) -> SqlError {
    let (kind, code) = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            let kind = match (failure.code, failure.extended_code) {
                (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => SqlErrorKind::Busy,
                (
                    _,
                    rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
                ) => SqlErrorKind::Unique,
                (ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch, _) => SqlErrorKind::Data,
                (ErrorCode::CannotOpen | ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt, _) => {
                    SqlErrorKind::Connection
                }
                _ => SqlErrorKind::Other,
            };
            (kind, failure.extended_code.to_string())
        }
        _ => (SqlErrorKind::Other, String::new()),
    };
    SqlError::new(kind, code, error.to_string(), statement)
}

/// What SQLite said of a statement that could be prepared: where it has no code of its own for it, a function was given a value
/// that it has no result for, such as `json` text that is none.
fn evaluation_error(error: rusqlite::Error, statement: &str) -> SqlError {
    let of_a_value = matches!(&error, rusqlite::Error::SqliteFailure(failure, _)
        if failure.extended_code == rusqlite::ffi::SQLITE_ERROR || failure.code == ErrorCode::TooBig);
    let error = sql_error(error, statement);
    if of_a_value { SqlError { kind: SqlErrorKind::Data, ..error } } else { error }
}

fn bind(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Integer(value) => (*value).into(),
        Value::Real(value) => (*value).into(),
        Value::Text(text) => text.clone().into(),
        Value::Bytes(bytes) => bytes.clone().into(),
    }
}

fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

impl Sql for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn execute(&mut self, sql: &str, parameters: &[Value]) -> Result<u64, SqlError> {
        let run = || -> rusqlite::Result<u64> {
            if parameters.is_empty() {
                self.connection.execute_batch(sql)?;
            } else {
                self.connection
                    .prepare_cached(sql)?
                    .execute(rusqlite::params_from_iter(parameters.iter().map(bind)))?;
            }
            Ok(self.connection.changes())
        };
        run().map_err(|error| sql_error(error, sql))
    }

    fn query(&mut self, sql: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
        let run = || -> rusqlite::Result<Vec<Vec<Value>>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let width = statement.column_count();
            let mut rows = statement.query(rusqlite::params_from_iter(parameters.iter().map(bind)))?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(
                    (0..width)
                        .map(|at| row.get_ref(at).map(value_of))
                        .collect::<rusqlite::Result<Vec<_>>>()?,
                );
            }
            Ok(all)
        };
        run().map_err(|error| sql_error(error, sql))
    }
}

impl Engine for Sqlite {
    fn prepare(&mut self) -> Result<(), Error> {
        if !state::is_installed(self)? {
            in_transaction(self, |engine| state::install(engine))?;
        }
        self.sweep()
    }

    fn another(&self) -> Result<Box<dyn Sql + Send>, Error> {
        Ok(Box::new(Self::open(&self.path)?))
    }

    fn staging(&mut self, name: &str) -> Result<Box<dyn crate::run::Staging>, Error> {
        Ok(Box::new(staging::Copy::make(self, name)?))
    }

    fn prelude(&mut self, version: &str) -> Result<Vec<String>, Error> {
        self.prelude_of(version)
    }

    fn observe(&mut self, tables: &[Ident]) -> Result<Catalog, Error> {
        catalog::read(&self.connection, &self.path, tables)
    }

    fn validate(&mut self, checks: &[ExprCheck]) -> Result<(), Error> {
        let refused: Vec<Refusal> = checks
            .iter()
            .filter_map(|check| {
                let error = self.connection.prepare(&check.query).err()?;
                Some(Refusal::new(
                    format!("{}: {error}", check.what),
                    "Mend the expression; `lint` tells which names it may use.",
                ))
            })
            .collect();
        if refused.is_empty() { Ok(()) } else { Err(Error::Refused(refused)) }
    }

    fn pre_scan(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        self.scan(task, change)
    }

    fn expand(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if change.fate == Fate::Create || change.tactic == Tactic::Instant {
            return Ok(());
        }
        let names = Names::of(task, change);
        task.point("expand.before");
        self.fenced(task.epoch, |engine| {
            for view in shape::views_shown(task, change) {
                if !engine.exists("view", &view)? {
                    engine.old_view_before(change, &view)?;
                }
            }
            if change.tactic != Tactic::Shadow || engine.has(&names.shadow)? {
                return Ok(());
            }
            let shape = Shape::read(&engine.connection, task, change, change.table.as_str())?;
            for statement in shape.create(task.position)? {
                engine.run(&statement)?;
            }
            engine.try_references(&shape)?;
            let keys: Vec<String> = (0..shape.key_now.len()).map(shape::key_name).collect();
            engine.run(&format!("CREATE TABLE {} ({})", quote(&names.log), keys.join(", ")))?;
            engine.make_aside(&shape)
        })?;
        task.point("expand.after");
        Ok(())
    }

    fn dual_write(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if change.tactic != Tactic::Shadow {
            return Ok(());
        }
        let names = Names::of(task, change);
        task.point("dual_write.before");
        // CREATE TRIGGER takes the write lock: whoever writes after the commit knows the triggers, nobody wrote during it.
        self.fenced(task.epoch, |engine| {
            if engine.exists("trigger", &names.trigger(Shape::FORWARD[0]))? {
                return Ok(());
            }
            let shape = Shape::read(&engine.connection, task, change, change.table.as_str())?;
            shape.forward().iter().try_for_each(|statement| engine.run(statement))?;
            engine.remember_cookie(task, change)
        })?;
        task.point("dual_write.after");
        Ok(())
    }

    fn backfill(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error> {
        match change.tactic {
            Tactic::Shadow => self.copy_all(task, change, pace),
            _ => Ok(Work::default()),
        }
    }

    fn verify(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error> {
        match change.tactic {
            Tactic::Shadow => self.compare_all(task, change, pace),
            _ => Ok(Work::default()),
        }
    }

    fn swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<Work, Error> {
        self.swap_all(task, changes, record)
    }

    fn settle(&mut self, _: &Task<'_>, _: &TableChange) -> Result<(), Error> {
        Ok(())
    }

    fn uses(&mut self, task: &Task<'_>, change: &TableChange) -> Result<Vec<String>, Error> {
        self.seen_uses(task, change)
    }

    fn contract(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        self.remove_old(task, change)?;
        self.sweep()
    }

    fn undo_before_swap(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        self.remove_new(task, change)?;
        self.sweep()
    }

    fn losses(&mut self, task: &Task<'_>, changes: &[TableChange]) -> Result<Vec<Refusal>, Error> {
        self.would_lose(task, changes)
    }

    fn undo_after_swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        loss: Loss,
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.swap_back(task, changes, loss, record)
    }

    fn tidy(&mut self) -> Result<(), Error> {
        self.sweep()
    }

    fn is_done(&mut self, task: &Task<'_>, phase: Phase, change: &TableChange) -> Result<bool, Error> {
        // A rollback is one transaction here; what it leaves for [`tidy`](Self::tidy) is in nobody's way.
        if phase == Phase::RolledBack {
            return Ok(true);
        }
        let names = Names::of(task, change);
        if change.tactic != Tactic::Shadow {
            return Ok(false);
        }
        match phase {
            Phase::ShadowCreate => self.has(&names.shadow),
            Phase::DualWrite => self.exists("trigger", &names.trigger(Shape::FORWARD[0])),
            Phase::AtomicSwap => self.has(&names.old),
            _ => Ok(false),
        }
    }
}
