//! Who a client is, and how often it may come.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cutover_core::{admission::HostId, model::Digest};
use http::{HeaderMap, StatusCode, header};

use super::answer::Problem;
use crate::settings::TokenHolder;

/// Above so many hosts, those that have been quiet are forgotten.
const RATES_KEPT: usize = 10_000;

/// The DNS names in the certificate of a connection's client; empty without mTLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerNames(pub(crate) Option<std::sync::Arc<[String]>>);

/// Refuses a request that may not act for a host. `None`: for any host, as lists need.
pub(crate) fn authorize(
    tokens: &[(TokenHolder, Digest)],
    peer: &PeerNames,
    headers: &HeaderMap,
    host: Option<&HostId>,
) -> Result<(), Problem> {
    let is_for = |holder: &TokenHolder| match (holder, host) {
        (TokenHolder::Anybody, _) => true,
        (TokenHolder::Host(holder), Some(host)) => holder == host,
        (TokenHolder::Host(_), None) => false,
    };
    if let (Some(names), Some(host)) = (&peer.0, host)
        && !names.iter().any(|name| name == host.as_str())
    {
        let detail = format!("The client certificate is not that of host `{host}`.");
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong-certificate", detail));
    }
    if tokens.is_empty() {
        // A certificate speaks for the hosts it names, and a list of all hosts is none of theirs.
        return match (&peer.0, host) {
            (Some(_), None) => {
                let detail = "A client certificate is for its own hosts only.";
                Err(Problem::new(StatusCode::FORBIDDEN, "wrong-certificate", detail))
            }
            (Some(_), Some(_)) | (None, _) => Ok(()),
        };
    }
    let missing = || Problem::new(StatusCode::UNAUTHORIZED, "token-missing", "A bearer token is needed.");
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return Err(missing()) };
    let value = value.as_bytes();
    let Some((scheme, token)) = value.split_at_checked(7) else { return Err(missing()) };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(missing());
    }
    // Hashes of tokens nobody can choose: comparing them in variable time tells nothing about a token.
    let digest = Digest::of(token.trim_ascii());
    let mut known = tokens.iter().filter(|(_, known)| *known == digest).peekable();
    if known.peek().is_none() {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "token-unknown", "This token is not known."));
    }
    if known.any(|(holder, _)| is_for(holder)) {
        Ok(())
    } else {
        let detail = host.map_or("This token is for one host only.".to_owned(), |host| {
            format!("This token is not for host `{host}`.")
        });
        Err(Problem::new(StatusCode::FORBIDDEN, "wrong-token", detail))
    }
}

/// How often each host may come: a token bucket for each.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<HostId, Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Rates {
    /// Takes one from the host's bucket; else says how long until there is one.
    pub(crate) fn take(&self, host: &HostId, per_s: u32, burst: u32, now: Instant) -> Result<(), Duration> {
        if per_s == 0 {
            return Ok(());
        }
        let (rate, full) = (f64::from(per_s), f64::from(burst.max(1)));
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= RATES_KEPT {
            let quiet = Duration::from_secs_f64(full / rate);
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < quiet);
        }
        let bucket = buckets.entry(host.clone()).or_insert(Bucket { level: full, at: now });
        let filled = now.duration_since(bucket.at).as_secs_f64() * rate;
        (bucket.level, bucket.at) = ((bucket.level + filled).min(full), now);
        if bucket.level < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.level) / rate));
        }
        bucket.level -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn bearer(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(text).unwrap())])
    }

    #[test]
    fn token_opens_its_own_host_only() {
        let of = |text: &str| Digest::of(text.as_bytes());
        let tokens = [(TokenHolder::Host("a".parse().unwrap()), of("ta")), (TokenHolder::Anybody, of("tx"))];
        let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let ask = |text: &str, host: Option<&HostId>| {
            authorize(&tokens, &PeerNames::default(), &bearer(text), host)
                .map_err(|problem| problem.status.as_u16())
        };
        assert_eq!((ask("Bearer ta", Some(&a)), ask("bearer  ta ", Some(&a))), (Ok(()), Ok(())));
        assert_eq!((ask("Bearer ta", Some(&b)), ask("Bearer ta", None)), (Err(403), Err(403)));
        assert_eq!((ask("Bearer tx", Some(&b)), ask("Bearer tx", None)), (Ok(()), Ok(())));
        assert_eq!(
            (ask("Bearer no", Some(&a)), ask("Basic ta", Some(&a)), ask("", Some(&a))),
            (Err(401), Err(401), Err(401))
        );
    }

    #[test]
    fn certificate_opens_the_hosts_it_names() {
        let peer = PeerNames(Some(vec!["a".to_owned()].into()));
        let ask = |host: &str| authorize(&[], &peer, &HeaderMap::new(), Some(&host.parse().unwrap())).is_ok();
        assert!(ask("a") && !ask("b"));
        let list =
            |tokens: &[_], peer: &PeerNames| authorize(tokens, peer, &bearer("Bearer t"), None).is_ok();
        assert!(!list(&[], &peer) && list(&[], &PeerNames::default()));
        assert!(list(&[(TokenHolder::Anybody, Digest::of(b"t"))], &peer), "a token may be for all of them");
    }

    #[test]
    fn burst_is_free_and_then_the_rate_holds() {
        let (rates, host, now) = (Rates::default(), "a".parse().unwrap(), Instant::now());
        assert!((0..3).all(|_| rates.take(&host, 2, 3, now).is_ok()));
        assert_eq!(rates.take(&host, 2, 3, now), Err(Duration::from_millis(500)));
        assert!(rates.take(&"b".parse().unwrap(), 2, 3, now).is_ok());
        assert!(rates.take(&host, 2, 3, now + Duration::from_millis(501)).is_ok());
        assert!(rates.take(&host, 0, 0, now).is_ok());
    }
}
