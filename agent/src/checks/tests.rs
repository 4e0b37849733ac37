//! Each type against a peer, and against what peers do wrong: refuse, hang, close, talk nonsense, talk for ever.

mod real;

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{HandshakeKind, NamedGroup, crypto::CryptoProvider};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::definition::{CheckText, IdentityText, TlsOptions};

/// What a fake peer does with a connection.
#[derive(Clone)]
enum Manner {
    /// Reads once, answers, and keeps the connection.
    Answer(&'static [u8]),
    /// Answers without being asked.
    Greet(&'static [u8]),
    /// Reads once, answers, and closes.
    AnswerAndClose(&'static [u8]),
    Close,
    Hang,
    Flood,
}

async fn converse<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, manner: Manner) {
    let mut asked = [0; 4096];
    match manner {
        Manner::Close => return,
        Manner::Greet(answer) => drop(stream.write_all(answer).await),
        Manner::Hang => {}
        Manner::Answer(answer) => {
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer).await;
        }
        Manner::AnswerAndClose(answer) => {
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            return;
        }
        Manner::Flood => while stream.write_all(&[b'x'; 4096]).await.is_ok() {},
    }
    // Open until the other side is done.
    while stream.read(&mut asked).await.is_ok_and(|length| length > 0) {}
}

async fn serve(manner: Manner) -> String {
    serve_with(None, manner).await
}

async fn serve_with(tls: Option<TlsAcceptor>, manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, manner) = (tls.clone(), manner.clone());
            tokio::spawn(async move {
                match tls {
                    None => converse(stream, manner).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            converse(stream, manner).await;
                        }
                    }
                }
            });
        }
    });
    address
}

/// An address that refuses: it was bound a moment ago.
fn nobody() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn text() -> CheckText {
    CheckText { timeout: Some("5s".into()), ..CheckText::default() }
}

fn tools() -> Tools {
    Tools::new(Scripts::Files)
}

async fn run_with(text: &CheckText, tools: &Tools) -> Outcome {
    let definition = text.validate("check", "c", "c", None).unwrap();
    let back = CheckText::from(&definition).validate("check", "", "", None).unwrap();
    assert_eq!(back, definition, "the written form gives it back");
    probe(&definition, tools, &mut script::Past::default()).await
}

async fn run_once(text: &CheckText) -> Outcome {
    run_with(text, &tools()).await
}

#[track_caller]
fn expect(outcome: &Outcome, status: Status, part: &str) {
    assert!(outcome.status == status && outcome.output.contains(part), "not {status} with {part:?}: {outcome:?}");
    assert!(outcome.output.len() <= MAX_OUTPUT);
}

/// The kinds that talk over a stream, with a text for `target`.
fn kinds(target: &str) -> Vec<CheckText> {
    let target = Some(target.to_owned());
    vec![
        CheckText { http: target.as_ref().map(|target| format!("http://{target}/")), ..text() },
        CheckText { grpc: target.clone(), ..text() },
        CheckText { h2ping: target.clone(), ..text() },
        CheckText { redis: target.clone(), ..text() },
        CheckText { postgres: target.clone(), ..text() },
        CheckText { mysql: target, ..text() },
    ]
}

#[tokio::test]
async fn whatever_a_peer_does_wrong_is_critical_with_the_reason() {
    for check in kinds(&nobody()) {
        expect(&run_once(&check).await, Status::Critical, "refused");
    }
    for manner in [Manner::Close, Manner::Flood, Manner::Greet(b"\0\0\0\0\0\0\0\0 what?\r\n\r\n")] {
        for check in kinds(&serve(manner).await) {
            let outcome = run_once(&check).await;
            expect(&outcome, Status::Critical, "");
            assert!(!outcome.output.contains("no answer within"), "it waited for no reason: {outcome:?}");
        }
    }
    for check in kinds(&serve(Manner::Hang).await) {
        let check = CheckText { timeout: Some("50ms".into()), ..check };
        expect(&run_once(&check).await, Status::Critical, "no answer within 50ms");
    }
}

