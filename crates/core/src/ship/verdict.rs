//! What an answer means for the episode that was sent.

use std::time::Duration;

use serde::Deserialize;

use super::DIGEST_TRIES_MAX;
use crate::{
    fetch::answer::retry_after,
    model::{Digest, Instant},
};

/// An answer, as far as it decides something. All of it is untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// The body, cut to what is ever looked at.
    pub body: Vec<u8>,
}

/// How loud it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It will pass.
    Warning,
    /// Somebody must act.
    Error,
}

/// What becomes of the episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has exactly these bytes, durably. The local copy may go.
    Done,
    /// It is tried again, with the same bytes.
    Retry {
        /// Why.
        reason: String,
        /// How long the receiver asks to wait.
        asked: Option<Duration>,
        /// Whether somebody must act.
        severity: Severity,
    },
    /// It is hashed again, and tried again.
    Rehash {
        /// Why.
        reason: String,
    },
    /// It is kept and not tried again until somebody says so.
    Parked(Problem),
}

/// Why an episode was parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status code.
    pub status: u16,
    /// One line.
    pub reason: String,
    /// What to do about it, in the receiver's own words, over several lines.
    pub remediation: Option<String>,
    /// The commit the receiver says the episode is of.
    pub your_commit: Option<String>,
    /// The commit the receiver wants.
    pub head_commit: Option<String>,
}

impl Problem {
    /// Whether the code that recorded the episode is too old, or says nothing of itself.
    pub fn is_refused_code(&self) -> bool {
        self.status == 412
    }
}

/// What is read of a body.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    sha256: Option<String>,
    error: Option<String>,
    detail: Option<String>,
    title: Option<String>,
    remediation: Option<String>,
    your_commit: Option<String>,
    head_commit: Option<String>,
    max_bytes: Option<u64>,
}

/// The longest line that is made of an answer, in characters.
const LINE_MAX: usize = 300;
/// The longest remediation that is kept, in characters.
const REMEDIATION_MAX: usize = 16 << 10;

/// What an answer means. `digest` is that of the bytes that were sent, `digest_failures` how often in a row it was said before
/// that they are other bytes. (CONTRACT 8; ship-1 to ship-3)
pub fn judge(answer: &Answer, digest: Digest, digest_failures: u32, now: Instant) -> Verdict {
    // Whatever is not an object of JSON with text in these fields says nothing.
    let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
    let status = answer.status;
    let asked = answer.retry_after.as_deref().and_then(|text| retry_after(text, now));
    let said = said(&body, &answer.body);
    let reason = |what: &str| line(&format!("{status}: {what}{said}"));
    let retry = |what: &str, severity| Verdict::Retry { reason: reason(what), asked, severity };
    let parked = |what: &str| {
        let clean = |text: &String| line(text);
        Verdict::Parked(Problem {
            status,
            reason: reason(what),
            remediation: body.remediation.as_deref().map(block),
            your_commit: body.your_commit.as_ref().map(clean),
            head_commit: body.head_commit.as_ref().map(clean),
        })
    };
    match status {
        200..=299 => match &body.sha256 {
            Some(echo) if echo.eq_ignore_ascii_case(&digest.to_string()) => Verdict::Done,
            Some(_) => retry("the receiver says it stored other bytes than were sent", Severity::Error),
            None => retry("this is no receiver's answer: it does not repeat the digest", Severity::Error),
        },
        400 => parked("the receiver does not understand the request"),
        401 | 403 => retry("the receiver does not accept our credentials", Severity::Error),
        408 => retry("the upload was too slow", Severity::Warning),
        409 => {
            let other =
                body.sha256.as_deref().map_or_else(String::new, |other| format!(" ({})", line(other)));
            parked(&format!("the receiver has other bytes under this id{other}"))
        }
        411 => parked("the receiver wants to know the length"),
        412 => parked("the receiver does not take data of this code any more"),
        413 => {
            let most = body.max_bytes.map_or_else(String::new, |most| format!(", which is {most} bytes"));
            parked(&format!("the episode is larger than the receiver's limit{most}"))
        }
        422 if digest_failures + 1 >= DIGEST_TRIES_MAX => {
            parked("the receiver got other bytes than we hashed, again and again")
        }
        422 => Verdict::Rehash { reason: reason("the receiver got other bytes than we hashed") },
        429 => retry("the receiver is asked too often", Severity::Warning),
        503 => retry("the receiver cannot decide now", Severity::Warning),
        507 => retry("the receiver has no room", Severity::Error),
        500..=599 => retry("the receiver failed", Severity::Warning),
        300..=399 => retry(
            "the receiver sends us elsewhere, which is not followed: correct `ship.url`",
            Severity::Error,
        ),
        402..=499 => parked("the receiver refuses it"),
        _ => retry("this is no answer", Severity::Error),
    }
}

