//! The world of a test: a PKI, bundles, a repository in a directory, clients that keep their state in memory.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, Cursor},
    sync::OnceLock,
};

use cutover_bundle::{
    Bundle, Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, VerifiedBundle, assemble,
    pki::{Authority, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner},
    tlog::{CheckpointPolicy, KeyKind, VerifierKey},
};
use cutover_core::model::{FileEntry, FileKind, FileMode, Instant, Manifest, Name, Version};
use cutover_repo::{
    Catalogue, DirectoryStorage, Fetch, FetchError, FollowedLog, LOG_KEY_PATH, LogError, MetadataKey,
    NewDelta, NewRelease, PublishError, Published, Publisher, Report, RepositorySettings, State, Storage,
    Wanted,
    tuf::{Client, ClientError, ClientLimits, RoleKind},
    verify,
};

pub(crate) type Verified = VerifiedBundle<Vec<u8>>;

pub(crate) struct Pki {
    pub(crate) anchor: TrustAnchor,
    pub(crate) signer: FileSigner,
}

pub(crate) fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let days = |count| Validity::days_from(at(0), count).expect("in range");
        let root = Authority::root("Example", days(3650)).expect("a root");
        let issued = root.issue_signer("Example", "Alice", days(800)).expect("a signer");
        let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
        Pki {
            anchor: TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor"),
            signer: FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key"),
        }
    })
}

/// A time, in hours after the start of the story.
pub(crate) fn at(hours: i64) -> Instant {
    let start: Instant = "2026-03-01T12:00:00Z".parse().expect("a time");
    Instant::from_unix(start.unix() + hours * 3600).expect("in range")
}

/// The present hour of the story, for whoever reads the real clock.
pub(crate) fn now_hours() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    (now.as_secs() as i64 - at(0).unix()) / 3600
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect(text)
}

pub(crate) fn version(text: &str) -> Version {
    text.parse().expect(text)
}

/// A release of `app` with these files, for `any` platform in `stable`.
pub(crate) fn bundle(version: &str, files: &[(&str, &[u8])]) -> Verified {
    bundle_of("app", version, files)
}

pub(crate) fn bundle_of(package: &str, version: &str, files: &[(&str, &[u8])]) -> Verified {
    let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::default()).expect("a spool");
    let mut entries = Vec::new();
    for (path, content) in files {
        let added = writer.add(*content).expect("in memory");
        entries.push(FileEntry {
            path: path.parse().expect("a path"),
            kind: FileKind::Data,
            mode: FileMode::new(0o644).expect("a mode"),
            sha256: added.sha256,
            size: added.size,
        });
    }
    let payload = writer.finish().expect("in memory");
    let manifest = Manifest {
        files: entries,
        objects: payload.objects.clone(),
        ..Manifest::new(name(package), self::version(version), at(0))
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut payload.into_reader(), &mut bytes).expect("in memory");
    let manifest = manifest.to_bytes().expect("a valid manifest");
    let signature = sign_manifest(&manifest, &[&pki().signer], at(0)).expect("a signature");
    let mut out = Vec::new();
    assemble(&manifest, &signature, bytes.as_slice(), &mut out, &Limits::default()).expect("in memory");
    Bundle::open(out, &Limits::default())
        .expect("a bundle")
        .verify(&pki().anchor, &RevocationLists::none(), at(0))
        .expect("a good bundle")
}

/// A repository and the keys of its roles.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keys: Vec<MetadataKey>,
    pub(crate) grace_s: u32,
}

pub(crate) fn role_keys(
    keys: &[MetadataKey],
) -> BTreeMap<RoleKind, (Vec<cutover_repo::tuf::PublicKey>, u64)> {
    let kinds = [RoleKind::Root, RoleKind::Targets, RoleKind::Snapshot, RoleKind::Timestamp];
    kinds.into_iter().zip(keys).map(|(kind, key)| (kind, (vec![key.public().clone()], 1))).collect()
}

pub(crate) fn four_keys() -> Vec<MetadataKey> {
    (0..4).map(|_| MetadataKey::generate().expect("a key").0).collect()
}

