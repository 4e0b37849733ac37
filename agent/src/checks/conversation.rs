//! The way to what is probed: resolved, guarded, connected, and inside TLS where asked.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{Tools, guard, tls::Terms};
use crate::definition::SocketProbe;

/// Bytes both ways, with TLS or without.
pub(super) trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// Connects to `host:port`, by whichever address of the host accepts first, and shakes hands if there are terms.
pub(super) async fn open(
    target: &str,
    allow_link_local: bool,
    terms: Option<Terms<'_>>,
    tools: &Tools,
) -> Result<Box<dyn Line>, String> {
    let addresses = guard::resolve(target, allow_link_local, &tools.resolver).await?;
    let stream = guard::connect(&addresses).await.map_err(|error| error.to_string())?;
    // A failure would only make the exchange slower.
    let _ = stream.set_nodelay(true);
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
    Ok(match terms {
        None => Box::new(stream),
        Some(terms) => Box::new(tools.tls.shake_hands(stream, host, terms).await?),
    })
}

/// Opens what a socket probe talks over.
pub(super) async fn open_for(
    probe: &SocketProbe,
    alpn: Option<&'static [u8]>,
    tools: &Tools,
) -> Result<Box<dyn Line>, String> {
    open(&probe.target, probe.allow_link_local, terms(probe, alpn), tools).await
}

/// The terms of TLS that a socket probe sets.
pub(super) fn terms<'a>(probe: &'a SocketProbe, alpn: Option<&'static [u8]>) -> Option<Terms<'a>> {
    probe.tls.as_ref().map(|options| Terms { options, certificate: probe.certificate.as_ref(), alpn })
}

/// Reads exactly so many bytes; an early end is told in words.
pub(super) async fn read_exactly<const N: usize>(line: &mut dyn Line) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    line.read_exact(&mut bytes).await.map_err(|error| broken(&error))?;
    Ok(bytes)
}

/// Reads up to `most` bytes of something that ends by itself.
pub(super) async fn read_rest(line: &mut dyn Line, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    line.take(most as u64).read_to_end(&mut bytes).await.map_err(|error| broken(&error))?;
    Ok(bytes)
}

/// What is said of an exchange that broke off.
pub(super) fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the connection was closed before an answer".to_owned(),
        _ => format!("the exchange broke off: {error}"),
    }
}

/// Bytes from outside as one line of printable text.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .into()
}
