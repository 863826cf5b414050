//! Breaks: simulated disks, crash points, double crashes, replayed by seed.
//!
//! Runs the production engine of `cutover-host` over a disk that loses power, tears writes and fails calls, and checks
//! that what is left is entirely old or entirely new. Nothing here is shipped, and nothing here re-implements what it
//! tests. Read [`FileSystem`] for the model, [`FaultDisk`] for the port, [`Fault`] for what may go wrong.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod disk;
mod fault;
mod fs;
mod machine;
mod random;
mod release;
mod repository;
mod set_sweep;
mod state;
mod story;
mod sweep;

pub use disk::{Crashed, FaultDisk};
pub use fault::{Call, Death, Errno, Fault, Faults, Lasting, Moment, Op};
pub use fs::{BLOCK, FileSystem, Options, Reflinks, Tree, TreeEntry, TreeKind};
pub use machine::{
    Action, Ended, Life, Machine, PART_ROOTS, Process, SetAction, SetEnded, SetLife, SetMachine, SetStory,
    Verdicts,
};
pub use random::Random;
pub use release::{Release, Spec, SpecFile, releases};
pub use repository::SimulatedDirectory;
pub use set_sweep::SetSubject;
pub use state::{Visible, damaged_objects, leftovers, shared_inodes};
pub use story::{Damage, Story, stories, story};
pub use sweep::{Depth, Failure, Injection, LAYOUTS, Point, Subject, Tally, layout_name, revision, seed};
