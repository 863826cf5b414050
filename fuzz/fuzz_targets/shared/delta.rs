//! What all targets of delta decoders do: a patch from anywhere meets a base of the seeds.

use std::io::{self, Write};

use cutover_bundle::delta::{self, Algorithm, DeltaLimits};

/// A base, and the size of every result here, which the seeds have.
#[derive(Clone, Copy)]
pub struct Base(&'static [u8], u64);

/// Text.
pub const TEXT: Base = Base(include_bytes!("../../seeds/delta-base"), 760);
/// An executable, in which references are found.
#[allow(dead_code, reason = "for one target only")]
pub const EXECUTABLE: Base = Base(include_bytes!("../../seeds/refdelta_image/pie"), 3000);

struct Bounded(Vec<u8>, u64);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        assert!(self.0.len() as u64 <= self.1, "{} bytes were written", self.0.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output never passes the declared size, and what decodes does so again to the same bytes.
pub fn decode(algorithm: Algorithm, base: Base, patch: &[u8]) {
    let Base(base, size) = base;
    let limits = DeltaLimits { memory_bytes_max: 64 << 20, ..DeltaLimits::default() };
    let run = || {
        let mut out = Bounded(Vec::new(), size);
        delta::decode_unchecked(algorithm, &base, &patch, size, &limits, &mut out).ok().map(|_| out.0)
    };
    if let Some(result) = run() {
        assert_eq!(result.len() as u64, size);
        assert_eq!(run(), Some(result));
    }
}
