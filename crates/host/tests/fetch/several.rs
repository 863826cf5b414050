//! Many objects: parallel, in order, counted, retried.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use cutover_core::fetch::Priority;
use cutover_host::{
    clock::Clock as _,
    fetch::{FetchError, Got, OnFailure, RelativePath, Shelf, Sink, Unwatched, Wanted, Watch},
};

use crate::{
    server::{Reply, Server, file},
    world::{FixedClock, World, noise, wanted},
};

fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|number| (format!("objects/{number}"), noise(1000 + number, number as u64))).collect()
}

fn serve(files: &[(String, Vec<u8>)]) -> Server {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    Server::of_files(&files)
}

fn all(files: &[(String, Vec<u8>)]) -> Vec<Wanted> {
    files.iter().map(|(path, bytes)| wanted(path, bytes)).collect()
}

// W2
#[test]
fn four_of_eight_are_under_way_at_once_and_never_more() {
    let world = World::with(|settings| settings.parallel = 4);
    let files = many(8);
    let (content, flight) = (files.clone(), Arc::new((Mutex::new((0usize, 0usize)), Condvar::new())));
    let seen = Arc::clone(&flight);
    let server = Server::start(move |request| {
        let (counts, changed) = &*seen;
        let mut counts_now = counts.lock().unwrap();
        counts_now.0 += 1;
        counts_now.1 = counts_now.1.max(counts_now.0);
        changed.notify_all();
        // Nobody is answered before two are here: a sequential client would never get further.
        while counts_now.1 < 2 {
            counts_now = changed.wait(counts_now).unwrap();
        }
        counts_now.0 -= 1;
        drop(counts_now);
        let (_, bytes) = content.iter().find(|(path, _)| request.target.ends_with(path)).unwrap();
        Reply::ok(bytes)
    });
    let outcome = world.fetch(&server.url(), &all(&files));
    assert_eq!((outcome.report.succeeded(), outcome.report.failed()), (8, 0));
    let peak = flight.0.lock().unwrap().1;
    assert!((2..=4).contains(&peak), "{peak}");
}

// W3
#[test]
fn higher_priorities_are_fetched_first() {
    let world = World::with(|settings| settings.parallel = 1);
    let files = many(3);
    let server = serve(&files);
    let mut list = all(&files);
    for (wanted, priority) in list.iter_mut().zip([1, 10, 5]) {
        wanted.priority = Priority(priority);
    }
    world.fetch(&server.url(), &list);
    assert_eq!(server.targets(), ["/objects/1", "/objects/2", "/objects/0"]);
}

// W4
#[test]
fn results_are_in_the_order_of_what_was_wanted() {
    let world = World::new();
    let files = many(10);
    let server = serve(&files);
    let mut list = all(&files);
    for (index, wanted) in list.iter_mut().enumerate() {
        wanted.priority = Priority((index * 7 % 10) as u8);
    }
    let outcome = world.fetch(&server.url(), &list);
    for (index, object) in outcome.report.objects.iter().enumerate() {
        assert_eq!(object.as_ref().unwrap().digest, list[index].digest);
        assert_eq!(outcome.content[&index], files[index].1);
    }
    assert!(world.left().is_empty(), "what was consumed is gone: {:?}", world.left());
}

// W5
#[test]
fn nothing_wanted_is_nothing_fetched() {
    let server = Server::start(|_| Reply::status(500));
    let outcome = World::new().fetch(&server.url(), &[]);
    assert!(outcome.report.objects.is_empty());
    assert!(server.asked().is_empty());
}

#[test]
fn same_content_wanted_twice_is_fetched_once() {
    let world = World::new();
    let server = Server::of_files(&[("a", b"same"), ("b", b"same")]);
    let outcome = world.fetch(&server.url(), &[wanted("a", b"same"), wanted("b", b"same")]);
    assert_eq!(outcome.report.succeeded(), 2);
    assert_eq!(outcome.report.fetched_bytes(), 4);
    assert_eq!((server.asked().len(), outcome.content.len()), (1, 1));
}

#[test]
fn empty_object_and_strange_names_are_fetched() {
    let world = World::new();
    let server = Server::of_files(&[("empty", b""), ("a%20b/%C3%A4%3F", b"x")]);
    let outcome = world.fetch(&server.url(), &[wanted("empty", b""), wanted("a b/ä?", b"x")]);
    assert_eq!(outcome.report.succeeded(), 2, "{:?}", outcome.report);
}

