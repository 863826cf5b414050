//! Rows that do not fit and are set aside, the same on both engines: kept, listed, approved, tried again.

use std::collections::BTreeSet;

use cutover_migrate::{
    Error,
    engine::{Engine, Loss, Unwatched, Watch},
    grace::Floor,
    run::{Applied, Migrator, Report},
    state::{Phase, reject::SetAside, sql::Sql},
};

use crate::{
    oracle::{self, Writers},
    postgres::server,
    sqlite,
    support::{At, chain, done, migration, migrator},
};

/// A database of either engine.
trait Place: Sync {
    fn engine(&self) -> Box<dyn Engine>;

    /// A connection as an application has it.
    fn client(&self) -> Box<dyn Sql + Send>;

    fn run(&self, sql: &str) {
        self.client().execute(sql, &[]).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The first column of every row, which has to be text.
    fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.client().query(sql, &[]).unwrap_or_else(|error| panic!("{error}"));
        rows.iter().map(|row| row[0].optional_text().unwrap().unwrap_or("NULL").to_owned()).collect()
    }
}

impl Place for sqlite::Database {
    fn engine(&self) -> Box<dyn Engine> {
        sqlite::Database::engine(self)
    }

    fn client(&self) -> Box<dyn Sql + Send> {
        self.writer()
    }
}

impl Place for server::Database<'_> {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(cutover_migrate::postgres::PostgresEngine::connect(&self.url()).unwrap())
    }

    fn client(&self) -> Box<dyn Sql + Send> {
        let mut sql = Place::engine(self).another().unwrap();
        sql.execute("SET search_path = public", &[]).unwrap();
        sql
    }
}

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[test]
            fn $name() {
                super::$name(&crate::sqlite::Database::new(""));
            })*
        }

        mod on_postgres {
            $(#[test]
            fn $name() {
                if crate::postgres::server::have_server() {
                    super::$name(&crate::postgres::server::Database::new());
                }
            })*
        }
    };
}

on_both_engines!(
    rows_that_do_not_fit_stop_it_unless_they_may_be_set_aside,
    rows_set_aside_wait_for_approval_and_a_rollback_has_them,
    the_list_outlives_the_old_table,
    rows_that_were_mended_or_deleted_leave_the_list,
    a_write_that_does_not_fit_is_set_aside_and_succeeds,
    values_that_cannot_be_computed_are_set_aside,
    a_row_that_others_refer_to_is_never_left_out,
    a_new_row_with_the_key_of_one_set_aside_is_another_row,
    a_rehearsal_approves_on_the_copy_and_says_how_many,
    every_row_that_writers_leave_is_in_the_table_or_in_the_list,
);

/// A thousand numbers as text, of which two are none.
pub(crate) const NUMBERS: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text, extra text);
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
    INSERT INTO t SELECT i, CAST(i AS text), 'e' FROM n;
    UPDATE t SET v = 'x' WHERE id IN (300, 700);";

pub(crate) fn to_numbers(on_reject: &str) -> String {
    format!(
        "[[step]]\nop = \"alter_column\"\ntable = \"t\"\ncolumn = \"v\"\ntype = \"integer\"\n\
         up = {{ postgres = \"v::pg_catalog.int4\", sqlite = \"CAST(v AS integer)\" }}\ndown = \"CAST(v AS text)\"\n\
         on_reject = \"{on_reject}\"\n"
    )
}

fn apply(place: &dyn Place, watch: &dyn Watch, steps: &str) -> Result<Applied, Error> {
    migrator(place.engine(), watch).apply(&migration("0001", None, steps), None)
}

/// What an `apply` says that stopped for somebody to decide.
fn stopped(applied: Result<Applied, Error>) -> String {
    match applied {
        Err(Error::Stopped { phase: Phase::AtomicSwap, cause, .. }) if matches!(*cause, Error::Locked(_)) => {
            cause.to_string()
        }
        Err(error) => panic!("{}", chain(&error)),
        Ok(_) => panic!("it went on"),
    }
}

/// Applies, and approves whatever has to be.
pub(crate) fn apply_approving(migrator: &mut Migrator<'_>, steps: &str) -> Applied {
    loop {
        match migrator.apply(&migration("0001", None, steps), None) {
            Err(Error::Stopped { cause, .. }) if matches!(*cause, Error::Locked(_)) => {
                assert!(migrator.approve("0001").unwrap() > 0, "{}", chain(&*cause));
            }
            Err(error) => panic!("{}", chain(&error)),
            Ok(applied) => return applied,
        }
    }
}

