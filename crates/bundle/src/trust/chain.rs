//! Whether a path leads from the anchor to a signer's certificate (RFC 5280, section 6, by `rustls-webpki`).

use std::{cell::Cell, time::Duration};

use cutover_core::model::Instant;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::{
    certificate::Certificate, error::TrustError, revocation::RevocationLists, scheme::CHAIN_ALGORITHMS,
};
use crate::anchor::{RevocationPolicy, TrustAnchor};

/// id-kp-codeSigning, the contents of its DER.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

/// What paths are checked against.
pub(super) struct Paths<'a> {
    anchor: &'a TrustAnchor,
    revocation: &'a RevocationLists,
    lists: Vec<CertRevocationList<'a>>,
    now: Instant,
    time: UnixTime,
}

impl<'a> Paths<'a> {
    /// Prepares to find paths that hold at `now`, which is `now_unix` seconds after 1970.
    pub(super) fn new(
        anchor: &'a TrustAnchor,
        revocation: &'a RevocationLists,
        now: Instant,
        now_unix: u64,
    ) -> Result<Self, TrustError> {
        match anchor.revocation() {
            RevocationPolicy::Required if revocation.is_empty() => {
                return Err(TrustError::RevocationRequired);
            }
            RevocationPolicy::Required | RevocationPolicy::WhenGiven => {}
        }
        Ok(Self {
            lists: revocation.at(now)?,
            time: UnixTime::since_unix_epoch(Duration::from_secs(now_unix)),
            anchor,
            revocation,
            now,
        })
    }

    /// Finds a path to `leaf` by way of `others` and returns the authorities on it.
    pub(super) fn find(
        &self,
        leaf: &Certificate,
        others: &[&Certificate],
    ) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let intermediates: Vec<CertificateDer<'_>> = others.iter().map(|other| other.der.clone()).collect();
        let (current, outdated): (Vec<_>, Vec<_>) =
            self.anchor.authorities().partition(|root| root.certificate.check_time(self.now).is_ok());
        let roots: Vec<_> = current.iter().map(|root| root.anchor.clone()).collect();
        let end_entity =
            EndEntityCert::try_from(&leaf.der).map_err(|error| self.explain(&error, leaf, others))?;
        // A path that only the lists refuse says more than one that was none.
        let refused = Cell::new(None);
        let path = end_entity
            .verify_for_usage(
                CHAIN_ALGORITHMS,
                &roots,
                &intermediates,
                self.time,
                // An authority without purposes may issue for any; the leaf's own purpose is checked separately.
                KeyUsage::required_if_present(CODE_SIGNING),
                None,
                Some(&|path: &VerifiedPath<'_>| {
                    self.check_revocation(path, others).inspect_err(|error| refused.set(Some(error.clone())))
                }),
            )
            .map_err(|error| {
                let error = refused.take().unwrap_or(error);
                let top = top_of(leaf, others);
                let same_name = |certificate: &Certificate| {
                    certificate.parsed.tbs_certificate().subject() == top.parsed.tbs_certificate().issuer()
                };
                outdated
                    .iter()
                    .find(|root| matches!(error, Error::UnknownIssuer) && same_name(&root.certificate))
                    .and_then(|root| root.certificate.check_time(self.now).err())
                    .unwrap_or_else(|| self.explain(&error, leaf, others))
            })?;

        let used: Vec<CertificateDer<'static>> =
            path.intermediate_certificates().map(|authority| authority.der().into_owned()).collect();
        others
            .iter()
            .filter(|other| used.contains(&other.der))
            .try_for_each(|other| other.check_authority())?;
        // The path search does not know the root's own path length.
        let short_enough = current
            .iter()
            .filter(|root| {
                root.anchor.subject == path.anchor().subject
                    && root.anchor.subject_public_key_info == path.anchor().subject_public_key_info
            })
            .any(|root| root.certificate.path_length.is_none_or(|length| used.len() <= usize::from(length)));
        if short_enough { Ok(used) } else { Err(TrustError::PathLength { subject: leaf.subject.clone() }) }
    }

    /// Checks that no certificate on `path` is revoked, by the lists of the very authorities on it.
    fn check_revocation(&self, path: &VerifiedPath<'_>, others: &[&Certificate]) -> Result<(), Error> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let intermediates: Vec<CertificateDer<'_>> =
            path.intermediate_certificates().map(webpki::Cert::der).collect();
        let roots = self.anchor.authorities().filter(|root| root.anchor == *path.anchor());
        let authorities: Vec<&Certificate> = others
            .iter()
            .copied()
            .filter(|other| intermediates.contains(&other.der))
            .chain(roots.map(|root| &root.certificate))
            .collect();
        let lists = self.revocation.of(&authorities).into_iter().filter_map(|number| self.lists.get(number));
        let lists: Vec<&CertRevocationList<'_>> = lists.collect();
        let options = RevocationOptionsBuilder::new(&lists)
            .map_err(|_| Error::UnknownRevocationStatus)?
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let root = std::slice::from_ref(path.anchor());
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        path.end_entity()
            .verify_for_usage(CHAIN_ALGORITHMS, root, &intermediates, self.time, usage, Some(options), None)
            .map(drop)
    }

    /// Says in our words why no path was found.
    fn explain(&self, error: &Error, leaf: &Certificate, others: &[&Certificate]) -> TrustError {
        let subject = leaf.subject.clone();
        let usage = |missing| TrustError::WrongUsage { subject: subject.clone(), missing };
        let from_unix = |time: &UnixTime| {
            i64::try_from(time.as_secs()).ok().and_then(Instant::from_unix).unwrap_or(self.now)
        };
        match error {
            // A wrong signature below a trusted name is what a false authority of that name looks like.
            Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => {
                let top = top_of(leaf, others);
                TrustError::Untrusted { subject: top.subject.clone(), issuer: top.issuer.clone() }
            }
            Error::CertRevoked => TrustError::Revoked { subject },
            Error::UnknownRevocationStatus => TrustError::RevocationUnknown { subject },
            Error::CrlExpired { next_update, .. } => self.revocation.stale(from_unix(next_update), self.now),
            Error::InvalidCrlSignatureForPublicKey
            | Error::IssuerNotCrlSigner
            | Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
                TrustError::RevocationInvalid {
                    reason: format!("it is not signed by its authority ({error})"),
                }
            }
            Error::PathLenConstraintViolated | Error::MaximumPathDepthExceeded => {
                TrustError::PathLength { subject }
            }
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
                usage("the extended key usage codeSigning, on it or on an authority")
            }
            Error::CaUsedAsEndEntity => usage("the role of an end entity (it is an authority)"),
            Error::EndEntityUsedAsCa => usage("an authority: it was issued by an end entity"),
            other => TrustError::Path { subject, reason: other.to_string() },
        }
    }
}

/// The certificate at the upper end of what was presented: the one whose issuer is not among them.
fn top_of<'a>(leaf: &'a Certificate, others: &[&'a Certificate]) -> &'a Certificate {
    let mut top = leaf;
    for _ in 0..others.len() {
        let issuer = top.parsed.tbs_certificate().issuer();
        match others
            .iter()
            .find(|other| other.parsed.tbs_certificate().subject() == issuer && !other.is_self_issued())
        {
            Some(above) => top = above,
            None => break,
        }
    }
    top
}
