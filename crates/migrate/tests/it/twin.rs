//! Random statements of clients at every place of a migration and of its way back, on a table and on a twin of it that is not
//! migrated: each has to succeed or fail on both, and in the end both have to hold the same, hidden values too.
//!
//! Values come from a few, so that unique rules collide all the time: REPLACE in all its forms, with and without the delete
//! triggers that `recursive_triggers` fires, upserts, keys that change, unique indexes over some rows, generated columns.

use std::cell::RefCell;

use cutover_migrate::{
    engine::{Loss, Watch},
    run::Migrator,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rusqlite::Connection;

use crate::{
    oracle,
    sqlite::Database,
    support::{chain, done, migration, settings},
};

/// What tells the tables apart: the columns of the key, by which statements find rows, and what ends the declaration.
struct Kind {
    columns: &'static str,
    rest: &'static str,
    keys: &'static [&'static str],
}

const KINDS: &[Kind] = &[
    Kind { columns: "id INTEGER PRIMARY KEY,", rest: ")", keys: &["id"] },
    Kind { columns: "id INTEGER PRIMARY KEY AUTOINCREMENT,", rest: ", CHECK (n < 12))", keys: &["id"] },
    Kind {
        columns: "a TEXT COLLATE NOCASE, b INT,",
        rest: ", PRIMARY KEY (a, b)) WITHOUT ROWID",
        keys: &["a", "b"],
    },
    Kind { columns: "a TEXT COLLATE NOCASE PRIMARY KEY,", rest: ") WITHOUT ROWID", keys: &["a"] },
    Kind { columns: "a TEXT COLLATE NOCASE UNIQUE,", rest: ")", keys: &["a"] },
    Kind { columns: "b INT,", rest: ")", keys: &["b"] },
];

/// Triggers of the application: some write the table again, some keep a row out, one tells what it saw.
const TRIGGERS: &str = "CREATE TRIGGER again AFTER UPDATE OF n ON t WHEN NEW.n < 3 BEGIN UPDATE t SET n = n + 4 WHERE code = NEW.code; END;
    CREATE TRIGGER picky BEFORE INSERT ON t WHEN NEW.n = 11 BEGIN SELECT RAISE(IGNORE); END;
    CREATE TRIGGER settles AFTER INSERT ON t WHEN NEW.n = 10 BEGIN UPDATE OR REPLACE t SET n = 9 WHERE code = NEW.code; END;
    CREATE TRIGGER leaves AFTER INSERT ON t WHEN NEW.n = 8 BEGIN DELETE FROM t WHERE n = 8; END;
    CREATE TRIGGER tells AFTER DELETE ON t BEGIN INSERT INTO told VALUES (OLD.code); END;";

fn setup(kind: &Kind, random: &mut StdRng) -> String {
    let on_conflict = ["", "", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE"][random.random_range(0..4)];
    let (low, unique) = match random.random_range(0..2) {
        0 => (format!(", low TEXT AS (lower(code)) UNIQUE{on_conflict}"), String::new()),
        _ => (String::new(), format!(", UNIQUE (code){on_conflict}")),
    };
    let triggers = if random.random_range(0..2) == 0 { TRIGGERS } else { "" };
    let keys = kind.keys.join(", ");
    let values: Vec<&str> = kind
        .keys
        .iter()
        .map(|key| match *key {
            "a" => "'k' || i",
            _ => "i",
        })
        .collect();
    format!(
        "CREATE TABLE told (code TEXT); CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (0), (1), (2), (3);
         CREATE TABLE t ({} code TEXT COLLATE NOCASE, n INT, state INT, p INT REFERENCES parent (id) ON DELETE SET NULL ON UPDATE CASCADE,
            note TEXT DEFAULT 'fresh'{low}{unique}{};
         CREATE UNIQUE INDEX living ON t (n) WHERE state = 0;
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 7)
         INSERT INTO t ({keys}, code, n, state, p, note) SELECT {}, 'c' || i, i, i % 2, i % 4, 'note ' || i FROM i;
         {triggers}",
        kind.columns,
        kind.rest,
        values.join(", ")
    )
}

/// Clients of the table that is migrated and of its twin.
struct Twins<'a> {
    kind: &'a Kind,
    here: Connection,
    twin: Connection,
    random: StdRng,
    /// Whether row numbers may change now: between the comparison and the swap it is refused.
    vacuums: bool,
    is_swapped: bool,
    said: Vec<String>,
}

