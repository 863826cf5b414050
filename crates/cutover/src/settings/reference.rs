//! The reference page of the settings: every key the code knows, its default, and what it means.

use std::fmt::Write as _;

use super::{Settings, flatten};

/// What each key means. A test demands exactly the keys that the code knows, in the order of the code.
const MEANINGS: &[(&str, &str)] = &[
    ("package.name", "The one package this root may hold. Unset: whichever is installed first."),
    ("package.platform", "This host's platform. Unset: that of the program, such as `linux-x86_64`."),
    (
        "package.roots",
        "Roots of other packages on this host; their versions count like those in `preflight.packages`.",
    ),
    (
        "package.sites",
        "Roots of other packages on this host, by package, that `plan` and `apply NAME@VERSION` may change together with \
         this one, all or none; each has a `cutover.toml` of its own. They count like `package.roots` otherwise.",
    ),
    (
        "package.prefer",
        "Of the versions that will do, the one taken of a package that has to change with another: `lowest` or `newest`.",
    ),
    (
        "source.kind",
        "Where releases come from: a release `repository`, the releases of a `github` repository, or a `file`.",
    ),
    (
        "source.urls",
        "`repository`: base URLs (http, https), directories or `s3://BUCKET/PREFIX` that hold the same, tried in order of measured speed. Empty: no source.",
    ),
    ("source.path", "`file`: a bundle, or a directory with bundles."),
    ("source.github", "`github`: `OWNER/NAME`."),
    ("source.github_api", "`github`: where its REST API answers."),
    (
        "source.token_file",
        "A file whose first line is a bearer token. It is sent to the source only, never to where it redirects.",
    ),
    (
        "source.token_variable",
        "The environment variable that holds the bearer token, such as `GITHUB_TOKEN`.",
    ),
    ("source.ca_file", "Certificates (PEM) that servers must lead to, instead of the system's."),
    (
        "source.client_certificate",
        "Our certificate chain (PEM) for servers that ask for one; shown to the source only.",
    ),
    ("source.client_key", "The private key (PEM) of `source.client_certificate`."),
    (
        "source.proxy",
        "A proxy's URL; `none`: no proxy. Unset: as `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.",
    ),
    ("source.parallel", "Objects fetched at the same time; at least 1."),
    ("source.bytes_per_s", "Most bytes per second over all connections. 0: no limit."),
    ("source.resume", "Go on with what an interrupted download left."),
    (
        "source.retries",
        "Further tries of one object at one place that bring nothing new; every 64 KiB of progress start the count anew.",
    ),
    (
        "source.retry_wait_ms",
        "The longest wait before the first retry, in milliseconds; it doubles with each further one and is shortened by chance by up to half.",
    ),
    (
        "source.retry_wait_max_s",
        "The longest wait before a retry, in seconds, also when the server asks for one; a longer one is an error.",
    ),
    (
        "source.stall_timeout_s",
        "Longest time in which less than 1 KiB comes, in seconds. The whole has no limit.",
    ),
    ("source.connect_timeout_s", "Longest time to connect, in seconds."),
    (
        "trust-policy.crl",
        "Certificate revocation lists, PEM or DER. Once one is set, the status of every certificate must be known and current.",
    ),
    ("trust-policy.channels", "The channels releases may come from. Empty: any."),
    ("trust-policy.require_sbom", "Whether a release needs a bill of materials (CycloneDX)."),
    (
        "trust-policy.require_provenance",
        "Whether a release needs provenance (in-toto, SLSA v1) that names every program and library of it.",
    ),
    (
        "trust-policy.builders",
        "The builders that may have built a release, by the ids in its provenance, which is then required. Empty: any.",
    ),
    (
        "trust-policy.source_repositories",
        "The repositories a release may be built from, such as `https://github.com/acme/tool`, as its provenance names \
         them, which is then required. Empty: any.",
    ),
    (
        "trust-policy.log",
        "The verifier key (`NAME+HASH+KEY`) of the transparency log that a release must be in; then only releases of a \
         repository are installed. Unset: no log is asked for.",
    ),
    ("trust-policy.witnesses", "The verifier keys of witnesses of that log."),
    ("trust-policy.witness_threshold", "How many of them must have cosigned its checkpoint. 0: all."),
    (
        "install.layout",
        "How a root is laid out at its first use: `versioned` (`current` is a symlink), `exchange` (`current` is a \
         directory that is swapped) or `in-place` (files among files that are not ours). Unset: `versioned`.",
    ),
    (
        "install.local_changes",
        "Config files that were changed where they are installed: `refuse` the update or `replace` them.",
    ),
    (
        "install.jobs",
        "Files laid down and hashed at the same time. 0: as many as there are processors, at most 4.",
    ),
    (
        "install.nice",
        "How far the threads that fetch, hash, patch and lay down files give way to other work on processors and disks: a \
         nice value, 0 (not at all) to 19. The service is not affected.",
    ),
    (
        "install.prune",
        "When restore points that retention no longer keeps are removed: `after-update` or `by-command`.",
    ),
    ("preflight.timeout_ms", "Longest time of all checks together, in milliseconds; at most 2000 are used."),
    ("preflight.memory_mib", "Memory that must be available, in MiB. 0: not checked."),
    ("preflight.unknown", "A check that cannot tell: the update may `pass` or must `fail`."),
    (
        "preflight.packages",
        "Other packages of this host and their versions, for what releases require and conflict with.",
    ),
    (
        "service.mode",
        "Who runs the service: `supervised` (`cutover run`), `systemd`, `exec` (commands) or `none`.",
    ),
    (
        "service.stop_first",
        "Stop the service before the switch and start it after it, for services of which two may never run at once.",
    ),
    (
        "service.command",
        "`supervised`: program and arguments; a relative program is looked up in the release. Unset: the release's.",
    ),
    (
        "service.listen",
        "`supervised`: sockets to open and pass on, `tcp:ADDRESS:PORT` or `unix:/PATH`. Unset: the release's.",
    ),
    (
        "service.ready",
        "`supervised`: how the service says that it is ready, `notify` or `running`. Unset: the release's.",
    ),
    ("service.ready_timeout_s", "Longest time to become ready, in seconds. Unset: the release's, else 30."),
    (
        "service.drain_timeout_s",
        "`supervised`: longest time to finish open connections, in seconds; then SIGKILL. Unset: the release's, else 30.",
    ),
    ("service.env", "`supervised`: environment variables, added to the release's. Never shown."),
    (
        "service.user",
        "`supervised`: the user it runs as; only root can choose one. Unset: the supervisor's own.",
    ),
    (
        "service.restart_delay_ms",
        "`supervised`: wait before the first restart after a crash, in milliseconds; doubles with every crash.",
    ),
    ("service.restart_delay_max_s", "`supervised`: the longest wait before a restart, in seconds."),
    (
        "service.stable_after_s",
        "`supervised`: a service that ran this long, in seconds, starts again with the shortest wait.",
    ),
    (
        "service.crash_loop_after",
        "`supervised`: this many crashes in a row are reported as a crash loop; restarts go on.",
    ),
    (
        "service.log_size_mib",
        "`supervised`: a release's log file is rotated at this size, in MiB; one older file is kept.",
    ),
    ("service.log_releases", "`supervised`: this many releases keep their log files."),
    ("service.unit", "`systemd`: the unit's name, such as `db.service`."),
    ("service.systemctl", "`systemd`: the program and arguments in front of the verb."),
    ("service.start", "`exec`: starts the service and returns."),
    ("service.stop", "`exec`: stops the service; success when it does not run."),
    (
        "service.reload",
        "`exec`: makes a running service use the new release without stopping it. Empty: stop and start.",
    ),
    (
        "service.status",
        "`exec`: exits 0 when the service runs and is ready. Empty: a finished `start` counts as ready.",
    ),
    ("service.command_timeout_s", "`systemd`, `exec`: longest time of one command, in seconds."),
    ("probes.timeout_s", "Longest time of one probe, in seconds, unless it sets its own."),
    (
        "probes.on_failure",
        "A failed probe leads to `restore` (the old release runs again) or `keep` (the new one stays, unconfirmed).",
    ),
    ("probes.smoke.alive_ms", "How long the service must stay up, in milliseconds. 0: no smoke probe."),
    ("probes.http[].name", "Its name in reports. Unset: the URL."),
    ("probes.http[].url", "What is asked for, with GET, until it is answered well or the time is over."),
    ("probes.http[].unix_socket", "Connects to this socket instead of the URL's host."),
    ("probes.http[].status", "The status of a good answer. Default 200."),
    ("probes.http[].contains", "Text that a good answer's first MiB contains."),
    ("probes.http[].timeout_s", "Its own time, in seconds, for all tries together."),
    ("probes.performance.url", "What is asked for, with GET; every answer must have a 2xx status."),
    ("probes.performance.unix_socket", "Connects to this socket instead of the URL's host."),
    ("probes.performance.requests", "How many requests are measured. Default 200."),
    (
        "probes.performance.slower_percent_max",
        "How much slower than the release before p50 and p99 may be, in percent. Default 100.",
    ),
    ("probes.performance.noise_ms", "A difference up to this many milliseconds never fails. Default 5."),
    ("probes.performance.p99_ms_max", "The longest p99 in milliseconds, whatever it was before."),
    ("probes.performance.timeout_s", "Its own time, in seconds."),
    ("probes.command[].name", "Its name in reports. Unset: the program."),
    (
        "probes.command[].argv",
        "Program and arguments; it must exit with 0. It runs in the release's tree with `CUTOVER_ROOT`, `CUTOVER_RELEASE` and `CUTOVER_TREE`.",
    ),
    ("probes.command[].timeout_s", "Its own time, in seconds."),
    ("retention.keep", "Most restore points kept. The newest is always kept."),
    ("retention.days", "Oldest age of restore points kept, in days. Unset: any."),
    ("retention.bytes", "Most bytes that restore points may take beyond the current release. Unset: any."),
    (
        "retention.warm",
        "How many of the newest keep their tree as it is; the trees of older ones go compressed to the store.",
    ),
    (
        "gate.enabled",
        "Whether commits are judged. When not, everything is admitted, with or without a commit.",
    ),
    ("gate.closed", "The emergency switch: nothing is admitted; hosts keep their data and come again."),
    ("gate.listen", "Sockets: `tcp:ADDRESS:PORT` or `unix:/PATH`."),
    ("gate.root", "The directory of `episodes/` and `index.jsonl`."),
    (
        "gate.storage.url",
        "Where episodes are kept when not in the root: `s3://BUCKET/PREFIX`; the index stays in the root. `[s3]` says how it is reached.",
    ),
    ("gate.header", "The request header that names the commit."),
    ("gate.aliases", "Other names of that header."),
    ("gate.remediation", "What a refused host is told to do, verbatim."),
    (
        "gate.source",
        "Where the accepted commits come from: `git` (the last commits of a clone), `releases` (those that releases were built from) or `both`.",
    ),
    ("gate.git.repository", "The clone: a work tree or a bare repository that somebody keeps up to date."),
    ("gate.git.reference", "What to count from: `HEAD`, a branch such as `origin/main`, a tag."),
    ("gate.git.window", "How many commits are accepted, counted from the newest; at least 1."),
    (
        "gate.git.order",
        "In which order they are counted: `log` (as `git log`, all sides of merges), `topological` or `first-parent`.",
    ),
    ("gate.git.ttl_s", "The set is read again before it is this old, in seconds."),
    ("gate.git.time_limit_s", "Git is stopped after this time, in seconds."),
    (
        "gate.git.max_stale_s",
        "While git fails, the last good set is used until it is this old, in seconds; then uploads are answered with 503.",
    ),
    (
        "gate.git.owner",
        "Whose clone is read: `any` (git runs nothing that the clone names) or `own`, as git decides.",
    ),
    ("gate.git.program", "The git program."),
    ("gate.releases.repository", "The directory of a release repository."),
    (
        "gate.releases.trust",
        "By what the releases are believed: `directory` (whoever writes there is trusted) or `anchor` (metadata and manifests are \
         verified against this program's trust anchor).",
    ),
    ("gate.releases.package", "Only releases of this package. Unset: of every one."),
    ("gate.releases.channel", "Only those of this channel. Unset: of every one."),
    ("gate.releases.minimum", "Only this version and later ones. Unset: any."),
    ("gate.releases.last", "Only so many versions, counted from the newest. 0: any number."),
    (
        "gate.attest.policy",
        "Signatures of hosts are not looked at (`off`), must be good where there is one (`accept`), or are demanded (`require`).",
    ),
    (
        "gate.attest.proof",
        "What makes a signed commit verified: `host` (the host's signature) or `release` (that, and a release it names, whose signed \
         manifest was built from the commit; needs `gate.releases.trust = \"anchor\"`).",
    ),
    (
        "gate.attest.keys",
        "The public key of each host: `ed25519:BASE64` (32 bytes) or `p256:BASE64` (uncompressed point, 65 bytes).",
    ),
    ("gate.limits.body_max_bytes", "The largest episode, in bytes. 0: any size."),
    ("gate.limits.host_bytes", "Most bytes stored of one host. 0: any."),
    ("gate.limits.host_episodes", "Most episodes stored of one host. 0: any."),
    ("gate.limits.free_bytes", "Bytes that stay free on the disk."),
    ("gate.limits.host_uploads", "Uploads under way at the same time of one host. 0: any."),
    ("gate.limits.requests_per_s", "Uploads per second of one host. 0: any."),
    ("gate.limits.burst", "Uploads at once before that rate holds."),
    ("gate.limits.connections", "Connections at the same time."),
    ("gate.limits.stall_timeout_s", "Longest time in which less than 1 KiB of a body comes, in seconds."),
    (
        "gate.limits.bytes_per_s_min",
        "The least bytes per second of a body as a whole: its declared length at this rate, and the stall timeout, is the longest it may take. 0: any.",
    ),
    (
        "gate.limits.head_timeout_s",
        "Longest time for the head of a request, in seconds; idle connections end after it too.",
    ),
    (
        "gate.limits.drain_timeout_s",
        "How long uploads under way may take when the receiver stops, in seconds.",
    ),
    ("gate.tls.certificate", "The certificate chain (PEM). Unset: plain HTTP."),
    ("gate.tls.key", "Its private key (PEM)."),
    (
        "gate.tls.client_ca",
        "Certificates (PEM) that clients must lead to. Once set, a client may act only for hosts whose ids are DNS names in its certificate.",
    ),
    (
        "gate.tokens",
        "The SHA-256 of each host's bearer token; `*` may act for every host. Empty: no token is asked for. `cutover gate token` makes one. Never shown.",
    ),
    ("schema.url", "The database of the service: `sqlite:PATH` or `postgres://USER@HOST/NAME`."),
    ("schema.author", "Who asks for migrations, for the history. Unset: the user of this process."),
    ("schema.plugins", "The directory with migration plugins, each called `NAME@VERSION`."),
    (
        "schema.metrics_file",
        "A file that `schema apply` and `schema status` rewrite with Prometheus metrics.",
    ),
    (
        "schema.head_file",
        "A file in which `cutover schema` keeps where the database's history ends; a history that was cut off there is \
         refused. Updates keep it in the state of their root when this is unset.",
    ),
    ("schema.max_hold_ms", "How long a lock that clients wait for may be held, in milliseconds."),
    ("schema.lock_timeout_ms", "How long one attempt at a lock may wait, in milliseconds (PostgreSQL)."),
    ("schema.chunk_rows", "Rows of the first chunk of a copy; later ones follow what clients feel."),
    ("schema.workers", "Connections that copy (PostgreSQL)."),
    (
        "schema.lease_s",
        "How long a migrator that gives no sign of life keeps others out, in seconds; at least 3.",
    ),
    ("ship.url", "The receiver: `https://HOST[:PORT][/PREFIX]`."),
    ("ship.spool", "The directory that episodes are put into."),
    (
        "ship.layout",
        "What the first level of the spool is: `flat` (episodes), `streams` (a directory for each stream) or `hosts` (a \
         directory for each host, for a machine that ships for others).",
    ),
    ("ship.host", "The id of this host. Unset: its host name."),
    (
        "ship.settle_s",
        "An entry is taken when nothing in it changed for this long, in seconds. 0: at first sight, for recorders that \
         rename whole episodes in.",
    ),
    ("ship.zstd_level", "How hard folders are compressed: 1 to 19."),
    ("ship.commit_header", "The request header that carries the commit."),
    ("ship.in_flight", "Uploads at a time."),
    (
        "ship.in_flight_per_stream",
        "Uploads at a time of one stream. With 1 its episodes arrive in their order; with more they only start in it.",
    ),
    ("ship.bytes_per_s", "Most bytes per second over all uploads. 0: no limit."),
    (
        "ship.retry_wait_ms",
        "The longest wait before the first further try, in milliseconds; it doubles with each failure.",
    ),
    ("ship.retry_wait_max_s", "The longest wait that the receiver does not ask for, in seconds."),
    ("ship.connect_timeout_s", "Longest time to connect, in seconds."),
    (
        "ship.stall_timeout_s",
        "Longest time in which the receiver takes no byte, in seconds. The whole has no limit.",
    ),
    ("ship.answer_timeout_s", "Longest time from the last byte to the answer, in seconds."),
    (
        "ship.token_file",
        "A file whose first line is a bearer token. It goes over https only, or to this machine.",
    ),
    ("ship.ca_file", "Certificates (PEM) that the receiver must lead to. Unset: the system's."),
    ("ship.client_certificate", "Our certificate chain (PEM), for receivers that ask for one."),
    ("ship.client_key", "Its private key (PEM)."),
    (
        "ship.attest_key",
        "This host's key (PEM), which signs what it says of each episode; `cutover ship key` makes one.",
    ),
    (
        "ship.attest_root",
        "The root of the package that records. Once set, a signature names the release there that the commit's code came in \
         (`gate.attest.proof = \"release\"`).",
    ),
    (
        "ship.on_refused",
        "What a refusal because of old code leads to besides parking: `park` (nothing) or `update` (`ship.update_command` \
         is run, so that what is recorded from then on is taken).",
    ),
    (
        "ship.update_command",
        "`update`: program and arguments, such as `[\"cutover\", \"apply\", \"recorder\", \"--root\", \"/srv/recorder\"]`; \
         `cutover` is this very program.",
    ),
    ("ship.update_every_s", "`update`: shortest time from one start to the next, in seconds."),
    ("ship.update_timeout_s", "`update`: longest time of one run, in seconds."),
    (
        "s3.endpoint",
        "The address of S3-compatible storage. Unset: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, else Amazon's for the region.",
    ),
    ("s3.region", "The region. Unset: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`."),
    (
        "s3.path_style",
        "Whether the bucket is named in the path and not in the host name. Unset: yes where an endpoint is named.",
    ),
    ("s3.allow_http", "Whether an endpoint may be plain http."),
    (
        "s3.credentials_file",
        "A file with profiles. Unset: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, else the file `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`, else the role of a container.",
    ),
    ("s3.profile", "The profile in it. Unset: `AWS_PROFILE`, else `default`."),
    (
        "s3.instance_credentials",
        "Whether the credentials of the machine's own role count when there are no others.",
    ),
    (
        "s3.ca_file",
        "Certificates (PEM) that the storage's may lead to, beside the system's. Unset: `AWS_CA_BUNDLE`.",
    ),
    (
        "s3.lease_s",
        "How long a publisher that gives no sign of life keeps others out, in seconds; at least 1.",
    ),
];

