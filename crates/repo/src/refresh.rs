//! Renewing metadata before it expires.

use crate::{commit::Renew, error::PublishError, publisher::Publisher, tuf::RoleKind};

impl Publisher<'_> {
    /// Renews the metadata, so that it does not expire: the timestamp always; snapshot, targets and root when half of
    /// their time is over and their keys are given. Deletes what was removed and whose grace is over.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn refresh(&mut self) -> Result<(), PublishError> {
        if self.is_due(Renew::Due, RoleKind::Root, self.present.root.expires, self.settings.root_days) {
            self.write_root(self.present.root.clone())?;
        }
        self.commit(&[], Renew::Due, None)?;
        self.collect()?;
        Ok(())
    }
}
