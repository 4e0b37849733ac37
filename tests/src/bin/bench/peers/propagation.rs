//! A service is killed: how long until HTTP and DNS of another host's agent leave it out. Interval 1 s, fall 2, as
//! Nerve and Synapse are known for 1.3 to 2.7 s.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster, TestService, eventually};

use super::{
    super::{median, size::Size},
    Row,
};

/// Between two looks: far below what is measured.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
/// What SmartStack took, from its best to its worst, in seconds.
const SMARTSTACK: (f64, f64) = (1.3, 2.7);
/// A kill that nobody notices is a failure of the run.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kills per round: the phase of the check's interval differs between them.
const KILLS: usize = 4;

pub(super) async fn run(size: Size) -> Result<Vec<Row>> {
    let cluster = TestCluster::start_with(3, "")?;
    let (host, consumer) = (TestAgent::start(&cluster, "host").await?, TestAgent::start(&cluster, "consumer").await?);
    let (mut http, mut dns) = (Vec::new(), Vec::new());
    for kill in 0..size.rounds * KILLS {
        let name = format!("web-{kill}");
        let mut service = TestService::start(&name).await?;
        let definition = format!(
            "[service]\nname = \"{name}\"\naddress = \"127.0.0.1\"\nport = {}\n[[service.checks]]\nhttp = \"http://{}/\"\n\
             interval = \"1s\"\ntimeout = \"1s\"\nfall = 2\n",
            service.address.port(),
            service.address,
        );
        let file = host.services_dir().join(format!("{name}.toml"));
        std::fs::write(&file, definition)?;
        let question = format!("{name}.service.mesh.internal.");
        eventually("the service to be shown", || async {
            let shown = consumer.dig(&question, "A").await?.records.len() == 1;
            Ok((shown && consumer.passing(&name).await?.len() == 1).then_some(()))
        })
        .await?;
        // Kills spread over the interval, the same in every run.
        tokio::time::sleep(Duration::from_millis(250) * (kill % KILLS) as u32).await;
        service.kill();
        let killed = Instant::now();
        let (by_http, by_dns) = tokio::try_join!(
            gone(killed, || async { Ok(consumer.passing(&name).await?.is_empty()) }),
            gone(killed, || async { Ok(consumer.dig(&question, "A").await?.records.is_empty()) }),
        )?;
        http.push(by_http);
        dns.push(by_dns);
        std::fs::remove_file(file)?;
    }
    Ok([("HTTP", http), ("DNS", dns)].into_iter().map(|(way, taken)| row(way, &taken)).collect())
}

fn row(way: &str, taken: &[f64]) -> Row {
    let worst = taken.iter().copied().fold(0.0, f64::max);
    let (middle, (best_known, worst_known)) = (median(taken.to_vec()), SMARTSTACK);
    let middle_known = (best_known + worst_known) / 2.0;
    Row {
        figure: format!("service killed → gone from {way}"),
        ours: format!("{middle:.2} s, worst {worst:.2} s"),
        peer: format!("SmartStack {best_known}–{worst_known} s (known)"),
        ratio: Some(middle / middle_known),
        aim: "below its middle and worst",
        met: Some(middle < middle_known && worst < worst_known),
    }
}

/// Looks until it is so, and says how long that took in seconds.
async fn gone<F: Future<Output = Result<bool>>>(killed: Instant, look: impl Fn() -> F) -> Result<f64> {
    while !look().await? {
        ensure!(killed.elapsed() < PATIENCE, "it is still shown after {PATIENCE:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(killed.elapsed().as_secs_f64())
}
