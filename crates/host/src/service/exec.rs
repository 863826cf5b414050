//! `mode = "exec"`: the operator's own commands start, stop and ask the service.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Activated, Activation, CommandError, Finished, ServiceError, ServiceManager, ServiceSettings,
    ServiceState, ServiceStatus,
    command::{Bounded, Leftovers, release_env},
    millis,
};

/// How often a service that is not ready yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Says what is installed now.
type Installed = dyn Fn() -> Option<Activation> + Send + Sync;

/// Runs the commands of the settings.
pub(super) struct Commands {
    settings: ServiceSettings,
    root: PathBuf,
    current: Box<Installed>,
}

impl Commands {
    pub(super) fn new(settings: &ServiceSettings, root: &Path, current: Box<Installed>) -> Self {
        Self { settings: settings.clone(), root: root.to_owned(), current }
    }

    fn run(&self, argv: &[String], target: Option<&Activation>) -> Result<Finished, CommandError> {
        let release = target.and_then(|target| target.release.as_ref());
        Bounded {
            argv,
            env: release_env(
                release.map(|release| release.name().to_string()).as_deref(),
                &self.root,
                target.map(|target| target.tree.clone()),
            ),
            directory: None,
            timeout: self.settings.command_timeout(),
            // What `start` leaves behind is the service.
            leftovers: Leftovers::Keep,
        }
        .succeed()
    }

    /// The commands there is no doing without are set. Asked before anything changes: an update that finds out after the
    /// switch can go neither on nor back.
    fn must_be_complete(&self) -> Result<(), ServiceError> {
        needed(&self.settings.start, "start")?;
        needed(&self.settings.stop, "stop").map(drop)
    }

    fn stop(&self, target: Option<&Activation>) -> Result<(), ServiceError> {
        Ok(self.run(needed(&self.settings.stop, "stop")?, target).map(drop)?)
    }

    /// Asks until the service says that it is ready.
    fn wait_ready(&self, target: &Activation) -> Result<(), ServiceError> {
        if self.settings.status.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + self.settings.ready_timeout(target.hints.as_ref());
        loop {
            match self.run(&self.settings.status, Some(target)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(ServiceError::NotReady {
                        release: target.release.as_ref().map(ToString::to_string).unwrap_or_default(),
                        reason: error.to_string(),
                        log: None,
                    });
                }
                Err(_) => std::thread::sleep(ASK_AGAIN),
            }
        }
    }
}

/// The command of setting `name`, which must be set.
fn needed<'s>(command: &'s [String], name: &str) -> Result<&'s [String], ServiceError> {
    if command.is_empty() {
        return Err(ServiceError::Settings(format!(
            "mode `exec` needs `{name}`, the command that {name}s the service"
        )));
    }
    Ok(command)
}

impl ServiceManager for Commands {
    fn quiesce(&self) -> Result<(), ServiceError> {
        self.must_be_complete()?;
        if self.settings.stop_first { self.stop((self.current)().as_ref()) } else { Ok(()) }
    }

