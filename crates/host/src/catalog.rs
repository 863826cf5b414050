//! The catalog: history and an index of what is on disk, in SQLite. Format: `docs/formats/catalog.md`.
//!
//! Nothing here says what is current; the tree does (decision 0003). A damaged catalog is moved aside, never overwritten,
//! and a new one is filled from what lies on disk in the transaction that makes it, so that half of one is none. Every change is
//! one transaction with `synchronous = FULL`.

use std::{collections::BTreeSet, io, path::Path, sync::Mutex};

use cutover_core::model::{Digest, Instant, Manifest, Name, Version};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;

/// Where the catalog lies below the root.
pub const CATALOG_PATH: &str = ".cutover/catalog.db";

/// The version of the tables, in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE releases (
    manifest TEXT PRIMARY KEY, package TEXT NOT NULL, version TEXT NOT NULL
) STRICT;
CREATE TABLE files (
    manifest TEXT NOT NULL REFERENCES releases ON DELETE CASCADE,
    path TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (manifest, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_by_content ON files (sha256);
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER, at TEXT NOT NULL, action TEXT NOT NULL,
    from_version TEXT, to_version TEXT, outcome TEXT NOT NULL, error TEXT, restore_point TEXT
) STRICT;
CREATE TABLE tombstones (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL) STRICT;
CREATE TABLE highest (package TEXT PRIMARY KEY, version TEXT NOT NULL) STRICT;
CREATE TABLE measurements (manifest TEXT PRIMARY KEY, json TEXT NOT NULL) STRICT;
CREATE TABLE fingerprints (
    inode INTEGER PRIMARY KEY, size INTEGER NOT NULL, changed_ns TEXT NOT NULL, modified_ns TEXT NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;
";

/// Why the catalog cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// SQLite reports a problem.
    #[error("failed to {attempt} in the catalog")]
    Sqlite {
        /// What was attempted.
        attempt: &'static str,
        /// SQLite's own words.
        #[source]
        source: rusqlite::Error,
    },
    /// A simulated crash, or a failure to move a damaged catalog aside.
    #[error("failed to {attempt} in the catalog")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Written by a newer program.
    #[error("the catalog has version {0}, newer than this program's {SCHEMA_VERSION}; use the newer cutover")]
    Newer(i64),
}

/// Called before and after every commit; an error stops there. The simulation crashes here.
pub type CommitGate = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What happened on this root, one row per attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// The execution, if it came to one.
    pub number: Option<u64>,
    /// When it ended.
    pub at: Instant,
    /// `update`, `rollback`, `prune`, `repair`.
    pub action: String,
    /// The version before.
    pub from: Option<Version>,
    /// The version it was to lead to.
    pub to: Option<Version>,
    /// How it ended: `confirmed`, `undone`, `probe-failed`, `kept-unconfirmed`, `stuck`, `refused`, `failed`.
    pub outcome: String,
    /// Why, when it did not succeed.
    pub error: Option<String>,
    /// The restore point it made.
    pub restore_point: Option<String>,
}

/// Something whose removal has been decided and recorded, but perhaps not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Its number.
    pub id: i64,
    /// What it is about: the digest of the release's manifest.
    pub manifest: Digest,
}

/// A file that was hashed. As long as inode, size and times of change are these, so is the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of content or attributes, in nanoseconds since the epoch.
    pub changed_ns: i128,
    /// Time of the last change of content, in nanoseconds since the epoch.
    pub modified_ns: i128,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

/// The catalog of one root.
pub struct Catalog {
    connection: Mutex<Connection>,
    gate: Option<CommitGate>,
}

/// What [`Catalog::open`] found.
pub struct Opened {
    /// The catalog.
    pub catalog: Catalog,
    /// Where a damaged predecessor was moved to, relative to the root. The caller warns.
    pub moved_aside: Option<String>,
}

/// A catalog that is being made. What it is filled with becomes durable together with it.
pub struct Filling<'t>(&'t Transaction<'t>);

