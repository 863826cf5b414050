//! Releases whose objects are fetched while they are laid down.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::Arc,
};

use cutover_bundle::{Limits, RevocationLists, verify_detached};
use cutover_core::{
    execute::Outcome,
    fetch::{Priority, speeds::Speeds},
    model::{Digest, ObjectEntry},
    plan::Layout,
};
use cutover_host::{
    disk::RealDisk,
    fetch::{
        Downloads, FetchError, FetchPorts, RealTimer, RelativePath, SourceSettings, Unwatched, Wanted,
        open_source,
    },
    fetched_payload::{FetchedPayload, SpooledManifest},
    nice::Nice,
    node::Report,
    payload::Payload,
};

use crate::world::{FakeClock, Release, Verified, World, anchor, signing_time};

/// What a server has of a file.
#[derive(Clone)]
enum Has {
    Bytes(Vec<u8>),
    /// This many bytes are announced and none comes, as long as the connection is open.
    Silence(u64),
    Nothing,
}

fn serve(files: BTreeMap<String, Has>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let files = files.clone();
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().expect("a handle");
                let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
                while let Some(request) = lines.next() {
                    while lines.next().is_some_and(|line| !line.is_empty()) {}
                    let path = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/');
                    let (status, length, body) = match files.get(path) {
                        Some(Has::Bytes(body)) => ("200 OK", body.len() as u64, body.as_slice()),
                        Some(Has::Silence(length)) => ("200 OK", *length, [].as_slice()),
                        Some(Has::Nothing) | None => ("404 Not Found", 0, [].as_slice()),
                    };
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
                    if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// Applies `bundle` as a repository would deliver it; `has` says what the server has of each object.
fn apply(
    world: &World,
    bundle: &Verified,
    has: impl Fn(&ObjectEntry) -> (Digest, Has),
) -> (Report, Option<FetchError>) {
    let (mut objects, mut files) = (BTreeMap::new(), BTreeMap::new());
    for entry in &bundle.manifest().objects {
        let name = format!("objects/{}", entry.sha256);
        let (digest, has) = has(entry);
        let path = RelativePath::new(&name).expect("a path");
        let size_bytes = entry.stored_size;
        objects.insert(entry.sha256, Wanted { path, digest, size_bytes, priority: Priority::default() });
        files.insert(name, has);
    }
    let settings = SourceSettings {
        urls: vec![serve(files)],
        proxy: Some("none".to_owned()),
        // A failure that comes after this one would be the silence of the server.
        stall_timeout_s: 10,
        retries: 0,
        ..SourceSettings::default()
    };
    let ports = FetchPorts {
        timer: Arc::new(RealTimer::start()),
        clock: Arc::new(FakeClock::default()),
        seed: 1,
        jobs: std::num::NonZeroUsize::MIN,
        nice: Nice::NONE,
        speeds: Speeds::default(),
        buckets: None,
    };
    let source = open_source(&settings, &|_| None, ports).expect("settings").expect("a source");
    let (manifest, signature) = (bundle.manifest_bytes().expect("read"), bundle.signature_bytes().to_vec());
    let (lists, limits) = (RevocationLists::none(), Limits::default());
    let text = SpooledManifest::new(tempfile::tempfile().expect("a file"), &manifest).expect("written");
    let release =
        verify_detached(&manifest, signature, anchor(), &lists, signing_time(), &limits).expect("trusted");
    let wanted: Vec<Wanted> = objects.values().cloned().collect();
    let payload = FetchedPayload::new(release, text, objects, source, Arc::new(Unwatched));
    let node = world.node();
    let disk = Arc::new(RealDisk::open(world.path()).expect("a disk"));
    payload.attach(Arc::new(Downloads::open(disk).expect("downloads")));
    let lock = node.lock().expect("the lock");
    let plan = world.plan(&node, bundle);
    let execute = || node.execute(&lock, &plan, Some(&payload as &dyn Payload), &world.ports());
    let (report, not_fetched) = payload.while_fetching(&wanted, execute);
    (report.expect("a report"), not_fetched)
}

fn stored(bundle: &Verified, entry: &ObjectEntry) -> Vec<u8> {
    let mut stored = Vec::new();
    bundle.copy_object(entry, &mut std::io::sink(), &mut stored).expect("whole");
    stored
}

fn release() -> Verified {
    let noise = |count: u32| (0..count).flat_map(|n| Digest::of(&n.to_le_bytes()).as_bytes().to_owned());
    Release::new("1.0.0")
        .data("small", noise(500).collect::<Vec<_>>())
        .data("large", noise(5000).collect::<Vec<_>>())
        .bundle()
}

#[test]
fn what_arrives_while_it_is_laid_down_becomes_the_release() {
    let (world, bundle) = (World::new(Layout::Versioned), release());
    let (report, not_fetched) = apply(&world, &bundle, |entry| {
        let stored = stored(&bundle, entry);
        (Digest::of(&stored), Has::Bytes(stored))
    });
    assert!(not_fetched.is_none(), "{not_fetched:?}");
    assert_eq!(report.outcome, Outcome::Confirmed, "{}", report.message);
}

#[test]
fn failure_of_the_execution_ends_the_download_and_is_the_reason_that_is_told() {
    let (world, bundle) = (World::new(Layout::Versioned), release());
    let large =
        bundle.manifest().files.iter().find(|file| file.path.as_str() == "large").expect("listed").sha256;
    let (report, not_fetched) = apply(&world, &bundle, |entry| {
        if entry.sha256 == large {
            return (large, Has::Silence(entry.stored_size));
        }
        // What the repository promised, and not what the signed manifest says.
        let other = vec![b'x'; usize::try_from(entry.stored_size).expect("small")];
        (Digest::of(&other), Has::Bytes(other))
    });
    assert!(not_fetched.is_none(), "{not_fetched:?}");
    assert!(matches!(report.outcome, Outcome::Undone { .. }), "{:?}", report.outcome);
    assert!(report.message.contains("`small`"), "{}", report.message);
}

#[test]
fn failure_of_the_download_ends_the_execution_and_is_the_reason_that_is_told() {
    let (world, bundle) = (World::new(Layout::Versioned), release());
    let large =
        bundle.manifest().files.iter().find(|file| file.path.as_str() == "large").expect("listed").sha256;
    let (report, not_fetched) = apply(&world, &bundle, |entry| {
        let stored = stored(&bundle, entry);
        let digest = Digest::of(&stored);
        if entry.sha256 == large { (digest, Has::Nothing) } else { (digest, Has::Bytes(stored)) }
    });
    assert!(matches!(not_fetched, Some(FetchError::Answer { .. })), "{not_fetched:?}");
    assert!(matches!(report.outcome, Outcome::Undone { .. }), "{:?}", report.outcome);
}
