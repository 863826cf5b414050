//! The routes of the receiver, and what all of them share.

use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    routing::{any, get, put},
};
use cutover_core::{
    admission::{EpisodeKey, HostId},
    model::Digest,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    access::{PeerNames, Rates, authorize},
    answer::{Problem, json_answer},
    attest::Keys,
    metrics::Metrics,
    put::put_episode,
    room::Room,
    socket::Wire,
};
use crate::{
    gate::{Gate, claim_of, outcome_of},
    ingest::Store,
    settings::{GateSettings, SettingError, TokenHolder},
};

/// Most bytes of bodies that are gathered in memory, in KiB; what comes above that goes to the disk as it comes.
const BODIES_KIB: usize = 32 << 10;
/// Most episodes in one page of a list.
const PAGE_MAX: usize = 1000;

/// What the settings say, ready for use. Replaced as a whole when they change.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) settings: GateSettings,
    pub(crate) headers: Vec<HeaderName>,
    pub(crate) tokens: Vec<(TokenHolder, Digest)>,
    pub(crate) keys: Keys,
}

impl Live {
    pub(crate) fn new(settings: GateSettings) -> Result<Self, SettingError> {
        let (headers, tokens) = (settings.header_names()?, settings.token_digests()?);
        Ok(Self { headers, tokens, keys: Keys::new(&settings.attest)?, settings })
    }

    /// What to say with a 503: after this long the set may be there.
    pub(crate) fn retry_after_s(&self) -> u64 {
        self.settings.git.ttl_s.max(1)
    }
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) gate: Arc<Gate>,
    pub(crate) store: Arc<Store>,
    pub(crate) live: RwLock<Arc<Live>>,
    pub(crate) rates: Rates,
    pub(crate) room: Mutex<Room>,
    /// Memory for bodies, in KiB.
    pub(crate) bodies: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: AtomicBool,
}

impl App {
    pub(crate) fn new(gate: Arc<Gate>, store: Arc<Store>, live: Live) -> Self {
        Self {
            gate,
            store,
            live: RwLock::new(Arc::new(live)),
            rates: Rates::default(),
            room: Mutex::default(),
            bodies: Arc::new(Semaphore::new(BODIES_KIB)),
            metrics: Metrics::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_live(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Where episodes are, in the path of a request.
pub(crate) const EPISODES: &str = "/v1/episodes/";

/// All routes; docs/formats/gate.md and `openapi.json` list the same.
pub(crate) fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/episodes", get(hosts))
        .route("/v1/episodes/", get(hosts))
        .route("/v1/episodes/{*key}", put(put_episode).get(episode))
        .route("/v1/admission", get(admission))
        .route("/v1/admission/{*original}", any(admission))
        .route("/v1/head", get(head))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_here)
        .with_state(app)
}

/// What a request says about itself beyond HTTP, put there by its connection.
pub(crate) fn peer_of<B>(request: &Request<B>) -> (PeerNames, Option<Arc<Wire>>) {
    let extensions = request.extensions();
    (extensions.get::<PeerNames>().cloned().unwrap_or_default(), extensions.get::<Arc<Wire>>().cloned())
}

/// Whether a request says that a body follows.
fn has_body<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// A request that needs no body is being answered: one that comes with it is not read, and ends the connection.
fn ends<B>(request: &Request<B>, mut response: Response<Body>) -> Response<Body> {
    let (_, wire) = peer_of(request);
    match (has_body(request), wire) {
        (true, wire) => {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            wire.inspect(|wire| wire.leaves_body_unread());
        }
        (false, Some(wire)) => wire.no_body(),
        (false, None) => {}
    }
    response
}

fn problem<B>(request: &Request<B>, problem: Problem) -> Response<Body> {
    let problem = if has_body(request) { problem } else { problem.keep_connection() };
    ends(request, problem.answer(request.headers()))
}

async fn nothing_here(request: Request<Body>) -> Response<Body> {
    let detail = "There is nothing here; `/openapi.json` lists what there is.";
    problem(&request, Problem::new(StatusCode::NOT_FOUND, "not-found", detail))
}

async fn wrong_method(request: Request<Body>) -> Response<Body> {
    let detail = format!("`{}` is not possible here; `/openapi.json` lists what is.", request.method());
    problem(&request, Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", detail))
}

/// The decision alone, for a server in front of another (nginx `auth_request`, Envoy `ext_authz`). Envoy's HTTP service sends
/// the method of the request it asks about, and its path behind `path_prefix`; neither decides anything here.
///
/// With `?refusal=403` every refusal is a 403, the only one nginx passes on, and `X-Admission-Status` says what it is.
async fn admission(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let live = app.live();
    let decision = app.gate.decide(claim_of(request.headers(), &live.headers));
    app.metrics.decision(outcome_of(&decision));
    let only_403 =
        request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "refusal=403"));
    let mut response = match &decision {
        Ok(admitted) => {
            let mut response = Response::new(Body::empty());
            let commit =
                admitted.commit.as_ref().and_then(|commit| HeaderValue::from_str(commit.as_str()).ok());
            if let Some(commit) = commit {
                response.headers_mut().insert("x-admitted-commit", commit);
            }
            response
        }
        Err(refusal) => {
            let refused = Problem::of_refusal(refusal, &live.settings.remediation, live.retry_after_s());
            refused.keep_connection().answer(request.headers())
        }
    };
    let status = response.status();
    response.headers_mut().insert("x-admission-status", HeaderValue::from(status.as_u16()));
    if only_403 && !status.is_success() {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    ends(&request, response)
}

async fn head(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let status = app.gate.status();
    let document = json!({
        "head_commit": status.known.as_ref().map(|known| known.head().as_str()),
        "known_commits": status.known.as_ref().map_or(0, |known| known.len()),
        "age_s": status.age.map(|age| age.as_secs_f64()),
        "judging": status.switch,
    });
    ends(&request, json_answer(StatusCode::OK, &document))
}

/// Alive: 200 as long as uploads can be taken in; 503 tells a balancer to go elsewhere.
async fn health(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let known = app.gate.status();
    let judges = known.switch != cutover_core::admission::Switch::Enforce
        || known.freshness != cutover_core::admission::Freshness::TooOld;
    let obstacles = [
        (app.is_stopping(), "stopping"),
        (!judges, "commits-unknown"),
        (app.store.away_for().is_some(), "storage-away"),
        (!app.store.is_committing(), "not-committing"),
    ];
    let (status, word) = match obstacles.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, word)) => (StatusCode::SERVICE_UNAVAILABLE, word),
        None => (StatusCode::OK, "ok"),
    };
    ends(&request, json_answer(status, &json!({ "status": word })))
}

