//! The command line's way to the agent: the v1 API over loopback.

use std::time::Duration;

use serde_json::Value;

use super::{ApiArgs, Failure, Outcome};
use crate::checks::with_causes;

/// How long a request may take beyond what it is asked to wait for.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) struct Api {
    base: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// A JSON answer with its blocking index.
pub(super) struct Answer {
    pub(super) body: Value,
    pub(super) index: u64,
    /// How old the answer is, when the agent has lost the registry.
    pub(super) stale_ms: Option<u64>,
}

impl Api {
    pub(super) fn new(args: &ApiArgs) -> Result<Self, Failure> {
        let base = match args.http.split_once("://") {
            Some(_) => args.http.trim_end_matches('/').to_owned(),
            None => format!("http://{}", args.http),
        };
        crate::install_crypto();
        let client = client(&base)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
        Ok(Self { base, client, runtime })
    }

    pub(super) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.get_within(path, PATIENCE)
    }

    /// Waits up to `wait` for the index to pass `index`.
    pub(super) fn get_after(&self, path: &str, index: u64, wait: Duration) -> Result<Answer, Failure> {
        let glue = if path.contains('?') { '&' } else { '?' };
        self.get_within(&format!("{path}{glue}index={index}&wait={}s", wait.as_secs()), wait + wait / 8 + PATIENCE)
    }

    fn get_within(&self, path: &str, patience: Duration) -> Result<Answer, Failure> {
        let url = format!("{}{path}", self.base);
        self.runtime.block_on(async {
            let response =
                self.client.get(&url).timeout(patience).send().await.map_err(|error| self.unreachable(&error))?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok()?.parse().ok();
            let (index, stale_ms) = (header("x-consul-index").unwrap_or(0), header("x-muster-stale"));
            let response = refused(response).await?;
            Ok(Answer { body: response.json().await.map_err(Failure::failed)?, index, stale_ms })
        })
    }

    pub(super) fn put(&self, path: &str, body: Option<&Value>) -> Outcome {
        let url = format!("{}{path}", self.base);
        self.runtime.block_on(async {
            let mut request = self.client.put(&url).timeout(PATIENCE);
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(|error| self.unreachable(&error))?;
            refused(response).await.map(|_| ())
        })
    }

    /// A PUT whose answer is of interest.
    pub(super) fn put_for_answer(&self, path: &str) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.base);
        self.runtime.block_on(async {
            let sent = self.client.put(&url).timeout(PATIENCE).send().await;
            let response = refused(sent.map_err(|error| self.unreachable(&error))?).await?;
            response.json().await.map_err(Failure::failed)
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let why = if error.is_timeout() { "it did not answer in time" } else { "nothing answers there" };
        Failure::Failed(format!(
            "no agent at {}: {why}; start one with `muster dev`, or name another with --http-addr or MUSTER_HTTP_ADDR",
            self.base
        ))
    }
}

/// A client that reads the host's root certificates for https only: a host that has none can do all else.
fn client(base: &str) -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder().no_proxy();
    let secure = base.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"));
    if secure {
        return builder.build().map_err(|error| {
            Failure::Failed(format!(
                "{base}: the host's root certificates cannot be used: {}; install them (ca-certificates), or name an \
                 http:// address with --http-addr or MUSTER_HTTP_ADDR",
                with_causes(&error)
            ))
        });
    }
    let trusts_nobody =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    builder.tls_backend_preconfigured(trusts_nobody).build().map_err(|error| Failure::Failed(with_causes(&error)))
}

async fn refused(response: reqwest::Response) -> Result<reqwest::Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    Err(Failure::Failed(format!("the agent answered {status}: {}", text.trim())))
}
