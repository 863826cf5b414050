//! What is current, as the switch itself says (decision 0003), and the manifests that were stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::{
    model::{Digest, Manifest, ManifestLimits, ReleaseName, ReleaseRef, SafePath, Version},
    plan::Layout,
};
use serde::{Deserialize, Serialize};

use super::{
    error::NodeError,
    files::{Attempt as _, Files},
    place,
};
use crate::{
    disk::{Disk, EntryKind},
    nice::Nice,
};

/// `.cutover/layout`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutFile {
    format: u32,
    layout: Layout,
}

/// The layout a root was given at its first use.
pub(crate) fn layout(files: &Files) -> Result<Option<Layout>, NodeError> {
    let path = place::LAYOUT;
    let Some(bytes) = files.read(path.as_ref())? else { return Ok(None) };
    let parsed: LayoutFile = serde_json::from_slice(&bytes).map_err(|error| damaged(path, error))?;
    if parsed.format != 1 {
        return Err(damaged(path, format!("format {} is unknown to this program", parsed.format)));
    }
    Ok(Some(parsed.layout))
}

/// Fixes the layout of a root.
pub(crate) fn set_layout(files: &Files, layout: Layout) -> Result<(), NodeError> {
    let mut bytes =
        serde_json::to_vec(&LayoutFile { format: 1, layout }).expect("plain values always serialise");
    bytes.push(b'\n');
    Ok(files.replace(place::LAYOUT.as_ref(), &bytes, 0o600)?)
}

pub(crate) fn damaged(path: impl AsRef<Path>, problem: impl ToString) -> NodeError {
    NodeError::Damaged { path: path.as_ref().display().to_string(), problem: problem.to_string() }
}

/// What is current in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InPlace {
    /// The release.
    pub(crate) release: Option<ReleaseRef>,
    /// Directories that releases made; those that become empty are removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) directories: BTreeSet<SafePath>,
}

/// The state of an in-place root.
pub(crate) fn in_place(files: &Files) -> Result<InPlace, NodeError> {
    match files.read(place::CURRENT_IN_PLACE.as_ref())? {
        None => Ok(InPlace { release: None, directories: BTreeSet::new() }),
        Some(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| damaged(place::CURRENT_IN_PLACE, error))
        }
    }
}

/// Makes `state` that of an in-place root, durably.
pub(crate) fn set_in_place(files: &Files, state: &InPlace) -> Result<(), NodeError> {
    let mut bytes = serde_json::to_vec(state).expect("plain values always serialise");
    bytes.push(b'\n');
    Ok(files.replace(place::CURRENT_IN_PLACE.as_ref(), &bytes, 0o600)?)
}

/// The content of a tree's marker file.
pub(crate) fn marker_bytes(release: &ReleaseRef) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(release).expect("plain values always serialise");
    bytes.push(b'\n');
    bytes
}

/// The release whose tree lies at `tree`; `None` when there is no such directory.
pub(crate) fn marked(files: &Files, tree: &Path) -> Result<Option<ReleaseRef>, NodeError> {
    let path = tree.join(place::MARKER);
    match files.read(&path)? {
        Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, error)),
        None if files.exists(tree)? => {
            Err(damaged(path, "it is missing, so nobody can tell which release this is"))
        }
        None => Ok(None),
    }
}

/// The release that is current.
pub(crate) fn release(files: &Files, layout: Layout) -> Result<Option<ReleaseRef>, NodeError> {
    match layout {
        Layout::Versioned => {
            let Some(tree) = linked(files)? else { return Ok(None) };
            let release = marked(files, &tree)?.ok_or_else(|| {
                damaged(place::CURRENT, format!("it leads to `{}`, which is gone", tree.display()))
            })?;
            if place::release(&release.name()) != tree {
                return Err(damaged(
                    tree.join(place::MARKER),
                    format!("it names {release} instead of its own tree"),
                ));
            }
            Ok(Some(release))
        }
        Layout::Exchange => marked(files, place::CURRENT.as_ref()),
        Layout::InPlace => Ok(in_place(files)?.release),
    }
}

/// The tree the `current` link leads to; `None` when there is no link.
pub(crate) fn linked(files: &Files) -> Result<Option<PathBuf>, NodeError> {
    let path = Path::new(place::CURRENT);
    match files.metadata(path)?.map(|metadata| metadata.kind) {
        None => Ok(None),
        Some(EntryKind::Symlink) => {
            let target = files.disk.read_link(path).attempt("read link", path)?;
            let name = target.strip_prefix(place::RELEASES).and_then(|rest| rest.strip_prefix('/'));
            match name.and_then(|name| name.parse().ok()) {
                Some(name) => Ok(Some(place::release(&name))),
                None => Err(damaged(
                    path,
                    format!("it leads to `{}`, which is no release", target.escape_default()),
                )),
            }
        }
        Some(_) => Err(damaged(path, "it is not a symbolic link")),
    }
}

