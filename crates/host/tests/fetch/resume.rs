//! Going on with what is there.

use cutover_host::fetch::{FetchError, OnFailure};

use crate::{
    server::{Reply, Server, file},
    world::{World, noise, wanted},
};

const CONTENT: &[u8] = b"hello world";

// W6
#[test]
fn only_the_missing_five_bytes_are_fetched() {
    let world = World::new();
    let server = Server::of_files(&[("a", CONTENT)]);
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"hello ", &server.url(), Some("\"v1\""));
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    let fetched = outcome.only();
    assert!(fetched.resumed);
    assert_eq!(fetched.fetched_bytes, 5);
    assert_eq!(outcome.content[&0], CONTENT);
    let asked = server.asked();
    assert_eq!(asked[0].header("range"), Some("bytes=6-"));
    assert_eq!(asked[0].header("if-range"), Some("\"v1\""));
}

#[test]
fn validator_of_another_place_is_not_sent_and_its_bytes_are_used() {
    let world = World::new();
    let server = Server::of_files(&[("a", CONTENT)]);
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"hello ", "https://elsewhere.example/", Some("\"other\""));
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!(outcome.only().fetched_bytes, 5);
    assert_eq!(server.asked()[0].header("if-range"), None);
}

// W7
#[test]
fn without_resume_a_stale_file_is_replaced() {
    let world = World::with(|settings| settings.resume = false);
    let server = Server::of_files(&[("a", CONTENT)]);
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"stale!", &server.url(), Some("\"v1\""));
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert!(!outcome.only().resumed);
    assert_eq!(outcome.content[&0], CONTENT);
    assert_eq!(server.asked()[0].header("range"), None);
}

// W8
#[test]
fn nothing_there_is_no_resumption() {
    let server = Server::of_files(&[("a", CONTENT)]);
    let outcome = World::new().fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(!outcome.only().resumed);
    assert_eq!(outcome.only().fetched_bytes, 11);
}

// W9
#[test]
fn server_that_ignores_ranges_starts_again() {
    let world = World::new();
    let server = Server::start(|_| Reply::ok(CONTENT));
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"HELLO ", &server.url(), None);
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert!(!outcome.only().resumed);
    assert_eq!(outcome.content[&0], CONTENT);
    assert_eq!(server.asked().len(), 1, "its answer is used");
}

// W10
#[test]
fn unsatisfied_range_drops_the_partial_file() {
    let world = World::new();
    let server = Server::start(|request| match request.range_start() {
        Some(_) => Reply::status(416),
        None => Reply::ok(CONTENT),
    });
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"hello ", &server.url(), None);
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!((outcome.only().resumed, outcome.only().fetched_bytes), (false, 11));
}

// W10
#[test]
fn changed_validator_drops_the_partial_file() {
    for honest in [true, false] {
        let world = World::new();
        let server = Server::start(move |request| match request.range_start() {
            // One that ignores If-Range and says so by its ETag.
            Some(start) if !honest => Reply::part(CONTENT, start).with("etag", "\"v2\""),
            _ => file(request, CONTENT, "\"v2\""),
        });
        let object = wanted("a", CONTENT);
        world.lay_partial(&object, b"HELLO ", &server.url(), Some("\"v1\""));
        let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
        assert!(!outcome.only().resumed);
        assert_eq!(outcome.content[&0], CONTENT);
    }
}

// W11
#[test]
fn complete_file_is_verified_and_not_fetched() {
    let server = Server::of_files(&[("a", CONTENT)]);
    let object = wanted("a", CONTENT);
    let world = World::new();
    world.lay_partial(&object, CONTENT, &server.url(), None);
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!(outcome.only().fetched_bytes, 0);
    assert_eq!(outcome.phases(0), ["verifying", "done"]);
    assert!(server.asked().is_empty());
}

#[test]
fn finished_file_that_was_damaged_since_is_fetched_again() {
    let server = Server::of_files(&[("a", CONTENT)]);
    let object = wanted("a", CONTENT);
    let world = World::new();
    drop(world.downloads());
    std::fs::write(world.file(object.digest, ""), b"hellO world").unwrap();
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!(outcome.only().fetched_bytes, 11);
    assert_eq!(outcome.content[&0], CONTENT);
}

// W12
#[test]
fn cut_body_is_continued_from_the_bytes_on_disk() {
    for size in [11, 3_000_000] {
        let content = noise(size, 7);
        let served = content.clone();
        let server = Server::start(move |request| {
            let reply = file(request, &served, "\"v1\"");
            if request.number == 0 { reply.cut_after(served.len() / 2) } else { reply }
        });
        let world = World::new();
        let outcome = world.fetch(&server.url(), &[wanted("a", &content)]);
        let fetched = outcome.only();
        assert!(fetched.resumed);
        assert_eq!((fetched.retries, fetched.fetched_bytes), (1, size as u64), "no byte came twice");
        assert_eq!(outcome.content[&0], content);
        let asked = server.asked();
        assert_eq!(asked[1].range_start(), Some(size / 2));
        assert_eq!(asked[1].header("if-range"), Some("\"v1\""));
    }
}

#[test]
fn what_was_fetched_before_a_failure_serves_the_next_run() {
    let content = noise(2_000_000, 3);
    let served = content.clone();
    let server = Server::start(move |request| match request.number {
        0 => file(request, &served, "\"v1\"").cut_after(1_500_000),
        1..=2 => Reply::status(500),
        _ => file(request, &served, "\"v1\""),
    });
    let world = World::new();
    let object = wanted("a", &content);
    world.fetch(&server.url(), std::slice::from_ref(&object)).error();
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!(outcome.only().fetched_bytes, 500_000);
    assert!(world.left().is_empty(), "{:?}", world.left());
}

#[test]
fn bytes_of_two_versions_are_noticed_and_fetched_again_once() {
    // The server sends the rest of another version and calls it the same.
    let server = Server::start(|request| file(request, CONTENT, "\"v1\""));
    let world = World::new();
    let object = wanted("a", CONTENT);
    world.lay_partial(&object, b"HELLO ", &server.url(), Some("\"v1\""));
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert_eq!(outcome.content[&0], CONTENT);
    assert!(!outcome.only().resumed);
    assert_eq!(server.asked().len(), 2);

    // And one that never has the right one is given up after the restart.
    let server = Server::start(|request| file(request, b"HELLO WORLD", "\"v1\""));
    world.lay_partial(&object, b"hello ", &server.url(), Some("\"v1\""));
    let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
    assert!(matches!(outcome.error(), FetchError::Mismatch { .. }));
    assert_eq!(server.asked().len(), 2);
    assert!(world.left().is_empty());
}

#[test]
fn interrupted_copy_from_a_directory_goes_on() {
    let content = noise(1_500_000, 5);
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("a"), &content).unwrap();
    let directory = place.path().to_str().unwrap().to_owned();
    let world = World::new();
    let object = wanted("a", &content);
    world.lay_partial(&object, &content[..1_000_000], &directory, None);
    let outcome = world.fetch_from(&[directory], std::slice::from_ref(&object), OnFailure::Stop).unwrap();
    assert_eq!((outcome.only().resumed, outcome.only().fetched_bytes), (true, 500_000));
    assert_eq!(outcome.content[&0], content);
}
