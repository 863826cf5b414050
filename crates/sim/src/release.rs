//! Small signed releases, made and verified by the production code of `cutover-bundle`.

use std::{io::Cursor, sync::OnceLock};

use cutover_bundle::{
    Bundle, Level, Limits, PayloadWriter, RevocationLists, TrustAnchor, VerifiedBundle, assemble,
    pki::{Authority, Validity},
    sign_manifest,
    signer::{CertificateChain, FileSigner},
};
use cutover_core::model::{
    FileEntry, FileKind, FileMode, Instant, Manifest, ObjectEntry, SafePath, Schema, Symlink,
};

use crate::fs::BLOCK;

/// When every simulated release was signed, in seconds since the epoch.
pub(crate) const RELEASED_AT: i64 = 1_760_000_000;

/// One file of a release to be made.
#[derive(Clone, Debug)]
pub struct SpecFile {
    /// Where.
    pub path: &'static str,
    /// What for.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub bytes: Vec<u8>,
}

/// A release to be made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its version.
    pub version: &'static str,
    /// Its files.
    pub files: Vec<SpecFile>,
    /// Its links and their targets.
    pub symlinks: Vec<(&'static str, &'static str)>,
    /// Its shared paths.
    pub shared: Vec<&'static str>,
}

/// A release that was built, signed, written as a bundle, and verified.
pub struct Release {
    /// What it was made from.
    pub spec: Spec,
    /// The verified bundle.
    pub bundle: VerifiedBundle<Vec<u8>>,
}

struct Publisher {
    signer: FileSigner,
    anchor: TrustAnchor,
}

/// Keys are made once for each process; nothing depends on which they are.
fn publisher() -> &'static Publisher {
    static PUBLISHER: OnceLock<Publisher> = OnceLock::new();
    PUBLISHER.get_or_init(|| {
        let validity = Validity::days_from(now(), 30).expect("in range");
        let root = Authority::root("Simulation", validity).expect("a root");
        let issued = root.issue_signer("Simulation", "Signer", validity).expect("a signer");
        let chain = CertificateChain::from_pem(issued.certificate_pem.as_bytes()).expect("a chain");
        let signer = FileSigner::from_pem(issued.key_pem.as_bytes(), chain).expect("a key");
        let anchor = TrustAnchor::parse(root.certificate_pem().as_bytes()).expect("an anchor");
        Publisher { signer, anchor }
    })
}

fn now() -> Instant {
    Instant::from_unix(RELEASED_AT).expect("in range")
}

impl Release {
    /// Builds, signs, writes and verifies.
    pub fn build(spec: Spec) -> Self {
        let mut payload = PayloadWriter::new(Cursor::new(Vec::new()), Level::default()).expect("memory");
        let files: Vec<FileEntry> = spec
            .files
            .iter()
            .map(|file| {
                let added = payload.add(file.bytes.as_slice()).expect("memory");
                FileEntry {
                    path: file.path.parse().expect("a safe path"),
                    kind: file.kind,
                    mode: FileMode::new(file.mode).expect("permission bits"),
                    sha256: added.sha256,
                    size: added.size,
                }
            })
            .collect();
        let payload = payload.finish().expect("memory");
        let manifest =
            manifest(&spec, files, payload.objects.clone()).to_bytes().expect("a consistent manifest");
        let Publisher { signer, anchor } = publisher();
        let signature = sign_manifest(&manifest, &[signer], now()).expect("signed");
        let mut file = Vec::new();
        assemble(&manifest, &signature, payload.into_reader(), &mut file, &Limits::default())
            .expect("memory");
        let bundle = Bundle::open(file, &Limits::default())
            .expect("a bundle")
            .verify(anchor, &RevocationLists::default(), now())
            .expect("signed by whom we trust");
        Self { spec, bundle }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.bundle.release().name().to_string()
    }
}

fn manifest(spec: &Spec, files: Vec<FileEntry>, objects: Vec<ObjectEntry>) -> Manifest {
    Manifest {
        files,
        symlinks: spec
            .symlinks
            .iter()
            .map(|(path, target)| Symlink {
                path: path.parse().expect("a safe path"),
                target: (*target).to_owned(),
            })
            .collect(),
        shared: spec.shared.iter().map(|path| path.parse().expect("a safe path")).collect(),
        objects,
        schema: schema(spec),
        ..Manifest::new("app".parse().expect("a name"), spec.version.parse().expect("a version"), now())
    }
}

