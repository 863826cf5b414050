//! The one form of CMS signature that is accepted (RFC 5652, `docs/formats/trust.md`).
//!
//! CMS allows much that no signature protects: versions, repeated digest lists, extra certificates, unsigned attributes,
//! several encodings of one value. Here all of it is fixed, so that no bit of a signature file can be changed.

use cms::{
    cert::{CertificateChoices, IssuerAndSerialNumber},
    content_info::{CmsVersion, ContentInfo},
    signed_data::{SignedData, SignerIdentifier, SignerInfo},
};
use const_oid::db::rfc5911::{
    ID_CONTENT_TYPE, ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA, ID_SIGNING_TIME, SMIME_CAPABILITIES,
};
use cutover_core::model::Instant;
use der::{
    Decode, Encode, Tagged,
    asn1::{Any, ObjectIdentifier, OctetString},
};
use x509_cert::{attr::Attributes, spki::AlgorithmIdentifierOwned, time::Time};

use super::{
    error::{ProfileError, TrustError},
    scheme::DigestAlgorithm,
};
use crate::limits::Limits;

/// A signature that follows the profile. Nothing in it is verified yet.
pub(super) struct Profile {
    /// The structure itself, to which a signer can be added.
    pub(super) signed_data: SignedData,
    /// The certificates with their DER, in the order of the file.
    pub(super) certificates: Vec<(x509_cert::Certificate, Vec<u8>)>,
    /// The signers, in the order of the file.
    pub(super) signers: Vec<ProfileSigner>,
}

/// One signer as the signature states it.
pub(super) struct ProfileSigner {
    /// The index of its certificate.
    pub(super) certificate: usize,
    /// How it hashed the manifest and its attributes.
    pub(super) digest: DigestAlgorithm,
    /// The digest of the manifest it signed.
    pub(super) message_digest: Vec<u8>,
    /// When it says that it signed. A claim, never used for a decision.
    pub(super) signing_time: Option<Instant>,
    /// The bytes that are signed: the attributes in DER.
    pub(super) signed: Vec<u8>,
    /// How they are signed.
    pub(super) algorithm: AlgorithmIdentifierOwned,
    /// The signature.
    pub(super) signature: Vec<u8>,
}

/// Reads a signature and checks every rule of the profile.
pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<Profile, TrustError> {
    if bytes.is_empty() {
        return Err(TrustError::NoSignature);
    }
    let capped = |what, actual: usize, limit: usize| {
        if actual > limit { Err(TrustError::TooLarge { what, actual, limit }) } else { Ok(()) }
    };
    capped("bytes", bytes.len(), limits.signature_bytes_max)?;
    let signed_data = read_signed_data(bytes)?;

    let mut certificates: Vec<(x509_cert::Certificate, Vec<u8>)> = Vec::new();
    for choice in signed_data.certificates.iter().flat_map(|set| set.0.iter()) {
        match choice {
            CertificateChoices::Certificate(certificate) => {
                let der = certificate.to_der().map_err(encoding)?;
                if certificates.iter().any(|(_, known)| *known == der) {
                    return Err(ProfileError::CertificateRepeated.into());
                }
                certificates.push((certificate.clone(), der));
            }
            CertificateChoices::Other(_) => return Err(ProfileError::CertificateKind.into()),
        }
    }
    capped("certificates", certificates.len(), limits.certificates_max)?;
    let infos = signed_data.signer_infos.0.as_slice();
    capped("signers", infos.len(), limits.signers_max)?;
    let signers =
        infos.iter().map(|info| read_signer(info, &certificates)).collect::<Result<Vec<_>, TrustError>>()?;

    // The list is unsigned: it must say exactly what the signers say.
    let mut algorithms: Vec<AlgorithmIdentifierOwned> = Vec::new();
    for info in infos {
        if !algorithms.contains(&info.digest_alg) {
            algorithms.push(info.digest_alg.clone());
        }
    }
    let listed = signed_data.digest_algorithms.as_slice();
    if listed.len() != algorithms.len() || !algorithms.iter().all(|own| listed.contains(own)) {
        return Err(ProfileError::DigestAlgorithms.into());
    }
    Ok(Profile { signed_data, certificates, signers })
}

pub(super) fn encoding(error: der::Error) -> TrustError {
    TrustError::Profile(ProfileError::Encoding(error.to_string()))
}

