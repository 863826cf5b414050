//! The port of a repository's publisher, over a bucket.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use cutover_repo::{Batch, Fill, Lock, Storage};
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{GetResult, WriteMultipart};
use tokio::task::JoinSet;

use crate::{
    address::S3Address,
    background::Background,
    bucket::{Bucket, Cached, PARALLEL},
    error::S3Error,
    lease::{self, Asked, Held},
    options::S3Options,
};

/// The largest file that is written by one request, in bytes; so much is held in memory. All metadata is smaller.
const WHOLE_BYTES_MAX: usize = 64 << 20;
/// What larger ones are cut into, in bytes.
const PART_BYTES: usize = 16 << 20;
/// How many parts of a file are under way at the same time.
const PARTS_PARALLEL: usize = 4;

/// A repository in a bucket. One thread of its own does the requests.
pub struct S3Storage {
    runtime: Arc<Background>,
    bucket: Arc<Bucket>,
    owner: String,
    lease: Duration,
    /// The versions of files as this run has seen them: it replaces these and no others.
    seen: Arc<Mutex<BTreeMap<String, String>>>,
    /// The publisher's lock, while somebody holds it.
    held: Mutex<Weak<Held>>,
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Storage({})", self.bucket.address())
    }
}

impl S3Storage {
    /// Opens a place in a bucket. Asks nothing of the network before something is read or written. `variable` reads the
    /// environment.
    ///
    /// # Errors
    /// See [`S3Error`].
    pub fn open(
        address: S3Address,
        options: &S3Options,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, S3Error> {
        let (runtime, bucket) = Bucket::at(address, options, variable)?;
        Ok(Self {
            runtime,
            bucket,
            owner: options.owner.clone(),
            lease: options.lease.max(Duration::from_secs(1)),
            seen: Arc::default(),
            held: Mutex::default(),
        })
    }

    fn held(&self) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Proves that the lock is held now, if it was taken.
    fn prove_lock(&self) -> Result<Option<Arc<Held>>, S3Error> {
        let held = self.held();
        if let Some(held) = &held {
            self.runtime.block_on(held.renew(&self.bucket))?;
        }
        Ok(held)
    }
}

fn remember(seen: &Mutex<BTreeMap<String, String>>, path: &str, etag: Option<String>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match etag {
        Some(etag) => seen.insert(path.to_owned(), etag),
        None => seen.remove(path),
    };
}

fn recall(seen: &Mutex<BTreeMap<String, String>>, path: &str) -> Option<String> {
    seen.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
}

impl Storage for S3Storage {
    fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read>>> {
        let found = self.runtime.block_on(self.bucket.open(path))?;
        remember(&self.seen, path, found.as_ref().and_then(|found| found.meta.e_tag.clone()));
        let Some(found) = found else { return Ok(None) };
        Ok(Some(Box::new(Reader::new(&self.runtime, &self.bucket, path, found))))
    }

    fn size(&self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.sizes(&[path])?.into_iter().next().flatten())
    }

    fn sizes(&self, paths: &[&str]) -> io::Result<Vec<Option<u64>>> {
        Ok(self.runtime.block_on(self.bucket.sizes(paths))?)
    }

    fn batch(&self) -> io::Result<Box<dyn Batch + '_>> {
        let held = self.prove_lock()?;
        Ok(Box::new(S3Batch { storage: self, held, writes: JoinSet::new(), bytes_under_way: 0 }))
    }

    fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let held = self.prove_lock()?;
        let (bytes, seen) = (Bytes::copy_from_slice(bytes), recall(&self.seen, path));
        let written = self.bucket.write(path, bytes, seen, Cached::Never, held.as_deref());
        remember(&self.seen, path, Some(self.runtime.block_on(written)?));
        Ok(())
    }

    fn remove(&self, paths: &[String]) -> io::Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        self.prove_lock()?;
        for path in paths {
            remember(&self.seen, path, None);
        }
        Ok(self.runtime.block_on(self.bucket.remove(paths))?)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        Ok(self.runtime.block_on(self.bucket.list(directory))?)
    }

    fn lock(&self) -> io::Result<Lock> {
        match lease::take(&self.bucket, &self.runtime, (&self.owner, self.lease))? {
            Asked::Held(lease) => {
                *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&lease.held);
                Ok(Lock::Held(Box::new(lease)))
            }
            Asked::InUse(by) => Ok(Lock::InUse { by: Some(by) }),
        }
    }
}

