//! Sweeps all stories in all layouts, or replays one point.
//!
//! `cargo run -p cutover-sim --example sweep -- [--full] [--story NAME] [POINT]`
#![allow(clippy::print_stdout, reason = "an example that reports")]

use std::{process::ExitCode, sync::Mutex, time::Instant};

use cutover_sim::{Depth, LAYOUTS, Point, Story, Subject, revision, seed, stories};

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
    let mut chosen = stories();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => depth = Depth::Full,
            "--story" => {
                let name = arguments.next().ok_or("--story needs a name")?;
                chosen.retain(|story| story.name == name);
            }
            point => {
                point.parse::<Point>()?.replay()?;
                println!("{point}: everything holds");
                return Ok(());
            }
        }
    }
    println!("seed={} revision={}", seed(), revision());
    let mut jobs: Vec<(Story, _)> =
        chosen.into_iter().flat_map(|story| LAYOUTS.map(|layout| (story.clone(), layout))).collect();
    jobs.reverse();
    let (jobs, failures, total) = (Mutex::new(jobs), Mutex::new(Vec::new()), Mutex::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((story, layout)) = jobs.lock().expect("no holder panics").pop() else { break };
                    let started = Instant::now();
                    let name = format!("{} ({layout:?})", story.name);
                    let swept = Subject::prepare(story, layout).and_then(|subject| {
                        subject.sweep(depth, seed()).map_err(|failure| failure.to_string())
                    });
                    match swept {
                        Ok(points) => {
                            *total.lock().expect("no holder panics") += points;
                            println!(
                                "{name}: {points} points hold, {:.1} s",
                                started.elapsed().as_secs_f64()
                            );
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
    println!("{} points in all", total.into_inner().expect("no holder panics"));
    let failures = failures.into_inner().expect("no holder panics");
    if failures.is_empty() { Ok(()) } else { Err(format!("broken: {}", failures.join(", "))) }
}
