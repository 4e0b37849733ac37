//! The systemd probe: the state of a unit, asked over the system bus. One connection serves all checks.

use std::time::Duration;

use muster_catalog::Status;
use tokio::sync::Mutex;
use zbus::{Connection, OwnedObjectPath, Proxy, connection};

use super::Outcome;

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
/// A call that takes longer has lost its bus; the check's own timeout is usually shorter.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The bus, connected when first needed and again after it was lost.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    /// Another address than the system bus, for tests.
    address: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl Bus {
    #[cfg(test)]
    pub(super) fn at(address: String) -> Self {
        Self { address: Some(address), connection: Mutex::default() }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let builder = match &self.address {
            Some(address) => connection::Builder::address(address.as_str()),
            None => connection::Builder::system(),
        };
        let connection = builder.method_timeout(ANSWER_WITHIN).build().await?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

/// Asks for the unit's state.
pub(super) async fn probe(unit: &str, bus: &Bus) -> Outcome {
    match ask(unit, bus).await {
        Ok(state) => judge(unit, &state),
        Err(error) => {
            // What the manager itself refuses came over a bus that works.
            if !matches!(error, zbus::Error::MethodError(..) | zbus::Error::FDO(_)) {
                *bus.connection.lock().await = None;
            }
            Outcome::critical(&format!("systemd {unit}: the system bus does not answer: {error}"))
        }
    }
}

struct UnitState {
    load: String,
    active: String,
    sub: String,
}

async fn ask(unit: &str, bus: &Bus) -> zbus::Result<UnitState> {
    let connection = bus.connect().await?;
    let manager = uncached(&connection, MANAGER, "org.freedesktop.systemd1.Manager").await?;
    let path: OwnedObjectPath = manager.call("LoadUnit", &(unit,)).await?;
    let unit = uncached(&connection, path.as_str(), "org.freedesktop.systemd1.Unit").await?;
    Ok(UnitState {
        load: unit.get_property("LoadState").await?,
        active: unit.get_property("ActiveState").await?,
        sub: unit.get_property("SubState").await?,
    })
}

/// A proxy that asks each time: following the signals of every unit would cost more than it saves.
async fn uncached<'a>(connection: &Connection, path: &'a str, interface: &'static str) -> zbus::Result<Proxy<'a>> {
    let builder = zbus::proxy::Builder::new(connection).destination(NAME).path(path).interface(interface);
    builder.cache_properties(zbus::proxy::CacheProperties::No).build().await
}

fn judge(unit: &str, state: &UnitState) -> Outcome {
    let UnitState { load, active, sub } = state;
    let status = match active.as_str() {
        "active" => Status::Passing,
        "reloading" | "refreshing" | "activating" => Status::Warning,
        _ => Status::Critical,
    };
    let loaded = if load == "loaded" { String::new() } else { format!(", its file is {load}") };
    Outcome::new(status, &format!("systemd {unit}: {active} ({sub}){loaded}"))
}
