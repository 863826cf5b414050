//! Signed notes: text, a blank line, one line for each signature (<https://c2sp.org/signed-note>); and the keys that verify
//! them, as the text `NAME+HASH+KEY`.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64ct::{Base64, Encoding as _};
use cutover_core::model::{Digest, Instant};

/// The most bytes of a note.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// The most signatures of a note.
const SIGNATURES_MAX: usize = 64;

/// Why something is no note, no key, or not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// No note.
    #[error("it is no signed note: {0}")]
    Syntax(&'static str),
    /// No key.
    #[error("it is no verifier key of the form NAME+HASH+KEY: {0}")]
    Key(&'static str),
    /// The key did not sign it.
    #[error("it is not signed by `{0}`")]
    NotSigned(String),
    /// There is a signature in the key's name, which does not hold.
    #[error("the signature of `{0}` does not hold")]
    Wrong(String),
}

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// The note's text; a log does so. Ed25519 (type 0x01).
    Log,
    /// The note's text and the time; a witness does so. Timestamped Ed25519 cosignatures (type 0x04,
    /// <https://c2sp.org/tlog-cosignature>).
    Witness,
}

impl KeyKind {
    fn byte(self) -> u8 {
        match self {
            Self::Log => 0x01,
            Self::Witness => 0x04,
        }
    }
}

/// A public key with its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerifierKey {
    name: String,
    kind: KeyKind,
    public: [u8; 32],
}

impl VerifierKey {
    /// Names an Ed25519 key.
    ///
    /// # Errors
    /// [`NoteError::Key`]: the name is empty or has white space or `+` in it.
    pub fn new(name: &str, kind: KeyKind, public: [u8; 32]) -> Result<Self, NoteError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.len() > 256 || name.contains(bad) {
            return Err(NoteError::Key("a name has 1 to 256 characters, no white space and no `+`"));
        }
        Ok(Self { name: name.to_owned(), kind, public })
    }

    /// Its name; of a log, the origin of its checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it signs.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// What stands before each signature: the first bytes of the hash of name and key.
    fn hash(&self) -> [u8; 4] {
        let mut bytes = format!("{}\n", self.name).into_bytes();
        bytes.push(self.kind.byte());
        bytes.extend_from_slice(&self.public);
        let mut hash = [0; 4];
        hash.copy_from_slice(&Digest::of(&bytes).as_bytes()[..4]);
        hash
    }

    /// The bytes that this key signs, of a note with this text.
    fn message(&self, text: &str, at: Instant) -> Vec<u8> {
        match self.kind {
            KeyKind::Log => text.as_bytes().to_vec(),
            KeyKind::Witness => format!("cosignature/v1\ntime {}\n{text}", at.unix()).into_bytes(),
        }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![self.kind.byte()];
        key.extend_from_slice(&self.public);
        let hash = u32::from_be_bytes(self.hash());
        write!(f, "{}+{hash:08x}+{}", self.name, Base64::encode_string(&key))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let mut part = || parts.next().ok_or(NoteError::Key("a part is missing"));
        let (name, hash, key) = (part()?, part()?, part()?);
        let key = Base64::decode_vec(key).map_err(|_| NoteError::Key("the key is not base64"))?;
        let (kind, public) = match key.split_first() {
            Some((0x01, public)) => (KeyKind::Log, public),
            Some((0x04, public)) => (KeyKind::Witness, public),
            _ => return Err(NoteError::Key("it is no Ed25519 key of a log or a witness")),
        };
        let public = public.try_into().map_err(|_| NoteError::Key("the key has not 32 bytes"))?;
        let key = Self::new(name, kind, public)?;
        if hash != format!("{:08x}", u32::from_be_bytes(key.hash())) {
            return Err(NoteError::Key("the hash is that of another name or key"));
        }
        Ok(key)
    }
}

impl serde::Serialize for VerifierKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for VerifierKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// When a signature was made; only witnesses say.
pub type SignedAt = Option<Instant>;

/// A signature that nobody has verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NoteSignature {
    name: String,
    hash: [u8; 4],
    bytes: Vec<u8>,
}