/// Fills a new catalog from what lies on disk.
pub type Fill<'f> = &'f dyn Fn(&Filling<'_>) -> Result<(), CatalogError>;

/// Adds nothing.
const NOTHING: Fill<'static> = &|_| Ok(());

impl Filling<'_> {
    /// Adds a release that lies on disk.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn index(&self, digest: Digest, manifest: &Manifest) -> Result<(), CatalogError> {
        insert_release(self.0, digest, manifest)
            .and_then(|()| raise_highest(self.0, &manifest.package, &manifest.version))
            .map_err(sqlite("index a release"))
    }

    /// Adds a row of the history.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn record(&self, row: &HistoryRow) -> Result<(), CatalogError> {
        insert_history(self.0, row).map_err(sqlite("record history"))
    }
}

impl Catalog {
    /// Opens the catalog of a root, making one with `fill` if there is none and moving it aside if it is damaged. Only for whoever
    /// holds the lock of the root.
    ///
    /// # Errors
    /// [`CatalogError`]; the files are then as they were.
    pub fn open(disk: &dyn Disk, fill: Fill<'_>) -> Result<Opened, CatalogError> {
        let path = disk.root().join(CATALOG_PATH);
        match open_sound(disk, || Self::open_file(&path, fill))? {
            Some(catalog) => Ok(Opened { catalog, moved_aside: None }),
            None => {
                let aside = move_aside(disk)
                    .map_err(|source| CatalogError::Io { attempt: "move the damaged file aside", source })?;
                Ok(Opened { catalog: Self::open_file(&path, fill)?, moved_aside: Some(aside) })
            }
        }
    }

