//! `s3://BUCKET/PREFIX`: which objects of which bucket.

use std::{fmt, str::FromStr};

use crate::error::S3Error;

/// What addresses of this kind start with.
const SCHEME: &str = "s3://";

/// A place in a bucket. The prefix has no `/` at its ends and no empty component; it may be empty itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Address {
    bucket: String,
    prefix: String,
}

impl S3Address {
    /// Whether a text is meant to be such an address.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key of the file at `path` below this place.
    pub fn key(&self, path: &str) -> String {
        match (self.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        }
    }

    /// The path below this place that a key names; `None` when it lies elsewhere.
    pub fn path_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self.prefix.as_str() {
            "" => Some(key),
            prefix => key.strip_prefix(prefix)?.strip_prefix('/'),
        }
    }
}

impl fmt::Display for S3Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl FromStr for S3Address {
    type Err = S3Error;

    /// Reads `s3://BUCKET` or `s3://BUCKET/PREFIX`; one `/` at the end is left out.
    fn from_str(text: &str) -> Result<Self, S3Error> {
        let refused = |reason| S3Error::Address { address: text.to_owned(), reason };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("it does not start with `s3://`"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_allowed) {
            return Err(refused("a bucket's name has 3 to 63 of a-z, 0-9, `.` and `-`"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_bad = |part: &str| {
            matches!(part, "" | "." | "..") || part.chars().any(|c| c.is_control() || "\\?#".contains(c))
        };
        if !prefix.is_empty() && prefix.split('/').any(is_bad) {
            return Err(refused("its prefix has an empty component, `.`, `..`, or a character of no path"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_below_the_prefix_and_lead_back() {
        for (text, prefix) in
            [("s3://bucket", ""), ("s3://bucket/", ""), ("s3://bucket/a", "a/"), ("s3://bucket/a/b/", "a/b/")]
        {
            let address: S3Address = text.parse().unwrap();
            assert_eq!(address.bucket(), "bucket");
            let key = address.key("metadata/1.root.json");
            assert_eq!(key, format!("{prefix}metadata/1.root.json"));
            assert_eq!(address.path_of(&key), Some("metadata/1.root.json"));
            assert_eq!(address.to_string(), text.trim_end_matches('/'));
        }
        let address: S3Address = "s3://bucket/a".parse().unwrap();
        assert_eq!(address.path_of("ab/c"), None);
        assert_eq!(address.path_of("b/c"), None);
    }

    #[test]
    fn what_is_no_place_in_a_bucket_is_refused() {
        for text in [
            "http://bucket/a",
            "s3://",
            "s3://x",
            "s3://Bucket",
            "s3://bucket//a",
            "s3://bucket/a//b",
            "s3://bucket/../a",
            "s3://bucket/a?b",
        ] {
            assert!(matches!(text.parse::<S3Address>(), Err(S3Error::Address { .. })), "{text}");
        }
    }
}
