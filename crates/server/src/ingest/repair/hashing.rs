//! Reading what is stored, on several threads, in an order that does not depend on them.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{
    episodes::Task,
    options::RepairOptions,
    report::{Progress, RepairError, RepairWatch},
    sink::Sink,
};
use crate::ingest::{
    files,
    inspect::{BLOCK, Commit, Inspected, inspect},
    layout::Layout,
};

/// Hashed rows are written at least this often.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// So many results may wait for one that takes longer.
const AHEAD_MAX: usize = 4096;

/// Hashes files on several threads and hands them over in their order.
pub(super) fn hash_all(
    options: &RepairOptions,
    tasks: &[Task],
    now: &dyn Fn() -> jiff::Timestamp,
    watch: &mut dyn RepairWatch,
    sink: &mut Sink,
) -> Result<(), RepairError> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (bytes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Progress {
        files_all: tasks.len(),
        bytes_all: tasks.iter().map(|task| task.size).sum(),
        ..Progress::default()
    };
    std::thread::scope(|scope| {
        let (tell, results) = mpsc::sync_channel(AHEAD_MAX);
        for _ in 0..options.jobs.get().min(tasks.len().max(1)) {
            let (tell, next, done, bytes, stop) = (tell.clone(), &next, &done, &bytes, &stop);
            scope.spawn(move || {
                let mut block = vec![0; BLOCK];
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(number).filter(|_| !stop.load(Ordering::Relaxed)) else {
                        return;
                    };
                    // Nobody may run so far ahead of the slowest that what waits for it fills the memory.
                    while number > done.load(Ordering::Relaxed) + AHEAD_MAX && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let hashed = inspect_task(options, task, &mut block, bytes);
                    if tell.send((number, hashed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        let mut ahead = BTreeMap::new();
        let mut turn = 0;
        let mut written = Instant::now();
        let ended = loop {
            match results.recv_timeout(WRITE_EVERY) {
                Ok((number, hashed)) => drop(ahead.insert(number, hashed)),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            }
            while let Some(hashed) = ahead.remove(&turn) {
                let task = &tasks[turn];
                sink.take(options, task, hashed, now, watch);
                turn += 1;
                done.store(turn, Ordering::Relaxed);
            }
            if sink.is_full() || written.elapsed() >= WRITE_EVERY {
                let bytes = bytes.load(Ordering::Relaxed);
                watch.progress(Progress { files: turn, bytes, ..all });
                if let Err(error) = sink.write(&options.index) {
                    break Err(error);
                }
                written = Instant::now();
            }
        };
        stop.store(true, Ordering::Relaxed);
        drop(results);
        ended?;
        watch.progress(Progress { files: turn, bytes: bytes.load(Ordering::Relaxed), ..all });
        sink.write(&options.index)
    })
}

fn inspect_task(
    options: &RepairOptions,
    task: &Task,
    block: &mut [u8],
    bytes: &AtomicU64,
) -> io::Result<Inspected> {
    let mut episode: Box<dyn Read> = match &options.bucket {
        None => Box::new(files::open_episode(&options.layout.episode(&task.key))?),
        Some(bucket) => {
            let object = bucket.open(&Layout::object(&task.key))?;
            object.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?
        }
    };
    let commit = if task.row.is_none() { Commit::Find } else { Commit::Ignore };
    let mut tell = |read| {
        bytes.fetch_add(read, Ordering::Relaxed);
    };
    inspect(&mut episode, commit, &task.key, block, &mut tell)
}
