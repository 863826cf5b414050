//! `delta generate | apply | verify | inspect` on single files.

use std::fs;

use crate::world::{World, text};

/// An old and a new file that have much in common.
fn files(world: &World) -> (String, String) {
    let old: Vec<u8> = (0..40_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut new = old.clone();
    new[500] ^= 1;
    new.splice(70_000..70_010, *b"something else");
    let path = |name: &str, bytes: &[u8]| text(&world.write(name, bytes)).to_owned();
    (path("old", &old), path("new", &new))
}

fn patch(world: &World, more: &[&str]) -> (String, String, String) {
    let (old, new) = files(world);
    let patch = text(&world.path("patch")).to_owned();
    world.run(&[&["delta", "generate", &old, &new, "-o", &patch], more].concat()).must(0);
    (old, new, patch)
}

/// Names in the world's directory.
fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.dir.path()).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

// D8
#[test]
fn patch_goes_from_generation_to_the_new_file_with_every_algorithm() {
    for algorithm in ["bsdiff", "xdelta3", "vcdiff", "zstd-dict", "refdelta"] {
        let world = World::new();
        let (old, new, patch) = patch(&world, &["--algorithm", algorithm]);
        world.run(&["delta", "verify", &old, &patch]).must(0);
        let out = text(&world.path("out")).to_owned();
        let report = world.run(&["delta", "apply", &old, &patch, "-o", &out, "--json"]).must(0).json();
        assert_eq!(report["algorithm"], algorithm);
        assert_eq!(fs::read(&out).unwrap(), fs::read(&new).unwrap(), "{algorithm}");
        assert_eq!(names(&world), ["new", "old", "out", "patch", "patch.json"]);
    }
}

#[test]
fn choice_and_its_reasons_are_shown() {
    let world = World::new();
    let (_, _, patch) = patch(&world, &[]);
    let shown = world.run(&["delta", "inspect", &patch]).must(0).stdout;
    for word in
        ["taken: the smallest", "another is smaller", "bsdiff", "zstd-dict", "full", "its decoder needs"]
    {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let json = world.run(&["delta", "inspect", &patch, "--json"]).must(0).json();
    assert!(json["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(json["description"]["candidates"].as_array().unwrap().len() >= 5);
}

// D9, D11
#[test]
fn refusals_leave_no_output_and_the_base_as_it_was() {
    let world = World::new();
    let (old, new, patch) = patch(&world, &[]);
    let out = text(&world.path("out")).to_owned();
    let before = fs::read(&old).unwrap();
    let bytes = fs::read(&patch).unwrap();
    let apply = |base: &str| world.run(&["delta", "apply", base, &patch, "-o", &out]);
    // Another base.
    let refused = apply(&new).must(17);
    assert!(refused.stderr.contains("base") && refused.stderr.contains("hint:"), "{}", refused.stderr);
    // A flipped byte, a cut patch, a missing patch.
    let mut flipped = bytes.clone();
    flipped[0] ^= 1;
    fs::write(&patch, flipped).unwrap();
    assert!(apply(&old).must(16).stderr.contains("patch has the digest"));
    fs::write(&patch, &bytes[1..]).unwrap();
    apply(&old).must(16);
    fs::remove_file(&patch).unwrap();
    apply(&old).must(1);
    fs::write(&patch, &bytes).unwrap();
    // Too little memory.
    let refused = world.run(&["delta", "apply", &old, &patch, "-o", &out, "--memory", "64K"]).must(16);
    assert!(refused.stderr.contains("--memory"), "{}", refused.stderr);
    assert_eq!(names(&world), ["new", "old", "patch", "patch.json"]);
    assert_eq!(fs::read(&old).unwrap(), before);
    apply(&old).must(0);
}

// D7, D17
#[test]
fn descriptions_without_digests_or_with_unknown_algorithms_are_refused() {
    let world = World::new();
    let (old, _, patch) = patch(&world, &["--algorithm", "bsdiff"]);
    let description = format!("{patch}.json");
    let good = fs::read_to_string(&description).unwrap();
    let digest = good.split("\"base_sha256\": \"").nth(1).unwrap()[..64].to_owned();
    for (from, to) in [("\"bsdiff\"", "\"hdiff\""), ("\"bsdiff\"", "\"\""), (digest.as_str(), "")] {
        fs::write(&description, good.replace(from, to)).unwrap();
        world.run(&["delta", "verify", &old, &patch]).must(16);
    }
    fs::remove_file(&description).unwrap();
    world.run(&["delta", "verify", &old, &patch]).must(1);
    world.run(&["delta", "generate", &old, &old, "-o", &patch, "--algorithm", "hdiff"]).must(2);
}

#[test]
fn patch_that_cannot_be_made_is_an_error_and_not_nothing_to_do() {
    let world = World::new();
    let (old, new) = files(&world);
    let patch = text(&world.path("patch")).to_owned();
    let generate = ["delta", "generate", &old, &new, "-o", &patch, "--memory", "8M", "--algorithm"];
    let refused = world.run(&[&generate[..], &["bsdiff"]].concat()).must(16);
    assert!(refused.stderr.contains("pass a larger --memory"), "{}", refused.stderr);
    assert_eq!(names(&world), ["new", "old"]);
    // Another algorithm that may be tried makes up for it.
    world.run(&[&generate[..], &["bsdiff", "--algorithm", "vcdiff"]].concat()).must(0);
}

// D21
#[test]
fn patch_that_is_of_no_use_is_not_written() {
    let world = World::new();
    let (old, new) = files(&world);
    fs::write(&new, "short").unwrap();
    let patch = text(&world.path("patch")).to_owned();
    let said = world.run(&["delta", "generate", &old, &new, "-o", &patch]).must(3);
    assert!(said.stderr.contains("not smaller"), "{}", said.stderr);
    assert_eq!(names(&world), ["new", "old"]);
}
