//! The service side with real processes, sockets and signals, against the program `service_fixture` of this package.
//! Nothing here is decided by how fast the machine is: conditions are waited for, generously.
#![allow(clippy::disallowed_methods)]

mod fixture;
mod hand_over;
#[path = "../../../bundle/tests/it/not_run.rs"]
mod not_run;
mod reexec;
mod supervision;
