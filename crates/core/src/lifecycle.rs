//! The lifecycle of a node: what it is doing about updates, as a fold over a durable log.
//!
//! A pure state machine: [`Lifecycle::moved`] and its siblings check a change and return the [`Entry`] to append; only
//! after the entry is durable does [`Lifecycle::apply`] take it in. `host` owns the file and tells the observers. The
//! journal says how one execution stands; this log says what the node as a whole is up to, across executions.

use serde::{Deserialize, Serialize};

use crate::{
    execute::{RecordError, checked_json, checked_line},
    model::{Instant, Version},
};

/// What a node is doing about updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing.
    #[default]
    Idle,
    /// Getting a release.
    Downloading,
    /// Checking signature, plan and host.
    Verifying,
    /// From stage to confirm.
    Applying,
    /// On the way back.
    RollingBack,
    /// The way back failed; only a reset leads out.
    Failed,
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Downloading, Self::Verifying, Self::Applying, Self::RollingBack, Self::Failed];

    /// The name on disk and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Applying => "applying",
            Self::RollingBack => "rolling_back",
            Self::Failed => "failed",
        }
    }

    /// Whether `self` may be followed by `next` without a reset.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Idle => next == Self::Downloading,
            Self::Downloading => matches!(next, Self::Verifying | Self::RollingBack | Self::Failed),
            Self::Verifying => matches!(next, Self::Applying | Self::RollingBack | Self::Failed),
            Self::Applying => matches!(next, Self::Idle | Self::RollingBack | Self::Failed),
            Self::RollingBack => matches!(next, Self::Idle | Self::Failed),
            Self::Failed => false,
        }
    }
}

/// A remembered state to which the lifecycle can return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Counts from 1 and is never reused.
    pub id: u64,
    /// The state then.
    pub state: State,
    /// The version in hand then.
    pub version: Option<Version>,
}

/// One durable line of the state log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// From one state to the next.
    Moved {
        /// Before.
        from: State,
        /// After.
        to: State,
        /// The version in hand from here on; none at `idle`.
        version: Option<Version>,
    },
    /// From `failed` to `idle` by decision of an operator.
    Reset,
    /// A checkpoint was made.
    Checkpoint(Checkpoint),
    /// The lifecycle went back to a checkpoint; later ones are gone.
    Returned {
        /// To which.
        to: Checkpoint,
        /// Whether it was there already, because the last change was the same return.
        idempotent: bool,
    },
}

/// Why a change is refused; the state stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifecycleError {
    /// Not a permitted transition.
    #[error("{} cannot become {}{}", .from.name(), .to.name(), if *.from == State::Failed { "; `cutover recover` resets it" } else { "" })]
    Transition {
        /// The state.
        from: State,
        /// What was asked for.
        to: State,
    },
    /// Only `failed` can be reset.
    #[error("nothing to reset: the state is {}", .0.name())]
    NothingToReset(State),
    /// No such checkpoint, or it was pruned.
    #[error("there is no checkpoint {0}")]
    UnknownCheckpoint(u64),
    /// A log entry that does not follow from those before it.
    #[error("state log entry {0} does not follow from those before it")]
    Order(usize),
}

/// What a node is doing, as its log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    state: State,
    version: Option<Version>,
    checkpoints: Vec<Checkpoint>,
    checkpoints_made: u64,
    returns: u32,
    last_returned_to: Option<u64>,
}

impl Lifecycle {
    /// Replays a log; an empty one means `idle`.
    ///
    /// # Errors
    /// [`LifecycleError::Order`] for the first entry that cannot have been written here.
    pub fn fold(entries: impl IntoIterator<Item = Entry>) -> Result<Self, LifecycleError> {
        let mut lifecycle = Self::default();
        for (index, entry) in entries.into_iter().enumerate() {
            if !lifecycle.follows(&entry) {
                return Err(LifecycleError::Order(index));
            }
            lifecycle.apply(&entry);
        }
        Ok(lifecycle)
    }

