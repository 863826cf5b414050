//! What installing, updating and rolling back take in memory for each file of a release. Bytes are counted by the allocator, so the
//! figures are the same on every machine; what libraries in C allocate (SQLite, zstd) does not grow with the number of files and is
//! not counted.
#![allow(missing_docs, unreachable_pub, clippy::disallowed_methods, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../it/world.rs"]
mod world;

use std::sync::Arc;

use cutover_bundle::{Bundle, Limits, RevocationLists};
use cutover_core::{
    execute::Outcome,
    plan::{Layout, RollbackTarget, plan_rollback, plan_update},
};
use cutover_host::{node::Report, payload::Payload};
use peak_alloc::PeakAlloc;

use world::{Release, World, anchor, signing_time};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The most bytes that were allocated at once while `work` ran, beyond what was there before.
fn peak_of(work: impl FnOnce() -> Report) -> usize {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let report = work();
    let peak = HEAP.peak_usage();
    assert_eq!(report.outcome, Outcome::Confirmed, "{}", report.message);
    drop(report);
    peak - before
}

/// A bundle of `count` small files in directories of a hundred; every twentieth has another content in each version.
fn bundle(version: &'static str, count: usize) -> Vec<u8> {
    let mut release = Release::new(version);
    for number in 0..count {
        let path = format!("share/data-{:03}/sub/file-{number:06}.dat", number / 100);
        let text = if number % 20 == 0 { format!("{version} {number}") } else { format!("{number}") };
        release = release.data(&path, text.repeat(8));
    }
    let mut bytes = Vec::new();
    release.bundle_read_by(|made| {
        bytes.clone_from(&made);
        made
    });
    bytes
}

/// As `cutover apply` does it.
fn apply(world: &World, bytes: &[u8]) -> Report {
    let bundle = Bundle::open(bytes, &Limits::default()).expect("a bundle");
    let bundle = bundle.verify(anchor(), &RevocationLists::none(), signing_time()).expect("trusted");
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.recover(&lock, &world.ports()).expect("recovered");
    let observed = node.observe(Some(bundle.manifest())).expect("observed");
    let plan = plan_update(&observed.observation, &bundle.release(), bundle.manifest(), &world.policy);
    let plan = Arc::new(plan.expect("a plan"));
    let payload = Some(&bundle as &dyn Payload);
    let report = node.execute_on(observed, &lock, &plan, payload, &world.ports()).expect("a report");
    drop(plan);
    node.prune_after_update(&lock, &Default::default()).expect("pruned");
    report
}

/// As `cutover rollback` does it.
fn rollback(world: &World) -> Report {
    let target = RollbackTarget::Newest;
    let node = world.node();
    let lock = node.lock().expect("the lock");
    node.recover(&lock, &world.ports()).expect("recovered");
    let observed = node.observe_for_rollback(&target).expect("observed");
    let points = observed.points_for(&target).expect("no damage");
    let plan = plan_rollback(&observed.observation, points, &target, &world.policy).expect("a plan");
    node.execute_on(observed, &lock, &Arc::new(plan), None, &world.ports()).expect("a report")
}

/// The peaks of a first install, an update after another one (so that there are restore points), and a rollback.
fn peaks(layout: Layout, count: usize) -> [usize; 3] {
    let bundles = ["1.0.0", "1.1.0", "1.2.0"].map(|version| bundle(version, count));
    let mut world = World::new(layout);
    // One after the other, so that the figures are always the same.
    world.threads = 1;
    let install = peak_of(|| apply(&world, &bundles[0]));
    apply(&world, &bundles[1]);
    let update = peak_of(|| apply(&world, &bundles[2]));
    [install, update, peak_of(|| rollback(&world))]
}

/// The most that was measured is 998 bytes; a fifth more is allowed.
const BYTES_PER_FILE_MAX: usize = 1200;

// One test, so that nothing else allocates meanwhile.
#[test]
fn memory_grows_by_about_a_kilobyte_at_most_with_each_file() {
    // Of so many the manifest is a large file already, which is parsed as it is read.
    const FEW: usize = 3000;
    const MANY: usize = 6000;
    for layout in world::LAYOUTS {
        let (few, many) = (peaks(layout, FEW), peaks(layout, MANY));
        for (what, (few, many)) in ["install", "update", "rollback"].iter().zip(few.into_iter().zip(many)) {
            let each = many.saturating_sub(few) / (MANY - FEW);
            println!("{layout:?} {what}: {few} bytes for {FEW} files, {many} for {MANY}: {each} for each");
            assert!(each <= BYTES_PER_FILE_MAX, "{layout:?} {what}: {each} bytes for each file");
        }
    }
}
