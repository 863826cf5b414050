//! The rules that span fields: names do not collide, links stay inside, sizes and objects belong together.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    contents::Encoding,
    description::{MANIFEST_FORMAT, Manifest},
    document::DOCUMENT_BYTES_MAX,
    error::ManifestError,
    limits::ManifestLimits,
};
use crate::model::{Digest, SafePath, SafePathSet};

impl Manifest {
    /// Checks every rule that spans fields.
    ///
    /// # Errors
    /// The first broken rule, by [`ManifestError`].
    pub fn check(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        self.check_layout(limits)?;
        self.check_objects()
    }

    /// Checks every rule but those about objects: what can be known before a payload is made.
    ///
    /// # Errors
    /// The first broken rule, by [`ManifestError`].
    pub fn check_layout(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        if self.format != MANIFEST_FORMAT {
            return Err(ManifestError::Format(self.format));
        }
        self.check_entries(limits)?;
        self.check_symlinks()?;
        self.check_documents()?;
        self.check_references()
    }

    fn check_documents(&self) -> Result<(), ManifestError> {
        let mut kinds = BTreeSet::new();
        for document in &self.documents {
            let (name, expected) = (document.kind.name(), document.kind.media_type());
            if !kinds.insert(document.kind) {
                return Err(ManifestError::Inconsistent(format!("there are two documents of kind `{name}`")));
            }
            if document.media_type != expected {
                let found = document.media_type.chars().take(160).flat_map(char::escape_default);
                let found: String = found.collect();
                let reason = format!("the {name} is of media type `{found}` and not `{expected}`");
                return Err(ManifestError::Inconsistent(reason));
            }
            if document.size > DOCUMENT_BYTES_MAX {
                let (what, actual, limit) = ("bytes in a document", document.size, DOCUMENT_BYTES_MAX);
                return Err(ManifestError::Limit { what, actual, limit });
            }
        }
        Ok(())
    }

    fn check_entries(&self, limits: &ManifestLimits) -> Result<(), ManifestError> {
        let over = |what, actual, limit| {
            if actual > limit { Err(ManifestError::Limit { what, actual, limit }) } else { Ok(()) }
        };
        let entries = self.files.len() + self.symlinks.len() + self.shared.len();
        over("entries", entries as u64, limits.entries_max as u64)?;
        let mut names = SafePathSet::default();
        let mut total = 0u64;
        for file in &self.files {
            names.insert(&file.path)?;
            over("bytes in one file", file.size, limits.file_bytes_max)?;
            total = total.saturating_add(file.size);
        }
        over("bytes", total, limits.total_bytes_max)?;
        self.symlinks.iter().try_for_each(|link| names.insert(&link.path))?;
        // A shared path may also be a file, which is then its first content; otherwise it is an entry of its own.
        let listed: BTreeSet<&SafePath> = self.shared.iter().collect();
        let files: BTreeSet<&SafePath> =
            self.files.iter().map(|file| &file.path).filter(|path| listed.contains(path)).collect();
        self.shared.iter().filter(|path| !files.contains(path)).try_for_each(|path| names.insert(path))?;
        let mut shared = SafePathSet::default();
        self.shared.iter().try_for_each(|path| shared.insert(path))?;
        Ok(())
    }

    fn check_objects(&self) -> Result<(), ManifestError> {
        struct Known {
            size: u64,
            is_used: bool,
        }
        let inconsistent = |reason: String| Err(ManifestError::Inconsistent(reason));
        let mut known: BTreeMap<&Digest, Known> = BTreeMap::new();
        let mut end = 0u64;
        for object in &self.objects {
            if object.offset != end {
                return inconsistent(format!(
                    "object {} starts at {} where {end} was expected",
                    object.sha256, object.offset
                ));
            }
            end = match end.checked_add(object.stored_size) {
                Some(end) if end < 1 << 62 => end,
                _ => return inconsistent(format!("object {} ends past any file", object.sha256)),
            };
            if object.encoding == Encoding::Raw && object.stored_size != object.size {
                return inconsistent(format!("object {} is raw but has two sizes", object.sha256));
            }
            if known.insert(&object.sha256, Known { size: object.size, is_used: false }).is_some() {
                return inconsistent(format!("object {} is listed twice", object.sha256));
            }
        }
        let files = self.files.iter().map(|file| (file.path.as_str(), &file.sha256, file.size));
        let documents =
            self.documents.iter().map(|document| (document.kind.name(), &document.sha256, document.size));
        for (name, sha256, bytes) in files.chain(documents) {
            match known.get_mut(sha256) {
                Some(object) if object.size == bytes => object.is_used = true,
                Some(object) => {
                    let size = object.size;
                    return inconsistent(format!("`{name}` has {bytes} bytes but its object has {size}"));
                }
                None => return inconsistent(format!("`{name}` has no object")),
            };
        }
        match known.iter().find(|(_, object)| !object.is_used) {
            Some((digest, _)) => inconsistent(format!("object {digest} belongs to no file")),
            None => Ok(()),
        }
    }

    /// `..` is allowed only at the start of a target. There it steps over real directories (a symlink can never be a
    /// parent, or the names would collide), so the lexical answer is the true one.
    fn check_symlinks(&self) -> Result<(), ManifestError> {
        for link in &self.symlinks {
            let mut rest = link.target.as_str();
            let mut up = 0;
            while let Some(after) = rest.strip_prefix("../").or(if rest == ".." { Some("") } else { None }) {
                (rest, up) = (after, up + 1);
            }
            let depth = link.path.components().count() - 1;
            let inside = up <= depth
                && (rest.parse::<SafePath>().is_ok() || (rest.is_empty() && (1..=depth).contains(&up)));
            if !inside {
                let target = link.target.chars().take(160).flat_map(char::escape_default).collect();
                return Err(ManifestError::SymlinkTarget { path: link.path.clone(), target });
            }
        }
        Ok(())
    }

    fn check_references(&self) -> Result<(), ManifestError> {
        let inconsistent = |reason: String| Err(ManifestError::Inconsistent(reason));
        let files: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if let Some(service) = &self.service {
            match service.command.first() {
                Some(program) if files.contains(program.as_str()) => {}
                Some(program) => {
                    return inconsistent(format!(
                        "the service's program `{}` is no file of the release",
                        program.escape_default()
                    ));
                }
                None => return inconsistent("the service has an empty command".to_owned()),
            }
            let nul = |text: &String| text.contains('\0');
            if service.command.iter().any(nul)
                || service
                    .env
                    .iter()
                    .any(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || nul(value))
            {
                return inconsistent(
                    "the service's command or environment cannot be passed to a process".to_owned(),
                );
            }
        }
        if let Some(schema) = &self.schema
            && let Some(missing) = schema.migrations.iter().find(|path| !files.contains(path.as_str()))
        {
            return inconsistent(format!("migration `{missing}` is no file of the release"));
        }
        let mut packages = BTreeSet::new();
        match self
            .requires
            .iter()
            .find(|requirement| requirement.package == self.package || !packages.insert(&requirement.package))
        {
            Some(twice) => inconsistent(format!(
                "requirement `{}` is listed twice or is the package itself",
                twice.package
            )),
            None => Ok(()),
        }
    }
}