/// Everything around certificates and signers.
fn read_signed_data(bytes: &[u8]) -> Result<SignedData, TrustError> {
    let outer = ContentInfo::from_der(bytes).map_err(encoding)?;
    if outer.content_type != ID_SIGNED_DATA {
        return Err(ProfileError::NotSignedData.into());
    }
    let signed_data: SignedData = outer.content.decode_as().map_err(encoding)?;
    // The decoder sorts sets and drops defaults; what it does not write back bit for bit is not DER.
    let rewritten = to_bytes(&signed_data)?;
    if rewritten != bytes {
        return Err(ProfileError::Encoding("not canonical".to_owned()).into());
    }
    if signed_data.version != CmsVersion::V1 {
        return Err(ProfileError::Version.into());
    }
    if signed_data.encap_content_info.econtent_type != ID_DATA {
        return Err(ProfileError::ContentType.into());
    }
    if signed_data.encap_content_info.econtent.is_some() {
        return Err(ProfileError::NotDetached.into());
    }
    if signed_data.crls.is_some() {
        return Err(ProfileError::RevocationListsInside.into());
    }
    Ok(signed_data)
}

/// Wraps and encodes a SignedData.
pub(super) fn to_bytes(signed_data: &SignedData) -> Result<Vec<u8>, TrustError> {
    let outer = ContentInfo {
        content_type: ID_SIGNED_DATA,
        content: Any::encode_from(signed_data).map_err(encoding)?,
    };
    outer.to_der().map_err(encoding)
}

fn read_signer(
    info: &SignerInfo,
    certificates: &[(x509_cert::Certificate, Vec<u8>)],
) -> Result<ProfileSigner, TrustError> {
    if info.version != CmsVersion::V1 {
        return Err(ProfileError::Version.into());
    }
    if info.unsigned_attrs.is_some() {
        return Err(ProfileError::UnsignedAttributes.into());
    }
    let SignerIdentifier::IssuerAndSerialNumber(name) = &info.sid else {
        return Err(ProfileError::SignerIdentifier.into());
    };
    let certificate = certificates
        .iter()
        .position(|(certificate, _)| identifier(certificate) == *name)
        .ok_or(ProfileError::SignerCertificateMissing)?;
    let digest = DigestAlgorithm::of(&info.digest_alg)
        .map_err(|algorithm| TrustError::WeakAlgorithm { used_by: "the signature".to_owned(), algorithm })?;
    let attributes = info.signed_attrs.as_ref().ok_or(ProfileError::NoSignedAttributes)?;
    let (message_digest, signing_time) = read_attributes(attributes)?;
    Ok(ProfileSigner {
        certificate,
        digest,
        message_digest,
        signing_time,
        // Signed is the SET OF itself, not its implicitly tagged form (RFC 5652, section 5.4).
        signed: attributes.to_der().map_err(encoding)?,
        algorithm: info.signature_algorithm.clone(),
        signature: info.signature.as_bytes().to_vec(),
    })
}

/// How a signer names `certificate`.
pub(super) fn identifier(certificate: &x509_cert::Certificate) -> IssuerAndSerialNumber {
    let tbs = certificate.tbs_certificate();
    IssuerAndSerialNumber { issuer: tbs.issuer().clone(), serial_number: tbs.serial_number().clone() }
}

/// Returns the message digest and the signing time.
fn read_attributes(attributes: &Attributes) -> Result<(Vec<u8>, Option<Instant>), TrustError> {
    let mut content_type = None;
    let mut message_digest = None;
    let mut signing_time = None;
    let mut capabilities = None;
    for attribute in attributes.iter() {
        let slot = match attribute.oid {
            ID_CONTENT_TYPE => &mut content_type,
            ID_MESSAGE_DIGEST => &mut message_digest,
            ID_SIGNING_TIME => &mut signing_time,
            // OpenSSL adds it; it says what the signer could decrypt and nothing about the release.
            SMIME_CAPABILITIES => &mut capabilities,
            oid => return Err(ProfileError::AttributeUnknown(super::scheme::name(oid)).into()),
        };
        match attribute.values.as_slice() {
            [value] if slot.is_none() => *slot = Some(value),
            _ => return Err(ProfileError::AttributeRepeated(super::scheme::name(attribute.oid)).into()),
        }
    }
    let content_type: &Any = content_type.ok_or(ProfileError::AttributeMissing("contentType"))?;
    if content_type.decode_as::<ObjectIdentifier>() != Ok(ID_DATA) {
        return Err(ProfileError::AttributeValue("contentType").into());
    }
    let message_digest: &Any = message_digest.ok_or(ProfileError::AttributeMissing("messageDigest"))?;
    let message_digest: OctetString =
        message_digest.decode_as().map_err(|_| ProfileError::AttributeValue("messageDigest"))?;
    let signing_time = signing_time.map(read_time).transpose()?;
    Ok((message_digest.as_bytes().to_vec(), signing_time))
}

fn read_time(value: &Any) -> Result<Instant, TrustError> {
    let wrong = || TrustError::from(ProfileError::AttributeValue("signingTime"));
    let time = match value.tag() {
        der::Tag::UtcTime => value.decode_as().map(Time::UtcTime),
        _ => value.decode_as().map(Time::GeneralTime),
    }
    .map_err(|_| wrong())?;
    i64::try_from(time.to_unix_duration().as_secs()).ok().and_then(Instant::from_unix).ok_or_else(wrong)
}
