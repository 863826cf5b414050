//! Certificate revocation lists: they only ever restrict what is trusted.

use cutover_core::model::Instant;
use der::{Decode, Reader, SliceReader, asn1::BitString};
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject as _};
use webpki::{BorrowedCertRevocationList, CertRevocationList};
use x509_cert::{crl::CertificateList, name::Name, spki::AlgorithmIdentifierOwned};

use super::{
    certificate::Certificate,
    error::{TrustError, printable},
    scheme::check_certificate_signature,
};

/// Most bytes of revocation lists, all together.
const BYTES_MAX: usize = 16 << 20;
/// Most revocation lists, all together.
const LISTS_MAX: usize = 64;

/// Revocation lists as an operator gives them. Each is checked for its authority's signature only when a path needs it.
#[derive(Clone, Debug, Default)]
pub struct RevocationLists {
    lists: Vec<List>,
}

#[derive(Clone, Debug)]
struct List {
    der: Vec<u8>,
    name: Name,
    issuer: String,
    this_update: Instant,
    next_update: Instant,
}

impl RevocationLists {
    /// No lists: nothing is known to be revoked.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there are no lists.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Reads one list in DER, or any number of them in PEM.
    ///
    /// # Errors
    /// [`TrustError::RevocationInvalid`]: also when there is none, so that a wrong file is not taken for "none revoked".
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let mut lists = Self::none();
        lists.add(bytes)?;
        Ok(lists)
    }

    /// Adds what [`RevocationLists::parse`] would read.
    ///
    /// # Errors
    /// As [`RevocationLists::parse`].
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let invalid = |reason: String| TrustError::RevocationInvalid { reason };
        if bytes.len() > BYTES_MAX {
            return Err(invalid(format!("there are more than {BYTES_MAX} bytes of lists")));
        }
        let before = self.lists.len();
        if bytes.first() == Some(&0x30) {
            self.push(bytes, BYTES_MAX)?;
        } else {
            for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
                let list = list.map_err(|error| invalid(error.to_string()))?;
                self.push(&list, BYTES_MAX)?;
            }
        }
        if self.lists.len() == before {
            return Err(invalid("there is no revocation list in the file".to_owned()));
        }
        // The newest list of an authority speaks for it.
        self.lists.sort_by_key(|list| std::cmp::Reverse((list.this_update, list.next_update)));
        Ok(())
    }

    /// Adds one list; all of them together stay within the limits, however many files they come from.
    fn push(&mut self, der: &[u8], bytes_max: usize) -> Result<(), TrustError> {
        let invalid = |reason: String| Err(TrustError::RevocationInvalid { reason });
        if self.lists.len() >= LISTS_MAX {
            return invalid(format!("there are more than {LISTS_MAX} lists"));
        }
        let held: usize = self.lists.iter().map(|list| list.der.len()).sum();
        if der.len() > bytes_max.saturating_sub(held) {
            return invalid(format!("there are more than {bytes_max} bytes of lists"));
        }
        self.lists.push(List::read(der)?);
        Ok(())
    }

    /// The lists for a path search at `now`.
    pub(super) fn at(&self, now: Instant) -> Result<Vec<CertRevocationList<'_>>, TrustError> {
        if let Some(list) = self.lists.iter().find(|list| list.this_update > now) {
            return Err(TrustError::RevocationInvalid {
                reason: format!("the list of `{}` is from {}; it is {now}", list.issuer, list.this_update),
            });
        }
        self.lists
            .iter()
            .map(|list| {
                BorrowedCertRevocationList::from_der(&list.der).map(CertRevocationList::from).map_err(
                    |error| TrustError::RevocationInvalid {
                        reason: format!("the list of `{}`: {error}", list.issuer),
                    },
                )
            })
            .collect()
    }

    /// Which of the lists (by number, as [`RevocationLists::at`] gives them) `authorities` answer for, as far as that has
    /// to be told apart: authorities may share a name (a root and its successor do), and a path search takes the first
    /// list of a name and no other. A list without a rival of its name stays whoever signed it, and so do all of a name when
    /// none of `authorities` signed one of them: the search then says what is wrong.
    pub(super) fn of(&self, authorities: &[&Certificate]) -> Vec<usize> {
        let signed: Vec<bool> = self
            .lists
            .iter()
            .map(|list| {
                let has_rival = self.lists.iter().filter(|other| other.name == list.name).count() > 1;
                has_rival && authorities.iter().any(|authority| list.is_by(authority))
            })
            .collect();
        let is_answered =
            |name: &Name| self.lists.iter().zip(&signed).any(|(list, signed)| *signed && list.name == *name);
        let lists = self.lists.iter().zip(&signed).enumerate();
        lists
            .filter(|(_, (list, signed))| **signed || !is_answered(&list.name))
            .map(|(number, _)| number)
            .collect()
    }

    /// Says which list ended at `next_update`.
    pub(super) fn stale(&self, next_update: Instant, now: Instant) -> TrustError {
        let issuer = self
            .lists
            .iter()
            .find(|list| list.next_update == next_update)
            .map_or_else(|| "?".to_owned(), |list| list.issuer.clone());
        TrustError::RevocationStale { issuer, next_update, now }
    }
}

