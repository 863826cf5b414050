//! The oracle of both engines: independent writers, each with a ledger of what the database acknowledged; after the run table and
//! ledgers must agree: nothing lost, nothing doubled, nothing risen from the dead.
//!
//! Every writer owns the ids that are its number modulo the number of writers, so its ledger alone says what they hold. Writers
//! insert, update, delete, change keys, exchange unique values between two rows, and push rows out by their unique value.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cutover_migrate::{
    ir::Dialect,
    state::sql::{Sql, Value},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// One row as writers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) code: String,
    pub(crate) amount: i64,
    pub(crate) note: String,
}

/// How many seeds a sweep tries: `SCHEMA_SEEDS`, or the number that fits the test command.
pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("SCHEMA_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Rows by id.
pub(crate) type Ledger = BTreeMap<i64, Row>;

/// The table that writers write: `id` is its key, `code` is unique.
pub(crate) fn create_table(sql: &mut dyn Sql, table: &str) {
    let key = match sql.dialect() {
        Dialect::Sqlite => "INTEGER PRIMARY KEY",
        Dialect::Postgres => "bigint PRIMARY KEY",
    };
    sql.execute(
        &format!(
            "CREATE TABLE {table} (id {key}, code text NOT NULL UNIQUE, amount bigint NOT NULL, note text)"
        ),
        &[],
    )
    .unwrap();
}

/// Fills the table and returns what it holds.
pub(crate) fn fill(sql: &mut dyn Sql, table: &str, rows: i64) -> Ledger {
    sql.execute("BEGIN", &[]).unwrap();
    let mut ledger = Ledger::new();
    for id in 1..=rows {
        let row = Row { code: format!("c{id}"), amount: id * 7, note: format!("n{id}") };
        insert(sql, table, id, &row).unwrap();
        ledger.insert(id, row);
    }
    sql.execute("COMMIT", &[]).unwrap();
    ledger
}

fn insert(
    sql: &mut dyn Sql,
    table: &str,
    id: i64,
    row: &Row,
) -> Result<u64, cutover_migrate::error::SqlError> {
    let values = [id.into(), row.code.as_str().into(), row.amount.into(), row.note.as_str().into()];
    sql.execute(&format!("INSERT INTO {table} (id, code, amount, note) VALUES ($1, $2, $3, $4)"), &values)
}

/// Reads the whole table; panics when an id comes twice.
pub(crate) fn read(sql: &mut dyn Sql, table: &str) -> Ledger {
    let mut rows = Ledger::new();
    for row in sql.query(&format!("SELECT id, code, amount, note FROM {table} ORDER BY id"), &[]).unwrap() {
        let amount = match &row[2] {
            Value::Integer(amount) => *amount,
            Value::Real(amount) => amount.round() as i64,
            Value::Text(text) => text.parse::<f64>().unwrap().round() as i64,
            other => panic!("{other:?}"),
        };
        let found =
            Row { code: row[1].text().unwrap().to_owned(), amount, note: row[3].text().unwrap().to_owned() };
        let id = row[0].integer().unwrap();
        assert!(rows.insert(id, found).is_none(), "row {id} is there twice");
    }
    rows
}

/// Fails with the first rows in which two tables differ.
pub(crate) fn agree(expected: &Ledger, found: &Ledger, about: &str) {
    let mut wrong = Vec::new();
    for (id, row) in expected {
        match found.get(id) {
            None => wrong.push(format!("{id} is lost: {row:?}")),
            Some(other) if other != row => wrong.push(format!("{id} is {other:?}, acknowledged was {row:?}")),
            Some(_) => {}
        }
    }
    wrong.extend(
        found.keys().filter(|id| !expected.contains_key(id)).map(|id| format!("{id} rose from the dead")),
    );
    assert!(wrong.is_empty(), "{about}: {} difference(s): {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

/// Writers that run until they are stopped.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Ledger>>,
}

impl Writers {
    /// Starts one writer per connection. `table` is what they call the table; `pause` lies between two statements. A statement
    /// that fails because of a lock or a conflict is left out of the ledger; any other failure is a defect: migrations never
    /// fail the application.
    pub(crate) fn start(
        connections: Vec<Box<dyn Sql + Send>>,
        table: &str,
        start: &Ledger,
        seed: u64,
        pause: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let count = connections.len() as i64;
        let threads = connections.into_iter().enumerate().map(|(number, connection)| {
            let number = number as i64;
            let ledger: Ledger = start
                .iter()
                .filter(|(id, _)| *id % count == number)
                .map(|(id, row)| (*id, row.clone()))
                .collect();
            let writer = Writer {
                sql: connection,
                table: table.to_owned(),
                ledger,
                random: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number as u64)),
                number,
                count,
                next: 1_000_000 * count + number,
            };
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || writer.run(&stop, &acknowledged, pause))
        });
        let threads = threads.collect();
        Self { stop, acknowledged, threads }
    }

    /// Waits until that many statements more were acknowledged.
    pub(crate) fn wait_for(&self, more: u64) {
        let until = self.acknowledged.load(Ordering::SeqCst) + more;
        while self.acknowledged.load(Ordering::SeqCst) < until {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a writer failed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops them; returns what was acknowledged, by all.
    pub(crate) fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Ledger::new();
        for thread in self.threads {
            all.extend(thread.join().unwrap());
        }
        all
    }
}

