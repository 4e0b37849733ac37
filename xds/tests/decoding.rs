//! What requests cost that are made to be large once they are read. A process of its own: its memory is measured.

// Integration tests are tests throughout, which the lint does not see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;

use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// What each request is made of: just below the 8 MiB that one may have.
const BYTES: usize = 7_900_000;

/// A message in its bytes. Those of a message are written as those of a text are.
#[derive(Clone, PartialEq, prost::Message)]
struct Raw {
    #[prost(bytes = "vec", tag = "1")]
    one: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    two: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    three: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    four: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    six: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    seven: Vec<u8>,
}

/// As many empty fields of this number as there is room for, in two bytes each.
fn empty_fields(number: u8) -> Vec<u8> {
    [number << 3 | 2, 0].repeat(BYTES / 2)
}

/// A field with its content. Large ones are not copied: the memory of this client is in what is measured.
fn field(number: u8, mut content: Vec<u8>) -> Vec<u8> {
    let mut head = vec![number << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut head).unwrap();
    content.splice(0..0, head);
    content
}

fn node(mut rest: Vec<u8>) -> Vec<u8> {
    rest.splice(0..0, field(1, b"x".to_vec()));
    rest
}

/// Different names, each with a version that is empty.
fn initial_versions() -> Vec<u8> {
    (0..BYTES / 10).flat_map(|at| field(5, field(1, format!("{at:06}").into_bytes()))).collect()
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// How the server answers a request, which is followed by the bytes of further fields.
async fn answer(channel: &Channel, method: &str, request: Raw, more: Vec<u8>) -> Code {
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
    let path = PathAndQuery::try_from(path).unwrap();
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let (requests, stream) = mpsc::channel(1);
    requests.send((request, more)).await.unwrap();
    let opened = client.streaming(Request::new(ReceiverStream::new(stream)), path, Bytes::default()).await;
    let mut answers = opened.unwrap().into_inner();
    let outcome = tokio::time::timeout(PATIENCE, answers.message()).await.expect("no answer");
    // What the stream held is free again once the server has ended it.
    drop(requests);
    while let Ok(Some(_)) = answers.message().await {}
    outcome.map_or_else(|status| status.code(), |push| if push.is_some() { Code::Ok } else { Code::Unknown })
}

/// Sends a message and the bytes of further fields.
#[derive(Default)]
struct Bytes(ProstCodec<(), Raw>);

impl tonic::codec::Codec for Bytes {
    type Encode = (Raw, Vec<u8>);
    type Decode = Raw;
    type Encoder = Self;
    type Decoder = <ProstCodec<(), Raw> as tonic::codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.0.decoder()
    }
}

impl tonic::codec::Encoder for Bytes {
    type Item = (Raw, Vec<u8>);
    type Error = tonic::Status;

    fn encode(&mut self, item: (Raw, Vec<u8>), buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        prost::Message::encode(&item.0, buffer).unwrap();
        prost::bytes::BufMut::put_slice(buffer, &item.1);
        Ok(())
    }
}

/// Makes a request: what is sent first, and its bytes.
type Make<'a> = &'a dyn Fn() -> (Raw, Vec<u8>);

#[tokio::test]
async fn no_request_costs_much_more_than_its_bytes_whatever_it_is_made_of() {
    const DELTA: &str = "DeltaAggregatedResources";
    const STATE: &str = "StreamAggregatedResources";
    let (handle, _stop) = serve(config(), FakeSource::loaded(), 0).await;
    let channel = Endpoint::try_from(format!("http://{}", handle.local_addr())).unwrap().connect().await.unwrap();
    let cds = || CDS.as_bytes().to_vec();
    let delta = |node: Vec<u8>| Raw { one: node, two: cds(), ..Raw::default() };
    let state = |node: Vec<u8>| Raw { two: node, four: cds(), ..Raw::default() };
    let plain = || node(Vec::new());
    let metadata = || field(3, field(1, field(2, field(6, empty_fields(1)))));
    let none = Vec::new;
    let cases: [(&str, &str, Code, Make<'_>); 11] = [
        ("a plain one", DELTA, Code::Ok, &|| (delta(plain()), none())),
        ("extensions of the node", DELTA, Code::Ok, &|| (delta(node(empty_fields(9))), none())),
        ("extensions of the node", STATE, Code::Ok, &|| (state(node(empty_fields(9))), none())),
        ("metadata of the node", DELTA, Code::Ok, &|| (delta(node(metadata())), none())),
        ("details of a rejection", DELTA, Code::Ok, &|| (Raw { seven: empty_fields(3), ..delta(plain()) }, none())),
        ("details of a rejection", STATE, Code::Ok, &|| (Raw { six: empty_fields(3), ..state(plain()) }, none())),
        ("locators", DELTA, Code::ResourceExhausted, &|| (delta(plain()), empty_fields(8))),
        ("locators", STATE, Code::ResourceExhausted, &|| (state(plain()), empty_fields(7))),
        ("names", STATE, Code::ResourceExhausted, &|| (state(plain()), empty_fields(3))),
        ("names that are let go", DELTA, Code::ResourceExhausted, &|| (delta(plain()), empty_fields(4))),
        ("versions that it has", DELTA, Code::ResourceExhausted, &|| (delta(plain()), initial_versions())),
    ];
    let mut before = None;
    for (what, method, code, make) in cases {
        let (request, more) = make();
        let answered = answer(&channel, method, request, more).await;
        assert_eq!(answered, code, "{what} ({method})");
        // The plain one says what there is without.
        let grown = peak() - *before.get_or_insert_with(peak);
        println!("{what} ({method}): {grown} KiB more than before");
        assert!(grown < 48 << 10, "{what} ({method}): {grown} KiB more than before");
    }
}