#[tokio::test]
async fn checks_do_not_go_to_metadata_addresses() {
    let mut all = kinds("169.254.169.254:80");
    all.push(CheckText { tcp: Some("[::ffff:169.254.169.254]:80".into()), ..text() });
    all.push(CheckText { udp: Some("169.254.1.1:53".into()), ..text() });
    // A URL knows this spelling of 169.254.169.254.
    all.push(CheckText { http: Some("http://2852039166/latest/meta-data".into()), ..text() });
    let answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n";
    let url = Some(format!("http://{}/", serve(Manner::Answer(answer)).await));
    all.push(CheckText { http: url, follow_redirects: Some(true), ..text() });
    for check in all {
        expect(&run_once(&check).await, Status::Critical, "where checks may not go");
    }
}

#[tokio::test]
async fn redirects_are_followed_and_carry_no_headers_away() {
    let landing = serve_echo().await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://{landing}/\r\nContent-Length: 0\r\n\r\n");
    let start = serve(Manner::Answer(Box::leak(answer.into_bytes().into_boxed_slice()))).await;
    let headers = [("Authorization".to_owned(), "secret".to_owned())].into();
    let check = CheckText { http: Some(format!("http://{start}/")), follow_redirects: Some(true), headers, ..text() };
    let outcome = run_once(&check).await;
    expect(&outcome, Status::Passing, "user-agent: muster-check");
    assert!(!outcome.output.contains("secret"), "{outcome:?}");
    let direct = CheckText { http: Some(format!("http://{landing}/")), ..check };
    expect(&run_once(&direct).await, Status::Passing, "secret");
    let circle = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
    let http = Some(format!("http://{}/", serve(Manner::Answer(circle)).await));
    expect(&run_once(&CheckText { http, ..direct }).await, Status::Critical, "more than 5 times");
}

#[tokio::test]
async fn the_status_decides_whatever_becomes_of_the_rest() {
    let check =
        |target: String| CheckText { http: Some(format!("http://{target}/")), timeout: Some("1s".into()), ..text() };
    let short = serve(Manner::AnswerAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")).await;
    expect(&run_once(&check(short)).await, Status::Passing, "short (the body broke off");
    let bad = serve(Manner::AnswerAndClose(b"HTTP/1.1 503 Gone\r\nContent-Length: 100\r\n\r\nshort")).await;
    expect(&run_once(&check(bad)).await, Status::Critical, "503");
    let endless = serve(Manner::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nmore")).await;
    expect(&run_once(&check(endless)).await, Status::Passing, "more (the body did not end in time)");
    let many: String = (0..1000).map(|index| format!("X-{index}: 1\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 4\r\n\r\nfine");
    let many = serve(Manner::Answer(Box::leak(many.into_bytes().into_boxed_slice()))).await;
    expect(&run_once(&check(many)).await, Status::Passing, "fine");
    let echo = serve_echo().await.to_string();
    for (method, part) in [("POST", "content-length: 0"), ("PUT", "content-length: 0"), ("PATCH", "content-length: 0")]
    {
        let check = CheckText { method: Some(method.into()), ..check(echo.clone()) };
        expect(&run_once(&check).await, Status::Passing, part);
        let full = CheckText { body: Some("ping".into()), ..check };
        expect(&run_once(&full).await, Status::Passing, "content-length: 4");
    }
    let get = run_once(&check(echo)).await;
    assert!(!get.output.contains("content-length"), "{get:?}");
}

/// Answers with the head of the request.
async fn serve_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap_or(0);
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await;
            let _ = stream.write_all(&asked[..length]).await;
        }
    });
    address
}

