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
    use std::{path::Path, sync::Arc, time::Instant};

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
        let directory = tempfile::tempdir().expect("a directory");
        let note = directory.path().join("pids");
        // It is given the time to note who it is, which no busy machine may make it miss.
        let script = format!("sleep 86400 & echo $$ $! > {}; echo waiting; wait", note.display());
        let report = probe(&script, Duration::from_secs(2));
        let summary = report.summary();
        assert!(summary.contains("did not finish") && summary.contains("waiting"), "{summary}");
        let pids = std::fs::read_to_string(&note).expect("noted");
        let (shell, started) = pids.trim().split_once(' ').expect("two of them");
        assert!(!Path::new("/proc").join(shell).exists(), "it was waited for");
        // Whoever inherits what it had started may be slow to bury it.
        let dead = |stat: std::io::Result<String>| {
            stat.map_or(true, |stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
            })
        };
        let until = Instant::now() + LONG;
        while !dead(std::fs::read_to_string(Path::new("/proc").join(started).join("stat"))) {
            assert!(Instant::now() < until, "what it had started lives");
            std::thread::sleep(Duration::from_millis(1));
        }
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
