//! Plugins: row functions in processes of their own, spoken to in JSON lines.
//!
//! A plugin has no database: it gets rows and returns rows. It runs with an empty environment, in a private directory, in its
//! own process group, under limits of memory, files and processes' output. Anything but the expected answer (other output, a
//! wrong id, an exit, a missed deadline) kills the group and fails the chunk. The protocol is in
//! `docs/formats/migration-plugin.md`; [`conformance`] tests a plugin against it. Read [`Plugin`] first.

mod conformance;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

pub use conformance::{Check, conformance};
use cutover_core::model::{Digest, Hasher};
use serde_json::{Value as Json, json};

use crate::{
    engine::{RowChunk, RowFunction},
    error::Error,
    ir::Op,
    state::sql::Value,
};

/// The version of the protocol.
pub const PROTOCOL: u64 = 1;
/// The longest line either side may send, in bytes.
pub const LINE_MAX: usize = 1 << 20;
/// How long a plugin may take for one call.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Memory a plugin may map, in bytes.
const MEMORY: u64 = 1 << 30;
/// Files a plugin may have open.
const FILES: u64 = 64;
/// The largest file a plugin may write, in bytes.
const FILE: u64 = 16 << 20;

/// What a migration plugin does, in this process or in another one: the calls of the protocol.
pub trait MigrationPlugin: Send {
    /// Its name.
    fn name(&self) -> &str;

    /// Its version.
    fn version(&self) -> u64;

    /// Whether it can do this step.
    ///
    /// # Errors
    /// [`Error::Custom`].
    fn can_handle(&mut self, step: &Op) -> Result<bool, Error>;

    /// What it is going to do, for people; rows are the estimate.
    ///
    /// # Errors
    /// [`Error::Custom`].
    fn plan(&mut self, step: &Op, rows: u64) -> Result<String, Error>;

    /// New rows.
    ///
    /// # Errors
    /// [`Error::Custom`]; the chunk is rolled back.
    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error>;

    /// Says whether rows are as `apply` leaves them.
    ///
    /// # Errors
    /// [`Error::Custom`] when they are not.
    fn verify(&mut self, rows: &RowChunk) -> Result<(), Error>;

    /// Old rows from new ones, as far as the plugin knows.
    ///
    /// # Errors
    /// [`Error::Custom`].
    fn rollback(&mut self, rows: &RowChunk) -> Result<RowChunk, Error>;
}

/// A running plugin.
pub struct Plugin {
    name: String,
    version: u64,
    digest: Digest,
    child: Child,
    /// What is asked of it, to the thread that writes.
    requests: SyncSender<String>,
    lines: Receiver<Line>,
    next: u64,
    deadline: Duration,
    /// Whether it was ended and waited for: its number may be another process's then.
    is_ended: bool,
    _home: tempfile::TempDir,
}

enum Line {
    Text(String),
    TooLong,
    End,
}

