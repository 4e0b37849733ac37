//! What makes an instance a proxy, and how a service wants to be called, as the answers show it.

use std::net::IpAddr;

use muster_catalog::{Instance, Protocol, Proxy as ProxyRow, Traffic as TrafficRow, Upstream as UpstreamRow};
use serde::Serialize;

use crate::{decode::PROXY_KIND, duration};

/// An object that typed clients of the dialect expect, and that says nothing here.
#[derive(Serialize, Default)]
pub(super) struct Empty {}

/// The kind of an instance; empty for one that is no proxy.
pub(super) fn kind(instance: &Instance) -> &'static str {
    if instance.proxy.is_some() { PROXY_KIND } else { "" }
}

/// `Proxy`: there for every instance, since typed clients expect it.
#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Proxy<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_service_name: Option<&'a str>,
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "Option::is_none")]
    destination_service_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_service_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_service_port: Option<u16>,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<ProxyConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    upstreams: Vec<Upstream<'a>>,
    mesh_gateway: Empty,
    expose: Empty,
}

#[derive(Serialize)]
struct ProxyConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_listener: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Upstream<'a> {
    destination_type: &'static str,
    destination_name: &'a str,
    datacenter: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_bind_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_bind_port: Option<u16>,
    config: UpstreamConfig,
    mesh_gateway: Empty,
}

#[derive(Serialize)]
struct UpstreamConfig {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout_ms: Option<u64>,
}

/// The settings of an instance's proxy.
pub(super) fn proxy(instance: &Instance) -> Proxy<'_> {
    instance.proxy.as_deref().map(settings).unwrap_or_default()
}

fn settings(row: &ProxyRow) -> Proxy<'_> {
    let inbound = row.inbound.as_ref();
    Proxy {
        destination_service_name: Some(row.service.as_str()),
        destination_service_id: row.instance.as_deref(),
        local_service_address: inbound.map(|inbound| inbound.local.ip()),
        local_service_port: inbound.map(|inbound| inbound.local.port()),
        config: Some(ProxyConfig {
            protocol: inbound.map(|inbound| inbound.protocol).map(Protocol::as_str),
            bind_address: inbound.map(|inbound| inbound.listen.ip()),
            bind_port: inbound.map(|inbound| inbound.listen.port()),
            http_listener: row.http_listener.map(|listener| listener.to_string()),
        }),
        upstreams: row.upstreams.iter().map(upstream).collect(),
        ..Proxy::default()
    }
}

fn upstream(row: &UpstreamRow) -> Upstream<'_> {
    Upstream {
        destination_type: "service",
        destination_name: row.service.as_str(),
        datacenter: "",
        local_bind_address: row.listen.map(|listen| listen.ip()),
        local_bind_port: row.listen.map(|listen| listen.port()),
        config: UpstreamConfig {
            protocol: row.protocol.as_str(),
            connect_timeout_ms: row
                .connect_timeout
                .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        },
        mesh_gateway: Empty {},
    }
}

/// `Traffic`: not of the dialect, and only there where it says something.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Traffic {
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    panic_threshold: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefer_near: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outlier_detection: Option<Outlier>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outlier {
    consecutive_failures: u32,
    interval: String,
    ejection_time: String,
    max_ejected_percent: u8,
}

/// The traffic settings that an instance carries.
pub(super) fn traffic(row: &TrafficRow) -> Traffic {
    Traffic {
        connect_timeout: row.connect_timeout.map(duration::format),
        panic_threshold: row.panic_threshold,
        prefer_near: row.prefer_near,
        outlier_detection: row.outlier_detection.as_ref().map(|outlier| Outlier {
            consecutive_failures: outlier.consecutive_failures,
            interval: duration::format(outlier.interval),
            ejection_time: duration::format(outlier.ejection_time),
            max_ejected_percent: outlier.max_ejected_percent,
        }),
    }
}
