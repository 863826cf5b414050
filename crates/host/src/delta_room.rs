//! The memory that the patches of one update take: those that are applied at the same time share one limit.

use std::{
    io::Write,
    sync::{Condvar, Mutex},
};

use cutover_bundle::{
    ReadAt, VerifiedDelta,
    delta::{DeltaError, DeltaLimits, Source},
};
use cutover_core::model::DeltaFile;

/// Applies patches, as many at the same time as the memory for all of them lasts; the others wait.
pub(crate) struct Room {
    limits: DeltaLimits,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that the patches may take which are being applied.
    taken: u64,
    /// How many patches wait.
    waiting: usize,
}

impl Room {
    /// `limits` are those of each patch; that of the memory is also that of all of them together.
    pub(crate) fn new(limits: DeltaLimits) -> Self {
        Self { limits, state: Mutex::default(), freed: Condvar::new() }
    }

    /// Applies a patch of `delta` as soon as there is room for it.
    ///
    /// # Errors
    /// See [`DeltaError`]; what was written before an error must be thrown away.
    pub(crate) fn apply<R: ReadAt + Sync>(
        &self,
        delta: &VerifiedDelta<R>,
        file: &DeltaFile,
        base: &Source<'_>,
        out: &mut dyn Write,
    ) -> Result<(), DeltaError> {
        let _place = self.take(delta.memory_needed(file, base, &self.limits)?);
        delta.apply_patch(file, base, &self.limits, out).map(drop)
    }

    fn take(&self, bytes: u64) -> Place<'_> {
        // Alone there is always room: what needs more than the limit is refused for that, and does not wait for ever.
        let is_full = |state: &State| {
            state.taken > 0 && state.taken.saturating_add(bytes) > self.limits.memory_bytes_max
        };
        let mut state = self.state.lock().expect("no holder panics");
        if is_full(&state) {
            state.waiting += 1;
            tracing::debug!(bytes, taken = state.taken, waiting = state.waiting, "a patch waits for memory");
            state = self.freed.wait_while(state, |state| is_full(state)).expect("no holder panics");
            state.waiting -= 1;
        }
        state.taken += bytes;
        Place { room: self, bytes }
    }
}