impl Twins<'_> {
    fn both(&mut self, statement: &str) {
        self.said.push(statement.to_owned());
        let (here, twin) = (self.here.execute_batch(statement), self.twin.execute_batch(statement));
        let said = self.said[self.said.len().saturating_sub(12)..].join("\n");
        assert_eq!(here.is_ok(), twin.is_ok(), "{here:?}, but the twin: {twin:?}\n{said}");
        self.agree();
    }

    /// What everybody sees at any time.
    fn agree(&self) {
        let query =
            format!("SELECT {}, code, n, state, p FROM t ORDER BY code, n, state", self.kind.keys.join(", "));
        let said = self.said[self.said.len().saturating_sub(12)..].join("\n");
        assert_eq!(rows(&self.here, &query), rows(&self.twin, &query), "{said}");
        let told = "SELECT code FROM told";
        assert_eq!(rows(&self.here, told), rows(&self.twin, told), "{said}");
        if self.is_swapped {
            let all = query.replace(" FROM t", ", note FROM t");
            let old = rows(&self.here, &all.replace("FROM t", "FROM t_v0"));
            assert_eq!(old, rows(&self.twin, &all), "what old code sees\n{said}");
        }
    }

    fn key(&mut self) -> Vec<String> {
        let random = &mut self.random;
        let one = |key: &&str| match *key {
            "a" => format!("'{}{}'", ["k", "K"][random.random_range(0..2)], random.random_range(1..9)),
            _ => random.random_range(1..9).to_string(),
        };
        self.kind.keys.iter().map(one).collect()
    }

    fn one(&mut self) -> String {
        let keys = self.kind.keys.join(", ");
        let (key, to) = (self.key(), self.key());
        let at: Vec<String> =
            self.kind.keys.iter().zip(&key).map(|(name, value)| format!("{name} = {value}")).collect();
        let at = at.join(" AND ");
        let (key, to) = (key.join(", "), to.join(", "));
        let random = &mut self.random;
        let code = format!("'{}{}'", ["c", "C"][random.random_range(0..2)], random.random_range(1..9));
        let (n, state, p) =
            (random.random_range(1..13), random.random_range(0..2), random.random_range(0..5));
        let or = ["", "", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ROLLBACK "]
            [random.random_range(0..7)];
        // What has no key may have several rows of one: only some statements do the same to both then.
        let single = self.kind.keys != ["b"];
        match random.random_range(0..15) {
            0..4 => format!(
                "INSERT {or}INTO t ({keys}, code, n, state, p) VALUES ({key}, {code}, {n}, {state}, {p})"
            ),
            4 => format!(
                "INSERT INTO t ({keys}, code, n, state, p) VALUES ({key}, {code}, {n}, 1, 1) ON CONFLICT DO UPDATE SET state = 1 - state, p = {p} % 4"
            ),
            5 if single => format!("UPDATE {or}t SET ({keys}) = ({to}), state = {state} WHERE {at}"),
            6 if single => {
                format!("UPDATE {or}t SET code = {code}, n = {n}, state = {state} WHERE {at}")
            }
            5 | 6 => format!("UPDATE {or}t SET n = {n}, state = {state} WHERE code = {code}"),
            7 => format!("UPDATE t SET p = {p} WHERE state = {state}"),
            8 => format!("DELETE FROM t WHERE {at}"),
            9 => format!("DELETE FROM parent WHERE id = {p}"),
            10 => format!("UPDATE OR IGNORE parent SET id = {p} WHERE id = {state}"),
            12 => format!("DELETE FROM t WHERE state = {state} AND n < {n}"),
            // A counter may be ahead: it counts a key that an update gave, too, when that row is copied.
            13 if self.kind.columns.ends_with("PRIMARY KEY,") && self.kind.keys == ["id"] => {
                format!("INSERT {or}INTO t (code, n, state) VALUES ({code}, {n}, {state})")
            }
            11 => format!("INSERT OR REPLACE INTO parent VALUES ({p})"),
            _ => format!("REPLACE INTO t ({keys}, code, n, state) VALUES ({key}, {code}, {n}, {state})"),
        }
    }

    fn some(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            match self.random.random_range(0..20) {
                0 if self.vacuums => self.both("VACUUM"),
                1 => {
                    let on = self.random.random_range(0..2);
                    self.both(&format!("PRAGMA recursive_triggers = {on}"));
                }
                2 | 3 => {
                    self.both("BEGIN IMMEDIATE");
                    for _ in 0..self.random.random_range(1..4) {
                        let statement = self.one();
                        self.both(&statement);
                        if self.here.is_autocommit() {
                            return;
                        }
                    }
                    let end = ["COMMIT", "COMMIT", "ROLLBACK"][self.random.random_range(0..3)];
                    self.both(end);
                }
                _ => {
                    let statement = self.one();
                    self.both(&statement);
                }
            }
        }
    }
}

