//! One PUT after the other over one connection.
//!
//! HTTP/1.1, made by hand over hyper: a larger body waits for `100 Continue` (RFC 9110, 10.1.1), and an answer is read whenever
//! it comes, also when the receiver refuses early, closes, and our sending fails. Redirects are not followed, so credentials go
//! to one place only. Why not `reqwest`: docs/decisions/0041-uploads-read-the-answer-first.md.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cutover_core::{
    admission::{ATTESTATION_HEADER, CommitHash, EpisodeKey},
    causes::chain,
    model::Digest,
    ship::Answer,
};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::{Instant, Sleep},
};

use super::{ShipError, settings::ShipSettings};
use crate::fetch::{FetchError, Limiter, Timer, Token};

/// Bodies up to this are sent at once: asking first would cost more than sending.
const ASK_FIRST_FROM: u64 = 64 << 10;
/// How long `100 Continue` is waited for: not every server knows it.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// The most that is read of an answer's body.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The most that is read of a file at once.
const PIECE_MAX: u64 = 256 << 10;

/// Where uploads go, and who we are.
pub(super) struct Target {
    base: Url,
    host: String,
    port: u16,
    tls: Option<(tokio_rustls::TlsConnector, ServerName<'static>)>,
    token: Option<Token>,
    commit_header: HeaderName,
    connect_timeout: Duration,
    stall: Duration,
    answer: Duration,
    limiter: Limiter,
    timer: Arc<dyn Timer>,
}

/// Why there was no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) reason: String,
    /// Whether the receiver was reached at all.
    pub(super) reached: bool,
}

/// What is sent.
pub(super) struct Upload<'a> {
    pub(super) key: &'a EpisodeKey,
    pub(super) sha256: Digest,
    pub(super) size_bytes: u64,
    pub(super) commit: Option<&'a CommitHash>,
    /// The value of `X-Code-Attestation`, for hosts that sign.
    pub(super) attestation: Option<String>,
}

impl Target {
    /// # Errors
    /// [`ShipError::Setting`].
    pub(super) fn new(settings: &ShipSettings, timer: Arc<dyn Timer>) -> Result<Self, ShipError> {
        let setting = |key, reason: String| ShipError::Setting { key, reason };
        let text =
            settings.url.as_deref().ok_or_else(|| setting("url", "it names the receiver".to_owned()))?;
        let base: Url =
            text.parse().map_err(|error| setting("url", format!("`{text}` is no URL: {error}")))?;
        let plain = base.username().is_empty() && base.password().is_none();
        if !matches!(base.scheme(), "http" | "https")
            || !plain
            || base.query().is_some()
            || base.fragment().is_some()
        {
            return Err(setting("url", "it has the form https://HOST[:PORT][/PREFIX]".to_owned()));
        }
        let host = base.host_str().unwrap_or_default().to_owned();
        let port = base.port_or_known_default().unwrap_or(443);
        let token = settings.token_file.as_deref().map(|path| Token::read(path, "token_file")).transpose();
        let token = token.map_err(|error| match error {
            FetchError::Setting { key, reason } => setting(key, reason),
            other => setting("token_file", chain(&other)),
        })?;
        if token.is_some() && base.scheme() == "http" && !is_this_machine(&host) {
            let reason = "a token is sent over https only, or to this machine".to_owned();
            return Err(setting("token_file", reason));
        }
        let tls = (base.scheme() == "https").then(|| tls(settings, &host)).transpose()?;
        let commit_header = settings
            .commit_header
            .parse()
            .map_err(|_| setting("commit_header", "it is the name of a header".to_owned()))?;
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds.max(1)));
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            base,
            port,
            tls,
            token,
            commit_header,
            connect_timeout: seconds(settings.connect_timeout_s),
            stall: seconds(settings.stall_timeout_s),
            answer: seconds(settings.answer_timeout_s),
            limiter: Limiter::new(settings.bytes_per_s),
            timer,
        })
    }

    fn request(&self, upload: &Upload<'_>, body: FileBody) -> Request<FileBody> {
        let EpisodeKey { host, episode } = upload.key;
        let prefix = self.base.path().trim_end_matches('/');
        let mut request = Request::new(body);
        *request.method_mut() = hyper::Method::PUT;
        let path = format!("{prefix}/v1/episodes/{host}/{episode}");
        *request.uri_mut() = path.parse().expect("ids need no encoding");
        let headers = request.headers_mut();
        let mut set = |name: HeaderName, value: String| {
            headers.insert(name, HeaderValue::try_from(value).expect("checked before, or of our making"));
        };
        let authority = match self.base.port() {
            Some(port) => format!("{}:{port}", self.base.host_str().unwrap_or_default()),
            None => self.base.host_str().unwrap_or_default().to_owned(),
        };
        set(header::HOST, authority);
        set(header::USER_AGENT, concat!("cutover/", env!("CARGO_PKG_VERSION")).to_owned());
        set(header::ACCEPT, "application/json, application/problem+json".to_owned());
        set(header::CONTENT_TYPE, "application/zstd".to_owned());
        set(header::CONTENT_LENGTH, upload.size_bytes.to_string());
        set(HeaderName::from_static("content-digest"), content_digest(upload.sha256));
        if let Some(commit) = upload.commit {
            set(self.commit_header.clone(), commit.to_string());
        }
        if let Some(attestation) = &upload.attestation {
            set(ATTESTATION_HEADER.parse().expect("it is a header's name"), attestation.clone());
        }
        if upload.size_bytes >= ASK_FIRST_FROM {
            set(header::EXPECT, "100-continue".to_owned());
        }
        if let Some(token) = &self.token {
            set(header::AUTHORIZATION, token.header());
        }
        if let Some(value) = request.headers_mut().get_mut(header::AUTHORIZATION) {
            value.set_sensitive(true);
        }
        request
    }
}

