//! A signature from anywhere over a known manifest: none but the known one is accepted.

#![no_main]

use cutover_bundle::{Limits, RevocationLists, TrustAnchor, verify_detached};
use libfuzzer_sys::fuzz_target;

const ANCHOR: &[u8] = include_bytes!("../seeds/anchor.pem");
const MANIFEST: &[u8] = include_bytes!("../seeds/manifest/good");
const SIGNATURES: [&[u8]; 2] = [
    include_bytes!("../seeds/cms/good"),
    include_bytes!("../seeds/cms/good-by-subordinate"),
];

fuzz_target!(|bytes: &[u8]| {
    let anchor = TrustAnchor::parse(ANCHOR).expect("the seeds' anchor");
    let now = "2026-03-01T12:00:00Z".parse().expect("a time");
    let none = RevocationLists::none();
    let limits = Limits::default();
    if verify_detached(MANIFEST, bytes.to_vec(), &anchor, &none, now, &limits).is_ok() {
        assert!(SIGNATURES.contains(&bytes), "another signature was accepted");
    }
    if let Ok(lists) = RevocationLists::parse(bytes) {
        let _ = verify_detached(MANIFEST, SIGNATURES[1].to_vec(), &anchor, &lists, now, &limits);
    }
    if let Ok(anchor) = TrustAnchor::parse(bytes) {
        let again = TrustAnchor::parse(anchor.to_text().as_bytes()).expect("its own text");
        assert_eq!(again.to_text(), anchor.to_text());
    }
});
