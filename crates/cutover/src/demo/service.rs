//! The service of the demo: a small HTTP server that does what `docs/guides/service.md` asks of a service.
//!
//! It takes its socket from whoever started it, says when it is ready, and on SIGTERM keeps serving what is connected:
//! each connection's next answer says `Connection: close`, so that no client ever loses a request.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cutover_host::service::{InheritedSocket, inherited_listeners, notify_ready};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{args::DemoService, exit::Exit, failure::Failure, output, settings};

/// The path of the service's program in a demo release.
pub(super) const PROGRAM: &str = "bin/service";
/// The path of what the service says about itself.
pub(super) const ABOUT: &str = "about.toml";

/// The service's program: the program of the demo itself plays the service.
pub(super) fn program() -> String {
    format!("#!/bin/sh\nexec \"$DEMO_PROGRAM\" demo-service --release {ABOUT}\n")
}

/// Whether a release's service answers its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It does.
    Healthy,
    /// It answers with an error.
    Sick,
}

/// What the service says about itself.
pub(super) fn about(version: &str, health: Health) -> String {
    format!("version = \"{version}\"\nsick = {}\n", health == Health::Sick)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    version: String,
    #[serde(default)]
    sick: bool,
}

struct State {
    about: About,
    draining: AtomicBool,
    open: AtomicUsize,
    closed: Notify,
}

/// Serves until SIGTERM and then until every connection is closed or its time is over.
///
/// # Errors
/// No socket was passed, or it cannot be used.
pub(crate) fn run(command: &DemoService) -> Result<Exit, Failure> {
    let about: About = settings::read_file(&command.release)?;
    let failed =
        |what: &'static str| move |error: std::io::Error| Failure::new(Exit::Failed, what).because(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("failed to start the runtime"))?;
    super::allow_many_files();
    runtime
        .block_on(serve(about, Duration::from_secs(command.drain_s)))
        .map_err(failed("the service failed"))?;
    Ok(Exit::Done)
}

async fn serve(about: About, drain: Duration) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = listener()?;
    let state = Arc::new(State {
        about,
        draining: AtomicBool::new(false),
        open: AtomicUsize::new(0),
        closed: Notify::new(),
    });
    notify_ready()?;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    state.open.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve_connection(stream, Arc::clone(&state)));
                }
                // Too many open files, or a client that was gone before it was accepted: the next one may do better.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            _ = terminate.recv() => break,
        }
    }
    // The socket stays open elsewhere: the next process accepts what waits in its queue.
    drop(listener);
    state.draining.store(true, Ordering::SeqCst);
    let all_closed = async {
        while state.open.load(Ordering::SeqCst) > 0 {
            state.closed.notified().await;
        }
    };
    if tokio::time::timeout(drain, all_closed).await.is_err() {
        let open = state.open.load(Ordering::SeqCst);
        output::note(format!("{open} connections were still open after {} s", drain.as_secs()));
    }
    Ok(())
}

fn listener() -> std::io::Result<TcpListener> {
    let inherited = inherited_listeners()?.into_iter().find_map(|inherited| match inherited.socket {
        InheritedSocket::Tcp(listener) => Some(listener),
        InheritedSocket::Unix(_) => None,
    });
    let listener = inherited.ok_or_else(|| {
        std::io::Error::other("no TCP socket was passed: this service runs under `cutover run`")
    })?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve_connection(stream: TcpStream, state: Arc<State>) {
    // Small answers must not wait for acknowledgements; without it they are only slower.
    let _ = stream.set_nodelay(true);
    let answering = Arc::clone(&state);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.uri().path(), &answering);
        async move { Ok::<_, Infallible>(answer) }
    });
    // A client that goes away in mid-request is no news.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    state.open.fetch_sub(1, Ordering::SeqCst);
    state.closed.notify_one();
}

fn answer(path: &str, state: &State) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/health" if state.about.sick => (StatusCode::INTERNAL_SERVER_ERROR, "sick"),
        "/health" => (StatusCode::OK, "healthy"),
        _ => (StatusCode::OK, state.about.version.as_str()),
    };
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if state.draining.load(Ordering::SeqCst) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
