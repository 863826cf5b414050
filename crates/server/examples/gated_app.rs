//! An axum server of one's own behind the version gate: `gated_app CLONE` takes data only from code among the clone's last
//! 100 commits.
#![allow(clippy::print_stdout)] // It says where it listens.

use std::sync::Arc;

use axum::{Extension, Router, body::Body, routing::post};
use cutover_server::{
    gate::{Admitted, Gate, GateLayer},
    settings::GateSettings,
};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower_service::Service as _;

/// The server's own work: it knows which commit was admitted.
async fn take(Extension(admitted): Extension<Admitted>, body: String) -> String {
    let commit = admitted.commit.map_or_else(|| "no commit".to_owned(), |commit| commit.to_string());
    format!("{} bytes from {commit}\n", body.len())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = GateSettings::default();
    settings.git.repository = std::env::args_os().nth(1).map(Into::into);
    let gate = Arc::new(Gate::start(settings.rules()?)?);
    let app = Router::new().route("/take", post(take)).layer(GateLayer::new(gate, &settings)?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let mut app = app.clone();
                async move { app.call(request.map(Body::new)).await }
            });
            // A client that breaks off is its own business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
