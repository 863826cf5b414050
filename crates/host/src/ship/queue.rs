//! The queue: what is to be shipped, what became of it, and why it waits, in SQLite. Format: `docs/formats/ship.md`.
//!
//! The spool is the truth about which episodes exist; the queue remembers what was found out about them. One transaction with
//! `synchronous = FULL` for each change. A damaged file is moved aside and the queue is filled from the spool again: every
//! episode is then offered once more, which a receiver answers with "already present".

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use cutover_core::{
    admission::{CommitHash, EpisodeKey},
    model::{Digest, Instant},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::{
    prepare::Prepared,
    spool::{Entry, Kind, OWN, Print},
};
use crate::disk::Disk;

/// The version of the tables, in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE episodes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL UNIQUE, stream TEXT NOT NULL, host TEXT NOT NULL, episode TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, queued_at TEXT NOT NULL, progress TEXT NOT NULL,
    UNIQUE (host, episode)
) STRICT;
CREATE TABLE shipped (
    number INTEGER PRIMARY KEY, host TEXT NOT NULL, episode TEXT NOT NULL, sha256 TEXT NOT NULL,
    size INTEGER NOT NULL, tries INTEGER NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// This many shipped episodes are remembered.
const SHIPPED_MAX: i64 = 1000;

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// SQLite reports a problem.
    #[error("failed to {attempt} in the queue")]
    Sqlite {
        /// What was attempted.
        attempt: &'static str,
        /// SQLite's own words.
        #[source]
        source: rusqlite::Error,
    },
    /// The damaged file cannot be moved aside.
    #[error("failed to move the damaged queue aside")]
    Aside(#[source] io::Error),
    /// Written by a newer program.
    #[error("the queue has version {0}, newer than this program's {SCHEMA_VERSION}; use the newer cutover")]
    Newer(i64),
}

fn sqlite(attempt: &'static str) -> impl Fn(rusqlite::Error) -> QueueError {
    move |source| QueueError::Sqlite { attempt, source }
}

/// Where an episode stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is to be sent, now or when its wait is over.
    Queued,
    /// It is kept, and not sent until somebody says so.
    Parked,
    /// The receiver has it; the local copy is to be removed.
    Done,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Parked => "parked",
            Self::Done => "done",
        }
    }

    fn parse(name: &str) -> Self {
        match name {
            "parked" => Self::Parked,
            "done" => Self::Done,
            _ => Self::Queued,
        }
    }
}

/// What is known about an episode beyond where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    /// How often it was tried.
    pub(super) tries: u32,
    /// Failures in a row.
    pub(super) failures: u32,
    /// How often in a row the receiver got other bytes than were hashed.
    pub(super) digest_failures: u32,
    /// Until when it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wait: Option<Wait>,
    /// Why it waits or is parked, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// The last answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remediation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) your_commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) head_commit: Option<String>,
    /// What is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready: Option<Ready>,
}

/// [`Prepared`] as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) print: Digest,
    pub(super) moved: Digest,
    pub(super) sha256: Digest,
    pub(super) size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<CommitHash>,
}

impl From<&Prepared> for Ready {
    fn from(prepared: &Prepared) -> Self {
        let Prepared { print, sha256, size_bytes, commit } = prepared.clone();
        Self { print: print.strict, moved: print.moved, sha256, size_bytes, commit }
    }
}

impl Ready {
    pub(super) fn prepared(&self) -> Prepared {
        let print = Print { strict: self.print, moved: self.moved, modified_ns: 0 };
        Prepared { print, sha256: self.sha256, size_bytes: self.size_bytes, commit: self.commit.clone() }
    }
}

/// A wait that outlives this process and no wall clock can shorten or stretch: it ends at a time since the machine was booted
/// (CLOCK_BOOTTIME). After another boot it starts anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wait {
    pub(super) boot: String,
    pub(super) until_ms: u64,
    pub(super) for_ms: u64,
}

impl Wait {
    /// How long it still takes at `now` of `boot`.
    pub(super) fn left(&self, boot: &str, now: Duration) -> Duration {
        if self.boot != boot {
            return Duration::from_millis(self.for_ms);
        }
        Duration::from_millis(self.until_ms).saturating_sub(now)
    }
}

/// One episode in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) number: i64,
    pub(super) path: String,
    pub(super) stream: String,
    pub(super) key: EpisodeKey,
    pub(super) kind: Kind,
    pub(super) state: State,
    pub(super) queued_at: String,
    pub(super) progress: Progress,
}

/// An episode that was shipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shipped {
    /// Which.
    pub host_id: String,
    /// Which.
    pub episode_id: String,
    /// Its bytes.
    pub sha256: String,
    /// How many.
    pub size_bytes: u64,
    /// How often it was tried.
    pub tries: u32,
    /// When it was done.
    pub at: String,
}

