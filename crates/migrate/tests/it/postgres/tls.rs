//! Connections over TLS, to a server that takes no others over TCP.

use std::{
    fs::Permissions,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use cutover_migrate::{
    Error,
    engine::Unwatched,
    postgres::PostgresEngine,
    run::{Applied, Migrator, no_functions},
    state::sql::Sql as _,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{
    harness::{chain, migration, settings},
    server::{Server, have_server, postgres_user},
};

const MONEY: &str = "format = 1\nid = \"0001_money\"\n[[step]]\nop = \"alter_column\"\ntable = \"orders\"\ncolumn = \"amount\"\n\
    type = \"decimal(18,2)\"\nup = \"amount / 100.0\"\ndown = \"cast(amount * 100 as bigint)\"\n";

/// Who may come, and how.
const HBA: &str = "local all all trust\nhostssl all certified 127.0.0.1/32 cert\n\
    hostssl all guarded 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 trust\n";

struct World {
    server: Server,
    port: u16,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().to_owned();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        std::fs::write(there.join("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let other_key = KeyPair::generate().unwrap();
        let mut other = CertificateParams::default();
        other.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(there.join("other.pem"), other.self_signed(&other_key).unwrap().pem()).unwrap();
        let issue = |name: &str, common: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, common);
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = issue("client", "certified");
        std::fs::write(there.join("client.pem"), certificate).unwrap();
        std::fs::write(there.join("client.key"), key).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::start_with(|base| {
            let (certificate, key) = issue("localhost", "the server");
            for (name, text) in [
                ("server.pem", certificate),
                ("server.key", key),
                ("ca.pem", authority.pem()),
                ("hba", HBA.to_owned()),
            ] {
                for_the_server(&base.join(name), &text);
            }
            let place = |name: &str| base.join(name).display().to_string();
            vec![
                "listen_addresses=127.0.0.1".to_owned(),
                format!("port={port}"),
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", place("server.pem")),
                format!("ssl_key_file={}", place("server.key")),
                format!("ssl_ca_file={}", place("ca.pem")),
                format!("hba_file={}", place("hba")),
            ]
        });
        Self { server, port, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A URL; `%NAME%` in `query` is the path of a file.
    fn url(&self, user: &str, host: &str, query: &str) -> String {
        let mut query = query.to_owned();
        for name in ["ca.pem", "other.pem", "client.pem", "client.key", "passwords"] {
            query = query.replace(&format!("%{name}%"), &self.path(name).display().to_string());
        }
        format!("postgres://{user}@{host}:{}/postgres?{query}", self.port)
    }

    fn connect(&self, user: &str, host: &str, query: &str) -> Result<PostgresEngine, Error> {
        PostgresEngine::connect(&self.url(user, host, query))
    }
}

fn for_the_server(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    if let Some((uid, gid)) = postgres_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// Whether the connection is encrypted, as the server sees it.
fn is_encrypted(engine: &mut PostgresEngine) -> bool {
    let rows = engine.query("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).unwrap();
    rows[0][0].text().unwrap() == "true"
}

#[test]
fn tls_is_verified_as_sslmode_says_and_a_whole_migration_runs_over_it() {
    if !have_server() {
        return;
    }
    let world = World::new();
    let full = "sslmode=verify-full&sslrootcert=%ca.pem%";
    for (host, query) in [
        ("localhost", full),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert=%ca.pem%"),
        ("127.0.0.1", "sslmode=require"),
        ("127.0.0.1", "application_name=app"),
    ] {
        let mut engine = world
            .connect("postgres", host, query)
            .unwrap_or_else(|error| panic!("{query}: {}", chain(&error)));
        assert!(is_encrypted(&mut engine), "{query}");
    }
    for (host, query) in [
        // The certificate names localhost.
        ("127.0.0.1", full),
        ("localhost", "sslmode=verify-full&sslrootcert=%other.pem%"),
        ("localhost", "sslmode=verify-ca&sslrootcert=%other.pem%"),
        ("localhost", "sslmode=require&sslrootcert=%other.pem%"),
        // Nothing of the system vouches for it.
        ("localhost", "sslmode=verify-full"),
        // The server refuses those who do not encrypt.
        ("localhost", "sslmode=disable"),
    ] {
        assert!(world.connect("postgres", host, query).is_err(), "{query} to {host}");
    }
    let mut client = world.connect("postgres", "localhost", full).unwrap();
    client.execute("CREATE TABLE public.orders (id bigint PRIMARY KEY, amount bigint)", &[]).unwrap();
    client.execute("INSERT INTO public.orders SELECT g, g FROM generate_series(1, 3000) AS g", &[]).unwrap();
    let engine = world.connect("postgres", "localhost", full).unwrap();
    let mut migrator = Migrator::new(Box::new(engine), settings(), &Unwatched, &no_functions);
    match migrator.apply(&migration(MONEY), None) {
        Ok(Applied::Done(report)) => assert_eq!(report.ledger[0].seen, 3000),
        Ok(Applied::Already) => panic!("it was applied before"),
        Err(error) => panic!("{}", chain(&error)),
    }
    drop(migrator);
    drop(client);
    drop(world.server);
}

#[test]
fn roles_come_with_a_certificate_or_a_password_from_a_file() {
    if !have_server() {
        return;
    }
    let world = World::new();
    let full = "sslmode=verify-full&sslrootcert=%ca.pem%";
    let mut owner = world.connect("postgres", "localhost", full).unwrap();
    owner
        .execute("CREATE ROLE certified LOGIN; CREATE ROLE guarded LOGIN PASSWORD 'open: sesame'", &[])
        .unwrap();
    assert!(world.connect("certified", "localhost", full).is_err());
    let own = format!("{full}&sslcert=%client.pem%&sslkey=%client.key%");
    assert!(is_encrypted(&mut world.connect("certified", "localhost", &own).unwrap()));
    assert!(world.connect("certified", "localhost", &format!("{full}&sslcert=%client.pem%")).is_err());
    let from_file = format!("{full}&passfile=%passwords%");
    assert!(world.connect("guarded", "localhost", &from_file).is_err());
    let line = format!("localhost:{}:*:guarded:open\\: sesame\n", world.port);
    std::fs::write(world.path("passwords"), line).unwrap();
    std::fs::set_permissions(world.path("passwords"), Permissions::from_mode(0o600)).unwrap();
    let mut engine = world.connect("guarded", "localhost", &from_file).unwrap();
    assert!(is_encrypted(&mut engine));
}
