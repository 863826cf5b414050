//! Interoperation with `openssl cms`, both ways. Needs the `openssl` program; without it, each test says that it was not
//! run.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use cutover_bundle::{
    Limits, RevocationLists, TrustAnchor, TrustError, sign_manifest,
    signer::{CertificateChain, CommandSigner, FileSigner},
    verify_detached,
};
use cutover_core::model::{Digest, Instant, Version};

use crate::support::{contents, have_program, release};

/// A directory with a PKI that OpenSSL made.
struct OpenSsl {
    dir: tempfile::TempDir,
}

const EXTENSIONS: &str = "
[ca]
basicConstraints = critical,CA:TRUE,pathlen:1
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
";

impl OpenSsl {
    /// Makes a root and a leaf with keys as `genpkey` makes them from `key`.
    fn new(key: &[&str], digest: &str) -> Self {
        let pki = Self { dir: tempfile::tempdir().expect("a directory") };
        pki.write("extensions.cnf", EXTENSIONS.as_bytes());
        for name in ["ca", "leaf"] {
            let out = format!("{name}.key");
            pki.run(&[&["genpkey", "-out", &out], key].concat());
        }
        pki.run(&[
            "req",
            "-new",
            "-x509",
            "-key",
            "ca.key",
            digest,
            "-subj",
            "/O=Example/CN=Root",
            "-days",
            "30",
            "-config",
            "/dev/null",
            "-extensions",
            "ca",
            "-config",
            "extensions.cnf",
            "-out",
            "ca.pem",
        ]);
        pki.certify("leaf", "leaf", digest);
        pki
    }

    fn certify(&self, name: &str, section: &str, digest: &str) {
        let (request, out) = (format!("{name}.csr"), format!("{name}.pem"));
        self.run(&[
            "req",
            "-new",
            "-key",
            "leaf.key",
            "-subj",
            "/O=Example/CN=Leaf",
            "-config",
            "extensions.cnf",
            "-out",
            &request,
        ]);
        self.run(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            digest,
            "-days",
            "30",
            "-set_serial",
            "4660",
            "-extfile",
            "extensions.cnf",
            "-extensions",
            section,
            "-out",
            &out,
        ]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect(name)
    }

    fn run(&self, arguments: &[&str]) {
        let (good, log) = run_in(self.dir.path(), arguments);
        assert!(good, "openssl {}: {log}", arguments.join(" "));
    }

    fn anchor(&self) -> TrustAnchor {
        TrustAnchor::parse(&self.read("ca.pem")).expect("an anchor")
    }

    fn chain(&self) -> CertificateChain {
        CertificateChain::from_pem(&self.read("leaf.pem")).expect("a chain")
    }

    /// `openssl cms -sign` over `manifest`.
    fn sign(&self, manifest: &[u8], certificate: &str, options: &[&str]) -> Vec<u8> {
        self.write("manifest.json", manifest);
        let base = [
            "cms",
            "-sign",
            "-binary",
            "-in",
            "manifest.json",
            "-signer",
            certificate,
            "-inkey",
            "leaf.key",
            "-outform",
            "DER",
            "-out",
            "signature.der",
        ];
        self.run(&[base.as_slice(), options].concat());
        self.read("signature.der")
    }

    /// `openssl cms -verify` of our signature.
    fn accepts(&self, manifest: &[u8], signature: &[u8]) -> (bool, String) {
        self.write("manifest.json", manifest);
        self.write("signature.der", signature);
        run_in(
            self.dir.path(),
            &[
                "cms",
                "-verify",
                "-binary",
                "-inform",
                "DER",
                "-in",
                "signature.der",
                "-content",
                "manifest.json",
                "-CAfile",
                "ca.pem",
                "-purpose",
                "any",
                "-out",
                "/dev/null",
            ],
        )
    }
}

