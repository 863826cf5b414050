//! SHA-256 digests: the names of objects and the identity of manifests.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use super::Parsed;

/// A SHA-256 digest (FIPS 180-4). Written as 64 lower-case hexadecimal digits; upper case is refused on input so that
/// one digest has one spelling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a string is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// Hashes `bytes` in one go.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Hashes the JSON form of `value`, which is never held as a whole.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn of_json(value: &impl Serialize) -> serde_json::Result<Self> {
        // Gathered, because JSON is written in pieces of a few bytes.
        let mut gathered = io::BufWriter::with_capacity(16 << 10, Hasher::new());
        serde_json::to_writer(&mut gathered, value)?;
        Ok(gathered.into_inner().ok().expect("hashing does not fail").finish())
    }

    /// Wraps 32 raw digest bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw digest bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hexadecimal digits: enough to tell two builds of one version apart in a directory name.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

/// Computes a [`Digest`] while bytes stream by.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Ends the hash.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// What is written to it is hashed and goes nowhere.
impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Manifests and plans hold thousands of digests, so both directions go by tables.
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// The value of each digit; everything else is above 15.
const VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

impl Digest {
    /// Writes the digits to `buffer`.
    fn digits<'a>(&self, buffer: &'a mut [u8; 64]) -> &'a str {
        for (pair, byte) in buffer.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        std::str::from_utf8(buffer).expect("digits are ASCII")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.digits(&mut [0; 64]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| DigestError)?;
        let mut bytes = [0; 32];
        let mut seen = 0;
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let (high, low) = (VALUES[usize::from(pair[0])], VALUES[usize::from(pair[1])]);
            seen |= high | low;
            *byte = high << 4 | low & 15;
        }
        if seen > 15 { Err(DigestError) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.digits(&mut [0; 64]))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("a digest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // M2; the vector is FIPS 180-4's "abc".
    #[test]
    fn digest_is_sha256_in_lower_case_hex() {
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"abc")));
        let mut streamed = Hasher::new();
        streamed.update(b"a");
        streamed.update(b"bc");
        assert_eq!(streamed.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn upper_case_short_and_non_hex_digests_are_refused() {
        let good = Digest::of(b"").to_string();
        for text in [good.to_uppercase(), good[1..].to_owned(), good.replace('e', "g"), format!("{good}0")] {
            assert_eq!(text.parse::<Digest>(), Err(DigestError), "{text}");
        }
    }
}
