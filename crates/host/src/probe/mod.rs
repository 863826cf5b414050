//! Examines a release after the switch: does it stay up, answer rightly, and answer fast enough?
//!
//! Owns the probes and their deadlines. Never restores anything: it reports, and the engine acts on the report. A probe
//! that errs, panics or hangs has failed, at the latest when its time is over. Read [`Probes`] first.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cutover_core::{causes::chain, model::ReleaseRef};
use serde::{Deserialize, Serialize};

use crate::service::ServiceManager;

pub(crate) mod bounded;
mod command;
mod http;
mod performance;
mod settings;
mod smoke;

pub use performance::Latency;
pub use settings::{
    CommandSettings, HttpSettings, OnFailure, PerformanceSettings, ProbeSettings, SmokeSettings,
};

/// What is examined.
#[derive(Clone, Debug)]
pub struct ProbeContext {
    /// The release that was switched to.
    pub release: ReleaseRef,
    /// The installation.
    pub root: PathBuf,
    /// The release's tree, absolute.
    pub tree: PathBuf,
    /// What the release before measured here, if it was measured.
    pub baseline: Option<Latency>,
}

/// Examines a release. [`Probes`] is the one that ships.
pub trait Prober: Send + Sync {
    /// Runs all probes. Never panics, and returns at the latest when the probes' times are over.
    fn probe(&self, context: &ProbeContext) -> ProbeReport;
}

/// One probe.
pub trait Probe: Send + Sync {
    /// Its name: unique among the probes, and what reports call it.
    fn name(&self) -> &str;

    /// The time it has.
    fn timeout(&self) -> Duration;

    /// Examines the release; runs on a thread of its own.
    ///
    /// # Errors
    /// What is wrong with the release, as a sentence fragment.
    fn run(&self, context: &ProbeContext) -> Result<Finding, String>;
}

/// What a probe that passed found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// In words and figures.
    pub detail: String,
    /// What it measured, if it measures.
    pub latency: Option<Latency>,
}

/// What all probes found, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeReport {
    /// One entry for every probe.
    pub results: Vec<ProbeResult>,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeResult {
    /// The probe.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// In words and figures.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What it measured, if it measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeOutcome {
    /// The release is good as far as this probe sees.
    Passed,
    /// It is not, or the probe could not tell.
    Failed,
    /// Not tried, because one before it failed and the way back should not wait.
    NotRun,
}

impl ProbeReport {
    /// Whether no probe failed; true when there is none.
    pub fn passed(&self) -> bool {
        self.failure().is_none()
    }

    /// The probe that failed.
    pub fn failure(&self) -> Option<&ProbeResult> {
        self.results.iter().find(|result| result.outcome == ProbeOutcome::Failed)
    }

    /// What was measured, for the next release to be compared with.
    pub fn latency(&self) -> Option<&Latency> {
        self.results.iter().find_map(|result| result.latency.as_ref())
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        match self.failure() {
            Some(failed) => format!("probe `{}` failed: {}", failed.name, failed.detail),
            None => format!("{} probes passed", self.results.len()),
        }
    }
}

/// An ordered list of probes with unique names.
#[derive(Clone, Default)]
pub struct Probes {
    probes: Vec<Arc<dyn Probe>>,
}

impl Probes {
    /// The probes of `settings`: smoke, HTTP, performance, commands, in this order.
    pub fn new(settings: &ProbeSettings, service: Arc<dyn ServiceManager>) -> Self {
        let mut probes = Self::default();
        if settings.smoke.alive_ms > 0 {
            probes.register(smoke::Smoke::new(settings, service));
        }
        for http in &settings.http {
            let name = probes.unused_name(http.name.as_ref().unwrap_or(&http.url), settings);
            let http = HttpSettings { name: Some(name), ..http.clone() };
            let timeout = settings.timeout(http.timeout_s);
            probes.register(http::Http::new(http, timeout));
        }
        if let Some(performance) = &settings.performance {
            let timeout = settings.timeout(performance.timeout_s);
            probes.register(performance::Performance::new(performance.clone(), timeout));
        }
        for command in &settings.command {
            let program = command.argv.first().map_or("command", String::as_str);
            let name = probes.unused_name(command.name.as_deref().unwrap_or(program), settings);
            let command = CommandSettings { name: Some(name), ..command.clone() };
            let timeout = settings.timeout(command.timeout_s);
            probes.register(command::Command::new(command, timeout));
        }
        probes
    }

