//! Documents about a release: what it is made of (CycloneDX, ECMA-424) and how it was made (in-toto statement v1 with SLSA
//! provenance v1), and what a host may demand of them.
//!
//! The signature of the release covers them, for the manifest names their digests. Here their contents are read: what they
//! say must be about this very release. Fields that these formats allow and nothing here uses are passed over, as they
//! demand of consumers. Read [`Provenance`] and [`DocumentPolicy`] first.

use std::collections::{BTreeMap, BTreeSet};

use cutover_core::model::{Digest, Document, DocumentKind, FileKind, Manifest};
use serde::Deserialize;

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// No JSON, or not the fields that are needed.
    #[error("the {} cannot be read: {reason}", kind.name())]
    Syntax {
        /// Which document.
        kind: DocumentKind,
        /// What is wrong.
        reason: String,
    },
    /// A document of another format.
    #[error("the {} is {found} and not {expected}", kind.name())]
    Format {
        /// Which document.
        kind: DocumentKind,
        /// What it says it is, escaped.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The provenance is about something else.
    #[error("the provenance is about `{subject}`, which is no file of the release")]
    ForeignSubject {
        /// Its name there, escaped.
        subject: String,
    },
    /// The content is not the one that the manifest names.
    #[error("the {} is not the one that the manifest names", kind.name())]
    Altered {
        /// Which document.
        kind: DocumentKind,
    },
}

/// What a host demands, and a release does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentDemand {
    /// There is no such document.
    #[error("it has no {}", .0.name())]
    Missing(DocumentKind),
    /// Somebody else built it.
    #[error("it was built by `{found}`, which `trust-policy.builders` does not allow")]
    Builder {
        /// Who, escaped.
        found: String,
    },
    /// It was built from something else.
    #[error("it was built from `{found}`, which `trust-policy.source_repositories` does not allow")]
    Source {
        /// From what, escaped.
        found: String,
    },
    /// Nobody says from what it was built.
    #[error("its provenance names no source repository")]
    NoSource,
    /// Nobody says how this file was made.
    #[error("its provenance says nothing about `{0}`")]
    Uncovered(String),
}

/// What of a bill of materials is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sbom {
    /// The version of CycloneDX, such as `1.6`.
    pub spec_version: String,
    /// Its own name (a `urn:uuid:`), if it has one.
    pub serial_number: Option<String>,
    /// How many components it lists at its top.
    pub components: usize,
}

/// How a release was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Who built it: `predicate.runDetails.builder.id`.
    pub builder: String,
    /// What the parameters of the build mean.
    pub build_type: String,
    /// The repositories it was built from, without `git+`, revision and `.git`; sorted.
    pub sources: Vec<String>,
    /// What was built, by the names given there.
    pub subjects: Vec<(String, Digest)>,
}

/// What a host demands of a release's documents. It can only refuse more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentPolicy {
    /// A bill of materials.
    pub require_sbom: bool,
    /// Provenance that names every program and library of the release.
    pub require_provenance: bool,
    /// The builders that may have built it. Empty: any.
    pub builders: Vec<String>,
    /// The repositories that it may be built from. Empty: any.
    pub source_repositories: Vec<String>,
}

/// A text of a document in a message: escaped and short.
fn quoted(text: &str) -> String {
    text.chars().take(160).flat_map(char::escape_default).collect()
}

fn read<'b, T: Deserialize<'b>>(kind: DocumentKind, bytes: &'b [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes)
        .map_err(|error| DocumentError::Syntax { kind, reason: quoted(&error.to_string()) })
}

