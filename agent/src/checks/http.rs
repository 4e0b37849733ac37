//! The HTTP probe: 2xx is good, 429 half good, all else bad. Each probe has its own connection.

use std::{
    error::Error,
    sync::{Arc, OnceLock},
};

use muster_catalog::Status;
use reqwest::{Client, Method, Response, StatusCode, redirect::Policy};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::BuilderVerifierExt;

use super::{MAX_OUTPUT, Outcome};
use crate::definition::HttpProbe;

/// A service that needs more hops does not answer, it sends around.
const MAX_REDIRECTS: usize = 5;

/// Clients by what they trust and follow, made when first needed: the host's root certificates are large, so all
/// checks share them.
#[derive(Debug, Default)]
pub(crate) struct HttpClients {
    slots: [OnceLock<Result<Client, String>>; 6],
}

#[derive(Clone, Copy)]
enum Trust {
    /// No certificate at all: for plain HTTP, which must work on hosts without root certificates.
    Nothing = 0,
    /// The host's root certificates.
    Host = 1,
    /// Whatever is shown.
    Anything = 2,
}

impl HttpClients {
    fn find(&self, probe: &HttpProbe) -> Result<&Client, &str> {
        let trust = match probe.url.get(..6) {
            _ if probe.tls_skip_verify => Trust::Anything,
            Some(scheme) if scheme.eq_ignore_ascii_case("https:") => Trust::Host,
            _ if probe.follow_redirects => Trust::Host,
            _ => Trust::Nothing,
        };
        let slot = &self.slots[trust as usize * 2 + usize::from(probe.follow_redirects)];
        slot.get_or_init(|| build(trust, probe.follow_redirects)).as_ref().map_err(String::as_str)
    }
}

fn build(trust: Trust, follow: bool) -> Result<Client, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let builder = match trust {
        Trust::Nothing => builder.with_root_certificates(RootCertStore::empty()),
        Trust::Host => builder.with_platform_verifier().map_err(|error| {
            format!("the host's root certificates cannot be used: {error}; install them (ca-certificates)")
        })?,
        Trust::Anything => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnything(provider))),
    };
    Client::builder()
        .tls_backend_preconfigured(builder.with_no_client_auth())
        .redirect(if follow { Policy::limited(MAX_REDIRECTS) } else { Policy::none() })
        .pool_max_idle_per_host(0)
        .no_proxy()
        .referer(false)
        .user_agent("muster-check")
        .build()
        .map_err(|error| format!("no HTTP client: {}", with_causes(&error)))
}

/// Asks the URL and reads at most as much of the answer as is shown.
pub(super) async fn probe(probe: &HttpProbe, clients: &HttpClients) -> Outcome {
    let (method, url) = (&probe.method, &probe.url);
    let failed = |reason: &str| Outcome::critical(&format!("HTTP {method} {url}: {reason}"));
    let client = match clients.find(probe) {
        Ok(client) => client,
        Err(reason) => return failed(reason),
    };
    let Ok(request_method) = Method::from_bytes(method.as_bytes()) else {
        return failed("the method cannot be sent");
    };
    let mut request = client.request(request_method, &**url).header("Accept", "text/plain, text/*, */*");
    for (name, value) in &probe.headers {
        request = request.header(&**name, &**value);
    }
    if !probe.body.is_empty() {
        request = request.body(probe.body.to_string());
    }
    match request.send().await {
        Ok(response) => judge(probe, response).await,
        Err(error) => failed(&with_causes(&error.without_url())),
    }
}

async fn judge(probe: &HttpProbe, mut response: Response) -> Outcome {
    let code = response.status();
    let status = match code {
        code if code.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    };
    let mut body = Vec::new();
    while body.len() < MAX_OUTPUT {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk[..chunk.len().min(MAX_OUTPUT - body.len())]),
            Ok(None) => break,
            Err(error) => {
                let (method, url, why) = (&probe.method, &probe.url, with_causes(&error.without_url()));
                return Outcome::critical(&format!("HTTP {method} {url}: {code} and then the body broke off: {why}"));
            }
        }
    }
    let (method, url, body) = (&probe.method, &probe.url, String::from_utf8_lossy(&body));
    Outcome::new(status, &format!("HTTP {method} {url}: {code} Output: {body}"))
}

/// The error and what lies beneath it: the top alone says little ("error sending request").
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Takes any certificate, for `tls_skip_verify`: signatures are still checked, so the server holds the key it shows.
#[derive(Debug)]
struct TrustAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_need_no_global_tls_provider() {
        for follow in [false, true] {
            assert!(build(Trust::Nothing, follow).is_ok());
            assert!(build(Trust::Anything, follow).is_ok());
            // Hosts without root certificates exist: then the reason must be said.
            if let Err(reason) = build(Trust::Host, follow) {
                assert!(reason.contains("ca-certificates"), "{reason}");
            }
        }
    }
}
