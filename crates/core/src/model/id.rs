//! Short names that become parts of file names: packages, channels, platforms, restore points.

use crate::text::{checked_text, is_plain, shown};

/// The longest name, in bytes.
const LENGTH_MAX: usize = 64;

/// Why a string is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a valid {what}: use 1 to 64 of A-Z a-z 0-9 . _ - and do not start with . or -")]
pub struct IdError {
    /// What was given, shortened and escaped.
    pub input: String,
    /// What it was meant to be.
    pub what: &'static str,
}

fn check(input: &str, what: &'static str) -> Result<(), IdError> {
    let good = (1..=LENGTH_MAX).contains(&input.len()) && !input.starts_with(['.', '-']) && is_plain(input);
    if good { Ok(()) } else { Err(IdError { input: shown(input), what }) }
}

checked_text!(
    /// The name of a package, platform or channel: 1 to 64 of `A-Za-z0-9._-`, not starting with `.` or `-`.
    Name,
    "name",
    check,
    IdError
);
checked_text!(
    /// The id of a restore point: the number of the execution that made it, zero-padded, such as `000012`.
    /// Any other well-formed name parses too; it is then merely unknown.
    RestorePointId,
    "restore point id",
    check,
    IdError
);

impl RestorePointId {
    /// The id of the restore point that execution `number` makes.
    pub fn of_execution(number: u64) -> Self {
        Self(format!("{number:06}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // P7
    #[test]
    fn restore_point_id_that_leaves_its_directory_is_refused() {
        for text in ["../../x", "..", ".", "", "a/b", "a\\b", "a\0", "-rf", "a b", "é"] {
            assert!(text.parse::<RestorePointId>().is_err(), "{text:?} was accepted");
        }
        assert_eq!(RestorePointId::of_execution(12).as_str(), "000012");
    }
}
