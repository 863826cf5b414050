//! Whole bundles by name, from a source that is no repository: the releases of a GitHub repository, a directory, a stick.
//!
//! A bundle is called `NAME-VERSION.cutover` or `NAME-VERSION-PLATFORM.cutover`. The name only says which one to open; what it
//! is, its signed manifest says.

use std::{cmp::Ordering, path::Path, sync::Arc};

use cutover_core::model::{Name, Version};
use cutover_host::{
    disk::{Disk as _, RealDisk},
    fetch::{
        Downloads, KeepAll, Listing, Offer, OfferPlace, OnFailure, Source, Unwatched, Watch, open_source,
    },
};

use super::{
    Context,
    fetching::{Named, ports},
    opened::{self, FromFile},
    site,
};
use crate::{
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output,
    settings::Settings,
};

/// What the source offered last, so that it need not say it again.
const LISTING: &str = ".cutover/listing.json";

/// A bundle that is offered, by what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offered {
    pub(super) version: Version,
    pub(super) offer: Offer,
}

impl Offered {
    pub(super) fn is_for_everybody(&self) -> bool {
        !self.offer.prerelease && !self.version.is_prerelease()
    }
}

/// What the names of platforms begin with where nobody chose others.
const SYSTEMS: &[&str] =
    &["linux-", "macos-", "windows-", "freebsd-", "netbsd-", "openbsd-", "android-", "ios-"];

/// The version in the name of a bundle, if it is one of `package` for `platform`.
fn version_in(name: &str, package: &Name, platform: &Name) -> Option<Version> {
    let rest = name.strip_suffix(".cutover")?.strip_prefix(package.as_str())?.strip_prefix('-')?;
    match rest.strip_suffix(platform.as_str()).and_then(|rest| rest.strip_suffix('-')) {
        Some(version) => version.parse().ok(),
        // Another platform would read as a pre-release.
        None => rest.parse().ok().filter(|_| {
            let after = rest.split_once('-').map_or("", |(_, after)| after);
            !SYSTEMS.iter().any(|system| after.starts_with(system) || after.contains(&format!("-{system}")))
        }),
    }
}

/// The bundles of `package` for `platform`, newest first.
fn of_package(listing: Listing, package: &Name, platform: &Name) -> Vec<Offered> {
    let mut found: Vec<Offered> = listing
        .offers
        .into_iter()
        .filter_map(|offer| Some(Offered { version: version_in(&offer.name, package, platform)?, offer }))
        .collect();
    found.sort_by(|one, other| other.version.cmp_precedence(&one.version));
    found
}

/// The one that is meant: exactly the named version, else the newest that is for everybody.
fn choose<'a>(found: &'a [Offered], version: Option<&Version>) -> Option<&'a Offered> {
    match version {
        Some(version) => {
            found.iter().find(|offered| offered.version.cmp_precedence(version) == Ordering::Equal)
        }
        None => found.iter().find(|offered| offered.is_for_everybody()),
    }
}

fn open_the_source(settings: &Settings) -> Result<Box<dyn Source>, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    open_source(&settings.source, &variable, ports(settings))?.ok_or_else(|| {
        Failure::usage("no source of releases is set up").hint("set `source.kind` and what it needs")
    })
}

/// Asks the source, which answers briefly when nothing changed since it was asked for this root.
fn ask(source: &dyn Source, root: &Path) -> Result<Listing, Failure> {
    let place = root.join(LISTING);
    let known = files::read("the last listing", &place)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Listing>(&bytes).ok());
    let listing = source
        .listing(known.clone())?
        .ok_or_else(|| Failure::usage(format!("{} offers no bundles of its own", source.describe())))?;
    if root.join(".cutover").is_dir() && known.as_ref() != Some(&listing) {
        let bytes = serde_json::to_vec(&listing).expect("a listing is JSON");
        let kept = files::write(&place, 0o600, Existing::Replace, |out| {
            std::io::Write::write_all(out, &bytes).map_err(|source| Failure::io("write", &place, source))
        });
        // It only spares the source some work.
        if let Err(failure) = kept {
            tracing::debug!(%failure, "the listing is not kept");
        }
    }
    Ok(listing)
}

/// The bundles of a package that the source offers, newest first.
///
/// # Errors
/// The source cannot be asked.
pub(super) fn listed(package: &Name, root: &Path, settings: &Settings) -> Result<Vec<Offered>, Failure> {
    let source = open_the_source(settings)?;
    Ok(of_package(ask(source.as_ref(), root)?, package, &site::platform(settings)?))
}

