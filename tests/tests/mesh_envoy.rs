//! The whole way: services checked on their hosts, a registry, an agent, and a real Envoy with traffic through it.

#![allow(clippy::print_stdout, reason = "the traffic is worth a line")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    harness::{TestEnvoy, eventually},
    scenario::{
        Stage,
        Step::{KillRegistry, KillService, Live, RestartService, Serve, Shows, Stale, StartRegistry},
    },
};
use serde_json::json;

async fn follow(example: &'static str) -> Result<()> {
    let mut stage = Stage::set_for_proxies(1, 2).await?;
    stage
        .play(&[
            Serve { agent: 0, service: "web", id: "web-0" },
            Serve { agent: 1, service: "web", id: "web-1" },
            Shows { agent: 0, service: "web", ids: &["web-0", "web-1"] },
        ])
        .await?;
    let directory = tempfile::tempdir()?;
    let Some(envoy) = TestEnvoy::start(&stage.agents[0], example, directory.path())? else { return Ok(()) };
    envoy.routes_to("web", &["web-0", "web-1"]).await?;
    envoy.routes_to("web.service.mesh.internal", &["web-0", "web-1"]).await?;

    no_request_fails_while_endpoints_change(&mut stage, envoy, example).await
}

async fn no_request_fails_while_endpoints_change(stage: &mut Stage, envoy: TestEnvoy, example: &str) -> Result<()> {
    let envoy = Arc::new(envoy);
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = {
        let (envoy, stop) = (envoy.clone(), stop.clone());
        tokio::spawn(async move {
            let mut answered = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                envoy.request("web").await.with_context(|| format!("after {answered} answers"))?;
                answered += 1;
            }
            anyhow::Ok(answered)
        })
    };
    // One comes.
    stage.play(&[Serve { agent: 1, service: "web", id: "web-2" }]).await?;
    envoy.routes_to("web", &["web-0", "web-1", "web-2"]).await?;
    // One goes into maintenance and comes back.
    stage.agents[1].put("/v1/agent/service/maintenance/web-1?enable=true&reason=test", &json!(null)).await?;
    envoy.routes_to("web", &["web-0", "web-2"]).await?;
    stage.agents[1].put("/v1/agent/service/maintenance/web-1?enable=false", &json!(null)).await?;
    envoy.routes_to("web", &["web-0", "web-1", "web-2"]).await?;
    // One goes for good.
    stage.agents[1].put("/v1/agent/service/deregister/web-2", &json!(null)).await?;
    envoy.routes_to("web", &["web-0", "web-1"]).await?;
    // The registry is away, and returns.
    stage.play(&[KillRegistry, Stale(0)]).await?;
    envoy.routes_to("web", &["web-0", "web-1"]).await?;
    stage.play(&[StartRegistry, Live(0)]).await?;
    envoy.routes_to("web", &["web-0", "web-1"]).await?;
    stop.store(true, Ordering::Relaxed);
    let answered = traffic.await??;
    println!("{example}: {answered} requests, none failed");
    ensure!(answered > 100, "too little traffic to mean anything: {answered}");

    // A dead service: traffic moves, then returns.
    stage.play(&[KillService("web-1"), Shows { agent: 0, service: "web", ids: &["web-0"] }]).await?;
    envoy.routes_to("web", &["web-0"]).await?;
    stage.play(&[RestartService("web-1"), Shows { agent: 0, service: "web", ids: &["web-0", "web-1"] }]).await?;
    envoy.routes_to("web", &["web-0", "web-1"]).await?;
    proxies_are_listed(stage).await
}

async fn proxies_are_listed(stage: &Stage) -> Result<()> {
    eventually("the proxy to be listed", || async {
        let proxies = stage.agents[0].get("/v1/muster/xds/proxies").await?;
        let first = &proxies[0];
        ensure!(first["Resources"].as_array().is_some_and(|resources| resources.len() >= 4), "{proxies}");
        ensure!(proxies.as_array().map(Vec::len) == Some(1), "{proxies}");
        Ok(Some(()))
    })
    .await?;
    let metrics = stage.agents[0].response("/metrics").await?.text().await?;
    ensure!(metrics.contains("muster_xds_streams 1"), "the stream is not counted");
    tokio::time::timeout(Duration::from_secs(5), stage.agents[0].get("/v1/agent/self")).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_by_delta_follows_services_without_a_failed_request() -> Result<()> {
    follow("bootstrap.yaml").await
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_by_state_of_the_world_follows_services_without_a_failed_request() -> Result<()> {
    follow("bootstrap-sotw.yaml").await
}