    fn activate(&self, target: &Activation) -> Result<Activated, ServiceError> {
        let started = Instant::now();
        if target.release.is_none() {
            self.stop(Some(target))?;
            return Ok(Activated { note: "stopped".to_owned(), ..Activated::default() });
        }
        let settings = &self.settings;
        let can_reload = !settings.stop_first
            && !settings.reload.is_empty()
            && !settings.status.is_empty()
            && self.run(&settings.status, Some(target)).is_ok();
        let note = if can_reload {
            self.run(&settings.reload, Some(target))?;
            "reloaded"
        } else {
            let start = needed(&settings.start, "start")?;
            self.stop(Some(target))?;
            self.run(start, Some(target))?;
            "restarted"
        };
        self.wait_ready(target)?;
        Ok(Activated { ready_ms: millis(started.elapsed()), note: note.to_owned(), ..Activated::default() })
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        self.must_be_complete()?;
        if self.settings.status.is_empty() {
            return Ok(ServiceStatus::bare(ServiceState::Unknown, "no `status` command is set"));
        }
        match self.run(&self.settings.status, (self.current)().as_ref()) {
            Ok(_) => Ok(ServiceStatus::bare(ServiceState::Ready, "the status command succeeded")),
            Err(error @ CommandError::Failed { .. }) => {
                Ok(ServiceStatus::bare(ServiceState::Stopped, error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that is a file: `start` writes the release into it, `status` looks for it, `stop` removes it.
    fn file_service(edit: impl FnOnce(&mut ServiceSettings)) -> (tempfile::TempDir, Commands) {
        let root = tempfile::tempdir().expect("a directory");
        let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut settings = ServiceSettings {
            start: shell("echo start >> $CUTOVER_ROOT/log; echo $CUTOVER_RELEASE > $CUTOVER_ROOT/state"),
            stop: shell("echo stop >> $CUTOVER_ROOT/log; rm -f $CUTOVER_ROOT/state"),
            status: shell("test -f $CUTOVER_ROOT/state"),
            ready_timeout_s: Some(30),
            ..ServiceSettings::default()
        };
        edit(&mut settings);
        let tree = root.path().to_owned();
        let current = move || Some(Activation { tree: tree.clone(), ..release("1.0.0") });
        let commands = Commands::new(&settings, root.path(), Box::new(current));
        (root, commands)
    }

    fn release(version: &str) -> Activation {
        Activation {
            release: Some(cutover_core::model::ReleaseRef {
                package: "db".parse().expect("a name"),
                version: version.parse().expect("a version"),
                manifest: cutover_core::model::Digest::of(version.as_bytes()),
            }),
            tree: "/".into(),
            hints: None,
            anew: false,
        }
    }

    fn read(root: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(root.path().join(name)).unwrap_or_default()
    }

    #[test]
    fn activation_restarts_with_the_release_in_the_environment_and_is_idempotent() {
        let (root, commands) = file_service(|_| {});
        for _ in 0..2 {
            commands.activate(&release("1.0.0")).expect("started");
            assert!(read(&root, "state").starts_with("1.0.0-"));
            assert_eq!(commands.status().expect("a status").state, ServiceState::Ready);
        }
        commands.activate(&Activation { release: None, ..release("1.0.0") }).expect("stopped");
        assert_eq!(commands.status().expect("a status").state, ServiceState::Stopped);
    }

    #[test]
    fn reload_is_used_only_while_the_service_runs() {
        let (root, commands) = file_service(|settings| {
            settings.reload = ["sh", "-c", "echo reload >> $CUTOVER_ROOT/log"].map(str::to_owned).to_vec();
        });
        commands.activate(&release("1.0.0")).expect("started");
        commands.activate(&release("1.1.0")).expect("reloaded");
        assert_eq!(read(&root, "log"), "stop\nstart\nreload\n");
    }

    #[test]
    fn stop_first_stops_before_the_switch() {
        let (root, commands) = file_service(|settings| settings.stop_first = true);
        commands.activate(&release("1.0.0")).expect("started");
        commands.quiesce().expect("stopped");
        assert_eq!(commands.status().expect("a status").state, ServiceState::Stopped);
        assert!(read(&root, "log").ends_with("stop\n"));
    }

    #[test]
    fn every_command_is_told_the_release_and_its_tree() {
        let (root, commands) = file_service(|settings| {
            let told = r#"test -n "$CUTOVER_RELEASE" && test -d "$CUTOVER_TREE" || exit 1; "#;
            for command in [&mut settings.start, &mut settings.stop, &mut settings.status] {
                command[2] = format!("{told}{}", command[2]);
            }
            settings.stop_first = true;
        });
        commands.activate(&release("1.0.0")).expect("started");
        assert_eq!(commands.status().expect("a status").state, ServiceState::Ready);
        commands.quiesce().expect("stopped");
        assert_eq!(read(&root, "state"), "");
    }

    #[test]
    fn failing_start_and_service_that_never_gets_ready_are_errors() {
        let (_root, commands) = file_service(|settings| settings.start = vec!["false".to_owned()]);
        assert!(matches!(commands.activate(&release("1.0.0")), Err(ServiceError::Command(_))));
        let (_root, commands) = file_service(|settings| {
            settings.status = vec!["false".to_owned()];
            settings.ready_timeout_s = Some(0);
        });
        assert!(matches!(commands.activate(&release("1.0.0")), Err(ServiceError::NotReady { .. })));
    }

    #[test]
    fn missing_command_is_found_before_anything_changes() {
        for name in ["start", "stop"] {
            let (_root, commands) = file_service(|settings| match name {
                "start" => settings.start.clear(),
                _ => settings.stop.clear(),
            });
            let errors = [commands.quiesce().expect_err("refused"), commands.status().expect_err("refused")];
            for error in errors {
                assert!(matches!(&error, ServiceError::Settings(what) if what.contains(name)), "{error}");
            }
        }
    }
}
