//! The commits of the releases in a repository.
//!
//! For fleets that run releases rather than clones: the newest releases of a package, those of at least some version, those of
//! a channel; each names in its signed manifest the commit it was built from. The repository is a directory of this machine,
//! the one that is published or a copy of it. It is believed as it lies there, or, with [`ReleaseTrust`], as a host would
//! believe it: metadata from the anchor on, and the signature of every manifest. Read [`ReleasesSource::read`].

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use cutover_bundle::{
    BundleError, Limits, RevocationLists, TrustAnchor, TrustError, verify_detached, verify_signature,
};
use cutover_core::{
    admission::{CommitHash, Known},
    causes::chain,
    model::{Digest, Instant, Manifest, ManifestLimits, Name, Version},
};
use cutover_repo::{
    Catalogue, DirectoryStorage, IndexEntry, Listed, State as _, StateDirectory, Storage as _, first_root,
    list, manifest_path, read_bounded,
    tuf::{Client, ClientLimits},
};

use super::{Source, SourceError};
use crate::ingest::Clock;

/// Which releases' commits are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Only releases of this package; `None`: of every one.
    pub package: Option<Name>,
    /// Only those of this channel; `None`: of every one.
    pub channel: Option<Name>,
    /// Only this version and later ones.
    pub minimum: Option<Version>,
    /// Only so many versions, counted from the newest. 0: any number.
    pub last: usize,
}

/// By what releases are believed that anybody may have put there.
#[derive(Clone, Debug)]
pub struct ReleaseTrust {
    /// Who may vouch for them.
    pub anchor: TrustAnchor,
    /// Which certificates do not count any more.
    pub lists: RevocationLists,
    /// Where the metadata is kept that was believed last, so that an older state is noticed. Its parent is there.
    pub state: PathBuf,
    /// The time that certificates and metadata are judged by.
    pub clock: Clock,
}

/// The releases of a repository.
#[derive(Debug)]
pub struct ReleasesSource {
    repository: PathBuf,
    selection: Selection,
    trust: Option<ReleaseTrust>,
    /// What the manifests say that were read before, by their digest.
    seen: Mutex<BTreeMap<Digest, Seen>>,
}

/// So many seconds a manifest counts as verified without another look: certificates and revocation lists end. New lists come
/// with a new source, which has seen nothing.
const VERIFIED_FOR_S: i64 = 600;

/// What a manifest says.
#[derive(Clone, Debug)]
struct Seen {
    /// `None` where it names no full commit.
    commit: Option<CommitHash>,
    /// When its signature was found to be good; `None` where nothing is verified.
    verified_at: Option<Instant>,
}

impl Seen {
    fn counts_at(&self, now: Option<Instant>) -> bool {
        let age = self.verified_at.zip(now).map(|(then, now)| now.unix().saturating_sub(then.unix()));
        // A clock that was set back tells nothing.
        age.is_none_or(|age| (0..VERIFIED_FOR_S).contains(&age))
    }
}

type Failed = Box<dyn Error + Send + Sync>;

impl ReleasesSource {
    /// The releases in a directory. Without `trust`, whoever writes there is believed.
    pub fn new(repository: PathBuf, selection: Selection, trust: Option<ReleaseTrust>) -> Self {
        Self { repository, selection, trust, seen: Mutex::default() }
    }

    /// Each release that counts, newest version first, with its commit.
    fn releases(&self) -> Result<Vec<(CommitHash, Digest)>, Failed> {
        let storage = DirectoryStorage::open(&self.repository)?;
        let Some(trust) = &self.trust else {
            let wanted = self.selection.of(list(&storage)?);
            return self.commits(wanted, None, |entry| claimed(&storage, entry).map(Some));
        };
        let now = Instant::from_unix((trust.clock)().as_second()).ok_or("the time is none")?;
        let state = StateDirectory::open(&trust.state)?;
        trust.start(&storage, &state, now)?;
        let client = Client::refresh(&storage, &state, now, ClientLimits::default())?;
        let mut catalogue = Catalogue::new(client);
        let mut listed = Vec::new();
        for (package, platform, channel) in catalogue.places() {
            let Some(index) = catalogue.index(&package, &platform, &channel)? else { continue };
            listed.extend(index.releases.into_iter().map(|entry| {
                let (package, platform, channel) = (package.clone(), platform.clone(), channel.clone());
                Listed { package, platform, channel, entry }
            }));
        }
        self.commits(self.selection.of(listed), Some(now), |entry| trust.vouched(&catalogue, entry, now))
    }

    /// The commits of releases. Each manifest is read once while what is known of it counts; one that is not trusted is read each
    /// time, for it may come to be.
    fn commits(
        &self,
        wanted: Vec<IndexEntry>,
        now: Option<Instant>,
        read: impl Fn(&IndexEntry) -> Result<Option<Seen>, Failed>,
    ) -> Result<Vec<(CommitHash, Digest)>, Failed> {
        let mut known = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let mut present = BTreeMap::new();
        for entry in wanted {
            let digest = entry.manifest.sha256;
            let seen = match known.get(&digest).filter(|seen| seen.counts_at(now)) {
                Some(seen) => Some(seen.clone()),
                None => read(&entry)?,
            };
            let Some(seen) = seen else { continue };
            if seen.commit.is_none() {
                tracing::debug!(version = %entry.version, "a release names no full commit; it admits nothing");
            }
            found.extend(seen.commit.clone().map(|commit| (commit, digest)));
            present.insert(digest, seen);
        }
        *known = present;
        Ok(found)
    }
}

