//! Whatever is refused leaves the root as it was, with the documented exit code and the same one in a dry run.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cutover::{
    bundle::{
        MAGIC,
        pki::{Authority, Validity},
        signer::{CertificateChain, FileSigner},
    },
    core::model::Instant,
};

use crate::world::{
    PLAIN, Release, World, command, exact, finish, has_tool, now, run, signer, stamped, text,
};

/// A bundle's three parts.
struct Parts {
    manifest: Vec<u8>,
    signature: Vec<u8>,
    payload: Vec<u8>,
}

impl Parts {
    fn read(path: &std::path::Path) -> Self {
        let bytes = fs::read(path).expect("read");
        let length = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
        let (manifest, signature) = (length(8), length(12));
        let (head, payload) = bytes[16..].split_at(manifest + signature);
        Self {
            manifest: head[..manifest].to_vec(),
            signature: head[manifest..].to_vec(),
            payload: payload.to_vec(),
        }
    }

    /// The same with an edited manifest and a signature that holds: what a compromised signer could make.
    fn edited(mut self, edit: impl FnOnce(&mut serde_json::Value)) -> Self {
        let mut manifest: serde_json::Value = serde_json::from_slice(&self.manifest).expect("JSON");
        edit(&mut manifest);
        self.manifest = serde_json::to_vec(&manifest).expect("JSON");
        self.signature = cutover::bundle::sign_manifest(&self.manifest, &[&signer()], now()).expect("signed");
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let length = |part: &[u8]| (part.len() as u32).to_be_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(length(&self.manifest));
        bytes.extend(length(&self.signature));
        bytes.extend(&self.manifest);
        bytes.extend(&self.signature);
        bytes.extend(&self.payload);
        bytes
    }
}

/// A root with 1.0.0, and 1.1.0 beside it.
fn world() -> (World, PathBuf) {
    let world = World::new();
    world.apply(&world.build_version("1.0.0"), &[]).must(0);
    let next = world.build_version("1.1.0");
    (world, next)
}

/// Applies for real and dry, and demands that both are refused alike and nothing has changed.
#[track_caller]
fn refused(world: &World, bundle: &std::path::Path, code: i32, words: &str) {
    let before: BTreeMap<String, String> = exact(&world.root());
    for more in [&["--json"][..], &["--json", "--dry-run"]] {
        let ran = world.apply(bundle, more).must(code);
        let error = ran.json()["error"].clone();
        assert_eq!(error["exit_code"], code);
        assert!(ran.stderr.contains(words), "no `{words}` in:\n{}", ran.stderr);
        assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    }
    let mut after = exact(&world.root());
    // Taking the lock writes who holds it; nothing else may change.
    after.insert(".cutover/lock".to_owned(), before[".cutover/lock"].clone());
    assert_eq!(after, before);
}

// M7, M8, E3
#[test]
fn bundle_that_is_not_trusted_is_refused_before_any_write() {
    let (world, next) = world();
    let good = || Parts::read(&next);
    let unsigned = Parts { signature: Vec::new(), ..good() };
    refused(&world, &world.write("unsigned", unsigned.bytes()), 11, "is not signed");
    let mut altered = good();
    let middle = altered.manifest.len() / 2;
    altered.manifest[middle] ^= 1;
    refused(&world, &world.write("altered", altered.bytes()), 11, "not the one that was signed");
    let mut signature = good();
    let last = signature.signature.len() - 1;
    signature.signature[last] ^= 1;
    refused(&world, &world.write("signature", signature.bytes()), 11, "refused");

    let other = world.path("other-pki");
    run(std::path::Path::new(PLAIN), &["pki", "init", text(&other), "--org", "Strangers"]).must(0);
    let (tree, spec) = world.tree(&Release::new("1.3.0"));
    let stranger = world.path("stranger.cutover");
    world
        .run(&[
            "bundle",
            "create",
            text(&tree),
            "--spec",
            text(&spec),
            "-o",
            text(&stranger),
            "--sign-key",
            text(&other.join("signer.key")),
            "--sign-cert",
            text(&other.join("signer.pem")),
        ])
        .must(0);
    refused(&world, &stranger, 11, "not trusted");
}

