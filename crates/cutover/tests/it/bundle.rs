//! Creating, signing, verifying, inspecting and unpacking bundles.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixListener},
    path::Path,
};

use crate::world::{PLAIN, Ran, Release, World, command, finish, has_tool, run, snapshot, stamped, text};

fn create(world: &World, tree: &Path, spec: &Path, more: &[&str]) -> Ran {
    let out = world.path("out.cutover");
    let mut all = vec!["bundle", "create", text(tree), "--spec", text(spec), "-o", text(&out)];
    all.extend(more);
    world.run(&all)
}

#[test]
fn release_survives_create_sign_verify_and_extract() {
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let verified = world.run(&["bundle", "verify", text(&bundle), "--json"]).must(0).json();
    assert_eq!((&verified["verified"], &verified["version"]), (&true.into(), &"1.0.0".into()));
    assert_eq!(verified["signers"].as_array().map(Vec::len), Some(1));
    let out = world.path("unpacked");
    world.run(&["bundle", "extract", text(&bundle), "-o", text(&out)]).must(0);
    assert_eq!(snapshot(&out), snapshot(&world.path("tree-1.0.0")));
    world.run(&["bundle", "extract", text(&bundle), "-o", text(&out)]).must(2);
}

#[test]
fn equal_input_gives_equal_bytes() {
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let unsigned = |name: &str, epoch: &str| {
        let out = world.path(name);
        let arguments = ["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&out)];
        let mut command = command(Path::new(PLAIN), &arguments);
        command.env("SOURCE_DATE_EPOCH", epoch);
        let ran = finish(command).must(0);
        assert!(ran.stderr.contains("not signed"), "{}", ran.stderr);
        fs::read(out).expect("read")
    };
    assert_eq!(unsigned("a", "1700000000"), unsigned("b", "1700000000"));
    assert_ne!(unsigned("a", "1700000000"), unsigned("b", "1700000001"));
    let shown = world.run(&["bundle", "inspect", text(&world.path("a")), "--json"]).must(0).json();
    assert_eq!(shown["manifest"]["released_at"], "2023-11-14T22:13:20Z");
    create(&world, &tree, &spec, &["--released-at", "yesterday"]).must(2);
}

#[test]
fn release_never_holds_what_it_is_made_with() {
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let (inside, key) = (tree.join("out.cutover"), tree.join("signer.key"));
    let pki = &stamped().pki;
    let create = |output: &Path, more: &[&str]| {
        let all = ["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(output)];
        world.run(&[&all, more].concat())
    };
    create(&inside, &[]).must(0);
    let before = fs::read(&inside).expect("read");
    assert!(create(&inside, &[]).must(2).stderr.contains("out.cutover"));
    assert_eq!(fs::read(&inside).expect("read"), before);
    fs::remove_file(&inside).expect("removed");
    fs::copy(pki.join("signer.key"), &key).expect("copied");
    let certificate = pki.join("signer.pem");
    let signing = ["--sign-key", text(&key), "--sign-cert", text(&certificate)];
    assert!(create(&world.path("x"), &signing).must(2).stderr.contains("signer.key"));
    assert!(!world.path("x").exists());
}

#[test]
fn bundle_that_goes_to_stdout_has_it_for_itself() {
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let arguments = ["bundle", "create", text(&tree), "--spec", text(&spec), "-o", "/dev/stdout"];
    let mut child = command(Path::new(PLAIN), &arguments);
    let ran = child.stdout(std::process::Stdio::piped()).output().expect("ran");
    assert!(ran.status.success());
    let out = world.write("piped.cutover", &ran.stdout);
    let whole = world.run(&["bundle", "inspect", text(&out)]).must(0);
    assert!(whole.stdout.contains("1.0.0"), "{}", whole.stdout);
    assert!(String::from_utf8_lossy(&ran.stderr).contains("/dev/stdout: tool 1.0.0"));
}

#[test]
fn kinds_follow_looks_and_globs() {
    let world = World::new();
    let release = Release {
        spec: "[kinds]\ndata = [\"bin/data-*\"]\nconfig = [\"*.ini\"]\n",
        files: &[("bin/data-1", "x"), ("my.ini", "y"), ("README", "z")],
        ..Release::new("1.0.0")
    };
    let bundle = world.build(&release);
    let manifest =
        world.run(&["bundle", "inspect", text(&bundle), "--json"]).must(0).json()["manifest"].take();
    let kinds: Vec<String> = manifest["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| {
            format!(
                "{} {}",
                file["path"].as_str().unwrap_or_default(),
                file["kind"].as_str().unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "README data",
            "bin/data-1 data",
            "bin/tool executable",
            "etc/tool.conf config",
            "lib/libsame.so.1 library",
            "my.ini config",
            "share/version data"
        ]
    );
    let (tree, spec) = world.tree(&Release {
        spec: "[kinds]\ndata = [\"bin/*\"]\nconfig = [\"bin/t*\"]\n",
        ..Release::new("2.0.0")
    });
    let ran = create(&world, &tree, &spec, &[]).must(2);
    assert!(ran.stderr.contains("`bin/tool` is matched by the globs of two kinds"), "{}", ran.stderr);
}

#[test]
fn excluded_files_and_empty_directories_are_left_out() {
    let world = World::new();
    let release = Release {
        spec: "exclude = [\"**/*.tmp\", \"build\"]\n",
        files: &[("share/x.tmp", "x"), ("build/log", "y")],
        ..Release::new("1.0.0")
    };
    let (tree, spec) = world.tree(&release);
    fs::create_dir(tree.join("empty")).expect("made");
    let ran = create(&world, &tree, &spec, &["--json"]).must(0);
    assert_eq!(ran.json()["files"], 4);
    assert!(ran.stderr.contains("`empty` is an empty directory"), "{}", ran.stderr);
}

#[test]
fn what_no_release_may_carry_is_refused() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 6] = [
        (
            "set-id",
            |tree| {
                fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o4755)).expect("set")
            },
            "4755",
        ),
        ("socket", |tree| drop(UnixListener::bind(tree.join("share/socket")).expect("bound")), "a socket"),
        (
            "name",
            |tree| fs::write(tree.join(OsStr::from_bytes(b"share/\xff")), "").expect("written"),
            "not UTF-8",
        ),
        ("reserved", |tree| fs::create_dir_all(tree.join(".cutover/x")).expect("made"), "reserved"),
        (
            "outside",
            |tree| std::os::unix::fs::symlink("../../etc/passwd", tree.join("share/link")).expect("linked"),
            "outside the release",
        ),
        ("case", |tree| fs::write(tree.join("share/VERSION"), "").expect("written"), "collides"),
    ];
    for (name, spoil, words) in cases {
        let world = World::new();
        let (tree, spec) = world.tree(&Release::new("1.0.0"));
        spoil(&tree);
        let ran = create(&world, &tree, &spec, &[]).must(16);
        assert!(ran.stderr.contains(words), "{name}: {}", ran.stderr);
        assert!(!world.path("out.cutover").exists(), "{name}");
    }
}

