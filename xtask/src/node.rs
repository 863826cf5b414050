//! One root driven through the real command line: what apply, rollback, recover, prune, status and verify say.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{program, tree::Snapshot};

/// How a root is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Layout {
    /// A symlink to one of several release trees.
    Versioned,
    /// One directory, exchanged with the staged one.
    Exchange,
    /// Files among files of others.
    InPlace,
}

impl Layout {
    /// All of them.
    pub(crate) const ALL: &[Layout] = &[Layout::Versioned, Layout::Exchange, Layout::InPlace];

    /// As the command line spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Layout::Versioned => "versioned",
            Layout::Exchange => "exchange",
            Layout::InPlace => "in-place",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Exit codes the harnesses tell apart; the rest are failures.
pub(crate) mod exit {
    /// Done.
    pub(crate) const DONE: i32 = 0;
    /// Nothing to do.
    pub(crate) const NOTHING_TO_DO: i32 = 3;
    /// Preflight refused.
    pub(crate) const PREFLIGHT: i32 = 12;
}

/// A finished run of the program.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it said.
    pub(crate) stderr: String,
    /// How long it took.
    pub(crate) took: Duration,
    /// What it cost.
    pub(crate) usage: Usage,
}

/// What a process and its children cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// The most memory one of them had resident, in bytes.
    pub(crate) peak_bytes: u64,
    /// Processor time, in user and kernel mode.
    pub(crate) processor: Duration,
}

impl Finished {
    /// The run, if it ended with one of these codes.
    pub(crate) fn with(self, codes: &[i32]) -> Result<Self> {
        ensure!(
            self.code.is_some_and(|code| codes.contains(&code)),
            "exit {:?} instead of {codes:?}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// What it printed, as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// Runs a command to its end and measures it.
pub(crate) fn finish(mut command: Command) -> Result<Finished> {
    use std::io::{Read, Seek};
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
    let (status, usage) = wait_with_usage(child.id())?;
    let took = started.elapsed();
    let mut texts = [String::new(), String::new()];
    for (file, text) in [&mut stdout, &mut stderr].into_iter().zip(&mut texts) {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }
    let [stdout, stderr] = texts;
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ok(Finished { code, stdout, stderr, took, usage })
}

/// Waits for a child and returns its raw status and what it cost.
#[allow(unsafe_code)]
fn wait_with_usage(pid: u32) -> Result<(i32, Usage)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: `rusage` is plain integers; the kernel fills one status and one usage, both on this frame.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        while libc::wait4(pid, &raw mut status, 0, &raw mut usage) < 0 {
            let error = std::io::Error::last_os_error();
            ensure!(error.raw_os_error() == Some(libc::EINTR), "failed to wait for {pid}: {error}");
        }
        let time = |time: libc::timeval| -> Result<Duration> {
            Ok(Duration::from_secs(u64::try_from(time.tv_sec)?)
                + Duration::from_micros(u64::try_from(time.tv_usec)?))
        };
        let processor = time(usage.ru_utime)? + time(usage.ru_stime)?;
        Ok((status, Usage { peak_bytes: u64::try_from(usage.ru_maxrss)? * 1024, processor }))
    }
}

/// What Cutover keeps in the visible directory: its state (in place), and the mark that says which release a tree is.
pub(crate) const OWN: &[&str] = &[".cutover", ".cutover-release"];

/// One installation.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The stamped program.
    pub(crate) binary: PathBuf,
    /// The root.
    pub(crate) root: PathBuf,
    /// How it is laid out.
    pub(crate) layout: Layout,
    /// Settings for every run, as `KEY=VALUE`.
    pub(crate) settings: Vec<String>,
}

impl Node {
    /// A command on this root.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--root").arg(&self.root).args(["--json", "--progress", "none"]);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// The command that applies a bundle.
    pub(crate) fn apply_command(&self, bundle: &Path) -> Command {
        let mut command = self.command(&["apply"]);
        command.arg(bundle).args(["--layout", self.layout.name()]);
        command
    }

    /// Applies a bundle.
    pub(crate) fn apply(&self, bundle: &Path) -> Result<Finished> {
        finish(self.apply_command(bundle))
    }

    /// Runs a command that takes nothing but the root.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Finished> {
        finish(self.command(arguments))
    }

    /// The directory in which the current release is seen.
    pub(crate) fn visible(&self) -> PathBuf {
        match self.layout {
            Layout::Versioned | Layout::Exchange => self.root.join("current"),
            Layout::InPlace => self.root.clone(),
        }
    }

    /// What a reader of the installation sees now, Cutover's own entries and those named `except` left out.
    pub(crate) fn seen(&self, except: &[&str]) -> Result<Snapshot> {
        Snapshot::of(&self.visible(), &[OWN, except].concat())
    }

    /// What `status` says.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        self.run(&["status"])?.with(&[exit::DONE])?.json()
    }
}

/// A throw-away authority, a program that trusts it, and the means to make releases.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Where keys and bundles lie.
    dir: PathBuf,
    /// The stamped program.
    pub(crate) binary: PathBuf,
}

impl Publisher {
    /// Makes the authority below `dir` and stamps a copy of `program`.
    pub(crate) fn new(program: &Path, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut pki = Command::new(program);
        pki.args(["pki", "init"]).arg(dir.join("pki")).args(["--org", "Throwaway"]);
        program::succeed(pki)?;
        let binary = dir.join("cutover");
        let mut embed = Command::new(program);
        embed.args(["trust", "embed", "--anchor"]).arg(dir.join("pki/root.pem")).arg("-o").arg(&binary);
        program::succeed(embed)?;
        Ok(Publisher { dir: dir.to_owned(), binary })
    }

    /// The authority made below `dir` before.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        ensure!(dir.join("pki/root.pem").exists(), "no authority in `{}`", dir.display());
        Ok(Publisher { dir: dir.to_owned(), binary: dir.join("cutover") })
    }

    /// Builds and signs `tree` as `version`, described by `spec`; says where the bundle is.
    pub(crate) fn release(&self, tree: &Path, version: &str, spec: &str, level: u32) -> Result<PathBuf> {
        let spec_file = self.dir.join(format!("release-{version}.toml"));
        std::fs::write(&spec_file, spec)?;
        let package = spec.split('"').nth(1).unwrap_or("sample");
        let bundle = self.dir.join(format!("{package}-{version}.cutover"));
        let mut create = Command::new(&self.binary);
        create.args(["bundle", "create"]).arg(tree).arg("--spec").arg(&spec_file);
        create.args(["--release-version", version, "--released-at", "2026-01-02T03:04:05Z", "--level"]);
        create.arg(level.to_string()).arg("-o").arg(&bundle);
        create.arg("--sign-key").arg(self.dir.join("pki/signer.key"));
        create.arg("--sign-cert").arg(self.dir.join("pki/signer.pem"));
        program::succeed(create)?;
        Ok(bundle)
    }
}
