//! Sources as the settings describe them.

use std::path::Path;

use cutover_host::fetch::{FetchError, OfferPlace, Source, SourceKind, SourceSettings, open_source};

use crate::{server::Server, world::World};

fn open(change: impl FnOnce(&mut SourceSettings)) -> Result<Option<Box<dyn Source>>, FetchError> {
    let world = World::with(change);
    open_source(&world.settings, &|_| None, world.ports())
}

fn file_source(path: &Path) -> Box<dyn Source> {
    let opened = open(|settings| {
        settings.kind = SourceKind::File;
        settings.path = Some(path.to_owned());
    });
    opened.unwrap().unwrap()
}

#[test]
fn bundles_of_a_directory_are_offered_where_they_lie() {
    let place = tempfile::tempdir().unwrap();
    for name in ["app-1.1.0.cutover", "app-1.0.0.cutover", "notes.txt"] {
        std::fs::write(place.path().join(name), name).unwrap();
    }
    std::fs::create_dir(place.path().join("more.cutover")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", place.path().join("link.cutover")).unwrap();
    let listing = file_source(place.path()).listing(None).unwrap().unwrap();
    let names: Vec<&str> = listing.offers.iter().map(|offer| offer.name.as_str()).collect();
    assert_eq!(names, ["app-1.0.0.cutover", "app-1.1.0.cutover"]);
    let here = place.path().canonicalize().unwrap().join("app-1.0.0.cutover");
    assert_eq!(listing.offers[0].place, OfferPlace::Local(here));
    assert_eq!(listing.offers[0].size_bytes, 17);

    // One bundle is one offer, whatever it is called and lies beside it.
    let one = file_source(&place.path().join("notes.txt")).listing(None).unwrap().unwrap();
    assert_eq!(one.offers.len(), 1);
    assert!(
        open(|settings| {
            settings.kind = SourceKind::File;
            settings.path = Some(place.path().join("missing"));
        })
        .is_err()
    );
}

#[test]
fn no_source_is_none_and_half_a_source_says_what_is_missing() {
    assert!(open(|_| {}).unwrap().is_none());
    let missing = |kind| match open(|settings| settings.kind = kind) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    };
    assert!(missing(SourceKind::Github).starts_with("`source.github`"));
    assert!(missing(SourceKind::File).starts_with("`source.path`"));
}

#[test]
fn repository_says_by_its_metadata_what_there_is() {
    let server = Server::of_files(&[]);
    let url = server.url();
    let source = open(|settings| settings.urls = vec![url.clone()]).unwrap().unwrap();
    assert_eq!(source.listing(None).unwrap(), None);
    assert_eq!(source.describe(), format!("repository {url}"));
    assert!(server.asked().is_empty());
}
