//! A delta bundle from anywhere: opened, verified, and read if it verifies.

#![no_main]

use cutover_bundle::{DeltaBundle, Limits, RevocationLists, TrustAnchor};
use libfuzzer_sys::fuzz_target;

const ANCHOR: &[u8] = include_bytes!("../seeds/anchor.pem");
const MANIFEST: &[u8] = include_bytes!("../seeds/delta_manifest/good");

fuzz_target!(|bytes: &[u8]| {
    let anchor = TrustAnchor::parse(ANCHOR).expect("the seeds' anchor");
    let now = "2026-03-01T12:00:00Z".parse().expect("a time");
    let Ok(bundle) = DeltaBundle::open(bytes, &Limits::default()) else {
        return;
    };
    if let Ok(verified) = bundle.verify(&anchor, &RevocationLists::none(), now) {
        assert_eq!(verified.delta().to_bytes().expect("it was read"), MANIFEST);
        let _ = verified.check_payload();
    }
});
