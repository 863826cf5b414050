//! Releases of a repository: the NAME@VERSION of `plan` and `apply`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_bundle::{
    DeltaBundle, Limits, RevocationLists, TrustAnchor, VerifiedManifest, decode_object, delta::DeltaLimits,
};
use cutover_core::{
    fetch::{Priority, speeds::Speeds},
    model::{Digest, Manifest, Name, ObjectEntry, ReleaseRef, Version},
    plan::{Plan, Source as FileSource, Step},
    resolve::{Candidate, Preference, Question, Step as Change, Way, resolve},
};
use cutover_host::{
    disk::RealDisk,
    fetch::{
        Downloads, FetchError, FetchPorts, RelativePath, Source, SourceKind, Unwatched, Wanted, open_source,
    },
    fetched_payload::{FetchedPayload, SpooledManifest},
};
use cutover_repo::{
    Catalogue, CatalogueError, Chosen, Fetch, IndexEntry, State, StateDirectory, delta_path, first_root,
    object_path,
    tuf::{Client, ClientError, ClientLimits},
};

use super::{
    Context, documents,
    fetching::{Metadata, Named, TAG, ports},
    log,
    site::{self, Site},
    trust,
};
use crate::{args::FromRepository, exit::Exit, failure::Failure, files, output, settings::Settings};

/// A repository, and what this root knows of it.
pub(super) struct Repository {
    pub(super) source: Box<dyn Source>,
    pub(super) state: StateDirectory,
    /// The directory of the state.
    place: PathBuf,
    /// Where the state lies as long as there is no root.
    aside: Option<tempfile::TempDir>,
    anchor: TrustAnchor,
    lists: RevocationLists,
    channels: Vec<Name>,
    platform: Name,
}

/// Where the speeds of mirrors are kept.
const SPEEDS: &str = "mirrors";

/// What earlier runs measured; nothing when that cannot be read, which costs time only.
fn kept_speeds(state: &StateDirectory) -> Speeds {
    let refused = |error: &dyn std::fmt::Display| {
        output::note(format!("warning: the kept speeds of mirrors are not used: {error}"));
        Speeds::default()
    };
    match state.load(SPEEDS).map(|kept| kept.map(|bytes| Speeds::parse(&bytes))) {
        Ok(None) => Speeds::default(),
        Ok(Some(Ok(speeds))) => speeds,
        Ok(Some(Err(error))) => refused(&error),
        Err(error) => refused(&error),
    }
}

/// Keeps what this run measured.
pub(super) fn keep_speeds(source: &dyn Source, state: &StateDirectory) {
    let kept = source.fetcher().learned().map(|speeds| state.keep(SPEEDS, &speeds.to_bytes()));
    if let Some(Err(error)) = kept {
        tracing::debug!(%error, "the speeds of mirrors are not kept");
    }
}

/// The places of the repository that is meant.
fn repository_source(
    from: &FromRepository,
    settings: &Settings,
    speeds: Speeds,
) -> Result<Box<dyn Source>, Failure> {
    let mut source = settings.source.clone();
    if !from.source.is_empty() {
        source.kind = SourceKind::Repository;
        source.urls.clone_from(&from.source);
    }
    if source.kind != SourceKind::Repository {
        return Err(Failure::usage("`source.kind` is no repository").hint("name one with --source"));
    }
    let variable = |name: &str| std::env::var(name).ok();
    open_source(&source, &variable, FetchPorts { speeds, ..ports(settings) })?.ok_or_else(|| {
        Failure::usage("there is no repository to look in").hint("name one with --source or `source.urls`")
    })
}