/// The file.
pub(super) struct Queue {
    connection: Connection,
}

impl Queue {
    /// Opens the queue of a spool, making it if there is none. A damaged one is moved aside; then the second value says where.
    pub(super) fn open(spool: &dyn Disk) -> Result<(Self, Option<String>), QueueError> {
        let path = spool.root().join(OWN).join("queue.db");
        match Self::open_file(&path) {
            Err(QueueError::Sqlite { source, .. }) if is_damage(&source) => {
                let aside = move_aside(spool).map_err(QueueError::Aside)?;
                Ok((Self::open_file(&path)?, Some(aside)))
            }
            opened => Ok((opened?, None)),
        }
    }

    /// Opens the queue for a look, beside whoever ships. `None` when there is none.
    pub(super) fn open_beside(spool: &Path) -> Result<Option<Self>, QueueError> {
        let path = spool.join(OWN).join("queue.db");
        if path.is_file() { Self::open_file(&path).map(Some) } else { Ok(None) }
    }

    fn open_file(path: &Path) -> Result<Self, QueueError> {
        let open = sqlite("open");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(&open)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(&open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&open)?;
        let check: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&open)?;
        if check != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(open(rusqlite::Error::SqliteFailure(code, Some(check))));
        }
        let version = |connection: &Connection| {
            connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).map_err(&open)
        };
        if version(&connection)? == 0 {
            let transaction = connection
                .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
                .map_err(&open)?;
            // Somebody else may have been faster.
            if version(&transaction)? == 0 {
                transaction.execute_batch(SCHEMA).map_err(&open)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(&open)?;
            }
            transaction.commit().map_err(&open)?;
        }
        match version(&connection)? {
            SCHEMA_VERSION => Ok(Self { connection }),
            newer => Err(QueueError::Newer(newer)),
        }
    }

    /// Changes when somebody else has written.
    pub(super) fn version(&self) -> Result<i64, QueueError> {
        self.connection.pragma_query_value(None, "data_version", |row| row.get(0)).map_err(sqlite("look"))
    }

    /// Everything in it, oldest first.
    pub(super) fn items(&self) -> Result<BTreeMap<i64, Item>, QueueError> {
        let mut statement = self
            .connection
            .prepare(
                "SELECT number, path, stream, host, episode, kind, state, queued_at, progress FROM episodes",
            )
            .map_err(sqlite("list"))?;
        let rows = statement
            .query_map([], |row| {
                let text = |column: usize| row.get::<_, String>(column);
                Ok((
                    row.get(0)?,
                    text(1)?,
                    text(2)?,
                    text(3)?,
                    text(4)?,
                    text(5)?,
                    text(6)?,
                    text(7)?,
                    text(8)?,
                ))
            })
            .map_err(sqlite("list"))?;
        let mut items = BTreeMap::new();
        for row in rows {
            let (number, path, stream, host, episode, kind, state, queued_at, progress) =
                row.map_err(sqlite("list"))?;
            // A row that nobody can have written is left alone; its episode is then neither sent nor lost.
            let Ok(key) = EpisodeKey::new(&host, &episode) else { continue };
            let kind = if kind == "folder" { Kind::Folder } else { Kind::Archive };
            let progress = serde_json::from_str(&progress).unwrap_or_default();
            let state = State::parse(&state);
            items.insert(number, Item { number, path, stream, key, kind, state, queued_at, progress });
        }
        Ok(items)
    }

    /// Takes entries in, in their order. What has a row already, by its place or by its key, is left out.
    pub(super) fn add(&mut self, entries: &[Entry], now: Instant) -> Result<Vec<Item>, QueueError> {
        let add = sqlite("add an episode");
        let transaction = self.connection.transaction().map_err(&add)?;
        let mut added = Vec::new();
        for entry in entries {
            let kind = match entry.kind {
                Kind::Archive => "archive",
                Kind::Folder => "folder",
            };
            let queued_at = now.to_string();
            let (host, episode) = (entry.key.host.as_str(), entry.key.episode.as_str());
            let inserted = transaction
                .prepare_cached(
                    "INSERT INTO episodes (path, stream, host, episode, kind, state, queued_at, progress)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, '{}') ON CONFLICT DO NOTHING",
                )
                .and_then(|mut insert| {
                    insert.execute(params![entry.path, entry.stream, host, episode, kind, queued_at])
                })
                .map_err(&add)?;
            if inserted == 1 {
                let Entry { path, stream, key, kind } = entry.clone();
                let number = transaction.last_insert_rowid();
                let progress = Progress::default();
                added.push(Item {
                    number,
                    path,
                    stream,
                    key,
                    kind,
                    state: State::Queued,
                    queued_at,
                    progress,
                });
            }
        }
        transaction.commit().map_err(&add)?;
        Ok(added)
    }

    /// Writes what is known about an episode. One that somebody dropped meanwhile stays away.
    pub(super) fn update(&self, item: &Item) -> Result<(), QueueError> {
        let progress = serde_json::to_string(&item.progress).expect("progress has string keys");
        self.connection
            .prepare_cached("UPDATE episodes SET state = ?2, progress = ?3 WHERE number = ?1")
            .and_then(|mut update| update.execute(params![item.number, item.state.name(), progress]))
            .map_err(sqlite("update an episode"))
            .map(drop)
    }

    /// Forgets an episode; one that was shipped is remembered among the last [`SHIPPED_MAX`].
    pub(super) fn remove(&mut self, item: &Item, shipped: Option<Instant>) -> Result<(), QueueError> {
        let remove = sqlite("remove an episode");
        let transaction = self.connection.transaction().map_err(&remove)?;
        let gone =
            transaction.execute("DELETE FROM episodes WHERE number = ?1", [item.number]).map_err(&remove)?;
        if let (Some(at), Some(ready), 1) = (shipped, &item.progress.ready, gone) {
            let (host, episode) = (item.key.host.as_str(), item.key.episode.as_str());
            let size = i64::try_from(ready.size_bytes).unwrap_or(i64::MAX);
            let row = params![
                item.number,
                host,
                episode,
                ready.sha256.to_string(),
                size,
                item.progress.tries,
                at.to_string()
            ];
            transaction
                .execute("INSERT OR REPLACE INTO shipped VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row)
                .and_then(|_| {
                    transaction.execute("DELETE FROM shipped WHERE number <= ?1", [item.number - SHIPPED_MAX])
                })
                .and_then(|_| {
                    transaction.execute(
                        "INSERT INTO facts VALUES ('shipped', 1) ON CONFLICT DO UPDATE SET value = value + 1",
                        [],
                    )
                })
                .map_err(&remove)?;
        }
        transaction.commit().map_err(&remove)
    }

    /// Takes `count` numbers of a series that only grows, whatever crashes; returns the first. They begin no lower than the
    /// clock says, a thousand million to a second: a queue that was lost, or came back from a copy, must not take numbers
    /// again that a receiver has seen, for it would refuse them for good.
    pub(super) fn reserve(&self, series: &str, count: u32, now: Instant) -> Result<u64, QueueError> {
        let sql = "INSERT INTO facts VALUES (?1, ?2 + ?3)
                   ON CONFLICT DO UPDATE SET value = max(value, ?2) + ?3 RETURNING value";
        // The last second whose numbers fit into an INTEGER is in the year 2242.
        let clock = now.unix().clamp(0, (1 << 33) - 1) << 30;
        self.connection
            .query_row(sql, params![series, clock, count], |row| row.get::<_, i64>(0))
            .map(|last| last.unsigned_abs() - u64::from(count) + 1)
            .map_err(sqlite("count"))
    }

    /// How many were shipped ever, and the last of them, newest first.
    pub(super) fn shipped(&self, most: usize) -> Result<(u64, Vec<Shipped>), QueueError> {
        let list = sqlite("list");
        let all: Option<i64> = self
            .connection
            .query_row("SELECT value FROM facts WHERE name = 'shipped'", [], |row| row.get(0))
            .optional()
            .map_err(&list)?;
        let sql = "SELECT host, episode, sha256, size, tries, at FROM shipped ORDER BY number DESC LIMIT ?1";
        let mut statement = self.connection.prepare(sql).map_err(&list)?;
        let rows = statement
            .query_map([i64::try_from(most).unwrap_or(i64::MAX)], |row| {
                Ok(Shipped {
                    host_id: row.get(0)?,
                    episode_id: row.get(1)?,
                    sha256: row.get(2)?,
                    size_bytes: row.get::<_, i64>(3)?.unsigned_abs(),
                    tries: row.get(4)?,
                    at: row.get(5)?,
                })
            })
            .map_err(&list)?;
        let last = rows.collect::<Result<_, _>>().map_err(&list)?;
        Ok((all.unwrap_or_default().unsigned_abs(), last))
    }
}

