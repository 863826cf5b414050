//! Hostile and damaged patches: every one is an error, within memory, with nothing wrong called right. Each class of the
//! CVEs of bspatch and VCDIFF decoders has a test of its own.

use std::io::Write as _;

use bzip2::{Compression, write::BzEncoder};
use cutover_bundle::delta::{self, AVAILABLE, Algorithm, DeltaError, DeltaLimits, Part};

use super::{declared, decode, generate, noise, words};

/// Small files whose patches have everything in them.
fn small() -> (Vec<u8>, Vec<u8>) {
    let old = words(600, 20);
    let mut new = old.clone();
    new[50] ^= 1;
    new.splice(200..230, noise(40, 21));
    new.extend_from_slice(&[b'r'; 30]);
    new.extend_from_slice(&old[100..160]);
    (old, new)
}

/// Every byte of `patch` altered in three ways, with its place.
fn flips(patch: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..patch.len()).flat_map(move |at| {
        [0x01, 0x80, 0xff].map(|flip| {
            let mut flipped = patch.to_vec();
            flipped[at] ^= flip;
            (at, flipped)
        })
    })
}

// D9, D10
#[test]
fn every_flipped_byte_is_an_error() {
    let (old, new) = small();
    let limits = DeltaLimits::default();
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        let declared = declared(&old, &patch, &new);
        for (at, flipped) in flips(&patch) {
            let result = delta::apply(*algorithm, &old, &flipped, &declared, &limits, Vec::new());
            assert!(
                matches!(result, Err(DeltaError::WrongDigest { part: Part::Patch, .. })),
                "{algorithm} {at}"
            );
        }
    }
}

// D10
#[test]
fn flipped_byte_that_no_digest_guards_is_an_error_or_harmless() {
    let (old, new) = small();
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        for (at, flipped) in flips(&patch) {
            let Ok(out) = decode(*algorithm, &old, &flipped, new.len() as u64) else { continue };
            let has_checksum = match algorithm {
                Algorithm::Bsdiff | Algorithm::Xdelta3 | Algorithm::ZstdDict => true,
                Algorithm::Vcdiff | Algorithm::Refdelta => false,
            };
            assert!(out == new || !has_checksum, "{algorithm} {at}: wrong bytes");
            assert_eq!(out.len(), new.len(), "{algorithm} {at}");
        }
    }
}

// D10
#[test]
fn every_truncation_is_an_error() {
    let (old, new) = small();
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        for length in 0..patch.len() {
            assert!(
                decode(*algorithm, &old, &patch[..length], new.len() as u64).is_err(),
                "{algorithm} {length}"
            );
        }
        let mut longer = patch.clone();
        longer.push(0);
        assert!(decode(*algorithm, &old, &longer, new.len() as u64).is_err(), "{algorithm}: one byte more");
    }
}

// D10
#[test]
fn patch_for_another_size_is_an_error_before_anything_is_written() {
    let (old, new) = small();
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        for size in [0, 1, new.len() as u64 - 1, new.len() as u64 + 1, 1 << 40] {
            let refused = decode(*algorithm, &old, &patch, size).unwrap_err();
            assert!(
                matches!(refused, DeltaError::WrongSize { .. } | DeltaError::Patch { .. }),
                "{algorithm} {size}: {refused}"
            );
        }
    }
}

/// A BSDIFF40 patch from its parts.
fn bsdiff(control: &[[i64; 3]], difference: &[u8], extra: &[u8], size: i64) -> Vec<u8> {
    let integer = |number: i64| {
        let sign = if number < 0 { 1 << 63 } else { 0 };
        (number.unsigned_abs() | sign).to_le_bytes()
    };
    let pack = |bytes: &[u8]| {
        let mut encoder = BzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    };
    let control: Vec<u8> = control.iter().flatten().flat_map(|number| integer(*number)).collect();
    let (control, difference, extra) = (pack(&control), pack(difference), pack(extra));
    let mut patch = b"BSDIFF40".to_vec();
    for number in [control.len() as i64, difference.len() as i64, size] {
        patch.extend(integer(number));
    }
    [patch, control, difference, extra].concat()
}

