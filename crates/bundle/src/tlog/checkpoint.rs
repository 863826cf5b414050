//! Checkpoints: the head of a log as a note (<https://c2sp.org/tlog-checkpoint>), and who has to have signed one.

use base64ct::{Base64, Encoding as _};
use cutover_core::model::Digest;

use super::{
    merkle,
    note::{KeyKind, Note, NoteError, VerifierKey},
};

/// Why a checkpoint is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It is no note, or not signed by the log.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Its text is no checkpoint.
    #[error("it is no checkpoint: {0}")]
    Syntax(&'static str),
    /// It is one of another log.
    #[error("it is a checkpoint of `{found}` and not of `{expected}`")]
    Origin {
        /// The log it speaks of, escaped.
        found: String,
        /// The log that is meant.
        expected: String,
    },
    /// Too few witnesses have seen it.
    #[error("{found} of the {needed} witnesses that are needed have cosigned it")]
    Witnesses {
        /// How many have.
        found: usize,
        /// How many must.
        needed: usize,
    },
}

/// The head of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// How many entries there are.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
}

impl Checkpoint {
    /// Its text, as it is signed.
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, Base64::encode_string(self.root.as_bytes()))
    }

    /// Reads the text of a note. Lines behind the third say something else and are passed over, as the format demands.
    ///
    /// # Errors
    /// [`CheckpointError::Syntax`].
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.split_terminator('\n');
        let mut line = || lines.next().ok_or(CheckpointError::Syntax("a line is missing"));
        let (origin, size, root) = (line()?, line()?, line()?);
        let digits =
            size.bytes().all(|byte| byte.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
        let size = size.parse().ok().filter(|_| digits).filter(|size| *size <= SIZE_MAX);
        let root = Base64::decode_vec(root).ok().and_then(|root| <[u8; 32]>::try_from(root).ok());
        let checkpoint = Self {
            origin: origin.to_owned(),
            size: size.ok_or(CheckpointError::Syntax("its size is no number"))?,
            root: root.map(Digest::from_bytes).ok_or(CheckpointError::Syntax("its root is no SHA-256"))?,
        };
        match (checkpoint.origin.is_empty(), checkpoint.size) {
            (true, _) => Err(CheckpointError::Syntax("it has no origin")),
            (false, 0) if checkpoint.root != merkle::empty_root() => {
                Err(CheckpointError::Syntax("its root is not that of an empty log"))
            }
            (false, _) => Ok(checkpoint),
        }
    }
}

/// The most entries of a log: no sum of indexes leaves 64 bits.
const SIZE_MAX: u64 = 1 << 48;

/// Who has to have signed a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPolicy {
    log: VerifierKey,
    witnesses: Vec<VerifierKey>,
    threshold: usize,
}

impl CheckpointPolicy {
    /// The log with this key, and `threshold` of these witnesses.
    ///
    /// # Errors
    /// [`NoteError::Key`]: a key is of the wrong kind or given twice, or there are fewer witnesses than are to sign.
    pub fn new(log: VerifierKey, witnesses: Vec<VerifierKey>, threshold: usize) -> Result<Self, NoteError> {
        if log.kind() != KeyKind::Log {
            return Err(NoteError::Key("the log's key is that of a witness"));
        }
        if witnesses.iter().any(|witness| witness.kind() != KeyKind::Witness) {
            return Err(NoteError::Key("a witness's key is that of a log"));
        }
        // One key under two names is one witness.
        let keys: std::collections::BTreeSet<_> = witnesses.iter().map(VerifierKey::public).collect();
        if keys.len() < witnesses.len() || keys.contains(log.public()) {
            return Err(NoteError::Key("one key is given twice"));
        }
        if threshold > witnesses.len() {
            return Err(NoteError::Key("more witnesses are to sign than there are"));
        }
        Ok(Self { log, witnesses, threshold })
    }

    /// The log's key.
    pub fn log(&self) -> &VerifierKey {
        &self.log
    }

