//! Sweeps all stories in all layouts, or replays one point.
//!
//! `cargo run --release -p cutover-sim --example sweep -- [--full] [--story NAME] [--layout NAME] [POINT]`
//!
//! Story and layout are independent of one another: any part of a full sweep can be run by itself, with the same result.
#![allow(clippy::print_stdout, reason = "an example that reports")]

use std::{process::ExitCode, sync::Mutex, time::Instant};

use cutover_core::plan::Layout;
use cutover_sim::{
    Depth, LAYOUTS, Point, SetStory, SetSubject, Story, Subject, Tally, layout_name, revision, seed, stories,
};

/// What is swept.
#[derive(Clone)]
enum Swept {
    Root(Story),
    Set(SetStory),
}

impl Swept {
    fn name(&self) -> &'static str {
        match self {
            Self::Root(story) => story.name,
            Self::Set(story) => story.name,
        }
    }

    /// How many calls it makes, and what breaking them came to.
    fn sweep(self, layout: Layout, depth: Depth) -> Result<(usize, Tally), String> {
        match self {
            Self::Root(story) => {
                let subject = Subject::prepare(story, layout)?;
                subject.sweep(depth, seed()).map(|tally| (subject.calls().len(), tally))
            }
            Self::Set(story) => {
                let subject = SetSubject::prepare(story, layout)?;
                subject.sweep(depth, seed()).map(|tally| (subject.calls().len(), tally))
            }
        }
        .map_err(|failure| failure.to_string())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut depth = Depth::Sampled;
    let sets = SetStory::all().into_iter().map(Swept::Set);
    let mut chosen: Vec<Swept> = stories().into_iter().map(Swept::Root).chain(sets).collect();
    let mut layouts = LAYOUTS.to_vec();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => depth = Depth::Full,
            "--story" => {
                let name = arguments.next().ok_or("--story needs a name")?;
                chosen.retain(|story| story.name() == name);
            }
            "--layout" => {
                let name = arguments.next().ok_or("--layout needs a name")?;
                layouts.retain(|layout| layout_name(*layout) == name);
            }
            point => {
                point.parse::<Point>()?.replay()?;
                println!("{point}: everything holds");
                return Ok(());
            }
        }
    }
    println!("seed={} revision={}", seed(), revision());
    println!(
        "story/layout: calls, points, of them double crashes, distinct states, of them continued, seconds"
    );
    let started = Instant::now();
    let mut jobs: Vec<(Swept, _)> = chosen
        .into_iter()
        .flat_map(|story| layouts.iter().map(move |layout| (story.clone(), *layout)).collect::<Vec<_>>())
        .collect();
    jobs.reverse();
    let (jobs, failures, total) = (Mutex::new(jobs), Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((story, layout)) = jobs.lock().expect("no holder panics").pop() else { break };
                    let started = Instant::now();
                    let name = format!("{}/{}", story.name(), layout_name(layout));
                    match story.sweep(layout, depth) {
                        Ok((calls, tally)) => {
                            *total.lock().expect("no holder panics") += tally;
                            println!("{name}: {calls}, {tally}, {:.1}", started.elapsed().as_secs_f64());
                        }
                        Err(problem) => {
                            println!("{name}: {problem}\n");
                            failures.lock().expect("no holder panics").push(name);
                        }
                    }
                }
            });
        }
    });
    println!(
        "in all: {}, {:.1}",
        total.into_inner().expect("no holder panics"),
        started.elapsed().as_secs_f64()
    );
    let failures = failures.into_inner().expect("no holder panics");
    if failures.is_empty() { Ok(()) } else { Err(format!("broken: {}", failures.join(", "))) }
}
