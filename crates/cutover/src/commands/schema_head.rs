//! The end of a database's history, kept in a file outside of it: what somebody cuts off in the database is missed here.

use std::path::{Path, PathBuf};

use cutover_migrate::{run::Migrator, state::history::Head};

use crate::{
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
};

/// Where the head is kept: `schema.head_file`, or the state of the root that is updated.
#[derive(Clone, Debug)]
pub(super) struct KeptHead(Option<PathBuf>);

impl KeptHead {
    /// Kept at `path`; nowhere without one.
    pub(super) fn at(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Does `body` with what `open` makes of the kept head, then keeps where the history ends; also after a failure, for what it
    /// did is in the history too.
    ///
    /// # Errors
    /// Those of `open` and `body`; then those of keeping.
    pub(super) fn around<'m, T>(
        &self,
        open: impl FnOnce(Option<Head>) -> Result<Migrator<'m>, Failure>,
        body: impl FnOnce(&mut Migrator<'m>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let head = self.read()?;
        let mut migrator = open(head.clone())?;
        let done = body(&mut migrator);
        let told = self.keep(head.as_ref(), &mut migrator);
        let done = done?;
        told.map(|()| done)
    }

    /// The head that was kept; `None` when none was yet.
    ///
    /// # Errors
    /// The file cannot be read, or is no head.
    pub(super) fn read(&self) -> Result<Option<Head>, Failure> {
        let Some(path) = self.0.as_deref() else { return Ok(None) };
        // One that cannot be looked at is not one that was never kept.
        if !path.try_exists().map_err(|source| Failure::io("look at", path, source))? {
            return Ok(None);
        }
        let bytes = files::read("the head of the schema history", path)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| self.damaged(path).because(error))
    }

    /// Keeps where the history ends now, when it has moved on from what was kept: never in the place of an end that is gone.
    ///
    /// # Errors
    /// The history does not hold the kept head, the database cannot be asked, or the file not be written.
    fn keep(&self, before: Option<&Head>, migrator: &mut Migrator<'_>) -> Result<(), Failure> {
        let Some(path) = &self.0 else { return Ok(()) };
        let now = migrator.head()?;
        if before.map_or(now.number == 0, |before| *before == now) {
            return Ok(());
        }
        migrator.history()?;
        files::write(path, 0o644, Existing::Replace, |out| {
            serde_json::to_writer(out, &now).map_err(|error| Failure::io("write", path, error.into()))
        })
    }

    fn damaged(&self, path: &Path) -> Failure {
        Failure::new(Exit::Damaged, format!("`{}` is no head of a schema history", path.display())).hint(
            "compare the database with a backup; then remove this file, and the next command keeps the head anew",
        )
    }
}
