//! The HTTP probe: 2xx is good, 429 half good, all else bad. Each probe has its own connection.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use muster_catalog::Status;
use reqwest::Url;
use tokio::time::{Instant, timeout_at};

use super::{
    MAX_OUTPUT, Outcome, Tools,
    conversation::{self, printable},
    tls::Terms,
    with_causes,
};
use crate::definition::{ExpectedIdentity, HttpProbe};

/// A service that needs more hops does not answer, it sends around.
const MAX_REDIRECTS: usize = 5;
/// For the head of an answer; a longer one is a fault of its own.
const MAX_HEAD: usize = 64 * 1024;
/// Lines in it: no fewer than fit, so that the size alone decides.
const MAX_HEADERS: usize = 4096;

/// The part of the timeout that reading a body may reach into.
const BODY_SHARE: f64 = 0.9;

/// What came of a request.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// One request of a probe; redirects change it.
struct Asking {
    url: Url,
    method: Method,
    /// Whether the operator's headers and body go with it: never to another host than theirs.
    own: bool,
    with_body: bool,
}

/// Asks the URL, follows redirects if told to, and reads at most as much of the answer as is shown. The status decides,
/// whatever becomes of the body: one that does not end is given up in time for the status to count.
pub(super) async fn probe(probe: &HttpProbe, timeout: Duration, tools: &Tools) -> Outcome {
    let (method, url) = (&probe.method, &probe.url);
    let read_until = Instant::now() + timeout.mul_f64(BODY_SHARE);
    match ask_through(probe, read_until, tools).await {
        Ok(answer) => judge(probe, &answer),
        Err(why) => Outcome::critical(&format!("HTTP {method} {url}: {why}")),
    }
}

async fn ask_through(probe: &HttpProbe, read_until: Instant, tools: &Tools) -> Result<Answer, String> {
    let url = Url::parse(&probe.url).map_err(|error| format!("it is no URL: {error}"))?;
    let method = Method::from_bytes(probe.method.as_bytes()).map_err(|_| "the method cannot be sent")?;
    let mut asking = Asking { url, method, own: true, with_body: !probe.body.is_empty() };
    for _ in 0..=MAX_REDIRECTS {
        let answer = ask(probe, &asking, read_until, tools).await?;
        match find_redirect(probe, &asking, &answer)? {
            None => return Ok(answer),
            Some(next) => asking = next,
        }
    }
    Err(format!("it redirects more than {MAX_REDIRECTS} times"))
}

fn find_redirect(probe: &HttpProbe, asked: &Asking, answer: &Answer) -> Result<Option<Asking>, String> {
    let moved = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = answer.headers.get(header::LOCATION).filter(|_| moved && probe.follow_redirects) else {
        return Ok(None);
    };
    let location = location.to_str().map_err(|_| "it redirects to no URL")?;
    let url = asked.url.join(location).map_err(|error| format!("it redirects to {location:?}: {error}"))?;
    let anew = answer.status.as_u16() < 307 && asked.method != Method::HEAD;
    let own = asked.own && url.origin() == asked.url.origin();
    let method = if anew { Method::GET } else { asked.method.clone() };
    Ok(Some(Asking { url, method, own, with_body: asked.with_body && !anew && own }))
}

async fn ask(probe: &HttpProbe, asking: &Asking, read_until: Instant, tools: &Tools) -> Result<Answer, String> {
    let url = &asking.url;
    let host = url.host_str().ok_or("the URL has no host")?;
    let (terms, port) = match url.scheme() {
        "http" if matches!(probe.identity, Some(ExpectedIdentity::Certificate(_))) => {
            return Err("it redirects to plain http, which shows no certificate".to_owned());
        }
        "http" => (None, url.port_or_known_default().unwrap_or(80)),
        "https" => {
            let certificate = match &probe.identity {
                Some(ExpectedIdentity::Certificate(name)) => Some(name),
                _ => None,
            };
            let terms = Terms { options: &probe.tls, certificate, alpn: Some(b"http/1.1") };
            (Some(terms), url.port_or_known_default().unwrap_or(443))
        }
        other => return Err(format!("it leads to {other}, which is not HTTP")),
    };
    let line = conversation::open(&format!("{host}:{port}"), probe.allow_link_local, terms, tools).await?;
    let shaken =
        http1::Builder::new().max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).handshake(TokioIo::new(line)).await;
    let (mut sender, connection) = shaken.map_err(|error| with_causes(&error))?;
    let exchange = async {
        let response = sender.send_request(request(probe, asking, host)?).await.map_err(|error| with_causes(&error))?;
        Ok(read(response, read_until).await)
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // All that came is in the hands of the exchange; an error reaches it too.
        _ = connection => exchange.await,
    }
}

fn request(probe: &HttpProbe, asking: &Asking, host: &str) -> Result<Request<Full<Bytes>>, String> {
    let url = &asking.url;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let mut headers = HeaderMap::new();
    let given = HeaderValue::from_str(&authority).map_err(|_| "the host cannot be sent")?;
    headers.insert(header::HOST, given);
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain, text/*, */*"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("muster-check"));
    // RFC 9110 §8.6; strict servers answer 411 without it.
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(&asking.method);
    if expects_body && !asking.with_body {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    for (name, value) in probe.headers.iter().filter(|_| asking.own) {
        let fault = || format!("header {name} cannot be sent");
        let value = HeaderValue::from_str(value).map_err(|_| fault())?;
        headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| fault())?, value);
    }
    let body = if asking.with_body { Bytes::from(probe.body.to_string()) } else { Bytes::new() };
    let request = Request::builder().method(asking.method.clone()).uri(target).body(Full::new(body));
    let mut request = request.map_err(|error| error.to_string())?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn read(response: Response<Incoming>, until: Instant) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while body.len() < MAX_OUTPUT {
        let why = match timeout_at(until, incoming.frame()).await {
            Ok(Some(Ok(frame))) => {
                let chunk = frame.into_data().unwrap_or_default();
                body.extend_from_slice(&chunk[..chunk.len().min(MAX_OUTPUT - body.len())]);
                continue;
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => format!(" (the body broke off: {})", with_causes(&error)),
            Err(_) => " (the body did not end in time)".to_owned(),
        };
        body.truncate(MAX_OUTPUT - why.len().min(MAX_OUTPUT));
        body.extend_from_slice(why.as_bytes());
        break;
    }
    Answer { status: head.status, headers: head.headers, body }
}

fn judge(probe: &HttpProbe, answer: &Answer) -> Outcome {
    let status = match answer.status {
        code if code.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    };
    let (method, url) = (&probe.method, &probe.url);
    if let Some(ExpectedIdentity::Header { name, value }) = &probe.identity {
        let shown: Vec<_> = answer.headers.get_all(&**name).iter().map(|value| value.as_bytes()).collect();
        if !shown.contains(&value.as_bytes()) {
            let shown = match shown.first() {
                Some(other) => format!("says {:?}", printable(other)),
                None => "is missing".to_owned(),
            };
            let code = answer.status;
            return Outcome::critical(&format!(
                "HTTP {method} {url}: {code}, but another service answers: header {name} {shown}, expected {value:?}"
            ));
        }
    }
    let (code, body) = (answer.status, String::from_utf8_lossy(&answer.body));
    Outcome::new(status, &format!("HTTP {method} {url}: {code} Output: {body}"))
}
