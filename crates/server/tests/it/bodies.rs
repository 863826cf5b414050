//! Bodies: their length, their digest, how they break, and that a refusal never reads one.

use std::{io::Write as _, net::Shutdown};

use crate::world::{Answer, World, archive, request, sha256};

fn body(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(size)
    .collect()
}

// I9
#[test]
fn same_upload_again_is_present_already_with_one_row_and_one_file() {
    let mut world = World::new();
    world.put("h/e", b"x").must(201);
    for _ in 0..2 {
        assert_eq!(world.put("h/e", b"x").must(200).json()["status"], "already-present");
        assert_eq!((world.rows().len(), world.files().len()), (1, 1));
        world.restart();
    }
}

// I10
#[test]
fn other_bytes_under_the_same_key_change_nothing() {
    let world = World::new();
    world.put("h/e", b"one").must(201);
    let index = world.index();
    for other in [&b"two"[..], b"longer"] {
        assert_eq!(world.put("h/e", other).must(409).json()["sha256"], sha256(b"one"));
    }
    assert_eq!((world.index(), world.files().len(), &*world.files()["h/e.tar.zst"]), (index, 1, &b"one"[..]));
}

// I11
#[test]
fn file_without_a_row_gets_it_from_the_next_upload_or_at_the_start() {
    let mut world = World::new();
    let host = world.root().join("episodes/h");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("a.tar.zst"), b"one").unwrap();
    world.put("h/a", b"two").must(409);
    assert_eq!(world.put("h/a", b"one").must(200).json()["status"], "already-present");
    assert_eq!((world.rows().len(), world.rows()[0]["commit"].clone()), (1, world.head().into()));
    std::fs::write(host.join("b.tar.zst"), b"three").unwrap();
    std::fs::write(host.join(".c.7.part"), b"thr").unwrap();
    world.restart();
    let rows = world.rows();
    assert_eq!(
        (rows.len(), &rows[1]["backfilled"], &rows[1]["sha256"]),
        (2, &true.into(), &sha256(b"three").into())
    );
    assert!(rows[1].get("commit").is_none(), "it is no archive that could say one");
    assert_eq!(world.files().keys().collect::<Vec<_>>(), ["h/a.tar.zst", "h/b.tar.zst"]);
    // An archive says its commit itself.
    let commit = "c".repeat(40);
    std::fs::write(host.join("d.tar.zst"), archive(&commit)).unwrap();
    world.restart();
    let rows = world.rows();
    assert_eq!((rows.len(), &rows[2]["commit"], &rows[2]["backfilled"]), (3, &commit.into(), &true.into()));
    assert!(rows[2].get("commit_verified").is_none());
}

#[test]
fn file_that_was_lost_comes_back_with_the_same_bytes_and_no_second_row() {
    let world = World::new();
    world.put("h/e", b"x").must(201);
    std::fs::remove_file(world.root().join("episodes/h/e.tar.zst")).unwrap();
    world.put("h/e", b"y").must(409);
    world.put("h/e", b"x").must(200);
    assert_eq!((world.rows().len(), &*world.files()["h/e.tar.zst"]), (1, &b"x"[..]));
}

// I18
#[test]
fn body_that_is_shorter_longer_or_cut_leaves_nothing() {
    let world = World::new();
    let head = world.head();
    for (size, length) in [(3, 5), (5, 3), (100_000, 300_000), (400_000, 300_000), (1, 0)] {
        let headers = [("X-Code-Commit", &*head), ("Content-Length", &*length.to_string())];
        let mut stream = world.connect();
        let sent = stream.write_all(&request("PUT", "/v1/episodes/h/e", &headers, &body(size)));
        let _ = sent.and_then(|()| stream.shutdown(Shutdown::Write));
        let answer = Answer::read(&mut stream);
        assert!(matches!(answer.status, 0 | 400), "{size} for {length}: {answer:?}");
        world.until("nothing is left", || world.files().is_empty());
        assert_eq!(world.index(), "", "{size} for {length}");
    }
}

// I19
#[test]
fn ids_that_are_none_are_refused_also_percent_encoded() {
    let world = World::new();
    let long = "a".repeat(129);
    let very_long = "a".repeat(60_000);
    for key in [
        "h/..",
        "../e",
        "h/.e",
        ".h/e",
        "h/a/b",
        "h%2Fa/e",
        "h/%2e%2e",
        "h/..%2f..%2fx",
        "h/a%00",
        "h/a%0a",
        "h/a%20b",
        "h/%ff",
        "h/e%",
        "h/",
        "h//e",
        "h/\u{e9}",
        &format!("h/{long}"),
        &format!("{very_long}/e"),
    ] {
        let refused = world.put(key, b"x");
        assert_eq!(refused.status, 400, "{} {}", &key[..key.len().min(60)], refused.body);
    }
    assert!(world.files().is_empty());
    world.put("h%2D1/e%5F2", b"x").must(201);
    assert_eq!(world.files().keys().collect::<Vec<_>>(), ["h-1/e_2.tar.zst"]);
}

