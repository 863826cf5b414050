//! Round trips and refusals through the frame of the delta engine.

use proptest::prelude::*;

use super::header::{ABSOLUTE, Codec, FRAME_INDEX, Header, JOINED, MAGIC, REFERENCES, blocks_max};
use crate::delta::{
    Algorithm, Content, Declared, DeltaError, DeltaLimits, GenerateOptions, Pair, Part, apply,
    decode_unchecked, generate,
};

fn make(old: &[u8], new: &[u8]) -> Vec<u8> {
    let options =
        GenerateOptions { threads: std::num::NonZeroUsize::MIN.saturating_add(1), progress: &|_| {} };
    generate(Algorithm::Refdelta, &Pair::new(old, new), &options).unwrap()
}

fn round_trip(old: &[u8], new: &[u8]) -> Vec<u8> {
    let patch = make(old, new);
    let declared = Declared { base: Content::of(old), patch: Content::of(&patch), result: Content::of(new) };
    let limits = DeltaLimits::default();
    let (old, packed) = (old.to_vec(), patch.clone());
    let (out, applied) = apply(Algorithm::Refdelta, &old, &packed, &declared, &limits, Vec::new()).unwrap();
    assert_eq!(out, new);
    assert_eq!(applied.result_bytes, new.len() as u64);
    patch
}

fn decode(old: &[u8], patch: &[u8], new_len: u64) -> Result<Vec<u8>, DeltaError> {
    let mut out = Vec::new();
    let limits = DeltaLimits::default();
    decode_unchecked(Algorithm::Refdelta, &old.to_vec(), &patch.to_vec(), new_len, &limits, &mut out)?;
    Ok(out)
}

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A small executable: functions that call each other, their frames and the index of these, pointers with relocations,
/// symbols. `sizes` are the bodies' lengths, multiples of 16.
pub(in crate::delta) fn program(sizes: &[u32], seed: u32) -> Vec<u8> {
    program_for(62, sizes, seed)
}

