//! Bounds on what a manifest may ask for.

/// Bounds on what a manifest may ask for; the defaults are in [`ManifestLimits::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestLimits {
    /// Most bytes of manifest JSON.
    pub bytes_max: usize,
    /// Most files and symlinks together.
    pub entries_max: usize,
    /// Most bytes in one file.
    pub file_bytes_max: u64,
    /// Most bytes in all files together.
    pub total_bytes_max: u64,
}

impl Default for ManifestLimits {
    /// 16 MiB of JSON, 100,000 entries, 1 TiB a file, 4 TiB in all.
    fn default() -> Self {
        Self { bytes_max: 16 << 20, entries_max: 100_000, file_bytes_max: 1 << 40, total_bytes_max: 4 << 40 }
    }
}
