//! `mode = "supervised"`: asks the supervisor that `cutover run` is.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Activated, Activation, ServiceError, ServiceManager, ServiceSettings, ServiceState, ServiceStatus,
    control::{self, Ask, NoReply, Reply},
};

/// What people read when nobody supervises; the next `cutover run` starts the current release by itself.
const NO_SUPERVISOR: &str = "no supervisor is running; `cutover run` will start the service";

/// How often a question is asked that the supervisor dropped.
const TRIES_MAX: u32 = 5;
/// The pause before the next try.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How much longer than its services a supervisor may take to end.
const END: Duration = Duration::from_secs(10);

/// Asks a supervisor through its control socket.
#[derive(Debug)]
pub struct SupervisorClient {
    root: PathBuf,
    stop_first: bool,
    /// The process that served before the switch: it runs from the files it was started from.
    before: Mutex<Option<u32>>,
}

impl SupervisorClient {
    /// The client for the supervisor of the installation at `root`.
    pub fn new(settings: &ServiceSettings, root: &Path) -> Self {
        Self { root: root.to_owned(), stop_first: settings.stop_first, before: Mutex::default() }
    }

    /// Lets the supervisor go on as the program at `path`, with the same process id, sockets and services.
    ///
    /// # Errors
    /// No supervisor runs, it starts a service just now, or that program cannot take over.
    pub fn reexec(&self, path: &Path) -> Result<String, ServiceError> {
        self.done(&Ask::Reexec { path: path.to_owned() })?.ok_or_else(|| self.said("is not running"))
    }

    /// Stops the service and the supervisor; returns when both are gone. That none runs is success.
    ///
    /// # Errors
    /// The supervisor cannot be reached or does not end in time.
    pub fn stop(&self) -> Result<String, ServiceError> {
        Ok(self.done(&Ask::Stop)?.unwrap_or_else(|| NO_SUPERVISOR.to_owned()))
    }

    /// The final reply; `None` when no supervisor runs.
    fn ask(&self, ask: &Ask) -> Result<Option<Reply>, ServiceError> {
        let may_ask_again = match ask {
            Ask::Activate(_) | Ask::Quiesce | Ask::Status => true,
            Ask::Reexec { .. } | Ask::Stop => false,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            return match control::ask(&self.root, ask) {
                Ok(reply) => Ok(Some(reply)),
                Err(NoReply::NoSupervisor) => Ok(None),
                // It was replaced by a newer program while we spoke.
                Err(NoReply::Ended) if may_ask_again && tries < TRIES_MAX => {
                    std::thread::sleep(TRY_AGAIN);
                    continue;
                }
                Err(NoReply::Ended) => Err(self.said("ended the connection without an answer")),
                Err(NoReply::Silent(reason)) => Err(self.said(reason)),
                Err(NoReply::Io(source)) => {
                    let path = control::socket_path(&self.root);
                    Err(ServiceError::Io { what: "reach the supervisor at", path, source })
                }
            };
        }
    }

    fn done(&self, ask: &Ask) -> Result<Option<String>, ServiceError> {
        match self.ask(ask)? {
            None => Ok(None),
            Some(Reply::Done { note }) => Ok(Some(note)),
            Some(other) => Err(self.refused(other)),
        }
    }

    fn refused(&self, reply: Reply) -> ServiceError {
        match reply {
            Reply::NotReady { release, reason, log } => {
                ServiceError::NotReady { release: release.to_string(), reason, log }
            }
            Reply::Superseded { by } => ServiceError::Superseded(by),
            Reply::Refused { reason } => self.said(format!("refused: {reason}")),
            Reply::Ending { .. } => self.said("is ending; try again when it is gone or runs again"),
            Reply::Accepted { .. } | Reply::Activated(_) | Reply::Status(_) | Reply::Done { .. } => {
                self.said("answered something else than was asked")
            }
        }
    }

    fn said(&self, reason: impl Into<String>) -> ServiceError {
        ServiceError::Supervisor { socket: control::socket_path(&self.root), reason: reason.into() }
    }
}

impl ServiceManager for SupervisorClient {
    fn quiesce(&self) -> Result<(), ServiceError> {
        if self.stop_first {
            self.done(&Ask::Quiesce).map(drop)
        } else {
            // It must answer now, before anything changes; that it cannot be reached later would come too late.
            let status = self.status()?;
            if status.supervisor.is_some_and(|supervisor| supervisor.ending) {
                return Err(self.refused(Reply::Ending { within_ms: 0 }));
            }
            *self.before.lock().unwrap_or_else(PoisonError::into_inner) = status.pid;
            Ok(())
        }
    }

    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        let mut target = target.clone();
        let before = *self.before.lock().unwrap_or_else(PoisonError::into_inner);
        if target.anew && before.is_some() && self.status()?.pid == before {
            target.anew = false;
        }
        let mut gone_by = None;
        loop {
            return match self.ask(&Ask::Activate(target.clone()))? {
                None => Ok(Activated { note: NO_SUPERVISOR.to_owned(), ..Activated::default() }),
                Some(Reply::Activated(activated)) => Ok(activated),
                // What is current now is not its business any more, and the next one will start it.
                Some(Reply::Ending { within_ms }) => {
                    let patience = Duration::from_millis(within_ms).saturating_add(END);
                    let gone_by = *gone_by.get_or_insert_with(|| Instant::now() + patience);
                    if Instant::now() >= gone_by {
                        return Err(self.said("was told to end and does not"));
                    }
                    std::thread::sleep(TRY_AGAIN);
                    continue;
                }
                Some(other) => Err(self.refused(other)),
            };
        }
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        match self.ask(&Ask::Status)? {
            None => Ok(ServiceStatus::bare(ServiceState::NoSupervisor, NO_SUPERVISOR)),
            Some(Reply::Status(status)) => Ok(status),
            Some(other) => Err(self.refused(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_supervisor_activation_succeeds_and_says_who_will_start_the_service() {
        let root = tempfile::tempdir().expect("a directory");
        let client = SupervisorClient::new(&ServiceSettings::default(), root.path());
        let target = Activation { release: None, tree: root.path().to_owned(), hints: None, anew: false };
        assert!(client.activate(&target).expect("success").note.contains("cutover run"));
        client.quiesce().expect("nothing to do");
        assert_eq!(client.status().expect("a status").state, ServiceState::NoSupervisor);
        assert!(client.reexec(Path::new("/bin/true")).is_err());
    }

    #[test]
    fn socket_that_nobody_listens_on_is_no_supervisor() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join(".cutover")).expect("made");
        drop(std::os::unix::net::UnixListener::bind(control::socket_path(root.path())).expect("bound"));
        let client = SupervisorClient::new(&ServiceSettings::default(), root.path());
        assert_eq!(client.status().expect("a status").state, ServiceState::NoSupervisor);
    }
}
