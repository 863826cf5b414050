//! Every way in which a signature is refused, each with its own stable code.

use cutover_core::model::Instant;

/// Why a signature is refused. Names of certificates are escaped, so messages may be logged as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody signed.
    #[error("the release is not signed")]
    NoSignature,
    /// The signature has more bytes, certificates or signers than allowed.
    #[error("the signature has {actual} {what}; the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// It is no CMS signature of the one form that is accepted.
    #[error("the signature does not follow the profile: {0}")]
    Profile(#[from] ProfileError),
    /// A hash or signature algorithm that is too weak or unknown.
    #[error("{used_by} uses the algorithm {algorithm}, which is not accepted")]
    WeakAlgorithm {
        /// The certificate or signature that uses it.
        used_by: String,
        /// Its name or object identifier.
        algorithm: String,
    },
    /// A key that is too short or of an unknown kind.
    #[error("the key of `{subject}` is not accepted: {key}")]
    WeakKey {
        /// The certificate.
        subject: String,
        /// What kind of key it is.
        key: String,
    },
    /// A certificate that cannot be read or contradicts itself.
    #[error("the certificate of `{subject}` is not usable: {reason}")]
    Certificate {
        /// The certificate.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The signed digest is not the manifest's: the manifest was altered.
    #[error("the manifest is not the one that was signed: its digest differs")]
    ManifestAltered,
    /// The signature is not one by the signer's key: it or the certificate was altered.
    #[error("the signature of `{subject}` is wrong")]
    SignatureWrong {
        /// The signer.
        subject: String,
    },
    /// Not the number of signers that the anchor asks for.
    #[error("the release has {found} signers where {needed} are needed")]
    SignerCount {
        /// How many there are.
        found: usize,
        /// How many are needed, such as `exactly 1`.
        needed: String,
    },
    /// One key signed more than once.
    #[error("`{first}` and `{second}` signed with the same key")]
    SameKey {
        /// A signer.
        first: String,
        /// Another signer.
        second: String,
    },
    /// The certificate was not issued by an authority that the anchor names.
    #[error("the certificate of `{subject}` was issued by `{issuer}`, which is not trusted")]
    Untrusted {
        /// The certificate.
        subject: String,
        /// Its issuer.
        issuer: String,
    },
    /// A certificate's time is over.
    #[error("the certificate of `{subject}` expired at {not_after}; it is {now}")]
    Expired {
        /// The certificate.
        subject: String,
        /// Its end.
        not_after: Instant,
        /// The time of the check.
        now: Instant,
    },
    /// A certificate's time has not come.
    #[error("the certificate of `{subject}` is valid from {not_before} on; it is {now}")]
    NotYetValid {
        /// The certificate.
        subject: String,
        /// Its start.
        not_before: Instant,
        /// The time of the check.
        now: Instant,
    },
    /// A certificate was made for something else.
    #[error("the certificate of `{subject}` may not be used to sign releases: it lacks {missing}")]
    WrongUsage {
        /// The certificate.
        subject: String,
        /// The usage it lacks.
        missing: &'static str,
    },
    /// More authorities between anchor and signer than one of them allows.
    #[error("the path to the certificate of `{subject}` is longer than its authorities allow")]
    PathLength {
        /// The signer.
        subject: String,
    },
    /// The certificate, or one on its path, was revoked.
    #[error("the certificate of `{subject}`, or of an authority on its path, is revoked")]
    Revoked {
        /// The signer.
        subject: String,
    },
    /// No revocation list covers a certificate on the path.
    #[error("no revocation list covers the certificate of `{subject}` and of every authority on its path")]
    RevocationUnknown {
        /// The signer.
        subject: String,
    },
    /// A revocation list is out of date.
    #[error("the revocation list of `{issuer}` ended at {next_update}; it is {now}")]
    RevocationStale {
        /// Who made the list.
        issuer: String,
        /// When its successor was due.
        next_update: Instant,
        /// The time of the check.
        now: Instant,
    },
    /// A revocation list cannot be read, is from the future, or is not signed by its authority.
    #[error("a revocation list is not usable: {reason}")]
    RevocationInvalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The anchor asks for revocation lists and none was given.
    #[error("the trust anchor requires a revocation list and none was given")]
    RevocationRequired,
    /// The path breaks another rule.
    #[error("no valid path leads to the certificate of `{subject}`: {reason}")]
    Path {
        /// The signer.
        subject: String,
        /// The rule.
        reason: String,
    },
    /// The clock shows a time before 1970, so nothing can be said about validity.
    #[error("the clock shows {0}; set it before verifying")]
    Clock(Instant),
}

impl TrustError {
    /// A stable word for logs and machines, one per kind of refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSignature => "trust.no-signature",
            Self::TooLarge { .. } => "trust.too-large",
            Self::Profile(_) => "trust.profile",
            Self::WeakAlgorithm { .. } => "trust.weak-algorithm",
            Self::WeakKey { .. } => "trust.weak-key",
            Self::Certificate { .. } => "trust.certificate",
            Self::ManifestAltered => "trust.manifest-altered",
            Self::SignatureWrong { .. } => "trust.signature-wrong",
            Self::SignerCount { .. } => "trust.signer-count",
            Self::SameKey { .. } => "trust.same-key",
            Self::Untrusted { .. } => "trust.untrusted",
            Self::Expired { .. } => "trust.expired",
            Self::NotYetValid { .. } => "trust.not-yet-valid",
            Self::WrongUsage { .. } => "trust.wrong-usage",
            Self::PathLength { .. } => "trust.path-length",
            Self::Revoked { .. } => "trust.revoked",
            Self::RevocationUnknown { .. } => "trust.revocation-unknown",
            Self::RevocationStale { .. } => "trust.revocation-stale",
            Self::RevocationInvalid { .. } => "trust.revocation-invalid",
            Self::RevocationRequired => "trust.revocation-required",
            Self::Path { .. } => "trust.path",
            Self::Clock(_) => "trust.clock",
        }
    }
}