#[tokio::test]
async fn udp_must_be_answered() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = Some(socket.local_addr().unwrap().to_string());
    let check = CheckText { udp: target, send: Some("ping".into()), ..text() };
    let silent = CheckText { timeout: Some("50ms".into()), ..check.clone() };
    expect(&run_once(&silent).await, Status::Critical, "no answer within 50ms");
    tokio::spawn(async move {
        let mut asked = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut asked).await {
            let _ = socket.send_to(&[b"got ", &asked[..length]].concat(), from).await;
        }
    });
    expect(&run_once(&check).await, Status::Passing, "got ping");
    let picky = CheckText { expect: Some("pong".into()), ..check };
    expect(&run_once(&picky).await, Status::Critical, "lacks \"pong\"");
    expect(&run_once(&CheckText { udp: Some(nobody()), ..text() }).await, Status::Critical, "refused");
}

#[tokio::test]
async fn grpc_health_and_http2_pings() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("web", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("db", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let grpc = |grpc: String| CheckText { grpc: Some(grpc), ..text() };
    expect(&run_once(&grpc(target.clone())).await, Status::Passing, "success");
    expect(&run_once(&grpc(format!("{target}/web"))).await, Status::Passing, "success");
    expect(&run_once(&grpc(format!("{target}/db"))).await, Status::Critical, "\"db\" is NOT_SERVING");
    expect(&run_once(&grpc(format!("{target}/none"))).await, Status::Critical, "not registered");
    expect(
        &run_once(&CheckText { h2ping: Some(target), ..text() }).await,
        Status::Passing,
        "HTTP2 ping was successful",
    );
}

#[tokio::test]
async fn databases_answer_as_they_do() {
    let pg_error: &[u8] = b"E\0\0\0\x2fSFATAL\0C57P03\0Mthe database is starting up\0\0";
    let mysql_good: &[u8] = b"\x12\0\0\0\x0a11.4.2-MariaDB\0\0\0";
    let mysql_bad: &[u8] = b"\x17\0\0\0\xff\x10\x04Too many connections";
    for (kind, manner, status, part) in [
        ("redis", Manner::Answer(b"+PONG\r\n"), Status::Passing, "+PONG"),
        ("redis", Manner::Answer(b"-NOAUTH Authentication required.\r\n"), Status::Passing, "NOAUTH"),
        ("redis", Manner::Answer(b"-LOADING Redis is loading\r\n"), Status::Critical, "LOADING"),
        ("postgres", Manner::Answer(b"R\0\0\0\x08\0\0\0\x05abcd"), Status::Passing, "asks for credentials"),
        ("postgres", Manner::Answer(pg_error), Status::Critical, "FATAL 57P03: the database is starting up"),
        ("postgres", Manner::Answer(b"HTTP/1.1 400 Bad"), Status::Critical, "not as PostgreSQL"),
        ("mysql", Manner::Greet(mysql_good), Status::Passing, "greets as 11.4.2-MariaDB"),
        ("mysql", Manner::Greet(mysql_bad), Status::Critical, "error 1040: Too many connections"),
        ("mysql", Manner::Greet(b"220 mail ESMTP\r\n"), Status::Critical, "not as MySQL"),
    ] {
        let target = Some(serve(manner).await);
        let check = match kind {
            "redis" => CheckText { redis: target, ..text() },
            "postgres" => CheckText { postgres: target, ..text() },
            _ => CheckText { mysql: target, ..text() },
        };
        expect(&run_once(&check).await, status, part);
    }
    let check = CheckText { postgres: Some(serve(Manner::Answer(b"N")).await), tls: Some(true), ..text() };
    expect(&run_once(&check).await, Status::Critical, "speaks no TLS");
}

struct Issuer {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Issuer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    fn ca_file(&self) -> Option<String> {
        Some(self.directory.path().join("ca.pem").display().to_string())
    }

    /// A certificate for these names and its key, as PEM.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn acceptor(&self, names: &[&str], uri: Option<&str>, alpn: &[u8]) -> TlsAcceptor {
        self.acceptor_with(crate::crypto(), names, uri, alpn)
    }

    fn acceptor_with(&self, crypto: CryptoProvider, names: &[&str], uri: Option<&str>, alpn: &[u8]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(crypto)).with_safe_default_protocol_versions();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config =
            config.unwrap().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

const FINE: &[u8] = b"HTTP/1.1 200 OK\r\nX-Service: web\r\nContent-Length: 4\r\n\r\nfine";

#[tokio::test]
async fn tls_with_own_roots_and_names() {
    let (ours, theirs) = (Issuer::new(), Issuer::new());
    let target = serve_with(Some(ours.acceptor(&["web.internal"], None, b"http/1.1")), Manner::Answer(FINE)).await;
    let http = CheckText { http: Some(format!("https://{target}/")), ..text() };
    let tcp = CheckText { tcp: Some(target.clone()), tls: Some(true), ..text() };
    let named = |check: &CheckText, name: &str| CheckText {
        ca_file: ours.ca_file(),
        tls_server_name: Some(name.into()),
        ..check.clone()
    };
    let tools = tools();
    for check in [&http, &tcp] {
        expect(&run_with(&named(check, "web.internal"), &tools).await, Status::Passing, "");
        expect(&run_with(&named(check, "db.internal"), &tools).await, Status::Critical, "not valid for name");
        let foreign = CheckText { ca_file: theirs.ca_file(), ..named(check, "web.internal") };
        expect(&run_with(&foreign, &tools).await, Status::Critical, "invalid peer certificate");
        let missing = CheckText { ca_file: Some("/nonexistent/ca.pem".into()), ..check.clone() };
        expect(&run_with(&missing, &tools).await, Status::Critical, "/nonexistent/ca.pem");
        let blind = CheckText { tls_skip_verify: Some(true), ..check.clone() };
        expect(&run_with(&blind, &tools).await, Status::Passing, "");
    }
    let plain = serve(Manner::Greet(b"no TLS here")).await;
    let check = CheckText { tcp: Some(plain), tls: Some(true), tls_skip_verify: Some(true), ..text() };
    expect(&run_with(&check, &tools).await, Status::Critical, "TLS");
    // The roots are read again when their file changes.
    std::fs::write(theirs.ca_file().unwrap(), std::fs::read(ours.ca_file().unwrap()).unwrap()).unwrap();
    std::fs::File::open(theirs.ca_file().unwrap()).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let turned = CheckText { ca_file: theirs.ca_file(), ..named(&tcp, "web.internal") };
    expect(&run_with(&turned, &tools).await, Status::Passing, "TCP+TLS");
}

#[tokio::test]
async fn keys_are_agreed_on_with_x25519mlkem768_and_an_older_peer_costs_no_other_round_trip() {
    let issuer = Issuer::new();
    let mut older = crate::crypto();
    older.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    for (peer, group) in [(crate::crypto(), NamedGroup::X25519MLKEM768), (older, NamedGroup::X25519)] {
        let acceptor = issuer.acceptor_with(peer, &["web.internal"], None, b"");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let options = TlsOptions { ca_file: None, server_name: None, skip_verify: true };
        let (trust, terms) =
            (tls::TlsTrust::default(), tls::Terms { options: &options, certificate: None, alpn: None });
        let served = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
        let (shaken, _served) = tokio::join!(trust.shake_hands(stream, "web.internal", terms), served);
        let shaken = shaken.unwrap();
        let connection = shaken.get_ref().1;
        assert_eq!(connection.negotiated_key_exchange_group().map(|group| group.name()), Some(group));
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
    }
}

/// What no verifier here can read; openssl is asked, as rustls shows none of it.
#[tokio::test]
async fn skip_verify_takes_any_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |line: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(line.split(' ')).current_dir(directory.path()).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    if openssl("version").status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "openssl is missing");
        return;
    }
    for line in [
        "req -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=x",
        "x509 -req -in v1.csr -signkey v1.key -out v1.pem -days 9",
        "req -x509 -newkey rsa:1024 -nodes -keyout short.key -out short.pem -days 9 -subj /CN=x",
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes -keyout curve.key -out curve.pem -days 9 -subj /CN=x",
    ] {
        assert!(openssl(line).status().unwrap().success(), "openssl {line}");
    }
    let tools = tools();
    // In TLS 1.2 the curve of a certificate has to be one that keys are exchanged on.
    let both: &[&str] = &["-tls1_2", "-tls1_3"];
    for (name, versions) in [("v1", both), ("short", both), ("curve", &["-tls1_3"])] {
        for version in versions {
            let target = nobody();
            let line = format!(
                "s_server -accept {target} -cert {name}.pem -key {name}.key -cipher DEFAULT@SECLEVEL=0 {version} -www -quiet"
            );
            let mut server = openssl(&line).spawn().unwrap();
            let check = CheckText { http: Some(format!("https://{target}/")), tls_skip_verify: Some(true), ..text() };
            let mut outcome = run_with(&check, &tools).await;
            while outcome.output.contains("refused") {
                tokio::time::sleep(Duration::from_millis(10)).await;
                outcome = run_with(&check, &tools).await;
            }
            let verified = CheckText { tls_skip_verify: None, ca_file: None, ..check };
            let strict = run_with(&verified, &tools).await;
            server.kill().unwrap();
            server.wait().unwrap();
            expect(&outcome, Status::Passing, "200 OK");
            assert_eq!(strict.status, Status::Critical, "{name} {version}: {strict:?}");
        }
    }
}

