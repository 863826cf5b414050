//! The commands. Each takes its arguments and the [`Context`], prints its result, and returns how it ended.

mod bundle;
mod check;
mod config;
mod delta;
mod delta_release;
mod describe;
mod documents;
mod fetching;
mod gate;
mod index;
mod log;
mod node;
mod offers;
mod opened;
mod outcome;
mod pki;
mod place;
mod repo;
mod run;
mod schema;
mod schema_head;
mod schema_port;
mod sets;
mod ship;
mod site;
mod source;
mod trust;
mod update;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use cutover_core::model::Instant;

use crate::{
    args::{Cli, Command, ProgressForm},
    demo,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
    reference,
    settings::{self, Resolved, Sources},
};

/// What every command needs to know about this run.
pub(crate) struct Context {
    pub(crate) form: Form,
    pub(crate) progress: ProgressForm,
    config: Option<PathBuf>,
    flags: Vec<(String, String, String)>,
    environment: Vec<(String, String)>,
    /// The root that the command works on.
    root: Option<PathBuf>,
    /// When the run started.
    pub(crate) now: Instant,
    /// `SOURCE_DATE_EPOCH`, if it is set.
    pub(crate) source_date: Option<String>,
}

impl Context {
    /// The context of a run with these arguments.
    ///
    /// # Errors
    /// A `--set` that is no `KEY=VALUE`, or a variable that is no text.
    pub(crate) fn new(cli: &Cli, now: Instant) -> Result<Self, Failure> {
        let global = &cli.global;
        let flags = global
            .settings
            .iter()
            .map(|text| match text.split_once('=') {
                Some((key, value)) => {
                    Ok((key.trim().to_owned(), value.trim().to_owned(), "--set".to_owned()))
                }
                None => Err(Failure::usage(format!("`--set {text}`: a setting is written KEY=VALUE"))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            form: if global.json { Form::Json } else { Form::Text },
            progress: global.progress,
            config: global.config.clone(),
            flags,
            environment: settings::environment()?,
            root: cli.command.root().map(Path::to_owned),
            now,
            source_date: std::env::var("SOURCE_DATE_EPOCH").ok(),
        })
    }

    /// Text whose commands can be pasted: see [`output::naming_root`].
    pub(crate) fn naming_root(&self, text: &str) -> String {
        self.root.as_deref().map_or_else(|| text.to_owned(), |root| output::naming_root(text, root))
    }

    /// The arguments that give another run of this program the same settings.
    pub(crate) fn settings_arguments(&self) -> Vec<OsString> {
        let file = self.config.iter().flat_map(|file| ["--config".into(), file.clone().into_os_string()]);
        let set =
            self.flags.iter().flat_map(|(key, value, _)| ["--set".into(), format!("{key}={value}").into()]);
        file.chain(set).collect()
    }

    /// Settings for a root, or for a command that has none; `flags` are this command's own.
    ///
    /// # Errors
    /// See [`settings::SettingsError`].
    pub(crate) fn settings(
        &self,
        root: Option<&Path>,
        flags: impl IntoIterator<Item = (&'static str, String, &'static str)>,
    ) -> Result<Resolved, Failure> {
        let mut sources = self.sources(root);
        let own = flags.into_iter().map(|(key, value, flag)| (key.to_owned(), value, flag.to_owned()));
        sources.flags.extend(own);
        Self::resolve(&sources)
    }

    fn sources(&self, root: Option<&Path>) -> Sources {
        Sources {
            file: self.config.clone(),
            root: root.map(Path::to_owned),
            environment: self.environment.clone(),
            flags: self.flags.clone(),
        }
    }

    /// Settings of another root than the one the command names: what is given on the command line and in the environment is
    /// meant for that one, so here only the files of the root count.
    ///
    /// # Errors
    /// See [`settings::SettingsError`].
    pub(crate) fn settings_of_site(&self, root: &Path) -> Result<Resolved, Failure> {
        Self::resolve(&Sources { root: Some(root.to_owned()), ..Sources::default() })
    }

    fn resolve(sources: &Sources) -> Result<Resolved, Failure> {
        let resolved = Resolved::load(sources)?;
        for key in &resolved.masked {
            output::note(format!("warning: setting `{key}` holds the mask of a secret and stays unset"));
        }
        Ok(resolved)
    }
}

/// Runs one command.
///
/// # Errors
/// Why it did not do what was asked.
pub(crate) fn run(cli: Cli, context: &Context) -> Result<Exit, Failure> {
    run_command(cli, context).map_err(|failure| failure.naming_root(context.root.as_deref()))
}

fn run_command(cli: Cli, context: &Context) -> Result<Exit, Failure> {
    // M10: whoever tries to set the anchor is told, whatever the command.
    settings::refuse_anchor_in(&context.environment)?;
    if let Some(root) = context.root.as_deref().filter(|root| root.exists() && !root.is_dir()) {
        return Err(Failure::usage(format!("`{}` is no directory", root.display()))
            .hint("--root names the directory where the package is installed"));
    }
    if context.config.is_some() || !context.flags.is_empty() {
        // Also where no setting counts: what is given must be right.
        Resolved::load(&context.sources(context.root.as_deref()))?;
    }
    match cli.command {
        Command::Pki(command) => pki::run(command, context),
        Command::Trust(command) => trust::run(command, context),
        Command::Bundle(command) => bundle::run(command, context),
        Command::Delta(command) => delta::run(command, context),
        Command::Config(command) => config::run(command, context),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut <Cli as clap::CommandFactory>::command(),
                "cutover",
                &mut script,
            );
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(Exit::Done)
        }
        Command::Man { dir } => man(&dir, context),
        Command::Reference { page } => {
            output::line(reference::page(page).trim_end());
            Ok(Exit::Done)
        }
        Command::Repo(command) => repo::run(command, context),
        Command::Schema(command) => schema::run(command, context),
        Command::Index(command) => index::run(&command, context),
        Command::Ship(command) => ship::run(command, context),
        Command::Check(command) => check::check(&command, context),
        Command::Plan(command) => update::plan(&command, context),
        Command::Apply(command) => update::apply(&command, context),
        Command::Status(at) => node::status(&at, context),
        Command::History(command) => node::history(&command, context),
        Command::Verify(command) => node::verify(&command, context),
        Command::Rollback(command) => node::rollback(&command, context),
        Command::RestorePoints(at) => node::restore_points(&at, context),
        Command::Recover(command) => node::recover(&command, context),
        Command::Prune(command) => node::prune(&command, context),
        Command::Run(command) => run::run(&command, context),
        Command::Gate(command) => gate::run(command, context),
        Command::Demo(command) => demo::play(&command, context),
        Command::DemoService(command) => demo::run_service(&command),
    }
}

fn man(directory: &Path, context: &Context) -> Result<Exit, Failure> {
    crate::files::make_directory(directory, 0o755)?;
    let failed = |source| Failure::io("write the manual pages to", directory, source);
    let mut root = <Cli as clap::CommandFactory>::command();
    root.build();
    let mut pending = vec![root];
    let mut pages = 0;
    while let Some(command) = pending.pop() {
        let page = clap_mangen::Man::new(command.clone());
        let path = directory.join(page.get_filename());
        let mut text = Vec::new();
        page.render(&mut text).map_err(failed)?;
        crate::files::write(&path, 0o644, crate::files::Existing::Replace, |out| {
            out.write_all(&text).map_err(|source| Failure::io("write", &path, source))
        })?;
        pages += 1;
        pending.extend(
            command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help").cloned(),
        );
    }
    if context.form == Form::Json {
        let directory = directory.display().to_string();
        output::json(&serde_json::json!({ "directory": directory, "pages": pages }))?;
    }
    Ok(Exit::Done)
}
