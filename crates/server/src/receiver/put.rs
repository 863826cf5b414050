//! `PUT /v1/episodes/{host}/{id}`: ids and headers, then the gate, then the body, then the disk or the bucket.
//!
//! Everything that can be refused is refused before the body is asked for: no `100 Continue` is sent and nothing is read
//! (RFC 9110, 10.1.1), and the connection is closed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, extract::State};
use cutover_core::{
    admission::{CommitHash, EpisodeKey},
    causes::chain,
    model::Digest,
};
use http::{HeaderMap, Request, Response, StatusCode, header, request::Parts};

use super::{
    access::authorize,
    answer::{Problem, stored},
    app::{App, EPISODES, Live, peer_of},
    body::{Incoming, Pace, to_disk},
    room::{Reserved, reserve},
    socket::Wire,
};
use crate::{
    gate::{claim_of, outcome_of},
    ingest::{Origin, Stored},
};

/// What is known of an upload before its body.
struct Ticket {
    key: EpisodeKey,
    length: u64,
    /// What the client says the SHA-256 is.
    declared: Option<Digest>,
    commit: Option<CommitHash>,
    /// That of a valid signature of the host.
    sequence: Option<u64>,
    wire: Option<Arc<Wire>>,
    room: Reserved,
}

pub(crate) async fn put_episode(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let live = app.live();
    let (peer, wire) = peer_of(&request);
    let (parts, body) = request.into_parts();
    let ticket = match admit(&app, &live, &parts, &peer, wire.clone()) {
        Ok(ticket) => ticket,
        Err(problem) => {
            wire.inspect(|wire| wire.leaves_body_unread());
            app.metrics.upload(word(problem.status));
            return problem.answer(&parts.headers);
        }
    };
    let answer = take_in(&app, &live, ticket, body).await;
    let response = match answer {
        Ok(response) => response,
        Err(problem) => {
            wire.inspect(|wire| wire.leaves_body_unread());
            problem.answer(&parts.headers)
        }
    };
    app.metrics.upload(word(response.status()));
    app.metrics.upload_seconds.observe(started.elapsed().as_secs_f64());
    response
}

/// Everything that can be said without the body, in the order of the contract: ids and headers, then the gate.
fn admit(
    app: &Arc<App>,
    live: &Live,
    parts: &Parts,
    peer: &super::access::PeerNames,
    wire: Option<Arc<Wire>>,
) -> Result<Ticket, Problem> {
    if app.is_stopping() {
        return Err(Problem::stopping());
    }
    let path = parts.uri.path().strip_prefix(EPISODES).unwrap_or_default();
    let key = EpisodeKey::from_path(path)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad-id", error.to_string()))?;
    authorize(&live.tokens, peer, &parts.headers, Some(&key.host))?;
    let limits = &live.settings.limits;
    app.rates.take(&key.host, limits.requests_per_s, limits.burst, Instant::now()).map_err(|wait| {
        let detail = format!("Host `{}` comes too often.", key.host);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-often", detail).retry_after(wait.as_secs() + 1)
    })?;
    let length = length_of(&parts.headers)?;
    let declared = digest_of(&parts.headers)?;
    if limits.body_max_bytes > 0 && length > limits.body_max_bytes {
        let detail = format!("An episode may have {} bytes.", limits.body_max_bytes);
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail);
        return Err(problem.with("max_bytes", limits.body_max_bytes));
    }
    let decision = app.gate.decide(claim_of(&parts.headers, &live.headers));
    app.metrics.decision(outcome_of(&decision));
    let admitted = decision.map_err(|refusal| {
        tracing::info!(%key, "refused: {refusal}");
        Problem::of_refusal(&refusal, &live.settings.remediation, live.retry_after_s())
    })?;
    let known = app.gate.known();
    let sequence =
        live.keys.judge(&parts.headers, admitted.commit.as_ref(), &key, declared, known.as_deref())?;
    // Another size is other bytes: that needs no body to be said.
    if let Some(entry) = app.store.rows().durable(&key)
        && entry.size != length
    {
        return Err(conflict(&key, entry.digest));
    }
    if let Some(wait) = app.store.away_for() {
        return Err(Problem::storage_away(wait));
    }
    let room = reserve(app, &key, length)?;
    Ok(Ticket { key, length, declared, commit: admitted.commit, sequence, wire, room })
}

