//! xdelta3's LZMA secondary compression: for each section type one .xz stream through all windows, flushed after each.
//!
//! The stream has one block with one LZMA2 filter and no check, and it never ends: the last window just stops.

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

/// How many bytes of a stream [`memory_needed`] looks at.
pub(super) const HEAD_BYTES: usize = 12 + 6;
/// What liblzma takes beside the dictionary, in bytes: less than 64 KiB for .xz with LZMA2 (xz(1), `--info-memory`).
const FIXED_BYTES: u64 = 256 << 10;
/// The largest dictionary that is written, in bytes: that of xdelta3's level 9.
const DICTIONARY_BYTES_MAX: usize = 64 << 20;
const DICTIONARY_BYTES_MIN: usize = 4 << 10;

/// How much memory the decoder of the stream that starts with `head` will ask for (The .xz File Format, 2.1.1, 3.1,
/// 5.3.1).
pub(super) fn memory_needed(head: &[u8]) -> Result<u64, String> {
    if head.len() < HEAD_BYTES || head[..6] != *b"\xfd7zXZ\0" {
        return Err("no .xz stream starts here".to_owned());
    }
    let (flags, filter, properties, dictionary) = (head[13], head[14], head[15], head[16]);
    if flags != 0 || filter != 0x21 || properties != 1 {
        return Err("its .xz block has other filters than one LZMA2".to_owned());
    }
    let dictionary = match dictionary {
        40 => u64::from(u32::MAX),
        bits @ 0..40 => (2 | u64::from(bits & 1)) << (bits / 2 + 11),
        bits => return Err(format!("LZMA2 has no dictionary size {bits}")),
    };
    Ok(dictionary + FIXED_BYTES)
}

/// The sections of one type, being decompressed.
pub(super) struct Decompressor {
    stream: Stream,
}

impl Decompressor {
    /// Starts a stream that may take `memory_bytes`.
    pub(super) fn new(memory_bytes: u64) -> Result<Self, String> {
        let stream = Stream::new_stream_decoder(memory_bytes, 0).map_err(|error| error.to_string())?;
        Ok(Self { stream })
    }

    /// Decodes one section, which must fill `output` exactly.
    pub(super) fn section(&mut self, input: &[u8], output: &mut [u8]) -> Result<(), String> {
        let (mut read, mut written) = (0, 0);
        // One byte more than declared may not come out; room for it also lets the decoder see the section's end.
        let mut spare = [0; 1];
        while read < input.len() {
            let room = if written < output.len() { &mut output[written..] } else { &mut spare[..] };
            let (read_before, written_before) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(&input[read..], room, Action::Run);
            let status = status.map_err(|error| error.to_string())?;
            let read_now = (self.stream.total_in() - read_before) as usize;
            let written_now = (self.stream.total_out() - written_before) as usize;
            if written_now > 0 && written == output.len() {
                return Err("it has more bytes than it declares".to_owned());
            }
            read += read_now;
            written += written_now;
            let stuck = read_now == 0 && written_now == 0;
            if stuck || (status == Status::StreamEnd && read < input.len()) {
                return Err("there are bytes behind the end of its stream".to_owned());
            }
        }
        // What the last bytes of input did not have room for.
        while written < output.len() {
            let before = self.stream.total_out();
            let result = self.stream.process(&[], &mut output[written..], Action::Run);
            let written_now = (self.stream.total_out() - before) as usize;
            written += written_now;
            if result.is_err() || written_now == 0 {
                return Err("it has fewer bytes than it declares".to_owned());
            }
        }
        // The decoder may have taken all of the input and still hold output; no progress is no error here.
        let before = self.stream.total_out();
        let _ = self.stream.process(&[], &mut spare, Action::Run);
        if self.stream.total_out() > before {
            Err("it has more bytes than it declares".to_owned())
        } else {
            Ok(())
        }
    }
}

/// The sections of one type, being compressed.
pub(super) struct Compressor {
    stream: Stream,
}

impl Compressor {
    /// Starts a stream for about `total` bytes.
    pub(super) fn new(total: usize) -> Result<Self, String> {
        let make = || {
            let mut options = LzmaOptions::new_preset(9 | 1 << 31)?;
            let dictionary = total.next_power_of_two().clamp(DICTIONARY_BYTES_MIN, DICTIONARY_BYTES_MAX);
            options.dict_size(dictionary as u32);
            options.literal_context_bits(LITERAL_CONTEXT_BITS).literal_position_bits(0).position_bits(0);
            let mut filters = Filters::new();
            filters.lzma2(&options);
            Stream::new_stream_encoder(&filters, Check::None)
        };
        let stream = make().map_err(|error: liblzma::stream::Error| error.to_string())?;
        Ok(Self { stream })
    }

    /// Compresses one section and flushes.
    pub(super) fn section(&mut self, input: &[u8]) -> Result<Vec<u8>, String> {
        let mut compressed = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        loop {
            let (read_before, written_before) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(&input[read..], &mut buffer, Action::SyncFlush);
            let status = status.map_err(|error| error.to_string())?;
            read += (self.stream.total_in() - read_before) as usize;
            compressed.extend_from_slice(&buffer[..(self.stream.total_out() - written_before) as usize]);
            if status == Status::StreamEnd {
                return Ok(compressed);
            }
        }
    }
}

/// Neither instructions nor addresses have much of a two- or four-byte rhythm; bytes to add tell much of the next one.
const LITERAL_CONTEXT_BITS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_back_one_by_one() {
        let sections: Vec<Vec<u8>> =
            (1..20u32).map(|n| (0..n * 977).map(|i| ((i * n) >> 3) as u8).collect()).collect();
        let mut compressor = Compressor::new(100_000).unwrap();
        let packed: Vec<Vec<u8>> =
            sections.iter().map(|section| compressor.section(section).unwrap()).collect();
        let memory = memory_needed(&packed[0]).unwrap();
        let mut decompressor = Decompressor::new(memory).unwrap();
        for (section, packed) in sections.iter().zip(&packed) {
            let mut out = vec![0; section.len()];
            decompressor.section(packed, &mut out).unwrap();
            assert_eq!(&out, section);
        }
    }

    #[test]
    fn a_section_with_more_or_fewer_bytes_than_declared_is_refused() {
        let packed = Compressor::new(1000).unwrap().section(&[7; 1000]).unwrap();
        let decode = |size: usize| Decompressor::new(1 << 20).unwrap().section(&packed, &mut vec![0; size]);
        assert_eq!(decode(1000), Ok(()));
        assert!(decode(999).is_err());
        assert!(decode(1001).is_err());
        assert!(decode(0).is_err());
    }

    #[test]
    fn a_stream_that_asks_for_more_memory_than_it_may_have_is_refused() {
        let packed = Compressor::new(16 << 20).unwrap().section(&[7; 1000]).unwrap();
        assert_eq!(memory_needed(&packed), Ok((16 << 20) + FIXED_BYTES));
        assert!(Decompressor::new(1 << 20).unwrap().section(&packed, &mut [0; 1000]).is_err());
        assert!(memory_needed(b"\xfd7zXZ").is_err());
        assert!(memory_needed(&[0; 32]).is_err());
    }
}
