//! A root on a real file system, signed bundles to put there, and a service and prober that do as they are told.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
};

use cutover_bundle::{
    Bundle, Level, Limits, PayloadWriter, ReadAt, RevocationLists, TrustAnchor, VerifiedBundle, assemble,
    pki::{Authority, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner},
};
use cutover_core::{
    event::{Event, Observer},
    model::{Digest, FileEntry, FileKind, FileMode, Instant, Manifest, ReleaseRef, Schema, Symlink, Version},
    plan::{Layout, LocalChanges, OnProbeFailure, Plan, Policy, RollbackTarget, plan_rollback, plan_update},
};
use cutover_host::{
    clock::Clock,
    disk::{Disk, RealDisk},
    nice::Nice,
    node::{CatalogPort, Node, NodeError, NodeOptions, NodePorts, PackIndex, Ports, Report},
    payload::Payload,
    probe::{ProbeContext, ProbeOutcome, ProbeReport, ProbeResult, Prober},
    schema::SchemaManager,
    service::{Activated, Activation, ServiceError, ServiceManager, ServiceState, ServiceStatus},
};

pub(crate) const LAYOUTS: [Layout; 3] = [Layout::Versioned, Layout::Exchange, Layout::InPlace];

struct Pki {
    anchor: TrustAnchor,
    signer: FileSigner,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let days = |count| Validity::days_from(signing_time(), count).expect("in range");
        let root = Authority::root("Example", days(3650)).expect("a root");
        let issued = root.issue_signer("Example", "Alice", days(365)).expect("a signer");
        let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
        Pki {
            anchor: TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor"),
            signer: FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key"),
        }
    })
}

/// Who the bundles here are signed for.
pub(crate) fn anchor() -> &'static TrustAnchor {
    &pki().anchor
}

pub(crate) fn signing_time() -> Instant {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

/// A release to be made into a bundle.
#[derive(Clone)]
pub(crate) struct Release {
    version: &'static str,
    files: Vec<(String, FileKind, u32, Vec<u8>)>,
    links: Vec<(String, String)>,
    shared: Vec<String>,
    migrations: Vec<String>,
}

pub(crate) type Verified = VerifiedBundle<Vec<u8>>;

impl Release {
    pub(crate) fn new(version: &'static str) -> Self {
        Self { version, files: Vec::new(), links: Vec::new(), shared: Vec::new(), migrations: Vec::new() }
    }

    pub(crate) fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    pub(crate) fn file(mut self, path: &str, kind: FileKind, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.to_owned(), kind, mode, content.into()));
        self
    }

    pub(crate) fn program(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file(path, FileKind::Executable, 0o755, content)
    }

    pub(crate) fn data(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file(path, FileKind::Data, 0o644, content)
    }

    pub(crate) fn config(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file(path, FileKind::Config, 0o640, content)
    }

    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.to_owned(), target.to_owned()));
        self
    }

    pub(crate) fn shared(mut self, path: &str) -> Self {
        self.shared.push(path.to_owned());
        self
    }

    /// Carries a migration; the schema's version is their number.
    pub(crate) fn migration(mut self, path: &str, text: &str) -> Self {
        self.migrations.push(path.to_owned());
        self.data(path, text)
    }

    /// What the current tree must look like with this release: path to (mode, content) or link target.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for (path, _, mode, content) in self.files.iter().filter(|(path, ..)| !self.shared.contains(path)) {
            tree.insert(path.clone(), Entry::File(*mode, content.clone()));
        }
        for (path, target) in &self.links {
            tree.insert(path.clone(), Entry::Link(target.clone()));
        }
        tree
    }

    pub(crate) fn bundle(&self) -> Verified {
        self.try_bundle(|_, _| {}).expect("a good bundle")
    }

    /// The bundle after `meddle` had its way with the payload bytes.
    pub(crate) fn damaged_bundle(&self, meddle: impl FnOnce(&Manifest, &mut Vec<u8>)) -> Verified {
        self.try_bundle(meddle).expect("the signature covers the manifest only")
    }

    fn try_bundle(
        &self,
        meddle: impl FnOnce(&Manifest, &mut Vec<u8>),
    ) -> Result<Verified, cutover_bundle::BundleError> {
        self.try_bundle_read_by(meddle, |bytes| bytes)
    }

    /// The bundle, whose bytes are read as `reader` reads them.
    pub(crate) fn bundle_read_by<R: ReadAt>(&self, reader: impl FnOnce(Vec<u8>) -> R) -> VerifiedBundle<R> {
        self.try_bundle_read_by(|_, _| {}, reader).expect("a good bundle")
    }

    fn try_bundle_read_by<R: ReadAt>(
        &self,
        meddle: impl FnOnce(&Manifest, &mut Vec<u8>),
        reader: impl FnOnce(Vec<u8>) -> R,
    ) -> Result<VerifiedBundle<R>, cutover_bundle::BundleError> {
        let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::default()).expect("a spool");
        let mut files = Vec::new();
        for (path, kind, mode, content) in &self.files {
            let added = writer.add(content.as_slice()).expect("in memory");
            files.push(FileEntry {
                path: path.parse().expect(path),
                kind: *kind,
                mode: FileMode::new(*mode).expect("a mode"),
                sha256: added.sha256,
                size: added.size,
            });
        }
        let payload = writer.finish().expect("in memory");
        let manifest = Manifest {
            files,
            symlinks: self
                .links
                .iter()
                .map(|(path, target)| Symlink { path: path.parse().expect(path), target: target.clone() })
                .collect(),
            shared: self.shared.iter().map(|path| path.parse().expect(path)).collect(),
            objects: payload.objects.clone(),
            schema: (!self.migrations.is_empty()).then(|| Schema {
                version: self.migrations.len() as u64,
                migrations: self.migrations.iter().map(|path| path.parse().expect(path)).collect(),
            }),
            ..Manifest::new(
                "app".parse().expect("a name"),
                self.version.parse().expect("a version"),
                signing_time(),
            )
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut payload.into_reader(), &mut bytes).expect("in memory");
        meddle(&manifest, &mut bytes);
        let manifest = manifest.to_bytes().expect("a valid manifest");
        let signature = sign_manifest(&manifest, &[&pki().signer], signing_time()).expect("a signature");
        let mut out = Vec::new();
        assemble(&manifest, &signature, bytes.as_slice(), &mut out, &Limits::default()).expect("in memory");
        let bundle = Bundle::open(reader(out), &Limits::default())?;
        bundle.verify(&pki().anchor, &RevocationLists::none(), signing_time())
    }
}