    /// Opens the catalog of a root as it is; `None` when it is damaged or not made yet. For whoever only reads, perhaps beside
    /// somebody who holds the lock: nothing is made or moved.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn open_made(disk: &dyn Disk) -> Result<Option<Self>, CatalogError> {
        let path = disk.root().join(CATALOG_PATH);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = open_sound(disk, || {
            let connection = Connection::open_with_flags(&path, flags).map_err(sqlite("open"))?;
            if user_version(&connection).map_err(sqlite("open"))? == 0 {
                return Ok(None);
            }
            Self::prepare(connection, None, NOTHING).map(Some)
        });
        opened.map(Option::flatten)
    }

    /// A catalog in memory with what `fill` adds, to read from where there is no other.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn filled(fill: Fill<'_>) -> Result<Self, CatalogError> {
        Self::prepare(Connection::open_in_memory().map_err(sqlite("open"))?, None, fill)
    }

    fn open_file(path: &Path, fill: Fill<'_>) -> Result<Self, CatalogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite("open"))?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(sqlite("open"))?;
        Self::prepare(connection, None, fill)
    }

    /// A catalog that lives in memory, for the simulation: `gate` is called around every commit.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn in_memory(gate: CommitGate) -> Result<Self, CatalogError> {
        Self::prepare(Connection::open_in_memory().map_err(sqlite("open"))?, Some(gate), NOTHING)
    }

    /// A copy in memory of what is in this catalog, for the simulation, which runs many futures of one past.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn fork(&self, gate: CommitGate) -> Result<Self, CatalogError> {
        let mut copy = Connection::open_in_memory().map_err(sqlite("copy"))?;
        self.read("copy", |connection| {
            let backup = rusqlite::backup::Backup::new(connection, &mut copy)?;
            backup.step(-1).map(drop)
        })?;
        Self::prepare(copy, Some(gate), NOTHING)
    }

    /// Makes the tables and fills them, in one transaction, if there are none.
    fn prepare(
        mut connection: Connection,
        gate: Option<CommitGate>,
        fill: Fill<'_>,
    ) -> Result<Self, CatalogError> {
        let open = sqlite("open");
        let set = |name: &str, value: &str| connection.pragma_update(None, name, value);
        set("synchronous", "FULL").and_then(|()| set("foreign_keys", "ON")).map_err(&open)?;
        // The write-ahead log is as durable as the file itself: folding it in at every close would only cost flushes.
        let no_checkpoint = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(no_checkpoint, true).map_err(&open)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(&open)?;
        let check: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&open)?;
        if check != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(open(rusqlite::Error::SqliteFailure(code, Some(check))));
        }
        let transaction = connection.transaction().map_err(&open)?;
        match user_version(&transaction).map_err(&open)? {
            0 => {
                transaction.execute_batch(SCHEMA).map_err(&open)?;
                fill(&Filling(&transaction))?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(&open)?;
            }
            SCHEMA_VERSION => {}
            newer => return Err(CatalogError::Newer(newer)),
        }
        transaction.commit().map_err(&open)?;
        Ok(Self { connection: Mutex::new(connection), gate })
    }

    fn read<T>(
        &self,
        attempt: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CatalogError> {
        read(&self.connection.lock().expect("no holder of the catalog panics")).map_err(sqlite(attempt))
    }

    /// Runs `write` as one durable transaction.
    fn write<T>(
        &self,
        attempt: &'static str,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, CatalogError> {
        let pass = || {
            self.gate
                .as_ref()
                .map_or(Ok(()), |gate| gate())
                .map_err(|source| CatalogError::Io { attempt, source })
        };
        let mut connection = self.connection.lock().expect("no holder of the catalog panics");
        let transaction = connection.transaction().map_err(sqlite(attempt))?;
        let value = write(&transaction).map_err(sqlite(attempt))?;
        pass()?;
        transaction.commit().map_err(sqlite(attempt))?;
        pass()?;
        Ok(value)
    }

    /// Records a release as good: its files in the index and no tombstone, its version as seen, the history row, and `fingerprints` in
    /// place of all others unless there are none; all or nothing. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`CatalogError`]; nothing is recorded then, unless a simulated crash came after the commit.
    pub fn confirm(
        &self,
        release: Option<(Digest, &Manifest)>,
        row: &HistoryRow,
        fingerprints: &[Fingerprint],
    ) -> Result<(), CatalogError> {
        self.write("confirm a release", |transaction| {
            if let Some((digest, manifest)) = release {
                insert_release(transaction, digest, manifest)?;
                raise_highest(transaction, &manifest.package, &manifest.version)?;
                transaction.execute("DELETE FROM tombstones WHERE name = ?1", [digest.to_string()])?;
            }
            if !fingerprints.is_empty() {
                replace_fingerprints(transaction, fingerprints)?;
            }
            insert_history(transaction, row)
        })
    }

    /// The manifests in the index.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn releases(&self) -> Result<BTreeSet<Digest>, CatalogError> {
        self.read("list releases", |connection| {
            connection
                .prepare("SELECT manifest FROM releases")?
                .query_map([], |row| digest(row, 0))?
                .collect()
        })
    }

    /// Takes a release out of the index and leaves a tombstone, in one transaction. An unknown release is `None`.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn bury(&self, manifest: Digest) -> Result<Option<Tombstone>, CatalogError> {
        self.write("remove a release", |transaction| {
            let name = manifest.to_string();
            if transaction.execute("DELETE FROM releases WHERE manifest = ?1", [&name])? == 0 {
                return Ok(None);
            }
            transaction.execute("INSERT INTO tombstones (kind, name) VALUES ('release', ?1)", [&name])?;
            Ok(Some(Tombstone { id: transaction.last_insert_rowid(), manifest }))
        })
    }

    /// Removals that may be unfinished, oldest first; replayed at start.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn tombstones(&self) -> Result<Vec<Tombstone>, CatalogError> {
        self.read("list tombstones", |connection| {
            let mut statement =
                connection.prepare("SELECT id, name FROM tombstones WHERE kind = 'release' ORDER BY id")?;
            statement
                .query_map([], |row| Ok(Tombstone { id: row.get(0)?, manifest: digest(row, 1)? }))?
                .collect()
        })
    }

    /// Drops a tombstone once everything it stands for is gone. Doing it again is harmless.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn drop_tombstone(&self, tombstone: &Tombstone) -> Result<(), CatalogError> {
        self.write("drop a tombstone", |transaction| {
            transaction.execute("DELETE FROM tombstones WHERE id = ?1", [tombstone.id]).map(drop)
        })
    }

    /// Whether any release in the index has this content.
    #[cfg(test)]
    fn is_named(&self, object: Digest) -> Result<bool, CatalogError> {
        self.read("look an object up", |connection| {
            connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM files WHERE sha256 = ?1)",
                [object.to_string()],
                |row| row.get(0),
            )
        })
    }

    /// The highest version ever confirmed for a package.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn highest(&self, package: &Name) -> Result<Option<Version>, CatalogError> {
        self.read("look a version up", |connection| highest(connection, package))
    }

    /// Adds a row to the history.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn record(&self, row: &HistoryRow) -> Result<(), CatalogError> {
        self.write("record history", |transaction| insert_history(transaction, row))
    }

    /// The history, newest first, at most `limit` rows.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn history(&self, limit: usize) -> Result<Vec<HistoryRow>, CatalogError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("read history", |connection| {
            let mut statement = connection.prepare(
                "SELECT number, at, action, from_version, to_version, outcome, error, restore_point
                 FROM history ORDER BY id DESC LIMIT ?1",
            )?;
            statement.query_map([limit], history_row)?.collect()
        })
    }

    /// Empties the history.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn clear_history(&self) -> Result<(), CatalogError> {
        self.write("clear history", |transaction| transaction.execute("DELETE FROM history", []).map(drop))
    }

    /// Keeps what was measured while a release was probed, as JSON: the next release is compared with it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn set_measurement(&self, manifest: Digest, json: &str) -> Result<(), CatalogError> {
        self.write("keep a measurement", |transaction| {
            let sql = "INSERT INTO measurements VALUES (?1, ?2) ON CONFLICT (manifest) DO UPDATE SET json = excluded.json";
            transaction.execute(sql, params![manifest.to_string(), json]).map(drop)
        })
    }

    /// What was measured for a release.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn measurement(&self, manifest: Digest) -> Result<Option<String>, CatalogError> {
        self.read("look a measurement up", |connection| {
            let sql = "SELECT json FROM measurements WHERE manifest = ?1";
            connection.query_row(sql, [manifest.to_string()], |row| row.get(0)).optional()
        })
    }

    /// Remembers these digests and no others.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn remember(&self, fingerprints: &[Fingerprint]) -> Result<(), CatalogError> {
        self.write("remember digests", |transaction| replace_fingerprints(transaction, fingerprints))
    }

    /// Hands over what is remembered of files that were hashed, one by one, in the order of their inodes.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn fingerprints(&self, take: &mut dyn FnMut(Fingerprint)) -> Result<(), CatalogError> {
        self.read("read fingerprints", |connection| {
            let mut statement = connection.prepare(
                "SELECT inode, size, changed_ns, modified_ns, sha256 FROM fingerprints ORDER BY inode",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(Fingerprint {
                    inode: row.get::<_, i64>(0)?.cast_unsigned(),
                    size: row.get::<_, i64>(1)?.cast_unsigned(),
                    changed_ns: parsed(row, 2)?,
                    modified_ns: parsed(row, 3)?,
                    sha256: digest(row, 4)?,
                })
            };
            statement.query_map([], row)?.try_for_each(|file| file.map(&mut *take))
        })
    }
}

