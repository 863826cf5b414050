//! The delta codecs through the public API: contract cases, hostile patches, other people's tools.

mod cases;
pub mod hostile;
mod interop;

use cutover_bundle::delta::{
    self, AVAILABLE, Algorithm, Content, Declared, DeltaError, DeltaLimits, GenerateOptions, Pair,
};

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Something like a text: words, most of them often.
pub fn words(length: usize, seed: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 16);
    let mut numbers = noise(length, seed).into_iter();
    while text.len() < length {
        let word = u32::from(numbers.next().expect("enough"));
        text.extend(format!("word{} ", word * word / 400).bytes());
    }
    text.truncate(length);
    text
}

/// Old and new files of many kinds, by name.
pub fn pairs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let base = words(60_000, 1);
    let mut edited = base.clone();
    edited.splice(1000..1200, noise(777, 2));
    edited.splice(30_000..35_000, std::iter::empty());
    let start = edited.len() - 5_000;
    edited[start..start + 100].fill(b'x');
    let mut shifted = base.clone();
    for at in (100..shifted.len()).step_by(97) {
        shifted[at] = shifted[at].wrapping_add(3);
    }
    let moved = [&base[40_000..], &base[..40_000], b"and an end"].concat();
    let repeated = base[..3000].repeat(9);
    vec![
        ("edited", base.clone(), edited),
        ("shifted", base.clone(), shifted),
        ("moved", base.clone(), moved),
        ("repeated", base.clone(), repeated),
        ("equal", base.clone(), base.clone()),
        ("disjoint", noise(5000, 3), noise(6000, 4)),
        ("tiny", b"a".to_vec(), b"b".to_vec()),
        ("grown", b"seed".to_vec(), base.clone()),
        ("shrunk", base, b"seed".to_vec()),
        ("zeros", vec![0; 100_000], vec![0; 70_000]),
    ]
}

pub fn generate(algorithm: Algorithm, old: &[u8], new: &[u8]) -> Vec<u8> {
    let pair = Pair::new(old, new);
    delta::generate(algorithm, &pair, &GenerateOptions::default())
        .unwrap_or_else(|error| panic!("{algorithm}: {error}"))
}

pub fn declared(old: &[u8], patch: &[u8], new: &[u8]) -> Declared {
    Declared { base: Content::of(old), patch: Content::of(patch), result: Content::of(new) }
}

/// Applies `patch`, which need not be what `new` was made into.
pub fn apply(algorithm: Algorithm, old: &[u8], patch: &[u8], new: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let limits = DeltaLimits { memory_bytes_max: 64 << 20, ..DeltaLimits::default() };
    let declared = declared(old, patch, new);
    let (out, applied) =
        delta::apply(algorithm, &old.to_vec(), &patch.to_vec(), &declared, &limits, Vec::new())?;
    assert_eq!(applied.result_bytes, new.len() as u64);
    assert_eq!(out, new, "{algorithm}: a wrong result was called right");
    Ok(out)
}

/// Runs the bare decoder, which has no digest to save it, within 64 MiB; returns what it wrote, checked against `size`.
pub fn decode(algorithm: Algorithm, old: &[u8], patch: &[u8], size: u64) -> Result<Vec<u8>, DeltaError> {
    let limits = DeltaLimits { memory_bytes_max: 64 << 20, ..DeltaLimits::default() };
    let mut out = Vec::new();
    let result = delta::decode_unchecked(algorithm, &old.to_vec(), &patch.to_vec(), size, &limits, &mut out);
    assert!(out.len() as u64 <= size, "{algorithm}: more than declared was written");
    result.map(|_| out)
}

/// The four public formats.
pub const PUBLIC: [Algorithm; 4] =
    [Algorithm::Bsdiff, Algorithm::Xdelta3, Algorithm::Vcdiff, Algorithm::ZstdDict];

#[test]
fn every_public_format_is_available() {
    for algorithm in PUBLIC {
        assert!(AVAILABLE.contains(&algorithm), "{algorithm}");
    }
}
