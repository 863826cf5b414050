//! What the receiver answers: problem documents (RFC 9457) as JSON, or the same as text for people.

use std::time::Duration;

use axum::body::Body;
use cutover_core::{
    admission::{ClaimError, EpisodeKey, Refusal},
    model::Digest,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::ingest::StoreError;

/// A refusal or failure on its way to the client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// A stable word for machines.
    pub(crate) error: &'static str,
    /// One sentence for people.
    pub(crate) detail: String,
    /// Further members, in the order of the text form.
    members: Map<String, Value>,
    retry_after_s: Option<u64>,
    /// Whether the connection may go on; never after a body that was not read.
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Close,
    Keep,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, error: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            error,
            detail: detail.into(),
            members: Map::new(),
            retry_after_s: None,
            connection: Connection::Close,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// The request had no body, or it was read to its end.
    pub(crate) fn keep_connection(mut self) -> Self {
        self.connection = Connection::Keep;
        self
    }

    /// A refusal of the gate, with what to do about it.
    pub(crate) fn of_refusal(refusal: &Refusal, remediation: &str, retry_after_s: u64) -> Self {
        match refusal {
            Refusal::Claim(claim) => {
                let error = match claim {
                    ClaimError::Missing => "commit-missing",
                    ClaimError::Malformed | ClaimError::OtherFormat => "commit-malformed",
                    ClaimError::Ambiguous => "commit-ambiguous",
                };
                Self::new(StatusCode::BAD_REQUEST, error, sentence(&claim.to_string()))
                    .with("remediation", remediation)
            }
            Refusal::OutOfDate { commit, head } => {
                let detail = "The code this data comes from is not among the accepted commits.";
                Self::new(StatusCode::PRECONDITION_FAILED, "commit-not-accepted", detail)
                    .with("your_commit", commit.as_str())
                    .with("head_commit", head.as_str())
                    .with("remediation", remediation)
            }
            Refusal::Unknown => {
                let detail = "Which commits are accepted is not known at the moment; nothing was judged. Send it again later.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "commits-unknown", detail)
                    .retry_after(retry_after_s)
            }
            Refusal::Closed => {
                let detail = "The gate is closed by its operator. Keep the data and send it again later.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "gate-closed", detail).retry_after(60)
            }
        }
    }

    pub(crate) fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::NoRoom(_) => {
                let detail = "The receiver's storage is full; nothing of this upload is left there.";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", detail).retry_after(60)
            }
            StoreError::Io { .. } => {
                let detail = "The receiver could not store this. Send it again later.";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "not-stored", detail).retry_after(5)
            }
            StoreError::Away { retry_after, .. } => Self::storage_away(*retry_after),
            StoreError::Stopping => Self::stopping(),
        }
    }

    /// The bucket that episodes are kept in does not answer as it should.
    pub(crate) fn storage_away(wait: Duration) -> Self {
        let detail = "The receiver's storage cannot be written to at the moment. Keep the data and send it again later.";
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage-away", detail).retry_after(seconds)
    }

    pub(crate) fn stopping() -> Self {
        let detail = "The receiver is stopping. Send it again.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", detail).retry_after(1)
    }

    /// The answer, in the form the client asked for.
    pub(crate) fn answer(&self, request: &HeaderMap) -> Response<Body> {
        let (kind, body) = match form_of(request) {
            Form::Text => ("text/plain; charset=utf-8", self.text()),
            Form::Json => ("application/problem+json", self.json()),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.connection == Connection::Close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn json(&self) -> String {
        let mut document = json!({
            "type": format!("about:blank#{}", self.error),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "error": self.error,
            "detail": self.detail,
        });
        if let Some(document) = document.as_object_mut() {
            document.extend(self.members.clone());
        }
        document.to_string() + "\n"
    }

    fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.error, self.detail);
        for (name, value) in self.members.iter().filter(|(name, _)| *name != "remediation") {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("{name}: {value}\n"));
        }
        if let Some(Value::String(remediation)) = self.members.get("remediation") {
            text.push_str(&format!("\n{remediation}\n"));
        }
        text
    }
}

/// "the commit header is missing" -> "The commit header is missing."
fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// Text only where it is asked for and JSON is not.
fn form_of(request: &HeaderMap) -> Form {
    let mut kinds = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants = |accept: &str, kind: &str| accept.to_ascii_lowercase().contains(kind);
    if kinds.any(|accept| wants(accept, "text/plain") && !wants(accept, "json")) {
        Form::Text
    } else {
        Form::Json
    }
}

/// 200 or 201 for an episode.
pub(crate) fn stored(
    status: StatusCode,
    word: &str,
    key: &EpisodeKey,
    digest: Digest,
    size: u64,
    commit: Option<&str>,
) -> Response<Body> {
    let mut document = json!({
        "status": word,
        "host_id": key.host.as_str(),
        "episode_id": key.episode.as_str(),
        "sha256": digest.to_string(),
        "size_bytes": size,
    });
    if let Some(commit) = commit {
        document["commit"] = commit.into();
    }
    json_answer(status, &document)
}

pub(crate) fn json_answer(status: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string() + "\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remediation_is_sent_verbatim_in_both_forms() {
        let block = "1. git pull\n2. \"restart\" \u{fc}";
        let refusal = Refusal::OutOfDate {
            commit: "a".repeat(40).parse().unwrap(),
            head: "b".repeat(40).parse().unwrap(),
        };
        let problem = Problem::of_refusal(&refusal, block, 5);
        let document: Value = serde_json::from_str(&problem.json()).unwrap();
        assert_eq!(
            (&document["remediation"], &document["your_commit"]),
            (&block.into(), &"a".repeat(40).into())
        );
        assert!(problem.text().ends_with(&format!("\n{block}\n")), "{}", problem.text());
        assert!(problem.text().contains(&format!("head_commit: {}\n", "b".repeat(40))));
    }

    #[test]
    fn text_is_sent_only_to_who_asks_for_it() {
        let accept =
            |text: &str| HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(text).unwrap())]);
        assert_eq!(form_of(&accept("text/plain")), Form::Text);
        for other in ["*/*", "application/json", "application/problem+json, text/plain;q=0.5"] {
            assert_eq!(form_of(&accept(other)), Form::Json, "{other}");
        }
    }
}
