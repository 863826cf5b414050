//! Downloads: what to ask for, what to make of an answer, when to try again, where, and how fast.
//!
//! Nothing here knows a socket, a file or a clock. `host::fetch` observes (an answer's head, bytes that arrived, the
//! time since the start) and does what is decided here. Read [`resume::judge`] first, then [`retry::Tries`] and
//! [`mirrors::Mirrors`].

pub mod answer;
pub mod mirrors;
pub mod resume;
pub mod retry;
pub mod speeds;
pub mod throttle;

use crate::model::FileKind;

/// How early an object is wanted: a higher one is fetched first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u8);

impl Priority {
    /// Executables and libraries first: they are what deltas, checks and the service need, and what is missed most when a
    /// download is cut short.
    pub fn of(kind: FileKind) -> Self {
        Self(match kind {
            FileKind::Executable => 30,
            FileKind::Library => 20,
            FileKind::Config => 10,
            FileKind::Data => 0,
        })
    }
}

/// The indexes of `priorities` in the order in which they are fetched: highest first, equal ones as given.
pub fn order(priorities: &[Priority]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..priorities.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(priorities[index]));
    order
}

/// The free bytes demanded before the first byte is fetched: room for everything twice, once as downloaded and once as
/// staged, less what already lies among the downloads.
pub fn needed_bytes(total_bytes: u64, present_bytes: u64) -> u64 {
    total_bytes.saturating_mul(2).saturating_sub(present_bytes.min(total_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    // W3
    #[test]
    fn higher_priority_goes_first_and_equals_keep_their_order() {
        assert_eq!(order(&[1, 10, 5].map(Priority)), [1, 2, 0]);
        assert_eq!(order(&[5, 5, 9, 5].map(Priority)), [2, 0, 1, 3]);
        assert_eq!(order(&[]), [0usize; 0]);
        let kinds = [FileKind::Data, FileKind::Executable, FileKind::Config, FileKind::Library];
        assert_eq!(order(&kinds.map(Priority::of)), [1, 3, 2, 0], "executables first");
    }

    // H3
    #[test]
    fn twice_the_size_is_needed_less_what_is_there() {
        assert_eq!(needed_bytes(50, 0), 100);
        assert_eq!(needed_bytes(50, 20), 80);
        assert_eq!(needed_bytes(50, 500), 50, "what is staged still needs room");
        assert_eq!(needed_bytes(u64::MAX, 0), u64::MAX);
    }
}
