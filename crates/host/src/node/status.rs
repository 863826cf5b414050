//! What a root tells about itself, and the history it keeps. Nothing here looks at the files of a release.

use cutover_core::{
    execute::{Direction, StepState},
    lifecycle::{Entry, Lifecycle},
    model::{Instant, ReleaseRef},
    plan::Installed,
};

use super::{
    current,
    error::NodeError,
    report::{InFlight, PointListed, Status},
    restore,
    root::{Node, NodeLock},
    state_log,
};
use crate::catalog::HistoryRow;

impl Node {
    /// What the root holds.
    ///
    /// # Errors
    /// Damaged state.
    pub fn status(&self) -> Result<Status, NodeError> {
        let layout = current::layout(&self.files)?;
        let installed = self.installed(layout.unwrap_or_default())?;
        let (release, manifest) = match installed {
            Some(Installed { release, manifest }) => (Some(release), Some(manifest)),
            None => (None, None),
        };
        let highest = match (self.catalog_if_any()?, &release) {
            (Some(catalog), Some(release)) => catalog.highest(&release.package)?,
            _ => None,
        };
        let in_flight = self.unfinished()?.map(|(number, execution, _)| {
            let begun = execution.steps().iter().rposition(|state| *state != StepState::Waiting);
            InFlight {
                number,
                step: begun.map(|index| execution.plan().steps[index].name()),
                back: match execution.direction() {
                    Direction::Forward => None,
                    Direction::Back { reason } => Some(reason.clone()),
                },
                tree_in_between: execution.is_amid_switch(),
                plan: execution.plan().clone(),
            }
        });
        let restore_points = restore::ids(&self.files)?.len();
        let set = self.mark()?.map(|mark| mark.set);
        Ok(Status { layout, installed: release, manifest, highest, in_flight, restore_points, set })
    }

    /// The restore points, newest first.
    ///
    /// # Errors
    /// They cannot be listed; a damaged one is an entry.
    pub fn restore_points(&self) -> Result<Vec<PointListed>, NodeError> {
        let (points, damaged) = self.points(self.layout()?)?;
        let good = points.into_iter().map(|seen| PointListed { id: seen.point.id.clone(), point: Ok(seen) });
        let bad = damaged.into_iter().map(|(id, error)| PointListed { id, point: Err(error) });
        let mut listed: Vec<PointListed> = good.chain(bad).collect();
        listed.sort_by_key(|listed| std::cmp::Reverse(restore::number_of(&listed.id)));
        Ok(listed)
    }

    /// The releases this root knows, newest version first.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn releases(&self) -> Result<Vec<ReleaseRef>, NodeError> {
        current::releases(&self.files)
    }

    /// What happened here, newest first.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn history(&self, limit: usize) -> Result<Vec<HistoryRow>, NodeError> {
        match self.catalog_if_any()? {
            Some(catalog) => Ok(catalog.history(limit)?),
            None => Ok(Vec::new()),
        }
    }

    /// Empties the history.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn clear_history(&self, _lock: &NodeLock) -> Result<(), NodeError> {
        Ok(self.catalog()?.clear_history()?)
    }

    /// Writes an attempt into the history that never came to an execution, such as a refused rollback.
    ///
    /// # Errors
    /// [`NodeError::Catalog`].
    pub fn record(&self, _lock: &NodeLock, row: &HistoryRow) -> Result<(), NodeError> {
        Ok(self.catalog()?.record(row)?)
    }

    /// The state of the node and the newest `limit` entries of its state log, newest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn state(&self, limit: usize) -> Result<(Lifecycle, Vec<(Instant, Entry)>), NodeError> {
        Ok(state_log::look(&self.files, limit)?)
    }
}
