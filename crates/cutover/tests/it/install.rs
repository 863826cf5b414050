//! Installing, going back, repairing, recovering: the life of a root.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::world::{LAYOUTS, Release, World, exact, files_of, finish, seen, stamped, text};

/// Installs 1.0.0 in `layout` and builds 1.1.0.
fn installed(world: &World, layout: &str) -> std::path::PathBuf {
    let first = world.build_version("1.0.0");
    world.apply(&first, &["--layout", layout]).must(0);
    world.build_version("1.1.0")
}

// E4, E17
#[test]
fn release_goes_from_creation_to_rollback_in_every_layout() {
    for layout in LAYOUTS {
        let world = World::new();
        let release = Release { files: &[("share/added", "new in 1.1.0")], ..Release::new("1.1.0") };
        installed(&world, layout);
        let next = world.build(&release);
        assert_eq!(seen(&world), files_of(&world, "1.0.0"), "{layout}");

        let report = world.apply(&next, &["--json"]).must(0).json();
        assert_eq!(report["format"], 1);
        assert_eq!((&report["exit_code"], &report["ended"]), (&0.into(), &"done".into()));
        assert_eq!(report["to"]["version"], "1.1.0");
        assert!(report["restore_point"].is_string(), "{report}");
        assert_eq!(seen(&world), files_of(&world, "1.1.0"), "{layout}");
        world.on_root(&["verify"]).must(0);

        world.on_root(&["rollback"]).must(0);
        assert_eq!(seen(&world), files_of(&world, "1.0.0"), "{layout}");
        world.on_root(&["verify"]).must(0);
        assert_eq!(world.version(), "1.0.0");
    }
}

// E1, E2
#[test]
fn dry_run_says_verification_passed_and_changes_nothing() {
    for layout in LAYOUTS {
        let world = World::new();
        let first = world.build_version("1.0.0");
        let ran = world.apply(&first, &["--dry-run", "--layout", layout]).must(0);
        assert!(ran.stdout.contains("verification passed"), "{}", ran.stdout);
        assert!(!world.root().exists(), "{layout}");

        let next = installed(&world, layout);
        let before = exact(&world.root());
        let json = world.apply(&next, &["--dry-run", "--json"]).must(0).json();
        assert_eq!((&json["verification"], &json["plan"]["kind"]), (&"passed".into(), &"update".into()));
        world.on_root(&["plan", text(&next)]).must(0);
        world.on_root(&["rollback", "000001", "--dry-run"]).must(0);
        assert_eq!(exact(&world.root()), before, "{layout}");
        assert_eq!(world.status()["restore_points"], 1);
    }
}

// E22
#[test]
fn same_version_again_is_nothing_to_do() {
    let world = World::new();
    installed(&world, "versioned");
    let before = exact(&world.root().join("releases"));
    for more in [&[][..], &["--dry-run"]] {
        let ran = world.apply(&world.bundle_path("1.0.0"), more).must(3);
        assert!(ran.stderr.contains("already at version 1.0.0"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("error: "), "{}", ran.stderr);
    }
    assert_eq!(exact(&world.root().join("releases")), before);
    assert_eq!(world.status()["restore_points"], 1);
}

#[test]
fn plan_that_was_read_is_executed_exactly_or_refused() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let file = world.path("plan.json");
    let shown = world.on_root(&["plan", text(&next), "-o", text(&file), "--json"]).must(0).json();
    let written: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    assert_eq!(shown["plan"], written);

    // The world changes: a file of the present release is damaged.
    let victim = world.visible().join("share/version");
    fs::write(&victim, "other").expect("written");
    for more in [&["--plan", text(&file)][..], &["--plan", text(&file), "--dry-run"]] {
        let ran = world.apply(&next, more).must(1);
        assert!(ran.stderr.contains("something changed since the plan was made"), "{}", ran.stderr);
    }
    fs::write(&victim, "1.0.0").expect("written");
    world.on_root(&["verify"]).must(0);

    world.on_root(&["plan", text(&next), "-o", text(&file)]).must(0);
    let shown = world.apply(&next, &["--plan", text(&file), "--dry-run", "--json"]).must(0).json();
    let written: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    assert_eq!(shown["plan"], written);
    let other = world.build_version("1.2.0");
    let ran = world.apply(&other, &["--plan", text(&file), "--dry-run"]).must(1);
    assert!(ran.stderr.contains("another release than the bundle holds"), "{}", ran.stderr);
    world.apply(&next, &["--plan", text(&file)]).must(0);
    assert_eq!(world.version(), "1.1.0");
    let no_plan = world.write("no.json", "{}");
    for more in [&["--plan", text(&no_plan)][..], &["--plan", text(&no_plan), "--dry-run"]] {
        let ran = world.apply(&other, more).must(2);
        assert!(ran.stderr.contains("is no plan"), "{}", ran.stderr);
    }
}