    /// `name`, or `name #2` and so on: one of the operator's probes never takes the place of another one, nor gives its place to the
    /// performance probe that comes later.
    fn unused_name(&self, name: &str, settings: &ProbeSettings) -> String {
        let names =
            std::iter::once(name.to_owned()).chain((2..).map(|number: u32| format!("{name} #{number}")));
        let comes = |name: &str| settings.performance.is_some() && name == performance::NAME;
        let mut unused =
            names.filter(|name| !comes(name) && self.probes.iter().all(|known| known.name() != name));
        unused.next().expect("there are more numbers than probes")
    }

    /// Adds `probe` at the end, or puts it in the place of the one with its name.
    pub fn register(&mut self, probe: impl Probe + 'static) {
        let probe: Arc<dyn Probe> = Arc::new(probe);
        match self.probes.iter_mut().find(|known| known.name() == probe.name()) {
            Some(known) => *known = probe,
            None => self.probes.push(probe),
        }
    }

    /// Takes out the probe called `name`; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.probes.len();
        self.probes.retain(|probe| probe.name() != name);
        self.probes.len() < before
    }
}

impl Prober for Probes {
    fn probe(&self, context: &ProbeContext) -> ProbeReport {
        let mut report = ProbeReport::default();
        for probe in &self.probes {
            let result = if report.passed() { run(probe, context) } else { not_run(probe.as_ref()) };
            tracing::info!(probe = %result.name, outcome = ?result.outcome, detail = %result.detail, "probe");
            report.results.push(result);
        }
        report
    }
}

fn run(probe: &Arc<dyn Probe>, context: &ProbeContext) -> ProbeResult {
    let (work, on) = (Arc::clone(probe), context.clone());
    let (answer, took) = match bounded::start(probe.name(), probe.timeout(), move || work.run(&on)) {
        Ok(started) => started.wait(None),
        Err(no_thread) => (Err(no_thread), Duration::ZERO),
    };
    let (outcome, finding) = match answer {
        Ok(Ok(finding)) => (ProbeOutcome::Passed, finding),
        Ok(Err(detail)) => (ProbeOutcome::Failed, Finding { detail, latency: None }),
        Err(none) => (ProbeOutcome::Failed, Finding { detail: none.to_string(), latency: None }),
    };
    ProbeResult {
        name: probe.name().to_owned(),
        outcome,
        detail: finding.detail,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        latency: finding.latency,
    }
}

fn not_run(probe: &dyn Probe) -> ProbeResult {
    ProbeResult {
        name: probe.name().to_owned(),
        outcome: ProbeOutcome::NotRun,
        detail: "a probe before it failed".to_owned(),
        took_ms: 0,
        latency: None,
    }
}

