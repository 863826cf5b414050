//! `mode = "systemd"`: systemd runs the service, and we ask it through `systemctl`.
//!
//! Only verbs and properties that systemctl documents as stable are used (systemctl(1), org.freedesktop.systemd1(5)).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Activated, Activation, CommandError, Finished, ServiceError, ServiceManager, ServiceSettings,
    ServiceState, ServiceStatus,
    command::{Bounded, Leftovers},
    millis,
};

/// How often a unit that is not active yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Asks systemd.
pub(super) struct Systemd {
    settings: ServiceSettings,
}

impl Systemd {
    pub(super) fn new(settings: &ServiceSettings) -> Self {
        Self { settings: settings.clone() }
    }

    fn unit(&self) -> Result<&str, ServiceError> {
        match self.settings.unit.as_deref() {
            Some(unit) if !unit.is_empty() && !unit.starts_with('-') => Ok(unit),
            Some(_) | None => Err(ServiceError::Settings(
                "mode `systemd` needs `unit`, the name of the unit, such as db.service".to_owned(),
            )),
        }
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<Finished, ServiceError> {
        let mut argv = self.settings.systemctl.clone();
        if argv.is_empty() {
            return Err(CommandError::Empty("systemctl").into());
        }
        argv.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let command = Bounded {
            argv: &argv,
            env: Vec::new(),
            directory: None,
            timeout: self.settings.command_timeout(),
            leftovers: Leftovers::Keep,
        };
        command.succeed().map_err(Into::into)
    }

    /// The unit's properties that we read.
    fn show(&self) -> Result<BTreeMap<String, String>, ServiceError> {
        let properties = "--property=LoadState,ActiveState,SubState,MainPID,NRestarts";
        let shown = self.systemctl(&["show", properties, "--", self.unit()?])?;
        Ok(shown
            .output
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    fn state(properties: &BTreeMap<String, String>) -> ServiceState {
        match properties.get("ActiveState").map_or("", String::as_str) {
            "active" | "reloading" | "refreshing" => ServiceState::Ready,
            "activating" if properties.get("SubState").is_some_and(|sub| sub == "auto-restart") => {
                ServiceState::BackOff
            }
            "activating" => ServiceState::Starting,
            "deactivating" | "inactive" => ServiceState::Stopped,
            "failed" => ServiceState::Failed,
            _ => ServiceState::Unknown,
        }
    }

    /// Asks until the unit is active; `systemctl restart` waits itself where the unit's type lets it. A unit that systemd is about to
    /// start again has failed already, and the sooner that is known, the sooner the release before serves again.
    fn wait_active(&self, target: &Activation) -> Result<ServiceStatus, ServiceError> {
        let deadline = Instant::now() + self.settings.ready_timeout(target.hints.as_ref());
        loop {
            let status = self.status()?;
            match status.state {
                ServiceState::Ready => return Ok(status),
                ServiceState::Starting if Instant::now() < deadline => std::thread::sleep(ASK_AGAIN),
                _ => {
                    return Err(ServiceError::NotReady {
                        release: target.release.as_ref().map(ToString::to_string).unwrap_or_default(),
                        reason: format!("unit {} is {}", self.unit()?, status.note),
                        log: None,
                    });
                }
            }
        }
    }
}

impl ServiceManager for Systemd {
    fn quiesce(&self) -> Result<(), ServiceError> {
        let unit = self.unit()?;
        if self.show()?.get("LoadState").is_some_and(|state| state != "loaded") {
            return Err(ServiceError::Settings(format!("systemd does not know the unit `{unit}`")));
        }
        if self.settings.stop_first {
            self.systemctl(&["stop", "--", unit])?;
        }
        Ok(())
    }

    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        let unit = self.unit()?;
        let started = Instant::now();
        if target.release.is_none() {
            self.systemctl(&["stop", "--", unit])?;
            return Ok(Activated { note: format!("stopped {unit}"), ..Activated::default() });
        }
        // A release that crashed again and again has used up the starts that systemd allows (`StartLimitBurst`), and the one before must
        // not be refused for it. Where there is nothing to reset, the verb fails, and that is as good.
        if let Err(error) = self.systemctl(&["reset-failed", "--", unit]) {
            tracing::debug!(unit, %error, "the unit's start limit is not reset");
        }
        self.systemctl(&["restart", "--", unit])?;
        let status = self.wait_active(target)?;
        Ok(Activated {
            ready_ms: millis(started.elapsed()),
            pid: status.pid,
            old_pid: None,
            note: format!("restarted {unit}"),
        })
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        let properties = self.show()?;
        let number = |key: &str| properties.get(key).and_then(|value| value.parse::<u32>().ok());
        let word = |key: &str| properties.get(key).map_or("?", String::as_str);
        Ok(ServiceStatus {
            pid: number("MainPID").filter(|&pid| pid != 0),
            restarts: number("NRestarts").unwrap_or(0),
            ..ServiceStatus::bare(
                Self::state(&properties),
                format!("{} ({})", word("ActiveState"), word("SubState")),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A systemctl whose unit is a file.
    const FAKE: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
for unit; do :; done
case "$1" in
  show)
    if [ "$unit" = gone.service ]; then echo LoadState=not-found; else echo LoadState=loaded; fi
    if [ -e flaps ]; then printf 'ActiveState=activating\nSubState=auto-restart\nMainPID=0\n';
    elif [ -e refuses ]; then printf 'ActiveState=failed\nSubState=failed\n';
    elif [ -e active ]; then printf 'ActiveState=active\nSubState=running\nMainPID=4711\nNRestarts=2\n';
    elif [ -e slow ]; then mv slow active; printf 'ActiveState=activating\nSubState=start\nMainPID=0\n';
    else printf 'ActiveState=inactive\nSubState=dead\nMainPID=0\n'; fi ;;
  restart)
    if [ -e broken ]; then echo "Job failed" >&2; exit 1; fi
    echo start >> starts
    if [ "$(grep -c start starts)" -gt 2 ]; then echo "Start request repeated too quickly" >&2; exit 1; fi
    touch slow ;;
  reset-failed) if [ ! -e starts ]; then exit 1; fi; rm starts ;;
  stop) rm -f active slow ;;
  *) exit 64 ;;
esac
"#;

    fn fake(edit: impl FnOnce(&mut ServiceSettings)) -> (tempfile::TempDir, Systemd) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("systemctl");
        std::fs::write(&path, FAKE).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let mut settings = ServiceSettings {
            // Through sh, because another thread may be forking while the script is open for writing.
            systemctl: vec!["sh".to_owned(), path.display().to_string()],
            unit: Some("db.service".to_owned()),
            ..ServiceSettings::default()
        };
        edit(&mut settings);
        (directory, Systemd::new(&settings))
    }

