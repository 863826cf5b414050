//! Sets of three roots, broken at calls of every kind: afterwards every root is as before, or every root is new.
//!
//! A bounded part of the full sweep ([`Depth::Sampled`]), the same in every run unless `CUTOVER_SIM_SEED` chooses another.
//! Everything: `cargo run --release -p cutover-sim --example sweep -- --full --story NAME`. A failure prints the command that
//! replays it.

use cutover_sim::{Depth, LAYOUTS, SetStory, SetSubject, layout_name, seed};

fn sweep(name: &str) {
    for layout in LAYOUTS {
        let what = format!("{name}/{}", layout_name(layout));
        let story = SetStory::all().into_iter().find(|story| story.name == name).expect(name);
        let subject =
            SetSubject::prepare(story, layout).unwrap_or_else(|problem| panic!("{what}: {problem}"));
        let tally = subject.sweep(Depth::Sampled, seed()).unwrap_or_else(|failure| panic!("{failure}"));
        let effects = subject.calls().iter().filter(|call| call.op.is_effect()).count() as u64;
        assert!(tally.points > effects / 4, "{what}: {tally:?} for {effects} effects");
        assert!(tally.double > 3 && tally.continued > 3, "{what}: {tally:?} for {effects} effects");
    }
}

macro_rules! sweeps {
    ($($test:ident: $story:literal,)*) => {
        $(
            // E5, inst-1, inst-2
            #[test]
            fn $test() {
                sweep($story);
            }
        )*

        #[test]
        fn every_set_is_swept() {
            let swept = [$($story),*];
            assert_eq!(SetStory::all().iter().map(|story| story.name).collect::<Vec<_>>(), swept);
        }
    };
}

sweeps! {
    set_of_three_ends_entirely_old_or_entirely_new_whatever_breaks: "set",
    set_of_three_of_which_the_last_fails_ends_entirely_old_whatever_breaks: "failing-set",
    set_that_goes_by_a_version_between_ends_entirely_old_or_entirely_new_whatever_breaks: "set-by-a-version-between",
    failing_set_that_goes_by_a_version_between_ends_entirely_old_whatever_breaks: "failing-set-by-a-version-between",
    set_that_is_rolled_back_is_entirely_there_or_entirely_gone_whatever_breaks: "set-rollback",
    rollback_of_a_set_that_fails_in_one_root_leaves_the_set_entirely_there_whatever_breaks: "failing-set-rollback",
}