impl Selection {
    /// The releases that count, newest version first.
    fn of(&self, mut listed: Vec<Listed>) -> Vec<IndexEntry> {
        listed.retain(|listed| self.wants(listed));
        // A release may be there for several platforms and in several channels: versions are counted, not copies.
        listed.sort_by(|a, b| b.entry.version.cmp(&a.entry.version));
        if self.last > 0 {
            let newest: BTreeSet<Version> =
                listed.iter().map(|listed| listed.entry.version.clone()).collect();
            let newest: BTreeSet<Version> = newest.into_iter().rev().take(self.last).collect();
            listed.retain(|listed| newest.contains(&listed.entry.version));
        }
        listed.into_iter().map(|listed| listed.entry).collect()
    }

    /// A release that was yanked is one nobody should run.
    fn wants(&self, listed: &Listed) -> bool {
        listed.entry.yanked.is_none()
            && self.package.as_ref().is_none_or(|package| listed.package == *package)
            && self.channel.as_ref().is_none_or(|channel| listed.channel == *channel)
            && self.minimum.as_ref().is_none_or(|minimum| listed.entry.version >= *minimum)
    }
}

impl ReleaseTrust {
    /// Makes sure that there is a root to start from, vouched for by the anchor.
    fn start(&self, storage: &DirectoryStorage, state: &StateDirectory, now: Instant) -> Result<(), Failed> {
        if state.load("root")?.is_none() {
            let (root, signature) = first_root(storage)?;
            let (anchor, lists) = (&self.anchor, &self.lists);
            verify_signature(&root, &signature, anchor, lists, now, &Limits::default())?;
            state.keep("root", &root)?;
        }
        Ok(())
    }

    /// A manifest whose signature holds. A release whose signature does not is none: the others count.
    fn vouched(
        &self,
        catalogue: &Catalogue<'_>,
        entry: &IndexEntry,
        now: Instant,
    ) -> Result<Option<Seen>, Failed> {
        let files = catalogue.files(entry, &|_| None)?;
        let (anchor, lists) = (&self.anchor, &self.lists);
        match verify_detached(&files.manifest, files.signature, anchor, lists, now, &Limits::default()) {
            Ok(verified) => Ok(Some(Seen { commit: commit_of(verified.manifest()), verified_at: Some(now) })),
            // Nobody can say whether the release is good: that ends when somebody renews a list or sets the clock. Until then the
            // last set counts, and hosts come again instead of being refused for good.
            Err(BundleError::Trust(
                error @ (TrustError::RevocationUnknown { .. }
                | TrustError::RevocationStale { .. }
                | TrustError::RevocationInvalid { .. }
                | TrustError::RevocationRequired
                | TrustError::Clock(_)),
            )) => Err(error.into()),
            Err(error) => {
                let causes = chain(&error);
                tracing::warn!(version = %entry.version, "a release is not trusted, and admits nothing: {causes}");
                Ok(None)
            }
        }
    }
}

/// A manifest that the index names.
fn claimed(storage: &DirectoryStorage, entry: &IndexEntry) -> Result<Seen, Failed> {
    let limits = ManifestLimits::default();
    let path = manifest_path(entry.manifest.sha256);
    let bytes = match storage.open(&path)? {
        Some(file) => read_bounded(file, limits.bytes_max as u64)?,
        None => Vec::new(),
    };
    if Digest::of(&bytes) != entry.manifest.sha256 {
        return Err(format!("`{path}` is missing or damaged").into());
    }
    Ok(Seen { commit: commit_of(&Manifest::parse(&bytes, &limits)?), verified_at: None })
}

fn commit_of(manifest: &Manifest) -> Option<CommitHash> {
    manifest.build.as_ref()?.commit.as_deref()?.parse().ok()
}

impl Source for ReleasesSource {
    fn read(&self) -> Result<Known, SourceError> {
        let releases = self.releases().map_err(|error| {
            let place = self.repository.display();
            SourceError::Output(format!("failed to read `{place}`: {}", chain(error.as_ref())))
        })?;
        let known = Known::new(releases.iter().map(|(commit, _)| commit.clone()));
        let known = known.ok_or_else(|| SourceError::NoCommits { repository: self.repository.clone() })?;
        // Only what was verified proves anything.
        Ok(if self.trust.is_some() { known.with_releases(releases) } else { known })
    }

    fn describes(&self) -> String {
        // By other lists another set may be verified: the one at hand does not outlive them.
        let believed = match &self.trust {
            Some(trust) => format!("verified by {}", Digest::of(format!("{:?}", trust.lists).as_bytes())),
            None => "believed".to_owned(),
        };
        format!("releases {} {believed} {:?}", self.repository.display(), self.selection)
    }
}
