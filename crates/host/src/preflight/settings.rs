//! `[preflight]`: what must hold before anything changes.

use std::collections::BTreeMap;

use cutover_core::model::{Name, Version};
use serde::{Deserialize, Serialize};

/// What must hold before anything changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreflightSettings {
    /// Longest time of all checks together, in milliseconds; at most 2000 are used.
    pub timeout_ms: u32,
    /// Memory that must be available, in MiB; 0: not checked.
    pub memory_mib: u64,
    /// What a check means that cannot tell, such as free memory on a system that does not say.
    pub unknown: Unknown,
    /// Packages this machine has besides the installed one, for the requirements of releases.
    pub packages: BTreeMap<Name, Version>,
}

/// What a check means that cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// The update goes on.
    #[default]
    Pass,
    /// The update is refused.
    Fail,
}

impl Default for PreflightSettings {
    fn default() -> Self {
        Self { timeout_ms: 2000, memory_mib: 0, unknown: Unknown::default(), packages: BTreeMap::new() }
    }
}

impl PreflightSettings {
    /// The time of all checks together.
    pub fn budget(&self) -> std::time::Duration {
        std::time::Duration::from_millis(u64::from(self.timeout_ms)).min(super::BUDGET_MAX)
    }
}