fn sqlite(attempt: &'static str) -> impl Fn(rusqlite::Error) -> CatalogError {
    move |source| CatalogError::Sqlite { attempt, source }
}

/// Opens a catalog with `open`; `None` when its file is damaged.
fn open_sound<T>(
    disk: &dyn Disk,
    open: impl Fn() -> Result<T, CatalogError>,
) -> Result<Option<T>, CatalogError> {
    let damaged = |opened: &Result<T, CatalogError>| matches!(opened, Err(CatalogError::Sqlite { source, .. }) if is_damage(source));
    let mut opened = open();
    if damaged(&opened) {
        // SQLite calls a file damaged when the disk fails to read it. Only one that can be read, and is judged the
        // same again, is.
        read_through(disk).map_err(|source| CatalogError::Io { attempt: "read the file", source })?;
        opened = open();
    }
    if damaged(&opened) { Ok(None) } else { opened.map(Some) }
}

/// 0 as long as there are no tables.
fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Reads every byte of the file and its log.
fn read_through(disk: &dyn Disk) -> io::Result<()> {
    for suffix in ["", "-wal"] {
        let path = format!("{CATALOG_PATH}{suffix}");
        if disk.metadata(Path::new(&path))?.is_some() {
            io::copy(&mut disk.open(Path::new(&path))?, &mut io::sink())?;
        }
    }
    Ok(())
}

