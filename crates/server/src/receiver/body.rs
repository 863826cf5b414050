//! The body of an upload on its way from the network to the disk, in blocks: one is written while the next one comes.
//!
//! No upload holds a thread or a place in a queue while it waits for its client, so slow clients keep nobody waiting, however
//! many they are. Memory is bounded as well: what finds none left is written as it comes (docs/decisions/0054).

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use cutover_core::{admission::EpisodeKey, causes::chain};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
    time::{Duration, Instant, timeout_at},
};

use super::answer::Problem;
use crate::ingest::{Finished, Store, StoreError, Upload};

/// Bytes that are written in one go, for a body that has more.
const BLOCK: usize = 2 << 20;
/// A body that brings less than this within the time limit is stalled.
const PROGRESS: u64 = 1 << 10;

/// How slow a client may be: what it declares keeps room from others until it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The longest pause.
    pub(super) stall: Duration,
    /// The least bytes per second over the whole body, the longest pause added. 0: any.
    pub(super) bytes_per_s_min: u64,
}

/// A body as it comes in, with its deadlines.
pub(super) struct Incoming {
    body: Body,
    left: u64,
    /// Bytes since the deadline was set.
    window: u64,
    deadline: Instant,
    /// When all of it is to be there.
    end: Option<Instant>,
    pace: Pace,
}

impl Incoming {
    /// A body of this length.
    pub(super) fn new(body: Body, length: u64, pace: Pace) -> Self {
        let now = Instant::now();
        let longest = length.checked_div(pace.bytes_per_s_min).map(Duration::from_secs);
        // A length that no clock reaches has no end.
        let end = longest.and_then(|longest| now.checked_add(longest)?.checked_add(pace.stall));
        Self { body, left: length, window: 0, deadline: now + pace.stall, end, pace }
    }

    /// Begins the time of the client again.
    fn wait_again(&mut self) {
        (self.window, self.deadline) = (0, Instant::now() + self.pace.stall);
    }

    /// Waiting for the disk was not the client's doing.
    fn waited_for_disk(&mut self, since: Instant) {
        self.end = self.end.and_then(|end| end.checked_add(since.elapsed()));
        self.wait_again();
    }

    /// The next piece; `None` at the end, which is where the declared length says.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let cut =
            || Problem::new(StatusCode::BAD_REQUEST, "cut", "The body ended before its declared length.");
        loop {
            let deadline = self.end.map_or(self.deadline, |end| end.min(self.deadline));
            let frame = match timeout_at(deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(cut()),
                Ok(None) if self.left == 0 => return Ok(None),
                Ok(None) => return Err(cut()),
                Err(_) => {
                    let Pace { stall, bytes_per_s_min } = self.pace;
                    let detail = if deadline < self.deadline {
                        format!("It came with less than {bytes_per_s_min} bytes per second.")
                    } else {
                        format!("Less than {PROGRESS} bytes came in {} s.", stall.as_secs())
                    };
                    return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "stalled", detail));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.is_empty() {
                continue;
            }
            self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(cut)?;
            self.window += bytes.len() as u64;
            if self.window >= PROGRESS {
                self.wait_again();
            }
            return Ok(Some(bytes));
        }
    }
}

/// What came, until it is written.
#[derive(Default)]
struct Block {
    pieces: Vec<Bytes>,
    size: usize,
    /// What the pieces take of the memory for bodies.
    held: Option<OwnedSemaphorePermit>,
}

impl Block {
    /// Adds a piece. Returns whether the block should be written before more comes, for it is large or memory is short. A piece
    /// counts as a KiB at least, so that single bytes take what they cost.
    fn add(&mut self, piece: Bytes, memory: &Arc<Semaphore>) -> bool {
        let kib = u32::try_from(piece.len().div_ceil(1024)).unwrap_or(u32::MAX);
        self.size += piece.len();
        self.pieces.push(piece);
        let Ok(more) = Arc::clone(memory).try_acquire_many_owned(kib) else { return true };
        match &mut self.held {
            Some(held) => held.merge(more),
            held => *held = Some(more),
        }
        self.size >= BLOCK
    }
}

/// The disk's side of a body. Threads that may block are used only as long as something is written.
struct Disk<'a> {
    store: Arc<Store>,
    key: EpisodeKey,
    /// At work on the block that was handed over last, of so many bytes; `None` before the first.
    writing: Option<(JoinHandle<Result<Upload, StoreError>>, u64)>,
    /// Is told how many bytes were written, again and again.
    wrote: &'a mut (dyn FnMut(u64) + Send),
}

