//! Threads that lay down files give way to others; what they work for does not.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};

use cutover_bundle::ReadAt;
use cutover_core::{execute::Outcome, plan::Layout};
use cutover_host::{nice::Nice, payload::Payload};
use rustix::process::getpriority_process;

use crate::world::{World, first, second};

/// Nice values that were seen.
type Seen = Arc<Mutex<BTreeSet<i32>>>;

/// The nice value of this thread: field 19 of proc(5)'s stat, told by the kernel.
fn own() -> i32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("proc(5)");
    let told = stat.rsplit_once(") ").expect("a name").1.split(' ').nth(16).expect("fields").parse();
    assert_eq!(told, Ok(getpriority_process(None).expect("a priority")));
    told.expect("a number")
}

/// A bundle in memory that notices who reads its payload.
struct Noticing(Vec<u8>, Seen);

impl ReadAt for Noticing {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // Two lengths of four bytes each stand in the header of 16; the manifest is kept by the thread of the execution.
        let length = |at: usize| u32::from_be_bytes(self.0[at..at + 4].try_into().expect("four"));
        if offset >= 16 + u64::from(length(8)) + u64::from(length(12)) {
            self.1.lock().unwrap().insert(own());
        }
        self.0.as_slice().read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.as_slice().size()
    }
}

#[test]
fn files_are_laid_down_by_threads_that_give_way_and_the_service_is_started_by_one_that_does_not() {
    for threads in [1, 2] {
        let level = 13;
        let world =
            World { threads, nice: Nice::try_from(level).expect("a level"), ..World::new(Layout::Versioned) };
        world.apply(&first());
        let (laying, starting) = (Seen::default(), Seen::default());
        let bundle = second().bundle_read_by(|bytes| Noticing(bytes, Arc::clone(&laying)));
        let node = world.node();
        let lock = node.lock().expect("the lock");
        let observed = node.observe(Some(bundle.manifest())).expect("observed");
        let plan = cutover_core::plan::plan_update(
            &observed.observation,
            &bundle.release(),
            bundle.manifest(),
            &world.policy,
        )
        .expect("a plan");
        let seen = Arc::clone(&starting);
        world.service.on_activate(
            "2.0.0",
            Box::new(move || {
                seen.lock().unwrap().insert(own());
            }),
        );
        laying.lock().unwrap().clear();
        let report =
            node.execute(&lock, &plan, Some(&bundle as &dyn Payload), &world.ports()).expect("executed");
        assert_eq!(report.outcome, Outcome::Confirmed);
        assert_eq!(*laying.lock().unwrap(), BTreeSet::from([i32::from(level)]), "{threads} threads");
        assert_eq!(*starting.lock().unwrap(), BTreeSet::from([own()]), "{threads} threads");
    }
}
