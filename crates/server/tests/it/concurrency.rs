//! Many at once: one file and one row each, whoever comes first.

use cutover_server::receiver::{Ports, Receiver};

use crate::world::{World, sha256};

// I17
#[test]
fn thousand_parallel_uploads_make_a_thousand_intact_rows() {
    let world = World::new();
    let head = world.head();
    std::thread::scope(|scope| {
        for thread in 0..50 {
            let (world, head) = (&world, &head);
            scope.spawn(move || {
                for number in 0..20 {
                    let name = format!("h{}/e{thread}-{number}", thread % 5);
                    world.put_of(&name, name.repeat(50).as_bytes(), head).must(201);
                }
            });
        }
    });
    let (rows, files) = (world.rows(), world.files());
    assert_eq!((rows.len(), files.len()), (1000, 1000));
    for row in rows {
        let name =
            format!("{}/{}.tar.zst", row["host_id"].as_str().unwrap(), row["episode_id"].as_str().unwrap());
        assert_eq!(row["sha256"], sha256(&files[&name]));
    }
}

// I28
#[test]
fn of_two_that_race_one_is_stored() {
    let world = World::new();
    let head = world.head();
    for round in 0..20 {
        let race = |bodies: [&[u8]; 2]| {
            let key = format!("h/{}-{round}", bodies[0] == bodies[1]);
            let mut statuses = std::thread::scope(|scope| {
                let put = |body| {
                    let (world, head, key) = (&world, &head, &key);
                    scope.spawn(move || world.put_of(key, body, head).status)
                };
                bodies.map(put).map(|thread| thread.join().unwrap())
            });
            statuses.sort_unstable();
            statuses
        };
        assert_eq!(race([b"same", b"same"]), [200, 201]);
        assert_eq!(race([b"one!", b"two!"]), [201, 409]);
    }
    assert_eq!((world.rows().len(), world.files().len()), (40, 40));
}

// I30
#[test]
fn row_that_cannot_be_written_is_no_success_and_the_next_upload_heals() {
    let world = World::new();
    world.put("h/a", b"x").must(201);
    // A directory in the place of the index: it can be neither opened for appending nor made.
    let index = world.root().join("index.jsonl");
    let aside = world.root().join("aside");
    std::fs::rename(&index, &aside).unwrap();
    std::fs::create_dir(&index).unwrap();
    world.put("h/b", b"y").must(500);
    std::fs::remove_dir(&index).unwrap();
    std::fs::rename(&aside, &index).unwrap();
    let healed = world.put("h/b", b"y");
    assert!(healed.status < 300, "{healed:?}");
    assert_eq!((world.rows().len(), world.files().len()), (2, 2));
}

#[test]
fn second_receiver_of_the_same_directory_does_not_start() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let second = runtime.block_on(Receiver::start(world.settings.clone(), Ports::new(crate::world::now)));
    assert!(second.is_err_and(|error| error.to_string().contains("another receiver")));
}

#[test]
fn stop_answers_what_is_under_way_and_takes_no_more() {
    use std::io::Write as _;
    let mut world = World::new();
    let head = world.head();
    let headers = [("X-Code-Commit", &*head), ("Content-Length", "3")];
    let mut stream = world.connect();
    stream.write_all(&crate::world::request("PUT", "/v1/episodes/h/e", &headers, b"ab")).unwrap();
    world.until("the upload is under way", || world.metric("cutover_gate_decisions_total") >= 1.0);
    let address = world.address;
    let rest = std::thread::spawn(move || {
        while std::net::TcpStream::connect(address).is_ok() {}
        stream.write_all(b"c").unwrap();
        crate::world::Answer::read(&mut stream).must(201);
    });
    world.stop();
    rest.join().unwrap();
    assert_eq!(world.rows().len(), 1);
}
