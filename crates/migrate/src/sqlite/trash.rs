//! Removing large tables without holding the write lock for long: they are renamed to trash in the transaction that gives them
//! up, emptied in short transactions, and dropped when empty. `DROP TABLE` at once holds the lock for seconds.

use std::time::{Duration, Instant};

use super::{Sqlite, shape::quote};
use crate::{error::Error, state::sql::in_transaction};

/// How long one transaction of the sweep deletes.
const HOLD: Duration = Duration::from_millis(4);
/// Rows per DELETE.
const ROWS: u32 = 256;

impl Sqlite {
    /// Empties and drops every trash table. Safe at any time, by anybody: nothing else uses them.
    pub(super) fn sweep(&mut self) -> Result<(), Error> {
        let found = super::catalog::texts(
            &self.connection,
            "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name GLOB '_cutover_trash_*'",
            &[],
        )?;
        for table in found.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
            self.empty(&table)?;
        }
        Ok(())
    }

    fn empty(&mut self, table: &str) -> Result<(), Error> {
        let keys = super::catalog::texts(
            &self.connection,
            "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk",
            &[table],
        )?;
        let definition = super::catalog::definition(&self.connection, table)?.unwrap_or_default();
        let rowid = !super::ddl::table(&definition).is_some_and(|def| def.without_rowid());
        let key = if rowid {
            "rowid".to_owned()
        } else {
            let names: Vec<String> =
                keys.into_iter().filter_map(|row| row[0].as_deref().map(quote)).collect();
            format!("({})", names.join(", "))
        };
        let inner = key.trim_matches(['(', ')']).to_owned();
        let quoted = quote(table);
        let delete =
            format!("DELETE FROM {quoted} WHERE {key} IN (SELECT {inner} FROM {quoted} LIMIT {ROWS})");
        loop {
            let done = in_transaction(self, |engine| {
                engine.counted(|engine| {
                    let started = Instant::now();
                    while started.elapsed() < HOLD {
                        engine.run(&delete)?;
                        if engine.connection.changes() < u64::from(ROWS) {
                            engine.run(&format!("DROP TABLE IF EXISTS {quoted}"))?;
                            return Ok(true);
                        }
                    }
                    Ok(false)
                })
            })?;
            if done {
                return Ok(());
            }
            std::thread::sleep(HOLD * 2);
        }
    }
}
