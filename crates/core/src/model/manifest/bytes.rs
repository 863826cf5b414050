//! From the bytes that were signed to a manifest, and from a manifest to the bytes to be signed.

use serde::Deserialize;

use super::{
    description::{MANIFEST_FORMAT, Manifest},
    error::ManifestError,
    limits::ManifestLimits,
};

impl Manifest {
    /// Reads a manifest from the bytes that were signed.
    ///
    /// # Errors
    /// See [`ManifestError`]; nothing is allocated beyond `limits.bytes_max` times a small constant.
    pub fn parse(bytes: &[u8], limits: &ManifestLimits) -> Result<Self, ManifestError> {
        /// Looks at the format before anything else is believed.
        #[derive(Deserialize)]
        struct FormatOnly {
            #[serde(default)]
            format: u32,
        }
        if bytes.len() > limits.bytes_max {
            return Err(ManifestError::TooLarge { actual: bytes.len(), limit: limits.bytes_max });
        }
        let syntax = |error: serde_json::Error| {
            ManifestError::Syntax(
                error
                    .to_string()
                    .chars()
                    .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
                    .collect(),
            )
        };
        match serde_json::from_slice::<FormatOnly>(bytes).map_err(syntax)?.format {
            MANIFEST_FORMAT => {}
            other => return Err(ManifestError::Format(other)),
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// Writes the manifest as the bytes to be signed.
    ///
    /// # Errors
    /// As [`Manifest::parse`]: what cannot be read back is not written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check(&ManifestLimits::default())?;
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
