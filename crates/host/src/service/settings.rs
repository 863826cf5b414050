//! `[service]`: how the service is run on this machine.

use std::{collections::BTreeMap, time::Duration};

use cutover_core::model::{Listen, Ready, ServiceHints};
use serde::{Deserialize, Serialize};

/// How the service is run. What is set here goes before the release's own hints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// Who runs the service.
    pub mode: ServiceMode,
    /// Stop the service before the switch and start it after, instead of handing over: for services of which two
    /// may never run at once. `supervised` keeps the sockets open meanwhile, so connections wait instead of failing.
    pub stop_first: bool,

    /// `supervised`: program and arguments; a relative program is looked up in the release. Default: the hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// `supervised`: sockets to open and pass on, in this order. Default: the hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<Listen>>,
    /// `supervised`: how the service says that it is ready. Default: the hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// Longest time to become ready, in seconds. Default: the hint, else 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_timeout_s: Option<u32>,
    /// `supervised`: longest time to finish open connections after SIGTERM, in seconds; then SIGKILL. Default: the
    /// hint, else 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_s: Option<u32>,
    /// `supervised`: environment variables, added to those of the hint.
    pub env: BTreeMap<String, String>,
    /// `supervised`: the user it runs as; only root can choose one. Default: the supervisor's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `supervised`: wait before the first restart after a crash, in milliseconds; doubles with every crash.
    pub restart_delay_ms: u32,
    /// `supervised`: the longest wait before a restart, in seconds.
    pub restart_delay_max_s: u32,
    /// `supervised`: a service that ran this long, in seconds, is stable: its next restart waits the shortest time.
    pub stable_after_s: u32,
    /// `supervised`: this many crashes in a row, none of them stable, are reported as a crash loop (restarts go on).
    pub crash_loop_after: u32,
    /// `supervised`: a release's log file is rotated at this size, in MiB; one older file is kept.
    pub log_size_mib: u32,
    /// `supervised`: this many releases keep their log files.
    pub log_releases: u32,

    /// `systemd`: the unit's name, such as `db.service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// `systemd`: the program and arguments in front of the verb, such as `["systemctl", "--user"]`.
    pub systemctl: Vec<String>,

    /// `exec`: starts the service and returns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<String>,
    /// `exec`: stops the service; success when it does not run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// `exec`: makes a running service use the new release without stopping it. Empty: stop and start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
    /// `exec`: exits 0 when the service runs and is ready. Empty: not known, so a finished `start` counts as ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<String>,
    /// `systemd`, `exec`: longest time of one command, in seconds; then its process group is killed.
    pub command_timeout_s: u32,
}

/// Who runs the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceMode {
    /// `cutover run`.
    #[default]
    Supervised,
    /// systemd, through `systemctl`.
    Systemd,
    /// Commands of the operator.
    Exec,
    /// Nobody: the release is files only.
    None,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            mode: ServiceMode::default(),
            stop_first: false,
            command: None,
            listen: None,
            ready: None,
            ready_timeout_s: None,
            drain_timeout_s: None,
            env: BTreeMap::new(),
            user: None,
            restart_delay_ms: 100,
            restart_delay_max_s: 30,
            stable_after_s: 10,
            crash_loop_after: 5,
            log_size_mib: 16,
            log_releases: 10,
            unit: None,
            systemctl: vec!["systemctl".to_owned()],
            start: Vec::new(),
            stop: Vec::new(),
            reload: Vec::new(),
            status: Vec::new(),
            command_timeout_s: 90,
        }
    }
}

impl ServiceSettings {
    /// The longest time to become ready when neither the settings nor the release say one.
    const READY_TIMEOUT_S: u32 = 30;
    /// The longest time to drain when neither the settings nor the release say one.
    const DRAIN_TIMEOUT_S: u32 = 30;

    /// The longest time `hints`' service may take to become ready.
    pub fn ready_timeout(&self, hints: Option<&ServiceHints>) -> Duration {
        let hinted = hints.and_then(|hints| hints.ready_timeout_s);
        seconds(self.ready_timeout_s.or(hinted).unwrap_or(Self::READY_TIMEOUT_S))
    }

    /// The longest time `hints`' service may take to finish its open connections.
    pub fn drain_timeout(&self, hints: Option<&ServiceHints>) -> Duration {
        let hinted = hints.and_then(|hints| hints.drain_timeout_s);
        seconds(self.drain_timeout_s.or(hinted).unwrap_or(Self::DRAIN_TIMEOUT_S))
    }

    /// The longest time of one operator's or systemctl's command.
    pub(super) fn command_timeout(&self) -> Duration {
        seconds(self.command_timeout_s)
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}