#[test]
fn plan_says_what_becomes_of_changed_files_whoever_carries_it_out() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let file = world.path("plan.json");
    fs::write(world.visible().join("etc/tool.conf"), "mine").expect("written");
    world.on_root(&["plan", text(&next), "-o", text(&file)]).must(13);
    world.on_root(&["plan", text(&next), "--replace-changed", "-o", text(&file)]).must(0);
    for flag in ["--replace-changed", "--keep-on-probe-failure", "--layout=versioned"] {
        world.apply(&next, &["--plan", text(&file), flag]).must(2);
    }
    world.apply(&next, &["--plan", text(&file), "--dry-run"]).must(0);
    world.apply(&next, &["--plan", text(&file)]).must(0);
    assert_ne!(fs::read_to_string(world.visible().join("etc/tool.conf")).expect("read"), "mine");
}

#[test]
fn flags_for_repositories_are_refused_beside_a_file() {
    let world = World::new();
    let next = installed(&world, "versioned");
    for more in [["--channel", "beta"], ["--trusted-root", "nope"]] {
        let ran = world.apply(&next, &more).must(2);
        assert!(ran.stderr.contains("is a file"), "{}", ran.stderr);
    }
    assert_eq!(world.version(), "1.0.0");
}

// E10
#[test]
fn failed_probe_restores_the_release_before() {
    for layout in LAYOUTS {
        let world = World::new();
        let next = installed(&world, layout);
        let before = seen(&world);
        let probe = "probes.command=[{ argv = [\"/bin/false\"] }]";
        let ran = world.apply(&next, &["--set", probe, "--json"]).must(14);
        let report = ran.json();
        assert_eq!(
            (&report["probe_failed"], &report["ended"]),
            (&true.into(), &"probe-failed-restored".into())
        );
        assert!(!report["message"].as_str().unwrap_or_default().is_empty());
        assert!(ran.stderr.contains("error: "), "{}", ran.stderr);
        assert_eq!(
            (&report["error"]["exit_code"], &report["error"]["message"]),
            (&14.into(), &report["message"])
        );
        assert_eq!(seen(&world), before, "{layout}");
        assert_eq!(world.version(), "1.0.0");
        let history = world.on_root(&["history", "--json"]).must(0).json();
        assert_eq!(history["history"][0]["outcome"], "probe-failed");
    }
}

// E11
#[test]
fn failed_probe_with_rollback_off_keeps_the_new_release_and_says_so() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let probe = "probes.command=[{ argv = [\"/bin/false\"] }]";
    let ran = world.apply(&next, &["--set", probe, "--keep-on-probe-failure", "--json"]).must(18);
    assert_eq!(ran.json()["probe_failed"], true);
    assert!(ran.stderr.contains("post-update probe failed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("cutover rollback"), "{}", ran.stderr);
    assert_eq!(world.version(), "1.1.0");
}

// E8
#[test]
fn second_run_is_told_that_one_is_in_progress_and_the_first_is_unaffected() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let first = world.stopped_at("stage", &["apply", text(&next)]);
    for arguments in [vec!["apply", text(&next)], vec!["rollback"], vec!["prune"], vec!["recover"]] {
        let ran = world.on_root(&arguments).must(10);
        assert!(ran.stderr.contains("already in progress") && ran.stderr.contains("pid "), "{}", ran.stderr);
    }
    world.on_root(&["status"]).must(0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), rustix::process::Signal::CONT)
        .expect("continued");
    let output = first.wait_with_output().expect("ended");
    assert!(output.status.success());
    assert_eq!(world.version(), "1.1.0");
}

