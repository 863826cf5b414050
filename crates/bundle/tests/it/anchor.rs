//! Trust anchors: their text, and how they are stamped into an executable.

use cutover_bundle::{
    TrustAnchor,
    anchor::{AnchorError, RevocationPolicy, read_trailer, stamp},
};

use crate::support::{pki, signed_bundle, verify};

fn stamped(executable: &[u8], anchor: &TrustAnchor) -> Vec<u8> {
    let mut out = Vec::new();
    stamp(&executable.to_vec(), anchor, &mut out).expect("in memory");
    out
}

#[test]
fn anchor_text_holds_certificates_comments_and_settings() {
    let (a, b) = (pki(), pki());
    let text = format!(
        "# who may release\nthreshold = 2\n\n{}# the second\nrevocation = required\n{}",
        a.root.certificate_pem(),
        b.root.certificate_pem()
    );
    let anchor = TrustAnchor::parse(text.as_bytes()).expect("an anchor");
    assert_eq!(anchor.threshold(), 2);
    assert_eq!(anchor.revocation(), RevocationPolicy::Required);
    assert_eq!(anchor.describe().len(), 2);
    assert_eq!(anchor.describe()[0].subject, "CN=Release Root,O=Example");
    let again = TrustAnchor::parse(anchor.to_text().as_bytes()).expect("its own text");
    assert_eq!(again.to_text(), anchor.to_text());
}

#[test]
fn anchor_that_could_be_misread_is_refused() {
    let pki = pki();
    let root = pki.root.certificate_pem();
    let leaf =
        pki.root.issue_signer("Example", "Alice", crate::support::days(1)).expect("a signer").certificate_pem;
    let cut = &root[..root.len() / 2];
    for (text, word) in [
        (String::new(), "no certificate"),
        ("# nothing\n".to_owned(), "no certificate"),
        (format!("treshold = 2\n{root}"), "line 1"),
        (format!("{root}threshold = 0\n"), "1 to 8"),
        (format!("{root}threshold = 9\n"), "1 to 8"),
        (format!("threshold = 1\nthreshold = 2\n{root}"), "twice"),
        (format!("revocation = maybe\n{root}"), "line 1"),
        (format!("{root}{root}"), "twice"),
        (cut.to_owned(), "no end"),
        (leaf, "authority"),
        (root.replace("CERTIFICATE", "PRIVATE KEY"), "line 1"),
        (root.replacen("MII", "MIJ", 1), ""),
    ] {
        let error = TrustAnchor::parse(text.as_bytes()).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

// M10: what is trusted is part of the executable's bytes.
#[test]
fn stamped_executable_trusts_the_anchor_and_nothing_else() {
    let (ours, theirs) = (pki(), pki());
    let executable = b"\x7fELF and so on".repeat(1000);
    assert!(read_trailer(&executable).expect("readable").is_none());
    let copy = stamped(&executable, &ours.anchor);
    assert!(copy.starts_with(&executable));
    let anchor = read_trailer(&copy).expect("readable").expect("stamped");
    verify(&signed_bundle(&ours.signer), &anchor).expect("ours");
    assert!(verify(&signed_bundle(&theirs.signer), &anchor).is_err());
}

#[test]
fn stamping_again_replaces_the_anchor() {
    let (first, second) = (pki(), pki());
    let executable = b"an executable".to_vec();
    let once = stamped(&executable, &first.anchor);
    let twice = stamped(&once, &second.anchor);
    assert_eq!(twice, stamped(&executable, &second.anchor));
    let anchor = read_trailer(&twice).expect("readable").expect("stamped");
    assert_eq!(anchor.to_text(), second.anchor.to_text());
}

#[test]
fn damaged_anchor_is_an_error_and_never_absent() {
    let pki = pki();
    let copy = stamped(b"an executable", &pki.anchor);
    let start = b"an executable".len();
    // The magic itself decides whether there is an anchor; everything else must then hold.
    for at in start..copy.len() - 16 {
        let mut altered = copy.clone();
        altered[at] ^= 1;
        assert!(matches!(read_trailer(&altered), Err(AnchorError::Damaged(_))), "byte {at}");
    }
    assert!(matches!(read_trailer(&copy[start + 1..].to_vec()), Err(AnchorError::Damaged(_))));
}

#[test]
fn program_without_anchor_has_none() {
    assert!(TrustAnchor::compiled_in().expect("none").is_none());
    assert!(TrustAnchor::of_executable(&b"an executable".to_vec()).expect("readable").is_none());
}

/// The script that compiles an anchor in, built and run as cargo does it.
#[test]
fn anchor_compiled_in_is_the_file_that_the_build_names_and_a_bad_one_ends_the_build() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let made = std::process::Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "script", source, "-o"])
        .arg(&script)
        .output()
        .expect("rustc runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let build = |anchor: Option<&std::path::Path>| {
        let mut command = std::process::Command::new(&script);
        command.env("OUT_DIR", directory.path()).env_remove("CUTOVER_BUILD_ANCHOR").current_dir("/");
        if let Some(anchor) = anchor {
            command.env("CUTOVER_BUILD_ANCHOR", anchor);
        }
        let ran = command.output().expect("it runs");
        let text = std::fs::read_to_string(directory.path().join("anchor.pem")).unwrap_or_default();
        (ran.status.success(), text, String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let pki = pki();
    let file = directory.path().join("root.pem");
    std::fs::write(&file, pki.root.certificate_pem()).expect("written");
    let (is_built, text, _) = build(Some(&file));
    assert!(is_built);
    let anchor = TrustAnchor::parse(text.as_bytes()).expect("an anchor");
    assert_eq!(anchor.describe()[0].subject, "CN=Release Root,O=Example");
    assert_eq!(build(None), (true, String::new(), String::new()));

    std::fs::write(&file, "no certificate").expect("written");
    for (path, why) in [
        (file.as_path(), "it holds no certificate"),
        (std::path::Path::new("root.pem"), "name it from `/` on"),
        (&directory.path().join("absent"), "No such file"),
    ] {
        let (is_built, _, stderr) = build(Some(path));
        assert!(!is_built && stderr.contains(why), "{stderr}");
    }
}
