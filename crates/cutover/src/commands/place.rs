//! Where a repository lies: in a directory, or in a bucket of S3-compatible storage; how hosts read a bucket that is not
//! public; and the bucket that a receiver keeps episodes in.

use std::{path::Path, sync::Arc};

use cutover_host::fetch::Buckets;
use cutover_repo::{DirectoryStorage, Storage};
use cutover_server::ingest;

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
    Err(without_s3(&place.to_string_lossy()))
}

#[cfg(not(feature = "s3"))]
fn without_s3(place: &str) -> Failure {
    Failure::usage(format!("this program was built without S3, which `{place}` needs"))
        .hint("build one with `cargo build --release --features s3`")
}

/// Opens the place in a bucket that a receiver keeps episodes in, and proves that it can. One that cannot be reached right now
/// is no reason not to start: uploads are answered with 503 until it can.
///
/// # Errors
/// It is no place in a bucket, or nothing could ever be kept there.
#[cfg(feature = "s3")]
pub(super) fn keeping(place: &str, settings: &Settings) -> Result<Arc<dyn ingest::Bucket>, Failure> {
    use cutover_s3::S3Error;
    let objects = episodes::open(place, settings)?;
    match objects.0.prove() {
        Ok(()) => {}
        Err(error @ (S3Error::Unreachable { .. } | S3Error::Other { .. } | S3Error::Full { .. })) => {
            let failure = Failure::from(error);
            let causes = failure.causes().join(": ");
            tracing::warn!(causes, "uploads are answered with 503 for now: {failure}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Arc::new(objects))
}

/// As [`keeping`], for looking only: asks nothing of the network.
///
/// # Errors
/// It is no place in a bucket.
#[cfg(feature = "s3")]
pub(super) fn kept(place: &str, settings: &Settings) -> Result<Arc<dyn ingest::Bucket>, Failure> {
    Ok(Arc::new(episodes::open(place, settings)?))
}

#[cfg(not(feature = "s3"))]
pub(super) fn keeping(place: &str, _: &Settings) -> Result<Arc<dyn ingest::Bucket>, Failure> {
    Err(without_s3(place))
}

#[cfg(not(feature = "s3"))]
pub(super) fn kept(place: &str, _: &Settings) -> Result<Arc<dyn ingest::Bucket>, Failure> {
    Err(without_s3(place))
}

#[cfg(feature = "s3")]
mod episodes {
    //! The receiver's port for buckets, over objects that are written once.

    use std::{
        io::{self, Read},
        time::Duration,
    };

    use cutover_s3::{S3Objects, S3Options};
    use cutover_server::ingest::{Bucket, Created};

    use crate::{failure::Failure, settings::Settings};

    /// Longest time for one request; its body is 8 MiB at most, and a host waits for the answer.
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

    #[derive(Debug)]
    pub(super) struct Episodes(pub(super) S3Objects);

    pub(super) fn open(place: &str, settings: &Settings) -> Result<Episodes, Failure> {
        let options = S3Options { request_timeout: REQUEST_TIMEOUT, ..super::options(&settings.s3) };
        Ok(Episodes(S3Objects::open(place.parse()?, &options, &super::variable)?))
    }

    impl Bucket for Episodes {
        fn place(&self) -> String {
            self.0.address().to_string()
        }

        fn create(&self, path: &str, content: &mut dyn Read, size: u64) -> io::Result<Created> {
            Ok(if self.0.create(path, content, size)? { Created::New } else { Created::Taken })
        }

        fn size(&self, path: &str) -> io::Result<Option<u64>> {
            self.0.size(path)
        }

        fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
            self.0.read(path)
        }

        fn list(
            &self,
            directory: &str,
            after: Option<&str>,
            visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
        ) -> io::Result<()> {
            self.0.list(directory, after, visit)
        }
    }
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
        ..cutover_s3::S3Options::default()
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
