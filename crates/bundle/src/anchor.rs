//! The trust anchor: which authorities may vouch for releases, how many signers it takes, and whether revocation lists
//! are required (`docs/formats/trust.md`).
//!
//! An anchor is part of the executable: compiled in, or stamped into a copy of it. Nothing here reads a flag, a variable
//! or a file at run time.

use std::io::{self, Read, Write};

use cutover_core::model::{Digest, Instant};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    read_at::{ReadAt, fill},
    trust::{Certificate, TrustError},
};

/// Most bytes of an anchor.
const ANCHOR_BYTES_MAX: usize = 256 << 10;
/// Most authorities in an anchor.
const ROOTS_MAX: usize = 16;
/// Most signers an anchor can ask for; [`crate::Limits::signers_max`] must allow them.
const THRESHOLD_MAX: usize = 8;
/// The last bytes of a stamped executable.
const TRAILER_MAGIC: [u8; 16] = *b"CUTOVER-ANCHOR\x00\x01";
/// After the anchor: its SHA-256, its length as a big-endian `u32`, the magic.
const TRAILER_BYTES: usize = 32 + 4 + 16;

/// The anchor given to the build; empty when none was.
const COMPILED_IN: &str = include_str!(concat!(env!("OUT_DIR"), "/anchor.pem"));

/// Whom to trust. Made by [`TrustAnchor::parse`]; consumed by [`crate::Bundle::verify`].
#[derive(Clone, Debug)]
pub struct TrustAnchor {
    roots: Vec<Root>,
    threshold: usize,
    revocation: RevocationPolicy,
}

/// A trusted authority in both forms we need.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) certificate: Certificate,
    pub(crate) anchor: rustls_pki_types::TrustAnchor<'static>,
}

/// Whether releases can be verified without revocation lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevocationPolicy {
    /// Lists are used when they are given.
    #[default]
    WhenGiven,
    /// Without a list, everything is refused.
    Required,
}

/// A trusted authority, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TrustedAuthority {
    /// The subject of its certificate, escaped.
    pub subject: String,
    /// SHA-256 of its certificate.
    pub sha256: Digest,
    /// The first second in which it is valid.
    pub not_before: Instant,
    /// The last second in which it is valid.
    pub not_after: Instant,
}

