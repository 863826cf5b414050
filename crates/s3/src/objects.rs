//! Objects that are written once and never replaced, such as episodes.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::{MultipartId, multipart::PartId};
use tokio::task::JoinSet;

use crate::{
    address::S3Address,
    background::Background,
    bucket::{Bucket, Cached, Replaces, Written},
    error::S3Error,
    options::S3Options,
    storage::Reader,
};

/// The largest object that is written by one request, in bytes, and what larger ones are cut into. Held in memory.
const PART_BYTES: u64 = 8 << 20;
/// S3 takes so many parts of one object.
const PARTS_MAX: u64 = 10_000;
/// How many parts of an object are under way at the same time.
const PARTS_PARALLEL: usize = 3;
/// What shows whether the storage honours conditions. It stays there.
const PROOF: &str = ".cutover-objects";

/// Objects in a bucket. Calls block; one thread of its own waits for the network. May be called from several threads.
pub struct S3Objects {
    runtime: Arc<Background>,
    bucket: Arc<Bucket>,
    is_proven: Mutex<bool>,
}

impl fmt::Debug for S3Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Objects({})", self.address())
    }
}

impl S3Objects {
    /// Opens a place in a bucket. Asks nothing of the network. `variable` reads the environment.
    ///
    /// # Errors
    /// See [`S3Error`].
    pub fn open(
        address: S3Address,
        options: &S3Options,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, S3Error> {
        let (runtime, bucket) = Bucket::at(address, options, variable)?;
        Ok(Self { runtime, bucket, is_proven: Mutex::new(false) })
    }

    /// Where it is.
    pub fn address(&self) -> &S3Address {
        self.bucket.address()
    }

    /// Proves that this place can be written to, and that the storage replaces nothing that is to be new: neither by one request
    /// nor by parts. Asks only until it is proven.
    ///
    /// # Errors
    /// [`S3Error::Unconditional`], and all that a request may fail with.
    pub fn prove(&self) -> Result<(), S3Error> {
        let mut is_proven = self.is_proven.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_proven {
            self.runtime.block_on(prove(&self.bucket))?;
            *is_proven = true;
        }
        Ok(())
    }

    /// Stores the bytes of `content` up to its end, all or nothing, if there is nothing under this path; `size` is how many they
    /// are. Returns whether it was stored.
    ///
    /// # Errors
    /// `content` fails or has another size, or the storage fails ([`S3Error::of`]). In the latter case it may be stored.
    pub fn create(&self, path: &str, content: &mut dyn Read, size: u64) -> io::Result<bool> {
        self.prove()?;
        let written = if size <= PART_BYTES {
            let bytes = piece(content, size + 1)?;
            is_whole(bytes.len() as u64, size)?;
            self.runtime.block_on(self.bucket.put(path, bytes, &Replaces::Nothing, Cached::Unsaid))?
        } else {
            let id = self.runtime.block_on(self.bucket.begin_new(path))?;
            let parts = self.send(path, &id, content, size);
            let written = parts
                .and_then(|parts| Ok(self.runtime.block_on(self.bucket.complete_new(path, &id, parts))?));
            if !matches!(written, Ok(Written::Done(_))) {
                self.runtime.block_on(self.bucket.give_up(path, &id));
            }
            written?
        };
        Ok(matches!(written, Written::Done(_)))
    }

    /// Sends the parts of an object.
    fn send(
        &self,
        path: &str,
        id: &MultipartId,
        content: &mut dyn Read,
        size: u64,
    ) -> io::Result<Vec<PartId>> {
        let part_bytes = PART_BYTES.max(size.div_ceil(PARTS_MAX));
        let (mut sent, mut under_way) = (BTreeMap::new(), JoinSet::new());
        let mut ended = |under_way: &mut JoinSet<Result<(usize, PartId), S3Error>>| -> io::Result<()> {
            if let Some(part) = self.runtime.block_on(under_way.join_next()) {
                let (number, part) = part.map_err(io::Error::other)??;
                sent.insert(number, part);
            }
            Ok(())
        };
        let mut taken = 0;
        for number in 0.. {
            let bytes = piece(content, part_bytes)?;
            taken += bytes.len() as u64;
            if bytes.is_empty() {
                break;
            }
            let (bucket, path, id) = (Arc::clone(&self.bucket), path.to_owned(), id.clone());
            let part = async move { Ok((number, bucket.put_part(&path, &id, number, bytes).await?)) };
            under_way.spawn_on(part, self.runtime.handle());
            while under_way.len() >= PARTS_PARALLEL {
                ended(&mut under_way)?;
            }
        }
        is_whole(taken, size)?;
        while !under_way.is_empty() {
            ended(&mut under_way)?;
        }
        Ok(sent.into_values().collect())
    }

    /// The size of an object in bytes; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn size(&self, path: &str) -> io::Result<Option<u64>> {
        Ok(self.runtime.block_on(self.bucket.sizes(&[path]))?.into_iter().next().flatten())
    }

    /// Opens an object for reading; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let found = self.runtime.block_on(self.bucket.open(path))?;
        Ok(found.map(|found| -> Box<dyn Read + Send> {
            Box::new(Reader::new(&self.runtime, &self.bucket, path, found))
        }))
    }

    /// Visits path and size of every object below a directory, in the order of their bytes, those after `after` only. Holds one
    /// page in memory.
    ///
    /// # Errors
    /// It cannot be listed, or the visit failed.
    pub fn list(
        &self,
        directory: &str,
        after: Option<&str>,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut listed = self.bucket.listing(directory, after)?;
        while let Some(file) = self.runtime.block_on(listed.next()) {
            let (path, size) = file?;
            visit(&path, size)?;
        }
        Ok(())
    }
}

/// Up to so many bytes; fewer only at the end.
fn piece(content: &mut dyn Read, bytes: u64) -> io::Result<Bytes> {
    let mut piece = Vec::new();
    content.take(bytes).read_to_end(&mut piece)?;
    Ok(piece.into())
}

fn is_whole(found: u64, size: u64) -> io::Result<()> {
    if found == size {
        return Ok(());
    }
    let what = format!("{found} bytes are to be stored where {size} were announced");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Tries to replace something in both ways.
async fn prove(bucket: &Bucket) -> Result<(), S3Error> {
    let content = || Bytes::from_static(b"Shows that nothing is replaced here.\n");
    let put = || bucket.put(PROOF, content(), &Replaces::Nothing, Cached::Unsaid);
    // The first one may be what makes it.
    if put().await? != Written::Otherwise && put().await? != Written::Otherwise {
        return Err(bucket.unconditional("If-None-Match"));
    }
    let id = bucket.begin_new(PROOF).await?;
    let part = bucket.put_part(PROOF, &id, 0, content()).await;
    let written = match part {
        Ok(part) => bucket.complete_new(PROOF, &id, vec![part]).await,
        Err(error) => Err(error),
    };
    match written {
        Ok(Written::Done(_)) => Err(bucket.unconditional("If-None-Match")),
        Ok(Written::Otherwise) => {
            bucket.give_up(PROOF, &id).await;
            Ok(())
        }
        Err(error) => {
            bucket.give_up(PROOF, &id).await;
            Err(error)
        }
    }
}
