//! A `bsdiff` patch from anywhere, applied without a digest to save the decoder.

#![no_main]

use cutover_bundle::delta::Algorithm;
use libfuzzer_sys::fuzz_target;

#[path = "shared/delta.rs"]
mod delta;

fuzz_target!(|bytes: &[u8]| delta::decode(Algorithm::Bsdiff, delta::TEXT, bytes));
