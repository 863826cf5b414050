//! The loop: looks into the spool, gives out work, and does what the answers mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use cutover_bundle::episode::HostKey;
use cutover_core::{
    admission::HostId,
    causes::chain,
    model::Instant,
    ship::{Answer, Problem, Reach, Severity, UpdateGate, Verdict, Waiting, judge, next_to_start},
};
use tokio::sync::watch;

use super::{
    ShipError,
    queue::{Item, Queue, State, Wait},
    release::Releases,
    settings::{OnRefused, ShipSettings},
    spool::{Entry, EntryError, OWN, Settling, Spool},
    update,
    upload::Target,
    worker::{Ended, Event, Job, Shared, remove_packed, work},
};
use crate::{
    clock::Clock,
    disk::{Disk as _, Locked, RealDisk},
    fetch::{Timer, read_small},
};

/// How often the spool is looked at, unless looking takes long.
const SCAN_EVERY: Duration = Duration::from_secs(1);
/// How soon a request to stop is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// So many numbers of attestations are taken at a time.
const SEQUENCES: u32 = 1000;

/// What the outside world does for a [`Shipper`].
pub struct ShipPorts {
    /// The time since any fixed moment, and waits.
    pub timer: Arc<dyn Timer>,
    /// Knows the time, for dates in answers and rows.
    pub clock: Arc<dyn Clock>,
    /// Spreads the waits of hosts.
    pub seed: u64,
    /// The name of this machine, for `ship.host`.
    pub host_name: String,
}

/// When a [`Shipper`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it is stopped.
    Stopped,
    /// When everything that lies in the spool is shipped or parked.
    Empty,
}

/// Whether everything in the spool was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    All,
    /// Something is still written, or was not looked at.
    NotYet,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Episodes that were shipped.
    pub shipped: u64,
    /// Episodes that are parked.
    pub parked: usize,
    /// Episodes that wait.
    pub queued: usize,
}

