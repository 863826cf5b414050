//! `[probes]`: how a release is examined after the switch.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a release is examined after the switch, and what follows from a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeSettings {
    /// Longest time of one probe, in seconds, unless it sets its own.
    pub timeout_s: u32,
    /// What happens when a probe fails.
    pub on_failure: OnFailure,
    /// The service stays up.
    pub smoke: SmokeSettings,
    /// Requests that must be answered as written here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpSettings>,
    /// Answers are not much slower than those of the release before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<PerformanceSettings>,
    /// Commands that must exit with 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<CommandSettings>,
}

/// What happens when a probe fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The release before is restored.
    #[default]
    Restore,
    /// The new release stays, unsafe as it is; the update still counts as failed.
    Keep,
}

/// The smoke probe: the service is ready and its process stays the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmokeSettings {
    /// How long it must stay up, in milliseconds; 0 turns the probe off.
    pub alive_ms: u32,
}

/// One integration probe over HTTP. It is tried again until it passes or its time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// Its name in reports. Default: the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is asked for, with GET.
    pub url: String,
    /// Connects to this Unix socket instead of the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_socket: Option<std::path::PathBuf>,
    /// The status of a good answer.
    #[serde(default = "ok")]
    pub status: u16,
    /// Text that a good answer's first MiB contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Its own time, in seconds, for all tries together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

fn ok() -> u16 {
    200
}

/// The performance probe: sequential requests over one connection, their latency compared with that of the release
/// before on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerformanceSettings {
    /// What is asked for, with GET; every answer must have a 2xx status.
    pub url: String,
    /// Connects to this Unix socket instead of the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_socket: Option<std::path::PathBuf>,
    /// How many requests are measured, after a tenth as many unmeasured ones. Default: 200.
    #[serde(default = "requests")]
    pub requests: u32,
    /// How much slower than before p50 and p99 may be, in percent: 100, the default, allows twice the time.
    #[serde(default = "slower_percent_max")]
    pub slower_percent_max: u32,
    /// A difference up to this many milliseconds is noise and never fails. Default: 5.
    #[serde(default = "noise_ms")]
    pub noise_ms: u32,
    /// The longest p99 in milliseconds, whatever it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms_max: Option<u32>,
    /// Its own time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

fn requests() -> u32 {
    200
}

fn slower_percent_max() -> u32 {
    100
}

fn noise_ms() -> u32 {
    5
}

/// One command probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSettings {
    /// Its name in reports. Default: the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Program and arguments; it runs in the release's tree with `CUTOVER_ROOT`, `CUTOVER_RELEASE` and `CUTOVER_TREE`.
    pub argv: Vec<String>,
    /// Its own time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            timeout_s: 30,
            on_failure: OnFailure::default(),
            smoke: SmokeSettings::default(),
            http: Vec::new(),
            performance: None,
            command: Vec::new(),
        }
    }
}

impl Default for SmokeSettings {
    fn default() -> Self {
        Self { alive_ms: 500 }
    }
}

impl PerformanceSettings {
    /// The default measurement of `url`.
    pub fn of(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            unix_socket: None,
            requests: requests(),
            slower_percent_max: slower_percent_max(),
            noise_ms: noise_ms(),
            p99_ms_max: None,
            timeout_s: None,
        }
    }
}

impl ProbeSettings {
    /// The time of a probe that sets `own` or nothing.
    pub fn timeout(&self, own: Option<u32>) -> Duration {
        Duration::from_secs(u64::from(own.unwrap_or(self.timeout_s)))
    }
}
