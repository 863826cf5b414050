//! Exit codes: what a script learns from one run of the program.
//!
//! One enum with one doc line per code. `docs/reference/exit-codes.md` is generated from [`Exit::ALL`] and compared by
//! `cargo xtask tidy`. Which error leads to which code is decided in [`crate::failure`], nowhere else.

use std::process::ExitCode;

macro_rules! exit_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $word:literal;)+) => {
        /// How a run ended. The numbers are promised: they never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Exit {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Exit {
            /// Every code, in numeric order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word for it in JSON output.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// What it means, as in the documentation.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+
                }
            }
        }
    };
}

exit_codes! {
    /// Done.
    Done = 0, "done";
    /// Failed; nothing has changed.
    Failed = 1, "failed";
    /// Wrong usage: an argument, a setting or a release specification is not valid.
    Usage = 2, "usage";
    /// Nothing to do: what was asked for is already so.
    NothingToDo = 3, "nothing-to-do";
    /// Another run holds the update lock.
    InProgress = 10, "already-in-progress";
    /// Refused: the signature, a certificate, or the trust anchor does not allow it.
    NotTrusted = 11, "not-trusted";
    /// Refused by a check before the start: space, memory, permissions, the service.
    Preflight = 12, "preflight";
    /// Refused by policy: downgrade, version step, platform, channel, dependency, changed files.
    Policy = 13, "policy";
    /// A probe failed after the switch; the old release was restored and runs.
    ProbeFailed = 14, "probe-failed-restored";
    /// Going back failed, or the state is `failed`: somebody must act now.
    RestoreFailed = 15, "restore-failed";
    /// Refused: unsafe content, such as paths that leave the release, contradicting sizes, or exceeded limits.
    UnsafeContent = 16, "unsafe-content";
    /// Local state or an installed file is damaged.
    Damaged = 17, "damaged";
    /// A probe failed after the switch; the new release was kept, as the settings say.
    ProbeFailedKept = 18, "probe-failed-kept";
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The table of `docs/reference/exit-codes.md`.
    pub fn reference() -> String {
        use std::fmt::Write as _;
        let mut text = String::from("code | word in JSON | meaning\n-|-|-\n");
        for exit in Self::ALL {
            writeln!(text, "{} | `{}` | {}", exit.code(), exit.word(), exit.meaning())
                .expect("writing to a string cannot fail");
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_promised_numbers_and_distinct() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18]);
    }
}