// E5, E8
#[test]
fn killed_run_leaves_a_whole_tree_after_recovery_and_frees_the_lock() {
    for layout in LAYOUTS {
        for step in ["stage", "restore-point", "switch", "activate", "probe"] {
            let world = World::new();
            let next = installed(&world, layout);
            let mut child = world.stopped_at(step, &["apply", text(&next)]);
            child.kill().expect("killed");
            child.wait().expect("ended");
            let status = world.status();
            assert!(status["in_flight"]["number"].is_u64(), "{layout} {step}: {status}");
            let ran = world.on_root(&["recover", "--json"]).must(0);
            assert_eq!(ran.json()["exit_code"], 0);
            let version = world.version();
            let version = version.as_str().expect("a version");
            assert!(["1.0.0", "1.1.0"].contains(&version), "{layout} {step}: {version}");
            assert_eq!(seen(&world), files_of(&world, version), "{layout} {step}");
            assert!(world.status()["in_flight"].is_null());
            let ran = world.on_root(&["recover"]).must(3);
            assert!(ran.stdout.contains("nothing to recover"), "{}", ran.stdout);
        }
    }
}

// E5
#[test]
fn next_run_ends_an_interrupted_one_by_itself() {
    let world = World::new();
    let next = installed(&world, "in-place");
    let mut child = world.stopped_at("switch", &["apply", text(&next)]);
    child.kill().expect("killed");
    child.wait().expect("ended");
    let ran = world.apply(&next, &["--dry-run"]).must(1);
    assert!(ran.stderr.contains("was interrupted"), "{}", ran.stderr);
    let last = world.build_version("1.2.0");
    let ran = world.apply(&last, &[]).must(0);
    assert!(ran.stderr.contains("an interrupted run was ended first"), "{}", ran.stderr);
    assert_eq!(seen(&world), files_of(&world, "1.2.0"));
}

// E15
#[test]
fn binary_corrupted_after_an_update_is_as_before_it_after_rollback() {
    for layout in LAYOUTS {
        let world = World::new();
        let next = installed(&world, layout);
        let before = seen(&world);
        world.apply(&next, &[]).must(0);
        corrupt(&world.visible().join("bin/tool"));
        corrupt(&world.visible().join("lib/libsame.so.1"));
        world.on_root(&["rollback"]).must(0);
        assert_eq!(seen(&world), before, "{layout}");
    }
}

/// Writes into a file without changing its inode.
fn corrupt(path: &Path) {
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("opened");
    file.write_all(b"damaged").expect("written");
}

#[test]
fn damage_is_found_named_and_repaired() {
    for layout in LAYOUTS {
        let world = World::new();
        installed(&world, layout);
        let before = seen(&world);
        let tree = world.visible();
        corrupt(&tree.join("bin/tool"));
        corrupt(&tree.join("etc/tool.conf"));
        fs::remove_file(tree.join("share/version")).expect("removed");
        let ran = world.on_root(&["verify", "--json"]).must(17);
        let json = ran.json();
        assert_eq!(json["drift"]["damaged"], json!(["bin/tool"]), "{layout}");
        assert_eq!(json["drift"]["missing"], json!(["share/version"]), "{layout}");
        assert_eq!(json["drift"]["edited"], json!(["etc/tool.conf"]), "{layout}");
        assert!(ran.stderr.contains("verify --repair"), "{}", ran.stderr);
        assert_eq!(json["error"]["exit_code"], 17);
        world.on_root(&["verify", "--repair"]).must(0);
        let mut repaired = seen(&world);
        assert_ne!(
            repaired.insert("etc/tool.conf".to_owned(), before["etc/tool.conf"].clone()),
            before.get("etc/tool.conf").cloned()
        );
        assert_eq!(repaired, before, "{layout}: an edited config file stays");
        world.on_root(&["verify", "--repair", "--replace-edited"]).must(0);
        assert_eq!(seen(&world), before, "{layout}");
    }
}

