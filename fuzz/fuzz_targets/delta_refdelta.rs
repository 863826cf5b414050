//! A `refdelta` patch from anywhere, applied without a digest to save the decoder, to text and to an executable.

#![no_main]

use cutover_bundle::delta::Algorithm;
use libfuzzer_sys::fuzz_target;

#[path = "shared/delta.rs"]
mod delta;

fuzz_target!(|bytes: &[u8]| {
    delta::decode(Algorithm::Refdelta, delta::TEXT, bytes);
    delta::decode(Algorithm::Refdelta, delta::EXECUTABLE, bytes);
});
