//! The schema engine as an update sees it: host and migrate are strangers, this program links both in.

use std::{error::Error, path::Path};

use cutover_core::plan::SchemaSeen;
use cutover_host::schema::{Migration, SchemaManager};
use cutover_migrate::{
    engine::Unwatched,
    ir::Op,
    run::{Applied, Migrator},
};

use super::{schema, schema_head::KeptHead};
use crate::{failure::Failure, settings::SchemaSettings};

/// Where the end of the history is kept, in a root.
const HEAD: &str = ".cutover/schema-head.json";

/// The database of the service, by its settings. Connects anew for every question.
pub(super) struct SchemaPort {
    settings: SchemaSettings,
    head: KeptHead,
}

impl SchemaPort {
    /// The database of the service at `root`, where the end of its history is kept unless settings say where.
    pub(super) fn new(settings: &SchemaSettings, root: &Path) -> Self {
        let head = settings.head_file.clone().unwrap_or_else(|| root.join(HEAD));
        Self { settings: settings.clone(), head: KeptHead::at(Some(head)) }
    }

    /// What the planner has to know.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub(super) fn seen(&self) -> Result<SchemaSeen, Failure> {
        let make = &cutover_migrate::run::no_functions;
        let mut migrator = schema::migrator(&self.settings, self.head.read()?, &Unwatched, make)?;
        Ok(SchemaSeen { floor: migrator.floor()? })
    }

    fn run(&self, version: u64, migrations: &[Migration], progress: &dyn Fn(u8)) -> Result<String, Failure> {
        let make = |op: &Op| schema::function(op, self.settings.plugins.as_deref());
        self.head.around(
            |head| schema::migrator(&self.settings, head, &Unwatched, &make),
            |migrator| Self::apply(migrator, version, migrations, progress),
        )
    }

    fn apply(
        migrator: &mut Migrator<'_>,
        version: u64,
        migrations: &[Migration],
        progress: &dyn Fn(u8),
    ) -> Result<String, Failure> {
        let mut applied = Vec::new();
        for (at, file) in migrations.iter().enumerate() {
            let migration = schema::parse(&file.text, file.path.as_str())?;
            if let Applied::Done(report) = migrator.apply(&migration, None)? {
                applied.push(report.id);
            }
            progress(u8::try_from((at + 1) * 100 / migrations.len()).unwrap_or(100));
        }
        let now = migrator.status()?.version;
        if now < version {
            let says = format!(
                "the database is at schema version {now} after the migrations of the release, which says {version}"
            );
            return Err(Failure::new(crate::exit::Exit::Policy, says)
                .hint("list every migration in the release, or correct `schema.version` in release.toml"));
        }
        Ok(match applied.as_slice() {
            [] => format!("schema version {now} already"),
            ids => format!("schema version {now} by {}", ids.join(", ")),
        })
    }
}

impl SchemaManager for SchemaPort {
    fn expand(
        &self,
        version: u64,
        migrations: &[Migration],
        progress: &dyn Fn(u8),
    ) -> Result<String, Box<dyn Error + Send + Sync>> {
        self.run(version, migrations, progress).map_err(|failure| {
            let causes = failure.causes();
            let text = std::iter::once(failure.to_string()).chain(causes).collect::<Vec<_>>().join(": ");
            text.into()
        })
    }
}