    /// Reads a checkpoint and checks who signed it.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn verify(&self, bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
        let note = Note::parse(bytes)?;
        note.verify(&self.log)?;
        let checkpoint = Checkpoint::parse(note.text())?;
        if checkpoint.origin != self.log.name() {
            let found = checkpoint.origin.chars().take(160).flat_map(char::escape_default).collect();
            return Err(CheckpointError::Origin { found, expected: self.log.name().to_owned() });
        }
        let found = self.witnesses.iter().filter(|witness| note.verify(witness).is_ok()).count();
        if found < self.threshold {
            return Err(CheckpointError::Witnesses { found, needed: self.threshold });
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use cutover_core::model::Instant;

    use super::*;

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn key(seed: u8, name: &str, kind: KeyKind) -> VerifierKey {
        VerifierKey::new(name, kind, pair(seed).public_key().as_ref().try_into().unwrap()).unwrap()
    }

    fn checkpoint(origin: &str) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size: 3, root: Digest::of(b"root") }
    }

    /// A checkpoint, signed by the keys with these seeds.
    fn note(origin: &str, by: &[(u8, &str, KeyKind)]) -> Vec<u8> {
        let mut note = Note::new(checkpoint(origin).to_text()).unwrap();
        for (seed, name, kind) in by {
            let signed = |message: &[u8]| Ok::<_, ()>(pair(*seed).sign(message).as_ref().to_vec());
            note.sign(&key(*seed, name, *kind), Instant::from_unix(9).unwrap(), signed).unwrap();
        }
        note.to_bytes()
    }

    #[test]
    fn checkpoint_counts_with_the_log_and_as_many_distinct_witnesses_as_are_needed() {
        let witnesses = || [2u8, 3, 4].map(|seed| key(seed, &format!("w{seed}"), KeyKind::Witness)).to_vec();
        let policy = CheckpointPolicy::new(key(1, "log", KeyKind::Log), witnesses(), 2).unwrap();
        let log = (1, "log", KeyKind::Log);
        let (two, three) = ((2, "w2", KeyKind::Witness), (3, "w3", KeyKind::Witness));
        assert_eq!(policy.verify(&note("log", &[log, two, three])), Ok(checkpoint("log")));
        let too_few = Err(CheckpointError::Witnesses { found: 1, needed: 2 });
        assert_eq!(policy.verify(&note("log", &[log, two])), too_few);
        assert_eq!(policy.verify(&note("log", &[log, two, two])), too_few);
        let stranger = (9, "w4", KeyKind::Witness);
        assert_eq!(policy.verify(&note("log", &[log, two, stranger])), too_few);
        assert!(matches!(policy.verify(&note("log", &[two, three])), Err(CheckpointError::Note(_))));
        assert!(matches!(
            policy.verify(&note("other", &[log, two, three])),
            Err(CheckpointError::Origin { .. })
        ));
    }

    #[test]
    fn policies_that_mean_nothing_are_refused() {
        let (log, witness) = (key(1, "log", KeyKind::Log), key(2, "w", KeyKind::Witness));
        let again = key(2, "another-name", KeyKind::Witness);
        assert!(CheckpointPolicy::new(witness.clone(), Vec::new(), 0).is_err());
        assert!(CheckpointPolicy::new(log.clone(), vec![log.clone()], 1).is_err());
        assert!(CheckpointPolicy::new(log.clone(), vec![witness.clone(), again], 2).is_err());
        assert!(CheckpointPolicy::new(log.clone(), vec![witness.clone()], 2).is_err());
        assert!(CheckpointPolicy::new(log, vec![witness], 1).is_ok());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let root = Base64::encode_string(Digest::of(b"root").as_bytes());
        for text in [
            "log\n3\n".to_owned(),
            format!("\n3\n{root}\n"),
            format!("log\n03\n{root}\n"),
            format!("log\n+3\n{root}\n"),
            format!("log\n-3\n{root}\n"),
            format!("log\n99999999999999999999\n{root}\n"),
            format!("log\n3\n{}\n", &root[4..]),
            format!("log\n0\n{root}\n"),
        ] {
            assert!(Checkpoint::parse(&text).is_err(), "{text:?}");
        }
        let with_more = format!("{}more\n", checkpoint("log").to_text());
        assert_eq!(Checkpoint::parse(&with_more), Ok(checkpoint("log")));
    }
}
