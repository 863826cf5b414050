//! The gate as a tower layer: any server built on tower services refuses out-of-date code before its own work begins.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use cutover_server::{gate::{Gate, GateLayer}, settings::GateSettings};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = GateSettings::default();
//! let gate = Arc::new(Gate::start(settings.rules()?)?);
//! let layer = GateLayer::new(gate, &settings)?;
//! let app: axum::Router = axum::Router::new().layer(layer);
//! # Ok(())
//! # }
//! ```

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use http::{HeaderName, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{Gate, claim_of};
use crate::{
    receiver::Problem,
    settings::{GateSettings, SettingError},
};

/// Puts the gate in front of a service. Requests that are admitted carry [`Admitted`](super::Admitted) as an extension;
/// refusals are answered as the receiver answers them, before the body is polled, and close the connection.
#[derive(Clone, Debug)]
pub struct GateLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    headers: Vec<HeaderName>,
    remediation: String,
    retry_after_s: u64,
}

impl GateLayer {
    /// A layer that judges by `gate`, with the header names and the remediation text of `settings`.
    ///
    /// # Errors
    /// [`SettingError`]: a header name is none.
    pub fn new(gate: Arc<Gate>, settings: &GateSettings) -> Result<Self, SettingError> {
        let headers = settings.header_names()?;
        let (remediation, retry_after_s) = (settings.remediation.clone(), settings.git.ttl_s.max(1));
        Ok(Self { shared: Arc::new(Shared { gate, headers, remediation, retry_after_s }) })
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service behind the gate; made by [`GateLayer`].
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = GatedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let shared = &self.shared;
        match shared.gate.decide(claim_of(request.headers(), &shared.headers)) {
            Ok(admitted) => {
                request.extensions_mut().insert(admitted);
                GatedFuture(Answer::Inner(Box::pin(self.inner.call(request))))
            }
            Err(refusal) => {
                let problem = Problem::of_refusal(&refusal, &shared.remediation, shared.retry_after_s);
                GatedFuture(Answer::Refused(Some(Box::new(problem.answer(request.headers())))))
            }
        }
    }
}

/// The answer of a [`Gated`] service.
pub struct GatedFuture<F>(Answer<F>);

enum Answer<F> {
    Inner(Pin<Box<F>>),
    Refused(Option<Box<Response<Body>>>),
}

impl<F, E> Future for GatedFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Inner(inner) => Poll::Ready(ready!(inner.as_mut().poll(context))),
            Answer::Refused(response) => {
                let response = response.take().expect("a finished future is not polled again");
                Poll::Ready(Ok(*response))
            }
        }
    }
}
