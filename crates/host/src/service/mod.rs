//! Runs the service of the current release: supervised by us, by systemd, by the operator's commands, or not at all.
//!
//! Owns every process that is started for a service. Decides nothing about which release is current: it is told.
//! What to do when a process starts, becomes ready, crashes or drains is decided by [`cutover_core::supervise`].
//! Read [`ServiceManager`] first, then [`supervisor`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cutover_core::model::{ReleaseRef, ServiceHints};
use serde::{Deserialize, Serialize};

pub mod command;
mod control;
mod exec;
mod inherit;
mod none;
mod settings;
mod supervised;
pub mod supervisor;
mod systemd;

pub use command::{CommandError, Finished};
pub use inherit::{Inherited, InheritedSocket, inherited_listeners, notify, notify_ready};
pub use settings::{ServiceMode, ServiceSettings};
pub use supervised::SupervisorClient;

/// Whoever runs the service. Every method is bounded in time and idempotent.
pub trait ServiceManager: Send + Sync {
    /// Before the switch: stops the service if its settings say `stop_first`, otherwise makes sure that it can be
    /// handed over.
    ///
    /// # Errors
    /// The service cannot be stopped, or whoever runs it does not know it.
    fn quiesce(&self) -> Result<(), ServiceError>;

    /// Makes the service run `target`, after a switch or after switching back, and returns when it is ready. That it
    /// runs already is success. On an error of a hand-over the service that ran before still runs.
    ///
    /// # Errors
    /// The service did not become ready in time, or whoever runs it failed.
    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError>;

    /// What runs now.
    ///
    /// # Errors
    /// Whoever runs the service cannot be asked.
    fn status(&self) -> Result<ServiceStatus, ServiceError>;
}

/// What the service is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The release; `None` when nothing is installed any more, so that the service stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRef>,
    /// The absolute path of the tree to run from.
    pub tree: PathBuf,
    /// How the release wants its service to be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hints: Option<ServiceHints>,
    /// Whether a process that runs it already will not do, because files of another release lay in its tree for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

/// The result of an activation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activated {
    /// From the request until the new process was ready, in milliseconds; 0 when nothing had to be started.
    pub ready_ms: u64,
    /// The process that serves now, if we know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The process that served before and drains now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_pid: Option<u32>,
    /// What was done, for people.
    pub note: String,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    /// In which state the service is.
    pub state: ServiceState,
    /// The release that serves, if whoever runs the service knows releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRef>,
    /// The process that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Since when that process is ready, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_for_ms: Option<u64>,
    /// How often the service was restarted after a crash since its release was activated.
    #[serde(default)]
    pub restarts: u32,
    /// Processes that still finish their connections.
    #[serde(default)]
    pub draining: u32,
    /// The sockets that are held, with their real ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// The supervisor itself, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<SupervisorInfo>,
    /// More, for people.
    #[serde(default)]
    pub note: String,
}

/// A running supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorInfo {
    /// Its process.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// How often it became a newer program while its services ran on.
    pub reexecs: u32,
    /// Whether it was told to end: it starts nothing more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

/// In which state a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Nobody runs it, as the settings say.
    Unmanaged,
    /// `cutover run` is not running.
    NoSupervisor,
    /// It does not run and is not meant to.
    Stopped,
    /// Its first process is not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It crashed and will be restarted.
    BackOff,
    /// It crashed again and again; restarts go on, slowly.
    CrashLoop,
    /// It failed and nobody restarts it.
    Failed,
    /// Whoever runs it cannot tell.
    Unknown,
}

impl ServiceStatus {
    /// A status that says no more than `state` and `note`.
    pub fn bare(state: ServiceState, note: impl Into<String>) -> Self {
        Self {
            state,
            release: None,
            pid: None,
            ready_for_ms: None,
            restarts: 0,
            draining: 0,
            listen: Vec::new(),
            supervisor: None,
            note: note.into(),
        }
    }
}

/// Why a service could not be run as asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A setting is missing or contradicts another one.
    #[error("the service cannot be run: {0}")]
    Settings(String),
    /// The new process ended before it was ready, or never said that it is. What ran before still runs.
    #[error("the service of {release} did not become ready: {reason}{}", log_hint(.log))]
    NotReady {
        /// The release whose service it is.
        release: String,
        /// What happened instead.
        reason: String,
        /// Where its output is.
        log: Option<PathBuf>,
    },
    /// The service did not stop.
    #[error("the service did not stop: {0}")]
    NotStopped(String),
    /// Another activation took this one's place.
    #[error("the activation was replaced by a later one, of {0}")]
    Superseded(String),
    /// A command of the operator or of systemd failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The supervisor is there but did not do as it was asked.
    #[error("the supervisor at `{}` {reason}", socket.display())]
    Supervisor {
        /// Its control socket.
        socket: PathBuf,
        /// What it did or said.
        reason: String,
    },
    /// There is a supervisor for this installation already.
    #[error("a supervisor already runs for `{}`; stop it first", .0.display())]
    AlreadySupervised(PathBuf),
    /// A file or socket of the service side.
    #[error("failed to {what} `{}`", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

fn log_hint(log: &Option<PathBuf>) -> String {
    log.as_ref().map(|path| format!("; its output is in `{}`", path.display())).unwrap_or_default()
}

/// The manager that `settings` name, for the installation at `root`. `current` says what is installed now; commands that ask for or
/// stop what runs are told.
pub fn service_manager(
    settings: &ServiceSettings,
    root: &Path,
    current: impl Fn() -> Option<Activation> + Send + Sync + 'static,
) -> Box<dyn ServiceManager> {
    match settings.mode {
        ServiceMode::Supervised => Box::new(SupervisorClient::new(settings, root)),
        ServiceMode::Systemd => Box::new(systemd::Systemd::new(settings)),
        ServiceMode::Exec => Box::new(exec::Commands::new(settings, root, Box::new(current))),
        ServiceMode::None => Box::new(none::Unmanaged),
    }
}

/// Whole milliseconds, for reports.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
