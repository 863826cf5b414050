//! Commits that are proven by signed releases: the gate, a host with its key and its release, and the shipper.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover::{
    bundle::{RevocationLists, TrustAnchor, episode::HostKey},
    core::{
        admission::{CommitHash, EpisodeKey, Statement},
        model::Digest,
    },
    host::{disk::RealDisk, node::release_built_from},
    server::gate::{ReleaseTrust, ReleasesSource, Selection, Source as _},
};

use crate::{
    gate::{PATIENCE, Receiver, rows},
    repo::Repository,
    world::{PLAIN, Release, World, command, finish, run, stamped, text},
};

/// Publishes a release that was built from a commit; returns its bundle.
fn publish(repository: &Repository<'_>, version: &str, commit: &str) -> PathBuf {
    let spec = format!("[build]\ncommit = \"{commit}\"");
    let bundle = repository.world.build(&Release { spec: &spec, ..Release::new(version) });
    repository.publish(&bundle).must(0);
    bundle
}

/// One upload; the status and the body of the answer.
fn put(receiver: &Receiver, key: &str, body: &[u8], commit: &str, attestation: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(receiver.address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let (length, digest) = (body.len(), Digest::of(body));
    let head = format!(
        "PUT /v1/episodes/{key} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nX-Code-Commit: {commit}\r\n\
         X-Content-SHA256: {digest}\r\nX-Code-Attestation: {attestation}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    (answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), answer)
}

// gate-1
#[test]
fn commit_is_verified_by_a_release_that_was_signed_for_it_and_by_nothing_else() {
    let world = World::new();
    let repository = Repository::new(&world);
    let commits = ["a", "b"].map(|digit| digit.repeat(40));
    let bundles = [("1.0.0", &commits[0]), ("1.1.0", &commits[1])]
        .map(|(version, commit)| publish(&repository, version, commit));
    for bundle in &bundles {
        world.apply(bundle, &[]).must(0);
    }
    let disk = Arc::new(RealDisk::open(&world.root()).expect("a root"));
    let release = |commit: &str| release_built_from(disk.clone(), commit).expect("looked");
    let releases = commits.each_ref().map(|commit| release(commit).expect("a release"));
    assert_ne!(releases[0], releases[1]);
    assert_eq!(release(&"c".repeat(40)), None);

    let key_file = world.path("host.key");
    let public = run(Path::new(PLAIN), &["ship", "key", text(&key_file), "--json"]).must(0).json();
    let public = public["public"].as_str().expect("a key").to_owned();
    let settings = format!(
        "[gate]\nsource = \"releases\"\n[gate.releases]\nrepository = \"{}\"\ntrust = \"anchor\"\n\
         [gate.attest]\npolicy = \"require\"\nproof = \"release\"\n[gate.attest.keys]\nh = \"{public}\"\n",
        text(&repository.dir)
    );
    let (config, root) = (world.write("gate.toml", settings), world.path("gate"));
    let arguments = ["--config", text(&config), "--root", text(&root)];
    let receiver = Receiver::start_program(&stamped().program, &arguments, &[]);

    let key = HostKey::from_pem(&std::fs::read(&key_file).expect("read")).expect("a key");
    let mut sequence = 1_000_000;
    let mut upload = |episode: &str, commit: &str, release: Option<Digest>| {
        sequence += 1;
        let (name, sha256) = (EpisodeKey::new("h", episode).expect("a key"), Digest::of(b"x"));
        let commit: CommitHash = commit.parse().expect("a commit");
        let said = Statement { commit: &commit, key: &name, sha256, sequence, release };
        put(&receiver, &format!("h/{episode}"), b"x", commit.as_str(), &key.attest(&said))
    };
    let (status, answer) = upload("good", &commits[0], Some(releases[0]));
    assert_eq!(status, 201, "{answer}");
    for (episode, release) in
        [("none", None), ("of-another", Some(releases[1])), ("unknown", Some(Digest::of(b"x")))]
    {
        let (status, answer) = upload(episode, &commits[0], release);
        assert!(status == 403 && answer.contains("release-not-proven"), "{episode}: {answer}");
    }

    // The shipper finds the release by itself.
    let spool = world.path("spool");
    for (episode, commit) in ["old", "new"].iter().zip(&commits) {
        world.write(
            &format!("spool/{episode}/meta.json"),
            format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#),
        );
    }
    let url = format!("http://{}", receiver.address);
    let mut ship = command(
        Path::new(PLAIN),
        &["ship", "run", "--url", &url, "--spool", text(&spool), "--host", "h", "--once"],
    );
    ship.args(["--set", "ship.settle_s=0"]);
    ship.arg("--set").arg(format!("ship.attest_key={}", text(&key_file)));
    ship.arg("--set").arg(format!("ship.attest_root={}", text(&world.root())));
    finish(ship).must(0);
    let rows = rows(&root);
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["h/good", "h/new", "h/old"]);
    for (episode, commit) in [("good", &commits[0]), ("old", &commits[0]), ("new", &commits[1])] {
        let row = &rows[&format!("h/{episode}")][0];
        assert_eq!((row["commit"].as_str(), &row["commit_verified"]), (Some(commit.as_str()), &true.into()));
    }
}

#[test]
fn releases_count_as_far_as_the_anchor_vouches_for_them() {
    let world = World::new();
    let repository = Repository::new(&world);
    let commit = "a".repeat(40);
    publish(&repository, "1.0.0", &commit);
    // The same release in a repository that somebody else has set up.
    let (theirs, keys, pki) = (world.path("theirs"), world.path("their-keys"), world.path("their-pki"));
    run(Path::new(PLAIN), &["pki", "init", text(&pki), "--org", "Somebody"]).must(0);
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let place = [text(&theirs), "--keys", text(&keys)];
    let signing = ["--sign-key", text(&key), "--sign-cert", text(&certificate)];
    world.run(&[&["repo", "init"], &place[..], &signing].concat()).must(0);
    let bundle = world.bundle_path("1.0.0");
    world.run(&["repo", "publish", text(&theirs), text(&bundle), "--keys", text(&keys)]).must(0);

    let check = |program: &Path, directory: &Path, trust: &str, more: &[&str]| {
        let (directory, trust) =
            (format!("gate.releases.repository={}", text(directory)), format!("gate.releases.trust={trust}"));
        let arguments =
            ["gate", "check", &commit, "--set", "gate.source=releases", "--set", &directory, "--set", &trust];
        run(program, &[&arguments[..], more].concat())
    };
    let (ours, plain) = (&stamped().program, Path::new(PLAIN));
    check(ours, &repository.dir, "anchor", &[]).must(0);
    check(ours, &theirs, "directory", &[]).must(0);
    let refused = check(ours, &theirs, "anchor", &[]).must(1);
    assert!(refused.stderr.contains("failed to read `"), "{}", refused.stderr);
    assert!(check(plain, &repository.dir, "anchor", &[]).stderr.contains("no trust anchor"));
    // What nobody has verified proves nothing.
    let unproven = ["--set", "gate.attest.proof=release"];
    let refused = check(ours, &repository.dir, "directory", &unproven).must(2);
    assert!(refused.stderr.contains("gate.attest.proof"), "{}", refused.stderr);
}

#[test]
fn release_whose_signer_was_revoked_admits_nothing_and_a_list_that_ended_is_no_verdict() {
    let world = World::new();
    let repository = Repository::new(&world);
    let commit = "a".repeat(40);
    let bundle = publish(&repository, "1.0.0", &commit);
    let verified = world.run(&["bundle", "verify", text(&bundle), "--json"]).must(0).json();
    let serial = verified["signers"][0]["serial"].as_str().expect("a serial").to_owned();
    let pki = text(&stamped().pki);
    let (good, bad) = (world.path("good.crl"), world.path("bad.crl"));
    world.run(&["pki", "revoke", pki, "--number", "1", "--days", "1", "-o", text(&good)]).must(0);
    world.run(&["pki", "revoke", pki, &serial, "--number", "2", "-o", text(&bad)]).must(0);

    static LATER_H: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
    let clock = || {
        let hours = LATER_H.load(std::sync::atomic::Ordering::SeqCst);
        jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours)
    };
    let anchor = TrustAnchor::parse(&std::fs::read(stamped().pki.join("root.pem")).expect("read"));
    let anchor = anchor.expect("an anchor");
    let source = |list: &Path| {
        let mut lists = RevocationLists::none();
        lists.add(&std::fs::read(list).expect("read")).expect("a list");
        let trust = ReleaseTrust { anchor: anchor.clone(), lists, state: world.path("state"), clock };
        let selection = Selection { package: None, channel: None, minimum: None, last: 0 };
        ReleasesSource::new(repository.dir.clone(), selection, Some(trust))
    };
    let source_of_good = source(&good);
    assert!(source_of_good.read().is_ok());
    let none = source(&bad).read().expect_err("nothing is left").to_string();
    assert!(none.contains("no commits"), "{none}");

    // The list ends, and is renewed; of the latter there is nothing to see here but that the former is not remembered.
    let refresh = |hours: i64| {
        LATER_H.store(hours, std::sync::atomic::Ordering::SeqCst);
        source_of_good.read().map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(refresh(0), Ok(()));
    let ended = refresh(48).expect_err("ended");
    assert!(ended.contains("revocation list"), "{ended}");
    assert_eq!(refresh(0), Ok(()), "no failure is kept");

    // A running receiver takes a new list when it is there.
    let list = world.write("in-use.crl", std::fs::read(&good).expect("read"));
    let settings = format!(
        "[trust-policy]\ncrl = [\"{}\"]\n[gate]\nsource = \"releases\"\n[gate.git]\nttl_s = 1\n[gate.releases]\n\
         repository = \"{}\"\ntrust = \"anchor\"\n",
        text(&list),
        text(&repository.dir)
    );
    let (config, root) = (world.write("gate.toml", settings), world.path("gate"));
    let arguments = ["--config", text(&config), "--root", text(&root)];
    let receiver = Receiver::start_program(&stamped().program, &arguments, &[]);
    assert_eq!(put(&receiver, "h/before", b"x", &commit, "none").0, 201);
    world.write("in-use.crl", std::fs::read(&bad).expect("read"));
    let since = std::time::Instant::now();
    let mut number = 0;
    while put(&receiver, &format!("h/{number}"), b"x", &commit, "none").0 != 503 {
        number += 1;
        assert!(since.elapsed() < PATIENCE, "the new list is not read");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn repository_that_went_back_or_was_left_alone_admits_nothing_new() {
    let world = World::new();
    let repository = Repository::new(&world);
    let commits = ["a", "b"].map(|digit| digit.repeat(40));
    publish(&repository, "1.0.0", &commits[0]);
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp").args(["-a", text(from), text(to)]).status();
        assert!(copied.expect("cp runs").success());
    };
    copy(&repository.dir, &world.path("before"));
    publish(&repository, "1.1.0", &commits[1]);

    let root = std::fs::read(stamped().pki.join("root.pem")).expect("read");
    let anchor = TrustAnchor::parse(&root).expect("an anchor");
    let source = |state: &str, clock: fn() -> jiff::Timestamp| {
        let (lists, state) = (RevocationLists::none(), world.path(state));
        let trust = ReleaseTrust { anchor: anchor.clone(), lists, state, clock };
        let selection = Selection { package: None, channel: None, minimum: None, last: 0 };
        ReleasesSource::new(repository.dir.clone(), selection, Some(trust))
    };
    let [first, second] = commits.each_ref().map(|commit| commit.parse::<CommitHash>().expect("a commit"));
    let known = source("state", jiff::Timestamp::now).read().expect("read");
    assert!(known.contains(&first) && known.contains(&second) && *known.head() == second);
    // A year without a new timestamp: somebody keeps us from the present.
    let later = || jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365);
    let expired = source("aside", later).read().expect_err("refused").to_string();
    assert!(expired.contains("expired"), "{expired}");
    // What was there before would be believed by whoever has not seen more.
    std::fs::rename(&repository.dir, world.path("present")).expect("renamed");
    copy(&world.path("before"), &repository.dir);
    assert!(source("new", jiff::Timestamp::now).read().is_ok());
    assert!(source("state", jiff::Timestamp::now).read().is_err());
}
