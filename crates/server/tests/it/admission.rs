//! Which commits are admitted, and what a client is told when its is not.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use cutover_server::gate::Owner;

use crate::{
    not_run::not_run,
    world::{REMEDIATION, Repository, World, request, sha256},
};

// I1
#[test]
fn head_commit_is_stored_with_file_row_and_commit() {
    let world = World::new();
    let answer = world.put("h/e", b"data").must(201).json();
    assert_eq!(answer["status"], "stored");
    assert_eq!((&answer["sha256"], &answer["size_bytes"]), (&sha256(b"data").into(), &4.into()));
    assert_eq!(answer["commit"], world.head());
    assert_eq!(world.files()["h/e.tar.zst"], b"data");
    let [row] = &world.rows()[..] else { panic!("{}", world.index()) };
    assert_eq!((&row["commit"], &row["schema_version"]), (&world.head().into(), &1.into()));
    assert!(row.get("backfilled").is_none() && row.get("commit_verified").is_none());
    let read = world.get("/v1/episodes/h/e").must(200).json();
    assert_eq!((&read["status"], &read["sha256"]), (&"stored".into(), &row["sha256"]));
}

// I2
#[test]
fn last_commit_of_the_window_is_admitted_and_the_one_before_it_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("clone"), &[]);
    let commits = repository.commits(5);
    let world = World::of(directory, repository, |settings| settings.git.window = 3);
    world.put_of("h/a", b"a", &commits[2]).must(201);
    let refused = world.put_of("h/b", b"b", &commits[1]).must(412);
    let document = refused.json();
    assert_eq!(
        (&document["your_commit"], &document["head_commit"]),
        (&(&*commits[1]).into(), &(&*commits[4]).into())
    );
    assert_eq!((&document["remediation"], &document["status"]), (&REMEDIATION.into(), &412.into()));
    assert_eq!(refused.headers["content-type"], "application/problem+json");
    assert_eq!(refused.headers["connection"], "close");
    let text =
        world.put_with("h/b", b"b", &[("X-Code-Commit", &commits[1]), ("Accept", "text/plain")]).must(412);
    assert!(text.headers["content-type"].starts_with("text/plain"));
    assert!(
        text.body.ends_with(&format!("\n{REMEDIATION}\n")) && text.body.contains(&commits[4]),
        "{}",
        text.body
    );
    assert_eq!(world.files().len(), 1);
}

// I3 I20 I21
#[test]
fn wrong_commit_header_is_refused_with_the_remedy_before_the_body_is_read() {
    let world = World::new();
    let head = world.head();
    let other = world.repository.git(&["rev-parse", "HEAD~1"]);
    let (short, long, sha256_long) = (&head[1..], format!("{head}0"), format!("{head}{}", &head[..24]));
    let not_hex = head.replace(|c: char| c.is_ascii_digit(), "g");
    let list = format!("{head}, {head}");
    for value in
        ["", short, &long, &sha256_long, &not_hex, &list, "HEAD", "--all", "-n1", "main..HEAD", "$(id)"]
    {
        let refused = world.put_of("h/e", b"x", value).must(400);
        assert_eq!(refused.json()["remediation"], REMEDIATION, "{value}");
    }
    for headers in [
        vec![],
        vec![("X-Code-Commit", &*head), ("X-Code-Commit", &*head)],
        vec![("X-Code-Commit", &*head), ("X-Cis490-Code-Commit", &*other)],
    ] {
        assert_eq!(
            world.put_with("h/e", b"x", &headers).must(400).json()["remediation"],
            REMEDIATION,
            "{headers:?}"
        );
    }
    world.put_with("h/1", b"x", &[("X-Code-Commit", &format!("  {head}\t"))]).must(201);
    world.put_with("h/2", b"x", &[("X-Cis490-Code-Commit", &head)]).must(201);
    world.put_with("h/3", b"x", &[("x-code-commit", &head), ("X-Cis490-Code-Commit", &head)]).must(201);
    assert_eq!(world.rows().len(), 3);
}

// I4
#[test]
fn upper_case_commit_is_stored_in_lower_case() {
    let world = World::new();
    world.put_of("h/e", b"x", &world.head().to_uppercase()).must(201);
    assert_eq!(world.rows()[0]["commit"], world.head());
}

