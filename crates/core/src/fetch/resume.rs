//! Resuming: what to ask for when part of an object is there, and whether an answer continues it.
//!
//! Nothing is decided by the server's word alone: whatever is put together is hashed as a whole before anybody uses it
//! (PROMISES: `If-Range` alone can splice two versions).

use serde::{Deserialize, Serialize};

use super::answer::{self, Head, Refusal};
use crate::model::Instant;

/// What the server said about the version of a file, so that it can be asked for the rest of that very version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validator {
    /// The strong `ETag`; weak ones do not promise equal bytes (RFC 9110, 8.8.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

/// The longest validator that is remembered, in bytes.
const VALIDATOR_MAX: usize = 1024;

impl Validator {
    /// What an answer says; `None` when it says nothing to go by.
    pub fn of(head: &Head) -> Option<Self> {
        let short = |text: &String| text.len() <= VALIDATOR_MAX;
        let etag = head.etag.clone().filter(short).filter(|etag| !etag.starts_with("W/"));
        let last_modified = head.last_modified.clone().filter(short);
        (etag.is_some() || last_modified.is_some()).then_some(Self { etag, last_modified })
    }

    /// The value of `If-Range`: the ETag, else the date (RFC 9110, 13.1.5).
    pub fn if_range(&self) -> Option<&str> {
        self.etag.as_deref().or(self.last_modified.as_deref())
    }
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing: every byte is there and has to be hashed.
    Nothing,
    /// The whole object.
    All,
    /// The bytes from `offset` on.
    From {
        /// How many bytes are there.
        offset: u64,
        /// Sent as `If-Range`: what the same server said about the version before.
        validator: Option<Validator>,
    },
}

/// What to ask for when `present` bytes of `size` lie there. More than there may be are worth nothing.
pub fn ask(present: u64, size: u64, validator: Option<Validator>) -> Ask {
    if present == size && size > 0 {
        Ask::Nothing
    } else if present == 0 || present > size {
        Ask::All
    } else {
        Ask::From { offset: present, validator }
    }
}

/// What an answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its body continues what is there.
    Append,
    /// Its body is the whole object: what is there is dropped.
    Replace,
    /// What is there is dropped, and the whole is asked for.
    AskForAll,
}

/// Whether `head` answers `ask` for an object of `size` bytes. (W9, W10)
///
/// # Errors
/// [`Refusal`]: the answer is of no use.
pub fn judge(ask: &Ask, head: &Head, size: u64, now: Instant) -> Result<Use, Refusal> {
    answer::judge_status(head, now)?;
    match (ask, head.status) {
        (Ask::All, 200) => {
            answer::judge_encoding(head)?;
            expect_length(head, size)?;
            Ok(Use::Replace)
        }
        // The server does not know ranges, or the version changed.
        (Ask::From { .. }, 200) => {
            answer::judge_encoding(head)?;
            expect_length(head, size)?;
            Ok(Use::Replace)
        }
        (Ask::From { offset, validator }, 206) => {
            answer::judge_encoding(head)?;
            let continues = head.content_range.as_deref().and_then(Range::parse).is_some_and(|range| {
                range.first == *offset
                    && range.last + 1 == size
                    && range.total.is_none_or(|total| total == size)
            });
            let same = validator.as_ref().is_none_or(|known| still(known, head));
            let long = head.content_length.is_none_or(|length| length == size - offset);
            Ok(if continues && same && long { Use::Append } else { Use::AskForAll })
        }
        (Ask::From { .. }, 416) => Ok(Use::AskForAll),
        (Ask::All | Ask::Nothing, 206) => Err(Refusal::Range),
        (_, status) => Err(Refusal::Status(status)),
    }
}

fn expect_length(head: &Head, expected: u64) -> Result<(), Refusal> {
    match head.content_length {
        Some(announced) if announced != expected => Err(Refusal::Length { announced, expected }),
        Some(_) | None => Ok(()),
    }
}

/// A server may leave the validator out of a 206 only if it sent it before with the same value; another one is a lie or a
/// change.
fn still(known: &Validator, head: &Head) -> bool {
    match (&known.etag, &head.etag) {
        (Some(known), Some(now)) => known == now,
        _ => match (&known.last_modified, &head.last_modified) {
            (Some(known), Some(now)) => known == now,
            _ => true,
        },
    }
}