/// Renames the damaged file and its companions to the first free `catalog.db.damaged-N`.
fn move_aside(disk: &dyn Disk) -> io::Result<String> {
    let name = |n: u32| format!("{CATALOG_PATH}.damaged-{n}");
    let mut free = 1;
    while disk.metadata(Path::new(&name(free)))?.is_some() {
        free += 1;
    }
    for suffix in ["-wal", "-shm", ""] {
        let from = format!("{CATALOG_PATH}{suffix}");
        if disk.metadata(Path::new(&from))?.is_some() {
            disk.rename(Path::new(&from), Path::new(&format!("{}{suffix}", name(free))))?;
        }
    }
    disk.sync_dir(Path::new(".cutover"))?;
    Ok(name(free))
}

fn insert_release(
    transaction: &Transaction<'_>,
    digest: Digest,
    manifest: &Manifest,
) -> rusqlite::Result<()> {
    let name = digest.to_string();
    let added = transaction.execute(
        "INSERT OR IGNORE INTO releases VALUES (?1, ?2, ?3)",
        params![name, manifest.package.as_str(), manifest.version.to_string()],
    )?;
    if added == 0 {
        return Ok(());
    }
    let mut statement = transaction.prepare("INSERT INTO files VALUES (?1, ?2, ?3, ?4)")?;
    for file in &manifest.files {
        statement.execute(params![
            name,
            file.path.as_str(),
            file.sha256.to_string(),
            file.size.cast_signed()
        ])?;
    }
    Ok(())
}

fn replace_fingerprints(transaction: &Transaction<'_>, fingerprints: &[Fingerprint]) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM fingerprints", [])?;
    let mut statement =
        transaction.prepare("INSERT OR REPLACE INTO fingerprints VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for file in fingerprints {
        let (inode, size) = (file.inode.cast_signed(), file.size.cast_signed());
        let (changed, modified) = (file.changed_ns.to_string(), file.modified_ns.to_string());
        statement.execute(params![inode, size, changed, modified, file.sha256.to_string()])?;
    }
    Ok(())
}

fn highest(connection: &Connection, package: &Name) -> rusqlite::Result<Option<Version>> {
    let sql = "SELECT version FROM highest WHERE package = ?1";
    connection.query_row(sql, [package.as_str()], |row| parsed(row, 0)).optional()
}

fn raise_highest(transaction: &Transaction<'_>, package: &Name, version: &Version) -> rusqlite::Result<()> {
    if highest(transaction, package)?.is_some_and(|seen| seen >= *version) {
        return Ok(());
    }
    let sql =
        "INSERT INTO highest VALUES (?1, ?2) ON CONFLICT (package) DO UPDATE SET version = excluded.version";
    transaction.execute(sql, params![package.as_str(), version.to_string()]).map(drop)
}

