//! The gRPC probe: `grpc.health.v1.Health/Check` must say SERVING.

use std::{error::Error, io};

use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Outcome, Tools, conversation::open_for, with_causes};
use crate::definition::SocketProbe;

/// A health answer is four bytes; whatever sends more is something else.
const MAX_ANSWER: usize = 4096;

/// Asks for the health of `service`, or of the whole server.
pub(super) async fn probe(probe: &SocketProbe, service: &str, tools: &Tools) -> Outcome {
    let target = &probe.target;
    match check(probe, service, tools).await {
        Ok(ServingStatus::Serving) => Outcome::passing(&format!("gRPC check {target}: success")),
        Ok(status) => Outcome::critical(&format!("gRPC check {target}: {service:?} is {}", status.as_str_name())),
        Err(why) => Outcome::critical(&format!("gRPC check {target}: {why}")),
    }
}

async fn check(probe: &SocketProbe, service: &str, tools: &Tools) -> Result<ServingStatus, String> {
    let line = open_for(probe, Some(b"h2"), tools).await?;
    let scheme = if probe.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", probe.target));
    let endpoint = endpoint.map_err(|error| with_causes(&error))?.user_agent("muster-check");
    let endpoint = endpoint.map_err(|error| with_causes(&error))?;
    let mut line = Some(line);
    // The line is there already; a second one is not asked for in one call.
    let connector = tower::service_fn(move |_| {
        let line = line.take().map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(line)
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| with_causes(&error))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.map_err(|status| {
        let cause = status.source().map(|cause| format!(" ({})", with_causes(cause))).unwrap_or_default();
        format!("{}: {}{cause}", status.code(), status.message())
    })?;
    Ok(ServingStatus::try_from(answer.into_inner().status).unwrap_or(ServingStatus::Unknown))
}
