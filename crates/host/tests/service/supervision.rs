//! Starting, crashing, stopping; what a service inherits; who may speak to the supervisor.

use std::os::unix::process::CommandExt as _;

use cutover_host::service::{Activation, ServiceState};
use rustix::process::Signal;

use crate::{
    fixture::{PATIENCE, Site, is_alive, signal_to, wait_for},
    not_run::not_run,
};

#[test]
fn current_release_is_started_with_the_supervisor() {
    let mut site = Site::new(|_| {});
    let current = site.release("1.0.0", "");
    site.start_supervisor(Some(&current));
    let status = site.wait_for_status("the service", |status| status.state == ServiceState::Ready);
    assert_eq!(status.release, current.release);
    assert_eq!(status.supervisor.map(|supervisor| supervisor.pid), Some(site.supervisor_id()));
    assert!(site.get("/").starts_with("1.0.0-"));
}

#[test]
fn root_may_have_a_longer_path_than_a_socket_address() {
    let mut site = Site::new(|_| {});
    let prefix = "long".repeat(40);
    site.directory = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a directory");
    let site = site.supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    site.client().stop().expect("stopped");
    assert_eq!(site.status().state, ServiceState::NoSupervisor);
}

#[test]
fn supervisor_without_a_release_waits_for_one() {
    let site = Site::new(|_| {}).supervise();
    assert_eq!(site.status().state, ServiceState::Stopped);
    assert_eq!(site.activate(&site.release("1.0.0", "")).expect("ready").note, "started");
    assert!(site.get("/").starts_with("1.0.0-"));
}

#[test]
fn release_without_a_service_is_known_and_nothing_runs() {
    let mut site = Site::new(|_| {});
    let bare = |site: &Site, version| Activation { hints: None, ..site.release(version, "") };
    let booted = bare(&site, "1.0.0");
    site.start_supervisor(Some(&booted));
    assert_eq!(site.status().release, booted.release);
    site.activate(&site.release("1.1.0", "")).expect("ready");
    let later = bare(&site, "1.2.0");
    assert_eq!(site.activate(&later).expect("stopped").note, "the release has no service");
    let status = site.status();
    assert_eq!((status.state, status.release, status.pid), (ServiceState::Stopped, later.release, None));
    let nothing = Activation { release: None, ..later };
    site.activate(&nothing).expect("stopped");
    assert_eq!(site.status().release, None);
}

#[test]
fn crashed_service_is_restarted_on_the_same_socket() {
    let site = Site::new(|_| {}).supervise();
    let first = site.activate(&site.release("1.0.0", "")).expect("ready").pid.expect("a process");
    let address = site.address();
    for restart in 1..=3 {
        signal_to(site.status().pid.expect("a process"), Signal::KILL);
        site.wait_for_status("the restart", |status| {
            status.restarts == restart && status.state == ServiceState::Ready
        });
    }
    assert_eq!(site.address(), address);
    assert_ne!(site.status().pid, Some(first));
}

#[test]
fn crashed_service_leaves_no_process_behind() {
    let site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "forks");
    let first = site.activate(&release).expect("ready").pid.expect("a process");
    let child = std::fs::read_to_string(release.tree.join("forked")).expect("an id").parse().expect("an id");
    signal_to(first, Signal::KILL);
    wait_for("its child's end", || (!is_alive(child)).then_some(()));
}

#[test]
fn supervisor_waits_for_every_child_it_has() {
    let site = Site::new(|_| {}).supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    signal_to(site.status().pid.expect("a process"), Signal::KILL);
    site.wait_for_status("the restart", |status| status.restarts == 1 && status.state == ServiceState::Ready);
    let id = site.supervisor_id();
    let children = || std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("a list");
    wait_for("one child only", || (children().split_whitespace().count() == 1).then_some(()));
}

