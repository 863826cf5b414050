//! GitHub releases, against a server that speaks as much of the REST API as we use.

use cutover_core::model::Digest;
use cutover_host::fetch::{FetchError, GithubSource, OfferPlace, OnFailure, Source, Token, Unwatched, Watch};
use std::{sync::Arc, time::Duration};

use crate::{
    server::{Reply, Request, Server},
    world::{Collect, World},
};

const BUNDLE: &[u8] = b"the bytes of a bundle";

fn releases(digest: &str) -> String {
    serde_json::json!([
        {"tag_name": "v2.0.0", "draft": true, "assets": [
            {"id": 9, "name": "app-2.0.0.cutover", "size": 1, "digest": digest}]},
        {"tag_name": "v1.1.0-rc.1", "prerelease": true, "assets": [
            {"id": 8, "name": "app-1.1.0-rc.1.cutover", "size": 5, "state": "uploaded"},
            {"id": 7, "name": "app-1.1.0-rc.2.cutover", "size": 5, "state": "starter"},
            {"id": 6, "name": "notes.txt", "size": 5}]},
        {"tag_name": "v1.0.0", "prerelease": false, "unknown": {"to": "us"}, "assets": [
            {"id": 42, "name": "app-1.0.0.cutover", "size": BUNDLE.len(), "digest": digest}]},
    ])
    .to_string()
}

fn api(request: &Request) -> Reply {
    match request.target.split('?').next().unwrap() {
        "/api/repos/example/app/releases" => match request.header("if-none-match") {
            Some("W/\"list\"") => Reply::status(304),
            _ => Reply::ok(releases(&format!("sha256:{}", Digest::of(BUNDLE))).as_bytes())
                .with("etag", "W/\"list\""),
        },
        _ => Reply::status(404),
    }
}

fn open(world: &World, server: &Server) -> GithubSource {
    let mut settings = world.settings.clone();
    settings.github_api = format!("{}api", server.url());
    GithubSource::open("example/app", &settings, world.token.clone(), world.ports()).unwrap()
}

#[test]
fn bundles_of_published_releases_are_offered_and_an_unchanged_list_is_not_sent_again() {
    let (world, server) = (World::new(), Server::start(api));
    let source = open(&world, &server);
    let listing = source.listing(None).unwrap().unwrap();
    let names: Vec<&str> = listing.offers.iter().map(|offer| offer.name.as_str()).collect();
    assert_eq!(names, ["app-1.1.0-rc.1.cutover", "app-1.0.0.cutover"]);
    assert!(listing.offers[0].prerelease);
    assert_eq!(listing.offers[1].sha256, Some(Digest::of(BUNDLE)));
    assert_eq!(
        listing.offers[1].place,
        OfferPlace::Remote("repos/example/app/releases/assets/42".to_owned())
    );

    // Over a restart: what is kept is JSON.
    let kept = serde_json::from_str(&serde_json::to_string(&listing).unwrap()).unwrap();
    let again = open(&world, &server).listing(Some(kept)).unwrap().unwrap();
    assert_eq!(again, listing);
    let asked = server.asked();
    assert_eq!(asked[1].header("if-none-match"), Some("W/\"list\""));
    assert_eq!(asked[0].header("accept"), Some("application/vnd.github+json"));
    assert_eq!(asked[0].header("x-github-api-version"), Some("2022-11-28"));
}

#[test]
fn asset_is_fetched_through_its_redirect_without_the_token() {
    let storage = Server::of_files(&[("blob", BUNDLE)]);
    let target = format!("{}blob", storage.url());
    let server = Server::start(move |request| match request.target.as_str() {
        "/api/repos/example/app/releases/assets/42" => Reply::status(302).with("location", &target),
        _ => api(request),
    });
    let mut world = World::new();
    world.token = Some(Token::new("canary", "token_variable").unwrap());
    let source = open(&world, &server);
    let listing = source.listing(None).unwrap().unwrap();
    let wanted = listing.offers[1].wanted().unwrap();
    let (watch, mut sink) = (Arc::new(Unwatched) as Arc<dyn Watch>, Collect::default());
    let report = source.fetch(&world.downloads(), &[wanted], OnFailure::Stop, &watch, &mut sink).unwrap();
    report.into_result().unwrap();
    assert_eq!(sink.0[&0], BUNDLE);
    assert!(server.asked().iter().all(|request| request.header("authorization") == Some("Bearer canary")));
    assert_eq!(server.asked()[1].header("accept"), Some("application/octet-stream"));
    assert_eq!(storage.asked()[0].header("authorization"), None);
}