/// Why an anchor cannot be read, stamped or used.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The executable or the copy could not be read or written.
    #[error("failed to {action} the executable")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A line that is neither a certificate, nor a setting, nor a comment.
    #[error("line {line} of the trust anchor: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It names no authority.
    #[error("the trust anchor has no certificate")]
    NoAuthority,
    /// Too large.
    #[error("the trust anchor has {actual} {what}; the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A certificate is no authority that can be trusted.
    #[error(transparent)]
    Certificate(#[from] TrustError),
    /// The executable's trailer is damaged.
    #[error("the trust anchor stamped into the executable is damaged: {0}")]
    Damaged(&'static str),
    /// An anchor was stamped into an executable that was built with one.
    #[error("this program was built with a trust anchor, and another one was stamped into it")]
    TwoAnchors,
}

impl TrustAnchor {
    /// Reads an anchor: CA certificates in PEM, `#` comments, and the settings `threshold = N` and
    /// `revocation = required`, one per line outside the certificates. Anything else is refused.
    ///
    /// # Errors
    /// See [`AnchorError`].
    pub fn parse(text: &[u8]) -> Result<Self, AnchorError> {
        let over = |what, actual, limit| AnchorError::TooLarge { what, actual, limit };
        if text.len() > ANCHOR_BYTES_MAX {
            return Err(over("bytes", text.len(), ANCHOR_BYTES_MAX));
        }
        let text = std::str::from_utf8(text)
            .map_err(|_| AnchorError::Line { line: 1, reason: "it is not text in UTF-8".to_owned() })?;
        let mut roots: Vec<Root> = Vec::new();
        let mut threshold = None;
        let mut revocation = None;
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        while let Some((line, content)) = lines.next() {
            let refuse = |reason: String| AnchorError::Line { line, reason };
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if content == "-----BEGIN CERTIFICATE-----" {
                let mut block = format!("{content}\n");
                loop {
                    let (_, inner) =
                        lines.next().ok_or_else(|| refuse("the certificate has no end".to_owned()))?;
                    block.push_str(inner);
                    block.push('\n');
                    if inner.starts_with("-----") {
                        break;
                    }
                }
                let der = CertificateDer::from_pem_slice(block.as_bytes())
                    .map_err(|error| refuse(format!("the certificate cannot be read: {error}")))?;
                let root = Root::new(&der)?;
                if roots.iter().any(|known| known.certificate.der == root.certificate.der) {
                    return Err(refuse("the certificate is listed twice".to_owned()));
                }
                roots.push(root);
                continue;
            }
            let setting = content.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let twice = match setting {
                Some(("threshold", value)) => {
                    let number = value.parse().ok().filter(|number| (1..=THRESHOLD_MAX).contains(number));
                    let number =
                        number.ok_or_else(|| refuse(format!("a threshold is 1 to {THRESHOLD_MAX}")))?;
                    threshold.replace(number).is_some()
                }
                Some(("revocation", "required")) => revocation.replace(RevocationPolicy::Required).is_some(),
                Some(("revocation", "when-given")) => {
                    revocation.replace(RevocationPolicy::WhenGiven).is_some()
                }
                _ => {
                    return Err(refuse(format!(
                        "`{}` is neither a certificate in PEM, nor `threshold = N`, `revocation = required`, \
                         `revocation = when-given` or a `#` comment",
                        content.chars().take(60).flat_map(char::escape_default).collect::<String>()
                    )));
                }
            };
            if twice {
                return Err(refuse("the setting is given twice".to_owned()));
            }
        }
        if roots.is_empty() {
            return Err(AnchorError::NoAuthority);
        }
        if roots.len() > ROOTS_MAX {
            return Err(over("certificates", roots.len(), ROOTS_MAX));
        }
        Ok(Self { roots, threshold: threshold.unwrap_or(1), revocation: revocation.unwrap_or_default() })
    }

    /// Writes the anchor as [`TrustAnchor::parse`] reads it; equal anchors have equal texts.
    pub fn to_text(&self) -> String {
        let revocation = match self.revocation {
            RevocationPolicy::WhenGiven => "when-given",
            RevocationPolicy::Required => "required",
        };
        let mut text = format!("threshold = {}\nrevocation = {revocation}\n", self.threshold);
        for root in &self.roots {
            text.push_str(&pem("CERTIFICATE", &root.certificate.der));
        }
        text
    }

    /// The same anchor with another threshold; `None` outside 1 to 8.
    pub fn with_threshold(self, threshold: usize) -> Option<Self> {
        (1..=THRESHOLD_MAX).contains(&threshold).then_some(Self { threshold, ..self })
    }

    /// The same anchor with another policy.
    pub fn with_revocation(self, revocation: RevocationPolicy) -> Self {
        Self { revocation, ..self }
    }

    /// The anchor this program was built with, if any.
    ///
    /// # Errors
    /// As [`TrustAnchor::parse`]: the build was given something else than an anchor.
    pub fn compiled_in() -> Result<Option<Self>, AnchorError> {
        if COMPILED_IN.is_empty() { Ok(None) } else { Self::parse(COMPILED_IN.as_bytes()).map(Some) }
    }

    /// The anchor of the running program, whose file is `executable`: compiled in or stamped. `None` means that nothing
    /// can be trusted.
    ///
    /// # Errors
    /// [`AnchorError::TwoAnchors`] when there are both, since only one of them can be meant; otherwise as
    /// [`TrustAnchor::compiled_in`] and [`read_trailer`].
    pub fn of_executable(executable: &impl ReadAt) -> Result<Option<Self>, AnchorError> {
        match (Self::compiled_in()?, read_trailer(executable)?) {
            (Some(_), Some(_)) => Err(AnchorError::TwoAnchors),
            (compiled_in, stamped) => Ok(compiled_in.or(stamped)),
        }
    }

    /// How many signers with distinct keys a release needs: exactly one, or at least this many.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Whether revocation lists are required.
    pub fn revocation(&self) -> RevocationPolicy {
        self.revocation
    }

    /// The trusted authorities, for people.
    pub fn describe(&self) -> Vec<TrustedAuthority> {
        self.roots
            .iter()
            .map(|root| TrustedAuthority {
                subject: root.certificate.subject.clone(),
                sha256: Digest::of(&root.certificate.der),
                not_before: root.certificate.not_before,
                not_after: root.certificate.not_after,
            })
            .collect()
    }

    pub(crate) fn authorities(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter()
    }
}

impl Root {
    fn new(der: &CertificateDer<'_>) -> Result<Self, TrustError> {
        let certificate = Certificate::parse(der)?;
        certificate.check_authority()?;
        let anchor = webpki::anchor_from_trusted_cert(der)
            .map_err(|error| TrustError::Certificate {
                subject: certificate.subject.clone(),
                reason: error.to_string(),
            })?
            .to_owned();
        Ok(Self { certificate, anchor })
    }
}

/// Encodes DER as PEM (RFC 7468).
pub(crate) fn pem(label: &'static str, der: &[u8]) -> String {
    der::pem::encode_string(label, der::pem::LineEnding::LF, der).expect("any bytes have a PEM form")
}

/// Copies `executable` to `out` with `anchor` stamped behind it. An anchor that is already there is replaced.
///
/// # Errors
/// [`AnchorError::Io`], or [`AnchorError::Damaged`] when the executable has a damaged anchor. Nothing is flushed to disk:
/// that is the caller's business.
pub fn stamp(executable: &impl ReadAt, anchor: &TrustAnchor, out: &mut dyn Write) -> Result<(), AnchorError> {
    let stamped = find_trailer(executable)?;
    let size = executable.size().map_err(failed("read"))?;
    let end = stamped.map_or(size, |trailer| trailer.offset);
    let mut reader = crate::read_at::RangeReader::new(executable, 0, end);
    let mut buffer = vec![0; 128 << 10];
    let mut copied = 0u64;
    loop {
        match fill(&mut reader, &mut buffer).map_err(failed("read"))? {
            0 => break,
            count => {
                out.write_all(&buffer[..count]).map_err(failed("write"))?;
                copied += count as u64;
            }
        }
    }
    if copied != end {
        return Err(failed("read")(io::ErrorKind::UnexpectedEof.into()));
    }
    let text = anchor.to_text();
    let length = u32::try_from(text.len()).expect("an anchor has at most 16 certificates of 64 KiB");
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(Digest::of(text.as_bytes()).as_bytes()))
        .and_then(|()| out.write_all(&length.to_be_bytes()))
        .and_then(|()| out.write_all(&TRAILER_MAGIC))
        .and_then(|()| out.flush())
        .map_err(failed("write"))
}