fn run_in(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .output()
        .expect("`openssl` was there a moment ago");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// OpenSSL's certificates start now.
fn now() -> Instant {
    let seconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    Instant::from_unix(seconds as i64).expect("in range")
}

fn manifest() -> Vec<u8> {
    release(Version::new(1, 0, 0), &contents()).0
}

fn check(manifest: &[u8], signature: &[u8], anchor: &TrustAnchor) -> Result<Digest, String> {
    verify_detached(manifest, signature.to_vec(), anchor, &RevocationLists::none(), now(), &Limits::default())
        .map(|verified| verified.release().manifest)
        .map_err(|error| format!("{}: {error}", error.code()))
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
const ED25519: &[&str] = &["-algorithm", "ED25519"];

fn both_ways(key: &[&str], digest: &str) {
    let openssl = OpenSsl::new(key, digest);
    let manifest = manifest();

    // Theirs, with the attributes that OpenSSL adds by itself and without.
    for options in [&["-md", "sha256"][..], &["-md", "sha384"], &["-md", "sha256", "-nosmimecap"]] {
        let theirs = openssl.sign(&manifest, "leaf.pem", options);
        assert_eq!(check(&manifest, &theirs, &openssl.anchor()), Ok(Digest::of(&manifest)), "{options:?}");
    }

    // Ours.
    let signer = FileSigner::from_pem(&openssl.read("leaf.key"), openssl.chain()).expect("a key");
    let ours = sign_manifest(&manifest, &[&signer], now()).expect("signed");
    check(&manifest, &ours, &openssl.anchor()).expect("by ourselves");
    let (accepted, log) = openssl.accepts(&manifest, &ours);
    assert!(accepted, "{log}");
    let (accepted, _) = openssl.accepts(b"another manifest", &ours);
    assert!(!accepted, "OpenSSL accepts another manifest: this test proves nothing");
}

#[test]
fn p256_signatures_interoperate_with_openssl() {
    if !have_program("openssl", "openssl") {
        return;
    }
    both_ways(P256, "-sha256");
}

#[test]
fn p384_signatures_interoperate_with_openssl() {
    if !have_program("openssl", "openssl") {
        return;
    }
    both_ways(P384, "-sha384");
}

#[test]
fn rsa_signatures_interoperate_with_openssl() {
    if !have_program("openssl", "openssl") {
        return;
    }
    both_ways(RSA, "-sha256");
}

// OpenSSL 3.0 cannot CMS-sign with Ed25519; its keys and certificates are used.
#[test]
fn ed25519_keys_and_certificates_of_openssl_sign() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let openssl = OpenSsl::new(ED25519, "-sha256");
    let signer = FileSigner::from_pem(&openssl.read("leaf.key"), openssl.chain()).expect("a key");
    let manifest = manifest();
    let signature = sign_manifest(&manifest, &[&signer], now()).expect("signed");
    check(&manifest, &signature, &openssl.anchor()).expect("trusted");
}

// sig-3: each by `openssl cms`, which makes them without complaint.
#[test]
fn signatures_of_openssl_outside_the_profile_are_refused() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let openssl = OpenSsl::new(P256, "-sha256");
    openssl.certify("server", "server", "-sha256");
    openssl.certify("sha1", "leaf", "-sha1");
    let (manifest, anchor) = (manifest(), openssl.anchor());
    let refused = |certificate: &str, options: &[&str]| {
        check(&manifest, &openssl.sign(&manifest, certificate, options), &anchor)
            .expect_err("outside the profile")
    };
    for (certificate, options, word) in [
        ("leaf.pem", &["-nodetach"][..], "not detached"),
        ("leaf.pem", &["-noattr"], "no signed attributes"),
        ("leaf.pem", &["-nocerts"], "certificate of a signer is missing"),
        ("leaf.pem", &["-keyid"], "version"),
        ("leaf.pem", &["-md", "sha1"], "weak-algorithm"),
        ("leaf.pem", &["-cades"], "attribute"),
        ("leaf.pem", &["-certfile", "ca.pem"], "on no signer's path"),
        ("leaf.pem", &["-econtent_type", "1.2.3.4"], "version"),
        ("server.pem", &[], "wrong-usage"),
        ("sha1.pem", &[], "weak-algorithm"),
    ] {
        let error = refused(certificate, options);
        assert!(error.contains(word), "{certificate} {options:?}: {error}");
    }
    let text = openssl.sign(&manifest, "leaf.pem", &["-outform", "PEM"]);
    assert!(check(&manifest, &text, &anchor).is_err(), "PEM is not DER");
    let stream = openssl.sign(&manifest, "leaf.pem", &["-stream", "-nodetach"]);
    assert!(check(&manifest, &stream, &anchor).is_err(), "streamed CMS is BER");
}

