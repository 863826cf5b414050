//! Yes or no to a commit, given what is known about the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Claim, ClaimError, CommitHash, HashFormat, claim::of_format};
use crate::model::Digest;

/// The commits that may hand in data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    commits: BTreeSet<CommitHash>,
    /// The digests of the manifests of releases, by the commit that each was built from as its signature vouches.
    releases: BTreeMap<CommitHash, BTreeSet<Digest>>,
    head: CommitHash,
    format: Option<HashFormat>,
}

impl Known {
    /// A set from the commits in their order, newest first. `None` when there is none.
    pub fn new(commits: impl IntoIterator<Item = CommitHash>) -> Option<Self> {
        let mut commits = commits.into_iter().peekable();
        let head = commits.peek()?.clone();
        let commits: BTreeSet<CommitHash> = commits.collect();
        // Releases of two repositories may have both lengths; then neither is wrong.
        let format = commits.iter().all(|commit| commit.format() == head.format()).then(|| head.format());
        Some(Self { commits, releases: BTreeMap::new(), head, format })
    }

    /// The set with releases that were built from its commits: pairs of a commit and the digest of a manifest. Whoever calls
    /// this has verified the signatures of the manifests.
    #[must_use]
    pub fn with_releases(mut self, releases: impl IntoIterator<Item = (CommitHash, Digest)>) -> Self {
        for (commit, manifest) in releases {
            self.releases.entry(commit).or_default().insert(manifest);
        }
        self
    }

    /// Whether a release, named by the digest of its manifest, is known to be built from a commit.
    pub fn is_release_of(&self, commit: &CommitHash, manifest: Digest) -> bool {
        self.releases.get(commit).is_some_and(|releases| releases.contains(&manifest))
    }

    /// The set with the commits of another in it; the head stays.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.commits.extend(other.commits.iter().cloned());
        for (commit, releases) in &other.releases {
            self.releases.entry(commit.clone()).or_default().extend(releases);
        }
        self.format = self.format.filter(|format| other.format == Some(*format));
        self
    }

    /// Whether data of this commit may be handed in.
    pub fn contains(&self, commit: &CommitHash) -> bool {
        self.commits.contains(commit)
    }

    /// The newest commit.
    pub fn head(&self) -> &CommitHash {
        &self.head
    }

    /// How many commits there are.
    pub fn len(&self) -> usize {
        self.commits.len()
    }

    /// Never: a set without a commit cannot be made.
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }
}

/// In which order the last commits of a repository are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As `git log` prints them: all sides of merges, newest commit date first.
    #[default]
    Log,
    /// Parents after all of their children: `git log --topo-order`.
    Topological,
    /// Only the branch itself: `git log --first-parent`.
    FirstParent,
}

/// What the operator says about the gate as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Every commit is judged.
    #[default]
    Enforce,
    /// Every commit is admitted, and none is demanded.
    Open,
    /// Nothing is admitted; hosts keep their data and come again.
    Closed,
}

/// A request that may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The commit to record; `None` only when none was demanded.
    pub commit: Option<CommitHash>,
}

/// Why a request may not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400: no one commit is named.
    #[error(transparent)]
    Claim(ClaimError),
    /// 412: the commit is not among the known ones.
    #[error("commit {commit} is not accepted: the newest is {head}")]
    OutOfDate {
        /// What was claimed.
        commit: CommitHash,
        /// The newest commit.
        head: CommitHash,
    },
    /// 503: there is no set of known commits, or it is too old to say no by.
    #[error("which commits are accepted is not known at the moment")]
    Unknown,
    /// 503: the operator has closed the gate.
    #[error("the gate is closed by its operator")]
    Closed,
}

/// Decides over one claim. `known` is the set at hand, `None` when there is none or it is older than allowed.
///
/// # Errors
/// [`Refusal`]. A request whose headers are wrong is told so even while no set is at hand (gate-2); without a set nothing
/// is ever refused as out of date, and nothing admitted (I7).
pub fn decide(switch: Switch, known: Option<&Arc<Known>>, claim: Claim) -> Result<Admitted, Refusal> {
    match switch {
        Switch::Open => return Ok(Admitted { commit: claim.ok() }),
        Switch::Closed => return Err(Refusal::Closed),
        Switch::Enforce => {}
    }
    let commit = claim.map_err(Refusal::Claim)?;
    let Some(known) = known else { return Err(Refusal::Unknown) };
    let commit = of_format(commit, known.format).map_err(Refusal::Claim)?;
    if known.contains(&commit) {
        Ok(Admitted { commit: Some(commit) })
    } else {
        Err(Refusal::OutOfDate { commit, head: known.head.clone() })
    }
}

