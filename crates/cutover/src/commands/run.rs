//! `run`: supervises the service of a root.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use cutover_core::plan::Layout;
use cutover_host::service::{
    ServiceMode, ServiceSettings, SupervisorClient,
    supervisor::{self, Current, Start, SupervisorOptions},
};

use super::{
    Context,
    site::{Missing, Site},
};
use crate::{
    args::{AtRoot, Run},
    exit::Exit,
    failure::Failure,
    files, output,
};

pub(super) fn run(command: &Run, context: &Context) -> Result<Exit, Failure> {
    let at = &command.at;
    let settings = context.settings(Some(&at.root), [])?.settings;
    if settings.service.mode != ServiceMode::Supervised {
        return Err(Failure::usage("`service.mode` says that somebody else runs the service")
            .hint("set `service.mode = \"supervised\"`, or do without `cutover run`"));
    }
    if command.replace {
        return replace(&settings.service, at);
    }
    let site = Arc::new(Site::open(&at.root, settings.clone(), Missing::Make, "run")?);
    if supervisor::start() == Start::Fresh {
        let status = site.node.status()?;
        if status.in_flight.is_some() || status.set.is_some() {
            recover_beside(&site, context)?;
        }
    }
    let asked = Arc::clone(&site);
    let current = move || current(&asked).map_err(|failure| Box::new(failure) as _);
    supervisor::run(SupervisorOptions::new(&site.root, settings.service, current))?;
    Ok(Exit::Done)
}

/// Lets the supervisor that runs become this program.
fn replace(service: &ServiceSettings, at: &AtRoot) -> Result<Exit, Failure> {
    files::text("root", &at.root)?;
    let program =
        std::env::current_exe().map_err(|source| Failure::io("find", Path::new("/proc/self/exe"), source))?;
    files::text("program", &program)?;
    let note = SupervisorClient::new(service, &at.root).reexec(&program)?;
    output::note(&note);
    Ok(Exit::Done)
}

/// The release to run. While the files of an in-place update are half exchanged, nothing is run: whoever exchanges them, or the
/// recovery that was started beside, activates what comes of it. Before and after that, nobody else would start what is current.
fn current(site: &Site) -> Result<Option<Current>, Failure> {
    let status = site.node.status()?;
    let in_between = status.in_flight.is_some_and(|in_flight| in_flight.tree_in_between);
    if status.layout == Some(Layout::InPlace) && in_between {
        return Ok(None);
    }
    site.current()
}

/// Ends an interrupted run in a process of its own: it may have to ask this supervisor to hand over and to probe the
/// result, so it can only go on once this supervisor answers.
fn recover_beside(site: &Site, context: &Context) -> Result<(), Failure> {
    let program = std::path::Path::new("/proc/self/exe");
    let mut command = Command::new(program);
    command.args(["recover", "--wait-for-supervisor", "--progress", "lines", "--root"]).arg(&site.root);
    command.args(context.settings_arguments());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    output::note("an interrupted run is ended beside the supervisor");
    command.spawn().map(drop).map_err(|source| Failure::io("start", program, source))
}