impl Repository {
    pub(super) fn open(
        from: &FromRepository,
        root: &Path,
        settings: &Settings,
        context: &Context,
    ) -> Result<Self, Failure> {
        let allowed = &settings.trust_policy.channels;
        let channels = match (from.channel.as_slice(), allowed.as_slice()) {
            ([], []) => vec!["stable".parse().expect("`stable` is a name")],
            ([], allowed) => allowed.to_vec(),
            (named, _) => named.to_vec(),
        };
        if let Some(other) = channels.iter().find(|channel| !allowed.is_empty() && !allowed.contains(channel))
        {
            return Err(Failure::new(
                Exit::Policy,
                format!("`trust-policy.channels` does not allow `{other}`"),
            ));
        }
        let own = root.join(".cutover");
        let mut aside = None;
        let place = if own.is_dir() {
            own.join("trusted")
        } else {
            let directory = tempfile::tempdir()
                .map_err(|source| Failure::io("make a directory in", &std::env::temp_dir(), source))?;
            let place = directory.path().join("trusted");
            aside = Some(directory);
            place
        };
        let state =
            StateDirectory::open(&place).map_err(|source| Failure::io("open directory", &place, source))?;
        let source = repository_source(from, settings, kept_speeds(&state))?;
        let repository = Self {
            source,
            state,
            place,
            aside,
            anchor: trust::anchor()?,
            lists: trust::revocation_lists(&settings.trust_policy)?,
            channels,
            platform: site::platform(settings)?,
        };
        repository.start(from, context)?;
        Ok(repository)
    }

    /// Makes sure that there is a root to start from: given by the operator, or vouched for by the anchor.
    fn start(&self, from: &FromRepository, context: &Context) -> Result<(), Failure> {
        let failed =
            |source| Failure::new(Exit::Failed, "failed to keep the repository's root").because(source);
        if self.state.load("root").map_err(failed)?.is_some() {
            return Ok(());
        }
        let root = match &from.trusted_root {
            Some(path) => files::read("the repository's root", path)?,
            None => {
                let (root, signature) = first_root(&Metadata { source: self.source.as_ref(), tags: None })?;
                let limits = Limits::default();
                let (anchor, lists) = (&self.anchor, &self.lists);
                cutover_bundle::verify_signature(&root, &signature, anchor, lists, context.now, &limits)
                    .map_err(|error| Failure::about(error, "the repository's first root is not trusted"))?;
                root
            }
        };
        self.state.keep("root", &root).map_err(failed)
    }

    pub(super) fn metadata(&self) -> Metadata<'_> {
        Metadata { source: self.source.as_ref(), tags: Some(&self.state) }
    }

    pub(super) fn wanted(&self, named: &Named) -> cutover_repo::Wanted {
        cutover_repo::Wanted {
            package: named.package.clone(),
            version: named.version.clone(),
            platform: self.platform.clone(),
            channels: self.channels.clone(),
        }
    }
}

/// What a host has.
#[derive(Default)]
pub(super) struct Present {
    /// The release of this root.
    pub(super) installed: Option<ReleaseRef>,
    /// Every package of the host, this root's included.
    pub(super) packages: BTreeMap<Name, Candidate>,
}

impl Present {
    fn of(root: &Path, settings: &Settings) -> Result<Self, Failure> {
        // What other packages need is in their manifests; of one that is only named, the version counts.
        let named = settings.preflight.packages.iter().map(|(name, version)| (name.clone(), bare(version)));
        let mut packages: BTreeMap<Name, Candidate> = named.collect();
        let (own, beside) = (site::installed(root)?, site::installed_beside(root, settings)?);
        for (_, manifest) in beside.iter().chain(&own) {
            packages.insert(manifest.package.clone(), installed_candidate(manifest));
        }
        Ok(Self { installed: own.map(|(release, _)| release), packages })
    }
}

fn bare(version: &Version) -> Candidate {
    Candidate {
        version: version.clone(),
        requires: Vec::new(),
        conflicts: Vec::new(),
        min_upgrade_from: None,
        yanked: false,
    }
}

fn installed_candidate(manifest: &Manifest) -> Candidate {
    Candidate {
        requires: manifest.requires.clone(),
        conflicts: manifest.conflicts.clone(),
        ..bare(&manifest.version)
    }
}

