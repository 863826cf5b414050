//! What is under way in a root: the execution that has not ended, and the set that the root is part of.

use std::path::Path;

use cutover_core::{execute::Execution, set::SetId};
use serde::{Deserialize, Serialize};

use super::{current, error::NodeError, journal, place, restore, root::Node};

/// Says that a root is part of a set. Durable before the set's first execution in this root begins, gone after the last
/// has ended. Format: `docs/formats/set.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    /// Which set.
    pub(crate) set: SetId,
    /// The number of the set's first execution in this root.
    pub(crate) first: u64,
}

impl Node {
    /// The mark of the set that this root is part of.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, NodeError> {
        let path = Path::new(place::SET_MARK);
        let Some(bytes) = self.files.read(path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| current::damaged(path, error))
    }

    /// The newest execution that has not ended, with its journal. Outside of a set only the newest of all can be one,
    /// because none begins before the last has ended; within a set several may wait for it.
    pub(super) fn unfinished(&self) -> Result<Option<(u64, Execution, journal::Read)>, NodeError> {
        let first_of_set = self.mark()?.map(|mark| mark.first);
        for number in journal::numbers(&self.files)?.into_iter().rev() {
            match journal::end(&self.files, number)? {
                journal::End::Ended if first_of_set.is_some_and(|first| first < number) => continue,
                journal::End::Ended => return Ok(None),
                // Its process died before the first line was whole.
                journal::End::Empty => continue,
                journal::End::Open => {}
            }
            let Some(read) = journal::read(&self.files, number)? else { continue };
            let execution = Execution::fold(read.records.iter().cloned()).map_err(|source| {
                NodeError::Journal { path: place::journal(number).display().to_string(), source }
            })?;
            return Ok(execution.outcome().is_none().then_some((number, execution, read)));
        }
        Ok(None)
    }

    /// Whether nothing is under way here that something else would disturb.
    pub(super) fn must_be_idle(&self) -> Result<(), NodeError> {
        if let Some(mark) = self.mark()? {
            return Err(NodeError::InSet(mark.set));
        }
        match self.unfinished()? {
            Some((number, ..)) => Err(NodeError::Unfinished(number)),
            None => Ok(()),
        }
    }

    /// The number the next execution gets: above everything that has one.
    pub(super) fn next_number(&self) -> Result<u64, NodeError> {
        let journals = journal::numbers(&self.files)?.last().copied();
        let points = restore::ids(&self.files)?.last().map(|(number, _)| *number);
        let history = match self.catalog_if_any()? {
            Some(catalog) => catalog.history(64)?.iter().filter_map(|row| row.number).max(),
            None => None,
        };
        Ok(journals.max(points).max(history).unwrap_or(0) + 1)
    }
}
