//! The world of a test: a directory, a PKI, a stamped program, releases and a root.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use cutover::{
    bundle::signer::{CertificateChain, FileSigner},
    core::model::{Digest, Instant as Time},
};
use serde_json::Value;

use crate::not_run::not_run;

/// The program without a trust anchor.
pub(crate) const PLAIN: &str = env!("CARGO_BIN_EXE_cutover");
pub(crate) const LAYOUTS: [&str; 3] = ["versioned", "exchange", "in-place"];

/// The program stamped with a root, and that root's PKI; made once for each build.
pub(crate) struct Stamped {
    pub(crate) program: PathBuf,
    pub(crate) pki: PathBuf,
}

pub(crate) fn stamped() -> &'static Stamped {
    static STAMPED: OnceLock<Stamped> = OnceLock::new();
    STAMPED.get_or_init(|| {
        let metadata = fs::metadata(PLAIN).expect("the program is there");
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tmp.join(format!("stamped-{}-{}", metadata.mtime(), metadata.len()));
        if !dir.is_dir() {
            let aside = tmp.join(format!("aside-{}", std::process::id()));
            fs::create_dir_all(&aside).expect("a directory");
            let pki = aside.join("pki");
            run(Path::new(PLAIN), &["pki", "init", text(&pki), "--org", "Tests"]).must(0);
            let program = aside.join("cutover");
            let root = pki.join("root.pem");
            run(Path::new(PLAIN), &["trust", "embed", "--anchor", text(&root), "-o", text(&program)]).must(0);
            // Another test process may have been faster; then its result is as good.
            if fs::rename(&aside, &dir).is_err() {
                fs::remove_dir_all(&aside).expect("removed");
            }
        }
        Stamped { program: dir.join("cutover"), pki: dir.join("pki") }
    })
}

/// Who signs the releases here.
pub(crate) fn signer() -> FileSigner {
    let pem = |name: &str| fs::read(stamped().pki.join(name)).expect("read");
    let chain = CertificateChain::from_pem(&pem("signer.pem")).expect("a chain");
    FileSigner::from_pem(&pem("signer.key"), chain).expect("a key")
}

pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Time::from_unix(since.as_secs().cast_signed()).expect("a time")
}

/// A tool that a test needs, by its command and the Debian package it comes in; whether it is there. If not, the test is
/// listed as not run.
pub(crate) fn has_tool(tool: &str, package: &str) -> bool {
    if Command::new(tool).arg("--version").output().is_ok() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    not_run(&format!("{test}: {tool} is not installed (Debian: apt-get install {package})"));
    false
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn must(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

pub(crate) fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUTOVER_")) {
        command.env_remove(name);
    }
    command.env_remove("SOURCE_DATE_EPOCH").env("COLUMNS", "100");
    command
}

pub(crate) fn finish(mut command: Command) -> Ran {
    let output = command.output().expect("started");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn run(program: &Path, arguments: &[&str]) -> Ran {
    finish(command(program, arguments))
}

/// One test's directory with everything in it.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
}

/// The files of a release that tests build; contents say the version.
pub(crate) struct Release<'a> {
    pub(crate) version: &'a str,
    /// Lines added to `release.toml`.
    pub(crate) spec: &'a str,
    /// Files beyond the usual ones.
    pub(crate) files: &'a [(&'a str, &'a str)],
}

impl<'a> Release<'a> {
    pub(crate) fn new(version: &'a str) -> Self {
        Self { version, spec: "", files: &[] }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(&path, content).expect("written");
        path
    }

    /// Lays out the tree of a release and its specification, and returns both.
    pub(crate) fn tree(&self, release: &Release<'_>) -> (PathBuf, PathBuf) {
        let version = release.version;
        let tree = format!("tree-{version}");
        let file = |name: &str| format!("{tree}/{name}");
        self.write(&file("bin/tool"), format!("#!/bin/sh\necho {version}\n"));
        fs::set_permissions(self.path(&file("bin/tool")), fs::Permissions::from_mode(0o755)).expect("set");
        self.write(&file("lib/libsame.so.1"), "the same in every version\n".repeat(1000));
        self.write(&file("etc/tool.conf"), "color = \"green\"\n");
        self.write(&file("share/version"), version);
        // A test may lay the same tree out again.
        let link = self.path(&file("bin/alias"));
        if !link.is_symlink() {
            symlink("tool", link).expect("linked");
        }
        for (name, content) in release.files {
            self.write(&file(name), content);
        }
        // Top-level keys come before tables.
        let spec = format!("package = \"tool\"\nversion = \"{version}\"\n{}\n", release.spec);
        (self.path(&tree), self.write(&format!("release-{version}.toml"), spec))
    }

    pub(crate) fn bundle_path(&self, version: &str) -> PathBuf {
        self.path(&format!("tool-{version}.cutover"))
    }

    /// Builds and signs a release.
    pub(crate) fn build(&self, release: &Release<'_>) -> PathBuf {
        self.build_with(release, &[])
    }

