//! Documents about a release: put in by `bundle create`, shown, written out again, and judged by `[trust-policy]`.

use std::path::Path;

use cutover_bundle::documents::{self, DocumentPolicy, Said};
use cutover_core::model::{Document, DocumentKind, Manifest, ObjectEntry};

use super::describe::summary_line;
use crate::{
    args::Create,
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output,
    settings::{Settings, TrustPolicy},
};

/// Reads an object of a release whole.
pub(super) type ReadObject<'a> = &'a dyn Fn(&ObjectEntry) -> Result<Vec<u8>, Failure>;

/// The documents that `bundle create` is given, each with its file.
pub(super) struct Given<'c>(Vec<(DocumentKind, &'c Path, Vec<u8>)>);

impl<'c> Given<'c> {
    /// Reads them.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn read(create: &'c Create) -> Result<Self, Failure> {
        let named = [
            (DocumentKind::Sbom, create.sbom.as_deref()),
            (DocumentKind::Provenance, create.provenance.as_deref()),
        ];
        let named = named.into_iter().filter_map(|(kind, path)| Some((kind, path?)));
        let read = named.map(|(kind, path)| Ok((kind, path, files::read(kind.name(), path)?)));
        read.collect::<Result<_, Failure>>().map(Self)
    }

    /// Their contents.
    pub(super) fn contents(&self) -> Vec<(DocumentKind, &[u8])> {
        self.0.iter().map(|(kind, _, bytes)| (*kind, bytes.as_slice())).collect()
    }

    /// Checks that each is what its kind says, and about this release.
    ///
    /// # Errors
    /// Exit code 2: one is not.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), Failure> {
        for (kind, path, bytes) in &self.0 {
            let document = manifest.document(*kind).expect("it was packed");
            documents::check(manifest, document, bytes).map_err(|error| {
                Failure::usage(format!("`{}` cannot be the release's {}", path.display(), kind.name()))
                    .because(error)
            })?;
        }
        Ok(())
    }
}

fn object_of<'m>(manifest: &'m Manifest, document: &Document) -> &'m ObjectEntry {
    let object = manifest.objects.iter().find(|object| object.sha256 == document.sha256);
    object.expect("a checked manifest has an object for every document")
}

/// Reads and checks one document.
///
/// # Errors
/// It cannot be read, or is not about this release.
fn said(manifest: &Manifest, document: &Document, read: ReadObject<'_>) -> Result<Said, Failure> {
    let bytes = read(object_of(manifest, document))?;
    Ok(documents::check(manifest, document, &bytes)?)
}

/// Reads and checks every document there is.
///
/// # Errors
/// The first that is not as it should be.
pub(super) fn check_all(manifest: &Manifest, read: ReadObject<'_>) -> Result<(), Failure> {
    manifest.documents.iter().try_for_each(|document| said(manifest, document, read).map(drop))
}

fn policy(settings: &TrustPolicy) -> DocumentPolicy {
    DocumentPolicy {
        require_sbom: settings.require_sbom,
        require_provenance: settings.require_provenance,
        builders: settings.builders.clone(),
        source_repositories: settings.source_repositories.clone(),
    }
}

/// Reads the documents that `[trust-policy]` demands, and judges what they say.
///
/// # Errors
/// Exit code 13: one is missing, or says what the settings do not allow. Exit code 11: one is not about this release.
pub(super) fn judge(manifest: &Manifest, settings: &Settings, read: ReadObject<'_>) -> Result<(), Failure> {
    let policy = policy(&settings.trust_policy);
    for document in policy.wanted(manifest)? {
        policy.judge(manifest, &said(manifest, document, read)?)?;
    }
    Ok(())
}

/// One line for each document; what cannot be read is said.
pub(super) fn lines(manifest: &Manifest, read: ReadObject<'_>) -> Vec<String> {
    let line = |document: &Document| {
        let told = match said(manifest, document, read) {
            Ok(said) => describe(&said),
            Err(failure) => failure.to_string(),
        };
        let told = format!("{told}, {}, {}", output::bytes(document.size), document.sha256.short());
        output::printable(&summary_line(document.kind.name(), &told))
    };
    manifest.documents.iter().map(line).collect()
}

fn describe(said: &Said) -> String {
    match said {
        Said::Sbom(sbom) => format!("CycloneDX {}, {} components", sbom.spec_version, sbom.components),
        Said::Provenance(provenance) => format!(
            "SLSA v1, {} files built by {} from {}",
            provenance.subjects.len(),
            provenance.builder,
            if provenance.sources.is_empty() {
                "nothing named".to_owned()
            } else {
                provenance.sources.join(", ")
            },
        ),
    }
}

/// What each document says, for machines.
pub(super) fn json(manifest: &Manifest, read: ReadObject<'_>) -> Vec<serde_json::Value> {
    let one = |document: &Document| {
        let mut value = serde_json::json!({
            "kind": document.kind,
            "media_type": document.media_type,
            "sha256": document.sha256,
            "bytes": document.size,
        });
        let (key, told) = match said(manifest, document, read) {
            Err(failure) => ("problem", serde_json::json!(failure.to_string())),
            Ok(Said::Sbom(sbom)) => (
                "cyclonedx",
                serde_json::json!({
                    "spec_version": sbom.spec_version,
                    "serial_number": sbom.serial_number,
                    "components": sbom.components,
                }),
            ),
            Ok(Said::Provenance(provenance)) => (
                "slsa",
                serde_json::json!({
                    "builder": provenance.builder,
                    "build_type": provenance.build_type,
                    "sources": provenance.sources,
                    "subjects": provenance.subjects.iter().map(|(name, sha256)| {
                        serde_json::json!({ "name": name, "sha256": sha256 })
                    }).collect::<Vec<_>>(),
                }),
            ),
        };
        value[key] = told;
        value
    };
    manifest.documents.iter().map(one).collect()
}

/// Writes the documents into a directory, as they are.
///
/// # Errors
/// One cannot be read or written.
pub(super) fn extract(manifest: &Manifest, read: ReadObject<'_>, into: &Path) -> Result<(), Failure> {
    files::make_directory(into, 0o755)?;
    for document in &manifest.documents {
        let bytes = read(object_of(manifest, document))?;
        let path = into.join(match document.kind {
            DocumentKind::Sbom => "sbom.cdx.json",
            DocumentKind::Provenance => "provenance.intoto.json",
        });
        files::write(&path, 0o644, Existing::Keep, |out| {
            out.write_all(&bytes).map_err(|source| Failure::io("write", &path, source))
        })?;
    }
    Ok(())
}

/// A refusal by what the settings demand of documents says where they come from.
pub(super) fn with_hint(failure: Failure, path: &Path) -> Failure {
    let message = format!("refused `{}`", path.display());
    let refused = Failure::new(failure.exit(), message);
    let refused = match failure.exit() {
        Exit::Policy => refused.hint("`cutover config show --origin` says where these settings come from"),
        _ => failure.hints().iter().fold(refused, Failure::hint),
    };
    refused.because(failure)
}
