//! Manifests that are read, and manifests that are refused.

use std::collections::BTreeMap;

use super::*;
use crate::model::{Constraint, Digest, PathError, Version};

fn file(path: &str, content: &[u8]) -> FileEntry {
    FileEntry {
        path: path.parse().expect(path),
        kind: FileKind::Data,
        mode: FileMode::new(0o644).expect("a mode"),
        sha256: Digest::of(content),
        size: content.len() as u64,
    }
}

fn manifest() -> Manifest {
    let contents: [&[u8]; 6] = [b"one", b"two", b"three", b"four", b"five", b"a bill"];
    let mut offset = 0;
    let objects = contents
        .iter()
        .map(|content| {
            let size = content.len() as u64;
            offset += size;
            ObjectEntry {
                sha256: Digest::of(content),
                size,
                stored_size: size,
                encoding: Encoding::Raw,
                offset: offset - size,
            }
        })
        .collect();
    let paths = ["z/one", "bin/two", "three", "lib/four", "five"];
    Manifest {
        format: MANIFEST_FORMAT,
        package: "db".parse().expect("a name"),
        version: Version::new(1, 2, 3),
        platform: "linux-x86_64".parse().expect("a name"),
        channel: "stable".parse().expect("a name"),
        released_at: "2026-01-02T03:04:05Z".parse().expect("a time"),
        priority: Priority::Critical,
        min_upgrade_from: Some(Version::new(1, 0, 0)),
        build: Some(BuildInfo {
            commit: Some("0".repeat(40)),
            date: None,
            toolchain: Some("rustc 1.95.0".to_owned()),
        }),
        requires: vec![Requirement {
            package: "storage".parse().expect("a name"),
            constraint: ">=1.4.0".parse().expect("a constraint"),
            optional: true,
        }],
        conflicts: vec![Conflict {
            package: "old-db".parse().expect("a name"),
            constraint: Constraint::default(),
        }],
        files: paths.iter().zip(contents).map(|(path, content)| file(path, content)).collect(),
        symlinks: vec![Symlink {
            path: "bin/alias".parse().expect("a path"),
            target: "../lib/four".to_owned(),
        }],
        shared: vec!["etc/db.conf".parse().expect("a path"), "three".parse().expect("a path")],
        objects,
        documents: vec![Document {
            kind: DocumentKind::Sbom,
            media_type: "application/vnd.cyclonedx+json".to_owned(),
            sha256: Digest::of(b"a bill"),
            size: 6,
        }],
        schema: Some(Schema { version: 7, migrations: vec!["five".parse().expect("a path")] }),
        service: Some(ServiceHints {
            command: vec!["bin/two".to_owned(), "--flag".to_owned()],
            listen: vec![
                "tcp:127.0.0.1:80".parse().expect("an address"),
                "unix:/run/db.sock".parse().expect("an address"),
            ],
            ready: Ready::Notify,
            ready_timeout_s: Some(10),
            drain_timeout_s: None,
            env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        }),
        notes: Some("Faster.".to_owned()),
    }
}

fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    Manifest::parse(bytes, &ManifestLimits::default())
}

/// The manifest's JSON after `edit`.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest, ManifestError> {
    let mut json = serde_json::to_value(manifest()).expect("a manifest is JSON");
    edit(&mut json);
    parse(&serde_json::to_vec(&json).expect("JSON"))
}

// M1, M13
#[test]
fn full_manifest_round_trips_and_keeps_file_order() {
    let parsed = parse(&manifest().to_bytes().expect("valid")).expect("valid");
    assert_eq!(parsed, manifest());
    let paths: Vec<_> = parsed.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["z/one", "bin/two", "three", "lib/four", "five"]);
}

// M2, M3
#[test]
fn manifest_hash_is_stable_and_depends_on_the_version() {
    let hash = |manifest: &Manifest| Digest::of(&manifest.to_bytes().expect("valid"));
    assert_eq!(hash(&manifest()), hash(&manifest()));
    assert_eq!(hash(&manifest()).to_string().len(), 64);
    assert_ne!(hash(&manifest()), hash(&Manifest { version: Version::new(1, 2, 4), ..manifest() }));
}

// M6
#[test]
fn file_entry_without_hash_or_size_is_refused() {
    for field in ["sha256", "size", "mode", "kind"] {
        let result = edited(|json| drop(json["files"][0].as_object_mut().expect("a file").remove(field)));
        assert!(matches!(result, Err(ManifestError::Syntax(reason)) if reason.contains(field)), "{field}");
    }
}

// M11
#[test]
fn path_listed_twice_is_refused_also_by_case() {
    for path in ["bin/two", "BIN/two", "bin/TWO", "bin/alias", "lib"] {
        let result = edited(|json| json["files"][0]["path"] = path.into());
        assert!(
            matches!(result, Err(ManifestError::Path(PathError::Collision { .. }))),
            "{path}: {result:?}"
        );
    }
}

