//! Rows for stored episodes that have none, and a check of those that have one. (CONTRACT 8, backfill)
//!
//! Works beside a receiver: the index is locked for the appending of a few rows at a time, and every row is looked for again
//! under the lock. What is hashed is written at once, so a run that is stopped loses little, and the next one goes on where it
//! was. Rows that are there stay as they are; nothing is ever removed.
//! Read [`repair`](repair()) first: `episodes` says what is stored, `hashing` reads it, `sink` writes the rows.

mod episodes;
mod finding;
mod hashing;
mod odd_rows;
mod options;
mod report;
mod run;
mod sink;
#[cfg(test)]
mod tests;

pub use self::{
    finding::Finding,
    options::{Check, RepairOptions, Writing},
    report::{Counts, Progress, RepairError, RepairWatch, Repaired},
    run::repair,
};
