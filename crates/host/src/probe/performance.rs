//! The performance probe: latency compared with what the release before measured on this machine.

use std::{
    io::Read,
    path::PathBuf,
    time::{Duration, Instant},
};

use cutover_core::causes::chain;
use serde::{Deserialize, Serialize};

use super::{Finding, PerformanceSettings, Probe, ProbeContext};

/// The probe's name in reports.
pub(super) const NAME: &str = "performance";
/// How much of an answer is read.
const BODY_MAX: u64 = 1 << 20;

/// Measured latency of one URL, in microseconds, percentiles by nearest rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// What was asked for: figures of another URL say nothing about this one.
    pub url: String,
    /// The Unix socket that was asked instead of the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_socket: Option<PathBuf>,
    /// How many requests were measured.
    pub requests: u32,
    /// Half of them were at most this slow.
    pub p50_us: u64,
    /// 99 of 100 were at most this slow.
    pub p99_us: u64,
}

impl Latency {
    /// The percentiles of `samples` of what `settings` name; `None` without samples.
    fn of(settings: &PerformanceSettings, mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        // The smallest value that at least `percent` of the samples do not exceed.
        let rank = |percent: usize| (samples.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent: usize| {
            let sample = samples.get(rank(percent))?;
            Some(u64::try_from(sample.as_micros()).unwrap_or(u64::MAX))
        };
        Some(Self {
            url: settings.url.clone(),
            unix_socket: settings.unix_socket.clone(),
            requests: u32::try_from(samples.len()).unwrap_or(u32::MAX),
            p50_us: at(50)?,
            p99_us: at(99)?,
        })
    }

    /// Whether the same was measured, so that the figures can be compared.
    pub fn is_comparable(&self, other: &Self) -> bool {
        (&self.url, &self.unix_socket) == (&other.url, &other.unix_socket)
    }
}

pub(super) struct Performance {
    settings: PerformanceSettings,
    timeout: Duration,
}

impl Performance {
    pub(super) fn new(settings: PerformanceSettings, timeout: Duration) -> Self {
        Self { settings, timeout }
    }

