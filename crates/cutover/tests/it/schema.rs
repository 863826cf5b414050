//! `cutover schema`, and releases that carry migrations, by the guide's own files.

use std::path::Path;

use crate::world::{PLAIN, Ran, Release, World, run, seen, text};

fn guide(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/schema").join(name)
}

fn database(world: &World) -> (rusqlite::Connection, String) {
    let path = world.path("app.db");
    let connection = rusqlite::Connection::open(&path).expect("opened");
    connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).expect("WAL");
    (connection, format!("sqlite:{}", path.display()))
}

fn schema(url: &str, arguments: &[&str]) -> Ran {
    let all: Vec<&str> = ["schema"]
        .iter()
        .chain(arguments)
        .copied()
        .chain(["--database", url, "--progress", "none"])
        .collect();
    run(Path::new(PLAIN), &all)
}

#[test]
fn wrong_file_and_missing_database_are_told_with_what_to_do() {
    let world = World::new();
    let (_, spec) = world.tree(&Release::new("1.0.0"));
    let (_connection, url) = database(&world);
    let ran = schema(&url, &["plan", text(&spec), "--json"]).must(2);
    let told = &ran.json()["error"];
    assert!(told["message"].as_str().expect("text").contains("is no migration"), "{told}");
    assert!(told["causes"].to_string().contains("unknown key"), "{told}");
    let absent = world.path("no such.db");
    let ran = schema(&format!("sqlite:{}", absent.display()), &["status"]).must(2);
    assert!(ran.stderr.contains("there is no database file"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("sqlite3 '{}'", absent.display())), "{}", ran.stderr);
}

#[test]
fn worked_examples_of_the_guide_run_forth_back_and_to_contract() {
    let world = World::new();
    let (connection, url) = database(&world);
    let (init, contact, money) =
        (guide("0041_init.toml"), guide("0042_contact.toml"), guide("0043_money.toml"));
    schema(&url, &["apply", text(&init)]).must(0);
    connection
        .execute_batch("INSERT INTO users VALUES (1, 'a@x', 'la'); INSERT INTO orders VALUES (1, 'DE', 1234, NULL), (2, 'US', NULL, NULL)")
        .expect("inserted");
    let ran = run(Path::new(PLAIN), &["schema", "lint", text(&contact), text(&money)]).must(0);
    assert!(!ran.stdout.contains("error"), "{}", ran.stdout);
    let plan = schema(&url, &["plan", text(&contact), "--json"]).must(0).json();
    assert_eq!(plan["preview"]["removed"][0], "column users.old_login");
    let hash = plan["plan"].as_str().expect("a hash").to_owned();
    schema(&url, &["apply", text(&contact), "--plan", "00000000"]).must(13);
    schema(&url, &["apply", text(&contact), "--rehearsed"]).must(13);
    schema(&url, &["apply", text(&contact), "--rate", "0"]).must(2);
    schema(&url, &["rehearse", text(&contact)]).must(0);
    schema(&url, &["apply", text(&contact), "--plan", &hash[..8], "--rehearsed"]).must(0);
    schema(&url, &["apply", text(&contact)]).must(0);
    let read = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
    assert_eq!(read("SELECT email_address || phone FROM users").expect("the new shape"), "a@x");
    for unknown in ["p9", "1_4_0", "1_5_O"] {
        let ran = schema(&url, &["prelude", unknown]).must(13);
        assert!(ran.stderr.contains("0, p1, 1_5_0"), "{}", ran.stderr);
    }
    schema(&url, &["prelude", "1.5.0"]).must(0);
    let prelude = schema(&url, &["prelude", "p1"]).must(0).stdout;
    let old = rusqlite::Connection::open(world.path("app.db")).expect("opened");
    old.execute_batch(&prelude).expect("a prelude that runs");
    let login: String = old
        .query_row("SELECT old_login FROM users WHERE email = 'a@x'", [], |row| row.get(0))
        .expect("the old shape");
    assert_eq!(login, "la");
    drop(old);
    let locked = schema(&url, &["complete", "0042_contact", "--floor", "1.5.0"]).must(13);
    assert!(locked.stderr.contains("grace"), "{}", locked.stderr);
    schema(&url, &["rollback", "0042_contact"]).must(0);
    assert_eq!(read("SELECT email || old_login FROM users").expect("the old shape"), "a@xla");
    schema(&url, &["apply", text(&contact)]).must(0);
    let metrics = world.path("schema.prom");
    let set = format!("schema.metrics_file={}", metrics.display());
    schema(&url, &["apply", text(&money), "--set", &set]).must(0);
    assert_eq!(
        read("SELECT group_concat(amount || region) FROM orders").expect("the new shape"),
        "12.34eu,0row"
    );
    let written = std::fs::read_to_string(&metrics).expect("metrics");
    assert!(written.contains("cutover_schema_version 3"), "{written}");
    let status = schema(&url, &["status", "--json"]).must(0).json();
    assert_eq!((&status["version"], &status["migrations"][2]["phase"]), (&3.into(), &"CLEANUP".into()));
    schema(&url, &["complete", "0043_money"]).must(13);
    schema(&url, &["complete", "0043_money", "--floor", "1.6.0"]).must(0);
    schema(&url, &["rollback", "0043_money"]).must(13);
    let history = schema(&url, &["history", "--json"]).must(0).json();
    assert!(history["entries"].as_array().expect("entries").len() >= 8);
    // Where the history ends is kept outside of the database too: a cut-off end is missed there.
    let head = format!("schema.head_file={}", world.path("head.json").display());
    schema(&url, &["status", "--set", &head]).must(0);
    let last = "number = (SELECT max(number) FROM _cutover_history)";
    connection.execute_batch(&format!("DELETE FROM _cutover_history WHERE {last}")).expect("cut off");
    schema(&url, &["history"]).must(0);
    schema(&url, &["history", "--set", &head]).must(17);
    // It stays missed, whatever is asked: the kept head is not replaced by what is left.
    schema(&url, &["status", "--set", &head]).must(17);
    schema(&url, &["history", "--set", &head]).must(17);
    connection.execute_batch("UPDATE _cutover_history SET entry = 'x' WHERE number = 2").expect("damaged");
    schema(&url, &["history"]).must(17);
}

