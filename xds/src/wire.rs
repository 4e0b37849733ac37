//! Between protobuf and the state machine's words.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{self as discovery, DeltaDiscoveryResponse, DiscoveryResponse};
use prost::Message;

use crate::{
    kind::ResourceKind,
    request::{DeltaDiscoveryRequest, DiscoveryRequest, Node, Reason},
    resource::Resource,
    subscription::{Asked, Push, Request, Variant},
};

/// A variant of the protocol on the wire.
pub(crate) trait Wire: Message + Default + Send + 'static {
    /// What its server sends.
    type Response: Message + Send + 'static;

    /// Which it is.
    const VARIANT: Variant;

    /// Where it is called.
    const PATH: &str;

    /// The client, on the first request of a stream.
    fn take_node(&mut self) -> Option<Node>;

    /// `None` for types that are not served.
    fn read(self) -> Option<Request>;

    /// A push of this variant. Never with a TTL: its end would take the endpoints, or the whole proxy, down.
    fn write(push: Push) -> Self::Response;
}

impl Wire for DiscoveryRequest {
    type Response = DiscoveryResponse;
    const VARIANT: Variant = Variant::Sotw;
    const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn read(self) -> Option<Request> {
        let kind = ResourceKind::find(&self.type_url)?;
        let asked = Asked::State { names: self.resource_names, version: self.version_info };
        Some(Request { kind, nonce: self.response_nonce, error: self.error_detail.map(reason), asked })
    }

    fn write(push: Push) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: push.version.to_string(),
            resources: push.resources.iter().map(|resource| resource.body.clone()).collect(),
            type_url: push.kind.type_url().to_owned(),
            nonce: push.nonce,
            ..Default::default()
        }
    }
}

impl Wire for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;
    const VARIANT: Variant = Variant::Delta;
    const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn read(self) -> Option<Request> {
        let kind = ResourceKind::find(&self.type_url)?;
        let asked = Asked::Delta {
            subscribe: self.resource_names_subscribe,
            unsubscribe: self.resource_names_unsubscribe,
            initial: self.initial_resource_versions,
        };
        Some(Request { kind, nonce: self.response_nonce, error: self.error_detail.map(reason), asked })
    }

    fn write(push: Push) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: push.version.to_string(),
            resources: push.resources.iter().map(delta_resource).collect(),
            type_url: push.kind.type_url().to_owned(),
            removed_resources: push.removed.iter().map(ToString::to_string).collect(),
            nonce: push.nonce,
            ..Default::default()
        }
    }
}

fn delta_resource(resource: &Arc<Resource>) -> discovery::Resource {
    discovery::Resource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(resource.body.clone()),
        ..Default::default()
    }
}

/// A rejection without words is one too.
fn reason(reason: Reason) -> String {
    if reason.message.is_empty() { format!("no reason given (code {})", reason.code) } else { reason.message }
}