/// RFC 9530: the digest of the content, as a byte sequence of structured fields.
fn content_digest(digest: Digest) -> String {
    use base64ct::Encoding as _;
    format!("sha-256=:{}:", base64ct::Base64::encode_string(digest.as_bytes()))
}

fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn tls(
    settings: &ShipSettings,
    host: &str,
) -> Result<(tokio_rustls::TlsConnector, ServerName<'static>), ShipError> {
    let setting = |key, reason: String| ShipError::Setting { key, reason };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setting("url", chain(&error)))?;
    let pem = |key, path: &Path| {
        crate::fetch::read_small(path, 4 << 20)
            .map_err(|error| setting(key, format!("`{}`: {error}", path.display())))
    };
    let certificates = |key, path: &Path| {
        CertificateDer::pem_slice_iter(&pem(key, path)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| setting(key, format!("`{}`: {error}", path.display())))
            .and_then(|found| match found.is_empty() {
                true => Err(setting(key, format!("`{}` holds no certificate", path.display()))),
                false => Ok(found),
            })
    };
    let builder = match &settings.ca_file {
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates("ca_file", path)? {
                roots.add(certificate).map_err(|error| setting("ca_file", chain(&error)))?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            use rustls_platform_verifier::BuilderVerifierExt as _;
            builder.with_platform_verifier().map_err(|error| setting("ca_file", chain(&error)))?
        }
    };
    let mut config = match (&settings.client_certificate, &settings.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain_of_ours = certificates("client_certificate", certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&pem("client_key", key)?)
                .map_err(|error| setting("client_key", error.to_string()))?;
            builder
                .with_client_auth_cert(chain_of_ours, key)
                .map_err(|error| setting("client_certificate", chain(&error)))?
        }
        (Some(_), None) => return Err(setting("client_key", "it belongs to the certificate".to_owned())),
        (None, Some(_)) => return Err(setting("client_certificate", "it belongs to the key".to_owned())),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(|error| setting("url", error.to_string()))?;
    Ok((tokio_rustls::TlsConnector::from(Arc::new(config)), name))
}

