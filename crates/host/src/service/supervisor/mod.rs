//! `cutover run`: holds the listening sockets, runs the current release's service and hands over to the next one.
//!
//! One thread, one poll(2) loop. What to do is decided by [`cutover_core::supervise`]; here it is done. The sockets are
//! opened once and inherited by one process after the other, so no connection is refused during a hand-over, a crash or
//! an update of the supervisor itself. Read [`run`] first, then `daemon`.

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
};

use cutover_core::model::{ReleaseRef, ServiceHints};

use super::{ServiceError, ServiceSettings};

mod connection;
mod daemon;
mod launch;
mod log;
mod notify;
mod process;
mod reexec;
mod signals;
mod sockets;
mod spawn;
mod user;

/// Says which release is current. The engine implements it; a closure will do.
pub trait CurrentRelease {
    /// The current release, the absolute path of its tree, and how it wants its service to be run; `None` when nothing
    /// is installed.
    ///
    /// # Errors
    /// It cannot be told.
    fn current(&self) -> Result<Option<Current>, Box<dyn std::error::Error + Send + Sync>>;
}

/// The current release, the absolute path of its tree, and how it wants its service to be run.
pub type Current = (ReleaseRef, PathBuf, Option<ServiceHints>);

impl<F> CurrentRelease for F
where
    F: Fn() -> Result<Option<Current>, Box<dyn std::error::Error + Send + Sync>>,
{
    fn current(&self) -> Result<Option<Current>, Box<dyn std::error::Error + Send + Sync>> {
        self()
    }
}

/// What [`run`] needs.
pub struct SupervisorOptions {
    /// The installation.
    pub root: PathBuf,
    /// `[service]`.
    pub settings: ServiceSettings,
    /// Says which release to run at the start.
    pub current: Box<dyn CurrentRelease>,
    /// This program's own arguments without its name: with them a newer version of it is started in its place.
    pub arguments: Vec<OsString>,
    /// This program's environment, which services inherit but for `CUTOVER_*` and the variables of socket passing.
    pub environment: Vec<(OsString, OsString)>,
}

impl SupervisorOptions {
    /// Options for the installation at `root`, with this process's arguments and environment.
    pub fn new(root: &Path, settings: ServiceSettings, current: impl CurrentRelease + 'static) -> Self {
        Self {
            root: root.to_owned(),
            settings,
            current: Box::new(current),
            arguments: std::env::args_os().skip(1).collect(),
            environment: std::env::vars_os().collect(),
        }
    }
}

/// Why this process is being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Somebody starts it.
    Fresh,
    /// A running supervisor asks whether this program could take over; [`run`] says so and returns.
    Check,
    /// A running supervisor has become this program.
    Resume,
}

/// Why this process is being started. Work that belongs before a fresh start only, such as recovery, asks this.
pub fn start() -> Start {
    match std::env::var(reexec::VARIABLE).as_deref() {
        Ok(reexec::CHECK) => Start::Check,
        Ok(_) => Start::Resume,
        Err(_) => Start::Fresh,
    }
}

/// Supervises until SIGTERM, SIGINT or a `stop` on the control socket, then stops the service and returns.
///
/// Must be called on the main thread: services are told to stop when the thread that started them ends.
///
/// # Errors
/// Another supervisor runs for this root, or the root cannot be used.
pub fn run(options: SupervisorOptions) -> Result<(), ServiceError> {
    let daemon =
        match start() {
            Start::Check => {
                return writeln!(std::io::stdout(), "{}", reexec::ANSWER).map_err(|source| {
                    ServiceError::Io { what: "answer on", path: "/dev/stdout".into(), source }
                });
            }
            Start::Fresh => daemon::Daemon::start(options)?,
            Start::Resume => daemon::Daemon::resume(options)?,
        };
    daemon.run()
}
