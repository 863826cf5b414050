//! One place objects come from: a base URL or a directory, and paths below it.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use reqwest::{
    Url,
    header::{self, HeaderName},
};

use super::{
    FetchError,
    http::{self, Request},
    settings::Token,
};
use crate::disk::{Disk, OpenFile, RealDisk};

/// What places in a bucket start with.
const BUCKET: &str = "s3://";

/// A place in a bucket of S3-compatible storage that not everybody may read.
pub trait Bucket: Send + Sync {
    /// Its address, unsigned: what messages say and what tells mirrors apart.
    fn url(&self) -> String;

    /// An address by which the file at `path` below it can be read now. It is used once and told to nobody.
    fn sign<'a>(&'a self, path: &'a str) -> Signing<'a>;
}

/// A signature in the making.
pub type Signing<'a> =
    Pin<Box<dyn Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'a>>;

/// Opens places in buckets.
pub trait Buckets: Send + Sync {
    /// Opens `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// It is no such place, or there are no credentials for it.
    fn open(&self, place: &str) -> Result<Arc<dyn Bucket>, Box<dyn Error + Send + Sync>>;
}

/// A place.
#[derive(Clone)]
pub(super) enum Base {
    /// Answers HTTP requests.
    Http {
        url: Url,
        /// What we accept, when that is not just anything.
        accept: Option<&'static str>,
        /// Who signs the addresses, where the place is a bucket.
        bucket: Option<Arc<dyn Bucket>>,
    },
    /// A directory on this machine.
    Directory { disk: Arc<RealDisk>, path: PathBuf },
}

impl Base {
    /// A URL, the path of a directory, or a place in a bucket, which `buckets` opens.
    pub(super) fn open(
        text: &str,
        token: Option<&Token>,
        buckets: Option<&dyn Buckets>,
    ) -> Result<Self, FetchError> {
        if !text.starts_with(BUCKET) {
            return Self::parse(text, token);
        }
        let setting = |reason: String| FetchError::Setting { key: "urls", reason };
        let Some(buckets) = buckets else {
            return Err(setting(format!("this program was built without S3, which `{text}` needs")));
        };
        if token.is_some() {
            return Err(setting(format!("no token is sent to `{text}`: its addresses are signed")));
        }
        let bucket =
            buckets.open(text).map_err(|source| FetchError::Bucket { place: text.to_owned(), source })?;
        let url = bucket.url().parse().map_err(|error| setting(format!("`{text}`: {error}")))?;
        Ok(Self::Http { url, accept: None, bucket: Some(bucket) })
    }

    /// A URL, or the path of a directory.
    pub(super) fn parse(text: &str, token: Option<&Token>) -> Result<Self, FetchError> {
        let setting = |reason: String| FetchError::Setting { key: "urls", reason };
        if !text.contains("://") {
            let path = PathBuf::from(text);
            let disk =
                RealDisk::open(&path).map_err(|source| FetchError::Read { path: path.clone(), source })?;
            return Ok(Self::Directory { disk: Arc::new(disk), path });
        }
        let mut url: Url = text.parse().map_err(|error| setting(format!("`{text}` is no URL: {error}")))?;
        match url.scheme() {
            "http" | "https" => {}
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| setting(format!("`{text}` names no directory")))?;
                return Self::parse(&path.to_string_lossy(), token);
            }
            other => return Err(setting(format!("`{other}` is neither http, https nor file"))),
        }
        if !url.username().is_empty() || url.password().is_some() {
            // Not even in the message.
            return Err(setting(
                "a URL carries credentials: put a token into `source.token_file` instead".to_owned(),
            ));
        }
        if url.query().is_some() || url.fragment().is_some() || url.cannot_be_a_base() {
            return Err(setting(format!("`{text}` has a query or fragment: nothing can lie below it")));
        }
        if token.is_some() && url.scheme() == "http" && !http::is_local(&url) {
            return Err(setting(format!("`{text}` is not encrypted: a token is not sent there; use https")));
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(Self::Http { url, accept: None, bucket: None })
    }

    /// The request for a path below a base URL.
    pub(super) fn request(&self, path: &RelativePath) -> Option<Request> {
        let Self::Http { url, accept, bucket } = self else { return None };
        let mut url = url.clone();
        // Each segment is percent-encoded: a name is data.
        url.path_segments_mut().expect("checked by `parse`").pop_if_empty().extend(path.segments());
        let accept: Option<(HeaderName, String)> = accept.map(|accept| (header::ACCEPT, accept.to_owned()));
        let signed = bucket.as_ref().map(|bucket| (Arc::clone(bucket), path.clone()));
        Some(Request { url, headers: accept.into_iter().collect(), signed })
    }

    /// What messages call the file at `path`.
    pub(super) fn display(&self, path: &RelativePath) -> String {
        match self {
            Self::Http { .. } => self.request(path).expect("it is HTTP").url.to_string(),
            Self::Directory { path: directory, .. } => directory.join(path.as_path()).display().to_string(),
        }
    }

    /// What sidecars call this place.
    pub(super) fn name(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { url, .. } => url.fmt(f),
            Self::Directory { path, .. } => path.display().fmt(f),
        }
    }
}