fn refused(algorithm: Algorithm, old: &[u8], patch: &[u8], size: u64, says: &str) {
    let error = decode(algorithm, old, patch, size).map(|_| "no error").expect_err(says).to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn bsdiff_made_by_hand_is_read() {
    let patch = bsdiff(&[[3, 2, -1], [2, 0, 0]], &[1, 1, 1, 0, 0], b"xy", 7);
    assert_eq!(decode(Algorithm::Bsdiff, b"abcdef", &patch, 7).unwrap(), b"bcdxycd");
}

// D10; CVE-2014-9862
#[test]
fn bsdiff_negative_lengths_are_refused() {
    for control in [[-1, 2, 0], [2, -1, 0], [i64::MIN + 1, 0, 0]] {
        let patch = bsdiff(&[control], b"ab", b"ab", 7);
        refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "it is negative");
    }
    for field in [8, 16, 24] {
        let mut patch = bsdiff(&[[3, 4, 0]], b"abc", b"abcd", 7);
        patch[field + 7] |= 0x80;
        refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "it is negative");
    }
}

// D10; CVE-2020-14315
#[test]
fn bsdiff_lengths_whose_sums_overflow_are_refused() {
    let most = i64::MAX;
    for control in [[most, most, 0], [7, 7, 0], [0, most, most], [most, 0, 0]] {
        let patch = bsdiff(&[control], b"ab", b"ab", 7);
        refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "beyond the result");
    }
    let mut patch = bsdiff(&[[3, 4, 0]], b"abc", b"abcd", 7);
    patch[8..16].copy_from_slice(&most.to_le_bytes());
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "beyond the patch");
    patch[16..24].copy_from_slice(&most.to_le_bytes());
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "beyond the patch");
}

// D10
#[test]
fn bsdiff_seeks_outside_the_base_are_refused() {
    for seek in [-100, 100, i64::MAX - 1, i64::MIN + 1] {
        let patch = bsdiff(&[[1, 0, seek], [6, 0, 0]], b"abcdefg", b"", 7);
        refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "of the base at");
    }
    let patch = bsdiff(&[[1, 0, i64::MAX], [0, 1, i64::MAX], [5, 0, 0]], b"abcdefg", b"x", 7);
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "overflows");
}

// D10
#[test]
fn bsdiff_that_claims_a_terabyte_is_refused_by_its_header() {
    let patch = bsdiff(&[[1, 0, 0]], b"a", b"", 1 << 40);
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "instead of 7");
    // And with the size declared, too: it has no such bytes.
    let error = decode(Algorithm::Bsdiff, b"abcdef", &patch, 1 << 40).unwrap_err();
    assert!(matches!(error, DeltaError::Patch { .. }), "{error}");
}

// D10
#[test]
fn bsdiff_controls_that_do_nothing_for_ever_are_refused() {
    let patch = bsdiff(&vec![[0, 0, 0]; 1_000_000], b"", b"", 7);
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "do nothing");
}

// D10
#[test]
fn bsdiff_bombs_stop_at_the_declared_size() {
    // A hundred megabytes of extra, of which seven are asked for.
    let patch = bsdiff(&[[0, 7, 0]], b"", &vec![0; 100 << 20], 7);
    assert!(patch.len() < 1000);
    refused(Algorithm::Bsdiff, b"abcdef", &patch, 7, "more bytes than the controls use");
}

/// A VCDIFF patch with one window: indicator and segment, then the sections.
fn vcdiff(window: &[u8], size: u64, sections: [&[u8]; 3]) -> Vec<u8> {
    let mut patch = b"\xd6\xc3\xc4\x00\x00".to_vec();
    patch.extend_from_slice(window);
    let mut encoding = varint(size);
    encoding.push(0);
    for section in sections {
        encoding.extend(varint(section.len() as u64));
    }
    let bytes = sections.concat();
    patch.extend(varint((encoding.len() + bytes.len()) as u64));
    patch.extend(encoding);
    patch.extend(bytes);
    patch
}

