//! One object: from the first look at what is there to the verified file, over as many tries and places as it takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cutover_core::{
    fetch::{
        mirrors::{MirrorId, Mirrors},
        resume::{self, Ask, Use, Validator},
        retry::{Next, RetryPolicy, Tries},
    },
    model::Digest,
};
use reqwest::header;
use tokio::sync::watch;

use super::{
    FetchError, Fetched, Phase, Wanted, Watch,
    base::{self, Base},
    downloads::{Of, Sidecar},
    error::Outlook,
    http::{BodyReader, Http},
    timer::{Limiter, Timer},
    writer::{OffThread, Writer, conclude},
};
use crate::clock::Clock;

/// What all transfers of one source have in common.
pub(super) struct Shared {
    pub(super) bases: Vec<Base>,
    pub(super) http: Http,
    pub(super) policy: RetryPolicy,
    pub(super) resume: bool,
    pub(super) limiter: Limiter,
    pub(super) timer: Arc<dyn Timer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) mirrors: Mutex<Mirrors>,
    pub(super) seed: u64,
}

impl Shared {
    pub(super) fn choose(
        &self,
        excluded: &BTreeSet<MirrorId>,
    ) -> Option<cutover_core::fetch::mirrors::Choice> {
        self.mirrors.lock().expect("no holder panics").choose(self.timer.now(), excluded)
    }
}

/// One object on its way.
pub(super) struct Transfer {
    pub(super) shared: Arc<Shared>,
    pub(super) files: OffThread,
    pub(super) wanted: Wanted,
    pub(super) index: usize,
    pub(super) watch: Arc<dyn Watch>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What one transfer has come to so far, over all tries.
#[derive(Default)]
struct Tally {
    fetched: u64,
    resumed: bool,
}

impl Transfer {
    /// Fetches the object unless it is there.
    pub(super) async fn run(mut self) -> Result<Fetched, FetchError> {
        let mut tally = Tally::default();
        if self.is_there().await? {
            self.tell(Phase::Done, self.wanted.size_bytes);
            return Ok(self.fetched(&tally, 0));
        }
        let mut excluded = BTreeSet::new();
        let mut tries: BTreeMap<MirrorId, Tries> = BTreeMap::new();
        let mut not_before: BTreeMap<MirrorId, Duration> = BTreeMap::new();
        let mut restarted = false;
        let mut last = None;
        loop {
            let Some(choice) = self.shared.choose(&excluded) else {
                return Err(last.unwrap_or_else(no_place));
            };
            let id = choice.mirror;
            let now = self.shared.timer.now();
            let own_wait = not_before.get(&id).map_or(Duration::ZERO, |until| until.saturating_sub(now));
            self.sleep(choice.wait.max(own_wait)).await?;

            let before = tally.fetched;
            let started = self.shared.timer.now();
            let mut resumed = false;
            let error = match self.attempt(id, &mut tally, &mut resumed).await {
                Ok(()) => {
                    let took = self.shared.timer.now().saturating_sub(started);
                    let mut mirrors = self.shared.mirrors.lock().expect("no holder panics");
                    mirrors.succeeded(id, tally.fetched - before, took);
                    drop(mirrors);
                    self.tell(Phase::Done, self.wanted.size_bytes);
                    let retries = tries.values().map(Tries::retries).sum::<u32>() + u32::from(restarted);
                    return Ok(self.fetched(&tally, retries));
                }
                Err(error) => error,
            };
            if matches!(error, FetchError::Mismatch { .. }) && resumed && !restarted {
                // Bytes of two versions, or of a file that a power cut damaged: once more from zero.
                restarted = true;
                tally.resumed = false;
                self.again(&error);
                continue;
            }
            let asked = match error.outlook() {
                Outlook::Fatal => return Err(error),
                Outlook::Transient(asked) => Some(asked),
                Outlook::Elsewhere => None,
            };
            let reached = self.reached().await?;
            let tried = tries.entry(id).or_insert_with(|| Tries::starting_at(0));
            let seed = self.shared.seed ^ u64::from_le_bytes(first_eight(self.wanted.digest));
            let next =
                asked.map_or(Next::GiveUp, |asked| tried.failed(reached, asked, &self.shared.policy, seed));
            let now = self.shared.timer.now();
            let mut error = error;
            match next {
                Next::After(wait) => {
                    not_before.insert(id, now + wait);
                    self.again(&error);
                }
                Next::GiveUp => {
                    excluded.insert(id);
                }
                Next::TooLong => {
                    let url = self.shared.bases[id.0].display(&self.wanted.path);
                    error = FetchError::TooLongAWait { url, wait: asked.flatten().unwrap_or_default() };
                    excluded.insert(id);
                }
            }
            // What the server asks for concerns everybody; our own waits concern this object.
            let pause = if next == Next::TooLong { None } else { asked.flatten() };
            let mut mirrors = self.shared.mirrors.lock().expect("no holder panics");
            mirrors.failed(id, now, pause.unwrap_or_default());
            drop(mirrors);
            last = Some(error);
        }
    }

