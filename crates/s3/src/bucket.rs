//! One place in a bucket, request by request: reading, conditional writing, removing, listing.
//!
//! A write says what it replaces: nothing, or exactly the version that was seen. So a publisher that was asleep for an hour
//! cannot overwrite what another one wrote meanwhile, whatever it believes about its lock.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use object_store::{
    Attribute, Attributes, GetResult, MultipartId, ObjectStore as _, ObjectStoreExt as _, PutMode,
    PutMultipartOptions, PutOptions, UpdateVersion,
    aws::AmazonS3,
    multipart::{MultipartStore as _, PartId},
    path::Path,
};

use crate::{
    address::S3Address,
    background::Background,
    error::{Attempt, S3Error},
    lease::Held,
    options::{Client, S3Options},
};

/// How many requests are under way at the same time.
pub(crate) const PARALLEL: usize = 16;
/// How often a write is tried whose answer did not say whether it happened.
const WRITES_MAX: usize = 4;

/// For how long caches may keep a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// It never changes under this name.
    ForEver,
    /// It is replaced.
    Never,
    /// Nothing is said: it is read by whoever may, and not through caches.
    Unsaid,
}

impl Cached {
    fn attributes(self) -> Attributes {
        let control = match self {
            Self::ForEver => "public, max-age=31536000, immutable",
            Self::Never => "no-cache",
            Self::Unsaid => return Attributes::new(),
        };
        Attributes::from_iter([(Attribute::CacheControl, control)])
    }
}

/// What a write replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replaces {
    /// Nothing: there is no such file.
    Nothing,
    /// The version with this entity tag.
    Version(String),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The file is there, under this entity tag.
    Done(String),
    /// Something else is there than what it was to replace; nothing was written.
    Otherwise,
}

/// What lies where something was to be written.
enum There {
    Nothing,
    /// Just that, under this entity tag.
    Same(String),
    /// Something else, under this entity tag.
    Another(String),
}

/// Paths and sizes, as they are listed.
type Files<'a> = BoxStream<'a, Result<(String, u64), S3Error>>;

/// A place in a bucket. Has no runtime of its own.
pub(crate) struct Bucket {
    store: AmazonS3,
    /// The same, for requests that make parts a file: it adds `If-None-Match: *`, which `store` has no way to say there.
    completing: AmazonS3,
    address: S3Address,
    endpoint: String,
    region: String,
    /// Whether `If-Match` names entity tags without their quotes. RFC 9110 (8.8.3) wants them quoted; Ceph's gateway compares
    /// them bare.
    bare_tags: AtomicBool,
}

impl Bucket {
    /// A place in a bucket, with the thread that its requests wait on. Asks nothing of the network. `variable` reads the
    /// environment.
    ///
    /// # Errors
    /// See [`S3Error`].
    pub(crate) fn at(
        address: S3Address,
        options: &S3Options,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Arc<Background>, Arc<Self>), S3Error> {
        let Client { store, completing, endpoint, region, bucket_url: _ } =
            options.client(&address, variable)?;
        let runtime = Background::start().map_err(|error| S3Error::Settings(Box::new(error)))?;
        let bare_tags = AtomicBool::new(false);
        Ok((Arc::new(runtime), Arc::new(Self { store, completing, address, endpoint, region, bare_tags })))
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &S3Address {
        &self.address
    }

    /// Says what a failed request means.
    pub(crate) fn judge(&self, action: &'static str, path: &str, error: object_store::Error) -> S3Error {
        let (endpoint, region, bucket) = (&*self.endpoint, &*self.region, self.address.bucket());
        S3Error::judge(Attempt { endpoint, region, bucket, action, path }, error)
    }

    pub(crate) fn unconditional(&self, header: &'static str) -> S3Error {
        S3Error::Unconditional { endpoint: self.endpoint.clone(), header }
    }

    pub(crate) fn key(&self, path: &str) -> Result<Path, S3Error> {
        Path::parse(self.address.key(path)).map_err(|error| self.judge("name", path, error.into()))
    }

    /// Opens a file; `None` when there is none.
    pub(crate) async fn open(&self, path: &str) -> Result<Option<GetResult>, S3Error> {
        match self.store.get(&self.key(path)?).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => self.absent(self.judge_absent("read", path, error)),
        }
    }

