//! The smoke probe: the service is ready, and the same process is still ready a while later.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_core::causes::chain;

use super::{Finding, Probe, ProbeContext, ProbeSettings};
use crate::service::{ServiceManager, ServiceState, ServiceStatus};

/// How often the service is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Smoke {
    alive: Duration,
    timeout: Duration,
    service: Arc<dyn ServiceManager>,
}

impl Smoke {
    pub(super) fn new(settings: &ProbeSettings, service: Arc<dyn ServiceManager>) -> Self {
        let alive = Duration::from_millis(u64::from(settings.smoke.alive_ms));
        // The time it watches is not part of the time it may take to look.
        Self { alive, timeout: settings.timeout(None) + alive, service }
    }

    /// Looks once: a status worth watching, `None` when there is nothing to watch.
    fn look(&self, context: &ProbeContext) -> Result<Option<ServiceStatus>, String> {
        let status = self.service.status().map_err(|error| chain(&error))?;
        match status.state {
            ServiceState::Unmanaged | ServiceState::NoSupervisor | ServiceState::Unknown => Ok(None),
            ServiceState::Ready => match &status.release {
                Some(release) if *release != context.release => Err(format!("{release} runs instead")),
                Some(_) | None => Ok(Some(status)),
            },
            // A release may come without a service; then nothing is meant to run and nothing did crash.
            ServiceState::Stopped if status.release.as_ref() == Some(&context.release) => Ok(None),
            ServiceState::Stopped
            | ServiceState::Starting
            | ServiceState::BackOff
            | ServiceState::CrashLoop
            | ServiceState::Failed => {
                Err(format!("the service is not ready: {:?}, {}", status.state, status.note))
            }
        }
    }
}

impl Probe for Smoke {
    fn name(&self) -> &str {
        "smoke"
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn run(&self, context: &ProbeContext) -> Result<Finding, String> {
        let started = Instant::now();
        let Some(first) = self.look(context)? else {
            return Ok(Finding { detail: "no service to look at".to_owned(), latency: None });
        };
        while started.elapsed() < self.alive {
            std::thread::sleep(LOOK_EVERY.min(self.alive));
            let now = self.look(context)?;
            let same = |status: &ServiceStatus| (status.pid, status.restarts) == (first.pid, first.restarts);
            if !now.as_ref().is_some_and(same) {
                return Err(format!("the service did not stay up for {} ms", self.alive.as_millis()));
            }
        }
        Ok(Finding { detail: format!("up for {} ms", started.elapsed().as_millis()), latency: None })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::service::{Activated, Activation, ServiceError};

    /// A service whose statuses are listed; the last one stays.
    struct Listed(Mutex<Vec<ServiceStatus>>);

    impl ServiceManager for Listed {
        fn quiesce(&self) -> Result<(), ServiceError> {
            Ok(())
        }

        fn activate(&self, _: &Activation) -> Result<Activated, ServiceError> {
            Ok(Activated::default())
        }

        fn status(&self) -> Result<ServiceStatus, ServiceError> {
            let mut list = self.0.lock().expect("no panic holds it");
            Ok(if list.len() > 1 { list.remove(0) } else { list[0].clone() })
        }
    }

    fn smoke(statuses: Vec<ServiceStatus>) -> Result<Finding, String> {
        let settings = ProbeSettings {
            smoke: super::super::SmokeSettings { alive_ms: 120 },
            ..ProbeSettings::default()
        };
        let release: cutover_core::model::ReleaseRef = serde_json::from_value(serde_json::json!({
            "package": "db", "version": "1.0.0", "manifest": "0".repeat(64),
        }))
        .expect("a release");
        Smoke::new(&settings, Arc::new(Listed(Mutex::new(statuses)))).run(&ProbeContext {
            release,
            root: "/".into(),
            tree: "/".into(),
            baseline: None,
        })
    }

    fn ready(pid: u32, restarts: u32) -> ServiceStatus {
        ServiceStatus { pid: Some(pid), restarts, ..ServiceStatus::bare(ServiceState::Ready, "") }
    }

    #[test]
    fn service_that_stays_up_passes_and_none_at_all_passes() {
        smoke(vec![ready(7, 0)]).expect("it stays up");
        for state in [ServiceState::Unmanaged, ServiceState::NoSupervisor] {
            smoke(vec![ServiceStatus::bare(state, "")]).expect("nothing to look at");
        }
    }

    #[test]
    fn release_that_is_known_to_have_no_service_passes() {
        let release = cutover_core::model::ReleaseRef {
            package: "db".parse().expect("a name"),
            version: "1.0.0".parse().expect("a version"),
            manifest: "0".repeat(64).parse().expect("a digest"),
        };
        let bare = ServiceStatus::bare(ServiceState::Stopped, "");
        smoke(vec![ServiceStatus { release: Some(release), ..bare }]).expect("nothing is meant to run");
    }

    #[test]
    fn service_that_restarts_backs_off_or_never_was_ready_fails() {
        for statuses in [
            vec![ready(7, 0), ready(8, 1)],
            vec![ready(7, 0), ServiceStatus::bare(ServiceState::BackOff, "")],
            vec![ServiceStatus::bare(ServiceState::Stopped, "")],
            vec![ServiceStatus::bare(ServiceState::CrashLoop, "")],
        ] {
            smoke(statuses).expect_err("it is not up");
        }
    }
}
