//! A stored object from anywhere: what decodes has the declared size, and nothing is written beyond it.

#![no_main]

use std::io::{self, Write};

use cutover_bundle::{ObjectError, decode_object};
use cutover_core::model::{Digest, Encoding, Hasher, ObjectEntry};
use libfuzzer_sys::fuzz_target;

/// The declared size of every object here, which the seeds have.
const SIZE: u64 = 7000;

struct Bounded {
    hasher: Hasher,
    written: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written += bytes.len() as u64;
        assert!(self.written <= SIZE, "{} bytes were written", self.written);
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut entry = ObjectEntry {
        sha256: Digest::of(b""),
        size: SIZE,
        stored_size: bytes.len() as u64,
        encoding: Encoding::Zstd,
        offset: 0,
    };
    let mut content = Bounded { hasher: Hasher::new(), written: 0 };
    // The digest is wrong: an error either way, but a digest error only once everything else is right.
    match decode_object(&entry, bytes, &mut content) {
        Ok(()) => panic!("the digest of nothing was accepted"),
        Err(ObjectError::Digest { actual, .. }) => {
            assert_eq!(content.written, SIZE);
            entry.sha256 = actual;
            decode_object(&entry, bytes, &mut io::sink()).expect("the same again");
        }
        Err(_) => {}
    }
});