impl Plugin {
    /// Starts the program and greets it.
    ///
    /// # Errors
    /// It cannot be started, or does not answer as the protocol says.
    pub fn start(program: &Path, deadline: Duration) -> Result<Self, Error> {
        let io = |what: &'static str| move |source| Error::Io { what, path: program.to_owned(), source };
        let home = tempfile::Builder::new()
            .prefix("cutover-plugin-")
            .tempdir()
            .map_err(io("make a directory for"))?;
        let program_path: PathBuf = program.canonicalize().map_err(io("find"))?;
        let digest = digest_of(&program_path).map_err(io("read"))?;
        let mut child = Command::new(&program_path)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(home.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io("start"))?;
        let (Some(mut input), Some(output), Some(log)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::Custom {
                name: program.display().to_string(),
                says: "it has no pipes".to_owned(),
            });
        };
        limit(&child);
        let (send, lines) = sync_channel(4);
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let mut line = Vec::new();
                let read = output.by_ref().take(LINE_MAX as u64 + 2).read_until(b'\n', &mut line);
                let line = match read {
                    Ok(0) | Err(_) => Line::End,
                    Ok(_) if line.len() > LINE_MAX + 1 => Line::TooLong,
                    Ok(_) => Line::Text(String::from_utf8_lossy(&line).trim_end().to_owned()),
                };
                let last = !matches!(line, Line::Text(_));
                if send.send(line).is_err() || last {
                    return;
                }
            }
        });
        let (requests, wanted) = sync_channel::<String>(1);
        std::thread::spawn(move || {
            // A program that is killed takes nothing any more, and that ends this.
            for line in wanted {
                if input.write_all(line.as_bytes()).and_then(|()| input.flush()).is_err() {
                    return;
                }
            }
        });
        let said = program.display().to_string();
        std::thread::spawn(move || {
            for line in BufReader::new(log.take(1 << 20)).lines().map_while(Result::ok) {
                tracing::info!(plugin = %said, "{line}");
            }
        });
        let mut plugin = Self {
            name: program.display().to_string(),
            version: 0,
            digest,
            child,
            requests,
            lines,
            next: 1,
            deadline,
            is_ended: false,
            _home: home,
        };
        let hello = plugin.call(json!({ "method": "hello", "protocol": PROTOCOL }))?;
        let (Some(name), Some(version)) = (hello["name"].as_str(), hello["version"].as_u64()) else {
            return Err(plugin.broken("its hello has no `name` and `version`"));
        };
        if hello["protocol"].as_u64() != Some(PROTOCOL) {
            let says = format!("it speaks protocol {}, not {PROTOCOL}", hello["protocol"]);
            return Err(plugin.broken(&says));
        }
        plugin.name = name.to_owned();
        plugin.version = version;
        Ok(plugin)
    }

    /// Finds the plugin of a step in a directory, where it is called `NAME@VERSION`, and starts it.
    ///
    /// # Errors
    /// There is none, it calls itself otherwise, or it cannot do the step.
    pub fn of_step(step: &Op, directory: &Path) -> Result<Self, Error> {
        let Op::Plugin { plugin: wanted, .. } = step else {
            return Err(Error::Custom {
                name: step.name().to_owned(),
                says: "it is no plugin step".to_owned(),
            });
        };
        let failed = |says: String| Error::Custom { name: wanted.clone(), says };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if wanted.is_empty() || wanted.starts_with('.') || !wanted.chars().all(plain) {
            return Err(failed("a plugin is written NAME@VERSION".to_owned()));
        }
        let program = directory.join(wanted);
        if !program.is_file() {
            return Err(failed(format!("there is no plugin `{}`", program.display())));
        }
        let mut plugin = Self::start(&program, DEADLINE)?;
        let called = format!("{}@{}", plugin.name, plugin.version);
        if called != *wanted {
            return Err(failed(format!("the program calls itself {called}")));
        }
        if !plugin.can_handle(step)? {
            return Err(failed("it says that it cannot do this step".to_owned()));
        }
        Ok(plugin)
    }

    /// Sends one request and waits for its answer.
    fn call(&mut self, mut request: Json) -> Result<Json, Error> {
        let id = self.next;
        self.next += 1;
        request["id"] = id.into();
        request["deadline_ms"] = u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX).into();
        let line = format!("{request}\n");
        if line.len() > LINE_MAX {
            return Err(self.broken("a request is longer than 1 MiB"));
        }
        let until = Instant::now() + self.deadline;
        // Written beside: a program that does not read must not hold us longer than one that does not answer.
        if self.requests.send(line).is_err() {
            return Err(self.broken("it does not read"));
        }
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Line::Text(text)) => {
                let Ok(answer) = serde_json::from_str::<Json>(&text) else {
                    let start: String = text.chars().take(80).collect();
                    return Err(self.broken(&format!("it wrote something that is no answer: `{start}`")));
                };
                if answer["id"].as_u64() != Some(id) {
                    return Err(self.broken(&format!("it answered {} when {id} was asked", answer["id"])));
                }
                match answer["ok"].as_bool() {
                    Some(true) => Ok(answer),
                    Some(false) => Err(Error::Custom {
                        name: self.name.clone(),
                        says: answer["error"].as_str().unwrap_or("it returned false").to_owned(),
                    }),
                    None => Err(self.broken("its answer has no `ok`")),
                }
            }
            Ok(Line::TooLong) => Err(self.broken("it wrote a line longer than 1 MiB")),
            Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => Err(self.broken("it ended")),
            Err(RecvTimeoutError::Timeout) => {
                let says = format!("it did not answer in {} ms", self.deadline.as_millis());
                Err(self.broken(&says))
            }
        }
    }

    /// Kills its process group; it is of no use any more.
    fn broken(&mut self, says: &str) -> Error {
        self.kill();
        Error::Custom { name: self.name.clone(), says: says.to_owned() }
    }

    fn kill(&mut self) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }

    fn rows(&mut self, method: &str, rows: &RowChunk) -> Result<RowChunk, Error> {
        let mut all = RowChunk { columns: Vec::new(), rows: Vec::new() };
        let mut from = 0;
        // Lines have a limit: rows go in portions that fit with room for the frame.
        while from < rows.rows.len() || (from == 0 && rows.rows.is_empty()) {
            let mut portion = Vec::new();
            let mut bytes = 4096;
            while from < rows.rows.len() {
                let row = Json::Array(rows.rows[from].iter().map(to_json).collect());
                bytes += row.to_string().len() + 1;
                if bytes > LINE_MAX / 2 && !portion.is_empty() {
                    break;
                }
                portion.push(row);
                from += 1;
            }
            let count = portion.len();
            let answer = self.call(json!({ "method": method, "columns": rows.columns, "rows": portion }))?;
            let columns: Option<Vec<String>> = answer["columns"]
                .as_array()
                .map(|names| names.iter().map(|name| name.as_str().unwrap_or_default().to_owned()).collect());
            let returned = answer["rows"].as_array();
            let (Some(columns), Some(returned)) = (columns, returned) else {
                return Err(self.broken("its answer has no `columns` and `rows`"));
            };
            if returned.len() != count {
                let says = format!("it returned {} rows for {count}", returned.len());
                return Err(self.broken(&says));
            }
            for row in returned {
                let cells = row.as_array().filter(|cells| cells.len() == columns.len());
                let cells: Option<Vec<Value>> = cells.and_then(|cells| cells.iter().map(from_json).collect());
                match cells {
                    Some(cells) => all.rows.push(cells),
                    None => return Err(self.broken("a row of its answer does not have the columns it names")),
                }
            }
            all.columns = columns;
            if rows.rows.is_empty() {
                break;
            }
        }
        Ok(all)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
    }
}

