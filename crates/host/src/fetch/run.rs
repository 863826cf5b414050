//! Many objects: who is fetched when, and who is told.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use cutover_core::fetch::{
    self,
    mirrors::{MirrorId, Mirrors},
    speeds::Speeds,
};
use tokio::{runtime::Runtime, sync::Semaphore};

use super::{
    Downloads, FetchError, Fetched, Sink, SourceSettings, Taken, Timer, Token, Wanted, Watch,
    base::{Base, Buckets},
    http::Http,
    timer::Limiter,
    transfer::{Shared, Transfer},
    writer::OffThread,
};
use crate::{clock::Clock, nice::Nice};

/// Fetches objects from one source: from one or several places that hold the same.
pub struct Fetcher {
    /// Before the runtime, so that idle connections are dropped first.
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Runtime,
    parallel: NonZeroUsize,
    jobs: NonZeroUsize,
    speeds: Speeds,
}

/// What the outside world does for a [`Fetcher`].
pub struct FetchPorts {
    /// Waits.
    pub timer: Arc<dyn Timer>,
    /// Knows the time, for servers that name one to come back at.
    pub clock: Arc<dyn Clock>,
    /// Spreads the waits of many nodes; any number that differs between them.
    pub seed: u64,
    /// Files hashed and written at the same time.
    pub jobs: NonZeroUsize,
    /// How far the threads that do this give way to others.
    pub nice: Nice,
    /// What earlier runs measured of the places.
    pub speeds: Speeds,
    /// Opens places in buckets, where the program can.
    pub buckets: Option<Box<dyn Buckets>>,
}

/// What the failure of one object means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are not fetched: without this object they are worth nothing.
    Stop,
    /// They are fetched all the same.
    GoOn,
}

/// What became of every object, in the order in which they were wanted. (W4)
#[derive(Debug, Default)]
pub struct Report {
    /// One result for each.
    pub objects: Vec<Result<Fetched, FetchError>>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// How many objects are there now.
    pub fn succeeded(&self) -> usize {
        self.objects.iter().filter(|object| object.is_ok()).count()
    }

    /// How many are not.
    pub fn failed(&self) -> usize {
        self.objects.len() - self.succeeded()
    }

    /// Bytes that came from the source for those that are there.
    pub fn fetched_bytes(&self) -> u64 {
        self.objects.iter().flatten().map(|object| object.fetched_bytes).sum()
    }

    /// The first failure that is a reason and not a consequence.
    pub fn into_result(self) -> Result<Vec<Fetched>, FetchError> {
        let mut fetched = Vec::new();
        let mut consequence = None;
        for object in self.objects {
            match object {
                Ok(object) => fetched.push(object),
                Err(FetchError::Stopped) => consequence = Some(FetchError::Stopped),
                Err(error) => return Err(error),
            }
        }
        consequence.map_or(Ok(fetched), Err)
    }
}

impl Fetcher {
    /// Fetches from `bases`, each a URL, a directory or `s3://BUCKET/PREFIX`, as `settings` say.
    ///
    /// # Errors
    /// [`FetchError::Setting`], [`FetchError::Read`] for a directory that cannot be opened, [`FetchError::Bucket`],
    /// [`FetchError::Runtime`].
    pub fn new(
        bases: &[String],
        settings: &SourceSettings,
        token: Option<Token>,
        ports: FetchPorts,
    ) -> Result<Self, FetchError> {
        let buckets = ports.buckets.as_deref();
        let open = |base: &String| Base::open(base, token.as_ref(), buckets);
        let bases = bases.iter().map(open).collect::<Result<_, _>>()?;
        Self::of_bases(bases, settings, token, ports)
    }

    pub(super) fn of_bases(
        bases: Vec<Base>,
        settings: &SourceSettings,
        token: Option<Token>,
        ports: FetchPorts,
    ) -> Result<Self, FetchError> {
        if bases.is_empty() {
            let reason = "there is no place to fetch from".to_owned();
            return Err(FetchError::Setting { key: "urls", reason });
        }
        let (parallel, nice) = (settings.parallel()?, ports.nice);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(ports.jobs.get().min(2))
            .thread_name("fetch")
            .on_thread_start(move || nice.take_on())
            .enable_all()
            .build()
            .map_err(FetchError::Runtime)?;
        let http = {
            let _inside = runtime.enter();
            Http::new(settings, token)?
        };
        let now = ports.clock.now();
        let known = |base: &Base| ports.speeds.of(&base.name(), now);
        let shared = Shared {
            mirrors: Mutex::new(Mirrors::knowing(bases.iter().map(known))),
            bases,
            http,
            policy: settings.retry_policy(),
            resume: settings.resume,
            limiter: Limiter::new(settings.bytes_per_s),
            timer: ports.timer,
            clock: ports.clock,
            seed: ports.seed,
        };
        Ok(Self { shared: Arc::new(shared), runtime, parallel, jobs: ports.jobs, speeds: ports.speeds })
    }

    /// What is known of the speeds of places now; `None` when there is nothing new to keep, or nothing to choose from.
    pub fn learned(&self) -> Option<Speeds> {
        let mirrors = self.shared.mirrors.lock().expect("no holder panics");
        let bases = self.shared.bases.iter().enumerate();
        let measured: Vec<(String, f64)> = bases
            .filter_map(|(index, base)| Some((base.name(), mirrors.measured(MirrorId(index))?)))
            .collect();
        if measured.is_empty() || self.shared.bases.len() < 2 {
            return None;
        }
        let mut speeds = self.speeds.clone();
        speeds.learn(measured, self.shared.clock.now());
        Some(speeds)
    }