#[tokio::test]
async fn another_service_on_the_port_fails() {
    let issuer = Issuer::new();
    let acceptor = issuer.acceptor(&[], Some("spiffe://mesh/web"), b"http/1.1");
    let target = serve_with(Some(acceptor), Manner::Answer(FINE)).await;
    let certificate = |name: &str| Some(IdentityText { certificate: Some(name.into()), ..IdentityText::default() });
    let base = CheckText { http: Some(format!("https://{target}/")), ca_file: issuer.ca_file(), ..text() };
    let right = CheckText { expect_identity: certificate("spiffe://mesh/web"), ..base.clone() };
    expect(&run_once(&right).await, Status::Passing, "fine");
    let wrong = CheckText { expect_identity: certificate("spiffe://mesh/db"), ..base.clone() };
    expect(
        &run_once(&wrong).await,
        Status::Critical,
        "its certificate is for spiffe://mesh/web, not for spiffe://mesh/db",
    );
    // Any name does not mean any issuer.
    let other = Issuer::new();
    let foreign = CheckText { ca_file: other.ca_file(), ..right };
    expect(&run_once(&foreign).await, Status::Critical, "invalid peer certificate");

    let plain = serve(Manner::Answer(FINE)).await;
    let header = |value: &str| {
        Some(IdentityText { header: Some("x-service".into()), value: Some(value.into()), certificate: None })
    };
    let base = CheckText { http: Some(format!("http://{plain}/")), ..text() };
    expect(&run_once(&CheckText { expect_identity: header("web"), ..base.clone() }).await, Status::Passing, "fine");
    let wrong = run_once(&CheckText { expect_identity: header("db"), ..base }).await;
    expect(&wrong, Status::Critical, "header x-service says \"web\", expected \"db\"");
}