/// What the receiver says about it, in front of a colon.
fn said(body: &Body, bytes: &[u8]) -> String {
    let text =
        [&body.error, &body.detail, &body.title].into_iter().flatten().find(|text| !text.trim().is_empty());
    match text {
        Some(text) => format!(": {text}"),
        // A proxy's page is not worth showing; its first words may be.
        None => match std::str::from_utf8(bytes).ok().and_then(|text| text.lines().next()) {
            Some(text) if !text.trim().is_empty() && !text.starts_with(['<', '{']) => {
                format!(": {}", text.trim())
            }
            _ => String::new(),
        },
    }
}

/// Text of others in one line that steers no terminal and no log.
fn line(text: &str) -> String {
    text.chars()
        .take(LINE_MAX)
        .map(|c| if is_harmless(c) { c } else { ' ' })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// The same over several lines.
fn block(text: &str) -> String {
    text.chars().take(REMEDIATION_MAX).filter(|c| *c == '\n' || *c == '\t' || is_harmless(*c)).collect()
}

/// No control character, and none that turns the direction of the text.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest() -> Digest {
        Digest::of(b"episode")
    }

    fn now() -> Instant {
        Instant::from_unix(1_800_000_000).expect("a time")
    }

    fn judged(status: u16, body: &str) -> Verdict {
        judge(&Answer { status, retry_after: None, body: body.into() }, digest(), 0, now())
    }

    // ship-2
    #[test]
    fn only_a_2xx_that_repeats_our_digest_is_done() {
        let ours = format!(r#"{{"status":"stored","sha256":"{}"}}"#, digest());
        for status in [200, 201, 204] {
            assert_eq!(judged(status, &ours), Verdict::Done);
            assert_eq!(judged(status, &ours.to_uppercase().replace("SHA256", "sha256")), Verdict::Done);
        }
        let other = format!(r#"{{"sha256":"{}"}}"#, Digest::of(b"other"));
        for body in [
            "",
            "<html>Welcome to the hotel</html>",
            "{}",
            "[]",
            "null",
            r#"{"sha256":null}"#,
            &other,
            "\u{0}",
        ] {
            assert!(matches!(judged(200, body), Verdict::Retry { severity: Severity::Error, .. }), "{body}");
        }
        assert!(!matches!(judged(500, &ours), Verdict::Done));
        assert!(!matches!(judged(302, &ours), Verdict::Done));
    }

    #[test]
    fn every_status_of_the_contract_has_its_verdict() {
        let retried = |status| matches!(judged(status, "{}"), Verdict::Retry { .. });
        let parked = |status| matches!(judged(status, "{}"), Verdict::Parked(_));
        for status in [301, 302, 307, 401, 403, 408, 429, 500, 502, 503, 504, 507, 599] {
            assert!(retried(status), "{status}");
        }
        for status in [400, 402, 404, 405, 409, 410, 411, 412, 413, 415, 431, 451, 499] {
            assert!(parked(status), "{status}");
        }
        for status in [0, 99, 600, 999] {
            assert!(retried(status), "{status}");
        }
        for status in [401, 403, 507] {
            assert!(
                matches!(judged(status, ""), Verdict::Retry { severity: Severity::Error, .. }),
                "{status}"
            );
        }
    }

    #[test]
    fn other_bytes_are_hashed_again_and_parked_at_the_third_time() {
        let answer = Answer { status: 422, ..Answer::default() };
        assert!(matches!(judge(&answer, digest(), 0, now()), Verdict::Rehash { .. }));
        assert!(matches!(judge(&answer, digest(), 1, now()), Verdict::Rehash { .. }));
        assert!(matches!(judge(&answer, digest(), 2, now()), Verdict::Parked(_)));
    }

    // I12
    #[test]
    fn refused_code_keeps_the_whole_remediation_and_both_commits() {
        let body = r#"{"type":"about:blank","error":"commit-not-in-window","remediation":"git pull\nsystemctl restart x\n\u001b[31m",
            "your_commit":"aaa","head_commit":"bbb"}"#;
        let Verdict::Parked(problem) = judged(412, body) else { panic!() };
        assert!(problem.is_refused_code());
        assert_eq!(problem.remediation.as_deref(), Some("git pull\nsystemctl restart x\n[31m"));
        assert_eq!(
            (problem.your_commit.as_deref(), problem.head_commit.as_deref()),
            (Some("aaa"), Some("bbb"))
        );
        assert!(problem.reason.contains("commit-not-in-window"), "{}", problem.reason);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let asked = |text: &str| {
            let answer = Answer { status: 503, retry_after: Some(text.to_owned()), ..Answer::default() };
            let Verdict::Retry { asked, .. } = judge(&answer, digest(), 0, now()) else { panic!() };
            asked
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Fri, 15 Jan 2027 08:00:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(asked("soon"), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics_and_no_text_steers_a_terminal(status: u16, body: Vec<u8>, after: Option<String>) {
            let answer = Answer { status, retry_after: after, body };
            let text = match judge(&answer, digest(), 0, now()) {
                Verdict::Done => String::new(),
                Verdict::Retry { reason, .. } | Verdict::Rehash { reason } => reason,
                Verdict::Parked(problem) => problem.reason,
            };
            prop_assert!(text.chars().all(is_harmless));
        }
    }
}