    /// Reads a small file whole, with its entity tag; `None` when there is none.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<(Bytes, String)>, S3Error> {
        let Some(found) = self.open(path).await? else { return Ok(None) };
        let etag = found.meta.e_tag.clone().unwrap_or_default();
        let bytes = found.bytes().await.map_err(|error| self.judge("read", path, error))?;
        Ok(Some((bytes, etag)))
    }

    /// The sizes of files, in their order.
    pub(crate) async fn sizes(&self, paths: &[&str]) -> Result<Vec<Option<u64>>, S3Error> {
        let ask = |path: String| async move {
            match self.store.head(&self.key(&path)?).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(error) => self.absent(self.judge_absent("look at", &path, error)),
            }
        };
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        stream::iter(paths.into_iter().map(ask)).buffered(PARALLEL).try_collect().await
    }

    /// `None` for a file that is not there, and an error for a bucket that is not.
    fn judge_absent(&self, action: &'static str, path: &str, error: object_store::Error) -> Option<S3Error> {
        let is_absent = matches!(error, object_store::Error::NotFound { .. });
        match self.judge(action, path, error) {
            S3Error::Other { .. } if is_absent => None,
            error => Some(error),
        }
    }

    fn absent<T>(&self, error: Option<S3Error>) -> Result<Option<T>, S3Error> {
        error.map_or(Ok(None), Err)
    }

    /// Writes a file, if what is there is what it replaces.
    pub(crate) async fn put(
        &self,
        path: &str,
        bytes: Bytes,
        replaces: &Replaces,
        cached: Cached,
    ) -> Result<Written, S3Error> {
        let mode = match replaces {
            Replaces::Nothing => PutMode::Create,
            Replaces::Version(etag) => {
                let bare = self.bare_tags.load(Ordering::Relaxed);
                let etag = if bare { etag.trim_matches('"') } else { etag };
                PutMode::Update(UpdateVersion { e_tag: Some(etag.to_owned()), version: None })
            }
        };
        let options = PutOptions { mode, attributes: cached.attributes(), ..PutOptions::default() };
        match self.store.put_opts(&self.key(path)?, bytes.into(), options).await {
            Ok(put) => Ok(Written::Done(put.e_tag.unwrap_or_default())),
            Err(error @ object_store::Error::Precondition { .. }) => {
                // A storage says so too when the whole bucket is not there.
                match self.judge("write", path, error) {
                    error @ S3Error::NoBucket { .. } => Err(error),
                    _ => Ok(Written::Otherwise),
                }
            }
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Written::Otherwise),
            Err(error) => Err(self.judge("write", path, error)),
        }
    }

    /// Writes a file in place of one version, naming it in the form that this storage understands.
    ///
    /// # Errors
    /// [`S3Error::Unmatched`] when none is understood.
    pub(crate) async fn put_in_place_of(
        &self,
        path: &str,
        bytes: Bytes,
        etag: &str,
        cached: Cached,
    ) -> Result<Written, S3Error> {
        let replaces = Replaces::Version(etag.to_owned());
        for _ in 0..WRITES_MAX {
            let bare = self.bare_tags.load(Ordering::Relaxed);
            let written = self.put(path, bytes.clone(), &replaces, cached).await?;
            if written != Written::Otherwise {
                return Ok(written);
            }
            let there = self.open(path).await?.and_then(|found| found.meta.e_tag);
            if there.as_deref() != Some(etag) {
                return Ok(Written::Otherwise);
            }
            self.bare_tags.store(!bare, Ordering::Relaxed);
        }
        Err(S3Error::Unmatched { endpoint: self.endpoint.clone() })
    }

    /// Writes a file whole: in place of the version that this run has seen, else as a new one; where there is one that was
    /// never looked at, in its place once the lock proves to be held still. Returns the entity tag.
    pub(crate) async fn write(
        &self,
        path: &str,
        bytes: Bytes,
        seen: Option<String>,
        cached: Cached,
        held: Option<&Held>,
    ) -> Result<String, S3Error> {
        if let Some(etag) = seen {
            return self.write_in_place_of(path, bytes, etag, cached).await;
        }
        for left in (0..WRITES_MAX).rev() {
            match self.put(path, bytes.clone(), &Replaces::Nothing, cached).await {
                Ok(Written::Done(etag)) => return Ok(etag),
                Ok(Written::Otherwise) => {}
                // It may have been written nevertheless: what is there now tells.
                Err(S3Error::Other { .. }) if left > 0 => {}
                Err(error) => return Err(error),
            }
            match self.look(path, &bytes).await? {
                There::Nothing => {}
                There::Same(etag) => return Ok(etag),
                There::Another(etag) => {
                    if let Some(held) = held {
                        held.renew(self).await?;
                    }
                    return self.write_in_place_of(path, bytes, etag, cached).await;
                }
            }
        }
        Err(S3Error::Changed(path.to_owned()))
    }

    /// Writes a file whole in place of one version.
    ///
    /// # Errors
    /// [`S3Error::Changed`] when something else is there.
    pub(crate) async fn write_in_place_of(
        &self,
        path: &str,
        bytes: Bytes,
        etag: String,
        cached: Cached,
    ) -> Result<String, S3Error> {
        for left in (0..WRITES_MAX).rev() {
            match self.put_in_place_of(path, bytes.clone(), &etag, cached).await {
                Ok(Written::Done(etag)) => return Ok(etag),
                Ok(Written::Otherwise) => {}
                Err(S3Error::Other { .. }) if left > 0 => {}
                Err(error) => return Err(error),
            }
            match self.look(path, &bytes).await? {
                There::Same(etag) => return Ok(etag),
                // The write did not happen and its answer was lost.
                There::Another(now) if now == etag => {}
                There::Another(_) | There::Nothing => break,
            }
        }
        Err(S3Error::Changed(path.to_owned()))
    }

    /// Compares what is there with what was to be written.
    async fn look(&self, path: &str, bytes: &Bytes) -> Result<There, S3Error> {
        let Some(found) = self.open(path).await? else { return Ok(There::Nothing) };
        let etag = found.meta.e_tag.clone().unwrap_or_default();
        if found.meta.size != bytes.len() as u64 {
            return Ok(There::Another(etag));
        }
        let there = found.bytes().await.map_err(|error| self.judge("read", path, error))?;
        Ok(if there == *bytes { There::Same(etag) } else { There::Another(etag) })
    }

    /// Begins a file in parts.
    pub(crate) async fn begin(&self, path: &str) -> Result<Box<dyn object_store::MultipartUpload>, S3Error> {
        let options = PutMultipartOptions {
            attributes: Cached::ForEver.attributes(),
            ..PutMultipartOptions::default()
        };
        let begun = self.store.put_multipart_opts(&self.key(path)?, options).await;
        begun.map_err(|error| self.judge("write", path, error))
    }

    /// Begins a file in parts that [`Bucket::complete_new`] makes one.
    pub(crate) async fn begin_new(&self, path: &str) -> Result<MultipartId, S3Error> {
        let begun = self.store.create_multipart(&self.key(path)?).await;
        begun.map_err(|error| self.judge("write", path, error))
    }

    /// Writes one part.
    pub(crate) async fn put_part(
        &self,
        path: &str,
        id: &MultipartId,
        number: usize,
        bytes: Bytes,
    ) -> Result<PartId, S3Error> {
        let put = self.store.put_part(&self.key(path)?, id, number, bytes.into()).await;
        put.map_err(|error| self.judge("write", path, error))
    }

    /// Makes parts a file, if there is none.
    pub(crate) async fn complete_new(
        &self,
        path: &str,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<Written, S3Error> {
        use object_store::Error::{AlreadyExists, NotModified, Precondition};
        match self.completing.complete_multipart(&self.key(path)?, id, parts).await {
            Ok(put) => Ok(Written::Done(put.e_tag.unwrap_or_default())),
            Err(AlreadyExists { .. } | NotModified { .. }) => Ok(Written::Otherwise),
            Err(error @ Precondition { .. }) => match self.judge("write", path, error) {
                error @ S3Error::NoBucket { .. } => Err(error),
                _ => Ok(Written::Otherwise),
            },
            Err(error) => Err(self.judge("write", path, error)),
        }
    }

    /// Gives parts up that did not become a file. Those that stay after a failure are removed by a rule of the bucket.
    pub(crate) async fn give_up(&self, path: &str, id: &MultipartId) {
        let Ok(key) = self.key(path) else { return };
        if let Err(error) = self.store.abort_multipart(&key, id).await {
            tracing::warn!(%error, path, "parts of an upload stay");
        }
    }

    /// Removes files; those that are not there are passed over.
    pub(crate) async fn remove(&self, paths: &[String]) -> Result<(), S3Error> {
        let keys = paths.iter().map(|path| self.key(path)).collect::<Result<Vec<_>, _>>()?;
        let mut removed = self.store.delete_stream(stream::iter(keys.into_iter().map(Ok)).boxed());
        while let Some(answer) = removed.next().await {
            match answer {
                Ok(_) => {}
                Err(error) => {
                    if let Some(error) = self.judge_absent("delete", "files", error) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Every file below a directory, sorted.
    pub(crate) async fn list(&self, directory: &str) -> Result<Vec<String>, S3Error> {
        let mut files = Vec::new();
        let mut listed = self.listing(directory, None)?;
        while let Some(file) = listed.next().await {
            files.push(file?.0);
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Every file below a directory, or those after one of them, with its size; asked for page by page, in the bucket's order.
    pub(crate) fn listing<'a>(
        &'a self,
        directory: &'a str,
        after: Option<&str>,
    ) -> Result<Files<'a>, S3Error> {
        let below = self.address.key(directory);
        let prefix = if below.is_empty() { None } else { Some(self.key(directory)?) };
        let listed = match after {
            Some(after) => self.store.list_with_offset(prefix.as_ref(), &self.key(after)?),
            None => self.store.list(prefix.as_ref()),
        };
        let file = move |meta: object_store::Result<object_store::ObjectMeta>| {
            let meta = match meta {
                Ok(meta) => meta,
                Err(error) => return Some(Err(self.judge("list", directory, error))),
            };
            let path = self.address.path_of(meta.location.as_ref())?.to_owned();
            Some(Ok((path, meta.size)))
        };
        Ok(listed.filter_map(move |meta| std::future::ready(file(meta))).boxed())
    }
}