    fn fetched(&self, tally: &Tally, retries: u32) -> Fetched {
        Fetched {
            digest: self.wanted.digest,
            size_bytes: self.wanted.size_bytes,
            fetched_bytes: tally.fetched,
            resumed: tally.resumed,
            retries,
        }
    }

    fn tell(&self, phase: Phase, bytes: u64) {
        self.watch.progress(self.index, phase, bytes);
    }

    fn again(&self, error: &FetchError) {
        tracing::debug!(path = self.wanted.path.as_str(), %error, "another try follows");
        self.watch.retry(self.index, error);
    }

    /// Whether the whole object lies there, hashed again: a power cut may have taken its bytes.
    async fn is_there(&self) -> Result<bool, FetchError> {
        let (digest, size) = (self.wanted.digest, self.wanted.size_bytes);
        let whole = self.files.run(move |downloads| Ok(downloads.present(digest, size)?.whole)).await?;
        if !whole {
            return Ok(false);
        }
        self.tell(Phase::Verifying, size);
        let work = move |downloads: &super::Downloads| {
            let right = downloads.hash(digest, Of::Whole)? == digest;
            if !right {
                downloads.consume(digest)?;
            }
            Ok(right)
        };
        self.files.run(work).await
    }

    async fn reached(&self) -> Result<u64, FetchError> {
        let (digest, size) = (self.wanted.digest, self.wanted.size_bytes);
        self.files.run(move |downloads| Ok(downloads.present(digest, size)?.partial_bytes)).await
    }

    async fn sleep(&mut self, wait: Duration) -> Result<(), FetchError> {
        let timer = Arc::clone(&self.shared.timer);
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => Err(FetchError::Stopped),
            () = async { if !wait.is_zero() { timer.sleep(wait).await } } => Ok(()),
        }
    }

    /// One try at one place.
    async fn attempt(
        &mut self,
        id: MirrorId,
        tally: &mut Tally,
        resumed: &mut bool,
    ) -> Result<(), FetchError> {
        let (digest, size) = (self.wanted.digest, self.wanted.size_bytes);
        let resume = self.shared.resume || tally.fetched > 0;
        let present = self
            .files
            .run(move |downloads| {
                if !resume {
                    downloads.drop_partial(digest)?;
                }
                downloads.present(digest, size)
            })
            .await?;
        let shared = Arc::clone(&self.shared);
        let base = &shared.bases[id.0];
        let name = base.name();
        let validator =
            present.sidecar.filter(|sidecar| sidecar.from == name).map(|sidecar| sidecar.validator);
        let ask = resume::ask(present.partial_bytes, size, validator);
        let url = base.display(&self.wanted.path);
        if ask == Ask::Nothing {
            *resumed = true;
            tally.resumed = true;
            self.tell(Phase::Verifying, size);
            let found = self.files.run(move |downloads| conclude(downloads, digest, None)).await?;
            return self.expect(found, url);
        }
        self.tell(Phase::Downloading, present.partial_bytes);
        let opened = self.open(base, ask).await?;
        if opened.offset == 0 {
            self.files.run(move |downloads| downloads.drop_partial(digest)).await?;
        }
        *resumed = opened.offset > 0;
        tally.resumed = *resumed;
        // The validator of an appended part is the one that was remembered.
        let sidecar = (opened.offset == 0).then(|| Sidecar {
            format: 1,
            from: name,
            size_bytes: size,
            validator: opened.validator.unwrap_or_default(),
        });
        let writer = Writer::new(self.files.clone(), digest, opened.offset, sidecar);
        self.receive(opened.body, writer, opened.offset, url, tally).await
    }

    /// Reads the body to its end and verifies the whole.
    async fn receive(
        &mut self,
        mut body: Body,
        mut writer: Writer,
        offset: u64,
        url: String,
        tally: &mut Tally,
    ) -> Result<(), FetchError> {
        let size = self.wanted.size_bytes;
        let mut at = offset;
        let shared = Arc::clone(&self.shared);
        let failed = loop {
            let piece = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => break Some(FetchError::Stopped),
                piece = body.next(&self.files) => piece,
            };
            let bytes = match piece {
                Ok(Some(bytes)) => bytes,
                Ok(None) if at < size => {
                    break Some(FetchError::Short { url: url.clone(), found: at, expected: size });
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            };
            let length = bytes.len() as u64;
            at += length;
            tally.fetched += length;
            if body.is_limited() {
                let waited = tokio::select! {
                    biased;
                    _ = self.stop.wait_for(|stop| *stop) => None,
                    waited = shared.limiter.take(&*shared.timer, length) => Some(waited),
                };
                // What came is kept all the same; the next turn of the loop ends it.
                body.waited(waited.unwrap_or_default());
            }
            writer.push(bytes).await?;
            self.tell(Phase::Downloading, at);
        };
        match failed {
            None => {
                self.tell(Phase::Verifying, at);
                let found = writer.finish().await?;
                self.expect(found, url)
            }
            Some(
                error @ (FetchError::Transport { .. }
                | FetchError::Stalled { .. }
                | FetchError::Short { .. }
                | FetchError::Stopped),
            ) => {
                writer.keep_partial().await?;
                Err(error)
            }
            Some(error) => {
                writer.discard().await?;
                Err(error)
            }
        }
    }

