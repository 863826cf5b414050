//! HTTP requests as Cutover makes them: redirects followed by hand, credentials only for the source they belong to, heads
//! as plain values.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cutover_core::{
    causes::chain,
    fetch::answer::{Head, Refusal},
    model::Instant,
};
use reqwest::{
    Client, Response, Url,
    header::{self, HeaderMap, HeaderName},
};

use super::{
    FetchError, SourceSettings,
    base::{Bucket, RelativePath},
    settings::{Token, read_small},
};

/// The most redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// The largest certificate or key file.
const PEM_MAX: u64 = 4 << 20;

/// Makes requests.
pub(super) struct Http {
    /// For the source: shows our client certificate when asked.
    own: Client,
    /// For whatever a source redirects to.
    foreign: Client,
    token: Option<Token>,
    /// Longest time without an answer's head.
    stall: Duration,
}

/// A request that a source answers.
#[derive(Clone)]
pub(super) struct Request {
    /// What messages say; where nothing signs it, what is asked for as well.
    pub(super) url: Url,
    /// Sent to the source and wherever it redirects to; nothing secret.
    pub(super) headers: Vec<(HeaderName, String)>,
    /// Who signs the address of which path, in place of a token.
    pub(super) signed: Option<(Arc<dyn Bucket>, RelativePath)>,
}

/// An answer's head, and its body still to be read.
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) response: Response,
}

impl Http {
    pub(super) fn new(settings: &SourceSettings, token: Option<Token>) -> Result<Self, FetchError> {
        let identity = identity(settings)?;
        let has_identity = identity.is_some();
        let own = client(settings, identity)?;
        let foreign = if has_identity { client(settings, None)? } else { own.clone() };
        let stall = Duration::from_secs(u64::from(settings.stall_timeout_s.max(1)));
        Ok(Self { own, foreign, token, stall })
    }

    /// The longest time without progress.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Asks, and follows redirects. Every status that is no redirect is an answer.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, FetchError> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(request, &url).await?;
            if !is_redirect(response.status().as_u16()) {
                return Ok(Answer { head: head(&response), response });
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let refused = |to: &str, reason| FetchError::Redirect {
                url: url.to_string(),
                to: to.chars().take(200).collect(),
                reason,
            };
            let Some(location) = location else { return Err(refused("", "which is nowhere")) };
            let target = url.join(location).map_err(|_| refused(location, "which is no URL"))?;
            may_follow(&url, &target).map_err(|reason| refused(target.as_str(), reason))?;
            url = target;
        }
        Err(FetchError::Redirect {
            url: request.url.to_string(),
            to: url.to_string(),
            reason: "after too many other redirects",
        })
    }

    async fn ask(&self, request: &Request, url: &Url) -> Result<Response, FetchError> {
        let at_home = same_origin(&request.url, url);
        // The signature stays out of messages: `url` is what they say.
        let asked = match &request.signed {
            Some((bucket, path)) if request.url == *url => signed(bucket.as_ref(), path, url).await?,
            _ => url.clone(),
        };
        let mut builder = if at_home { &self.own } else { &self.foreign }.get(asked);
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            // A remembered validator that is no header value is not worth a request's failure.
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        }
        headers.insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
        if let Some(token) = self.token.as_ref().filter(|_| at_home) {
            let mut value: header::HeaderValue = token.header().parse().expect("checked when it was made");
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        builder = builder.headers(headers);
        let failed = |reason: String| FetchError::Transport { url: url.to_string(), reason };
        match tokio::time::timeout(self.stall, builder.send()).await {
            Ok(answer) => answer.map_err(|error| failed(chain(&error.without_url()))),
            Err(_) => Err(FetchError::Stalled { url: url.to_string(), bytes_min: 1, window: self.stall }),
        }
    }

    /// A small answer as a whole; anything longer than `limit` is refused.
    pub(super) async fn body(&self, url: &str, answer: Answer, limit: u64) -> Result<Vec<u8>, FetchError> {
        let mut reader = BodyReader::new(answer, url.to_owned(), limit, self.stall);
        let mut body = Vec::new();
        while let Some(piece) = reader.next().await? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

/// Reads a body with a cap on its length and a watch on its progress.
pub(super) struct BodyReader {
    response: Response,
    url: String,
    left: u64,
    limit: u64,
    window: Duration,
    deadline: tokio::time::Instant,
    in_window: u64,
}

/// This much has to come in each window.
const PROGRESS_MIN: u64 = 1024;

impl BodyReader {
    /// At most `limit` bytes may come, and at least [`PROGRESS_MIN`] in each `window`.
    pub(super) fn new(answer: Answer, url: String, limit: u64, window: Duration) -> Self {
        let deadline = tokio::time::Instant::now() + window;
        Self { response: answer.response, url, left: limit, limit, window, deadline, in_window: 0 }
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let piece = match tokio::time::timeout_at(self.deadline, self.response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => {
                let reason = chain(&error.without_url());
                return Err(FetchError::Transport { url: self.url.clone(), reason });
            }
            Err(_) => {
                return Err(FetchError::Stalled {
                    url: self.url.clone(),
                    bytes_min: PROGRESS_MIN,
                    window: self.window,
                });
            }
        };
        let length = piece.len() as u64;
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| FetchError::TooLong { url: self.url.clone(), limit: self.limit })?;
        self.in_window += length;
        if self.in_window >= PROGRESS_MIN {
            self.in_window = 0;
            self.deadline = tokio::time::Instant::now() + self.window;
        }
        Ok(Some(piece))
    }

    /// We were the ones who waited.
    pub(super) fn waited(&mut self, wait: Duration) {
        self.deadline += wait;
    }
}