    /// As [`World::build`], with more arguments of `bundle create`.
    pub(crate) fn build_with(&self, release: &Release<'_>, more: &[&str]) -> PathBuf {
        let (tree, spec) = self.tree(release);
        let out = self.bundle_path(release.version);
        let pki = &stamped().pki;
        let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
        let mut all = vec!["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&out)];
        all.extend(["--level", "1", "--sign-key", text(&key), "--sign-cert", text(&certificate)]);
        all.extend(more);
        self.run(&all).must(0);
        out
    }

    pub(crate) fn build_version(&self, version: &str) -> PathBuf {
        self.build(&Release::new(version))
    }

    /// Runs the stamped program.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run(&stamped().program, arguments)
    }

    /// Runs a command of the stamped program on the root; nobody runs a service.
    pub(crate) fn on_root(&self, arguments: &[&str]) -> Ran {
        finish(self.on_root_command(arguments))
    }

    pub(crate) fn on_root_command(&self, arguments: &[&str]) -> Command {
        let root = self.root();
        let mut all = arguments.to_vec();
        all.extend(["--root", text(&root), "--progress", "none", "--set", "service.mode=none"]);
        command(&stamped().program, &all)
    }

    pub(crate) fn apply(&self, bundle: &Path, more: &[&str]) -> Ran {
        let mut all = vec!["apply", text(bundle)];
        all.extend(more);
        self.on_root(&all)
    }

    pub(crate) fn status(&self) -> Value {
        self.on_root(&["status", "--json"]).must(0).json()
    }

    pub(crate) fn version(&self) -> Value {
        self.status()["version"].clone()
    }

    /// The visible tree.
    pub(crate) fn visible(&self) -> PathBuf {
        PathBuf::from(self.status()["tree"].as_str().expect("a path"))
    }

    /// Starts a run that stops itself at `step`, and waits until it has.
    pub(crate) fn stopped_at(&self, step: &str, arguments: &[&str]) -> std::process::Child {
        let mut all = arguments.to_vec();
        all.extend(["--stop-at", step, "--json"]);
        let mut command = self.on_root_command(&all);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
        let started = Instant::now();
        loop {
            let stat =
                fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("the process is there");
            let state = stat.rsplit_once(") ").expect("proc(5)").1.chars().next();
            match state {
                Some('T') => return child,
                Some('Z') => panic!("it ended instead: {:?}", child.wait()),
                _ if started.elapsed() > Duration::from_secs(60) => panic!("it did not stop at {step}"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// The tree that people see, without what is not the release's.
pub(crate) fn seen(world: &World) -> BTreeMap<String, String> {
    let mut seen = snapshot(&fs::canonicalize(world.visible()).expect("a tree"));
    // Whole trees are made read-only where nobody but root could write anyway; contents and files' modes are what counts.
    seen.retain(|_, what| !what.starts_with("directory"));
    seen.retain(|path, _| !path.starts_with(".cutover"));
    seen
}

/// The files of a release as they were laid out.
pub(crate) fn files_of(world: &World, version: &str) -> BTreeMap<String, String> {
    let mut files = snapshot(&world.path(&format!("tree-{version}")));
    files.retain(|_, what| !what.starts_with("directory"));
    files
}

/// Everything below a directory: kind, mode, content or target by path; `.cutover` is left out.
pub(crate) fn snapshot(base: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(base, "", &[".cutover", "cutover.toml"], &mut found);
    found
}

/// Everything below a directory, times included, but for what SQLite makes when somebody only reads: the index of its
/// write-ahead log (`-shm`), which every first reader builds anew and nobody relies on, and with it the time of `.cutover`.
pub(crate) fn exact(base: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(base, "", &[".cutover/catalog.db-shm"], &mut found);
    for (path, text) in found.iter_mut().filter(|(path, _)| *path != ".cutover") {
        let metadata = fs::symlink_metadata(base.join(path)).expect("looked at");
        text.push_str(&format!(" {}.{:09}", metadata.mtime(), metadata.mtime_nsec()));
    }
    found
}

fn collect(base: &Path, within: &str, without: &[&str], found: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(base.join(within)) else { return };
    for entry in entries {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let path = if within.is_empty() { name } else { format!("{within}/{name}") };
        if without.contains(&path.as_str()) {
            continue;
        }
        let metadata = fs::symlink_metadata(entry.path()).expect("looked at");
        let mode = metadata.mode();
        if metadata.is_dir() {
            found.insert(path.clone(), format!("directory {mode:o}"));
            collect(base, &path, without, found);
        } else if metadata.is_symlink() {
            found.insert(path, format!("link {}", fs::read_link(entry.path()).expect("read").display()));
        } else {
            let digest = Digest::of(&fs::read(entry.path()).expect("read"));
            found.insert(path, format!("file {mode:o} {digest}"));
        }
    }
}

/// How long a sweep goes on, in `GATE_SWEEP_S`; `None` in the test command, which has a small one.
pub(crate) fn sweep_time() -> Option<Duration> {
    let seconds = std::env::var("GATE_SWEEP_S").ok()?.parse().expect("seconds");
    Some(Duration::from_secs(seconds))
}