/// Opens a file below a directory base.
pub(super) fn open_below<'d>(
    disk: &'d RealDisk,
    directory: &Path,
    path: &RelativePath,
) -> Result<Box<dyn OpenFile + 'd>, FetchError> {
    disk.open(path.as_path())
        .map_err(|source| FetchError::Read { path: directory.join(path.as_path()), source })
}

/// A path below a source: segments separated by `/`, none of them empty, `.` or `..`, without control characters or
/// backslashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelativePath(String);

/// The longest path, in bytes.
const PATH_MAX: usize = 4096;

impl RelativePath {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`FetchError::Path`].
    pub fn new(text: &str) -> Result<Self, FetchError> {
        let sound = |segment: &str| {
            !matches!(segment, "" | "." | "..") && !segment.chars().any(|c| c.is_control() || c == '\\')
        };
        if text.len() <= PATH_MAX && text.split('/').all(sound) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FetchError::Path(text.chars().take(200).flat_map(char::escape_default).collect()))
        }
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(text: &str) -> Base {
        Base::parse(text, None).unwrap()
    }

    fn refused(text: &str, token: Option<&Token>) -> String {
        match Base::parse(text, token) {
            Ok(base) => panic!("{base} was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_are_data_and_stay_below_their_base() {
        let base = http("https://a.example/repo");
        let shown = |path: &str| base.display(&RelativePath::new(path).unwrap());
        assert_eq!(shown("objects/ab/cd"), "https://a.example/repo/objects/ab/cd");
        assert_eq!(shown("a b?c#d%2e%2e"), "https://a.example/repo/a%20b%3Fc%23d%252e%252e");
        assert_eq!(shown("https://evil"[7..].trim_matches('/')), "https://a.example/repo/evil");
        for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0"] {
            assert!(RelativePath::new(path).is_err(), "{path:?}");
        }
        assert_eq!(shown("%2e%2e/x"), "https://a.example/repo/%252e%252e/x");
    }

    #[test]
    fn bases_that_leak_or_lead_nowhere_are_refused() {
        assert!(refused("ftp://a.example/", None).contains("neither http"));
        assert!(refused("https://a.example/?x=1", None).contains("query"));
        let credentials = refused("https://user:canary@a.example/", None);
        assert!(!credentials.contains("canary"), "{credentials}");
        let token = Token::new("canary", "token_file").unwrap();
        assert!(refused("http://a.example/", Some(&token)).contains("not encrypted"));
        assert!(Base::parse("http://127.0.0.1:1/", Some(&token)).is_ok(), "it does not leave this machine");
        assert!(Base::parse("https://a.example/", Some(&token)).is_ok());
        assert!(Base::parse("/nonexistent/directory", None).is_err());
    }
}
