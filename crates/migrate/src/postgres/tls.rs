//! How connections are made: a Unix socket, TCP, or TLS over it, verified as libpq's `sslmode` says.

use std::{path::Path, sync::Arc};

use postgres::{Client, Config, config::SslMode};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::TlsWish;
use crate::error::Error;

/// What of the server's certificate is verified; as libpq's `sslmode` (PostgreSQL manual, "SSL Support").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Nothing: `prefer` and `require`. Nobody can listen, but somebody can stand in between.
    #[default]
    Nothing,
    /// That it leads to a root: `verify-ca`.
    Chain,
    /// That, and that it names the host: `verify-full`.
    ChainAndName,
}

/// The transport of all connections of one engine.
#[derive(Clone)]
pub(crate) struct Tls(MakeRustlsConnect);

impl Tls {
    /// Prepares it; reads the certificates that are named.
    pub(crate) fn new(wish: &TlsWish) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let lenient = |chain| Arc::new(Lenient { provider: Arc::clone(&provider), chain });
        let verifier: Arc<dyn ServerCertVerifier> = match wish.verify {
            Verify::Nothing => lenient(None),
            Verify::Chain => lenient(Some(roots(wish.roots.as_deref(), &provider)?)),
            Verify::ChainAndName => roots(wish.roots.as_deref(), &provider)?,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("sslmode", &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&wish.certificate, &wish.key) {
            (Some(certificate), Some(key)) => {
                let key = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|error| wrong(&format!("sslkey `{}`", key.display()), &error))?;
                builder
                    .with_client_auth_cert(certificates("sslcert", certificate)?, key)
                    .map_err(|error| wrong("sslcert", &error))?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(Error::Url(
                    "`sslcert` and `sslkey` belong together: a URL with one of them".to_owned(),
                ));
            }
        };
        Ok(Self(MakeRustlsConnect::new(config)))
    }

    /// Connects.
    pub(crate) fn connect(&self, config: &Config) -> Result<Client, postgres::Error> {
        match config.get_ssl_mode() {
            SslMode::Disable => config.connect(postgres::NoTls),
            _ => config.connect(self.0.clone()),
        }
    }
}

impl Tls {
    /// Asks the server to end what a connection of this configuration is doing.
    pub(crate) fn cancel(
        &self,
        config: &Config,
        token: &postgres::CancelToken,
    ) -> Result<(), postgres::Error> {
        match config.get_ssl_mode() {
            SslMode::Disable => token.cancel_query(postgres::NoTls),
            _ => token.cancel_query(self.0.clone()),
        }
    }
}

/// Who verifies that a chain leads to these roots, or to those of the system.
fn roots(path: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let Some(path) = path else {
        let system = rustls_platform_verifier::Verifier::new(Arc::clone(provider));
        return Ok(Arc::new(system.map_err(|error| wrong("the certificates of the system", &error))?));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("sslrootcert", path)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(&format!("sslrootcert `{}`", path.display()), &error))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    verifier
        .map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
        .map_err(|error| wrong(&format!("sslrootcert `{}`", path.display()), &error))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let what = format!("{what} `{}`", path.display());
    let found = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&what, &error))?;
    if found.is_empty() {
        return Err(Error::Url(format!("{what} holds no certificate: a URL that names it")));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io { what: "read", path: path.to_owned(), source })
}

fn wrong(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Url(format!("{what} ({error}): a URL with that"))
}

/// Verifies less than everything: the chain but not the name, or neither. Never takes a handshake that the certificate's key did
/// not sign.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<dyn ServerCertVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, between, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
