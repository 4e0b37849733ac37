//! The names and labels that dashboards are built on.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use muster_catalog::{Freshness, Timestamp, View};
use support::{TestServer, catalog};
use tokio::net::UdpSocket;

/// Keeps counters, and the number of observations of histograms, by name and labels.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

struct Observations(Arc<AtomicU64>);

impl HistogramFn for Observations {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorded {
    fn cell(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().unwrap().entry(name).or_default().clone()
    }

    fn get(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |cell| cell.load(Ordering::SeqCst))
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Observations(self.cell(key))))
    }
}

#[tokio::test]
async fn queries_truncation_and_staleness_are_counted() {
    let recorded = Recorded::default();
    metrics::set_global_recorder(recorded.clone()).unwrap();
    let server = TestServer::sample().await;
    let ask = async |name: &str, qtype| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&message.to_vec().unwrap(), server.udp).await.unwrap();
        socket.recv(&mut [0; 512]).await.unwrap();
    };
    for _ in 0..2 {
        ask("web.service.mesh.internal.", RecordType::SRV).await;
    }
    ask("nope.service.mesh.internal.", RecordType::A).await;
    ask("big.service.mesh.internal.", RecordType::A).await;
    ask("example.com.", RecordType::MX).await;
    let mut snapshot = catalog::sample();
    catalog::add_big(&mut snapshot, 1);
    server.source.set(View { freshness: Freshness::Stale { since: Timestamp(1) }, ..catalog::live(snapshot) });
    ask("web.service.mesh.internal.", RecordType::A).await;
    for (name, count) in [
        ("muster_dns_queries_total{type=SRV,rcode=NOERROR}", 2),
        ("muster_dns_queries_total{type=A,rcode=NXDOMAIN}", 1),
        ("muster_dns_queries_total{type=A,rcode=NOERROR}", 2),
        ("muster_dns_queries_total{type=other,rcode=REFUSED}", 1),
        ("muster_dns_truncated_total{}", 1),
        ("muster_dns_stale_answers_total{}", 1),
        ("muster_dns_query_seconds{}", 1),
        ("muster_dns_tcp_refused_total{}", 0),
        ("muster_dns_dropped_total{}", 0),
    ] {
        assert_eq!(recorded.get(name), count, "{name}");
    }
}