impl Sbom {
    /// Reads a CycloneDX document in JSON, version 1.2 or a later one of the 1 series.
    ///
    /// # Errors
    /// [`DocumentError::Syntax`], [`DocumentError::Format`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Bom {
            #[serde(default)]
            bom_format: String,
            #[serde(default)]
            spec_version: String,
            serial_number: Option<String>,
            #[serde(default)]
            components: Vec<serde::de::IgnoredAny>,
        }
        let kind = DocumentKind::Sbom;
        let bom: Bom = read(kind, bytes)?;
        let expected = "CycloneDX 1.2 or later";
        let minor = bom.spec_version.strip_prefix("1.").and_then(|minor| minor.parse::<u8>().ok());
        if bom.bom_format != "CycloneDX" || minor.is_none_or(|minor| minor < 2) {
            let found = quoted(&format!("`{} {}`", bom.bom_format, bom.spec_version));
            return Err(DocumentError::Format { kind, found, expected });
        }
        Ok(Self {
            spec_version: bom.spec_version,
            serial_number: bom.serial_number,
            components: bom.components.len(),
        })
    }
}

/// The type of an in-toto statement.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of SLSA provenance.
const PROVENANCE: &str = "https://slsa.dev/provenance/v1";

impl Provenance {
    /// Reads an in-toto statement with SLSA provenance.
    ///
    /// # Errors
    /// [`DocumentError::Syntax`], [`DocumentError::Format`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Types {
            #[serde(default, rename = "_type")]
            statement: String,
            #[serde(default)]
            predicate_type: String,
        }
        #[derive(Deserialize)]
        struct Statement {
            subject: Vec<Resource>,
            predicate: Predicate,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Predicate {
            build_definition: BuildDefinition,
            run_details: RunDetails,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct BuildDefinition {
            build_type: String,
            #[serde(default)]
            external_parameters: serde_json::Value,
            #[serde(default)]
            resolved_dependencies: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct RunDetails {
            builder: Builder,
        }
        #[derive(Deserialize)]
        struct Builder {
            id: String,
        }
        /// A resource descriptor of in-toto.
        #[derive(Deserialize)]
        struct Resource {
            #[serde(default)]
            name: String,
            #[serde(default)]
            uri: String,
            #[serde(default)]
            digest: BTreeMap<String, String>,
        }
        let kind = DocumentKind::Provenance;
        let types: Types = read(kind, bytes)?;
        for (found, expected) in [(&types.statement, STATEMENT), (&types.predicate_type, PROVENANCE)] {
            if found != expected {
                return Err(DocumentError::Format { kind, found: format!("`{}`", quoted(found)), expected });
            }
        }
        let statement: Statement = read(kind, bytes)?;
        let syntax = |reason: String| DocumentError::Syntax { kind, reason };
        let mut subjects = Vec::new();
        for subject in &statement.subject {
            let digest = subject.digest.get("sha256").and_then(|digest| digest.parse().ok());
            let digest = digest
                .ok_or_else(|| syntax(format!("subject `{}` has no SHA-256", quoted(&subject.name))))?;
            subjects.push((subject.name.clone(), digest));
        }
        if subjects.is_empty() {
            return Err(syntax("it has no subject".to_owned()));
        }
        let build = statement.predicate.build_definition;
        // Where the builders of GitHub name the repository of the workflow
        // (https://actions.github.io/buildtypes/workflow/v1).
        let workflow =
            build.external_parameters.pointer("/workflow/repository").and_then(|value| value.as_str());
        let dependencies = build.resolved_dependencies.iter().filter_map(|one| one.uri.strip_prefix("git+"));
        let sources: BTreeSet<String> = workflow.into_iter().chain(dependencies).map(repository).collect();
        Ok(Self {
            builder: statement.predicate.run_details.builder.id,
            build_type: build.build_type,
            sources: sources.into_iter().collect(),
            subjects,
        })
    }

    /// Whether all of it is about files of this release.
    ///
    /// # Errors
    /// [`DocumentError::ForeignSubject`].
    pub fn check_subjects(&self, manifest: &Manifest) -> Result<(), DocumentError> {
        let files: BTreeSet<Digest> = manifest.files.iter().map(|file| file.sha256).collect();
        match self.subjects.iter().find(|(_, digest)| !files.contains(digest)) {
            Some((name, _)) => Err(DocumentError::ForeignSubject { subject: quoted(name) }),
            None => Ok(()),
        }
    }
}

/// A repository without `git+` in front, and `@REVISION`, `#FRAGMENT`, `.git` and `/` behind.
fn repository(uri: &str) -> String {
    let uri = uri.strip_prefix("git+").unwrap_or(uri);
    let uri = uri.split('#').next().unwrap_or(uri);
    // The `@` of a user stands before the path.
    let path = uri.find("://").map_or(0, |at| at + 3);
    let path = uri[path..].find('/').map_or(uri.len(), |at| path + at);
    let end = uri[path..].find('@').map_or(uri.len(), |at| path + at);
    let uri = uri[..end].trim_end_matches('/');
    uri.strip_suffix(".git").unwrap_or(uri).to_owned()
}

/// What a document says, read and checked against the release it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A bill of materials.
    Sbom(Sbom),
    /// Provenance.
    Provenance(Provenance),
}

