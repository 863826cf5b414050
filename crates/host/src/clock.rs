//! The clock port. Times are for people and for retention by age; nothing is ever ordered by them (inst-6).

use cutover_core::model::Instant;

/// Tells the time. The one wall clock is read in the program's main; tests and the simulation bring their own.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Instant;
}