/// `Content-Range: bytes first-last/total` (RFC 9110, 14.4); `*` for an unknown total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    total: Option<u64>,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        let sound = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && last < u64::MAX
            && total.is_none_or(|total| last < total);
        sound.then_some(Self { first, last, total })
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn from(offset: u64) -> Ask {
        let validator = Validator { etag: Some("\"a\"".to_owned()), last_modified: None };
        Ask::From { offset, validator: Some(validator) }
    }

    fn part(range: &str) -> Head {
        Head { status: 206, content_range: Some(range.to_owned()), ..Head::default() }
    }

    fn judged(ask: &Ask, head: &Head) -> Result<Use, Refusal> {
        judge(ask, head, 11, now())
    }

    // W6, W8, W11
    #[test]
    fn only_what_is_missing_is_asked_for() {
        assert_eq!(ask(0, 11, None), Ask::All);
        assert_eq!(ask(6, 11, None), Ask::From { offset: 6, validator: None });
        assert_eq!(ask(11, 11, None), Ask::Nothing);
        assert_eq!(ask(12, 11, None), Ask::All, "more than there is belongs to something else");
        assert_eq!(ask(0, 0, None), Ask::All);
    }

    // W6
    #[test]
    fn the_rest_continues_what_is_there() {
        assert_eq!(judged(&from(6), &part("bytes 6-10/11")), Ok(Use::Append));
        assert_eq!(judged(&from(6), &part("bytes 6-10/*")), Ok(Use::Append));
        let same = Head { etag: Some("\"a\"".to_owned()), content_length: Some(5), ..part("bytes 6-10/11") };
        assert_eq!(judged(&from(6), &same), Ok(Use::Append));
    }

    // W9
    #[test]
    fn ignored_range_starts_again_with_the_same_answer() {
        let whole = Head { status: 200, content_length: Some(11), ..Head::default() };
        assert_eq!(judged(&from(6), &whole), Ok(Use::Replace));
        assert_eq!(judged(&Ask::All, &whole), Ok(Use::Replace));
    }

    // W10
    #[test]
    fn unsatisfied_range_and_changed_validator_drop_what_is_there() {
        assert_eq!(judged(&from(6), &Head { status: 416, ..Head::default() }), Ok(Use::AskForAll));
        let changed = Head { etag: Some("\"b\"".to_owned()), ..part("bytes 6-10/11") };
        assert_eq!(judged(&from(6), &changed), Ok(Use::AskForAll));
    }

    #[test]
    fn any_other_range_is_not_continued() {
        for range in [
            "bytes 0-10/11",
            "bytes 5-10/11",
            "bytes 7-10/11",
            "bytes 6-9/11",
            "bytes 6-10/12",
            "bytes 6-11/12",
            "bytes 6-10/10",
            "bytes 10-6/11",
            "items 6-10/11",
            "bytes */11",
            "bytes +6-10/11",
            "bytes 6-18446744073709551615/*",
            "",
        ] {
            assert_eq!(judged(&from(6), &part(range)), Ok(Use::AskForAll), "{range}");
        }
        assert_eq!(judged(&from(6), &Head { status: 206, ..Head::default() }), Ok(Use::AskForAll));
        let long = Head { content_length: Some(11), ..part("bytes 6-10/11") };
        assert_eq!(judged(&from(6), &long), Ok(Use::AskForAll), "contradicting lengths");
    }

    #[test]
    fn wrong_length_encoding_and_unasked_parts_are_refused() {
        let page = Head { status: 200, content_length: Some(5), ..Head::default() };
        let length = Refusal::Length { announced: 5, expected: 11 };
        assert_eq!(judged(&Ask::All, &page), Err(length.clone()));
        assert_eq!(judged(&from(6), &page), Err(length));
        assert_eq!(judged(&Ask::All, &part("bytes 0-10/11")), Err(Refusal::Range));
        assert_eq!(judged(&Ask::All, &Head { status: 304, ..Head::default() }), Err(Refusal::Status(304)));
        let zipped = Head { content_encoding: Some("gzip".to_owned()), ..part("bytes 6-10/11") };
        assert_eq!(judged(&from(6), &zipped), Err(Refusal::Encoded("gzip".to_owned())));
    }

    #[test]
    fn weak_and_huge_validators_are_not_remembered() {
        let head = |etag: &str| Head { etag: Some(etag.to_owned()), ..Head::default() };
        assert_eq!(Validator::of(&head("W/\"a\"")), None);
        assert_eq!(Validator::of(&head(&"x".repeat(2000))), None);
        assert_eq!(Validator::of(&head("\"a\"")).unwrap().if_range(), Some("\"a\""));
        let dated =
            Head { last_modified: Some("Sun, 01 Mar 2026 12:00:00 GMT".to_owned()), ..head("W/\"a\"") };
        assert_eq!(Validator::of(&dated).unwrap().if_range(), Some("Sun, 01 Mar 2026 12:00:00 GMT"));
    }

    proptest! {
        #[test]
        fn a_body_is_appended_only_where_it_belongs(
            size in 1u64..100, offset in 1u64..100, first in 0u64..100, last in 0u64..100, total in 0u64..100,
        ) {
            prop_assume!(offset < size);
            let ask = Ask::From { offset, validator: None };
            let used = judge(&ask, &part(&format!("bytes {first}-{last}/{total}")), size, now());
            let right = first == offset && last + 1 == size && total == size;
            prop_assert_eq!(used == Ok(Use::Append), right);
        }

        #[test]
        fn no_range_text_panics(text in ".*", status: u16, size in 1u64..u64::MAX) {
            let head = Head { status, content_range: Some(text), ..Head::default() };
            let _ = judge(&Ask::From { offset: 1, validator: None }, &head, size, now());
        }
    }
}
