//! The supervisor becomes a newer program: same process, same sockets, same children.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cutover_host::service::ServiceState;
use rustix::process::Signal;

use crate::fixture::{Client, Site, fixture_program, is_alive, wait_for};

/// "A newer program": a copy of this one.
fn newer_program(site: &Site) -> PathBuf {
    let copy = site.root().join("newer");
    std::fs::copy(fixture_program(), &copy).expect("copied");
    copy
}

fn reexecs(site: &Site) -> u32 {
    site.status().supervisor.expect("a supervisor").reexecs
}

#[test]
fn newer_program_keeps_process_sockets_and_children() {
    let mut site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let pid = site.activate(&release).expect("ready").pid;
    let address = site.address();
    let mut kept = Client::connect(&address);
    kept.get("/").expect("an answer");
    // Somebody connects all the time.
    let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = std::thread::spawn({
        let (stop, connections, address) = (Arc::clone(&stop), Arc::clone(&connections), address.clone());
        move || {
            while !stop.load(Ordering::SeqCst) {
                Client::try_connect(&address).and_then(|mut client| client.get("/")).expect("an answer");
                connections.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let newer = newer_program(&site);
    for count in 1..=3 {
        let note = site.client().reexec(&newer).expect("taken over");
        assert!(note.contains(&newer.display().to_string()), "{note}");
        assert_eq!(reexecs(&site), count);
    }
    let program = std::fs::read_link(format!("/proc/{}/exe", site.supervisor_id())).expect("a link");
    assert_eq!(program, newer);
    let status = site.status();
    assert_eq!((status.pid, status.state, status.restarts), (pid, ServiceState::Ready, 0));
    assert_eq!(status.supervisor.map(|supervisor| supervisor.pid), Some(site.supervisor_id()));
    assert_eq!(site.address(), address);
    kept.get("/").expect("the connection lives");
    let before = connections.load(Ordering::SeqCst);
    wait_for("more connections", || (connections.load(Ordering::SeqCst) > before).then_some(()));
    stop.store(true, Ordering::SeqCst);
    load.join().expect("no connection failed");
    drop(kept);
    // It can do all that it could before: hand over, restart, collect output, stop.
    let next = site.release("1.1.0", "");
    assert_eq!(site.activate(&next).expect("ready").old_pid, pid);
    site.wait_for_status("the drained process", |status| status.draining == 0);
    assert!(site.log(&release).contains("drained"));
    Client::connect(&address).get("/crash").expect_err("a crash");
    site.wait_for_status("the restart", |status| status.restarts == 1 && status.state == ServiceState::Ready);
    assert_eq!(site.get("/descriptors"), "[0, 1, 2, 3]");
    let pid = site.status().pid.expect("a process");
    site.signal(Signal::TERM);
    assert!(site.ended());
    assert!(!is_alive(pid));
}

#[test]
fn hang_up_starts_the_program_that_lies_where_this_one_was_started_from() {
    let mut site = Site::new(|_| {});
    let release = site.release("1.0.0", "");
    site.start_supervisor(Some(&release));
    let pid = site.wait_for_status("the service", |status| status.state == ServiceState::Ready).pid;
    for count in 1..=2 {
        site.signal(Signal::HUP);
        wait_for("the new program", || (reexecs(&site) == count).then_some(()));
    }
    assert_eq!(site.status().pid, pid);
}

#[test]
fn program_that_cannot_take_over_is_refused_and_everything_goes_on() {
    use std::os::unix::fs::PermissionsExt as _;

    let site = Site::new(|_| {}).supervise();
    let pid = site.activate(&site.release("1.0.0", "")).expect("ready").pid;
    let text = site.root().join("text");
    std::fs::write(&text, "not a program").expect("written");
    let broken = site.root().join("broken");
    std::fs::write(&broken, "neither").expect("written");
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).expect("set");
    for program in ["/nonexistent", "relative", "/bin/false", "/bin/true", "/"]
        .map(PathBuf::from)
        .into_iter()
        .chain([text, broken])
    {
        let error = site.client().reexec(&program).expect_err("refused").to_string();
        assert!(error.contains(&program.display().to_string()), "{error}");
    }
    assert_eq!((reexecs(&site), site.status().pid), (0, pid));
    // Settings that the new program does not accept are found before it is too late, too.
    std::fs::write(site.root().join("settings.json"), "{\"no_such_setting\": 1}").expect("written");
    let error = site.client().reexec(&newer_program(&site)).expect_err("refused").to_string();
    assert!(error.contains("no_such_setting"), "{error}");
    assert!(site.get("/").starts_with("1.0.0-"));
}

#[test]
fn service_that_starts_while_the_program_changes_becomes_ready_afterwards() {
    let mut site = Site::new(|_| {});
    let slow = site.release("1.0.0", "never-ready");
    site.start_supervisor(Some(&slow));
    site.wait_for_status("the start", |status| status.state == ServiceState::Starting);
    let pid = site.status().pid.expect("a process");
    site.client().reexec(&newer_program(&site)).expect("taken over");
    assert_eq!((site.status().pid, site.status().state), (Some(pid), ServiceState::Starting));
    // Somebody wants something else: what the program before started is ended by this one.
    site.activate(&site.release("1.1.0", "")).expect("ready");
    wait_for("its end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn readiness_that_comes_after_the_program_changed_is_heard() {
    let mut site = Site::new(|_| {});
    let slow = site.release("1.0.0", "waits");
    site.start_supervisor(Some(&slow));
    let starting = site.wait_for_status("the start", |status| status.state == ServiceState::Starting);
    site.client().reexec(&newer_program(&site)).expect("taken over");
    std::fs::write(slow.tree.join("go"), "").expect("written");
    let status = site.wait_for_status("the service", |status| status.state == ServiceState::Ready);
    assert!(status.pid.is_some());
    assert_eq!(status.pid, starting.pid);
}

#[test]
fn sockets_that_settings_no_longer_name_stay_open_until_the_process_that_has_them_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let listen = |name: &str| {
        let path = directory.path().join(name);
        (format!("unix:{}", path.display()).parse().expect("an address"), path)
    };
    let ((old, old_path), (new, new_path)) = (listen("old.sock"), listen("new.sock"));
    let mut site = Site::new(|settings| settings.listen = Some(vec![old]));
    let release = site.release("1.0.0", "");
    site.start_supervisor(Some(&release));
    site.wait_for_status("the service", |status| status.state == ServiceState::Ready);
    site.settings.listen = Some(vec![new]);
    let text = serde_json::to_string(&site.settings).expect("JSON");
    std::fs::write(site.root().join("settings.json"), text).expect("written");
    for count in 1..=2 {
        site.signal(Signal::HUP);
        wait_for("the new program", || (reexecs(&site) == count).then_some(()));
        let mut stream = std::os::unix::net::UnixStream::connect(&old_path).expect("a connection");
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = [0; 512];
        let count = std::io::Read::read(&mut stream, &mut answer).expect("an answer");
        assert!(String::from_utf8_lossy(&answer[..count]).contains("1.0.0-"));
    }
    site.activate(&site.release("1.1.0", "")).expect("ready");
    wait_for("the old socket to go", || (!old_path.exists()).then_some(()));
    std::os::unix::net::UnixStream::connect(&new_path).expect("a connection");
}
