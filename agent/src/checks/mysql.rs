//! The MySQL and MariaDB probe: the server's greeting is good, an error in its place is bad. Nothing is sent.

use super::{
    Outcome, Tools,
    conversation::{open_for, printable, read_exactly, read_rest},
};
use crate::definition::SocketProbe;

/// A greeting is about a hundred bytes.
const MAX_PACKET: usize = 1024;
/// The greeting's first byte: the version of the protocol.
const GREETING: u8 = 10;
const ERROR: u8 = 0xff;

/// Reads the first packet.
pub(super) async fn probe(probe: &SocketProbe, tools: &Tools) -> Outcome {
    let target = &probe.target;
    match greeting(probe, tools).await {
        Ok(version) => Outcome::passing(&format!("MySQL {target}: greets as {version}")),
        Err(why) => Outcome::critical(&format!("MySQL {target}: {why}")),
    }
}

/// MariaDB greets as `5.5.5-` and its version, for old replicas that take no first number above 5.
fn own_version(greeted: &str) -> &str {
    greeted.strip_prefix("5.5.5-").filter(|rest| rest.contains("MariaDB")).unwrap_or(greeted)
}

async fn greeting(probe: &SocketProbe, tools: &Tools) -> Result<String, String> {
    let mut line = open_for(probe, None, tools).await?;
    let [a, b, c, number, first] = read_exactly::<5>(&mut *line).await?;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
    let strange = || format!("it answers, but not as MySQL does: {}", printable(&[a, b, c, number, first]));
    if number != 0 || !(2..=MAX_PACKET).contains(&length) {
        return Err(strange());
    }
    let rest = read_rest(&mut *line, length - 1).await?;
    match (first, &*rest) {
        (GREETING, rest) if rest.contains(&0) => {
            let version = printable(rest.split(|byte| *byte == 0).next().unwrap_or_default());
            Ok(own_version(&version).to_owned())
        }
        (ERROR, [low, high, text @ ..]) => {
            Err(format!("error {}: {}", u16::from_le_bytes([*low, *high]), printable(text)))
        }
        _ => Err(strange()),
    }
}