/// An Ed25519 key, the same for the same seed.
pub(crate) fn ed25519(seed: u8) -> MetadataKey {
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key");
    let pkcs8 = pair.to_pkcs8().expect("encoded");
    let pem =
        der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, pkcs8.as_ref()).expect("it fits");
    MetadataKey::from_pem(pem.as_bytes()).expect("a key")
}

impl World {
    /// An empty repository, set up at hour 0.
    pub(crate) fn new(grace_s: u32) -> Self {
        let mut keys = four_keys();
        keys.push(ed25519(7));
        let world = Self { dir: tempfile::tempdir().expect("a directory"), keys, grace_s };
        let storage = world.storage();
        world.create(&storage).expect("set up");
        world
    }

    pub(crate) fn create(&self, storage: &dyn Storage) -> Result<(), PublishError> {
        self.create_at(storage, 0)
    }

    pub(crate) fn create_at(&self, storage: &dyn Storage, hours: i64) -> Result<(), PublishError> {
        let settings = RepositorySettings { grace_s: self.grace_s, ..RepositorySettings::default() };
        Publisher::create(storage, &role_keys(&self.keys), settings, &self.keys, at(hours)).map(drop)
    }

    /// By what the log of this repository is verified: its fifth key signs it.
    pub(crate) fn log_key(&self) -> VerifierKey {
        self.keys[4].verifier_key("log.example/app", KeyKind::Log).expect("a key of Ed25519")
    }

    pub(crate) fn start_log(&self, hours: i64) {
        self.with_publisher(hours, |publisher| publisher.start_log(&self.log_key())).expect("started");
    }

    /// Follows the log, if there is one.
    pub(crate) fn follow_log(&self, state: &Memory) -> Result<u64, LogError> {
        let storage = self.storage();
        if !self.dir.path().join(LOG_KEY_PATH).exists() {
            return Ok(0);
        }
        let policy = CheckpointPolicy::new(self.log_key(), Vec::new(), 0)?;
        Ok(FollowedLog::follow(&storage, state, &policy)?.checkpoint().size)
    }

    pub(crate) fn storage(&self) -> DirectoryStorage {
        DirectoryStorage::open(self.dir.path()).expect("a directory")
    }

    pub(crate) fn with_publisher<T>(
        &self,
        hours: i64,
        act: impl FnOnce(&mut Publisher<'_>) -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        let storage = self.storage();
        act(&mut Publisher::open(&storage, &self.keys, at(hours))?)
    }

    pub(crate) fn try_publish(&self, hours: i64, bundles: &[&Verified]) -> Result<Published, PublishError> {
        self.with_publisher(hours, |publisher| publish(publisher, bundles, None))
    }

    pub(crate) fn publish(&self, hours: i64, bundles: &[&Verified]) -> Published {
        self.try_publish(hours, bundles).expect("published")
    }

    pub(crate) fn report(&self, hours: i64) -> Report {
        report(&self.storage(), hours)
    }

    #[track_caller]
    pub(crate) fn must_be_clean(&self, hours: i64) -> Report {
        let report = self.report(hours);
        assert_eq!((&report.problems, &report.unreferenced), (&Vec::new(), &Vec::new()));
        report
    }

    pub(crate) fn files(&self) -> Vec<String> {
        Storage::list(&self.storage(), "").expect("listed")
    }

    pub(crate) fn root(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("metadata/1.root.json")).expect("a root")
    }

    /// A client that trusts the first root.
    pub(crate) fn client(&self) -> Memory {
        let memory = Memory::default();
        memory.keep("root", &self.root()).expect("in memory");
        memory
    }

    /// What a client installs: the newest version, or this one; and it reads the manifest and every object.
    pub(crate) fn resolve(
        &self,
        state: &Memory,
        hours: i64,
        version: Option<&str>,
    ) -> Result<String, String> {
        resolve(&self.storage(), state, hours, version)
    }
}

pub(crate) fn publish(
    publisher: &mut Publisher<'_>,
    bundles: &[&Verified],
    channel: Option<&str>,
) -> Result<Published, PublishError> {
    let releases: Vec<_> = bundles
        .iter()
        .map(|bundle| NewRelease { bundle, channel: channel.map(name), deltas: Vec::new() })
        .collect();
    publisher.publish(&releases)
}