impl List {
    fn read(der: &[u8]) -> Result<Self, TrustError> {
        let invalid = |reason: String| TrustError::RevocationInvalid { reason };
        let parsed: CertificateList =
            CertificateList::from_der(der).map_err(|error| invalid(error.to_string()))?;
        let name = parsed.tbs_cert_list.issuer;
        let issuer = printable(&name.to_string());
        let time = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs())
                .ok()
                .and_then(Instant::from_unix)
                .ok_or_else(|| invalid(format!("the list of `{issuer}` has a time out of range")))
        };
        let this_update = time(parsed.tbs_cert_list.this_update)?;
        let next_update = parsed
            .tbs_cert_list
            .next_update
            .ok_or_else(|| invalid(format!("the list of `{issuer}` does not say until when it holds")))?;
        let next_update = time(next_update)?;
        Ok(Self { der: der.to_vec(), this_update, next_update, name, issuer })
    }

    /// Whether it is in the name of `authority` and not known to be signed with another key: what cannot be told (an
    /// algorithm that is not accepted) is for the path search to refuse, for it might be the newest list.
    fn is_by(&self, authority: &Certificate) -> bool {
        let read = || -> der::Result<(&[u8], AlgorithmIdentifierOwned, BitString)> {
            // The very bytes that were signed, whatever their encoding.
            SliceReader::new(&self.der)?.sequence(|list| {
                Ok((list.tlv_bytes()?, AlgorithmIdentifierOwned::decode(list)?, BitString::decode(list)?))
            })
        };
        let may_be = || {
            read().map_or(true, |(signed, algorithm, signature)| {
                check_certificate_signature(&algorithm).is_err() || authority.has_signed(signed, &signature)
            })
        };
        *authority.parsed.tbs_certificate().subject() == self.name && may_be()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Validity};

    #[test]
    fn limits_hold_for_all_lists_together() {
        let now = Instant::from_unix(1_767_225_600).expect("a time");
        let year = Validity::days_from(now, 365).expect("a validity");
        let authority = Authority::root("Example", year).expect("a root");
        let pem = authority.revocation_list(&[], 1, year).expect("a list");
        let one = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec();
        for form in [one.as_slice(), pem.as_bytes()] {
            let mut lists = RevocationLists::none();
            for _ in 0..LISTS_MAX {
                lists.add(form).expect("within the limits");
            }
            let error = lists.add(form).expect_err("one too many").to_string();
            assert!(error.contains("more than 64 lists"), "{error}");
        }
        let mut lists = RevocationLists::none();
        let bytes_max = one.len() * 2;
        lists.push(&one, bytes_max).expect("room");
        lists.push(&one, bytes_max).expect("room");
        lists.push(&one, bytes_max).expect_err("no room");
    }
}
