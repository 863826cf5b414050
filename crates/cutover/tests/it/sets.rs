//! Several packages of a host as one execution, through the real binary: planned, installed, restored together, refused,
//! killed at every step.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use cutover_core::model::Digest;

use crate::{
    not_run::not_run,
    repo::Repository,
    world::{Ran, World, command, finish, stamped, text},
};

/// A host with a root for each of its packages, and a repository that has them.
struct Host<'a> {
    world: &'a World,
    repository: Repository<'a>,
}

impl<'a> Host<'a> {
    /// `query` is asked for; it names the roots of the others.
    fn new(world: &'a World) -> Self {
        let host = Self { world, repository: Repository::new(world) };
        let sites: String =
            ["base", "storage"].map(|name| format!("{name} = \"{}\"\n", text(&host.root(name)))).concat();
        host.settings("query", &format!("[package.sites]\n{sites}"));
        for name in ["base", "storage"] {
            host.settings(name, "");
        }
        host
    }

    fn root(&self, package: &str) -> PathBuf {
        self.world.path(&format!("srv/{package}"))
    }

    fn settings(&self, package: &str, more: &str) {
        let text = format!("[service]\nmode = \"none\"\n{more}");
        self.world.write(&format!("srv/{package}/cutover.toml"), text);
    }

    /// Builds and publishes a release; `more` are lines of its specification.
    fn publish(&self, package: &str, version: &str, more: &str) {
        let tree = format!("tree-{package}-{version}");
        self.world.write(&format!("{tree}/share/version"), format!("{package} {version}"));
        self.world.write(&format!("{tree}/share/same"), format!("{package} in every version"));
        let spec = format!("package = \"{package}\"\nversion = \"{version}\"\n{more}\n");
        let spec = self.world.write(&format!("{package}-{version}.toml"), spec);
        let bundle = self.world.path(&format!("{package}-{version}.cutover"));
        let pki = &stamped().pki;
        let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
        let tree = self.world.path(&tree);
        self.world
            .run(&[
                "bundle",
                "create",
                text(&tree),
                "--spec",
                text(&spec),
                "-o",
                text(&bundle),
                "--level",
                "1",
                "--sign-key",
                text(&key),
                "--sign-cert",
                text(&certificate),
            ])
            .must(0);
        self.repository.publish(&bundle).must(0);
    }

    /// Three packages in their old versions, installed, and in new ones that need each other, published.
    fn three(world: &'a World) -> Self {
        let host = Self::new(world);
        for package in ["base", "storage", "query"] {
            host.publish(package, "1.0.0", "");
            host.apply(&format!("{package}@1.0.0"), package, &[]).must(0);
        }
        host.publish("base", "1.1.0", "");
        host.publish("base", "1.2.0", "");
        host.publish("storage", "1.1.0", &requires("base", ">=1.1.0"));
        host.publish("query", "1.1.0", &requires("storage", ">=1.1.0"));
        host
    }

    fn at(&self, root: &str, arguments: &[&str]) -> Ran {
        finish(self.command(root, arguments))
    }

    fn command(&self, root: &str, arguments: &[&str]) -> std::process::Command {
        let root = self.root(root);
        let mut all = arguments.to_vec();
        all.extend(["--root", text(&root), "--progress", "none"]);
        command(&stamped().program, &all)
    }

    fn apply(&self, release: &str, root: &str, more: &[&str]) -> Ran {
        let mut all = vec!["apply", release, "--source", text(&self.repository.dir)];
        all.extend(more);
        self.at(root, &all)
    }

    fn plan(&self, release: &str, more: &[&str]) -> Ran {
        let mut all = vec!["plan", release, "--source", text(&self.repository.dir)];
        all.extend(more);
        self.at("query", &all)
    }

    /// The version that is installed in each root, and that its tree says.
    fn versions(&self) -> Vec<String> {
        ["base", "storage", "query"].iter().map(|package| self.version(package)).collect()
    }

    fn version(&self, package: &str) -> String {
        let file = self.root(package).join("current/share/version");
        let there = fs::read_to_string(file).unwrap_or_default();
        if !self.root(package).join(".cutover").is_dir() {
            return there;
        }
        let status = self.at(package, &["status", "--json"]).must(0).json();
        let told = status["version"].as_str().unwrap_or_default().to_owned();
        assert_eq!(there.strip_prefix(&format!("{package} ")).unwrap_or_default(), told);
        told
    }