fn script(line: &str, timeout: &str) -> CheckText {
    let args = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
    CheckText { args, timeout: Some(timeout.into()), ..CheckText::default() }
}

#[tokio::test]
async fn scripts_end_in_statuses() {
    for (line, status, part) in [
        ("echo fine", Status::Passing, "fine"),
        ("echo slow >&2; exit 1", Status::Warning, "slow"),
        ("echo bad; exit 7", Status::Critical, "exited with 7\nbad"),
        ("kill -9 $$", Status::Critical, "ended by signal 9"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; echo end", Status::Passing, "of 1000004 bytes"),
        ("env", Status::Passing, "PATH=/usr/local/sbin"),
    ] {
        let outcome = run_once(&script(line, "30s")).await;
        expect(&outcome, status, part);
        assert!(!outcome.output.contains("CARGO"), "the agent's environment leaks: {outcome:?}");
    }
    let nothing = CheckText { args: vec!["/nonexistent/program".into()], ..text() };
    expect(&run_once(&nothing).await, Status::Critical, "cannot be started");
    let off = run_with(&script("echo fine", "1s"), &Tools::new(Scripts::Off)).await;
    expect(&off, Status::Critical, "scripts are off on this agent");
}

#[tokio::test]
async fn a_script_over_time_is_killed_with_all_its_children() {
    // The pipe ends when the last process that holds it is dead: the grandchild too.
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("alive");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let line = format!("echo begun; (sleep 600 >'{}') & sleep 600", fifo.display());
    let reader = tokio::spawn(async move { tokio::fs::read(fifo).await });
    expect(&run_once(&script(&line, "2s")).await, Status::Critical, "Timed out (2s) running /bin/sh, killed\nbegun");
    tokio::time::timeout(Duration::from_secs(30), reader).await.expect("a grandchild lives on").unwrap().unwrap();
}

#[tokio::test]
async fn systemd_is_asked_and_its_absence_told() {
    let absent = Tools { bus: systemd::Bus::at("unix:path=/nonexistent/bus".into()), ..tools() };
    let check = CheckText { systemd: Some("dbus.service".into()), ..text() };
    expect(&run_with(&check, &absent).await, Status::Critical, "the system bus does not answer");
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", directory.path().join("bus").display());
    let daemon = tokio::process::Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--print-address", "--address", &address])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut daemon) = daemon else {
        assert!(std::env::var_os("CI").is_none(), "dbus-daemon is missing");
        eprintln!("passed over: dbus-daemon is not installed");
        return;
    };
    BufReader::new(daemon.stdout.take().unwrap()).lines().next_line().await.unwrap().expect("no bus");
    let real = Tools { bus: systemd::Bus::at(address.clone()), ..tools() };
    expect(&run_with(&check, &real).await, Status::Critical, "does not answer");
    let served = zbus::connection::Builder::address(address.as_str());
    let served = served.name("org.freedesktop.systemd1");
    let served = served.serve_at("/org/freedesktop/systemd1", FakeManager);
    let unit = |load, active, sub| FakeUnit { load, active, sub };
    let served = served.serve_at("/u/good", unit("loaded", "active", "running"));
    let served = served.serve_at("/u/soon", unit("loaded", "activating", "start-pre"));
    let served = served.serve_at("/u/gone", unit("not-found", "inactive", "dead"));
    let _connection = served.build().await.unwrap();
    for (name, status, part) in [
        ("good.service", Status::Passing, "active (running)"),
        ("soon.service", Status::Warning, "activating (start-pre)"),
        ("gone.service", Status::Critical, "inactive (dead), its file is not-found"),
        ("bad.service", Status::Critical, "no such unit"),
    ] {
        let check = CheckText { systemd: Some(name.into()), ..text() };
        expect(&run_with(&check, &real).await, status, part);
    }
}

struct FakeManager;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeManager {
    fn load_unit(&self, name: &str) -> zbus::fdo::Result<zbus::OwnedObjectPath> {
        match name.strip_suffix(".service") {
            Some("bad") | None => Err(zbus::fdo::Error::Failed("no such unit".into())),
            Some(stem) => Ok(zbus::ObjectPath::try_from(format!("/u/{stem}")).unwrap().into()),
        }
    }
}

struct FakeUnit {
    load: &'static str,
    active: &'static str,
    sub: &'static str,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        self.load
    }

    #[zbus(property)]
    fn active_state(&self) -> &str {
        self.active
    }

    #[zbus(property)]
    fn sub_state(&self) -> &str {
        self.sub
    }
}