fn varint(value: u64) -> Vec<u8> {
    let mut digits = vec![(value & 0x7f) as u8];
    let mut rest = value >> 7;
    while rest > 0 {
        digits.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    digits.reverse();
    digits
}

/// Codes with explicit sizes: ADD, RUN, COPY in mode 0.
const ADD: u8 = 1;
const RUN: u8 = 0;
const COPY: u8 = 19;

#[test]
fn vcdiff_windows_of_every_kind_are_read() {
    let old = b"0123456789";
    // RFC 3284, section 3's example: a window without a source that overlaps itself.
    let patch = vcdiff(&[0], 20, [b"abcdz", &[ADD, 4, COPY, 12, RUN, 4], &[0]]);
    assert_eq!(decode(Algorithm::Vcdiff, old, &patch, 20).unwrap(), b"abcdabcdabcdabcdzzzz");
    // From the base, across the end of the segment into the window.
    let patch = vcdiff(&[1, 4, 3], 8, [b"", &[COPY, 8], &[2]]);
    assert_eq!(decode(Algorithm::Vcdiff, old, &patch, 8).unwrap(), b"56565656");
    // From what was made before.
    let mut patch = vcdiff(&[0], 6, [b"abcdef", &[ADD, 6], b""]);
    patch.extend_from_slice(&vcdiff(&[2, 3, 2], 5, [b"XY", &[COPY, 3, ADD, 2], &[0]])[5..]);
    assert_eq!(decode(Algorithm::Vcdiff, old, &patch, 11).unwrap(), b"abcdefcdeXY");
}

// D10
#[test]
fn vcdiff_copies_from_what_is_not_made_yet_are_refused() {
    for address in [10u64, 11, 1 << 40, u64::MAX] {
        let patch = vcdiff(&[1, 10, 0], 4, [b"", &[COPY, 4], &varint(address)]);
        refused(Algorithm::Vcdiff, b"0123456789", &patch, 4, "not before the place");
    }
}

// D10
#[test]
fn vcdiff_segments_outside_the_base_are_refused() {
    for (length, position) in [(11, 0), (1, 10), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let window = [vec![1], varint(length), varint(position)].concat();
        let patch = vcdiff(&window, 4, [b"abcd", &[ADD, 4], b""]);
        refused(Algorithm::Vcdiff, b"0123456789", &patch, 4, "source segment");
    }
    // Of the result, before it is made.
    let patch = vcdiff(&[2, 1, 0], 4, [b"abcd", &[ADD, 4], b""]);
    refused(Algorithm::Vcdiff, b"0123456789", &patch, 4, "source segment");
}

// D10
#[test]
fn vcdiff_sums_that_wrap_are_refused() {
    let mut patch = b"\xd6\xc3\xc4\x00\x00\x00".to_vec();
    let sections = [varint(u64::MAX - 3), varint(2), varint(1)].concat();
    let encoding = [varint(4), vec![0], sections].concat();
    patch.extend(varint(encoding.len() as u64));
    patch.extend(encoding);
    refused(Algorithm::Vcdiff, b"", &patch, 4, "length of the delta encoding");
    let patch = vcdiff(&[0], 4, [b"a", &[&[ADD, 1, RUN][..], &varint(u64::MAX)].concat(), b""]);
    refused(Algorithm::Vcdiff, b"", &patch, 4, "beyond its window");
}

// D10
#[test]
fn vcdiff_runs_stop_at_the_declared_size() {
    let patch = vcdiff(&[0], 1 << 30, [b"a", &[&[RUN][..], &varint(1 << 30)].concat(), b""]);
    assert!(patch.len() < 30);
    refused(Algorithm::Vcdiff, b"", &patch, 4, "size of the target window");
    // Declared, it is beyond the memory that the test allows.
    let error = decode(Algorithm::Vcdiff, b"", &patch, 1 << 30).unwrap_err();
    assert!(matches!(error, DeltaError::Memory { .. }), "{error}");
}

// D10
#[test]
fn vcdiff_windows_of_four_gigabytes_are_refused() {
    let patch = vcdiff(&[0], 1 << 32, [b"a", &[&[RUN][..], &varint(1 << 32)].concat(), b""]);
    refused(Algorithm::Vcdiff, b"", &patch, 1 << 32, "size of the target window");
}

/// A section that ends beyond 2^64, in a window that says so.
pub fn vcdiff_that_wraps() -> Vec<u8> {
    let mut patch = b"\xd6\xc3\xc4\x00\x00\x00".to_vec();
    let sections = [varint(u64::MAX - 14), varint(0), varint(0)].concat();
    let headers = [varint(0), vec![0], sections].concat();
    patch.extend(varint(u64::MAX - 14 + headers.len() as u64));
    patch.extend(headers);
    patch
}

// D10
#[test]
fn vcdiff_sections_that_end_beyond_all_numbers_are_refused() {
    refused(Algorithm::Vcdiff, b"", &vcdiff_that_wraps(), 0, "it is cut off");
}

/// A window of nothing with `count` instructions that add nothing.
pub fn vcdiff_that_idles(count: usize) -> Vec<u8> {
    vcdiff(&[0], 0, [b"", &[ADD, 0].repeat(count), b""])
}

// D10
#[test]
fn vcdiff_sections_larger_than_their_window_can_use_are_refused() {
    refused(Algorithm::Vcdiff, b"", &vcdiff_that_idles(1 << 19), 0, "1048576 bytes for a window of 0");
    let patch = vcdiff(&[0], 4, [b"abcd", &[ADD, 4], &[0; 200]]);
    refused(Algorithm::Vcdiff, b"", &patch, 4, "200 bytes for a window of 4");
}

// D10
#[test]
fn vcdiff_instructions_that_do_nothing_for_ever_are_refused() {
    let size = 200;
    for idle in [&[ADD, 0][..], &[COPY, 0]] {
        let instructions = [&idle.repeat(40)[..], &[COPY], &varint(size)].concat();
        let addresses = vec![0; if idle[0] == COPY { 41 } else { 1 }];
        let patch = vcdiff(&[1, 1, 0], size, [b"", &instructions, &addresses]);
        refused(Algorithm::Vcdiff, b"a", &patch, size, "do nothing");
    }
}

// D10
#[test]
fn vcdiff_endless_integers_are_refused() {
    let mut patch = b"\xd6\xc3\xc4\x00\x00\x01".to_vec();
    patch.extend_from_slice(&[0x80; 1000]);
    refused(Algorithm::Vcdiff, b"", &patch, 4, "more than 64 bits");
}

// D10; CVE-2014-9765
#[test]
fn xdelta3_application_headers_are_skipped_up_to_a_limit() {
    let window = &vcdiff(&[0], 4, [b"abcd", &[ADD, 4], b""])[5..];
    let with =
        |length: u64, bytes: &[u8]| [&b"\xd6\xc3\xc4\x00\x04"[..], &varint(length), bytes, window].concat();
    let read = |patch: Vec<u8>| decode(Algorithm::Xdelta3, b"", &patch, 4);
    assert_eq!(read(with(5, b"a//b/")).unwrap(), b"abcd");
    assert_eq!(read(with(65536, &[b'/'; 65536])).unwrap(), b"abcd");
    for patch in [with(65537, &[b'/'; 65537]), with(u64::MAX, b"a"), with(1 << 31, b"a")] {
        assert!(read(patch).unwrap_err().to_string().contains("application header"));
    }
}

#[test]
fn vcdiff_unknown_parts_are_refused_by_name() {
    for (header, says) in [
        (&b"\xd6\xc3\xc4S\x00"[..], "SDCH"),
        (b"\xd6\xc3\xc4\x01\x00", "version 1"),
        (b"\xd6\xc3\xc4\x00\x02\x00", "code table"),
        (b"\xd6\xc3\xc4\x00\x01\x01", "DJW"),
        (b"\xd6\xc3\xc4\x00\x01\x10", "FGK"),
        (b"\xd6\xc3\xc4\x00\x01\x63", "secondary compressor 99"),
        (b"\xd6\xc3\xc4\x00\x08", "not defined"),
    ] {
        for algorithm in [Algorithm::Vcdiff, Algorithm::Xdelta3] {
            refused(algorithm, b"", header, 4, says);
        }
    }
    let patch = vcdiff(&[3, 1, 0], 4, [b"abcd", &[ADD, 4], b""]);
    refused(Algorithm::Vcdiff, b"0", &patch, 4, "window indicator");
    let patch = vcdiff(&[8], 4, [b"abcd", &[ADD, 4], b""]);
    refused(Algorithm::Vcdiff, b"0", &patch, 4, "window indicator");
}

#[test]
fn vcdiff_sections_with_bytes_left_over_are_refused() {
    for sections in [
        [&b"abcde"[..4], &[ADD, 3], &[]],
        [&b"abcd"[..], &[ADD, 4], &[0]],
        [&b"abc"[..], &[ADD, 4], &[]],
        [&b""[..], &[COPY, 4], &[]],
    ] {
        let patch = vcdiff(&[1, 4, 0], 4, sections);
        assert!(decode(Algorithm::Vcdiff, b"0123", &patch, 4).is_err(), "{sections:?}");
    }
}

// D10
#[test]
fn xdelta3_wrong_adler32_is_refused() {
    let (old, new) = small();
    let patch = generate(Algorithm::Xdelta3, &old, &new);
    let adler = (0..patch.len() - 4).find(|at| {
        let mut patch = patch.clone();
        patch[*at] ^= 0xff;
        let error = decode(Algorithm::Xdelta3, &old, &patch, new.len() as u64);
        error.is_err_and(|error| error.to_string().contains("the window has another one"))
    });
    assert!(adler.is_some(), "no byte of the patch is its checksum");
}

// D10
#[test]
fn zstd_frames_that_lie_or_ask_for_too_much_are_refused() {
    let old = words(3000, 22);
    let new = words(3000, 23);
    let read = |patch: &[u8], size: usize| decode(Algorithm::ZstdDict, &old, patch, size as u64);
    let good = generate(Algorithm::ZstdDict, &old, &new);
    assert_eq!(read(&good, 3000).unwrap(), new);
    // A second frame, a skippable one before or behind it.
    let skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd";
    assert!(read(&[&good[..], &good].concat(), 3000).unwrap_err().to_string().contains("behind"));
    assert!(read(&[&good[..], skippable].concat(), 3000).unwrap_err().to_string().contains("behind"));
    assert!(read(&[&skippable[..], &good].concat(), 3000).unwrap_err().to_string().contains("magic"));
    // A size that is another, and none.
    assert!(matches!(read(&good, 2999), Err(DeltaError::WrongSize { .. })));
    // A window of 2 GiB before content of unknown and known size; RFC 8878, 3.1.1.1.2.
    let unknown = b"\x28\xb5\x2f\xfd\x04\xa8\x01\x00\x00";
    assert!(read(unknown, 3000).unwrap_err().to_string().contains("size of its content"));
    let huge = b"\x28\xb5\x2f\xfd\xc4\xa8\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00";
    let error = read(huge, 1 << 32).unwrap_err();
    assert!(matches!(error, DeltaError::Memory { needed, .. } if needed > 2 << 30), "{error}");
    // No checksum.
    let mut bare = good.clone();
    bare[4] &= !4;
    assert!(read(&bare, 3000).unwrap_err().to_string().contains("checksum"));
}

// D10
#[test]
fn zstd_bombs_stop_at_the_declared_size() {
    // A frame whose header says 3000 bytes and whose blocks hold 128 KiB of one byte each (RFC 8878, 3.1.1.2: RLE).
    let mut bomb = b"\x28\xb5\x2f\xfd\x64\xb8\x0a".to_vec();
    for _ in 0..1000 {
        let header: u32 = (128 << 10) << 3 | 1 << 1;
        bomb.extend_from_slice(&header.to_le_bytes()[..3]);
        bomb.push(0);
    }
    assert!(decode(Algorithm::ZstdDict, b"", &bomb, 3000).is_err());
}

/// Where the executables below are mapped.
const BASE: u64 = 0x40_0000;
/// Where their content begins.
const CONTENT: usize = 128;

/// An executable for x86-64: `content` behind the headers, and sections by name, flags, offset and length.
fn executable(content: &[u8], sections: &[(&str, u64, usize, usize)]) -> Vec<u8> {
    let mut file = vec![0; CONTENT];
    file.extend_from_slice(content);
    let (mapped, names_at) = (file.len(), file.len() + 1);
    let mut headers = vec![[0; 64]];
    let mut header = |name: usize, kind: u32, flags: u64, at: usize, len: usize| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&(name as u32).to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in [(8, flags), (16, BASE + at as u64), (24, at as u64), (32, len as u64)] {
            header[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
        headers.push(header);
    };
    file.push(0);
    for (name, flags, at, len) in sections {
        header(file.len() - names_at, 1, *flags, *at, *len);
        file.extend_from_slice(name.as_bytes());
        file.push(0);
    }
    header(0, 3, 0, names_at, file.len() - names_at);
    file.resize(file.len().next_multiple_of(16), 0);
    let (table_at, count) = (file.len() as u64, headers.len() as u16);
    file.extend_from_slice(headers.as_flattened());
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 3u16), (18, 62), (54, 56), (56, 1), (58, 64), (60, count), (62, count - 1)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(32, 64), (40, table_at), (80, BASE), (96, mapped as u64), (104, mapped as u64)] {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[64] = 1;
    file[68] = 5;
    file
}

/// Whether a `refdelta` patch says that both files are executables (`docs/formats/refdelta.md`, flags).
fn has_references(patch: &[u8]) -> bool {
    patch[8] & 1 == 1
}

// D10
#[test]
fn refdelta_sections_over_each_other_hold_no_references() {
    let code = [0xE8, 0, 0, 0, 0, 0x90, 0x90, 0x90].repeat(8 << 10);
    let section = |len| (".text", 6, CONTENT, len);
    let mut sections = vec![section(0); 4094];
    sections[0] = section(code.len());
    let apart = executable(&code, &sections);
    let over = executable(&code, &vec![section(code.len()); 4094]);
    let longer = |file: &[u8]| [file, b"x"].concat();
    let patch = generate(Algorithm::Refdelta, &apart, &longer(&apart));
    assert!(has_references(&patch));
    let size = apart.len() as u64 + 1;
    assert_eq!(decode(Algorithm::Refdelta, &apart, &patch, size).unwrap(), longer(&apart));
    refused(Algorithm::Refdelta, &over, &patch, size, "references");
    let patch = generate(Algorithm::Refdelta, &over, &longer(&over));
    assert!(!has_references(&patch));
    assert_eq!(decode(Algorithm::Refdelta, &over, &patch, size).unwrap(), longer(&over));
}

/// An executable with a table of Go whose list of files ends within a field, where the next list begins.
pub fn executable_with_torn_tables() -> Vec<u8> {
    const NAMES: u64 = 72;
    let mut content = vec![0; 1024];
    let mut put = |at: usize, value: u64| content[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, 0xFFFF_FFF1);
    put(8, 1);
    for (word, value) in [(4, NAMES), (5, NAMES), (6, NAMES + 5), (7, NAMES + 5), (8, NAMES + 5)] {
        put(word * 8, value);
    }
    let (table, module) = (BASE + CONTENT as u64, 256);
    put(module, table);
    put(module + 8, table + NAMES);
    executable(&content, &[(".gopclntab", 2, CONTENT, 256), (".data", 3, CONTENT + module, 512)])
}

// D10
#[test]
fn refdelta_tables_that_end_within_a_field_do_no_harm() {
    let old = executable_with_torn_tables();
    let new = [&old[..], b"x"].concat();
    let patch = generate(Algorithm::Refdelta, &old, &new);
    assert!(has_references(&patch));
    assert_eq!(decode(Algorithm::Refdelta, &old, &patch, new.len() as u64).unwrap(), new);
}
