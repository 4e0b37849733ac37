//! TLS for checks: whom they trust, by what name, and who has to be there.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use muster_catalog::Text;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, sync::Semaphore, task::spawn_blocking};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::definition::{TlsOptions, open_regular};

/// Files of roots that are kept parsed; more of them are read for each probe.
const MAX_ROOTS: usize = 64;
/// The largest bundle of public roots is a quarter of this.
const MAX_ROOTS_BYTES: u64 = 1024 * 1024;
/// Files of roots that are read at one time: a look at one that has not changed takes microseconds.
const MAX_READING: usize = 4;
/// Names of a certificate that are shown when none is the right one.
const MAX_NAMES_SHOWN: usize = 5;

/// Whom a check trusts; made when first needed, since the host's roots are large and shared by all checks.
#[derive(Debug)]
pub(crate) struct TlsTrust {
    host: OnceLock<Verifier>,
    files: Mutex<BTreeMap<Text, (Stamp, Verifier)>>,
    reading: Arc<Semaphore>,
}

impl Default for TlsTrust {
    fn default() -> Self {
        let reading = Arc::new(Semaphore::new(MAX_READING));
        Self { host: OnceLock::new(), files: Mutex::default(), reading }
    }
}

type Verifier = Arc<dyn ServerCertVerifier>;
/// What tells a changed file from an unchanged one.
type Stamp = (u64, Option<SystemTime>);

/// What a conversation needs of TLS.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// How the certificate is verified.
    pub(super) options: &'a TlsOptions,
    /// The name it has to carry, instead of the server's.
    pub(super) certificate: Option<&'a Text>,
    /// The protocol to agree on, if any.
    pub(super) alpn: Option<&'static [u8]>,
}

impl TlsTrust {
    /// Shakes hands over `stream` with `host`.
    pub(super) async fn shake_hands(
        &self,
        stream: TcpStream,
        host: &str,
        terms: Terms<'_>,
    ) -> Result<TlsStream<TcpStream>, String> {
        let provider = Arc::new(crate::crypto());
        let verifier = match &terms.options.ca_file {
            _ if terms.options.skip_verify => Arc::new(TrustAnything) as Verifier,
            Some(path) => self.read_roots(path, &provider).await?,
            None => self.host_roots(&provider)?,
        };
        let verifier = match terms.certificate {
            Some(_) => Arc::new(AnyName(verifier)),
            None => verifier,
        };
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = terms.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let name = terms.options.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']);
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no name to ask for in TLS"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|error| explain(&error))?;
        if let Some(expected) = terms.certificate {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            prove(shown.ok_or("TLS: no certificate was shown")?, expected)?;
        }
        Ok(stream)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Text, (Stamp, Verifier)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_kept(&self, path: &Text) -> Option<Stamp> {
        self.files().get(path).map(|(stamp, _)| *stamp)
    }

    fn find_verifier(&self, path: &Text) -> Option<Verifier> {
        self.files().get(path).map(|(_, verifier)| verifier.clone())
    }

    /// The host's roots; while there are none they are looked for again, as they may be installed any time.
    fn host_roots(&self, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
        match self.host.get() {
            Some(verifier) => Ok(verifier.clone()),
            None => host_roots(provider).map(|verifier| self.host.get_or_init(|| verifier).clone()),
        }
    }

    async fn read_roots(&self, path: &Text, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
        let fail = |error: io::Error| format!("ca_file {path}: {error}; make it readable for the agent's user");
        // The thread keeps the place: where a file system hangs, few threads hang with it.
        let place = self.reading.clone().acquire_owned().await.map_err(|error| fail(io::Error::other(error)))?;
        let (kept, named) = (self.find_kept(path), path.clone());
        let reading = spawn_blocking(move || {
            let _place = place;
            read_if_changed(Path::new(&*named), kept)
        });
        let read = reading.await.map_err(|error| fail(io::Error::other(error)))?.map_err(fail)?;
        let Some((stamp, pem)) = read else {
            return self.find_verifier(path).ok_or_else(|| fail(io::Error::other("it was just forgotten")));
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate
                .map_err(|error| error.to_string())
                .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
            added.map_err(|error| format!("ca_file {path}: {error}; it must hold PEM certificates"))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let verifier: Verifier =
            verifier.map_err(|error| format!("ca_file {path}: {error}; it must hold PEM certificates"))?;
        let mut files = self.files();
        if files.len() < MAX_ROOTS || files.contains_key(path) {
            files.insert(path.clone(), (stamp, verifier.clone()));
        }
        Ok(verifier)
    }
}

/// The content of a file of roots, unless it is as it was. Blocks.
fn read_if_changed(path: &Path, kept: Option<Stamp>) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    let file = open_regular(path)?;
    let meta = file.metadata()?;
    let stamp = (meta.len(), meta.modified().ok());
    if kept == Some(stamp) {
        return Ok(None);
    }
    if meta.len() > MAX_ROOTS_BYTES {
        return Err(io::Error::other(format!("{} bytes are too many for a file of roots", meta.len())));
    }
    let mut pem = Vec::new();
    file.take(MAX_ROOTS_BYTES).read_to_end(&mut pem)?;
    Ok(Some((stamp, pem)))
}

fn host_roots(provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
    let verifier = rustls_platform_verifier::Verifier::new(provider.clone()).map_err(|error| {
        format!("the host's root certificates cannot be used: {error}; install them (ca-certificates), or give ca_file")
    })?;
    Ok(Arc::new(verifier))
}

/// What is said of a handshake that failed.
fn explain(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    let no_common_ground = matches!(
        cause,
        Some(Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion))
    );
    let hint = "; checks speak TLS 1.2 and 1.3 with AES-GCM or ChaCha20: older versions and CBC ciphers they do not";
    format!("TLS: {error}{}", if no_common_ground { hint } else { "" })
}

/// Whether the certificate carries the expected DNS name or URI.
fn prove(certificate: &CertificateDer<'_>, expected: &str) -> Result<(), String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| format!("TLS: {error}"))?;
    let named = match ServerName::try_from(expected) {
        Ok(name) => parsed.verify_is_valid_for_subject_name(&name).is_ok(),
        Err(_) => parsed.valid_uri_names().any(|uri| uri == expected),
    };
    if named {
        return Ok(());
    }
    let names: Vec<_> = parsed.valid_uri_names().chain(parsed.valid_dns_names()).take(MAX_NAMES_SHOWN).collect();
    let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
    Err(format!("another service answers: its certificate is for {names}, not for {expected}"))
}

/// Trusts as the inner one does, under whatever name: which one it has to be is proven after the handshake.
#[derive(Debug)]
struct AnyName(Verifier);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is judged before the name.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Takes any certificate, for `tls_skip_verify`, also what no verifier here can read: X.509 v1, short RSA keys, curves
/// that ring does not know. So it cannot be checked either that the server holds the key it shows.
#[derive(Debug)]
struct TrustAnything;

/// All that a server may sign with: what is not checked need not be understood.
const ANY_SCHEME: [SignatureScheme; 12] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::ED448,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA1,
];

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ANY_SCHEME.to_vec()
    }
}
