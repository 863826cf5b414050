//! Small files as a whole: metadata, with a cap on their size and without fetching again what did not change.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io::Read as _,
    sync::{Arc, mpsc},
    time::Duration,
};

use cutover_core::fetch::{
    answer::{self, Refusal},
    retry::{Next, Tries},
};
use reqwest::header;
use serde::{Deserialize, Serialize};

use super::{
    FetchError, Fetcher, RelativePath,
    base::{self, Base},
    error::Outlook,
    http::{self, Request},
    transfer::Shared,
};

/// Names the version of a file that a place sent, so that it sends nothing when asked again in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tag {
    /// The place; its tags mean nothing to another one.
    from: String,
    /// The ETag.
    etag: String,
}

/// The answer about a small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// Its content.
    Content {
        /// All of it.
        bytes: Vec<u8>,
        /// Its version, if the place names one.
        tag: Option<Tag>,
    },
    /// It is what it was.
    Unchanged,
    /// It is nowhere.
    Missing,
}

/// The longest ETag that is remembered, in bytes.
const ETAG_MAX: usize = 1024;

impl Fetcher {
    /// Reads the file at `path`, which has at most `limit` bytes; `known` is what was got before. The content is not verified:
    /// that is the caller's.
    ///
    /// # Errors
    /// [`FetchError`], once every place failed.
    pub fn get(&self, path: &RelativePath, limit: u64, known: Option<&Tag>) -> Result<Got, FetchError> {
        let target = Target { path: path.clone(), refine: |request| request, limit };
        self.get_as(target, known)
    }

    /// The same, with a request that the source shapes.
    pub(super) fn get_as<F>(&self, target: Target<F>, known: Option<&Tag>) -> Result<Got, FetchError>
    where
        F: Fn(Request) -> Request + Send + Sync + 'static,
    {
        let (shared, known) = (Arc::clone(&self.shared), known.cloned());
        self.wait_for(async move { get(&shared, &target, known.as_ref()).await })
    }

    /// Runs `future` to its end; also from within another runtime, whose thread then blocks.
    fn wait_for<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.runtime.spawn(async move {
            // Nobody waits any more: then nobody misses it.
            let _ = send.send(future.await);
        });
        receive.recv().expect("the future does not panic")
    }
}

/// What to get.
pub(super) struct Target<F> {
    pub(super) path: RelativePath,
    pub(super) refine: F,
    pub(super) limit: u64,
}

async fn get<F>(shared: &Shared, target: &Target<F>, known: Option<&Tag>) -> Result<Got, FetchError>
where
    F: Fn(Request) -> Request + Send + Sync,
{
    let mut excluded = BTreeSet::new();
    let mut tries: BTreeMap<_, Tries> = BTreeMap::new();
    let mut own_wait = Duration::ZERO;
    let mut failed = BTreeMap::new();
    while let Some(choice) = shared.choose(&excluded) {
        let id = choice.mirror;
        let wait = choice.wait.max(own_wait);
        if !wait.is_zero() {
            shared.timer.sleep(wait).await;
        }
        let started = shared.timer.now();
        let error = match once(shared, &shared.bases[id.0], target, known).await {
            Ok(Got::Missing) => {
                // Another place may be further than this one; it is no failure of it, and makes up for those before.
                excluded.insert(id);
                failed.remove(&id);
                continue;
            }
            Ok(got) => {
                let bytes = if let Got::Content { bytes, .. } = &got { bytes.len() as u64 } else { 0 };
                let took = shared.timer.now().saturating_sub(started);
                shared.mirrors.lock().expect("no holder panics").succeeded(id, bytes, took);
                return Ok(got);
            }
            Err(error) => error,
        };
        let asked = match error.outlook() {
            Outlook::Fatal => return Err(error),
            Outlook::Transient(asked) => Some(asked),
            Outlook::Elsewhere => None,
        };
        let tried = tries.entry(id).or_default();
        let next = asked.map_or(Next::GiveUp, |asked| tried.failed(0, asked, &shared.policy, shared.seed));
        let mut error = error;
        own_wait = Duration::ZERO;
        match next {
            Next::After(wait) => own_wait = wait,
            Next::GiveUp => {
                excluded.insert(id);
            }
            Next::TooLong => {
                let url = shared.bases[id.0].display(&target.path);
                error = FetchError::TooLongAWait { url, wait: asked.flatten().unwrap_or_default() };
                excluded.insert(id);
            }
        }
        let pause = if next == Next::TooLong { None } else { asked.flatten() };
        let now = shared.timer.now();
        shared.mirrors.lock().expect("no holder panics").failed(id, now, pause.unwrap_or_default());
        failed.insert(id, error);
    }
    failed.into_values().next().map_or(Ok(Got::Missing), Err)
}

async fn once<F>(
    shared: &Shared,
    base: &Base,
    target: &Target<F>,
    known: Option<&Tag>,
) -> Result<Got, FetchError>
where
    F: Fn(Request) -> Request + Send + Sync,
{
    let Some(request) = base.request(&target.path) else {
        let (base, path, limit) = (base.clone(), target.path.clone(), target.limit);
        let read = tokio::task::spawn_blocking(move || read_local(&base, &path, limit));
        return read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    };
    let mut request = (target.refine)(request);
    let from = base.name();
    let known = known.filter(|tag| tag.from == from);
    if let Some(tag) = known {
        request.headers.push((header::IF_NONE_MATCH, tag.etag.clone()));
    }
    let answer = shared.http.send(&request).await?;
    let url = request.url.to_string();
    let refused = |source| Err(FetchError::Answer { url: url.clone(), source });
    match http::refused(&request.url, &answer.head, shared.clock.now()) {
        Err(FetchError::Answer { source: Refusal::Missing(_), .. }) => return Ok(Got::Missing),
        judged => judged?,
    }
    match answer.head.status {
        200 => {}
        304 if known.is_some() => return Ok(Got::Unchanged),
        206 => return refused(Refusal::Range),
        status => return refused(Refusal::Status(status)),
    }
    if let Err(source) = answer::judge_encoding(&answer.head) {
        return refused(source);
    }
    if answer.head.content_length.is_some_and(|length| length > target.limit) {
        return Err(FetchError::TooLong { url, limit: target.limit });
    }
    let etag = answer.head.etag.clone().filter(|etag| etag.len() <= ETAG_MAX);
    let bytes = shared.http.body(&url, answer, target.limit).await?;
    Ok(Got::Content { bytes, tag: etag.map(|etag| Tag { from, etag }) })
}

fn read_local(base: &Base, path: &RelativePath, limit: u64) -> Result<Got, FetchError> {
    let Base::Directory { disk, path: directory } = base else { return Ok(Got::Missing) };
    let file = match base::open_below(disk, directory, path) {
        Err(FetchError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Got::Missing);
        }
        file => file?,
    };
    let mut bytes = Vec::new();
    let place = || directory.join(path.as_str());
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| FetchError::Read { path: place(), source })?;
    if bytes.len() as u64 > limit {
        return Err(FetchError::TooLong { url: base.display(path), limit });
    }
    Ok(Got::Content { bytes, tag: None })
}