/// An execution has one row: a later end, as recovery finds it, takes the place of an earlier one.
fn insert_history(transaction: &Transaction<'_>, row: &HistoryRow) -> rusqlite::Result<()> {
    if let Some(number) = row.number {
        transaction.execute("DELETE FROM history WHERE number = ?1", [number.cast_signed()])?;
    }
    let sql =
        "INSERT INTO history (number, at, action, from_version, to_version, outcome, error, restore_point)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let text = |version: &Option<Version>| version.as_ref().map(Version::to_string);
    let values = params![
        row.number.map(u64::cast_signed),
        row.at.to_string(),
        row.action,
        text(&row.from),
        text(&row.to),
        row.outcome,
        row.error,
        row.restore_point
    ];
    transaction.execute(sql, values).map(drop)
}

fn history_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<HistoryRow> {
    let version = |index| -> rusqlite::Result<Option<Version>> {
        row.get::<_, Option<String>>(index)?.map(|_| parsed(row, index)).transpose()
    };
    Ok(HistoryRow {
        number: row.get::<_, Option<i64>>(0)?.map(i64::cast_unsigned),
        at: parsed(row, 1)?,
        action: row.get(2)?,
        from: version(3)?,
        to: version(4)?,
        outcome: row.get(5)?,
        error: row.get(6)?,
        restore_point: row.get(7)?,
    })
}

fn digest(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    parsed(row, index)
}