/// Ships what lies in a spool.
pub struct Shipper {
    settings: ShipSettings,
    ports: ShipPorts,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    queue: Queue,
    version: i64,
    items: BTreeMap<i64, Item>,
    paths: BTreeSet<String>,
    streams: BTreeMap<String, usize>,
    /// When those that wait are due, since the timer's start.
    due: BTreeMap<i64, Duration>,
    in_flight: BTreeSet<i64>,
    /// Changed in memory and not yet in the file.
    unwritten: BTreeSet<i64>,
    /// Shipped or gone, and not yet out of the file.
    unremoved: Vec<(Item, Option<Instant>)>,
    settling: Settling,
    told_odd: BTreeSet<String>,
    reach: Reach,
    updates: UpdateGate,
    boot: String,
    /// Numbers of attestations that are not used yet.
    sequences: std::ops::Range<u64>,
    shipped: u64,
    /// Held for as long as we live.
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Shipper {
    /// Takes the spool: nobody else ships from it until this is dropped.
    ///
    /// # Errors
    /// [`ShipError`]
    pub fn open(settings: ShipSettings, ports: ShipPorts) -> Result<Self, ShipError> {
        let (path, host) = place(&settings, &ports.host_name)?;
        if !(1..=19).contains(&settings.zstd_level) {
            let reason = "it is a level from 1 to 19".to_owned();
            return Err(ShipError::Setting { key: "zstd_level", reason });
        }
        if settings.on_refused == OnRefused::Update && settings.update_command.is_empty() {
            let reason =
                "`ship.on_refused` is `update`, so it names the program and its arguments".to_owned();
            return Err(ShipError::Setting { key: "update_command", reason });
        }
        let target = Arc::new(Target::new(&settings, Arc::clone(&ports.timer))?);
        let io = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| ShipError::Io { attempt, path, source }
        };
        let disk = Arc::new(RealDisk::open(&path).map_err(io("open the spool", &path))?);
        let own = path.join(OWN);
        match disk.create_dir(Path::new(OWN), 0o700) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io("make", &own)(error));
            }
            _ => {}
        }
        let lock = lock(&disk).map_err(io("lock", &own))?;
        let Locked::Taken(lock) = lock else {
            let Locked::Held { note } = lock else { unreachable!("a lock is taken or held") };
            return Err(ShipError::Busy(note));
        };
        let spool = Spool::new(Arc::clone(&disk), settings.layout, host);
        spool.prepare().map_err(io("tidy", &own))?;
        let (queue, aside) = Queue::open(disk.as_ref())?;
        if let Some(aside) = aside {
            tracing::error!(
                aside,
                "the queue was damaged and moved aside; it is filled from the spool again"
            );
        }
        let (stop, stopped) = watch::channel(false);
        let host_key = settings.attest_key.as_deref().map(host_key).transpose()?;
        let releases = settings.attest_root.as_deref().map(Releases::at);
        let zstd_level = settings.zstd_level;
        let shared = Arc::new(Shared { spool, target, zstd_level, host_key, releases, stop: stopped });
        let mut shipper = Self {
            updates: UpdateGate::new(Duration::from_secs(u64::from(settings.update_every_s))),
            settings,
            ports,
            shared,
            stop,
            version: queue.version()?,
            queue,
            items: BTreeMap::new(),
            paths: BTreeSet::new(),
            streams: BTreeMap::new(),
            due: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            unremoved: Vec::new(),
            settling: Settling::default(),
            told_odd: BTreeSet::new(),
            reach: Reach::default(),
            boot: boot_id(),
            sequences: 0..0,
            shipped: 0,
            _lock: lock,
        };
        shipper.load()?;
        shipper.tidy_packed();
        Ok(shipper)
    }

    /// Ships until there is a reason to end; `stopped` is asked now and then.
    ///
    /// # Errors
    /// [`ShipError`]; with [`Until::Empty`] also when the spool cannot be listed, or what is new in it cannot be queued, and
    /// nothing else is left to do. With [`Until::Stopped`] that is waited for, as is a full disk.
    pub fn run(mut self, until: Until, stopped: &dyn Fn() -> bool) -> Result<Summary, ShipError> {
        let (give, jobs) = mpsc::channel();
        let (events_in, events) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..self.settings.limits().in_flight {
            let (shared, jobs, events) = (Arc::clone(&self.shared), Arc::clone(&jobs), events_in.clone());
            std::thread::Builder::new()
                .name(format!("upload-{number}"))
                .spawn(move || {
                    if let Err(error) = work(&shared, &jobs, &events) {
                        tracing::error!(%error, "an upload thread cannot start");
                    }
                })
                .map_err(ShipError::Runtime)?;
        }
        for item in self.items.values().filter(|item| item.state == State::Done) {
            // The receivers of jobs live as long as the threads, which live as long as `give`.
            let _ = give.send(Job::Remove(item.clone()));
            self.in_flight.insert(item.number);
        }
        let served = self.serve(until, stopped, &give, &events, &events_in);
        self.stop.send_replace(true);
        self.write();
        served?;
        let count = |state| self.items.values().filter(|item| item.state == state).count();
        Ok(Summary { shipped: self.shipped, parked: count(State::Parked), queued: count(State::Queued) })
    }

    fn serve(
        &mut self,
        until: Until,
        stopped: &dyn Fn() -> bool,
        give: &Sender<Job>,
        events: &Receiver<Event>,
        tell: &Sender<Event>,
    ) -> Result<(), ShipError> {
        let mut next_scan = Duration::ZERO;
        loop {
            if stopped() {
                return Ok(());
            }
            let now = self.ports.timer.now();
            self.reload();
            let is_busy = |shipper: &Self| {
                !shipper.in_flight.is_empty()
                    || shipper.updates.is_running()
                    || shipper.items.values().any(|item| item.state == State::Queued)
            };
            let look = now >= next_scan || (until == Until::Empty && !is_busy(self));
            let scanned = if look { self.scan(now) } else { Ok(Settled::NotYet) };
            if look {
                let took = self.ports.timer.now().saturating_sub(now);
                next_scan = now + SCAN_EVERY.max(took * 20);
            }
            self.write();
            self.start(now, give);
            if until == Until::Empty && !is_busy(self) {
                match scanned {
                    Ok(Settled::All) => return Ok(()),
                    Ok(Settled::NotYet) => {}
                    Err(error) => return Err(error),
                }
            } else if let Err(error) = scanned {
                tracing::error!(error = chain(&error), "what is new in the spool cannot be taken in yet");
            }
            let due = self.due.values().copied().chain(self.reach.due()).filter(|due| *due > now);
            let wake = due.chain([next_scan, now + LOOK_EVERY]).min().unwrap_or(next_scan);
            match events.recv_timeout(wake.saturating_sub(now).max(Duration::from_millis(1))) {
                Ok(event) => {
                    self.handle(event, give, tell);
                    while let Ok(event) = events.try_recv() {
                        self.handle(event, give, tell);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("we hold a sender ourselves"),
            }
        }
    }

    /// Reads the queue from its file.
    fn load(&mut self) -> Result<(), ShipError> {
        let mut items = self.queue.items()?;
        for number in self.in_flight.iter().chain(&self.unwritten) {
            // What we know is newer, unless somebody dropped it.
            if let (Some(theirs), Some(ours)) = (items.get_mut(number), self.items.get(number)) {
                theirs.clone_from(ours);
            }
        }
        for item in self.unremoved.iter().map(|(item, _)| item.number) {
            items.remove(&item);
        }
        let (now, boot_now) = (self.ports.timer.now(), boot_now());
        for item in items.values() {
            let wait = item.progress.wait.as_ref();
            let changed = self.items.get(&item.number).is_none_or(|old| old.progress.wait.as_ref() != wait);
            if changed {
                let left = wait.map_or(Duration::ZERO, |wait| wait.left(&self.boot, boot_now));
                self.due.insert(item.number, now + left);
            }
        }
        self.due.retain(|number, _| items.contains_key(number));
        self.paths = items.values().map(|item| item.path.clone()).collect();
        self.items = items;
        Ok(())
    }

    /// Reads the queue again when somebody else has written: `ship retry` and `ship drop` do.
    fn reload(&mut self) {
        let read = self.queue.version().map_err(ShipError::from).and_then(|version| {
            let changed = version != self.version;
            if changed {
                self.load()?;
                self.version = version;
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::error!(error = chain(&error), "the queue cannot be read");
        }
    }

    /// Removes packed files that belong to no row: of runs that were killed.
    fn tidy_packed(&self) {
        let disk = &self.shared.spool.disk;
        let directory = Path::new(OWN).join("packed");
        for (name, _) in disk.list(&directory).unwrap_or_default() {
            let number = name.strip_suffix(".tar.zst").and_then(|number| number.parse::<i64>().ok());
            if number.is_none_or(|number| !self.items.contains_key(&number)) {
                let removed = disk.remove_file(&directory.join(&name));
                tracing::debug!(name, ?removed, "a packed file belongs to nobody");
            }
        }
    }

    /// Takes in what is new in the spool and settled.
    fn scan(&mut self, now: Duration) -> Result<Settled, ShipError> {
        let spool = &self.shared.spool;
        let listing = spool.list().map_err(|source| ShipError::Io {
            attempt: "list the spool",
            path: spool.disk.root(),
            source,
        })?;
        for (name, reason) in &listing.odd {
            if self.told_odd.insert(name.clone()) {
                tracing::error!(name, reason, "left in the spool: this is no episode");
            }
        }
        let fresh: Vec<&Entry> =
            listing.entries.iter().filter(|entry| !self.paths.contains(&entry.path)).collect();
        self.settling.keep(&fresh.iter().map(|entry| entry.path.as_str()).collect());
        let settle = Duration::from_secs(u64::from(self.settings.settle_s));
        let mut settled = Vec::new();
        let mut all = Settled::All;
        for entry in fresh {
            match spool.print(&entry.path, entry.kind) {
                Ok(print) if self.settling.is_settled(&entry.path, &print, now, settle) => {
                    settled.push((print.modified_ns, entry.clone()));
                }
                Ok(_) => all = Settled::NotYet,
                Err(EntryError::Gone) => {}
                // It is taken in all the same, so that `ship status` says what is wrong with it.
                Err(_) => settled.push((i128::MAX, entry.clone())),
            }
        }
        settled.sort_by(|(one, a), (other, b)| (one, &a.path).cmp(&(other, &b.path)));
        let entries: Vec<Entry> = settled.into_iter().map(|(_, entry)| entry).collect();
        if entries.is_empty() {
            return Ok(all);
        }
        for item in self.queue.add(&entries, self.ports.clock.now())? {
            tracing::debug!(episode = %item.key, path = item.path, "queued");
            self.paths.insert(item.path.clone());
            self.items.insert(item.number, item);
        }
        for entry in entries.iter().filter(|entry| !self.paths.contains(&entry.path)) {
            if self.told_odd.insert(entry.path.clone()) {
                let (episode, path) = (&entry.key, &entry.path);
                tracing::error!(%episode, path, "left in the spool: this id is queued from another place");
            }
        }
        Ok(all)
    }

    /// Writes what is not written yet; what fails is tried again.
    fn write(&mut self) {
        let mut left = BTreeSet::new();
        for number in std::mem::take(&mut self.unwritten) {
            let Some(item) = self.items.get(&number) else { continue };
            if let Err(error) = self.queue.update(item) {
                tracing::error!(error = chain(&error), episode = %item.key, "the queue cannot be written");
                left.insert(number);
            }
        }
        self.unwritten = left;
        let mut left = Vec::new();
        for (item, shipped) in std::mem::take(&mut self.unremoved) {
            if let Err(error) = self.queue.remove(&item, shipped) {
                tracing::error!(error = chain(&error), episode = %item.key, "the queue cannot be written");
                left.push((item, shipped));
            }
        }
        self.unremoved = left;
    }

    fn start(&mut self, now: Duration, give: &Sender<Job>) {
        let limits = self.settings.limits();
        let in_flight = self.reach.in_flight_max(now, limits.in_flight);
        let limits = cutover_core::ship::Limits { in_flight, ..limits };
        if self.in_flight.len() >= limits.in_flight {
            return;
        }
        for item in self.items.values() {
            let next = self.streams.len();
            if !self.streams.contains_key(&item.stream) {
                self.streams.insert(item.stream.clone(), next);
            }
        }
        let waiting = |item: &Item| Waiting {
            number: item.number,
            stream: self.streams.get(&item.stream).copied().unwrap_or_default(),
            failures: item.progress.failures,
            due: self.due.get(&item.number).copied().unwrap_or_default(),
        };
        let flying: Vec<Waiting> =
            self.in_flight.iter().filter_map(|number| self.items.get(number)).map(waiting).collect();
        let queued = self
            .items
            .values()
            .filter(|item| item.state == State::Queued && !self.in_flight.contains(&item.number))
            .map(waiting);
        let chosen = next_to_start(&flying, queued, now, limits);
        for number in chosen {
            let Some(sequence) = self.next_sequence() else { break };
            self.in_flight.insert(number);
            // The receivers of jobs live as long as the threads, which live as long as `give`.
            let _ = give.send(Job::Ship(self.items[&number].clone(), sequence));
        }
        let removals: Vec<i64> = self
            .items
            .values()
            .filter(|item| item.state == State::Done && !self.in_flight.contains(&item.number))
            .filter(|item| self.due.get(&item.number).is_none_or(|due| *due <= now))
            .map(|item| item.number)
            .collect();
        for number in removals {
            self.in_flight.insert(number);
            let _ = give.send(Job::Remove(self.items[&number].clone()));
        }
    }

    /// The number of the next attestation; numbers are taken many at a time, because each taking is flushed.
    fn next_sequence(&mut self) -> Option<u64> {
        if self.shared.host_key.is_none() {
            return Some(0);
        }
        if self.sequences.is_empty() {
            match self.queue.reserve("attestation", SEQUENCES, self.ports.clock.now()) {
                Ok(first) => self.sequences = first..first + u64::from(SEQUENCES),
                Err(error) => tracing::error!(error = chain(&error), "nothing can be signed yet"),
            }
        }
        self.sequences.next()
    }

    fn handle(&mut self, event: Event, give: &Sender<Job>, tell: &Sender<Event>) {
        match event {
            Event::Ready(number, ready) => {
                if let Some(item) = self.items.get_mut(&number) {
                    item.progress.ready = Some(ready);
                    self.unwritten.insert(number);
                    self.write();
                }
            }
            Event::Ended(number, ended) => {
                self.in_flight.remove(&number);
                if self.items.contains_key(&number) {
                    self.ended(number, ended, give, tell);
                }
            }
            Event::Removed(number, removed) => {
                self.in_flight.remove(&number);
                self.removed(number, removed);
            }
            Event::Updated(how) => {
                self.updates.ended();
                tracing::info!(how, "update of this host");
            }
        }
    }

    fn ended(&mut self, number: i64, ended: Ended, give: &Sender<Job>, tell: &Sender<Event>) {
        let now = self.ports.timer.now();
        let backoff = self.settings.backoff();
        let Some(item) = self.items.get_mut(&number) else { return };
        if !matches!(ended, Ended::Stopped) {
            item.progress.tries = item.progress.tries.saturating_add(1);
        }
        match ended {
            Ended::Stopped => {}
            Ended::Local(EntryError::Gone) => {
                tracing::warn!(episode = %item.key, path = item.path, "its local copy is gone; it is not shipped");
                self.forget(number, None);
            }
            Ended::Local(EntryError::Poison(reason)) => {
                let problem =
                    Problem { status: 0, reason, remediation: None, your_commit: None, head_commit: None };
                self.park(number, problem, tell);
            }
            Ended::Local(error) => self.again(number, &chain(&error), None, Severity::Error),
            Ended::NoAnswer(failure) => {
                if failure.reached {
                    self.reach.answered();
                } else {
                    self.reach.failed(now, &backoff, self.ports.seed);
                }
                self.again(number, &failure.reason, None, Severity::Warning);
            }
            Ended::Answer(answer) => {
                self.reach.answered();
                self.answered(number, &answer, give, tell);
            }
        }
    }

    fn answered(&mut self, number: i64, answer: &Answer, give: &Sender<Job>, tell: &Sender<Event>) {
        let Some(item) = self.items.get_mut(&number) else { return };
        let Some(ready) = &item.progress.ready else { return };
        item.progress.status = Some(answer.status);
        let verdict = judge(answer, ready.sha256, item.progress.digest_failures, self.ports.clock.now());
        match verdict {
            Verdict::Done => {
                let (size_bytes, tries) = (ready.size_bytes, item.progress.tries);
                tracing::info!(episode = %item.key, size_bytes, tries, status = answer.status, "shipped");
                item.state = State::Done;
                item.progress.reason = None;
                item.progress.failures = 0;
                let job = Job::Remove(item.clone());
                self.due.remove(&number);
                self.unwritten.insert(number);
                // Also when the disk is too full for this row: the receiver has the episode durably, and removing it here
                // makes room.
                self.write();
                self.in_flight.insert(number);
                let _ = give.send(job);
            }
            Verdict::Retry { reason, asked, severity } => {
                item.progress.digest_failures = 0;
                self.again(number, &reason, asked, severity);
            }
            Verdict::Rehash { reason } => {
                item.progress.digest_failures += 1;
                item.progress.ready = None;
                self.again(number, &reason, None, Severity::Warning);
            }
            Verdict::Parked(problem) => self.park(number, problem, tell),
        }
    }

    /// Puts an episode off.
    fn again(&mut self, number: i64, reason: &str, asked: Option<Duration>, severity: Severity) {
        let Some(item) = self.items.get_mut(&number) else { return };
        let progress = &mut item.progress;
        progress.failures = progress.failures.saturating_add(1);
        let seed = self.ports.seed ^ number.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let wait = self.settings.backoff().wait(progress.failures, asked, seed);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        progress.wait =
            Some(Wait { boot: self.boot.clone(), until_ms: millis(boot_now() + wait), for_ms: millis(wait) });
        progress.reason = Some(reason.to_owned());
        let (failures, wait_s) = (progress.failures, wait.as_secs_f32());
        match severity {
            Severity::Warning => {
                tracing::warn!(episode = %item.key, reason, failures, wait_s, "not shipped yet");
            }
            Severity::Error => {
                tracing::error!(episode = %item.key, reason, failures, wait_s, "not shipped yet");
            }
        }
        self.due.insert(number, self.ports.timer.now() + wait);
        self.unwritten.insert(number);
    }

    /// Keeps an episode until somebody says what to do with it.
    fn park(&mut self, number: i64, problem: Problem, tell: &Sender<Event>) {
        let Some(item) = self.items.get_mut(&number) else { return };
        let refused = problem.is_refused_code();
        let text = parked_text(item, &problem, &self.shared.spool.disk.root().join(&item.path));
        tracing::error!("{text}");
        item.state = State::Parked;
        item.progress.reason = Some(problem.reason);
        item.progress.status = (problem.status != 0).then_some(problem.status);
        item.progress.remediation = problem.remediation;
        item.progress.your_commit = problem.your_commit;
        item.progress.head_commit = problem.head_commit;
        item.progress.wait = None;
        self.due.remove(&number);
        self.unwritten.insert(number);
        if refused && self.settings.on_refused == OnRefused::Update {
            self.update(tell);
        }
    }

    /// Runs this host's own update, beside everything else.
    fn update(&mut self, tell: &Sender<Event>) {
        if !self.updates.refused(self.ports.timer.now()) {
            return;
        }
        let command = self.settings.update_command.clone();
        let timeout = Duration::from_secs(u64::from(self.settings.update_timeout_s));
        let tell = tell.clone();
        tracing::info!(?command, "this host's code is refused: it is updated");
        let started = std::thread::Builder::new().name("update".to_owned()).spawn(move || {
            // Nobody listens any more: we are stopping.
            let _ = tell.send(Event::Updated(update::run(&command, timeout)));
        });
        if let Err(error) = started {
            tracing::error!(%error, "the update cannot be started");
            self.updates.ended();
        }
    }

    fn removed(&mut self, number: i64, removed: Result<bool, EntryError>) {
        let Some(item) = self.items.get_mut(&number) else { return };
        match removed {
            Ok(gone) => {
                if !gone {
                    let (episode, path) = (&item.key, &item.path);
                    tracing::warn!(%episode, path, "shipped, and changed since: what lies there now is a new episode");
                }
                self.shipped += 1;
                self.forget(number, Some(self.ports.clock.now()));
            }
            Err(error) => {
                item.progress.failures = item.progress.failures.saturating_add(1);
                let wait = self.settings.backoff().wait(item.progress.failures, None, self.ports.seed);
                let reason = chain(&error);
                tracing::error!(episode = %item.key, reason, "shipped, but the local copy cannot be removed");
                item.progress.reason = Some(reason);
                self.due.insert(number, self.ports.timer.now() + wait);
                self.unwritten.insert(number);
            }
        }
    }

    /// Takes an episode out of the queue.
    fn forget(&mut self, number: i64, shipped: Option<Instant>) {
        let Some(item) = self.items.remove(&number) else { return };
        if let Err(error) = remove_packed(&self.shared.spool, number) {
            tracing::warn!(error = chain(&error), "a packed file cannot be removed");
        }
        self.paths.remove(&item.path);
        self.due.remove(&number);
        self.unwritten.remove(&number);
        self.unremoved.push((item, shipped));
        self.write();
    }
}

/// What stands in the log when an episode is parked: everything somebody needs to act.
fn parked_text(item: &Item, problem: &Problem, path: &Path) -> String {
    let key = &item.key;
    let mut text = format!("{key} is parked: {}", problem.reason);
    if let Some(commit) = &problem.your_commit {
        text.push_str(&format!("\n  its commit:  {commit}"));
    }
    if let Some(commit) = &problem.head_commit {
        text.push_str(&format!("\n  the newest:  {commit}"));
    }
    for line in problem.remediation.iter().flat_map(|text| text.lines()) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text.push_str(&format!(
        "\n  it is kept in `{}`; `cutover ship retry {key}` sends it again",
        path.display()
    ));
    text
}

/// The spool and the host the settings name.
pub(super) fn place(settings: &ShipSettings, host_name: &str) -> Result<(PathBuf, HostId), ShipError> {
    let setting = |key, reason: String| ShipError::Setting { key, reason };
    let spool = settings.spool.clone();
    let spool = spool.ok_or_else(|| setting("spool", "it names the directory of episodes".to_owned()))?;
    let host = match &settings.host {
        Some(host) => host.clone(),
        None => {
            host_name.parse().map_err(|error| setting("host", format!("the host name is no id: {error}")))?
        }
    };
    Ok((spool, host))
}

fn host_key(path: &Path) -> Result<HostKey, ShipError> {
    let setting = |reason| ShipError::Setting { key: "attest_key", reason };
    let pem = read_small(path, 1 << 16).map_err(|error| setting(format!("`{}`: {error}", path.display())))?;
    HostKey::from_pem(&pem).map_err(|error| setting(format!("`{}`: {error}", path.display())))
}

/// Takes the lock; whoever only looks holds it for an instant.
fn lock(disk: &RealDisk) -> std::io::Result<Locked> {
    let path = Path::new(OWN).join("lock");
    let note = format!("process {}", std::process::id());
    for _ in 0..10 {
        if let Locked::Taken(lock) = disk.lock(&path, &note)? {
            return Ok(Locked::Taken(lock));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    disk.lock(&path, &note)
}

/// The time since the machine was booted, sleep included.
pub(super) fn boot_now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Which boot this is. Without one, waits start anew whenever we do.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| format!("process {}", std::process::id()), |id| id.trim().to_owned())
}
