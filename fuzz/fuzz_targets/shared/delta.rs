//! What all targets of delta decoders do: a patch from anywhere meets the seeds' base.

use std::io::{self, Write};

use cutover_bundle::delta::{self, Algorithm, DeltaLimits};

const BASE: &[u8] = include_bytes!("../../seeds/delta-base");
/// The size of every result here, which the seeds have.
const SIZE: u64 = 760;

#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        assert!(self.0.len() as u64 <= SIZE, "{} bytes were written", self.0.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output never passes the declared size, and what decodes does so again to the same bytes.
pub fn decode(algorithm: Algorithm, patch: &[u8]) {
    let limits = DeltaLimits { memory_bytes_max: 64 << 20, ..DeltaLimits::default() };
    let run = || {
        let mut out = Bounded::default();
        delta::decode_unchecked(algorithm, &BASE, &patch, SIZE, &limits, &mut out).ok().map(|_| out.0)
    };
    if let Some(result) = run() {
        assert_eq!(result.len() as u64, SIZE);
        assert_eq!(run(), Some(result));
    }
}