/// As [`refused`] with exit code 11, for this reason.
#[track_caller]
fn not_trusted(world: &World, bundle: &std::path::Path, reason: &str, words: &str) {
    let told = world.apply(bundle, &["--json", "--dry-run"]).must(11).json();
    assert_eq!(told["error"]["code"], reason);
    refused(world, bundle, 11, words);
}

// M8
#[test]
fn bundle_by_an_expired_certificate_is_refused_before_any_write() {
    let (world, next) = world();
    let pem = |name: &str| fs::read_to_string(stamped().pki.join(name)).expect("read");
    let root = Authority::from_pem(&pem("root.pem"), &pem("root.key")).expect("the root");
    let days_ago = |days: i64| Instant::from_unix(now().unix() - days * 86_400).expect("a time");
    let validity = Validity { not_before: days_ago(20), not_after: days_ago(10) };
    let issued = root.issue_signer("Tests", "Past", validity).expect("issued");
    let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
    let signer = FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key");
    let mut expired = Parts::read(&next);
    // Signed while it was valid, as it says; that rescues nothing.
    expired.signature =
        cutover::bundle::sign_manifest(&expired.manifest, &[&signer], days_ago(15)).expect("signed");
    not_trusted(&world, &world.write("expired", expired.bytes()), "trust.expired", "expired");
}

