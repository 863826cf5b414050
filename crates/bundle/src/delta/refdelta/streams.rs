//! Packing of the extra bytes by general codecs, capped on both sides.

use std::io::{BufReader, Read};

use liblzma::stream::{Filters, LzmaOptions, Stream};

use super::header::Codec;

/// Most bytes an LZMA dictionary or a zstd window may have.
const WINDOW_BYTES_MAX: u32 = 64 << 20;

fn dictionary(raw_len: u32) -> u32 {
    raw_len.clamp(4 << 10, WINDOW_BYTES_MAX).next_power_of_two().min(WINDOW_BYTES_MAX)
}

/// Memory in bytes to unpack `raw_len` bytes, besides input and output.
pub(super) fn memory(codec: Codec, raw_len: u32) -> u64 {
    match codec {
        Codec::Stored => 0,
        Codec::Zstd | Codec::Lzma { .. } => u64::from(dictionary(raw_len)) + (1 << 20),
    }
}

fn filters(codec: Codec, raw_len: u32) -> Option<Filters> {
    let Codec::Lzma { lc, lp, pb } = codec else { return None };
    const EXTREME: u32 = 1 << 31;
    let mut options = LzmaOptions::new_preset(9 | EXTREME).ok()?;
    options.dict_size(dictionary(raw_len));
    options
        .literal_context_bits(u32::from(lc))
        .literal_position_bits(u32::from(lp))
        .position_bits(u32::from(pb));
    let mut filters = Filters::new();
    filters.lzma2(&options);
    Some(filters)
}

/// Packs `raw`; `None` where the codec cannot.
pub(super) fn pack(codec: Codec, raw: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::Stored => Some(raw.to_vec()),
        Codec::Zstd => zstd::bulk::compress(raw, 19).ok(),
        Codec::Lzma { .. } => {
            let stream = Stream::new_raw_encoder(&filters(codec, raw.len() as u32)?).ok()?;
            let mut packed = Vec::new();
            liblzma::read::XzEncoder::new_stream(raw, stream).read_to_end(&mut packed).ok()?;
            Some(packed)
        }
    }
}

/// Bytes that are unpacked at once.
const STEP_BYTES: usize = 64 << 10;

/// A reader of what `packed` unpacks to: at most `raw_len` bytes can be asked for without an error at the end, and a
/// stream that does not end there, or has bytes behind its end, is an error. `None` if the codec cannot begin.
pub(super) fn unpack(codec: Codec, packed: &[u8], raw_len: u32) -> Option<Box<dyn Read + Send + '_>> {
    match codec {
        Codec::Stored => Some(Box::new(packed)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?.single_frame();
            decoder.window_log_max(dictionary(raw_len).trailing_zeros()).ok()?;
            Some(Box::new(Whole { decoder, rest: |decoder| decoder.get_ref().len() }.buffered()))
        }
        Codec::Lzma { .. } => {
            let stream = Stream::new_raw_decoder(&filters(codec, raw_len)?).ok()?;
            let decoder = liblzma::bufread::XzDecoder::new_stream(packed, stream);
            Some(Box::new(Whole { decoder, rest: |decoder| decoder.get_ref().len() }.buffered()))
        }
    }
}

/// A decoder that must have read all of its input when it ends.
struct Whole<D> {
    decoder: D,
    rest: fn(&D) -> usize,
}

impl<D: Read> Whole<D> {
    fn buffered(self) -> BufReader<Self> {
        BufReader::with_capacity(STEP_BYTES, self)
    }
}

impl<D: Read> Read for Whole<D> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        if count == 0 && !buffer.is_empty() && (self.rest)(&self.decoder) > 0 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(count)
    }
}

/// The smallest packing of `raw` by any codec here.
pub(super) fn pack_best(raw: &[u8], threads: usize) -> (Codec, Vec<u8>) {
    if raw.is_empty() {
        return (Codec::Stored, Vec::new());
    }
    const TRIED: [Codec; 4] = [
        Codec::Lzma { lc: 3, lp: 0, pb: 0 },
        Codec::Lzma { lc: 3, lp: 0, pb: 2 },
        Codec::Lzma { lc: 4, lp: 0, pb: 0 },
        Codec::Zstd,
    ];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut best: Option<(usize, Vec<u8>)> = None;
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(codec) = TRIED.get(number) else { return best };
            let Some(packed) = pack(*codec, raw) else { continue };
            if best.as_ref().is_none_or(|(_, least)| packed.len() < least.len()) {
                best = Some((number, packed));
            }
        }
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut found = vec![work()];
        found.extend(others.into_iter().map(|other| other.join().unwrap_or_default()));
        found
    });
    let best = found.into_iter().flatten().min_by_key(|(number, packed)| (packed.len(), *number));
    match best {
        Some((number, packed)) if packed.len() < raw.len() => (TRIED[number], packed),
        _ => (Codec::Stored, raw.to_vec()),
    }
}