/// What one patch may take; given back when dropped.
struct Place<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.state.lock().expect("no holder panics").taken -= self.bytes;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Cursor},
        sync::{
            Barrier, Once,
            atomic::{AtomicBool, Ordering},
        },
    };

    use cutover_bundle::{
        DeltaBundle, Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, assemble_delta,
        delta::{self, Algorithm, GenerateOptions, Pair},
        pki::{Authority, Validity},
        sign_manifest,
        signer::{CertificateChain, FileSigner},
    };
    use cutover_core::model::{
        DELTA_FORMAT, DeltaManifest, Digest, FileEntry, FileKind, FileMode, Instant, Manifest, ReleaseRef,
    };

    use super::*;

    fn contents(change: u8) -> [Vec<u8>; 2] {
        [1u8, 2].map(|file| {
            let mut bytes: Vec<u8> =
                (0..4000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            bytes[100] = file;
            bytes[2000] = change;
            bytes
        })
    }

    /// A delta of two patches, signed, and nothing in full.
    fn delta() -> VerifiedDelta<Vec<u8>> {
        let time: Instant = "2026-03-01T12:00:00Z".parse().expect("a time");
        let days = |count| Validity::days_from(time, count).expect("in range");
        let root = Authority::root("Example", days(3650)).expect("a root");
        let issued = root.issue_signer("Example", "Alice", days(365)).expect("a signer");
        let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
        let signer = FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key");
        let anchor = TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor");

        let (old, new) = (contents(1), contents(2));
        let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::default()).expect("a spool");
        let mut files = Vec::new();
        for (path, content) in ["a", "b"].into_iter().zip(&new) {
            let added = writer.add(content.as_slice()).expect("in memory");
            let (mode, path) = (FileMode::new(0o644).expect("a mode"), path.parse().expect("a path"));
            files.push(FileEntry {
                path,
                kind: FileKind::Data,
                mode,
                sha256: added.sha256,
                size: added.size,
            });
        }
        let objects = writer.finish().expect("in memory").objects;
        let package: cutover_core::model::Name = "app".parse().expect("a name");
        let version = "1.1.0".parse().expect("a version");
        let manifest = Manifest { files, objects, ..Manifest::new(package.clone(), version, time) };
        let mut payload = Vec::new();
        let mut patches = Vec::new();
        for ((file, base), target) in manifest.files.iter().zip(&old).zip(&new) {
            let pair = Pair::new(base, target);
            let patch =
                delta::generate(Algorithm::Bsdiff, &pair, &GenerateOptions::default()).expect("a patch");
            patches.push(DeltaFile {
                path: file.path.clone(),
                base_path: None,
                base_sha256: Digest::of(base),
                base_size: base.len() as u64,
                target_sha256: file.sha256,
                target_size: file.size,
                patch_sha256: Digest::of(&patch),
                patch_size: patch.len() as u64,
                offset: payload.len() as u64,
                algorithm: Algorithm::Bsdiff,
                order: 0,
                depends_on: Vec::new(),
                candidates: Vec::new(),
            });
            payload.extend(patch);
        }
        let version = manifest.version.clone();
        let manifest = manifest.to_bytes().expect("a valid manifest");
        let to = ReleaseRef { package: package.clone(), version, manifest: Digest::of(&manifest) };
        let from = ReleaseRef {
            package,
            version: "1.0.0".parse().expect("a version"),
            manifest: Digest::of(b"that of the old release"),
        };
        let described = DeltaManifest {
            format: DELTA_FORMAT,
            from,
            to,
            enforce_order: false,
            files: patches,
            objects: Vec::new(),
        };
        let bytes = described.to_bytes().expect("a valid delta manifest");
        let sign = |bytes: &[u8]| sign_manifest(bytes, &[&signer], time).expect("signed");
        let (release, signature) = (sign(&manifest), sign(&bytes));
        let mut out = Vec::new();
        let described = (&described, bytes.as_slice(), signature.as_slice());
        assemble_delta(
            (&manifest, &release),
            described,
            &mut payload.as_slice(),
            &mut out,
            &Limits::default(),
        )
        .expect("in memory");
        let bundle = DeltaBundle::open(out, &Limits::default()).expect("a delta bundle");
        bundle.verify(&anchor, &RevocationLists::none(), time).expect("trusted")
    }

    /// A base that stops whoever reads it first.
    struct Gate<'a> {
        bytes: Vec<u8>,
        once: Once,
        entered: &'a Barrier,
        go_on: &'a Barrier,
    }

    impl ReadAt for Gate<'_> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.once.call_once(|| {
                self.entered.wait();
                self.go_on.wait();
            });
            self.bytes.read_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            self.bytes.size()
        }
    }

    /// A base that knows whether it was read.
    struct Watched {
        bytes: Vec<u8>,
        read: AtomicBool,
    }

    impl ReadAt for Watched {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.read.store(true, Ordering::SeqCst);
            self.bytes.read_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            self.bytes.size()
        }
    }

    /// Applies both patches, the second while the first is under way; whether they were under way at the same time.
    fn apply_both(memory_bytes_max: u64) -> bool {
        let delta = delta();
        let room = Room::new(DeltaLimits { memory_bytes_max, ..DeltaLimits::default() });
        let [one, two] = contents(1);
        let (entered, go_on) = (Barrier::new(2), Barrier::new(2));
        let gate = Gate { bytes: one, once: Once::new(), entered: &entered, go_on: &go_on };
        let watched = Watched { bytes: two, read: AtomicBool::new(false) };
        let [first, second] = &*delta.delta().files else { panic!("two patches") };
        let apply = |file: &DeltaFile, base: &Source<'_>| {
            let mut out = Vec::new();
            room.apply(&delta, file, base, &mut out).map(|()| out)
        };
        std::thread::scope(|scope| {
            let one = scope.spawn(|| apply(first, &gate));
            entered.wait();
            let two = scope.spawn(|| apply(second, &watched));
            let is_read = || watched.read.load(Ordering::SeqCst);
            while !is_read() && room.state.lock().expect("no holder panics").waiting == 0 {
                std::thread::yield_now();
            }
            let at_once = is_read();
            go_on.wait();
            let made = [one, two].map(|thread| thread.join().expect("no panic").expect("applied"));
            assert_eq!(made, contents(2));
            at_once
        })
    }

    #[test]
    fn patches_that_need_more_memory_together_than_is_allowed_wait_for_each_other() {
        // The decoder of bsdiff needs 17.6 MiB.
        assert!(!apply_both(20 << 20));
        assert!(apply_both(40 << 20));
    }

    #[test]
    fn patch_that_needs_more_than_is_allowed_is_refused_and_does_not_wait() {
        let delta = delta();
        let room = Room::new(DeltaLimits { memory_bytes_max: 1 << 20, ..DeltaLimits::default() });
        let [one, _] = contents(1);
        let refused = room.apply(&delta, &delta.delta().files[0], &one, &mut io::sink());
        assert!(matches!(refused, Err(DeltaError::Memory { .. })), "{refused:?}");
        assert_eq!(room.state.lock().expect("no holder panics").taken, 0);
    }
}