// E16
#[test]
fn altered_restore_point_aborts_the_restore_and_is_named() {
    let world = World::new();
    let next = installed(&world, "versioned");
    world.apply(&next, &[]).must(0);
    let point = world.root().join(".cutover/restore/000002/manifest.json");
    let text_before = fs::read_to_string(&point).expect("read");
    fs::write(&point, text_before.replace("1.0.0", "1.0.1")).expect("written");
    let before = seen(&world);
    let ran = world.on_root(&["rollback"]).must(17);
    assert!(ran.stderr.contains("000002"), "{}", ran.stderr);
    assert_eq!(seen(&world), before);
    let listed = world.on_root(&["restore-points"]).must(0).stdout;
    assert!(listed.contains("DAMAGED"), "{listed}");
}

// E18, P7
#[test]
fn rollback_to_an_unknown_or_hostile_id_changes_nothing_and_is_remembered() {
    let world = World::new();
    let next = installed(&world, "versioned");
    world.apply(&next, &[]).must(0);
    let before = seen(&world);
    let ran = world.on_root(&["rollback", "000099"]).must(1);
    assert!(ran.stderr.contains("no restore point `000099`"), "{}", ran.stderr);
    world.on_root(&["rollback", "../../x"]).must(2);
    assert_eq!(seen(&world), before);
    let row = world.on_root(&["history", "--limit", "1", "--json"]).must(0).json()["history"][0].clone();
    assert_eq!((&row["action"], &row["outcome"]), (&"rollback".into(), &"refused".into()));
    assert!(row["error"].as_str().is_some_and(|error| error.contains("000099")));
}

// E19, E20
#[test]
fn restore_points_are_listed_newest_first_and_three_are_kept_by_default() {
    let world = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"] {
        let bundle = world.build_version(version);
        world.apply(&bundle, &["--set", "install.prune=by-command"]).must(0);
    }
    let ids = |world: &World| -> Vec<String> {
        let json = world.on_root(&["restore-points", "--json"]).must(0).json();
        let points = json["restore_points"].as_array().expect("a list").clone();
        points.iter().map(|point| point["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(&world), ["000005", "000004", "000003", "000002", "000001"]);
    world.on_root(&["prune", "--json"]).must(0);
    assert_eq!(ids(&world), ["000005", "000004", "000003"]);
    world.on_root(&["prune", "--keep", "1"]).must(0);
    assert_eq!(ids(&world), ["000005"]);
    world.on_root(&["rollback"]).must(0);
    assert_eq!(seen(&world), files_of(&world, "1.3.0"));
}

#[test]
fn retention_follows_every_update_by_itself() {
    let world = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"] {
        world.apply(&world.build_version(version), &[]).must(0);
    }
    assert_eq!(world.status()["restore_points"], 3);
    let oldest =
        world.on_root(&["restore-points", "--json"]).must(0).json()["restore_points"][2]["id"].clone();
    world.on_root(&["rollback", oldest.as_str().expect("an id")]).must(0);
    assert_eq!(seen(&world), files_of(&world, "1.1.0"), "a packed tree comes back whole");
}

// E21
#[test]
fn progress_events_are_json_lines_and_the_percentage_never_falls() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let root = world.root();
    let ran = world
        .run(&[
            "apply",
            text(&next),
            "--root",
            text(&root),
            "--progress",
            "json",
            "--set",
            "service.mode=none",
            "--json",
        ])
        .must(0);
    let events: Vec<Value> = ran.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(events.iter().all(|event| event["format"] == 1 && event["event"].is_string()));
    let percents: Vec<u64> = events.iter().filter_map(|event| event["percent"].as_u64()).collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    let steps: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "step-done")
        .filter_map(|event| event["step"].as_str())
        .collect();
    assert_eq!(steps, ["stage", "restore-point", "quiesce", "switch", "activate", "probe", "confirm"]);
}

