//! Making signatures: the same profile that is verified, for any [`Signer`].

use cms::{
    cert::CertificateChoices,
    content_info::CmsVersion,
    signed_data::{
        CertificateSet, EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos,
    },
};
use const_oid::db::rfc5911::{ID_CONTENT_TYPE, ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNING_TIME};
use cutover_core::model::Instant;
use der::{
    DateTime, Encode,
    asn1::{Any, GeneralizedTime, ObjectIdentifier, OctetString, SetOfVec, UtcTime},
};
use x509_cert::attr::{Attribute, Attributes};

use super::{
    certificate::Certificate,
    error::{ProfileError, TrustError},
    profile,
    scheme::signature_identifier,
    verify::{check_distinct, check_signature},
};
use crate::{
    limits::Limits,
    signer::{Signer, SignerError},
};

/// Why a manifest was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Nobody to sign with.
    #[error("no signer was given")]
    NoSigner,
    /// The signer failed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The certificate could not verify what the key signed: they do not belong together.
    #[error("the key does not belong to the certificate of `{subject}`")]
    KeyMismatch {
        /// The certificate.
        subject: String,
    },
    /// A verifier would refuse the signature.
    #[error("nobody would accept this signature")]
    Refused(#[from] TrustError),
}

/// Signs `manifest` with every signer in `signers` at the time `now`; returns the CMS in DER.
///
/// What no verifier accepts is not made: certificates that are not for code signing or not valid at `now`, authorities
/// that are on no path to the signer, one key twice, a key that does not fit its certificate.
///
/// # Errors
/// See [`SignError`].
pub fn sign_manifest(manifest: &[u8], signers: &[&dyn Signer], now: Instant) -> Result<Vec<u8>, SignError> {
    if signers.is_empty() {
        return Err(SignError::NoSigner);
    }
    let mut signed_data = empty();
    for signer in signers {
        check_signer(*signer, now)?;
        add(&mut signed_data, manifest, *signer, now)?;
    }
    finish(manifest, &signed_data, &Limits::default())
}

/// Adds `signer` to a signature over the same manifest, so that several people can sign one after the other.
///
/// # Errors
/// See [`SignError`]; also when the present signature is not one over `manifest`.
pub fn cosign_manifest(
    manifest: &[u8],
    signature: &[u8],
    signer: &dyn Signer,
    now: Instant,
    limits: &Limits,
) -> Result<Vec<u8>, SignError> {
    let mut signed_data = profile::read(signature, limits)?.signed_data;
    check_signer(signer, now)?;
    add(&mut signed_data, manifest, signer, now)?;
    finish(manifest, &signed_data, limits)
}

fn check_signer(signer: &dyn Signer, now: Instant) -> Result<(), SignError> {
    let leaf = signer.chain().leaf();
    leaf.check_signs_code()?;
    leaf.check_time(now)?;
    // One path leads through all authorities: whoever verifies refuses the signature for one that is beside it.
    let mut left: Vec<&Certificate> = signer.chain().certificates().skip(1).collect();
    let mut below = leaf;
    while !left.is_empty() {
        let Some(at) = left.iter().position(|authority| authority.has_issued(below)) else {
            let unused = ProfileError::CertificateUnused(left[0].subject.clone());
            return Err(TrustError::from(unused).into());
        };
        below = left.remove(at);
        below.check_authority()?;
        below.check_time(now)?;
    }
    Ok(())
}

/// A SignedData without signers.
pub(super) fn empty() -> SignedData {
    SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::new(),
        encap_content_info: EncapsulatedContentInfo { econtent_type: ID_DATA, econtent: None },
        certificates: None,
        crls: None,
        signer_infos: SignerInfos(SetOfVec::new()),
    }
}

/// Adds one signer with its certificates.
pub(super) fn add(
    signed_data: &mut SignedData,
    manifest: &[u8],
    signer: &dyn Signer,
    now: Instant,
) -> Result<(), SignError> {
    let encoding = |error| SignError::Refused(profile::encoding(error));
    let leaf = signer.chain().leaf();
    let digest = leaf.key.digest();
    let signed_attrs = attributes(digest.digest(manifest).as_ref(), now).map_err(encoding)?;
    let signature = signer.sign(&signed_attrs.to_der().map_err(encoding)?)?;
    let info = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(profile::identifier(&leaf.parsed)),
        digest_alg: digest.identifier(),
        signed_attrs: Some(signed_attrs),
        signature_algorithm: signature_identifier(leaf.key, digest),
        signature: OctetString::new(signature).map_err(encoding)?,
        unsigned_attrs: None,
    };
    // A DER set holds each element once.
    let insert =
        |present: bool, insert: &mut dyn FnMut() -> der::Result<()>| if present { Ok(()) } else { insert() };
    let algorithms = &mut signed_data.digest_algorithms;
    insert(algorithms.iter().any(|known| *known == info.digest_alg), &mut || {
        algorithms.insert(info.digest_alg.clone())
    })
    .map_err(encoding)?;
    let certificates = &mut signed_data.certificates.get_or_insert_with(|| CertificateSet(SetOfVec::new())).0;
    for certificate in signer.chain().certificates() {
        let choice = CertificateChoices::Certificate(certificate.parsed.clone());
        insert(certificates.iter().any(|known| *known == choice), &mut || {
            certificates.insert(choice.clone())
        })
        .map_err(encoding)?;
    }
    signed_data.signer_infos.0.insert(info).map_err(encoding)
}

/// Encodes, and checks what a verifier will check without an anchor.
fn finish(manifest: &[u8], signed_data: &SignedData, limits: &Limits) -> Result<Vec<u8>, SignError> {
    let bytes = profile::to_bytes(signed_data)?;
    let written = profile::read(&bytes, limits)?;
    let leaves = written
        .signers
        .iter()
        .map(|signer| {
            let (parsed, der) = &written.certificates[signer.certificate];
            let leaf = Certificate::from_parsed(parsed.clone(), der)?;
            check_signature(manifest, signer, &leaf).map_err(|error| match error {
                TrustError::SignatureWrong { subject } => SignError::KeyMismatch { subject },
                other => SignError::Refused(other),
            })?;
            Ok(leaf)
        })
        .collect::<Result<Vec<_>, SignError>>()?;
    check_distinct(&leaves.iter().collect::<Vec<_>>())?;
    Ok(bytes)
}

/// The signed attributes: contentType, messageDigest and signingTime (RFC 5652, section 11).
fn attributes(digest: &[u8], now: Instant) -> der::Result<Attributes> {
    let attribute = |oid: ObjectIdentifier, value: Any| -> der::Result<Attribute> {
        let mut values = SetOfVec::new();
        values.insert(value)?;
        Ok(Attribute { oid, values })
    };
    let seconds = u64::try_from(now.unix()).map_err(|_| der::ErrorKind::DateTime)?;
    let time = DateTime::from_unix_duration(std::time::Duration::from_secs(seconds))?;
    // UTCTime until 2049, GeneralizedTime from then on (RFC 5652, section 11.3).
    let time = match UtcTime::from_date_time(time) {
        Ok(time) => Any::encode_from(&time)?,
        Err(_) => Any::encode_from(&GeneralizedTime::from_date_time(time))?,
    };
    let mut attributes = Attributes::new();
    attributes.insert(attribute(ID_CONTENT_TYPE, Any::encode_from(&ID_DATA)?)?)?;
    attributes.insert(attribute(ID_MESSAGE_DIGEST, Any::encode_from(&OctetString::new(digest)?)?)?)?;
    attributes.insert(attribute(ID_SIGNING_TIME, time)?)?;
    Ok(attributes)
}
