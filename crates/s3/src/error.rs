//! What goes wrong with a bucket, in terms of what an operator can do about it.

use std::{error::Error, io};

use object_store::client::{HttpError, HttpErrorKind};

/// Why something in a bucket could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// An address has not the form of one.
    #[error("`{address}` is no place in a bucket: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The endpoint is not encrypted, and nobody allowed that.
    #[error("the endpoint `{0}` is plain http, which sends everything readable for everybody on the way")]
    PlainHttp(String),
    /// There are no credentials.
    #[error("there are no credentials for the bucket: looked for {looked_for}")]
    NoCredentials {
        /// Where they were looked for.
        looked_for: String,
    },
    /// A file with credentials or certificates cannot be used.
    #[error("failed to use `{path}`: {reason}")]
    File {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The settings do not make a client.
    #[error("the settings of the S3 client are not right")]
    Settings(#[source] Box<dyn Error + Send + Sync>),
    /// The storage does not accept these credentials, or they do not allow this.
    #[error(
        "`{endpoint}` refuses to {action} `{path}` in the bucket `{bucket}`{}",
        .code.as_ref().map_or(String::new(), |code| format!(" ({code})"))
    )]
    Refused {
        /// Where it was asked.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// What was attempted.
        action: &'static str,
        /// On which file of the repository.
        path: String,
        /// What the storage calls it, such as `InvalidAccessKeyId`.
        code: Option<String>,
        /// The answer.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no such bucket.
    #[error("`{endpoint}` has no bucket `{bucket}`")]
    NoBucket {
        /// Where it was asked.
        endpoint: String,
        /// The bucket.
        bucket: String,
    },
    /// The bucket lies in another region.
    #[error("the bucket `{bucket}` is not in the region `{region}`")]
    Region {
        /// The bucket.
        bucket: String,
        /// The region that requests were made for.
        region: String,
        /// The answer.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nothing answers there.
    #[error("`{endpoint}` cannot be reached")]
    Unreachable {
        /// Where it was asked.
        endpoint: String,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The storage ignores the conditions of writes, without which publishers do not exclude each other.
    #[error("`{endpoint}` ignores `{header}`: one writer could overwrite there what another has written")]
    Unconditional {
        /// Where it was asked.
        endpoint: String,
        /// The header that it ignores.
        header: &'static str,
    },
    /// The storage refuses to replace a version that is there.
    #[error(
        "`{endpoint}` refuses `If-Match` with the very entity tag it gave: nothing can be replaced safely there"
    )]
    Unmatched {
        /// Where it was asked.
        endpoint: String,
    },
    /// Nothing more can be stored there.
    #[error("the bucket `{bucket}` is full ({code})")]
    Full {
        /// The bucket.
        bucket: String,
        /// What the storage calls it, such as `QuotaExceeded`.
        code: String,
    },
    /// Somebody else changed what this run has read.
    #[error("somebody else has changed `{0}` since this run read it")]
    Changed(String),
    /// Another publisher took the lock over.
    #[error("the publisher's lock was taken over by {by}, because this run did not renew it in time")]
    LockLost {
        /// Who has it now.
        by: String,
    },
    /// Anything else.
    #[error("failed to {action} `{path}` in the bucket `{bucket}`")]
    Other {
        /// What was attempted.
        action: &'static str,
        /// On which file of the repository.
        path: String,
        /// The bucket.
        bucket: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// What storages call a bucket that takes no more: quotas of Ceph and MinIO, full disks of MinIO.
const FULL: &[&str] = &["QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"];

/// What one request was about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) region: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) action: &'static str,
    pub(crate) path: &'a str,
}

impl S3Error {
    /// What to do about it: a whole sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "write it as s3://BUCKET/PREFIX",
            Self::PlainHttp(_) => "use https, or allow it with `s3.allow_http = true`",
            Self::NoCredentials { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file with `s3.credentials_file`, or let \
                 the machine's own role count with `s3.instance_credentials = true`"
            }
            Self::File { .. } => "name another file, or mend this one",
            Self::Settings(_) => "`cutover config show` prints the settings under `s3`",
            Self::Refused { .. } => {
                "check the credentials, and that they allow s3:ListBucket, s3:GetObject, s3:PutObject, \
                 s3:DeleteObject and s3:AbortMultipartUpload there"
            }
            Self::NoBucket { .. } => {
                "make the bucket first, or correct its name, `s3.endpoint` or `s3.path_style`"
            }
            Self::Region { .. } => "name the bucket's region with `s3.region` or AWS_REGION",
            Self::Unreachable { .. } => "check `s3.endpoint` (or AWS_ENDPOINT_URL) and the network",
            Self::Unconditional { .. } | Self::Unmatched { .. } => {
                "use a storage that honours conditional writes (`If-None-Match`, also for uploads in parts, and \
                 `If-Match`), as Amazon S3 does, or publish to a directory and copy it"
            }
            Self::Full { .. } => "make room there, or raise the bucket's quota",
            Self::Changed(_) | Self::LockLost { .. } => "run this again: nothing of this run was published",
            Self::Other { .. } => "run this again: what is there already is not written twice",
        }
    }

    /// Whether another publisher is the reason.
    pub fn is_contention(&self) -> bool {
        matches!(self, Self::Changed(_) | Self::LockLost { .. })
    }

    /// Whether what was asked for on this machine is the reason, and not the storage.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Address { .. }
                | Self::PlainHttp(_)
                | Self::NoCredentials { .. }
                | Self::File { .. }
                | Self::Settings(_)
        )
    }

    /// The S3 error behind a failed operation of a store, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Says what an answer means.
    pub(crate) fn judge(attempt: Attempt<'_>, error: object_store::Error) -> Self {
        let Attempt { endpoint, region, bucket, action, path } = attempt;
        let (endpoint, bucket, path) = (endpoint.to_owned(), bucket.to_owned(), path.to_owned());
        let code = code_of(&error.to_string());
        let is_redirect = error.to_string().contains("redirect without LOCATION");
        match (&error, code.as_deref()) {
            (_, Some(full)) if FULL.contains(&full) => Self::Full { bucket, code: full.to_owned() },
            (_, Some("NoSuchBucket")) => Self::NoBucket { endpoint, bucket },
            (
                _,
                Some(
                    "AuthorizationHeaderMalformed"
                    | "PermanentRedirect"
                    | "IllegalLocationConstraintException",
                ),
            ) => Self::Region { bucket, region: region.to_owned(), source: Box::new(error) },
            _ if is_redirect => Self::Region { bucket, region: region.to_owned(), source: Box::new(error) },
            (
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. },
                _,
            ) => Self::Refused { endpoint, bucket, action, path, code, source: Box::new(error) },
            _ if is_unreachable(&error) => Self::Unreachable { endpoint, source: Box::new(error) },
            _ => Self::Other { action, path, bucket, source: Box::new(error) },
        }
    }
}

impl From<S3Error> for io::Error {
    fn from(error: S3Error) -> Self {
        match &error {
            S3Error::Full { .. } => Self::new(io::ErrorKind::StorageFull, error),
            _ => Self::other(error),
        }
    }
}

/// The code in the XML of an answer, such as `NoSuchBucket`.
fn code_of(answer: &str) -> Option<String> {
    let (_, rest) = answer.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric())).then(|| code.to_owned())
}

fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return matches!(http.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout);
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_answer_is_found_and_nothing_else_is_taken_for_one() {
        assert_eq!(
            code_of("404 Not Found: <Error><Code>NoSuchBucket</Code></Error>").as_deref(),
            Some("NoSuchBucket")
        );
        for text in ["", "<Code>", "<Code>a b</Code>", "<Code><b></Code>"] {
            assert_eq!(code_of(text), None, "{text}");
        }
    }
}
