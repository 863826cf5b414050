//! Small files as a whole.

use cutover_core::fetch::answer::Refusal;
use cutover_host::fetch::{FetchError, Got, RelativePath, Tag};

use crate::{
    server::{Reply, Server},
    world::World,
};

fn path(text: &str) -> RelativePath {
    RelativePath::new(text).unwrap()
}

fn get(world: &World, bases: &[String], known: Option<&Tag>) -> Result<Got, FetchError> {
    world.fetcher(bases).get(&path("metadata.json"), 100, known)
}

#[test]
fn unchanged_file_is_not_sent_again() {
    let server = Server::start(|request| match request.header("if-none-match") {
        Some("W/\"7\"") => Reply::status(304),
        _ => Reply::ok(b"{}").with("etag", "W/\"7\""),
    });
    let world = World::new();
    let bases = [server.url()];
    let Got::Content { bytes, tag } = get(&world, &bases, None).unwrap() else { panic!("no content") };
    assert_eq!(bytes, b"{}");
    // Over a restart: what is kept is JSON.
    let tag: Tag = serde_json::from_str(&serde_json::to_string(&tag.unwrap()).unwrap()).unwrap();
    assert_eq!(get(&world, &bases, Some(&tag)).unwrap(), Got::Unchanged);
    assert_eq!(server.asked().len(), 2);

    // A tag of one place means nothing to another.
    let other = Server::start(|request| {
        assert_eq!(request.header("if-none-match"), None);
        Reply::ok(b"[]")
    });
    assert!(matches!(get(&world, &[other.url()], Some(&tag)).unwrap(), Got::Content { .. }));
    // And nobody is unchanged who was not asked about a change.
    let liar = Server::start(|_| Reply::status(304));
    let error = get(&world, &[liar.url()], None).unwrap_err();
    assert!(matches!(error, FetchError::Answer { source: Refusal::Status(304), .. }), "{error}");
}

#[test]
fn file_larger_than_its_cap_is_refused_whatever_length_it_claims() {
    for reply in [
        Reply::ok(&[b'x'; 101]),
        Reply::ok(&[b'x'; 101]).without_length(),
        Reply::ok(&[b'x'; 4096]).endless(),
    ] {
        let server = Server::start(move |_| reply.clone());
        let error = get(&World::new(), &[server.url()], None).unwrap_err();
        assert!(matches!(error, FetchError::TooLong { limit: 100, .. }), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
    let server = Server::start(|_| Reply::ok(&[b'x'; 100]));
    assert!(matches!(get(&World::new(), &[server.url()], None).unwrap(), Got::Content { .. }));
}

#[test]
fn missing_file_is_no_error_and_looked_for_in_every_place() {
    let (first, second) = (Server::start(|_| Reply::status(404)), Server::start(|_| Reply::status(410)));
    let world = World::new();
    assert_eq!(get(&world, &[first.url(), second.url()], None).unwrap(), Got::Missing);
    assert_eq!((first.asked().len(), second.asked().len()), (1, 1), "and asked for once each");

    let third = Server::start(|_| Reply::ok(b"here"));
    let found = get(&world, &[first.url(), third.url()], None).unwrap();
    assert!(matches!(found, Got::Content { .. }));
    // One that cannot tell is not one that has nothing.
    let broken = Server::start(|_| Reply::status(500));
    assert!(get(&world, &[first.url(), broken.url()], None).is_err());
}

#[test]
fn place_that_answers_in_the_end_has_not_failed() {
    let starting = || Server::start(|request| Reply::status(if request.number == 0 { 503 } else { 404 }));
    let (first, second) = (starting(), starting());
    assert_eq!(get(&World::new(), &[first.url(), second.url()], None).unwrap(), Got::Missing);
    assert_eq!((first.asked().len(), second.asked().len()), (2, 2));
    // It does not speak for another one.
    let broken = Server::start(|_| Reply::status(500));
    let error = get(&World::new(), &[broken.url(), starting().url()], None).unwrap_err();
    assert!(matches!(&error, FetchError::Answer { url, .. } if url.starts_with(&broken.url())), "{error}");
}

#[test]
fn compressed_partial_and_cut_answers_are_no_content() {
    let server = Server::start(|_| Reply::ok(b"x").with("content-encoding", "br"));
    let error = get(&World::new(), &[server.url()], None).unwrap_err();
    assert!(matches!(error, FetchError::Answer { source: Refusal::Encoded(_), .. }), "{error}");
    let server = Server::start(|_| Reply::part(b"abcdef", 0));
    let error = get(&World::new(), &[server.url()], None).unwrap_err();
    assert!(matches!(error, FetchError::Answer { source: Refusal::Range, .. }), "{error}");
    let server = Server::start(|request| {
        let whole = Reply::ok(b"abcdef");
        if request.number == 0 { whole.cut_after(3) } else { whole }
    });
    let Got::Content { bytes, .. } = get(&World::new(), &[server.url()], None).unwrap() else {
        panic!("no content")
    };
    assert_eq!(bytes, b"abcdef");
}

#[test]
fn files_of_a_directory_are_got_and_links_out_of_it_are_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let base = [place.path().to_str().unwrap().to_owned()];
    let world = World::new();
    assert_eq!(get(&world, &base, None).unwrap(), Got::Missing);
    std::fs::write(place.path().join("metadata.json"), "{}").unwrap();
    assert_eq!(get(&world, &base, None).unwrap(), Got::Content { bytes: b"{}".to_vec(), tag: None });
    std::fs::write(place.path().join("metadata.json"), vec![0; 101]).unwrap();
    assert!(matches!(get(&world, &base, None).unwrap_err(), FetchError::TooLong { limit: 100, .. }));
    std::fs::remove_file(place.path().join("metadata.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.path().join("metadata.json")).unwrap();
    assert!(matches!(get(&world, &base, None).unwrap_err(), FetchError::Read { .. }));
}

#[test]
fn metadata_can_be_got_from_within_another_runtime() {
    let server = Server::start(|_| Reply::ok(b"{}"));
    let (world, bases) = (World::new(), [server.url()]);
    let fetcher = world.fetcher(&bases);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let got = runtime.block_on(async { fetcher.get(&path("metadata.json"), 100, None) });
    assert!(matches!(got.unwrap(), Got::Content { .. }));
}
