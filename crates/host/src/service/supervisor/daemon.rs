//! The loop: waits for whatever happens, tells the state machine, does what it says.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use cutover_core::{
    model::{Listen, ReleaseRef},
    supervise::{Action, Answer, Earlier, Event, Generation, Job, Phase, Request, Supervisor},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType},
    process::Pid,
    time::{ClockId, clock_gettime},
};

use super::{
    super::{
        Activated, Activation, ServiceError, ServiceSettings, ServiceState, ServiceStatus, SupervisorInfo,
        control::{self, Ask, Reply},
        inherit,
    },
    SupervisorOptions,
    connection::{Connection, Heard},
    launch,
    log::{self, Log},
    notify::Notify,
    process::{Process, reap_others},
    reexec::{Check, ProcessState, State, adopt},
    signals::Signals,
    sockets::{self, Sockets},
    spawn::{self, Spawn},
    user::User,
};

/// The most clients at once; more wait in the socket's queue or are sent away.
const CONNECTIONS_MAX: usize = 64;
/// The lock that says that a supervisor runs; below `.cutover`, never deleted.
const LOCK: &str = "run.lock";
/// The pause after a client could not be accepted.
const ACCEPT_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// A running supervisor.
pub(super) struct Daemon {
    root: PathBuf,
    settings: ServiceSettings,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// Where a newer version of this program will be found.
    program: PathBuf,
    machine: Supervisor,
    /// What is known about the releases that run or may be started again.
    activations: Vec<Activation>,
    processes: BTreeMap<Generation, Process>,
    sockets: Sockets,
    signals: Signals,
    control: OwnedFd,
    lock: OwnedFd,
    connections: BTreeMap<Request, Connection>,
    next_request: u64,
    check: Option<Check>,
    /// A program that can take over as soon as nobody waits for an answer.
    checked: Option<(PathBuf, Option<u64>)>,
    reexecs: u32,
    /// Whether nothing is meant to run, so that sockets are closed.
    let_go: bool,
    /// The current release if it has no service: whoever looks is told that nothing is meant to run, and did not crash.
    without_service: Option<ReleaseRef>,
    finished: bool,
}

/// What a descriptor that poll(2) found belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Stop,
    Renew,
    Child,
    Notify(Generation),
    Output(Generation),
    Ended(Generation),
    Control,
    Client(Request),
    Check,
}

