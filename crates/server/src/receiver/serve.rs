//! Sockets, connections and TLS: from a listening socket to requests, and an orderly end.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tower_service::Service as _;

use super::{
    access::PeerNames,
    app::{App, Live, routes},
    socket::{Socket, Stream},
};
use crate::{
    gate::{Gate, ReleaseTrust},
    ingest::{Bucket, Clock, OpenError, Store},
    settings::{GateSettings, Listen, SettingError, TlsSettings},
};

/// Read at a time from a connection at most, so that a thousand uploads take megabytes and not gigabytes.
const READ_BUFFER: usize = 256 << 10;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the first set of commits is waited for before sockets are opened.
const FIRST_SET: Duration = Duration::from_secs(2);

/// Why a receiver does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A socket cannot be opened.
    #[error("failed to listen on `{place}`")]
    Listen {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Files of `[gate.tls]` cannot be used.
    #[error("failed to use `{}` for TLS: {reason}", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No thread or task can be started.
    #[error("failed to start")]
    Io(#[from] io::Error),
}

/// What a receiver is given by the program around it.
#[derive(Clone, Debug)]
pub struct Ports {
    /// The wall clock.
    pub clock: Clock,
    /// What `gate.storage.url` names; none: episodes are kept in the directory.
    pub bucket: Option<Arc<dyn Bucket>>,
    /// What releases are verified by where `gate.releases.trust` demands it.
    pub trust: Option<ReleaseTrust>,
}

impl Ports {
    /// Nothing but the clock.
    pub fn new(clock: Clock) -> Self {
        Self { clock, bucket: None, trust: None }
    }
}

/// A receiver that listens. Dropping it without [`Receiver::stop`] cuts its connections.
pub struct Receiver {
    app: Arc<App>,
    acceptor: Arc<RwLock<Option<TlsAcceptor>>>,
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<Stop>,
    accepting: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// Take no more, finish what is under way.
    Drain,
    /// Cut.
    Now,
}

/// Waits until it has come so far, or nobody can stop us any more.
async fn reached(stop: &mut watch::Receiver<Stop>, so_far: Stop) {
    let _ = stop.wait_for(|stop| *stop >= so_far).await;
}

impl Receiver {
    /// Opens the directory, mends what an earlier process left, opens the sockets and answers from then on.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn start(settings: GateSettings, ports: Ports) -> Result<Self, StartError> {
        let Ports { clock, bucket, trust } = ports;
        if settings.storage.url.is_some() != bucket.is_some() {
            let what = "the bucket is not the one that the settings name";
            return Err(SettingError::new("gate.storage.url", what).into());
        }
        let rules = settings.rules_trusting(trust.as_ref())?;
        let places = settings.sockets()?;
        let acceptor = Arc::new(RwLock::new(tls(&settings.tls)?));
        let root = settings.root.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let store = Store::open(&root, bucket, clock)?;
            let index = root.display().to_string();
            let done = store.reconcile(clock).map_err(|source| OpenError::Io { path: index, source })?;
            if done != crate::ingest::Reconciled::default() {
                tracing::warn!(
                    rows = done.rows,
                    unfinished = done.parts,
                    "mended what an earlier receiver left"
                );
            }
            Ok::<_, OpenError>(store)
        });
        let store = opened.await.map_err(io::Error::other)??;
        let connections = Arc::new(Semaphore::new(settings.limits.connections.max(1)));
        let gate = Arc::new(Gate::start(rules)?);
        let first = Arc::clone(&gate);
        let known =
            tokio::task::spawn_blocking(move || first.wait_for_first(FIRST_SET)).await.unwrap_or_default();
        if !known {
            tracing::warn!("no accepted commits are known yet: uploads are answered with 503 until they are");
        }
        let app = Arc::new(App::new(gate, store, Live::new(settings)?));
        let (stop, stopped) = watch::channel(Stop::No);
        let (addresses, accepting) = (Vec::new(), JoinSet::new());
        let mut receiver = Self { app, acceptor, addresses, stop, accepting };
        let router = routes(Arc::clone(&receiver.app));
        for place in places {
            let server = Server {
                app: Arc::clone(&receiver.app),
                router: router.clone(),
                acceptor: Arc::clone(&receiver.acceptor),
                connections: Arc::clone(&connections),
                stopped: stopped.clone(),
            };
            receiver.listen(place, server).await?;
        }
        Ok(receiver)
    }

    async fn listen(&mut self, place: Listen, server: Server) -> Result<(), StartError> {
        match place {
            Listen::Tcp(address) => {
                let failed = |source| StartError::Listen { place: format!("tcp:{address}"), source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                self.addresses.push(listener.local_addr().map_err(failed)?);
                self.accepting.spawn(server.accept(Listener::Tcp(listener)));
            }
            Listen::Unix(path) => {
                let listener = unix_listener(&path).map_err(|source| StartError::Listen {
                    place: format!("unix:{}", path.display()),
                    source,
                })?;
                self.accepting.spawn(server.accept(Listener::Unix(listener)));
            }
        }
        Ok(())
    }

    /// The addresses of the TCP sockets, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes new settings, and what releases are verified by from now on, whose revocation lists may be newer ones. Connections
    /// stay; sockets and the directory are those of the start.
    ///
    /// # Errors
    /// [`StartError`]; then everything stays as it was.
    pub fn set(&self, settings: GateSettings, trust: Option<&ReleaseTrust>) -> Result<(), StartError> {
        let rules = settings.rules_trusting(trust)?;
        let acceptor = tls(&settings.tls)?;
        settings.sockets()?;
        let live = Live::new(settings)?;
        let before = self.app.live();
        let fixed = |live: &Live| {
            let GateSettings { listen, root, storage, .. } = &live.settings;
            (listen.clone(), root.clone(), storage.clone())
        };
        if fixed(&before) != fixed(&live) {
            tracing::warn!("`gate.listen`, `gate.root` and `gate.storage` are changed by a restart only");
        }
        self.app.gate.set_rules(rules);
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        self.app.set_live(live);
        Ok(())
    }

    /// Stops: no new connection, uploads under way are finished and answered, as long as they may take.
    pub async fn stop(mut self) {
        let longest = Duration::from_secs(self.app.live().settings.limits.drain_timeout_s);
        self.app.stopping.store(true, Ordering::Relaxed);
        // Without a receiver, everything has ended already.
        let _ = self.stop.send(Stop::Drain);
        let drained = async { while self.accepting.join_next().await.is_some() {} };
        if tokio::time::timeout(longest, drained).await.is_err() {
            tracing::warn!("uploads are cut: they took longer than `gate.limits.drain_timeout_s`");
            let _ = self.stop.send(Stop::Now);
            while self.accepting.join_next().await.is_some() {}
        }
        let store = Arc::clone(&self.app.store);
        // It ends with the last commit; the thread has its own say if it panicked.
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

fn unix_listener(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    // A socket that nobody listens on any more is in the way.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        crate::ingest::remove(path)?;
    }
    UnixListener::bind(path)
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are one small write each.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

enum Accepted {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

/// What the connections of one socket share.
#[derive(Clone)]
struct Server {
    app: Arc<App>,
    router: Router,
    acceptor: Arc<RwLock<Option<TlsAcceptor>>>,
    connections: Arc<Semaphore>,
    stopped: watch::Receiver<Stop>,
}

impl Server {
    /// Accepts until it is stopped, then waits for its connections.
    async fn accept(self, listener: Listener) {
        let mut open = JoinSet::new();
        let mut stopped = self.stopped.clone();
        loop {
            let permit = Arc::clone(&self.connections).acquire_owned();
            let accepted = async {
                let permit = permit.await;
                (permit, listener.accept().await)
            };
            tokio::select! {
                biased;
                () = reached(&mut stopped, Stop::Drain) => break,
                Some(_) = open.join_next(), if !open.is_empty() => {}
                (permit, accepted) = accepted => match (permit, accepted) {
                    (Ok(permit), Ok(accepted)) => drop(open.spawn(self.clone().connection(accepted, permit))),
                    (Ok(_), Err(error)) => {
                        // Out of descriptors, or a client that went away: the next one may fare better.
                        tracing::warn!("failed to accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    (Err(_), _) => break,
                }
            }
        }
        drop(listener);
        while open.join_next().await.is_some() {}
    }

    async fn connection(mut self, accepted: Accepted, _permit: OwnedSemaphorePermit) {
        let mut cut = self.stopped.clone();
        self.app.metrics.connections.inc();
        tokio::select! {
            () = self.serve(accepted) => {}
            () = reached(&mut cut, Stop::Now) => {}
        }
        self.app.metrics.connections.dec();
    }

    async fn serve(&mut self, accepted: Accepted) {
        let acceptor = self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut peer = PeerNames::default();
        let stream = match (accepted, acceptor) {
            (Accepted::Unix(stream), _) => Stream::Unix(stream),
            (Accepted::Tcp(stream), None) => Stream::Tcp(stream),
            (Accepted::Tcp(stream), Some(acceptor)) => {
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                    return;
                };
                peer = names_of(&stream);
                Stream::Tls(Box::new(stream))
            }
        };
        let socket = Socket::new(stream);
        let wire = socket.wire();
        let router = self.router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&wire));
            request.extensions_mut().insert(peer.clone());
            answer(router.clone(), request)
        });
        let head_timeout = Duration::from_secs(self.app.live().settings.limits.head_timeout_s.max(1));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let mut draining = false;
        loop {
            tokio::select! {
                // A client that breaks off is its own business.
                _ = connection.as_mut() => return,
                () = reached(&mut self.stopped, Stop::Drain), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

fn answer(mut router: Router, request: Request<Incoming>) -> Answering {
    Box::pin(async move { router.call(request.map(Body::new)).await })
}

/// What `[gate.tls]` asks for; `None`: plain HTTP.
fn tls(settings: &TlsSettings) -> Result<Option<TlsAcceptor>, StartError> {
    let (certificate, key) = match (&settings.certificate, &settings.key) {
        (None, None) if settings.client_ca.is_none() => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err(SettingError::new("gate.tls", "name both `certificate` and `key`").into()),
    };
    let bad = |path: &Path| {
        let path = path.to_owned();
        move |error: &dyn std::fmt::Display| StartError::Tls { path: path.clone(), reason: error.to_string() }
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key)(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(certificate)(&error))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| bad(path)(&error))?;
            }
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(path)(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| bad(certificate)(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let bad = |reason: String| StartError::Tls { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() { Err(bad("it holds no certificate".to_owned())) } else { Ok(found) }
}

/// The DNS names of a client's certificate; `None` when none was asked for.
fn names_of(stream: &tokio_rustls::server::TlsStream<TcpStream>) -> PeerNames {
    let Some([first, ..]) = stream.get_ref().1.peer_certificates() else { return PeerNames(None) };
    let names = webpki::EndEntityCert::try_from(first)
        .map(|certificate| certificate.valid_dns_names().map(str::to_owned).collect::<Vec<_>>())
        .unwrap_or_default();
    PeerNames(Some(names.into()))
}
