//! A delta manifest from anywhere: what is accepted has an order and survives being written and read.

#![no_main]

use cutover_core::model::{DeltaManifest, ManifestLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = ManifestLimits::default();
    if let Ok(manifest) = DeltaManifest::parse(bytes, &limits) {
        assert_eq!(manifest.in_order().expect("it was checked").len(), manifest.files.len());
        let written = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(DeltaManifest::parse(&written, &limits).expect("what was written can be read"), manifest);
    }
});
