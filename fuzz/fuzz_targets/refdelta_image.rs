//! An executable from anywhere as the old file of a `refdelta` patch: its headers and tables are read by both sides. The
//! new file is the same with some bytes more in the middle; the generator proves the patch with the decoder.

#![no_main]

use cutover_bundle::delta::{self, Algorithm, GenerateOptions, Pair};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut new = bytes.to_vec();
    let middle = new.len() / 2;
    new.splice(middle..middle, [0xE8; 24]);
    let pair = Pair::new(bytes, &new);
    delta::generate(Algorithm::Refdelta, &pair, &GenerateOptions::default()).expect("every file has a patch");
});
