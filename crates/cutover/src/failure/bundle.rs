//! Exit codes of the errors of `cutover-bundle`.

use cutover_bundle::{
    BundleError, ContainerError, DeltaPayloadError, ObjectError, SignError, TrustError, WriteError,
    anchor::AnchorError,
    delta::{DeltaError, Part},
    documents::{DocumentDemand, DocumentError},
    pki::PkiError,
    signer::SignerError,
};
use cutover_core::model::DeltaManifestError;

use super::Classify;
use crate::exit::Exit;

impl Classify for ContainerError {
    fn exit(&self) -> Exit {
        match self {
            Self::Io(_) => Exit::Failed,
            Self::NotABundle | Self::Version(_) | Self::Truncated { .. } | Self::TooLarge { .. } => {
                Exit::UnsafeContent
            }
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Truncated { .. } => {
                vec!["get the file again; `cutover bundle verify` checks all of it".to_owned()]
            }
            Self::Version(_) => vec!["install a newer cutover on this host first".to_owned()],
            Self::Io(_) | Self::NotABundle | Self::TooLarge { .. } => Vec::new(),
        }
    }
}

impl Classify for BundleError {
    fn code(&self) -> Option<&'static str> {
        Some(BundleError::code(self))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Container(error) => error.exit(),
            Self::Trust(error) => error.exit(),
            Self::Manifest(error) => error.exit(),
            Self::Delta(error) => error.exit(),
            Self::DeltaMismatch(_) | Self::PayloadSize { .. } => Exit::UnsafeContent,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Container(error) => error.hints(),
            Self::Trust(error) => error.hints(),
            Self::Manifest(error) => error.hints(),
            Self::Delta(_) | Self::DeltaMismatch(_) => Vec::new(),
            Self::PayloadSize { .. } => vec!["get the file again; it was cut off or lengthened".to_owned()],
        }
    }
}

impl Classify for DocumentError {
    fn exit(&self) -> Exit {
        match self {
            Self::Syntax { .. }
            | Self::Format { .. }
            | Self::ForeignSubject { .. }
            | Self::Altered { .. } => Exit::NotTrusted,
        }
    }

    fn hints(&self) -> Vec<String> {
        vec!["do not install this release; ask whoever built it for one with documents of its own".to_owned()]
    }
}

impl Classify for DocumentDemand {
    fn exit(&self) -> Exit {
        match self {
            Self::Missing(_)
            | Self::Builder { .. }
            | Self::Source { .. }
            | Self::NoSource
            | Self::Uncovered(_) => Exit::Policy,
        }
    }
}

impl Classify for TrustError {
    fn code(&self) -> Option<&'static str> {
        Some(TrustError::code(self))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoSignature
            | Self::TooLarge { .. }
            | Self::Profile(_)
            | Self::WeakAlgorithm { .. }
            | Self::WeakKey { .. }
            | Self::Certificate { .. }
            | Self::ManifestAltered
            | Self::SignatureWrong { .. }
            | Self::SignerCount { .. }
            | Self::SameKey { .. }
            | Self::Untrusted { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::WrongUsage { .. }
            | Self::PathLength { .. }
            | Self::Revoked { .. }
            | Self::RevocationUnknown { .. }
            | Self::RevocationStale { .. }
            | Self::RevocationInvalid { .. }
            | Self::RevocationRequired
            | Self::Path { .. }
            | Self::Clock(_) => Exit::NotTrusted,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoSignature => "ask whoever built it to run `cutover bundle sign`",
            Self::SignerCount { .. } => "add the missing signatures with `cutover bundle sign --add`",
            Self::Untrusted { .. } => "`cutover trust show` says whom this program trusts",
            Self::Expired { .. } => {
                "sign the bundle again with a current certificate, and check this host's clock"
            }
            Self::NotYetValid { .. } | Self::Clock(_) => "check this host's clock with `date -u`",
            Self::RevocationStale { .. }
            | Self::RevocationUnknown { .. }
            | Self::RevocationInvalid { .. } => {
                "get current revocation lists and name them in `trust-policy.crl`"
            }
            Self::RevocationRequired => "name current revocation lists in `trust-policy.crl`",
            Self::ManifestAltered | Self::SignatureWrong { .. } => {
                "do not install this file; get it again from whoever built it"
            }
            Self::Revoked { .. } => {
                "do not install this file; ask whoever built it which certificate replaces it"
            }
            Self::TooLarge { .. }
            | Self::Profile(_)
            | Self::WeakAlgorithm { .. }
            | Self::WeakKey { .. }
            | Self::Certificate { .. }
            | Self::SameKey { .. }
            | Self::WrongUsage { .. }
            | Self::PathLength { .. }
            | Self::Path { .. } => "`cutover bundle inspect` shows what the file says about itself",
        };
        vec![hint.to_owned()]
    }
}

