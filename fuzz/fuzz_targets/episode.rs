//! The archive of an episode: how it is cut into pieces changes nothing, and only a full commit comes out.

#![no_main]

use cutover_bundle::episode::{CommitScan, NoCommit, ScanLimits, Scanned};
use libfuzzer_sys::fuzz_target;

/// Small, so that a bomb ends at once.
const LIMITS: ScanLimits =
    ScanLimits { meta_bytes_max: 4096, window_log_max: 20, expansion_max: 64, free_bytes: 1 << 20 };

fn scan(pieces: &[&[u8]]) -> Result<String, NoCommit> {
    let mut scan = CommitScan::new(LIMITS).expect("memory");
    for piece in pieces {
        if scan.push(piece) != Scanned::More {
            break;
        }
    }
    scan.finish().map(|commit| commit.to_string())
}

fuzz_target!(|bytes: &[u8]| {
    let whole = scan(&[bytes]);
    if let Ok(commit) = &whole {
        assert!(matches!(commit.len(), 40 | 64));
    }
    let (one, two) = bytes.split_at(bytes.len() / 3);
    // How much was taken when a bomb is noticed depends on the pieces.
    if !matches!(whole, Err(NoCommit::Bomb(_))) {
        assert_eq!(scan(&[one, two]).ok(), whole.ok());
    }
});