// I27
#[test]
fn digest_header_is_checked_against_the_bytes() {
    let world = World::new();
    let head = world.head();
    let put = |key: &str, name: &str, value: &str, bytes: &[u8]| {
        world.put_with(key, bytes, &[("X-Code-Commit", &head), (name, value)])
    };
    put("h/1", "X-Content-SHA256", &sha256(b"abc"), b"abc").must(201);
    put("h/2", "Content-Digest", "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:", b"abc").must(201);
    let refused = put("h/3", "X-Content-SHA256", &sha256(b"abc"), b"abd").must(422).json();
    assert_eq!(
        (&refused["declared_sha256"], &refused["sha256"]),
        (&sha256(b"abc").into(), &sha256(b"abd").into())
    );
    let large = body(600_000);
    put("h/4", "X-Content-SHA256", &sha256(b"abc"), &large).must(422);
    put("h/5", "X-Content-SHA256", "abc", b"abc").must(400);
    put("h/6", "Content-Digest", "sha-256=abc", b"abc").must(400);
    assert_eq!((world.rows().len(), world.files().len()), (2, 2));
}

// I26
#[test]
fn same_id_on_two_hosts_is_two_episodes() {
    let world = World::new();
    world.put("a/e", b"one").must(201);
    world.put("b/e", b"two").must(201);
    assert_eq!((world.rows().len(), world.files().len()), (2, 2));
    let hosts = world.get("/v1/episodes").must(200).json();
    assert_eq!(hosts["hosts"].as_array().unwrap().len(), 2);
}

