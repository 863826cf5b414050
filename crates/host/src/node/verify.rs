//! Verifying: the present tree against the installed release, and the repair of what differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use cutover_core::{
    model::{FileKind, SafePath},
    plan::Layout,
};

use super::{
    current,
    error::NodeError,
    mend, place,
    report::{Drift, RepairReport},
    root::{Node, NodeLock},
    tree::{self, Difference, Reading},
};
use crate::{catalog::HistoryRow, disk::EntryKind};

/// What `repair` does about edited config files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edited {
    /// They stay as they are.
    #[default]
    Keep,
    /// They become as installed; the edits are lost.
    Replace,
}

impl Node {
    /// Hashes the present tree and compares it with the installed release. Changes nothing.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn verify(&self) -> Result<Drift, NodeError> {
        let layout = self.layout()?;
        let Some(installed) = self.installed(layout)? else { return Ok(Drift::default()) };
        let base = current::tree(layout, &installed.release);
        let expected = tree::expected_of_manifest(&installed.manifest, layout);
        let differences = tree::differences(&self.files, &base, &expected, Reading::Always)?;
        let config: BTreeSet<&SafePath> = installed
            .manifest
            .files
            .iter()
            .filter(|file| file.kind == FileKind::Config)
            .map(|file| &file.path)
            .collect();
        let mut drift =
            Drift { release: Some(installed.release.clone()), checked: expected.len(), ..Drift::default() };
        for (path, difference) in differences {
            match difference {
                Difference::Missing => drift.missing.push(path),
                Difference::Mode => drift.mode_changed.push(path),
                Difference::Content if config.contains(&path) => drift.edited.push(path),
                Difference::Content => drift.damaged.push(path),
            }
        }
        if layout != Layout::InPlace {
            let known: BTreeSet<&str> = expected.keys().map(SafePath::as_str).collect();
            self.find_extra(&base, "", &known, &mut drift.extra)?;
        }
        Ok(drift)
    }

    /// Collects what lies in a tree beyond `known`.
    fn find_extra(
        &self,
        base: &Path,
        within: &str,
        known: &BTreeSet<&str>,
        extra: &mut Vec<String>,
    ) -> Result<(), NodeError> {
        for (name, kind) in self.files.list(&base.join(within))? {
            let path = if within.is_empty() { name } else { format!("{within}/{name}") };
            match kind {
                _ if known.contains(path.as_str()) || path == place::MARKER => {}
                EntryKind::Directory => self.find_extra(base, &path, known, extra)?,
                EntryKind::File | EntryKind::Symlink | EntryKind::Other => extra.push(path),
            }
        }
        Ok(())
    }

    /// Makes the present tree as installed again, file by file from the store.
    ///
    /// # Errors
    /// Something cannot be read or written; files repaired before that stay repaired.
    pub fn repair(&self, lock: &NodeLock, edited: Edited) -> Result<RepairReport, NodeError> {
        self.must_be_idle()?;
        let layout = self.layout()?;
        let Some(installed) = self.installed(layout)? else { return Ok(RepairReport::default()) };
        let drift = self.verify()?;
        let base = current::tree(layout, &installed.release);
        let expected = tree::expected_of_manifest(&installed.manifest, layout);
        let mut wanted: BTreeMap<SafePath, Difference> = BTreeMap::new();
        wanted.extend(drift.damaged.into_iter().map(|path| (path, Difference::Content)));
        wanted.extend(drift.missing.into_iter().map(|path| (path, Difference::Missing)));
        wanted.extend(drift.mode_changed.into_iter().map(|path| (path, Difference::Mode)));
        if edited == Edited::Replace {
            wanted.extend(drift.edited.into_iter().map(|path| (path, Difference::Content)));
        }
        let scratch = Path::new(place::STAGING).join("repair");
        let unrepairable = mend::mend(&self.files, &base, &expected, &wanted, &scratch)?;
        let left: BTreeSet<&SafePath> = unrepairable.iter().map(|(path, _)| path).collect();
        let repaired: Vec<SafePath> = wanted.keys().filter(|path| !left.contains(path)).cloned().collect();
        if !wanted.is_empty() {
            let problem = unrepairable.first().map(|(path, reason)| format!("`{path}`: {reason}"));
            let version = Some(installed.release.version);
            self.record(
                lock,
                &HistoryRow {
                    number: None,
                    at: self.clock().now(),
                    action: "repair".to_owned(),
                    from: version.clone(),
                    to: version,
                    outcome: if problem.is_some() { "failed" } else { "confirmed" }.to_owned(),
                    error: problem,
                    restore_point: None,
                },
            )?;
        }
        Ok(RepairReport { repaired, unrepairable })
    }
}