/// Whether SQLite says that the file is not, or not any more, one of its own.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

fn move_aside(spool: &dyn Disk) -> io::Result<String> {
    let own = Path::new(OWN);
    let mut number = 1;
    let place = loop {
        let place = own.join(format!("queue.damaged-{number}.db"));
        if spool.metadata(&place)?.is_none() {
            break place;
        }
        number += 1;
    };
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (format!("{OWN}/queue.db{suffix}"), format!("{}{suffix}", place.display()));
        match spool.rename(Path::new(&from), Path::new(&to)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    spool.sync_dir(own)?;
    Ok(spool.root().join(place).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn entry(name: &str) -> Entry {
        let key = EpisodeKey::new("h", name).unwrap();
        Entry { path: name.to_owned(), stream: String::new(), key, kind: Kind::Folder }
    }

    fn now() -> Instant {
        Instant::from_unix(1_800_000_000).unwrap()
    }

    fn spool() -> (tempfile::TempDir, RealDisk) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(OWN)).unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        (directory, disk)
    }

    #[test]
    fn queue_is_as_it_was_after_it_was_opened_again() {
        let (_directory, spool) = spool();
        let (mut queue, aside) = Queue::open(&spool).unwrap();
        assert_eq!(aside, None);
        let mut items = queue.add(&[entry("b"), entry("a"), entry("b")], now()).unwrap();
        assert_eq!(items.iter().map(|item| item.path.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        items[0].state = State::Parked;
        items[0].progress = Progress {
            tries: 7,
            failures: 3,
            reason: Some("why".to_owned()),
            wait: Some(Wait { boot: "b".to_owned(), until_ms: 5, for_ms: 6 }),
            ..Progress::default()
        };
        queue.update(&items[0]).unwrap();
        drop(queue);
        let (mut queue, _) = Queue::open(&spool).unwrap();
        assert_eq!(queue.items().unwrap().into_values().collect::<Vec<_>>(), items);

        let ready = Ready {
            print: Digest::of(b""),
            moved: Digest::of(b""),
            sha256: Digest::of(b"x"),
            size_bytes: 9,
            commit: None,
        };
        items[1].progress.ready = Some(ready);
        queue.remove(&items[1], Some(now())).unwrap();
        queue.remove(&items[1], Some(now())).unwrap();
        queue.update(&items[1]).unwrap();
        let (all, last) = queue.shipped(10).unwrap();
        assert_eq!((all, last.len(), last[0].size_bytes), (1, 1, 9));
        assert_eq!(queue.items().unwrap().len(), 1, "a removed one does not come back");
    }

    #[test]
    fn numbers_are_never_used_twice() {
        let (_directory, spool) = spool();
        let (mut queue, _) = Queue::open(&spool).unwrap();
        let first = queue.add(&[entry("a")], now()).unwrap().remove(0);
        queue.remove(&first, None).unwrap();
        let second = queue.add(&[entry("a")], now()).unwrap().remove(0);
        assert!(second.number > first.number);
        let start = queue.reserve("x", 10, now()).unwrap();
        assert_eq!(queue.reserve("x", 10, now()).unwrap(), start + 10);
        drop(queue);
        let earlier = Instant::from_unix(5).unwrap();
        let (queue, _) = Queue::open(&spool).unwrap();
        assert_eq!(queue.reserve("x", 10, earlier).unwrap(), start + 20, "also when the clock went back");
        let never = "9999-12-30T00:00:00Z".parse().unwrap();
        let far = queue.reserve("x", 10, never).unwrap();
        assert_eq!(queue.reserve("x", 10, never).unwrap(), far + 10, "also when the clock is far off");
    }

    #[test]
    fn numbers_of_a_lost_queue_are_not_used_again() {
        let (_directory, lost) = spool();
        let (_other, new) = spool();
        let (queue, _) = Queue::open(&lost).unwrap();
        let first = queue.reserve("x", 1000, now()).unwrap();
        let last = queue.reserve("x", 1000, now()).unwrap() + 999;
        assert!(i64::try_from(last).is_ok() && first > 0);
        let later = Instant::from_unix(now().unix() + 1).unwrap();
        assert!(Queue::open(&new).unwrap().0.reserve("x", 1000, later).unwrap() > last);
    }

    #[test]
    fn damaged_queue_is_moved_aside() {
        let (_directory, spool) = spool();
        let path = spool.root().join(OWN).join("queue.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let (queue, aside) = Queue::open(&spool).unwrap();
        assert!(aside.unwrap().contains("queue.damaged-1.db"));
        assert!(queue.items().unwrap().is_empty());
    }

    #[test]
    fn wait_is_kept_over_a_restart_and_starts_anew_after_a_boot() {
        let wait = Wait { boot: "one".to_owned(), until_ms: 10_000, for_ms: 4000 };
        let at = Duration::from_millis;
        assert_eq!(wait.left("one", at(7000)), at(3000));
        assert_eq!(wait.left("one", at(20_000)), Duration::ZERO);
        assert_eq!(wait.left("two", at(9000)), at(4000));
    }
}
