//! What we need to know of a certificate, read once and strictly.

use const_oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_CODE_SIGNING};
use cutover_core::model::Instant;
use der::{Decode, Encode, asn1::BitString};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_cert::{
    certificate::Version,
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage},
    time::Time,
};

use super::{
    error::{TrustError, printable},
    scheme::{self, Key},
};

/// A certificate with an accepted key and an accepted signature algorithm, in its only encoding. Who issued it is not
/// checked here.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// Its bytes.
    pub(crate) der: CertificateDer<'static>,
    /// Its parsed form.
    pub(crate) parsed: x509_cert::Certificate,
    /// Whom it names, escaped for display.
    pub(crate) subject: String,
    /// Who issued it, escaped for display.
    pub(crate) issuer: String,
    /// Its first valid second.
    pub(crate) not_before: Instant,
    /// Its last valid second.
    pub(crate) not_after: Instant,
    /// The kind of its key.
    pub(crate) key: Key,
    /// The DER of its key, by which keys are told apart.
    pub(crate) key_der: Vec<u8>,
    /// Whether it may issue certificates.
    pub(crate) is_authority: bool,
    /// How many authorities may follow below it.
    pub(crate) path_length: Option<u8>,
    key_usage: Option<KeyUsage>,
    extended_key_usage: Option<ExtendedKeyUsage>,
}

impl Certificate {
    /// Reads a certificate from its DER.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, TrustError> {
        let unreadable = |error: der::Error| TrustError::Certificate {
            subject: "?".to_owned(),
            reason: error.to_string(),
        };
        let parsed = x509_cert::Certificate::from_der(der).map_err(unreadable)?;
        if parsed.to_der().map_err(unreadable)? != der {
            return Err(TrustError::Certificate {
                subject: printable(&parsed.tbs_certificate().subject().to_string()),
                reason: "it is not in its only encoding".to_owned(),
            });
        }
        Self::from_parsed(parsed, der)
    }

    /// As [`Certificate::parse`], for a certificate that was already parsed from `der`.
    pub(crate) fn from_parsed(parsed: x509_cert::Certificate, der: &[u8]) -> Result<Self, TrustError> {
        let tbs = parsed.tbs_certificate();
        let subject = printable(&tbs.subject().to_string());
        let issuer = printable(&tbs.issuer().to_string());
        let refuse = |reason: String| TrustError::Certificate { subject: subject.clone(), reason };
        let malformed = |error: der::Error| refuse(error.to_string());
        if tbs.version() != Version::V3 {
            return Err(refuse("it is not of version 3".to_owned()));
        }
        scheme::check_certificate_signature(parsed.signature_algorithm()).map_err(|algorithm| {
            TrustError::WeakAlgorithm { used_by: format!("the certificate of `{subject}`"), algorithm }
        })?;
        let key = Key::of(tbs.subject_public_key_info())
            .map_err(|key| TrustError::WeakKey { subject: subject.clone(), key })?;
        let time = |time: Time| {
            i64::try_from(time.to_unix_duration().as_secs())
                .ok()
                .and_then(Instant::from_unix)
                .ok_or_else(|| refuse("its validity is out of range".to_owned()))
        };
        let (not_before, not_after) = (time(tbs.validity().not_before)?, time(tbs.validity().not_after)?);
        let constraints =
            tbs.get_extension::<BasicConstraints>().map_err(malformed)?.map(|(_, constraints)| constraints);
        let key_usage = tbs.get_extension::<KeyUsage>().map_err(malformed)?;
        let extended_key_usage = tbs.get_extension::<ExtendedKeyUsage>().map_err(malformed)?;
        let key_der = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            not_before,
            not_after,
            key,
            key_der,
            is_authority: constraints.as_ref().is_some_and(|constraints| constraints.ca),
            path_length: constraints.and_then(|constraints| constraints.path_len_constraint),
            key_usage: key_usage.map(|(_, usage)| usage),
            extended_key_usage: extended_key_usage.map(|(_, usage)| usage),
            subject,
            issuer,
            parsed,
        })
    }

    /// Whether the certificate is valid at `now`. The time of signing does not matter.
    pub(crate) fn check_time(&self, now: Instant) -> Result<(), TrustError> {
        let subject = || self.subject.clone();
        if now < self.not_before {
            return Err(TrustError::NotYetValid { subject: subject(), not_before: self.not_before, now });
        }
        if now > self.not_after {
            return Err(TrustError::Expired { subject: subject(), not_after: self.not_after, now });
        }
        Ok(())
    }

    /// Whether the certificate was made to sign code. Both usages must be there: an absent extension allows nothing.
    pub(crate) fn check_signs_code(&self) -> Result<(), TrustError> {
        let lacks = |missing| TrustError::WrongUsage { subject: self.subject.clone(), missing };
        if self.is_authority {
            return Err(lacks("the role of an end entity (it is an authority)"));
        }
        if !self.key_usage.is_some_and(|usage| usage.digital_signature()) {
            return Err(lacks("the key usage digitalSignature"));
        }
        let purposes = self.extended_key_usage.as_ref().map(|usage| usage.0.as_slice());
        // anyExtendedKeyUsage is no substitute: it would turn every such certificate into a release key.
        match purposes {
            Some(purposes) if purposes.contains(&ID_KP_CODE_SIGNING) => Ok(()),
            Some(purposes) if purposes.contains(&ANY_EXTENDED_KEY_USAGE) => {
                Err(lacks("the extended key usage codeSigning (anyExtendedKeyUsage does not do)"))
            }
            Some(_) | None => Err(lacks("the extended key usage codeSigning")),
        }
    }

    /// Whether the certificate may issue others.
    pub(crate) fn check_authority(&self) -> Result<(), TrustError> {
        let lacks = |missing| TrustError::WrongUsage { subject: self.subject.clone(), missing };
        if !self.is_authority {
            return Err(lacks("the role of an authority (basicConstraints CA)"));
        }
        if self.key_usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(lacks("the key usage keyCertSign"));
        }
        Ok(())
    }

    /// Whether its key made `signature` over `message`, by any accepted algorithm.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &BitString) -> bool {
        let Ok(key) = EndEntityCert::try_from(&self.der) else { return false };
        let Some(signature) = signature.as_bytes() else { return false };
        scheme::CHAIN_ALGORITHMS
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
    }

    /// Whether it issued `other`, by name and by key.
    pub(crate) fn has_issued(&self, other: &Self) -> bool {
        let tbs = other.parsed.tbs_certificate();
        self.parsed.tbs_certificate().subject() == tbs.issuer()
            && tbs.to_der().is_ok_and(|signed| self.has_signed(&signed, other.parsed.signature()))
    }

    /// Whether it names itself as its issuer.
    pub(crate) fn is_self_issued(&self) -> bool {
        let tbs = self.parsed.tbs_certificate();
        tbs.subject() == tbs.issuer()
    }

    /// Its serial number in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        let bytes = self.parsed.tbs_certificate().serial_number().as_bytes();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
