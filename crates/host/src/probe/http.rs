//! The integration probe: a GET that must be answered as the operator wrote.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use cutover_core::causes::chain;

use super::{Finding, HttpSettings, Probe, ProbeContext};

/// The pause between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How much of an answer is read.
const BODY_MAX: u64 = 1 << 20;

pub(super) struct Http {
    name: String,
    settings: HttpSettings,
    timeout: Duration,
}

impl Http {
    pub(super) fn new(settings: HttpSettings, timeout: Duration) -> Self {
        let name = settings.name.clone().unwrap_or_else(|| settings.url.clone());
        Self { name, settings, timeout }
    }

    /// One request.
    fn ask(&self, client: &reqwest::blocking::Client) -> Result<u16, String> {
        let answer = client.get(&self.settings.url).send().map_err(|error| chain(&error))?;
        let status = answer.status().as_u16();
        if status != self.settings.status {
            return Err(format!("status {status} instead of {}", self.settings.status));
        }
        if let Some(text) = &self.settings.contains {
            let mut body = Vec::new();
            answer.take(BODY_MAX).read_to_end(&mut body).map_err(|error| chain(&error))?;
            let found = text.is_empty() || body.windows(text.len()).any(|window| window == text.as_bytes());
            if !found {
                return Err(format!("the answer of {} bytes does not contain `{text}`", body.len()));
            }
        }
        Ok(status)
    }
}

impl Probe for Http {
    fn name(&self) -> &str {
        &self.name
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn run(&self, _: &ProbeContext) -> Result<Finding, String> {
        let started = Instant::now();
        // A little less than we have, so that the answer tells what went wrong instead of "timeout".
        let deadline = started + self.timeout * 9 / 10;
        let mut tries = 0;
        loop {
            tries += 1;
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let asked = Instant::now();
            let client = super::http_client(self.settings.unix_socket.as_deref(), left)?;
            match self.ask(&client) {
                Ok(status) => {
                    let detail =
                        format!("status {status} in {} ms, try {tries}", asked.elapsed().as_millis());
                    return Ok(Finding { detail, latency: None });
                }
                Err(reason) if Instant::now() + TRY_AGAIN >= deadline => {
                    return Err(format!("{} after {tries} tries: {reason}", self.settings.url));
                }
                Err(_) => std::thread::sleep(TRY_AGAIN),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{LONG, Server, answer, context},
        *,
    };

    fn settings(url: String) -> HttpSettings {
        HttpSettings { name: None, url, unix_socket: None, status: 200, contains: None, timeout_s: None }
    }

    fn probe(settings: HttpSettings, timeout: Duration) -> Result<Finding, String> {
        Http::new(settings, timeout).run(&context())
    }

    #[test]
    fn answer_as_expected_passes_at_once_and_is_asked_for_once() {
        let server = Server::start(|_| answer(200, "all is well"));
        let mut expected = settings(server.url("/health"));
        expected.contains = Some("is well".to_owned());
        let finding = probe(expected, LONG).expect("it passes");
        assert!(
            finding.detail.contains("status 200") && finding.detail.contains("try 1"),
            "{}",
            finding.detail
        );
        assert_eq!(server.asked(), 1);
    }

    #[test]
    fn service_that_needs_a_moment_is_asked_again() {
        let server = Server::start(|number| answer(if number < 2 { 503 } else { 200 }, ""));
        let finding = probe(settings(server.url("/")), LONG).expect("it passes in the end");
        assert!(finding.detail.contains("try 3"), "{}", finding.detail);
    }

    #[test]
    fn wrong_status_wrong_text_and_redirect_fail_with_what_was_wrong() {
        let server = Server::start(|_| answer(500, "oh"));
        let short = Duration::from_millis(300);
        let error = probe(settings(server.url("/")), short).expect_err("500");
        assert!(error.contains("status 500 instead of 200"), "{error}");
        let server = Server::start(|_| answer(200, "oh"));
        let mut expected = settings(server.url("/"));
        expected.contains = Some("all is well".to_owned());
        let error = probe(expected, short).expect_err("another text");
        assert!(error.contains("all is well"), "{error}");
        let server = Server::start(|_| answer(302, ""));
        let mut expected = settings(server.url("/"));
        expected.status = 302;
        probe(expected, LONG).expect("a redirect is an answer and not followed");
    }

    // E13
    #[test]
    fn service_that_does_not_answer_fails_when_the_time_is_over() {
        let server = Server::start(|_| {
            std::thread::sleep(Duration::from_secs(3600));
            String::new()
        });
        let error = probe(settings(server.url("/")), Duration::from_millis(300)).expect_err("silence");
        assert!(error.contains("1 tries"), "{error}");
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port");
        probe(settings(format!("http://{closed}/")), Duration::from_millis(300)).expect_err("nobody listens");
        probe(settings("no url".to_owned()), Duration::from_millis(300)).expect_err("no URL");
    }

    #[test]
    fn unix_socket_is_asked_as_well() {
        use std::io::Write as _;

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer(200, "").as_bytes());
        });
        let mut expected = settings("http://localhost/".to_owned());
        expected.unix_socket = Some(path);
        probe(expected, LONG).expect("an answer");
    }
}