// I5
#[test]
fn new_commit_is_refused_while_the_set_is_fresh_and_admitted_without_restart() {
    let mut world = World::with(|settings| settings.git.ttl_s = 3600);
    let new = world.repository.commit("new");
    world.put_of("h/e", b"x", &new).must(412);
    world.set(|settings| settings.git.ttl_s = 1);
    world.until("the new commit is admitted", || world.put_of("h/e", b"x", &new).status < 300);
}

// I6
#[test]
fn set_at_hand_is_used_after_the_repository_is_gone() {
    let world = World::new();
    let head = world.head();
    std::fs::remove_dir_all(&world.repository.path).unwrap();
    world.until("git has failed", || world.metric("cutover_gate_source_failures") > 1.0);
    world.put_of("h/e", b"x", &head).must(201);
    world.put_of("h/f", b"x", &"0".repeat(40)).must(412);
}

// I7
#[test]
fn without_a_set_nothing_is_admitted_nothing_refused_for_good_and_all_are_told_to_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository { path: directory.path().join("clone") };
    let world = World::of(directory, repository, |_| {});
    for commit in ["0".repeat(40), "a".repeat(40)] {
        let refused = world.put_of("h/e", b"x", &commit).must(503);
        assert!(refused.headers["retry-after"].parse::<u64>().unwrap() > 0);
    }
    world.put_of("h/e", b"x", "bad").must(400);
    assert_eq!(world.get("/healthz").must(503).json()["status"], "commits-unknown");
    // It comes to life without a restart.
    let repository = Repository::new(&world.repository.path, &[]);
    let head = repository.commit("first");
    world.until("the first set is there", || world.put_of("h/e", b"x", &head).status == 201);
    world.get("/healthz").must(200);
}

// I7: a set that is older than `max_stale` is none.
#[test]
fn set_that_got_too_old_is_not_judged_by() {
    let mut world = World::new();
    let head = world.head();
    std::fs::remove_dir_all(&world.repository.path).unwrap();
    world.set(|settings| settings.git.max_stale_s = 0);
    world.until("the set is too old", || world.put_of("h/e", b"x", &"0".repeat(40)).status == 503);
    world.put_of("h/e", b"x", &head).must(503);
}

// I8
#[test]
fn gate_that_is_off_takes_data_without_a_commit_and_one_that_is_closed_takes_none() {
    let mut world = World::with(|settings| settings.enabled = false);
    world.put_with("h/none", b"x", &[]).must(201);
    world.put_of("h/bad", b"x", "bad").must(201);
    world.put_of("h/old", b"x", &"0".repeat(40)).must(201);
    let rows = world.rows();
    assert!(rows[0].get("commit").is_none() && rows[1].get("commit").is_none());
    world.set(|settings| settings.closed = true);
    assert_eq!(world.put("h/closed", b"x").must(503).json()["error"], "gate-closed");
    world.set(|settings| (settings.closed, settings.enabled) = (false, true));
    world.until("the set is read", || world.put_with("h/none2", b"x", &[]).status == 400);
    world.until("the gate judges again", || world.put("h/good", b"x").status < 300);
}

// I22
#[test]
fn window_beyond_the_history_and_a_shallow_clone_know_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Repository::new(directory.path().join("origin"), &[]);
    let commits = origin.commits(4);
    let url = format!("file://{}", origin.path.display());
    origin.git(&["clone", "--quiet", "--depth=2", &url, directory.path().join("clone").to_str().unwrap()]);
    let clone = Repository { path: directory.path().join("clone") };
    let world = World::of(directory, clone, |settings| settings.git.window = 1_000_000);
    world.put_of("h/3", b"x", &commits[3]).must(201);
    world.put_of("h/2", b"x", &commits[2]).must(201);
    world.put_of("h/1", b"x", &commits[1]).must(412);
    assert_eq!(world.get("/v1/head").must(200).json()["known_commits"], 2);
}

// I20: 64 digits are right where commits have them.
#[test]
fn sha256_repository_takes_64_digits_and_no_40() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("clone"), &["--object-format=sha256"]);
    let head = repository.commit("a");
    let world = World::of(directory, repository, |_| {});
    assert_eq!(head.len(), 64);
    world.put_of("h/e", b"x", &head).must(201);
    world.put_of("h/f", b"x", &head[..40]).must(400);
}

