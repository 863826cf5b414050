//! A manifest from anywhere: what is accepted survives being written and read.

#![no_main]

use cutover_core::model::{Manifest, ManifestLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = ManifestLimits::default();
    if let Ok(manifest) = Manifest::parse(bytes, &limits) {
        let written = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(Manifest::parse(&written, &limits).expect("what was written can be read"), manifest);
    }
});