/// What lies at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(u32, Vec<u8>),
    Link(String),
}

pub(crate) type Tree = BTreeMap<String, Entry>;

/// Everything below `base` but Cutover's own.
pub(crate) fn tree_at(base: &Path) -> Tree {
    fn walk(base: &Path, within: &str, tree: &mut Tree) {
        let Ok(entries) = std::fs::read_dir(base.join(within)) else { return };
        for entry in entries {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            if within.is_empty() && name.starts_with(".cutover") {
                continue;
            }
            let path = if within.is_empty() { name } else { format!("{within}/{name}") };
            let kind = entry.file_type().expect("a type");
            let full = base.join(&path);
            if kind.is_dir() {
                walk(base, &path, tree);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(full).expect("a link").into_os_string();
                tree.insert(path, Entry::Link(target.into_string().expect("UTF-8")));
            } else {
                let mode = std::fs::metadata(&full).expect("metadata").permissions().mode() & 0o7777;
                tree.insert(path, Entry::File(mode, std::fs::read(full).expect("readable")));
            }
        }
    }
    let mut tree = Tree::new();
    walk(base, "", &mut tree);
    tree
}

/// A service that remembers what it was told.
#[derive(Default)]
pub(crate) struct FakeService {
    pub(crate) running: Mutex<Option<ReleaseRef>>,
    pub(crate) quiesced: AtomicBool,
    pub(crate) calls: Mutex<Vec<String>>,
    /// Versions whose activation fails.
    pub(crate) refuses: Mutex<Vec<Version>>,
    /// What happens in the world when a version is activated.
    happens: Mutex<Vec<(Version, Happening)>>,
}

type Happening = Box<dyn Fn() + Send>;

impl FakeService {
    /// Has `happening` take place whenever `version` is activated.
    pub(crate) fn on_activate(&self, version: &str, happening: Happening) {
        self.happens.lock().unwrap().push((version.parse().expect(version), happening));
    }
}

