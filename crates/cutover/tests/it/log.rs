//! The transparency log through the real binary: what hosts demand, what witnesses do.

use std::fs;

use crate::{
    repo::Repository,
    world::{Ran, World, text},
};

const NAME: &str = "releases.example.com/tool";

/// Begins the log, and returns its verifier key.
fn begin(repository: &Repository<'_>) -> String {
    let (dir, keys) = (text(&repository.dir), text(&repository.keys));
    let ran = repository.world.run(&["repo", "log", "init", dir, "--name", NAME, "--keys", keys]).must(0);
    ran.stdout.trim().to_owned()
}

/// Applies a release with these settings.
fn apply(repository: &Repository<'_>, release: &str, settings: &[String]) -> Ran {
    let mut all = vec!["apply", release, "--source", text(&repository.dir)];
    for setting in settings {
        all.extend(["--set", setting.as_str()]);
    }
    repository.world.on_root(&all)
}

#[test]
fn a_host_installs_what_is_in_the_log_and_nothing_else() {
    let world = World::new();
    let repository = Repository::new(&world);
    let bundle = world.build_version("1.0.0");
    repository.publish(&bundle).must(0);
    let stranger = "trust-policy.log=other.example+00000000+AQ==".to_owned();
    apply(&repository, "tool@1.0.0", std::slice::from_ref(&stranger)).must(2);
    let key = begin(&repository);
    let demand = [format!("trust-policy.log={key}")];
    apply(&repository, "tool@1.0.0", &demand).must(0);
    assert!(world.root().join(".cutover/trusted/log.json").is_file());
    // A file shows no log.
    let bare = world.build_version("1.1.0");
    let refused = world.apply(&bare, &["--set", &demand[0]]);
    assert!(refused.stderr.contains("--source"), "{}", refused.stderr);
    refused.must(13);
    repository.publish(&bare).must(0);
    let log = text(&repository.dir);
    let shown = world.run(&["repo", "log", "show", log, "--log", &key, "--json"]).must(0).json();
    assert_eq!(
        (&shown["checkpoint"]["entries"], &shown["entries"][0]["version"]),
        (&2.into(), &"1.1.0".into())
    );
    world.run(&["repo", "log", "verify", log, "--log", &key]).must(0);
    repository.run("verify", &[], &[]).must(0);

    // Another history under the same signature would take the log's key; without it, the checkpoint is refused.
    let checkpoint = repository.dir.join("log/checkpoint");
    let good = fs::read_to_string(&checkpoint).expect("read");
    fs::write(&checkpoint, good.replacen("\n2\n", "\n1\n", 1)).expect("written");
    let refused = apply(&repository, "tool@1.1.0", &demand);
    assert!(refused.stderr.contains("checkpoint"), "{}", refused.stderr);
    refused.must(11);
    fs::write(&checkpoint, good).expect("written");
    apply(&repository, "tool@1.1.0", &demand).must(0);
}

#[test]
fn a_log_that_goes_backwards_is_refused_by_a_host_that_saw_more() {
    let world = World::new();
    let repository = Repository::new(&world);
    let key = begin(&repository);
    let demand = [format!("trust-policy.log={key}")];
    repository.publish(&world.build_version("1.0.0")).must(0);
    let old = fs::read(repository.dir.join("log/checkpoint")).expect("read");
    repository.publish(&world.build_version("1.1.0")).must(0);
    apply(&repository, "tool@1.0.0", &demand).must(0);
    fs::write(repository.dir.join("log/checkpoint"), old).expect("written");
    let all = ["check", "--source", text(&repository.dir), "--set", &demand[0]];
    let refused = world.on_root(&all);
    assert!(refused.stderr.contains("seen before"), "{}", refused.stderr);
    refused.must(11);
}

#[test]
fn a_host_waits_for_as_many_witnesses_as_it_demands() {
    let world = World::new();
    let repository = Repository::new(&world);
    let key = begin(&repository);
    repository.publish(&world.build_version("1.0.0")).must(0);
    let dir = text(&repository.dir);
    let witness = |number: usize| {
        let (name, file) = (format!("w{number}.example"), world.path(&format!("w{number}.key")));
        let ran = world.run(&["repo", "log", "key", &name, "-o", text(&file)]).must(0);
        (name, file, ran.stdout.trim().to_owned())
    };
    let witnesses = [witness(1), witness(2), witness(3)];
    let keys: Vec<&str> = witnesses.iter().map(|(_, _, key)| key.as_str()).collect();
    let demand = [
        format!("trust-policy.log={key}"),
        format!("trust-policy.witnesses={}", serde_json::json!(keys)),
        "trust-policy.witness_threshold=2".to_owned(),
    ];
    let cosign = |(name, file, _): &(String, std::path::PathBuf, String), output: Option<&str>| {
        let state = world.path(&format!("state-{name}"));
        let mut all = vec!["repo", "log", "cosign", dir, "--log", &key, "--witness-key", text(file)];
        all.extend(["--name", name, "--state", text(&state)]);
        all.extend(output.map(|output| ["--output", output]).into_iter().flatten());
        world.run(&all)
    };
    let refused = apply(&repository, "tool", &demand);
    assert!(refused.stderr.contains("0 of the 2 witnesses"), "{}", refused.stderr);
    refused.must(11);
    cosign(&witnesses[0], None).must(0);
    apply(&repository, "tool", &demand).must(11);
    // A witness elsewhere sends its checkpoint back.
    let note = world.path("cosigned");
    cosign(&witnesses[2], Some(text(&note))).must(0);
    world.run(&["repo", "log", "add", dir, text(&note)]).must(0);
    world.run(&["repo", "log", "add", dir, text(&note)]).must(3);
    apply(&repository, "tool", &demand).must(0);
    repository.run("verify", &[], &[]).must(0);
}
