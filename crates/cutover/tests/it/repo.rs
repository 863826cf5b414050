//! Repositories through the real binary: set up, publish, list, verify, remove.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::world::{Ran, Release, World, command, exact, finish, has_tool, stamped, text};

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
fn keys_that_cannot_sign_are_told_of_before_anything_changes() {
    let world = World::new();
    let dir = world.path("new");
    let missing = ["--sign-key", "/nonexistent.key", "--sign-cert", "/nonexistent.pem"];
    let keys = world.path("new-keys");
    world.run(&[&["repo", "init", text(&dir), "--keys", text(&keys)], &missing[..]].concat()).must(1);
    assert!(!dir.exists() && !keys.exists());
    let repository = Repository::new(&world);
    let before = exact(&repository.dir);
    repository.run("refresh", &[], &missing).must(1);
    repository.run("rotate-key", &[], &[&["--role", "timestamp"], &missing[..]].concat()).must(1);
    assert_eq!(exact(&repository.dir), before);
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
    std::os::unix::fs::symlink("served", world.path("link")).unwrap();
    fs::create_dir(world.path("served")).unwrap();
    let absolute = world.path("served/keys");
    for (served, keys) in [
        (text(&world.path("served")), text(&absolute)),
        ("served", text(&absolute)),
        ("served", "./served/keys"),
        ("served", "x/../served/keys"),
        ("served", "link/keys"),
        ("link/new", "served/new"),
        (".", "keys"),
        ("served/repository", "served"),
    ] {
        let mut init = command(&stamped().program, &["repo", "init", served, "--keys", keys]);
        init.current_dir(world.dir.path());
        let ran = finish(init).must(2);
        assert!(ran.stderr.contains("must lie apart"), "{}", ran.stderr);
        assert_eq!(fs::read_dir(world.path("served")).unwrap().count(), 0, "{served} {keys}");
    }
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

#[test]
fn deltas_from_the_latest_releases_are_published_and_lead_to_the_same_release() {
    let world = World::new();
    let repository = Repository::new(&world);
    // Text that no compressor can shorten much, changed a little from version to version.
    let content = |version: u64| {
        let mut state = 1u64;
        let mut text = String::new();
        for line in 0..4000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let changed = if line == version * 100 { version } else { 0 };
            text.push_str(&format!("{state:016x} {changed}\n"));
        }
        text
    };
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let mut bundles = Vec::new();
    for (number, version) in ["1.0.0", "1.1.0", "1.2.0"].into_iter().enumerate() {
        let text = content(number as u64);
        let release = Release { files: &[("lib/data", text.as_str())], ..Release::new(version) };
        bundles.push(world.build(&release));
    }
    for (number, bundle) in bundles.iter().enumerate() {
        let signing = ["--json", "--sign-key", text(&key), "--sign-cert", text(&certificate)];
        let published = repository.run("publish", &[text(bundle)], &signing).must(0).json();
        assert_eq!(published["deltas"], number);
    }
    let listed = repository.run("list", &[], &["--json"]).must(0).json();
    assert_eq!(listed["releases"][0]["deltas_from"], serde_json::json!(["1.1.0", "1.0.0"]));
    let report = repository.run("verify", &[], &["--json"]).must(0).json();
    assert_eq!((&report["deltas"], &report["unreferenced"]), (&3.into(), &serde_json::json!([])));

    world.apply(&bundles[0], &[]).must(0);
    let mut deltas: Vec<PathBuf> = Vec::new();
    for directory in fs::read_dir(repository.dir.join("deltas")).unwrap() {
        deltas.extend(fs::read_dir(directory.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    let applied = deltas.iter().filter(|delta| world.apply(delta, &[]).code == 0).count();
    assert!(applied >= 1, "one of them leads from 1.0.0");
}

#[test]
fn a_publisher_killed_at_any_time_leaves_a_repository_that_verifies() {
    let world = World::new();
    let repository = Repository::new(&world);
    let many: Vec<(String, String)> =
        (0..60).map(|number| (format!("share/{number}"), format!("content {number}"))).collect();
    let files: Vec<(&str, &str)> = many.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let (one, two) =
        (world.build_version("1.0.0"), world.build(&Release { files: &files, ..Release::new("1.1.0") }));
    repository.publish(&one).must(0);
    let arguments = ["repo", "publish", text(&repository.dir), text(&two), "--keys", text(&repository.keys)];
    // Later and later, until one run lives long enough; what holds must hold whenever it dies.
    for delay_ms in (0..).step_by(7) {
        let mut child = command(&stamped().program, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().expect("killed");
        let ended = child.wait().expect("waited for");
        let report = repository.run("verify", &[], &["--json"]).must(0).json();
        assert_eq!(report["unreferenced"], serde_json::json!([]), "killed after {delay_ms} ms");
        let listed = versions(&repository.run("list", &[], &["--json"]).must(0));
        assert!(listed == ["1.0.0"] || listed == ["1.1.0", "1.0.0"], "{listed:?}");
        // It ended by itself; with 3 when a run published everything and was killed on its way out.
        if ended.code().is_some() {
            break;
        }
    }
    assert_eq!(versions(&repository.run("list", &[], &["--json"]).must(0)), ["1.1.0", "1.0.0"]);
    // The intents of the dead are taken over, and nothing of them stays.
    repository.run("refresh", &[], &[]).must(0);
    let report = repository.run("verify", &[], &["--json"]).must(0).json();
    assert_eq!((&report["unreferenced"], &report["pending"]), (&serde_json::json!([]), &0.into()));
}

#[test]
fn keys_are_replaced_by_command_and_the_old_ones_end() {
    let world = World::new();
    let repository = Repository::new(&world);
    let one = world.build_version("1.0.0");
    repository.publish(&one).must(0);
    for role in ["timestamp", "targets", "snapshot", "root"] {
        let rotated = repository.run("rotate-key", &[], &["--role", role, "--json"]).must(0).json();
        let retired = repository.keys.join(format!("{role}.key"));
        assert!(Path::new(rotated["new_key"].as_str().expect("a path")).is_file());
        fs::remove_file(retired).unwrap();
    }
    repository.run("verify", &[], &[]).must(0);
    repository.publish(&world.build_version("1.1.0")).must(0);
    repository
        .run("rotate-key", &[], &["--role", "root", "--no-new-key", "--keep-all", "--threshold", "2"])
        .must(2);
}

#[test]
fn a_role_is_signed_by_a_key_behind_a_command() {
    if !has_tool("openssl", "openssl") {
        return;
    }
    let world = World::new();
    let repository = Repository::new(&world);
    // OpenSSL stands for whoever holds the key; any certificate with it will do.
    let pki = &stamped().pki;
    let certificate = pki.join("signer.pem");
    let sign = format!("openssl dgst -sha256 -sign {}", text(&pki.join("signer.key")));
    let elsewhere = ["--key-command", sign.as_str(), "--key-cert", text(&certificate)];
    let rotation =
        [&["--role", "timestamp", "--new-cert", text(&certificate)], elsewhere.as_slice()].concat();
    repository.run("rotate-key", &[], &rotation).must(0);
    fs::remove_file(repository.keys.join("timestamp.key")).unwrap();
    let one = world.build_version("1.0.0");
    repository.publish(&one).must(2);
    repository.run("publish", &[text(&one)], &elsewhere).must(0);
    repository.run("verify", &[], &[]).must(0);
    world.on_root(&["apply", "tool", "--source", text(&repository.dir)]).must(0);
}

#[test]
fn roles_are_signed_by_a_key_in_a_token() {
    let modules = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let tools = [("softhsm2-util", "softhsm2"), ("pkcs11-tool", "opensc"), ("openssl", "openssl")];
    if !tools.iter().all(|(tool, package)| has_tool(tool, package)) {
        return;
    }
    let module =
        modules.into_iter().find(|module| Path::new(module).exists()).expect("it comes with its tool");
    let world = World::new();
    let repository = Repository::new(&world);
    fs::create_dir(world.path("tokens")).expect("made");
    let tokens = format!("directories.tokendir = {}\nlog.level = ERROR\n", text(&world.path("tokens")));
    let configuration = world.write("softhsm2.conf", tokens);
    let tool = |program: &str, arguments: &[&str]| {
        let mut command = command(Path::new(program), arguments);
        command.env("SOFTHSM2_CONF", &configuration);
        finish(command).must(0);
    };
    let pki = &stamped().pki;
    let (key, certificate, der) = (pki.join("signer.key"), pki.join("signer.pem"), world.path("signer.der"));
    let pin = world.write("pin", "4711\n");
    tool(
        "softhsm2-util",
        &["--init-token", "--free", "--label", "roles", "--so-pin", "12345678", "--pin", "4711"],
    );
    let named = ["--label", "online", "--id", "01", "--pin", "4711"];
    tool("softhsm2-util", &[&["--import", text(&key), "--token", "roles"], &named[..]].concat());
    tool("openssl", &["x509", "-in", text(&certificate), "-outform", "DER", "-out", text(&der)]);
    let write = ["--module", module, "--token-label", "roles", "--login", "--write-object", text(&der)];
    tool("pkcs11-tool", &[&write[..], &["--type", "cert"], &named].concat());

    let uri = |pin: &Path| {
        format!("pkcs11:token=roles;object=online?module-path={module}&pin-source=file:{}", text(pin))
    };
    let with_token = |verb: &str, operands: &[&str], flags: &[&str], pin: &Path| {
        let uri = uri(pin);
        let mut all = vec!["repo", verb, text(&repository.dir)];
        all.extend(operands);
        all.extend(["--keys", text(&repository.keys), "--key-pkcs11", &uri]);
        all.extend(flags);
        let mut command = command(&stamped().program, &all);
        command.env("SOFTHSM2_CONF", &configuration);
        finish(command)
    };
    for role in ["timestamp", "targets"] {
        let rotation = ["--role", role, "--new-cert", text(&certificate)];
        with_token("rotate-key", &[], &rotation, &pin).must(0);
        fs::remove_file(repository.keys.join(format!("{role}.key"))).expect("removed");
    }
    let one = world.build_version("1.0.0");
    repository.publish(&one).must(2);
    let wrong = world.write("wrong-pin", "0000\n");
    let refused = with_token("publish", &[text(&one)], &[], &wrong);
    assert!(refused.code != 0 && !refused.stderr.contains("0000"), "{refused:?}");
    with_token("publish", &[text(&one)], &[], &pin).must(0);
    with_token("refresh", &[], &[], &pin).must(0);
    repository.run("verify", &[], &[]).must(0);
    world.on_root(&["apply", "tool", "--source", text(&repository.dir)]).must(0);
    // Back to a file: the token signs the root's change no more than any other key of the role.
    with_token("rotate-key", &[], &["--role", "targets"], &pin).must(0);
    with_token("publish", &[text(&world.build_version("1.1.0"))], &[], &pin).must(0);
    repository.run("verify", &[], &[]).must(0);
}
