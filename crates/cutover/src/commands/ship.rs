//! `ship`: hands episodes to a receiver; and what an operator sees and does about those that wait.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cutover_bundle::episode::HostKey;
use cutover_host::{
    fetch::RealTimer,
    service::notify_ready,
    ship::{
        EpisodeStatus, ShipPorts, ShipSettings, ShipStatus, Shipper, State, Until, Which, drop_episodes,
        retry, status,
    },
};

use super::{Context, site::WallClock};
use crate::{
    args::{Ship, ShipPlace},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
};

pub(super) fn run(command: Ship, context: &Context) -> Result<Exit, Failure> {
    match command {
        Ship::Run { place, once } => ship(settings(&place, context)?, once, context),
        Ship::Status { place } => show(&settings(&place, context)?, context),
        Ship::Retry { episodes, all, place } => {
            let which = if all { Which::AllParked } else { Which::Named(episodes) };
            let queued = retry(&settings(&place, context)?, &host_name(), &which)?;
            print_names("queued", "nothing is parked", &queued, context)
        }
        Ship::Key { file } => make_key(&file, context),
        Ship::Drop { episodes, place } => {
            let dropped = drop_episodes(&settings(&place, context)?, &host_name(), &episodes)?;
            print_names("dropped", "nothing was dropped", &dropped, context)
        }
    }
}

fn settings(place: &ShipPlace, context: &Context) -> Result<ShipSettings, Failure> {
    let spool = place.spool.as_ref().map(|spool| spool.display().to_string());
    let flags = [
        ("ship.spool", spool, "--spool"),
        ("ship.url", place.url.clone(), "--url"),
        ("ship.host", place.host.clone(), "--host"),
    ];
    let flags = flags.into_iter().filter_map(|(key, value, flag)| Some((key, value?, flag)));
    Ok(context.settings(None, flags)?.settings.ship)
}

/// The name of this machine without its domain; empty when it has none, which is no id.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().split('.').next().unwrap_or_default().to_owned()
}

fn make_key(file: &Path, context: &Context) -> Result<Exit, Failure> {
    let made = HostKey::generate();
    let (key, pem) =
        made.map_err(|error| Failure::new(Exit::Failed, "failed to make a key").because(error))?;
    files::write(file, 0o600, Existing::Keep, |out| {
        out.write_all(pem.as_bytes()).map_err(|source| Failure::io("write", file, source))
    })?;
    let public = key.public();
    match context.form {
        Form::Json => {
            output::json(&serde_json::json!({ "key": file.display().to_string(), "public": public }))?
        }
        Form::Text => output::line(public),
    }
    Ok(Exit::Done)
}

fn ship(settings: ShipSettings, once: bool, context: &Context) -> Result<Exit, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::new(Exit::Failed, "failed to watch for signals").because(error))?;
    }
    let ports = ShipPorts {
        timer: Arc::new(RealTimer::start()),
        clock: Arc::new(WallClock),
        seed: rand::random(),
        host_name: host_name(),
    };
    let until = if once { Until::Empty } else { Until::Stopped };
    let shipper = Shipper::open(settings, ports)?;
    // Without a service manager there is nobody to tell.
    let _ = notify_ready();
    let summary = shipper.run(until, &|| stop.load(Ordering::Relaxed))?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "shipped": summary.shipped, "parked": summary.parked, "queued": summary.queued,
        }))?,
        Form::Text => output::line(format!(
            "{} shipped, {} parked, {} queued",
            summary.shipped, summary.parked, summary.queued
        )),
    }
    Ok(if once && summary.parked > 0 { Exit::Failed } else { Exit::Done })
}

fn show(settings: &ShipSettings, context: &Context) -> Result<Exit, Failure> {
    let status = status(settings, &host_name())?;
    match context.form {
        Form::Json => output::json(&status)?,
        Form::Text => print(&status),
    }
    Ok(Exit::Done)
}

fn print(status: &ShipStatus) {
    let ShipStatus { spool, queued, parked, shipped, settling, .. } = status;
    let who = status.shipper.as_deref().unwrap_or("nobody");
    output::line(format!("{spool}: {queued} queued, {parked} parked, {shipped} shipped; shipped by {who}"));
    if !settling.is_empty() {
        output::line(format!("not taken yet, new or still written: {}", settling.join(", ")));
    }
    for (name, reason) in &status.odd {
        output::line(format!("no episode: {}", output::printable(&format!("{name}: {reason}"))));
    }
    if !status.episodes.is_empty() {
        output::line(output::table(
            &["EPISODE", "STATE", "TRIES", "NEXT TRY", "SIZE", "WHY"],
            status.episodes.iter().map(row).collect(),
        ));
    }
    for episode in status.episodes.iter().filter(|episode| episode.state == State::Parked) {
        print_parked(episode);
    }
}

fn row(episode: &EpisodeStatus) -> Vec<String> {
    let state = match episode.state {
        State::Queued => "queued",
        State::Parked => "parked",
        State::Done => "done",
    };
    vec![
        format!("{}/{}", episode.host_id, episode.episode_id),
        state.to_owned(),
        episode.tries.to_string(),
        episode.next_try_in_s.map_or_else(String::new, |seconds| format!("in {seconds} s")),
        episode.size_bytes.map_or_else(String::new, output::bytes),
        episode.reason.clone(),
    ]
}

fn print_parked(episode: &EpisodeStatus) {
    let key = format!("{}/{}", episode.host_id, episode.episode_id);
    output::line(format!("\n{key} is parked: {}", output::printable(&episode.reason)));
    for (what, commit) in [("its commit", &episode.your_commit), ("the newest", &episode.head_commit)] {
        if let Some(commit) = commit {
            output::line(format!("  {what}: {}", output::printable(commit)));
        }
    }
    for line in episode.remediation.iter().flat_map(|text| text.lines()) {
        output::line(format!("  {}", output::printable(line)));
    }
    output::line(format!(
        "  `cutover ship retry {key}` sends it again, `cutover ship drop {key}` gives it up"
    ));
}

fn print_names(verb: &str, none: &str, names: &[String], context: &Context) -> Result<Exit, Failure> {
    match context.form {
        Form::Json => output::json(&serde_json::json!({ verb: names }))?,
        Form::Text if names.is_empty() => output::note(none),
        Form::Text => names.iter().for_each(|name| output::line(format!("{verb} {name}"))),
    }
    Ok(Exit::Done)
}
