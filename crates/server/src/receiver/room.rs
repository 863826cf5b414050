//! Room for uploads that are under way: quotas of hosts, and the disk.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use cutover_core::admission::{EpisodeKey, HostId};
use http::StatusCode;

use super::{answer::Problem, app::App};

/// What uploads under way will take.
#[derive(Debug, Default)]
pub(crate) struct Room {
    bytes: u64,
    hosts: HashMap<HostId, (u64, u64)>,
}

/// Room kept for one upload; given back as it is written, the rest when dropped.
pub(crate) struct Reserved {
    app: Arc<App>,
    host: HostId,
    bytes: u64,
    /// Those of them that are not written yet.
    coming: u64,
}

impl Reserved {
    /// So many bytes are on the disk, where what is free tells them: kept here as well, they would count twice.
    pub(crate) fn written(&mut self, bytes: u64) {
        let bytes = bytes.min(self.coming);
        self.coming -= bytes;
        self.app.room.lock().unwrap_or_else(PoisonError::into_inner).bytes -= bytes;
    }
}

/// Keeps room for an upload of a host. Says no where it would not fit, counting what is under way. An upload of what is stored
/// already adds nothing to its host's part, and must be answered: else the host never learns that it is done.
pub(crate) fn reserve(app: &Arc<App>, key: &EpisodeKey, bytes: u64) -> Result<Reserved, Problem> {
    let host = &key.host;
    let limits = &app.live().settings.limits;
    let free = app.store.free_bytes().unwrap_or(u64::MAX);
    let mut room = app.room.lock().unwrap_or_else(PoisonError::into_inner);
    // Under the lock: an upload that ends gives its room back after it got its row, so it is never counted as neither.
    let (episodes_stored, bytes_stored) = app.store.rows().all().of_host(host);
    let is_stored = app.store.rows().durable(key).is_some_and(|entry| entry.size == bytes);
    let (bytes_coming, episodes_coming) = room.hosts.get(host).copied().unwrap_or_default();
    let full = |error, detail: String| {
        Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, error, detail).retry_after(60))
    };
    if limits.host_uploads > 0 && episodes_coming >= limits.host_uploads {
        let detail = format!("Host `{host}` may send {} episodes at a time.", limits.host_uploads);
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many", detail).retry_after(1));
    }
    let over = |limit: u64, used: u64| limit > 0 && used > limit && !is_stored;
    if over(limits.host_bytes, bytes_stored.saturating_add(bytes_coming).saturating_add(bytes)) {
        return full("host-quota", format!("Host `{host}` may store {} bytes.", limits.host_bytes));
    }
    if over(limits.host_episodes, episodes_stored as u64 + episodes_coming + 1) {
        return full("host-quota", format!("Host `{host}` may store {} episodes.", limits.host_episodes));
    }
    if bytes.saturating_add(room.bytes).saturating_add(limits.free_bytes) > free {
        return full("disk-full", "The receiver has no room for this.".to_owned());
    }
    room.bytes += bytes;
    let of_host = room.hosts.entry(host.clone()).or_default();
    *of_host = (of_host.0 + bytes, of_host.1 + 1);
    drop(room);
    Ok(Reserved { app: Arc::clone(app), host: host.clone(), bytes, coming: bytes })
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut room = self.app.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.bytes -= self.coming;
        if let Some(of_host) = room.hosts.get_mut(&self.host) {
            *of_host = (of_host.0 - self.bytes, of_host.1 - 1);
            if of_host.1 == 0 {
                room.hosts.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gate::Gate, ingest::Store, receiver::app::Live, settings::GateSettings};

    #[test]
    fn room_is_given_back_as_it_is_written_and_counts_for_the_host_to_the_end() {
        let place = tempfile::tempdir().unwrap();
        let mut settings = GateSettings { enabled: false, ..GateSettings::default() };
        (settings.limits.host_bytes, settings.limits.host_uploads) = (1500, 2);
        let gate = Arc::new(Gate::start(settings.rules().unwrap()).unwrap());
        let store = Store::open(place.path(), None, jiff::Timestamp::now).unwrap();
        let app = Arc::new(App::new(gate, store, Live::new(settings).unwrap()));
        let kept = || app.room.lock().unwrap().bytes;
        let reserve = |episode: &str, bytes| {
            let key = EpisodeKey::new("h", episode).unwrap();
            reserve(&app, &key, bytes).map_err(|problem| problem.status.as_u16())
        };
        let mut first = reserve("a", 1000).unwrap();
        first.written(600);
        assert_eq!(kept(), 400);
        assert_eq!(reserve("b", 501).map(drop), Err(507));
        let second = reserve("b", 500).unwrap();
        assert_eq!(reserve("c", 0).map(drop), Err(429));
        first.written(9999);
        assert_eq!(kept(), 500);
        drop((first, second));
        assert_eq!((kept(), app.room.lock().unwrap().hosts.len()), (0, 0));
    }
}