fn candidate(entry: &IndexEntry) -> Candidate {
    Candidate {
        version: entry.version.clone(),
        requires: entry.requires.clone(),
        conflicts: entry.conflicts.clone(),
        min_upgrade_from: entry.min_upgrade_from.clone(),
        yanked: entry.yanked.is_some(),
    }
}

/// The way to `chosen` on this host.
///
/// # Errors
/// There is none, and why.
fn way(
    catalogue: &mut Catalogue<'_>,
    chosen: &Chosen,
    wanted: &cutover_repo::Wanted,
    present: &Present,
    preference: Preference,
) -> Result<Way, Failure> {
    let mut offered: BTreeMap<Name, Vec<Candidate>> = BTreeMap::new();
    // Those that are there may have to follow what they need.
    let mut open: Vec<Name> = present.packages.keys().cloned().chain([chosen.package.clone()]).collect();
    while let Some(package) = open.pop() {
        if offered.contains_key(&package) {
            continue;
        }
        let any = cutover_repo::Wanted { package: package.clone(), version: None, ..wanted.clone() };
        let found = match catalogue.candidates(&any) {
            // It may be installed without the repository; if not, the answer says who needs it.
            Err(CatalogueError::NoPackage { .. }) => Vec::new(),
            found => found?,
        };
        let found: Vec<Candidate> = found.iter().map(|chosen| candidate(&chosen.entry)).collect();
        let needs = found.iter().flat_map(|candidate| &candidate.requires);
        open.extend(needs.map(|requirement| requirement.package.clone()));
        offered.insert(package, found);
    }
    let wanted = BTreeMap::from([(chosen.package.clone(), chosen.entry.version.clone())]);
    let question = Question { installed: &present.packages, offered: &offered, wanted: &wanted, preference };
    resolve(&question).map_err(|error| {
        let what = format!("{} {} cannot be installed here", chosen.package, chosen.entry.version);
        Failure::new(Exit::Policy, what).because(error)
    })
}

/// The version to install next on the way to `chosen`, if that is another one.
///
/// # Errors
/// Other packages have to change first, or there is no way.
fn detour(
    catalogue: &mut Catalogue<'_>,
    chosen: &Chosen,
    wanted: &cutover_repo::Wanted,
    present: &Present,
    settings: &Settings,
) -> Result<Option<Version>, Failure> {
    let installed = present.installed.as_ref().filter(|release| release.package == chosen.package);
    if installed.is_some_and(|installed| chosen.entry.version.cmp_precedence(&installed.version).is_le()) {
        // The planner has its own words for that.
        return Ok(None);
    }
    let way = way(catalogue, chosen, wanted, present, settings.package.prefer)?;
    let steps: Vec<&Change> = way.steps().collect();
    if let Some(last) = steps.iter().rposition(|change| change.package != chosen.package) {
        return Err(others_first(chosen, steps[..=last].iter().copied()));
    }
    let first = steps.first().map(|change| change.to.clone());
    Ok(first.filter(|first| first.cmp_precedence(&chosen.entry.version).is_ne()))
}

/// The refusal of a release that only these changes of packages make installable.
fn others_first<'c>(chosen: &Chosen, others: impl IntoIterator<Item = &'c Change>) -> Failure {
    let what = format!("{} {} needs other packages to change first", chosen.package, chosen.entry.version);
    let failure = others
        .into_iter()
        .fold(Failure::new(Exit::Policy, what), |failure, change| failure.hint(format!("install {change}")));
    failure.hint("or name their roots in `package.sites`, and all change as one execution")
}

/// A release of a repository that was chosen and verified.
pub(super) struct Fetched {
    pub(super) payload: FetchedPayload,
    /// Whether it is only on the way to the one that was named.
    pub(super) is_on_the_way: bool,
    entry: IndexEntry,
    /// What was believed of the repository, as long as there was no root to keep it in.
    aside: Option<Aside>,
    anchor: TrustAnchor,
    lists: RevocationLists,
}

