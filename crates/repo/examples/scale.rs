//! What publishing and refreshing cost in a repository of many objects: one line for each size, as `docs/bench-repository.md`
//! shows them. `cargo run -p cutover-repo --example scale -- DIR`, an empty directory with room for about 4 GiB of small
//! files.

#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::{self, Cursor},
    path::Path,
    time::{Instant as Clock, SystemTime, UNIX_EPOCH},
};

use cutover_bundle::{
    Bundle, Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, VerifiedBundle, assemble,
    pki::{Authority, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner},
};
use cutover_core::model::{FileEntry, FileKind, FileMode, Instant, Manifest, Version};
use cutover_repo::{
    Catalogue, DirectoryStorage, Fetch, FetchError, MetadataKey, NewRelease, Publisher, RepositorySettings,
    State, Wanted,
    tuf::{Client, ClientLimits, RoleKind},
};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Objects of one release.
const OBJECTS: u64 = 10_000;
/// Of these, how many differ from version to version.
const CHANGED: u64 = 100;
/// Packages in the repository, one release each, before anything is measured.
const SIZES: [u64; 3] = [1, 10, 100];

struct Pki {
    anchor: TrustAnchor,
    signer: FileSigner,
    now: Instant,
}

fn main() -> Result<(), Failed> {
    let dir = std::env::args().nth(1).ok_or("usage: scale DIR")?;
    let dir = Path::new(&dir);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let now = Instant::from_unix(now).ok_or("the clock is out of range")?;
    let days = |count| Validity::days_from(now, count).ok_or("the clock is out of range");
    let authority = Authority::root("Scale", days(10)?)?;
    let issued = authority.issue_signer("Scale", "Signer", days(10)?)?;
    let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes())?;
    let pki = Pki {
        anchor: TrustAnchor::parse(authority.certificate_pem().as_bytes())?,
        signer: FileSigner::from_pem(issued.key_pem.as_bytes(), chain)?,
        now,
    };
    let keys = (0..4).map(|_| MetadataKey::generate().map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
    let kinds = [RoleKind::Root, RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp];
    let roles = kinds.into_iter().zip(&keys).map(|(kind, key)| (kind, (vec![key.public().clone()], 1)));
    let storage = DirectoryStorage::open_or_make(dir)?;
    drop(Publisher::create(&storage, &roles.collect(), RepositorySettings::default(), &keys, now)?);

    println!(
        "objects | publish, s | new objects | client that is up to date, bytes | client that gets the release, bytes | requests"
    );
    println!("-|-|-|-|-|-");
    let client = Memory::default();
    client.keep("root", &std::fs::read(dir.join("metadata/1.root.json"))?)?;
    let mut packages = 0;
    for size in SIZES {
        while packages < size {
            let bundle = bundle(&pki, &format!("p{packages}"), 0, packages)?;
            Publisher::open(&storage, &keys, now)?.publish(&[NewRelease {
                bundle: &bundle,
                channel: None,
                deltas: Vec::new(),
            }])?;
            packages += 1;
        }
        let counted = Counted { inner: &storage, bytes: Cell::new(0), requests: Cell::new(0) };
        Client::refresh(&counted, &client, now, ClientLimits::default())?;
        counted.reset();
        Client::refresh(&counted, &client, now, ClientLimits::default())?;
        let idle = counted.reset().0;

        let version = packages;
        let bundle = bundle(&pki, "p0", version, 0)?;
        let started = Clock::now();
        let published = Publisher::open(&storage, &keys, now)?.publish(&[NewRelease {
            bundle: &bundle,
            channel: None,
            deltas: Vec::new(),
        }])?;
        let took = started.elapsed();
        let mut catalogue = Catalogue::new(Client::refresh(&counted, &client, now, ClientLimits::default())?);
        let chosen = catalogue.choose(&Wanted {
            package: "p0".parse()?,
            version: None,
            platform: "any".parse()?,
            channels: vec!["stable".parse()?],
        })?;
        if chosen.entry.version != Version::new(1, version, 0) {
            return Err("the client found another release".into());
        }
        let (bytes, requests) = counted.reset();
        println!(
            "{} | {:.2} | {} | {idle} | {bytes} | {requests}",
            packages * OBJECTS,
            took.as_secs_f64(),
            published.objects_new
        );
    }
    Ok(())
}

/// A release of [`OBJECTS`] small files; [`CHANGED`] of them say their version, the others their package.
fn bundle(pki: &Pki, package: &str, minor: u64, seed: u64) -> Result<VerifiedBundle<Vec<u8>>, Failed> {
    let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::new(1).ok_or("a level")?)?;
    let mut files = Vec::new();
    for number in 0..OBJECTS {
        let content =
            if number < CHANGED { format!("{seed} {number} {minor}") } else { format!("{seed} {number}") };
        let added = writer.add(content.as_bytes())?;
        files.push(FileEntry {
            path: format!("share/{number}").parse()?,
            kind: FileKind::Data,
            mode: FileMode::new(0o644).ok_or("a mode")?,
            sha256: added.sha256,
            size: added.size,
        });
    }
    let payload = writer.finish()?;
    let manifest = Manifest {
        files,
        objects: payload.objects.clone(),
        ..Manifest::new(package.parse()?, Version::new(1, minor, 0), pki.now)
    };
    let bytes = manifest.to_bytes()?;
    let signature = sign_manifest(&bytes, &[&pki.signer], pki.now)?;
    let mut out = Vec::new();
    assemble(&bytes, &signature, payload.into_reader(), &mut out, &Limits::default())?;
    Ok(Bundle::open(out, &Limits::default())?.verify(&pki.anchor, &RevocationLists::none(), pki.now)?)
}

struct Counted<'a> {
    inner: &'a DirectoryStorage,
    bytes: Cell<usize>,
    requests: Cell<usize>,
}

impl Counted<'_> {
    fn reset(&self) -> (usize, usize) {
        (self.bytes.take(), self.requests.take())
    }
}

impl Fetch for Counted<'_> {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        self.requests.set(self.requests.get() + 1);
        let bytes = self.inner.fetch(path, bytes_max)?;
        self.bytes.set(self.bytes.get() + bytes.len());
        Ok(bytes)
    }
}

#[derive(Default)]
struct Memory(RefCell<BTreeMap<String, Vec<u8>>>);

impl State for Memory {
    fn load(&self, role: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().get(role).cloned())
    }

    fn keep(&self, role: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().insert(role.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, role: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(role);
        Ok(())
    }
}