impl Disk<'_> {
    /// The upload, once all that was handed over is written; `None` before the first block.
    async fn written(&mut self) -> Result<Option<Upload>, Problem> {
        match self.writing.take() {
            Some((writing, bytes)) => {
                let upload = joined(writing.await)?;
                (self.wrote)(bytes);
                Ok(Some(upload))
            }
            None => Ok(None),
        }
    }

    /// Writes a block, once those before are written.
    async fn write(&mut self, block: Block) -> Result<(), Problem> {
        let upload = self.written().await?;
        let (store, key, bytes) = (Arc::clone(&self.store), self.key.clone(), block.size as u64);
        self.writing = Some((spawn_blocking(move || append(&store, key, upload, &block)), bytes));
        Ok(())
    }

    /// Writes the last block, and ends the upload.
    async fn finish(mut self, block: Block) -> Result<Finished, Problem> {
        let upload = self.written().await?;
        let finished = spawn_blocking(move || append(&self.store, self.key, upload, &block)?.finish());
        joined(finished.await)
    }

    /// Leaves nothing of the upload.
    async fn abandon(mut self) {
        if let Ok(Some(upload)) = self.written().await {
            let _ = spawn_blocking(move || drop(upload)).await;
        }
    }
}

fn append(
    store: &Arc<Store>,
    key: EpisodeKey,
    upload: Option<Upload>,
    block: &Block,
) -> Result<Upload, StoreError> {
    let mut upload = upload.map_or_else(|| store.begin(key), Ok)?;
    block.pieces.iter().try_for_each(|piece| upload.write(piece))?;
    Ok(upload)
}

/// Takes a body to the disk, and tells `wrote` how far it is. With an error, nothing is left of it. `memory` is that for all
/// bodies, in KiB.
pub(super) async fn to_disk(
    store: &Arc<Store>,
    key: EpisodeKey,
    mut source: Incoming,
    memory: &Arc<Semaphore>,
    wrote: &mut (dyn FnMut(u64) + Send),
) -> Result<Finished, Problem> {
    let mut disk = Disk { store: Arc::clone(store), key, writing: None, wrote };
    let mut block = Block::default();
    loop {
        match source.next().await {
            Ok(Some(piece)) => {
                // The last block is written with the end.
                if block.add(piece, memory) && source.left > 0 {
                    let since = Instant::now();
                    disk.write(std::mem::take(&mut block)).await?;
                    source.waited_for_disk(since);
                }
            }
            Ok(None) => return disk.finish(block).await,
            Err(problem) => {
                disk.abandon().await;
                return Err(problem);
            }
        }
    }
}