    /// Fetches what `wanted` names, verifies it, and hands it to `sink` as it arrives, on this thread. What is not taken
    /// stays among the downloads, and so does what an interrupted run leaves. [`Sink::stop`] ends it from outside.
    ///
    /// # Errors
    /// [`FetchError::Space`] before the first byte, [`FetchError::Fs`], [`FetchError::Sink`]. What became of each object is
    /// in the [`Report`].
    pub fn fetch(
        &self,
        downloads: &Arc<Downloads>,
        wanted: &[Wanted],
        on_failure: OnFailure,
        watch: &Arc<dyn Watch>,
        sink: &mut dyn Sink,
    ) -> Result<Report, FetchError> {
        let started = self.shared.timer.now();
        let firsts = first_of_each(wanted);
        demand_space(downloads, wanted, &firsts)?;
        let priorities: Vec<_> = wanted.iter().map(|wanted| wanted.priority).collect();
        let queue: VecDeque<usize> =
            fetch::order(&priorities).into_iter().filter(|index| firsts[*index] == *index).collect();

        let workers = self.parallel.get().min(queue.len());
        let queue = Arc::new(Mutex::new(queue));
        let files = OffThread::new(Arc::new(Semaphore::new(self.jobs.get())), Arc::clone(downloads));
        let list: Arc<[Wanted]> = wanted.into();
        let stop = sink.stop();
        let (send, receive) = mpsc::channel();
        for _ in 0..workers {
            let (queue, list, files, send) =
                (Arc::clone(&queue), Arc::clone(&list), files.clone(), send.clone());
            let (shared, watch) = (Arc::clone(&self.shared), Arc::clone(watch));
            let (stop, stopped) = (stop.clone(), stop.told());
            self.runtime.spawn(async move {
                loop {
                    let next = queue.lock().expect("no holder panics").pop_front();
                    let Some(index) = next.filter(|_| !*stopped.borrow()) else { return };
                    let transfer = Transfer {
                        shared: Arc::clone(&shared),
                        files: files.clone(),
                        wanted: list[index].clone(),
                        index,
                        watch: Arc::clone(&watch),
                        stop: stopped.clone(),
                    };
                    let result = transfer.run().await;
                    if result.is_err() && on_failure == OnFailure::Stop {
                        stop.stop();
                    }
                    if send.send((index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);

        let mut results: Vec<Option<Result<Fetched, FetchError>>> = wanted.iter().map(|_| None).collect();
        let mut sink_failed = None;
        while let Ok((index, result)) = receive.recv() {
            if let (Ok(fetched), None) = (&result, &sink_failed) {
                let taken = sink.take(index, fetched, downloads).map_err(FetchError::Sink);
                let taken = taken.and_then(|taken| match taken {
                    Taken::Consumed => downloads.consume(fetched.digest),
                    Taken::Kept => Ok(()),
                });
                if let Err(error) = taken {
                    sink_failed = Some(error);
                    stop.stop();
                }
            }
            results[index] = Some(result);
        }
        if let Some(error) = sink_failed {
            return Err(error);
        }
        let objects = with_repeated(results, &firsts);
        Ok(Report { objects, took: self.shared.timer.now().saturating_sub(started) })
    }
}

/// For each, the index of the first that wants the same.
fn first_of_each(wanted: &[Wanted]) -> Vec<usize> {
    let mut firsts = BTreeMap::new();
    let each = wanted.iter().enumerate();
    each.map(|(index, wanted)| *firsts.entry(wanted.digest).or_insert(index)).collect()
}

/// Room for everything twice, before the first byte. (H3)
fn demand_space(downloads: &Downloads, wanted: &[Wanted], firsts: &[usize]) -> Result<(), FetchError> {
    let (mut total, mut present) = (0u64, 0u64);
    for (index, Wanted { digest, size_bytes, .. }) in wanted.iter().enumerate() {
        if firsts[index] != index {
            continue;
        }
        total = total.saturating_add(*size_bytes);
        let there = downloads.present(*digest, *size_bytes)?;
        present = present.saturating_add(if there.whole { *size_bytes } else { there.partial_bytes });
    }
    let (needed, free) = (fetch::needed_bytes(total, present), downloads.free_bytes()?);
    if free < needed { Err(FetchError::Space { needed, free }) } else { Ok(()) }
}

/// One result for each that was wanted; whoever wants the same again has fetched nothing.
fn with_repeated(
    mut results: Vec<Option<Result<Fetched, FetchError>>>,
    firsts: &[usize],
) -> Vec<Result<Fetched, FetchError>> {
    for (index, first) in firsts.iter().enumerate().filter(|(index, first)| index != *first) {
        if let Some(Ok(fetched)) = &results[*first] {
            results[index] = Some(Ok(Fetched { fetched_bytes: 0, ..fetched.clone() }));
        }
    }
    // Nobody came to what is left.
    results.into_iter().map(|result| result.unwrap_or(Err(FetchError::Stopped))).collect()
}
