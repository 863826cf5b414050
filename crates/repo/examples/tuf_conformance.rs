//! The metadata client behind the command line of the public TUF conformance suite
//! (<https://github.com/theupdateframework/tuf-conformance>, `CLIENT-CLI.md`). How it is run: `docs/tuf.md`.

#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cutover_core::model::{Digest, Instant};
use cutover_repo::{
    Fetch, FetchError, State as _, StateDirectory, read_bounded,
    tuf::{Client, ClientLimits},
};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Metadata and targets may lie at different addresses.
struct Http {
    client: reqwest::blocking::Client,
    metadata_url: String,
    target_url: String,
}

impl Fetch for Http {
    fn fetch(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let failed = |error: reqwest::Error| FetchError::Failed(Box::new(error));
        let url = match path.strip_prefix("metadata/") {
            Some(name) => format!("{}/{name}", self.metadata_url),
            None => format!("{}/{path}", self.target_url),
        };
        let response = self.client.get(url).send().map_err(failed)?;
        // The specification leaves open how a server says that there is no next root; suites and servers use both.
        if matches!(response.status().as_u16(), 403 | 404) {
            return Err(FetchError::NotFound);
        }
        read_bounded(response.error_for_status().map_err(failed)?, bytes_max)
    }
}

struct Arguments {
    values: BTreeMap<String, String>,
    targets: Vec<String>,
    command: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self { values: BTreeMap::new(), targets: Vec::new(), command: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                Some("target-name") => parsed.targets.extend(arguments.next()),
                Some(name) => {
                    parsed.values.insert(name.to_owned(), arguments.next().unwrap_or_default());
                }
                None => parsed.command.push(argument),
            }
        }
        parsed
    }

    fn get(&self, name: &str) -> Result<&str, Failed> {
        let value = self.values.get(name).map(|value| value.trim_end_matches('/'));
        value.ok_or_else(|| format!("--{name} is missing").into())
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut next: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = next {
                eprintln!("{error}");
                next = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failed> {
    let state = StateDirectory::open(Path::new(arguments.get("metadata-dir")?))?;
    let words: Vec<&str> = arguments.command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["init", root] => Ok(state.keep("root", &std::fs::read(root)?)?),
        ["refresh"] => follow(arguments, &state).map(drop),
        ["download"] => follow(arguments, &state),
        other => Err(format!("unknown command {other:?}").into()),
    }
}

fn follow(arguments: &Arguments, state: &StateDirectory) -> Result<(), Failed> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let now = Instant::from_unix(i64::try_from(seconds)?).ok_or("the clock is out of range")?;
    let fetch = Http {
        client: reqwest::blocking::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?,
        metadata_url: arguments.get("metadata-url")?.to_owned(),
        target_url: arguments.get("target-base-url").unwrap_or_default().to_owned(),
    };
    let mut client = Client::refresh(&fetch, state, now, ClientLimits::default())?;
    for name in &arguments.targets {
        let target = client.target(name)?;
        // A name is data: it never becomes a path.
        let file = PathBuf::from(arguments.get("target-dir")?).join(Digest::of(name.as_bytes()).to_string());
        let kept = std::fs::read(&file).unwrap_or_default();
        if target.check(name, &kept).is_err() {
            std::fs::write(&file, client.fetch_target(name, &target)?)?;
        }
    }
    Ok(())
}
