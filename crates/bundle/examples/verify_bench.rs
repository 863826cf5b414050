//! How long it takes to verify a signature over a path of two certificates, and how fast and how small payloads get.
//!
//! `cargo run --release -p cutover-bundle --example verify_bench [FILE...]`: medians on standard output, one line each.
//! With files, each compression level's speed and size over them are added.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    error::Error,
    fs::File,
    io::{Cursor, sink},
    time::{Duration, Instant as Clock},
};

use cutover_bundle::{
    Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, decode_object,
    pki::{Authority, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner},
    verify_detached,
};
use cutover_core::model::{
    Digest, Encoding, FileEntry, FileKind, FileMode, Instant, Manifest, ObjectEntry, Version,
};

const ROUNDS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let now: Instant = "2026-03-01T12:00:00Z".parse()?;
    let year = Validity::days_from(now, 365).ok_or("in range")?;
    let root = Authority::root("Example", year)?;
    let below = root.subordinate("Example", "Release Authority", year)?;
    let anchor = TrustAnchor::parse(root.certificate_pem().as_bytes())?;
    let none = RevocationLists::none();
    let limits = Limits::default();
    for (path, authority, files) in
        [("root and leaf", &root, 5), ("root, authority and leaf", &below, 5), ("root and leaf", &root, 900)]
    {
        let issued = authority.issue_signer("Example", "Alice", year)?;
        let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes())?;
        let signer = FileSigner::from_pem(issued.key_pem.as_bytes(), chain)?;
        let manifest = manifest(files, now)?.to_bytes()?;
        let signature = sign_manifest(&manifest, &[&signer], now)?;
        let took = median(|| {
            verify_detached(&manifest, signature.clone(), &anchor, &none, now, &limits).map(|_| ())
        })?;
        println!("verify P-256, {path}, {files} files: {} us", took.as_micros());
    }

    let files: Vec<String> = std::env::args().skip(1).collect();
    let levels = if files.is_empty() { &[][..] } else { &[3, 6, 9, 12, 15, 19] };
    for level in levels {
        let start = Clock::now();
        let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::new(*level).ok_or("1 to 22")?)?;
        let mut bytes = 0;
        for file in &files {
            bytes += writer.add(File::open(file)?)?.size;
        }
        let payload = writer.finish()?;
        let took = start.elapsed().as_secs_f64();
        let (objects, stored) = (payload.objects.clone(), payload.bytes);
        let mut packed = Vec::new();
        std::io::Read::read_to_end(&mut payload.into_reader(), &mut packed)?;
        let start = Clock::now();
        for object in &objects {
            let range = object.offset as usize..(object.offset + object.stored_size) as usize;
            decode_object(object, &packed[range], &mut sink())?;
        }
        println!(
            "level {level}: {stored} of {bytes} bytes, written at {:.1} MB/s, read at {:.0} MB/s",
            bytes as f64 / took / 1e6,
            bytes as f64 / start.elapsed().as_secs_f64() / 1e6
        );
    }
    Ok(())
}

fn median<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Clock::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn manifest(files: usize, now: Instant) -> Result<Manifest, Box<dyn Error>> {
    let mut manifest = Manifest::new("app".parse()?, Version::new(1, 0, 0), now);
    for number in 0..files {
        let sha256 = Digest::of(&number.to_be_bytes());
        manifest.files.push(FileEntry {
            path: format!("lib/python3/site-packages/package/module_{number}.py").parse()?,
            kind: FileKind::Data,
            mode: FileMode::new(0o644).ok_or("a mode")?,
            sha256,
            size: 8,
        });
        manifest.objects.push(ObjectEntry {
            sha256,
            size: 8,
            stored_size: 8,
            encoding: Encoding::Raw,
            offset: 8 * number as u64,
        });
    }
    Ok(manifest)
}
