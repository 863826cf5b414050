//! Servers that lie, stall, change their mind or lead elsewhere: the right bytes or a clear refusal, never more on disk than
//! there may be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cutover_core::fetch::answer::Refusal;
use cutover_host::fetch::{FetchError, Token};

use crate::{
    server::{Reply, Request, Server, file},
    world::{World, noise, wanted},
};

const CONTENT: &[u8] = b"hello world";

/// What came of it, how often was asked, and that nothing lies around.
fn refused(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (FetchError, usize) {
    let server = Server::start(reply);
    let world = World::new();
    let mut outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(outcome.content.is_empty());
    let left = world.left();
    assert!(left.is_empty(), "{left:?}");
    let error = outcome.report.objects.remove(0).expect_err("it was refused");
    (error, server.asked().len())
}

// W13
#[test]
fn wrong_bytes_are_a_hash_mismatch_and_removed() {
    let (error, asked) = refused(|_| Reply::ok(b"hello-world"));
    assert!(error.to_string().starts_with("hash mismatch: "), "{error}");
    assert_eq!(asked, 1);
    let large = noise(2_000_000, 1);
    let mut damaged = large.clone();
    damaged[1_999_999] ^= 1;
    let server = Server::start(move |request| file(request, &damaged, "\"v1\""));
    let world = World::new();
    let outcome = world.fetch(&server.url(), &[wanted("a", &large)]);
    assert!(matches!(outcome.error(), FetchError::Mismatch { .. }));
    assert!(world.left().is_empty());
}

#[test]
fn endless_body_stops_at_the_expected_size() {
    let (error, _) = refused(|_| Reply::ok(&[b'x'; 4096]).endless());
    assert!(matches!(error, FetchError::TooLong { limit: 11, .. }), "{error}");
}

#[test]
fn announced_length_that_is_not_the_signed_one_is_refused_unread() {
    for length in [10, 12, 1 << 60] {
        let (error, asked) = refused(move |_| Reply::ok(CONTENT).claiming(length));
        let expected = Refusal::Length { announced: length, expected: 11 };
        assert!(matches!(&error, FetchError::Answer { source, .. } if *source == expected), "{error:?}");
        assert_eq!(asked, 1);
    }
}

#[test]
fn error_page_with_status_200_is_refused() {
    let (error, _) = refused(|_| Reply::ok(b"<html>Please log in</html>").with("content-type", "text/html"));
    assert!(matches!(error, FetchError::Answer { source: Refusal::Length { .. }, .. }), "{error}");
    // Also of the right length, or of none.
    let (error, _) = refused(|_| Reply::ok(b"<html></ht>").without_length());
    assert!(matches!(error, FetchError::Mismatch { .. }), "{error}");
}

#[test]
fn contradicting_lengths_are_refused() {
    let (error, _) = refused(|_| Reply::ok(CONTENT).with("content-length", "5"));
    assert!(matches!(error, FetchError::Transport { .. } | FetchError::Answer { .. }), "{error}");
}

#[test]
fn body_shorter_than_expected_is_fetched_on_until_the_tries_are_over() {
    let server = Server::start(|_| Reply::ok(b"hello").without_length());
    let world = World::new();
    let outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(
        matches!(outcome.error(), FetchError::Short { found: 5, expected: 11, .. }),
        "{}",
        outcome.error()
    );
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn stalled_server_is_given_up_and_what_it_sent_is_kept() {
    let server = Server::start(|request| file(request, CONTENT, "\"v1\"").silent_after(5));
    let world = World::with(|settings| settings.retries = 0);
    let outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(matches!(outcome.error(), FetchError::Stalled { .. }), "{}", outcome.error());
    assert_eq!(std::fs::read(world.file(wanted("a", CONTENT).digest, ".part")).unwrap(), b"hello");
    // One that does not even answer.
    let (hold, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let until = Arc::clone(&hold);
    let seen = Arc::clone(&held);
    let mute = Server::start(move |_| {
        seen.store(true, Ordering::SeqCst);
        while !until.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Reply::status(500)
    });
    let outcome = world.fetch(&mute.url(), &[wanted("b", b"another")]);
    assert!(matches!(outcome.error(), FetchError::Stalled { .. }), "{}", outcome.error());
    assert!(held.load(Ordering::SeqCst));
    hold.store(true, Ordering::SeqCst);
}

#[test]
fn server_that_sends_a_byte_now_and_then_is_given_up() {
    let content = noise(1_000_000, 2);
    let served = content.clone();
    let server = Server::start(move |_| Reply::ok(&served).dripping());
    let world = World::with(|settings| settings.retries = 0);
    let outcome = world.fetch(&server.url(), &[wanted("a", &content)]);
    assert!(matches!(outcome.error(), FetchError::Stalled { .. }), "{}", outcome.error());
}

#[test]
fn compressed_answer_is_refused_and_never_asked_for() {
    let server = Server::start(|_| Reply::ok(CONTENT).with("content-encoding", "gzip"));
    let world = World::new();
    let outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(
        matches!(outcome.error(), FetchError::Answer { source: Refusal::Encoded(_), .. }),
        "{}",
        outcome.error()
    );
    assert_eq!(server.asked()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn part_that_was_not_asked_for_is_refused() {
    let (error, _) = refused(|_| Reply::part(CONTENT, 3));
    assert!(matches!(error, FetchError::Answer { source: Refusal::Range, .. }), "{error}");
}

#[test]
fn wrong_ranges_are_not_appended() {
    for range in ["bytes 0-10/11", "bytes 5-10/11", "bytes 6-10/12", "bytes 6-9/11", "nonsense"] {
        let server = Server::start(move |request| match request.range_start() {
            Some(_) => Reply::status(206).with("content-range", range),
            None => Reply::ok(CONTENT),
        });
        let world = World::new();
        let object = wanted("a", CONTENT);
        world.lay_partial(&object, b"hello ", &server.url(), None);
        let outcome = world.fetch(&server.url(), std::slice::from_ref(&object));
        assert_eq!((outcome.only().resumed, outcome.only().fetched_bytes), (false, 11), "{range}");
    }
}

#[test]
fn file_that_changes_with_every_answer_is_refused() {
    let server = Server::start(|request| {
        let version = noise(3_000_000, request.number as u64);
        let reply = file(request, &version, &format!("\"{}\"", request.number));
        if request.number == 0 { reply.cut_after(1_000_000) } else { reply }
    });
    let world = World::new();
    let outcome = world.fetch(&server.url(), &[wanted("a", &noise(3_000_000, 99))]);
    assert!(matches!(outcome.error(), FetchError::Mismatch { .. }), "{}", outcome.error());
    assert!(world.left().is_empty());
}

#[test]
fn no_answer_at_all_is_an_error_that_names_the_url() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
    let world = World::new();
    let outcome = world.fetch(&format!("http://{closed}"), &[wanted("a", CONTENT)]);
    let text = outcome.error().to_string();
    assert!(text.starts_with(&format!("failed to fetch `http://{closed}/a`: ")), "{text}");
    assert_eq!(outcome.retries().len(), 2);
}

#[test]
fn token_goes_to_the_source_and_to_nobody_it_redirects_to() {
    let elsewhere = Server::of_files(&[("moved", CONTENT)]);
    let target = format!("{}moved", elsewhere.url());
    let home = Server::start(move |request| match request.target.as_str() {
        "/a" => Reply::status(302).with("location", &target),
        "/b" => Reply::status(307).with("location", "/c"),
        _ => Reply::ok(b"here"),
    });
    let mut world = World::new();
    world.token = Some(Token::new("canary", "token_file").unwrap());
    let outcome = world.fetch(&home.url(), &[wanted("a", CONTENT), wanted("b", b"here")]);
    assert_eq!(outcome.report.succeeded(), 2, "{:?}", outcome.report);
    assert!(home.asked().iter().all(|request| request.header("authorization") == Some("Bearer canary")));
    assert_eq!(home.asked().len(), 3, "the redirect at home keeps the token");
    assert_eq!(elsewhere.asked().len(), 1);
    assert_eq!(elsewhere.asked()[0].header("authorization"), None);
    assert!(!format!("{:?}", elsewhere.asked()).contains("canary"));
}

#[test]
fn redirects_elsewhere_and_in_circles_are_refused() {
    for target in
        ["ftp://127.0.0.1/a", "file:///etc/passwd", "//user:secret@127.0.0.1/a", "http://[", "data:,x"]
    {
        let (error, asked) = refused(move |_| Reply::status(301).with("location", target));
        assert!(matches!(error, FetchError::Redirect { .. }), "{target}: {error}");
        assert_eq!(asked, 1);
    }
    let (error, asked) = refused(|_| Reply::status(302).with("location", "/a"));
    assert!(matches!(error, FetchError::Redirect { .. }), "{error}");
    assert_eq!(asked, 6, "five redirects are followed");
    let (error, _) = refused(|_| Reply::status(302));
    assert!(matches!(error, FetchError::Redirect { .. }), "{error}");
}

#[test]
fn proxy_of_the_settings_is_asked() {
    let proxy = Server::start(|request| match request.target.as_str() {
        "http://source.invalid/a" => Reply::ok(CONTENT),
        _ => Reply::status(400),
    });
    let world = World::with(|settings| settings.proxy = Some(proxy.url()));
    let outcome = world.fetch("http://source.invalid/", &[wanted("a", CONTENT)]);
    assert_eq!(outcome.content[&0], CONTENT);
}

#[test]
fn proxy_of_the_environment_is_asked_unless_the_settings_say_none() {
    let proxy = Server::start(|request| match request.target.as_str() {
        "http://source.invalid/a" => Reply::ok(CONTENT),
        _ => Reply::status(400),
    });
    let world = World::new();
    let list = world.root.path().join("list");
    std::fs::write(&list, format!("a {} {}\n", wanted("a", CONTENT).digest, CONTENT.len())).unwrap();
    let run = |flags: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_fetch_fixture"))
            .args(["get".as_ref(), world.root.path().as_os_str(), list.as_os_str()])
            .args(flags)
            .arg("http://source.invalid/")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .env("http_proxy", proxy.url())
            .output()
            .unwrap()
    };
    assert!(run(&["--env-proxy"]).status.success());
    assert_eq!(proxy.asked().len(), 1);
    std::fs::remove_file(world.file(wanted("a", CONTENT).digest, "")).unwrap();
    assert!(!run(&["--no-retries"]).status.success());
    assert_eq!(proxy.asked().len(), 1, "it was not asked again");
}