    fn follows(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Moved { from, to, .. } => *from == self.state && from.may_become(*to),
            Entry::Reset => self.state == State::Failed,
            Entry::Checkpoint(checkpoint) => checkpoint.id == self.checkpoints_made + 1,
            Entry::Returned { to, .. } => self.checkpoints.contains(to),
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The version in hand: that of the update in flight.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Whether an update was under way when the log ended.
    pub fn is_in_flight(&self) -> bool {
        !matches!(self.state, State::Idle | State::Failed)
    }

    /// The checkpoints, oldest first.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// How often the lifecycle went back to a checkpoint.
    pub fn returns(&self) -> u32 {
        self.returns
    }

    /// The entry for moving to `to` with `version` in hand.
    ///
    /// # Errors
    /// [`LifecycleError::Transition`].
    pub fn moved(&self, to: State, version: Option<&Version>) -> Result<Entry, LifecycleError> {
        if !self.state.may_become(to) {
            return Err(LifecycleError::Transition { from: self.state, to });
        }
        let version = if to == State::Idle { None } else { version.or(self.version.as_ref()).cloned() };
        Ok(Entry::Moved { from: self.state, to, version })
    }

    /// The entry for leaving `failed`.
    ///
    /// # Errors
    /// [`LifecycleError::NothingToReset`].
    pub fn reset(&self) -> Result<Entry, LifecycleError> {
        if self.state == State::Failed {
            Ok(Entry::Reset)
        } else {
            Err(LifecycleError::NothingToReset(self.state))
        }
    }

    /// The entry for remembering the present state.
    pub fn checkpoint(&self) -> Entry {
        Entry::Checkpoint(Checkpoint {
            id: self.checkpoints_made + 1,
            state: self.state,
            version: self.version.clone(),
        })
    }

    /// The entry for going back to checkpoint `id`.
    ///
    /// # Errors
    /// [`LifecycleError::UnknownCheckpoint`].
    pub fn returned(&self, id: u64) -> Result<Entry, LifecycleError> {
        let to = self.checkpoints.iter().find(|checkpoint| checkpoint.id == id);
        let to = to.ok_or(LifecycleError::UnknownCheckpoint(id))?.clone();
        Ok(Entry::Returned { to, idempotent: self.last_returned_to == Some(id) })
    }

    /// Takes in an entry that was made for this very state and is durable now.
    pub fn apply(&mut self, entry: &Entry) {
        self.last_returned_to = None;
        match entry {
            Entry::Moved { to, version, .. } => (self.state, self.version) = (*to, version.clone()),
            Entry::Reset => (self.state, self.version) = (State::Idle, None),
            Entry::Checkpoint(checkpoint) => {
                self.checkpoints_made = checkpoint.id;
                self.checkpoints.push(checkpoint.clone());
            }
            Entry::Returned { to, .. } => {
                (self.state, self.version) = (to.state, to.version.clone());
                self.checkpoints.retain(|checkpoint| checkpoint.id <= to.id);
                self.returns += 1;
                self.last_returned_to = Some(to.id);
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<T> {
    at: Instant,
    state: T,
}

impl Entry {
    /// The log line, ending in a newline; same form as a journal line.
    pub fn to_line(&self, at: Instant) -> Vec<u8> {
        checked_line(&Line { at, state: self })
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_line(line: &[u8]) -> Result<(Instant, Self), RecordError> {
        let json = checked_json(line).ok_or(RecordError::Checksum)?;
        let line: Line<Self> =
            serde_json::from_slice(json).map_err(|error| RecordError::Syntax(error.to_string()))?;
        Ok((line.at, line.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lifecycle with its log, as `host` keeps it.
    #[derive(Default)]
    struct Logged {
        lifecycle: Lifecycle,
        log: Vec<Entry>,
    }

    impl Logged {
        fn take(&mut self, entry: Entry) {
            self.lifecycle.apply(&entry);
            self.log.push(entry);
            let lines = self.log.iter().map(|entry| {
                let line = entry.to_line(Instant::from_unix(0).expect("the epoch"));
                Entry::from_line(line.trim_ascii_end()).expect("own line").1
            });
            assert_eq!(Lifecycle::fold(lines).as_ref(), Ok(&self.lifecycle), "the log tells the same");
        }

        fn go(&mut self, to: State) -> Result<(), LifecycleError> {
            let version = Version::new(1, 2, 3);
            self.lifecycle.moved(to, Some(&version)).map(|entry| self.take(entry))
        }

        fn back(&mut self, id: u64) -> Result<bool, LifecycleError> {
            let entry = self.lifecycle.returned(id)?;
            let idempotent = matches!(entry, Entry::Returned { idempotent: true, .. });
            self.take(entry);
            Ok(idempotent)
        }
    }

    fn at(path: &[State]) -> Logged {
        let mut logged = Logged::default();
        path.iter().for_each(|state| logged.go(*state).expect("a permitted path"));
        logged
    }

    use State::{Applying, Downloading, Failed, Idle, RollingBack, Verifying};

    // S1, S13
    #[test]
    fn empty_log_means_idle_and_there_are_six_states() {
        assert_eq!(Lifecycle::fold([]).expect("empty").state(), Idle);
        assert_eq!(
            State::ALL.map(State::name),
            ["idle", "downloading", "verifying", "applying", "rolling_back", "failed"]
        );
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.name());
        }
    }

    // S2, S9
    #[test]
    fn full_good_path_is_accepted_and_clears_the_version_at_idle() {
        let mut logged = at(&[Downloading, Verifying, Applying]);
        assert_eq!(logged.lifecycle.version(), Some(&Version::new(1, 2, 3)));
        logged.go(Idle).expect("done");
        assert_eq!((logged.lifecycle.version(), logged.log.len()), (None, 4));
    }

    // S3
    #[test]
    fn applying_may_roll_back_to_idle() {
        at(&[Downloading, Verifying, Applying, RollingBack, Idle]);
    }

    // S4
    #[test]
    fn skipping_a_state_is_refused_and_changes_nothing() {
        for (path, to) in
            [(&[][..], Verifying), (&[], Applying), (&[Downloading], Applying), (&[Downloading], Idle)]
        {
            let mut logged = at(path);
            let before = logged.lifecycle.clone();
            assert!(matches!(logged.go(to), Err(LifecycleError::Transition { .. })));
            assert_eq!(logged.lifecycle, before);
        }
    }

    // S5, S6
    #[test]
    fn failed_is_left_only_by_reset() {
        let mut logged = at(&[Downloading, Failed]);
        for to in State::ALL {
            assert!(logged.go(to).is_err(), "{}", to.name());
        }
        let entry = logged.lifecycle.reset().expect("failed can be reset");
        logged.take(entry);
        assert_eq!((logged.lifecycle.state(), logged.lifecycle.version()), (Idle, None));
        assert_eq!(logged.lifecycle.reset(), Err(LifecycleError::NothingToReset(Idle)));
    }

    // S10, S11
    #[test]
    fn log_that_ends_while_applying_shows_the_update_in_flight() {
        let logged = at(&[Downloading, Verifying, Applying]);
        let reopened = Lifecycle::fold(logged.log).expect("own log");
        assert!(reopened.is_in_flight() && reopened.version() == Some(&Version::new(1, 2, 3)));
        let clean = Lifecycle::fold(at(&[Downloading, Verifying, Applying, Idle]).log).expect("own log");
        assert!(!clean.is_in_flight());
    }

    // S14, S15
    #[test]
    fn going_back_to_a_checkpoint_restores_its_state_and_prunes_later_ones() {
        let mut logged = Logged::default();
        for state in [Downloading, Verifying, Applying] {
            logged.go(state).expect("permitted");
            let entry = logged.lifecycle.checkpoint();
            logged.take(entry);
        }
        let seen: Vec<_> = logged.lifecycle.checkpoints().iter().map(|c| (c.id, c.state)).collect();
        assert_eq!(seen, [(1, Downloading), (2, Verifying), (3, Applying)]);
        assert!(logged.lifecycle.checkpoints().iter().all(|c| c.version == Some(Version::new(1, 2, 3))));

        assert_eq!(logged.back(1), Ok(false));
        assert_eq!(logged.lifecycle.state(), Downloading);
        assert_eq!(logged.lifecycle.checkpoints().len(), 1);
        assert!(matches!(logged.log.last(), Some(Entry::Returned { .. })));
        let entry = logged.lifecycle.checkpoint();
        logged.take(entry);
        assert_eq!(logged.lifecycle.checkpoints()[1].id, 4, "ids are never reused");
    }

    // S16, S17
    #[test]
    fn unknown_checkpoint_changes_nothing_and_a_second_return_is_flagged() {
        let mut logged = at(&[Downloading]);
        let entry = logged.lifecycle.checkpoint();
        logged.take(entry);
        let before = logged.lifecycle.clone();
        assert_eq!(logged.back(7), Err(LifecycleError::UnknownCheckpoint(7)));
        assert_eq!(logged.lifecycle, before);
        assert_eq!((logged.back(1), logged.back(1)), (Ok(false), Ok(true)));
        logged.go(Verifying).expect("permitted");
        assert_eq!(logged.back(1), Ok(false));
    }

    #[test]
    fn log_with_an_impossible_entry_is_refused() {
        let log = [Entry::Moved { from: Idle, to: Applying, version: None }];
        assert_eq!(Lifecycle::fold(log), Err(LifecycleError::Order(0)));
    }
}
