//! Whether a refusal leads to an update of this host.

use std::time::Duration;

/// Lets an update through now and then: a hundred refusals in a minute are one reason, and an update that did not help is not
/// repeated at once.
#[derive(Clone, Copy, Debug)]
pub struct UpdateGate {
    every: Duration,
    started: Option<Duration>,
    running: bool,
}

impl UpdateGate {
    /// At most one in each `every`, and never two at a time.
    pub fn new(every: Duration) -> Self {
        Self { every, started: None, running: false }
    }

    /// An episode was refused at `now` (since any fixed time) because of its code: whether an update is to be started.
    pub fn refused(&mut self, now: Duration) -> bool {
        let soon = self.started.is_some_and(|started| now.saturating_sub(started) < self.every);
        if self.running || soon {
            return false;
        }
        (self.started, self.running) = (Some(now), true);
        true
    }

    /// Whether one is under way.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The update ended, in whatever way.
    pub fn ended(&mut self) {
        self.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_start_one_update_at_a_time_and_not_too_often() {
        let at = Duration::from_secs;
        let mut gate = UpdateGate::new(at(600));
        assert!(gate.refused(at(5)));
        assert!(!gate.refused(at(6)));
        assert!(!gate.refused(at(700)), "one is running");
        assert!(gate.is_running());
        gate.ended();
        assert!(!gate.is_running());
        assert!(gate.refused(at(701)));
        gate.ended();
        assert!(!gate.refused(at(800)));
    }
}