// M8
#[test]
fn bundle_by_a_certificate_for_another_use_is_refused_before_any_write() {
    if !has_tool("openssl", "openssl") {
        return;
    }
    let (world, next) = world();
    let mut other = Parts::read(&next);
    let manifest = world.write("manifest.json", &other.manifest);
    let extensions = world.write(
        "extensions",
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\nextendedKeyUsage = serverAuth\n",
    );
    let (root, key) = (stamped().pki.join("root.pem"), stamped().pki.join("root.key"));
    let file = |name: &str| text(&world.path(name)).to_owned();
    let (server_key, request, server) = (file("server.key"), file("server.csr"), file("server.pem"));
    let signature = file("signature.der");
    // Signed by OpenSSL: our own signer makes no such signature.
    for arguments in [
        vec!["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &server_key],
        vec!["req", "-new", "-key", &server_key, "-subj", "/O=Tests/CN=Server", "-out", &request],
        vec![
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            text(&root),
            "-CAkey",
            text(&key),
            "-days",
            "30",
            "-set_serial",
            "4660",
            "-extfile",
            text(&extensions),
            "-out",
            &server,
        ],
        vec![
            "cms",
            "-sign",
            "-binary",
            "-in",
            text(&manifest),
            "-signer",
            &server,
            "-inkey",
            &server_key,
            "-outform",
            "DER",
            "-out",
            &signature,
        ],
    ] {
        run(std::path::Path::new("openssl"), &arguments).must(0);
    }
    other.signature = fs::read(&signature).expect("read");
    not_trusted(&world, &world.write("server", other.bytes()), "trust.wrong-usage", "codeSigning");
}

// E3
#[test]
fn program_without_an_anchor_installs_nothing() {
    let (world, next) = world();
    let root = world.root();
    let before = exact(&root);
    let ran = run(std::path::Path::new(PLAIN), &["apply", text(&next), "--root", text(&root)]).must(11);
    assert!(ran.stderr.contains("no trust anchor") && ran.stderr.contains("trust embed"), "{}", ran.stderr);
    assert_eq!(exact(&root), before);
}

// P1, P2, P3, P5, M11
#[test]
fn hostile_paths_in_a_signed_manifest_are_refused_and_named_escaped() {
    let (world, next) = world();
    let canary = world.write("outside", "must stay");
    for (path, words) in [
        ("../outside", "../outside"),
        ("../../outside", "leaves the release"),
        ("/etc/passwd", "/etc/passwd"),
        ("", "empty path"),
        ("a/../../b", "leaves the release"),
        ("a\\..\\b", "leaves the release"),
        ("a\u{0}b", "control character"),
        ("C:\\x", "absolute"),
        ("share/", "shortest form"),
        (".", "shortest form"),
        ("share/\u{1b}[2Jx", "\\u{1b}"),
        (".cutover/lock", "reserved"),
        ("BIN/tool", "collides"),
        ("bin", "collides"),
    ] {
        let hostile = Parts::read(&next).edited(|manifest| manifest["files"][3]["path"] = path.into());
        refused(&world, &world.write("hostile", hostile.bytes()), 16, words);
    }
    let link =
        Parts::read(&next).edited(|manifest| manifest["symlinks"][0]["target"] = "../../outside".into());
    refused(&world, &world.write("link", link.bytes()), 16, "outside the release");
    assert_eq!(fs::read_to_string(canary).expect("read"), "must stay");
}

// M12
#[test]
fn contradictions_limits_and_unknown_formats_are_unsafe_content() {
    let (world, next) = world();
    let good = || Parts::read(&next);
    let format = good().edited(|manifest| manifest["format"] = 2.into());
    refused(&world, &world.write("format", format.bytes()), 16, "unsupported");
    let unknown = good().edited(|manifest| manifest["surprise"] = 1.into());
    refused(&world, &world.write("unknown", unknown.bytes()), 16, "surprise");
    let size = good().edited(|manifest| manifest["objects"][0]["stored_size"] = (1u64 << 63).into());
    refused(&world, &world.write("size", size.bytes()), 16, "past any file");
    let mut cut = good();
    cut.payload.pop();
    refused(&world, &world.write("cut", cut.bytes()), 16, "payload has");
    refused(&world, &world.write("text", "this is no bundle"), 16, "not a bundle");
    let mut huge = MAGIC.to_vec();
    huge.extend([0xff; 8]);
    refused(&world, &world.write("huge", huge), 16, "the limit is");
    let missing = world.path("missing.cutover");
    refused(&world, &missing, 1, "missing.cutover");
}

// M8, E7
#[test]
fn altered_payload_is_refused_and_nothing_of_it_stays() {
    let (world, next) = world();
    let mut altered = Parts::read(&next);
    let last = altered.payload.len() - 1;
    altered.payload[last] ^= 1;
    let bundle = world.write("altered", altered.bytes());
    let before = crate::world::snapshot(&world.root());
    let ran = world.apply(&bundle, &["--json"]).must(16);
    assert!(ran.stderr.contains("nothing was changed"), "{}", ran.stderr);
    world.apply(&bundle, &["--dry-run"]).must(16);
    assert_eq!(crate::world::snapshot(&world.root()), before);
    let staging = fs::read_dir(world.root().join(".cutover/staging")).map_or(0, Iterator::count);
    assert_eq!(staging, 0);
    assert_eq!(world.version(), "1.0.0");
    world.apply(&next, &[]).must(0);
}

#[test]
fn altered_payload_is_not_extracted_and_leaves_nothing() {
    let (world, next) = world();
    let mut altered = Parts::read(&next);
    let last = altered.payload.len() - 1;
    altered.payload[last] ^= 1;
    let bundle = world.write("altered", altered.bytes());
    let out = world.path("into/out");
    world.run(&["bundle", "extract", text(&bundle), "-o", text(&out)]).must(16);
    assert_eq!(fs::read_dir(world.path("into")).map_or(0, Iterator::count), 0);
    world.run(&["bundle", "extract", text(&next), "-o", text(&out)]).must(0);
    assert_eq!(fs::read_dir(world.path("into")).map_or(0, Iterator::count), 1);
}

// V3, V4
#[test]
fn policy_refuses_what_does_not_fit_this_root() {
    let (world, next) = world();
    world.apply(&next, &[]).must(0);
    let edited = |name: &str, edit: fn(&mut serde_json::Value)| {
        world.write(name, Parts::read(&next).edited(edit).bytes())
    };
    refused(&world, &world.bundle_path("1.0.0"), 13, "older than the installed");
    let same = edited("same", |manifest| manifest["notes"] = "other content".into());
    refused(&world, &same, 13, "immutable");
    let steps = edited("steps", |manifest| {
        manifest["version"] = "3.0.0".into();
        manifest["min_upgrade_from"] = "2.0.0".into();
    });
    refused(&world, &steps, 13, "update to 2.0.0 first");
    let platform = edited("platform", |manifest| {
        manifest["version"] = "3.0.0".into();
        manifest["platform"] = "plan9-mips".into();
    });
    refused(&world, &platform, 13, "plan9-mips");
    let package = edited("package", |manifest| {
        manifest["version"] = "3.0.0".into();
        manifest["package"] = "other".into();
    });
    refused(&world, &package, 13, "this root holds package `tool`");
    let needs = edited("needs", |manifest| {
        manifest["version"] = "3.0.0".into();
        manifest["requires"] = serde_json::json!([{ "package": "storage", "constraint": ">=1.4.0" }]);
    });
    refused(&world, &needs, 13, "`storage`");
}

#[test]
fn what_looks_like_a_release_is_not_taken_for_a_file() {
    let world = World::new();
    fs::create_dir(world.path("tool")).expect("made");
    let root = world.root();
    let told = |arguments: &[&str], code: i32| {
        let mut apply = command(&stamped().program, &[&["apply", "--root", text(&root)], arguments].concat());
        apply.current_dir(world.dir.path());
        finish(apply).must(code).stderr
    };
    for bad in ["tool@1x", "tool@", "@1.0.0", "a b@1.0.0"] {
        let said = told(&[bad], 2);
        assert!(said.contains("names no release") && said.contains("NAME@VERSION"), "{said}");
    }
    assert!(told(&["./tool", "--source", "."], 2).contains("names no release"));
    assert!(told(&["tool@1.0.0"], 2).contains("--source"));
    for absent in ["tool", "none"] {
        assert!(told(&[absent], 1).contains("name a repository with --source"));
    }
    // A directory of that name is in nobody's way.
    assert!(told(&["tool", "--source", "nowhere"], 1).contains("nowhere"));
}

#[test]
fn settings_can_only_narrow_what_is_accepted() {
    let (world, next) = world();
    for set in ["trust-policy.channels=[\"beta\"]", "package.name=other"] {
        let ran = world.apply(&next, &["--set", set]).must(13);
        assert!(ran.stderr.contains("refused"), "{}", ran.stderr);
    }
    world
        .apply(
            &next,
            &["--set", "trust-policy.channels=[\"beta\", \"stable\"]", "--set", "package.name=tool"],
        )
        .must(0);
}

#[test]
fn failed_preflight_is_refused_with_figures() {
    let (world, next) = world();
    let ran = world.apply(&next, &["--set", "preflight.memory_mib=1000000000"]).must(12);
    assert!(ran.stderr.contains("1000000000 MiB needed"), "{}", ran.stderr);
    assert_eq!(world.version(), "1.0.0");
    world.apply(&next, &["--dry-run", "--set", "preflight.memory_mib=1000000000"]).must(12);
}

#[test]
fn refused_first_installation_leaves_no_root_behind() {
    let world = World::new();
    let bundle = world.build(&Release { spec: "platform = \"plan9-mips\"\n", ..Release::new("1.0.0") });
    world.apply(&bundle, &[]).must(13);
    assert!(!world.root().exists());
    fs::create_dir(world.root()).expect("made");
    world.apply(&bundle, &[]).must(13);
    let ran =
        world.apply(&world.build_version("2.0.0"), &["--set", "preflight.memory_mib=1000000000"]).must(12);
    assert!(ran.stderr.contains("nothing was changed"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(world.root()).map_or(9, Iterator::count), 0);
}