/// Fetches the bundle that is meant, unless it lies on this machine, and verifies it.
///
/// # Errors
/// There is none, it cannot be fetched, or it is refused.
pub(super) fn open(
    named: &Named,
    root: &Path,
    settings: &Settings,
    context: &Context,
) -> Result<FromFile, Failure> {
    let source = open_the_source(settings)?;
    let found = of_package(ask(source.as_ref(), root)?, &named.package, &site::platform(settings)?);
    let Some(chosen) = choose(&found, named.version.as_ref()) else {
        let what = named.version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
        let message = format!("{} offers no {}{what} for this host", source.describe(), named.package);
        let failure = Failure::new(Exit::Failed, message);
        return Err(match found.first() {
            Some(newest) => failure.hint(format!("the newest it has is {}", newest.version)),
            None => failure.hint("a bundle is called NAME-VERSION.cutover or NAME-VERSION-PLATFORM.cutover"),
        });
    };
    if let OfferPlace::Local(path) = &chosen.offer.place {
        return opened::open_update(path, None, settings, context.now);
    }
    let mut imagined = None;
    let place = if root.join(".cutover").is_dir() {
        root.to_owned()
    } else {
        let directory = tempfile::tempdir()
            .map_err(|source| Failure::io("make a directory in", &std::env::temp_dir(), source))?;
        imagined.insert(directory).path().to_owned()
    };
    let disk = RealDisk::open(&place).map_err(|source| Failure::io("open", &place, source))?;
    let path = disk.root();
    let downloads = Arc::new(Downloads::open(Arc::new(disk))?);
    let watch: Arc<dyn Watch> = Arc::new(Unwatched);
    let wanted = chosen.offer.wanted()?;
    let report =
        source.fetch(&downloads, std::slice::from_ref(&wanted), OnFailure::Stop, &watch, &mut KeepAll)?;
    let fetched: u64 = report.into_result()?.iter().map(|object| object.fetched_bytes).sum();
    output::note(format!("fetched {} of {}", output::bytes(fetched), output::printable(&chosen.offer.name)));
    let path = path.join(Downloads::path(wanted.digest));
    let opened = opened::open_update(&path, None, settings, context.now);
    // It is open, so its name is not needed any more; one that was refused is of no use.
    downloads.consume(wanted.digest)?;
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, prerelease: bool) -> Offer {
        let place = OfferPlace::Remote(name.to_owned());
        Offer { name: name.to_owned(), size_bytes: 1, sha256: None, release: None, prerelease, place }
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn bundle_is_found_by_the_version_and_platform_in_its_name() {
        let (package, platform) = (name("storage"), name("linux-aarch64"));
        let version = |name: &str| version_in(name, &package, &platform).map(|version| version.to_string());
        assert_eq!(version("storage-1.4.0.cutover").as_deref(), Some("1.4.0"));
        assert_eq!(version("storage-1.4.0-linux-aarch64.cutover").as_deref(), Some("1.4.0"));
        assert_eq!(version("storage-1.4.0-rc.1.cutover").as_deref(), Some("1.4.0-rc.1"));
        for other in [
            "storage-1.4.0.tar",
            "storage2-1.4.0.cutover",
            "storage-extra-1.4.0.cutover",
            "storage.cutover",
            "storage-1.4.0-linux-x86_64.cutover",
            "storage-1.4.0-rc.1-linux-x86_64.cutover",
        ] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn newest_that_is_for_everybody_is_chosen_unless_a_version_is_named() {
        let offers = vec![
            offer("a-1.0.0.cutover", false),
            offer("a-1.2.0.cutover", true),
            offer("a-1.1.0.cutover", false),
            offer("a-1.3.0-rc.1.cutover", false),
            offer("b-9.0.0.cutover", false),
        ];
        let found = of_package(Listing { offers, tag: None }, &name("a"), &name("any"));
        let chosen = |version: Option<&str>| {
            let version = version.map(|version| version.parse().expect("a version"));
            choose(&found, version.as_ref()).map(|offered| offered.version.to_string())
        };
        assert_eq!(chosen(None).as_deref(), Some("1.1.0"));
        assert_eq!(chosen(Some("1.2.0")).as_deref(), Some("1.2.0"));
        assert_eq!(chosen(Some("2.0.0")), None);
    }
}