impl Classify for ObjectError {
    fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Write { .. } => Exit::Failed,
            Self::NotInRelease(_)
            | Self::NotCarried(_)
            | Self::StoredSize { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::Frame { .. } => Exit::UnsafeContent,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotCarried(_) => vec!["pass the full bundle of the release with --full".to_owned()],
            Self::NotInRelease(_)
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::StoredSize { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::Frame { .. } => Vec::new(),
        }
    }
}

impl Classify for DeltaPayloadError {
    fn exit(&self) -> Exit {
        match self {
            Self::Object(error) => error.exit(),
            Self::Patch(error) => error.exit(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Object(error) => error.hints(),
            Self::Patch(error) => error.hints(),
        }
    }
}

impl Classify for WriteError {
    fn exit(&self) -> Exit {
        match self {
            Self::Read(_) | Self::Write(_) | Self::Compress(_) => Exit::Failed,
            Self::Manifest(error) => error.exit(),
            Self::Delta(error) => error.exit(),
            Self::SignatureSize { .. } => Exit::Usage,
            Self::PayloadSize { .. } => Exit::UnsafeContent,
            Self::Sign(error) => error.exit(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Manifest(error) => error.hints(),
            Self::Delta(error) => error.hints(),
            Self::Sign(error) => error.hints(),
            Self::Read(_)
            | Self::Write(_)
            | Self::Compress(_)
            | Self::SignatureSize { .. }
            | Self::PayloadSize { .. } => Vec::new(),
        }
    }
}

impl Classify for SignError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoSigner | Self::KeyMismatch { .. } => Exit::Usage,
            Self::Signer(error) => error.exit(),
            Self::Refused(error) => error.exit(),
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoSigner => vec!["pass --sign-key and --sign-cert, --pkcs11, or --sign-command".to_owned()],
            Self::KeyMismatch { .. } => vec!["pass the certificate that was issued for this key".to_owned()],
            Self::Signer(error) => error.hints(),
            Self::Refused(_) => {
                vec!["sign with a current code-signing certificate; `cutover pki issue` makes one".to_owned()]
            }
        }
    }
}

impl Classify for SignerError {
    fn exit(&self) -> Exit {
        match self {
            Self::Certificates(_) | Self::Key(_) | Self::Uri(_) => Exit::Usage,
            Self::Certificate(error) => error.exit(),
            Self::Token { .. } | Self::Command(_) | Self::Failed => Exit::Failed,
        }
    }
}

impl Classify for AnchorError {
    fn exit(&self) -> Exit {
        match self {
            Self::Io { .. } => Exit::Failed,
            Self::Line { .. } | Self::NoAuthority | Self::TooLarge { .. } => Exit::Usage,
            Self::Certificate(error) => error.exit(),
            Self::Damaged(_) | Self::TwoAnchors => Exit::NotTrusted,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Damaged(_) | Self::TwoAnchors => {
                vec!["install this program again from where you got it".to_owned()]
            }
            Self::Io { .. }
            | Self::Line { .. }
            | Self::NoAuthority
            | Self::TooLarge { .. }
            | Self::Certificate(_) => Vec::new(),
        }
    }
}

impl Classify for PkiError {
    fn exit(&self) -> Exit {
        match self {
            Self::Random => Exit::Failed,
            Self::Validity | Self::Serial(_) | Self::Certificate { .. } => Exit::Usage,
        }
    }
}

impl Classify for DeltaError {
    fn code(&self) -> Option<&'static str> {
        Some(DeltaError::code(self))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Write(_) | Self::Generate { .. } => Exit::Failed,
            Self::WrongSize { part: Part::Base, .. } | Self::WrongDigest { part: Part::Base, .. } => {
                Exit::Damaged
            }
            Self::WrongSize { .. }
            | Self::WrongDigest { .. }
            | Self::Patch { .. }
            | Self::Unsupported { .. }
            | Self::Memory { .. }
            | Self::Limit { .. } => Exit::UnsafeContent,
            Self::Unavailable(_) => Exit::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::WrongSize { part: Part::Base, .. } | Self::WrongDigest { part: Part::Base, .. } => {
                "use the file the patch was made for, or get the new file in full"
            }
            Self::Memory { .. } => "pass a larger --memory, or get the new file in full",
            Self::WrongSize { .. } | Self::WrongDigest { .. } | Self::Patch { .. } => {
                "get the patch again, or the new file in full"
            }
            Self::Read { .. }
            | Self::Write(_)
            | Self::Unsupported { .. }
            | Self::Limit { .. }
            | Self::Unavailable(_)
            | Self::Generate { .. } => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl Classify for DeltaManifestError {
    fn exit(&self) -> Exit {
        match self {
            Self::TooLarge { .. }
            | Self::Format(_)
            | Self::Syntax(_)
            | Self::Path(_)
            | Self::MissingDependency { .. }
            | Self::Cycle(_)
            | Self::Limit { .. }
            | Self::Inconsistent(_) => Exit::UnsafeContent,
        }
    }
}
