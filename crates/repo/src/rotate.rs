//! Replacing keys and renewing the root, so that at no moment a client finds metadata that its root does not allow.
//!
//! A key is replaced in three steps, each of which is a state that clients accept and from which the next run goes on:
//! a root that lists the old keys and the new ones; metadata signed by the new ones; a root without the old ones.

use crate::{
    commit::Renew,
    error::PublishError,
    publisher::Publisher,
    settings::days_after,
    sign::{SigningError, keys_of, sign_metadata},
    tuf::{PublicKey, Refused, RoleKind, Root, metadata_path},
};

/// What is to change about the keys of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Whose keys.
    pub role: RoleKind,
    /// Keys that count from now on. Their private halves must be among the publisher's keys.
    pub add: Vec<PublicKey>,
    /// The ids of keys that do not count any more.
    pub retire: Vec<String>,
    /// How many must sign from now on; without, as many as before.
    pub threshold: Option<u64>,
}

impl Publisher<'_> {
    /// Replaces keys of a role. Takes a threshold of the present root keys, the new keys, and the keys of the roles whose
    /// metadata is written anew. A rotation that was cut off is completed by the same call.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::NotFound`] when a key that is to be retired is none of the role's, and
    /// [`SigningError::TooFewKeys`] when the keys that remain are not among the publisher's: then nothing was written.
    pub fn rotate(&mut self, rotation: &Rotation) -> Result<(), PublishError> {
        let kind = rotation.role;
        for id in &rotation.retire {
            if !self.present.root.role(kind).keyids.contains(id) {
                return Err(PublishError::NotFound(format!("key {id} for the role `{kind}`")));
            }
        }
        let without = |root: &Root| {
            let mut last = root.clone();
            let role = last.roles.get_mut(kind.name()).expect("a checked root lists the keys of every role");
            role.keyids.retain(|id| !rotation.retire.contains(id));
            role.threshold = rotation.threshold.unwrap_or(role.threshold);
            let used: Vec<String> = last.roles.values().flat_map(|role| role.keyids.clone()).collect();
            last.keys.retain(|id, _| used.contains(id));
            last
        };
        let mut both = self.present.root.clone();
        for key in &rotation.add {
            let id = key.id();
            both.keys.insert(id.clone(), key.clone());
            let role = both.roles.get_mut(kind.name()).expect("a checked root lists the keys of every role");
            if !role.keyids.contains(&id) {
                role.keyids.push(id);
            }
        }
        // What is written on the way is signed by the keys in hand: the last root must take no others, or nobody can follow it
        // and no command can open the repository any more. Afterwards it is too late to say so.
        let last = without(&both);
        last.check().map_err(|source| Refused::Malformed { role: "root".to_owned(), source })?;
        let (found, needed) = (keys_of(last.role(kind), self.keys).len() as u64, last.role(kind).threshold);
        if found < needed {
            return Err(SigningError::TooFewKeys { role: kind, found, needed }.into());
        }
        if both != self.present.root {
            self.write_root(both)?;
        }
        if kind != RoleKind::Root {
            self.commit(&[], Renew::Role(kind), None)?;
        }
        let last = without(&self.present.root);
        if last != self.present.root {
            self.write_root(last)?;
        }
        self.collect()?;
        Ok(())
    }

    /// Writes the next root: with its keys as given, one version higher, counting from now on.
    pub(crate) fn write_root(&mut self, mut root: Root) -> Result<(), PublishError> {
        let before = self.present.root.role(RoleKind::Root);
        root.version = self.present.root.version + 1;
        root.expires = days_after(self.now, self.settings.root_days);
        root.check().map_err(|source| Refused::Malformed { role: "root".to_owned(), source })?;
        let bytes = sign_metadata(RoleKind::Root, &root, &[before, root.role(RoleKind::Root)], self.keys)?;
        let path = metadata_path("root", Some(root.version));
        self.storage.replace(&path, &bytes).map_err(PublishError::storage("write", &path))?;
        self.present.root = root;
        Ok(())
    }
}
