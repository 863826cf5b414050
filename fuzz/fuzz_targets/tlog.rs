//! A checkpoint, an entry bundle and a proof from anywhere: nothing of it is believed, and what is read is what was written.

#![no_main]

use cutover_bundle::tlog::{Checkpoint, LogEntry, Note, VerifierKey, entries_of, merkle};
use cutover_core::model::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(note) = Note::parse(bytes) {
        assert_eq!(Note::parse(&note.to_bytes()).expect("what was written can be read"), note);
        if let Ok(checkpoint) = Checkpoint::parse(note.text()) {
            assert_eq!(Checkpoint::parse(&checkpoint.to_text()), Ok(checkpoint));
        }
    }
    if let Some(entry) = LogEntry::parse(bytes) {
        assert_eq!(entry.to_bytes(), bytes);
    }
    if let Some(key) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<VerifierKey>().ok()) {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    let Some((sizes, rest)) = bytes.split_first_chunk::<3>() else { return };
    let [index, old, new] = sizes.map(u64::from);
    let _ = entries_of("fuzzed", rest, new);
    let (hashes, _) = rest.as_chunks::<32>();
    let proof: Vec<Digest> = hashes.iter().copied().map(Digest::from_bytes).collect();
    let root = Digest::of(b"a root that no proof leads to");
    assert!(merkle::verify_inclusion(merkle::leaf_hash(rest), index, new, &proof, root).is_err());
    if old != new || old == 0 {
        assert!(merkle::verify_consistency((old, root), (new, root), &proof).is_err());
    }
});