// W15
#[test]
fn two_retries_are_three_requests_and_both_are_reported() {
    let world = World::new();
    let server = Server::start(|_| Reply::status(500));
    let outcome = world.fetch(&server.url(), &[wanted("a", b"x")]);
    assert!(matches!(outcome.error(), FetchError::Answer { .. }));
    assert_eq!(server.asked().len(), 3);
    assert_eq!(outcome.retries().len(), 2);
    let slept = world.slept();
    assert_eq!(slept.len(), 2);
    assert!(slept[0] >= Duration::from_millis(250) && slept[0] <= Duration::from_millis(500), "{slept:?}");
    assert!(slept[1] >= Duration::from_millis(500) && slept[1] <= Duration::from_millis(1000), "{slept:?}");
}

// W16
#[test]
fn missing_and_denied_are_final_and_server_errors_are_tried_again() {
    for (status, requests) in [(404, 1), (403, 1), (401, 1), (500, 3), (502, 3)] {
        let world = World::new();
        let server = Server::start(move |_| Reply::status(status));
        let outcome = world.fetch(&server.url(), &[wanted("a", b"x")]);
        assert_eq!(server.asked().len(), requests, "{status}");
        let error = outcome.error();
        assert!(error.to_string().contains(&format!("{}a", server.url())), "the URL is named: {error}");
        assert!(error.remedy().is_some(), "{status}");
    }
}

// W16
#[test]
fn retry_after_is_waited_for_and_an_absurd_one_is_not() {
    for status in [429, 503] {
        let world = World::new();
        let server = Server::start(move |request| match request.number {
            0 => Reply::status(status).with("retry-after", "17"),
            _ => Reply::ok(b"x"),
        });
        assert_eq!(world.fetch(&server.url(), &[wanted("a", b"x")]).only().retries, 1);
        assert_eq!(world.slept(), [Duration::from_secs(17)]);

        let server = Server::start(move |_| Reply::status(status).with("retry-after", "99999999"));
        let outcome = world.fetch(&server.url(), &[wanted("a", b"x")]);
        assert!(matches!(outcome.error(), FetchError::TooLongAWait { .. }), "{:?}", outcome.error());
        assert_eq!(server.asked().len(), 1);
    }
}

