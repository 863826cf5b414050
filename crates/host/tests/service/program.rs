//! A service and a supervisor for the tests of `host::service`.
//!
//! `service_fixture supervisor ROOT` supervises ROOT; its settings are in ROOT/settings.json, the current release in
//! ROOT/current.json. `service_fixture service` is an HTTP service that is also an example of how to be handed over: it
//! takes its sockets from LISTEN_FDS, says READY=1, and on SIGTERM answers what is asked on open connections with
//! `Connection: close` until the last of them is closed. A file `behaviour` in its directory makes it misbehave.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::zombie_processes)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cutover_host::service::{
    Activation, InheritedSocket, inherited_listeners, notify_ready,
    supervisor::{SupervisorOptions, run},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["supervisor", root] => supervise(Path::new(root)),
        ["service", ..] => serve(),
        _ => panic!("supervisor ROOT | service"),
    }
}

fn supervise(root: &Path) {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect(name);
    let settings = match serde_json::from_str(&read("settings.json")) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("bad settings: {error}");
            std::process::exit(2);
        }
    };
    let current: Option<Activation> = serde_json::from_str(&read("current.json")).expect("an activation");
    let current =
        move || Ok(current.clone().and_then(|current| Some((current.release?, current.tree, current.hints))));
    // A child that nobody waits for, as programs leave them.
    drop(std::process::Command::new("true").spawn().expect("a child"));
    if let Err(error) = run(SupervisorOptions::new(root, settings, current)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// What the service does wrong, from the file `behaviour`.
fn behaviour(word: &str) -> bool {
    std::fs::read_to_string("behaviour").is_ok_and(|text| text.split_whitespace().any(|found| found == word))
}

fn open_descriptors() -> String {
    let mut numbers: Vec<u32> = std::fs::read_dir("/proc/self/fd")
        .expect("a directory")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    // The last one is the directory itself, which is closed by now.
    numbers.pop();
    format!("{numbers:?}")
}

fn serve() {
    let descriptors = open_descriptors();
    println!("hello from {}", std::env::var("CUTOVER_RELEASE").expect("a release"));
    if behaviour("exits") {
        println!("I cannot go on");
        std::process::exit(7);
    }
    if behaviour("forks") {
        let child = std::process::Command::new("sleep").arg("600").spawn().expect("a child");
        std::fs::write("forked", child.id().to_string()).expect("written");
    }
    let draining = Arc::new(AtomicBool::new(false));
    let open = Arc::new(AtomicUsize::new(0));
    if behaviour("ignores-term") {
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::default()).expect("a handler");
    } else {
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&draining)).expect("a handler");
    }
    for inherited in inherited_listeners().expect("listeners") {
        let (draining, open, descriptors) = (Arc::clone(&draining), Arc::clone(&open), descriptors.clone());
        match inherited.socket {
            InheritedSocket::Tcp(listener) => std::thread::spawn(move || {
                accept_all(&draining, &open, &descriptors, listener.as_fd(), || {
                    let (stream, _) = listener.accept().ok()?;
                    stream.set_nodelay(true).ok()?;
                    let reader = stream.try_clone().ok()?;
                    Some((
                        Box::new(reader) as Box<dyn Read + Send>,
                        Box::new(stream) as Box<dyn Write + Send>,
                    ))
                });
            }),
            InheritedSocket::Unix(listener) => std::thread::spawn(move || {
                accept_all(&draining, &open, &descriptors, listener.as_fd(), || {
                    let (stream, _) = listener.accept().ok()?;
                    let reader = stream.try_clone().ok()?;
                    Some((
                        Box::new(reader) as Box<dyn Read + Send>,
                        Box::new(stream) as Box<dyn Write + Send>,
                    ))
                });
            }),
        };
    }
    while behaviour("waits") && !std::path::Path::new("go").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    if !behaviour("never-ready") {
        notify_ready().expect("somebody wants to know");
    }
    while !(draining.load(Ordering::SeqCst) && open.load(Ordering::SeqCst) == 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("drained");
}

use std::os::fd::AsFd;

type Accepted = (Box<dyn Read + Send>, Box<dyn Write + Send>);

fn accept_all(
    draining: &Arc<AtomicBool>,
    open: &Arc<AtomicUsize>,
    descriptors: &str,
    socket: std::os::fd::BorrowedFd<'_>,
    accept: impl Fn() -> Option<Accepted>,
) {
    // Another process may take the connection first, and the mode is shared with it.
    rustix::io::ioctl_fionbio(socket, true).expect("a socket");
    while !draining.load(Ordering::SeqCst) {
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(socket, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&wait));
        // Counted before it is accepted, so that the process does not end in between.
        open.fetch_add(1, Ordering::SeqCst);
        match accept() {
            Some((reader, writer)) => {
                let (draining, open, descriptors) =
                    (Arc::clone(draining), Arc::clone(open), descriptors.to_owned());
                std::thread::spawn(move || {
                    converse(&draining, &descriptors, reader, writer);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
            None => drop(open.fetch_sub(1, Ordering::SeqCst)),
        }
    }
}

fn converse(
    draining: &AtomicBool,
    descriptors: &str,
    reader: Box<dyn Read + Send>,
    mut writer: Box<dyn Write + Send>,
) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::from("x");
        while !header.trim().is_empty() {
            header.clear();
            if reader.read_line(&mut header).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = request.split(' ').nth(1).unwrap_or("/");
        let environment = |key: &str| std::env::var(key).unwrap_or_default();
        let body = match path {
            "/crash" => std::process::exit(3),
            "/descriptors" => descriptors.to_owned(),
            "/uid" => rustix::process::geteuid().as_raw().to_string(),
            "/listen" => format!(
                "{} {} {}",
                environment("LISTEN_PID") == std::process::id().to_string(),
                environment("LISTEN_FDS"),
                environment("LISTEN_FDNAMES")
            ),
            _ => format!("{} {}", environment("CUTOVER_RELEASE"), std::process::id()),
        };
        let last = draining.load(Ordering::SeqCst);
        let connection = if last { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        if writer.write_all(answer.as_bytes()).is_err() || last {
            return;
        }
    }
}