/// Where the current release's files lie, relative to the root.
pub(crate) fn tree(layout: Layout, release: &ReleaseRef) -> PathBuf {
    match layout {
        Layout::Versioned => place::release(&release.name()),
        Layout::Exchange => place::CURRENT.into(),
        Layout::InPlace => PathBuf::new(),
    }
}

/// Reads a stored manifest, checking its digest.
pub(crate) fn manifest(files: &Files, digest: Digest) -> Result<Option<Arc<Manifest>>, NodeError> {
    let path = place::manifest(digest);
    let altered = || damaged(&path, "its digest is not its name");
    if let Some(known) = files.manifests.get(digest) {
        return match files.digest(&path)? {
            None => Ok(None),
            Some(found) if found == digest => Ok(Some(known)),
            Some(_) => Err(altered()),
        };
    }
    let limits = ManifestLimits::default();
    // Not two at once, if it can be helped.
    files.manifests.let_go();
    if let Some(manifest) = files.read_large_json::<Manifest>(&path, digest)?
        && manifest.check(&limits).is_ok()
    {
        let manifest = Arc::new(manifest);
        files.manifests.know(digest, &manifest);
        return Ok(Some(manifest));
    }
    let Some(bytes) = files.read(&path)? else { return Ok(None) };
    if Digest::of(&bytes) != digest {
        return Err(altered());
    }
    let parse = || Manifest::parse(&bytes, &limits);
    match files.manifests.get_or(digest, parse) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(source) => Err(NodeError::Manifest { path: path.display().to_string(), source }),
    }
}

/// Checks the digest of a stored manifest, if there is one.
pub(crate) fn check_manifest(files: &Files, digest: Digest) -> Result<(), NodeError> {
    let path = place::manifest(digest);
    match files.digest(&path)? {
        Some(found) if found != digest => Err(damaged(&path, "its digest is not its name")),
        Some(_) | None => Ok(()),
    }
}

/// Reads the stored manifest of a release that cannot do without it.
pub(crate) fn manifest_of(files: &Files, release: &ReleaseRef) -> Result<Arc<Manifest>, NodeError> {
    manifest(files, release.manifest)?.ok_or_else(|| {
        damaged(place::manifest(release.manifest), format!("it is missing, {release} needs it"))
    })
}

/// The release whose manifest is stored at a root and says that it was built from a commit: the digest of that manifest; of
/// several the newest version's. Takes no lock.
///
/// # Errors
/// The root cannot be looked into.
pub fn release_built_from(disk: Arc<dyn Disk>, commit: &str) -> Result<Option<Digest>, NodeError> {
    let files = Files::new(disk, NonZeroUsize::MIN, Nice::NONE);
    let mut newest: Option<(Version, Digest)> = None;
    for digest in manifests(&files)? {
        // One that is damaged, or just being removed, is one that says nothing.
        let Ok(Some(manifest)) = manifest(&files, digest) else { continue };
        let said = manifest.build.as_ref().and_then(|build| build.commit.as_deref());
        let is_newer = newest.as_ref().is_none_or(|(version, _)| manifest.version > *version);
        if said.is_some_and(|said| said.eq_ignore_ascii_case(commit)) && is_newer {
            newest = Some((manifest.version.clone(), digest));
        }
    }
    Ok(newest.map(|(_, digest)| digest))
}

/// The digests of all stored manifests.
pub(crate) fn manifests(files: &Files) -> Result<Vec<Digest>, NodeError> {
    let listed = files.list(place::MANIFESTS.as_ref())?;
    Ok(listed.iter().filter_map(|(name, _)| name.strip_suffix(".json")?.parse().ok()).collect())
}

/// The releases this root knows, newest version first.
pub(crate) fn releases(files: &Files) -> Result<Vec<ReleaseRef>, NodeError> {
    let mut releases = Vec::new();
    for manifest in manifests(files)? {
        if let Some(parsed) = self::manifest(files, manifest)? {
            releases.push(ReleaseRef {
                package: parsed.package.clone(),
                version: parsed.version.clone(),
                manifest,
            });
        }
    }
    releases.sort_by(|a, b| b.version.cmp(&a.version).then(a.manifest.cmp(&b.manifest)));
    Ok(releases)
}

/// The trees in `releases/`, by what their markers say. A tree without a readable marker is not ours to touch.
pub(crate) fn trees(files: &Files) -> Result<BTreeMap<PathBuf, ReleaseRef>, NodeError> {
    let mut trees = BTreeMap::new();
    for (name, kind) in files.list(place::RELEASES.as_ref())? {
        let path = Path::new(place::RELEASES).join(&name);
        if kind == EntryKind::Directory
            && name.parse::<ReleaseName>().is_ok()
            && let Ok(Some(release)) = marked(files, &path)
        {
            trees.insert(path, release);
        }
    }
    Ok(trees)
}