#[test]
fn service_that_always_crashes_is_reported_as_a_crash_loop_and_recovers_with_a_good_release() {
    let mut site = Site::new(|settings| settings.crash_loop_after = 3);
    let bad = site.release("1.0.0", "exits");
    site.start_supervisor(Some(&bad));
    site.wait_for_status("the crash loop", |status| status.state == ServiceState::CrashLoop);
    assert!(site.log(&bad).matches("I cannot go on").count() >= 3);
    site.activate(&site.release("1.1.0", "")).expect("ready");
    assert_eq!((site.status().state, site.status().restarts), (ServiceState::Ready, 0));
}

#[test]
fn service_gets_its_sockets_its_own_process_id_and_no_other_descriptor() {
    let site = Site::new(|settings| {
        let listen = ["tcp:127.0.0.1:0", "tcp:[::1]:0"].map(|text| text.parse().expect("an address"));
        settings.listen = Some(listen.to_vec());
    })
    .supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    assert_eq!(site.get("/listen"), "true 2 tcp-0:tcp-0");
    assert_eq!(site.get("/descriptors"), "[0, 1, 2, 3, 4]");
    // The same after a hand-over, when the supervisor has many more open.
    site.activate(&site.release("1.1.0", "")).expect("ready");
    assert_eq!(site.get("/descriptors"), "[0, 1, 2, 3, 4]");
}

#[test]
fn many_sockets_do_not_overwrite_each_other() {
    let site = Site::new(|settings| {
        let directory = std::env::temp_dir();
        let path = |number| format!("unix:{}/cutover-{}-{number}", directory.display(), std::process::id());
        let more = (0..40).map(|number| path(number).parse().expect("an address"));
        settings.listen.as_mut().expect("a list").extend(more);
    })
    .supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    assert!(site.get("/listen").starts_with("true 41 tcp-0:unix-cutover-"));
    let expected: Vec<u32> = (0..=43).collect();
    assert_eq!(site.get("/descriptors"), format!("{expected:?}"));
    site.client().stop().expect("stopped");
}

#[test]
fn sigterm_drains_the_service_and_ends_the_supervisor() {
    let mut site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let pid = site.activate(&release).expect("ready").pid.expect("a process");
    site.signal(Signal::TERM);
    assert!(site.ended());
    assert!(!is_alive(pid) && site.log(&release).contains("drained"));
    assert_eq!(site.status().state, ServiceState::NoSupervisor);
    assert!(!site.root().join(".cutover/run.sock").exists());
}

#[test]
fn stop_returns_when_service_and_supervisor_are_gone_and_a_new_one_can_start_at_once() {
    let mut site = Site::new(|_| {});
    let current = site.release("1.0.0", "");
    let mut before = Vec::new();
    for _ in 0..3 {
        site.start_supervisor(Some(&current));
        let status = site.wait_for_status("the service", |status| status.state == ServiceState::Ready);
        site.client().stop().expect("stopped");
        assert!(!status.pid.is_some_and(is_alive));
        // The one before is waited for only after the next one runs.
        before.extend(site.supervisor.take());
    }
    site.client().stop().expect("stopped");
    for mut supervisor in before {
        assert!(supervisor.wait().expect("waited").success());
    }
    site.client().stop().expect("none runs, which is as good");
}

#[test]
fn killed_supervisor_takes_its_service_along_and_leaves_nothing_in_the_way() {
    let mut site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let pid = site.activate(&release).expect("ready").pid.expect("a process");
    site.signal(Signal::KILL);
    site.ended();
    wait_for("the service's end", || (!is_alive(pid)).then_some(()));
    assert!(site.root().join(".cutover/run.sock").exists());
    assert_eq!(site.status().state, ServiceState::NoSupervisor);
    site.start_supervisor(Some(&release));
    site.wait_for_status("the service", |status| status.state == ServiceState::Ready);
}

#[test]
fn second_supervisor_of_one_root_is_refused_and_the_first_not_disturbed() {
    let site = Site::new(|_| {}).supervise();
    site.activate(&site.release("1.0.0", "")).expect("ready");
    let second = site.supervisor_command().output().expect("it ends");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("a supervisor already runs"));
    assert!(site.get("/").starts_with("1.0.0-"));
}