impl ServiceManager for FakeService {
    fn quiesce(&self) -> Result<(), ServiceError> {
        self.calls.lock().unwrap().push("quiesce".to_owned());
        self.quiesced.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        let version = target.release.as_ref().map(|release| release.version.clone());
        let name = version.as_ref().map_or("nothing".to_owned(), Version::to_string);
        self.calls.lock().unwrap().push(format!("activate {name}"));
        for (when, happening) in self.happens.lock().unwrap().iter() {
            if Some(when) == version.as_ref() {
                happening();
            }
        }
        if version.is_some_and(|version| self.refuses.lock().unwrap().contains(&version)) {
            return Err(ServiceError::NotReady { release: name, reason: "it exited".to_owned(), log: None });
        }
        assert!(target.release.is_none() || target.tree.is_dir(), "the tree is there: {target:?}");
        (*self.running.lock().unwrap()).clone_from(&target.release);
        self.quiesced.store(false, Ordering::SeqCst);
        Ok(Activated::default())
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        Ok(ServiceStatus::bare(ServiceState::Ready, ""))
    }
}

/// A prober that answers as told.
#[derive(Default)]
pub(crate) struct FakeProber {
    pub(crate) calls: AtomicU32,
    pub(crate) verdict: Mutex<Verdict>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    #[default]
    Pass,
    Fail,
    Panic,
}

impl Prober for FakeProber {
    fn probe(&self, context: &ProbeContext) -> ProbeReport {
        assert!(context.tree.is_dir());
        self.calls.fetch_add(1, Ordering::SeqCst);
        let outcome = match *self.verdict.lock().unwrap() {
            Verdict::Pass => ProbeOutcome::Passed,
            Verdict::Fail => ProbeOutcome::Failed,
            Verdict::Panic => panic!("as told"),
        };
        let detail = "said so".to_owned();
        let result = ProbeResult { name: "fake".to_owned(), outcome, detail, took_ms: 0, latency: None };
        ProbeReport { results: vec![result] }
    }
}

/// Remembers every event.
#[derive(Default)]
pub(crate) struct Events(pub(crate) Mutex<Vec<Event>>);

impl Observer for Events {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// A clock that is set by hand; it starts at the machine's time.
pub(crate) struct FakeClock(pub(crate) AtomicI64);

impl Default for FakeClock {
    fn default() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        Self(AtomicI64::new(now.as_secs().cast_signed()))
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        Instant::from_unix(self.0.load(Ordering::SeqCst)).expect("a time")
    }
}

/// A root and everything around it.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) layout: Layout,
    pub(crate) schema: Option<Box<dyn SchemaManager>>,
    pub(crate) service: FakeService,
    pub(crate) prober: FakeProber,
    pub(crate) events: Arc<Events>,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) policy: Policy,
    pub(crate) catalog: CatalogPort,
    pub(crate) threads: usize,
    pub(crate) nice: Nice,
}

impl World {
    pub(crate) fn new(layout: Layout) -> Self {
        // In memory where possible: flushing is not what most of these tests are about.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self::at(directory.expect("a directory"), layout)
    }

    /// Alters the store's copy of an object.
    pub(crate) fn damage_object(&self, digest: Digest) {
        for pack in std::fs::read_dir(self.path().join(".cutover/store")).expect("listed") {
            let path = pack.expect("an entry").path();
            let mut bytes = std::fs::read(&path).expect("read");
            let index = PackIndex::read(bytes.len() as u64, |buffer, at| {
                (&bytes[usize::try_from(at).expect("small")..]).read(buffer)
            });
            for object in index.expect("whole").objects.iter().filter(|object| object.sha256 == digest) {
                bytes[usize::try_from(object.offset).expect("small")] ^= 1;
            }
            std::fs::write(&path, bytes).expect("written");
        }
    }