/// What was believed of a repository before there was a root, and the directory it lies in.
pub(super) struct Aside {
    state: StateDirectory,
    _directory: tempfile::TempDir,
}

impl Aside {
    /// Moves it to the root, once there is one.
    pub(super) fn settle(&self, root: &Path) -> Result<(), Failure> {
        let place = root.join(".cutover/trusted");
        let failed = |source| Failure::io("keep the repository's metadata in", &place, source);
        let state = StateDirectory::open(&place).map_err(failed)?;
        for role in ["root", "timestamp", "snapshot", "targets", TAG, "log", SPEEDS] {
            if let Some(bytes) = self.state.load(role).map_err(failed)? {
                state.keep(role, &bytes).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Follows the repository and verifies the manifest of the release that is meant.
///
/// # Errors
/// The metadata or the manifest is not trusted, or there is no such release.
pub(super) fn open(
    named: Named,
    from: &FromRepository,
    root: &Path,
    settings: &Settings,
    context: &Context,
) -> Result<Box<Fetched>, Failure> {
    if let Some(only) = settings.package.name.as_ref().filter(|only| **only != named.package) {
        let message = format!("`package.name` allows `{only}` only, and not `{}`", named.package);
        return Err(Failure::new(Exit::Policy, message));
    }
    let repository = Repository::open(from, root, settings, context)?;
    let metadata = repository.metadata();
    let client = Client::refresh(&metadata, &repository.state, context.now, ClientLimits::default())?;
    let mut catalogue = Catalogue::new(client);
    let wanted = repository.wanted(&named);
    let mut chosen = catalogue.choose(&wanted)?;
    let detour = detour(&mut catalogue, &chosen, &wanted, &Present::of(root, settings)?, settings)?;
    let is_on_the_way = detour.is_some();
    if is_on_the_way {
        chosen = catalogue.choose(&cutover_repo::Wanted { version: detour, ..wanted })?;
    }
    let (release, manifest, objects) =
        verified(&repository, &mut catalogue, &chosen, &metadata, root, &[settings], context)?;
    let Repository { source, state, aside, anchor, lists, .. } = repository;
    keep_speeds(source.as_ref(), &state);
    let aside = aside.map(|directory| Aside { state, _directory: directory });
    let payload = FetchedPayload::new(release, manifest, objects, source, Arc::new(Unwatched));
    Ok(Box::new(Fetched { payload, is_on_the_way, entry: chosen.entry, aside, anchor, lists }))
}

/// The verified manifest of a release, and where its objects lie. `root` may know the manifest already; every one of
/// `demands` has to be met.
fn verified(
    repository: &Repository,
    catalogue: &mut Catalogue<'_>,
    chosen: &Chosen,
    metadata: &Metadata<'_>,
    root: &Path,
    demands: &[&Settings],
    context: &Context,
) -> Result<(VerifiedManifest, SpooledManifest, BTreeMap<Digest, Wanted>), Failure> {
    if let Some(yanked) = &chosen.entry.yanked {
        output::note(output::printable(&format!(
            "warning: {} {} was yanked: {}",
            chosen.package, chosen.entry.version, yanked.reason
        )));
    }
    let known = |digest: Digest| {
        let path = root.join(format!(".cutover/manifests/{digest}.json"));
        path.is_file().then(|| files::read("the manifest", &path).ok()).flatten()
    };
    let files = catalogue.files(&chosen.entry, &known)?;
    let release = cutover_bundle::verify_detached(
        &files.manifest,
        files.signature,
        &repository.anchor,
        &repository.lists,
        context.now,
        &Limits::default(),
    )
    .map_err(|error| Failure::about(error, format!("refused {} {}", chosen.package, chosen.entry.version)))?;
    let spooled = tempfile::tempfile_in(&repository.place)
        .and_then(|file| SpooledManifest::new(file, &files.manifest))
        .map_err(|source| Failure::io("keep the manifest in", &repository.place, source))?;
    drop(files.manifest);
    // The index is trusted to name releases, not to rename them.
    let manifest = release.manifest();
    let is_same = (&manifest.package, &manifest.version, &manifest.platform)
        == (&chosen.package, &chosen.entry.version, &chosen.platform);
    if !is_same {
        let message = format!(
            "the repository offers {} as {} {}",
            release.release(),
            chosen.package,
            chosen.entry.version
        );
        return Err(Failure::new(Exit::NotTrusted, message));
    }
    let sha256 = release.release().manifest;
    let stored: BTreeMap<Digest, Digest> =
        files.objects.of(manifest)?.into_iter().map(|(object, stored)| (object.sha256, stored)).collect();
    let read = |object: &ObjectEntry| fetch_object(metadata, object, stored[&object.sha256]);
    for settings in demands {
        log::judge(manifest, sha256, chosen.entry.log_index, settings, (metadata, &repository.state))?;
        documents::judge(manifest, settings, &read).map_err(|failure| {
            let name = format!("{}@{}", chosen.package, chosen.entry.version);
            documents::with_hint(failure, Path::new(&name))
        })?;
    }
    let mut priorities: BTreeMap<Digest, Priority> = BTreeMap::new();
    for file in &manifest.files {
        let priority = priorities.entry(file.sha256).or_default();
        *priority = Priority::of(file.kind).max(*priority);
    }
    let wanted = |object: &ObjectEntry| {
        let stored = stored[&object.sha256];
        let wanted = Wanted {
            path: RelativePath::new(&object_path(stored))?,
            digest: stored,
            size_bytes: object.stored_size,
            priority: priorities.get(&object.sha256).copied().unwrap_or_default(),
        };
        Ok::<_, Failure>((object.sha256, wanted))
    };
    let objects = manifest.objects.iter().map(wanted).collect::<Result<_, _>>()?;
    Ok((release, spooled, objects))
}

/// Releases that have to change together, in order, each chosen and verified.
pub(super) struct Together {
    pub(super) parts: Vec<Fetched>,
    pub(super) changes: Vec<Change>,
    /// For each change how many come before the end of its leg: when all of these are done, everything holds.
    pub(super) holds_after: Vec<usize>,
    /// Every package of the host as it is now.
    pub(super) present: BTreeMap<Name, Candidate>,
    pub(super) aside: Option<Aside>,
}

/// What has to change together on this host until the named release is installed; `None` when nothing but that one package
/// changes, and only once. `site` says what is demanded of a package beyond `settings`, and where it is.
///
/// # Errors
/// As [`open`]; or a package has to change whose root is not known.
pub(super) fn open_together<'s>(
    named: &Named,
    from: &FromRepository,
    root: &Path,
    settings: &Settings,
    site: &dyn Fn(&Name) -> Option<(&'s Path, &'s Settings)>,
    context: &Context,
) -> Result<Option<Together>, Failure> {
    let repository = Repository::open(from, root, settings, context)?;
    let metadata = repository.metadata();
    let client = Client::refresh(&metadata, &repository.state, context.now, ClientLimits::default())?;
    let mut catalogue = Catalogue::new(client);
    let wanted = repository.wanted(named);
    let chosen = catalogue.choose(&wanted)?;
    let present = Present::of(root, settings)?;
    let installed = present.installed.as_ref().filter(|release| release.package == chosen.package);
    let is_newer = |installed: &ReleaseRef| chosen.entry.version.cmp_precedence(&installed.version).is_gt();
    if !installed.is_none_or(is_newer) {
        // The planner has its own words for that.
        return Ok(None);
    }
    let way = way(&mut catalogue, &chosen, &wanted, &present, settings.package.prefer)?;
    let (mut changes, mut holds_after) = (Vec::new(), Vec::new());
    for leg in way.legs {
        changes.extend(leg);
        holds_after.resize(changes.len(), changes.len());
    }
    if changes.iter().all(|change| change.package == chosen.package) && changes.len() < 2 {
        return Ok(None);
    }
    let unknown: Vec<&Change> = changes.iter().filter(|change| site(&change.package).is_none()).collect();
    if !unknown.is_empty() {
        return Err(others_first(&chosen, unknown));
    }
    let mut parts = Vec::with_capacity(changes.len());
    for change in &changes {
        let (root, own) = site(&change.package).expect("all are known");
        let (package, version) = (change.package.clone(), Some(change.to.clone()));
        let chosen = catalogue.choose(&cutover_repo::Wanted { package, version, ..wanted.clone() })?;
        must_be_allowed(&chosen, own)?;
        let both = [settings, own];
        let demands = if own.trust_policy == settings.trust_policy { &both[..1] } else { &both[..] };
        let (release, manifest, objects) =
            verified(&repository, &mut catalogue, &chosen, &metadata, root, demands, context)?;
        if !own.trust_policy.crl.is_empty() {
            // Its own lists count too.
            let lists = trust::revocation_lists(&own.trust_policy)?;
            let (limits, mut bytes) = (Limits::default(), Vec::new());
            manifest
                .copy_to(&mut bytes)
                .map_err(|source| Failure::io("read the manifest kept in", &repository.place, source))?;
            cutover_bundle::verify_signature(
                &bytes,
                release.signature_bytes(),
                &repository.anchor,
                &lists,
                context.now,
                &limits,
            )
            .map_err(|error| Failure::about(error, format!("refused {change}")))?;
        }
        let speeds = repository.source.fetcher().learned().unwrap_or_default();
        let source = repository_source(from, settings, speeds)?;
        let payload = FetchedPayload::new(release, manifest, objects, source, Arc::new(Unwatched));
        parts.push(Fetched {
            payload,
            is_on_the_way: false,
            entry: chosen.entry,
            aside: None,
            anchor: trust::anchor()?,
            lists: repository.lists.clone(),
        });
    }
    let Repository { source, state, aside, .. } = repository;
    keep_speeds(source.as_ref(), &state);
    let aside = aside.map(|directory| Aside { state, _directory: directory });
    Ok(Some(Together { parts, changes, holds_after, present: present.packages, aside }))
}

/// Whether a root may hold this release, as its own settings say.
fn must_be_allowed(chosen: &Chosen, own: &Settings) -> Result<(), Failure> {
    let refused = |message: String| Err(Failure::new(Exit::Policy, message));
    if let Some(only) = own.package.name.as_ref().filter(|only| **only != chosen.package) {
        return refused(format!("`package.name` allows `{only}` only, and not `{}`", chosen.package));
    }
    let allowed = &own.trust_policy.channels;
    if !allowed.is_empty() && !allowed.contains(&chosen.channel) {
        return refused(format!(
            "`trust-policy.channels` of the root of {} does not allow `{}`",
            chosen.package, chosen.channel
        ));
    }
    Ok(())
}

/// Fetches a small object whole.
///
/// # Errors
/// It cannot be had, or is not what the index and the manifest say.
fn fetch_object(source: &dyn Fetch, object: &ObjectEntry, stored: Digest) -> Result<Vec<u8>, Failure> {
    let path = object_path(stored);
    let bytes =
        source.fetch(&path, object.stored_size).map_err(|source| ClientError::Fetch { path, source })?;
    let mut content = Vec::new();
    decode_object(object, bytes.as_slice(), &mut content)?;
    Ok(content)
}

impl Fetched {
    /// Runs `work`, which executes the plan, while what the plan takes from the release is fetched: by a delta from what is
    /// installed where that is less, else each object. Returns what became of `work`, and why something could not be fetched.
    ///
    /// # Errors
    /// Nothing can be fetched; then nothing was run.
    pub(super) fn while_fetching<T>(
        &self,
        site: &Site,
        plan: &Plan,
        installed: Option<&ReleaseRef>,
        downloads: Arc<Downloads>,
        context: &Context,
        work: impl FnOnce() -> T,
    ) -> Result<(T, Option<FetchError>), Failure> {
        if let Some(aside) = &self.aside {
            aside.settle(&site.root)?;
        }
        self.payload.attach(downloads);
        let mut needed = needed(plan);
        let in_full: u64 = needed
            .iter()
            .filter_map(|digest| self.payload.wanted(*digest))
            .map(|wanted| wanted.size_bytes)
            .sum();
        if let Some(made) = self.fetch_delta(&site.root, installed, in_full, context) {
            needed.retain(|digest| !made.contains(digest));
        }
        let mut wanted = Vec::with_capacity(needed.len());
        wanted.extend(needed.iter().filter_map(|digest| self.payload.wanted(*digest)).cloned());
        drop(needed);
        let fetched = self.payload.while_fetching(&wanted, work);
        if let Ok(state) = StateDirectory::open(&site.root.join(".cutover/trusted")) {
            keep_speeds(self.payload.source(), &state);
        }
        output::note(format!(
            "fetched {}; all that is new is {}",
            output::bytes(self.payload.fetched_bytes()),
            output::bytes(in_full)
        ));
        Ok(fetched)
    }

    /// Fetches and verifies the delta that leads from the installed release, if there is one and it is smaller; the contents
    /// that it makes. Whatever is wrong with it, there is another way.
    fn fetch_delta(
        &self,
        root: &Path,
        installed: Option<&ReleaseRef>,
        in_full: u64,
        context: &Context,
    ) -> Option<BTreeSet<Digest>> {
        let delta = self.entry.deltas.iter().find(|delta| Some(&delta.from) == installed)?;
        if delta.bundle.size >= in_full {
            return None;
        }
        let (digest, size_bytes) = (delta.bundle.sha256, delta.bundle.size);
        let used = || -> Result<BTreeSet<Digest>, Failure> {
            let path = RelativePath::new(&delta_path(digest))?;
            self.payload.fetch(&[Wanted { path, digest, size_bytes, priority: Priority::default() }])?;
            let path = root.join(Downloads::path(digest));
            let file = File::open(&path).map_err(|source| Failure::io("open", &path, source))?;
            let delta = DeltaBundle::open(file, &Limits::default())?;
            let delta = delta.verify(&self.anchor, &self.lists, context.now)?;
            let parts = delta.delta();
            let made = parts.files.iter().map(|file| file.target_sha256);
            let made = made.chain(parts.objects.iter().map(|object| object.sha256)).collect();
            if self.payload.use_delta(delta, DeltaLimits::default()) {
                Ok(made)
            } else {
                Err(Failure::new(Exit::NotTrusted, "the delta leads to another release"))
            }
        };
        match used() {
            Ok(made) => Some(made),
            Err(failure) => {
                output::note(format!(
                    "warning: the delta is not used: {}",
                    output::printable(&failure.to_string())
                ));
                None
            }
        }
    }

    /// Removes the downloads: the release is installed.
    pub(super) fn finish(&self) {
        if let Err(error) = self.payload.clear_downloads() {
            output::note(format!("warning: downloads stay: {error}"));
        }
    }
}

/// Where a root keeps what is fetched for it. Only one at a time may use it.
///
/// # Errors
/// Another process does, or it cannot be made.
pub(super) fn downloads(root: &Path) -> Result<Arc<Downloads>, Failure> {
    let disk = RealDisk::open(root).map_err(|source| Failure::io("open the root", root, source))?;
    Ok(Arc::new(Downloads::open(Arc::new(disk))?))
}

/// The contents that a plan takes from the release.
fn needed(plan: &Plan) -> BTreeSet<Digest> {
    let mut needed = BTreeSet::new();
    for step in &plan.steps {
        if let Step::Stage(stage) = step {
            let files = stage.files.iter().filter(|file| file.source == FileSource::Bundle);
            needed.extend(files.map(|file| file.sha256));
        }
    }
    needed
}
