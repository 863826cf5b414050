//! A root with downloads, a clock that does not make anybody wait, and a sink that remembers.

use std::{
    collections::BTreeMap,
    future::Future,
    io::Read as _,
    num::NonZeroUsize,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use cutover_core::{
    fetch::{Priority, speeds::Speeds},
    model::{Digest, Instant},
};
use cutover_host::{
    clock::Clock,
    disk::RealDisk,
    fetch::{
        Downloads, FetchError, FetchPorts, Fetched, Fetcher, OnFailure, Phase, RelativePath, Report, Sink,
        SourceSettings, Taken, Timer, Token, Wanted, Watch,
    },
    nice::Nice,
};

/// Time that passes only when somebody sleeps.
#[derive(Default)]
pub(crate) struct VirtualTimer {
    now: Mutex<Duration>,
    slept: Mutex<Vec<Duration>>,
}

impl Timer for VirtualTimer {
    fn now(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, wait: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut now = self.now.lock().unwrap();
        *now += wait;
        self.slept.lock().unwrap().push(wait);
        Box::pin(tokio::task::yield_now())
    }
}

pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Instant {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }
}

/// What was told about each object.
#[derive(Default)]
pub(crate) struct Log {
    phases: Mutex<BTreeMap<usize, Vec<Phase>>>,
    retries: Mutex<Vec<(usize, String)>>,
}

impl Watch for Log {
    fn progress(&self, index: usize, phase: Phase, _: u64) {
        let mut phases = self.phases.lock().unwrap();
        let phases = phases.entry(index).or_default();
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
    }

    fn retry(&self, index: usize, error: &FetchError) {
        self.retries.lock().unwrap().push((index, error.to_string()));
    }
}

/// Takes the content of every object.
#[derive(Default)]
pub(crate) struct Collect(pub(crate) BTreeMap<usize, Vec<u8>>);

impl Sink for Collect {
    fn take(
        &mut self,
        index: usize,
        fetched: &Fetched,
        downloads: &Downloads,
    ) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
        let mut content = Vec::new();
        downloads.open_object(fetched.digest)?.read_to_end(&mut content)?;
        assert_eq!(Digest::of(&content), fetched.digest, "only verified objects are handed over");
        self.0.insert(index, content);
        Ok(Taken::Consumed)
    }
}

/// What a download came to.
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) content: BTreeMap<usize, Vec<u8>>,
    log: Arc<Log>,
}

impl Outcome {
    pub(crate) fn only(&self) -> &Fetched {
        assert_eq!(self.report.objects.len(), 1);
        self.report.objects[0].as_ref().expect("it was fetched")
    }

    pub(crate) fn error(&self) -> &FetchError {
        assert_eq!(self.report.objects.len(), 1);
        self.report.objects[0].as_ref().expect_err("it was refused")
    }

    pub(crate) fn phases(&self, index: usize) -> Vec<&'static str> {
        self.log.phases.lock().unwrap()[&index].iter().map(|phase| phase.name()).collect()
    }

    pub(crate) fn retries(&self) -> Vec<(usize, String)> {
        self.log.retries.lock().unwrap().clone()
    }
}

pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) settings: SourceSettings,
    pub(crate) token: Option<Token>,
    pub(crate) timer: Arc<VirtualTimer>,
    pub(crate) speeds: Speeds,
}

impl World {
    pub(crate) fn new() -> Self {
        let settings = SourceSettings {
            proxy: Some("none".to_owned()),
            stall_timeout_s: 1,
            retries: 2,
            ..SourceSettings::default()
        };
        Self {
            root: tempfile::tempdir().unwrap(),
            settings,
            token: None,
            timer: Arc::default(),
            speeds: Speeds::default(),
        }
    }

    pub(crate) fn with(change: impl FnOnce(&mut SourceSettings)) -> Self {
        let mut world = Self::new();
        change(&mut world.settings);
        world
    }

    pub(crate) fn ports(&self) -> FetchPorts {
        FetchPorts {
            timer: Arc::clone(&self.timer) as Arc<dyn Timer>,
            clock: Arc::new(FixedClock),
            seed: 1,
            jobs: NonZeroUsize::new(2).unwrap(),
            nice: Nice::NONE,
            speeds: self.speeds.clone(),
            buckets: None,
        }
    }

    pub(crate) fn fetcher(&self, bases: &[String]) -> Fetcher {
        Fetcher::new(bases, &self.settings, self.token.clone(), self.ports()).unwrap()
    }

    pub(crate) fn downloads(&self) -> Arc<Downloads> {
        let disk = RealDisk::open(self.root.path()).unwrap();
        Arc::new(Downloads::open(Arc::new(disk)).unwrap())
    }

    /// Fetches everything, whatever fails.
    pub(crate) fn fetch(&self, base: &str, wanted: &[Wanted]) -> Outcome {
        self.fetch_from(&[base.to_owned()], wanted, OnFailure::GoOn).unwrap()
    }

    pub(crate) fn fetch_from(
        &self,
        bases: &[String],
        wanted: &[Wanted],
        on_failure: OnFailure,
    ) -> Result<Outcome, FetchError> {
        let log = Arc::new(Log::default());
        let watch = Arc::clone(&log) as Arc<dyn Watch>;
        let mut sink = Collect::default();
        let report = self.fetcher(bases).fetch(&self.downloads(), wanted, on_failure, &watch, &mut sink)?;
        Ok(Outcome { report, content: sink.0, log })
    }

    /// The file of a download in `.cutover/downloads`.
    pub(crate) fn file(&self, digest: Digest, suffix: &str) -> PathBuf {
        self.root.path().join(".cutover/downloads").join(format!("{digest}{suffix}"))
    }

    /// Lays down what an earlier run left: partial bytes from `from`, whose version had the given ETag.
    pub(crate) fn lay_partial(&self, wanted: &Wanted, partial: &[u8], from: &str, etag: Option<&str>) {
        drop(self.downloads());
        std::fs::write(self.file(wanted.digest, ".part"), partial).unwrap();
        let etag = etag.map_or("null".to_owned(), |etag| format!("{etag:?}"));
        let (size, from) = (wanted.size_bytes, format!("{from:?}"));
        let sidecar = format!(
            "{{\"format\":1,\"from\":{from},\"size_bytes\":{size},\"validator\":{{\"etag\":{etag}}}}}"
        );
        std::fs::write(self.file(wanted.digest, ".json"), sidecar).unwrap();
    }

    pub(crate) fn slept(&self) -> Vec<Duration> {
        self.timer.slept.lock().unwrap().clone()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.timer.now()
    }

    /// Names of what lies among the downloads, without the lock.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path().join(".cutover/downloads")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect()
    }
}

pub(crate) fn wanted(path: &str, content: &[u8]) -> Wanted {
    Wanted {
        path: RelativePath::new(path).unwrap(),
        digest: Digest::of(content),
        size_bytes: content.len() as u64,
        priority: Priority::default(),
    }
}

/// Bytes that do not repeat.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
