//! What a request says about the code it comes from.

use super::{CommitHash, HashFormat};

/// The commit in the headers of a request: one, or why there is none.
pub type Claim = Result<CommitHash, ClaimError>;

/// Why a request names no commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no such header.
    #[error("the commit header is missing")]
    Missing,
    /// The value is no full commit hash.
    #[error("the commit header holds no full commit hash")]
    Malformed,
    /// More than one value, or two names with different values.
    #[error("the commit header is given more than once")]
    Ambiguous,
    /// A full hash, of another hash function than the repository's.
    #[error("the commit header holds a hash of another length than the repository's commits have")]
    OtherFormat,
}

/// Reads the claim from the values of the header and of its aliases: one list of values per name.
///
/// One name may be given at most once. Several names may be given when they hold the same commit (I21).
pub fn claim<'v>(names: impl IntoIterator<Item = impl IntoIterator<Item = &'v [u8]>>) -> Claim {
    let mut found: Option<CommitHash> = None;
    let mut malformed = false;
    for values in names {
        for (count, value) in values.into_iter().enumerate() {
            if count > 0 {
                return Err(ClaimError::Ambiguous);
            }
            match CommitHash::from_header(value) {
                Ok(commit) if found.as_ref().is_some_and(|found| *found != commit) => {
                    return Err(ClaimError::Ambiguous);
                }
                Ok(commit) => found = Some(commit),
                Err(_) => malformed = true,
            }
        }
    }
    match found {
        _ if malformed => Err(ClaimError::Malformed),
        Some(commit) => Ok(commit),
        None => Err(ClaimError::Missing),
    }
}

/// Refuses a hash that no commit of the repository can have.
pub(super) fn of_format(commit: CommitHash, format: Option<HashFormat>) -> Claim {
    match format {
        Some(format) if commit.format() != format => Err(ClaimError::OtherFormat),
        Some(_) | None => Ok(commit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&[&str]]) -> Claim {
        claim(names.iter().map(|values| values.iter().map(|value| value.as_bytes())))
    }

    // I20 I21
    #[test]
    fn one_full_hash_under_either_name_or_both_is_a_claim_and_nothing_else_is() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let padded = format!("  {a}\t");
        let commit: CommitHash = a.parse().unwrap();
        assert_eq!(of(&[&[&a], &[]]), Ok(commit.clone()));
        assert_eq!(of(&[&[], &[&a]]), Ok(commit.clone()));
        assert_eq!(of(&[&[&a.to_uppercase()], &[&a]]), Ok(commit.clone()));
        assert_eq!(of(&[&[&padded], &[]]), Ok(commit));
        assert_eq!(of(&[&[], &[]]), Err(ClaimError::Missing));
        assert_eq!(of(&[&[&a], &[&b]]), Err(ClaimError::Ambiguous));
        assert_eq!(of(&[&[&a, &a], &[]]), Err(ClaimError::Ambiguous));
        assert_eq!(of(&[&[&a], &[""]]), Err(ClaimError::Malformed));
        assert_eq!(of(&[&[""], &[]]), Err(ClaimError::Malformed));
        assert_eq!(of(&[&["-n1"], &[]]), Err(ClaimError::Malformed));
    }
}
