//! What is said about a release that is published: in which channels it is, and whether anybody should choose it.

use std::collections::BTreeMap;

use cutover_core::model::{Name, Version};

use crate::{
    commit::Renew,
    error::PublishError,
    index::{Index, IndexEntry, Yanked, index_path},
    publisher::Publisher,
};

impl Publisher<'_> {
    /// Puts a release that is in one channel into another.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when no channel has it.
    pub fn promote(
        &mut self,
        package: &Name,
        version: &Version,
        platform: Option<&Name>,
        to: &Name,
    ) -> Result<Vec<Name>, PublishError> {
        let mut indexes = self.present.indexes_of(self.storage, package)?;
        let found: BTreeMap<Name, IndexEntry> = indexes
            .values()
            .filter(|index| platform.is_none_or(|platform| index.platform == *platform))
            .filter_map(|index| Some((index.platform.clone(), index.get(version)?.clone())))
            .collect();
        if found.is_empty() {
            return Err(PublishError::NotFound(format!("{package} {version}")));
        }
        let mut changed = Vec::new();
        for (platform, mut entry) in found {
            let path = index_path(package, &platform, to);
            let index = indexes
                .entry(path.clone())
                .or_insert_with(|| Index::new(package.clone(), platform.clone(), to.clone()));
            if index.get(version).is_none() {
                entry.published_at = self.now;
                index.insert(entry);
                changed.push((platform, path));
            }
        }
        if !changed.is_empty() {
            let indexes: Vec<&Index> = changed.iter().filter_map(|(_, path)| indexes.get(path)).collect();
            self.commit(&indexes, Renew::All, None)?;
            self.collect()?;
        }
        Ok(changed.into_iter().map(|(platform, _)| platform).collect())
    }

    /// Says in every channel that nobody should choose this release any more, or takes that back. Whoever asks for exactly
    /// this version still gets it, with a warning.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when no channel has it.
    pub fn yank(
        &mut self,
        package: &Name,
        version: &Version,
        platform: Option<&Name>,
        reason: Option<&str>,
    ) -> Result<usize, PublishError> {
        let mut indexes = self.present.indexes_of(self.storage, package)?;
        let yanked = reason.map(|reason| Yanked { at: self.now, reason: reason.to_owned() });
        let mut is_there = false;
        let mut changed = Vec::new();
        for index in indexes.values_mut() {
            if platform.is_some_and(|platform| index.platform != *platform) {
                continue;
            }
            let Some(entry) = index.releases.iter_mut().find(|entry| entry.version == *version) else {
                continue;
            };
            is_there = true;
            let said = |yanked: &Option<Yanked>| yanked.as_ref().map(|yanked| yanked.reason.clone());
            if said(&entry.yanked) != said(&yanked) {
                entry.yanked = yanked.clone();
                changed.push(index.path());
            }
        }
        if !is_there {
            return Err(PublishError::NotFound(format!("{package} {version}")));
        }
        if !changed.is_empty() {
            let changed: Vec<&Index> = changed.iter().filter_map(|path| indexes.get(path)).collect();
            self.commit(&changed, Renew::All, None)?;
            self.collect()?;
        }
        Ok(changed.len())
    }
}
