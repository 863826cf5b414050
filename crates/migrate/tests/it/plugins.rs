//! Plugins, as real processes.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use cutover_migrate::{
    Error,
    engine::{RowChunk, RowFunction, Unwatched},
    ir::Op,
    plugin::{MigrationPlugin, Plugin, conformance},
    run::Migrator,
    state::sql::Value,
};

use crate::{
    sqlite::Database,
    support::{chain, done, migration, settings},
};

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins")
}

fn phones(of: &[&str]) -> RowChunk {
    RowChunk {
        columns: vec!["phone".to_owned()],
        rows: of.iter().map(|phone| vec![Value::from(*phone)]).collect(),
    }
}

const STEP: &str = "[[step]]\nop = \"plugin\"\nplugin = \"phone-normaliser@1\"\ntable = \"users\"\nread = [\"id\", \"phone\"]\nwrite = [\"phone\"]\n\
                    check = \"phone = '' OR phone LIKE '+%'\"\n";

#[test]
fn example_plugin_conforms_and_rewrites_a_table() {
    let checks = conformance(
        &example().join("phone-normaliser@1"),
        &["phone".to_owned()],
        &phones(&["030 12", "", "0049 1"]).rows,
    )
    .unwrap();
    assert_eq!(checks.len(), 8);
    let wrong: Vec<_> = checks.iter().filter(|check| check.wrong.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let database = Database::new(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, phone TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) INSERT INTO users SELECT i, '030 ' || i FROM n;",
    );
    let make = |op: &Op| Ok(Box::new(Plugin::of_step(op, &example())?) as Box<dyn RowFunction>);
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &make);
    done(migrator.apply(&migration("0001", None, STEP), None));
    assert_eq!(database.texts("SELECT phone FROM users WHERE id IN (1, 600)"), ["+49301", "+4930600"]);
}

#[test]
fn plugin_that_is_not_the_one_of_the_approved_plan_does_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("phone-normaliser@1");
    std::fs::copy(example().join("phone-normaliser@1"), &program).unwrap();
    let database = Database::new(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, phone TEXT); INSERT INTO users VALUES (1, '030 1');",
    );
    let make = |op: &Op| Ok(Box::new(Plugin::of_step(op, directory.path())?) as Box<dyn RowFunction>);
    let phones = migration("0001", None, STEP);
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &make);
    let plan = migrator.plan(&phones).unwrap();
    assert_eq!(plan.plugins.len(), 1);
    assert!(plan.to_text().contains(&plan.plugins["phone-normaliser@1"].to_string()));
    // Stopped on the way, by its deadline; then somebody puts another program there.
    let mut hurried = phones.clone();
    hurried.run.deadline_s = Some(0);
    assert!(matches!(migrator.apply(&hurried, None), Err(Error::Stopped { .. })));
    let text = std::fs::read_to_string(&program).unwrap();
    std::fs::write(&program, format!("{text}\n# another one\n")).unwrap();
    match migrator.apply(&phones, None) {
        Err(Error::Plugin { name, .. }) => assert_eq!(name, "phone-normaliser@1"),
        other => panic!("{other:?}"),
    }
    std::fs::write(&program, text).unwrap();
    done(migrator.apply(&phones, None));
    assert_eq!(database.texts("SELECT phone FROM users"), ["+49301"]);
    // Before anything began, it is the approval that no longer fits.
    let approval = plan.approval().to_string();
    assert_ne!(approval, {
        let mut other = plan;
        other.plugins.clear();
        other.approval().to_string()
    });
}

fn script(directory: &Path, body: &str) -> PathBuf {
    let path = directory.join("bad@1");
    std::fs::write(&path, format!("#!/usr/bin/env python3\nimport json, sys, time\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const HELLO: &str = "r = json.loads(sys.stdin.readline())\nprint(json.dumps({'id': r['id'], 'ok': True, 'name': 'bad', 'version': 1, 'protocol': 1}), flush=True)\nr = json.loads(sys.stdin.readline())\n";

#[test]
fn plugin_that_breaks_the_protocol_fails_the_chunk_and_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    for (body, part) in [
        ("print('not json', flush=True)\ntime.sleep(60)", "no answer"),
        ("print(json.dumps({'id': 99, 'ok': True}), flush=True)\ntime.sleep(60)", "when 2 was asked"),
        ("sys.exit(0)", "it ended"),
        ("print('x' * (1 << 20) + 'yy', flush=True)\ntime.sleep(60)", "longer than 1 MiB"),
        (
            "print(json.dumps({'id': r['id'], 'ok': True, 'columns': ['phone'], 'rows': []}), flush=True)\ntime.sleep(60)",
            "0 rows for 1",
        ),
        ("print(json.dumps({'id': r['id'], 'ok': True}), flush=True)\ntime.sleep(60)", "no `columns`"),
        (
            "print(json.dumps({'id': r['id'], 'ok': False, 'error': 'no way'}), flush=True)\ntime.sleep(60)",
            "no way",
        ),
    ] {
        let program = script(directory.path(), &format!("{HELLO}{body}"));
        let mut plugin = Plugin::start(&program, Duration::from_secs(30)).unwrap();
        match MigrationPlugin::apply(&mut plugin, &phones(&["1"])) {
            Err(error @ Error::Custom { .. }) => assert!(error.to_string().contains(part), "{part}: {error}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    // One that does not read is given up, too: what it is asked is longer than a pipe holds.
    let greets = HELLO.rsplit_once("r = ").unwrap().0;
    let program = script(directory.path(), &format!("{greets}time.sleep(600)"));
    let mut plugin = Plugin::start(&program, Duration::from_secs(5)).unwrap();
    let long = "0".repeat(8000);
    match MigrationPlugin::apply(&mut plugin, &phones(&[long.as_str(); 40])) {
        Err(error @ Error::Custom { .. }) => assert!(error.to_string().contains("not answer"), "{error}"),
        other => panic!("{other:?}"),
    }
    // One that says nothing is given up; its group goes with it.
    let program = script(directory.path(), &format!("{HELLO}time.sleep(600)"));
    let mut plugin = Plugin::start(&program, Duration::from_secs(30)).unwrap();
    drop(std::mem::replace(&mut plugin, Plugin::start(&program, Duration::from_secs(30)).unwrap()));
}

#[test]
fn plugin_sees_no_environment_and_its_success_without_work_is_no_success() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(
        directory.path(),
        &format!(
            "import os\n{HELLO}print(json.dumps({{'id': r['id'], 'ok': True, 'columns': ['phone'], 'rows': [[','.join(sorted(os.environ)) + os.getcwd()]]}}), flush=True)\nsys.stdin.readline()"
        ),
    );
    let mut plugin = Plugin::start(&program, Duration::from_secs(30)).unwrap();
    let rows = MigrationPlugin::apply(&mut plugin, &phones(&["1"])).unwrap();
    let seen = rows.rows[0][0].text().unwrap();
    assert!(!seen.contains("CARGO") && !seen.contains("HOME") && seen.contains("cutover-plugin-"), "{seen}");
    // `check` is the engine's: a plugin that gives back what it got is found out.
    let database = Database::new(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, phone TEXT); INSERT INTO users VALUES (1, '030');",
    );
    let make = |_: &Op| Ok(Box::new(crate::support::Idle) as Box<dyn RowFunction>);
    let mut migrator = Migrator::new(database.engine(), settings(), &Unwatched, &make);
    let error = migrator.apply(&migration("0001", None, STEP), None).unwrap_err();
    assert!(chain(&error).contains("does not hold"), "{}", chain(&error));
    assert_eq!(database.texts("SELECT phone FROM users"), ["030"]);
}
