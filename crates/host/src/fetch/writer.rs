//! Writing and hashing what comes in, beside the network threads.
//!
//! Bytes are gathered to batches; while one batch is written the next one is gathered. So a transfer holds at most two
//! batches in memory and no thread waits for the network.

use std::sync::Arc;

use bytes::Bytes;
use cutover_core::model::{Digest, Hasher};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    FetchError,
    downloads::{Downloads, Of, Sidecar},
};

/// A batch. Also the most that a killed process loses of one object.
const BATCH: u64 = 512 << 10;

/// Runs file work on threads that may block, at most as many at a time as there are jobs.
#[derive(Clone)]
pub(super) struct OffThread {
    jobs: Arc<Semaphore>,
    downloads: Arc<Downloads>,
}

impl OffThread {
    pub(super) fn new(jobs: Arc<Semaphore>, downloads: Arc<Downloads>) -> Self {
        Self { jobs, downloads }
    }

    pub(super) async fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Downloads) -> Result<T, FetchError> + Send + 'static,
    ) -> JoinHandle<Result<T, FetchError>> {
        let permit = Arc::clone(&self.jobs).acquire_owned().await.expect("it is never closed");
        let downloads = Arc::clone(&self.downloads);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&downloads)
        })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Downloads) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        join(self.start(work).await).await
    }
}

async fn join<T>(handle: JoinHandle<Result<T, FetchError>>) -> Result<T, FetchError> {
    match handle.await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Writes one object's bytes.
pub(super) struct Writer {
    files: OffThread,
    digest: Digest,
    /// Written and hashed on the way; `None` when it continues bytes that this writer has not seen.
    hasher: Option<Hasher>,
    sidecar: Option<Sidecar>,
    batch: Vec<Bytes>,
    in_batch: u64,
    writing: Option<JoinHandle<Result<Option<Hasher>, FetchError>>>,
    spilled: bool,
}

impl Writer {
    /// Writes from the start of the object, or from `offset` on where partial bytes lie. `sidecar` is noted before the
    /// first byte of an object that takes more than one batch.
    pub(super) fn new(files: OffThread, digest: Digest, offset: u64, sidecar: Option<Sidecar>) -> Self {
        Self {
            files,
            digest,
            hasher: (offset == 0).then(Hasher::new),
            sidecar,
            batch: Vec::new(),
            in_batch: 0,
            writing: None,
            spilled: offset > 0,
        }
    }

    /// Takes bytes.
    pub(super) async fn push(&mut self, bytes: Bytes) -> Result<(), FetchError> {
        self.in_batch += bytes.len() as u64;
        self.batch.push(bytes);
        if self.in_batch >= BATCH { self.spill().await } else { Ok(()) }
    }

    /// Starts writing what was gathered, once the batch before is written.
    async fn spill(&mut self) -> Result<(), FetchError> {
        let mut hasher = self.settle().await?;
        let batch = std::mem::take(&mut self.batch);
        self.in_batch = 0;
        let (digest, sidecar) = (self.digest, self.sidecar.take());
        self.spilled = true;
        let work = move |downloads: &Downloads| {
            if let Some(sidecar) = &sidecar {
                downloads.remember(digest, sidecar)?;
            }
            downloads.append(digest, &batch)?;
            if let Some(hasher) = &mut hasher {
                batch.iter().for_each(|bytes| hasher.update(bytes));
            }
            Ok(hasher)
        };
        self.writing = Some(self.files.start(work).await);
        Ok(())
    }

    /// Waits for the batch that is being written.
    async fn settle(&mut self) -> Result<Option<Hasher>, FetchError> {
        if let Some(writing) = self.writing.take() {
            self.hasher = join(writing).await?;
        }
        Ok(self.hasher.take())
    }

    /// Keeps what came so far as partial bytes.
    pub(super) async fn keep_partial(mut self) -> Result<(), FetchError> {
        if self.in_batch > 0 {
            self.spill().await?;
        }
        self.settle().await.map(drop)
    }

    /// Drops everything of this object.
    pub(super) async fn discard(mut self) -> Result<(), FetchError> {
        self.settle().await?;
        let digest = self.digest;
        self.files.run(move |downloads| downloads.drop_partial(digest)).await
    }

    /// All bytes came: hashes what is not hashed yet and, if the digest is right, makes it a whole object. Returns the
    /// digest that was found; anything but the right one was removed.
    pub(super) async fn finish(mut self) -> Result<Digest, FetchError> {
        let digest = self.digest;
        if !self.spilled {
            let (mut hasher, batch) = (Hasher::new(), std::mem::take(&mut self.batch));
            let work = move |downloads: &Downloads| {
                batch.iter().for_each(|bytes| hasher.update(bytes));
                let found = hasher.finish();
                if found == digest {
                    downloads.append(digest, &batch)?;
                    downloads.finish(digest)?;
                }
                Ok(found)
            };
            return self.files.run(work).await;
        }
        if self.in_batch > 0 {
            self.spill().await?;
        }
        let hasher = self.settle().await?;
        self.files.run(move |downloads| conclude(downloads, digest, hasher)).await
    }
}

/// Hashes partial bytes that are complete, and keeps or removes them.
pub(super) fn conclude(
    downloads: &Downloads,
    digest: Digest,
    hasher: Option<Hasher>,
) -> Result<Digest, FetchError> {
    let found = match hasher {
        Some(hasher) => hasher.finish(),
        None => downloads.hash(digest, Of::Partial)?,
    };
    if found == digest {
        downloads.finish(digest)?
    } else {
        downloads.drop_partial(digest)?
    }
    Ok(found)
}