#[test]
fn nothing_installed_any_more_stops_the_service_and_closes_its_sockets() {
    let site = Site::new(|_| {}).supervise();
    let release = site.release("1.0.0", "");
    let pid = site.activate(&release).expect("ready").pid.expect("a process");
    let address = site.address();
    let nothing = Activation { release: None, hints: None, ..release };
    for _ in 0..2 {
        site.activate(&nothing).expect("stopped");
        assert!(!is_alive(pid));
        assert_eq!(site.status().state, ServiceState::Stopped);
        std::net::TcpStream::connect(&address).expect_err("closed");
    }
}

#[test]
fn only_the_owner_and_root_may_speak_to_the_supervisor() {
    use std::os::unix::fs::MetadataExt as _;

    let site = Site::new(|_| {}).supervise();
    let socket = site.root().join(".cutover/run.sock");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        return not_run("another user at the control socket: needs root");
    }
    // Even where the file's mode lets everybody in.
    use std::os::unix::fs::PermissionsExt as _;
    for (path, mode) in [(site.root(), 0o777), (&site.root().join(".cutover"), 0o777), (&socket, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    }
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ntry:\n s.send(b'{\"v\":1,\"op\":\"status\"}\\n')\n r=s.recv(9)\nexcept OSError:\n r=b''\nsys.exit(len(r))";
    let ask = |uid: u32| {
        let mut python = std::process::Command::new("/usr/bin/python3");
        python.args(["-c", script]).arg(&socket).uid(uid).status()
    };
    let Ok(root) = ask(0) else {
        return not_run(
            "another user at the control socket: python3 is not installed (Debian: apt-get install python3)",
        );
    };
    assert_eq!(root.code(), Some(9));
    assert_eq!(ask(65_534).expect("python").code(), Some(0));
}

#[test]
fn service_runs_as_the_user_that_the_settings_name() {
    if !rustix::process::geteuid().is_root() {
        return not_run("service as another user: needs root");
    }
    let site = Site::new(|settings| settings.user = Some("nobody".to_owned())).supervise();
    use std::os::unix::fs::PermissionsExt as _;
    let release = site.release("1.0.0", "");
    for path in [site.root(), &site.root().join("releases"), &release.tree] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set");
    }
    // The program itself may lie where nobody else may look.
    let copy = release.tree.join("server");
    std::fs::remove_file(&copy).expect("removed");
    std::fs::copy(crate::fixture::fixture_program(), &copy).expect("copied");
    site.activate(&release).expect("ready");
    assert_eq!(site.get("/uid"), "65534");
    let site = Site::new(|settings| settings.user = Some("no-such-user".to_owned())).supervise();
    let error = site.activate(&site.release("1.0.0", "")).expect_err("nobody").to_string();
    assert!(error.contains("no-such-user"), "{error}");
}

#[test]
fn nonsense_on_the_control_socket_is_answered_and_harms_nobody() {
    use std::io::{Read as _, Write as _};

    let site = Site::new(|_| {}).supervise();
    let ask = |text: &[u8]| {
        let mut stream = std::os::unix::net::UnixStream::connect(site.root().join(".cutover/run.sock"))
            .expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // It may be refused before all of it is sent.
        let _ = stream.write_all(text);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(ask(b"hello\n").contains("\"reply\":\"refused\""));
    assert!(ask(b"{\"v\":9,\"op\":\"status\"}\n").contains("unsupported"));
    assert!(ask(b"{\"v\":1,\"op\":\"status\"}\n").contains("\"state\":\"stopped\""));
    ask(&vec![b'x'; 3 << 20]);
    for _ in 0..200 {
        drop(std::os::unix::net::UnixStream::connect(site.root().join(".cutover/run.sock")));
    }
    site.activate(&site.release("1.0.0", "")).expect("ready");
}