/// A git that notes each start and then hangs, with a child of its own.
fn hanging_git(directory: &Path) -> std::path::PathBuf {
    let program = directory.join("hanging-git");
    let script = format!(
        "#!/bin/sh\necho start >> {0}/starts\nsleep 3600 &\necho $! >> {0}/children\nwait\n",
        directory.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

// I23 gate-3 gate-6
#[test]
fn hanging_git_is_started_once_at_a_time_stopped_at_its_limit_and_waited_for_by_nobody() {
    let mut world = World::new();
    let head = world.head();
    let program = hanging_git(world.directory.path());
    world.set(|settings| (settings.git.program, settings.git.time_limit_s) = (program, 3600));
    world.until("git hangs", || world_file(&world, "starts").exists());
    std::thread::scope(|scope| {
        for thread in 0..20 {
            let (world, head) = (&world, &head);
            scope.spawn(move || {
                for number in 0..50 {
                    world.put_of(&format!("h/{thread}-{number}"), b"x", head).must(201);
                }
            });
        }
    });
    let starts_now = std::fs::read_to_string(world_file(&world, "starts")).unwrap().lines().count();
    assert_eq!(starts_now, 1, "a thousand requests started {starts_now} gits");
    assert_eq!(world.rows().len(), 1000);
}

fn world_file(world: &World, name: &str) -> std::path::PathBuf {
    world.directory.path().join(name)
}

// I23: at the limit, git and what it started are killed.
#[test]
fn git_over_its_limit_is_killed_with_its_children() {
    let world = World::with(|settings| {
        let directory = settings.root.parent().unwrap().to_owned();
        settings.git.program = hanging_git(&directory);
        settings.git.time_limit_s = 1;
    });
    world.until("git was stopped", || world.metric("cutover_gate_source_failures") >= 1.0);
    let children = std::fs::read_to_string(world_file(&world, "children")).unwrap();
    let child = children.lines().next().unwrap().to_owned();
    world.until("its child is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    });
    world.put_of("h/e", b"x", &"0".repeat(40)).must(503);
}

// I24
#[test]
fn commit_that_a_forced_push_or_another_branch_dropped_is_refused() {
    let world = World::new();
    let dropped = world.head();
    world.repository.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    world.repository.commit("other");
    world.until("the dropped commit is refused", || world.put_of("h/e", b"x", &dropped).status == 412);
    let on_main = world.head();
    world.repository.git(&["switch", "--quiet", "-c", "side", "HEAD~1"]);
    world.until("the other branch counts", || world.put_of("h/f", b"x", &on_main).status == 412);
}

// I24: all sides of merges count, in the order of git log; only the branch itself where that is asked for.
#[test]
fn sides_of_merges_count_unless_only_the_branch_does() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("clone"), &[]);
    repository.commit("base");
    repository.git(&["switch", "--quiet", "-c", "side"]);
    let side = repository.commit("side");
    repository.git(&["switch", "--quiet", "main"]);
    repository.commit("main");
    repository.git(&["merge", "--quiet", "--no-ff", "-m", "merge", "side"]);
    let mut world = World::of(directory, repository, |_| {});
    world.put_of("h/1", b"x", &side).must(201);
    world.set(|settings| settings.git.order = cutover_core::admission::Order::FirstParent);
    world.until("only the branch counts", || world.put_of("h/2", b"x", &side).status == 412);
}

// I25
#[test]
fn clone_of_another_owner_is_refused_where_that_is_asked_for_and_the_set_at_hand_stays() {
    if !rustix::process::geteuid().is_root() {
        not_run("clone_of_another_owner: only root can give a clone to another user");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("clone"), &[]);
    let head = repository.commit("a");
    give_away(&repository.path);
    let mut world = World::of(directory, repository, |settings| settings.git.owner = Owner::Own);
    world.put_of("h/e", b"x", &head).must(503);
    world.set(|settings| settings.git.owner = Owner::Any);
    world.until("anybody's clone is read", || world.put_of("h/e", b"x", &head).status < 300);
    let failures = world.metric("cutover_gate_source_failures");
    world.set(|settings| settings.git.owner = Owner::Own);
    world.until("git refuses again", || world.metric("cutover_gate_source_failures") > failures);
    world.put_of("h/f", b"x", &head).must(201);
}

fn give_away(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            give_away(&entry.path());
        }
        std::os::unix::fs::lchown(entry.path(), Some(65534), Some(65534)).unwrap();
    }
    std::os::unix::fs::lchown(path, Some(65534), Some(65534)).unwrap();
}

