//! Makes what a small team needs to sign releases: a root authority, code-signing certificates, revocation lists.
//!
//! Keys are ECDSA P-256. Time is an argument; key material and serial numbers come from the cryptographic library's
//! random source. Whoever has a PKI of their own needs none of this.

use std::time::Duration;

use cutover_core::model::Instant;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use zeroize::Zeroizing;

/// How far certificates are dated back, so that a host whose clock is a little behind accepts them.
const BACKDATED: Duration = Duration::from_secs(600);

/// Why a certificate or list was not made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The random source failed.
    #[error("the random source failed")]
    Random,
    /// A time before 1970 or after 9999, or an empty validity.
    #[error("the validity is out of range")]
    Validity,
    /// The serial number of a certificate to be revoked cannot be read.
    #[error("`{0}` is not a certificate's serial number in hexadecimal")]
    Serial(String),
    /// The certificate or key could not be made or read.
    #[error("failed to {action}: {source}")]
    Certificate {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: rcgen::Error,
    },
}

/// From when until when a certificate or a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: Instant,
    /// The last second.
    pub not_after: Instant,
}

impl Validity {
    /// From ten minutes before `now` for `days` days; `None` when that is out of range or empty.
    pub fn days_from(now: Instant, days: u32) -> Option<Self> {
        let start = now.unix().checked_sub(BACKDATED.as_secs() as i64)?;
        let end = now.unix().checked_add(i64::from(days) * 86_400)?;
        (days > 0)
            .then_some(Self { not_before: Instant::from_unix(start)?, not_after: Instant::from_unix(end)? })
    }
}

/// A certificate authority with its key.
pub struct Authority {
    certificate_pem: String,
    /// What follows the certificates it issues: nothing for a root, which the anchor has.
    chain_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_pem: Zeroizing<String>,
}

/// A certificate and its key.
pub struct Issued {
    /// The certificate in PEM, followed by the authorities between it and the root.
    pub certificate_pem: String,
    /// The private key, PKCS#8 in PEM.
    pub key_pem: Zeroizing<String>,
}

impl Authority {
    /// Makes a root authority that may have one level of authorities below it.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn root(organization: &str, validity: Validity) -> Result<Self, PkiError> {
        let mut params = params(organization, "Release Root", validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = params.self_signed(&key).map_err(failed("make the root certificate"))?;
        Ok(Self::new(&certificate, String::new(), params, key))
    }

    /// Makes an authority below this one, which issues only signers' certificates.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn subordinate(&self, organization: &str, name: &str, validity: Validity) -> Result<Self, PkiError> {
        let mut params = params(organization, name, validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed("make the certificate"))?;
        let chain = certificate.pem() + &self.chain_pem;
        Ok(Self::new(&certificate, chain, params, key))
    }

    /// Takes up a root authority that [`Authority::root`] made.
    ///
    /// # Errors
    /// [`PkiError::Certificate`].
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)
            .map_err(failed("read the authority's certificate"))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            chain_pem: String::new(),
            issuer,
            key_pem: Zeroizing::new(key_pem.to_owned()),
        })
    }

    fn new(certificate: &Certificate, chain_pem: String, params: CertificateParams, key: KeyPair) -> Self {
        Self {
            key_pem: Zeroizing::new(key.serialize_pem()),
            issuer: Issuer::new(params, key),
            certificate_pem: certificate.pem(),
            chain_pem,
        }
    }

    /// Its certificate in PEM; a root's is a trust anchor.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key, PKCS#8 in PEM.
    pub fn key_pem(&self) -> &Zeroizing<String> {
        &self.key_pem
    }

    /// Issues a certificate for signing releases, with a new key.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn issue_signer(
        &self,
        organization: &str,
        name: &str,
        validity: Validity,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = self.certify_signer(organization, name, validity, &key)?;
        Ok(Issued { certificate_pem: certificate, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// Issues a certificate for signing releases for a key that is elsewhere, such as in a token.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn certify_signer(
        &self,
        organization: &str,
        name: &str,
        validity: Validity,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<String, PkiError> {
        let mut params = params(organization, name, validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed("make the certificate"))?;
        Ok(certificate.pem() + &self.chain_pem)
    }

    /// Makes a revocation list, in PEM. `number` must grow from list to list; `serials` are the revoked certificates', in
    /// hexadecimal as [`crate::SignedBy::serial`] shows them.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn revocation_list(
        &self,
        serials: &[&str],
        number: u64,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let revoked_certs = serials
            .iter()
            .map(|serial| {
                Ok(RevokedCertParams {
                    serial_number: serial_number(serial)?,
                    revocation_time: rcgen::date_time_ymd(1970, 1, 1) + since_epoch(validity.not_before)?,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect::<Result<_, PkiError>>()?;
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(1970, 1, 1) + since_epoch(validity.not_before)?,
            next_update: rcgen::date_time_ymd(1970, 1, 1) + since_epoch(validity.not_after)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(failed("make the revocation list"))
    }
}

fn failed(action: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { action, source }
}

fn params(organization: &str, name: &str, validity: Validity) -> Result<CertificateParams, PkiError> {
    if validity.not_before >= validity.not_after {
        return Err(PkiError::Validity);
    }
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(validity.not_before)?;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(validity.not_after)?;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// 126 random bits, positive and never shorter than 16 bytes (RFC 5280, section 4.1.2.2 allows 20).
fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PkiError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn serial_number(text: &str) -> Result<SerialNumber, PkiError> {
    let wrong = || PkiError::Serial(text.chars().take(64).flat_map(char::escape_default).collect());
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 40 {
        return Err(wrong());
    }
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    Ok(SerialNumber::from_slice(&bytes))
}

/// Seconds since 1970, to be added to the library's own type for points in time, which cannot be named here.
fn since_epoch(at: Instant) -> Result<Duration, PkiError> {
    u64::try_from(at.unix()).map(Duration::from_secs).map_err(|_| PkiError::Validity)
}
