//! Ending a download from outside.

use std::sync::Arc;

use tokio::sync::watch;

/// Ends a download whose objects nobody wants any more. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    /// For a download that goes on until it is told otherwise.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Ends the download, at once and for good: what is under way stays among the downloads as far as it came.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Tells when it is ended.
    pub(super) fn told(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
