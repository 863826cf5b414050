//! Private authorities and client certificates.

use std::{path::PathBuf, sync::Arc};

use cutover_host::fetch::{FetchError, SourceSettings};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

use crate::{
    server::{Reply, Server},
    world::{World, wanted},
};

const CONTENT: &[u8] = b"over TLS";

/// An authority of our own, a server's certificate and a client's.
struct Pki {
    directory: tempfile::TempDir,
    root: CertificateDer<'static>,
    server: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root_key = KeyPair::generate().unwrap();
        let mut root_params = CertificateParams::new([]).unwrap();
        root_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root_params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = root_params.self_signed(&root_key).unwrap();
        let issuer = Issuer::new(root_params, root_key);

        let leaf = |name: &str, usage| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = leaf("client.example", ExtendedKeyUsagePurpose::ClientAuth);
        let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        write("ca.pem", root.pem());
        write("client.pem", client.pem());
        write("client.key", client_key.serialize_pem());
        let server_key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        Self { root: root.der().clone(), server: (server.der().clone(), server_key), directory }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.path().join(name))
    }

    /// Asks clients for a certificate and serves those that have none as well.
    fn config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let (certificate, key) = &self.server;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key.clone_key())
            .unwrap()
    }
}

#[test]
fn server_of_a_private_authority_is_believed_only_with_its_certificate() {
    let pki = Pki::new();
    let server = Server::start_tls(pki.config(), |_| Reply::ok(CONTENT));
    let world = World::with(|settings| settings.retries = 0);
    let outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert!(matches!(outcome.error(), FetchError::Transport { .. }), "{}", outcome.error());
    assert!(outcome.error().to_string().contains("certificate"), "{}", outcome.error());
    assert!(server.asked().is_empty());

    let world = World::with(|settings| settings.ca_file = pki.path("ca.pem"));
    let outcome = world.fetch(&server.url(), &[wanted("a", CONTENT)]);
    assert_eq!(outcome.content[&0], CONTENT);
    assert_eq!(server.asked()[0].header("x-certificate"), Some("none"));
}

#[test]
fn client_certificate_is_shown_to_the_source_and_not_where_it_redirects() {
    let pki = Pki::new();
    let elsewhere = Server::start_tls(pki.config(), |_| Reply::ok(CONTENT));
    let target = format!("{}moved", elsewhere.url());
    let home = Server::start_tls(pki.config(), move |_| Reply::status(307).with("location", &target));
    let world = World::with(|settings| {
        settings.ca_file = pki.path("ca.pem");
        settings.client_certificate = pki.path("client.pem");
        settings.client_key = pki.path("client.key");
    });
    let outcome = world.fetch(&home.url(), &[wanted("a", CONTENT)]);
    assert_eq!(outcome.content[&0], CONTENT);
    assert_eq!(home.asked()[0].header("x-certificate"), Some("shown"));
    assert_eq!(elsewhere.asked()[0].header("x-certificate"), Some("none"));
}

#[test]
fn redirect_from_https_to_http_is_refused() {
    let pki = Pki::new();
    let plain = Server::start(|_| Reply::ok(CONTENT));
    let target = plain.url();
    let home = Server::start_tls(pki.config(), move |_| Reply::status(302).with("location", &target));
    let world = World::with(|settings| settings.ca_file = pki.path("ca.pem"));
    let outcome = world.fetch(&home.url(), &[wanted("a", CONTENT)]);
    assert!(outcome.error().to_string().contains("not encrypted"), "{}", outcome.error());
    assert!(plain.asked().is_empty());
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    let open = |change: &dyn Fn(&mut SourceSettings)| {
        let world = World::with(|settings| change(settings));
        let bases = ["https://127.0.0.1:1".to_owned()];
        match cutover_host::fetch::Fetcher::new(&bases, &world.settings, None, world.ports()) {
            Ok(_) => panic!("it was taken"),
            Err(error) => error.to_string(),
        }
    };
    assert!(open(&|settings| settings.ca_file = pki.path("missing.pem")).contains("source.ca_file"));
    assert!(open(&|settings| settings.ca_file = pki.path("client.key")).contains("no certificate"));
    assert!(
        open(&|settings| settings.client_certificate = pki.path("client.pem")).contains("source.client_key")
    );
    assert!(
        open(&|settings| settings.client_key = pki.path("client.key")).contains("source.client_certificate")
    );
}
