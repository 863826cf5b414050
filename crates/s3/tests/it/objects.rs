//! Objects that are written once.

use std::io::{self, Read as _};

use cutover_s3::{S3Error, S3Objects, S3Options};

use crate::{
    moto::{Moto, Readers},
    proxy::{self, Act, Moment},
};

fn variable(name: &str) -> Option<String> {
    matches!(name, "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY").then(|| "testing".to_owned())
}

fn open(endpoint: &str, address: &str) -> S3Objects {
    let options = S3Options { endpoint: Some(endpoint.to_owned()), allow_http: true, ..S3Options::default() };
    S3Objects::open(address.parse().unwrap(), &options, &variable).unwrap()
}

fn started() -> Option<Moto> {
    let moto = Moto::start()?;
    moto.make_bucket("bucket", Readers::Private);
    Some(moto)
}

fn create(objects: &S3Objects, path: &str, bytes: &[u8]) -> io::Result<bool> {
    objects.create(path, &mut &bytes[..], bytes.len() as u64)
}

fn read(objects: &S3Objects, path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    objects.read(path).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn list(objects: &S3Objects, after: Option<&str>) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut visit = |path: &str, size| {
        found.push((path.to_owned(), size));
        Ok(())
    };
    objects.list("episodes", after, &mut visit).unwrap();
    found
}

/// Bytes of a length, and others of the same length.
fn two(length: usize) -> [Vec<u8>; 2] {
    let mut bytes: Vec<u8> = (0..length as u32).map(|at| at.to_le_bytes()[1]).collect();
    let one = bytes.clone();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    [one, bytes]
}

#[test]
fn object_is_written_once_whole_or_in_parts_and_never_replaced() {
    let Some(moto) = started() else { return };
    let objects = open(&moto.endpoint, "s3://bucket/gate");
    // One request; exactly one piece; two; three of which the last is whole.
    for length in [1, 8 << 20, (8 << 20) + 1, 24 << 20] {
        let path = format!("episodes/h/{length}");
        let [one, other] = two(length);
        assert_eq!((objects.size(&path).unwrap(), read(&objects, &path)), (None, None));
        assert!(create(&objects, &path, &one).unwrap());
        assert!(!create(&objects, &path, &other).unwrap(), "{length}");
        assert_eq!(objects.size(&path).unwrap(), Some(length as u64));
        assert!(read(&objects, &path).unwrap() == one, "{length}");
    }
    assert!(create(&objects, "episodes/h/0", b"").unwrap());
    // Below the prefix and nowhere else.
    assert_eq!(list(&open(&moto.endpoint, "s3://bucket/gat"), None), []);
    assert_eq!(list(&open(&moto.endpoint, "s3://bucket"), None), []);
}

#[test]
fn content_that_fails_or_has_another_length_leaves_no_object() {
    let Some(moto) = started() else { return };
    let objects = open(&moto.endpoint, "s3://bucket");
    struct Fails;
    impl io::Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    for length in [1000, 20 << 20] {
        let [bytes, _] = two(length);
        let size = length as u64;
        let error = objects.create("episodes/h/a", &mut bytes.as_slice().chain(Fails), size).unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        for announced in [size - 1, size + 1] {
            let error = objects.create("episodes/h/a", &mut &bytes[..], announced).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
    assert_eq!(list(&objects, None), []);
}

#[test]
fn listing_goes_on_where_it_is_told_to_over_more_than_one_page() {
    let Some(moto) = started() else { return };
    let objects = open(&moto.endpoint, "s3://bucket/gate");
    let paths: Vec<String> = (0..1100).map(|number| format!("episodes/h/{number:04}")).collect();
    std::thread::scope(|scope| {
        for part in paths.chunks(140) {
            let objects = &objects;
            scope.spawn(move || part.iter().all(|path| create(objects, path, b"xyz").unwrap()));
        }
    });
    let found = list(&objects, None);
    assert_eq!(found, paths.iter().map(|path| (path.clone(), 3)).collect::<Vec<_>>());
    assert_eq!(list(&objects, Some(&paths[1050])), found[1051..]);
    // What the visitor says ends it.
    let mut seen = 0;
    let ended = objects.list("episodes", None, &mut |_, _| {
        seen += 1;
        if seen < 3 { Ok(()) } else { Err(io::Error::other("enough")) }
    });
    assert!(ended.is_err_and(|error| error.to_string() == "enough") && seen == 3);
}

#[test]
fn storage_that_ignores_a_condition_is_refused_before_anything_is_written() {
    let Some(moto) = started() else { return };
    for method in ["put ", "post "] {
        let careless = proxy::start(&moto.endpoint, move |moment, head| {
            let is_asked = moment == Moment::Request && head.starts_with(method);
            if is_asked { Act::Without("if-none-match") } else { Act::Pass }
        });
        let objects = open(&careless, "s3://bucket/gate");
        let error = create(&objects, "episodes/h/a", b"x").unwrap_err();
        assert!(matches!(S3Error::of(&error), Some(S3Error::Unconditional { .. })), "{method}: {error:?}");
        assert_eq!(list(&objects, None), []);
    }
    let objects = open(&moto.endpoint, "s3://bucket/gate");
    objects.prove().unwrap();
    objects.prove().unwrap();
    let missing = open(&moto.endpoint, "s3://nowhere/gate");
    assert!(matches!(missing.prove(), Err(S3Error::NoBucket { .. })));
}
