//! The default code table (RFC 3284, 5.6).

use std::sync::LazyLock;

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Noop,
    /// Bytes of the data section.
    Add,
    /// One byte of the data section, repeated.
    Run,
    /// Bytes from the source segment or the window itself, with this address mode.
    Copy(u8),
}

/// Half of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// What it does.
    pub(super) kind: Kind,
    /// On how many bytes; 0 means that the size follows the code.
    pub(super) size: u8,
}

const NOOP: Instruction = Instruction { kind: Kind::Noop, size: 0 };

/// Address modes: self, here, 4 near ones, 3 same ones.
pub(super) const MODES: u8 = 9;

/// For each code its one or two instructions.
pub(super) static TABLE: LazyLock<[[Instruction; 2]; 256]> = LazyLock::new(|| {
    let one = |kind, size| [Instruction { kind, size }, NOOP];
    let add = |size| Instruction { kind: Kind::Add, size };
    let copy = |mode, size| Instruction { kind: Kind::Copy(mode), size };
    let mut codes = vec![one(Kind::Run, 0)];
    codes.extend((0..=17).map(|size| one(Kind::Add, size)));
    for mode in 0..MODES {
        codes.push(one(Kind::Copy(mode), 0));
        codes.extend((4..=18).map(|size| one(Kind::Copy(mode), size)));
    }
    for mode in 0..6 {
        for first in 1..=4 {
            codes.extend((4..=6).map(|second| [add(first), copy(mode, second)]));
        }
    }
    for mode in 6..MODES {
        codes.extend((1..=4).map(|first| [add(first), copy(mode, 4)]));
    }
    codes.extend((0..MODES).map(|mode| [copy(mode, 4), add(1)]));
    let mut table = [[NOOP; 2]; 256];
    table.copy_from_slice(&codes);
    table
});

/// The code for one instruction, and whether its size must follow.
pub(super) fn code(kind: Kind, size: usize) -> (u8, bool) {
    match kind {
        Kind::Noop | Kind::Run => (0, true),
        Kind::Add if (1..=17).contains(&size) => (1 + size as u8, false),
        Kind::Add => (1, true),
        Kind::Copy(mode) if (4..=18).contains(&size) => (19 + 16 * mode + size as u8 - 3, false),
        Kind::Copy(mode) => (19 + 16 * mode, true),
    }
}

/// The code that does both, if there is one.
pub(super) fn code_of_two(first: (Kind, usize), second: (Kind, usize)) -> Option<u8> {
    match (first, second) {
        ((Kind::Add, add @ 1..=4), (Kind::Copy(mode @ 0..6), copy @ 4..=6)) => {
            Some(163 + 12 * mode + 3 * (add as u8 - 1) + copy as u8 - 4)
        }
        ((Kind::Add, add @ 1..=4), (Kind::Copy(mode), 4)) => Some(235 + 4 * (mode - 6) + add as u8 - 1),
        ((Kind::Copy(mode), 4), (Kind::Add, 1)) => Some(247 + mode),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_rfc() {
        let copy = |mode, size| Instruction { kind: Kind::Copy(mode), size };
        let add = |size| Instruction { kind: Kind::Add, size };
        // The first line of each group in RFC 3284's section 5.6, and the last code.
        assert_eq!(TABLE[0], [Instruction { kind: Kind::Run, size: 0 }, NOOP]);
        assert_eq!(TABLE[1], [add(0), NOOP]);
        assert_eq!(TABLE[18], [add(17), NOOP]);
        assert_eq!(TABLE[19], [copy(0, 0), NOOP]);
        assert_eq!(TABLE[20], [copy(0, 4), NOOP]);
        assert_eq!(TABLE[147], [copy(8, 0), NOOP]);
        assert_eq!(TABLE[163], [add(1), copy(0, 4)]);
        assert_eq!(TABLE[223], [add(1), copy(5, 4)]);
        assert_eq!(TABLE[235], [add(1), copy(6, 4)]);
        assert_eq!(TABLE[247], [copy(0, 4), add(1)]);
        assert_eq!(TABLE[255], [copy(8, 4), add(1)]);
    }

    #[test]
    fn the_writer_and_the_table_agree_on_every_code() {
        for (code_point, instructions) in TABLE.iter().enumerate() {
            let [first, second] = *instructions;
            let (first, second) =
                ((first.kind, usize::from(first.size)), (second.kind, usize::from(second.size)));
            let expected = code_point as u8;
            if second.0 == Kind::Noop {
                assert_eq!(code(first.0, first.1), (expected, first.1 == 0), "{code_point}");
            } else {
                assert_eq!(code_of_two(first, second), Some(expected), "{code_point}");
            }
        }
        assert_eq!(code_of_two((Kind::Add, 5), (Kind::Copy(0), 4)), None);
        assert_eq!(code_of_two((Kind::Add, 1), (Kind::Copy(6), 5)), None);
        assert_eq!(code_of_two((Kind::Copy(0), 5), (Kind::Add, 1)), None);
    }
}
