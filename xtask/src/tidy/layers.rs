//! Which crate may use which: the layering and the dependency allow-lists, against `cargo metadata`.
//!
//! The table [`LAYERS`] is the rule; a workspace member without a row is a finding, so that a new crate has to say
//! where it stands.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use super::Finding;

/// Where one workspace crate stands.
struct Layer {
    package: &'static str,
    /// The workspace crates it may use. Crates of one level are strangers; edges point down.
    may_use: &'static [&'static str],
    /// All it may depend on from outside, where the list itself is the point.
    outside: Outside,
}

enum Outside {
    Anything,
    Only { normal: &'static [&'static str], dev: &'static [&'static str] },
}

const LAYERS: &[Layer] = &[
    Layer {
        package: "cutover-core",
        may_use: &[],
        outside: Outside::Only {
            normal: &[
                "jiff",
                "pubgrub",
                "semver",
                "serde",
                "serde_json",
                "sha2",
                "thiserror",
                "unicode-normalization",
            ],
            dev: &["proptest"],
        },
    },
    Layer {
        package: "cutover-bundle",
        may_use: &["cutover-core"],
        outside: Outside::Only {
            normal: &[
                "aws-lc-rs",
                // Host keys in PEM; signed notes of the transparency log.
                "base64ct",
                // BSDIFF40's three streams.
                "bzip2",
                "cms",
                "const-oid",
                "cryptoki",
                "der",
                // xdelta3's secondary compression and refdelta's streams.
                "liblzma",
                // The suffix array of delta generators; no decoder uses it.
                "libsais",
                "rcgen",
                "rustls-pki-types",
                "rustls-webpki",
                "serde",
                "serde_json",
                "sha2",
                "spki",
                "thiserror",
                "x509-cert",
                "zeroize",
                "zstd",
            ],
            dev: &["proptest", "rcgen", "tempfile"],
        },
    },
    Layer {
        package: "cutover-host",
        may_use: &["cutover-core", "cutover-bundle"],
        outside: Outside::Anything,
    },
    Layer { package: "cutover-migrate", may_use: &["cutover-core"], outside: Outside::Anything },
    Layer {
        package: "cutover-repo",
        may_use: &["cutover-core", "cutover-bundle"],
        outside: Outside::Only {
            normal: &[
                "aws-lc-rs",
                // The signature in the bootstrap file.
                "base64ct",
                // Keys in PEM.
                "der",
                "rustix",
                "rustls-pki-types",
                "serde",
                "serde_json",
                "thiserror",
                "tracing",
                "zeroize",
            ],
            // The conformance client fetches over HTTP.
            dev: &["reqwest", "tempfile"],
        },
    },
    Layer { package: "cutover-s3", may_use: &["cutover-repo"], outside: Outside::Anything },
    Layer {
        package: "cutover-server",
        may_use: &["cutover-core", "cutover-bundle", "cutover-host", "cutover-repo"],
        outside: Outside::Anything,
    },
    Layer {
        package: "cutover",
        may_use: &[
            "cutover-core",
            "cutover-bundle",
            "cutover-host",
            "cutover-migrate",
            "cutover-repo",
            "cutover-s3",
            "cutover-server",
        ],
        outside: Outside::Anything,
    },
    Layer {
        package: "cutover-sim",
        may_use: &["cutover-core", "cutover-bundle", "cutover-host", "cutover-repo"],
        outside: Outside::Anything,
    },
    // It drives the real binary, so it needs none of the crates.
    Layer { package: "xtask", may_use: &[], outside: Outside::Anything },
];