    /// Starts an update that stops itself at each `step`, and waits until it has the first time.
    fn stopped_at(&self, step: &str) -> Child {
        let source = text(&self.repository.dir);
        self.stopped("query", &["apply", "query@1.1.0", "--source", source, "--stop-at", step])
    }

    fn stopped(&self, root: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(root, arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        assert!(stops(&child), "it did not stop: {arguments:?}");
        child
    }
}

/// Lets a stopped process go on until it stopped `times` more, then kills it.
fn kill_when_stopped_again(child: &mut Child, times: usize, step: &str) {
    for _ in 0..times {
        let process = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(process, rustix::process::Signal::CONT).expect("a signal");
        assert!(stops(child), "{step}, time {times}");
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
}

/// Whether a process stops itself; else it has ended.
fn stops(child: &Child) -> bool {
    let started = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("the process is there");
        match stat.rsplit_once(") ").expect("proc(5)").1.chars().next() {
            Some('T') => return true,
            Some('Z') => return false,
            _ if started.elapsed() > Duration::from_secs(60) => panic!("it neither stops nor ends"),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn requires(package: &str, constraint: &str) -> String {
    format!("[[requires]]\npackage = \"{package}\"\nconstraint = \"{constraint}\"\n")
}

const FAILING: &str = "[[probes.command]]\nargv = [\"false\"]\n";

// R4, R5, R9
#[test]
fn packages_that_have_to_change_first_are_planned_in_order_and_installed_as_one() {
    let world = World::new();
    let host = Host::three(&world);
    let planned = host.plan("query@1.1.0", &["--json"]).must(0).json();
    let parts = planned["set"]["parts"].as_array().expect("parts").clone();
    let steps: Vec<String> = parts
        .iter()
        .map(|part| format!("{} {} {}", part["package"], part["from"], part["to"]).replace('"', ""))
        .collect();
    // The lowest that will do, and what is needed before what needs it.
    assert_eq!(steps, ["base 1.0.0 1.1.0", "storage 1.0.0 1.1.0", "query 1.0.0 1.1.0"]);
    assert!(parts.iter().all(|part| part["plan"]["to"]["version"] == "1.1.0"), "{parts:?}");
    let table = host.plan("query@1.1.0", &[]).must(0).stdout;
    assert!(
        table.contains("whatever fails, every package is restored") && table.contains("storage"),
        "{table}"
    );
    assert_eq!(host.versions(), ["1.0.0"; 3], "a plan changes nothing");

    let report = host.apply("query@1.1.0", "query", &["--json"]).must(0).json();
    assert_eq!(report["outcome"]["outcome"], "confirmed");
    assert_eq!(host.versions(), ["1.1.0"; 3]);
    for package in ["base", "storage", "query"] {
        host.at(package, &["verify"]).must(0);
        let status = host.at(package, &["status", "--json"]).must(0).json();
        assert_eq!((&status["set"], &status["in_flight"]), (&().into(), &().into()));
    }
    let history = host.at("query", &["history", "--json"]).must(0).json();
    assert_eq!(history["sets"][0]["outcome"]["outcome"], "confirmed");
    assert!(host.at("query", &["history"]).must(0).stdout.contains("base 1.0.0 -> 1.1.0"));
    // Each package keeps a restore point of its own.
    host.at("storage", &["rollback"]).must(0);
    assert_eq!(host.versions(), ["1.1.0", "1.0.0", "1.1.0"]);
}

#[test]
fn newest_versions_that_will_do_are_taken_where_that_is_preferred() {
    let world = World::new();
    let host = Host::three(&world);
    host.apply("query@1.1.0", "query", &["--set", "package.prefer=newest"]).must(0);
    assert_eq!(host.versions(), ["1.2.0", "1.1.0", "1.1.0"]);
}

#[test]
fn every_package_is_restored_when_the_probe_of_the_last_one_fails() {
    let world = World::new();
    let host = Host::three(&world);
    let before = host.versions();
    let failed =
        host.apply("query@1.1.0", "query", &["--set", "probes.command=[{argv=[\"false\"]}]"]).must(14);
    assert!(failed.stderr.contains("query") && failed.stderr.contains("restored"), "{}", failed.stderr);
    assert_eq!(host.versions(), before);
    let history = host.at("base", &["history", "--json"]).must(0).stdout;
    assert!(history.contains("set 1: query"), "{history}");
    let sets = host.at("query", &["history", "--json"]).must(0).json();
    assert_eq!(sets["sets"][0]["outcome"]["outcome"], "probe-failed");
    // Nothing is in the way of the next try.
    host.apply("query@1.1.0", "query", &[]).must(0);
    assert_eq!(host.versions(), ["1.1.0"; 3]);
}

#[test]
fn every_package_before_the_one_whose_probe_fails_is_restored_and_those_after_it_are_not_touched() {
    let world = World::new();
    let host = Host::three(&world);
    host.settings("storage", FAILING);
    let failed = host.apply("query@1.1.0", "query", &["--json"]).must(14).json();
    let states: Vec<&str> =
        failed["parts"].as_array().expect("parts").iter().filter_map(|part| part["state"].as_str()).collect();
    assert_eq!(states, ["undone", "undone", "waiting"]);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
}

#[test]
fn release_of_another_package_that_keeps_failing_probes_is_never_kept_in_a_set() {
    let world = World::new();
    let host = Host::three(&world);
    host.settings("storage", &format!("[probes]\non_failure = \"keep\"\n{FAILING}"));
    host.apply("query@1.1.0", "query", &[]).must(14);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
    host.apply("query@1.1.0", "query", &["--keep-on-probe-failure"]).must(2);
}

// R8, R9
#[test]
fn missing_package_is_added_and_is_gone_again_when_the_set_fails() {
    let world = World::new();
    let host = Host::new(&world);
    host.publish("storage", "1.4.0", "");
    host.publish("query", "1.0.0", &requires("storage", ">=1.4.0"));
    let planned = host.plan("query", &["--json"]).must(0).json();
    assert_eq!(
        (&planned["set"]["parts"][0]["package"], &planned["set"]["parts"][0]["from"]),
        (&"storage".into(), &().into())
    );
    assert!(!host.root("storage").join(".cutover").exists(), "a plan leaves nothing behind");
    host.settings("storage", FAILING);
    host.apply("query", "query", &[]).must(14);
    assert_eq!((host.version("storage"), host.version("query")), (String::new(), String::new()));
    host.settings("storage", "");
    host.apply("query", "query", &[]).must(0);
    assert_eq!((host.version("storage"), host.version("query")), ("1.4.0".to_owned(), "1.0.0".to_owned()));
}

// R10
#[test]
fn conflict_is_refused_in_sentences_and_nothing_is_changed() {
    let world = World::new();
    let host = Host::three(&world);
    let conflicts = "[[conflicts]]\npackage = \"base\"\nconstraint = \">=1.0.0\"\n";
    host.publish("query", "1.2.0", &format!("{}{conflicts}", requires("storage", ">=1.1.0")));
    let refused = host.apply("query@1.2.0", "query", &[]).must(13);
    assert!(refused.stderr.contains("query") && refused.stderr.contains("base"), "{}", refused.stderr);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
}

// R7
#[test]
fn circle_among_packages_is_refused_and_named() {
    let world = World::new();
    let host = Host::three(&world);
    host.publish("base", "2.0.0", &requires("query", ">=2.0.0"));
    host.publish("query", "2.0.0", &requires("base", ">=2.0.0"));
    let refused = host.plan("query@2.0.0", &[]).must(13);
    assert!(
        refused.stderr.contains("Circular dependency: base needs query needs base"),
        "{}",
        refused.stderr
    );
}

// R13
#[test]
fn installed_package_that_would_not_bear_the_change_has_to_change_too_or_it_is_refused() {
    let world = World::new();
    let host = Host::new(&world);
    host.publish("base", "1.0.0", "");
    host.publish("storage", "1.0.0", &requires("base", "<2.0.0"));
    host.publish("query", "1.0.0", "");
    host.apply("base@1.0.0", "base", &[]).must(0);
    let base = ["--set", "preflight.packages={base=\"1.0.0\"}"];
    host.apply("storage@1.0.0", "storage", &base).must(0);
    host.apply("query@1.0.0", "query", &[]).must(0);
    host.publish("base", "2.0.0", "");
    host.publish("query", "2.0.0", &requires("base", ">=2.0.0"));
    let refused = host.apply("query@2.0.0", "query", &[]).must(13);
    assert!(refused.stderr.contains("storage"), "{}", refused.stderr);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
    host.publish("storage", "1.1.0", &requires("base", ">=1.0.0"));
    host.apply("query@2.0.0", "query", &[]).must(0);
    assert_eq!(host.versions(), ["2.0.0", "1.1.0", "2.0.0"]);
}

// V4
#[test]
fn version_between_is_part_of_the_set_and_is_gone_when_the_set_fails() {
    let world = World::new();
    let host = Host::three(&world);
    host.publish("storage", "1.5.0", "min_upgrade_from = \"1.1.0\"");
    let needs = requires("base", ">=1.1.0") + &requires("storage", ">=1.5.0");
    host.publish("query", "1.5.0", &needs);
    let planned = host.plan("query", &["--json"]).must(0).json();
    let parts = planned["set"]["parts"].as_array().expect("parts").clone();
    let versions: Vec<&str> = parts.iter().filter_map(|part| part["to"].as_str()).collect();
    assert_eq!(versions, ["1.1.0", "1.1.0", "1.5.0", "1.5.0"], "{parts:?}");
    host.apply("query", "query", &["--set", "probes.command=[{argv=[\"false\"]}]"]).must(14);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
    host.apply("query", "query", &[]).must(0);
    assert_eq!(host.versions(), ["1.1.0", "1.5.0", "1.5.0"]);
    host.at("storage", &["verify"]).must(0);
    host.at("storage", &["rollback"]).must(0);
    assert_eq!(host.version("storage"), "1.1.0");
}

// R5, V4
#[test]
fn version_between_gets_what_it_requires_and_everything_holds_after_each_leg() {
    let world = World::new();
    let host = Host::three(&world);
    host.publish("base", "2.0.0", "");
    host.publish("query", "1.5.0", &requires("base", ">=1.1.0,<2.0.0"));
    let follows = |version: &str| format!("min_upgrade_from = \"{version}\"\n");
    host.publish("query", "2.0.0", &(follows("1.5.0") + &requires("base", ">=2.0.0")));
    let planned = host.plan("query", &["--json"]).must(0).json();
    let parts = planned["set"]["parts"].as_array().expect("parts").clone();
    let steps: Vec<String> =
        parts.iter().map(|part| format!("{} {}", part["package"], part["to"]).replace('"', "")).collect();
    assert_eq!(steps, ["base 1.1.0", "query 1.5.0", "base 2.0.0", "query 2.0.0"]);
    let table = host.plan("query", &[]).must(0).stdout;
    assert!(table.contains("planned when it is reached"), "{table}");
    host.apply("query", "query", &["--set", "probes.command=[{argv=[\"false\"]}]"]).must(14);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
    host.apply("query", "query", &[]).must(0);
    assert_eq!(host.versions(), ["2.0.0", "1.0.0", "2.0.0"]);
    for package in ["base", "query"] {
        host.at(package, &["verify"]).must(0);
    }

    // A way that is closed is explained.
    host.publish("query", "2.5.0", &requires("storage", ">=9.0.0"));
    host.publish("query", "3.0.0", &follows("2.5.0"));
    let refused = host.plan("query@3.0.0", &[]).must(13);
    let told = "query gets from 2.0.0 to 3.0.0 by way of 2.5.0, and that way is closed: ";
    assert!(refused.stderr.contains(told) && refused.stderr.contains("storage"), "{}", refused.stderr);
}

#[test]
fn without_sites_the_steps_are_named_in_order_and_nothing_is_done() {
    let world = World::new();
    let host = Host::three(&world);
    host.settings("query", &format!("[package]\nroots = [\"{}\"]\n", text(&host.root("base"))));
    host.publish("base", "2.0.0", "");
    host.publish("query", "1.5.0", "");
    let follows = "min_upgrade_from = \"1.5.0\"\n".to_owned();
    host.publish("query", "2.0.0", &(follows + &requires("base", ">=2.0.0")));
    let refused = host.apply("query", "query", &[]).must(13);
    let at = |step: &str| refused.stderr.find(&format!("install {step}")).expect(step);
    assert!(at("query 1.0.0 -> 1.5.0") < at("base 1.0.0 -> 2.0.0"), "{}", refused.stderr);
    assert_eq!(host.version("query"), "1.0.0");
    host.apply("query@1.5.0", "query", &[]).must(0);
    host.apply("base@2.0.0", "base", &[]).must(0);
    host.apply("query", "query", &[]).must(0);
    assert_eq!(host.version("query"), "2.0.0");
}

/// Bytes that do not compress.
fn noise(count: usize, seed: u8) -> Vec<u8> {
    let blocks = (0_u32..).map(|number| [&number.to_le_bytes()[..], &[seed]].concat());
    blocks.flat_map(|block| Digest::of(&block).as_bytes().to_owned()).take(count).collect()
}

// H3, E23
#[test]
fn room_that_roots_on_one_file_system_need_is_summed() {
    let world = World::new();
    let host = Host::new(&world);
    for (seed, package) in ["storage", "query"].into_iter().enumerate() {
        let seed = u8::try_from(seed).expect("small");
        world.write(&format!("tree-{package}-1.0.0/share/blob"), noise(3 << 20, seed));
    }
    host.publish("storage", "1.0.0", "");
    host.publish("query", "1.0.0", &requires("storage", ">=1.0.0"));
    // A mount of its own name space: it is gone with the process.
    let (srv, settings) = (world.path("srv"), world.path("settings"));
    fs::rename(&srv, &settings).expect("renamed");
    fs::create_dir(&srv).expect("made");
    let try_with = |size: &str| {
        let (srv, settings) = (srv.display(), settings.display());
        let script = format!(
            "mount -t tmpfs -o size={size} none '{srv}' && cp -r '{settings}'/. '{srv}' || exit 99\n\
             \"$0\" \"$@\"; code=$?; ls -d '{srv}'/*/.cutover; exit $code"
        );
        let apply = host.command("query", &["apply", "query", "--source", text(&host.repository.dir)]);
        let mut mounted = command(Path::new("unshare"), &["--mount", "sh", "-c", &script]);
        mounted.arg(apply.get_program()).args(apply.get_args());
        finish(mounted)
    };
    // Each needs twice 3 MiB and what is kept of them: 12 MiB.
    let refused = try_with("20m");
    if refused.code == 99 || refused.stderr.starts_with("unshare:") {
        return not_run("room of several roots: no mount of its own: needs root");
    }
    let refused = refused.must(12);
    let both = format!("`{}`, `{}`", srv.join("storage").display(), srv.join("query").display());
    assert!(
        refused.stderr.contains(&format!("too little room on the file system of {both}: 25 MiB needed")),
        "{}",
        refused.stderr
    );
    assert!(!refused.stdout.contains(".cutover"), "nothing was begun: {}", refused.stdout);
    try_with("30m").must(0);
}

#[test]
fn package_whose_root_is_not_named_is_refused_and_the_remedy_told() {
    let world = World::new();
    let host = Host::three(&world);
    host.settings("query", &format!("[package.sites]\nbase = \"{}\"\n", text(&host.root("base"))));
    let refused = host.apply("query@1.1.0", "query", &[]).must(13);
    assert!(refused.stderr.contains("install storage 1.1.0"), "{}", refused.stderr);
    assert!(refused.stderr.contains("package.sites"), "{}", refused.stderr);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
}

#[test]
fn two_packages_cannot_share_a_root() {
    let world = World::new();
    let host = Host::three(&world);
    let base = text(&host.root("base")).to_owned();
    host.settings("query", &format!("[package.sites]\nbase = \"{base}\"\nstorage = \"{base}\"\n"));
    let refused = host.apply("query@1.1.0", "query", &[]).must(2);
    assert!(refused.stderr.contains("cannot share the root"), "{}", refused.stderr);
}

#[test]
fn root_of_an_open_set_is_changed_by_nothing_but_its_recovery() {
    let world = World::new();
    let host = Host::three(&world);
    let mut child = host.stopped_at("commit");
    child.kill().expect("killed");
    child.wait().expect("ended");
    // All three are switched and none is confirmed.
    let status = host.at("base", &["status", "--json"]).must(0).json();
    assert_eq!(status["set"]["number"], 1);
    assert!(host.at("storage", &["status"]).must(0).stdout.contains("part of set 1"));
    for refused in [
        host.apply("base@1.2.0", "base", &[]).must(1),
        host.at("base", &["rollback"]).must(1),
        host.at("storage", &["prune", "--keep", "1"]).must(1),
    ] {
        let remedy = format!("cutover recover --root {}", text(&host.root("query")));
        assert!(refused.stderr.contains(&remedy), "{}", refused.stderr);
    }
    // Any of its roots will do, and since all were switched and probed, it is finished.
    host.at("base", &["recover"]).must(0);
    assert_eq!(host.versions(), ["1.1.0"; 3]);
    host.at("query", &["recover"]).must(3);
    host.apply("base@1.2.0", "base", &[]).must(0);
}

#[test]
fn interrupted_set_is_ended_before_the_next_one_begins() {
    let world = World::new();
    let host = Host::three(&world);
    let mut child = host.stopped_at("probe");
    child.kill().expect("killed");
    child.wait().expect("ended");
    let ran = host.apply("query@1.1.0", "query", &[]).must(0);
    assert!(ran.stderr.contains("an interrupted run was ended first: not done"), "{}", ran.stderr);
    assert_eq!(host.versions(), ["1.1.0"; 3]);
}

// E5
#[test]
fn set_killed_at_any_step_of_any_package_is_entirely_old_or_entirely_new() {
    let steps = ["stage", "restore-point", "quiesce", "switch", "activate", "probe", "commit", "confirm"];
    let world = World::new();
    let host = Host::three(&world);
    for step in steps {
        let times = if step == "commit" { 1 } else { 3 };
        for time in 0..times {
            let mut child = host.stopped_at(step);
            kill_when_stopped_again(&mut child, time, step);
            host.at(["base", "storage", "query"][time], &["recover"]).must(0);
            let is_new = matches!(step, "commit" | "confirm");
            assert_eq!(host.versions(), [if is_new { "1.1.0" } else { "1.0.0" }; 3], "{step}, time {time}");
            for package in ["base", "storage", "query"] {
                host.at(package, &["verify"]).must(0);
                host.at(package, &["recover"]).must(3);
                if is_new {
                    host.at(package, &["rollback"]).must(0);
                }
            }
        }
    }
}

// E5, E18
#[test]
fn set_is_taken_back_as_one_execution_from_any_of_its_roots() {
    let world = World::new();
    let host = Host::three(&world);
    let refused = host.at("base", &["rollback", "--whole-set"]).must(13);
    assert!(refused.stderr.contains("was not part of a set"), "{}", refused.stderr);
    let history = host.at("base", &["history", "--json"]).must(0).json();
    assert_eq!(history["history"][0]["outcome"], "refused");

    let applied = host.apply("query@1.1.0", "query", &[]).must(0).stdout;
    assert!(applied.contains("cutover rollback --whole-set"), "{applied}");
    let dry = ["rollback", "--whole-set", "--dry-run"];
    let planned = host.at("storage", &[&dry[..], &["--json"]].concat()).must(0).json();
    assert_eq!(planned["set"]["takes_back"]["number"], 1);
    let parts = planned["set"]["parts"].as_array().expect("parts").clone();
    let steps: Vec<String> = parts
        .iter()
        .map(|part| format!("{} {} {}", part["package"], part["from"], part["to"]).replace('"', ""))
        .collect();
    assert_eq!(
        steps,
        ["query 1.1.0 1.0.0", "storage 1.1.0 1.0.0", "base 1.1.0 1.0.0"],
        "what needs others first"
    );
    let table = host.at("base", &dry).must(0).stdout;
    assert!(table.contains("takes set 1 back") && table.contains("storage"), "{table}");
    assert_eq!(host.versions(), ["1.1.0"; 3], "a plan changes nothing");

    let report = host.at("base", &["rollback", "--whole-set", "--json"]).must(0).json();
    assert_eq!((&report["outcome"]["outcome"], &report["takes_back"]), (&"confirmed".into(), &1.into()));
    assert_eq!(host.versions(), ["1.0.0"; 3]);
    for package in ["base", "storage", "query"] {
        host.at(package, &["verify"]).must(0);
        host.at(package, &["recover"]).must(3);
    }
    let history = host.at("query", &["history"]).must(0).stdout;
    assert!(history.contains("set 1 taken back: query 1.1.0 -> 1.0.0"), "{history}");
    // It used its restore points up; what is left was not made by a set.
    host.at("query", &["rollback", "--whole-set"]).must(13);
    host.apply("query@1.1.0", "query", &[]).must(0);
    assert_eq!(host.versions(), ["1.1.0"; 3]);
}

#[test]
fn no_package_goes_back_when_the_probe_of_one_of_them_fails() {
    let world = World::new();
    let host = Host::three(&world);
    host.apply("query@1.1.0", "query", &[]).must(0);
    host.settings("base", FAILING);
    let failed = host.at("query", &["rollback", "--whole-set", "--json"]).must(14).json();
    let states: Vec<&str> =
        failed["parts"].as_array().expect("parts").iter().filter_map(|part| part["state"].as_str()).collect();
    assert_eq!(states, ["undone"; 3]);
    assert_eq!(host.versions(), ["1.1.0"; 3]);
    host.settings("base", "");
    host.at("query", &["rollback", "--whole-set"]).must(0);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
}

#[test]
fn package_that_changed_after_the_set_is_in_the_way_of_taking_it_back() {
    let world = World::new();
    let host = Host::three(&world);
    host.apply("query@1.1.0", "query", &[]).must(0);
    host.apply("base@1.2.0", "base", &[]).must(0);
    let refused = host.at("query", &["rollback", "--whole-set"]).must(13);
    let remedy = format!("cutover rollback --root {}", text(&host.root("base")));
    assert!(refused.stderr.contains(&remedy), "{}", refused.stderr);
    assert_eq!(host.versions(), ["1.2.0", "1.1.0", "1.1.0"]);
    host.at("base", &["rollback"]).must(0);
    host.at("query", &["rollback", "--whole-set"]).must(0);
    assert_eq!(host.versions(), ["1.0.0"; 3]);
}

#[test]
fn package_that_came_with_a_set_and_by_a_version_between_goes_with_it_in_one_step() {
    let world = World::new();
    let host = Host::new(&world);
    host.publish("query", "1.0.0", "");
    host.apply("query@1.0.0", "query", &[]).must(0);
    host.publish("storage", "1.4.0", "");
    host.publish("query", "1.1.0", "");
    host.publish(
        "query",
        "2.0.0",
        &format!("min_upgrade_from = \"1.1.0\"\n{}", requires("storage", ">=1.4.0")),
    );
    host.apply("query", "query", &[]).must(0);
    assert_eq!((host.version("storage"), host.version("query")), ("1.4.0".to_owned(), "2.0.0".to_owned()));
    let report = host.at("query", &["rollback", "--whole-set", "--json"]).must(0).json();
    assert_eq!(report["parts"].as_array().expect("parts").len(), 2, "{report}");
    assert_eq!((host.version("storage"), host.version("query")), (String::new(), "1.0.0".to_owned()));
}

// E5
#[test]
fn set_killed_while_it_is_taken_back_is_entirely_there_or_entirely_gone() {
    let world = World::new();
    let host = Host::three(&world);
    host.apply("query@1.1.0", "query", &[]).must(0);
    let steps = [
        ("check-tree", 1),
        ("restore-point", 2),
        ("quiesce", 0),
        ("switch", 0),
        ("switch", 2),
        ("activate", 1),
        ("probe", 2),
        ("commit", 0),
        ("confirm", 0),
        ("confirm", 2),
    ];
    for (step, time) in steps {
        let mut child = host.stopped("storage", &["rollback", "--whole-set", "--stop-at", step]);
        kill_when_stopped_again(&mut child, time, step);
        host.at(["base", "storage", "query"][time], &["recover"]).must(0);
        let is_gone = matches!(step, "commit" | "confirm");
        assert_eq!(host.versions(), [if is_gone { "1.0.0" } else { "1.1.0" }; 3], "{step}, time {time}");
        for package in ["base", "storage", "query"] {
            host.at(package, &["verify"]).must(0);
            host.at(package, &["recover"]).must(3);
        }
        if is_gone {
            host.apply("query@1.1.0", "query", &[]).must(0);
        }
    }
}
