//! The largest that the limits let in, taken to every place where it goes; and what they refuse, which harms itself alone.

use std::{fmt::Write, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use envoy_types::pb::envoy::{
    config::{core::v3::Node, endpoint::v3::ClusterLoadAssignment},
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
    serialize::binary::{BinDecodable, BinEncodable},
};
use muster_tests::harness::{PATIENCE, TestAgent, TestCluster, eventually};
use prost::Message as _;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Services of one host, each with two checks that have a note of the longest kind: more than 5 MB, where a message of a
/// push takes 2 MiB.
const SERVICES: usize = 2_400;
/// A file of definitions takes so many of them.
const SERVICES_PER_FILE: usize = 240;
/// Instances of a service that have the most tags each, and the longest.
const FULL: usize = 64;
/// So many of them fill what a service may have.
const FIT: usize = 62;
const TAGS: usize = 64;

fn write_definitions(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    for file in 0..SERVICES / SERVICES_PER_FILE {
        let mut text = String::new();
        for number in file * SERVICES_PER_FILE..(file + 1) * SERVICES_PER_FILE {
            writeln!(text, "[[services]]\nname = \"svc-{number}\"\nport = 80")?;
            for check in ["a", "b"] {
                let notes = "n".repeat(1024);
                writeln!(text, "[[services.checks]]\nid = \"{check}-{number}\"\nttl = \"1d\"\nnotes = \"{notes}\"")?;
            }
        }
        std::fs::write(directory.join(format!("many-{file}.toml")), text)?;
    }
    for half in 0..2 {
        let mut text = String::new();
        for number in half * FULL / 2..(half + 1) * FULL / 2 {
            let tags: Vec<String> = (0..TAGS).map(|tag| format!("\"{number:0>127}-{tag:0>127}\"")).collect();
            let tags = tags.join(", ");
            writeln!(
                text,
                "[[services]]\nname = \"full\"\nid = \"full-{number:0>2}\"\nport = {}\ntags = [{tags}]",
                80 + number
            )?;
        }
        std::fs::write(directory.join(format!("full-{half}.toml")), text)?;
    }
    Ok(())
}

/// What `/readyz` says an operator should look at.
async fn notices(agent: &TestAgent) -> Result<Vec<String>> {
    let ready = agent.get("/readyz").await?;
    let notices = ready["Notices"].as_array().context("no notices")?;
    Ok(notices.iter().filter_map(|notice| notice["Reason"].as_str().map(str::to_owned)).collect())
}

async fn metric(agent: &TestAgent, name: &str) -> Result<f64> {
    let text = agent.response("/metrics").await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no metric {name}"))?.parse()?)
}

/// Whether this agent answers all of it by HTTP, with this suffix to each question.
async fn shows_all(agent: &TestAgent, suffix: &str) -> Result<()> {
    let services = agent.get(&format!("/v1/catalog/services{suffix}")).await?;
    let many = services.as_object().context("no services")?.keys().filter(|name| name.starts_with("svc-")).count();
    let tags = services["full"].as_array().map_or(0, Vec::len);
    ensure!((many, tags) == (SERVICES, FIT * TAGS), "{many} services and {tags} tags");
    let full = agent.get(&format!("/v1/health/service/full{suffix}")).await?;
    ensure!(full.as_array().is_some_and(|list| list.len() == FIT), "{} bytes of instances", full.to_string().len());
    let node = agent.get(&format!("/v1/catalog/node/node-0{suffix}")).await?;
    let rows = node["Services"].as_object().map_or(0, serde_json::Map::len);
    ensure!(rows == SERVICES + FIT, "{rows} instances on the node");
    let checks = agent.get(&format!("/v1/health/node/node-0{suffix}")).await?;
    let checks = checks.as_array().map_or(0, Vec::len);
    ensure!(checks == SERVICES * 2 + 1, "{checks} checks on the node");
    Ok(())
}

/// How many addresses DNS over TCP gives.
async fn dns_count(server: SocketAddr, name: &str) -> Result<usize> {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name.parse::<Name>()?, RecordType::SRV));
    let question = question.to_bytes()?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&u16::try_from(question.len())?.to_be_bytes()[..], &question].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(Message::from_bytes(&answer)?.answers.len())
}

/// How many endpoints of the service a proxy gets.
async fn endpoint_count(agent: &TestAgent) -> Result<usize> {
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", agent.xds)).await?;
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let node = Some(Node { id: "limits".into(), ..Default::default() });
    let resource_names_subscribe = vec!["full".into()];
    requests
        .send(DeltaDiscoveryRequest { node, type_url: EDS.into(), resource_names_subscribe, ..Default::default() })
        .await?;
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
    let response = timeout(PATIENCE, responses.message()).await.context("no endpoints")??.context("it ended")?;
    let resource = response.resources.into_iter().next().and_then(|it| it.resource).context("no resource")?;
    let assignment = ClusterLoadAssignment::decode(&*resource.value)?;
    Ok(assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum())
}