/// Reads a column of text as a value of the model.
fn parsed<T>(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get_ref(index)?.as_str()?.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn memory() -> Catalog {
        Catalog::in_memory(Box::new(|| Ok(()))).expect("a catalog")
    }

    fn row(n: u64, error: Option<&str>) -> HistoryRow {
        HistoryRow {
            number: Some(n),
            at: Instant::from_unix(1_000_000_000 + n.cast_signed()).expect("a time"),
            action: "update".to_owned(),
            from: None,
            to: Some(Version::new(1, n, 0)),
            outcome: if error.is_some() { "undone" } else { "confirmed" }.to_owned(),
            error: error.map(str::to_owned),
            restore_point: None,
        }
    }

    fn manifest(version: &str, contents: &[&str]) -> Manifest {
        let objects: Vec<_> = contents
            .iter()
            .scan(0, |offset, content| {
                let size = content.len();
                *offset += size;
                let sha256 = Digest::of(content.as_bytes());
                Some(serde_json::json!({"sha256": sha256, "size": size, "stored_size": size, "encoding": "raw", "offset": *offset - size}))
            })
            .collect();
        let files: Vec<_> = contents
            .iter()
            .map(|content| {
                serde_json::json!({"path": format!("f-{content}"), "kind": "data", "mode": "0644",
                    "sha256": Digest::of(content.as_bytes()), "size": content.len()})
            })
            .collect();
        let json = serde_json::json!({"format": 1, "package": "db", "version": version, "platform": "any", "channel": "stable",
            "released_at": "2026-01-02T03:04:05Z", "files": files, "objects": objects});
        Manifest::parse(json.to_string().as_bytes(), &cutover_core::model::ManifestLimits::default())
            .expect("a manifest")
    }

    // S18, S19
    #[test]
    fn history_is_newest_first_limited_and_keeps_the_error() {
        let catalog = memory();
        for n in 1..=3 {
            catalog.record(&row(n, (n == 2).then_some("disk full"))).expect("recorded");
        }
        let numbers = |limit| -> Vec<_> {
            catalog.history(limit).expect("read").iter().map(|row| row.number).collect()
        };
        assert_eq!(numbers(10), [Some(3), Some(2), Some(1)]);
        assert_eq!(numbers(2), [Some(3), Some(2)]);
        assert_eq!(catalog.history(2).expect("read")[1], row(2, Some("disk full")));
        catalog.clear_history().expect("cleared");
        assert!(catalog.history(10).expect("read").is_empty());
    }

    #[test]
    fn confirm_indexes_the_release_and_raises_the_highest_version_only() {
        let catalog = memory();
        let (newer, older) = (manifest("1.10.0", &["a", "b"]), manifest("1.9.0", &["b", "c"]));
        for (manifest, digest) in [(&newer, Digest::of(b"newer")), (&older, Digest::of(b"older"))] {
            for _ in 0..2 {
                catalog.confirm(Some((digest, manifest)), &row(1, None), &[]).expect("confirmed");
            }
        }
        assert_eq!(catalog.highest(&newer.package).expect("read"), Some(newer.version.clone()));
        assert_eq!(catalog.releases().expect("read").len(), 2);
        assert!(
            catalog.is_named(Digest::of(b"a")).expect("read")
                && !catalog.is_named(Digest::of(b"z")).expect("read")
        );
    }

    #[test]
    fn buried_release_leaves_a_tombstone_and_only_its_own_objects_unnamed() {
        let catalog = memory();
        let digests = [Digest::of(b"first"), Digest::of(b"second")];
        for (digest, contents) in digests.iter().zip([["a", "b"], ["b", "c"]]) {
            let manifest = manifest("1.0.0", &contents);
            catalog.confirm(Some((*digest, &manifest)), &row(1, None), &[]).expect("indexed");
        }
        let tombstone = catalog.bury(digests[0]).expect("buried").expect("known");
        assert_eq!(catalog.bury(digests[0]).expect("asked"), None, "unknown by now");
        assert_eq!(catalog.tombstones().expect("read"), std::slice::from_ref(&tombstone));
        let named =
            ["a", "b", "c"].map(|content| catalog.is_named(Digest::of(content.as_bytes())).expect("read"));
        assert_eq!(named, [false, true, true]);
        catalog
            .drop_tombstone(&tombstone)
            .and_then(|()| catalog.drop_tombstone(&tombstone))
            .expect("dropped, twice");
        assert!(catalog.tombstones().expect("read").is_empty());
    }

    #[test]
    fn crash_before_the_commit_records_nothing() {
        let crash = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&crash);
        let fail = move || if gate.load(Ordering::SeqCst) { Err(io::Error::other("crash")) } else { Ok(()) };
        let catalog = Catalog::in_memory(Box::new(fail)).expect("a catalog");
        crash.store(true, Ordering::SeqCst);
        catalog.record(&row(1, None)).expect_err("crashed");
        crash.store(false, Ordering::SeqCst);
        assert!(catalog.history(9).expect("read").is_empty());
    }

    #[test]
    fn fork_starts_with_the_same_content_and_goes_its_own_way() {
        let catalog = memory();
        catalog.record(&row(1, None)).expect("recorded");
        let fork = catalog.fork(Box::new(|| Ok(()))).expect("a copy");
        fork.record(&row(2, None)).expect("recorded");
        assert_eq!(fork.history(9).expect("read").len(), 2);
        assert_eq!(catalog.history(9).expect("read"), [row(1, None)]);
    }

    #[test]
    fn fingerprints_are_replaced_as_a_whole_by_those_of_the_next_release() {
        let catalog = memory();
        let fingerprint = |inode, changed_ns| Fingerprint {
            inode,
            size: 3,
            changed_ns,
            modified_ns: 7,
            sha256: Digest::of(b"abc"),
        };
        let first = [fingerprint(1, 1_800_000_000_123_456_789), fingerprint(u64::MAX, -1)];
        let remember = |fingerprints: &[Fingerprint]| -> Vec<Fingerprint> {
            catalog.confirm(None, &row(1, None), fingerprints).expect("confirmed");
            let mut read = Vec::new();
            catalog.fingerprints(&mut |file| read.push(file)).expect("read");
            read.sort_by_key(|fingerprint| fingerprint.inode);
            read
        };
        assert_eq!(remember(&first), first);
        assert_eq!(remember(&[]), first, "nothing was hashed: what is known still holds");
        assert_eq!(remember(&first[..1]), first[..1]);
    }

    #[test]
    fn measurement_of_a_release_can_be_replaced() {
        let (catalog, release) = (memory(), Digest::of(b"release"));
        assert_eq!(catalog.measurement(release).expect("read"), None);
        for json in ["1", "2"] {
            catalog.set_measurement(release, json).expect("kept");
            assert_eq!(catalog.measurement(release).expect("read").as_deref(), Some(json));
        }
    }

    /// A root with an empty `.cutover`.
    fn root() -> (tempfile::TempDir, crate::disk::RealDisk) {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join(".cutover")).expect("created");
        let disk = crate::disk::RealDisk::open(directory.path()).expect("a disk");
        (directory, disk)
    }

    // S18
    #[test]
    fn history_survives_reopening() {
        let (_directory, disk) = root();
        for n in 1..=2 {
            let opened = Catalog::open(&disk, NOTHING).expect("opened");
            assert_eq!(opened.moved_aside, None);
            opened.catalog.record(&row(n, None)).expect("recorded");
            assert_eq!(opened.catalog.history(9).expect("read").len() as u64, n);
        }
    }

    // S20
    #[test]
    fn damaged_catalog_is_moved_aside_and_a_new_one_works() {
        let (directory, disk) = root();
        let path = directory.path().join(CATALOG_PATH);
        for n in 1..=2 {
            std::fs::write(&path, format!("damage {n}")).expect("damaged");
            // Where a whole write-ahead log lies beside it, nothing is lost.
            let _ = std::fs::remove_file(directory.path().join(format!("{CATALOG_PATH}-wal")));
            let opened = Catalog::open(&disk, NOTHING).expect("opened");
            let aside = opened.moved_aside.expect("moved aside");
            assert_eq!(aside, format!("{CATALOG_PATH}.damaged-{n}"));
            assert_eq!(
                std::fs::read_to_string(directory.path().join(aside)).expect("kept"),
                format!("damage {n}")
            );
            opened.catalog.record(&row(n, None)).expect("recorded");
        }
    }

    #[test]
    fn catalog_that_is_half_filled_is_not_made_and_is_filled_by_the_next_one() {
        let (_directory, disk) = root();
        let fill = |filling: &Filling<'_>| (1..=3).try_for_each(|n| filling.record(&row(n, None)));
        let dies = |filling: &Filling<'_>| {
            filling.record(&row(1, None))?;
            Err(CatalogError::Io { attempt: "fill", source: io::Error::other("killed") })
        };
        assert!(Catalog::open(&disk, &dies).is_err());
        let read = |catalog: &Catalog| catalog.history(9).expect("read").len();
        assert!(Catalog::open_made(&disk).expect("looked").is_none());
        assert_eq!(read(&Catalog::open(&disk, &fill).expect("made").catalog), 3);
        assert_eq!(read(&Catalog::open_made(&disk).expect("looked").expect("made")), 3);
        assert_eq!(read(&Catalog::open(&disk, &dies).expect("there").catalog), 3, "filled once");
    }

    #[test]
    fn damaged_catalog_is_left_alone_by_whoever_only_reads() {
        let (directory, disk) = root();
        let path = directory.path().join(CATALOG_PATH);
        std::fs::write(&path, "damage").expect("damaged");
        assert!(Catalog::open_made(&disk).expect("looked").is_none());
        assert_eq!(std::fs::read(&path).expect("kept"), b"damage");
    }

    #[test]
    fn catalog_of_a_newer_program_is_refused_and_left_alone() {
        let (directory, disk) = root();
        drop(Catalog::open(&disk, NOTHING).expect("opened"));
        let connection = Connection::open(directory.path().join(CATALOG_PATH)).expect("opened");
        connection.pragma_update(None, "user_version", 99).expect("written");
        drop(connection);
        assert!(matches!(Catalog::open(&disk, NOTHING), Err(CatalogError::Newer(99))));
    }
}