// W14
#[test]
fn asset_without_a_digest_is_refused() {
    let (world, server) = (World::new(), Server::start(api));
    let listing = open(&world, &server).listing(None).unwrap().unwrap();
    let error = listing.offers[0].wanted().unwrap_err();
    assert!(matches!(error, FetchError::NoDigest(_)), "{error}");
    assert!(error.to_string().contains("app-1.1.0-rc.1.cutover"));
    // Nor is one with a digest of another kind.
    for digest in ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:zz", ""] {
        let list = releases(digest);
        let server = Server::start(move |_| Reply::ok(list.as_bytes()));
        let listing = open(&world, &server).listing(None).unwrap().unwrap();
        assert!(listing.offers[1].wanted().is_err(), "{digest}");
    }
}

// W16
#[test]
fn exhausted_rate_limit_is_waited_for_until_it_resets() {
    let reset = world_now() + 40;
    let server = Server::start(move |request| match request.number {
        0 => Reply::status(403)
            .with("x-ratelimit-remaining", "0")
            .with("x-ratelimit-reset", &reset.to_string()),
        1 => Reply::status(429).with("retry-after", "7"),
        _ => api(request),
    });
    let world = World::new();
    open(&world, &server).listing(None).unwrap();
    assert_eq!(world.slept(), [Duration::from_secs(40), Duration::from_secs(7)]);

    let server = Server::start(move |_| {
        let hour = (world_now() + 3600).to_string();
        Reply::status(403).with("x-ratelimit-remaining", "0").with("x-ratelimit-reset", &hour)
    });
    let error = open(&world, &server).listing(None).unwrap_err();
    assert!(matches!(error, FetchError::TooLongAWait { .. }), "{error}");
    assert!(error.remedy().unwrap().contains("token"));
}

fn world_now() -> i64 {
    use cutover_host::clock::Clock as _;
    crate::world::FixedClock.now().unix()
}

#[test]
fn long_lists_are_read_page_by_page() {
    let release = |number: u64| {
        serde_json::json!({"tag_name": format!("v{number}"), "assets": [
            {"id": number, "name": format!("app-{number}.cutover"), "size": 1}]})
    };
    let server = Server::start(move |request| {
        let page: u64 = request.target.rsplit_once("&page=").unwrap().1.parse().unwrap();
        let count = if page < 3 { 100 } else { 7 };
        let list: Vec<_> = (0..count).map(|number| release(page * 1000 + number)).collect();
        Reply::ok(serde_json::to_string(&list).unwrap().as_bytes())
    });
    let listing = open(&World::new(), &server).listing(None).unwrap().unwrap();
    assert_eq!((listing.offers.len(), server.asked().len()), (207, 3));
}

#[test]
fn what_is_no_list_of_releases_is_refused() {
    for body in ["", "{}", "<html>", "[{}]"] {
        let server = Server::start(move |_| Reply::ok(body.as_bytes()));
        let error = open(&World::new(), &server).listing(None).unwrap_err();
        assert!(matches!(error, FetchError::Malformed { .. }), "{body}: {error}");
    }
    let server = Server::start(|_| Reply::status(404));
    let error = open(&World::new(), &server).listing(None).unwrap_err();
    assert!(matches!(error, FetchError::Answer { .. }), "{error}");
    let names = ["app", "a/b/c", "../x", "a/..", "a b/c", "", "/", "a/?x"];
    for name in names {
        let world = World::new();
        assert!(GithubSource::open(name, &world.settings, None, world.ports()).is_err(), "{name}");
    }
}