#[test]
fn usage_and_edits_have_their_exit_codes() {
    let world = World::new();
    let (_connection, url) = database(&world);
    let bad =
        world.write("bad.toml", "format = 1\nid = \"a\"\n[[step]]\nop = \"add_colum\"\ntable = \"t\"\n");
    let ran = schema(&url, &["plan", text(&bad)]).must(2);
    assert!(ran.stderr.contains("did you mean `add_column`"), "{}", ran.stderr);
    let good = world.write("good.toml", "format = 1\nid = \"a\"\n");
    schema("mysql://x", &["plan", text(&good)]).must(2);
    run(Path::new(PLAIN), &["schema", "status"]).must(2);
    schema(&url, &["apply", text(&good)]).must(0);
    let edited = world.write("good.toml", "format = 1\nid = \"a\"\nrollback = \"manual\"\n");
    let ran = schema(&url, &["apply", text(&edited)]).must(13);
    assert!(ran.stderr.contains("rollback: \"automatic\" -> \"manual\""), "{}", ran.stderr);
    schema(&url, &["rebaseline", text(&edited), "--reason", "test"]).must(0);
    schema(&url, &["apply", text(&edited)]).must(0);
    schema(&url, &["pause", "nobody"]).must(2);
}

#[test]
fn release_with_migrations_expands_before_the_switch_and_is_refused_without_a_database() {
    let world = World::new();
    let (connection, url) = database(&world);
    let first = world.build_version("1.0.0");
    world.apply(&first, &[]).must(0);
    let init = std::fs::read_to_string(guide("0041_init.toml")).expect("the guide's file");
    let files = [("schema/0041_init.toml", init.as_str())];
    let spec = "[schema]\nversion = 1\nmigrations = [\"schema/0041_init.toml\"]\n";
    let next = world.build(&Release { spec, files: &files, ..Release::new("1.1.0") });
    world.apply(&next, &[]).must(13);
    let set = format!("schema.url={url}");
    world.apply(&next, &["--set", &set]).must(0);
    assert!(seen(&world).keys().any(|path| path.contains("0041_init.toml")));
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("counted");
    assert_eq!(count("SELECT count(*) FROM users"), 0);
    // Where the history ends is kept in the root.
    let kept = world.root().join(".cutover/schema-head.json");
    assert!(std::fs::read_to_string(&kept).expect("the kept head").contains("hash"));
    // Going back leaves the expanded schema: the old release works on it.
    world.on_root(&["rollback"]).must(0);
    assert_eq!(count("SELECT count(*) FROM users"), 0);
}
