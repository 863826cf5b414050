//! Signing with keys in a PKCS#11 token, proven with SoftHSM. Needs the Debian package `softhsm2`; without it,
//! each test says that it was not run.
//!
//! SoftHSM finds its tokens by the environment variable SOFTHSM2_CONF, and a process has one environment: each test here
//! starts this test program again, with the variable set, to run itself.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::{Attribute, CertificateType, ObjectClass},
    session::UserType,
    types::AuthPin,
};
use cutover_bundle::{
    Limits, RevocationLists, TrustAnchor, sign_manifest,
    signer::{CertificateChain, Pin, Pkcs11Signer, Pkcs11Uri, Signer, SignerError},
    verify_detached,
};
use cutover_core::model::Version;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use zeroize::Zeroizing;

use crate::support::{contents, days, have, have_program, now, pki, release};

const PIN: &str = "4711";

fn find_module() -> Option<PathBuf> {
    [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ]
    .iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
}

fn module() -> PathBuf {
    find_module().expect("checked before the test started itself")
}

/// Tells a test that it was started by itself, and where it may write.
const DIRECTORY: &str = "CUTOVER_TEST_TOKENS";

/// Runs `work`, the body of the test `name`, in a process with a token store of its own.
fn with_token_store(name: &str, work: fn()) {
    if env::var_os(DIRECTORY).is_some() {
        return work();
    }
    if !have_program("softhsm2-util", "softhsm2")
        || !have("libsofthsm2.so", "softhsm2", find_module().is_some())
    {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let tokens = dir.path().join("tokens");
    std::fs::create_dir(&tokens).expect("a directory");
    let configuration = dir.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    std::fs::write(&configuration, text).expect("written");
    let util = |arguments: &[&str]| {
        let output = Command::new("softhsm2-util")
            .args(arguments)
            .env("SOFTHSM2_CONF", &configuration)
            .output()
            .expect("`softhsm2-util` was there a moment ago");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    util(&["--init-token", "--free", "--label", "releases", "--so-pin", "12345678", "--pin", PIN]);
    let output = Command::new(env::current_exe().expect("a path"))
        .args(["--exact", &format!("pkcs11::{name}"), "--nocapture"])
        .env("SOFTHSM2_CONF", &configuration)
        .env(DIRECTORY, dir.path())
        .output()
        .expect("started");
    let log = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && log.contains("1 passed"),
        "{log}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn directory() -> PathBuf {
    env::var_os(DIRECTORY).expect("set by the test that starts itself").into()
}

/// Puts a key into the token under a label.
fn import(key_pem: &str, label: &str, id: &str) {
    let path = directory().join(format!("{label}.key"));
    std::fs::write(&path, key_pem).expect("written");
    let output = Command::new("softhsm2-util")
        .args(["--import", path.to_str().expect("UTF-8"), "--token", "releases", "--label", label])
        .args(["--id", id, "--pin", PIN])
        .output()
        .expect("softhsm2-util");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn uri(object: &str) -> Pkcs11Uri {
    format!("pkcs11:token=releases;object={object}?module-path={}", module().display())
        .parse()
        .expect("a URI")
}

fn pin() -> Pin {
    Pin::new(Zeroizing::new(format!("{PIN}\n")))
}

fn assert_signs(signer: &Pkcs11Signer, anchor: &TrustAnchor) {
    let (manifest, _) = release(Version::new(1, 0, 0), &contents());
    let signature = sign_manifest(&manifest, &[signer], now()).expect("signed by the token");
    let lists = RevocationLists::none();
    verify_detached(&manifest, signature, anchor, &lists, now(), &Limits::default()).expect("trusted");
}

/// A key of `algorithm`, its certificate by `pki`, and the key in PEM.
fn certified(pki: &crate::support::Pki, key: &rcgen::KeyPair) -> (CertificateChain, String) {
    let certificate = pki.root.certify_signer("Example", "Token", days(30), key).expect("a certificate");
    let chain = CertificateChain::from_pem(certificate.as_bytes()).expect("a chain");
    (chain, certificate)
}

#[test]
fn keys_in_a_token_sign() {
    with_token_store("keys_in_a_token_sign", keys_in_a_token_sign_inside);
}

fn keys_in_a_token_sign_inside() {
    let pki = pki();
    let keys = [
        ("p256", rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key")),
        ("p384", rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key")),
        (
            "rsa",
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)
                .expect("a key"),
        ),
    ];
    for (at, (name, key)) in keys.iter().enumerate() {
        import(&key.serialize_pem(), name, &format!("0{}", at + 1));
        let (chain, _) = certified(&pki, key);
        let signer = Pkcs11Signer::open(&uri(name), Some(&pin()), Some(chain)).expect(name);
        for _ in 0..20 {
            // r and s of every length: the shorter ones come by chance.
            assert_signs(&signer, &pki.anchor);
        }
    }
}

#[test]
fn certificate_in_the_token_is_found() {
    with_token_store("certificate_in_the_token_is_found", certificate_in_the_token_is_found_inside);
}

fn certificate_in_the_token_is_found_inside() {
    let pki = pki();
    let key = rcgen::KeyPair::generate().expect("a key");
    import(&key.serialize_pem(), "signer", "01");
    let (_, certificate) = certified(&pki, &key);
    store_certificate(&module(), &certificate);
    let signer = Pkcs11Signer::open(&uri("signer"), Some(&pin()), None).expect("a signer");
    assert_eq!(signer.chain().subject(), "CN=Token,O=Example");
    assert_signs(&signer, &pki.anchor);
    let by_id: Pkcs11Uri =
        format!("pkcs11:id=%01?module-path={}", module().display()).parse().expect("a URI");
    assert_signs(&Pkcs11Signer::open(&by_id, Some(&pin()), None).expect("by id"), &pki.anchor);
}

fn store_certificate(module: &Path, pem: &str) {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let client = Pkcs11::new(module).expect("a module");
    client.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialised");
    let slot = client.get_slots_with_initialized_token().expect("slots")[0];
    let session = client.open_rw_session(slot).expect("a session");
    session.login(UserType::User, Some(&AuthPin::from(PIN))).expect("logged in");
    session
        .create_object(&[
            Attribute::Class(ObjectClass::CERTIFICATE),
            Attribute::CertificateType(CertificateType::X_509),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Label(b"signer".to_vec()),
            Attribute::Id(vec![1]),
            Attribute::Subject(Vec::new()),
            Attribute::Value(der.to_vec()),
        ])
        .expect("stored");
}

#[test]
fn missing_tokens_keys_and_wrong_pins_are_named() {
    with_token_store(
        "missing_tokens_keys_and_wrong_pins_are_named",
        missing_tokens_keys_and_wrong_pins_are_named_inside,
    );
}

fn missing_tokens_keys_and_wrong_pins_are_named_inside() {
    let pki = pki();
    let key = rcgen::KeyPair::generate().expect("a key");
    import(&key.serialize_pem(), "signer", "01");
    import(&rcgen::KeyPair::generate().expect("a key").serialize_pem(), "double", "02");
    import(&rcgen::KeyPair::generate().expect("a key").serialize_pem(), "double", "03");
    let (chain, _) = certified(&pki, &key);
    let refused = |uri: &Pkcs11Uri, pin: Option<&Pin>| match Pkcs11Signer::open(uri, pin, Some(chain.clone()))
        .map(|_| ())
    {
        Err(SignerError::Token { action, reason }) => format!("{action}: {reason}"),
        other => panic!("{other:?}"),
    };
    assert!(refused(&uri("nobody"), Some(&pin())).contains("no private key"));
    assert!(refused(&uri("double"), Some(&pin())).contains("more than one"));
    assert!(refused(&uri("signer"), None).contains("PIN"));
    let other: Pkcs11Uri =
        format!("pkcs11:token=other;object=x?module-path={}", module().display()).parse().expect("a URI");
    assert!(refused(&other, Some(&pin())).contains("no token"));
    let wrong = Pin::new(Zeroizing::new("0000".to_owned()));
    let message = refused(&uri("signer"), Some(&wrong));
    assert!(message.contains("log in") && !message.contains("0000"), "{message}");
    let missing: Pkcs11Uri = "pkcs11:object=x?module-path=/nonexistent/module.so".parse().expect("a URI");
    assert!(refused(&missing, None).contains("load its library"));
}