#[test]
fn shared_files_outlive_releases_and_edited_config_is_not_lost() {
    for layout in LAYOUTS {
        let world = World::new();
        let spec = "shared = [\"etc/local.conf\"]\n";
        let files: &[(&str, &str)] = &[("etc/local.conf", "default\n")];
        let first = world.build(&Release { spec, files, ..Release::new("1.0.0") });
        let next = world.build(&Release { spec, files, ..Release::new("1.1.0") });
        world.apply(&first, &["--layout", layout]).must(0);
        let local = world.visible().join("etc/local.conf");
        fs::write(&local, "mine\n").expect("written");
        corrupt(&world.visible().join("etc/tool.conf"));
        let ran = world.apply(&next, &[]).must(13);
        assert!(
            ran.stderr.contains("`etc/tool.conf`") && ran.stderr.contains("--replace-changed"),
            "{}",
            ran.stderr
        );
        world.apply(&next, &["--replace-changed"]).must(0);
        assert_eq!(
            fs::read_to_string(world.visible().join("etc/local.conf")).expect("read"),
            "mine\n",
            "{layout}"
        );
        world.on_root(&["rollback"]).must(0);
        assert_eq!(
            fs::read_to_string(world.visible().join("etc/local.conf")).expect("read"),
            "mine\n",
            "{layout}"
        );
    }
}

#[test]
fn layout_is_chosen_once() {
    let world = World::new();
    let next = installed(&world, "exchange");
    for command in ["apply", "plan"] {
        let ran = world.on_root(&[command, text(&next), "--layout", "in-place"]).must(13);
        assert!(ran.stderr.contains("has layout `exchange`, `in-place`"), "{}", ran.stderr);
    }
    // The setting says how roots are laid out that were never used.
    let other = &["--set", "install.layout=in-place"];
    for command in ["status", "verify", "recover", "restore-points"] {
        let ended = if command == "recover" { 3 } else { 0 };
        world.on_root(&[&[command][..], other].concat()).must(ended);
    }
    world.apply(&next, other).must(0);
    assert_eq!(world.status()["layout"], "exchange");
}

#[test]
fn going_back_without_a_name_never_removes_the_package() {
    let world = World::new();
    let next = installed(&world, "versioned");
    let refused = |world: &World| {
        for more in [&["rollback"][..], &["rollback", "--dry-run"]] {
            let ran = world.on_root(more).must(13);
            assert!(ran.stderr.contains("cutover rollback 000001"), "{}", ran.stderr);
        }
        assert_eq!(world.version(), "1.0.0");
    };
    refused(&world);
    world.apply(&next, &[]).must(0);
    world.on_root(&["rollback"]).must(0);
    refused(&world);
    // An update that was killed is undone; whoever goes back then is there.
    let mut child = world.stopped_at("stage", &["apply", text(&next)]);
    child.kill().expect("killed");
    child.wait().expect("ended");
    world.on_root(&["rollback", "--dry-run"]).must(1);
    let ran = world.on_root(&["rollback"]).must(3);
    assert!(ran.stderr.contains("1.0.0 is as it was"), "{}", ran.stderr);
    refused(&world);
    world.on_root(&["rollback", "000001"]).must(0);
    assert_eq!(world.status()["version"], Value::Null);
}

#[test]
fn looking_at_or_recovering_an_unused_root_does_not_choose_its_layout() {
    let world = World::new();
    fs::create_dir(world.root()).expect("made");
    for command in ["recover", "prune", "rollback", "verify"] {
        world.on_root(&[command]).must(3);
    }
    world.on_root(&["status"]).must(0);
    assert_eq!(fs::read_dir(world.root()).map_or(9, Iterator::count), 0);
    world.apply(&world.build_version("1.0.0"), &["--layout", "exchange"]).must(0);
}

#[test]
fn other_packages_are_found_in_their_roots() {
    let world = World::new();
    let storage = World::new();
    storage.apply(&storage.build_version("1.5.0"), &[]).must(0);
    let (tree, _) = world.tree(&Release::new("1.0.0"));
    let spec = world.write("app.toml", "package = \"app\"\nversion = \"1.0.0\"\n[[requires]]\npackage = \"tool\"\nconstraint = \">=1.4.0,<2.0.0\"\n");
    let pki = &stamped().pki;
    let out = world.path("app.cutover");
    world
        .run(&[
            "bundle",
            "create",
            text(&tree),
            "--spec",
            text(&spec),
            "-o",
            text(&out),
            "--sign-key",
            text(&pki.join("signer.key")),
            "--sign-cert",
            text(&pki.join("signer.pem")),
        ])
        .must(0);
    let ran = world.apply(&out, &[]).must(13);
    assert!(ran.stderr.contains("needs package `tool`"), "{}", ran.stderr);
    world.apply(&out, &["--set", &format!("package.roots=[\"{}\"]", storage.root().display())]).must(0);
}