#[test]
fn specification_errors_name_line_and_suggestion() {
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    for (content, words) in [
        (
            "package = \"tool\"\nversoin = \"1.0.0\"\n",
            "spec.toml:2: unknown key `versoin`, did you mean `version`?",
        ),
        ("package = \"tool\"\nversion = \"1.0\"\n", "spec.toml:2: `version`: `1.0` is not a version"),
        ("version = \"1.0.0\"\n", "missing field `package`"),
        ("package = \"tool\"\n", "pass --release-version"),
    ] {
        let bad = world.write("spec.toml", content);
        let ran = create(&world, &tree, &bad, &[]).must(2);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    create(&world, &tree, &spec, &["--release-version", "2.0.0", "--json"]).must(0);
    let ran = create(&world, &tree, &world.path("none.toml"), &[]).must(2);
    assert!(ran.stderr.contains("--spec") && !ran.stderr.contains("config check"), "{}", ran.stderr);
}

#[test]
fn threshold_needs_that_many_signers() {
    let world = World::new();
    let (pki, program) = (world.path("pki"), world.path("two"));
    let plain = |arguments: &[&str]| run(Path::new(PLAIN), arguments);
    plain(&["pki", "init", text(&pki), "--org", "Tests"]).must(0);
    plain(&["pki", "issue", text(&pki), "--org", "Tests", "--name", "second"]).must(0);
    plain(&["pki", "init", text(&pki), "--org", "Tests"]).must(2);
    let ran = plain(&["pki", "issue", text(&pki), "--org", "Tests", "--name", "x", "--days", "3651"]).must(2);
    // A day less once a second has passed since the root was made.
    let tells = ["pass --days 3650,", "pass --days 3649,"].iter().any(|hint| ran.stderr.contains(hint));
    assert!(ran.stderr.contains("outlive its root") && tells, "{}", ran.stderr);
    assert!(!pki.join("x.key").exists());
    let root = pki.join("root.pem");
    plain(&["trust", "embed", "--anchor", text(&root), "--threshold", "2", "-o", text(&program)]).must(0);
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let file = |name: &str| text(&pki.join(name)).to_owned();
    let (key, certificate) = (file("signer.key"), file("signer.pem"));
    create(&world, &tree, &spec, &["--sign-key", &key, "--sign-cert", &certificate]).must(0);
    let bundle = world.path("out.cutover");
    let ran = run(&program, &["bundle", "verify", text(&bundle), "--json"]).must(11);
    assert_eq!(ran.json()["error"]["code"], "trust.signer-count");
    let (key, certificate) = (file("second.key"), file("second.pem"));
    plain(&["bundle", "sign", text(&bundle), "--add", "--sign-key", &key, "--sign-cert", &certificate])
        .must(0);
    let verified = run(&program, &["bundle", "verify", text(&bundle), "--json"]).must(0).json();
    assert_eq!(verified["signers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn revoked_signer_is_refused_once_a_list_is_configured() {
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let verified = world.run(&["bundle", "verify", text(&bundle), "--json"]).must(0).json();
    let serial = verified["signers"][0]["serial"].as_str().expect("a serial").to_owned();
    let pki = text(&stamped().pki);
    let (good, bad) = (world.path("good.crl"), world.path("bad.crl"));
    world.run(&["pki", "revoke", pki, "--number", "1", "-o", text(&good)]).must(0);
    world.run(&["pki", "revoke", pki, &serial, "--number", "2", "-o", text(&bad)]).must(0);
    let with = |list: &Path| {
        let set = format!("trust-policy.crl=[\"{}\"]", list.display());
        world.run(&["bundle", "verify", text(&bundle), "--set", &set, "--json"])
    };
    with(&good).must(0);
    assert_eq!(with(&bad).must(11).json()["error"]["code"], "trust.revoked");
    with(&world.path("none.crl")).must(11);
    with(&world.write("wrong.crl", "not a list")).must(11);
}

#[test]
fn external_command_signs() {
    if !has_tool("openssl", "openssl") {
        return;
    }
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    let sign = format!(
        "test \"$CUTOVER_SCHEME\" = ecdsa-p256-sha256 && openssl dgst -sha256 -sign {}",
        key.display()
    );
    create(&world, &tree, &spec, &["--sign-command", &sign, "--sign-cert", text(&certificate)]).must(0);
    world.run(&["bundle", "verify", text(&world.path("out.cutover"))]).must(0);
    let two = ["--sign-command", &sign, "--sign-cert", text(&certificate), "--sign-cert", text(&certificate)];
    let ran = create(&world, &tree, &spec, &two).must(2);
    assert!(ran.stderr.contains("one --sign-cert"), "{}", ran.stderr);
    let token = [&["--pkcs11", "pkcs11:token=none"], &two[2..]].concat();
    let ran = create(&world, &tree, &spec, &token).must(2);
    assert!(ran.stderr.contains("one --sign-cert"), "{}", ran.stderr);
    let ran = create(&world, &tree, &spec, &["--sign-command", "exit 3", "--sign-cert", text(&certificate)])
        .must(1);
    assert!(ran.stderr.contains("`exit 3` ended with"), "{}", ran.stderr);
    // What the command writes is checked before anybody gets it.
    create(&world, &tree, &spec, &["--sign-command", "echo nonsense", "--sign-cert", text(&certificate)])
        .must(2);
}

#[test]
fn key_of_another_certificate_is_refused() {
    let world = World::new();
    let (tree, spec) = world.tree(&Release::new("1.0.0"));
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("root.key"), pki.join("signer.pem"));
    let ran =
        create(&world, &tree, &spec, &["--sign-key", text(&key), "--sign-cert", text(&certificate)]).must(2);
    assert!(ran.stderr.contains("does not belong to the certificate"), "{}", ran.stderr);
    assert!(!world.path("out.cutover").exists());
}

#[test]
fn inspecting_shows_claims_as_claims() {
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let ran = run(Path::new(PLAIN), &["bundle", "inspect", text(&bundle)]).must(0);
    assert!(ran.stdout.contains("NOT VERIFIED"), "{}", ran.stdout);
    let raw = run(Path::new(PLAIN), &["bundle", "inspect", text(&bundle), "--manifest"]).must(0).stdout;
    assert!(raw.starts_with("{\n") && raw.contains("\"package\": \"tool\""), "{raw}");
}

#[test]
fn manifest_is_printed_byte_by_byte() {
    let world = World::new();
    let bytes = fs::read(world.build_version("1.0.0")).expect("read");
    let length = u32::from_be_bytes(bytes[8..12].try_into().expect("four")) as usize;
    let (header, rest) = (&bytes[..16], &bytes[16..]);
    // Without the newline at its end, with several, and with what no manifest has.
    for end in [&b""[..], b"\n\n", b"\xff\x1b[31m"] {
        let mut manifest = rest[..length].trim_ascii_end().to_owned();
        manifest.extend(end);
        let mut other = header.to_owned();
        other[8..12].copy_from_slice(&(manifest.len() as u32).to_be_bytes());
        other.extend(&manifest);
        other.extend(&rest[length..]);
        let bundle = world.write("other.cutover", other);
        let mut inspect = command(Path::new(PLAIN), &["bundle", "inspect", text(&bundle), "--manifest"]);
        let printed = inspect.output().expect("started");
        assert!(printed.status.success());
        assert_eq!(printed.stdout, manifest);
    }
}

#[test]
fn private_keys_are_readable_by_their_owner_only() {
    for name in ["root.key", "signer.key"] {
        let mode = fs::metadata(stamped().pki.join(name)).expect("looked at").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