// gate-4
#[test]
fn clone_that_names_programs_runs_none() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("clone"), &[]);
    let head = repository.commit("a");
    let canary = directory.path().join("ran");
    let program = directory.path().join("planted");
    std::fs::write(&program, format!("#!/bin/sh\necho $0 $@ >> {}\n", canary.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let planted = program.to_str().unwrap();
    for key in [
        "core.fsmonitor",
        "core.pager",
        "pager.log",
        "core.sshCommand",
        "core.askPass",
        "core.editor",
        "gpg.program",
        "credential.helper",
        "diff.external",
        "core.gitProxy",
        "core.alternateRefsCommand",
        "filter.x.smudge",
        "diff.x.textconv",
    ] {
        repository.git(&["config", key, planted]);
    }
    for (key, value) in [
        ("log.showSignature", "true"),
        ("log.mailmap", "true"),
        ("alias.log", &*format!("!{planted}")),
        ("core.hooksPath", directory.path().to_str().unwrap()),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", &*format!("ext::{planted}")),
        ("remote.origin.promisor", "true"),
        ("format.pretty", "%H planted"),
    ] {
        repository.git(&["config", key, value]);
    }
    for hook in ["post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"] {
        std::fs::copy(&program, directory.path().join(hook)).unwrap();
        std::fs::copy(&program, repository.path.join(".git/hooks").join(hook)).unwrap();
    }
    // Another repository around it that would answer, too.
    let world = World::of(directory, repository, |_| {});
    world.put_of("h/e", b"x", &head).must(201);
    assert!(!canary.exists(), "ran: {}", std::fs::read_to_string(&canary).unwrap_or_default());
}

#[test]
fn directory_inside_a_repository_is_none_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let outer = Repository::new(directory.path().join("outer"), &[]);
    let head = outer.commit("a");
    let inner = outer.path.join("inner");
    std::fs::create_dir(&inner).unwrap();
    let world = World::of(directory, Repository { path: inner }, |_| {});
    world.put_of("h/e", b"x", &head).must(503);
}

// I29
#[test]
fn old_commit_is_refused_even_for_what_is_stored() {
    let world = World::new();
    world.put("h/e", b"x").must(201);
    world.put_of("h/e", b"x", &"0".repeat(40)).must(412);
    world.put("h/e", b"x").must(200);
}

#[test]
fn decision_is_given_alone_for_servers_in_front_of_others() {
    let world = World::new();
    let ask = |path: &str, commit: &str| world.send(&request("GET", path, &[("X-Code-Commit", commit)], b""));
    let admitted = ask("/v1/admission", &world.head()).must(200);
    assert_eq!(admitted.headers["x-admitted-commit"], world.head());
    assert_eq!(ask("/v1/admission", &"0".repeat(40)).must(412).json()["remediation"], REMEDIATION);
    let refused = ask("/v1/admission?refusal=403", &"0".repeat(40)).must(403);
    assert_eq!(refused.headers["x-admission-status"], "412");
    assert_eq!(ask("/v1/admission?refusal=403", "bad").must(403).headers["x-admission-status"], "400");
    assert_eq!(world.metric("cutover_gate_decisions_total{outcome=\"not-accepted\"}"), 2.0);
}

#[test]
fn decision_is_given_for_requests_as_envoys_ext_authz_sends_them() {
    let world = World::new();
    // Its HTTP service with `path_prefix = "/v1/admission"`: method and path of what it asks about, and no body.
    let ask = |method: &str, commit: &str| {
        let headers = [("X-Code-Commit", commit), ("Content-Length", "0")];
        world.send(&request(method, "/v1/admission/upload/a%20b?x=1", &headers, b""))
    };
    for method in ["GET", "PUT", "POST", "DELETE"] {
        ask(method, &world.head()).must(200);
        assert_eq!(ask(method, &"0".repeat(40)).must(412).json()["remediation"], REMEDIATION);
    }
}

#[test]
fn settings_that_cannot_be_used_change_nothing() {
    let world = World::new();
    let mut settings = world.settings.clone();
    settings.git.window = 0;
    assert!(world.try_set(settings).is_err());
    world.put("h/e", b"x").must(201);
}