#[test]
fn rsa_pss_and_small_rsa_keys_are_refused() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let openssl = OpenSsl::new(RSA, "-sha256");
    let (manifest, anchor) = (manifest(), openssl.anchor());
    let pss = openssl.sign(&manifest, "leaf.pem", &["-keyopt", "rsa_padding_mode:pss"]);
    let error = check(&manifest, &pss, &anchor).expect_err("PSS");
    assert!(error.contains("weak-algorithm"), "{error}");

    let small = OpenSsl::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "-sha256");
    let error = TrustAnchor::parse(&small.read("ca.pem")).expect_err("2048 bits");
    assert!(error.to_string().contains("2048 bits"), "{error}");
}

// The external command: it gets the bytes to be signed and answers with a signature.
#[test]
fn external_command_signs() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let openssl = OpenSsl::new(P256, "-sha256");
    let manifest = manifest();
    let signer = CommandSigner::new(openssl.chain(), |message: &[u8]| {
        openssl.write("message", message);
        openssl.run(&["dgst", "-sha256", "-sign", "leaf.key", "-out", "raw.sig", "message"]);
        Ok(openssl.read("raw.sig"))
    });
    let signature = sign_manifest(&manifest, &[&signer], now()).expect("signed");
    check(&manifest, &signature, &openssl.anchor()).expect("trusted");

    let broken = CommandSigner::new(openssl.chain(), |_: &[u8]| Ok(b"nonsense".to_vec()));
    assert!(sign_manifest(&manifest, &[&broken], now()).is_err());
}

#[test]
fn openssl_reads_our_certificates_and_revocation_lists() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let pki = crate::support::pki();
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    let issued = pki.root.issue_signer("Example", "Alice", crate::support::days(30)).expect("a signer");
    let list = pki.root.revocation_list(&["0102"], 7, crate::support::days(7)).expect("a list");
    write("root.pem", pki.root.certificate_pem());
    write("leaf.pem", &issued.certificate_pem);
    write("list.pem", &list);
    let at = crate::support::now().unix().to_string();
    for arguments in [
        &["verify", "-x509_strict", "-purpose", "any", "-attime", &at, "-CAfile", "root.pem", "leaf.pem"][..],
        &["crl", "-in", "list.pem", "-CAfile", "root.pem", "-noout"],
    ] {
        let (good, log) = run_in(dir.path(), arguments);
        assert!(good, "{arguments:?}: {log}");
    }
}

#[test]
fn untrusted_error_names_the_issuer() {
    if !have_program("openssl", "openssl") {
        return;
    }
    let (openssl, other) = (OpenSsl::new(P256, "-sha256"), crate::support::pki());
    let manifest = manifest();
    let theirs = openssl.sign(&manifest, "leaf.pem", &[]);
    let result = verify_detached(
        &manifest,
        theirs,
        &other.anchor,
        &RevocationLists::none(),
        now(),
        &Limits::default(),
    );
    assert!(matches!(
        result,
        Err(cutover_bundle::BundleError::Trust(TrustError::Untrusted { issuer, .. })) if issuer.contains("Root")
    ));
}