/// The declared length. Chunked bodies have none that could be checked before they are read.
fn length_of(headers: &HeaderMap) -> Result<u64, Problem> {
    let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, "bad-length", detail);
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next(), headers.contains_key(header::TRANSFER_ENCODING)) {
        (_, _, true) | (None, ..) => {
            let detail = "Say with Content-Length how many bytes follow; chunked bodies are not taken.";
            Err(Problem::new(StatusCode::LENGTH_REQUIRED, "length-required", detail))
        }
        (Some(length), None, false) => {
            let digits = length.to_str().unwrap_or_default();
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number).ok_or_else(|| bad("Content-Length is no number."))
        }
        (Some(_), Some(_), false) => Err(bad("Content-Length is given more than once.")),
    }
}

/// `Content-Digest: sha-256=:BASE64:` (RFC 9530) or `X-Content-SHA256: HEX`; both only if they say the same.
fn digest_of(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let bad = |what: &str| {
        let detail = format!("{what} is not written well, or not alone.");
        Problem::new(StatusCode::BAD_REQUEST, "bad-digest", detail)
    };
    let mut found = None;
    for value in headers.get_all("content-digest") {
        let text = value.to_str().map_err(|_| bad("Content-Digest"))?;
        for member in text.split(',').map(str::trim) {
            let (algorithm, digest) = member.split_once('=').ok_or_else(|| bad("Content-Digest"))?;
            if !algorithm.trim().eq_ignore_ascii_case("sha-256") {
                continue;
            }
            let digest = base64_digest(digest.trim()).ok_or_else(|| bad("Content-Digest"))?;
            if found.replace(digest).is_some() {
                return Err(bad("Content-Digest"));
            }
        }
    }
    for (number, value) in headers.get_all("x-content-sha256").iter().enumerate() {
        let text = value.to_str().map_err(|_| bad("X-Content-SHA256"))?.trim().to_ascii_lowercase();
        let digest: Digest = text.parse().map_err(|_| bad("X-Content-SHA256"))?;
        if number > 0 || found.is_some_and(|found| found != digest) {
            return Err(bad("X-Content-SHA256"));
        }
        found = Some(digest);
    }
    Ok(found)
}

fn base64_digest(text: &str) -> Option<Digest> {
    use base64ct::{Base64, Encoding as _};
    let text = text.strip_prefix(':')?.strip_suffix(':')?;
    let mut bytes = [0; 32];
    let decoded = Base64::decode(text, &mut bytes).ok()?;
    (decoded.len() == 32).then(|| Digest::from_bytes(bytes))
}

fn conflict(key: &EpisodeKey, stored: Digest) -> Problem {
    let detail = format!("`{key}` is stored already, with other bytes.");
    Problem::new(StatusCode::CONFLICT, "other-bytes", detail).with("sha256", stored.to_string())
}

