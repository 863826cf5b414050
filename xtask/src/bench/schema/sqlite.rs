//! SQLite files of the same shape as the PostgreSQL table.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use rusqlite::Connection;

/// How long a client of ours waits for the lock. Applications set this; without it SQLite does not wait at all.
const BUSY: Duration = Duration::from_secs(5);

/// Makes a file with a table `orders` with ids from 1 to `rows`, in WAL mode; where it is.
pub(super) fn make(place: &Path, rows: u64) -> Result<PathBuf> {
    let path = place.join("app.db");
    for end in ["", "-wal", "-shm"] {
        let old = place.join(format!("app.db{end}"));
        if old.exists() {
            std::fs::remove_file(old)?;
        }
    }
    let connection = connect(&path)?;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; \
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer int NOT NULL, amount bigint, country text, note text); \
         WITH RECURSIVE ids(g) AS (SELECT 1 UNION ALL SELECT g + 1 FROM ids WHERE g < {rows}) \
         INSERT INTO orders (customer, amount, country, note) SELECT g % 100000, g % 1000000, 'DE', 'note ' || g FROM ids; \
         PRAGMA wal_checkpoint(TRUNCATE)"
    ))?;
    Ok(path)
}

/// A connection of a client.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// How `cutover` reaches it.
pub(super) fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}