async fn metrics(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let text = app.metrics.text(&app.gate.status(), app.store.rows().all().len());
    let mut response = Response::new(Body::from(text));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    ends(&request, response)
}

async fn openapi(request: Request<Body>) -> Response<Body> {
    let mut response = Response::new(Body::from(include_str!("openapi.json")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ends(&request, response)
}

/// The hosts that have episodes.
async fn hosts(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let (peer, _) = peer_of(&request);
    if let Err(refused) = authorize(&app.live().tokens, &peer, request.headers(), None) {
        return problem(&request, refused);
    }
    let mut hosts: Vec<_> = {
        let rows = app.store.rows().all();
        rows.hosts().map(|host| (host.clone(), rows.of_host(host))).collect()
    };
    hosts.sort();
    let hosts: Vec<_> = hosts
        .iter()
        .map(|(host, (episodes, bytes))| json!({ "host_id": host.as_str(), "episodes": episodes, "bytes": bytes }))
        .collect();
    ends(&request, json_answer(StatusCode::OK, &json!({ "hosts": hosts })))
}

/// One episode's row, or a page of a host's episodes.
async fn episode(State(app): State<Arc<App>>, request: Request<Body>) -> Response<Body> {
    let request = request.map(drop);
    let response = match read_episode(&app, &request).await {
        Ok(response) => response,
        Err(refused) => return problem(&request, refused),
    };
    ends(&request, response)
}

async fn read_episode(app: &Arc<App>, request: &Request<()>) -> Result<Response<Body>, Problem> {
    let path = request.uri().path().strip_prefix(EPISODES).unwrap_or_default().trim_end_matches('/');
    let bad = |error: cutover_core::admission::IngestIdError| {
        Problem::new(StatusCode::BAD_REQUEST, "bad-id", error.to_string())
    };
    let (peer, _) = peer_of(request);
    let may = |host: &HostId| authorize(&app.live().tokens, &peer, request.headers(), Some(host));
    if !path.contains('/') {
        let host: HostId = path.parse().map_err(bad)?;
        may(&host)?;
        return Ok(page(app, &host, request.uri().query().unwrap_or_default()));
    }
    let key = EpisodeKey::from_path(path).map_err(bad)?;
    may(&key.host)?;
    let (store, wanted) = (Arc::clone(&app.store), key.clone());
    let row = tokio::task::spawn_blocking(move || store.row(&wanted)).await;
    match row {
        Ok(Ok(Some(row))) => {
            let mut row = row;
            row["status"] = "stored".into();
            Ok(json_answer(StatusCode::OK, &row))
        }
        Ok(Ok(None)) => {
            Err(Problem::new(StatusCode::NOT_FOUND, "not-stored", format!("`{key}` is not stored.")))
        }
        Ok(Err(error)) => {
            tracing::error!("the index cannot be read: {error}");
            Err(unreadable())
        }
        Err(_) => Err(unreadable()),
    }
}

fn unreadable() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "index", "The index cannot be read.").retry_after(5)
}

/// `?after=ID&limit=N`, by id.
fn page(app: &App, host: &HostId, query: &str) -> Response<Body> {
    let value = |name: &str| {
        query
            .split('&')
            .filter_map(|part| part.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    };
    let after = value("after").unwrap_or_default();
    let limit = value("limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let mut found: Vec<(String, Digest, u64)> = {
        let rows = app.store.rows();
        let all = rows.all();
        let wanted =
            all.episodes(host).filter(|(episode, entry)| episode.as_str() > after && rows.is_durable(entry));
        wanted.map(|(episode, entry)| (episode.to_string(), entry.digest, entry.size)).collect()
    };
    if found.len() > limit {
        found.select_nth_unstable(limit);
        found.truncate(limit + 1);
    }
    found.sort_unstable();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = more.then(|| found.last().map(|(episode, ..)| episode.clone())).flatten();
    let episodes: Vec<_> = found
        .iter()
        .map(|(episode, digest, size)| json!({ "episode_id": episode, "sha256": digest.to_string(), "size_bytes": size }))
        .collect();
    json_answer(StatusCode::OK, &json!({ "host_id": host.as_str(), "episodes": episodes, "next": next }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    #[test]
    fn document_lists_every_route_and_no_other() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let listed: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        let source = include_str!("app.rs");
        let mut routes = BTreeSet::new();
        for line in source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
            let (path, methods) = line.split_once('"').unwrap();
            for method in ["get", "put"] {
                if methods.contains(&format!("{method}(")) && !path.ends_with('/') {
                    routes.insert(format!("{method} {}", path.replace("{*key}", "{host_id}/{episode_id}")));
                }
            }
        }
        // The wildcard is a host's list too.
        routes.insert("get /v1/episodes/{host_id}".to_owned());
        assert_eq!(listed, routes);
    }
}
