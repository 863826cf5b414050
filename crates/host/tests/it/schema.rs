//! Releases that change the schema of a database: when it is asked, for what, and what becomes of its failures.

use std::{
    error::Error,
    sync::{Arc, Mutex},
};

use cutover_core::{
    execute::Outcome,
    plan::{Layout, Refusal, RollbackTarget, SchemaSeen, plan_rollback, plan_update},
};
use cutover_host::schema::{Migration, SchemaManager};

use crate::world::{LAYOUTS, Release, World, first};

/// The version and the texts of one call.
type Told = (u64, Vec<String>);

/// A database that remembers what it was told, and fails when a migration says so.
#[derive(Clone, Default)]
struct Database {
    told: Arc<Mutex<Vec<Told>>>,
}

impl SchemaManager for Database {
    fn expand(
        &self,
        version: u64,
        migrations: &[Migration],
        progress: &dyn Fn(u8),
    ) -> Result<String, Box<dyn Error + Send + Sync>> {
        let texts: Vec<String> = migrations
            .iter()
            .map(|migration| String::from_utf8_lossy(&migration.text).into_owned())
            .collect();
        progress(50);
        if texts.iter().any(|text| text == "panic") {
            panic!("the database is on fire");
        }
        if texts.iter().any(|text| text == "fail") {
            return Err("table `users` is gone".into());
        }
        self.told.lock().expect("no holder panics").push((version, texts));
        Ok(format!("schema {version}"))
    }
}

fn with_database(layout: Layout) -> (World, Database) {
    let database = Database::default();
    let mut world = World::new(layout);
    world.schema = Some(Box::new(database.clone()));
    world.policy.schema = Some(SchemaSeen { floor: 0 });
    (world, database)
}

#[test]
fn database_gets_the_migrations_of_the_release_before_its_code_runs() {
    for layout in LAYOUTS {
        let (world, database) = with_database(layout);
        world.apply(&first());
        let one = Release::new("2.0.0").program("bin/app", "two").migration("schema/1.toml", "one");
        // In place the first migration stays where it lies and is not staged again.
        let two = one.clone().version("3.0.0").migration("schema/2.toml", "two");
        for release in [&one, &two] {
            let report = world.apply(release);
            assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?}: {}", report.message);
            let steps: Vec<&str> = report.steps.iter().map(|step| step.step).collect();
            let place = |name| steps.iter().position(|step| *step == name).expect(name);
            assert!(place("restore-point") < place("expand") && place("expand") < place("switch"));
        }
        let told = database.told.lock().expect("no holder panics").clone();
        assert_eq!(told, [(1, vec!["one".to_owned()]), (2, vec!["one".to_owned(), "two".to_owned()])]);
    }
}

#[test]
fn failing_or_panicking_migration_leaves_the_old_release_and_says_why() {
    for layout in LAYOUTS {
        for (text, reason) in [("fail", "table `users` is gone"), ("panic", "the schema engine panicked")] {
            let (world, database) = with_database(layout);
            world.apply(&first());
            let before = world.tree();
            let report = world
                .apply(&Release::new("2.0.0").program("bin/app", "two").migration("schema/1.toml", text));
            assert!(
                matches!(&report.outcome, Outcome::Undone { reason: told } if told.contains(reason)),
                "{:?}",
                report.outcome
            );
            assert_eq!(world.tree(), before, "{layout:?}");
            assert_eq!(world.running().as_deref(), Some("1.0.0"));
            assert!(database.told.lock().expect("no holder panics").is_empty());
        }
    }
}

#[test]
fn failed_probe_restores_the_old_release_and_leaves_the_schema_expanded() {
    for layout in LAYOUTS {
        let (world, database) = with_database(layout);
        world.apply(&first());
        let before = world.tree();
        world.fail_probes();
        let report =
            world.apply(&Release::new("2.0.0").program("bin/app", "two").migration("schema/1.toml", "one"));
        assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{:?}", report.outcome);
        assert_eq!((world.tree(), world.running().as_deref()), (before, Some("1.0.0")));
        assert_eq!(database.told.lock().expect("no holder panics").len(), 1);
    }
}

#[test]
fn rollback_to_a_release_that_the_database_no_longer_serves_is_refused() {
    let (mut world, _) = with_database(LAYOUTS[0]);
    world.apply(&first());
    world.apply(&Release::new("2.0.0").program("bin/app", "two").migration("schema/1.toml", "one"));
    world.policy.schema = Some(SchemaSeen { floor: 1 });
    let node = world.node();
    let observed = node.observe(None).expect("observed");
    let target = RollbackTarget::Newest;
    let points = observed.points_for(&target).expect("undamaged");
    let refused = plan_rollback(&observed.observation, points, &target, &world.policy);
    assert!(matches!(refused, Err(Refusal::SchemaContracted { made_for: 0, floor: 1, .. })), "{refused:?}");
    world.policy.schema = None;
    let wanted = Release::new("3.0.0").program("bin/app", "three").migration("schema/1.toml", "one").bundle();
    let observed = node.observe(Some(wanted.manifest())).expect("observed");
    let refused = plan_update(&observed.observation, &wanted.release(), wanted.manifest(), &world.policy);
    assert!(matches!(refused, Err(Refusal::NoDatabase)), "{refused:?}");
}