/// Every file below `schema/` is a migration.
fn schema(spec: &Spec) -> Option<Schema> {
    let migrations: Vec<SafePath> = spec
        .files
        .iter()
        .filter(|file| file.path.starts_with("schema/"))
        .map(|file| file.path.parse().expect("a safe path"))
        .collect();
    (!migrations.is_empty()).then_some(Schema { version: migrations.len() as u64, migrations })
}

fn file(path: &'static str, kind: FileKind, mode: u32, bytes: impl Into<Vec<u8>>) -> SpecFile {
    SpecFile { path, kind, mode, bytes: bytes.into() }
}

/// Bytes that do not compress, different for each `seed`.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut random = crate::Random::new(seed);
    (0..size).map(|_| u8::try_from(random.below(256)).expect("a byte")).collect()
}

/// The four releases every story uses. Between them files are added, removed, changed, moved, given other modes and
/// other kinds; a file becomes a directory and back, a directory a link and back, a link is retargeted, and shared paths stay what they are. The second and
/// the third carry a migration each more.
pub fn releases() -> &'static [Release; 4] {
    use FileKind::{Config, Data, Executable, Library};
    static RELEASES: OnceLock<[Release; 4]> = OnceLock::new();
    RELEASES.get_or_init(|| {
        let library = noise(1, BLOCK + 100);
        let shared = vec!["etc/site.conf", "var/state"];
        [
            Spec {
                version: "1.0.0",
                files: vec![
                    file("bin/app", Executable, 0o755, "app one"),
                    file("bin/tool", Executable, 0o755, "tool one"),
                    file("lib/same.so", Library, 0o644, library.clone()),
                    file("etc/app.conf", Config, 0o644, "setting = 1"),
                    file("etc/site.conf", Config, 0o600, "site = default"),
                    file("share/data", Data, 0o644, noise(2, 3 * BLOCK)),
                    file("share/same", Data, 0o444, "never changes"),
                    file("share/gone", Data, 0o644, "removed in 1.1.0"),
                    file("opt", Data, 0o644, "a file, later a directory"),
                    file("plugins/one", Data, 0o644, "in a directory, later a link"),
                    file("plugins/inner/two", Data, 0o644, "deeper in it"),
                ],
                symlinks: vec![("bin/default", "tool"), ("share/link", "../etc/app.conf")],
                shared: shared.clone(),
            },
            Spec {
                version: "1.1.0",
                files: vec![
                    file("bin/app", Executable, 0o755, "app two, which is longer"),
                    file("bin/tool2", Executable, 0o755, "tool one"),
                    file("lib/same.so", Library, 0o644, library.clone()),
                    file("etc/app.conf", Config, 0o640, "setting = 1"),
                    file("etc/site.conf", Config, 0o600, "site = new default"),
                    file("share/data", Data, 0o644, noise(3, 3 * BLOCK + 17)),
                    file("share/same", Data, 0o444, "never changes"),
                    file("opt/inner/added", Data, 0o644, "added in 1.1.0"),
                    file("lib/inner/two", Data, 0o644, "behind the link"),
                    file("empty", Data, 0o644, ""),
                    file("schema/1.toml", Data, 0o444, "first"),
                ],
                symlinks: vec![("bin/default", "tool2"), ("share/gone", "same"), ("plugins", "lib")],
                shared: shared.clone(),
            },
            Spec {
                version: "1.2.0",
                files: vec![
                    file("bin/app", Executable, 0o755, "app three"),
                    file("lib/same.so", Library, 0o755, library),
                    file("etc/app.conf", Config, 0o644, "setting = 3"),
                    file("etc/site.conf", Config, 0o600, "site = new default"),
                    file("share/data", Data, 0o600, noise(3, 3 * BLOCK + 17)),
                    file("share/same", Data, 0o444, "never changes"),
                    file("share/copy", Data, 0o644, "never changes"),
                    file("opt", Data, 0o644, "a file again"),
                    file("plugins/inner/two", Data, 0o644, "in a directory again"),
                    file("schema/1.toml", Data, 0o444, "first"),
                    file("schema/2.toml", Data, 0o444, "second"),
                ],
                symlinks: vec![("bin/default", "app"), ("bin/again", "default")],
                shared: shared.clone(),
            },
            Spec {
                version: "1.3.0",
                files: vec![
                    file("bin/app", Executable, 0o755, "app four"),
                    file("share/same", Data, 0o444, "never changes"),
                ],
                symlinks: vec![],
                shared,
            },
        ]
        .map(Release::build)
    })
}