impl Daemon {
    /// Takes the lock, opens the control socket, and starts the current release.
    pub(super) fn start(options: SupervisorOptions) -> Result<Self, ServiceError> {
        let directory = options.root.join(".cutover");
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ServiceError::Io { what, path, source }
        };
        make_directory(&directory).map_err(failed("make", &directory))?;
        let lock = take_lock(&options.root)?;
        let socket = control::socket_path(&options.root);
        let control = listen(&socket).map_err(failed("listen on", &socket))?;
        let program = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe")))?;
        let signals = Signals::catch().map_err(failed("catch signals for", &options.root))?;
        let SupervisorOptions { root, settings, current, arguments, environment } = options;
        let mut daemon = Self {
            machine: Supervisor::new(launch::policy(&settings)),
            root,
            settings,
            arguments,
            environment,
            program,
            activations: Vec::new(),
            processes: BTreeMap::new(),
            sockets: Sockets::default(),
            signals,
            control,
            lock,
            connections: BTreeMap::new(),
            next_request: 1,
            check: None,
            checked: None,
            reexecs: 0,
            let_go: false,
            without_service: None,
            finished: false,
        };
        tracing::info!(root = %daemon.root.display(), pid = std::process::id(), "supervising");
        match current.current() {
            Ok(Some((release, tree, hints))) => {
                daemon.boot(Activation { release: Some(release), tree, hints, anew: false })
            }
            Ok(None) => tracing::info!("nothing is installed; waiting for the first release"),
            Err(error) => {
                tracing::error!(%error, "the current release is not known; waiting for an activation")
            }
        }
        if let Err(error) = inherit::notify_ready() {
            tracing::warn!(%error, "whoever started us cannot be told that we are ready");
        }
        Ok(daemon)
    }

    /// Goes on where the program before us stopped.
    pub(super) fn resume(options: SupervisorOptions) -> Result<Self, ServiceError> {
        let path = options.root.clone();
        Self::adopt(options).map_err(|source| ServiceError::Io {
            what: "take over the supervisor of",
            path,
            source,
        })
    }

    fn adopt(options: SupervisorOptions) -> io::Result<Self> {
        let SupervisorOptions { root, settings, current, arguments, environment } = options;
        let state = State::inherit(&environment)?;
        let mut sockets = Sockets::default();
        for (listen, socket) in state.sockets {
            sockets.adopt(listen, adopt(socket)?);
        }
        let held: Vec<Listen> = sockets.iter().map(|(listen, _)| listen.clone()).collect();
        let mut processes = BTreeMap::new();
        for process in state.processes {
            let pid = Pid::from_raw(process.pid).ok_or(io::ErrorKind::InvalidData)?;
            let notify = Notify::adopt(adopt(process.notify)?, process.notify_name);
            let output = process.output.map(adopt).transpose()?;
            let log = open_log(&root, &settings, &process.release);
            // Which of the sockets it was given is not written down; closing one of its own would cut it off.
            let process_state = Process::new(process.release, pid, held.clone(), notify, output, log)?;
            processes.insert(process.generation, process_state);
        }
        let mut daemon = Self {
            root,
            arguments,
            environment,
            program: state.program,
            machine: state.machine,
            activations: state.activations,
            processes,
            sockets,
            signals: Signals::catch()?,
            control: adopt(state.control)?,
            lock: adopt(state.lock)?,
            connections: BTreeMap::new(),
            next_request: 1,
            check: None,
            checked: None,
            reexecs: state.reexecs,
            let_go: false,
            without_service: None,
            finished: false,
            settings,
        };
        daemon.machine.set_policy(launch::policy(&daemon.settings));
        if daemon.machine.releases_in_use().next().is_none()
            && let Ok(Some((release, tree, hints))) = current.current()
        {
            let activation = Activation { release: Some(release), tree, hints, anew: false };
            if launch::job(&daemon.settings, &activation).is_none() {
                daemon.without_service = activation.release;
            }
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), reexecs = daemon.reexecs, "took over");
        if let Some(client) = state.asked_by {
            let asked = Ask::Reexec { path: daemon.program.clone() };
            let mut client = Connection::adopt(UnixStream::from(adopt(client)?), asked);
            let note = format!("now `{}`, version {}", daemon.program.display(), env!("CARGO_PKG_VERSION"));
            client.say(&Reply::Done { note });
        }
        Ok(daemon)
    }

    /// Works until it is told to end and everything has ended.
    pub(super) fn run(mut self) -> Result<(), ServiceError> {
        while !self.finished {
            for source in self.wait()? {
                self.serve(source);
            }
            self.feed(Event::Tick);
            self.send_away_idle_clients();
            let check_is_late = self.check.as_ref().is_some_and(|check| check.deadline_ms <= now_ms());
            if check_is_late {
                self.serve(Source::Check);
            }
            self.reexec_when_possible();
            reap_others(|pid| {
                let checked = self.check.as_ref().is_some_and(|check| check.is(pid));
                checked || self.processes.values().any(|process| process.pid == pid)
            });
        }
        tracing::info!("supervision ends");
        let socket = control::socket_path(&self.root);
        if let Err(error) = rustix::fs::unlink(&socket) {
            tracing::warn!(path = %socket.display(), %error, "the control socket cannot be removed");
        }
        // Whoever asked for the end sees it when the connections close, and then the lock must be free.
        drop(self.lock);
        drop(self.connections);
        Ok(())
    }

    /// Waits until something can be done; says what.
    fn wait(&self) -> Result<Vec<Source>, ServiceError> {
        let now = now_ms();
        let clients = self.connections.values().filter_map(Connection::deadline_ms).min();
        let check = self.check.as_ref().map(|check| check.deadline_ms);
        let due = [self.machine.next_tick_ms(), clients, check].into_iter().flatten().min();
        let timeout = due.map(|due| {
            let left = std::time::Duration::from_millis(due.saturating_sub(now));
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        let (stop, renew, child) = (self.signals.stop(), self.signals.renew(), self.signals.child());
        let signals: [_; 3] =
            [(Source::Stop, stop.as_fd()), (Source::Renew, renew.as_fd()), (Source::Child, child.as_fd())];
        let mut waited: Vec<(Source, BorrowedFd<'_>)> = signals.to_vec();
        for (generation, process) in &self.processes {
            waited.push((Source::Notify(*generation), process.notify.socket().as_fd()));
            waited
                .extend(process.output.as_ref().map(|output| (Source::Output(*generation), output.as_fd())));
            // After what it said and printed: who is ready and then ends was ready.
            waited.push((Source::Ended(*generation), process.handle.as_fd()));
        }
        waited.push((Source::Control, self.control.as_fd()));
        waited.extend(self.check.as_ref().map(|check| (Source::Check, check.handle())));
        let reading: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, client)| client.deadline_ms().is_some())
            .map(|(request, client)| (*request, client.stream()))
            .collect();
        waited.extend(reading.iter().map(|(request, stream)| (Source::Client(*request), stream.as_fd())));
        let mut fds: Vec<_> =
            waited.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => {
                return Err(ServiceError::Io {
                    what: "wait for",
                    path: self.root.clone(),
                    source: error.into(),
                });
            }
        }
        let happened = waited.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(happened.map(|((source, _), _)| *source).collect())
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Stop => {
                let stops = self.signals.take_stops();
                self.stop(stops);
            }
            Source::Renew => {
                if self.signals.take_renews() > 0 {
                    self.begin_reexec(&self.program.clone(), None);
                }
            }
            // The loop looks after every child in every round.
            Source::Child => self.signals.take_children(),
            Source::Notify(generation) => {
                if let Some(process) = self.processes.get_mut(&generation)
                    && process.notify.is_ready(process.pid)
                {
                    self.feed(Event::Ready(generation));
                }
            }
            Source::Output(generation) => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.move_output();
                }
            }
            Source::Ended(generation) => {
                if let Some(process) = self.processes.remove(&generation) {
                    let (release, pid) = (process.release.clone(), process.id());
                    let strangers = process.notify.strangers();
                    if strangers > 1 {
                        tracing::warn!(%release, pid, strangers, "others spoke to its notification socket");
                    }
                    let (how, log) = process.reap();
                    tracing::info!(%release, pid, %how, log = %log.display(), "process ended");
                    self.feed(Event::Exited { generation, how });
                }
            }
            Source::Control => self.accept(),
            Source::Client(request) => self.hear(request),
            Source::Check => self.finish_check(),
        }
    }

    /// Does what so many signals want.
    fn stop(&mut self, signals: usize) {
        for _ in 0..signals {
            tracing::info!("told to stop by a signal");
            self.feed(Event::Stop { request: None });
        }
    }

    /// Runs `activation` because it is current.
    fn boot(&mut self, activation: Activation) {
        match launch::job(&self.settings, &activation) {
            Some(job) => {
                self.remember(activation);
                self.feed(Event::Boot(job));
            }
            None => {
                tracing::info!("the current release has no service");
                self.without_service = activation.release;
            }
        }
    }

    fn remember(&mut self, activation: Activation) {
        let activation = Activation { anew: false, ..activation };
        self.activations.retain(|known| known.release != activation.release);
        self.activations.push(activation);
    }

    /// Tells the machine what happened and does what it says, and so on until nothing follows.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.handle(now_ms(), event) {
                match action {
                    Action::Start { generation, job } => {
                        if let Err(why) = self.start_process(generation, &job) {
                            tracing::error!(release = %job.release, %why, "the service cannot be started");
                            events.push_back(Event::NotStarted { generation, why });
                        }
                    }
                    Action::Terminate(generation) => {
                        if let Some(process) = self.processes.get(&generation) {
                            tracing::info!(release = %process.release, pid = process.id(), "draining");
                            process.terminate();
                        }
                    }
                    Action::Kill(generation) => {
                        if let Some(process) = self.processes.get(&generation) {
                            tracing::warn!(release = %process.release, pid = process.id(), "killing");
                            process.kill();
                        }
                    }
                    Action::Answer { request, answer } => self.answer(request, answer),
                    Action::Finish => self.finished = true,
                }
            }
        }
        self.let_go_of_the_unused();
    }

    fn start_process(&mut self, generation: Generation, job: &Job) -> Result<(), String> {
        let release = &job.release;
        let activation = self
            .activations
            .iter()
            .find(|activation| activation.release.as_ref() == Some(release))
            .ok_or("it is not known")?
            .clone();
        let settings = &self.settings;
        let text = |error: io::Error| error.to_string();
        let path = self.environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
        let (program, arguments) = launch::command(settings, &activation, path)?;
        let user = match &settings.user {
            Some(name) => {
                let found = User::find(name).map_err(text)?;
                Some(found.ok_or_else(|| format!("there is no user `{}`", name.escape_debug()))?)
            }
            None => None,
        };
        let listen = launch::listen(settings, &activation);
        self.sockets.hold(listen)?;
        let notify = Notify::open().map_err(text)?;
        let (output, output_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .and_then(|(reader, writer)| rustix::io::ioctl_fionbio(&reader, true).map(|()| (reader, writer)))
            .map_err(|error| error.to_string())?;
        let mut log = open_log(&self.root, settings, release);
        let protocol = [
            ("LISTEN_FDS", listen.len().to_string()),
            ("LISTEN_FDNAMES", sockets::names(listen)),
            ("NOTIFY_SOCKET", notify.name().to_owned()),
        ];
        let started = spawn::spawn(&Spawn {
            program: &program,
            arguments: &arguments,
            environment: launch::environment(
                settings,
                &activation,
                &self.environment,
                &self.root,
                release,
                protocol,
            ),
            directory: &activation.tree,
            sockets: self.sockets.lend(listen),
            output: output_writer.as_fd(),
            user: user.as_ref(),
        });
        let pid = started.map_err(|error| {
            let why = format!("`{}`: {error}", program.display());
            log.write(format!("cutover: {why}\n").as_bytes());
            why
        })?;
        log.write(format!("cutover: started {release} as process {pid}\n").as_bytes());
        tracing::info!(%release, pid = %pid, "process started");
        let process =
            Process::new(release.clone(), pid, listen.to_vec(), notify, Some(output), log).map_err(text);
        let process = process.inspect_err(|_| {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        })?;
        self.processes.insert(generation, process);
        Ok(())
    }

    /// Forgets releases that nobody will start again, and closes sockets that none of the others listens on and that no process was
    /// given that is not told to end: settings may have changed since it was. While nothing runs for a moment (`stop_first`), sockets
    /// stay open and connections wait.
    fn let_go_of_the_unused(&mut self) {
        let in_use: Vec<ReleaseRef> = self.machine.releases_in_use().cloned().collect();
        if in_use.is_empty() && !self.let_go && !self.finished {
            return;
        }
        self.activations
            .retain(|known| known.release.as_ref().is_some_and(|release| in_use.contains(release)));
        let serving = self.machine.serving().map(|(generation, ..)| generation);
        let running = [serving, self.machine.starting()].into_iter().flatten();
        let given = running.filter_map(|generation| self.processes.get(&generation));
        let wanted: Vec<_> = self
            .activations
            .iter()
            .flat_map(|activation| launch::listen(&self.settings, activation))
            .chain(given.flat_map(|process| &process.listen))
            .collect();
        self.sockets.keep_only(&wanted);
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let stream = match rustix::net::accept_with(&self.control, flags) {
                Ok(stream) => stream,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => {
                    // Out of descriptors, say: the client stays in the queue, and asking at once would be a busy loop.
                    tracing::warn!(%error, "a client cannot be accepted");
                    std::thread::sleep(ACCEPT_AGAIN);
                    return;
                }
            };
            if self.connections.len() >= CONNECTIONS_MAX {
                tracing::warn!("too many clients; one is sent away");
                continue;
            }
            match Connection::new(stream.into(), now_ms()) {
                Ok(client) => {
                    self.connections.insert(Request(self.next_request), client);
                    self.next_request += 1;
                }
                Err(reason) => tracing::warn!(%reason, "a client is sent away"),
            }
        }
    }

    fn send_away_idle_clients(&mut self) {
        let now = now_ms();
        self.connections.retain(|_, client| client.deadline_ms().is_none_or(|deadline| deadline > now));
    }

    fn hear(&mut self, request: Request) {
        let Some(client) = self.connections.get_mut(&request) else { return };
        match client.hear() {
            Heard::Nothing => {}
            Heard::Gone => drop(self.connections.remove(&request)),
            Heard::Nonsense(reason) => self.reply(request, &Reply::Refused { reason }),
            Heard::Ask(ask) => self.ask(request, ask),
        }
    }

    fn ask(&mut self, request: Request, ask: Ask) {
        match ask {
            Ask::Status => {
                let status = self.status();
                self.reply(request, &Reply::Status(status));
            }
            Ask::Activate(activation) => {
                let (drained, decided) = self.waits_ms();
                match launch::job(&self.settings, &activation) {
                    Some(job) => {
                        let ready = drained.saturating_add(job.decided_after_ms());
                        self.accepted(request, ready.max(decided));
                        let earlier = if activation.anew { Earlier::Doubtful } else { Earlier::Good };
                        if !self.machine.is_ending() {
                            self.let_go = false;
                            self.without_service = None;
                            self.remember(activation);
                        }
                        self.feed(Event::Activate { request, job, earlier });
                    }
                    None => {
                        self.accepted(request, drained);
                        if !self.machine.is_ending() {
                            self.let_go = true;
                            self.without_service = activation.release;
                        }
                        self.feed(Event::Deactivate { request });
                    }
                }
            }
            Ask::Quiesce => {
                self.accepted(request, self.waits_ms().0);
                self.feed(Event::Deactivate { request });
            }
            Ask::Stop => {
                self.accepted(request, self.waits_ms().0);
                self.feed(Event::Stop { request: Some(request) });
            }
            Ask::Reexec { path } => {
                let (drained, decided) = self.waits_ms();
                self.accepted(request, drained.max(decided).saturating_add(60_000));
                self.begin_reexec(&path, Some(request.0));
            }
        }
    }

    /// The longest times until what runs could be gone, and until what starts is ready or not. The machine knows them and the
    /// settings do not: those may have changed since.
    fn waits_ms(&self) -> (u64, u64) {
        let now = now_ms();
        (self.machine.drained_within_ms(now), self.machine.decided_within_ms(now))
    }

    fn accepted(&mut self, request: Request, within_ms: u64) {
        if let Some(client) = self.connections.get_mut(&request) {
            client.say(&Reply::Accepted { within_ms });
        }
    }

    /// The final reply.
    fn reply(&mut self, request: Request, reply: &Reply) {
        if let Some(mut client) = self.connections.remove(&request) {
            client.say(reply);
            // The client that asked for our end learns it from the end of its connection.
            if client.asked == Some(Ask::Stop) {
                self.connections.insert(request, client);
            }
        }
    }

    fn answer(&mut self, request: Request, answer: Answer) {
        let asked = self.connections.get(&request).and_then(|client| client.asked.clone());
        let id = |generation: Generation| self.processes.get(&generation).map(Process::id);
        let reply = match answer {
            Answer::Ready { generation, replaced, ready_ms } => Reply::Activated(Activated {
                ready_ms,
                pid: id(generation),
                old_pid: replaced.and_then(id),
                note: if replaced.is_some() { "handed over" } else { "started" }.to_owned(),
            }),
            Answer::Already(generation) => Reply::Activated(Activated {
                ready_ms: 0,
                pid: id(generation),
                old_pid: None,
                note: "runs already".to_owned(),
            }),
            Answer::Stopped => {
                let note = "stopped".to_owned();
                match asked {
                    Some(Ask::Activate(Activation { release: Some(_), .. })) => {
                        let note = "the release has no service".to_owned();
                        Reply::Activated(Activated { note, ..Activated::default() })
                    }
                    Some(Ask::Activate(_)) => Reply::Activated(Activated { note, ..Activated::default() }),
                    Some(Ask::Quiesce | Ask::Status | Ask::Stop | Ask::Reexec { .. }) | None => {
                        Reply::Done { note }
                    }
                }
            }
            Answer::NotReady { release, reason } => {
                let log = Some(log::path(&self.root, &release.name()));
                tracing::error!(%release, %reason, "not ready");
                Reply::NotReady { release, reason, log }
            }
            Answer::Superseded { by } => Reply::Superseded {
                by: by.map_or_else(|| "nothing".to_owned(), |release| release.to_string()),
            },
            Answer::Ending => Reply::Ending { within_ms: self.waits_ms().0 },
        };
        self.reply(request, &reply);
    }

    fn status(&self) -> ServiceStatus {
        let now = now_ms();
        let wait = |until: u64| format!("restart in {} ms", until.saturating_sub(now));
        let (state, note) = match self.machine.phase() {
            Phase::Idle => (ServiceState::Stopped, String::new()),
            Phase::Starting => (ServiceState::Starting, String::new()),
            Phase::Ready => (ServiceState::Ready, String::new()),
            Phase::HandingOver => (ServiceState::Ready, "the next release starts".to_owned()),
            Phase::BackOff { until_ms } => (ServiceState::BackOff, wait(until_ms)),
            Phase::CrashLoop { until_ms } => (ServiceState::CrashLoop, wait(until_ms)),
            Phase::Ending => (ServiceState::Stopped, "the supervisor is ending".to_owned()),
        };
        let serving = self.machine.serving();
        let process = serving.map(|(generation, ..)| generation).or(self.machine.starting());
        ServiceStatus {
            state,
            release: self.machine.release().or(self.without_service.as_ref()).cloned(),
            pid: process.and_then(|generation| self.processes.get(&generation)).map(Process::id),
            ready_for_ms: serving.map(|(_, _, since)| now.saturating_sub(since)),
            restarts: self.machine.restarts(),
            draining: u32::try_from(self.machine.draining()).unwrap_or(u32::MAX),
            listen: self.sockets.addresses(),
            supervisor: Some(SupervisorInfo {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                reexecs: self.reexecs,
                ending: self.machine.is_ending(),
            }),
            note,
        }
    }

    fn begin_reexec(&mut self, program: &Path, asked_by: Option<u64>) {
        if self.check.is_some() || self.checked.is_some() {
            self.refuse_reexec("another program is about to take over".to_owned(), asked_by);
            return;
        }
        match Check::start(program, &self.arguments, asked_by, now_ms()) {
            Ok(check) => self.check = Some(check),
            Err(reason) => self.refuse_reexec(reason, asked_by),
        }
    }

    fn finish_check(&mut self) {
        match self.check.take().map(Check::finish) {
            Some(Ok(checked)) => self.checked = Some(checked),
            Some(Err((reason, asked_by))) => self.refuse_reexec(reason, asked_by),
            None => {}
        }
    }

    fn refuse_reexec(&mut self, reason: String, asked_by: Option<u64>) {
        tracing::error!(%reason, "this program goes on");
        if let Some(request) = asked_by {
            self.reply(Request(request), &Reply::Refused { reason });
        }
    }

    /// Becomes the program that was checked, once nobody else waits for an answer that only we can give.
    fn reexec_when_possible(&mut self) {
        if self.machine.is_awaited() || self.finished {
            return;
        }
        let Some((program, asked_by)) = self.checked.take() else { return };
        let stops = self.signals.hold_back();
        if stops > 0 {
            // What we were told and have not heard yet, the next program would never hear.
            spawn::unblock_signals();
            self.refuse_reexec("it was told to stop".to_owned(), asked_by);
            self.stop(stops);
            return;
        }
        tracing::info!(program = %program.display(), "a newer program takes over");
        let client = asked_by.and_then(|request| self.connections.get(&Request(request)));
        let state = State {
            version: State::version(),
            program: program.clone(),
            reexecs: self.reexecs + 1,
            machine: self.machine.clone(),
            activations: self.activations.clone(),
            sockets: self
                .sockets
                .iter()
                .map(|(listen, socket)| (listen.clone(), socket.as_raw_fd()))
                .collect(),
            processes: self
                .processes
                .iter()
                .map(|(generation, process)| ProcessState {
                    generation: *generation,
                    release: process.release.clone(),
                    pid: process.pid.as_raw_nonzero().get(),
                    notify: process.notify.socket().as_raw_fd(),
                    notify_name: process.notify.name().to_owned(),
                    output: process.output.as_ref().map(AsRawFd::as_raw_fd),
                })
                .collect(),
            lock: self.lock.as_raw_fd(),
            control: self.control.as_raw_fd(),
            asked_by: client.map(|client| client.stream().as_fd().as_raw_fd()),
        };
        let error = state.exec(&program, &self.arguments, &self.environment);
        spawn::unblock_signals();
        self.refuse_reexec(format!("`{}` cannot take over: {error}", program.display()), asked_by);
    }
}

/// Milliseconds of a clock that never goes back and that the next program reads as well.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

fn open_log(root: &Path, settings: &ServiceSettings, release: &ReleaseRef) -> Log {
    let size_max = u64::from(settings.log_size_mib.max(1)) << 20;
    Log::open(root, &release.name(), size_max, settings.log_releases.max(1) as usize)
}

fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// The lock of the one supervisor; it is free again when this process has ended, however it ends.
fn take_lock(root: &Path) -> Result<OwnedFd, ServiceError> {
    let path = root.join(".cutover").join(LOCK);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
    let locked = opened
        .and_then(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map(|()| lock));
    match locked {
        Ok(lock) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServiceError::AlreadySupervised(root.to_owned())),
        Err(error) => Err(ServiceError::Io { what: "lock", path, source: error.into() }),
    }
}

/// Opens the control socket. We hold the lock, so a socket that is there already is a dead supervisor's.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (address, _directory) = control::address(path)?;
    rustix::net::bind(&socket, &address)?;
    // Before listen(2), so that there is no moment in which somebody else can connect.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}