// W17
#[test]
fn one_failure_of_three_leaves_two() {
    let world = World::new();
    let server = Server::of_files(&[("a", b"aa"), ("c", b"cc")]);
    let list = [wanted("a", b"aa"), wanted("b", b"bb"), wanted("c", b"cc")];
    let outcome = world.fetch(&server.url(), &list);
    assert_eq!((outcome.report.succeeded(), outcome.report.failed()), (2, 1));
    assert!(outcome.report.objects[1].is_err());
    assert_eq!(outcome.content.keys().copied().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn first_failure_stops_the_others_where_they_are_worth_nothing_alone() {
    let world = World::with(|settings| settings.parallel = 1);
    let files = many(50);
    let server = serve(&files[1..]);
    let outcome = world.fetch_from(&[server.url()], &all(&files), OnFailure::Stop).unwrap();
    assert_eq!(server.asked().len(), 1);
    assert_eq!(outcome.report.succeeded(), 0);
    let error = outcome.report.into_result().unwrap_err();
    assert!(matches!(error, FetchError::Answer { .. }), "the reason, not the consequence: {error}");
}

// W18
#[test]
fn objects_are_downloading_then_verifying_then_done() {
    let server = Server::of_files(&[("a", b"aa")]);
    let outcome = World::new().fetch(&server.url(), &[wanted("a", b"aa")]);
    assert_eq!(outcome.phases(0), ["downloading", "verifying", "done"]);
}

// W19
#[test]
fn five_megabytes_over_four_connections_keep_the_limit_of_one_megabyte_per_second() {
    let world = World::with(|settings| {
        settings.parallel = 4;
        settings.bytes_per_s = 1_000_000;
    });
    let files: Vec<_> =
        (0..10).map(|number| (format!("objects/{number}"), noise(500_000, number as u64))).collect();
    let server = serve(&files);
    let outcome = world.fetch(&server.url(), &all(&files));
    assert_eq!(outcome.report.succeeded(), 10);
    let took = world.elapsed();
    assert!(took >= Duration::from_millis(4500), "{took:?}");
}

#[test]
fn objects_on_the_way_stop_when_the_sink_fails() {
    struct Fails;
    impl cutover_host::fetch::Sink for Fails {
        fn take(
            &mut self,
            _: usize,
            _: &cutover_host::fetch::Fetched,
            _: &cutover_host::fetch::Downloads,
        ) -> Result<cutover_host::fetch::Taken, Box<dyn std::error::Error + Send + Sync>> {
            Err("the disk is on fire".into())
        }
    }
    let world = World::with(|settings| settings.parallel = 1);
    let files = many(200);
    let server = serve(&files);
    let watch = Arc::new(Unwatched) as Arc<dyn Watch>;
    let fetcher = world.fetcher(&[server.url()]);
    let error =
        fetcher.fetch(&world.downloads(), &all(&files), OnFailure::Stop, &watch, &mut Fails).unwrap_err();
    assert!(matches!(error, FetchError::Sink(_)), "{error}");
}

#[test]
fn shelf_lets_others_use_what_arrived_while_the_rest_is_under_way() {
    let world = World::with(|settings| settings.parallel = 1);
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let opened = Arc::clone(&gate);
    let server = Server::start(move |request| {
        if request.target == "/second" {
            let mut open = opened.0.lock().unwrap();
            while !*open {
                open = opened.1.wait(open).unwrap();
            }
        }
        file(request, request.target.as_bytes(), "\"a\"")
    });
    let list = [wanted("first", b"/first"), wanted("second", b"/second")];
    let never = wanted("third", b"/third");
    let (shelf, downloads, fetcher) = (Shelf::new(), world.downloads(), world.fetcher(&[server.url()]));
    std::thread::scope(|scope| {
        let watch = Arc::new(Unwatched) as Arc<dyn Watch>;
        let (shelf, list, downloads, fetcher) = (&shelf, &list, &downloads, &fetcher);
        scope.spawn(move || {
            let fetch = |sink: &mut dyn Sink| fetcher.fetch(downloads, list, OnFailure::Stop, &watch, sink);
            shelf.while_filling(fetch).unwrap()
        });
        assert!(shelf.wait(list[0].digest));
        downloads.open_object(list[0].digest).unwrap();
        // Only now may the second one come: the first was used before.
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        assert!(shelf.wait(list[1].digest));
        assert!(!shelf.wait(never.digest), "nobody waits for ever");
    });
}

#[test]
fn slow_and_failing_mirrors_are_left_for_others() {
    let world = World::with(|settings| settings.parallel = 2);
    let files = many(20);
    let good = serve(&files);
    let broken = Server::start(|_| Reply::status(500));
    let empty = Server::of_files(&[]);
    let bases = [broken.url(), empty.url(), good.url()];
    let outcome = world.fetch_from(&bases, &all(&files), OnFailure::Stop).unwrap();
    assert_eq!(outcome.report.succeeded(), 20, "{:?}", outcome.report.objects);
    assert!(broken.asked().len() < 20, "{}", broken.asked().len());
    assert_eq!(good.asked().len(), 20);
}

#[test]
fn fastest_mirror_of_an_earlier_run_is_asked_first_and_what_is_measured_is_learned() {
    let files = many(1);
    let (slow, fast) = (serve(&files), serve(&files));
    let bases = [slow.url(), fast.url()];
    let mut world = World::new();
    world.speeds.learn([(slow.url(), 1e3), (fast.url(), 1e6)], FixedClock.now());
    let fetcher = world.fetcher(&bases);
    assert_eq!(fetcher.learned(), None, "nothing is new yet");
    let path = RelativePath::new(&files[0].0).unwrap();
    assert!(matches!(fetcher.get(&path, 1 << 20, None), Ok(Got::Content { .. })));
    assert_eq!((slow.asked().len(), fast.asked().len()), (0, 1));
    let learned = fetcher.learned().unwrap();
    assert_eq!(learned.of(&slow.url(), FixedClock.now()), Some(1e3));
    assert!(learned.of(&fast.url(), FixedClock.now()) > Some(1e6));
    // With one place there is nothing to choose from.
    let alone = World::new().fetcher(&bases[..1]);
    alone.get(&path, 1 << 20, None).unwrap();
    assert_eq!(alone.learned(), None);
}

#[test]
fn directory_is_a_source_and_a_mirror() {
    let world = World::new();
    let files = many(5);
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("objects")).unwrap();
    for (path, bytes) in &files[..4] {
        std::fs::write(place.path().join(path), bytes).unwrap();
    }
    let directory = place.path().to_str().unwrap().to_owned();
    let outcome =
        world.fetch_from(std::slice::from_ref(&directory), &all(&files[..4]), OnFailure::Stop).unwrap();
    assert_eq!(outcome.report.succeeded(), 4);

    let server = serve(&files);
    let outcome = World::new().fetch_from(&[directory, server.url()], &all(&files), OnFailure::Stop).unwrap();
    assert_eq!(outcome.report.succeeded(), 5, "the server has what the directory lacks");
}

// E23, H3
#[test]
fn without_twice_the_room_nothing_is_asked_for() {
    let world = World::new();
    let server = Server::of_files(&[("a", b"x")]);
    let mut huge = wanted("a", b"x");
    huge.size_bytes = u64::MAX / 4;
    let error = match world.fetch_from(&[server.url()], &[huge], OnFailure::Stop) {
        Ok(_) => panic!("it fits nowhere"),
        Err(error) => error,
    };
    assert!(matches!(error, FetchError::Space { needed, .. } if needed == u64::MAX / 4 * 2), "{error}");
    assert!(server.asked().is_empty());
}
