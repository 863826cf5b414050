//! `config show` and `config check`.

use std::path::PathBuf;

use crate::{
    args::Config,
    commands::Context,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
};

pub(super) fn run(command: Config, context: &Context) -> Result<Exit, Failure> {
    match command {
        Config::Show { origin, root } => {
            let resolved = context.settings(root.as_deref(), [])?;
            let shown = resolved.show();
            let files = names(&resolved.files);
            match (context.form, origin) {
                (Form::Json, _) => {
                    output::json(&serde_json::json!({ "settings": shown, "files": files }))?;
                }
                (Form::Text, true) => output::line(output::table(
                    &["setting", "value", "from"],
                    shown.into_iter().map(|one| vec![one.key, one.value.to_string(), one.origin]).collect(),
                )),
                (Form::Text, false) => output::line(resolved.dump().trim_end()),
            }
        }
        Config::Check { root } => {
            let resolved = context.settings(root.as_deref(), [])?;
            match context.form {
                Form::Json => {
                    output::json(&serde_json::json!({ "valid": true, "files": names(&resolved.files) }))?;
                }
                Form::Text if resolved.files.is_empty() => {
                    output::line("no settings file; the defaults are in force");
                }
                Form::Text => {
                    for file in &resolved.files {
                        output::line(format!("{}: valid", file.display()));
                    }
                }
            }
        }
    }
    Ok(Exit::Done)
}

fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.display().to_string()).collect()
}
