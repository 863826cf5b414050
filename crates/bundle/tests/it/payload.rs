//! Payloads: what is written can be read, also past 4 GiB, and what lies is refused in bounded memory.

use std::io::{self, Cursor, Read, Write};

use cutover_bundle::{
    Bundle, Level, Limits, ObjectError, PayloadWriter, ReadAt, RevocationLists, WINDOW_BYTES_MAX,
    decode_object, sign_manifest,
};
use cutover_core::model::{Digest, Encoding, Manifest, ManifestLimits, ObjectEntry, Version};

use crate::support::{now, pki, release};

fn entry(content: &[u8], stored: &[u8], encoding: Encoding) -> ObjectEntry {
    ObjectEntry {
        sha256: Digest::of(content),
        size: content.len() as u64,
        stored_size: stored.len() as u64,
        encoding,
        offset: 0,
    }
}

fn decode(entry: &ObjectEntry, stored: &[u8]) -> Result<Vec<u8>, ObjectError> {
    let mut content = Vec::new();
    decode_object(entry, stored, &mut content).map(|()| content)
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 3).expect("in memory")
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A writer that only counts.
#[derive(Default)]
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn contents_of_every_size_round_trip_in_the_smaller_encoding() {
    let sizes = [0, 1, 100, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000];
    for size in sizes {
        for (content, encoding) in [
            (vec![b'a'; size], if size < 20 { Encoding::Raw } else { Encoding::Zstd }),
            (noise(size), Encoding::Raw),
        ] {
            for level in [1, 12, 22] {
                let mut writer =
                    PayloadWriter::new(Cursor::new(Vec::new()), Level::new(level).expect("a level"))
                        .expect("a spool");
                let added = writer.add(content.as_slice()).expect("in memory");
                assert_eq!(added.sha256, Digest::of(&content));
                let payload = writer.finish().expect("in memory");
                assert_eq!(payload.objects.len(), 1);
                let entry = payload.objects[0].clone();
                assert_eq!(entry.encoding, encoding, "{size} bytes");
                let mut stored = Vec::new();
                payload.into_reader().read_to_end(&mut stored).expect("in memory");
                assert_eq!(decode(&entry, &stored).expect("good"), content, "{size} bytes, level {level}");
            }
        }
    }
}

#[test]
fn repeated_content_leaves_no_trace_in_the_payload() {
    let mut writer = PayloadWriter::new(Cursor::new(vec![0xff; 100]), Level::default()).expect("a spool");
    let (big, small) = (noise(2_000_000), b"small".to_vec());
    for content in [&big, &small, &big, &small] {
        writer.add(content.as_slice()).expect("in memory");
    }
    writer.add(&b"last"[..]).expect("in memory");
    writer.add(big.as_slice()).expect("in memory");
    let payload = writer.finish().expect("in memory");
    assert_eq!(payload.objects.len(), 3);
    let (bytes, objects) = (payload.bytes, payload.objects.clone());
    let mut stored = Vec::new();
    payload.into_reader().read_to_end(&mut stored).expect("in memory");
    assert_eq!(stored.len() as u64, bytes);
    for object in objects {
        let (start, end) = (object.offset as usize, (object.offset + object.stored_size) as usize);
        decode(&object, &stored[start..end]).expect("good");
    }
}