    fn expect(&self, found: Digest, url: String) -> Result<(), FetchError> {
        let expected = self.wanted.digest;
        if found == expected { Ok(()) } else { Err(FetchError::Mismatch { url, expected, found }) }
    }

    /// Asks for the body.
    async fn open(&mut self, base: &Base, ask: Ask) -> Result<Opened, FetchError> {
        match base {
            Base::Http { .. } => {
                let shared = Arc::clone(&self.shared);
                tokio::select! {
                    biased;
                    _ = self.stop.wait_for(|stop| *stop) => Err(FetchError::Stopped),
                    opened = open_http(&shared, base, &self.wanted, ask) => opened,
                }
            }
            Base::Directory { .. } => {
                let offset = if let Ask::From { offset, .. } = ask { offset } else { 0 };
                let file = LocalBody { base: base.clone(), wanted: self.wanted.clone(), at: offset };
                Ok(Opened { body: Body::Local(file), offset, validator: None })
            }
        }
    }
}

fn no_place() -> FetchError {
    FetchError::Setting { key: "urls", reason: "there is no place to fetch from".to_owned() }
}

fn first_eight(digest: Digest) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_bytes()[..8]);
    bytes
}

/// A body and where it begins.
struct Opened {
    body: Body,
    offset: u64,
    validator: Option<Validator>,
}

async fn open_http(
    shared: &Shared,
    base: &Base,
    wanted: &Wanted,
    mut ask: Ask,
) -> Result<Opened, FetchError> {
    let size = wanted.size_bytes;
    let plain = base.request(&wanted.path).expect("it is HTTP");
    loop {
        let mut request = plain.clone();
        let mut offset = 0;
        if let Ask::From { offset: from, validator } = &ask {
            offset = *from;
            request.headers.push((header::RANGE, format!("bytes={from}-")));
            if let Some(value) = validator.as_ref().and_then(Validator::if_range) {
                request.headers.push((header::IF_RANGE, value.to_owned()));
            }
        }
        let answer = shared.http.send(&request).await?;
        let judged = resume::judge(&ask, &answer.head, size, shared.clock.now());
        let url = request.url.to_string();
        let used = judged.map_err(|source| FetchError::Answer { url: url.clone(), source })?;
        match used {
            Use::Append => {}
            Use::Replace => offset = 0,
            Use::AskForAll => {
                ask = Ask::All;
                continue;
            }
        }
        let validator = Validator::of(&answer.head);
        let body = BodyReader::new(answer, url, size - offset, shared.http.stall());
        return Ok(Opened { body: Body::Http(body), offset, validator });
    }
}

/// Where bytes come from.
enum Body {
    Http(BodyReader),
    Local(LocalBody),
}

/// A file of a directory, read in blocks beside the network threads.
struct LocalBody {
    base: Base,
    wanted: Wanted,
    at: u64,
}

/// How much of a file is read at once.
const BLOCK: usize = 512 << 10;

impl Body {
    async fn next(&mut self, files: &OffThread) -> Result<Option<Bytes>, FetchError> {
        match self {
            Self::Http(reader) => reader.next().await,
            Self::Local(local) => {
                let (base, path, size) =
                    (local.base.clone(), local.wanted.path.clone(), local.wanted.size_bytes);
                let at = local.at;
                let read = move |_: &super::Downloads| read_block(&base, &path, at, size);
                let block = files.run(read).await?;
                local.at += block.len() as u64;
                Ok((!block.is_empty()).then(|| Bytes::from(block)))
            }
        }
    }

    /// The bandwidth limit is the network's.
    fn is_limited(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    fn waited(&mut self, wait: Duration) {
        if let Self::Http(reader) = self {
            reader.waited(wait);
        }
    }
}

fn read_block(base: &Base, path: &super::RelativePath, at: u64, size: u64) -> Result<Vec<u8>, FetchError> {
    let Base::Directory { disk, path: directory } = base else { return Ok(Vec::new()) };
    let failed = |source| FetchError::Read { path: directory.join(path.as_str()), source };
    let file = base::open_below(disk, directory, path)?;
    let mut block = vec![0; BLOCK];
    let read = file.read_at(&mut block, at).map_err(failed)?;
    if at + read as u64 > size {
        return Err(FetchError::TooLong { url: base.display(path), limit: size });
    }
    block.truncate(read);
    Ok(block)
}
