//! Work on a thread of its own, with a deadline: whatever hangs or panics becomes an answer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

/// Work that was started. Dropping it leaves the thread to itself.
pub(crate) struct Started<T> {
    answer: Receiver<std::thread::Result<T>>,
    at: Instant,
    timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It took too long.
    #[error("timeout: no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// It panicked.
    #[error("it panicked: {0}")]
    Panicked(String),
    /// No thread could be started for it.
    #[error("no thread can be started for it: {0}")]
    NoThread(String),
}

/// Starts `work`; its time runs from now. Rust cannot end a thread, so work that hangs keeps its thread until the
/// process ends: work with a way to stop itself (a socket's or a process's timeout) uses that as well.
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Started<T>, NoAnswer> {
    let (sender, answer) = sync_channel(1);
    let at = Instant::now();
    std::thread::Builder::new()
        .name(name.chars().filter(|letter| *letter != '\0').collect())
        .spawn(move || {
            // The receiver may have stopped waiting: then nobody needs the answer.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        })
        .map_err(|error| NoAnswer::NoThread(error.to_string()))?;
    Ok(Started { answer, at, timeout })
}

impl<T> Started<T> {
    /// Waits for the answer until its time is over or `latest` has come. Also says how long it took.
    pub(crate) fn wait(self, latest: Option<Instant>) -> (Result<T, NoAnswer>, Duration) {
        let own = self.at + self.timeout;
        let deadline = latest.map_or(own, |latest| latest.min(own));
        let answer = match self.answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(panic)) => Err(NoAnswer::Panicked(panic_text(panic.as_ref()))),
            Err(RecvTimeoutError::Timeout) => {
                Err(NoAnswer::Timeout(deadline.saturating_duration_since(self.at)))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(NoAnswer::Panicked("it ended without an answer".to_owned()))
            }
        };
        (answer, self.at.elapsed())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