/// How a signature departs from the one form that is accepted. Every rule closes a way to change unsigned bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not DER, or not the only DER for what it says; also trailing bytes and a second structure.
    #[error("it is not one DER structure in its only encoding ({0})")]
    Encoding(String),
    /// A CMS content other than SignedData.
    #[error("it is CMS but not SignedData")]
    NotSignedData,
    /// A SignedData or SignerInfo version other than 1.
    #[error("its version is not 1")]
    Version,
    /// A content type other than id-data.
    #[error("the content type is not id-data")]
    ContentType,
    /// The content is inside the signature.
    #[error("the content is not detached")]
    NotDetached,
    /// Revocation lists inside the signature.
    #[error("it carries revocation lists")]
    RevocationListsInside,
    /// A certificate of another kind than X.509.
    #[error("it carries a certificate that is not X.509")]
    CertificateKind,
    /// A certificate that is there twice.
    #[error("it carries a certificate twice")]
    CertificateRepeated,
    /// A certificate that belongs to no signer's path, such as the root's.
    #[error("it carries the certificate of `{0}`, which is on no signer's path")]
    CertificateUnused(String),
    /// A signer named otherwise than by issuer and serial number.
    #[error("a signer is not named by issuer and serial number")]
    SignerIdentifier,
    /// A signer without certificate.
    #[error("the certificate of a signer is missing")]
    SignerCertificateMissing,
    /// A signer without signed attributes.
    #[error("a signer has no signed attributes")]
    NoSignedAttributes,
    /// A required attribute is missing.
    #[error("the signed attribute {0} is missing")]
    AttributeMissing(&'static str),
    /// An attribute that is there twice, or has not exactly one value.
    #[error("the signed attribute {0} is not there exactly once with one value")]
    AttributeRepeated(String),
    /// An attribute with a value that it cannot have.
    #[error("the signed attribute {0} has a wrong value")]
    AttributeValue(&'static str),
    /// An attribute that this profile does not know.
    #[error("the signed attribute {0} is unknown")]
    AttributeUnknown(String),
    /// Unsigned attributes, such as a timestamp or counter-signature.
    #[error("a signer has unsigned attributes (timestamps and counter-signatures are not accepted)")]
    UnsignedAttributes,
    /// The list of digest algorithms is not the signers' own.
    #[error("the digest algorithms are not exactly those of the signers")]
    DigestAlgorithms,
    /// Digest, signature algorithm and key do not belong together.
    #[error("the signature algorithm does not fit the digest algorithm and the key")]
    AlgorithmMismatch,
}

/// Makes a hostile name fit for a log line or a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(200)
        .flat_map(|c| if c.is_ascii_graphic() || c == ' ' { vec![c] } else { c.escape_unicode().collect() })
        .collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}
