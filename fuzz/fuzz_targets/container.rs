//! A bundle from anywhere: opened, shown, verified, and read if it verifies.

#![no_main]

use cutover_bundle::{Bundle, Limits, RevocationLists, TrustAnchor};
use libfuzzer_sys::fuzz_target;

const ANCHOR: &[u8] = include_bytes!("../seeds/anchor.pem");
const MANIFEST: &[u8] = include_bytes!("../seeds/manifest/good");

fuzz_target!(|bytes: &[u8]| {
    let anchor = TrustAnchor::parse(ANCHOR).expect("the seeds' anchor");
    let now = "2026-03-01T12:00:00Z".parse().expect("a time");
    let Ok(bundle) = Bundle::open(bytes, &Limits::default()) else {
        return;
    };
    let _ = bundle.inspect_untrusted();
    if let Ok(verified) = bundle.verify(&anchor, &RevocationLists::none(), now) {
        assert_eq!(verified.manifest_bytes().expect("in memory"), MANIFEST);
        let _ = verified.check_objects();
    }
});
