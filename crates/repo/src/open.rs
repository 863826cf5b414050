//! Setting up a repository, and opening one to change it: what a run that was cut off has left is taken over.

use std::collections::BTreeMap;

use cutover_core::model::Instant;
use serde_json::Value;

use crate::{
    commit::Renew,
    error::PublishError,
    lock::take_lock,
    own_log::OwnLog,
    present::Present,
    publisher::Publisher,
    settings::{self, RepositorySettings, days_after},
    sign::{MetadataKey, keys_of, sign_metadata},
    storage::Storage,
    tombstone,
    tuf::{Envelope, Listing, PublicKey, Refused, RoleKeys, RoleKind, Root, Targets, metadata_path},
};

/// The version of the TUF specification that metadata follows.
const SPEC_VERSION: &str = "1.0.33";

impl<'a> Publisher<'a> {
    /// Sets up a repository: the first root, which lists `roles`, and empty metadata, all signed by `keys`.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Exists`] when there is one. A set-up that was cut off is begun again.
    pub fn create(
        storage: &'a dyn Storage,
        roles: &BTreeMap<RoleKind, (Vec<PublicKey>, u64)>,
        settings: RepositorySettings,
        keys: &'a [MetadataKey],
        now: Instant,
    ) -> Result<Self, PublishError> {
        let lock = take_lock(storage)?;
        let timestamp_path = metadata_path("timestamp", None);
        let is_there =
            storage.size(&timestamp_path).map_err(PublishError::storage("look at", &timestamp_path))?;
        if is_there.is_some() {
            return Err(PublishError::Exists);
        }
        let mut root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            version: 1,
            expires: days_after(now, settings.root_days),
            consistent_snapshot: true,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
        };
        for (kind, (publics, threshold)) in roles {
            let keyids = publics.iter().map(PublicKey::id).collect();
            root.keys.extend(publics.iter().map(|public| (public.id(), public.clone())));
            root.roles.insert(kind.name().to_owned(), RoleKeys { keyids, threshold: *threshold });
        }
        root.check().map_err(|source| Refused::Malformed { role: "root".to_owned(), source })?;
        let root_bytes = sign_metadata(RoleKind::Root, &root, &[root.role(RoleKind::Root)], keys)?;
        settings::store(storage, &settings).map_err(PublishError::storage("write", "the settings"))?;
        let root_path = metadata_path("root", Some(1));
        storage.replace(&root_path, &root_bytes).map_err(PublishError::storage("write", &root_path))?;
        let nothing = |version| Listing {
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires: now,
            meta: BTreeMap::new(),
        };
        let targets = Targets {
            spec_version: SPEC_VERSION.to_owned(),
            version: 0,
            expires: now,
            targets: BTreeMap::new(),
            delegations: None,
        };
        let present = Present {
            root,
            targets,
            targets_envelope: Envelope { signed: Value::Null, signatures: Vec::new() },
            snapshot: nothing(0),
            timestamp: nothing(0),
        };
        let mut publisher = Self::new(storage, keys, settings, present, None, now, lock);
        publisher.commit(&[], Renew::All, None)?;
        Ok(publisher)
    }

    /// Opens a repository for changing it: takes the lock, reads and verifies the metadata, and takes over what a run that
    /// was cut off has left.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn open(
        storage: &'a dyn Storage,
        keys: &'a [MetadataKey],
        now: Instant,
    ) -> Result<Self, PublishError> {
        let lock = take_lock(storage)?;
        let settings = settings::load(storage).map_err(PublishError::storage("read", "the settings"))?;
        let present = Present::load(storage, None)?;
        let log = OwnLog::load(storage)?;
        let mut publisher = Self::new(storage, keys, settings, present, log, now, lock);
        publisher.check_own()?;
        publisher.take_over_intent()?;
        publisher.complete_removals()?;
        Ok(publisher)
    }

    /// The targets metadata is what readers' trust hangs on here: it must be signed by a key in hand, not only by keys that
    /// the root in the same directory lists.
    fn check_own(&self) -> Result<(), PublishError> {
        let own = keys_of(self.present.root.role(RoleKind::Targets), self.keys);
        if own.is_empty() {
            return Ok(());
        }
        let role = RoleKeys { keyids: own.iter().map(|key| key.id().to_owned()).collect(), threshold: 1 };
        let keys = own.iter().map(|key| (key.id().to_owned(), key.public().clone())).collect();
        let signed = self.present.targets_envelope.count_signatures(&role, &keys);
        if signed.is_ok_and(|signed| signed > 0) {
            Ok(())
        } else {
            Err(PublishError::ForeignMetadata(RoleKind::Targets))
        }
    }

    /// What an interrupted publication wrote may be deleted when nobody comes back for it.
    fn take_over_intent(&self) -> Result<(), PublishError> {
        let failed = || PublishError::storage("take over", "the intent of an interrupted run");
        let Some(intent) = tombstone::load_intent(self.storage).map_err(failed())? else { return Ok(()) };
        let name = format!("{}-abandoned", self.present.timestamp.version);
        self.bury(&name, intent.files)?;
        tombstone::remove_intent(self.storage).map_err(failed())
    }
}
