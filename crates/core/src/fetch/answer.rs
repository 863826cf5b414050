//! What a server's answer means, before its body is read.

use std::time::Duration;

use crate::model::Instant;

/// The parts of an answer's head that decide something. All of it is untrusted text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// `Content-Length`, in bytes.
    pub content_length: Option<u64>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// `X-RateLimit-Remaining`.
    pub rate_remaining: Option<String>,
    /// `X-RateLimit-Reset`.
    pub rate_reset: Option<String>,
}

/// Why an answer is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 404 or 410.
    #[error("it is not there (status {0})")]
    Missing(u16),
    /// 401 or 403.
    #[error("access is denied (status {0})")]
    Denied(u16),
    /// Any other status that will not change by asking again.
    #[error("the server answers with status {0}")]
    Status(u16),
    /// 429, 503, or GitHub's 403 with nothing left of the rate limit.
    #[error("the server asks to come back later (status {status})")]
    Busy {
        /// The status code.
        status: u16,
        /// When, if it says.
        wait: Option<Duration>,
    },
    /// A 5xx, or a 4xx about the moment (408, 425).
    #[error("the server failed (status {0})")]
    Failed(u16),
    /// The body is encoded, which nobody asked for.
    #[error("the body is encoded as `{0}`, which was not asked for")]
    Encoded(String),
    /// The announced length is not the expected one.
    #[error("the server announces {announced} bytes instead of {expected}")]
    Length {
        /// What it announces.
        announced: u64,
        /// What the signed description says.
        expected: u64,
    },
    /// A part that nobody asked for.
    #[error("the server sends a part of the file that was not asked for")]
    Range,
}

impl Refusal {
    /// Whether asking the same server again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Failed(_) => true,
            Self::Missing(_)
            | Self::Denied(_)
            | Self::Status(_)
            | Self::Encoded(_)
            | Self::Length { .. }
            | Self::Range => false,
        }
    }

    /// How long the server asks to wait.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Busy { wait, .. } => *wait,
            _ => None,
        }
    }
}

/// What the status says. `Ok` for 200, 206, 304 and 416, which mean something only beside what was asked.
///
/// # Errors
/// [`Refusal`] for every other status.
pub fn judge_status(head: &Head, now: Instant) -> Result<(), Refusal> {
    let status = head.status;
    match status {
        200 | 206 | 304 | 416 => Ok(()),
        429 | 503 => Err(Refusal::Busy { status, wait: wait(head, now) }),
        // GitHub's primary limit says what is left; the secondary one has a Retry-After.
        // https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
        403 if head.rate_remaining.as_deref() == Some("0") || head.retry_after.is_some() => {
            Err(Refusal::Busy { status, wait: wait(head, now) })
        }
        404 | 410 => Err(Refusal::Missing(status)),
        401 | 403 => Err(Refusal::Denied(status)),
        408 | 425 | 500..=599 => Err(Refusal::Failed(status)),
        _ => Err(Refusal::Status(status)),
    }
}

/// `Retry-After` goes before `X-RateLimit-Reset`, which counts only once nothing is left.
fn wait(head: &Head, now: Instant) -> Option<Duration> {
    if let Some(text) = &head.retry_after {
        return retry_after(text, now);
    }
    let exhausted = head.rate_remaining.as_deref() == Some("0");
    let reset = head.rate_reset.as_deref().filter(|_| exhausted)?.trim().parse::<i64>().ok()?;
    Some(until(reset, now))
}

/// RFC 9110, 10.2.3: seconds, or a date.
pub(crate) fn retry_after(text: &str, now: Instant) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()) {
        // Whatever does not fit is longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(until(date.as_second(), now))
}

fn until(unix: i64, now: Instant) -> Duration {
    Duration::from_secs(unix.saturating_sub(now.unix()).max(0).unsigned_abs())
}

/// Refuses a body that is not the plain bytes: whoever asks for `identity` and gets `gzip` gets bytes of another length and
/// another hash, and perhaps a bomb.
///
/// # Errors
/// [`Refusal::Encoded`].
pub fn judge_encoding(head: &Head) -> Result<(), Refusal> {
    match head.content_encoding.as_deref().map(str::trim) {
        None | Some("") => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case("identity") => Ok(()),
        Some(encoding) => Err(Refusal::Encoded(encoding.chars().take(40).collect())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn head(status: u16) -> Head {
        Head { status, ..Head::default() }
    }

    fn wait_of(head: &Head) -> Option<Duration> {
        judge_status(head, now()).unwrap_err().wait()
    }

    // W16
    #[test]
    fn statuses_are_final_or_worth_another_try() {
        for status in [400, 401, 403, 404, 405, 407, 410, 418, 301, 204, 100] {
            assert!(!judge_status(&head(status), now()).unwrap_err().is_transient(), "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(judge_status(&head(status), now()).unwrap_err().is_transient(), "{status}");
        }
        for status in [200, 206, 304, 416] {
            assert_eq!(judge_status(&head(status), now()), Ok(()));
        }
    }

    // W16
    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        for status in [429, 503, 403] {
            let after = |text: &str| Head { retry_after: Some(text.to_owned()), ..head(status) };
            assert_eq!(wait_of(&after("17")), Some(Duration::from_secs(17)));
            let date = "Sun, 01 Mar 2026 12:00:30 GMT";
            assert_eq!(wait_of(&after(date)), Some(Duration::from_secs(30)));
            assert_eq!(wait_of(&after("Sun, 01 Mar 2020 12:00:30 GMT")), Some(Duration::ZERO), "long ago");
            assert_eq!(wait_of(&after("soon")), None);
            let absurd = wait_of(&after("99999999999999999999999"));
            assert!(absurd > Some(Duration::from_secs(1 << 31)), "{absurd:?}");
        }
        assert_eq!(wait_of(&head(503)), None);
    }

    #[test]
    fn githubs_exhausted_rate_limit_is_a_wait_and_a_plain_403_is_final() {
        let limited = Head {
            rate_remaining: Some("0".to_owned()),
            rate_reset: Some((now().unix() + 90).to_string()),
            ..head(403)
        };
        assert_eq!(wait_of(&limited), Some(Duration::from_secs(90)));
        let other = Head { rate_remaining: Some("12".to_owned()), ..limited.clone() };
        assert_eq!(judge_status(&other, now()), Err(Refusal::Denied(403)));
        let both = Head { retry_after: Some("5".to_owned()), ..limited };
        assert_eq!(wait_of(&both), Some(Duration::from_secs(5)));
    }

    #[test]
    fn encoded_bodies_are_refused() {
        let encoded = |text: &str| Head { content_encoding: Some(text.to_owned()), ..head(200) };
        for text in ["gzip", "br", "gzip, gzip", "x-unknown"] {
            assert_eq!(judge_encoding(&encoded(text)), Err(Refusal::Encoded(text.to_owned())));
        }
        assert_eq!(judge_encoding(&encoded("Identity")), Ok(()));
        assert_eq!(judge_encoding(&head(200)), Ok(()));
    }

    proptest! {
        #[test]
        fn no_header_text_panics(status: u16, a in ".*", b in ".*", c in ".*") {
            let head = Head { retry_after: Some(a), rate_remaining: Some(b), rate_reset: Some(c), ..head(status) };
            let _ = judge_status(&head, now());
        }
    }
}
