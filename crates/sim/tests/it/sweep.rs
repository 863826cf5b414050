//! Every story in the three layouts, broken at every call: afterwards the tree is entirely old or entirely new.
//!
//! A bounded part of the full sweep ([`Depth::Sampled`]), the same in every run: a kill and three power cuts before and
//! after every call that changes something; of the other faults, and of second crashes in the recovery, a sample chosen
//! by the seed `CUTOVER_SIM_SEED`. Everything: `cargo run --release -p cutover-sim --example sweep -- --full`. A failure
//! prints the command that replays it.

use cutover_sim::{Depth, LAYOUTS, Subject, layout_name, seed, stories, story};

fn sweep(name: &str) {
    for layout in LAYOUTS {
        let what = format!("{name}/{}", layout_name(layout));
        let subject = Subject::prepare(story(name).expect(name), layout)
            .unwrap_or_else(|problem| panic!("{what}: {problem}"));
        let tally = subject.sweep(Depth::Sampled, seed()).unwrap_or_else(|failure| panic!("{failure}"));
        let effects = subject.calls().iter().filter(|call| call.op.is_effect()).count() as u64;
        assert!(tally.points >= 8 * effects, "{what}: {tally:?} for {effects} effects");
        assert!(tally.states > effects && tally.continued > 0, "{what}: {tally:?} for {effects} effects");
    }
}

macro_rules! sweeps {
    ($($test:ident: $story:literal,)*) => {
        $(
            // E5, inst-1, inst-2, inst-3
            #[test]
            fn $test() {
                sweep($story);
            }
        )*

        #[test]
        fn every_story_is_swept() {
            let swept = [$($story),*];
            assert_eq!(stories().iter().map(|story| story.name).collect::<Vec<_>>(), swept);
        }
    };
}

sweeps! {
    first_install_ends_old_or_new_whatever_breaks: "first-install",
    failing_first_install_ends_old_whatever_breaks: "failing-first-install",
    update_ends_old_or_new_whatever_breaks: "update",
    second_update_ends_old_or_new_whatever_breaks: "second-update",
    update_with_reflinks_ends_old_or_new_whatever_breaks: "update-with-reflinks",
    update_over_damage_ends_old_or_new_whatever_breaks: "update-over-damage",
    update_without_catalog_ends_old_or_new_whatever_breaks: "update-without-catalog",
    failing_update_ends_old_whatever_breaks: "failing-probe",
    rollback_ends_old_or_new_whatever_breaks: "rollback",
    rollback_to_an_older_point_ends_old_or_new_whatever_breaks: "rollback-to-older",
    rollback_to_nothing_ends_old_or_new_whatever_breaks: "rollback-to-nothing",
    rollback_to_a_damaged_tree_ends_old_or_new_whatever_breaks: "rollback-to-damaged",
    rollback_to_a_cold_point_ends_old_or_new_whatever_breaks: "rollback-to-cold",
    failing_rollback_ends_old_whatever_breaks: "failing-rollback",
    update_after_rollback_ends_old_or_new_whatever_breaks: "update-after-rollback",
    prune_loses_nothing_that_is_needed_whatever_breaks: "prune",
    prune_to_cold_loses_nothing_that_is_needed_whatever_breaks: "prune-to-cold",
    repair_leaves_every_file_old_or_new_whatever_breaks: "repair",
}