/// Publishes a release with a delta from an earlier one to it; nobody applies it, so its bytes do not matter.
pub(crate) fn publish_delta(
    publisher: &mut Publisher<'_>,
    bundle: &Verified,
    from: &Verified,
    delta: &[u8],
) -> Result<Published, PublishError> {
    let deltas = vec![NewDelta { from: from.release(), file: &delta }];
    publisher.publish(&[NewRelease { bundle, channel: None, deltas }])
}

pub(crate) fn report(storage: &dyn Storage, hours: i64) -> Report {
    let check = |manifest: &[u8], signature: &[u8]| {
        let none = RevocationLists::none();
        cutover_bundle::verify_detached(
            manifest,
            signature.to_vec(),
            &pki().anchor,
            &none,
            at(hours),
            &Limits::default(),
        )
        .map(drop)
        .map_err(|error| error.to_string())
    };
    verify(storage, &check, at(hours)).expect("verified")
}

pub(crate) fn resolve(
    fetch: &dyn Fetch,
    state: &Memory,
    hours: i64,
    version: Option<&str>,
) -> Result<String, String> {
    let wanted = Wanted {
        package: name("app"),
        version: version.map(self::version),
        platform: name("linux-x86_64"),
        channels: vec![name("stable")],
    };
    let said = |error: &dyn std::error::Error| error.to_string();
    let client = refresh(fetch, state, hours).map_err(|error| said(&error))?;
    let mut catalogue = Catalogue::new(client);
    let chosen = catalogue.choose(&wanted).map_err(|error| said(&error))?;
    let files = catalogue.files(&chosen.entry, &|_| None).map_err(|error| said(&error))?;
    let (none, limits) = (RevocationLists::none(), Limits::default());
    let verified = cutover_bundle::verify_detached(
        &files.manifest,
        files.signature,
        &pki().anchor,
        &none,
        at(hours),
        &limits,
    )
    .map_err(|error| said(&error))?;
    for (object, stored) in files.objects.of(verified.manifest()).map_err(|error| said(&error))? {
        let stored = fetch
            .fetch(&cutover_repo::object_path(stored), object.stored_size)
            .map_err(|error| format!("object: {error}"))?;
        cutover_bundle::decode_object(object, stored.as_slice(), &mut io::sink())
            .map_err(|error| said(&error))?;
    }
    Ok(verified.manifest().version.to_string())
}

pub(crate) fn refresh<'a>(
    fetch: &'a dyn Fetch,
    state: &'a Memory,
    hours: i64,
) -> Result<Client<'a>, ClientError> {
    Client::refresh(fetch, state, at(hours), ClientLimits::default())
}

/// A client's state in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory(pub(crate) RefCell<BTreeMap<String, Vec<u8>>>);

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

impl Memory {
    /// The version of a role's metadata that is kept; 0 for none.
    pub(crate) fn version(&self, role: &str) -> u64 {
        let kept = self.0.borrow();
        let value: Option<serde_json::Value> =
            kept.get(role).map(|bytes| serde_json::from_slice(bytes).expect("JSON"));
        value.and_then(|value| value["signed"]["version"].as_u64()).unwrap_or(0)
    }
}

/// A repository of which some files are others, and that counts what is read.
pub(crate) struct Meddled<'a> {
    pub(crate) inner: &'a dyn Fetch,
    pub(crate) replaced: BTreeMap<String, Option<Vec<u8>>>,
    pub(crate) read: RefCell<Vec<(String, usize)>>,
}

impl<'a> Meddled<'a> {
    pub(crate) fn new(inner: &'a dyn Fetch) -> Self {
        Self { inner, replaced: BTreeMap::new(), read: RefCell::new(Vec::new()) }
    }

    pub(crate) fn with(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.replaced.insert(path.to_owned(), Some(bytes.into()));
        self
    }

    pub(crate) fn bytes_read(&self) -> usize {
        self.read.borrow().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Fetch for Meddled<'_> {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let bytes = match self.replaced.get(path) {
            Some(Some(bytes)) => cutover_repo::read_bounded(bytes.as_slice(), bytes_max)?,
            Some(None) => return Err(FetchError::NotFound),
            None => self.inner.fetch(path, bytes_max)?,
        };
        self.read.borrow_mut().push((path.to_owned(), bytes.len()));
        Ok(bytes)
    }
}