/// Takes the body, makes it durable, and says what became of it.
async fn take_in(
    app: &Arc<App>,
    live: &Live,
    mut ticket: Ticket,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let limits = &live.settings.limits;
    let stall = Duration::from_secs(limits.stall_timeout_s.max(1));
    let pace = Pace { stall, bytes_per_s_min: limits.bytes_per_s_min };
    let source = Incoming::new(body, ticket.length, pace);
    let mut wrote = |bytes| ticket.room.written(bytes);
    let finished = to_disk(&app.store, ticket.key.clone(), source, &app.bodies, &mut wrote).await?;
    app.metrics.bytes.inc_by(finished.size);
    if ticket.wire.as_ref().is_some_and(|wire| wire.body_ended(ticket.length)) {
        let detail = format!("More than the declared {} bytes came.", ticket.length);
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad-length", detail));
    }
    let (digest, size) = (finished.digest, finished.size);
    if let Some(declared) = ticket.declared.filter(|declared| *declared != digest) {
        let detail = "What came is not what the digest header says.";
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "digest-differs", detail);
        let problem =
            problem.with("declared_sha256", declared.to_string()).with("sha256", digest.to_string());
        return Err(problem.keep_connection());
    }
    let key = ticket.key.clone();
    let commit = ticket.commit.clone();
    let origin = Origin { commit: ticket.commit, sequence: ticket.sequence };
    match app.store.commit(finished, origin).await {
        Ok(Stored::New) => {
            tracing::debug!(%key, size, "stored");
            Ok(stored(
                StatusCode::CREATED,
                "stored",
                &key,
                digest,
                size,
                commit.as_ref().map(CommitHash::as_str),
            ))
        }
        Ok(Stored::Present) => {
            let commit = commit.as_ref().map(CommitHash::as_str);
            Ok(stored(StatusCode::OK, "already-present", &key, digest, size, commit))
        }
        Ok(Stored::Replayed) => {
            let detail = "This signature was used before: each upload needs a sequence number of its own.";
            Err(Problem::new(StatusCode::FORBIDDEN, "attestation-replayed", detail).keep_connection())
        }
        Ok(Stored::Conflict { stored }) => Err(conflict(&key, stored).keep_connection()),
        Err(error) => {
            tracing::error!(%key, "not stored: {}", chain(&error));
            Err(Problem::of_store(&error).keep_connection())
        }
    }
}

/// The status as a label.
fn word(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        201 => "201",
        400 => "400",
        401 => "401",
        403 => "403",
        408 => "408",
        409 => "409",
        411 => "411",
        412 => "412",
        413 => "413",
        422 => "422",
        429 => "429",
        500 => "500",
        503 => "503",
        507 => "507",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
    }

    // I27
    #[test]
    fn digest_headers_are_read_in_both_forms_and_refused_when_they_say_nothing_or_two_things() {
        let abc = Digest::of(b"abc");
        let base64 = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
        let of =
            |pairs: &[(&str, &str)]| digest_of(&headers(pairs)).map_err(|problem| problem.status.as_u16());
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("content-digest", base64)]), Ok(Some(abc)));
        assert_eq!(of(&[("content-digest", &format!("md5=:AA==:, {base64}"))]), Ok(Some(abc)));
        assert_eq!(of(&[("x-content-sha256", &abc.to_string().to_uppercase())]), Ok(Some(abc)));
        assert_eq!(of(&[("content-digest", base64), ("x-content-sha256", &abc.to_string())]), Ok(Some(abc)));
        let other = Digest::of(b"").to_string();
        for bad in [
            &[("content-digest", "sha-256=abc")][..],
            &[("content-digest", "sha-256=:AAAA:")],
            &[("content-digest", "")],
            &[("content-digest", base64), ("content-digest", base64)],
            &[("content-digest", base64), ("x-content-sha256", &other)],
            &[("x-content-sha256", "abc")],
            &[("x-content-sha256", &other), ("x-content-sha256", &other)],
        ] {
            assert_eq!(of(bad), Err(400), "{bad:?}");
        }
    }

    #[test]
    fn length_must_be_one_number() {
        let of =
            |pairs: &[(&str, &str)]| length_of(&headers(pairs)).map_err(|problem| problem.status.as_u16());
        assert_eq!(of(&[("content-length", "5")]), Ok(5));
        assert_eq!((of(&[]), of(&[("transfer-encoding", "chunked")])), (Err(411), Err(411)));
        assert_eq!(of(&[("content-length", "5"), ("transfer-encoding", "chunked")]), Err(411));
        for bad in ["-1", "+5", "0x5", "5, 5", "99999999999999999999"] {
            assert_eq!(of(&[("content-length", bad)]), Err(400), "{bad}");
        }
    }
}
