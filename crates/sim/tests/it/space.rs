//! Disks on which there is room for a part of an update: whatever it is enough for, the update is refused, undone or done, and the
//! journal tells how it ended.

use std::path::Path;

use cutover_core::{
    execute::Outcome,
    plan::{Layout, RollbackTarget},
    retain::Retention,
};
use cutover_host::node::NodeError;
use cutover_sim::{
    Action, BLOCK, Ended, Faults, FileSystem, LAYOUTS, Op, Options, Random, Visible, layout_name, leftovers,
    story,
};

/// How many sizes of each kind are tried in a layout.
const SIZES: u64 = 40;

/// When the room becomes short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    /// Before the plan, which is then refused when it can know.
    Before,
    /// Once the plan was made: somebody else takes the room.
    Amid,
}

/// Updates with so much room left, from none at all to twice what is needed.
fn update_with_room(short: Short, capacity: fn(&mut Options, u64), used: fn(&FileSystem) -> u64) {
    for layout in LAYOUTS {
        let story = story("update").expect("a story");
        let base = story.prepare(layout).expect("prepared");
        let before = Visible::of(&base.fs, layout);
        let mut good = base.fork();
        good.run(&story.action, Faults::none());
        let after = Visible::of(&good.fs, layout);
        let need = used(&good.fs) - used(&base.fs);
        let (mut confirmed, mut refused, mut undone) = (0, 0, 0);
        for size in 0..=SIZES {
            let room = 2 * need * size / SIZES;
            let point = format!("{}, {short:?}: room for {room} of {need}", layout_name(layout));
            let limit = move |fs: &mut FileSystem| {
                let mut options = fs.options();
                capacity(&mut options, used(fs) + room);
                *fs = fs.clone().with_options(options);
            };
            let mut machine = base.fork();
            let faults = match short {
                Short::Before => {
                    limit(&mut machine.fs);
                    Faults::none()
                }
                Short::Amid => {
                    let mut is_short = false;
                    Faults::script(move |call, fs| {
                        if !is_short && call.op == Op::Append && call.path.starts_with(".cutover/journal") {
                            is_short = true;
                            limit(fs);
                        }
                        None
                    })
                }
            };
            match machine.run(&story.action, faults).ended {
                Ended::Executed(report) => match report.outcome {
                    Outcome::Confirmed => confirmed += 1,
                    Outcome::Undone { .. } => undone += 1,
                    outcome => panic!("{point}: {outcome:?}"),
                },
                Ended::Failed(NodeError::NoSpace { .. }) => refused += 1,
                // It could not even begin.
                Ended::Failed(error) => {
                    refused += 1;
                    assert!(format!("{error:?}").contains("StorageFull"), "{point}: {error:?}");
                }
                ended => panic!("{point}: {ended:?}"),
            }
            let now = Visible::of(&machine.fs, layout);
            assert!(now == before || now == after, "{point}: {}", now.difference(&before));
            let again = machine.run(&Action::Recover, Faults::none()).ended;
            assert!(matches!(again, Ended::Nothing), "{point}: {again:?}");
            assert_eq!(leftovers(&machine.fs), [""; 0], "{point}");
            // With room, the next one goes on.
            machine.fs = machine.fs.with_options(base.fs.options());
            let next = machine.run(&Action::Update(3), Faults::none()).ended;
            assert!(
                matches!(&next, Ended::Executed(report) if report.outcome == Outcome::Confirmed),
                "{point}: {next:?}"
            );
        }
        let all = format!("{}: {confirmed} done, {refused} refused, {undone} undone", layout_name(layout));
        assert!(confirmed > 2 && refused + undone > 2, "{all}");
        assert!(short == Short::Before || undone > 2, "{all}");
    }
}

// inst-4
#[test]
fn update_that_runs_out_of_bytes_anywhere_is_refused_undone_or_done() {
    for short in [Short::Before, Short::Amid] {
        update_with_room(short, |options, size| options.capacity_bytes = Some(size), FileSystem::used_bytes);
    }
}

// inst-4
#[test]
fn update_that_runs_out_of_inodes_anywhere_is_refused_undone_or_done() {
    for short in [Short::Before, Short::Amid] {
        update_with_room(
            short,
            |options, size| options.capacity_inodes = Some(size),
            FileSystem::used_inodes,
        );
    }
}

#[test]
fn prune_on_a_full_disk_frees_what_it_can_and_every_point_that_stays_leads_back() {
    for layout in LAYOUTS {
        let story = story("update-over-damage").expect("a story");
        let mut base = story.prepare(layout).expect("prepared");
        // Only the tree that is to go cold has it, and it does not compress.
        let mut random = Random::new(5);
        let data: Vec<u8> =
            (0..8 * BLOCK).map(|_| u8::try_from(random.below(256)).expect("a byte")).collect();
        let tree = Visible::of(&base.fs, layout).path.expect("installed");
        base.fs.put(Path::new(&tree).join("share/data"), &data, 0o644).expect("written");
        for action in [story.action, Action::Update(2)] {
            base.run(&action, Faults::none());
        }
        let mut cooled = 0;
        let retention = Retention { keep: 2, warm: 1, ..Retention::default() };
        for room in (0..=20).map(|blocks| blocks * BLOCK as u64) {
            let point = format!("{}: room for {room}", layout_name(layout));
            let mut machine = base.fork();
            let mut options = machine.fs.options();
            options.capacity_bytes = Some(machine.fs.used_bytes() + room);
            machine.fs = machine.fs.with_options(options);
            let ended = machine.run(&Action::Prune(retention.clone()), Faults::none()).ended;
            let Ended::Pruned(report) = ended else { panic!("{point}: {ended:?}") };
            assert_eq!(report.removed_points.len(), 1, "{point}");
            cooled += report.cooled_points.len();
            assert_eq!(leftovers(&machine.fs), [""; 0], "{point}");
            machine.fs = machine.fs.with_options(base.fs.options());
            let target = RollbackTarget::Point("000002".parse().expect("an id"));
            let ended = machine.run(&Action::Rollback(target), Faults::none()).ended;
            assert!(
                matches!(&ended, Ended::Executed(report) if report.outcome == Outcome::Confirmed),
                "{point}: {ended:?}"
            );
        }
        let some = (1..=20).contains(&cooled);
        assert_eq!(some, layout != Layout::InPlace, "{}: cooled {cooled} times", layout_name(layout));
    }
}
