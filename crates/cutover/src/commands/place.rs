//! Where a repository lies: in a directory, or in a bucket of S3-compatible storage; and how hosts read a bucket that is not
//! public.

use std::path::Path;

use cutover_host::fetch::Buckets;
use cutover_repo::{DirectoryStorage, Storage};

use super::Context;
use crate::{failure::Failure, files, settings::Settings};

/// What places in a bucket start with.
const S3: &str = "s3://";

/// Whether a place is one in a bucket.
pub(super) fn is_in_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|text| text.starts_with(S3))
}

/// Opens the repository at a place.
///
/// # Errors
/// There is no such directory, or the place in a bucket cannot be asked for.
pub(super) fn open(place: &Path, context: &Context) -> Result<Box<dyn Storage>, Failure> {
    if is_in_bucket(place) {
        return in_bucket(place, context);
    }
    let directory = DirectoryStorage::open(place);
    Ok(Box::new(directory.map_err(|source| Failure::io("open the repository", place, source))?))
}

/// Opens the place of a repository that is to be.
///
/// # Errors
/// As [`open`]; or the directory cannot be made.
pub(super) fn make(place: &Path, context: &Context) -> Result<Box<dyn Storage>, Failure> {
    if !is_in_bucket(place) {
        files::make_directory(place, 0o755)?;
    }
    open(place, context)
}

#[cfg(feature = "s3")]
fn in_bucket(place: &Path, context: &Context) -> Result<Box<dyn Storage>, Failure> {
    let settings = context.settings(None, [])?.settings.s3;
    let address: cutover_s3::S3Address = place.to_string_lossy().parse()?;
    Ok(Box::new(cutover_s3::S3Storage::open(address, &options(&settings), &variable)?))
}

#[cfg(not(feature = "s3"))]
fn in_bucket(place: &Path, _: &Context) -> Result<Box<dyn Storage>, Failure> {
    Err(Failure::usage(format!("this program was built without S3, which `{}` needs", place.display()))
        .hint("build one with `cargo build --release --features s3`"))
}

/// Reads the environment for whoever is below.
#[cfg(feature = "s3")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(feature = "s3")]
fn options(settings: &crate::settings::S3Settings) -> cutover_s3::S3Options {
    let settings = settings.clone();
    cutover_s3::S3Options {
        endpoint: settings.endpoint,
        region: settings.region,
        path_style: settings.path_style,
        allow_http: settings.allow_http,
        credentials_file: settings.credentials_file,
        profile: settings.profile,
        instance_credentials: settings.instance_credentials,
        ca_file: settings.ca_file,
        lease: std::time::Duration::from_secs(settings.lease_s),
        owner: owner(),
    }
}

/// Who this is, for those who find the lock taken.
#[cfg(feature = "s3")]
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = variable("USER").unwrap_or_else(|| "somebody".to_owned());
    format!("{user} on {}, process {}", host.trim(), std::process::id())
}

/// What opens buckets for downloads; nothing in a program that is built without S3.
#[cfg(not(feature = "s3"))]
pub(super) fn buckets(_: &Settings) -> Option<Box<dyn Buckets>> {
    None
}

/// What opens buckets for downloads.
#[cfg(feature = "s3")]
pub(super) fn buckets(settings: &Settings) -> Option<Box<dyn Buckets>> {
    Some(Box::new(signed::Signed(settings.s3.clone())))
}

#[cfg(feature = "s3")]
mod signed {
    //! The downloader's port for buckets, over signed addresses.

    use std::{error::Error, sync::Arc};

    use cutover_host::fetch::{Bucket, Buckets, Signing};
    use cutover_s3::S3Signer;

    use crate::settings::S3Settings;

    pub(super) struct Signed(pub(super) S3Settings);

    impl Buckets for Signed {
        fn open(&self, place: &str) -> Result<Arc<dyn Bucket>, Box<dyn Error + Send + Sync>> {
            let options = super::options(&self.0);
            Ok(Arc::new(SignedBucket(S3Signer::new(place.parse()?, &options, &super::variable)?)))
        }
    }

    struct SignedBucket(S3Signer);

    impl Bucket for SignedBucket {
        fn url(&self) -> String {
            self.0.url()
        }

        fn sign<'a>(&'a self, path: &'a str) -> Signing<'a> {
            Box::pin(async move { Ok(self.0.sign(path).await?) })
        }
    }
}
