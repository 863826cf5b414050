//! From one release to the next under load, and back when the next one fails.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cutover_host::service::{
    Activation, ServiceError, ServiceManager as _, ServiceSettings, ServiceState, SupervisorClient,
};
use rustix::process::Signal;

use crate::fixture::{Client, Site, is_alive, signal_to, wait_for};

/// Clients that ask without end over connections that they keep.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    /// What each client was answered last.
    last: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(address: &str, clients: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            failures: Arc::default(),
            last: Arc::new(Mutex::new(vec![String::new(); clients])),
            threads: Vec::new(),
        };
        for number in 0..clients {
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            let (failures, last) = (Arc::clone(&load.failures), Arc::clone(&load.last));
            let address = address.to_owned();
            load.threads.push(std::thread::spawn(move || {
                let mut client = None;
                while !stop.load(Ordering::SeqCst) {
                    let answer = match client.take() {
                        Some(client) => Ok(client),
                        None => Client::try_connect(&address),
                    }
                    .and_then(|mut client| client.get("/").map(|answer| (client, answer)));
                    match answer {
                        Ok((kept, (body, closes))) => {
                            answers.fetch_add(1, Ordering::SeqCst);
                            last.lock().expect("a list")[number] = body;
                            client = (!closes).then_some(kept);
                        }
                        Err(error) => {
                            failures.lock().expect("a list").push(format!("client {number}: {error}"))
                        }
                    }
                }
            }));
        }
        load
    }

    /// Waits until every client was answered by `release`.
    fn all_see(&self, release: &Activation) {
        let name = release.release.as_ref().expect("a release").name().to_string();
        wait_for(&format!("{name} everywhere"), || {
            let last = self.last.lock().expect("a list");
            last.iter().all(|body| body.starts_with(&name)).then_some(())
        });
    }

    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("no panic");
        }
        (self.answers.load(Ordering::SeqCst), self.failures.lock().expect("a list").clone())
    }
}

#[test]
fn hand_over_under_keep_alive_load_loses_no_request() {
    let site = Site::new(|_| {}).supervise();
    let releases = ["1.0.0", "1.1.0", "1.2.0"].map(|version| site.release(version, ""));
    let first = site.activate(&releases[0]).expect("ready");
    let load = Load::start(&site.address(), 16);
    load.all_see(&releases[0]);
    let mut pid = first.pid;
    for release in [&releases[1], &releases[2], &releases[0]] {
        let activated = site.activate(release).expect("ready");
        assert_eq!(activated.old_pid, pid);
        load.all_see(release);
        pid = activated.pid;
    }
    let (answers, failures) = load.stop();
    assert_eq!(failures, Vec::<String>::new(), "of {answers}");
    assert!(answers >= 16 * 4);
    // With its last connection closed, the old process ends by itself.
    site.wait_for_status("the drained processes", |status| status.draining == 0);
    assert!(site.log(&releases[1]).contains("drained"));
}

#[test]
fn crash_under_load_makes_new_connections_wait_and_not_fail() {
    let site = Site::new(|_| {}).supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    let address = site.address();
    // Its answer is the crash.
    Client::connect(&address).get("/crash").expect_err("no answer");
    for _ in 0..20 {
        Client::connect(&address).get("/").expect("an answer");
    }
    site.wait_for_status("the restart", |status| status.restarts == 1 && status.state == ServiceState::Ready);
}

#[test]
fn release_that_ends_before_it_is_ready_leaves_the_old_one_serving_and_its_output_behind() {
    let site = Site::new(|_| {}).supervise();
    let old = site.activate(&site.release("1.0.0", "")).expect("ready");
    let bad = site.release("1.1.0", "exits");
    let error = site.activate(&bad).expect_err("it exits");
    let ServiceError::NotReady { reason, log: Some(log), .. } = &error else { panic!("{error}") };
    assert!(reason.contains("exited with 7"), "{error}");
    assert!(std::fs::read_to_string(log).expect("a log").contains("I cannot go on"));
    let status = site.status();
    assert_eq!((status.state, status.pid), (ServiceState::Ready, old.pid));
    assert!(site.get("/").starts_with("1.0.0-"));
    // The way back is asked for as well, and there is nothing to do.
    let back = site.activate(&site.release("1.0.0", "")).expect("it runs");
    assert_eq!((back.pid, back.ready_ms, back.old_pid), (old.pid, 0, None));
}

#[test]
fn release_that_never_says_ready_is_killed_in_time_and_leaves_the_old_one_serving() {
    let site = Site::new(|settings| settings.ready_timeout_s = Some(1)).supervise();
    // A slow machine may need several tries for the good one; for the bad one, no time is enough.
    let old = wait_for("a good start", || {
        site.activate(&site.release("1.0.0", "")).ok().filter(|activated| activated.pid.is_some())
    });
    let error = site.activate(&site.release("1.1.0", "never-ready")).expect_err("never");
    assert!(matches!(&error, ServiceError::NotReady { .. }), "{error}");
    site.wait_for_status("the killed process", |status| status.draining == 0);
    assert_eq!(site.status().pid, old.pid);
}