/// Reads the document that `manifest` names as `document`.
///
/// # Errors
/// See [`DocumentError`].
pub fn check(manifest: &Manifest, document: &Document, bytes: &[u8]) -> Result<Said, DocumentError> {
    if bytes.len() as u64 != document.size || Digest::of(bytes) != document.sha256 {
        return Err(DocumentError::Altered { kind: document.kind });
    }
    match document.kind {
        DocumentKind::Sbom => Sbom::parse(bytes).map(Said::Sbom),
        DocumentKind::Provenance => {
            let provenance = Provenance::parse(bytes)?;
            provenance.check_subjects(manifest)?;
            Ok(Said::Provenance(provenance))
        }
    }
}

impl DocumentPolicy {
    /// Whether it demands a document of this kind.
    pub fn demands(&self, kind: DocumentKind) -> bool {
        match kind {
            DocumentKind::Sbom => self.require_sbom,
            DocumentKind::Provenance => {
                self.require_provenance || !self.builders.is_empty() || !self.source_repositories.is_empty()
            }
        }
    }

    /// The documents of `manifest` that have to be read because of it.
    ///
    /// # Errors
    /// [`DocumentDemand::Missing`].
    pub fn wanted<'m>(&self, manifest: &'m Manifest) -> Result<Vec<&'m Document>, DocumentDemand> {
        let demanded = DocumentKind::ALL.into_iter().filter(|kind| self.demands(*kind));
        demanded.map(|kind| manifest.document(kind).ok_or(DocumentDemand::Missing(kind))).collect()
    }

    /// Judges what a demanded document of `manifest` says.
    ///
    /// # Errors
    /// See [`DocumentDemand`].
    pub fn judge(&self, manifest: &Manifest, said: &Said) -> Result<(), DocumentDemand> {
        let Said::Provenance(provenance) = said else { return Ok(()) };
        if !self.builders.is_empty() && !self.builders.contains(&provenance.builder) {
            return Err(DocumentDemand::Builder { found: quoted(&provenance.builder) });
        }
        if !self.source_repositories.is_empty() {
            let allowed: BTreeSet<String> =
                self.source_repositories.iter().map(|uri| repository(uri)).collect();
            if provenance.sources.is_empty() {
                return Err(DocumentDemand::NoSource);
            }
            // All of them: a builder that also reads another repository builds from it.
            if let Some(found) = provenance.sources.iter().find(|source| !allowed.contains(*source)) {
                return Err(DocumentDemand::Source { found: quoted(found) });
            }
        }
        let covered: BTreeSet<Digest> = provenance.subjects.iter().map(|(_, digest)| *digest).collect();
        let code = |kind: FileKind| matches!(kind, FileKind::Executable | FileKind::Library);
        match manifest.files.iter().find(|file| code(file.kind) && !covered.contains(&file.sha256)) {
            Some(file) => Err(DocumentDemand::Uncovered(file.path.to_string())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> serde_json::Value {
        serde_json::json!({
            "_type": STATEMENT,
            "subject": [{ "name": "bin/tool", "digest": { "sha256": Digest::of(b"tool").to_string() } }],
            "predicateType": PROVENANCE,
            "predicate": {
                "buildDefinition": {
                    "buildType": "https://actions.github.io/buildtypes/workflow/v1",
                    "externalParameters": { "workflow": {
                        "ref": "refs/heads/main",
                        "repository": "https://github.com/acme/tool",
                        "path": ".github/workflows/release.yml",
                    } },
                    "resolvedDependencies": [
                        { "uri": "git+https://github.com/acme/tool@refs/heads/main",
                          "digest": { "gitCommit": "0".repeat(40) } },
                        { "uri": "https://example.com/toolchain.tar", "digest": { "sha512": "00" } },
                    ],
                },
                "runDetails": { "builder": { "id": "https://github.com/actions/runner/github-hosted" } },
            },
        })
    }

    fn parse(value: &serde_json::Value) -> Result<Provenance, DocumentError> {
        Provenance::parse(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn provenance_names_builder_sources_and_subjects() {
        let provenance = parse(&statement()).unwrap();
        assert_eq!(provenance.builder, "https://github.com/actions/runner/github-hosted");
        assert_eq!(provenance.sources, ["https://github.com/acme/tool"]);
        assert_eq!(provenance.subjects, [("bin/tool".to_owned(), Digest::of(b"tool"))]);
    }

    #[test]
    fn what_is_no_provenance_is_refused_and_says_why() {
        type Edit = (&'static str, fn(&mut serde_json::Value));
        let edits: [Edit; 7] = [
            ("Statement/v1", |json| json["_type"] = "https://in-toto.io/Statement/v0.1".into()),
            ("provenance/v1", |json| json["predicateType"] = "https://slsa.dev/provenance/v0.2".into()),
            ("no subject", |json| json["subject"] = serde_json::json!([])),
            ("no SHA-256", |json| json["subject"][0]["digest"] = serde_json::json!({ "sha512": "00" })),
            ("no SHA-256", |json| json["subject"][0]["digest"]["sha256"] = "zz".into()),
            ("missing field", |json| drop(json["predicate"].as_object_mut().unwrap().remove("runDetails"))),
            ("Statement/v1", |json| *json = serde_json::json!({ "payloadType": "x", "payload": "e30=" })),
        ];
        for (word, edit) in edits {
            let mut json = statement();
            edit(&mut json);
            let error = parse(&json).expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(matches!(Provenance::parse(b"{"), Err(DocumentError::Syntax { .. })));
    }

    #[test]
    fn repositories_are_compared_without_revision_and_suffix() {
        for uri in [
            "https://github.com/acme/tool",
            "git+https://github.com/acme/tool.git@refs/tags/v1#sub",
            "https://github.com/acme/tool/",
        ] {
            assert_eq!(repository(uri), "https://github.com/acme/tool", "{uri}");
        }
        assert_eq!(repository("git+ssh://git@example.com/a@v1"), "ssh://git@example.com/a");
        for uri in ["https://github.com/acme/tool2", "https://github.com.evil.example/acme/tool", ""] {
            assert_ne!(repository(uri), "https://github.com/acme/tool", "{uri}");
        }
    }

    #[test]
    fn bill_of_materials_is_cyclonedx_1_2_or_later() {
        let bom = |format: &str, version: &str| {
            let json = serde_json::json!({
                "bomFormat": format, "specVersion": version, "components": [{ "name": "a" }, {}],
            });
            Sbom::parse(&serde_json::to_vec(&json).unwrap())
        };
        assert_eq!(bom("CycloneDX", "1.6").unwrap().components, 2);
        for (format, version) in
            [("CycloneDX", "1.1"), ("CycloneDX", "2.0"), ("SPDX", "1.6"), ("CycloneDX", "")]
        {
            assert!(matches!(bom(format, version), Err(DocumentError::Format { .. })), "{format} {version}");
        }
        assert!(matches!(Sbom::parse(b"<bom/>"), Err(DocumentError::Syntax { .. })));
        assert!(matches!(Sbom::parse(b"[]"), Err(DocumentError::Syntax { .. })));
    }
}
