//! No service: the release is files only.

use super::{Activated, Activation, ServiceError, ServiceManager, ServiceState, ServiceStatus};

/// Runs nothing and succeeds.
pub(super) struct Unmanaged;

impl ServiceManager for Unmanaged {
    fn quiesce(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    fn activate(&self, _: &Activation) -> Result<Activated, ServiceError> {
        Ok(Activated { note: "no service is managed".to_owned(), ..Activated::default() })
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        Ok(ServiceStatus::bare(ServiceState::Unmanaged, "no service is managed"))
    }
}
