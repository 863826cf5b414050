//! A client that is killed again and again.

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    server::{Pace, Server, file},
    world::{World, noise, wanted},
};

/// How far the server may run ahead of what lies on disk: two batches of the client.
const AHEAD: u64 = 1 << 20;
const SIZE: usize = 64 << 20;
const KILLS: u64 = 5;

// W20
#[test]
fn killed_downloads_go_on_where_they_were_and_fetch_hardly_a_byte_twice() {
    let content = Arc::new(noise(SIZE, 11));
    let object = wanted("large", &content);
    let world = World::new();
    drop(world.downloads());
    let part = world.file(object.digest, ".part");
    let on_disk = {
        let part = part.clone();
        move || std::fs::metadata(&part).map_or(0, |metadata| metadata.len())
    };

    // The server sends a piece once what it sent before lies on disk, so that what is in flight is bounded without a clock.
    let (sent, life) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let (total, lives, disk, served) =
        (Arc::clone(&sent), Arc::clone(&life), on_disk.clone(), Arc::clone(&content));
    let server = Server::start(move |request| {
        let offset = request.range_start().unwrap_or(0) as u64;
        let (total, lives, disk, mine) =
            (Arc::clone(&total), Arc::clone(&lives), disk.clone(), lives.load(Ordering::SeqCst));
        let counted = Mutex::new(0u64);
        let pace = Pace(Arc::new(move |so_far| {
            while disk() + AHEAD < offset + so_far as u64 {
                if lives.load(Ordering::SeqCst) != mine {
                    return false;
                }
                std::thread::yield_now();
            }
            let mut counted = counted.lock().unwrap();
            total.fetch_add((64 << 10).min(SIZE as u64 - offset - *counted), Ordering::SeqCst);
            *counted = so_far as u64 + (64 << 10);
            true
        }));
        file(request, &served, "\"v1\"").paced(pace)
    });

    let list = world.root.path().join("list");
    std::fs::write(&list, format!("large {} {SIZE}\n", object.digest)).unwrap();
    let start = || -> Child {
        Command::new(env!("CARGO_BIN_EXE_fetch_fixture"))
            .args(["get".as_ref(), world.root.path().as_os_str(), list.as_os_str()])
            .arg(server.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for kill in 1..=KILLS {
        let mut client = start();
        while on_disk() < kill * SIZE as u64 / (KILLS + 1) {
            assert!(client.try_wait().unwrap().is_none(), "it ended before it was killed");
            std::thread::yield_now();
        }
        client.kill().unwrap();
        client.wait().unwrap();
        life.fetch_add(1, Ordering::SeqCst);
    }
    let output = start().wait_with_output().unwrap();
    assert!(output.status.success());
    let last: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(last["fetched_bytes"].as_u64().unwrap() <= SIZE as u64 / (KILLS + 1) + AHEAD, "{last}");
    assert_eq!(std::fs::read(world.file(object.digest, "")).unwrap(), *content);
    let total = sent.load(Ordering::SeqCst);
    assert!(total <= SIZE as u64 * 11 / 10, "{total} bytes were sent for {SIZE}");
    assert!(server.asked()[1..].iter().all(|request| request.range_start().is_some()));
}