async fn eventually_shows_all(agent: &TestAgent, suffix: &str) -> Result<()> {
    let what = format!("all to be at {} {suffix}", agent.name);
    eventually(&what, || async { shows_all(agent, suffix).await.map(Some) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_state_that_is_taken_goes_everywhere_and_what_is_refused_harms_itself_alone() -> Result<()> {
    let mut cluster = TestCluster::start_with(3, "")?;
    write_definitions(&cluster.directory().join("node-0").join("services.d"))?;
    let mut agent = TestAgent::start(&cluster, "node-0").await?;

    // What is refused is named, and nothing else waits for it.
    let refused = notices(&agent).await?;
    let named =
        |id: &str| refused.iter().any(|reason| reason.contains(&format!("refuses instance {id} of service full")));
    ensure!(refused.len() == FULL - FIT && named("full-62") && named("full-63"), "{refused:?}");
    ensure!(refused[0].contains("over 1048576") && refused[0].contains("meta"), "{refused:?}");
    ensure!(metric(&agent, "muster_agent_rows_not_pushed{reason=\"refused\"}").await? == 2.0, "it is not counted");
    // Lines are written by a thread of their own.
    let is_logged = || async {
        let log = agent.process.log();
        let line = |id: &str| log.contains(&format!("row=instance {id} of service full"));
        Ok((log.contains("the registry refuses a row") && line("full-62") && line("full-63")).then_some(()))
    };
    eventually("the refused rows to be in the log", is_logged).await?;

    // An agent that is new loads it, one with a part and one with all.
    let part = TestAgent::start(&cluster, "part").await?;
    eventually_shows_all(&part, "?consistent").await?;
    // Changes of another row arrive, and do not try the refused ones again.
    let tried = refusals(&cluster).await?;
    for _ in 0..5 {
        agent.register("late", "late", 81).await?;
        part.wait_passing("late", &["late"]).await?;
        agent.put("/v1/agent/service/deregister/late", &Value::Null).await?;
        part.wait_passing("late", &[]).await?;
    }
    // Each try is three refusals, for the two and for each, at one member or two.
    let more = refusals(&cluster).await? - tried;
    ensure!(more <= 15.0, "refused rows were sent with others: {more}");

    let mut all = TestAgent::start_with(&cluster, "all", "replica = \"all\"\n", "unregistered = \"all\"\n").await?;
    eventually_shows_all(&all, "").await?;
    ensure!(dns_count(part.dns, "full.service.mesh.internal.").await? == FIT, "DNS");
    ensure!(endpoint_count(&all).await? == FIT, "xDS");

    // It can be backed up, restored through the log, and read from the members' disks.
    let file = cluster.directory().join("catalog.backup");
    let file = file.to_str().context("no path")?;
    let taken = cluster.registry(&[0, 1, 2], &["backup", file])?;
    ensure!(taken["instances"] == SERVICES + FIT, "{taken}");
    cluster.registry(&[0, 1, 2], &["restore", file, "--yes"])?;
    cluster.kill_all()?;
    cluster.restart_all()?;
    for agent in [&part, &all] {
        eventually_shows_all(agent, "?consistent").await?;
    }

    // An agent's own disk has it.
    let saved = cluster.directory().join("all").join("data").join("agent").join("replica");
    let bytes = || std::fs::metadata(&saved).map_or(0, |file| file.len());
    eventually("the replica to be on disk", || async { Ok((bytes() > 5_000_000).then_some(())) }).await?;
    cluster.kill_all()?;
    all.restart()?;
    eventually_shows_all(&all, "?stale").await?;
    ensure!(dns_count(all.dns, "full.service.mesh.internal.").await? == FIT, "DNS from disk");
    cluster.restart_all()?;

    // Where there is room again, what was refused comes by itself, and what went goes although others are refused.
    agent.restart()?;
    agent.ready().await?;
    std::fs::remove_file(agent.services_dir().join("full-0.toml"))?;
    let expected: Vec<String> = (FULL / 2..FULL).map(|number| format!("full-{number}")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    part.wait_passing("full", &expected).await?;
    let none = || async { Ok(notices(&agent).await?.is_empty().then_some(())) };
    eventually("nothing to be refused any more", none).await
}

/// Writes that the members were asked for and refused.
async fn refusals(cluster: &TestCluster) -> Result<f64> {
    let mut sum = 0.0;
    for member in 0..3 {
        sum += cluster.metric(member, "muster_registry_writes_total{result=\"refused\"}").await?;
    }
    Ok(sum)
}