impl MigrationPlugin for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn can_handle(&mut self, step: &Op) -> Result<bool, Error> {
        let answer = self.call(json!({ "method": "can_handle", "step": step }))?;
        answer["result"].as_bool().ok_or_else(|| self.broken("`can_handle` has no `result`"))
    }

    fn plan(&mut self, step: &Op, rows: u64) -> Result<String, Error> {
        let answer = self.call(json!({ "method": "plan", "step": step, "estimate": rows }))?;
        Ok(answer["note"].as_str().unwrap_or_default().to_owned())
    }

    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error> {
        self.rows("apply", rows)
    }

    fn verify(&mut self, rows: &RowChunk) -> Result<(), Error> {
        self.rows("verify", rows).map(drop)
    }

    fn rollback(&mut self, rows: &RowChunk) -> Result<RowChunk, Error> {
        self.rows("rollback", rows)
    }
}

impl RowFunction for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest)
    }

    fn apply(&mut self, rows: &RowChunk) -> Result<RowChunk, Error> {
        MigrationPlugin::apply(self, rows)
    }
}

fn digest_of(program: &Path) -> std::io::Result<Digest> {
    let (mut file, mut hasher) = (std::fs::File::open(program)?, Hasher::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Limits of the process. One that the kernel refuses is left out: the others still hold.
fn limit(child: &Child) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    for (resource, limit) in
        [(Resource::As, MEMORY), (Resource::Nofile, FILES), (Resource::Fsize, FILE), (Resource::Core, 0)]
    {
        let _ = prlimit(Some(pid), resource, Rlimit { current: Some(limit), maximum: Some(limit) });
    }
}

/// A value as plugins see it: numbers, text, null; bytes as `{"hex": ".."}`.
fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(value) => (*value).into(),
        Value::Real(value) => json!(value),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => {
            json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
        }
    }
}

fn from_json(value: &Json) -> Option<Value> {
    Some(match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Integer(i64::from(*value)),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Integer(whole),
            None => Value::Real(number.as_f64()?),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(fields) => {
            let hex = fields.get("hex")?.as_str()?;
            let pairs = hex.as_bytes().chunks(2).map(|pair| {
                let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
                u8::from_str_radix(pair, 16).ok()
            });
            Value::Bytes(pairs.collect::<Option<_>>()?)
        }
        Json::Array(_) => return None,
    })
}