#[test]
fn declared_sizes_are_exact() {
    let content = b"some content, some content, some content, some content".repeat(10);
    let stored = zstd(&content);
    let good = entry(&content, &stored, Encoding::Zstd);
    decode(&good, &stored).expect("good");
    let with = |edit: fn(&mut ObjectEntry)| {
        let mut entry = good.clone();
        edit(&mut entry);
        decode(&entry, &stored).expect_err("a lie")
    };
    assert!(matches!(with(|entry| entry.stored_size += 1), ObjectError::StoredSize { problem: "fewer", .. }));
    assert!(matches!(with(|entry| entry.stored_size -= 1), ObjectError::StoredSize { problem: "more", .. }));
    // The frame's own header contradicts.
    assert!(matches!(with(|entry| entry.size += 1), ObjectError::Frame { .. }));
    assert!(matches!(with(|entry| entry.size -= 1), ObjectError::Frame { .. }));
    assert!(matches!(with(|entry| entry.size = 1 << 63), ObjectError::Frame { .. }));
    assert!(matches!(with(|entry| entry.sha256 = Digest::of(b"")), ObjectError::Digest { .. }));

    let raw = entry(&content, &content, Encoding::Raw);
    for size in [raw.size - 1, raw.size + 1, u64::MAX] {
        let lie = ObjectEntry { size, ..raw.clone() };
        assert!(matches!(decode(&lie, &content), Err(ObjectError::Size { .. })));
    }
}