/// Makes uploads, one at a time. Lives on one thread with a runtime of its own, which file reads may block.
pub(super) struct Uploader {
    target: Arc<Target>,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<FileBody>,
    task: JoinHandle<()>,
    sent: Arc<AtomicU64>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Uploader {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None }
    }

    /// Sends a file and reads the answer.
    ///
    /// A connection that was used before may have been closed by the receiver in the meantime: when it brings no answer,
    /// a new one is tried at once.
    pub(super) async fn put(&mut self, upload: &Upload<'_>, file: &File) -> Result<Answer, NoAnswer> {
        let again = || {
            let copy = file.try_clone();
            copy.map_err(|error| NoAnswer {
                reason: format!("failed to read the episode: {error}"),
                reached: true,
            })
        };
        if let Some(connection) = self.connection.take().filter(|connection| connection.sender.is_ready()) {
            match self.put_over(connection, upload, again()?).await {
                Err(failure) if failure.reached => {
                    tracing::debug!(failure.reason, "the old connection is of no use")
                }
                ended => return ended,
            }
        }
        let connection = self.connect().await?;
        self.put_over(connection, upload, again()?).await
    }

    async fn connect(&self) -> Result<Connection, NoAnswer> {
        let target = &self.target;
        let failed = |what: &str, error: &dyn std::error::Error| NoAnswer {
            reason: format!("{what}: {}", chain(error)),
            reached: false,
        };
        let late = || NoAnswer {
            reason: format!("no connection within {} s", target.connect_timeout.as_secs()),
            reached: false,
        };
        let connecting = async {
            let stream = TcpStream::connect((target.host.as_str(), target.port))
                .await
                .map_err(|error| failed("no connection", &error))?;
            // Heads and the end of a body are not to wait for the acknowledgement of what is before them.
            let _ = stream.set_nodelay(true);
            let sent = Arc::new(AtomicU64::new(0));
            match &target.tls {
                None => self.handshake(stream, sent).await,
                Some((connector, name)) => {
                    let stream = connector
                        .connect(name.clone(), stream)
                        .await
                        .map_err(|error| failed("no TLS connection", &error))?;
                    self.handshake(stream, sent).await
                }
            }
        };
        tokio::time::timeout(target.connect_timeout, connecting).await.map_err(|_| late())?
    }

    async fn handshake<S>(&self, stream: S, sent: Arc<AtomicU64>) -> Result<Connection, NoAnswer>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Patient { stream, broken: false, sent: Arc::clone(&sent) });
        let made = hyper::client::conn::http1::handshake(io).await;
        let (sender, connection) =
            made.map_err(|error| NoAnswer { reason: chain(&error), reached: false })?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "the connection ended");
            }
        });
        Ok(Connection { sender, task, sent })
    }

    async fn put_over(
        &mut self,
        mut connection: Connection,
        upload: &Upload<'_>,
        mut file: File,
    ) -> Result<Answer, NoAnswer> {
        let no = |reason: String| NoAnswer { reason, reached: true };
        io::Seek::rewind(&mut file).map_err(|error| no(format!("failed to read the episode: {error}")))?;
        let (open, opened) = watch::channel(upload.size_bytes < ASK_FIRST_FROM);
        let open = Arc::new(open);
        let finished = Arc::new(AtomicU64::new(u64::from(upload.size_bytes == 0)));
        let body =
            FileBody::new(file, upload.size_bytes, opened, Arc::clone(&self.target), Arc::clone(&finished));
        let mut request = self.target.request(upload, body);
        let informed = Arc::clone(&open);
        hyper::ext::on_informational(&mut request, move |answer| {
            if answer.status() == hyper::StatusCode::CONTINUE {
                informed.send_replace(true);
            }
        });
        let sent = Arc::clone(&connection.sent);
        let answered = connection.sender.send_request(request);
        let response = self.watch(answered, &open, &sent, &finished).await?;
        let all_sent = finished.load(Ordering::Relaxed) == 1;
        let reading = read_answer(response);
        let (answer, whole) = tokio::time::timeout(self.target.stall, reading)
            .await
            .map_err(|_| no("the receiver's answer does not end".to_owned()))?
            .map_err(|error| no(format!("the receiver's answer was cut: {}", chain(&error))))?;
        // What was not sent to its end, or not read to its end, cannot carry another request.
        if all_sent && whole {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// Waits for the head of the answer as long as bytes go out, and then for the set time.
    async fn watch(
        &self,
        answered: impl Future<Output = hyper::Result<Response<Incoming>>>,
        open: &watch::Sender<bool>,
        sent: &AtomicU64,
        finished: &AtomicU64,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let Target { stall, answer, .. } = *self.target;
        let no = |reason: String| NoAnswer { reason, reached: true };
        let mut answered = std::pin::pin!(answered);
        let started = Instant::now();
        let (mut last, mut since, mut was_finished) = (sent.load(Ordering::Relaxed), started, false);
        loop {
            let step = Duration::from_millis(if *open.borrow() { 500 } else { 50 });
            if let Ok(ended) = tokio::time::timeout(step, &mut answered).await {
                return ended.map_err(|error| no(format!("no answer: {}", chain(&error))));
            }
            if started.elapsed() >= CONTINUE_WAIT {
                open.send_if_modified(|open| !std::mem::replace(open, true));
            }
            let (now, is_finished) = (sent.load(Ordering::Relaxed), finished.load(Ordering::Relaxed) == 1);
            if now != last || is_finished != was_finished {
                (last, since, was_finished) = (now, Instant::now(), is_finished);
            }
            let limit = if is_finished { answer } else { stall };
            if since.elapsed() >= limit {
                let what = if is_finished { "no answer" } else { "the receiver takes no bytes" };
                return Err(no(format!("{what} for {} s", limit.as_secs())));
            }
        }
    }
}

/// The answer, and whether it was read to its end.
async fn read_answer(response: Response<Incoming>) -> hyper::Result<(Answer, bool)> {
    use http_body_util::BodyExt as _;
    let status = response.status().as_u16();
    let after = response.headers().get(header::RETRY_AFTER);
    let retry_after = after.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (mut incoming, mut body) = (response.into_body(), Vec::new());
    while let Some(frame) = incoming.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            // Whoever refuses early may close before all of its page has gone out; the status is what counts.
            Err(_) if !(200..300).contains(&status) => {
                return Ok((Answer { status, retry_after, body }, false));
            }
            Err(error) => return Err(error),
        };
        if let Ok(data) = frame.into_data() {
            let room = ANSWER_BYTES_MAX - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                return Ok((Answer { status, retry_after, body }, false));
            }
        }
    }
    Ok((Answer { status, retry_after, body }, true))
}