#[test]
fn root_is_looked_at_run_recovered_and_taken_back_whatever_became_of_the_others() {
    let world = World::new();
    let first = world.build(&with_service("1.0.0"));
    world.apply(&first, &[]).must(0);
    let next = world.build(&with_service("1.1.0"));
    world.apply(&next, &[]).must(0);
    let root = world.root();
    world.write("root/cutover.toml", "[package]\nroots = [\"/nonexistent/root\"]\n");
    let refused = world.on_root(&["apply", text(&next)]).must(2);
    assert!(refused.stderr.contains("/nonexistent/root"), "{}", refused.stderr);
    for command in [&["status"][..], &["verify"], &["history"], &["restore-points"]] {
        world.on_root(command).must(0);
    }
    world.on_root(&["recover"]).must(3);
    let supervisor = Supervisor::start(&world);
    status_that(&world, |status| status["service"]["state"] == "ready");
    world.run(&["rollback", "--root", text(&root)]).must(0);
    let status = status_that(&world, |status| status["service"]["state"] == "ready");
    supervisor.end();
    assert_eq!(status["service"]["release"]["version"], "1.0.0", "{status}");
}

#[test]
fn root_whose_path_is_no_text_is_refused_and_not_made() {
    use std::os::unix::ffi::OsStrExt as _;

    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let root = world.dir.path().join(std::ffi::OsStr::from_bytes(b"r\xff"));
    for arguments in [&["apply", text(&bundle)][..], &["run"], &["status"]] {
        let mut command = crate::world::command(&stamped().program, arguments);
        command.arg("--root").arg(&root);
        let ran = finish(command).must(2);
        assert!(ran.stderr.contains("not UTF-8"), "{}", ran.stderr);
    }
    assert!(!root.exists());
}