struct Writer {
    sql: Box<dyn Sql + Send>,
    table: String,
    ledger: Ledger,
    random: StdRng,
    number: i64,
    count: i64,
    next: i64,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool, acknowledged: &AtomicU64, pause: Duration) -> Ledger {
        while !stop.load(Ordering::SeqCst) {
            if self.one() {
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            std::thread::sleep(pause);
        }
        self.ledger
    }

    fn execute(&mut self, sql: &str, values: &[Value]) -> bool {
        let sql = sql.replace("{t}", &self.table);
        match self.sql.execute(&sql, values) {
            Ok(_) => true,
            Err(error) => {
                use cutover_migrate::error::SqlErrorKind::{Busy, Conflict};
                assert!(
                    matches!(error.kind, Busy | Conflict),
                    "the migration failed the application: {error}"
                );
                false
            }
        }
    }

    fn any(&mut self) -> Option<i64> {
        let at = self.random.random_range(0..self.ledger.len().max(1));
        self.ledger.keys().nth(at).copied()
    }

    fn fresh(&mut self) -> i64 {
        self.next += self.count;
        debug_assert_eq!(self.next % self.count, self.number);
        self.next
    }

    fn one(&mut self) -> bool {
        let dice = self.random.random_range(0..100);
        let amount = self.random.random_range(0..1_000_000);
        let Some(id) = self.any() else {
            let id = self.fresh();
            return self.insert(id, amount);
        };
        match dice {
            0..30 => {
                let id = self.fresh();
                self.insert(id, amount)
            }
            30..60 => {
                let done = self.execute(
                    "UPDATE {t} SET amount = $1, note = $2 WHERE id = $3",
                    &[amount.into(), format!("u{amount}").into(), id.into()],
                );
                if done {
                    let row = self.ledger.get_mut(&id).unwrap();
                    row.amount = amount;
                    row.note = format!("u{amount}");
                }
                done
            }
            60..75 => {
                let done = self.execute("DELETE FROM {t} WHERE id = $1", &[id.into()]);
                if done {
                    self.ledger.remove(&id);
                }
                done
            }
            75..85 => {
                // The row gets another key.
                let to = self.fresh();
                let done = self.execute("UPDATE {t} SET id = $1 WHERE id = $2", &[to.into(), id.into()]);
                if done {
                    let row = self.ledger.remove(&id).unwrap();
                    self.ledger.insert(to, row);
                }
                done
            }
            85..93 => {
                // A row goes and another takes its unique value, in one transaction.
                let to = self.fresh();
                let row = Row { amount, ..self.ledger[&id].clone() };
                let begin = if self.sql.dialect() == Dialect::Sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" };
                if !self.execute(begin, &[]) {
                    return false;
                }
                let table = self.table.clone();
                let done = self.execute("DELETE FROM {t} WHERE id = $1", &[id.into()])
                    && insert(&mut *self.sql, &table, to, &row).is_ok();
                if !done {
                    let _ = self.sql.execute("ROLLBACK", &[]);
                    return false;
                }
                if !self.execute("COMMIT", &[]) {
                    let _ = self.sql.execute("ROLLBACK", &[]);
                    return false;
                }
                self.ledger.remove(&id);
                self.ledger.insert(to, row);
                true
            }
            _ => {
                // A row moves there and back: two updates of one row in quick succession.
                let done = self.execute(
                    "UPDATE {t} SET code = $1 WHERE id = $2",
                    &[format!("x{id}_{amount}").into(), id.into()],
                );
                if done {
                    self.ledger.get_mut(&id).unwrap().code = format!("x{id}_{amount}");
                }
                done
            }
        }
    }

    fn insert(&mut self, id: i64, amount: i64) -> bool {
        let row = Row { code: format!("w{id}"), amount, note: format!("i{id}") };
        let values = [id.into(), row.code.as_str().into(), row.amount.into(), row.note.as_str().into()];
        let done = self.execute("INSERT INTO {t} (id, code, amount, note) VALUES ($1, $2, $3, $4)", &values);
        if done {
            self.ledger.insert(id, row);
        }
        done
    }
}