fn rows(connection: &Connection, query: &str) -> Vec<String> {
    let mut statement = connection.prepare(query).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cells: rusqlite::Result<Vec<String>> =
            (0..width).map(|at| Ok(format!("{:?}", row.get::<_, rusqlite::types::Value>(at)?))).collect();
        Ok(cells?.join(" "))
    });
    let mut rows: Vec<String> = rows.unwrap().collect::<Result<_, _>>().unwrap();
    rows.sort();
    rows
}

/// Lets the clients write at every place that lies outside a transaction of the migration.
struct Meanwhile<'a, 'k>(&'a std::sync::Mutex<RefCell<Twins<'k>>>);

impl Watch for Meanwhile<'_, '_> {
    fn point(&self, name: &str) {
        if !name.ends_with(".commit") {
            let twins = self.0.lock().unwrap();
            let mut twins = twins.borrow_mut();
            twins.is_swapped &= name != "rollback.after";
            twins.vacuums = name.starts_with("rollback");
            twins.some();
        }
    }
}

fn pair(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let kind = &KINDS[usize::try_from(seed).unwrap() % KINDS.len()];
    let declared = setup(kind, &mut random);
    let (database, plain) = (Database::new(&declared), Database::new(&declared));
    let mut steps =
        "[[step]]\nop = \"alter_column\"\ntable = \"t\"\ncolumn = \"n\"\ntype = \"bigint\"\n".to_owned();
    if random.random_range(0..3) > 0 {
        steps += "[[step]]\nop = \"drop_column\"\ntable = \"t\"\ncolumn = \"note\"\ngrace = \"1d\"\n";
    }
    let twins = Twins {
        kind,
        here: database.client(),
        twin: plain.client(),
        random,
        vacuums: false,
        is_swapped: false,
        said: vec![format!("seed={seed}\n{declared}")],
    };
    let twins = std::sync::Mutex::new(RefCell::new(twins));
    let meanwhile = Meanwhile(&twins);
    let mut migrator =
        Migrator::new(database.engine(), settings(), &meanwhile, &cutover_migrate::run::no_functions);
    done(migrator.apply(&migration("0001", None, &steps), None));
    {
        let twins = twins.lock().unwrap();
        let mut twins = twins.borrow_mut();
        (twins.vacuums, twins.is_swapped) = (true, true);
    }
    for _ in 0..15 {
        twins.lock().unwrap().borrow_mut().some();
    }
    let all = format!("SELECT {}, code, n, state, p, note FROM t", kind.keys.join(", "));
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| {
        let twins = twins.lock().unwrap();
        let said = twins.borrow().said.join("\n");
        panic!("{}\n{said}", chain(&error))
    });
    {
        let twins = twins.lock().unwrap();
        let mut twins = twins.borrow_mut();
        twins.is_swapped = false;
        twins.some();
    }
    let said = twins.lock().unwrap().borrow().said.join("\n");
    assert_eq!(rows(&database.client(), &all), rows(&plain.client(), &all), "{said}");
    assert_eq!(database.texts("PRAGMA integrity_check"), ["ok"], "{said}");
    assert_eq!(database.texts("PRAGMA foreign_key_check"), Vec::<String>::new(), "{said}");
}

#[test]
fn table_that_is_migrated_and_taken_back_stays_equal_to_one_that_is_not() {
    for seed in 0..oracle::seeds(12) {
        pair(seed);
    }
}