#[test]
fn program_that_cannot_be_executed_is_named_and_leaves_the_old_one_serving() {
    let site = Site::new(|_| {}).supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    let mut bad = site.release("1.1.0", "");
    std::fs::remove_file(bad.tree.join("server")).expect("removed");
    std::fs::write(bad.tree.join("server"), "not a program").expect("written");
    let error = site.activate(&bad).expect_err("not executable").to_string();
    assert!(error.contains("server"), "{error}");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(bad.tree.join("server"), std::fs::Permissions::from_mode(0o755)).expect("set");
    let error = site.activate(&bad).expect_err("not a program").to_string();
    assert!(error.contains("failed to execute it"), "{error}");
    bad.hints.as_mut().expect("hints").command = vec!["/bin/sleep".to_owned(), "600".to_owned()];
    let error = site.activate(&bad).expect_err("not of the release").to_string();
    assert!(error.contains("`/bin/sleep` is no path inside the release"), "{error}");
    assert_eq!(site.status().state, ServiceState::Ready);
    assert!(site.get("/").starts_with("1.0.0-"));
}

#[test]
fn old_process_that_does_not_drain_is_killed_with_its_children_at_the_timeout() {
    let site = Site::new(|settings| settings.drain_timeout_s = Some(1)).supervise();
    let stubborn = site.release("1.0.0", "ignores-term forks");
    let old = site.activate(&stubborn).expect("ready").pid.expect("a process");
    let child = std::fs::read_to_string(stubborn.tree.join("forked")).expect("an id").parse().expect("an id");
    assert!(is_alive(old) && is_alive(child));
    site.activate(&site.release("1.1.0", "")).expect("ready");
    wait_for("both to be killed", || (!is_alive(old) && !is_alive(child)).then_some(()));
    site.wait_for_status("the end of the draining", |status| status.draining == 0);
}

#[test]
fn stop_first_never_runs_two_and_keeps_connections_waiting_between_them() {
    let site = Site::new(|settings| settings.stop_first = true).supervise();
    let old = site.activate(&site.release("1.0.0", "")).expect("ready").pid.expect("a process");
    let address = site.address();
    site.client().quiesce().expect("stopped");
    assert!(!is_alive(old));
    assert_eq!(site.status().state, ServiceState::Stopped);
    // Nothing serves, but the connection is accepted by the kernel and its request waits.
    let waiting = std::thread::spawn(move || Client::connect(&address).get("/"));
    site.client().quiesce().expect("stopped already");
    site.activate(&site.release("1.1.0", "")).expect("ready");
    assert!(waiting.join().expect("no panic").expect("an answer").0.starts_with("1.1.0-"));
    // Without a stop before it, the switch itself stops the old one first.
    let old = site.status().pid.expect("a process");
    let activated = site.activate(&site.release("1.2.0", "")).expect("ready");
    assert!(!is_alive(old) && activated.pid.is_some_and(is_alive));
}

#[test]
fn process_that_runs_already_is_replaced_when_a_new_one_is_asked_for() {
    let site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let anew = Activation { anew: true, ..release.clone() };
    let client = site.client();
    let first = client.activate(&release).expect("ready");
    // It served before the switch, so it cannot run from what lay there in between.
    client.quiesce().expect("it answers");
    assert_eq!(client.activate(&anew).expect("it runs").pid, first.pid);
    let second = site.activate(&anew).expect("ready");
    assert_ne!(second.pid, first.pid);
    assert_eq!(second.old_pid, first.pid);
    assert_eq!(site.activate(&release).expect("it runs").pid, second.pid);
}

#[test]
fn supervisor_that_is_ending_is_told_of_before_the_switch_and_waited_for_after_it() {
    let mut site = Site::new(|_| {}).supervise();
    let stubborn = site.release("1.0.0", "ignores-term");
    let pid = site.activate(&stubborn).expect("ready").pid.expect("a process");
    site.signal(Signal::TERM);
    site.wait_for_status("the end to begin", |status| {
        status.supervisor.as_ref().is_some_and(|supervisor| supervisor.ending)
    });
    let error = site.client().quiesce().expect_err("it is ending").to_string();
    assert!(error.contains("is ending"), "{error}");
    let stop_first = ServiceSettings { stop_first: true, ..site.settings.clone() };
    SupervisorClient::new(&stop_first, site.root()).quiesce().expect_err("it is ending");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.activate(&stubborn).expect("somebody else will start it"));
        // It cannot end before its service does.
        signal_to(pid, Signal::KILL);
        assert!(waiting.join().expect("no panic").note.contains("no supervisor"));
    });
    assert!(site.ended());
}

#[test]
fn two_requests_at_once_for_one_release_start_it_once() {
    let site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let pids: Vec<_> = std::thread::scope(|scope| {
        let ask = || site.activate(&release).expect("ready").pid;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(pids[0].is_some() && pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(site.log(&release).matches("cutover: started").count(), 1);
}

#[test]
fn unix_socket_is_handed_over_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("db.sock");
    let listen = format!("unix:{}", path.display()).parse().expect("an address");
    let site = Site::new(|settings| settings.listen = Some(vec![listen])).supervise();
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("a connection");
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = [0; 512];
        let count = std::io::Read::read(&mut stream, &mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..count]).into_owned()
    };
    for version in ["1.0.0", "1.1.0"] {
        site.activate(&site.release(version, "")).expect("ready");
        wait_for("the new release", || ask().contains(version).then_some(()));
    }
    site.client().stop().expect("stopped");
    assert!(!path.exists());
}