#[test]
fn command_of_a_probe_ends_with_the_run_that_started_it() {
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let pid = world.path("pid");
    let script = format!("echo $$ > '{0}.new'; mv '{0}.new' '{0}'; exec sleep 600", pid.display());
    let probes = format!("probes.command=[{{ argv = [\"sh\", \"-c\", \"{script}\"], timeout_s = 600 }}]");
    let mut command = world.on_root_command(&["apply", text(&bundle), "--set", &probes]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let started = Instant::now();
    let soon = |what: &str| {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    };
    while !pid.exists() {
        soon("the probe did not begin");
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let id = fs::read_to_string(&pid).expect("an id");
    let stat = Path::new("/proc").join(id.trim()).join("stat");
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        soon("the probe goes on");
    }
}

#[test]
fn history_is_newest_first_limited_and_cleared() {
    let world = World::new();
    let next = installed(&world, "versioned");
    world.apply(&next, &[]).must(0);
    world.on_root(&["rollback"]).must(0);
    let rows = |more: &[&str]| {
        let mut all = vec!["history", "--json"];
        all.extend(more);
        world.on_root(&all).must(0).json()["history"].as_array().expect("a list").clone()
    };
    let all = rows(&[]);
    let actions: Vec<_> = all.iter().map(|row| (row["action"].as_str(), row["to"].as_str())).collect();
    assert_eq!(
        actions,
        [(Some("rollback"), Some("1.0.0")), (Some("update"), Some("1.1.0")), (Some("update"), Some("1.0.0"))]
    );
    assert_eq!(rows(&["--limit", "2"]).len(), 2);
    world.on_root(&["history", "--clear"]).must(0);
    assert!(rows(&[]).is_empty());
}

/// The supervisor of a world; it is told to end when the test does.
struct Supervisor(std::process::Child);

impl Supervisor {
    fn start(world: &World) -> Self {
        let mut command = crate::world::command(&stamped().program, &["run", "--root", text(&world.root())]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started"))
    }

    fn ask(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("told");
    }

    fn end(mut self) {
        self.ask(rustix::process::Signal::TERM);
        assert!(self.0.wait().expect("ended").success());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A release whose service runs and counts as ready after a second.
fn with_service(version: &str) -> Release<'_> {
    Release {
        spec: "[service]\ncommand = [\"bin/tool\"]\nready = \"running\"\n",
        files: &[("bin/tool", "#!/bin/sh\nexec sleep 1000\n")],
        ..Release::new(version)
    }
}

/// Waits for a status of the root with its supervisor.
fn status_that(world: &World, is_it: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let status = world.run(&["status", "--json", "--root", text(&world.root())]).must(0).json();
        if is_it(&status) {
            return status;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The supervisor ends what a killed run left, in a process beside it; nothing runs from a tree in between, and something runs from
/// every other one.
// E5
#[test]
fn supervisor_ends_an_interrupted_update_when_it_starts() {
    for (layout, step, ends_with) in [
        ("in-place", "stage", "1.0.0"),
        ("in-place", "switch", "1.1.0"),
        ("in-place", "probe", "1.1.0"),
        ("in-place", "confirm", "1.1.0"),
        ("versioned", "probe", "1.1.0"),
        ("exchange", "confirm", "1.1.0"),
    ] {
        let world = World::new();
        let first = world.build(&with_service("1.0.0"));
        world.apply(&first, &["--layout", layout]).must(0);
        let next = world.build(&with_service("1.1.0"));
        let mut child = world.stopped_at(step, &["apply", text(&next)]);
        child.kill().expect("killed");
        child.wait().expect("ended");
        let supervisor = Supervisor::start(&world);
        let ended = |status: &Value| status["in_flight"].is_null() && status["service"]["state"] == "ready";
        let status = status_that(&world, ended);
        supervisor.end();
        assert_eq!(status["version"], ends_with, "{layout}, {step}: {status}");
        assert_eq!(status["service"]["release"]["version"], ends_with, "{layout}, {step}: {status}");
        assert_eq!(seen(&world), files_of(&world, ends_with), "{layout}, {step}");
    }
}

#[test]
fn supervisor_that_starts_while_an_update_is_staged_in_place_runs_what_is_current() {
    let world = World::new();
    let first = world.build(&with_service("1.0.0"));
    world.apply(&first, &["--layout", "in-place"]).must(0);
    let next = world.build(&with_service("1.1.0"));
    let mut child = world.stopped_at("stage", &["apply", text(&next)]);
    let supervisor = Supervisor::start(&world);
    let status = status_that(&world, |status| status["service"]["state"] == "ready");
    supervisor.end();
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!status["in_flight"].is_null(), "{status}");
    assert_eq!(status["service"]["release"]["version"], "1.0.0", "{status}");
}

/// `run --replace` lets the program it is called as take over; without a supervisor it says so.
#[test]
fn run_replace_makes_a_newer_program_the_supervisor() {
    let world = World::new();
    installed(&world, "versioned");
    let root = world.root();
    let newer = world.path("newer");
    std::fs::copy(&stamped().program, &newer).expect("copied");
    let replace = || finish(crate::world::command(&newer, &["run", "--replace", "--root", text(&root)]));
    let ran = replace();
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("is not running"), "{}", ran.stderr);

    let mut supervisor = crate::world::command(&stamped().program, &["run", "--root", text(&root)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let started = Instant::now();
    let replaced = loop {
        let ran = replace();
        if ran.code == 0 || started.elapsed() > Duration::from_secs(60) {
            break ran;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let program = std::fs::read_link(format!("/proc/{}/exe", supervisor.id()));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&supervisor),
        rustix::process::Signal::TERM,
    )
    .expect("told");
    assert!(supervisor.wait().expect("ended").success());
    assert_eq!(replaced.code, 0, "{}", replaced.stderr);
    assert_eq!(program.expect("a link"), newer);
}

#[test]
fn status_shape_is_stable() {
    let world = World::new();
    installed(&world, "versioned");
    let mut status = world.status();
    let release = status["release"].as_str().expect("a name").to_owned();
    for key in ["root", "tree", "manifest_sha256", "release"] {
        status[key] = "...".into();
    }
    assert!(release.starts_with("1.0.0-"));
    insta::assert_json_snapshot!(status);
    finish(world.on_root_command(&["status"])).must(0);
}
