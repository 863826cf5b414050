//! TLS and client certificates, and sockets of the file system.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::world::{World, request};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// One request under TLS; the status, or why there is none.
fn ask(
    world: &World,
    authority: &Authority,
    client: Option<(&str, &Authority)>,
    bytes: &[u8],
) -> Result<u16, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((name, issuer)) => {
            let (certificate, key) = issuer.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    let mut connection =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut socket = world.connect();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(bytes).map_err(|error| error.to_string())?;
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(text)
}

fn write(path: &Path, text: &str) -> Option<std::path::PathBuf> {
    std::fs::write(path, text).unwrap();
    Some(path.to_owned())
}

#[test]
fn certificate_of_a_host_opens_that_host_and_none_opens_nothing() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = servers.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let world = World::with(|settings| {
        let directory = settings.root.parent().unwrap().to_owned();
        settings.tls.certificate = write(&directory.join("server.pem"), &certificate.pem());
        settings.tls.key = write(&directory.join("server.key"), &key.serialize_pem());
        settings.tls.client_ca = write(&directory.join("clients.pem"), &clients.pem);
    });
    let head = world.head();
    let headers = [("X-Code-Commit", &*head), ("Content-Length", "1"), ("Connection", "close")];
    let put = |key: &str| request("PUT", &format!("/v1/episodes/{key}"), &headers, b"x");
    assert_eq!(ask(&world, &servers, Some(("host-1", &clients)), &put("host-1/e")), Ok(201));
    assert_eq!(ask(&world, &servers, Some(("host-1", &clients)), &put("host-2/e")), Ok(403));
    assert!(ask(&world, &servers, None, &put("host-1/f")).is_err());
    assert!(ask(&world, &servers, Some(("host-1", &strangers)), &put("host-1/f")).is_err());
    assert_eq!(world.rows().len(), 1);
}

#[test]
fn socket_of_the_file_system_takes_uploads_and_replaces_a_dead_one() {
    let mut place = None;
    let world = World::with(|settings| {
        let path = settings.root.parent().unwrap().join("gate.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        settings.listen.push(format!("unix:{}", path.display()));
        place = Some(path);
    });
    let head = world.head();
    let mut stream = UnixStream::connect(place.unwrap()).unwrap();
    let headers = [("X-Code-Commit", &*head), ("Content-Length", "1"), ("Connection", "close")];
    stream.write_all(&request("PUT", "/v1/episodes/h/e", &headers, b"x")).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}