/// The page as Markdown.
pub fn page() -> String {
    let mut text = String::from(
        "# Settings\n\nPrinted by `cutover __reference settings`; do not edit by hand.\n\n\
         One TOML file: `--config FILE`, else `cutover.toml` in the root, else `/etc/cutover/cutover.toml`. Files in \
         `<file>.d/*.toml` are laid over it by name; those beside a file that is not there, over the next place's. Later \
         layers win: defaults, file, drop-ins, environment \
         (`CUTOVER_SECTION__KEY`; `_` in a section's name stands for `-`), flags (`--set SECTION.KEY=VALUE`, and those named \
         in the command line reference). Tables are merged key by key, lists are replaced whole. An unknown key or \
         `CUTOVER_` variable is an error, and so is a file that cannot be read, such as a link to nothing; a receiver keeps \
         its settings when one of its files goes away. `cutover config show --origin` says where each value came from; values under `service.env`, keys named \
         like a secret and passwords in URLs are masked, and a mask that is loaded again leaves its key unset.\n\n\
         The trust anchor is no setting: a file, variable or flag that tries to set one refuses the start with exit code \
         11. `CUTOVER_LOG` (such as `debug`) says how much is logged to stderr; it is no setting either.\n",
    );
    let defaults = defaults();
    let mut section = "";
    for (key, meaning) in MEANINGS {
        let (of, _) = key.split_once('.').unwrap_or((key, ""));
        if of != section {
            section = of;
            write!(text, "\n## [{section}]\n\nkey | default | meaning\n-|-|-\n")
                .expect("writing to a string cannot fail");
        }
        let default = defaults.iter().find(|(known, _)| known == key).map_or("", |(_, default)| default);
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        writeln!(text, "`{key}` | {default} | {meaning}").expect("writing to a string cannot fail");
    }
    text
}

fn defaults() -> Vec<(String, String)> {
    let mut defaults = Vec::new();
    let value = serde_json::to_value(Settings::default()).expect("settings have string keys");
    flatten(&value, &mut Vec::new(), &mut |path, value| defaults.push((path.join("."), value.to_string())));
    defaults
}

#[cfg(test)]
mod tests {
    use super::{super::known_keys, *};

    #[test]
    fn every_key_of_the_code_is_described_and_no_other() {
        let described: Vec<&str> = MEANINGS.iter().map(|(key, _)| *key).collect();
        assert_eq!(described, known_keys());
    }
}
