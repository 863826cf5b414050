//! A shelf between the download and the stage: one thread fetches onto it, others wait for the objects they need.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex},
};

use cutover_core::model::Digest;

use super::{Downloads, Fetched, Sink, Taken};

/// Which objects have arrived, for threads that stage them while others are under way.
#[derive(Debug, Default)]
pub struct Shelf {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    there: BTreeSet<Digest>,
    ended: bool,
}

impl Shelf {
    /// An empty shelf.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until the object is there; `false` once the download has ended without it. Its content is read with
    /// [`Downloads::open_object`].
    pub fn wait(&self, digest: Digest) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        while !state.there.contains(&digest) && !state.ended {
            state = self.changed.wait(state).expect("no holder panics");
        }
        state.there.contains(&digest)
    }

    /// Runs `fetch`, which hands over to this shelf what arrives; whoever waits is told when it ends, however it ends.
    pub fn while_filling<T>(&self, fetch: impl FnOnce(&mut dyn Sink) -> T) -> T {
        let _end = End(self);
        fetch(&mut &*self)
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
}

/// Ends the wait of everybody, also when the download panics.
struct End<'s>(&'s Shelf);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.ended = true);
    }
}
