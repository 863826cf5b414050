//! Telling the observer what happens, without letting it into the execution: it runs on a thread of its own, so a slow one
//! (a blocked terminal) delays nothing and a panicking one harms nothing. Step events are never lost, progress may be.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use cutover_core::event::{Event, Observer};

/// From how many undelivered events on progress is dropped.
const BEHIND_MAX: usize = 64;
/// How long the end of an execution waits for an observer that is behind.
const DRAIN: Duration = Duration::from_secs(2);

/// The sending side of an execution's events.
pub(crate) struct Events {
    queue: Option<mpsc::Sender<Event>>,
    drained: Mutex<mpsc::Receiver<()>>,
    behind: Arc<AtomicUsize>,
    percent: AtomicU8,
}

impl Events {
    pub(crate) fn new(observer: Arc<dyn Observer>) -> Self {
        let (queue, events) = mpsc::channel::<Event>();
        let (done, drained) = mpsc::channel();
        let behind = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&behind);
        let deliver = move || {
            for event in events {
                waiting.fetch_sub(1, Ordering::Relaxed);
                if catch_unwind(AssertUnwindSafe(|| observer.observe(&event))).is_err() {
                    tracing::warn!("the observer panicked; it is told nothing more");
                    break;
                }
            }
            drop(done);
        };
        let started = std::thread::Builder::new().name("observer".to_owned()).spawn(deliver);
        if let Err(error) = &started {
            tracing::warn!(%error, "no thread for the observer; it is told nothing");
        }
        Self { queue: Some(queue), drained: Mutex::new(drained), behind, percent: AtomicU8::new(0) }
    }

    pub(crate) fn send(&self, event: Event) {
        if event.is_droppable() && self.behind.load(Ordering::Relaxed) >= BEHIND_MAX {
            return;
        }
        if let Some(queue) = &self.queue {
            self.behind.fetch_add(1, Ordering::Relaxed);
            // An observer that is gone is not the execution's concern.
            let _ = queue.send(event);
        }
    }

    /// Tells how far the whole is, if that is further than what was told before (E21).
    pub(crate) fn progress(&self, percent: u8) {
        let percent = percent.min(100);
        if self.percent.fetch_max(percent, Ordering::Relaxed) < percent {
            self.send(Event::Progress { percent });
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue = None;
        // Ends with an error when the observer has seen everything.
        let _ = self.drained.get_mut().map(|drained| drained.recv_timeout(DRAIN));
    }
}