/// The anchor stamped into `executable`, if any.
///
/// # Errors
/// [`AnchorError::Damaged`] when there is one that cannot be trusted: it is never treated as absent.
pub fn read_trailer(executable: &impl ReadAt) -> Result<Option<TrustAnchor>, AnchorError> {
    find_trailer(executable)?.map(|trailer| TrustAnchor::parse(&trailer.anchor)).transpose()
}

struct Trailer {
    offset: u64,
    anchor: Vec<u8>,
}

fn find_trailer(executable: &impl ReadAt) -> Result<Option<Trailer>, AnchorError> {
    let size = executable.size().map_err(failed("read"))?;
    let mut end = [0; TRAILER_BYTES];
    let Some(after) = size.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(None);
    };
    read_exactly(executable, &mut end, after)?;
    let (digest, rest) = end.split_at(32);
    let (length, magic) = rest.split_at(4);
    if magic != TRAILER_MAGIC {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length.try_into().expect("a slice of four")) as usize;
    if length > ANCHOR_BYTES_MAX {
        return Err(AnchorError::Damaged("its length is over the limit"));
    }
    let offset =
        after.checked_sub(length as u64).ok_or(AnchorError::Damaged("it is longer than the executable"))?;
    let mut anchor = vec![0; length];
    read_exactly(executable, &mut anchor, offset)?;
    if Digest::of(&anchor).as_bytes() != digest {
        return Err(AnchorError::Damaged("its digest differs"));
    }
    Ok(Some(Trailer { offset, anchor }))
}

fn read_exactly(source: &impl ReadAt, buffer: &mut [u8], offset: u64) -> Result<(), AnchorError> {
    let mut reader = crate::read_at::RangeReader::new(source, offset, buffer.len() as u64);
    reader.read_exact(buffer).map_err(failed("read"))
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> AnchorError {
    move |source| AnchorError::Io { action, source }
}