/// Checks every workspace member's manifest.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let metadata =
        MetadataCommand::new().current_dir(root).no_deps().exec().context("failed to run cargo metadata")?;
    let members = metadata.workspace_packages();
    let names: Vec<&str> = members.iter().map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in &members {
        let file = package.manifest_path.strip_prefix(root).unwrap_or(&package.manifest_path);
        let findings_of = |uses: &[Use]| judge(package.name.as_str(), uses, &names);
        for says in findings_of(&uses_of(package)) {
            findings.push(Finding::new(file.as_std_path(), 0, says));
        }
        let text = std::fs::read_to_string(&package.manifest_path)?;
        if !inherits_lints(&text)? {
            findings.push(Finding::new(file.as_std_path(), 0, "add `[lints] workspace = true`"));
        }
    }
    Ok(findings)
}

struct Use {
    name: String,
    kind: DependencyKind,
}

fn uses_of(package: &Package) -> Vec<Use> {
    let uses = package.dependencies.iter();
    uses.map(|dependency| Use { name: dependency.name.clone(), kind: dependency.kind }).collect()
}

fn judge(package: &str, uses: &[Use], members: &[&str]) -> Vec<String> {
    let Some(layer) = LAYERS.iter().find(|layer| layer.package == package) else {
        return vec![format!(
            "`{package}` has no row in xtask/src/tidy/layers.rs: say which crates it may use"
        )];
    };
    let mut findings = Vec::new();
    for Use { name, kind } in uses {
        if members.contains(&name.as_str()) {
            if !layer.may_use.contains(&name.as_str()) {
                findings
                    .push(format!("`{package}` must not use `{name}`: edges point down (ARCHITECTURE.md)"));
            }
            continue;
        }
        let Outside::Only { normal, dev } = &layer.outside else { continue };
        let allowed = match kind {
            DependencyKind::Development => dev.contains(&name.as_str()),
            _ => normal.contains(&name.as_str()),
        };
        if !allowed {
            findings.push(format!(
                "`{package}` must not depend on `{name}`: not on its allow-list in xtask/src/tidy/layers.rs"
            ));
        }
    }
    findings
}

fn inherits_lints(manifest: &str) -> Result<bool> {
    let manifest: toml::Table = toml::from_str(manifest)?;
    let inherited = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    Ok(inherited.and_then(toml::Value::as_bool) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: &[&str] = &[
        "cutover-core",
        "cutover-bundle",
        "cutover-host",
        "cutover-repo",
        "cutover-server",
        "cutover",
        "cutover-sim",
        "xtask",
    ];

    fn of(name: &str, kind: DependencyKind) -> Vec<Use> {
        vec![Use { name: name.to_owned(), kind }]
    }

    #[test]
    fn an_edge_that_points_up_is_a_finding_even_for_tests() {
        for kind in [DependencyKind::Normal, DependencyKind::Development] {
            assert_eq!(judge("cutover-bundle", &of("cutover-host", kind), MEMBERS).len(), 1);
            assert_eq!(judge("cutover-host", &of("cutover-sim", kind), MEMBERS).len(), 1);
            assert_eq!(judge("cutover-repo", &of("cutover-host", kind), MEMBERS).len(), 1);
            assert_eq!(judge("cutover", &of("cutover-host", kind), MEMBERS), Vec::<String>::new());
        }
    }

    #[test]
    fn a_dependency_outside_the_allow_list_is_a_finding() {
        assert_eq!(judge("cutover-core", &of("rand", DependencyKind::Normal), MEMBERS).len(), 1);
        assert_eq!(judge("cutover-core", &of("proptest", DependencyKind::Normal), MEMBERS).len(), 1);
        assert_eq!(judge("cutover-core", &of("proptest", DependencyKind::Development), MEMBERS).len(), 0);
        assert_eq!(judge("cutover-core", &of("semver", DependencyKind::Normal), MEMBERS).len(), 0);
    }

    #[test]
    fn a_member_without_a_row_is_a_finding() {
        assert_eq!(judge("cutover-new", &[], MEMBERS).len(), 1);
    }

    #[test]
    fn a_manifest_without_the_workspace_lints_is_noticed() {
        assert!(inherits_lints("[lints]\nworkspace = true\n").unwrap());
        assert!(!inherits_lints("[package]\nname = 'x'\n").unwrap());
    }
}
