//! Kept connections to other members.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tonic::{
    ConnectError, Status,
    transport::{Channel, Endpoint},
};

use super::MAX_MESSAGE_BYTES;
use crate::proto::registry::registry_client::RegistryClient;

/// A member that does not answer the connection attempt within this is taken as down for now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a silent connection is probed, and how long an answer may take: a peer that vanished without a word is
/// noticed well within a lease.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections kept; a registry has few members, and addresses that changed are not kept for ever.
const MAX_CONNECTIONS: usize = 16;

/// One lazy connection for each address; it reconnects by itself and resolves its name each time.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    /// A client of the member at that address.
    pub(crate) fn client(&self, address: &str) -> Result<RegistryClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if !channels.contains_key(address) {
            if channels.len() >= MAX_CONNECTIONS {
                channels.clear();
            }
            let endpoint = endpoint(address)?;
            channels.insert(address.to_owned(), endpoint.connect_lazy());
        }
        let channel = channels.get(address).cloned();
        channel.map(client).ok_or_else(|| Status::internal("a connection vanished"))
    }
}

/// A client over a connection, with this room's limits.
pub(crate) fn client(channel: Channel) -> RegistryClient<Channel> {
    RegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// A member's address as something to connect to.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| Status::invalid_argument(format!("member address {address:?}: {error}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Whether a call failed before anything of it was sent.
pub(crate) fn surely_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