    fn measure(&self) -> Result<Latency, String> {
        let settings = &self.settings;
        let client = super::http_client(settings.unix_socket.as_deref(), self.timeout)?;
        let deadline = Instant::now() + self.timeout;
        let warm_up = settings.requests / 10;
        let mut samples = Vec::new();
        for number in 0..warm_up.saturating_add(settings.requests) {
            if Instant::now() >= deadline {
                return Err(format!("only {number} requests in {} s", self.timeout.as_secs_f32()));
            }
            let asked = Instant::now();
            let answer = client.get(&settings.url).send().map_err(|error| chain(&error))?;
            let status = answer.status();
            let body = std::io::copy(&mut answer.take(BODY_MAX), &mut std::io::sink());
            body.map_err(|error| chain(&error))?;
            if !status.is_success() {
                return Err(format!("request {number} was answered with status {}", status.as_u16()));
            }
            if number >= warm_up {
                samples.push(asked.elapsed());
            }
        }
        Latency::of(settings, samples).ok_or_else(|| "`requests` is 0, so nothing was measured".to_owned())
    }
}

/// What is wrong with `now`, compared with `before`.
fn judge(now: &Latency, before: Option<&Latency>, settings: &PerformanceSettings) -> Result<(), String> {
    if let Some(limit) = settings.p99_ms_max
        && now.p99_us > u64::from(limit) * 1000
    {
        return Err(format!("p99 is {} us, the limit is {limit} ms", now.p99_us));
    }
    let Some(before) = before else { return Ok(()) };
    for (name, now, before) in [("p50", now.p50_us, before.p50_us), ("p99", now.p99_us, before.p99_us)] {
        let slower = before.saturating_mul(u64::from(settings.slower_percent_max)) / 100;
        let allowed = before.saturating_add(slower.max(u64::from(settings.noise_ms) * 1000));
        if now > allowed {
            return Err(format!(
                "{name} is {now} us, was {before} us before, at most {allowed} us are allowed"
            ));
        }
    }
    Ok(())
}

impl Probe for Performance {
    fn name(&self) -> &str {
        NAME
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn run(&self, context: &ProbeContext) -> Result<Finding, String> {
        let now = self.measure()?;
        let before = context.baseline.as_ref().filter(|before| before.is_comparable(&now));
        judge(&now, before, &self.settings)?;
        let compared = match (before, &context.baseline) {
            (Some(before), _) => format!("before: p50 {} us, p99 {} us", before.p50_us, before.p99_us),
            (None, Some(other)) => format!("nothing to compare with: {} was measured before", other.url),
            (None, None) => "nothing to compare with yet".to_owned(),
        };
        let detail =
            format!("p50 {} us, p99 {} us of {} requests; {compared}", now.p50_us, now.p99_us, now.requests);
        Ok(Finding { detail, latency: Some(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{LONG, Server, answer, context},
        *,
    };

    // C15
    #[test]
    fn percentiles_are_nearest_rank() {
        let of = |samples| Latency::of(&PerformanceSettings::of("http://x/"), samples);
        let latency = of((1..=100).rev().map(Duration::from_micros).collect()).expect("samples");
        assert_eq!((latency.requests, latency.p50_us, latency.p99_us), (100, 50, 99));
        assert_eq!(of(vec![Duration::from_micros(7)]).map(|latency| latency.p99_us), Some(7));
        assert_eq!(of(Vec::new()), None);
    }

    #[test]
    fn measurement_counts_every_request_and_its_figures_become_the_next_baseline() {
        let server = Server::start(|_| answer(200, "hello"));
        let settings = PerformanceSettings { requests: 50, ..PerformanceSettings::of(server.url("/")) };
        let finding = Performance::new(settings, LONG).run(&context()).expect("it is fast enough");
        let latency = finding.latency.expect("figures");
        assert!(latency.requests == 50 && latency.p50_us > 0 && latency.p50_us <= latency.p99_us);
        assert_eq!(server.asked(), 55);
        let text = serde_json::to_string(&latency).expect("JSON");
        assert_eq!(serde_json::from_str::<Latency>(&text).expect("the same"), latency);
    }

    #[test]
    fn figures_of_another_url_or_socket_are_not_compared_with() {
        let server = Server::start(|_| answer(200, ""));
        let settings = PerformanceSettings { noise_ms: 0, ..PerformanceSettings::of(server.url("/")) };
        let same =
            Latency { url: settings.url.clone(), unix_socket: None, requests: 200, p50_us: 0, p99_us: 0 };
        let run = |before: Latency| {
            let context = ProbeContext { baseline: Some(before), ..context() };
            Performance::new(settings.clone(), LONG).run(&context)
        };
        for other in [
            Latency { url: server.url("/other"), ..same.clone() },
            Latency { unix_socket: Some("/run/db.sock".into()), ..same.clone() },
        ] {
            let finding = run(other).expect("nothing to compare with");
            assert!(finding.detail.contains("nothing to compare with"), "{}", finding.detail);
        }
        run(same).expect_err("nothing is as fast as no time at all");
    }

    #[test]
    fn answer_that_is_no_success_fails_the_measurement() {
        let server = Server::start(|number| answer(if number == 5 { 503 } else { 200 }, ""));
        let settings = PerformanceSettings::of(server.url("/"));
        let error = Performance::new(settings, LONG).run(&context()).expect_err("503");
        assert!(error.contains("503"), "{error}");
    }

    #[test]
    fn slower_than_allowed_fails_and_noise_does_not() {
        let settings = PerformanceSettings { noise_ms: 1, ..PerformanceSettings::of("") };
        let latency =
            |p50_us, p99_us| Latency { url: String::new(), unix_socket: None, requests: 100, p50_us, p99_us };
        let before = latency(2000, 10_000);
        judge(&latency(4000, 20_000), Some(&before), &settings).expect("twice as slow is allowed");
        judge(&latency(4001, 20_000), Some(&before), &settings).expect_err("p50 is too slow");
        judge(&latency(4000, 20_001), Some(&before), &settings).expect_err("p99 is too slow");
        judge(&latency(1010, 1010), Some(&latency(10, 10)), &settings).expect("one millisecond is noise");
        judge(&latency(1_000_000, 1_000_000), None, &settings).expect("nothing to compare with");
        let limited = PerformanceSettings { p99_ms_max: Some(5), ..settings };
        judge(&latency(1, 5001), None, &limited).expect_err("over the limit");
    }
}
