//! The host's own update, run as a process.

use std::{
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the update and says how it ended, in one line. `cutover` as the program is this very executable.
pub(super) fn run(command: &[String], timeout: Duration) -> String {
    match try_run(command, timeout) {
        Ok(Some(status)) if status.success() => "the update ended".to_owned(),
        Ok(Some(status)) => format!("the update failed: {status}"),
        Ok(None) => format!("the update was stopped after {} s", timeout.as_secs()),
        Err(error) => format!("the update cannot be run: {error}"),
    }
}

fn try_run(command: &[String], timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let [program, arguments @ ..] = command else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "there is no command"));
    };
    let program = if program == "cutover" { "/proc/self/exe" } else { program };
    // What we print on stdout is ours alone.
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_ends_fails_or_is_stopped() {
        let run = |arguments: &[&str], timeout| {
            let command: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
            super::run(&command, timeout)
        };
        let long = Duration::from_secs(60);
        assert_eq!(run(&["true"], long), "the update ended");
        assert!(run(&["sh", "-c", "exit 3"], long).contains("exit status: 3"));
        assert!(run(&["sleep", "600"], Duration::ZERO).contains("was stopped"));
        assert!(run(&["/does/not/exist"], long).contains("cannot be run"));
        assert!(run(&[], long).contains("there is no command"));
    }
}
