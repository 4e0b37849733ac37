//! Kept connections to other members.

use std::{
    collections::HashMap,
    error::Error,
    io,
    sync::{Mutex, PoisonError},
};

use tonic::{ConnectError, Status, transport::Channel};

use crate::{
    limits::{MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES},
    proto::registry::registry_client::RegistryClient,
    raft::Dial,
};

/// Connections kept; a registry has few members, and addresses that changed are not kept for ever.
const MAX_CONNECTIONS: usize = 16;

/// One lazy connection for each address; it reconnects by itself and resolves its name each time.
pub(crate) struct Peers {
    dial: Dial,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    /// No connections yet.
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, channels: Mutex::default() }
    }

    /// A client of the member at that address.
    pub(crate) fn client(&self, address: &str) -> Result<RegistryClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(client(channel.clone()));
        }
        let channel = (self.dial)(address);
        let channel = channel.map_err(|error| Status::internal(format!("member address {address:?}: {error}")))?;
        if channels.len() >= MAX_CONNECTIONS {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(client(channel))
    }
}

/// A client over a connection, with this room's limits.
pub(crate) fn client(channel: Channel) -> RegistryClient<Channel> {
    RegistryClient::new(channel)
        .max_decoding_message_size(MAX_ANSWER_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Whether a call failed before anything of it was sent.
pub(crate) fn surely_not_sent(status: &Status) -> bool {
    causes(status).any(|error| error.is::<ConnectError>())
}

/// Whether nobody listens at the address: the host is there and says so.
pub(crate) fn was_refused(status: &Status) -> bool {
    let kinds = causes(status).filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    surely_not_sent(status) && kinds.into_iter().any(|kind| kind == io::ErrorKind::ConnectionRefused)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error: &&(dyn Error + 'static)| (*error).source())
}