/// The address of an object with a signature, by which it is asked for.
async fn signed(bucket: &dyn Bucket, path: &RelativePath, url: &Url) -> Result<Url, FetchError> {
    let failed = |source| FetchError::Bucket { place: url.to_string(), source };
    let signed = bucket.sign(path.as_str()).await.map_err(failed)?;
    Url::parse(&signed).map_err(|error| failed(Box::new(error)))
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Same scheme, host and port (RFC 6454).
fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether a redirect from `from` to `to` may be followed: to https, or from http to http; never to an address that only
/// means something to this machine or its link, unless the source lies there too.
fn may_follow(from: &Url, to: &Url) -> Result<(), &'static str> {
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err("which is not encrypted"),
        _ => return Err("which is neither http nor https"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err("which carries credentials");
    }
    if is_local(to) && !is_local(from) {
        return Err("which is an address of this machine or its link");
    }
    Ok(())
}

/// Loopback, link-local and unspecified addresses: cloud metadata services and other things that trust whoever is near.
pub(super) fn is_local(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return true };
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback() || address.is_link_local() || address.is_unspecified()
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
        }
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

fn head(response: &Response) -> Head {
    let text =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Head {
        status: response.status().as_u16(),
        content_length: text("content-length").and_then(|text| text.parse().ok()),
        content_range: text("content-range"),
        content_encoding: text("content-encoding"),
        etag: text("etag"),
        last_modified: text("last-modified"),
        retry_after: text("retry-after"),
        rate_remaining: text("x-ratelimit-remaining"),
        rate_reset: text("x-ratelimit-reset"),
    }
}

/// The refusal of an answer, or nothing when its status is 200, 206, 304 or 416.
pub(super) fn refused(url: &Url, head: &Head, now: Instant) -> Result<(), FetchError> {
    let refusal = cutover_core::fetch::answer::judge_status(head, now);
    refusal.map_err(|source: Refusal| FetchError::Answer { url: url.to_string(), source })
}

fn client(settings: &SourceSettings, identity: Option<reqwest::Identity>) -> Result<Client, FetchError> {
    let mut builder = Client::builder()
        .user_agent(concat!("cutover/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(Duration::from_secs(u64::from(settings.connect_timeout_s.max(1))))
        .pool_max_idle_per_host(settings.parallel.max(1));
    if let Some(proxy) = &settings.proxy {
        builder = builder.no_proxy();
        if proxy != "none" {
            let proxy = reqwest::Proxy::all(proxy).map_err(|error| setting("proxy", chain(&error)))?;
            builder = builder.proxy(proxy);
        }
    }
    if let Some(path) = &settings.ca_file {
        let certificates = reqwest::Certificate::from_pem_bundle(&pem("ca_file", path)?)
            .map_err(|error| setting("ca_file", chain(&error)))?;
        if certificates.is_empty() {
            return Err(setting("ca_file", format!("`{}` holds no certificate", path.display())));
        }
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(identity) = identity {
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| setting("urls", format!("no HTTP client: {}", chain(&error))))
}

fn identity(settings: &SourceSettings) -> Result<Option<reqwest::Identity>, FetchError> {
    let (certificate, key) = match (&settings.client_certificate, &settings.client_key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(setting("client_key", "it belongs to the certificate".to_owned())),
        (None, Some(_)) => {
            return Err(setting("client_certificate", "it belongs to the key".to_owned()));
        }
    };
    let mut both = pem("client_certificate", certificate)?;
    both.push(b'\n');
    both.extend(pem("client_key", key)?);
    let identity = reqwest::Identity::from_pem(&both);
    identity.map(Some).map_err(|error| setting("client_certificate", chain(&error)))
}

fn pem(key: &'static str, path: &Path) -> Result<Vec<u8>, FetchError> {
    read_small(path, PEM_MAX).map_err(|error| setting(key, format!("`{}`: {error}", path.display())))
}

fn setting(key: &'static str, reason: String) -> FetchError {
    FetchError::Setting { key, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_lead_to_https_or_from_http_to_http_only() {
        let follows = |from: &str, to: &str| may_follow(&url(from), &url(to)).is_ok();
        assert!(follows("https://a.example/x", "https://b.example/y"));
        assert!(follows("http://a.example/x", "https://b.example/y"));
        assert!(follows("http://a.example/x", "http://b.example/y"));
        assert!(!follows("https://a.example/x", "http://a.example/x"));
        for to in ["file:///etc/passwd", "ftp://a.example/x", "data:text/plain,x"] {
            assert!(!follows("http://a.example/x", to), "{to}");
        }
        assert!(!follows("https://a.example/x", "https://user:secret@b.example/"));
    }

    #[test]
    fn redirects_to_this_machine_or_its_link_are_refused() {
        for to in [
            "https://169.254.169.254/latest/meta-data",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://localhost/",
            "https://x.localhost./",
            "https://0.0.0.0/",
            "https://2852039166/",
        ] {
            assert!(may_follow(&url("https://a.example/x"), &url(to)).is_err(), "{to}");
            assert!(may_follow(&url("https://127.0.0.1:1/x"), &url(to)).is_ok(), "{to}");
        }
    }

    #[test]
    fn another_scheme_host_or_port_is_another_origin() {
        let home = url("https://a.example/x");
        assert!(same_origin(&home, &url("https://a.example:443/y")));
        for other in ["http://a.example/x", "https://b.example/x", "https://a.example:444/x"] {
            assert!(!same_origin(&home, &url(other)), "{other}");
        }
    }
}