/// A file as a body: it starts when it may, and flows as fast as the limit allows.
struct FileBody {
    file: File,
    left: u64,
    piece: u64,
    opened: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_open: bool,
    pause: Option<Pin<Box<Sleep>>>,
    ready: Option<Bytes>,
    target: Arc<Target>,
    finished: Arc<AtomicU64>,
}

impl FileBody {
    fn new(
        file: File,
        size_bytes: u64,
        mut opened: watch::Receiver<bool>,
        target: Arc<Target>,
        finished: Arc<AtomicU64>,
    ) -> Self {
        let wait = async move {
            // Without anybody to open it, it is not needed any more.
            let _ = opened.wait_for(|open| *open).await;
        };
        // Small pieces under a low limit, so that each of them counts as progress.
        let piece =
            target.limiter.bytes_per_s().map_or(PIECE_MAX, |rate| (rate / 8).clamp(1 << 10, PIECE_MAX));
        Self {
            file,
            left: size_bytes,
            piece,
            opened: Box::pin(wait),
            is_open: false,
            pause: None,
            ready: None,
            target,
            finished,
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if !this.is_open {
            ready!(this.opened.as_mut().poll(context));
            this.is_open = true;
        }
        if this.left == 0 {
            return Poll::Ready(None);
        }
        if this.ready.is_none() {
            let mut piece = vec![0; this.left.min(this.piece) as usize];
            this.file.read_exact(&mut piece)?;
            let wait = this.target.limiter.wait(this.target.timer.as_ref(), piece.len() as u64);
            this.pause = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep(wait)));
            this.ready = Some(Bytes::from(piece));
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        let piece = this.ready.take().expect("it was just read");
        this.left -= piece.len() as u64;
        if this.left == 0 {
            this.finished.store(1, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A stream whose failing writes wait for what there is to read: a receiver that refuses early answers first and closes then.
struct Patient<S> {
    stream: S,
    broken: bool,
    sent: Arc<AtomicU64>,
}

impl<S> Patient<S> {
    fn bear<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match result {
            Poll::Ready(Err(error))
                if matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted) =>
            {
                self.broken = true;
                // Reading wakes us: there is an answer, or the end.
                Poll::Pending
            }
            other => other,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        if let Poll::Ready(Ok(written)) = &written {
            self.sent.fetch_add(*written as u64, Ordering::Relaxed);
        }
        self.bear(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Pending;
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bear(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_a_byte_sequence_of_structured_fields() {
        // RFC 9530, appendix D: `{"hello": "world"}` and a newline.
        let digest = Digest::of(b"{\"hello\": \"world\"}\n");
        assert_eq!(content_digest(digest), "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:");
    }

    #[test]
    fn tokens_go_over_tls_or_stay_on_this_machine() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "canary").unwrap();
        let timer = Arc::new(crate::fetch::RealTimer::start());
        let target = |url: &str| {
            let settings = ShipSettings {
                url: Some(url.to_owned()),
                token_file: Some(file.clone()),
                ..ShipSettings::default()
            };
            Target::new(&settings, timer.clone()).map(drop)
        };
        for url in ["https://gate.example", "http://127.0.0.1:8", "http://[::1]:8/x", "http://localhost"] {
            assert!(target(url).is_ok(), "{url}");
        }
        for url in ["http://gate.example", "ftp://x", "https://u:p@x", "https://x/?q", "https://x/#f", "x"] {
            let error = target(url).unwrap_err().to_string();
            assert!(!error.contains("canary") && error.contains("ship."), "{error}");
        }
    }
}