fn joined<T>(done: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, Problem> {
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::error!("not stored: {}", chain(&error));
            Err(Problem::of_store(&error))
        }
        Err(_) => Err(Problem::stopping()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        pin::Pin,
        task::{Context, Poll},
    };

    use cutover_core::model::Digest;

    use super::*;

    #[derive(Clone, Copy)]
    enum Next {
        Piece(usize),
        /// A moment in which nothing comes.
        Pause,
        /// Until then.
        Until(Instant),
        Never,
    }

    const PAUSE: Duration = Duration::from_millis(50);

    struct Pieces(VecDeque<Next>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            match self.0.pop_front() {
                Some(Next::Piece(size)) => {
                    Poll::Ready(Some(Ok(http_body::Frame::data(vec![7; size].into()))))
                }
                Some(Next::Pause) => {
                    self.0.push_front(Next::Until(Instant::now() + PAUSE));
                    self.poll_frame(context)
                }
                Some(Next::Until(then)) if Instant::now() < then => {
                    self.0.push_front(Next::Until(then));
                    let waker = context.waker().clone();
                    std::thread::spawn(move || {
                        std::thread::sleep(PAUSE);
                        waker.wake();
                    });
                    Poll::Pending
                }
                Some(Next::Until(_)) => self.poll_frame(context),
                Some(Next::Never) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn incoming(pieces: &[Next], length: usize, stall: Duration) -> Incoming {
        let pace = Pace { stall, bytes_per_s_min: 0 };
        Incoming::new(Body::new(Pieces(pieces.iter().copied().collect())), length as u64, pace)
    }

    fn key(episode: &str) -> EpisodeKey {
        EpisodeKey::from_path(&format!("h/{episode}")).unwrap()
    }

    /// A store, and a runtime that writes one thing at a time.
    fn store_and_runtime() -> (tempfile::TempDir, Arc<Store>, tokio::runtime::Runtime) {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("data"), None, jiff::Timestamp::now).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        (place, store, runtime.max_blocking_threads(1).enable_all().build().unwrap())
    }

    #[test]
    fn block_is_full_when_it_is_large_or_memory_is_short() {
        let memory = Arc::new(Semaphore::new(BLOCK / 1024 + 2));
        let piece = |size| Bytes::from(vec![7; size]);
        let mut first = Block::default();
        assert!(!first.add(piece(BLOCK / 2), &memory));
        assert!(first.add(piece(BLOCK / 2), &memory), "it is large");
        let mut second = Block::default();
        assert!(!second.add(piece(1), &memory));
        assert!(!second.add(piece(1), &memory));
        assert!(second.add(piece(1), &memory), "a KiB each was left");
        drop(first);
        assert!(!second.add(piece(1), &memory));
        drop(second);
        assert_eq!(memory.available_permits(), BLOCK / 1024 + 2);
    }

    #[test]
    fn body_is_the_same_in_one_block_in_many_and_without_memory() {
        let (_place, store, runtime) = store_and_runtime();
        for (size, kib) in [(0, 1024), (1, 0), (BLOCK / 2, 1024), (3 * BLOCK, 4096), (3 * BLOCK, 0)] {
            let pieces = [Next::Piece(size / 3), Next::Pause, Next::Piece(size - size / 3)];
            let source = incoming(&pieces, size, Duration::from_secs(60));
            let memory = Arc::new(Semaphore::new(kib));
            let mut written = 0;
            let mut wrote = |bytes| written += bytes;
            let taken = runtime.block_on(to_disk(&store, key("e"), source, &memory, &mut wrote));
            let finished = taken.map_err(|problem| problem.status).unwrap();
            assert_eq!((finished.size, finished.digest), (size as u64, Digest::of(&vec![7; size])));
            // What is written with the end is told by that.
            assert!(written <= size as u64 && (written > 0 || size < 3 * BLOCK), "{written} of {size}");
        }
    }

    #[test]
    fn slow_disk_is_not_a_stalled_client() {
        let (_place, store, runtime) = store_and_runtime();
        let stall = Duration::from_secs(2);
        // The disk is busy for longer than a client may be silent.
        runtime.spawn_blocking(move || std::thread::sleep(stall + Duration::from_secs(1)));
        let pieces = [Next::Piece(BLOCK), Next::Piece(BLOCK), Next::Pause, Next::Piece(BLOCK)];
        let source = incoming(&pieces, 3 * BLOCK, stall);
        let memory = Arc::new(Semaphore::new(4096));
        let taken = runtime.block_on(to_disk(&store, key("e"), source, &memory, &mut |_| ()));
        assert_eq!(
            taken.map(|finished| finished.size).map_err(|problem| problem.status),
            Ok(3 * BLOCK as u64)
        );
    }

    #[test]
    fn client_that_never_pauses_and_is_too_slow_on_the_whole_is_given_up() {
        let (_place, store, runtime) = store_and_runtime();
        let pieces = [Next::Piece(2048), Next::Pause].repeat(512);
        let body = Body::new(Pieces(pieces.into_iter().collect()));
        let pace = Pace { stall: Duration::from_secs(1), bytes_per_s_min: 1 << 20 };
        let (source, memory) = (Incoming::new(body, 1 << 20, pace), Arc::new(Semaphore::new(4096)));
        let taken = runtime.block_on(to_disk(&store, key("e"), source, &memory, &mut |_| ()));
        let problem = taken.map(drop).unwrap_err();
        assert_eq!(problem.status, StatusCode::REQUEST_TIMEOUT);
        assert!(problem.detail.contains("1048576 bytes per second"), "{}", problem.detail);
    }

    #[test]
    fn clients_that_send_no_more_keep_no_other_waiting() {
        let (place, store, runtime) = store_and_runtime();
        // Memory for one block: the first client has it, and the second none.
        let memory = Arc::new(Semaphore::new(BLOCK / 1024));
        let slow = |episode: &str| {
            let pieces =
                [Next::Piece(BLOCK - 1), Next::Pause, Next::Piece(1), Next::Piece(BLOCK - 1), Next::Never];
            let source = incoming(&pieces, 4 * BLOCK, Duration::from_secs(600));
            let (store, memory, key) = (Arc::clone(&store), Arc::clone(&memory), key(episode));
            runtime.spawn(async move { to_disk(&store, key, source, &memory, &mut |_| ()).await.map(|_| ()) })
        };
        let slow = [slow("one"), slow("two")];
        let written = || {
            let parts = std::fs::read_dir(place.path().join("data/episodes/h"));
            parts
                .into_iter()
                .flatten()
                .filter(|part| part.as_ref().unwrap().metadata().unwrap().len() > 0)
                .count()
        };
        while written() < 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let source =
            incoming(&[Next::Piece(10), Next::Pause, Next::Piece(90)], 100, Duration::from_secs(600));
        let mut wrote = |_| ();
        let taken = to_disk(&store, key("quick"), source, &memory, &mut wrote);
        let taken = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), taken).await });
        assert!(taken.is_ok_and(|taken| taken.is_ok_and(|finished| finished.size == 100)));
        assert!(slow.iter().all(|slow| !slow.is_finished()));
    }

    #[test]
    fn nothing_is_left_of_a_body_that_breaks_off() {
        let (place, store, runtime) = store_and_runtime();
        let source = incoming(&[Next::Piece(2 * BLOCK)], 3 * BLOCK, Duration::from_secs(60));
        let memory = Arc::new(Semaphore::new(4096));
        let taken = runtime.block_on(to_disk(&store, key("e"), source, &memory, &mut |_| ()));
        assert_eq!(taken.map(|_| ()).map_err(|problem| problem.status), Err(StatusCode::BAD_REQUEST));
        assert_eq!(std::fs::read_dir(place.path().join("data/episodes/h")).unwrap().count(), 0);
    }
}