/// A text with signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// A text that nobody has signed yet.
    ///
    /// # Errors
    /// [`NoteError::Syntax`]: it does not end with a line break, or has control characters.
    pub fn new(text: String) -> Result<Self, NoteError> {
        if !text.ends_with('\n') {
            return Err(NoteError::Syntax("its text does not end with a line break"));
        }
        if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
            return Err(NoteError::Syntax("there are control characters in it"));
        }
        Ok(Self { text, signatures: Vec::new() })
    }

    /// Reads a note, and verifies nothing.
    ///
    /// # Errors
    /// [`NoteError::Syntax`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Syntax("it is too long"));
        }
        let all = str::from_utf8(bytes).map_err(|_| NoteError::Syntax("it is no UTF-8"))?;
        let end = all.rfind("\n\n").ok_or(NoteError::Syntax("there is no blank line in it"))?;
        let (text, lines) = (&all[..=end], &all[end + 2..]);
        let mut note = Self::new(text.to_owned())?;
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Syntax("its last line is cut off"))?;
        for line in lines.split('\n') {
            let malformed = NoteError::Syntax("a line after the blank one is no signature");
            let signature = line.strip_prefix("\u{2014} ").and_then(|line| line.split_once(' '));
            let (name, encoded) = signature.ok_or_else(|| malformed.clone())?;
            let bytes = Base64::decode_vec(encoded).map_err(|_| malformed.clone())?;
            let (hash, bytes) = bytes.split_first_chunk::<4>().ok_or_else(|| malformed.clone())?;
            let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
            if name.is_empty() || name.contains(bad) || bytes.is_empty() {
                return Err(malformed);
            }
            note.signatures.push(NoteSignature { name: name.to_owned(), hash: *hash, bytes: bytes.to_vec() });
        }
        if note.signatures.len() > SIGNATURES_MAX {
            return Err(NoteError::Syntax("it has too many signatures"));
        }
        Ok(note)
    }

    /// The text; nobody vouches for it before [`Note::verify`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The names in which it is signed; nothing of that is verified.
    pub fn claimed_names(&self) -> Vec<&str> {
        self.signatures.iter().map(|signature| signature.name.as_str()).collect()
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\n", self.text);
        for signature in &self.signatures {
            let bytes = [signature.hash.as_slice(), &signature.bytes].concat();
            text.push_str(&format!("\u{2014} {} {}\n", signature.name, Base64::encode_string(&bytes)));
        }
        text.into_bytes()
    }

    /// Adds the signature of `key`, which `sign` makes of the bytes it is given, in place of an earlier one of this key.
    ///
    /// # Errors
    /// Whatever `sign` reports.
    pub fn sign<E>(
        &mut self,
        key: &VerifierKey,
        at: Instant,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let signed = sign(&key.message(&self.text, at))?;
        let time = u64::try_from(at.unix()).unwrap_or_default().to_be_bytes();
        let bytes = match key.kind {
            KeyKind::Log => signed,
            KeyKind::Witness => [time.as_slice(), &signed].concat(),
        };
        let (name, hash) = (key.name.clone(), key.hash());
        self.signatures.retain(|known| (&known.name, known.hash) != (&name, hash));
        self.signatures.push(NoteSignature { name, hash, bytes });
        Ok(())
    }

    /// Adds the signatures of another note with the same text that this one has not.
    ///
    /// # Errors
    /// [`NoteError::Syntax`]: it is another text.
    pub fn merge(&mut self, other: &Self) -> Result<usize, NoteError> {
        if other.text != self.text {
            return Err(NoteError::Syntax("it is a note with another text"));
        }
        let before = self.signatures.len();
        for signature in &other.signatures {
            let same = |known: &NoteSignature| (&known.name, known.hash) == (&signature.name, signature.hash);
            if !self.signatures.iter().any(same) {
                self.signatures.push(signature.clone());
            }
        }
        if self.signatures.len() > SIGNATURES_MAX {
            return Err(NoteError::Syntax("it has too many signatures"));
        }
        Ok(self.signatures.len() - before)
    }

    /// Checks that `key` signed it, and says when.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`], [`NoteError::Wrong`].
    pub fn verify(&self, key: &VerifierKey) -> Result<SignedAt, NoteError> {
        let hash = key.hash();
        let own = |signature: &&NoteSignature| signature.name == key.name && signature.hash == hash;
        let signature = self.signatures.iter().find(own);
        let signature = signature.ok_or_else(|| NoteError::NotSigned(key.name.clone()))?;
        let wrong = || NoteError::Wrong(key.name.clone());
        let (at, bytes) = match key.kind {
            KeyKind::Log => (None, signature.bytes.as_slice()),
            KeyKind::Witness => {
                let (time, bytes) = signature.bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
                let at = i64::try_from(u64::from_be_bytes(*time)).ok().and_then(Instant::from_unix);
                (Some(at.ok_or_else(wrong)?), bytes)
            }
        };
        let never = Instant::from_unix(0).expect("the epoch is a time");
        let message = key.message(&self.text, at.unwrap_or(never));
        UnparsedPublicKey::new(&ED25519, key.public).verify(&message, bytes).map_err(|_| wrong())?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    /// The example of the Go implementation (golang.org/x/mod/sumdb/note), which the specification took over.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn at(unix: i64) -> Instant {
        Instant::from_unix(unix).unwrap()
    }

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn key(pair: &Ed25519KeyPair, name: &str, kind: KeyKind) -> VerifierKey {
        VerifierKey::new(name, kind, pair.public_key().as_ref().try_into().unwrap()).unwrap()
    }

    fn signed(pair: &Ed25519KeyPair) -> impl FnOnce(&[u8]) -> Result<Vec<u8>, NoteError> + '_ {
        |message| Ok(pair.sign(message).as_ref().to_vec())
    }

    #[test]
    fn note_of_another_implementation_is_verified() {
        let key: VerifierKey = KEY.parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        let note = Note::parse(NOTE.as_bytes()).unwrap();
        assert_eq!(note.verify(&key), Ok(None));
        assert_eq!(note.to_bytes(), NOTE.as_bytes());
    }

    #[test]
    fn every_changed_byte_of_a_note_is_noticed() {
        let key: VerifierKey = KEY.parse().unwrap();
        for at in 0..NOTE.len() {
            let mut bytes = NOTE.as_bytes().to_vec();
            bytes[at] ^= 1;
            let verified = Note::parse(&bytes).and_then(|note| note.verify(&key));
            assert!(verified.is_err(), "byte {at}");
        }
        for at in 0..KEY.len() {
            let mut bytes = KEY.as_bytes().to_vec();
            bytes[at] ^= 1;
            let parsed = str::from_utf8(&bytes).unwrap().parse::<VerifierKey>();
            assert!(parsed.is_err(), "byte {at} of the key");
        }
    }

    #[test]
    fn cosignature_holds_for_its_time_its_key_and_its_kind_only() {
        let (log, witness) = (pair(1), pair(2));
        let log_key = key(&log, "log.example", KeyKind::Log);
        let witness_key = key(&witness, "witness.example", KeyKind::Witness);
        let mut note = Note::new("log.example\n7\nroot\n".to_owned()).unwrap();
        note.sign(&log_key, at(5), signed(&log)).unwrap();
        note.sign(&witness_key, at(1_700_000_000), signed(&witness)).unwrap();
        let note = Note::parse(&note.to_bytes()).unwrap();
        assert_eq!(note.verify(&log_key), Ok(None));
        assert_eq!(note.verify(&witness_key), Ok(Some(at(1_700_000_000))));
        let same_key_as_log = key(&witness, "witness.example", KeyKind::Log);
        assert_eq!(note.verify(&same_key_as_log), Err(NoteError::NotSigned("witness.example".to_owned())));
        let mut later = note.clone();
        later.signatures[1].bytes[7] ^= 1;
        assert_eq!(later.verify(&witness_key), Err(NoteError::Wrong("witness.example".to_owned())));
        let other = key(&pair(3), "witness.example", KeyKind::Witness);
        assert_eq!(note.verify(&other), Err(NoteError::NotSigned("witness.example".to_owned())));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let line = "\u{2014} a AAAAAAA=";
        for text in [
            String::new(),
            "text\n".to_owned(),
            format!("text\n{line}\n"),
            format!("text\n\n{line}"),
            "text\n\n".to_owned(),
            format!("te\txt\n\n{line}\n"),
            "text\n\n- a AAAAAAA=\n".to_owned(),
            "text\n\n\u{2014} a b AAAAAAA=\n".to_owned(),
            "text\n\n\u{2014} a AAAA\n".to_owned(),
            format!("text\n\n{}", format!("{line}\n").repeat(65)),
            format!("{}\n\n{line}\n", "x".repeat(NOTE_BYTES_MAX)),
        ] {
            assert!(Note::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        Note::parse(format!("text\n\n{line}\n").as_bytes()).unwrap();
    }
}
