//! The whole story, end to end.

use std::path::Path;

use crate::world::{PLAIN, World, run, text};

#[test]
fn demo_shows_what_it_says_and_checks_every_line() {
    let ran = run(Path::new(PLAIN), &["demo", "--quick", "--json"]).must(0);
    let json = ran.json();
    assert_eq!((&json["format"], &json["passed"]), (&1.into(), &true.into()));
    let lines = json["lines"].as_array().expect("a list");
    assert_eq!(lines.len(), 14, "{}", ran.stdout);
    let figures = &json["figures"];
    assert_eq!((&figures["connections"], &figures["failed_requests"]), (&50.into(), &0.into()), "{figures}");
    assert!(figures["requests"].as_u64().expect("a number") >= 2_000, "{figures}");
    assert!(lines.iter().all(|line| line["passed"] == true), "{}", ran.stdout);
}

#[test]
fn demo_does_not_play_in_a_directory_that_is_in_use() {
    let world = World::new();
    world.write("used/file", "");
    let ran = run(Path::new(PLAIN), &["demo", "--quick", "--keep", text(&world.path("used"))]).must(2);
    assert!(ran.stderr.contains("is not empty"), "{}", ran.stderr);
}