/// The same for a machine: 62 is x86-64, 183 arm64 (which calls with `bl` and takes addresses with `adrp` and `add`).
fn program_for(machine: u16, sizes: &[u32], seed: u32) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const TEXT: u32 = 0x1000;
    let mut places = Vec::new();
    let mut end = TEXT;
    for size in sizes {
        places.push(end);
        end += size;
    }
    let mut file = vec![0u8; end as usize];
    for (index, (&at, &size)) in places.iter().zip(sizes).enumerate() {
        let body = noise(size as usize, seed + size);
        file[at as usize..(at + size) as usize].copy_from_slice(&body);
        for (step, call) in (0..size.saturating_sub(16)).step_by(16).enumerate() {
            let at = at + call + if machine == 62 { 3 } else { 4 };
            let to = places[(index * 7 + step * 3 + 1) % places.len()];
            if machine != 62 {
                let distance = i64::from(to) - i64::from(at);
                let pages = (i64::from(to >> 12) - i64::from((at + 4) >> 12)) as u32;
                let page = 0x9000_0000 | 3 | (pages & 3) << 29 | (pages >> 2 & 0x7_FFFF) << 5;
                let add = 0x9100_0000 | 3 << 5 | 3 | (to & 0xFFF) << 10;
                for (step, word) in
                    [0x9400_0000 | (distance >> 2) as u32 & 0x03FF_FFFF, page, add].iter().enumerate()
                {
                    let at = at as usize + step * 4;
                    file[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                continue;
            }
            file[at as usize] = 0xE8;
            let distance = to.wrapping_sub(at + 5);
            file[at as usize + 1..at as usize + 5].copy_from_slice(&distance.to_le_bytes());
        }
    }
    let mut sections: Vec<(&str, u32, u64, u32, u32, u32)> = vec![(".text", 1, 6, TEXT, end - TEXT, 0)];
    let mut section = |file: &mut Vec<u8>, name, kind, flags, bytes: &[u8], link| {
        file.resize(file.len().next_multiple_of(16), 0);
        sections.push((name, kind, flags, file.len() as u32, bytes.len() as u32, link));
        file.extend_from_slice(bytes);
    };
    let index_at = file.len().next_multiple_of(16) as u32;
    let index_len = 12 + 8 * places.len() as u32;
    let frames_at = (index_at + index_len).next_multiple_of(16);
    let mut frames = 20u32.to_le_bytes().to_vec();
    frames.extend_from_slice(&[0; 20]);
    let mut table = Vec::new();
    for (&at, &size) in places.iter().zip(sizes) {
        let start = frames_at + frames.len() as u32;
        table.push((at.wrapping_sub(index_at), start - index_at));
        for word in [20, start + 4 - frames_at, at.wrapping_sub(start + 8), size, 0, 0] {
            frames.extend_from_slice(&u32::to_le_bytes(word));
        }
    }
    let mut index = vec![1, 0x1B, 0x03, 0x3B];
    index.extend_from_slice(&(frames_at - index_at - 4).to_le_bytes());
    index.extend_from_slice(&(table.len() as u32).to_le_bytes());
    for (place, frame) in table {
        index.extend_from_slice(&place.to_le_bytes());
        index.extend_from_slice(&frame.to_le_bytes());
    }
    section(&mut file, ".eh_frame_hdr", 1, 2, &index, 0);
    section(&mut file, ".eh_frame", 1, 2, &frames, 0);
    let mut words = Vec::new();
    let mut relocations = Vec::new();
    let mut symbols = vec![0u8; 24];
    let mut strings = vec![0u8];
    for (index, (&at, &size)) in places.iter().zip(sizes).enumerate() {
        words.extend_from_slice(&(BASE + u64::from(at)).to_le_bytes());
        for word in [BASE + 8 * index as u64, 8, BASE + u64::from(at)] {
            relocations.extend_from_slice(&word.to_le_bytes());
        }
        symbols.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        symbols.extend_from_slice(&[0x12, 0, 1, 0]);
        symbols.extend_from_slice(&(BASE + u64::from(at)).to_le_bytes());
        symbols.extend_from_slice(&u64::from(size).to_le_bytes());
        strings.extend_from_slice(format!("function_{size}\0").as_bytes());
    }
    section(&mut file, ".data", 1, 3, &words, 0);
    section(&mut file, ".rela.dyn", 4, 2, &relocations, 0);
    section(&mut file, ".symtab", 2, 0, &symbols, 6);
    section(&mut file, ".strtab", 3, 0, &strings, 0);
    let mut names = vec![0u8];
    let at: Vec<u32> = sections
        .iter()
        .map(|(name, ..)| {
            let at = names.len() as u32;
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            at
        })
        .collect();
    let names_at = file.len() as u64;
    file.extend_from_slice(&names);
    file.resize(file.len().next_multiple_of(16), 0);
    let table_at = file.len() as u64;
    file.extend_from_slice(&[0; 64]);
    for ((_, kind, flags, offset, len, link), name) in sections.iter().zip(at) {
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&flags.to_le_bytes());
        header[16..24].copy_from_slice(&(BASE + u64::from(*offset)).to_le_bytes());
        header[24..32].copy_from_slice(&u64::from(*offset).to_le_bytes());
        header[32..40].copy_from_slice(&u64::from(*len).to_le_bytes());
        header[40..44].copy_from_slice(&(link + u32::from(*link > 0)).to_le_bytes());
        file.extend_from_slice(&header);
    }
    let mut header = [0u8; 64];
    header[24..32].copy_from_slice(&names_at.to_le_bytes());
    header[32..40].copy_from_slice(&(names.len() as u64).to_le_bytes());
    file.extend_from_slice(&header);
    let len = names_at;
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in
        [(16, 3u16), (18, machine), (54, 56), (56, 1), (58, 64), (60, sections.len() as u16 + 2)]
    {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file[62..64].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[40..48].copy_from_slice(&table_at.to_le_bytes());
    file[64..68].copy_from_slice(&1u32.to_le_bytes());
    file[68..72].copy_from_slice(&5u32.to_le_bytes());
    file[80..88].copy_from_slice(&BASE.to_le_bytes());
    file[96..104].copy_from_slice(&len.to_le_bytes());
    file[104..112].copy_from_slice(&len.to_le_bytes());
    file
}

fn releases() -> (Vec<u8>, Vec<u8>) {
    let old: Vec<u32> = (0..60).map(|index| 64 + index * 16).collect();
    let mut new = old.clone();
    new.insert(7, 2048);
    new.remove(40);
    (program(&old, 1), program(&new, 1))
}

#[test]
fn files_of_every_relation_come_back() {
    let data = noise(70_000, 5);
    let mut edited = data.clone();
    edited.splice(1000..1010, noise(77, 6));
    edited.truncate(60_000);
    let nothing: &[u8] = &[];
    for (old, new) in [
        (nothing, nothing),
        (nothing, &data[..]),
        (&data[..], nothing),
        (&data[..], &data[..]),
        (&data[..], &edited[..]),
        (&[7][..], &[7, 7][..]),
        (&data[..30_000], &noise(30_000, 9)[..]),
        (&vec![0; 300_000][..], &vec![0; 299_999][..]),
    ] {
        round_trip(old, new);
    }
    assert!(round_trip(&data, &data).len() < 40);
    assert!(round_trip(&data, &edited).len() < 200);
}

#[test]
fn executables_cost_what_changed_and_not_what_moved() {
    let (old, new) = releases();
    let patch = round_trip(&old, &new);
    let plain = zstd::bulk::compress(&noise(2048, 2049), 19).unwrap().len();
    assert!(patch.len() < plain + 700, "{} bytes for {plain} new ones", patch.len());
}

#[test]
fn executables_for_arm64_cost_what_changed_and_not_what_moved() {
    let old: Vec<u32> = (0..60).map(|index| 64 + index * 16).collect();
    let mut new = old.clone();
    new.insert(7, 2048);
    let (old, new) = (program_for(183, &old, 1), program_for(183, &new, 1));
    let patch = round_trip(&old, &new);
    let blind = {
        // The same files for a machine that nobody knows.
        let (mut old, mut new) = (old.clone(), new.clone());
        old[18] = 1;
        new[18] = 1;
        round_trip(&old, &new)
    };
    assert!(patch.len() + 1000 < blind.len(), "{} against {}", patch.len(), blind.len());
}

#[test]
fn long_blocks_long_gaps_and_many_literals_go_through_many_batches() {
    let old = noise(3_000_000, 1);
    let mut new = old.clone();
    for at in (100_000..900_000).step_by(13) {
        new[at] = new[at].wrapping_add((at / 169 % 5) as u8 + 1);
    }
    new.splice(1_500_000..1_500_000, noise(1_100_000, 2));
    new.extend_from_slice(&noise(700_000, 3));
    let patch = round_trip(&old, &new);
    assert!(patch.len() < 1_900_000, "{}", patch.len());
}

/// The header of a patch without anything, changed.
fn header(change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header {
        flags: 0,
        old_len: 1000,
        new_len: 1000,
        blocks: 1,
        literals: 0,
        references: 0,
        extra_len: 0,
        frame_span: 0,
        extra_codec: Codec::Stored,
        packed: [0; 4],
    };
    change(&mut header);
    header.encode()
}

/// A header that asks the mixing model for `len` bytes.
fn mixed(len: u32) -> impl Fn(&mut Header) {
    move |header| (header.flags, header.new_len, header.extra_len) = (JOINED, len, len)
}

#[test]
fn more_than_a_mebibyte_is_not_given_to_the_mixing_model() {
    let is_joined = |patch: &[u8]| u64::from(patch[MAGIC.len()]) & JOINED != 0;
    assert!(is_joined(&round_trip(&[], &vec![0; 10_000])));
    assert!(!is_joined(&round_trip(&[], &vec![0; (1 << 20) + 1])));
}

#[test]
fn a_zstd_window_beyond_what_was_reckoned_is_refused() {
    // A frame of the byte 7 with a window of 2^log bytes (RFC 8878, 3.1.1).
    let frame = |log: u8| [b"\x28\xB5\x2F\xFD\x00".as_slice(), &[(log - 10) << 3], b"\x09\0\0\x07"].concat();
    let patch = |log| {
        let frame = frame(log);
        let header = header(|header| {
            (header.new_len, header.blocks, header.extra_len) = (1, 0, 1);
            (header.extra_codec, header.packed[3]) = (Codec::Zstd, frame.len() as u32);
        });
        [header, frame].concat()
    };
    assert_eq!(decode(&[7; 1000], &patch(12), 1).unwrap(), [7]);
    for log in [13, 26] {
        let refused = decode(&[7; 1000], &patch(log), 1).unwrap_err();
        assert!(matches!(refused, DeltaError::Patch { field: "extra bytes", .. }), "{log}: {refused}");
    }
}

#[test]
fn headers_over_a_bound_are_refused_by_field() {
    let with_codec = |number| {
        let mut bytes = header(|_| {});
        let codec = bytes.len() - 5;
        bytes[codec] = number;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("flags", header(|header| header.flags = 64)),
        ("flags", header(|header| header.flags = ABSOLUTE)),
        ("flags", header(|header| header.flags = FRAME_INDEX)),
        ("old size", header(|header| header.old_len = u32::MAX)),
        ("new size", header(|header| header.new_len = 1 << 31)),
        ("blocks", header(|header| header.blocks = blocks_max(1000) + 1)),
        ("literals", header(|header| header.literals = 1001)),
        ("extra bytes", header(|header| (header.literals, header.extra_len) = (600, 401))),
        ("extra bytes", header(mixed((1 << 20) + 1))),
        ("references", header(|header| (header.flags, header.references) = (REFERENCES, 251))),
        ("frame span", header(|header| (header.flags, header.frame_span) = (REFERENCES | FRAME_INDEX, 1001))),
        ("packed size", header(|header| header.packed[1] = 1)),
        ("packed size", header(|header| header.packed[3] = 5000)),
        ("packed size", header(|header| (header.flags, header.packed[0]) = (JOINED, 9))),
        ("magic", b"RFDELTA\x02".to_vec()),
        ("magic", b"RFD".to_vec()),
        ("flags", [MAGIC.as_slice(), &[0x80, 0]].concat()),
        ("flags", [MAGIC.as_slice(), &[0xFF; 6]].concat()),
        ("old size", [MAGIC.as_slice(), &[0]].concat()),
        ("codec", with_codec(2)),
        ("codec", with_codec(3)),
    ];
    for (number, (field, patch)) in cases.iter().enumerate() {
        match decode(&[7; 1000], patch, 1000) {
            Err(DeltaError::Patch { field: found, .. }) => assert_eq!(found, *field, "case {number}"),
            other => panic!("case {number}, {field}: {other:?}"),
        }
    }
}

#[test]
fn streams_that_do_not_make_the_file_are_refused() {
    for (field, patch) in [
        ("extra bytes", header(|header| header.blocks = 0)),
        ("block", header(|_| {})),
        ("flags", header(|header| header.flags = REFERENCES)),
        ("extra bytes", header(|header| (header.blocks, header.extra_len) = (0, 1000))),
    ] {
        match decode(&[7; 1000], &patch, 1000) {
            Err(DeltaError::Patch { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn cut_off_executables_are_bytes_like_any_others() {
    let (old, new) = releases();
    for len in (0..400).step_by(13).chain((400..old.len()).step_by(2999)) {
        round_trip(&old[..len], &new[..len.min(new.len())]);
    }
}

#[test]
fn executables_with_damaged_headers_do_no_harm() {
    let (old, new) = releases();
    let tables = old.len() - 9 * 64;
    for (at, seed) in (16..128).chain(tables..old.len()).step_by(7).zip(1..) {
        let mut old = old.clone();
        old[at] ^= 1 << (seed % 8);
        let mut new = new.clone();
        let end = new.len();
        new[end - (old.len() - at)..][0] ^= 0x40;
        round_trip(&old, &new);
    }
}

#[test]
fn a_flipped_byte_or_a_cut_is_refused_or_makes_another_file_of_the_declared_size() {
    let (old, new) = releases();
    for (old, new) in
        [(old, new), (b"one two three four five".to_vec(), b"one two three for five six".to_vec())]
    {
        let patch = make(&old, &new);
        for at in 0..patch.len() {
            for flip in [1u8, 0x80, 0xFF] {
                let mut damaged = patch.clone();
                damaged[at] ^= flip;
                if let Ok(out) = decode(&old, &damaged, new.len() as u64) {
                    assert_eq!(out.len(), new.len());
                }
            }
            if let Ok(out) = decode(&old, &patch[..at], new.len() as u64) {
                assert_eq!(out.len(), new.len());
            }
        }
        let mut longer = patch.clone();
        longer.extend_from_slice(&[1; 16]);
        assert!(decode(&old, &longer, new.len() as u64).is_err());
    }
}

#[test]
fn a_patch_for_other_sizes_is_refused_before_memory_is_taken() {
    let (old, new) = (noise(5000, 1), noise(5000, 1));
    let patch = make(&old, &new);
    assert!(matches!(decode(&old[1..], &patch, 5000), Err(DeltaError::WrongSize { part: Part::Base, .. })));
    assert!(matches!(decode(&old, &patch, 4999), Err(DeltaError::WrongSize { part: Part::Result, .. })));
}

#[test]
fn a_patch_over_the_memory_limit_is_refused() {
    let old = noise(5000, 1);
    let patch = make(&old, &old);
    let limits = DeltaLimits { memory_bytes_max: 1 << 20, ..DeltaLimits::default() };
    let result = decode_unchecked(Algorithm::Refdelta, &old, &patch, 5000, &limits, &mut Vec::new());
    assert!(matches!(result, Err(DeltaError::Memory { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_two_files_make_a_patch_that_works(
        old in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xE8), any::<u8>()], 0..3000),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..300, any::<u8>()), 0..12),
    ) {
        let mut new = Vec::new();
        for (at, len, byte) in cuts {
            if !old.is_empty() {
                let at = at.index(old.len());
                new.extend_from_slice(&old[at..old.len().min(at + len)]);
            }
            new.push(byte);
        }
        round_trip(&old, &new);
    }

    #[test]
    fn noise_after_the_magic_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut patch = super::header::MAGIC.to_vec();
        patch.extend_from_slice(&bytes);
        let _ = decode(b"some base", &patch, 64);
    }
}