/// A file that is read.
pub(crate) struct Reader {
    runtime: Arc<Background>,
    bucket: Arc<Bucket>,
    path: String,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    current: Bytes,
}

impl Reader {
    pub(crate) fn new(runtime: &Arc<Background>, bucket: &Arc<Bucket>, path: &str, found: GetResult) -> Self {
        let (runtime, bucket) = (Arc::clone(runtime), Arc::clone(bucket));
        Self { runtime, bucket, path: path.to_owned(), stream: found.into_stream(), current: Bytes::new() }
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(self.bucket.judge("read", &self.path, error).into()),
                None => return Ok(0),
            }
        }
        let taken = self.current.split_to(into.len().min(self.current.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// New files, written as they are added, several at the same time. A name appears with all of its content, as everything in
/// a bucket does. What was added and not committed may be there: whoever publishes has written down what it intends to add.
struct S3Batch<'a> {
    storage: &'a S3Storage,
    held: Option<Arc<Held>>,
    writes: JoinSet<Result<usize, S3Error>>,
    bytes_under_way: usize,
}

impl S3Batch<'_> {
    /// Waits until there is room for `bytes` more.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        while !self.writes.is_empty()
            && (self.writes.len() >= PARALLEL || self.bytes_under_way + bytes > WHOLE_BYTES_MAX)
        {
            self.wait_for_one()?;
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> io::Result<()> {
        if let Some(ended) = self.storage.runtime.block_on(self.writes.join_next()) {
            self.bytes_under_way -= ended.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

impl Batch for S3Batch<'_> {
    fn add(&mut self, path: &str, fill: Fill<'_>) -> io::Result<()> {
        let mut content = Content { storage: self.storage, path, whole: Vec::new(), parts: None };
        let filled = fill(&mut content);
        let whole = match (filled, content.parts.take()) {
            (Ok(()), None) => Bytes::from(std::mem::take(&mut content.whole)),
            (Ok(()), Some(parts)) => {
                let judged = |error| self.storage.bucket.judge("write", path, error);
                self.storage.runtime.block_on(parts.finish()).map_err(judged)?;
                return Ok(());
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(parts)) => {
                if let Err(error) = self.storage.runtime.block_on(parts.abort()) {
                    tracing::warn!(%error, path, "parts of an upload stay");
                }
                return Err(error);
            }
        };
        self.make_room(whole.len())?;
        self.bytes_under_way += whole.len();
        let (bucket, held) = (Arc::clone(&self.storage.bucket), self.held.clone());
        let (path, seen) = (path.to_owned(), Arc::clone(&self.storage.seen));
        self.writes.spawn_on(
            async move {
                let size = whole.len();
                let known = recall(&seen, &path);
                let etag = bucket.write(&path, whole, known, Cached::ForEver, held.as_deref()).await?;
                remember(&seen, &path, Some(etag));
                Ok(size)
            },
            self.storage.runtime.handle(),
        );
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> io::Result<()> {
        while !self.writes.is_empty() {
            self.wait_for_one()?;
        }
        Ok(())
    }
}

/// What a file of a batch is filled through: held whole, or sent in parts once it is large.
struct Content<'a> {
    storage: &'a S3Storage,
    path: &'a str,
    whole: Vec<u8>,
    parts: Option<WriteMultipart>,
}

impl Write for Content<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let runtime = &self.storage.runtime;
        if self.parts.is_none() && self.whole.len() + bytes.len() > WHOLE_BYTES_MAX {
            let upload = runtime.block_on(self.storage.bucket.begin(self.path))?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            let _inside = runtime.enter();
            parts.write(&std::mem::take(&mut self.whole));
            self.parts = Some(parts);
        }
        match &mut self.parts {
            None => self.whole.extend_from_slice(bytes),
            Some(parts) => {
                let judged = |error| self.storage.bucket.judge("write", self.path, error);
                runtime.block_on(parts.wait_for_capacity(PARTS_PARALLEL)).map_err(judged)?;
                let _inside = runtime.enter();
                parts.write(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
