//! The PostgreSQL probe: a session is begun; a demand for credentials, or a welcome, is good. No password is sent.

use tokio::io::AsyncWriteExt;

use super::{
    Outcome, Tools,
    conversation::{self, Line, broken, printable, read_exactly, read_rest},
    guard,
};
use crate::definition::SocketProbe;

/// The code of SSLRequest, in place of a protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Protocol 3.0, and the user that is named; it need not exist.
const PARAMETERS: &[u8] = b"\x00\x03\x00\x00user\0muster_check\0database\0postgres\0application_name\0muster-check\0\0";
/// The most that is read of an error: its fields are short.
const MAX_ERROR: usize = 2048;

/// Begins a session and reads the first message.
pub(super) async fn probe(probe: &SocketProbe, tools: &Tools) -> Outcome {
    let target = &probe.target;
    match begin(probe, tools).await {
        Ok(what) => Outcome::passing(&format!("PostgreSQL {target}: {what}")),
        Err(why) => Outcome::critical(&format!("PostgreSQL {target}: {why}")),
    }
}

async fn begin(probe: &SocketProbe, tools: &Tools) -> Result<&'static str, String> {
    let mut line = open(probe, tools).await?;
    let length = u32::try_from(PARAMETERS.len() + 4).unwrap_or(u32::MAX).to_be_bytes();
    line.write_all(&[&length, PARAMETERS].concat()).await.map_err(|error| broken(&error))?;
    line.flush().await.map_err(|error| broken(&error))?;
    let [kind, a, b, c, d] = read_exactly::<5>(&mut *line).await?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match kind {
        b'R' if (8..=MAX_ERROR).contains(&length) => {
            let request = u32::from_be_bytes(read_exactly::<4>(&mut *line).await?);
            Ok(if request == 0 { "accepts sessions" } else { "asks for credentials" })
        }
        b'E' => {
            let body = read_rest(&mut *line, length.saturating_sub(4).min(MAX_ERROR)).await?;
            Err(error_text(&body))
        }
        _ => Err(format!("it answers, but not as PostgreSQL does: {}", printable(&[kind, a, b, c, d]))),
    }
}

/// TLS begins inside the protocol here, so the line is opened by hand.
async fn open(probe: &SocketProbe, tools: &Tools) -> Result<Box<dyn Line>, String> {
    let Some(terms) = conversation::terms(probe, None) else {
        return conversation::open_for(probe, None, tools).await;
    };
    let addresses = guard::resolve(&probe.target, probe.allow_link_local, &tools.resolver).await?;
    let mut stream = guard::connect(&addresses).await.map_err(|error| error.to_string())?;
    stream.write_all(&SSL_REQUEST).await.map_err(|error| broken(&error))?;
    match read_exactly::<1>(&mut stream).await? {
        [b'S'] => {}
        [b'N'] => return Err("the server speaks no TLS: set ssl = on there, or remove tls here".to_owned()),
        other => return Err(format!("it answers, but not as PostgreSQL does: {}", printable(&other))),
    }
    let host = probe.target.rsplit_once(':').map_or(&*probe.target, |(host, _)| host);
    Ok(Box::new(tools.tls.shake_hands(stream, host, terms).await?))
}

/// `SEVERITY code: message` of an ErrorResponse: fields, each a letter and a text with a NUL.
fn error_text(body: &[u8]) -> String {
    let fields: Vec<_> = body.split(|byte| *byte == 0).filter_map(|field| field.split_first()).collect();
    let find = |letter: u8| {
        let field = fields.iter().find(|(kind, _)| **kind == letter);
        field.map(|(_, text)| printable(text)).unwrap_or_default()
    };
    format!("{} {}: {}", find(b'S'), find(b'C'), find(b'M'))
}