#[test]
fn length_must_be_declared_and_within_the_limit() {
    let world = World::with(|settings| settings.limits.body_max_bytes = 10);
    let head = world.head();
    let chunked = [("X-Code-Commit", &*head), ("Transfer-Encoding", "chunked")];
    world.send(&request("PUT", "/v1/episodes/h/e", &chunked, b"1\r\nx\r\n0\r\n\r\n")).must(411);
    world.send(&request("PUT", "/v1/episodes/h/e", &chunked[..1], b"")).must(411);
    let smuggled = [chunked[0], ("Content-Length", "3"), chunked[1]];
    let answer =
        world.send(&request("PUT", "/v1/episodes/h/e", &smuggled, b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"));
    assert!(matches!(answer.status, 400 | 411), "{answer:?}");
    assert_eq!(world.put("h/e", &[0; 11]).must(413).json()["max_bytes"], 10);
    world.put("h/e", &[0; 10]).must(201);
    assert_eq!(world.files().len(), 1);
}

#[test]
fn refusal_sends_no_100_reads_no_body_and_closes() {
    let world = World::new();
    let old = "0".repeat(40);
    let refused = [("X-Code-Commit", &*old), ("Content-Length", "1000000000"), ("Expect", "100-continue")];
    let answer = world.send(&request("PUT", "/v1/episodes/h/e", &refused, b"")).must(412);
    assert_eq!((&answer.interim[..], &*answer.headers["connection"]), (&[][..], "close"));
    // A client that does not wait reads its answer all the same.
    let mut stream = world.connect();
    stream.write_all(&request("PUT", "/v1/episodes/h/e", &refused[..2], &body(100_000))).unwrap();
    Answer::read(&mut stream).must(412);
    assert_eq!(world.metric("cutover_gate_received_bytes_total"), 0.0);

    let head = world.head();
    let admitted = [("X-Code-Commit", &*head), ("Content-Length", "3"), ("Expect", "100-continue")];
    let mut stream = world.connect();
    stream.write_all(&request("PUT", "/v1/episodes/h/e", &admitted, b"")).unwrap();
    let mut interim = [0; 25];
    std::io::Read::read_exact(&mut stream, &mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").unwrap();
    Answer::read(&mut stream).must(201);
}

#[test]
fn body_that_stalls_is_given_up_and_leaves_nothing() {
    let world = World::with(|settings| settings.limits.stall_timeout_s = 1);
    let head = world.head();
    for (length, size) in [("10", 5), ("1000000", 300_000)] {
        let headers = [("X-Code-Commit", &*head), ("Content-Length", length)];
        let mut stream = world.connect();
        stream.write_all(&request("PUT", "/v1/episodes/h/e", &headers, &body(size))).unwrap();
        Answer::read(&mut stream).must(408);
    }
    assert!(world.files().is_empty());
}

#[test]
fn quotas_of_a_host_and_of_the_disk_are_said_before_the_body() {
    let mut world = World::with(|settings| settings.limits.host_bytes = 10);
    world.put("h/1", &[0; 8]).must(201);
    assert_eq!(world.put("h/2", &[0; 3]).must(507).json()["error"], "host-quota");
    world.put("other/2", &[0; 3]).must(201);
    world.set(|settings| (settings.limits.host_bytes, settings.limits.host_episodes) = (0, 1));
    world.put("h/2", &[0; 3]).must(507);
    // Who asks again for what is stored is told so, however full it is.
    world.put("h/1", &[0; 8]).must(200);
    world.put("h/1", &[1; 8]).must(409);
    world.set(|settings| (settings.limits.host_bytes, settings.limits.host_episodes) = (1, 0));
    world.put("h/1", &[0; 8]).must(200);
    world.set(|settings| settings.limits.host_bytes = 0);
    world.set(|settings| (settings.limits.host_episodes, settings.limits.free_bytes) = (0, 1 << 62));
    assert_eq!(world.put("h/2", &[0; 3]).must(507).json()["error"], "disk-full");
    assert_eq!(world.files().len(), 2);
}

#[test]
fn host_that_comes_too_often_is_told_when_to_come_again() {
    let world = World::with(|settings| (settings.limits.requests_per_s, settings.limits.burst) = (1, 1));
    let statuses: Vec<u16> = (0..20).map(|number| world.put(&format!("h/{number}"), b"x").status).collect();
    assert!(statuses.contains(&201) && statuses.contains(&429), "{statuses:?}");
    world.put("other/e", b"x").must(201);
}

#[test]
fn tokens_open_their_own_host() {
    let world = World::with(|settings| {
        settings.tokens = [("h", "secret"), ("*", "all")]
            .map(|(host, token)| (host.to_owned(), sha256(token.as_bytes())))
            .into();
    });
    let head = world.head();
    let put = |key: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        world.put_with(key, b"x", &[("X-Code-Commit", &head), ("Authorization", &bearer)])
    };
    world.put("h/e", b"x").must(401);
    put("h/e", "wrong").must(401);
    put("other/e", "secret").must(403);
    put("h/e", "secret").must(201);
    put("other/e", "all").must(201);
    world.get("/v1/episodes").must(401);
    world.get("/v1/episodes/h").must(401);
    world.get("/v1/episodes/h/e").must(401);
    world.get("/healthz").must(200);
}

#[test]
fn row_of_any_length_is_read_and_one_that_is_damaged_is_not_said_to_be_missing() {
    let mut world = World::new();
    world.put("h/e", b"x").must(201);
    world.stop();
    let index = world.root().join("index.jsonl");
    let row = world.index().trim_end().trim_end_matches('}').to_owned();
    std::fs::write(&index, format!("{row},\"note\":\"{}\"}}\n", "n".repeat(10_000))).unwrap();
    world.restart();
    let read = world.get("/v1/episodes/h/e").must(200).json();
    assert_eq!(read["note"].as_str().map(str::len), Some(10_000));
    let damaged = " ".repeat(world.index().len() - 1) + "\n";
    std::fs::write(&index, damaged).unwrap();
    world.get("/v1/episodes/h/e").must(500);
    world.get("/v1/episodes/h/none").must(404);
}

#[test]
fn list_of_a_host_comes_in_pages_by_id() {
    let world = World::new();
    for id in ["c", "a", "b"] {
        world.put(&format!("h/{id}"), b"x").must(201);
    }
    let page = world.get("/v1/episodes/h?limit=2").must(200).json();
    assert_eq!((&page["episodes"][0]["episode_id"], &page["next"]), (&"a".into(), &"b".into()));
    let page = world.get("/v1/episodes/h?limit=2&after=b").must(200).json();
    assert_eq!((page["episodes"].as_array().unwrap().len(), &page["next"]), (1, &serde_json::Value::Null));
    world.get("/v1/episodes/h/none").must(404);
    world.get("/v1/nothing").must(404);
    world.send(&request("DELETE", "/v1/episodes/h/a", &[], b"")).must(405);
}

#[test]
fn one_connection_carries_many_requests() {
    let world = World::new();
    let mut stream = world.connect();
    let head = world.head();
    for number in 0..5 {
        let headers = [("X-Code-Commit", &*head), ("Content-Length", "3")];
        stream.write_all(&request("PUT", &format!("/v1/episodes/h/{number}"), &headers, b"abc")).unwrap();
        Answer::read(&mut stream).must(201);
        stream.write_all(&request("GET", &format!("/v1/episodes/h/{number}"), &[], b"")).unwrap();
        Answer::read(&mut stream).must(200);
    }
}