/// The numbers in the keys of the list.
pub(crate) fn listed(migrator: &mut Migrator<'_>) -> BTreeSet<i64> {
    let key = |key: &str| key.replace(|c: char| !c.is_ascii_digit() && c != '-', "").parse().unwrap();
    let rejects = migrator.rejects("0001", 1_000_000).unwrap();
    rejects.iter().map(|reject| key(&reject.key)).collect()
}

fn set_aside(migrator: &mut Migrator<'_>) -> SetAside {
    migrator.status().unwrap().migrations[0].set_aside
}

fn ledger(report: &Report, kind: &str) -> (u64, u64, u64) {
    let lines = report.ledger.iter().filter(|line| line.kind == kind);
    lines.fold((0, 0, 0), |sum, line| {
        (sum.0 + line.seen, sum.1 + line.copied + line.present, sum.2 + line.rejected)
    })
}

fn rows_that_do_not_fit_stop_it_unless_they_may_be_set_aside(place: &dyn Place) {
    place.run(NUMBERS);
    match apply(place, &Unwatched, &to_numbers("abort")) {
        Err(Error::RolledBack { cause, .. }) => {
            assert!(matches!(*cause, Error::Rejected { .. }), "{}", chain(&*cause));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(place.texts("SELECT v FROM t WHERE id = 300"), ["x"]);
    let mut migrator = migrator(place.engine(), &Unwatched);
    let plan = migrator.plan(&migration("0002", None, &to_numbers("quarantine"))).unwrap();
    assert!(plan.warnings.iter().any(|warning| warning.contains("set aside")), "{:?}", plan.warnings);
    stopped(apply(place, &Unwatched, &to_numbers("quarantine")));
}

fn rows_set_aside_wait_for_approval_and_a_rollback_has_them(place: &dyn Place) {
    place.run(NUMBERS);
    let steps = to_numbers("quarantine");
    let says = stopped(apply(place, &Unwatched, &steps));
    assert!(says.contains("2 row(s) of `t`") && says.contains("300"), "{says}");
    assert_eq!(place.texts("SELECT v FROM t WHERE id = 300"), ["x"], "the old table serves");
    let mut migrator = migrator(place.engine(), &Unwatched);
    assert_eq!(set_aside(&mut migrator), SetAside { rows: 2, waiting: 2 });
    let rejects = migrator.rejects("0001", 10).unwrap();
    assert!(rejects.iter().all(|reject| reject.row.as_deref().is_some_and(|row| row.contains('x'))));
    assert!(rejects.iter().all(|reject| !reject.reason.is_empty() && !reject.approved));
    assert_eq!(migrator.rejects("0001", 1).unwrap().len(), 1);
    stopped(migrator.apply(&migration("0001", None, &steps), None));
    assert_eq!(migrator.approve("0001").unwrap(), 2);
    assert_eq!(migrator.approve("0001").unwrap(), 0, "once");
    assert_eq!(set_aside(&mut migrator), SetAside { rows: 2, waiting: 0 });
    assert_eq!(migrator.history().unwrap().last().unwrap().event, "approved");
    let report = done(migrator.apply(&migration("0001", None, &steps), None));
    assert_eq!(ledger(&report, "copy"), (1000, 998, 2));
    assert_eq!(ledger(&report, "verify").0, 998);
    assert_eq!(place.texts("SELECT CAST(sum(v) AS text) FROM t"), [(500_500 - 1000).to_string()]);
    assert_eq!(listed(&mut migrator), [300, 700].into());
    assert!(matches!(migrator.approve("0001"), Err(Error::Phase { .. })), "it is over");
    place.run("UPDATE t SET v = v + 1 WHERE id = 1; DELETE FROM t WHERE id = 2");
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        place.texts("SELECT v FROM t WHERE id IN (1, 2, 3, 300, 700) ORDER BY id"),
        ["2", "3", "x", "x"]
    );
    assert_eq!(place.texts("SELECT CAST(count(*) AS text) FROM t"), ["999"]);
    // And again: what was approved then is not approved now.
    stopped(migrator.apply(&migration("0001", None, &steps), None));
}

fn the_list_outlives_the_old_table(place: &dyn Place) {
    place.run(NUMBERS);
    let mut migrator = migrator(place.engine(), &Unwatched);
    apply_approving(&mut migrator, &to_numbers("quarantine"));
    let floor = Floor { lowest: "9.0.0".parse().unwrap(), rollback_open: false };
    done(migrator.complete("0001", &floor, 1_000_000));
    assert_eq!(place.texts("SELECT CAST(count(*) AS text) FROM t"), ["998"]);
    assert_eq!(listed(&mut migrator), [300, 700].into());
    assert_eq!(set_aside(&mut migrator), SetAside { rows: 2, waiting: 0 });
}

fn rows_that_were_mended_or_deleted_leave_the_list(place: &dyn Place) {
    place.run(NUMBERS);
    let steps = to_numbers("quarantine");
    stopped(apply(place, &Unwatched, &steps));
    place.run("UPDATE t SET v = '-300' WHERE id = 300");
    let mut migrator = migrator(place.engine(), &Unwatched);
    stopped(migrator.apply(&migration("0001", None, &steps), None));
    assert_eq!(listed(&mut migrator), [700].into(), "the other is in the copy");
    place.run("DELETE FROM t WHERE id = 700");
    done(migrator.apply(&migration("0001", None, &steps), None));
    assert_eq!(listed(&mut migrator), BTreeSet::new());
    assert_eq!(place.texts("SELECT CAST(v AS text) FROM t WHERE id IN (300, 700)"), ["-300"]);
}

fn a_write_that_does_not_fit_is_set_aside_and_succeeds(place: &dyn Place) {
    place.run(NUMBERS);
    let steps = to_numbers("quarantine");
    let write = At::new("verify.after", || {
        place.run(
            "UPDATE t SET v = 'y' WHERE id = 5; INSERT INTO t VALUES (2000, 'z', 'e'), (3000, '3000', 'e')",
        );
    });
    let says = stopped(apply(place, &write, &steps));
    assert!(says.contains("4 row(s)"), "{says}");
    let mut after = migrator(place.engine(), &Unwatched);
    assert_eq!(listed(&mut after), [5, 300, 700, 2000].into());
    place.run("DELETE FROM t WHERE id = 2000");
    assert_eq!(after.approve("0001").unwrap(), 4);
    // One more, when all the others are approved and the swap is about to be.
    let write = At::new("swap.before", || place.run("UPDATE t SET v = 'new' WHERE id = 7"));
    let says = stopped(apply(place, &write, &steps));
    assert!(says.contains("1 row(s)"), "{says}");
    assert_eq!(set_aside(&mut after), SetAside { rows: 4, waiting: 1 });
    assert_eq!(after.approve("0001").unwrap(), 1);
    // A row that is approved may be written again; what was written is in the list.
    let write = At::new("swap.before", || place.run("UPDATE t SET v = 'again' WHERE id = 5"));
    done(apply(place, &write, &steps));
    assert_eq!(listed(&mut after), [5, 7, 300, 700].into());
    let rows = after.rejects("0001", 10).unwrap();
    assert!(rows.iter().any(|row| row.row.as_deref().is_some_and(|row| row.contains("again"))), "{rows:?}");
    assert_eq!(place.texts("SELECT CAST(count(*) AS text) FROM t"), ["997"]);
    assert_eq!(place.texts("SELECT CAST(v AS text) FROM t WHERE id = 3000"), ["3000"]);
    after.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(place.texts("SELECT v FROM t WHERE id IN (5, 7) ORDER BY id"), ["again", "new"]);
}

fn values_that_cannot_be_computed_are_set_aside(place: &dyn Place) {
    place.run(
        "CREATE TABLE j (id integer PRIMARY KEY, v text);
         INSERT INTO j VALUES (1, '{\"a\": \"one\"}'), (2, 'no json'), (3, '{}'), (4, '{\"a\": \"four\"}')",
    );
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"j\"\ncolumn = \"v\"\ntype = \"varchar(20)\"\nnullable = false\n\
         up = { postgres = \"v::pg_catalog.json->>'a'\", sqlite = \"json_extract(v, '$.a')\" }\non_reject = \"quarantine\"\n";
    stopped(apply(place, &Unwatched, steps));
    let mut migrator = migrator(place.engine(), &Unwatched);
    assert_eq!(listed(&mut migrator), [2, 3].into());
    // What clients write meanwhile that cannot be computed stops no comparison.
    place.run("UPDATE j SET v = 'nothing' WHERE id = 1");
    apply_approving(&mut migrator, steps);
    assert_eq!(listed(&mut migrator), [1, 2, 3].into());
    assert_eq!(place.texts("SELECT v FROM j"), ["four"]);
}

fn a_row_that_others_refer_to_is_never_left_out(place: &dyn Place) {
    place.run(NUMBERS);
    place.run(
        "CREATE TABLE c (id integer PRIMARY KEY, t_id integer REFERENCES t (id)); INSERT INTO c VALUES (1, 1), (2, 300)",
    );
    let steps = to_numbers("quarantine");
    let mut migrator = migrator(place.engine(), &Unwatched);
    let refused = stopped(migrator.apply(&migration("0001", None, &steps), None));
    assert!(refused.contains("refer") && refused.contains("300"), "{refused}");
    migrator.approve("0001").unwrap();
    let refused = stopped(migrator.apply(&migration("0001", None, &steps), None));
    assert!(refused.contains("refer"), "approval does not help: {refused}");
    place.run("DELETE FROM c WHERE id = 2");
    done(migrator.apply(&migration("0001", None, &steps), None));
    assert_eq!(place.texts("SELECT CAST(t.v AS text) FROM c JOIN t ON t.id = c.t_id"), ["1"]);
}

fn a_new_row_with_the_key_of_one_set_aside_is_another_row(place: &dyn Place) {
    place.run(NUMBERS);
    let steps = to_numbers("quarantine")
        + "[[step]]\nop = \"drop_column\"\ntable = \"t\"\ncolumn = \"extra\"\ngrace = \"1d\"\n";
    let mut migrator = migrator(place.engine(), &Unwatched);
    apply_approving(&mut migrator, &steps);
    place.run("INSERT INTO t (id, v) VALUES (300, 3); UPDATE t SET id = 700 WHERE id = 1");
    place.run("UPDATE t SET v = 4 WHERE id = 300");
    migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        place.texts(
            "SELECT v || ' ' || coalesce(extra, 'none') FROM t WHERE id IN (1, 2, 300, 700) ORDER BY id"
        ),
        ["2 e", "4 none", "1 e"]
    );
    assert_eq!(listed(&mut migrator), [300, 700].into(), "as they were");
}