/// What to do with a set of a certain age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Use it.
    Fresh,
    /// Use it, and have it refreshed.
    Stale,
    /// Do not use it; have it refreshed.
    TooOld,
}

/// Judges the age of a set; `None` when there is none. `max_stale` counts from when the set was read, not from its TTL.
pub fn freshness(age: Option<Duration>, ttl: Duration, max_stale: Duration) -> Freshness {
    match age {
        None => Freshness::TooOld,
        Some(age) if age < ttl => Freshness::Fresh,
        Some(age) if age <= max_stale.max(ttl) => Freshness::Stale,
        Some(_) => Freshness::TooOld,
    }
}

/// Why a window is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the window is {0}: at least one commit must be accepted")]
pub struct WindowError(pub i64);

/// Checks the number of commits to accept.
///
/// # Errors
/// [`WindowError`] below 1 (I22).
pub fn window_of(window: i64) -> Result<usize, WindowError> {
    usize::try_from(window).ok().filter(|window| *window > 0).ok_or(WindowError(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(digit: char, length: usize) -> CommitHash {
        digit.to_string().repeat(length).parse().unwrap()
    }

    fn known(digits: &str) -> Arc<Known> {
        Arc::new(Known::new(digits.chars().map(|digit| commit(digit, 40))).unwrap())
    }

    // I1 I2 I7
    #[test]
    fn commit_in_the_window_is_admitted_an_older_one_told_both_hashes_and_none_judged_without_a_set() {
        let set = known("cba");
        let ask = |known, claim| decide(Switch::Enforce, known, claim);
        assert_eq!(ask(Some(&set), Ok(commit('a', 40))), Ok(Admitted { commit: Some(commit('a', 40)) }));
        let refused = Refusal::OutOfDate { commit: commit('d', 40), head: commit('c', 40) };
        assert_eq!(ask(Some(&set), Ok(commit('d', 40))), Err(refused));
        assert_eq!(ask(None, Ok(commit('a', 40))), Err(Refusal::Unknown));
        assert_eq!(ask(None, Err(ClaimError::Missing)), Err(Refusal::Claim(ClaimError::Missing)));
    }

    // I20
    #[test]
    fn hash_of_the_other_length_is_malformed_unless_the_repository_has_such() {
        let long = Arc::new(Known::new([commit('a', 64)]).unwrap());
        let other = Err(Refusal::Claim(ClaimError::OtherFormat));
        assert_eq!(decide(Switch::Enforce, Some(&known("a")), Ok(commit('a', 64))), other);
        assert_eq!(decide(Switch::Enforce, Some(&long), Ok(commit('a', 40))), other);
        assert!(decide(Switch::Enforce, Some(&long), Ok(commit('a', 64))).is_ok());
    }

    // I8
    #[test]
    fn open_gate_demands_nothing_and_closed_gate_admits_nothing() {
        let set = known("a");
        assert_eq!(decide(Switch::Open, None, Err(ClaimError::Malformed)), Ok(Admitted { commit: None }));
        assert_eq!(decide(Switch::Open, None, Ok(commit('d', 40))).unwrap().commit, Some(commit('d', 40)));
        assert_eq!(decide(Switch::Closed, Some(&set), Ok(commit('a', 40))), Err(Refusal::Closed));
    }

    #[test]
    fn set_is_used_while_it_is_refreshed_but_not_for_ever() {
        let of = |seconds: u64| {
            freshness(Some(Duration::from_secs(seconds)), Duration::from_secs(5), Duration::from_secs(60))
        };
        assert_eq!(
            [of(4), of(5), of(60), of(61)],
            [Freshness::Fresh, Freshness::Stale, Freshness::Stale, Freshness::TooOld]
        );
        assert_eq!(freshness(None, Duration::MAX, Duration::MAX), Freshness::TooOld);
    }

    // I22
    #[test]
    fn window_of_nothing_is_refused() {
        assert_eq!(
            (window_of(0), window_of(-3), window_of(1)),
            (Err(WindowError(0)), Err(WindowError(-3)), Ok(1))
        );
    }
}
