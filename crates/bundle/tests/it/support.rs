//! A small PKI and small releases to try things on.

use std::io::Cursor;

use cutover_bundle::{
    Bundle, BundleError, Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, VerifiedBundle,
    assemble,
    pki::{Authority, Issued, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner, Signer},
};
use cutover_core::model::{FileEntry, FileKind, FileMode, Instant, Manifest, Version};

use crate::not_run::not_run;

/// The time of all tests.
pub fn now() -> Instant {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

pub fn days(count: u32) -> Validity {
    Validity::days_from(now(), count).expect("in range")
}

pub fn file_signer(issued: &Issued) -> FileSigner {
    let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
    FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key")
}

/// A root, the anchor that trusts it, and one signer.
pub struct Pki {
    pub root: Authority,
    pub anchor: TrustAnchor,
    pub signer: FileSigner,
}

pub fn pki() -> Pki {
    let root = Authority::root("Example", days(3650)).expect("a root");
    let issued = root.issue_signer("Example", "Alice", days(365)).expect("a signer");
    Pki {
        anchor: TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor"),
        signer: file_signer(&issued),
        root,
    }
}

/// The five files of a small release; two of them have one content.
pub fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        ("bin/app", b"#!/bin/sh\n".repeat(700)),
        ("bin/subdir/component", noise),
        ("lib/empty", Vec::new()),
        ("etc/app.conf", b"port = 80\n".to_vec()),
        ("etc/app.conf.default", b"port = 80\n".to_vec()),
    ]
}

/// A manifest over `contents` and its payload.
pub fn release(version: Version, contents: &[(&str, Vec<u8>)]) -> (Vec<u8>, Vec<u8>) {
    let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::default()).expect("a spool");
    let files = contents
        .iter()
        .map(|(path, content)| {
            let added = writer.add(content.as_slice()).expect("in memory");
            FileEntry {
                path: path.parse().expect(path),
                kind: FileKind::Data,
                mode: FileMode::new(0o644).expect("a mode"),
                sha256: added.sha256,
                size: added.size,
            }
        })
        .collect();
    let payload = writer.finish().expect("in memory");
    let manifest = Manifest {
        files,
        objects: payload.objects.clone(),
        ..Manifest::new("app".parse().expect("a name"), version, now())
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut payload.into_reader(), &mut bytes).expect("in memory");
    (manifest.to_bytes().expect("a valid manifest"), bytes)
}

pub fn bundle(manifest: &[u8], signature: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assemble(manifest, signature, payload, &mut out, &Limits::default()).expect("in memory");
    out
}

/// A signed bundle of [`contents`].
pub fn signed_bundle(signer: &dyn Signer) -> Vec<u8> {
    let (manifest, payload) = release(Version::new(1, 0, 0), &contents());
    let signature = sign_manifest(&manifest, &[signer], now()).expect("a signature");
    bundle(&manifest, &signature, &payload)
}

pub fn verify(bytes: &[u8], anchor: &TrustAnchor) -> Result<VerifiedBundle<Vec<u8>>, BundleError> {
    Bundle::open(bytes.to_vec(), &Limits::default())?.verify(anchor, &RevocationLists::none(), now())
}

/// Whether `found`. If not, the running test cannot be run: says so on standard error, and in the file that
/// `cargo xtask test` shows at its end, so that it does not pass for done.
pub fn have(tool: &str, package: &str, found: bool) -> bool {
    if !found {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        not_run(&format!("{test}: {tool} is not installed (Debian: apt-get install {package})"));
    }
    found
}

/// Whether the program `tool` can be started, as [`have`].
pub fn have_program(tool: &str, package: &str) -> bool {
    let found = std::process::Command::new(tool)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .stdin(std::process::Stdio::null())
        .status()
        .is_ok();
    have(tool, package, found)
}