fn a_rehearsal_approves_on_the_copy_and_says_how_many(place: &dyn Place) {
    place.run(NUMBERS);
    let change = migration("0001", None, &to_numbers("quarantine"));
    let mut migrator = migrator(place.engine(), &Unwatched);
    let rehearsal = migrator.rehearse(&change, None).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!((rehearsal.set_aside, rehearsal.rows), (2, 1000));
    stopped(migrator.apply(&change, None));
}

fn every_row_that_writers_leave_is_in_the_table_or_in_the_list(place: &dyn Place) {
    let fits = |amount: i64| amount % 5 != 3;
    let steps = "[[step]]\nop = \"alter_column\"\ntable = \"items\"\ncolumn = \"note\"\nnullable = false\n\
         up = \"CASE WHEN amount % 5 <> 3 THEN note END\"\ndown = \"note\"\non_reject = \"quarantine\"\n";
    for seed in 0..oracle::seeds(2) {
        let mut setup = place.client();
        setup.execute("DROP TABLE IF EXISTS items", &[]).unwrap();
        oracle::create_table(&mut *setup, "items");
        let start = oracle::fill(&mut *setup, "items", 1500);
        let writers = Writers::start(
            vec![place.client(), place.client()],
            "items",
            &start,
            seed,
            std::time::Duration::from_millis(1),
        );
        writers.wait_for(20);
        let mut migrator = migrator(place.engine(), &Unwatched);
        stopped(migrator.apply(&migration("0001", None, steps), None));
        writers.wait_for(50);
        let acknowledged = writers.stop();
        apply_approving(&mut migrator, steps);
        let about = format!("seed={seed}");
        let (there, aside): (oracle::Ledger, oracle::Ledger) =
            acknowledged.clone().into_iter().partition(|(_, row)| fits(row.amount));
        oracle::agree(&there, &oracle::read(&mut *setup, "items"), &about);
        assert_eq!(listed(&mut migrator), aside.keys().copied().collect(), "{about}");
        migrator.rollback("0001", Loss::Refuse).unwrap_or_else(|error| panic!("{}", chain(&error)));
        oracle::agree(&acknowledged, &oracle::read(&mut *setup, "items"), &about);
        migrator.tidy().unwrap();
    }
}
