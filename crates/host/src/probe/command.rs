//! The command probe: the operator's own program decides by its exit status.

use std::time::Duration;

use cutover_core::causes::chain;

use super::{CommandSettings, Finding, Probe, ProbeContext};
use crate::service::command::{Bounded, Leftovers, release_env};

pub(super) struct Command {
    name: String,
    settings: CommandSettings,
    timeout: Duration,
}

impl Command {
    pub(super) fn new(settings: CommandSettings, timeout: Duration) -> Self {
        let name = settings.name.clone().or_else(|| settings.argv.first().cloned()).unwrap_or_default();
        Self { name, settings, timeout }
    }
}

impl Probe for Command {
    fn name(&self) -> &str {
        &self.name
    }

    fn timeout(&self) -> Duration {
        // The process is killed at its timeout; this one is later, so that its output is reported.
        self.timeout + Duration::from_secs(1)
    }

    fn run(&self, context: &ProbeContext) -> Result<Finding, String> {
        let release = context.release.name();
        let finished = Bounded {
            argv: &self.settings.argv,
            env: release_env(Some(release.as_str()), &context.root, Some(context.tree.clone())),
            directory: Some(&context.tree),
            timeout: self.timeout,
            leftovers: Leftovers::Kill,
        }
        .succeed()
        .map_err(|error| chain(&error))?;
        Ok(Finding { detail: format!("exited with 0 in {} ms", finished.took.as_millis()), latency: None })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::{Prober, Probes, tests::context},
        *,
    };

    fn probe(script: &str, timeout: Duration) -> super::super::ProbeReport {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut probes = Probes::default();
        probes.register(Command::new(CommandSettings { name: None, argv, timeout_s: None }, timeout));
        probes.probe(&context())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn exit_status_decides_and_the_release_is_in_the_environment() {
        let good =
            "test $CUTOVER_RELEASE = 1.0.0-e3b0c442 && test $CUTOVER_ROOT = / && test $PWD = $CUTOVER_TREE";
        let report = probe(good, LONG);
        assert!(report.passed(), "{}", report.summary());
        let report = probe("echo the disk is on fire; exit 3", LONG);
        assert!(report.summary().contains("exited with 3: the disk is on fire"), "{}", report.summary());
    }

    // E13
    #[test]
    fn command_that_hangs_is_killed_and_has_failed() {
        let report = probe("echo waiting; sleep 600", Duration::from_millis(300));
        let summary = report.summary();
        assert!(summary.contains("did not finish") && summary.contains("waiting"), "{summary}");
    }

    #[test]
    fn empty_and_missing_commands_fail() {
        for argv in [Vec::new(), vec!["/nonexistent/program".to_owned()]] {
            let settings = CommandSettings { name: Some("check".to_owned()), argv, timeout_s: None };
            let probes = Probes { probes: vec![Arc::new(Command::new(settings, LONG))] };
            assert!(!probes.probe(&context()).passed());
        }
    }
}