/// The client of the probes over HTTP: no proxy, no redirect, and whatever the environment says is ignored.
fn http_client(unix_socket: Option<&Path>, timeout: Duration) -> Result<reqwest::blocking::Client, String> {
    let mut builder = reqwest::blocking::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout);
    if let Some(path) = unix_socket {
        builder = builder.unix_socket(path);
    }
    builder.build().map_err(|error| format!("no HTTP client: {}", chain(&error)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, Write as _},
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// An HTTP server with one answer after the other.
    pub(super) struct Server {
        address: std::net::SocketAddr,
        asked: Arc<AtomicU32>,
    }

    impl Server {
        /// Answers request 0, 1, and so on with what `say` gives.
        pub(super) fn start(say: impl Fn(u32) -> String + Send + Sync + 'static) -> Self {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
            let address = listener.local_addr().expect("bound");
            let (asked, say) = (Arc::new(AtomicU32::new(0)), Arc::new(say));
            let counter = Arc::clone(&asked);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (stream, counter, say) =
                        (stream.expect("a client"), Arc::clone(&counter), Arc::clone(&say));
                    std::thread::spawn(move || {
                        let mut reader = std::io::BufReader::new(stream);
                        let mut line = String::new();
                        while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                            if line.trim().is_empty() {
                                let text = say(counter.fetch_add(1, Ordering::SeqCst));
                                let _ = reader.get_mut().write_all(text.as_bytes());
                            }
                            line.clear();
                        }
                    });
                }
            });
            Self { address, asked }
        }

        pub(super) fn url(&self, path: &str) -> String {
            format!("http://{}{path}", self.address)
        }

        pub(super) fn asked(&self) -> u32 {
            self.asked.load(Ordering::SeqCst)
        }
    }

    /// An HTTP answer.
    pub(super) fn answer(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nLocation: /\r\n\r\n{body}", body.len())
    }

    /// A probe that does what it is told.
    struct Fake<F>(&'static str, Duration, F);

    impl<F: Fn() -> Result<Finding, String> + Send + Sync> Probe for Fake<F> {
        fn name(&self) -> &str {
            self.0
        }

        fn timeout(&self) -> Duration {
            self.1
        }

        fn run(&self, _: &ProbeContext) -> Result<Finding, String> {
            (self.2)()
        }
    }

    pub(super) const LONG: Duration = Duration::from_secs(60);

    pub(super) fn context() -> ProbeContext {
        ProbeContext {
            release: ReleaseRef {
                package: "db".parse().expect("a name"),
                version: "1.0.0".parse().expect("a version"),
                manifest: cutover_core::model::Digest::of(b""),
            },
            root: "/".into(),
            tree: "/".into(),
            baseline: None,
        }
    }

    fn passing() -> Result<Finding, String> {
        Ok(Finding::default())
    }

    // E13
    #[test]
    fn probe_that_errs_panics_or_hangs_fails_at_the_latest_after_its_timeout() {
        let started = std::time::Instant::now();
        for (probe, words) in [
            (
                Box::new(Fake("errs", LONG, || Err("wrong answer".to_owned()))) as Box<dyn Probe>,
                "wrong answer",
            ),
            (Box::new(Fake("panics", LONG, || panic!("at the disco"))), "panicked: at the disco"),
            (
                Box::new(Fake("hangs", Duration::from_millis(50), || {
                    std::thread::sleep(Duration::from_secs(3600));
                    passing()
                })),
                "timeout",
            ),
        ] {
            let probes = Probes { probes: vec![Arc::from(probe)] };
            let report = probes.probe(&context());
            assert!(!report.passed());
            assert!(report.summary().contains(words), "{}", report.summary());
        }
        assert!(started.elapsed() < LONG);
    }

    // E12
    #[test]
    fn replaced_probe_runs_in_place_of_the_first_and_removed_probe_not_at_all() {
        static CALLS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
        let mut probes = Probes::default();
        probes.register(Fake("one", LONG, || {
            CALLS[0].fetch_add(1, Ordering::SeqCst);
            passing()
        }));
        probes.register(Fake("two", LONG, passing));
        probes.register(Fake("one", LONG, || {
            CALLS[1].fetch_add(1, Ordering::SeqCst);
            passing()
        }));
        let report = probes.probe(&context());
        assert_eq!(
            report.results.iter().map(|result| result.name.as_str()).collect::<Vec<_>>(),
            ["one", "two"]
        );
        assert_eq!(CALLS.each_ref().map(|calls| calls.load(Ordering::SeqCst)), [0, 1]);
        assert!(probes.remove("one") && probes.remove("two") && !probes.remove("two"));
        assert_eq!(probes.probe(&context()), ProbeReport::default());
        assert_eq!(CALLS[1].load(Ordering::SeqCst), 1);
    }

    // E12
    #[test]
    fn no_probes_pass() {
        assert!(Probes::default().probe(&context()).passed());
    }

    #[test]
    fn settings_make_every_probe_they_name_also_two_of_one_url() {
        let settings: ProbeSettings = serde_json::from_value(serde_json::json!({
            "http": [{"url": "http://x/"}, {"url": "http://x/", "contains": "y"}, {"url": "http://x/", "name": "performance"}],
            "performance": {"url": "http://x/"},
            "command": [{"argv": ["true"]}, {"argv": ["true", "x"]}, {"argv": ["true"], "name": "mine"}],
        }))
        .expect("settings");
        let service = Arc::from(crate::service::service_manager(
            &crate::service::ServiceSettings {
                mode: crate::service::ServiceMode::None,
                ..Default::default()
            },
            Path::new("/"),
            || None,
        ));
        let probes = Probes::new(&settings, service);
        let names: Vec<_> = probes.probes.iter().map(|probe| probe.name()).collect();
        let http = ["http://x/", "http://x/ #2", "performance #2"];
        let expected = ["smoke"].into_iter().chain(http).chain(["performance", "true", "true #2", "mine"]);
        assert_eq!(names, expected.collect::<Vec<_>>());
        assert_eq!(probes.probes[1].timeout(), Duration::from_secs(30));
    }

    #[test]
    fn probes_after_a_failed_one_are_listed_but_not_run() {
        let mut probes = Probes::default();
        probes.register(Fake("first", LONG, passing));
        probes.register(Fake("good", LONG, passing));
        probes.register(Fake("bad", LONG, || Err("no".to_owned())));
        probes.register(Fake("after", LONG, || panic!("must not run")));
        let outcomes: Vec<_> = probes
            .probe(&context())
            .results
            .into_iter()
            .map(|result| (result.name, result.outcome))
            .collect();
        let expected = [
            ("first", ProbeOutcome::Passed),
            ("good", ProbeOutcome::Passed),
            ("bad", ProbeOutcome::Failed),
            ("after", ProbeOutcome::NotRun),
        ];
        assert_eq!(outcomes, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    }
}
