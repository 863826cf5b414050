//! Releases, observations and policies for tests, built from a few words.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cutover_core::{
    model::{
        Digest, Encoding, FileEntry, FileKind, FileMode, Manifest, ObjectEntry, ReleaseRef, RestorePoint,
        RestorePointId, SafePath, SeenFile, SeenKind, SeenTree, Version,
    },
    plan::{
        Copies, Installed, KeptTree, Layout, LocalChanges, Observation, OnProbeFailure, PointSeen, Policy,
    },
};

/// A path that is known to be good.
pub(crate) fn path(text: &str) -> SafePath {
    text.parse().expect(text)
}

/// One file of a test release: path, kind, content.
pub(crate) type Spec<'a> = (&'a str, FileKind, &'a str);

/// A release of package `db` with these files.
pub(crate) fn manifest(version: &str, files: &[Spec<'_>]) -> Manifest {
    let (mut objects, mut offset, mut known) = (Vec::new(), 0, BTreeSet::new());
    for (_, _, content) in files {
        let (sha256, size) = (Digest::of(content.as_bytes()), content.len() as u64);
        if known.insert(sha256) {
            objects.push(ObjectEntry { sha256, size, stored_size: size, encoding: Encoding::Raw, offset });
            offset += size;
        }
    }
    Manifest {
        files: files
            .iter()
            .map(|(path, kind, content)| FileEntry {
                path: path.parse().expect(path),
                kind: *kind,
                mode: mode(*kind),
                sha256: Digest::of(content.as_bytes()),
                size: content.len() as u64,
            })
            .collect(),
        objects,
        ..Manifest::new(
            "db".parse().expect("a name"),
            version.parse().expect(version),
            "2026-01-02T03:04:05Z".parse().expect("a time"),
        )
    }
}

fn mode(kind: FileKind) -> FileMode {
    let bits = if matches!(kind, FileKind::Executable | FileKind::Library) { 0o755 } else { 0o644 };
    FileMode::new(bits).expect("permission bits")
}

/// The reference of a manifest.
pub(crate) fn release(manifest: &Manifest) -> ReleaseRef {
    ReleaseRef {
        package: manifest.package.clone(),
        version: manifest.version.clone(),
        manifest: Digest::of(&manifest.to_bytes().expect("a valid manifest")),
    }
}

/// The tree a release leaves when it is installed undamaged.
pub(crate) fn tree(manifest: &Manifest) -> SeenTree {
    let files = manifest.files.iter().map(|file| {
        let kind = SeenKind::File { sha256: file.sha256, size: file.size };
        (
            file.path.clone(),
            SeenFile { kind, mode: file.mode.bits(), uid: 0, gid: 0, xattrs: BTreeMap::new() },
        )
    });
    let links = manifest.symlinks.iter().map(|link| {
        let kind = SeenKind::Symlink { target: link.target.clone() };
        (link.path.clone(), SeenFile { kind, mode: 0o777, uid: 0, gid: 0, xattrs: BTreeMap::new() })
    });
    files.chain(links).collect()
}

/// A root of this layout with `installed` on it, or empty.
pub(crate) fn observation(layout: Layout, installed: Option<&Manifest>) -> Observation {
    Observation {
        layout,
        next_number: 7,
        installed: installed
            .map(|manifest| Installed { release: release(manifest), manifest: Arc::new(manifest.clone()) }),
        seen: installed.map(tree).unwrap_or_default(),
        stored: BTreeSet::new(),
        packages: BTreeMap::new(),
        copies: Copies::MayShare,
    }
}

/// The default policy on a Linux host.
pub(crate) fn policy() -> Policy {
    Policy {
        platform: "linux-x86_64".parse().expect("a name"),
        on_probe_failure: OnProbeFailure::Restore,
        local_changes: LocalChanges::Refuse,
        schema: None,
        now: "2026-02-03T04:05:06Z".parse().expect("a time"),
    }
}

/// The restore point of execution `number`, which led from `from` to `to`; `added` only in place.
pub(crate) fn point(number: u64, from: &Manifest, to: &Manifest, added: &[&str]) -> PointSeen {
    PointSeen {
        point: Arc::new(RestorePoint {
            format: 1,
            id: RestorePointId::of_execution(number),
            created_at: policy().now,
            from: Some(release(from)),
            to: Some(release(to)),
            files: tree(from),
            added: added.iter().map(|text| path(text)).collect(),
            directories: Vec::new(),
        }),
        tree: KeptTree::Kept,
        manifest: Some(Arc::new(from.clone())),
    }
}

/// A version that is known to be good.
pub(crate) fn version(text: &str) -> Version {
    text.parse().expect(text)
}