    pub(crate) fn at(directory: tempfile::TempDir, layout: Layout) -> Self {
        Self {
            directory,
            layout,
            schema: None,
            service: FakeService::default(),
            prober: FakeProber::default(),
            events: Arc::default(),
            clock: Arc::default(),
            policy: Policy {
                platform: "linux-x86_64".parse().expect("a name"),
                on_probe_failure: OnProbeFailure::Restore,
                local_changes: LocalChanges::Refuse,
                schema: None,
                now: signing_time(),
            },
            catalog: CatalogPort::OnDisk,
            threads: 2,
            nice: Nice::NONE,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the current tree.
    pub(crate) fn installed(&self, path: &str) -> PathBuf {
        self.current().join(path)
    }

    /// The current tree's directory.
    pub(crate) fn current(&self) -> PathBuf {
        match self.layout {
            Layout::Versioned | Layout::Exchange => self.path().join("current"),
            Layout::InPlace => self.path().to_owned(),
        }
    }

    /// What is current, without what only tests put there.
    pub(crate) fn tree(&self) -> Tree {
        tree_at(&self.current())
    }

    pub(crate) fn node(&self) -> Node {
        self.node_on(Arc::new(RealDisk::open(self.path()).expect("a disk")))
    }

    pub(crate) fn node_on(&self, disk: Arc<dyn Disk>) -> Node {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let options = NodeOptions {
            layout: Some(self.layout),
            threads: std::num::NonZeroUsize::new(self.threads).expect("some"),
            nice: self.nice,
            ..NodeOptions::default()
        };
        Node::open(NodePorts { disk, catalog: self.catalog.clone(), clock }, options).expect("a node")
    }

    pub(crate) fn ports(&self) -> Ports<'_> {
        let observer = Arc::clone(&self.events) as Arc<dyn Observer>;
        Ports {
            service: &self.service,
            prober: &self.prober,
            schema: self.schema.as_deref(),
            observer,
            before_step: None,
        }
    }

    pub(crate) fn plan(&self, node: &Node, bundle: &Verified) -> Plan {
        let observed = node.observe(Some(bundle.manifest())).expect("observed");
        plan_update(&observed.observation, &bundle.release(), bundle.manifest(), &self.policy)
            .expect("a plan")
    }

    pub(crate) fn try_apply_on(&self, node: &Node, bundle: &Verified) -> Result<Report, NodeError> {
        let lock = node.lock()?;
        let plan = self.plan(node, bundle);
        node.execute(&lock, &plan, Some(bundle as &dyn Payload), &self.ports())
    }

    pub(crate) fn apply(&self, release: &Release) -> Report {
        self.try_apply_on(&self.node(), &release.bundle()).expect("applied")
    }

    pub(crate) fn try_rollback_on(&self, node: &Node, target: &RollbackTarget) -> Result<Report, NodeError> {
        let lock = node.lock()?;
        let observed = node.observe(None)?;
        let points = observed.points_for(target).expect("no damage");
        let plan = plan_rollback(&observed.observation, points, target, &self.policy).expect("a plan");
        node.execute(&lock, &plan, None, &self.ports())
    }

    /// Installs a release whose bundle was made before.
    pub(crate) fn apply_bundle(&self, bundle: &Verified) -> Report {
        self.try_apply_on(&self.node(), bundle).expect("applied")
    }

    pub(crate) fn rollback(&self) -> Report {
        self.try_rollback_on(&self.node(), &RollbackTarget::Newest).expect("rolled back")
    }

    pub(crate) fn recover(&self) -> Option<Report> {
        let node = self.node();
        let lock = node.lock().expect("the lock");
        node.recover(&lock, &self.ports()).expect("recovered")
    }

    pub(crate) fn fail_probes(&self) {
        *self.prober.verdict.lock().unwrap() = Verdict::Fail;
    }

    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        *self.prober.verdict.lock().unwrap() = verdict;
    }

    /// The version that runs.
    pub(crate) fn running(&self) -> Option<String> {
        self.service.running.lock().unwrap().as_ref().map(|release| release.version.to_string())
    }
}

/// 1.0.0 of a small application with everything a release can have.
pub(crate) fn first() -> Release {
    Release::new("1.0.0")
        .program("bin/app", b"#!/bin/sh\necho one\n".repeat(50))
        .file("lib/libsame.so", FileKind::Library, 0o755, vec![7; 3000])
        .data("share/only-in-one", "gone in 2.0.0")
        .data("share/deep/er/data", "one")
        .config("etc/app.conf", "port = 80\n")
        .data("empty", "")
        .link("bin/alias", "app")
}

/// 2.0.0 of it: changed, added, removed and unchanged files; a directory becomes a file and the other way round.
pub(crate) fn second() -> Release {
    Release::new("2.0.0")
        .program("bin/app", b"#!/bin/sh\necho two\n".repeat(60))
        .file("lib/libsame.so", FileKind::Library, 0o755, vec![7; 3000])
        .file("lib/libnew.so", FileKind::Library, 0o555, vec![8; 70_000])
        .data("share/deep", "a file where a directory was")
        .data("empty/not", "a directory where a file was")
        .config("etc/app.conf", "port = 80\n")
        .data("var/twice-a", "the same")
        .data("var/twice-b", "the same")
        .link("bin/alias", "../lib/libnew.so")
}
