//! What is staged is read back: a file that does not lie there as it was written changes nothing that anybody sees.

use std::path::PathBuf;

use cutover_core::execute::Outcome;
use cutover_sim::{
    Action, Ended, Faults, FileSystem, LAYOUTS, Op, TreeKind, Visible, layout_name, leftovers, story,
};

/// What happens to a file between the write and the look at it.
type Spoil = fn(&mut FileSystem, &PathBuf, Vec<u8>);

// E7
#[test]
fn staged_file_that_is_not_as_it_was_written_undoes_the_update_and_is_named() {
    let spoils: [(&str, Spoil); 3] = [
        ("altered", |fs, path, mut bytes| {
            bytes[5000] ^= 1;
            fs.put(path, &bytes, 0o644).expect("put");
        }),
        ("cut", |fs, path, bytes| fs.put(path, &bytes[..bytes.len() - 1], 0o644).expect("put")),
        ("removed", |fs, path, _| fs.remove(path).expect("removed")),
    ];
    for layout in LAYOUTS {
        for (how, spoil) in spoils {
            let point = format!("{}, {how}", layout_name(layout));
            let story = story("update").expect("a story");
            let mut machine = story.prepare(layout).expect("prepared");
            let before = Visible::of(&machine.fs, layout);
            let mut is_spoiled = false;
            let faults = Faults::script(move |call, fs| {
                let staged = call.path.starts_with(".cutover/staging") && call.path.ends_with("share/data");
                let looks = matches!(call.op, Op::Metadata | Op::Open | Op::Read);
                if staged
                    && looks
                    && !is_spoiled
                    && let Some(bytes) = fs.read_file(&call.path)
                {
                    spoil(fs, &call.path, bytes);
                    is_spoiled = true;
                }
                None
            });
            let life = machine.run(&story.action, faults);
            match &life.ended {
                Ended::Executed(report) => match &report.outcome {
                    Outcome::Undone { reason } => {
                        assert!(reason.contains("staged file `share/data`"), "{point}: {reason}");
                    }
                    outcome => panic!("{point}: {outcome:?}"),
                },
                ended => panic!("{point}: {ended:?}"),
            }
            assert!(!life.trace.iter().any(|call| call.path.ends_with("restore/000002")), "{point}");
            let now = Visible::of(&machine.fs, layout);
            assert!(now == before, "{point}: {}", now.difference(&before));
            assert_eq!(leftovers(&machine.fs), [""; 0], "{point}");
            let journals = machine.fs.tree(".cutover/journal").unwrap_or_default();
            assert!(journals.0.values().any(|entry| matches!(entry.kind, TreeKind::File(_))), "{point}");
            assert!(matches!(machine.run(&Action::Recover, Faults::none()).ended, Ended::Nothing), "{point}");
        }
    }
}