/// A frame without its content's size in the header, as a streaming compressor writes it.
fn streamed(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("in memory");
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

// sig-6
#[test]
fn decompression_bomb_stops_at_the_declared_size() {
    // 1 GiB of zeros behind some 33 KB of frame.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("in memory");
    io::copy(&mut io::repeat(0).take(1 << 30), &mut encoder).expect("in memory");
    let bomb = encoder.finish().expect("in memory");
    assert!(bomb.len() < 1 << 17, "{} bytes", bomb.len());
    let lie = ObjectEntry { size: 1000, ..entry(&[0; 1000], &bomb, Encoding::Zstd) };
    let mut written = Count::default();
    let error = decode_object(&lie, bomb.as_slice(), &mut written).expect_err("a bomb");
    assert!(matches!(error, ObjectError::Size { problem: "more", .. }), "{error}");
    assert!(written.0 <= 1000, "{} bytes were written", written.0);
}

#[test]
fn only_one_plain_frame_is_accepted() {
    let content = b"content content content content content".repeat(20);
    let frame = streamed(&content);
    decode(&entry(&content, &frame, Encoding::Zstd), &frame).expect("good");
    let reason = |stored: &[u8]| match decode(&entry(&content, stored, Encoding::Zstd), stored) {
        Err(ObjectError::Frame { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let skippable = [&0x184D_2A50u32.to_le_bytes()[..], &2u32.to_le_bytes(), b"ab"].concat();
    assert!(reason(&[frame.as_slice(), b"x"].concat()).contains("behind"));
    assert!(reason(&[frame.clone(), zstd(b"")].concat()).contains("behind"));
    assert!(reason(&[frame.clone(), skippable.clone()].concat()).contains("behind"));
    assert!(reason(&[skippable, frame.clone()].concat()).contains("magic"));
    assert!(reason(b"plain text").contains("magic"));
    for length in 4..frame.len() {
        reason(&frame[..length]);
    }
    for length in 0..4 {
        assert!(decode(&entry(&content, &frame[..length], Encoding::Zstd), &frame[..length]).is_err());
    }

    let dictionary = b"content content content".repeat(20);
    let mut compressor = zstd::bulk::Compressor::with_dictionary(3, &dictionary).expect("in memory");
    let with_dictionary = compressor.compress(&content).expect("in memory");
    assert!(decode(&entry(&content, &with_dictionary, Encoding::Zstd), &with_dictionary).is_err());
}

#[test]
fn window_over_the_limit_is_refused_before_memory_is_taken() {
    let content = noise(10_000_000);
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("in memory");
    encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(24)).expect("a parameter");
    encoder.write_all(&content).expect("in memory");
    let wide = encoder.finish().expect("in memory");
    match decode(&entry(&content, &wide, Encoding::Zstd), &wide) {
        Err(ObjectError::Frame { reason, .. }) => assert!(reason.contains("window"), "{reason}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    // A header that asks for 3.75 TiB.
    let mut header = 0xFD2F_B528u32.to_le_bytes().to_vec();
    header.extend([0x00, 0xff, 0, 0, 0]);
    match decode(&entry(b"", &header, Encoding::Zstd), &header) {
        Err(ObjectError::Frame { reason, .. }) => assert!(reason.contains("window"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(WINDOW_BYTES_MAX, 8 << 20);
}

#[test]
fn failed_reads_and_writes_are_told_apart() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::Other.into())
        }
    }
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let entry = entry(b"abc", b"abc", Encoding::Raw);
    assert!(matches!(decode_object(&entry, Broken, &mut io::sink()), Err(ObjectError::Read { .. })));
    assert!(matches!(
        decode_object(&entry, &b"abc"[..], &mut Broken),
        Err(ObjectError::Write { source, .. }) if source.kind() == io::ErrorKind::StorageFull
    ));
}

/// A file of which only the start and the end exist; between them are zeros.
struct Sparse {
    start: Vec<u8>,
    end_at: u64,
    end: Vec<u8>,
}

impl ReadAt for Sparse {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size()?.saturating_sub(offset);
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for (at, byte) in buf[..count].iter_mut().enumerate() {
            let at = offset + at as u64;
            *byte = match (
                usize::try_from(at).ok().and_then(|at| self.start.get(at)),
                at.checked_sub(self.end_at),
            ) {
                (Some(byte), _) => *byte,
                (None, Some(at)) => self.end[at as usize],
                (None, None) => 0,
            };
        }
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.end_at + self.end.len() as u64)
    }
}

#[test]
fn object_past_4_gib_is_read_from_its_offset() {
    let pki = pki();
    let last = b"the last object".to_vec();
    let (manifest, _) = release(
        Version::new(1, 0, 0),
        &[("big", b"stands for the big one".to_vec()), ("last", last.clone())],
    );
    let mut manifest = Manifest::parse(&manifest, &ManifestLimits::default()).expect("ours");
    // 5 GiB of zeros would take seconds to hash; its digest does not matter here, only its length.
    const BIG: u64 = 5 << 30;
    manifest.files[0].size = BIG;
    manifest.objects[0].size = BIG;
    manifest.objects[0].stored_size = BIG;
    manifest.objects[0].encoding = Encoding::Raw;
    manifest.objects[1].offset = BIG;
    let manifest = manifest.to_bytes().expect("valid");
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    let mut start = b"CUTOVER\x01".to_vec();
    start.extend((manifest.len() as u32).to_be_bytes());
    start.extend((signature.len() as u32).to_be_bytes());
    start.extend(&manifest);
    start.extend(&signature);
    let source = Sparse { end_at: start.len() as u64 + BIG, start, end: last.clone() };
    let bundle = Bundle::open(&source, &Limits::default())
        .expect("a bundle")
        .verify(&pki.anchor, &RevocationLists::none(), now())
        .expect("trusted");
    let entry = bundle.manifest().objects[1].clone();
    assert_eq!(entry.offset, BIG);
    let mut content = Vec::new();
    bundle.copy_object(&entry, &mut content, &mut io::sink()).expect("good");
    assert_eq!(content, last);
}

#[test]
fn several_threads_read_one_bundle() {
    let pki = pki();
    let contents: Vec<(String, Vec<u8>)> =
        (0..20).map(|i| (format!("file-{i}"), noise(10_000 + i))).collect();
    let named: Vec<(&str, Vec<u8>)> =
        contents.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let (manifest, payload) = release(Version::new(1, 0, 0), &named);
    let signature = sign_manifest(&manifest, &[&pki.signer], now()).expect("signed");
    let bytes = crate::support::bundle(&manifest, &signature, &payload);
    let bundle = crate::support::verify(&bytes, &pki.anchor).expect("trusted");
    std::thread::scope(|scope| {
        for part in bundle.manifest().objects.chunks(5) {
            let bundle = &bundle;
            scope.spawn(move || {
                for entry in part {
                    let mut count = Count::default();
                    bundle.copy_object(entry, &mut count, &mut io::sink()).expect("good");
                    assert_eq!(count.0, entry.size);
                }
            });
        }
    });
}
