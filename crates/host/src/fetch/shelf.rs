//! A shelf between the download and the stage: one thread fetches onto it, others wait for the objects they need.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex},
};

use cutover_core::model::Digest;

use super::{Downloads, Fetched, Sink, Stop, Taken};

/// Which objects have arrived, for threads that stage them while others are under way.
#[derive(Debug, Default)]
pub struct Shelf {
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
}

#[derive(Debug, Default)]
struct State {
    there: BTreeSet<Digest>,
    end: Option<End>,
}

/// Why nothing more arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The download came to its end, whatever that was.
    Ended,
    /// Those who wait have given up before.
    Abandoned,
}

impl Shelf {
    /// An empty shelf.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until the object is there; `false` once nothing more arrives. Its content is read with
    /// [`Downloads::open_object`].
    pub fn wait(&self, digest: Digest) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        while !state.there.contains(&digest) && state.end.is_none() {
            state = self.changed.wait(state).expect("no holder panics");
        }
        state.there.contains(&digest)
    }

    /// Runs `fetch`, which hands over to this shelf what arrives; whoever waits is told when it ends, however it ends.
    pub fn while_filling<T>(&self, fetch: impl FnOnce(&mut dyn Sink) -> T) -> T {
        let _end = EndFilling(self);
        fetch(&mut &*self)
    }

    /// Says that nobody wants anything more: ends the download at once, and the wait of everybody. Returns why nothing more
    /// arrives, which is what happened first.
    pub fn abandon(&self) -> End {
        // In this order: the end that the stop brings about is not what happened first.
        let first = self.end(End::Abandoned);
        self.stop.stop();
        first
    }

    fn end(&self, why: End) -> End {
        let mut first = why;
        self.change(|state| first = *state.end.get_or_insert(why));
        first
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no holder panics"));
        self.changed.notify_all();
    }
}

impl Sink for &Shelf {
    fn take(
        &mut self,
        _: usize,
        fetched: &Fetched,
        _: &Downloads,
    ) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
        self.change(|state| {
            state.there.insert(fetched.digest);
        });
        Ok(Taken::Kept)
    }

    fn stop(&self) -> Stop {
        self.stop.clone()
    }
}

/// Ends the wait of everybody, also when the download panics.
struct EndFilling<'s>(&'s Shelf);

impl Drop for EndFilling<'_> {
    fn drop(&mut self) {
        self.0.end(End::Ended);
    }
}
