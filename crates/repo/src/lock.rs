//! The right to change a repository: only one publisher has it.

use crate::{
    error::PublishError,
    storage::{Lock, Locked, Storage},
};

/// Takes the lock of a repository; free again when dropped.
pub(crate) fn take_lock(storage: &dyn Storage) -> Result<Box<dyn Locked>, PublishError> {
    match storage.lock().map_err(PublishError::storage("lock", "."))? {
        Lock::Held(lock) => Ok(lock),
        Lock::InUse { by } => Err(PublishError::InUse { by }),
    }
}