// M12
#[test]
fn unknown_format_is_unsupported_before_its_fields_are_read() {
    let result = parse(br#"{"format": 2, "whatever": true}"#);
    assert_eq!(result, Err(ManifestError::Format(2)));
    assert!(ManifestError::Format(2).to_string().contains("unsupported"));
    assert_eq!(parse(b"{}"), Err(ManifestError::Format(0)));
}

#[test]
fn unknown_fields_and_values_are_refused_by_name() {
    for (result, word) in [
        (edited(|json| json["surprise"] = 1.into()), "surprise"),
        (edited(|json| json["files"][0]["surprise"] = 1.into()), "surprise"),
        (edited(|json| json["priority"] = "urgent".into()), "urgent"),
        (edited(|json| json["files"][0]["kind"] = "device".into()), "device"),
        (edited(|json| json["files"][0]["mode"] = "4755".into()), "0777"),
    ] {
        assert!(
            matches!(&result, Err(ManifestError::Syntax(reason)) if reason.contains(word)),
            "{word}: {result:?}"
        );
    }
    assert!(parse(br#"{"format":1,"format":1}"#).is_err(), "a field given twice");
}

// P1, P2, P3, P5
#[test]
fn hostile_path_anywhere_refuses_the_manifest() {
    for path in [
        "../outside",
        "/etc/passwd",
        "",
        "a/../../b",
        "a\\..\\b",
        "a\0b",
        "C:\\x",
        "a/",
        ".",
        ".cutover/lock",
    ] {
        assert!(edited(|json| json["files"][0]["path"] = path.into()).is_err(), "file {path:?}");
        assert!(edited(|json| json["symlinks"][0]["path"] = path.into()).is_err(), "symlink {path:?}");
        assert!(edited(|json| json["shared"][0] = path.into()).is_err(), "shared {path:?}");
        assert!(edited(|json| json["schema"]["migrations"][0] = path.into()).is_err(), "migration {path:?}");
    }
}

#[test]
fn documents_are_one_of_each_kind_with_its_media_type_and_an_object() {
    type Edit = (&'static str, fn(&mut serde_json::Value));
    let edits: [Edit; 7] = [
        ("two documents", |json| {
            let first = json["documents"][0].clone();
            json["documents"].as_array_mut().expect("a list").push(first);
        }),
        ("media type", |json| json["documents"][0]["media_type"] = "text/xml".into()),
        ("has no object", |json| json["documents"][0]["sha256"] = Digest::of(b"x").to_string().into()),
        ("but its object has 6", |json| json["documents"][0]["size"] = 7.into()),
        ("bytes in a document", |json| json["documents"][0]["size"] = (17 << 20).into()),
        ("surprise", |json| json["documents"][0]["surprise"] = 1.into()),
        ("belongs to no file", |json| drop(json.as_object_mut().expect("one").remove("documents"))),
    ];
    for (word, edit) in edits {
        let error = edited(edit).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(edited(|json| json["documents"][0]["kind"] = "licence".into()).is_err());
    assert_eq!(manifest().document(DocumentKind::Provenance), None);
    assert_eq!(manifest().document(DocumentKind::Sbom).map(|document| document.size), Some(6));
}

#[test]
fn symlink_that_leaves_the_release_is_refused() {
    for target in ["../../x", "/etc/passwd", "", "x/../../..", "x/../y", "a//b", "a\0", "../.."] {
        let result = edited(|json| json["symlinks"][0]["target"] = target.into());
        assert!(matches!(result, Err(ManifestError::SymlinkTarget { .. })), "{target:?}: {result:?}");
    }
    for target in ["../x", "x", "x/y", ".."] {
        edited(|json| json["symlinks"][0]["target"] = target.into()).expect(target);
    }
}

#[test]
fn contradicting_sizes_offsets_and_objects_are_refused() {
    type Edit = (&'static str, fn(&mut serde_json::Value));
    let edits: [Edit; 8] = [
        ("file size", |json| json["files"][0]["size"] = 4.into()),
        ("object size", |json| json["objects"][0]["size"] = 4.into()),
        ("offset gap", |json| json["objects"][1]["offset"] = 4.into()),
        ("overflow", |json| json["objects"][0]["stored_size"] = u64::MAX.into()),
        ("2^63", |json| json["objects"][4]["stored_size"] = (1u64 << 63).into()),
        ("unknown object", |json| json["files"][0]["sha256"] = Digest::of(b"other").to_string().into()),
        ("program", |json| json["service"]["command"][0] = "bin/none".into()),
        ("migration", |json| json["schema"]["migrations"][0] = "none".into()),
    ];
    for (name, edit) in edits {
        assert!(matches!(edited(edit), Err(ManifestError::Inconsistent(_))), "{name}");
    }
}

#[test]
fn limits_are_checked_before_the_manifest_is_believed() {
    let bytes = manifest().to_bytes().expect("valid");
    let with = |limits: ManifestLimits| Manifest::parse(&bytes, &limits).expect_err("over the limit");
    let limits = ManifestLimits::default();
    assert!(matches!(
        with(ManifestLimits { bytes_max: 100, ..limits }),
        ManifestError::TooLarge { limit: 100, .. }
    ));
    assert!(matches!(
        with(ManifestLimits { entries_max: 7, ..limits }),
        ManifestError::Limit { what: "entries", .. }
    ));
    assert!(matches!(
        with(ManifestLimits { file_bytes_max: 4, ..limits }),
        ManifestError::Limit { what: "bytes in one file", .. }
    ));
    assert!(matches!(
        with(ManifestLimits { total_bytes_max: 18, ..limits }),
        ManifestError::Limit { what: "bytes", .. }
    ));
}