    fn release() -> Activation {
        Activation {
            release: Some(cutover_core::model::ReleaseRef {
                package: "db".parse().expect("a name"),
                version: "1.0.0".parse().expect("a version"),
                manifest: cutover_core::model::Digest::of(b""),
            }),
            tree: "/".into(),
            hints: None,
            anew: false,
        }
    }

    #[test]
    fn unit_is_restarted_and_waited_for() {
        let (_directory, systemd) = fake(|_| {});
        assert_eq!(systemd.status().expect("a status").state, ServiceState::Stopped);
        for _ in 0..2 {
            assert_eq!(systemd.activate(&release()).expect("active").pid, Some(4711));
        }
        let status = systemd.status().expect("a status");
        assert_eq!((status.state, status.restarts), (ServiceState::Ready, 2));
        systemd.activate(&Activation { release: None, ..release() }).expect("stopped");
        assert_eq!(systemd.status().expect("a status").state, ServiceState::Stopped);
    }

    #[test]
    fn starts_that_another_release_used_up_keep_no_release_from_being_started() {
        let (directory, systemd) = fake(|_| {});
        std::fs::write(directory.path().join("starts"), "start\n".repeat(5)).expect("written");
        systemd.activate(&release()).expect("active");
    }

    #[test]
    fn unit_that_systemd_will_start_again_has_failed_and_is_not_waited_for() {
        let (directory, systemd) = fake(|settings| settings.ready_timeout_s = Some(3600));
        std::fs::write(directory.path().join("flaps"), "").expect("written");
        let error = systemd.activate(&release()).expect_err("it crashed");
        assert!(
            matches!(&error, ServiceError::NotReady { reason, .. } if reason.contains("auto-restart")),
            "{error}"
        );
        let calls = std::fs::read_to_string(directory.path().join("calls")).expect("calls");
        assert_eq!(calls.matches("show").count(), 1, "{calls}");
    }

    #[test]
    fn stop_first_stops_the_unit_before_the_switch() {
        let (directory, systemd) = fake(|settings| settings.stop_first = true);
        systemd.quiesce().expect("stopped");
        let calls = std::fs::read_to_string(directory.path().join("calls")).expect("calls");
        assert!(calls.ends_with("stop -- db.service\n"), "{calls}");
    }

    #[test]
    fn failed_unit_failed_job_unknown_unit_and_missing_setting_are_errors() {
        let (directory, systemd) = fake(|_| {});
        std::fs::write(directory.path().join("refuses"), "").expect("written");
        let error = systemd.activate(&release()).expect_err("a failed unit");
        assert!(
            matches!(&error, ServiceError::NotReady { reason, .. } if reason.contains("failed")),
            "{error}"
        );
        std::fs::write(directory.path().join("broken"), "").expect("written");
        let error = systemd.activate(&release()).expect_err("a failed job").to_string();
        assert!(error.contains("Job failed") && error.contains("restart"), "{error}");
        let (_directory, systemd) = fake(|settings| settings.unit = Some("gone.service".to_owned()));
        assert!(systemd.quiesce().expect_err("unknown").to_string().contains("gone.service"));
        for unit in [None, Some(String::new()), Some("--force".to_owned())] {
            let (_directory, systemd) = fake(|settings| settings.unit = unit);
            assert!(matches!(systemd.status(), Err(ServiceError::Settings(_))));
        }
    }
}
