//! The verification of a signature, in the numbered order of `docs/formats/trust.md`.

use cutover_core::model::{Digest, Instant};
use webpki::EndEntityCert;

use super::{
    certificate::Certificate,
    chain::Paths,
    error::{ProfileError, TrustError},
    profile::{self, ProfileSigner},
    revocation::RevocationLists,
    scheme::{SignatureCheck, signature_check},
};
use crate::{anchor::TrustAnchor, limits::Limits};

/// Who signed, for people and records. Names are escaped.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SignedBy {
    /// The subject of the signer's certificate.
    pub subject: String,
    /// The subject of its issuer.
    pub issuer: String,
    /// The certificate's serial number, in hexadecimal.
    pub serial: String,
    /// The last second in which the certificate is valid.
    pub not_after: Instant,
    /// SHA-256 of the signer's public key (its SubjectPublicKeyInfo).
    pub key_sha256: Digest,
    /// When the signer says that it signed. A claim: it decides nothing.
    pub claimed_time: Option<Instant>,
}

impl SignedBy {
    fn new(certificate: &Certificate, signer: &ProfileSigner) -> Self {
        Self {
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            serial: certificate.serial(),
            not_after: certificate.not_after,
            key_sha256: Digest::of(&certificate.key_der),
            claimed_time: signer.signing_time,
        }
    }
}

/// Checks that `signature` is one over `manifest` by whom `anchor` trusts at `now`; returns the signers, of which there
/// is at least one.
pub(crate) fn verify(
    manifest: &[u8],
    signature: &[u8],
    anchor: &TrustAnchor,
    revocation: &RevocationLists,
    now: Instant,
    limits: &Limits,
) -> Result<Vec<SignedBy>, TrustError> {
    // 0. A clock that can be believed at all.
    let seconds = u64::try_from(now.unix()).map_err(|_| TrustError::Clock(now))?;

    // 1. The form.
    let profile = profile::read(signature, limits)?;

    // 2. The number of signers. Zero signers fail here, before any "for each signer".
    let found = profile.signers.len();
    let threshold = anchor.threshold();
    let (enough, needed) = match threshold {
        1 => (found == 1, "exactly 1".to_owned()),
        more => (found >= more, format!("at least {more}")),
    };
    if !enough {
        return Err(TrustError::SignerCount { found, needed });
    }

    // 3. The certificates: readable, accepted keys and algorithms.
    let certificates = profile
        .certificates
        .into_iter()
        .map(|(parsed, der)| Certificate::from_parsed(parsed, &der))
        .collect::<Result<Vec<_>, TrustError>>()?;

    // 4. Each signer: the manifest's digest, then the signature.
    for signer in &profile.signers {
        check_signature(manifest, signer, &certificates[signer.certificate])?;
    }

    // 5. Each certificate: valid now. Each signer's: made for code signing.
    for certificate in &certificates {
        certificate.check_time(now)?;
    }
    for signer in &profile.signers {
        certificates[signer.certificate].check_signs_code()?;
    }

    // 6. Each signer: a path from the anchor, not revoked.
    let paths = Paths::new(anchor, revocation, now, seconds)?;
    let mut used = vec![false; certificates.len()];
    for signer in &profile.signers {
        let others: Vec<&Certificate> = certificates
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != signer.certificate)
            .map(|(_, certificate)| certificate)
            .collect();
        let authorities = paths.find(&certificates[signer.certificate], &others)?;
        used[signer.certificate] = true;
        for (certificate, used) in certificates.iter().zip(&mut used) {
            *used |= authorities.contains(&certificate.der);
        }
    }

    // 7. No certificate that nothing vouches for: it could be altered unseen.
    if let Some((certificate, _)) = certificates.iter().zip(&used).find(|(_, used)| !**used) {
        return Err(ProfileError::CertificateUnused(certificate.subject.clone()).into());
    }

    // 8. Distinct keys, not just distinct certificates.
    let signers: Vec<&Certificate> =
        profile.signers.iter().map(|signer| &certificates[signer.certificate]).collect();
    check_distinct(&signers)?;
    Ok(profile
        .signers
        .iter()
        .zip(signers)
        .map(|(signer, certificate)| SignedBy::new(certificate, signer))
        .collect())
}

/// Refuses two signers with one key.
pub(super) fn check_distinct(signers: &[&Certificate]) -> Result<(), TrustError> {
    for (at, second) in signers.iter().enumerate() {
        if let Some(first) = signers[..at].iter().find(|first| first.key_der == second.key_der) {
            return Err(TrustError::SameKey { first: first.subject.clone(), second: second.subject.clone() });
        }
    }
    Ok(())
}

/// Checks one signer's digest and signature with the key of its certificate.
pub(super) fn check_signature(
    manifest: &[u8],
    signer: &ProfileSigner,
    certificate: &Certificate,
) -> Result<(), TrustError> {
    let check = match signature_check(certificate.key, signer.digest, &signer.algorithm) {
        SignatureCheck::With(check) => check,
        SignatureCheck::Mismatch => return Err(ProfileError::AlgorithmMismatch.into()),
        SignatureCheck::Weak(algorithm) => {
            return Err(TrustError::WeakAlgorithm {
                used_by: format!("the signature of `{}`", certificate.subject),
                algorithm,
            });
        }
    };
    if signer.digest.digest(manifest).as_ref() != signer.message_digest {
        return Err(TrustError::ManifestAltered);
    }
    let wrong = |_| TrustError::SignatureWrong { subject: certificate.subject.clone() };
    let key = EndEntityCert::try_from(&certificate.der).map_err(|error| TrustError::Certificate {
        subject: certificate.subject.clone(),
        reason: error.to_string(),
    })?;
    key.verify_signature(check, &signer.signed, &signer.signature).map_err(wrong)
}

/// Who claims to have signed, unchecked.
pub(crate) fn claimed_signers(signature: &[u8], limits: &Limits) -> Result<Vec<SignedBy>, TrustError> {
    let profile = profile::read(signature, limits)?;
    profile
        .signers
        .iter()
        .map(|signer| {
            let (parsed, der) = &profile.certificates[signer.certificate];
            let certificate = Certificate::from_parsed(parsed.clone(), der)?;
            Ok(SignedBy::new(&certificate, signer))
        })
        .collect()
}
