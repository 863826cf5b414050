//! Repositories through the real binary: set up, publish, list, verify, remove.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::world::{Ran, Release, World, stamped, text};

/// A repository of a test, and how its commands are run.
pub(crate) struct Repository<'a> {
    pub(crate) world: &'a World,
    pub(crate) dir: PathBuf,
    pub(crate) keys: PathBuf,
}

impl<'a> Repository<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let repository = Self { world, dir: world.path("repository"), keys: world.path("keys") };
        let pki = &stamped().pki;
        let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
        let signing = ["--grace-s", "0", "--sign-key", text(&key), "--sign-cert", text(&certificate)];
        repository.run("init", &[], &signing).must(0);
        repository
    }

    /// Runs `repo VERB` on it with its keys.
    pub(crate) fn run(&self, verb: &str, operands: &[&str], flags: &[&str]) -> Ran {
        let mut all = vec!["repo", verb, text(&self.dir)];
        all.extend(operands);
        if !matches!(verb, "list" | "verify") {
            all.extend(["--keys", text(&self.keys)]);
        }
        all.extend(flags);
        self.world.run(&all)
    }

    pub(crate) fn publish(&self, bundle: &Path) -> Ran {
        self.run("publish", &[text(bundle)], &[])
    }
}

fn versions(ran: &Ran) -> Vec<String> {
    let listed = ran.json();
    let releases = listed["releases"].as_array().expect("a list");
    releases.iter().map(|release| release["version"].as_str().expect("a version").to_owned()).collect()
}

#[test]
fn a_repository_is_set_up_published_to_verified_and_emptied() {
    let world = World::new();
    let repository = Repository::new(&world);
    let (one, two) = (world.build_version("1.0.0"), world.build_version("1.1.0"));
    let published = repository.run("publish", &[text(&one), text(&two)], &["--json"]).must(0).json();
    assert_eq!((&published["releases"], &published["objects_new"]), (&2.into(), &6.into()));
    repository.publish(&one).must(3);
    assert_eq!(versions(&repository.run("list", &[], &["--json"]).must(0)), ["1.1.0", "1.0.0"]);
    let report = repository.run("verify", &[], &["--json"]).must(0).json();
    assert_eq!((&report["releases"], &report["unreferenced"]), (&2.into(), &serde_json::json!([])));
    repository.run("yank", &["tool@1.1.0"], &["--reason", "loses data"]).must(0);
    assert!(repository.run("list", &[], &[]).must(0).stdout.contains("yanked: loses data"));
    repository.run("promote", &["tool@1.0.0"], &["--to", "lts"]).must(0);
    repository.run("promote", &["tool@1.0.0"], &["--to", "lts"]).must(3);
    repository.run("refresh", &[], &[]).must(0);
    repository.run("remove", &["tool@1.1.0"], &[]).must(0);
    // M15
    repository.run("remove", &["tool@1.1.0"], &[]).must(1);
    repository.run("remove", &["tool@1.0.0"], &[]).must(0);
    assert_eq!(versions(&repository.run("list", &[], &["--json"]).must(0)), Vec::<String>::new());
    assert!(
        !repository.dir.join("objects").exists()
            || fs::read_dir(repository.dir.join("objects")).unwrap().count() == 0
    );
}

#[test]
fn private_keys_are_nobody_elses_and_never_in_what_is_served() {
    let world = World::new();
    let repository = Repository::new(&world);
    for entry in fs::read_dir(&repository.keys).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    let inside = world.path("other/keys");
    world.run(&["repo", "init", text(&world.path("other")), "--keys", text(&inside)]).must(2);
}

#[test]
fn what_is_not_signed_for_this_anchor_is_not_published() {
    let world = World::new();
    let repository = Repository::new(&world);
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let unsigned = world.path("unsigned.cutover");
    world.run(&["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&unsigned)]).must(0);
    repository.publish(&unsigned).must(11);
    assert_eq!(versions(&repository.run("list", &[], &["--json"]).must(0)), Vec::<String>::new());
}

#[test]
fn a_changed_version_is_refused_and_a_damaged_repository_is_reported() {
    let world = World::new();
    let repository = Repository::new(&world);
    let one = world.build_version("1.0.0");
    repository.publish(&one).must(0);
    let other = world.build(&Release { files: &[("share/more", "more")], ..Release::new("1.0.0") });
    repository.publish(&other).must(13);
    let mut objects: Vec<PathBuf> = Vec::new();
    for directory in fs::read_dir(repository.dir.join("objects")).unwrap() {
        objects.extend(fs::read_dir(directory.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    let mut bytes = fs::read(&objects[0]).unwrap();
    bytes[0] ^= 1;
    fs::write(&objects[0], bytes).unwrap();
    fs::remove_file(&objects[1]).unwrap();
    let report = repository.run("verify", &[], &["--json"]).must(17).json();
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(2), "{report}");
}
